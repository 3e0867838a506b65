"""What the page ships: models trained by jaxvae on the 8x8 digits, and the linear model's spectrum.

Weights are rounded to float16 before anything is measured, so that the page, whose numbers are
float64, and JAX compute with the same ones.
"""

import base64
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import jaxvae
from experiments.story.common import SIGMA, Digits
from experiments.story.em import grid_over, on_grid
from jaxvae import nn
from jaxvae.bounds import autoencoder

HIDDEN = 64  # units of the one hidden layer of encoder and decoder
COMPONENTS = 10  # of a mixture prior, and pseudo-inputs of a VampPrior
POSTERIOR_COMPONENTS = 3  # of a mixture posterior
SAMPLES = 8  # K of the models trained on the importance-weighted bound
LEARNING_RATE = 3e-3  # of Adam at the start; it falls to 0 along a cosine
BATCH = 100  # images a step
EPOCHS = 300  # passes through the 1,297 training images
AUTOENCODER_EPOCHS = 1000  # of the two models of step 1: the codes go on spreading
BETAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # of step 7's networks
GRID = 160  # points an axis of the grid that sums p(x)
DIRECTIONS = 8  # of the linear model


def mixture(logits: Array, loc: Array, scale: Array) -> jaxvae.Mixture:
    return jaxvae.Mixture(logits, jaxvae.Normal(loc, scale))


HEADS: dict[str, Any] = {
    "diagonal": nn.NormalHead(),
    "full": nn.MultivariateNormalHead(),
    "mixture": nn.HeadOf(
        mixture,
        (
            nn.Real(POSTERIOR_COMPONENTS),
            nn.Real(POSTERIOR_COMPONENTS, "n"),
            nn.Positive(POSTERIOR_COMPONENTS, "n"),
        ),
    ),
}
PRIORS = ("normal", "mixture", "vamp")
BOUNDS: dict[str, Callable[..., Any]] = {
    "elbo": jaxvae.elbo,
    "iwae": partial(jaxvae.iwae, num_samples=SAMPLES),
}


MENU = tuple(product(PRIORS, HEADS, BOUNDS))  # every prior with every posterior and bound
PAIRS = tuple(product((2, 8), ("autoencoder", "vae")))  # latents and what it is trained as
TURNS = len(MENU) + len(PAIRS) + 1  # trainings, of which the last is of all `BETAS` at once
At = Callable[[str], None]  # says which training begins


class MixtureVAE(NamedTuple):
    """A VAE whose prior is a mixture of Gaussians that learns, as any leaf of a model does."""

    encode: Any
    decode: Any
    logits: Any
    loc: Any
    log_scale: Any

    @property
    def prior(self) -> jaxvae.Mixture:
        return mixture(self.logits, self.loc, jnp.exp(self.log_scale))


def make_model(key: Array, prior: str, posterior: str, num_latents: int, images: Array) -> Any:
    """p(x|z) = N(f(z), SIGMA^2 I), a prior and a posterior by name."""
    net_key, prior_key = jax.random.split(key)
    rngs = nnx.Rngs(net_key)
    network = partial(nn.MLP, hidden=(HIDDEN,))
    encode = nn.Conditional(network, HEADS[posterior], (64,), (num_latents,), rngs=rngs)
    decode = nn.Conditional(network, nn.NormalHead(SIGMA), (num_latents,), (64,), rngs=rngs)
    if prior == "normal":
        return jaxvae.VAE(encode, decode, jaxvae.StandardNormal((num_latents,)))
    if prior == "vamp":
        # of random training images, which pseudo-inputs start from
        return jaxvae.VampVAE(encode, decode, jax.random.choice(prior_key, images, (COMPONENTS,)))
    loc = jax.random.normal(prior_key, (COMPONENTS, num_latents))
    return MixtureVAE(encode, decode, jnp.zeros(COMPONENTS), loc, jnp.full_like(loc, -0.7))


