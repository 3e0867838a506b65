"""Data frames: which columns are numbers and which categories, and how a model sees them.

table = infer_table(frame)          printed, it shows what was inferred
rows = table.rows(frame)            (x, mask), what `Masked` likelihoods are of
model = make_vae(table, ...)        p(x|z) of every column by its kind
scored = use.score(model, key, table.coded(frame)),  table.decoded(scored)
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxvae.checks import an
from jaxvae.nn.heads import (
    Head,
    HeadOf,
    MaskedHead,
    NormalHead,
    ProductHead,
    Real,
    Shape,
    open_categorical,
)
from jaxvae.nn.modules import Module

KINDS = ("number", "log", "category", "ignored")
NUMBERS = ("number", "log")
MANY = 20  # rows; where so many hold no category that is known, they are of another table
OF_DATES = "; days are numbers: (frame[name] - frame[name].min()).dt.total_seconds() / 86400"


class Column(NamedTuple):
    """A column of a frame, and how its values become what a model sees.

    Args:
      name: of the column.
      kind: "number", seen as (value - shift) / scale; "log", so too of the logarithm, for amounts;
        "category", seen as the place of the value in `values`, or as one more, `len(values)`, if it
        isn't there; or "ignored".
      shift, scale: mean and standard deviation of a number, or of its logarithm.
      values: of a category, in order.
      missing: how many rows lacked it.
      why: what the kind was inferred from, or why it may be another.
      whole: whether the numbers were whole, as new ones are then rounded.
    """

    name: str
    kind: str
    shift: float = 0.0
    scale: float = 1.0
    values: tuple[Any, ...] = ()
    missing: int = 0
    why: str = ""
    whole: bool = False


@dataclass(frozen=True)
class Table:
    """The columns of a data frame: made by `infer_table`, or of `Column`s by hand.

    A model of it is over dicts, an entry a column that isn't ignored: numbers standardised, floats
    [1], and categories as integers [1].

    >>> import pandas as pd
    >>> home = Column("home", "category", values=("owner", "rent"))
    >>> table = Table((Column("age", "number", shift=40.0, scale=10.0), home))
    >>> x, mask = table.rows(pd.DataFrame({"age": [50.0, None], "home": ["rent", "owner"]}))
    >>> x["age"][0].tolist(), mask["age"][:, 0].tolist(), x["home"][:, 0].tolist()
    ([1.0], [True, False], [1, 0])
    """

    columns: tuple[Column, ...]

    def __str__(self) -> str:
        lines = [_shown(column) for column in self.columns]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        padded = [map(str.ljust, cells, widths) for cells in lines]
        return "\n".join("  ".join(cells).rstrip() for cells in padded)

    @property
    def seen(self) -> tuple[Column, ...]:
        """The columns that a model sees."""
        return tuple(column for column in self.columns if column.kind != "ignored")

    def coded(self, frame: Any) -> Any:
        """The frame with its columns as the model sees them, floats with NaN in the gaps.

        Raises:
          TypeError: no frame.
          ValueError: a column isn't there, or holds no numbers where numbers are expected.
        """
        if not hasattr(frame, "columns"):
            raise TypeError(f"table: frame is {type(frame).__name__}, expected a pandas frame")
        if missing := [c.name for c in self.seen if c.name not in frame.columns]:
            raise ValueError(f"table: the frame has no column {missing[0]!r}")
        return frame.assign(**{column.name: _coded(column, frame) for column in self.seen})

    def decoded(self, frame: Any, *, original: Any = None) -> Any:
        """The inverse of `coded`: numbers in their units, categories by their names.

        Other columns, as scores, stay as they are. A category that wasn't known has no name: a gap.
        The mean of a logarithm comes back as exp(E[log x]), the geometric mean.

        Args:
          frame: or a dict of arrays [n, 1], as `use.generate` gives.
          original: the frame of the same rows whose gaps were filled: what it holds stays, to the
            last digit, and what wasn't known by its name.
        """
        if original is not None:
            found = self.decoded(frame)
            filled = {c.name: _filled(c, original[c.name], found[c.name]) for c in self.seen}
            return found.assign(**filled)
        if isinstance(frame, dict):
            values = {name: np.asarray(x)[:, 0] for name, x in frame.items()}
            frame = import_module("pandas").DataFrame({c.name: values[c.name] for c in self.seen})
            found = {c.name: _rounded(c, _decoded(c, frame[c.name])) for c in self.seen}
            return frame.assign(**found)
        titles = {f"{title}{c.name}": c for title in ("reconstructed ", "") for c in self.seen}
        there = {title: column for title, column in titles.items() if title in frame.columns}
        return frame.assign(**{t: _decoded(column, frame[t]) for t, column in there.items()})

    def rows(self, frame: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The frame as pairs (x, mask), to train on: of each column [n, 1]."""
        coded = self.coded(frame)
        xs, mask = {}, {}
        for column in self.seen:
            values = coded[column.name].to_numpy(np.float64)[:, None]
            mask[column.name] = ~np.isnan(values)
            dtype = np.int32 if column.kind == "category" else np.float32
            xs[column.name] = np.nan_to_num(values).astype(dtype)
        return xs, mask

    def as_json(self) -> list[dict[str, Any]]:
        """What JSON holds, and `of_json` reads."""
        return [column._asdict() | {"values": [*column.values]} for column in self.columns]

    @classmethod
    def of_json(cls, columns: list[dict[str, Any]]) -> "Table":
        read = [Column(**column) for column in columns]
        return cls(tuple(column._replace(values=tuple(column.values)) for column in read))

    def head(self, number: Head[Any] | None = None) -> MaskedHead:
        """Raw parameters -> p(x|z): `Masked` of a `Product` of `Categorical` and `Normal`.

        Args:
          number: the head of each number, an event (1,), of which each column has its own copy
            where it learns; by default `NormalHead(floor=0.1)`, as values that repeat, an amount
            of 0 for instance, would else be worth ever more with ever less sigma.
        """
        number = number or NormalHead(floor=0.1)
        if isinstance(number, (MaskedHead, ProductHead)):
            raise TypeError(
                f"Table.head: number is {an(type(number).__name__)} of all columns, expected that "
                "of one number, such as nn.NormalHead()"
            )
        heads = [_own(number) if c.kind in NUMBERS else _category_head(c) for c in self.seen]
        names = [c.name for c in self.seen]
        return MaskedHead(
            ProductHead(tuple((n, h, (1,)) for n, h in zip(names, heads, strict=True)))
        )


