"""What a person watches while a run goes on, and what the run leaves behind at every epoch."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

import jaxvae

Metrics = dict[str, np.ndarray]
SPEED = "examples_per_second"


def finite_mean(values: np.ndarray) -> float:
    """Of what is finite: a loss that was skipped is not."""
    good = values[np.isfinite(values)]
    return float(np.mean(good)) if good.size else np.nan


@contextmanager
def bar(turns: int, console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """A bar for a loop whose turns take minutes: it gives a function to call as each one begins.

    It moves while a turn runs, and is shown on a terminal alone: nothing of it goes to a file.

    Args:
      turns: of the loop.
      console: to show it on; standard output by default.
    """
    console, turn = console or Console(), count()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=turns)
        yield lambda name: shown.update(task, description=name, completed=next(turn))


class Progress:
    """A callback of `jaxvae.fit`: a bar, and metrics.jsonl, written from the run's metrics alone.

    At the end of an epoch it returns what was validated and the speed, which so become metrics of
    the run and are in its checkpoints: a run that goes on writes the file anew from these.

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
        self.pending: Metrics = {}  # of the epoch under way
        self.calls = self.steps = 0
        self.seconds, self.clock = 0.0, time.perf_counter()
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

    def __call__(self, state: jaxvae.TrainState, metrics: Metrics, *_: Any) -> dict[str, float]:
        now = time.perf_counter()
        if self.calls == 0:  # of a run that goes on, these are all metrics so far
            self.path.unlink(missing_ok=True)
        elif self.calls == 1 and self.pending:  # the first call compiled
            self.steps, self.seconds = 0, 0.0
        self.calls += 1
        self.steps, self.seconds = (
            self.steps + len(metrics["loss"]),
            self.seconds + now - self.clock,
        )
        found = self.epochs_in(state.model, metrics)
        self.show(int(state.step), metrics)
        self.clock = time.perf_counter()
        return found

    def epochs_in(self, model: Any, metrics: Metrics) -> dict[str, float]:
        """Write a line for every epoch that is complete; what was measured for the last of them."""
        found: dict[str, float] = {}
        if self.pending:
            metrics = {n: np.concatenate([self.pending[n], metrics[n]]) for n in self.pending}
        n, lines = self.steps_per_epoch, len(self.lines)
        while len(metrics["loss"]) >= n:
            epoch = {name: values[:n] for name, values in metrics.items()}
            metrics = {name: values[n:] for name, values in metrics.items()}
            numbers = {m: float(v[-1]) for m, v in epoch.items() if is_measured(m)}
            if SPEED not in numbers:
                speed = self.steps * self.batch / max(self.seconds, 1e-9)
                numbers = found = {**self.validate(model), SPEED: speed}
                self.steps, self.seconds = 0, 0.0
            mean = {m: finite_mean(v) for m, v in epoch.items() if not is_measured(m)}
            if "rate" in mean:  # at beta = 1, whatever is trained on
                mean["elbo"] = -(mean["rate"] + mean["distortion"])
            at = {"epoch": len(self.lines) + 1, "step": (len(self.lines) + 1) * n}
            train = {f"train_{name}": value for name, value in mean.items()}
            self.lines.append(at | train | dict(sorted(numbers.items())))
        self.pending = {m: v for m, v in metrics.items() if not is_measured(m) and len(v)}
        if len(self.lines) > lines:
            with self.path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in self.lines[lines:])
        return found

    def show(self, step: int, metrics: Metrics) -> None:
        """Move the bar, with the means since the last look."""
        numbers = {n: finite_mean(v[-self.steps_per_epoch :]) for n, v in metrics.items()}
        if self.lines and "rate" not in numbers:  # a bound without terms: those last validated
            for name in ("rate", "distortion"):
                numbers[name] = self.lines[-1].get(f"validation_{name}", np.nan)
        shown = [f"{n} {numbers[n]:.1f}" for n in ("loss", "rate", "distortion") if n in numbers]
        shown += [f"skipped {numbers['skipped']:.0%}"] if numbers.get("skipped") else []
        if self.calls > 1:
            speed = len(metrics["loss"]) * self.batch / (time.perf_counter() - self.clock)
            shown += [f"{speed / 1000:.3g}k examples/s"]
        epoch = step // self.steps_per_epoch
        self.bar.update(self.task, completed=step, epoch=epoch, numbers=" ".join(shown))


def is_measured(name: str) -> bool:
    """Whether a metric is one that `Progress` itself has returned."""
    return name == SPEED or name.startswith("validation_")
