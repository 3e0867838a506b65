"""Convolutional networks, whose convolutions are matrix products on CPU."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import check_shape, checked
from jaxvae.nn import onednn
from jaxvae.nn.activations import Activation, by_name
from jaxvae.nn.heads import Shape
from jaxvae.nn.initializers import fan_in_normal
from jaxvae.nn.mixed_precision import Rounding, biased
from jaxvae.nn.modules import Module
from jaxvae.nn.networks import MLP, Between, Norm


class ConvEncoder(Module):
    """An image halved by strided 4x4 convolutions, then a dense layer: image -> raw parameters.

    Args:
      in_shape: (height, width, channels), any size; halves are rounded up.
      out_shape: shape of the output.
      channels: of each convolution; its length is the depth.
      hidden: widths of the dense layers in between.
      activation: applied after every layer but the last.
      norm: before every activation, over the channels: nnx.BatchNorm, `GroupNorm`.
      dropout: the share that is dropped after every activation, in training.

    Raises:
      ValueError: in_shape has no height, width and channels.

    >>> net = ConvEncoder((27, 30, 3), (4,), channels=(8, 8), hidden=(), rngs=nnx.Rngs(0))
    >>> net(jnp.ones((27, 30, 3))).shape, net.dense.in_shape
    ((4,), (7, 8, 8))
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        norm: Norm | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_image("ConvEncoder", "in_shape", in_shape)
        sizes = [in_shape[-1], *channels]
        self.convolutions = nnx.List([Down(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        smallest = (*halvings(in_shape[:2], len(channels))[-1], channels[-1])
        between: Any = {"norm": norm, "dropout": dropout, "rngs": rngs}
        self.dense = MLP(smallest, out_shape, hidden=hidden, activation=activation, **between)
        self.between = nnx.List([Between(m, **between) for m in channels])
        self.in_shape, self.activation = in_shape, by_name(activation)

    def __call__(self, x: Array) -> Array:
        check_shape("ConvEncoder", "input", x, self.in_shape)
        for convolution, between in zip(self.convolutions, self.between, strict=True):
            x = between(self.activation, convolution(x))
        return self.dense(x)


class ConvDecoder(Module):
    """The mirror of `ConvEncoder`: dense layers, then transposed convolutions up to an image.

    Args:
      in_shape: shape of the latents.
      out_shape: (height, width, channels), any size.
      channels: of the input of each transposed convolution; its length is the depth.
      hidden, activation, norm, dropout: as in `ConvEncoder`.

    >>> net = ConvDecoder((4,), (27, 30, 3), channels=(8, 8), hidden=(), rngs=nnx.Rngs(0))
    >>> net(jnp.ones(4)).shape
    (27, 30, 3)
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        norm: Norm | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_image("ConvDecoder", "out_shape", out_shape)
        sizes = [*channels, out_shape[-1]]
        *grown, smallest = halvings(out_shape[:2], len(channels))
        between: Any = {"norm": norm, "dropout": dropout, "rngs": rngs}
        self.dense = MLP(
            in_shape, (*smallest, channels[0]), hidden=hidden, activation=activation, **between
        )
        self.convolutions = nnx.List(
            [
                Up(n, m, size, rngs=rngs)
                for n, m, size in zip(sizes[:-1], sizes[1:], grown[::-1], strict=True)
            ]
        )
        self.between = nnx.List([Between(n, **between) for n in channels])
        self.activation = by_name(activation)

    def __call__(self, z: Array) -> Array:
        h = self.dense(z)
        for convolution, between in zip(self.convolutions, self.between, strict=True):
            h = convolution(between(self.activation, h))
        return h


def check_image(owner: str, name: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise ValueError(
            f"{owner}: {name} is {shape}, expected (height, width, channels); grey images have 1 "
            "channel, xs[..., None]"
        )


@checked
def halvings(size: Shape, times: int) -> list[Shape]:
    """Image sizes from `size` down, each half the last, rounded up.

    >>> halvings((28, 7), 2)
    [(28, 7), (14, 4), (7, 2)]
    """
    sizes = [size]
    for _ in range(times):
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    return sizes


class Down(Rounding):
    """4x4 convolution of stride 2, padded "SAME": [h, w, n] -> [ceil(h/2), ceil(w/2), m].

    >>> Down(3, 8, rngs=nnx.Rngs(0))(jnp.ones((7, 10, 3))).shape
    (4, 5, 8)
    """

    def __init__(self, n: int, m: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (4, 4, n, m)))
        self.bias = nnx.Param(jnp.zeros(m))

    def __call__(self, x: Array) -> Array:
        y = fastest_down(x, self.kernel[...], rounded=self.rounded)
        return biased(y, self.bias[...])


class Up(Rounding):
    """Transposed 4x4 convolution of stride 2: [ceil(h/2), ceil(w/2), n] -> [h, w, m] of `size`.

    >>> Up(8, 3, (7, 10), rngs=nnx.Rngs(0))(jnp.ones((4, 5, 8))).shape
    (7, 10, 3)
    """

    def __init__(self, n: int, m: int, size: Shape, *, rngs: nnx.Rngs):
        # an output pixel hears 2x2 inputs, so its fan-in is 4 n
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (4, 4, n, m), scale=4.0))
        self.bias = nnx.Param(jnp.zeros(m))
        self.size = size

    def __call__(self, x: Array) -> Array:
        n, (h, w) = self.kernel.shape[2], self.size
        check_shape("Up", "input", x, (-(-h // 2), -(-w // 2), n))
        y = fastest_up(x, self.kernel[...], self.size, rounded=self.rounded)
        return biased(y, self.bias[...])


def promoted(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both in the dtype of their product, as `jax.lax`'s convolutions take no other."""
    dtype = jnp.result_type(x, kernel)
    return x.astype(dtype), kernel.astype(dtype)


def fastest_down(x: Array, kernel: Array, *, rounded: bool = False) -> Array:
    """`convolution_down` in the form for this machine: on a CPU by oneDNN, else as products."""
    if rounded or onednn.serves(x, kernel):
        return onednn.convolve(x, kernel, stride=2, rounded=rounded)
    on_cpu = jax.default_backend() == "cpu"
    return products_down(x, kernel) if on_cpu else convolution_down(x, kernel)


def fastest_up(x: Array, kernel: Array, size: Shape, *, rounded: bool = False) -> Array:
    """`convolution_up` in the form for this machine: on a CPU by oneDNN, else as products."""
    if rounded or onednn.serves(x, kernel):
        return onednn.convolve_transposed(x, kernel, size, stride=2, rounded=rounded)
    on_cpu = jax.default_backend() == "cpu"
    return products_up(x, kernel, size) if on_cpu else convolution_up(x, kernel, size)


def convolution_down(x: Array, kernel: Array) -> Array:
    """What `Down` computes: x [h, w, n], kernel [4, 4, n, m] -> [ceil(h/2), ceil(w/2), m]."""
    layout = ("NHWC", "HWIO", "NHWC")
    x, kernel = promoted(x, kernel)
    return jax.lax.conv_general_dilated(
        x[None], kernel, (2, 2), "SAME", dimension_numbers=layout
    ).squeeze(0)


def convolution_up(x: Array, kernel: Array, size: Shape) -> Array:
    """What `Up` computes: x [ceil(h/2), ceil(w/2), n], kernel [4, 4, n, m] -> [h, w, m]."""
    padding, layout = [(2, 2), (2, 2)], ("NHWC", "HWIO", "NHWC")
    x, kernel = promoted(x, kernel)
    y = jax.lax.conv_transpose(
        x[None], kernel[::-1, ::-1], (2, 2), padding, dimension_numbers=layout
    )
    return y[0, : size[0], : size[1]]


# The same as matrix products: inside a loop on CPU, `lax.conv` and its gradients are ten times
# slower. Rows (2s + a, 2t + b) of the kernel meet pixel (a, b) of the 2x2 block of pixels (s, t).
# What is copied is the side with few channels, where there is one. Forward and back, ms, the form
# chosen against the other: down 1.2, 4.4 from 1 channel, 12.5, 15.3 from 32; up 2.1, 6.3 to 1 and
# 11.7, 19.5 to 32. Between these nothing was measured.
_THIN = 8


def products_down(x: Array, kernel: Array) -> Array:
    """`convolution_down`: every output is a product of its 2x2 neighbourhood of 2x2 blocks."""
    h, w, n = x.shape
    x = jnp.pad(x, ((1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    i, j = x.shape[0] // 2, x.shape[1] // 2
    blocks = x.reshape(i, 2, j, 2, n).transpose(0, 2, 1, 3, 4).reshape(i, j, 4 * n)
    matrix = kernel.reshape(2, 2, 2, 2, n, -1).transpose(0, 2, 1, 3, 4, 5).reshape(4, 4 * n, -1)
    if n < _THIN:
        return jnp.concatenate(neighbours(blocks), axis=-1) @ matrix.reshape(16 * n, -1)
    a, b, c, d = (block @ m for block, m in zip(neighbours(blocks), matrix, strict=True))
    return a + b + c + d


def products_up(x: Array, kernel: Array, size: Shape) -> Array:
    """`convolution_up`: every 2x2 block of outputs is a product of its 2x2 neighbourhood."""
    (h, w), n, m = size, x.shape[-1], kernel.shape[-1]
    matrix = kernel.reshape(2, 2, 2, 2, n, m)[::-1, :, ::-1]
    around = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    if m < _THIN:
        sent = around @ matrix.transpose(4, 0, 2, 1, 3, 5).reshape(n, -1)
        i, j = sent.shape[0] - 1, sent.shape[1] - 1
        each = sent.reshape(i + 1, j + 1, 4, 4 * m)
        a, b, c, d = (neighbours(each[:, :, k])[k] for k in range(4))
        blocks = a + b + c + d
    else:
        around = jnp.concatenate(neighbours(around), axis=-1)
        i, j, _ = around.shape
        blocks = around @ matrix.transpose(0, 2, 4, 1, 3, 5).reshape(4 * n, -1)
    pixels = blocks.reshape(i, j, 2, 2, m).transpose(0, 2, 1, 3, 4).reshape(2 * i, 2 * j, m)
    return pixels[1 : 1 + h, 1 : 1 + w]


def neighbours(x: Array) -> list[Array]:
    """The pixel itself, the next in width, in height, in both: [h, w, n] -> four [h-1, w-1, n]."""
    return [x[:-1, :-1], x[:-1, 1:], x[1:, :-1], x[1:, 1:]]
