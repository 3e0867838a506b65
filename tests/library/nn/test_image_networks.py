"""Networks of colour images: diffusers' numbers (`diffusers_autoencoders.py`), and their parts."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import jaxvae as jv
from jaxvae import nn
from jaxvae.models.quantization import VQVAE, init_codebook
from tests.common import close

IMAGE = (8, 12, 3)
FIXTURE = Path(__file__).parent / "diffusers_autoencoders.safetensors"


@cache
def there(model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of diffusers the state dict, and what it was given and made, channels last."""
    arrays = {name: a for name, a in load_file(FIXTURE).items() if name.startswith(model)}
    arrays = {name.removeprefix(f"{model}/"): a for name, a in arrays.items()}
    state = {n.removeprefix("state/"): a for n, a in arrays.items() if n.startswith("state/")}
    given = {n: a for n, a in arrays.items() if not n.startswith("state/")}
    last = {n: np.moveaxis(a[0], 0, -1) if a.ndim == 4 else a for n, a in given.items()}
    return state, last


def wide(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)


def kl_model(**options: Any) -> jv.VAE:
    sizes: Any = {"channels": (4, 8, 12), "depth": 1, "groups": 2, **options}
    encoder = partial(nn.ResidualEncoder, pointwise=4, **sizes)
    decoder = partial(nn.ResidualDecoder, pointwise=2, **sizes)
    rngs = nnx.Rngs(0)
    return jv.VAE(
        nn.Conditional(encoder, nn.LogVarianceHead(), IMAGE, (2, 3, 2), rngs=rngs),
        nn.Conditional(decoder, nn.NormalHead(1.0), (2, 3, 2), IMAGE, rngs=rngs),
        jv.StandardNormal((2, 3, 2)),
    )


def vq_model(codes) -> VQVAE:
    sizes: Any = {"channels": (4, 8), "groups": 2, "attention": (1,), "pointwise": 3}
    decoder, rngs = partial(nn.ResidualDecoder, **sizes), nnx.Rngs(0)
    return VQVAE(
        encoder=nn.ResidualEncoder(IMAGE, (24, 2), **sizes, rngs=rngs),
        quantizer=init_codebook(codes),
        decoder=nn.Conditional(decoder, nn.NormalHead(1.0), (24, 2), IMAGE, rngs=rngs),
        prior=jv.Constant(jv.Categorical(jnp.zeros((24, 6)))),
    )


def test_the_kl_autoencoder_is_that_of_diffusers(x64):
    """Of an image that is not square, halved twice: to ten digits, in float64."""
    state, given = there("kl")
    model = wide(nn.from_torch(state, kl_model(), nn.diffusers_name))
    q, p = jax.jit(lambda m, x, z: (m.encode(x), m.decode(z)))(model, given["x"], given["code"])
    loc, log_variance = np.split(given["encoded"], 2, axis=-1)
    assert close(q.loc, loc)
    assert close(q.scale, np.exp(0.5 * log_variance))
    assert close(p.mean(), given["decoded"])


def test_the_vq_autoencoder_is_that_of_diffusers(x64):
    """With attention at a stage, and a 1x1 convolution between widths that differ."""
    state, given = there("vq")
    codes = jnp.asarray(state["quantize.embedding.weight"], float)
    rest = {name: array for name, array in state.items() if "quantize" not in name}
    model = wide(nn.from_torch(rest, vq_model(codes), nn.diffusers_name))

    @jax.jit
    def found(model, x):
        vectors = model.encoder(x)
        indices = jax.vmap(model.quantizer)(vectors).indices
        return vectors, indices, model.decode(indices).mean()

    vectors, indices, image = found(model, given["x"])
    assert close(vectors, given["encoded"].reshape(24, 2))
    assert close(indices, given["indices"].reshape(24))
    assert len(set(given["indices"].ravel().tolist())) > 2
    assert close(image, given["decoded"])
