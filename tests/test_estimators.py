"""Every gradient estimator of the importance-weighted bound, against means that are known.

Ladder: p(z) = N(0, 1), p(x|z) = N(z, 1), x = 1.5, q = N(.25, 1), gradients in (m, log s).
Discrete: z in {0, 1, 2}, prior logits (.2, -.3, .5), p(x|z) = (.7, .2, .05), q logits (0, .4, -.6).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from common import close, standard_errors_off
from jax.tree_util import Partial

from jaxvae import (
    VAE,
    Bernoulli,
    Categorical,
    Normal,
    StandardNormal,
    doubly_reparameterized,
    importance_bound,
    iwae,
    leave_one_out,
    log_mean_exp,
    pathwise,
    ppca,
    score_function,
    sticking_the_landing,
    vimco,
)

REPARAMETERIZED = [pathwise, sticking_the_landing, doubly_reparameterized]
UNBIASED = [pathwise, doubly_reparameterized, score_function, vimco]
LADDER = jnp.array([0.25, 0.0])
LOGITS = jnp.array([0.0, 0.4, -0.6])
EXACT = {1: (1.0, -1.0), 2: (0.3858458685, -0.2274734570)}
DISCRETE = {
    1: (-1.698671625, (0.45059474, -0.38399981, -0.06659493)),
    2: (-1.495613507, (0.3469368, -0.27451691, -0.07241989)),
}


def ladder(q, weight=1.0):
    return VAE(
        encode=Partial(lambda q, x: Normal(q[0], jnp.exp(q[1])), q),
        decode=Partial(lambda w, z: Normal(w * z, jnp.ones_like(z)), weight),
        prior=StandardNormal(()),
    )


def discrete(logits):
    p = jnp.array([0.7, 0.2, 0.05])
    return VAE(
        encode=Partial(lambda q, x: Categorical(q), logits),
        decode=Partial(lambda z: Bernoulli(jnp.log(p / (1.0 - p))[z])),
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
    bound, log_w = iwae(ladder(LADDER), jax.random.key(3), 1.5, num_samples=5, gradient=gradient)
    plain, plain_w = iwae(ladder(LADDER), jax.random.key(3), 1.5, num_samples=5)
    assert close(bound, plain)
    assert close(log_w, plain_w)
    assert close(bound, log_mean_exp(log_w))


@pytest.mark.parametrize("gradient", [sticking_the_landing, doubly_reparameterized, vimco])
def test_the_decoder_has_one_gradient(gradient):
    """For the same key, whatever the estimator: only the posterior's gradient differs."""

    def decoder(gradient):
        return jax.grad(
            lambda w: iwae(
                ladder(LADDER, w), jax.random.key(4), 1.5, num_samples=5, gradient=gradient
            )[0]
        )(0.8)

    assert close(decoder(gradient), decoder(pathwise))


@pytest.mark.parametrize("gradient", [sticking_the_landing, doubly_reparameterized])
def test_no_noise_at_the_exact_posterior(gradient, x64):
    """The weights are all p(x) and do not depend on z, so nothing flows through the samples."""
    linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    model = ppca.as_vae(linear)

    def bound(encode):
        model_ = model._replace(encode=encode)
        return iwae(model_, jax.random.key(5), jnp.ones(3), num_samples=4, gradient=gradient)[0]

    for leaf in jax.tree.leaves(jax.grad(bound)(model.encode)):
        assert jnp.max(jnp.abs(leaf)) < 1e-12


def test_doubly_reparameterized_elbo_is_sticking_the_landing():
    """R the mean: g = 1/K and h = 0, so that no cotangent is scaled."""

    def grad_of(gradient):
        return jax.grad(
            lambda q: importance_bound(
                jnp.mean, ladder(q), jax.random.key(6), 1.5, num_samples=3, gradient=gradient
            )[0]
        )(LADDER)

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
        assert jnp.isfinite(bound(LOGITS))  # the value is none the worse
    with pytest.raises(TypeError, match="use gradient=score_function"):
        jax.grad(bound)(LOGITS)


def test_leaving_one_out_needs_two():
    with pytest.raises(ValueError, match="num_samples is 1, expected at least 2"):
        iwae(discrete(LOGITS), jax.random.key(0), 1.0, num_samples=1, gradient=vimco)


def test_leave_one_out_does_not_look_at_its_sample():
    log_w = jnp.array([0.3, -1.0, 2.0])
    for k in range(3):
        moved = leave_one_out(log_mean_exp, log_w.at[k].add(5.0))
        assert close(moved[k], leave_one_out(log_mean_exp, log_w)[k])
