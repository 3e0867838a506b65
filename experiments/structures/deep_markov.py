"""A deep Markov model of a pendulum seen in noisy images, against linear dynamics and none.

    python -m experiments.structures.deep_markov

2,000 sequences of 16 binary frames of 16 x 16 pixels, generated: a pendulum that swings or turns
over, from any angle at any speed, moved by gravity and a little noise. z_t in R^4,
q(z_t | z_{t-1}, x_{t:T}) by a GRU of 64 from the last frame to the first (Krishnan et al. 2017);
Adam 1e-3, batch 50, 40 epochs, the rate warmed up over the first 5. Three priors, all else the
same: p(z_t|z_{t-1}) with mean z + MLP(z), with a mean linear in z, and N(0, I), which is a VAE of
single frames.

Ours: nats a frame of 500 new sequences, a bound of 50 samples, and -log p(x_t | frames 1 to 8), the
mean of t = 9 ... 16; mean and standard deviation over seeds 0, 1, 2:

                 bound                                    forecast
    nonlinear    36.06 +- 0.24    (36.09, 36.28, 35.81)    38.67 +- 0.80    (38.98, 39.26, 37.76)
    linear       37.03 +- 0.10    (37.12, 36.92, 37.06)    39.65 +- 0.29    (39.40, 39.60, 39.96)
    none         38.17 +- 0.09    (38.06, 38.22, 38.22)    39.58 +- 0.22    (39.33, 39.76, 39.65)

in 3.3 minutes of processor time on one x86-64 core. Dynamics gain 1 nat a frame if linear and 2 if
not. One frame ahead they forecast 2 to 3 nats better than none; over all eight frames the linear
ones do not, and the others' lead of 0.9 is about the spread of their seeds.
"""

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
from experiments.comparison import compare, train
from experiments.plotting import BLUE, GREY, ORANGE, figure, save, show_images, styled
from jaxvae import nn
from jaxvae.markov import Markov, Smoother, emissions, stepwise_kl

LATENT, HIDDEN, EPOCHS, WARM_UP, BATCH, SEEDS, SAMPLES = 4, 64, 40, 5, 50, 3, 50
SEQUENCES, TESTS, LENGTH, SEEN, SIDE = 2000, 500, 16, 8, 16
SHAPE = (SIDE, SIDE, 1)
OBJECTIVE = partial(jaxvae.elbo, rate=stepwise_kl)


def pendulum(key: jax.Array) -> jax.Array:
    """One sequence of binary frames, shape [T, 16, 16, 1]."""
    angle_key, speed_key, push_key, pixel_key = jax.random.split(key, 4)
    angle = jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi)
    speed = jax.random.uniform(speed_key, minval=-2.0, maxval=2.0)

    def move(state: tuple[jax.Array, jax.Array], push: jax.Array) -> Any:
        angle, speed = state
        for _ in range(4):  # a fine step of symplectic Euler
            speed = speed - 0.1 * jnp.sin(angle)
            angle = angle + 0.1 * speed
        return (angle, speed + 0.05 * push), angle

    _, angles = jax.lax.scan(move, (angle, speed), jax.random.normal(push_key, (LENGTH,)))
    at = jnp.linspace(-1.0, 1.0, SIDE)
    across = jnp.square(at[None, None] - 0.7 * jnp.sin(angles)[:, None, None])
    down = jnp.square(at[None, :, None] - 0.7 * jnp.cos(angles)[:, None, None])
    p = 0.01 + 0.97 * jnp.exp(-0.5 * (across + down) / 0.2**2)
    return jax.random.bernoulli(pixel_key, p).astype(float)[..., None]


def residual(conditional: Any, z: jax.Array) -> jaxvae.Normal:
    step = conditional(z)
    return jaxvae.Normal(z + step.loc, step.scale)


def forgetful(z: jax.Array) -> jaxvae.Normal:
    return jaxvae.Normal(jnp.zeros_like(z), jnp.ones_like(z))


