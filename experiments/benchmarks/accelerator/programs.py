"""One training loop in many ways: what makes it faster.

A program is `run(state, key, data, order, ...) -> (state, metrics)`, so many steps of jaxvae's.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.benchmarks.accelerator import counts, sizes
from experiments.benchmarks.measure import device_megabytes
from experiments.benchmarks.peers.ours import make_model, objective
from experiments.benchmarks.workloads import Workload
from jaxvae.nn import onednn


class Program(NamedTuple):
    """A training loop to be compiled and timed.

    Args:
      run: jitted; it takes and gives the state first, then metrics with `loss`.
      arguments: () -> the arrays to begin with.
      steps: of a call.
      examples: of a step.
      operations: () -> floating-point operations of a step.
      calls: of `run` between two looks at the clock.
      forms: a context in which the library takes other forms than its own choice.
    """

    run: Any
    arguments: Callable[[], tuple[Any, ...]]
    steps: int
    examples: int
    operations: Callable[[], float]
    calls: int = 1
    forms: Callable[[], AbstractContextManager[Any]] = nullcontext


@contextmanager
def as_on(backend: str) -> Iterator[None]:
    """The library's forms of another backend: products for a CPU, `lax.conv` elsewhere."""
    with (
        mock.patch.object(jax, "default_backend", return_value=backend),
        mock.patch.object(onednn, "knows", return_value=False),
    ):
        yield


def build(name: str) -> Program:
    """`W1/scan, 8 written out`: a workload and one of `VARIANTS`."""
    workload, variant = name.split("/")
    w = sizes.workload(workload, "bfloat16" if variant == "bfloat16" else "float32")
    return VARIANTS[variant](w)


def scan(
    w: Workload,
    *,
    unroll: int = 1,
    donate: bool = False,
    backend: str | None = None,
    impl: str | None = None,
    make_step: Callable[[Workload, Any], Any] = lambda w, adam: jaxvae.train_step(
        objective(w), adam
    ),
) -> Program:
    """`w.chunk` steps as one `lax.scan`, of `w.runs` models at once.

    Args:
      w: the workload.
      unroll: steps that a turn of the loop writes out.
      donate: whether the state is donated.
      backend: whose forms the library takes.
      impl: of the keys.
      make_step: (workload, optimiser) -> step.
    """
    adam = optax.adam(1e-3)
    step = make_step(w, adam)

    def steps(state: Any, key: jax.Array, data: Any, order: jax.Array) -> Any:
        def body(state: Any, rows: jax.Array) -> Any:
            return step(state, key, data[rows])

        return jax.lax.scan(body, state, order, unroll=unroll)

    def start(key: jax.Array) -> Any:
        return jaxvae.init_state(make_model(w, key), adam)

    def arguments() -> tuple[Any, ...]:
        keys = (
            jax.random.split(jax.random.key(0), w.runs),
            jax.random.split(jax.random.key(1, impl=impl), w.runs),
        )
        if w.runs == 1:
            keys = keys[0][0], keys[1][0]
        data = jnp.asarray(sizes.images(w))
        order = jaxvae.training.epoch_order(jax.random.key(2), 0, len(data), w.batch)
        return (start if w.runs == 1 else jax.vmap(start))(keys[0]), keys[1], data, order

    run = steps if w.runs == 1 else jax.vmap(steps, (0, 0, None, None))
    return Program(
        jax.jit(run, donate_argnums=0 if donate else ()),
        arguments,
        w.chunk,
        w.batch * w.runs,
        partial(operations, start, step, w),
        forms=nullcontext if backend is None else partial(as_on, backend),
    )


def of_traced_length(w: Workload) -> Program:
    """The loop that needs no other program for fewer steps, and whose length nobody knows."""
    p = scan(w)
    step = jaxvae.train_step(objective(w), optax.adam(1e-3))

    def run(state: Any, key: jax.Array, data: Any, order: jax.Array, count: jax.Array) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, every = carry
            state, metrics = step(state, key, data[order[i]])
            return state, {name: e.at[i].set(metrics[name]) for name, e in every.items()}

        shapes = jax.eval_shape(step, state, key, data[: w.batch])[1]
        empty = {name: jnp.zeros(len(order), m.dtype) for name, m in shapes.items()}
        return jax.lax.fori_loop(0, count, body, (state, empty))

    return p._replace(
        run=jax.jit(run), arguments=lambda: (*p.arguments(), jnp.asarray(p.steps, jnp.int32))
    )


