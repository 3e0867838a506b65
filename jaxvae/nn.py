"""Reference networks in Flax NNX, used strictly as plain pytrees: the only file that imports flax.

Encoder, decoder and every conditional of a hierarchy are one thing: a network followed by a head.

    network   in_shape -> raw parameters    MLP, ConvEncoder, ConvDecoder
    head      raw parameters -> Distribution    NormalHead, MultivariateNormalHead, BernoulliHead

Networks take ONE example; `jax.vmap` makes a batch. Their only state is `Param`, so `jax.jit`,
`jax.grad`, `jax.vmap`, `jax.lax.scan` and optax apply to them as to any dict of arrays.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from jaxvae.checks import check_shape
from jaxvae.heads import BernoulliHead as BernoulliHead
from jaxvae.heads import Head as Head
from jaxvae.heads import MultivariateNormalHead as MultivariateNormalHead
from jaxvae.heads import NormalHead as NormalHead
from jaxvae.heads import Shape as Shape
from jaxvae.heads import positive as positive

Array = jax.Array
Activation = Callable[[Array], Array]


class Conditional(nnx.Module):
    """p(out | in): a network followed by a head, called on one example, returning a distribution.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`: `MLP`, or a `functools.partial` of it.
      head: what makes the raw output a distribution.
      in_shape: shape of what is conditioned on.
      event_shape: shape of an event of the distribution.
      rngs: keys of the initial parameters.

    Raises:
      AssertionError: when called, if the network's output has not the shape that the head needs.

    >>> rngs = nnx.Rngs(0)
    >>> encode = Conditional(MLP, NormalHead(), (28, 28, 1), (20,), rngs=rngs)
    >>> decode = Conditional(MLP, BernoulliHead(), (20,), (28, 28, 1), rngs=rngs)
    >>> q = encode(jnp.zeros((28, 28, 1)))
    >>> q.mean().shape, decode(q.mean()).mean().shape
    ((20,), (28, 28, 1))
    """

    def __init__(
        self,
        network: Callable[..., nnx.Module],
        head: Head,
        in_shape: Shape,
        event_shape: Shape,
        *,
        rngs: nnx.Rngs,
    ):
        self.raw_shape = head.raw_shape(event_shape)
        self.network: Any = network(in_shape, self.raw_shape, rngs=rngs)
        self.head = head

    def __call__(self, x: Array) -> Any:
        raw = self.network(x)
        chex.assert_shape(
            raw, self.raw_shape, custom_message="a network's output is what its head needs"
        )
        return self.head(raw)


class MLP(nnx.Module):
    """Dense layers with an activation between them; input and output may have any shape.

    Args:
      in_shape: shape of one input, flattened first.
      out_shape: shape of the output.
      hidden: width of every hidden layer; its length is the depth.
      activation: applied after every layer but the last.
      rngs: keys of the initial parameters.

    Raises:
      ValueError: when called, if the input has another shape than `in_shape`.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (400,),
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        sizes = [prod(in_shape), *hidden, prod(out_shape)]
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        self.in_shape, self.out_shape, self.activation = in_shape, out_shape, activation

    def __call__(self, x: Array) -> Array:
        check_shape("MLP", "input", x, self.in_shape)
        h = x.reshape(-1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h).reshape(self.out_shape)


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
