"""Scores from the mutual information of latents and factors."""

import numpy as np

from jaxvae.checks import Count, checked
from jaxvae.evaluation.disentanglement.arrays import Table, codes_and_factors, entropy, gap


@checked
def mutual_information(codes: Table, factors: Table, *, bins: Count = 20) -> np.ndarray:
    """I(z_i; v_j) = H(z_i) + H(v_j) - H(z_i, v_j) by the table of joint counts, [d, k] nats.

    0 for a latent that never varies, at most the entropy of the factor, and high by about
    (bins - 1)(values - 1) / 2n where latent and factor are independent draws.

    Args:
      codes: [n, d]; floats are cut into `bins` of equal width, integers are taken as they are.

    Raises:
      TypeError: the codes are no numbers or the factors no integers, or they are traced.
      ValueError: they are not [n, d] and [n, k], a code is not finite, or a factor is constant.

    >>> z = np.array([[0.1, 5.0], [0.2, 5.0], [7.0, 5.0], [7.1, 5.0]])
    >>> mutual_information(z, np.array([[0], [0], [1], [1]])).round(3).tolist()
    [[0.693], [0.0]]
    """
    return _information("mutual_information", codes, factors, bins)[0]


@checked
def mig(codes: Table, factors: Table, *, bins: Count = 20) -> float:
    """The mutual information gap: by how much the best latent of a factor beats the second best.

    mean_j [ I(z_(1); v_j) - I(z_(2); v_j) ] / H(v_j)

    0 where two latents share a factor, whether they repeat it or only tell it together. Codes are
    in the paper a draw of q(z|x) for each x.
    Chen, Li, Grosse & Duvenaud 2018; bins: Locatello et al. 2019.

    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> turned = np.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1], v[:, 2]], axis=1)
    >>> mig(v, v), round(mig(turned, v), 3)
    (1.0, 0.333)
    """
    information, entropies = _information("mig", codes, factors, bins)
    return float(np.mean(gap(information) / entropies))


@checked
def modularity(codes: Table, factors: Table, *, bins: Count = 20) -> float:
    """How far each latent is from telling of more than its own factor.

    mean_i [ 1 - sum_{j != m} I_ij^2 / ((k - 1) I_im^2) ],  I_ij = I(z_i; v_j),  m = argmax_j I_ij

    A latent that tells of no factor is left out; 0 where none is left. A factor may have many
    latents at no cost. Noise gets 0 where all factors have as many values, else more: its I_ij are
    as values - 1. Ridgeway & Mozer 2018.

    >>> v = np.indices((4, 4, 4)).reshape(3, -1).T
    >>> modularity(np.concatenate([v, v], axis=1), v)
    1.0
    """
    information, _ = _information("modularity", codes, factors, bins)
    squared = information[information.max(axis=1) > 1e-9] ** 2
    if not len(squared):
        return 0.0
    best = squared.max(axis=1)
    return float(
        np.mean(1.0 - (squared.sum(axis=1) - best) / (best * max(squared.shape[1] - 1, 1)))
    )


def _information(
    owner: str, codes: Table, factors: Table, bins: Count
) -> tuple[np.ndarray, np.ndarray]:
    """I(z_i; v_j) [d, k] and H(v_j) [k]."""
    codes, factors = codes_and_factors(owner, codes, factors)
    if codes.dtype.kind == "f":
        low, width = codes.min(axis=0), np.ptp(codes, axis=0)
        cells = (codes - low) / np.where(width > 0, width, 1.0) * bins
        codes = np.minimum(cells, bins - 1).astype(int)
    z = [np.unique(column, return_inverse=True)[1] for column in codes.T]
    v = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    joint = [[entropy(np.bincount(a * (b.max() + 1) + b)) for b in v] for a in z]
    of_z, of_v = (np.array([entropy(np.bincount(a)) for a in labels]) for labels in (z, v))
    return np.maximum(of_z[:, None] + of_v - joint, 0.0), of_v
