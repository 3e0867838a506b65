"""A code that can't copy: the encoder sees some entries of x, and the others are scored."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxvae.batching import lifts
from jaxvae.checks import Key, Numbers, Scalar, Tree, checked
from jaxvae.distributions import Masked
from jaxvae.model import VAE, Model, likelihood, posterior, prior

P = ParamSpec("P")
R = TypeVar("R")


@checked
def coordinated_dropout(
    objective: Callable[Concatenate[Any, Array, Any, P], R],
) -> Callable[..., R]:
    """Coordinated dropout, of any objective: what the encoder is shown of x does not count.

    Each entry is dropped with probability `rate`, anew at every visit. The encoder is shown the
    others over 1 - rate, and 0 in the gaps; the likelihood is that of the dropped ones alone. A
    network that copies its input, noise and all, gains nothing by it, so that a posterior as large
    as the data can be trained on single trials; a bound is one of log p(x_dropped).
    Keshtkaran & Pandarinath 2019.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`, with a likelihood that has `unstack()`.
        The one returned takes the hyper-parameter `rate` as well, in (0, 1), traced.

    >>> from jaxvae import Normal, StandardNormal, elbo
    >>> model = VAE(lambda x: Normal(x, 1.0), lambda z: Normal(z, 1.0), StandardNormal((4,)))
    >>> objective = coordinated_dropout(elbo)
    >>> _, terms = objective(model, jax.random.key(1), 3.0 * jnp.ones(4), rate=0.5)
    >>> float(terms.rate)  # 1/2 (3 / (1 - rate))^2 for each of the entries shown
    36.0
    """

    @lifts(objective)
    @checked
    def coordinated(
        model: Model, key: Key, x: Numbers, *args: Any, rate: Scalar, **hyper: Any
    ) -> R:
        drop_key, key = jax.random.split(key)
        rate = 1.0 * rate
        dropped = jax.random.bernoulli(drop_key, rate, jnp.shape(x))
        shown = jnp.where(dropped, 0.0, x / (1.0 - rate))
        hidden = VAE(
            encode=Partial(_of_shown, model, shown),
            decode=Partial(_of_dropped, model),
            prior=prior(model),
        )
        return objective(hidden, key, (x, dropped), *args, **hyper)

    return coordinated


def _of_shown(model: Model, shown: Array, event: Tree) -> Any:
    del event
    return posterior(model, shown)


def _of_dropped(model: Model, z: Tree) -> Masked:
    return Masked(likelihood(model, z))
