"""Heads with parameters of their own, which all examples share."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import Numbers
from jaxvae.distributions import NegativeBinomial, Normal
from jaxvae.nn.heads import Shape, check_sigmas
from jaxvae.nn.modules import Module


class SharedScaleHead(Module):
    """Raw parameters -> `Normal` with one learned sigma, at first `scale`, for all that is seen.

    Or with a sigma for each coordinate or channel, where `scale` is an array of these. Start near
    where it will end, 1 of standardised numbers, 0.1 of pixels in [0, 1]: Adam moves log sigma by
    its learning rate a step at most, so that from 1 to 0.1 it takes 2,300 steps at 1e-3.
    Rybkin, Daniilidis & Levine 2021.

    Raises:
      ValueError: `scale` is not above 0.

    >>> float(SharedScaleHead(0.5)(jnp.zeros((8, 8, 1))).scale)
    0.5
    >>> SharedScaleHead(jnp.full(3, 0.5))(jnp.zeros(3)).scale.shape
    (3,)
    """

    def __init__(self, scale: Numbers = 1.0):
        check_sigmas("SharedScaleHead", "scale", scale)
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(scale)))

    def raw_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, raw: Array) -> Normal:
        scale = jnp.exp(self.log_scale[...])
        return Normal(raw, jnp.broadcast_to(scale, jnp.shape(raw)) if scale.ndim else scale)


class SharedDispersionHead(Module):
    """Log means -> `NegativeBinomial` with one learned dispersion a coordinate, for all examples.

    p(x_i) has the mean m_i = exp(raw_i) and the variance m_i + m_i^2 / theta_i; theta, at first 1,
    is a property of the coordinate (of a gene, in Lopez et al. 2018), and not of the example.

    Args:
      shape: of an event.

    >>> float(SharedDispersionHead((3,))(jnp.log(jnp.full(3, 5.0))).mean()[0])
    5.0
    """

    def __init__(self, shape: Shape):
        self.log_dispersion = nnx.Param(jnp.zeros(shape))

    def raw_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, raw: Array) -> NegativeBinomial:
        log_theta = self.log_dispersion[...]
        return NegativeBinomial(jnp.exp(log_theta), raw - log_theta)
