"""Saved models: whole, verified, and built again where nothing of their script is known."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import evaluation, nn
from jaxvae.models import ppca
from jaxvae.nn import saved
from jaxvae.nn.descriptions import NotDescribedError, describe, rebuild
from jaxvae.pytrees import paths
from jaxvae.pytrees.libraries import functional
from jaxvae.training import CheckpointError, CorruptCheckpointError
from tests.common import same


def conditional(network, head, *shapes):
    return nn.Conditional(network, head, *shapes, rngs=nnx.Rngs(0))


SMALL: Any = partial(nn.MLP, hidden=(3,))
IMAGE = (8, 8, 1)


def small(likelihood=None, prior=None, network=SMALL):
    return jaxvae.VAE(
        conditional(network, nn.NormalHead(), (3,), (2,)),
        conditional(SMALL, likelihood or nn.NormalHead(0.1), (2,), (3,)),
        prior or jaxvae.StandardNormal((2,)),
    )


def noisy(in_shape, out_shape, *, rngs):
    return nnx.Sequential(
        nnx.Linear(in_shape[0], 4, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.relu,
        nnx.Dropout(0.5, rngs=rngs),
        nnx.Linear(4, out_shape[0], rngs=rngs),
    )


@cache
def models():
    table = (("a", nn.NormalHead(), (2,)), ("b", nn.OneHotHead(), (1, 3)))
    mixture = jaxvae.Mixture(jnp.zeros(4), jaxvae.Normal(jnp.ones((4, 2)), jnp.ones((4, 2))))
    low_rank = nn.HeadOf(jaxvae.LowRankNormal, (nn.Real("n"), nn.Real("n", 2), nn.Positive("n")))
    running = functional(small(network=noisy))
    running = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3, leaf.dtype), running)
    return {
        "dense": small(nn.SharedScaleHead(0.3)),
        "convolutions": jaxvae.VAE(
            conditional(nn.ConvEncoder, nn.MultivariateNormalHead(), IMAGE, (2,)),
            conditional(nn.ConvDecoder, nn.BernoulliHead(), (2,), IMAGE),
            jaxvae.Constant(mixture),
        ),
        "vamp": jaxvae.VampVAE(
            conditional(partial(nn.Rescaled, SMALL, max_value=16.0), nn.NormalHead(), (3,), (2,)),
            conditional(partial(SMALL, activation=jnp.tanh), low_rank, (2,), (3,)),
            jnp.ones((4, 3)),
        ),
        "table": small()._replace(
            decode=conditional(SMALL, nn.MaskedHead(nn.ProductHead(table)), (2,), ())
        ),
        "flow": small(
            prior=jaxvae.Transformed(
                jaxvae.StandardNormal((2,)), nn.CouplingFlow(2, rngs=nnx.Rngs(1))()
            )
        ),
        "deep": nn.deep_hierarchy((4, 4, 1), levels=(1, 1), width=4, rngs=nnx.Rngs(0)),
        "running statistics": running,
        "head with options": small(
            nn.HeadOf(
                partial(jaxvae.DiscretizedLogistic, levels=17), (nn.Real("n"), nn.Positive("n"))
            )
        ),
        "side by side": jaxvae.models.Smoother(
            nn.Recurrent((5, 3), (5, 2), reverse=True, rngs=nnx.Rngs(0)),
            nn.Concatenated(conditional(SMALL, nn.NormalHead(), (4,), (2,))),
            jnp.zeros(2),
        ),
        "half precision": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small()),
        "any tree": {"key": jax.random.key(3), "n": 7, "empty": jnp.zeros((0, 2)), "f": jnp.inf},
    }


NAMES = ("dense", "convolutions", "vamp", "table", "flow", "deep", "running statistics",
         "head with options", "side by side", "half precision", "any tree")  # fmt: skip


MODULES = {
    "spectral norm": lambda rngs: nnx.SpectralNorm(nnx.Linear(2, 3, rngs=rngs), rngs=rngs),
    "recurrent": lambda rngs: nnx.GRUCell(2, 3, rngs=rngs),
    "attention": lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
    "container": lambda rngs: nnx.Dict(a=nnx.Conv(2, 3, (3, 3), rngs=rngs), b=jnp.ones(2)),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_modules_of_nnx_are_described_as_they_are(make):
    """With attributes that NNX was told are data, and static ones of every kind."""
    module = functional(make(nnx.Rngs(0)))
    description, constants = describe(module)
    again = rebuild(json.loads(json.dumps(description)), paths(module) | constants)
    assert jax.tree.structure(again) == jax.tree.structure(module)
    assert same(again, module)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    model = models()[name]
    nn.save_model(tmp_path / "m", model, about={"name": name})
    loaded = nn.load_model(tmp_path / "m")
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    assert same(loaded, model)
    assert same(nn.load_model(tmp_path / "m", like=model), model)
    assert nn.model_info(tmp_path / "m")["about"] == {"name": name}


@pytest.mark.thorough
def test_a_process_that_never_saw_the_script_computes_the_same(tmp_path):
    model = models()["running statistics"]
    nn.save_model(tmp_path / "m", model)
    script = (
        "import jax, jaxvae\nfrom jaxvae import nn\n"
        f"model = nn.load_model({str(tmp_path / 'm')!r})\n"
        "print(repr(float(jaxvae.elbo(model, jax.random.key(0), jax.numpy.ones(3))[0])))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = jaxvae.elbo(model, jax.random.key(0), jnp.ones(3))[0]
    np.testing.assert_allclose(float(out.stdout), expected, rtol=1e-5)


def test_the_card_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nn.save_model("runs/digits", models()["dense"], about={"de": "Wörter", "file": "\udcff.csv"})
    card = Path("runs/digits/README.md").read_text()
    load = "nn.load_model('runs/digits')"  # from where it was saved
    for part in ("# digits", "A VAE of", '"Wörter"', "\\udcff.csv", load, "[3, 4]"):
        assert part in card, part
    Path("runs/digits/README.md").write_text("Mine.")  # it may be edited
    nn.load_model("runs/digits")


def test_the_card_names_arrays_as_they_are_written(tmp_path):
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    folder = nn.save_model(tmp_path / "linear", model)
    assert "| `.encode.args[0].weight` | float32 | [3, 1] |" in (folder / "README.md").read_text()
    assert same(nn.load_model(folder), model)
    wrong = ppca.as_vae(ppca.PPCA(jnp.ones((4, 1)), jnp.zeros(4), jnp.array(0.5)))
    with pytest.raises(CheckpointError, match=r"at \.encode\.args\[0\]\.weight it holds"):
        nn.load_model(folder, like=wrong)


@pytest.mark.parametrize("name", [saved.MANIFEST, saved.WEIGHTS, saved.SUMS])
@pytest.mark.parametrize("how", ["first byte", "a byte", "last byte", "cut", "longer", "gone"])
def test_no_byte_changes_unnoticed(name, how, tmp_path):
    nn.save_model(tmp_path / "m", models()["dense"])
    file = tmp_path / "m" / name
    data = bytearray(file.read_bytes())
    at = {"first byte": 0, "a byte": len(data) // 2, "last byte": len(data) - 2}
    if how == "gone":
        file.unlink()
    else:
        if how in at:
            data[at[how]] ^= 1
        file.write_bytes({"cut": data[:-3], "longer": data + b"x"}.get(how, data))
    with pytest.raises(CheckpointError) as error:
        nn.load_model(tmp_path / "m")
    assert "\n" not in str(error.value)
    if how in at:
        assert isinstance(error.value, CorruptCheckpointError)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_save_that_fails_leaves_what_was_there(broken, tmp_path, monkeypatch):
    nn.save_model(tmp_path / "m", models()["dense"])

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync") if broken == "fsync" else (saved.Path, "replace")), fail)
        for folder in ("m", "new"):
            with pytest.raises(CheckpointError, match=r"can't be written: No space left"):
                nn.save_model(tmp_path / folder, models()["vamp"])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert same(nn.load_model(tmp_path / "m"), models()["dense"])
    nn.save_model(tmp_path / "m", models()["vamp"])
    assert same(nn.load_model(tmp_path / "m"), models()["vamp"])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def rewritten(folder, **changes):
    """The folder with another manifest, and sums that fit it."""
    manifest = json.loads((folder / saved.MANIFEST).read_text()) | changes
    (folder / saved.MANIFEST).write_text(json.dumps(manifest))
    lines = [
        f"{saved.checksum((folder / name).read_bytes())}  {name}\n"
        for name in (saved.MANIFEST, saved.WEIGHTS)
    ]
    (folder / saved.SUMS).write_text("".join(lines))


FOLDERS = "jaxvae.nn.model_folders"  # which imports both
FOREIGN = (
    {"Partial": {"name": "os:system"}, "args": ["touch ran"], "keywords": {}},
    {"Partial": {"name": f"{FOLDERS}:os.system"}, "args": ["touch ran"], "keywords": {}},
    {"Partial": {"name": f"{FOLDERS}:shutil.rmtree"}, "args": ["."], "keywords": {}},
    {"Partial": {"name": "jaxvae.training:save_checkpoint"}, "args": ["ran"], "keywords": {}},
    {"Partial": {"name": "jax.numpy:save"}, "args": ["ran"], "keywords": {}},
    {"Partial": {"name": "flax.core:nothing"}, "args": [], "keywords": {}},
    {"activation": "os:system", "options": {}},
    {"activation": "jax.numpy:load", "options": {}},
    {"class": "jaxvae.nn.activations:Named", "fields": {"module": "os", "name": "system"}},
    {"class": "subprocess:Popen", "fields": {"args": "touch ran"}},
    {"class": "foreign_package:Thing", "value": 1, "metadata": {}},
    {"class": "jaxvae:Normal", "value": 1, "metadata": {}},
    {"class": "jaxvae:Normal", "fields": {"mu": 1}},
    {"class": "jaxvae:TrainState.missing", "fields": {}},
    {"other": 1},
    {"leaf": "missing"},
)  # fmt: skip


@pytest.mark.parametrize("part", FOREIGN, ids=str)
def test_loading_runs_nothing_foreign(part, tmp_path, monkeypatch):
    (tmp_path / "foreign_package.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    nn.save_model("m", {"x": jnp.ones(2)})
    rewritten(tmp_path / "m", model={"dict": [["f", part]]})
    with pytest.raises(CheckpointError) as error:
        nn.load_model("m")
    assert "\n" not in str(error.value)
    rewritten(tmp_path / "m", model=None, builder="foreign_package:make", arguments={})
    with pytest.raises(CheckpointError, match='trust="foreign_package"'):
        nn.load_model("m")
    assert not (tmp_path / "ran").exists()
    with pytest.raises((NotDescribedError, KeyError)):
        rebuild(part, {})


MINE = """
from typing import NamedTuple
import jax.numpy as jnp
from jax.tree_util import Partial
import jaxvae

