"""How `use` goes over many rows: batches, the y of each row, one compiled program."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Tree
from jaxvae.evaluation.chunks import chunked
from jaxvae.evaluation.programs import compiled
from jaxvae.evaluation.rows import is_masked, model_at, of_one_length
from jaxvae.model import Model, prior
from jaxvae.pytrees import on_host, value_of


def with_ends(model: Model, batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """Batches of (x, t), t the last step seen of each row."""
    masked, chain, start = is_masked(model), value_of(prior(model)), 0
    chain = getattr(chain, "chain", chain)  # of a `LinearChain` its gains are the context
    for x in batches:
        ends = _ends(x[1] if masked else jax.tree.map(np.ones_like, x))
        if not ends.all():
            row = start + int(np.argmin(ends))
            raise ValueError(f"forecast: row {row} has no step seen, expected one at least")
        if getattr(chain, "context", None) is not None and (ends + steps > chain.length).any():
            raise ValueError(
                f"forecast: steps is {steps}, expected at most {chain.length - ends.max()} behind "
                f"{ends.max()} steps seen, as the prior's context has {chain.length} steps"
            )
        start += len(ends)
        yield x, ends


def _ends(masks: Tree) -> np.ndarray:
    """How many steps until the last one seen, [n], of masks [n, T, ...]."""
    flat = [np.asarray(m, bool).reshape(*m.shape[:2], -1).any(-1) for m in jax.tree.leaves(masks)]
    seen = np.any(flat, axis=0)
    return np.where(seen, np.arange(1, seen.shape[1] + 1), 0).max(1).astype(np.int32)


def paired_batches(owner: str, batches: Iterable[Any], given: Tree | None) -> Iterator[Any]:
    """Batches of rows (x, y) for `model_at(model, y)`."""
    if given is None:
        for batch in batches:
            yield batch, None
        return
    rows, start = number_of_rows(given, owner, "given"), 0
    for batch in batches:
        part = slice(start, start + len(jax.tree.leaves(batch)[0]))
        start = part.stop
        if start > rows:
            break
        yield batch, jax.tree.map(lambda leaf, part=part: np.asarray(leaf)[part], given)
    if start != rows:
        raise ValueError(f"{owner}: given has {rows} rows, expected one for each row of the data")


def each_row(
    one: Callable[..., Any],
    model: Any,
    key: Key | None,
    batches: Iterable[Any],
    size: int,
    **static: Any,
) -> Any:
    """one(model, key of the row, x) of every row (x, y) of the batches, in NumPy."""
    run = compiled(_batch, model, one, tuple(static.items()))
    key = jax.random.key(0) if key is None else key
    found: list[Any] = []
    done = 0
    for rows, count in of_one_length(batches, size):
        out = run(key, done, rows)
        if found:
            found[-1] = on_host(found[-1])  # while the device works on the next
        found.append(out)
        done += count
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:done], *map(jax.device_get, found))


def _batch(
    model: Tree,
    one: Callable[..., Any],
    static: tuple[tuple[str, object], ...],
    key: Key,
    start: int,
    rows: Tree,
) -> Any:
    numbers = start + jnp.arange(number_of_rows(rows))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)

    def of_row(row: tuple[Any, ...]) -> Any:
        key, x, y = row
        return one(model_at(model, y), key, x, **dict(static))

    return chunked(of_row, (keys, *rows))
