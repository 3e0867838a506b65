"""Quantizers of a quantizer: with another gradient, or in other coordinates.

Each takes any quantizer, so that they multiply: `Projected(Rotation(UnitCodes(codebook)), down)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from typing_extensions import TypeAliasType

from jaxvae.checks import Floats, Integers, a_class_of, check_shape, checked
from jaxvae.models.quantization.quantizers import (
    Move,
    Quantized,
    UnitCodes,
    code_at,
    gap,
    sg,
    straight_through_value,
    unit,
)
from jaxvae.pytrees import pytree, wide


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


Quantizer = TypeAliasType("Quantizer", Annotated[Any, check_quantizer])
"""z [d] -> `Quantized`, with `lookup`."""
WithCodes = TypeAliasType("WithCodes", Annotated[Any, check_with_codes])
"""A quantizer with `codes` [K, d]."""


@checked
def rotation_trick(e: Array, z: Floats) -> Array:
    """The value of e with the gradient of z turned and stretched as z has to be to become e.

    e = |e|/|z| R z,   R = I - 2 r r' + 2 e^ z^',   r = (e^ + z^) / |e^ + z^|

    e^ = e/|e| and z^ = z/|z|; |e|/|z| R counts as a constant. A gradient keeps its angle to the
    code when it moves to z. Straight through where there is no R: at 0, and opposite to e.
    Fifty et al. 2024, section 4.2.

    >>> e, z = jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0])  # a quarter turn, and twice as long
    >>> jnp.round(jax.jacobian(lambda z: rotation_trick(e, z))(z), 3).tolist()
    [[0.0, -2.0], [2.0, 0.0]]
    """
    check_shape("rotation_trick", "e", e, jnp.shape(z))
    to, at = sg(unit(wide(e))), sg(unit(wide(z)))
    middle = to + at
    there = jnp.any(e != 0) & jnp.any(z != 0) & (gap(middle, 0.0) > float(jnp.finfo(z.dtype).eps))
    stretch = jnp.sqrt(sg(gap(e, 0.0) / jnp.where(there, gap(z, 0.0), 1.0)))
    r = unit(middle)
    turned = wide(z) - 2.0 * r * jnp.dot(r, wide(z)) + 2.0 * to * jnp.dot(at, wide(z))
    moved = jnp.where(there, stretch * turned, wide(z)).astype(z.dtype)
    return straight_through_value(e, moved)


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
    Shi et al. 2024.

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
        q = self.quantizer(self.down(jnp.asarray(z)))
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
