"""jaxvae, as a user writes it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae
from experiments.benchmarks.workloads import Workload
from jaxvae import nn

SHAPE = (28, 28, 1)


def make_model(w: Workload, key: jax.Array) -> jaxvae.VAE:
    rngs = nnx.Rngs(key)
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[w.activation]
    networks: Any = {"mlp": (nn.MLP, nn.MLP), "conv": (nn.ConvEncoder, nn.ConvDecoder)}[w.network]
    encoder = partial(networks[0], hidden=w.hidden, activation=activation)
    decoder = partial(networks[1], hidden=w.hidden[::-1], activation=activation)
    return jaxvae.VAE(
        encode=nn.Conditional(encoder, nn.NormalHead(), SHAPE, (w.latent,), rngs=rngs),
        decode=nn.Conditional(decoder, nn.BernoulliHead(), (w.latent,), SHAPE, rngs=rngs),
        prior=jaxvae.StandardNormal((w.latent,)),
    )


def objective(w: Workload) -> Any:
    if w.num_samples == 1:
        return jaxvae.elbo
    return partial(jaxvae.iwae, num_samples=w.num_samples)


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    if w.seeds > 1:
        return train_seeds(w, images, look)
    optimizer = optax.adam(1e-3)
    jaxvae.fit(
        jaxvae.train_step(objective(w), optimizer),
        jaxvae.init_state(make_model(w, jax.random.key(0)), optimizer),
        jax.random.key(1),
        images,
        epochs=w.looks,  # one epoch a look
        batch_size=w.batch,
        callbacks=[lambda state, metrics: look(metrics["loss"][-1])],
    )


def train_seeds(w: Workload, images: np.ndarray, look: Any) -> None:
    optimizer, data = optax.adam(1e-3), jnp.asarray(images)
    epoch = jaxvae.train_epoch(jaxvae.train_step(objective(w), optimizer), batch_size=w.batch)

    def run(key: jax.Array) -> jax.Array:
        init_key, run_key = jax.random.split(key)
        state = jaxvae.init_state(make_model(w, init_key), optimizer)
        return epoch(state, run_key, data)[1]["loss"][-1]

    for seed in range(w.looks):
        keys = jax.random.split(jax.random.key(seed), w.seeds)
        look(np.mean(jaxvae.sweep(run, {"key": keys}).results))
