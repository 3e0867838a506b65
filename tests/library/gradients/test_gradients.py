"""The gradients that bounds carry, on the ladder where their means and spreads are known.

p(z) = N(0, 1), p(x|z) = N(z, 1), x = 1.5, q = N(m, s^2) at m = .25, s = 1; in (m, log s).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import (
    elbo,
    importance_bound,
    iwae,
    log_weights,
    sampled_kl,
)
from jaxvae.bounds import log_mean_exp
from jaxvae.gradients.reparameterized import over_samples
from tests.common import close, draws, standard_errors_off
from tests.models import ladder

X, AT = 1.5, (0.25, 0.0)


def gradients(objective, num, seed=0, **hyper):
    """Draws [num, 2] of the gradient in (m, log s)."""

    def gradient(key):
        bound = lambda q: objective(ladder(q), key, X, **hyper)[0]
        return jnp.stack(jax.grad(bound)(AT))

    return draws(gradient, num, seed)


@pytest.mark.parametrize(("k", "exact"), [(1, (1.0, -1.0)), (2, (0.3858458685, -0.2274734570))])
def test_pathwise_means(k, exact):
    # targets: the gradient of IWAE_K
    assert standard_errors_off(gradients(iwae, 100_000, k, num_samples=k), np.array(exact)) < 4


def test_pathwise_spread():
    # targets: one draw of d/dm at K = 2 has standard deviation 1.32703
    d_m = gradients(iwae, 100_000, 3, num_samples=2)[:, 0]
    assert standard_errors_off((d_m - 0.3858458685) ** 2, 1.32703**2) < 4


def test_pathwise_means_by_quadrature(x64):
    # targets' numbers are the slopes of the quadrature of IWAE_2 in m and log s
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = np.outer(weight, weight) / (2 * np.pi)

    def iwae_2(m, log_s):
        z = m + np.exp(log_s) * node
        log_w = -0.5 * (np.log(2 * np.pi) + z**2 + (X - z) ** 2 - node**2) + log_s
        return np.sum(weight * (np.logaddexp(log_w[:, None], log_w[None]) - np.log(2)))

    h = 1e-5
    d_m = (iwae_2(0.25 + h, 0) - iwae_2(0.25 - h, 0)) / (2 * h)
    d_log_s = (iwae_2(0.25, h) - iwae_2(0.25, -h)) / (2 * h)
    assert np.allclose([d_m, d_log_s], [0.3858458685, -0.2274734570], atol=1e-8)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_one_sample_is_a_call_and_more_are_vmapped(num_samples):
    # the same numbers, whatever is passed: K rows in, K rows out
    f = lambda z, tree: (z * tree["scale"], 3.0, tree["shift"].sum())
    args = (jnp.arange(1.0, num_samples + 1.0), {"scale": 2.0, "shift": 4.0})
    args = args[0], jax.tree.map(lambda a: jnp.full((num_samples, 2), a), args[1])
    ours, expected = over_samples(f)(*args), jax.vmap(f)(*args)
    assert [a.shape for a in ours] == [(num_samples, 2), (num_samples,), (num_samples,)]
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_the_sampled_kl_has_the_gradient_of_the_elbo():  # (1, -1) in mean
    assert (
        standard_errors_off(gradients(elbo, 100_000, 4, kl=sampled_kl), np.array([1.0, -1.0])) < 4
    )


def test_analytic_rate_has_the_gradient_of_the_elbo():
    # d/dm = 1.25 - m, and the KL's part is -m = -.25 without noise
    d = gradients(elbo, 100_000, 5)
    assert standard_errors_off(d, np.array([1.0, -1.0])) < 4
    free = gradients(elbo, 100_000, 5, beta=0.0)
    assert np.allclose(free - d, [[0.25, 0.0]], atol=1e-5)


def test_estimator_returns_the_reduction_and_the_weights():
    # the value is the reduction of log_weights with the same key
    log_w = log_weights(ladder(AT), jax.random.key(6), X, num_samples=5)
    for reduction in (log_mean_exp, jnp.mean, jnp.max):
        key = jax.random.key(6)
        bound, aux = importance_bound(reduction, ladder(AT), key, X, num_samples=5)
        assert close(aux, log_w)
        assert close(bound, reduction(log_w))


def test_bounds_take_an_estimator():
    # iwae(gradient=...) hands over log_mean_exp, the posterior, K keys and returns what it is given
    def estimator(reduction, term, q, keys):
        return reduction(jnp.array([1.0, 1.0])), (q.loc, len(keys))

    answer = iwae(ladder(AT), jax.random.key(0), X, num_samples=7, gradient=estimator)
    assert answer == (1.0, (0.25, 7))
