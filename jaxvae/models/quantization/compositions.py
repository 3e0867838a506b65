"""Quantizers of quantizers: another gradient, other coordinates, several in a row, side by side.

Each takes any quantizer, so that they multiply: `Projected(Rotation(UnitCodes(codebook)), down)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from typing_extensions import TypeAliasType

from jaxvae.checks import Floats, Integers, a_class_of, check_shape, checked
from jaxvae.models.quantization.quantizers import (
    Codebook,
    Move,
    Quantized,
    UnitCodes,
    check_codebook,
    code_at,
    gap,
    sg,
    straight_through_value,
    unit,
    wide,
)
from jaxvae.pytrees import pytree


def check_quantizer(owner: str, name: str, value: object) -> None:
    """Raise unless `value` can be called, and knows a code by its index."""
    if not callable(value) or not callable(getattr(value, "lookup", None)):
        expected = "a quantizer, as jaxvae.models.init_codebook(codes) makes one"
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected {expected}")


def check_with_codes(owner: str, name: str, value: object) -> None:
    """Raise unless `value` is a quantizer with codes [K, d]."""
    check_quantizer(owner, name, value)
    if getattr(getattr(value, "codes", None), "ndim", 0) != 2:
        expected = "one with codes [K, d]: a Codebook, SimVQ or UnitCodes"
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected {expected}")


def check_books(owner: str, name: str, value: object) -> None:
    """Raise unless `value` is a quantizer with leaves of one more axis."""
    if isinstance(value, Codebook):
        return check_codebook(owner, name, value, axes=1)
    return check_quantizer(owner, name, value)


Quantizer = TypeAliasType("Quantizer", Annotated[Any, check_quantizer])
"""z [d] -> `Quantized`, with `lookup`."""
WithCodes = TypeAliasType("WithCodes", Annotated[Any, check_with_codes])
"""A quantizer with `codes` [K, d]."""
Books = TypeAliasType("Books", Annotated[Any, check_books])
"""A quantizer whose leaves have one more axis in front, as `jax.vmap` makes it."""


@checked
def rotation_trick(e: Array, z: Floats) -> Array:
    """The value of e with the gradient of z turned and stretched as z has to be to become e.

    e = |e|/|z| R z,   R = I - 2 r r' + 2 e^ z^',   r = (e^ + z^) / |e^ + z^|

    e^ = e/|e| and z^ = z/|z|; |e|/|z| R counts as a constant. A gradient keeps its angle to the
    code when it moves to z. Straight through where there is no R: at 0, and opposite to e.
    Fifty et al. 2024, equation 4 and section 4.2.

    >>> e, z = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])  # a quarter turn, and twice as long
    >>> jnp.round(jax.jacobian(lambda z: rotation_trick(e, z))(z), 3).tolist()
    [[0.0, -2.0], [2.0, 0.0]]
    """
    check_shape("rotation_trick", "e", e, jnp.shape(z))
    to, at = sg(unit(e)), sg(unit(z))
    middle = to + at
    there = jnp.any(e != 0) & jnp.any(z != 0) & (gap(middle, 0.0) > jnp.finfo(z.dtype).eps)
    stretch = jnp.sqrt(sg(gap(e, 0.0) / jnp.where(there, gap(z, 0.0), 1.0)))
    r = unit(middle)
    turned = z - 2.0 * r * jnp.dot(r, z) + 2.0 * to * jnp.dot(at, z)
    return straight_through_value(e, jnp.where(there, stretch * turned, z))


@pytree
@dataclass(frozen=True)
class Rotation:
    """A quantizer whose gradient passes by the `rotation_trick`, not straight through.

    Fifty et al. 2024.

    Args:
      quantizer: any whose codes lie where its vectors do.

    >>> from jaxvae.models.quantization import init_codebook
    >>> quantizer = Rotation(init_codebook(jnp.array([[0.0, 2.0]])))
    >>> jacobian = jax.jacobian(lambda z: quantizer(z).code)(jnp.array([1.0, 0.0]))
    >>> jnp.round(jacobian, 3).tolist()
    [[0.0, -2.0], [2.0, 0.0]]
    """

    quantizer: Quantizer

    @checked
    def __call__(self, z: Floats) -> Quantized:
        q = self.quantizer(z)
        return q._replace(code=rotation_trick(self.lookup(q.indices), z))

    def lookup(self, index: Integers) -> Array:
        return self.quantizer.lookup(index)

    @property
    def codes(self) -> Array:
        return self.quantizer.codes

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "Rotation":
        return replace(self, quantizer=self.quantizer.each_codebook(move, key, z, indices))


@pytree
@dataclass(frozen=True)
class IBQ:
    """Index backpropagation: a hard choice forwards, backwards the softmax over all codes.

    k = argmax_k e_k' z,   code = sum_k w_k e_k,   w = onehot(k) + p - sg(p),   p = softmax(e' z)

    So that the decoder's gradient reaches z, and every code, used or not. With the paper's weights
    its "double quantization" is `commitment=1`, `codebook=0.25` and a penalty |z - code|^2:
    `partial(vq, ..., penalty=lambda quantizer, z, q: jnp.sum((z - q.code) ** 2))`.
    Shi et al. 2024, equations 4 to 7.

    Args:
      quantizer: has `codes` [K, d]: a `Codebook`, `SimVQ` or `UnitCodes`.

    >>> from jaxvae.models.quantization import init_codebook
    >>> quantizer = IBQ(init_codebook(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))
    >>> int(quantizer(jnp.array([0.0, 1.0])).indices)
    0
    >>> jax.jacobian(lambda z: quantizer(z).code)(jnp.array([0.0, 1.0])).tolist()  # Cov_p(e, e)
    [[1.0, 0.0], [0.0, 0.0]]
    """

    quantizer: WithCodes

    @checked
    def __call__(self, z: Floats) -> Quantized:
        codes = wide(self.codes)
        check_shape("IBQ", "z", z, jnp.shape(codes)[1:])
        logits = codes @ wide(z)
        index = jnp.argmax(logits)
        hard = jax.nn.one_hot(index, len(codes), dtype=logits.dtype)
        e = jnp.asarray(self.codes)[index]
        soft = straight_through_value(hard, jax.nn.softmax(logits)) @ codes
        code = straight_through_value(e, soft.astype(e.dtype))
        return Quantized(code, index, gap(z, sg(e)), gap(sg(z), e), logits)

    def lookup(self, index: Integers) -> Array:
        return code_at(self, index)

    @property
    def codes(self) -> Array:
        return self.quantizer.codes


def _same(z: Array) -> Array:
    return z


SAME = Partial(_same)


@pytree
@dataclass(frozen=True)
class Projected:
    """A quantizer in coordinates of its own: code = up(e), e the code of down(z).

    With linear maps to few dimensions and back, factorised codes: Yu et al. 2021, section 3.2. With
    `down` to the unit sphere, `cosine`.

    Args:
      quantizer: any, of down(z).
      down: z [D] -> [d], a network or any callable pytree; where nothing is given, z.
      up: code [d] -> [D'], likewise.

    >>> from jaxvae.models.quantization import LFQ
    >>> down, up = Partial(lambda z: z[:2] - z[2:]), Partial(lambda e: 0.5 * e)
    >>> Projected(LFQ(2), down, up)(jnp.array([0.0, 1.0, 2.0, 0.5])).code.tolist()
    [-0.5, 0.5]
    """

    quantizer: Quantizer
    down: Callable[[Array], Array] = SAME
    up: Callable[[Array], Array] = SAME

    @checked
    def __call__(self, z: Floats) -> Quantized:
        q = self.quantizer(self.down(z))
        return q._replace(code=self.up(q.code))

    def lookup(self, index: Integers) -> Array:
        return self.up(self.quantizer.lookup(index))

    @property
    def codes(self) -> Array:
        return self.quantizer.codes

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "Projected":
        z = jax.vmap(self.down)(z)
        return replace(self, quantizer=self.quantizer.each_codebook(move, key, z, indices))


@checked
def cosine(quantizer: WithCodes) -> Projected:
    """A codebook that takes the code of the least angle to z; both lie on the unit sphere.

    argmax_k z' e_k / (|z| |e_k|) = argmin_k |z/|z| - e_k/|e_k||. Yu et al. 2021, section 3.2.

    >>> from jaxvae.models.quantization import init_codebook
    >>> quantizer = cosine(init_codebook(jnp.array([[9.0, 9.0], [0.1, 0.0]])))
    >>> quantizer(jnp.array([7.0, 1.0])).code.tolist()
    [1.0, 0.0]
    """
    return Projected(UnitCodes(quantizer), Partial(unit))


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

        _, q = jax.lax.scan(one, jnp.asarray(z), self.codebooks)
        code = straight_through_value(self.lookup(q.indices), z)
        return Quantized(code, q.indices, jnp.sum(q.commitment), jnp.sum(q.codebook), q.logits)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_axis("ResidualCodebooks", self.codebooks, jnp.shape(index)[:1])
        return jnp.sum(jax.vmap(lambda book, k: book.lookup(k))(self.codebooks, index), axis=0)

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "ResidualCodebooks":
        check_axis("ResidualCodebooks", self.codebooks, jnp.shape(indices)[1:2])
        indices = jnp.moveaxis(indices, 1, 0)

        def left(rest: Array, at: tuple[Any, Array]) -> tuple[Array, Array]:
            codebook, index = at
            return rest - jax.vmap(codebook.lookup)(index), rest

        _, rests = jax.lax.scan(left, z, (self.codebooks, indices))
        return ResidualCodebooks(_of_each(self.codebooks, move, key, rests, indices))


class Grouped(NamedTuple):
    """Quantizers side by side: z in G equal parts, a quantizer for each.

    Of `Codebook`s it is product quantization, Jegou, Douze & Schmid 2011; of `ResidualCodebooks`
    grouped residual quantization, Yang et al. 2023, section 3.1. An index is [G], or [G, depth].

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
        groups = len(jax.tree.leaves(self.quantizers)[0])
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
