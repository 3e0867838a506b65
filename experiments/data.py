"""Data sets as arrays in memory: `load(name)`, from data prepared by TFDS, without TensorFlow.

A split is read from its array_record files once, into one uint8 array that is cached beside them
as an .npz (its checksums make a damaged cache show). Images stay as published: cast, scale or
binarize them inside the jitted step. Nothing here reaches the network unless `download=True`.
"""

import difflib
import io
import json
import os
import re
import sys
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

_RECIPE = 1  # raise when the conversion from TFDS examples to arrays changes: it outdates caches
_CHUNK = 1000


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
    max_value: int = 255
    num_classes: int = 10
    held_out: int = 10_000

    @property
    def binary(self) -> bool:
        """Whether pixels are 0 or 1."""
        return self.max_value == 1


@dataclass(frozen=True)
class Dataset(Spec):
    """A data set in memory: three disjoint splits and its `Spec`."""

    name: str = ""
    train: Split = None  # type: ignore[assignment]
    validation: Split = None  # type: ignore[assignment]
    test: Split = None  # type: ignore[assignment]


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


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    validation: int | None = None,
) -> Dataset:
    """Returns the data set `name` as arrays in memory.

    Rows come in TFDS's own order, a fixed shuffle. Test is the published test split, never used
    for validation. Training and validation examples form one pool, validation being its last
    rows; by default as many as the published validation split has, so that this is that split,
    or `held_out` where none was published. omniglot's pool comes alphabet by alphabet and is
    permuted first; its images are TFDS's, not the 24345/8070 file of the VAE literature, so
    numbers do not compare. Neither downloading nor the genuine omniglot has been run by the
    authors' tests, which have no network: they use made-up archives of the same layout.

    Args:
        name: one of `SPECS`.
        data_dir: TFDS's data directory; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        download: whether TFDS may download and prepare what is not there yet. The digits come
            with scikit-learn and are prepared on first use; elsewhere than in `data_dir`, for
            this call, where that cannot be written.
        validation: rows to hold out; 0 trains on the whole pool and leaves validation empty.

    Raises:
        DataError: unknown name, data not prepared, damaged, not writable, or not downloaded.
    """
    spec = find_spec(name)
    root = data_root(data_dir)
    folder = find(name, root)
    if folder is None:
        if name != "digits" and not download:
            raise DataError(f"{name} is not prepared in {root}: run {how_to_prepare(name, root)}")
        from experiments import builders  # imports TFDS: seconds

        try:
            folder = builders.build(name, root)
        except DataError:
            if name != "digits":
                raise
            with tempfile.TemporaryDirectory(prefix="jaxvae-") as scratch:
                builders.build(name, Path(scratch))
                return load(name, data_dir=scratch, validation=validation)
    return _assemble(name, spec, _read(name, folder, spec), validation)


def merge(first: Split, second: Split) -> Split:
    """Returns the rows of `first` followed by those of `second`."""
    if first.labels is None or second.labels is None:
        labels = None
    else:
        labels = np.concatenate([first.labels, second.labels])
    return Split(np.concatenate([first.images, second.images]), labels)


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


def read_info(name: str, folder: Path) -> dict[str, Any]:
    """Returns TFDS's dataset_info.json, with `sizes`: the number of examples of each split."""
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        info["sizes"] = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
        file_format = info["fileFormat"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(name, path, error) from error
    if file_format != "array_record":
        raise DataError(
            f"{folder} holds {file_format} files, which only TensorFlow reads: delete it and run "
            + how_to_prepare(name, folder.parent.parent)
        )
    return info


def omniglot_image(png: bytes) -> np.ndarray:
    """Returns an Omniglot drawing, dark ink on light paper, as uint8 [28, 28, 1], ink bright.

    A pixel is the mean over its share of the drawing (105/28 = 3.75 pixels a side).
    """
    ink = ImageOps.invert(Image.open(io.BytesIO(png)).convert("L"))
    return np.asarray(ink.resize((28, 28), Image.Resampling.BOX))[..., None]


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """Returns `items`, with a progress line on stderr where there are thousands to come."""
    from rich.console import Console
    from rich.progress import track

    return track(items, what, total, console=Console(file=sys.stderr), disable=total < 5000)


def _grey_image(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))[..., None]


