"""Closed forms of KL against quadrature, samples, numpyro and a table; the rates made of them."""

from functools import cache
from itertools import pairwise, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from scipy import integrate, stats

import jaxvae as jv
from tests.common import close, draws, grid, is_differentiable, standard_errors_off

A = np.array([[0.5, 0.0], [-0.8, 1.2]])
B = np.array([[1.5, 0.0], [0.4, 0.7]])
kl_divergence = jax.jit(jv.kl_divergence)  # compiled once for each pair of kinds and shapes
RATES = [jv.analytic_kl, jv.sampled_kl, jv.auto_kl]


def key(seed=0):
    return jax.random.key(seed)


def standard():
    return jv.StandardNormal((2,))


def normal(loc=(0.3, -1.0), scale=(0.5, 2.0)):
    return jv.Normal(jnp.array(loc), jnp.array(scale))


def full(loc=(0.3, -1.0), tril=A):
    return jv.MultivariateNormal(jnp.array(loc), jnp.array(tril))


def laplace(loc=(0.3, -1.0), scale=(0.5, 2.0)):
    return jv.Laplace(jnp.array(loc), jnp.array(scale))


def bernoulli(*logits):
    return jv.Bernoulli(jnp.array(logits))


def categorical(*logits):
    return jv.Categorical(jnp.array(logits))


# every pair with a closed form; made inside the test, at its precision
PAIRS = {
    "standard || standard": lambda: (standard(), standard()),
    "standard || normal": lambda: (standard(), normal()),
    "standard || full": lambda: (standard(), full()),
    "normal || standard": lambda: (normal(), standard()),
    "normal || normal": lambda: (normal(), normal((0.0, 0.5), (1.5, 0.7))),
    "normal || normal, one scale each": lambda: (normal(scale=0.5), normal((0.0, 0.5), 1.5)),
    "normal || full": lambda: (normal(), full((0.0, 0.5), B)),
    "full || standard": lambda: (full(), standard()),
    "full || normal": lambda: (full(), normal((0.0, 0.5), (1.5, 0.7))),
    "full || normal, one scale": lambda: (full(), normal((0.0, 0.5), 1.5)),
    "full || full": lambda: (full(), full((0.0, 0.5), B)),
    "categorical": lambda: (categorical(0.2, -0.3, 0.5), categorical(1.0, 0.0, -1.0)),
    "categorical, two": lambda: (
        jv.Categorical(jnp.array([[0.2, -0.3, 0.5], [0.0, 0.0, 1.0]])),
        jv.Categorical(jnp.array([[1.0, 0.0, -1.0], [0.3, 0.2, 0.1]])),
    ),
    "one-hot": lambda: (
        jv.OneHotCategorical(jnp.array([[0.2, -0.3, 0.5], [0.0, 0.0, 1.0]])),
        jv.OneHotCategorical(jnp.array([[1.0, 0.0, -1.0], [0.3, 0.2, 0.1]])),
    ),
    "bernoulli": lambda: (bernoulli(0.2, -1.5), bernoulli(-0.7, 0.4)),
    "laplace": lambda: (laplace(), laplace((0.0, 0.5), (1.5, 0.7))),
    "laplace, one scale each": lambda: (laplace(scale=0.5), laplace((0.0, 0.5), 1.5)),
    "normal || laplace": lambda: (normal(), laplace((0.0, 0.5), (1.5, 0.7))),
    "normal || laplace, one scale each": lambda: (normal(scale=0.5), laplace((0.0, 0.5), 1.5)),
}
pairs = pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())


@cache
def computed(make):
    """In float64, as one program: 20,000 draws of q and log q as drawn; log q and log p of q's
    events or nodes and of the draws; the rates of five draws; the closed form."""
    q, p = make()
    with jax.enable_x64(True):
        nodes = np.zeros((0, *q.shape)) if isinstance(p, jv.Laplace) else events(q)[0]

        @jax.jit
        def numbers(q, p, keys, nodes):
            z, log_q = jax.vmap(lambda k: jv.sample_and_log_prob(q, k))(keys)
            every = jnp.concatenate([nodes.astype(z.dtype), z])
            scores = [jnp.split(jax.vmap(d.log_prob)(every), [len(nodes)]) for d in (q, p)]
            rates = jax.vmap(lambda z, log_q: [rate(q, p, z, log_q) for rate in RATES])
            return log_q, scores, rates(z[:5], log_q[:5]), jv.kl_divergence(q, p)

        found = numbers(q, p, jax.random.split(key(), 20_000), nodes)
        return jax.tree.map(np.asarray, found)


