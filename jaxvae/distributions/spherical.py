"""Distributions on the unit sphere |x| = 1 in R^d, as densities per unit of its area."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Leaf, Numbers, Tree, check_shape, within
from jaxvae.distributions.bessel import bessel_shortfalls, log_partition
from jaxvae.distributions.deviance import log_gamma_peak_slope
from jaxvae.distributions.implicit import increasing_root
from jaxvae.distributions.special import float_type, floating, log_beta, real, rounding
from jaxvae.protocols import distribution
from jaxvae.pytrees import wide


def log_area(d: int) -> float:
    """log of the area of the unit sphere in R^d: log 2 + d/2 log pi - log Gamma(d/2).

    >>> round(log_area(3), 4)  # log 4 pi
    2.531
    """
    return math.log(2.0) + 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d)


@distribution
@dataclass(frozen=True, eq=False)
class SphericalUniform:
    """The uniform distribution on the sphere in R^dim: log p(x) = -log area. It has no leaves.

    >>> round(float(SphericalUniform(2).log_prob(jnp.array([1.0, 0.0]))), 5)  # -log 2 pi
    -1.83788
    """

    dim: int = field(metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 2:
            raise ValueError(f"SphericalUniform: dim is {self.dim!r}, expected 2 or more, as 3")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def sample(self, key: Array) -> Array:
        return _normalized(jax.random.normal(key, self.shape))

    def log_prob(self, x: Tree) -> Array:
        inside = _on_sphere("SphericalUniform.log_prob", x, self.shape)
        return jnp.where(inside, jnp.full((), -log_area(self.dim), float_type(x)), -jnp.inf)

    def mean(self) -> Array:
        return jnp.zeros(self.shape)


@distribution
@dataclass(frozen=True, eq=False)
class VonMisesFisher:
    """log p(x) = kappa mu'x + log C_d(kappa): the Gaussian of the sphere.

    A draw is x = cos(t) mu + sin(t) v, v uniform across mu. The angle t is the quantile of its
    distribution at a uniform number, by quadrature, so draws are exact in any dimension and at any
    kappa, and the implicit function theorem gives their gradient in kappa. There is no rejection,
    whose own dependence on kappa a gradient would have to correct for.
    Davidson et al. 2018; the gradient: Figurnov, Mohamed & Mnih 2018.

    Args:
      loc: the direction of mu, shape [d], of any length; 0 stands for the first axis.
      concentration: kappa > 0, a scalar.

    >>> d = VonMisesFisher(jnp.array([0.0, 0.0, 2.0]), 1.0)
    >>> round(float(d.log_prob(jnp.array([0.0, 0.0, 1.0]))), 5)  # 1 - log(4 pi sinh 1)
    -1.69246
    """

    loc: Leaf
    concentration: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape("VonMisesFisher", self.loc, self.concentration)

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, x: Tree) -> Array:
        inside = _on_sphere("VonMisesFisher.log_prob", x, self.shape)
        # kappa mu'x = kappa - kappa |x - mu|^2 / 2 keeps the digits that kappa would swallow
        short = 0.5 * jnp.sum(jnp.square(x - _normalized(self.loc)))
        return jnp.where(inside, self._log_density(short), -jnp.inf)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        angle_key, key = jax.random.split(key)
        t = self._angle(angle_key)
        x = _around(key, self.loc, jnp.cos(t), jnp.sin(t))
        return x, self._log_density(2.0 * jnp.square(jnp.sin(0.5 * t)))

    def mean(self) -> Array:
        """A_d(kappa) mu."""
        return _normalized(self.loc) * (1.0 - self.shortfall())

    def entropy(self) -> Array:
        """-E[log p(x)] = kappa (1 - A) - (log C + kappa), in nats."""
        return (
            floating(self.concentration) * self.shortfall()
            + log_area(self._d)
            + self._log_partition()
        )

    def shortfall(self) -> Array:
        """1 - A_d(kappa), A = I_{d/2}(kappa) / I_{d/2-1}(kappa) the length of the mean."""
        return bessel_shortfalls(self._d, floating(self.concentration))[0]

    @property
    def _d(self) -> int:
        return self.shape[0]

    def _log_partition(self) -> Array:
        """-log C_d(kappa) - log area - kappa = log E[e^(kappa (mu'x - 1))], x uniform."""
        return log_partition(self._d, floating(self.concentration))

    def _log_density(self, short: Array) -> Array:
        """short = 1 - mu'x."""
        return -floating(self.concentration) * short - self._log_partition() - log_area(self._d)

    def _angle(self, key: Array) -> Array:
        """A draw of t, whose density is proportional to e^(kappa cos t) sin(t)^(d - 2)."""
        kappa, n = floating(self.concentration), float(self._d - 2)
        dtype = kappa.dtype
        # ten standard deviations about the mode, cut in panels of Gauss-Legendre quadrature
        root = jnp.sqrt(n**2 + 4.0 * kappa**2)
        cosine, sine_squared = 2.0 * kappa / (n + root), 2.0 * n / (n + root)
        mode = jnp.arctan2(jnp.sqrt(sine_squared), cosine)
        curvature = kappa * cosine + (n / sine_squared if n else 0.0)
        width = 10.0 / jnp.sqrt(curvature)
        low, high = jnp.maximum(mode - width, 0.0), jnp.minimum(mode + width, jnp.pi)
        edges = jax.lax.stop_gradient(low + (high - low) * jnp.linspace(0, 1, 33, dtype=dtype))
        points, weights = (jnp.asarray(a, dtype) for a in np.polynomial.legendre.leggauss(6))
        points, weights = 0.5 * (points + 1.0), 0.5 * weights

        def log_f(t: Array) -> Array:
            peak = -2.0 * kappa * jnp.square(jnp.sin(0.5 * t))
            return peak + n * jnp.log(jnp.sin(t)) if n else peak

        top = jax.lax.stop_gradient(log_f(mode))

        def integral(start: Array, end: Array) -> Array:
            return (end - start) * (weights @ jnp.exp(log_f(start + (end - start) * points) - top))

        cumulative = jnp.cumsum(jax.vmap(integral)(edges[:-1], edges[1:]))
        target = jax.random.uniform(key, (), dtype)
        panel = jnp.clip(jnp.searchsorted(cumulative, target * cumulative[-1]), 0, 31)
        start = edges[panel]
        before = jnp.where(panel > 0, cumulative[panel - 1], 0.0)

        def excess(t: Array) -> Array:  # F(t) - u
            return (before + integral(start, t)) / cumulative[-1] - target

        return increasing_root(excess, start, edges[panel + 1])


@distribution
@dataclass(frozen=True, eq=False)
class PowerSpherical:
    """log p(x) = kappa log(1 + mu'x) - log N(kappa): near a von Mises-Fisher, drawn from a beta.

    N = 2^(a + b) pi^b Gamma(a) / Gamma(a + b), a = (d - 1)/2 + kappa, b = (d - 1)/2, and mu'x is
    2 Beta(a, b) - 1. De Cao & Aziz 2020.

    Args:
      loc: the direction of mu, shape [d], of any length; 0 stands for the first axis.
      concentration: kappa > 0, a scalar.

    >>> d = PowerSpherical(jnp.array([0.0, 0.0, 2.0]), 1.0)
    >>> round(float(d.log_prob(jnp.array([0.0, 0.0, 1.0]))), 5)  # log 2 / 4 pi
    -1.83788
    """

    loc: Leaf
    concentration: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape("PowerSpherical", self.loc, self.concentration)

    def sample(self, key: Array) -> Array:
        return self.sample_and_log_prob(key)[0]

    def log_prob(self, x: Tree) -> Array:
        inside = _on_sphere("PowerSpherical.log_prob", x, self.shape)
        short = 0.5 * jnp.sum(jnp.square(x - _normalized(self.loc)))
        return jnp.where(inside, self._log_density(0.5 * short), -jnp.inf)

    def sample_and_log_prob(self, key: Array) -> tuple[Array, Array]:
        beta_key, key = jax.random.split(key)
        a, b = self._parameters()
        s = jax.random.beta(beta_key, b, a, dtype=a.dtype)  # (1 - mu'x) / 2
        info = jnp.finfo(a.dtype)
        s = jnp.clip(s, info.tiny, 1.0 - info.epsneg)
        return _around(key, self.loc, 1.0 - 2.0 * s, 2.0 * jnp.sqrt(s * (1.0 - s))), (
            self._log_density(s)
        )

    def mean(self) -> Array:
        a, b = self._parameters()
        return _normalized(self.loc) * (a - b) / (a + b)

    def entropy(self) -> Array:
        """log N - kappa E[log(1 + mu'x)], in nats."""
        a, b = self._parameters()
        # E[log((1 + mu'x) / 2)] = psi(a) - psi(a + b), psi(a) = log a - G'(a)
        expected = log_gamma_peak_slope(a + b) - log_gamma_peak_slope(a) - jnp.log1p(b / a)
        return self._log_normalizer() - floating(self.concentration) * expected

    def _parameters(self) -> tuple[Array, Array]:
        kappa = floating(self.concentration)
        b = jnp.asarray(0.5 * (self.shape[0] - 1), kappa.dtype)
        return b + kappa, b

    def _log_normalizer(self) -> Array:
        """log N - kappa log 2, which does not grow with kappa."""
        a, b = self._parameters()
        # Gamma(a) / Gamma(a + b) = B(a, b) / Gamma(b)
        log_ratio = log_beta(a, b) - math.lgamma(0.5 * (self.shape[0] - 1))
        return b * math.log(4.0 * math.pi) + log_ratio

    def _log_density(self, s: Array) -> Array:
        """s = (1 - mu'x) / 2."""
        at_antipode = jnp.log1p(-jnp.minimum(s, 1.0 - jnp.finfo(s.dtype).epsneg))
        return floating(self.concentration) * at_antipode - self._log_normalizer()


def _shape(owner: str, loc: Numbers, concentration: Numbers) -> tuple[int, ...]:
    shape = jnp.shape(loc)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"{owner}: loc has shape {shape}, expected [d], d at least 2")
    check_shape(owner, "concentration", concentration, ())
    return shape


def _normalized(v: Numbers) -> Array:
    """v / |v|; the first axis stands for 0, which a network gives to an empty input."""
    square = jnp.sum(jnp.square(v))
    zero = square == 0
    first = jnp.eye(1, jnp.size(v), dtype=jnp.result_type(v))[0]
    return jnp.where(zero, first, v / jnp.sqrt(jnp.where(zero, 1.0, square)))


def _around(key: Array, loc: Numbers, cosine: Array, sine: Array) -> Array:
    """cos(t) mu + sin(t) v, v uniform among the unit vectors across mu.

    v is a uniform u across the axis e nearest to mu, turned as the rotation does that takes e to
    mu. Its derivative in mu is of the size of v; that of a normal eps, projected across mu and
    normalized, has infinite variance where d is 3.
    """
    mu = _normalized(loc)
    nearest = jnp.arange(mu.size) == jnp.argmax(jnp.abs(mu))
    e = jnp.where(nearest, jnp.sign(mu), 0.0)
    u = _normalized(jnp.where(nearest, 0.0, jax.random.normal(key, mu.shape, mu.dtype)))
    v = u - (mu @ u) / (1.0 + e @ mu) * (e + mu)
    return _normalized(cosine * mu + sine * v)


def _on_sphere(owner: str, x: Tree, shape: tuple[int, ...]) -> Array:
    on = jnp.abs(jnp.sum(jnp.square(wide(real(x)))) - 1.0) < rounding(x)
    return within(owner, x, jnp.broadcast_to(on, shape), "a vector of length 1")
