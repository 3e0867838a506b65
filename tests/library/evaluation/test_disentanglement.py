"""Scores of codes made so that their scores are known; drawn shapes; the sweep over both."""

import json
import sys
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from experiments.datasets.shapes import FACTORS, render, shapes
from experiments.disentanglement import sweep
from jaxvae.evaluation.disentanglement import (
    DCI,
    beta_vae_score,
    dci,
    factor_vae_score,
    mig,
    modularity,
    mutual_information,
    sap,
)
from tests.common import standard_errors_off

V = np.indices((4, 4, 4)).reshape(3, -1).T
TURNED = np.stack([V[:, 0] + V[:, 1], V[:, 0] - V[:, 1], V[:, 2]], axis=1)
TWICE = V[:, [0, 0, 1, 2]]
DEAD = np.concatenate([V[:, [2, 0, 1]], np.full((64, 1), 0.1)], axis=1)
KEY = jax.random.key(0)

SCORES = {
    "mig": mig,
    "sap": sap,
    "modularity": modularity,
    "dci": lambda codes, factors: dci(KEY, codes, factors, trees=5),
    "factor_vae_score": lambda codes, factors: factor_vae_score(KEY, codes, factors),
    "beta_vae_score": lambda codes, factors: beta_vae_score(KEY, codes, factors),
}
each_score = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


def noise(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def mixed(angle):
    """The first two factors turned by an angle in their plane."""
    first, second, third = (V - V.mean(axis=0)).T
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * first + s * second, c * second - s * first, third], axis=1)


@each_score
def test_a_latent_a_factor_is_one(score):
    # in any order, unit and direction, and whatever never varies beside them
    for codes in (V, -3.0 * V[:, [1, 2, 0]] + 7.0, DEAD):
        assert np.allclose(score(codes, V), 1.0, atol=1e-12)


CHANCE = {"dci": [0.0, 0.0, 0.25], "factor_vae_score": 1 / 3, "beta_vae_score": 1 / 3}


@pytest.mark.parametrize("name", SCORES)
def test_a_collapsed_code_scores_no_more_than_chance(name):
    found = SCORES[name](np.full((64, 2), 0.1), V)
    assert np.allclose(found, CHANCE.get(name, 0.0), atol=0.07)


@pytest.mark.parametrize(
    ("codes", "expected"), [(TWICE, 2 / 3), (TURNED, 1 / 3), (V[:, :1], 1 / 3)]
)
def test_mig_sap_of_shared_factors(codes, expected):
    # R^2 of a sum or difference of two with either is 1/2, as their informations are alike
    assert mig(codes, V) == pytest.approx(expected, abs=1e-12)
    assert mig(codes.astype(np.float32), V) == pytest.approx(expected, abs=1e-12)
    assert sap(codes, V) == pytest.approx(expected, abs=1e-12)


def test_each_factor_counts_alike_however_many_values_it_has():
    """Factors of 2, 4 and 8 values; the latents are the first, all of the second and a half of the
    third, and the second's other half is repeated. In bits the gaps are 1 of 1, 1 of 2, 1 of 3."""
    v = np.indices((2, 4, 8)).reshape(3, -1).T
    codes = np.stack([v[:, 0], v[:, 1], v[:, 1] % 2, v[:, 2] % 2], axis=1)
    bits = mutual_information(codes, v) / np.log(2)
    assert np.allclose(bits, [[1, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 1]], atol=1e-12)
    assert mig(codes, v) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-12)
    # of a latent with all of v_2 and of v_3 the squares are 4 and 9: 1 - 4 / (2 x 9)
    both = np.stack([8 * v[:, 1] + v[:, 2], v[:, 0]], axis=1)
    assert modularity(both, v) == pytest.approx((1 - 4 / 18 + 1) / 2, abs=1e-12)


def test_sap_is_the_share_of_variance_explained():
    # z = v + noise orthogonal to v, of a quarter of its variance: R^2 = 1 / (1 + 1/4)
    v = np.indices((4, 2)).reshape(2, -1).T[:, :1]
    unrelated = np.std(v) * np.sign(np.arange(8) % 2 - 0.5)[:, None]
    assert sap(v + 0.5 * unrelated, v) == pytest.approx(0.8, abs=1e-12)


