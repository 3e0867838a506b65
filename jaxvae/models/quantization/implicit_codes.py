"""Codes that nobody stores: the points of a grid, the corners of a cube, those on the sphere."""

from dataclasses import dataclass, field
from math import prod
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from typing_extensions import TypeAliasType

from jaxvae.checks import Count, Floats, Integers, a_class_of, check_scalar, check_shape, checked
from jaxvae.models.quantization.quantizers import (
    Quantized,
    gap,
    sg,
    straight_through_value,
    unit,
)
from jaxvae.pytrees import pytree, wide

EDGE = 1e-3  # by which the paper's squashing of FSQ reaches beyond the outermost level


def check_levels(owner: str, name: str, levels: object) -> None:
    """Raise unless `levels` is a tuple of integers of at least 2."""
    good = "a tuple of integers of at least 2, as (8, 5, 5, 5), with less than 2^31 codes in all"
    if type(levels) is not tuple:
        raise TypeError(f"{owner}: {name} is {a_class_of(levels)}, expected {good}")
    if not levels or not all(type(n) is int and n > 1 for n in levels) or prod(levels) >= 2**31:
        raise ValueError(f"{owner}: {name} is {levels!r}, expected {good}")


Levels = TypeAliasType("Levels", Annotated[tuple[int, ...], check_levels])
"""How many each coordinate has, at least 2."""