def a_call_a_step(w: Workload) -> Program:
    """One jitted step called from Python, as most training loops are written."""
    p = scan(w)
    step = jaxvae.train_step(objective(w), optax.adam(1e-3))

    def run(state: Any, key: jax.Array, data: Any, order: jax.Array) -> Any:
        return step(state, key, data[order[state.step % len(order)]])

    return p._replace(run=jax.jit(run, donate_argnums=0), steps=1, calls=p.steps)


def one_key(w: Workload, adam: optax.GradientTransformation) -> Any:
    """A step that draws a batch's noise from one key, where `train_step` has a key an example."""
    k = w.num_samples

    def bound(model: Any, key: jax.Array, x_eps: Any) -> Any:
        x, eps = x_eps
        q = model.encode(x)
        z = q.loc + q.scale * eps  # [k, d]
        log_p = jax.vmap(lambda z: model.decode(z).log_prob(x))(z)
        if k == 1:
            terms = jaxvae.Terms(-log_p[0], jaxvae.kl_divergence(q, model.prior))
            return -(terms.distortion + terms.rate), terms
        log_w = log_p + jax.vmap(lambda z: model.prior.log_prob(z) - q.log_prob(z))(z)
        return jax.nn.logsumexp(log_w) - jnp.log(k), log_w

    step = jaxvae.train_step(bound, adam)

    def of_one_key(state: Any, key: jax.Array, xs: jax.Array) -> Any:
        step_key = jax.random.fold_in(key, state.step)
        eps = jax.random.normal(step_key, (w.batch, k, w.latent))
        return step(state, key, (xs, eps))

    return of_one_key


VARIANTS: dict[str, Callable[[Workload], Program]] = {
    "scan": scan,
    "scan, 8 written out": partial(scan, unroll=8),
    "scan, 32 written out": partial(scan, unroll=32),
    "loop of traced length": of_traced_length,
    "donated state": partial(scan, donate=True),
    "one key a batch": partial(scan, make_step=one_key),
    "keys of the device's generator": partial(scan, impl="rbg"),
    "bfloat16": scan,
    "products": partial(scan, backend="cpu"),
    "a call a step": a_call_a_step,
}


def operations(start: Any, step: Any, w: Workload) -> float:
    """Floating-point operations of a step of one model, as XLA counts them before it compiles."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    xs = jax.ShapeDtypeStruct((w.batch, *w.shape), jnp.float32)
    return w.runs * operations_of(step, jax.eval_shape(start, key), key, xs)


def operations_of(step: Any, *shapes: Any) -> float:
    """Of one call, on shapes; a loop's body counts once."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost: Any = jax.jit(step).lower(*shapes).cost_analysis()
    return float(cost["flops"])


def measure(name: str) -> dict[str, Any]:
    return timed(build(name))


def timed(p: Program) -> dict[str, Any]:
    """Microseconds a step (median), what it is made of, and what compiling it took."""
    with p.forms():
        state, *rest = p.arguments()
        begun = time.perf_counter()
        compiled = p.run.lower(state, *rest).compile()
        compile_seconds = time.perf_counter() - begun
        needed = p.operations()
    seconds: list[float] = []
    metrics: Any = {}
    while len(seconds) < 4 or sum(seconds) < sizes.SECONDS:
        begun = time.perf_counter()
        for _ in range(p.calls):
            state, metrics = compiled(state, *rest)
        jax.block_until_ready((state, metrics))
        seconds.append((time.perf_counter() - begun) / (p.calls * p.steps))
    each = float(np.median(seconds[1:]))
    made = counts.count(compiled.as_text(), p.steps).each(p.steps)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.model))
    return {
        "us_a_step": 1e6 * each,
        "examples_per_second": p.examples / each,
        "compile_seconds": compile_seconds,
        "loss": float(jnp.mean(metrics["loss"][..., -1])) if p.calls == 1 else None,
        "kernels": made.kernels,
        "megabytes_moved": made.megabytes,
        "waits": made.waits,
        "megabytes_of_buffers": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "device_megabytes": device_megabytes(),
        "operations": needed,
        "parameters": parameters,
    }