class Mine(NamedTuple):
    weight: object
    def encode(self, x): return jaxvae.Normal(self.weight * x, 1.0)

def decode(weight, z): return jaxvae.Normal(weight * z, 1.0)

def make(weight, d=2):
    encode = Partial(lambda w, x: jaxvae.Normal(w * x, 1.0), jnp.full(d, weight))
    return jaxvae.VAE(encode, Partial(decode, jnp.full(d, weight)), jaxvae.StandardNormal((d,)))
"""


def test_where_trust_will_be_asked_for_saving_says_so(tmp_path):
    """For a function of jaxvae that is none of a model's: it could do anything."""
    told = (
        r"^save_model: load_model will refuse this folder: it needs jaxvae:elbo.*trust=\"jaxvae\""
    )
    with pytest.warns(UserWarning, match=told):
        nn.save_model(tmp_path / "m", small(network=partial(SMALL, activation=jaxvae.elbo)))
    with pytest.raises(CheckpointError, match=r'needs jaxvae:elbo.*trust="jaxvae"'):
        nn.load_model(tmp_path / "m")
    nn.load_model(tmp_path / "m", trust="jaxvae")


def test_what_is_your_own_is_built_where_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    import my_models  # pyright: ignore[reportMissingImports]

    mine = {"a": my_models.Mine(jnp.ones(2)), "b": Partial(my_models.decode, jnp.ones(2))}
    nn.save_model(tmp_path / "m", mine)
    with pytest.raises(CheckpointError, match=r'needs my_models:Mine.*trust="my_models"'):
        nn.load_model(tmp_path / "m")
    assert same(nn.load_model(tmp_path / "m", trust="my_models"), mine)

    built, given = my_models.make(3.0), {"weight": 3.0}
    with pytest.warns(UserWarning, match=r"^save_model: model.encode.func is <lambda>, defined in"):
        nn.save_model(tmp_path / "like", built)
    with pytest.raises(CheckpointError, match=r"doesn't say what builds its model.*like=model"):
        nn.load_model(tmp_path / "like")
    assert same(nn.load_model(tmp_path / "like", like=my_models.make(0.0)).prior, built.prior)

    for folder, arguments in (("b", given), ("c", given | {"d": 3})):
        model = my_models.make(**arguments)
        nn.save_model(tmp_path / folder, model, builder="my_models:make", arguments=arguments)
        loaded = nn.load_model(tmp_path / folder, trust=["my_models"])
        np.testing.assert_array_equal(loaded.decode(1.0).loc, model.decode(1.0).loc)
    with pytest.raises(CheckpointError, match=r"it holds float32\[2\], wanted float32\[3\]"):
        nn.save_model(tmp_path / "d", built, builder="my_models:make", arguments=given | {"d": 3})
    for wrong in ("my_models:absent", "absent_package:make"):
        with pytest.raises(CheckpointError, match="it needs"):
            nn.save_model(tmp_path / "d", built, builder=wrong)
    assert not (tmp_path / "d").exists()


