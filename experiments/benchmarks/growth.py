"""How the cost of a training step grows: time, memory and operations against one size at a time.

    python -m experiments.benchmarks.growth

One size at a time is varied about 784-400-z20-400-784 on 128 stand-in images a step; the number of
samples on IWAE of 32 images, the side of the image on convolutions of 32 images. Prints, for every
axis, milliseconds a step (median over rounds, values in turns), megabytes that the compiled program
needs beside its arguments, and the exponent p of time ~ size^p over the last three values. Virtual
devices share the cores of this machine, so their curve shows the price of sharding, not its gain.
Writes runs/benchmarks/growth.json and growth.png; three minutes on two x86-64 cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxvae
from experiments.benchmarks.peers.ours import make_model, objective
from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels
from experiments.common import plotting

AXES: dict[str, tuple[int, ...]] = {
    "batch": (16, 64, 256, 1024, 4096),
    "latent size": (8, 32, 128, 512, 2048),
    "samples": (1, 4, 16, 64, 256),
    "image side": (8, 16, 32, 64, 128),
    "seeds": (1, 2, 4, 8, 16),
    "virtual devices": (1, 2, 4, 8),
}
STEPS = 8  # a call


class Point(NamedTuple):
    """One value of one axis.

    Args:
      milliseconds: a step.
      megabytes: of temporary buffers and results.
      gigaflops: a step, as XLA counts them.
    """

    milliseconds: float
    megabytes: float
    gigaflops: float


def job(axis: str, value: int) -> tuple[Callable[[], None], Any]:
    """STEPS training steps to be timed, and their compiled program."""
    w = WORKLOADS["W1"]
    if axis == "samples":
        w = w._replace(batch=32, num_samples=value)
    elif axis == "image side":
        w = WORKLOADS["W3"]._replace(batch=32, shape=(value, value, 1))
    elif axis in ("batch", "latent size", "seeds"):
        w = w._replace(**{{"latent size": "latent"}.get(axis, axis): value})
    optimizer = optax.adam(1e-3)
    step = jaxvae.train_step(objective(w), optimizer)
    data = jnp.asarray(pixels(STEPS * w.batch, w.shape))
    key, state = jax.random.key(1), jaxvae.init_state(make_model(w, jax.random.key(0)), optimizer)
    if axis == "virtual devices":
        return on_devices(value, step, state, key, data[: w.batch])
    if axis == "seeds":
        return for_seeds(w, step, optimizer, data)
    program = jax.jit(jaxvae.train_epoch(step, batch_size=w.batch))
    compiled = program.lower(state, key, data).compile()
    return lambda: jax.block_until_ready(compiled(state, key, data)), compiled


def for_seeds(
    w: Workload, step: Any, optimizer: optax.GradientTransformation, data: jax.Array
) -> tuple[Callable[[], None], Any]:
    """As many runs as seeds, in one call of `sweep`; their initial weights included."""
    epoch = jaxvae.train_epoch(step, batch_size=w.batch)

    def run(key: jax.Array, data: jax.Array) -> jax.Array:
        init_key, key = jax.random.split(key)
        state = jaxvae.init_state(make_model(w, init_key), optimizer)
        return epoch(state, key, data)[1]["loss"]

    keys = jax.random.split(jax.random.key(0), w.seeds)
    program = jax.jit(lambda keys, data: jaxvae.sweep(run, {"key": keys}, data=data).results)
    compiled = program.lower(keys, data).compile()
    return lambda: jax.block_until_ready(compiled(keys, data)), compiled


def on_devices(
    devices: int, step: Any, state: Any, key: jax.Array, xs: jax.Array
) -> tuple[Callable[[], None], Any]:
    """Data parallel: the batch shared out, the state on every device."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    state, key = jax.device_put((state, key), NamedSharding(mesh, PartitionSpec()))
    xs = jax.device_put(xs, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(step).lower(state, key, xs).compile()

    def steps() -> None:
        now = state
        for _ in range(STEPS):
            now, _ = compiled(now, key, xs)
        jax.block_until_ready(now)

    return steps, compiled


def measure(axis: str, values: Sequence[int], rounds: int) -> dict[int, Point]:
    """Every value, in turns; the first call of each is not counted."""
    jobs = {value: job(axis, value) for value in values}
    seconds: dict[int, list[float]] = {value: [] for value in values}
    for turn in range(rounds + 1):
        for value, (steps, _) in jobs.items():
            start = time.perf_counter()
            steps()
            if turn:
                seconds[value].append((time.perf_counter() - start) / STEPS)
    return {value: point(np.median(seconds[value]), jobs[value][1]) for value in values}


def point(seconds: Any, compiled: Any) -> Point:
    memory = compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes
    operations = (compiled.cost_analysis() or {}).get("flops", np.nan)
    return Point(1e3 * float(seconds), used / 2**20, operations / 1e9)


def on_virtual_devices(values: Sequence[int], rounds: int) -> dict[int, Point]:
    """Each number of devices in a process of its own, as JAX makes devices once."""
    found = {}
    for value in values:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={value}"
        command = [sys.executable, "-m", "experiments.benchmarks.growth", "--devices", str(value)]
        done = subprocess.run(
            [*command, "--rounds", str(rounds)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[value] = Point(*json.loads(done.stdout.splitlines()[-1]))
    return found


def exponent(curve: dict[int, Point], field: str) -> float:
    """p of y ~ size^p, by least squares in logarithms over the last three values."""
    sizes = list(curve)[-3:]
    y = [getattr(curve[size], field) for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(y), 1)[0])


@plotting.styled
def plot(path: Path, found: dict[str, dict[int, Point]]) -> None:
    """Time and memory, a panel an axis, all of one scale, so that slopes compare."""
    rows, columns = -(-len(found) // 3), min(3, len(found))
    picture = plotting.figure(2.5 * columns, 2.2 * rows + 0.3)
    panels = picture.subplots(rows, columns, sharey=True, squeeze=False)
    lines = (
        ("milliseconds", "milliseconds a step", plotting.BLUE, "o-", 0.97),
        ("megabytes", "megabytes", plotting.RED, "s--", 0.85),
    )
    for ax, (axis, curve) in zip(panels.flat, found.items(), strict=False):
        for field, label, color, line, height in lines:
            y = [getattr(p, field) for p in curve.values()]
            ax.loglog(list(curve), y, line, color=color, label=label)
            text = f"{field} ~ $n^{{{exponent(curve, field):.2f}}}$"
            ax.text(0.03, height, text, color=color, transform=ax.transAxes, va="top")
        ax.set_title(axis)
        ax.minorticks_off()
        ax.set_xticks(list(curve), [f"{n:,}" for n in curve])
        ax.yaxis.set_major_formatter("{x:,.0f}")
    for ax in panels.flat[len(found) :]:
        ax.set_axis_off()
    picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    plotting.save(picture, path)


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument(
        "--devices", type=int, help=argparse.SUPPRESS
    )  # what a process of its own measures
    options = parser.parse_args(arguments)
    if options.devices:
        print(
            json.dumps(
                measure("virtual devices", [options.devices], options.rounds)[options.devices]
            )
        )
        return

    found = {}
    for axis in options.axes:
        of = on_virtual_devices if axis == "virtual devices" else partial(measure, axis)
        found[axis] = of(AXES[axis], options.rounds)
        for value, p in found[axis].items():
            print(f"{axis} {value}: {p.milliseconds:.2f} ms, {p.megabytes:.1f} MB", flush=True)
        time_, memory = (exponent(found[axis], f) for f in ("milliseconds", "megabytes"))
        print(f"{axis}: time ~ n^{time_:.2f}, memory ~ n^{memory:.2f}", flush=True)
    folder = options.output / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {a: {v: p._asdict() for v, p in curve.items()} for a, curve in found.items()}
    (folder / "growth.json").write_text(json.dumps(numbers, indent=2) + "\n")
    plot(folder / "growth.png", found)
    print(f"numbers and picture: {folder}/")


if __name__ == "__main__":
    main(sys.argv[1:])
