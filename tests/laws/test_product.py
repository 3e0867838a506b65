"""The whole product meets: what is far apart in the library works together, or says why it can't.

Each function is one meeting, held to a closed form, to a sum by hand or to an estimate's own error.
"""

from functools import partial
from itertools import product
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy import stats
from scipy.special import expit, softmax

import jaxvae as jv
from jaxvae import nn
from jaxvae.bijectors import Affine
from jaxvae.evaluation import active_units, rate_decomposition
from jaxvae.evaluation.latent_space import tempered
from jaxvae.models import Ladder, Markov, Multimodal, semi_amortized
from jaxvae.regularizers import LatentSample, free_bits, kl_per_latent, kl_per_level, regularized
from tests.common import close, standard_errors_off

CODE: Any = LatentSample  # whose fields may be anything here
XS = np.array([[0.3, -1.0], [1.2, 0.1], [-0.7, 0.6]])
SCALE = np.array([0.5, 0.8])
STRETCH, SHIFT = np.array([2.0, 0.5]), np.array([0.1, -0.3])


def key(seed=0):
    return jax.random.key(seed)


def arrays(*constants):
    return [jnp.asarray(c) for c in constants]


def affine(base):
    """A flow that nothing is known of, though here it is N(stretch mu + shift, stretch sigma)."""
    return jv.Transformed(base, Affine(*arrays(SHIFT, np.log(STRETCH))))


def gaussian(x):
    return jv.Normal(x, jnp.asarray(SCALE))


def of_gaussian(x):
    return affine(gaussian(x))


def unit(z):
    return jv.Normal(z, jnp.ones(2))


def standard():
    return jv.Normal(jnp.zeros(2), jnp.ones(2))


def mixture():
    return jv.Mixture(jnp.zeros(2), jv.Normal(jnp.eye(2), jnp.ones((2, 2))))


def two_levels(x):
    return jv.Joint(gaussian(x), Partial(of_gaussian))


# --- free bits --------------------------------------------------------------------------------


def free_bits_meet(model, levels=1, **how):
    objective = jv.batched(
        partial(regularized, penalty=partial(free_bits, parts=kl_per_level), **how)
    )
    objective = jax.jit(objective)
    for free in (0.0, 50.0):
        bound, terms = objective(model, key(), jnp.asarray(XS), free_nats=jnp.asarray(free))
        rate = jnp.maximum(levels * free, jnp.mean(terms.rate))
        assert close(bound, -jnp.mean(terms.distortion) - rate)
    return terms


def free_bits_of_a_flow_posterior():
    model = jv.VAE(Partial(of_gaussian), Partial(unit), standard())
    free_bits_meet(model)
    rates = jax.vmap(lambda key: jv.elbo(model, key, jnp.asarray(XS[0]))[1].rate)
    exact = jv.Normal(jnp.asarray(STRETCH * XS[0] + SHIFT), jnp.asarray(STRETCH * SCALE))
    found = jax.jit(rates)(jax.random.split(key(1), 4000))
    assert standard_errors_off(found, jax.jit(jv.kl_divergence)(exact, standard())) < 4
    code = CODE(model.encode(jnp.asarray(XS[0])), standard(), jnp.zeros(2), 0.0, 0.0)
    with pytest.raises(TypeError, match=r"model: Transformed has no unstack; .*as kl_per_level"):
        kl_per_latent(code)


def free_bits_of_a_flow_prior():
    free_bits_meet(jv.VAE(Partial(gaussian), Partial(unit), affine(standard())))


def free_bits_of_a_mixture_prior():
    free_bits_meet(jv.VAE(Partial(gaussian), Partial(unit), mixture()))
    code = CODE(gaussian(jnp.asarray(XS[0])), mixture(), jnp.zeros(2), 0.0, 0.0)
    with pytest.raises(TypeError, match=r"model: Mixture has no unstack; .*as kl_per_level"):
        kl_per_latent(code)


