"""What the main job trains where methods are chosen by name, and which it refuses together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.compose import PARTNERS, Composed, compose
from experiments.common.config import Config, Refused, by_name, flag
from experiments.common.evaluate import scored, whole
from experiments.common.methods import Row, Unsuited, find
from jaxvae import nn

CLASSES = 10  # components of mixtures, outcomes of a choice
EXAMPLES = 50  # training images that a VampPrior begins with
MIXTURES = "mixture-of-them-grey", "mixture-of-them-rgb-coupled"
BYTES = "256-values", "discretized-logistic", *MIXTURES
EVALUATED_APART = ("posterior/semi-amortized",)  # rows whose q is not the model's own
TRIES = 4  # draws of the latents of one image, of which none may leave a support


def rows_of(c: Config) -> dict[str, Row]:
    rows = {group: find(group, name) for group, name in by_name(c).items()}
    return rows | ({"bound": find("bound", "iwae")} if c.bound == "iwae" else {})


def takes_bytes(c: Config) -> bool:
    """Whether the likelihood is of bytes as they are stored."""
    name = by_name(c).get("likelihood")
    return name is not None and find("likelihood", name).name in BYTES


def examples_of(transform: Any, images: Any) -> jax.Array:
    """EXAMPLES of the images as the model sees them, as floats."""
    rows = jnp.arange(EXAMPLES) % len(images)
    keys = jax.random.split(jax.random.key(0), EXAMPLES)
    return jax.vmap(transform)(keys, jnp.asarray(images)[rows]).astype(float)


def make(c: Config, shape: tuple[int, ...], rngs: nnx.Rngs, images: Any, rows: int) -> Composed:
    """Model and objective; `images` in [0, 1], or bytes, are EXAMPLES of those of so many rows."""
    networks = {"mlp": (nn.MLP, nn.MLP), "conv": (nn.ConvEncoder, nn.ConvDecoder)}[c.network]
    encoder, decoder = (partial(network, hidden=(c.hidden,)) for network in networks)
    posterior = nn.MultivariateNormalHead() if c.posterior == "full" else nn.NormalHead()
    likelihood = nn.BernoulliHead() if c.likelihood == "bernoulli" else nn.NormalHead(c.sigma)
    if takes_bytes(c):
        encoder = partial(nn.Rescaled, encoder)
    rows_chosen = rows_of(c)
    if any(row.path in EVALUATED_APART for row in rows_chosen.values()):
        raise Refused(
            f"--posterior {c.posterior} goes on from where the encoder stops, and what is measured "
            "here is the encoder's; run python -m experiments.zoo --only posterior/semi-amortized"
        )
    try:
        model, objective = compose(
            rngs, rows_chosen, d=c.latent, K=CLASSES, N=rows, shape=shape, image=shape,
            examples=images, encoder=encoder, decoder=decoder, head=posterior,
            likelihood=likelihood,
        )  # fmt: skip
    except (Unsuited, TypeError, ValueError, NotImplementedError) as error:
        raise refused(c, error) from None
    if c.bound == "iwae":
        objective = partial(objective, num_samples=c.num_samples)
    for part in (whole(model).encode, whole(model).decode):
        if isinstance(part, nn.Conditional):
            part.dtype = jnp.dtype(c.dtype)
    return Composed(model, objective)


def refused(c: Config, error: Exception) -> Refused:
    """Which methods don't go together, why, and what they go with."""
    if isinstance(error, Unsuited):
        return Refused(str(error))
    chosen = {g: find(g, name) for g, name in by_name(c).items()}
    flags = " ".join(f"--{flag(group)} {getattr(c, group)}" for group in chosen)
    partners = {row.path: PARTNERS[row.path] for row in chosen.values() if row.path in PARTNERS}
    with_them = "".join(
        f"; {path.split('/')[1]} goes with " + " ".join(f"--{g} {n}" for g, n in of.items())
        for path, of in partners.items()
    )
    return Refused(f"{flags}: {' '.join(str(error).split())}{with_them}")


def tried(c: Config, step: Any, state: Any, images: Any, transform: Any, hyper: Any) -> None:
    """Raise Refused where an image can't be scored or a step can't be made."""
    step_key, x_key, *keys = jax.random.split(jax.random.key(0), TRIES + 2)
    numbers = {name: of(0) if callable(of) else of for name, of in hyper.items()}
    try:
        jax.eval_shape(partial(step, **numbers), state, step_key, images[: c.batch])
        x = transform(x_key, images[0])
        for key in keys:  # concrete, so that what leaves a support is named
            scored(whole(state.model), key, x)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise refused(c, error) from None
