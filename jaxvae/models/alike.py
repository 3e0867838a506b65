"""Levels as data: modules alike are stacked, and traced once however many they are.

`Alike` of `Block`s is a `Block` itself, so that a `TopDown` takes runs of levels as it takes one;
`deep_elbo` is the ELBO of a `TopDown` in a single way down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import batch_mean, check_rows
from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import Key, Scalar, Tree, a_class_of, check_fields, checked
from jaxvae.evaluation.latent_space import tempered
from jaxvae.gradients.reparameterized import require_path_of_gradient
from jaxvae.models.hierarchical import Block, TopDown
from jaxvae.protocols import has_path, log_density, log_prob_of, sample_and_log_prob, traced
from jaxvae.pytrees import pytree, shown
from jaxvae.pytrees.libraries import functional
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
        """As `_level`, of all in turn."""

        def level(carry: Tree, block: Block, temperature: Array | None) -> Any:
            h, key = carry
            h, key, kl = _level(block, h, key, features, temperature)
            return (h, key), kl

        (h, key), kls = self.scan(level, (h, key), temperatures)
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


def descend(
    model: TopDown, key: Key, evidence: Sequence[Any], temperatures: Array | None = None
) -> tuple[Any, Array]:
    """The way down, drawing every level once.

    Args:
      evidence: the features of x, to draw of q(z|x); or None for each block, to draw of p(z).
      temperatures: what each level's sigma is multiplied with, [levels], above 0: 1 to draw, a
        small one to stay near the mean; None, the default, is 1.

    Returns:
      h after the last level, and KL(q(z_l|z_{>l}, x) || p(z_l|z_{>l})) [levels], nats.
    """
    h, kls, first = model.start, [], 0
    for block, at in zip(model.blocks, evidence, strict=True):
        alike = isinstance(block, Alike)
        last = first + (len(block) if alike else 1)
        t = None if temperatures is None else temperatures[first:last]
        if alike:
            h, key, kl = block.descend(h, key, at, t)
        else:
            h, key, kl = _level(block, h, key, at, None if t is None else t[0])
        kls.append(jnp.atleast_1d(kl))
        first = last
    return h, jnp.concatenate(kls)


def _level(
    block: Block, h: Tree, key: Key, features: Tree | None, temperature: Array | None
) -> tuple[Any, Array, Array]:
    """h of the level below, the key of the rest, and the level's rate in nats."""
    here, key = jax.random.split(key)
    p = block.prior(h)
    if features is None:
        q = p
    elif moved := getattr(block, "moved", None):  # made of the prior, which is then asked once
        q = moved(p, h, features)
    else:
        q = block.posterior((h, features))
    z, log_q = sample_and_log_prob(q if temperature is None else tempered(q, temperature), here)
    rate = require_path_of_gradient(q, auto_kl(q, p, z, log_q))
    return block.merge((h, z)), key, rate


def top_down(model: Tree) -> TopDown:
    """The `TopDown` that a model is, by its `top_down()` or itself."""
    model = functional(model)
    return model.top_down() if hasattr(model, "top_down") else model


def check_top_down(owner: str, name: str, model: object) -> None:
    """Raise TypeError unless `model` is a `TopDown`, or is one by way of `top_down()`."""
    if not (isinstance(model, TopDown) or hasattr(model, "top_down")):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(model)}, expected a TopDown, or a DeepHierarchy; make "
            "one, jaxvae.nn.deep_hierarchy(shape), or use elbo for any model"
        )
    check_fields(owner, name, model)


@shown
class DeepTerms(NamedTuple):
    """The parts of the ELBO of a `TopDown` at one example, in nats.

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
    model: Annotated[Any, check_top_down],
    key: Key,
    x: Tree,
    *,
    beta: Scalar = 1.0,
    free_nats: Scalar | None = None,
) -> tuple[Array, DeepTerms]:
    """The ELBO of a `TopDown` in one way up and one way down: log p(x|z) - beta sum_l KL_l.

    It is `elbo`, but each level is computed once, and its slope goes back through it once, where
    `elbo` asks the posterior, the prior and the likelihood in turn. Rates are in closed form where
    a level has one. With free bits, each KL_l is max(free, KL_l), KL_l the mean over the batch, so
    that the objective is one for `batched`.
    Child 2021; free bits: Kingma et al. 2016.

    Args:
      model: a `TopDown`, or a `DeepHierarchy`.
      beta: weight of the rate, traced.
      free_nats: nats a level that are free, traced; a level below has no gradient to collapse
        further. None, the default, is the ELBO of one example, in a batch or not.

    >>> from flax import nnx
    >>> from jaxvae.nn import deep_hierarchy
    >>> model = deep_hierarchy((4, 4, 1), levels=(1, 1), width=4, rngs=nnx.Rngs(0))
    >>> bound, terms = jax.jit(deep_elbo)(model, jax.random.key(0), jnp.ones((4, 4, 1)))
    >>> terms.levels.shape, float(terms.rate)  # at the start, the posterior is the prior
    ((2,), 0.0)
    """
    model = top_down(model)
    h, kls = descend(model, key, model.features(x))
    distortion = -log_prob_of("the likelihood", model.likelihood(h), "x", x)
    price = jnp.sum(kls if free_nats is None else jnp.maximum(free_nats, batch_mean(kls)))
    return -(distortion + beta * price), DeepTerms(distortion, jnp.sum(kls), kls)
