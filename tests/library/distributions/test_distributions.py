"""Each distribution against SciPy, its draws against its own theory, and float32 at its limits."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxvae as jv
from jaxvae.nn import BernoulliHead, MultivariateNormalHead, NormalHead
from tests.common import close, draws, is_differentiable, standard_errors_off

LOC = np.array([[0.3, -1.0, 2.0], [5.0, 0.0, -0.7]])
SCALE = np.array([[0.5, 2.0, 1.0], [0.1, 7.0, 1.3]])
TRIL = np.array([[0.5, 0.0, 0.0], [-0.8, 1.2, 0.0], [0.3, -0.4, 2.0]])
LOGITS = np.array([[0.2, -2.0, 0.5], [1.0, 0.1, -2.5]])


def key(seed=0):
    return jax.random.key(seed)


def independent(oracle: Any):
    """A SciPy distribution of independent coordinates as (log p, mean, variance, entropy)."""
    score = oracle.logpdf if hasattr(oracle.dist, "pdf") else oracle.logpmf
    return lambda z: score(z).sum(), oracle.mean(), oracle.var(), oracle.entropy().sum()


def multivariate_normal():
    cov: Any = TRIL @ TRIL.T
    oracle: Any = stats.multivariate_normal(mean=LOC[0], cov=cov)
    return oracle.logpdf, LOC[0], np.diag(cov), oracle.entropy()


def categorical():
    rows = [stats.rv_discrete(values=(range(3), np.exp(row) / np.exp(row).sum())) for row in LOGITS]
    return (
        lambda z: sum(row.logpmf(k) for row, k in zip(rows, z, strict=True)),
        np.array([row.mean() for row in rows]),
        np.array([row.var() for row in rows]),
        sum(row.entropy() for row in rows),
    )


# ours, made inside the test at its precision, and SciPy's
SCIPY = {
    "standard normal": (
        lambda: jv.StandardNormal((2, 3)),
        lambda: independent(stats.norm(0 * LOC)),
    ),
    "normal": (
        lambda: jv.Normal(jnp.array(LOC), jnp.array(SCALE)),
        lambda: independent(stats.norm(LOC, SCALE)),
    ),
    "normal, one scale": (
        lambda: jv.Normal(jnp.array(LOC), 0.3),
        lambda: independent(stats.norm(LOC, 0.3)),
    ),
    "multivariate normal": (
        lambda: jv.MultivariateNormal(jnp.array(LOC[0]), jnp.array(TRIL)),
        multivariate_normal,
    ),
    "bernoulli": (
        lambda: jv.Bernoulli(jnp.array(LOGITS)),
        lambda: independent(stats.bernoulli(1 / (1 + np.exp(-LOGITS)))),
    ),
    "categorical": (lambda: jv.Categorical(jnp.array(LOGITS)), categorical),
    "laplace": (
        lambda: jv.Laplace(jnp.array(LOC), jnp.array(SCALE)),
        lambda: independent(stats.laplace(LOC, SCALE)),
    ),
    "laplace, one scale": (
        lambda: jv.Laplace(jnp.array(LOC), 0.3),
        lambda: independent(stats.laplace(LOC, 0.3)),
    ),
}
against_scipy = pytest.mark.parametrize(("make", "oracle"), SCIPY.values(), ids=SCIPY.keys())


@against_scipy
def test_log_prob_is_scipys(make, oracle, x64):
    """The sum over the event, at draws and ten times as far out."""
    d, (score, mean, *_) = make(), oracle()
    log_prob = jax.jit(d.log_prob)
    for seed in range(5):
        z = d.sample(key(seed))
        assert close(log_prob(z), score(np.asarray(z)))
        if jnp.issubdtype(z.dtype, jnp.floating) and "Bernoulli" not in type(d).__name__:
            far = mean + 10 * (z - mean)
            assert close(log_prob(far), score(np.asarray(far)))


@against_scipy
def test_draws_have_scipys_moments(make, oracle):
    """Mean, variance and entropy of 20,000 draws, within four standard errors."""
    d, (_, mean, variance, entropy) = make(), oracle()

    def statistics(k):
        z, log_p = jv.sample_and_log_prob(d, k)
        z = z.astype(jnp.float32)
        return z, jnp.square(z - mean.astype(np.float32)), -log_p

    z, squares, surprise = draws(statistics, 20_000)
    assert standard_errors_off(z, mean) < 4
    assert standard_errors_off(squares, variance) < 4
    assert standard_errors_off(surprise, entropy) < 4


@pytest.mark.parametrize(
    ("make", "cdf"),
    [
        (lambda: jv.StandardNormal(()), stats.norm.cdf),
        (lambda: jv.Normal(0.3, 0.5), stats.norm(0.3, 0.5).cdf),
        (lambda: jv.Laplace(0.3, 0.5), stats.laplace(0.3, 0.5).cdf),
    ],
)
def test_draws_pass_kolmogorov_smirnov(make, cdf):
    """The whole distribution function, not only its moments."""
    assert stats.kstest(np.asarray(draws(make().sample, 20_000)), cdf).pvalue > 1e-3


def test_whitened_draws_of_a_full_covariance_are_independent_normals():
    """L^-1 (z - mu) has every coordinate standard normal (KS) and no correlation."""
    d = jv.MultivariateNormal(jnp.array(LOC[0], jnp.float32), jnp.array(TRIL, jnp.float32))
    z = np.asarray(draws(d.sample, 20_000), np.float64)
    eps = np.linalg.solve(TRIL, (z - LOC[0]).T)
    assert all(stats.kstest(row, stats.norm.cdf).pvalue > 1e-3 for row in eps)
    assert standard_errors_off(np.einsum("in,jn->nij", eps, eps), np.eye(3)) < 4


def test_standard_normal_has_no_leaves():
    """It cannot train by accident; its shape is part of its type."""
    assert jax.tree.leaves(jv.StandardNormal((2,))) == []
    assert jax.tree.structure(jv.StandardNormal((2,))) == jax.tree.structure(
        jv.StandardNormal((2,))
    )
    assert jax.tree.structure(jv.StandardNormal((2,))) != jax.tree.structure(
        jv.StandardNormal((3,))
    )


def test_categorical_has_no_mean():
    """The average of labels means nothing."""
    assert not hasattr(jv.Categorical(jnp.zeros(3)), "mean")


def test_categorical_normalises_its_logits(x64):
    """log_probs are log(p / sum p) for logits log p, whatever constant is added to them."""
    p = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
    for shift in (0.0, -300.0, 1e6):
        probs = jnp.exp(jv.Categorical(jnp.log(3.0 * p) + shift).log_probs)
        assert np.allclose(probs, p, rtol=1e-9 if shift < 1e6 else 1e-6)


# Contracts on parameters


@pytest.mark.parametrize("shape", [3, [3], (3.0,), "3", None, (jnp.zeros(()),)])
def test_standard_normal_wants_a_tuple(shape):
    """A shape that is no tuple of integers is named at once."""
    with pytest.raises(TypeError, match=r"StandardNormal: shape is .* expected a tuple"):
        jv.StandardNormal(shape)


@pytest.mark.parametrize("family", [jv.Normal, jv.Laplace])
@pytest.mark.parametrize(
    ("loc", "scale"), [((3,), (1,)), ((1,), (3,)), ((), (3,)), ((2, 1), (1, 3))]
)
def test_a_scale_of_another_shape_is_an_error(family, loc, scale):
    """The scale is one number or has the shape of loc: it is never broadcast, nor is loc."""
    d = family(jnp.zeros(loc), jnp.ones(scale))
    shape = np.broadcast_shapes(loc, scale)
    for call in (lambda: d.log_prob(jnp.zeros(shape)), lambda: d.sample(key()), d.mean):
        with pytest.raises(ValueError, match="scale"):
            call()


@pytest.mark.parametrize("shape", [(2,), (1, 1), (2, 1), (2, 3), (3, 3), (1, 2, 2), ()])
def test_a_factor_of_another_shape_is_an_error(shape):
    """MultivariateNormal: scale_tril is [d, d], and the message says so."""
    d = jv.MultivariateNormal(jnp.zeros(2), jnp.ones(shape))
    standard = jv.StandardNormal((2,))
    for call in (
        lambda: d.log_prob(jnp.zeros(2)),
        lambda: d.sample(key()),
        lambda: jv.sample_and_log_prob(d, key()),
        lambda: jv.kl_divergence(d, standard),
        lambda: jv.kl_divergence(standard, d),
    ):
        with pytest.raises(ValueError, match=r"scale_tril has shape .*expected \(2, 2\)"):
            call()


@pytest.mark.thorough
def test_only_the_lower_triangle_counts(x64):
    """What stands above the diagonal changes no number and gets no gradient.

    Otherwise training L as a leaf fills it, and draws and density come apart.
    """
    loc, tril = jnp.array(LOC[0]), jnp.array(TRIL)
    junk = tril + jnp.triu(jnp.full((3, 3), 7.0), 1)
    p = jv.MultivariateNormal(-loc, jnp.array(TRIL.T @ TRIL))
    standard = jv.StandardNormal((3,))

    @jax.jit
    def numbers(tril):
        d = jv.MultivariateNormal(loc, tril)
        z, log_p = jv.sample_and_log_prob(d, key())
        kls = [jv.kl_divergence(d, standard), jv.kl_divergence(standard, d)]
        kls += [jv.kl_divergence(d, p), jv.kl_divergence(p, d)]
        reparameterized = jv.MultivariateNormal(loc, tril).sample(key(1))
        return jnp.concatenate([z, reparameterized, jnp.stack([log_p, d.log_prob(z), *kls])])

    assert close(numbers(junk), numbers(tril))
    slopes = jax.jit(jax.jacobian(numbers))
    assert np.all(np.triu(slopes(tril), 1) == 0)
    assert np.all(np.triu(slopes(junk), 1) == 0)


# Reparameterization


def test_reparameterize_is_the_draw_of_normal(x64):
    """z = mu + sigma eps, with the eps that a standard normal draws from the same key."""
    eps = jax.random.normal(key(), LOC.shape)
    loc, scale = jnp.array(LOC), jnp.array(SCALE)
    assert close(jv.distributions.reparameterize(key(), loc, scale), LOC + SCALE * np.asarray(eps))
    assert close(jv.distributions.reparameterize(key(), loc, 0.3), LOC + 0.3 * np.asarray(eps))
    assert jv.distributions.reparameterize(key(), 0.3, 0.5).shape == ()


def test_reparameterize_gradients_are_finite_differences(x64):
    """dz/dmu and dz/dsigma at a fixed key, through a nonlinear function of z."""

    def f(loc, scale):
        return jnp.sin(jv.distributions.reparameterize(key(), loc, scale))

    assert is_differentiable(f, jnp.array(LOC), jnp.array(SCALE))
    assert is_differentiable(f, jnp.array(LOC), jnp.array(0.3))


def test_reparameterize_jacobian_is_one_and_eps(x64):
    """dz/dmu = I and dz/dsigma = diag eps, exactly."""
    loc, scale = jnp.array(LOC[0]), jnp.array(SCALE[0])
    eps = jv.distributions.reparameterize(key(), jnp.zeros(3), jnp.ones(3))
    by_loc, by_scale = jax.jacobian(
        lambda m, s: jv.distributions.reparameterize(key(), m, s), (0, 1)
    )(loc, scale)
    assert close(by_loc, np.eye(3))
    assert close(by_scale, np.diag(eps))


@pytest.mark.parametrize(
    ("f", "by_loc", "by_scale"),
    [
        # E z^2 = mu^2 + sigma^2
        (lambda z: z**2, lambda m, s: 2 * m, lambda m, s: 2 * s),
        # E cos z = exp(-sigma^2 / 2) cos mu
        (
            jnp.cos,
            lambda m, s: -np.exp(-(s**2) / 2) * np.sin(m),
            lambda m, s: -s * np.exp(-(s**2) / 2) * np.cos(m),
        ),
        # E exp z = exp(mu + sigma^2 / 2)
        (jnp.exp, lambda m, s: np.exp(m + s**2 / 2), lambda m, s: s * np.exp(m + s**2 / 2)),
    ],
    ids=["square", "cos", "exp"],
)
def test_reparameterize_differentiates_expectations(f, by_loc, by_scale, x64):
    """The mean gradient of f(z) is the gradient of E f(z), in closed form."""
    loc, scale = np.array([0.3, -1.0]), np.array([0.5, 0.8])

    def gradient(k):
        return jax.grad(lambda m, s: jnp.sum(f(jv.distributions.reparameterize(k, m, s))), (0, 1))(
            jnp.array(loc), jnp.array(scale)
        )

    d_loc, d_scale = draws(gradient, 20_000)
    # the square's gradient in mu, 2 z, and the rest all vary
    assert standard_errors_off(d_loc, by_loc(loc, scale)) < 4
    assert standard_errors_off(d_scale, by_scale(loc, scale)) < 4


def test_multivariate_normal_draw_gradients_are_finite_differences(x64):
    """dz/dmu and dz/dL at a fixed key, through a nonlinear function of z."""

    def f(loc, tril):
        return jnp.sin(jv.MultivariateNormal(loc, tril).sample(key()))

    assert is_differentiable(f, jnp.array(LOC[0]), jnp.array(TRIL))


def test_multivariate_normal_draw_differentiates_expectations(x64):
    """E z'Az = mu'A mu + tr A L L': gradients 2 A mu, and 2 A L on the lower triangle."""
    a = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.7]])

    def gradient(k):
        def f(loc, tril):
            z = jv.MultivariateNormal(loc, tril).sample(k)
            return z @ jnp.array(a) @ z

        return jax.grad(f, (0, 1))(jnp.array(LOC[0]), jnp.array(TRIL))

    d_loc, d_tril = draws(gradient, 20_000)
    lower = np.tril_indices(3)
    assert standard_errors_off(d_loc, 2 * a @ LOC[0]) < 4
    assert standard_errors_off(d_tril[:, *lower], (2 * a @ TRIL)[lower]) < 4


