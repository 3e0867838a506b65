"""Residual networks of images, and the level of a deep hierarchy that is made of them.

Cells and blocks map one example [height, width, channels] to another of the same height and width;
`Down` and `Up` change those. There is no batch norm: it would let the examples of a batch see each
other, and a level runs in a loop.
"""

from math import expm1, log

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxvae.checks import check_array, check_shape
from jaxvae.distributions import Normal
from jaxvae.nn import onednn
from jaxvae.nn.convolutions import promoted
from jaxvae.nn.heads import positive
from jaxvae.nn.initializers import fan_in_normal
from jaxvae.nn.mixed_precision import Rounding, biased
from jaxvae.nn.modules import Module


class Convolution(Rounding):
    """Convolution, padded "SAME": [h, w, n] -> [ceil(h/stride), ceil(w/stride), m].

    Of stride 2 and size 3 it pads an image of even size below and to the right alone.

    Args:
      size: of the kernel, 1 or any odd number.
      stride: how many pixels apart the outputs are.
      scale: of the initial kernel, beside one that keeps the variance; 0 starts at the map to 0.

    >>> Convolution(3, 5, size=3, rngs=nnx.Rngs(0))(jnp.ones((7, 4, 3))).shape
    (7, 4, 5)
    """

    def __init__(
        self,
        n: int,
        m: int,
        *,
        size: int = 1,
        stride: int = 1,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        kernel = fan_in_normal(rngs.params(), (size, size, n, m))
        # a product outside of a program is one more to compile for every shape
        self.kernel = nnx.Param(kernel if scale == 1.0 else scale * kernel)
        self.bias = nnx.Param(jnp.zeros(m))
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        check_array("Convolution", "input", x)
        check_shape("Convolution", "input", x, (*jnp.shape(x)[:2], kernel.shape[2]))
        return biased(fastest(x, kernel, self.stride, rounded=self.rounded), self.bias[...])


def fastest(x: Array, kernel: Array, stride: int = 1, *, rounded: bool = False) -> Array:
    """`convolution` in the form that is fastest on this machine."""
    if rounded or (len(kernel) > 1 and onednn.serves(x, kernel)):
        return onednn.convolve(x, kernel, stride=stride, rounded=rounded)
    if len(kernel) == 1 or jax.default_backend() == "cpu":
        return convolution_products(x, kernel, stride)
    return convolution(x, kernel, stride)


def convolution(x: Array, kernel: Array, stride: int = 1) -> Array:
    """What `Convolution` computes: x [h, w, n], kernel [k, k, n, m] -> [h/stride, w/stride, m]."""
    layout = ("NHWC", "HWIO", "NHWC")
    x, kernel = promoted(x, kernel)
    return jax.lax.conv_general_dilated(
        x[None], kernel, (stride, stride), "SAME", dimension_numbers=layout
    ).squeeze(0)


def convolution_products(x: Array, kernel: Array, stride: int = 1) -> Array:
    """`convolution` as one matrix product of the k x k neighbourhoods of its pixels."""
    k, _, n, m = kernel.shape
    lengths = [(-(-size // stride) - 1) * stride + 1 for size in x.shape[:2]]  # first to last
    padding = [max(h + k - 1 - size, 0) for h, size in zip(lengths, x.shape[:2], strict=True)]
    around = jnp.pad(x, (*((p // 2, p - p // 2) for p in padding), (0, 0)))
    h, w = lengths
    shifted = [around[i : i + h : stride, j : j + w : stride] for i in range(k) for j in range(k)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(k * k * n, m)


class Bottleneck(Module):
    """1x1, 3x3, 3x3 and 1x1 convolutions, narrow in the middle, GELU before each: n channels to m.

    Child 2021, figure 3 and section 3.

    Args:
      middle: channels in between.
      scale: of the last kernel at the start: 0 for a map to 0, 1 / sqrt(depth) in a deep sum.

    >>> Bottleneck(8, 4, middle=2, rngs=nnx.Rngs(0))(jnp.ones((7, 7, 8))).shape
    (7, 7, 4)
    """

    def __init__(self, n: int, m: int, *, middle: int, scale: float = 1.0, rngs: nnx.Rngs):
        self.convolutions = nnx.List(
            [
                Convolution(n, middle, rngs=rngs),
                Convolution(middle, middle, size=3, rngs=rngs),
                Convolution(middle, middle, size=3, rngs=rngs),
                Convolution(middle, m, scale=scale, rngs=rngs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        check_array("Bottleneck", "input", x)
        for convolution in self.convolutions:
            x = convolution(jax.nn.gelu(x))
        return x


class ResidualCell(Module):
    """x + f(x), f a `Bottleneck`: [h, w, n] -> [h, w, n].

    He et al. 2016, "Identity mappings in deep residual networks", equation 3.

    Args:
      middle: channels inside f.
      scale: of the last kernel of f at the start; at 0 the cell is the identity.

    >>> x = jnp.ones((7, 7, 8))
    >>> bool(jnp.all(ResidualCell(8, middle=2, scale=0.0, rngs=nnx.Rngs(0))(x) == x))
    True
    """

    def __init__(self, n: int, *, middle: int, scale: float = 1.0, rngs: nnx.Rngs):
        self.f = Bottleneck(n, n, middle=middle, scale=scale, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.f(x)


class ResidualBlock(Module):
    """A level of a deep hierarchy, whose posterior is its prior moved: a `Block` of `TopDown`.

    p(z|h) = N(mu, sigma^2),   q(z|h, x) = N(mu + sigma d, (sigma s)^2)

    mu and sigma come from h, the features of all levels above; d and s from h and the features of
    x. At the start q is p, so that nothing is paid for. Then h + W z goes through a cell.
    The block: Child 2021, figure 3; the posterior: Vahdat & Kautz 2020, section 3.2.

    Args:
      n: channels of h and of the features of x.
      latents: channels of z.
      middle: channels inside the networks.
      scale: of what is added to h, at the start: 1 / sqrt(depth).

    >>> block = ResidualBlock(8, 3, middle=4, rngs=nnx.Rngs(0))
    >>> h = jnp.ones((7, 7, 8))
    >>> z = block.posterior((h, h)).mean()
    >>> z.shape, block.merge((h, z)).shape
    ((7, 7, 3), (7, 7, 8))
    """

    def __init__(self, n: int, latents: int, *, middle: int, scale: float = 1.0, rngs: nnx.Rngs):
        self.above = Bottleneck(n, 2 * latents, middle=middle, scale=0.0, rngs=rngs)
        self.evidence = Bottleneck(2 * n, 2 * latents, middle=middle, scale=0.0, rngs=rngs)
        self.write = Convolution(latents, n, scale=scale, rngs=rngs)
        self.cell = ResidualCell(n, middle=middle, scale=scale, rngs=rngs)

    def prior(self, h: Array) -> Normal:
        """p(z|h)."""
        return Normal(*loc_and_scale(self.above(h)))

    def moved(self, p: Normal, h: Array, features: Array) -> Normal:
        """q(z|h, x), from p(z|h) and the features of x."""
        d, s = loc_and_scale(self.evidence(jnp.concatenate([h, features], axis=-1)))
        return Normal(p.loc + p.scale * d, p.scale * s)

    def posterior(self, pair: tuple[Array, Array]) -> Normal:
        """q(z|h, x) of (h, features of x)."""
        h, features = pair
        return self.moved(self.prior(h), h, features)

    def merge(self, pair: tuple[Array, Array]) -> Array:
        """The features for the level below, of (h, z)."""
        h, z = pair
        return self.cell(h + self.write(z))


def loc_and_scale(raw: Array) -> tuple[Array, Array]:
    """The halves of the last axis: any number, and a positive one that is 1 at raw 0."""
    loc, raw_scale = jnp.split(raw, 2, axis=-1)
    return loc, positive(raw_scale + log(expm1(1.0 - 1e-6)))
