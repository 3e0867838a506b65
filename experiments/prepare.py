"""Prepares a data set where TFDS, and `experiments.common.data.load`, find it.

    python -m experiments.prepare fashion_mnist --from DIR     # offline, from the published files
    python -m experiments.prepare fashion_mnist --download

DIR holds, for fashion_mnist, the four IDX .gz files as published or as in Debian's package
dataset-fashion-mnist; for mnist the four IDX files, with or without .gz; for binarized_mnist
Larochelle's three .amat files, or static_mnist.pkl.gz. All are verified. The digits need neither.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.datasets.reading import read_info
from experiments.datasets.specs import DataError, data_root, find, find_spec, how_to_prepare


@dataclass
class Args:
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """digits, mnist, fashion_mnist, binarized_mnist or omniglot."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None
    """Folder with the published files."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """TFDS's data directory; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    download: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let TFDS download the files."""


def prepare(args: Args) -> str:
    """Prepares the data set unless it is there; returns a line on what is where."""
    find_spec(args.name)
    root = data_root(args.data_dir)
    folder = find(args.name, root)
    done = "is already prepared in" if folder else "written to"
    if folder is None:
        if args.source and args.name in ("digits", "omniglot"):
            raise DataError(f"{args.name} takes no --from: run {how_to_prepare(args.name, root)}")
        if args.name != "digits" and bool(args.source) == args.download:
            raise DataError(f"say where from: {how_to_prepare(args.name, root)}")
        from experiments.datasets import builders

        folder = builders.build(args.name, root, args.source)
    sizes = read_info(args.name, folder)["sizes"]
    splits = ", ".join(f"{split} {size}" for split, size in sizes.items())
    train = f"python -m experiments.train --dataset {args.name}"
    if root != data_root():
        train += f" --data-dir {root}"
    total = sum(sizes.values())
    return f"{args.name}: {total} examples ({splits}) {done} {folder}; train on it: {train}"


def main() -> int:
    try:
        program = "python -m experiments.prepare"
        print(prepare(tyro.cli(Args, prog=program, description=__doc__)))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
