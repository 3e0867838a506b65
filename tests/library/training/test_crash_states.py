"""Saves that are cut short anywhere, and files of which a bit flips: every state, each loaded.

`tests/crashes.py` says which states these are, docs/faults.md how many. By default a sample of the
torn files and flipped bits is loaded, and every state of whole ones.
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import Checkpoints, TrainState, fit, sweep, training
from jaxvae.nn.model_folders import MANIFEST, SUMS, WEIGHTS, checksum, read_folder, write_folder
from jaxvae.training import (
    CheckpointError,
    CorruptCheckpointError,
    best_checkpoint,
    checkpoint_files,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    sweeps,
)
from jaxvae.training.callbacks import Run
from jaxvae.training.checkpoints import store
from jaxvae.training.checkpoints.resuming import step_of
from jaxvae.training.checkpoints.sharded import load_sharded
from tests.crashes import ROOT, Disk, Record, crash_states, flipped_bits, recorded

SCORES = [np.inf, 3.0, 1.0, 2.0, 2.5, 1.5]  # by step; the best is neither the first nor the last
START = TrainState(jnp.zeros(()), (), jnp.array(0))
FAULTS = Path(__file__).parents[3] / "docs/faults.md"


def one_in(default, thorough, all_=1):
    """Of so many torn files or bits one: by default, a second look, and all of them."""
    few = [] if default is None else [default]
    marked = pytest.param(thorough, marks=pytest.mark.thorough)
    return pytest.mark.parametrize(
        "every", [*few, marked, pytest.param(all_, marks=pytest.mark.slow)]
    )


def states(name, record, folder, every):
    """The marks made and the tree of each, to which the folder is set."""
    disk, number = Disk(folder), 0
    for marks, tree in crash_states(record, every):
        disk.set(tree)
        number += 1
        yield marks, tree
    is_as_told(name, number, every)


def flips(name, paths, every):
    """Each path while a bit of it is flipped."""
    number = 0
    for path in paths:
        for _ in islice(flipped_bits(path), every // 2, None, every):
            number += 1
            yield path
    is_as_told(name, number, every)


def is_as_told(name, number, every):
    """As docs/faults.md says; another version of JAX may write a little more."""
    if every <= 20:
        (found,) = re.findall(rf"^\| {name} \|.*?([\d,]+) \|$", FAULTS.read_text(), re.M)
        told = int(found.replace(",", ""))
        assert told <= number < 1.1 * told, (name, number)


@pytest.fixture
def folder():
    """In memory where there is a place for it: nothing here asks for a disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def step(state, key, xs, **hyper):
    """Of few operations, so that a checkpoint is small."""
    model = 0.7 * state.model + jnp.mean(xs)
    return state._replace(model=model, step=state.step + 1), {"loss": model}


def train(folder, keep, steps=5):
    """A save at every step."""
    score = lambda state, metrics: SCORES[int(state.step)]
    checkpoints = Checkpoints(folder, keep=keep, score=score, share=np.inf)
    return fit(
        step, START, jax.random.key(0), jnp.ones((steps, 1)), epochs=1, batch_size=1,
        steps_per_call=1, checkpoints=checkpoints,
    )  # fmt: skip