def _own(head: Head[Any]) -> Head[Any]:
    return nnx.clone(head) if isinstance(head, nnx.Module) else head


def _category_head(column: Column) -> Head[Any]:
    return HeadOf(open_categorical, (Real("n", len(column.values)),))


class TableNetwork(Module):
    """A network behind (x, mask) of a table: numbers, one-hot categories, 0 in gaps, and the mask.

    Args:
      network: `(in_shape, out_shape, *, rngs) -> module`, of one vector and the output.
      table: whose rows they are.
      out_shape: of the output.

    >>> from jaxvae.nn import MLP
    >>> home = Column("home", "category", values=("owner", "rent"))
    >>> table = Table((Column("age", "number"), home))
    >>> TableNetwork(MLP, table, (4,), rngs=nnx.Rngs(0)).network.in_shape  # 1, 2 + 1, 2 of the mask
    (6,)
    """

    def __init__(
        self, network: Callable[..., nnx.Module], table: Table, out_shape: Shape, *, rngs: nnx.Rngs
    ):
        self.sizes = tuple(
            (c.name, len(c.values) + 1 if c.kind == "category" else 0) for c in table.seen
        )
        width = sum((size or 1) + 1 for _, size in self.sizes)
        self.network: Any = network((width,), out_shape, rngs=rngs)

    def __call__(self, event: tuple[dict[str, Array], dict[str, Array]]) -> Array:
        x, mask = event
        parts = []
        for name, size in self.sizes:
            seen = jax.nn.one_hot(x[name][0], size) if size else x[name]
            parts += [jnp.where(mask[name], seen, 0.0), mask[name].astype(seen.dtype)]
        return self.network(jnp.concatenate(parts))


