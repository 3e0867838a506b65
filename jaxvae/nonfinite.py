"""Numbers that go wrong: a run stops before they spoil its state, or steps over them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class NonFinite(ArithmeticError):
    """A step whose loss, or whose update, is no finite number; the message names it.

    Args:
      message: what to tell.
      step: its number, the first being 1.
      state: before it, finite.
      rows: the rows of the data it was about.
    """

    def __init__(self, message: str, *, step: int, state: Any, rows: Any):
        super().__init__(message)
        self.step, self.state, self.rows = step, state, rows


def all_finite(tree: Any) -> Array:
    """Whether the magnitudes in every float array of a pytree have a finite sum, a boolean.

    >>> bool(all_finite({"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan])}))
    False
    """

    def sums(x: Any) -> Array:
        return jnp.sum(jnp.abs(x), dtype=jnp.promote_types(jnp.result_type(x), jnp.float32))

    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return jnp.all(jnp.isfinite(jnp.array([0.0, *map(sums, floats)])))


def skip_nonfinite(step: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a step to one that leaves the state as it was where loss or update are not finite.

    The count of steps goes on, so that the next one sees another batch and other noise.

    Args:
      step: as `train_step` makes it.

    Returns:
      The step, whose metrics have `skipped` besides: a boolean.

    >>> from jaxvae import elbo, init_state, ppca, train_step
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> optimizer = optax.adam(1e-3)
    >>> step = skip_nonfinite(train_step(elbo, optimizer))
    >>> xs = jnp.ones((7, 3)).at[0, 0].set(jnp.nan)
    >>> state, metrics = step(init_state(model, optimizer), jax.random.key(0), xs)
    >>> bool(metrics["skipped"]), int(state.step), bool(all_finite(state))
    (True, 1, True)
    """

    @wraps(step)
    def guarded(state: Any, key: Array, xs: Any, **hyper: Any) -> tuple[Any, dict[str, Any]]:
        new, metrics = step(state, key, xs, **hyper)
        good = jnp.isfinite(metrics["loss"]) & all_finite(new)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return kept._replace(step=new.step), metrics | {"skipped": ~good}

    return guarded


def clip_by_finite_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients down to a norm, and to nothing where that norm is not finite.

    g min(1, c / |g|), or 0 where |g| is no finite number: `optax.clip_by_global_norm` makes a NaN
    in one leaf one in all.

    Args:
      max_norm: c, the largest norm, positive.

    Returns:
      A transformation to chain before an optimiser.

    >>> clip = clip_by_finite_norm(1.0)
    >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(0.0)}
    >>> updates, _ = clip.update(gradients, clip.init(gradients))
    >>> [round(float(u), 3) for u in updates["a"]]
    [0.6, 0.8]
    """
    if not max_norm > 0:
        raise ValueError(f"clip_by_finite_norm: max_norm is {max_norm}, expected more than 0")

    def clip(updates: Any, _: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # leaves of several dtypes
            norm = optax.tree.norm(updates)
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        good = jnp.isfinite(norm)
        return jax.tree.map(
            lambda g: jnp.where(good, g * scale.astype(g.dtype), jnp.zeros_like(g)), updates
        )

    return optax.stateless(clip)
