"""Runs that are ended, by a callback, a signal or a kill, and go on to the same numbers."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filelock import FileLock

from jaxvae import Checkpoints, elbo, fit, init_state, train_step
from jaxvae.models import ppca
from jaxvae.training import CheckpointError, best_checkpoint, load_checkpoint, read_checkpoint
from jaxvae.training.checkpoints import store
from jaxvae.training.checkpoints.identity import computation
from jaxvae.training.checkpoints.resuming import checkpoint_files
from jaxvae.training.checkpoints.stop_signals import stop_signals

OPTIMIZER = optax.adam(1e-2)
STEP = train_step(elbo, OPTIMIZER)  # one program for every fit below


def start(seed=0, d=3):
    weight = jax.random.normal(jax.random.key(seed), (d, 2))
    model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(d), jnp.array(0.5)))
    return init_state(model, OPTIMIZER)


def rows(n=22, d=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, d)), jnp.float32)


def run(
    folder, *, stop_at=None, seed=1, checkpoints=None, state=None, step=STEP, data=None, **changes
):
    """Five steps an epoch in calls of two; raises at step `stop_at`, after it was saved."""
    seen = []

    def callback(state, metrics, epoch, key):
        seen.append((int(state.step), len(metrics["loss"])))
        if stop_at is not None and int(state.step) > stop_at:
            raise KeyboardInterrupt

    settings = {"epochs": 4, "batch_size": 4, "steps_per_call": 2, "beta": 0.5} | changes
    if folder is not None:
        kept = checkpoints or Checkpoints(folder, share=np.inf)
        settings["checkpoints"] = kept
    state = start() if state is None else state
    data = rows() if data is None else data
    found = fit(step, state, jax.random.key(seed), data, callbacks=[callback], **settings)
    return *found, seen


def same(a, b):
    """To the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.mark.parametrize("stop_at", [0, 2, 4, 5, 7, 15, 19])
def test_a_run_goes_on_to_the_same_bits(tmp_path, stop_at):
    """Wherever it stops: inside an epoch, at its end, before the last step."""
    whole, history, _ = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=stop_at)
    step = int(checkpoint_files(tmp_path)[-1].stem.removeprefix("step_"))
    state, metrics, seen = run(tmp_path)
    assert same(state, whole)
    assert same(metrics, history)
    if step:  # the callbacks first see all that was done
        assert seen[0] == (step, step)
    assert [at for at, _ in seen] == sorted({at for at, _ in seen})


def test_checkpoints_change_no_number(tmp_path):
    assert same(run(None)[:2], run(tmp_path)[:2])


def test_a_finished_run_is_not_made_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path)
    assert same(first[:2], again[:2])
    assert again[2] == [(20, 20)]
    longer = run(tmp_path, epochs=6)
    assert same(longer[:2], run(None, epochs=6)[:2])


def test_a_run_that_began_at_a_later_step_goes_on(tmp_path):
    later = run(None, epochs=1)[0]
    whole = run(None, state=later, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, state=later, epochs=2, stop_at=8)
    assert same(run(tmp_path, state=later, epochs=2)[:2], whole[:2])
    assert len(whole[1]["loss"]) == 10


def test_the_last_ones_and_the_best_stay(tmp_path):
    """The score falls until step 9, then rises."""
    score = lambda state, metrics: abs(int(state.step) - 9)
    settings = Checkpoints(tmp_path, keep=2, score=score, share=np.inf)
    run(tmp_path, checkpoints=settings)
    assert [p.name[5:15] for p in checkpoint_files(tmp_path)] == [f"{n:010d}" for n in (9, 19, 20)]
    assert best_checkpoint(tmp_path).name == "step_0000000009.ckpt"
    assert read_checkpoint(best_checkpoint(tmp_path)).info["score"] == 0.0


def test_by_default_the_score_is_the_mean_loss_since_the_last_look(tmp_path):
    _, history, _ = run(tmp_path, checkpoints=Checkpoints(tmp_path, keep=50, share=np.inf))
    scores = {int(p.stem[5:]): read_checkpoint(p).info["score"] for p in checkpoint_files(tmp_path)}
    looks = [0, 2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20]
    assert list(scores) == looks
    assert scores[0] == np.inf
    for since, step in pairwise(looks):
        assert np.isclose(scores[step], np.mean(history["loss"][since:step]), rtol=1e-6)
    best = min(scores, key=lambda step: scores[step])
    assert best_checkpoint(tmp_path).name == f"step_{best:010d}.ckpt"


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    score = lambda state, metrics: np.nan if int(state.step) < 20 else 5.0
    run(tmp_path, checkpoints=Checkpoints(tmp_path, keep=4, score=score, share=np.inf))
    assert best_checkpoint(tmp_path).name == "step_0000000020.ckpt"
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        best_checkpoint(tmp_path / "nowhere")


