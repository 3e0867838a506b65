"""The benchmark for an accelerator: stages, limits, a cut run, tables; no card needed.

And what the library does otherwise on an accelerator gives the numbers it gives on a CPU.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae
from experiments.benchmarks.accelerator import __main__ as tables
from experiments.benchmarks.accelerator import counts, programs, sizes
from experiments.benchmarks.accelerator.stages import (
    STAGES,
    Processes,
    Stage,
    main,
    path_of,
    read,
    run,
    run_stage,
    write,
)
from experiments.benchmarks.measure import PEERS, timed
from experiments.benchmarks.peers import flax_loop
from experiments.benchmarks.peers.ours import make_model
from jaxvae.models import alike, deep_bound
from jaxvae.nn import deep
from jaxvae.training import fitting
from jaxvae.training.planning import Call

ROOT = Path(__file__).parents[2]
STAND_IN = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from experiments.benchmarks.accelerator.stages import write

folder = Path(sys.argv[1])
for name in sys.argv[3:]:
    with (folder / "calls").open("a") as file:
        file.write(name + "\\n")
    if name == "sleeps" and not (folder / "awake").exists():
        time.sleep(60)
    if name == "dies":
        print("unknown flag", file=sys.stderr, flush=True)
        os.abort()
    found = {"missing": "torch"} if name == "missing" else {"flags": os.environ["XLA_FLAGS"]}
    found["cache"] = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    write(folder, name, found)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A module that measures without JAX, in the blink of an eye; and where results go."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return tmp_path / "out"


def stage(name, *measurements, limit=30.0, **how):
    return Stage(name, limit, "job", measurements, module="stand_in", **how)


def calls(out, name):
    return (out / name / "calls").read_text().split()


def test_a_process_that_dies_costs_one_measurement(stand_in, capsys):
    flags = "--a_flag=1"
    run_stage(
        stage("s", "a", "dies", "b", "missing", flags=flags),
        stand_in,
        30.0,
        Processes(str(stand_in)),
    )
    folder = stand_in / "s"
    assert read(folder, "a")["flags"].endswith(flags)
    assert read(folder, "b")["flags"].endswith(flags)
    assert read(folder, "dies")["error"] == "exit status -6: unknown flag"
    assert read(folder, "missing")["missing"] == "torch"
    assert "s: 2 measured, 1 error, 1 missing" in capsys.readouterr().out


def test_a_stage_is_cut_at_its_limit_and_the_others_go_on(stand_in, capsys):
    run([stage("slow", "a", "sleeps", "b", limit=2.0), stage("next", "c")], stand_in, 60.0)
    assert "slow: 1 measured, 1 cut, 1 not reached; 2 s" in capsys.readouterr().out
    assert read(stand_in / "slow", "sleeps")["cut"] == 2.0
    assert read(stand_in / "next", "c")


def test_another_run_goes_on_with_what_is_not_known(stand_in):
    """What was cut comes last; what a package was missing for is tried again; nothing else is."""
    both = stage("s", "sleeps", "a", "missing", "dies", limit=2.0, apart=True, at_once=4)
    run([both], stand_in, 60.0)
    (stand_in / "s" / "awake").touch()
    (stand_in / "s" / "calls").unlink()
    run([both._replace(apart=False)], stand_in, 60.0)
    assert calls(stand_in, "s") == ["missing", "sleeps"]
    again, before = (read(stand_in / "s", name) for name in ("sleeps", "a"))
    assert "flags" in again
    assert again["cache"] != before["cache"]  # where a killed compiler may have left half a file


def test_no_time_is_left_for_later_stages(stand_in, capsys):
    run([stage("s", "sleeps"), stage("later", "a")], stand_in, 1.5)
    assert capsys.readouterr().out.splitlines()[-1] == "later: not reached"
    assert not (stand_in / "later").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_loses_only_what_it_was_at(stand_in, how):
    script = (
        "from pathlib import Path; import sys;"
        "from experiments.benchmarks.accelerator.stages import Stage, run;"
        "run([Stage('s', 60.0, 'job', ('a', 'sleeps', 'b'), module='stand_in')],"
        "Path(sys.argv[1]), 60.0)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(stand_in)], cwd=ROOT)
    folder = stand_in / "s"
    until(lambda: (folder / "calls").exists() and calls(stand_in, "s") == ["a", "sleeps"])
    killed.send_signal(how)
    assert killed.wait(20) == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    assert read(folder, "a")
    assert not read(folder, "sleeps")
    (folder / "awake").touch()
    run([stage("s", "a", "sleeps", "b")], stand_in, 60.0)
    assert calls(stand_in, "s") == ["a", "sleeps", "sleeps", "b"]
    assert all(read(folder, name) for name in ("a", "sleeps", "b"))


def until(condition):
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_results_are_whole_or_not_there(tmp_path):
    write(tmp_path, "W1/float32/PyTorch, compiled", {"x": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["W1-float32-PyTorch-compiled.json"]
    assert read(tmp_path, "W1/float32/PyTorch, compiled")["x"] == 1.0


def test_stages_fit_into_the_time_and_name_their_files_apart():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for s in STAGES:
        assert len({path_of(Path(), name) for name in s.measurements}) == len(s.measurements)
        if s.job == "programs":
            assert all(name.split("/")[1] in programs.VARIANTS for name in s.measurements)


TEXT = """HloModule m