def test_modularity_of_shared_factors():
    # a latent of two factors alike, of three: 1 - 1/2; one that repeats another costs nothing
    assert modularity(V[:, [0, 0, 1, 2]], V) == pytest.approx(1.0, abs=1e-12)
    assert modularity(TURNED[:, [0, 2]], V) == pytest.approx(0.75, abs=1e-12)
    assert modularity(V[:, :1], V[:, :1]) == 1.0


def test_mutual_information_of_a_table():
    # joint 1/2, 1/4, 0, 1/4, written out, and scikit-learn's on random tables
    codes, factors = np.array([[0], [0], [0], [1]]), np.array([[5], [5], [9], [9]])
    exact = 0.5 * np.log(0.5 / (0.75 * 0.5)) + 0.25 * np.log(0.25 / (0.75 * 0.5))
    exact += 0.25 * np.log(0.25 / (0.25 * 0.5))
    assert mutual_information(codes, factors)[0, 0] == pytest.approx(exact, abs=1e-14)
    z = noise(200, 3)
    v = np.stack([z[:, 0] > 0, z[:, 1] + z[:, 2] > 0.5], axis=1).astype(int)
    cuts = np.linspace(z.min(axis=0), z.max(axis=0), 8)[1:-1]  # 7 bins have 6 inner edges
    binned = np.sum(z[None] >= cuts[:, None], axis=0)
    for found in (mutual_information(z, v, bins=7), mutual_information(binned, v, bins=2)):
        oracle = [[mutual_info_score(a, b) for b in v.T] for a in binned.T]
        assert np.allclose(found, oracle, atol=1e-12)


def test_information_and_modularity_of_noise():
    # information is high by (bins - 1)(values - 1) / 2n, and modularity's floor follows from that
    n, values = 2000, np.array([2, 5, 9])
    rng = np.random.default_rng(1)
    z, v = rng.integers(0, 10, (n, 200)), rng.integers(0, values, (n, 3))
    bias = 9 * (values - 1) / (2 * n)
    assert np.allclose(np.mean(mutual_information(z, v), axis=0), bias, rtol=0.05)
    assert modularity(z, v) == pytest.approx(1 - np.mean([(1 / 8) ** 2, (4 / 8) ** 2]), abs=0.05)
    assert mig(z, v) < 0.01
    assert sap(z, v) < 0.01


def test_dci_of_a_latent_that_holds_two_factors():
    # R = [[1, 1, 0], [0, 0, 1]]: two thirds of the importance at 1 - log 2 / log 3
    v = np.tile(np.indices((2, 2, 2)).reshape(3, -1).T, (25, 1))
    codes = np.stack([2 * v[:, 0] + v[:, 1], v[:, 2]], axis=1)
    found = dci(KEY, codes, v, trees=5)
    assert found.disentanglement == pytest.approx(1 - 2 / 3 * np.log(2) / np.log(3), abs=1e-9)
    assert found.completeness == pytest.approx(1.0, abs=1e-9)
    assert found.informativeness == 1.0


def test_dci_of_known_importances(monkeypatch):
    """By hand: R = [[1, 0], [1/2, 1/2], [0, 1/2]], a dead latent, and half of the guesses right."""
    columns = iter(([1.0, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]))

    class Fitted:
        def __init__(self, **_):
            self.feature_importances_ = np.array(next(columns))

        def fit(self, codes, v):
            assert len(codes) == len(v) == 32
            return self

        def score(self, codes, v):
            assert len(codes) == len(v) == 32
            return self.feature_importances_[0] * 0.5

    monkeypatch.setattr("sklearn.ensemble.GradientBoostingClassifier", Fitted)
    found = dci(KEY, np.concatenate([V, V[:, :1]], axis=1), V[:, :2])
    share = np.array([1.0, 1.0, 0.5]) / 2.5
    assert found.disentanglement == pytest.approx(share @ [1.0, 0.0, 1.0], abs=1e-12)
    entropy = np.log(3) - 2 / 3 * np.log(2), np.log(2)  # of (2/3, 1/3) and (1/2, 1/2)
    expected = np.mean([1 - h / np.log(4) for h in entropy])
    assert found.completeness == pytest.approx(expected, abs=1e-12)
    assert found.informativeness == pytest.approx(0.25, abs=1e-12)


