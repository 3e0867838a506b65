"""From stored bytes to model input, one example at a time, inside the compiled step.

Data stay on the device as they are stored (uint8); a transform is a function `(key, x) -> x` of one
example that `preprocessed` puts in front of an objective.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.bounds import Objective
from jaxvae.checks import check_array, check_scalar

Array = jax.Array


def rescale(key: Array, x: Any, *, max_value: float = 255.0) -> Array:
    """x / max_value: stored values to floats in [0, 1]; nothing is drawn.

    Args:
      key: not used; every transform has it.
      x: one example, any shape, values in 0..max_value.
      max_value: the largest value stored, 1 for binary data.

    Returns:
      float array in the shape of x.

    >>> rescale(jax.random.key(0), jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    del key
    check_array("preprocessing", "x", x)
    check_scalar("preprocessing", "max_value", max_value)
    return jnp.asarray(x).astype(float) / max_value


def binarize(key: Array, x: Any, *, max_value: float = 255.0) -> Array:
    """Dynamic binarization: every pixel is 1 with probability x / max_value, afresh at every visit.

    Args:
      key: a PRNG key.
      x: one example, any shape, values in 0..max_value.
      max_value: the largest value stored.

    Returns:
      float array of 0. and 1. in the shape of x.

    >>> binarize(jax.random.key(0), jnp.array([0, 255], jnp.uint8)).tolist()
    [0.0, 1.0]

    Salakhutdinov & Murray 2008; Burda et al. 2016, section 5.1.
    """
    p = rescale(key, x, max_value=max_value)
    return jax.random.bernoulli(key, p).astype(p.dtype)


def threshold(key: Array, x: Any, *, max_value: float = 255.0) -> Array:
    """Fixed binarization: a pixel is 1 where x / max_value > 1/2; nothing is drawn.

    Args:
      key: not used; every transform has it.
      x: one example, any shape, values in 0..max_value.
      max_value: the largest value stored.

    Returns:
      float array of 0. and 1. in the shape of x.

    >>> threshold(jax.random.key(0), jnp.array([100, 200], jnp.uint8)).tolist()
    [0.0, 1.0]
    """
    p = rescale(key, x, max_value=max_value)
    return (p > 0.5).astype(p.dtype)


def preprocessed(objective: Objective, transform: Callable[[Array, Any], Any]) -> Objective:
    """The objective of transform(x): the key is split between the transform and the objective.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`.
      transform: `(key, x) -> x`, such as `binarize`.

    Returns:
      An objective of the untransformed example.

    >>> objective = preprocessed(lambda model, key, x: (jnp.sum(x), None), binarize)
    >>> float(objective(None, jax.random.key(0), jnp.array([255, 255], jnp.uint8))[0])
    2.0
    """

    def transformed_objective(model: Any, key: Array, x: Any, **hyper: Any) -> tuple[Array, Any]:
        transform_key, objective_key = jax.random.split(key)
        return objective(model, objective_key, transform(transform_key, x), **hyper)

    return transformed_objective
