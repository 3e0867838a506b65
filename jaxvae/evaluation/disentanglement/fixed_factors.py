"""Scores from groups of examples that have one factor in common."""

import numpy as np

from jaxvae.checks import Count, Key, checked
from jaxvae.evaluation.disentanglement.arrays import (
    Table,
    codes_and_factors,
    generator,
    sklearn,
    standardised,
)


@checked
def factor_vae_score(
    key: Key, codes: Table, factors: Table, *, groups: Count = 1000, size: Count = 64
) -> float:
    """How well the latent that varies least, where a factor is fixed, tells which factor it was.

    A group shares the value of one factor; its vote is argmin_i Var_group(z_i) / Var(z_i). A latent
    stands for the factor that most of its votes were cast under, and new votes are judged. Chance
    is 1/k. Latents that never vary do not vote. Kim & Mnih 2018, section 4.

    Args:
      factors: integers [n, k], every value in many rows: all combinations, or draws of the factors.
      groups: votes to learn from, and as many to judge.
      size: rows of a group, drawn with replacement.

    >>> import jax
    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> factor_vae_score(jax.random.key(0), v, v)
    1.0
    """
    rng, z, factors = _to_draw_from("factor_vae_score", key, codes, factors, groups, size)

    def votes() -> tuple[np.ndarray, np.ndarray]:
        fixed = rng.integers(factors.shape[1], size=groups)
        variances = np.var(z[_rows_sharing(rng, factors, fixed, size)], axis=1)
        return np.argmin(np.where(np.any(z, axis=0), variances, np.inf), axis=1), fixed

    counts = np.zeros((z.shape[1], factors.shape[1]))
    np.add.at(counts, votes(), 1)
    latent, fixed = votes()
    return float(np.mean(counts.argmax(axis=1)[latent] == fixed))


@checked
def beta_vae_score(
    key: Key, codes: Table, factors: Table, *, groups: Count = 1000, size: Count = 64
) -> float:
    """How well a linear classifier tells which factor the pairs of a group have in common.

    It is shown mean_l |z_l - z'_l| over the pairs, latents scaled to unit variance. Chance is 1/k.
    Kind: latents that mix two factors can still be told apart. Higgins et al. 2017, section 3.

    Args:
      factors: as for `factor_vae_score`.
      groups: to learn from, and as many to judge.
      size: pairs of a group, drawn with replacement.

    >>> import jax
    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> beta_vae_score(jax.random.key(0), v, v)
    1.0
    """
    classifier = sklearn("beta_vae_score", "linear_model").LogisticRegression
    rng, z, factors = _to_draw_from("beta_vae_score", key, codes, factors, groups, size)

    def differences() -> tuple[np.ndarray, np.ndarray]:
        fixed = rng.integers(factors.shape[1], size=groups)
        pairs = z[_rows_sharing(rng, factors, np.repeat(fixed, size), 2)]
        apart = np.abs(pairs[:, 0] - pairs[:, 1])
        return apart.reshape(groups, size, -1).mean(axis=1), fixed

    shown, fixed = differences()
    if (fixed == fixed[0]).all():
        raise ValueError(f"beta_vae_score: groups is {groups}, expected enough to tell apart")
    return float(classifier(max_iter=10_000).fit(shown, fixed).score(*differences()))


def _to_draw_from(
    owner: str, key: Key, codes: Table, factors: Table, groups: Count, size: Count
) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    codes, factors = codes_and_factors(owner, codes, factors)
    if factors.shape[1] < 2:
        raise ValueError(f"{owner}: factors has one column, expected two to tell apart")
    return generator(key), standardised(codes), factors


def _rows_sharing(
    rng: np.random.Generator, factors: Table, fixed: np.ndarray, size: Count
) -> np.ndarray:
    """Groups of rows [g, size]: in each, factor fixed[g] has the value it has in a random row."""
    value = factors[rng.integers(len(factors), size=len(fixed)), fixed]
    rows = np.empty((len(fixed), size), int)
    for j, column in enumerate(factors.T):
        order, mine = np.argsort(column), fixed == j
        start, stop = (np.searchsorted(column[order], value[mine], s) for s in ("left", "right"))
        rows[mine] = order[rng.integers(start[:, None], stop[:, None], size=(mine.sum(), size))]
    return rows