def held(scale):
    """A model with constants in three places, one within another."""
    inner = jaxvae.Constant(jnp.full(2, scale))
    prior = jaxvae.Constant(jaxvae.Normal(jnp.full(2, scale), jnp.full(2, 1.0 + scale)))
    return {"prior": prior, "codes": [jaxvae.Constant((inner, scale))], "w": jnp.ones(2) * scale}


def test_what_constants_hold_comes_back_however_it_is_built(tmp_path, monkeypatch):
    model, name = held(3.0), f"{__name__}:held"
    nn.save_model(tmp_path / "described", model)
    nn.save_model(tmp_path / "built", model, builder=name, arguments={"scale": 1.0})
    found = [
        nn.load_model(tmp_path / "described"),
        nn.load_model(tmp_path / "described", like=held(1.0)),
        nn.load_model(tmp_path / "built", trust=__name__),
    ]
    assert all(jax.tree.structure(one) == jax.tree.structure(model) for one in found)
    assert all(same(one, model) for one in found)
    other = model | {"prior": jaxvae.StandardNormal((2,))}
    with pytest.raises(
        CheckpointError, match=r"prior.*loc.* it holds float32\[2\], wanted nothing"
    ):
        nn.load_model(tmp_path / "built", like=other)
    with pytest.raises(CheckpointError, match=r"prior.*loc.* it holds nothing, wanted"):
        nn.save_model(tmp_path / "m", other, builder=name, arguments={"scale": 1.0})


