"""Measures of samples: by hand in one dimension, in closed form, and in mean where it is known."""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.evaluation.sample_quality import (
    density_coverage,
    frechet_distance,
    precision_recall,
    sample_frechet_distance,
)
from tests.common import close, draws, standard_errors_off

# k = 2: squared radii of the real points 16, 9, 9, 16; of the fake ones 1, 0.25, 36, 49
REAL = np.array([[0.0], [1.0], [4.0], [5.0]])
FAKE = np.array([[2.0], [2.5], [3.0], [9.0]])


def rows(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def covariance(d, seed):
    factor = rows(d, d + 2, seed)
    return factor @ factor.T / d


def test_four_points_by_hand(x64):
    """With k = 2 the real balls are [-4, 4], [-2, 4], [1, 7], [1, 9] and the fake ones [1, 3],
    [2, 3], [2, 4], [2.5, 15.5]: 9 is in a ball and each of the others is in four, 0 is in none, 1
    in one."""
    precision, recall = precision_recall(REAL, FAKE, k=2)
    assert float(precision) == 1.0
    assert float(recall) == 0.75
    density, coverage = density_coverage(REAL, FAKE, k=2)
    assert float(density) == (4 + 4 + 4 + 1) / (2 * 4)
    assert float(coverage) == 1.0


@pytest.mark.thorough
def test_a_set_against_itself(x64):
    x = rows(30, 4)
    assert precision_recall(x, x, k=3) == (1.0, 1.0)
    # each point is in its own ball and in those of the points that it is near to: k + 1 in mean
    density, coverage = density_coverage(x, x, k=3)
    assert close(density, 4.0 / 3.0)
    assert coverage == 1.0
    assert abs(sample_frechet_distance(x, x)) < 1e-10


def test_copies_of_one_point_are_near_each_other():
    x = np.full((5, 3), 123.4567, np.float32)
    assert precision_recall(x, x, k=2) == (1.0, 1.0)
    assert density_coverage(x, x, k=2).coverage == 1.0


def test_far_from_the_origin_no_digit_is_lost():
    """In float32 the distances are exact there, which |a|^2 - 2 ab + |b|^2 would not be."""
    real, fake = np.float32(REAL + 16384.0), np.float32(FAKE + 16384.0)
    assert precision_recall(real, fake, k=2) == (1.0, 0.75)
    assert density_coverage(real, fake, k=2) == (13.0 / 8.0, 1.0)


def test_disjoint_sets(x64):
    x = rows(30, 4)
    assert precision_recall(x, x + 1e3, k=3) == (0.0, 0.0)
    assert density_coverage(x, x + 1e3, k=3) == (0.0, 0.0)
    assert close(sample_frechet_distance(x, x + 1e3), 4e6)


def test_a_mode_that_is_missing_costs_recall_and_one_that_is_made_up_precision(x64):
    """Two clusters of 20 and one of them: all of the small set is in the large one and not back."""
    one, two = rows(20, 2), rows(20, 2, seed=1) + 100.0
    both = np.concatenate([one, two])
    assert precision_recall(both, one, k=3) == (1.0, 0.5)
    assert precision_recall(one, both, k=3) == (0.5, 1.0)
    assert density_coverage(both, one, k=3).coverage == 0.5


@pytest.mark.thorough
def test_the_order_of_rows_and_a_rigid_motion_change_nothing(x64):
    real, fake = rows(25, 3), 1.2 * rows(20, 3, seed=1)
    rng = np.random.default_rng(2)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = rng.permutation(real) @ turn + 5.0, rng.permutation(fake) @ turn + 5.0
    for measure in (precision_recall, density_coverage, sample_frechet_distance):
        assert np.allclose(measure(*moved), measure(real, fake), rtol=1e-9)


def test_density_and_coverage_of_one_distribution_in_mean(x64):
    """1 and 1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), whatever the distribution."""
    n, m, k = 20, 12, 3

    def measured(key):
        real, fake = jnp.split(jnp.exp(jax.random.normal(key, (n + m, 2))), [n])
        return jnp.stack(density_coverage(real, fake, k=k))

    expected = jnp.array([1.0, 1.0 - comb(n - 1, k) / comb(m + n - 1, k)])
    found = draws(measured, 2000)
    assert standard_errors_off(found, expected) < 4
    assert jnp.all(jnp.std(found, axis=0) / np.sqrt(2000) < 0.01)  # else 4 of them say little


# Frechet distance


def trace_of_root(a):
    return np.sum(np.sqrt(np.linalg.eigvals(a).real))


def test_frechet_distance_against_the_matrix_square_root(x64):
    c1, c2 = covariance(5, 0), covariance(5, 1)
    m1, m2 = rows(2, 5, seed=3)
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2) - 2.0 * trace_of_root(c1 @ c2)
    assert close(frechet_distance(m1, c1, m2, c2), expected)
    assert close(frechet_distance(m2, c2, m1, c1), expected)


