"""A run that can be killed at any moment: when it saves, what it keeps, and where it goes on."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae.checks import Tree, check_fields, warn
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.durable import discard, make_folder, part_of, publish
from jaxvae.training.checkpoints.files import (
    CheckpointError,
    CorruptCheckpointError,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from jaxvae.training.checkpoints.identity import Identity
from jaxvae.training.checkpoints.resuming import (
    MAIN,
    Checkpoints,
    checkpoint_files,
    checkpoint_of,
    infos,
    main_file,
    step_of,
)
from jaxvae.training.checkpoints.sharded import is_sharded, load_sharded, save_sharded
from jaxvae.training.checkpoints.stop_signals import stop, stop_signals
from jaxvae.training.devices import texts_of_every_process
from jaxvae.training.sources import Source

LOCK = ".lock"  # held by the process that writes, and by none once that has ended


class Store:
    """The checkpoints of one run of a key and a source, which one process writes at a time."""

    def __init__(self, checkpoints: Checkpoints, key: jax.Array, source: Source):
        check_fields("fit", "checkpoints", checkpoints)
        try:
            config = json.loads(json.dumps(checkpoints.config))
        except TypeError as error:
            raise TypeError(f"Checkpoints: config must be what JSON holds; {error}") from None
        self.info = {"config": config}  # whole: paths don't show None, nor what is empty
        self.config = {"config" + path: value for path, value in paths(config).items()}
        self.folder, self.settings, self.key = Path(checkpoints.folder), checkpoints, key
        self.source, self.newest = source, -1
        self.leads = jax.process_index() == 0
        self.saved_at = time.monotonic()
        self.costs: deque[float] = deque(maxlen=2)  # seconds of the last saves
        self.looks, self.stack = 0, ExitStack()

    def __enter__(self) -> "Store":
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / LOCK)
        self.refused: CheckpointError | None = None
        if self.leads:
            try:
                make_folder(self.folder)
                self.stack.enter_context(lock.acquire(timeout=0))
                for rest in self.folder.glob(".*.part"):
                    discard(rest)
            except Timeout:
                self.refused = CheckpointError(
                    f"{self.folder} is being written by another run; wait for its end, or choose "
                    "another folder"
                )
            except OSError as error:
                self.refused = CheckpointError(f"{self.folder} can't be written: {error.strerror}")
        self.to_do = True
        self.scores = {path: info["score"] for path, info in infos(self.folder).items()}
        if self.refused and not self.scores:
            raise self.refused
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def restore(self, state: Tree, identity: Identity) -> tuple[Any, dict[str, np.ndarray]]:
        """The newest state that is whole and not beyond the end, and the metrics of its steps.

        Nothing is written, so that a run that is done may lie in a folder that can only be read.
        From here on signals are noted, and `look` stops the run.
        """
        self.identity = identity._replace(given=self.config | identity.given)
        found = self._newest(state)
        if self.refused and self.to_do:
            raise self.refused
        self.received = self.stack.enter_context(stop_signals())
        return found

    def _newest(self, state: Tree) -> tuple[Any, dict[str, np.ndarray]]:
        files = checkpoint_files(self.folder)
        if jax.process_count() > 1:  # what the first process sees, all read
            from jax.experimental import multihost_utils

            steps = np.array([step_of(path) for path in files[-100:]], np.int32)
            steps = np.pad(steps, (100 - len(steps), 0), constant_values=-1)
            steps = multihost_utils.broadcast_one_to_all(steps)
            files = [checkpoint_of(self.folder, int(step)) for step in steps if step >= 0]
        for path in reversed(files):
            try:
                leaves, info = read_checkpoint(main_file(path))
                self._refuse(path, self.identity.other_call(leaves, info))
                there, here = map(jax.random.key_data, (leaves["['key']"], self.key))
                if not np.array_equal(there, here):
                    self._refuse(path, "its key is another")
                if path.is_dir():
                    found = load_sharded(path / "state", state)
                else:
                    found = restore(path, leaves, state, below="['state']")
                self._refuse(path, self.identity.other_start(leaves, info))
            except CorruptCheckpointError as damage:
                self.scores.pop(path, None)
                warn(f"{damage}; looking for the one before")
                continue
            self.newest = max(self.newest, step_of(path))
            places = info.get("places")
            place = None if places is None else self._mine(path, places)
            if (where := self.source.past_end(step_of(path), place)) > 0:  # of more epochs
                continue
            self.to_do = where < 0
            self.source.resume(place)
            below = "['metrics']['"
            names = [p for p in leaves if p.startswith(below)]
            return found, {p[len(below) : -2]: np.asarray(leaves[p]) for p in names}
        if files and self.newest < 0:
            raise CheckpointError(
                f"{self.folder}: none of {len(files)} checkpoints is whole; start in another folder"
            )
        return state, {}

    def _mine(self, path: Path, places: list[str]) -> str:
        """Where this process's part of the data stood."""
        if len(places) != jax.process_count():
            self._refuse(path, f"{len(places)} processes read its data, of which this is not one")
        return places[jax.process_index()]

    def _refuse(self, path: Path, why: str | None) -> None:
        if why:
            raise CheckpointError(
                f"{path} is of another run: {why}; call with what the run was begun with, or start "
                "in another folder"
            )

    def begin(self, state: Tree) -> None:
        """Before the first step: a folder that will not do is known before the work is done."""
        if self.newest < 0:
            self._save_in_time(state, {}, np.inf)

    def save(self, state: Tree, metrics: Mapping[str, np.ndarray], score: float) -> Path:
        """Write one, and remove what need not be kept any more."""
        path = checkpoint_of(self.folder, int(state.step))
        tree = {"key": self.key, "metrics": dict(metrics), **self.identity.arrays}
        info = self.identity.info | self.info | {"score": score}
        if (place := self.source.place(int(state.step))) is not None:
            info["places"] = texts_of_every_process(place)
        try:
            if is_sharded(state):
                part = part_of(path)
                save_sharded(part / "state", state)
                if self.leads:
                    save_checkpoint(part / MAIN, tree, info=info)
                    publish(part, path)
            elif self.leads:
                save_checkpoint(path, tree | {"state": state}, info=info)
        except OSError as error:
            raise CheckpointError(
                f"{path} can't be written: {error.strerror}; {self._what_is_left()}"
            ) from None
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._what_is_left()}") from None
        if self.leads:
            self.scores[path] = score
            newest = sorted(self.scores)[-self.settings.keep :]
            best = min(self.scores, key=lambda p: self.scores[p])
            for old in set(self.scores) - {*newest, best}:
                try:
                    discard(old)
                except OSError as error:
                    raise CheckpointError(
                        f"{old} can't be removed: {error.strerror}; {self._what_is_left()}"
                    ) from None
                del self.scores[old]
        return path

    def _save_in_time(self, state: Tree, metrics: Mapping[str, np.ndarray], score: float) -> None:
        began = time.monotonic()
        self.save(state, metrics, score)
        self.saved_at = time.monotonic()
        self.costs.append(self.saved_at - began)

    def _score(self, state: Tree, since: Mapping[str, np.ndarray]) -> float:
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
        state: Tree,
        every_step: Callable[[], Mapping[str, np.ndarray]],
        since: Mapping[str, np.ndarray],
        *,
        last: bool = False,
    ) -> None:
        """Save where it is time to, or where the run is to stop; then stop it."""
        now = time.monotonic()
        cost = min(self.costs, default=0.0)  # one during which the process stood still is none
        due = last or (now - self.saved_at) * self.settings.share >= cost
        number = self.received.number
        if jax.process_count() > 1:  # all save the same step, or none
            from jax.experimental import multihost_utils

            flags = multihost_utils.process_allgather(np.array([due and self.leads, number or 0]))
            due, number = bool(flags[:, 0].any()), int(flags[:, 1].max()) or None
            self.looks += 1
            if multihost_utils.reached_preemption_sync_point(self.looks):
                number = number or 15  # SIGTERM, which jax.distributed keeps to itself
        # what a run of more epochs has saved is this one's too, and stays as it is
        if (due or number is not None) and int(state.step) > self.newest:
            self._save_in_time(state, every_step(), self._score(state, since))
        if number is not None:
            stop(number)
