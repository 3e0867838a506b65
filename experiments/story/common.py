"""What the steps share: the digits, one small VAE, and what a step returns."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax import Array
from matplotlib.figure import Figure

from experiments.common.data import load
from jaxvae import VAE, StandardNormal
from jaxvae.nn import MLP, Conditional, NormalHead

SIGMA = 0.2  # standard deviation of a pixel given z, in all the networks here; full ink is 1


class Digits(NamedTuple):
    """Rows of 64 pixels in [0, 1], 1 is ink: 1297 to train on, 300 to test on, all 1797."""

    train: np.ndarray
    test: np.ndarray
    all: np.ndarray


class Step(NamedTuple):
    """What a step hands back: its numbers, for the page, and its picture."""

    numbers: dict[str, Any]
    picture: Figure


def load_digits() -> Digits:
    digits = load("digits")
    splits = (digits.train, digits.validation, digits.test)
    train, validation, test = (split.images.reshape(-1, 64) / digits.max_value for split in splits)
    return Digits(train, test, np.concatenate([train, validation, test]))


def make_vae(key: Array, num_latents: int) -> Any:
    """p(z) = N(0, I), p(x|z) = N(f(z), SIGMA^2 I), q(z|x) = N(mu(x), diag sigma(x)^2)."""
    rngs = nnx.Rngs(key)
    network = partial(MLP, hidden=(128,))
    return VAE(
        encode=Conditional(network, NormalHead(), (64,), (num_latents,), rngs=rngs),
        decode=Conditional(network, NormalHead(SIGMA), (num_latents,), (64,), rngs=rngs),
        prior=StandardNormal((num_latents,)),
    )


def with_posterior(model: Any, q: Any) -> Any:
    """The model with q(z|x) = q, whatever x: enough to study one x, and differentiable in q."""
    return model._replace(encode=lambda x: q)
