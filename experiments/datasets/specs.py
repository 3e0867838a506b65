"""What the data sets are and where TFDS keeps them; reads no data and imports nothing heavy."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class DataError(Exception):
    """The data cannot be had; one line that names the file and says what to do."""


class Split(NamedTuple):
    """images: uint8 [N, H, W, C]; labels: int32 [N], or None where the set has none."""

    images: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class Spec:
    """What is known of a data set before reading it.

    Attributes:
        source: one line on where the images and the splits come from.
        shape: (H, W, C) of an image.
        max_value: the value of a full pixel: 255 grey, 16 for the digits, 1 binary.
        num_classes: number of labels, 0 where the set has none.
        held_out: number of validation examples by default.
    """

    source: str
    shape: tuple[int, int, int] = (28, 28, 1)
    max_value: float = 255
    num_classes: int = 10
    held_out: int = 10_000


SPECS = {
    "digits": Spec(
        "scikit-learn's load_digits (UCI optical digits), 1297/200/300 by a fixed permutation",
        shape=(8, 8, 1),
        max_value=16,
        held_out=200,
    ),
    "mnist": Spec("TFDS mnist (LeCun), validation from the end of train"),
    "fashion_mnist": Spec("TFDS fashion_mnist (Zalando), validation from the end of train"),
    "binarized_mnist": Spec(
        "TFDS binarized_mnist (Larochelle's fixed binarization), its own 50k/10k/10k",
        max_value=1,
        num_classes=0,
    ),
    "omniglot": Spec(
        "TFDS omniglot 105x105, averaged to 28x28, ink bright; test has other alphabets than train",
        num_classes=1623,
        held_out=1_280,
    ),
}


def find_spec(name: str) -> Spec:
    """Returns the `Spec` of `name`; DataError with the known names if there is none."""
    if name in SPECS:
        return SPECS[name]
    close = difflib.get_close_matches(name, SPECS, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise DataError(f"unknown data set {name!r}{hint}: known are {', '.join(SPECS)}")


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns `data_dir`, or the directory that TFDS itself uses by default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def find(name: str, root: Path) -> Path | None:
    """Returns the folder of the newest prepared version of `name`, or None; never the network."""
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in root.glob(f"{name}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    }
    return versions[max(versions)] if versions else None


def how_to_prepare(name: str, root: Path) -> str:
    """Returns the command, or the two commands, that prepare `name` in `root`."""
    where = "" if root == data_root() else f" --data-dir {root}"
    command = f"`python -m experiments.prepare {name}"
    download = "" if name == "digits" else " --download"
    offline = "" if name in ("digits", "omniglot") else f"{command} --from DIR{where}` or "
    return f"{offline}{command}{download}{where}`"
