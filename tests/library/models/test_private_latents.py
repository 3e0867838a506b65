"""Products of any experts, MVTCAE and private latents, against closed forms and enumeration."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.gradients import stratified_mixture
from jaxvae.models import Multimodal, mixture_with_private, mvtcae, shared_and_private
from jaxvae.models.multimodal import mixture_of_experts, product_of_experts
from tests.common import close, draws, grid, standard_errors_off

PAIRS = {
    "bernoulli": (jv.Bernoulli, ([0.4, -1.0],), ([1.5, 0.3],)),
    "one-hot": (jv.OneHotCategorical, ([0.4, -1.0, 0.2],), ([1.5, 0.3, -0.7],)),
    "categorical": (jv.Categorical, ([[0.4, -1.0], [0.2, 0.1]],), ([[1.5, 0.3], [0.0, -0.7]],)),
    "gamma": (jv.Gamma, ([2.5], [1.5]), ([1.2], [0.4])),
    "beta": (jv.Beta, ([2.5], [1.5]), ([1.2], [3.4])),
    "normal": (jv.Normal, ([2.5], [1.5]), ([1.2], [0.4])),
}


def of_unit(n):
    x, w = np.polynomial.legendre.leggauss(n)
    return jnp.asarray((x[:, None] + 1.0) / 2.0), jnp.asarray(w / 2.0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", PAIRS)
def test_a_product_is_the_normalized_product(name, x64):
    """Over every event, or by quadrature."""
    cls, *pair = PAIRS[name]
    a, b = (cls(*map(jnp.asarray, arguments)) for arguments in pair)
    if hasattr(a, "enumerate_support"):
        z = a.enumerate_support()
        w = jnp.ones(len(z))
    else:
        z, w = of_unit(400)
        stretch = {"gamma": (lambda u: u / (1 - u), lambda u: (1 - u) ** -2)}.get(name)
        if name == "normal":
            z, w = map(jnp.asarray, grid(np.zeros(1)))
            near = jnp.abs(z[:, 0]) < 8.0
            z, w = z[near], w[near]
        elif stretch:
            z, w = stretch[0](z), w * stretch[1](z[:, 0])
    log_p = jax.vmap(lambda z: a.log_prob(z) + b.log_prob(z))(z)
    log_p -= jnp.log(jnp.sum(w * jnp.exp(log_p)))
    found = jax.vmap(a.times(b).log_prob)(z)
    assert np.allclose(found, log_p, rtol=1e-7, atol=1e-7)
    assert close(found, jax.vmap(b.times(a).log_prob)(z))
    q = product_of_experts((b,), a)
    assert close(found, jax.vmap(q.log_prob)(z))


def test_a_product_goes_part_by_part_and_names_another_class(x64):
    a = jv.Product({"coin": jv.Bernoulli(jnp.array([0.3])), "z": jv.StandardNormal((2,))})
    b = jv.Product({"coin": jv.Bernoulli(jnp.array([1.0])), "z": jv.Normal(jnp.ones(2), 1.0)})
    q = product_of_experts((b, b), a, (True, False))
    assert close(q.parts["coin"].logits, 1.3)
    assert close(q.parts["z"].loc, 0.5)
    for other, error, text in (
        (
            jv.Normal(jnp.ones(1), 1.0),
            TypeError,
            r"Bernoulli\.times: other is a Normal, expect",
        ),
        (jv.Bernoulli(jnp.ones(2)), ValueError, r"Bernoulli\.times: other is over .* \(2,\)"),
    ):
        with pytest.raises(error, match=text):
            jv.Bernoulli(jnp.ones(1)).times(other)  # pyright: ignore[reportArgumentType]


# x_i ~ N(a_i z + b_i w_i, s_i^2), z and w_i standard normal; experts are off on purpose
A, B, S = np.array([0.7, -2.0]), np.array([1.1, 0.4]), np.array([0.5, 1.5])
X = np.array([1.1, -0.6])


def shared_expert(i, x):
    return jv.Normal(x * (0.4, -0.3)[i], jnp.full(1, (0.9, 0.7)[i], x.dtype))


def linear(join=product_of_experts):
    def likelihood(i, z):
        return jv.Normal(A[i] * z, jnp.full(1, S[i]))

    return Multimodal(
        tuple(Partial(shared_expert, i) for i in range(2)),
        tuple(Partial(likelihood, i) for i in range(2)),
        jv.StandardNormal((1,)),
        Partial(join),
    )


def example(mask):
    return tuple(jnp.array([x if m else np.nan]) for x, m in zip(X, mask, strict=True)), mask


def kl(q, p):
    (m, s), (n, t) = q, p
    return np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


@pytest.mark.parametrize("mask", [(True, True), (False, True)])
def test_mvtcae_is_its_formula(mask, x64):
    """Rate in closed form, by hand; the bound in mean, whose distortion is a Gaussian's too."""
    here = np.array(mask)
    alpha, beta, v = 0.6, 1.7, here.sum()
    experts = np.stack([X * (0.4, -0.3), (0.9, 0.7)], 1)
    precision = 1.0 + np.sum(here / experts[:, 1] ** 2)
    q = np.sum(here * experts[:, 0] / experts[:, 1] ** 2) / precision, precision**-0.5
    near = sum(kl(q, e) for e, flag in zip(experts, mask, strict=True) if flag) / v
    rate = (1 - alpha) * kl(q, (0.0, 1.0)) + alpha * near
    square = (X - A * q[0]) ** 2 + (A * q[1]) ** 2
    distortion = np.sum(here * (0.5 * np.log(2 * np.pi * S**2) + square / (2 * S**2)))

    one = lambda key: mvtcae(linear(), key, example(mask), alpha=alpha, beta=beta)
    bound, terms = draws(one, 20_000)
    assert np.allclose(terms.rate, rate, rtol=1e-10)
    assert standard_errors_off(terms.distortion, distortion) < 4
    exact = -((v - alpha) / v * distortion + beta * rate)
    assert standard_errors_off(bound, exact) < 4
    plain = mvtcae(linear(), jax.random.key(3), example(mask), alpha=0.0, beta=beta)[0]
    assert close(plain, jv.elbo(linear(), jax.random.key(3), example(mask), beta=beta)[0])


