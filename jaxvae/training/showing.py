"""What a person sees of a run while it goes on: a line of progress, and pictures."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxvae.checks import Count, Location, checked
from jaxvae.training.callbacks import Callback, Run, is_due
from jaxvae.training.steps import Metrics, TrainState


def someone_looks() -> bool:
    """Whether standard error is a terminal, or this a notebook: where a line is seen."""
    shell = sys.modules.get("IPython")
    return sys.stderr.isatty() or (shell is not None and shell.get_ipython() is not None)


def progress() -> Callback:
    """A callback that shows one line, written over at every look: epoch, time left, means.

    A line before says where a run with checkpoints goes on from.
    `fit` has one by default where standard error is a terminal, and in a notebook.
    """
    return Progress()


class Line:
    """One line on standard error, written over, of work that ends when `end` of it is done.

    Work of less than a second shows nothing, and a second has at most ten.
    """

    def __init__(self, end: float):
        self.end, self.width = end, 0
        self.began = self.shown = time.monotonic()
        self.first: tuple[float, float] | None = None

    def show(self, done: float, text: Callable[[float | None], str]) -> None:
        """Where it is time to: what `text` makes of the seconds left, None if nobody knows."""
        now, last = time.monotonic(), done >= self.end
        if now - self.began > 1.0 and (last or now - self.shown > 0.1):
            self.shown = now
            line = text(self.left(now, done))[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(line)
        if self.first is None:  # the call that compiled is not the pace
            self.first = now, done

    def left(self, now: float, done: float) -> float | None:
        if self.first is None or done <= self.first[1] or not np.isfinite(self.end):
            return None
        return (now - self.first[0]) / (done - self.first[1]) * (self.end - done)

    def close(self) -> None:
        if self.width:
            print(file=sys.stderr, flush=True)


class Progress:
    """See `progress`; runs of less than a second show nothing."""

    def begin(self, run: Run) -> None:
        if run.folder is not None and run.step > 0:
            print(f"going on from step {run.step:,} in {run.folder}", file=sys.stderr, flush=True)
        self.run, self.line = run, Line(run.end)

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        step = int(state.step)
        where = f"epoch {epoch:.4g}/{self.run.epochs:.4g}"
        if not np.isfinite(self.run.end):  # of a stream's passes whole ones are counted alone
            where = f"step {step}, {where}"
        self.line.show(step, lambda left: line_of(metrics, where, left))

    def end(self, state: TrainState) -> None:
        del state
        self.line.close()


def line_of(metrics: Metrics, where: str, left: float | None = None) -> str:
    """A line for a person: where the run is, what is left of it, and the mean of each number."""
    parts = [where]
    if left is not None:  # first, as a terminal may be too narrow for all
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    for name, value in means_over_steps(metrics).items():
        if np.ndim(value) == 0:
            parts.append(f"{name} {value:.4g}")
        elif name == "loss":  # of a sweep
            parts.append(f"{name} {np.min(value):.4g} to {np.max(value):.4g}")
    return "  ".join(parts)


def means_over_steps(metrics: Metrics) -> dict[str, Any]:
    """The mean over the steps of each metric where it is finite; one without is left out."""
    found = {}
    for name, values in metrics.items():
        measured = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
        if len(measured):
            found[name] = np.mean(measured, axis=0)
    return found


@checked
def pictures(
    folder: Location, draw: Callable[[Any, Array], Any], *, every: Count | None = None
) -> Callback:
    """A callback that draws the model while it learns: folder/step_0000000100.png and so on.

    Args:
      folder: made where it is missing.
      draw: `(model, key) -> picture`: a figure of matplotlib, or an image of uint8, or of floats in
        [0, 1], of shape [H, W] or [H, W, 3], saved with Pillow.
      every: at the first look behind each multiple of so many steps; at every look by default.
    """

    def save(state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del epoch
        if not is_due(every, int(state.step), len(metrics["loss"])):
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_picture(Path(folder) / f"step_{int(state.step):010d}.png", draw(state.model, key))

    return save


def write_picture(path: Path, picture: Any) -> None:
    """A figure or an image, as a PNG."""
    if hasattr(picture, "savefig"):
        return picture.savefig(path)
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures: an image is saved with Pillow; pip install pillow") from None
    image = np.asarray(picture)
    if image.dtype.kind == "f":
        image = np.round(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    Image.fromarray(image).save(path)