def test_saving_keeps_its_share_of_the_time(tmp_path, monkeypatch):
    """A clock of one second a reading: a save takes one, a fifth of the five up to the next."""
    run(None, steps_per_call=1)  # what compiling reads is over
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    saved = []
    score = lambda state, metrics: saved.append(int(state.step)) or 0.0
    settings = Checkpoints(tmp_path, keep=50, score=score, share=0.2)
    run(tmp_path, checkpoints=settings, steps_per_call=1)
    assert saved == [5, 10, 15, 20]


def test_a_save_that_hung_puts_off_no_other(tmp_path, monkeypatch):
    """As when the disk hangs, or the process is suspended: and one save takes years."""
    run(None, steps_per_call=1)
    clock, hung, save = iter(range(10**6)), [0], store.save_checkpoint

    def slow(path, *args, **options):
        hung[0] += 10**8 if path.name.endswith("10.ckpt") else 0
        save(path, *args, **options)

    monkeypatch.setattr(time, "monotonic", lambda: next(clock) + hung[0])
    monkeypatch.setattr(store, "save_checkpoint", slow)
    saved = []
    score = lambda state, metrics: saved.append(int(state.step)) or 0.0
    settings = Checkpoints(tmp_path, keep=50, score=score, share=0.2)
    run(tmp_path, checkpoints=settings, steps_per_call=1)
    assert saved == [5, 10, 15, 20]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    whole = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=9)
    before, newest = checkpoint_files(tmp_path)[-2:]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: the bytes of \['state'\]"):
        state, metrics, seen = run(tmp_path)
    assert seen[0][0] == int(before.stem[5:])
    assert same((state, metrics), whole[:2])


def test_a_folder_of_damaged_checkpoints_is_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=9)
    for path in checkpoint_files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="it ends inside"),
        pytest.raises(CheckpointError, match=r"none of \d checkpoints is whole"),
    ):
        run(tmp_path)


def test_another_run_does_not_go_on(tmp_path):
    kept = lambda **config: Checkpoints(tmp_path, config=config)
    run(tmp_path, checkpoints=kept(network={"hidden": [8, 8]}))
    again = partial(run, tmp_path, checkpoints=kept(network={"hidden": [8, 8]}))
    again()
    wrong = {
        "batch_size is 4 there and 2 here": {"batch_size": 2},
        "beta is 0.5 there and 0.1 here": {"beta": 0.1},
        "its key is another": {"seed": 2},
        r"config\['network'\]\['hidden'\]\[1\] is 8 there and 9 here": {
            "checkpoints": kept(network={"hidden": [8, 9]})
        },
        r"config\['network'\]\['hidden'\]\[0\] is 8 there and nothing here": {
            "checkpoints": kept()
        },
        r"config\['new'\] is nothing there and 1 here": {
            "checkpoints": kept(network={"hidden": [8, 8]}, new=1)
        },
        r"at .*opt_state.* it holds .*, wanted .*; build what was saved": {
            "step": train_step(elbo, optax.sgd(1.0)),
            "state": init_state(start().model, optax.sgd(1.0)),
        },
    }
    for message, changes in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            again(**changes)
    schedule = optax.linear_schedule(0.0, 0.5, 10)
    with pytest.raises(CheckpointError, match=r"beta is 0\.5 there and a schedule here"):
        again(beta=schedule)


@pytest.mark.parametrize("one", [1, np.int64(1)])
def test_a_computation_is_one_text_whatever_was_traced_before(one):
    """JAX keeps the first trace of equal arguments, and an int64 of NumPy's equals an int."""

    @partial(jax.jit, static_argnames="axes")
    def spread(x, axes):
        return jax.lax.broadcast_in_dim(x, (2, 3), axes)

    jax.make_jaxpr(lambda x: spread(x, axes=(one,)))(jnp.ones(3))
    text = computation(lambda x: spread(x, axes=(1,)), jnp.ones(3))
    assert "broadcast_dimensions=(1,) shape=(2, 3)" in text


