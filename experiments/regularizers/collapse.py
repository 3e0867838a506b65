"""Posterior collapse and what cures it: a decoder so strong that it can do without a code.

    python -m experiments.prepare binarized_mnist --from DIR      # once
    python -m experiments.regularizers.collapse

p(x|z) draws one pixel after the other, each from z and the pixels near it that came before, so
that the ELBO is nearly as good with no code at all and the posterior falls back to the prior. The
cures, each the same model and the same number of steps:

    free bits (Kingma et al. 2016); linear, sigmoid (Bowman et al. 2016) and cyclical annealing of
    beta (Fu et al. 2019); GECO (Rezende & Viola 2018); a target rate; a prior that no posterior
    comes near (Razavi et al. 2019a); a decoder that waits for the encoder (He et al. 2019)

Static binarized MNIST, 784-300-z32, a window of 4 rows with 64 hidden units, Adam 1e-3, batch 100,
15 epochs; the ELBO of the 10,000 test images, its rate, and the latents whose posterior mean varies
(of 32); mean and standard deviation over seeds 0, 1, 2, on two x86-64 cores, in 4.2 hours of
processor time (commit 43e5ec7):

                                                  active           rate             ELBO
    plain                                         2.0 +- 0.0       1.09 +- 0.08      -97.24 +- 0.05
    free bits, 0.2 nats a latent                  32.0 +- 0.0      5.94 +- 0.13     -100.54 +- 0.15
    linear annealing, half of the run             3.7 +- 1.2       1.22 +- 0.08      -97.13 +- 0.11
    sigmoid annealing, the same half              3.0 +- 1.0       1.14 +- 0.05      -97.11 +- 0.07
    cyclical annealing, 4 cycles                  3.0 +- 0.0       1.42 +- 0.03      -97.16 +- 0.05
    GECO, distortion held at 92 nats              31.3 +- 1.2      16.40 +- 0.88    -107.54 +- 0.84
    target rate, 8 nats                           28.7 +- 2.1      8.09 +- 0.13     -101.09 +- 0.27
    delta-VAE, alpha 0.6: at least 4.84 nats      32.0 +- 0.0      5.85 +- 0.03     -100.44 +- 0.05
    the decoder waits, 4 of 5 steps of a third    2.7 +- 1.2       1.05 +- 0.07      -97.61 +- 0.06

What forbids a cheap code cures the collapse, for 3 to 10 nats of the ELBO; annealing and a decoder
that waits do not cure it here: 2 to 5 latents stay active, and the rate stays below 1.5 nats.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae
from experiments.common import plotting
from experiments.common.command import command
from experiments.common.comparison import compare
from experiments.common.data import load
from experiments.common.evaluate import evaluate
from jaxvae import nn

SIDE = 28  # of an image
PIXELS = SIDE * SIDE
HIDDEN = 300  # units of the encoder
LATENT = 32  # coordinates of z
WINDOW = 4  # rows above a pixel that its decoder sees, and columns to either side
WIDTH = 64  # units of the decoder
FREE = 0.2  # nats a latent that free bits leave uncharged
CYCLES = 4  # of cyclical annealing
TOLERANCE = 92.0  # nats of distortion that GECO allows
TARGET = 8.0  # nats of rate that the target rate asks for
ALPHA = 0.6  # correlation of the delta-VAE's prior from one latent to the next
PATIENCE = 5  # steps of the encoder to one of the decoder that waits
LEARNING_RATE = 1e-3  # of Adam
BATCH = 100  # images a step
EPOCHS = 15
SEEDS = 3  # runs of each cure, from keys 0, 1, 2
FOLDER = Path("runs/regularizers/collapse")
ADAM = optax.adam(LEARNING_RATE)


def make_model(key: jax.Array, prior: Any = None) -> jaxvae.VAE:
    rngs = nnx.Rngs(key)
    mlp = partial(nn.MLP, hidden=(HIDDEN,))
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, nn.NormalHead(), (PIXELS,), (LATENT,), rngs=rngs),
        decode=PixelByPixel(Neighbours(rngs=rngs)),
        prior=jaxvae.StandardNormal((LATENT,)) if prior is None else prior,
    )


class PixelByPixel(NamedTuple):
    """z -> p(x|z) = prod_i p(x_i | x_<i, z)."""

    conditioner: Any

    def __call__(self, z: jax.Array) -> jaxvae.Autoregressive:
        return jaxvae.Autoregressive(self.conditioner, pixels, PIXELS, context=z)


class Neighbours(nnx.Module):
    """(x [784], z) -> logits [784, 1]: each pixel from the ones near it that came before, and z."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.near = nnx.Linear(WINDOW * (2 * WINDOW + 1) + WINDOW, WIDTH, rngs=rngs)
        self.code = nnx.Linear(LATENT, WIDTH, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        padded = jnp.pad(x.reshape(SIDE, SIDE), WINDOW)
        before = [(i, j) for i in range(WINDOW) for j in range(2 * WINDOW + 1)]
        before += [(WINDOW, j) for j in range(WINDOW)]
        near = jnp.stack([padded[i : i + SIDE, j : j + SIDE].reshape(-1) for i, j in before], 1)
        return self.last(jax.nn.relu(self.near(near) + self.code(z)[None]))


def pixels(raw: jax.Array) -> jaxvae.Bernoulli:
    return jaxvae.Bernoulli(raw[:, 0])


def constrained(key: jax.Array) -> jaxvae.regularizers.Constrained:
    return jaxvae.regularizers.Constrained(make_model(key), jnp.zeros(()))


def waiting(optimizer: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """For so many steps the decoder moves at the last of PATIENCE only, and the encoder at each."""

    def turn(step: Any, **_: Any) -> Any:
        return (step >= steps) | (step % PATIENCE == PATIENCE - 1)

    return optax.partition(
        {"encoder": optimizer, "decoder": optax.conditionally_mask(optimizer, turn)},
        jaxvae.VAE(encode="encoder", decode="decoder", prior="decoder"),  # pyright: ignore
    )


def run(
    images: jax.Array,
    objective: Callable[..., Any],
    key: jax.Array,
    *,
    make: Callable[[jax.Array], Any] = make_model,
    optimizer: optax.GradientTransformation = ADAM,
    **hyper: Any,
) -> Any:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    step = jaxvae.train_step(jaxvae.preprocessed(objective, as_stored), optimizer)
    epoch = jaxvae.train_epoch(step, batch_size=BATCH)
    state = jaxvae.init_state(make(init_key), optimizer)
    state, _ = jax.lax.scan(
        lambda state, _: epoch(state, run_key, images, **hyper), state, length=EPOCHS
    )
    return state.model


def main() -> None:
    data = load("binarized_mnist")
    images, test_images = jnp.asarray(data.train.images), jnp.asarray(data.test.images)
    test = jax.vmap(lambda image: as_stored(jax.random.key(0), image))(test_images)
    steps = EPOCHS * (len(images) // BATCH)
    linear = optax.linear_schedule(0.0, 1.0, steps // 2)
    sigmoid = jaxvae.training.sigmoid_annealing(0.0, 1.0, steps // 2)
    cycle = optax.linear_schedule(0.0, 1.0, steps // (2 * CYCLES))
    cyclical = jaxvae.training.cyclical(cycle, max(steps // CYCLES, 1))
    prior = jaxvae.Constant(jaxvae.regularizers.ar1(LATENT, ALPHA))

    elbo, geco, target = jaxvae.elbo, jaxvae.regularizers.geco, jaxvae.regularizers.target_rate
    free = partial(jaxvae.regularizers.regularized, penalty=jaxvae.regularizers.free_bits)
    waits = waiting(ADAM, steps // 3)
    runs: dict[str, Callable[[jax.Array], Any]] = {
        "plain": partial(run, images, elbo),
        "free bits": partial(run, images, free, free_nats=FREE),
        "linear annealing": partial(run, images, elbo, beta=linear),
        "sigmoid annealing": partial(run, images, elbo, beta=sigmoid),
        "cyclical annealing": partial(run, images, elbo, beta=cyclical),
        "GECO": partial(run, images, geco, make=constrained, tolerance=TOLERANCE),
        "target rate": partial(run, images, target, make=constrained, target=TARGET),
        "delta-VAE": partial(run, images, elbo, make=partial(make_model, prior=prior)),
        "the decoder waits": partial(run, images, elbo, optimizer=waits),
    }

    def measure(key: jax.Array, model: Any) -> dict[str, Any]:
        found = evaluate(model, key, test_images, as_stored)
        active = jnp.sum(jaxvae.evaluation.active_units(model, test))
        return {"nats of ELBO": found.elbo, "nats of rate": found.rate, "active units": active}

    results, _ = compare("regularizers/collapse", runs, measure, seeds=SEEDS)
    delta = jaxvae.regularizers.delta_vae_rate(LATENT, ALPHA)
    print(f"delta-VAE: no diagonal posterior has a rate below {delta:.2f} nats")
    draw(results, FOLDER / "collapse.png")


def as_stored(key: jax.Array, image: jax.Array) -> jax.Array:
    return jaxvae.rescale(key, image, max_value=1.0).reshape(-1)


@plotting.styled
def draw(results: dict[str, list[Any]], path: Path) -> None:
    """Active units against rate, a method a colour, a seed a dot."""
    picture = plotting.figure(7.0, 3.4)
    left, right = picture.subplots(1, 2, sharey=True)
    place = np.arange(len(results))[::-1]
    for ax, what, label in (
        (left, "active units", f"active units of {LATENT}"),
        (right, "nats of rate", "rate, nats"),
    ):
        values = np.array([[row[what] for row in rows] for rows in results.values()])
        ax.barh(place, values.mean(axis=1), color=plotting.BLUE, height=0.6, alpha=0.35)
        for seed in values.T:
            ax.plot(seed, place, "o", color=plotting.BLUE)
        ax.set_xlabel(label)
    left.set_yticks(place, list(results))
    left.set_title("A strong decoder drops its code")
    right.set_title("What the code carries")
    plotting.save(picture, path)


if __name__ == "__main__":
    command(main, __doc__)
