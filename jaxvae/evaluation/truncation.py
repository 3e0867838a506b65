"""Draws of the likelier: a choice cut to the k labels of largest probability."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial

from jaxvae.checks import checked
from jaxvae.distributions import Categorical, OneHotCategorical
from jaxvae.evaluation.latent_space import Index
from jaxvae.protocols import Distribution, method_of
from jaxvae.pytrees import value_of


@checked
def top_k(distribution: Distribution, k: Index) -> Any:
    """The distribution in which each choice is among its k likeliest labels, p renormalised.

    Of equals those of lower number are kept. What is made of others is cut in its parts, as by
    `tempered`, with which it commutes: every coordinate of an `Autoregressive` given those before,
    level of a `Joint`, step of a `Markov` chain, part of an `Independent` or a `Product`, and what
    a `Constant` holds.
    `model._replace(prior=top_k(tempered(p, 0.8), 20))` generates so.
    Fan, Lewis & Dauphin 2018.

    Args:
      k: how many, at least 1; of K or more, all. It may be traced.

    Raises:
      TypeError: it is no choice, nor made of choices, and has no `top_k(k)`.
      ValueError: k is below 1.

    >>> p = top_k(Categorical(jnp.log(jnp.array([0.2, 0.5, 0.3]))), 2)
    >>> [round(float(p), 3) for p in jnp.exp(p.log_probs)]
    [0.0, 0.625, 0.375]
    """
    if not isinstance(k, Tracer) and k < 1:
        raise ValueError(f"top_k: k is {k}, expected an integer of at least 1")
    match value_of(distribution):
        case d if hasattr(d, "top_k"):
            return d.top_k(k)
        case Categorical() | OneHotCategorical() as d:
            return replace(d, logits=_largest(jnp.asarray(d.logits), k))
        case d if hasattr(d, "in_parts"):
            return d.in_parts(Partial(top_k, k=k))
        case d:
            return method_of(d, "top_k", "top_k")


def _largest(logits: Array, k: Index) -> Array:
    rank = jnp.argsort(jnp.argsort(logits, axis=-1, descending=True), axis=-1)
    return jnp.where(rank < k, logits, -jnp.inf)
