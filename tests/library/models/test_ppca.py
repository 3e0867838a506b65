"""Probabilistic PCA, the linear VAE: where everything is exact, so must everything be here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.linalg import hadamard
from scipy.special import roots_hermitenorm
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits

from jaxvae import (
    MultivariateNormal,
    Normal,
    elbo,
    iwae,
    log_marginal,
    log_weights,
    pathwise,
    sampled_kl,
    sticking_the_landing,
)
from jaxvae.models import ppca
from jaxvae.models.ppca import PPCA
from tests.common import close


def digits():
    """The 1797 digits of scikit-learn, over 16: [1797, 64] in float64."""
    return jnp.asarray(load_digits(return_X_y=True)[0] / 16)


def synthetic(seed=0, n=200):
    """Rows [n, 5] with two strong directions and a mean far from zero, and a random PPCA [5, 2]."""
    rng = np.random.default_rng(seed)
    xs = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 5)) + 0.5 * rng.normal(size=(n, 5)) + 3
    start = PPCA(*map(jnp.asarray, (rng.normal(size=(5, 2)), xs.mean(axis=0), np.array(0.8))))
    return jnp.asarray(xs), start


def covariance(params):
    return params.weight @ params.weight.T + params.variance * np.eye(len(params.weight))


def mean_log_likelihood(params, xs):
    return np.mean(multivariate_normal.logpdf(xs, params.mean, covariance(params)))


# the optimum


@pytest.mark.parametrize(
    ("k", "exact"),
    [
        (2, 0.005707),
        pytest.param(5, 8.907637, marks=pytest.mark.slow),
        pytest.param(8, 14.209788, marks=pytest.mark.slow),
        (10, 17.451947),
        pytest.param(16, 23.929443, marks=pytest.mark.slow),
        pytest.param(20, 27.277300, marks=pytest.mark.slow),
        (32, 35.247022),
    ],
)
def test_digits_optimum(k, exact, x64):
    # targets: log-likelihood per example of the closed-form optimum, to the six digits given;
    # ours against SciPy's Gaussian row by row to rounding
    xs = digits()
    params = ppca.maximum_likelihood(xs, k)
    log_p = jax.jit(jax.vmap(ppca.log_marginal, (None, 0)))(params, xs)
    assert abs(jnp.mean(log_p) - exact) < 5.1e-7
    rows = multivariate_normal.logpdf(xs[:20], params.mean, covariance(params))
    assert np.allclose(log_p[:20], rows, rtol=1e-9, atol=0)


def test_digits_noise(x64):
    # targets: s2 at k = 8, the mean of the 56 eigenvalues left out
    params = ppca.maximum_likelihood(digits(), 8)
    eigenvalues = np.linalg.eigvalsh(np.cov(digits().T, bias=True))
    assert abs(params.variance - 0.02732943) < 5.1e-9
    assert close(params.variance, eigenvalues[:56].mean())


def test_optimum_is_stationary(x64):
    # no gradient at the closed form, and less likelihood to every side
    xs, _ = synthetic()
    best = ppca.maximum_likelihood(xs, 2)

    @jax.jit
    def log_likelihood(params):
        return jnp.mean(jax.vmap(ppca.log_marginal, (None, 0))(params, xs))

    for slope in jax.tree.leaves(jax.grad(log_likelihood)(best)):
        assert jnp.max(jnp.abs(slope)) < 1e-9
    rng = np.random.default_rng(1)
    aside = [jax.tree.map(lambda v: v + 0.01 * rng.normal(size=v.shape), best) for _ in range(20)]
    assert all(log_likelihood(params) < log_likelihood(best) for params in aside)


def test_optimum_of_round_data():
    # all eigenvalues equal: nothing to explain, so W = 0 and s2 is the variance
    xs = 0.9 * jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
    params = ppca.maximum_likelihood(xs, 1)
    assert np.allclose(params.weight, 0, atol=1e-3)
    assert close(params.variance, 0.81 / 8)


@pytest.mark.parametrize("k", [0, 5, -1])
def test_number_of_latents_is_below_the_dimension(k):
    # k = d leaves no eigenvalue for the noise
    with pytest.raises(ValueError, match=rf"num_latents is {k}, expected 1 <= num_latents < 5"):
        ppca.maximum_likelihood(jnp.ones((10, 5)), k)


# the posterior


def test_posterior_is_bayes_rule(x64):
    # E f(z) p(z) p(x|z) / p(x) for f = 1, z, zz', by Gauss-Hermite over the prior (k = 2)
    xs, params = synthetic()
    node, weight = roots_hermitenorm(180)
    z = np.stack(np.meshgrid(node, node), -1).reshape(-1, 2)
    prior = np.outer(weight, weight).ravel() / (2 * np.pi)
    x = params.mean + 0.3 * (xs[3] - params.mean)
    residual = np.asarray(x) - z @ np.asarray(params.weight).T - np.asarray(params.mean)
    joint = prior * np.exp(norm.logpdf(residual, scale=0.8**0.5).sum(axis=1))
    q = ppca.posterior(params, x)
    assert np.allclose(ppca.log_marginal(params, x), np.log(joint.sum()), rtol=1e-9)
    bayes = joint / joint.sum()
    assert np.allclose(q.mean(), bayes @ z, rtol=0, atol=1e-9)
    centred = z - np.asarray(q.mean())
    second = np.einsum("n,ni,nj->ij", bayes, centred, centred)
    assert np.allclose(q.scale_tril @ q.scale_tril.T, second, rtol=0, atol=1e-9)


def test_posterior_conditions_the_joint(x64):
    # by the d x d route: E[z|x] = W'C^-1 (x - mu), Cov = I - W'C^-1 W, C = WW' + s2 I
    xs = digits()
    params = ppca.maximum_likelihood(xs, 8)
    gain = np.linalg.solve(covariance(params), params.weight).T
    q = ppca.posterior(params, xs[5])
    assert close(q.loc, gain @ (xs[5] - params.mean))
    assert close(q.scale_tril @ q.scale_tril.T, np.eye(8) - gain @ params.weight)
    assert close(q.scale_tril, jnp.tril(q.scale_tril))


@pytest.mark.thorough
def test_every_bound_is_log_p_at_the_exact_posterior(x64):
    # ELBO = IWAE_k = log p(x), each log-weight too: no variance, whatever the key
    xs = digits()[:5]
    params = ppca.maximum_likelihood(digits(), 8)
    exact = multivariate_normal.logpdf(xs, params.mean, covariance(params))
    model = ppca.as_vae(params)

    @jax.jit
    @jax.vmap
    def bounds(key, x):
        a, b, c = jax.random.split(key, 3)
        return (
            elbo(model, a, x, kl=sampled_kl)[0],
            *iwae(model, b, x, num_samples=5),
            log_marginal(model, c, x, num_samples=7, chunk=3),
        )

    one, several, log_w, (value, error, ess, *_) = bounds(
        jax.random.split(jax.random.key(0), 5), xs
    )
    for bound in (one, several, value):
        assert np.allclose(bound, exact, rtol=1e-10, atol=0)
    assert np.allclose(log_w, exact[:, None], rtol=1e-10, atol=0)
    assert np.ptp(log_w, axis=1).max() < 1e-10
    assert error.max() < 1e-6  # sqrt of a rounding error
    assert close(ess, np.full(5, 7.0))


def test_analytic_elbo_is_log_p_in_mean(x64):
    # with the rate in closed form the draws vary, about log p(x)
    xs, params = synthetic()
    model, x = ppca.as_vae(params), xs[0]
    keys = jax.random.split(jax.random.key(1), 4000)
    bounds = jax.jit(jax.vmap(lambda key: elbo(model, key, x)[0]))(keys)
    error = bounds.std() / 4000**0.5
    assert error > 1e-3
    assert abs(bounds.mean() - ppca.log_marginal(params, x)) < 4 * error


class Encoder(NamedTuple):
    """An encoder with parameters of its own, set to the exact posterior's."""

    loc: Any
    tril: Any

    def __call__(self, x):
        return MultivariateNormal(self.loc, self.tril)