def test_multivariate_normal_draw_has_the_covariance(x64):
    """Cov z = L L', the diagonal form being a diagonal L."""
    z = draws(lambda k: jv.MultivariateNormal(jnp.array(LOC[0]), jnp.array(TRIL)).sample(k), 20_000)
    r = np.asarray(z) - LOC[0]
    assert standard_errors_off(r, np.zeros(3)) < 4
    assert standard_errors_off(r[:, :, None] * r[:, None, :], TRIL @ TRIL.T) < 4
    diagonal = jv.MultivariateNormal(jnp.array(LOC[0]), jnp.diag(jnp.array(SCALE[0]))).sample(key())
    assert close(
        diagonal, jv.distributions.reparameterize(key(), jnp.array(LOC[0]), jnp.array(SCALE[0]))
    )


# Float32 at its limits. A number is asked for wherever the true one, computed in float64 by the
# same code (which the tests above hold to SciPy), is one that float32 can hold.

TINY, LARGE = float(np.exp(-40.0)), float(np.exp(40.0))


def at_both_precisions(f, *args):
    """Value and gradients of f, in float32 and, of the same float32 numbers, in float64."""
    narrow = [jnp.asarray(arg, jnp.float32) for arg in args]
    every = tuple(range(len(args)))
    got = jax.value_and_grad(f, every)(*narrow)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(arg), jnp.float64) for arg in narrow]
        true = jax.value_and_grad(f, every)(*wide)
    return jax.tree.map(np.asarray, (got, true))


