"""The reference networks: plain pytrees, with convolutions that equal flax's and jax.lax's own."""

import pickle
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.tree_util import Partial
from scipy.stats import nbinom, norm

from jaxvae import (
    VAE,
    Bernoulli,
    Laplace,
    LowRankNormal,
    MultivariateNormal,
    Normal,
    StandardNormal,
    elbo,
    init_state,
    train_step,
)
from jaxvae.nn import (
    MLP,
    BernoulliHead,
    Concatenated,
    Conditional,
    ConvDecoder,
    ConvEncoder,
    CouplingFlow,
    Down,
    FlowHead,
    GroupNorm,
    HeadOf,
    MaskedHead,
    MultivariateNormalHead,
    NormalHead,
    OneHotHead,
    Positive,
    ProductHead,
    Real,
    Recurrent,
    Rescaled,
    ResidualMLP,
    SharedDispersionHead,
    SharedScaleHead,
    Transformer,
    Up,
    WeightNormed,
    onednn,
    positive,
    residual,
)
from jaxvae.nn.convolutions import (
    convolution_down,
    convolution_up,
    products_down,
    products_up,
)
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import in_training, statistics
from tests.common import close

SIZES = [(28, 28), (7, 7), (5, 8), (1, 3)]
FEW = [pytest.param(size, marks=pytest.mark.slow if size[0] == size[1] else []) for size in SIZES]


def rngs(seed=0):
    return nnx.Rngs(seed)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.result_type(float))


CONVOLUTIONAL = (
    partial(ConvEncoder, channels=(2, 3), hidden=(4,), activation=jnp.tanh),
    partial(ConvDecoder, channels=(3, 2), hidden=(4,), activation=jnp.tanh),
)


def image_vae(seed=0, networks=CONVOLUTIONAL, head=None):
    """Images [6, 5, 1], latents [2]."""
    r, (encoder, decoder), shape = rngs(seed), networks, (6, 5, 1)
    return VAE(
        encode=Conditional(encoder, head or NormalHead(), shape, (2,), rngs=r),
        decode=Conditional(decoder, BernoulliHead(), (2,), shape, rngs=r),
        prior=StandardNormal((2,)),
    )


# any network library


@pytest.mark.thorough
def test_every_library_gives_one_number():
    # NNX, Linen, Equinox and a plain function with the same weights, through the ELBO
    @jax.jit
    def build():
        return [
            Conditional(partial(MLP, hidden=(7,), activation=jnp.tanh), head, a, b, rngs=rngs(i))
            for i, (head, a, b) in enumerate(
                [(NormalHead(), (5,), (2,)), (NormalHead(scale=0.5), (2,), (5,))]
            )
        ]

    encode, decode = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), build())
    weights = [
        [(layer.kernel[...], layer.bias[...]) for layer in c.network.layers]
        for c in (encode, decode)
    ]

    def plain(arrays, v):
        (w0, b0), (w1, b1) = arrays
        return jnp.tanh(v @ w0 + b0) @ w1 + b1

    class Linen(linen.Module):
        width: int

        @linen.compact
        def __call__(self, v):
            h = jnp.tanh(linen.Dense(7)(v))
            return linen.Dense(self.width)(h)

    def linen_apply(arrays):
        dense = [{"kernel": w, "bias": b} for w, b in arrays]
        variables = {"params": {"Dense_0": dense[0], "Dense_1": dense[1]}}
        return Partial(Linen(arrays[1][1].size).apply, variables)

    class Equinox(equinox.Module):
        layers: list

        def __init__(self, arrays):
            self.layers = [
                equinox.tree_at(
                    lambda layer: (layer.weight, layer.bias),
                    equinox.filter_eval_shape(equinox.nn.Linear, *w.shape, key=jax.random.key(0)),
                    (w.T, b),
                )
                for w, b in arrays
            ]

        def __call__(self, v):
            return self.layers[1](jnp.tanh(self.layers[0](v)))

    def gaussian(network, v):
        loc, raw = jnp.split(network(v), 2)
        return Normal(loc, positive(raw))

    def fixed(network, v):
        return Normal(network(v), 0.5)

    makers = [Equinox, linen_apply, lambda arrays: Partial(plain, arrays)]
    prior = StandardNormal((2,))
    models = [
        VAE(encode, decode, prior),
        *(
            VAE(Partial(gaussian, make(weights[0])), Partial(fixed, make(weights[1])), prior)
            for make in makers
        ),
    ]

    @jax.jit
    def objective(models, keys):
        bound = jax.value_and_grad(lambda m, key: elbo(m, key, normal(2, 5))[0])
        found = list(map(bound, models, keys))
        return jnp.stack([v for v, _ in found]), jnp.stack([optax.tree.norm(g) for _, g in found])

    values, norms = objective(models, [jax.random.key(1) for _ in models])
    assert np.allclose(values, values[0], rtol=1e-5)
    assert np.allclose(norms, norms[0], rtol=1e-4)


