"""Special cases recover their parents."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from tests.common import close, draws, standard_errors_off

Z = jnp.array([0.4, -1.3])
LOC, SCALE = jnp.array([0.3, -1.0]), jnp.array([0.5, 0.8])


def test_low_rank_of_rank_0_is_diagonal():
    low = jv.LowRankNormal(LOC, jnp.zeros((2, 0)), SCALE)
    assert close(low.log_prob(Z), jv.Normal(LOC, SCALE).log_prob(Z))
    assert close(low.sample(jax.random.key(0)), jv.Normal(LOC, SCALE).sample(jax.random.key(0)))


def test_low_rank_is_a_gaussian_of_that_covariance():
    factor = jnp.array([[0.5], [-0.8]])
    low = jv.LowRankNormal(LOC, factor, SCALE)
    covariance = factor @ factor.T + jnp.diag(SCALE**2)
    full = jv.MultivariateNormal(LOC, jnp.linalg.cholesky(covariance))
    assert close(low.log_prob(Z), full.log_prob(Z))
    others = [jv.StandardNormal((2,)), jv.Normal(Z, 2.0 * SCALE), full]
    for p in others:
        assert close(jv.kl_divergence(low, p), jv.kl_divergence(full, p))
        if not isinstance(p, jv.StandardNormal):
            assert close(jv.kl_divergence(p, low), jv.kl_divergence(p, full))
    assert close(jv.kl_divergence(low, low), 0.0)


@pytest.mark.parametrize("components", [jv.Normal, jv.Laplace])
def test_a_mixture_of_one_is_its_component(components):
    one = jv.Mixture(jnp.array([0.7]), components(LOC[None], SCALE[None]))
    assert close(one.log_prob(Z), components(LOC, SCALE).log_prob(Z))
    assert close(one.mean(), LOC)


def test_student_t_of_many_degrees_is_gaussian():
    for df in (1e6, 1e8):
        t = jv.StudentT(df, LOC, SCALE)
        assert np.isclose(t.log_prob(Z), jv.Normal(LOC, SCALE).log_prob(Z), atol=2e-5)
    sample = draws(lambda k: jv.StudentT(1e8, LOC, SCALE).sample(k), 20_000)
    assert standard_errors_off((sample - LOC[None]) ** 2, SCALE**2) < 4


def test_negative_binomial_of_a_large_count_is_poisson():
    r, mean = 1e6, jnp.array([0.5, 4.0])
    counts = jnp.array([1.0, 7.0])
    nb = jv.NegativeBinomial(jnp.full(2, r), jnp.log(mean / r))
    assert np.isclose(nb.log_prob(counts), jv.Poisson(mean).log_prob(counts), atol=1e-4)


def test_a_count_that_is_never_inflated():
    base = jv.Poisson(jnp.array(2.0))
    inflated = jv.distributions.ZeroInflated(base, jnp.array(-40.0))
    for x in (0, 3):
        assert close(inflated.log_prob(x), base.log_prob(x))


def test_gamma_of_one_is_exponential_and_dirichlet_of_two_is_beta(x64):
    assert close(jv.Gamma(jnp.ones(1), 2.0).log_prob(jnp.array([0.7])), jnp.log(2.0) - 1.4)
    a = jnp.array([2.0, 5.0])
    dirichlet = jv.Dirichlet(a).log_prob(jnp.array([0.3, 0.7]))
    assert close(dirichlet, jv.Beta(a[0], a[1]).log_prob(jnp.array(0.3)))


def test_known_divergences(x64):
    ones = jnp.ones(3)
    pairs = [
        (jv.Dirichlet(jnp.array([2.0, 3.0, 0.5])), jv.Dirichlet(ones), 1.22152981042586),
        (jv.Gamma(2.0, 3.0), jv.Gamma(1.0, 1.0), 0.188063290433243),
        (jv.Beta(2.0, 5.0), jv.Beta(1.0, 1.0), 0.484530714995489),
    ]
    for q, p, kl in pairs:
        assert np.isclose(jv.kl_divergence(q, p), kl, rtol=1e-12, atol=0)


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
    sampled = draws(lambda k: jv.sampled_kl(q, p, *jv.sample_and_log_prob(q, k)), 20_000)
    assert standard_errors_off(sampled, jv.kl_divergence(q, p)) < 4


def test_parts_without_a_closed_form_have_none():
    mixture = jv.Mixture(jnp.zeros(2), jv.Normal(jnp.zeros((2, 2)), jnp.ones((2, 2))))
    q, p = jv.Product((mixture,)), jv.Product((mixture,))
    with pytest.raises(NotImplementedError, match="sampled_kl"):
        jv.kl_divergence(q, p)
    each = jv.Independent(jax.tree.map(lambda leaf: leaf[None], mixture))
    with pytest.raises(NotImplementedError, match="sampled_kl"):
        jv.kl_divergence(each, each)


def encoder(seed=0):
    return nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(seed))


def decode(z):
    return jv.Normal(jnp.append(z, 0.0), 1.0)


def test_vamp_prior_of_one_pseudo_input_is_its_posterior():
    """And K equal ones are the same."""
    encode, u = encoder(), jnp.array([1.0, -0.5, 2.0])
    for k in (1, 4):
        prior = jv.VampVAE(encode, decode, jnp.tile(u, (k, 1))).prior
        assert close(prior.log_prob(Z), encode(u).log_prob(Z))


def test_gradients_reach_the_pseudo_inputs_and_weights():
    model = jv.VampVAE(encoder(), Partial(decode), jax.random.normal(jax.random.key(0), (5, 3)))
    model = model._replace(logits=jnp.zeros(5))
    gradient = jax.grad(lambda m: jv.elbo(m, jax.random.key(1), jnp.ones(3))[0])(model)
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
    bound, terms = jv.conditioned(jv.elbo)(model, key(), (x, y))
    assert close(bound, jv.elbo(model(y), key(), x)[0])
    assert not close(terms.rate, jv.elbo(model(0.0 * y), key(), x)[1].rate)
    estimate = jv.conditioned(jv.log_marginal)(model, key(), (x, y), num_samples=4)
    assert close(estimate.value, jv.log_marginal(model(y), key(), x, num_samples=4).value)