def test_dci_of_a_factor_in_two_latents_and_of_noise():
    found = dci(KEY, TWICE, V, trees=5)
    assert found.disentanglement == pytest.approx(1.0, abs=1e-9)
    assert (2 + 1 - np.log(2) / np.log(4)) / 3 - 1e-9 <= found.completeness < 1.0
    v = np.tile(V, (10, 1))
    found = dci(KEY, noise(640, 3), v, trees=5)
    assert isinstance(found, DCI)
    assert found == dci(KEY, noise(640, 3), v, trees=5)
    assert found != dci(jax.random.key(1), noise(640, 3), v, trees=5)
    assert found.disentanglement < 0.1
    assert found.completeness < 0.1
    assert abs(found.informativeness - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 960)  # of 3 x 320 guesses


@pytest.mark.parametrize("score", [factor_vae_score, beta_vae_score])
def test_scores_by_vote(score):
    # at 45 degrees two factors look alike and the third does not: (1/2 + 1/2 + 1) / 3; noise: 1/3
    for codes, v, p in ((TURNED, V, 2 / 3), (noise(6400, 3), np.tile(V, (100, 1)), 1 / 3)):
        found = [score(jax.random.key(seed), codes, v, groups=300) for seed in range(6)]
        assert len(set(found)) > 1
        assert standard_errors_off(found, p) < 4
        assert found[1] == score(jax.random.key(1), codes, v, groups=300)
    assert score(KEY, TWICE, V) == 1.0


def test_what_each_vote_forgives():
    # factors turned by less than 45 degrees can still be told apart; MIG does not forgive
    codes = mixed(0.4)
    assert beta_vae_score(KEY, codes, V) == 1.0
    assert factor_vae_score(KEY, codes, V) > 0.95
    assert mig(codes, V) < 0.6
    units = codes * np.array([1e-3, 1.0, 1e3])
    assert factor_vae_score(KEY, units, V) == factor_vae_score(KEY, codes, V)
    assert beta_vae_score(KEY, units, V) == 1.0


def test_votes_of_unequal_values():
    # a value that fills most rows is drawn as often as it occurs, and factors need not start at 0
    v = V[np.random.default_rng(0).choice(64, 3000, p=(w := 4.0 ** -V.sum(axis=1)) / w.sum())]
    assert factor_vae_score(KEY, v, 10 * v - 7) == 1.0
    assert beta_vae_score(KEY, v, 10 * v - 7) > 0.99


BAD = {
    "None": (None, V, "codes is None"),
    "a list": (V.tolist(), V, "codes is a list"),
    "one axis": (V[:, 0], V, r"codes has shape \(64,\)"),
    "no latents": (V[:, :0], V, r"codes has shape \(64, 0\)"),
    "nan": (np.where(V == 2, np.nan, V), V, r"codes holds nan at \(2, 2\)"),
    "text": (V.astype(str), V, "codes is an array of <U"),
    "float factors": (V, V + 0.0, "factors has dtype float64"),
    "other rows": (V, V[:60], "codes has 64 rows and factors 60"),
    "constant": (V, V * np.array([1, 0, 1]), "factors holds 0 throughout column 1"),
}


@each_score
@pytest.mark.parametrize(("codes", "factors", "error"), BAD.values(), ids=BAD)
def test_bad_arrays_are_named(score, codes, factors, error):
    with pytest.raises((TypeError, ValueError), match=rf"^\w+: {error}.*, expected "):
        score(codes, factors)


def test_other_bad_arguments_are_named(monkeypatch):
    seed: Any = 0
    for call in (dci, factor_vae_score, beta_vae_score):
        with pytest.raises(TypeError, match=r"^\w+: key is an int, expected"):
            call(seed, V, V)
    for call in (factor_vae_score, beta_vae_score):
        with pytest.raises(ValueError, match="factors has one column"):
            call(KEY, V, V[:, :1])
        with pytest.raises(ValueError, match="groups is 0"):
            call(KEY, V, V, groups=0)
        with pytest.raises(ValueError, match="size is 0"):
            call(KEY, V, V, size=0)
    with pytest.raises(ValueError, match="groups is 1, expected enough"):
        beta_vae_score(KEY, V, V, groups=1)
    with pytest.raises(ValueError, match="bins is 0"):
        mig(V, V, bins=0)
    with pytest.raises(ValueError, match="trees is 0"):
        dci(KEY, V, V, trees=0)
    rare = np.arange(64)[:, None] == 0
    with pytest.raises(ValueError, match=r"^dci \(half of the rows\): factors holds False"):
        dci(jax.random.key(3), V, rare)
    with pytest.raises(TypeError, match="codes is traced"):
        jax.jit(lambda z: mig(z, V))(V)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ImportError, match=r'^dci: .*pip install "jaxvae\[disentanglement\]"$'):
        dci(KEY, V, V)


