"""Build the page: python -m experiments.explorable [--output FILE] [--fast]."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.common.data import load
from experiments.explorable import models
from experiments.explorable.page import page
from experiments.story.common import SIGMA, load_digits


def main(
    output: Path = Path("runs/explorable/story.html"), fast: bool = False, seed: int = 0
) -> None:
    """The VAE's theory as one page whose figures compute; about five minutes of processor time.

    Args:
        output: the file to write.
        fast: train for two epochs, to see that everything runs; the models then know little.
        seed: names the run.
    """
    html = page(shipped(jax.random.key(seed), fast=fast))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html)
    print(f"{output}, {output.stat().st_size / 1e6:.2f} MB")


def shipped(key: jax.Array, *, fast: bool) -> dict[str, Any]:
    """Digits, labels, and models by where they are shown."""
    digits = load_digits()
    splits = load("digits")
    labels = [np.asarray(s.labels) for s in (splits.train, splits.validation, splits.test)]
    menu_key, pairs_key, sweep_key = jax.random.split(key, 3)
    return {
        "digits": models.as_text(np.rint(digits.all * 16), np.uint8),
        "labels": models.as_text(np.concatenate(labels), np.uint8),
        "num_train": len(digits.train),
        "sigma": SIGMA,
        "menu": models.menu(digits, menu_key, epochs=2 if fast else models.EPOCHS),
        "pairs": models.pairs(digits, pairs_key, epochs=2 if fast else models.AUTOENCODER_EPOCHS),
        "sweep": models.sweep(digits, sweep_key, epochs=2 if fast else models.EPOCHS),
        "spectrum": models.spectrum(digits),
    }


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
