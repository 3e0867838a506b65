"""Series of unequal length: latent dynamics whose padding costs nothing, and forecasts with bands.

python -m experiments.recipes.sequences FOLDER
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
from jax.tree_util import Partial

import jaxvae
from experiments.common.command import command
from experiments.common.evaluate import each
from experiments.common.plotting import forecast_bands
from experiments.datasets.vowels import CHANNELS, LENGTH, SEEN, measured, read
from jaxvae import models, nn, use

LATENT = 24  # coordinates of z_t, two a channel: where it is, and where it comes from
AFTER = 3  # steps behind x_t that q(z_t) sees
HIDDEN = 64  # units of each hidden layer
DROPOUT = 0.2  # of them, in training
LEARNING_RATE = 1e-2  # of Adam at first, then down to a fiftieth by half a cosine
BATCH = 54  # series a step: 270 in 5
EPOCHS = 500
WARM_UP = 20  # epochs until beta is 1
SAMPLES = 100  # importance samples of log p(x)
DRAWS = 300  # futures of each series
SEEDS = 3  # 0, 1, 2
FOLDER = Path("runs/sequences")


def model_of(rngs: nnx.Rngs) -> models.Padded:
    z, x, h = (LATENT,), (CHANNELS,), CHANNELS + AFTER * (CHANNELS + 1)
    of = partial(nn.Conditional, rngs=rngs)
    move = of(Bent, nn.SharedScaleHead(jnp.full(z, 0.3)), z, z)
    emit = of(Bent, nn.SharedScaleHead(jnp.full(x, 0.1)), z, x)
    infer = of(Bent, nn.NormalHead(), (h + LATENT,), z)
    first = jaxvae.Normal(jnp.zeros(z), jnp.ones(z))
    return models.Padded(
        jaxvae.VAE(
            encode=models.Smoother(Partial(window), Partial(step, infer), jnp.zeros(z)),
            decode=Partial(models.emissions, emit),
            prior=models.Markov(first, move, LENGTH),
        )
    )


class Bent(nnx.Module):
    """W x + b + f(x); W begins as the identity, and with zeros for raw scales."""

    def __init__(self, n: tuple[int], m: tuple[int], *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(*n, *m, rngs=rngs)
        self.linear.kernel[...] = jnp.eye(*n, *m).at[:, LATENT:].set(0.0)
        self.f = nn.MLP(n, m, hidden=(HIDDEN,), dropout=DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x) + self.f(x)


def window(event: Any) -> jax.Array:
    """Of every t: x_t, and of the steps behind it their difference and whether they were seen."""
    x, mask = event
    x = jnp.where(mask[:, None], x, 0.0)
    rows = [x]
    for k in range(1, AFTER + 1):
        seen = jnp.roll(mask, -k).at[-k:].set(False)[:, None]
        rows += [jnp.where(seen, jnp.roll(x, -k, axis=0) - x, 0.0), seen.astype(x.dtype)]
    return jnp.concatenate(rows, axis=1)


def step(infer: Any, before: tuple[jax.Array, jax.Array]) -> jaxvae.Normal:
    """q(z_t | z_{t-1}, x_t, ..., x_{t+3})"""
    z, h = before
    q = infer(jnp.concatenate([h[:CHANNELS], z, h[CHANNELS:]]))
    return jaxvae.Normal(q.loc, 0.2 * q.scale)  # narrow from the first


def cut(key: jax.Array, event: Any) -> Any:
    """The beginning of a series, of random length: every prefix is an example."""
    x, mask = event
    return x, mask & (jnp.arange(LENGTH) < jax.random.randint(key, (), 1, LENGTH + 1))


def main(folder: tyro.conf.Positional[str]) -> None:
    train, test = read(folder)
    FOLDER.mkdir(parents=True, exist_ok=True)
    steps = EPOCHS * (len(train[0]) // BATCH)
    objective = jaxvae.preprocessed(partial(jaxvae.elbo, kl=models.stepwise_kl), cut)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps, 0.02))
    for seed in range(SEEDS):
        state, _ = jaxvae.fit(
            jaxvae.train_step(objective, optimizer),
            jaxvae.init_state(model_of(nnx.Rngs(seed)), optimizer),
            jax.random.key(seed),
            train,
            epochs=EPOCHS,
            batch_size=BATCH,
            beta=optax.linear_schedule(0.1, 1.0, WARM_UP * (steps // EPOCHS)),
        )
        nats = log_p(state.model, jax.random.key(1000 + seed), test).sum() / test[1].sum()
        draws = futures(state.model, jax.random.key(2000 + seed), test)
        result = {"log p a step": float(nats), **measured(draws, *test)}
        print(f"seed {seed}:", json.dumps(result), flush=True)
        (FOLDER / f"{seed}.json").write_text(json.dumps(result))
        panels = {
            f"series {i}, channel {c + 1}": (test[0][i, test[1][i], c], draws[:, i, :, c])
            for c in (0, 2)
            for i in np.argsort(-test[1].sum(1))[:30:10]
        }
        forecast_bands(FOLDER / f"forecasts_{seed}.png", panels, seen=SEEN, rows=2)


@jax.jit
def log_p(model: Any, key: jax.Array, series: Any) -> jax.Array:
    one = partial(jaxvae.log_marginal, model, num_samples=SAMPLES)
    return each(one, key, series, batch_size=10).value


def futures(model: Any, key: jax.Array, series: Any) -> np.ndarray:
    """Steps behind the first SEEN, which alone are seen: [draws, n, LENGTH - SEEN, CHANNELS]."""
    x, mask = series
    beginning = x, mask & (np.arange(LENGTH) < SEEN)
    steps = LENGTH - SEEN
    return use.forecast(model, key, beginning, steps=steps, num_samples=DRAWS).swapaxes(0, 1)


if __name__ == "__main__":
    command(main, __doc__)
