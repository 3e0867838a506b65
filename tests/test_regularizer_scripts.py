"""The scripts of the regularizers, two steps on 64 images each, leave every number and picture."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.regularizers import autoencoders, collapse, total_correlation


def split(side, levels, num=64):
    images = np.random.default_rng(0).integers(0, levels + 1, (num, side, side, 1))
    labels = np.arange(num) % 10
    return SimpleNamespace(images=images.astype(np.uint8), labels=labels)


SCRIPTS: dict[str, tuple[Any, int, int, int, dict[str, Any]]] = {  # module, side, levels, models
    "autoencoders": (autoencoders, 28, 255, 4, {"LATENT": 2, "HIDDEN": (8,), "DIRECTIONS": 5}),
    "collapse": (collapse, 28, 1, 9, {"LATENT": 3, "HIDDEN": 8, "WIDTH": 4, "WINDOW": 1}),
    "total_correlation": (total_correlation, 8, 16, 5, {"LATENT": 3, "HIDDEN": (8,)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_two_steps(name, tmp_path, monkeypatch, capsys):
    module, side, levels, models, small = SCRIPTS[name]
    data = SimpleNamespace(train=split(side, levels), test=split(side, levels))
    monkeypatch.setattr(module, "load", lambda *_, **__: data)
    for constant, value in {**small, "EPOCHS": 1, "BATCH": 32, "SEEDS": 1}.items():
        monkeypatch.setattr(module, constant, value)
    monkeypatch.chdir(tmp_path)
    module.main()
    folder = tmp_path / "runs" / "regularizers" / name
    numbers: dict[str, Any] = {}
    for path in folder.rglob("result.json"):
        numbers |= json.loads(path.read_text())
    assert len(numbers) == models
    for rows in numbers.values():
        assert all(np.isfinite(list(row.values())).all() for row in rows)
    (picture,) = folder.glob("*.png")
    assert picture.stat().st_size > 5_000
    assert "+-" in capsys.readouterr().out
