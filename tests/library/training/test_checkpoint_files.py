"""Checkpoints: what is read is what was written, or an error says what happened."""

import errno
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxvae import VAE, Constant, StandardNormal, init_state, nn
from jaxvae.checks import is_key
from jaxvae.pytrees import paths
from jaxvae.training import (
    CheckpointError,
    CorruptCheckpointError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from tests.common import programs_compiled


def tree():
    return {
        "weight": jnp.arange(6.0).reshape(2, 3),
        "half": jnp.array([1.5, -jnp.inf], jnp.bfloat16),
        "count": jnp.array(7, jnp.int32),
        "mask": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "number": 0.1,
        "numpy": np.array([1.0, np.nan]),
        "pixels": np.arange(5, dtype=np.uint8),
    }


def same(a, b):
    if is_key(a):
        assert a.dtype == b.dtype
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert type(a) is type(b)
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_every_kind_of_leaf_comes_back_bit_by_bit(tmp_path):
    path, saved = tmp_path / "a.ckpt", tree()
    saved["pixels"] = jnp.asarray(saved["pixels"])
    save_checkpoint(path, saved, info={"epoch": 3})
    found = load_checkpoint(path, jax.tree.map(lambda x: x, saved))
    jax.tree.map(same, saved, found)
    assert read_checkpoint(path).info == {"epoch": 3}
    assert read_checkpoint(path, leaves=False) == ({}, {"epoch": 3})


def test_reading_compiles_nothing(tmp_path):
    """The metrics of a run have another length at every start."""
    save_checkpoint(
        tmp_path / "a.ckpt", {"loss": np.zeros(12_347, np.float32), "key": tree()["key"]}
    )
    assert programs_compiled(lambda: read_checkpoint(tmp_path / "a.ckpt")) == 0


@pytest.mark.usefixtures("x64")
def test_doubles_come_back(tmp_path):
    save_checkpoint(tmp_path / "a", jnp.array([0.1, 0.2]))
    same(load_checkpoint(tmp_path / "a", jnp.zeros(2)), jnp.array([0.1, 0.2]))


def test_a_state_of_networks_comes_back(tmp_path):
    def state(seed):
        rngs = nnx.Rngs(seed)
        parts = [
            nn.Conditional(nn.MLP, head, n, m, rngs=rngs)
            for head, n, m in ((nn.NormalHead(), (3,), (2,)), (nn.NormalHead(0.1), (2,), (3,)))
        ]
        model = VAE(parts[0], parts[1], StandardNormal((2,)))
        return init_state(model, optax.adam(1e-3))

    save_checkpoint(tmp_path / "a", state(0))
    found = load_checkpoint(tmp_path / "a", state(1))
    jax.tree.map(same, found, state(0))


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_no_byte_can_change_unnoticed(tmp_path, bit):
    """Each byte in turn: the magic, the header's length, the header, the leaves."""
    path = tmp_path / "a"
    save_checkpoint(path, {"a": jnp.ones(3), "key": jax.random.key(0)}, info={"note": "é"})
    whole = path.read_bytes()
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError, match="a is damaged"):
            read_checkpoint(path)


def test_another_constant_is_refused(tmp_path):
    def made(value):
        return {"p": Constant({"loc": jnp.full(3, value)}), "w": jnp.ones(2) * value}

    path = tmp_path / "a.ckpt"
    save_checkpoint(path, made(1.0))
    found = load_checkpoint(path, made(1.0) | {"w": jnp.zeros(2)})
    assert found["p"] == made(1.0)["p"]
    same(found["w"], made(1.0)["w"])
    for other in (made(2.0)["p"], None, Constant({"scale": 1.0})):
        with pytest.raises(CheckpointError, match=r"at \['p'\]\.value.* the Constant held "):
            load_checkpoint(path, {"p": other, "w": jnp.ones(2)})


class Odd:
    """Of no array's kind, and with an attribute of one."""

    dtype = "mine"

    def __len__(self):
        raise AssertionError("it was looked into")


def test_a_constant_of_whatever_is_no_hindrance(tmp_path):
    held = (Odd(), np.float32, max, np.array(["a"]), np.arange(3.0), 2)
    tree = {"c": Constant(held), "w": jnp.ones(2)}
    save_checkpoint(tmp_path / "a.ckpt", tree)
    found = load_checkpoint(tmp_path / "a.ckpt", tree)
    same(found["w"], tree["w"])
    other = tree | {"c": Constant((*held[:-1], 3))}
    with pytest.raises(CheckpointError, match=r"the Constant held int64\[\], checksum"):
        load_checkpoint(tmp_path / "a.ckpt", other)


def test_no_part_can_be_missing_unnoticed(tmp_path):
    path = tmp_path / "a"
    save_checkpoint(path, {"a": jnp.ones(3)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptCheckpointError):
            read_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CorruptCheckpointError, match="goes on"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"a": jnp.zeros(3)}, r"at \['b'\] it holds float32\[2\], wanted nothing"),
        (
            {"a": jnp.zeros(3), "b": jnp.zeros(2), "c": 1.0},
            r"\['c'\] it holds nothing, wanted float64\[\]",
        ),
        ({"a": jnp.zeros((1, 3)), "b": jnp.zeros(2)}, r"\['a'\] it holds float32\[3\], wanted fl"),
        ({"a": jnp.zeros(3, jnp.int32), "b": jnp.zeros(2)}, r"wanted int32\[3\]; build what was"),
        ({"a": jax.random.key(0), "b": jnp.zeros(2)}, r"wanted key<"),
    ],
)
def test_another_tree_is_refused_at_its_first_path(tmp_path, wanted, expected):
    save_checkpoint(tmp_path / "a", {"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "a", wanted)


@pytest.mark.parametrize("leaf", ["text", lambda x: x, np.array(["text"]), np.array([object()])])
def test_what_is_no_array_is_refused(tmp_path, leaf):
    with pytest.raises(TypeError, match=r"\['leaf'\] is a .*, expected an array"):
        save_checkpoint(tmp_path / "a", {"leaf": leaf})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The kernel refuses to write behind a limit, as it would on a disk that is full."""
    path = tmp_path / "a"
    save_checkpoint(path, {"a": jnp.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match=f"a can't be written: {os.strerror(27)}"):
            save_checkpoint(path, {"a": jnp.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    same(load_checkpoint(path, {"a": jnp.zeros(3)})["a"], jnp.ones(3))


def test_a_disk_that_fails_at_the_last_moment_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    save_checkpoint(path, {"a": jnp.ones(3)})

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(path, {"a": jnp.zeros(3)})
    assert list(tmp_path.iterdir()) == [path]
    same(load_checkpoint(path, {"a": jnp.zeros(3)})["a"], jnp.ones(3))


def test_a_folder_that_is_gone_is_named(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="gone/a can't be written: No such file"):
        save_checkpoint(folder / "a", jnp.ones(3))
    with pytest.raises(CheckpointError, match="gone/a can't be read: No such file"):
        load_checkpoint(folder / "a", jnp.ones(3))


def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(CorruptCheckpointError, match="no checkpoint: it begins with"):
        read_checkpoint(tmp_path / "a.npy")


def test_paths_are_in_the_order_of_leaves():
    assert list(paths({"b": 1, "a": [2, 3]}).values()) == jax.tree.leaves({"b": 1, "a": [2, 3]})
