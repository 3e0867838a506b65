"""jaxvae, as a user writes it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae
from experiments.benchmarks.workloads import LEAPFROG, PILOTS, TEMPERATURES, Workload
from jaxvae import nn


def make_model(w: Workload, key: jax.Array) -> Any:
    rngs = nnx.Rngs(key)
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[w.activation]
    networks: Any = (nn.MLP, nn.MLP) if w.network == "mlp" else (nn.ConvEncoder, nn.ConvDecoder)
    encoder = partial(networks[0], hidden=w.hidden, activation=activation)
    decoder = partial(networks[1], hidden=w.hidden[::-1], activation=activation)
    if w.network == "top-down":
        (width,) = w.hidden
        return jaxvae.TopDown(
            up=Features(encoder(w.shape, (width,), rngs=rngs), w.levels),
            start=jnp.zeros(width),
            blocks=[make_block(w, width, rngs) for _ in range(w.levels)],
            likelihood=nn.Conditional(decoder, nn.BernoulliHead(), (width,), w.shape, rngs=rngs),
        )
    return jaxvae.VAE(
        encode=nn.Conditional(encoder, nn.NormalHead(), w.shape, (w.latent,), rngs=rngs),
        decode=nn.Conditional(decoder, nn.BernoulliHead(), (w.latent,), w.shape, rngs=rngs),
        prior=jaxvae.StandardNormal((w.latent,)),
    )


class Features(nnx.Module):
    """What all levels hear of x."""

    def __init__(self, network: Any, levels: int):
        self.network, self.levels = network, levels

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return (self.network(x),) * self.levels


class Joined(nnx.Module):
    """A network of a pair, side by side; it adds to the first of them if it is a residual."""

    def __init__(self, network: Any, residual: bool):
        self.network, self.residual = network, residual

    def __call__(self, pair: tuple[jax.Array, jax.Array]) -> Any:
        out = self.network(jnp.concatenate(pair))
        return pair[0] + out if self.residual else out


def make_block(w: Workload, width: int, rngs: nnx.Rngs) -> jaxvae.Block:
    mlp, head, latents = partial(nn.MLP, hidden=w.hidden), nn.NormalHead(), (w.latent,)
    posterior = nn.Conditional(mlp, head, (2 * width,), latents, rngs=rngs)
    merge = mlp((width + w.latent,), (width,), rngs=rngs)
    return jaxvae.Block(
        prior=nn.Conditional(mlp, head, (width,), latents, rngs=rngs),
        posterior=Joined(posterior, residual=False),
        merge=Joined(merge, residual=True),
    )


def objective(w: Workload) -> Any:
    if w.num_samples == 1:
        return jaxvae.elbo
    return partial(jaxvae.iwae, num_samples=w.num_samples)


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    if w.job != "train":
        return estimate(w, images, look)
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
    optimizer = optax.adam(1e-3)
    epoch = jaxvae.train_epoch(jaxvae.train_step(objective(w), optimizer), batch_size=w.batch)

    def run(key: jax.Array, data: jax.Array) -> jax.Array:
        init_key, run_key = jax.random.split(key)
        state = jaxvae.init_state(make_model(w, init_key), optimizer)
        return epoch(state, run_key, data)[1]["loss"][-1]

    data = jnp.asarray(images)
    for seed in range(w.looks):
        keys = jax.random.split(jax.random.key(seed), w.seeds)
        look(np.mean(jaxvae.sweep(run, {"key": keys}, data=data).results))


def estimate(w: Workload, images: np.ndarray, look: Any) -> None:
    """-log p(x), the mean over images."""
    model = make_model(w, jax.random.key(0))
    if w.job == "ais":
        log_p = partial(
            jaxvae.ais,
            betas=jaxvae.sigmoid_schedule(TEMPERATURES),
            num_chains=w.num_samples,
            num_leapfrog=LEAPFROG,
            num_pilots=PILOTS,
        )
    else:
        log_p = partial(jaxvae.log_marginal, num_samples=w.num_samples)

    @jax.jit
    def mean(key: jax.Array, xs: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(xs))
        one = jax.lax.map(lambda kx: log_p(model, *kx).value, (keys, xs), batch_size=8)
        return -jnp.mean(one)

    xs = jnp.asarray(images)
    for turn in range(w.looks):
        look(mean(jax.random.key(turn), xs))
