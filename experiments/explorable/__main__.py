"""Build the page: python -m experiments.explorable [--output FILE] [--models-from PAGE]."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.command import command
from experiments.common.data import load
from experiments.common.progress import bar
from experiments.explorable import models
from experiments.explorable.page import page
from experiments.story.common import SIGMA, load_digits


def main(
    output: Path = Path("runs/explorable/story.html"),
    models_from: Path | None = None,
    fast: bool = False,
    seed: int = 0,
) -> None:
    """The VAE's theory as one page whose figures compute; about five minutes of processor time.

    Args:
        output: the file to write.
        models_from: a page built before; its models are taken, and none is trained.
        fast: train for two epochs, to see that everything runs; the models then know little.
        seed: names the run.
    """
    html = page(kept(models_from) if models_from else shipped(jax.random.key(seed), fast=fast))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html)
    print(f"{output}, {output.stat().st_size / 1e6:.2f} MB")


def kept(path: Path) -> dict[str, Any]:
    """What a page ships, read from it."""
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    if not found:
        raise SystemExit(f"{path} is no page that python -m experiments.explorable has built")
    return json.loads(found[1])


def shipped(key: jax.Array, *, fast: bool) -> dict[str, Any]:
    """Digits, labels, and models by where they are shown."""
    digits = load_digits()
    splits = load("digits")
    labels = [np.asarray(s.labels) for s in (splits.train, splits.validation, splits.test)]
    menu_key, pairs_key, sweep_key = jax.random.split(key, 3)
    epochs, of_pairs = (2, 2) if fast else (models.EPOCHS, models.AUTOENCODER_EPOCHS)
    with bar(models.TURNS) as at:
        trained = {
            "menu": models.menu(digits, menu_key, at, epochs=epochs),
            "pairs": models.pairs(digits, pairs_key, at, epochs=of_pairs),
            "sweep": models.sweep(digits, sweep_key, at, epochs=epochs),
        }
    return {
        "digits": models.as_text(np.rint(digits.all * 16), np.uint8),
        "labels": models.as_text(np.concatenate(labels), np.uint8),
        "num_train": len(digits.train),
        "sigma": SIGMA,
        **trained,
        "spectrum": models.spectrum(digits),
    }


if __name__ == "__main__":
    command(main, __doc__)
