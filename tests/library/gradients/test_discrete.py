"""Estimators through discrete samples and with control variates, against enumeration.

z is two choices of 3, or three coins; p(x|z) = N(f(z), 1) with f bent or quadratic, so that what is
exact for a quadratic term shows. Gradients are in the logits of q.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.gradients import gumbel_rao, rebar, reinmax, relax
from jaxvae.gradients.relaxed import log_choices, perturbed
from jaxvae.protocols import log_density_relaxed
from tests.common import close, draws, standard_errors_off

LOGITS = {
    jv.OneHotCategorical: jnp.array([[0.0, 0.4, -0.6], [0.3, -0.5, 0.1]]),
    jv.Bernoulli: jnp.array([0.4, -0.3, 1.0]),
}
FAMILIES = list(LOGITS)
SAMPLED = ["reinmax", "gumbel_rao"]
X = 1.0


def bent(w, z):
    return jnp.sum(jnp.sin(w * z.ravel()) + jnp.prod(1.0 + w[: z.size] * z.ravel()))


def linear(w, z):
    return jnp.sum(w * z.ravel())


def model(family, logits, w=None, f=bent):
    """p(x|z) = N(f(z), 1): its logarithm is quadratic in z where f is linear."""
    w = jnp.linspace(-0.7, 1.1, LOGITS[family].size, dtype=logits.dtype) if w is None else w
    return jv.VAE(
        encode=Partial(lambda q, x: family(q), logits),
        decode=Partial(lambda w, z: jv.Normal(f(w, z), jnp.ones((), z.dtype)), w),
        prior=family(0.2 * jnp.ones_like(logits)),
    )


def slope(objective, family, logits, key, **hyper):
    return jax.grad(lambda l: objective(model(family, l, **hyper), key, X)[0])(logits)


def exact(family, num_samples=None, f=bent):
    of = jv.elbo if num_samples is None else partial(jv.iwae, num_samples=num_samples)
    key = jax.random.key(0)
    return slope(partial(of, gradient=jv.enumeration), family, LOGITS[family], key, f=f)


def estimator(name):
    return {
        "reinmax": reinmax,
        "gumbel_rao": partial(gumbel_rao, temperature=0.7, num_draws=4),
        "rebar": partial(rebar, scale=0.7, temperature=0.6),
        "relax": partial(relax, control=quadratic_control),
    }[name]


def quadratic_control(f, y):
    return 0.8 * f(jax.nn.softmax(y / 0.6)) + 0.1 * jnp.sum(y**2)


@pytest.mark.parametrize(
    ("family", "name", "k"),
    [
        (jv.OneHotCategorical, "rebar", None),
        *(pytest.param(jv.Bernoulli, "rebar", k, marks=pytest.mark.thorough) for k in (None, 2)),
        *(pytest.param(f, "relax", 2, marks=pytest.mark.thorough) for f in FAMILIES),
    ],
)
def test_control_variates_have_the_mean_of_enumeration(family, name, k):
    """The bound and its gradient, of the ELBO and of IWAE_2; quieter than the bare score."""
    of = jv.elbo if k is None else partial(jv.iwae, num_samples=k)

    def both(gradient, key):
        objective = partial(of, gradient=gradient)
        bound = lambda l: objective(model(family, l), key, X)[0]
        return jax.value_and_grad(bound)(LOGITS[family])

    value, d = draws(partial(both, estimator(name)), 30_000)
    bound = partial(of, gradient=jv.enumeration)(
        model(family, LOGITS[family]), jax.random.key(0), X
    )
    assert standard_errors_off(value, bound[0]) < 4
    assert standard_errors_off(d, np.asarray(exact(family, k))) < 4
    _, bare = draws(partial(both, jv.score_function), 30_000)
    assert jnp.sum(jnp.var(d, 0)) < 0.6 * jnp.sum(jnp.var(bare, 0))


@pytest.mark.parametrize(
    "gradient", ["rebar", *(pytest.param(n, marks=pytest.mark.thorough) for n in SAMPLED)]
)
def test_the_decoder_learns_as_at_fixed_samples(gradient, x64):
    """The decoder's gradient is that at the sample that was drawn: no control variate leaks in."""
    family, key = jv.OneHotCategorical, jax.random.key(3)
    logits = LOGITS[family].astype(float)
    w = jnp.linspace(-0.7, 1.1, 6)
    found = []

    def objective(w):
        def decode(w, z):
            jax.debug.callback(lambda z: found.append(z), z)
            return jv.Normal(bent(w, z), jnp.ones(()))

        m = model(family, logits)._replace(decode=Partial(decode, w))
        return jv.elbo(m, key, X, gradient=estimator(gradient))[0]

    d = jax.grad(objective)(w)
    jax.effects_barrier()
    corners = [z for z in found if np.isin(np.asarray(z), (0.0, 1.0)).all()]
    assert corners
    at = lambda w: jv.Normal(bent(w, jnp.asarray(corners[0])), jnp.ones(())).log_prob(X)
    assert close(d, jax.grad(at)(w))


