"""Drawn shapes whose factors are known: every combination of shape, scale, rotation and position.

    python -m experiments.datasets.shapes      # a sheet of them: runs/shapes/shapes.png

No file is read. Rotation stays below a quarter turn, so that no two images are alike, a square's
included. After dSprites (Matthey et al. 2017).
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import plotting
from experiments.common.command import command
from jaxvae import plots

FACTORS = ("shape", "scale", "rotation", "x", "y")
SIZES = (3, 4, 8, 8, 8)


class Shapes(NamedTuple):
    """images: uint8 [n, side, side, 1], 0 or 255; factors: int32 [n, 5], named by `FACTORS`."""

    images: np.ndarray
    factors: np.ndarray


def shapes(sizes: tuple[int, ...] = SIZES, *, side: int = 64) -> Shapes:
    """The whole grid, the last factor fastest: 6,144 images by default.

    Args:
        sizes: how many values each factor has; at most 3 shapes.
        side: pixels a side.
    """
    factors = np.indices(sizes, np.int32).reshape(len(sizes), -1).T
    return Shapes(render(factors, sizes, side=side), factors)


def render(factors: np.ndarray, sizes: tuple[int, ...] = SIZES, *, side: int = 64) -> np.ndarray:
    """Images uint8 [n, side, side, 1] of factors [n, 5], integers below `sizes`."""
    t = (factors + np.float32(0.5)) / np.array(sizes, np.float32)  # in (0, 1)
    draw = jax.jit(jax.vmap(lambda shape, t: _image(shape, t, side)))
    return np.asarray(draw(factors[:, 0], t[:, 1:]))


def _image(shape: jax.Array, t: jax.Array, side: int) -> jax.Array:
    scale, rotation, x, y = t
    radius, angle = 0.25 * (1.0 + scale), rotation * jnp.pi / 2.0
    pixels = jnp.linspace(-1.0 + 1.0 / side, 1.0 - 1.0 / side, side)
    right, up = jnp.meshgrid(pixels - (x - 0.5), -pixels - (y - 0.5))
    u = (jnp.cos(angle) * right + jnp.sin(angle) * up) / radius
    v = (jnp.cos(angle) * up - jnp.sin(angle) * right) / radius
    inside = jnp.stack([_square(u, v), _ellipse(u, v), _heart(u, v)])[shape]
    return jnp.where(inside, 255, 0).astype(jnp.uint8)[..., None]


def _square(u: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.abs(u), jnp.abs(v)) < jnp.sqrt(0.5)


def _ellipse(u: jax.Array, v: jax.Array) -> jax.Array:
    return u**2 + (v / 0.6) ** 2 < 1.0


def _heart(u: jax.Array, v: jax.Array) -> jax.Array:
    u, v = 1.4 * u, 1.4 * v
    return (u**2 + v**2 - 1.0) ** 3 < u**2 * v**3


@plotting.styled
def main() -> None:
    """One factor moved at a time, a row each, and a row of random ones."""
    sizes = np.array(SIZES)
    rows = np.array([[2, 3, 3, 4, 4]]).repeat(len(sizes) * 12, axis=0).reshape(len(sizes), 12, -1)
    for j, size in enumerate(SIZES):
        rows[j, :, j] = np.arange(12) % size
    random = np.random.default_rng(0).integers(sizes, size=(3, 12, len(sizes)))
    factors = np.concatenate([rows, random]).reshape(-1, len(sizes))
    picture = plotting.figure(8.4, 5.6)
    axis = picture.subplots()
    axis.imshow(plots.mosaic(render(factors) / 255.0, 12), interpolation="nearest")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks([])
    axis.set_yticks(32 + 65 * np.arange(len(factors) // 12), [*FACTORS, *["random"] * 3])
    axis.set_title("one factor moved at a time, over and over")
    folder = Path("runs") / "shapes"
    folder.mkdir(parents=True, exist_ok=True)
    plotting.save(picture, folder / "shapes.png")


if __name__ == "__main__":
    command(main, __doc__)
