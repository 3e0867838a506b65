"""Walks among the latents against the geometry that defines them, and temperatures."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxvae import (
    Bernoulli,
    Categorical,
    Constant,
    DiscretizedLogistic,
    Gamma,
    Independent,
    Joint,
    Laplace,
    LowRankNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    StandardNormal,
    StudentT,
    Transformed,
)
from jaxvae.bijectors import Affine
from jaxvae.evaluation.latent_space import interpolate, slerp, tempered, traverse
from tests.common import close

TS = jnp.linspace(0.0, 1.0, 5)


def angle(a, b):
    a, b = np.ravel(a) / np.linalg.norm(a), np.ravel(b) / np.linalg.norm(b)
    return 2.0 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))


@partial(jax.jit, static_argnums=0)
def path(way, z0, z1):
    return jax.vmap(lambda t: way(z0, z1, t))(jnp.asarray(TS, z0.dtype))


Z = np.array([1.0, 2.0, 2.0])
ACROSS = np.array([2.0, -2.0, 1.0])
ENDS = {
    "any two": (Z, np.array([-4.0, 1.0, 0.3])),
    "parallel": (Z, 2.0 * Z),
    "equal": (Z, Z),
    "opposite": (Z, -3.0 * Z),
    "all but opposite": (Z, -Z + 1e-12 * ACROSS),
    "all but parallel": (Z, Z + 1e-9 * ACROSS),
}


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_slerp_of_what_has_a_square_that_is_no_float(size):
    z = slerp(jnp.array([size, 0.0]), jnp.array([0.0, size]), 0.5)
    np.testing.assert_allclose(z / size, np.sqrt([0.5, 0.5]), rtol=1e-5)


@pytest.mark.parametrize("name", ENDS)
def test_slerp_turns_at_a_constant_rate_and_its_norm_goes_linearly(name, x64):
    z0, z1 = ENDS[name]
    zs = path(slerp, z0, z1)
    assert close(zs[0], z0)
    assert close(zs[-1], z1)
    norms = np.linalg.norm(zs.reshape(5, -1), axis=1)
    assert close(norms, np.linspace(np.linalg.norm(z0), np.linalg.norm(z1), 5))
    turned = [angle(z0, z) for z in zs]
    assert close(turned, np.linspace(0.0, angle(z0, z1), 5))
    between = [angle(a, b) for a, b in pairwise(zs)]
    assert np.allclose(between, angle(z0, z1) / 4, atol=1e-8)  # so all is in one plane


def test_slerp_takes_an_array_for_one_vector(x64):
    z0, z1 = np.arange(6.0), np.ones(6)
    square = slerp(z0.reshape(2, 3), z1.reshape(2, 3), 0.3)
    assert close(square, slerp(z0, z1, 0.3).reshape(2, 3))


def test_slerp_of_equal_norms_is_the_formula_of_two_sines(x64):
    z0, z1, theta = np.array([3.0, 4.0]), np.array([5.0, 0.0]), np.arccos(0.6)
    for t, z in zip(np.asarray(TS), path(slerp, z0, z1), strict=True):
        expected = (np.sin((1 - t) * theta) * z0 + np.sin(t * theta) * z1) / np.sin(theta)
        assert close(z, expected)


def test_the_line_leaves_the_sphere_that_slerp_keeps(x64):
    """Orthogonal draws of norm sqrt(d) are sqrt(d / 2) long half way along the line."""
    z0, z1 = np.sqrt(8.0) * np.eye(8)[:2]
    assert close(np.linalg.norm(interpolate(z0, z1, 0.5)), 2.0)
    assert close(np.linalg.norm(slerp(z0, z1, 0.5)), np.sqrt(8.0))
    assert close(path(interpolate, z0, z1)[1], 0.75 * z0 + 0.25 * z1)


def test_an_end_without_direction_is_an_error_or_nan():
    zero, z = jnp.zeros(2), jnp.ones(2)
    with pytest.raises(ValueError, match="slerp: z1 is 0, expected a vector that has a direction"):
        slerp(z, zero, 0.5)
    assert jnp.all(jnp.isnan(jax.jit(slerp)(zero, z, 0.5)))
    with pytest.raises(ValueError, match="two coordinates or more"):
        slerp(jnp.ones(1), jnp.ones(1), 0.5)
    with pytest.raises(ValueError, match=r"z1 has shape \(3,\), expected \(2,\)"):
        interpolate(z, jnp.ones(3), 0.5)


def test_traverse_sets_one_latent_and_leaves_the_others():
    z, values = jnp.array([1.0, 2.0, 3.0]), jnp.array([-1.0, 0.0, 7.0])
    zs = traverse(z, 1, values)
    assert zs.tolist() == [[1.0, -1.0, 3.0], [1.0, 0.0, 3.0], [1.0, 7.0, 3.0]]
    assert traverse(z, -1, values).tolist() == traverse(z, 2, values).tolist()
    each = jax.vmap(lambda index: traverse(z, index, values))(jnp.arange(3))
    assert close(each[1], zs)
    for index in (3, -4):
        with pytest.raises(ValueError, match=f"index is {index}, expected one of 3 latents"):
            traverse(z, index, values)


# temperature

LOC, SCALE = jnp.array([0.5, -1.0]), jnp.array([1.0, 2.0])
NORMAL = Normal(LOC, SCALE)
SPREADS = {
    "Normal": NORMAL,
    "Laplace": Laplace(LOC, SCALE),
    "StudentT": StudentT(3.0, LOC, SCALE),
    "MultivariateNormal": MultivariateNormal(LOC, jnp.array([[1.0, 0.0], [0.5, 2.0]])),
    "LowRankNormal": LowRankNormal(LOC, jnp.ones((2, 1)), SCALE),
    "Constant": Constant(NORMAL),
    "Independent": Independent(NORMAL),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SPREADS)
def test_a_location_and_a_scale_shrink_to_the_location(name):
    """The same noise lands at T times its distance from the location."""
    d, key = SPREADS[name], jax.random.key(0)
    at = tempered(d, 0.25).sample(jax.random.clone(key))
    assert jnp.allclose(at - LOC, 0.25 * (d.sample(key) - LOC), atol=1e-6)


def test_a_standard_normal_becomes_a_normal():
    assert close(tempered(StandardNormal((2,)), 0.5).scale, [0.5, 0.5])


def test_levels_of_a_discretized_logistic():
    d = DiscretizedLogistic(LOC, SCALE, levels=4)
    at = tempered(d, 0.5)
    assert at.levels == 4
    assert close(at.scale, 0.5 * SCALE)


def test_choices_are_powers_of_their_probabilities(x64):
    """p_k^(1/T), normalised."""
    p = np.array([0.7, 0.2, 0.1])
    powers = p**2.0 / np.sum(p**2.0)
    for d in (Categorical(jnp.log(p)), OneHotCategorical(jnp.log(p))):
        assert close(jnp.exp(tempered(d, 0.5).log_probs), powers)
    coin = tempered(Bernoulli(jnp.log(jnp.array([4.0]))), 0.5)
    assert close(coin.mean(), [0.64 / (0.64 + 0.04)])


def test_what_is_made_of_others_is_tempered_in_its_parts():
    z, half = jnp.array([0.3, 0.4]), Normal(LOC, 0.5 * SCALE)
    logits = jnp.array([0.3, -1.0])
    parts = Normal(jnp.stack([LOC, -LOC]), jnp.stack([SCALE, SCALE]))
    mixture = tempered(Mixture(logits, parts), 0.5)
    expected = Mixture(logits, Normal(parts.loc, 0.5 * parts.scale))
    assert close(mixture.log_prob(z), expected.log_prob(z))

    shift = Affine(jnp.ones(2), jnp.zeros(2))
    flow = tempered(Transformed(NORMAL, shift), 0.5)
    assert close(flow.log_prob(z), Transformed(half, shift).log_prob(z))

    given = Partial(lambda a: Laplace(a, jnp.ones(2)))
    joint = tempered(Joint(NORMAL, given), 0.5)
    assert close(joint.log_prob((z, -z)), half.log_prob(z) + Laplace(z, 0.5).log_prob(-z))


def test_a_temperature_is_positive_and_traced_where_wanted():
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature is"):
            tempered(NORMAL, bad)
    with pytest.raises(TypeError, match="tempered: Gamma has no tempered; add"):
        tempered(Gamma(LOC, SCALE), 0.5)
    scales = jax.vmap(lambda t: tempered(NORMAL, t).scale)(jnp.array([0.5, 2.0]))
    assert close(scales, [[0.5, 1.0], [2.0, 4.0]])


def test_slerp_has_a_slope_where_its_ends_are_parallel():
    """That of the straight line; and between opposite ends a finite one."""
    z = jnp.array([3.0, 4.0])
    for of in (lambda a: slerp(a, 2.0 * z, 0.25), lambda a: slerp(2.0 * z, a, 0.75)):
        np.testing.assert_allclose(jax.jacobian(of)(z), 0.75 * np.eye(2), atol=1e-6)
    assert np.all(np.isfinite(jax.jacobian(lambda a: slerp(a, -z, 0.5))(z)))
