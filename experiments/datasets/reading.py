"""A data set prepared by TFDS, read without TensorFlow into one array a split, and cached."""

import io
import json
import os
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from PIL import Image, ImageOps

from experiments.datasets.specs import DataError, Split, find_spec, how_to_prepare

_RECIPE = 1  # raise when the conversion from TFDS examples to arrays changes: it outdates caches
_CHUNK = 1000


def read(name: str, folder: Path) -> dict[str, Split]:
    """Returns the train, test and perhaps validation splits that TFDS prepared in `folder`.

    Each is decoded once (thousands of images a second) and kept beside the prepared files as
    jaxvae-SPLIT.npz, whose checksums make damage show: such a cache, or an outdated one, is
    made anew.

    Raises:
        DataError: the folder does not hold `name` as array_record files, whole.
    """
    info = read_info(name, folder)
    splits = {}
    for entry in info["splits"]:
        split = entry["name"]
        if split not in ("train", "validation", "test"):
            continue
        cache = folder / f"jaxvae-{split}.npz"
        stamp = json.dumps([_RECIPE, info["version"], entry], sort_keys=True)
        rows = _read_cache(cache, stamp)
        if rows is None:
            try:
                rows = _convert(name, folder, split, info["sizes"][split])
            except Exception as error:  # TFDS, array_record, Pillow: each raises its own
                raise _damaged(name, folder, folder, error) from error
            _write_cache(cache, stamp, rows)
        splits[split] = rows
    if not {"train", "test"} <= splits.keys():
        raise _damaged(name, folder, folder, ValueError(f"its splits are {[*info['sizes']]}"))
    return splits


def read_info(name: str, folder: Path) -> dict[str, Any]:
    """Returns TFDS's dataset_info.json, with `sizes`: the number of examples of each split."""
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        info["sizes"] = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
        file_format, _ = info["fileFormat"], info["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(name, folder, path, error) from error
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


def progress(items: Sequence[Any], what: str, file: TextIO | None = None) -> Iterator[Any]:
    """Yields `items`, with a line on stderr, or in `file`, that says how far it is."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(file=file or sys.stderr))


def _grey_image(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))[..., None]


def _convert(name: str, folder: Path, split: str, size: int) -> Split:
    """Returns one split, read through TFDS and decoded; ValueError if it is not as expected."""
    import tensorflow_datasets as tfds

    spec = find_spec(name)
    decode: Callable[[bytes], np.ndarray] = omniglot_image if name == "omniglot" else _grey_image
    builder = cast(Any, tfds.builder_from_directory(folder))
    rows = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images = np.empty((size, *spec.shape), np.uint8)
    labels = np.empty(size, np.int32) if spec.num_classes else None
    starts: Any = range(0, size, _CHUNK)
    if size > 5 * _CHUNK:
        starts = progress(starts, f"reading {name} {split}, once")
    for start in starts:
        indices = range(start, min(start + _CHUNK, size))
        for i, row in zip(indices, rows.__getitems__(indices), strict=True):
            image = decode(row["image"])
            if image.shape != spec.shape or image.dtype != np.uint8:
                raise ValueError(f"an image is {image.dtype} {image.shape}, not {spec.shape}")
            images[i] = image
            if labels is not None:
                labels[i] = row["label"]
    if images.max() > spec.max_value:
        raise ValueError(f"a pixel is {images.max()}, above {spec.max_value}")
    return Split(images, labels)


def _read_cache(path: Path, stamp: str) -> Split | None:
    """Returns the cached split, or None where there is none, an outdated or a damaged one."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if str(arrays["stamp"]) == stamp:
                return Split(arrays["images"], arrays.get("labels"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"{path} is damaged ({_brief(error)}): making it anew", file=sys.stderr)
    return None


def _write_cache(path: Path, stamp: str, rows: Split) -> None:
    """Writes the cache whole or not at all; a folder that cannot be written goes without."""
    arrays: dict[str, Any] = {"images": rows.images, "stamp": np.array(stamp)}
    if rows.labels is not None:
        arrays["labels"] = rows.labels
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)


def _damaged(name: str, folder: Path, path: Path, error: Exception) -> DataError:
    how = how_to_prepare(name, folder.parent.parent)
    return DataError(f"{path} cannot be read ({_brief(error)}): delete {folder} and run {how}")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
