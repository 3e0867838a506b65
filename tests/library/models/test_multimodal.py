"""Several modalities: joins of experts, and bounds of whatever part of an example was seen."""

from functools import partial
from itertools import permutations, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.checks import OutsideSupportError
from jaxvae.evaluation import multiple_imputations, use
from jaxvae.gradients.mixtures import stratified_mixture
from jaxvae.models.multimodal import (
    Multimodal,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
)
from tests.common import close, draws, grid, standard_errors_off

JOINS = (product_of_experts, mixture_of_experts, mixture_of_products)
GAUSSIAN = Partial(lambda v: jv.Normal(v, jnp.ones(2)))
LOCS, SCALES = (0.3, -1.0, 2.0), (0.5, 2.0, 0.8)


def experts():
    pairs = zip(LOCS, SCALES, strict=True)
    return [jv.Normal(jnp.array([loc]), jnp.array([scale])) for loc, scale in pairs]


def prior():
    return jv.Normal(jnp.array([-0.4]), jnp.array([1.5]))


def densities(q, z):
    return jax.vmap(q.log_prob)(z)


@pytest.mark.thorough
def test_a_product_is_the_normalized_product(x64):
    z, weights = grid(np.zeros(1))
    z = jnp.asarray(z)
    log_p = sum(densities(d, z) for d in (*experts(), prior()))
    log_p = log_p - jnp.log(jnp.sum(weights * jnp.exp(log_p)))
    near = jnp.abs(z[:, 0]) < 8
    assert close(densities(product_of_experts(experts(), prior()), z)[near], log_p[near])


def test_one_expert_is_weighed_against_the_prior(x64):
    one = experts()[:1]
    q, exact = product_of_experts(one, prior()), jv.models.gaussian_product(one[0], prior())
    assert close(q.loc, exact.loc)
    assert close(q.scale, exact.scale)
    standard = product_of_experts(experts()[:1], jv.StandardNormal((1,)))
    assert close(standard.scale, (1 + 1 / 0.25) ** -0.5)
    shared = jv.Normal(jnp.array([0.3, -1.0]), jnp.array(0.5))  # a scalar sigma
    assert close(product_of_experts([shared], jv.StandardNormal((2,))).loc, 0.8 * shared.loc)


@pytest.mark.parametrize("join", JOINS)
def test_order_does_not_matter(join, x64):
    z = jnp.linspace(-3.0, 3.0, 7)[:, None]
    found = jax.jit(lambda ds: densities(join(ds, prior()), z))
    for order in permutations(range(3)):
        assert close(found([experts()[i] for i in order]), found(experts()))


@pytest.mark.parametrize("join", JOINS)
def test_a_missing_modality_is_as_if_it_were_not_there(join, x64):
    """Whatever stands in its place, and its gradient is 0; with none present there is the prior."""
    z = jnp.linspace(-3.1, 3.0, 7)[:, None]

    def density(loc, present):
        qs = [jv.Normal(loc[i][None], d.scale) for i, d in enumerate(experts())]
        return densities(join(qs, prior(), present), z)

    locs = jnp.array(LOCS)
    both = jax.jit(lambda loc, present: (density(loc, present), jax.jacrev(density)(loc, present)))
    dropped = jax.jit(lambda here: densities(join(here, prior()) if here else prior(), z))
    for present in product((False, True), repeat=3):
        present = np.array(present)
        here = [d for d, flag in zip(experts(), present, strict=True) if flag]
        found, gradient = both(jnp.where(present, locs, jnp.nan), present)
        assert close(found, dropped(here))
        assert np.all(np.asarray(gradient)[:, ~present] == 0)
        assert np.all(np.asarray(gradient)[:, present] != 0)


def test_mixtures_are_even(x64):
    z = jnp.linspace(-3.0, 3.0, 7)[:, None]

    @jax.jit
    def both(one, two):
        sets = [product_of_experts(some, prior()) for some in ((one,), (two,), (one, two))]
        return [
            (jnp.exp(densities(join((one, two), prior()), z)), mean_density(parts, z))
            for join, parts in ((mixture_of_experts, (one, two)), (mixture_of_products, sets))
        ]

    for found, by_hand in both(*experts()[:2]):
        assert close(found, by_hand)


def mean_density(parts, z):
    return jnp.mean(jnp.exp(jnp.stack([densities(d, z) for d in parts])), axis=0)


# of the precision of the test
LOGITS, LOC, SCALE = np.array([0.4, -0.3]), np.array([[-0.5], [1.2]]), np.array([[0.6], [0.9]])
X = np.array([1.5])


def term(q, z, log_q):
    log_p = jv.StandardNormal((1,)).log_prob(z) + jv.Normal(z, 1.0).log_prob(X)
    return log_p - log_q, z


