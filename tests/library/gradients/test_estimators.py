"""Every gradient estimator of the importance-weighted bound, against means that are known.

Ladder: p(z) = N(0, 1), p(x|z) = N(z, 1), x = 1.5, q = N(.25, 1), gradients in (m, log s).
Discrete: z in {0, 1, 2}, prior logits (.2, -.3, .5), p(x|z) = (.7, .2, .05), q logits (0, .4, -.6).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.tree_util import Partial

from jaxvae import (
    VAE,
    Bernoulli,
    Categorical,
    Constant,
    Normal,
    OneHotCategorical,
    Product,
    analytic_kl,
    auto_kl,
    doubly_reparameterized,
    elbo,
    enumeration,
    gumbel_softmax,
    importance_bound,
    init_state,
    iwae,
    kl_divergence,
    pathwise,
    renyi,
    sampled_kl,
    score_function,
    sticking_the_landing,
    straight_through,
    train_step,
    vimco,
)
from jaxvae.bounds import log_mean_exp
from jaxvae.gradients import for_component, learned_baseline, leave_one_out, wake
from jaxvae.models import ppca
from tests.common import close, standard_errors_off
from tests.models import ladder

REPARAMETERIZED = [pathwise, sticking_the_landing, doubly_reparameterized]
UNBIASED = [pathwise, doubly_reparameterized, score_function, vimco]
LADDER = jnp.array([0.25, 0.0])
LOGITS = jnp.array([0.0, 0.4, -0.6])
EXACT = {1: (1.0, -1.0), 2: (0.3858458685, -0.2274734570)}
DISCRETE = {
    1: (-1.698671625, (0.45059474, -0.38399981, -0.06659493)),
    2: (-1.495613507, (0.3469368, -0.27451691, -0.07241989)),
}


def discrete(logits):
    p = Constant(np.array([0.7, 0.2, 0.05]))
    return VAE(
        encode=Partial(lambda q, x: Categorical(q), logits),
        decode=Partial(lambda z: Bernoulli(jax.scipy.special.logit(p.value)[z])),
        prior=Categorical(jnp.array([0.2, -0.3, 0.5])),
    )


def draws(make, at, x, gradient, num_samples, num=50_000, seed=0):
    """Values [num] and gradients [num, ...] of the bound in `at`."""

    def one(key):
        return jax.value_and_grad(
            lambda q: iwae(make(q), key, x, num_samples=num_samples, gradient=gradient)[0]
        )(at)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num))


@pytest.mark.parametrize("gradient", UNBIASED)
@pytest.mark.parametrize("k", [1, 2])
def test_unbiased_estimators_share_the_mean(k, gradient):
    if gradient is vimco and k == 1:
        gradient = score_function  # leave_one_out needs another sample
    _, d = draws(ladder, LADDER, 1.5, gradient, k, num=50_000)
    assert standard_errors_off(d, np.array(EXACT[k])) < 4


def test_sticking_the_landing_is_biased_exactly_so():
    _, d = draws(ladder, LADDER, 1.5, sticking_the_landing, 2)
    assert standard_errors_off(d, np.array([0.6929229343, -0.4601981956])) < 4


@pytest.mark.parametrize(
    ("gradient", "spread"), [(sticking_the_landing, 0.66352), (doubly_reparameterized, 0.46854)]
)
def test_spread_of_one_draw(gradient, spread):
    _, d = draws(ladder, LADDER, 1.5, gradient, 2, seed=1)
    centred = d[:, 0] - jnp.mean(d[:, 0])
    assert standard_errors_off(centred**2, spread**2) < 4


@pytest.mark.thorough
@pytest.mark.parametrize("gradient", [score_function, vimco])
@pytest.mark.parametrize("k", [1, 2])
def test_discrete_latents_have_the_mean_of_enumeration(k, gradient):
    if gradient is vimco and k == 1:
        gradient = score_function
    value, d = draws(discrete, LOGITS, 1.0, gradient, k, num=50_000, seed=2)
    bound, exact = DISCRETE[k]
    assert standard_errors_off(value, bound) < 4
    assert standard_errors_off(d, np.array(exact)) < 4


def test_a_baseline_lowers_the_variance():
    spreads = [draws(discrete, LOGITS, 1.0, g, 2)[1].std(axis=0) for g in (score_function, vimco)]
    assert (spreads[1] < 0.5 * spreads[0]).all()


@pytest.mark.parametrize("gradient", [*REPARAMETERIZED, score_function, vimco])
def test_the_value_is_the_bound(gradient):

    @jax.jit
    def both(q, key):
        of = partial(iwae, ladder(q), x=1.5, num_samples=5)
        return of(key, gradient=gradient), of(jax.random.clone(key))

    (bound, log_w), (plain, plain_w) = both(LADDER, jax.random.key(3))
    assert close(bound, plain)
    assert close(log_w, plain_w)
    assert close(bound, log_mean_exp(log_w))


@pytest.mark.parametrize("gradient", [sticking_the_landing, doubly_reparameterized, vimco])
def test_the_decoder_has_one_gradient(gradient):
    """For the same key, whatever the estimator: only the posterior's gradient differs."""

    @jax.jit
    def decoder(w):
        def bound(w, gradient):
            key = jax.random.key(4)
            return iwae(ladder(LADDER, w), key, 1.5, num_samples=5, gradient=gradient)[0]

        return jax.grad(bound)(w, gradient), jax.grad(bound)(w, pathwise)

    assert close(*decoder(0.8))


