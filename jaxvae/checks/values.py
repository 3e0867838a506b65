"""What one value must be: a line each that names the function, the argument and what came."""

from functools import partial
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def a_class_of(value: object) -> str:
    """For a message: an int, a Normal, an MLP, None."""
    if value is None:
        return "None"
    return an("array" if isinstance(value, jax.Array) else type(value).__name__)


def an(name: str) -> str:
    """A name with the article that it is spoken with."""
    # MLP is spelled, em el pee; a uint8 and a Uniform begin as you does
    vowels = "AEFHILMNORSX" if name[:2].isupper() else "aeioAEIO"
    return f"{'an' if name[0] in vowels else 'a'} {name}"


def written(tree: Any, path: tuple[Any, ...]) -> str:
    """A path in a tree as it is written in Python, which `jax.tree_util.keystr` alone doesn't know
    of a `Partial`: `.encode.args[0].weight`.
    """
    text = ""
    for key in path:
        named = key
        if isinstance(key, jax.tree_util.FlattenedIndexKey):  # of a class that names no children
            partial = isinstance(tree, jax.tree_util.Partial)
            named = jax.tree_util.SequenceKey(key.key)
            if partial:
                named = jax.tree_util.GetAttrKey(("args", "keywords")[key.key])
        text += jax.tree_util.keystr((named,))
        tree = _children(tree)[key]
    return text


def _children(tree: Any) -> dict[Any, Any]:
    below = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda part: part is not tree)
    return {path[0]: child for path, child in below}


def is_sparse(value: Any) -> bool:
    """Whether it is one of SciPy's sparse matrices or arrays, in whatever format."""
    return type(value).__module__.startswith("scipy.sparse") and hasattr(value, "tocsr")