def near_grid():
    z, weights = grid(np.zeros(1))
    near = np.abs(z[:, 0]) < 12
    return jnp.asarray(z[near]), weights[near]


def mixture(logits, loc, scale):
    return jv.Mixture(logits, jv.Normal(loc, scale))


@pytest.mark.parametrize("of", [jv.Normal, jv.Laplace, partial(jv.StudentT, 4.0)])
def test_an_expert_may_have_one_scale_for_all_latents(of, x64):
    p = of(loc=jnp.zeros(2), scale=jnp.ones(2))
    pair = of(loc=jnp.ones(2), scale=0.5), of(loc=jnp.full(2, -1.0), scale=jnp.full(2, 0.5))
    q = mixture_of_experts(pair, p)
    z = jnp.array([0.3, -0.2])
    both = jnp.array([expert.log_prob(z) for expert in pair])
    assert close(q.log_prob(z), jax.nn.logsumexp(both) - jnp.log(2.0))
    assert close(mixture_of_experts(pair, p, (False, False)).log_prob(z), p.log_prob(z))


@pytest.mark.thorough
def test_strata_have_the_bound_and_its_gradient(x64):
    """Against quadrature, in logits, means and scales; and quieter than draws of the mixture."""
    parameters = tuple(map(jnp.asarray, (LOGITS, LOC, SCALE)))
    z, weights = near_grid()

    def exact(parameters):
        q = mixture(*parameters)
        log_q = densities(q, z)
        log_w = jax.vmap(lambda z, log_q: term(q, z, log_q)[0])(z, log_q)
        return jnp.sum(weights * jnp.exp(log_q) * log_w)

    def estimate(gradient, key):
        return jax.value_and_grad(lambda p: gradient(jnp.mean, term, mixture(*p), key[None])[0])(
            parameters
        )

    both = draws(
        lambda key: (
            estimate(stratified_mixture, key),
            estimate(jv.pathwise, jax.random.clone(key)),
        ),
        4_000,
    )
    truth = jax.jit(jax.value_and_grad(exact))(parameters)
    for value, found in zip(jax.tree.leaves(truth), jax.tree.leaves(both[0]), strict=True):
        assert standard_errors_off(found, value) < 4
    assert np.std(both[0][0]) < 0.8 * np.std(both[1][0])


@pytest.mark.thorough
def test_strata_of_several_samples_are_a_bound(x64):
    """It tends to sum_m pi_m log E_{q_m}[w], which is below log p(x)."""
    q = mixture(*map(jnp.asarray, (LOGITS, LOC, SCALE)))
    z, weights = near_grid()
    log_w = jax.jit(jax.vmap(lambda z: term(q, z, q.log_prob(z))[0]))(z)
    pi = np.exp(LOGITS) / np.exp(LOGITS).sum()
    each = jnp.exp(jax.jit(jax.vmap(lambda d: densities(d, z)))(q.components))
    limit = pi @ jnp.log(jnp.exp(log_w)[None] * each @ weights)
    log_p = jv.Normal(0.0, 2.0**0.5).log_prob(X[0])

    def bound(num_samples, key):
        keys = jax.random.split(key, num_samples)
        value, z = stratified_mixture(jv.bounds.log_mean_exp, term, q, keys)
        assert z.shape == (num_samples, 1)  # aux of every sample
        return value

    one, many = (np.asarray(draws(partial(bound, k), 400)) for k in (1, 500))
    assert abs(many.mean() - limit) < 0.005
    assert one.mean() < limit - 0.1 < log_p - 0.1


# Two modalities of a scalar z, x_i ~ N(w_i z, s_i^2): their likelihoods of z are Gaussians
W, S = np.array([0.7, -2.0]), np.array([0.5, 1.5])


def likelihood(i, z):
    return jv.Normal(jnp.asarray(W)[i] * z, jnp.asarray(S)[i])


def expert(i, x):
    w, s = jnp.asarray(W)[i], jnp.asarray(S)[i]
    return jv.Normal(x / w, s / jnp.abs(w))


def linear_model(join=product_of_experts):
    return Multimodal(
        tuple(Partial(expert, i) for i in range(2)),
        tuple(Partial(likelihood, i) for i in range(2)),
        jv.StandardNormal((1,)),
        Partial(join),
    )


def test_the_product_of_exact_experts_is_the_exact_posterior(x64):
    """So the bound of whatever is present is log p of it, without noise."""
    x = np.array([1.1, -0.6])
    cov = np.outer(W, W) + np.diag(np.square(S))
    bound = jax.jit(partial(jv.elbo, kl=jv.sampled_kl))
    for mask in product((False, True), repeat=2):
        here = np.array(mask)
        sub, r = cov[np.ix_(here, here)], x[here]
        exact = -0.5 * (here.sum() * np.log(2 * np.pi) + np.linalg.slogdet(sub)[1])
        exact -= 0.5 * r @ np.linalg.solve(sub, r)
        seen = tuple(
            jnp.array([x_i if flag else np.nan]) for x_i, flag in zip(x, mask, strict=True)
        )
        for seed in range(3):
            assert close(bound(linear_model(), jax.random.key(seed), (seen, mask))[0], exact)


