"""Train every row of docs/methods.md and docs/bounds.md on data that suit it.

    python -m experiments.zoo --data DATA           # all: about an hour on two cores
    python -m experiments.zoo --only prior posterior/iaf
    python -m experiments.zoo --page                # docs/zoo.md, of what is in the folder

A row that is done, a file in the folder, is not done again: kill it at any moment and call it
again. What has to be in DATA, experiments/zoo/data.py says; without it the rows of digits, of a
table and of sentences run. Exit code 2: no row bears such a name; 1: a row failed.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.common.methods import ROWS, Row, Unsuited, find
from experiments.zoo.data import MissingError
from experiments.zoo.page import write_page
from experiments.zoo.run import result
from experiments.zoo.tables import PART_OF
from jaxvae.training.checkpoints.durable import publish


@dataclass(frozen=True)
class Options:
    only: tuple[str, ...] = ()
    """groups, as prior, or rows, as prior/vamp; by default all"""
    data: Path = Path("data")
    """where three packages were unpacked"""
    folder: Path = Path("runs/zoo")
    """a file a row"""
    page: bool = False
    """write docs/zoo.md and its pictures, and train nothing"""


def chosen(only: Sequence[str]) -> list[Row]:
    """The rows of those names, in the order of the pages; Unsuited for a name that none has."""
    rows = {row.path for row in ROWS.values() if row.group in only}
    rows |= {find(*name.split("/", 1)).path for name in only if "/" in name}
    groups = dict.fromkeys(row.group for row in ROWS.values())
    for name in only:
        if "/" not in name and name not in groups:
            raise Unsuited(f"--only is {name!r}, expected of {', '.join(groups)}, or group/row")
    wanted = [row for row in ROWS.values() if not only or row.path in rows]
    return [row for row in wanted if row.path not in PART_OF]


def run(rows: Sequence[Row], data: Path, folder: Path) -> int:
    """Do what is not done; returns how many rows failed."""
    failed = 0
    for number, row in enumerate(rows, start=1):
        path = folder / f"{row.path}.json"
        if path.exists():
            continue
        try:
            told, images = result(row, data)
        except MissingError as error:
            print(f"{row.path}: left out: {error}", flush=True)
            continue
        except Exception:
            failed += 1
            print(f"{row.path}: failed\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if images is not None:
            np.save(path.with_suffix(".npy"), images.astype(np.float16))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(told, indent=1) + "\n")
        publish(part, path)
        first = {k: round(v, 3) for k, v in told["seeds"][0].items() if isinstance(v, float)}
        print(f"{number}/{len(rows)} {row.path}: {first}, {told['seconds']:.0f} s", flush=True)
        jax.clear_caches()  # no other row runs the same programs
    return failed


def main(args: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, description=__doc__, args=args)
    try:
        rows = chosen(options.only)
    except Unsuited as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.page:
        write_page(options.folder)
        return 0
    return min(run(rows, options.data, options.folder), 1)


if __name__ == "__main__":
    sys.exit(main())
