"""Weights from PyTorch: its forward pass, written in NumPy, gives the ELBO of the model here.

And its single layers, as PyTorch itself ran them (`torch_layers.py`), give the same.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxvae
from jaxvae import nn

RNG = np.random.default_rng(0)


def weights(**shapes):
    return {name.replace("__", "."): 0.3 * RNG.normal(size=s) for name, s in shapes.items()}


# PyTorch's layers, of one example, by their documentation's formulas.


def linear(state, name, x):
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def conv(state, name, x, stride=2, padding=1):
    """out[m, i, j] = bias[m] + sum_nab weight[m, n, a, b] x[n, stride i + a - padding, ...]"""
    weight, x = state[f"{name}.weight"], np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2))
    m, _, k, _ = weight.shape
    size = [(n - k) // stride + 1 for n in x.shape[1:]]
    out = np.empty((m, *size))
    for i, j in np.ndindex(*size):
        patch = x[:, stride * i : stride * i + k, stride * j : stride * j + k]
        out[:, i, j] = np.tensordot(weight, patch, 3)
    return out + state[f"{name}.bias"][:, None, None]


def conv_transpose(state, name, x, stride=2, padding=1):
    """Every input pixel adds weight[n, m, a, b] x[n, i, j] at (stride i + a, stride j + b)."""
    weight = state[f"{name}.weight"]
    (_, h, w), (_, m, k, _) = x.shape, weight.shape
    out = np.zeros((m, stride * (h - 1) + k, stride * (w - 1) + k))
    for i, j in np.ndindex(h, w):
        out[:, stride * i : stride * i + k, stride * j : stride * j + k] += np.tensordot(
            x[:, i, j], weight, 1
        )
    cut = slice(padding, -padding)
    return out[:, cut, cut] + state[f"{name}.bias"][:, None, None]


def relu(x):
    return np.maximum(x, 0)


def elbo(x, mu, log_variance, decode, z):
    """log p(x|z) of a Bernoulli, log p(z) - log q(z|x), in float64."""
    logits = decode(z)
    log_p = np.sum(x * logits - np.logaddexp(0, logits))
    log_q = -0.5 * np.sum((z - mu) ** 2 / np.exp(log_variance) + log_variance)
    return log_p - 0.5 * np.sum(z**2) - log_q


def same_elbo(model, x, encode, decode):
    """At one z; x has its channels last here and first there."""
    z = model.encode(x).sample(jax.random.key(0))
    q = model.encode(x)
    here = model.decode(z).log_prob(x) + model.prior.log_prob(z) - q.log_prob(z)
    picture = np.asarray(x, np.float64)
    picture = picture.transpose(2, 0, 1) if picture.ndim == 3 else picture
    mu, log_variance = encode(picture)
    there = elbo(picture, mu, log_variance, decode, np.asarray(z, np.float64))
    np.testing.assert_allclose(here, there, rtol=1e-5)


@pytest.mark.thorough
def test_a_dense_vae_has_its_elbo_here():
    state = weights(
        fc1__weight=(5, 6), fc1__bias=(5,), fc_mu__weight=(2, 5), fc_mu__bias=(2,),
        fc_log_variance__weight=(2, 5), fc_log_variance__bias=(2,),
        decoder__0__weight=(5, 2), decoder__0__bias=(5,), decoder__2__weight=(6, 5),
        decoder__2__bias=(6,),
    )  # fmt: skip
    network: Any = partial(nn.MLP, hidden=(5,))
    rngs = nnx.Rngs(0)
    model = jaxvae.VAE(
        nn.Conditional(network, nn.LogVarianceHead(), (6,), (2,), rngs=rngs),
        nn.Conditional(network, nn.BernoulliHead(), (2,), (6,), rngs=rngs),
        jaxvae.StandardNormal((2,)),
    )
    names = {
        "encode.network.layers[0]": "fc1",
        "encode.network.layers[1]": ("fc_mu", "fc_log_variance"),
        "decode.network.layers[0]": "decoder.0",
        "decode.network.layers[1]": "decoder.2",
    }
    model = nn.from_torch(state, model, names)

    def encode(x):
        h = relu(linear(state, "fc1", x))
        return linear(state, "fc_mu", h), linear(state, "fc_log_variance", h)

    def decode(z):
        return linear(state, "decoder.2", relu(linear(state, "decoder.0", z)))

    same_elbo(model, jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]), encode, decode)


@pytest.mark.thorough
def test_a_convolutional_vae_has_its_elbo_here():
    """Three channels and sizes that differ, so that no two axes can be taken for one another."""
    state = weights(
        e1__weight=(4, 3, 4, 4), e1__bias=(4,), e2__weight=(5, 4, 4, 4), e2__bias=(5,),
        mu__weight=(2, 30), mu__bias=(2,), var__weight=(2, 30), var__bias=(2,),
        up__weight=(30, 2), up__bias=(30,), d1__weight=(5, 4, 4, 4), d1__bias=(4,),
        d2__weight=(4, 3, 4, 4), d2__bias=(3,),
    )  # fmt: skip
    image, rngs = (8, 12, 3), nnx.Rngs(0)
    down: Any = partial(nn.ConvEncoder, channels=(4, 5), hidden=())
    up: Any = partial(nn.ConvDecoder, channels=(5, 4), hidden=())
    model = jaxvae.VAE(
        nn.Conditional(down, nn.LogVarianceHead(), image, (2,), rngs=rngs),
        nn.Conditional(up, nn.BernoulliHead(), (2,), image, rngs=rngs),
        jaxvae.StandardNormal((2,)),
    )
    names = {
        "encode.network.convolutions[0]": "e1",
        "encode.network.convolutions[1]": "e2",
        "encode.network.dense.layers[0]": ("mu", "var"),
        "decode.network.dense.layers[0]": "up",
        "decode.network.convolutions[0]": "d1",
        "decode.network.convolutions[1]": "d2",
    }
    model = nn.from_torch(state, model, names)

    def encode(x):
        h = relu(conv(state, "e2", relu(conv(state, "e1", x)))).ravel()
        return linear(state, "mu", h), linear(state, "var", h)

    def decode(z):
        h = relu(linear(state, "up", z).reshape(5, 2, 3))
        return conv_transpose(state, "d2", relu(conv_transpose(state, "d1", h)))

    same_elbo(model, jnp.asarray(RNG.uniform(size=image).round(), jnp.float32), encode, decode)


def test_a_batch_norm_brings_its_statistics():
    state = weights(norm__weight=(3,), norm__bias=(3,), norm__running_mean=(3,))
    state |= {"norm.running_var": np.array([0.5, 1.0, 2.0]), "norm.num_batches_tracked": 7}
    norm = nn.from_torch({**state}, [nnx.BatchNorm(3, rngs=nnx.Rngs(0))], {"[0]": "norm"})[0]
    norm.eval()
    xs = RNG.normal(size=(4, 3)).astype(np.float32)
    scaled = (xs - state["norm.running_mean"]) / np.sqrt(state["norm.running_var"] + 1e-5)
    expected = scaled * state["norm.weight"] + state["norm.bias"]
    np.testing.assert_allclose(norm(jnp.asarray(xs)), expected, rtol=1e-5, atol=1e-6)


LAYERS = json.loads((Path(__file__).parent / "torch_layers.json").read_text())  # by PyTorch itself
PADDED = ((1, 2), (1, 2))  # k - 1 - padding, and output_padding at the end


def layers(*made):
    return nnx.Sequential(*[make(rngs=nnx.Rngs(0)) for make in made])


def normed(make, **options):
    return lambda rngs: nnx.WeightNorm(make(rngs=rngs), rngs=rngs, **options)


def transposed(*args, **options):
    return partial(nnx.ConvTranspose, *args, **options)


linear_64, conv_23 = partial(nnx.Linear, 6, 4), partial(nnx.Conv, 2, 3, (3, 3), padding="VALID")
up_33 = partial(transposed, 2, 3, (3, 3))
SAME_LAYERS = {
    "linear, norms": [
        (
            partial(nnx.Linear, 6, 8),
            partial(nnx.LayerNorm, 8, epsilon=1e-5),
            partial(nnx.Linear, 8, 8),
            partial(nnx.GroupNorm, 8, 2, epsilon=1e-5),
        )
    ],
    "no affine": [(partial(nnx.LayerNorm, 6, epsilon=1e-5, use_bias=False, use_scale=False),)],
    "embedding": [(partial(nnx.Embed, 5, 3),)],
    "conv": [(partial(nnx.Conv, 2, 3, (3, 2), strides=2, padding=1),)],
    "conv 1d": [(partial(nnx.Conv, 2, 3, (3,), padding="VALID"),)],
    "transposed": [
        (up_33(strides=(2, 2), padding=PADDED),),
        (up_33(strides=(2, 2), padding=PADDED, transpose_kernel=True),),
    ],
    "transposed, same": [
        (transposed(2, 3, (4, 4), strides=(2, 2)),),
        (lambda rngs: nn.Up(2, 3, (6, 8), rngs=rngs),),
    ],
    "transposed, not square": [(transposed(2, 3, (2, 3), padding="VALID"),)],
    "transposed 1d": [(transposed(2, 3, (4,), strides=(3,), padding="VALID"),)],
    "weight norm": [(linear_64,), (partial(nn.WeightNormed, 6, 4),)],
    "weight norm, old": [(linear_64,), (partial(nn.WeightNormed, 6, 4),)],
    "weight norm, one length": [
        (linear_64,),
        (partial(nn.WeightNormed, 6, 4),),
        (normed(linear_64, feature_axes=None),),
        (normed(linear_64, feature_axes=(0, 1)),),
    ],
    "weight norm, of inputs": [(linear_64,), (partial(nn.WeightNormed, 6, 4),)],
    "weight norm, conv": [(conv_23,), (normed(conv_23),)],
    "weight norm, transposed": [
        (up_33(padding="VALID"),),
        (normed(up_33(padding="VALID")),),
        (normed(up_33(padding="VALID", transpose_kernel=True)),),
    ],
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "made"), [(name, made) for name, all_ in SAME_LAYERS.items() for made in all_]
)
def test_a_layer_gives_what_pytorch_gives(name, made):
    state, x, y = LAYERS[name].values()
    network = layers(*made)
    names = {f"layers[{i}]": str(i) for i in range(len(made)) if f"{i}.bias" in state}
    names |= {"layers[0]": "0"} if state else {}
    network = nn.from_torch(arrays(state), network, names)
    x, y = jnp.asarray(x), jnp.asarray(y)
    if "conv" in name or "transposed" in name:
        x, y = jnp.moveaxis(x, 0, -1), jnp.moveaxis(y, 0, -1)
    for _ in range(2):  # a weight norm writes its kernel, which must stay what it is
        np.testing.assert_allclose(network(x), y, rtol=1e-5, atol=1e-5)


def arrays(state):
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


def test_a_gru_of_two_layers_and_directions_is_four_recurrent_networks(tmp_path):
    """With both biases, of which flax's cell has one; and what came over can be saved."""
    make: Any = partial(nn.Recurrent, width=2, rngs=nnx.Rngs(0))
    nets = [[make((5, n), (5, 2), reverse=r) for r in (False, True)] for n in (3, 4)]
    names, state = {}, {"eye.weight": np.eye(2), "eye.bias": np.zeros(2)}
    for layer, direction in np.ndindex(2, 2):
        path, module = f"[{layer}][{direction}]", f"rnn.l{layer}" + "_reverse" * direction
        names |= {f"{path}.cell": module, f"{path}.last.dense": "eye"}
    nets = nn.from_torch(arrays(LAYERS["gru"]["state"]) | state, nets, names)

    def both(nets):
        h = jnp.float32(LAYERS["gru"]["x"])
        for layer in nets:
            h = jnp.concatenate([net(h) for net in layer], axis=-1)
        return h

    np.testing.assert_allclose(jax.jit(both)(nets), LAYERS["gru"]["y"], rtol=1e-5, atol=1e-6)
    again, x = nn.load_model(nn.save_model(tmp_path / "net", nets[0][1])), jnp.ones((5, 3))
    np.testing.assert_array_equal(again(x), nets[0][1](x))