def check_array(owner: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an array of real numbers, or a number."""
    dtype = getattr(value, "dtype", None)
    if dtype is None and isinstance(value, (bool, int, float)):
        return
    if is_sparse(value):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(value)}, which fit, validation and use take, expected "
            f"an array, {name}.toarray()"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{owner}: {name} is a masked array, whose mask would be lost, expected an array: "
            "x.filled(0.0), or for a jaxvae.Masked likelihood the pair of that and "
            "~numpy.ma.getmaskarray(x)"
        )
    if hasattr(value, "iloc"):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(value)}, expected an array, {name}.to_numpy(), or the "
            "rows of a jaxvae.nn.Table, table.rows(frame)"
        )
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
        what = a_class_of(value) if dtype is None else f"an array of {dtype}"
        raise TypeError(f"{owner}: {name} is {what}, expected an array of numbers")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{owner}: {name} is an array of {dtype}, expected real numbers")
    if not np.dtype(dtype).isnative:
        raise TypeError(f"{owner}: {name} is an array of {dtype}, expected this machine's order")


def is_key(leaf: object) -> bool:
    """Whether it is an array of typed PRNG keys."""
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def check_leaves(owner: str, name: str, tree: Any) -> None:
    """Raise TypeError unless `tree` has leaves and each is an array of real numbers, or a key."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise TypeError(f"{owner}: {name} is {tree!r}, expected an array or a pytree of arrays")
    for path, leaf in leaves:
        if not is_key(leaf):
            check_array(owner, name + written(tree, path), leaf)


def check_key(owner: str, name: str, key: Any, axes: int = 0) -> None:
    """Raise TypeError unless `key` is one PRNG key, typed or old, or keys along `axes` axes."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "dtype") else ()
    typed = is_key(key)
    old = dtype == np.uint32 and shape[axes:] in ((2,), (4,))  # threefry's and rbg's words
    if len(shape) != axes + (not typed) or not (typed or old) or 0 in shape:
        what = a_class_of(key) if dtype is None else f"{dtype}{list(shape)}"
        good = "keys, for example jax.random.split(key, 3)" if axes else "key"
        good += "" if axes else ", for example jax.random.key(0)"
        raise TypeError(
            f"{owner}: {name} is {what}, expected PRNG {good}; jax.vmap takes more axes"
        )


def check_function(owner: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected a function")


def check_location(owner: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a path."""
    if not isinstance(value, (str, PathLike)):
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected a path")


def check_scalar(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is one real number, traced or not."""
    check_shape(owner, name, value, (), "a number; use jax.vmap for many")
    if type(value) is int and not -(2**31) <= value < 2**31:
        raise ValueError(f"{owner}: {name} is {value}, expected a float where it is that large")


def check_positive(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is one real number above 0, where it is concrete."""
    check_scalar(owner, name, value)
    if not isinstance(value, Tracer) and not np.asarray(value) > 0:
        raise ValueError(f"{owner}: {name} is {value}, expected more than 0")


def check_shape(
    owner: str, name: str, value: Any, shape: tuple[int, ...], expected: str = ""
) -> None:
    """Raise ValueError unless `value` has exactly this shape: no silent broadcast."""
    check_array(owner, name, value)
    if (found := jnp.shape(value)) != shape:
        expected = expected or f"{shape}{of_batches(found, shape)}"
        raise ValueError(f"{owner}: {name} has shape {found}, expected {expected}")


def check_no_larger(owner: str, name: str, value: Any, event: Any) -> None:
    """Raise ValueError where `value` would broadcast an event, one draw to the place of many."""
    found, shape = jnp.shape(value), jnp.shape(event)
    if found and found != shape and np.broadcast_shapes(found, shape) != shape:
        raise ValueError(f"{owner}: {name} has shape {found}, expected the event's, {shape}")


def of_batches(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What to do where one of the shapes is that of a batch of the other; nothing elsewhere."""
    if found[1:] == expected and found:
        return "; functions here take one example: use jax.vmap for a batch"
    if expected[1:] == found and expected:
        return ", which looks like a batch's; make networks for one example, xs[0]"
    return ""


def check_scale(owner: str, loc: Any, scale: Any, name: str = "scale", of: str = "loc") -> None:
    """Raise ValueError unless `scale` is one number or has the shape of `loc`."""
    check_array(owner, of, loc)
    check_array(owner, name, scale)
    if jnp.shape(scale) not in ((), jnp.shape(loc)):
        raise ValueError(
            f"{owner}: {name} has shape {jnp.shape(scale)} and {of} {jnp.shape(loc)}, expected one "
            f"shape or a scalar {name}"
        )


def logits_shape(owner: str, logits: Any, axes: int = 0) -> tuple[int, ...]:
    """The shape of `logits`; an error unless they are floats with at least that many axes."""
    check_floats(owner, "logits", logits)
    if jnp.ndim(logits) < axes or (axes and not jnp.shape(logits)[-1]):
        raise ValueError(f"{owner}: logits has shape {jnp.shape(logits)}, expected [..., K]")
    return jnp.shape(logits)


def as_integers(owner: str, event: Any, expected: str) -> jax.Array:
    """The event as int32, in which 256 does not overflow; TypeError unless it holds integers."""
    check_integers(owner, "event", event, expected=expected)
    return jnp.asarray(event).astype(jnp.int32)


def check_dtype(owner: str, name: str, value: Any, of: Any, expected: str) -> None:
    """Raise TypeError unless `value` is an array of floats, or of integers."""
    check_array(owner, name, value)
    if not jnp.issubdtype(jnp.result_type(value), of):
        raise TypeError(f"{owner}: {name} has dtype {jnp.result_type(value)}, expected {expected}")


check_floats = partial(check_dtype, of=jnp.floating, expected="floats")
check_integers = partial(check_dtype, of=jnp.integer, expected="integers")


def refuse_bytes(owner: str, event: Any) -> None:
    """Raise TypeError where an event of real numbers is bytes, as images are stored."""
    if getattr(event, "dtype", None) == jnp.uint8:
        raise TypeError(
            f"{owner}: event is an array of uint8, expected floats; scale bytes first, as "
            "jaxvae.preprocessed(objective, jaxvae.rescale) does, or take a likelihood of bytes, "
            "jaxvae.DiscretizedLogistic"
        )


def check_pair(owner: str, name: str, value: object, of: str) -> None:
    """Raise TypeError unless `value` is a tuple, or a list, of two."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        how = "; of NaN in gaps (x, ~jnp.isnan(x))" if of == "(x, mask)" else ""
        raise TypeError(f"{owner}: {name} is {a_class_of(value)}, expected a pair {of}{how}")


def check_log_prob(owner: str, value: Any) -> None:
    """Raise ValueError unless `value`, a log-probability, is a scalar."""
    expected = (
        "a scalar (nats of the whole event); sum over the event: numpyro's d.to_event(), or "
        "jaxvae.distributions.adapt(d)"
    )
    check_shape(owner, "log_prob", value, (), expected)


def check_count(owner: str, name: str, value: object) -> None:
    """Raise ValueError unless `value` is an integer of at least one, of Python or NumPy."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {name} is traced, expected a Python integer, as it fixes a shape; bind it, "
            f"functools.partial(..., {name}=3), or name it in static_argnames of jax.jit; over "
            "many values loop in Python, a sweep each"
        )
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}, expected an integer of at least 1")
    if value >= 2**31:
        raise ValueError(f"{owner}: {name} is {value}, expected less than 2^31")


def check_partition(owner: str, name: str, betas: Any) -> None:
    """Raise ValueError unless `betas` is 0 = beta_0 < ... < beta_J = 1.

    The values are looked at where they are concrete; of traced ones only the shape is known.
    """
    check_array(owner, name, betas)
    expected = "expected a partition 0 = beta_0 < ... < beta_J = 1, e.g. jnp.linspace(0.0, 1.0, 11)"
    if jnp.ndim(betas) != 1 or len(betas) < 2:
        raise ValueError(f"{owner}: {name} has shape {jnp.shape(betas)}, {expected}")
    if not isinstance(betas, Tracer):
        values = np.asarray(betas)
        if values[0] != 0 or values[-1] != 1 or not (np.diff(values) > 0).all():
            raise ValueError(
                f"{owner}: {name} goes from {values[0]:g} to {values[-1]:g}, {expected}"
            )


def check_keys(owner: str, name: str, keys: Any) -> None:
    """Raise TypeError unless `keys` is a row of PRNG keys."""
    check_key(owner, name, keys, axes=1)