# plain pytrees


def test_state_is_parameters_alone():
    # Param, float, no stored keys: what jax.grad and optax take as they are
    for networks in (CONVOLUTIONAL, (MLP, MLP)):
        model = jax.eval_shape(partial(image_vae, networks=networks))
        for part in (model.encode, model.decode):
            state = nnx.state(part)
            leaves = jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
            assert leaves
            assert all(type(leaf) is nnx.Param for leaf in leaves)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(model))  # as of a Python number


def test_models_built_alike_share_a_treedef():
    # so that one can stand in for the other in scan, tree.map and a checkpoint
    for networks in (CONVOLUTIONAL, (MLP, MLP)):
        shapes = [jax.eval_shape(partial(image_vae, seed, networks)) for seed in (0, 1)]
        assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    build = jax.jit(image_vae)
    one, other, again = (build(jax.random.key(seed)) for seed in (0, 1, 0))
    assert not all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(again)))


@pytest.mark.thorough
def test_construction_is_vmapped_over_keys():
    # an ensemble: each member is the model of its own key
    def bound(key):
        return elbo(image_vae(key, (MLP, MLP)), jax.random.key(1), jnp.ones((6, 5, 1)))[0]

    keys = jax.random.split(jax.random.key(0), 3)
    models = jax.jit(jax.vmap(lambda key: image_vae(key, (MLP, MLP))))(keys)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(models))
    bounds = jax.jit(jax.vmap(lambda m: elbo(m, jax.random.key(1), jnp.ones((6, 5, 1)))[0]))(models)
    looped = [jax.jit(bound)(key) for key in jax.random.split(jax.random.key(0), 3)]
    assert np.allclose(bounds, looped, rtol=1e-5)
    assert len(np.unique(bounds)) == 3


# convolutions


def value_and_gradients(function, *args):
    """`function(*args)`, and the gradients in every argument of a random weighing of it."""

    def weighed(*args):
        y = function(*args)
        return jnp.sum(y * normal(3, *y.shape)), y

    argnums = tuple(range(len(args)))
    gradients, y = jax.jit(jax.grad(weighed, argnums, has_aux=True))(*args)
    return y, *gradients


def module_of(module):
    """A convolution as a function of (kernel, bias, x)."""
    treedef = jax.tree.structure(module)
    return lambda kernel, bias, x: jax.tree.unflatten(treedef, [bias, kernel])(x)


# on accelerators, on CPU from few channels and from more, to few and to more
FORMS = [("gpu", 3, 5), ("cpu", 3, 9), ("cpu", 9, 3)]


@pytest.mark.parametrize(("backend", "n", "m"), FORMS)
@pytest.mark.parametrize("size", FEW)
def test_down_is_a_strided_convolution(size, backend, n, m, x64, monkeypatch):
    # nnx.Conv with a 4x4 kernel, stride 2, SAME: values and every gradient
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    down, conv = jax.eval_shape(
        lambda: (
            Down(n, m, rngs=rngs()),
            nnx.Conv(n, m, (4, 4), strides=2, padding="SAME", param_dtype=jnp.float64, rngs=rngs()),
        )
    )
    args = normal(0, *down.kernel.shape), normal(1, m), normal(2, *size, n)
    ours, theirs = (value_and_gradients(module_of(module), *args) for module in (down, conv))
    assert ours[0].dtype == jnp.float64
    assert all(map(close, ours, theirs))