def free_bits_of_a_vamp_prior():
    free_bits_meet(jv.VampVAE(Partial(gaussian), Partial(unit), jnp.eye(2)))


def free_bits_of_levels_with_a_flow():
    """Each level has its own, and does where its KL is taken at the sample to stick the landing."""
    decode = Partial(lambda z: unit(z[1]))
    model = jv.VAE(Partial(two_levels), decode, jv.Joint(standard(), Partial(unit)))
    free_bits_meet(model, levels=2)
    free_bits_meet(model, levels=2, gradient=jv.sticking_the_landing)


def free_bits_of_latents_that_stick_the_landing():
    """Log-ratios of each latent at the sample, and not one of all: 0 + 50 + 50 is not 50."""
    model = jv.VAE(Partial(gaussian), Partial(unit), standard())
    sticking = partial(regularized, penalty=free_bits, gradient=jv.sticking_the_landing)
    objective = jax.jit(jv.batched(sticking))
    for free, add in ((0.0, 0.0), (50.0, 100.0)):
        bound, terms = objective(model, key(), jnp.asarray(XS), free_nats=free)
        if add:
            assert close(bound, -jnp.mean(terms.distortion) - add)
        else:  # each latent's mean is held at 0 or more
            assert bound <= -jnp.mean(terms.distortion) - jnp.mean(terms.rate) + 1e-9


# --- what the latents carry -------------------------------------------------------------------


def one_alive(x):
    """The mean of the first latent varies over the data by 1, that of the second not at all."""
    return jnp.stack([x, jnp.zeros_like(x)])


def units_of_a_flow_posterior():
    """Without the correction for their noise, 1 / num_samples, draws of a dead unit look alive."""
    encode = Partial(lambda x: affine(jv.Normal(one_alive(x), jnp.ones(2))))
    model = jv.VAE(encode, Partial(unit), standard())
    xs = jax.random.normal(key(), (300,))
    threshold = 0.4 * STRETCH[1] ** 2 / 20
    with pytest.raises(
        TypeError, match=r"active_units: give it a key, .*; Transformed has no mean"
    ):
        active_units(model, xs)
    how = {"threshold": threshold, "key": key(1), "num_samples": 20}
    assert active_units(model, xs, **how).tolist() == [True, False]


def units_of_a_hierarchy():
    encode = Partial(
        lambda x: jv.Joint(
            jv.Normal(one_alive(x), jnp.ones(2)), Partial(lambda a: jv.Normal(-a[::-1], 1.0))
        )
    )
    model = jv.VAE(encode, Partial(lambda z: unit(z[0])), standard())
    xs = jax.random.normal(key(), (300,))
    top, low = active_units(model, xs, threshold=0.05, key=key(1), num_samples=20)
    assert top.tolist() == [True, False]
    assert low.tolist() == [False, True]


def the_rate_of_a_full_covariance_taken_apart():
    """Of one x alone q(z) is q(z|x): no information, and a Gaussian's total correlation."""
    tril = jnp.asarray([[1.0, 0.0], [0.6, 0.8]])
    loc = jnp.asarray([0.5, -0.2])
    low_rank = jv.LowRankNormal(loc, jnp.asarray([[0.8], [-0.5]]), jnp.asarray(SCALE))
    for q in (jv.MultivariateNormal(loc, tril), low_rank):
        model = jv.VAE(Partial(lambda q, x: q, q), Partial(unit), standard())

        @jax.jit
        def numbers(model, key, q=q):
            covariance = q.covariance()
            each = jv.Normal(loc, jnp.sqrt(jnp.diagonal(covariance)))
            parts = rate_decomposition(model, key, jnp.zeros((400, 1)))
            return parts, covariance, jv.kl_divergence(each, standard())

        parts, covariance, dimension_wise = numbers(model, key())
        total = 0.5 * np.log(np.prod(np.diag(covariance)) / np.linalg.det(covariance))
        assert close(parts.mutual_information, np.zeros(400))
        assert standard_errors_off(parts.total_correlation, total) < 4
        assert standard_errors_off(parts.dimension_wise_kl, dimension_wise) < 4
    penalty = partial(jv.regularizers.tc_penalty, dataset_size=3)
    model = model._replace(encode=Partial(lambda x: jv.MultivariateNormal(x, tril)))
    objective = jv.batched(partial(regularized, penalty=penalty, kl=jv.sampled_kl))
    bound, terms = jax.jit(objective)(model, key(), jnp.asarray(XS))  # weights 1: the sampled rate
    assert close(bound, -jnp.mean(terms.distortion + terms.rate))


