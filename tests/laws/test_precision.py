"""Float32 where large terms cancel: counts, the gamma family and divergences against 50 digits."""

from decimal import Decimal, localcontext
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jaxvae as jv
from jaxvae.distributions.deviance import (
    deviance,
    log_gamma_peak,
    log_gamma_peak_slope,
    log_poisson_peak,
)

EPS = float(np.finfo(np.float32).eps)
COUNTS = [0.0, 1.0, 2.0, 10.0, 15.0, 16.0, 1e3, 1e4, 1e5, 1e6, 1e7]
SPREADS = [0.0, 0.3, -0.3, 1.0, -1.0, 3.0, -3.0, 10.0]  # of a parameter, in standard deviations


class Exact:
    """The same formulas in 50 digits, where nothing that cancels is missed."""

    bernoulli: Any = special.bernoulli(30)[2::2]  # to 1e-16, of terms below 1e-2

    @staticmethod
    @cache
    def log_gamma(z: Decimal) -> Decimal:
        """log Gamma and psi by Stirling's series at z + 40."""
        w, half = z + 40, Decimal("0.91893853320467274178032973640561763986139747363778")
        series = sum(
            Decimal(float(b)) / (2 * k * (2 * k - 1) * w ** (2 * k - 1))
            for k, b in enumerate(Exact.bernoulli, 1)
        )
        return (
            (w - Decimal("0.5")) * w.ln() - w + half + series - sum((z + k).ln() for k in range(40))
        )

    @staticmethod
    @cache
    def psi(z: Decimal) -> Decimal:
        w = z + 40
        series = sum(
            Decimal(float(b)) / (2 * k * w ** (2 * k)) for k, b in enumerate(Exact.bernoulli, 1)
        )
        return w.ln() - 1 / (2 * w) - series - sum(1 / (z + k) for k in range(40))

    @staticmethod
    def poisson(n, r):
        return (n * r.ln() if n else 0) - r - Exact.log_gamma(n + 1)

    @staticmethod
    def negative_binomial(n, r, l):
        choose = Exact.log_gamma(n + r) - Exact.log_gamma(r) - Exact.log_gamma(n + 1)
        return choose - r * (1 + l.exp()).ln() - n * (1 + (-l).exp()).ln()

    @staticmethod
    def gamma(z, a, b):
        return a * b.ln() + (a - 1) * z.ln() - b * z - Exact.log_gamma(a)

    @staticmethod
    def dirichlet(z, a):
        total = sum(z)
        parts = [(b - 1) * (x / total).ln() - Exact.log_gamma(b) for x, b in zip(z, a, strict=True)]
        return sum(parts) + Exact.log_gamma(sum(a))

    @staticmethod
    def beta(z, a, b):
        return Exact.dirichlet([z, 1 - z], [a, b])

    @staticmethod
    def kl_gamma(a, b, c, d):
        shapes = (a - c) * Exact.psi(a) - Exact.log_gamma(a) + Exact.log_gamma(c)
        return shapes + c * (b / d).ln() + a * (d / b - 1)

    @staticmethod
    def kl_dirichlet(a, b):
        psi = Exact.psi(sum(a))
        parts = [
            Exact.log_gamma(y) - Exact.log_gamma(x) + (x - y) * (Exact.psi(x) - psi)
            for x, y in zip(a, b, strict=True)
        ]
        return Exact.log_gamma(sum(a)) - Exact.log_gamma(sum(b)) + sum(parts)

    @staticmethod
    def kl_beta(a, b, c, d):
        return Exact.kl_dirichlet([a, b], [c, d])


def exactly(formula, rows):
    """The formula at each row of floats, in 50 digits."""
    with localcontext() as context:
        context.prec = 50
        return np.array([float(formula(*map(Decimal, map(float, row)))) for row in rows])


