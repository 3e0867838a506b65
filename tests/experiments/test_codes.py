"""The scripts of discrete codes in their small form, and the prior they are fitted."""

import json
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.codes import categorical, priors, quantizers, tricks, vq
from jaxvae import Autoregressive, Categorical


def test_the_prior_over_codes_is_one(monkeypatch, x64):
    # each label is told those before it alone, and the probabilities of all codes sum to 1
    monkeypatch.setattr(vq, "PRIOR_WIDTH", 8)
    net = jax.tree.map(lambda a: a.astype(float), vq.NADE(3, 4, rngs=nnx.Rngs(0)))
    prior = Autoregressive(net, Categorical, 3)
    ways = jnp.array(list(product(range(4), repeat=3)))
    logits = jax.jit(jax.vmap(lambda k: net(k, None)))(ways)
    logits = np.asarray(logits).reshape(4, 4, 4, 3, 4)
    assert np.ptp(logits[..., 0, :], axis=(0, 1, 2)).max() < 1e-12
    assert np.ptp(logits[..., 1, :], axis=(1, 2)).max() < 1e-12
    assert np.ptp(logits[..., 1, :], axis=0).min() > 1e-6
    assert np.ptp(logits[..., 2, :], axis=2).max() < 1e-12
    assert np.ptp(logits[..., 2, :], axis=1).min() > 1e-6
    assert np.ptp(logits[..., 2, :], axis=0).min() > 1e-6
    total = jnp.sum(jnp.exp(jax.jit(jax.vmap(prior.log_prob))(ways)))
    assert float(total) == pytest.approx(1.0, abs=1e-12)
    steps, cache = jax.jit(net.step), net.init_cache(None)
    for i in range(3):
        cache, row = steps(cache, i, ways[1 * 16 + 2 * 4 + 3, i - 1])
        assert np.allclose(row, logits[1, 2, 3, i], rtol=0, atol=1e-12)


SMALL = {
    vq: {"EPOCHS": 1, "CODES": 4, "HIDDEN": (8,), "PRIOR_WIDTH": 8, "PRIOR_EPOCHS": 1},
    quantizers: {"EPOCHS": 1, "CODES": 4, "PART": 2, "LEVELS": (2, 2), "HIDDEN": (8,)},
    categorical: {"EPOCHS": 1, "CLASSES": 3, "HIDDEN": (8,), "DRAWS": 3},
    priors: {"CODES": 8, "MODEL_EPOCHS": 1, "PRIOR_EPOCHS": 1, "IMAGES": 64, "TESTS": 64},
}
FILES = {
    vq: ["reconstructions.png", "samples.png", "usage.png"],
    quantizers: ["reconstructions.png", "usage.png"],
    categorical: ["gradients.png", "gradients.json"],
    priors: ["draws.png"],
}
SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in FILES]


@pytest.mark.parametrize("module", SLOW)
def test_scripts(module, tmp_path, monkeypatch, capsys):
    # two steps of each run, and every number and picture in the folder
    images = np.random.default_rng(0).integers(0, 2, (64, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images, labels=np.arange(64) % 10)
    monkeypatch.setattr(module, "load", lambda name: SimpleNamespace(train=split, test=split))
    small = {"SEEDS": 1, **SMALL[module]}
    for constant, value in small.items():
        monkeypatch.setattr(module, constant, value)
    for batching in {vq, module} & {vq, categorical, priors}:
        monkeypatch.setattr(batching, "BATCH", 32)
    if module is quantizers:
        few = {
            "one codebook": (quantizers.one_codebook, quantizers.FOLLOWING, 16, (16, 4)),
            "residual codebooks": (quantizers.residual, quantizers.FOLLOWING, 16, (16, 2, 2)),
            "fixed levels": (quantizers.levels, quantizers.PLAIN, 2, (16, 4)),
        }
        monkeypatch.setattr(quantizers, "QUANTIZERS", few)
    monkeypatch.chdir(tmp_path)
    module.main()
    folder = tmp_path / "runs" / module.__name__.split(".")[-1]
    results = json.loads((folder / "result.json").read_text())
    assert len(results) >= 3
    assert np.all(np.isfinite(jax.tree.leaves(results)))
    for file in FILES[module]:
        assert (folder / file).stat().st_size > 500
    assert "min of processor time" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_tricks(tmp_path, monkeypatch, capsys):
    """Of each kind of quantizer and step one, on noise: every number, the table and the picture."""
    rng = np.random.default_rng(0)

    def images(*shape):
        return tuple(rng.integers(0, 256, (n, *shape)).astype(np.uint8) for n in (100, 50))

    kinds = ("VQ, k-means to start", "+ 4 dimensions, cosine", "grouped residual, 2 x 2 x 4", "BSQ")
    few = {label: tricks.TRICKS[label] for label in kinds}
    for name, value in {"TRICKS": few, "SEEDS": 2, "STEPS": 2, "FIRST": 32, "HIDDEN": (8,)}.items():
        monkeypatch.setattr(tricks, name, value)
    monkeypatch.setattr(tricks, "photographs", lambda folder: images(4, 4, 3))
    monkeypatch.setattr(tricks, "mnist", lambda: images(5, 5, 1))
    monkeypatch.chdir(tmp_path)
    tricks.main(tmp_path)
    for name in ("patches", "MNIST"):
        results = json.loads((tmp_path / "runs/tricks" / name / "result.json").read_text())
        assert [*results] == [*few]
        for seeds in results.values():
            for seed in seeds:
                assert 0.0 < seed["bits"] < 160.0  # 16 of 8, and the price of counting too few
                assert 1.0 <= seed["perplexity"] <= 256.0 - seed["dead"] + 1e-3
    said = capsys.readouterr().out
    first = results["BSQ"]  # of MNIST, the last
    error = np.mean([seed["off"] for seed in first])
    assert said.splitlines()[-1].startswith(f"| BSQ | {error:.1f} ")
    assert (tmp_path / "runs/tricks/tricks.png").stat().st_size > 500
