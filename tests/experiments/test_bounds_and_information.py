"""The experiments of bounds and information in their small form: each leaves its files."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from experiments import (
    beta_sweep,
    covariance,
    flow_posterior,
    hyperspherical,
    importance_bounds,
    information,
    ladder,
    logistic_mixture,
    tighter_bounds,
    vamp_prior,
)


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_tighter_bounds(tmp_path, capsys):
    # a curve an estimator; pathwise loses by K = 8 and the decoder is one and the same
    tighter_bounds.main(num_draws=2_000, ks=(1, 8), folder=str(tmp_path))
    folder = tmp_path / "tighter_bounds"
    numbers = result(folder)
    pathwise, doubly = numbers["pathwise"], numbers["doubly reparameterized"]
    assert pathwise["encoder_snr"][1] < 0.6 * pathwise["encoder_snr"][0]
    assert doubly["encoder_snr"][1] > doubly["encoder_snr"][0]
    assert pathwise["decoder_snr"] == pytest.approx(doubly["decoder_snr"], rel=1e-3)
    assert (folder / "snr.png").stat().st_size > 10_000
    assert "doubly" in capsys.readouterr().out


FIRST, *OTHERS = importance_bounds.OBJECTIVES


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_importance_bounds(name):
    # two steps from the logit of the training mean, for each objective, and a finite measurement
    images = jax.random.randint(jax.random.key(0), (200, 28, 28, 1), 0, 256).astype(jnp.uint8)
    run = partial(importance_bounds.run, importance_bounds.OBJECTIVES[name], epochs=1)
    model = jax.jit(run)(jax.random.key(1), images)
    test = (images[:3] > 127).astype(float)
    numbers = importance_bounds.measure(model, test, num_samples=5)
    assert 400 < numbers["nll"] < 700  # 784 log 2 = 543 for pixels of 1/2
    assert 0 <= numbers["active_units"] <= 50
    assert numbers["reliable"] == 0.0  # 5 samples are too few to tell


@pytest.mark.slow
def test_information(tmp_path, capsys):
    # three parts that add up to about the rate, which beta lowers
    information.main(epochs=3, betas=(0.5, 1.0, 4.0), sizes=(20,), draws=3, folder=str(tmp_path))
    folder = tmp_path / "information"
    numbers = result(folder)
    for rate, parts in zip(numbers["rate"], numbers["parts"], strict=True):
        assert sum(parts) == pytest.approx(rate, abs=1.0)
    assert numbers["rate"][0] > numbers["rate"][2]
    assert set(numbers["estimates"]) == {"stratified", "weighted"}
    assert (folder / "information.png").stat().st_size > 10_000
    assert "exact" in capsys.readouterr().out


COMPARISONS = {
    "covariance": covariance,
    "flow_posterior": flow_posterior,
    "hyperspherical": hyperspherical,
    "ladder": ladder,
    "logistic_mixture": logistic_mixture,
    "vamp_prior": vamp_prior,
}


QUICK = "vamp_prior"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in COMPARISONS if name != QUICK]


@pytest.mark.thorough
@pytest.mark.parametrize("name", [QUICK, *SLOW])
def test_comparisons(name, tmp_path, monkeypatch, capsys):
    # a few steps of each model from two seeds, and every number in the folder
    module: Any = COMPARISONS[name]
    images = np.random.default_rng(0).integers(0, 2, (600, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images)
    monkeypatch.setattr(module, "load", lambda *_, **__: SimpleNamespace(train=split, test=split))
    small = {"EPOCHS": 1, "WARM_UP": 1, "SEEDS": 2, "SAMPLES": 2, "IMAGES": 20, "BATCH": 300}
    for constant in small:
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, small[constant])
    monkeypatch.chdir(tmp_path)
    module.main()
    numbers = result(tmp_path / "runs" / name)
    assert len(numbers) >= 2
    for values in numbers.values():
        assert len(values) == 2
        assert values[0] != values[1]
        assert np.all(np.isfinite(values))
    assert "+-" in capsys.readouterr().out


def test_no_script_measures_on_the_first_rows_of_a_test_set():
    # they may be of one class; `evaluate.drawn` takes rows at random
    scripts = list(Path(experiments.__file__).parent.rglob("*.py"))
    first = re.compile(r"test(_images|\.images|\.labels)?\)?\[ ?:[^\]]*(IMAGES|DRAWS|images)\]")
    assert first.search("jnp.asarray(data.test.images)[:DRAWS]")
    assert first.search("test_images[: options.images]")
    assert len(scripts) > 50
    assert [path.name for path in scripts if first.search(path.read_text())] == []


@pytest.mark.slow
def test_beta_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(beta_sweep, "EPOCHS", 10)
    monkeypatch.setattr(beta_sweep, "SEEDS", 2)
    monkeypatch.setattr(beta_sweep, "BETAS", (0.5, 8.0))
    monkeypatch.chdir(tmp_path)
    beta_sweep.main()
    folder = tmp_path / "runs" / "beta_sweep"
    numbers = result(folder)
    rate, distortion = np.array(numbers["rate"]), np.array(numbers["distortion"])
    assert rate.shape == (2, 2)
    assert np.all(rate[:, 0] > rate[:, 1])  # a dearer code is a cheaper one
    assert np.all(distortion[:, 0] < distortion[:, 1])
    assert len(numbers["seconds"]) == 3
    assert (folder / "rate_distortion.png").stat().st_size > 10_000
    assert "+-" in capsys.readouterr().out