# --- temperature ------------------------------------------------------------------------------


def temperature_of_an_autoregressive_prior():
    walk = jv.Autoregressive(
        Partial(lambda slope, z, _: slope * jnp.append(0.0, z[:-1]), jnp.asarray(0.7)),
        lambda raw: jv.Normal(raw, jnp.ones(3)),
        3,
    )
    z = jnp.asarray([0.3, -0.2, 1.1])
    exact = jv.Normal(0.7 * jnp.append(0.0, z[:-1]), 0.5).log_prob(z)
    at = jax.jit(lambda t: tempered(walk, t).log_prob(z))
    assert close(at(0.5), exact)
    assert close(at(1.0), walk.log_prob(z))
    assert jnp.all(jnp.abs(tempered(walk, 1e-9).sample(key())) < 1e-7)


def temperature_of_a_markov_prior():
    chain = Markov(jv.Normal(0.0, 1.0), Partial(lambda z: jv.Normal(0.7 * z, 1.0)), 3)
    z = jnp.asarray([0.3, -0.2, 1.1])
    exact = jv.Normal(0.7 * jnp.append(0.0, z[:-1]), 0.5).log_prob(z)
    assert close(jax.jit(lambda t: tempered(chain, t).log_prob(z))(0.5), exact)
    model = jv.VAE(Partial(gaussian), Partial(lambda z: jv.Normal(z, 1.0)), chain)
    cold = model._replace(prior=tempered(model.prior, 1e-9))
    assert jnp.all(jnp.abs(jv.mean_of(jv.generate(cold, key()))) < 1e-7)


# --- semi-amortized inference -----------------------------------------------------------------


def conditional(head, in_shape, event_shape, seed=0):
    linear = partial(nn.MLP, hidden=())
    network = nn.Conditional(linear, head, in_shape, event_shape, rngs=nnx.Rngs(seed))
    return jax.tree.map(lambda leaf: leaf.astype(float), network)


# where q is right the gradient of this estimator is 0, without noise
REFINER = optax.adam(optax.cosine_decay_schedule(0.1, 400))
STICKING = {"gradient": jv.sticking_the_landing, "through": False}


def refining_a_ladder():
    """z_2 ~ N(0, 1), z_1 ~ N(z_2, 1), x ~ N(z_1, 1): q becomes the posterior, the bound exact."""
    head = nn.NormalHead()
    model = Ladder(
        up=(Partial(lambda x: x), Partial(jnp.tanh)),
        evidence=(conditional(head, (1,), (1,)), conditional(head, (1,), (1,), 1)),
        top=jv.Normal(jnp.zeros(1), jnp.ones(1)),
        down=(Partial(lambda z: jv.Normal(z, jnp.ones(1))),),
        likelihood=Partial(lambda z: jv.Normal(z, jnp.ones(1))),
    )
    x = jnp.asarray([1.7])
    refined = semi_amortized(jv.iwae, REFINER, num_steps=400, part="evidence", **STICKING)
    bound, log_w = jax.jit(partial(refined, num_samples=200))(model, key(), x)
    exact = jv.Normal(jnp.zeros(1), jnp.sqrt(3.0)).log_prob(x)
    assert abs(bound - exact) < 1e-3
    _, before = jax.jit(partial(jv.iwae, num_samples=200))(model, key(1), x)
    assert jnp.std(log_w) < 2e-3 < 0.1 < jnp.std(before)
    with pytest.raises(TypeError, match=r'model.encode is a method, expected .*; part="evidence"'):
        semi_amortized(jv.elbo, REFINER, num_steps=1)(model, key(2), x)


