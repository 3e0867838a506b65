"""The Gaussian likelihood at its best sigma."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Leaf, Tree, refuse_bytes
from jaxvae.distributions.normal import LOG_2PI
from jaxvae.distributions.special import real
from jaxvae.protocols import distribution


@distribution
@dataclass(frozen=True, eq=False)
class OptimalNormal:
    """max_sigma log N(x; mu, sigma^2 I), sigma^2 the mean squared error: that of the sigma-VAE.

    log p(x) = -1/2 sum_i [ (x_i - mu_i)^2 / sigma^2 + log sigma^2 + log 2 pi ]

    sigma is shared by the batch, as `batched` maps it, and gradients pass through it; by the
    envelope theorem that changes nothing in mean. A likelihood that looks at x is no density: there
    is nothing to sample, and one example alone has no sigma. To evaluate or sample, fix it:
    `NormalHead(float(optimal_scale(model, key, xs)))`.
    Rybkin, Daniilidis & Levine 2021.

    Args:
      loc: mu, any shape; that is the event's shape.
      axis: the mapped axis that shares sigma; None for one of each example, and no bound.

    Raises:
      ValueError: when scored where no such axis is mapped.

    >>> one = OptimalNormal(jnp.zeros(2), axis=None)
    >>> round(float(one.log_prob(jnp.array([1.0, -1.0]))), 5)  # sigma = 1: -1 - log 2 pi
    -2.83788
    """

    loc: Leaf
    axis: str | None = field(default="batch", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    def log_prob(self, x: Tree) -> Array:
        refuse_bytes("OptimalNormal.log_prob", x)
        square = jnp.mean(jnp.square(real(x) - self.loc))
        variance = square if self.axis is None else self._shared(square)
        # a perfect reconstruction has no best sigma: below this one the density stops growing
        variance = jnp.maximum(variance, 1e-12)
        return -0.5 * x.size * (square / variance + jnp.log(variance) + LOG_2PI)

    def mean(self) -> Array:
        return jnp.asarray(self.loc)

    def _shared(self, square: Array) -> Array:
        try:
            return jax.lax.pmean(square, self.axis)
        except NameError:
            raise ValueError(
                f"OptimalNormal: no mapped axis {self.axis!r} shares a sigma here, expected to be "
                "inside batched(objective); elsewhere fix it: NormalHead(scale), scale from "
                "optimal_scale(model, key, xs)"
            ) from None
