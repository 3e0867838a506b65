"""The limit: the matrix products of a training step, and nothing else.

For a layer [b, n] @ [n, m] a step makes three: the output, the gradient by the input (not for the
first layer of the encoder) and the gradient by the weights.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.workloads import LEAPFROG, PILOTS, TEMPERATURES, Workload, plain


def products(w: Workload) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of every product of a step, an estimate or a gradient of AIS."""
    b, k = w.batch, w.num_samples

    def dense(rows: int, sizes: list[int], first: bool) -> list[tuple[int, int, int]]:
        found = []
        for i, (n, m) in enumerate(pairwise(sizes)):
            found += [(rows, n, m), (n, rows, m)]
            if i or not first:
                found.append((rows, m, n))
        return found

    if w.job == "log_marginal":
        return [(b * k, n, m) for n, m in pairwise([w.latent, *w.hidden[::-1], 784])]
    if w.job == "ais":  # the gradient is by z alone
        layers = list(pairwise([w.latent, *w.hidden[::-1], 784]))
        rows = b * (k + PILOTS)
        return [(rows, n, m) for n, m in layers] + [(rows, m, n) for n, m in layers[::-1]]
    plain(w, "the limit")
    size = 3136 if w.network == "conv" else 784
    shapes = dense(b, [size, *w.hidden, 2 * w.latent], first=w.network == "mlp")
    shapes += dense(b * k, [w.latent, *w.hidden[::-1], size], first=False)
    if w.network == "conv":  # as matrix products: pixels of the small image by 16 taps
        shapes += dense(b * 196, [16, 32], first=True) + dense(b * 49, [512, 64], first=False)
        shapes += dense(b * 49, [64, 512], first=False) + dense(b * 196, [32, 16], first=False)
    return shapes


def turns(w: Workload) -> int:
    """How often all products are made between two looks."""
    if w.job != "ais":
        return w.chunk * w.seeds
    return w.chunk * ((TEMPERATURES - 1) * LEAPFROG + 1)  # the first is at the start


def flops(w: Workload) -> float:
    """Of one example, forward and backward."""
    return sum(2.0 * r * n * m for r, n, m in products(w)) / w.batch


def train(w: Workload, images: np.ndarray, look: Any) -> None:
    """JAX's."""
    key = jax.random.key(0)
    pairs = [(jax.random.normal(key, (r, n)), jax.random.normal(key, (n, m)))
             for r, n, m in products(w)]  # fmt: skip

    @jax.jit
    def run(pairs: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            # the left factors change with each turn, so that no product is hoisted; all are kept
            lefts, outs = carry
            lefts = [a.at[0, 0].add(1e-20 * out[0, 0]) for a, out in zip(lefts, outs, strict=True)]
            return lefts, [a @ b for a, (_, b) in zip(lefts, pairs, strict=True)]

        outs = [jnp.zeros((len(a), b.shape[1])) for a, b in pairs]
        start = [a for a, _ in pairs], outs
        return jax.lax.fori_loop(0, turns(w), body, start)[1]

    for _ in range(w.looks):
        look(float(jax.block_until_ready(run(pairs))[0][0, 0]))
