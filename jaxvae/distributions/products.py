"""Several random things together: independent ones, and one given the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from typing_extensions import TypeAliasType

from jaxvae.checks import Numbers, Tree, checked, written
from jaxvae.distributions.discrete import combinations
from jaxvae.protocols import (
    check_density,
    check_event,
    has_path,
    is_certain,
    log_density,
    log_density_relaxed,
    mean_of,
    method_of,
    sample_and_log_prob,
    traced,
)
from jaxvae.pytrees import pytree, value_of


@pytree
@dataclass(frozen=True, eq=False)
class Product:
    """Independent parts of any kind: log p(x) = sum_i log p_i(x_i). The mixed columns of a table.

    Nazabal, Olmos, Ghahramani & Valera 2020.

    Args:
      parts: a dict, list or tuple of distributions; events have the same structure.

    >>> from jaxvae import Bernoulli, Normal
    >>> row = Product({"height": Normal(1.7, 0.1), "smokes": Bernoulli(0.0)})
    >>> sorted(row.sample(jax.random.key(0)))
    ['height', 'smokes']
    """

    parts: Any

    @property
    def reparameterized(self) -> bool:
        return all(map(has_path, self.split(self.parts)))

    @property
    def certain(self) -> bool:
        return all(map(is_certain, self.split(self.parts)))

    def sample(self, key: Array) -> Any:
        parts = self.split(self.parts)
        keys = jax.random.split(key, len(parts))
        return self.join([d.sample(k) for d, k in zip(parts, keys, strict=True)])

    def log_prob(self, x: Tree) -> Array:
        return self._sum(log_density, x)

    def log_prob_relaxed(self, x: Tree) -> Array:
        return self._sum(log_density_relaxed, x)

    def sample_and_log_prob(self, key: Array) -> tuple[Any, Array]:
        parts = self.split(self.parts)
        keys = jax.random.split(key, len(parts))
        draws = [sample_and_log_prob(d, k) for d, k in zip(parts, keys, strict=True)]
        return self.join([event for event, _ in draws]), _total([log_p for _, log_p in draws])

    def mean(self) -> Any:
        return self.join([mean_of(d) for d in self.split(self.parts)])

    def times(self, other: "Product") -> "Product":
        """Part by part, of a Product of that structure."""
        pairs = zip(self.split(self.parts), self.split(value_of(other).parts), strict=True)
        return Product(self.join([method_of(a, "times", "Product")(b) for a, b in pairs]))

    def in_parts(self, change: Callable[[Any], Any]) -> "Product":
        return Product(self.join([change(d) for d in self.split(self.parts)]))

    def sample_relaxed(self, key: Array, temperature: Numbers) -> Any:
        """Every part relaxed; TypeError where one can't be."""
        parts = self.split(self.parts)
        keys = jax.random.split(key, len(parts))
        relaxed = [method_of(d, "sample_relaxed", "Product") for d in parts]
        return self.join([draw(k, temperature) for draw, k in zip(relaxed, keys, strict=True)])

    def enumerate_support(self) -> Any:
        """Every combination of the parts' events, stacked; TypeError where one can't be listed."""
        supports = [method_of(d, "enumerate_support", "Product")() for d in self.split(self.parts)]
        ways = combinations([len(jax.tree.leaves(support)[0]) for support in supports])
        pairs = zip(supports, ways.T, strict=True)
        return self.join([jax.tree.map(lambda a, i=i: a[i], support) for support, i in pairs])

    def _sum(self, log_density: Callable[[Any, Any], Array], x: Tree) -> Array:
        pairs = zip(self.split(self.parts), self.split(x), strict=True)
        return _total([log_density(d, part) for d, part in pairs])

    def check_event(self, name: str, what: str, event: Any) -> None:
        """As `protocols.check_event`, part by part."""
        paths, _ = jax.tree_util.tree_flatten_with_path(self.parts, self._is_part)
        for (path, d), part in zip(paths, self.split(event), strict=True):
            check_event(name, d, what + written(self.parts, path), part)

    def split(self, x: Tree) -> list[Any]:
        """What belongs to each part, of an event or another tree of that structure."""
        try:
            return self._structure.flatten_up_to(x)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Product: got {jax.tree.structure(x)}, expected an event for each part of "
                f"{self._structure}: {error}"
            ) from None

    @property
    def _structure(self) -> Any:
        return jax.tree.structure(self.parts, self._is_part)

    def _is_part(self, node: Any) -> bool:
        return node is not self.parts

    def join(self, parts: list[Any]) -> Any:
        """A tree of the structure of an event, of what belongs to each part."""
        return jax.tree.unflatten(self._structure, parts)


def _total(terms: list[Array]) -> Array:
    return jnp.sum(jnp.stack(terms)) if terms else jnp.zeros(())


def composed(outer: Callable[[Any], Any], inner: Callable[[Any], Any]) -> Partial:
    """x -> outer(inner(x)), a callable pytree as both are."""
    return Partial(of_inner, outer, inner)


def of_inner(outer: Callable[[Any], Any], inner: Callable[[Any], Any], x: Any) -> Any:
    return outer(inner(x))


Part = TypeAliasType("Part", Annotated[Any, check_density])
"""A density: what has a `log_prob`."""


@pytree
@dataclass(frozen=True, eq=False)
class Joint:
    """p(a, b) = p(a) p(b|a): two layers of a hierarchy; `hierarchy` nests them to more.

    Between two of them a bound takes the rate level by level: in closed form, given the sample
    above, wherever that level has one. Events are pairs (a, b).

    Args:
      first: p(a).
      then: a -> p(b|a), a callable pytree: a network, or a function in `jax.tree_util.Partial`.

    >>> from jaxvae import Normal, StandardNormal
    >>> walk = Joint(StandardNormal((1,)), jax.tree_util.Partial(lambda a: Normal(a, 1.0)))
    >>> a, b = walk.sample(jax.random.key(0))
    >>> round(float(walk.log_prob((jnp.zeros(1), jnp.zeros(1)))), 5)  # -log 2 pi
    -1.83788
    """

    first: Part
    then: Callable[[Any], Any]

    @property
    def reparameterized(self) -> bool:
        return has_path(self.first) and traced(has_path, self._second)

    @property
    def certain(self) -> bool:
        return is_certain(self.first) and traced(is_certain, self._second)

    def _second(self) -> Any:
        return self.then(self.first.sample(jax.random.key(0)))

    def sample(self, key: Array) -> tuple[Any, Any]:
        return self.sample_and_log_prob(key)[0]

    @checked
    def log_prob(self, event: tuple[Any, Any]) -> Array:
        a, b = event
        return log_density(self.first, a) + log_density(self.then(a), b)

    @checked
    def log_prob_relaxed(self, event: tuple[Any, Any]) -> Array:
        a, b = event
        return log_density_relaxed(self.first, a) + log_density_relaxed(self.then(a), b)

    @checked
    def sample_and_log_prob(self, key: Array) -> tuple[tuple[Any, Any], Array]:
        first_key, then_key = jax.random.split(key)
        a, log_a = sample_and_log_prob(self.first, first_key)
        b, log_b = sample_and_log_prob(self.then(a), then_key)
        return (a, b), log_a + log_b

    def in_parts(self, change: Callable[[Any], Any]) -> "Joint":
        return Joint(change(self.first), composed(change, self.then))
