"""jaxvae, as a user writes it."""

from dataclasses import dataclass
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
    conditional = partial(nn.Conditional, dtype=precision(w), rngs=rngs)
    likelihood = nn.BernoulliHead() if w.sigma is None else nn.NormalHead(w.sigma)
    encoder = partial(networks[0], hidden=w.hidden, activation=activation)
    decoder = partial(networks[1], hidden=w.hidden[::-1], activation=activation)
    if w.network == "top-down":
        (width,) = w.hidden
        return jaxvae.models.TopDown(
            up=Features(conditional(encoder, Raw(), w.shape, (width,))),
            start=jnp.zeros(width),
            blocks=[nn.alike(partial(make_block, w, width), w.levels, rngs=rngs)],
            likelihood=conditional(decoder, likelihood, (width,), w.shape),
        )
    return jaxvae.VAE(
        encode=conditional(encoder, nn.NormalHead(), w.shape, (w.latent,)),
        decode=conditional(decoder, likelihood, (w.latent,), w.shape),
        prior=jaxvae.StandardNormal((w.latent,)),
    )


def precision(w: Workload) -> Any:
    """What `nn.Conditional` takes: None for the parameters' own."""
    return None if w.dtype == "float32" else jnp.dtype(w.dtype)


@dataclass(frozen=True)
class Raw:
    """A head that leaves the network's output as it is."""

    def raw_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def __call__(self, raw: jax.Array) -> jax.Array:
        return raw


class Features(nnx.Module):
    """What all levels hear of x, which are alike."""

    def __init__(self, network: Any):
        self.network = network

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        return (self.network(x),)


class Joined(nnx.Module):
    """A network of a pair, side by side; it adds to the first of them if it is a residual."""

    def __init__(self, network: Any, residual: bool):
        self.network, self.residual = network, residual

    def __call__(self, pair: tuple[jax.Array, jax.Array]) -> Any:
        out = self.network(jnp.concatenate(pair))
        return pair[0] + out if self.residual else out


def make_block(w: Workload, width: int, *, rngs: nnx.Rngs) -> jaxvae.models.Block:
    conditional = partial(
        nn.Conditional, partial(nn.MLP, hidden=w.hidden), dtype=precision(w), rngs=rngs
    )
    head, latents = nn.NormalHead(), (w.latent,)
    posterior = conditional(head, (2 * width,), latents)
    merge = conditional(Raw(), (width + w.latent,), (width,))
    return jaxvae.models.Block(
        prior=conditional(head, (width,), latents),
        posterior=Joined(posterior, residual=False),
        merge=Joined(merge, residual=True),
    )


def objective(w: Workload) -> Any:
    if w.network == "top-down":
        return jaxvae.models.deep_elbo
    if w.num_samples == 1:
        return jaxvae.elbo
    return partial(jaxvae.iwae, num_samples=w.num_samples)


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    if w.job != "train":
        return estimate(w, images, look)
    if w.runs > 1:
        return train_seeds(w, images, look)
    optimizer = optax.adam(1e-3)
    jaxvae.fit(
        jaxvae.train_step(objective(w), optimizer),
        jaxvae.init_state(make_model(w, jax.random.key(0)), optimizer),
        jax.random.key(1),
        images,
        epochs=w.looks,  # one epoch a look
        batch_size=w.batch,
        callbacks=[lambda state, metrics, *_: look(metrics["loss"][-1])],
        progress=False,
    )


def train_seeds(w: Workload, images: np.ndarray, look: Any) -> None:
    run, data = run_of(w), jnp.asarray(images)
    for seed in range(w.looks):
        keys, betas = jax.random.split(jax.random.key(seed), w.seeds), jnp.asarray(w.betas)
        look(np.mean(jaxvae.sweep(run, {"key": keys, "beta": betas}, data=data).results))


def run_of(w: Workload) -> Any:
    """A run of `w.chunk` steps, whole epochs, as a function of its key: the last loss."""
    optimizer = optax.adam(1e-3)
    epoch = jaxvae.train_epoch(jaxvae.train_step(objective(w), optimizer), batch_size=w.batch)

    def run(key: jax.Array, beta: Any, data: jax.Array) -> jax.Array:
        init_key, run_key = jax.random.split(key)
        hyper = {"beta": beta} if w.num_samples == 1 else {}
        _, losses = jax.lax.scan(
            lambda state, _: epoch(state, run_key, data, **hyper),
            jaxvae.init_state(make_model(w, init_key), optimizer),
            length=w.chunk // (len(data) // w.batch),
        )
        return losses["loss"][-1, -1]

    return run


def estimate(w: Workload, images: np.ndarray, look: Any) -> None:
    """-log p(x), the mean over images."""
    model = make_model(w, jax.random.key(0))
    if w.job == "ais":
        log_p = partial(
            jaxvae.evaluation.ais,
            betas=jaxvae.evaluation.sigmoid_schedule(TEMPERATURES),
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
