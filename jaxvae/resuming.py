"""A run that can be killed at any moment: which checkpoints it keeps, and where it goes on."""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvae.checkpoints import (
    CheckpointError,
    Damaged,
    first_difference,
    paths,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from jaxvae.checks import check_positive
from jaxvae.sharded import is_sharded, load_sharded, save_sharded
from jaxvae.stop_signals import Received, stop

PATTERN = "step_{:010d}.ckpt"
MAIN = "main.ckpt"  # in a folder of that name, where the state is sharded


class Checkpoints(NamedTuple):
    """Where `fit` saves, and from where the same call goes on after whatever has ended it.

    A checkpoint holds the model, the optimiser's state, the step, the run's key and the metrics of
    every step so far. The step says where in which epoch the run is, and what a schedule gives.

    Args:
      folder: one of the run's own; made where it is missing.
      keep: how many of the newest stay; the best stays as well.
      score: (state, metrics since the last look) -> a number, the lower the better, to say which is
        the best: on validation data for instance. By default the mean loss.
      share: of the run's time that saving may take. It is the pace: after a save that took 10 ms
        the next comes no sooner than a second later, at a look.
      config: what makes this run what it is, anything that JSON holds. One that finds another
        configuration in its folder does not go on.
    """

    folder: str | Path
    keep: int = 3
    score: Callable[[Any, Mapping[str, np.ndarray]], Any] | None = None
    share: float = 0.01
    config: Mapping[str, Any] = {}


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The checkpoints in a run's folder, the newest last."""
    return sorted(Path(folder).glob(PATTERN.replace("{:010d}", "*")))


def best_checkpoint(folder: str | Path) -> Path:
    """The checkpoint of the lowest score in a run's folder.

    Args:
      folder: of a `Checkpoints`.

    Raises:
      CheckpointError: none is there that can be read.
    """
    found = {path: info["score"] for path, info in _infos(folder).items()}
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint")
    return min(found, key=lambda path: found[path])


def _main_file(path: Path) -> Path:
    return path / MAIN if path.is_dir() else path


def _infos(folder: str | Path) -> dict[Path, dict[str, Any]]:
    """Of the readable ones, damaged leaves not looked for."""
    infos = {}
    for path in checkpoint_files(folder):
        try:
            infos[path] = read_checkpoint(_main_file(path), leaves=False).info
        except CheckpointError:
            continue
    return infos


class Keeper:
    """What `fit` does with its `Checkpoints`.

    Args:
      checkpoints: the settings.
      key: the run's key.
      run: what else of the call determines the numbers, as JSON.
    """

    def __init__(self, checkpoints: Checkpoints, key: jax.Array, run: dict[str, Any]):
        check_positive("Checkpoints", "keep", checkpoints.keep)
        if not checkpoints.share > 0:
            raise ValueError(f"Checkpoints: share is {checkpoints.share}, expected more than 0")
        try:
            self.identity = json.loads(json.dumps({"config": checkpoints.config, "fit": run}))
        except TypeError as error:
            raise TypeError(f"Checkpoints: config must be what JSON holds; {error}") from None
        self.folder, self.settings, self.key = Path(checkpoints.folder), checkpoints, key
        self.leads = jax.process_index() == 0
        self.saved_at, self.cost = time.monotonic(), 0.0
        self.looks = 0
        if self.leads:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                for rest in self.folder.glob(".*.part"):
                    rest.unlink()
            except OSError as error:
                raise CheckpointError(f"{self.folder} can't be written: {error.strerror}") from None
        self.scores = {path: info["score"] for path, info in _infos(self.folder).items()}

    def restore(self, state: Any) -> tuple[Any, dict[str, np.ndarray]] | None:
        """The newest state that is whole, with the metrics so far; None in an empty folder."""
        files = checkpoint_files(self.folder)
        if jax.process_count() > 1:  # what the first process sees, all read
            from jax.experimental import multihost_utils

            steps = np.array([int(path.stem.split("_")[1]) for path in files[-100:]], np.int32)
            steps = np.pad(steps, (100 - len(steps), 0), constant_values=-1)
            steps = multihost_utils.broadcast_one_to_all(steps)
            files = [self.folder / PATTERN.format(step) for step in steps if step >= 0]
        for path in reversed(files):
            try:
                leaves, info = read_checkpoint(_main_file(path))
                self._check_identity(path, info)
                self._check_key(path, leaves["['key']"])
                if path.is_dir():
                    found = load_sharded(path / "state", state)
                else:
                    found = restore(path, leaves, state, below="['state']")
            except Damaged as damage:
                self.scores.pop(path, None)
                warnings.warn(f"{damage}; looking for the one before", stacklevel=3)
                continue
            below = "['metrics']['"
            names = [p for p in leaves if p.startswith(below)]
            return found, {p[len(below) : -2]: np.asarray(leaves[p]) for p in names}
        if files:
            raise CheckpointError(
                f"{self.folder}: none of {len(files)} checkpoints is whole; start in another folder"
            )
        return None

    def _check_key(self, path: Path, key: jax.Array) -> None:
        if not np.array_equal(jax.random.key_data(key), jax.random.key_data(self.key)):
            raise CheckpointError(f"{path} is of a run with another key; {self._way_out()}")

    def _check_identity(self, path: Path, info: dict[str, Any]) -> None:
        stored, wanted = (paths({n: i[n] for n in self.identity}) for i in (info, self.identity))
        if first := first_difference(stored, wanted):
            where, there, here = first
            raise CheckpointError(
                f"{path} is of another run: {where} is {there!r} there and {here!r} here; "
                + self._way_out()
            )

    def _way_out(self) -> str:
        return "call with what the run was begun with, or start in another folder"

    def save(self, state: Any, metrics: Mapping[str, np.ndarray], score: float) -> Path:
        """Write one, and remove what need not be kept any more."""
        path = self.folder / PATTERN.format(int(state.step))
        tree, info = {"key": self.key, "metrics": dict(metrics)}, self.identity | {"score": score}
        try:
            if is_sharded(state):
                save_sharded(path / "state", state)
            else:
                tree["state"] = state
            if self.leads:
                save_checkpoint(path / MAIN if is_sharded(state) else path, tree, info=info)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._what_is_left()}") from None
        if self.leads:
            self.scores[path] = score
            newest = sorted(self.scores)[-self.settings.keep :]
            best = min(self.scores, key=lambda p: self.scores[p])
            for old in set(self.scores) - {*newest, best}:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
                del self.scores[old]
        return path

    def _score(self, state: Any, since: Mapping[str, np.ndarray]) -> float:
        if not since:  # before the first step
            return np.inf
        score = self.settings.score or (lambda _, metrics: np.mean(metrics["loss"]))
        found = float(score(state, since))
        return found if np.isfinite(found) else np.inf

    def _what_is_left(self) -> str:
        left = [path for path in checkpoint_files(self.folder) if path in self.scores]
        if not left:
            return "nothing was saved yet"
        return f"the last good one is {left[-1].name}; mend this and make the same call to go on"

    def look(
        self,
        state: Any,
        every_step: Callable[[], Mapping[str, np.ndarray]],
        since: Mapping[str, np.ndarray],
        received: Received,
        *,
        last: bool = False,
    ) -> None:
        """Save where it is time to, or where the run is to stop; then stop it."""
        began = time.monotonic()
        due = last or (began - self.saved_at) * self.settings.share >= self.cost
        number = received.number
        if jax.process_count() > 1:  # all save the same step, or none
            from jax.experimental import multihost_utils

            flags = multihost_utils.process_allgather(np.array([due and self.leads, number or 0]))
            due, number = bool(flags[:, 0].any()), int(flags[:, 1].max()) or None
            self.looks += 1
            if multihost_utils.reached_preemption_sync_point(self.looks):
                number = number or 15  # SIGTERM, which jax.distributed keeps to itself
        if due or number is not None:
            self.save(state, every_step(), self._score(state, since))
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - began
        if number is not None:
            stop(number)
