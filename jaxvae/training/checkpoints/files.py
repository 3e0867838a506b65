"""A pytree in one file, of which no byte can change unnoticed and no half can be left behind.

    jaxvae checkpoint 1     a line: what it is, and the version of the format
    12 bytes                length and CRC-32 of the header, big-endian
    the header              JSON: versions, info, and path, dtype, shape and CRC-32 of every leaf,
                            and of what each `Constant` holds, the values of which are not stored
    the leaves' bytes       one after another

A reader finds the old file or the new one. CRC-32 sees every changed run of up to 32 bits.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Location, Tree, a_class_of, checked, is_key
from jaxvae.pytrees import constant_checksums, paths, shown
from jaxvae.training.checkpoints.durable import part_of, publish

MAGIC = b"jaxvae checkpoint 1\n"
LENGTH = struct.Struct(">QI")
KEY = "key:"


class CheckpointError(Exception):
    """A checkpoint can't be written or read, or is not of what is wanted; the message says why."""


class CorruptCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


@shown
class Stored(NamedTuple):
    """What a checkpoint holds: `leaves`, path -> array, and `info`, what was saved beside them."""

    leaves: dict[str, Any]
    info: dict[str, Any]


@checked
def save_checkpoint(path: Location, tree: Any, *, info: Mapping[str, Any] | None = None) -> None:
    """Write a pytree to a file: whole, or not at all.

    Args:
      path: the file; its folder must exist. A file of that name is replaced.
      tree: a pytree of arrays, numbers and PRNG keys, each whole on this process.
      info: what else to keep, anything that JSON holds.

    Raises:
      CheckpointError: the disk is full, the folder is gone or can't be written.
      TypeError: a leaf is no array, or lies on devices of other processes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "my.ckpt"
    >>> save_checkpoint(path, {"weight": jnp.ones(3)}, info={"epoch": 7})
    >>> read_checkpoint(path).leaves["['weight']"], read_checkpoint(path).info
    (Array([1., 1., 1.], dtype=float32), {'epoch': 7})
    """
    path = Path(path)
    leaves = [(p, *_as_bytes(p, leaf)) for p, leaf in paths(tree).items()]
    header = json.dumps(
        {
            "versions": {name: version_of(name) for name in ("jaxvae", "jax", "numpy")},
            "info": dict(info or {}),
            "constants": constant_checksums(tree),
            "leaves": [
                {"path": p, "dtype": dtype, "shape": shape, "crc32": zlib.crc32(data)}
                for p, dtype, shape, data in leaves
            ],
        }
    ).encode()
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(MAGIC + LENGTH.pack(len(header), zlib.crc32(header)) + header)
            for *_, data in leaves:
                file.write(data)
        publish(part, path)
    except OSError as error:
        with suppress(OSError):  # of a folder that is gone, or a broken disk
            part.unlink(missing_ok=True)
        raise CheckpointError(f"{path} can't be written: {error.strerror}") from None


@checked
def read_checkpoint(path: Location, *, leaves: bool = True) -> Stored:
    """All that a checkpoint holds, verified, without knowing of what it is.

    Args:
      path: a file that `save_checkpoint` wrote.
      leaves: whether to read these, or only `info`.

    Raises:
      CorruptCheckpointError: a byte is not what was written, or the file is cut off.
      CheckpointError: the file can't be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "my.ckpt"
    >>> save_checkpoint(path, {"weight": jnp.ones(3)}, info={"epoch": 7})
    >>> read_checkpoint(path, leaves=False).info
    {'epoch': 7}
    """
    found, header = read_with_header(Path(path), leaves=leaves)
    return Stored(found, header["info"])