@pytest.mark.parametrize(("backend", "n", "m"), FORMS)
@pytest.mark.parametrize("size", FEW)
def test_up_is_a_transposed_convolution(size, backend, n, m, x64, monkeypatch):
    # jax.lax's, of stride 2, cropped at the end to an odd size: values and every gradient.
    # transpose_kernel flips the kernel and swaps its channels; ours is swapped beforehand
    def theirs(kernel, bias, x):
        y = jax.lax.conv_transpose(
            x[None], kernel.swapaxes(2, 3), (2, 2), [(2, 2), (2, 2)], transpose_kernel=True
        )
        return y[0, : size[0], : size[1]] + bias[None, None]

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    up = jax.eval_shape(lambda: Up(n, m, size, rngs=rngs()))
    x = normal(2, *(-(-s // 2) for s in size), n)
    args = normal(0, *up.kernel.shape), normal(1, m), x
    ours = value_and_gradients(module_of(up), *args)
    assert ours[0].shape == (*size, m)
    assert all(map(close, ours, value_and_gradients(theirs, *args)))


@pytest.mark.parametrize("size", SIZES)
def test_up_is_the_transpose_of_down(size, x64):
    # <down(x), y> = <x, up(y)> with one kernel, its channels swapped, and no bias; on odd sizes too
    down, up = jax.eval_shape(lambda: (Down(3, 5, rngs=rngs()), Up(5, 3, size, rngs=rngs())))
    kernel = normal(0, *down.kernel.shape)
    x = normal(1, *size, 3)
    y = normal(2, *(-(-n // 2) for n in size), 5)

    @jax.jit
    def products(kernel):
        of_x = module_of(down)(kernel, jnp.zeros(5), x)
        of_y = module_of(up)(kernel.swapaxes(2, 3), jnp.zeros(3), y)
        return jnp.sum(of_x * y), jnp.sum(x * of_y)

    assert close(*products(kernel))


def test_up_wants_the_size_it_was_made_for():
    # a larger input would be cropped to the size, silently
    up = jax.eval_shape(lambda: Up(3, 5, (7, 6), rngs=rngs()))
    with pytest.raises(ValueError, match=r"Up: input has shape \(5, 3, 3\), expected \(4, 3, 3\)"):
        jax.eval_shape(up, np.zeros((5, 3, 3), np.float32))


def test_convolutional_networks_want_images():
    # "not enough values to unpack", before
    with pytest.raises(ValueError, match=r"ConvEncoder: in_shape is \(8, 8\), expected \(height"):
        ConvEncoder((8, 8), (2,), rngs=rngs())
    with pytest.raises(ValueError, match=r"ConvDecoder: out_shape is \(8, 8\), expected"):
        ConvDecoder((2,), (8, 8), rngs=rngs())


def test_initial_scale():
    # unit variance in, within a factor 3 of it out: nothing vanishes or explodes with depth
    @jax.jit
    def of_unit(down_key, up_key, x, y):
        down = Down(32, 64, rngs=nnx.Rngs(down_key))
        up = Up(64, 32, (64, 64), rngs=nnx.Rngs(up_key))
        return [(module(v), module.bias[...]) for module, v in ((down, x), (up, y))]

    keys = jax.random.key(0), jax.random.key(1)
    for y, bias in of_unit(*keys, normal(4, 32, 32, 32), normal(4, 32, 32, 64)):
        assert 1 / 3 < np.var(np.asarray(y)[2:-2, 2:-2]) < 3
        assert not np.any(bias)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [(28, 28, 1), (32, 32, 3), (5, 8, 2), (1, 3, 1), (7, 9, 1)])
def test_shapes_of_convolutional_networks(size, depth):
    # any image size and depth comes back to itself, through ceil(n / 2^depth) in the middle
    channels = (3, 4, 2)[:depth]

    def encode(x):
        encoder = ConvEncoder(size, (6,), channels=channels, hidden=(5,), rngs=rngs())
        assert len(encoder.convolutions) == depth
        return encoder(x), encoder.dense.layers[0].kernel[...]

    def decode(z):
        decoder = ConvDecoder((2,), size, channels=channels, hidden=(5,), rngs=rngs())
        assert len(decoder.convolutions) == depth
        return decoder(z), decoder.dense.layers[-1].kernel[...]

    z, into = jax.eval_shape(encode, jax.ShapeDtypeStruct(size, jnp.float32))
    x, out_of = jax.eval_shape(decode, jax.ShapeDtypeStruct((2,), jnp.float32))
    pixels = prod(int(np.ceil(n / 2**depth)) for n in size[:2])
    assert (z.shape, x.shape) == ((6,), size)
    assert into.shape == (pixels * channels[-1], 5)
    assert out_of.shape == (5, pixels * channels[0])


@pytest.mark.thorough
def test_convolutional_networks_are_their_layers():
    # convolutions and dense layers with the activation between any two, and none at the end
    sizes = {"hidden": (6,), "activation": jnp.sin}

    @jax.jit
    def both(x, z):
        encoder = ConvEncoder((5, 8, 1), (2,), channels=(3, 4), **sizes, rngs=rngs())
        decoder = ConvDecoder((2,), (5, 8, 1), channels=(4, 3), **sizes, rngs=rngs())
        ours = encoder(x), decoder(z)
        for convolution in encoder.convolutions:
            x = jnp.sin(convolution(x))
        z = decoder.dense(z)
        for convolution in decoder.convolutions:
            z = convolution(jnp.sin(z))
        return ours, (encoder.dense(x), z)

    (into, out_of), theirs = both(normal(0, 5, 8, 1), normal(1, 2))
    assert np.allclose(into, theirs[0], atol=1e-5)
    assert np.allclose(out_of, theirs[1], atol=1e-5)


@pytest.mark.thorough
def test_gradients_reach_every_parameter():
    # of a convolutional model with a full-covariance posterior, end to end
    x = np.asarray(np.arange(30).reshape(6, 5, 1) % 2, np.float32)

    @jax.jit
    def bound():
        model = image_vae(head=MultivariateNormalHead())
        return jax.value_and_grad(lambda m: elbo(m, jax.random.key(1), x)[0])(model)

    value, gradient = bound()
    assert np.isfinite(value)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    raw = gradient.encode.network.dense.layers[-1].bias[...]  # mu [2], then L's triangle [3]
    assert np.all(np.asarray(raw) != 0)


# dense layers and heads


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_mlp_layers(hidden):
    # activation between layers and none at the end; depth 0 is affine; shapes are flattened
    mlp: Any = jax.eval_shape(
        lambda: MLP((2, 3), (4, 1), hidden=hidden, activation=jnp.sin, rngs=rngs())
    )
    leaves, treedef = jax.tree.flatten(mlp)
    mlp = jax.tree.unflatten(treedef, [normal(i, *v.shape) for i, v in enumerate(leaves)])
    assert [layer.kernel.shape for layer in mlp.layers] == list(
        zip((6, *hidden), (*hidden, 4), strict=True)
    )
    x = normal(9, 2, 3)
    h = np.ravel(x)
    for layer in mlp.layers:
        h = np.asarray(h) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        h = np.sin(h) if layer is not mlp.layers[-1] else h
    y = jax.jit(mlp)(x)
    assert y.shape == (4, 1)
    assert np.allclose(np.ravel(y), h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "shape", "raw", "kind"),
    [
        (NormalHead(), (3,), (6,), Normal),
        (NormalHead(), (4, 5, 3), (4, 5, 6), Normal),
        (NormalHead(scale=0.5), (4, 5, 3), (4, 5, 3), Normal),
        (BernoulliHead(), (4, 5, 1), (4, 5, 1), Bernoulli),
        (MultivariateNormalHead(), (1,), (2,), MultivariateNormal),
        (MultivariateNormalHead(), (4,), (14,), MultivariateNormal),
    ],
)
def test_heads(head, shape, raw, kind):
    # raw parameters in the stated shape make a distribution over events of the shape asked for,
    # from which finite draws of finite density come, for however large raw values
    assert head.raw_shape(shape) == raw

    @jax.jit
    def drawn(raw, key):
        d = head(raw)
        x = d.sample(key)
        return d, x, d.log_prob(x)

    for size in (1.0, 30.0):
        d, x, log_prob = drawn(np.float32(size) * normal(0, *raw), jax.random.key(1))
        assert isinstance(d, kind)
        assert d.shape == shape
        assert x.shape == shape
        assert np.all(np.isfinite(x))
        assert np.isfinite(log_prob)


def test_normal_head_reads_loc_then_scale():
    # the last axis: mu, then softplus^-1 sigma; a fixed sigma stays itself
    raw = np.array([[1.0, 2.0, 0.0, -100.0], [3.0, 4.0, 100.0, 1.0]], np.float32)
    d = jax.jit(NormalHead())(raw)
    assert d.loc.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    expected = np.log1p(np.exp(np.array([[0.0, -100.0], [100.0, 1.0]])))
    assert np.allclose(d.scale, expected, rtol=1e-5, atol=2e-6)
    assert np.min(d.scale) > 0
    assert NormalHead(scale=0.5)(jnp.ones(2)).scale == 0.5


def test_fixed_scale_never_trains():
    # it is no leaf of the network
    conditional = jax.eval_shape(
        lambda: Conditional(MLP, NormalHead(scale=0.5), (2,), (3,), rngs=rngs())
    )
    assert [leaf.ndim for leaf in jax.tree.leaves(conditional)] == [1, 2, 1, 2]


def test_multivariate_head_fills_a_triangle():
    # lower triangular, row by row, with a positive diagonal; whatever the raw values
    d = jax.jit(MultivariateNormalHead())(np.arange(9.0) - 5)
    assert d.loc.tolist() == [-5.0, -4.0, -3.0]
    tril = np.asarray(d.scale_tril)
    assert np.array_equal(tril, np.tril(tril))
    assert tril[[1, 2, 2], [0, 0, 1]].tolist() == [-1.0, 1.0, 2.0]
    assert np.allclose(np.diag(tril), np.log1p(np.exp([-2.0, 0.0, 3.0])), rtol=1e-5, atol=2e-6)


def test_heads_cut_what_a_network_gives(x64):
    """By hand: in the order of the parameters, rows first, and positive ones by softplus."""
    raw = normal(0, 20)
    low = jax.jit(HeadOf(LowRankNormal, (Real("n"), Real("n", 2), Positive("n"))))(raw)
    softplus = np.log1p(np.exp(raw))
    assert close(low.loc, raw[:5])
    assert close(low.factor, raw[5:15].reshape(5, 2))
    assert close(low.scale, softplus[15:] + 1e-6)
    pixels = normal(1, 2, 3, 8)  # of two channels, three numbers each and two for all
    head = HeadOf(Stacked, (Real(2), Real(2, "n"), Real("n")))
    assert head.raw_shape((2, 3, 2)) == (2, 3, 8)
    logits, loc, scale = jax.jit(head)(pixels)
    assert close(logits, pixels[..., :2])
    assert close(loc, pixels[..., 2:6].reshape(2, 3, 2, 2))
    assert close(scale, pixels[..., 6:])


class Stacked(NamedTuple):
    logits: Any
    loc: Any
    scale: Any


def test_columns_are_cut_one_after_the_other(x64):
    columns = (
        ("height", NormalHead(), (2,)),
        ("kind", OneHotHead(), (3,)),
        ("smokes", BernoulliHead(), (1,)),
    )
    head, raw = MaskedHead(ProductHead(columns)), normal(0, 8)
    assert head.raw_shape(()) == (8,)
    x = {"height": np.ones(2), "kind": np.eye(3)[1], "smokes": np.ones(1)}
    seen = {"height": np.array([True, False]), "kind": np.array(False), "smokes": np.ones(1) > 0}

    @jax.jit
    def both(raw):
        d = head(raw)
        return d.distribution.parts, d.log_prob((x, seen))

    parts, log_prob = both(raw)
    assert close(parts["height"].loc, raw[:2])
    assert close(parts["height"].scale, np.log1p(np.exp(raw[2:4])) + 1e-6)
    assert close(parts["kind"].logits, raw[4:7])
    assert close(parts["smokes"].logits, raw[7:])
    exact = norm.logpdf(1.0, raw[0], np.log1p(np.exp(raw[2])) + 1e-6) - np.log1p(np.exp(-raw[7]))
    assert close(log_prob, exact)


LEARNED = {
    "sigma": lambda: SharedScaleHead(0.5),
    "a sigma each": lambda: SharedScaleHead(jnp.full(3, 0.5)),
    "dispersion": lambda: SharedDispersionHead((3,)),
    "flow": lambda: FlowHead(NormalHead(), CouplingFlow(3, rngs=nnx.Rngs(1))),
}
WITHIN = {
    "masked": MaskedHead,
    "column": lambda head: ProductHead((("b", NormalHead(), (1,)), ("a", head, (3,)))),
    "masked column": lambda head: MaskedHead(ProductHead((("a", MaskedHead(head), (3,)),))),
}


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("name", LEARNED)
def test_what_a_head_learns_trains_within_another(name, within):
    shapes = lambda model: [*map(jnp.shape, jax.tree.leaves(functional(model)))]
    outer: Any = WITHIN[within]
    alone, whole = shapes(LEARNED[name]()), shapes(outer(LEARNED[name]()))
    assert alone
    assert sorted(whole) == sorted(alone)
    decode = Conditional(MLP, outer(LEARNED[name]()), (2,), (3,), rngs=nnx.Rngs(0))
    plain = Conditional(MLP, NormalHead(1.0), (2,), (3,), rngs=nnx.Rngs(0))
    assert len(shapes(decode)) == len(shapes(plain)) + len(alone)


class Wrong(nnx.Module):
    """Written for a batch."""

    def __init__(self, in_shape, out_shape, *, rngs):
        self.layer = nnx.Linear(in_shape[0], out_shape[0], rngs=rngs)

    def __call__(self, x):
        return self.layer(x.reshape(len(x), 3))


def test_what_a_users_network_was_given_is_told():
    encode = Conditional(Wrong, NormalHead(1.0), (3,), (2,), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError) as raised:
        encode(jnp.ones(3))
    assert raised.value.__notes__[0] == "Wrong was given one example, float32[3]"
    with pytest.raises(TypeError, match="MLP: input is a dict"):
        Conditional(MLP, NormalHead(1.0), (3,), (2,), rngs=nnx.Rngs(0))(
            {"a": jnp.ones(3), "b": "x"}
        )


def test_heads_without_parameters_are_values():
    columns = (("a", MaskedHead(NormalHead()), (2,)), ("b", BernoulliHead(), (1,)))
    for make in (lambda: MaskedHead(NormalHead()), lambda: ProductHead(columns)):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert MaskedHead(NormalHead()) != MaskedHead(BernoulliHead())


class Count(nnx.Variable):
    pass


class Counting(nnx.Module):
    def __init__(self, in_shape, out_shape, *, rngs):
        self.layer = nnx.Linear(in_shape[0], out_shape[0], rngs=rngs)
        self.count = Count(jnp.zeros(()))

    def __call__(self, x):
        self.count[...] = self.count[...] + 1.0
        return self.layer(x)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_what_a_network_keeps_stays_in_any_precision(dtype):
    encode = Conditional(Counting, NormalHead(1.0), (3,), (2,), dtype=dtype, rngs=nnx.Rngs(0))
    encode(jnp.ones(3))
    encode(jnp.ones(3))
    assert float(encode.network.count[...]) == 2.0


def test_whole_numbers_are_convolved_as_floats():
    """By every form: the one of this machine is one of them."""
    x, y = np.arange(64).reshape(8, 8, 1), np.arange(16).reshape(4, 4, 1)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 1, 1)), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for f in (convolution_down, products_down, residual.convolution):
            np.testing.assert_allclose(f(jnp.asarray(x), kernel), f(jnp.asarray(x, float), kernel))
        for f in (convolution_up, products_up):
            up = partial(f, kernel=kernel, size=(8, 8))
            np.testing.assert_allclose(up(jnp.asarray(y)), up(jnp.asarray(y, float)))
        network = Recurrent((5, 3), (4,), width=8, rngs=nnx.Rngs(0))
        for dtype in (jnp.int32, jnp.uint8, jnp.bfloat16):
            out = network(jnp.ones((5, 3), dtype))
            assert out.dtype == jnp.float32
            np.testing.assert_allclose(out, network(jnp.ones((5, 3))), rtol=1e-5)


@dataclass(frozen=True)
class Frozen:
    """A user's head that holds another where no optimiser looks."""

    head: Any

    def raw_shape(self, shape):
        return self.head.raw_shape(shape)

    def __call__(self, raw):
        return self.head(raw)


def test_what_a_head_hides_is_refused():
    decode = Conditional(MLP, Frozen(SharedScaleHead(0.5)), (2,), (3,), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"holds .*not as a leaf, so it would never train"):
        init_state(decode, optax.sgd(0.1))


def test_data_as_stored_are_rescaled_to_minus_one_and_one(x64):
    """And a value that is larger is told with who was given the largest."""
    make = partial(Rescaled, partial(MLP, hidden=()), max_value=16.0)
    shapes = jax.eval_shape(lambda: make((3,), (2,), rngs=rngs()))
    network: Any = jax.tree.map(lambda leaf: normal(0, *leaf.shape), shapes)
    x, layer = np.array([0, 12, 16], np.uint8), network.network.layers[0]
    assert close(
        jax.jit(network)(x), np.array([-1.0, 0.5, 1.0]) @ layer.kernel[...] + layer.bias[...]
    )
    with pytest.raises(ValueError, match=r"^nn.Rescaled: x holds 17 at \(0,\), .* 0..16.0, or ano"):
        network(np.array([17, 12, 16], np.uint8))


def test_a_shared_sigma_starts_where_it_is_told(x64):
    head, raw = SharedScaleHead(0.3), normal(0, 4, 4, 1)
    assert head.raw_shape((4, 4, 1)) == (4, 4, 1)
    density = jax.jit(lambda head: head(raw).log_prob(0.0 * raw))
    assert close(density(head), np.sum(norm.logpdf(0.0, raw, 0.3)))
    head.log_scale[...] = head.log_scale[...] + 1.0
    assert close(head(jnp.asarray(raw)).scale, 0.3 * np.e)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda: SharedScaleHead(0.0), "SharedScaleHead: scale is 0.0, expected more than 0"),
        (lambda: SharedScaleHead(jnp.array([0.1, -1.0])), "SharedScaleHead: scale is .* than 0"),
        (lambda: NormalHead(scale=-0.1), "NormalHead: scale is -0.1, expected at least 0"),
        (lambda: NormalHead(floor=-1.0), "NormalHead: floor is -1.0, expected more than 0"),
        (lambda: NormalHead(scale=np.nan), "NormalHead: scale is nan, expected at least 0"),
    ],
)
def test_a_sigma_below_0_is_refused(head, message):
    with pytest.raises(ValueError, match=message):
        head()


