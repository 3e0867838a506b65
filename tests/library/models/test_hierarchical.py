"""Hierarchies: rates level by level, the ladder, shared features, and refinement at test time."""

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.models import ppca
from tests.common import close, draws, standard_errors_off


def step(w, z):
    return jv.Normal(w * z, jnp.full_like(z, 0.5))


def other(w, z):
    return jv.Normal(jnp.sin(w + z), jnp.full_like(z, 0.8))


TOP = jv.StandardNormal((2,))
Q = jv.Joint(
    jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.8])), Partial(step, jnp.array(0.7))
)
P = jv.Joint(TOP, Partial(other, jnp.array(0.2)))


def test_a_rate_is_analytic_at_each_level_given_the_sample_above():
    @jax.jit
    def both(key):
        z, log_q = jv.sample_and_log_prob(Q, key)
        top = jv.kl_divergence(Q.first, P.first)
        below = jv.kl_divergence(Q.then(z[0]), P.then(z[0]))
        return top + below, jv.auto_kl(Q, P, z, log_q), jv.analytic_kl(Q, P, z, log_q)

    by_level, automatic, analytic = both(jax.random.key(0))
    assert close(automatic, by_level)
    assert close(analytic, by_level)


def test_level_rates_have_the_mean_of_sampled_ones_and_less_noise():
    def both(key):
        z, log_q = jv.sample_and_log_prob(Q, key)
        return jnp.stack([jv.auto_kl(Q, P, z, log_q), jv.sampled_kl(Q, P, z, log_q)])

    levels, sampled = draws(both, 20_000).T
    assert standard_errors_off(levels - sampled, 0.0) < 4
    assert np.std(levels) < 0.7 * np.std(sampled)


def test_a_level_without_a_closed_form_is_sampled():
    """The other keeps its own, and a flow at the first level is never inverted."""

    class OneWay:
        def forward_and_log_det(self, z):
            return 2.0 * z, jnp.asarray(2.0 * jnp.log(2.0))

    flow = jv.Transformed(jv.StandardNormal((2,)), OneWay())  # it has no inverse
    q = jv.Joint(flow, Partial(step, jnp.array(0.7)))

    @jax.jit
    def both(key):
        (a, b), log_q = jv.sample_and_log_prob(q, key)
        log_q_a = log_q - q.then(a).log_prob(b)
        exact = log_q_a - TOP.log_prob(a) + jv.kl_divergence(q.then(a), P.then(a))
        return jv.auto_kl(q, P, (a, b), log_q), exact

    assert close(*both(jax.random.key(0)))


def test_bottom_up_inference_has_the_layers_of_the_prior():
    up = jv.Transformed(
        jv.Joint(jv.Normal(0.3, 0.5), Partial(step, jnp.array(0.7))), jv.bijectors.Reverse()
    )

    @jax.jit
    def densities(key):
        (high, low), log_q = jv.sample_and_log_prob(up, key)
        exact = jv.Normal(0.3, 0.5).log_prob(low) + step(0.7, low).log_prob(high)
        return exact, log_q, up.log_prob((high, low))

    exact, log_q, again = densities(jax.random.key(0))
    assert close(log_q, exact)
    assert close(again, exact)


def coin(z):
    return jv.Bernoulli(z)


def test_a_discrete_layer_has_no_path():
    """Wherever it stands: the pathwise gradient of such a posterior is refused, not half taken."""
    first, second = jv.Normal(jnp.zeros(2), jnp.ones(2)), jv.Bernoulli(jnp.zeros(2))
    assert jv.Joint(first, Partial(step, jnp.array(0.7))).reparameterized
    for q in (
        jv.Joint(first, Partial(coin)),
        jv.Joint(second, Partial(step, jnp.array(0.7))),
        jv.models.hierarchy(first, Partial(step, jnp.array(0.7)), Partial(coin)),
        jv.Transformed(jv.Joint(first, Partial(coin)), jv.bijectors.Reverse()),
    ):
        assert not q.reparameterized
    model = jv.VAE(lambda loc: jv.Joint(jv.Normal(loc, 1.0), Partial(coin)), unit_of_last, P)
    with pytest.raises(TypeError, match="samples of Joint have no derivative"):
        jax.eval_shape(jax.grad(lambda x: jv.elbo(model, jax.random.key(0), x)[0]), np.zeros(2))