def representable(true):
    """Which of the true numbers float32 can hold, up to 3.4e38."""
    return np.abs(true) < np.finfo(np.float32).max


def all_representable(true):
    return all(np.all(representable(leaf)) for leaf in jax.tree.leaves(true))


def holds(got, true, *, rtol=1e-4, atol=1e-30):
    """Where float32 can hold the true number, the number got is that."""
    return all(
        np.allclose(number[representable(exact)], exact[representable(exact)], rtol, atol)
        for number, exact in zip(jax.tree.leaves(got), jax.tree.leaves(true), strict=True)
    )


SCALES = {
    "tiny": np.array([TINY, TINY]),
    "large": np.array([LARGE, LARGE]),
    "both": np.array([TINY, LARGE]),
}
by_scale = pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())


@by_scale
@pytest.mark.parametrize("family", [jv.Normal, jv.Laplace])
@pytest.mark.parametrize("offset", [0.0, 0.5, -3.0])
def test_extreme_scales_near_the_mean(family, scale, offset):
    """Log-densities and all gradients, some scales off the mean."""

    def f(z, loc, scale):
        return family(loc, scale).log_prob(z)

    got, true = at_both_precisions(f, offset * scale, np.zeros(2), scale)
    assert all_representable(true)
    assert holds(got, true)