%slice (p0: f32[1000,10], p1: s32[]) -> f32[1,10] {
  %p0 = f32[1000,10]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,10]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,10}
}

%store (p0.1: f32[1000,10], p1.1: f32[1,10], p2: s32[]) -> f32[1000,10] {
  %p0.1 = f32[1000,10]{1,0} parameter(0)
  %p1.1 = f32[1,10]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %u = f32[1000,10]{1,0} dynamic-update-slice(%p0.1, %p1.1, %p2, %zero.1)
}

%body (c: (s32[], f32[1000,10])) -> (s32[], f32[1000,10]) {
  %c = (s32[], /*index=1*/f32[1000,10]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[1000,10]{1,0} get-tuple-element(%c), index=1
  %row = f32[1,10]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice
  %y = (f32[1,10]{1,0}, s8[4096]{0}) custom-call(%row), custom_call_target="__cublas$gemm"
  %y.0 = f32[1,10]{1,0} get-tuple-element(%y), index=0
  %new = f32[1000,10]{1,0} fusion(%x, %y.0, %i), kind=kLoop, calls=%store
  ROOT %t = (s32[], f32[1000,10]{1,0}) tuple(%i, %new)
}

%condition (c.1: (s32[], f32[1000,10])) -> pred[] {
  %c.1 = (s32[], f32[1000,10]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%c.1), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a: f32[1000,10], b: s32[]) -> f32[1000,10] {
  %a = f32[1000,10]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %copy = f32[1000,10]{1,0} copy(%a)
  %init = (s32[], f32[1000,10]{1,0}) tuple(%b, %copy)
  %loop = (s32[], f32[1000,10]{1,0}) while(%init), condition=%condition, body=%body, LENGTH
  ROOT %out = f32[1000,10]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_and_traffic_are_counted_by_hand():
    """A copy of 40,000 bytes; a turn reads a row and an index, multiplies the row, stores it."""
    known = counts.count(TEXT.replace("LENGTH", 'backend_config={"known_trip_count":{"n":"7"}}'))
    turn = (40 + 40 + 4) + (40 + 40) + (40 + 4 + 40)
    assert known == (1 + 7 * 3, pytest.approx((80_000 + 7 * turn) / 1e6), 0)
    unknown = counts.count(TEXT.replace(", LENGTH", ""), turns=5)
    condition = 1 + 2 * 4
    assert unknown == (1 + 5 * 4, pytest.approx((80_000 + 5 * (turn + condition)) / 1e6), 5)


def test_a_loop_of_traced_length_waits_every_turn():
    def loop(x, count):
        return jax.lax.fori_loop(0, count, lambda i, x: jnp.sin(x), x)

    x, count = jnp.ones(3), jnp.asarray(6, jnp.int32)
    traced: Any = jax.jit(loop).lower(x, count).compile()
    constant: Any = jax.jit(lambda x: loop(x, 6)).lower(x).compile()
    assert counts.count(traced.as_text(), turns=6).waits == 6
    assert counts.count(constant.as_text()).waits == 0


@pytest.fixture
def tiny(monkeypatch):
    """Small workloads and short looks, in JAX as peers expect to find it."""
    monkeypatch.setattr(sizes, "TINY", True)
    monkeypatch.setattr(sizes, "SECONDS", 0.01)
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_key_reuse(False),
    ):
        yield


@pytest.mark.thorough
@pytest.mark.usefixtures("tiny")
def test_a_program_is_timed_and_counted():
    """The count of operations is of the products by hand, and what is done beside them."""
    found = programs.measure("W1/scan")
    assert found["us_a_step"] > 0
    assert found["kernels"] > 10
    assert found["waits"] == 0
    assert found["loss"] == pytest.approx(784 * np.log(2.0), rel=0.1)
    encoder, decoder = 784 * 8 + 8 * 4, 2 * 8 + 8 * 784
    assert found["parameters"] == encoder + 8 + 4 + decoder + 8 + 784
    products = 4 * 2 * (2 * 784 * 8 + 3 * 8 * 4 + 3 * decoder)
    beside = 4 * 100 * 784  # of 4 images: densities and their slopes, a hundred at most a pixel
    assert products < found["operations"] < products + beside


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("variant", [v for v in programs.VARIANTS if v != "scan"])
@pytest.mark.slow
def test_all_programs_train_alike(variant):
    losses = [programs.measure(f"W1/{v}")["loss"] for v in ("scan", variant)]
    if variant != "a call a step":  # which has no row of losses
        assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.thorough
@pytest.mark.usefixtures("tiny")
def test_a_peer_is_timed_for_some_seconds():
    """At least so many looks, whose last loss is told; and a sweep over seeds and betas."""
    w = sizes.workload("digits x64")
    assert w.runs == 4
    found: Any = timed("jaxvae", w, lambda: sizes.images(w), time.perf_counter(), seconds=0.01)
    assert found["examples_per_second"] > 0
    assert found["device_megabytes"] is None
    # it starts at raw means of variance 1 about 0, of which a pixel's distortion is in nats
    x = sizes.images(w).reshape(-1, 64)
    raw = np.random.default_rng(0).normal(size=(1000, *x.shape))
    each = 0.5 * ((x - raw) / 0.2) ** 2 + np.log(0.2) + 0.5 * np.log(2.0 * np.pi)
    assert 0.2 < found["loss"] / np.mean(np.sum(each, axis=-1)) < 1.0


def test_looks_go_on_for_some_seconds_but_never_too_few(monkeypatch):
    """The loss is that of a fixed look, so that all peers are asked after as many steps."""
    turns = []

    def train(w, data, look):
        for i in range(w.looks):
            turns.append(i)
            time.sleep(0.01)
            look(float(i))

    monkeypatch.setitem(PEERS, "stub", "stub:train")
    stub = SimpleNamespace(train=train)
    monkeypatch.setitem(sys.modules, "experiments.benchmarks.peers.stub", stub)
    w = sizes.workload("W1")._replace(looks=3)
    for seconds, fewest, most in ((0.0, 3, 3), (0.2, 5, 21), (None, 3, 3)):
        turns.clear()
        found = timed("stub", w, lambda: None, time.perf_counter(), seconds=seconds)
        assert fewest <= len(turns) <= most
        assert found["loss"] == 2.0


def test_workloads_that_a_peer_does_not_know_are_refused():
    for w in sizes.workload("digits x64"), sizes.workload("W1", "bfloat16"):
        with pytest.raises(NotImplementedError, match="the Flax loop is not timed on"):
            flax_loop.train(w, np.zeros((1, *w.shape)), print)


def test_networks_compute_in_the_precision_asked_for():
    with mock.patch.object(sizes, "TINY", new=True):
        half, full = (sizes.workload("W5", dtype) for dtype in ("bfloat16", "float32"))
    x = jnp.asarray(sizes.images(half)[0])

    @jax.jit
    def features(x):
        return [make_model(w, jax.random.key(0)).up(x)[0] for w in (full, half)]

    exact, rough = features(x)
    assert rough.dtype == exact.dtype == jnp.float32
    assert np.max(np.abs(rough - exact)) > 1e-6
    np.testing.assert_allclose(rough, exact, atol=0.02)


PEAKS = {
    "device": {"device": "A card", "jax": "1.2"},
    "launches": {"us_a_kernel": 2.0},
    "products": {"float32": 100.0, "bfloat16": 200.0},
    "memory": {"gigabytes_per_second": 1000.0},
}
PROGRAM = {
    "us_a_step": 100.0, "examples_per_second": 1e6, "compile_seconds": 2.0, "loss": 10.0,
    "kernels": 40.0, "megabytes_moved": 30.0, "waits": 0.0, "megabytes_of_buffers": 5.0,
    "operations": 4e8, "parameters": 500_000,
}  # fmt: skip
PEER = {"examples_per_second": 8e5, "first_step_seconds": 3.0, "first_look_seconds": 4.0,
        "device_megabytes": 50.0, "loss": 10.0}  # fmt: skip


def test_the_roof_is_what_binds():
    """40 kernels of 2 us; 28 bytes of half a million parameters at 1,000 GB/s; 0.4 of 100 GFLOP."""
    assert tables.roof(PROGRAM, PEAKS, "float32") == (80.0, "launches")
    assert tables.roof(PROGRAM, PEAKS, "float32", 16) == (pytest.approx(16 * 14.0), "memory")
    heavy = PROGRAM | {"operations": 4e11}
    assert tables.roof(heavy, PEAKS, "float32") == (pytest.approx(4000.0), "products")
    assert tables.roof(heavy, PEAKS, "bfloat16") == (pytest.approx(2000.0), "products")
    assert tables.roof(heavy, PEAKS, "float32", 3) == (pytest.approx(12_000.0), "products")


def test_the_tables_say_what_was_found_and_what_was_not(tmp_path):
    def put(stage, name, found):
        write(tmp_path / stage, name, found)

    for name, found in PEAKS.items():
        put("peaks", name, found)
    put("programs", "W1/scan", PROGRAM)
    put("programs", "W1/loop of traced length", PROGRAM | {"us_a_step": 125.0, "waits": 1.0})
    put("WHILE in command buffers", "W1/scan", PROGRAM | {"us_a_step": 50.0})
    put("no command buffers", "W1/scan", {"error": "exit status -6: Unknown flag"})
    put("jaxvae", "W1/float32/jaxvae", PEER)
    put("PyTorch", "W1/float32/PyTorch, CUDA graphs", PEER | {"examples_per_second": 4e5})
    put("PyTorch", "W2/float32/PyTorch, compiled", {"missing": "torch"})
    put("compilation", "W1/float32/PyTorch, CUDA graphs", PEER | {"first_step_seconds": 30.0})
    put("seeds", "W1 x1/float32/jaxvae", PEER)
    put("seeds", "W1 x16/float32/jaxvae", PEER | {"examples_per_second": 6.4e6})
    func = PEER | {"examples_per_second": 1.6e6, "loss": 10.2}
    put("seeds by PyTorch", "W1 x16/float32/PyTorch, torch.func", func)
    put("deep", "scanned", PROGRAM | {"operations": 1e10, "us_a_step": 1000.0})
    found = tables.summary(tmp_path)
    assert "device A card, jax 1.2" in found
    # 100 examples a step, of which 8,000 a second: 100 us a step against 80
    assert "| W1, float32 | jaxvae | 800,000 | 1.00 | launches | 64% | 50 | 3.0 | 10.0 |" in found
    assert "| PyTorch, CUDA graphs | 400,000 | 2.00 | launches | 32% | 50 | 30.0 | 10.0 |" in found
    assert "W1 in float32: agree, by 0.0% among 2" in found
    assert "| W1 x16 | jaxvae | 6,400,000 | 8.0 | 90% | 50 | 4.0 |" in found
    assert "W1 x16: agree, by 2.0% among 2" in found
    assert "| W1, images/s | 1,500,000 | 800,000 |" in found
    assert "| W1, times PyTorch with CUDA graphs | 1.3 | 2.00 |" in found
    assert "| sixteen seeds, times one | 8 | 8.0 |" in found
    assert "| sixteen seeds, times torch.func | 2 | 4.0 |" in found
    assert "| 1,024 runs of the digits, s | 10 | - |" in found
    assert "| deep hierarchy, of the float32 peak | 15 % | 10.0% |" in found
    assert "| W1/loop of traced length | 125.0 | 0.80 | 40.0 | 30.0 | 1 | 2.0 |" in found
    assert "| W1/scan, WHILE in command buffers | 50.0 | 2.00 |" in found
    assert "| scanned | 1.00 | 10.00 | 10.0% | 40 | 30 | 5 | 2 |" in found
    assert "- no command buffers: W1/scan: error exit status -6: Unknown flag" in found
    assert "- PyTorch: W2/float32/PyTorch, compiled: missing torch" in found
    assert "- deep: written out: not reached" in found
    put("PyTorch", "W1/float32/PyTorch, CUDA graphs", PEER | {"loss": 12.0})
    assert "W1 in float32: DIFFER, by 18.2% among 2" in tables.summary(tmp_path)


def test_an_empty_run_has_a_summary(tmp_path):
    assert tables.summary(tmp_path).count("Nothing was measured.") == 4


@pytest.mark.slow
def test_a_rehearsal_runs_end_to_end(tmp_path):
    """Everything at tiny sizes: all is measured but what needs PyTorch or a card."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    script = ROOT / "experiments" / "benchmarks" / "accelerator" / "run.sh"
    command = ["bash", str(script), str(tmp_path), "--seconds", "3600", "--patience", "10"]
    done = subprocess.run(
        command, env=env | {"TINY": "1", "PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for s in STAGES:
        for name in s.measurements:
            found = read(tmp_path / s.name, name)
            assert found, f"{s.name}: {name}"
            excused = "PyTorch" in name and {"missing", "error"} & set(found)
            assert excused or not {"error", "cut", "missing"} & set(found), found
    assert "Nothing was measured" not in (tmp_path / "summary.md").read_text()
    main([str(tmp_path), "--seconds", "60"])  # nothing is left to do


# What the library chooses by backend.


def ppca():
    weight = jnp.asarray([[1.0], [0.5], [-0.3]])
    return jaxvae.models.ppca.as_vae(jaxvae.models.ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))


@pytest.mark.thorough
@pytest.mark.parametrize("steps_per_call", [None, 2])
def test_fit_gives_the_same_numbers_where_the_length_of_its_loop_is_a_constant(
    monkeypatch, steps_per_call
):
    adam = optax.adam(1e-2)
    step, data = jaxvae.train_step(jaxvae.elbo, adam), jnp.sin(jnp.arange(60.0)).reshape(20, 3)

    def train():
        how = {"epochs": 2, "batch_size": 4, "steps_per_call": steps_per_call}
        start = jaxvae.init_state(ppca(), adam)
        return jaxvae.fit(step, start, jax.random.key(0), data, **how)

    on_cpu = train()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = train()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), on_cpu, elsewhere)


@pytest.mark.thorough
def test_fit_waits_for_no_condition_on_an_accelerator(monkeypatch):
    adam = optax.adam(1e-2)
    step, state = jaxvae.train_step(jaxvae.elbo, adam), jaxvae.init_state(ppca(), adam)
    call = Call(jax.random.key(0), jnp.zeros((6, 4), jnp.int32), {}, {})

    def waits(count):
        program: Any = fitting._first_steps.lower(
            step, state, count, call, data=jnp.ones((20, 3)), mesh=None, layout=None
        )
        return counts.count(program.compile().as_text(), turns=6).waits

    assert waits(fitting._known(6, 6)) == 6
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert waits(fitting._known(6, 6)) == 0
    assert fitting._known(5, 6) == 5  # a short last call takes the program for any number


@pytest.mark.slow
@pytest.mark.parametrize("slope", [False, True])
def test_a_deep_hierarchy_gives_the_same_numbers_with_its_levels_written_out(
    x64, monkeypatch, slope
):
    make = jax.jit(
        lambda key: deep.deep_hierarchy((2, 2, 1), levels=(2,), width=2, rngs=nnx.Rngs(key))
    )
    model, x = make(jax.random.key(0)), jnp.asarray(np.eye(2)[..., None])
    model = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), model)

    def bound(model):
        return deep_bound.deep_elbo(model, jax.random.key(1), x)[0]

    def found():
        of = jax.value_and_grad(bound) if slope else bound
        program = jax.jit(lambda model: of(model)).lower(model)
        return program.compile()(model), "dynamic_slice" in program.as_text()

    with monkeypatch.context() as looping:
        looping.setattr(alike, "turns_at_once", lambda count: 1)
        looped, picks_levels = found()
    assert picks_levels
    written_out, picks_levels = found()
    assert not picks_levels
    for a, b in zip(*map(jax.tree.leaves, (looped, written_out)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("count", "at_once"), [(1, 1), (16, 16), (30, 8)])
def test_levels_are_written_out_up_to_sixteen(count, at_once):
    assert alike.turns_at_once(count) == at_once
