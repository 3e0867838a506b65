"""Labels and gaps, the scripts in their small form: each leaves its files, and finite numbers."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.data import Split
from experiments.structures import conditional, missing_data, mixed_table, semi_supervised


def small(monkeypatch, tmp_path, module, **constants):
    """Two steps on 64 images of one seed, in an empty folder."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (64, 28, 28, 1)).astype(np.uint8)
    split = Split(images, (np.arange(64) % 10).astype(np.int32))
    if hasattr(module, "load"):
        loaded = SimpleNamespace(train=split, test=split)
        monkeypatch.setattr(module, "load", lambda *_, **__: loaded)
    for name, value in {"EPOCHS": 1, "BATCH": 32, "SEEDS": 1, **constants}.items():
        monkeypatch.setattr(module, name, value, raising=name != "EPOCHS")
    monkeypatch.chdir(tmp_path)
    module.main()


def result(folder):
    numbers = json.loads((folder / "result.json").read_text())
    assert np.all(np.isfinite(jax.tree.leaves(numbers)))
    return {label: seeds[0] for label, seeds in numbers.items()}


@pytest.mark.slow
def test_conditional(tmp_path, monkeypatch):
    small(monkeypatch, tmp_path, conditional, IMAGES=20, SAMPLES=2)
    folder = tmp_path / "runs" / "conditional"
    numbers = result(folder)
    hidden, given = numbers["label hidden"], numbers["label given"]
    assert hidden["nats with its label"] == pytest.approx(hidden["nats without"], rel=1e-5)
    assert given["nats with its label"] != pytest.approx(given["nats without"], rel=1e-5)
    assert given["nats without"] < given["nats with its label"] + np.log(10) + 1e-3
    assert (folder / "classes.png").stat().st_size > 10_000


@pytest.mark.slow
def test_semi_supervised(tmp_path, monkeypatch):
    small(
        monkeypatch,
        tmp_path,
        semi_supervised,
        PER_CLASS=2,
        HIDDEN=(16,),
        M1_EPOCHS=1,
        CLASSIFIER=semi_supervised.CLASSIFIER._replace(epochs=1),
        PIXELS=semi_supervised.PIXELS._replace(epochs=1),
        CODES=semi_supervised.CODES._replace(epochs=1),
        M1_HIDDEN=(16,),
        ACTIVE=0.0,
    )
    numbers = result(tmp_path / "runs" / "semi_supervised")
    assert set(numbers) == {"classifier", "M2", "M1, classifier", "M1+M2"}
    assert all(0 <= value <= 100 for value in numbers.values())


def test_labels_are_chosen_by_class():
    """As many of each, no row twice, and others with another key."""
    labels = jnp.arange(200) % 10
    rows, others = (semi_supervised.choose(jax.random.key(seed), labels) for seed in (0, 1))
    assert np.all(np.bincount(labels[rows]) == semi_supervised.PER_CLASS)
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) != set(others.tolist())


@pytest.mark.slow
def test_missing_data(tmp_path, monkeypatch):
    constants = {"IMAGES": 20, "SAMPLES": 3, "K": 2, "MISSING": (0.5,), "SHOWN": 2}
    constants |= {"LINEAR_EPOCHS": 1}
    small(monkeypatch, tmp_path, missing_data, **constants)
    folder = tmp_path / "runs" / "missing_data"
    numbers = result(folder / "50")
    assert set(numbers) == {"pixel means", "linear", "VAE"}
    assert all(0.4 < scores["RMSE"] < 0.7 for scores in numbers.values())  # 1/2 of fair coins
    assert (folder / "50" / "imputations.png").stat().st_size > 3_000


def test_linear_model_ignores_gaps(x64):
    """The bound of rows with gaps is log N(x_observed), whatever stands in a gap."""
    rng = np.random.default_rng(1)
    weight, mean = rng.normal(size=(784, missing_data.LATENT)), rng.normal(size=784)
    model = missing_data.Linear(jnp.asarray(weight), jnp.asarray(mean), jnp.log(jnp.array(0.3)))
    x, mask = rng.normal(size=784), np.arange(784) < 3
    event = jnp.asarray(x).reshape(28, 28, 1), jnp.asarray(mask).reshape(28, 28, 1)
    q = model.encode(event)
    precision = np.eye(missing_data.LATENT) + weight[:3].T @ weight[:3] / 0.09
    exact = np.linalg.solve(precision, weight[:3].T @ (x - mean)[:3] / 0.09)
    assert np.allclose(q.loc, exact, atol=1e-9)
    assert np.allclose(q.scale_tril @ q.scale_tril.T, np.linalg.inv(precision), atol=1e-9)


@pytest.mark.slow
def test_mixed_table(tmp_path, monkeypatch):
    """The truth explains a row best, and better than its columns alone."""
    constants = {"ROWS": 64, "TEST_ROWS": 64, "SAMPLES": 20, "K": 2}
    small(monkeypatch, tmp_path, mixed_table, **constants)
    numbers = result(tmp_path / "runs" / "mixed_table")
    nats = {label: scores["nats a row"] for label, scores in numbers.items()}
    assert nats["truth"] < nats["columns alone"] - 2.0
    assert nats["truth"] < nats["VAE"]
    assert len(numbers["VAE"]) == 6
