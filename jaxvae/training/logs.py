"""Metrics of a run in files and trackers: every step once, whatever ends the run and resumes it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from csv import DictReader, DictWriter
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jax import Array

from jaxvae.checks import Location, checked, warn
from jaxvae.training.callbacks import Callback, Run
from jaxvae.training.checkpoints.durable import part_of, write_text
from jaxvae.training.showing import means_over_steps
from jaxvae.training.steps import Metrics, TrainState

Numbers = dict[str, float]


class _Log(ABC):
    """A callback that adds one line a look: the means of the steps that no line before has."""

    last = 0

    @abstractmethod
    def start(self, run: Run) -> int:
        """The last step that is in the log when the run begins, or goes on."""

    @abstractmethod
    def add(self, step: int, numbers: Numbers) -> None: ...

    def begin(self, run: Run) -> None:
        self.last = self.start(run)

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        step = int(state.step)
        new = min(step - self.last, len(metrics["loss"]))
        if new > 0:
            self.add(step, numbers_of({n: v[-new:] for n, v in metrics.items()}, epoch))
            self.last = step


def numbers_of(metrics: Metrics, epoch: float) -> Numbers:
    """Means over the steps, of an array each of its numbers as `name_0`, `name_1` ..."""
    numbers = {"epoch": float(epoch)}
    for name, value in means_over_steps(metrics).items():
        if np.ndim(value) == 0:
            numbers[name] = float(value)
        else:
            numbers |= {f"{name}_{i}": float(v) for i, v in enumerate(np.ravel(value))}
    return numbers


@checked
def log_to(function: Callable[[int, dict[str, float]], Any], *, name: str = "log") -> Callback:
    """A callback that gives `function(step, numbers)` the means of the steps since the last look.

    numbers are the epoch and the metrics, of an array each number as `name_0`, `name_1` ... What a
    run that was killed had logged beyond its last checkpoint is made again, and not logged again:
    a file in the folder of the checkpoints keeps the last step.

    Args:
      function: for instance `lambda step, numbers: print(step, numbers["loss"])`.
      name: of that file, where a run has several logs.

    >>> import jax
    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer = optax.sgd(0.1)
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> shown = log_to(lambda step, numbers: print(step, round(numbers["loss"], 2)))
    >>> state, xs = init_state(np.zeros((), np.float32), optimizer), np.ones(10, np.float32)
    >>> _ = fit(step, state, jax.random.key(0), xs, epochs=2, batch_size=10, callbacks=[shown])
    1 1.0
    2 0.64
    """
    return _Tracker(function, name)


class _Tracker(_Log):
    def __init__(self, function: Callable[[int, Numbers], Any], name: str):
        self.function, self.name = function, name

    def start(self, run: Run) -> int:
        self.marker = None if run.folder is None else run.folder / f"{self.name}.logged"
        if self.marker is None or not self.marker.exists():
            return run.step
        text = self.marker.read_text(errors="replace")  # as it is not flushed, it may be cut short
        return max(run.step, int(text)) if text.isdecimal() else run.step

    def add(self, step: int, numbers: Numbers) -> None:
        self.function(step, numbers)
        if self.marker is not None:
            part = part_of(self.marker)
            part.write_text(str(step))
            part.replace(self.marker)


def tensorboard(writer: Any) -> Callback:
    """A callback that logs to TensorBoard: a `SummaryWriter` of tensorboardX or of PyTorch."""

    def add(step: int, numbers: Numbers) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()

    return log_to(add, name="tensorboard")


def wandb(run: Any) -> Callback:
    """A callback that logs to Weights & Biases: what `wandb.init(...)` returns.

    For a run that may be resumed, `wandb.init(id="my-run", resume="allow")`.
    """
    return log_to(lambda step, numbers: run.log(numbers, step=step), name="wandb")


def mlflow(module: ModuleType | None = None) -> Callback:
    """A callback that logs to MLflow's active run, `mlflow.start_run(run_id=...)`.

    Raises:
      ImportError: MLflow is not installed.
    """
    if module is None:
        try:
            import mlflow as module  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError("mlflow: MLflow is not installed; pip install mlflow") from None
    log: Any = module
    return log_to(lambda step, numbers: log.log_metrics(numbers, step=step), name="mlflow")


@checked
def json_lines(path: Location) -> Callback:
    """A callback that adds a line of JSON at every look: step, epoch, the means of the metrics.

    The file is the run's own: one that begins starts it anew, one that goes on drops the lines of
    steps that are made again. `pandas.read_json(path, lines=True)` reads it.

    >>> import tempfile
    >>> import jax
    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer, path = optax.sgd(0.1), Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> state, xs = init_state(np.zeros((), np.float32), optimizer), np.ones(10, np.float32)
    >>> callbacks = [json_lines(path)]
    >>> _ = fit(step, state, jax.random.key(0), xs, epochs=1, batch_size=10, callbacks=callbacks)
    >>> json.loads(path.read_text())
    {'step': 1, 'epoch': 1.0, 'loss': 1.0}
    """
    return _JsonLines(Path(path))


class _JsonLines(_Log):
    def __init__(self, path: Path):
        self.path = path

    def start(self, run: Run) -> int:
        def by_step(line: str) -> int:
            return int(json.loads(line)["step"])

        kept = _up_to(run.step, self.path, by_step, whole_lines(self.path))
        write_text(self.path, "".join(line for _, line in kept))
        return kept[-1][0] if kept else 0

    def add(self, step: int, numbers: Numbers) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")


@checked
def csv(path: Location) -> Callback:
    """A callback that adds a row to a table at every look, as `json_lines` adds a line.

    A metric that comes later gets a column then; where it was not measured its cell is empty.

    >>> import tempfile
    >>> import jax
    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer, path = optax.sgd(0.1), Path(tempfile.mkdtemp()) / "log.csv"
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> state, xs = init_state(np.zeros((), np.float32), optimizer), np.ones(10, np.float32)
    >>> _ = fit(step, state, jax.random.key(0), xs, epochs=1, batch_size=10, callbacks=[csv(path)])
    >>> path.read_text().splitlines()
    ['step,epoch,loss', '1,1.0,1.0']
    """
    return _Csv(Path(path))


class _Csv(_Log):
    def __init__(self, path: Path):
        self.path = path

    def start(self, run: Run) -> int:
        def by_step(row: dict[str, Any]) -> int:
            _ = [float(cell) for cell in row.values() if cell != ""]
            return int(row["step"])

        kept = _up_to(run.step, self.path, by_step, DictReader(whole_lines(self.path)))
        self.columns = list(kept[0][1]) if kept else []
        self._write_all(row for _, row in kept)
        return kept[-1][0] if kept else 0

    def _write_all(self, rows: Iterable[dict[str, Any]]) -> None:
        file = StringIO()
        writer = DictWriter(file, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, file.getvalue())

    def add(self, step: int, numbers: Numbers) -> None:
        row = {"step": step, **numbers}
        if new := [name for name in row if name not in self.columns]:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = [*DictReader(file)]
            self.columns += new
            self._write_all(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            DictWriter(file, self.columns, lineterminator="\n").writerow(row)


def whole_lines(path: Path) -> list[str]:
    """Of a file that a kill may have cut off in the last, or that is not there yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="", errors="replace") as file:
        return [line for line in file if line.endswith("\n")]


def _up_to(last: int, path: Path, step: Callable[[Any], int], lines: Iterable[Any]) -> list[Any]:
    """Step and line of those that a run has made; a power cut may have left zeros in others."""
    kept, damaged = [], 0
    for line in lines:
        try:
            kept.append((step(line), line))
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        warn(
            f"{path} is damaged: lines of it, {damaged} in number, can't be read and are left out",
        )
    return [(at, line) for at, line in kept if at <= last]
