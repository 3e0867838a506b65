"""One-line errors for the mistakes that broadcasting would otherwise hide.

Only static facts (shapes, types) are checked, so every check runs at trace time and costs nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_shape(owner: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has exactly this shape: no silent broadcast."""
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(value)}, expected {shape}; "
            "functions here take one example: use jax.vmap for a batch"
        )


def check_scale(owner: str, loc: Any, scale: Any, name: str = "scale") -> None:
    """Raise ValueError unless `scale` is one number or has the shape of `loc`."""
    if jnp.shape(scale) not in ((), jnp.shape(loc)):
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(scale)} and loc {jnp.shape(loc)}, expected one "
            f"shape or a scalar {name}"
        )


def as_integers(owner: str, event: Any, expected: str) -> jax.Array:
    """The event as int32, in which 256 does not overflow; TypeError unless it holds integers."""
    if not jnp.issubdtype(jnp.result_type(event), jnp.integer):
        raise TypeError(f"{owner}: event has dtype {jnp.result_type(event)}, expected {expected}")
    return jnp.asarray(event).astype(jnp.int32)


def check_floats(owner: str, event: Any, expected: str) -> None:
    """Raise TypeError unless `event` holds floats."""
    if not jnp.issubdtype(jnp.result_type(event), jnp.floating):
        raise TypeError(f"{owner}: event has dtype {jnp.result_type(event)}, expected {expected}")


def within(owner: str, event: Any, inside: Any, expected: str) -> jax.Array:
    """Whether the whole event is in the support; ValueError naming the first number that is not.

    Values are looked at where they are concrete. Under `jit` or `vmap` they are not, and a
    log_prob puts -inf where this is False, as the density is 0 there: no loss stays finite.
    """
    if not isinstance(inside, Tracer) and not np.all(inside):
        index = tuple(map(int, np.argwhere(~np.asarray(inside))[0]))
        value = np.asarray(event)[index]
        raise ValueError(f"{owner}: event holds {value} at {index}, expected {expected}")
    return jnp.all(inside)


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


def check_partition(owner: str, betas: Any) -> jax.Array:
    """The array `betas`; ValueError unless it is 0 = beta_0 < ... < beta_J = 1.

    The values are looked at where they are concrete; of traced ones only the shape is known.
    """
    expected = "expected a partition 0 = beta_0 < ... < beta_J = 1, e.g. jnp.linspace(0.0, 1.0, 11)"
    if jnp.ndim(betas) != 1 or len(betas) < 2:
        raise ValueError(f"{owner}: betas has shape {jnp.shape(betas)}, {expected}")
    if not isinstance(betas, Tracer):
        values = np.asarray(betas)
        if values[0] != 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
            raise ValueError(
                f"{owner}: betas goes from {values[0]:g} to {values[-1]:g}, {expected}"
            )
    return jnp.asarray(betas)
