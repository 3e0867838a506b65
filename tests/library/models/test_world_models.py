"""What world models add to a chain: a carry, choices within it, a balanced rate by the step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.bounds import balanced_kl
from jaxvae.distributions import StraightThrough, unimix
from jaxvae.models import RSSM, Carried, Markov, Smoother, kl_per_step, stepwise_kl
from jaxvae.regularizers import LatentSample, free_bits, regularized
from tests.common import close, draws, same, standard_errors_off

T, H, D = 4, 3, 2
X = np.random.default_rng(1).normal(size=(T, D))


def advance(w, state):
    h, z = state
    return jnp.tanh(w["h"] @ h + w["z"] @ z)


def foreseen(w, h):
    return jv.Normal(w["p"] @ h, jnp.asarray([0.5, 0.9], h.dtype))


def inferred(w, pair):
    h, e = pair
    return jv.Normal(w["q"] @ h + 0.5 * e, jnp.asarray([0.4, 0.6], h.dtype))


def emitted(w, pair):
    h, z = pair
    return jv.Normal(z + w["x"] @ h, jnp.asarray(0.7, h.dtype))


def weights(seed=0, dtype: Any = float):
    rng = np.random.default_rng(seed)
    shapes = {"h": (H, H), "z": (H, D), "p": (D, H), "q": (D, H), "x": (D, H)}
    return {name: jnp.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}


def rssm(w, length=T):
    start = jnp.full(H, 0.3, w["h"].dtype), jnp.full(D, -0.2, w["h"].dtype)
    return RSSM(
        advance=Partial(advance, w),
        transition=Partial(foreseen, w),
        inference=Partial(inferred, w),
        embed=Partial(lambda x: jnp.cumsum(x[::-1], 0)[::-1]),
        emission=Partial(emitted, w),
        start=start,
        length=length,
    )


def by_hand(w, x, z):
    """log p(x, z) and log q(z|x) of the paper's recursion, a step after the other in NumPy."""
    log_normal = lambda v, loc, scale: np.sum(
        -0.5 * ((v - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    )
    h, before, log_p, log_q, hs = np.full(H, 0.3), np.full(D, -0.2), 0.0, 0.0, []
    w = {name: np.asarray(value) for name, value in w.items()}
    for t in range(len(x)):
        h = np.tanh(w["h"] @ h + w["z"] @ before)
        log_p += log_normal(z[t], w["p"] @ h, np.array([0.5, 0.9]))
        log_p += log_normal(x[t], z[t] + w["x"] @ h, np.full(D, 0.7))
        log_q += log_normal(z[t], w["q"] @ h + 0.5 * x[t:].sum(0), np.array([0.4, 0.6]))
        before, hs = z[t], [*hs, h]
    return log_p, log_q, np.stack(hs)


@pytest.mark.thorough
def test_an_rssm_is_the_recursion_of_the_paper(x64):
    w = weights()
    model, x = rssm(w), jnp.asarray(X)
    (h, z), log_q = model.encode(x).sample_and_log_prob(jax.random.key(0))
    log_p, exact_q, carried = by_hand(w, X, np.asarray(z))
    assert close(h, carried)
    assert close(log_q, exact_q)
    assert close(model.encode(x).log_prob((h, z)), exact_q)
    bound, _ = jax.jit(partial(jv.elbo, kl=jv.sampled_kl))(model, jax.random.key(0), x)
    assert close(bound, log_p - exact_q)
    drawn, p_z = model.prior.sample_and_log_prob(jax.random.key(2))
    _, _, carried = by_hand(w, X, np.asarray(drawn[1]))
    assert close(drawn[0], carried)
    assert close(p_z, model.prior.log_prob(drawn))


@pytest.mark.thorough
def test_the_rate_of_a_carried_chain(x64):
    """By the step in closed form, the same f in p and q; right in mean against the sampled one."""
    model, x = rssm(weights()), jnp.asarray(X)
    q, p = model.encode(x), model.prior

    def both(key):
        z, log_q = q.sample_and_log_prob(key)
        return jnp.stack([stepwise_kl(q, p, z, log_q), jv.sampled_kl(q, p, z, log_q)])

    stepwise, sampled = draws(both, 5_000).T
    assert standard_errors_off(stepwise - sampled, 0.0) < 4
    assert np.std(stepwise) < np.std(sampled)
    (h, z), log_q = q.sample_and_log_prob(jax.random.key(0))
    steps = [
        jv.kl_divergence(inferred(weights(), (h[t], x[t:].sum(0))), foreseen(weights(), h[t]))
        for t in range(T)
    ]
    code = LatentSample(q, p, (h, z), log_q, jnp.array(0.0))
    assert close(kl_per_step(code), jnp.stack(steps))
    assert close(stepwise_kl(q, p, (h, z), log_q), sum(steps))
    without = Carried(jnp.ones(2), jv.StandardNormal(())), jv.StandardNormal(())
    assert without[0].kl_to(without[1]) is None


@pytest.mark.thorough
def test_a_forecast_goes_on_with_the_carry():
    w = weights(dtype=jnp.float32)
    model = rssm(w)
    z = model.encode(jnp.asarray(X[:3], jnp.float32)).sample(jax.random.key(0))
    ahead = model.prior.after(z, 3, 7)
    first: Any = ahead.first
    assert close(first.carry, advance(w, (z[0][-1], z[1][-1])))
    h, u = ahead.sample(jax.random.key(1))
    assert (h.shape, u.shape) == ((7, H), (7, D))
    assert model.decode(ahead.sample(jax.random.key(2))).mean().shape == (7, D)
    assert model.prior.reparameterized
    padded = jv.models.Padded(jv.VAE(Partial(of_first, model.encode), model.decode, model.prior))
    event = jnp.asarray(X, jnp.float32), jnp.arange(T) < 2
    _, terms = jv.elbo(padded, jax.random.key(0), event, kl=stepwise_kl)
    assert jnp.isfinite(terms.rate)


def of_first(encode, event):
    return encode(event[0])


def numbers(a, b):
    q, p = jv.Normal(a, jnp.array([0.5, 2.0])), jv.Normal(b, jnp.array([1.0, 0.7]))
    return q, p, jnp.array([0.1, 0.2])


@pytest.mark.thorough
@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_balance_is_in_the_gradient_alone(x64, alpha):
    """Value: the rate. Gradient: alpha of the prior's, 1 - alpha of the posterior's."""

    def rate(kl, q, p, z):
        return kl(q, p, z, jax.lax.stop_gradient(q.log_prob(z)))

    q, p, z = numbers(jnp.array([0.3, -1.0]), jnp.array([1.0, 0.4]))
    for of in (lambda d: d, lambda d: jv.Product((d, d)), jv.Independent):
        pair = (z, z) if isinstance(of(q), jv.Product) else z
        grad = lambda kl: jax.value_and_grad(partial(rate, kl), (0, 1))(of(q), of(p), pair)  # noqa: B023
        value, (of_q, of_p) = grad(partial(balanced_kl, alpha=alpha))
        exact, (all_q, all_p) = grad(jv.auto_kl)
        assert close(value, exact)
        for found, whole, share in ((of_q, all_q, 1 - alpha), (of_p, all_p, alpha)):
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True)
            assert all(close(a, share * b) for a, b in pairs)


@pytest.mark.thorough
def test_balance_where_the_rate_is_sampled(x64):
    """Unbiased, each side: E_q[d log p] for the prior, the path of q for the posterior."""
    q, p = jv.Normal(jnp.array(0.3), jnp.array(0.8)), jv.StudentT(*jnp.array([4.0, -0.5, 1.2]))

    def rate(kl, q, p, key):
        return kl(q, p, *q.sample_and_log_prob(key))

    def both(key):
        grad = lambda kl: jax.grad(partial(rate, kl), (0, 1))(q, p, jax.random.clone(key))
        return grad(partial(balanced_kl, alpha=0.8)), grad(jv.sampled_kl)

    (of_q, of_p), (all_q, all_p) = draws(both, 1_000)
    assert close(of_q.loc, 0.2 * all_q.loc)
    assert close(of_q.scale, 0.2 * all_q.scale)
    assert close(of_p.loc, 0.8 * all_p.loc)


@pytest.mark.thorough
def test_balance_in_a_chain_is_by_the_step(x64):
    """Dreamer's loss written out: sg of each step's distribution, and z_{t-1} and h carry on."""
    still, x = jax.lax.stop_gradient, jnp.asarray(X)

    def ours(w):
        model = rssm(w)
        kl = partial(stepwise_kl, kl=partial(balanced_kl, alpha=0.8))
        q = model.encode(x)
        return kl(q, model.prior, *q.sample_and_log_prob(jax.random.key(3)))

    def theirs(w):
        keys = jax.random.key(3)
        model, total = rssm(w), 0.0
        h, _ = model.encode(x).sample(keys)  # each state as it was drawn
        _, zs = model.encode(x).sample(jax.random.clone(keys))
        for t in range(T):
            q, p = inferred(w, (h[t], x[t:].sum(0))), foreseen(w, h[t])
            total += 0.8 * jv.kl_divergence(still(q), p) + 0.2 * jv.kl_divergence(q, still(p))
        return total + 0.0 * zs.sum()

    w = weights()
    (a, found), (b, exact) = (jax.jit(jax.value_and_grad(f))(w) for f in (ours, theirs))
    assert close(a, b)
    assert all(map(close, jax.tree.leaves(found), jax.tree.leaves(exact)))


@pytest.mark.thorough
def test_balance_of_a_hierarchy_is_by_the_level(x64):
    def two(a):
        return jv.Joint(
            jv.Normal(a, jnp.ones(2)), Partial(lambda a, z: jv.Normal(a * jnp.sin(z), 1.0), a)
        )

    def rate(a, b):
        q, p = two(a), two(b)
        return balanced_kl(q, p, *q.sample_and_log_prob(jax.random.key(0)), alpha=0.8)

    def exact(a, b):
        still = jax.lax.stop_gradient
        z, _ = two(a).sample(jax.random.key(0))
        total = 0.0
        for q, p in ((two(a).first, two(b).first), (two(a).then(z), two(b).then(z))):
            total += 0.8 * jv.kl_divergence(still(q), p) + 0.2 * jv.kl_divergence(q, still(p))
        return total

    at = jnp.array([0.4, -0.3]), jnp.array([1.0, 0.6])
    for f in (lambda g: g(*at), lambda g: jax.grad(g)(*at), lambda g: jax.grad(g, 1)(*at)):
        assert close(f(rate), f(exact))


@pytest.mark.thorough
def test_free_nats_of_a_step():
    """max(free, KL_t) of the batch's mean of each step, and no gradient of a step below."""
    first, step = jv.StandardNormal((1,)), Partial(lambda z: jv.Normal(z, jnp.ones(1)))
    prior = Markov(first, step, 3)

    def model(shift):
        at = Partial(lambda pair: jv.Normal(pair[0] + pair[1], jnp.ones(1)))
        start = jnp.zeros(1)
        encode = Smoother(Partial(lambda shift, _: shift, shift), at, start)
        return jv.VAE(encode, Partial(jv.models.emissions, lambda z: jv.Normal(z, 1.0)), prior)

    parts = partial(kl_per_step, kl=partial(balanced_kl, alpha=0.5))
    objective = partial(regularized, penalty=partial(free_bits, parts=parts), kl=stepwise_kl)
    lost = lambda shift, free: jv.batched(objective)(
        model(shift), jax.random.key(0), jnp.zeros((2, 3, 1)), free_nats=free
    )
    shift = jnp.array([[0.5], [2.0], [3.0]])  # KL_t = shift_t^2 / 2
    bound, terms = jax.jit(lost)(shift, 1.0)
    assert close(-bound - terms.distortion.mean(), 1.0 + 2.0 + 4.5)
    assert close(terms.rate, np.full(2, 0.125 + 2.0 + 4.5))
    charged = jax.jit(jax.grad(lambda s: lost(s, 1.0)[0] - lost(s, 1e3)[0]))(shift)
    assert np.allclose(charged[:, 0], [0.0, -1.0, -1.5], atol=1e-5)  # half of shift_t
    zero = jnp.array(0.0)
    code = LatentSample(prior, jv.StandardNormal((3, 1)), jnp.zeros((3, 1)), zero, zero)
    with pytest.raises(TypeError, match="kl_per_step: the prior is a StandardNormal, expected a M"):
        kl_per_step(code)


def test_unimix_mixes(x64):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 4)
    logits = logits.at[0, 2].set(-jnp.inf)
    exact = 0.99 * np.asarray(jax.nn.softmax(logits)) + 0.01 / 5
    assert close(jnp.exp(unimix(logits)), exact)
    assert close(jv.Categorical(unimix(logits)).log_probs, np.log(exact))
    assert close(jnp.exp(unimix(logits, share=1.0)), np.full((3, 5), 0.2))
    assert close(unimix(logits, share=0.0), jax.nn.log_softmax(logits))
    sure = jax.grad(lambda l: unimix(l)[1])(jnp.array([900.0, 0.0]))
    assert np.all(np.isfinite(sure))
    with pytest.raises(ValueError, match=r"unimix: logits has shape \(\), expected \[..., K\]"):
        unimix(jnp.array(1.0))


