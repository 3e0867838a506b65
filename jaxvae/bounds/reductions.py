"""Reductions of K log-weights to a bound: functions [K] -> scalar, in nats.

Any of them, or one of your own, makes a bound of `importance_bound`. The mean, `jnp.mean`, is the
ELBO's. All of them commute with a shift of the log-weights, and none looks at their order but
`mean_log_mean_exp`, which groups them.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxvae.checks import Count, Numbers, Partition, Scalar, check_array, checked
from jaxvae.distributions.special import weighted

LogWeights = Annotated[Array, check_array]
"""[K], in nats."""


@checked
def log_mean_exp(log_w: LogWeights) -> Array:
    """log 1/K sum_k w_k: the importance-weighted bound, Burda et al. 2016.

    >>> float(log_mean_exp(jnp.zeros(5)))
    0.0
    """
    return logsumexp(log_w) - jnp.log(jnp.size(log_w))


@checked
def log_power_mean(log_w: LogWeights, *, power: Scalar) -> Array:
    """log of the power mean of the weights, 1/p log 1/K sum_k w_k^p: many bounds in one.

    p = 1 is the importance-weighted bound, p -> 0 the ELBO (the mean of the log-weights), p = 1 -
    alpha Renyi's bound, p = n the chi-squared upper bound CUBO_n, and p -> inf VR-max. p = `power`,
    any real number, is traced; the mean grows with it.
    Li & Turner 2016; Dieng et al. 2017.

    >>> log_w = jnp.array([0.0, 1.0])
    >>> float(log_power_mean(log_w, power=0.0))
    0.5
    >>> bool(jnp.isclose(log_power_mean(log_w, power=1.0), log_mean_exp(log_w)))
    True
    """
    # p near 0 divides a small logarithm by p: about the mean, expm1 and log1p lose nothing there,
    # and yet nearer two cumulants don't, nor does their slope in p
    mean = jnp.mean(log_w)
    d = jnp.where(jnp.isfinite(mean), log_w - mean, 0.0)
    largest = jnp.where(jnp.isfinite(mean), jnp.max(jnp.abs(power * d)), jnp.inf)
    tiny = (largest < jnp.finfo(d.dtype).eps ** (1 / 3)) | (power == 0.0)
    small = tiny | (largest < 1.0)
    cumulants = power * (0.5 * jnp.mean(jnp.square(d)) + power * jnp.mean(d**3) / 6.0)
    y, p = jnp.where(small & ~tiny, power * d, 0.0), jnp.where(tiny, 1.0, power)
    by_series = jnp.log1p(jnp.mean(jnp.expm1(y))) / p
    directly = log_mean_exp(jnp.where(small, 0.0, power * log_w)) / p
    return jnp.where(small, mean + jnp.where(tiny, cumulants, by_series), directly)


@jax.custom_jvp
def maximum(log_w: LogWeights) -> Array:
    """max_k log w_k: VR-max, the limit of `log_power_mean` at infinite power.

    Its derivative jumps where another sample takes the lead, so it has no second derivative that
    could stand for that: asking for one raises TypeError. Li & Turner 2016.

    >>> float(maximum(jnp.array([0.0, 1.0])))
    1.0
    """
    return jnp.max(log_w)


@maximum.defjvp
def _largest_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    (log_w,), (tangent,) = primals, tangents
    return jnp.max(log_w), jnp.sum(_leader(log_w) * tangent)


@jax.custom_jvp
def _leader(log_w: LogWeights) -> Array:
    """One-hot at the largest."""
    return jax.nn.one_hot(jnp.argmax(log_w), log_w.size, dtype=log_w.dtype)


@_leader.defjvp
def _leader_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    raise TypeError(
        "maximum (VR-max) has no second derivative, so gradient=doubly_reparameterized is not "
        "defined for it; use pathwise or score_function, or renyi with a very negative alpha"
    )


@checked
def mean_log_mean_exp(log_w: LogWeights, *, num_outer: Count) -> Array:
    """1/M sum_m log 1/K sum_k w_mk of log_w [M K], or [M, K]: the mean of M bounds, MIWAE(M, K).

    Rainforth et al. 2018.

    >>> float(mean_log_mean_exp(jnp.array([0.0, 0.0, 2.0, 2.0]), num_outer=2))
    1.0
    """
    if log_w.size % num_outer:
        raise ValueError(
            f"mean_log_mean_exp: num_outer is {num_outer}, expected a divisor of the "
            f"{log_w.size} log-weights"
        )
    return jnp.mean(jax.vmap(log_mean_exp)(log_w.reshape(num_outer, -1)))


@checked
def convex_combination(log_w: LogWeights, *, beta: Scalar) -> Array:
    """beta mean_k log w_k + (1 - beta) log 1/K sum_k w_k: ELBO at beta = 1, IWAE at 0, CIWAE(beta).

    Rainforth et al. 2018.

    >>> log_w = jnp.array([0.0, 1.0])
    >>> float(convex_combination(log_w, beta=1.0))
    0.5
    """
    return weighted(beta, jnp.mean(log_w)) + weighted(1.0 - beta, log_mean_exp(log_w))


@checked
def thermodynamic(log_w: LogWeights, *, betas: Partition, at: Numbers) -> Array:
    """A Riemann sum of log p(x) = int_0^1 E_{pi_b}[log w] db, pi_b ~ q(z|x)^(1-b) p(x, z)^b.

    sum_j (beta_{j+1} - beta_j) sum_k w_k^{a_j} log w_k / sum_k w_k^{a_j}

    The integrand grows with beta, so nodes `at`, a [J], bound from below where a_j = beta_j, from
    above where a_j = beta_{j+1}. Expectations are self-normalised importance sampling's, biased.
    Masrani, Le & Wood 2019.

    >>> ends = jnp.array([0.0, 1.0])
    >>> float(thermodynamic(jnp.array([0.0, 1.0]), betas=ends, at=ends[:1]))  # the ELBO
    0.5
    """

    log_w = jnp.ravel(log_w)

    def expectation(a: Array) -> Array:
        return jnp.sum(weighted(jax.nn.softmax(weighted(a, log_w)), log_w))

    betas, at = jnp.asarray(betas, log_w.dtype), jnp.asarray(at, log_w.dtype)
    return jnp.sum(jnp.diff(betas) * jax.vmap(expectation)(at))
