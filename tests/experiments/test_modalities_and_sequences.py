"""Multimodal, joint, text and deep Markov scripts in their smallest form: each leaves its files."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.data import Split
from experiments.datasets import sentences
from experiments.structures import (
    deep_markov,
    joint_latents,
    lfads,
    multimodal,
    text,
    world_model,
)
from jaxvae import VAE, Product, StandardNormal, elbo
from tests.common import draws, standard_errors_off

SCRIPTS = {
    "multimodal": (multimodal, "images_of_labels.png", 5_000),
    "joint_latents": (joint_latents, "choices.png", 5_000),
    "text": (text, "samples.txt", 400),
    "deep_markov": (deep_markov, "forecasts.png", 5_000),
    "world_model": (world_model, "forecasts.png", 5_000),
    "lfads": (lfads, "rates.png", 5_000),
}
SMALL = {
    "EPOCHS": 1,
    "WARM_UP": 1,
    "SEEDS": 1,
    "BATCH": 32,
    "SAMPLES": 2,
    "IMAGES": 8,
    "HIDDEN": 8,
    "SEQUENCES": 64,
    "SENTENCES": 64,
    "TESTS": 16,
    "CONDITIONS": 35,
    "TRIALS": 5,
    "HELD_OUT": 4,
    "DRAWS": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_leaves_its_files(name, tmp_path, monkeypatch, capsys):
    module: Any
    module, shown, size = SCRIPTS[name]
    rng = np.random.default_rng(0)
    split = Split(
        images=rng.integers(0, 256, (64, 28, 28, 1)).astype(np.uint8),
        labels=rng.integers(0, 10, 64),
    )
    data = SimpleNamespace(train=split, test=split)
    monkeypatch.setattr(module, "load", lambda *_, **__: data, raising=False)
    monkeypatch.setattr(multimodal.classifier, "labels", lambda xs: jnp.zeros(len(xs), int))
    for constant, value in SMALL.items():
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, value)
    monkeypatch.chdir(tmp_path)
    module.main()
    folder = tmp_path / "runs" / name
    for file in folder.glob("*.json"):
        numbers = json.loads(file.read_text())
        assert set(numbers) == set(module.METHODS)
        assert np.all(np.isfinite(jax.tree.leaves(numbers)))
    assert (folder / "result.json").exists()
    assert (folder / shown).stat().st_size > size
    assert "+-" in capsys.readouterr().out


def test_the_grammar_has_the_entropy_that_is_claimed():
    """Every sentence is as likely: draws repeat as often as they should."""
    rng = np.random.default_rng(0)
    counts: dict[str, int] = {}
    for _ in range(15_000):
        line, _ = sentences.sentence(rng)
        counts[line] = counts.get(line, 0) + 1
    size = 2**sentences.BITS
    assert len(counts) <= round(size)
    expected = size * (1 - np.exp(-15_000 / size))  # of Poisson draws
    load = 15_000 / size  # and the variance of how many are occupied
    variance = size * np.exp(-load) * (1 - (1 + load) * np.exp(-load))
    assert abs(len(counts) - expected) < 4 * np.sqrt(variance)
    assert max(map(len, counts)) <= sentences.LENGTH
    codes, topics = sentences.sentences(0, 3)
    again, _ = sentences.sentences(0, 3)
    assert np.array_equal(codes, again)
    for line, topic in zip(codes, topics, strict=True):
        words = sentences.read(line)[:-1].split()
        assert any(words[2].removesuffix("s") in t.split() for t in sentences.TOPICS[topic][:1])


def test_a_dropped_word_is_not_seen(monkeypatch):
    """A cell that adds up what it is given: row t holds the kept ones of x_1, ..., x_{t-1}, z each
    time, and nothing of x_t; and each is kept with probability 1 - dropout."""
    symbols = len(sentences.ALPHABET)
    monkeypatch.setattr(text, "LENGTH", 4)
    monkeypatch.setattr(text, "HIDDEN", symbols + text.LATENT)
    x, keep = jnp.array([3, 1, 2, 5]), jnp.array([1.0, 1.0, 0.0, 1.0])
    z = jnp.arange(float(text.LATENT))

    def add(total, given):
        return total + given, total + given

    found = text.step_by_step(add, lambda h: h, x, (z, keep))
    exact = np.zeros((4, symbols))
    exact[1:, 3] = 1.0  # the second of them is dropped
    exact[3:, 2] = 1.0
    assert np.array_equal(found[:, :symbols], exact)
    assert np.array_equal(found[:, symbols:], np.outer([1, 2, 3, 4], z))

    def model(keep):  # whose bound is how many are kept
        kept: Any = SimpleNamespace(log_prob=lambda _: jnp.sum(keep), sample=lambda _: x)
        return VAE(lambda _: StandardNormal(()), lambda _: kept, StandardNormal(()))

    bound = partial(text.objective(0.3), model, x=x)
    kept = draws(lambda key: bound(key)[0], 2_000)
    assert set(kept.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert standard_errors_off(kept, 4 * 0.7) < 4


@pytest.mark.thorough
def test_a_choice_summed_out_is_the_mean_over_choices():
    """At the drawn style, exactly; both rates in closed form, and the style's path is kept."""
    model, key = joint_latents.make(jax.random.key(0)), jax.random.key(2)
    x = (jax.random.uniform(jax.random.key(1), joint_latents.SHAPE) > 0.5).astype(float)

    def by_hand(model):
        q = model.encode(x)
        style_key, _ = jax.random.split(jax.random.clone(key))
        style = Product({"style": q.parts["style"]}).sample(style_key)["style"]
        log_p = [
            model.decode({"choice": choice, "style": style}).log_prob(x)
            for choice in jnp.eye(joint_latents.CHOICES)
        ]
        rates = joint_latents.rates(q, model.prior)
        return q.parts["choice"].mean() @ jnp.stack(log_p) - rates["choice"] - rates["style"]

    def bound(model):
        return elbo(model, key, x, gradient=joint_latents.SUM)[0]

    found, exact = jax.jit(lambda m: [jax.value_and_grad(f)(m) for f in (bound, by_hand)])(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4)
