"""Causal attention over a sequence of codes: a decoder-only transformer, drawn from its cache."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import Count, check_shape, checked
from jaxvae.nn.initializers import LayerNorm, Linear
from jaxvae.nn.mixed_precision import rows
from jaxvae.nn.modules import Module
from jaxvae.nn.pixel_cnn import context_of, table
from jaxvae.nn.sequences import Attention


class CausalTransformer(Module):
    """Logits of every code of a sequence given those before it: an autoregressive prior.

    Position i is told code i - 1 and looks at positions 1, ..., i. In a draw the keys and values of
    the positions before are kept, so that each code costs one position.
    Vaswani et al. 2017, section 3; Radford et al. 2018; the norm comes first as in `Transformer`.

    Args:
      length: d; codes are z [d].
      labels: K, codes are 0..K-1.
      depth, width, heads, dropout: as in `Transformer`.
      context: size of the context vector, 0 for none, seen by every position: a class as one-hot.

    >>> import jax
    >>> from jaxvae import Autoregressive, Categorical
    >>> net = CausalTransformer(49, 64, width=8, heads=2, rngs=nnx.Rngs(0))
    >>> prior = Autoregressive(net, Categorical, 49)
    >>> prior.sample(jax.random.key(0)).shape
    (49,)
    """

    @checked
    def __init__(
        self,
        length: Count,
        labels: Count,
        *,
        depth: int = 2,
        width: Count = 64,
        heads: Count = 4,
        dropout: float = 0.0,
        context: int = 0,
        rngs: nnx.Rngs,
    ):
        self.embedding = table(labels + 1, width, rngs=rngs)  # and what the first is told
        self.positions = table(length, width, rngs=rngs)
        given = [Linear(context, width, use_bias=False, rngs=rngs)] if context else []
        blocks = [Attention(width, heads=heads, dropout=dropout, rngs=rngs) for _ in range(depth)]
        self.contexts, self.blocks = nnx.List(given), nnx.List(blocks)
        self.norm, self.last = LayerNorm(width, rngs=rngs), Linear(width, labels, rngs=rngs)
        self.length, self.labels, self.context = length, labels, context

    def __call__(self, z: Array, context: Array | None = None) -> Array:
        check_shape("CausalTransformer", "z", z, (self.length,))
        given = context_of("CausalTransformer", context, self.context)
        i = jnp.arange(self.length)
        h = self._told(i, jnp.roll(z, 1), given)
        for block in self.blocks:
            h = block(h, i[None, :] <= i[:, None])
        return self.last(self.norm(h))

    def init_cache(self, context: Array | None = None) -> Any:
        """The context, and of each block the keys and values of every position."""
        given = context_of("CausalTransformer", context, self.context)
        return given, [block.init_cache(self.length) for block in self.blocks]

    def step(self, cache: Any, i: Array, before: Array) -> tuple[Any, Array]:
        """Logits of code i, told code i - 1."""
        given, kept = cache
        h, every = self._told(i, before, given), []
        for block, of_block in zip(self.blocks, kept, strict=True):
            of_block, h = block.step(of_block, i, h)
            every.append(of_block)
        return (given, every), self.last(self.norm(h))

    def _told(self, i: Array, before: Array, given: Array) -> Array:
        """What goes in at positions i, told the code before each, of which the first has none."""
        before = jnp.where(i > 0, before.astype(int), self.labels)
        h = rows(self.embedding[...], before) + rows(self.positions[...], i)
        for layer in self.contexts:
            h = h + jnp.broadcast_to(layer(given), h.shape)
        return h
