"""A deep hierarchy over images: residual cells on the way up, levels of latents on the way down."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from jaxvae.batching import batch_mean
from jaxvae.checks import Count, Key, Scalar, Tree, check_count, check_shape, checked, kind
from jaxvae.distributions import Normal
from jaxvae.distributions.kl import kl_divergence
from jaxvae.models.hierarchical import Block, TopDown
from jaxvae.nn.convolutions import Down, Up, halvings
from jaxvae.nn.heads import BernoulliHead, Head, Shape
from jaxvae.nn.residual import ResidualBlock, ResidualCell
from jaxvae.protocols import log_prob_of
from jaxvae.pytrees.libraries import functional

BERNOULLI = BernoulliHead()


class Stage(NamedTuple):
    """One resolution of a `DeepHierarchy`; equal modules are stacked, for `jax.lax.scan`.

    Args:
      shrink: from the features of the stage below to this resolution.
      cells: n `ResidualCell`s stacked, on the way up.
      blocks: n `ResidualBlock`s stacked, on the way down.
      grow: to the resolution of the stage below, or of the raw output.
    """

    shrink: Down
    cells: ResidualCell
    blocks: ResidualBlock
    grow: Up


@kind("a DeepHierarchy; make one, jaxvae.nn.deep_hierarchy(shape), or use elbo for any model")
class DeepHierarchy(NamedTuple):
    """A deep hierarchy over images: residual cells on the way up, levels of latents down again.

    p(x, z) = p(x|z) prod_l p(z_l|z_{>l}),   q(z|x) = prod_l q(z_l|z_{>l}, x)

    It is a `Model`, by way of `top_down`, so that all evaluators take it; `deep_elbo` is its ELBO
    in a single way down. Child 2021; Vahdat & Kautz 2020; Sonderby et al. 2016.

    Args:
      stages: from the bottom, the largest resolution, up.
      start: h at the top, a learned array.
      likelihood: raw parameters -> p(x|z).
    """

    stages: Sequence[Stage]
    start: Array
    likelihood: Callable[[Array], Any]

    @property
    def prior(self) -> Any:
        return self.top_down().prior

    def encode(self, x: Array) -> Any:
        return self.top_down().encode(x)

    def decode(self, z: Tree) -> Any:
        return self.top_down().decode(z)

    def top_down(self) -> TopDown:
        """The same model with each level a `Block` of its own."""
        blocks = []
        for stage in self.stages[::-1]:
            count = len(jax.tree.leaves(stage.blocks)[0])
            for i in range(count):
                block = jax.tree.map(lambda leaf, i=i: leaf[i], stage.blocks)
                grow = stage.grow if i == count - 1 else Partial(_same)
                merge = Partial(_merged_and_grown, block, grow)
                blocks.append(Block(Partial(_prior, block), Partial(_posterior, block), merge))
        return TopDown(
            Partial(_every_level, tuple(self.stages)), self.start, blocks, self.likelihood
        )


def _same(h: Array) -> Array:
    return h


def _merged_and_grown(
    block: ResidualBlock, grow: Callable[[Array], Array], pair: tuple[Any, Any]
) -> Array:
    return grow(block.merge(pair))


def _prior(block: ResidualBlock, h: Array) -> Normal:
    return block.prior(h)


def _posterior(block: ResidualBlock, pair: tuple[Any, Any]) -> Normal:
    return block.posterior(pair)


def _every_level(stages: Sequence[Stage], x: Array) -> list[Array]:
    pairs = zip(stages[::-1], features(stages, x), strict=True)
    return [f for stage, f in pairs for _ in jax.tree.leaves(stage.blocks)[0]]


def features(stages: Sequence[Stage], x: Array) -> list[Array]:
    """The way up: the features of x at each stage, from the top down."""
    bottom, found = stages[0], []
    shape = (*bottom.grow.size, bottom.shrink.kernel.shape[2])
    check_shape("DeepHierarchy", "x", x, shape)
    for stage in stages:
        unroll = turns_at_once(len(jax.tree.leaves(stage.cells)[0]))
        x, _ = jax.lax.scan(
            lambda x, cell: (cell(x), None), stage.shrink(x), stage.cells, unroll=unroll
        )
        found.append(x)
    return found[::-1]


def turns_at_once(count: int) -> int:
    """How many of `count` equal modules a scan writes out: one on a CPU, which compiles soonest.

    Elsewhere up to eight, as a turn of a loop copies what its gradient needs: compiled for an H100,
    a step of ten levels moves 9.4 GB, and in a loop 32.4 GB.
    """
    return 1 if jax.default_backend() == "cpu" else min(count, 8)


def descend(
    model: DeepHierarchy, key: Key, evidence: Sequence[Array | None], temperatures: Any
) -> tuple[Array, Array]:
    """The way down, drawing every level once.

    Args:
      evidence: the `features` of x, to draw of q(z|x); or None for each stage, to draw of p(z).
      temperatures: what each level's sigma is multiplied with, [levels]: 1 to draw, 0 for the mean.

    Returns:
      The raw parameters of p(x|z), and KL(q(z_l|z_{>l}, x) || p(z_l|z_{>l})) [levels], nats.
    """
    h, kls, first = model.start, [], 0
    for stage, at in zip(model.stages[::-1], evidence, strict=True):

        def level(carry: Any, inputs: Any, at: Any = at) -> Any:
            (h, key), (block, temperature) = carry, inputs
            here, key = jax.random.split(key)
            p = block.prior(h)
            q = p if at is None else block.moved(p, h, at)
            z = Normal(q.loc, temperature * q.scale).sample(here)
            return (block.merge((h, z)), key), kl_divergence(q, p)

        last = first + len(jax.tree.leaves(stage.blocks)[0])
        levels = (stage.blocks, temperatures[first:last])
        unroll = turns_at_once(last - first)
        (h, key), kl = jax.lax.scan(level, (h, key), levels, unroll=unroll)
        h, first = stage.grow(h), last
        kls.append(kl)
    return h, jnp.concatenate(kls)


class DeepTerms(NamedTuple):
    """The parts of a `DeepHierarchy`'s ELBO of one example, in nats.

    Args:
      distortion: -log p(x|z).
      rate: KL(q(z|x) || p(z)), the sum over levels.
      levels: of each level, given the sample above, from the top down: [levels].
    """

    distortion: Array
    rate: Array
    levels: Array


@checked
def deep_elbo(
    model: DeepHierarchy, key: Key, x: Tree, *, beta: Scalar = 1.0, free_nats: Scalar | None = None
) -> tuple[Array, DeepTerms]:
    """The ELBO of a deep hierarchy in one way up and one way down: log p(x|z) - beta sum_l KL_l.

    It is `elbo` with the rate in closed form at each level, but each level is computed once, where
    `elbo` asks the posterior, the prior and the likelihood in turn. With free bits, each KL_l is
    max(free, KL_l), KL_l the mean over the batch, so that the objective is one for `batched`.
    Child 2021; free bits: Kingma et al. 2016, equation 15.

    Args:
      beta: weight of the rate, traced.
      free_nats: nats a level that are free, traced; a level below has no gradient to collapse
        further. None, the default, is the ELBO of one example, in a batch or not.

    >>> model = deep_hierarchy((4, 4, 1), levels=(1, 1), width=4, rngs=nnx.Rngs(0))
    >>> bound, terms = jax.jit(deep_elbo)(model, jax.random.key(0), jnp.ones((4, 4, 1)))
    >>> terms.levels.shape, float(terms.rate)  # at the start, the posterior is the prior
    ((2,), 0.0)
    """
    model = functional(model)
    count = sum(len(jax.tree.leaves(stage.blocks)[0]) for stage in model.stages)
    raw, kls = descend(model, key, features(model.stages, x), jnp.ones(count, model.start.dtype))
    distortion = -log_prob_of("the likelihood", model.likelihood(raw), "x", x)
    price = jnp.sum(kls if free_nats is None else jnp.maximum(free_nats, batch_mean(kls)))
    return -(distortion + beta * price), DeepTerms(distortion, jnp.sum(kls), kls)


@checked
def deep_hierarchy(
    image_shape: Shape,
    *,
    levels: Sequence[int] = (3, 3, 4),
    width: Count = 64,
    middle: Count | None = None,
    latents: Count = 8,
    head: Head = BERNOULLI,
    rngs: nnx.Rngs,
) -> DeepHierarchy:
    """A `DeepHierarchy` over images, each stage half the size of the one below.

    Args:
      image_shape: (height, width, channels).
      levels: of latents at each stage, from the top, the smallest resolution, down; a stage has as
        many cells on the way up.
      middle: channels inside the cells; half of `width` by default.

    >>> model = deep_hierarchy((28, 28, 1), levels=(1, 2), width=8, rngs=nnx.Rngs(0))
    >>> z = jax.jit(model.prior.sample)(jax.random.key(0))
    >>> [z_l.shape for z_l in jax.tree.leaves(z)]
    [(7, 7, 8), (14, 14, 8), (14, 14, 8)]
    >>> jax.jit(model.decode)(z).mean().shape
    (28, 28, 1)
    """
    if not isinstance(image_shape, tuple) or len(image_shape) != 3:
        raise ValueError(
            f"deep_hierarchy: image_shape is {image_shape!r:.40}, "
            "expected (height, width, channels)"
        )
    if not isinstance(levels, (tuple, list)) or not levels:
        raise ValueError(
            f"deep_hierarchy: levels is {levels!r:.40}, expected how many at each stage, as (3, 4)"
        )
    for name, size in [("image_shape", n) for n in image_shape] + [("levels", n) for n in levels]:
        check_count("deep_hierarchy", name, size)
    middle = max(width // 2, 1) if middle is None else middle
    depth = sum(levels)
    cell = partial(ResidualCell, width, middle=middle, scale=depth**-0.5)
    block = partial(ResidualBlock, width, latents, middle=middle, scale=depth**-0.5)
    raw_channels = head.raw_shape(image_shape)[-1]
    sizes = halvings(image_shape[:2], len(levels))
    stages = [
        Stage(
            Down(width if i else image_shape[-1], width, rngs=rngs),
            _stacked(cell, count, rngs),
            _stacked(block, count, rngs),
            Up(width, width if i else raw_channels, sizes[i], rngs=rngs),
        )
        for i, count in enumerate(levels[::-1])
    ]
    # a head with parameters of its own is a pytree as it is, another a function
    likelihood = head if isinstance(head, nnx.Module) else Partial(head)
    return DeepHierarchy(tuple(stages), jnp.zeros((*sizes[-1], width)), likelihood)


def _stacked(make: Callable[..., Any], count: int, rngs: nnx.Rngs) -> Any:
    keys = jax.random.split(rngs.params(), count)
    return jax.vmap(lambda key: make(rngs=nnx.Rngs(key)))(keys)
