"""Estimates of log p(x) that report their own error."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weights import importance_term
from jaxvae.bounds.kl import auto_kl
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import Count, Key, Tree, check_shape, checked
from jaxvae.evaluation.chunks import at_once, chunked
from jaxvae.evaluation.rows import check_values, model_at, paired
from jaxvae.model import Model, likelihood, log_likelihood, posterior, prior
from jaxvae.protocols import any_part, default_promotion, is_certain, mean_of, sample_and_log_prob
from jaxvae.pytrees import shown, wide

CHUNK = 250  # samples at a time, at most
FEWEST = 25  # samples of which the largest have a tail to look at
EQUAL = 1e-3  # nats between the weights of an exact posterior, by rounding: 4e-5 on the digits


@shown
class LogMarginal(NamedTuple):
    """An estimate of log p(x) for one example, and whether to believe it.

    Args:
      value: log 1/N sum_i w_i, in nats; low on average, by about `standard_error`^2 / 2.
      standard_error: of the value, in nats, by the delta method: sd(w) / (mean(w) sqrt N). Infinite
        for a single sample. Only as good as the weights: when few of them dominate it is too small.
      ess: effective sample size (sum w)^2 / sum w^2, between 1 and N. Near 1, disbelieve the rest.
      pareto_k: k-hat, the shape of a generalised Pareto distribution fitted to the largest weights:
        their variance is finite below 1/2. Infinite where there are too few samples (25 at least)
        to fit one, one weight dwarfs all others, or z or a part of it is certain, as the code of a
        VQ-VAE: all samples are then one, and the value is the ELBO, or a bound still. Vehtari et
        al. 2024.
      reliable: False is the warning: k-hat reaches min(1 - 1 / log10 N, 0.7), from where on the
        value is a lower bound in mean and little more. More samples or a better q help.
      rate: KL(q(z|x) || p(z)) in nats, as `auto_kl` has it; 0 at every x is a posterior that has
        collapsed to the prior: such a value is right, of a model that does without its latents.
    """

    value: Array
    standard_error: Array
    ess: Array
    pareto_k: Array
    reliable: Array
    rate: Array


@checked
def log_marginal(
    model: Model, key: Key, x: Tree, *, num_samples: Count, chunk: Count | None = None
) -> LogMarginal:
    """log p(x) by importance sampling from q: log 1/N sum_i p(x, z_i) / q(z_i|x), z_i ~ q(z|x).

    The samples are those of `log_weights` with the same key, `chunk` of them at a time, so that
    memory is that of a chunk and of N scalars, and the chunk does not change the result: by default
    250, or as many as fit into the caches. `evaluate` is for a data set.
    Burda, Grosse & Salakhutdinov 2016; standard error: Owen 2013, chapter 9;
    k-hat: Vehtari et al. 2024.

    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> x = jnp.ones(3)
    >>> estimate = log_marginal(ppca.as_vae(linear), jax.random.key(0), x, num_samples=10)
    >>> bool(jnp.isclose(estimate.value, ppca.log_marginal(linear, x), atol=1e-4))
    True
    """
    check_values("log_marginal", "x", model, x)
    q, term = posterior(model, x), importance_term(model, x)

    def log_w(key: Key) -> Array:
        return term(q, *sample_and_log_prob(q, key))[0]

    one_more = jax.random.fold_in(key, num_samples)
    rate = auto_kl(q, prior(model), *sample_and_log_prob(q, one_more))
    found = _estimate(log_w, key, num_samples, chunk, rate)
    if not any_part(is_certain, q):
        return found
    return found._replace(  # many draws of one z are one sample, and E[w] is no p(x)
        pareto_k=jnp.full_like(found.pareto_k, jnp.inf), reliable=jnp.zeros_like(found.reliable)
    )


@checked
def prior_sampling(
    model: Model, key: Key, x: Tree, *, num_samples: Count, chunk: Count | None = None
) -> LogMarginal:
    """The naive estimate log 1/N sum_i p(x|z_i), z_i ~ p(z): right in the limit, never near.

    Almost no draw of the prior explains a given x, so the few that come nearest carry the whole sum
    (`ess` near 1) and the value falls short by an amount that grows with the latent dimension. It
    is here to be compared with `log_marginal`. `encode` is not used.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> key, x, n = jax.random.key(0), jnp.full(3, 4.0), 1000
    >>> naive, exact = (f(model, key, x, num_samples=n) for f in (prior_sampling, log_marginal))
    >>> bool(naive.ess < 10), round(float(exact.ess))
    (True, 1000)
    """

    def log_p_x_given_z(key: Key) -> Array:  # the weight at q = p(z)
        return log_likelihood(model, x, prior(model).sample(key))

    return _estimate(log_p_x_given_z, key, num_samples, chunk, jnp.zeros(()))


def _estimate(
    draw: Callable[[Array], Array], key: Key, num_samples: Count, chunk: Count | None, rate: Array
) -> LogMarginal:
    def log_weight(k: Array) -> Array:
        return draw(jax.random.fold_in(key, k))

    samples = jnp.arange(num_samples)
    size = chunk or min(CHUNK, at_once(log_weight, samples))
    log_w = wide(jax.lax.map(log_weight, samples, batch_size=size))
    standard_error, ess = spread(log_w)
    k = pareto_k(log_w)
    bar = min(1.0 - 1.0 / math.log10(num_samples), 0.7) if num_samples > 1 else -jnp.inf
    return LogMarginal(log_mean_exp(log_w), standard_error, ess, k, k < bar, rate)


# jitted for those who call an estimator outside jit: one program instead of a hundred primitives
@jax.jit
def spread(log_w: Array) -> tuple[Array, Array]:
    """Standard error of log 1/N sum w (delta method, nats), and the effective sample size."""
    n = log_w.size
    top = jnp.max(log_w)
    w = jnp.exp(log_w - jnp.where(jnp.isneginf(top), 0.0, top))
    ess = jnp.square(jnp.sum(w)) / jnp.sum(jnp.square(w))
    # sd(w)^2 / (n mean(w)^2) with the unbiased variance
    relative_variance = (n / ess - 1.0) / (n - 1) if n > 1 else jnp.full_like(ess, jnp.inf)
    return jnp.sqrt(jnp.maximum(relative_variance, 0.0)), ess


@jax.jit
def pareto_k(log_w: Array) -> Array:
    """The shape k-hat of the largest weights' tail; infinite where none can be fitted.

    Below 1/2 the weights have a finite variance, from 0.7 on do not trust them. Weights that are
    equal but for rounding, as under the exact posterior, have no tail: 0.
    Zhang & Stephens 2009; Vehtari et al. 2024.

    >>> log_w = jax.random.exponential(jax.random.key(0), (10_000,))  # Pareto's w, k = 1
    >>> [bool(pareto_k(k * log_w) < 0.5) for k in (0.0, 0.3, 1.0)]
    [True, True, False]
    """
    from blackjax.diagnostics import psis_weights  # a second that `import jaxvae` need not take

    with default_promotion():
        _, k = psis_weights(log_w)
    k = jnp.where(jnp.isnan(k), jnp.inf, k.astype(log_w.dtype))
    equal = (jnp.max(log_w) - jnp.min(log_w) < EQUAL) & (log_w.size >= FEWEST)
    return jnp.where(equal, 0.0, k)


@checked
def optimal_scale(
    model: Model | Callable[[Any], Model], key: Key, xs: Tree, *, given: Tree | None = None
) -> Array:
    """The best sigma of a Gaussian likelihood that all pixels of all examples share.

    sigma^2 = mean over examples and pixels of (x - E[x|z])^2, z ~ q(z|x): the maximiser of
    sum_n E_q[log N(x_n; mu(z), sigma^2 I)], which `OptimalNormal` trains at. E[x|z] is an array.
    Of a conditional model, a function y -> model, `given` is the y of each row.
    Rybkin, Daniilidis & Levine 2021.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> encode = lambda x: Normal(x, 1e-3 * jnp.ones(2))
    >>> model = VAE(encode, lambda z: Normal(jnp.zeros(2), 1.0), StandardNormal((2,)))
    >>> round(float(optimal_scale(model, jax.random.key(0), jnp.full((5, 2), 3.0))), 4)
    3.0
    """

    rows = paired("optimal_scale", model, xs, given)

    def squared_error(key: Key, row: tuple[Any, Any]) -> Array:
        x, at = row[0], model_at(model, row[1])
        z = posterior(at, x).sample(key)
        x_mean = mean_of(likelihood(at, z))
        check_shape("optimal_scale", "x", x, jnp.shape(x_mean))
        return jnp.mean(jnp.square(x - x_mean))

    keys = jax.random.split(key, len(jax.tree.leaves(xs)[0]))
    return jnp.sqrt(jnp.mean(chunked(lambda row: squared_error(*row), (keys, rows))))
