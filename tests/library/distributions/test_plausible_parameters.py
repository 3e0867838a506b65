"""What users give distributions: whole numbers, half precision, wrong shapes, edges."""

from functools import partial
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pytest
from jax.tree_util import Partial
from scipy.stats import norm

import jaxvae as jv
from jaxvae import gradients
from jaxvae.bounds import log_power_mean
from jaxvae.distributions import (
    PowerSpherical,
    Resampled,
    StraightThrough,
    VonMisesFisher,
    ZeroInflated,
    adapt,
    kl_standard_normal,
    unimix,
)
from jaxvae.gradients import for_component
from tests.common import close, standard_errors_off


@pytest.mark.parametrize("gap", [0.0, 1e-3])
@pytest.mark.parametrize("scale", [1e-3, 3e-4, 1e-4])
@pytest.mark.parametrize("d", [10, 2])
def test_columns_of_a_low_rank_factor_may_be_parallel(d, scale, gap):
    """Expected: NumPy in float64, of the eigenvalues."""
    column = np.ones((d, 1), np.float32)
    tilt = np.linspace(-gap, gap, d, dtype=np.float32)[:, None]
    factor = np.concatenate([column, column + tilt, column - tilt], axis=1)
    q = jv.LowRankNormal(jnp.zeros(d), jnp.asarray(factor), jnp.full(d, scale))
    z, log_q = q.sample_and_log_prob(jax.random.key(0))
    w = factor.astype(np.float64) / np.float64(np.float32(scale))
    log_m = np.sum(np.log1p(np.maximum(np.linalg.eigvalsh(w.T @ w), 0.0)))
    log_det = log_m + 2 * d * np.log(np.float64(np.float32(scale)))
    np.testing.assert_allclose(q.log_det(), log_det, atol=0.01)
    values, vectors = np.linalg.eigh(np.eye(d) + w @ w.T)
    y = vectors.T @ (np.asarray(z, np.float64) / np.float64(np.float32(scale)))
    exact = -0.5 * (np.sum(y**2 / np.maximum(values, 1.0)) + log_det + d * np.log(2 * np.pi))
    np.testing.assert_allclose(log_q, exact, atol=0.01)
    slopes = jax.grad(lambda q: q.log_prob(jnp.zeros(d)))(q)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_a_low_rank_normal_of_more_columns_than_coordinates():
    factor = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    q = jv.LowRankNormal(jnp.zeros(2), jnp.asarray(factor), jnp.array([0.5, 1e-3]))
    covariance = factor.astype(float) @ factor.T + np.diag([0.25, 1e-6])
    z = np.array([0.3, -0.2])
    square = z @ np.linalg.solve(covariance, z)
    exact = -0.5 * (square + np.log(np.linalg.det(2.0 * np.pi * covariance)))
    np.testing.assert_allclose(q.log_prob(jnp.asarray(z, jnp.float32)), exact, rtol=1e-5)


LOGITS = jnp.array([0.3, -0.6])
OF_BERNOULLIS = {
    "Mixture": lambda: jv.Mixture(jnp.zeros(2), jv.Bernoulli(jnp.stack([LOGITS, -LOGITS]))),
    "Independent": lambda: jv.Independent(jv.Bernoulli(LOGITS)),
    "Autoregressive": lambda: jv.Autoregressive(Partial(lambda z, _: 0.0 * z), jv.Bernoulli, 2),
    "Resampled": lambda: Resampled(
        jv.Constant(jv.Bernoulli(LOGITS)), Partial(jnp.sum), jv.Constant(jnp.eye(2)), tries=3
    ),
    "StraightThrough": lambda: StraightThrough(jv.Bernoulli(LOGITS)),
}


@pytest.mark.parametrize("prior", OF_BERNOULLIS)
def test_what_is_made_of_bernoullis_scores_a_relaxed_draw(prior):
    p, events = OF_BERNOULLIS[prior](), jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for z in events:  # where the two are the same
        np.testing.assert_allclose(p.log_prob_relaxed(z), p.log_prob(z), rtol=1e-6)
    for gradient in (
        partial(gradients.gumbel_softmax, temperature=0.5),
        partial(gradients.rebar, scale=1.0, temperature=0.5),
    ):

        def bound(logits, gradient=gradient):
            encode, decode = (
                Partial(lambda l, x: jv.Bernoulli(l), logits),
                lambda z: jv.Normal(z, 1.0),
            )
            return jv.elbo(
                jv.VAE(encode, decode, p), jax.random.key(0), jnp.ones(2), gradient=gradient
            )[0]

        value, slope = jax.jit(jax.value_and_grad(bound))(LOGITS)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_a_joint_of_bernoullis_scores_a_relaxed_draw():
    p = jv.Joint(jv.Bernoulli(LOGITS), Partial(lambda a: jv.Bernoulli(a)))
    relaxed = jnp.array([0.25, 0.5])
    exact = jv.Bernoulli(LOGITS).log_prob_relaxed(relaxed)
    exact += jv.Bernoulli(relaxed).log_prob_relaxed(relaxed)
    np.testing.assert_allclose(p.log_prob_relaxed((relaxed, relaxed)), exact, rtol=1e-6)


