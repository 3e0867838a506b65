"""Initial weights: flax's numbers, of which layers of many shapes share one compiled program."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxvae.checks import Key
from jaxvae.nn.heads import Shape
from jaxvae.pytrees import on_host

M = TypeVar("M", bound=nnx.Module)
FEWEST = 2**16  # numbers that are drawn, of which the smaller kernels take the first
CUT = 0.87962566103423978  # standard deviation of N(0, 1) cut at -2 and 2


def fan_in_normal(
    key: Key, shape: Shape, dtype: DTypeLike | None = None, *, scale: float = 1.0
) -> Array:
    """Normals of variance scale / fan-in, cut at two standard deviations: a kernel [..., n, m].

    `nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")`, to the last bit with
    JAX's usual keys. That compiles a program for every shape, which takes longer than a small model
    takes to train; here a power of two of them is drawn, and as many as are needed are kept.

    >>> kernel = fan_in_normal(jax.random.key(0), (4, 4, 3, 8))
    >>> bool((kernel == nnx.initializers.lecun_normal()(jax.random.key(0), kernel.shape)).all())
    True
    """
    if isinstance(key, Tracer):  # it becomes a part of whatever program is being made
        init = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
        return init(key, shape, dtype)
    dtype, size = jnp.result_type(float if dtype is None else dtype), prod(shape)
    length = max(FEWEST, 1 << (size - 1).bit_length())
    drawn = on_host(jax.random.truncated_normal(key, -2, 2, (length,), dtype))
    deviation = np.sqrt(np.asarray(scale / prod(shape[:-1]), dtype)) / np.asarray(CUT, dtype)
    return jax.device_put(drawn[:size].reshape(shape) * deviation)  # jnp.asarray is a program too


def in_precision(layer: Callable[..., M]) -> Callable[..., M]:
    """A layer of NNX that holds JAX's floats: float64 under `jax_enable_x64`, unlike its own."""

    def made(*args: Any, **kwargs: Any) -> M:
        double = jnp.result_type(float) == jnp.float64
        return layer(*args, **({"param_dtype": jnp.float64} if double else {}) | kwargs)

    return made


Linear = in_precision(partial(nnx.Linear, kernel_init=fan_in_normal))
Embed, LayerNorm = in_precision(nnx.Embed), in_precision(nnx.LayerNorm)
