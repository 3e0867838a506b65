"""How good samples are, read off features of real and of generated examples.

Rows are examples, columns are features, as of a classifier: what counts as near is what they say.
Numbers from other features, or from another count of rows, do not compare. Distances are taken a
row at a time, so that memory grows with the rows and not with their square.
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxvae.checks import Count, Real, check_floats, check_shape, checked
from jaxvae.pytrees import shown, wide


def _check_finite(owner: str, name: str, value: Any, axes: int) -> None:
    check_floats(owner, name, value)
    if jnp.ndim(value) != axes or 0 in jnp.shape(value):
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(value)}, expected {['[d]', '[n, d]'][axes - 1]}"
        )
    if not isinstance(value, Tracer) and not np.all(np.isfinite(value)):
        raise ValueError(f"{owner}: {name} holds NaN or infinity, expected finite numbers")


Features = Annotated[Real, partial(_check_finite, axes=2)]
"""A row an example, floats [n, d], finite."""
Mean = Annotated[Real, partial(_check_finite, axes=1)]
Covariance = Annotated[Real, partial(_check_finite, axes=2)]


def _check_rows(owner: str, real: Features, fake: Features, *neighbours: int) -> None:
    """Raise unless both are of one network, each with a row more than it needs neighbours."""
    if jnp.shape(real)[1] != jnp.shape(fake)[1]:
        raise ValueError(
            f"{owner}: fake has {jnp.shape(fake)[1]} features and real {jnp.shape(real)[1]}, "
            "expected those of one network"
        )
    for name, rows, k in zip(("real", "fake"), (real, fake), neighbours, strict=True):
        n, d = jnp.shape(rows)
        largest = 0.0 if isinstance(rows, Tracer) else float(np.max(np.abs(np.asarray(rows))))
        if 4.0 * d * largest**2 > float(jnp.finfo(wide(rows).dtype).max):
            raise ValueError(
                f"{owner}: {name} holds {largest:g}, expected numbers whose squared distances are "
                "finite; divide all features by one number"
            )
        if n <= k:
            raise ValueError(
                f"{owner}: {name} has {n} rows, expected at least {k + 1}, a row and {k} others"
            )


@shown
class PrecisionRecall(NamedTuple):
    """Two fractions in [0, 1].

    Args:
      precision: of the fake examples that lie where real ones do.
      recall: of the real examples that lie where fake ones do.
    """

    precision: Array
    recall: Array


@shown
class DensityCoverage(NamedTuple):
    """Two numbers that, unlike precision and recall, no single outlier can move far.

    Args:
      density: real neighbourhoods that a fake row lies in, over k; 1 in mean where both come from
        one distribution, and it can be larger.
      coverage: fraction of the real neighbourhoods with a fake row in them; in mean
        1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)) for N real and M fake rows of one distribution.
    """

    density: Array
    coverage: Array


@checked
def precision_recall(real: Features, fake: Features, *, k: Count = 3) -> PrecisionRecall:
    """Is what is generated real, and is all that is real generated?

    A set stands for the union of the balls around its points, each as far as the point's k-th
    nearest neighbour in the set. Precision is the fraction of the fake points in the balls of the
    real ones, recall the fraction of the real points in the balls of the fake ones.
    Kynkaanniemi, Karras, Laine, Lehtinen & Aila 2019, section 2. k is below N and M.

    >>> real = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> fake = jnp.array([[0.5], [0.6], [9.0], [9.5]])
    >>> precision, recall = precision_recall(real, fake, k=1)
    >>> float(precision), float(recall)  # none within 0.1 of 0.5 or 0.6, or 0.5 of 9 or 9.5
    (0.5, 0.0)
    """
    _check_rows("precision_recall", real, fake, k, k)
    r_real, r_fake = _kth_nearest(real, real, k), _kth_nearest(fake, fake, k)
    return PrecisionRecall(
        precision=_mean(_balls_around(fake, real, r_real) > 0, r_real),
        recall=_mean(_balls_around(real, fake, r_fake) > 0, r_real),
    )


@checked
def density_coverage(real: Features, fake: Features, *, k: Count = 5) -> DensityCoverage:
    """How crowded with real points the places of fake ones are, and how many real ones are met.

    Balls are drawn around the real points alone, as far as the k-th nearest other real point.
    Density counts the balls that a fake point is in, over k and averaged; coverage is the fraction
    of the balls that some fake point is in.
    Naeem, Oh, Uh, Choi & Yoo 2020. k is below N.

    >>> real = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> fake = jnp.array([[0.5], [0.6], [9.0], [9.5]])
    >>> density, coverage = density_coverage(real, fake, k=1)
    >>> float(density), float(coverage)  # 0.5 and 0.6 are in the balls around 0 and 1
    (1.0, 0.5)
    """
    _check_rows("density_coverage", real, fake, k, 0)
    r_real = _kth_nearest(real, real, k)
    return DensityCoverage(
        density=_mean(_balls_around(fake, real, r_real), r_real) / k,
        coverage=_mean(_kth_nearest(real, fake, 0) <= r_real, r_real),
    )


@checked
def frechet_distance(mean1: Mean, cov1: Covariance, mean2: Mean, cov2: Covariance) -> Array:
    """The squared Frechet (2-Wasserstein) distance of two Gaussians, means [d], covariances [d, d].

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)

    With C = A A' the last trace is the sum of the singular values of A_1' A_2, for any such A: no
    digits are lost where a covariance is singular, as one of features often is. The unit is that of
    the features, squared.
    Dowson & Landau 1982; as a measure of samples: Heusel et al. 2017, equation 6.

    >>> one, four = jnp.eye(3), 4.0 * jnp.eye(3)
    >>> round(float(frechet_distance(jnp.zeros(3), one, jnp.ones(3), four)), 5)  # 3 + 3 (2 - 1)^2
    6.0
    """
    d = jnp.shape(mean1)
    for name, value, shape in ("mean2", mean2, d), ("cov1", cov1, 2 * d), ("cov2", cov2, 2 * d):
        check_shape("frechet_distance", name, value, shape)
    a1, a2 = _factor("cov1", cov1), _factor("cov2", cov2)
    overlap = jnp.sum(jnp.linalg.svd(a1.T @ a2, compute_uv=False))
    spread = jnp.trace(wide(cov1)) + jnp.trace(wide(cov2)) - 2.0 * overlap
    return jnp.sum(jnp.square(wide(mean1) - wide(mean2))) + jnp.maximum(spread, 0.0)


@checked
def sample_frechet_distance(real: Features, fake: Features) -> Array:
    """The `frechet_distance` of the Gaussians with the means and covariances of two sets.

    It sees means and covariances alone. It is above 0 in mean for two sets of one distribution, by
    an amount that falls as 1/rows: compare numbers of equally many rows. The unit is that of the
    features, squared.
    Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter 2017, equation 6.

    >>> real = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
    >>> round(float(sample_frechet_distance(real, real + 2.0)), 4)  # 2^2 + 2^2
    8.0
    """
    _check_rows("sample_frechet_distance", real, fake, 1, 1)
    return frechet_distance(*_mean_and_cov(real), *_mean_and_cov(fake))


def _mean_and_cov(features: Features) -> tuple[Array, Array]:
    rows = wide(features)
    mean = jnp.mean(rows, axis=0)
    centred = rows - mean[None]
    return mean, centred.T @ centred / (len(rows) - 1)


def _factor(name: str, cov: Covariance) -> Array:
    """A with A A' = C, by eigendecomposition, so that C may be singular."""
    values, vectors = jnp.linalg.eigh(wide(cov))
    if not isinstance(cov, Tracer):
        largest = float(jnp.max(jnp.abs(values), initial=0.0))
        tolerance = 1e-3 * largest
        if float(np.abs(np.asarray(cov) - np.asarray(cov).T).max(initial=0.0)) > tolerance:
            raise ValueError(f"frechet_distance: {name} is not symmetric, expected a covariance")
        if values.size and values[0] < -tolerance:
            raise ValueError(
                f"frechet_distance: {name} has an eigenvalue {values[0]:g}, expected none below 0"
            )
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]


def _kth_nearest(points: Features, others: Features, k: int) -> Array:
    """Squared distance [n] of each point to the k-th nearest other; the nearest has k = 0."""

    def one(point: Array) -> Array:
        distances = _squared_distances(point, others)
        # for a few neighbours, five times faster than sorting
        without = jax.lax.fori_loop(0, k, lambda _, d: d.at[jnp.argmin(d)].set(jnp.inf), distances)
        return jnp.min(without)

    return jax.lax.map(one, jnp.asarray(points))


def _balls_around(points: Features, centres: Features, squared_radii: Array) -> Array:
    """In how many of the balls each point is, integers [n]."""

    def one(point: Array) -> Array:
        return jnp.sum(_squared_distances(point, centres) <= squared_radii)

    return jax.lax.map(one, jnp.asarray(points))


def _mean(counts: Array, like: Array) -> Array:
    return jnp.mean(counts, dtype=like.dtype)


def _squared_distances(point: Array, others: Features) -> Array:
    # exactly 0 to a copy of the point
    return jnp.sum(jnp.square(wide(others) - wide(point)[None]), axis=1)
