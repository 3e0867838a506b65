"""The deep hierarchy: one way down is the model's own ELBO, level by level."""

import json
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxvae as jv
from experiments.structures import deep_hierarchy as script
from jaxvae.bounds.kl import levels
from jaxvae.models.deep_bound import deep_elbo, descend
from jaxvae.nn.deep import deep_hierarchy
from tests.common import close
from tests.library.nn.test_residual import perturbed

SHAPE = (4, 4, 1)
X = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.float32)


@cache
def small():
    make = jax.jit(lambda key: deep_hierarchy(SHAPE, rngs=nnx.Rngs(key), **SIZES))
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), perturbed(make(jax.random.key(0))))


SIZES = {"levels": (1, 2), "width": 4, "latents": 2}


@pytest.mark.slow
def test_the_way_down_is_the_library_s(x64):
    """At sigma 0 both go through the means: the same KL at every level, the same likelihood."""
    model = jax.tree.map(lambda leaf: leaf.astype(float), small())
    x = X.astype(float)

    @jax.jit
    def everything(model, x):
        deep = model.top_down()
        raw, kls = descend(deep, jax.random.key(0), deep.up(x), jnp.zeros(3))
        q, p = model.encode(x), model.prior
        z = means(q, jax.random.key(1))
        exact = jnp.stack([jv.kl_divergence(a, b) for a, b, _ in levels(q, p, z)])
        there = model.likelihood(raw).log_prob(x), model.decode(z).log_prob(x)
        raw, _ = descend(deep, jax.random.key(0), [None, None], jnp.zeros(3))
        at_means = model.decode(means(p, jax.random.key(1))).logits
        return kls, exact, there, (model.likelihood(raw).logits, at_means)

    kls, exact, there, generated = everything(model, x)
    assert np.all(exact > 0.01)
    assert close(kls, exact)
    assert close(*there)
    assert close(*generated)


def means(d, key):
    """The mean of each level given that of those above: a draw at sigma 0."""
    if isinstance(d, jv.Joint):
        return (z := means(d.first, key), means(d.then(z), jax.random.clone(key)))
    return d.tempered(jnp.zeros(())).sample(key)


@pytest.fixture(scope="module")
def both():
    """Of 1,000 draws: the bound and its levels, and log-weights with the sampled levels."""

    model = small()

    def one(key):
        deep_key, key = jax.random.split(key)
        bound, terms = deep_elbo(model, deep_key, X)
        q, p = model.encode(X), model.prior
        z, log_q = jv.sample_and_log_prob(q, key)
        sampled = [a.log_prob(b) - c.log_prob(b) for a, c, b in levels(q, p, z)]
        log_w = model.decode(z).log_prob(X) + p.log_prob(z) - log_q
        return bound, terms.levels, log_w, jnp.stack(sampled)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 1_000))


def off(a, b):
    """Standard errors between the means of two sets of draws."""
    spread = np.sqrt((np.var(a, axis=0) + np.var(b, axis=0)) / len(a))
    return np.max(np.abs(np.mean(a, axis=0) - np.mean(b, axis=0)) / spread)


@pytest.mark.thorough
def test_the_bound_is_the_mean_log_weight(both):
    bound, _, log_w, _ = both
    assert off(bound, log_w) < 4


@pytest.mark.thorough
def test_each_level_has_the_mean_of_its_sampled_rate(both):
    _, analytic, _, sampled = both
    assert np.all(np.mean(analytic, axis=0) > 0.05)
    assert off(analytic, sampled) < 4


@pytest.mark.thorough
def test_every_level_reaches_the_image():
    """Drawing one level more moves p(x|z): no level is cut off, and each draws its own noise."""
    model = small().top_down()
    look = jax.jit(lambda t: descend(model, jax.random.key(0), [None, None], t)[0])
    for a, b in pairwise(look((np.arange(3) < n).astype(np.float32)) for n in range(4)):
        assert np.any(np.abs(a - b) > 1e-3)


@pytest.mark.thorough
def test_free_bits_are_free():
    """Beta weighs what is left; levels below `free` cost it and pass no gradient to q."""
    xs = np.stack([X, 1 - X])

    @jax.jit
    def objective(model, key, beta, free):
        return jv.batched(deep_elbo)(model, key, xs, beta=beta, free_nats=free)

    bound, terms = objective(small(), jax.random.key(0), 0.5, 0.0)
    mean = np.mean(terms.distortion + 0.5 * terms.rate)
    assert np.isclose(bound, -mean, rtol=1e-5)
    free = float(np.median(np.mean(terms.levels, axis=0)))
    bound, terms = objective(small(), jax.random.key(0), 0.5, free)
    price = np.sum(np.maximum(free, np.mean(terms.levels, axis=0)))
    assert price > np.mean(terms.rate)
    assert np.isclose(bound, -np.mean(terms.distortion) - 0.5 * price, rtol=1e-5)


@pytest.mark.thorough
def test_refusals():
    bad: Any
    for bad, error in (
        ({"model": None}, "model is None"),
        ({"model": jv.StandardNormal((2,))}, "model is a StandardNormal"),
        ({"key": None}, "key is None"),
        ({"x": jnp.zeros((4, 4))}, "x has shape"),
        ({"x": jnp.zeros((4, 4, 2))}, "x has shape"),
        ({"x": None}, "x is None"),
        ({"beta": jnp.ones(2)}, "beta has shape"),
        ({"free_nats": "0.1"}, "free_nats is a str"),
        ({"free_nats": 0.1}, r"jaxvae.batched\(objective\)"),
    ):
        good = {"model": small(), "key": jax.random.key(0), "x": X}
        with pytest.raises((TypeError, ValueError), match=error):
            jax.eval_shape(lambda given=good | bad: deep_elbo(**given))
    for bad, error in (
        ({"levels": ()}, "levels is"),
        ({"levels": (2, 0)}, "levels is 0"),
        ({"levels": 3}, "levels is 3"),
        ({"width": 0}, "width is 0"),
        ({"latents": None}, "latents is None"),
        ({"image_shape": (4, 4)}, "image_shape is"),
        ({"image_shape": None}, "image_shape is None"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            deep_hierarchy(**({"image_shape": SHAPE, "rngs": nnx.Rngs(0)} | bad))


@pytest.mark.slow
def test_the_script(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 2, (64, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images)
    data = SimpleNamespace(train=split, validation=split, test=split)
    monkeypatch.setattr(script, "load", lambda _: data)
    tiny = script.Setting((1, 1), width=4, epochs=2, batch=64, rate=1e-3, free=0.0, images=3)
    monkeypatch.setattr(script, "SETTINGS", dict.fromkeys(script.SETTINGS, tiny))
    monkeypatch.setattr(script, "DRAWS", 2)
    monkeypatch.setattr(script, "SEEDS", 1)
    monkeypatch.setattr(script, "SAMPLES", 3)
    monkeypatch.chdir(tmp_path)
    script.main()
    folder = tmp_path / "runs" / "deep_hierarchy"
    ((numbers,),) = json.loads((folder / "result.json").read_text()).values()
    assert np.all(np.isfinite(list(numbers.values())))
    assert numbers["nats of level 1"] + numbers["nats of level 2"] > 0
    assert numbers["steps skipped"] == 0
    assert (folder / "images.png").stat().st_size > 1_000
    assert "epoch 2: bound -" in capsys.readouterr().out
