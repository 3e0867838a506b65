"""Every importance-weighted bound and every gradient of it, against quadrature over the K draws.

Ladder: p(z) = N(0, 1), p(x|z) = N(w z, 1), x = 1.5, q = N(m, s^2) at m = .25, s = 1, w = 1.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp, softmax

from jaxvae import (
    VAE,
    Normal,
    ciwae,
    cubo,
    doubly_reparameterized,
    elbo,
    eubo,
    importance_bound,
    iwae,
    miwae,
    pathwise,
    piwae,
    renyi,
    sampled_kl,
    score_function,
    sticking_the_landing,
    tvo,
    vimco,
    vr_max,
)
from jaxvae.bounds import tvo_upper
from jaxvae.models import ppca
from tests import models
from tests.common import close, draws, standard_errors_off

X, LOG_P, CHI_2 = 1.5, -1.828012123, 0.364118
AT = np.array([0.25, 0.0, 1.0], np.float32)  # m, log s, w
BETAS = np.array([0.0, 0.3, 1.0])


def ladder(q):
    return models.ladder(q[:2], q[2])


def power_mean(l, p):
    return (logsumexp(p * l, axis=-1) - np.log(l.shape[-1])) / p


def riemann(l, nodes):
    return sum(
        width * np.sum(softmax(a * l, axis=-1) * l, axis=-1)
        for width, a in zip(np.diff(BETAS), nodes, strict=True)
    )


# the bound of two samples, and its reduction in NumPy
BOUNDS = {
    "iwae": (partial(iwae, num_samples=2), lambda l: power_mean(l, 1.0)),
    "renyi .5": (partial(renyi, num_samples=2, alpha=0.5), lambda l: power_mean(l, 0.5)),
    "renyi 3": (partial(renyi, num_samples=2, alpha=3.0), lambda l: power_mean(l, -2.0)),
    "renyi 1": (partial(renyi, num_samples=2, alpha=1.0), lambda l: l.mean(-1)),
    "vr_max": (partial(vr_max, num_samples=2), lambda l: l.max(-1)),
    "miwae": (partial(miwae, num_outer=2, num_samples=1), lambda l: l.mean(-1)),
    "ciwae": (
        partial(ciwae, num_samples=2, beta=0.3),
        lambda l: 0.3 * l.mean(-1) + 0.7 * power_mean(l, 1.0),
    ),
    "cubo": (partial(cubo, num_samples=2), lambda l: power_mean(l, 2.0)),
    "tvo": (partial(tvo, num_samples=2, betas=BETAS), lambda l: riemann(l, BETAS[:-1])),
    "tvo_upper": (partial(tvo_upper, num_samples=2, betas=BETAS), lambda l: riemann(l, BETAS[1:])),
    "elbo": (partial(elbo, kl=sampled_kl), lambda l: l[..., 0]),
}


def quadrature(reduction):
    """E R(l_1, l_2) and its slopes in (m, log s, w), by the trapezoid rule on a fine grid."""
    eps = np.linspace(-8.0, 8.0, 401)
    weight = np.exp(-0.5 * eps**2)
    weight = np.outer(weight, weight) / weight.sum() ** 2

    def expectation(q):
        m, log_s, w = q
        z = m + np.exp(log_s) * eps
        l = -0.5 * (np.log(2 * np.pi) + z**2 + (X - w * z) ** 2 - eps**2) + log_s
        pairs = np.stack(np.broadcast_arrays(l[:, None], l[None]), -1)
        return np.sum(weight * reduction(pairs))

    at, h = np.asarray(AT, np.float64), 1e-3
    slopes = [(expectation(at + h * e) - expectation(at - h * e)) / (2 * h) for e in np.eye(3)]
    return expectation(at), np.array(slopes)


@cache
def compiled(name, gradient):
    """The value and the gradient [3] of a bound, of keys: one program for all tests of the pair."""
    objective = partial(BOUNDS[name][0], gradient=gradient)
    return jax.jit(
        jax.vmap(lambda key: jax.value_and_grad(lambda q: objective(ladder(q), key, X)[0])(AT))
    )


def draws_of(name, gradient, seed=0):
    """Values [10,000] and gradients [10,000, 3]."""
    return compiled(name, gradient)(jax.random.split(jax.random.key(seed), 10_000))


def test_quadrature_is_exact():
    """The rule used below reproduces the published ladder: IWAE_2 and its gradient."""
    value, slopes = quadrature(BOUNDS["iwae"][1])
    assert abs(value + 1.965973787) < 1e-7
    assert np.allclose(slopes[:2], [0.3858458685, -0.2274734570], atol=1e-5)


LIKE_OTHERS = {"renyi 3", "renyi 1", "vr_max", "ciwae", "tvo_upper"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.thorough if n in LIKE_OTHERS else ()) for n in BOUNDS],
)
def test_values_and_gradients(name):
    """Every bound under every unbiased estimator: value and gradient in encoder and decoder."""
    value, slopes = quadrature(BOUNDS[name][1])
    estimators = [pathwise, doubly_reparameterized, score_function, vimco]
    if name == "vr_max":
        estimators.remove(doubly_reparameterized)
    if name == "elbo":
        estimators.remove(vimco)
    for seed, gradient in enumerate(estimators):
        bounds, gradients = draws_of(name, gradient, seed)
        assert standard_errors_off(bounds, value) < 4
        assert standard_errors_off(gradients, slopes) < 4


@pytest.mark.parametrize("name", ["iwae", "renyi .5", "ciwae", "tvo", "cubo"])
def test_double_reparameterization_lowers_the_variance(name):
    """The point of it, on every smooth bound; the decoder's gradient is one and the same."""
    plain, double = (
        np.std(draws_of(name, gradient)[1], axis=0)
        for gradient in (pathwise, doubly_reparameterized)
    )
    assert (double[:2] < plain[:2]).all()
    assert close(double[2], plain[2])


