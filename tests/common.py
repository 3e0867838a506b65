"""What the tests share: one table of tolerances, and the one way a random estimate is judged."""

import jax.numpy as jnp
import numpy as np

# relative and absolute tolerance of a value that is exact but for rounding
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def close(actual, expected, *, dtype=None) -> bool:
    """Equal but for the rounding of `actual`'s dtype."""
    actual = np.asarray(actual)
    tolerance = TOLERANCE[str(dtype or actual.dtype)]
    return bool(np.allclose(actual, np.asarray(expected), rtol=tolerance, atol=tolerance))


def standard_errors_off(draws, exact):
    """How many of the estimator's own standard errors its mean (over axis 0) is off `exact`.

    With a fixed seed this is a number, not a chance; 4 is reached by luck once in 16,000.
    """
    draws = jnp.asarray(draws)
    spread = jnp.std(draws, axis=0, ddof=1) / np.sqrt(draws.shape[0])
    return jnp.max(jnp.abs(jnp.mean(draws, axis=0) - jnp.asarray(exact)) / spread)
