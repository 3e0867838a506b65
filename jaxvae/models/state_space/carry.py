"""A state with a part that is certain: the deterministic carry of world models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jax import Array
from jax.tree_util import Partial

from jaxvae.checks import Count, Key, Tree, check_pair, checked
from jaxvae.distributions import Independent
from jaxvae.distributions.kl import closed_form
from jaxvae.models.state_space.markov import Markov
from jaxvae.models.state_space.smoothing import Smoother, emissions
from jaxvae.protocols import (
    Distribution,
    has_path,
    log_density,
    log_density_relaxed,
    mean_of,
    sample_and_log_prob,
)
from jaxvae.pytrees import pytree, value_of


@pytree
@dataclass(frozen=True, eq=False)
class Carried:
    """(h, z), z ~ d and h what the state before has made it: log p(h, z) = log d(z).

    As the next step of a `Markov` chain it gives the chain a memory, which z need not hold. Two
    chains of one density ratio advance h alike, as those of an `RSSM`: their h is then the same at
    the same states, and the rate is that of z.

    Args:
      carry: h, any tree of arrays.
      distribution: d, over z.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import Normal
    >>> counted = Partial(lambda state: Carried(state[0] + 1, Normal(state[1], 1.0)))
    >>> chain = Markov(Carried(jnp.array(1), Normal(0.0, 1.0)), counted, 3)
    >>> chain.sample(jax.random.key(0))[0].tolist()
    [1, 2, 3]
    """

    carry: Any
    distribution: Distribution

    @property
    def reparameterized(self) -> bool:
        return has_path(self.distribution)

    def sample(self, key: Key) -> tuple[Any, Any]:
        return self.sample_and_log_prob(key)[0]

    @checked
    def log_prob(self, event: tuple[Any, Any]) -> Array:
        check_pair("Carried", "event", event, "(h, z)")
        return log_density(self.distribution, event[1])

    @checked
    def log_prob_relaxed(self, event: tuple[Any, Any]) -> Array:
        check_pair("Carried", "event", event, "(h, z)")
        return log_density_relaxed(self.distribution, event[1])

    @checked
    def sample_and_log_prob(self, key: Key) -> tuple[tuple[Any, Any], Array]:
        z, log_p = sample_and_log_prob(self.distribution, key)
        return (self.carry, z), log_p

    def mean(self) -> tuple[Any, Any]:
        return self.carry, mean_of(self.distribution)

    def kl_to(self, p: Distribution) -> Array | None:
        p = value_of(p)
        return closed_form(self.distribution, p.distribution) if isinstance(p, Carried) else None

    def in_parts(self, change: Callable[[Any], Any]) -> "Carried":
        return Carried(self.carry, change(self.distribution))


@pytree
@dataclass(frozen=True, eq=False)
class RSSM:
    """The recurrent state-space model: a state (h_t, z_t) of a certain part and a random one.

    h_t = f(h_{t-1}, z_{t-1}),   p(z_t | h_t),   q(z_t | h_t, e_t),   p(x_t | h_t, z_t)

    The prior is a `Markov` chain and q another, made of the same f, so that `stepwise_kl`,
    `use.forecast` and `after` serve as for a deep Markov model. What DreamerV2 and V3 add are
    arguments: `balanced_kl`, and `StraightThrough` choices of logits `unimix(logits)`.
    Hafner et al. 2019, "Learning latent dynamics for planning from pixels".

    Args:
      advance: f, (h, z) -> h, a recurrent cell.
      transition: h -> p(z_t | h_t).
      inference: (h, e) -> q(z_t | h_t, e_t).
      embed: x -> e, leaves with a leading axis of T; of x_t alone it filters, a recurrent network
        from the last step to the first smooths.
      emission: (h, z) -> p(x_t | h_t, z_t).
      start: (h_0, z_0), arrays that train.
      length: T of the prior, a Python integer.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jaxvae import Normal, elbo
    >>> add, of = Partial(lambda pair: pair[0] + pair[1]), Partial(lambda h: Normal(h, 1.0))
    >>> of_sum = Partial(lambda pair: Normal(pair[0] + pair[1], 1.0))
    >>> start = jnp.array(0.0), jnp.array(1.0)
    >>> model = RSSM(add, of, of_sum, Partial(lambda x: x), of_sum, start, 3)
    >>> h, z = model.encode(jnp.ones(3)).sample(jax.random.key(0))
    >>> bool(jnp.allclose(h, 1.0 + jnp.cumsum(z) - z))
    True
    """

    advance: Callable[[Any], Any]
    transition: Callable[[Any], Distribution]
    inference: Callable[[Any], Distribution]
    embed: Callable[[Any], Any]
    emission: Callable[[Any], Any]
    start: Tree
    length: Count = field(metadata={"static": True})

    @property
    @checked
    def prior(self) -> Markov[Carried]:
        step = Partial(_foreseen, self.advance, self.transition)
        return Markov(step(self.start), step, self.length)

    @checked
    def encode(self, x: Tree) -> Markov[Carried]:
        step = Partial(_seen, self.advance, self.inference)
        return Smoother(self.embed, step, self.start)(x)

    @checked
    def decode(self, z: Tree) -> Independent:
        return emissions(self.emission, z)


def _foreseen(advance: Callable[[Any], Any], p: Callable[[Any], Any], state: Any) -> Carried:
    h = advance(state)
    return Carried(h, p(h))


def _seen(advance: Callable[[Any], Any], q: Callable[[Any], Any], pair: Any) -> Carried:
    state, e = pair
    h = advance(state)
    return Carried(h, q((h, e)))