@pytest.mark.thorough
def test_straight_through_draws_are_those_of_the_estimator():
    """A distribution's own path gives what the estimator gives to a posterior as a whole."""
    logits = jnp.array([[0.3, -0.4, 1.0], [0.0, 0.2, -0.9]])
    decode = Partial(lambda z: jv.Normal(jnp.sin(z.sum(0) * jnp.arange(1.0, 4.0)), 0.5))
    prior = jv.OneHotCategorical(jnp.zeros((2, 3)))

    def grad(make, **how):
        model = lambda l: jv.VAE(Partial(lambda l, _: make(l), l), decode, prior)
        bound = lambda l: jv.elbo(model(l), jax.random.key(0), jnp.ones(3), **how)[0]
        return jax.value_and_grad(bound)(logits)

    for kl in jv.auto_kl, jv.sampled_kl:
        own = grad(lambda l: StraightThrough(jv.OneHotCategorical(l)), kl=kl)
        estimated = grad(jv.OneHotCategorical, kl=kl, gradient=jv.straight_through)
        assert same(own, estimated)
    assert np.max(np.abs(own[1])) > 0.01
    d = StraightThrough(jv.OneHotCategorical(logits))
    assert close(jv.kl_divergence(d, d), 0.0)
    assert close(jv.kl_divergence(d, prior), jv.kl_divergence(d.distribution, prior))


def chosen(w, v):
    return StraightThrough(jv.OneHotCategorical(unimix((w @ v).reshape(D, 2))))


@pytest.mark.thorough
def test_choices_in_a_chain_have_a_derivative():
    """A later step's gradient reaches an earlier choice, by the mean; every draw is one-hot."""

    def chain(w):
        first = StraightThrough(jv.OneHotCategorical(w[:4].reshape(2, 2)))
        step = Partial(lambda w, z: chosen(w, z.ravel()), w[4:].reshape(4, 4))
        return Markov(first, step, 3)

    w = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.float32)
    assert chain(w).reparameterized
    z = chain(w).sample(jax.random.key(0))
    assert close(jnp.sort(z, axis=-1), np.broadcast_to([0.0, 1.0], (3, 2, 2)))
    last = jax.jit(jax.grad(lambda w: chain(w).sample(jax.random.key(0))[-1, 0, 0]))(w)
    assert np.all(np.abs(last[:4]) > 1e-6)