def unit_of_last(z):
    return jv.Normal(jv.models.bottom(z), 1.0)


def test_hierarchy_nests():
    chain = jv.models.hierarchy(TOP, Partial(step, jnp.array(0.7)), Partial(other, jnp.array(0.2)))

    @jax.jit
    def both(key):
        (a, (b, c)), log_p = jv.sample_and_log_prob(chain, key)
        exact = TOP.log_prob(a) + step(0.7, a).log_prob(b) + other(0.2, b).log_prob(c)
        return (a, (b, c)), log_p, exact

    (a, (b, c)), log_p, exact = both(jax.random.key(0))
    assert close(log_p, exact)
    assert np.array_equal(jv.models.bottom((a, (b, c))), c)
    assert jv.models.hierarchy(TOP) is TOP


def test_precision_weighted_is_the_product_of_gaussians(x64):
    a = jv.Normal(jnp.array([0.3]), jnp.array([0.5]))
    b = jv.Normal(jnp.array([-2.0]), jnp.array([2.0]))
    c, z = jv.models.gaussian_product(a, b), jnp.linspace(-3.0, 3.0, 7)[:, None]
    ratio = jax.vmap(lambda z: a.log_prob(z) + b.log_prob(z) - c.log_prob(z))(z)
    assert np.ptp(ratio) < 1e-10
    for scale in (1e-6, 1e6):  # one that knows nothing, or all
        c = jv.models.gaussian_product(a, jv.Normal(b.loc, jnp.array([scale])))
        assert np.all(np.isfinite(jnp.stack([c.loc, c.scale])))


def conditional(n, m, rngs):
    return nn.Conditional(partial(nn.MLP, hidden=(5,)), nn.NormalHead(), (n,), (m,), rngs=rngs)


def ladder(seed=0):
    rngs = nnx.Rngs(seed)
    sizes = ((4, 3), (3, 3), (3, 2))
    return jv.models.Ladder(
        up=tuple(nn.MLP((n,), (m,), hidden=(), rngs=rngs) for n, m in sizes),
        evidence=tuple(conditional(m, d, rngs) for (_, m), d in zip(sizes, (3, 2, 1), strict=True)),
        top=jv.StandardNormal((1,)),
        down=(conditional(1, 2, rngs), conditional(2, 3, rngs)),
        likelihood=conditional(3, 4, rngs),
    )


@pytest.mark.thorough
def test_the_ladder_weighs_evidence_against_what_is_above():
    @jax.jit
    def both(model, x):
        q = model.encode(x)
        z, log_q = jv.sample_and_log_prob(q, jax.random.key(0))
        d1 = model.up[0](x)
        d2 = model.up[1](d1)
        top = model.evidence[2](model.up[2](d2))
        middle = jv.models.gaussian_product(model.evidence[1](d2), model.down[0](z[0]))
        low = jv.models.gaussian_product(model.evidence[0](d1), model.down[1](z[1][0]))
        exact = top.log_prob(z[0]) + middle.log_prob(z[1][0]) + low.log_prob(z[1][1])
        kls = [
            jv.kl_divergence(top, model.top),
            jv.kl_divergence(middle, model.down[0](z[0])),
            jv.kl_divergence(low, model.down[1](z[1][0])),
        ]
        means = model.decode(z).mean(), model.likelihood(z[1][1]).mean()
        return (log_q, exact), (jv.auto_kl(q, model.prior, z, log_q), sum(kls)), means

    assert all(close(*pair) for pair in both(jax.jit(ladder)(), np.ones(4, np.float32)))


