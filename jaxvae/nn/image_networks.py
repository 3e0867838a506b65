"""Encoder and decoder of colour images: norms, residual cells, and attention at the narrow end.

The networks of VQGAN and of latent diffusion (Esser, Rombach & Ommer 2021, table 7; Rombach et al.
2022), as the networks of any model here: behind a `NormalHead` they are those of a VAE, and with
out_shape [n, d] those of a `VQVAE`. `diffusers_name` finds their weights in PyTorch's.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import Count, check_array, check_shape, checked
from jaxvae.nn.convolutions import check_image
from jaxvae.nn.heads import Shape
from jaxvae.nn.initializers import Linear
from jaxvae.nn.modules import Module
from jaxvae.nn.networks import GroupNorm
from jaxvae.nn.residual import Convolution


class NormedCell(Module):
    """W x + f(x), f twice a group norm, swish and a 3x3 convolution: [h, w, n] -> [h, w, m].

    W is the identity, and a 1x1 convolution where m is not n.
    He et al. 2016; with these norms: Ho, Jain & Abbeel 2020, appendix B.

    Args:
      groups: of the norms, a divisor of n and of m.

    >>> NormedCell(4, 6, groups=2, rngs=nnx.Rngs(0))(jnp.ones((5, 7, 4))).shape
    (5, 7, 6)
    """

    def __init__(self, n: int, m: int, *, groups: int, rngs: nnx.Rngs):
        self.norms = nnx.List([GroupNorm(k, num_groups=groups, rngs=rngs) for k in (n, m)])
        self.convolutions = nnx.List([Convolution(k, m, size=3, rngs=rngs) for k in (n, m)])
        self.shortcut = None if n == m else Convolution(n, m, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        check_array("NormedCell", "input", x)
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(jax.nn.swish(norm(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))


class PixelAttention(Module):
    """x + W softmax(q k' / sqrt(n)) v over all pixels, q, k and v linear in norm(x): [h, w, n].

    One head. Zhang, Goodfellow, Metaxas & Odena 2019, equations 1 to 3; scaled and normed as in
    Esser, Rombach & Ommer 2021.

    >>> PixelAttention(4, groups=2, rngs=nnx.Rngs(0))(jnp.ones((5, 7, 4))).shape
    (5, 7, 4)
    """

    def __init__(self, n: int, *, groups: int, rngs: nnx.Rngs):
        self.norm = GroupNorm(n, num_groups=groups, rngs=rngs)
        self.query, self.key = Linear(n, n, rngs=rngs), Linear(n, n, rngs=rngs)
        self.value, self.out = Linear(n, n, rngs=rngs), Linear(n, n, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        check_array("PixelAttention", "input", x)
        h = self.norm(x).reshape(-1, x.shape[-1])
        q, k, v = self.query(h), self.key(h), self.value(h)
        scores = q @ k.T / sqrt(h.shape[-1])
        if jnp.finfo(h.dtype).bits < 32:
            scores = scores.astype(jnp.float32)
        weights = jax.nn.softmax(scores).astype(h.dtype)
        return x + self.out(weights @ v).reshape(x.shape)


class Doubled(Module):
    """Every pixel four times, then a 3x3 convolution: [h, w, n] -> [2 h, 2 w, n]."""

    def __init__(self, n: int, *, rngs: nnx.Rngs):
        self.convolution = Convolution(n, n, size=3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.convolution(jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1))


class Stage(Module):
    """Cells at one resolution, the first so many followed by attention, then another resolution."""

    def __init__(
        self,
        n: int,
        m: int,
        *,
        cells: int,
        attentions: int,
        groups: int,
        resample: nnx.Module | None = None,
        rngs: nnx.Rngs,
    ):
        sizes = pairwise([n, *cells * [m]])
        self.cells = nnx.List([NormedCell(a, b, groups=groups, rngs=rngs) for a, b in sizes])
        self.attentions = nnx.List(
            [PixelAttention(m, groups=groups, rngs=rngs) for _ in range(attentions)]
        )
        self.resample: Any = resample

    def __call__(self, x: Array) -> Array:
        for i, cell in enumerate(self.cells):
            x = cell(x)
            x = self.attentions[i](x) if i < len(self.attentions) else x
        return x if self.resample is None else self.resample(x)


class ResidualEncoder(Module):
    """An image to a small grid of vectors: stages of normed cells, attention, [h, w, n] -> [.., d].

    The grid is the image over 2^(stages - 1). Esser, Rombach & Ommer 2021, table 7, left.

    Args:
      in_shape: (height, width, channels), a multiple of 2^(stages - 1).
      out_shape: (h, w, d) of the grid, or (h w, d), its rows one after another.
      channels: of each stage, from the image on.
      depth: cells of a stage.
      groups: of every norm, a divisor of all channels.
      attention: stages, counted from the image and from 0, with attention after each cell, beside
        that at the narrow end.
      pointwise: channels between the last 3x3 convolution and a 1x1 that then follows it; None is
        without the latter.
      remat: compute the inside of a stage again on the way back rather than keep it, which takes
        less memory and a third more operations: `jax.checkpoint`. Not so on a CPU, for which XLA
        removes its barriers and then keeps the values after all.

    >>> net = ResidualEncoder((8, 8, 3), (4, 4, 2), channels=(4, 8), groups=2, rngs=nnx.Rngs(0))
    >>> net(jnp.ones((8, 8, 3))).shape
    (4, 4, 2)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (64, 128, 256),
        depth: Count = 2,
        groups: Count = 32,
        attention: Sequence[int] = (),
        pointwise: Count | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_image("ResidualEncoder", "in_shape", in_shape)
        grid_of("ResidualEncoder", in_shape, out_shape, channels)
        ends = len(channels) - 1
        stages = [
            Stage(
                n,
                m,
                cells=depth,
                attentions=depth * (i in attention),
                groups=groups,
                resample=Convolution(m, m, size=3, stride=2, rngs=rngs) if i < ends else None,
                rngs=rngs,
            )
            for i, (n, m) in enumerate(pairwise([channels[0], *channels]))
        ]
        width, d = channels[-1], out_shape[-1]
        self.first = Convolution(in_shape[-1], channels[0], size=3, rngs=rngs)
        self.stages = nnx.List(stages)
        self.middle = Stage(width, width, cells=2, attentions=1, groups=groups, rngs=rngs)
        self.norm = GroupNorm(width, num_groups=groups, rngs=rngs)
        self.last = Convolution(width, pointwise or d, size=3, rngs=rngs)
        self.pointwise = Convolution(pointwise, d, rngs=rngs) if pointwise else None
        self.in_shape, self.out_shape, self.remat = in_shape, out_shape, remat

    def __call__(self, x: Array) -> Array:
        check_shape("ResidualEncoder", "input", x, self.in_shape)
        h = through(self.remat, [*self.stages, self.middle], self.first(x))
        h = self.last(jax.nn.swish(self.norm(h)))
        return (h if self.pointwise is None else self.pointwise(h)).reshape(self.out_shape)


class ResidualDecoder(Module):
    """The mirror of `ResidualEncoder`, with a cell more a stage: a grid of vectors to an image.

    Esser, Rombach & Ommer 2021, table 7, right.

    Args:
      in_shape: (h, w, d) of the grid, or (h w, d).
      out_shape: (height, width, channels), a multiple of 2^(stages - 1).
      channels, depth, groups, attention, remat: as in `ResidualEncoder`, from the image on.
      pointwise: channels between a 1x1 convolution and the first 3x3; None is without the former.

    >>> net = ResidualDecoder((4, 4, 2), (8, 8, 3), channels=(4, 8), groups=2, rngs=nnx.Rngs(0))
    >>> net(jnp.ones((4, 4, 2))).shape
    (8, 8, 3)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        channels: Sequence[int] = (64, 128, 256),
        depth: Count = 2,
        groups: Count = 32,
        attention: Sequence[int] = (),
        pointwise: Count | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_image("ResidualDecoder", "out_shape", out_shape)
        self.grid = grid_of("ResidualDecoder", out_shape, in_shape, channels)
        numbered = [*enumerate(channels)][::-1]
        stages = [
            Stage(
                n,
                m,
                cells=depth + 1,
                attentions=(depth + 1) * (i in attention),
                groups=groups,
                resample=Doubled(m, rngs=rngs) if i else None,
                rngs=rngs,
            )
            for n, (i, m) in zip([channels[-1], *channels[:0:-1]], numbered, strict=True)
        ]
        width, d = channels[-1], in_shape[-1]
        self.pointwise = Convolution(d, pointwise, rngs=rngs) if pointwise else None
        self.first = Convolution(pointwise or d, width, size=3, rngs=rngs)
        self.middle = Stage(width, width, cells=2, attentions=1, groups=groups, rngs=rngs)
        self.stages = nnx.List(stages)
        self.norm = GroupNorm(channels[0], num_groups=groups, rngs=rngs)
        self.last = Convolution(channels[0], out_shape[-1], size=3, rngs=rngs)
        self.in_shape, self.remat = in_shape, remat

    def __call__(self, z: Array) -> Array:
        check_shape("ResidualDecoder", "input", z, self.in_shape)
        h = z.reshape(*self.grid, -1)
        h = self.first(h if self.pointwise is None else self.pointwise(h))
        h = through(self.remat, [self.middle, *self.stages], h)
        return self.last(jax.nn.swish(self.norm(h)))


def through(remat: bool, stages: Sequence[Callable[[Array], Array]], h: Array) -> Array:
    """h through one stage after another, what is inside each kept for the way back or not."""

    def call(stage: Callable[[Array], Array], h: Array) -> Array:
        return stage(h)

    for stage in stages:
        h = (jax.checkpoint(call) if remat else call)(stage, h)
    return h


def grid_of(owner: str, image: Shape, vectors: Shape, channels: Sequence[int]) -> Shape:
    """(h, w) of the narrow end; ValueError unless the image is cut evenly into such vectors."""
    factor = 2 ** (len(channels) - 1)
    if not channels or any(size % factor for size in image[:2]):
        raise ValueError(
            f"{owner}: an image has shape {image}, expected a multiple of {factor} in height and "
            f"width, one halving fewer than channels {tuple(channels)}"
        )
    grid = image[0] // factor, image[1] // factor
    if len(vectors) < 2 or prod(vectors[:-1]) != prod(grid):
        raise ValueError(
            f"{owner}: {vectors} is the shape of the vectors, expected {(*grid, 'd')} or "
            f"{(prod(grid), 'd')}, as {image} is halved {len(channels) - 1} times"
        )
    return grid
