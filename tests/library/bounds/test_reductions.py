"""Reductions of log-weights, against NumPy in extended precision, and the laws they share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from jaxvae.bounds import (
    convex_combination,
    log_mean_exp,
    log_power_mean,
    maximum,
    mean_log_mean_exp,
    thermodynamic,
)
from tests.common import close, is_differentiable

LOG_W = np.array([-3.0, 0.5, 1.25, -0.75, 2.0, -1.5])
BETAS = np.array([0.0, 0.1, 0.4, 1.0])
REDUCTIONS = {
    "log_mean_exp": log_mean_exp,
    "log_power_mean, Renyi": partial(log_power_mean, power=0.4),
    "log_power_mean, CUBO": partial(log_power_mean, power=2.0),
    "log_power_mean, ELBO": partial(log_power_mean, power=0.0),
    "maximum": maximum,
    "mean_log_mean_exp": partial(mean_log_mean_exp, num_outer=3),
    "convex_combination": partial(convex_combination, beta=0.3),
    "thermodynamic, lower": partial(thermodynamic, betas=BETAS, at=BETAS[:-1]),
    "thermodynamic, upper": partial(thermodynamic, betas=BETAS, at=BETAS[1:]),
}


def expected(name, l):
    match name.split(", "):
        case ["log_mean_exp"]:
            return np.log(np.mean(np.exp(l)))
        case ["log_power_mean", kind]:
            p = {"Renyi": 0.4, "CUBO": 2.0, "ELBO": 0.0}[kind]
            return np.log(np.mean(np.exp(l) ** p)) / p if p else np.mean(l)
        case ["maximum"]:
            return np.max(l)
        case ["mean_log_mean_exp"]:
            return np.mean([np.log(np.mean(np.exp(pair))) for pair in (l[:2], l[2:4], l[4:])])
        case ["convex_combination"]:
            return 0.3 * np.mean(l) + 0.7 * np.log(np.mean(np.exp(l)))
        case ["thermodynamic", side]:
            nodes = [0.0, 0.1, 0.4] if side == "lower" else [0.1, 0.4, 1.0]
            widths = [0.1, 0.3, 0.6]
            return sum(w * np.sum(softmax(a * l) * l) for w, a in zip(widths, nodes, strict=True))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_values(name, x64):
    """Each formula written out in NumPy."""
    assert close(jax.jit(REDUCTIONS[name])(LOG_W), expected(name, LOG_W))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_laws(name, x64):
    """A shift of the weights shifts the bound; equal weights are the bound; it grows in each."""
    reduction = REDUCTIONS[name]
    of_each = jax.jit(jax.vmap(jax.value_and_grad(reduction)))
    values, gradients = of_each(np.stack([LOG_W, LOG_W + 7.0, np.full(6, -2.5)]))
    values = np.asarray(values)
    assert close(values[1], values[0] + 7.0)
    assert close(values[2], -2.5)
    assert is_differentiable(reduction, jnp.asarray(LOG_W))
    if not name.startswith("thermodynamic"):  # there a weight also moves the others' expectation
        assert np.all(np.asarray(gradients)[0] >= 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", REDUCTIONS)
def test_float32_extremes(name):
    """Finite in value and gradient, whatever the spread and the level of the weights."""
    scales = np.array([0.0, 1e-6, 1.0, 1e3, 1e4])
    log_w = jnp.asarray(scales[:, None] * LOG_W - 5e4, jnp.float32)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(REDUCTIONS[name])))(log_w)
    assert jnp.isfinite(gradients).all()
    assert (abs(values + 5e4) <= 3.0 * scales + 0.05).all()


def test_power_mean_orders_the_bounds(x64):
    """It grows with the power: ELBO < Renyi < IWAE < CUBO < VR-max."""
    powers = np.array([-1e5, -50.0, -1.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 2.0, 50.0, 1e5])
    of_each = jax.jit(jax.vmap(lambda p: log_power_mean(jnp.asarray(LOG_W), power=p)))
    least, *means, most = np.asarray(of_each(powers))
    assert np.all(np.diff(means) > -1e-12)
    assert means[0] < means[3] < means[6] < means[-1] < jax.jit(maximum)(LOG_W)
    assert close(most, LOG_W.max() - np.log(6) / 1e5)
    assert close(least, LOG_W.min() + np.log(6) / 1e5)


POWER_SLOPE = jax.jit(jax.grad(lambda power, log_w: log_power_mean(log_w, power=power)))
POWER_MEAN = jax.jit(jax.value_and_grad(lambda log_w, power: log_power_mean(log_w, power=power)))


@pytest.mark.parametrize("power", [1e-7, 1e-4, 1e-2, 0.2, -1e-4])
def test_power_mean_near_zero(power):
    """An annealed alpha passes through 1: float32 loses nothing there, nor do derivatives."""
    log_w = LOG_W.astype(np.float32)
    l = LOG_W.astype(np.longdouble)
    exact = np.log(np.mean(np.exp(power * (l - l.mean())))) / power + l.mean()
    value, gradient = POWER_MEAN(log_w, power)
    assert abs(float(value) - float(exact)) < 1e-6
    assert np.allclose(gradient, softmax(power * LOG_W), atol=1e-6)
    w = np.exp(power * (l - l.mean()))
    slope = (np.sum(w * l) / np.sum(w) - exact) / power
    assert np.isclose(POWER_SLOPE(np.float32(power), log_w), float(slope), rtol=1e-3)
    assert np.allclose(POWER_MEAN(log_w, 0.0)[1], 1 / 6)


def test_special_cases(x64):
    """One group is IWAE, groups of one the ELBO; beta 0 and 1; one interval is the ELBO."""
    iwae, mean = logsumexp(LOG_W) - np.log(6), LOG_W.mean()
    ends = np.array([0.0, 1.0])
    fine = np.linspace(0.0, 1.0, 20_001)  # the integral over beta is log 1/K sum w, exactly

    @jax.jit
    def bounds(log_w):
        return (
            mean_log_mean_exp(log_w, num_outer=1),
            mean_log_mean_exp(log_w, num_outer=6),
            convex_combination(log_w, beta=0.0),
            convex_combination(log_w, beta=1.0),
            thermodynamic(log_w, betas=ends, at=ends[:1]),
            thermodynamic(log_w, betas=ends, at=ends[1:]),
            thermodynamic(log_w, betas=fine, at=fine[:-1]),
            thermodynamic(log_w, betas=fine, at=fine[1:]),
        )

    *found, below, above = np.stack(bounds(LOG_W))
    assert close(found, [iwae, mean, iwae, mean, mean, softmax(LOG_W) @ LOG_W])
    assert iwae - 1e-3 < below < iwae < above


def test_a_maximum_has_no_second_derivative():
    """Its Hessian would be 0 almost everywhere, and wrong."""
    assert jax.grad(maximum)(jnp.asarray(LOG_W)).tolist() == [0, 0, 0, 0, 1, 0]
    with pytest.raises(TypeError, match="no second derivative, so gradient=doubly_reparam"):
        jax.hessian(maximum)(jnp.asarray(LOG_W))


def test_groups_divide_the_samples():
    with pytest.raises(ValueError, match="num_outer is 4, expected a divisor of the 6"):
        mean_log_mean_exp(jnp.asarray(LOG_W), num_outer=4)


@pytest.mark.parametrize("name", [n for n in REDUCTIONS if "num_outer" not in n])
def test_groups_of_log_weights_are_those_of_the_row(name):
    """What `miwae` and `piwae` return, [M, K]."""
    reduction = REDUCTIONS[name]
    groups = jnp.asarray(LOG_W.reshape(3, 2), jnp.float32)
    assert close(reduction(groups), reduction(groups.reshape(-1)))