@pytest.mark.thorough
def test_another_computation_data_or_first_state_does_not_go_on(tmp_path):
    """All of one shape: what differs is named, whether a number, a byte or an operation."""
    run(tmp_path, epochs=2)
    again = partial(run, tmp_path)
    doubled = lambda model, key, x, **hyper: jax.tree.map(
        lambda v: 2.0 * v, elbo(model, key, x, **hyper)
    )
    tilted = jnp.array([1.0, 1.0, 1.5])
    constant = lambda c: lambda model, key, x, **hyper: elbo(model, key, c * x, **hyper)
    compute = "compute something else, first where it is"
    wrong = {
        r"data is float32\[22, 3\], checksum \w+ there and": {"data": rows().at[21, 2].add(1e-3)},
        r"the first state\.model.*weight is float32.* there": {"state": start(seed=1)},
        rf"{compute} .*mul -0\.01 .* there and .*mul -0\.02 .* here": {
            "step": train_step(elbo, optax.adam(2e-2))
        },
        f"{compute}": {"step": train_step(doubled, OPTIMIZER)},
        f"{compute} ": {"step": train_step(constant(tilted), OPTIMIZER)},
    }
    for message, changes in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            again(**changes)
    run(tmp_path / "constant", step=train_step(constant(tilted), OPTIMIZER))
    with pytest.raises(CheckpointError, match=f"{compute} .*checksum .* there and .*checksum"):
        run(tmp_path / "constant", step=train_step(constant(2.0 * tilted), OPTIMIZER))
    assert same(again(epochs=2, steps_per_call=3)[:2], run(None, epochs=2)[:2])


@pytest.mark.thorough
def test_schedules_are_compared_at_every_step(tmp_path):
    """Equal at steps 1, 10, 100, ... and not between; what a longer run adds is its own."""
    schedule = optax.linear_schedule(0.0, 0.5, 8)
    bump = lambda step: schedule(step) + jnp.where(step == 7, 0.1, 0.0)
    run(tmp_path, beta=schedule, epochs=2)
    with pytest.raises(CheckpointError, match=r"beta at step 8 is .* there and .* here"):
        run(tmp_path, beta=bump, epochs=2)
    longer = run(tmp_path, beta=schedule, epochs=3)
    assert same(longer[:2], run(None, beta=schedule, epochs=3)[:2])


def test_another_version_can_not_be_compared_and_is_told(tmp_path, monkeypatch):
    run(tmp_path, epochs=2)
    monkeypatch.setattr("jaxvae.training.checkpoints.identity._made_by", lambda: "jax 99 on gpu")
    with pytest.warns(
        UserWarning, match="begun with jaxvae .* goes on with jax 99 on gpu: whether"
    ):
        run(tmp_path, epochs=2, state=start(seed=1))
    with pytest.raises(CheckpointError, match="batch_size is 4 there and 2 here"):
        run(tmp_path, epochs=2, batch_size=2)


def test_fewer_epochs_than_are_there_are_answered_with_fewer(tmp_path):
    """From a checkpoint in time, or made again; what the longer run has saved stays as it is."""
    run(tmp_path, epochs=4)
    files = {path: path.read_bytes() for path in checkpoint_files(tmp_path)}
    for epochs in (3, 1):
        assert same(run(tmp_path, epochs=epochs)[:2], run(None, epochs=epochs)[:2])
    assert {path: path.read_bytes() for path in checkpoint_files(tmp_path)} == files


def test_a_finished_run_writes_nothing(tmp_path):
    """However often it is called, so that what is best does not depend on it."""
    run(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in checkpoint_files(tmp_path)}
    best, scores = best_checkpoint(tmp_path), dict.fromkeys(stamps, 0.0)
    for path in stamps:
        scores[path] = read_checkpoint(path).info["score"]
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in checkpoint_files(tmp_path)} == stamps
    assert best_checkpoint(tmp_path) == best
    assert {path: read_checkpoint(path).info["score"] for path in stamps} == scores


def test_scores_outlive_the_process(tmp_path):
    """The best of the first part stays the best, and is kept, while the second part goes on."""
    kept = Checkpoints(tmp_path, keep=1, score=lambda s, m: abs(int(s.step) - 4), share=np.inf)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoints=kept, stop_at=9)
    run(tmp_path, checkpoints=kept)
    assert best_checkpoint(tmp_path).name == "step_0000000004.ckpt"
    assert len(checkpoint_files(tmp_path)) == 2


