"""A class beside the code: exact on mixtures of linear models, and against sums by hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import jaxvae as jv
from jaxvae.models import ppca
from jaxvae.models.semi_supervised import LabelVAE, labelled, unlabelled
from tests.common import close, draws

WEIGHT = np.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]])
MEANS = np.array([[0.0, 1.0, -1.0], [2.0, 0.5, 0.0], [-1.0, -1.0, 1.0]])
LOG_P = np.log([0.5, 0.2, 0.3])
X = np.array([0.7, 0.4, -0.3])


def log_joint():
    """log p(x, y) of each class y: N(x; m_y, W W' + s2 I) p(y)."""
    cov: Any = WEIGHT @ WEIGHT.T + 0.3 * np.eye(3)
    return LOG_P + np.array([multivariate_normal.logpdf(X, mean, cov) for mean in MEANS])


def linear(y):
    return ppca.as_vae(ppca.PPCA(jnp.asarray(WEIGHT), jnp.asarray(MEANS)[y], jnp.array(0.3)))


def linear_one_hot(y):
    return ppca.as_vae(ppca.PPCA(jnp.asarray(WEIGHT), y @ jnp.asarray(MEANS), jnp.array(0.3)))


def mixture(logits, labels=jv.Categorical, given=linear):
    """Linear models, one a class, with their exact posteriors, and q(y|x) of these logits."""
    return LabelVAE(
        Partial(lambda logits, x: labels(logits), jnp.asarray(logits)),
        Partial(given),
        labels(jnp.asarray(LOG_P)),
    )


EXACT = partial(jv.iwae, num_samples=2)  # every weight is p(x|y)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("labels", "given"),
    [(jv.Categorical, linear), (jv.OneHotCategorical, linear_one_hot)],
    ids=["integers", "one-hot"],
)
def test_with_exact_posteriors_both_are_exact(x64, labels, given):
    """log p(x) where q(y|x) is the posterior, KL(q(y|x) || p(y|x)) less where not; log p(x, y)."""
    joint = log_joint()
    model = mixture(joint, labels, given)
    without = jax.jit(lambda model: unlabelled(EXACT)(model, jax.random.key(0), jnp.asarray(X))[0])
    assert close(without(model), logsumexp(joint))
    q = np.array([0.1, 0.6, 0.3])
    other = mixture(np.log(q), labels, given)
    assert close(without(other), q @ (joint - np.log(q)))
    y = labels(jnp.asarray(LOG_P)).enumerate_support()[2]
    bound, _ = jax.jit(labelled(EXACT))(other, jax.random.key(0), (jnp.asarray(X), y), alpha=5.0)
    assert close(bound, joint[2] + 5.0 * np.log(0.3))


@pytest.mark.thorough
def test_it_is_a_model_of_pairs(x64):
    """With the exact q(y|x) q(z|x, y), every weight of the pair (y, z) is p(x)."""
    log_weights = jax.jit(partial(jv.log_weights, num_samples=8))
    log_w = log_weights(mixture(log_joint()), jax.random.key(1), jnp.asarray(X))
    assert close(log_w, np.full(8, logsumexp(log_joint())))
    pairs = draws(mixture(LOG_P).prior.sample, 500)
    assert pairs[1].shape == (500, 2)
    assert np.abs(np.bincount(pairs[0]) / 500 - np.exp(LOG_P)).max() < 4 * np.sqrt(0.25 / 500)


def coins(seed=0, num_classes=3):
    """Three classes, two coins for z, and everything depends on y; parameters are its leaves."""
    a, b, c, d = (jnp.asarray(p) for p in np.random.default_rng(seed).normal(size=(4, 3, 3)))

    def given(params, y):
        a, b, c = params
        return jv.VAE(
            encode=lambda x: jv.Bernoulli((a[y] * x)[:2] + a[y, 2]),
            decode=lambda z: jv.Normal(b[y] * jnp.concatenate([z, z[:1] * z[1:]]), 0.8),
            prior=jv.Bernoulli(c[y, :2]),
        )

    return LabelVAE(
        Partial(lambda d, x: jv.Categorical((d @ x)[:num_classes]), d),
        Partial(given, (a, b, c)),
        jv.Categorical(jnp.asarray(LOG_P)[:num_classes]),
    )


