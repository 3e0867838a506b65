"""Linear-Gaussian chains against one Gaussian of all steps, from its joint precision inverted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.models import LinearChain, Markov, StructuredVAE, emissions
from tests.common import close, draws, is_differentiable, standard_errors_off

T, D = 5, 2
RNG = np.random.default_rng(0)


def triangle():
    return np.tril(0.4 * RNG.normal(size=(D, D)), -1) + np.diag(RNG.uniform(0.4, 1.0, D))


M, P, A, B, L = (
    RNG.normal(size=D),
    triangle(),
    0.6 * RNG.normal(size=(D, D)),
    np.ones(D),
    triangle(),
)
LOC, SCALE = RNG.normal(size=(T, D)), RNG.uniform(0.3, 2.0, (T, D))
OTHER = RNG.normal(size=D), triangle(), 0.5 * RNG.normal(size=(D, D)), np.zeros(D), triangle()


def chain(m=M, p=P, a=A, b=B, l=L, length=T):
    first = jv.MultivariateNormal(jnp.asarray(m), jnp.asarray(p))
    return LinearChain(first, jnp.asarray(a), jnp.asarray(b), jnp.asarray(l), length)


def dense(m: Any = M, p: Any = P, a: Any = A, b: Any = B, l: Any = L) -> Any:
    """Precision [T d, T d] and precision times mean, from -log p(z) as one square form."""
    gains, shifts, factors = (
        [v] * (T - 1) if v.ndim == n else v for v, n in ((a, 2), (b, 1), (l, 2))
    )
    residual: Any = np.eye(T * D)  # z -> (z_1, z_2 - A z_1, ...)
    for t in range(1, T):
        residual[t * D : (t + 1) * D, (t - 1) * D : t * D] = -gains[t - 1]
    noise = np.zeros((T * D, T * D))
    for t, tril in enumerate([p, *factors]):
        at = slice(t * D, (t + 1) * D)
        noise[at, at] = np.linalg.inv(tril @ tril.T)
    precision = residual.T @ noise @ residual
    return precision, residual.T @ noise @ np.concatenate([m, *shifts])


def moments(precision, information):
    covariance = np.linalg.inv(precision)
    return covariance @ information, covariance


def of_chain(q):
    """The same of a chain, by its own steps."""
    numbers = [q.first.loc, jnp.tril(q.first.scale_tril), q.gain, q.shift, q.scale_tril]
    return moments(*dense(*map(np.asarray, numbers)))


def close_to(a, b):
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-9))


@pytest.mark.thorough
def test_smoothing_is_exact(x64):
    """Means, covariances of all pairs of steps, draws, density: of p(z) prod_t N(z_t; m_t, S_t)."""
    p, evidence = chain(), jv.Normal(jnp.asarray(LOC), jnp.asarray(SCALE))
    q = jax.jit(lambda: p.times(evidence))()
    assert isinstance(q, LinearChain)
    precision, information = dense()
    weight = SCALE.ravel() ** -2
    mean, cov = moments(precision + np.diag(weight), information + weight * LOC.ravel())
    found_mean, found_cov = of_chain(q)
    assert close_to(found_mean, mean)
    assert close_to(found_cov, cov)
    assert np.max(np.abs(cov[:D, -D:])) > 1e-3  # what would show a wrong sign of a coupling

    means, covs = q.marginals()
    assert close_to(np.ravel(means), mean)
    assert close_to(np.stack([cov[i : i + D, i : i + D] for i in range(0, T * D, D)]), covs)
    joint = jv.MultivariateNormal(jnp.asarray(mean), jnp.linalg.cholesky(jnp.asarray(cov)))
    z, log_q = draws(q.sample_and_log_prob, 4_000)
    assert close_to(log_q[:5], jax.vmap(joint.log_prob)(z[:5].reshape(5, -1)))
    flat = np.asarray(z).reshape(len(z), -1)
    assert standard_errors_off(flat, mean) < 4
    assert standard_errors_off(np.einsum("ni,nj->nij", flat - mean, flat - mean), cov) < 4


@pytest.mark.thorough
def test_the_rate_is_in_closed_form(x64):
    q = chain().times(jv.Normal(jnp.asarray(LOC), jnp.asarray(SCALE)))
    mean, cov = of_chain(q)
    for p, numbers in (chain(), ()), (chain(*OTHER), OTHER):
        precision, information = dense(*numbers)
        off = mean - np.linalg.solve(precision, information)
        trace = np.trace(precision @ cov) + off @ precision @ off - T * D
        exact = 0.5 * (trace - np.linalg.slogdet(precision)[1] - np.linalg.slogdet(cov)[1])
        assert close_to(jv.kl_divergence(q, p), exact)
        assert exact > 0.1
    unknown = jv.StandardNormal((T, D))
    assert q.kl_to(unknown) is None
    assert is_differentiable(
        lambda p, e: p.times(e).kl_to(p), chain(), jv.Normal(jnp.asarray(LOC), jnp.asarray(SCALE))
    )


def turned(tril, x):
    """Evidence of x_t = R z_t + noise, R a rotation: N(z_t; R'x_t, R' C C' R)."""
    rotation = jnp.array([[0.6, -0.8], [0.8, 0.6]])
    spread = jnp.linalg.cholesky(rotation.T @ tril @ tril.T @ rotation)
    return jv.Independent(jax.vmap(lambda x: jv.MultivariateNormal(rotation.T @ x, spread))(x))


@pytest.mark.thorough
def test_the_bound_is_the_evidence_of_a_linear_gaussian_model(x64):
    """Gap 0: the ELBO is log p(x) at every draw, and in closed form of the rate in mean."""
    tril, rotation = jnp.asarray(P), np.array([[0.6, -0.8], [0.8, 0.6]])
    emit = lambda z: jv.MultivariateNormal(jnp.asarray(rotation) @ z, tril)
    model = StructuredVAE(Partial(turned, tril), Partial(emissions, Partial(emit)), chain())
    x = RNG.normal(size=(T, D))
    mean, cov = moments(*dense())
    turn = np.kron(np.eye(T), rotation)
    cov = turn @ cov @ turn.T + np.kron(np.eye(T), P @ P.T)
    off = x.ravel() - turn @ mean
    log_p = -0.5 * (
        T * D * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + off @ np.linalg.solve(cov, off)
    )

    def both(key):
        sampled = jv.elbo(model, key, jnp.asarray(x), kl=jv.sampled_kl)[0]
        return jnp.stack([sampled, jv.elbo(model, jax.random.clone(key), jnp.asarray(x))[0]])

    sampled, exact = draws(both, 1_000).T
    assert close_to(sampled, np.full(1_000, log_p))
    assert standard_errors_off(exact, log_p) < 4


@pytest.mark.thorough
def test_evidence_of_nothing_and_of_almost_everything():
    """An infinite scale leaves the prior; a tiny one takes z there, in float32 too."""
    p = jax.tree.map(lambda a: a.astype(jnp.float32), chain())
    loc = jnp.asarray(LOC, jnp.float32)
    nothing = p.times(jv.Normal(loc, jnp.full((T, D), jnp.inf, jnp.float32)))
    assert close(nothing.mean(), p.mean())
    assert close(nothing.marginals()[1], p.marginals()[1])
    sure = p.times(jv.Normal(loc, jnp.full((T, D), 1e-4, jnp.float32)))
    assert np.allclose(sure.mean(), loc, atol=1e-5)
    spread = np.diagonal(sure.marginals()[1], axis1=1, axis2=2) ** 0.5
    assert np.allclose(spread, 1e-4, rtol=1e-3)


@pytest.mark.thorough
def test_steps_of_their_own_a_beginning_and_a_forecast(x64):
    p = chain()
    e = jv.Normal(jnp.asarray(LOC), jnp.asarray(SCALE))
    own = p.times(e)  # steps that differ
    twice, at_once = own.times(e), p.times(jv.Normal(e.loc, e.scale / 2**0.5))
    assert close_to(twice.mean(), at_once.mean())
    assert close_to(twice.marginals()[1], at_once.marginals()[1])
    short = p.times(jv.Normal(e.loc[:2], e.scale[:2]))
    assert short.shape == (2, D)
    hidden = jv.Normal(e.loc, e.scale.at[2:].set(jnp.inf))
    assert close_to(short.mean(), p.times(hidden).mean()[:2])
    one = chain(length=1).times(jv.Normal(e.loc[:1], e.scale[:1]))
    assert one.sample(jax.random.key(0)).shape == (1, D)
    z = jnp.asarray(LOC)
    ahead = p.after(z, 3, 9)
    assert isinstance(ahead, Markov)
    assert ahead.length == 9
    first: Any = ahead.first
    assert close_to(first.loc, A @ LOC[2] + B)
    assert close_to(p.log_prob(z), p.chain.log_prob(z))


def test_errors_name_the_argument():
    p = jax.tree.map(lambda a: a.astype(jnp.float32), chain())
    with pytest.raises(TypeError, match=r"LinearChain.times: evidence is a StandardNormal, expect"):
        p.times(jv.StandardNormal((T, D)))
    own = p.times(jv.Normal(jnp.zeros((T, D)), jnp.ones((T, D))))
    with pytest.raises(ValueError, match=r"times: evidence has shape \(3, 2\), expected \(5, 2\)"):
        own.times(jv.Normal(jnp.zeros((3, D)), jnp.ones((3, D))))
    bad = LinearChain(p.first, jnp.ones((3, D, D)), p.shift, p.scale_tril, T)
    with pytest.raises(
        ValueError, match=r"LinearChain: gain has shape \(3, 2, 2\), expected \(4, 2"
    ):
        bad.mean()
    with pytest.raises(ValueError, match="LinearChain: length is 0"):
        LinearChain(p.first, p.gain, p.shift, p.scale_tril, 0).log_prob(jnp.zeros((0, D)))
    with pytest.raises(ValueError, match=r"LinearChain: shift has shape \(1,\), expected \(2,\)"):
        LinearChain(p.first, p.gain, jnp.ones(1), p.scale_tril, T).log_prob(jnp.zeros((T, D)))


def test_evidence_that_is_absent_may_be_nan():
    p = chain()
    seen = np.arange(T) != 1
    loc, scale = np.where(seen[:, None], LOC, 0.0), np.where(seen[:, None], np.ones((T, D)), np.inf)
    expected = p.times(jv.Normal(loc, scale)).mean()
    gaps = np.where(seen[:, None], LOC, np.nan)
    assert close_to(p.times(jv.Normal(gaps, scale)).mean(), expected)
    own = lambda s: jv.Normal(gaps, jnp.where(seen[:, None], s, jnp.inf) * jnp.ones((T, D)))
    slope = jax.grad(lambda s: jnp.sum(p.times(own(s)).mean()))(1.0)
    assert np.isfinite(slope)
