"""How good a model is: estimates of log p(x) with their error, and signs of collapse."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae.checks import check_positive
from jaxvae.protocols import Model, log_likelihood, mean_of, posterior, prior
from jaxvae.weights import log_weight

Array = jax.Array


class LogMarginal(NamedTuple):
    """An estimate of log p(x) for one example, and whether to believe it.

    Args:
      value: log 1/N sum_i w_i, in nats; low on average, by about `standard_error`^2 / 2.
      standard_error: of the value, by the delta method: sd(w) / (mean(w) sqrt N), in nats. Infinite
        for a single sample. Only as good as the weights: when few of them dominate it is too small.
      ess: effective sample size (sum w)^2 / sum w^2, between 1 and N. Near 1, disbelieve the rest.
    """

    value: Array
    standard_error: Array
    ess: Array


def log_marginal(
    model: Model, key: Array, x: Any, *, num_samples: int, chunk: int = 100
) -> LogMarginal:
    """log p(x) by importance sampling from q: log 1/N sum_i p(x, z_i) / q(z_i|x), z_i ~ q(z|x).

    The samples are those of `log_weights` with the same key, `chunk` of them at a time, so memory
    does not grow with N and the chunk does not change the result. For a data set, `jax.lax.map`
    over keys and examples with a `batch_size`.

    Args:
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: N, a Python integer.
      chunk: how many samples are held at once, a Python integer.

    Returns:
      A `LogMarginal`: the value in nats, its standard error and the effective sample size.

    Raises:
      ValueError: `num_samples` or `chunk` is no integer of at least one.

    >>> from jaxvae import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> x = jnp.ones(3)
    >>> estimate = log_marginal(ppca.as_vae(linear), jax.random.key(0), x, num_samples=10)
    >>> bool(jnp.isclose(estimate.value, ppca.log_marginal(linear, x), atol=1e-4))
    True

    Burda, Grosse & Salakhutdinov 2016, section 5; standard error: Owen 2013, chapter 9.
    """
    q = posterior(model, x)
    return _estimate(lambda key: log_weight(model, key, x, q), key, num_samples, chunk)


def prior_sampling(
    model: Model, key: Array, x: Any, *, num_samples: int, chunk: int = 100
) -> LogMarginal:
    """The naive estimate log 1/N sum_i p(x|z_i), z_i ~ p(z): right in the limit, never near.

    Almost no draw of the prior explains a given x, so the few that come nearest carry the whole sum
    (`ess` near 1) and the value falls short by an amount that grows with the latent dimension. It
    is here to be compared with `log_marginal`.

    Args:
      model: any `Model`; only `prior` and `decode` are used.
      key: a PRNG key.
      x: one example.
      num_samples: N, a Python integer.
      chunk: how many samples are held at once, a Python integer.

    Returns:
      A `LogMarginal`: the value in nats, its standard error and the effective sample size.

    Raises:
      ValueError: `num_samples` or `chunk` is no integer of at least one.
    """

    def log_p_x_given_z(key: Array) -> Array:  # the weight at q = p(z)
        return log_likelihood(model, x, prior(model).sample(key))

    return _estimate(log_p_x_given_z, key, num_samples, chunk)


def _estimate(
    draw_log_weight: Callable[[Array], Array], key: Array, num_samples: int, chunk: int
) -> LogMarginal:
    """Stream log-weights, keeping their maximum m, sum w / e^m and sum (w / e^m)^2."""
    check_positive("log_marginal", "num_samples", num_samples)
    check_positive("log_marginal", "chunk", chunk)
    chunk = min(chunk, num_samples)

    def draw(index: Array) -> Array:
        log_w = draw_log_weight(jax.random.fold_in(key, index))
        return jnp.where(index < num_samples, log_w, -jnp.inf)  # the last chunk may be padded

    def accumulate(carry: tuple[Array, Array, Array], start: Array) -> tuple[Any, None]:
        m, total, total_square = carry
        log_w = jax.vmap(draw)(start + jnp.arange(chunk))
        m_new = jnp.maximum(m, jnp.max(log_w))
        shift = jnp.where(jnp.isneginf(m_new), 0.0, m_new)  # all weights zero so far
        w, keep = jnp.exp(log_w - shift), jnp.exp(m - shift)
        carry = (m_new, total * keep + jnp.sum(w), total_square * keep**2 + jnp.sum(w**2))
        return carry, None

    dtype = jax.eval_shape(draw_log_weight, key).dtype
    zero = jnp.zeros((), dtype)
    starts = jnp.arange(0, num_samples, chunk)
    (m, total, total_square), _ = jax.lax.scan(accumulate, (zero - jnp.inf, zero, zero), starts)
    n = num_samples
    value = m + jnp.log(total / n)
    # sd(w)^2 / (n mean(w)^2), with the unbiased variance
    relative_variance = (n * total_square / total**2 - 1.0) / (n - 1) if n > 1 else zero + jnp.inf
    standard_error = jnp.sqrt(jnp.maximum(relative_variance, 0.0))
    return LogMarginal(value, standard_error, total**2 / total_square)


def active_units(model: Model, xs: Any, *, threshold: float = 0.01) -> Array:
    """Which latents the model uses: those whose posterior mean varies over the data.

    A_i = Var_x(E_q[z_i|x]) > threshold

    Args:
      model: any `Model` whose posterior has `mean()`, an array.
      xs: examples, leading axis n.
      threshold: least variance of an active unit.

    Returns:
      Booleans in the shape of z; their sum is the number of active units.

    Burda, Grosse & Salakhutdinov 2016, section 5.2.
    """
    means = jax.vmap(lambda x: mean_of(posterior(model, x)))(xs)
    return jnp.var(means, axis=0) > threshold
