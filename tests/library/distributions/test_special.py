"""Special functions against scipy, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxvae.distributions.special import log_beta, softplus

POINTS = np.array([1e-6, 1e-3, 0.1, 0.5, 1.0, 2.5, 7.0, 7.9, 8.0, 8.1, 15.0, 100.0, 1e3, 1e6, 1e8])
A, B = (grid.ravel() for grid in np.meshgrid(POINTS, POINTS))


def test_values(x64):
    exact = scipy.special.betaln(A, B)
    assert np.allclose(log_beta(A, B), exact, rtol=2e-9, atol=1e-12)
    single = log_beta(jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32))
    assert np.allclose(single, exact, rtol=2e-6, atol=2e-6)


def test_gradient(x64):
    slope = jax.jit(jax.vmap(jax.grad(log_beta)))(A, B)
    exact = scipy.special.digamma(A) - scipy.special.digamma(A + B)
    assert np.allclose(slope, exact, rtol=1e-6, atol=1e-9)
    single = jax.vmap(jax.grad(log_beta))(jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32))
    assert np.all(np.isfinite(single))


def test_softplus_is_exact_in_value_and_two_derivatives(x64):
    l = np.array([-np.inf, -700.0, -40.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 40.0, 700.0, np.inf])
    slope, curvature = jax.grad(softplus), jax.grad(jax.grad(softplus))
    sigma = scipy.special.expit(l)
    assert np.allclose(softplus(l), np.logaddexp(0.0, l), rtol=1e-15, atol=0.0)
    assert np.allclose(jax.vmap(slope)(l), sigma, rtol=1e-15, atol=0.0)
    expected = sigma * scipy.special.expit(-l)
    assert np.allclose(jax.vmap(curvature)(l)[1:-1], expected[1:-1], rtol=1e-15, atol=1e-16)
    assert np.isnan(softplus(np.nan))
    single = jnp.asarray(l, jnp.float32)
    assert np.allclose(softplus(single), jax.nn.softplus(single), rtol=2e-7, atol=0.0)
    assert softplus(single).dtype == jnp.float32