def test_a_dispersion_is_that_of_its_coordinate(x64):
    theta, raw, x = np.array([0.3, 2.0]), normal(0, 2), np.array([4.0, 0.0])
    head = SharedDispersionHead((2,))
    head.log_dispersion[...] = jnp.log(jnp.asarray(theta))
    d = head(jnp.asarray(raw))
    assert head.raw_shape((2,)) == (2,)
    assert close(d.mean(), np.exp(raw))
    # SciPy's p is the share of failures: theta / (theta + mean)
    assert close(d.log_prob(x), np.sum(nbinom.logpmf(x, theta, theta / (theta + np.exp(raw)))))


# errors


@pytest.mark.parametrize("network", [MLP, ConvEncoder])
def test_wrong_input_shape(network):
    # a batch, say, is refused by shape
    module = jax.eval_shape(lambda: network((4, 4, 1), (2,), rngs=rngs()))
    with pytest.raises(ValueError, match=r"input has shape \(7, 4, 4, 1\), expected \(4, 4, 1\)"):
        module(np.ones((7, 4, 4, 1)))


def test_wrong_latent_shape():
    # of the decoder too
    module = jax.eval_shape(lambda: ConvDecoder((2,), (4, 4, 1), rngs=rngs()))
    with pytest.raises(ValueError, match=r"input has shape \(3,\), expected \(2,\)"):
        module(np.ones(3))