def backwards(embed: Any, cell: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(cell, jnp.zeros(HIDDEN), jax.vmap(embed)(x), reverse=True)[1]


def of_pair(conditional: Any, pair: tuple[jax.Array, jax.Array]) -> Any:
    return conditional(jnp.concatenate(pair))


def mlp(*hidden: int) -> partial[nn.MLP]:
    return partial(nn.MLP, hidden=hidden)


def make(dynamics: Any, key: jax.Array) -> jaxvae.VAE:
    rngs, d = nnx.Rngs(key), (LATENT,)

    def conditional(network: Any, head: Any, n: tuple[int, ...], m: tuple[int, ...]) -> Any:
        return nn.Conditional(network, head, n, m, rngs=rngs)

    transition = (
        Partial(forgetful)
        if dynamics is None
        else Partial(residual, conditional(dynamics, nn.SharedScaleHead(0.3), d, d))
    )
    summary = Partial(
        backwards,
        mlp(HIDDEN)(SHAPE, (HIDDEN,), rngs=rngs),
        nnx.GRUCell(HIDDEN, HIDDEN, rngs=rngs),
    )
    step = conditional(mlp(HIDDEN), nn.NormalHead(), (LATENT + HIDDEN,), d)
    emission = conditional(mlp(HIDDEN, HIDDEN), nn.BernoulliHead(), d, SHAPE)
    return jaxvae.VAE(
        encode=Smoother(summary, Partial(of_pair, step), jnp.zeros(LATENT)),
        decode=Partial(emissions, emission),
        prior=Markov(jaxvae.StandardNormal(d), transition, LENGTH),
    )


METHODS = {"nonlinear": mlp(64), "linear": mlp(), "none": None}


@jax.jit
def bounds(model: jaxvae.VAE, key: jax.Array, xs: jax.Array) -> jax.Array:
    """The importance-weighted bound on -log p(x), nats a frame, of each sequence."""
    keys = jax.random.split(key, len(xs))
    iwae = partial(jaxvae.iwae, model, num_samples=SAMPLES)
    return jax.lax.map(lambda kx: -iwae(*kx)[0] / LENGTH, (keys, xs))


def forecast(model: Any, key: jax.Array, x: jax.Array) -> Any:
    """p(frames to come | z), z one draw of the states to come given the frames seen: an `Each`."""
    now_key, key = jax.random.split(key)
    now = model.encode(x[:SEEN]).sample(now_key)[-1]
    transition = model.prior.transition
    return model.decode(Markov(transition(now), transition, LENGTH - SEEN).sample(key))


@jax.jit
def forecast_nlls(model: jaxvae.VAE, key: jax.Array, xs: jax.Array) -> jax.Array:
    """-log p(x_t | frames seen), nats, of each frame to come on its own: shape [n, T - SEEN]."""

    def one(key_x: Any) -> jax.Array:
        key, x = key_x

        def log_p(key: jax.Array) -> jax.Array:
            frames = forecast(model, key, x).parts
            return jax.vmap(lambda d, frame: d.log_prob(frame))(frames, x[SEEN:])

        return -jax.vmap(jaxvae.log_mean_exp, 1)(jax.vmap(log_p)(jax.random.split(key, SAMPLES)))

    return jax.lax.map(one, (jax.random.split(key, len(xs)), xs))


@styled
def draw(models: dict[str, Any], nlls: dict[str, np.ndarray], x: jax.Array) -> Any:
    picture = figure(6.6, 5.0)
    *rows, below = picture.subplots(2 + len(models), height_ratios=(*[1] * (1 + len(models)), 6))
    ahead = jax.jit(lambda *args: forecast(*args).mean())
    for ax, (name, model) in zip(rows, {"truth": None, **models}.items(), strict=True):
        later = x[SEEN:] if model is None else ahead(model, jax.random.key(0), x)
        show_images(ax, jnp.concatenate([x[:SEEN], later]).reshape(LENGTH, -1), name)
        ax.axvline(SEEN * (SIDE + 2) - 0.5, color=BLUE)
    rows[0].set_title(f"{SEEN} frames seen, and one forecast of the {LENGTH - SEEN} after them")
    frames = np.arange(SEEN + 1, LENGTH + 1)
    for (name, values), color, mark in zip(nlls.items(), (BLUE, ORANGE, GREY), "os^", strict=True):
        below.plot(frames, values.mean(axis=0), marker=mark, color=color, label=name)
        below.fill_between(frames, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2)
    title = f"Forecasts of one frame, {len(nlls['linear'])} seeds: mean and range"
    below.set(title=title, xlabel="frame", ylabel="-log p(x_t | frames seen), nats")
    below.legend(title="dynamics")
    return picture


def main() -> None:
    make_data = jax.jit(jax.vmap(pendulum))
    xs = make_data(jax.random.split(jax.random.key(98), SEQUENCES))
    test = make_data(jax.random.split(jax.random.key(99), TESTS))
    warm_up = optax.linear_schedule(0.01, 1.0, WARM_UP * (SEQUENCES // BATCH))

    def measure(key: jax.Array, model: jaxvae.VAE) -> dict[str, Any]:
        bound_key, forecast_key = jax.random.split(key)
        nlls = forecast_nlls(model, forecast_key, test).mean(axis=0)
        return {
            "nats a frame": jnp.mean(bounds(model, bound_key, test)),
            **{f"nats of frame {SEEN + 1 + t}": nll for t, nll in enumerate(nlls)},
        }

    def run(dynamics: Any, key: jax.Array) -> jaxvae.VAE:
        optimizer = optax.adam(1e-3)
        return train(
            partial(make, dynamics),
            OBJECTIVE,
            optimizer,
            key,
            xs,
            epochs=EPOCHS,
            batch_size=BATCH,
            beta=warm_up,
        )

    runs = {name: partial(run, dynamics) for name, dynamics in METHODS.items()}
    results, models = compare("deep_markov", runs, measure, seeds=SEEDS)
    frames = range(SEEN + 1, LENGTH + 1)
    later = {
        name: np.array([[row[f"nats of frame {t}"] for t in frames] for row in rows])
        for name, rows in results.items()
    }
    for name, nlls in later.items():
        print(f"{name}, forecast: {nlls.mean():.3f}, seeds {nlls.mean(axis=1)}")
    firsts = {name: of_seeds[0] for name, of_seeds in models.items()}
    save(draw(firsts, later, test[0]), Path("runs/deep_markov/forecasts.png"))


if __name__ == "__main__":
    main()
