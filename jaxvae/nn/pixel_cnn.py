"""The gated PixelCNN: masked convolutions over a grid of codes, each told those before it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import Count, check_shape, checked
from jaxvae.nn.initializers import Linear
from jaxvae.nn.mixed_precision import rows
from jaxvae.nn.modules import Module


class PixelCNN(Module):
    """Logits of every code of a grid given those before it, row by row: an autoregressive prior.

    Two stacks: the vertical one sees the rows above, the horizontal one what is to the left and,
    of its own place, the vertical one; so no code before is in a blind spot. In a draw each row
    costs the vertical stack of that row, and each code the horizontal one of that code.
    van den Oord et al. 2016b, "Conditional image generation with PixelCNN decoders", figure 2.

    Args:
      grid: (height, width); codes are z [height * width], row by row.
      labels: K, codes are 0..K-1.
      width: channels of a stack.
      depth: how many `GatedConvolution`s; together they see depth * reach places to a side.
      reach: places that each sees up, left and right: kernels of 2 reach + 1.
      context: size of the context vector, 0 for none: a class as one-hot, say.

    >>> from jaxvae import Autoregressive, Categorical
    >>> net = PixelCNN((7, 7), 64, width=8, depth=2, rngs=nnx.Rngs(0))
    >>> prior = Autoregressive(net, Categorical, 49)
    >>> prior.sample(jax.random.key(0)).shape
    (49,)
    """

    @checked
    def __init__(
        self,
        grid: tuple[int, int],
        labels: Count,
        *,
        width: Count = 64,
        depth: Count = 5,
        reach: Count = 1,
        context: int = 0,
        rngs: nnx.Rngs,
    ):
        layers = [GatedConvolution(width, reach, context=context, rngs=rngs) for _ in range(depth)]
        self.embedding, self.layers = table(labels, width, rngs=rngs), nnx.List(layers)
        self.middle, self.last = Linear(width, width, rngs=rngs), Linear(width, labels, rngs=rngs)
        self.grid, self.reach, self.context = grid, reach, context

    def __call__(self, z: Array, context: Array | None = None) -> Array:
        (height, width), reach = self.grid, self.reach
        check_shape("PixelCNN", "z", z, (height * width,))
        given = context_of("PixelCNN", context, self.context)
        x = rows(self.embedding[...], z.astype(int)).reshape(height, width, -1)
        above, left = _shifted(x, 1, 0)[:-1], _shifted(x, 0, 1)[:, :-1]  # "mask A"
        for layer in self.layers:
            up = layer.vertical(_shifted(above, reach, 0), given)
            left = layer.horizontal(_shifted(left, 0, reach), up, given)
            above = gated(up)
        return self._logits(left).reshape(height * width, -1)

    def init_cache(self, context: Array | None = None) -> Any:
        """The context, the row that is being drawn, and of each layer what the next code needs."""
        given = context_of("PixelCNN", context, self.context)
        n, columns, rows = self.embedding.shape[1], self.grid[1], self.reach + 1
        zeros = partial(jnp.zeros, dtype=self.embedding.dtype)  # as beyond the edge
        layer = zeros((rows, columns, n)), zeros((1, columns, 2 * n)), zeros((1, rows, n))
        return given, zeros((columns, n)), [layer for _ in self.layers]

    def step(self, cache: Any, i: Array, before: Array) -> tuple[Any, Array]:
        """Logits of code i, told code i - 1; a row's first lets the vertical stack move down."""
        given, row, kept = cache
        column = i % self.grid[1]
        x = jnp.where(i > 0, rows(self.embedding[...], before.astype(int)), 0.0)
        row = row.at[column - 1].set(x)  # at a row's start the last of the row above
        kept = jax.lax.cond(column == 0, self._next_row, lambda _, kept, __: kept, row, kept, given)
        left = jnp.where(column > 0, x, 0.0)[None, None]
        for at, (layer, (above, up, window)) in enumerate(zip(self.layers, kept, strict=True)):
            window = jnp.concatenate([window[:, 1:], left], axis=1)
            kept[at] = above, up, window
            left = layer.horizontal(window, up[:, column][:, None], given)
        return (given, row, kept), self._logits(left)[0, 0]

    def _next_row(self, row: Array, kept: list[Any], given: Array) -> list[Any]:
        moved, row = [], row[None]
        for layer, (above, _, window) in zip(self.layers, kept, strict=True):
            above = jnp.concatenate([above[1:], row])
            up = layer.vertical(above, given)
            moved, row = [*moved, (above, up, jnp.zeros_like(window))], gated(up)
        return moved

    def _logits(self, h: Array) -> Array:
        return self.last(jax.nn.relu(self.middle(jax.nn.relu(h))))


