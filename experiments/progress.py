"""What a person watches while a run goes on, and what the run leaves behind at every epoch."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

import jaxvae

Metrics = dict[str, np.ndarray]


class NonFinite(Exception):
    """The loss is no longer a number; the message says where."""


@contextmanager
def interruptible() -> Iterator[Callable[..., None]]:
    """Ctrl-C as ever, and a callback of `jaxvae.fit` that raises it if it was lost meanwhile.

    Python drops a KeyboardInterrupt that is raised where exceptions are ignored: in a finalizer, or
    in a callback of a weak reference or of the garbage collector.
    """
    interrupted = False

    def interrupt(*_: Any) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check(*_: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored by a shell's "&", or somebody else's
        yield check
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


class Progress:
    """A callback of `jaxvae.fit`: a bar, metrics.jsonl, and a stop when the loss is not finite.

    Args:
      path: the file that gets a line of JSON for every epoch.
      epochs: of the run.
      steps_per_epoch: of the run.
      batch: examples a step.
      state: before the first step.
      validate: model -> named numbers, added to every line.
      describe: (last finite state, bad step) -> what to say when the loss is not finite.
    """

    def __init__(
        self,
        path: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch: int,
        state: jaxvae.TrainState,
        validate: Callable[[Any], dict[str, float]],
        describe: Callable[[jaxvae.TrainState, int], str],
    ):
        self.path, self.validate, self.describe = path, validate, describe
        self.steps_per_epoch, self.batch = steps_per_epoch, batch
        self.state = jax.tree.map(jnp.copy, state)  # the last one known to be finite
        self.lines: list[dict[str, float]] = []
        self.pending: list[Metrics] = []  # of the epoch under way
        self.seconds: list[float] = []  # of each call, its compilation included
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
        self.seconds.append(time.perf_counter() - self.clock)
        self.stop_unless_finite(state, metrics)
        self.state = jax.tree.map(jnp.copy, state)
        self.pending.append(metrics)
        epoch, steps_inside = divmod(int(state.step), self.steps_per_epoch)
        numbers = {name: float(np.mean(value)) for name, value in metrics.items()}
        if self.lines and "rate" not in numbers:  # a bound without terms: those last validated
            for name in ("rate", "distortion"):
                numbers[name] = self.lines[-1].get(f"validation_{name}", np.nan)
        speed = len(metrics["loss"]) * self.batch / self.seconds[-1]
        shown = [f"{n} {numbers[n]:.1f}" for n in ("loss", "rate", "distortion") if n in numbers]
        self.bar.update(
            self.task,
            completed=int(state.step),
            epoch=epoch,
            numbers=" ".join([*shown, f"{speed / 1000:.3g}k examples/s"]),
        )
        if steps_inside == 0:
            self.write_line(epoch, state)
        self.clock = time.perf_counter()

    def write_line(self, epoch: int, state: jaxvae.TrainState) -> None:
        """Append the epoch's means to metrics.jsonl."""
        names = self.pending[0]
        mean = {n: float(np.mean(np.concatenate([m[n] for m in self.pending]))) for n in names}
        examples = self.batch * self.steps_per_epoch
        if "rate" in mean:  # at beta = 1, whatever is trained on
            mean["elbo"] = -(mean["rate"] + mean["distortion"])
        line = {
            "epoch": epoch,
            "step": int(state.step),
            **{f"train_{name}": value for name, value in mean.items()},
            **self.validate(state.model),
            "examples_per_second": examples / sum(self.seconds),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self.pending, self.seconds = [], []

    def stop_unless_finite(self, state: jaxvae.TrainState, metrics: Metrics) -> None:
        """Raise NonFinite for the first step whose loss, or what it led to, is no finite number."""
        bad = ~np.isfinite(metrics["loss"])
        bad[-1] |= not np.isfinite(optax.tree.norm(state.model))
        if bad.any():
            first = int(np.argmax(bad))
            bad_step = int(state.step) - len(bad) + first + 1
            numbers = ", ".join(f"{name} {value[first]:g}" for name, value in metrics.items())
            raise NonFinite(f"step {bad_step}: {numbers}, {self.describe(self.state, bad_step)}")
