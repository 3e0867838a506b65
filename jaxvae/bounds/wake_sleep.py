"""Wake-sleep: a posterior that learns from weighted samples, or from what the model dreams."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weighted import Bound, iwae
from jaxvae.checks import Count, Key, Scalar, Tree, checked
from jaxvae.gradients.score import wake
from jaxvae.model import Model, likelihood, posterior, prior
from jaxvae.protocols import log_prob_of, method_of


@checked
def reweighted_wake_sleep(
    model: Model, key: Key, x: Tree, *, num_samples: Count, sleep: Scalar = 0.0
) -> Bound:
    """Reweighted wake-sleep (RWS): decoder and prior ascend `iwae`, the posterior nears p(z|x).

    wake, theta:   grad log 1/K sum_k w_k = sum_k w_k grad log p(x, z_k) / sum_k w_k
    wake, phi:     sum_k w_k grad log q(z_k|x) / sum_k w_k,   z_k and w_k held still
    sleep, phi:    grad log q(z'|x'),   (x', z') ~ p(x, z) held still

    The posterior's gradient is (1 - sleep) wake + sleep * sleep. It needs no path through a sample,
    and unlike that of `iwae` improves with K. The value is that of `iwae`. With num_samples=1 and
    sleep=1 this is wake-sleep (Hinton, Dayan, Frey & Neal 1995).
    Bornschein & Bengio 2015; Le, Kosiorek, Siddharth, Teh & Wood 2019.

    Args:
      num_samples: K, of the wake phases.
      sleep: weight of the sleep phase in [0, 1], traced; 1/2 in Bornschein & Bengio.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, log_w = reweighted_wake_sleep(model, jax.random.key(0), jnp.ones(3), num_samples=5)
    >>> bound.shape, log_w.shape
    ((), (5,))
    """
    awake, asleep = jax.random.split(key)
    gradient = partial(wake, weight=1.0 - sleep)
    bound, log_w = iwae(model, awake, x, num_samples=num_samples, gradient=gradient)
    if not isinstance(sleep, jax.Array) and sleep == 0.0:
        return bound, log_w  # with no dream in the statistics of a network
    dream = sleep * sleep_phase(model, asleep, x)[0]
    learned = dream - jax.lax.stop_gradient(dream)
    # of a dream that the posterior rules out there is nothing to follow
    return bound + jnp.where(jnp.isfinite(dream), learned, 0.0), log_w


@checked
def sleep_phase(model: Model, key: Key, x: Tree) -> tuple[Array, tuple[Any, Any]]:
    """The sleep phase: log q(z'|x') of what the model itself draws, z' ~ p(z), x' ~ p(x|z').

    An objective of the posterior alone: its mean is -KL(p(z|x) || q(z|x)) over the model's own x,
    but for a constant. The datum is not looked at. aux is the dream, (x', z').
    Hinton, Dayan, Frey & Neal 1995; Le, Kosiorek, Siddharth, Teh & Wood 2019.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> log_q, (x, z) = sleep_phase(model, jax.random.key(0), jnp.ones(3))
    >>> x.shape, z.shape
    ((3,), (1,))
    """
    del x
    z_key, x_key = jax.random.split(key)
    z = jax.lax.stop_gradient(prior(model).sample(z_key))
    p = likelihood(model, z)
    dream = jax.lax.stop_gradient(method_of(p, "sample", "sleep_phase")(x_key))
    return log_prob_of("encode(x)", posterior(model, dream), "z", z), (dream, z)
