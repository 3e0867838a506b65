"""Importance weights and the reduction of them that makes a bound."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp, softmax
from scipy.stats import norm

from jaxvae import VAE, Normal, StandardNormal, iwae, log_weights, sample_and_log_prob
from jaxvae.bounds import log_mean_exp
from jaxvae.bounds.importance_weights import importance_term
from tests.common import close, draws, standard_errors_off

MODEL = VAE(  # p(x) = N(0, 2)
    encode=Partial(lambda x: Normal(0.25, 1.0)),
    decode=Partial(lambda z: Normal(z, jnp.ones_like(z))),
    prior=StandardNormal(()),
)


class Fixed(NamedTuple):
    """A proposal that always draws `event`, at a stated log-density."""

    event: Any
    log_density: Any

    def sample(self, key):
        return self.event

    def log_prob(self, event, /):
        return self.log_density


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_log_mean_exp_against_scipy(size, x64):
    # log 1/K sum w
    log_w = 50 * np.random.default_rng(size).normal(size=size)
    assert close(log_mean_exp(jnp.asarray(log_w)), logsumexp(log_w) - np.log(size))


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_log_mean_exp_does_not_overflow(shift):
    # e^10000 is no float32, its logarithm is
    assert close(log_mean_exp(jnp.array([shift, shift])), shift)
    assert close(log_mean_exp(jnp.array([shift, -shift])), 1e4 - np.log(2))


def test_log_mean_exp_counts_zero_weights():
    # a weight of 0 is a weight: log (2 + 0 + 0 + 0) / 4; all of them 0 is log 0
    assert close(log_mean_exp(jnp.array([np.log(2), -np.inf, -np.inf, -np.inf])), -np.log(2))
    assert log_mean_exp(jnp.full(3, -jnp.inf)) == -jnp.inf


def test_the_best_sample_weighs_most(x64):
    # the gradient in the log-weights is w / sum w (not the softmax of the loss)
    log_w = jnp.array([-3.0, 0.5, 2.0])
    assert close(jax.grad(log_mean_exp)(log_w), softmax(log_w))


def test_log_weight_is_joint_minus_proposal(x64):
    # log p(x|z) + log p(z) - log q(z|x) at a z and a log q that are known
    model = MODEL._replace(encode=Partial(lambda x: Fixed(x - 0.8, jnp.asarray(-3.1))))
    log_w = log_weights(model, jax.random.key(0), jnp.array(1.5), num_samples=3)
    assert close(log_w, np.full(3, norm.logpdf(1.5, 0.7) + norm.logpdf(0.7) + 3.1))


def test_proposing_from_the_prior_leaves_the_likelihood(x64):
    # q = p(z): the log-weight is log p(x|z)
    z = StandardNormal(()).sample(jax.random.key(1))
    log_w = importance_term(MODEL, jnp.array(1.5))(
        None, *sample_and_log_prob(MODEL.prior, jax.random.key(1))
    )[0]
    assert close(log_w, norm.logpdf(1.5, z))


def test_weights_are_unbiased_and_independent():
    # E[w] = p(x), x ~ N(0, 2), and E[w w'] = p(x)^2 for two of one call
    w = jnp.exp(draws(lambda key: log_weights(MODEL, key, 1.5, num_samples=2), 40_000))
    p_x = norm.pdf(1.5, scale=2**0.5)
    assert standard_errors_off(w, np.full(2, p_x)) < 4
    assert standard_errors_off(w[:, 0] * w[:, 1], p_x**2) < 4


def test_more_samples_keep_the_first():
    # sample k is drawn with fold_in(key, k), whatever their number
    few, many = (log_weights(MODEL, jax.random.key(2), 1.5, num_samples=n) for n in (3, 10))
    assert close(few, many[:3])
    key = jax.random.fold_in(jax.random.key(2), 2)
    assert close(
        few[2], importance_term(MODEL, 1.5)(None, *sample_and_log_prob(MODEL.encode(1.5), key))[0]
    )
    assert len(np.unique(many)) == 10


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True, None])
@pytest.mark.parametrize("function", [log_weights, iwae])
def test_num_samples_is_a_positive_integer(function, num_samples):
    # 0, 2.5 or True are refused by name
    with pytest.raises(ValueError, match=f"num_samples is {num_samples}"):
        function(MODEL, jax.random.key(0), 1.5, num_samples=num_samples)


def test_posterior_is_computed_once():
    # K samples share one encoding, of 2 x 512^2 FLOPs
    model = VAE(
        encode=lambda x: Normal(jnp.eye(512) @ x, jnp.ones(512)),
        decode=lambda z: Normal(z, jnp.ones(512)),
        prior=StandardNormal((512,)),
    )

    def flops(n):
        function = jax.jit(partial(log_weights, model, num_samples=n))
        compiled = function.lower(jax.random.key(0), jnp.ones(512)).compile()
        return (compiled.cost_analysis() or {})["flops"]

    assert flops(1) > 2 * 512**2
    assert (flops(21) - flops(1)) / 20 < 512**2