@pytest.mark.thorough
def test_shared_features_carry_all_layers_above():
    """p(z_3 | z_1, z_2): the last level's prior moves with the first layer as with the second."""

    def top_down():
        rngs = nnx.Rngs(0)

        def block():
            return jv.models.Block(
                prior=conditional(2, 2, rngs),
                posterior=Partial(at_both, conditional(2, 2, rngs)),
                merge=Partial(merged, nn.MLP((2,), (2,), rngs=rngs)),
            )

        return jv.models.TopDown(
            Partial(thrice), jnp.zeros(2), [block() for _ in range(3)], Partial(unit)
        )

    @jax.jit
    def run(key, *z):
        model = top_down()

        def last(first, second):
            return model.prior.then(first).then(second).mean()

        jacobians = [jax.jacobian(last, argument)(*z) for argument in (0, 1)]
        q = model.encode(jnp.ones(2))
        (a, (b, c)), log_q = jv.sample_and_log_prob(q, key)
        h = model.start
        kl, log_prob = 0.0, 0.0
        for block, z_l in zip(model.blocks, (a, b, c), strict=True):
            q_l, p_l = block.posterior((h, jnp.ones(2))), block.prior(h)
            kl, log_prob = kl + jv.kl_divergence(q_l, p_l), log_prob + q_l.log_prob(z_l)
            h = block.merge((h, z_l))
        rate = jv.auto_kl(q, model.prior, (a, (b, c)), log_q)
        mean = model.decode((a, (b, c))).mean()
        return jacobians, ((log_q, log_prob), (rate, kl), (mean, h))

    jacobians, pairs = run(
        jax.random.key(0), *np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    )
    assert all(np.any(jacobian != 0) for jacobian in jacobians)
    assert all(close(*pair) for pair in pairs)


def at_both(network, pair):
    return network(pair[0] + pair[1])


def merged(network, pair):
    h, z = pair
    return h + network(z)


def thrice(x):
    return x, x, x


def unit(h):
    return jv.Normal(h, 1.0)


def scaled(slope, scale, z):
    return jv.Normal(slope * z, jnp.full(1, scale))


@pytest.mark.thorough
def test_every_evaluator_takes_a_hierarchy(x64):
    """z1 ~ N(0, 1), z2 ~ N(1.5 z1, s^2), x ~ N(z2, t^2), inferred exactly from below: every weight
    is p(x). What is generated, and what is reconstructed, is of the lowest latent."""
    s, t, x = 0.5, 0.8, jnp.array([0.7])
    v = 1.5**2 + s**2  # of z2

    def encode(x):
        low = scaled(v / (v + t**2), (1 / v + 1 / t**2) ** -0.5, x)
        up = jv.Joint(low, Partial(scaled, 1.5 / v, s / v**0.5))
        return jv.Transformed(up, jv.bijectors.Reverse())

    prior = jv.models.hierarchy(jv.StandardNormal((1,)), Partial(scaled, 1.5, s))
    model = jv.VAE(Partial(encode), Partial(lambda z: scaled(1.0, t, jv.models.bottom(z))), prior)
    exact = jv.Normal(jnp.zeros(1), (v + t**2) ** 0.5).log_prob(x)
    estimate = jax.jit(partial(jv.log_marginal, num_samples=50))(model, jax.random.key(0), x)
    assert close(estimate.value, exact)
    assert close(estimate.ess, 50.0)
    assert close(jax.jit(partial(jv.iwae, num_samples=5))(model, jax.random.key(0), x)[0], exact)
    assert close(jv.elbo(model, jax.random.key(0), x, kl=jv.sampled_kl)[0], exact)
    made: Any = jv.generate(model, jax.random.key(1))
    of_x: Any = jv.reconstruct(model, jax.random.key(1), x)
    assert close(made.mean(), prior.sample(jax.random.key(1))[1])
    assert close(of_x.mean(), encode(x).sample(jax.random.key(1))[1])


