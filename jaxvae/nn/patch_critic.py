"""A critic of the patches of an image: one logit for each of a grid of overlapping squares."""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx
from jax import Array

from jaxvae.checks import Count, check_shape, checked
from jaxvae.nn.convolutions import Down, check_image
from jaxvae.nn.heads import Shape
from jaxvae.nn.modules import Module
from jaxvae.nn.networks import GroupNorm
from jaxvae.nn.residual import Convolution


class PatchCritic(Module):
    """Strided 4x4 convolutions, norms and leaky ReLUs, then a logit a patch: image -> [h, w].

    After three convolutions a logit sees 38x38 pixels, and h is a bit above an eighth of the
    height. Isola, Zhu, Zhou & Efros 2017, appendix 6.1.2; with group norms for batch norms, so that
    no image of a batch sees another.

    Args:
      in_shape: (height, width, channels) of an image.
      channels: of each convolution; each halves the image.
      groups: of the norms, which stand before every activation but the first.

    >>> critic = PatchCritic((16, 16, 3), channels=(4, 8), groups=2, rngs=nnx.Rngs(0))
    >>> critic(jax.numpy.ones((16, 16, 3))).shape
    (4, 4)
    """

    @checked
    def __init__(
        self,
        in_shape: Shape,
        *,
        channels: Sequence[int] = (64, 128, 256),
        groups: Count = 32,
        rngs: nnx.Rngs,
    ):
        check_image("PatchCritic", "in_shape", in_shape)
        sizes = [in_shape[-1], *channels]
        self.convolutions = nnx.List([Down(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        self.norms = nnx.List([GroupNorm(m, num_groups=groups, rngs=rngs) for m in channels[1:]])
        self.last = Convolution(channels[-1], 1, size=3, rngs=rngs)
        self.in_shape = in_shape

    def __call__(self, x: Array) -> Array:
        check_shape("PatchCritic", "input", x, self.in_shape)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = jax.nn.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
        return self.last(x)[..., 0]