def test_network_that_does_not_fit_its_head():
    # an output other than the head's raw shape is refused
    def network(in_shape, out_shape, *, rngs):
        return MLP(in_shape, (prod(out_shape) + 1,), rngs=rngs)

    conditional = jax.eval_shape(
        lambda: Conditional(network, BernoulliHead(), (2,), (3,), rngs=rngs())
    )
    with pytest.raises(AssertionError, match="what its head needs"):
        jax.eval_shape(lambda c, v: c(v), conditional, np.ones(2, np.float32))


@pytest.mark.parametrize(
    "networks", [(MLP, MLP), pytest.param((ConvEncoder, ConvDecoder), marks=pytest.mark.slow)]
)
def test_networks_compute_in_the_dtype_they_are_given(networks, monkeypatch):
    """bfloat16 products; parameters, bound and gradient stay float32 and are nearly the same."""
    monkeypatch.setattr(onednn, "rounds", lambda *_: False)

    def bound(dtype):
        rngs = nnx.Rngs(0)
        make = partial(Conditional, dtype=dtype, rngs=rngs)
        model = VAE(
            make(networks[0], NormalHead(), (8, 8, 1), (4,)),
            make(networks[1], NormalHead(0.3), (4,), (8, 8, 1)),
            StandardNormal((4,)),
        )
        x = np.random.default_rng(1).random((8, 8, 1), np.float32)
        return jax.value_and_grad(lambda m: elbo(m, jax.random.key(2), x)[0]), model

    @jax.jit
    def both():
        return [(model, *function(model)) for function, model in map(bound, (None, jnp.bfloat16))]

    (_, value, gradient), (same, other, rounded) = both()
    assert value.dtype == other.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((same, rounded))} == {jnp.dtype("float32")}
    assert value != other
    assert np.isclose(value, other, rtol=0.01)
    gradient, rounded = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (gradient, rounded)
    )
    assert np.linalg.norm(gradient - rounded) < 0.03 * np.linalg.norm(gradient)
    mixed = str(jax.make_jaxpr(lambda m: bound(jnp.bfloat16)[0](m))(same))
    products = [line for line in mixed.splitlines() if "dot_gen" in line]
    assert products
    assert all("bf16" in line for line in products)
    assert mixed.count("onednn_convolution") == mixed.count("rounded=True")