@pytree
@dataclass(frozen=True)
class FSQ:
    """Finite scalar quantization: each coordinate squashed and rounded to one of its levels.

    s_i = (L_i - 1) (1 + tanh z_i) / 2,   code_i = 2 round(s_i) / (L_i - 1) - 1

    Nothing is learned, nothing is committed to and no code can die. Odd levels have one at 0, even
    ones lie about it. The paper's even levels are instead moved by half a step, so that z = 0 is a
    code, here with h = (L - 1) (1 + 1/1000) / 2 and o = 1/2 for even L, 0 for odd (its code has
    1 - 1/1000 and tan for artanh, which differs little but for L = 2):

    s_i = h_i tanh(z_i + artanh(o_i / h_i)) - o_i,   code_i = round(s_i) / floor(L_i / 2)

    Mentzer et al. 2023, section 3.1 and appendix A.1.

    Args:
      levels: L_i >= 2 of each of the d coordinates, a tuple; there are L_1 ... L_d codes.
      shifted: whether even levels are the paper's, -1 ... 1 - 2/L, and not -1 ... 1.

    >>> q = FSQ((3, 2))(jnp.array([0.1, -5.0]))
    >>> q.code.tolist(), int(q.indices), FSQ((3, 2)).lookup(q.indices).tolist()
    ([0.0, -1.0], 2, [0.0, -1.0])
    >>> FSQ((4,))(jnp.array([0.01])).code.tolist(), FSQ((4,), True)(jnp.array([0.01])).code.tolist()
    ([0.3333333730697632], [0.0])
    """

    levels: Levels = field(metadata={"static": True})
    shifted: bool = field(default=False, metadata={"static": True})

    @checked
    def __call__(self, z: Floats) -> Quantized:
        check_shape("FSQ", "z", z, (len(self.levels),))
        s = self._squashed(wide(z))
        digits = sg(jnp.round(s))
        code = self._scaled(straight_through_value(digits, s)).astype(z.dtype)
        # and of more levels than floats tell apart, top may round to one that is not there
        inside = jnp.clip(digits.astype(int), 0, jnp.asarray(self.levels) - 1)
        nothing = jnp.zeros((), z.dtype)
        return Quantized(code, jnp.sum(inside * self._places()), nothing, nothing)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_scalar("FSQ.lookup", "index", index)
        digits = jnp.asarray(index) // self._places() % jnp.asarray(self.levels)
        return self._scaled(digits.astype(float))

    def _squashed(self, z: Array) -> Array:
        """s, in 0 ... L - 1."""
        levels = np.asarray(self.levels)
        if not self.shifted:
            return 0.5 * jnp.asarray(levels - 1, z.dtype) * (1.0 + jnp.tanh(z))
        half, offset = (levels - 1) * (1.0 + EDGE) / 2.0, np.where(levels % 2, 0.0, 0.5)
        shift, low = jnp.asarray(np.arctanh(offset / half), z.dtype), levels // 2 - offset
        return jnp.asarray(half, z.dtype) * jnp.tanh(z + shift) + jnp.asarray(low, z.dtype)

    def _scaled(self, digits: Array) -> Array:
        """The code of digits 0 ... L - 1."""
        levels = np.asarray(self.levels)
        top = jnp.asarray(2 * (levels // 2) if self.shifted else levels - 1, digits.dtype)
        return 2.0 * digits / top - 1.0

    def _places(self) -> Array:
        return jnp.asarray(prod(self.levels) // np.cumprod(self.levels))


@pytree
@dataclass(frozen=True)
class ResidualFSQ:
    """Finite scalar quantization of what is left, on a grid L - 1 times as fine each time.

    y = tanh z,   code = sum_l e_l,   e_l = s_l FSQ((y - e_1 - ... - e_{l-1}) / s_l)

    with s_l = (L - 1)^{1-l} and FSQ without its tanh: the rest is at most s_l, half a step of the
    grid before. The vector is squashed once, where each stage of its own would squash the rest
    again. Residual quantization: Zeghidour et al. 2021; of finite scalars: Mentzer et al. 2023.

    Args:
      levels: L_i >= 3 of each of the d coordinates, a tuple; two would never come closer.
      depth: number of stages; an index is [depth].

    >>> quantizer = ResidualFSQ((3,), depth=2)
    >>> q = quantizer(jnp.arctanh(jnp.array([0.4])))
    >>> q.indices.tolist(), q.code.tolist(), quantizer.lookup(q.indices).tolist()
    ([1, 2], [0.5], [0.5])
    """

    levels: Levels = field(metadata={"static": True})
    depth: Count = field(metadata={"static": True})

    @checked
    def __call__(self, z: Floats) -> Quantized:
        check_shape("ResidualFSQ", "z", z, (len(self.levels),))
        y = jnp.tanh(wide(z))
        top, rest, indices = jnp.asarray(np.asarray(self.levels) - 1, y.dtype), sg(y), []
        for scale in self._scales(y):
            digits = jnp.clip(jnp.round(0.5 * top * (1.0 + rest / scale)), 0.0, top)
            rest = rest - scale * (2.0 * digits / top - 1.0)
            indices.append(jnp.sum(digits.astype(int) * FSQ(self.levels)._places()))
        code = (y - rest).astype(z.dtype)  # straight through to y, as the rest is held
        nothing = jnp.zeros((), z.dtype)
        return Quantized(code, jnp.stack(indices), nothing, nothing)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_shape("ResidualFSQ.lookup", "index", index, (self.depth,))
        e = jax.vmap(FSQ(self.levels).lookup)(index)
        return jnp.sum(self._scales(e) * e, axis=0)

    def _scales(self, like: Array) -> Array:
        """s_l, shape [depth, d]."""
        if min(self.levels) < 3:
            raise ValueError(f"ResidualFSQ: levels is {self.levels}, expected at least 3 of each")
        finer = np.asarray(self.levels) - 1.0
        return jnp.asarray(finer ** -np.arange(self.depth)[:, None], like.dtype)


@pytree
@dataclass(frozen=True)
class LFQ:
    """Lookup-free quantization: the signs of z, one of the 2^d corners of a cube.

    e_i = sign z_i, -1 at 0;   -|z_i - (-1)|^2 and -|z_i - 1|^2 are the logits of bit i

    No code is stored and none is learned; `entropy_penalty` keeps them in use. Straight through.
    Yu et al. 2023, section 3.1.

    Args:
      bits: d, at most 30; the first is the highest of the index.

    >>> q = LFQ(3)(jnp.array([0.2, -1.5, 0.7]))
    >>> q.code.tolist(), int(q.indices), LFQ(3).lookup(q.indices).tolist()
    ([1.0, -1.0, 1.0], 5, [1.0, -1.0, 1.0])
    """

    bits: Count = field(metadata={"static": True})

    @checked
    def __call__(self, z: Floats) -> Quantized:
        check_shape("LFQ", "z", z, (_few(self.bits),))
        return _signs(jnp.asarray(z), 1.0)

    @checked
    def lookup(self, index: Integers) -> Array:
        check_scalar("LFQ.lookup", "index", index)
        return 2.0 * (jnp.asarray(index) >> _shifts(self.bits) & 1).astype(float) - 1.0


@pytree
@dataclass(frozen=True)
class BSQ:
    """Binary spherical quantization: a vector on the unit sphere, its signs the code.

    u = z / |z|,   e = sign(u) / sqrt(d), which lies on the sphere too

    The error is bounded, |u - e|^2 < 2, so that nothing need be committed to. Straight through to
    u. The bits of the soft assignment are independent, sigmoid(2 tau u_i / sqrt(d)): those of
    `entropy_penalty` at temperature 2 / tau. Zhao, Xiong & Krahenbuhl 2024.

    Args:
      bits: d, at most 30; the first is the highest of the index.

    >>> q = BSQ(4)(jnp.array([3.0, -4.0, 0.5, 1.0]))
    >>> q.code.tolist(), int(q.indices)
    ([0.5, -0.5, 0.5, 0.5], 11)
    """

    bits: Count = field(metadata={"static": True})

    @checked
    def __call__(self, z: Floats) -> Quantized:
        check_shape("BSQ", "z", z, (_few(self.bits),))
        return _signs(unit(z), self.bits**-0.5)

    @checked
    def lookup(self, index: Integers) -> Array:
        return self.bits**-0.5 * LFQ(self.bits).lookup(index)


def _signs(z: Array, size: float) -> Quantized:
    """The nearest of the corners +-size."""
    above = z > 0
    e = jnp.where(above, size, -size).astype(z.dtype)
    index = jnp.sum(above.astype(int) << _shifts(len(z)))
    logits = -jnp.square(z[:, None] - jnp.array([[-size, size]], z.dtype))
    nothing = jnp.zeros((), z.dtype)
    return Quantized(straight_through_value(e, z), index, gap(z, sg(e)), nothing, logits)


def _shifts(bits: int) -> Array:
    return jnp.arange(_few(bits) - 1, -1, -1)


def _few(bits: int) -> int:
    if bits > 30:
        raise ValueError(f"bits is {bits}, expected at most 30, as an index is a 32-bit integer")
    return bits
