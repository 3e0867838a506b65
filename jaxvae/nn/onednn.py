"""Convolutions and dense layers by oneDNN, PyTorch's library on a CPU: the optional extra `onednn`.

A convolution is the trilinear form T(x, k, y) = <conv(x, k), y> of images x, a kernel k and images
y. Its gradient by y is the convolution, its gradients by x and by k are those that training needs,
and the gradients of these three are the same three again: so one primitive with one batching rule
has every derivative, under `jit`, `grad`, `vmap` and `scan`. All are float32; `rounded`, the two
that are given are rounded to bfloat16 first, and what is wanted is summed in float32.

Exported programs (`jax.export`) hold `lax.conv` instead, as another process has no handler.
"""

import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.lax import DotDimensionNumbers

from jaxvae.nn.onednn_handler import TARGET, ready
from jaxvae.training.checkpoints.identity import FORMS

Y, X, K = range(3)  # what is wanted of (x, k, y), given the other two in this order
Window = tuple[int, int, int, int, int, int]  # stride, padding before, padding after
Shaped = Array | ShapedArray
NUMBER = ShapedArray((), np.dtype(np.float32))
Shapes = tuple[tuple[int, ...], ...]  # of x, k and y of one example


def convolve(x: Array, kernel: Array, *, stride: int, rounded: bool = False) -> Array:
    """Convolution, padded "SAME": x [h, w, n], kernel [k, l, n, m] -> [ceil(h/s), ceil(w/s), m].

    With operands `rounded` to bfloat16 if they are or if that is asked for.
    """
    shape = (*(-(-size // stride) for size in x.shape[:2]), kernel.shape[3])
    shapes = x.shape, kernel.shape, shape
    window = _window(*shapes[:2], stride)
    return _of_one(Y, x, kernel, shapes=shapes, window=window, rounded=rounded)


def convolve_transposed(
    y: Array, kernel: Array, size: tuple[int, ...], *, stride: int, rounded: bool = False
) -> Array:
    """Transposed convolution: y [ceil(h/s), ceil(w/s), n], kernel [k, l, n, m] -> [h, w, m]."""
    back = kernel.swapaxes(2, 3)
    shapes = (*size, kernel.shape[3]), back.shape, y.shape
    window = _window(*shapes[:2], stride)
    return _of_one(X, y, back, shapes=shapes, window=window, rounded=rounded)


def _of_one(
    wanted: int, image: Array, kernel: Array, *, shapes: Shapes, window: Window, rounded: bool
) -> Array:
    """What is wanted of one image and a kernel, in the dtype of their product."""
    channels, expected = image.shape[-1], kernel.shape[3 if wanted == X else 2]
    if channels != expected:
        raise TypeError(f"the input has {channels} features, expected the kernel's {expected}")
    dtype = jnp.result_type(image, kernel)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"the input is {image.dtype}, expected real numbers, as oneDNN's are")
    images, kernel = image.astype(jnp.float32)[None], kernel.astype(jnp.float32)
    out = _convolve(
        *((kernel, images) if wanted == X else (images, kernel)),
        wanted=wanted, shapes=shapes, window=window, rounded=rounded or dtype == jnp.bfloat16,
    )  # fmt: skip
    return out[0].astype(dtype)


def dense(layer: Any, x: Array) -> Array:
    """layer(x) for x [n], of which oneDNN may compute the product if it is flax's own.

    Where it does is decided for a whole batch: see `LARGE`. A kernel of which that would take
    thousands of rows is left to XLA at once, so that small networks need no handler.
    """
    if type(layer) is not nnx.Linear:
        return layer(x)
    kernel = layer.kernel[...]
    small = kernel.dtype == jnp.float32 and kernel.size < LARGE >> 11
    if small or not knows(x, kernel):
        return layer(x)
    options = layer.dtype, layer.precision, layer.preferred_element_type
    if any(options) or layer.dot_general is not jax.lax.dot_general:
        return layer(x)
    y = product(x, kernel)
    return y if layer.bias is None else y + layer.bias[...]


def product(x: Array, kernel: Array, *, rounded: bool = False) -> Array:
    """x @ kernel, [..., n] and [n, m]."""
    rows = x.reshape(-1, 1, x.shape[-1])
    y = convolve(rows, kernel[None, None], stride=1, rounded=rounded)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def rounded_dot_general(
    x: Array, kernel: Array, dimension_numbers: DotDimensionNumbers, **options: Any
) -> Array:
    """`lax.dot_general` of a dense layer, x [..., n] and kernel [n, m], rounded to bfloat16.

    XLA's products of bfloat16 are slower than those of float32 on a CPU; these are faster.
    """
    dense = kernel.ndim == 2 and dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    if dense and not any(options.values()) and knows(x, kernel):
        return product(x, kernel, rounded=True)
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)


def rounds(dtype: Any, arrays: Any) -> bool:
    """Whether oneDNN makes products of these arrays, of float32, in `dtype`, bfloat16."""
    floats = {a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)}
    half = jnp.dtype(dtype) == jnp.bfloat16
    return half and floats == {NUMBER.dtype} and has_bfloat16() and knows(NUMBER)