@pytest.mark.parametrize("gradient", [sticking_the_landing, doubly_reparameterized])
def test_no_noise_at_the_exact_posterior(gradient, x64):
    """The weights are all p(x) and do not depend on z, so nothing flows through the samples."""
    linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    model = ppca.as_vae(linear)

    def bound(encode):
        model_ = model._replace(encode=encode)
        return iwae(model_, jax.random.key(5), jnp.ones(3), num_samples=4, gradient=gradient)[0]

    for leaf in jax.tree.leaves(jax.jit(jax.grad(bound))(model.encode)):
        assert jnp.max(jnp.abs(leaf)) < 1e-12


def test_doubly_reparameterized_elbo_is_sticking_the_landing():
    """R the mean: g = 1/K and h = 0, so that no cotangent is scaled."""

    def grad_of(gradient):
        def bound(q):
            key = jax.random.key(6)
            return importance_bound(
                jnp.mean, ladder(q), key, 1.5, num_samples=3, gradient=gradient
            )[0]

        return jax.jit(jax.grad(bound))(LADDER)

    assert close(grad_of(doubly_reparameterized), grad_of(sticking_the_landing))


def test_a_weight_that_vanishes_leaves_the_gradient_finite():
    far = jnp.array([80.0, 4.0])  # most weights underflow
    for gradient in REPARAMETERIZED:
        _, d = draws(ladder, far, 1.5, gradient, 3, num=100)
        assert jnp.isfinite(d).all()


def test_latents_may_be_any_pytree():
    """Two latents in a dict behave as one vector of two."""

    class Pair:
        def __init__(self, q):
            self.a, self.b = Normal(q[0], 1.0), Normal(q[1], 1.0)

        def sample(self, key):
            a, b = jax.random.split(key)
            return {"a": self.a.sample(a), "b": self.b.sample(b)}

        def log_prob(self, z):
            return self.a.log_prob(z["a"]) + self.b.log_prob(z["b"])

    jax.tree_util.register_pytree_node(
        Pair, lambda p: ((p.a.loc, p.b.loc), None), lambda _, q: Pair(q)
    )

    def grad_of(gradient, key):
        def bound(q):
            model = VAE(
                encode=lambda x: Pair(q),
                decode=lambda z: Normal(z["a"] + z["b"], jnp.ones_like(z["a"])),
                prior=Pair(jnp.zeros(2)),
            )
            return iwae(model, key, 1.5, num_samples=2, gradient=gradient)[0]

        return jax.grad(bound)(jnp.array([0.1, 0.2]))

    keys = jax.random.split(jax.random.key(7), 50_000)
    means = [
        jax.jit(jax.vmap(partial(grad_of, g)))(keys) for g in (pathwise, doubly_reparameterized)
    ]
    assert standard_errors_off(means[0] - means[1], 0.0) < 4


