"""The published files of the data sets: found in a folder, verified, decoded to arrays.

Only `read_files` touches the disk, and it only reads. The rest are pure functions of bytes.
"""

import gzip
import hashlib
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.specs import DataError, Split

# Of the files once uncompressed, so that they may come with or without .gz.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# Debian's package dropped names and times from the gzip headers of Fashion-MNIST; these are they.
FASHION_TIMES = {"train": 0x59A7E9DE, "t10k": 0x59A7E9F3}
# Larochelle's three text files, pickled by others as three pairs (images, labels).
PICKLE = "static_mnist.pkl.gz"
PICKLE_MD5 = "4f0362b8856a43c38eda5753616babaf"
AMAT = {
    "train": "binarized_mnist_train.amat",
    "validation": "binarized_mnist_valid.amat",
    "test": "binarized_mnist_test.amat",
}


def read_files(name: str, folder: Path, sha256: Mapping[str, str]) -> dict[str, bytes]:
    """Returns {file name: contents} of the published files of `name`, verified.

    Args:
        name: mnist (IDX, with or without .gz), fashion_mnist (IDX .gz, as published or as in
            Debian's package) or binarized_mnist (.amat, or `PICKLE`).
        folder: where they are.
        sha256: {file name: checksum} of the files as published; for mnist `MNIST_MD5` serves.

    Raises:
        DataError: a file is missing, cannot be read, is truncated or has another checksum.
    """
    if not folder.is_dir():
        raise DataError(f"no such directory: {folder}")
    if name == "mnist":
        return {stem: _read_mnist(folder, stem) for stem in MNIST_MD5}
    pickled = folder / PICKLE
    needed = ", ".join(sha256) + (f"; or {PICKLE}" if name == "binarized_mnist" else "")
    if name == "binarized_mnist" and pickled.exists():
        data = _read(pickled, needed)
        _verify(pickled, hashlib.md5(data).hexdigest(), PICKLE_MD5, "md5")  # before unpickling
        return amat_files(data)
    files = {}
    for filename, expected in sha256.items():
        data = _read(folder / filename, needed)
        if name == "fashion_mnist":
            time = FASHION_TIMES[filename.split("-")[0]]
            restored = restore_gzip_header(data, filename.removesuffix(".gz"), time)
            data = restored if hashlib.sha256(restored).hexdigest() == expected else data
        _verify(folder / filename, hashlib.sha256(data).hexdigest(), expected, "sha256")
        files[filename] = data
    return files


def restore_gzip_header(data: bytes, name: str, time: int) -> bytes:
    """Returns gzip `data` with `name` and `time` put back in a header that has neither.

    RFC 1952: magic, method 8, flags, four bytes of time, two of level and system, then, where
    flag 8 is set, the name and a zero byte. `data` with any flag set is returned as it is.
    """
    if data[:4] != b"\x1f\x8b\x08\x00":
        return data
    header = b"\x1f\x8b\x08\x08" + time.to_bytes(4, "little") + data[8:10]
    return header + name.encode() + b"\0" + data[10:]


def decode(files: Mapping[str, bytes]) -> dict[str, Split]:
    """Returns {split: Split} of IDX files, gzipped or not, or of .amat files."""
    if AMAT["train"] in files:
        return {split: Split(read_amat(files[name]), None) for split, name in AMAT.items()}
    arrays = {key.removesuffix(".gz"): read_idx(_gunzip(data)) for key, data in files.items()}
    return {
        split: Split(
            arrays[f"{prefix}-images-idx3-ubyte"][..., None],
            arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int32),
        )
        for split, prefix in {"train": "train", "test": "t10k"}.items()
    }


def read_idx(data: bytes) -> np.ndarray:
    """Returns the uint8 array in an IDX file: 0, 0, type 8, rank, big-endian sizes, values."""
    if data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_amat(data: bytes) -> np.ndarray:
    """Returns uint8 [N, 28, 28, 1] of lines of 784 digits "0" or "1", one separator after each."""
    pixels = np.frombuffer(data, np.uint8)[::2] - ord("0")
    if pixels.max() > 1:
        raise ValueError("not a text of single digits 0 and 1")
    return pixels.reshape(-1, 28, 28, 1)


def amat_files(pickled: bytes) -> dict[str, bytes]:
    """Returns Larochelle's text files, byte for byte, from the (trusted!) gzipped pickle.

    The labels beside the images do not belong to them and are dropped.
    """
    pairs = pickle.loads(gzip.decompress(pickled), encoding="latin1")
    files = {}
    for name, (images, _) in zip(AMAT.values(), pairs, strict=True):
        text = np.full((*images.shape, 2), ord(" "), np.uint8)
        text[..., 0] = images + ord("0")
        text[:, -1, 1] = ord("\n")
        files[name] = text.tobytes()
    return files


def omniglot_examples(zipped: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields TFDS's (key, example) for each drawing in one of Omniglot's zip files."""
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        for path in archive.namelist():
            found = re.fullmatch(r"[^/]+/([^/]+)/character(\d+)/((\d+)_\d+\.png)", path)
            if found:
                alphabet, character, image, label = found.groups()
                yield (
                    f"{alphabet}_{int(character) - 1}_{image}",
                    {
                        "image": archive.read(path),
                        "alphabet": alphabet,
                        "alphabet_char_id": int(character) - 1,
                        "label": int(label) - 1,
                    },
                )


def _read_mnist(folder: Path, stem: str) -> bytes:
    gzipped = folder / f"{stem}.gz"
    path = gzipped if gzipped.exists() else folder / stem
    try:
        data = _gunzip(_read(path, ", ".join(MNIST_MD5) + ", each with or without .gz"))
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): fetch it again") from error
    _verify(path, hashlib.md5(data).hexdigest(), MNIST_MD5[stem], "md5 once uncompressed")
    return data


def _gunzip(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _read(path: Path, needed: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; needed are {needed}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _verify(path: Path, got: str, expected: str, what: str) -> None:
    if got != expected:
        raise DataError(f"{path} has the wrong {what}: got {got}, expected {expected}")