def test_a_gru_cell_and_a_gru_without_biases():
    for name, module in {"gru cell": "rnn", "gru, no bias": "rnn.l0"}.items():
        state, x, y = LAYERS[name].values()
        cell: Any = nnx.GRUCell(3, 2, rngs=nnx.Rngs(0))
        (cell,) = nn.from_torch(arrays(state), [cell], {"[0]": module})
        h = jnp.zeros(2)
        for row in np.atleast_2d(np.float32(x)):
            h = cell(h, row)[0]
        np.testing.assert_allclose(h, np.atleast_2d(y)[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [partial(nn.Up, size=(6, 8)), transposed(kernel_size=(4, 4))])
def test_transposed_layers_stand_side_by_side(make):
    """Along their outputs, which are PyTorch's second axis here."""
    weight, bias = RNG.normal(size=(2, 6, 4, 4)), RNG.normal(size=6)
    x = jnp.asarray(RNG.normal(size=(3, 4, 2)), jnp.float32)
    found = []
    for cuts in ({"a": slice(6)}, {"a": slice(2), "b": slice(2, 6)}):
        state = {f"{name}.weight": weight[:, cut] for name, cut in cuts.items()}
        state |= {f"{name}.bias": bias[cut] for name, cut in cuts.items()}
        (layer,) = nn.from_torch(state, [make(2, 6, rngs=nnx.Rngs(0))], {"[0]": tuple(cuts)})
        found.append(layer(x))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dense", [nnx.Linear, nn.WeightNormed])
def test_pixels_are_put_in_order_whatever_the_layer(dense):
    image, state = (2, 3, 2), weights(a__weight=(4, 12), a__bias=(4,))
    network = nn.MLP(image, (4,), hidden=(), dense=dense, rngs=nnx.Rngs(0))
    x = RNG.normal(size=image).astype(np.float32)
    expected = linear(state, "a", x.transpose(2, 0, 1).ravel())
    found = nn.from_torch(state, network, {"layers[0]": "a"})(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_pixels_are_put_in_order_for_residual_layers():
    weight, x = np.arange(24.0).reshape(2, 12), np.arange(12.0).reshape(3, 2, 2)  # c, h, w
    model = nn.ResidualMLP(
        (2, 2, 3), (2,), width=2, depth=0, norm=None, activation=jnp.abs, rngs=nnx.Rngs(0)
    )
    zeros = np.zeros(2)
    state = {"f.weight": weight, "f.bias": zeros, "g.weight": np.eye(2), "g.bias": zeros}
    loaded = nn.from_torch(state, model, {"first": "f", "last": "g"})
    found = loaded(jnp.asarray(x.transpose(1, 2, 0), jnp.float32))
    np.testing.assert_allclose(found, weight @ x.reshape(-1))


def test_a_weight_norm_without_scales_is_refused():
    network = layers(normed(linear_64, use_scale=False))
    with pytest.raises(ValueError, match=r"^from_torch: layers\[0\] is a WeightNorm with use_sc"):
        nn.from_torch(arrays(LAYERS["weight norm"]["state"]), network, {"layers[0]": "0"})


class Tensor:
    """What a tensor on a GPU does."""

    def __init__(self, value, where="cuda"):
        self.value, self.where = value, where

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.value, "cpu")

    def __array__(self, dtype=None, copy=None):
        if self.where != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return np.asarray(self.value, dtype)


NETWORK = nn.MLP((3,), (2,), hidden=(4,), rngs=nnx.Rngs(0))
STATE = weights(a__weight=(4, 3), a__bias=(4,), b__weight=(2, 4), b__bias=(2,))
NAMES = {"layers[0]": "a", "layers[1]": "b"}


def test_tensors_of_a_device_are_taken():
    tensors = {name: Tensor(value) for name, value in STATE.items()}
    np.testing.assert_array_equal(
        nn.from_torch(tensors, NETWORK, NAMES)(jnp.ones(3)),
        nn.from_torch(STATE, NETWORK, NAMES)(jnp.ones(3)),
    )


def without(name):
    return {n: value for n, value in STATE.items() if n != name}


@pytest.mark.parametrize(
    ("state", "names", "message"),
    [
        (STATE, NAMES | {"layers[2]": "a"}, r"names has 'layers\[2\]', which isn't a layer.*\[0\]"),
        (STATE, NAMES | {"layers[1]": "c"}, "state_dict has no 'c', which names gives.* a, b"),
        (STATE, {"layers[0]": "a"}, r"names has no 'layers\[1\]', a layer of the model"),
        (without("b.bias"), NAMES, r"state_dict has no 'b.bias', the bias of layers\[1\]"),
        (STATE | {"c.weight": STATE["b.weight"]}, NAMES, "state_dict has c.weight, which no layer"),
        (
            STATE,
            {"layers[0]": "b", "layers[1]": "a"},
            r"b.weight has shape \(2, 4\), expected a kernel",
        ),
        (STATE, NAMES | {"layers[1]": ("b", "a")}, r"b.weight has shape \(2, 4\), \(4, 3\)"),
        (STATE | {"a.bias": "x"}, NAMES, "a.bias is a str, expected an array"),
    ],
)
def test_what_does_not_fit_is_named_in_a_line(state, names, message):
    with pytest.raises(ValueError, match=f"^from_torch: {message}") as error:
        nn.from_torch(state, NETWORK, names)
    assert "\n" not in str(error.value)


def test_a_layer_that_is_not_known_does_not_stay_random():
    network = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.RMSNorm(2, rngs=nnx.Rngs(0)))
    weights = {"0.weight": np.ones((2, 2)), "0.bias": np.ones(2)}
    with pytest.raises(
        ValueError, match=r"layers\[1\].*a parameter of a layer that from_torch does"
    ):
        nn.from_torch(weights, network, {"layers[0]": "0"})


