"""`jax.lax.scan` for a carry and a step that come from outside, of whatever precisions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.checks import Tree


def scan(step: Callable[..., Any], start: Tree, xs: Tree, *, reverse: bool = False) -> Any:
    """`jax.lax.scan`, its carry in the wider of the precisions that it starts in and comes out in.

    >>> scaled = lambda z, gain: (gain * z, None)
    >>> with jax.numpy_dtype_promotion("standard"):
    ...     z, _ = scan(scaled, jnp.ones(2, jnp.bfloat16), jnp.array([2.0, 3.0]))
    >>> z.dtype, z.tolist()
    (dtype('float32'), [6.0, 6.0])
    """
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), xs)
    after = jax.eval_shape(lambda carry, x: step(carry, x)[0], start, first)
    dtypes = jax.tree.map(jnp.result_type, start, after)

    def widened(carry: Tree) -> Any:
        return jax.tree.map(lambda a, dtype: jnp.asarray(a, dtype), carry, dtypes)

    def wide_step(carry: Tree, x: Tree) -> tuple[Any, Any]:
        carry, y = step(carry, x)
        return widened(carry), y

    return jax.lax.scan(wide_step, widened(start), xs, reverse=reverse)
