"""bfloat16 in networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvae import nn
from jaxvae.nn import Down, InPrecision, Up, onednn
from jaxvae.nn.mixed_precision import in_dtype
from jaxvae.nn.modules import Module
from jaxvae.nn.residual import Convolution

IMAGES, SIDE = 64, 28


class Alone(Module):
    """A network of one layer."""

    def __init__(self, layer, in_shape, out_shape, *, rngs):
        self.layer, self.out_shape = layer(in_shape[-1], out_shape[-1], rngs=rngs), out_shape

    def __call__(self, x):
        return self.layer(x)


LAYERS = {
    "nnx.Linear": nnx.Linear,
    "nnx.Conv": partial(nnx.Conv, kernel_size=(3, 3)),
    "nnx.ConvTranspose": partial(nnx.ConvTranspose, kernel_size=(3, 3)),
    "Convolution": partial(Convolution, size=3),
    "Down": Down,
    "Up": partial(Up, size=(SIDE, SIDE)),
}


@pytest.fixture(params=["of the CPU", "of XLA"])
def products(request, monkeypatch):
    """Whose products of bfloat16 they are, if this CPU has any."""
    if request.param == "of XLA":
        monkeypatch.setattr(onednn, "rounds", lambda *_: False)
    return request.param


@pytest.mark.skipif(not (onednn.ready() and onednn.has_bfloat16()), reason="needs oneDNN, bfloat16")
@pytest.mark.parametrize("name", ["MLP", "ConvEncoder", "ConvDecoder", "ResidualEncoder"])
def test_all_products_are_rounded_where_onednn_makes_them(name):
    net = NETWORKS[name](rngs=nnx.Rngs(0))
    x = jnp.zeros(SHAPES[name])
    program = str(jax.make_jaxpr(partial(in_dtype, jnp.bfloat16))(net, x))
    kernels = sum(np.ndim(leaf) > 1 for leaf in jax.tree.leaves(net))
    assert program.count("rounded=True") == kernels
    assert "bf16" not in program


@pytest.mark.parametrize("name", LAYERS)
def test_slopes_of_a_bias_are_summed_in_float32(name, products):
    """Over 50,000 pixels: a sum in bfloat16 stops growing on the way."""
    given, out = {"Up": (14, 28), "Down": (56, 28)}.get(name, (28, 28))
    net = InPrecision(
        partial(Alone, LAYERS[name]), (given, given, 4), (out, out, 3), dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    xs = jnp.zeros((IMAGES, given, given, 4))
    slopes = jnp.asarray(rng.normal(0.1, 1.0, (IMAGES, out, out, 3)), jnp.bfloat16)

    @jax.jit
    def gradient(net, xs, slopes):
        return jax.grad(lambda net: jnp.vdot(jax.vmap(net)(xs), slopes.astype(jnp.float32)))(net)

    found = gradient(net, xs, slopes).network.layer.bias[...]
    exact = np.asarray(slopes, np.float64).sum((0, 1, 2))
    assert found.dtype == jnp.float32
    assert np.allclose(found, exact, rtol=2**-8)


IMAGE = (8, 8, 1)
NETWORKS = {
    "MLP": partial(nn.MLP, (6,), (3,), hidden=(8,)),
    "MLP, norm": partial(nn.MLP, (6,), (3,), hidden=(8,), norm=nnx.LayerNorm),
    "MLP, weights": partial(nn.MLP, (6,), (3,), hidden=(8,), dense=nn.WeightNormed),
    "ResidualMLP": partial(nn.ResidualMLP, (6,), (3,), width=8),
    "ConvEncoder": partial(nn.ConvEncoder, IMAGE, (3,), channels=(4, 4), hidden=(8,)),
    "ConvDecoder": partial(nn.ConvDecoder, (3,), IMAGE, channels=(4, 4), hidden=(8,)),
    "ResidualEncoder": partial(nn.ResidualEncoder, IMAGE, (4, 4, 3), channels=(8, 8), groups=2),
    "ResidualDecoder": partial(nn.ResidualDecoder, (4, 4, 3), IMAGE, channels=(8, 8), groups=2),
    "Transformer": partial(nn.Transformer, (5, 3), (4,), width=8, heads=2, depth=1),
    "Recurrent": partial(nn.Recurrent, (5, 3), (4,), width=8),
    "PixelCNN": partial(nn.PixelCNN, (4, 4), 3, width=8, depth=2),
    "CausalTransformer": partial(nn.CausalTransformer, 16, 3, width=8, depth=1),
}
SHAPES = {"MLP": (6,), "ConvDecoder": (3,), "ConvEncoder": IMAGE, "ResidualEncoder": IMAGE,
          "ResidualDecoder": (4, 4, 3), "Transformer": (5, 3), "Recurrent": (5, 3),
          "ResidualMLP": (6,)}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_many_rows_are_those_of_float32(name, products):
    """Of every leaf, and all examples pull the same way: a sum in bfloat16 would stop at 256."""
    net, rng = NETWORKS[name](rngs=nnx.Rngs(0)), np.random.default_rng(0)
    shape = SHAPES.get(name.partition(",")[0])
    xs = rng.normal(size=(2000, *shape)) if shape else rng.integers(3, size=(2000, 16))
    xs = jnp.asarray(xs, jnp.float32 if shape else int)
    out = jax.eval_shape(lambda net, x: net(x), net, xs[0])

    @partial(jax.jit, static_argnames="dtype")
    def gradient(net, xs, dtype):
        run = jax.vmap(lambda net, x: in_dtype(dtype, net, x), (None, 0))
        return jax.tree.leaves(jax.grad(lambda net: jnp.vdot(run(net, xs), slopes))(net))

    slopes = jnp.asarray(rng.normal(1.0, 0.5, (2000, *out.shape)), jnp.bfloat16).astype(out.dtype)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms take statistics in float32
        exact, found = (gradient(net, xs, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    whole = np.sqrt(sum(np.square(leaf).sum() for leaf in exact))
    for a, b in zip(exact, found, strict=True):
        assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(a) + 1e-3 * whole


@pytest.mark.parametrize("name", ["MLP", "ConvEncoder", "ResidualEncoder"])
def test_images_of_integers_are_those_of_floats(name, products):
    net = NETWORKS[name](rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).integers(0, 2, SHAPES[name])
    run = jax.jit(partial(in_dtype, jnp.bfloat16))
    with jax.numpy_dtype_promotion("standard"):
        expected = run(net, jnp.asarray(x, jnp.float32))
        for dtype in (np.int32, np.uint8, bool):
            assert np.array_equal(run(net, jnp.asarray(x, dtype)), expected), dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_inputs_of_another_width_are_an_error(dtype):
    """A handler would read on behind them."""
    for layer, shape in ((nnx.Linear, (5,)), (nnx.Linear, (2, 5)), (Down, (8, 8, 5))):
        with pytest.raises(TypeError, match=r"5"):
            in_dtype(dtype, layer(3, 4, rngs=nnx.Rngs(0)), jnp.ones(shape))