@pytest.mark.parametrize("name", ["elbo", "miwae", "renyi 1"])
def test_of_a_mean_it_is_sticking_the_landing(name):
    """h = 0: no cotangent is scaled, draw by draw."""
    stuck, double = (
        draws_of(name, gradient)[1] for gradient in (sticking_the_landing, doubly_reparameterized)
    )
    assert np.allclose(stuck, double, atol=1e-5)


def test_vr_max_has_no_double_reparameterization():
    with pytest.raises(TypeError, match="not defined for it; use pathwise"):
        vr_max(ladder(AT), jax.random.key(0), X, num_samples=3, gradient=doubly_reparameterized)


# Renyi, CUBO and EUBO where K is infinite


@pytest.mark.thorough
@pytest.mark.parametrize(("alpha", "exact"), [(0.5, -1.970237), (-1.0, -1.672758)])
def test_renyi_of_many_samples(alpha, exact):
    """targets: alpha = .5 is below log p(x), alpha = -1 above."""
    bounds, _ = draws(
        lambda key: renyi(ladder(AT), key, X, num_samples=4_000, alpha=alpha), 300, 20
    )
    # the reduction of the mean of K powers is low by O(1/K), less than the error here
    assert standard_errors_off(bounds, exact) < 4
    assert abs(np.mean(bounds) - exact) < 2e-3
    assert (np.mean(bounds) > LOG_P) == (alpha < 0)


def test_chi_squared_bound():
    """CUBO_2 = log p(x) + 1/2 log(1 + chi^2(p(z|x) || q)), and exp(2 CUBO) is unbiased."""
    exact = LOG_P + 0.5 * np.log1p(CHI_2)
    bounds, _ = draws(lambda key: cubo(ladder(AT), key, X, num_samples=2), 40_000, 21)
    assert standard_errors_off(np.exp(2.0 * bounds), np.exp(2.0 * exact)) < 4
    many, _ = draws(lambda key: cubo(ladder(AT), key, X, num_samples=4_000), 200, 22)
    assert abs(np.mean(many) - exact) < 2e-3
    assert np.mean(many) > LOG_P


def test_evidence_upper_bound():
    """log p(x) + KL(p(z|x) || q), p(z|x) = N(x/2, 1/2), with its own unbiased gradient in q."""
    posterior = Normal(jnp.array(0.75), jnp.sqrt(0.5))
    kl = 0.5 * (0.5 + (0.75 - 0.25) ** 2 - 1.0 - np.log(0.5))

    def bound(key):
        function = lambda q: eubo(
            ladder(q), key, X, sample_posterior=posterior.sample, num_samples=2
        )[0]
        return jax.value_and_grad(function)(AT)

    values, gradients = draws(bound, 20_000, 23)
    assert standard_errors_off(values, LOG_P + kl) < 4
    # d KL / dm = m - .75, d KL / d log s = 1 - (.5 + .25)
    assert standard_errors_off(gradients[:, :2], np.array([-0.5, 0.25])) < 4
    _, log_w = eubo(ladder(AT), jax.random.key(0), X, sample_posterior=lambda key: X, num_samples=3)
    assert log_w.shape == (3,)