def test_two_do_not_write_in_one_folder(tmp_path):
    """The second is refused while the first is at it, and no longer; what is done may be read."""
    run(tmp_path / "done", epochs=1)
    seen = []

    def intrude(state, metrics, epoch, key):
        if int(state.step) == 7:
            with pytest.raises(CheckpointError, match="is being written by another run; wait"):
                run(tmp_path / "one")
            with FileLock(tmp_path / "done" / ".lock"):
                seen.append(run(tmp_path / "done", epochs=1))
                with pytest.raises(CheckpointError, match="is being written by another run; wait"):
                    run(tmp_path / "done", epochs=2)

    kept = Checkpoints(tmp_path / "one", share=np.inf)
    fit(
        STEP, start(), jax.random.key(1), rows(), epochs=4, batch_size=4, steps_per_call=2,
        callbacks=[intrude], checkpoints=kept, beta=0.5,
    )  # fmt: skip
    assert same(seen[0][:2], run(None, epochs=1)[:2])
    assert same(run(tmp_path / "one")[:2], run(None)[:2])


def test_the_best_model_and_state_are_read_back(tmp_path):
    state, _, _ = run(tmp_path)
    path = checkpoint_files(tmp_path)[-1]
    assert same(load_checkpoint(path, start()), state)
    assert same(load_checkpoint(path, start().model), state.model)
    with pytest.raises(
        CheckpointError, match=r"weight.* it holds float32\[3, 2\], wanted float32\[4, 2\]"
    ):
        load_checkpoint(path, start(d=4).model)


def test_what_a_callback_returns_is_a_metric_and_is_kept(tmp_path):
    """NaN where it was not measured; a run that was stopped ends with the same."""
    validate = lambda state, metrics, epoch, key: (
        {"validation": state.step * 2} if state.step % 5 == 0 else None
    )
    settings = {"epochs": 4, "batch_size": 4, "steps_per_call": 2, "beta": 0.5}
    call = partial(fit, STEP, start(), jax.random.key(1), rows(), **settings)
    _, whole = call(callbacks=[validate])
    column = np.full(20, np.nan)
    column[4::5] = [10, 20, 30, 40]
    assert np.array_equal(whole["validation"], column, equal_nan=True)

    def stop(state, metrics, epoch, key):
        if int(state.step) > 11:
            raise KeyboardInterrupt

    best = Checkpoints(tmp_path, score=lambda s, m: -m.get("validation", [0])[-1], share=np.inf)
    with pytest.raises(KeyboardInterrupt):
        call(callbacks=[validate, stop], checkpoints=best)
    _, resumed = call(callbacks=[validate], checkpoints=best)
    assert all(np.array_equal(whole[n], resumed[n], equal_nan=True) for n in whole | resumed)
    with pytest.raises(
        ValueError, match="a callback returned 'loss', expected no name of a metric"
    ):
        call(callbacks=[lambda state, metrics, epoch, key: {"loss": 1.0}])


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="keep is 0, expected an integer of at least 1"):
        run(tmp_path, checkpoints=Checkpoints(tmp_path, keep=0))
    with pytest.raises(ValueError, match="share is 0, expected more than 0"):
        run(tmp_path, checkpoints=Checkpoints(tmp_path, share=0))
    with pytest.raises(TypeError, match="config must be what JSON holds"):
        run(tmp_path, checkpoints=Checkpoints(tmp_path, config={"f": len}))


def test_a_folder_that_will_not_do_is_known_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    steps = []

    def watched(state, key, xs, **hyper):
        steps.append(1)
        return STEP(state, key, xs, **hyper)

    with pytest.raises(CheckpointError, match="file/run can't be written: Not a directory"):
        fit(
            watched, start(), jax.random.key(0), rows(), epochs=1,
            batch_size=4, checkpoints=Checkpoints(tmp_path / "file" / "run"),
        )  # fmt: skip
    assert not steps


def test_a_folder_that_vanishes_ends_the_run_and_says_so(tmp_path):
    folder = tmp_path / "run"

    def vanish(state, metrics, epoch, key):
        if int(state.step) == 7:
            shutil.rmtree(folder)

    with pytest.raises(CheckpointError, match="No such file or directory; nothing was saved yet"):
        fit(
            STEP, start(), jax.random.key(0), rows(), epochs=4, batch_size=4, steps_per_call=2,
            callbacks=[vanish], checkpoints=Checkpoints(folder, share=np.inf),
        )  # fmt: skip