@pytest.mark.parametrize("gradient", REPARAMETERIZED)
@pytest.mark.parametrize("posterior", [Categorical, lambda q: dist.Categorical(logits=q)])
def test_discrete_samples_have_no_path(gradient, posterior):
    """The gradient through a discrete sample would be silently wrong: it raises."""

    def bound(logits):
        model = discrete(logits)._replace(encode=Partial(lambda q, x: posterior(q), logits))
        return iwae(model, jax.random.key(0), 1.0, num_samples=2, gradient=gradient)[0]

    if gradient is pathwise:
        assert jnp.isfinite(jax.jit(bound)(LOGITS))  # the value is none the worse
    with pytest.raises(TypeError, match="use gradient=score_function"):
        jax.eval_shape(jax.grad(bound), LOGITS)


def test_leaving_one_out_needs_two():
    with pytest.raises(ValueError, match="num_samples is 1, expected at least 2"):
        iwae(discrete(LOGITS), jax.random.key(0), 1.0, num_samples=1, gradient=vimco)


def test_leave_one_out_does_not_look_at_its_sample():
    log_w = jnp.array([0.3, -1.0, 2.0])
    others = jax.jit(partial(leave_one_out, log_mean_exp))
    for k in range(3):
        moved = others(log_w.at[k].add(5.0))
        assert close(moved[k], others(log_w)[k])


@pytest.mark.parametrize("k", [2, 3])
def test_leave_one_out_is_the_bound_with_the_mean_of_the_others(k, x64):
    """By hand: of l = (1, 4, 7) the means of the others are 5.5, 4 and 2.5; of two, the other."""
    l = jnp.array([1.0, 4.0, 7.0])[:k]
    replaced = {
        2: [[4.0, 4.0], [1.0, 1.0]],
        3: [[5.5, 4.0, 7.0], [1.0, 4.0, 7.0], [1.0, 4.0, 2.5]],
    }[k]
    for reduction in (jnp.mean, log_mean_exp):
        exact = jax.jit(jax.vmap(reduction))(jnp.array(replaced))
        assert close(jax.jit(partial(leave_one_out, reduction))(l), exact)


# the ELBO takes an estimator too


def grad_of_elbo(gradient, at=LADDER, make=ladder, key=8, **hyper):
    bound = partial(elbo, gradient=gradient, **hyper)
    return jax.jit(jax.grad(lambda q: bound(make(q), jax.random.key(key), 1.5)[0]))(at)


def test_sticking_the_landing_takes_the_rate_at_the_sample():
    """The closed form has no score term to drop: under the estimator auto_kl is the sample's."""
    stuck = grad_of_elbo(sticking_the_landing)
    assert close(stuck, grad_of_elbo(doubly_reparameterized))
    assert close(stuck, grad_of_elbo(sticking_the_landing, kl=sampled_kl))
    assert not close(stuck, grad_of_elbo(pathwise))
    with pytest.raises(NotImplementedError, match=r"no closed form for KL\(Held"):
        grad_of_elbo(sticking_the_landing, kl=analytic_kl)


def test_the_elbo_lands_without_noise(x64):
    """At the exact posterior N(x/2, 1/2) its gradient is identically 0, beta or not."""
    at = jnp.array([0.75, 0.5 * jnp.log(0.5)])
    assert jnp.max(jnp.abs(grad_of_elbo(sticking_the_landing, at))) < 1e-12
    assert jnp.max(jnp.abs(grad_of_elbo(pathwise, at))) > 0.01


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [auto_kl, sampled_kl])
@pytest.mark.parametrize("gradient", [pathwise, sticking_the_landing, score_function])
def test_the_elbo_has_one_gradient(gradient, rate):
    """(1, -1) at beta = 1; at beta = .3 the rate's (-m, 1 - s^2) = (-.25, 0) counts .3."""
    for beta, exact in ((1.0, (1.0, -1.0)), (0.3, (1.175, -1.0))):
        d = draws_of_elbo(partial(elbo, kl=rate, beta=beta, gradient=gradient))
        assert standard_errors_off(d, np.array(exact)) < 4