def bits(tree):
    return [(np.asarray(x).dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


class Saved(NamedTuple):
    """What was done to a run's folder, what each save wrote, and where the same run would go on."""

    record: Record
    written: dict[int, Any]
    look_up: Callable[[], Any]


def saved_run(folder, keep, monkeypatch, steps=5) -> Saved:
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
        train(folder / "run", keep, steps)

    def look_up():
        settings, key, source, state, identity = kept
        with monkeypatch.context() as patched, store.Store(settings, key, source) as found:
            patched.setattr(store, "stop_signals", nullcontext)  # a thread a call
            return found.restore(state, identity)

    return Saved(record, written, look_up)


def look_up(run, marks, folder) -> int:
    """Whose state the run goes on from: the last that was saved, or that under way."""
    last = marks[-1] if marks else -1
    found = run.look_up()
    at = int(found[0].step) if checkpoint_files(folder) else -1
    assert at in (last, last + 1)
    assert bits(found) == run.written[at]
    return at


def check_best(run, marks, folder, at):
    """It is the best of what was saved, or a better one."""
    if at >= 0:
        last = marks[-1] if marks else -1
        assert step_of(newest_checkpoint(folder)) == at
        best = best_checkpoint(folder)
        assert SCORES[step_of(best)] <= min(SCORES[: last + 1], default=np.inf)
        assert bits(load_checkpoint(best, START)) == run.written[step_of(best)][:2]


def every_state(name, run, folder, keep, every):
    """Each is looked at, and some are gone on from to the end."""
    steps, known = max(run.written), set()
    for number, (marks, tree) in enumerate(states(name, run.record, folder, every)):
        at = look_up(run, marks, folder / "run")
        seen = len(marks), *sorted(item for item in tree.items() if "/." not in item[0])
        if seen not in known:  # nothing else is read below
            known.add(seen)
            check_best(run, marks, folder / "run", at)
        if number % 397 == 199:
            assert bits(train(folder / "run", keep, steps)) == run.written[steps]


@one_in(500, 100)
@pytest.mark.parametrize("keep", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_a_run_is_found_as_it_was_saved(folder, keep, every, monkeypatch):
    run = saved_run(folder, keep, monkeypatch)
    every_state(f"six saves of a run, `keep={keep}`", run, folder, keep, every)


@one_in(500, 100)
def test_a_bit_of_a_run_that_flips_is_seen(folder, every, monkeypatch):
    """In the newest, and in the best, which is the one before."""
    run = saved_run(folder, 1, monkeypatch)
    before, newest = checkpoint_files(folder / "run")
    assert best_checkpoint(folder / "run") == before
    for path in flips("each bit of two checkpoints", (before, newest), every):
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


@one_in(500, 100)
def test_a_bit_of_the_only_checkpoint_that_flips_is_an_error(folder, every, monkeypatch):
    run = saved_run(folder, 1, monkeypatch)
    checkpoint_files(folder / "run")[0].unlink()
    for path in flips("each bit of the only one", checkpoint_files(folder / "run"), every):
        with (
            pytest.warns(UserWarning, match=f"{path.name} is damaged"),
            pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"),
        ):
            run.look_up()


@one_in(None, 400, 20)
def test_a_sharded_run_is_found_as_it_was_saved(folder, every, monkeypatch):
    """Orbax writes it, in C++ and in threads: what it flushes by itself is not counted on."""
    monkeypatch.setattr(store, "is_sharded", lambda state: True)
    run = saved_run(folder, 1, monkeypatch, steps=2)
    every_state("three saves of a sharded run", run, folder, 1, every)


@one_in(None, 100)
def test_a_bit_of_a_sharded_run_that_flips_is_seen(folder, every, monkeypatch):
    monkeypatch.setattr(store, "is_sharded", lambda state: True)
    saved_run(folder, 2, monkeypatch, steps=2)
    newest = checkpoint_files(folder / "run")[-1]
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    for _ in flips("each bit of a sharded one", files, every):
        with pytest.raises(CorruptCheckpointError, match=newest.name):
            _ = read_checkpoint(newest / "main.ckpt"), load_sharded(newest / "state", START)


def swept(folder):
    found = sweep(lambda x: 2.0 * x, {"x": jnp.arange(3.0)}, at_once=1, folder=folder / "sweep")
    return bits(found.results)


@pytest.mark.thorough
@one_in(500, 100)
def test_a_sweep_is_found_as_it_was_saved(folder, every, monkeypatch):
    """No chunk that was saved is made again."""
    save = sweeps.save_checkpoint

    def marked(path, *args, **kwargs):
        save(path, *args, **kwargs)
        record.mark(path.name)

    with monkeypatch.context() as patched, recorded(folder) as record:
        patched.setattr(sweeps, "save_checkpoint", marked)
        whole = swept(folder)
    for marks, _ in states("a sweep of three chunks", record, folder, every):
        assert {path for path in marks if not (folder / "sweep" / path).exists()} == set()
        assert swept(folder) == whole


@one_in(500, 100)
def test_a_bit_of_a_sweep_that_flips_is_seen(folder, every):
    whole = swept(folder)
    for path in flips("each bit of a chunk", [folder / "sweep/points_000001.ckpt"], every):
        with pytest.warns(UserWarning, match=f"{path.name} is damaged.* run again"):
            assert swept(folder) == whole


LOGS = ("log.jsonl", "log.csv", "tracker.logged")


def logs(folder, step):
    """Those of a run that goes on from a step."""
    seen = []
    found = [
        training.json_lines(folder / LOGS[0]),
        training.csv(folder / LOGS[1]),
        training.log_to(lambda step, numbers: seen.append(step), name="tracker"),
    ]
    for log in found:
        log.begin(Run(step, 30, 0.0, folder))  # pyright: ignore[reportAttributeAccessIssue]
    return found


@pytest.mark.thorough
@one_in(60, 30)
def test_a_log_is_of_lines_that_were_written(folder, every):
    """It is of some sectors, and not flushed line by line: some are lost, and no run ends."""
    with recorded(folder) as record:
        for log, last in zip(logs(folder, 0), (30, 30, 3), strict=True):
            for step in range(1, last + 1):
                state = START._replace(step=jnp.array(step))
                log(state, {"loss": np.array([1.0 / step])}, step / 30, jax.random.key(0))
    whole = [(folder / name).read_text().splitlines() for name in LOGS]
    for _ in states("three logs", record, folder, every):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logs(folder, 30)
        for name, lines in zip(LOGS[:2], whole, strict=False):
            assert set((folder / name).read_text().splitlines()) <= {*lines, ""}


@one_in(500, 100)
def test_a_model_s_folder_is_the_old_or_the_new(folder, every):
    """Or none of that name, between two renames."""
    old, new = ({MANIFEST: b'{"format": 1, "a": %d}' % n, WEIGHTS: b"%d" % n} for n in (1, 2))
    for files in (old, new):
        sums = "".join(f"{checksum(data)}  {name}\n" for name, data in files.items())
        files[SUMS] = sums.encode()
    with recorded(folder) as record:
        for files in (old, new):
            write_folder(folder / "model", files)
            record.mark(files)
    for marks, _ in states("a model over another", record, folder, every):
        if (folder / "model").exists():
            found = read_folder(folder / "model")[1]
            assert found in [files[WEIGHTS] for files in [*(marks or [old])[-1:], new]]
        else:
            assert len(marks) < 2


PROGRAM = """
import sys
from pathlib import Path
from tests.crashes import recorded, told
from tests.library.training.test_crash_states import train
with recorded(Path(sys.argv[1])) as record:
    train(Path(sys.argv[1], "run"), 1, steps=2)
print(*told(record), sep="\\n")
"""


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_the_kernel_saw_the_calls_that_are_recorded(folder, tmp_path):
    """In the same order, and no other."""
    calls = "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link"
    strace = ["strace", "-f", "-y", "-qq", "-e", f"trace={calls}", "-o", str(tmp_path / "calls")]
    done = subprocess.run(
        [*strace, sys.executable, "-c", PROGRAM, str(folder)],
        cwd=FAULTS.parents[1], env=os.environ | {"PYTHONPATH": "."}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in (tmp_path / "calls").read_text().splitlines() if str(folder) in line]
    seen = [line.partition(" ")[2].strip() for line in lines if line.endswith(" = 0")]
    name = re.compile(r'(\w+)\((?:\d+<(.+?)>|"(.+?)"(?:, "(.+?)")?)')
    seen = [" ".join(filter(None, match.groups())) for match in map(name.match, seen) if match]
    assert seen == done.stdout.splitlines()
    assert len(seen) > 10


def test_names_that_go_while_one_looks_are_looked_at_again(folder):
    """As threads of Orbax take them; one number to a file, however many look at once."""
    there, over = folder / "there", Event()
    there.write_bytes(b"there")

    def come_and_go():
        while not over.is_set():
            (folder / "lock").write_bytes(b"lock")
            (folder / "lock").unlink()

    record = Record(folder)
    with ThreadPoolExecutor(3) as pool:
        coming = pool.submit(come_and_go)
        looking = [pool.submit(lambda: [record.look() for _ in range(300)]) for _ in range(2)]
        errors = [done.exception() for done in looking]
        over.set()
        assert [coming.exception(), *errors] == [None, None, None]
    looks = [what for _, what in record.events]
    assert len({look.names[ROOT, "there"] for look in looks}) == 1
