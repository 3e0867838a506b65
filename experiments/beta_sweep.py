"""The rate-distortion curve of the digits: eight betas from eight seeds, as one program.

    python -m experiments.beta_sweep

64-256-z8-256-64, ReLU, on the embedded digits: 100 epochs, Adam 1e-3, batch 64, Gaussian of sigma
0.2. Prints rate and distortion of the test set for each beta, mean and standard deviation over
seeds, and the seconds that the 64 runs take as one compiled program, one after another and vmapped,
and as 64 calls of a compiled run. Writes runs/beta_sweep/: result.json and rate_distortion.png.

Ours is in docs/performance.md; four minutes on two x86-64 cores. A point of the curve is a model,
so its spread says how well the curve is known. Alemi et al. 2018, "Fixing a broken ELBO".
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae
from experiments.common import plotting
from experiments.common.command import command
from experiments.common.data import load
from jaxvae import nn

SHAPE = (8, 8, 1)  # of an image
HIDDEN = (256,)  # units of encoder and decoder
LATENT = 8  # coordinates of z
SIGMA = 0.2  # of a pixel in [0, 1]
LEARNING_RATE = 1e-3  # of Adam
BATCH = 64  # images a step
EPOCHS = 100
SEEDS = 8  # runs at each beta
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FOLDER = Path("runs/beta_sweep")
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, partial(jaxvae.rescale, max_value=16.0))


def make_vae(key: jax.Array) -> jaxvae.VAE:
    rngs, mlp = nnx.Rngs(key), partial(nn.MLP, hidden=HIDDEN)
    return jaxvae.VAE(
        encode=nn.Conditional(mlp, nn.NormalHead(), SHAPE, (LATENT,), rngs=rngs),
        decode=nn.Conditional(mlp, nn.NormalHead(SIGMA), (LATENT,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def run(key: jax.Array, beta: Any, images: jax.Array, test: jax.Array) -> jaxvae.Terms:
    """Train from one seed at one beta; rate and distortion of the test set."""
    train_key, test_key = jax.random.split(key)
    init_key, run_key = jax.random.split(train_key)
    optimizer = optax.adam(LEARNING_RATE)
    epoch = jaxvae.train_epoch(jaxvae.train_step(OBJECTIVE, optimizer), batch_size=BATCH)
    state = jaxvae.init_state(make_vae(init_key), optimizer)
    state, _ = jax.lax.scan(
        lambda state, _: epoch(state, run_key, images, beta=beta), state, length=EPOCHS
    )
    _, terms = jaxvae.batched(OBJECTIVE)(state.model, test_key, test)
    return jax.tree.map(jnp.mean, terms)


def main() -> None:
    data = load("digits", validation=0)
    fixed: Any = {"images": jnp.asarray(data.train.images), "test": jnp.asarray(data.test.images)}
    seconds = time_each_way(fixed)

    found = jaxvae.sweep(run, {"key": keys(), "beta": jnp.asarray(BETAS)}, **fixed)
    print(f"sweep of its own accord vmaps {found.at_once} at once")
    terms: Any = found.results
    rate, distortion = np.asarray(terms.rate), np.asarray(terms.distortion)
    for i, beta in enumerate(BETAS):
        r, d = rate[:, i], distortion[:, i]
        print(
            f"beta {beta:5.2f}: rate {r.mean():6.2f} +- {r.std(ddof=1):.2f}, "
            f"distortion {d.mean():7.2f} +- {d.std(ddof=1):.2f} nats"
        )

    FOLDER.mkdir(parents=True, exist_ok=True)
    result = {"betas": BETAS, "rate": rate.tolist(), "distortion": distortion.tolist()}
    (FOLDER / "result.json").write_text(json.dumps(result | {"seconds": seconds}, indent=2) + "\n")
    draw(FOLDER / "rate_distortion.png", rate, distortion)


def keys() -> jax.Array:
    """One a seed, made anew each time, as a key is used once."""
    return jax.random.split(jax.random.key(0), SEEDS)


def time_each_way(fixed: Any) -> dict[str, float]:
    """Seconds for all runs as one compiled program, and as calls of a compiled run."""
    betas = jnp.asarray(BETAS)

    def sweep(at_once: int) -> Any:
        return jaxvae.sweep(run, {"key": keys(), "beta": betas}, at_once=at_once, **fixed).results

    def call_by_call() -> Any:
        one, points = jax.jit(run), [(key, beta) for key in keys() for beta in betas]
        return [jax.block_until_ready(one(jax.random.clone(k), b, **fixed)) for k, b in points]

    seconds, num_runs = {}, SEEDS * len(BETAS)
    for label, job in {
        "one program, one after another": partial(sweep, 1),
        f"one program, {num_runs} vmapped": partial(sweep, num_runs),
        f"{num_runs} calls of a compiled run": call_by_call,
    }.items():
        start = time.perf_counter()
        jax.block_until_ready(job())
        seconds[label] = time.perf_counter() - start
        print(f"{label}: {seconds[label]:.1f} s, compilation included", flush=True)
    return seconds


@plotting.styled
def draw(path: Path, rate: np.ndarray, distortion: np.ndarray) -> None:
    picture = plotting.figure(4.6, 3.2)
    ax = picture.subplots()
    ax.plot(rate.T, distortion.T, ".", color=plotting.GREY, markersize=3)
    ax.plot(rate.mean(0), distortion.mean(0), "o-", color=plotting.BLUE)
    for beta, r, d in zip(BETAS, rate.mean(0), distortion.mean(0), strict=True):
        ax.annotate(f"{beta:g}", (r, d), textcoords="offset points", xytext=(5, 5))
    ax.set(xlabel="rate, nats", ylabel="distortion, nats", title="digits: a point is a beta")
    plotting.save(picture, path)


if __name__ == "__main__":
    command(main, __doc__)
