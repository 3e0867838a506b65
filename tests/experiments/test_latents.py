"""Priors fitted after training, in closed form, and the scripts in their small form."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.latents import classifier, second_stage, walks
from jaxvae import VAE, Normal, StandardNormal, elbo
from tests.common import close


@pytest.mark.thorough
def test_a_mixture_of_one_is_the_gaussian_of_the_sample(x64):
    z = np.random.default_rng(0).normal(size=(50, 3)) @ np.array([[1, 2, 0], [0, 1, 1], [0, 0, 2]])
    cov = np.cov(z.T, bias=True) + 1e-4 * np.eye(3)
    found = second_stage.mixture(jnp.asarray(z), 1)
    assert close(found.mean(), z.mean(axis=0))
    tril = found.components.scale_tril[0]
    assert close(tril @ tril.T, cov)
    e = z[0] - z.mean(axis=0)
    expected = -0.5 * (e @ np.linalg.solve(cov, e) + np.linalg.slogdet(2 * np.pi * cov)[1])
    assert close(found.log_prob(z[0]), expected)


def test_a_mixture_of_two_finds_two_clusters_and_their_weights():
    noise = jax.random.normal(jax.random.key(0), (80, 2))
    z = noise + jnp.where(jnp.arange(80) < 20, 50.0, -50.0)[:, None]
    found = second_stage.mixture(z, 2)
    order = jnp.argsort(found.logits)
    assert jnp.allclose(jax.nn.softmax(found.logits)[order], jnp.array([0.25, 0.75]), atol=1e-5)
    expected = jnp.stack([jnp.mean(z[:20], axis=0), jnp.mean(z[20:], axis=0)])
    assert jnp.allclose(found.components.loc[order], expected, atol=1e-3)


def test_a_chain_of_exact_posteriors_is_exact(x64):
    """z2 ~ N(0, 1), z1 ~ N(a z2, s^2), x ~ N(z1, t^2), all inferred from below: ELBO = log p(x)."""
    a, s, t = 1.5, 0.5, 0.8
    v = a**2 + s**2  # of z1

    def gaussian(slope, scale):
        return Partial(lambda y: Normal(slope * y, jnp.full(1, scale)))

    first = VAE(
        encode=gaussian(v / (v + t**2), (1 / v + 1 / t**2) ** -0.5),
        decode=gaussian(1.0, t),
        prior=StandardNormal((1,)),  # as trained; the chain's takes its place
    )
    second = VAE(gaussian(a / v, s / v**0.5), gaussian(a, s), StandardNormal((1,)))
    model, x = second_stage.chain(first, second), jnp.array([0.7])
    bounds = [elbo(model, key, x)[0] for key in jax.random.split(jax.random.key(0), 3)]
    assert close(jnp.stack(bounds), Normal(jnp.zeros(1), (v + t**2) ** 0.5).log_prob(x))


def small(monkeypatch, tmp_path):
    """Sixty-four images of all classes, two steps of each training, and an empty folder."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images, labels=np.arange(64) % 10)
    data = SimpleNamespace(train=split, test=split)
    constants = {"SEEDS": 1, "EPOCHS": 1, "PRIOR_EPOCHS": 1, "WARM_UP": 1, "BATCH": 32, "DRAWS": 30}
    constants |= {"EM_ROWS": 64, "COMPONENTS": 1, "PER_CLASS": 12, "LATENT": 4, "HIDDEN": (8,)}
    constants |= {"FLOW_HIDDEN": (8,), "LAYERS": 2, "TEMPERATURES": (0.8,)}
    for module in (classifier, second_stage, walks):
        monkeypatch.setattr(module, "load", lambda *_, **__: data)
        for name in constants.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, constants[name])
    monkeypatch.chdir(tmp_path)
    classifier.trained.cache_clear()
    return images


@pytest.fixture(autouse=True)
def forget():
    yield
    classifier.trained.cache_clear()


def numbers_in(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_classifier(tmp_path, monkeypatch, capsys):
    images = small(monkeypatch, tmp_path) / np.float32(255)
    classifier.main()
    (value,) = numbers_in(tmp_path / classifier.FOLDER)["test accuracy"]
    assert 0.0 <= value <= 100.0
    assert "+-" in capsys.readouterr().out
    found = classifier.features(images)
    assert found.shape == (64, classifier.FEATURES)
    # labels are those of the features, and both the same from the file
    scores = classifier.trained().logits(jax.nn.relu(found))
    assert classifier.labels(images).tolist() == jnp.argmax(scores, axis=1).tolist()
    classifier.trained.cache_clear()
    monkeypatch.setattr(classifier, "run", None)
    assert close(classifier.features(images), found)


def no_features(monkeypatch):
    """The mean of each quarter of the rows, and a label, in place of a network's."""

    def features(images):
        return jnp.mean(images.reshape(len(images), 4, -1), axis=2)

    for module in (second_stage, walks):
        monkeypatch.setattr(module, "features", features)
    monkeypatch.setattr(walks, "labels", lambda x: jnp.zeros(len(x), jnp.int32))


@pytest.mark.slow
def test_second_stage(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path)
    no_features(monkeypatch)
    second_stage.main()
    folder = tmp_path / second_stage.FOLDER
    results = numbers_in(folder)
    measured = {"frechet", "precision", "recall", "density", "coverage"}
    for label in ("N(0, I)", "mixture", "flow", "second VAE"):
        assert np.isfinite(results[label]["-elbo"]).all()
        assert results[f"{label}, T = 0.8"].keys() == measured
    assert results["aggregate posterior"].keys() == measured
    assert (folder / "samples_0.png").stat().st_size > 10_000
    assert "+-" in capsys.readouterr().out


@pytest.mark.slow
def test_walks(tmp_path, monkeypatch, capsys):
    small(monkeypatch, tmp_path)
    no_features(monkeypatch)
    walks.main()
    folder = tmp_path / walks.FOLDER
    results = numbers_in(folder)
    linear, spherical = (
        results[f"draws of the prior, {way}: norm"][0] for way in ("linear", "spherical")
    )
    assert 1.2 < spherical / linear < 2.0  # sqrt 2 in many dimensions
    assert results["right on draws at temperature 0.8, %"] == pytest.approx([10.0])  # all said 0
    for name in ("paths", "classes", "traversals"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert np.isfinite(list(results.values())).all()
    assert "+-" in capsys.readouterr().out
