"""The recipe of series of unequal length: data, model on tiny series, scores, peer."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxvae as jv
from experiments.datasets import vowels
from experiments.recipes import sequences
from experiments.recipes.peers import vector_autoregression as peer
from jaxvae.models import stepwise_kl
from tests.common import standard_errors_off

RNG = np.random.default_rng(0)


@pytest.fixture
def small(monkeypatch):
    """Series of up to 6 steps of 2 channels."""
    for name, value in {"LENGTH": 6, "CHANNELS": 2, "LATENT": 3, "HIDDEN": 4, "DRAWS": 5}.items():
        monkeypatch.setattr(sequences, name, value)
    monkeypatch.setattr(sequences, "SEEN", 2)


def test_a_file_of_series_is_read_padded_and_scaled(tmp_path, monkeypatch):
    """Channels by colons, steps by commas, the speaker last; statistics of the training steps."""
    series = [RNG.normal(3.0, 2.0, (n, vowels.CHANNELS)).round(4) for n in (3, 5, 29)]
    for part, chosen in (("TRAIN", series[:2]), ("TEST", series[2:])):
        rows = [":".join(",".join(map(str, c)) for c in s.T) + ":1" for s in chosen]
        path = tmp_path / f"JapaneseVowels_{part}.ts"
        path.write_text("#words\n@data\n" + "\n".join(rows) + "\n")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(vowels.CHECKSUMS, part, digest)
    (x, mask), (test, seen) = vowels.read(str(tmp_path))
    assert mask.sum(1).tolist() == [3, 5]
    assert seen.all()
    steps = np.concatenate(series[:2])
    assert np.allclose(x[mask].mean(0), 0.0, atol=1e-5)
    assert np.allclose(x[mask].std(0), 1.0, atol=1e-5)
    assert np.allclose(test[0], (series[2] - steps.mean(0)) / steps.std(0), atol=1e-4)
    assert not x[~mask].any()
    (tmp_path / "JapaneseVowels_TEST.ts").write_text("")
    with pytest.raises(SystemExit, match="pip download --no-deps aeon"):
        vowels.read(str(tmp_path))


@pytest.mark.thorough
def test_padded_steps_cost_nothing_and_are_not_seen(small):
    """NaN behind the end changes neither bound nor terms; steps there have no rate; the prefix of a
    series is the same to the model as a series that ends there."""
    model = sequences.model_of(nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    mask = jnp.arange(6) < 4

    @jax.jit
    def bound(x):
        return jv.elbo(model, jax.random.key(0), (x, mask), kl=stepwise_kl)

    @jax.jit
    def rates(x):
        q, p = model.encode((x, mask)), model.prior
        z = q.sample(jax.random.key(1))
        (first, steps), (p_first, p_steps) = q.given(z).parts, p.given(z).parts
        rest = jax.vmap(jv.kl_divergence)(steps.parts, p_steps.parts)
        return jnp.append(jv.kl_divergence(first, p_first), rest)

    spoilt = x.at[4:].set(jnp.nan)
    for a, b in zip(jax.tree.leaves(bound(x)), jax.tree.leaves(bound(spoilt)), strict=True):
        assert a == b
    found = rates(spoilt)
    assert np.all(found[:4] > 0.01)
    assert np.allclose(found[4:], 0.0, atol=1e-5)


def test_the_beginning_of_a_series_is_of_every_length(small):
    x, mask = jnp.ones((6, 2)), jnp.arange(6) < 5
    keys = jax.random.split(jax.random.key(0), 600)
    _, masks = jax.vmap(lambda key: sequences.cut(key, (x, mask)))(keys)
    lengths = np.bincount(masks.sum(1), minlength=6)
    assert np.array_equal(np.sort(masks, 1)[:, ::-1], masks)  # each a beginning
    assert np.all(np.abs(lengths[1:] - [100, 100, 100, 100, 200]) < 40)
    assert lengths[0] == 0


@pytest.mark.thorough
def test_a_forecast_is_of_the_steps_behind_those_seen(small):
    series = RNG.normal(size=(10, 6, 2)).astype(np.float32), np.ones((10, 6), bool)
    model = sequences.model_of(nnx.Rngs(0))
    draws = sequences.futures(model, jax.random.key(0), series)
    other = series[0].copy()
    other[:, 2:] = np.nan
    assert draws.shape == (5, 10, 4, 2)
    assert np.array_equal(draws, sequences.futures(model, jax.random.key(0), (other, series[1])))


@pytest.mark.thorough
def test_scores_are_those_of_a_known_forecast():
    """N(0, 1) against k draws of it: coverage .9 (k - 1) / (k + 1), RMSE 1, CRPS 1 / sqrt pi."""
    n, length, channels = 800, vowels.SEEN + 10, vowels.CHANNELS
    x = RNG.normal(size=(n, length, channels))
    mask = np.arange(length) < RNG.integers(vowels.SEEN + 1, length + 1, n)[:, None]
    draws = RNG.normal(size=(300, n, 10, channels))
    found = vowels.measured(draws, x, mask)
    assert [*found] == ["1 ahead", "5 ahead", "10 ahead"]
    assert found["1 ahead"]["series"] == n
    assert found["10 ahead"]["series"] == mask[:, -1].sum()
    for scores in found.values():
        assert abs(scores["coverage"] - 0.9 * 299 / 301) < 4 * scores["error"]
        assert abs(scores["RMSE"] - 1.0) < 0.1
        assert abs(scores["CRPS"] - np.pi**-0.5) < 0.05
    shifted = vowels.measured(draws + 3.0, x, mask)["1 ahead"]
    assert shifted["coverage"] < 0.1


def test_the_peer_finds_the_autoregression_that_made_the_series(monkeypatch):
    monkeypatch.setattr(peer, "CHANNELS", 2)
    monkeypatch.setattr(peer, "DRAWS", 400)
    a = np.array([[0.7, 0.2], [-0.3, 0.6]])
    x = np.zeros((200, 30, 2))
    x[:, 0] = RNG.normal(size=(200, 2))
    for t in range(1, 30):
        x[:, t] = 1.0 + x[:, t - 1] @ a + 0.5 * RNG.normal(size=(200, 2))
    mask = np.arange(30) < RNG.integers(20, 31, 200)[:, None]
    steps: Any = peer.fit(x, mask, 1, 0.0)
    found, covariance = steps[1]
    assert np.allclose(found, np.vstack([np.ones(2), a]), atol=0.05)
    assert np.allclose(covariance, 0.25 * np.eye(2), atol=0.02)
    noise = 0.5 * np.log(2 * np.pi * np.e * np.array([0.25, 1.0]))  # an entropy a channel
    expected = -2 * (noise[1] + noise[0] * (mask.sum() / 200 - 1)) / (mask.sum() / 200)
    assert abs(peer.log_p(steps, x, mask) - expected) < 0.03
    draws = peer.forecast(steps, RNG, x[:5])[:, :, 0]
    last = x[:5, vowels.SEEN - 1]
    assert standard_errors_off(draws, found[0] + last @ found[1:]) < 6
