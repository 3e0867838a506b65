"""The dense network of gated layers that the scripts of this folder share."""

from math import prod
from typing import Any

import jax
from flax import nnx


class Gated(nnx.Module):
    """sum_i (W_i x_i + b_i) * sigmoid(sum_i V_i x_i + c_i), of one input or more.

    Dauphin, Fan, Auli & Grangier 2017.
    """

    def __init__(self, *sizes: int, width: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(size, 2 * width, rngs=rngs) for size in sizes])

    def __call__(self, *xs: jax.Array) -> jax.Array:
        return jax.nn.glu(sum(layer(x) for layer, x in zip(self.layers, xs, strict=True)))


class GatedMLP(nnx.Module):
    """Two gated layers and a dense one, of x, or of a pair (x, z) with a first layer for each.

    Args:
      in_shape, out_shape: of x and of what is returned.
      width: units of each gated layer.
      beside: coordinates of z, 0 where there is none.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        *,
        width: int,
        beside: int = 0,
        rngs: nnx.Rngs,
    ):
        sizes = [prod(in_shape), beside] if beside else [prod(in_shape)]
        self.first = nnx.List([Gated(size, width=width, rngs=rngs) for size in sizes])
        self.second = Gated(*[width] * len(sizes), width=width, rngs=rngs)
        self.last = nnx.Linear(width, prod(out_shape), rngs=rngs)
        self.out_shape = out_shape

    def __call__(self, x: Any) -> jax.Array:
        xs = x if isinstance(x, tuple) else (x,)
        hs = [layer(x.reshape(-1)) for layer, x in zip(self.first, xs, strict=True)]
        return self.last(self.second(*hs)).reshape(self.out_shape)