@pytest.mark.parametrize(
    "discrete",
    [
        pytest.param(lambda l: npd.Bernoulli(logits=l).to_event(1), id="numpyro"),
        pytest.param(lambda l: distrax.Bernoulli(logits=l), id="distrax"),
    ],
)
def test_an_adapted_distribution_without_a_path_is_refused_by_pathwise(discrete):
    def bound(logits):
        q = Partial(lambda l, x: adapt(discrete(l)), logits)
        model = jv.VAE(q, lambda z: jv.Normal(1.0 * z, 1.0), adapt(discrete(jnp.zeros(2))))
        return jv.elbo(model, jax.random.key(0), jnp.ones(2))[0]

    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match="no derivative"):
        jax.grad(bound)(LOGITS)


def test_an_adapted_distribution_with_a_path_keeps_it():
    for d in (npd.Normal(0.0, 1.0), distrax.Normal(jnp.zeros(2), 1.0), npd.Gamma(2.0, 1.0)):
        assert adapt(d).reparameterized
    assert not adapt(npd.Poisson(1.0)).reparameterized


WHOLE = {
    "Normal": (jv.Normal, (0, 1)),
    "Laplace": (jv.Laplace, (0, 1)),
    "StudentT": (jv.StudentT, (3, 0, 1)),
    "Gamma": (jv.Gamma, (jnp.array([2, 3]), 1)),
    "Beta": (jv.Beta, (jnp.array([2, 3]), 1)),
    "Dirichlet": (jv.Dirichlet, (jnp.array([2, 3]),)),
    "Poisson": (jv.Poisson, (jnp.array([2, 3]),)),
    "NegativeBinomial": (jv.NegativeBinomial, (jnp.array([2, 3]), jnp.array([0.5, 1.0]))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_parameters_are_the_floats(name):
    make, whole = WHOLE[name]
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        _compare(make, whole, has_kl=name not in ("NegativeBinomial", "StudentT"))


def _compare(make, whole, *, has_kl):
    floats = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), whole)
    key = jax.random.key(1)
    x = make(*floats).sample(key)
    np.testing.assert_array_equal(make(*whole).sample(jax.random.key(1)), x)
    slopes = [jax.grad(lambda x, p=p: make(*p).log_prob(x))(x) for p in (whole, floats)]
    np.testing.assert_allclose(*slopes, rtol=1e-6)
    if has_kl:
        first, *others = floats

        def kl(first, p, others=others):
            return jv.kl_divergence(make(first + 0.5, *others), p)

        found = [jax.grad(kl)(first, make(*p)) for p in (whole, floats)]
        np.testing.assert_allclose(*found, rtol=1e-6)


def test_a_whole_rate_under_zero_inflation():
    log_p = ZeroInflated(jv.Poisson(2), jnp.array(0.0)).log_prob(jnp.array(0))
    assert close(log_p, np.log(0.5 + 0.5 * np.exp(-2.0)))


def test_parameters_of_a_shape_that_has_no_meaning_are_refused():
    with pytest.raises(ValueError, match=r"concentration has shape \(2, 3\), expected \[d\]"):
        jv.Dirichlet(jnp.ones((2, 3))).sample(jax.random.key(0))
    for make in (VonMisesFisher, PowerSpherical):
        with pytest.raises(ValueError, match=r"loc has shape \(1,\), expected \[d\]"):
            make(jnp.ones(1), 1.0).log_prob(jnp.ones(1))
        with pytest.raises(ValueError, match="concentration has shape"):
            make(jnp.ones(3), jnp.ones(3)).sample(jax.random.key(2))
    uneven = jv.Independent(jv.Normal(jnp.zeros((5, 2)), 1.0))
    with pytest.raises(ValueError, match=r"Independent: the leaves of parts have the leading axes"):
        uneven.log_prob(jnp.zeros((5, 2)))
    five, four = (jv.Independent(jv.Normal(jnp.zeros(n), jnp.ones(n))) for n in (5, 4))
    with pytest.raises(ValueError, match="kl_divergence: q is over events of shape"):
        jv.kl_divergence(five, four)


