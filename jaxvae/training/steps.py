"""Training as a fold: `step(state, key, xs) -> (state, metrics)`, scanned over an epoch.

A whole run is a pure function of (key, hyper-parameters), so a sweep is `jax.vmap` of a run. One
key names a run; step t draws from `fold_in(key, t)`, so a resumed run draws what it
would have drawn.
"""

from collections.abc import Callable
from typing import (
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxvae.batching import batched, check_example, lifts, number_of_rows
from jaxvae.checks import Count, Integers, Key, Scalar, Tree, a_class_of, checked, kind
from jaxvae.pytrees import shown
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import (
    in_training,
    new_state,
    sinks_of,
    statistics,
    with_state,
    without_state,
)
from jaxvae.training.objectives import check_hyper, means_of, names_what_is_static
from jaxvae.training.optimizers import Optimizer, update
from jaxvae.training.trainable import check_trainable

Metrics = dict[str, Any]
"""Name -> array: the loss, and the means of what an objective returns beside it."""
M = TypeVar("M")
P = ParamSpec("P")


@shown
@kind("a TrainState; make one, jaxvae.init_state(model, optimizer)")
class TrainState(NamedTuple, Generic[M]):
    """All that a run carries from step to step; a pytree.

    Args:
      model: the model, whose float leaves are the parameters.
      opt_state: the optimiser's state.
      step: how many updates have been made, an int32 scalar.
    """

    model: M
    opt_state: Any
    step: Array


def _by_name(owner: str, args: tuple[object, ...]) -> None:
    """TypeError where a step, which an objective's signature types, is given more by position."""
    if args:
        raise TypeError(
            f"{owner}: hyper-parameters by position ({len(args)}), expected them by name, such as "
            "step(state, key, xs, beta=0.5)"
        )


def check_step(owner: str, name: str, step: Any) -> None:
    """Raise TypeError unless `step` can be called."""
    if not callable(step):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(step)}, expected a step; make one, "
            "jaxvae.train_step(objective, optimizer)"
        )


@kind(check_step)
class Step(Protocol[P]):
    """`(state, key, xs, **hyper) -> (state, metrics)`, whatever the model.

    P are the hyper-parameters of the objective; a schedule may stand for any of them.
    """

    @overload
    def __call__(
        self, state: TrainState[M], key: Key, xs: Tree, /, *args: P.args, **hyper: P.kwargs
    ) -> tuple[TrainState[M], Metrics]: ...
    @overload
    def __call__(
        self, state: TrainState[M], key: Key, xs: Tree, /, **hyper: Any
    ) -> tuple[TrainState[M], Metrics]: ...


@checked
def init_state(model: M, optimizer: Optimizer) -> TrainState[M]:
    """The state before the first step.

    A network with state, as BatchNorm's statistics, keeps it in `state.model`, where no optimiser
    sees it.

    Raises:
      TypeError: `optimizer` is not one of optax; a leaf of the model is not an array, a bare
        function for instance, holds integers, or is state that was taken out of its network; or the
        model holds an array of floats, in a closure for instance, that isn't a leaf and so would
        never train. What must not train goes in a `Constant`.

    >>> from jaxvae import Constant
    >>> model = {"weight": jnp.ones(3), "frozen": Constant(jnp.ones(3))}
    >>> state = init_state(model, optax.sgd(0.1))
    >>> int(state.step), len(jax.tree.leaves(state.model))  # one that trains
    (0, 1)
    """
    model = functional(model)
    check_trainable("init_state", model)
    # a Python float is weakly typed, its update is not: a step would be traced again and again
    params: Any = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), model)
    return TrainState(params, optimizer.init(without_state(params)), jnp.zeros((), jnp.int32))


