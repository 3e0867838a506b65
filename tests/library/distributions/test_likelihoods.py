"""Likelihoods: what data they refuse, their limits, their extremes in float32."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats as scipy_stats

import jaxvae as jv
from jaxvae.distributions.continuous_bernoulli import log_normalizer
from tests.common import close

BYTES = np.array([0, 7, 255], np.uint8)
REFUSED = [
    (
        jv.Bernoulli(jnp.zeros(3)),
        BYTES,
        TypeError,
        "uint8, expected floats 0. or 1.; see .*binarize",
    ),
    (jv.Bernoulli(jnp.zeros(3)), np.array([0.0, 255.0, 1.0]), ValueError, r"255.0 at \(1,\)"),
    (
        jv.Bernoulli(jnp.zeros(3)),
        np.array([0.0, 1.0, 1 / 255]),
        ValueError,
        r"0.0039\d* at \(2,\), expected .* 0. or 1.; see jaxvae.binarize, or ContinuousBernoulli",
    ),
    (jv.Bernoulli(jnp.zeros(3)), np.array([254 / 255, 1.0, 0.0]), ValueError, "0.996"),
    (jv.Bernoulli(jnp.zeros(3)), np.array([0.0, -1.0, 1.0]), ValueError, r"-1.0 at \(1,\)"),
    (jv.Bernoulli(jnp.zeros(3)), np.array([0.0, np.nan, 1.0]), ValueError, r"nan at \(1,\)"),
    (jv.ContinuousBernoulli(jnp.zeros(3)), BYTES, TypeError, r"uint8, expected floats in \[0, 1\]"),
    (jv.ContinuousBernoulli(jnp.zeros(3)), np.array([0.0, 2.0, 1.0]), ValueError, "2.0"),
    *(
        (d, BYTES, TypeError, f"{type(d).__name__}.log_prob: event is an array of uint8, expected")
        for d in (
            jv.Normal(jnp.zeros(3), jnp.ones(3)),
            jv.StandardNormal((3,)),
            jv.Laplace(jnp.zeros(3), jnp.ones(3)),
            jv.StudentT(jnp.full(3, 2.0), jnp.zeros(3), jnp.ones(3)),
            jv.distributions.OptimalNormal(jnp.zeros(3)),
        )
    ),
    (
        jv.DiscretizedLogistic(jnp.zeros(3), 1.0),
        np.ones(3, np.float32),
        TypeError,
        "float32, expected integers 0..255 as stored",
    ),
    (jv.DiscretizedLogistic(jnp.zeros(3), 1.0), np.array([0, 256, 1]), ValueError, "256 at"),
    (jv.DiscretizedLogistic(jnp.zeros(3), 1.0), np.array([0, -1, 1]), ValueError, "-1 at"),
    (jv.Categorical(jnp.zeros((3, 4))), np.ones(3), TypeError, "expected integers 0..3"),
    (jv.Categorical(jnp.zeros((3, 4))), np.array([0, 4, 1]), ValueError, "4 at"),
    *(
        (
            jv.OneHotCategorical(jnp.zeros((2, 3))),
            np.array([[0.0, 1.0, 0.0], row], np.float32),
            ValueError,
            r"event holds \[.*\] at \(1,\), expected a 1. and else 0. along the last axis",
        )
        for row in (
            [0.5, 0.5, 0.0],
            [0.0, 0.0, 0.0],
            [1.0, 1.0, 0.0],
            [2.0, -1.0, 0.0],
            [255.0, 0.0, 0.0],
            [np.nan, 1.0, 0.0],
        )
    ),
    (jv.Poisson(jnp.ones(3)), np.array([0.5, 1.0, 2.0]), ValueError, "0.5 at .* whole numbers"),
    (jv.Poisson(jnp.ones(3)), np.array([1, -1, 2]), ValueError, "-1 at"),
    (jv.NegativeBinomial(jnp.ones(3), 0.0), np.array([1.0, np.nan, 2.0]), ValueError, "nan at"),
    (
        jv.distributions.ZeroInflated(jv.Poisson(jnp.array(1.0)), 0.0),
        np.array(0.5),
        ValueError,
        "whole",
    ),
    (jv.Gamma(jnp.ones(3), 1.0), np.array([0.0, 1.0, 2.0]), ValueError, "positive"),
    (jv.Gamma(jnp.ones(3), 1.0), np.array([np.inf, 1.0, 2.0]), ValueError, "inf at .* positive"),
    (jv.Beta(jnp.ones(3), 1.0), np.array([0.5, 1.0, 0.2]), ValueError, "between 0 and 1"),
    (jv.Dirichlet(jnp.ones(3)), np.array([0.5, 0.5, 0.5]), ValueError, "sum to 1"),
]


@pytest.mark.parametrize(("d", "x", "error", "message"), REFUSED)
def test_data_outside_the_support_say_so(d, x, error, message):
    """By name where they are seen; where they are traced, by a density of 0, unless by type."""
    with pytest.raises(error, match=message):
        d.log_prob(x)
    if error is TypeError:
        with pytest.raises(TypeError, match=message):
            jax.jit(d.log_prob)(x)
    else:
        assert jax.jit(d.log_prob)(jnp.asarray(x)) == -jnp.inf


def test_bytes_are_levels():
    """256 levels do not overflow a uint8."""
    x = np.array([0, 128, 255], np.uint8)
    for d in (jv.DiscretizedLogistic(jnp.zeros(3), 1.0), jv.Categorical(jnp.zeros((3, 256)))):
        assert jax.jit(d.log_prob)(x) == jax.jit(d.log_prob)(x.astype(int)) > -30.0
        assert np.isclose(d.log_prob(x), d.log_prob(x.astype(int)), rtol=1e-6)


@pytest.mark.thorough
def test_draws_are_as_the_data_are_stored():
    """Bytes, which a network behind `Rescaled` takes; of more levels than a byte has, int32."""
    zeros = jnp.zeros((2, 2, 5, 3))
    images = jv.distributions.logistic_mixture(jnp.zeros((2, 2, 5)), zeros, zeros + 0.1, zeros)
    coupled = jv.DiscretizedLogistic(jnp.zeros(3), 1.0, jnp.ones((3, 3)))
    for d in (jv.DiscretizedLogistic(jnp.zeros(3), 1.0), coupled, images):
        x = d.sample(jax.random.key(0))
        assert x.dtype == jnp.uint8
        assert np.isfinite(d.log_prob(x))
        assert jv.rescale(None, x).shape == x.shape
    many = jv.DiscretizedLogistic(jnp.zeros(3), 1.0, levels=1000).sample(jax.random.key(0))
    assert many.dtype == jnp.int32


def test_256_bins_sum_to_one():
    """At every mean and scale, edges included: the mass that others miss."""
    k = jnp.arange(256)[:, None]

    def total(make):
        return jnp.sum(jnp.exp(jax.vmap(make.log_prob)(k)))

    def totals(loc, scale):
        one = jv.DiscretizedLogistic(loc[None], scale[None])
        pair = jv.DiscretizedLogistic(
            jnp.stack([loc, 0.2])[:, None], jnp.stack([scale, 0.1])[:, None]
        )
        return total(one), total(jv.Mixture(jnp.array([0.3, -1.0]), pair))

    locs = jnp.array([-3.0, -1.0, -0.3, 0.5, 1.0, 40.0])
    scales = jnp.array([1e-4, 0.01, 0.3, 3.0, 1e3])
    grid = jax.vmap(jax.vmap(totals, (None, 0)), (0, None))
    assert np.allclose(jnp.stack(jax.jit(grid)(locs, scales)), 1.0, atol=1e-5)


def test_discretized_logistic_is_a_difference_of_sigmoids(x64):
    mu, s = 0.2, 0.15
    cdf = lambda x: 1.0 / (1.0 + np.exp(-(x - mu) / s))
    edges = (2.0 * np.arange(1, 256) - 1.0) / 255.0 - 1.0
    exact = np.diff(np.concatenate([[0.0], cdf(edges), [1.0]]))
    d = jv.DiscretizedLogistic(jnp.array([mu]), jnp.array([s]))
    assert close(np.exp(jax.jit(jax.vmap(d.log_prob))(np.arange(256)[:, None])), exact)


@pytest.mark.thorough
def test_channels_are_coupled_as_in_pixelcnn(x64):
    """Green's mean moves with red, blue's with both; each channel's bins sum to 1 given those."""
    loc, scale = np.array([0.1, -0.2, 0.3]), np.array([0.2, 0.3, 0.4])
    a, b, c = 0.5, -0.3, 0.7
    pixel = jv.distributions.logistic_mixture(
        np.zeros((1, 1, 1)), loc.reshape(1, 1, 1, 3), scale.reshape(1, 1, 1, 3),
        np.array([a, b, c]).reshape(1, 1, 1, 3),
    )  # fmt: skip
    red, green, blue = 10, 100, 200
    x, y = 2 * red / 255 - 1, 2 * green / 255 - 1
    means = loc + np.array([0.0, a * x, b * x + c * y])
    event = np.array([red, green, blue])
    blues = np.stack([np.array([red, green, k]) for k in range(256)]).reshape(256, 1, 1, 3)
    given = jax.jit(jax.vmap(pixel.log_prob))(blues)
    plain = jax.jit(lambda m, s, z: jv.DiscretizedLogistic(m, s).log_prob(z))
    assert close(given[blue], plain(means, scale, event))
    assert close(np.exp(given).sum(), np.exp(plain(means[:2], scale[:2], event[:2])))
    with pytest.raises(TypeError, match="coupled"):
        pixel.mean()