@pytest.mark.thorough
@pytest.mark.parametrize("join", [mixture_of_experts, mixture_of_products])
def test_a_mixture_of_modalities_trains(join):
    """A batch where modalities are missing at random, as NaN, has a finite gradient everywhere."""
    masks = tuple(jnp.array(flags) for flags in ([True, True, False], [True, False, True]))
    xs = tuple(jnp.where(flags[:, None], 0.7, jnp.nan) for flags in masks)

    def loss(scale):
        model = linear_model(join)
        model = model._replace(experts=tuple(Partial(scaled, scale[i], i) for i in range(2)))
        objective = jv.batched(partial(jv.elbo, gradient=stratified_mixture))
        return objective(model, jax.random.key(0), (xs, masks))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones(2))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient) != 0)


def scaled(scale, i, x):
    d = expert(i, x)
    return jv.Normal(scale * d.loc, d.scale)


@pytest.mark.filterwarnings("ignore:score. rows have:UserWarning")
def test_a_modality_may_be_a_dict_in_use(x64):
    """Its flag is of all that it holds, and each number as of a modality that is an array."""
    as_array = jv.models.Multimodal(
        (GAUSSIAN, Partial(lambda v: jv.Normal(v[:2] + v[2:], jnp.ones(2)))),
        (GAUSSIAN, Partial(lambda z: jv.Normal(jnp.concatenate([z, -z]), 0.5))),
        jv.StandardNormal((2,)),
    )
    halves = lambda z: jv.Product({"a": jv.Normal(z, 0.5), "b": jv.Normal(-z, 0.5)})
    as_dict = as_array._replace(
        experts=(GAUSSIAN, Partial(lambda v: jv.Normal(v["a"] + v["b"], jnp.ones(2)))),
        likelihoods=(GAUSSIAN, Partial(halves)),
    )
    first, second = np.ones((3, 2)), np.arange(12.0).reshape(3, 4)
    mask = np.array([True, True, False]), np.array([True, False, True])
    dicts = (first, {"a": second[:, :2], "b": second[:, 2:]}), mask
    key = jax.random.key(0)

    expected = use.score(as_array, key, ((first, second), mask), num_samples=4)
    found = use.score(as_dict, key, dicts, num_samples=4)
    assert found.observed.tolist() == [6, 2, 4]
    for name in ("iwae", "elbo", "rate", "observed"):
        assert close(getattr(found, name), getattr(expected, name))
    parts = found.entries[1]
    assert close(np.concatenate([parts["a"], parts["b"]], 1), expected.entries[1])

    of_array = use.impute(as_array, key, ((first, second), mask), num_samples=4)
    of_dict = use.impute(as_dict, key, dicts, num_samples=4)
    assert close(of_dict[0], of_array[0])
    assert close(np.concatenate([of_dict[1]["a"], of_dict[1]["b"]], 1), of_array[1])
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf[1]), dicts)
    drawn = multiple_imputations(as_dict, key, one, num_samples=4, num_draws=3)
    assert drawn[1]["b"].shape == (3, 2)
    unseen = first, jax.tree.map(lambda leaf: leaf * np.nan, dicts[0][1])
    with pytest.raises(OutsideSupportError, match=r"xs\[1\]\['a'\] holds nan at \(0, 0\)"):
        use.score(as_dict, key, (unseen, mask), num_samples=4)


def test_errors_name_the_argument():
    d, p = experts()[0], prior()
    bad: Any
    for bad, error, text in (
        (([], p), TypeError, "experts is"),
        ((d, p), TypeError, "experts is"),
        (([d, jv.Laplace(d.loc, d.scale)], p), TypeError, r"experts\[1\] is a Laplace"),
        (([d], None), TypeError, "prior is None"),
        (([d], jv.StandardNormal((2,))), ValueError, "prior is over events of shape"),
        (([d, d], p, (True,)), ValueError, "present has"),
        (([d, d], p, jnp.ones((2, 1))), ValueError, "present has"),
        (([d, d], p, "ab"), TypeError, "present is"),
    ):
        for join in JOINS:
            with pytest.raises(error, match=f"{join.__name__}: {text}"):
                join(*bad)
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(TypeError, match="stratified_mixture: q is a Normal"):
        stratified_mixture(jnp.mean, term, d, keys)
    coins = jv.Mixture(jnp.zeros(2), jv.Bernoulli(jnp.zeros((2, 1))))
    with pytest.raises(TypeError, match="stratified_mixture: q is a Mixture of Bernoulli"):
        stratified_mixture(jnp.mean, term, coins, keys)
