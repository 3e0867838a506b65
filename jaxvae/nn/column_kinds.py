"""Which columns of a data frame are numbers and which categories."""

import re
from collections.abc import Mapping
from datetime import date
from numbers import Number
from typing import Any

import numpy as np

from jaxvae.checks import a_class_of, checked
from jaxvae.nn.tables import KINDS, NUMBERS, Column, Table, floats_of, seen_of

LONG_TAIL = "long tail: log?"  # why a number may be a log
AN_INDEX = "all different: an index?"  # why whole numbers may be ignored
MANY = 50  # categories, from where a column may be none
DATES = "dates: make numbers of them"
DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3\d{4}|\d{1,2}/\d{1,2}/\d{2})"
    r"([ T]\d{1,2}:\d{2}.*)?"
)


@checked
def infer_table(frame: Any, kinds: Mapping[str, str] | None = None) -> Table:
    """The columns of a pandas frame by what they hold.

    Text, pandas categories and booleans are categories, and so are numbers of at most two values;
    other numbers are numbers. Ignored are dates, as text too, columns without any value, and text
    of which most values are there once, as names and identifiers are. The table says what may be
    meant otherwise: amounts, an index, a category of many values.

    Args:
      frame: with one row an example, None and NaN in its gaps.
      kinds: name -> "number", "log", "category" or "ignored", where it should be another: "log" of
        amounts, which are positive and skewed.

    Raises:
      TypeError: no frame, or a column whose name is no text.
      ValueError: a kind that isn't one, of a column that isn't there, or that it can't be.

    >>> import pandas as pd
    >>> ages, homes = [30.0, 58.0, None, 24.0], ["rent", "owner", None, "rent"]
    >>> frame = pd.DataFrame({"age": ages, "home": homes, "grade": [1, 5, 3, 2]})
    >>> table = infer_table(frame, kinds={"grade": "category"})
    >>> print(table)
    age    number    37.3 +- 14.8  1 missing
    home   category  owner, rent   1 missing
    grade  category  1, 2, 3, 5
    """
    kinds = dict(kinds or {})
    if not hasattr(frame, "columns") or not len(frame):
        raise TypeError(
            f"infer_table: frame is {type(frame).__name__}, expected a pandas frame with rows"
        )
    for name in frame.columns:
        if not isinstance(name, str):
            raise TypeError(
                f"infer_table: a column is named {name!r}, expected text; rename them: "
                "frame.columns = frame.columns.astype(str)"
            )
        if [*frame.columns].count(name) > 1:
            raise ValueError(f"infer_table: two columns are named {name!r}, expected one")
    for name, kind in kinds.items():
        if name not in frame.columns or kind not in KINDS:
            raise ValueError(
                f"infer_table: kinds has {name!r}: {kind!r}, expected columns of the frame and "
                f"one of {', '.join(KINDS)}"
            )
    table = Table(tuple(_column(frame[name], kinds.get(name)) for name in frame.columns))
    if not table.seen:
        raise ValueError("infer_table: no column is left, as all are ignored; choose their kinds")
    return table


def deviation(values: np.ndarray) -> np.ndarray:
    """The standard deviation of every column; 1 where all are equal, of which rounding leaves some.

    >>> deviation(np.array([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])).round(3).tolist()
    [1.0, 1.633]
    """
    found = values.std(axis=0, dtype=np.float64)
    return np.where((values == values[:1]).all(axis=0) | (found == 0.0), 1.0, found)


def _column(series: Any, wanted: str | None) -> Column:
    gaps = series.isna().to_numpy()
    there = series[~gaps].infer_objects()  # numbers that lie in a column of objects
    kind, why = _kind(there) if wanted is None else (wanted, "")
    if wanted not in (None, "ignored") and not len(there):
        raise ValueError(
            f"infer_table: kinds has {series.name!r}: {wanted!r}, and the column holds no value; "
            "leave it ignored"
        )
    column = Column(series.name, kind, missing=int(gaps.sum()), why=why)
    if kind in NUMBERS:
        numbers = floats_of(series)
        seen, numbers = seen_of(column, numbers)[~gaps], numbers[~gaps]
        whole = bool((numbers == np.round(numbers)).all())
        scale = float(deviation(seen))
        why = _number_why(numbers, whole) if wanted is None else ""
        return column._replace(shift=float(seen.mean()), scale=scale, whole=whole, why=why)
    if kind != "category":
        return column
    values = _values(there)
    many = f"{len(values)} values: ignored?" if wanted is None and len(values) > MANY else ""
    return column._replace(values=values, why=many)


def _number_why(numbers: np.ndarray, whole: bool) -> str:
    """Why a column of numbers may be another kind."""
    if has_long_tail(numbers):  # incomes, rounded: those of an index have none
        return LONG_TAIL
    index = whole and len(numbers) >= MANY and len(np.unique(numbers)) == len(numbers)
    return AN_INDEX if index else ""


def _kind(there: Any) -> tuple[str, str]:
    """The kind of a column's values, and why it is ignored."""
    try:
        distinct, code = there.nunique(), there.dtype.kind
    except TypeError:
        raise TypeError(
            f"infer_table: column {there.name!r} holds {a_class_of(there.iloc[0])}, expected "
            "numbers or text; leave it out"
        ) from None
    if not len(there):
        return "ignored", "no values"
    named = getattr(there.dtype, "categories", None)
    if code in "mM" or (code == "O" and all(map(_is_date, there))) or _are_dates(named):
        return "ignored", DATES
    if named is not None:
        return "category", ""
    if code == "O" and all(isinstance(value, Number) for value in there) and distinct > 2:
        return "number", ""  # decimals and fractions
    if code in "iuf" and distinct > 2:
        return "number", ""
    if code in "biuf" or 2 * distinct <= len(there) or distinct <= 2:
        return "category", ""
    return "ignored", f"{distinct} different of {len(there)}"


def _are_dates(categories: Any) -> bool:
    return categories is not None and categories.dtype.kind in "mM"


def _is_date(value: object) -> bool:
    return isinstance(value, date) or (isinstance(value, str) and DATE.fullmatch(value) is not None)


def _values(there: Any) -> tuple[Any, ...]:
    """In the order of an ordered category, else sorted."""
    present = {*there.tolist()}
    ordered = getattr(there.dtype, "categories", None)
    if ordered is not None:
        return tuple(value for value in ordered.tolist() if value in present)
    return tuple(sorted(present, key=lambda value: (str(type(value)), value)))


def has_long_tail(numbers: np.ndarray) -> bool:
    """Whether they are positive and skewed, and their logarithms aren't."""
    if not (numbers > 0).all() or _skewness(numbers) < 2:  # that of an exponential
        return False
    return abs(_skewness(np.log(numbers))) < 1


def _skewness(numbers: np.ndarray) -> float:
    off = numbers - numbers.mean()
    return float(np.mean(off**3) / (np.mean(off**2) ** 1.5 or 1.0))
