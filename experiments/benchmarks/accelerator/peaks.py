"""What the card can do: products, memory, and the time of launching next to nothing."""

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator import counts, sizes

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpyro")
SIDE = 64 if sizes.TINY else 8192  # of the large products
FLOATS = 2**12 if sizes.TINY else 2**28  # that are copied
LAUNCHES = 8 if sizes.TINY else 512


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    """Of a call: the median of ten, or of as many as fit."""
    jax.block_until_ready(run(*arguments))
    found: list[float] = []
    while len(found) < 3 or (len(found) < 10 and sum(found) < 2 * sizes.SECONDS):
        begun = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        found.append(time.perf_counter() - begun)
    return float(np.median(found))


def device() -> dict[str, Any]:
    first = jax.local_devices()[0]
    installed = {name: metadata.version(name) for name in PACKAGES if find_spec(name)}
    about = {"device": first.device_kind, "platform": first.platform}
    return about | installed | {"python": platform.python_version(), "cores": os.cpu_count()}


def products() -> dict[str, float]:
    """TFLOP/s of a large square product: float32, on a GPU TF32 by default, and bfloat16."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (SIDE, SIDE), dtype)
        found[dtype] = 2.0 * SIDE**3 / seconds(jax.jit(jnp.matmul), a, a) / 1e12
    return found


def memory() -> dict[str, float]:
    """GB/s of reading an array and writing another."""
    x = jnp.zeros(FLOATS)
    return {"gigabytes_per_second": 8.0 * FLOATS / seconds(jax.jit(lambda x: x + 1.0), x) / 1e9}


def launches() -> dict[str, float]:
    """Microseconds of a kernel in a long program, of a loop's turn, and of a call from Python.

    The kernel is a product of two 64x64 matrices, which nothing fuses with the next.
    """
    x = w = jnp.eye(64)
    count = jnp.asarray(LAUNCHES, jnp.int32)

    def chain(x: Any, w: Any) -> Any:
        for _ in range(LAUNCHES):
            x = x @ w
        return x

    def loop(x: Any, w: Any, count: Any = LAUNCHES) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ w, x)

    program: Any = jax.jit(chain).lower(x, w).compile()
    kernels = counts.count(program.as_text()).kernels
    one = jax.jit(jnp.matmul)

    def call_by_call(x: Any, w: Any) -> Any:
        for _ in range(LAUNCHES):
            x = one(x, w)
        return x

    return {
        "us_a_kernel": 1e6 * seconds(program, x, w) / max(kernels, 1),
        "us_a_turn": 1e6 * seconds(jax.jit(loop), x, w) / LAUNCHES,
        "us_a_turn_of_unknown_length": 1e6 * seconds(jax.jit(loop), x, w, count) / LAUNCHES,
        "us_a_call": 1e6 * seconds(call_by_call, x, w) / LAUNCHES,
    }


def measure(name: str) -> dict[str, Any]:
    return {"device": device, "launches": launches, "products": products, "memory": memory}[name]()
