"""Networks of a sequence [length, features], all of it or what a mask says is there."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import Count, check_shape, checked
from jaxvae.nn.activations import by_name
from jaxvae.nn.heads import Shape
from jaxvae.nn.initializers import Embed, LayerNorm, Linear, fan_in_normal, in_precision
from jaxvae.nn.modules import Module
from jaxvae.nn.networks import MLP

Sequence = Array | tuple[Array, Array]
"""An array [length, features], or a pair of it and of a mask [length], False where it is padded."""


class Transformer(Module):
    """Attention over a sequence: blocks of attention and a dense network, each x + f(norm(x)).

    Vaswani et al. 2017; the norm comes first as in Xiong et al. 2020. No position looks at one that
    is padded.

    Args:
      in_shape: (length, features); the input is an array, or a pair (array, mask).
      out_shape: (length, anything) gives a row for each position, any other shape one output, of
        the mean over what is not padded.
      depth: how many blocks.
      width: of the vectors, a multiple of `heads`.
      heads: of the attention.
      dropout: of every f, in training.
      positions: whether each position has a learned vector; without, order is not seen.

    >>> net = Transformer((5, 3), (4,), width=8, heads=2, rngs=nnx.Rngs(0))
    >>> net((jnp.ones((5, 3)), jnp.arange(5) < 3)).shape
    (4,)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        depth: int = 2,
        width: Count = 64,
        heads: Count = 4,
        dropout: float = 0.0,
        positions: bool = True,
        rngs: nnx.Rngs,
    ):
        length, features = in_shape
        self.first = Linear(features, width, rngs=rngs)
        self.positions = Embed(length, width, rngs=rngs) if positions else None
        blocks = [Attention(width, heads=heads, dropout=dropout, rngs=rngs) for _ in range(depth)]
        self.blocks, self.norm = nnx.List(blocks), LayerNorm(width, rngs=rngs)
        self.last = Readout(length, width, out_shape, rngs=rngs)
        self.in_shape = in_shape

    def __call__(self, x: Sequence) -> Array:
        x, mask = _with_mask("Transformer", x, self.in_shape)
        h = self.first(x)
        if self.positions is not None:
            h = h + self.positions(jnp.arange(len(h)))
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        weight = mask.astype(h.dtype)
        return self.last(h, weight @ h / jnp.maximum(weight.sum(), 1.0))