class GatedConvolution(Module):
    """A layer of `PixelCNN`: both stacks, on what has been padded by `reach` above or to the left.

    tanh(a) sigmoid(b), a and b the halves of the channels that a convolution gives, and in the
    horizontal stack that as a residual. van den Oord et al. 2016b, equations 2 and 4, figure 2.

    >>> layer = GatedConvolution(4, 1, rngs=nnx.Rngs(0))
    >>> up = layer.vertical(jnp.zeros((8, 7, 4)), jnp.zeros(0))
    >>> up.shape, layer.horizontal(jnp.zeros((7, 8, 4)), up, jnp.zeros(0)).shape
    ((7, 7, 8), (7, 7, 4))
    """

    def __init__(self, width: int, reach: int, *, context: int = 0, rngs: nnx.Rngs):
        rows, columns = reach + 1, 2 * reach + 1
        self.above = Linear(rows * columns * width, 2 * width, rngs=rngs)
        self.left = Linear(rows * width, 2 * width, rngs=rngs)
        self.across = Linear(2 * width, 2 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        given = [Linear(context, 2 * width, use_bias=False, rngs=rngs) for _ in "vh" if context]
        self.contexts, self.reach = nnx.List(given), reach

    def vertical(self, above: Array, given: Array) -> Array:
        """[h + reach, w, n] -> [h, w, 2n]: of `reach` rows above each place, and of its own."""
        padded = jnp.pad(above, ((0, 0), (self.reach, self.reach), (0, 0)))
        near = neighbours(padded, self.reach + 1, 2 * self.reach + 1)
        return self._with_context(0, self.above(near), given)

    def horizontal(self, left: Array, up: Array, given: Array) -> Array:
        """[h, w + reach, n] -> [h, w, n]: of `reach` places to the left of each, and of its own."""
        a = self.left(neighbours(left, 1, self.reach + 1)) + self.across(up)
        return left[:, self.reach :] + self.out(gated(self._with_context(1, a, given)))

    def _with_context(self, stack: int, a: Array, given: Array) -> Array:
        return a + self.contexts[stack](given).reshape(1, 1, -1) if self.contexts else a


def gated(a: Array) -> Array:
    """[..., 2n] -> [..., n]."""
    values, gates = jnp.split(a, 2, axis=-1)
    return jnp.tanh(values) * jax.nn.sigmoid(gates)


def neighbours(x: Array, rows: int, columns: int) -> Array:
    """Windows of x [h, w, n] side by side, [h - rows + 1, w - columns + 1, rows * columns * n]."""
    h, w = x.shape[0] - rows + 1, x.shape[1] - columns + 1
    shifted = [x[i : i + h, j : j + w] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, axis=-1)


def table(labels: int, width: int, *, rngs: nnx.Rngs) -> nnx.Param[Array]:
    """A vector of each label, [labels, width]."""
    return nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (labels, width)))


def context_of(owner: str, context: Array | None, size: int) -> Array:
    """The context vector [size], of size 0 where there is none."""
    given = jnp.zeros(0) if context is None else context
    check_shape(owner, "context", given, (size,))
    return given


def _shifted(x: Array, down: int, right: int) -> Array:
    return jnp.pad(x, ((down, 0), (right, 0), (0, 0)))
