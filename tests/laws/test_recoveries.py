"""Special cases recover their parents."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from scipy import stats

import jaxvae as jv
from jaxvae import nn
from tests.common import close, draws, standard_errors_off

Z = np.array([0.4, -1.3], np.float32)
LOC, SCALE = np.array([0.3, -1.0], np.float32), np.array([0.5, 0.8], np.float32)
kl_divergence = jax.jit(jv.kl_divergence)
log_prob = jax.jit(lambda d, z: d.log_prob(z))


def test_low_rank_of_rank_0_is_diagonal():
    low = jv.LowRankNormal(LOC, np.zeros((2, 0), "f"), SCALE)
    both = jax.jit(lambda d, key: (d.log_prob(Z), d.sample(key)))
    found, exact = (both(d, jax.random.key(0)) for d in (low, jv.Normal(LOC, SCALE)))
    assert all(map(close, found, exact))


@pytest.mark.thorough
def test_low_rank_is_a_gaussian_of_that_covariance():
    factor = np.array([[0.5], [-0.8]], np.float32)
    low = jv.LowRankNormal(LOC, factor, SCALE)
    full = jv.MultivariateNormal(LOC, np.linalg.cholesky(factor @ factor.T + np.diag(SCALE**2)))
    assert close(log_prob(low, Z), log_prob(full, Z))
    others = [jv.StandardNormal((2,)), jv.Normal(Z, 2.0 * SCALE), full]
    for p in others:
        assert close(kl_divergence(low, p), kl_divergence(full, p))
        if not isinstance(p, jv.StandardNormal):
            assert close(kl_divergence(p, low), kl_divergence(p, full))
    assert close(kl_divergence(low, low), 0.0)


@pytest.mark.parametrize("components", [jv.Normal, jv.Laplace])
def test_a_mixture_of_one_is_its_component(components):
    one = jv.Mixture(jnp.array([0.7]), components(LOC[None], SCALE[None]))
    assert close(log_prob(one, Z), log_prob(components(LOC, SCALE), Z))
    assert close(one.mean(), LOC)


def test_student_t_of_many_degrees_is_gaussian():
    for df in (1e6, 1e8):
        t = jv.StudentT(df, LOC, SCALE)
        assert np.isclose(log_prob(t, Z), stats.norm.logpdf(Z, LOC, SCALE).sum(), atol=2e-5)
    sample = np.asarray(draws(lambda k: jv.StudentT(1e8, LOC, SCALE).sample(k), 20_000))
    assert standard_errors_off((sample - LOC[None]) ** 2, SCALE**2) < 4


def test_negative_binomial_of_a_large_count_is_poisson():
    r, mean = 1e6, np.array([0.5, 4.0], np.float32)
    counts = np.array([1.0, 7.0], np.float32)
    nb = jv.NegativeBinomial(np.full(2, r, np.float32), np.log(mean / np.float32(r)))
    assert np.isclose(log_prob(nb, counts), log_prob(jv.Poisson(mean), counts), atol=1e-4)


def test_a_count_that_is_never_inflated():
    base = jv.Poisson(jnp.array(2.0))
    inflated = jv.distributions.ZeroInflated(base, jnp.array(-40.0))
    for x in (0, 3):
        assert close(log_prob(inflated, x), log_prob(base, x))


def test_gamma_of_one_is_exponential_and_dirichlet_of_two_is_beta(x64):
    gamma = log_prob(jv.Gamma(np.ones(1), 2.0), np.array([0.7]))
    assert close(gamma, np.log(2.0) - 1.4)
    dirichlet = log_prob(jv.Dirichlet(np.array([2.0, 5.0])), np.array([0.3, 0.7]))
    assert close(dirichlet, log_prob(jv.Beta(2.0, 5.0), 0.3))


def test_known_divergences(x64):
    ones = jnp.ones(3)
    pairs = [
        (jv.Dirichlet(jnp.array([2.0, 3.0, 0.5])), jv.Dirichlet(ones), 1.22152981042586),
        (jv.Gamma(2.0, 3.0), jv.Gamma(1.0, 1.0), 0.188063290433243),
        (jv.Beta(2.0, 5.0), jv.Beta(1.0, 1.0), 0.484530714995489),
    ]
    for q, p, kl in pairs:
        assert np.isclose(kl_divergence(q, p), kl, rtol=1e-12, atol=0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("q", "p"),
    [
        (jv.ContinuousBernoulli(jnp.array([0.01, 3.0])), jv.ContinuousBernoulli(jnp.zeros(2))),
        (jv.Poisson(jnp.array([2.0, 0.3])), jv.Poisson(jnp.array([1.0, 1.0]))),
        (jv.Gamma(jnp.array([2.0, 0.8]), 3.0), jv.Gamma(jnp.ones(2), 1.0)),
        (
            jv.Independent(jv.Normal(LOC, SCALE)),
            jv.Independent(jv.Normal(jnp.zeros(2), jnp.ones(2))),
        ),
        (
            jv.Product((jv.Normal(LOC, SCALE), jv.Bernoulli(jnp.array(0.7)))),
            jv.Product((jv.StandardNormal((2,)), jv.Bernoulli(jnp.array(-0.7)))),
        ),
        (jv.LowRankNormal(LOC, LOC[:, None], SCALE), jv.Normal(Z, SCALE)),
    ],
)
def test_closed_forms_are_what_samples_say(q, p):
    @jax.jit
    def both(keys):
        one = lambda k: jv.sampled_kl(q, p, *jv.sample_and_log_prob(q, k))
        return jax.vmap(one)(keys), jv.kl_divergence(q, p)

    assert standard_errors_off(*both(jax.random.split(jax.random.key(0), 20_000))) < 4


def test_parts_without_a_closed_form_have_none():
    mixture = jv.Mixture(jnp.zeros(2), jv.Normal(jnp.zeros((2, 2)), jnp.ones((2, 2))))
    q, p = jv.Product((mixture,)), jv.Product((mixture,))
    with pytest.raises(NotImplementedError, match="sampled_kl"):
        jv.kl_divergence(q, p)
    each = jv.Independent(jax.tree.map(lambda leaf: leaf[None], mixture))
    with pytest.raises(NotImplementedError, match="sampled_kl"):
        jv.kl_divergence(each, each)


@cache
def encoder():
    return nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0))


def decode(z):
    return jv.Normal(jnp.append(z, 0.0), 1.0)


def test_vamp_prior_of_one_pseudo_input_is_its_posterior():
    """And K equal ones are the same."""
    encode, u = encoder(), np.array([1.0, -0.5, 2.0], np.float32)

    @jax.jit
    def numbers():
        priors = [jv.VampVAE(encode, decode, np.tile(u, (k, 1))).prior for k in (1, 4)]
        return [d.log_prob(Z) for d in (encode(u), *priors)]

    exact, one, four = numbers()
    assert close(one, exact)
    assert close(four, exact)


def test_gradients_reach_the_pseudo_inputs_and_weights():
    pseudo_inputs = np.random.default_rng(0).normal(size=(5, 3)).astype("f")
    model = jv.VampVAE(encoder(), Partial(decode), pseudo_inputs)
    model = model._replace(logits=np.zeros(5, "f"))
    bound = lambda m: jv.elbo(m, jax.random.key(1), np.ones(3, "f"))[0]
    gradient = jax.jit(jax.grad(bound))(model)
    assert np.all(np.abs(gradient.pseudo_inputs).sum(axis=1) > 0)
    assert np.all(gradient.logits != 0)


def encodings(jaxpr: Any) -> int:
    """Rows through the first layer of the encoder: matrix products with its 3 x 400 kernel."""
    rows = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        if equation.primitive.name == "dot_general" and (3, 400) in shapes:
            rows += int(np.prod(next(s for s in shapes if s != (3, 400)))) // 3
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            rows += encodings(inner) if hasattr(inner, "eqns") else 0
    return rows


@pytest.mark.parametrize("objective", [jv.elbo, partial(jv.iwae, num_samples=5)])
def test_pseudo_inputs_are_encoded_once_a_step(objective):
    """K = 500 of them cost 500 encodings, whatever the batch and the samples."""
    model = jv.VampVAE(encoder(), Partial(decode), jnp.ones((500, 3)))

    def step(model, xs):
        return jv.batched(objective)(model, jax.random.key(0), xs)[0]

    for batch in (1, 16):
        assert encodings(jax.make_jaxpr(step)(model, jnp.ones((batch, 3))).jaxpr) == 500 + batch


def test_a_conditional_model_is_a_function_of_y():
    def model(y):
        return jv.VAE(encoder(), decode, jv.Normal(y, jnp.ones(2)))

    x, y, key = jnp.ones(3), jnp.array([0.5, -2.0]), partial(jax.random.key, 3)

    @jax.jit
    def conditioned(y):
        event, how = (x, y), {"num_samples": 4}
        elbo = jv.conditioned(jv.elbo)(model, key(), event)
        return elbo, jv.conditioned(jv.log_marginal)(model, key(), event, **how).value

    @jax.jit
    def plain(y):
        elbo = jv.elbo(model(y), key(), x)
        return elbo, jv.log_marginal(model(y), key(), x, num_samples=4).value

    (bound, terms), estimate = conditioned(y)
    (exact, _), exact_estimate = plain(y)
    assert close(bound, exact)
    assert close(estimate, exact_estimate)
    assert not close(terms.rate, plain(0.0 * y)[0][1].rate)
