"""What a deep Markov model adds to its chain: a posterior that looks ahead, and what is emitted."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from jaxvae.checks import Tree, checked
from jaxvae.distributions import Independent
from jaxvae.models.state_space.markov import Markov, first_and_rest, length_of
from jaxvae.protocols import Distribution
from jaxvae.pytrees import shown

D = TypeVar("D", bound=Distribution)


@shown
class Smoother(NamedTuple, Generic[D]):
    """A deep Markov model's inference network (DMM, DKF): q(z|x) = prod_t q(z_t | z_{t-1}, h_t).

    h_t tells of x_t, ..., x_T: the exact posterior of a state-space model has this form. Sequences
    of another length make chains of that length: what encodes one encodes its beginning, too.
    Krishnan, Shalit & Sontag 2017.

    Args:
      summary: x -> h, leaves with a leading axis of T; a recurrent network from the last to the
        first, `jax.lax.scan(cell, h, x, reverse=True)`.
      step: (z_{t-1}, h_t) -> q(z_t | z_{t-1}, h_t), a callable pytree.
      start: z_0, an array that trains.

    >>> import jax.numpy as jnp
    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> to_come = Partial(lambda x: jnp.cumsum(x[::-1])[::-1])
    >>> step = Partial(lambda pair: Normal(pair[0] + pair[1], 1.0))
    >>> Smoother(to_come, step, jnp.array(0.0))(jnp.ones(3)).first.loc.tolist()
    3.0
    """

    summary: Callable[[Any], Any]
    step: Callable[[Any], D]
    start: Tree

    @checked
    def __call__(self, x: Tree) -> Markov[D]:
        h = self.summary(x)
        length = length_of("Smoother", "summary(x)", h)
        first, rest = first_and_rest(h)
        return Markov(self.step((self.start, first)), self.step, length, rest)


@checked
def emissions(conditional: Callable[[Any], Any], z: Tree) -> Independent:
    """p(x|z) = prod_t p(x_t|z_t); `jax.tree_util.Partial(emissions, conditional)` is a decoder.

    >>> import jax.numpy as jnp
    >>> from jaxvae import Normal
    >>> emissions(lambda z: Normal(2.0 * z, 1.0), jnp.arange(3.0)).mean().tolist()
    [0.0, 2.0, 4.0]
    """
    length_of("emissions", "z", z)
    return Independent(jax.vmap(conditional)(z))