@pytest.mark.thorough
def test_thermodynamic_bounds_of_many_samples():
    """E_{pi_beta}[log w] in closed form: pi_beta is Gaussian, and the sums sandwich log p(x)."""
    betas = np.linspace(0.0, 1.0, 6)
    # log pi_beta = -(1 - b)/2 (z - .25)^2 - b/2 (z^2 + (x - z)^2) + ...
    precision = 1.0 + betas
    mean = ((1.0 - betas) * 0.25 + betas * X) / precision
    second = 1.0 / precision + mean**2
    # log w = -1/2 log 2 pi - 1/2 (z^2 + (x - z)^2 - (z - .25)^2)
    log_w = -0.5 * (np.log(2 * np.pi) + second + (0.5 - 2 * X) * mean + X**2 - 0.0625)
    lower, upper = np.diff(betas) @ log_w[:-1], np.diff(betas) @ log_w[1:]
    assert lower < LOG_P < upper
    for bound, exact in ((tvo, lower), (tvo_upper, upper)):
        values, _ = draws(
            partial(lambda b, key: b(ladder(AT), key, X, num_samples=4_000, betas=betas), bound),
            200,
            24,
        )
        assert abs(np.mean(values) - exact) < 3e-3


@pytest.mark.parametrize("betas", [[0.0], [0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0], 0.5])
def test_betas_are_a_partition(betas):
    for bound in (tvo, tvo_upper):
        with pytest.raises(ValueError, match="expected a partition 0 = beta_0"):
            bound(ladder(AT), jax.random.key(0), X, num_samples=2, betas=np.array(betas))


# shapes, laws and targets for the two halves


def test_bounds_share_their_samples(x64):
    """The same key is the same z: miwae's weights are iwae's, in rows."""

    @jax.jit
    def bounds(a, b, c):
        model = ladder(AT.astype(float))
        _, flat = iwae(model, b, X, num_samples=12)
        whole, _ = miwae(model, c, X, num_outer=1, num_samples=12)
        return *miwae(model, a, X, num_outer=3, num_samples=4), flat, whole

    bound, log_w, flat, whole = bounds(*(jax.random.key(1) for _ in range(3)))
    assert close(log_w, flat.reshape(3, 4))
    assert close(bound, np.mean(power_mean(np.asarray(log_w), 1.0)))
    assert close(whole, power_mean(np.asarray(flat), 1.0))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "gradient",
    [
        pathwise,
        sticking_the_landing,
        pytest.param(doubly_reparameterized, marks=pytest.mark.slow),
        pytest.param(vimco, marks=pytest.mark.slow),
    ],
)
def test_piwae_has_a_target_for_each_half(gradient, x64):
    """The encoder's gradient is MIWAE's, the decoder's is IWAE's, the value IWAE's: bit for bit."""
    sizes: Any = {"num_outer": 3, "num_samples": 4, "gradient": gradient}
    objectives = (
        partial(piwae, **sizes),
        partial(miwae, **sizes),
        partial(iwae, num_samples=12, gradient=gradient),
    )

    @jax.jit
    def gradients(keys):
        return [
            jax.value_and_grad(lambda q, f=f, key=key: f(ladder(q), key, X)[0])(AT.astype(float))
            for f, key in zip(objectives, keys, strict=True)
        ]

    found = gradients([jax.random.key(2) for _ in objectives])
    (value, both), (_, multiply), (bound, tight) = jax.tree.map(np.asarray, found)
    assert close(value, bound)
    assert close(both[:2], multiply[:2])
    assert close(both[2], tight[2])
    assert not close(multiply[:2], tight[:2])


