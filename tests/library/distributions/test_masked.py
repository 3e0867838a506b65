"""Missing entries, with every likelihood of independent coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.tree_util import Partial
from scipy import stats

import jaxvae as jv
from tests.common import close

X = np.array([0.3, 0.9, 0.1], np.float32)
MASK = np.array([True, False, True])
COUNTS, LEVELS = np.array([3.0, 0.0, 7.0], np.float32), np.array([3, 250, 7], np.int32)
OBSERVED = np.array([0, 2])
A = np.array([0.7, 1.3, 2.1], np.float32)


def logistics(loc, scale):
    return jv.Independent(
        jv.Mixture(jnp.zeros((len(loc), 1)), jv.DiscretizedLogistic(loc[:, None], scale[:, None]))
    )


CASES = {
    "normal": (lambda a: jv.Normal(a, 0.5 * a), X),
    "standard normal": (lambda a: jv.StandardNormal(a.shape), X),
    "laplace": (lambda a: jv.Laplace(a, 0.5 * a), X),
    "student t": (lambda a: jv.StudentT(3.0 * a, a, 0.5), X),
    "bernoulli": (lambda a: jv.Bernoulli(a), np.round(X)),
    "continuous bernoulli": (lambda a: jv.ContinuousBernoulli(a), X),
    "categorical": (lambda a: jv.Categorical(jnp.outer(a, jnp.arange(3.0))), LEVELS % 3),
    "discretized logistic": (lambda a: jv.DiscretizedLogistic(a, 0.5 * a), LEVELS),
    "each": (lambda a: jv.Independent(jv.distributions.ZeroInflated(jv.Poisson(a), a)), COUNTS),
    "mixture": (lambda a: logistics(a, 0.5 * a), LEVELS),
    "poisson": (lambda a: jv.Poisson(a), COUNTS),
    "negative binomial": (lambda a: jv.NegativeBinomial(a, -a), COUNTS),
    "gamma": (lambda a: jv.Gamma(a, 2.0), X),
    "beta": (lambda a: jv.Beta(a, 2.0), X),
    "constant": (lambda a: jv.Constant(jv.Normal(np.asarray([0.7, 1.3, 2.1], "f"), 0.5)), X),
}


@pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES)
def test_only_what_is_observed_counts(make, x):
    """The log-probability is that of the observed entries, and their gradient alone. What is
    missing may be anything, NaN or out of the support: neither value nor gradient sees it."""
    bad = np.asarray(x).copy()
    bad[1] = np.nan if x.dtype.kind == "f" else 10**6

    def masked(a, x):
        return jv.Masked(make(a)).log_prob((x, MASK))

    def exact(a, x):
        if isinstance(make(A), jv.Constant):
            return jv.Normal(A[OBSERVED], 0.5).log_prob(x[OBSERVED])
        return make(a[OBSERVED]).log_prob(x[OBSERVED])

    @jax.jit
    def both(a, xs):
        of = jax.vmap(jax.value_and_grad(masked), (None, 0))(a, xs)
        return of, jax.value_and_grad(exact)(a, xs[0])

    (values, gradients), (value, gradient) = both(A, np.stack([x, bad]))
    assert close(values[0], value)
    assert gradients[0, 1] == 0.0
    assert close(gradients[0, OBSERVED], gradient[OBSERVED])
    assert values[0] == values[1]
    assert np.array_equal(*gradients)


class Stranger:
    """log x ~ N(loc, 1), of a class that JAX knows nothing of."""

    def __init__(self, loc):
        self.loc = loc

    def sample(self, key):
        return jnp.exp(self.loc + jax.random.normal(key, jnp.shape(self.loc)))

    def log_prob(self, x):
        return jnp.sum(nd.LogNormal(self.loc, 1.0).log_prob(x))


UNIT = np.array([0.6, 0.8])
# of supports without 0: a parameter, what it makes, and an event; one that a mask hides whole
WHOLE: dict[str, tuple[Any, Any, Any]] = {
    "gamma": (1.3, lambda a: jv.Gamma(a, 2.0), np.array(0.7)),
    "beta": (1.3, lambda a: jv.Beta(a, 2.0), np.array(0.7)),
    "dirichlet": (A, lambda a: jv.Dirichlet(a), np.array([0.2, 0.5, 0.3])),
    "von Mises-Fisher": (UNIT, lambda a: jv.distributions.VonMisesFisher(a, 2.0), UNIT[::-1]),
    "power spherical": (UNIT, lambda a: jv.distributions.PowerSpherical(a, 2.0), UNIT[::-1]),
    "numpyro's": (1.3, lambda a: nd.LogNormal(a, 1.0), np.array(0.7)),
    "adapted": (1.3, lambda a: jv.distributions.adapt(nd.Pareto(0.1, a)), np.array(0.7)),
    "a stranger's": (A, Stranger, A),
}
ENTRIES = {
    "gamma": lambda a: jv.Gamma(a, 2.0),
    "beta": lambda a: jv.Beta(a, 2.0),
    "numpyro's": lambda a: jv.Independent(jax.vmap(lambda a: nd.LogNormal(a, 1.0))(a)),
    "numpyro's, not mapped": lambda a: jv.Independent(nd.LogNormal(a, jnp.ones(3))),
    "mixture": lambda a: jv.Independent(
        jax.vmap(
            lambda a: jv.Mixture(jnp.zeros(2), jv.Gamma(jnp.stack([a, 2.0 * a]), jnp.ones(2)))
        )(a)
    ),
}


def ways(names, *eager):
    """All compiled; not compiled those whose likes are not among the others."""
    return pytest.mark.parametrize(
        ("name", "way"),
        [(name, "jit") for name in names]
        + [
            pytest.param(name, "eager", marks=[] if name in eager else pytest.mark.slow)
            for name in names
        ],
    )


@pytest.mark.thorough
@ways(WHOLE, "gamma", "dirichlet", "numpyro's", "a stranger's")
def test_a_gap_where_0_is_no_event(name, way, x64):
    """0 nats and no gradient, and where it is seen both are as if nothing were masked."""
    parameter, make, x = WHOLE[name]
    parameter, x = jnp.asarray(parameter, float), jnp.asarray(x, float)
    masked = lambda a, x, seen: jv.Masked(jv.Product({"a": make(a)})).log_prob(
        ({"a": x}, {"a": seen})
    )
    f = jax.value_and_grad(masked, (0, 1))
    compiled = jax.jit(
        lambda a, x, seen: (
            f(a, x, seen),
            jax.value_and_grad(lambda a, x: make(a).log_prob(x), (0, 1))(a, x),
        )
    )
    run = compiled if way == "jit" else lambda *args: (f(*args), None)
    (value, gradient), _ = run(parameter, jnp.full_like(x, jnp.nan), jnp.array(False))
    assert value == 0.0
    assert all(np.array_equal(g, np.zeros(g.shape)) for g in gradient)
    (value, gradient), _ = run(parameter, x, jnp.array(True))
    _, exact = compiled(parameter, x, jnp.array(True))
    assert close(value, exact[0])
    assert all(map(close, gradient, exact[1]))
    assert np.any(gradient[0] != 0)


@pytest.mark.thorough
@ways(ENTRIES, "gamma", "numpyro's, not mapped")
def test_gaps_where_0_is_no_event(name, way, x64):
    a, x = jnp.asarray(A, float), jnp.array([0.3, jnp.nan, 0.1])
    of = lambda d, event: jv.Masked(d).log_prob(event)
    f = jax.value_and_grad(lambda a: of(ENTRIES[name](a), (x, MASK)))
    value, gradient = (jax.jit(f) if way == "jit" else f)(a)
    seen = lambda a: of(ENTRIES[name](a), (jnp.where(MASK, x, 0.2), jnp.ones(3, bool)))
    assert jnp.isfinite(value)
    assert gradient[1] == 0.0
    assert close(gradient[OBSERVED], jax.jit(jax.grad(seen))(a)[OBSERVED])


@pytest.mark.thorough
def test_tables_with_such_columns_train_and_are_imputed():
    columns = lambda z: jv.Product(
        {"a": jv.Gamma(jnp.exp(z), 1.0), "b": jv.Normal(z, 1.0), "c": Stranger(z[0])}
    )
    model = jv.VAE(
        Partial(lambda w, e: jv.Normal(w * e[0]["b"], jnp.ones(1)), jnp.array(0.3)),
        Partial(lambda w, z: jv.Masked(columns(w * z)), jnp.array(0.5)),
        jv.StandardNormal((1,)),
    )
    row: Any = {"a": jnp.array([jnp.nan]), "b": jnp.array([0.5]), "c": np.float32(np.nan)}
    mask = {"a": np.array(False), "b": np.array([True]), "c": np.array(False)}

    @jax.jit
    def both(model, key):
        bound = lambda model: jv.elbo(model, key, (row, mask))[0]
        draws = jv.evaluation.multiple_imputations(
            model, jax.random.clone(key), (row, mask), num_samples=5, num_draws=3
        )
        return jax.grad(bound)(model), draws

    gradient, draws = both(model, jax.random.key(0))
    assert all(np.isfinite(leaf) and leaf != 0 for leaf in jax.tree.leaves(gradient))
    assert np.all(draws["a"] > 0)
    assert np.all(draws["c"] > 0)
    assert np.all(draws["b"] == 0.5)


def test_columns_have_masks_of_their_own():
    d = jv.Product({"a": jv.Normal(A, 1.0), "b": jv.Poisson(jnp.array(2.0))})
    x = {"a": X, "b": np.float32(4.0)}
    masked = jax.jit(lambda mask: jv.Masked(d).log_prob((x, mask)))
    a, b = stats.norm.logpdf(X, A), stats.poisson.logpmf(4, 2.0)
    assert close(masked({"a": MASK, "b": np.array(False)}), a[OBSERVED].sum())
    assert close(masked({"a": np.ones(3, bool), "b": np.array(True)}), a.sum() + b)


def test_a_mask_of_fewer_axes_hides_pixels():
    image = jv.Independent(
        jv.Independent(jv.Normal(np.zeros((2, 3, 4), "f"), np.ones((2, 3, 4), "f")))
    )
    x = np.ones((2, 3, 4), np.float32)
    mask = np.array([[True, True, False], [False, False, False]])
    found = jax.jit(lambda x, mask: jv.Masked(image).log_prob((x, mask)))(x, mask)
    assert close(found, 8 * (-0.5 - 0.5 * np.log(2.0 * np.pi)))


def test_a_draw_misses_nothing():
    d = jv.Masked(jv.Normal(A, 1.0))
    (x, mask), log_p = jax.jit(jv.sample_and_log_prob)(d, jax.random.key(0))
    assert mask.all()
    assert close(log_p, stats.norm.logpdf(x, A).sum())
    assert close(d.mean(), A)


def test_what_depends_cannot_be_masked():
    full = jv.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    with pytest.raises(TypeError, match="Masked: MultivariateNormal has no unstack; add"):
        jv.Masked(full).log_prob((X, MASK))
    with pytest.raises(TypeError, match="Masked: OptimalNormal has no sample"):
        jv.Masked(jv.Product([jv.distributions.OptimalNormal(X, axis=None)])).log_prob(
            ([X], [jnp.array(False)])
        )
    with pytest.raises(ValueError, match="expected an event for each part"):
        jv.Product({"a": full}).log_prob({"b": X})