UNKNOWN = {
    "laplace || normal": lambda: (laplace(), normal()),
    "laplace || standard": lambda: (laplace(), standard()),
    "standard || laplace": lambda: (standard(), laplace()),
    "full || laplace": lambda: (full(), laplace()),
    "one-hot || categorical": lambda: (
        jv.OneHotCategorical(jnp.zeros(2)),
        jv.Categorical(jnp.zeros(2)),
    ),
    "bernoulli || categorical": lambda: (bernoulli(0.1), categorical(0.1, 0.2)),
}


def test_the_table_has_every_gaussian_pair():
    """Nine pairs of StandardNormal, Normal and MultivariateNormal."""
    gaussians = {jv.StandardNormal, jv.Normal, jv.MultivariateNormal}
    kinds = {tuple(type(d) for d in make()) for make in PAIRS.values()}
    assert {(q, p) for q in gaussians for p in gaussians} <= kinds


def events(q):
    """All events of q, or quadrature nodes, with their weights."""
    if isinstance(q, jv.Bernoulli):
        return np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.ones(4)
    if isinstance(q, jv.Categorical):
        nodes = np.array(list(product(range(3), repeat=int(np.prod(q.shape)))))
        return nodes.reshape(-1, *q.shape), np.ones(len(nodes))
    if isinstance(q, jv.OneHotCategorical):
        return np.eye(3)[np.indices((3, 3)).reshape(2, -1).T], np.ones(9)
    return grid(q.mean())


@pytest.mark.parametrize("name", [name for name in PAIRS if "laplace" not in name])
def test_closed_form_is_the_integral(name, x64):
    """KL = sum or quadrature of q (log q - log p), both from log_prob, to 1e-9.

    Laplace's kink is not at q's mean: below, one coordinate at a time.
    """
    _, weights = events(PAIRS[name]()[0])
    _, ((log_q, _), (log_p, _)), _, kl = computed(PAIRS[name])
    exact = np.sum(weights * np.exp(log_q) * (log_q - log_p))
    assert np.allclose(kl, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("q_family", "oracle"), [("normal", stats.norm), ("laplace", stats.laplace)]
)
@pytest.mark.parametrize("q", [(0.3, 0.5), (-1.0, 2.0), (0.0, 1.0), (4.0, 0.1)])
@pytest.mark.parametrize("p", [(0.0, 1.5), (0.5, 0.7), (4.0, 3.0)])
def test_closed_form_to_laplace_is_the_integral(q_family, oracle, q, p, x64):
    """KL(Normal || Laplace) and KL(Laplace || Laplace) by SciPy's quadrature of its densities."""
    q_scipy: Any = oracle(*q)
    p_scipy: Any = stats.laplace(*p)

    def integrand(z):
        return q_scipy.pdf(z) * (q_scipy.logpdf(z) - p_scipy.logpdf(z))

    ends = sorted([q[0], p[0]])
    ends = [q[0] - 40 * q[1], *[e for e in ends if abs(e - q[0]) < 40 * q[1]], q[0] + 40 * q[1]]
    exact = sum(
        integrate.quad(integrand, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        for a, b in pairwise(ends)
    )
    make = {"normal": normal, "laplace": laplace}[q_family]
    assert np.allclose(kl_divergence(make(*q), laplace(*p)), exact, rtol=1e-9, atol=1e-9)


@pairs
def test_closed_form_is_the_mean_of_samples(make, x64):
    """KL = E_q[log q - log p] within four standard errors of 20,000 draws."""
    log_q, (_, (_, log_p)), _, kl = computed(make)
    drawn = log_q - log_p
    assert kl.shape == ()
    if np.std(drawn) < 1e-12:  # the two are equal
        assert abs(kl) < 1e-12
    else:
        assert standard_errors_off(drawn, kl) < 4


@pairs
def test_kl_of_a_distribution_to_itself_is_zero(make, x64):
    """KL(q || q) = 0 and KL(p || p) = 0, where it has a form; and KL(q || p) > 0 for q not p."""
    q, p = make()
    for d in (q, p):
        assert abs(kl_divergence(d, d)) < 1e-12
    if not isinstance(p, jv.StandardNormal) or not isinstance(q, jv.StandardNormal):
        assert kl_divergence(q, p) > 1e-3


@pairs
def test_kl_is_never_negative(make):
    """Over 4,000 random pairs in float32, rounding apart; half of them nearly equal where q and p
    are of one kind."""
    q, p = make()
    rng = np.random.default_rng(0)

    def shaken(leaves, spread):
        return [np.asarray(x) * np.exp(spread * rng.normal(size=(2000, *x.shape))) for x in leaves]

    (q_leaves, q_tree), (p_leaves, p_tree) = jax.tree.flatten(q), jax.tree.flatten(p)
    pairs = [(shaken(q_leaves, 1.0), shaken(p_leaves, 1.0))]
    if q_tree == p_tree:
        pairs += [(shaken(q_leaves, 1e-3), shaken(q_leaves, 1e-3))]
    kl = jax.jit(
        lambda q, p: jv.kl_divergence(jax.tree.unflatten(q_tree, q), jax.tree.unflatten(p_tree, p))
    )
    for pair in pairs:
        leaves = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), pair)
        kls = np.asarray(jax.vmap(kl)(*leaves) if jax.tree.leaves(leaves) else kl(*leaves))
        assert np.all(np.isfinite(kls))
        assert np.all(kls >= -2e-6 * (1.0 + kls))


