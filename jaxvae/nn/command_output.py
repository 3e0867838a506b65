"""What a command prints and writes: lines for people, columns, arrays and images.

A file or folder is written beside its place and renamed, so that it is there whole or not at all.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae.evaluation.frames import check_new
from jaxvae.nn.data_files import DataRefusedError, needed, write_rows, written_columns
from jaxvae.training.checkpoints.durable import publish

TABLES = (".csv", ".parquet", ".npz", ".npy")


def say(told: Mapping[str, Any]) -> None:
    for name, value in told.items():
        shown = (
            f"{value:.4f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        )
        line = f"{name:>16}  {shown}"
        print(line.encode(errors="backslashreplace").decode())  # of names of files that aren't text


def check_output(path: Path, *kinds: str) -> Path:
    """The path, before any work is done; refused where nothing can be written to it."""
    if path.suffix.lower() not in kinds:
        names = [kind or "a folder, of images" for kind in kinds]
        several = [", ".join(names[:-1])] if names[:-1] else []
        raise DataRefusedError(f"--output {path}: expected {' or '.join([*several, names[-1]])}")
    if not path.parent.is_dir():
        raise DataRefusedError(f"--output {path}: {path.parent} isn't there; make it first")
    if path.is_dir() and (path.suffix or any(path.iterdir())):
        raise DataRefusedError(f"--output {path}: there is a folder, with files in it or as a file")
    return path


def check_beside(path: Path, frame: Any, names: Iterable[str]) -> None:
    """Before any work: results of such names take no column's place in the file."""
    if frame is not None and path.suffix.lower() in (".csv", ".parquet"):
        try:
            check_new("data", frame, names)
        except ValueError as error:
            raise DataRefusedError(f"{error}, or write an .npz, of results alone") from None


def written(path: Path, write: Callable[[Path], object], **told: Any) -> None:
    """Write a file or a folder, whole or not at all, and say so."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        publish(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
    say({"written": str(path)} | told)


def write_columns(path: Path, columns: dict[str, np.ndarray], frame: Any = None) -> None:
    number = written_columns(path, columns, frame)
    written(path, lambda part: write_rows(part, columns, frame), columns=number)


def write_events(
    path: Path, xs: np.ndarray, names: Sequence[str], files: Sequence[str] = ()
) -> None:
    """Rows of numbers: as one array, as columns, or of bytes of images as PNG in a folder."""
    if path.suffix == ".npy":
        written(path, lambda part: np.save(part, xs), shape=[*xs.shape])
    elif path.suffix:
        flat = np.reshape(xs, (len(xs), -1))
        named = names if len(names) == flat.shape[1] else [*map(str, range(flat.shape[1]))]
        write_columns(path, dict(zip(named, flat.T, strict=True)))
    else:
        images = np.clip(np.round(xs), 0, 255).astype(np.uint8)
        files = files or [f"{i:06}.png" for i in range(len(xs))]
        written(path, lambda part: _write_images(part, images, files), images=len(images))


def _write_images(folder: Path, images: np.ndarray, files: Sequence[str]) -> None:
    pillow = needed("PIL.Image", "a folder of images")
    names = [str(Path(name).with_suffix(".png")) for name in files]
    known = Counter(names)
    for image, file, name in zip(images, files, names, strict=True):
        # of 1.jpg and 1.png in one folder each keeps its whole name
        file = folder / (name if known[name] == 1 else f"{file}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file)
