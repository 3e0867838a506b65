"""Exported models: JAX alone runs them, and computes what the model does."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import nn, use
from jaxvae.distributions import OptimalNormal
from jaxvae.evaluation import export_model
from jaxvae.models import ppca

LINEAR = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
IMAGE = (8, 8, 1)


def images():
    conv = partial(nn.ConvEncoder, channels=(4,), hidden=())
    up = partial(nn.ConvDecoder, channels=(4,), hidden=())
    rngs = nnx.Rngs(0)
    return jaxvae.VAE(
        nn.Conditional(conv, nn.NormalHead(), IMAGE, (2,), rngs=rngs),
        nn.Conditional(up, nn.BernoulliHead(), (2,), IMAGE, rngs=rngs),
        jaxvae.StandardNormal((2,)),
    )


ALONE = """
import sys
sys.modules["jaxvae"] = sys.modules["flax"] = None  # any import of them fails
import jax, numpy as np
folder = sys.argv[1]
load = lambda what: jax.export.deserialize(bytearray(open(f"{folder}/{what}", "rb").read())).call
xs, zs = np.load(f"{folder}/xs.npy"), np.load(f"{folder}/zs.npy")
key = jax.random.key_data(jax.random.key(0))
np.savez(f"{folder}/out.npz", encode=load("encode")(xs), decode=load("decode")(zs),
         few=load("encode")(xs[:2]), score=load("score")(key, xs))
rows, ys = np.load(f"{folder}/rows.npy"), np.load(f"{folder}/ys.npy")
zs = load("encode_given")(rows, ys)
np.savez(f"{folder}/given.npz", encode=zs, decode=load("decode_given")(zs, ys),
         score=load("score_given")(key, rows, ys), few=load("encode_given")(rows[:2], ys[:2]))
"""


def of_label(shift, y):
    encode = lambda x: jaxvae.Normal((x - y * shift) / 2.0, jnp.full(2, 0.6))
    decode = lambda z: jaxvae.Normal(z + y * shift, jnp.ones(2))
    return jaxvae.VAE(encode, decode, jaxvae.StandardNormal((2,)))


CONDITIONAL = Partial(of_label, jnp.array([3.0, -1.0]))
YS = np.array([0.0, 2.0, 1.0], np.float32)
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def export_conditional(folder):
    for what in ("encode", "decode", "score"):
        path = folder / f"{what}_given"
        export_model(path, CONDITIONAL, what, given=YS[0], num_samples=2, platforms=("cpu",))


def used():
    zs = use.encode(CONDITIONAL, ROWS, given=YS)
    scores = use.score(CONDITIONAL, jax.random.key(0), ROWS, given=YS, num_samples=2)
    return {
        "encode": zs,
        "decode": use.decode(CONDITIONAL, zs, given=YS),
        "score": scores.iwae,
        "few": zs[:2],
    }


@pytest.mark.thorough
def test_another_process_without_jaxvae_computes_the_same(tmp_path):
    model = images()
    xs = np.random.default_rng(0).uniform(size=(5, *IMAGE)).round().astype(np.float32)
    zs = use.encode(model, xs)
    np.save(tmp_path / "xs.npy", xs)
    np.save(tmp_path / "zs.npy", zs)
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "ys.npy", YS)
    export_conditional(tmp_path)
    for what in ("encode", "decode", "score"):
        export_model(tmp_path / what, model, what, num_samples=2, platforms=("cpu",))
    subprocess.run([sys.executable, "-c", ALONE, tmp_path], check=True)
    with np.load(tmp_path / "out.npz") as file:
        out = dict(file)
    np.testing.assert_allclose(out["encode"], zs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["few"], zs[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["decode"], use.decode(model, zs), rtol=1e-4, atol=1e-5)
    scores = use.score(model, jax.random.key(0), xs, num_samples=2)
    np.testing.assert_allclose(out["score"], scores.iwae, rtol=1e-4)
    with np.load(tmp_path / "given.npz") as file:
        for name, expected in used().items():
            np.testing.assert_allclose(file[name], expected, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.thorough
def test_a_conditional_model_takes_the_y_of_each_row_last(tmp_path):
    export_conditional(tmp_path)
    expected = used()
    words = jax.random.key_data(jax.random.key(0))
    arguments = {"encode": (ROWS,), "decode": (expected["encode"],), "score": (words, ROWS)}
    for what, given in arguments.items():
        data = bytearray((tmp_path / f"{what}_given").read_bytes())
        found = jax.export.deserialize(data).call(*given, YS)
        np.testing.assert_allclose(found, expected[what], rtol=1e-5)
    with pytest.raises(TypeError, match="given="):
        export_model(tmp_path / "m", CONDITIONAL)


def test_a_fixed_batch_takes_that_batch_alone(tmp_path):
    path = export_model(tmp_path / "m", LINEAR, "decode", batch=4)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.call(jnp.ones((4, 1))).shape == (4, 3)
    assert program.platforms == ("cpu", "cuda", "tpu")
    with pytest.raises(ValueError):
        program.call(jnp.ones((5, 1)))


def test_a_model_of_bytes_takes_bytes(tmp_path):
    """Or what x says, where draws are of another dtype, or there are none."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3)).astype(np.uint8)
    choices = nn.HeadOf(jaxvae.Categorical, (nn.Real("n", 256),))
    small = partial(nn.make_vae, convolutional=False, hidden=(), latents=2)
    stored = small(pixels[0], rngs=nnx.Rngs(0))
    chosen = small(pixels[0], likelihood=choices, rngs=nnx.Rngs(0))
    undrawn = Partial(lambda w, z: OptimalNormal(w * z, axis=None), jnp.ones(3))
    for model, xs, x in (
        (stored, pixels, None),
        (chosen, pixels, pixels[0]),
        (LINEAR._replace(decode=undrawn), np.ones((5, 3), np.float32), np.ones(3, np.float32)),
    ):
        path = export_model(tmp_path / "m", model, x=x, platforms=("cpu",))
        program = jax.export.deserialize(bytearray(path.read_bytes()))
        np.testing.assert_allclose(program.call(xs), use.encode(model, xs), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"^export_model: p\(x\|z\) can't be drawn from, expected"):
        export_model(tmp_path / "m", LINEAR._replace(decode=undrawn))


def test_what_is_refused_is_refused_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^export_model: what is 'draw', expected one of"):
        export_model(tmp_path / "m", LINEAR, "draw")  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match="needs flatbuffers: pip install flatbuffers"):
        export_model(tmp_path / "m", LINEAR)
    assert not (tmp_path / "m").exists()
