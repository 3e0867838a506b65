"""Kernels and memory traffic of a compiled program, read from its text; without a card too.

    python -m experiments.benchmarks.accelerator.counts

compiles the programs for an H100 where there is none, and prints what a step of each is made of.
It needs the wheels of JAX's CUDA plugin and of NVIDIA's assembler: see the README beside this file.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from math import prod
from typing import Any, NamedTuple
from unittest import mock

import jax

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"}
FREE |= {"async-done", "async-update", "copy-done", "partition-id", "replica-id"}
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s16": 2, "u16": 2, "f64": 8}
WIDTHS |= {"s64": 8, "u64": 8, "c64": 8, "token": 0}
SCRATCH = re.compile(r"s8\[\d+\]")  # workspaces of libraries


class Counts(NamedTuple):
    """What a program does in one run, every turn of its loops counted.

    Args:
      kernels: launches: fusions, library calls, copies.
      megabytes: read and written by them, had the device no cache.
      waits: of the host, before every turn of a loop whose length it does not know.
    """

    kernels: float
    megabytes: float
    waits: float

    def each(self, steps: int) -> "Counts":
        return Counts(*(value / steps for value in self))


class Operation(NamedTuple):
    """A line of the text: `name = shape kind(operands), attributes`."""

    name: str
    kind: str
    size: int
    operands: tuple[str, ...]
    line: str

    def names(self, attribute: str) -> list[str]:
        found = re.search(rf"\b{attribute}=(?:{{([^}}]*)}}|([^,\s]+))", self.line)
        return [n.strip().lstrip("%") for n in (found[1] or found[2]).split(",")] if found else []


def count(text: str, turns: int = 1) -> Counts:
    """Of a program's `compiled.as_text()`, whose loops of unknown length make so many `turns`.

    >>> program = jax.jit(lambda x: x + 1.0).lower(jax.numpy.ones(250_000)).compile()
    >>> count(program.as_text())
    Counts(kernels=1, megabytes=2.0, waits=0)
    """
    return _count(parse(text), entry_of(text), turns)


def entry_of(text: str) -> str:
    found = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    assert found, "a program has an entry"
    return found[1]


def parse(text: str) -> dict[str, list[Operation]]:
    """Computation -> its operations."""
    found: dict[str, list[Operation]] = {}
    name = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = begins[1]
            found[name] = []
        elif matched := re.match(
            r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line
        ):
            operands = tuple(re.findall(r"%([\w.\-]+)", matched[4].split(")")[0]))
            operation = Operation(matched[1], matched[3], bytes_of(matched[2]), operands, line)
            found[name].append(operation)
    return found


def bytes_of(shape: str) -> int:
    """
    >>> bytes_of("(f32[3,4]{1,0}, bf16[], s8[33554432])")
    50
    """
    arrays = re.findall(r"([a-z]\w*)\[([\d,]*)\]", SCRATCH.sub("", shape))
    return sum(WIDTHS.get(t, 4) * prod(int(n) for n in d.split(",") if n) for t, d in arrays)


def _count(computations: dict[str, list[Operation]], name: str, unknown: int) -> Counts:
    def of(name: str) -> Counts:
        return _count(computations, name, unknown)

    kernels = megabytes = waits = 0.0
    sizes: dict[str, int] = {}
    for operation in computations[name]:
        sizes[operation.name] = operation.size
        inside: list[Counts] = []
        turns = 1
        if operation.kind in FREE:
            continue
        if operation.kind == "while":
            known = re.search(r'"?known_trip_count"?:\{"n":"(\d+)"', operation.line)
            turns = int(known[1]) if known else unknown
            names = operation.names("body") + ([] if known else operation.names("condition"))
            inside = [of(n) for n in names]
            waits += 0 if known else turns
        elif operation.kind == "call":
            inside = [of(n) for n in operation.names("to_apply")]
        elif operation.kind == "conditional":
            names = [n for a in ("branch_computations", "true_computation", "false_computation")
                     for n in operation.names(a)]  # fmt: skip
            inside = [max((of(n) for n in names), default=Counts(0, 0, 0))]
            kernels += 1
        else:
            kernels += 1
            called = operation.names("calls")
            if operation.kind == "fusion" and called:
                megabytes += traffic(computations[called[0]], operation.size) / 1e6
            else:
                read = sum(sizes.get(o, 0) for o in operation.operands)
                megabytes += (operation.size + read) / 1e6
        for part in inside:
            kernels += turns * part.kernels
            megabytes += turns * part.megabytes
            waits += turns * part.waits
    return Counts(round(kernels), megabytes, round(waits))


def traffic(operations: list[Operation], written: int) -> int:
    """Bytes of a fusion; of an array that it reads or writes slices of, those alone."""
    sizes = {o.name: o.size for o in operations}
    users: dict[str, list[Operation]] = {}
    for o in operations:
        for operand in o.operands:
            users.setdefault(operand, []).append(o)
    read = 0
    for o in operations:
        of = users.get(o.name, [])
        if o.kind != "parameter" or not of:
            continue
        if all(
            u.kind in ("dynamic-slice", "slice", "gather") and u.operands[0] == o.name for u in of
        ):
            read += min(o.size, sum(u.size for u in of))
        elif not all(u.kind == "dynamic-update-slice" and u.operands[0] == o.name for u in of):
            read += o.size
    for o in operations:
        if o.kind == "dynamic-update-slice":
            written -= o.size - sizes.get(o.operands[1], 0)
    return read + max(written, 0)


H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "H100"
"""


