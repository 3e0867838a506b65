"""Quantizers: the nearest code of one book, of several in a row, or of a fixed grid."""

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.checks import (
    Floats,
    Integers,
    Numbers,
    a_class_of,
    check_instance,
    check_scalar,
    check_shape,
    checked,
    kind,
)
from jaxvae.pytrees import pytree

sg = jax.lax.stop_gradient


class Quantized(NamedTuple):
    """A vector as its code. The two penalties are equal in value and differ in their gradient.

    Args:
      code: e, shape [d]; backwards it is z.
      indices: its number k, or [depth] of them.
      commitment: |z - sg(e)|^2, which pulls the encoder to the code.
      codebook: |sg(z) - e|^2, which pulls the code to the encoder.
    """

    code: Array
    indices: Array
    commitment: Array
    codebook: Array


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


def check_levels(owner: str, name: str, levels: object) -> None:
    """Raise unless `levels` is a tuple of integers of at least 2."""
    good = "a tuple of integers of at least 2, as (8, 5, 5, 5), with less than 2^31 codes in all"
    if type(levels) is not tuple:
        raise TypeError(f"{owner}: {name} is {a_class_of(levels)}, expected {good}")
    if not levels or not all(type(n) is int and n > 1 for n in levels) or prod(levels) >= 2**31:
        raise ValueError(f"{owner}: {name} is {levels!r}, expected {good}")


Levels = TypeAliasType("Levels", Annotated[tuple[int, ...], check_levels])
"""How many each coordinate has, at least 2."""


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
        check_shape("Codebook", "z", z, jnp.shape(self.codes)[1:])
        # as written: |e|^2 - 2 e'z, a matrix product, has no digits left far from 0
        index = jnp.argmin(jax.vmap(_gap, (0, None))(_wide(self.codes), _wide(z)))
        e = jnp.asarray(self.codes)[index]
        return Quantized(straight_through_value(e, z), index, _gap(z, sg(e)), _gap(sg(z), e))

    @checked
    def lookup(self, index: Integers) -> Array:
        check_scalar("Codebook.lookup", "index", index)
        return jnp.asarray(self.codes)[index]


Books = TypeAliasType("Books", Annotated[Any, partial(check_codebook, axes=1)])
"""A `Codebook` with leaves of one more axis, a book after another."""


class ResidualCodebooks(NamedTuple):
    """Codebooks in a row, each for what those before it have left: code = sum_l e_l.

    L codebooks of K codes name K^L vectors at the price of L K. Zeghidour et al. 2021, algorithm 1.

    Args:
      codebooks: a `Codebook` whose leaves have the depth L as their leading axis.

    >>> codebooks = jax.vmap(init_codebook)(jnp.array([[[0.0], [4.0]], [[0.0], [1.0]]]))
    >>> q = ResidualCodebooks(codebooks)(jnp.array([5.2]))
    >>> q.indices.tolist(), q.code.tolist()
    ([1, 1], [5.0])
    """

    codebooks: Books

    @checked
    def __call__(self, z: Floats) -> Quantized:
        def one(rest: Array, codebook: Codebook) -> tuple[Array, Quantized]:
            q = codebook(rest)
            return rest - sg(codebook.lookup(q.indices)), q

        check_shape("ResidualCodebooks", "z", z, jnp.shape(self.codebooks.codes)[2:])
        _, q = jax.lax.scan(one, jnp.asarray(z), self.codebooks)
        code = straight_through_value(self.lookup(q.indices), z)
        return Quantized(code, q.indices, jnp.sum(q.commitment), jnp.sum(q.codebook))

    @checked
    def lookup(self, index: Integers) -> Array:
        check_shape("ResidualCodebooks", "index", index, jnp.shape(self.codebooks.codes)[:1])
        return jnp.sum(jax.vmap(Codebook.lookup)(self.codebooks, index), axis=0)


@pytree
@dataclass(frozen=True)
class FSQ:
    """Finite scalar quantization: each coordinate squashed and rounded to one of its levels.

    s_i = (L_i - 1) (1 + tanh z_i) / 2,   code_i = 2 round(s_i) / (L_i - 1) - 1

    Nothing is learned, nothing is committed to and no code can die. Odd levels have one at 0, even
    ones lie about it; the paper shifts these so that z = 0 is a code.
    Mentzer et al. 2023, section 3.1.

    Args:
      levels: L_i >= 2 of each of the d coordinates, a tuple; there are L_1 ... L_d codes.

    >>> q = FSQ((3, 2))(jnp.array([0.1, -5.0]))
    >>> q.code.tolist(), int(q.indices), FSQ((3, 2)).lookup(q.indices).tolist()
    ([0.0, -1.0], 2, [0.0, -1.0])
    """

    levels: Levels = field(metadata={"static": True})

    @checked
    def __call__(self, z: Floats) -> Quantized:
        check_shape("FSQ", "z", z, (len(self.levels),))
        levels, wide = jnp.asarray(self.levels), _wide(z)
        top = (levels - 1).astype(wide.dtype)
        s = 0.5 * top * (1.0 + jnp.tanh(wide))
        digits = sg(jnp.round(s))
        code = (2.0 * straight_through_value(digits, s) / top - 1.0).astype(z.dtype)
        # and of more levels than floats tell apart, top may round to one that is not there
        index = jnp.sum(jnp.minimum(digits.astype(int), levels - 1) * self._places())
        nothing = jnp.zeros((), z.dtype)
        return Quantized(code, index, nothing, nothing)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_scalar("FSQ.lookup", "index", index)
        levels = jnp.asarray(self.levels)
        digits = jnp.asarray(index) // self._places() % levels
        return 2.0 * digits.astype(float) / (levels - 1).astype(float) - 1.0

    def _places(self) -> Array:
        return jnp.asarray(prod(self.levels) // np.cumprod(self.levels))


@checked
def straight_through_value(e: Array, z: Floats) -> Array:
    """sg(e) + z - sg(z), the value of e with the gradient of z: Bengio et al. 2013.

    >>> square = lambda z: jnp.square(straight_through_value(jnp.round(z), z))
    >>> jax.grad(square)(1.2).item()  # 2 e, not 2 z
    2.0
    """
    check_shape("straight_through_value", "e", e, jnp.shape(z))
    return sg(e) + (z - sg(z))


@checked
def init_codebook(codes: Floats) -> Codebook:
    """A `Codebook` of these codes, with moving averages that count each as used once a batch.

    `codes` [K, d] are floats: vectors of the encoder, or small noise.

    >>> init_codebook(jnp.zeros((8, 2))).counts.shape
    (8,)
    """
    codebook = Codebook(codes, jnp.ones(jnp.shape(codes)[:1], jnp.result_type(codes)), codes)
    check_codebook("init_codebook", "codes", codebook)
    return codebook._replace(counts=_wide(codebook.counts), sums=_wide(codes))


def _gap(a: Numbers, b: Numbers) -> Array:
    return jnp.sum(jnp.square(a - b))


def _wide(a: Numbers) -> Array:
    """In float32 or better: a bfloat16 tells no integers apart above 256."""
    a = jnp.asarray(a)
    return a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a