def test_bits_per_dim():
    assert np.isclose(jv.distributions.bits_per_dim(3072 * math.log(256.0), (32, 32, 3)), 8.0)


normalizers = jax.jit(jax.vmap(jax.value_and_grad(log_normalizer)))


@pytest.mark.parametrize(
    ("p", "log_c"),
    [
        (0.5, 0.693147180559945),
        (0.500001, 0.693147180561279),
        (0.499, 0.69314851389559),
        (0.49, 0.693280537010058),
        (0.3, 0.750587750880459),
        (0.01, 1.5451975455129),
        (1e-6, 2.62579384209556),
    ],
)
def test_continuous_bernoulli_constant(p, log_c, x64):
    l, step = math.log(p) - math.log1p(-p), 1e-4
    values, slopes = normalizers(l + np.array([0.0, step, -step, -2.0 * l]))
    assert np.allclose(np.asarray(values)[[0, 3]], log_c, rtol=1e-13, atol=0)
    assert np.isclose(slopes[0], (values[1] - values[2]) / 2e-4, atol=1e-6)


def test_against_scipy(x64):
    log_prob = jax.jit(lambda d, x: d.log_prob(x))
    stats: Any = scipy_stats  # its types are not known
    cases: list[tuple[Any, Any, float]] = [
        (jv.StudentT(3.0, 0.5, 2.0), stats.t(3.0, 0.5, 2.0).logpdf, 1.7),
        (jv.Gamma(2.0, 3.0), stats.gamma(2.0, scale=1 / 3).logpdf, 0.4),
        (jv.Beta(2.0, 5.0), stats.beta(2.0, 5.0).logpdf, 0.3),
        (jv.Poisson(2.5), stats.poisson(2.5).logpmf, 4.0),
        (
            jv.NegativeBinomial(2.5, 0.3),
            stats.nbinom(2.5, 1 / (1 + math.exp(0.3))).logpmf,
            6.0,
        ),
    ]
    for d, log_p, x in cases:
        assert np.isclose(log_prob(d, x), log_p(x), rtol=1e-12, atol=0), d
    x, a = np.array([0.2, 0.3, 0.5]), np.array([2.0, 3.0, 0.5])
    assert close(log_prob(jv.Dirichlet(a), x), stats.dirichlet(a).logpdf(x))


