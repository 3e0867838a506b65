"""Numbers that go wrong: a run stops before they spoil its state, or steps over them."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Positive, Tree, checked, told_outside
from jaxvae.pytrees import paths, wide
from jaxvae.training.planning import Call
from jaxvae.training.steps import Metrics, Step, TrainState


class NonFiniteError(ArithmeticError):
    """A step whose loss, or whose update, is no finite number; the message names it.

    Args:
      message: what to tell.
      step: its number, the first being 1.
      state: before it, finite.
      rows: the rows of the data it was about; of a stream the batch's number in its epoch.
    """

    def __init__(self, message: str, *, step: int, state: Tree, rows: Any):
        super().__init__(message)
        self.step, self.state, self.rows = step, state, rows


SMALL = 2**18  # numbers of an array that is looked at together with others


def all_finite(tree: Any) -> Array:
    """Whether the magnitudes of the floats in a pytree have a finite sum, a boolean.

    >>> bool(all_finite({"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan])}))
    False
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    large = [
        jnp.asarray(x, None if jnp.result_type(x).itemsize > 2 else jnp.float32) for x in floats
    ]
    # every sum is three kernels to XLA, and those of a small model's state a third of its program
    sums = [x for x in large if x.size > SMALL]
    for dtype in dict.fromkeys(x.dtype for x in large):
        small = [x.ravel() for x in large if x.size <= SMALL and x.dtype == dtype]
        sums += [jnp.concatenate(small)] if small else []
    return jnp.all(jnp.array([True, *(jnp.isfinite(jnp.sum(jnp.abs(x))) for x in sums)]))


def still_finite(before: Tree, after: Tree) -> Array:
    """Whether every number is finite, or infinite as it was before, a boolean.

    A state may hold an infinity on purpose, as `optax.contrib.reduce_on_plateau` its best loss
    before the first. What is no number is never meant.
    """

    def looked_at(old: Tree, new: Tree) -> Any:
        if not jnp.issubdtype(jnp.result_type(old), jnp.floating):
            return new
        return jnp.where(jnp.isinf(old) & jnp.isinf(new), jnp.zeros_like(new), new)

    return all_finite(jax.tree.map(looked_at, before, after))


_still_finite = jax.jit(still_finite)  # `fit` asks it of a state that is not finite alone


@checked
def skip_nonfinite(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a step to one that leaves the state as it was where loss or update are not finite.

    The count of steps goes on, so that the next one sees another batch and other noise.

    Returns:
      The step, whose metrics have `skipped` besides: a boolean.

    Raises:
      ValueError: by the step, where a hyper-parameter is called `skipped`.

    >>> from jaxvae import elbo, init_state, train_step
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> optimizer = optax.adam(1e-3)
    >>> step = jax.jit(skip_nonfinite(train_step(elbo, optimizer)))
    >>> xs = jnp.ones((7, 3)).at[0, 0].set(jnp.nan)
    >>> state, metrics = step(init_state(model, optimizer), jax.random.key(0), xs)
    >>> bool(metrics["skipped"]), int(state.step), bool(all_finite(state))
    (True, 1, True)
    """

    @wraps(step)
    def guarded(state: Tree, key: Key, xs: Tree, **hyper: Any) -> tuple[Any, dict[str, Any]]:
        if "skipped" in hyper:
            raise ValueError(
                "skip_nonfinite: skipped is a metric, expected another hyper-parameter"
            )
        new, metrics = step(state, key, xs, **hyper)
        if jnp.ndim(metrics["loss"]):
            raise ValueError(
                f"skip_nonfinite: step has a loss of shape {jnp.shape(metrics['loss'])}, expected "
                "one number; in a sweep lift the step of each point, before sweep_step"
            )
        good = jnp.isfinite(metrics["loss"]) & still_finite(state, new)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return kept._replace(step=new.step), metrics | {"skipped": ~good}

    return guarded


@checked
def clip_by_finite_norm(max_norm: Positive) -> optax.GradientTransformation:
    """Scale gradients down to a norm, and to nothing where that norm is not finite.

    g min(1, c / |g|), or 0 where |g| is no finite number: `optax.clip_by_global_norm` makes a NaN
    in one leaf one in all.

    Args:
      max_norm: c, the largest norm, positive.

    >>> clip = clip_by_finite_norm(1.0)
    >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(0.0)}
    >>> updates, _ = clip.update(gradients, clip.init(gradients))
    >>> [round(float(u), 3) for u in updates["a"]]
    [0.6, 0.8]
    """

    def clip(updates: Tree, _: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # leaves of several dtypes
            # as a half or a float may have a square that is none
            precise = jax.tree.map(wide, updates)
            largest = optax.tree.norm(precise, ord=jnp.inf)
            unit = jnp.where(jnp.isfinite(largest) & (largest > 0.0), largest, 1.0)
            norm = unit * optax.tree.norm(jax.tree.map(lambda g: g / unit, precise))
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        good = jnp.isfinite(norm)
        return jax.tree.map(
            lambda g: jnp.where(good, g * scale.astype(g.dtype), jnp.zeros_like(g)), updates
        )

    return optax.stateless(clip)


def diagnose(
    step: Step,
    run: Callable[..., Any],
    states: tuple[TrainState, TrainState],
    given: Callable[[int], Tree],
    call: Call,
    history: list[Metrics],
    finite: Any,
    patience: int,
) -> NonFiniteError | None:
    """What is wrong with the steps that were made last, or None.

    `run` is of (state, how many steps, call), `states` are before the steps and after them, the
    latter `finite` or not; `given` makes the batch of a step of the call; `patience` is how many
    updates in a row may be skipped.
    """
    metrics, (before, after) = history[-1], states
    bad = ~np.isfinite(metrics["loss"]) & ~metrics.get("skipped", np.array(False))
    bad = bad.reshape(len(bad), -1).any(axis=1)  # at any point, where these are of many
    if bad.any() or not (finite or _still_finite(before, after)):
        first = int(np.argmax(bad)) if bad.any() else len(bad)
        return _first_bad_step(step, partial(run, before), first, before, given, call, metrics)
    if (streak := _skipped_in_a_row(history)) >= patience:
        last = len(bad) - 1
        state = after._replace(step=before.step + last)
        why = first_bad_row(step, state, given, call, last)
        return NonFiniteError(
            f"step {int(state.step) + 1}: none of the last {streak} updates was finite{why}",
            step=int(state.step) + 1,
            state=state,
            rows=call.rows[last],
        )
    return None


def _skipped_in_a_row(history: list[Metrics]) -> int:
    """How many updates were skipped last, one after another, at the point where it is the most."""
    streak, going = 0, True
    for metrics in reversed(history):
        skipped = metrics.get("skipped", np.zeros(len(metrics["loss"]))).astype(bool)
        skipped = skipped.reshape(len(skipped), -1)[::-1]  # the last step first, [steps, points]
        streak = streak + going * np.cumprod(skipped, axis=0).sum(axis=0)
        going = going & skipped.all(axis=0)
        if not np.any(going):
            break
    return int(np.max(streak))


def _first_bad_step(
    step: Step,
    run: Callable[..., Any],
    first: int,
    begun: TrainState,
    given: Callable[[int], Tree],
    call: Call,
    metrics: Metrics,
) -> NonFiniteError:
    """The error for the first step that went wrong, found by making the `first` good ones again."""

    def sound(steps: int) -> bool:
        state, _, finite = run(steps, call)
        return bool(finite or _still_finite(begun, state))

    good, spoiled = (first, first + 1) if sound(first) else (0, first)
    while spoiled - good > 1:  # finite after `good` steps, not so after `spoiled`
        middle = (good + spoiled) // 2
        good, spoiled = (middle, spoiled) if sound(middle) else (good, middle)
    before: TrainState = run(good, call)[0]
    why = ""
    infinite, leaves = _not_finite(before), paths(before)
    # an optimiser may hold an infinity on purpose
    if begins := [p for p in infinite if p.startswith(".model") or jnp.isnan(leaves[p]).any()]:
        culprit = f"the state it begins with, at {begins[0]},"
    elif good == first:
        culprit = " and ".join(n for n, m in metrics.items() if not np.all(np.isfinite(m[good])))
        point = ()
        if np.ndim(loss := metrics["loss"][good]):  # a number at each of many points
            point = tuple(map(int, np.argwhere(~np.isfinite(loss))[0]))
            culprit += f" at point {point}"
        why = first_bad_row(step, before, given, call, good, point)
    else:
        after = _not_finite(run(spoiled, call)[0])
        culprit = f"the update of {next((p for p in after if p not in infinite), after[0])}"
    means = ", ".join(f"{name} {float(np.mean(m[good])):g}" for name, m in metrics.items())
    number = int(begun.step) + good + 1
    message = f"step {number}: {culprit} not finite ({means}){why}"
    return NonFiniteError(message, step=number, state=before, rows=call.rows[good])


def first_bad_row(
    step: Step,
    state: TrainState,
    given: Callable[[int], Tree],
    call: Call,
    i: int,
    point: tuple[int, ...] = (),
) -> str:
    """Which example of step i's batch has no finite bound, and why: it is scored again."""
    rows, key = call.rows[i], call.key
    step, hyper = _bound(step, call.hyper(i))
    if point and (at_point := getattr(step, "at_point", None)):
        step, state, key = at_point(state, key, point)
        step, hyper = _bound(step, hyper)
    hyper = {name: h(state.step) if callable(h) else h for name, h in hyper.items()}
    if (objective := getattr(step, "objective", None)) is None or jax.process_count() > 1:
        return ""
    xs = given(i)
    keys = jax.random.split(jax.random.fold_in(key, state.step), number_of_rows(xs))

    def bounds(key: Array, x: Tree) -> Array:
        return objective(state.model, key, x, **hyper)[0]

    if (found := not_finite_at(bounds, keys, xs)) is None:
        return ""
    row, why = found
    name = f"{int(rows[row])} of the data" if rows.ndim else f"{row} of batch {int(rows)}"
    return f"; first at row {name}{why}"


def not_finite_at(
    bounds: Callable[[Array, Tree], Array], keys: Array, xs: Tree
) -> tuple[int, str] | None:
    """The first row with no finite bound under its key, and why; None where all have one."""
    scored = jax.vmap(bounds, axis_name="batch")
    again = jax.random.clone(keys)
    if not (bad := np.flatnonzero(~np.isfinite(scored(again, xs)))).size:
        return None
    row = int(bad[0])
    twice = np.array([row, row])  # one row alone has nothing that a batch's objective compares
    with told_outside() as lines:
        scored(jax.random.clone(keys)[twice], jax.tree.map(lambda leaf: leaf[twice], xs))
    return row, f": {lines[0]}" if lines else ""


def _bound(step: Any, hyper: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The step that partials were made of, and all its hyper-parameters."""
    while isinstance(step, partial):
        step, hyper = step.func, step.keywords | hyper
    return step, hyper


def _not_finite(tree: Tree) -> list[str]:
    return [path for path, leaf in paths(tree).items() if not all_finite(leaf)]
