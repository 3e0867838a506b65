"""Gradient estimators: how a bound on log-weights gets its gradient.

An estimator is a function `(reduction, model, key, x, *, num_samples) -> (bound, log_weights)`. Its
value is the reduction of the log-weights; what sets it apart is the gradient that value carries.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxvae.protocols import Model
from jaxvae.weights import log_weights

Array = jax.Array


def pathwise(
    reduction: Callable[[Array], Array], model: Model, key: Array, x: Any, *, num_samples: int
) -> tuple[Array, Array]:
    """The reparameterization gradient: differentiate the weights through z = mu + sigma eps.

    Needs posteriors whose samples are differentiable in their parameters.

    Args:
      reduction: log-weights [K] -> scalar, `log_mean_exp` say.
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      num_samples: K, a Python integer.

    Returns:
      The bound in nats, and the log-weights [K].

    Kingma & Welling 2014, section 2.3; Burda et al. 2016, equation 13.
    """
    log_w = log_weights(model, key, x, num_samples=num_samples)
    return reduction(log_w), log_w