@pytest.mark.thorough
@pairs
def test_gradients_are_finite_differences(make, x64):
    """Of the closed form, in the parameters of both distributions."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, make()))
    if leaves:
        assert is_differentiable(
            lambda leaves: jv.kl_divergence(*jax.tree.unflatten(treedef, leaves)), leaves
        )


@pytest.mark.thorough
@pairs
def test_jit_vmap_and_constants_change_nothing(make, x64):
    """jit = eager, vmap = loop, and `Constant` on either side is looked through."""
    q, p = make()
    exact = jv.kl_divergence(q, p)
    assert close(kl_divergence(q, p), exact)
    constant = jv.Constant

    @jax.jit
    def others(stack):
        scaled = [jax.tree.map(lambda leaf, f=f: f * leaf, (q, p)) for f in (1.0, 1.1)]
        pairs = [(constant(q), p), (q, constant(p)), (constant(q), constant(p))]
        mapped = jax.vmap(jv.kl_divergence)(*stack) if jax.tree.leaves(stack) else ()
        return mapped, [jv.kl_divergence(*d) for d in scaled], [jv.kl_divergence(*d) for d in pairs]

    stack = jax.tree.map(lambda leaf: np.stack([leaf, 1.1 * np.asarray(leaf)]), (q, p))
    mapped, looped, constants = others(stack)
    assert not len(mapped) or close(mapped, np.stack(looped))
    assert close(constants, np.full(3, exact))


def test_constants_of_constants_are_looked_through():
    """However many, and `auto_kl` does not fall back to a sample because of them."""
    q, p = normal(), jv.Constant(jv.Constant(standard()))
    assert jv.kl_divergence(q, p) == jv.kl_divergence(q, standard())
    assert jv.kl_divergence(p, q) == jv.kl_divergence(standard(), q)
    assert jv.auto_kl(q, p, *jv.sample_and_log_prob(q, key())) == jv.kl_divergence(q, p)


@pairs
def test_precision_is_the_parameters(make, x64):
    """Float32 parameters give a float32 divergence even where float64 is on."""
    q, p = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), make())
    if jax.tree.leaves((q, p)):
        assert jax.eval_shape(jv.kl_divergence, q, p).dtype == jnp.float32


COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: (normal([0.3], [0.5]), jv.StandardNormal((1,))), 0.363147180559945),
        (lambda: (normal([-2.0], [3.0]), normal([1.0], [2.0])), 1.34453489189184),
        (
            lambda: (
                full([1.0, -0.5, 0.25], np.linalg.cholesky(COVARIANCE)),
                jv.StandardNormal((3,)),
            ),
            1.12939355131421,
        ),
        (lambda: (normal([0.3], [0.5]), laplace([0.0], [1.0])), 0.436028560156973),
        (lambda: (laplace([0.3], [0.5]), laplace([0.0], [1.0])), 0.267552998606959),
        (
            lambda: (
                jv.Categorical(jnp.log(jnp.array([0.7, 0.2, 0.1]))),
                categorical(0.0, 0.0, 0.0),
            ),
            0.296793736124772,
        ),
        (lambda: (bernoulli(np.log(9.0)), bernoulli(np.log(0.25))), 1.14572550293066),
    ],
    ids=["normal", "normals", "full", "normal || laplace", "laplace", "categorical", "bernoulli"],
)
def test_table_of_values(make, value, x64):
    """Values from 40-digit arithmetic, given to 15 digits: equal to 1e-13."""
    assert np.isclose(kl_divergence(*make()), value, rtol=1e-13, atol=0)


def test_kl_standard_normal_table(x64):
    """1/2 (sigma^2 + mu^2 - 1 - log sigma^2), summed: 1/2 (0.25 + 0.09 - 1) + log 2 = 0.363..."""
    assert np.isclose(jv.distributions.kl_standard_normal(0.3, 0.5), 0.363147180559945, rtol=1e-13)
    assert np.isclose(
        jv.distributions.kl_standard_normal(jnp.full(7, 0.3), 0.5),
        7 * 0.363147180559945,
        rtol=1e-13,
    )
    assert np.isclose(
        jv.distributions.kl_standard_normal(jnp.full((2, 3), 0.3), jnp.full((2, 3), 0.5)),
        6 * 0.363147180559945,
    )
    assert jv.distributions.kl_standard_normal(jnp.zeros(4), jnp.ones(4)) == 0


@pytest.mark.parametrize(
    ("loc", "scale"), [((3,), (1,)), ((1,), (3,)), ((2, 1), (1, 3)), ((), (3,))]
)
def test_kl_standard_normal_never_broadcasts(loc, scale):
    """The scale is one number or has the shape of loc."""
    with pytest.raises(ValueError, match="scale"):
        jv.distributions.kl_standard_normal(jnp.zeros(loc), jnp.ones(scale))


NUMPYRO = {
    "normal || normal": lambda d: nd.Normal(d.loc, d.scale).to_event(1),
    "normal || standard": lambda d: (
        nd.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1)
        if isinstance(d, jv.StandardNormal)
        else nd.Normal(d.loc, d.scale).to_event(1)
    ),
    "full || full": lambda d: nd.MultivariateNormal(d.loc, scale_tril=d.scale_tril),
    "full || standard": lambda d: (
        nd.MultivariateNormal(jnp.zeros(2), scale_tril=jnp.eye(2))
        if isinstance(d, jv.StandardNormal)
        else nd.MultivariateNormal(d.loc, scale_tril=d.scale_tril)
    ),
    "categorical": lambda d: nd.CategoricalProbs(jax.nn.softmax(d.logits)),
}


@pytest.mark.parametrize("name", NUMPYRO)
def test_closed_form_is_numpyros(name, x64):
    """Agreement with numpyro's kl_divergence, to 1e-10, where it has one."""
    q, p = PAIRS[name]()
    exact = jax.jit(lambda q, p: nd.kl_divergence(q, p))(*map(NUMPYRO[name], (q, p)))
    assert close(kl_divergence(q, p), exact)


