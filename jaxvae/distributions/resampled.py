"""A distribution that looks at its proposal's draws, and draws again: learned rejection."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxvae.checks import Count, Key, Tree, checked
from jaxvae.protocols import Distribution, log_density, log_density_relaxed
from jaxvae.pytrees import pytree, value_of


@pytree
@dataclass(frozen=True, eq=False)
class Resampled:
    """p(z) of draws of pi, each accepted with a(z), the last of T in any case: LARS priors.

    log p(z) = log pi(z) + log [ a(z) (1 - R) / Z + R ],  Z = E_pi[a(z)],  R = (1 - Z)^(T - 1)

    Z is the mean over `nodes`, and exact where these are all of pi's events. It is then a function
    of the network alone, computed once for a batch, and every bound takes p as it is. A network
    of as many parameters as nodes learns to refuse just them, and p looks better than it is: take
    many more nodes, and measure with others, `dataclasses.replace(p, nodes=...)`.
    Bauer & Mnih 2019, "Resampled priors for variational autoencoders".

    Args:
      proposal: pi, which does not train, as the nodes are of it.
      logits: z -> the logit of a(z), a callable pytree.
      nodes: draws of pi, leading axis S, in a `Constant`.
      tries: T.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Bernoulli, Constant
    >>> odd = Partial(lambda z: 2.0 * jnp.sum(z))
    >>> p = Resampled(Constant(Bernoulli(jnp.zeros(1))), odd, Constant(jnp.array([[0.0], [1.0]])))
    >>> round(sum(float(jnp.exp(p.log_prob(jnp.array([z])))) for z in (0.0, 1.0)), 4)
    1.0
    """

    proposal: Distribution
    logits: Callable[[Any], Array]
    nodes: Any
    tries: Count = field(default=100, metadata={"static": True})
    reparameterized: ClassVar[bool] = False

    @checked
    def sample(self, key: Key) -> Any:
        key, accept_key = jax.random.split(key)
        zs = jax.vmap(self.proposal.sample)(jax.random.split(key, self.tries))
        accepted = jax.random.bernoulli(accept_key, jax.nn.sigmoid(jax.vmap(self.logits)(zs)))
        chosen = jnp.argmax(accepted)  # the first; all refused, number 1 is drawn as number T is
        return jax.tree.map(lambda leaf: leaf[chosen], zs)

    @checked
    def log_prob(self, z: Tree) -> Array:
        return self._accepted(log_density(self.proposal, z), z)

    @checked
    def log_prob_relaxed(self, z: Tree) -> Array:
        return self._accepted(log_density_relaxed(self.proposal, z), z)

    def _accepted(self, log_pi: Array, z: Tree) -> Array:
        logit = self._logit()
        log_rest = (self.tries - 1) * jax.nn.log_sigmoid(-logit)  # log R
        log_a = jax.nn.log_sigmoid(self.logits(z)) - jax.nn.log_sigmoid(logit)
        if self.tries == 1:
            return log_pi
        # log(1 - R), which is log (T - 1) Z where Z is below what 1 - R can tell from 0
        rare = logit < -40.0
        limit = jnp.log(self.tries - 1.0) + jax.nn.log_sigmoid(logit)
        some = log_a + jnp.where(rare, limit, jnp.log(-jnp.expm1(jnp.where(rare, -1.0, log_rest))))
        return log_pi + jnp.logaddexp(some, log_rest)

    def log_normalizer(self) -> Array:
        """log Z, Z the share of draws that are accepted."""
        return jax.nn.log_sigmoid(self._logit())

    def _logit(self) -> Array:
        """log Z / (1 - Z), to the last digit where all is accepted or nothing is."""
        logits = jax.vmap(self.logits)(value_of(self.nodes))
        return logsumexp(jax.nn.log_sigmoid(logits)) - logsumexp(jax.nn.log_sigmoid(-logits))
