"""A deep hierarchy over images: residual cells on the way up, levels of latents on the way down."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial

from jaxvae.checks import Count, Key, Tree, check_count, check_shape, checked, kind
from jaxvae.models.alike import Alike
from jaxvae.models.hierarchical import TopDown
from jaxvae.nn.convolutions import Down, Up, halvings
from jaxvae.nn.heads import BernoulliHead, Head, Shape
from jaxvae.nn.residual import ResidualBlock, ResidualCell
from jaxvae.pytrees import shown, swappable

BERNOULLI = BernoulliHead()


class Stage(NamedTuple):
    """One resolution of a `DeepHierarchy`.

    Args:
      shrink: from the features of the stage below to this resolution.
      cells: n `ResidualCell`s, on the way up.
      blocks: n `ResidualBlock`s, on the way down.
      grow: to the resolution of the stage below, or of the raw output.
    """

    shrink: Down
    cells: Alike
    blocks: Alike
    grow: Up


@shown
@kind("a DeepHierarchy; make one, jaxvae.nn.deep_hierarchy(shape), or use elbo for any model")
@swappable
class DeepHierarchy(NamedTuple):
    """A deep hierarchy over images: residual cells on the way up, levels of latents down again.

    p(x, z) = p(x|z) prod_l p(z_l|z_{>l}),   q(z|x) = prod_l q(z_l|z_{>l}, x)

    It is a `Model`, by way of `top_down`, so that all evaluators take it, and
    `jaxvae.models.deep_elbo` is its ELBO in a single way down. Latents are nested pairs from the
    top stage down; those of a stage have a leading axis of its levels.
    Child 2021; Vahdat & Kautz 2020; Sonderby et al. 2016.

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
        """The same model, each stage a block: its levels alike, and what follows them."""
        blocks = [replace(stage.blocks, then=stage.grow) for stage in self.stages[::-1]]
        return TopDown(Partial(features, tuple(self.stages)), self.start, blocks, self.likelihood)


def features(stages: Sequence[Stage], x: Array) -> list[Array]:
    """The way up: the features of x at each stage, from the top down."""
    bottom, found = stages[0], []
    shape = (*bottom.grow.size, bottom.shrink.kernel.shape[2])
    check_shape("DeepHierarchy", "x", x, shape)
    for stage in stages:
        x = stage.cells(stage.shrink(x))
        found.append(x)
    return found[::-1]


@checked
def deep_hierarchy(
    image_shape: Shape,
    *,
    levels: Sequence[int] = (3, 3, 4),
    width: Count = 64,
    middle: Count | None = None,
    latents: Count = 8,
    head: Head = BERNOULLI,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> DeepHierarchy:
    """A `DeepHierarchy` over images, each stage half the size of the one below.

    Args:
      image_shape: (height, width, channels).
      levels: of latents at each stage, from the top, the smallest resolution, down; a stage has as
        many cells on the way up.
      middle: channels inside the cells; half of `width` by default.
      remat: as in `jaxvae.models.Alike`: less memory, for a third more operations.

    >>> model = deep_hierarchy((28, 28, 1), levels=(1, 2), width=8, rngs=nnx.Rngs(0))
    >>> z = jax.jit(model.prior.sample)(jax.random.key(0))
    >>> [z_l.shape for z_l in jax.tree.leaves(z)]
    [(1, 7, 7, 8), (2, 14, 14, 8)]
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
            alike(cell, count, rngs=rngs, remat=remat),
            alike(block, count, rngs=rngs, remat=remat),
            Up(width, width if i else raw_channels, sizes[i], rngs=rngs),
        )
        for i, count in enumerate(levels[::-1])
    ]
    # a head with parameters of its own is a pytree as it is, another a function
    likelihood = head if isinstance(head, nnx.Module) else Partial(head)
    return DeepHierarchy(tuple(stages), jnp.zeros((*sizes[-1], width)), likelihood)


@checked
def alike(make: Callable[..., Any], count: Count, *, rngs: nnx.Rngs, remat: bool = False) -> Alike:
    """`count` modules, or blocks of modules, of keys of their own, traced as one.

    Args:
      make: `(*, rngs) -> module`, or what is made of modules.
      remat: as in `jaxvae.models.Alike`.

    >>> layers = alike(partial(ResidualCell, 4, middle=2), 3, rngs=nnx.Rngs(0))
    >>> len(layers), layers(jnp.ones((7, 7, 4))).shape
    (3, (7, 7, 4))
    """
    keys = jax.random.split(rngs.params(), count)

    def one(key: Key) -> Any:
        return make(rngs=nnx.Rngs(key))

    if isinstance(keys, Tracer):
        return Alike(jax.vmap(one)(keys), remat=remat)
    # not mapped, as each operation would be compiled for stacks, too
    return Alike(_stacked(*map(one, keys)), remat=remat)


@jax.jit
def _stacked(*modules: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)
