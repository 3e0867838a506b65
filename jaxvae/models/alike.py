"""Levels as data: modules alike are stacked, and traced once however many they are.

`Alike` of `Block`s is a `Block` itself, so that a `TopDown` takes runs of levels as it takes one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import check_rows
from jaxvae.checks import Key, Scalar, Tree, a_class_of, checked
from jaxvae.evaluation.latent_space import tempered
from jaxvae.models.deep_bound import level
from jaxvae.models.hierarchical import Block
from jaxvae.protocols import (
    has_path,
    log_density,
    log_density_relaxed,
    sample_and_log_prob,
    traced,
)
from jaxvae.pytrees import pytree
from jaxvae.pytrees.networks import networks, of_each


def turns_at_once(count: int) -> int:
    """How many of `count` equal modules a scan writes out: all up to sixteen, of more eight a turn.

    A turn of a loop copies its module's parameters and what its gradient needs. Compiled for an
    H100, a step of ten levels moves 9.4 GB written out, and in a loop 32.4 GB; on two CPU cores it
    takes 0.75 to 0.9 of the time, and a third of a second to a second a level to compile.
    """
    return count if count <= 16 else 8


@pytree
@dataclass(frozen=True, eq=False)
class Alike:
    """n modules alike, as data: one traced body, written out up to sixteen times, else a loop.

    A function is x -> m_n(... m_1(x)). Of `Block`s it is a `Block`: n levels of a `TopDown`, whose
    latents have a leading axis of n and whose features of x are shared.

    Args:
      each: a module or a `Block` whose leaves have a leading axis of n, as `jax.vmap` makes them.
      then: what h goes through after the last, a callable pytree; None, the default, is nothing.
      remat: compute what is inside again on the way back rather than keep it: `jax.checkpoint`,
        in a loop of one module a turn.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> twice = Alike(Partial(lambda a, x: a * x, jnp.array([2.0, 3.0])))
    >>> len(twice), float(twice(1.0))
    (2, 6.0)
    >>> add = Partial(lambda pair: pair[0] + pair[1])
    >>> of = Partial(lambda scale, h: Normal(h, scale), jnp.ones((2, 3)))
    >>> of_both = Partial(lambda scale, pair: Normal(add(pair), scale), jnp.ones((2, 3)))
    >>> levels = Alike(Block(of, of_both, add))
    >>> levels.prior(jnp.zeros(3)).sample(jax.random.key(0)).shape
    (2, 3)
    """

    each: Any
    then: Callable[[Any], Any] | None = None
    remat: bool = field(default=False, metadata={"static": True})

    def __len__(self) -> int:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(self.each)]
        if not shapes or () in shapes[:1]:
            raise ValueError(
                f"Alike: each is {a_class_of(self.each)} without leaves that are stacked, expected "
                "modules along a leading axis, as jaxvae.nn.alike makes them"
            )
        return shapes[0][0]

    def __call__(self, x: Tree) -> Any:
        return self._last(self.scan(lambda x, module: (module(x), None), x)[0])

    def prior(self, h: Tree) -> "Descent":
        return Descent(self, h)

    def posterior(self, pair: tuple[Any, Any]) -> "Descent":
        return Descent(self, *pair)

    def merge(self, pair: tuple[Any, Any]) -> Any:
        h, z = pair
        return self._last(self.scan(lambda h, block, z: (block.merge((h, z)), None), h, z)[0])

    def descend(
        self, h: Tree, key: Key, features: Tree | None, temperatures: Array | None
    ) -> tuple[Any, Array, Array]:
        """As `level`, of all in turn."""

        def one(carry: Tree, block: Block, temperature: Array | None) -> Any:
            h, key = carry
            h, key, kl = level(block, h, key, features, temperature)
            return (h, key), kl

        (h, key), kls = self.scan(one, (h, key), temperatures)
        return self._last(h), key, kls

    def scan(self, f: Callable[..., Any], carry: Tree, *inputs: Tree) -> Any:
        """`jax.lax.scan` of (carry, module, *inputs) -> (carry, output), from the first on."""
        n = len(self)
        if any(network.state for network in networks(self.each)):
            raise ValueError(
                "Alike: each holds running statistics, as of a batch norm, expected a norm of one "
                "example, such as nnx.LayerNorm"
            )
        each = of_each(self.each, n)
        check_rows("Alike", "each", each, n)

        def body(carry: Tree, given: tuple[Any, ...]) -> Any:
            return f(carry, *given)

        return jax.lax.scan(
            jax.checkpoint(body, prevent_cse=False) if self.remat else body,
            carry,
            (each, *inputs),
            unroll=1 if self.remat else turns_at_once(n),  # written out, XLA would keep it all
        )

    def _last(self, h: Tree) -> Any:
        return h if self.then is None else self.then(h)


@pytree
@dataclass(frozen=True, eq=False)
class Descent:
    """prod_l d_l(z_l | h_l), h_{l+1} = merge_l(h_l, z_l): the latents of n levels alike, [n, ...].

    Args:
      levels: `Alike` of `Block`s, the first at the top.
      h: at the top.
      features: of x: d_l is then the posterior, and the prior without.
      temperature: of every level's draws; None is 1.
    """

    levels: Alike
    h: Any
    features: Any = None
    temperature: Any = None

    @property
    def reparameterized(self) -> bool:
        first = jax.tree.map(lambda leaf: leaf[0], self.levels.each)
        return traced(has_path, lambda: self._at(first, self.h))

    def sample(self, key: Key) -> Any:
        return self.sample_and_log_prob(key)[0]

    @checked
    def sample_and_log_prob(self, key: Key) -> tuple[Any, Array]:
        def level(carry: Tree, block: Block) -> Any:
            h, key = carry
            here, key = jax.random.split(key)
            z, log_p = sample_and_log_prob(self._at(block, h), here)
            return (block.merge((h, z)), key), (z, log_p)

        _, (z, log_p) = self.levels.scan(level, (self.h, key))
        return z, jnp.sum(log_p)

    @checked
    def log_prob(self, z: Tree) -> Array:
        return jnp.sum(self._scan(z, log_density))

    @checked
    def log_prob_relaxed(self, z: Tree) -> Array:
        return jnp.sum(self._scan(z, log_density_relaxed))

    def levels_at(self, z: Tree) -> list[tuple[Any, Any]]:
        """Each level's distribution given the sample above, and its part of z."""
        stack = self._scan(z, lambda d, _: d)
        pairs = [(stack, z)] * len(self.levels)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], pair) for i, pair in enumerate(pairs)]

    def tempered(self, temperature: Scalar) -> "Descent":
        """Every level tempered, given those above it."""
        return replace(self, temperature=temperature)

    def _scan(self, z: Tree, f: Callable[[Any, Any], Any]) -> Any:
        def level(h: Tree, block: Block, z: Tree) -> Any:
            return block.merge((h, z)), f(self._at(block, h), z)

        check_rows("Descent", "event", z, len(self.levels))
        return self.levels.scan(level, self.h, z)[1]

    def _at(self, block: Block, h: Tree) -> Any:
        d = block.prior(h) if self.features is None else block.posterior((h, self.features))
        return d if self.temperature is None else tempered(d, self.temperature)
