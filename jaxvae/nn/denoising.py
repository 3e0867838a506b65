"""The network of a diffusion prior."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import checked
from jaxvae.nn.heads import Shape
from jaxvae.nn.modules import Module


class Denoiser(Module):
    """r(z_s, s) = gain * network(z_s, s, log(s^2 + w^2)) / sqrt(s^2 + w^2), for `models.Diffusion`.

    The gain, one for each latent, starts at 0, so that the prior starts as N(0, I) (the mixed score
    of Vahdat, Kreis & Kautz 2021, section 3.2); w is learned, the noise below which nothing is new.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`.
      shape: of z.

    >>> from jaxvae.nn import MLP
    >>> residual = Denoiser(MLP, (4,), rngs=nnx.Rngs(0))
    >>> bool(jnp.all(residual(jnp.ones(4), jnp.array(0.5)) == 0))
    True
    """

    @checked
    def __init__(self, network: Callable[..., nnx.Module], shape: Shape, *, rngs: nnx.Rngs):
        self.network: Any = network((prod(shape) + 2,), shape, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(shape))
        self.log_width = nnx.Param(jnp.log(jnp.full((), 0.3)))

    def __call__(self, z: Array, s: Array) -> Array:
        variance = s**2 + jnp.exp(2.0 * self.log_width[...])
        levels = jnp.stack([s, jnp.log(variance)])
        raw = self.network(jnp.concatenate([z.reshape(-1), levels]))
        return self.gain[...] * raw / jnp.sqrt(variance)
