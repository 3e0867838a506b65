"""How much is computed together: what fits, found without running, and no number depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.evaluation import chunks

KIB = 1024


def layer(row):
    """256 floats a row, and more that are no row's, as weights."""
    return jnp.sum(jnp.tile(row, 64)) + jnp.sum(jnp.ones(600_000))


@pytest.fixture
def room(monkeypatch):
    def of(size):
        monkeypatch.setattr(chunks, "room", lambda: size)

    return of


@pytest.mark.parametrize(
    ("size", "expected"),
    [(8 * 20 * KIB, 20), (8 * 20 * KIB - 1, 19), (0, 8), (1 << 40, 90)],
    ids=["fits", "just not", "the fewest", "all rows"],
)
def test_the_largest_array_of_a_row_decides(room, size, expected):
    """Inside a call, a loop or a branch too; weights, which no row has of its own, don't count."""
    room(size)
    rows = np.zeros((90, 4), np.float32)

    def looped(row):
        return jax.lax.fori_loop(0, 3, lambda _, total: total + layer(row), 0.0)

    def branched(row):
        return jax.lax.cond(row[0] > 0, layer, jnp.sum, row)

    for one in (layer, jax.jit(layer), looped, branched):
        assert chunks.at_once(one, rows) == expected


def test_rows_may_be_trees_of_anything(room):
    room(8 * 16 * KIB)
    rows = {"key": jax.random.split(jax.random.key(0), 50), "x": jnp.ones((50, 2), jnp.bfloat16)}

    def one(row):
        return jnp.sum(jax.random.normal(row["key"], (128,))) + jnp.sum(row["x"]).astype(
            jnp.float32
        )

    assert chunks.at_once(one, rows) == 32  # of 128 floats, 512 bytes


def test_no_number_depends_on_it(room):
    rows = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    found = []
    for size in (0, 8 * 10 * KIB, 1 << 40):
        room(size)
        found.append(chunks.chunked(lambda row: jnp.tanh(row) * jnp.sum(row), rows))
    for values in found:
        assert np.allclose(values, np.tanh(rows) * rows.sum(1, keepdims=True), atol=1e-6)


def test_the_caches_are_those_that_linux_tells(tmp_path, monkeypatch):
    """The last level's, the part of the cores that the process may use; a default elsewhere."""
    monkeypatch.setattr(chunks.os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    for level, size, sharers in (
        (1, "32K", "3"),
        (3, "32768K", "00000000,0000ffff"),
        (2, "1M", "3"),
    ):
        folder = tmp_path / f"index{4 - level}"
        folder.mkdir()
        for name, text in (("level", level), ("size", size), ("shared_cpu_map", sharers)):
            (folder / name).write_text(f"{text}\n")
    assert chunks.caches(tmp_path) == 3 * 2 * KIB**2
    assert chunks.caches(tmp_path / "index2") == chunks.UNTOLD
    (tmp_path / "index1" / "size").write_text("large\n")
    assert chunks.caches.__wrapped__(tmp_path) == chunks.UNTOLD


def test_an_error_tells_of_the_shapes_of_one_row():
    """And never of how many rows are traced to know arrays by."""
    with pytest.raises(TypeError) as raised:
        jax.jit(lambda rows: chunks.chunked(lambda row: jnp.concatenate([row, row[0]]), rows))(
            np.zeros((90, 4), np.float32)
        )
    assert str(chunks.ROWS) not in str(raised.value)
    assert "(4,), ()" in str(raised.value)