@pytest.mark.thorough
def test_rebar_at_scale_0_is_the_score_function():
    family = jv.OneHotCategorical

    def of(gradient, seed):
        objective = partial(jv.elbo, gradient=gradient)
        return draws(partial(slope, objective, family, LOGITS[family]), 30_000, seed)

    none = of(partial(rebar, scale=0.0, temperature=0.5), 0)
    bare = of(jv.score_function, 1)
    assert standard_errors_off(none - bare, 0.0) < 4
    assert np.allclose(jnp.std(none, 0), jnp.std(bare, 0), rtol=0.05)


@pytest.mark.thorough
def test_the_control_learns_to_lower_the_variance(x64):
    """The gradient of the scale and the temperature is that of -Var(g) / 2, and descends it."""
    family = jv.OneHotCategorical
    logits = LOGITS[family].astype(float)

    def objective(scale, log_temperature, l, key):
        gradient = partial(rebar, scale=scale, temperature=jnp.exp(log_temperature))
        return jv.elbo(model(family, l), key, X, gradient=gradient)[0]

    at = jnp.array([0.3, 0.0])

    def noise(at, key):
        g = jax.grad(objective, 2)(*at, logits, key)
        return -0.5 * jnp.sum(g**2)

    learns = jax.jit(jax.grad(objective, (0, 1)))(*at, logits, jax.random.key(5))
    h = 1e-5 * jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
    at_h = jax.jit(jax.vmap(lambda h: noise(at + h, jax.random.key(5))))(h)
    assert np.allclose(jnp.stack(learns), (at_h[:2] - at_h[2:]) / 2e-5, rtol=1e-6)

    # and 60 steps of it make the gradient quieter
    each = jax.vmap(jax.grad(objective, (0, 1)), (None, None, None, 0))

    def step(at, key):
        d = jnp.mean(jnp.stack(each(*at, logits, jax.random.split(key, 64)), -1), 0)
        return at + 0.02 * d / jnp.linalg.norm(d), None

    keys = jax.random.split(jax.random.key(6), 60)
    after, _ = jax.jit(partial(jax.lax.scan, step))(at, keys)
    quieter = [jnp.mean(draws(partial(noise, a), 10_000, 7)) for a in (at, after)]
    assert quieter[1] > 0.9 * quieter[0]  # both negative: at least a tenth less


def test_a_control_trains_as_a_field_of_the_model():
    class Model(NamedTuple):
        encode: Any
        decode: Any
        prior: Any
        r: Any

    def objective(m, key, x):
        control = lambda f, y: f(jax.nn.softmax(y)) + m.r(y)
        return jv.elbo(m, key, x, gradient=partial(relax, control=control))

    family = jv.OneHotCategorical
    r = Partial(lambda w, y: jnp.sum(w * y), jnp.full((2, 3), 0.1))
    m = Model(*model(family, LOGITS[family]), r)
    d = jax.jit(jax.grad(lambda m: objective(m, jax.random.key(0), X)[0]))(m)
    assert all(bool(jnp.any(a != 0)) for a in jax.tree.leaves(d.r))


def of_outcomes(gradient, family, f):
    """sum_z q(z) g(z): g is a function of the sample alone: one key of each outcome is enough."""
    logits = LOGITS[family].astype(float)

    def one(key):
        def bound(l):
            m = model(family, l, f=f)

            def term(q, z, log_q):
                return m.decode(z).log_prob(X) + log_density_relaxed(m.prior, z) - log_q, z

            value, z = gradient(jnp.mean, term, family(l), key[None])
            return value, z[0]

        return jax.grad(bound, has_aux=True)(logits)

    d, z = draws(one, 2000)
    support = family(logits).enumerate_support()
    first = jax.vmap(lambda s: jnp.argmax(jnp.all(z == s[None], axis=tuple(range(1, z.ndim)))))(
        support
    )
    assert (z[first] == support).all()
    return jnp.tensordot(jnp.exp(jax.vmap(family(logits).log_prob)(support)), d[first], 1)


@pytest.mark.parametrize(
    "family", [FAMILIES[0], pytest.param(FAMILIES[1], marks=pytest.mark.thorough)]
)
def test_reinmax_is_exact_where_the_term_is_quadratic(family, x64):
    """In mean, as Heun's method is, where straight through is off; of a bent term both are."""
    logits = LOGITS[family].astype(float)

    def truth(f):
        objective = partial(jv.elbo, gradient=jv.enumeration)
        return slope(objective, family, logits, jax.random.key(0), f=f)

    assert close(of_outcomes(reinmax, family, linear), truth(linear))
    errors = [
        jnp.linalg.norm(of_outcomes(g, family, f) - truth(f))
        for f in (linear, bent)
        for g in (reinmax, jv.straight_through)
    ]
    assert errors[0] < 1e-10 < 0.01 < errors[1]
    assert errors[2] > 0.01