def draws_of_elbo(objective, make=ladder, at=LADDER, num=50_000, seed=9):
    gradient = lambda key: jax.grad(lambda q: objective(make(q), key, 1.5)[0])(at)
    return jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(seed), num))


def test_one_draw_leaves_none_out():
    with pytest.raises(ValueError, match="average several ELBOs: miwae"):
        elbo(ladder(LADDER), jax.random.key(0), 1.5, gradient=vimco)


# the learned baseline


def test_a_learned_baseline_is_fitted_and_changes_no_mean():
    """Its gradient is that of -1/2 (bound - b)^2, the model's has the mean of enumeration."""

    def bound(q, b, key):
        gradient = partial(score_function, baseline=learned_baseline(b))
        return iwae(discrete(q), key, 1.0, num_samples=2, gradient=gradient)[0]

    keys = jax.random.split(jax.random.key(10), 50_000)
    value, (d_q, d_b) = jax.jit(jax.vmap(jax.value_and_grad(bound, (0, 1)), (None, None, 0)))(
        LOGITS, -1.2, keys
    )
    assert standard_errors_off(value, DISCRETE[2][0]) < 4
    assert standard_errors_off(d_q, np.array(DISCRETE[2][1])) < 4
    assert close(d_b, 2.0 * (value + 1.2))  # of both samples
    plain = draws(discrete, LOGITS, 1.0, score_function, 2)[1]
    assert (d_q.std(axis=0) < 0.6 * plain.std(axis=0)).all()


def test_a_baseline_trains_with_the_model():
    """NVIL: the network of x is a field of the model beside the three parts."""

    class Model(NamedTuple):
        encode: Any
        decode: Any
        prior: Any
        baseline: Any

    def objective(model, key, x):
        baseline = learned_baseline(model.baseline(x))
        return elbo(model, key, x, gradient=partial(score_function, baseline=baseline))

    model = Model(*discrete(LOGITS), Partial(lambda w, x: w * x, jnp.array(0.0)))
    optimizer = optax.adam(0.05)
    step = jax.jit(train_step(objective, optimizer))
    state = init_state(model, optimizer)
    exact = jax.jit(lambda model: elbo(model, jax.random.key(0), 1.0, gradient=enumeration)[0])
    first = exact(model)
    for _ in range(150):
        state, _ = step(state, jax.random.key(11), jnp.ones(64))
    last = exact(state.model)
    assert last > first + 0.3
    assert abs(state.model.baseline(1.0) - last) < 0.15


# discrete latents


def one_hot(logits):
    p = jnp.array([0.7, 0.2, 0.05])
    return VAE(
        encode=Partial(lambda q, x: OneHotCategorical(q), logits),
        decode=Partial(lambda z: Bernoulli(z @ jnp.log(p / (1.0 - p)))),
        prior=OneHotCategorical(jnp.array([0.2, -0.3, 0.5])),
    )


def coin(logit):
    """z in {0, 1} with p(x = 1|z) = .3, .8, prior logit .4."""
    p = jnp.array([0.3, 0.8])
    logits = jnp.log(p / (1.0 - p))
    return VAE(
        encode=Partial(lambda q, x: Bernoulli(q), logit),
        decode=Partial(lambda z: Bernoulli((1.0 - z) * logits[0] + z * logits[1])),
        prior=Bernoulli(jnp.array(0.4)),
    )


@pytest.mark.parametrize("make", [discrete, one_hot])
@pytest.mark.parametrize(
    ("k", "exact"),
    [(1, -1.698671625), (2, -1.495613507), (3, -1.400771781), (5, -1.316442394)],
)
def test_enumeration_is_exact(make, k, exact, x64):
    """targets: the bound and its gradients to every digit given, and no key is looked at."""
    bound = lambda q, key: iwae(make(q), key, 1.0, num_samples=k, gradient=enumeration)[0]
    both = jax.jit(jax.value_and_grad(bound))
    at = jnp.array([0.0, 0.4, -0.6])
    value, slope = both(at, jax.random.key(0))
    assert abs(value - exact) < 5e-10
    if k in DISCRETE:
        assert np.allclose(slope, DISCRETE[k][1], atol=5e-9)
    assert value == both(at, jax.random.key(1))[0]


