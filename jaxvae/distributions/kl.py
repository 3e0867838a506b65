"""KL divergences in closed form, by matching on the pair of distributions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf

from jaxvae.checks import Numbers, check_scalar, check_scale, check_shape, checked
from jaxvae.distributions.continuous_bernoulli import ContinuousBernoulli, log_normalizer
from jaxvae.distributions.counts import Poisson
from jaxvae.distributions.deviance import deviance, log_gamma_peak, log_gamma_peak_slope, log_ratio
from jaxvae.distributions.discrete import Bernoulli, Categorical, OneHotCategorical
from jaxvae.distributions.gamma import Beta, Dirichlet, Gamma
from jaxvae.distributions.independent import Independent
from jaxvae.distributions.location_scale import Laplace
from jaxvae.distributions.multivariate_normal import LowRankNormal, MultivariateNormal
from jaxvae.distributions.normal import Normal, StandardNormal
from jaxvae.distributions.products import Product
from jaxvae.distributions.special import real, sigmoid, softplus
from jaxvae.distributions.spherical import (
    PowerSpherical,
    SphericalUniform,
    VonMisesFisher,
    log_area,
)
from jaxvae.distributions.triangular import solve_lower
from jaxvae.protocols import Distribution, event_shape
from jaxvae.pytrees import value_of


@checked
def kl_standard_normal(loc: Numbers, scale: Numbers) -> Array:
    """KL(N(mu, diag sigma^2) || N(0, I)) = 1/2 (tr S + m'm - d - log|S|), S = diag sigma^2, nats.

    mu is `loc` [...] and sigma > 0 `scale`, as large or scalar. Kingma & Welling 2014, appendix B.

    >>> round(float(kl_standard_normal(0.3, 0.5)), 6)
    0.363147
    """
    check_scale("kl_standard_normal", loc, scale)
    loc, scale = real(loc), real(scale)
    return 0.5 * jnp.sum(jnp.square(scale) + jnp.square(loc) - 1.0 - 2.0 * jnp.log(scale))


@checked
def kl_divergence(q: Distribution, p: Distribution) -> Array:
    """KL(q || p) = E_q[log q(z) - log p(z)] in closed form: `q.kl_to(p)`, or by matching the pair.

    Known: every pair of StandardNormal, Normal, MultivariateNormal and LowRankNormal in either
    order; Categorical, OneHotCategorical, Bernoulli, ContinuousBernoulli, Laplace, Gamma, Beta,
    Dirichlet and Poisson with their own kind; Normal to Laplace; VonMisesFisher and PowerSpherical
    to SphericalUniform; Product and Independent of these. `Constant` is looked through. Two
    `Joint`s have none without a sample of the level above, which the rates, such as `auto_kl`, are
    given.

    Raises:
      NotImplementedError: the pair has no closed form here; the message says to use `sampled_kl`.
      ValueError: the two are over events of different shapes.

    >>> q = Normal(jnp.array([-2.0]), jnp.array([3.0]))
    >>> p = Normal(jnp.array([1.0]), jnp.array([2.0]))
    >>> round(float(kl_divergence(q, p)), 6)
    1.344535
    """
    q, p = value_of(q), value_of(p)
    kl = closed_form(q, p)
    if kl is None:
        raise NotImplementedError(
            f"no closed form for KL({type(q).__name__} || {type(p).__name__}); use sampled_kl, "
            "which needs only samples, or auto_kl, which falls back to it"
        )
    return kl


def closed_form(q: Any, p: Any) -> Array | None:
    """The divergence, or None where no closed form is known."""
    q, p = value_of(q), value_of(p)
    if hasattr(q, "kl_to") and (kl := _asked(q, p)) is not None:
        return kl
    match q, p:
        case Independent(), Independent():
            _check_events(q, p)
            each = jax.vmap(closed_form)(q.unstack(), p.unstack())
            return None if each is None else jnp.sum(each)
        case Product(), Product():
            pairs = zip(q.split(q.parts), q.split(p.parts), strict=True)
            kls = [closed_form(*pair) for pair in pairs]
            known = [kl for kl in kls if kl is not None]
            return jnp.sum(jnp.stack(known)) if len(known) == len(kls) else None
    formula = _formula(q, p)
    if formula is None:
        return None
    _check_events(q, p)
    return formula()


def _formula(q: Any, p: Any) -> Callable[[], Array] | None:
    """What is computed for a pair over events of one shape, if a closed form is known."""
    match q, p:
        case Normal(), StandardNormal():
            return lambda: kl_standard_normal(q.mean(), q.scale)
        case ((Normal() | StandardNormal()), (Normal() | StandardNormal())):
            return lambda: _kl_normal(*_loc_scale(q, p), *_loc_scale(p, q))
        case MultivariateNormal(), StandardNormal():  # the identity needs no solve
            return lambda: _kl_to_standard_normal(q.loc, jnp.tril(q.scale_tril))
        case LowRankNormal(), (StandardNormal() | Normal()):  # in O(d r), without a factor
            return lambda: _kl_low_rank(q, *_loc_scale(p, q))
        case (
            (Normal() | StandardNormal() | MultivariateNormal() | LowRankNormal()),
            (Normal() | StandardNormal() | MultivariateNormal() | LowRankNormal()),
        ):
            return lambda: _kl_multivariate_normal(*_loc_tril(q, p), *_loc_tril(p, q))
        case (Categorical(), Categorical()) | (OneHotCategorical(), OneHotCategorical()):
            check_shape("kl_divergence", "p.logits", p.logits, jnp.shape(q.logits))
            return lambda: _kl_categorical(q.log_probs, p.log_probs)
        case Bernoulli(), Bernoulli():
            return lambda: _kl_bernoulli(q.logits, p.logits)
        case Laplace(), Laplace():
            return lambda: _kl_laplace(q.loc, q.scale, p.loc, p.scale)
        case Normal(), Laplace():
            return lambda: _kl_normal_laplace(*_loc_scale(q, p), *_loc_scale(p, q))
        case ContinuousBernoulli(), ContinuousBernoulli():
            return lambda: _kl_continuous_bernoulli(q.logits, p.logits)
        case Gamma(), Gamma():
            return lambda: _kl_gamma(q.concentration, q.rate, p.concentration, p.rate)
        case Beta(), Beta():
            return lambda: _kl_beta(q.a, q.b, p.a, p.b)
        case Dirichlet(), Dirichlet():
            return lambda: _kl_dirichlet(q.concentration, p.concentration)
        case Poisson(), Poisson():
            return lambda: jnp.sum(deviance(q.rate, p.rate))
        case ((VonMisesFisher() | PowerSpherical()), SphericalUniform()):
            return lambda: log_area(p.dim) - q.entropy()
    return None


def _asked(q: Any, p: Any) -> Array | None:
    """`q.kl_to(p)`, a scalar, or None where q knows of none."""
    _check_events(q, p)
    kl = q.kl_to(p)
    if kl is not None:
        check_scalar(f"{type(q).__name__}.kl_to", "result", kl)
    return kl


def _check_events(q: Any, p: Any) -> None:
    of_q, of_p = event_shape(q), event_shape(p)
    if of_q != of_p:
        raise ValueError(
            f"kl_divergence: q is over events of shape {of_q} and p of shape {of_p}; "
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
    if isinstance(d, (MultivariateNormal, LowRankNormal)):
        return d.loc, jnp.tril(d.scale_tril)
    loc, scale = _loc_scale(d, other)
    return loc, jnp.diag(scale)


def _kl_normal(loc_q: Array, scale_q: Array, loc_p: Array, scale_p: Array) -> Array:
    # the affine map z -> (z - mu_p) / sigma_p leaves KL as it is and makes p standard
    square = jnp.square((loc_q - loc_p) / scale_p) + jnp.square(scale_q / scale_p)
    return jnp.sum(0.5 * (square - 1.0) - log_ratio(scale_q, scale_p))


def _kl_to_standard_normal(loc: Array, tril: Array) -> Array:
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(tril))))
    return 0.5 * (jnp.sum(tril**2) + jnp.sum(loc**2) - loc.size) - log_det


def _kl_multivariate_normal(loc_q: Array, tril_q: Array, loc_p: Array, tril_p: Array) -> Array:
    # 1/2 (|L_p^-1 L_q|_F^2 + |L_p^-1 (mu_q - mu_p)|^2 - d) + log|L_p| - log|L_q|
    ratio = solve_lower(tril_p, tril_q)
    shift = solve_lower(tril_p, loc_q - loc_p)
    of_q, of_p = (jnp.log(jnp.abs(jnp.diagonal(tril))) for tril in (tril_q, tril_p))
    log_det = jnp.sum(of_q - of_p)
    return 0.5 * (jnp.sum(ratio**2) + jnp.sum(shift**2) - loc_q.size) - log_det


def _kl_categorical(log_q: Array, log_p: Array) -> Array:
    # sum_k q_k log(q_k / p_k), where a class that q never draws adds 0 log 0 = 0
    drawn = log_q > -jnp.inf
    absent = log_p == -jnp.inf  # and a class that q may draw and p never does costs infinitely
    ratio = jnp.where(drawn, log_q, 0.0) - jnp.where(drawn & ~absent, log_p, 0.0)
    return jnp.sum(jnp.where(drawn & absent, jnp.inf, jnp.exp(log_q) * ratio))


def _kl_bernoulli(logits_q: Numbers, logits_p: Numbers) -> Array:
    # sum_x q(x) log(q(x) / p(x)) - q(x) + p(x), where no two large terms cancel
    def side(q: Numbers, p: Numbers) -> Array:
        return deviance(sigmoid(q), sigmoid(p), -softplus(-p))

    return jnp.sum(side(logits_q, logits_p) + side(-logits_q, -logits_p))


def _kl_laplace(loc_q: Numbers, scale_q: Numbers, loc_p: Numbers, scale_p: Numbers) -> Array:
    # log(b_p / b_q) + E|z - m_p| / b_p - 1
    distance = _laplace_distance(loc_q - loc_p, scale_q)
    return jnp.sum(distance / scale_p - 1.0 - log_ratio(scale_q, scale_p))


@jax.custom_jvp
def _laplace_distance(shift: Numbers, scale: Numbers) -> Array:
    """E|z|, z ~ Laplace(shift, scale): D + b exp(-D / b), D = |shift|."""
    return jnp.abs(shift) + scale * jnp.exp(-jnp.abs(shift) / scale)


Pair = tuple[Any, Any]


@_laplace_distance.defjvp
def _laplace_distance_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    (shift, scale), (by_shift, by_scale) = primals, tangents
    u = jnp.minimum(jnp.abs(shift) / scale, 1e4)  # the slope in b is 0 there
    slope = (1.0 + u) * jnp.exp(-u)
    side = jnp.where(shift < 0, -1.0, 1.0)  # of 0, too, where the slope of expm1 counts
    tangent = -side * jnp.expm1(-u) * by_shift + slope * by_scale
    return _laplace_distance(*primals), tangent


def _kl_normal_laplace(loc_q: Array, scale_q: Array, loc_p: Array, scale_p: Array) -> Array:
    # E|z - m| / b + log 2b - 1/2 log(2 pi e sigma^2)
    distance = _normal_distance(loc_q - loc_p, scale_q)
    return jnp.sum(
        distance / scale_p + log_ratio(scale_p, scale_q) + 0.5 * jnp.log(2.0 / (jnp.pi * jnp.e))
    )


@jax.custom_jvp
def _normal_distance(shift: Array, scale: Array) -> Array:
    """E|z|, z ~ N(D, s^2): s sqrt(2/pi) exp(-u^2 / 2) + D erf(u / sqrt 2), u = D / s."""
    by_shift, by_scale = _normal_distance_slopes(shift, scale)
    return scale * by_scale + shift * by_shift


def _normal_distance_slopes(shift: Numbers, scale: Numbers) -> tuple[Array, Array]:
    u = shift / scale
    return erf(u / 2.0**0.5), jnp.sqrt(2.0 / jnp.pi) * jnp.exp(-0.5 * u**2)


@_normal_distance.defjvp
def _normal_distance_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    by_shift, by_scale = _normal_distance_slopes(*primals)
    return _normal_distance(*primals), by_shift * tangents[0] + by_scale * tangents[1]


def _kl_low_rank(q: LowRankNormal, loc_p: Array, scale_p: Array) -> Array:
    # 1/2 [ tr(S_p^-1 (W W' + diag s^2)) + |(mu_q - mu_p) / s_p|^2 - d - log|Sigma_q| + log|S_p| ]
    terms = jnp.sum(jnp.square(q.factor / scale_p[:, None]), axis=1)
    terms = terms + jnp.square(q.scale / scale_p) + jnp.square((q.loc - loc_p) / scale_p)
    return 0.5 * (jnp.sum(terms - 1.0 + 2.0 * jnp.log(scale_p)) - q.log_det())


def _kl_continuous_bernoulli(l_q: Numbers, l_p: Numbers) -> Array:
    # E[x] (l_q - l_p) - A(l_q) + A(l_p), A(l) = log(1 + e^l) - log C(l). Of 1 - x both logits have
    # the other sign and KL is the same, so take l_q <= 0, where no two large terms cancel.
    sign = jnp.where(l_q > 0, -1.0, 1.0).astype(jnp.result_type(l_q))
    l_q, l_p = sign * l_q, sign * l_p
    mean = ContinuousBernoulli(l_q).mean()

    def cumulant(l: Numbers) -> Array:
        return softplus(l) - log_normalizer(l)

    return jnp.sum(mean * (l_q - l_p) - cumulant(l_q) + cumulant(l_p))


def _kl_gamma(a: Numbers, b: Numbers, c: Numbers, d: Numbers) -> Array:
    # (a - c) psi(a) - log Gamma(a) + log Gamma(c) + c log(b / d) + a (d - b) / b
    log_mean = jnp.log(a) + jnp.log(d) - jnp.log(b)
    return jnp.sum(deviance(c, a * (d / b), log_mean) + _bregman(c, a))


def _kl_beta(a: Numbers, b: Numbers, c: Numbers, d: Numbers) -> Array:
    a, b, c, d = jnp.broadcast_arrays(a, b, c, d)
    q, p = jnp.stack([a, b], axis=-1), jnp.stack([c, d], axis=-1)
    return jnp.sum(_kl_dirichlet(q, p))


def _kl_dirichlet(a: Array, b: Array) -> Array:
    # log G(sum a) - log G(sum b)
    #   + sum_i [ log G(b_i) - log G(a_i) + (a_i - b_i) (psi(a_i) - psi(sum a)) ], G = Gamma
    total_a, total_b = jnp.sum(a, -1, keepdims=True), jnp.sum(b, -1, keepdims=True)
    log_mean = jnp.log(a) + jnp.log(total_b) - jnp.log(total_a)
    parts = deviance(b, a * (total_b / total_a), log_mean) + _bregman(b, a)
    return jnp.sum(parts, -1) - jnp.squeeze(_bregman(total_b, total_a), -1)


def _bregman(c: Numbers, a: Numbers) -> Array:
    """log Gamma(c) - log Gamma(a) - (c - a) psi(a) - D(c, a), by G of `log_gamma_peak`."""
    return log_gamma_peak(a) - log_gamma_peak(c) + (c - a) * log_gamma_peak_slope(a)