# norms, dropout, other layers


def numpy_norm(h, axes):
    centred = h - h.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-6)


@pytest.mark.thorough
def test_group_norm_is_numpys_of_one_example():
    image = np.asarray(normal(0, 3, 2, 6))
    found = GroupNorm(6, num_groups=2, rngs=rngs())(jnp.asarray(image))
    expected = numpy_norm(image.reshape(6, 2, 3), (0, 2)).reshape(3, 2, 6)
    assert np.allclose(found, expected, atol=1e-4)
    with pytest.raises(ValueError, match="num_groups is 4 of 6 channels, expected a divisor"):
        GroupNorm(6, rngs=rngs())


NORMED = {"norm": nnx.BatchNorm, "dropout": 0.2}
WITH_NORMS = {
    "mlp": partial(MLP, hidden=(4,), **NORMED),
    "residual": partial(ResidualMLP, width=4, depth=1, **NORMED),
    "weights": partial(MLP, hidden=(4,), dense=WeightNormed),
    "groups": partial(
        ConvEncoder, channels=(4,), hidden=(4,), norm=partial(GroupNorm, num_groups=2)
    ),
    "images": partial(ConvEncoder, channels=(4,), hidden=(4,), **NORMED),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", WITH_NORMS)
def test_networks_with_norms_train_and_are_pickled(name):
    """In both networks; statistics move, in use nothing is drawn, and a copy is the same."""
    decoder = ConvDecoder if name == "images" else MLP
    decoder = partial(
        decoder, hidden=(4,), **({"channels": (4,)} if name == "images" else {}), **NORMED
    )
    state = init_state(image_vae(0, (WITH_NORMS[name], decoder)), optax.sgd(0.1))
    step = jax.jit(train_step(elbo, optax.sgd(0.1)))
    xs = (normal(1, 4, 6, 5, 1) > 0).astype(jnp.float32)
    before = statistics(state.model)
    losses = []
    for _ in range(2):
        state, metrics = step(state, jax.random.key(0), xs)
        losses.append(metrics["loss"])
    assert np.isfinite(losses).all()
    for a, b in zip(*map(jax.tree.leaves, (before, statistics(state.model))), strict=True):
        assert np.any(a != b)
    again = pickle.loads(pickle.dumps(state.model))
    assert np.array_equal(again.encode(xs[0]).loc, state.model.encode(xs[0]).loc)


@pytest.mark.thorough
def test_batch_norm_of_an_image_is_of_a_channel_of_the_batch():
    net: Any = ConvEncoder((6, 5, 1), (2,), channels=(4,), norm=nnx.BatchNorm, rngs=rngs())
    xs = normal(1, 4, 6, 5, 1)
    h = np.asarray(jax.vmap(net.convolutions[0])(xs))
    pure: Any = in_training(functional(net), jax.random.key(0))
    found = jax.vmap(lambda x: pure.between[0].norm(pure.convolutions[0](x)), axis_name="batch")(xs)
    assert np.allclose(found, (h - h.mean((0, 1, 2))) / np.sqrt(h.var((0, 1, 2)) + 1e-5), atol=1e-4)


def test_a_residual_network_adds_to_what_it_has():
    net: Any = ResidualMLP((3,), (2,), width=4, depth=2, rngs=rngs())
    x, blocks = normal(0, 3), [net.blocks[i] for i in range(2)]
    h, relu = net.first(x), jax.nn.relu
    for i, block in enumerate(blocks):
        inside = block.layers[0](relu(net.between[i].norm(h)))
        h = h + block.layers[1](relu(block.between[0].norm(inside)))
    assert np.allclose(net(x), net.last(relu(net.between[2].norm(h))), atol=1e-6)


def test_the_columns_of_a_weight_norm_have_their_lengths():
    made: Any = WeightNormed(5, 3, rngs=rngs())
    lengths = jnp.array([1.0, 2.0, 3.0])
    longer = lambda path, leaf: lengths if "scales" in jax.tree_util.keystr(path) else leaf
    layer: Any = jax.tree_util.tree_map_with_path(longer, made)
    kernel = np.asarray(made.layer_instance.kernel[...])
    expected = kernel / np.linalg.norm(kernel, axis=0) * np.asarray(lengths)
    assert np.allclose(layer(jnp.eye(5)), expected, atol=1e-5)


SHAPES = [
    (lambda shape, **k: MLP(shape, (2,), **k), "MLP: in_shape"),
    (lambda shape, **k: MLP((2,), shape, **k), "MLP: out_shape"),
    (lambda shape, **k: ResidualMLP(shape, (2,), **k), "ResidualMLP: in_shape"),
    (lambda shape, **k: Conditional(MLP, BernoulliHead(), (2,), shape, **k), "Cond.*: event_shape"),
    (lambda shape, **k: Recurrent(shape, (2,), **k), "Recurrent: in_shape"),
    (lambda shape, **k: Transformer(shape, (2,), **k), "Transformer: in_shape"),
]


@pytest.mark.parametrize("shape", [(0, 3), (-1, 3), 3, (2.5, 3), [2, 3], "ab"])
@pytest.mark.parametrize(("make", "name"), SHAPES)
def test_a_shape_that_no_network_can_have_is_named(make, name, shape):
    with pytest.raises(ValueError, match=rf"^{name} is .*, expected a tuple of integers >= 1"):
        make(shape, rngs=rngs())


@pytest.mark.thorough
@pytest.mark.parametrize("network", [MLP, ResidualMLP])
def test_one_number_is_an_input_and_an_output(network):
    """Of shape (), without an axis, in NumPy's sense: as an axis of one."""
    x = jnp.array(0.3)
    assert network((), (), rngs=rngs())(x).shape == ()
    assert network((), (2,), rngs=rngs())(x) == pytest.approx(
        network((1,), (2,), rngs=rngs())(x[None])
    )


@pytest.mark.parametrize(
    "head", [NormalHead(), MultivariateNormalHead(), HeadOf(Laplace, (Real("n"), Positive("n")))]
)
def test_a_head_that_needs_an_axis_says_so(head):
    with pytest.raises(
        ValueError, match=r"Head.*an event of shape \(\) has no axis, expected \(1,\)"
    ):
        Conditional(MLP, head, (2,), (), rngs=rngs())


def test_arrays_side_by_side_are_one_input():
    network = MLP((7,), (2,), rngs=nnx.Rngs(0))
    a, b = jnp.arange(3.0), jnp.arange(4.0).reshape(2, 2)
    expected = network(jnp.concatenate([a, b.ravel()]))
    assert np.array_equal(Concatenated(network)((a, b)), expected)
    assert np.array_equal(Concatenated(network)({"a": a, "b": b}), expected)


def test_a_sigma_a_channel_is_one_for_all_pixels():
    head = SharedScaleHead(jnp.array([0.5, 1.0, 2.0]))
    x = np.arange(48.0, dtype=np.float32).reshape(4, 4, 3) / 48.0
    found = head(jnp.zeros((4, 4, 3))).log_prob(x)
    assert close(found, norm.logpdf(x, 0.0, [0.5, 1.0, 2.0]).sum())
