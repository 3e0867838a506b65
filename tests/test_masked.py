"""Missing entries, with every likelihood of independent coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae as jv
from tests.common import close

X = jnp.array([0.3, 0.9, 0.1])
MASK = jnp.array([True, False, True])
COUNTS, LEVELS = jnp.array([3.0, 0.0, 7.0]), jnp.array([3, 250, 7])
OBSERVED = np.array([0, 2])
A = jnp.array([0.7, 1.3, 2.1])


def logistics(loc, scale):
    return jv.Each(
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
    "each": (lambda a: jv.Each(jv.ZeroInflated(jv.Poisson(a), a)), COUNTS),
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


def test_columns_have_masks_of_their_own():
    d = jv.Product({"a": jv.Normal(A, 1.0), "b": jv.Poisson(jnp.array(2.0))})
    x = {"a": X, "b": jnp.array(4.0)}
    mask = {"a": MASK, "b": jnp.array(False)}
    exact = jv.Normal(A[OBSERVED], 1.0).log_prob(X[OBSERVED])
    assert close(jv.Masked(d).log_prob((x, mask)), exact)
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), x)
    assert close(jv.Masked(d).log_prob((x, everything)), d.log_prob(x))


def test_a_mask_of_fewer_axes_hides_pixels():
    image = jv.Each(jv.Each(jv.Normal(jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4)))))
    x = jnp.ones((2, 3, 4))
    mask = jnp.array([[True, True, False], [False, False, False]])
    assert close(
        jv.Masked(image).log_prob((x, mask)), jv.Normal(jnp.zeros(8), 1.0).log_prob(jnp.ones(8))
    )


def test_a_draw_misses_nothing():
    d = jv.Masked(jv.Normal(A, 1.0))
    (x, mask), log_p = d.sample_and_log_prob(jax.random.key(0))
    assert mask.all()
    assert close(log_p, jv.Normal(A, 1.0).log_prob(x))
    assert close(d.mean(), A)


def test_what_depends_cannot_be_masked():
    full = jv.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    with pytest.raises(TypeError, match="MultivariateNormal are not known to be independent"):
        jv.Masked(full).log_prob((X, MASK))
    with pytest.raises(ValueError, match="expected an event for each part"):
        jv.Product({"a": full}).log_prob({"b": X})