def test_kl_sums_over_the_event(x64):
    """Of independent coordinates it is the sum, not the mean: [2, 3] against six scalars."""
    rng = np.random.default_rng(0)
    loc, scale, loc_p, scale_p = np.exp(rng.normal(size=(4, 2, 3)))
    for q, p in [(normal, normal), (laplace, laplace), (normal, laplace)]:
        parts = [
            kl_divergence(q(*a), p(*b))
            for a, b in zip(
                zip(loc.ravel(), scale.ravel(), strict=True),
                zip(loc_p.ravel(), scale_p.ravel(), strict=True),
                strict=True,
            )
        ]
        assert close(kl_divergence(q(loc, scale), p(loc_p, scale_p)), np.sum(parts))


def test_kl_is_invariant_to_an_affine_map(x64):
    """KL(Az + b : q || p) = KL(q || p): a full covariance moved and mixed."""
    a, b = np.array([[2.0, 0.0], [0.7, -1.5]]), np.array([3.0, -1.0])

    def moved(d):
        covariance = a @ np.asarray(d.scale_tril @ d.scale_tril.T) @ a.T
        return full(a @ np.asarray(d.loc) + b, np.linalg.cholesky(covariance))

    q, p = PAIRS["full || full"]()
    assert close(kl_divergence(moved(q), moved(p)), kl_divergence(q, p))


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
@pytest.mark.parametrize("wrap", [lambda d: d, jv.Constant], ids=["plain", "constant"])
def test_a_pair_without_a_form_says_so(make, wrap):
    """NotImplementedError names both types, looking through Constant, and the way out."""
    q, p = make()
    for call in (
        lambda: jv.kl_divergence(wrap(q), wrap(p)),
        lambda: jv.analytic_kl(wrap(q), wrap(p), None, jnp.zeros(())),
    ):
        with pytest.raises(NotImplementedError, match="sampled_kl") as error:
            call()
        assert f"{type(q).__name__} || {type(p).__name__}" in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (normal(), jv.StandardNormal((3,))),
        lambda: (normal(), jv.StandardNormal((1, 2))),
        lambda: (normal(), normal([0.0], [1.0])),
        lambda: (jv.StandardNormal((2,)), jv.StandardNormal((1,))),
        lambda: (normal([0.0], [1.0]), full()),
        lambda: (full(), jv.StandardNormal((1,))),
        lambda: (full(), full(np.zeros(1), np.eye(1))),
        lambda: (categorical(0.0, 0.0), categorical(0.0, 0.0, 0.0)),
        lambda: (categorical(0.0, 0.0), categorical([0.0, 0.0])),
        lambda: (bernoulli(0.0), bernoulli(0.0, 0.0)),
        lambda: (laplace(), laplace([0.0], [1.0])),
        lambda: (normal(), laplace(0.0, 1.0)),
    ],
)
def test_events_of_different_shapes_are_an_error(make):
    """Both shapes are named; nothing is broadcast; auto_kl does not hide it behind a sample."""
    constant: Any = jv.Constant
    q, p = make()
    shapes = [d.logits.shape if isinstance(d, jv.Categorical) else d.shape for d in (q, p)]
    for call in (
        lambda: jv.kl_divergence(q, p),
        lambda: jv.kl_divergence(constant(q), constant(p)),
        lambda: jax.eval_shape(lambda k: jv.auto_kl(q, p, *jv.sample_and_log_prob(q, k)), key()),
    ):
        with pytest.raises(ValueError, match="kl_divergence") as error:
            call()
        assert all(str(shape) in str(error.value) for shape in shapes)


