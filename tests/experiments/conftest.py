"""What tests of the experiments share."""

import numpy as np
import pytest

from experiments.datasets import cells, photographs, vowels
from experiments.zoo import data


@pytest.fixture
def stand_ins(monkeypatch):
    """Random data of the shapes of those that are not here."""
    rng = np.random.default_rng(0)
    series, mask = rng.normal(size=(60, 29, 12)).astype(np.float32), np.arange(29) < 9
    both = series, np.tile(mask, (60, 1))
    counts = rng.poisson(2.0, (100, 765)).astype(np.float32)
    image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    monkeypatch.setattr(data, "there", lambda path: path)
    monkeypatch.setattr(vowels, "read", lambda _: (both, both))
    monkeypatch.setattr(cells, "read", lambda _: ((counts, {}), None, None))
    monkeypatch.setattr(photographs, "patches", lambda *_: (list(range(80)), list(range(20))))
    monkeypatch.setattr(photographs, "read", lambda _: image)
    data.read.cache_clear()
    yield
    data.read.cache_clear()
