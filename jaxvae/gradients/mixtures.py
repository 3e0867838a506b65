"""A gradient estimator for mixtures: the component is summed out, one draw from each."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Keys, a_class_of, checked
from jaxvae.distributions import Mixture
from jaxvae.gradients.reparameterized import Reduction, Term, over_samples
from jaxvae.protocols import Distribution, has_path, log_density
from jaxvae.pytrees import arrays, value_of


@checked
def stratified_mixture(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys
) -> tuple[Array, Any]:
    """Draws from every component of a mixture: sum_m pi_m R(l_m1, ..., l_mK), z_mk ~ q_m.

    The component is summed out, so that the gradient is the pathwise one within each, exact in the
    weights, and never depends on which component was drawn. It takes M terms a sample. With more
    than one sample a tighter bound is one of each component's own, and stays below log p(x). aux is
    averaged over the components.
    Shi, Siddharth, Paige & Torr 2019; Roeder, Wu & Duvenaud 2017.

    Args:
      q: the posterior, a `Mixture` of components whose samples have a derivative.

    >>> from jaxvae import Normal
    >>> q = Mixture(jnp.zeros(2), Normal(jnp.array([[-1.0], [3.0]]), jnp.full((2, 1), 1e-3)))
    >>> term = lambda q, z, log_q: (z[0], None)
    >>> round(float(stratified_mixture(jnp.mean, term, q, jax.random.key(0)[None])[0]), 1)
    1.0
    """
    q = value_of(q)
    if not isinstance(q, Mixture):
        raise TypeError(f"stratified_mixture: q is {a_class_of(q)}, expected a Mixture")
    if not has_path(q.components):
        raise TypeError(
            f"stratified_mixture: q is a Mixture of {type(q.components).__name__}, whose "
            "samples have no derivative, expected components such as Normal; use "
            "gradient=score_function"
        )
    weights = jax.nn.softmax(value_of(q.logits))

    def draw(component: Distribution, key: Key) -> tuple[Array, Any]:
        z = component.sample(key)
        return term(q, z, log_density(q, z))

    def strata(key: Key) -> tuple[Array, Any]:
        return jax.vmap(draw)(arrays(q.components), jax.random.split(key, len(weights)))

    l, aux = over_samples(strata)(keys)  # [K, M]
    mean = jax.tree.map(lambda a: jnp.tensordot(a, weights, ((1,), (0,))), aux)
    return weights @ jax.vmap(reduction, 1)(l), mean
