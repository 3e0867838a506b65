"""Gradient estimators: how a bound on log-weights gets its gradient.

An estimator is a function `(reduction, model, key, x, *, num_samples) -> (bound, log_weights)`. Its
value is the reduction R of the log-weights l; what sets it apart is the gradient it carries. For
the decoder and the prior that is sum_k g_k dl_k/dtheta with g = dR/dl, the same under every
estimator for the same key; for the posterior they differ.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.checks import check_positive
from jaxvae.protocols import Model, log_likelihood, posterior
from jaxvae.weights import log_prior, log_weights, sample_keys

Array = jax.Array
Reduction = Callable[[Array], Array]


def pathwise(
    reduction: Reduction, model: Model, key: Array, x: Any, *, num_samples: int
) -> tuple[Array, Array]:
    """The reparameterization gradient: differentiate the weights through z = mu + sigma eps.

    Args:
      reduction: log-weights [K] -> scalar, `log_mean_exp` say.
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.

    Returns:
      The bound in nats, and the log-weights [K].

    Raises:
      TypeError: when differentiated, if samples of the posterior have no derivative in its
        parameters, as a Categorical's.

    Kingma & Welling 2014, section 2.3; Burda et al. 2016, equation 13.
    """
    log_w = log_weights(model, key, x, num_samples=num_samples)
    return _require_path_of_gradient(posterior(model, x), reduction(log_w)), log_w


def sticking_the_landing(
    reduction: Reduction, model: Model, key: Array, x: Any, *, num_samples: int
) -> tuple[Array, Array]:
    """`pathwise` without the score term: the parameters inside log q(z) are held still.

    Unbiased for the ELBO, whose gradient then vanishes without noise where q is exact; for a
    tighter bound at K > 1 it is biased, as the score terms do not cancel once they are weighted.

    Args:
      reduction: log-weights [K] -> scalar.
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.

    Returns:
      The bound in nats, and the log-weights [K].

    Raises:
      TypeError: samples of the posterior have no derivative in its parameters.

    Roeder, Wu & Duvenaud 2017, equation 5; the bias: Tucker et al. 2019, section 4.
    """
    return _through_samples(reduction, model, key, x, num_samples, jnp.ones_like)


def doubly_reparameterized(
    reduction: Reduction, model: Model, key: Array, x: Any, *, num_samples: int
) -> tuple[Array, Array]:
    """The score terms of a tighter bound, reparameterized once more: unbiased, and low in variance.

    With g = dR/dl and h_k = d^2R/dl_k^2, the gradient that flows into sample k is

        (g_k - h_k) dl_k/dz_k,

    which is w_k^2 (w the normalised weights) for the importance-weighted bound and that of sticking
    the landing for the ELBO, where h is 0. It is `sticking_the_landing` with the cotangent of each
    sample scaled by 1 - h_k / g_k.

    Args:
      reduction: log-weights [K] -> scalar, twice differentiable.
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.

    Returns:
      The bound in nats, and the log-weights [K].

    Raises:
      TypeError: samples of the posterior have no derivative in its parameters.

    Tucker, Lawson, Gu & Maddison 2019, equation 8.
    """

    def scale(log_w: Array) -> Array:
        g = jax.grad(reduction)(log_w)
        h = jnp.diagonal(jax.hessian(reduction)(log_w))
        return 1.0 - h / jnp.where(g == 0.0, 1.0, g)  # where g is 0, nothing flows to be scaled

    return _through_samples(reduction, model, key, x, num_samples, scale)


def _through_samples(
    reduction: Reduction,
    model: Model,
    key: Array,
    x: Any,
    num_samples: int,
    scale: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """The posterior learns through its samples alone, sample k's cotangent scaled by scale(l)_k."""
    check_positive("gradient", "num_samples", num_samples)
    q = posterior(model, x)
    _require_path(q)
    still = jax.lax.stop_gradient(q)
    z = jax.vmap(q.sample)(sample_keys(key, num_samples))

    def log_weight(z: Any) -> Array:
        return log_likelihood(model, x, z) + log_prior(model, z) - still.log_prob(z)

    # evaluated twice, compiled once: without its gradient this is the same computation
    log_w = jax.lax.stop_gradient(jax.vmap(log_weight)(z))
    log_w = jax.vmap(log_weight)(jax.vmap(_scale_cotangent)(z, scale(log_w)))
    return reduction(log_w), log_w


