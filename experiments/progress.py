"""What a person watches while a run goes on, and what the run leaves behind at every epoch."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

import jaxvae

Metrics = dict[str, np.ndarray]


def finite_mean(values: np.ndarray) -> float:
    """Of what is finite: a loss that was skipped is not."""
    good = values[np.isfinite(values)]
    return float(np.mean(good)) if good.size else np.nan


class Progress:
    """A callback of `jaxvae.fit`: a bar, and metrics.jsonl, which a resumed run goes on with.

    Args:
      path: the file that gets a line of JSON for every epoch.
      epochs: of the run.
      steps_per_epoch: of the run.
      batch: examples a step.
      validate: model -> named numbers, added to every line.
    """

    def __init__(
        self,
        path: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch: int,
        validate: Callable[[Any], dict[str, float]],
    ):
        self.path, self.validate = path, validate
        self.steps_per_epoch, self.batch = steps_per_epoch, batch
        self.lines: list[dict[str, float]] = []
        self.pending: list[Metrics] = []  # of the epoch under way
        self.timed: list[tuple[int, float]] = []  # steps and seconds of every look
        self.clock = time.perf_counter()
        self.bar = Bar(
            TextColumn(f"epoch {{task.fields[epoch]}}/{epochs}"),
            BarColumn(bar_width=5),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        total = epochs * steps_per_epoch
        self.task = self.bar.add_task("", total=total, epoch=0, numbers="compiling")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, state: jaxvae.TrainState, metrics: Metrics) -> None:
        seconds, first = time.perf_counter() - self.clock, not self.timed
        epoch, inside = divmod(int(state.step), self.steps_per_epoch)
        self.timed.append((len(metrics["loss"]), seconds))
        if first and self.path.exists():  # a run goes on, and these are its metrics so far
            self.keep_lines(int(state.step))
            self.timed[0] = (0, 0.0)
        metrics = {n: m[-(inside or self.steps_per_epoch) :] for n, m in metrics.items()}
        written = bool(self.lines) and self.lines[-1]["epoch"] == epoch
        if inside or not written:
            self.pending.append(metrics)
        numbers = {name: finite_mean(value) for name, value in metrics.items()}
        if self.lines and "rate" not in numbers:  # a bound without terms: those last validated
            for name in ("rate", "distortion"):
                numbers[name] = self.lines[-1].get(f"validation_{name}", np.nan)
        speed = len(metrics["loss"]) * self.batch / seconds
        shown = [f"{n} {numbers[n]:.1f}" for n in ("loss", "rate", "distortion") if n in numbers]
        shown += [f"skipped {numbers['skipped']:.0%}"] if numbers.get("skipped") else []
        self.bar.update(
            self.task,
            completed=int(state.step),
            epoch=epoch,
            numbers=" ".join([*shown, f"{speed / 1000:.3g}k examples/s"]),
        )
        if inside == 0 and not written:
            self.write_line(epoch, state)
        self.clock = time.perf_counter()

    def write_line(self, epoch: int, state: jaxvae.TrainState) -> None:
        """Append the epoch's means to metrics.jsonl."""
        names = self.pending[0]
        mean = {n: finite_mean(np.concatenate([m[n] for m in self.pending])) for n in names}
        steps, seconds = (
            sum(column) for column in zip(*self.timed[-len(self.pending) :], strict=True)
        )
        if "rate" in mean:  # at beta = 1, whatever is trained on
            mean["elbo"] = -(mean["rate"] + mean["distortion"])
        line = {
            "epoch": epoch,
            "step": int(state.step),
            **{f"train_{name}": value for name, value in mean.items()},
            **self.validate(state.model),
            "examples_per_second": steps * self.batch / max(seconds, 1e-9),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self.pending = []

    def keep_lines(self, step: int) -> None:
        """Read what was written up to a step, and drop the lines behind it, or cut off."""
        for line in self.path.read_text().splitlines():
            with suppress(ValueError):
                self.lines.append(json.loads(line))
        self.lines = [line for line in self.lines if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
