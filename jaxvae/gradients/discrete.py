"""Gradient estimators for discrete latents: every outcome summed, and one part of several."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Keys, Tree, a_class_of, checked
from jaxvae.distributions import Product
from jaxvae.gradients.relaxed import INSTEAD
from jaxvae.gradients.reparameterized import (
    Estimator,
    Reduction,
    Term,
    doubly_reparameterized,
    require_path_of_gradient,
)
from jaxvae.protocols import Distribution, log_density, method_of, sample_and_log_prob


@checked
def enumeration(reduction: Reduction, term: Term, q: Distribution, keys: Keys) -> tuple[Array, Any]:
    """No sampling: E[R], the sum of q(z_1) ... q(z_K) R(l_1, ..., l_K) over all z_1, ..., z_K.

    The terms of the S events of the support are evaluated once; R is evaluated S^K times. The keys
    are not drawn from; aux is its expectation, repeated K times.

    Args:
      q: the posterior, with `enumerate_support()`: `Categorical`, `OneHotCategorical`, `Bernoulli`.

    Raises:
      ValueError: S^K is over 2^20.

    >>> from jaxvae import Bernoulli
    >>> term = lambda q, z, log_q: (z[0], None)
    >>> mean = lambda l: enumeration(jnp.mean, term, Bernoulli(l), jax.random.key(0)[None])[0]
    >>> jax.grad(mean)(jnp.zeros(1)).round(4).tolist()  # p (1 - p), whatever the key
    [0.25]
    """
    support = method_of(q, "enumerate_support", "enumeration", INSTEAD)()
    log_q = jax.vmap(lambda z: log_density(q, z))(support)
    l, aux = jax.vmap(lambda z, log_q: term(q, z, log_q))(support, log_q)
    (s,), k = l.shape, len(keys)
    if s**k > 2**20:
        raise ValueError(
            f"enumeration: {s} events at num_samples={k} are {s}^{k} outcomes, expected at most "
            "2^20; use fewer samples, or gradient=vimco, which samples"
        )
    outcomes = np.indices((s,) * k).reshape(k, -1).T  # [s^k, k]
    # an event that q never draws may have any term, even an infinite one
    drawn = jax.vmap(lambda log_q, a: jnp.where(log_q > -jnp.inf, a, 0.0))
    l, aux = jax.tree.map(lambda a: drawn(log_q, a), (l, aux))
    probability = jnp.exp(jnp.sum(log_q[outcomes], axis=1))
    bound = jnp.sum(probability * jax.vmap(reduction)(l[outcomes]))
    mean = jax.tree.map(lambda a: jnp.tensordot(jnp.exp(log_q), a, 1), aux)
    return bound, jax.tree.map(lambda a: jnp.broadcast_to(a, (k, *a.shape)), mean)


@checked
def for_component(name: str, estimator: Estimator) -> Estimator:
    """An estimator for one part of a `Product`; the other parts keep their paths.

    For a posterior of discrete and continuous latents side by side: the others are drawn, and given
    them `estimator` does what it does, for each sample in turn given the terms of those before it.

        elbo(model, key, x, gradient=for_component("choice", enumeration))

    Args:
      name: its key in the posterior's dict of parts.
      estimator: any gradient estimator of one sample; `vimco` needs several at once.

    Raises:
      TypeError: the posterior is no `Product` of a dict, or the others' samples have no derivative.

    >>> from jaxvae import Normal, OneHotCategorical
    >>> choice, style = OneHotCategorical(jnp.zeros(3)), Normal(jnp.ones(2), 0.0)
    >>> q = Product({"choice": choice, "style": style})
    >>> def term(q, z, log_q):
    ...     return z["choice"] @ jnp.arange(3.0) + jnp.sum(z["style"]), log_q
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> bound, _ = for_component("choice", enumeration)(jnp.mean, term, q, keys)
    >>> print(f"{bound:.4f}")
    3.0000
    """

    @checked
    def gradient(
        reduction: Reduction, term: Term, q: Distribution, keys: Keys
    ) -> tuple[Array, Any]:
        parts = getattr(q, "parts", None)
        if not isinstance(parts, dict):
            raise TypeError(f"for_component: q is {a_class_of(q)}, expected a Product of a dict")
        if not isinstance(name, str) or name not in parts:
            raise ValueError(f"for_component: name is {name!r}, expected one of {sorted(parts)}")
        if len(keys) > 1 and estimator is doubly_reparameterized:
            raise ValueError(
                f"for_component: num_samples is {len(keys)}, expected 1 for "
                "doubly_reparameterized, which weighs all samples at once; use pathwise"
            )
        others = Product({other: d for other, d in parts.items() if other != name})
        others_keys, part_keys = zip(*map(jax.random.split, keys), strict=True)
        drawn = [sample_and_log_prob(others, key) for key in others_keys]

        def from_sample(k: int, before: tuple[Array, ...]) -> tuple[Array, Any]:
            """The bound from sample k on, given the terms of those before, and their aux."""
            if k == len(keys):
                return reduction(jnp.stack(before)), ()
            rest, log_rest = drawn[k]

            def whole(_: Any, event: Tree, log_part: Array) -> tuple[Array, Any]:
                l, aux = term(q, rest | {name: event}, log_rest + log_part)
                bound, later = from_sample(k + 1, (*before, l))
                return bound, (aux, *later)

            bound, aux = estimator(jnp.squeeze, whole, parts[name], part_keys[k][None])
            return bound, jax.tree.map(lambda a: a[0], aux)

        bound, aux = from_sample(0, ())
        return require_path_of_gradient(others, bound), jax.tree.map(lambda *a: jnp.stack(a), *aux)

    return gradient
