"""A pytree that several processes hold together: Orbax writes it, checksums of ours guard it.

Orbax restores a flipped byte without a word. So `checksums` beside its files, itself a checkpoint,
holds length and CRC-32 of each; it is written last, and no file is trusted without it.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

import jax

from jaxvae.checks import Tree, is_key
from jaxvae.pytrees import constant_checksums, paths
from jaxvae.training.checkpoints.files import (
    CheckpointError,
    CorruptCheckpointError,
    describe,
    first_difference,
    read_checkpoint,
    refuse_other_constants,
    save_checkpoint,
)


def is_sharded(tree: Tree) -> bool:
    """Whether some leaf is whole on no process."""
    return any(
        isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        for leaf in jax.tree.leaves(tree)
    )


def save_sharded(folder: Path, tree: Tree) -> None:
    """Write a pytree of arrays and PRNG keys into a folder of its own, which all processes see.

    Every process calls this. A folder that exists is replaced; CheckpointError if that can't be.
    """
    from jax.experimental import multihost_utils
    from orbax.checkpoint import StandardCheckpointer  # seconds that most never need

    folder = folder.absolute()
    leads = jax.process_index() == 0
    try:
        if leads:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        multihost_utils.sync_global_devices(f"before {folder}")
        with StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "arrays", _plain(tree))
        multihost_utils.sync_global_devices(f"behind {folder}")
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from None
    if leads:
        files = {str(f.relative_to(folder)): _checksum(f) for f in _files(folder)}
        leaves = {path: describe(leaf) for path, leaf in paths(tree).items()}
        info = {"files": files, "leaves": leaves, "constants": constant_checksums(tree)}
        save_checkpoint(folder / "checksums", {}, info=info)


def load_sharded(folder: Path, like: Tree) -> Any:
    """Read it back, every byte verified, each array laid out as in `like`, a pytree of arrays.

    Raises:
      CorruptCheckpointError: a file is not what was written.
      CheckpointError: it holds another tree, or can't be read.
    """
    from orbax.checkpoint import StandardCheckpointer

    folder = folder.absolute()
    info = read_checkpoint(folder / "checksums").info
    for name, expected in info["files"].items():
        if not (folder / name).exists() or _checksum(folder / name) != expected:
            raise CorruptCheckpointError(f"{folder} is damaged: {name} is not what was written")
    wanted = {path: describe(leaf) for path, leaf in paths(like).items()}
    if first := first_difference(info["leaves"], wanted):
        path, there, here = first
        raise CheckpointError(
            f"{folder} is of another model or optimiser: at {path} it holds {there}, wanted {here}"
        )
    refuse_other_constants(folder, info.get("constants"), like)
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        _plain(like),
    )
    with StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(folder / "arrays", targets)
    return jax.tree.map(
        lambda leaf, data: (
            jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)) if is_key(leaf) else data
        ),
        like,
        jax.tree.unflatten(jax.tree.structure(like), found),
    )


def _plain(tree: Tree) -> list[Any]:
    """The leaves, keys as the integers they are."""
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _checksum(file: Path) -> list[int]:
    """Length and CRC-32, a megabyte at a time."""
    size, checksum = 0, 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