@pytest.mark.slow
def test_piwae_with_a_prior_that_encodes(x64):
    """A learned prior belongs to the decoder's target even if it shares parameters."""

    class Shared:
        def __init__(self, w):
            self.w = w

        def encode(self, x):
            return Normal(self.w[0] * x, jnp.ones(()))

        def decode(self, z):
            return Normal(self.w[1] * z, jnp.ones(()))

        @property
        def prior(self):
            return self.encode(0.3)

    jax.tree_util.register_pytree_node(Shared, lambda m: ((m.w,), None), lambda _, c: Shared(*c))
    sizes: Any = {"num_outer": 2, "num_samples": 3}
    at, key = jnp.array([0.5, 0.8]), jax.random.key(3)
    actual = jax.grad(lambda w: piwae(Shared(w), key, X, **sizes)[0])(at)

    def halves(q_w, p_w):
        model = Shared(q_w)
        return VAE(model.encode, Shared(p_w).decode, Shared(p_w).prior)

    of_q = jax.grad(lambda w: miwae(halves(w, at), jax.random.clone(key), X, **sizes)[0])(at)
    of_p = jax.grad(lambda w: iwae(halves(at, w), jax.random.clone(key), X, num_samples=6)[0])(at)
    assert close(actual, of_q + of_p)


def test_piwae_wants_a_pytree():
    """A closure cannot be held still: it would silently train on the wrong target."""
    model = ladder(AT)._replace(decode=lambda z: Normal(z, jnp.ones_like(z)))
    with pytest.raises(
        TypeError, match=r"model\.decode is a function, expected a pytree of arrays"
    ):
        piwae(model, jax.random.key(0), X, num_outer=2, num_samples=2)


@pytest.mark.parametrize(
    "bound",
    [
        partial(importance_bound, jnp.mean),
        iwae,
        partial(renyi, alpha=0.5),
        vr_max,
        partial(miwae, num_outer=2),
        partial(piwae, num_outer=2),
        partial(ciwae, beta=0.5),
        partial(tvo, betas=BETAS),
        partial(tvo_upper, betas=BETAS),
        cubo,
        partial(eubo, sample_posterior=lambda key: 0.1),
    ],
)
@pytest.mark.parametrize("num_samples", [0, 2.5, True])
def test_counts_are_positive_integers(bound, num_samples):
    with pytest.raises(ValueError, match=f"num_samples is {num_samples}, expected an integer"):
        bound(ladder(AT), jax.random.key(0), X, num_samples=num_samples)


@pytest.mark.parametrize("bound", [miwae, piwae])
def test_num_outer_is_a_positive_integer(bound):
    with pytest.raises(ValueError, match="num_outer is 0, expected an integer"):
        bound(ladder(AT), jax.random.key(0), X, num_outer=0, num_samples=2)


@pytest.mark.thorough
@pytest.mark.parametrize("gradient", [pathwise, doubly_reparameterized])
def test_everything_is_log_p_at_the_exact_posterior(gradient, x64):
    """PPCA: every sample's log-weight is log p(x), so is every bound, upper or lower."""
    linear = ppca.PPCA(
        jnp.array([[1.0, 0.2], [0.3, -0.5], [0.1, 0.4]]), jnp.zeros(3), jnp.array(0.5)
    )
    x = jnp.array([0.3, -1.0, 0.7])
    bounds = {**BOUNDS, "piwae": (partial(piwae, num_outer=2, num_samples=2), None)}
    if gradient is doubly_reparameterized:
        del bounds["vr_max"]

    @jax.jit
    def values(key):
        model, keys = ppca.as_vae(linear), jax.random.split(key, len(bounds))
        model = model._replace(encode=Partial(lambda q, x: q, model.encode(x)))  # once for all
        both = zip(bounds.values(), keys, strict=True)
        return jnp.stack([f(model, key, x, gradient=gradient)[0] for (f, _), key in both])

    exact = np.full(len(bounds), ppca.log_marginal(linear, x))
    assert close(values(jax.random.key(4)), exact)


def test_alpha_and_beta_are_traced():
    """Hyper-parameters can be annealed and swept."""
    swept = jax.jit(
        jax.vmap(lambda a: renyi(ladder(AT), jax.random.key(5), X, num_samples=9, alpha=a)[0])
    )(np.linspace(-1.0, 2.0, 7))
    assert np.all(np.diff(swept) < 0)
    mixed = jax.jit(
        jax.vmap(lambda b: ciwae(ladder(AT), jax.random.key(5), X, num_samples=9, beta=b)[0])
    )(np.linspace(0.0, 1.0, 5))
    assert np.all(np.diff(mixed) < 0)
