"""Flows whose map of one coordinate is made by a network of others: coupling and autoregression.

A conditioner is any callable pytree `(z, context) -> raw numbers`; `context` is what the flow may
depend on from outside, for instance what an encoder made of x, or None.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxvae.bijectors.elementwise import AffineTransformer
from jaxvae.checks import Tree
from jaxvae.pytrees import pytree
from jaxvae.pytrees.scanning import scan


@pytree
@dataclass(frozen=True, eq=False)
class InverseAutoregressive:
    """x_i = T(z_i; raw_i), raw_i a function of z_1, ..., z_{i-1}: one pass forward, d passes back.

    Forward it is an inverse autoregressive flow (IAF), the posterior of Kingma et al.; `Inverse` of
    it is a masked autoregressive flow (MAF), which scores in one pass and so makes a prior.
    Kingma et al. 2016; masked: Papamakarios, Pavlakou & Murray 2017.

    Args:
      conditioner: (z [d], context) -> raw [d, transformer.size], row i of z_1..z_{i-1} alone:
        `nn.MaskedMLP`.
      transformer: of raw numbers to a coordinate's map, `AffineTransformer` or `SplineTransformer`.

    >>> from jax.tree_util import Partial
    >>> first_alone = Partial(lambda z, _: jnp.zeros((2, 2)).at[1, 0].set(z[0]))
    >>> flow = InverseAutoregressive(first_alone)
    >>> flow.forward_and_log_det(jnp.array([1.0, 2.0]))[0].tolist()
    [1.0, 3.0]
    """

    conditioner: Any
    context: Any = None
    transformer: Any = field(default=AffineTransformer(), metadata={"static": True})

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        return self._at(z).forward_and_log_det(z)

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        coordinates = jnp.arange(x.size)

        def one_more(z: Array, i: Array) -> tuple[Array, None]:
            """Adds z_i to z, known up to there and 0 elsewhere: a wrong one could overflow."""
            return jnp.where(coordinates == i, self._at(z).inverse_and_log_det(x)[0], z), None

        z, _ = scan(one_more, jnp.zeros_like(x), coordinates)
        return z, -self._at(z).forward_and_log_det(z)[1]

    def _at(self, z: Array) -> Any:
        return self.transformer(self.conditioner(z, self.context))


@pytree
@dataclass(frozen=True, eq=False)
class Coupling:
    """Real NVP's: the first half stays and makes the map of the second: one pass either way.

    x_a = z_a, x_b = T(z_b; raw(z_a)), a the first d // 2 coordinates. Alternate with `Reverse`.
    Dinh, Sohl-Dickstein & Bengio 2017, equations 4 to 8; splines: Durkan et al. 2019.

    Args:
      conditioner: (z_a [d // 2], context) -> raw [d - d // 2, transformer.size].
      transformer: as for `InverseAutoregressive`.

    >>> from jax.tree_util import Partial
    >>> shift = Partial(lambda z, _: jnp.stack([z, 0.0 * z], axis=-1))
    >>> Coupling(shift).forward_and_log_det(jnp.array([1.0, 2.0]))[0].tolist()
    [1.0, 3.0]
    """

    conditioner: Any
    context: Any = None
    transformer: Any = field(default=AffineTransformer(), metadata={"static": True})

    def forward_and_log_det(self, z: Tree) -> tuple[Array, Array]:
        a, b = self._split(z)
        b, log_det = self._at(a).forward_and_log_det(b)
        return jnp.concatenate([a, b]), log_det

    def inverse_and_log_det(self, x: Tree) -> tuple[Array, Array]:
        a, b = self._split(x)
        b, log_det = self._at(a).inverse_and_log_det(b)
        return jnp.concatenate([a, b]), log_det

    def _split(self, event: Array) -> tuple[Array, Array]:
        half = event.size // 2
        return event[:half], event[half:]

    def _at(self, a: Array) -> Any:
        return self.transformer(self.conditioner(a, self.context))
