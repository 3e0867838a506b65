"""The rate taken apart: mutual information, total correlation and what each latent costs alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxvae.batching import number_of_rows
from jaxvae.checks import Count, Key, Tree, checked
from jaxvae.distributions import LowRankNormal, MultivariateNormal, Normal
from jaxvae.distributions.independent import factors
from jaxvae.evaluation.programs import of_each
from jaxvae.evaluation.rows import check_values
from jaxvae.model import Model, posterior, prior
from jaxvae.protocols import Distribution, log_density, sample_and_log_prob
from jaxvae.pytrees import shown, value_of


@shown
class RateDecomposition(NamedTuple):
    """The rate in three parts, in nats: their sum is log q(z|x) - log p(z) at every sample.

    Averages over the data, where q(z) = 1/N sum_n q(z|x_n) is the aggregate posterior.
    Hoffman & Johnson 2016; Chen et al. 2018, equation 2.

    Args:
      mutual_information: log q(z|x) - log q(z), I(x; z): what a code tells of which x it is.
      total_correlation: log q(z) - sum_i log q(z_i): how far the latents are from independent.
      dimension_wise_kl: sum_i [log q(z_i) - log p(z_i)]: how far each is from its prior.
    """

    mutual_information: Array
    total_correlation: Array
    dimension_wise_kl: Array


@checked
def full_batch(batch_size: Count, dataset_size: Count) -> Array:
    """Log-weights [M, M] of log q(z_i) = logsumexp_j (log_weight_ij + log q(z_i|x_j)): 1/M for all.

    Exact where the batch is the data set.

    >>> jnp.exp(full_batch(2, 2)).round(4).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    del dataset_size
    return jnp.full((batch_size, batch_size), -jnp.log(float(batch_size)))


@checked
def minibatch_weighted(batch_size: Count, dataset_size: Count) -> Array:
    """Minibatch-weighted sampling, 1/(N M) for all: low in mean, by up to log N.

    The pair i = j, whose density is the largest, weighs as little as the others, though a data set
    holds it for certain. Chen et al. 2018.

    >>> jnp.exp(minibatch_weighted(2, 4)).round(4).tolist()
    [[0.125, 0.125], [0.125, 0.125]]
    """
    return jnp.full((batch_size, batch_size), -jnp.log(float(dataset_size * batch_size)))


@checked
def minibatch_stratified(batch_size: Count, dataset_size: Count) -> Array:
    """Minibatch-stratified sampling: 1/N for i = j, and the rest shared evenly among the others.

    q(z_i) is then unbiased, and its logarithm low by Jensen's inequality. As the others are drawn
    alike, sharing (N - 1)/N evenly is the weights of Chen et al. 2018, appendix C, averaged over
    which of the others takes the odd one, and less noisy.

    Raises:
      ValueError: a batch of one, or larger than the data set.

    >>> jnp.exp(minibatch_stratified(2, 4)).round(4).tolist()
    [[0.25, 0.75], [0.75, 0.25]]
    """
    if not 2 <= batch_size <= dataset_size:
        raise ValueError(
            f"minibatch_stratified: the batch has {batch_size} rows, expected 2 to {dataset_size}, "
            "the size of the data set"
        )
    others = (dataset_size - 1) / (dataset_size * (batch_size - 1))
    own = jnp.eye(batch_size, dtype=bool)
    return jnp.log(jnp.where(own, 1.0 / dataset_size, others))