def off(f, formula, rows, first=0):
    """How far f is off: its value in float32 and float64, its slopes in float32, in roundings.

    Counted is what exceeds the rounding of its own arguments: an error is over 1 + |f| + sum_i
    |x_i df/dx_i|, and that of a slope, in log x_j, over the same of the slope; of the arguments
    from the first on, those before being whole.
    """
    rows = np.asarray(rows, np.float32)
    exact, every = exactly(formula, rows), tuple(range(first, rows.shape[1]))
    both = jax.vmap(jax.value_and_grad(f, every))
    value, slopes = jax.jit(both)(*jnp.asarray(rows.T))
    assert value.dtype == jnp.float32
    with jax.enable_x64(True):
        all_three = jax.jit(lambda *x: (*both(*x), jax.vmap(jax.hessian(f, every))(*x)))
        double, steep, bend = jax.tree.map(np.asarray, all_three(*jnp.asarray(rows.T, float)))
        curvature = np.stack(jax.tree.leaves(bend))
    x = np.abs(rows.T[first:].astype(float))
    condition = 1.0 + np.abs(exact) + np.sum(x * np.abs(steep), axis=0)
    errors = [np.max(np.abs(np.asarray(v, float) - exact) / condition) for v in (value, double)]
    bends = np.abs(curvature).reshape(len(x), len(x), -1) * x[:, None] * x[None]
    conditions = 1.0 + x * np.abs(steep) + np.sum(bends, axis=1)
    by_slope = np.max(x * np.abs(np.asarray(slopes, float) - steep) / conditions)
    return errors[0] / EPS, errors[1], by_slope / EPS


def poisson_rows():
    near = [(n, n + s * (n + 1.0) ** 0.5) for n, s in product(COUNTS, SPREADS)]
    far = [(n, f * (n + 1.0)) for n, f in product(COUNTS, [1e-30, 1e-3, 0.49, 0.51, 1.9, 2.1, 1e6])]
    return np.array([row for row in near + far if row[1] > 0], np.float32)


def test_poisson():
    """Values and slopes to a few roundings, whatever the count: the usual three terms of 1e8 leave
    none of a log-probability of -9."""
    rows = poisson_rows()
    exact, (n, r) = exactly(Exact.poisson, rows), rows.T.astype(float)
    f = jax.jit(jax.vmap(jax.value_and_grad(lambda r, n: jv.Poisson(r).log_prob(n))))
    value, slope = f(*jnp.asarray(rows.T[::-1]))
    assert np.allclose(np.asarray(value, float), exact, rtol=4 * EPS, atol=1e-18)
    assert np.allclose(slope, (n - r) / r, rtol=4 * EPS, atol=0)
    with jax.enable_x64(True):
        value, slope = f(jnp.asarray(r), jnp.asarray(n))
        assert np.allclose(value, exact, rtol=1e-14, atol=1e-18)
        assert np.allclose(slope, (n - r) / r, rtol=1e-14, atol=0)


@pytest.mark.thorough
def test_poisson_is_scipys_and_numbers_known(x64):
    """-7.878 at 1,000,321 of a rate of 1e6, and -8.98 at a rate of 1e7."""
    assert np.isclose(jv.Poisson(1e6).log_prob(jnp.array(1_000_321)), -7.878369, atol=1e-6)
    assert np.isclose(jv.Poisson(1e7).log_prob(jnp.array(10**7)), -8.977987, atol=1e-6)
    n, r = np.array([row for row in poisson_rows().astype(float) if row[0] <= 1e5]).T
    found = jax.jit(jax.vmap(lambda r, n: jv.Poisson(r).log_prob(n)))(r, n)
    assert np.allclose(found, stats.poisson.logpmf(n, r), rtol=1e-9, atol=1e-9)


def test_counts_of_any_size_sum_to_one():
    """All counts within 8 standard deviations of a mean of 1e4, in float32."""
    n = jnp.arange(9_000.0, 11_000.0)
    over = jax.jit(jax.vmap(lambda n: jv.Poisson(1e4).log_prob(n)))(n)
    assert np.isclose(np.sum(np.exp(np.asarray(over, float))), 1.0, atol=2e-6)
    d = jv.NegativeBinomial(jnp.array(1e6), jnp.log(jnp.array(1e-2)))
    over = jax.jit(jax.vmap(d.log_prob))(n)
    assert np.isclose(np.sum(np.exp(np.asarray(over, float))), 1.0, atol=2e-5)


def negative_binomial_rows():
    rows = []
    for n, r, s in product(COUNTS, [1e-3, 0.5, 3.0, 7.9, 8.1, 1e3, 1e6, 1e8], SPREADS):
        mean = n + 0.5
        rows.append((n, r, np.log(mean / r) + s * (1.0 / mean + 1.0 / r) ** 0.5))
    rows += [(3.0, 2.0, -100.0), (0.0, 2.0, -100.0), (3.0, 2.0, 100.0)]
    return [row for row in rows if abs(row[2]) <= 100]


