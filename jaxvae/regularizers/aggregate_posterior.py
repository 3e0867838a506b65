"""Penalties that look at a batch of codes: how far q(z), their mixture, is from p(z).

Each gathers the codes of the batch that `batched` maps and computes its statistic of arrays [B, d]
once. Outside `batched`, or in a batch of one row, there is none: a ValueError.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxvae.batching import BATCH, gather
from jaxvae.checks import Count, Key, Scalar, checked
from jaxvae.distributions.independent import factors
from jaxvae.evaluation.decompositions import decompose, marginals, minibatch_stratified
from jaxvae.protocols import mean_of, method_of
from jaxvae.regularizers.penalties import LatentSample
from jaxvae.regularizers.two_samples import Kernel, inverse_multiquadric, mmd, sliced_wasserstein


@checked
def mmd_penalty(code: LatentSample, key: Key, *, kernel: Kernel = inverse_multiquadric) -> Array:
    """MMD of the batch's codes to as many draws of the prior: with `beta` = lambda, WAE-MMD.

    Tolstikhin et al. 2018, algorithm 2, whose encoder may be random.

    >>> from jaxvae import StandardNormal, batched
    >>> code = lambda z: LatentSample(None, StandardNormal((2,)), z, None, None)
    >>> charge = batched(lambda _, key, z: (mmd_penalty(code(z), key), None))
    >>> zs = jax.random.normal(jax.random.key(1), (250, 2))
    >>> near, far = (charge(None, jax.random.key(0), zs + mean)[0] for mean in (0.0, 1.0))
    >>> bool(near < 0.01 < far)
    True
    """
    return mmd(*_codes_and_draws(code, key), kernel=kernel)


@checked
def sliced_penalty(code: LatentSample, key: Key) -> Array:
    """Sliced Wasserstein distance of the batch's codes to draws of the prior: with `beta`, SWAE.

    Every example brings a draw of the prior and a random direction. Kolouri et al. 2019, alg. 1.

    >>> from jaxvae import StandardNormal, batched
    >>> code = lambda z: LatentSample(None, StandardNormal((2,)), z, None, None)
    >>> charge = batched(lambda _, key, z: (sliced_penalty(code(z), key), None))
    >>> zs = jax.random.normal(jax.random.key(1), (250, 2))
    >>> near, far = (charge(None, jax.random.key(0), zs + mean)[0] for mean in (0.0, 1.0))
    >>> bool(near < 0.1 < far)
    True
    """
    prior_key, direction_key = jax.random.split(key)
    z, draws = _codes_and_draws(code, prior_key)
    direction = jax.random.normal(direction_key, z.shape[1:], z.dtype)
    return sliced_wasserstein(z, draws, gather(direction))


@checked
def info_penalty(
    code: LatentSample,
    key: Key,
    *,
    alpha: Scalar,
    weight: Scalar,
    kernel: Kernel = inverse_multiquadric,
) -> Array:
    """(1 - alpha) rate + (alpha + lambda - 1) MMD(q(z), p(z)): InfoVAE.

    alpha = 0, lambda = 1 is the ELBO, alpha = 1 the MMD alone; alpha towards 1 asks for more
    mutual information between x and z.
    Zhao, Song & Ermon 2019, "InfoVAE", its last divergence by MMD.

    Args:
      alpha: at most 1.
      weight: lambda, positive.

    >>> from jaxvae import StandardNormal, batched
    >>> code = lambda z: LatentSample(None, StandardNormal((2,)), z, None, jnp.sum(z))
    >>> charge = batched(lambda _, k, z: (info_penalty(code(z), k, alpha=0.0, weight=1.0), None))
    >>> float(charge(None, jax.random.key(0), jnp.ones((3, 2)))[0])  # the rate alone
    2.0
    """
    distance = mmd_penalty(code, key, kernel=kernel)
    return (1.0 - alpha) * code.rate + (alpha + weight - 1.0) * distance


@checked
def tc_penalty(
    code: LatentSample,
    key: Key | None,
    *,
    dataset_size: Count,
    information: Scalar = 1.0,
    correlation: Scalar = 1.0,
    dimension_wise: Scalar = 1.0,
    weighting: Callable[[int, int], Array] = minibatch_stratified,
) -> Array:
    """alpha I(x; z) + beta TC(z) + gamma sum_j KL(q(z_j) || p(z_j)), from a batch: beta-TCVAE.

    With all three weights 1 it is the sampled rate, exactly and whatever the batch.
    Chen et al. 2018, equation 4; the weightings: appendix C.

    Args:
      code: the code of one example of a batch; p factorises over the latents, and q does or is
        Gaussian.
      weighting: how a batch stands for the data: `minibatch_stratified`, `minibatch_weighted`.

    >>> from jaxvae import Normal, StandardNormal, batched
    >>> q, p = lambda z: Normal(z, jnp.ones(2)), StandardNormal((2,))
    >>> code = lambda z: LatentSample(q(z), p, z, q(z).log_prob(z), None)
    >>> charge = batched(lambda _, key, z: (tc_penalty(code(z), key, dataset_size=9), None))
    >>> zs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> round(float(charge(None, jax.random.key(0), zs)[0]), 4)  # the mean of |z|^2 / 2
    1.25
    """
    del key
    qs = gather(marginals(code.q))
    size = len(jax.tree.leaves(qs)[0])
    row = weighting(size, dataset_size)[jax.lax.axis_index(BATCH)].astype(code.log_q.dtype)
    parts = decompose(qs, factors(code.p), code.z.reshape(-1), code.log_q, row)
    return (
        information * parts.mutual_information
        + correlation * parts.total_correlation
        + dimension_wise * parts.dimension_wise_kl
    )


@checked
def dip_1_penalty(
    code: LatentSample, key: Key | None, *, off_diagonal: Scalar, diagonal: Scalar
) -> Array:
    """DIP-VAE-I's penalty, with C = Cov[mu(x)] (Kumar, Sattigeri & Balakrishnan 2018, equation 6).

    rate + lambda_od sum_{i != j} C_ij^2 + lambda_d sum_i (C_ii - 1)^2

    The mean of q is an array.

    >>> from jaxvae import Normal, batched
    >>> code = lambda mu: LatentSample(Normal(mu, 1.0), None, mu, None, 0.0)
    >>> charge = lambda _, k, mu: (dip_1_penalty(code(mu), k, off_diagonal=10.0, diagonal=1.0), 0)
    >>> mus = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # C is all ones
    >>> float(batched(charge)(None, jax.random.key(0), mus)[0])
    20.0
    """
    del key
    return _decorrelated(code, jnp.zeros(()), off_diagonal, diagonal)


@checked
def dip_2_penalty(
    code: LatentSample, key: Key | None, *, off_diagonal: Scalar, diagonal: Scalar
) -> Array:
    """As `dip_1_penalty` with C = Cov[mu(x)] + E[Sigma(x)], the covariance of q(z): DIP-VAE-II.

    q has `mean()` and `covariance()`. Kumar, Sattigeri & Balakrishnan 2018, equation 7.

    >>> from jaxvae import Normal, batched
    >>> code = lambda mu: LatentSample(Normal(mu, 1.0), None, mu, None, 0.0)
    >>> charge = lambda _, k, mu: (dip_2_penalty(code(mu), k, off_diagonal=10.0, diagonal=1.0), 0)
    >>> mus = jnp.array([[1.0, 1.0], [-1.0, -1.0]])  # C is all ones, and 2 on the diagonal
    >>> float(batched(charge)(None, jax.random.key(0), mus)[0])
    22.0
    """
    del key
    instead = "take dip_1_penalty, which needs a mean alone"
    sigma = method_of(code.q, "covariance", "dip_2_penalty", instead)()
    return _decorrelated(code, sigma, off_diagonal, diagonal)


def _decorrelated(
    code: LatentSample, sigma: Array, off_diagonal: Scalar, diagonal: Scalar
) -> Array:
    mu = gather(ravel_pytree(mean_of(code.q))[0])
    centred = mu - jnp.mean(mu, axis=0, keepdims=True)
    c = centred.T @ centred / len(mu) + jnp.mean(gather(sigma), axis=0)
    variance = jnp.diagonal(c)
    others = jnp.sum(jnp.square(c)) - jnp.sum(jnp.square(variance))
    return code.rate + off_diagonal * others + diagonal * jnp.sum(jnp.square(variance - 1.0))


def _codes_and_draws(code: LatentSample, key: Key) -> tuple[Array, Array]:
    return gather(ravel_pytree(code.z)[0]), gather(ravel_pytree(code.p.sample(key))[0])