@checked
def rate_decomposition(
    model: Model,
    key: Key,
    xs: Tree,
    *,
    dataset_size: int | None = None,
    weighting: Callable[[int, int], Array] = full_batch,
    chunk: Count = 100,
) -> RateDecomposition:
    """The rate over a data set as mutual information + total correlation + dimension-wise KL.

    One z_i ~ q(z|x_i) for each row; log q(z_i) is the log of a mixture over the rows. With the
    whole data set as `xs` that is q(z) itself and all that is random is z: the standard error of
    each part is its spread over the rows / sqrt(n). From a minibatch it is an estimate, biased as
    the two minibatch weightings say.
    Chen, Li, Grosse & Duvenaud 2018, section 3 and appendix C.

    Args:
      model: any `Model` whose prior factorises over the latents; its posterior does or is Gaussian.
      xs: the data set or a minibatch of it, leading axis M.
      dataset_size: N, the rows of the data set; M by default.
      weighting: (M, N) -> [M, M]: `full_batch`, `minibatch_weighted` or `minibatch_stratified`.
      chunk: how many rows of the M x M x d comparisons are held at once.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> encode = lambda x: Normal(jnp.array([1.0, 0.0]) * x, 0.1 * jnp.ones(2))
    >>> model = VAE(encode, lambda z: Normal(z, jnp.ones(2)), StandardNormal((2,)))
    >>> parts = rate_decomposition(model, jax.random.key(0), jnp.array([-2.0, 2.0]))
    >>> information, correlation, _ = (float(jnp.mean(part)) for part in parts)
    >>> round(information, 3), abs(correlation) < 1e-3  # log 2: a bit, in one latent
    (0.693, True)
    """
    if callable(model) and not hasattr(model, "encode"):
        raise TypeError(
            "rate_decomposition: model is a function y -> model, expected a model, as q(z) is that "
            "of all rows and p(z) is one; where that depends on no y give VAE(lambda xy: "
            "model(xy[1]).encode(xy[0]), decode, prior) and the rows (xs, ys)"
        )
    m = number_of_rows(xs, "rate_decomposition")
    check_values("rate_decomposition", "xs", model, xs)
    n = m if dataset_size is None else dataset_size
    qs = of_each(_marginals, model, xs)  # [M, d]
    p = factors(prior(model))
    keys = jax.random.split(key, m)
    z, log_q_given_x = of_each(_drawn, model, (keys, xs))
    z = z.reshape(m, -1)

    rows = (z, log_q_given_x, weighting(m, n).astype(log_q_given_x.dtype))
    return jax.lax.map(lambda row: decompose(qs, p, *row), rows, batch_size=chunk)


def _marginals(_: None, model: Any, x: Tree) -> Any:
    return marginals(posterior(model, x))


def _drawn(_: None, model: Any, row: tuple[Key, Any]) -> tuple[Array, Array]:
    key, x = row
    return sample_and_log_prob(posterior(model, x), key)


def decompose(
    qs: Any, p: Distribution, z: Array, log_q_given_x: Array, log_weight: Array
) -> RateDecomposition:
    """The rate of a sample z [d] taken apart, against the M posteriors of which `qs` are marginals.

    log q(z) = logsumexp_j (log_weight_j + log q(z|x_j)); log_q_given_x is of z's own example.
    """
    each = jax.vmap(factor_log_probs, (0, None))(qs.each, z)  # log q(z_i|x_j), [M, d]
    if qs.whole is None:
        log_q_of_x = jnp.sum(each, axis=1)
    else:
        log_q_of_x = jax.vmap(lambda q: log_density(q, z))(qs.whole)
    log_q = logsumexp(log_weight + log_q_of_x)
    log_q_each = jnp.sum(logsumexp(log_weight[:, None] + each, axis=0))
    log_p = jnp.sum(factor_log_probs(p, z))
    return RateDecomposition(log_q_given_x - log_q, log_q - log_q_each, log_q_each - log_p)


class Marginals(NamedTuple):
    """Every latent's own distribution, and the whole where the latents depend on each other."""

    each: Any
    whole: Any = None


def marginals(d: Distribution) -> Marginals:
    """Of a distribution whose latents are independent, or of a Gaussian."""
    d = value_of(d)
    if isinstance(d, (MultivariateNormal, LowRankNormal)):
        return Marginals(Normal(d.loc, jnp.sqrt(jnp.diagonal(d.covariance()))), d)
    return Marginals(factors(d))


def factor_log_probs(d: Distribution, z: Array) -> Array:
    return jax.vmap(log_density)(d, z)
