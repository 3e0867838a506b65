"""A trained model as one file that JAX alone runs: StableHLO with the weights inside."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.errors import InconclusiveDimensionOperation

from jaxvae.checks import Count, Location, Tree, checked
from jaxvae.evaluation.one_row import likelihood_mean, posterior_mean, scored
from jaxvae.evaluation.rows import event_like, model_at
from jaxvae.model import Model, posterior
from jaxvae.pytrees.libraries import functional
from jaxvae.training.checkpoints.durable import part_of, publish


@checked
def export_model(
    path: Location,
    model: Model | Callable[[Any], Model],
    what: Literal["encode", "decode", "score"] = "encode",
    *,
    x: Tree | None = None,
    given: Tree | None = None,
    batch: Count | None = None,
    num_samples: Count = 100,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> Path:
    """Write a model's function of a batch to a file, which a process without jaxvae calls.

        call = jax.export.deserialize(bytearray(open(path, "rb").read())).call

    Args:
      path: of the file; one of that name is replaced.
      what: "encode", xs -> means of q(z|x); "decode", zs -> means of p(x|z); "score", (key, xs) ->
        the importance-weighted bound of log p(x) of every row, nats, key of dtype uint32[2], what
        `jax.random.key_data` gives.
      x: one example, of which shapes and dtypes count; by default as the model draws. It is needed
        where p(x|z) can't be drawn from, or its draws are of another dtype than the data.
      given: of a conditional model, a function y -> model, one y, of which shapes and dtypes count.
        The y of each row are then the last argument: `call(xs, ys)`, `call(zs, ys)`,
        `call(key, xs, ys)`.
      batch: the number of rows; by default any, a dimension of the program. Networks that reshape
        a batch to what depends on its size need a number.
      num_samples: of "score".
      platforms: where the program may run.

    Raises:
      ImportError: flatbuffers is missing, which `jax.export` writes with.
      ValueError: the program can't be made for any number of rows.

    >>> import tempfile
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> path = export_model(f"{tempfile.mkdtemp()}/encode.stablehlo", model)
    >>> jax.export.deserialize(bytearray(path.read_bytes())).call(jnp.ones((7, 3))).shape
    (7, 1)
    """
    if what not in FUNCTIONS:
        raise ValueError(f"export_model: what is {what!r}, expected one of {sorted(FUNCTIONS)}")
    try:
        import flatbuffers as flatbuffers
    except ImportError:
        raise ImportError("export_model needs flatbuffers: pip install flatbuffers") from None
    from jax import export

    path, pure = Path(path), functional(model)
    y = _like(given)
    one = model_at(pure, None if y is None else _zeros(y))
    x = event_like(one) if x is None else _like(x)
    if x is None:
        raise ValueError("export_model: p(x|z) can't be drawn from, expected x, one example")
    z = jax.eval_shape(lambda: posterior(one, _zeros(x)).sample(jax.random.key(0)))
    rows = export.symbolic_shape("rows")[0] if batch is None else batch

    def of_rows(s: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *s.shape), s.dtype)

    arguments = [jax.tree.map(of_rows, z if what == "decode" else x)]
    arguments += [] if y is None else [jax.tree.map(of_rows, y)]
    if what == "score":
        arguments.insert(0, jax.ShapeDtypeStruct((2,), jnp.uint32))
    program = jax.jit(partial(FUNCTIONS[what], pure, num_samples))
    try:
        data = export.export(program, platforms=platforms)(*arguments).serialize()
    except InconclusiveDimensionOperation as error:
        raise ValueError(
            "export_model: the networks' shapes depend on the number of rows, expected batch=, "
            f"such as 32: {str(error).splitlines()[0]}"
        ) from None
    part = part_of(path)
    part.write_bytes(data)
    publish(part, path)
    return path


def _encode(model: Any, num_samples: int, xs: Tree, ys: Tree | None = None) -> Any:
    del num_samples
    no_key = jax.random.key(0)  # of a certain code, which is its only draw
    return jax.vmap(lambda x, y: posterior_mean(model_at(model, y), no_key, x))(xs, ys)


def _decode(model: Any, num_samples: int, zs: Tree, ys: Tree | None = None) -> Any:
    del num_samples
    no_key = jax.random.key(0)
    return jax.vmap(lambda z, y: likelihood_mean(model_at(model, y), no_key, z))(zs, ys)


def _score(model: Any, num_samples: int, words: Array, xs: Tree, ys: Tree | None = None) -> Array:
    """As `use.score`: row i draws with fold_in(key, i)."""
    key = jax.random.wrap_key_data(words)
    numbers = jnp.arange(jax.tree.leaves(xs)[0].shape[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)

    def one(key: Array, x: Tree, y: Tree | None) -> Array:
        return scored(model_at(model, y), key, x, num_samples)[0]

    return jax.vmap(one)(keys, xs, ys)


FUNCTIONS = {"encode": _encode, "decode": _decode, "score": _score}


def _like(one: Tree | None) -> Any:
    """Shapes and dtypes."""
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, one))


def _zeros(like: Tree) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