@checked
def train_step(
    objective: Callable[Concatenate[Any, Array, Any, P], tuple[Array, Any]],
    optimizer: Optimizer,
) -> Step[P]:
    """Make `step(state, key, xs, **hyper) -> (state, metrics)`: one update on one batch.

    The step is pure and not jitted: jit it, scan it or vmap it. `key` is the run's key, the same at
    every step. A hyper-parameter is a number, traced, or a schedule, called with the step count;
    bind schedules with `functools.partial(step, beta=schedule)`, as jit takes no functions.

    Args:
      objective: of one example, `(model, key, x, **hyper) -> (bound, aux)`; to be maximised.
      optimizer: any optax optimiser. Those that adapt to the loss, as `optax.lbfgs` and
        `optax.contrib.reduce_on_plateau`, are given it as `value`, `grad` and `value_fn`, params ->
        the loss of the same batch under the same noise.

    Returns:
      The step. Its metrics are scalars: `loss` (minus the mean bound, in nats), the mean of every
      part of aux where that is a NamedTuple (`distortion` and `rate`, for the ELBO) or a dict, and
      each hyper-parameter as it was used. What else the optimiser sees it can keep, the gradient's
      norm by `optax.chain(optax.snapshot("norm", optax.tree.norm), optimizer)` for instance.

    Raises:
      TypeError: by the step, where `state` is no `TrainState` or `key` no PRNG key, where the
        objective takes no such hyper-parameter, needs another or returns no pair, or where the
        optimiser asks for more than the loss.
      ValueError: by the step, where a hyper-parameter bears the name of another metric.

    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> optimizer = optax.adam(1e-3)
    >>> step = jax.jit(train_step(elbo, optimizer))
    >>> state, metrics = step(
    ...     init_state(model, optimizer), jax.random.key(0), jnp.ones((7, 3)), beta=0.5
    ... )
    >>> int(state.step), sorted(metrics)
    (1, ['beta', 'distortion', 'loss', 'rate'])
    """

    check_example(objective)

    @lifts(objective)
    def trained(
        model: Any, key: Array, x: Any, *args: P.args, **hyper: P.kwargs
    ) -> tuple[Array, Any]:
        return objective(in_training(model, key), key, x, *args, **hyper)

    lifted: Callable[..., tuple[Array, Any]] = batched(trained)

    def loss(model: Tree, key: Key, xs: Tree, hyper: Metrics) -> tuple[Array, Any]:
        bound, aux = lifted(model, key, xs, **hyper)
        return -bound, aux

    @checked
    def step(
        state: TrainState[M], key: Key, xs: Tree, *args: P.args, **given: P.kwargs
    ) -> tuple[TrainState[M], Metrics]:
        _by_name("train_step", args)
        check_hyper("train_step", objective, given)
        params: Any = without_state(state.model)
        kept = statistics(state.model)
        hyper: Metrics = {n: h(state.step) if callable(h) else h for n, h in given.items()}
        step_key = jax.random.fold_in(key, state.step)

        def run(**hyper: Any) -> Any:
            return loss(state.model, jax.random.clone(step_key), xs, hyper)

        with names_what_is_static("train_step", objective, run, hyper):
            (value, aux), (gradient, left) = jax.value_and_grad(
                lambda params, sinks: loss(with_state(params, kept, sinks), step_key, xs, hyper),
                argnums=(0, 1),
                has_aux=True,
            )(params, sinks_of(kept))
        updates, opt_state = update(
            "train_step",
            optimizer,
            gradient,
            state.opt_state,
            params,
            value=value,
            grad=gradient,
            # the same noise on purpose
            value_fn=lambda params: loss(
                with_state(params, kept), jax.random.clone(step_key), xs, hyper
            )[0],
        )
        moved: Any = optax.apply_updates(params, updates)
        model = with_state(moved, new_state(kept, left))
        metrics = {**means_of(aux), "loss": value}  # whatever a part of aux is called
        for name in hyper:
            if name in metrics:
                raise ValueError(
                    f"train_step: {name} is both a hyper-parameter and a metric of the objective, "
                    "expected another name; functools.partial(objective, "
                    f"{name}=...) binds it under this one"
                )
        metrics |= {name: jnp.asarray(h) for name, h in hyper.items()}
        return TrainState(model, opt_state, state.step + 1), metrics

    vars(step)["objective"] = trained  # for who explains a loss that is not finite
    return step


