"""The sphere: Bessel functions at any order, and the gradient of a draw in the concentration."""

from math import pi

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaln, ive

import jaxvae as jv
from jaxvae.distributions.spherical import log_area
from tests.common import close, standard_errors_off


def dims(*quick, slow):
    """In the plane, in space and in many dimensions; those between in `make slow`."""
    rows = [pytest.param(d, marks=pytest.mark.slow if d in slow else []) for d in (*quick, *slow)]
    return pytest.mark.parametrize("d", rows)


KAPPAS = [1e-3, 0.1, 1.0, 10.0, 1e2, 1e3, 1e4]


def vmf(d, kappa):
    return jv.distributions.VonMisesFisher(jnp.eye(d)[0], jnp.asarray(kappa))


def exact_log_constant(d, kappa):
    """log C_d(kappa) + kappa by scipy's Bessel function, where that does not underflow."""
    v = d / 2 - 1
    bessel = ive(v, kappa)
    if bessel < 1e-290:  # two terms of the series, relative to (kappa / 2)^v / Gamma(v + 1)
        log_bessel = v * np.log(kappa / 2) - gammaln(v + 1) + kappa**2 / (4 * v + 4) - kappa
    else:
        log_bessel = np.log(bessel)
    return v * np.log(kappa) - d / 2 * np.log(2 * pi) - log_bessel


def at_modes(d):
    """log p(mu) at each kappa."""
    at_mode = jax.vmap(lambda kappa: vmf(d, kappa).log_prob(jnp.eye(d)[0]))
    return jax.jit(at_mode)(jnp.asarray(KAPPAS))


