"""Moments of gradients, against NumPy and the signal-to-noise ratios that are known.

Rainforth et al.'s model in 2-D: p(z) = N(0, I), p(x|z) = N(z, I), so p(z|x) = N(x/2, I/2); q
has its mean off by (.5, .5) and variance 2/3.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxvae import (
    VAE,
    Normal,
    StandardNormal,
    batched,
    doubly_reparameterized,
    elbo,
    iwae,
    pathwise,
    sticking_the_landing,
)
from jaxvae.evaluation import gradient_statistics
from tests.common import close

X = jnp.array([0.6, -1.0])
KS = (1, 4, 16, 64)


def model():
    return VAE(
        encode=Partial(lambda loc, x: Normal(loc, jnp.full(2, (2 / 3) ** 0.5)), X / 2 + 0.5),
        decode=Partial(lambda shift, z: Normal(z + shift, jnp.ones(2)), jnp.zeros(2)),
        prior=StandardNormal((2,)),
    )


def snr(gradient, k, num_draws=40_000):
    objective = partial(iwae, num_samples=k, gradient=gradient)
    run = partial(gradient_statistics, objective, num_draws=num_draws, chunk=2_000)
    s = jax.jit(run)(model(), jax.random.key(k), X).snr
    return np.mean(jax.tree.leaves(s.encode)[0]), np.mean(jax.tree.leaves(s.decode)[0])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("gradient", "table"),
    [
        pytest.param(pathwise, (0.612, 0.316, 0.151, 0.076), marks=pytest.mark.slow),
        (doubly_reparameterized, (2.45, 2.60, 4.22, 8.14)),
    ],
)
def test_signal_to_noise(gradient, table):
    """targets: in the encoder the SNR of IWAE falls as K^-1/2, that of DReG grows as K^1/2; in the
    decoder it grows under both. The SNR itself is known to (1 + snr^2/2)^1/2 / sqrt(draws)."""
    encoder, decoder = np.array([snr(gradient, k) for k in KS]).T
    error = np.sqrt(1.0 + np.square(table) / 2) / np.sqrt(2 * 40_000)
    rounding = np.array([5e-4] * 4 if gradient is pathwise else [5e-3] * 4)
    assert (abs(encoder - table) < 4 * error + rounding + 0.01 * np.array(table)).all()
    slope = lambda y, x: np.polyfit(np.log(x), np.log(y), 1)[0]
    if gradient is pathwise:
        assert abs(slope(encoder, KS) + 0.5) < 0.05
    else:
        assert abs(slope(encoder[2:], KS[2:]) - 0.5) < 0.05
    assert abs(slope(decoder[1:], KS[1:]) - 0.5) < 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_moments_are_numpys(chunk, x64):
    """Mean, unbiased variance and SNR of the gradients drawn with fold_in(key, i)."""
    objective = partial(iwae, num_samples=3)
    at = jax.tree.map(lambda leaf: leaf.astype(float), model())
    x = X.astype(float)
    s = gradient_statistics(objective, at, jax.random.key(1), x, num_draws=7, chunk=chunk)
    grad = jax.jit(jax.grad(lambda m, key: objective(m, key, x)[0]))
    drawn = [grad(at, jax.random.fold_in(jax.random.key(1), i)) for i in range(7)]
    for leaves in zip(*map(jax.tree.leaves, (*drawn, *s)), strict=True):
        *g, mean, variance, ratio = leaves
        assert close(mean, np.mean(g, axis=0))
        assert close(variance, np.var(g, axis=0, ddof=1))
        assert close(ratio, abs(np.mean(g, axis=0)) / np.std(g, axis=0, ddof=1))


def test_the_precision_is_the_models(x64):
    """A float32 network in a float64 session, as Flax makes them: moments are float32."""
    weight: Any = jnp.float32(2.0)

    def objective(weight, key, x):
        return weight * jax.random.normal(key, (), jnp.float32), None

    s = gradient_statistics(objective, weight, jax.random.key(1), X, num_draws=7, chunk=3)
    assert {leaf.dtype for leaf in jax.tree.leaves(s)} == {jnp.dtype("float32")}


def test_a_large_mean_does_not_drown_the_variance():
    """Chunks are merged about their means: float32 keeps a spread of 1 about 10,000."""

    def objective(slope, key, x):
        return slope * (1e4 + jax.random.normal(key)), None

    slope: Any = jnp.array(0.0)
    s = gradient_statistics(objective, slope, jax.random.key(2), X, num_draws=4_000)
    assert abs(s.mean - 1e4) < 0.1
    assert abs(s.variance - 1.0) < 4 * (2 / 4_000) ** 0.5
    assert abs(s.snr / 1e4 - 1.0) < 0.1


@pytest.mark.thorough
def test_no_noise_no_variance(x64):
    """At the exact posterior sticking the landing is 0 without noise; pathwise is noise alone."""
    at = VAE(
        encode=Partial(lambda loc, x: Normal(loc, jnp.full(2, 0.5**0.5)), X.astype(float) / 2),
        decode=Partial(lambda z: Normal(z, jnp.ones(2))),
        prior=StandardNormal((2,)),
    )
    x = X.astype(float)
    run = lambda g: gradient_statistics(
        partial(iwae, num_samples=1, gradient=g), at, jax.random.key(3), x, num_draws=50
    )
    quiet, loud = (jax.tree.leaves(run(g).variance)[0] for g in (sticking_the_landing, pathwise))
    assert jnp.max(quiet) < 1e-20
    assert jnp.min(loud) > 0.1


def test_a_batch_serves_too():
    """batched(objective) and rows: the variance of the mean is that of a row over 16."""
    xs = jnp.broadcast_to(X, (16, 2))
    run = partial(gradient_statistics, num_draws=4_000)
    one = run(elbo, model(), jax.random.key(4), X)
    many = run(batched(elbo), model(), jax.random.key(5), xs)
    for a, b in zip(jax.tree.leaves(one.variance), jax.tree.leaves(many.variance), strict=True):
        assert np.allclose(a / b, 16.0, rtol=0.15)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"num_draws": 1}, "num_draws is 1, expected at least 2"),
        ({"num_draws": 0}, "num_draws is 0, expected an integer"),
        ({"num_draws": 5, "chunk": 0}, "chunk is 0, expected an integer"),
    ],
)
def test_counts(hyper, message):
    with pytest.raises(ValueError, match=message):
        gradient_statistics(elbo, model(), jax.random.key(0), X, **hyper)


def test_what_has_no_gradient_is_named():
    encode, decode = lambda x: Normal(x, 1.0), Partial(lambda z: Normal(z, 1.0))
    model = VAE(encode, decode, StandardNormal(()))
    with pytest.raises(TypeError, match=r"gradient_statistics: model\.encode is a function, .*Par"):
        gradient_statistics(elbo, model, jax.random.key(0), jnp.ones(()), num_draws=2)