@checked
def epoch_order(key: Key, epoch: Scalar, num_examples: Count, batch_size: Count) -> Array:
    """A fresh shuffle of the rows, cut into batches: row numbers [batches, batch_size].

    The rows left over sit this epoch out; the next shuffle draws others.

    >>> order = epoch_order(jax.random.key(0), 0, num_examples=7, batch_size=3)
    >>> order.shape, len({*order.ravel().tolist()})  # no row twice
    ((2, 3), 6)
    """
    if not jnp.issubdtype(jnp.result_type(epoch), jnp.integer) or (
        isinstance(epoch, int) and epoch < 0
    ):
        raise ValueError(f"epoch_order: epoch is {epoch!r}, expected an integer of at least 0")
    check_batch_size("epoch_order", batch_size, num_examples)
    num_steps = num_examples // batch_size
    # steps fold in 0, 1, ... below 2^31, so the shuffles' keys begin there
    shuffle_key = jax.random.fold_in(key, jnp.uint32(2**31) + jnp.asarray(epoch, jnp.uint32))
    order = jax.random.permutation(shuffle_key, num_examples)
    return order[: num_steps * batch_size].reshape(num_steps, batch_size)


def check_batch_size(owner: str, batch_size: int, num_examples: int) -> None:
    """Raise ValueError where not even one batch can be made of the rows."""
    if batch_size > num_examples:
        raise ValueError(
            f"{owner}: batch_size is {batch_size} and the data have {num_examples} rows, expected "
            "no more than those"
        )


@checked
def scan_steps(step: Step) -> Callable[..., tuple[TrainState, Metrics]]:
    """Lift a step to many, as one `lax.scan`: `steps(state, key, data, order, **hyper)`.

    Rows are gathered on the device inside the scan, so data go there once, as stored. `order` is
    int [num_steps, batch_size], and metrics are [num_steps].

    >>> state = init_state({"theta": jnp.zeros(())}, optax.sgd(0.1))
    >>> step = lambda state, key, xs: (state, {"mean": jnp.mean(xs)})
    >>> order = jnp.array([[0, 1], [2, 3]])
    >>> scan_steps(step)(state, jax.random.key(0), jnp.arange(4.0), order)[1]["mean"].tolist()
    [0.5, 2.5]
    """

    @checked
    def steps(
        state: TrainState, key: Key, data: Tree, order: Integers, **hyper: Any
    ) -> tuple[TrainState, Metrics]:
        number_of_rows(data, "scan_steps", "data")
        if jnp.ndim(order) != 2:
            raise ValueError(
                f"scan_steps: order has shape {jnp.shape(order)}, expected [num_steps, batch_size]"
            )

        def body(state: TrainState, rows: Array) -> tuple[TrainState, Metrics]:
            return step(
                state, key, jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data), **hyper
            )

        return jax.lax.scan(body, state, jnp.asarray(order))

    return steps


@checked
def train_epoch(step: Step[P], *, batch_size: Count) -> Step[P]:
    """Make `epoch(state, key, data, **hyper) -> (state, metrics)`: shuffle once, visit every batch.

    Its metrics have one entry a step. Pure, so that a whole run is `jax.lax.scan` of it and a sweep
    is `jax.vmap` of that:

    >>> from functools import partial
    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> data, optimizer = jnp.ones((20, 3)), optax.adam(1e-3)
    >>> epoch = train_epoch(train_step(elbo, optimizer), batch_size=10)
    >>> def run(key, beta):
    ...     init_key, key = jax.random.split(key)
    ...     weight = jax.random.normal(init_key, (3, 1))
    ...     model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    ...     one = lambda state, _: epoch(state, key, data, beta=beta)
    ...     return jax.lax.scan(one, init_state(model, optimizer), length=3)
    >>> seeds, betas = jax.random.split(jax.random.key(0), 4), jnp.array([0.5, 1.0])
    >>> states, history = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(seeds, betas)
    >>> history["loss"].shape  # seeds, betas, epochs, steps
    (4, 2, 3, 2)
    """

    @checked
    def epoch(
        state: TrainState[M], key: Key, data: Tree, *args: P.args, **hyper: P.kwargs
    ) -> tuple[TrainState[M], Metrics]:
        _by_name("train_epoch", args)
        num_examples = number_of_rows(data, "train_epoch", "data")
        check_batch_size("train_epoch", batch_size, num_examples)
        index = state.step // max(num_examples // batch_size, 1)
        order = epoch_order(key, index, num_examples, batch_size)
        return scan_steps(step)(state, key, data, order, **hyper)

    return epoch
