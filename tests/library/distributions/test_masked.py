"""Missing entries, with every likelihood of independent coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from tests.common import close

X = jnp.array([0.3, 0.9, 0.1])
MASK = jnp.array([True, False, True])
COUNTS, LEVELS = jnp.array([3.0, 0.0, 7.0]), jnp.array([3, 250, 7])
OBSERVED = np.array([0, 2])
A = jnp.array([0.7, 1.3, 2.1])


def logistics(loc, scale):
    return jv.Independent(
        jv.Mixture(jnp.zeros((len(loc), 1)), jv.DiscretizedLogistic(loc[:, None], scale[:, None]))
    )


CASES = {
    "normal": (lambda a: jv.Normal(a, 0.5 * a), X),
    "standard normal": (lambda a: jv.StandardNormal(a.shape), X),
    "laplace": (lambda a: jv.Laplace(a, 0.5 * a), X),
    "student t": (lambda a: jv.StudentT(3.0 * a, a, 0.5), X),
    "bernoulli": (lambda a: jv.Bernoulli(a), jnp.round(X)),
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
    """The log-probability is that of the observed entries, and their gradient alone."""
    if isinstance(make(A), jv.Constant):
        exact = jv.Normal(A[OBSERVED], 0.5).log_prob(x[OBSERVED])
        assert close(jv.Masked(make(A)).log_prob((x, MASK)), exact)
        return
    masked = lambda a: jv.Masked(make(a)).log_prob((x, MASK))
    exact = lambda a: make(a[OBSERVED]).log_prob(x[OBSERVED])
    assert close(jax.jit(masked)(A), exact(A))
    gradient = jax.jit(jax.grad(masked))(A)
    assert gradient[1] == 0.0
    assert close(gradient[OBSERVED], jax.grad(exact)(A)[OBSERVED])


@pytest.mark.parametrize(("make", "x"), CASES.values(), ids=CASES)
def test_what_is_missing_may_be_anything(make, x):
    """NaN, or out of the support: neither value nor gradient sees it."""
    bad = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 10**6
    f = jax.jit(jax.value_and_grad(lambda a, x: jv.Masked(make(a)).log_prob((x, MASK))))
    value, gradient = f(A, x)
    bad_value, bad_gradient = f(A, x.at[1].set(bad))
    assert value == bad_value
    assert np.array_equal(gradient, bad_gradient)


class Stranger:
    """log x ~ N(loc, 1), of a class that JAX knows nothing of."""

    def __init__(self, loc):
        self.loc = loc

    def sample(self, key):
        return jnp.exp(self.loc + jax.random.normal(key, jnp.shape(self.loc)))

    def log_prob(self, x):
        return jnp.sum(nd.LogNormal(self.loc, 1.0).log_prob(x))


UNIT = jnp.array([0.6, 0.8])
# of supports without 0: a parameter, what it makes, and an event; one that a mask hides whole
WHOLE: dict[str, tuple[Any, Any, Any]] = {
    "gamma": (1.3, lambda a: jv.Gamma(a, 2.0), jnp.array(0.7)),
    "beta": (1.3, lambda a: jv.Beta(a, 2.0), jnp.array(0.7)),
    "dirichlet": (A, lambda a: jv.Dirichlet(a), jnp.array([0.2, 0.5, 0.3])),
    "von Mises-Fisher": (UNIT, lambda a: jv.distributions.VonMisesFisher(a, 2.0), UNIT),
    "power spherical": (UNIT, lambda a: jv.distributions.PowerSpherical(a, 2.0), UNIT),
    "numpyro's": (1.3, lambda a: nd.LogNormal(a, 1.0), jnp.array(0.7)),
    "adapted": (1.3, lambda a: jv.distributions.adapt(nd.Pareto(0.1, a)), jnp.array(0.7)),
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


@pytest.mark.parametrize("way", ["jit", "eager"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_gap_where_0_is_no_event(name, way, x64):
    """0 nats and no gradient, and where it is seen both are as if nothing were masked."""
    parameter, make, x = WHOLE[name]
    parameter, x = jnp.asarray(parameter, float), x.astype(float)
    masked = lambda a, x, seen: jv.Masked(jv.Product({"a": make(a)})).log_prob(
        ({"a": x}, {"a": seen})
    )
    f = jax.value_and_grad(masked, (0, 1))
    f = jax.jit(f) if way == "jit" else f
    value, gradient = f(parameter, jnp.full_like(x, jnp.nan), jnp.array(False))
    assert value == 0.0
    assert all(np.array_equal(g, np.zeros(g.shape)) for g in gradient)
    value, gradient = f(parameter, x, jnp.array(True))
    exact = jax.value_and_grad(lambda a, x: make(a).log_prob(x), (0, 1))(parameter, x)
    assert close(value, exact[0])
    assert all(map(close, gradient, exact[1]))
    assert np.any(gradient[0] != 0)


@pytest.mark.parametrize("way", ["jit", "eager"])
@pytest.mark.parametrize("name", ENTRIES)
def test_gaps_where_0_is_no_event(name, way, x64):
    a, x = A.astype(float), jnp.array([0.3, jnp.nan, 0.1])
    of = lambda d, event: jv.Masked(d).log_prob(event)
    f = jax.value_and_grad(lambda a: of(ENTRIES[name](a), (x, MASK)))
    value, gradient = (jax.jit(f) if way == "jit" else f)(a)
    seen = lambda a: of(ENTRIES[name](a), (jnp.where(MASK, x, 0.2), jnp.ones(3, bool)))
    alone = lambda a: jax.grad(seen)(a)[OBSERVED]
    assert jnp.isfinite(value)
    assert gradient[1] == 0.0
    assert close(gradient[OBSERVED], alone(a))


def test_tables_with_such_columns_train_and_are_imputed():
    columns = lambda z: jv.Product(
        {"a": jv.Gamma(jnp.exp(z), 1.0), "b": jv.Normal(z, 1.0), "c": Stranger(z[0])}
    )
    model = jv.VAE(
        Partial(lambda w, e: jv.Normal(w * e[0]["b"], jnp.ones(1)), jnp.array(0.3)),
        Partial(lambda w, z: jv.Masked(columns(w * z)), jnp.array(0.5)),
        jv.StandardNormal((1,)),
    )
    row: Any = {"a": jnp.array([jnp.nan]), "b": jnp.array([0.5]), "c": jnp.nan}
    mask = {"a": np.array(False), "b": np.array([True]), "c": np.array(False)}
    bound = lambda model: jv.elbo(model, jax.random.key(0), (row, mask))[0]
    for f in (bound, jax.jit(bound)):
        gradient = jax.grad(f)(model)
        assert all(np.isfinite(leaf) and leaf != 0 for leaf in jax.tree.leaves(gradient))
    draws = jv.evaluation.multiple_imputations(
        model, jax.random.key(0), (row, mask), num_samples=5, num_draws=3
    )
    assert np.all(draws["a"] > 0)
    assert np.all(draws["c"] > 0)
    assert np.all(draws["b"] == 0.5)


def test_columns_have_masks_of_their_own():
    d = jv.Product({"a": jv.Normal(A, 1.0), "b": jv.Poisson(jnp.array(2.0))})
    x = {"a": X, "b": jnp.array(4.0)}
    mask = {"a": MASK, "b": jnp.array(False)}
    exact = jv.Normal(A[OBSERVED], 1.0).log_prob(X[OBSERVED])
    assert close(jv.Masked(d).log_prob((x, mask)), exact)
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), x)
    assert close(jv.Masked(d).log_prob((x, everything)), d.log_prob(x))


def test_a_mask_of_fewer_axes_hides_pixels():
    image = jv.Independent(jv.Independent(jv.Normal(jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4)))))
    x = jnp.ones((2, 3, 4))
    mask = jnp.array([[True, True, False], [False, False, False]])
    assert close(
        jv.Masked(image).log_prob((x, mask)), jv.Normal(jnp.zeros(8), 1.0).log_prob(jnp.ones(8))
    )


def test_a_draw_misses_nothing():
    d = jv.Masked(jv.Normal(A, 1.0))
    (x, mask), log_p = jv.sample_and_log_prob(d, jax.random.key(0))
    assert mask.all()
    assert close(log_p, jv.Normal(A, 1.0).log_prob(x))
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
