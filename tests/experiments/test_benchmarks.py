"""The benchmark compares like with like, and says who is missing. No test here times anything."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import growth
from experiments.benchmarks import measure as measuring
from experiments.benchmarks import trace as tracing
from experiments.benchmarks.peers import matmuls
from experiments.benchmarks.workloads import WORKLOADS, pixels

SMALL = {"hidden": (16,), "latent": 2, "chunk": 30, "looks": 3}
KEYS = {
    "examples_per_second",
    "import_seconds",
    "first_look_seconds",
    "first_step_seconds",
    "peak_megabytes",
    "loss",
}


@pytest.fixture
def small(monkeypatch):
    """A short job, in JAX as peers expect to find it."""
    for name, workload in WORKLOADS.items():
        few = {
            "seeds": min(workload.seeds, 2),
            "num_samples": min(workload.num_samples, 3),
            "levels": min(workload.levels, 2),
        }
        monkeypatch.setitem(WORKLOADS, name, workload._replace(**SMALL, **few))
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_key_reuse(False),
    ):
        yield


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "workload", [pytest.param(name, marks=pytest.mark.slow) for name in ("W1", "W2", "W4")]
)
def test_peers_reach_one_loss(workload):
    """Nobody skips work: after as many steps of the same job the losses are alike."""
    peers = ["jaxvae", "NumPyro SVI"] if workload == "W2" else ["jaxvae", "Flax loop"]
    found = {peer: measuring.measure(peer, workload) for peer in peers}
    for numbers in found.values():
        assert set(numbers) == KEYS
        assert numbers["examples_per_second"] > 0
    losses = [numbers["loss"] for numbers in found.values()]
    assert losses[0] < 560  # 784 log 2 is 543, and it starts above
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("workload", "bits"),
    [
        pytest.param("W5", 32 * 32 * 3, marks=pytest.mark.slow),
        ("E1", 784),
        pytest.param("E2", 784, marks=pytest.mark.slow),
    ],
)
def test_larger_jobs_and_estimates_run(workload, bits):
    """Near a fair coin a pixel, as logits start near 0 (and W5 trains a little)."""
    batch = {"batch": 4, "chunk": 1}
    measuring.WORKLOADS[workload] = measuring.WORKLOADS[workload]._replace(**batch)
    found = measuring.measure("jaxvae", workload)
    assert found["loss"] == pytest.approx(bits * np.log(2.0), rel=0.1)


def test_a_peer_says_what_it_is_not_timed_on():
    with pytest.raises(NotImplementedError, match="the Flax loop is not timed on E2: log p"):
        measuring.measure("Flax loop", "E2")


def test_products_are_those_of_the_network():
    """The multiplications of a step of W1, by hand: 784-400-40 and 20-400-784."""
    encoder = 2 * 784 * 400 + 3 * 400 * 40
    decoder = 3 * 20 * 400 + 3 * 400 * 784
    assert matmuls.flops(WORKLOADS["W1"]) == pytest.approx(2.0 * (encoder + decoder))


def test_products_of_ais_are_counted_whole():
    """A gradient at the start of 20 chains and ten in each of 49 transitions; no value besides."""
    w = WORKLOADS["E2"]
    decoder = 20 * 400 + 400 * 784
    by_hand = 2.0 * 20 * decoder * 2 * (1 + 49 * 10)
    assert matmuls.flops(w) * matmuls.turns(w) == pytest.approx(by_hand)


def test_pixels_are_binary():
    images = pixels(50)
    assert images.shape == (50, 28, 28, 1)
    assert images.dtype == np.float32
    assert set(np.unique(images)) == {0.0, 1.0}
    assert 0.05 < images.mean() < 0.5
    assert np.array_equal(images, pixels(50))


def test_a_peer_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    """And one that fails says why; the others have numbers, ratios and a plot."""
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: name != "torch" or None)
    monkeypatch.setattr(benchmarks.metadata, "version", lambda name: "1")
    numbers = dict.fromkeys(KEYS | {"wall_seconds"}, 2.0)
    speeds = {"jaxvae": 30.0, "Flax loop": 10.0, "matmuls alone, JAX": 40.0}

    def run_once(peer, workload):
        if peer == "NumPyro SVI":
            return {"error": "NotImplementedError: no convolutions"}
        return numbers | {"examples_per_second": speeds[peer]}

    monkeypatch.setattr(benchmarks, "run_once", run_once)
    peers = [*speeds, "NumPyro SVI", "PyTorch, eager"]
    benchmarks.main(["--workloads", "W3", "--peers", *peers, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "PyTorch, eager: left out, as torch is not installed" in printed
    assert "3.00x" in printed
    assert "75%" in printed  # of what the matrix products alone reach
    assert "NotImplementedError" in printed
    found = json.loads((tmp_path / "benchmarks" / "result.json").read_text())
    assert found["W3"]["Flax loop"]["examples_per_second"] == 10.0
    assert found["machine"]["jax"] == "1"
    assert (tmp_path / "benchmarks" / "speed.png").stat().st_size > 5_000


def test_exponents_are_those_of_power_laws():
    curve = {n: growth.Point(3.0 * n**2, 5.0 * n**0.5, 1.0) for n in (10, 20, 40)}
    curve = {1: growth.Point(1e9, 1e9, 1.0)} | curve  # the last three values alone count
    assert growth.exponent(curve, "milliseconds") == pytest.approx(2.0)
    assert growth.exponent(curve, "megabytes") == pytest.approx(0.5)


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "axis",
    [
        "batch",
        pytest.param("seeds", marks=pytest.mark.slow),
        pytest.param("latent size", marks=pytest.mark.slow),
        pytest.param("samples", marks=pytest.mark.slow),
        pytest.param("image side", marks=pytest.mark.slow),
        pytest.param("virtual devices", marks=pytest.mark.slow),
    ],
)
def test_growth_is_measured(axis, tmp_path, monkeypatch):
    """Operations count once whatever the loop's length, in the ratio of the sizes or less."""
    monkeypatch.setattr(
        growth, "AXES", {axis: (8, 32)} if axis != "virtual devices" else {axis: (1, 2)}
    )
    growth.main(["--axes", axis, "--rounds", "1", "--output", str(tmp_path)])
    small, large = json.loads((tmp_path / "benchmarks" / "growth.json").read_text())[axis].values()
    assert small["milliseconds"] > 0
    assert large["megabytes"] > 0
    if axis in ("batch", "latent size", "samples"):
        assert small["gigaflops"] < large["gigaflops"] < 4 * small["gigaflops"]
        assert small["megabytes"] < large["megabytes"] < 4 * small["megabytes"]
    assert (tmp_path / "benchmarks" / "growth.png").stat().st_size > 5_000


@pytest.mark.thorough
def test_a_step_is_taken_apart_by_its_trace(monkeypatch):
    # what the profiler and XLA call things may change: every kind is to be found in a small step
    monkeypatch.setattr(tracing, "STEPS", 2)
    whole, each, primitive_of = tracing.trace(WORKLOADS["W1"]._replace(hidden=(64,), batch=8))
    kinds = {tracing.kind(op, primitive_of.get(op, "")) for op in each}
    assert whole > 0
    assert min(each.values()) >= 0
    assert {"matrix products", "copies"} <= kinds
    assert tracing.kind("ffi_call.3", "") == "convolutions and large products, oneDNN"
