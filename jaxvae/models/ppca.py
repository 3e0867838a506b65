"""Probabilistic PCA: the linear VAE, where the posterior, log p(x) and EM are all exact.

p(z) = N(0, I),   p(x|z) = N(W z + mu, s2 I)

Everything a VAE approximates can be had here in closed form, which makes it the yardstick for the
rest of the library. Tipping & Bishop 1999, "Probabilistic principal component analysis".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve, solve_triangular

from jaxvae.checks import check_shape
from jaxvae.distributions import MultivariateNormal, Normal, StandardNormal
from jaxvae.model import VAE
from jaxvae.pytrees import shown


@shown
class PPCA(NamedTuple):
    """The linear-Gaussian model: `weight` W [d, k], `mean` mu [d], `variance` s2 >= 0, a scalar.

    >>> params = PPCA(jnp.ones((2, 1)), jnp.zeros(2), jnp.array(1.0))
    >>> as_vae(params).decode(jnp.array([3.0])).mean().tolist()  # W z + mu
    [3.0, 3.0]
    """

    weight: Any
    mean: Any
    variance: Any


@shown
class Moments(NamedTuple):
    """Posterior moments of every example: E[z_n|x_n], [n, k], and Cov[z_n|x_n], [n, k, k]."""

    mean: Array
    covariance: Array


def posterior(params: PPCA, x: Array) -> MultivariateNormal:
    """p(z|x) = N(M^-1 W'(x - mu), s2 M^-1), M = W'W + s2 I: Tipping & Bishop 1999.

    >>> q = posterior(PPCA(jnp.ones((2, 1)), jnp.zeros(2), jnp.array(1.0)), jnp.array([1.0, 2.0]))
    >>> round(float(q.loc[0]), 4), round(float(q.scale_tril[0, 0]), 4)  # 3 / M and M^-1/2, M = 3
    (1.0, 0.5774)
    """
    check_shape("ppca.posterior", "x", x, jnp.shape(params.mean))
    chol = _cholesky_m(params)
    loc = cho_solve((chol, True), params.weight.T @ (x - params.mean))
    # s2 M^-1 = s2 C^-T C^-1 needs a lower factor: the Cholesky factor of the inverse
    inverse = cho_solve((chol, True), jnp.eye(loc.size, dtype=loc.dtype))
    return MultivariateNormal(loc, jnp.sqrt(params.variance) * jnp.linalg.cholesky(inverse))


def log_marginal(params: PPCA, x: Array) -> Array:
    """log p(x) = log N(x; mu, W W' + s2 I), exactly, at the cost of a k x k factorisation; s2 > 0.

    -1/2 [ d log 2 pi + (d - k) log s2 + log|M| + (|r|^2 - |C^-1 W'r|^2) / s2 ],
    r = x - mu, M = C C'

    >>> params = PPCA(jnp.ones((2, 1)), jnp.zeros(2), jnp.array(1.0))
    >>> round(float(log_marginal(params, jnp.zeros(2))), 5)  # -log 2 pi - 1/2 log 3
    -2.38718
    """
    check_shape("ppca.log_marginal", "x", x, jnp.shape(params.mean))
    d, k = params.weight.shape
    chol = _cholesky_m(params)
    r = x - params.mean
    explained = solve_triangular(chol, params.weight.T @ r, lower=True)
    log_det = (d - k) * jnp.log(params.variance) + 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol)))
    mean = solve_triangular(chol.T, explained, lower=False)  # of z given x
    # |r|^2 - |C^-1 W' r|^2, which would cancel where the variance is small
    square = jnp.sum((r - params.weight @ mean) ** 2) + params.variance * jnp.sum(mean**2)
    mahalanobis = square / params.variance
    return -0.5 * (d * jnp.log(2.0 * jnp.pi) + log_det + mahalanobis)


def e_step(params: PPCA, xs: Array) -> Moments:
    """Posterior moments of z for every example: Tipping & Bishop 1999.

    >>> params = PPCA(jnp.ones((2, 1)), jnp.zeros(2), jnp.array(1.0))
    >>> mean, covariance = e_step(params, jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> mean.round(4).tolist(), covariance.shape
    ([[1.0], [3.0]], (2, 1, 1))
    """

    def moments(x: Array) -> Moments:
        q = posterior(params, x)
        return Moments(q.loc, q.scale_tril @ q.scale_tril.T)

    return jax.vmap(moments)(xs)


def m_step(xs: Array, moments: Moments) -> PPCA:
    """The parameters that maximise the expected complete log-likelihood, given the moments.

    W = [sum_n (x_n - mu) E z_n'] [sum_n E z_n z_n']^-1, mu the mean of the data, and s2 the mean
    residual, 1/(nd) sum_n ( |x_n - mu - W E z_n|^2 + tr(W Cov[z_n] W') ), where nothing cancels.
    Tipping & Bishop 1999.

    >>> xs, zs = jnp.array([[2.0, 1.0], [-2.0, -1.0]]), jnp.array([[1.0], [-1.0]])  # z for certain
    >>> params = m_step(xs, Moments(zs, jnp.zeros((2, 1, 1))))
    >>> params.weight.round(4).tolist(), round(float(params.variance), 4)
    ([[2.0], [1.0]], 0.0)
    """
    n, d = xs.shape
    mean = jnp.mean(xs, axis=0)
    r = xs - mean[None]
    covariance = jnp.sum(moments.covariance, axis=0)
    second = moments.mean.T @ moments.mean + covariance
    weight = jnp.linalg.solve(second, moments.mean.T @ r).T
    unexplained = jnp.sum((r - moments.mean @ weight.T) ** 2)
    residual = unexplained + jnp.sum(weight @ covariance * weight)
    return PPCA(weight, mean, residual / (n * d))


def em_step(params: PPCA, xs: Array) -> PPCA:
    """One step of EM: `m_step` after `e_step`. The log-likelihood never falls.

    >>> xs = jax.random.normal(jax.random.key(0), (50, 3))
    >>> params = PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(1.0))
    >>> before, after = (
    ...     jax.vmap(log_marginal, (None, 0))(p, xs).mean() for p in (params, em_step(params, xs))
    ... )
    >>> bool(after > before)
    True
    """
    # the likelihood is highest at the data's mean whatever W and s2, and the M-step presumes it
    return m_step(xs, e_step(params._replace(mean=jnp.mean(xs, axis=0)), xs))


def maximum_likelihood(xs: Array, num_latents: int) -> PPCA:
    """The optimum in closed form: W = U (L - s2)^(1/2), s2 the mean of the discarded eigenvalues.

    U and L are the k < d leading eigenvectors and eigenvalues of the data's covariance. Any W R
    with R orthogonal is as good. Tipping & Bishop 1999.

    >>> xs = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 2 and 1/2
    >>> params = maximum_likelihood(xs, 1)
    >>> round(float(params.variance), 4), round(abs(float(params.weight[0, 0])), 4)  # sqrt 3/2
    (0.5, 1.2247)
    """
    n, d = xs.shape
    if not 1 <= num_latents < d:
        raise ValueError(f"num_latents is {num_latents}, expected 1 <= num_latents < {d}")
    mean = jnp.mean(xs, axis=0)
    r = xs - mean[None]
    r = jnp.pad(r, ((0, max(num_latents - n, 0)), (0, 0)))
    # of r itself: r'r squares its singular values, of which the small ones would be rounding
    _, singular, vectors = jnp.linalg.svd(r, full_matrices=False)  # descending
    eigenvalues = singular**2 / n
    variance = jnp.sum(eigenvalues[num_latents:]) / (d - num_latents)
    excess = jnp.maximum(eigenvalues[:num_latents] - variance, 0.0)  # negative only by rounding
    weight = vectors[:num_latents].T * jnp.sqrt(excess)[None]
    return PPCA(weight, mean, variance)


def as_vae(params: PPCA) -> VAE:
    """The model as a `VAE` whose encoder is the exact posterior.

    Every bound of log-weights equals log p(x), draw by draw, as does `elbo` with `kl=sampled_kl`;
    with the KL in closed form `elbo` does in the mean.

    >>> from jaxvae import elbo, sampled_kl
    >>> params, x = PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)), jnp.ones(3)
    >>> bound, _ = elbo(as_vae(params), jax.random.key(0), x, kl=sampled_kl)
    >>> bool(jnp.isclose(bound, log_marginal(params, x), rtol=1e-4))
    True
    """
    return VAE(
        encode=jax.tree_util.Partial(posterior, params),
        decode=jax.tree_util.Partial(_likelihood, params),
        prior=StandardNormal((params.weight.shape[1],)),
    )


def _likelihood(params: PPCA, z: Array) -> Normal:
    check_shape("ppca.as_vae", "z", z, params.weight.shape[1:])
    return Normal(params.weight @ z + params.mean, jnp.sqrt(params.variance))


def _cholesky_m(params: PPCA) -> Array:
    """C with C C' = M = W'W + s2 I."""
    m = params.weight.T @ params.weight
    return jnp.linalg.cholesky(m + params.variance * jnp.eye(m.shape[0], dtype=m.dtype))