def test_refinement_reaches_the_optimal_posterior():
    """Of a linear model with a wrong encoder: the ELBO climbs to log p(x), where its gap is 0."""
    linear = ppca.PPCA(jnp.array([[1.0], [0.5]]), jnp.zeros(2), jnp.array(0.5))
    head = nn.NormalHead()
    encode = nn.Conditional(partial(nn.MLP, hidden=()), head, (2,), (1,), rngs=nnx.Rngs(0))
    model, x = ppca.as_vae(linear)._replace(encode=encode), jnp.array([1.0, -0.7])

    def mean_bound(objective):
        return jnp.mean(draws(lambda k: objective(model, k, x)[0], 200))

    exact = ppca.log_marginal(linear, x)
    plain = mean_bound(jv.elbo)
    refined = mean_bound(jv.models.semi_amortized(jv.elbo, optax.sgd(0.02), num_steps=500))
    assert plain < exact - 0.3
    assert abs(refined - exact) < 0.05


def test_refinement_by_hand(x64):
    """mu + eta (w (x - w z) - mu), z = mu + s eps of each step's own key, three times; then the
    bound there, of a key that no step has seen."""
    w, s, eta, x, key = 1.3, 0.5, 0.1, jnp.array([0.9]), jax.random.key(4)
    encode: Any = SimpleNamespace(network=lambda x: 0.7 * x, head=nn.NormalHead(s))
    model: Any = jv.VAE(encode, lambda z: jv.Normal(w * z, jnp.ones(1)), jv.StandardNormal((1,)))
    steps_key, last_key = jax.random.split(key)
    mu = 0.7 * x
    for t in range(3):
        z = jv.Normal(mu, s).sample(jax.random.fold_in(steps_key, t))
        mu = mu + eta * (w * (x - w * z) - mu)
    exact, _ = jv.elbo(model._replace(encode=lambda _: jv.Normal(mu, s)), last_key, x)
    refined = jv.models.semi_amortized(jv.elbo, optax.sgd(eta), num_steps=3)
    assert close(refined(model, jax.random.clone(key), x)[0], exact)


def test_refinement_starts_in_the_precision_of_the_encoder():
    """By steps of 0 the bound is that of the encoder, which computes in bfloat16."""
    half = partial(nn.Conditional, nn.MLP, nn.NormalHead(), (4,), (2,), dtype=jnp.bfloat16)
    model = jv.VAE(half(rngs=nnx.Rngs(0)), conditional(2, 4, nnx.Rngs(1)), TOP)
    _, last_key = jax.random.split(jax.random.key(0))
    exact, _ = jax.jit(jv.elbo)(model, last_key, jnp.ones(4))
    refined = jax.jit(jv.models.semi_amortized(jv.elbo, optax.sgd(0.0), num_steps=1))
    assert close(refined(model, jax.random.key(0), jnp.ones(4))[0], exact)


@pytest.mark.thorough
def test_refinement_trains_the_start_or_leaves_it():
    build = lambda: jv.VAE(conditional(4, 2, nnx.Rngs(0)), conditional(2, 4, nnx.Rngs(1)), TOP)
    model = jax.jit(build)()
    refined = partial(jv.models.semi_amortized, jv.elbo, optax.sgd(0.1), num_steps=2)

    @partial(jax.jit, static_argnames="through")
    def gradient(model, through):
        objective = refined(through=through)
        return jax.grad(lambda m: objective(m, jax.random.key(0), jnp.ones(4))[0])(model)

    for through in (True, False):
        g = gradient(model, through)
        of_q, of_p = (any(np.asarray(v).any() for v in jax.tree.leaves(m)) for m in g[:2])
        assert of_q == through
        assert of_p


class Encoder(NamedTuple):
    """raw = W x, of whose first four numbers q is made; the rest are idle, their gradient 0."""

    weight: Any

    def network(self, x):
        return self.weight @ x

    def head(self, raw):
        return jv.Normal(raw[:2] + 0.0 * jnp.sum(raw[4:]), jnp.exp(raw[2:4]))


