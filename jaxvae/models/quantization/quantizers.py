"""Codebooks of vectors: K codes as they are, on the unit sphere, or a linear map of frozen ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.checks import (
    Floats,
    Integers,
    Numbers,
    check_floats,
    check_instance,
    check_scalar,
    check_shape,
    checked,
    kind,
)
from jaxvae.pytrees import pytree, shown, value_of, wide, with_path

sg = jax.lax.stop_gradient
Move = Callable[[Any, "Codebook", Array, Array], "Codebook"]
"""(a key or None, a codebook, the vectors [n, d] that came to it, where each went [n]) -> moved."""


@shown
class Quantized(NamedTuple):
    """A vector as its code. The two penalties are equal in value and differ in their gradient.

    Args:
      code: e, shape [d]; backwards it is z, or what the quantizer says.
      indices: its number k, or [depth] of them; -1 where a mask hides the vector.
      commitment: |z - sg(e)|^2, which pulls the encoder to the code.
      codebook: |sg(z) - e|^2, which pulls the code to the encoder.
      logits: of a soft assignment, -|z - e_k|^2 of each of the K codes, [..., K]: one row for each
        choice that makes an index. None where there is no such thing.
    """

    code: Array
    indices: Array
    commitment: Array
    codebook: Array
    logits: Any = None


@checked
def straight_through_value(e: Array, z: Floats) -> Array:
    """sg(e) + z - sg(z), the value of e with the gradient of z: Bengio et al. 2013.

    >>> square = lambda z: jnp.square(straight_through_value(jnp.round(z), z))
    >>> jax.grad(square)(1.2).item()  # 2 e, not 2 z
    2.0
    """
    check_shape("straight_through_value", "e", e, jnp.shape(z))
    return with_path(e, z)


@checked
def nearest(codes: Floats, z: Floats) -> Quantized:
    """The code nearest to z, argmin_k |z - e_k|, whose gradient goes straight through to z.

    `codes` are e, shape [K, d], and z has shape [d]: what every codebook of vectors does.
    van den Oord, Vinyals & Kavukcuoglu 2017, equations 1 and 2.

    >>> int(nearest(jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([0.9, 0.6])).indices)
    1
    """
    if jnp.ndim(codes) != 2 or 0 in jnp.shape(codes):
        raise ValueError(f"nearest: codes has shape {jnp.shape(codes)}, expected [K, d]")
    check_shape("nearest", "z", z, jnp.shape(codes)[1:])
    # as written: |e|^2 - 2 e'z, a matrix product, has no digits left far from 0
    gaps = jax.vmap(gap, (0, None))(wide(codes), wide(z))
    index = jnp.argmin(gaps)
    e = jnp.asarray(codes)[index]
    return Quantized(straight_through_value(e, z), index, gap(z, sg(e)), gap(sg(z), e), -gaps)


def check_codebook(owner: str, name: str, codebook: Any, axes: int = 0) -> None:
    """Raise unless `codebook` is a `Codebook` of such arrays, behind `axes` axes."""
    expected = "a Codebook; make one, jaxvae.models.init_codebook(codes)"
    check_instance(owner, name, codebook, of=Codebook, expected=expected)
    shape = jnp.shape(codebook.codes)
    if len(shape) != axes + 2 or 0 in shape:
        expected = "[K, d]" if not axes else "[depth, K, d]"
        raise ValueError(f"{owner}: codes has shape {shape}, expected {expected}")
    check_shape(owner, "counts", codebook.counts, shape[:-1])
    check_shape(owner, "sums", codebook.sums, shape)


@shown
@kind(check_codebook)
class Codebook(NamedTuple):
    """K codes; a vector goes to the nearest, argmin_k |z - e_k|. `init_codebook` makes one.

    van den Oord, Vinyals & Kavukcuoglu 2017, equations 1 and 2.

    Args:
      codes: e, shape [K, d].
      counts: N, shape [K]: how often each is used a batch, a moving average; see `ema_codebook`.
      sums: m, shape [K, d]: the sum of the vectors that it then stands for, likewise.

    >>> q = init_codebook(jnp.array([[0.0, 0.0], [1.0, 1.0]]))(jnp.array([0.9, 0.6]))
    >>> int(q.indices), q.code.tolist(), round(float(q.commitment), 5)
    (1, [1.0, 1.0], 0.17)
    """

    codes: Floats
    counts: Floats
    sums: Floats

    @checked
    def __call__(self, z: Floats) -> Quantized:
        return nearest(self.codes, z)

    @checked
    def lookup(self, index: Integers) -> Array:
        return code_at(self, index)

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "Codebook":
        return move(key, self, z, indices)


@pytree
@dataclass(frozen=True)
class UnitCodes:
    """The codes of another codebook on the unit sphere: e_k / |e_k|.

    `cosine` puts the vectors there too, and then the nearest code is that of the least angle.
    Yu et al. 2021, section 3.2.

    Args:
      quantizer: has `codes` [K, d]: a `Codebook` or a `SimVQ`.

    >>> UnitCodes(init_codebook(jnp.array([[3.0, 4.0]]))).lookup(jnp.array(0)).tolist()
    [0.6000000238418579, 0.800000011920929]
    """

    quantizer: Any

    @property
    def codes(self) -> Array:
        return jax.vmap(unit)(self.quantizer.codes)

    def __call__(self, z: Floats) -> Quantized:
        return nearest(self.codes, z)

    def lookup(self, index: Integers) -> Array:
        return code_at(self, index)

    def each_codebook(self, move: Move, key: Any, z: Array, indices: Array) -> "UnitCodes":
        return replace(self, quantizer=self.quantizer.each_codebook(move, key, z, indices))


def check_frozen(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is an array [K, D] of floats, or a `Constant` of one."""
    value = value_of(value)
    check_floats(owner, name, value)
    if jnp.ndim(value) != 2:
        raise ValueError(f"{owner}: {name} has shape {jnp.shape(value)}, expected [K, D]")


