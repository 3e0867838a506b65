"""Other libraries' distributions as prior, posterior and likelihood, against ours."""

from functools import cache, partial
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import optax
import pytest
import tensorflow_probability.substrates.jax.distributions as tfd
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.checks import a_class_of
from jaxvae.protocols import mean_of
from tests.common import close, draws, standard_errors_off

LOC, SCALE = np.array([0.3, -1.0]), np.array([0.5, 2.0])


def key(seed=0):
    return jax.random.key(seed)


class Library(NamedTuple):
    """Its Normal of one event with independent coordinates, and its Bernoulli."""

    normal: Any
    bernoulli: Any


OURS = Library(jv.Normal, jv.Bernoulli)
LIBRARIES = {
    "numpyro as it is": Library(
        lambda loc, scale: nd.Normal(loc, scale).to_event(1),
        lambda logits: nd.Bernoulli(logits=logits).to_event(1),
    ),
    "numpyro": Library(
        lambda loc, scale: jv.distributions.adapt(nd.Normal(loc, scale)),
        lambda logits: jv.distributions.adapt(nd.Bernoulli(logits=logits)),
    ),
    "distrax": Library(
        lambda loc, scale: jv.distributions.adapt(distrax.Normal(loc, scale)),
        lambda logits: jv.distributions.adapt(distrax.Bernoulli(logits)),
    ),
    "tfp": Library(
        lambda loc, scale: jv.distributions.adapt(tfd.Normal(loc, scale)),
        lambda logits: jv.distributions.adapt(tfd.Independent(tfd.Bernoulli(logits), 1)),
    ),
}
libraries = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES.keys())
ROLES = {
    "prior": ("prior",),
    "posterior": ("encode",),
    "likelihood": ("decode",),
    "all three": ("prior", "encode", "decode"),
}
roles = pytest.mark.parametrize("foreign", ROLES.values(), ids=ROLES.keys())
X = [0.0, 1.0, 1.0]  # no array: jit in float64 would leave it one for the float32 tests


@pytest.fixture
def lenient():
    """JAX's default promotion, which numpyro used as it is needs: it adds Booleans to floats."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def make_vae(library=OURS, foreign=()):
    """A linear VAE of binary data; the parts named in `foreign` are the library's."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(2, 3)))
    normal = {part: (library if part in foreign else OURS).normal for part in ("prior", "encode")}
    bernoulli = (library if "decode" in foreign else OURS).bernoulli
    return jv.VAE(
        encode=Partial(
            lambda w, x: normal["encode"](w["loc"] @ x, jnp.exp(w["log_scale"])),
            {"loc": weight, "log_scale": jnp.array([-0.3, 0.1])},
        ),
        decode=Partial(lambda w, z: bernoulli(w @ z), weight.T),
        prior=normal["prior"](jnp.array(LOC), jnp.array(SCALE)),
    )


# A normal draw is loc + scale * eps of the same key in every one of these libraries, so numbers are
# equal, not just close in the mean. The rate is sampled, as no closed form is known for a stranger.


def bounds(model):
    """Bounds of a model under both sampled KLs, and the gradients in its encoder and decoder."""

    def f(model):
        bound, terms = jv.elbo(model, key(0), jnp.array(X), kl=jv.sampled_kl)
        sticking, _ = jv.elbo(model, key(1), jnp.array(X), gradient=jv.sticking_the_landing)
        tight, log_w = jv.iwae(model, key(2), jnp.array(X), num_samples=5)
        return bound + 2 * sticking + 3 * tight, (bound, terms, sticking, tight, log_w)

    gradient, values = jax.grad(f, has_aux=True)(model)
    return values, gradient.encode, gradient.decode


def evaluations(model):
    """An estimate of log p(x) and its error, a reconstruction and a new example."""
    estimate = jv.log_marginal(model, key(3), jnp.array(X), num_samples=7, chunk=3)
    new = jv.reconstruct(model, key(4), jnp.array(X)), jv.generate(model, key(5))
    estimate = estimate._replace(rate=None)  # in closed form, or of a draw
    return estimate, [d.log_prob(jnp.array(X)) for d in new]