def straight_through_gumbel(t):
    """By hand: a hard sample forwards, softmax((log p + G) / t) backwards."""

    def gradient(reduction, term, q, keys):
        log_p, event = log_choices("test", q)
        y = log_p + jax.random.gumbel(keys[0], log_p.shape)
        soft = jax.nn.softmax(y / t)
        hard = jax.nn.one_hot(jnp.argmax(y, -1), y.shape[-1])
        z = event(jax.lax.stop_gradient(hard - soft) + soft)
        l, aux = term(q, z, log_density_relaxed(q, z))
        return l, jax.tree.map(lambda a: a[None], aux)

    return gradient


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_softmax_and_less_variance(family):
    t = 0.3

    def of(gradient, seed):
        objective = partial(jv.elbo, gradient=gradient)
        return draws(partial(slope, objective, family, LOGITS[family]), 40_000, seed)

    plain = of(straight_through_gumbel(t), 0)
    one, many = (of(partial(gumbel_rao, temperature=t, num_draws=m), m) for m in (1, 16))
    assert standard_errors_off(plain - one, 0.0) < 4
    assert standard_errors_off(plain - many, 0.0) < 4
    var = [float(jnp.sum(jnp.var(d, 0))) for d in (plain, one, many)]
    assert abs(var[1] / var[0] - 1.0) < 0.1
    assert var[2] < 0.8 * var[0]


def test_noise_given_the_choice_is_that_of_those_whose_largest_it_is():
    """Drawn with its own choice it has the law of plain noise, and the largest is a Gumbel."""
    log_p = jax.nn.log_softmax(LOGITS[jv.OneHotCategorical][0])

    def given(key):
        choice, noise = jax.random.split(key)
        i = jax.random.categorical(choice, log_p)
        return i, perturbed(jax.random.gumbel(noise, (3,)), log_p, jax.nn.one_hot(i, 3))

    i, y = draws(given, 50_000)
    assert (jnp.argmax(y, -1) == i).all()
    gumbel = np.euler_gamma
    assert standard_errors_off(jnp.max(y, -1), gumbel) < 4
    assert standard_errors_off((jnp.max(y, -1) - gumbel) ** 2, np.pi**2 / 6) < 4
    centred = y - log_p[None] - gumbel
    assert standard_errors_off(centred, np.zeros(3)) < 4
    products = centred[:, :, None] * centred[:, None]
    assert standard_errors_off(products, np.pi**2 / 6 * np.eye(3)) < 4


@pytest.mark.parametrize(
    "name", ["rebar", *(pytest.param(n, marks=pytest.mark.thorough) for n in SAMPLED)]
)
def test_the_value_is_the_bound_at_samples_and_an_excluded_choice_is_no_nan(name):
    gradient = estimator(name)
    l = LOGITS[jv.OneHotCategorical].at[0, 1].set(-jnp.inf)

    def both(key):
        def bound(l):
            m = model(jv.OneHotCategorical, l)
            return jv.elbo(m, key, X, gradient=gradient)

        return jax.value_and_grad(bound, has_aux=True)(l)

    (value, terms), d = draws(both, 200)
    assert jnp.isfinite(d).all()
    assert close(value, -(terms.distortion + terms.rate))
    corners = jv.OneHotCategorical(l).enumerate_support()
    m = model(jv.OneHotCategorical, l)
    possible = -jax.vmap(lambda z: m.decode(z).log_prob(X))(corners)
    assert jnp.min(jnp.abs(terms.distortion[:, None] - possible[None]), axis=1).max() < 1e-5


def test_a_posterior_without_choices_is_told_what_to_do():
    q = jv.Normal(jnp.zeros(2), 1.0)
    term = lambda q, z, log_q: (log_q, None)
    for name in ("reinmax", "gumbel_rao", "rebar", "relax"):
        with pytest.raises(TypeError, match=r"Normal has no choices; add `choices.*score_function"):
            estimator(name)(jnp.mean, term, q, jax.random.split(jax.random.key(0), 1))


@pytest.mark.thorough
def test_for_component_takes_them():
    """One part of a Product: the mean is that of the part summed out."""

    def bound(l, key, gradient):
        q = jv.Product({"choice": jv.OneHotCategorical(l), "style": jv.Normal(jnp.ones(2), 0.5)})
        term = lambda q, z, log_q: (bent(jnp.ones(6), z["choice"]) * z["style"][0], None)
        of = jv.gradients.for_component("choice", gradient)
        return of(jnp.mean, term, q, key[None])[0]

    l = LOGITS[jv.OneHotCategorical]
    d, summed = (
        draws(lambda key, g=g: jax.grad(bound)(l, key, g), 20_000)
        for g in (estimator("rebar"), jv.enumeration)
    )
    assert standard_errors_off(d - summed, 0.0) < 4
