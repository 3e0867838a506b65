"""Six objectives on one model: what is gained by a tighter bound, and by a less noisy gradient.

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.importance_bounds

Model of Burda et al. 2016 with one stochastic layer: 784-200-200-z50 tanh and its mirror, output
bias at the logit of the training mean. Dynamically binarized MNIST, 50,000 training images. A short
run: Adam 1e-3, batch 100, 10 epochs, where the papers take 3,280. So do not compare the level with
theirs (one layer: VAE 86.76, IWAE-5 85.54; Rainforth et al. 2018 at 64 samples: IWAE 84.52,
PIWAE(8, 8) 84.46, MIWAE(8, 8) 84.97, CIWAE(.5) 85.24, VAE 86.21), only the order.

Negative log-likelihood of the 10,000 test images, binarized once, the same for all models, from
500 importance samples; mean and standard error over seeds 0, 1, 2:

    VAE   99.42 +- 0.06      IWAE-5, DReG   97.47 +- 0.11      MIWAE(2, 5)   97.00 +- 0.04
    IWAE-5   98.07 +- 0.12   CIWAE(.5), 5   97.44 +- 0.05      PIWAE(2, 5)   97.24 +- 0.02

MIWAE and PIWAE draw 10 samples a step, the VAE 1, the others 5. k-hat trusts 1 % of the estimates,
so each NLL is an upper bound. 63 minutes of processor time on two x86-64 cores, 17 of them for the
evaluation.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments.common.command import command
from experiments.common.data import load
from experiments.common.evaluate import inputs, log_marginals
from jaxvae import nn

SHAPE = (28, 28, 1)  # of an image
HIDDEN = (200, 200)  # units of encoder and decoder, as published
LATENT = 50  # coordinates of z, as published
LEARNING_RATE = 1e-3  # of Adam
BATCH = 100  # images a step
EPOCHS = 10  # published: 3,280
SAMPLES = 500  # importance samples of the NLL
SEEDS = 3  # runs of each objective, from keys 0, 1, 2
FOLDER = Path("runs/importance_bounds")
OPTIMIZER = optax.adam(LEARNING_RATE)
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "VAE": jaxvae.elbo,
    "IWAE-5": partial(jaxvae.iwae, num_samples=5),
    "IWAE-5, DReG": partial(jaxvae.iwae, num_samples=5, gradient=jaxvae.doubly_reparameterized),
    "CIWAE(.5), 5": partial(jaxvae.ciwae, num_samples=5, beta=0.5),
    "MIWAE(2, 5)": partial(jaxvae.miwae, num_outer=2, num_samples=5),
    "PIWAE(2, 5)": partial(jaxvae.piwae, num_outer=2, num_samples=5),
}


def make_vae(key: jax.Array, mean_image: jax.Array) -> jaxvae.VAE:
    rngs, mlp = nnx.Rngs(key), partial(nn.MLP, hidden=HIDDEN, activation=jnp.tanh)
    decode = nn.Conditional(mlp, nn.BernoulliHead(), (LATENT,), SHAPE, rngs=rngs)
    p = jnp.clip(mean_image.ravel(), 0.001, 0.999)
    decode.network.layers[-1].bias[...] = jnp.log(p) - jnp.log1p(-p)
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=decode,
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def run(
    objective: Callable[..., Any], key: jax.Array, images: jax.Array, epochs: int = EPOCHS
) -> jaxvae.VAE:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    step = jaxvae.train_step(jaxvae.preprocessed(objective, jaxvae.binarize), OPTIMIZER)
    epoch = jaxvae.train_epoch(step, batch_size=BATCH)
    model = make_vae(init_key, jnp.mean(images, axis=0, dtype=float) / 255.0)
    state = jaxvae.init_state(model, OPTIMIZER)
    state, _ = jax.lax.scan(lambda state, _: epoch(state, run_key, images), state, length=epochs)
    return state.model


def measure(model: jaxvae.VAE, test: jax.Array, num_samples: int = SAMPLES) -> dict[str, float]:
    """NLL, share of images whose estimate can be trusted, and active units, on binary images."""
    as_stored = partial(jaxvae.rescale, max_value=1.0)
    estimate = log_marginals(model, jax.random.key(99), test, as_stored, num_samples)
    return {
        "nll": -float(jnp.mean(estimate.value)),
        "reliable": float(jnp.mean(estimate.reliable)),
        "active_units": int(jnp.sum(jaxvae.evaluation.active_units(model, test))),
    }


def main() -> None:
    data = load("mnist", validation=10_000)
    train = jnp.asarray(data.train.images)
    test = inputs(jax.random.key(98), jnp.asarray(data.test.images), jaxvae.binarize)
    table = Table("objective", "test NLL, nats", "estimates trusted", f"active units of {LATENT}")
    results = {}
    for name, objective in OBJECTIVES.items():
        compiled = jax.jit(partial(run, objective))
        results[name] = [measure(compiled(jax.random.key(s), train), test) for s in range(SEEDS)]
        row = name, *summary(results[name])
        print(*row, sep="   ", flush=True)
        table.add_row(*row)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "result.json").write_text(json.dumps(results, indent=2) + "\n")
    Console().print(table)
    print(f"every seed: {FOLDER}/result.json")


def summary(of_seeds: list[dict[str, float]]) -> tuple[str, str, str]:
    """NLL with its standard error, and the means of the others."""
    nll, reliable, active = (
        np.array([numbers[name] for numbers in of_seeds])
        for name in ("nll", "reliable", "active_units")
    )
    error = np.std(nll, ddof=1) / np.sqrt(len(nll))
    return f"{nll.mean():.2f} ± {error:.2f}", f"{reliable.mean():.0%}", f"{active.mean():.1f}"


if __name__ == "__main__":
    command(main, __doc__)
