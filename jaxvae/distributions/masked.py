"""Missing entries."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.distributions.products import Product
from jaxvae.protocols import mean_of
from jaxvae.pytrees import pytree

Array = jax.Array


@pytree
@dataclass(frozen=True, eq=False)
class Masked:
    """The entries of an event that were observed: log p(x_observed) = sum_i mask_i log p_i(x_i).

    Events are pairs (x, mask): what is missing is part of the datum, so a decoder need not know it.
    An entry that is missing may hold anything, NaN included; neither value nor gradient sees it.
    Sampling draws every entry, and says so in the mask.

    Args:
      distribution: of independent coordinates: any elementwise one, an `Each` (a mask of its first
        axes hides whole pixels), or a `Product`, whose mask has the structure of the event.

    Raises:
      TypeError: when scored, if the coordinates are not independent, as a `MultivariateNormal`'s.

    >>> from jaxvae import Normal
    >>> d = Masked(Normal(jnp.zeros(2), jnp.ones(2)))
    >>> x, mask = jnp.array([0.0, jnp.nan]), jnp.array([True, False])
    >>> round(float(d.log_prob((x, mask))), 5)  # -1/2 log 2 pi
    -0.91894

    Nazabal et al. 2020, equation 4; Mattei & Frellsen 2019, section 2.
    """

    distribution: Any

    def sample(self, key: Array) -> tuple[Any, Any]:
        x = self.distribution.sample(key)
        return x, jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), x)

    def log_prob(self, event: tuple[Any, Any]) -> Array:
        x, mask = event
        return _observed(self.distribution, x, mask)

    def sample_and_log_prob(self, key: Array) -> tuple[tuple[Any, Any], Array]:
        event = self.sample(key)
        return event, self.log_prob(event)

    def mean(self) -> Any:
        return mean_of(self.distribution)


def _observed(d: Any, x: Any, mask: Any) -> Array:
    if isinstance(d, Product):
        parts = zip(d.split(d.parts), d.split(x), d.split(mask), strict=True)
        return jnp.sum(jnp.stack([_observed(*part) for part in parts]))
    if jnp.ndim(mask) == 0:
        # 0 is in the support of every likelihood of pixels, counts and reals
        x = jax.tree.map(lambda leaf: jnp.where(mask, leaf, jnp.zeros_like(leaf)), x)
        return jnp.where(mask, d.log_prob(x), 0.0)
    if not hasattr(d, "unstack"):
        raise TypeError(
            f"Masked: the coordinates of {type(d).__name__} are not known to be independent, "
            "expected an elementwise distribution, Each or Product"
        )
    return jnp.sum(jax.vmap(_observed)(d.unstack(), x, mask))