# Rates


@pairs
def test_rates_agree_in_the_mean(make, x64):
    """analytic = auto = closed form; sampled is log q - log p at each draw."""
    _, ((_, log_q), (_, log_p)), (analytic, sampled, auto), kl = computed(make)
    assert np.array_equal(analytic, auto)
    assert close(analytic, np.full(5, kl))
    assert close(sampled, (log_q - log_p)[:5])


@pytest.mark.parametrize("name", [name for name in UNKNOWN if "categorical" not in name])
def test_auto_kl_samples_where_there_is_no_form(name, x64):
    """Laplace || Normal, say: log q(z) - log p(z)."""
    q, p = UNKNOWN[name]()
    z, log_q = jv.sample_and_log_prob(q, key())
    assert jv.auto_kl(q, p, z, log_q) == jv.sampled_kl(q, p, z, log_q)
    assert close(jv.auto_kl(q, p, z, log_q), q.log_prob(z) - p.log_prob(z))


def test_sampled_rates_are_scipys(x64):
    """KL(Laplace || Normal) at one event: the difference of SciPy's log-densities."""
    q, p, z = laplace(), normal(), jnp.array([0.7, -0.2])
    exact = stats.laplace.logpdf(z, q.loc, q.scale) - stats.norm.logpdf(z, p.loc, p.scale)
    for rate in (jv.sampled_kl, jv.auto_kl):
        assert close(rate(q, p, z, q.log_prob(z)), exact.sum())


def rate_gradient(rate, loc, scale, k):
    def f(loc, scale):
        q = jv.Normal(loc, scale)
        return rate(q, jv.StandardNormal(loc.shape), *jv.sample_and_log_prob(q, k))

    return jax.grad(f, (0, 1))(loc, scale)


def test_gradients_of_the_rates(x64):
    """KL(N(m, s^2) || N(0, 1)) at z = m + s e, by hand.

    analytic: (m, s - 1/s). sampled: (z, e z - 1/s).
    """
    m, s = np.array([0.3, -1.0, 2.0]), np.array([0.5, 2.0, 1.1])
    e = np.asarray(jax.random.normal(key(), (3,)))
    z = m + s * e
    exact = {
        jv.analytic_kl: (m, s - 1 / s),
        jv.auto_kl: (m, s - 1 / s),
        jv.sampled_kl: (z, e * z - 1 / s),
    }
    for rate, (by_loc, by_scale) in exact.items():
        got = rate_gradient(rate, jnp.array(m), jnp.array(s), key())
        assert close(got[0], by_loc)
        assert close(got[1], by_scale)