@pytest.mark.parametrize("make", [discrete, one_hot])
def test_enumerated_elbo(make, x64):
    """The exact ELBO with its exact Terms; log p = -1.201852834 at the posterior itself."""
    at = jnp.array([0.0, 0.4, -0.6])
    bound = lambda q: elbo(make(q), jax.random.key(0), 1.0, gradient=enumeration)
    (value, terms), slope = jax.jit(jax.value_and_grad(bound, has_aux=True))(at)
    assert abs(value - DISCRETE[1][0]) < 5e-10
    assert np.allclose(slope, DISCRETE[1][1], atol=5e-9)
    q = np.exp(at) / np.exp(at).sum()
    assert close(terms.distortion, -q @ np.log([0.7, 0.2, 0.05]))
    assert close(terms.rate, kl_divergence(Categorical(at), discrete(at).prior))
    posterior = jnp.array([0.2, -0.3, 0.5]) + jnp.log(jnp.array([0.7, 0.2, 0.05]))
    exact = partial(elbo, kl=sampled_kl, gradient=enumeration)
    value, terms = jax.jit(exact)(make(posterior), jax.random.key(0), 1.0)
    assert abs(value + 1.201852834) < 5e-10
    assert close(-(terms.rate + terms.distortion), value)


def test_enumeration_of_impossible_events(x64):
    """An event that q never draws adds nothing, and leaves the gradient finite."""
    at = jnp.array([0.3, -jnp.inf, 0.1])
    bound = lambda q: iwae(
        discrete(q), jax.random.key(0), 1.0, num_samples=2, gradient=enumeration
    )[0]
    value, slope = jax.jit(jax.value_and_grad(bound))(at)
    l = np.log([0.7, 0.05]) + np.array([0.2, 0.5]) - np.logaddexp.reduce([0.2, -0.3, 0.5])
    log_q = np.array([0.3, 0.1]) - np.logaddexp(0.3, 0.1)
    q = np.exp(log_q)
    pairs = np.logaddexp.outer(l - log_q, l - log_q) - np.log(2)
    assert close(value, q @ pairs @ q)
    assert jnp.isfinite(slope).all()


def test_what_cannot_be_enumerated_says_so():
    with pytest.raises(TypeError, match="enumeration: Normal has no enumerate_support"):
        iwae(ladder(LADDER), jax.random.key(0), 1.5, num_samples=2, gradient=enumeration)
    with pytest.raises(ValueError, match=r"3 events at num_samples=14 are 3\^14 outcomes"):
        iwae(discrete(LOGITS), jax.random.key(0), 1.0, num_samples=14, gradient=enumeration)
    with pytest.raises(ValueError, match="2 choices in 24 places are 16777216 events"):
        Bernoulli(jnp.zeros((4, 6))).enumerate_support()


@pytest.mark.parametrize("estimator", [straight_through, partial(gumbel_softmax, temperature=0.5)])
def test_relaxations_want_events_with_a_gradient(estimator):
    """A label has no mean and no relaxation: the message names the way out."""
    match = "Categorical has no mean" if estimator is straight_through else "use a posterior that"
    with pytest.raises(TypeError, match=match):
        elbo(discrete(LOGITS), jax.random.key(0), 1.0, gradient=estimator)
    with pytest.raises(TypeError, match="gumbel_softmax: Normal has no sample_relaxed"):
        elbo(
            ladder(LADDER),
            jax.random.key(0),
            1.5,
            gradient=partial(gumbel_softmax, temperature=0.5),
        )


