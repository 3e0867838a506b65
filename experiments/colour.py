"""Bits of three likelihoods of colour, whole photographs held out.

    uv run --with pillow python -m experiments.colour PHOTOGRAPHS

PHOTOGRAPHS is usr/share/backgrounds/mate/nature of Debian's package mate-backgrounds 1.26.0-1
(`apt-get download mate-backgrounds`, then `dpkg -x`): twelve, a quarter in size, cut into 7,110
patches of 16x16 pixels to train on and 1,956 of three photographs that are held out whole.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import jaxvae
from experiments.common.comparison import compare
from experiments.common.plotting import colour_rows
from experiments.datasets.photographs import SIDE, patches, read
from jaxvae import distributions, nn, use

SHAPE = (SIDE, SIDE, 3)  # of an image
CODE = (SIDE // 4, SIDE // 4, 8)  # of z: a vector of 8 for every 4x4 pixels
WIDTHS = (64, 128)  # channels at half and at a quarter of the image's side
LEARNING_RATE = 1e-3  # of Adam; it falls to 0 along a cosine
BATCH = 64  # images a step
EPOCHS = 15
SAMPLES = 10  # importance samples of log p(x)
SEEDS = 3  # runs of each model, from keys 0, 1, 2
FOLDER = Path("runs/colour")

real, positive = nn.Real("n"), nn.Positive("n")
mixture = nn.Real(5), nn.Real(5, "n"), nn.Positive(5, "n"), nn.Real(5, 3)
LIKELIHOODS = {  # of integers 0..255
    "256 values": nn.HeadOf(jaxvae.Categorical, (nn.Real("n", 256),)),
    "one logistic": nn.HeadOf(jaxvae.DiscretizedLogistic, (real, positive)),
    "five logistics, coupled": nn.HeadOf(distributions.logistic_mixture, mixture),
}


class Downwards(nnx.Module):
    """An image to what is said of every 4x4 pixels: no layer sees where in the image it is."""

    def __init__(self, in_shape: Any, out_shape: Any, *, rngs: nnx.Rngs):
        half, quarter = WIDTHS
        self.first, self.second = nn.Down(in_shape[-1], half, rngs=rngs), nn.Down(half, quarter, rngs=rngs)
        self.last = nn.Convolution(quarter, out_shape[-1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))


class Upwards(nnx.Module):
    """Its mirror, a 3x3 convolution first, so that neighbours are told of each other."""

    def __init__(self, in_shape: Any, out_shape: Any, *, rngs: nnx.Rngs):
        half, quarter = WIDTHS
        size = out_shape[:2]
        self.first = nn.Convolution(in_shape[-1], quarter, size=3, rngs=rngs)
        self.second = nn.Up(quarter, half, nn.halvings(size, 1)[-1], rngs=rngs)
        self.third = nn.Up(half, half, size, rngs=rngs)
        self.last = nn.Convolution(half, int(np.prod(out_shape[2:])), rngs=rngs)
        self.out_shape = out_shape

    def __call__(self, z: jax.Array) -> jax.Array:
        for layer in (self.first, self.second, self.third):
            z = jax.nn.relu(layer(z))
        return self.last(z).reshape(self.out_shape)


def make_vae(head: Any, key: jax.Array) -> jaxvae.VAE:
    rngs = nnx.Rngs(key)
    network = partial(nn.Rescaled, Downwards)  # which sees pixels in [-1, 1]
    return jaxvae.VAE(
        encode=nn.Conditional(network, nn.NormalHead(), SHAPE, CODE, rngs=rngs),
        decode=nn.Conditional(Upwards, head, CODE, SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal(CODE),
    )
