"""Scripts in a terminal: what they refuse is one line, before the work, and not a traceback."""

import sys
from collections.abc import Callable, Collection
from typing import Any

import tyro

from experiments.datasets.specs import DataError


def command(main: Callable[..., Any], description: str | None) -> None:
    """Run `main` with the arguments of the command line.

    Data that can't be had and options that are refused end it with exit code 2 and one line, files
    that can't be written with 1.
    """
    try:
        tyro.cli(main, description=description)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, DataError) else 1)


def check_chosen(option: str, given: Collection[Any], known: Collection[str] = ()) -> None:
    """DataError where an option lists nothing, or what is not among those known."""
    if not given:
        raise DataError(f"{option} lists nothing, expected one or more")
    if known and (other := [name for name in given if name not in known]):
        raise DataError(f"{option} has {other[0]!r}, expected of {', '.join(known)}")
