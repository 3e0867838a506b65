"""Where a training step's time goes, operation by operation: the profiler's trace, summed by kind.

    python -m experiments.benchmarks.trace                       # W3 and W5
    python -m experiments.benchmarks.trace --workloads W1 --each
    python -m experiments.benchmarks.trace --workloads W2 --dtype bfloat16

Milliseconds a step over the epoch that is traced. What runs side by side on two cores is counted
twice, and the profiler costs a little at every operation, so that the sum is more than the step,
which is timed without it. A fused loop counts as what its last operation is.
"""

import argparse
import gzip
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxvae
from experiments.benchmarks.peers.ours import make_model, objective
from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels

STEPS = 20
KINDS = {  # by the primitive an operation comes from, or by its own name where that says more
    "convolutions and large products, oneDNN": r"ffi_call|onednn_convolution",
    "matrix products": r"dot|dot_general",
    "sums": r"reduce_\w+|argm\w+|cumsum|wrapped_reduce-window",
    "random numbers": r"threefry2x32|random_\w+|shift_\w+|xor|erf_inv",
    "copies": r"transpose|reshape|squeeze|copy|pad|concatenate|slice|gather|scatter\S*|dynamic_\w+|"
    r"broadcast_in_dim|convert_element_type|rev|split",
}
LOOPS = r"while|call|conditional"  # hold the others


def kind(op: str, primitive: str) -> str:
    """What an operation is, of `KINDS`.

    >>> kind("dot.3", "transpose"), kind("loop_fusion.1", "max")
    ('matrix products', 'elementwise: activations, their gradients, Adam')
    """
    plain = op.rstrip(".0123456789")
    for label, pattern in KINDS.items():
        if any(re.fullmatch(pattern, name) for name in (plain, primitive)):
            return label
    return "elementwise: activations, their gradients, Adam"


def primitives(program: str) -> dict[str, str]:
    """The primitive of each instruction of a compiled program, by its name.

    >>> primitives(' %add.3 = f32[2]{0} add(%a, %b), metadata={op_name="jit(f)/jvp()/add_any"}')
    {'add.3': 'add_any'}
    """
    lines = re.finditer(r'%?([\w.-]+) = .*?metadata={[^}]*?op_name="([^"]*)"', program)
    return {line[1]: line[2].rsplit("/")[-1] for line in lines}


def durations(folder: str) -> Counter[str]:
    """Milliseconds of each instruction in the trace below `folder`, by its name."""
    (path,) = Path(folder).rglob("*.trace.json.gz")
    found: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            found[event["name"]] += event["dur"] / 1e3
    return Counter({k: v for k, v in found.items() if not re.match(LOOPS, k)})


def trace(w: Workload) -> tuple[float, Counter[str], dict[str, str]]:
    """Milliseconds of a step untraced; and of each instruction, traced; and their primitives."""
    optimizer = optax.adam(1e-3)
    step = jaxvae.train_step(objective(w), optimizer)
    epoch: Any = jax.jit(jaxvae.train_epoch(step, batch_size=w.batch))
    state = jaxvae.init_state(make_model(w, jax.random.key(0)), optimizer)
    given = state, jax.random.key(1), jnp.asarray(pixels(STEPS * w.batch, w.shape))
    program = epoch.lower(*given).compile()
    jax.block_until_ready(program(*given))
    start = time.perf_counter()
    jax.block_until_ready(program(*given))
    whole = 1e3 * (time.perf_counter() - start) / STEPS
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(*given))
        each = durations(folder)
    return whole, Counter({k: v / STEPS for k, v in each.items()}), primitives(program.as_text())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=["W3", "W5"], choices=list(WORKLOADS))
    parser.add_argument("--each", action="store_true", help="the thirty longest operations too")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args(argv)
    for name in options.workloads:
        whole, each, primitive_of = trace(WORKLOADS[name]._replace(dtype=options.dtype))
        kinds: Counter[str] = Counter()
        for op, ms in each.items():
            kinds[kind(op, primitive_of.get(op, ""))] += ms
        print(f"| {name}, a step of {whole:.1f} ms | ms | share |\n|---|---|---|")
        for label, ms in kinds.most_common():
            print(f"| {label} | {ms:.2f} | {100 * ms / each.total():.0f} % |")
        for op, ms in each.most_common(30 if options.each else 0):
            print(f"{ms:8.3f} ms  {op:32} {primitive_of.get(op, '')}")


if __name__ == "__main__":
    sys.exit(main())