def test_straight_through_leaves_a_part_its_own_path():
    """d z / d log s of the normal part of a product is that of its own draw."""

    @jax.jit
    def slope(s):
        q = Product({"c": OneHotCategorical(jnp.zeros(3)), "z": Normal(jnp.zeros(2), jnp.exp(s))})
        term = lambda q, v, log_q: (jnp.sum(v["z"] ** 2) + v["c"][0], None)
        return straight_through(jnp.mean, term, q, jax.random.key(0)[None])[0]

    assert close(jax.grad(slope)(0.0), 2 * (slope(0.0) - slope(-40.0)))


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "at"), [(one_hot, LOGITS), (coin, jnp.array(0.7))])
def test_straight_through_is_the_bound_with_the_gradient_of_the_mean(make, at):
    """Value: the bound at the samples. Gradient: d l/dz at the sample times d E[z]."""

    @jax.jit
    def both(q):
        key, of = jax.random.key(12), partial(iwae, make(q), x=1.0, num_samples=4)
        return of(key, gradient=straight_through)[0], of(jax.random.clone(key))[0]

    assert close(*both(at))

    # with a closed-form rate and the sample z: grad log p(x|z)' d mean - d KL
    def by_hand(q):
        model = make(q)
        z = jax.lax.stop_gradient(model.encode(1.0).sample(jax.random.key(12)))
        slope = jax.grad(lambda z: model.decode(z).log_prob(1.0))(z)
        reconstruction = jnp.sum(slope * model.encode(1.0).mean())
        return reconstruction - kl_divergence(model.encode(1.0), model.prior)

    bound = lambda q: elbo(make(q), jax.random.key(12), 1.0, gradient=straight_through)[0]
    assert close(jax.jit(jax.grad(bound))(at), jax.jit(jax.grad(by_hand))(at))


def test_straight_through_of_a_linear_term_is_unbiased():
    """For one coin log p(x|z) is linear in z on {0, 1} here, so d E[z] is all there is."""
    summed = lambda q: elbo(coin(q), jax.random.key(0), 1.0, gradient=enumeration)[0]
    exact = jax.jit(jax.grad(summed))(0.7)

    def weight(z):  # log p(x = 1|z), made linear between the two outcomes
        return z * jnp.log(0.8) + (1.0 - z) * jnp.log(0.3)

    class Linear(NamedTuple):
        z: Any

        def log_prob(self, x):
            return weight(self.z)

    make = lambda q: coin(q)._replace(decode=Partial(Linear))
    objective = partial(elbo, gradient=straight_through)
    d = draws_of_elbo(objective, make, jnp.array(0.7), 100)
    assert close(d, np.full(100, exact))


@pytest.mark.parametrize("make", [one_hot, coin])
def test_gumbel_softmax_tends_to_the_bound(make):
    """As the temperature falls the value tends to the ELBO; temperature is traced."""
    at = LOGITS if make is one_hot else jnp.array(0.7)
    exact = jax.jit(partial(elbo, x=1.0, gradient=enumeration))(make(at), jax.random.key(0))[0]

    @jax.jit
    def mean(temperature):
        gradient = partial(gumbel_softmax, temperature=temperature)
        keys = jax.random.split(jax.random.key(13), 20_000)
        one = lambda key: elbo(make(at), key, 1.0, gradient=gradient)[0]
        return jax.vmap(one)(keys)

    gaps = [abs(jnp.mean(mean(t)) - exact) for t in (1.0, 0.3, 0.01)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert standard_errors_off(mean(0.01), exact) < 4


def test_gumbel_softmax_differentiates_the_relaxed_sample(x64):
    """By hand: z = softmax((l + g) / t), the gradient of log p(x|z(l)) - KL."""
    t = 0.7
    at = jnp.array([0.0, 0.4, -0.6])

    def by_hand(q):
        model = one_hot(q)
        noise = jax.random.gumbel(jax.random.key(14), (3,), float)
        z = jnp.exp((q + noise) / t) / jnp.sum(jnp.exp((q + noise) / t))
        return model.decode(z).log_prob(1.0) - kl_divergence(model.encode(1.0), model.prior)

    bound = lambda q: elbo(
        one_hot(q), jax.random.key(14), 1.0, gradient=partial(gumbel_softmax, temperature=t)
    )[0]
    actual, exact = (jax.jit(jax.value_and_grad(f))(at) for f in (bound, by_hand))
    assert close(actual[0], exact[0])
    assert close(actual[1], exact[1])


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["jit", "eager"])
def test_a_relaxed_coin_is_scored_between_its_events(way, x64):
    """log p and log q are linear in z there, though a grey pixel is no datum of a coin."""
    t, x = 0.7, 1.0
    at = jnp.array(0.3)
    relax = partial(gumbel_softmax, temperature=t)
    linear = lambda z, l: z * l - jnp.log1p(jnp.exp(l))

    def by_hand(q, key):
        z = Bernoulli(q).sample_relaxed(key, t)
        return coin(q).decode(z).log_prob(x) + linear(z, 0.4) - linear(z, q)

    def of_product(q):
        """The coin beside a latent of which nothing is made."""
        model, idle = coin(q), Normal(jnp.zeros(1), 1.0)
        return VAE(
            encode=lambda x: Product({"coin": model.encode(x), "idle": idle}),
            decode=lambda z: model.decode(z["coin"]),
            prior=Product({"coin": model.prior, "idle": idle}),
        )

    bounds = {
        "iwae": lambda q, key: iwae(coin(q), key, x, num_samples=1, gradient=relax)[0],
        "elbo": lambda q, key: elbo(coin(q), key, x, kl=sampled_kl, gradient=relax)[0],
        "part": lambda q, key: elbo(
            of_product(q), key, x, kl=sampled_kl, gradient=for_component("coin", relax)
        )[0],
    }
    keys = {
        "iwae": lambda key: jax.random.fold_in(key, 0),
        "elbo": lambda key: key,
        "part": lambda key: jax.random.split(key)[1],
    }
    exactly = jax.jit(jax.value_and_grad(by_hand))
    for name, bound in bounds.items():
        f = jax.value_and_grad(bound)
        value, slope = (jax.jit(f) if way == "jit" else f)(at, jax.random.key(5))
        exact = exactly(at, keys[name](jax.random.key(5)))
        assert close(value, exact[0]), name
        assert close(slope, exact[1]), name