def test_constants_of_numpy_are_described(tmp_path):
    prior: Any = jaxvae.Constant(jaxvae.Normal(np.zeros(2), np.ones(2)))
    folder = nn.save_model(tmp_path / "m", {"prior": prior, "w": jnp.ones(2)})
    assert same(nn.load_model(folder)["prior"].value, prior.value)


def shaped(shape, floor: float | None = 0.5):
    return {"w": jnp.ones(shape), "floor": jaxvae.Constant(jnp.float32(floor or 0.0))}


def test_a_builder_gets_its_arguments_as_they_will_be_read(tmp_path):
    builder = f"{__name__}:listed"
    with pytest.raises(CheckpointError, match="a tuple"):
        nn.save_model(tmp_path / "m", listed((3,)), builder=builder, arguments={"shape": (3,)})
    assert not (tmp_path / "m").exists()


def listed(shape):
    if not isinstance(shape, tuple):
        raise TypeError("expected a tuple")
    return {"w": jnp.ones(shape)}


def test_a_runs_builder_gets_none_and_what_is_empty(tmp_path):
    optimizer, arguments = optax.sgd(0.1), {"shape": [], "floor": None}
    config = {"builder": f"{__name__}:shaped", "arguments": arguments}
    model, run = shaped(**arguments), jaxvae.Checkpoints(tmp_path / "run", config=config)

    def objective(model, key, x):
        return -jnp.sum(model["w"] * x), None

    state = jaxvae.init_state(model, optimizer)
    step = jaxvae.train_step(objective, optimizer)
    data = jnp.ones((4, 1))
    state, _ = jaxvae.fit(step, state, jax.random.key(0), data, epochs=1, batch_size=4,
                          checkpoints=run)  # fmt: skip
    found = nn.load_model(tmp_path / "run", trust=__name__)
    assert jax.tree.structure(found) == jax.tree.structure(model)
    assert same(found, state.model)


