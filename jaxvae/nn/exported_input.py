"""What an exported function takes and gives: rows as their file has them, and said in a line."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.evaluation.rows import event_like
from jaxvae.nn.data_files import DataRefusedError
from jaxvae.nn.preparation import table_of
from jaxvae.nn.stored_units import Coded, Scaled, of_stored
from jaxvae.nn.tables import Column, Table

COARSEST = 0.01  # of a column's deviation, to which float32 may round it


def exported_input(
    model: Any, preparation: Mapping[str, Any], what: str
) -> tuple[Any, dict[str, str], Any]:
    """The model of rows as they are stored, what is to be said of them, and one example."""
    x = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), event_like(model))
    _check_kept(preparation)
    names = ", ".join(preparation.get("columns") or ())
    where = "in the units of the data" if preparation else "as the model has it"
    if table := table_of(preparation):
        model = of_stored(model, Coded(table))
        x = {column.name: jnp.zeros(1) for column in table.seen}
    elif preparation:
        shift, scale = (np.asarray(preparation[name], np.float32) for name in ("shift", "scale"))
        if (shift != 0).any() or (scale != 1).any():
            model = of_stored(model, Scaled(shift, scale))
            x = jnp.zeros(x.shape, jnp.uint8 if (scale == 255).all() else jnp.float32)
    rows = "a dict of float32[rows, 1]" if table else _shapes(x)
    means = f"means, {rows.replace('uint8', 'float32')}, {where}"
    rows = f"{rows}, {where}{', NaN in gaps' if table else ''}"
    nats = "nats of each row" + (", of columns as the model sees them" if names else "")
    takes, gives = {
        "encode": (rows, "means of q(z|x)"),
        "decode": ("latents", means),
        "score": (f"a key, uint32[2], and {rows}", nats),
    }[what]
    told = {"takes": takes, "gives": gives} | ({"order of columns": names} if names else {})
    return model, told | (_categories(table) if table else {}), x


def _check_kept(preparation: Mapping[str, Any]) -> None:
    """That the program's float32 holds the data, in their units, as finely as the model sees them.

    Numbers in files are float64, of which training takes the mean before it rounds.
    """
    if table := table_of(preparation):
        columns = [(c.name, c.shift, c.scale) for c in table.seen if c.kind == "number"]
    else:
        shift, scale = (
            np.ravel(preparation.get(n, d)) for n, d in (("shift", 0.0), ("scale", 1.0))
        )
        names = preparation.get("columns") or range(max(len(shift), len(scale)))
        columns = [*zip(names, *np.broadcast_arrays(shift, scale), strict=False)]
    for name, shift, scale in columns:
        if np.spacing(np.float32(abs(shift))) > COARSEST * scale:
            raise DataRefusedError(
                f"column {name!r} is around {shift:.6g} with a deviation of {scale:.2g}, more than "
                "float32, which the exported function takes, can tell apart; subtract a constant "
                "from it and train again, or use the model in Python"
            )


def _shapes(x: Any) -> str:
    return ", ".join(f"{leaf.dtype}[{', '.join(map(str, ('rows', *leaf.shape)))}]"
                     for leaf in jax.tree.leaves(x))  # fmt: skip


def _categories(table: Table) -> dict[str, str]:
    """How a category is a number."""
    return {
        f"numbers of {column.name}": _numbered(column)
        for column in table.seen
        if column.kind == "category"
    }


def _numbered(column: Column) -> str:
    names = [f"{i} {value}" for i, value in enumerate(column.values)]
    return ", ".join([*names, f"{len(names)} any other"])
