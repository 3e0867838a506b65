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

from jaxvae.bounds import KL, Terms, auto_kl
from jaxvae.checks import Key, Scalar, Tree, a_class_of, check_function, checked
from jaxvae.distributions import Independent, Masked, Mixture, Product, StandardNormal
from jaxvae.gradients import Estimator, pathwise
from jaxvae.gradients.reparameterized import at_one_sample
from jaxvae.model import log_likelihood, posterior
from jaxvae.models.hierarchical import times
from jaxvae.protocols import Distribution, MissingMethodError, event_shape, method_of
from jaxvae.pytrees import shown, swappable, value_of


@checked
def product_of_experts(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Any:
    """The product of experts (PoE) of the MVAE: the prior times the experts that are present.

    q(z|x) ~ p(z) prod_i q_i(z|x_i), of Gaussians:   1/sigma^2 = 1/sigma_0^2 + sum_i 1/sigma_i^2,
    mu = sigma^2 (mu_0/sigma_0^2 + sum_i mu_i/sigma_i^2)

    It is sharper than any expert: one that is sure overrules the others. Of another class it is
    what its `times(q)` returns: of `Bernoulli` and `OneHotCategorical` logits add up, of `Gamma`,
    `Beta` and `Dirichlet` counts, and a `Product` goes part by part.
    Wu & Goodman 2018.

    Args:
      experts: distributions over z of one class that has `times(q)`, one a modality.
      prior: p(z), of that class; a `StandardNormal` with `Normal`s.
      present: M booleans, traced or not; None, the default, is all.

    >>> from jaxvae import Normal
    >>> experts = Normal(jnp.array([2.0]), jnp.ones(1)), Normal(jnp.array([4.0]), jnp.ones(1))
    >>> q = product_of_experts(experts, StandardNormal((1,)))
    >>> float(q.loc[0]), round(float(q.scale[0]), 5)  # (2 + 4 + 0) / 3 and 1 / sqrt 3
    (2.0, 0.57735)
    """
    experts, q, present = _checked("product_of_experts", experts, prior, present)
    for expert, here in zip(experts, present, strict=True):
        q = where(here, times(q, expert), q)
    return q


@checked
def mixture_of_experts(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Mixture:
    """The mixture of experts (MoE) of the MMVAE, even over those present: 1/M sum_i q_i(z|x_i).

    It is as wide as all experts together: z may be of any modality alone, so that each learns to
    tell of the others. Take `gradient=stratified_mixture` with it.
    Shi, Siddharth, Paige & Torr 2019.

    Args:
      experts: distributions of one class over z, one a modality.
      prior: p(z), of that class; it is the posterior where nothing is present.
      present: as in `product_of_experts`.

    >>> from jaxvae import Normal
    >>> experts = Normal(jnp.array([2.0]), jnp.ones(1)), Normal(jnp.array([4.0]), jnp.ones(1))
    >>> float(mixture_of_experts(experts, StandardNormal((1,))).mean()[0])
    3.0
    """
    experts, p, present = _checked("mixture_of_experts", experts, prior, present)
    components = [where(here, expert, p) for expert, here in zip(experts, present, strict=True)]
    return _even(present, jax.tree.map(lambda *leaves: jnp.stack(leaves), *components))


@checked
def mixture_of_products(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Mixture:
    """The mixture of products of experts of the MoPoE-VAE: one for every set of those present.

    q(z|x) = 1/|S| sum over sets s in S of product_of_experts(those in s), S all but the empty one

    A `Mixture` of 2^M - 1. Sutter, Daunhawer & Vogt 2021; the prior an expert: Wu & Goodman 2018.

    Args:
      experts: distributions over z of one class that has `times(q)`, one a modality.
      prior: p(z), of that class; an expert in every product.
      present: as in `product_of_experts`.

    >>> from jaxvae import Normal
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


@shown
@swappable
class Multimodal(NamedTuple):
    """A model of examples with several modalities, any of which may be missing.

    p(x, z) = p(z) prod_i p(x_i|z), over the modalities i that are present

    An example is a pair (x, mask), two tuples with an entry a modality: what was seen, and whether.
    Where the mask is False anything may stand, NaN included. The bound of an example is one of
    log p(x_present), so to train on random masks is to train all conditionals.
    Wu & Goodman 2018 (MVAE), modalities missing too.

    Args:
      experts: x_i -> a distribution over z that the join takes, one a modality.
      likelihoods: z -> p(x_i|z), one a modality.
      prior: p(z), as the join takes it.
      join: `product_of_experts`, `mixture_of_experts` or `mixture_of_products`, in a
        `jax.tree_util.Partial`.

    >>> from jaxvae import Normal
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
        return self.join(self.of_each(event), self.prior, event[1])

    @checked
    def of_each(self, event: tuple[Any, Any]) -> list[Any]:
        """The expert of each modality alone, q_i(z|x_i); of one that is missing, at zeros."""
        x, mask = event
        for name, part in ("x", x), ("mask", mask):
            if not isinstance(part, (tuple, list)) or len(part) != len(self.experts):
                raise ValueError(
                    f"Multimodal: {name} is {part!r:.40}, expected a tuple with an entry for each "
                    f"of {len(self.experts)} modalities"
                )
        triples = zip(self.experts, x, mask, strict=True)
        # an expert of nothing sees zeros, and its gradient is zero
        return [expert(where(here, x_i, 0.0)) for expert, x_i, here in triples]

    @checked
    def decode(self, z: Tree) -> Masked:
        return Masked(Product(tuple(likelihood(z) for likelihood in self.likelihoods)))


@checked
def mvtcae(
    model: Multimodal,
    key: Key,
    x: Tree,
    *,
    alpha: Scalar,
    beta: Scalar = 1.0,
    kl: KL = auto_kl,
    gradient: Estimator = pathwise,
) -> tuple[Array, Terms]:
    """MVTCAE: an ELBO whose posterior must lie near each expert, as well as near the prior.

    (V - alpha) / V E_q[log p(x|z)] - beta [(1 - alpha) KL(q || p) + alpha / V sum_i KL(q || q_i)]

    over the V modalities i that are present, q of all of them: the more one expert alone tells of
    what all know, the cheaper. alpha = 0 is the `elbo`. Joined by a product; a mixture has no
    closed form to an expert. The terms are the distortion and the bracket, unweighted.
    Hwang, Kim, Hong & Kim 2021.

    Args:
      alpha: in [0, 1], traced: from the rate to the mean distance from the experts.
      beta: weight of both.

    >>> from jaxvae import Normal
    >>> of = Partial(lambda v: Normal(v, jnp.ones(2)))
    >>> model = Multimodal((of, of), (of, of), StandardNormal((2,)))
    >>> x = (jnp.ones(2), jnp.ones(2)), (True, True)
    >>> bound, terms = mvtcae(model, jax.random.key(0), x, alpha=0.5)
    >>> bool(jnp.isclose(bound, -(0.75 * terms.distortion + terms.rate), rtol=1e-5))
    True
    """
    experts, present = model.of_each(x), flags(x[1], len(model.experts))
    here = jnp.where(present, alpha, 0.0)
    here /= jnp.maximum(jnp.sum(jnp.where(present, 1.0, 0.0)), 1.0)  # alpha / V of each

    def term(q: Distribution, z: Tree, log_q: Array) -> tuple[Array, Terms]:
        p, near = model.prior, jnp.zeros(())
        for flag, weight, expert in zip(present, here, experts, strict=True):
            expert = where(flag, whole(expert), whole(p))
            near += weight * kl(q, expert, z, log_q)
        rate = (1.0 - alpha) * kl(q, p, z, log_q) + near
        terms = Terms(distortion=-log_likelihood(model, x, z), rate=rate)
        return -((1.0 - jnp.max(here)) * terms.distortion + beta * rate), terms

    return at_one_sample(gradient, term, posterior(model, x), key)


def where(here: Any, tree: Tree, other: Any) -> Any:
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
        return every[:-1], every[-1], flags(None, len(experts))
    shapes = [jnp.shape(flag) for flag in jax.tree.leaves(present)]
    if isinstance(present, dict) or shapes not in ([(len(experts),)], [()] * len(experts)):
        raise ValueError(f"{owner}: present has not one flag for each of {len(experts)} experts")
    return every[:-1], every[-1], flags(present, len(experts))


def flags(present: Any, m: int) -> Array:
    """Which of m modalities are present, as booleans [m]; of None, all."""
    return jnp.asarray(np.ones(m, bool) if present is None else present).astype(bool)


def whole(d: Distribution) -> Any:
    """A distribution with leaves as large as its event, so that it can be stacked with others."""
    d = value_of(d)
    if isinstance(d, Product):
        return Product(d.join([whole(part) for part in d.split(d.parts)]))
    if isinstance(d, Independent):  # whose leaves are stacked already
        return d
    try:
        parts = method_of(d, "unstack")()
    except MissingMethodError:
        return d
    return parts if isinstance(parts, type(d)) or isinstance(d, StandardNormal) else d
