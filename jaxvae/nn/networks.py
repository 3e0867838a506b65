"""A conditional is a network followed by a head; the dense network."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Generic

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxvae.checks import Tree, check_shape
from jaxvae.distributions import Normal
from jaxvae.nn.activations import Activation, by_name
from jaxvae.nn.heads import D, Head, Shape
from jaxvae.training.preprocessing import rescale


class Conditional(nnx.Module, Generic[D]):
    """p(out | in): a network followed by a head, called on one example, returning a distribution.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`: `MLP`, or a `functools.partial` of it.
      head: what makes the raw output a distribution.
      in_shape: shape of what is conditioned on.
      event_shape: shape of an event of the distribution.
      dtype: what the network computes in, `jnp.bfloat16` for mixed precision; by default that of
        its parameters. These keep their dtype, and so does the output that the head sees.

    Raises:
      AssertionError: when called, if the network's output has not the shape that the head needs.

    >>> from jaxvae.nn import BernoulliHead, NormalHead
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
        head: Head[D],
        in_shape: Shape,
        event_shape: Shape,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.raw_shape = head.raw_shape(event_shape)
        self.network: Any = network(in_shape, self.raw_shape, rngs=rngs)
        self.head, self.dtype = head, dtype

    def __call__(self, x: Tree, /) -> D:
        raw = self.network(x) if self.dtype is None else _in_precision(self.dtype, self.network, x)
        chex.assert_shape(
            raw, self.raw_shape, custom_message="a network's output is what its head needs"
        )
        return self.head(raw)


def _in_precision(dtype: DTypeLike | None, network: Callable[..., Any], x: Tree) -> Array:
    """network(x), computed in `dtype` and returned in the precision of its parameters."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    params = nnx.state(network, nnx.Param)
    inside = jax.tree.map(lambda leaf: leaf, network)  # a copy, whose statistics stay in float32
    nnx.update(inside, jax.tree.map(cast, params))
    y = inside(jax.tree.map(cast, x)).astype(jnp.result_type(*jax.tree.leaves(params)))
    nnx.update(network, nnx.state(inside, nnx.BatchStat))
    return y


class MLP(nnx.Module):
    """Dense layers with an activation between them; input and output may have any shape.

    Args:
      in_shape: shape of one input, flattened first.
      out_shape: shape of the output.
      hidden: width of every hidden layer; its length is the depth.
      activation: applied after every layer but the last.
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
        self.in_shape, self.out_shape = in_shape, out_shape
        self.activation = by_name(activation)

    def __call__(self, x: Array) -> Array:
        check_shape("MLP", "input", x, self.in_shape)
        h = x.reshape(-1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h).reshape(self.out_shape)


class Rescaled(nnx.Module):
    """A network behind 2 x / max_value - 1: for data as stored, integers that a likelihood wants.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`, of one input and the output.
      max_value: the largest value stored, as in `rescale`: by default 255 for uint8.

    >>> from functools import partial
    >>> from jaxvae.nn import NormalHead
    >>> encoder = partial(Rescaled, MLP)
    >>> encode = Conditional(encoder, NormalHead(), (8, 8, 1), (2,), rngs=nnx.Rngs(0))
    >>> encode(jnp.zeros((8, 8, 1), jnp.uint8)).mean().shape
    (2,)
    """

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
        return self.network(2.0 * rescale(None, x, max_value=self.max_value) - 1.0)


class SharedScaleHead(nnx.Module):
    """Raw parameters -> `Normal` with one learned sigma, at first `scale`, for all that is seen.

    Rybkin, Daniilidis & Levine 2021, section 3.1.

    >>> float(SharedScaleHead(0.5)(jnp.zeros((8, 8, 1))).scale)
    0.5
    """

    def __init__(self, scale: float = 1.0):
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(scale)))

    def raw_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, raw: Array) -> Normal:
        return Normal(raw, jnp.exp(self.log_scale[...]))