@pytest.mark.parametrize("rate", RATES)
def test_rates_have_one_mean_gradient(rate, x64):
    """The mean of every rate's gradient is that of the divergence, (m, s - 1/s)."""
    m, s = np.array([0.3, -1.0]), np.array([0.5, 2.0])
    drawn = draws(lambda k: rate_gradient(rate, jnp.array(m), jnp.array(s), k), 20_000)
    for got, exact in zip(drawn, (m, s - 1 / s), strict=True):
        if rate in (jv.analytic_kl, jv.auto_kl):
            assert close(got.mean(axis=0), exact)
        else:
            assert standard_errors_off(got, exact) < 4


@pytest.mark.parametrize("rate", RATES)
def test_rates_take_constants(rate, x64):
    """A constant posterior or prior gives the same number and has no gradient to give."""
    q, p = normal(), laplace()
    z, log_q = jv.sample_and_log_prob(q, key())
    exact = rate(q, p, z, log_q)
    assert close(rate(jv.Constant(q), p, z, log_q), exact)
    assert close(rate(q, jv.Constant(p), z, log_q), exact)
    assert jax.tree.leaves(jax.grad(rate, 1)(q, jv.Constant(p), z, log_q)) == []


# Float32 at its limits: the same numbers in float64 say what is true.

TINY, LARGE = float(np.exp(-40.0)), float(np.exp(40.0))


@cache
def with_slopes(f, num):
    return jax.jit(jax.value_and_grad(f, tuple(range(num))))


def same_in_float64(f, *args):
    """Value and gradients in float32 are those in float64, all of them representable."""
    narrow = [jnp.asarray(arg, jnp.float32) for arg in args]
    f = with_slopes(f, len(args))
    got = f(*narrow)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(arg), jnp.float64) for arg in narrow]
        true = jax.tree.map(np.asarray, f(*wide))
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(true))
    assert largest < np.finfo(np.float32).max
    return all(
        np.allclose(a, b, 1e-4, 1e-30)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(true), strict=True)
    )


@pytest.mark.parametrize("scale", [TINY, LARGE])
def test_extreme_scales_to_the_standard_normal(scale):
    """kl_standard_normal at sigma = e^+-40: 39.5 + mu^2/2 or e^80/2, gradient sigma - 1/sigma."""
    loc = np.array([0.3, -1.0])
    assert same_in_float64(jv.distributions.kl_standard_normal, loc, np.full(2, scale))

    def kl(loc, scale):
        return jv.kl_divergence(
            jv.MultivariateNormal(loc, jnp.diag(scale)), jv.StandardNormal((2,))
        )

    assert same_in_float64(kl, loc, np.full(2, scale))


FAMILIES = {
    "normal": (jv.Normal, jv.Normal),
    "laplace": (jv.Laplace, jv.Laplace),
    "normal || laplace": (jv.Normal, jv.Laplace),
    "full": (
        lambda loc, scale: jv.MultivariateNormal(loc, jnp.diag(scale)),
        lambda loc, scale: jv.MultivariateNormal(loc, jnp.diag(scale)),
    ),
}


@cache
def kl_of(families):
    q, p = families

    def kl(loc, scale_q, scale_p):
        return jv.kl_divergence(q(scale_q * loc, scale_q), p(jnp.zeros_like(loc), scale_p))

    return kl


kl_of_coins = jax.jit(
    jax.value_and_grad(lambda a, b: jv.kl_divergence(jv.Bernoulli(a), jv.Bernoulli(b)), (0, 1))
)


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize(
    ("scale_q", "scale_p"),
    [(TINY, 1.0), (LARGE, 1.0), (1.0, LARGE), (TINY, TINY), (LARGE, LARGE), (TINY, LARGE)],
)
def test_extreme_scales(families, scale_q, scale_p):
    """Every combination but those beyond float32: sigma_p = e^-40 under a wider q, where KL or its
    gradient in sigma_p is e^120 or more."""
    ones = np.ones(2)
    args = np.array([0.3, -1.0]), scale_q * ones, scale_p * ones
    assert same_in_float64(kl_of(families), *args)


