"""One-line errors for the mistakes that broadcasting would otherwise hide.

Only static facts (shapes, types) are checked, so every check runs at trace time and costs nothing.
"""

from typing import Any

import jax.numpy as jnp


def check_shape(owner: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has exactly this shape: no silent broadcast."""
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(value)}, expected {shape}; "
            "functions here take one example: use jax.vmap for a batch"
        )


def check_scale(owner: str, loc: Any, scale: Any) -> None:
    """Raise ValueError unless `scale` is one number or has the shape of `loc`."""
    if jnp.shape(scale) not in ((), jnp.shape(loc)):
        raise ValueError(
            f"{owner}: scale has shape {jnp.shape(scale)} and loc {jnp.shape(loc)}, expected one "
            "shape or a scalar scale"
        )


def check_log_prob(owner: str, value: Any) -> None:
    """Raise ValueError unless `value`, a log-probability, is a scalar."""
    if jnp.shape(value) != ():
        raise ValueError(
            f"{owner}: log_prob has shape {jnp.shape(value)}, expected a scalar (nats of the whole "
            "event); sum over the event, e.g. numpyro's d.to_event() or jaxvae.adapt(d)"
        )


def check_positive(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a Python integer of at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, expected an integer of at least 1")
