"""Convolutional networks, written as matrix products."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvae.checks import check_shape
from jaxvae.heads import Shape
from jaxvae.nn.networks import MLP

Array = jax.Array
Activation = Callable[[Array], Array]


class ConvEncoder(nnx.Module):
    """An image halved by strided 4x4 convolutions, then a dense layer: image -> raw parameters.

    Args:
      in_shape: (height, width, channels), any size; halves are rounded up.
      out_shape: shape of the output.
      channels: of each convolution; its length is the depth.
      hidden: widths of the dense layers in between.
      activation: applied after every layer but the last.
      rngs: keys of the initial parameters.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        sizes = [in_shape[-1], *channels]
        self.convolutions = nnx.List([Down(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        smallest = (*halvings(in_shape[:2], len(channels))[-1], channels[-1])
        self.dense = MLP(smallest, out_shape, hidden=hidden, activation=activation, rngs=rngs)
        self.in_shape, self.activation = in_shape, activation

    def __call__(self, x: Array) -> Array:
        check_shape("ConvEncoder", "input", x, self.in_shape)
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return self.dense(x)


class ConvDecoder(nnx.Module):
    """The mirror of `ConvEncoder`: dense layers, then transposed convolutions up to an image.

    Args:
      in_shape: shape of the latents.
      out_shape: (height, width, channels), any size.
      channels: of the input of each transposed convolution; its length is the depth.
      hidden: widths of the dense layers in between.
      activation: applied after every layer but the last.
      rngs: keys of the initial parameters.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        sizes = [*channels, out_shape[-1]]
        *grown, smallest = halvings(out_shape[:2], len(channels))
        self.dense = MLP(
            in_shape, (*smallest, channels[0]), hidden=hidden, activation=activation, rngs=rngs
        )
        self.convolutions = nnx.List(
            [
                Up(n, m, size, rngs=rngs)
                for n, m, size in zip(sizes[:-1], sizes[1:], grown[::-1], strict=True)
            ]
        )
        self.activation = activation

    def __call__(self, z: Array) -> Array:
        h = self.dense(z)
        for convolution in self.convolutions:
            h = convolution(self.activation(h))
        return h


def halvings(size: Shape, times: int) -> list[Shape]:
    """Image sizes from `size` down, each half the last, rounded up.

    >>> halvings((28, 7), 2)
    [(28, 7), (14, 4), (7, 2)]
    """
    sizes = [size]
    for _ in range(times):
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    return sizes


# A 4x4 convolution of stride 2 is a matrix product of 2x2 neighbourhoods of 2x2 blocks, and its
# transpose is one whose output is unfolded into blocks. Inside `lax.scan` on CPU that is many times
# faster than `lax.conv`, and it is as fast elsewhere. Layout: height, width, channels.


class Down(nnx.Module):
    """4x4 convolution of stride 2, padded "SAME": [h, w, n] -> [ceil(h/2), ceil(w/2), m]."""

    def __init__(self, n: int, m: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (4, 4, n, m)))
        self.bias = nnx.Param(jnp.zeros(m))

    def __call__(self, x: Array) -> Array:
        h, w, n = x.shape
        x = jnp.pad(x, ((1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
        i, j = x.shape[0] // 2, x.shape[1] // 2
        blocks = x.reshape(i, 2, j, 2, n).transpose(0, 2, 1, 3, 4).reshape(i, j, 4 * n)
        kernel = self.kernel[...]
        # rows (2s + a, 2t + b) of the kernel meet pixel (a, b) of neighbour block (s, t)
        matrix = kernel.reshape(2, 2, 2, 2, n, -1).transpose(0, 2, 1, 3, 4, 5)
        return neighbourhoods(blocks) @ matrix.reshape(16 * n, -1) + self.bias[...].reshape(
            1, 1, -1
        )


class Up(nnx.Module):
    """Transposed 4x4 convolution of stride 2: [ceil(h/2), ceil(w/2), n] -> [h, w, m] of `size`."""

    def __init__(self, n: int, m: int, size: Shape, *, rngs: nnx.Rngs):
        # an output pixel hears 2x2 inputs, so its fan-in is 4 n
        init = nnx.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (4, 4, n, m)))
        self.bias = nnx.Param(jnp.zeros(m))
        self.size = size

    def __call__(self, x: Array) -> Array:
        n, (h, w) = self.kernel.shape[2], self.size
        check_shape("Up", "input", x, (-(-h // 2), -(-w // 2), n))
        around = neighbourhoods(jnp.pad(x, ((1, 1), (1, 1), (0, 0))))
        i, j, _ = around.shape
        kernel = self.kernel[...]
        # input (i - s, j - t) sends kernel row (2s + a, 2t + b) to pixel (a, b) of block (i, j)
        matrix = kernel.reshape(2, 2, 2, 2, n, -1)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
        blocks = (around @ matrix.reshape(4 * n, -1)).reshape(i, j, 2, 2, -1)
        image = blocks.transpose(0, 2, 1, 3, 4).reshape(2 * i, 2 * j, -1)
        return image[1 : 1 + h, 1 : 1 + w] + self.bias[...].reshape(1, 1, -1)


def neighbourhoods(x: Array) -> Array:
    """Every 2x2 neighbourhood, its four channel vectors in a row: [h, w, n] -> [h-1, w-1, 4 n]."""
    return jnp.concatenate([x[:-1, :-1], x[:-1, 1:], x[1:, :-1], x[1:, 1:]], axis=-1)