def trained(
    objective: Any, model: Any, images: Array, key: Array, epochs: int, **hyper: Any
) -> Any:
    """The model after `epochs` passes, its weights rounded to what the page can hold."""
    optimizer = optax.adam(
        optax.cosine_decay_schedule(LEARNING_RATE, epochs * (len(images) // BATCH))
    )
    epoch = jaxvae.train_epoch(jaxvae.train_step(objective, optimizer), batch_size=BATCH)
    state, _ = jax.lax.scan(
        lambda state, _: (epoch(state, key, images, **hyper)[0], None),
        jaxvae.init_state(model, optimizer),
        length=epochs,
    )
    return jax.tree.map(rounded, state.model)


def rounded(leaf: Array) -> Array:
    return leaf.astype(jnp.float16).astype(leaf.dtype)


def measured(model: Any, key: Array, xs: Array) -> dict[str, Any]:
    """ELBO, IWAE and log p(x), summed over a grid, of the test images: means, the gap's error."""
    codes = jax.vmap(lambda x: jaxvae.mean_of(model.encode(x)))(xs)
    extent = float(np.ceil(2.0 * (jnp.abs(codes).max() + 0.7)) / 2.0)
    grid = grid_over(GRID, half_width=extent)
    elbos, iwaes = (
        jax.vmap(lambda k, b=bound: jaxvae.batched(b)(model, k, xs)[0])(keys).mean(axis=0)
        for bound, keys in zip(BOUNDS.values(), jax.random.split(key, (2, 20)), strict=True)
    )
    log_p = jax.lax.map(lambda x: on_grid(model, grid, x)[0], xs)
    return {
        "extent": extent,
        "elbo": float(elbos.mean()),
        "iwae": float(iwaes.mean()),
        "log_p": float(log_p.mean()),
        "gap": float((log_p - elbos).mean()),
        "gap_error": float((log_p - elbos).std(ddof=1) / len(xs) ** 0.5),
    }


def menu(digits: Digits, key: Array, at: At, *, epochs: int) -> list[dict[str, Any]]:
    """`MENU`, two latents."""
    images, test = jnp.asarray(digits.train, float), jnp.asarray(digits.test, float)
    shipped = []
    for prior, posterior, bound in MENU:
        name = f"{prior} prior, {posterior} posterior, {bound}"
        at(name)
        keys = jax.random.split(jax.random.clone(key), 3)  # the same for all
        init_key, run_key, key_of_numbers = keys
        model = make_model(init_key, prior, posterior, 2, images)
        model = jax.jit(partial(trained, BOUNDS[bound], epochs=epochs))(
            model, images=images, key=run_key
        )
        numbers = measured(model, key_of_numbers, test)
        print(f"  {name}: {numbers}", flush=True)
        shipped.append({"bound": bound} | packed(model, posterior) | numbers)
    return shipped


def pairs(digits: Digits, key: Array, at: At, *, epochs: int) -> list[dict[str, Any]]:
    """Step 1: the same network as an autoencoder and as a VAE, with 2 latents and with 8."""
    images = jnp.asarray(digits.train, float)
    shipped = []
    for num_latents, name in PAIRS:
        at(f"{name} of {num_latents} latents")
        both = jax.random.fold_in(jax.random.clone(key), num_latents)  # the same for both
        init_key, run_key = jax.random.split(both)
        model = make_model(init_key, "normal", "diagonal", num_latents, images)
        objective = autoencoder if name == "autoencoder" else jaxvae.elbo
        model = jax.jit(partial(trained, objective, epochs=epochs))(
            model, images=images, key=run_key
        )
        shipped.append({"name": name} | packed(model, "diagonal"))
    return shipped


def sweep(digits: Digits, key: Array, at: At, *, epochs: int) -> list[dict[str, Any]]:
    """Step 7: eight latents at several beta, one program; rate and distortion of test images."""
    images, test = jnp.asarray(digits.train, float), jnp.asarray(digits.test, float)
    init_key, run_key, measure_key = jax.random.split(key, 3)
    start = make_model(init_key, "normal", "diagonal", 8, images)

    @jax.jit
    @jax.vmap
    def run(beta: Array) -> Any:
        model = trained(jaxvae.elbo, start, images, run_key, epochs, beta=beta)
        keys = jax.random.split(measure_key, 20)
        terms = jax.vmap(lambda k: jaxvae.batched(jaxvae.elbo)(model, k, test)[1])(keys)
        return model, terms.rate.mean(), terms.distortion.mean()

    at(f"{len(BETAS)} betas at once")
    models, rates, distortions = run(jnp.array(BETAS))
    return [
        {"beta": beta, "rate": float(rates[i]), "distortion": float(distortions[i])}
        | packed(jax.tree.map(lambda leaf, i=i: leaf[i], models), "diagonal")
        for i, beta in enumerate(BETAS)
    ]


def spectrum(digits: Digits) -> dict[str, Any]:
    """The digits' mean, their covariance's eigenvalues, all, and its first eigenvectors."""
    mean = digits.all.mean(axis=0)
    r = digits.all - mean
    values, vectors = np.linalg.eigh(r.T @ r / len(r))
    vectors = vectors[:, ::-1][:, :DIRECTIONS]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(DIRECTIONS)])
    return {
        "mean": as_text(mean, np.float32),
        "values": as_text(np.maximum(values[::-1], 0.0), np.float32),
        "vectors": as_text(vectors, np.float32),
    }


def packed(model: Any, posterior: str) -> dict[str, Any]:
    """A model's weights, layer by layer, [in, out] row by row, and what they are weights of."""
    prior, leaves = "normal", []
    if isinstance(model, MixtureVAE):
        prior, leaves = "mixture", [model.logits, model.loc, model.log_scale]
    if isinstance(model, jaxvae.VampVAE):
        prior, leaves = "vamp", [model.pseudo_inputs]
    encode: Any = model.encode
    decode: Any = model.decode
    return {
        "prior": prior,
        "posterior": posterior,
        "encode": network_as_text(encode.network),
        "decode": network_as_text(decode.network),
        "prior_leaves": as_text(flat(leaves), np.float16),
    }


def network_as_text(network: Any) -> dict[str, Any]:
    weights = [w[...] for layer in network.layers for w in (layer.kernel, layer.bias)]
    sizes = [len(weights[0]), *(len(bias) for bias in weights[1::2])]
    return {"sizes": sizes, "weights": as_text(flat(weights), np.float16)}


def flat(leaves: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.asarray(leaf).reshape(-1) for leaf in leaves)])


def as_text(array: Any, dtype: Any) -> str:
    return base64.b64encode(np.asarray(array).astype(dtype).tobytes()).decode()
