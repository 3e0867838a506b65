"""Missing not at random: a linear-Gaussian pair whose second entry hides by a logistic curve.

z ~ N(0, 1), x_i ~ N(w_i z + b_i, s_i^2), p(x_2 seen|x_2) = sigma(a - c x_2); x_1 is always seen
almost surely. Marginals by Gauss-Hermite quadrature, in float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import expit

import jaxvae as jv
from jaxvae import use
from jaxvae.evaluation import impute, multiple_imputations
from jaxvae.models import MaskedBy, NotAtRandom
from tests.common import close, draws, standard_errors_off

W, B, S = np.array([1.0, 0.8]), np.array([0.2, 1.0]), np.array([0.5, 0.6])
CURVE = 0.7, 2.0  # a and c
SEEN = 30.0  # the logit of x_1
X1 = 0.9


def mechanism(x):
    a, c = CURVE
    return jv.Bernoulli(jnp.stack([jnp.full_like(x[0], SEEN), a - c * x[1]]))


def likelihood(shift, z):
    return jv.Normal(jnp.asarray(W) * z + jnp.asarray(B) + shift, jnp.asarray(S))


def posterior(event):
    """Off on purpose, and of what is seen."""
    x, mask = event
    return jv.Normal(0.5 * jnp.sum(jnp.where(mask, x, 0.0)), 0.9)


def model(shift=0.0):
    shift = jnp.asarray(shift) * jnp.array([0.0, 1.0])
    return NotAtRandom(
        Partial(posterior), Partial(likelihood, shift), jv.StandardNormal(()), Partial(mechanism)
    )


MISSING = np.array([X1, np.nan]), np.array([True, False])
BOTH = np.array([X1, 0.4]), np.array([True, True])


def exact():
    """p(x_1, x_2 missing), E[x_2|x_1, missing] and its variance."""
    var1 = W[0] ** 2 + S[0] ** 2
    p1 = np.exp(-0.5 * (X1 - B[0]) ** 2 / var1) / np.sqrt(2 * np.pi * var1)
    slope = W[0] * W[1] / var1
    mean = B[1] + slope * (X1 - B[0])
    sd = np.sqrt(W[1] ** 2 + S[1] ** 2 - slope * W[0] * W[1])
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    x2, weight = mean + sd * node, weight / np.sqrt(2 * np.pi)
    gone = weight * (1.0 - expit(CURVE[0] - CURVE[1] * x2))
    first = gone @ x2 / gone.sum()
    return p1 * gone.sum() * expit(SEEN), first, gone @ (x2 - first) ** 2 / gone.sum()


def test_weights_have_the_mean_of_the_marginal(x64):
    w = jnp.exp(
        jax.jit(partial(jv.log_weights, num_samples=40_000))(model(), jax.random.key(0), MISSING)
    )
    assert standard_errors_off(w, exact()[0]) < 4


def test_what_is_seen_is_scored_with_the_mechanism(x64):
    """Of a whole row the weight is p(x|z) p(s|x) p(z) / q(z), whatever was imputed."""
    z, whole = jnp.array(0.3), jnp.array([5.0, -7.0])
    p = model().decode((z, whole))
    x = np.array([X1, 0.4])
    log_n = -0.5 * ((x - W * 0.3 - B) / S) ** 2 - np.log(S * np.sqrt(2 * np.pi))
    seen = np.log(expit([SEEN, CURVE[0] - CURVE[1] * 0.4]))
    assert close(p.log_prob(BOTH), log_n.sum() + seen.sum())
    gap = np.log(1.0 - expit(CURVE[0] + 7.0 * CURVE[1]))
    assert np.isclose(p.log_prob(MISSING), log_n[0] + seen[0] + gap, rtol=1e-6)


@pytest.mark.thorough
def test_imputation_is_the_mean_given_that_it_is_missing(x64):
    """By weights over the latents' own x'; and its draws have the variance that is left."""
    _, mean, variance = exact()
    one = lambda key: impute(model(), key, MISSING, num_samples=2_000)
    found = draws(one, 50)
    assert (found[:, 0] == X1).all()
    assert standard_errors_off(found[:, 1], mean) < 4
    ignored = W[0] * W[1] / (W[0] ** 2 + S[0] ** 2) * (X1 - B[0]) + B[1]
    assert mean > ignored + 0.1  # what is missing is larger
    many = partial(multiple_imputations, num_samples=2_000, num_draws=200)
    x2 = jax.jit(many)(model(), jax.random.key(2), MISSING)[:, 1]
    assert standard_errors_off((x2 - mean) ** 2, variance) < 4


def test_the_rate_is_that_of_z_alone(x64):
    """x' is drawn alike under prior and posterior: its level of the rate is 0, in closed form."""
    _, terms = jax.jit(jv.elbo)(model(), jax.random.key(3), MISSING)
    assert close(terms.rate, jv.kl_divergence(posterior(MISSING), jv.StandardNormal(())))


def test_draws_follow_the_mechanism(x64):
    p = MaskedBy(likelihood(0.0, jnp.array(0.3)), jnp.zeros(2), Partial(mechanism))
    x, mask = draws(p.sample, 20_000)
    assert mask[:, 0].all()
    a, c = CURVE
    assert standard_errors_off(mask[:, 1].astype(float) - jax.nn.sigmoid(a - c * x[:, 1]), 0.0) < 4


@pytest.mark.thorough
def test_parameters_are_recovered_where_ignoring_the_mechanism_is_off(x64):
    """The mean of x_2 is 1; trained on what is seen alone it comes out low."""
    n, keys = 2_000, jax.random.split(jax.random.key(4), 3)
    z = jax.random.normal(keys[0], (n,))
    x = z[:, None] * W[None] + B[None] + S[None] * jax.random.normal(keys[1], (n, 2))
    seen = jax.random.uniform(keys[2], (n,)) < jax.nn.sigmoid(CURVE[0] - CURVE[1] * x[:, 1])
    mask = jnp.stack([jnp.ones(n, bool), seen], 1)
    xs = jnp.where(mask, x, jnp.nan), mask

    def ignoring(shift):
        shift = shift * jnp.array([0.0, 1.0])
        decode = Partial(lambda shift, z: jv.Masked(likelihood(shift, z)), shift)
        return jv.VAE(Partial(posterior), decode, jv.StandardNormal(()))

    def fitted(make):
        objective = jv.batched(partial(jv.iwae, num_samples=20))
        slope = jax.grad(lambda shift, key: objective(make(shift), key, xs)[0])

        def step(shift, key):
            shift += 0.5 * slope(shift, key)
            return shift, shift

        keys = jax.random.split(jax.random.key(5), 60)
        return jax.jit(partial(jax.lax.scan, step))(jnp.array(-0.5), keys)[1][-20:].mean()

    # the standard error of the mean of x_2 is about .02
    assert abs(fitted(model)) < 0.1
    assert fitted(ignoring) < -0.2


def test_a_score_counts_what_was_seen(x64):
    """And not the mask."""
    rows = np.stack([MISSING[0], BOTH[0]]), np.stack([MISSING[1], BOTH[1]])
    with pytest.warns(UserWarning, match="score: rows have 1 to 2 observed entries"):
        scores = use.score(model(), jax.random.key(0), rows, num_samples=5)
    np.testing.assert_array_equal(scores.observed, [1.0, 2.0])
    np.testing.assert_allclose(scores.per_observed, scores.iwae / scores.observed)