@cache
def our(numbers):
    """In float64, as the tests that ask."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(numbers)(make_vae()))]


SWAPS = [(name, "all three") for name in LIBRARIES]
SWAPS += [  # each of the three alone
    pytest.param("numpyro as it is", role, marks=pytest.mark.slow)
    for role in ROLES
    if role != "all three"
]


@pytest.mark.thorough
@pytest.mark.parametrize(("library", "role"), SWAPS)
def test_bounds_are_ours(library, role, x64, lenient):
    """elbo, iwae and their gradients, compiled: equal to 1e-10."""
    theirs = jax.tree.leaves(jax.jit(bounds)(make_vae(LIBRARIES[library], ROLES[role])))
    for a, b in zip(theirs, our(bounds), strict=True):
        assert a.shape == b.shape
        assert close(a, b)


@pytest.mark.thorough
@libraries
def test_evaluations_are_ours(library, x64, lenient):
    """log_marginal, reconstruct and generate, all three roles foreign: equal to 1e-10."""
    theirs = jax.tree.leaves(jax.jit(evaluations)(make_vae(library, ROLES["all three"])))
    for a, b in zip(theirs, our(evaluations), strict=True):
        assert a.shape == b.shape
        assert close(a, b)


@libraries
def test_auto_kl_samples_a_stranger(library, lenient):
    """The default rate needs no closed form: a swap never means editing the objective."""
    ours = jv.Normal(jnp.array(LOC), jnp.array(SCALE))
    theirs = library.normal(np.zeros(2, "f"), np.ones(2, "f"))

    @jax.jit
    def both(key):
        rates = []
        for q, p, k in ((ours, theirs, key), (theirs, ours, jax.random.clone(key))):
            z, log_q = jv.sample_and_log_prob(q, k)
            rates.append((jv.auto_kl(q, p, z, log_q), jv.sampled_kl(q, p, z, log_q)))
            with pytest.raises(NotImplementedError, match="sampled_kl"):
                jv.analytic_kl(q, p, z, log_q)
        return rates

    for auto, sampled in both(key()):
        assert auto == sampled


@pytest.mark.thorough
@libraries
def test_gradients_in_the_parameters(library, x64):
    """d log_prob and d sample in loc and scale, made inside: those of our Normal."""

    def gradient(normal):
        def f(loc, scale):
            d = normal(loc, scale)
            z, log_p = jv.sample_and_log_prob(d, key())
            return jnp.sum(jnp.sin(z)) + log_p + d.log_prob(jnp.zeros(2))

        return jax.jit(jax.grad(f, (0, 1)))(jnp.array(LOC), jnp.array(SCALE))

    for a, b in zip(gradient(library.normal), gradient(jv.Normal), strict=True):
        assert close(a, b)


@pytest.mark.thorough
@libraries
def test_batches_and_sweeps(library, x64, lenient):
    """batched over examples and vmap over models: the loop's numbers, with all three foreign."""
    model = make_vae(library, ROLES["all three"])
    xs = jnp.stack([jnp.array(X), 1.0 - jnp.array(X)])
    objective = jax.jit(partial(jv.elbo, kl=jv.sampled_kl))
    bound, terms = jv.batched(objective)(model, key(), xs)
    looped = [
        objective(model, k, x)[0] for k, x in zip(jax.random.split(key(), 2), xs, strict=True)
    ]
    assert close(bound, (looped[0] + looped[1]) / 2)
    assert terms.rate.shape == (2,)
    halved = jax.tree.map(lambda leaf: leaf / 2, model)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, halved)
    mapped = jax.vmap(lambda model: objective(model, key(), xs[0])[0])(stack)
    looped = [objective(m, key(), xs[0])[0] for m in (model, halved)]
    assert close(mapped, jnp.stack(looped))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["numpyro as it is", "tfp"])
def test_a_foreign_prior_trains(name, lenient):
    """Its arrays are leaves: a few steps of Adam move it, with finite losses; Constant holds it."""
    model, optimizer = make_vae(LIBRARIES[name], ("prior",)), optax.adam(0.05)
    xs = jnp.stack(8 * [jnp.array(X)])
    step = jax.jit(jv.train_step(jv.elbo, optimizer))
    moving = jv.init_state(model, optimizer)
    fixed = jv.init_state(model._replace(prior=jv.Constant(model.prior)), optimizer)
    for _ in range(3):
        moving, metrics = step(moving, key(), xs)
        fixed, _ = step(fixed, key(), xs)
        assert np.isfinite(metrics["loss"])
    after, before = jax.tree.leaves(moving.model.prior), jax.tree.leaves(model.prior)
    assert all(not np.allclose(a, b) for a, b in zip(after, before, strict=True))
    assert fixed.model.prior == jv.Constant(model.prior)


# The adapter

FOREIGN = {
    "numpyro normal": (nd.Normal, jv.Normal),
    "numpyro laplace": (nd.Laplace, jv.Laplace),
    "numpyro multivariate": (
        lambda m, s: nd.MultivariateNormal(m, scale_tril=jnp.diag(s)),
        jv.Normal,
    ),
    "numpyro bernoulli": (lambda m, s: nd.Bernoulli(logits=m), lambda m, s: jv.Bernoulli(m)),
    "distrax independent": (lambda m, s: distrax.Independent(distrax.Normal(m, s), 1), jv.Normal),
    "distrax laplace": (distrax.Laplace, jv.Laplace),
    "distrax bernoulli": (lambda m, s: distrax.Bernoulli(m), lambda m, s: jv.Bernoulli(m)),
    "tfp normal": (tfd.Normal, jv.Normal),
    "tfp laplace": (tfd.Laplace, jv.Laplace),
    "tfp diagonal": (tfd.MultivariateNormalDiag, jv.Normal),
}
strangers = pytest.mark.parametrize(("theirs", "ours"), FOREIGN.values(), ids=FOREIGN.keys())