@by_scale
@pytest.mark.parametrize("family", [jv.Normal, jv.Laplace])
def test_extreme_scales_one_unit_off(family, scale):
    """The event is one away from the mean, however small the scale.

    The Normal's d log p / d sigma at sigma = e^-40 is then e^120, which float32 does not hold; its
    log p, -e^80 / 2, and the Laplace's gradient, e^80, it does.
    """

    def f(z, loc, scale):
        return family(loc, scale).log_prob(z)

    got, true = at_both_precisions(f, np.ones(2), np.zeros(2), scale)
    huge = family is jv.Normal and scale[0] == TINY
    assert all_representable(true) != huge
    assert holds(got, true)


@by_scale
@pytest.mark.parametrize("family", [jv.Normal, jv.Laplace])
def test_extreme_scales_of_draws(family, scale):
    """Log q at a draw is that of eps less log sigma; dz/dsigma = eps, d log q/dsigma = -1/sigma."""
    loc, scale = jnp.array([0.3, -1.0]), jnp.asarray(scale, jnp.float32)
    oracle = {jv.Normal: stats.norm, jv.Laplace: stats.laplace}[family]
    eps = np.asarray(family(jnp.zeros(2), jnp.ones(2)).sample(key()), np.float64)
    z, log_q = jv.sample_and_log_prob(family(loc, scale), key())
    assert np.allclose(z, np.asarray(loc, np.float64) + np.asarray(scale, np.float64) * eps, 1e-5)
    exact = oracle.logpdf(eps) - np.log(np.asarray(scale, np.float64))
    assert np.allclose(log_q, exact.sum(), 1e-5, 1e-5)

    jacobian: Any = jax.jacobian(lambda m, s: jv.sample_and_log_prob(family(m, s), key()), (0, 1))
    (z_loc, z_scale), (q_loc, q_scale) = jacobian(loc, scale)
    assert np.array_equal(z_loc, np.eye(2))
    assert np.allclose(z_scale, np.diag(eps))
    assert np.array_equal(q_loc, np.zeros(2))
    assert np.allclose(q_scale, -1 / np.asarray(scale, np.float64), 1e-5)