def _assemble(name: str, spec: Spec, splits: dict[str, Split], held_out: int | None) -> Dataset:
    pool = splits["train"]
    if "validation" in splits:
        pool = merge(pool, splits["validation"])
    held_out = spec.held_out if held_out is None else held_out
    size = len(pool.images)
    if not 0 <= held_out < size:
        raise DataError(f"validation={held_out}: {name} has {size} rows to train and validate on")
    if name == "omniglot":
        order = np.random.RandomState(0).permutation(size)  # this generator's stream is frozen
        pool = _rows(pool, order)
    cut = size - held_out
    return Dataset(
        **vars(spec),
        name=name,
        train=_rows(pool, slice(cut)),
        validation=_rows(pool, slice(cut, None)),
        test=splits["test"],
    )


def _rows(split: Split, index: Any) -> Split:
    return Split(split.images[index], None if split.labels is None else split.labels[index])


def _read(name: str, folder: Path, spec: Spec) -> dict[str, Split]:
    """Returns the splits in `folder`, from the cache where it is good; else fills the cache."""
    info = read_info(name, folder)
    splits = {}
    for entry in info["splits"]:
        split = entry["name"]
        if split not in ("train", "validation", "test"):
            continue
        cache = folder / f"jaxvae-{split}.npz"
        shape = (info["sizes"][split], *spec.shape)
        stamp = json.dumps([_RECIPE, info["version"], entry], sort_keys=True)
        rows = _read_cache(cache, stamp, shape)
        if rows is None:
            try:
                rows = _convert(name, folder, split, shape, spec)
            except Exception as error:  # TFDS, array_record, Pillow: each raises its own
                raise _damaged(name, folder, error) from error
            _write_cache(cache, stamp, rows)
        splits[split] = rows
    if not {"train", "test"} <= splits.keys():
        raise _damaged(name, folder, KeyError(f"only splits {list(info['sizes'])}"))
    return splits


def _convert(name: str, folder: Path, split: str, shape: tuple[int, ...], spec: Spec) -> Split:
    """Returns one split, read through TFDS and decoded; ValueError if it is not as expected."""
    import tensorflow_datasets as tfds

    decode: Callable[[bytes], np.ndarray] = omniglot_image if name == "omniglot" else _grey_image
    builder = tfds.builder_from_directory(folder)
    rows: Any = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images = np.empty(shape, np.uint8)
    labels = np.empty(shape[0], np.int32)
    for i in progress(range(shape[0]), shape[0], f"reading {name} {split}, once"):
        if i % _CHUNK == 0:
            chunk = rows.__getitems__(range(i, min(i + _CHUNK, shape[0])))
        row = chunk[i % _CHUNK]
        image = decode(row["image"])
        if image.shape != shape[1:] or image.dtype != np.uint8:
            raise ValueError(f"an image of shape {image.shape}, expected {shape[1:]}")
        images[i] = image
        labels[i] = row["label"] if spec.num_classes else 0
    if images.max() > spec.max_value:
        raise ValueError(f"a pixel of {images.max()}, expected at most {spec.max_value}")
    return Split(images, labels if spec.num_classes else None)


def _read_cache(path: Path, stamp: str, shape: tuple[int, ...]) -> Split | None:
    """Returns the cached split, or None where there is none, an outdated or a damaged one."""
    try:
        with np.load(path) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            rows = Split(arrays["images"], arrays["labels"] if "labels" in arrays else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"{path} is damaged ({_brief(error)}): making it anew", file=sys.stderr)
        return None
    return rows if rows.images.shape == shape else None


def _write_cache(path: Path, stamp: str, rows: Split) -> None:
    """Writes the cache whole or not at all; a folder that cannot be written goes without."""
    arrays = {"images": rows.images, "stamp": np.array(stamp)}
    if rows.labels is not None:
        arrays["labels"] = rows.labels
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)


def _damaged(name: str, path: Path, error: Exception) -> DataError:
    folder = path.parent if path.suffix == ".json" else path
    fix = f"delete {folder} and run {how_to_prepare(name, folder.parent.parent)}"
    return DataError(f"{path} cannot be read ({_brief(error)}): {fix}")


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