@dims(2, 3, 11, 128, slow=(5, 50))
def test_the_constant_is_scipys(d):
    exact = [exact_log_constant(d, kappa) for kappa in KAPPAS]
    assert np.allclose(at_modes(d), exact, rtol=2e-5, atol=2e-5)
    with jax.enable_x64(True):
        assert np.allclose(at_modes(d), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.thorough
@dims(3, 50, slow=(5, 11))
def test_the_length_of_the_mean(d, x64):
    """A_d = I_{d/2} / I_{d/2-1}, its derivative 1 - A^2 - (d - 1)/kappa A, and -d log C/dkappa."""

    def at(kappa):
        log_c = lambda k: vmf(d, k).log_prob(jnp.eye(d)[0]) - k
        length = lambda k: 1.0 - vmf(d, k).shortfall()
        return *jax.value_and_grad(length)(kappa), jax.grad(log_c)(kappa)

    rows = zip(KAPPAS, *jax.jit(jax.vmap(at))(jnp.asarray(KAPPAS)), strict=True)
    for kappa, length, slope, fall in rows:
        a = ive(d / 2, kappa) / ive(d / 2 - 1, kappa)
        assert np.isclose(length, a, rtol=1e-10, atol=0)
        assert np.isclose(slope, 1.0 - a**2 - (d - 1) / kappa * a, rtol=1e-6, atol=1e-12), kappa
        assert np.isclose(fall, -a, rtol=1e-10, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("d", "kappa", "kl"),
    [
        (2, 1.0, 0.210475607389356),
        (3, 10.0, 1.99573231683822),
        (5, 20.0, 3.68992431233474),
        (11, 50.0, 8.80766960421886),
        (50, 1000.0, 74.8148080845802),
        (128, 5000.0, 234.376965492278),
    ],
)
def test_kl_to_the_uniform(d, kappa, kl, x64):
    p = jv.distributions.SphericalUniform(d)
    found = jax.jit(lambda kappa: jv.kl_divergence(vmf(d, kappa), p))(kappa)
    assert np.isclose(found, kl, rtol=1e-12, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [jv.distributions.VonMisesFisher, jv.distributions.PowerSpherical])
@pytest.mark.parametrize(
    ("d", "kappa"), [(2, 3.0), pytest.param(3, 0.5, marks=pytest.mark.slow), (11, 40.0)]
)
def test_kl_is_what_samples_say(kind, d, kappa, x64):
    @jax.jit
    def both(keys):
        q, p = kind(jnp.eye(d)[0], jnp.asarray(kappa)), jv.distributions.SphericalUniform(d)
        one = lambda k: jv.sampled_kl(q, p, *jv.sample_and_log_prob(q, k))
        return jax.vmap(one)(keys), jv.kl_divergence(q, p)

    assert standard_errors_off(*both(jax.random.split(jax.random.key(0), 10_000))) < 4


def cosines(d, num=6):
    """w = mu'x of a few draws at each kappa, and dw/dkappa: [kappas, num] each."""
    keys = jax.random.split(jax.random.key(0), num)
    slope = jax.value_and_grad(lambda kappa, key: vmf(d, kappa).sample(key)[0])
    grid = jax.jit(jax.vmap(jax.vmap(slope, (None, 0)), (0, None)))
    return (np.asarray(a) for a in grid(jnp.asarray(KAPPAS), keys))


def exact_slope(d, kappa, w):
    """dw/dkappa at a fixed quantile: sin t int_0^t (cos s - A) f(s) / f(t) ds, w = cos t."""
    a = ive(d / 2, kappa) / ive(d / 2 - 1, kappa)
    t, n = np.arccos(w), d - 2

    def integrand(s):
        log_ratio = kappa * (np.cos(s) - w) + n * (np.log(np.sin(s)) - np.log(np.sin(t)))
        return (np.cos(s) - a) * np.exp(log_ratio)

    reach = 12.0 / np.sqrt(kappa + n)
    sides = (max(t - reach, 1e-300), t), (t, min(t + reach, pi - 1e-12))
    below, above = (quad(integrand, *side, epsrel=1e-11, limit=400)[0] for side in sides)
    return np.sin(t) * (below if abs(below) < abs(above) else -above)  # together they are 0


@pytest.mark.thorough
@dims(3, 50, slow=(5, 11))
def test_the_gradient_in_kappa_is_the_analytic_one(d, x64):
    """Of draws, one by one, from kappa 1e-3 to 1e4."""
    for kappa, ws, slopes in zip(KAPPAS, *cosines(d), strict=True):
        for w, slope in zip(ws, slopes, strict=True):
            exact = exact_slope(d, kappa, w)
            assert np.isclose(slope, exact, rtol=1e-4, atol=1e-7 * abs(1 - w)), (kappa, w)
            if d == 3:  # w = 1 + log(u + (1 - u) e^{-2 kappa}) / kappa, u the quantile of w
                u = (np.exp(kappa * (w - 1)) - np.exp(-2 * kappa)) / -np.expm1(-2 * kappa)
                below = u + (1 - u) * np.exp(-2 * kappa)
                closed = -2 * (1 - u) * np.exp(-2 * kappa) / below / kappa + (1 - w) / kappa
                assert np.isclose(slope, closed, rtol=1e-4, atol=1e-7 * abs(1 - w)), (kappa, w)


@pytest.mark.thorough
@dims(2, 3, 50, slow=(11,))
def test_float32_is_finite_and_on_the_sphere(d):
    """Draws, their densities and the gradients of both."""

    def of(kappa, key):
        x, log_q = jv.sample_and_log_prob(vmf(d, kappa), key)
        return x[0] + log_q, jnp.sum(jnp.square(x))

    keys = jax.random.split(jax.random.key(0), 20)
    grid = jax.vmap(jax.vmap(jax.value_and_grad(of, has_aux=True), (None, 0)), (0, None))
    (values, lengths), slopes = jax.jit(grid)(jnp.asarray(KAPPAS), keys)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slopes))
    assert np.allclose(lengths, 1.0, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("d", [2, 3, 11])
def test_power_spherical_at_the_antipode_is_finite(d):
    mu = np.eye(d, dtype="f")[0]

    @jax.jit
    def numbers(kappa):
        of = lambda kappa: jv.distributions.PowerSpherical(mu, kappa)
        return of(kappa).log_prob(-mu), jax.grad(lambda kappa: of(kappa).entropy())(kappa)

    assert np.all(np.isfinite(numbers(jnp.float32(1e3))))


def test_the_direction_may_have_any_length():
    x = jnp.array([0.6, 0.8])
    for kind in (jv.distributions.VonMisesFisher, jv.distributions.PowerSpherical):
        log_prob = jax.jit(lambda loc, kind=kind: kind(loc, 2.0).log_prob(x))
        assert close(*(log_prob(jnp.full(2, s)) for s in (1.0, 7.0)))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [jv.distributions.VonMisesFisher, jv.distributions.PowerSpherical])
def test_no_direction_is_the_first_axis(kind):
    """What an encoder gives to an empty image before it is trained; its gradient is finite."""

    def f(loc):
        x, log_q = jv.sample_and_log_prob(kind(loc, 2.0), jax.random.key(0))
        return x[0] + log_q

    both = jax.jit(jax.value_and_grad(f))
    value, slope = both(jnp.zeros(3))
    assert close(value, both(jnp.eye(3)[0])[0])
    assert np.all(np.isfinite(slope))


def test_events_off_the_sphere_are_errors():
    for d in (
        vmf(3, 1.0),
        jv.distributions.SphericalUniform(3),
        jv.distributions.PowerSpherical(jnp.ones(3), 1.0),
    ):
        with pytest.raises(ValueError, match="length 1"):
            d.log_prob(jnp.ones(3))
        assert jax.jit(d.log_prob)(jnp.ones(3)) == -jnp.inf
    with pytest.raises(ValueError, match="expected 2 or more"):
        jv.distributions.SphericalUniform(1)
    assert np.isclose(log_area(3), np.log(4 * pi))
