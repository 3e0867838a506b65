"""A distance of images in the features of a network that is given and does not train."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Numbers, Tree, check_shape, checked
from jaxvae.pytrees import wide

TINY = 1e-10  # in the length of a pixel's features, which may all be 0


@checked
def perceptual_distance(
    features: Callable[[Any], Any], x: Numbers, y: Numbers, *, weights: Tree | None = None
) -> Array:
    """LPIPS: how far apart two images are in what a network sees in them, each pixel of length 1.

    d(x, y) = sum_l mean_ij sum_c w_lc (a_lijc - b_lijc)^2,   a_lij = f_l(x)_ij / |f_l(x)_ij|

    No network comes with it: bring one, such as a classifier up to each of its pools. It does not
    train unless it is a part of the model, and it sees images as they are here, [h, w, 3] in [0, 1]
    for instance, and has to scale them itself.
    Zhang, Isola, Efros, Shechtman & Wang 2018, equation 1.

    Args:
      features: image -> f, an array [h, w, c] or a tree of them, f_l.
      weights: w_l >= 0, of shapes [c] in the same tree, which multiply squares as those that the
        authors published do; None is 1 for all.

    >>> shades = lambda image: (image, image[::2, ::2])
    >>> x, y = jnp.ones((4, 4, 2)), jnp.ones((4, 4, 2)).at[..., 1].set(0.0)
    >>> round(float(perceptual_distance(shades, x, y)), 4)  # 2 (2 - sqrt(2))
    1.1716
    """

    def apart(a: Array, b: Array, w: Array) -> Array:
        check_shape("perceptual_distance", "weights", w, a.shape[-1:])
        return jnp.mean(jnp.square(_unit(a) - _unit(b)) @ wide(w))

    check_shape("perceptual_distance", "y", y, jnp.shape(x))
    of_x, of_y = features(x), features(y)
    if weights is None:
        weights = jax.tree.map(lambda f: jnp.ones(f.shape[-1:], f.dtype), of_x)
    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(apart, of_x, of_y, weights))))


def _unit(f: Array) -> Array:
    f = wide(f)  # in half precision TINY is 0
    return f * jax.lax.rsqrt(jnp.sum(jnp.square(f), axis=-1, keepdims=True) + TINY)
