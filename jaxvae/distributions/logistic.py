"""Discretized logistics: likelihoods of pixels as stored, integers 0..255, in bits that compare."""

from dataclasses import dataclass, field
from math import log, prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Leaf, Numbers, as_integers, check_scale, check_shape, checked, within
from jaxvae.distributions.independent import Independent
from jaxvae.distributions.mixture import Mixture
from jaxvae.distributions.special import float_type
from jaxvae.protocols import MissingMethodError, distribution
from jaxvae.pytrees import stacked


@distribution
@dataclass(frozen=True, eq=False)
class DiscretizedLogistic:
    """Each pixel's probability is what a logistic density has in its bin; the edge bins go on.

    With x = 2 k / (L - 1) - 1 in [-1, 1] for k = 0..L-1 and half = 1 / (L - 1),

        P(k) = sigma((x + half - mu) / s) - sigma((x - half - mu) / s),

    without the second term at k = 0 and with 1 for the first at k = L - 1, so that the L bins sum
    to 1. As sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)), no two near numbers are ever
    subtracted and log P and its gradient are finite at every mean and scale.
    Kingma et al. 2016; coupling: Salimans, Karpathy, Chen & Kingma 2017.

    Args:
      loc: mu, on the scale where the levels are -1..1, any shape [...]; that is the event's shape.
      scale: s > 0, the same shape or a scalar.
      coupling: optional [C, C] for an event of C channels: mu_c + sum_{j<c} coupling_cj x_j, so
        that green and blue know the channels before them; what stands on and above the diagonal is
        ignored.
      levels: L, 256 by default. Events are integers 0..L-1.

    >>> d = DiscretizedLogistic(jnp.zeros(1), jnp.ones(1))
    >>> k = jnp.arange(256)[:, None]
    >>> round(float(jnp.sum(jnp.exp(jax.vmap(d.log_prob)(k)))), 4)
    1.0
    """

    loc: Leaf
    scale: Leaf
    coupling: Any = None
    levels: int = field(default=256, metadata={"static": True})
    reparameterized: ClassVar[bool] = False
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        check_scale("DiscretizedLogistic", self.loc, self.scale)
        shape = jnp.shape(self.loc)
        if self.coupling is not None:
            check_shape("DiscretizedLogistic", "coupling", self.coupling, 2 * shape)
        return shape

    def sample(self, key: Key) -> Array:
        noise = self.scale * jax.random.logistic(key, self.shape, float_type(self.loc))
        if self.coupling is None:
            return self._level(self.loc + noise)
        k = self._level(noise)
        for c in range(k.size):  # a channel at a time
            k = k.at[c].set(self._level(self._means(k) + noise)[c])
        return k

    def log_prob(self, k: Numbers) -> Array:
        owner, expected = "DiscretizedLogistic.log_prob", f"integers 0..{self.levels - 1} as stored"
        k = as_integers(owner, k, expected)
        inside = within(owner, k, (k >= 0) & (k < self.levels), expected)
        centered, half = self._values(k) - self._means(k), 1.0 / (self.levels - 1)
        above, below = (centered + half) / self.scale, (centered - half) / self.scale
        first, last = k == 0, k == self.levels - 1
        log_p = (
            jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
            + jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
            + jnp.where(first | last, 0.0, _log1mexp(2.0 * half / self.scale))
        )
        return jnp.where(inside, jnp.sum(log_p), -jnp.inf)

    def mean(self) -> Array:
        """E[k] = sum_{k >= 1} P(at least k), in levels 0..L-1; none where channels couple."""
        if self.coupling is not None:
            raise MissingMethodError("DiscretizedLogistic: coupled channels have no mean")
        dtype = jnp.result_type(self.loc)
        edges = (2.0 * jnp.arange(1, self.levels, dtype=dtype) - 1.0) / (self.levels - 1) - 1.0
        flat = stacked(self, self.shape)
        means = jax.vmap(lambda m, s: jnp.sum(jax.nn.sigmoid((m - edges) / s)))(
            jnp.ravel(flat.loc), jnp.ravel(flat.scale)
        )
        return means.reshape(self.shape)

    def unstack(self) -> Any:
        if self.coupling is not None:
            raise MissingMethodError("DiscretizedLogistic: coupled channels are not independent")
        return stacked(self, self.shape)

    def _values(self, k: Numbers) -> Array:
        """Levels on the scale -1..1."""
        return 2.0 * jnp.asarray(k).astype(jnp.result_type(self.loc)) / (self.levels - 1) - 1.0

    def _means(self, k: Numbers) -> Array:
        if self.coupling is None:
            return jnp.asarray(self.loc)
        return self.loc + jnp.tril(self.coupling, -1) @ self._values(k)

    def _level(self, x: Array) -> Array:
        k = jnp.round(0.5 * (x + 1.0) * (self.levels - 1))
        dtype = jnp.uint8 if self.levels <= 256 else jnp.int32  # as stored
        return jnp.clip(k, 0, self.levels - 1).astype(dtype)


def _log1mexp(a: Array) -> Array:
    """log(1 - e^-a), a > 0."""
    small = a < 0.6931471805599453
    return jnp.where(
        small,
        jnp.log(-jnp.expm1(-jnp.where(small, a, 1.0))),
        jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, a))),
    )


def logistic_mixture(logits: Any, loc: Any, scale: Any, coupling: Any = None) -> Independent:
    """Images 0..255 [h, w, C], each pixel a mixture of K discretized logistics: PixelCNN++'s.

    It is an `Independent` over rows, of one over columns, of `Mixture`s of `DiscretizedLogistic`s.
    Salimans, Karpathy, Chen & Kingma 2017, section 2.

    Args:
      logits: of the components, shape [h, w, K].
      loc: shape [h, w, K, C].
      scale: positive, shape [h, w, K, C].
      coupling: None, or the coefficients of channels on those before them, row by row of a strict
        lower triangle: shape [h, w, K, C (C - 1) / 2], 3 for RGB.

    >>> zeros = jnp.zeros((2, 2, 5, 3))  # 2x2 RGB pixels, five components
    >>> images = logistic_mixture(jnp.zeros((2, 2, 5)), zeros, zeros + 0.1, zeros)
    >>> images.sample(jax.random.key(0)).shape
    (2, 2, 3)
    """
    channels = jnp.shape(loc)[-1]
    if coupling is not None:
        rows, columns = jnp.tril_indices(channels, -1)
        square = jnp.zeros((*jnp.shape(loc), channels), jnp.result_type(loc))
        coupling = square.at[..., rows, columns].set(coupling)
    return Independent(Independent(Mixture(logits, DiscretizedLogistic(loc, scale, coupling))))


@checked
def bits_per_dim(nats: Numbers, shape: tuple[int, ...]) -> Any:
    """Nats of a whole event as bits a coordinate: nats / (D log 2), D the size of the event.

    >>> round(bits_per_dim(3 * log(256), (3,)), 6)  # uniform bytes
    8.0
    """
    if not isinstance(shape, tuple):
        raise TypeError(f"bits_per_dim: shape is {shape!r}, expected a tuple such as (28, 28, 1)")
    return nats / (prod(shape) * log(2.0))
