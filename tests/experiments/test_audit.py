"""The audit's own arithmetic: what it calls true is, by other roads."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import audit
from jaxvae.models import ppca


def beta_elbo(params, xs, beta):
    """Mean distortion and rate of the linear VAE at the q that is best for this beta."""
    w, s2, d = params.weight, params.variance, xs.shape[1]
    k = w.shape[1]
    m = w.T @ w + beta * s2 * jnp.eye(k)
    cov, r = beta * s2 * jnp.linalg.inv(m), xs - params.mean[None]
    means = jnp.linalg.solve(m, w.T @ r.T).T
    square = jnp.mean(jnp.sum((r - means @ w.T) ** 2, axis=1)) + jnp.trace(w @ cov @ w.T)
    distortion = square / (2.0 * s2) + d / 2 * jnp.log(2.0 * jnp.pi * s2)
    _, log_det = jnp.linalg.slogdet(cov)
    rate = 0.5 * (jnp.trace(cov) - k - log_det + jnp.mean(jnp.sum(means**2, axis=1)))
    return distortion, rate


@pytest.mark.thorough
@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0])
def test_the_optimum_at_any_beta(beta, x64):
    audit.linear.cache_clear()
    xs, ours, _ = audit.linear()
    params, distortion, rate = audit.optimum(beta)
    found = beta_elbo(params, xs, beta)
    assert jnp.allclose(jnp.array(found), jnp.array([distortion, rate]), rtol=1e-9)

    def objective(weight, variance):
        d, r = beta_elbo(params._replace(weight=weight, variance=variance), xs, beta)
        return d + beta * r

    for slope in jax.grad(objective, (0, 1))(params.weight, params.variance):
        assert jnp.max(jnp.abs(slope)) < 1e-7
    if beta == 1.0:  # a bound that is exact
        assert jnp.allclose(params.variance, ours.variance)
        assert jnp.isclose(-distortion - rate, ours_log_p(xs, ours), rtol=1e-9)
    audit.linear.cache_clear()


def ours_log_p(xs, params):
    return jnp.mean(jax.vmap(lambda x: ppca.log_marginal(params, x))(xs))


@pytest.mark.thorough
@pytest.mark.parametrize("mistake", audit.MISTAKES[:-2], ids=lambda mistake: mistake.__name__)
def test_the_page_has_its_numbers(mistake):
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    told = mistake()
    line = f"| {mistake.__doc__} | {told.reported:.4g} | {told.true:.4g} |"
    assert line in page