SIZES = (3, 4, 8, 4, 4)


@pytest.fixture(scope="module")
def drawn():
    return shapes(SIZES)


def test_shapes_are_the_whole_grid_and_no_two_alike(drawn):
    images, factors = drawn
    assert images.shape == (1536, 64, 64, 1)
    assert images.dtype == np.uint8
    assert set(np.unique(images)) == {0, 255}
    assert factors.max(axis=0).tolist() == [size - 1 for size in SIZES]
    assert factors.shape[1] == len(FACTORS)
    assert len(np.unique(factors, axis=0)) == len({image.tobytes() for image in images}) == 1536
    rows = np.array([1500, 3, 77])
    assert np.array_equal(render(factors[rows], SIZES), images[rows])


def test_the_largest_shapes_stay_in_the_frame():
    corners = np.indices((3, 1, 8, 2, 2)).reshape(5, -1).T * [1, 1, 1, 7, 7] + [0, 3, 0, 0, 0]
    images = render(corners)
    assert not images[:, [0, -1]].any()
    assert not images[:, :, [0, -1]].any()


def test_shapes_follow_their_factors(drawn):
    # area by the scale, centre of ink by the position, axis of ink by the rotation
    images, factors = drawn
    kept = factors[:, 0] < 2  # a heart's centre of ink is not its own
    ink, (shape, scale, rotation, x, y) = images[kept, ..., 0] / 255.0, factors[kept].T
    radius = 0.25 * (1 + (scale + 0.5) / 4)
    area = np.sum(ink, axis=(1, 2)) * (2 / 64) ** 2
    assert np.allclose(area, radius**2 * np.where(shape == 0, 2.0, 0.6 * np.pi), rtol=0.1)
    place = (np.arange(64) + 0.5) / 32 - 1
    ink = ink / np.sum(ink, axis=(1, 2), keepdims=True)
    mean_x, mean_y = np.einsum("nij,j->n", ink, place), np.einsum("nij,i->n", ink, -place)
    assert np.allclose(mean_x, (x + 0.5) / 4 - 0.5, atol=0.01)
    assert np.allclose(mean_y, (y + 0.5) / 4 - 0.5, atol=0.01)
    dx, dy = place[None] - mean_x[:, None], -place[None] - mean_y[:, None]
    xx, yy = np.einsum("nij,nj->n", ink, dx**2), np.einsum("nij,ni->n", ink, dy**2)
    xy = np.einsum("nij,nj,ni->n", ink, dx, dy)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    expected = (rotation + 0.5) / 8 * np.pi / 2
    assert np.abs(angle - expected)[shape == 1].max() < 0.1


@pytest.mark.slow
def test_the_sweep(tmp_path, monkeypatch, capsys):
    # two epochs of a small model: every number, finite, in the folder, with the figures
    small = {"EPOCHS": 2, "SEEDS": 1, "BETAS": (1.0, 4.0), "TREES": 2, "HIDDEN": (8,), "BATCH": 32}
    for name, value in (small | {"SIZES": (2, 2, 2, 2, 4), "SIDE": 16, "LATENT": 3}).items():
        monkeypatch.setattr(sweep, name, value)
    monkeypatch.chdir(tmp_path)
    sweep.main()
    folder = tmp_path / "runs" / "disentanglement"
    numbers = json.loads((folder / "result.json").read_text())
    assert numbers.pop("betas") == [1.0, 4.0]
    assert set(numbers) == {"rate", "distortion", *sweep.CHANCE}
    for name, values in numbers.items():
        assert np.shape(values) == (1, 2)
        assert np.all(np.isfinite(values))
        if name in sweep.CHANCE:
            assert np.min(values) >= 0
            assert np.max(values) <= 1
    assert numbers["rate"][0][0] != numbers["rate"][0][1]
    for figure in ("scores.png", "traversals.png"):
        assert (folder / figure).stat().st_size > 10_000
    assert "best MIG" in capsys.readouterr().out