def pair(theirs, ours):
    loc, scale = jnp.array(LOC, jnp.float32), jnp.array(SCALE, jnp.float32)
    return jv.distributions.adapt(theirs(loc, scale)), ours(loc, scale)


def an_event(d):
    return jnp.array([0.0, 1.0]) if isinstance(d, jv.Bernoulli) else jnp.array([0.7, -0.2])


@pytest.mark.thorough
@strangers
def test_adapted_is_a_distribution_of_one_event(theirs, ours):
    """log_prob is a scalar, summed over the foreign batch; mean a method; one pass one draw."""
    adapted, exact = pair(theirs, ours)
    event = an_event(exact)
    assert isinstance(adapted, jv.Distribution)

    @jax.jit
    def numbers(d):
        z, log_p = jv.sample_and_log_prob(d, key())
        again = d.sample(key()), d.log_prob(z)
        return d.log_prob(event), d.mean(), (z, log_p), again, (exact.log_prob(event), exact.mean())

    score, mean, drawn, again, ours_found = numbers(adapted)
    assert score.shape == ()
    assert close(score, ours_found[0])
    assert close(mean, ours_found[1])
    assert np.array_equal(drawn[0], again[0])
    assert drawn[0].shape == (2,)
    assert close(drawn[1], again[1])


@pytest.mark.thorough
@strangers
def test_adapted_draws_have_the_moments(theirs, ours):
    """The key arrives: 5,000 draws have the exact mean within four standard errors."""
    adapted, exact = pair(theirs, ours)
    z = draws(lambda k: adapted.sample(k).astype(jnp.float32), 5_000)
    assert standard_errors_off(z, exact.mean()) < 4


@pytest.mark.thorough
@strangers
def test_adapted_is_a_pytree(theirs, ours):
    """It goes in and out of jit, is mapped over, and has gradients in its leaves."""
    adapted, exact = pair(theirs, ours)
    event = an_event(exact)
    score = lambda d: d.log_prob(event)
    assert len(jax.tree.leaves(adapted)) >= 1

    @jax.jit
    def numbers(d, stack, m, s):
        made = jv.distributions.adapt(theirs(m, s))
        value, gradient = jax.value_and_grad(score)(d)
        values = [value, score(made), *jax.vmap(score)(stack)]
        return d, gradient, jnp.stack(values), exact.log_prob(event)

    stack = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), adapted)
    again, gradient, values, value = numbers(adapted, stack, LOC.astype("f"), SCALE.astype("f"))
    assert type(again) is type(adapted)
    assert close(values, np.full(4, value))
    assert type(gradient) is type(adapted)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@strangers
def test_stop_gradient_stops_it(theirs, ours):
    """What sticking_the_landing asks of a posterior: stop_gradient on the whole stops every
    parameter.
    """

    def score(m, s):
        d = jax.lax.stop_gradient(jv.distributions.adapt(theirs(m, s)))
        return d.log_prob(an_event(ours(m, s)))

    for gradient in jax.jit(jax.grad(score, (0, 1)))(LOC.astype("f"), SCALE.astype("f")):
        assert np.array_equal(gradient, np.zeros(2))


@strangers
def test_adapted_never_broadcasts(theirs, ours):
    """An event of another shape is an error that names both, as it is for ours."""
    adapted, _ = pair(theirs, ours)
    for wrong in (jnp.zeros(()), jnp.zeros(1), jnp.zeros((2, 2)), jnp.zeros((1, 2))):
        with pytest.raises(ValueError, match="log_prob") as error:
            adapted.log_prob(wrong)
        assert str(wrong.shape) in str(error.value)
        assert "(2,)" in str(error.value)


@strangers
def test_adapted_code_keeps_its_own_rules(theirs, ours):
    """Other libraries broadcast and promote inside, whatever the caller forbids."""
    adapted, _ = pair(theirs, ours)

    def numbers(key):
        z, log_p = jv.sample_and_log_prob(adapted, key)
        with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
            _ = z + jnp.ones((2, 2), z.dtype)
        return z, log_p, adapted.mean()

    assert [a.shape for a in jax.eval_shape(numbers, key())] == [(2,), (), (2,)]


