"""Convolutions by oneDNN against `lax.conv`, whose place they take: values and derivatives."""

import importlib.metadata
import subprocess
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import export

import jaxvae
from jaxvae.nn import ConvDecoder, ConvEncoder, onednn, onednn_handler
from jaxvae.nn.conditional import Conditional
from jaxvae.nn.convolutions import Down, Up, convolution_down, convolution_up
from jaxvae.nn.heads import NormalHead
from jaxvae.nn.networks import MLP
from jaxvae.nn.residual import Convolution, convolution

here = pytest.mark.skipif(not onednn.ready(), reason="needs the extra `onednn` and a C++ compiler")

down = partial(onednn.convolve, stride=2)
FORMS = {  # ours, lax's, shape of the input, shape of the kernel; odd sides, few and odd channels
    "down": (down, convolution_down, (7, 6, 3), (4, 4, 3, 5)),
    "down, 16 channels": (down, convolution_down, (8, 8, 16), (4, 4, 16, 8)),
    "up": (
        lambda x, k: onednn.convolve_transposed(x, k, (7, 5), stride=2),
        lambda x, k: convolution_up(x, k, (7, 5)),
        (4, 3, 5),
        (4, 4, 5, 3),
    ),
    "3x3": (partial(onednn.convolve, stride=1), convolution, (5, 4, 6), (3, 3, 6, 2)),
    "1x1": (partial(onednn.convolve, stride=1), convolution, (5, 4, 7), (1, 1, 7, 2)),
}


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def alike(a, b) -> bool:
    """To float32's rounding, beside the largest value."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.max(np.abs(x - y)) <= 3e-6 * np.max(np.abs(y)) for x, y in leaves)


def derivatives(form, x, kernel, kernels):
    """Of a batch in one call and one by one, of kernels in a row, and the second derivatives."""

    def loss(x, kernel):
        return jnp.sum(jnp.cos(0.1 * form(x, kernel)))

    def mean(x, kernel):
        return jnp.mean(jax.vmap(loss, (0, None))(x, kernel))

    both = (0, 1)
    gradient = jax.grad(mean, both)
    return (
        jax.value_and_grad(mean, both)(x, kernel),
        jax.vmap(jax.grad(loss, both), (0, None))(x, kernel),
        jax.vmap(gradient, (None, 0))(x, kernels),
        jax.vmap(jax.vmap(form, (0, None)), (None, 0), 1)(x, kernels),
        jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.cos(kernel))),
    )


FEW = [
    form if form in ("down", "up") else pytest.param(form, marks=pytest.mark.thorough)
    for form in FORMS
]


@pytest.mark.thorough
@here
@pytest.mark.parametrize("form", FEW)
def test_values_and_derivatives_are_those_of_lax(form):
    ours, theirs, *shapes = FORMS[form]
    x, kernel = normal(0, 3, *shapes[0]), normal(1, *shapes[1])
    kernels = normal(2, 2, *shapes[1])

    def everything(conv):
        along = lambda k, x: (k + 0.1 * jax.grad(lambda k: jnp.sum(conv(x, k)))(k), conv(x, k))
        return derivatives(conv, x, kernel, kernels), jax.lax.scan(along, kernel, x)

    assert alike(
        jax.jit(everything, static_argnums=0)(ours), jax.jit(everything, static_argnums=0)(theirs)
    )
    assert alike(ours(x[0], kernel), theirs(x[0], kernel))  # and eagerly


@pytest.mark.thorough
@here
def test_an_exported_program_needs_no_handler():
    ours, theirs, *shapes = FORMS["up"]
    x, kernel = normal(0, *shapes[0]), normal(1, *shapes[1])

    def loss(conv, x, kernel):
        return jnp.sum(jnp.cos(0.1 * conv(x, kernel)))

    program = export.export(jax.jit(jax.value_and_grad(partial(loss, ours), (0, 1))))(x, kernel)
    assert onednn.TARGET not in program.mlir_module()
    expected = jax.value_and_grad(partial(loss, theirs), (0, 1))(x, kernel)
    assert alike(program.call(x, kernel), expected)


def taken(layer, x) -> bool:
    return "onednn" in str(jax.make_jaxpr(lambda x: layer(x))(x))


@here
def test_layers_take_it_where_it_is_faster(monkeypatch):
    """Of strided and 3x3 kernels, not of 1x1; in float32, on a single CPU device."""
    rngs = nnx.Rngs(0)
    wide = Down(8, 4, rngs=rngs)
    x = jnp.ones((6, 6, 8))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert taken(wide, x)
    assert taken(Up(8, 1, (12, 12), rngs=rngs), x)
    assert taken(Convolution(8, 4, size=3, rngs=rngs), x)
    assert not taken(Convolution(8, 4, size=1, rngs=rngs), x)
    with jax.numpy_dtype_promotion("standard"):
        assert not taken(wide, x.astype(jnp.bfloat16))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert not taken(wide, x)


def called(function, *arguments) -> bool:
    return onednn.TARGET in jax.jit(function).lower(*arguments).as_text()


@here
def test_large_products_of_dense_layers_are_its_own(monkeypatch):
    """Of a batch, whatever the number of devices says of the program; and not small ones."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    net = Conditional(MLP, NormalHead(1.0), (300,), (5,), rngs=nnx.Rngs(0))
    large, xs = Conditional(MLP, NormalHead(1.0), (512,), (1024,), rngs=nnx.Rngs(0)), jnp.ones
    of = lambda net: jax.vmap(lambda x: net(x).mean())
    assert called(of(large), xs((512, 512)))
    assert not called(of(large), xs((64, 512)))
    assert not called(of(net), xs((256, 300)))
    program = str(jax.make_jaxpr(of(large))(xs((512, 512))))
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert str(jax.make_jaxpr(of(large))(xs((512, 512)))) == program
    assert not called(lambda x: of(large)(x), xs((512, 512)))


