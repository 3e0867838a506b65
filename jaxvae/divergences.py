"""KL divergences in closed form, and the rate: how a bound gets its KL term.

A rate is a function `(q, p, z, log_q) -> scalar` with z ~ q and log_q = log q(z). All share this
signature, so that a bound takes any of them as an argument.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import erf

from jaxvae.checks import check_log_prob, check_scale, check_shape
from jaxvae.constant import Constant
from jaxvae.discrete import Bernoulli, Categorical, OneHotCategorical
from jaxvae.distributions import Laplace, MultivariateNormal, Normal, StandardNormal

Array = jax.Array


def kl_standard_normal(loc: Any, scale: Any) -> Array:
    """KL(N(mu, diag sigma^2) || N(0, I)) = 1/2 (tr S + m'm - d - log|S|), S = diag sigma^2.

    Args:
      loc: mu, any shape [...].
      scale: sigma > 0, the same shape or a scalar.

    Returns:
      The divergence, a scalar in nats.

    >>> round(float(kl_standard_normal(0.3, 0.5)), 6)
    0.363147

    Kingma & Welling 2014, appendix B.
    """
    check_scale("kl_standard_normal", loc, scale)
    return 0.5 * jnp.sum(jnp.square(scale) + jnp.square(loc) - 1.0 - 2.0 * jnp.log(scale))


def kl_divergence(q: Any, p: Any) -> Array:
    """KL(q || p) = E_q[log q(z) - log p(z)] in closed form, by matching on the pair.

    Known: every pair of StandardNormal, Normal and MultivariateNormal in either order; Categorical,
    OneHotCategorical, Bernoulli and Laplace with their own kind; Normal to Laplace. `Constant` is
    looked through.

    Args:
      q: a distribution.
      p: a distribution over events of the same shape.

    Returns:
      The divergence, a scalar in nats.

    Raises:
      NotImplementedError: the pair has no closed form here; the message says to use `sampled_kl`.
      ValueError: the two are over events of different shapes.

    >>> q = Normal(jnp.array([-2.0]), jnp.array([3.0]))
    >>> p = Normal(jnp.array([1.0]), jnp.array([2.0]))
    >>> round(float(kl_divergence(q, p)), 6)
    1.344535
    """
    q, p = _value(q), _value(p)
    kl = _closed_form(q, p)
    if kl is None:
        raise NotImplementedError(
            f"no closed form for KL({type(q).__name__} || {type(p).__name__}); use sampled_kl, "
            "which needs only samples, or auto_kl, which falls back to it"
        )
    return kl


def _closed_form(q: Any, p: Any) -> Array | None:
    """The divergence, or None where no closed form is known."""
    q, p = _value(q), _value(p)
    match q, p:
        case Normal(), StandardNormal():
            _check_events(q, p)
            return kl_standard_normal(q.mean(), q.scale)
        case ((Normal() | StandardNormal()), (Normal() | StandardNormal())):
            _check_events(q, p)
            return _kl_normal(*_loc_scale(q, p), *_loc_scale(p, q))
        case MultivariateNormal(), StandardNormal():  # the identity needs no solve
            _check_events(q, p)
            tril = jnp.tril(q.scale_tril)
            log_det = jnp.sum(jnp.log(jnp.diagonal(tril)))
            return 0.5 * (jnp.sum(tril**2) + jnp.sum(q.loc**2) - q.loc.size) - log_det
        case (
            (Normal() | StandardNormal() | MultivariateNormal()),
            (Normal() | StandardNormal() | MultivariateNormal()),
        ):
            _check_events(q, p)
            return _kl_multivariate_normal(*_loc_tril(q, p), *_loc_tril(p, q))
        case (Categorical(), Categorical()) | (OneHotCategorical(), OneHotCategorical()):
            check_shape("kl_divergence", "p.logits", p.logits, jnp.shape(q.logits))
            return _kl_categorical(q.log_probs, p.log_probs)
        case Bernoulli(), Bernoulli():
            _check_events(q, p)
            return _kl_bernoulli(q.logits, p.logits)
        case Laplace(), Laplace():
            _check_events(q, p)
            return _kl_laplace(q.loc, q.scale, p.loc, p.scale)
        case Normal(), Laplace():
            _check_events(q, p)
            return _kl_normal_laplace(*_loc_scale(q, p), *_loc_scale(p, q))
    return None


def _value(d: Any) -> Any:
    """What a `Constant` holds."""
    while isinstance(d, Constant):
        d = d.value
    return d


def _check_events(q: Any, p: Any) -> None:
    if q.shape != p.shape:
        raise ValueError(
            f"kl_divergence: q is over events of shape {q.shape} and p of shape {p.shape}; "
            "expected one shape (use jax.vmap for a batch)"
        )


def _loc_scale(d: Any, other: Any) -> tuple[Array, Array]:
    """(mu, sigma) at the event's shape; N(0, I) is (0, 1) in the other distribution's precision."""
    if isinstance(d, StandardNormal):
        dtype = jnp.result_type(0.0, *jax.tree.leaves(other))
        return jnp.zeros(d.shape, dtype), jnp.ones(d.shape, dtype)
    return jnp.broadcast_to(d.loc, d.shape), jnp.broadcast_to(d.scale, d.shape)


def _loc_tril(d: Any, other: Any) -> tuple[Array, Array]:
    """(mu, L) of any Gaussian over a vector."""
    if isinstance(d, MultivariateNormal):
        return d.loc, jnp.tril(d.scale_tril)
    loc, scale = _loc_scale(d, other)
    return loc, jnp.diag(scale)


def _kl_normal(loc_q: Array, scale_q: Array, loc_p: Array, scale_p: Array) -> Array:
    # the affine map z -> (z - mu_p) / sigma_p leaves KL as it is and makes p standard
    return kl_standard_normal((loc_q - loc_p) / scale_p, scale_q / scale_p)


def _kl_multivariate_normal(loc_q: Array, tril_q: Array, loc_p: Array, tril_p: Array) -> Array:
    # 1/2 (|L_p^-1 L_q|_F^2 + |L_p^-1 (mu_q - mu_p)|^2 - d) + log|L_p| - log|L_q|
    ratio = solve_triangular(tril_p, tril_q, lower=True)
    shift = solve_triangular(tril_p, loc_q - loc_p, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(tril_q)) - jnp.log(jnp.diagonal(tril_p)))
    return 0.5 * (jnp.sum(ratio**2) + jnp.sum(shift**2) - loc_q.size) - log_det


def _kl_categorical(log_q: Array, log_p: Array) -> Array:
    # sum_k q_k log(q_k / p_k), where a class that q never draws adds 0 log 0 = 0
    drawn = log_q > -jnp.inf
    absent = log_p == -jnp.inf  # and a class that q may draw and p never does costs infinitely
    ratio = jnp.where(drawn, log_q, 0.0) - jnp.where(drawn & ~absent, log_p, 0.0)
    return jnp.sum(jnp.where(drawn & absent, jnp.inf, jnp.exp(log_q) * ratio))


def _kl_bernoulli(logits_q: Any, logits_p: Any) -> Array:
    # sigma(a)(a - b) - softplus(a) + softplus(b). Swapping the outcomes' names, (a, b) ->
    # (-a, -b), changes nothing, so take a <= 0, where no two large terms cancel.
    sign = jnp.where(logits_q > 0, -1.0, 1.0).astype(jnp.result_type(logits_q))
    a, b = sign * logits_q, sign * logits_p
    return jnp.sum(jax.nn.sigmoid(a) * (a - b) - jax.nn.softplus(a) + jax.nn.softplus(b))


def _kl_laplace(loc_q: Any, scale_q: Any, loc_p: Any, scale_p: Any) -> Array:
    # log(b_p / b_q) + (D + b_q exp(-D / b_q)) / b_p - 1, D = |m_q - m_p|
    distance = jnp.abs(loc_q - loc_p)
    spread = distance + scale_q * jnp.exp(-distance / scale_q)
    return jnp.sum(jnp.log(scale_p / scale_q) + spread / scale_p - 1.0)


def _kl_normal_laplace(loc_q: Array, scale_q: Array, loc_p: Array, scale_p: Array) -> Array:
    # E|z - m| / b + log 2b - 1/2 log(2 pi e sigma^2); E|z - m| is the mean of a folded normal:
    # sigma sqrt(2/pi) exp(-D^2 / 2 sigma^2) + D erf(D / sigma sqrt 2), D = mu - m
    shift = loc_q - loc_p
    u = shift / scale_q
    folded = scale_q * jnp.sqrt(2.0 / jnp.pi) * jnp.exp(-0.5 * u**2) + shift * erf(u / 2.0**0.5)
    entropy = 0.5 * jnp.log(2.0 * jnp.pi * jnp.e) + jnp.log(scale_q)
    return jnp.sum(folded / scale_p + jnp.log(2.0 * scale_p) - entropy)


def analytic_kl(q: Any, p: Any, z: Any, log_q: Array) -> Array:
    """The rate KL(q || p) in closed form; the sample z and log_q are not looked at.

    Raises NotImplementedError where the pair has none: see `kl_divergence`.
    """
    del z, log_q
    return kl_divergence(q, p)


def _log_prior(p: Any, z: Any) -> Array:
    log_p = p.log_prob(z)
    check_log_prob(f"prior {type(p).__name__}", log_p)
    return log_p


def sampled_kl(q: Any, p: Any, z: Any, log_q: Array) -> Array:
    """The rate log q(z) - log p(z) at one sample z ~ q: unbiased for KL(q || p), for any pair."""
    del q
    return log_q - _log_prior(p, z)


def sticking_kl(q: Any, p: Any, z: Any, log_q: Array) -> Array:
    """`sampled_kl` without the score term: the same value, gradients through z alone.

    grad = E[ d/dz (log q(z) - log p(z)) dz/dphi ], since E_q[d/dphi log q_phi(z)] = 0. When q is
    the exact posterior, the gradient of the ELBO is then identically zero, without noise.

    Roeder, Wu & Duvenaud 2017, "Sticking the landing".
    """
    del log_q
    return jax.lax.stop_gradient(q).log_prob(z) - _log_prior(p, z)


def auto_kl(q: Any, p: Any, z: Any, log_q: Array) -> Array:
    """The rate in closed form where one is known, else from the sample.

    The default of every bound: swapping a prior or a posterior never means editing an objective.

    >>> q, p = Normal(jnp.zeros(2), jnp.ones(2)), StandardNormal((2,))
    >>> float(auto_kl(q, p, *q.sample_and_log_prob(jax.random.key(0))))
    0.0
    """
    kl = _closed_form(q, p)
    return sampled_kl(q, p, z, log_q) if kl is None else kl