EXTREMES = {
    "student t": lambda a: jv.StudentT(jnp.exp(a), 0.0, jnp.exp(a)).log_prob(jnp.array(3.0)),
    "student t, far": lambda a: jv.StudentT(2.0, a, 1.0).log_prob(jnp.array(1e6)),
    "laplace": lambda a: jv.Laplace(a * 1e3, jnp.exp(0.2 * a)).log_prob(jnp.array(1.0)),
    "continuous bernoulli": lambda a: jv.ContinuousBernoulli(50 * a).log_prob(jnp.array(0.2)),
    "continuous bernoulli, mean": lambda a: jv.ContinuousBernoulli(50 * a).mean(),
    "bernoulli": lambda a: jv.Bernoulli(50 * a).log_prob(jnp.array(1.0)),
    "categorical": lambda a: jv.Categorical(jnp.stack([50 * a, 0 * a])).log_prob(jnp.array(1)),
    "logistic": lambda a: jv.DiscretizedLogistic(a, jnp.exp(0.5 * a)).log_prob(jnp.array(3)),
    "logistic, narrow": lambda a: jv.DiscretizedLogistic(a, 1e-6).log_prob(jnp.array(3)),
    "logistic, edge": lambda a: jv.DiscretizedLogistic(a, jnp.exp(0.5 * a)).log_prob(jnp.array(0)),
    "poisson": lambda a: jv.Poisson(jnp.exp(a)).log_prob(jnp.array(7)),
    "poisson, many": lambda a: jv.Poisson(jnp.exp(a)).log_prob(jnp.array(10**7)),
    "negative binomial": lambda a: jv.NegativeBinomial(jnp.exp(0.5 * a), -a).log_prob(jnp.array(9)),
    "negative binomial, many": lambda a: jv.NegativeBinomial(1.0, 3 * a).log_prob(jnp.array(10**7)),
    "zero-inflated": lambda a: jv.distributions.ZeroInflated(
        jv.Poisson(jnp.exp(a)), 5 * a
    ).log_prob(jnp.array(0)),
    "gamma": lambda a: jv.Gamma(jnp.exp(0.3 * a), jnp.exp(0.3 * a)).log_prob(jnp.array(1e-30)),
    "beta": lambda a: jv.Beta(jnp.exp(0.3 * a), jnp.exp(0.3 * a)).log_prob(jnp.array(1e-30)),
    "mixture": lambda a: jv.Mixture(
        jnp.stack([50 * a, 0 * a]), jv.Normal(jnp.stack([a, -a])[:, None], jnp.ones((2, 1)))
    ).log_prob(jnp.array([1e3])),
    "low rank": lambda a: jv.LowRankNormal(
        jnp.zeros(2), jnp.full((2, 1), a), jnp.full(2, 1e-3)
    ).log_prob(jnp.ones(2)),
    "optimal": lambda a: jv.distributions.OptimalNormal(jnp.full(2, a), axis=None).log_prob(
        jnp.full(2, 20.0)
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("f", EXTREMES.values(), ids=EXTREMES)
def test_extremes_in_float32_are_finite(f):
    """Value and gradient, from one end of what a network gives to the other."""
    a = jnp.array([-20.0, -3.0, 0.0, 3.0, 20.0], jnp.float32)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(f)))(a)
    assert values.dtype == jnp.float32
    assert np.all(np.isfinite(values)), values
    assert np.all(np.isfinite(slopes)), slopes