@pytest.mark.thorough
def test_negative_binomial():
    """Its slope in l is n sigma(-l) - r sigma(l)."""
    rows = negative_binomial_rows()
    f = lambda n, r, l: jv.NegativeBinomial(r, l).log_prob(n)
    single, double, slopes = off(f, Exact.negative_binomial, rows, first=1)
    assert single < 8
    assert double < 1e-13
    assert slopes < 8
    few = [row for row in rows if row[1] <= 1e3]  # where it matters little what log r rounds to
    exact = exactly(Exact.negative_binomial, np.asarray(few, np.float32))
    value = jax.jit(jax.vmap(f))(*jnp.asarray(few, jnp.float32).T)
    assert np.allclose(np.asarray(value, float), exact, rtol=10 * EPS, atol=10 * EPS)


def test_gamma_poisson_limit():
    """A negative binomial of large r is a Poisson: in float32 to the last digits."""
    f = jax.jit(jax.vmap(lambda n: jv.NegativeBinomial(1e12, jnp.log(n / 1e12)).log_prob(n)))
    n = np.array([1.0, 100.0, 1e4], np.float32)
    limit = jax.jit(jax.vmap(lambda n: jv.Poisson(n).log_prob(n)))(n)
    assert np.allclose(f(n), limit, rtol=1e-5)


def concentrations(rng):
    return np.repeat([1e-3, 0.5, 1.0, 2.5, 7.9, 8.1, 1e3, 1e5, 1e7], 10) * np.exp(
        0.1 * rng.normal(size=90)
    )


@pytest.mark.thorough
def test_gamma():
    rng = np.random.default_rng(0)
    a, b = concentrations(rng), np.exp(3.0 * rng.normal(size=90))
    z = a * np.exp(rng.normal(size=90) / np.sqrt(a + 1.0)) / b
    f = lambda z, a, b: jv.Gamma(a, b).log_prob(z)
    single, double, slopes = off(f, Exact.gamma, np.stack([z, a, b], 1))
    assert single < 8
    assert double < 1e-13
    assert slopes < 16


@pytest.mark.thorough
def test_beta():
    rng = np.random.default_rng(1)
    a = concentrations(rng)
    b = a * np.exp(rng.normal(size=90))
    odds = np.log(a / b) + rng.normal(size=90) * np.sqrt(1.0 / (a + 1.0) + 1.0 / (b + 1.0))
    f = lambda z, a, b: jv.Beta(a, b).log_prob(z)
    single, double, slopes = off(f, Exact.beta, np.stack([special.expit(odds), a, b], 1))
    assert single < 16
    assert double < 1e-12
    assert slopes < 32


@pytest.mark.thorough
def test_dirichlet():
    rng = np.random.default_rng(2)
    z, a = rng.dirichlet([3.0, 3.0, 3.0], 90), concentrations(rng)[:, None]
    rows = np.concatenate([z, 3.0 * a * z * np.exp(rng.normal(size=(90, 3)) / np.sqrt(a + 1))], 1)
    f = lambda *row: jv.Dirichlet(jnp.stack(row[3:])).log_prob(jnp.stack(row[:3]))
    single, double, slopes = off(f, lambda *row: Exact.dirichlet(row[:3], row[3:]), rows)
    assert single < 16
    assert double < 1e-12
    assert slopes < 32


