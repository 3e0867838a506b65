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
    f = jax.jit(log_beta)
    assert np.allclose(f(A, B), exact, rtol=2e-9, atol=1e-12)
    single = f(A.astype(np.float32), B.astype(np.float32))
    assert np.allclose(single, exact, rtol=2e-6, atol=2e-6)


def test_gradient(x64):
    f = jax.jit(jax.vmap(jax.grad(log_beta)))
    slope = f(A, B)
    exact = scipy.special.digamma(A) - scipy.special.digamma(A + B)
    assert np.allclose(slope, exact, rtol=1e-6, atol=1e-9)
    assert np.all(np.isfinite(f(A.astype(np.float32), B.astype(np.float32))))


def test_softplus_is_exact_in_value_and_two_derivatives(x64):
    l = np.array([-np.inf, -700.0, -40.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 40.0, 700.0, np.inf])
    slope, sigma = jax.grad(softplus), scipy.special.expit(l)

    @jax.jit
    def numbers(l):
        return softplus(l), jax.vmap(slope)(l), jax.vmap(jax.grad(slope))(l)

    value, by_l, curvature = numbers(l)
    assert np.allclose(value, np.logaddexp(0.0, l), rtol=1e-15, atol=0.0)
    assert np.allclose(by_l, sigma, rtol=1e-15, atol=0.0)
    expected = sigma * scipy.special.expit(-l)
    assert np.allclose(curvature[1:-1], expected[1:-1], rtol=1e-15, atol=1e-16)
    assert np.isnan(softplus(np.nan))
    single = jnp.asarray(l, jnp.float32)
    assert np.allclose(softplus(single), jax.nn.softplus(single), rtol=2e-7, atol=0.0)
    assert softplus(single).dtype == jnp.float32
