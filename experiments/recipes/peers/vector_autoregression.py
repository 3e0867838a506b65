"""The series of `experiments.recipes.sequences` by vector autoregressions: NumPy alone.

    python -m experiments.recipes.peers.vector_autoregression FOLDER

x_t = a + A_1 x_{t-1} + ... + A_p x_{t-p} + e_t, e ~ N(0, S), by ridge regression on the pairs
within the series to train on; the first p steps of a series, and fewer lags, have regressions of
their own, so that log p is of whole series. The ridge is chosen by the log-likelihood of one series
in five, held out, and all are then fitted again.
"""

import json

import numpy as np
import tyro

from experiments.common.command import command
from experiments.datasets.vowels import AHEAD, CHANNELS, SEEN, measured, read

RIDGES = (0.0, 1.0, 10.0, 100.0, 1000.0)
DRAWS = 1000


def fit(x: np.ndarray, mask: np.ndarray, lags: int, ridge: float) -> list[tuple]:
    """(coefficients, intercept first; covariance) of the step after 0, 1, ..., lags others.

    The last of them is of every later step.
    """
    steps = []
    for p in range(lags + 1):
        rows, next_ones = pairs(x, mask, p, only=p < lags)
        penalty = ridge * np.diag([0.0] + [1.0] * (p * CHANNELS))
        a = np.linalg.solve(rows.T @ rows + penalty, rows.T @ next_ones)
        left = next_ones - rows @ a
        steps.append((a, left.T @ left / (len(left) - len(a))))
    return steps


def pairs(x: np.ndarray, mask: np.ndarray, p: int, *, only: bool) -> tuple[np.ndarray, np.ndarray]:
    """(1, x_{t-1}, ..., x_{t-p}) and x_t: at t = p + 1 only, or from there on."""
    at = [
        (i, t) for t in range(p, p + 1 if only else x.shape[1]) for i in np.flatnonzero(mask[:, t])
    ]
    rows = [np.concatenate([[1.0], *(x[i, t - k] for k in range(1, p + 1))]) for i, t in at]
    return np.array(rows, float), np.array([x[i, t] for i, t in at], float)


def log_p(steps: list[tuple], x: np.ndarray, mask: np.ndarray) -> float:
    """Nats a step, over all steps."""
    total = 0.0
    for p, (a, s) in enumerate(steps):
        rows, next_ones = pairs(x, mask, p, only=p < len(steps) - 1)
        left = next_ones - rows @ a
        quadratic = np.sum(left * np.linalg.solve(s, left.T).T)
        total -= 0.5 * (quadratic + len(left) * np.linalg.slogdet(2.0 * np.pi * s)[1])
    return total / mask.sum()


def forecast(steps: list[tuple], rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Draws of the steps after SEEN, [draws, n, steps, channels]."""
    a, s = steps[-1]
    tril, p = np.linalg.cholesky(s), len(steps) - 1
    path = [np.broadcast_to(x[:, t], (DRAWS, *x[:, t].shape)) for t in range(SEEN)]
    for _ in range(max(AHEAD)):
        rows = np.concatenate([np.ones((*path[0].shape[:2], 1)), *path[-1 : -p - 1 : -1]], axis=2)
        path.append(rows @ a + rng.normal(size=path[0].shape) @ tril.T)
    return np.stack(path[SEEN:], axis=2)


def main(folder: tyro.conf.Positional[str]) -> None:
    (x, mask), (test, seen) = read(folder)
    held_out = np.random.default_rng(0).random(len(x)) < 0.2
    for lags in (1, 2, 3):
        scores = [
            log_p(fit(x[~held_out], mask[~held_out], lags, r), x[held_out], mask[held_out])
            for r in RIDGES
        ]
        ridge = RIDGES[int(np.argmax(scores))]
        steps = fit(x, mask, lags, ridge)
        draws = forecast(steps, np.random.default_rng(0), test)
        result = {"lags": lags, "ridge": ridge, "log p a step": log_p(steps, test, seen)}
        print(json.dumps(result | measured(draws, test, seen)), flush=True)


if __name__ == "__main__":
    command(main, __doc__)
