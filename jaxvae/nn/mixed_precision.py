"""Mixed precision: a network computes in bfloat16, its parameters and its output stay float32."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from jaxvae.checks import Tree, checked
from jaxvae.nn import onednn
from jaxvae.nn.heads import Shape
from jaxvae.nn.modules import Module
from jaxvae.pytrees import wide


class InPrecision(Module):
    """A network that computes in another precision, where no `Conditional` is about it.

    Its parameters keep their dtype, and so does its output.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`.
      dtype: of what is computed, `jnp.bfloat16` for mixed precision.

    >>> from functools import partial
    >>> from jaxvae.nn import MLP
    >>> encoder = partial(InPrecision, MLP, dtype=jnp.bfloat16)
    >>> encoder((3,), (2,), rngs=nnx.Rngs(0))(jnp.ones(3)).dtype.name
    'float32'
    """

    @checked
    def __init__(
        self,
        network: Callable[..., nnx.Module],
        in_shape: Shape,
        out_shape: Shape,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.network: Any = network(in_shape, out_shape, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Tree) -> Array:
        return in_dtype(self.dtype, self.network, x)


def in_dtype(dtype: DTypeLike | None, network: Callable[..., Any], x: Tree) -> Array:
    """network(x), computed in `dtype` and returned in the precision of its parameters.

    On a CPU whose products of bfloat16 oneDNN makes, operands of the layers' products are rounded
    and the rest stays float32, as XLA has it faster there.
    """
    params = nnx.state(network, nnx.Param)
    rounded = onednn.rounds(dtype, jax.tree.leaves(params))
    inner = jnp.float32 if rounded else dtype

    def cast(leaf: Any) -> Any:
        return leaf.astype(inner) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    inside = jax.tree.map(lambda leaf: leaf, network)  # a copy, whose statistics stay in float32
    nnx.update(inside, jax.tree.map(cast, params))
    layers: list[Any] = [layer for _, layer in nnx.iter_modules(inside)]
    for layer in layers:
        if rounded and isinstance(layer, Rounding):
            layer.rounded = True
        elif rounded and getattr(layer, "dot_general", None) is jax.lax.dot_general:
            layer.dot_general = onednn.rounded_dot_general
        elif type(layer) in LAYERS and not getattr(layer, "batch_axis", None):
            layer.__class__ = LAYERS[type(layer)]
    y = inside(jax.tree.map(cast, x)).astype(jnp.result_type(*jax.tree.leaves(params)))
    nnx.update(network, nnx.state(inside, nnx.Not(nnx.Param)))  # what it keeps, as statistics
    return y


class Rounding(Module):
    """A layer whose product oneDNN may compute of operands `rounded` to bfloat16."""

    rounded = False


def biased(y: Array, bias: Array) -> Array:
    """y [..., n] + bias [n], added in float32 or better, in the dtype of y.

    So its slopes, sums over a batch and its pixels, are added up in float32. In bfloat16 they stop
    growing on the way, and on a CPU XLA takes six times as long.

    >>> y, bias = jnp.zeros((3, 2), jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    >>> biased(y, bias).dtype.name, jax.grad(lambda bias: biased(y, bias).sum())(bias).tolist()
    ('bfloat16', [3.0, 3.0])
    """
    return (wide(y) + wide(bias).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)).astype(y.dtype)


def rows(table: Array, at: Array) -> Array:
    """table [k, n] at rows `at`, in the dtype of the table, whose slopes are summed in float32.

    In bfloat16 a row that is asked for often would hear of the first of them alone: 256 + 1 is 256.

    >>> table = jnp.zeros((2, 3), jnp.bfloat16)
    >>> jax.grad(lambda table: rows(table, jnp.zeros(1024, int)).sum())(table)[0].tolist()
    [1024.0, 1024.0, 1024.0]
    """
    return wide(table)[at].astype(table.dtype)


def _with_bias(layer: type[nnx.Module]) -> type[nnx.Module]:
    """The same layer, whose bias is added by `biased`."""

    class Biased(layer):
        def __call__(self: Any, *args: Any, **options: Any) -> Array:
            bare: Any = jax.tree.map(lambda leaf: leaf, self)  # a copy, which may be changed here
            bare.bias, bare.use_bias = None, False
            y = layer.__call__(bare, *args, **options)
            return y if self.bias is None else biased(y, self.bias[...])

    return Biased


LAYERS: Any = {
    layer: _with_bias(layer)
    for layer in (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)
}