def refinable(rows):
    dtype = jnp.result_type(float)
    weight = np.sin(np.arange(15.0, dtype=dtype)).reshape(5, 3)[:rows]
    decode = Partial(
        lambda v, z: jv.Normal(jnp.tanh(v * z[0] + z[1]), 0.7), np.arange(1.0, 4.0, dtype=dtype)
    )
    return jv.VAE(Encoder(weight), decode, TOP)  # pyright: ignore[reportArgumentType]


REFINERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "rmsprop": optax.rmsprop(0.1),
    "adam": optax.adam(0.1),
}


ALIKE = {"momentum", "rmsprop", "clipped"}  # as sgd and adam, run by `make slow`


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in REFINERS],
)
def test_the_derivative_of_refinement_is_that_of_its_steps_unrolled(name, x64):
    optimizer, x = REFINERS[name], jnp.array([0.5, -1.0, 0.8])

    def unrolled(model):
        steps_key, key = jax.random.split(jax.random.key(3))

        def at(raw):
            return model._replace(encode=lambda _: model.encode.head(raw))

        raw = model.encode.network(x)
        state = optimizer.init(raw)
        for i in range(3):
            step_key = jax.random.fold_in(steps_key, i)
            gradient = jax.grad(lambda raw, k=step_key: -jv.elbo(at(raw), k, x)[0])(raw)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, raw)
            raw = optax.apply_updates(raw, updates)
        return jv.elbo(at(raw), key, x)[0]

    objective = jv.models.semi_amortized(jv.elbo, optimizer, num_steps=3)
    refined = lambda model: objective(model, jax.random.key(3), x)[0]
    (value, found), (exact_value, exact) = jax.jit(
        lambda model: [jax.value_and_grad(f)(model) for f in (refined, unrolled)]
    )(refinable(4))
    assert close(value, exact_value)
    assert all(jax.tree.leaves(jax.tree.map(close, found, exact)))
    # and a number of raw that q is not made of, whose gradient is 0, changes none of it
    idle = jax.jit(jax.grad(refined))(refinable(5))
    assert close(np.asarray(idle.encode.weight)[:4], exact.encode.weight)
    assert close(np.asarray(idle.encode.weight)[4], np.zeros(3))
    assert close(idle.decode.args[0], exact.decode.args[0])


@pytest.mark.thorough
def test_refinement_of_a_fresh_flow_has_a_finite_derivative():
    """Its context has a gradient of exactly 0, as the flow is the identity to begin with."""

    def fresh():
        rngs = nnx.Rngs(0)
        tiny = partial(nn.MLP, hidden=(4,))
        head = nn.FlowHead(nn.NormalHead(), nn.CouplingFlow(2, layers=1, context=2, rngs=rngs), 2)
        return jv.VAE(
            nn.Conditional(tiny, head, (3,), (2,), rngs=rngs),
            nn.Conditional(tiny, nn.NormalHead(), (2,), (3,), rngs=rngs),
            TOP,
        )

    objective = jv.models.semi_amortized(jv.elbo, optax.adam(0.1), num_steps=2)
    loss = lambda model: objective(model, jax.random.key(0), jnp.ones(3))[0]
    gradient = jax.jit(lambda: jax.grad(loss)(fresh()))()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_refinement_hides_no_nan():
    """What is no number for another reason stays none."""
    objective = jv.models.semi_amortized(jv.elbo, optax.adam(0.1), num_steps=2)
    loss = lambda model: objective(model, jax.random.key(0), jnp.array([1.0, jnp.nan, 0.0]))[0]
    gradient = jax.jit(jax.grad(loss))(refinable(4))
    assert np.all(np.isnan(gradient.encode.weight))