def serves(*arrays: Shaped) -> bool:
    """Whether oneDNN is at hand for them, on the one CPU device there is."""
    return jax.device_count() == 1 and knows(*arrays)


# a program that holds convolutions has asked for the handler; for others none is compiled
FORMS.append(lambda: " with oneDNN" if ready.cache_info().currsize and serves(NUMBER) else "")


def knows(*arrays: Shaped) -> bool:
    """Whether oneDNN is there and computes with them.

    All are float32, or all bfloat16 if the CPU multiplies that.
    """
    (dtype,) = dtypes if len(dtypes := {x.dtype for x in arrays}) == 1 else (None,)
    known = dtype == jnp.float32 or (dtype == jnp.bfloat16 and has_bfloat16())
    return known and jax.default_backend() == "cpu" and ready()


@cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool(re.search("avx512_bf16|amx_bf16", flags.read_text()))


def _window(x: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> Window:
    total = [
        max(0, (-(-n // stride) - 1) * stride + k - n)
        for n, k in zip(x[:2], kernel[:2], strict=True)
    ]
    before = [n // 2 for n in total]
    after = [n - b for n, b in zip(total, before, strict=True)]
    return (stride, stride, before[0], before[1], after[0], after[1])


# The primitive: two of x [N, h, w, n], kernel [k, l, n, m] and y [N, h', w', m] to the third.

primitive = Primitive("onednn_convolution")
OTHERS = {Y: (X, K), X: (K, Y), K: (X, Y)}


def _convolve(first: Array, second: Array, **static: Any) -> Array:
    return primitive.bind(first, second, **static)


@primitive.def_abstract_eval
def _result(
    first: Shaped, second: Shaped, *, wanted: int, shapes: Shapes, window: Window, rounded: bool
) -> Any:
    del window, rounded
    count = (second if wanted == X else first).shape[:1]
    shape = {Y: (*count, *shapes[2]), X: (*count, *shapes[0]), K: shapes[1]}[wanted]
    return ShapedArray(shape, np.float32)


def _called(first: Array, second: Array, *, rounded: bool, **static: Any) -> Array:
    out = _result(first, second, rounded=rounded, **static)
    if rounded:
        first, second = (a.astype(jnp.bfloat16) for a in (first, second))
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(out.shape, out.dtype))
    wanted, window = np.int64(static["wanted"]), np.array(static["window"], np.int64)
    return call(first, second, wanted=wanted, window=window)


def _plain(
    first: Array, second: Array, *, wanted: int, shapes: Shapes, window: Window, rounded: bool
) -> Array:
    """The same by `lax.conv` and its transposes; of a dense layer by products."""
    if rounded:  # to the numbers of bfloat16
        first, second = (jax.lax.reduce_precision(a, 8, 7) for a in (first, second))
    out = _result(first, second, wanted=wanted, shapes=shapes, window=window, rounded=rounded)
    if _dense(shapes, window):
        a, b = (rows.reshape(-1, rows.shape[-1]) for rows in (first, second))
        return (a @ b if wanted == Y else b @ a.T if wanted == X else a.T @ b).reshape(out.shape)
    stride, before, after = window[:2], window[2:4], window[4:]

    def conv(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, stride, list(zip(before, after, strict=True)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    if wanted == Y:
        return conv(first, second)
    given = (lambda x: conv(x, first)) if wanted == X else partial(conv, first)
    return jax.linear_transpose(given, jax.ShapeDtypeStruct(out.shape, out.dtype))(second)[0]


LARGE = 2**25
"""So many products of two numbers in float32 repay the call; below, XLA's are as fast or faster."""


def _dense(shapes: Shapes, window: Window) -> bool:
    return window == (1, 1, 0, 0, 0, 0) and shapes[1][:2] == (1, 1)


def _repays(
    first: Shaped, second: Shaped, *, wanted: int, shapes: Shapes, window: Window, rounded: bool
) -> bool:
    """Whether oneDNN is faster: of convolutions, in bfloat16, and of large products."""
    if not _dense(shapes, window):
        return True
    rows = (second if wanted == X else first).shape[0] * shapes[2][0] * shapes[2][1]
    return rounded or rows * shapes[1][2] * shapes[1][3] >= LARGE


def _lowered(context: Any, *operands: Any, **static: Any) -> Any:
    leaves = context.module_context.lowering_parameters.for_export
    called = jax.device_count() == 1 and _repays(*context.avals_in, **static)
    form = _called if called and not leaves else _plain
    return mlir.lower_fun(form, multiple_results=False)(context, *operands, **static)


primitive.def_impl(jax.jit(_convolve, static_argnames=("wanted", "shapes", "window", "rounded")))
mlir.register_lowering(primitive, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(primitive, _lowered, platform="cpu")


def _gradient(i: int, cotangent: Array, *given: Array, wanted: int, **static: Any) -> Array:
    """By the i-th of the two given, whose place the cotangent, an array like `wanted`, takes."""
    by = OTHERS[wanted][i]
    held = {wanted: cotangent, OTHERS[wanted][1 - i]: given[1 - i]}
    return _convolve(*(held[name] for name in OTHERS[by]), wanted=by, **static)


ad.defbilinear(primitive, partial(_gradient, 0), partial(_gradient, 1))


def _batched(given: Any, axes: Any, *, wanted: int, **static: Any) -> tuple[Array, int]:
    """Images of one kernel are more images; whatever else is batched, one after another, but small
    products of matrices."""
    i = int(wanted == X)  # which of the two are the images
    if wanted != K and axes[1 - i] is None:
        images = jnp.moveaxis(given[i], axes[i], 0)
        folded = [*given]
        folded[i] = images.reshape(-1, *images.shape[2:])
        out = _convolve(*folded, wanted=wanted, **static)
        return out.reshape(*images.shape[:2], *out.shape[1:]), 0
    rows = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(given, axes, strict=True)]
    each = [
        x if d is None else ShapedArray(x.shape[1:], x.dtype)
        for x, d in zip(rows, axes, strict=True)
    ]
    if not _repays(*each, wanted=wanted, **static):
        return jax.vmap(partial(_plain, wanted=wanted, **static), axes)(*given), 0

    def one(batched: list[Array]) -> Array:
        left = iter(batched)
        both = [x if d is None else next(left) for x, d in zip(rows, axes, strict=True)]
        return _convolve(*both, wanted=wanted, **static)

    return jax.lax.map(one, [x for x, d in zip(rows, axes, strict=True) if d is not None]), 0


batching.primitive_batchers[primitive] = _batched
