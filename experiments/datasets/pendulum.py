"""Films of a pendulum, drawn: binary frames of 16 x 16 pixels, in which it swings or turns over.

No file is read. It starts from any angle at any speed and is moved by gravity and a little noise.
"""

from typing import Any

import jax
import jax.numpy as jnp

SIDE = 16


def pendulums(key: jax.Array, n: int, length: int) -> jax.Array:
    """So many sequences, float [n, length, 16, 16, 1], each pixel 0 or 1."""
    return jax.vmap(lambda key: _sequence(key, length))(jax.random.split(key, n))


def _sequence(key: jax.Array, length: int) -> jax.Array:
    angle_key, speed_key, push_key, pixel_key = jax.random.split(key, 4)
    angle = jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi)
    speed = jax.random.uniform(speed_key, minval=-2.0, maxval=2.0)

    def move(state: tuple[jax.Array, jax.Array], push: jax.Array) -> Any:
        angle, speed = state
        for _ in range(4):  # a fine step of symplectic Euler
            speed = speed - 0.1 * jnp.sin(angle)
            angle = angle + 0.1 * speed
        return (angle, speed + 0.05 * push), angle

    _, angles = jax.lax.scan(move, (angle, speed), jax.random.normal(push_key, (length,)))
    at = jnp.linspace(-1.0, 1.0, SIDE)
    across = jnp.square(at[None, None] - 0.7 * jnp.sin(angles)[:, None, None])
    down = jnp.square(at[None, :, None] - 0.7 * jnp.cos(angles)[:, None, None])
    p = 0.01 + 0.97 * jnp.exp(-0.5 * (across + down) / 0.2**2)
    return jax.random.bernoulli(pixel_key, p).astype(float)[..., None]


def across(frames: jax.Array) -> jax.Array:
    """Where the ink of frames [..., 16, 16, 1] is, from -1 at the left to 1 at the right."""
    ink = jnp.sum(frames, axis=(-3, -1))  # by column
    return ink @ jnp.linspace(-1.0, 1.0, SIDE) / jnp.maximum(jnp.sum(ink, axis=-1), 1.0)
