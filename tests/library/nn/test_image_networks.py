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
from jaxvae.nn import onednn
from jaxvae.nn.convolutions import convolution_down
from jaxvae.nn.residual import convolution, convolution_products
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


@pytest.mark.thorough
def test_the_kl_autoencoder_is_that_of_diffusers(x64):
    """Of an image that is not square, halved twice: to ten digits, in float64."""
    state, given = there("kl")
    model = wide(nn.from_torch(state, kl_model(), nn.diffusers_name))
    q, p = jax.jit(lambda m, x, z: (m.encode(x), m.decode(z)))(model, given["x"], given["code"])
    loc, log_variance = np.split(given["encoded"], 2, axis=-1)
    assert close(q.loc, loc)
    assert close(q.scale, np.exp(0.5 * log_variance))
    assert close(p.mean(), given["decoded"])


@pytest.mark.thorough
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


TINY: Any = {"channels": (4, 8), "depth": 1, "groups": 2}
X = jnp.sin(jnp.arange(96.0)).reshape(4, 8, 3)


def tiny_encoder(**options):
    return nn.ResidualEncoder((4, 8, 3), (8, 2), **TINY, **options, rngs=nnx.Rngs(0))


def squares(network, x):
    return jnp.sum(jnp.square(network(x)))


@pytest.mark.thorough
def test_rematerialisation_changes_what_is_kept_and_no_number():
    programs, found = [], []
    for remat in (False, True):
        network = tiny_encoder(remat=remat)
        programs.append(str(jax.make_jaxpr(jax.grad(squares))(network, X)))
        found.append(jax.jit(jax.value_and_grad(squares))(network, X))
    assert [program.count("prevent_cse") > 0 for program in programs] == [False, True]
    for plain, again in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.allclose(plain, again, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_bfloat16_is_what_is_computed_in(monkeypatch):
    """Parameters and output stay as they are, and numbers agree to bfloat16's two digits."""
    monkeypatch.setattr(onednn, "rounds", lambda *_: False)
    in_half = partial(nn.InPrecision, partial(nn.ResidualEncoder, **TINY), dtype=jnp.bfloat16)
    network = in_half((4, 8, 3), (8, 2), rngs=nnx.Rngs(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(network)} == {"float32"}
    assert "bf16[4,8,4]" in str(jax.make_jaxpr(network)(X))
    half, whole = jax.jit(network)(X), jax.jit(tiny_encoder())(X)
    assert half.dtype == whole.dtype
    assert 1e-4 < np.max(np.abs(half - whole)) / np.max(np.abs(whole)) < 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_of_stride_2_is_that_of_flax(x64, size):
    """Both forms, of sides that are even and odd."""
    x = jnp.cos(jnp.arange(180.0)).reshape(10, 9, 2)
    layer: Any = nnx.Conv(2, 3, (size, size), strides=2, param_dtype=float, rngs=nnx.Rngs(0))
    for form in (convolution, convolution_products):
        assert close(form(x, layer.kernel[...], 2) + layer.bias[...].reshape(1, 1, -1), layer(x))
    ours = nn.Convolution(2, 3, size=size, stride=2, rngs=nnx.Rngs(0))
    ours.kernel, ours.bias = layer.kernel, layer.bias
    assert close(ours(x), layer(x))


def test_in_float32_it_is_the_same_where_onednn_computes_it():
    """Which pads by itself: a side of even length after the last pixel alone."""
    layer, x = nn.Convolution(2, 3, size=3, stride=2, rngs=nnx.Rngs(0)), jnp.cos(jnp.arange(180.0))
    x = x.reshape(10, 9, 2)
    assert close(layer(x), convolution(x, layer.kernel[...], 2))


def test_images_that_are_not_cut_evenly_are_refused_in_a_line():
    rngs, sizes = nnx.Rngs(0), {"channels": (4, 4, 4), "groups": 2}
    for network, shapes, message in (
        (nn.ResidualEncoder, ((6, 8, 3), (3, 2)), "expected a multiple of 4 in height and"),
        (nn.ResidualEncoder, ((8, 8, 3), (3, 2)), r"expected \(2, 2, 'd'\) or \(4, 'd'\)"),
        (nn.ResidualEncoder, ((8, 8), (4, 2)), r"expected \(height, width, channels\)"),
        (nn.ResidualDecoder, ((4, 4, 2), (8, 8, 3)), r"expected \(2, 2, 'd'\) or \(4, 'd'\)"),
        (nn.ResidualDecoder, ((2,), (8, 8, 3)), r"expected \(2, 2, 'd'\) or \(4, 'd'\)"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            network(*shapes, **sizes, rngs=rngs)
        assert str(error.value).startswith(network.__name__)
        assert "\n" not in str(error.value)


def test_names_are_of_a_model():
    with pytest.raises(ValueError, match="diffusers_name: path is 'stages"):
        nn.diffusers_name("stages[0].cells[0].norms[0].norm")


@pytest.mark.thorough
def test_a_patch_critic_by_hand(x64):
    """Strided convolutions, a norm before each activation but the first, slope 0.2, a last one."""
    critic: Any = wide(nn.PatchCritic((4, 8, 3), channels=(4, 6), groups=2, rngs=nnx.Rngs(0)))
    critic.norms[0].norm.scale[...] = jnp.linspace(0.5, 1.5, 6)
    critic.norms[0].norm.bias[...] = jnp.linspace(-1.0, 1.0, 6)
    leaky = lambda h: np.where(h > 0, h, 0.2 * h)

    def down(layer, h):
        return np.asarray(convolution_down(jnp.asarray(h), layer.kernel[...])) + layer.bias[...]

    first, second = critic.convolutions
    with jax.numpy_rank_promotion("allow"):
        h = down(second, leaky(down(first, np.asarray(X, float))))  # [1, 2, 6]
        groups = np.asarray(h).reshape(2, 2, 3)
        groups = groups - groups.mean((0, 2), keepdims=True)
        groups = groups / np.sqrt((groups**2).mean((0, 2), keepdims=True) + 1e-6)
        scaled = groups.reshape(1, 2, 6) * np.linspace(0.5, 1.5, 6) + np.linspace(-1.0, 1.0, 6)
        last = convolution(jnp.asarray(leaky(scaled)), critic.last.kernel[...])
        expected = last[..., 0] + critic.last.bias[...]
    assert close(critic(jnp.asarray(X, float)), expected)