def test_sticking_the_landing(x64):
    # at the exact posterior the gradient in q is identically 0: for every draw, not in mean
    xs, params = synthetic()
    q = ppca.posterior(params, xs[0])

    def gradient(key, estimator):
        model = lambda e: ppca.as_vae(params)._replace(encode=e)
        bound = lambda e: elbo(model(e), key, xs[0], kl=sampled_kl, gradient=estimator)[0]
        return jax.grad(bound)(Encoder(q.loc, q.scale_tril))

    keys = jax.random.split(jax.random.key(2), (2, 100))
    stuck = jax.jit(jax.vmap(lambda key: gradient(key, sticking_the_landing)))(keys[0])
    noisy = jax.jit(jax.vmap(lambda key: gradient(key, pathwise)))(keys[1])
    assert jnp.max(jnp.abs(stuck.loc)) < 1e-10
    assert jnp.max(jnp.abs(stuck.tril)) < 1e-10
    assert jnp.min(noisy.loc.std(axis=0)) > 0.1


# a diagonal posterior


class SigmaPoints(Normal):
    """Draws mu +- sqrt(d) sigma_i e_i in turn, the key's seed being the turn: over all 2d turns the
    mean of what is quadratic in z is exact."""

    def sample_and_log_prob(self, key):
        d = self.loc.size
        eps = d**0.5 * jnp.concatenate([jnp.eye(d), -jnp.eye(d)])[jax.random.key_data(key)[-1]]
        z = self.loc + self.scale * eps
        return z, self.log_prob(z)


