"""Other libraries' distributions as ours."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.protocols import mean_of

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Adapted:
    """A foreign distribution over one event; made by `adapt`."""

    distribution: Any

    def sample(self, key: Array) -> Any:
        if "seed" in signature(self.distribution.sample).parameters:
            return self.distribution.sample(seed=key)
        return self.distribution.sample(key)

    def log_prob(self, event: Any) -> Array:
        return jnp.sum(self.distribution.log_prob(event))

    def sample_and_log_prob(self, key: Array) -> tuple[Any, Array]:
        z = self.sample(key)
        return z, self.log_prob(z)

    def mean(self) -> Any:
        return mean_of(self.distribution)


def adapt(distribution: Any) -> Adapted:
    """A distrax, TFP or numpyro distribution as a `Distribution` over one event.

    log_prob sums over the foreign batch shape: here the parameters of one example are one event.
    numpyro's fit bounds as they are, given `.to_event()`; the adapter adds `mean()` as a method.

    Args:
      distribution: an object with `log_prob(event)` and `sample(seed=key)` or `sample(key)`.

    Returns:
      A `Distribution`, a pytree if the foreign object is one.

    Raises:
      TypeError: the object has no `sample` and `log_prob`.

    >>> import distrax
    >>> d = adapt(distrax.Normal(jnp.zeros(3), jnp.ones(3)))
    >>> d.sample(jax.random.key(0)).shape, d.log_prob(jnp.zeros(3)).shape
    ((3,), ())
    """
    if not (hasattr(distribution, "sample") and hasattr(distribution, "log_prob")):
        raise TypeError(
            f"adapt: got {type(distribution).__name__}, expected an object with sample and log_prob"
        )
    return Adapted(distribution)
