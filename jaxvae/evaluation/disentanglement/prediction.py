"""Scores from how well latents predict factors."""

from typing import NamedTuple

import numpy as np

from jaxvae.checks import Count, Key, checked
from jaxvae.evaluation.disentanglement.arrays import (
    Table,
    codes_and_factors,
    concentration,
    gap,
    generator,
    sklearn,
    standardised,
)
from jaxvae.pytrees import shown


@checked
def sap(codes: Table, factors: Table) -> float:
    """Separated attribute predictability: the gap between the two latents that fit a factor best.

    mean_j [ R^2_(1)j - R^2_(2)j ],  R^2_ij = correlation(z_i, v_j)^2

    Lines are fitted, so a factor's integers must be in an order that means something: leave out a
    factor that is a mere name. Kumar, Sattigeri & Balakrishnan 2018, section 3.

    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> round(sap(-10.0 * v, v), 6)
    1.0
    """
    codes, factors = codes_and_factors("sap", codes, factors)
    correlation = standardised(codes).T @ standardised(factors) / len(codes)
    return float(np.mean(gap(correlation**2)))


@shown
class DCI(NamedTuple):
    """Three answers, each between 0 and 1; R_ij is how much latent i serves to predict factor j.

    disentanglement: 1 - entropy of R_i. over the factors, mean over latents by their share of R.
    completeness: 1 - entropy of R_.j over the latents, mean over factors.
    informativeness: how often a factor is predicted from all latents, mean over factors.

    Chance is the share of a factor's commonest value.
    """

    disentanglement: float
    completeness: float
    informativeness: float


@checked
def dci(key: Key, codes: Table, factors: Table, *, trees: Count = 100) -> DCI:
    """Disentanglement, completeness and informativeness, by gradient-boosted trees.

    A random half of the rows grows the trees, whose importances are R, and the other half is
    predicted. Logarithms are to base k and d, and informativeness is an accuracy. Time grows with
    rows x latents x trees x values of the factors.
    Eastwood & Williams 2018, section 2; trees, accuracies: Locatello et al. 2019.

    Args:
      key: a PRNG key: of the halves and of ties between splits.
      trees: boosting rounds, a tree a value each.

    >>> import jax
    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> [round(score, 3) for score in dci(jax.random.key(0), v, v, trees=5)]
    [1.0, 1.0, 1.0]
    """
    codes, factors = codes_and_factors("dci", codes, factors)
    classifier = sklearn("dci", "ensemble").GradientBoostingClassifier
    rng = generator(key)
    learn, test = np.array_split(rng.permutation(len(codes)), 2)
    codes_and_factors("dci (half of the rows)", codes[learn], factors[learn])
    seed = int(rng.integers(2**31))
    fits = [
        classifier(n_estimators=trees, random_state=seed).fit(codes[learn], v)
        for v in factors[learn].T
    ]
    importance = np.stack([fit.feature_importances_ for fit in fits], axis=1)
    accuracy = [fit.score(codes[test], v) for fit, v in zip(fits, factors[test].T, strict=True)]
    share = importance.sum(axis=1) / max(importance.sum(), 1e-30)
    return DCI(
        disentanglement=float(share @ concentration(importance)),
        completeness=float(np.mean(concentration(importance.T))),
        informativeness=float(np.mean(accuracy)),
    )
