"""A distribution that draws one coordinate after the other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree
from jaxvae.protocols import distribution, log_density, traced_has_path


@distribution
@dataclass(frozen=True, eq=False)
class Autoregressive:
    """p(z) = prod_i p(z_i | z_1, ..., z_{i-1}): scored in one pass, drawn in d.

    Any conditional serves: a `Normal`, an `Independent` of `Mixture`s, a `Categorical` of codes.
    Draws are differentiable where the conditional's are.
    Bengio & Bengio 2000; Germain et al. 2015; as a prior: Chen et al. 2017.

    Args:
      conditioner: (z [d], context) -> raw, row i of z_1..z_{i-1} alone: `nn.MaskedMLP`. It sees
        integers as floats.
      head: raw -> a distribution over d independent coordinates; static, so a function of a module.
      length: d.

    >>> from jaxvae import Normal
    >>> previous = jax.tree_util.Partial(lambda z, _: jnp.append(0.0, z[:-1]))
    >>> walk = Autoregressive(previous, lambda raw: Normal(raw, 1.0), 3)
    >>> round(float(walk.log_prob(jnp.zeros(3))), 5)  # -3/2 log 2 pi
    -2.75682
    """

    conditioner: Any
    head: Callable[[Array], Any] = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    context: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def reparameterized(self) -> bool:
        return traced_has_path(lambda: self._given(self._start()))

    def sample(self, key: Array) -> Array:
        like = jax.eval_shape(lambda: self._given(self._start()).sample(jax.random.key(0)))
        coordinates = jnp.arange(self.length)

        def one_more(z: Array, i: Array) -> tuple[Array, None]:
            drawn = self._given(z).sample(jax.random.fold_in(key, i))
            return jnp.where(coordinates == i, drawn, z), None

        z, _ = jax.lax.scan(one_more, jnp.zeros(like.shape, like.dtype), coordinates)
        return z

    def log_prob(self, z: Tree) -> Array:
        return log_density(self._given(z), z)

    def _start(self) -> Array:
        """Zeros in the precision of the parameters."""
        leaves = jax.tree.leaves((self.conditioner, self.context))
        return jnp.zeros(self.length, jnp.result_type(0.0, *leaves))

    def _given(self, z: Array) -> Any:
        if not jnp.issubdtype(z.dtype, jnp.floating):
            z = z.astype(self._start().dtype)
        return self.head(self.conditioner(z, self.context))
