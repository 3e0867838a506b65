"""What the scores share: arrays checked, entropies, randomness from a key."""

from importlib import import_module
from typing import Annotated, Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxvae.checks import Key, check_array


def _check_table(owner: str, name: str, value: Any) -> None:
    check_array(owner, name, value)
    if isinstance(value, Tracer):
        raise TypeError(f"{owner}: {name} is traced, expected numbers; call it outside jit")
    if np.ndim(value) != 2 or 0 in np.shape(value):
        raise ValueError(
            f"{owner}: {name} has shape {np.shape(value)}, expected [n, {name}] of n examples"
        )


Table = Annotated[Array | np.ndarray, _check_table]
"""A row an example: codes [n, d], factors [n, k]."""


def codes_and_factors(owner: str, codes: Table, factors: Table) -> tuple[np.ndarray, np.ndarray]:
    """The two as NumPy arrays, or an error that says what they lack."""
    codes, factors = np.asarray(codes), np.asarray(factors)
    if factors.dtype.kind not in "biu":
        raise TypeError(f"{owner}: factors has dtype {factors.dtype}, expected integers")
    if len(codes) != len(factors):
        raise ValueError(
            f"{owner}: codes has {len(codes)} rows and factors {len(factors)}, expected as many"
        )
    if codes.dtype.kind not in "biu":
        codes = codes.astype(np.float64)
        if not np.isfinite(codes).all():
            at = tuple(map(int, np.argwhere(~np.isfinite(codes))[0]))
            raise ValueError(f"{owner}: codes holds {codes[at]} at {at}, expected finite numbers")
    for column, values in enumerate(factors.T):
        if (values == values[0]).all():
            raise ValueError(
                f"{owner}: factors holds {values[0]} throughout column {column}, expected two "
                "values or more; leave that factor out"
            )
    return codes, factors


def entropy(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights.sum()
    return -float(np.sum(p * np.log(p)))


def concentration(weights: np.ndarray) -> np.ndarray:
    """1 - entropy of each row, in units of the largest there can be; 0 for a row of zeros."""
    largest = np.log(max(weights.shape[1], 2))
    return np.array([1.0 - entropy(row) / largest if row.any() else 0.0 for row in weights])


def gap(scores: np.ndarray) -> np.ndarray:
    """The largest of each column [d, k] less the second, which is 0 where there is one row."""
    second, first = np.sort(np.pad(scores, ((1, 0), (0, 0))), axis=0)[-2:]
    return first - second


def standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; zeros where a column never varies."""
    values = values.astype(np.float64)
    varies = np.ptp(values, axis=0) > 0
    scale = np.where(varies, values.std(axis=0), 1.0)
    return np.where(varies, (values - values.mean(axis=0)) / scale, 0.0)


def generator(key: Key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def sklearn(owner: str, module: str) -> Any:
    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise ImportError(
            f'{owner}: scikit-learn is not installed; pip install "jaxvae[disentanglement]"'
        ) from None
