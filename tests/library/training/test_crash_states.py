"""Saves that are cut short anywhere, and files of which a bit flips: every state, each loaded.

`tests/crashes.py` says which states these are, docs/faults.md how many. By default a sample of the
torn files and flipped bits is loaded, and every state of whole ones.
"""

import re
import warnings
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Checkpoints, TrainState, fit
from jaxvae.training import (
    CheckpointError,
    CorruptCheckpointError,
    best_checkpoint,
    checkpoint_files,
    load_checkpoint,
    newest_checkpoint,
)
from jaxvae.training.checkpoints import store
from jaxvae.training.checkpoints.resuming import step_of
from tests.crashes import Disk, Record, crash_states, flipped_bits, recorded

SCORES = [np.inf, 3.0, 1.0, 2.0, 2.5, 1.5]  # by step; the best is neither the first nor the last
START = TrainState(jnp.zeros(()), (), jnp.array(0))
FAULTS = Path(__file__).parents[3] / "docs/faults.md"
every = pytest.mark.parametrize(
    "every",
    [
        500,
        pytest.param(100, marks=pytest.mark.thorough),
        pytest.param(1, marks=pytest.mark.slow),
    ],
)


def is_as_told(name: str, number: int, every: int) -> None:
    """docs/faults.md says how many states there are; versions of JAX write a little more or less."""
    if every == 1:
        (found,) = re.findall(rf"^\| {name} \|.*?([\d,]+) \|$", FAULTS.read_text(), re.M)
        told = int(found.replace(",", ""))
        assert told <= number < 1.1 * told, (name, number)


@pytest.fixture
def folder():
    """In memory where there is a place for it: nothing here asks for a disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def step(state, key, xs):
    """Of few operations, so that a checkpoint is small."""
    model = 0.7 * state.model + jnp.mean(xs)
    return state._replace(model=model, step=state.step + 1), {"loss": model}


def train(folder, keep, callbacks=()):
    """A save at every step."""
    score = lambda state, metrics: SCORES[int(state.step)]
    checkpoints = Checkpoints(folder, keep=keep, score=score, share=np.inf)
    return fit(
        step, START, jax.random.key(0), jnp.ones((5, 1)), epochs=1, batch_size=1, steps_per_call=1,
        checkpoints=checkpoints, callbacks=callbacks,
    )  # fmt: skip


def bits(tree):
    return [(np.asarray(x).dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


class Saved(NamedTuple):
    """What was done to a run's folder, what each save wrote, and where the same run would go on."""

    record: Record
    written: dict
    look_up: object


def saved_run(folder, keep, monkeypatch) -> Saved:
    """A save at every step; a mark, its step, once it is done."""
    written, kept = {-1: bits((START, {}))}, []
    save, restore = store.Store.save, store.Store.restore

    def marked(self, state, metrics, score):
        written[int(state.step)] = bits((state, dict(metrics)))
        found = save(self, state, metrics, score)
        record.mark(int(state.step))
        return found

    def noted(self, state, identity):
        kept[:] = [self.settings, self.key, self.source, state, identity]
        return restore(self, state, identity)

    with monkeypatch.context() as patched, recorded(folder) as record:
        patched.setattr(store.Store, "save", marked)
        patched.setattr(store.Store, "restore", noted)
        train(folder / "run", keep)

    def look_up():
        settings, key, source, state, identity = kept
        with store.Store(settings, key, source) as found:
            return found.restore(state, identity)

    return Saved(record, written, look_up)


def check(run, marks, folder):
    """The last that was saved, or the one under way; and the best of them or a better one."""
    last = marks[-1] if marks else -1
    found = run.look_up()
    at = int(found[0].step) if checkpoint_files(folder) else -1
    assert at in (last, last + 1)
    assert bits(found) == run.written[at]
    if at >= 0:
        assert step_of(newest_checkpoint(folder)) == at
        best = best_checkpoint(folder)
        assert SCORES[step_of(best)] <= min(SCORES[: last + 1], default=np.inf)
        assert bits(load_checkpoint(best, START)) == run.written[step_of(best)][:2]


def every_state(run, folder, keep, every):
    """How many there are, each looked at, and some gone on from to the end."""
    disk, whole, number = Disk(folder), run.written[5], 0
    for number, (marks, tree) in enumerate(crash_states(run.record, every), 1):
        disk.set(tree)
        check(run, marks, folder / "run")
        if number % 97 == 0:
            assert bits(train(folder / "run", keep)) == whole
    return number


@every
@pytest.mark.parametrize("keep", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_a_run_is_found_as_it_was_saved(folder, keep, every, monkeypatch):
    run = saved_run(folder, keep, monkeypatch)
    number = every_state(run, folder, keep, every)
    is_as_told(f"six saves of a run, `keep={keep}`", number, every)


@every
def test_a_bit_of_a_run_that_flips_is_seen(folder, every, monkeypatch):
    """In the newest, and in the best, which is the one before."""
    run, number = saved_run(folder, 1, monkeypatch), 0
    before, newest = checkpoint_files(folder / "run")
    assert best_checkpoint(folder / "run") == before
    for path in (before, newest):
        for number, _ in enumerate(islice(flipped_bits(path), every // 2, None, every), number + 1):
            with pytest.raises(CorruptCheckpointError, match=path.name):
                load_checkpoint(path, START)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = run.look_up()
            assert bits(found) == run.written[step_of(before if path == newest else newest)]
            assert [path.name in str(w.message) for w in said] == [True] * (path == newest)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                best = best_checkpoint(folder / "run")
            assert best == before or path.name in str(said[0].message)
    is_as_told("each bit of two checkpoints", number, every)


@every
def test_a_bit_of_the_only_checkpoint_that_flips_is_an_error(folder, every, monkeypatch):
    run, number = saved_run(folder, 1, monkeypatch), 0
    checkpoint_files(folder / "run")[0].unlink()
    (path,) = checkpoint_files(folder / "run")
    for number, _ in enumerate(islice(flipped_bits(path), every // 2, None, every), 1):
        with (
            pytest.warns(UserWarning, match=f"{path.name} is damaged"),
            pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"),
        ):
            run.look_up()
    is_as_told("each bit of the only one", number, every)
