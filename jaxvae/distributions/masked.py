"""Missing entries."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxvae.checks import Numbers, Tree, a_class_of, check_shape, somebody_listens, within
from jaxvae.distributions.products import Product
from jaxvae.protocols import Distribution, check_event, log_density, mean_of, method_of
from jaxvae.pytrees import arrays, pytree, value_of


@pytree
@dataclass(frozen=True, eq=False)
class Masked:
    """HI-VAE's likelihood, of what was observed: log p(x_observed) = sum_i mask_i log p_i(x_i).

    Events are pairs (x, mask): what is missing is part of the datum, so a decoder need not know it.
    An entry that is missing may hold anything, NaN included: it counts 0 nats and has no gradient,
    in x and in the parameters of p_i, as an event of its support stands in, `filler` or a draw.
    Sampling draws every entry, and says so in the mask.
    Nazabal et al. 2020 (HI-VAE); Mattei & Frellsen 2019 (MIWAE).

    Args:
      distribution: of independent coordinates: any with `unstack()`, as an elementwise one or an
        `Independent` (a mask of its first axes hides whole pixels), or a `Product`, whose mask has
        the structure of the event.

    Raises:
      TypeError: when scored, if it has no `unstack()`, as a `MultivariateNormal`.

    >>> from jaxvae import Normal
    >>> d = Masked(Normal(jnp.zeros(2), jnp.ones(2)))
    >>> x, mask = jnp.array([0.0, jnp.nan]), jnp.array([True, False])
    >>> round(float(d.log_prob((x, mask))), 5)  # -1/2 log 2 pi
    -0.91894
    """

    distribution: Any

    def sample(self, key: Array) -> tuple[Any, Any]:
        x = self.distribution.sample(key)
        return x, jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), x)

    def log_prob(self, event: tuple[Any, Any]) -> Array:
        x, mask = event
        check_masks("Masked", x, mask)
        check_observed("Masked", "x", x, mask)
        return _observed(self.distribution, x, mask)

    def mean(self) -> Any:
        return mean_of(self.distribution)

    def check_event(self, name: str, what: str, event: Any) -> None:
        """As `protocols.check_event`; of the mask nothing, as it may have fewer axes than x."""
        if not isinstance(event, tuple) or len(event) != 2:
            raise ValueError(
                f"model: {what} is {a_class_of(event)}, expected a pair (x, mask) as {name} "
                "is a Masked distribution"
            )
        check_event(name, self.distribution, f"{what}[0]", event[0])


def a_mask_each(owner: str, x: Tree, mask: Tree) -> list[Any]:
    """Of every leaf of x its mask, which may be that of a whole part."""
    try:
        return jax.tree.leaves(jax.tree.broadcast(mask, x))
    except ValueError:
        raise ValueError(
            f"{owner}: mask has structure {jax.tree.structure(mask)}, expected that of x, "
            f"{jax.tree.structure(x)}, or one for a whole part of it"
        ) from None


def check_masks(owner: str, x: Tree, mask: Tree) -> None:
    """Raise ValueError unless the axes of every mask are the first ones of what it hides."""
    for leaf, seen in zip(jax.tree.leaves(x), a_mask_each(owner, x, mask), strict=True):
        check_shape(owner, "mask", seen, jnp.shape(leaf)[: jnp.ndim(seen)])


def is_of_a_whole(mask: Tree) -> bool:
    """Whether a mask is one flag, of a whole part."""
    return jax.tree.structure(mask) == jax.tree.structure(0) and jnp.ndim(mask) == 0


def check_observed(owner: str, name: str, x: Tree, mask: Tree) -> None:
    """OutsideSupportError where x, concrete, one event or rows, has NaN in what was seen."""
    named = jax.tree_util.tree_leaves_with_path(x)
    for (path, leaf), seen in zip(named, a_mask_each(owner, x, mask), strict=True):
        floats = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        told = not (isinstance(leaf, Tracer) or isinstance(seen, Tracer)) or somebody_listens()
        if floats and told and jnp.shape(leaf)[: jnp.ndim(seen)] == jnp.shape(seen):
            there = jnp.asarray(seen, bool).reshape(
                jnp.shape(seen) + (1,) * (jnp.ndim(leaf) - jnp.ndim(seen))
            )
            where = name + jax.tree_util.keystr(path)
            inside = ~(jnp.isnan(leaf) & there)
            within(owner, leaf, inside, "a number where its mask is True", where)


def _observed(d: Distribution, x: Tree, mask: Any) -> Array:
    d = value_of(d)
    as_a_whole = is_of_a_whole(mask)
    if isinstance(d, Product):
        each = d.split(d.parts)
        masks = [mask] * len(each) if as_a_whole else d.split(mask)
        parts = zip(each, d.split(x), masks, strict=True)
        return jnp.sum(jnp.stack([_observed(*part) for part in parts]))
    if not hasattr(d, "sample"):
        raise TypeError(
            f"Masked: {type(d).__name__} has no sample, expected a distribution whose density of "
            "an entry does not depend on others that may be missing"
        )
    if as_a_whole:
        event = jax.tree.map(partial(_if, mask), x, _in_a_gap(d, x))
        return jnp.where(mask, log_density(d, event), 0.0)
    coordinates = method_of(
        d,
        "unstack",
        "Masked",
        "mask an event of entries that depend on each other as a whole, and let an end symbol fill "
        "the padding of a sequence",
    )()
    return jnp.sum(jax.vmap(_observed)(arrays(coordinates), x, mask))


def _in_a_gap(d: Distribution, x: Tree) -> Any:
    """An event of d's support, whose log p is finite and not seen: `d.filler`, or else a draw."""
    filler = getattr(d, "filler", None)
    feasible_like = getattr(getattr(d, "support", None), "feasible_like", None)
    if isinstance(filler, float):
        filler = jax.tree.map(partial(jnp.full_like, fill_value=filler), x)
    elif filler is None:
        # a draw of counts takes a hundred times as long as their score; numpyro's know of one
        filler = feasible_like(x) if feasible_like else d.sample(jax.random.key(0))
    return jax.lax.stop_gradient(filler)


def _if(seen: Any, leaf: Any, gap: Numbers) -> Array:
    """The leaf where it was seen, else the gap's."""
    check_shape("Masked.log_prob", "event", leaf, jnp.shape(gap))
    return jnp.where(seen, leaf, jnp.asarray(gap, jnp.result_type(leaf)))
