"""A network with a head, which is a conditional distribution."""

from collections.abc import Callable
from typing import Any, Generic

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxvae.checks import Tree, a_class_of, checked
from jaxvae.nn.heads import D, Head, Shape
from jaxvae.nn.mixed_precision import in_dtype
from jaxvae.nn.modules import Module


class Conditional(Module, Generic[D]):
    """p(out | in): a network followed by a head, called on one example, returning a distribution.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`: `MLP`, or a `functools.partial` of it.
      head: what makes the raw output a distribution.
      in_shape: shape of what is conditioned on.
      event_shape: shape of an event of the distribution.
      dtype: what the network computes in, `jnp.bfloat16` for mixed precision; by default that of
        its parameters. These keep their dtype, and so does the output that the head sees. On a
        CPU with oneDNN the network is given float32, and products of dense layers and of the
        library's convolutions are of operands rounded to bfloat16.

    Raises:
      AssertionError: when called, if the network's output has not the shape that the head needs.

    >>> from jaxvae.nn import MLP, BernoulliHead, NormalHead
    >>> rngs = nnx.Rngs(0)
    >>> encode = Conditional(MLP, NormalHead(), (28, 28, 1), (20,), rngs=rngs)
    >>> decode = Conditional(MLP, BernoulliHead(), (20,), (28, 28, 1), rngs=rngs)
    >>> q = encode(jnp.zeros((28, 28, 1)))
    >>> q.mean().shape, decode(q.mean()).mean().shape
    ((20,), (28, 28, 1))
    """

    @checked
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
        try:
            raw = self._raw(x)
        except Exception as error:
            given = ", ".join(map(_said, jax.tree.leaves(x)))
            error.add_note(f"{type(self.network).__name__} was given one example, {given}")
            raise
        chex.assert_shape(
            raw, self.raw_shape, custom_message="a network's output is what its head needs"
        )
        return self.head(raw)

    def _raw(self, x: Tree) -> Array:
        return self.network(x) if self.dtype is None else in_dtype(self.dtype, self.network, x)


class Concatenated(Module):
    """A network or `Conditional` of several arrays side by side: (a [n], b [m]) -> network([a, b]).

    As q(z_t|z_{t-1}, h_t), which hears a pair. Arrays of more axes are flattened.

    >>> from jaxvae.nn import MLP, NormalHead
    >>> rngs = nnx.Rngs(0)
    >>> infer = Concatenated(Conditional(MLP, NormalHead(), (3 + 4,), (2,), rngs=rngs))
    >>> infer((jnp.ones(3), jnp.ones((2, 2)))).mean().shape
    (2,)
    """

    def __init__(self, network: Callable[[Array], Any]):
        self.network = network

    def __call__(self, parts: Tree) -> Any:
        return self.network(jnp.concatenate([jnp.ravel(part) for part in jax.tree.leaves(parts)]))


def _said(leaf: Tree) -> str:
    arrays = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    return f"{leaf.dtype}{list(leaf.shape)}" if arrays else a_class_of(leaf)