@pytest.mark.parametrize("logit_q", [-1e4, -40.0, 0.5, 40.0, 1e4])
@pytest.mark.parametrize("logit_p", [-1e4, -40.0, 0.5, 40.0, 1e4])
def test_extreme_logits_of_bernoulli(logit_q, logit_p):
    """The value by SciPy's log-odds; the gradients (a - b) s(a) s(-a) and s(b) - s(a)."""
    value, (by_q, by_p) = kl_of_coins(logit_q, logit_p)
    log_q, log_p = (
        np.array([stats.logistic.logsf(l), stats.logistic.logcdf(l)]) for l in (logit_q, logit_p)
    )
    exact = np.sum(np.exp(log_q) * (log_q - log_p))
    assert np.allclose(value, exact, 1e-5, 1e-6)
    q, p = np.exp(log_q), np.exp(log_p)
    assert np.allclose(by_q, (logit_q - logit_p) * q[0] * q[1], 1e-5, 1e-6)
    assert np.allclose(by_p, p[1] - q[1], 1e-5, 1e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize(("logit_q", "logit_p"), [(20.0, 15.0), (10.0, 30.0), (12.0, 8.0)])
def test_confident_bernoullis_lose_no_digits(sign, logit_q, logit_p):
    """KL of 1e-7, the difference of numbers near 10: four digits in float32 on either side of 0,
    of its slope (a - b) sigma(a) sigma(-a) too."""
    a, b = sign * logit_q, sign * logit_p
    log_q, log_p = (np.array([stats.logistic.logsf(l), stats.logistic.logcdf(l)]) for l in (a, b))
    exact = np.sum(np.exp(log_q) * (log_q - log_p))
    value, (slope, _) = kl_of_coins(a, b)
    assert np.allclose(value, exact, rtol=1e-4, atol=0)
    q = np.exp(log_q)
    assert np.allclose(slope, (a - b) * q[0] * q[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("low", [-1e4, -np.inf])
def test_extreme_logits_of_categorical(low):
    """A class q never draws adds nothing, whatever p says of it; gradients are finite."""
    q, p = jnp.array([0.5, low, -0.5]), jnp.array([0.1, 0.2, 0.3])
    exact = stats.entropy(np.exp([0.5, -np.inf, -0.5]), np.exp(np.asarray(p)))

    def kl(q, p):
        return jv.kl_divergence(jv.Categorical(q), jv.Categorical(p))

    both = jax.jit(jax.value_and_grad(kl, (0, 1)))
    value, gradients = both(q, p)
    assert np.allclose(value, exact, 1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)
    softmax = [np.exp(np.asarray(l)) / np.sum(np.exp(np.asarray(l))) for l in (q, p)]
    assert np.allclose(gradients[1], softmax[1] - softmax[0], 1e-5, 1e-7)
    value, gradients = both(q, q)
    assert value == 0
    assert all(np.allclose(leaf, 0, atol=1e-6) for leaf in gradients)


def test_huge_logits_of_categorical():
    """q certain of one class, p of another: 2e4 nats, and gradients of 0 and +-1."""

    def kl(q, p):
        return jv.kl_divergence(jv.Categorical(q), jv.Categorical(p))

    value, (by_q, by_p) = jax.jit(jax.value_and_grad(kl, (0, 1)))(
        jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    )
    assert np.allclose(value, 2e4)
    assert np.array_equal(by_q, [0.0, 0.0])
    assert np.array_equal(by_p, [-1.0, 1.0])


@pytest.mark.parametrize("logit", [0.0, -40.0, -1e4])
def test_mass_that_p_lacks_costs_infinitely(logit):
    """q may draw a class and p never does: KL is inf, not NaN, even if q's mass underflows."""
    assert jv.kl_divergence(categorical(0.0, logit), categorical(0.0, -np.inf)) == np.inf


def test_a_triangle_counts_by_its_covariance():
    """A column of L turned around is the same Gaussian: training may take its diagonal below 0."""
    turned, z = full(tril=A @ np.diag([-1.0, 1.0])), jnp.array([0.2, 0.7])
    for p in standard(), full(tril=B), full(tril=-B):
        assert close(kl_divergence(turned, p), kl_divergence(full(), p))
        assert close(kl_divergence(p, turned), kl_divergence(p, full()))
    assert close(turned.log_prob(z), full().log_prob(z))