def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_last_one(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(28, os.strerror(28))
        fsync(descriptor)

    whole = run(None)
    monkeypatch.setattr(os, "fsync", full)
    expected = "No space left on device; the last good one is step_0000000004.ckpt; mend this and"
    with pytest.raises(CheckpointError, match=expected):
        run(tmp_path)
    monkeypatch.undo()
    assert same(run(tmp_path)[:2], whole[:2])


def test_a_folder_that_closes_before_an_old_one_is_removed_ends_the_run(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(1, os.strerror(1))

    whole = run(None)
    monkeypatch.setattr(store, "discard", closed)
    expected = "ckpt can't be removed: Operation not permitted; the last good one is step_00000000"
    with pytest.raises(CheckpointError, match=expected):
        run(tmp_path)
    monkeypatch.undo()
    assert same(run(tmp_path)[:2], whole[:2])
    assert len(checkpoint_files(tmp_path)) <= 4  # of keep=3, and the best


# signals


@pytest.fixture
def signals():
    """A shell's "&" has SIGINT ignored, in every program below it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_lets_the_steps_finish_and_saves(tmp_path, number, error):
    whole = run(None)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def raise_it(state, metrics, epoch, key):
        if int(state.step) == 7:
            signal.raise_signal(number)

    with pytest.raises(error) as raised:
        fit(
            STEP, start(), jax.random.key(1), rows(), epochs=4, batch_size=4, steps_per_call=2,
            callbacks=[raise_it], checkpoints=Checkpoints(tmp_path, share=1e-9), beta=0.5,
        )  # fmt: skip
    if error is SystemExit:
        assert raised.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoint_files(tmp_path)[-1].name == "step_0000000007.ckpt"
    assert same(run(tmp_path)[:2], whole[:2])


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            signal.raise_signal(signal.SIGINT)
            assert received.number is None
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_are_left_alone():
    handler, found = signal.getsignal(signal.SIGTERM), []

    def look():
        with stop_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [handler]


SCRIPT = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from jaxvae import Checkpoints, elbo, fit, init_state, train_step
from jaxvae.models import ppca

def slow(model, key, x):
    busy = jax.lax.fori_loop(0, int(sys.argv[2]), lambda i, a: jnp.sin(a + x[0]), 0.0)
    bound, terms = elbo(model, key, x)
    return bound + 0.0 * busy, terms

optimizer = optax.adam(1e-2)
weight = jax.random.normal(jax.random.key(0), (3, 2))
model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
data = jnp.asarray(np.random.default_rng(0).normal(size=(23, 3)), jnp.float32)
begun = lambda state, metrics, epoch, key: print("step", int(state.step), flush=True)
print("begun", flush=True)
fit(
    train_step(slow, optimizer), init_state(model, optimizer), jax.random.key(0), data, epochs=40,
    batch_size=4, steps_per_call=int(sys.argv[3]), callbacks=[begun],
    checkpoints=Checkpoints(sys.argv[1], share=np.inf),
)
"""


def script(folder, work, steps_per_call):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(work), str(steps_per_call)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def next_line(process):
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.thorough  # as test_a_run_that_was_stopped_goes_on_to_the_same_numbers shows
def test_a_process_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    """Five kills at random moments of the training, each run going on from the last."""
    chance = random.Random(0)
    with script(tmp_path / "alone", 2000, 3) as alone:
        assert alone.wait() == 0
    for _ in range(5):
        with script(tmp_path / "killed", 2000, 3) as process:
            for _ in range(chance.randrange(2, 20)):
                assert next_line(process)
            time.sleep(chance.uniform(0.0, 0.02))
            process.kill()
    with script(tmp_path / "killed", 2000, 3) as last:
        assert last.wait() == 0
    files = [checkpoint_files(tmp_path / name)[-1] for name in ("alone", "killed")]
    alone, killed = (read_checkpoint(path).leaves for path in files)
    assert files[0].name == files[1].name == "step_0000000200.ckpt"
    assert alone.keys() == killed.keys()
    for path in alone.keys() - {"['key']"}:
        assert np.array_equal(alone[path], killed[path]), path


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)]
)
def test_a_second_signal_ends_a_program_that_is_still_running(tmp_path, number):
    """A call of minutes: the first signal waits for its end, the second does not."""
    with script(tmp_path, 10**8, 1000) as process:
        assert next_line(process) == "begun\n"
        while not checkpoint_files(tmp_path):
            time.sleep(0.05)
        time.sleep(1.0)  # the call has begun, or compiles
        process.send_signal(number)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(number)
        try:
            assert process.wait(timeout=5) == 128 + number
        finally:
            process.kill()
    assert re.fullmatch(r"step_0+\.ckpt", checkpoint_files(tmp_path)[-1].name)