@pytest.mark.thorough
def test_kl_of_the_gamma_family():
    """At concentrations of 1e7, where log Gamma is 1e8 and KL is 1; KL is what b pays for a."""
    rng = np.random.default_rng(3)
    a = concentrations(rng)
    near = lambda: np.exp(rng.normal(size=90) / np.sqrt(a + 1.0))
    b = np.exp(3.0 * rng.normal(size=90))
    gamma = lambda a, b, c, d: jv.kl_divergence(jv.Gamma(a, b), jv.Gamma(c, d))
    rows = np.stack([a, b, a * near(), b * near()], 1)
    single, double, slopes = off(gamma, Exact.kl_gamma, rows)
    assert single < 32
    assert double < 1e-12
    assert slopes < 64
    beta = lambda a, b, c, d: jv.kl_divergence(jv.Beta(a, b), jv.Beta(c, d))
    c = a * np.exp(rng.normal(size=90))
    rows = np.stack([a, c, a * near(), c * near()], 1)
    single, double, slopes = off(beta, Exact.kl_beta, rows)
    assert single < 64
    assert double < 1e-11
    assert slopes < 128
    dirichlet = lambda a, b, c, d: jv.kl_divergence(
        jv.Dirichlet(jnp.stack([a, b])), jv.Dirichlet(jnp.stack([c, d]))
    )
    value = [jax.jit(jax.vmap(f))(*jnp.asarray(rows.T, jnp.float32)) for f in (beta, dirichlet)]
    assert np.allclose(*value, rtol=1e-4, atol=1e-5)


def kl(family, *parameters):
    half = len(parameters) // 2
    return jv.kl_divergence(family(*parameters[:half]), family(*parameters[half:]))


RATIOS = [(1e-30, 1e30), (1e30, 1e-30), (2e-38, 1e38), (1e-20, 1e20), (1e-12, 1e28), (3.0, 5.0)]


ZERO = 0.0
OF_RATIOS = {
    "poisson": lambda q, p: kl(jv.Poisson, q, p),
    "laplace": lambda q, p: kl(jv.Laplace, ZERO, q, ZERO, p),
    "normal": lambda q, p: kl(jv.Normal, ZERO, q, ZERO, p),
    "normal || laplace": lambda q, p: jv.kl_divergence(jv.Normal(ZERO, q), jv.Laplace(ZERO, p)),
    "gamma": lambda q, p: kl(jv.Gamma, jnp.ones_like(q), q, jnp.ones_like(p), p),
    "low rank": lambda q, p: jv.kl_divergence(
        jv.LowRankNormal(jnp.zeros(1, q.dtype), jnp.zeros((1, 0), q.dtype), q[None]),
        jv.Normal(jnp.zeros(1, q.dtype), p[None]),
    ),
}


@jax.jit
def at_ratio(q, p):
    return {name: jax.value_and_grad(f, (0, 1))(q, p) for name, f in OF_RATIOS.items()}


@pytest.mark.parametrize(("q", "p"), RATIOS)
def test_ratios_that_no_float_holds(q, p):
    """The closed forms at scales or rates whose quotient is 0 or infinite in float32: value and
    slopes are those of float64, wherever float32 can hold them."""
    single = at_ratio(jnp.float32(q), jnp.float32(p))
    with jax.enable_x64(True):
        double = at_ratio(*map(jnp.float64, map(np.float32, (q, p))))
        double = jax.tree.map(np.asarray, double)
    for name in OF_RATIOS:
        for got, true in zip(*map(jax.tree.leaves, (single[name], double[name])), strict=True):
            assert np.isfinite(true), name
            if np.abs(true) < 1e38:
                assert np.allclose(got, true, rtol=1e-5, atol=1e-37), (name, got, true)


def test_the_parts(x64):
    """D by its terms where they do not cancel, the peaks by log Gamma, each with its slope."""
    a, b = np.array([1e-3, 1.0, 5.0, 7.0, 1e5]), np.array([2.0, 3.5, 4.0, 30.0, 3e5])
    n = np.array([0.0, 1.0, 7.0, 15.0, 16.0, 100.0])
    c = np.array([1e-3, 0.7, 5.0, 7.99, 8.0, 200.0])

    @jax.jit
    def parts(a, b, n, c):
        slopes = jax.vmap(jax.grad(deviance, (0, 1)))(a, b)
        curve = jax.vmap(jax.hessian(deviance))(a, b)
        by_count = jax.vmap(jax.grad(lambda n: jv.Poisson(3.0).log_prob(n)))(n)
        peaks = log_poisson_peak(n), log_gamma_peak(c), log_gamma_peak_slope(c)
        return deviance(a, b), *slopes, curve, by_count, *peaks

    terms, by_a, by_b, curve, by_count, poisson, gamma, gamma_slope = parts(a, b, n, c)
    assert np.allclose(terms, a * np.log(a / b) - a + b, rtol=1e-12)
    assert np.allclose(by_a, np.log(a / b), rtol=1e-12)
    assert np.allclose(by_b, 1.0 - a / b, rtol=1e-12)
    assert np.allclose(curve, 1.0 / a, rtol=1e-10)
    exact = special.xlogy(n, n) - n - special.gammaln(n + 1.0)
    assert np.allclose(poisson, exact, rtol=1e-12, atol=1e-15)
    # though n is whole
    assert np.allclose(by_count, np.log(3.0) - special.digamma(n + 1.0), rtol=1e-12)
    assert np.allclose(gamma, special.xlogy(c, c) - c - special.gammaln(c), rtol=1e-11)
    assert np.allclose(gamma_slope, np.log(c) - special.digamma(c), rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 10])