@by_scale
@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_extreme_factors(scale, mix):
    """MultivariateNormal with L_ii = e^+-40, its log-density near the mean and its draws."""
    tril = np.diag(scale) + mix * scale.min() * np.eye(2, k=-1)

    def score(z, loc, tril):
        return jv.MultivariateNormal(loc, tril).log_prob(z)

    got, true = at_both_precisions(score, tril @ np.array([0.5, -3.0]), np.zeros(2), tril)
    assert all_representable(true)
    assert holds(got, true)

    def draw(loc, tril):
        z, log_q = jv.sample_and_log_prob(jv.MultivariateNormal(loc, tril), key())
        return jnp.sum(z) + log_q

    value, gradient = jax.value_and_grad(draw, (0, 1))(jnp.zeros(2), jnp.asarray(tril, jnp.float32))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient)


@pytest.mark.parametrize("logit", [-1e4, -104.0, -40.0, 0.0, 40.0, 104.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_extreme_logits_of_bernoulli(logit, x):
    """log p and its gradient, x - sigmoid(l), are those of SciPy's logistic at every logit.

    The usual -log(-expm1(log_sigmoid(l))) is infinite from a logit of 104 on.
    """
    value, gradient = jax.value_and_grad(lambda l: jv.Bernoulli(l).log_prob(jnp.array(x)))(logit)
    probability = stats.logistic.cdf(logit)
    exact = stats.logistic.logcdf(logit) if x else stats.logistic.logsf(logit)
    assert np.allclose(value, exact, 1e-6, 1e-6)
    assert np.allclose(gradient, x - probability, 1e-6, 1e-6)


def test_extreme_logits_of_bernoulli_draw():
    """Certain coins fall on their side; the log-probability of that is 0 and flat."""
    logits = jnp.array([-1e4, 1e4, 1e4])
    z, log_p = jv.sample_and_log_prob(jv.Bernoulli(logits), key())
    assert np.array_equal(z, [0.0, 1.0, 1.0])
    assert log_p == 0
    assert np.array_equal(jv.Bernoulli(logits).mean(), [0.0, 1.0, 1.0])
    gradient = jax.grad(lambda l: jnp.sum(jv.Bernoulli(l).mean()))(logits)
    assert np.array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("low", [-1e4, -np.inf])
def test_extreme_logits_of_categorical(low):
    """Classes that never come: log p of the others, and every gradient, one-hot - softmax."""
    logits = jnp.array([0.5, low, -0.5, low])
    softmax = np.exp([0.5, -np.inf, -0.5, -np.inf]) / (np.exp(0.5) + np.exp(-0.5))
    for k in (0, 2):
        value, gradient = jax.value_and_grad(lambda l, k=k: jv.Categorical(l).log_prob(k))(logits)
        assert np.allclose(value, np.log(softmax[k]), 1e-6)
        assert np.allclose(gradient, np.eye(4)[k] - softmax, 1e-6)
    value, gradient = jax.value_and_grad(lambda l: jv.Categorical(l).log_prob(1))(logits)
    assert np.allclose(value, low, 1e-3)  # -inf where it is so in truth
    assert np.allclose(gradient, np.eye(4)[1] - softmax, 1e-6)
    assert set(np.unique(draws(jv.Categorical(logits).sample, 1000))) == {0, 2}


def test_huge_logits_of_categorical():
    """A logit of 1e4 is certainty: log p = 0, and the next one is 1e4 below."""
    d = jv.Categorical(jnp.array([1e4, 0.0, -1e4]))
    assert np.allclose([d.log_prob(k) for k in range(3)], [0.0, -1e4, -2e4])
    gradient = jax.grad(lambda l: jv.Categorical(l).log_prob(1))(d.logits)
    assert np.array_equal(gradient, [-1.0, 1.0, 0.0])


RAW = (-1e4, -40.0, 40.0, 1e4)


def raws(num):
    return jnp.array(list(product(RAW, repeat=num)), jnp.float32)


def through_head(head, shape):
    """log q at a draw, the draw, the KL to N(0, I) and log q at the mean, of raw outputs."""

    def f(raw):
        q = head(raw)
        z, log_q = jv.sample_and_log_prob(q, key())
        kl = jv.kl_divergence(q, jv.StandardNormal(shape))
        return jnp.stack([log_q, jnp.sum(z), kl, q.log_prob(q.mean())])

    return f


@pytest.mark.parametrize(
    ("head", "num", "shape"),
    [
        (NormalHead(), 2, (1,)),
        (NormalHead(), 4, (2,)),
        (NormalHead(scale=1e-3), 2, (2,)),
        (MultivariateNormalHead(), 5, (2,)),
    ],
    ids=["normal", "normal, two", "fixed scale", "multivariate"],
)
def test_extreme_raw_outputs_of_posteriors(head, num, shape):
    """No raw output of +-40 or +-1e4 makes a draw, its density, a KL or a gradient not finite."""
    f = through_head(head, shape)
    values, gradients = jax.jit(jax.vmap(lambda raw: (f(raw), jax.jacobian(f)(raw))))(raws(num))
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))