# layers


class Layers(NamedTuple):
    """q(z1) q(z2|z1): z1 ~ N(a, e^b), z2 ~ N(c z1 + d, e^f); a pytree over a pair."""

    parameters: Any

    def _then(self, z1):
        _, _, c, d, f = self.parameters
        return Normal(c * z1 + d, jnp.exp(f))

    def sample(self, key):
        a, b, *_ = self.parameters
        first, second = jax.random.split(key)
        z1 = Normal(a, jnp.exp(b)).sample(first)
        return z1, self._then(z1).sample(second)

    def log_prob(self, z):
        a, b, *_ = self.parameters
        return Normal(a, jnp.exp(b)).log_prob(z[0]) + self._then(z[0]).log_prob(z[1])


@pytest.mark.thorough
@pytest.mark.parametrize(
    "bound", [iwae, pytest.param(partial(renyi, alpha=0.4), marks=pytest.mark.slow)]
)
def test_latents_in_layers(bound):
    """Doubly reparameterized, a hierarchy's gradient has the pathwise mean and less noise."""
    at = jnp.array([0.2, -0.1, 0.5, 0.3, 0.1])

    def model(q):
        return VAE(
            encode=Partial(lambda q, x: Layers(q), q),
            decode=Partial(lambda z: Normal(z[0] + z[1], jnp.ones(()))),
            prior=Layers(jnp.array([0.0, 0.0, 0.8, 0.0, 0.0])),
        )

    def draws_of(gradient):
        one = lambda q, key: bound(model(q), key, 1.5, num_samples=3, gradient=gradient)[0]
        keys = jax.random.split(jax.random.key(15), 60_000)
        return jax.jit(jax.vmap(jax.grad(one), (None, 0)))(at, keys)

    plain, stuck, double = map(draws_of, REPARAMETERIZED)
    assert standard_errors_off(plain - double, 0.0) < 4
    assert standard_errors_off(plain - stuck, 0.0) > 6  # biased, as it must be
    assert (double.std(axis=0) < plain.std(axis=0)).all()


def side_by_side(logits, loc):
    return Product({"choice": OneHotCategorical(logits), "style": Normal(loc, jnp.ones_like(loc))})


