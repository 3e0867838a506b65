"""Files and folders that a kill or a power cut leaves as they were, or as they were to be.

What is to be is written beside its place, flushed to the disk, and renamed; then the folder of that
name is flushed, as a rename too outlives a power cut only so.
"""

import os
import shutil
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where a file or folder is written before it has its name."""
    return path.with_name(f".{path.name}.part")


def publish(part: Path, path: Path) -> None:
    """Give a file or folder that is written its name, and take it from what had it.

    A folder can't be renamed over another that holds anything. So that one is put away before, and
    a kill just then leaves none of that name, but both beside it.
    """
    for inside in [*part.rglob("*"), part]:
        flush(inside)
    away = part_of(part) if path.is_dir() else None
    if away is not None:
        path.replace(away)
    part.replace(path)
    flush(path.parent)
    if away is not None:
        shutil.rmtree(away)


def write_text(path: Path, text: str) -> None:
    """A file of text, whole or not at all, in a folder that is made where it is missing."""
    make_folder(path.parent)
    part = part_of(path)
    part.write_text(text, encoding="utf-8", newline="")
    publish(part, path)


def discard(path: Path) -> None:
    """Remove a file or folder, so that no half of it is left under its name."""
    if path.is_dir():
        away = path.replace(part_of(path))
        flush(path.parent)
        shutil.rmtree(away)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """And those it is in, where they are missing."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        flush(path.parent)


def flush(path: Path) -> None:
    """What a file holds, or the names in a folder; of these Windows has no such call."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