def test_extreme_raw_outputs_of_a_normal_likelihood():
    """log p of an event at 0, with mu and the raw sigma at every extreme, and its gradients."""

    def f(raw):
        return NormalHead()(raw).log_prob(jnp.zeros(1, raw.dtype))

    both = jax.jit(jax.vmap(jax.value_and_grad(f)))
    got = both(raws(2))
    with jax.enable_x64(True):
        true = jax.tree.map(np.asarray, both(jnp.asarray(np.asarray(raws(2)), jnp.float64)))
    assert all_representable(true)
    assert holds(jax.tree.map(np.asarray, got), true, atol=1e-8)  # r^2/sigma^3 - 1/sigma may cancel


def test_extreme_raw_outputs_of_a_full_covariance_likelihood():
    """log p of an event at 0 is finite where the true one is: with L_ii = 1e-6 it may be 1e41.

    Its gradient in L, (L^-1 r)^2 / L_ii, is beyond float32 long before.
    """

    def f(raw):
        return MultivariateNormalHead()(raw).log_prob(jnp.zeros(2, raw.dtype))

    got = np.asarray(jax.jit(jax.vmap(f))(raws(5)))
    with jax.enable_x64(True):
        true = np.asarray(jax.jit(jax.vmap(f))(jnp.asarray(np.asarray(raws(5)), jnp.float64)))
    assert np.mean(representable(true)) > 0.9
    assert np.all(np.isfinite(got[representable(true)]))