def test_frechet_distance_of_axes_that_agree(x64):
    """sum_i (m_i - n_i)^2 + (s_i - t_i)^2, also where a scale is 0."""
    m, n, s, t = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0], [0.0, 2.0, 3.0], [1.0, 0.5, 0.0]])
    expected = np.sum((m - n) ** 2 + (s - t) ** 2)
    assert close(frechet_distance(m, np.diag(s**2), n, np.diag(t**2)), expected)


def test_frechet_distance_of_singular_covariances_in_float32():
    """Two of rank 3 in one plane of 40 coordinates: their distance in the plane's coordinates.

    The 37 eigenvalues of C_1 C_2 that are 0 but for rounding have roots of 3e-4 of the largest."""
    plane, _ = np.linalg.qr(rows(40, 3))
    g1, g2 = covariance(3, 1), covariance(3, 2)
    expected = np.trace(g1 + g2) - 2.0 * trace_of_root(g1 @ g2)
    c1, c2 = (np.float32(plane @ g @ plane.T) for g in (g1, g2))
    mean = np.zeros(40, np.float32)
    assert abs(float(frechet_distance(mean, c1, mean, c2)) - expected) < 1e-4


def test_frechet_distance_of_samples_has_unbiased_covariances(x64):
    """Two points a apart have variance a^2 / 2: (m - n)^2 + (a - b)^2 / 2."""
    real, fake = np.array([[0.0], [2.0]]), np.array([[4.0], [10.0]])
    assert close(sample_frechet_distance(real, fake), (1.0 - 7.0) ** 2 + (2.0 - 6.0) ** 2 / 2.0)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage, sample_frechet_distance])
def test_features_that_are_none_are_named(measure):
    x = rows(10, 3).astype(np.float32)
    spoiled = x.copy()
    spoiled[2, 1] = np.nan
    with pytest.raises(ValueError, match="fake holds NaN"):
        measure(x, spoiled)
    with pytest.raises(ValueError, match="fake has 2 features and real 3"):
        measure(x, x[:, :2])
    with pytest.raises(TypeError, match="real has dtype int32, expected floats"):
        measure(x.astype(np.int32), x)
    with pytest.raises(ValueError, match="real has 1 rows, expected at least"):
        measure(x[:1], x)


def test_what_is_no_covariance_is_named():
    mean, cov = jnp.zeros(2), jnp.eye(2)
    with pytest.raises(ValueError, match="cov2 has an eigenvalue -1"):
        frechet_distance(mean, cov, mean, -cov)
    with pytest.raises(ValueError, match="cov1 is not symmetric"):
        frechet_distance(mean, jnp.array([[1.0, 0.5], [0.0, 1.0]]), mean, cov)
    with pytest.raises(ValueError, match=r"mean2 has shape \(3,\)"):
        frechet_distance(mean, cov, jnp.zeros(3), cov)


def test_half_precision_and_what_overflows():
    """Sets 20 deviations apart, whose squared distances float16 doesn't hold: nothing in common."""
    rng = np.random.default_rng(0)
    real, fake = ((50.0 * rng.normal(size=(60, 64)) + c).astype(np.float16) for c in (0.0, 1000.0))
    assert precision_recall(real, fake) == (0.0, 0.0)
    assert tuple(density_coverage(real, fake)) == (0.0, 0.0)
    assert np.isfinite(sample_frechet_distance(real, fake))
    large = 1e20 * np.ones((9, 2), np.float32)
    with pytest.raises(ValueError, match=r"real holds 1e\+20, expected numbers whose squared"):
        precision_recall(large, large)
