"""Series of unequal length: latent dynamics whose padding costs nothing, and forecasts with bands.

python -m experiments.recipes.sequences FOLDER
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from experiments.common.evaluate import each
from experiments.common.plotting import BLACK, BLUE, figure, save, styled
from experiments.datasets.vowels import AHEAD, CHANNELS, LENGTH, SEEN, measured, read
from jaxvae import evaluation, models, nn

LATENT = 24  # coordinates of z_t, two a channel: where it is, and where it comes from
HIDDEN = 64  # units of the hidden layers
SUMMARY = 32  # units of the recurrent network
DROPOUT = 0.1  # of the hidden layers, in training
LEARNING_RATE = 4e-3  # of Adam at first, then down by half a cosine
BATCH = 54  # series a step: 270 in 5
EPOCHS = 600
WARM_UP = 20  # epochs until beta is 1
SAMPLES = 500  # importance samples of log p(x), and of the states that a forecast starts from
DRAWS = 1000  # futures of each series
SEEDS = 3
FOLDER = Path("runs/sequences")


def model_of(rngs: nnx.Rngs) -> models.Padded:
    z, x, h = (LATENT,), (CHANNELS,), (CHANNELS + LATENT + SUMMARY,)
    of = partial(nn.Conditional, rngs=rngs)
    move = of(Bent, nn.SharedScaleHead(jnp.full(z, 0.3)), z, z)
    emit = of(Straight, nn.SharedScaleHead(jnp.full(x, 0.1)), z, x)
    infer = of(Bent, nn.NormalHead(), h, z)
    rows = partial(nn.Recurrent, width=SUMMARY, reverse=True, rngs=rngs)
    to_come = rows((LENGTH, CHANNELS), (LENGTH, SUMMARY))
    return models.Padded(
        jaxvae.VAE(
            encode=models.Smoother(Partial(summary, to_come), Partial(step, infer), jnp.zeros(z)),
            decode=Partial(models.emissions, emit),
            prior=models.Markov(jaxvae.Normal(jnp.zeros(z), jnp.ones(z)), move, LENGTH),
        )
    )


class Straight(nnx.Module):
    """W x + b; W begins as the identity, as far as it goes."""

    def __init__(self, n: tuple[int], m: tuple[int], *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(*n, *m, kernel_init=identity, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


class Bent(Straight):
    """W x + b + f(x)"""

    def __init__(self, n: tuple[int], m: tuple[int], *, rngs: nnx.Rngs):
        super().__init__(n, m, rngs=rngs)
        self.f = nn.MLP(n, m, hidden=(HIDDEN,), dropout=DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x) + self.f(x)


def identity(_: Any, shape: tuple[int, int], dtype: Any) -> jax.Array:
    return jnp.eye(*shape, dtype=dtype).at[:, LATENT:].set(0.0)


def summary(to_come: Any, event: Any) -> tuple[jax.Array, jax.Array]:
    """x_t, and what is seen from there on, of every t."""
    x, mask = event
    return jnp.where(mask[:, None], x, 0.0), to_come(event)


def step(infer: Any, before: Any) -> jaxvae.Normal:
    """q(z_t | z_{t-1}, x_t, ..., x_T)"""
    z, (x, h) = before
    q = infer(jnp.concatenate([x, z, h]))
    return jaxvae.Normal(q.loc, 0.2 * q.scale)  # narrow from the first


def cut(key: jax.Array, event: Any) -> Any:
    """The beginning of a series, of random length, so that every prefix is an example."""
    x, mask = event
    return x, mask & (jnp.arange(LENGTH) < jax.random.randint(key, (), 1, LENGTH + 1))


def main(folder: str) -> None:
    train, test = read(folder)
    results, steps = [], EPOCHS * (len(train[0]) // BATCH)
    for seed in range(SEEDS):
        optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps, 0.02))
        objective = jaxvae.preprocessed(partial(jaxvae.elbo, kl=models.stepwise_kl), cut)
        start = time.perf_counter()
        state, _ = jaxvae.fit(
            jaxvae.train_step(objective, optimizer),
            jaxvae.init_state(model_of(nnx.Rngs(seed)), optimizer),
            jax.random.key(seed),
            train,
            epochs=EPOCHS,
            batch_size=BATCH,
            beta=optax.linear_schedule(0.1, 1.0, WARM_UP * (steps // EPOCHS)),
        )
        seconds = time.perf_counter() - start
        nats = log_p(state.model, jax.random.key(1000 + seed), test).sum() / test[1].sum()
        draws = np.asarray(futures(state.model, jax.random.key(2000 + seed), test))
        results.append({"log p a step": float(nats), "seconds": seconds, **scores(draws, *test)})
        print(f"seed {seed}:", json.dumps(results[-1]), flush=True)
        if seed == 0:
            FOLDER.mkdir(parents=True, exist_ok=True)
            draw(FOLDER / "forecasts.png", draws, *test)
    (FOLDER / "result.json").write_text(json.dumps(results))


@jax.jit
def log_p(model: Any, key: jax.Array, series: Any) -> jax.Array:
    one = partial(jaxvae.log_marginal, model, num_samples=SAMPLES)
    return each(one, key, series, batch_size=10).value


@jax.jit
def futures(model: Any, key: jax.Array, series: Any) -> jax.Array:
    """Draws of the whole series given its first SEEN steps, [draws, n, LENGTH, CHANNELS]."""

    def one(key: jax.Array, event: Any) -> jax.Array:
        x, mask = event
        seen = x, mask & (jnp.arange(LENGTH) < SEEN)
        impute = partial(evaluation.multiple_imputations, num_samples=SAMPLES, num_draws=DRAWS)
        return impute(model, key, seen)

    return each(one, key, series, batch_size=10).swapaxes(0, 1)


def scores(draws: np.ndarray, x: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Of the steps ahead, where the series are so long."""
    at = {f"{h} ahead": SEEN + h - 1 for h in AHEAD}
    return {name: measured(draws[:, mask[:, t], t], x[mask[:, t], t]) for name, t in at.items()}


@styled
def draw(path: Path, draws: np.ndarray, x: np.ndarray, mask: np.ndarray) -> None:
    longest, channels = np.argsort(-mask.sum(1))[:3], (0, 1, 2)
    picture = figure(9.0, 5.0)
    axes = picture.subplots(len(channels), len(longest), sharex=True, sharey="row")
    for row, c in zip(axes, channels, strict=True):
        for ax, i in zip(row, longest, strict=True):
            t = np.arange(SEEN, mask[i].sum())
            low, q1, middle, q3, high = np.quantile(
                draws[:, i, t, c], [0.05, 0.25, 0.5, 0.75, 0.95], 0
            )
            ax.fill_between(t, low, high, color=BLUE, alpha=0.2, lw=0, label="90 %")
            ax.fill_between(t, q1, q3, color=BLUE, alpha=0.3, lw=0, label="50 %")
            ax.plot(t, middle, color=BLUE)
            ax.plot(x[i, mask[i], c], color=BLACK, marker=".", label="what came")
        row[0].set_ylabel(f"channel {c + 1}")
    axes[0, 0].legend()
    save(picture, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
