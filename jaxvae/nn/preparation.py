"""How a file becomes rows that a model sees, the same in every command.

What `train` did to the data, its preparation, is JSON in the model's folder: columns, and a shift
and a scale of numbers or, of a table with text or gaps, the `Table`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.checks import a_class_of
from jaxvae.evaluation.rows import event_like
from jaxvae.nn.column_kinds import deviation, infer_table
from jaxvae.nn.data_files import DataRefusedError, Rows, read_rows
from jaxvae.nn.model_folders import is_saved
from jaxvae.nn.saved import load_model, model_info
from jaxvae.nn.tables import Column, Table
from jaxvae.training import CheckpointError, checkpoint_files


def check_rows(data: Path, xs: np.ndarray, network: str, likelihood: str) -> None:
    if network == "conv" and xs.ndim != 4:
        raise DataRefusedError(
            f"{data} has rows of shape {xs.shape[1:]}, --network conv wants images"
        )
    if likelihood == "logistic" and xs.dtype != np.uint8:
        raise DataRefusedError(f"{data} holds no bytes; choose --likelihood gaussian")
    if likelihood == "bernoulli" and not np.isin(xs, (0, 1)).all():
        raise DataRefusedError(f"{data} is not binary; choose --likelihood gaussian")
    if likelihood == "poisson" and not ((xs >= 0) & (xs == np.round(xs))).all():
        raise DataRefusedError(f"{data} holds no counts; choose --likelihood gaussian")


def preparation_of(
    rows: Rows, likelihood: str, columns: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
    """(x - shift) / scale is what the model sees: columns standardised, full pixels 1.

    Of a table with text or gaps it is the `Table`.
    """
    xs, frame = rows.values, rows.frame
    names = [*columns] or ([] if frame is None else [*map(str, frame.columns)])
    if hasattr(xs, "columns"):
        try:
            pairs = [kind.partition("=") for kind in kinds]
            table = infer_table(xs, {name: kind for name, _, kind in pairs})
        except (TypeError, ValueError) as error:
            raise DataRefusedError(str(error)) from None
        for column in table.seen:
            _check_kept(column)
        return {"columns": [c.name for c in table.seen], "table": table.as_json()}
    if kinds:
        raise DataRefusedError(
            "--kinds is for tables, with --likelihood gaussian and --network mlp"
        )
    if likelihood == "logistic":
        return {"columns": names, "shift": 0.0, "scale": 1.0}
    if likelihood == "gaussian" and xs.ndim == 2:
        shift = xs.mean(0, dtype=np.float64).tolist()
        return {"columns": names, "shift": shift, "scale": deviation(xs).tolist()}
    full = 255.0 if xs.dtype == np.uint8 and likelihood != "poisson" and xs.max() > 1 else 1.0
    return {"columns": names, "shift": 0.0, "scale": full}


def _check_kept(column: Column) -> None:
    """That JSON will hold its categories, known before a model is trained."""
    for value in column.values:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise DataRefusedError(
                f"column {column.name!r} is a category and holds {value!r}, expected text and "
                f"finite numbers; --kinds {column.name}=ignored leaves it out"
            ) from None


def table_of(preparation: Mapping[str, Any]) -> Table | None:
    return Table.of_json(preparation["table"]) if "table" in preparation else None


def prepared(data: Path, rows: Rows, preparation: Mapping[str, Any]) -> Any:
    if table := table_of(preparation):
        if rows.frame is None:
            names = ", ".join(column.name for column in table.seen)
            raise DataRefusedError(f"{data} is no table, expected one with the columns {names}")
        try:
            return table.rows(rows.frame)
        except ValueError as error:
            raise DataRefusedError(f"{data}: {error}") from None
    shift, scale = (np.asarray(preparation.get(n, d)) for n, d in (("shift", 0.0), ("scale", 1.0)))
    if shift.ndim and rows.values.shape[1:] != shift.shape:
        raise DataRefusedError(
            f"{data} has rows of shape {rows.values.shape[1:]}, expected {shift.shape}, those that "
            "the model was trained on"
        )
    return as_images(((rows.values - shift) / scale).astype(np.float32))


def in_units(preparation: Mapping[str, Any], xs: np.ndarray) -> np.ndarray:
    """What a model gave in the units of the file; bytes are as they are stored."""
    if not preparation or xs.dtype == np.uint8:
        return xs
    return xs * np.asarray(preparation["scale"]) + np.asarray(preparation["shift"])


def as_images(xs: np.ndarray) -> np.ndarray:
    return xs[..., None] if xs.ndim == 3 else xs


def is_images(rows: Rows) -> bool:
    return rows.values.ndim > 2 and rows.values.dtype == np.uint8


def kept_preparation(info: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be done to data; nothing, where what is known of a model is not of this format."""
    match info["about"]:
        case {"table": [_, *_] as columns} if all(map(_is_column, columns)):
            seen = [c["name"] for c in columns if c["kind"] != "ignored"]
            return {"columns": seen, "table": columns}
        case {"config": {"preparation": {"table": _} | {"shift": _, "scale": _} as kept}}:
            return kept
    return {}


def _is_column(kept: object) -> bool:
    """Whether it is one of `Table.as_json`."""
    return isinstance(kept, dict) and {"name", "kind"} <= kept.keys() <= {*Column._fields}


def info_of(run: Path) -> dict[str, Any]:
    _check_ended(run)
    return model_info(run)


def model_of(run: Path) -> Any:
    _check_ended(run)
    model = load_model(run)
    if missing := [part for part in ("encode", "decode", "prior") if not hasattr(model, part)]:
        raise DataRefusedError(
            f"{run} holds {a_class_of(model)} without {missing[0]}, expected a model, with encode, "
            "decode and prior"
        )
    return model


def _check_ended(run: Path) -> None:
    if not is_saved(run) and not is_saved(run / "model") and checkpoint_files(run / "checkpoints"):
        raise CheckpointError(
            f"{run} has no model yet, as its training hasn't ended; the command that began it, "
            f"`jaxvae train FILE {run}` with its options, goes on"
        )


def are_images(model: Any, preparation: Mapping[str, Any]) -> bool:
    """Whether what the model draws, in the units of the data, are images of bytes."""
    like = event_like(model)
    shape, dtype = getattr(like, "shape", ()), getattr(like, "dtype", None)
    stored = dtype == np.uint8 or np.all(preparation.get("scale") == 255)
    return bool(len(shape) == 3 and shape[-1] in (1, 3) and stored)


def opened(run: Path, data: Path) -> tuple[Any, dict[str, Any], Rows, Any]:
    """The model, what is known of it, and the rows as read and as the model sees them."""
    model, info = model_of(run), info_of(run)
    preparation = kept_preparation(info)
    mixed = "table" in preparation
    rows = read_rows(data, tuple(preparation.get("columns") or ()), mixed=mixed)
    if mixed:
        return model, info, rows, prepared(data, rows, preparation)
    like = event_like(model)
    bytes_ = getattr(like, "dtype", None) == np.uint8
    if bytes_ and rows.values.dtype != np.uint8:
        raise DataRefusedError(
            f"{data} holds {rows.values.dtype}, expected bytes, uint8, as the model draws"
        )
    xs = as_images(rows.values) if bytes_ else prepared(data, rows, preparation)
    if getattr(like, "shape", None) != xs.shape[1:]:
        raise DataRefusedError(
            f"{data} has rows of shape {xs.shape[1:]}, expected {getattr(like, 'shape', like)}"
        )
    return model, info, rows, xs