def floats_of(series: Any) -> np.ndarray:
    """The numbers of a column, with NaN in its gaps."""
    numbers, values = np.full(len(series), np.nan), series.tolist()
    for row in np.flatnonzero(series.notna().to_numpy()):
        value = values[row]
        try:
            numbers[row] = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"table: column {series.name!r} is a number, and holds {value!r} in row {row}"
                f"{OF_DATES if series.dtype.kind in 'mM' else ''}"
            ) from None
        if not np.isfinite(numbers[row]):
            raise ValueError(
                f"table: column {series.name!r} holds {value!r} in row {row}, expected numbers, or "
                "an empty cell"
            )
    return numbers


def seen_of(column: Column, numbers: np.ndarray) -> np.ndarray:
    if column.kind == "number":
        return numbers
    if (wrong := np.flatnonzero(numbers <= 0)).size:
        raise ValueError(
            f"table: column {column.name!r} is a log and holds {numbers[wrong[0]]:g} in row "
            f"{wrong[0]}, expected positive numbers; leave it empty, or train again with it as a "
            f"number (kinds={{{column.name!r}: 'number'}}, or --kinds {column.name}=number)"
        )
    return np.log(numbers)


def _coded(column: Column, frame: Any) -> np.ndarray:
    series = frame[column.name]
    if column.kind in NUMBERS:
        return (seen_of(column, floats_of(series)) - column.shift) / column.scale
    gaps = series.isna().to_numpy()
    there = series[~gaps]
    found = np.full(len(series), np.nan)
    places = {value: i for i, value in enumerate(column.values)}
    found[~gaps] = [places.get(value, len(places)) for value in there.tolist()]
    strange = {*map(type, there.tolist())}.isdisjoint(map(type, column.values))
    if strange:  # a file may hold numbers that another has as text
        places = {_as_text(value): i for i, value in enumerate(column.values)}
        found[~gaps] = [places.get(_as_text(value), len(places)) for value in there.tolist()]
    if (strange or len(there) >= MANY) and not (found[~gaps] < len(places)).any() and len(there):
        raise ValueError(
            f"table: column {column.name!r} holds {there.tolist()[0]!r} and no value that is "
            f"known, as {column.values[0]!r}"
        )
    return found


def _as_text(value: Any) -> str:
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _decoded(column: Column, series: Any) -> Any:
    coded = series.to_numpy(np.float64)
    if column.kind in NUMBERS:
        numbers = coded * column.scale + column.shift
        return np.exp(numbers) if column.kind == "log" else numbers
    names = (*column.values, None)
    return [None if np.isnan(code) else names[int(code)] for code in coded]


def _filled(column: Column, original: Any, found: Any) -> Any:
    """A column with what was found in its gaps alone, as a dtype that holds both."""
    if not (gaps := original.isna().to_numpy()).any():
        return original
    if hasattr(original.dtype, "categories"):
        new = {*found[gaps].dropna()} - {*original.dtype.categories}
        original = original.cat.add_categories(sorted(new, key=str))
    elif column.kind in NUMBERS and original.dtype.kind in "iuf":
        original = original.astype(np.float64)
    elif original.dtype.kind in "biuf":
        original = original.astype(object)
    return original.where(~gaps, found.to_numpy())


def _rounded(column: Column, values: Any) -> Any:
    if column.kind not in NUMBERS or not column.whole:
        return values
    values = np.round(values)
    return values.astype(np.int64) if (abs(values) < 2**62).all() else values


def _shown(column: Column) -> tuple[str, str, str, str, str]:
    what = {
        "number": f"{column.shift:.3g} +- {column.scale:.3g}",
        "log": f"exp({column.shift:.3g} +- {column.scale:.3g})",
        "category": ", ".join(map(str, column.values)),
        "ignored": column.why,
    }[column.kind]
    if column.kind == "category" and len(what) > 40:
        what = f"{what[:30]} ... of {len(column.values)}"
    missing = f"{column.missing} missing" if column.missing else ""
    return column.name, column.kind, what, missing, "" if column.kind == "ignored" else column.why