def test_extreme_raw_outputs_through_the_elbo():
    """Encoder, decoder and rate together: a finite bound with finite gradients."""

    def bound(rate, raw, logits, x):
        model = jv.VAE(
            encode=lambda x: NormalHead()(raw),
            decode=lambda z: BernoulliHead()(logits * z),
            prior=jv.StandardNormal((2,)),
        )
        return jv.elbo(model, key(), x, kl=rate)[0]

    cases = raws(4), jnp.tile(raws(2), (16, 1)), jnp.tile(jnp.array([[0.0, 1.0]]), (256, 1))
    for rate in (jv.analytic_kl, jv.sampled_kl):
        gradient = jax.value_and_grad(partial(bound, rate), (0, 1))
        assert all(
            np.all(np.isfinite(leaf))
            for leaf in jax.tree.leaves(jax.jit(jax.vmap(gradient))(*cases))
        )


NUMPYS, COIN = np.array([0.1, -0.5, 2.0]), jnp.array([1.0, 0.0, 1.0])  # of float64
WHOLES = {
    "independent": (lambda: jv.Independent(jv.Bernoulli(NUMPYS)), COIN),
    "masked": (lambda: jv.Masked(jv.Bernoulli(NUMPYS)), (COIN, COIN > 0)),
    "mixture": (lambda: jv.Mixture(NUMPYS, jv.Bernoulli(np.stack([NUMPYS] * 3))), COIN),
    "counts": (lambda: jv.Independent(jv.NegativeBinomial(NUMPYS**2, NUMPYS)), jnp.arange(3)),
    "gamma": (lambda: jv.Independent(jv.Gamma(NUMPYS**2, 1.0 + NUMPYS**2)), 1.0 + COIN),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("make", "event"), WHOLES.values(), ids=WHOLES)
def test_numpys_parameters_of_parts_serve_under_jit(make, event):
    """Where a derivative by hand is mapped along them."""
    assert close(jax.jit(lambda x: make().log_prob(x))(event), make().log_prob(event))


def test_independent_of_a_constant_says_what_to_write():
    with pytest.raises(TypeError, match=r"no leaves; write Constant\(Independent\(parts"):
        jv.Independent(jv.Constant(jv.Normal(jnp.zeros(3), 1.0))).sample(key())