def _has_path(q: Any) -> bool:
    return getattr(q, "reparameterized", getattr(q, "has_rsample", True))  # ours, numpyro's


def _require_path(q: Any) -> None:
    """Raise TypeError where samples of q have no derivative in q's parameters."""
    if not _has_path(q):
        raise TypeError(
            f"samples of {type(q).__name__} have no derivative in its parameters; use "
            "gradient=score_function, or gradient=vimco with two samples or more"
        )


def _require_path_of_gradient(q: Any, bound: Array) -> Array:
    """The bound, whose value any q may have; `_require_path` is asked for its gradient alone."""
    value = jax.custom_vjp(lambda bound: bound)
    value.defvjp(lambda bound: (_require_path(q), bound), lambda _, cotangent: (cotangent,))
    return bound if _has_path(q) else value(bound)


@jax.custom_vjp
def _scale_cotangent(z: Any, factor: Array) -> Any:
    """z itself; what flows back through it is multiplied by `factor`."""
    del factor
    return z


def _scale_forward(z: Any, factor: Array) -> tuple[Any, Array]:
    return z, factor


def _scale_backward(factor: Array, cotangent: Any) -> tuple[Any, Array]:
    return jax.tree.map(lambda c: factor * c, cotangent), jnp.zeros_like(factor)


_scale_cotangent.defvjp(_scale_forward, _scale_backward)


def no_baseline(reduction: Reduction, log_w: Array) -> Array:
    """b_k = 0: the score function as it is, unbiased and of enormous variance."""
    del reduction
    return jnp.zeros_like(log_w)


def leave_one_out(reduction: Reduction, log_w: Array) -> Array:
    """b_k = R(l with l_k replaced by the mean of the others): what the bound would be without z_k.

    For the ELBO (R the mean) this leaves (l_k - mean of the others) / K as the signal of sample k;
    for the importance-weighted bound it is VIMCO, with the geometric mean of the other weights.

    Raises:
      ValueError: K = 1, where no other sample is left.

    Mnih & Rezende 2016, equation 10.
    """
    k = log_w.size
    if k < 2:
        raise ValueError(
            f"leave_one_out: num_samples is {k}, expected at least 2; use no_baseline, or learn one"
        )
    others = (jnp.sum(log_w) - log_w) / (k - 1)
    return jax.vmap(lambda i, other: reduction(log_w.at[i].set(other)))(jnp.arange(k), others)


def score_function(
    reduction: Reduction,
    model: Model,
    key: Array,
    x: Any,
    *,
    num_samples: int,
    baseline: Callable[[Reduction, Array], Array] = no_baseline,
) -> tuple[Array, Array]:
    """REINFORCE: grad E[R] = E[ sum_k (R - b_k) grad log q(z_k) + grad R at fixed z ].

    Works for every posterior, discrete ones included: nothing is differentiated through a sample.
    A baseline that does not look at z_k changes the variance and not the mean.

    Args:
      reduction: log-weights [K] -> scalar.
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.
      baseline: (reduction, log-weights [K]) -> b [K]: `no_baseline` or `leave_one_out`.

    Returns:
      The bound in nats, and the log-weights [K].

    Williams 1992; Mnih & Gregor 2014, equation 7.
    """
    check_positive("score_function", "num_samples", num_samples)
    q = posterior(model, x)
    z = jax.lax.stop_gradient(jax.vmap(q.sample)(sample_keys(key, num_samples)))

    def terms(z: Any) -> tuple[Array, Array]:
        log_q = q.log_prob(z)
        return log_likelihood(model, x, z) + log_prior(model, z) - log_q, log_q

    log_w, log_q = jax.vmap(terms)(z)
    bound = reduction(log_w)
    signal = jax.lax.stop_gradient(bound - baseline(reduction, log_w))
    score = jnp.sum(signal * (log_q - jax.lax.stop_gradient(log_q)))  # 0, with a gradient
    return bound + score, log_w


vimco = partial(score_function, baseline=leave_one_out)
"""`score_function` with the `leave_one_out` baseline. Mnih & Rezende 2016."""