def test_power_spherical_at_any_concentration(dim):
    """kappa log 2 is in the density and in its constant: at 1e7 float32 has lost 0.5 nats of it."""

    def f(kappa):
        mu = jnp.eye(1, dim, dtype=kappa.dtype)[0]
        d = jv.distributions.PowerSpherical(mu, kappa)
        return jnp.stack([d.log_prob(mu), d.entropy()])

    kappa = np.array([1e-3, 1.0, 30.0, 1e4, 1e7], np.float32)
    single = jax.jit(jax.vmap(f))(jnp.asarray(kappa))
    b = 0.5 * (dim - 1)
    a = b + kappa.astype(float)
    log_n = (a + b) * np.log(2.0) + b * np.log(np.pi) + special.gammaln(a) - special.gammaln(a + b)
    top = kappa * np.log(2.0) - log_n
    spread = kappa * (special.digamma(a + b) - special.digamma(a))
    assert np.allclose(single[:, 0], top, rtol=1e-5, atol=1e-5)
    assert np.allclose(single[:, 1], -top + spread, rtol=1e-5, atol=1e-5)


def test_continuous_bernoulli_far_out():
    """x near 1 under a large logit, and its KL to the uniform: 1 - x and 1 - E[x] keep digits."""

    def f(l, x):
        d = jv.ContinuousBernoulli(l)
        uniform = jv.ContinuousBernoulli(jnp.zeros_like(l))
        return jnp.stack([d.log_prob(x), d.mean(), jv.kl_divergence(d, uniform)])

    both = jax.jit(jax.vmap(lambda l, x: (f(l, x), jax.jacobian(f)(l, x)), (0, None)))
    x = np.float32(0.999)
    ls = np.array([-1e30, -1e8, -1e4, -0.05, 0.05, 1e4, 1e8, 1e30], np.float32)
    single, slope = both(ls, x)
    with jax.enable_x64(True):
        double, _ = both(ls.astype(float), np.float64(x))
    assert np.allclose(single, double, rtol=2e-6, atol=2e-8)
    assert np.all(np.isfinite(slope))


def test_continuous_bernoulli_near_the_uniform():
    """Its mean, its draws and their slopes keep their digits where l is small, on both sides."""
    ls = np.array([-1.0, -0.5, -0.1, -0.03, -0.019, -1e-3, 1e-3, 0.02, 0.1, 0.9])

    def f(l):
        d = jv.ContinuousBernoulli(l)
        return jnp.stack([d.mean(), d.sample(jax.random.key(3))])

    both = jax.jit(jax.vmap(lambda l: (f(l), jax.jacobian(f)(l))))
    single, single_slopes = jax.device_get(both(ls.astype(np.float32)))
    with jax.enable_x64(True):
        at = [jax.device_get(both(l)) for l in (ls, ls + 1e-4, ls - 1e-4)]
        u = float(jax.random.uniform(jax.random.key(3), (), jnp.float32))
    (double, slopes), (above, _), (below, _) = at
    assert np.allclose(double[:, 0], 1 / -np.expm1(-ls) - 1 / ls, rtol=0, atol=2e-13)
    assert np.allclose(slopes, (above - below) / 2e-4, rtol=0, atol=1e-9)
    assert np.allclose(single[:, 0], double[:, 0], rtol=0, atol=2e-7)
    exact = np.log1p(u * np.expm1(-np.abs(ls))) / -np.abs(ls)
    assert np.allclose(single[:, 1], np.where(ls > 0, 1 - exact, exact), rtol=0, atol=2e-7)
    assert np.allclose(single_slopes[:, 0], slopes[:, 0], rtol=0, atol=2e-7)
