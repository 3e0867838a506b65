"""Several modalities of one thing: a posterior for each, joined into one for whatever is there.

A join is a function `(experts, prior, present) -> q(z | what is present)`. An expert that is
missing is as if it were not there, and with none present every join is the prior.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from typing_extensions import TypeAliasType

from jaxvae.checks import Tree, a_class_of, check_function, checked
from jaxvae.distributions import Masked, Mixture, Normal, Product, StandardNormal
from jaxvae.models.hierarchical import times
from jaxvae.protocols import Distribution, event_shape
from jaxvae.pytrees import value_of


@checked
def product_of_experts(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Any:
    """The Gaussian proportional to the product of the prior and of the experts that are present.

    q(z|x) ~ p(z) prod_i q_i(z|x_i):   1/sigma^2 = 1/sigma_0^2 + sum_i 1/sigma_i^2,
    mu = sigma^2 (mu_0/sigma_0^2 + sum_i mu_i/sigma_i^2)

    It is sharper than any expert: one that is sure overrules the others. Of another class that has
    `times(q)` it is the product that this returns. Wu & Goodman 2018, section 2.

    Args:
      experts: `Normal`s over z, one a modality.
      prior: p(z), a `Normal` or `StandardNormal`.
      present: M booleans, traced or not; None, the default, is all.

    >>> experts = Normal(jnp.array([2.0]), jnp.ones(1)), Normal(jnp.array([4.0]), jnp.ones(1))
    >>> q = product_of_experts(experts, StandardNormal((1,)))
    >>> float(q.loc[0]), round(float(q.scale[0]), 5)  # (2 + 4 + 0) / 3 and 1 / sqrt 3
    (2.0, 0.57735)
    """
    experts, q, present = _checked("product_of_experts", experts, prior, present)
    for expert, here in zip(experts, present, strict=True):
        q = _if(here, times(q, expert), q)
    return q


@checked
def mixture_of_experts(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Mixture:
    """The even mixture of the experts that are present: q(z|x) = 1/M sum_i q_i(z|x_i).

    It is as wide as all experts together: z may be of any modality alone, so that each learns to
    tell of the others. Take `gradient=stratified_mixture` with it.
    Shi, Siddharth, Paige & Torr 2019, section 3.

    Args:
      experts: distributions of one class over z, one a modality.
      prior: p(z), of that class; it is the posterior where nothing is present.
      present: as in `product_of_experts`.

    >>> experts = Normal(jnp.array([2.0]), jnp.ones(1)), Normal(jnp.array([4.0]), jnp.ones(1))
    >>> float(mixture_of_experts(experts, StandardNormal((1,))).mean()[0])
    3.0
    """
    experts, p, present = _checked("mixture_of_experts", experts, prior, present)
    components = [_if(here, expert, p) for expert, here in zip(experts, present, strict=True)]
    return _even(present, jax.tree.map(lambda *leaves: jnp.stack(leaves), *components))


@checked
def mixture_of_products(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Mixture:
    """The even mixture of the products of experts of every set of modalities that are present.

    q(z|x) = 1/|S| sum over sets s in S of product_of_experts(those in s), S all but the empty one

    A `Mixture` of 2^M - 1. Sutter, Daunhawer & Vogt 2021; the prior an expert: Wu & Goodman 2018.

    Args:
      experts: `Normal`s over z, one a modality.
      prior: p(z), a `Normal` or `StandardNormal`; an expert in every product.
      present: as in `product_of_experts`.

    >>> experts = Normal(jnp.array([2.0]), jnp.ones(1)), Normal(jnp.array([4.0]), jnp.ones(1))
    >>> q = mixture_of_products(experts, StandardNormal((1,)))
    >>> round(float(q.mean()[0]), 5)  # (1 + 2 + 2) / 3
    1.66667
    """
    experts, p, present = _checked("mixture_of_products", experts, prior, present)
    sets = jnp.array(list(product((False, True), repeat=len(experts)))[1:])
    missing = jnp.any(sets & ~present[None], axis=1)
    products = jax.vmap(lambda s: product_of_experts(experts, p, s & present))(sets)
    return _even(~missing, products)


def _check_functions(owner: str, name: str, functions: object) -> None:
    if not isinstance(functions, Sequence) or not functions:
        raise TypeError(
            f"{owner}: {name} is {a_class_of(functions)}, expected a tuple of functions, "
            "one a modality"
        )
    for i, function in enumerate(functions):
        check_function(owner, f"{name}[{i}]", function)


Functions = TypeAliasType("Functions", Annotated[Sequence[Callable[[Any], Any]], _check_functions])


class Multimodal(NamedTuple):
    """A model of examples with several modalities, any of which may be missing.

    p(x, z) = p(z) prod_i p(x_i|z), over the modalities i that are present

    An example is a pair (x, mask), two tuples with an entry a modality: what was seen, and whether.
    Where the mask is False anything may stand, NaN included. The bound of an example is one of
    log p(x_present), so to train on random masks is to train all conditionals.
    Wu & Goodman 2018, section 2, modalities missing too.

    Args:
      experts: x_i -> a distribution over z that the join takes, one a modality.
      likelihoods: z -> p(x_i|z), one a modality.
      prior: p(z), as the join takes it.
      join: `product_of_experts`, `mixture_of_experts` or `mixture_of_products`, in a
        `jax.tree_util.Partial`.

    >>> of = Partial(lambda v: Normal(v, jnp.ones(2)))
    >>> model = Multimodal((of, of), (of, of), StandardNormal((2,)))
    >>> x, missing = jnp.ones(2), jnp.full(2, jnp.nan)
    >>> model.encode(((x, missing), (True, False))).loc.tolist()
    [0.5, 0.5]
    """

    experts: Functions
    likelihoods: Functions
    prior: Distribution
    join: Callable[..., Distribution] = Partial(product_of_experts)

    @checked
    def encode(self, event: tuple[Any, Any]) -> Any:
        x, mask = event
        for name, part in ("x", x), ("mask", mask):
            if not isinstance(part, (tuple, list)) or len(part) != len(self.experts):
                raise ValueError(
                    f"Multimodal: {name} is {part!r:.40}, expected a tuple with an entry for each "
                    f"of {len(self.experts)} modalities"
                )
        triples = zip(self.experts, x, mask, strict=True)
        # an expert of nothing sees zeros, and its gradient is zero
        experts = [expert(_if(here, x_i, 0.0)) for expert, x_i, here in triples]
        return self.join(experts, self.prior, mask)

    @checked
    def decode(self, z: Tree) -> Masked:
        return Masked(Product(tuple(likelihood(z) for likelihood in self.likelihoods)))


def _if(here: Any, tree: Tree, other: Any) -> Any:
    """`tree` where it is here, else `other`, a number or a tree of that structure."""
    if jax.tree.structure(other) != jax.tree.structure(tree):
        other = jax.tree.map(lambda _: other, tree)
    return jax.tree.map(
        lambda a, b: jnp.where(here, a, jnp.asarray(b, jnp.result_type(a))), tree, other
    )


def _even(here: Array, components: Any) -> Mixture:
    """The mixture with equal weights of the components that are here; of all if none is."""
    dtype = jnp.result_type(*jax.tree.leaves(components))
    excluded = jnp.asarray(-jnp.inf, dtype)
    return Mixture(jnp.where(here | ~jnp.any(here), jnp.zeros((), dtype), excluded), components)


def _checked(owner: str, experts: Any, prior: Any, present: Any) -> tuple[Any, Any, Array]:
    """Experts and prior, of one class and with leaves of one shape, and the flags as an array."""
    if not isinstance(experts, (tuple, list)) or not experts:
        raise TypeError(f"{owner}: experts is {experts!r:.40}, expected a tuple of distributions")
    names = [*(f"experts[{i}]" for i in range(len(experts))), "prior"]
    every = [whole(d) for d in (*experts, prior)]
    kind, shape = jax.tree.structure(every[0]), event_shape(every[0])
    for name, d in zip(names, every, strict=True):
        if jax.tree.structure(d) != kind:
            raise TypeError(
                f"{owner}: {name} is {a_class_of(d)}, expected {type(every[0]).__name__}, "
                "as experts[0] is"
            )
        if event_shape(d) != shape:
            raise ValueError(
                f"{owner}: {name} is over events of shape {event_shape(d)}, expected {shape}, that "
                "of experts[0]"
            )
    if present is None:
        present = np.ones(len(experts), bool)
    shapes = [jnp.shape(flag) for flag in jax.tree.leaves(present)]
    if isinstance(present, dict) or shapes not in ([(len(experts),)], [()] * len(experts)):
        raise ValueError(f"{owner}: present has not one flag for each of {len(experts)} experts")
    return every[:-1], every[-1], jnp.asarray(present).astype(bool)


def whole(d: Distribution) -> Any:
    """A Gaussian with leaves as large as its event, so that it can be stacked with others."""
    d = value_of(d)
    return d.unstack() if isinstance(d, (Normal, StandardNormal)) else d