def test_a_masked_stack_of_products():
    parts = jv.Product(
        {"a": jv.Normal(jnp.zeros(3), jnp.ones(3)), "b": jv.Poisson(jnp.full(3, 2.0))}
    )
    stack = jv.Independent(parts)
    x = {"a": jnp.array([0.5, -1.0, 2.0]), "b": jnp.array([1.0, 0.0, 4.0])}
    seen = jnp.array([True, False, True])
    normal, poisson = jv.Normal(0.0, 1.0), jv.Poisson(2.0)
    both = sum(normal.log_prob(x["a"][i]) + poisson.log_prob(x["b"][i]) for i in (0, 2))
    assert close(jv.Masked(stack).log_prob((x, seen)), both)
    alone = both - poisson.log_prob(x["b"][2])
    mask = {"a": seen, "b": jnp.array([True, False, False])}
    assert close(jv.Masked(stack).log_prob((x, mask)), alone)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jv.Dirichlet(jnp.ones(16, jnp.bfloat16)),
        pytest.param(
            lambda: VonMisesFisher(jnp.ones(16, jnp.bfloat16), jnp.bfloat16(2.0)),
            marks=pytest.mark.thorough,
        ),
        lambda: PowerSpherical(jnp.ones(16, jnp.bfloat16), jnp.bfloat16(2.0)),
    ],
    ids=["Dirichlet", "VonMisesFisher", "PowerSpherical"],
)
def test_draws_in_half_precision_are_in_the_support(make):
    with jax.numpy_dtype_promotion("standard"):
        d = make()
        log_p = jax.jit(jax.vmap(lambda key: d.log_prob(d.sample(key))))(
            jax.random.split(jax.random.key(0), 200)
        )
    assert np.isfinite(np.asarray(log_p, np.float32)).all()


def test_a_mixture_in_half_precision_is_drawn_from():
    half = jv.Normal(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16))
    with jax.numpy_dtype_promotion("standard"):
        z = jv.Mixture(jnp.zeros(2, jnp.bfloat16), half).sample(jax.random.key(0))
    assert z.dtype == jnp.bfloat16
    assert z.shape == (3,)


def test_a_count_that_half_precision_cannot_hold_is_still_a_count():
    log_p = jv.Poisson(jnp.full(1, 1000.0, jnp.float16)).log_prob(jnp.array([70_000.0]))
    assert log_p < -1000.0


def test_large_counts_are_drawn():
    rates = jnp.array([3e9, 1e12, 1e30])
    draws = jax.vmap(jv.Poisson(rates).sample)(jax.random.split(jax.random.key(0), 500))
    assert standard_errors_off((draws - rates[None]) / jnp.sqrt(rates)[None], np.zeros(3)) < 4
    assert np.isinf(jv.Poisson(jnp.array(jnp.inf)).sample(jax.random.key(1)))
    found = jv.NegativeBinomial(jnp.full(1, 5.0), jnp.full(1, 60.0)).sample(jax.random.key(2))
    assert 0.05 < float(found[0]) / (5.0 * np.exp(60.0)) < 5.0


def test_derivatives_where_a_branch_meets_another():
    def kl(loc):
        return jv.kl_divergence(jv.Laplace(loc, 1.0), jv.Laplace(0.0, 2.0))

    assert close(jax.grad(jax.grad(kl))(0.0), 0.5)  # 1 / (b_q b_p)
    log_w = jnp.array([0.1, 0.5, 0.9, 0.3])
    slope = jax.grad(lambda power: log_power_mean(log_w, power=power))
    assert close(slope(0.0), 0.5 * np.var(np.asarray(log_w)))
    np.testing.assert_allclose(slope(0.0), slope(1e-3), rtol=1e-2)
    impossible = jnp.array([0.0, -jnp.inf])
    assert log_power_mean(impossible, power=0.0) == -jnp.inf
    sloped = jax.grad(lambda l: unimix(l, share=0.0)[0])(jnp.array([0.0, 1.0, -jnp.inf]))
    np.testing.assert_allclose(sloped, [0.7310586, -0.7310586, 0.0], rtol=1e-5)
    assert unimix(impossible, share=0.0)[1] == -jnp.inf


