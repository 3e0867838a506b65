"""Does beta disentangle? Five betas from three seeds on drawn shapes, judged by every score.

    python -m experiments.disentanglement.sweep

3,072 binary images of 32 x 32 pixels, all combinations of 3 shapes, 4 scales, 4 rotations and 8 x 8
positions; 1024-256-128-z10 and its mirror, ReLU, Bernoulli pixels, Adam 1e-3, batch 64, 150 epochs.
Trained and scored on all of them, as studies of disentanglement do (Locatello et al. 2019). MIG and
modularity are of a draw of q(z|x) for each image, as MIG was defined (Chen et al. 2018): the mean
of a latent that the prior has all but swallowed still moves with x, and bins of equal width do not
see how little. The other scores are of posterior means. Published numbers are of dSprites, 240
times as many images: not comparable. Writes runs/disentanglement/: result.json, scores.png and
traversals.png.

Ours, mean and standard deviation over seeds 0, 1, 2 (in brackets MIG of each), rate in nats:

    beta     rate             MIG                                  SAP             FactorVAE score
      1   15.39 +- 0.23   0.04 +- 0.02  (.041, .055, .020)    0.11 +- 0.05    0.51 +- 0.09
      2   10.88 +- 0.42   0.05 +- 0.04  (.015, .095, .047)    0.15 +- 0.13    0.60 +- 0.11
      4    7.29 +- 0.11   0.07 +- 0.05  (.027, .123, .046)    0.19 +- 0.14    0.50 +- 0.09
      8    5.10 +- 0.15   0.21 +- 0.12  (.193, .340, .105)    0.40 +- 0.16    0.69 +- 0.09
     16    3.43 +- 0.13   0.10 +- 0.13  (.038, .017, .250)    0.22 +- 0.26    0.53 +- 0.21

4.8 minutes of processor time on one x86-64 core. Seeds differ as much as betas. The best, seed 1 at
beta 8, has x, y and scale in a latent each; its other latents are silent.
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
from experiments.common.progress import bar
from experiments.datasets.shapes import shapes
from jaxvae import nn, plots
from jaxvae.evaluation import disentanglement

SIZES = (3, 4, 4, 8, 8)  # values of shape, scale, rotation, x and y
SIDE = 32  # of an image
HIDDEN = (256, 128)  # units of the encoder; the decoder mirrors it
LATENT = 10  # coordinates of z
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0)
LEARNING_RATE = 1e-3  # of Adam
BATCH = 64  # images a step
EPOCHS = 150
TREES = 20  # of DCI's classifiers
SEEDS = 3  # runs at each beta
INFORMATION = (np.sort(SIZES) - 1) / (max(SIZES) - 1)  # of noise with a factor, relative
CHANCE = {  # each score, and what noise gets
    "MIG": 0.0,
    "SAP": 0.0,
    "modularity": 1.0 - float(np.mean(INFORMATION[:-1] ** 2)),
    "DCI disentanglement": 0.0,
    "DCI completeness": 0.0,
    "DCI informativeness": float(np.mean(1.0 / np.array(SIZES))),
    "FactorVAE score": 1.0 / len(SIZES),
    "beta-VAE score": 1.0 / len(SIZES),
}
OBJECTIVE = jaxvae.preprocessed(jaxvae.elbo, jaxvae.rescale)


def make_vae(key: jax.Array) -> jaxvae.VAE:
    rngs, shape = nnx.Rngs(key), (SIDE, SIDE, 1)
    up, down = partial(nn.MLP, hidden=HIDDEN), partial(nn.MLP, hidden=HIDDEN[::-1])
    return jaxvae.VAE(
        encode=nn.Conditional(up, nn.NormalHead(), shape, (LATENT,), rngs=rngs),
        decode=nn.Conditional(down, nn.BernoulliHead(), (LATENT,), shape, rngs=rngs),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def run(seed: jax.Array, beta: jax.Array, images: jax.Array) -> dict[str, Any]:
    """One training: the model, and rate, distortion and two kinds of code of all images."""
    train_key, elbo_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    init_key, run_key = jax.random.split(train_key)
    optimizer = optax.adam(LEARNING_RATE)
    epoch = jaxvae.train_epoch(jaxvae.train_step(OBJECTIVE, optimizer), batch_size=BATCH)
    state = jaxvae.init_state(make_vae(init_key), optimizer)
    state, _ = jax.lax.scan(
        lambda state, _: epoch(state, run_key, images, beta=beta), state, length=EPOCHS
    )
    model = state.model
    _, terms = jaxvae.batched(OBJECTIVE)(model, elbo_key, images)
    q = jax.vmap(model.encode)(images.astype(float) / 255.0)
    draws = jax.vmap(lambda key, q: q.sample(key))(jax.random.split(draw_key, len(images)), q)
    terms = jax.tree.map(jnp.mean, terms)._asdict()
    return {"model": model, "means": q.mean(), "draws": draws, **terms}


def main() -> None:
    start = time.process_time()
    images, factors = shapes(SIZES, side=SIDE)
    grid = {"seed": jnp.arange(SEEDS), "beta": jnp.array(BETAS)}
    with bar(2) as at:
        at(f"{SEEDS * len(BETAS)} trainings at once")
        found = jaxvae.sweep(run, grid, images=jnp.asarray(images)).results
        table = {name: np.asarray(found[name]) for name in ("rate", "distortion")}
        minutes = (time.process_time() - start) / 60
        print(f"trained: {minutes:.1f} min of processor time", flush=True)
        at("scores")
        scored = np.array([
            [scores(jax.random.key(1000 + i), found["means"][i, j], found["draws"][i, j], factors)
             for j in range(len(BETAS))] for i in range(SEEDS)
        ])  # fmt: skip
    table |= {name: scored[..., k] for k, name in enumerate(CHANCE)}
    minutes = (time.process_time() - start) / 60

    for name, values in table.items():
        spread = values.std(axis=0, ddof=1) if SEEDS > 1 else np.full(len(BETAS), np.nan)
        row = [f"{m:7.3f} +- {s:.3f}" for m, s in zip(values.mean(axis=0), spread, strict=True)]
        print(f"{name:20s}", *row)
    print(f"betas {BETAS}, {SEEDS} seeds, {minutes:.1f} min of processor time")

    folder = Path("runs") / "disentanglement"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: values.tolist() for name, values in table.items()}
    (folder / "result.json").write_text(json.dumps({"betas": BETAS, **numbers}, indent=2) + "\n")
    draw(folder / "scores.png", table)
    i, j = np.unravel_index(np.argmax(table["MIG"]), (SEEDS, len(BETAS)))
    model = jax.tree.map(lambda leaf: leaf[i, j], found["model"])
    rates = jaxvae.evaluation.rate_per_latent(model, jnp.asarray(images).astype(float) / 255.0)
    order = np.argsort(-np.asarray(rates))
    picture = plots.traversals(model, found["means"][i, j, -1], order[:8], rates=rates)
    plotting.save(picture, folder / "traversals.png")
    print(f"best MIG {table['MIG'][i, j]:.3f}: seed {i}, beta {BETAS[j]:g}; figures in {folder}")


def scores(key: jax.Array, means: Any, draws: Any, factors: np.ndarray) -> tuple[float, ...]:
    """As `CHANCE` names them. SAP fits lines, so the shape, a mere name, is left out."""
    dci_key, factor_key, beta_key = jax.random.split(key, 3)
    return (
        disentanglement.mig(draws, factors),
        disentanglement.sap(means, factors[:, 1:]),
        disentanglement.modularity(draws, factors),
        *disentanglement.dci(dci_key, means, factors, trees=TREES),
        disentanglement.factor_vae_score(factor_key, means, factors),
        disentanglement.beta_vae_score(beta_key, means, factors),
    )


@plotting.styled
def draw(path: Path, table: dict[str, np.ndarray]) -> None:
    """A panel a number: a dot a seed, a line through the means, chance dashed."""
    picture = plotting.figure(10.6, 4.4)
    for ax, (name, values) in zip(picture.subplots(2, 5).flat, table.items(), strict=True):
        ax.plot(BETAS, values.T, ".", color=plotting.GREY)
        ax.plot(BETAS, values.mean(axis=0), "-", color=plotting.BLUE)
        if name in CHANCE:
            ax.axhline(CHANCE[name], color=plotting.RED, ls="--", lw=1.2)
            ax.set(title=name, ylim=(0.0, 1.0))
        else:
            ax.set(title=f"{name}, nats", ylim=(0.0, 1.05 * values.max()))
        ax.set_xscale("log", base=2)
        ax.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
        ax.set_xlabel("β")
    plotting.save(picture, path)


if __name__ == "__main__":
    command(main, __doc__)
