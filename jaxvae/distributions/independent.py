"""Independent events, stacked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, check_shape
from jaxvae.protocols import (
    Distribution,
    event_shape,
    has_path,
    is_certain,
    log_density,
    log_density_relaxed,
    mean_of,
    method_of,
    sample_and_log_prob,
)
from jaxvae.pytrees import arrays, pytree, value_of


@pytree
@dataclass(frozen=True, eq=False)
class Independent:
    """n independent events, each from its own part of a stack: log p(x) = sum_i log p_i(x_i).

    It makes of a distribution over ONE thing, a pixel's mixture or a count, one over many.

    Args:
      parts: a distribution whose leaves are stacked along a leading axis of n, as `jax.vmap` makes
        them. Two axes are an `Independent` of an `Independent`.

    >>> from jaxvae import Mixture, Normal
    >>> pixel = Normal(jnp.zeros((5, 2)), jnp.ones((5, 2)))
    >>> pixels = Independent(Mixture(jnp.zeros((5, 2)), pixel))
    >>> round(float(pixels.log_prob(jnp.zeros(5))), 5)  # -5/2 log 2 pi
    -4.59469
    """

    parts: Any

    @property
    def reparameterized(self) -> bool:
        return has_path(self.parts)

    @property
    def certain(self) -> bool:
        return is_certain(self.parts)

    def sample(self, key: Array) -> Any:
        return jax.vmap(lambda d, k: d.sample(k))(self.unstack(), self._keys(key))

    def log_prob(self, x: Tree) -> Array:
        return self._sum(log_density, x)

    def log_prob_relaxed(self, x: Tree) -> Array:
        return self._sum(log_density_relaxed, x)

    def _sum(self, log_density: Callable[[Any, Any], Array], x: Tree) -> Array:
        for leaf, like in zip(jax.tree.leaves(x), jax.tree.leaves(self._event()), strict=True):
            check_shape("Independent.log_prob", "event", leaf, like.shape)
        return jnp.sum(jax.vmap(log_density)(self.unstack(), x))

    def sample_and_log_prob(self, key: Array) -> tuple[Any, Array]:
        x, log_p = jax.vmap(sample_and_log_prob)(self.unstack(), self._keys(key))
        return x, jnp.sum(log_p)

    def mean(self) -> Any:
        return jax.vmap(mean_of)(self.unstack())

    def unstack(self) -> Any:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.parts)}
        if len(sizes) > 1:
            raise ValueError(
                f"Independent: the leaves of parts have the leading axes {sorted(sizes)}, expected "
                "(n,) for all, as jax.vmap makes them"
            )
        return arrays(self.parts)

    def in_parts(self, change: Callable[[Any], Any]) -> "Independent":
        return Independent(change(self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._event().shape

    def _event(self) -> Any:
        """Shapes of a draw."""
        return jax.eval_shape(self.sample, jax.random.key(0))

    def _keys(self, key: Array) -> Array:
        if not (leaves := jax.tree.leaves(self.parts)):
            raise TypeError("Independent: parts has no leaves; write Constant(Independent(parts))")
        return jax.random.split(key, len(leaves[0]))


def factors(d: Distribution) -> Any:
    """A distribution of independent latents as a batch [d] of one-latent ones, for `jax.vmap`."""
    d = value_of(d)
    if isinstance(d, Independent):
        each, axes = jax.vmap(factors)(d.unstack()), 2
    elif event_shape(d) == () and not hasattr(d, "unstack"):  # one number is one latent
        each, axes = d, 0
    else:
        each = method_of(d, "unstack", "model", "take its latents together, as kl_per_level does")()
        axes = len(event_shape(d))
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[axes:])), arrays(each))