def test_what_comes_over_is_in_use():
    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    one, half = np.ones(2), np.full(2, 0.5)
    weights = {"0.weight": one, "0.bias": one, "0.running_mean": half, "0.running_var": one}
    layer = nn.from_torch(weights, nnx.Sequential(norm), {"layers[0]": "0"})
    x = np.array([[3.0, 4.0]], np.float32)
    found = [np.asarray(layer(x)) for _ in range(2)]  # the second as the first: nothing moved
    np.testing.assert_allclose(found, [x - 0.5 + 1.0] * 2, rtol=1e-4)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(3, 3, rngs=rngs)
        self.b = self.a


def test_layers_that_are_one_stay_one():
    state = {f"{name}.{of}": np.ones(shape) * value for name, value in (("a", 1.0), ("c", 2.0))
             for of, shape in (("weight", (3, 3)), ("bias", (3,)))}  # fmt: skip
    of_one = {name: value for name, value in state.items() if name[0] == "a"}
    found = nn.from_torch(of_one, Tied(nnx.Rngs(0)), {"a": "a", "b": "a"})
    assert found.a is found.b
    assert float(found.b.kernel[0, 0]) == 1.0
    with pytest.raises(
        ValueError, match="from_torch: a and b are one layer, and names has 'a' and"
    ):
        nn.from_torch(state, Tied(nnx.Rngs(0)), {"a": "a", "b": "c"})
