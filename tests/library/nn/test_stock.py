"""`make_vae`: what it chooses by the shape and the dtype of one example."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn


@pytest.mark.parametrize(
    ("x", "encoder", "likelihood"),
    [
        (np.zeros(5, np.float32), nn.MLP, jv.Normal),
        (np.zeros((4, 4, 1), np.float32), nn.ConvEncoder, jv.Normal),
        (np.zeros((4, 4, 3), np.uint8), nn.ConvEncoder, jv.distributions.DiscretizedLogistic),
    ],
    ids=["rows", "grey", "stored"],
)
def test_parts_follow_the_example(x, encoder, likelihood):
    def made():
        model: Any = nn.make_vae(x, latents=2, hidden=(4,), rngs=nnx.Rngs(0))
        net = model.encode.network
        assert isinstance(getattr(net, "network", net), encoder)
        p = jv.reconstruct(model, jax.random.key(0), x)
        assert isinstance(p, likelihood)
        bound, _ = jv.batched(jv.elbo)(model, jax.random.key(0), x[None])
        return bound, p.sample(jax.random.key(1))

    bound, draw = jax.eval_shape(made)
    assert (bound.shape, draw.shape, draw.dtype) == ((), x.shape, x.dtype)


def test_what_is_asked_for_is_taken():
    x = np.zeros((4, 4, 1), np.float32)
    model: Any = nn.make_vae(
        x,
        latents=3,
        convolutional=False,
        likelihood=nn.NormalHead(0.5),
        norm=nnx.BatchNorm,
        hidden=(4,),
        rngs=nnx.Rngs(0),
    )
    assert isinstance(model.encode.network, nn.MLP)
    assert model.decode.network.between[0].norm.num_features == 4
    optimizer = optax.sgd(0.1)
    state = jv.init_state(model, optimizer)
    state, metrics = jax.jit(jv.train_step(jv.elbo, optimizer))(
        state, jax.random.key(0), np.ones((2, 4, 4, 1), np.float32)
    )
    assert np.isfinite(metrics["loss"])


def test_the_decoder_mirrors_the_channels():
    """Few at full size, many where the image is small, in either network."""
    x = np.zeros((8, 8, 3), np.float32)

    def kernels():
        model: Any = nn.make_vae(x, channels=(2, 5, 7), hidden=(), rngs=nnx.Rngs(0))
        nets = model.encode.network, model.decode.network
        return [[layer.kernel.shape[2:] for layer in net.convolutions] for net in nets]

    down, up = kernels()
    assert down == [(3, 2), (2, 5), (5, 7)]
    assert up == [(7, 5), (5, 2), (2, 3)]


def test_what_it_can_not_choose_is_said():
    with pytest.raises(TypeError, match="x is an array of int32, expected floats or uint8"):
        nn.make_vae(jnp.zeros(3, jnp.int32), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x has shape \(3,\), expected \(height, width, channels"):
        nn.make_vae(jnp.zeros(3), convolutional=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 4}, r"got 'latent', .* latents, .* option of ConvEncoder, activation, chan"),
        (
            {"prior": None},
            r"got .prior., .* for another prior .* make_vae\(\.\.\.\)\._replace",
        ),
        ({"rngs": 0}, r"rngs is an int, expected flax's nnx.Rngs\(0\)"),
    ],
)
def test_an_argument_of_nobody_is_named(changes, message):
    with pytest.raises(TypeError, match=f"^make_vae: {message}"):
        nn.make_vae(jnp.zeros((8, 8, 1)), **{"rngs": nnx.Rngs(0)} | changes)


def test_a_network_made_for_all_rows_says_so():
    model = nn.make_vae(jnp.zeros((50, 3)), hidden=(4,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected \(50, 3\), which looks like a batch's; make"):
        model.encode(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"\(2, 50, 3\), expected \(50, 3\); .* use jax.vmap"):
        model.encode(jnp.zeros((2, 50, 3)))
    with pytest.raises(ValueError, match=r"has shape \(5, 3\), expected \(50, 3\)\n"):
        model.encode(jnp.zeros((5, 3)))