@pytest.mark.parametrize(("rotation", "lost"), [(np.eye(8), 0.0), (hadamard(8) / 8**0.5, 0.515805)])
def test_rotation_costs_a_diagonal_posterior(rotation, lost, x64):
    # targets: the best diagonal q (P's own diagonal) loses 1/2 [sum log diag P - log|P|],
    # P = M / s2, at every x: .515805 nats for Hadamard / sqrt 8, nothing for axis-aligned W
    best = ppca.maximum_likelihood(digits(), 8)
    params = best._replace(weight=best.weight @ rotation)
    precision = np.asarray(params.weight.T @ params.weight / params.variance) + np.eye(8)
    gap = (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]) / 2
    assert abs(gap - lost) < 5.1e-7

    scale = jnp.asarray(1 / np.sqrt(np.diag(precision)))
    model = ppca.as_vae(params)._replace(
        encode=Partial(lambda x: SigmaPoints(ppca.posterior(params, x).loc, scale))
    )
    xs = digits()[:20]
    elbos = jax.jit(jax.vmap(elbo, (None, None, 0)))
    turns = jnp.stack([elbos(model, jax.random.key(turn), xs)[0] for turn in range(16)])
    exact = multivariate_normal.logpdf(xs, best.mean, covariance(best))
    assert np.allclose(exact - turns.mean(axis=0), gap, rtol=0, atol=1e-9)


@pytest.mark.thorough
def test_rotation_costs_a_full_posterior_nothing(x64):
    # log p(x) knows W only through W W', and the exact posterior turns with W
    best = ppca.maximum_likelihood(digits(), 8)
    params = best._replace(weight=best.weight @ (hadamard(8) / 8**0.5))
    x = digits()[7]
    log_w = log_weights(ppca.as_vae(params), jax.random.key(3), x, num_samples=4)
    exact = multivariate_normal.logpdf(x, best.mean, covariance(best))
    assert np.allclose(log_w, exact, rtol=1e-10, atol=0)


# EM


def run_em(params, xs, steps):
    """The parameters after 0, 1, ..., `steps` steps, stacked."""
    _, path = jax.jit(
        lambda p: jax.lax.scan(lambda p, _: (ppca.em_step(p, xs), p), p, length=steps + 1)
    )(params)
    return path


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_em_never_falls_and_ends_at_the_optimum(seed, x64):
    # 1000 steps from random parameters: monotone to rounding, and the optimum's value to 1e-9
    xs, start = synthetic(seed)
    path = run_em(start, xs, 1000)
    log_p = jax.jit(
        jax.vmap(lambda p: jnp.mean(jax.vmap(ppca.log_marginal, (None, 0))(p, xs)), in_axes=0)
    )(path)
    assert jnp.diff(log_p).min() > -1e-12
    optimum = mean_log_likelihood(ppca.maximum_likelihood(xs, 2), xs)
    assert log_p[0] < optimum - 0.1
    assert abs(log_p[-1] - optimum) < 1e-9


def test_em_never_falls_from_a_wrong_mean(x64):
    # rows about (10, 10) on a line through 0: parameters that explain the offset by z
    rng = np.random.default_rng(0)
    xs = jnp.asarray(10 + rng.normal(size=(100, 1)) + 0.01 * rng.normal(size=(100, 2)))
    start = PPCA(jnp.full((2, 1), 10.0), jnp.zeros(2), jnp.array(1e-4))
    path = run_em(start, xs, 20)
    log_p = [mean_log_likelihood(PPCA(*p), xs) for p in zip(*path, strict=True)]
    assert np.diff(log_p).min() > -1e-12


def test_em_reaches_the_digits_optimum(x64):
    # targets: 14.209788 at k = 8, from random W in 150 steps, to 1e-9 of the closed form
    xs, rng = digits(), np.random.default_rng(0)
    start = PPCA(jnp.asarray(rng.normal(size=(64, 8))), xs.mean(axis=0), jnp.array(1.0))
    last = jax.tree.map(lambda v: v[-1], run_em(start, xs, 150))
    optimum = mean_log_likelihood(ppca.maximum_likelihood(xs, 8), xs)
    assert abs(optimum - 14.209788) < 5.1e-7
    assert abs(mean_log_likelihood(last, xs) - optimum) < 1e-9