Frozen = TypeAliasType("Frozen", Annotated[Any, check_frozen])
"""Codes [K, D], or a `Constant` of them."""


@pytree
@dataclass(frozen=True)
class SimVQ:
    """A linear map of frozen codes, e_k = c_k W: a step of W moves every code, used or not.

    Where the codes themselves are learned, those that nobody uses get no gradient and stay behind.
    Zhu et al. 2024.

    Args:
      frozen: c, shape [K, D], draws of a normal; no gradient reaches them. Optimisers with weight
        decay are kept off by `Constant(c)`.
      weight: W, shape [D, d]; learned through `Quantized.codebook`.

    >>> q = SimVQ(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0], [5.0]]))(jnp.array([4.9]))
    >>> int(q.indices), q.code.tolist()
    (1, [5.0])
    """

    frozen: Frozen
    weight: Floats

    @property
    def codes(self) -> Array:
        frozen, width = jnp.asarray(value_of(self.frozen)), jnp.shape(self.weight)[-1:]
        check_shape("SimVQ", "weight", self.weight, (*jnp.shape(frozen)[1:], *width))
        return sg(frozen) @ self.weight

    @checked
    def __call__(self, z: Floats) -> Quantized:
        return nearest(self.codes, z)

    def lookup(self, index: Integers) -> Array:
        return code_at(self, index)


@checked
def init_codebook(codes: Floats) -> Codebook:
    """A `Codebook` of these codes, with moving averages that count each as used once a batch.

    `codes` [K, d] are floats: what `kmeans` finds in vectors of the encoder, or small noise.

    >>> init_codebook(jnp.zeros((8, 2))).counts.shape
    (8,)
    """
    codebook = Codebook(codes, jnp.ones(jnp.shape(codes)[:1], jnp.result_type(codes)), codes)
    check_codebook("init_codebook", "codes", codebook)
    return codebook._replace(counts=wide(codebook.counts), sums=wide(codes))


def code_at(quantizer: Any, index: Integers) -> Array:
    """e_k of what has codes [K, d]."""
    check_scalar(f"{type(quantizer).__name__}.lookup", "index", index)
    return jnp.asarray(quantizer.codes)[index]


def unit(z: Numbers) -> Array:
    """z / |z|, and 0 at 0."""
    square = jnp.sum(jnp.square(wide(z)))
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return (wide(z) / length).astype(jnp.result_type(z))


def gap(a: Numbers, b: Numbers) -> Array:
    """|a - b|^2."""
    return jnp.sum(jnp.square(wide(a) - wide(b)))