def refining_experts():
    """One latent, two modalities, of which the second is missing: again the posterior."""
    head = nn.NormalHead()
    emit = Partial(lambda z: jv.Normal(z, jnp.ones(1)))
    experts = conditional(head, (1,), (1,)), conditional(head, (1,), (1,), 1)
    model = Multimodal(experts, (emit, emit), jv.StandardNormal((1,)))
    x = (jnp.asarray([1.7]), jnp.asarray([jnp.nan])), (jnp.asarray(True), jnp.asarray(False))
    refined = semi_amortized(jv.iwae, REFINER, num_steps=400, part="experts", **STICKING)
    bound, log_w = jax.jit(partial(refined, num_samples=20))(model, key(), x)
    exact = jv.Normal(jnp.zeros(1), jnp.sqrt(2.0)).log_prob(x[0][0])
    assert abs(bound - exact) < 1e-3
    assert jnp.std(log_w) < 1e-3
    through = semi_amortized(jv.elbo, optax.sgd(0.1), num_steps=2, part="experts")
    slopes = jax.jit(jax.grad(lambda m: through(m, key(1), x)[0]))(model)
    here, missing = (jax.tree.leaves(expert) for expert in slopes.experts)
    assert any(np.any(leaf) for leaf in here)
    assert not any(np.any(leaf) for leaf in missing)


def refining_choices():
    """p(x) is a sum of 3 terms; the steps take the objective's own estimator, or their own."""
    values = jnp.asarray([-1.0, 0.5, 2.0])
    prior = jv.OneHotCategorical(jnp.log(jnp.asarray([0.2, 0.3, 0.5], float)))
    encode = conditional(nn.OneHotHead(), (), (3,))
    model = jv.VAE(encode, Partial(lambda z: jv.Normal(z @ values, 1.0)), prior)
    x = jnp.asarray(0.9)
    exact = np.log(np.array([0.2, 0.3, 0.5]) @ stats.norm.pdf(0.9, values, 1.0))
    refine = partial(semi_amortized, optimizer=REFINER, num_steps=400, through=False)
    for objective, how in (
        (refine(jv.elbo), {"gradient": jv.enumeration}),
        (refine(partial(jv.elbo, gradient=jv.enumeration)), {}),
    ):
        assert abs(jax.jit(partial(objective, **how))(model, key(), x)[0] - exact) < 1e-4
    evaluate = refine(partial(jv.log_marginal, num_samples=100), gradient=jv.enumeration)
    estimate = jax.jit(evaluate)(model, key(), x)
    assert abs(estimate.value - exact) < 1e-3
    with pytest.raises(TypeError, match="samples of OneHotCategorical have no derivative"):
        refine(partial(jv.log_marginal, num_samples=100))(model, key(1), x)


# --- discrete latents -------------------------------------------------------------------------


