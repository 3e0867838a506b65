"""Annealed importance sampling and its reverse, against log p(x) where it is known.

Ladder: p(z) = N(0, 1), p(x|z) = N(z, 1): p(x) = N(0, 2), p(z|x) = N(x/2, 1/2).
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import expit, logsumexp
from sklearn.datasets import load_digits

from jaxvae import (
    VAE,
    Bernoulli,
    Constant,
    Dirichlet,
    Joint,
    Mixture,
    Normal,
    Product,
    StandardNormal,
    StudentT,
)
from jaxvae.distributions import SphericalUniform, VonMisesFisher
from jaxvae.evaluation import ais, bdmc, sigmoid_schedule
from jaxvae.evaluation.annealing import leapfrogs
from jaxvae.models import Carried, Markov, ppca
from tests.common import close, draws, standard_errors_off

X, LOG_P = 1.5, -1.828012123
LADDER = VAE(
    encode=Partial(lambda x: Normal(0.25, 1.0)),
    decode=Partial(lambda z: Normal(z, jnp.ones_like(z))),
    prior=StandardNormal(()),
)
FAR = LADDER._replace(decode=Partial(lambda z: Normal(z, jnp.full_like(z, 0.1))))
FAR_LOG_P = -0.5 * (np.log(2 * np.pi * 1.01) + X**2 / 1.01)
ENDS = np.array([0.0, 1.0])


def test_schedule(x64):
    """The formula, its ends, and that it is dense at both."""
    d = 4.0
    t = np.arange(11) / 10
    exact = (expit(d * (2 * t - 1)) - expit(-d)) / (expit(d) - expit(-d))
    betas = sigmoid_schedule(10)
    assert close(betas, exact)
    assert (betas[0], betas[-1]) == (0.0, 1.0)
    assert betas[1] - betas[0] < 0.3 * (betas[6] - betas[5])
    for steepness in (0.0, 1e-5, 1e-3, -1e-3):
        assert np.allclose(sigmoid_schedule(10, steepness=steepness), t, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("num_temperatures", "num_leapfrog"),
    [
        (2, 4),
        (5, 1),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(5, 4, marks=pytest.mark.slow),
    ],
)
def test_the_weights_are_unbiased(num_temperatures, num_leapfrog):
    """E[w] = p(x) exactly, with few temperatures and a step size that is far off and adapting."""
    betas = np.linspace(0.0, 1.0, num_temperatures + 1)
    run = lambda key: ais(
        FAR, key, X, betas=betas, num_chains=4, num_leapfrog=num_leapfrog, step_size=0.3
    )
    estimates = draws(run, 10_000, 0)
    assert standard_errors_off(np.exp(estimates.value), np.exp(FAR_LOG_P)) < 4
    assert np.mean(estimates.value) < FAR_LOG_P - 0.01
    assert np.all(np.ptp(estimates.step_size, axis=1) > 0) or num_temperatures == 2
    assert 0.05 < np.mean(estimates.acceptance) < 0.98  # neither all nor none: both are tested


@pytest.mark.thorough
@pytest.mark.parametrize("num_temperatures", [1, 4])
def test_the_way_back_is_unbiased(num_temperatures):
    """E[1 / exp(upper)] = 1 / p(x) for the x that each run draws."""
    betas = np.linspace(0.0, 1.0, num_temperatures + 1)
    run = lambda key: bdmc(LADDER, key, betas=betas, num_chains=3, num_leapfrog=2, step_size=1.0)
    runs = jax.tree.map(np.asarray, draws(run, 20_000, 1))
    log_p = -0.5 * (np.log(4 * np.pi) + runs.x**2 / 2)
    assert standard_errors_off(np.exp(log_p - runs.upper.value), 1.0) < 4
    assert standard_errors_off(np.exp(runs.lower.value - log_p), 1.0) < 4
    assert np.mean(runs.upper.value - log_p) > 0.01 > -0.01 > np.mean(runs.lower.value - log_p)
    assert close(runs.gap, runs.upper.value - runs.lower.value)
    # z ~ N(0, 1) and x ~ N(z, 1): the pair is a draw of the model
    assert standard_errors_off(runs.z**2, 1.0) < 4
    assert standard_errors_off((runs.x - runs.z) ** 2, 1.0) < 4
    assert standard_errors_off(runs.x * runs.z, 1.0) < 4


def test_one_temperature_is_importance_sampling(x64):
    """From p(z) it is prior sampling, from q(z|x) the importance-weighted bound of the starts."""
    for initial, p_0 in ((None, LADDER.prior), (LADDER.encode, LADDER.encode(X))):

        @jax.jit
        def both(a, b, initial=initial, p_0=p_0):
            estimate = ais(LADDER, a, X, betas=ENDS, num_chains=5, num_pilots=1, initial=initial)
            starts, _ = jax.random.split(b)
            z = jax.vmap(p_0.sample)(jax.random.split(starts, 6))[1:]  # but the pilot
            return estimate, (z, jax.vmap(p_0.log_prob)(z))

        found = both(jax.random.key(2), jax.random.key(2))
        estimate, (z, log_p_0) = jax.tree.map(np.asarray, found)
        log_w = -np.log(2 * np.pi) - 0.5 * (z**2 + (X - z) ** 2) - log_p_0
        assert close(estimate.log_weights, log_w)
        assert close(estimate.value, logsumexp(log_w) - np.log(5))
        w = np.exp(log_w)
        assert close(estimate.standard_error, w.std(ddof=1) / w.mean() / 5**0.5)
        assert close(estimate.ess, w.sum() ** 2 / (w**2).sum())
        assert estimate.acceptance.shape == estimate.step_size.shape == (0,)


@pytest.mark.thorough
def test_no_noise_from_the_exact_posterior(x64):
    """Started at p(z|x), every chain weighs log p(x), up and down, whatever it does."""
    weight = jnp.array([[1.0, 0.2], [0.3, -0.5], [0.1, 0.4]])
    linear = ppca.PPCA(weight, jnp.ones(3), jnp.array(0.5))
    model = ppca.as_vae(linear)
    betas = np.asarray(sigmoid_schedule(4))
    run = jax.jit(partial(bdmc, model, betas=betas, initial=model.encode))(jax.random.key(3))
    exact = jax.jit(ppca.log_marginal)(linear, run.x)
    assert close(run.lower.log_weights, np.full(16, exact))
    assert close(run.upper.log_weights, np.full(16, -exact))
    assert close(run.gap, 0.0)


@pytest.mark.thorough
def test_the_decoder_runs_once_a_leapfrog_step():
    """And once for the start: what the last step found, the weight and the next step are told."""
    calls = []

    def decode(z):
        jax.debug.callback(lambda _: calls.append(1), z)
        return Normal(z, jnp.ones_like(z))

    ais(
        LADDER._replace(decode=Partial(decode)),
        jax.random.key(0),
        X,
        betas=sigmoid_schedule(5),
        num_chains=2,
        num_leapfrog=3,
        num_pilots=1,
    )
    jax.effects_barrier()
    assert len(calls) == 3 * (1 + 4 * 3)  # of three chains


def test_a_trajectory_is_blackjaxs(x64):
    """Many leapfrogs as one, against as many of its own."""
    from blackjax.mcmc import integrators

    def log_f(z):
        return -jnp.sum(jnp.cosh(z)) - z[0] * z[1] ** 2

    def kinetic_energy(v: Any) -> Any:
        return 0.5 * jnp.sum(v**2)

    z, v, step = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.2]), 0.1
    start = integrators.IntegratorState(z, v, *jax.value_and_grad(log_f)(z))
    one: Any = integrators.velocity_verlet(log_f, kinetic_energy)  # pyright: ignore[reportArgumentType]
    for num in (1, 4):
        expected = jax.lax.fori_loop(0, num, lambda _, state: one(state, step), start)
        for a, b in zip(leapfrogs(num, log_f, None)(start, jnp.array(step)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.thorough
def test_the_step_size_adapts():
    """From far too small and far too large, to where pilots are accepted at the target rate."""
    betas = np.linspace(0.0, 1.0, 151)
    last = []
    for step_size in (0.01, 3.0):
        run = partial(ais, FAR, x=X, betas=betas, step_size=step_size, num_leapfrog=5)
        estimates = draws(lambda key, run=run: run(key=key), 50, 4)
        assert close(np.asarray(estimates.step_size)[:, 0], np.full(50, step_size))
        last.append(np.mean(np.asarray(estimates.step_size)[:, -20:]))
        assert 0.7 < np.mean(np.asarray(estimates.acceptance)[:, -30:]) < 0.95
    assert 0.05 < last[0] < 0.4
    assert abs(last[0] / last[1] - 1) < 0.3


def test_latents_may_be_any_pytree():
    """A dict of two latents is a vector of two."""

    class Pair:
        def sample(self, key):
            a, b = jax.random.split(key)
            return {"a": jax.random.normal(a, ()), "b": jax.random.normal(b, (2,))}

        def log_prob(self, z):
            return StandardNormal(()).log_prob(z["a"]) + StandardNormal((2,)).log_prob(z["b"])

    def decode(z):
        return Normal(z["a"] + jnp.sum(z["b"]), jnp.ones(()))

    model = VAE(encode=Partial(lambda x: Pair()), decode=Partial(decode), prior=Pair())
    exact = -0.5 * (np.log(2 * np.pi * 4) + X**2 / 4)  # x ~ N(0, 1 + 3)
    estimates = draws(lambda key: ais(model, key, X, betas=sigmoid_schedule(10)), 300, 5)
    assert standard_errors_off(np.exp(estimates.value), np.exp(exact)) < 4
    assert np.std(estimates.value) < 0.2


@pytest.mark.slow
def test_the_sandwich_closes_on_the_digits():
    """targets: PPCA with 8 latents, 32 simulated pairs, 16 chains, 5 leapfrogs. log p(x) lies
    between, and the gap goes from nats at 10 temperatures to a fiftieth of one at 300."""
    pixels, _ = load_digits(return_X_y=True)
    digits = jnp.asarray(pixels / 16, jnp.float32)
    linear = ppca.maximum_likelihood(digits, 8)
    keys = jax.random.split(jax.random.key(6), 32)
    gaps = []
    for num_temperatures, widest in ((10, 6.0), (100, 0.5), (300, 0.08)):
        run = partial(bdmc, betas=sigmoid_schedule(num_temperatures), num_leapfrog=5)
        runs = jax.jit(jax.vmap(partial(run, ppca.as_vae(linear))))(jax.random.clone(keys))
        exact = jax.vmap(partial(ppca.log_marginal, linear))(runs.x)
        below, above = runs.lower.value - exact, runs.upper.value - exact
        error = [jnp.std(side, ddof=1) / 32**0.5 for side in (below, above)]
        assert jnp.mean(below) < 3 * error[0] + 1e-3
        assert jnp.mean(above) > -3 * error[1] - 1e-3
        gaps.append(float(np.mean(runs.gap)))
        assert abs(gaps[-1]) < widest
        # the gap bounds the error of the estimate on real data of the kind
        assert abs(jnp.mean(below)) < abs(gaps[-1]) + 3 * error[0]
    assert gaps[0] > 5 * gaps[1] > 5 * abs(gaps[2])
    assert gaps[0] > 1.0


@pytest.mark.thorough
def test_ais_beats_a_poor_encoder():
    """Where q is far off, AIS from the prior still finds log p(x): the right tool, no better q."""
    poor = FAR._replace(encode=Partial(lambda x: Normal(-2.0, 0.1)))
    estimates = draws(lambda key: ais(poor, key, X, betas=sigmoid_schedule(300)), 50, 7)
    assert abs(np.mean(estimates.value) - FAR_LOG_P) < 0.05


@pytest.mark.parametrize("count", ["num_chains", "num_leapfrog", "num_pilots"])
@pytest.mark.parametrize("run", [lambda **k: ais(x=X, **k), bdmc])
def test_counts_are_positive_integers(run, count):
    for wrong in (0, 2.5):
        with pytest.raises(
            ValueError, match=f"{count} is {wrong}, expected an integer of at least 1"
        ):
            run(model=LADDER, key=jax.random.key(0), betas=ENDS, **{count: wrong})


def test_what_cannot_be_annealed_says_so():
    coin = VAE(Partial(Bernoulli), Partial(lambda z: Normal(z, 1.0)), Bernoulli(jnp.array(0.0)))
    with pytest.raises(TypeError, match="latents of Bernoulli are discrete, expected continuous"):
        ais(coin, jax.random.key(0), X, betas=ENDS)
    for run in (partial(ais, x=X), bdmc):
        with pytest.raises(ValueError, match="betas goes from 1 to 0, expected a partition"):
            run(model=LADDER, key=jax.random.key(0), betas=np.array([1.0, 0.0]))
    vector: Any = SimpleNamespace(sample=LADDER.prior.sample, log_prob=lambda z: jnp.ones(2))
    with pytest.raises(ValueError, match="log_prob has shape"):
        ais(LADDER, jax.random.key(0), X, betas=ENDS, initial=lambda x: vector)
    with pytest.raises(ValueError, match="num_temperatures is 0"):
        sigmoid_schedule(0)


@pytest.mark.thorough
def test_jit_is_no_jit_and_vmap_is_the_loop(x64):
    run = partial(ais, LADDER, betas=sigmoid_schedule(3), num_chains=2, num_leapfrog=2)
    keys, xs = jax.random.split(jax.random.key(8), 2), jnp.array([0.1, -2.0])
    looped = [run(key, x).value for key, x in zip(jax.random.clone(keys), xs, strict=True)]
    assert close(jax.jit(jax.vmap(run))(keys, xs).value, jnp.stack(looped))


@pytest.mark.parametrize(
    "prior",
    [
        SphericalUniform(2),
        Constant(SphericalUniform(2)),
        Dirichlet(jnp.ones(2)),
        Mixture(jnp.zeros(1), VonMisesFisher(jnp.ones((1, 2)), jnp.ones(1))),
        Product({"s": SphericalUniform(2), "u": Normal(0.0, 1.0)}),
        Joint(Normal(0.0, 1.0), Partial(lambda z: Dirichlet(jnp.exp(jnp.stack([z, z]))))),
    ],
)
def test_latents_on_a_surface_are_refused(prior):
    model = VAE(lambda x: prior, lambda z: Normal(z, 1.0), prior)
    with pytest.raises(TypeError, match="lie on a surface, expected ones that fill"):
        ais(model, jax.random.key(0), jnp.zeros(2), betas=ENDS)


def test_latents_that_follow_from_others_are_refused():
    """h of a world model has no density of its own, so that a chain would move it freely."""
    start = Carried(jnp.array(0.0), Normal(0.0, 1.0))
    prior = Markov(start, Partial(lambda s: Carried(s[0] + s[1], Normal(s[0], 1.0))), 3)
    model = VAE(lambda x: prior, lambda z: Normal(z[1], 1.0), prior)
    with pytest.raises(TypeError, match="latents of Markov have a part that follows from the oth"):
        ais(model, jax.random.key(0), jnp.zeros(3), betas=ENDS)


@pytest.mark.thorough
def test_a_mixture_of_any_density_may_be_the_prior():
    # its draws carry no gradient, which annealing does not ask for; log p(x) by quadrature
    loc, scale = np.array([-2.0, 1.0], np.float32), np.array([0.5, 1.0], np.float32)
    prior = Mixture(np.array([0.0, 1.0]), StudentT(np.full(2, 5.0, np.float32), loc, scale))
    assert not prior.reparameterized
    run = jax.jit(partial(ais, betas=sigmoid_schedule(50), num_chains=256))
    estimate = run(LADDER._replace(prior=prior), jax.random.key(0), X)
    z = np.linspace(-20.0, 20.0, 4001, dtype=np.float32)
    log_p = jax.jit(jax.vmap(lambda z: prior.log_prob(z) + Normal(z, 1.0).log_prob(X)))(z)
    assert estimate.standard_error < 0.03
    assert abs(estimate.value - (logsumexp(log_p) + np.log(0.01))) < 4 * estimate.standard_error