def test_refinement_needs_a_network_and_a_head():
    model = jv.VAE(lambda x: TOP, lambda z: TOP, TOP)
    with pytest.raises(TypeError, match="expected a network and a head"):
        jv.models.semi_amortized(jv.elbo, optax.sgd(0.1), num_steps=1)(
            model, jax.random.key(0), jnp.ones(2)
        )
    with pytest.raises(ValueError, match="num_steps is 0"):
        jv.models.semi_amortized(jv.elbo, optax.sgd(0.1), num_steps=0)


# the best sigma


def sigma_model():
    head = nn.HeadOf(jv.distributions.OptimalNormal, (nn.Real("n"),))
    decode = nn.Conditional(nn.MLP, head, (2,), (3,), rngs=nnx.Rngs(1))
    return jv.VAE(conditional(3, 2, nnx.Rngs(0)), decode, TOP)


def test_optimal_sigma_is_the_best_shared_one():
    """The batch's bound is that of a fixed sigma at its maximum, which no other reaches."""
    model: Any = jax.jit(sigma_model)()
    xs = np.random.default_rng(2).normal(size=(8, 3)).astype(np.float32)

    def fixed(scale):
        decode = Partial(lambda network, z: jv.Normal(network(z), scale), model.decode.network)
        return jv.batched(jv.elbo)(model._replace(decode=decode), jax.random.key(3), xs)[0]

    @jax.jit
    def run(scales):
        best = jv.batched(jv.elbo)(model, jax.random.key(3), xs)[0]
        return best, jax.vmap(fixed)(scales)

    best, bounds = run(np.linspace(0.3, 3.0, 400, dtype=np.float32))
    assert np.all(bounds <= best + 1e-5)
    assert np.max(bounds) > best - 1e-3


def test_the_best_sigma_is_the_root_of_the_mean_squared_error(x64):
    """Over examples and pixels, at a draw of each example's own key."""
    xs = np.array([[0.5, -1.0], [2.0, 0.3], [0.0, 4.0]])
    model = jv.VAE(lambda x: jv.Normal(x, 0.7), lambda z: jv.Normal(z[::-1], 1.0), TOP)
    keys = jax.random.split(jax.random.key(0), 3)
    eps = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (2,))))(keys)
    z = xs + 0.7 * np.asarray(eps)
    exact = np.sqrt(np.mean((xs - z[:, ::-1]) ** 2))
    assert close(jv.evaluation.optimal_scale(model, jax.random.key(0), xs), exact)


def test_optimal_sigma_outside_a_batch_says_what_to_do():
    model: Any = jax.jit(sigma_model)()
    with pytest.raises(ValueError, match="optimal_scale"):
        jax.eval_shape(jv.elbo, model, jax.random.key(0), np.ones(3))
    scale = jv.evaluation.optimal_scale(model, jax.random.key(0), np.ones((5, 3), np.float32))
    head = nn.NormalHead(scale=float(scale))
    decode = jax.jit(lambda: nn.Conditional(nn.MLP, head, (2,), (3,), rngs=nnx.Rngs(1)))()
    told = model._replace(decode=decode)
    assert np.isfinite(jax.jit(jv.elbo)(told, jax.random.key(0), np.ones(3, np.float32))[0])


def test_a_shared_sigma_learns_the_best_one():
    head = nn.SharedScaleHead(3.0)
    data = 0.1 * np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    optimizer = optax.adam(0.05)
    model = jv.VAE(
        Partial(lambda x: jv.Normal(jnp.zeros(2), jnp.ones(2))),
        Partial(lambda head, z: head(jnp.zeros(3)), head),
        TOP,
    )
    state = jv.init_state(model, optimizer)
    train = jv.train_step(jv.elbo, optimizer)
    run = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: train(s, jax.random.key(1), data), s, length=300)
    )
    state, _ = run(state)
    learned = state.model.decode(jnp.zeros(2)).scale
    assert np.isclose(learned, np.sqrt(np.mean(data**2)), rtol=0.02)