def enumerating_a_product():
    """E_q over all 3 * 2^2 * 2 events, by hand."""
    q = jv.Product(
        {
            "a": jv.Categorical(jnp.asarray([0.3, -1.0, 0.2])),
            "b": jv.Bernoulli(jnp.asarray([0.5, -0.4])),
            "c": jv.Product([jv.Categorical(jnp.asarray([0.1, 0.9]))]),
        }
    )

    def term(q, z, log_q):
        a, c = z["a"].astype(float), z["c"][0].astype(float)
        value = (a + 1.0) * (z["b"][0] - 2.0 * z["b"][1]) + 3.0 * c
        return value - log_q, value

    enumerated = jax.jit(lambda q, keys: jv.enumeration(jnp.mean, term, q, keys))
    bound, value = enumerated(q, jax.random.split(key(), 1))
    coin_1, coin_2 = (np.array([1.0 - p, p]) for p in expit([0.5, -0.4]))
    probabilities = [softmax([0.3, -1.0, 0.2]), coin_1, coin_2, softmax([0.1, 0.9])]
    total = mean = 0.0
    for a, b, d, c in product(range(3), range(2), range(2), range(2)):
        p = np.prod([w[i] for w, i in zip(probabilities, (a, b, d, c), strict=True)])
        of = (a + 1.0) * (b - 2.0 * d) + 3.0 * c
        total, mean = total + p * (of - np.log(p)), mean + p * of
    assert close(bound, total)
    assert close(value, [mean])
    with pytest.raises(TypeError, match="Product: Normal has no enumerate_support; add"):
        jv.enumeration(jnp.mean, term, jv.Product([standard()]), jax.random.split(key(), 1))


def relaxing_a_product():
    """As the temperature goes to 0, a relaxed draw is a corner."""
    q = jv.Product([jv.OneHotCategorical(jnp.zeros(3)), jv.Bernoulli(jnp.zeros(2))])
    choice, coins = q.sample_relaxed(key(), 1e-6)
    assert sorted(np.round(choice, 6).tolist()) == [0.0, 0.0, 1.0]
    assert set(np.round(coins, 6).tolist()) <= {0.0, 1.0}


def one_component_of_several_samples():
    """Given the styles drawn, R over all pairs of choices by hand; sampled, it is that in mean."""
    logits, values = jnp.asarray([0.3, -1.0, 0.2]), jnp.asarray([1.0, -2.0, 0.5])

    def bound(logits, key, estimator):
        style = jv.Normal(jnp.zeros(()), 1.0)
        q = jv.Product({"choice": jv.OneHotCategorical(logits), "style": style})
        term = lambda q, z, log_q: (z["choice"] @ values * z["style"], z["style"])
        gradient = jv.gradients.for_component("choice", estimator)
        return gradient(jv.bounds.log_mean_exp, term, q, jax.random.split(key, 2))

    found, styles = jax.jit(partial(bound, estimator=jv.enumeration))(logits, key())
    pairs = np.exp(np.asarray(values)[:, None] * np.asarray(styles))  # [choice, sample]
    p = softmax(logits)
    by_hand = np.log(0.5 * (pairs[:, None, 0] + pairs[None, :, 1]))
    assert close(found, p @ by_hand @ p)

    def of(key, estimator):
        return jax.value_and_grad(lambda logits: bound(logits, key, estimator)[0])(logits)

    def both(key):
        return of(key, jv.enumeration), of(jax.random.clone(key), jv.score_function)

    (exact, slope), (sampled, noisy) = jax.jit(jax.vmap(both))(jax.random.split(key(1), 4000))
    assert standard_errors_off(sampled - exact, 0.0) < 4
    assert standard_errors_off(noisy - slope, jnp.zeros(3)) < 4
    with pytest.raises(ValueError, match="num_samples is 2, expected 1 for doubly_reparam"):
        bound(logits, key(2), jv.doubly_reparameterized)


# --- the aggregate posterior, and a stock network ---------------------------------------------


class Pair:
    """Two layers: a draw is the flat one's, cut in two."""

    def sample(self, key):
        z = jax.random.normal(key, (3,))
        return z[:1], z[1:]


class Flat:
    def sample(self, key):
        return ravel_pytree(Pair().sample(key))[0]


