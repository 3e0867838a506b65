"""Mixtures of any distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxvae.checks import Leaf, Tree, checked, logits_shape
from jaxvae.distributions.implicit import implicit
from jaxvae.distributions.independent import factors
from jaxvae.protocols import Distribution, log_density, log_density_relaxed, mean_of
from jaxvae.pytrees import arrays, pytree, value_of

D = TypeVar("D", bound=Distribution)


@pytree
@dataclass(frozen=True, eq=False)
class Mixture(Generic[D]):
    """log p(z) = log sum_k pi_k p_k(z), pi = softmax(logits).

    Which component a draw comes from has no derivative. Where components have `unstack()` and
    `cdf(z)`, as `Normal` and `Laplace` do, a draw carries the implicit gradient in all parameters,
    logits included; of others it carries none: take `score_function` or `vimco`.
    The gradient: Graves 2016; Figurnov, Mohamed & Mnih 2018.

    Args:
      logits: of the weights, shape [K]; `jnp.zeros(K)` in a `Constant` holds them equal.
      components: one distribution whose leaves have a leading axis of K, as `jax.vmap` makes them.

    >>> from jaxvae import Normal
    >>> d = Mixture(jnp.zeros(2), Normal(jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1))))
    >>> round(float(d.log_prob(jnp.zeros(1))), 5)  # log N(0; 1, 1)
    -1.41894
    """

    logits: Leaf
    components: D

    @property
    def reparameterized(self) -> bool:
        return hasattr(self.components, "cdf") and hasattr(self.components, "unstack")

    @property
    def filler(self) -> Any:
        return getattr(jax.tree.map(lambda leaf: leaf[0], self.components), "filler", None)

    @checked
    def sample(self, key: Array) -> Any:
        which_key, key = jax.random.split(key)
        k = jax.random.categorical(which_key, self._log_weights)
        z = jax.tree.map(lambda leaf: leaf[k], self.components).sample(key)
        return implicit(z, self._distributional_transform) if self.reparameterized else z

    @checked
    def log_prob(self, z: Tree) -> Array:
        return self._score(log_density, z)

    @checked
    def log_prob_relaxed(self, z: Tree) -> Array:
        return self._score(log_density_relaxed, z)

    def _score(self, log_density: Callable[[Any, Any], Array], z: Tree) -> Array:
        log_weights, components = self._log_weights, arrays(self.components)
        of_each = getattr(components, "log_prob_of_each", None)
        each = of_each(z) if of_each else jax.vmap(lambda d: log_density(d, z))(components)
        log_p = log_weights + each
        possible = jnp.any(log_p > -jnp.inf)  # else logsumexp has no gradient
        return jnp.where(possible, logsumexp(jnp.where(possible, log_p, 0.0)), -jnp.inf)

    @checked
    def mean(self) -> Any:
        weights = jnp.exp(self._log_weights)
        means = jax.vmap(mean_of)(arrays(self.components))
        return jax.tree.map(lambda m: jnp.tensordot(weights, m, 1), means)

    @property
    def _log_weights(self) -> Array:
        shape = logits_shape("Mixture", self.logits, axes=1)
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.components)}
        if sizes != {shape}:
            raise ValueError(
                f"Mixture: logits has shape {shape} and the leaves of components "
                f"the leading axes {sorted(sizes)}, expected (K,) for all"
            )
        return jax.nn.log_softmax(jnp.asarray(value_of(self.logits)))

    def _distributional_transform(self, z: Array) -> Array:
        """P(Z_i <= z_i | z_1, ..., z_{i-1}) for each coordinate: uniform, and independent."""
        each = jax.vmap(factors)(arrays(self.components))

        def of_each(f: Callable[[Any, Array], Array]) -> Array:  # [K, d]
            return jax.vmap(lambda ds: jax.vmap(f)(ds, z.reshape(-1)))(each)

        log_p = of_each(log_density)
        none = jnp.zeros_like(log_p[:, :1])
        before = jnp.cumsum(jnp.hstack([none, log_p[:, :-1]]), axis=1)  # log p_k(z_1 ... z_{i-1})
        weights = jax.nn.softmax(self._log_weights[:, None] + before, axis=0)
        return jnp.sum(weights * of_each(lambda d, z: d.cdf(z)), axis=0).reshape(z.shape)
