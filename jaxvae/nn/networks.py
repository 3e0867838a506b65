"""Dense networks, and what stands between and around layers."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import jax
from flax import nnx
from jax import Array

from jaxvae.checks import Count, Tree, check_shape, checked
from jaxvae.nn import onednn
from jaxvae.nn.activations import Activation, by_name
from jaxvae.nn.heads import Shape
from jaxvae.nn.initializers import Linear
from jaxvae.nn.modules import Module
from jaxvae.training.preprocessing import stored

Norm = Callable[..., Any]
"""`(width, *, rngs) -> module`: `nnx.BatchNorm`, `nnx.LayerNorm`, `GroupNorm`."""


class GroupNorm(Module):
    """flax's group norm of one example, a vector [width] or an image [h, w, width].

    Wu & He 2018, "Group normalization".

    Args:
      width: channels.
      num_groups: how many groups they are cut into, each with a mean and a variance of its own.

    Raises:
      ValueError: the groups are not of equal size, or of one channel, whose norm is 0.

    >>> from jax import numpy as jnp
    >>> norm = GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> norm(jnp.array([1.0, 3.0, 5.0, 5.0])).round(3).tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """

    def __init__(self, width: int, *, num_groups: int = 4, rngs: nnx.Rngs):
        if width % num_groups or width == num_groups:
            raise ValueError(
                f"GroupNorm: num_groups is {num_groups} of {width} channels, expected a divisor, "
                "and at least 2 channels a group"
            )
        self.norm = nnx.GroupNorm(width, num_groups, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # flax takes statistics in float32 or better
            return self.norm(x[None])[0]


def WeightNormed(n: int, m: int, *, rngs: nnx.Rngs) -> nnx.WeightNorm:
    """A dense layer whose columns have learned lengths, `MLP(dense=WeightNormed)`.

    Salimans & Kingma 2016, equation 2, by flax.

    >>> from jax import numpy as jnp
    >>> layer = WeightNormed(3, 2, rngs=nnx.Rngs(0))
    >>> columns = layer(jnp.eye(3))
    >>> jnp.linalg.norm(columns, axis=0).round(3).tolist()
    [1.0, 1.0]
    """
    return nnx.WeightNorm(Linear(n, m, rngs=rngs), rngs=rngs)


class Between(Module):
    """What stands between two layers: a norm, the activation, dropout."""

    def __init__(self, width: int, *, norm: Norm | None, dropout: float, rngs: nnx.Rngs):
        self.norm = None if norm is None else norm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, activation: Activation, h: Array) -> Array:
        h = activation(h if self.norm is None else self.norm(h))
        return h if self.dropout is None else self.dropout(h)


class MLP(Module):
    """Dense layers with an activation between them; input and output may have any shape.

    Args:
      in_shape: shape of one input, flattened first.
      out_shape: shape of the output.
      hidden: width of every hidden layer; its length is the depth.
      activation: applied after every layer but the last.
      norm: before every activation.
      dropout: the share that is dropped after every activation, in training.
      dense: `(n, m, *, rngs) -> module`, a layer.

    >>> net = MLP((3,), (2,), norm=nnx.BatchNorm, dropout=0.1, rngs=nnx.Rngs(0))
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (400,),
        activation: Activation = jax.nn.relu,
        norm: Norm | None = None,
        dropout: float = 0.0,
        dense: Callable[..., Any] = Linear,
        rngs: nnx.Rngs,
    ):
        sizes = [prod(in_shape), *hidden, prod(out_shape)]
        self.layers: Any = nnx.List([dense(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        self.between = nnx.List([Between(n, norm=norm, dropout=dropout, rngs=rngs) for n in hidden])
        self.in_shape, self.out_shape = in_shape, out_shape
        self.activation = by_name(activation)

    def __call__(self, x: Array) -> Array:
        check_shape("MLP", "input", x, self.in_shape)
        h = x.reshape(-1)
        for layer, between in zip(self.layers[:-1], self.between, strict=True):
            h = between(self.activation, onednn.dense(layer, h))
        return onednn.dense(self.layers[-1], h).reshape(self.out_shape)


class ResidualMLP(Module):
    """x + f(x), some times over vectors of one width, between two dense layers.

    f is norm, activation, dense, norm, activation, dense.
    He et al. 2016, "Identity mappings in deep residual networks", figure 4 (e).

    Args:
      in_shape, out_shape: of any shape.
      width: of the vectors.
      depth: how many blocks.
      activation, norm, dropout, dense: as in `MLP`.

    >>> from jax import numpy as jnp
    >>> ResidualMLP((8, 8, 1), (2,), depth=3, rngs=nnx.Rngs(0))(jnp.ones((8, 8, 1))).shape
    (2,)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: Count = 256,
        depth: int = 2,
        activation: Activation = jax.nn.relu,
        norm: Norm | None = nnx.LayerNorm,
        dropout: float = 0.0,
        dense: Callable[..., Any] = Linear,
        rngs: nnx.Rngs,
    ):
        between = partial(Between, width, norm=norm, dropout=dropout, rngs=rngs)
        block = partial(MLP, (width,), (width,), hidden=(width,), activation=activation, norm=norm)
        self.first: Any = dense(prod(in_shape), width, rngs=rngs)
        self.between = nnx.List([between() for _ in range(depth + 1)])
        self.blocks = nnx.List(
            [block(dropout=dropout, dense=dense, rngs=rngs) for _ in range(depth)]
        )
        self.last: Any = dense(width, prod(out_shape), rngs=rngs)
        self.in_shape, self.out_shape = in_shape, out_shape
        self.activation = by_name(activation)

    def __call__(self, x: Array) -> Array:
        check_shape("ResidualMLP", "input", x, self.in_shape)
        h = onednn.dense(self.first, x.reshape(-1))
        for before, block in zip(self.between[:-1], self.blocks, strict=True):
            h = h + block(before(self.activation, h))
        h = self.between[-1](self.activation, h)
        return onednn.dense(self.last, h).reshape(self.out_shape)


class Rescaled(Module):
    """A network behind 2 x / max_value - 1: for data as stored, integers that a likelihood wants.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`, of one input and the output.
      max_value: the largest value stored, as in `rescale`: by default 255 for uint8.

    >>> from jax import numpy as jnp
    >>> from functools import partial
    >>> from jaxvae.nn import Conditional, NormalHead
    >>> encoder = partial(Rescaled, MLP)
    >>> encode = Conditional(encoder, NormalHead(), (8, 8, 1), (2,), rngs=nnx.Rngs(0))
    >>> encode(jnp.zeros((8, 8, 1), jnp.uint8)).mean().shape
    (2,)
    """

    @checked
    def __init__(
        self,
        network: Callable[..., nnx.Module],
        in_shape: Shape,
        out_shape: Shape,
        *,
        max_value: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.network: Any = network(in_shape, out_shape, rngs=rngs)
        self.max_value = max_value

    def __call__(self, x: Tree) -> Array:
        y, max_value = stored(x, self.max_value, "nn.Rescaled")
        return self.network(2.0 * y / max_value - 1.0)