class Attention(Module):
    """A block of a `Transformer`: h + attention(norm(h)), then h + f(norm(h)), [length, width].

    The mask says which positions are looked at, [length], or by which, [length, length]. `step`
    gives one row of the causal one, from the keys and values of the positions before.

    >>> block = Attention(8, heads=2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((5, 8)), jnp.arange(5) < 3).shape
    (5, 8)
    """

    def __init__(self, width: int, *, heads: int = 4, dropout: float = 0.0, rngs: nnx.Rngs):
        self.norms = nnx.List([LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = in_precision(nnx.MultiHeadAttention)(
            heads,
            width,
            dropout_rate=dropout,
            decode=False,
            keep_rngs=dropout > 0,
            kernel_init=fan_in_normal,
            rngs=rngs,
        )
        self.f = MLP((width,), (width,), hidden=(4 * width,), activation=jax.nn.gelu, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, h: Array, mask: Array) -> Array:
        drop: Callable[[Array], Array] = self.dropout or (lambda h: h)
        h = h + drop(self.attention(self.norms[0](h), mask=jnp.atleast_2d(mask)[None]))
        return h + drop(jax.vmap(self.f)(self.norms[1](h)))

    def init_cache(self, length: int) -> tuple[Array, Array]:
        """Keys and values of positions that are not there yet, [length, heads, width / heads]."""
        kernel = self.attention.key.kernel[...]
        zeros = jnp.zeros((length, *kernel.shape[1:]), kernel.dtype)
        return zeros, zeros

    def step(self, cache: tuple[Array, Array], i: Array, h: Array) -> tuple[Any, Array]:
        """Position i, h [width], which looks at those up to i; without dropout."""
        a, x = self.attention, self.norms[0](h)[None]
        keys, values = cache[0].at[i].set(a.key(x)[0]), cache[1].at[i].set(a.value(x)[0])
        seen = jnp.arange(len(keys)) <= i
        looked = nnx.dot_product_attention(a.query(x), keys, values, mask=seen[None, None])
        h = h + a.out(looked)[0]
        return (keys, values), h + self.f(self.norms[1](h))


class Recurrent(Module):
    """A gated recurrent unit over a sequence; where it is padded, nothing changes.

    Cho et al. 2014, equations 5 to 8, by `nnx.GRUCell`.

    Args:
      in_shape: (length, features); the input is an array, or a pair (array, mask).
      out_shape: (length, anything) gives a row after each step, any other shape one output, of the
        last state.
      width: of the state, which starts at 0.
      reverse: from the last step to the first; row t is then of x_t, ..., x_T.

    >>> net = Recurrent((5, 3), (4,), width=8, rngs=nnx.Rngs(0))
    >>> net((jnp.ones((5, 3)), jnp.arange(5) < 3)).shape
    (4,)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: Count = 64,
        reverse: bool = False,
        rngs: nnx.Rngs,
    ):
        length, features = in_shape
        gate, bend = by_name(jax.nn.sigmoid), by_name(jnp.tanh)  # JAX's own can't be pickled
        self.cell = in_precision(nnx.GRUCell)(
            features,
            width,
            gate_fn=gate,
            activation_fn=bend,
            kernel_init=fan_in_normal,
            rngs=rngs,
        )
        self.last = Readout(length, width, out_shape, rngs=rngs)
        self.in_shape, self.reverse = in_shape, reverse

    def __call__(self, x: Sequence) -> Array:
        def step(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            x, seen = at
            h = jnp.where(seen, self.cell(h, x)[0], h)
            return h, h

        x, mask = _with_mask("Recurrent", x, self.in_shape)
        weights = jax.tree.leaves(nnx.state(self.cell, nnx.Param))
        start = jnp.zeros(self.cell.hidden_features, jnp.result_type(x, *weights))
        h, every = jax.lax.scan(step, start, (x, mask), reverse=self.reverse)
        return self.last(every, h)


class Bidirectional(Module):
    """A `Recurrent` from either end, whose outputs add up: each sees the whole sequence.

    Schuster & Paliwal 1997. Arguments as for `Recurrent`; one output is of both last states.

    >>> net = Bidirectional((5, 3), (5, 4), width=8, rngs=nnx.Rngs(0))
    >>> net(jnp.ones((5, 3))).shape
    (5, 4)
    """

    @checked
    def __init__(self, in_shape: Shape, out_shape: Shape, *, width: Count = 64, rngs: nnx.Rngs):
        of = partial(Recurrent, in_shape, out_shape, width=width, rngs=rngs)
        self.ways = nnx.List([of(reverse=False), of(reverse=True)])

    def __call__(self, x: Sequence) -> Array:
        ahead, back = self.ways
        return ahead(x) + back(x)


class RecurrentGenerator(Module):
    """A vector to a sequence: a gated recurrent unit that runs on from it, and a few factors.

    h_1 = cell(0, z), h_t = cell(h_{t-1}, 0), f_t = W h_t + c, and row t is V f_t + b: dynamics that
    many channels show, as those of a population of neurons.
    Pandarinath et al. 2018 (LFADS), methods, "generator", without inputs.

    Args:
      in_shape: (d,), of z.
      out_shape: (length, features).
      width: of the state h.
      factors: how many f has.

    >>> net = RecurrentGenerator((3,), (5, 4), width=8, factors=2, rngs=nnx.Rngs(0))
    >>> net(jnp.ones(3)).shape
    (5, 4)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: Count = 64,
        factors: Count = 8,
        rngs: nnx.Rngs,
    ):
        length, features = out_shape
        self.start = length, *in_shape
        self.dynamics = Recurrent(self.start, (length, factors), width=width, rngs=rngs)
        self.last = Linear(factors, features, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        return self.last(self.dynamics(jnp.zeros(self.start, z.dtype).at[0].set(z)))


class Readout(Module):
    """The output of a sequence's network: of every position, or of what sums them up."""

    def __init__(self, length: int, width: int, out_shape: Shape, *, rngs: nnx.Rngs):
        self.of_each = len(out_shape) == 2 and out_shape[0] == length
        size = out_shape[1] if self.of_each else prod(out_shape)
        self.dense, self.out_shape = Linear(width, size, rngs=rngs), out_shape

    def __call__(self, every: Array, summary: Array) -> Array:
        return self.dense(every if self.of_each else summary).reshape(self.out_shape)


def _with_mask(owner: str, x: Any, shape: Shape) -> tuple[Array, Array]:
    x, mask = x if isinstance(x, tuple) else (x, jnp.ones(shape[:1], bool))
    check_shape(owner, "input", x, shape)
    check_shape(owner, "mask", mask, shape[:1])
    mask = jnp.asarray(mask, bool)
    return jnp.where(mask[:, None], x, jnp.zeros_like(x)), mask  # padding may even be NaN
