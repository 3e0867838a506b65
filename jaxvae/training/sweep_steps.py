"""A sweep under `fit`: one step of the runs at all points of a grid."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Count, Key, Tree, checked, is_key
from jaxvae.pytrees import shown
from jaxvae.training.callbacks import Callback
from jaxvae.training.grids import Grid, axes_and_points, names_what_is_static
from jaxvae.training.steps import Metrics, Step, TrainState


@shown
class Points(NamedTuple):
    """What a sweep under `fit` has in its optimiser's state.

    Args:
      values: name -> the value at each point, [*sizes, ...]; of keys their data.
      opt_state: the optimiser's, leaves [*sizes, ...].
    """

    values: dict[str, Array]
    opt_state: Any


@checked
def sweep_step(
    make: Callable[..., tuple[Step, TrainState]], grid: Grid, *, at_once: Count | None = None
) -> tuple[Step, TrainState[Any]]:
    """A sweep for `fit`: one step of the runs at all points of a grid, and the state they begin in.

    `fit(*sweep_step(make, grid), key, data, ...)` takes all that it takes for one run: callbacks,
    checkpoints, a line of progress, devices. The model's leaves are [len(axis 1), len(axis 2), ...,
    ...], metrics [steps, len(axis 1), ...]. All points see the same batches; point i, in the order
    of the axes, draws from `fold_in(key, i)`, so that no point depends on those behind it.

    Args:
      make: `make(**point) -> (step, state)`, pure: as `train_step` and `init_state` make them, with
        `functools.partial` for hyper-parameters.
      grid: name -> values, their leading axis swept: keys, numbers or arrays.
      at_once: points to vmap together; all by default.

    >>> import optax
    >>> from jaxvae import elbo, fit, init_state, train_step
    >>> from jaxvae.models import ppca
    >>> def make(key, beta, learning_rate):
    ...     weight = jax.random.normal(key, (3, 1))
    ...     model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    ...     optimizer = optax.adam(learning_rate)
    ...     return partial(train_step(elbo, optimizer), beta=beta), init_state(model, optimizer)
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> step, state = sweep_step(
    ...     make, {"key": keys, "beta": [0.5, 1.0, 4.0], "learning_rate": [1e-3, 1e-2]}
    ... )
    >>> _, history = fit(step, state, jax.random.key(1), jnp.ones((20, 3)), epochs=2, batch_size=10)
    >>> history["loss"].shape  # steps, then the axes
    (4, 2, 3, 2)
    """
    axes, points = axes_and_points("sweep_step", grid)
    sizes = tuple(len(values) for values in axes.values())
    flat = partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[len(sizes) :]))
    shaped = partial(jax.tree.map, lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]))

    def at_each(one: Callable[..., Any], *rows: Any) -> Any:
        def call(row: Any) -> Any:
            return one(*row)

        return (
            jax.vmap(call)(rows) if at_once is None else jax.lax.map(call, rows, batch_size=at_once)
        )

    impls = {name: jax.random.key_impl(v) for name, v in points.items() if is_key(v)}
    points = {n: jax.random.key_data(v) if n in impls else v for n, v in points.items()}

    def with_keys(point: dict[str, Array]) -> dict[str, Array]:
        keys = {n: jax.random.wrap_key_data(point[n], impl=impl) for n, impl in impls.items()}
        return point | keys

    def begin(point: dict[str, Array]) -> tuple[Any, Any]:
        state = make(**with_keys(point))[1]
        return state.model, state.opt_state

    @checked
    def step(state: TrainState, key: Key, xs: Tree, **hyper: Any) -> tuple[TrainState, Metrics]:
        def one(i: Array, point: Any, model: Any, opt_state: Any) -> Any:
            of_point = TrainState(model, opt_state, state.step)
            new, metrics = make(**with_keys(point))[0](
                of_point, jax.random.fold_in(key, i), xs, **hyper
            )
            return new.model, new.opt_state, metrics

        values, opt_states = flat(state.opt_state)
        number = jnp.arange(prod(sizes))
        found = shaped(at_each(one, number, values, flat(state.model), opt_states))
        return TrainState(
            found[0], Points(state.opt_state.values, found[1]), state.step + 1
        ), found[2]

    def at_point(state: TrainState, key: Key, at: tuple[int, ...]) -> tuple[Step, TrainState, Key]:
        """Step, state and key of one point alone."""
        of_point = {name: jnp.asarray(v)[at] for name, v in state.opt_state.values.items()}
        model, opt_state = jax.tree.map(
            lambda leaf: leaf[at], (state.model, state.opt_state.opt_state)
        )
        one = TrainState(model, opt_state, state.step)
        i = int(np.ravel_multi_index(at, sizes))
        return make(**with_keys(of_point))[0], one, jax.random.fold_in(key, i)

    vars(step)["at_point"] = at_point  # for who explains a loss that is not finite
    with names_what_is_static("sweep_step", lambda **point: make(**point)[1], axes, {}):
        model, opt_state = shaped(jax.jit(partial(at_each, begin))(points))
    return step, TrainState(model, Points(shaped(points), opt_state), jnp.zeros((), jnp.int32))


@checked
def each_point(callback: Callback) -> Callback:
    """A callback for `fit` of a `sweep_step`: that of one run, called at every point.

    What it returns by name is stacked to [len(axis 1), len(axis 2), ...]:
    `each_point(validation(...))`. It is a function of its arguments, without `begin` or `end`.

    Raises:
      TypeError: it has one of these, as `early_stopping`, which follows a single run.
    """
    if method := next((name for name in ("begin", "end") if hasattr(callback, name)), None):
        raise TypeError(
            f"each_point: callback has a method {method}, expected a function of (state, metrics, "
            "epoch, key), as it is called at every point"
        )

    def call(state: TrainState, metrics: Metrics, epoch: float, key: Array) -> Any:
        sizes = metrics["loss"].shape[1:]
        found = []
        for i, at in enumerate(np.ndindex(*sizes)):
            model, opt_state = jax.tree.map(
                lambda leaf, at=at: leaf[at], (state.model, state.opt_state.opt_state)
            )
            of_point = {
                n: m[:, *at] for n, m in metrics.items() if m.shape[1 : 1 + len(sizes)] == sizes
            }
            one = TrainState(model, opt_state, state.step)
            found.append(callback(one, of_point, epoch, jax.random.fold_in(key, i)))
        silent = [of is None for of in found]
        if all(silent):
            return None
        if any(silent):
            raise ValueError(
                "each_point: callback returned None at some points and numbers at others, "
                "expected one or the other, as numbers are stacked"
            )
        every = jax.tree.map(lambda *leaves: np.stack(leaves), *map(dict, found))
        return {name: leaf.reshape(*sizes, *leaf.shape[1:]) for name, leaf in every.items()}

    return call
