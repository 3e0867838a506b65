"""Special functions against scipy, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxvae.distributions.special import log_bernoulli, log_beta, softplus, sum_log1p

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


def test_a_sum_of_logarithms_has_the_digits_of_each(x64):
    """However many there are, and whatever their sizes: a product of eight is at most 2^8."""
    e = np.exp(-np.linspace(0.0, 60.0, 37))
    f = jax.jit(sum_log1p)
    for part in (e, e[:8], e[-9:], e[-1:], np.ones(784), np.zeros(3)):
        assert np.allclose(f(part), np.sum(np.log1p(part)), rtol=2e-15, atol=0.0)
    single = np.asarray(e, np.float32)
    assert np.allclose(f(single), np.sum(np.log1p(e)), rtol=3e-7, atol=0.0)


def test_coins_are_scored_by_the_textbook(x64):
    """log p of all at once, and its two derivatives: x - sigma(l), -sigma(l) sigma(-l)."""
    l = np.linspace(-50.0, 50.0, 27).reshape(9, 3)
    x = (np.arange(27) % 2.0).reshape(9, 3)
    sigma = scipy.special.expit(l)

    @jax.jit
    def numbers(l):
        slope = jax.grad(log_bernoulli, argnums=1)
        return log_bernoulli(x, l), slope(x, l), jax.grad(lambda l: jnp.sum(slope(x, l)))(l)

    value, by_l, curvature = numbers(l)
    expected = np.sum(-np.logaddexp(0.0, np.where(x == 1.0, -l, l)))
    assert np.allclose(value, expected, rtol=2e-15, atol=0.0)
    assert np.allclose(by_l, x - sigma, rtol=1e-15, atol=1e-16)
    assert np.allclose(curvature, -sigma * scipy.special.expit(-l), rtol=1e-13, atol=3e-16)