def test_e_step_moments(x64):
    # E z and E zz' by conditioning the joint Gaussian of (x, z): gain = W'(WW' + s2 I)^-1
    xs, params = synthetic()
    gain = np.linalg.solve(covariance(params), params.weight).T
    spread = np.eye(2) - gain @ np.asarray(params.weight)
    mean = (np.asarray(xs) - np.asarray(params.mean)) @ gain.T
    moments = ppca.e_step(params, xs)
    assert close(moments.mean, mean)
    assert close(moments.covariance, np.broadcast_to(spread, moments.covariance.shape))


@pytest.mark.thorough
def test_m_step_is_the_maximum(x64):
    # of E log p(x, z), the expectation over any posteriors taken at their sigma points (exact for
    # a quadratic): no slope in W and s2, and lower all around
    rng = np.random.default_rng(4)
    xs, _ = synthetic()
    loc, tril = rng.normal(size=(200, 2)), np.tril(rng.normal(size=(200, 2, 2)))
    steps = 2**0.5 * np.concatenate([tril, -tril], axis=2).swapaxes(1, 2)
    z = loc[:, None] + steps  # [n, 2k, k]
    moments = ppca.Moments(jnp.asarray(loc), jnp.asarray(tril @ tril.swapaxes(1, 2)))
    params = ppca.m_step(xs, moments)

    def expected(weight, variance):
        predicted = jnp.einsum("dk,nsk->nsd", weight, z) + xs.mean(axis=0)[None, None]
        return jnp.mean(jax.scipy.stats.norm.logpdf(xs[:, None], predicted, jnp.sqrt(variance)))

    slopes = jax.jit(jax.grad(expected, (0, 1)))(params.weight, params.variance)
    assert max(jnp.max(jnp.abs(slope)) for slope in slopes) < 1e-10
    top = expected(params.weight, params.variance)
    for _ in range(20):
        weight = params.weight + 0.01 * rng.normal(size=(5, 2))
        assert expected(weight, params.variance * np.exp(0.01 * rng.normal())) < top
    assert close(params.mean, xs.mean(axis=0))


def test_the_likelihood_keeps_its_digits_at_a_small_variance():
    rng = np.random.default_rng(0)
    weight, x = np.ones((100, 1)), 0.7 + 1e-3 * rng.normal(size=100)
    for variance in (1e-2, 1e-4, 1e-6):
        covariance = weight @ weight.T + variance * np.eye(100)
        square = x @ np.linalg.solve(covariance, x)
        exact = -0.5 * (100 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + square)
        arrays = (jnp.asarray(a, jnp.float32) for a in (weight, np.zeros(100), variance))
        found = ppca.log_marginal(ppca.PPCA(*arrays), jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, exact, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_data_of_no_other_variance_have_none(seed):
    rng = np.random.default_rng(seed)
    xs = jnp.asarray(rng.normal(size=(50, 1)) @ rng.normal(size=(1, 5)), jnp.float32)
    assert ppca.maximum_likelihood(xs, 1).variance >= 0.0


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_a_small_variance_is_found_in_single_precision(noise):
    """Where s2 is 1e-10 of the data's, by EM that never falls and in closed form."""
    rng = np.random.default_rng(0)
    weight = 10.0 * rng.normal(size=(20, 3))
    xs = rng.normal(size=(500, 3)) @ weight.T + noise * rng.normal(size=(500, 20))
    xs = xs.astype(np.float32)
    wide = xs.astype(float) - xs.astype(float).mean(axis=0)
    exact = np.linalg.eigvalsh(wide.T @ wide / 500)[:17].mean()
    params = PPCA(*(jnp.asarray(a, jnp.float32) for a in (weight, xs.mean(axis=0), noise**2)))
    for _ in range(4):
        params = ppca.em_step(params, xs)
    np.testing.assert_allclose(params.variance, exact, rtol=0.02)
    np.testing.assert_allclose(ppca.maximum_likelihood(xs, 3).variance, exact, rtol=0.02)


def test_fewer_examples_than_latents():
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)))
    params = ppca.maximum_likelihood(xs, 5)
    assert params.weight.shape == (8, 5)
    centred = xs - params.mean[None]
    found = params.weight @ params.weight.T + params.variance * jnp.eye(8)
    assert jnp.allclose(found, centred.T @ centred / 3, atol=1e-5)
