"""Extreme parameters: densities, draws and slopes stay right where squares overflow or cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp
from scipy.stats import norm, t

from jaxvae import (
    Constant,
    ContinuousBernoulli,
    Dirichlet,
    LowRankNormal,
    Masked,
    Mixture,
    MultivariateNormal,
    Normal,
    StudentT,
    kl_divergence,
)
from jaxvae.distributions import PowerSpherical, Resampled, VonMisesFisher

FACTOR = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "make", [PowerSpherical, pytest.param(VonMisesFisher, marks=pytest.mark.thorough)]
)
def test_a_whole_concentration_is_the_float(make):
    mu = jnp.eye(4)[0]
    whole, expected = make(mu, 2), make(mu, 2.0)
    both = jax.jit(lambda d: (d.log_prob(mu), d.mean(), d.entropy(), d.sample(jax.random.key(0))))
    for found, exact in zip(both(whole), both(expected), strict=True):
        np.testing.assert_array_equal(found, exact)


def test_a_draw_has_the_same_slope_at_zero_as_beside_it():
    slope = jax.jit(jax.grad(lambda l: ContinuousBernoulli(l).sample(jax.random.key(3))))
    np.testing.assert_allclose(slope(0.0), slope(1e-5), rtol=1e-3)
    np.testing.assert_allclose(slope(0.0), slope(-1e-5), rtol=1e-3)
    assert slope(0.0) > 0.0


def test_a_low_rank_density_keeps_its_digits():
    @jax.jit
    def both(scale):
        q = LowRankNormal(jnp.zeros(50), FACTOR, jnp.full(50, scale))
        z, log_q = q.sample_and_log_prob(jax.random.key(1))
        return z, log_q, q.log_prob(z)

    wide = FACTOR.astype(float)
    for scale in (1.0, 1e-2, 1e-3, 1e-4):
        z, *found = both(scale)
        covariance, z = wide @ wide.T + scale**2 * np.eye(50), np.asarray(z, float)
        square = z @ np.linalg.solve(covariance, z)
        exact = -0.5 * (square + np.linalg.slogdet(covariance)[1] + 50 * np.log(2 * np.pi))
        np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_a_low_rank_factor_is_one_of_its_covariance():
    q = LowRankNormal(jnp.zeros(50), FACTOR, jnp.full(50, 0.5))
    lower = q.scale_tril
    np.testing.assert_array_equal(lower, jnp.tril(lower))
    np.testing.assert_allclose(lower @ lower.T, q.covariance(), atol=1e-4)
    assert jnp.all(jnp.diagonal(lower) > 0.0)


def test_the_kl_between_thin_gaussians():
    def exact(s, other):
        wide = FACTOR.astype(float)
        a, b = (wide @ wide.T + v**2 * np.eye(50) for v in (s, other))
        logs = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
        return 0.5 * (np.trace(np.linalg.solve(b, a)) - 50 + logs)

    thin, other = (LowRankNormal(jnp.zeros(50), FACTOR, jnp.full(50, s)) for s in (1e-3, 2e-3))
    np.testing.assert_allclose(kl_divergence(thin, other), exact(1e-3, 2e-3), rtol=1e-2)
    unit = MultivariateNormal(jnp.zeros(50), jnp.eye(50))
    wide = FACTOR.astype(float)
    log_det = np.linalg.slogdet(wide @ wide.T + 1e-6 * np.eye(50))[1]
    expected = 0.5 * (np.sum(wide**2) + 50e-6 - 50 - log_det)
    np.testing.assert_allclose(kl_divergence(thin, unit), expected, rtol=1e-4)


def test_nothing_is_accepted_and_the_slope_is_none():
    proposal, nodes = Constant(Normal(jnp.zeros(1), jnp.ones(1))), Constant(jnp.zeros((5, 1)))

    def log_prob(c):
        logits = Partial(lambda c, z: c + 0.0 * jnp.sum(z), c)
        return Resampled(proposal, logits, nodes).log_prob(jnp.zeros(1))

    c = jnp.array([-30.0, -39.0, -41.0, -80.0, -95.0, -200.0])  # all alike: the proposal's
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_prob)))(c)
    np.testing.assert_allclose(value, -0.918939, rtol=2e-5)
    np.testing.assert_allclose(slope, 0.0, atol=1e-4)


def test_the_tails_of_student_s_t():
    df, y = np.meshgrid([0.1, 1.0, 7.0], [0.0, 0.5, -3.0, 1e6, -1e20, 1e30])
    log_prob = lambda df, y: StudentT(df, jnp.zeros(()), 1.0).log_prob(y)
    found = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(log_prob, argnums=1))))
    value, slope = found(df.astype(np.float32), y.astype(np.float32))
    far = np.abs(y) > 1e3  # where SciPy's square overflows as well
    square = 2.0 * np.log(np.where(far, np.abs(y), 1.0)) - np.log(df)
    tail = t.logpdf(0.0, df) - 0.5 * (df + 1.0) * square
    np.testing.assert_allclose(value, np.where(far, tail, t.logpdf(y, df)), rtol=1e-5)
    np.testing.assert_allclose(slope, -(df + 1.0) * (y / df) / (1.0 + y * (y / df)), rtol=1e-4)
    draws = jax.jit(jax.vmap(StudentT(0.3, jnp.zeros(1), 1.0).sample_and_log_prob))
    assert jnp.all(jnp.isfinite(draws(jax.random.split(jax.random.key(0), 1000))[1]))


def test_the_filler_of_a_mixture_is_one_event():
    mixture = Mixture(jnp.zeros(2), Dirichlet(jnp.ones((2, 3))))
    nothing_seen = Masked(mixture).log_prob((jnp.ones(3) / 3, jnp.array(False)))
    assert float(nothing_seen) == 0.0


def test_a_flat_factor_leaves_the_other():
    sharp = Normal(jnp.ones(4), jnp.ones(4))
    other = Normal(jnp.zeros(4), jnp.array([1e3, 1e15, 1e20, 1e30]))
    for product in (sharp.times(other), other.times(sharp)):
        np.testing.assert_allclose(product.scale, 1.0, rtol=1e-5)
        np.testing.assert_allclose(product.loc, 1.0, rtol=1e-5)


def test_a_product_moves_by_the_share_of_the_flatter_factor():
    """1 / (1 + r^2) of the narrow one is 1 in float32; r^2 / (1 + r^2) of the other is not 0."""
    ratio = np.array([2.0, 1.0, 1e-2, 1e-3, 1e-4, 1e-12], np.float32)
    exact = ratio.astype(float) ** 2 / (1 + ratio.astype(float) ** 2)

    @jax.jit
    @jax.vmap
    def slopes(r):
        a, one = jnp.array(3.0), jnp.array(1.0)
        first = jax.grad(lambda b: Normal(a, r).times(Normal(b, one)).loc)(a)
        return first, jax.grad(lambda b: Normal(b, one).times(Normal(a, r)).loc)(a)

    for found in slopes(ratio):
        np.testing.assert_allclose(found, exact, rtol=1e-6)
    far = Normal(0.0, 1e-4).times(Normal(1e4, 1.0))
    np.testing.assert_allclose(far.loc, 1e4 * 1e-8 / (1 + 1e-8), rtol=1e-6)


def test_a_factor_of_infinite_scale_leaves_the_other_as_it_is():
    known, nothing = Normal(jnp.array(2.0), jnp.array(0.5)), Normal(jnp.nan, jnp.inf)
    for both in (known.times(nothing), nothing.times(known)):
        assert (float(both.loc), float(both.scale)) == (2.0, 0.5)


def test_slopes_of_a_mixture_whose_components_are_far_apart_in_a_later_coordinate():
    """d z_1 / d logits, w_k' F_k / p by hand: log p of z_2 must not swallow what is before it."""
    loc, scale = np.array([[0.0, 0.0], [1.0, 30.0]]), jnp.array([[1.0, 1e-3]] * 2)

    def draw(logits, key):
        return Mixture(logits, Normal(jnp.asarray(loc, jnp.float32), scale)).sample(key)

    keys = jax.random.split(jax.random.key(0), 8)
    slope = lambda k: jax.jacobian(draw)(jnp.zeros(2), jax.random.clone(k))
    both = jax.jit(jax.vmap(lambda k: (draw(jnp.zeros(2), k), slope(k))))
    z, slopes = jax.tree.map(lambda a: np.asarray(a, float), both(keys))
    # the second coordinate tells the component k, and F(z_2 | z_1) = sum_k w_k(z_1) F_k(z_2)
    log_p = norm.logpdf(z[:, :1], loc[:, 0])
    w = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    each = (z[:, 1:] - loc[:, 1]) / 1e-3
    cdf, p = norm.cdf(each), np.sum(w * norm.pdf(each), axis=1) / 1e-3
    by_logit = w[:, 0] * w[:, 1] * (cdf[:, 0] - cdf[:, 1])
    # dz_1/dl_0 moves w as well, by d(log p_0 - log p_1)/dz_1 = -1
    by_logit *= 1.0 - slopes[:, 0, 0]
    np.testing.assert_allclose(slopes[:, 1, 0], -by_logit / p, rtol=2e-3)