def test_nothing_is_a_product_too():
    one = jv.Product({"c": jv.OneHotCategorical(jnp.zeros(3))})

    def term(q, z, log_q):
        return z["c"] @ jnp.arange(3.0), log_q

    bound, _ = for_component("c", gradients.enumeration)(
        jnp.mean, term, one, jax.random.split(jax.random.key(0), 1)
    )
    assert close(bound, 1.0)
    assert jv.Bernoulli(jnp.zeros(0)).enumerate_support().shape == (1, 0)


def test_a_divergence_of_two_precisions_has_a_gradient():
    with jax.numpy_dtype_promotion("standard"):
        q = jv.Normal(jnp.ones(2, jnp.bfloat16), jnp.full(2, 0.5, jnp.bfloat16))
        p = jv.Normal(jnp.zeros(2), jnp.ones(2))
        of_q, of_p = jax.grad(jv.kl_divergence, argnums=(0, 1))(q, p)
    np.testing.assert_allclose(np.asarray(of_q.scale, float), [-1.5, -1.5])  # s - 1 / s
    np.testing.assert_allclose(of_p.scale, [-0.25, -0.25])  # 1 - s^2 - m^2
    assert of_q.loc.dtype == jnp.bfloat16


@pytest.mark.parametrize("of", [VonMisesFisher, PowerSpherical])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_the_direction_of_a_draw_has_a_quiet_gradient(of, d, x64):
    """Of a'x it is A (a - mu mu'a), and no draw's is much larger than |a|, as x turns with mu."""
    a, mu = jnp.arange(1.0, d + 1.0), jnp.eye(d)[0] * 0.6 + jnp.eye(d)[1] * 0.8
    keys = jax.random.split(jax.random.key(0), 20_000)

    def slope(key):
        return jax.grad(lambda loc: of(loc, 5.0).sample(key) @ a)(mu)

    slopes = np.asarray(jax.jit(jax.vmap(slope))(keys))
    exact = np.linalg.norm(of(mu, 5.0).mean()) * (a - mu * (mu @ a))
    assert np.linalg.norm(slopes, axis=1).max() < 2.0 * np.linalg.norm(a)
    assert np.all(np.abs(slopes.mean(0) - exact) < 4.0 * slopes.std(0) / np.sqrt(len(keys)) + 1e-9)


def test_the_second_derivative_in_a_direction_is_that_of_the_mean(x64):
    """The mean is A mu / |mu| around mu and not only at it."""
    a, mu = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.6, 0.8, 0.0])
    keys = jax.random.split(jax.random.key(1), 20_000)
    curve = jax.hessian(lambda loc, key: VonMisesFisher(loc, 5.0).sample(key) @ a)
    found = np.asarray(jax.jit(jax.vmap(curve, (None, 0)))(mu, keys))
    exact = jax.hessian(lambda loc: VonMisesFisher(loc, 5.0).mean() @ a)(mu)
    assert np.all(np.abs(found.mean(0) - exact) < 4.0 * found.std(0) / np.sqrt(len(keys)) + 1e-9)


@pytest.mark.parametrize(
    ("d", "z", "exact"),
    [
        (jv.StandardNormal((2,)), np.array([300, -300], "int16"), -90001.8379),
        (jv.Normal(np.array([5], "uint16"), 1.0), np.array([3], "uint16"), -2.9189),
        (jv.Laplace(np.array([5], "uint16"), 1.0), np.array([3], "uint16"), -2.6931),
        (jv.StudentT(1.0, np.array([100], "int8"), 1.0), np.array([-100], "int8"), -11.7414),
        (jv.distributions.SphericalUniform(2), np.array([1, 0]), -1.8379),
    ],
)
def test_events_may_be_whole_numbers_of_any_size(d: Any, z: Any, exact):
    assert float(d.log_prob(z)) == pytest.approx(exact, abs=1e-4, rel=1e-5)


@jax.numpy_dtype_promotion("standard")
def test_whole_numbers_as_parameters_are_floats():
    assert float(kl_standard_normal(np.int8(20), np.int8(1))) == 200.0
    tril = jnp.array([[1, 0], [1, 2]])
    d = jv.MultivariateNormal(jnp.array([1, 2]), tril)
    z, log_p = d.sample_and_log_prob(jax.random.key(0))
    assert float(d.log_prob(z)) == pytest.approx(float(log_p), rel=1e-5)
    assert float(d.log_prob(jnp.array([1, 2]))) == pytest.approx(-np.log(4 * np.pi), rel=1e-5)
    level = jv.DiscretizedLogistic(jnp.array([0]), 1).sample(jax.random.key(0))
    assert level.dtype == jnp.uint8


