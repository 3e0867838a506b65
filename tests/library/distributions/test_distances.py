"""Distances to many Gaussians: the terms' value, and their slopes by matrix products."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae as jv
from jaxvae.distributions.distances import squared_distances

K = 5


def term_by_term(z, loc, scale):
    return jnp.sum(jnp.square((z[None] - loc) / scale), axis=1)


def near(d, spread=1.0, scale=1.0, dtype=None):
    """A z that is a component's, but for one sigma: what matters has the least digits."""
    rng = np.random.default_rng(d)
    loc = spread * rng.normal(size=(K, d))
    scales = scale * rng.uniform(0.5, 1.5, size=(K, d))
    z = loc[2] + scales[2] * rng.normal(size=d)
    return tuple(jnp.asarray(a, dtype) for a in (z, loc, scales))


def log_total(distances):
    """log sum_k exp(-distance / 2), of which far components are no part."""
    return lambda *given: jax.nn.logsumexp(-0.5 * distances(*given))


@pytest.mark.parametrize("d", [1, 7, 16, 19, 40])
def test_value_slopes_and_curvature_are_those_of_the_terms(x64, d):
    given = near(d)
    close = jax.tree_util.Partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    close(squared_distances(*given), term_by_term(*given))
    for of in (jax.grad, jax.hessian):
        found, exact = (
            of(log_total(f), (0, 1, 2))(*given) for f in (squared_distances, term_by_term)
        )
        jax.tree.map(close, found, exact)


@pytest.mark.parametrize("scale", [1.0, 1e-1, 1e-2, 1e-3, 1e-5])
def test_however_narrow_the_components_slopes_are_good_to_a_thousandth(scale):
    given = near(6, scale=scale, dtype=np.float32)
    found = jax.grad(log_total(squared_distances), (0, 1, 2))(*given)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in given]
        exact = jax.grad(log_total(term_by_term), (0, 1, 2))(*wide)
    for a, b in zip(found, exact, strict=True):
        exact_slope = np.asarray(b)
        assert np.max(np.abs(np.asarray(a) - exact_slope)) < 0.001 * np.max(np.abs(exact_slope))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("log_prob", ["log_prob", "log_prob_relaxed"])
def test_a_mixture_of_normals_is_that_of_its_components_one_by_one(x64, shape, one_scale, log_prob):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2.0, size=(K,) if one_scale else (K, *shape))
    mixture = jv.Mixture(rng.normal(size=K), jv.Normal(rng.normal(size=(K, *shape)), scale))
    z = jnp.asarray(rng.normal(size=(4, *shape)))

    def apart(mixture, z):
        each = jax.vmap(lambda d: d.log_prob(z))(mixture.components)
        return jax.nn.logsumexp(jax.nn.log_softmax(mixture.logits) + each)

    def of(f):
        return jax.value_and_grad(lambda m, zs: jnp.sum(jax.vmap(f, (None, 0))(m, zs)), (0, 1))

    mixture = jax.tree.map(jnp.asarray, mixture)
    found = of(lambda m, z: getattr(m, log_prob)(z))(mixture, z)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12),
        found,
        of(apart)(mixture, z),
    )


@pytest.mark.parametrize("narrow", [1.0, 1e-9])
def test_of_many_mixtures_at_once_each_is_its_own(x64, narrow):
    """Were one of them too narrow for products, all would go term by term."""
    of_each = jax.tree.map(lambda *rows: jnp.stack(rows), near(6), near(6, scale=narrow))

    def total(*of_each):
        return jnp.sum(jax.vmap(log_total(squared_distances))(*of_each))

    found = jax.grad(total, (0, 1, 2))(*of_each)
    for i in range(2):
        exact = jax.grad(log_total(term_by_term), (0, 1, 2))(*(a[i] for a in of_each))
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-9 * np.max(np.abs(b)))


def test_components_of_ones_own_are_asked_first():
    @jv.pytree
    @dataclass(frozen=True)
    class Point:
        loc: jax.Array

        def sample(self, key):
            return self.loc

        def log_prob(self, z):
            raise AssertionError("one by one")

        def log_prob_of_each(self, z):
            return -jnp.abs(z - self.loc)

    found = jv.Mixture(jnp.zeros(2), Point(jnp.array([0.0, 3.0]))).log_prob(jnp.array(1.0))
    assert float(found) == pytest.approx(np.log((np.exp(-1.0) + np.exp(-2.0)) / 2.0))


def test_what_has_no_place_among_the_components_is_told():
    mixture = jv.Mixture(jnp.zeros(2), jv.Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))))
    with pytest.raises(
        ValueError, match=r"Normal.log_prob: event has shape \(4,\), expected \(3,\)"
    ):
        mixture.log_prob(jnp.zeros(4))
    wrong = replace(mixture, components=jv.Normal(jnp.zeros((2, 3)), jnp.ones((2, 4))))
    with pytest.raises(ValueError, match=r"scale has shape \(4,\)"):
        wrong.log_prob(jnp.zeros(3))
