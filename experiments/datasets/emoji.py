"""Colour pictures of 64x64 pixels: Google's emoji, read from the npm package that holds them."""

import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels
TONES = "-1f3f[b-f]"  # of skin, in a file's name: pictures that differ in these alone are a family
ONE_IN = 8  # families that are held out
CHECKSUM = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
HOW = "npm pack emoji-datasource-google@16.0.0 fetches it"


def pictures(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """Those to train on and those held out, whole families at random: uint8 [n, 64, 64, 3]."""
    data = package.read_bytes() if package.is_file() else b""
    if hashlib.sha256(data).hexdigest() != CHECKSUM:
        raise SystemExit(f"{package} is not the package expected; {HOW}")
    families: dict[str, list[np.ndarray]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            found = re.fullmatch(r"package/img/google/64/(.+)\.png", member.name)
            file = archive.extractfile(member) if found else None
            if found and file:
                picture = on_white(Image.open(io.BytesIO(file.read())))
                families.setdefault(re.sub(TONES, "", found[1]), []).append(picture)
    order = np.random.default_rng(0).permutation(sorted(families))
    cut = len(order) // ONE_IN
    train, held_out = (
        np.stack([picture for name in names for picture in families[name]])
        for names in (order[cut:], order[:cut])
    )
    return train, held_out


def on_white(picture: Image.Image) -> np.ndarray:
    """What is seen of a picture with transparent parts on white paper."""
    rgba = picture.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(paper, rgba).convert("RGB"))
