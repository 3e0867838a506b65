"""Steps made twice: a machine that computes wrongly, and says nothing, is found out."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree, is_key
from jaxvae.pytrees import on_host, paths


class ReplayError(ArithmeticError):
    """Steps that came out differently when they were made again; the message names what differs.

    Args:
      message: what to tell.
      step: the last of them, the first of the run being 1.
      state: before them. Which of the two results is right, nobody knows.
    """

    def __init__(self, message: str, *, step: int, state: Tree):
        super().__init__(message)
        self.step, self.state = step, state


def compare(before: Any, made: tuple[Any, Tree], again: tuple[Any, Tree]) -> None:
    """ReplayError unless both pairs (state, metrics), made from one state, are equal in every bit.

    Silent data corruption: a core that multiplies wrongly now and then raises nothing, and only a
    second answer tells. Hochschild et al. 2021, "Cores that don't count".

    >>> from jaxvae.training import TrainState
    >>> state = TrainState(jnp.array([1.0, 2.0]), (), jnp.array(4))
    >>> flipped = state._replace(model=jnp.array([1.0, 2.0000002]), step=jnp.array(5))
    >>> compare(state, (state._replace(step=jnp.array(5)), {}), (flipped, {}))
    Traceback (most recent call last):
      ...
    jaxvae.training.replaying.ReplayError: step 5, made twice, came out differently in 1 of 2 ...
    """
    counts = _named(on_host(_differing(made, again)))
    differing = {path: int(n) for path, n in counts.items() if n}
    if not differing:
        return
    first, others = next(iter(differing)), len(differing) - 1
    begun, end = int(before.step), int(made[0].step)
    raise ReplayError(
        f"step{'' if end == begun + 1 else f's {begun + 1} to'} {end}, made twice, came out "
        f"differently in {differing[first]} of {_named(made)[first].size} numbers of {first}"
        f"{f' and in {others} other arrays' if others else ''}: either this machine computes "
        "wrongly, or the step depends on more than its arguments",
        step=end,
        state=before,
    )


def _named(made: tuple[Any, Tree]) -> dict[str, Any]:
    """Path -> leaf, of the state and then of the metrics."""
    state, metrics = made
    return paths(state) | {f"metrics{path}": leaf for path, leaf in paths(metrics).items()}


@jax.jit
def _differing(made: Tree, again: Tree) -> Tree:
    """How many numbers of each array differ in a bit."""
    return jax.tree.map(lambda a, b: jnp.sum(_bits(a) != _bits(b), dtype=jnp.int32), made, again)


def _bits(leaf: Any) -> Array:
    """As integers, of which NaN equals itself, and 0 not -0."""
    leaf = jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