def private_model(join):
    def expert(i, x):
        own = jv.Normal(x * (0.5, -0.2)[i], jnp.full(1, (0.8, 1.1)[i], x.dtype))
        return jv.Product({"shared": shared_expert(i, x), "private": own})

    def likelihood(i, z):
        return jv.Normal(A[i] * z["shared"] + B[i] * z["private"][i], jnp.full(1, S[i]))

    one = jv.StandardNormal((1,))
    return Multimodal(
        tuple(Partial(expert, i) for i in range(2)),
        tuple(Partial(likelihood, i) for i in range(2)),
        jv.Product({"shared": one, "private": jv.Product((one, one))}),
        Partial(join),
    )


JOINS = {
    "product": shared_and_private,
    "mixture of the shared": partial(shared_and_private, join=mixture_of_experts),
    "mixture": mixture_with_private,
}


@pytest.mark.parametrize("name", JOINS)
def test_private_latents_have_weights_of_mean_p_of_x(name, x64):
    """Whatever the join and what is missing: E[w] = p(x_present), a Gaussian."""
    cov = np.outer(A, A) + np.diag(B**2 + S**2)
    model = private_model(JOINS[name])
    for mask in [(True, True), (False, True)] if name == "mixture" else [(True, True)]:
        here = np.array(mask)
        sub, r = cov[np.ix_(here, here)], X[here]
        exact = -0.5 * (here.sum() * np.log(2 * np.pi) + np.linalg.slogdet(sub)[1])
        exact -= 0.5 * r @ np.linalg.solve(sub, r)
        weigh = partial(jv.log_weights, model, x=example(mask), num_samples=20_000)
        w = jnp.exp(jax.jit(weigh)(jax.random.key(1)))
        assert standard_errors_off(w, np.exp(exact)) < 4


@pytest.mark.thorough
def test_a_component_knows_its_own_private_latent(x64):
    """Others are the prior's, and the density is the mixture's, by hand."""
    model = private_model(mixture_with_private)
    q = model.encode(example((True, True)))
    z = {"shared": jnp.array([0.3]), "private": (jnp.array([-0.2]), jnp.array([0.9]))}
    n = lambda x, m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
    shared = [n(0.3, X[0] * 0.4, 0.9), n(0.3, X[1] * -0.3, 0.7)]
    first = n(-0.2, X[0] * 0.5, 0.8) * n(0.9, 0, 1)
    second = n(-0.2, 0, 1) * n(0.9, X[1] * -0.2, 1.1)
    assert close(jnp.exp(q.log_prob(z)), 0.5 * (shared[0] * first + shared[1] * second))
    bound = partial(jv.elbo, gradient=stratified_mixture)

    def of_prior(p):
        return bound(model._replace(prior=p), jax.random.key(0), example((True, True)))[0]

    d = jax.jit(jax.grad(of_prior))
    prior = jv.Product(
        {
            "shared": jv.Normal(jnp.zeros(1), jnp.ones(1)),
            "private": jv.Product(tuple(jv.Normal(jnp.zeros(1), jnp.ones(1)) for _ in range(2))),
        }
    )
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(d(prior)))


def test_nothing_present_is_the_prior(x64):
    model = private_model(mixture_with_private)
    z = {"shared": jnp.array([0.3]), "private": (jnp.array([-0.2]), jnp.array([0.9]))}
    q = model.encode(example((False, False)))
    assert close(q.log_prob(z), model.prior.log_prob(z))


def test_private_is_that_of_the_prior_where_missing(x64):
    for mask in product((True, False), repeat=2):
        q = private_model(shared_and_private).encode(example(mask))
        for i, w in enumerate(q.mean()["private"]):
            assert close(w, X[i] * (0.5, -0.2)[i] if mask[i] else 0.0)
        exact = linear().encode(example(mask))
        assert close(q.mean()["shared"], exact.loc)


def test_errors_name_the_argument():
    one = jv.StandardNormal((1,))
    good = jv.Product({"shared": one, "private": one})
    prior = jv.Product({"shared": one, "private": jv.Product((one, one))})
    for join in (shared_and_private, mixture_with_private):
        for experts, p, text in (
            ((), prior, "experts is"),
            ((good, one), prior, r"experts\[1\] is a Normal, expected a Product of"),
            ((good, good), one, "prior is a Normal, expected a Product of"),
            ((good, good), good, "the private part of prior is a Normal, expected a tuple of 2"),
        ):
            with pytest.raises(TypeError, match=f"{join.__name__}: {text}"):
                join(experts, p)
