"""Other libraries' distributions as ours."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, a_class_of
from jaxvae.protocols import default_promotion, distribution, mean_of

CHOICES = ("Bernoulli", "Categorical", "Greedy", "Mixture", "Multinomial", "Quantized", "Softmax")


@distribution
@dataclass(frozen=True, eq=False)
class Adapted:
    """A foreign distribution over one event; made by `adapt`."""

    distribution: Any

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of a draw; None where that is no one array or is not said."""
        d = self.distribution
        try:
            return tuple(int(n) for n in (*d.batch_shape, *d.event_shape))
        except (AttributeError, TypeError, ValueError):
            return None

    @property
    def reparameterized(self) -> bool:
        """As numpyro and TFP say; of distrax, which doesn't, if it draws floats by no choice."""
        d = self.distribution
        if hasattr(d, "reparameterization_type"):  # one, or of a joint distribution several
            return "NOT" not in str(d.reparameterization_type)
        if hasattr(d, "has_rsample"):
            return d.has_rsample
        if _chooses(d):
            return False
        draw = jax.eval_shape(self.sample, jax.random.key(0))
        return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(draw))

    def sample(self, key: Array) -> Any:
        with default_promotion():
            if "seed" in signature(self.distribution.sample).parameters:
                return self.distribution.sample(seed=key)
            return self.distribution.sample(key)

    def log_prob(self, event: Tree) -> Array:
        with default_promotion():
            return jnp.sum(self.distribution.log_prob(event))

    @property
    def support(self) -> Any:
        """numpyro's; the others don't say."""
        return getattr(self.distribution, "support", None)

    def mean(self) -> Any:
        with default_promotion():
            return mean_of(self.distribution)


def _chooses(d: Any) -> bool:
    """Whether a distribution of distrax, or one within it, draws by a choice, which has no path."""
    parts = [*getattr(d, "__dict__", {}).values()]
    within = jax.tree.leaves(parts, is_leaf=lambda part: hasattr(part, "sample"))
    return any(word in type(d).__name__ for word in CHOICES) or any(
        _chooses(part) for part in within if hasattr(part, "sample")
    )


def adapt(distribution: Any) -> Adapted:
    """A distrax, TFP or numpyro distribution as a `Distribution` over one event.

    log_prob sums over the foreign batch shape: here the parameters of one example are one event.
    `sample` is with `seed=key` or `key`. numpyro's fit bounds as they are, given `.to_event()`; the
    adapter adds `mean()` as a method.

    Raises:
      TypeError: the object has no `sample` and `log_prob`.

    >>> import distrax
    >>> d = adapt(distrax.Normal(jnp.zeros(3), jnp.ones(3)))
    >>> d.sample(jax.random.key(0)).shape, d.log_prob(jnp.zeros(3)).shape
    ((3,), ())
    """
    if not (hasattr(distribution, "sample") and hasattr(distribution, "log_prob")):
        raise TypeError(
            f"adapt: distribution is {a_class_of(distribution)}, expected an object with sample "
            "and log_prob"
        )
    return Adapted(distribution)
