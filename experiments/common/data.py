"""Data sets as arrays in memory: `load(name)`, from data prepared by TFDS, without TensorFlow.

Images stay as published, uint8: cast, scale by `max_value` or binarize inside the jitted step.
Nothing here reaches the network unless `download=True`.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.reading import read
from experiments.datasets.specs import SPECS as SPECS
from experiments.datasets.specs import DataError as DataError
from experiments.datasets.specs import Spec as Spec
from experiments.datasets.specs import Split as Split
from experiments.datasets.specs import data_root, find, find_spec, how_to_prepare


@dataclass(frozen=True, kw_only=True)
class Dataset(Spec):
    """A data set in memory: its `Spec`, its name, and three disjoint splits."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def binary(self) -> bool:
        """Whether every pixel is 0 or full."""
        splits = (self.train, self.validation, self.test)
        return all(bool(np.isin(split.images, (0, self.max_value)).all()) for split in splits)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    validation: int | None = None,
) -> Dataset:
    """Returns the data set `name` as arrays in memory.

    Test is the published test split and never serves for validation. The published training
    and validation rows form one pool, in the order in which TFDS stores them: a shuffle by a
    hash of each example's key, the same everywhere. Its last rows are the validation split: the
    published one where there is one, else `held_out` rows of train.

    Omniglot's images and splits are TFDS's, not those of the 24345/8070 file that the VAE
    literature uses: numbers do not compare. Downloading, and the genuine Omniglot, have never
    been run where this was tested, which is without a network: only made-up archives have.

    Args:
        name: one of `SPECS`.
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        download: whether TFDS may download and prepare what is not there yet. The digits need
            no network: they are prepared on first use, elsewhere if `data_dir` is read-only.
        validation: rows to hold out; 0 trains on the whole pool and leaves validation empty.

    Raises:
        DataError: unknown name, data not prepared, damaged, not writable, or not downloaded.
    """
    find_spec(name)
    root = data_root(data_dir)
    try:
        folder = find(name, root)
    except OSError as error:
        raise DataError(f"{root} can't be read: {error.strerror}") from None
    if folder is None:
        if name != "digits" and not download:
            raise DataError(f"{name} is not prepared in {root}: run {how_to_prepare(name, root)}")
        from experiments.datasets import builders  # imports TFDS, which takes a second

        try:
            folder = builders.build(name, root)
        except DataError:
            if name != "digits":
                raise
            with tempfile.TemporaryDirectory() as scratch:
                builders.build(name, Path(scratch))
                return load(name, data_dir=scratch, validation=validation)
    return _assemble(name, read(name, folder), validation)


def merge(first: Split, second: Split) -> Split:
    """Returns the rows of `first` followed by those of `second`."""
    if first.labels is None or second.labels is None:
        labels = None
    else:
        labels = np.concatenate([first.labels, second.labels])
    return Split(np.concatenate([first.images, second.images]), labels)


def _assemble(name: str, splits: dict[str, Split], held_out: int | None) -> Dataset:
    spec = find_spec(name)
    pool = splits["train"]
    if "validation" in splits:
        pool = merge(pool, splits["validation"])
    held_out = spec.held_out if held_out is None else held_out
    size = len(pool.images)
    if not 0 <= held_out < size:
        raise DataError(f"validation={held_out}: {name} has {size} rows to train and validate on")
    return Dataset(
        **vars(spec),
        name=name,
        train=_take(pool, slice(size - held_out)),
        validation=_take(pool, slice(size - held_out, None)),
        test=splits["test"],
    )


def _take(split: Split, index: Any) -> Split:
    return Split(split.images[index], None if split.labels is None else split.labels[index])


def load_file(
    path: str | os.PathLike[str],
    *,
    validation: int | None = None,
    max_value: float | None = None,
) -> Dataset:
    """Returns a user's images from a .npy file, split by a fixed shuffle: a tenth to test.

    Args:
        path: an array [N, H, W] or [N, H, W, C] of uint8, bool or floats in 0..max_value.
        validation: rows to hold out for validation, a tenth by default.
        max_value: the value of a full pixel; by default 1 where no pixel is above it, and 255
            for other uint8.

    Raises:
        DataError: the file is missing, damaged, or holds no images; or no pixel comes near the
            default `max_value`.
    """
    images = _read_images(path)
    full = max_value or (255 if images.dtype == np.uint8 and images.max() > 1 else 1)
    outside = np.argwhere(~((images >= 0) & (images <= full)))  # NaN is outside too
    if len(outside):
        row, *pixel = map(int, outside[0])
        raise DataError(
            f"{path}: image {row} holds {images[row, *pixel]:g} at {tuple(pixel)}, expected "
            f"numbers in [0, {full:g}]; scale the images, drop that one, or give --max-value"
        )
    largest = images.max()
    if max_value is None and 0 < largest < full / 2:
        raise DataError(
            f"{path}: the largest value is {largest:g}, where a full pixel of {images.dtype} is "
            f"{full:g}; give --max-value {largest}, or {full:g} if the images are that dark"
        )
    order = np.random.default_rng(0).permutation(len(images))
    tenth = len(images) // 10
    held_out = tenth if validation is None else validation
    size = len(images) - tenth
    if not 0 <= held_out < size:
        raise DataError(f"validation={held_out}: {path} has {size} rows to train and validate on")
    test, pool = order[:tenth], order[tenth:]
    return Dataset(
        source=str(path),
        name=os.fspath(path),
        shape=images.shape[1:],
        max_value=full,
        num_classes=0,
        held_out=tenth,
        train=Split(images[pool[: size - held_out]], None),
        validation=Split(images[pool[size - held_out :]], None),
        test=Split(images[test], None),
    )


def _read_images(path: str | os.PathLike[str]) -> np.ndarray:
    """[N, H, W, C] of uint8 or float32, as in the file; DataError if that is not what it holds."""
    try:
        with open(path, "rb") as file:
            images = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        said, *_ = [*str(error).splitlines(), type(error).__name__]
        raise DataError(f"{path} can't be read as one array written by np.save: {said}") from None
    shape = images.shape
    if len(shape) not in (3, 4) or 0 in shape or len(images) < 10:
        raise DataError(f"{path} has shape {shape}, expected [N, H, W] or [N, H, W, C], N >= 10")
    if images.ndim == 4 and shape[1] < min(shape[2:]) and shape[3] > 4:
        raise DataError(
            f"{path} has shape {shape}, which looks like channels first; expected [N, H, W, C]: "
            "save images.transpose(0, 2, 3, 1), or swapaxes(1, 2) if the first is the height"
        )
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # infinity, which is refused as such
            images = images.astype(np.float32)
    elif images.dtype in (np.bool_, np.uint8):
        images = images.astype(np.uint8)
    else:
        raise DataError(
            f"{path} holds {images.dtype}, expected uint8, bool or floats in [0, 1]: divide by the "
            "value of a full pixel"
        )
    return images.reshape(*shape[:3], -1)