def test_the_best_model_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "my_runs.py").write_text(
        "from tests.library.nn.test_saved import small\n"
        "def make(scale, sizes): return small(prior=None)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    optimizer, data = optax.sgd(1e-3), jnp.ones((4, 3))
    state = jaxvae.init_state(small(), optimizer)
    config = {"builder": "my_runs:make", "arguments": {"scale": 1.0, "sizes": [3, 4]}}
    run = jaxvae.Checkpoints(tmp_path / "run" / "checkpoints", config=config)
    step = jaxvae.train_step(jaxvae.elbo, optimizer)
    key = jax.random.key(0)
    state, _ = jaxvae.fit(step, state, key, data, epochs=1, batch_size=4, checkpoints=run)
    for folder in ("run", "run/checkpoints"):
        assert same(nn.load_model(tmp_path / folder, trust="my_runs"), state.model)
        assert same(nn.load_model(tmp_path / folder, like=small()), state.model)
    with pytest.raises(CheckpointError, match='trust="my_runs"'):
        nn.load_model(tmp_path / "run")
    nn.save_model(tmp_path / "run" / "model", models()["dense"])
    assert same(nn.load_model(tmp_path / "run"), models()["dense"])


def test_a_network_of_another_library_is_given(tmp_path):
    equinox = pytest.importorskip("equinox")
    network = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    with pytest.warns(UserWarning, match="network of Linen or Equinox, which its library alone"):
        nn.save_model(tmp_path / "m", network)
    other = equinox.nn.MLP(3, 2, 4, 1, key=jax.random.key(1))
    loaded = nn.load_model(tmp_path / "m", like=other)
    np.testing.assert_array_equal(loaded(jnp.ones(3)), network(jnp.ones(3)))


def test_what_is_refused_is_refused_in_a_line(tmp_path):
    nn.save_model(tmp_path / "m", models()["dense"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    shutil.copytree(tmp_path / "m", tmp_path / "newer")
    rewritten(tmp_path / "newer", format=2)
    refused = [
        (lambda: nn.load_model(tmp_path / "absent"), "absent isn't there"),
        (lambda: nn.load_model(tmp_path / "other"), "holds no model and no checkpoint"),
        (lambda: nn.load_model(tmp_path / "newer"), "has format 2, this jaxvae reads 1"),
        (lambda: nn.load_model(tmp_path / "m", like=small()), "is of another model or optimiser"),
        (lambda: nn.save_model(tmp_path / "other", small()), "holds other files"),
        (lambda: nn.save_model(tmp_path / "file", small()), "is a file"),
    ]
    for call, message in refused:
        with pytest.raises(CheckpointError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="about is not what JSON holds"):
        nn.save_model(tmp_path / "n", small(), about={"x": jnp.ones(2)})
    assert not (tmp_path / "n").exists()


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        nn.save_model(tmp_path / "m", small())


@pytest.mark.parametrize("name", ["weight normed", "top_k of tempered", "tempered chain"])
def test_what_the_guide_makes_is_loaded_without_trust(name, tmp_path):
    rngs, p = nnx.Rngs(0), jaxvae.StandardNormal((2,))
    dense = partial(nn.MLP, dense=nn.WeightNormed)
    codes = nn.PixelCNN((2, 3), 4, width=4, depth=2, rngs=rngs)
    codes = jaxvae.Autoregressive(codes, jaxvae.Categorical, 6)
    step = nn.Conditional(nn.MLP, nn.NormalHead(), (2,), (2,), rngs=rngs)
    model = {
        "weight normed": lambda: nn.Conditional(dense, nn.NormalHead(), (3,), (2,), rngs=rngs),
        "top_k of tempered": lambda: evaluation.top_k(evaluation.tempered(codes, 0.9), 4),
        "tempered chain": lambda: evaluation.tempered(jaxvae.models.Markov(p, step, 5), 0.5),
    }[name]()
    nn.save_model(tmp_path / "m", model)
    loaded = nn.load_model(tmp_path / "m")
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(ours, theirs)
