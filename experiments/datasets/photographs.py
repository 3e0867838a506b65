"""Patches of photographs as a folder of PNG files, and what codecs make of them: NumPy and Pillow.

`patches` halves each photograph twice, so that no trace of JPEG is left, and cuts it into disjoint
squares; `arrays` gives squares of any size. Whole photographs are held out: two squares of one
photograph are much alike.
"""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16  # pixels of a patch
HELD_OUT = "Dune", "Garden", "RainDrops"  # photographs, of twelve; chosen before any training
CHECKSUM = "4416ed8a0bc32ecc3f949a2090e80c3cbeef3a2211a2e4f5cfbef1c6174bf041"
HOW = "apt-get download mate-backgrounds, then dpkg -x mate-backgrounds_*.deb . unpacks it"


def patches(photographs: Path, folder: Path) -> tuple[list[str], list[str]]:
    """The files of the patches to train on and of those held out, written where they are not."""
    files = verified(photographs)
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        for file in files:
            to = part / ("held_out" if file.stem in HELD_OUT else "train")
            to.mkdir(parents=True, exist_ok=True)
            for number, patch in enumerate(cut(Image.open(file))):
                Image.fromarray(patch).save(to / f"{file.stem}_{number:04}.png")
        part.rename(folder)
    train, held_out = (
        sorted(str(f) for f in (folder / to).iterdir()) for to in ("train", "held_out")
    )
    return train, held_out


def arrays(photographs: Path, side: int, shrink: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches to train on and those held out, of photographs made smaller: [n, side, side, 3]."""
    split: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for file in verified(photographs):
        split[file.stem in HELD_OUT].append(cut(Image.open(file), side, shrink))
    return np.concatenate(split[False]), np.concatenate(split[True])


def verified(photographs: Path) -> list[Path]:
    files = sorted(photographs.glob("*.jpg"))
    found = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if found != CHECKSUM:
        raise SystemExit(f"{photographs} holds not the twelve photographs expected; {HOW}")
    return files


def cut(image: Any, side: int = SIDE, shrink: int = 4) -> np.ndarray:
    """Patches of the image with so many times fewer rows and columns, [n, side, side, 3]."""
    rows, columns = (n // shrink // side for n in (image.height, image.width))
    box = 0, 0, shrink * side * columns, shrink * side * rows
    size = side * columns, side * rows
    small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX, box))
    squares = small.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(-1, side, side, 3)


def read(path: str) -> np.ndarray:
    """One image, [height, width, 3] in 0..255."""
    return np.asarray(Image.open(path).convert("RGB"))


def codec_bits(images: np.ndarray, **how: Any) -> tuple[float, float]:
    """Bits a number of a lossless codec of Pillow's: a file each image, and one of all together."""
    side = int(len(images) ** 0.5)
    tiles = images[: side * side].reshape(side, side, *images.shape[1:]).swapaxes(1, 2)
    sheet = tiles.reshape(side * images.shape[1], side * images.shape[2], 3)
    each = sum(_bytes(image, **how) for image in images)
    return 8 * each / images.size, 8 * _bytes(sheet, **how) / sheet.size


def _bytes(image: np.ndarray, **how: Any) -> int:
    file = BytesIO()
    Image.fromarray(image).save(file, **how)
    return file.tell()
