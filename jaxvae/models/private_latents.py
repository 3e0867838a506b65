"""Latents of one modality alone beside those that all share, as joins of `Multimodal`.

Experts and prior are a `Product` of two parts: "shared", a distribution over what all modalities
tell, and "private", of what is of one alone: of expert i q(w_i|x_i), of the prior a `Product` of a
tuple of p(w_i), one a modality. Latents are {"shared": z, "private": (w_1, ..., w_M)}, of which
likelihood i takes z and w_i.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, a_class_of, checked
from jaxvae.distributions import Mixture, Product
from jaxvae.models.multimodal import flags, mixture_of_experts, product_of_experts, where, whole
from jaxvae.protocols import Distribution


@checked
def shared_and_private(
    experts: Sequence[Distribution],
    prior: Distribution,
    present: Tree | None = None,
    *,
    join: Callable[..., Distribution] = product_of_experts,
) -> Product:
    """A join of the shared latents, beside the private ones of each modality: DMVAE.

    q(z, w|x) = join(q_1(z|x_1), ..., p(z)) prod_i q(w_i|x_i),   p(w_i) where x_i is missing

    Lee & Pavlovic 2021.

    Args:
      experts: `Product`s of "shared" and "private", one a modality.
      prior: a `Product` of "shared" and of "private", a `Product` of one a modality.
      present: as in `product_of_experts`.
      join: of the shared parts.

    >>> from jaxvae import Normal, StandardNormal
    >>> z, w, p_w = Normal(jnp.full(1, 2.0), 1.0), Normal(jnp.ones(3), 0.1), StandardNormal((3,))
    >>> expert = Product({"shared": z, "private": w})
    >>> prior = Product({"shared": StandardNormal((1,)), "private": Product((p_w, p_w))})
    >>> q = shared_and_private((expert, expert), prior, (True, False))
    >>> q.mean()["shared"].tolist(), [w[0].item() for w in q.mean()["private"]]
    ([1.0], [1.0, 0.0])
    """
    shared, private, p = _split("shared_and_private", experts, prior)
    z = join(shared, p["shared"], present)
    return Product({"shared": z, "private": _known(flags(present, len(private)), private, p)})


@checked
def mixture_with_private(
    experts: Sequence[Distribution], prior: Distribution, present: Tree | None = None
) -> Mixture:
    """The mixture of experts whose component i knows the private latents of x_i alone: MMVAE+.

    q(z, w|x) = 1/M sum_i q_i(z|x_i) q(w_i|x_i) prod_{j != i} p(w_j)

    What is told of x_j from x_i can't lean on private latents of x_j, as they are drawn from the
    prior, so that what both share must be in z. Take `gradient=stratified_mixture` with it: this is
    the bound of that mixture, where Palumbo et al. weigh the shared part alone.
    Palumbo, Daunhawer & Vogt 2023.

    Args:
      experts: as in `shared_and_private`.
      prior: as there; its private part is what draws the private latents of the others.
      present: as in `product_of_experts`.

    >>> from jaxvae import Normal, StandardNormal
    >>> z, w, p_w = Normal(jnp.full(1, 2.0), 1.0), Normal(jnp.ones(3), 0.1), StandardNormal((3,))
    >>> expert = Product({"shared": z, "private": w})
    >>> prior = Product({"shared": StandardNormal((1,)), "private": Product((p_w, p_w))})
    >>> q = mixture_with_private((expert, expert), prior)
    >>> q.mean()["shared"].tolist(), [w[0].item() for w in q.mean()["private"]]  # half from p(w)
    ([2.0], [0.5, 0.5])
    """
    shared, private, p = _split("mixture_with_private", experts, prior)
    z = mixture_of_experts(shared, p["shared"], present)
    m = len(private)
    own = jnp.eye(m, dtype=bool) & flags(present, m)[None]  # of component i, w_j
    ws = jax.vmap(lambda known: _known(known, private, p))(own)
    return Mixture(z.logits, Product({"shared": z.components, "private": ws}))


def _known(known: Array, private: list[Any], prior: dict[str, Any]) -> Product:
    """q(w_i|x_i) where it is known, p(w_i) elsewhere."""
    pairs = zip(known, private, prior["private"], strict=True)
    return Product(tuple(where(here, w, p_w) for here, w, p_w in pairs))


def _split(owner: str, experts: Any, prior: Any) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The shared and the private parts of the experts, and those of the prior."""
    if not isinstance(experts, (tuple, list)) or not experts:
        raise TypeError(f"{owner}: experts is {experts!r:.40}, expected a tuple of distributions")
    parts = []
    for name, d in *((f"experts[{i}]", d) for i, d in enumerate(experts)), ("prior", prior):
        d = whole(d)
        if not isinstance(d, Product) or set(d.parts) != {"shared", "private"}:
            raise TypeError(
                f"{owner}: {name} is {a_class_of(d)}, expected a Product of "
                '{"shared": ..., "private": ...}'
            )
        parts.append(d.parts)
    *each, p = parts
    p_w = getattr(p["private"], "parts", p["private"])
    if not isinstance(p_w, tuple) or len(p_w) != len(each):
        raise TypeError(
            f"{owner}: the private part of prior is {a_class_of(p_w)}, expected a tuple of "
            f"{len(each)} distributions, one a modality"
        )
    p = {"shared": p["shared"], "private": [whole(d) for d in p_w]}
    return [d["shared"] for d in each], [d["private"] for d in each], p