def test_the_weights_of_a_mixture_may_be_held_constant():
    parts = jv.Normal(jnp.array([[-1.0], [3.0]]), jnp.full((2, 1), 1e-3))
    d, free = jv.Mixture(jv.Constant(jnp.zeros(2)), parts), jv.Mixture(jnp.zeros(2), parts)
    z, key = jnp.array([3.0]), jax.random.key(0)
    assert float(d.log_prob(z)) == float(free.log_prob(z))
    assert d.sample(key).tolist() == free.sample(jax.random.clone(key)).tolist()
    bound, _ = gradients.stratified_mixture(
        jnp.mean, lambda q, z, log_q: (z[0], None), d, jax.random.key(1)[None]
    )
    assert float(bound) == pytest.approx(1.0, abs=0.01)
    assert [leaf.shape for leaf in jax.tree.leaves(d)] == [(2, 1), (2, 1)]


@pytest.mark.parametrize("gradient", [jv.sticking_the_landing, jv.doubly_reparameterized])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_posterior_of_half_precision_learns_through_its_samples(gradient, dtype):
    def bound(w):
        encode = Partial(lambda w, x: jv.Normal(w * x.astype(dtype), jnp.ones(2, dtype)), w)
        decode = Partial(lambda z: jv.Normal(z.astype(jnp.float32), jnp.ones(2)))
        model = jv.VAE(encode, decode, jv.StandardNormal((2,)))
        how = {"num_samples": 3, "gradient": gradient}
        return jv.iwae(model, jax.random.key(0), jnp.ones(2), **how)[0]

    with jax.numpy_dtype_promotion("standard"):
        half, single = (jax.grad(bound)(jnp.asarray(1.0, d)) for d in (dtype, jnp.float32))
    assert half.dtype == dtype
    assert np.isfinite(float(half))
    assert np.isfinite(float(single))


@pytest.mark.parametrize("wrap", [lambda d: d, adapt])
def test_a_support_of_numpyros_holds_under_jit(wrap, x64):
    """p = U(-1, 1)^2, x|z ~ N(z, 1): log p(x) = 2 log (Phi(2) - Phi(0)) / 2 at x = (1, 1)."""
    prior = wrap(npd.Uniform(-1.0, 1.0).expand([2]).to_event(1))
    encode = Partial(lambda x: jv.Normal(0.5 * x, jnp.ones(2)))
    model = jv.VAE(encode, Partial(lambda z: jv.Normal(z, jnp.ones(2))), prior)
    estimate = jax.jit(partial(jv.log_marginal, num_samples=20_000))
    found = estimate(model, jax.random.key(0), jnp.ones(2))
    exact = 2.0 * np.log(0.5 * (norm.cdf(2.0) - 0.5))
    assert abs(found.value - exact) < 4.0 * found.standard_error
    far = jv.VAE(Partial(lambda x: jv.Normal(x + 9.0, jnp.ones(2))), model.decode, prior)
    for bound in (jv.elbo, partial(jv.elbo, gradient=jv.sticking_the_landing)):
        assert jax.jit(bound)(far, jax.random.key(1), jnp.ones(2))[0] == -jnp.inf
    half = npd.HalfNormal(1.0).expand([2]).to_event(1)
    likely = jv.VAE(encode, Partial(lambda z: wrap(half)), jv.StandardNormal((2,)))
    assert jax.jit(jv.elbo)(likely, jax.random.key(2), -jnp.ones(2))[0] == -jnp.inf


def test_a_bound_of_several_numbers_is_refused():
    def forgotten(model, key, x):
        return -jnp.square(x - model), None

    with pytest.raises(ValueError, match=r"objective's bound has shape \(3,\), expected a number"):
        jv.batched(forgotten)(jnp.zeros(3), jax.random.key(0), jnp.ones((4, 3)))


@pytest.mark.parametrize("of", [jv.Normal, jv.Laplace, partial(jv.StudentT, 4.0)])
def test_numbers_of_pythons_take_the_precision_of_the_event(of):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert of(0, 1).log_prob(jnp.ones((), dtype)).dtype == dtype