def read_with_header(path: Path, *, leaves: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves by their paths, and the header, as the module's docstring has it."""
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
            found = {}
            for leaf in header["leaves"] if leaves else []:
                data = file.read(_size(leaf))
                if len(data) != _size(leaf):
                    raise CorruptCheckpointError(
                        f"{path} is damaged: it ends inside {leaf['path']}"
                    )
                if zlib.crc32(data) != leaf["crc32"]:
                    raise CorruptCheckpointError(
                        f"{path} is damaged: the bytes of {leaf['path']} have changed since they "
                        "were written"
                    )
                found[leaf["path"]] = _from_bytes(leaf, data)
            if leaves and file.read(1):
                raise CorruptCheckpointError(f"{path} is damaged: it goes on behind its last leaf")
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None
    return found, header


def restore(owner: Any, leaves: Mapping[str, Any], like: Tree, *, below: str = "") -> Any:
    """The pytree of `like` with the leaves that were stored below a path, which is `below`.

    A CheckpointError, which names `owner`, names the first path where the trees differ.
    """
    stored = {p[len(below) :]: leaf for p, leaf in leaves.items() if p.startswith(below)}
    wanted = paths(like)
    first = first_difference({p: describe(leaf) for p, leaf in stored.items()},
                             {p: describe(leaf) for p, leaf in wanted.items()})  # fmt: skip
    if first:
        path, there, here = first
        raise CheckpointError(
            f"{owner} is of another model or optimiser: at {path or 'the top'} it holds {there}, "
            f"wanted {here}; build what was saved, or start in another folder"
        )
    new = [type(w)(np.asarray(stored[p]).item()) if isinstance(w, (bool, int, float)) else stored[p]
           for p, w in wanted.items()]  # fmt: skip
    return jax.tree.unflatten(jax.tree.structure(like), new)


def refuse_other_constants(
    owner: Any, there: Mapping[str, str] | None, like: Tree, *, below: str = ""
) -> None:
    """Raise CheckpointError unless the `Constant`s of `like` hold what is recorded."""
    if there is None:
        return
    stored = {p[len(below) :]: text for p, text in there.items() if p.startswith(below)}
    if first := first_difference(stored, constant_checksums(like)):
        path, was, here = first
        raise CheckpointError(
            f"{owner} is of another model: at {path} the Constant held {was}, and here it holds "
            f"{here}; a checkpoint doesn't store Constants, so build the model with the same ones"
        )


def first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """The first path whose value differs, with both values ("nothing" where missing), or None."""
    for path in [*wanted, *stored]:
        there, here = stored.get(path, "nothing"), wanted.get(path, "nothing")
        if there != here:
            return path, there, here
    return None


def describe(leaf: Any) -> str:
    """Its dtype and shape, such as float32[3, 4]."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def _as_bytes(path: str, leaf: Any) -> tuple[str, tuple[int, ...], memoryview | bytes]:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise TypeError(
            f"save_checkpoint: {path} lies on devices of several processes, expected an array that "
            "is whole on this one; fit's Checkpoints save those too"
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)  # the same everywhere
    if is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return f"{KEY}{jax.random.key_impl(leaf)}:{data.dtype}", data.shape, data.tobytes()
    data = np.asarray(leaf)
    if data.dtype.hasobject or data.dtype.kind in "US":
        raise TypeError(
            f"save_checkpoint: {path} is {a_class_of(leaf)}, expected an array; wrap what is "
            "none in jaxvae.Constant or jax.tree_util.Partial"
        )
    data = data.astype(data.dtype.newbyteorder("="), copy=False)  # a name says nothing of the order
    return data.dtype.name, data.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


def _from_bytes(leaf: Mapping[str, Any], data: bytes) -> Any:
    *key, dtype = leaf["dtype"].rsplit(":", 1)
    array = np.frombuffer(data, jnp.dtype(dtype)).reshape(leaf["shape"])
    # device_put, as jnp.array compiles a program for every shape, and metrics have ever another
    put = partial(jax.device_put, may_alias=False)  # it is the caller's, who may donate it
    if not key:  # one of 64 bits stays NumPy's where JAX has none
        return put(array) if jax.dtypes.canonicalize_dtype(dtype) == dtype else array
    return jax.random.wrap_key_data(put(array), impl=key[0].removeprefix(KEY))


def _size(leaf: Mapping[str, Any]) -> int:
    dtype = leaf["dtype"].rsplit(":", 1)[-1]
    return int(np.prod(leaf["shape"], dtype=np.int64)) * jnp.dtype(dtype).itemsize


def _read_header(path: Path, file: Any) -> dict[str, Any]:
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise CorruptCheckpointError(
            f"{path} is damaged, or no checkpoint: it begins with {magic!r}"
        )
    length = file.read(LENGTH.size)
    size, checksum = LENGTH.unpack(length) if len(length) == LENGTH.size else (0, 1)
    header = file.read(size) if size <= path.stat().st_size else b""
    if zlib.crc32(header) != checksum:
        raise CorruptCheckpointError(
            f"{path} is damaged: its header has changed since it was written"
        )
    return json.loads(header)


@cache
def version_of(package: str) -> str:
    return import_module(package).__version__
