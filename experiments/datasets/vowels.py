"""Utterances of two vowels as series of unequal length, and how good forecasts are: NumPy alone."""

import hashlib
from pathlib import Path

import numpy as np

LENGTH = 29  # steps of the longest; the shortest has 7
CHANNELS = 12
SEEN = 8  # steps before a forecast
AHEAD = (1, 5, 10)  # steps to it
CHECKSUMS = {
    "TRAIN": "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
    "TEST": "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
}
HOW = "pip download --no-deps aeon==1.6.0, and unzip it: aeon/datasets/data/JapaneseVowels"


def read(folder: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(x, mask) to train on and to test on, [n, 29, 12] and [n, 29], zeros behind a series' end.

    A channel has mean 0 and variance 1 over the steps to train on.
    """
    train, test = (_file(Path(folder) / f"JapaneseVowels_{part}.ts") for part in CHECKSUMS)
    steps = np.concatenate(train)
    loc, scale = steps.mean(0), steps.std(0)
    return _padded(train, loc, scale), _padded(test, loc, scale)


def _file(path: Path) -> list[np.ndarray]:
    part = path.stem.split("_")[-1]
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != CHECKSUMS[part]:
        raise SystemExit(f"{path} is not the file expected; {HOW}")
    rows = [row for row in path.read_text().splitlines() if row and row[0] not in "#@"]
    # channels are separated by colons, the last of which is the speaker
    channels = [[channel.split(",") for channel in row.split(":")[:-1]] for row in rows]
    return [np.array(series, np.float32).T for series in channels]


def _padded(
    series: list[np.ndarray], loc: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x = np.zeros((len(series), LENGTH, CHANNELS), np.float32)
    for row, one in zip(x, series, strict=True):
        row[: len(one)] = (one - loc) / scale
    lengths = np.array([len(one) for one in series])
    return x, np.arange(LENGTH) < lengths[:, None]


def measured(draws: np.ndarray, x: np.ndarray, mask: np.ndarray) -> dict[str, dict[str, float]]:
    """Forecasts of the steps behind the first SEEN, [draws, n, steps, channels], AHEAD of them.

    Over series so long: the share of channels in the central 90 % interval with its standard error
    over series, the root of the mean squared error of the mean, and the mean continuous ranked
    probability score.
    """
    found = {}
    for h in AHEAD:
        there = mask[:, SEEN + h - 1]
        forecast, truth = draws[:, there, h - 1], x[there, SEEN + h - 1]
        low, high = np.quantile(forecast, [0.05, 0.95], axis=0)
        inside = ((low <= truth) & (truth <= high)).mean(1)
        n = len(draws)
        rank = (2.0 * np.arange(1, n + 1) - n - 1.0) / (n * (n - 1.0))
        spread = np.tensordot(rank, np.sort(forecast, 0), 1)  # E|X - X'| / 2
        found[f"{h} ahead"] = {
            "series": int(there.sum()),
            "coverage": float(inside.mean()),
            "error": float(inside.std(ddof=1) / len(inside) ** 0.5),
            "RMSE": float(np.sqrt(np.mean((forecast.mean(0) - truth) ** 2))),
            "CRPS": float(np.mean(np.abs(forecast - truth).mean(0) - spread)),
        }
    return found