@pytest.mark.thorough
@here
@pytest.mark.parametrize("least", [0, 2**26], ids=["called", "plain"])
def test_dense_layers_have_the_derivatives_of_a_product(monkeypatch, least):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(onednn, "LARGE", least)
    x, kernel, kernels = normal(0, 5, 256), normal(1, 256, 128), normal(2, 2, 256, 128)

    def ours(x, kernel):
        layer = nnx.Linear(256, 128, use_bias=False, rngs=nnx.Rngs(0))
        layer.kernel[...] = kernel
        return onednn.dense(layer, x)

    given = x, kernel, kernels
    assert called(partial(derivatives, ours), *given) == (least == 0)
    assert "onednn" in str(jax.make_jaxpr(partial(derivatives, ours))(*given))
    found = jax.jit(partial(derivatives, ours))(*given)
    assert alike(found, partial(derivatives, jnp.dot)(*given))
    assert alike(ours(x[0], kernel), x[0] @ kernel)  # and eagerly


@here
def test_a_sweep_takes_one_point_at_a_time_of_what_it_computes(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    net = Conditional(MLP, NormalHead(1.0), (512,), (1024,), rngs=nnx.Rngs(0))

    def points(rows):
        def run(scale):
            return jnp.sum(jax.vmap(lambda x: net(x).mean())(jnp.full((rows, 512), scale)))

        return jaxvae.training.points_at_once(run, {"scale": 1.0}, 9, backend="cpu")

    assert (points(4), points(128)) == (4, 1)


@here
@pytest.mark.parametrize("channels", [1, 32])
def test_every_call_gives_the_same_bits(channels):
    """Whichever of XLA's threads computed which images of the sum over them."""
    x, y = normal(0, 128, 28, 28, channels), normal(1, 128, 14, 14, 32)
    kernel = normal(2, 4, 4, channels, 32)

    @jax.jit
    def gradient(kernel):
        return jax.grad(lambda k: jnp.sum(y * jax.vmap(down, (0, None))(x, k)))(kernel)

    assert len({np.asarray(gradient(kernel)).tobytes() for _ in range(30)}) == 1


@here
def test_a_run_goes_on_where_it_is_not_there(monkeypatch, tmp_path):
    """Of convolutions with a warning, as their program is another; of dense layers without."""
    images = normal(0, 32, 8, 8, 1)
    parts = {"conv": (ConvEncoder, ConvDecoder), "mlp": (MLP, MLP)}

    def run(name, epochs):
        make = partial(Conditional, rngs=nnx.Rngs(0))
        encoder, decoder = (partial(part, hidden=(512,)) for part in parts[name])
        model = jaxvae.VAE(
            make(encoder, NormalHead(), (8, 8, 1), (2,)),
            make(decoder, NormalHead(1.0), (2,), (8, 8, 1)),
            jaxvae.StandardNormal((2,)),
        )
        optimizer = optax.adam(1e-3)
        state, _ = jaxvae.fit(
            jaxvae.train_step(jaxvae.elbo, optimizer),
            jaxvae.init_state(model, optimizer),
            jax.random.key(1),
            images,
            epochs=epochs,
            batch_size=16,
            checkpoints=jaxvae.Checkpoints(tmp_path / name),
            progress=False,
        )
        return int(state.step)

    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert [run(name, 1) for name in parts] == [2, 2]
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.warns(UserWarning, match="begun with .* with oneDNN and goes on with"):
        assert run("conv", 2) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("mlp", 2) == 4


@pytest.mark.thorough
@here
@pytest.mark.skipif(not onednn.has_bfloat16(), reason="needs a CPU that multiplies bfloat16")
def test_dense_layers_take_it_in_bfloat16(monkeypatch):
    """As near to the exact product as XLA's, with sums in float32."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    head, rngs = NormalHead(1.0), nnx.Rngs(0)
    net = Conditional(MLP, head, (300,), (5,), dtype=jnp.bfloat16, rngs=rngs)
    plain = Conditional(MLP, head, (300,), (5,), rngs=nnx.Rngs(0))
    xs = normal(0, 3, 300)
    assert called(lambda x: net(x).mean(), xs[0])

    def loss(net):
        return jnp.sum(jax.vmap(lambda x: net(x).mean() ** 2)(xs))

    ours = jax.jit(jax.grad(loss))(net)
    monkeypatch.setattr(onednn, "knows", lambda *_: False)
    theirs, exact = jax.grad(lambda net: loss(net))(net), jax.grad(loss)(plain)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, theirs, exact)), strict=True):
        assert np.max(np.abs(a - c)) <= max(2 * np.max(np.abs(b - c)), 2**-8 * np.max(np.abs(c)))


@here
@pytest.mark.skipif(not onednn.has_bfloat16(), reason="needs a CPU that multiplies bfloat16")
@pytest.mark.thorough
@pytest.mark.parametrize("form", ["down, 16 channels", "up", "3x3"])
def test_convolutions_of_bfloat16_are_those_of_lax(form):
    """In value and both gradients as near to float32's as XLA's are."""
    ours, theirs, *shapes = FORMS[form]
    x, kernel = normal(0, 3, *shapes[0]), normal(1, *shapes[1])

    def slopes(conv, *given):
        def loss(x, kernel):
            y = jax.vmap(conv, (0, None))(x, kernel).astype(jnp.float32)
            return jnp.sum(jnp.square(y)), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*given)

    half = [a.astype(jnp.bfloat16) for a in (x, kernel)]
    leaves = map(jax.tree.leaves, (slopes(ours, *half), slopes(theirs, *half)))
    for a, b in zip(*leaves, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.max(np.abs(a - b)) <= 2**-6 * np.max(np.abs(b))
    assert taken(lambda x: ours(x, half[1]), half[0][0])


@here
@pytest.mark.skipif(not onednn.has_bfloat16(), reason="needs a CPU that multiplies bfloat16")
@pytest.mark.parametrize("name", ["dense", "3x3"])
def test_rounded_products_are_the_same_on_several_devices(name, monkeypatch):
    """Where XLA computes them: to float32's last digits, in value and gradients."""
    x, kernel = normal(0, 6, 5, 8), normal(1, 3, 3, 8, 4)
    if name == "dense":
        form, given = partial(onednn.product, rounded=True), (x, kernel[0, 0])
    else:
        form, given = partial(onednn.convolve, stride=1, rounded=True), (x, kernel)

    def computed(devices):
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        whole = lambda *given: jnp.sum(form(*given) ** 2)
        run = jax.jit(lambda *given: (form(*given), jax.grad(whole, (0, 1))(*given)))
        assert (onednn.TARGET in run.lower(*given).as_text()) == (devices == 1)
        return jax.tree.leaves(run(*given))

    for one, several in zip(computed(1), computed(8), strict=True):
        assert one.dtype == jnp.float32
        assert np.allclose(one, several, rtol=1e-5, atol=1e-5)


@pytest.fixture
def afresh(monkeypatch):
    """`ready` as a new process asks it, and nothing registered for the others."""
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    onednn.ready.cache_clear()
    yield
    onednn.ready.cache_clear()


def test_without_the_extra_it_is_not_there(afresh, monkeypatch):
    def missing(package: str):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert not onednn.ready()


@here
def test_what_cannot_be_built_is_said_and_not_used(afresh, monkeypatch, tmp_path):
    monkeypatch.setattr(onednn_handler.Path, "home", lambda: tmp_path)  # nothing is kept there
    monkeypatch.setattr(onednn_handler.shutil, "which", lambda _: "false")
    with pytest.warns(UserWarning, match="oneDNN is installed but its convolutions can't be built"):
        assert not onednn.ready()
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setattr(onednn_handler.shutil, "which", lambda _: None)
    onednn.ready.cache_clear()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert not onednn.ready()


@here
@pytest.mark.thorough
def test_it_is_compiled_once(afresh, monkeypatch, tmp_path):
    calls = []
    run = subprocess.run
    monkeypatch.setattr(onednn_handler.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    for _ in range(2):
        assert onednn.ready()
        onednn.ready.cache_clear()
    assert len(calls) == 1
    assert [p.suffix for p in (tmp_path / ".cache" / "jaxvae").iterdir()] == [".so"]