def wasserstein_autoencoder_of_a_hierarchy():
    """The codes of all layers are one vector."""
    zs, keys = jax.random.normal(key(), (5, 3)), jax.random.split(key(1), 5)
    of = lambda p, z, key: jv.regularizers.mmd_penalty(CODE(None, p, z, None, 0.0), key)

    @jax.jit
    def both(zs, keys):
        pairs = jax.vmap(lambda z, k: of(Pair(), (z[:1], z[1:]), k), axis_name="batch")
        flat = jax.vmap(lambda z, k: of(Flat(), z, k), axis_name="batch")
        return pairs(zs, keys), flat(zs, jax.random.clone(keys))

    assert close(*both(zs, keys))
    prior = jv.Joint(standard(), Partial(unit))
    model = jv.VAE(Partial(two_levels), Partial(lambda z: unit(z[1])), prior)
    objective = jv.batched(partial(regularized, penalty=jv.regularizers.mmd_penalty))
    assert np.isfinite(jax.jit(objective)(model, key(3), jnp.asarray(XS))[0])


def a_stock_equinox_network():
    """It is taken and trained as it is, and the same as its arrays alone."""
    mlp = equinox.nn.MLP(2, 4, 3, depth=1, key=key())
    as_normal = lambda raw: jv.Normal(raw[:2], jnp.exp(raw[2:]))
    model = jv.VAE(Partial(lambda net, x: as_normal(net(x)), mlp), Partial(unit), standard())
    arrays, rest = equinox.partition(mlp, equinox.is_inexact_array)
    cut = Partial(lambda a, x: as_normal(equinox.combine(a, rest)(x)), arrays)
    x = jnp.asarray(XS[0])
    bound, _ = jv.elbo(model, key(1), x)
    assert close(bound, jax.jit(jv.elbo)(model._replace(encode=cut), key(1), x)[0])
    step = jax.jit(jv.train_step(jv.elbo, optax.sgd(0.1)))
    whole, parts = (
        step(jv.init_state(m, optax.sgd(0.1)), key(2), jnp.asarray(XS))[0]
        for m in (model, model._replace(encode=cut))
    )
    assert close(*(state.model.encode(x).loc for state in (whole, parts)))


def hamiltonian_flow_of_another_librarys():
    """x guides the posterior, so its shape is looked at there too."""
    start = lambda x: nd.Normal(x, jnp.ones(2)).to_event(1)
    emit = Partial(lambda z: nd.Normal(z, jnp.ones(2)).to_event(1))
    steps = jnp.full((2, 2), -2.0)
    model = jv.models.HamiltonianVAE(Partial(start), emit, standard(), steps, jnp.zeros(()))
    assert np.isfinite(jax.jit(jv.elbo)(model, key(), jnp.asarray(XS[0]))[0])
    model = model._replace(start=Partial(lambda x: standard()))
    with pytest.raises(ValueError, match=r"expected \(2,\) as draws of likelihood\(z\) have"):
        model.encode(jnp.ones((5, 1))).sample(key(1))


MEETINGS = [
    free_bits_of_a_flow_posterior,
    free_bits_of_a_flow_prior,
    free_bits_of_a_mixture_prior,
    free_bits_of_a_vamp_prior,
    free_bits_of_levels_with_a_flow,
    free_bits_of_latents_that_stick_the_landing,
    units_of_a_flow_posterior,
    units_of_a_hierarchy,
    the_rate_of_a_full_covariance_taken_apart,
    temperature_of_an_autoregressive_prior,
    temperature_of_a_markov_prior,
    refining_a_ladder,
    refining_experts,
    refining_choices,
    enumerating_a_product,
    relaxing_a_product,
    one_component_of_several_samples,
    wasserstein_autoencoder_of_a_hierarchy,
    a_stock_equinox_network,
    hamiltonian_flow_of_another_librarys,
]


LONG = (refining_a_ladder, refining_experts, refining_choices, one_component_of_several_samples)


@pytest.mark.parametrize(
    "meeting",
    [pytest.param(m, marks=pytest.mark.thorough if m in LONG else ()) for m in MEETINGS],
    ids=lambda meeting: meeting.__name__,
)
def test_meeting(meeting, x64):
    meeting()