def test_for_component_sums_one_part_out_and_keeps_the_path_of_the_other(x64):
    """E[a_choice s] + log q over the choice, at the style that was drawn."""
    a, keys = jnp.array([0.3, -1.0, 2.0]), jax.random.split(jax.random.key(3), 1)

    def term(q, z, log_q):
        s = jnp.sum(z["style"])
        return (z["choice"] @ a) * s + log_q, s

    def bound(logits, loc, keys):
        gradient = for_component("choice", enumeration)
        return gradient(jnp.mean, term, side_by_side(logits, loc), keys)

    at = LOGITS.astype(float), jnp.array([0.4, -0.2])
    (value, (s,)), slopes = jax.jit(jax.value_and_grad(bound, (0, 1), has_aux=True))(*at, keys)

    def by_hand(logits, loc):
        """log q(style) does not move with loc: it is that of the noise."""
        log_p = jax.nn.log_softmax(logits)
        style = s + jnp.sum(loc - at[1])
        return jnp.exp(log_p) @ (a * style + log_p)

    exact, expected = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(*at)
    log_style = value - exact
    noise = jnp.sqrt(-2 * (log_style + jnp.log(2 * jnp.pi)))  # |eps|, from its density
    assert jnp.abs(s - jnp.sum(at[1])) <= noise * jnp.sqrt(2)
    for slope, of in zip(slopes, expected, strict=True):
        assert close(slope, of)


def test_for_component_refuses():
    q, gradient = side_by_side(jnp.zeros(3), jnp.zeros(2)), for_component("choice", enumeration)

    def keys(k):
        return jax.random.split(jax.random.key(0), k)

    def term(q, z, log_q):
        return log_q, None

    with pytest.raises(ValueError, match="for_component: num_samples is 2, expected 1 for doubly"):
        for_component("choice", doubly_reparameterized)(jnp.mean, term, q, keys(2))
    with pytest.raises(
        ValueError, match=r"name is 'chioce', expected one of \['choice', 'style'\]"
    ):
        for_component("chioce", enumeration)(jnp.mean, term, q, keys(1))
    with pytest.raises(
        TypeError, match="for_component: q is a Normal, expected a Product of a dict"
    ):
        gradient(jnp.mean, term, q.parts["style"], keys(1))
    with pytest.raises(TypeError, match="for_component: estimator is None"):
        for_component("choice", None)  # pyright: ignore

    def slope(logits):
        d = Product({"choice": OneHotCategorical(logits), "other": OneHotCategorical(logits)})
        return gradient(jnp.mean, term, d, keys(1))[0]

    with pytest.raises(TypeError, match="samples of Product have no derivative"):
        jax.eval_shape(jax.grad(slope), jnp.zeros(3))


@pytest.mark.parametrize("gradient", [score_function, vimco])
def test_a_weight_of_zero_leaves_the_value(gradient):
    """One of three classes is impossible; three samples, so that many keys draw it twice."""
    prior = OneHotCategorical(jnp.array([0.0, 0.3, -jnp.inf]))

    @jax.jit
    @jax.vmap
    def both(key):
        def bound(logits, gradient):
            model = VAE(
                encode=Partial(lambda l, x: OneHotCategorical(l), logits),
                decode=lambda z: Normal(z[:1], jnp.ones(1)),
                prior=prior,
            )
            again = jax.random.clone(key)
            return iwae(model, again, jnp.zeros(1), num_samples=3, gradient=gradient)[0]

        plain = bound(jnp.zeros(3), wake)
        return plain, jax.value_and_grad(bound)(jnp.zeros(3), gradient)

    plain, (value, slope) = both(jax.random.split(jax.random.key(0), 50))
    assert np.sum(np.isneginf(plain)) < 10  # all three the impossible one
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("gradient", [score_function, vimco, wake, doubly_reparameterized])
def test_the_reductions_own_parameter_has_its_slope_at_fixed_samples(gradient):
    model, key, x = ladder(LADDER), jax.random.key(0), 1.5

    def slope(gradient):
        def bound(alpha):
            return renyi(model, key, x, num_samples=3, alpha=alpha, gradient=gradient)[0]

        return jax.grad(bound)(jnp.array(0.3))

    np.testing.assert_allclose(slope(gradient), slope(pathwise), rtol=1e-5)