def test_discrete_events():
    """Categorical events of integers, scored as ours; TFP's Bernoulli draws integers too."""
    logits, event = jnp.array([[0.2, -0.3, 0.5], [1.0, 0.0, -1.0]]), jnp.array([2, 0])

    @jax.jit
    def scores(logits):
        strangers = [
            nd.Categorical(logits=logits),
            tfd.Categorical(logits),
            distrax.Categorical(logits),
        ]
        return jnp.stack([jv.distributions.adapt(d).log_prob(event) for d in strangers])

    assert close(scores(logits), jnp.full(3, jv.Categorical(logits).log_prob(event)))
    coins = jv.distributions.adapt(tfd.Bernoulli(logits[0]))
    exact = jv.Bernoulli(logits[0]).log_prob(jnp.array([1.0, 0.0, 1.0]))
    assert close(jax.jit(coins.log_prob)(jnp.array([1, 0, 1])), exact)


# Errors


@pytest.mark.parametrize("thing", [jnp.zeros(2), None, 3.0, lambda z: z, optax.adam(1e-3)])
def test_adapt_names_what_is_no_distribution(thing):
    """TypeError with the type it got."""
    what = a_class_of(thing)
    with pytest.raises(TypeError, match=f"adapt: distribution is {what}, expected an object"):
        jv.distributions.adapt(thing)


@roles
@pytest.mark.parametrize(
    "objective",
    [jv.elbo, partial(jv.iwae, num_samples=3), partial(jv.log_marginal, num_samples=3)],
    ids=["elbo", "iwae", "log_marginal"],
)
def test_numpyro_without_to_event_is_an_error(foreign, objective, lenient):
    """Its log_prob is a vector, one for each coordinate: the message tells the way out."""
    bare = Library(nd.Normal, lambda logits: nd.Bernoulli(logits=logits))
    model, x = make_vae(bare, foreign), jnp.array(X)
    with pytest.raises(
        ValueError, match=r"log_prob has shape \([23],\), expected a scalar"
    ) as error:
        jax.eval_shape(objective, model, key(), x)
    assert "to_event" in str(error.value)
    assert "jaxvae.distributions.adapt" in str(error.value)


def test_to_event_and_adapt_are_the_way_out():
    """Both give the same number where the bare one is an error."""
    bare = nd.Normal(jnp.array(LOC, jnp.float32), jnp.array(SCALE, jnp.float32))
    with pytest.raises(ValueError, match="to_event"):
        jv.sample_and_log_prob(bare, key())
    one, other = (
        jv.sample_and_log_prob(bare.to_event(1), key()),
        jv.sample_and_log_prob(jv.distributions.adapt(bare), key()),
    )
    assert all(close(a, b) for a, b in zip(one, other, strict=True))


HALF = jnp.zeros(2)
WITHOUT_PATH = {
    "distrax mixture": lambda: distrax.MixtureSameFamily(
        distrax.Categorical(HALF), distrax.Normal(HALF, jnp.ones(2))
    ),
    "distrax mixture within": lambda: distrax.Transformed(
        distrax.MixtureOfTwo(0.5, distrax.Normal(0.0, 1.0), distrax.Normal(1.0, 1.0)),
        distrax.Tanh(),
    ),
    "distrax coins as floats": lambda: distrax.Independent(
        distrax.Bernoulli(HALF, dtype=jnp.float32), 1
    ),
    "distrax one-hot": lambda: distrax.OneHotCategorical(HALF, dtype=jnp.float32),
    "tfp joint with coins": lambda: tfd.JointDistributionSequential(
        [tfd.Normal(0.0, 1.0), tfd.Bernoulli(probs=0.5, dtype=jnp.float32)]
    ),
}
WITH_PATH = {
    "distrax": lambda: distrax.Transformed(
        distrax.Independent(distrax.Normal(HALF, jnp.ones(2)), 1), distrax.Block(distrax.Tanh(), 1)
    ),
    "distrax joint": lambda: distrax.Joint([distrax.Normal(0.0, 1.0), distrax.Laplace(0.0, 1.0)]),
    "tfp joint": lambda: tfd.JointDistributionSequential(
        [tfd.Normal(0.0, 1.0), tfd.Laplace(0.0, 1.0)]
    ),
}


@pytest.mark.parametrize("name", [*WITHOUT_PATH, *WITH_PATH])
def test_a_draw_by_a_choice_has_no_path(name, lenient):
    """Its pathwise gradient would lack what the choice depends on, in silence."""
    make = (WITHOUT_PATH | WITH_PATH)[name]
    assert jv.distributions.adapt(make()).reparameterized is (name in WITH_PATH)


def test_labels_of_numpyro_have_no_mean():
    """Its own is NaN."""
    one: Any = nd.Categorical(logits=HALF)
    several: Any = nd.Categorical(logits=jnp.zeros((3, 4)))
    for labels in (one, several.to_event(1)):
        for d in (labels, jv.distributions.adapt(labels)):
            with pytest.raises(TypeError, match=r"Categorical.* has no mean"):
                mean_of(d)
