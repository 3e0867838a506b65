"""Flax as its examples are written: modules on batches, one jitted step called from Python."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.workloads import Workload, plain


class Dense(nnx.Module):
    def __init__(self, sizes: list[int], activation: Any, rngs: nnx.Rngs):
        pairs = pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairs])
        self.activation = activation

    def __call__(self, h: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)


class Encoder(nnx.Module):
    def __init__(self, w: Workload, activation: Any, rngs: nnx.Rngs):
        self.convolutional = w.network == "conv"
        self.activation = activation
        if self.convolutional:
            self.first = nnx.Conv(1, 32, (4, 4), strides=2, rngs=rngs)
            self.second = nnx.Conv(32, 64, (4, 4), strides=2, rngs=rngs)
        size = 3136 if self.convolutional else 784
        self.dense = Dense([size, *w.hidden, 2 * w.latent], activation, rngs)

    def __call__(self, x: jax.Array) -> Any:
        if self.convolutional:
            x = self.activation(self.first(x))
            x = self.activation(self.second(x))
        return jnp.split(self.dense(x.reshape(len(x), -1)), 2, axis=-1)


class Decoder(nnx.Module):
    def __init__(self, w: Workload, activation: Any, rngs: nnx.Rngs):
        self.convolutional = w.network == "conv"
        self.activation = activation
        size = 3136 if self.convolutional else 784
        self.dense = Dense([w.latent, *w.hidden[::-1], size], activation, rngs)
        if self.convolutional:
            self.first = nnx.ConvTranspose(64, 32, (4, 4), strides=2, rngs=rngs)
            self.second = nnx.ConvTranspose(32, 1, (4, 4), strides=2, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        h = self.dense(z)
        if not self.convolutional:
            return h
        h = self.activation(h).reshape(*z.shape[:-1], 7, 7, 64)
        h = self.second(self.activation(self.first(h)))
        return h.reshape(*z.shape[:-1], 784)


class Model(nnx.Module):
    def __init__(self, w: Workload, rngs: nnx.Rngs):
        activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[w.activation]
        self.encoder = Encoder(w, activation, rngs)
        self.decoder = Decoder(w, activation, rngs)


def negative_bound(model: Model, key: jax.Array, x: jax.Array, k: int) -> jax.Array:
    mean, log_var = model.encoder(x)
    scale = jnp.exp(0.5 * log_var)
    eps = jax.random.normal(key, (k, *mean.shape))
    z = mean + scale * eps
    logits, flat = model.decoder(z), x.reshape(len(x), -1)
    log_likelihood = -jnp.sum(optax.sigmoid_binary_cross_entropy(logits, flat), axis=-1)
    if k == 1:
        rate = 0.5 * jnp.sum(mean**2 + scale**2 - 1.0 - log_var, axis=-1)
        return -jnp.mean(log_likelihood[0] - rate)
    log_ratio = jnp.sum(-0.5 * z**2 + 0.5 * eps**2 + 0.5 * log_var, axis=-1)
    log_w = log_likelihood + log_ratio
    return -jnp.mean(jax.nn.logsumexp(log_w, axis=0) - jnp.log(k))


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    plain(w, "the Flax loop")

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, key: jax.Array, x: jax.Array) -> jax.Array:
        loss, gradient = nnx.value_and_grad(negative_bound)(model, key, x, w.num_samples)
        optimizer.update(model, gradient)
        return loss

    def start(seed: int) -> tuple[Model, nnx.Optimizer]:
        model = Model(w, nnx.Rngs(seed))
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    rng, key, count = np.random.default_rng(0), jax.random.key(0), 0
    model, optimizer = start(0)
    for turn in range(w.looks):
        losses = []
        for seed in range(w.seeds):
            if w.seeds > 1:
                model, optimizer = start(w.seeds * turn + seed)
            order, loss = rng.permutation(len(images)), jnp.nan
            for rows in order[: w.chunk * w.batch].reshape(w.chunk, w.batch):
                loss = step(
                    model, optimizer, jax.random.fold_in(key, count), jnp.asarray(images[rows])
                )
                count += 1
            losses.append(float(loss))
        look(np.mean(losses))