def prepare() -> None:
    """What compiling needs where there is no card to try kernels on; before JAX has a backend."""
    nvcc = find_spec("nvidia.cuda_nvcc")
    for folder in (nvcc.submodule_search_locations or []) if nvcc else []:
        os.environ["PATH"] = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()
    jax.config.update("jax_platforms", "cpu")


def without_a_card(run: Any, arguments: Any) -> Any:
    """`run` compiled for an H100 that is not there; `arguments` are shapes."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
    )
    there = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), arguments
    )
    return run.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()


EVERY = (
    *(f"programs/W1/{variant}" for variant in (
        "scan", "loop of traced length", "scan, 8 written out", "scan, 32 written out",
        "one key a batch", "keys of the device's generator", "donated state", "bfloat16",
    )),
    *(f"programs/W1 x{runs}/scan" for runs in (16, 64, 1024)),
    *(f"programs/W2/{variant}" for variant in ("scan", "scan, 8 written out", "one key a batch")),
    *(f"programs/{w}/{variant}" for w in ("W3", "W3 x16") for variant in ("scan", "products")),
    "programs/W5/scan", "deep/scanned", "deep/written out", "deep/written out, bfloat16",
)  # fmt: skip


def main(arguments: Sequence[str] = ()) -> None:
    from experiments.benchmarks.accelerator import deep, programs  # which import this file

    every = {"programs": programs.build, "deep": deep.build}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="programs/W1/scan, deep/scanned, ...")
    names = parser.parse_args(arguments).names or EVERY
    prepare()
    print("| a step of | kernels | MB moved | waits | MB of buffers |\n|---|---|---|---|---|")
    for name in names:
        job, _, rest = name.partition("/")
        p = every[job](rest)
        gpu = mock.patch.object(jax, "default_backend", return_value="gpu")
        with gpu, p.forms():  # the forms that the library takes there, or those that `p` asks for
            compiled = without_a_card(p.run, jax.eval_shape(p.arguments))
        each = count(compiled.as_text(), p.steps).each(p.steps)
        buffers = compiled.memory_analysis().temp_size_in_bytes / 1e6
        row = [f"{each.kernels:,.1f}", f"{each.megabytes:,.1f}", f"{each.waits:.0f}"]
        print(f"| {' | '.join([rest, *row, f'{buffers:,.0f}'])} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