ENUMERATED = partial(jv.elbo, kl=jv.sampled_kl, gradient=jv.enumeration)


def by_hand(model, x):
    """The ELBO of the `Model` of pairs, summed over every (y, z)."""
    bound = 0.0
    q = model.encode(x)
    for y in range(3):
        for z in np.ndindex(2, 2):
            pair = (jnp.array(y), jnp.array(z, float))
            log_q = q.log_prob(pair)
            log_p = model.prior.log_prob(pair) + model.decode(pair).log_prob(x)
            bound = bound + jnp.exp(log_q) * (log_p - log_q)
    return bound


@pytest.mark.thorough
def test_unlabelled_is_the_elbo_of_pairs(x64):
    """In value and in the gradient of every parameter."""
    x, key = jnp.asarray(X), jax.random.key(0)
    exact, exact_gradient = jax.jit(jax.value_and_grad(by_hand))(coins(), x)
    bound, gradient = jax.jit(
        jax.value_and_grad(lambda model: unlabelled(ENUMERATED)(model, key, x)[0])
    )(coins())
    assert close(bound, exact)
    gradient, exact_gradient = ravel_pytree(gradient)[0], ravel_pytree(exact_gradient)[0]
    assert close(gradient, exact_gradient)
    assert np.count_nonzero(np.abs(gradient) > 1e-4) > 25  # of 36: it is not all zeros


@pytest.mark.thorough
def test_one_class_is_no_class(x64):
    x, model = jnp.asarray(X), coins(num_classes=1)
    key = partial(jax.random.key, 3)
    bound, terms = jax.jit(unlabelled(jv.elbo))(model, key(), x, beta=0.5)
    exact, exact_terms = jax.jit(lambda m: jv.elbo(m.given(0), key(), x, beta=0.5))(model)
    assert close(bound, exact)
    assert close(terms, exact_terms)


def test_terms_are_means_over_the_classes(x64):
    """beta weighs the rate of z; that of y, KL(q(y|x) || p(y)), is in the bound alone."""
    x, model = jnp.asarray(X), coins()
    objective = partial(ENUMERATED, beta=2.0)
    key = partial(jax.random.key, 0)
    bound, terms = jax.jit(unlabelled(objective))(model, key(), x)
    q: Any = model.classify(x)
    given = jax.jit(lambda m, y: ENUMERATED(m.given(y), key(), x)[1])
    each = [given(model, jnp.array(y)) for y in range(3)]
    exact = np.exp(q.log_probs) @ np.array(each)
    assert close(jnp.stack(terms), exact)
    kl = jv.kl_divergence(q, model.labels)
    assert close(bound, -(terms.distortion + 2.0 * terms.rate) - kl)


@pytest.mark.thorough
def test_alpha_trains_the_classifier_and_nothing_else_does(x64):
    xy = (jnp.asarray(X), jnp.array(1))
    objective = lambda model, alpha: labelled(ENUMERATED)(
        model, jax.random.key(0), xy, alpha=alpha
    )[0]
    gradient = jax.jit(jax.grad(objective))
    none, some = gradient(coins(), 0.0), gradient(coins(), 3.0)
    assert not np.any(ravel_pytree(none.classify)[0])
    log_q = lambda classify: 3.0 * classify(xy[0]).log_prob(xy[1])
    assert close(ravel_pytree(some.classify)[0], ravel_pytree(jax.grad(log_q)(coins().classify))[0])
    assert close(ravel_pytree(some.given)[0], ravel_pytree(none.given)[0])
    assert np.any(ravel_pytree(some.given)[0])


def test_what_is_no_such_model_is_named():
    xy = (jnp.zeros(3), jnp.array(0))
    with pytest.raises(TypeError, match="labelled: model is a VAE, expected a LabelVAE"):
        labelled(jv.elbo)(linear(0), jax.random.key(0), xy)
    array = mixture(LOG_P)._replace(classify=lambda x: x)
    with pytest.raises(TypeError, match=r"model.classify returned .*, expected a distribution"):
        unlabelled(jv.elbo)(array, jax.random.key(0), xy[0])
    endless = mixture(LOG_P)._replace(classify=lambda x: jv.Poisson(jnp.ones(())))
    with pytest.raises(TypeError, match="enumeration: Poisson has no enumerate_support"):
        unlabelled(jv.elbo)(endless, jax.random.key(0), xy[0])
