"""Numbers that hide because they are large: a VAE that knows of it against one that does not.

    python -m experiments.structures.missing_not_at_random

Wine, 178 rows of 13 chemical measurements (scikit-learn), standardised: in the first six columns
what is above the column's mean is missing, as in Ipsen et al. 2021, whose tables are other ones of
the UCI. MIWAE (Mattei & Frellsen 2019) is `iwae` of a `Masked` likelihood; not-MIWAE has beside it
p(seen|x) = sigma(-a (x - b)), a > 0, a curve a column, learned. K = 20, 13-128-z8 and its mirror,
ReLU, Adam 3e-3, all rows a step, 600 steps; gaps by 1,000 importance samples.

Ours, root mean squared error of the 22 % that are missing, standardised, seeds 0, 1, 2 on one busy
x86-64 core:

    means of what is seen    1.764
    MIWAE                    1.510 +- 0.034
    not-MIWAE                0.967 +- 0.056
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial
from sklearn.datasets import load_wine

import jaxvae
from experiments.common.command import command
from experiments.common.comparison import compare
from jaxvae import nn

HIDING = 6  # the columns, from the left, whose large numbers nobody sees
HIDDEN = (128,)  # units of encoder and decoder
LATENT = 8  # coordinates of z
K = 20  # importance samples of the bound
LEARNING_RATE = 3e-3  # of Adam
STEPS = 600
SAMPLES = 1000  # importance samples of an imputation
SEEDS = 3  # runs of each model, from keys 0, 1, 2


def rows() -> tuple[np.ndarray, np.ndarray]:
    """All rows, each column of mean 0 and deviation 1, and what of them is seen."""
    x = np.asarray(load_wine(return_X_y=True)[0], np.float32)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, ~((x > 0) & (np.arange(x.shape[1]) < HIDING))


def of_pair(network: Any, event: Any) -> Any:
    x, mask = event
    return network(jnp.concatenate([jnp.where(mask, x, 0.0), mask.astype(x.dtype)]))


def masked(network: Any, z: Any) -> jaxvae.Masked:
    return jaxvae.Masked(network(z))


def hides(curve: Any, x: Any) -> jaxvae.Bernoulli:
    """What is large hides; how steeply and from where on, of each column, is learned."""
    steepness, threshold = curve
    return jaxvae.Bernoulli(-jnp.exp(steepness) * (x - threshold))


def make(name: str, columns: int, key: jax.Array) -> Any:
    conditional = partial(nn.Conditional, partial(nn.MLP, hidden=HIDDEN), rngs=nnx.Rngs(key))
    encode = Partial(of_pair, conditional(nn.NormalHead(), (2 * columns,), (LATENT,)))
    decode = conditional(nn.SharedScaleHead(scale=0.5), (LATENT,), (columns,))
    prior = jaxvae.StandardNormal((LATENT,))
    if name == "MIWAE":
        return jaxvae.VAE(encode, Partial(masked, decode), prior)
    curve = jnp.zeros(columns), jnp.zeros(columns)
    return jaxvae.models.NotAtRandom(encode, decode, prior, Partial(hides, curve))


def run(name: str, events: Any, key: jax.Array) -> Any:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    optimizer = optax.adam(LEARNING_RATE)
    step = jaxvae.train_step(partial(jaxvae.iwae, num_samples=K), optimizer)
    state = jaxvae.init_state(make(name, events[0].shape[1], init_key), optimizer)
    state, _ = jax.lax.scan(lambda state, _: step(state, run_key, events), state, length=STEPS)
    return state.model


def main() -> None:
    x, mask = rows()
    events = jnp.where(mask, x, jnp.nan), jnp.asarray(mask)

    @jax.jit
    def measure(key: jax.Array, model: Any) -> jax.Array:
        impute = partial(jaxvae.evaluation.impute, model, num_samples=SAMPLES)
        found = jax.vmap(impute)(jax.random.split(key, len(x)), events)
        return rmse(found)

    def rmse(found: Any) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.where(mask, 0.0, found - x) ** 2) / np.sum(~mask))

    means = np.nanmean(np.where(mask, x, np.nan), axis=0)
    print(f"{np.mean(~mask):.1%} missing; means of what is seen: {rmse(means[None]):.3f} RMSE")
    runs = {name: partial(run, name, events) for name in ("MIWAE", "not-MIWAE")}
    compare("missing_not_at_random", runs, measure, seeds=SEEDS, unit="RMSE")


if __name__ == "__main__":
    command(main, __doc__)
