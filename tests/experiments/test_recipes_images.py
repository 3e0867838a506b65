"""Images in a folder: the pieces of the recipe on small pictures made here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image

import jaxvae
from experiments.datasets import photographs
from experiments.datasets.photographs import SIDE, codec_bits, cut, patches, read
from experiments.recipes import images
from jaxvae import nn


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """A picture [height, width, 3] of slow waves."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 40.0
    waves = [np.sin(a * rows + b * columns + c) for a, b, c in rng.uniform(0, 3, (3, 3))]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def folder_of(tmp_path: Path, monkeypatch: Any) -> Path:
    """Three small photographs, one of which is to be held out."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed, name in enumerate(("Aqua", "Dune", "Wood")):
        Image.fromarray(smooth(4 * SIDE * 2 + 5, 4 * SIDE * 4 + 3, seed)).save(
            folder / f"{name}.jpg"
        )
    data = b"".join(file.read_bytes() for file in sorted(folder.glob("*.jpg")))
    monkeypatch.setattr(photographs, "CHECKSUM", photographs.hashlib.sha256(data).hexdigest())
    return folder


def test_patches_are_disjoint_means_of_four_by_four():
    """Row by row; what is left of the edges is not used."""
    squares = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 3 * SIDE, 3)).astype(np.uint8)
    whole = np.pad(squares.repeat(4, 0).repeat(4, 1), ((0, 63), (0, 17), (0, 0)))
    found = cut(Image.fromarray(whole))
    assert found.shape == (6, SIDE, SIDE, 3)
    assert np.array_equal(found[4], squares[SIDE:, SIDE : 2 * SIDE])


def test_photographs_are_held_out_as_wholes(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, monkeypatch)
    train, held_out = patches(folder, tmp_path / "patches")
    assert [len(train), len(held_out)] == [16, 8]
    assert {Path(file).name.split("_")[0] for file in train} == {"Aqua", "Wood"}
    assert {Path(file).name.split("_")[0] for file in held_out} == {"Dune"}
    assert read(train[0]).shape == (SIDE, SIDE, 3)
    assert patches(folder, tmp_path / "patches") == (train, held_out)
    (folder / "Wood.jpg").unlink()
    with pytest.raises(SystemExit, match="not the twelve photographs expected; apt-get download"):
        patches(folder, tmp_path / "patches")


@pytest.mark.parametrize("codec", images.CODECS)
def test_codecs_are_lossless_and_see_more_in_one_picture(codec):
    """Noise costs 8 bits a number, and no codec less; slow waves cost less, most in one file."""
    noise = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3)).astype(np.uint8)
    each, sheet = codec_bits(noise, format=codec, **images.CODECS[codec])
    assert 8.0 <= sheet <= each < 10.0
    whole = smooth(3 * SIDE, 3 * SIDE, 0)
    waves = whole.reshape(3, SIDE, 3, SIDE, 3).swapaxes(1, 2).reshape(9, SIDE, SIDE, 3)
    each, sheet = codec_bits(waves, format=codec, **images.CODECS[codec])
    assert sheet < each < 7.0


def test_a_turn_of_the_stream_has_every_file_once_and_can_be_gone_on_from(tmp_path, monkeypatch):
    files = []
    for number in range(12):
        files.append(str(tmp_path / f"{number:02}.png"))
        Image.fromarray(np.full((SIDE, SIDE, 3), number, np.uint8)).save(files[-1])
    monkeypatch.setattr(images, "BATCH", 4)
    batches = iter(images.stream(files, 0))
    first = np.concatenate([next(batches)[:, 0, 0, 0] for _ in range(3)]).tolist()
    assert first != sorted(first) == list(range(12))
    state, again = batches.get_state(), iter(images.stream(files, 0))
    again.set_state(state)
    for _ in range(4):
        assert np.array_equal(next(again), next(batches))


@pytest.mark.thorough
def test_a_uniform_likelihood_costs_eight_bits():
    """Of densities and of probabilities alike: a cell has 1/256 of the unit interval."""
    shape, prior = images.SHAPE, jaxvae.StandardNormal((2,))
    uniform = {
        "continuous Bernoulli": lambda z: jaxvae.ContinuousBernoulli(jnp.zeros(shape)),
        "discretized logistic": lambda z: jaxvae.Categorical(jnp.zeros((*shape, 256))),
    }
    xs = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    for likelihood, decode in uniform.items():
        encode = lambda x: jaxvae.Normal(jnp.zeros(2), jnp.ones(2))
        model = jaxvae.VAE(Partial(encode), Partial(decode), prior)
        found = images.bits(likelihood, model, jax.random.key(0), xs)
        np.testing.assert_allclose(found, 8.0, rtol=1e-5)


ALONE = """
import sys
sys.modules["jaxvae"] = sys.modules["flax"] = None  # any import of them fails
import jax, numpy as np
def call(what, *xs):
    data = open(f"runs/images/{what}.stablehlo", "rb").read()
    return jax.export.deserialize(bytearray(data)).call(*xs)
xs = np.load("xs.npy")
zs = call("encode", xs)
key = jax.random.key_data(jax.random.key(0))
np.savez("out.npz", zs=zs, xs=call("decode", zs), nats=call("score", key, xs))
"""


@pytest.mark.slow
def test_from_the_folder_to_a_process_without_jaxvae(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name, value in {"EPOCHS": 2, "SEEDS": 1, "BATCH": 8, "SAMPLES": 2}.items():
        monkeypatch.setattr(images, name, value)
    logistic = {name: images.PROBABILITIES[name] for name in ("discretized logistic",)}
    monkeypatch.setattr(images, "DENSITIES", {"normal, one sigma": nn.SharedScaleHead})
    monkeypatch.setattr(images, "PROBABILITIES", logistic)
    images.main(str(folder))
    _, held_out = patches(folder, tmp_path / "runs/images/patches")
    xs = np.stack([read(file) for file in held_out])
    np.save("xs.npy", xs)
    subprocess.run([sys.executable, "-c", ALONE], check=True)
    model = nn.load_model("runs/images/models/discretized logistic")
    with np.load("out.npz") as out:
        np.testing.assert_allclose(out["zs"], images.use.encode(model, xs), rtol=1e-3, atol=1e-4)
        assert np.all(np.isfinite(out["nats"]))
        assert out["xs"].shape == xs.shape
    assert (tmp_path / "runs/images/likelihoods.png").stat().st_size > 3000
