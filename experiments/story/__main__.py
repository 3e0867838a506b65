"""Run the story: python -m experiments.story [--output runs/story] [--fast]."""

import json
import time
from pathlib import Path
from typing import Any

import jax

from experiments.common.command import command
from experiments.common.plotting import save
from experiments.common.progress import bar
from experiments.story import autoencoder, beta, covariance, em, evidence, gradients, lower_bound
from experiments.story.common import load_digits

STEPS = (autoencoder, evidence, em, lower_bound, gradients, covariance, beta)


def main(output: Path = Path("runs/story"), fast: bool = False, seed: int = 0) -> None:
    """The theory of the VAE on 8x8 digits, in seven steps.

    Args:
        output: where the pictures and story.json go.
        fast: tiny sizes, to see that everything runs; the numbers then mean little.
        seed: names the run.
    """
    output.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    story: dict[str, Any] = {"seed": seed, "fast": fast}
    with bar(len(STEPS)) as at:
        for number, chapter in enumerate(STEPS, start=1):
            name = chapter.__name__.rpartition(".")[2]
            at(f"step {number}, {name}")
            print(f"\n{chapter.__doc__ or ''}")
            start = time.perf_counter()
            step = chapter.step(digits, jax.random.fold_in(jax.random.key(seed), number), fast=fast)
            seconds = time.perf_counter() - start
            for label, value in step.numbers.items():
                print(f"  {label.replace('_', ' '):<56} {show(value)}")
            print(f"  picture {output / name}.png, {seconds:.0f} s")
            save(step.picture, output / f"{name}.png")
            story[name] = {**step.numbers, "seconds": round(seconds, 1)}
    (output / "story.json").write_text(json.dumps(story, indent=1) + "\n")


def show(value: Any) -> str:
    return "  ".join(f"{v:.8g}" for v in value) if isinstance(value, list) else f"{value:.8g}"


if __name__ == "__main__":
    command(main, __doc__)
