"""Sequences of unequal length, padded to one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxvae.batching import check_rows
from jaxvae.checks import Tree, a_class_of, check_pair, checked
from jaxvae.distributions import Masked
from jaxvae.model import Model, likelihood, posterior, prior
from jaxvae.models.multimodal import whole
from jaxvae.models.state_space.markov import Markov
from jaxvae.protocols import Distribution
from jaxvae.pytrees import shown, swappable, value_of


@shown
@swappable
class Padded(NamedTuple):
    """A model of sequences of unequal length, padded to one: behind what is seen q is the prior.

    q(z_t | z_{t-1}, x) = p(z_t | z_{t-1}) for every t after the last step seen

    Events are pairs (x, mask), the mask False where nothing was seen; anything may stand there, NaN
    included. The steps behind the last one seen have no rate and no distortion: every bound and
    log-weight is that of the sequence without them, and so is its gradient (but for noise of mean 0
    in the prior's where an estimator holds q, as `sticking_the_landing`). To hide the end of a
    sequence is to forecast it: `multiple_imputations` draws p(x_{t+1:T} | x_{1:t}). Gaps before the
    last step seen are missing entries, in which q stays the encoder's.

    Args:
      model: of sequences of T steps. `prior` is a `Markov` chain and `encode` returns one, of the
        pair (x, mask), whose steps are of the prior's class; `decode` returns a distribution with
        `unstack()`, as `emissions`, which is `Masked` here.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal, elbo
    >>> from jaxvae.models import emissions, stepwise_kl
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 4)
    >>> encode = lambda event: Markov(Normal(2.0, 0.5), Partial(lambda z: Normal(z + 1.0, 0.5)), 4)
    >>> model = Padded(VAE(encode, Partial(emissions, lambda z: Normal(z, 1.0)), walk))
    >>> event = jnp.array([2.0, 3.0, jnp.nan, jnp.nan]), jnp.array([True, True, False, False])
    >>> bound, terms = elbo(model, jax.random.key(0), event, kl=stepwise_kl)
    >>> round(float(terms.rate), 4)  # KL(N(2, .25) || N(0, 1)) + KL(N(1, .25) || N(0, 1))
    3.1363
    """

    model: Model

    @property
    def prior(self) -> Any:
        return prior(self.model)

    @checked
    def encode(self, event: tuple[Any, Any]) -> Markov:
        check_pair("Padded", "event", event, "(x, mask)")
        p = _chain("prior is", self.prior)
        seen = _seen_from(event[1], p.length)
        q = _chain("encode returned", posterior(self.model, event))
        first, step = _either(seen[0], q.first, p.first), Partial(_step_of_either, q, p)
        return Markov(first, step, q.length, (q.context, p.context, seen[1:]))

    def decode(self, z: Tree) -> Masked:
        return Masked(likelihood(self.model, z))


def _chain(what: str, d: Distribution) -> Markov:
    d = value_of(d)
    if not isinstance(d, Markov):
        raise TypeError(f"Padded: model.{what} {a_class_of(d)}, expected a Markov chain")
    return d


def _seen_from(mask: Tree, length: int) -> Array:
    """Whether anything is seen at step t or after it, [T]."""
    check_rows("Padded", "mask", mask, length)
    flat = [jnp.reshape(leaf, (length, -1)).astype(bool) for leaf in jax.tree.leaves(mask)]
    return jnp.cumsum(jnp.any(jnp.concatenate(flat, axis=1), axis=1)[::-1])[::-1] > 0


def _step_of_either(q: Markov, p: Markov, at: tuple[Any, Any]) -> Any:
    z, (c_q, c_p, seen) = at
    return _either(seen, q.step(z, c_q), p.step(z, c_p))


def _either(seen: Array, q: Distribution, p: Distribution) -> Any:
    """q where it is seen, else p, of one class."""
    q, p = whole(q), whole(p)
    if jax.tree.structure(q) != jax.tree.structure(p):
        raise TypeError(
            f"Padded: a step of the posterior is {a_class_of(q)} and one of the prior "
            f"{a_class_of(p)}, expected two of one class"
        )
    return jax.tree.map(lambda a, b: jnp.where(seen, a, b), q, p)
