"""Warnings, which point at the line of the user's that led to them."""

import inspect
import warnings

BETWEEN = {"jaxvae", "jax", "flax", "contextlib"}  # the user's call and what is warned of


def warn(message: str) -> None:
    """A UserWarning at the nearest line outside of this library, JAX and Flax.

    >>> with warnings.catch_warnings(record=True, action="always") as told:
    ...     warn("the loss is high")
    >>> str(told[0].message)
    'the loss is high'
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=2 if frame is None else level)
