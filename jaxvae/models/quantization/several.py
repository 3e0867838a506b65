"""Quantizers of several quantizers: in a row, each for what is left, and side by side."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.checks import Floats, Integers, a_class_of, check_shape, checked
from jaxvae.models.quantization.compositions import Quantizer, check_quantizer
from jaxvae.models.quantization.quantizers import (
    Codebook,
    Move,
    Quantized,
    check_codebook,
    sg,
    straight_through_value,
)
from jaxvae.pytrees import shown
from jaxvae.pytrees.scanning import scan


def check_books(owner: str, name: str, value: object) -> None:
    """Raise unless `value` is a quantizer with leaves of one more axis."""
    if isinstance(value, Codebook):
        return check_codebook(owner, name, value, axes=1)
    return check_quantizer(owner, name, value)


Books = TypeAliasType("Books", Annotated[Any, check_books])
"""A quantizer whose leaves have one more axis in front, as `jax.vmap` makes it."""


@shown
class ResidualCodebooks(NamedTuple):
    """Codebooks in a row, each for what those before it have left: code = sum_l e_l.

    L codebooks of K codes name K^L vectors at the price of L K. Zeghidour et al. 2021, algorithm 1.

    Args:
      codebooks: a `Codebook` whose leaves have the depth L as their leading axis; or any other
        quantizer with leaves, made likewise by `jax.vmap`.

    >>> from jaxvae.models.quantization import init_codebook
    >>> codebooks = jax.vmap(init_codebook)(jnp.array([[[0.0], [4.0]], [[0.0], [1.0]]]))
    >>> q = ResidualCodebooks(codebooks)(jnp.array([5.2]))
    >>> q.indices.tolist(), q.code.tolist()
    ([1, 1], [5.0])
    """

    codebooks: Books

    @checked
    def __call__(self, z: Floats) -> Quantized:
        def one(rest: Array, codebook: Any) -> tuple[Array, Quantized]:
            q = codebook(rest)
            return rest - sg(codebook.lookup(q.indices)), q

        _, q = scan(one, z, self.codebooks)
        code = straight_through_value(self.lookup(q.indices), z)
        return Quantized(code, q.indices, jnp.sum(q.commitment), jnp.sum(q.codebook), q.logits)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_axis("ResidualCodebooks", self.codebooks, jnp.shape(index)[:1])
        return jnp.sum(jax.vmap(lambda book, k: book.lookup(k))(self.codebooks, index), axis=0)

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "ResidualCodebooks":
        check_axis("ResidualCodebooks", self.codebooks, jnp.shape(indices)[1:2])
        d = jax.eval_shape(self.lookup, indices[0]).shape
        check_shape("ResidualCodebooks", "z", z, (len(z), *d))
        indices = jnp.moveaxis(indices, 1, 0)

        def left(rest: Array, at: tuple[Any, Array]) -> tuple[Array, Array]:
            codebook, index = at
            return rest - jax.vmap(codebook.lookup)(index), rest

        _, rests = scan(left, z, (self.codebooks, indices))
        return ResidualCodebooks(_of_each(self.codebooks, move, key, rests, indices))


@shown
class Grouped(NamedTuple):
    """Quantizers side by side: z in G equal parts, a quantizer for each.

    Of `Codebook`s it is product quantization, Jegou, Douze & Schmid 2011; of `ResidualCodebooks`
    grouped residual quantization, Yang et al. 2023. An index is [G], or [G, depth].

    Args:
      quantizers: any quantizer whose leaves have the groups G as their leading axis.

    >>> from jaxvae.models.quantization import init_codebook
    >>> quantizer = Grouped(jax.vmap(init_codebook)(jnp.array([[[0.0], [4.0]], [[5.0], [1.0]]])))
    >>> q = quantizer(jnp.array([3.0, 2.0]))
    >>> q.indices.tolist(), q.code.tolist()
    ([1, 1], [4.0, 1.0])
    """

    quantizers: Quantizer

    @checked
    def __call__(self, z: Floats) -> Quantized:
        q = jax.vmap(lambda quantizer, part: quantizer(part))(self.quantizers, self._parts(z))
        code, (commitment, codebook) = jnp.ravel(q.code), map(jnp.sum, q[2:4])
        return Quantized(code, q.indices, commitment, codebook, q.logits)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_axis("Grouped", self.quantizers, jnp.shape(index)[:1])
        return jnp.ravel(jax.vmap(lambda quantizer, k: quantizer.lookup(k))(self.quantizers, index))

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "Grouped":
        check_axis("Grouped", self.quantizers, jnp.shape(indices)[1:2])
        parts, indices = jax.vmap(self._parts, out_axes=1)(z), jnp.moveaxis(indices, 1, 0)
        return Grouped(_of_each(self.quantizers, move, key, parts, indices))

    def _parts(self, z: Floats) -> Array:
        """[d] -> [G, d/G]."""
        if not (leaves := jax.tree.leaves(self.quantizers)):
            raise TypeError(
                f"Grouped: quantizers is {a_class_of(self.quantizers)}, which has no arrays whose "
                "leading axis could be that of the groups; group the numbers of z yourself and "
                "jax.vmap it, as all groups share it"
            )
        groups = len(leaves[0])
        if jnp.ndim(z) != 1 or jnp.size(z) % groups:
            raise ValueError(
                f"Grouped: z has shape {jnp.shape(z)}, expected [d], d a multiple of {groups}"
            )
        return jnp.reshape(z, (groups, -1))


def check_axis(owner: str, quantizers: Any, axis: tuple[int, ...]) -> None:
    """Raise unless an index has a number for each of the quantizers."""
    leaves = jax.tree.leaves(quantizers)
    if axis != (expected := jnp.shape(leaves[0])[:1]):
        raise ValueError(
            f"{owner}: index has {axis} numbers a vector, expected {expected}: one for each"
        )


def _of_each(quantizers: Any, move: Move, key: Any, z: Array, indices: Array) -> Any:
    """`each_codebook` of quantizers along a leading axis, with a key each."""
    keys = None if key is None else jax.random.split(key, len(z))
    return jax.vmap(lambda q, *args: q.each_codebook(move, *args))(quantizers, keys, z, indices)