@pytest.mark.thorough
@pytest.mark.parametrize(
    "make",
    [
        lambda a: jv.Gamma(jnp.exp(0.4 * a), 1.0),
        lambda a: jv.Beta(jnp.exp(0.4 * a), jnp.exp(-0.4 * a)),
        lambda a: jv.Dirichlet(jnp.exp(jnp.stack([0.3 * a, -0.3 * a, 0.0 * a]))),
        lambda a: jv.StudentT(0.5 + jnp.exp(a), 0.0, 1.0),
        lambda a: jv.ContinuousBernoulli(50 * a),
        lambda a: jv.distributions.PowerSpherical(jnp.ones(3), jnp.exp(0.4 * a)),
        lambda a: jv.distributions.VonMisesFisher(jnp.ones(3), jnp.exp(0.4 * a)),
    ],
)
def test_draws_at_the_extremes_are_in_the_support(make):
    """And have a finite density, whatever rounds."""
    keys = jax.random.split(jax.random.key(1), 50)
    at = jax.vmap(lambda a, key: jv.sample_and_log_prob(make(a), key), (None, 0))
    z, log_p = jax.jit(jax.vmap(at, (0, None)))(jnp.array([-20.0, -3.0, 0.0, 3.0, 20.0]), keys)
    assert np.all(np.isfinite(ravel_pytree(z)[0]))
    assert np.all(np.isfinite(log_p)), log_p
