"""Estimates of log p(x), their error and memory, and when not to believe them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp
from scipy.stats import norm

from jaxvae import VAE, Joint, Normal, Product, StandardNormal, log_marginal, log_weights
from jaxvae.bounds import log_mean_exp
from jaxvae.evaluation import prior_sampling
from jaxvae.evaluation.marginal import pareto_k
from jaxvae.models import Delta, Markov
from tests.common import close, draws, standard_errors_off

X, LOG_P = 1.5, -1.828012123
LADDER = VAE(  # p(x) = N(0, 2)
    encode=Partial(lambda x: Normal(0.25, 1.0)),
    decode=Partial(lambda z: Normal(z, jnp.ones_like(z))),
    prior=StandardNormal(()),
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Score:
    """A likelihood that is whatever number it is given."""

    value: Any

    def sample(self, key):
        return self.value

    def log_prob(self, event, /):
        return self.value


def weighing(score):
    """A model whose log-weights are score(z), z ~ N(0, 1): posterior and prior cancel exactly."""
    standard = StandardNormal(())
    return VAE(Partial(lambda x: standard), Partial(lambda z: Score(score(z))), standard)


def both(model, seed, num_samples, **options):
    """`log_marginal` and the `log_weights` of the same key, in one program."""

    @jax.jit
    def run(a, b):
        estimate = log_marginal(model, a, X, num_samples=num_samples, **options)
        return estimate, log_weights(model, b, X, num_samples=num_samples)

    return jax.tree.map(np.asarray, run(jax.random.key(seed), jax.random.key(seed)))


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_log_marginal_is_the_mean_of_the_weights(chunk, x64):
    # value, standard error and ess of log_weights with the same key, whatever the chunk
    (value, error, ess, *_), log_w = both(LADDER, 0, num_samples=250, chunk=chunk)
    w = np.exp(log_w)
    assert close(value, logsumexp(log_w) - np.log(250))
    assert close(error, np.std(w, ddof=1) / np.mean(w) / 250**0.5)
    assert close(ess, w.sum() ** 2 / (w**2).sum())


def test_default_chunk_changes_nothing(x64):
    # and jaxvae's own reduction agrees
    estimate, log_w = both(LADDER, 1, num_samples=333)
    assert close(estimate.value, jax.jit(log_mean_exp)(log_w))


def test_one_sample_is_one_sample(x64):
    # num_samples below the chunk is honoured; one weight says nothing of its own error
    estimate, log_w = both(LADDER, 2, num_samples=1)
    assert close(estimate.value, log_w[0])
    assert estimate.standard_error == jnp.inf
    assert close(estimate.ess, 1.0)


def test_standard_error_is_the_spread():
    # over 2000 keys: the spread of the values, itself known to 1/sqrt(4000) = 1.6 %
    estimates = draws(lambda key: log_marginal(LADDER, key, X, num_samples=400), 2_000, 3)
    estimates = jax.tree.map(np.asarray, estimates)
    spread = np.std(estimates.value)
    assert abs(np.mean(estimates.standard_error) / spread - 1) < 4 * 0.016 + 0.01
    # low by about standard_error^2 / 2: chi^2 = .364 here
    assert standard_errors_off(estimates.value, LOG_P - 0.364118 / 2 / 400) < 4
    assert np.all((estimates.ess > 1) & (estimates.ess < 400))


@pytest.mark.parametrize("log_w", [0.0, 1e4, -1e4])
def test_equal_weights(log_w):
    # value the weight itself, no error, ess = N; nothing overflows
    model = weighing(lambda z: jnp.full_like(z, log_w))
    (value, error, ess, *_), _ = both(model, 4, num_samples=50, chunk=8)
    assert close(value, log_w)
    assert error < 1e-3
    assert close(ess, 50.0)


def test_extreme_weights():
    # +-1e4 by the sign of z: the half above carries everything, though the first is below
    model = weighing(lambda z: jnp.where(z > 0, 1e4, -1e4))
    for chunk in (1, 8, 50):
        (value, error, ess, *_), log_w = both(model, 14, num_samples=50, chunk=chunk)
        assert log_w[0] < 0
        above = int(np.sum(log_w > 0))
        assert close(value, 1e4 + np.log(above / 50))
        assert close(error, ((50 / above - 1) / 49) ** 0.5)
        assert close(ess, float(above))


def test_zero_weights():
    # -inf log-weights count among N, at the beginning (chunk 1 meets them alone) as at the end
    model = weighing(lambda z: jnp.where(z > 0.6, 0.0, -jnp.inf))
    for chunk in (1, 7, 60):
        (value, error, ess, *_), log_w = both(model, 13, num_samples=60, chunk=chunk)
        assert np.isneginf(log_w[0])
        above = int(np.sum(log_w == 0))
        assert close(value, np.log(above / 60))
        assert close(error, ((60 / above - 1) / 59) ** 0.5)
        assert close(ess, float(above))


def test_all_weights_zero():
    # nothing explains x: log 0, and no number to believe
    model = weighing(lambda z: jnp.full_like(z, -jnp.inf))
    (value, error, ess, *_), _ = both(model, 7, num_samples=10, chunk=4)
    assert value == -np.inf
    assert not np.isfinite(error)
    assert not ess > 1


@pytest.mark.thorough
def test_memory_does_not_grow_with_samples():
    # N and 10 N compile to the same working memory; one chunk of all to ten times as much
    model = VAE(
        encode=Partial(lambda x: Normal(x, jnp.ones(500))),
        decode=Partial(lambda z: Normal(jnp.sin(z), jnp.ones(500))),
        prior=StandardNormal((500,)),
    )

    def memory(n, chunk):
        function = jax.jit(partial(log_marginal, model, num_samples=n, chunk=chunk))
        compiled = function.lower(jax.random.key(0), jnp.ones(500)).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert memory(10_000, 100) < 1.1 * memory(1_000, 100)
    assert memory(1_000, 1_000) > 5 * memory(1_000, 100)


@pytest.mark.slow
def test_a_data_set_goes_through_map(x64):
    # jax.lax.map over keys and examples, in batches of any size, is the loop
    xs, keys = jnp.linspace(-2.0, 3.0, 7), jax.random.split(jax.random.key(8), 7)
    one = jax.jit(partial(log_marginal, LADDER, num_samples=30, chunk=8))
    looped = [one(key, x) for key, x in zip(keys, xs, strict=True)]
    for batch_size in (1, 3, 10):
        keys = jax.random.split(jax.random.key(8), 7)
        mapped = jax.lax.map(lambda kx: one(*kx), (keys, xs), batch_size=batch_size)
        for field, values in zip(mapped, zip(*looped, strict=True), strict=True):
            assert close(field, jnp.stack(values))


@pytest.mark.parametrize("estimate", [log_marginal, prior_sampling])
@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 2.5}, "num_samples is 2.5"),
        ({"num_samples": True}, "num_samples is True"),
        ({"num_samples": 5, "chunk": 0}, "chunk is 0"),
    ],
)
def test_counts_are_positive_integers(estimate, hyper, message):
    # refused by name
    with pytest.raises(ValueError, match=message):
        estimate(LADDER, jax.random.key(0), X, **hyper)


# prior sampling


def test_prior_sampling_is_unbiased():
    # E[p(x|z)] = p(x): right in the limit
    estimates = draws(lambda key: prior_sampling(LADDER, key, X, num_samples=3), 20_000, 9)
    assert standard_errors_off(np.exp(estimates.value), norm.pdf(X, scale=2**0.5)) < 4


def test_prior_sampling_draws_from_the_prior(x64):
    # the mean of p(x|z) at the prior's own draws, the encoder not looked at
    model = LADDER._replace(encode=Partial(lambda x: None), prior=Normal(2.0, 0.5))

    @jax.jit
    def run(a, b):
        z = jax.vmap(lambda i: model.prior.sample(jax.random.fold_in(a, i)))(np.arange(9))
        return z, prior_sampling(model, b, X, num_samples=9, chunk=4)

    z, estimate = run(jax.random.key(10), jax.random.key(10))
    log_p = norm.logpdf(X, np.asarray(z))
    assert close(estimate.value, logsumexp(log_p) - np.log(9))


def narrow(d):
    """p(x|z) = N(z, .01 I), encoded by its exact posterior."""
    return VAE(
        encode=Partial(lambda x: Normal(x / 1.01, jnp.full(d, (0.01 / 1.01) ** 0.5))),
        decode=Partial(lambda z: Normal(z, jnp.full(d, 0.1))),
        prior=StandardNormal((d,)),
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("n", "once", "runs"),
    [(100, 300, 60), (10_000, 106, 60), pytest.param(200_000, 58, 20, marks=pytest.mark.slow)],
)
def test_prior_sampling_fails_exponentially(n, once, runs):
    # D = 10: short by hundreds of nats, in mean as much as an independent simulation (NumPy);
    # targets' number of one run lies within the runs here
    def shortfall(key):
        x_key, key = jax.random.split(key)
        x = 1.01**0.5 * jax.random.normal(x_key, (10,))
        exact = -0.5 * (jnp.sum(x**2) / 1.01 + 10 * jnp.log(2 * jnp.pi * 1.01))
        return exact - prior_sampling(narrow(10), key, x, num_samples=n).value

    ours = np.asarray(draws(shortfall, runs, 11))
    assert ours.min() < once < ours.max()

    rng, theirs = np.random.default_rng(0), []
    for _ in range(runs):
        x = 1.01**0.5 * rng.normal(size=10)
        log_p = norm.logpdf(x, rng.normal(size=(n, 10)), 0.1).sum(axis=1)
        exact = norm.logpdf(x, scale=1.01**0.5).sum()
        theirs.append(exact - logsumexp(log_p) + np.log(n))
    error = ((ours.var() + np.var(theirs)) / runs) ** 0.5
    assert abs(ours.mean() - np.mean(theirs)) < 4 * error
    assert ours.mean() > once / 2


def test_exact_posterior_needs_one_sample(x64):
    # the same model, the right proposal
    x = np.linspace(-2.0, 2.0, 10)
    run = jax.jit(lambda key: log_marginal(narrow(10), key, x, num_samples=1))
    estimate = run(jax.random.key(12))
    assert close(estimate.value, norm.logpdf(x, scale=1.01**0.5).sum())


# can it be trusted?


PARETO_K, EACH_PARETO_K = jax.jit(pareto_k), jax.jit(jax.vmap(pareto_k))


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_pareto_k_of_pareto_weights(k):
    """Weights of tail index 1/k: the fit finds k, but for the prior's pull of 10 / (M + 10) to 1/2.

    Its spread is (1 + k) / sqrt(M), M = 3 sqrt(N) = 300 weights (Zhang & Stephens 2009)."""
    n, m = 10_000, 300
    uniform = np.random.default_rng(20).uniform(1e-7, 1.0, (50, n)).astype(np.float32)
    estimates = np.asarray(EACH_PARETO_K(-np.float32(k) * np.log(uniform)))
    expected = (m * k + 5.0) / (m + 10.0)
    assert abs(np.mean(estimates) - expected) < 4 * (1 + k) / (50 * m) ** 0.5 + 0.02
    assert np.std(estimates) < 1.5 * (1 + k) / m**0.5


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_pareto_k_looks_at_ratios_alone(shift):
    log_w = np.random.default_rng(21).normal(size=2_000).astype(np.float32)
    rounding = 1e-3 if shift else 1e-6
    assert abs(PARETO_K(log_w + np.float32(shift)) - PARETO_K(log_w)) < 20 * rounding


@pytest.mark.parametrize(
    ("log_w", "k"),
    [
        (np.zeros(100), 0.0),  # no tail at all
        (np.where(np.arange(100) % 9, 0.0, 1e-5 * np.arange(100) % 4e-5), 0.0),  # but of rounding
        (np.where(np.arange(100) < 50, 0.0, -np.inf), 0.0),
        (np.full(100, -np.inf), np.inf),  # nothing explains x
        (np.where(np.arange(100) == 7, 0.0, -1e4), np.inf),  # one carries everything
        (np.zeros(24), np.inf),  # too few to tell
        (np.zeros(1), np.inf),
    ],
)
def test_pareto_k_of_degenerate_weights(log_w, k):
    assert PARETO_K(log_w.astype(np.float32)) == k


def heavy(power):
    """w = |z|^-power nearly, z ~ N(0, 1): its tail index is 1/power."""
    return weighing(lambda z: -power * jnp.log(jnp.abs(z)))


@pytest.mark.parametrize(("power", "reliable"), [(0.2, True), (1.5, False)])
def test_unreliable_weights_are_flagged(power, reliable):
    """Where E[w] is infinite no number of samples helps, and the standard error says nothing."""
    estimates = draws(lambda key: log_marginal(heavy(power), key, X, num_samples=2_000), 50, 22)
    assert np.mean(np.asarray(estimates.reliable) == reliable) > 0.95
    assert abs(np.median(estimates.pareto_k) - power) < 0.3


def test_the_bar_depends_on_the_number_of_samples():
    """min(1 - 1 / log10 N, 0.7): 100 samples need k < 1/2, 2,000 are enough for 0.7."""
    estimates = {
        n: draws(lambda key, n=n: log_marginal(heavy(0.6), key, X, num_samples=n), 200, 23)
        for n in (100, 2_000)
    }
    for n, bar in ((100, 0.5), (2_000, 1.0 - 1.0 / np.log10(2_000))):
        assert np.array_equal(estimates[n].reliable, np.asarray(estimates[n].pareto_k) < bar)
        assert 0 < np.sum(estimates[n].reliable) < 200
    assert np.mean(estimates[2_000].reliable) > np.mean(estimates[100].reliable)


def test_a_mismatched_posterior_is_caught():
    """q too narrow by 5: k-hat and the value tell; q too broad is harmless."""
    by_scale = {
        scale: draws(
            lambda key, scale=scale: log_marginal(
                LADDER._replace(encode=Partial(lambda x: Normal(0.75, scale))),
                key,
                X,
                num_samples=1_000,
            ),
            50,
            24,
        )
        for scale in (0.14, 1.5)
    }
    # the tail index of w is 1 / (1 - .14^2 / .5) = 1 / .96 (and k-hat is low from 95 weights)
    assert np.mean(by_scale[0.14].reliable) < 0.4
    assert 0.6 < np.median(by_scale[0.14].pareto_k) < 1.0
    assert np.all(by_scale[1.5].reliable)
    assert np.mean(by_scale[0.14].value) < LOG_P - 0.1
    assert abs(np.mean(by_scale[1.5].value) - LOG_P) < 0.01


@pytest.mark.parametrize("num_samples", [1, 24, 25])
def test_few_samples_are_never_trusted_for_free(num_samples):
    """Below 25 there is no tail to fit, even at the exact posterior: the flag says so."""
    model = weighing(jnp.zeros_like)
    estimate, _ = both(model, 25, num_samples=num_samples)
    assert bool(estimate.reliable) == (num_samples == 25)
    assert close(estimate.value, 0.0)


@pytest.mark.parametrize(
    "q",
    [
        Product({"k": Delta(jnp.array(1)), "z": Normal(0.0, 1.0)}),
        Joint(Normal(0.0, 1.0), Partial(lambda z: Delta(jnp.int32(z > 0)))),
        Markov(Delta(jnp.array(1)), Partial(Delta), 3),
    ],
    ids=["product", "joint", "chain"],
)
def test_a_part_that_is_certain_is_never_trusted(q):
    """The other codes have no weight, however many samples there are: the value is a bound."""
    model = VAE(Partial(lambda x: q), Partial(lambda z: Normal(0.0, 1.0)), q)
    estimate = jax.jit(partial(log_marginal, model, num_samples=500))(jax.random.key(0), X)
    assert not estimate.reliable
    assert np.isinf(estimate.pareto_k)
