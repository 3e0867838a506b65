"""Data that are no array: lists, loaders, generators, sparse rows and functions of a key."""

import ast
import random
import subprocess
import sys
import threading
import time
from functools import cache, partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

from jaxvae import Checkpoints, fit, init_state, train_step
from jaxvae.training import (
    CheckpointError,
    NonFiniteError,
    checkpoint_files,
    epoch_order,
    read_checkpoint,
    sparse_rows,
)
from jaxvae.training.places import as_it_was, as_literals

grain: Any = pytest.importorskip("grain")


def near(model, key, x, *, beta=1.0):
    """A cheap objective: noise, and a minimum."""
    noise = 0.1 * jax.random.normal(key, model.shape, model.dtype)
    return -beta * jnp.sum((x - model - noise) ** 2), None


STEP = train_step(near, optax.adam(1e-2))
ROWS = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)
KEY = jax.random.key(1)


@cache
def start():
    return init_state(jnp.zeros(3), optax.adam(1e-2))


def batches(n=4, rows=ROWS):
    """Five of four rows, and one of two."""
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def run(data, folder=None, *, stop_at=None, **changes):
    """In calls of two steps; raises behind step `stop_at`, which was not saved."""

    def callback(state, metrics, *_):
        if stop_at is not None and int(state.step) > stop_at:
            raise KeyboardInterrupt

    settings = {"epochs": 3, "steps_per_call": 2, "callbacks": [callback]} | changes
    if folder is not None:
        settings["checkpoints"] = Checkpoints(folder, share=np.inf)
    return fit(STEP, start(), KEY, data, **settings)


def same(a, b):
    """To the last bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


class Loader:
    """As PyTorch's: any number of passes, each of lists or tuples of tensors."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)


class Tensor:
    """An array that only NumPy understands."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Shuffled:
    """An iterator that draws its batches with a generator of its own, and knows its state."""

    def __init__(self, length=None):
        self.rng, self.length, self.given = np.random.default_rng(3), length, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.length:
            raise StopIteration
        self.given += 1
        return ROWS[self.rng.integers(0, len(ROWS), 4)]

    def get_state(self) -> Any:
        return self.rng.bit_generator.state, self.given

    def set_state(self, state):
        self.rng.bit_generator.state, self.given = state


class OfArrays(Shuffled):
    """The state of its generator holds an array, as that of torchdata's loaders a tensor."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.Generator(np.random.MT19937(3))


class Stateful:
    """As torchdata's and Hugging Face's: the loader says where its iterator stands, which begins
    with the first batch; until then the state is that of the end of the last pass."""

    def __init__(self):
        self.order, self.at, self.passes, self.resumed = np.arange(22), 0, 0, False

    def __iter__(self):
        if not self.resumed:
            self.order = np.random.default_rng(self.passes).permutation(22)
            self.at, self.passes = 0, self.passes + 1
        self.resumed = False
        while self.at < 20:
            self.at += 4
            yield ROWS[self.order[self.at - 4 : self.at]]

    def state_dict(self):
        return {"order": self.order.tolist(), "at": self.at, "passes": self.passes}

    def load_state_dict(self, state):
        self.order, self.resumed = np.array(state["order"]), state["passes"] > 0
        self.at, self.passes = state["at"], state["passes"]


class Told:
    """As Hugging Face's: they shuffle by the number of the pass that they are told, and go on from
    a state whenever they are iterated in the pass that it is of."""

    def __init__(self):
        self.epoch, self.start = 0, {"epoch": -1, "at": 0}
        self.now = dict(self.start)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        goes_on = self.start["epoch"] == self.epoch
        self.now = dict(self.start) if goes_on else {"epoch": self.epoch, "at": 0}
        order = np.random.default_rng(self.epoch).permutation(22)
        while self.now["at"] < 20:
            self.now["at"] += 4
            yield ROWS[order[self.now["at"] - 4 : self.now["at"]]]

    def state_dict(self):
        return dict(self.now)

    def load_state_dict(self, state):
        self.start = state


def grain_map():
    return grain.MapDataset.source(list(ROWS)).shuffle(seed=3).batch(4)


def grain_endless():
    return grain.MapDataset.source(list(ROWS)).seed(3).shuffle().repeat()


def grain_iter(data=None):
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return (data or grain_map()).to_iter_dataset(options)


def grain_loader():
    sampler = grain.samplers.IndexSampler(22, shuffle=True, seed=3, num_epochs=1)
    return grain.DataLoader(
        data_source=list(ROWS), sampler=sampler, operations=[grain.transforms.Batch(4)]
    )


def draw(key):
    return 2.0 + jax.random.normal(key, (4, 3))


# what the batches are the same of: (data, how the run differs)
SOURCES = {
    "list": (batches, {}),
    "list, epochs of its own": (batches, {"steps_per_epoch": 5}),
    "iterator": (Shuffled, {"steps_per_epoch": 5}),
    "iterator, its state of arrays": (OfArrays, {"steps_per_epoch": 5}),
    "iterator with an end": (partial(Shuffled, 15), {"epochs": 1}),
    "loader": (Stateful, {}),
    "told the pass": (Told, {}),
    "told the pass, epochs of its own": (Told, {"steps_per_epoch": 6}),
    "Grain map": (grain_map, {}),
    "Grain without end": (lambda: grain_iter(grain_endless()).batch(4), {"steps_per_epoch": 5}),
    "Grain iter": (grain_iter, {}),
    "Grain loader": (grain_loader, {}),
    "function of a key": (lambda: draw, {"steps_per_epoch": 5}),
    "sparse": (lambda: scipy.sparse.csr_array(ROWS), {"batch_size": 4}),
}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t for t in threading.enumerate() if t.name == "jaxvae data"]


@pytest.mark.thorough
def test_batches_train_as_the_arrays_they_are_of():
    """The rows of each shuffle, given as a list of batches, to the last bit."""
    arrays = run(ROWS, batch_size=4)
    orders = np.concatenate([epoch_order(KEY, epoch, 22, 4) for epoch in range(3)])
    assert same(arrays, run([ROWS[rows] for rows in orders], epochs=1))
    # and whatever the length of a call
    assert same(
        arrays, run((lambda: (ROWS[rows] for rows in orders))(), epochs=1, steps_per_call=7)
    )
    assert same(arrays, run([ROWS[rows] for rows in orders], epochs=1, steps_per_call=None))


def pairs_run(data, **changes):
    def step(state, key, xs, **hyper):
        xs = xs["x"] if isinstance(xs, dict) else xs[0]
        return STEP(state, key, xs, **hyper)

    return fit(step, start(), KEY, data, epochs=2, steps_per_call=2, **changes)


def test_batches_come_in_many_forms():
    expected = run(batches()[:5], epochs=2)

    def generate():
        yield from batches()[:5]

    for data in (
        generate,
        Loader(batches()[:5]),
        Loader([Tensor(b) for b in batches()[:5]]),
        Loader([b.tolist() for b in batches()[:5]]),
        Loader([b.astype(np.float64) for b in batches()[:5]]),
        Loader([scipy.sparse.csr_array(b) for b in batches()[:5]]),
        Loader([jnp.asarray(b) for b in batches()[:5]]),
    ):
        assert same(expected, run(data, epochs=2))
    for data in (
        Loader([[Tensor(b), Tensor(b)] for b in batches()[:5]]),  # of one shape: no rows of a list
        Loader([{"x": b.tolist(), "y": [1] * len(b)} for b in batches()[:5]]),
        Loader([{"x": b, "y": None} for b in batches()[:5]]),
    ):
        assert same(expected, pairs_run(data))


@pytest.mark.thorough
def test_floats_of_64_bits_stay_so(x64):
    rows = ROWS[:20].astype(np.float64)
    wide = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64) if a.dtype == jnp.float32 else a, start()
    )
    states = [
        fit(STEP, wide, KEY, [rows[r] for r in epoch_order(KEY, 0, 20, 4)], epochs=1),
        fit(STEP, wide, KEY, rows, epochs=1, batch_size=4),
    ]
    assert states[0][1]["loss"].dtype == np.float64
    assert same(*states)


def test_a_short_last_batch_is_a_step_of_its_own():
    """Uneven batches give what the step gives for each; the call is cut where they change."""
    data = [ROWS[:4], ROWS[4:6], ROWS[6:10], ROWS[10:14], ROWS[14:16]]
    state, history = run(data, epochs=1, steps_per_call=3)
    expected, step = start(), jax.jit(STEP)
    for i, batch in enumerate(data):
        expected, metrics = step(expected, KEY, batch)
        np.testing.assert_allclose(history["loss"][i], metrics["loss"], rtol=1e-6)
    assert int(state.step) == 5
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_batches_of_many_lengths_are_told_once():
    data = [ROWS[:n] for n in (2, 3, 4, 5, 6, 7)]
    with pytest.warns(UserWarning, match=r"compiled for each number; make them alike") as told:
        run(data, epochs=1, steps_per_call=1)
    assert len(told) == 1


LIKE_OTHERS = {
    "list, epochs of its own",
    "iterator, its state of arrays",
    "told the pass, epochs of its own",
    "Grain without end",
    "Grain iter",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.thorough if n in LIKE_OTHERS else ()) for n in SOURCES],
)
def test_a_run_goes_on_to_the_same_bits(tmp_path, name):
    """Stopped inside an epoch, inside a call and at an epoch's end; nothing is told."""
    make, how = SOURCES[name]
    whole = run(make(), **how)
    for stop_at in (0, 3, 5, 12):
        folder = tmp_path / str(stop_at)
        with pytest.raises(KeyboardInterrupt):
            run(make(), folder, stop_at=stop_at, **how)
        assert same(whole, run(make(), folder, **how))
        assert same(whole, run(make(), folder, **how))  # and once it is done, does nothing


class Spoiled(list):
    """Batches, of which the one that is read as number `at`, over all passes, holds no numbers."""

    def __init__(self, items, at=None):
        super().__init__(items)
        self.at, self.reads = at, 0

    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i) * (np.float32(np.nan) if self.reads - 1 == self.at else 1)


@pytest.mark.thorough
@pytest.mark.parametrize("at", [3, 5, 7, 11])
def test_a_call_of_two_passes_that_ends_inside_goes_on_to_the_same_bits(tmp_path, at):
    """At a number that is not finite, before the end of a pass and behind it; data were mended."""
    five, how = batches()[:5], {"steps_per_epoch": 8, "steps_per_call": 8, "epochs": 2}
    whole = run(Spoiled(five), **how)
    with pytest.raises(NonFiniteError):
        run(Spoiled(five, at), tmp_path, **how)
    assert same(whole, run(Spoiled(five), tmp_path, **how))


def test_more_epochs_go_on_and_fewer_are_answered_with_fewer(tmp_path):
    two, three = run(grain_map(), epochs=2), run(grain_map(), epochs=3)
    assert same(two, run(grain_map(), tmp_path, epochs=2))
    assert same(three, run(grain_map(), tmp_path, epochs=3))
    assert same(two, run(grain_map(), tmp_path, epochs=2))


def test_what_can_not_tell_where_it_stands_goes_on_from_the_epoch(tmp_path):
    loader = Loader(batches()[:5])
    told = r"data can't say where they stand .* goes on from the start of its epoch"
    with pytest.warns(UserWarning, match=told) as once, pytest.raises(KeyboardInterrupt):
        run(loader, tmp_path, stop_at=7)  # the third step of the second epoch
    assert len(once) == 1
    assert once[0].filename == __file__  # the user's line
    seen = []
    again = r"from the start of epoch 1: its first 2 batches are given again, and the run has so"
    with pytest.warns(UserWarning, match=told), pytest.warns(UserWarning, match=again):
        state, history = run(
            loader, tmp_path, callbacks=[lambda state, _, epoch, __: seen.append((state, epoch))]
        )
    assert (int(seen[0][0].step), seen[0][1]) == (7, 1.4)
    assert [epoch for _, epoch in seen[1:4]] == [1.4, 1.8, 2.0]
    assert int(state.step) == 7 + 5 + 5
    # as if the second epoch had been of two batches more
    again = [*batches()[:5], *batches()[:2], *batches()[:5], *batches()[:5]]
    assert same(run(again, epochs=1), (state, history))


@pytest.mark.parametrize("kind", ["loader", "passes", "one pass"])
def test_a_stream_read_on_and_on_goes_on_behind_its_epochs(tmp_path, kind):
    """Without a state: what the epochs before had is drawn again, and dropped."""
    items = batches()[:5]  # in epochs of 3, so that one begins within a pass

    def generator():
        yield from items * (1 if kind == "passes" else 10)

    data = Loader(items) if kind == "loader" else generator
    whole = run(data, steps_per_epoch=3)
    told = "data can't say where they stand"
    with pytest.warns(UserWarning, match=told), pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, steps_per_epoch=3, stop_at=6)  # saved behind the second epoch
    with pytest.warns(UserWarning, match=told):
        assert same(run(data, tmp_path, steps_per_epoch=3), whole)


def test_an_iterator_is_read_on_from_wherever_it_is(tmp_path):
    def generator():
        for i in range(20):
            yield np.full((4, 3), i, np.float32)

    stream, told = generator(), "data can't say where they stand"
    settings = {"steps_per_epoch": 3, "steps_per_call": 3}
    for epochs in (2, 4):
        with pytest.warns(UserWarning, match=told):
            run(stream, tmp_path, epochs=epochs, **settings)
    assert float(next(stream)[0, 0]) < 15  # twelve, and what was read ahead


def test_simulated_data_and_callbacks_have_noise_of_their_own():
    drawn, seen = [], []

    def data(key):
        return jax.random.normal(jax.random.split(key)[0], (4, 3))

    def callback(state, metrics, epoch, key):
        drawn.append(np.asarray(jax.random.normal(key, (4, 3))))

    def looks(model, key, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return near(model, key, x)

    step = train_step(looks, optax.sgd(0.1))
    state = init_state(jnp.zeros(3), optax.sgd(0.1))
    fit(step, state, KEY, data, epochs=3, steps_per_epoch=1, callbacks=[callback])
    jax.effects_barrier()
    assert len(seen) == 3 * 4
    assert not np.isin(np.stack(drawn).round(5), np.stack(seen).round(5)).any()


def test_another_stream_does_not_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(batches(), tmp_path, stop_at=3)
    for other, why in [
        ({"data": batches(5)}, r"batch is float32\[4, 3\] there and float32\[5, 3\] here"),
        ({"data": grain_map()}, "data is list there and BatchMapDataset here"),
        ({"data": batches(), "steps_per_epoch": 5}, "steps_per_epoch is None there and 5 here"),
        ({"data": draw, "steps_per_epoch": 5}, "there and"),
        ({"data": ROWS, "batch_size": 4}, "there and"),
        ({"data": batches(), "beta": optax.linear_schedule(0.0, 1.0, 3)}, "there and"),
    ]:
        with pytest.raises(CheckpointError, match=f"is of another run: .*{why}"):
            run(folder=tmp_path, **other)


def test_another_function_of_a_key_does_not_go_on(tmp_path):
    run(draw, tmp_path, steps_per_epoch=5, epochs=1)
    with pytest.raises(CheckpointError, match=r"is of another run: data is"):
        run(lambda key: 1.0 + draw(key), tmp_path, steps_per_epoch=5, epochs=1)


def test_a_state_that_can_not_be_kept_is_known_before_the_first_step(tmp_path):
    class Odd(Shuffled):
        def get_state(self) -> Any:
            return {"rng": self.rng}

    seen = []
    with pytest.raises(CheckpointError, match=r"where data stand can't be kept: .*Generator"):
        run(Odd(), tmp_path, steps_per_epoch=5, callbacks=[lambda *_: seen.append(1)])
    assert not seen


def test_arrays_and_tensors_of_a_state_are_made_again(monkeypatch):
    class Tensor:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.array, dtype)

    Tensor.__module__ = "torch"
    torch: Any = ModuleType("torch")
    torch.from_numpy = Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    state = {"a": Tensor(np.arange(3, dtype=np.uint8)), "b": [(np.ones((2, 1)), None, 1.5, b"x")]}
    found = as_it_was(ast.literal_eval(repr(as_literals(state))))
    assert isinstance(found["a"], Tensor)
    np.testing.assert_array_equal(np.asarray(found["a"]), [0, 1, 2])
    array, *others = found["b"][0]
    assert array.dtype == np.float64
    assert array.shape == (2, 1)
    assert array.flags.writeable
    assert others == [None, 1.5, b"x"]


def test_an_iterator_that_ends_early_is_told_once():
    with pytest.warns(
        UserWarning, match=r"ended before epoch 1 of 3 was done; an iterator"
    ) as told:
        state, history = run(iter(batches()))
    assert len(told) == 1
    assert int(state.step) == len(history["loss"]) == 6
    with pytest.warns(UserWarning, match=r"ended before epoch 1 of 3 was done"):
        state, _ = run(iter(batches()), steps_per_epoch=4)
    assert int(state.step) == 6


def test_passes_follow_one_another_where_an_epoch_has_so_many_steps():
    assert int(run(Loader(batches()[:5]), steps_per_epoch=4)[0].step) == 12
    assert same(
        run(Loader(batches()[:5]), steps_per_epoch=4),
        run([*batches()[:5], *batches()[:5], *batches()[:2]], epochs=1),
    )


def test_data_are_told_the_number_of_each_pass():
    """And one that can't say where it stands goes on in the pass of its epoch."""
    passes = [
        ROWS[np.random.default_rng(epoch).permutation(22)[i : i + 4]]
        for epoch in range(3)
        for i in range(0, 20, 4)
    ]
    assert same(run(Told()), run(passes, epochs=1, steps_per_epoch=15))


@pytest.mark.parametrize("ended", [None, 7])
def test_whole_passes_are_counted_where_nobody_knows_their_length(tmp_path, ended):
    """Of a generator function, and of one that goes on."""

    def generator():
        yield from batches()[:5]

    seen, told = [], "data can't say where they stand|are given again"
    if ended:
        with pytest.warns(UserWarning, match=told), pytest.raises(KeyboardInterrupt):
            run(generator, tmp_path, stop_at=ended)
        with pytest.warns(UserWarning, match=told):
            run(generator, tmp_path, callbacks=[lambda s, m, epoch, k: seen.append(epoch)])
        assert seen == [1, 1, 1, 2, 2, 2, 3]
    else:
        run(generator, callbacks=[lambda s, m, epoch, k: seen.append(epoch)])
        assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_an_epoch_ends_a_call():
    seen = []
    run(batches()[:5], callbacks=[lambda state, *_: seen.append(int(state.step))])
    assert seen == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    seen = []
    run(draw, steps_per_epoch=3, callbacks=[lambda state, *_: seen.append(int(state.step))])
    assert seen == [2, 3, 5, 6, 8, 9]


def test_a_schedule_sees_every_step():
    beta = optax.linear_schedule(0.0, 1.0, 12)
    _, history = run(Loader(batches()[:5]), beta=beta)
    np.testing.assert_allclose(history["beta"], np.minimum(np.arange(15) / 12, 1.0), rtol=1e-6)
    with pytest.warns(UserWarning, match="beta rises to 1, but only"):
        run(Loader(batches()[:5]), beta=optax.linear_schedule(0.0, 1.0, 30))


def test_a_function_of_a_key_draws_new_data_every_step():
    """Each step's own, under the run's key, and the same whatever the length of a call."""

    def step(state, key, xs, **_: Any) -> Any:
        return state._replace(step=state.step + 1), {"loss": xs.sum(), "last": xs[-1, -1]}

    call = partial(fit, step, start(), KEY, draw, epochs=2, steps_per_epoch=5)
    _, history = call()
    assert len({*history["loss"].tolist()}) == 10
    assert same(history, call(steps_per_call=1)[1])
    # with parameters, which are no constants of the program
    scaled = jax.tree_util.Partial(lambda scale, key: scale * draw(key), jnp.array(2.0))
    found = fit(step, start(), KEY, scaled, epochs=2, steps_per_epoch=5)[1]
    np.testing.assert_allclose(found["loss"], 2.0 * history["loss"], rtol=1e-5)


@pytest.mark.parametrize("form", ["csr_array", "csr_matrix", "coo_array", "csc_array"])
def test_sparse_rows_train_as_the_dense_ones(form):
    dense = np.where(ROWS > 0.3, ROWS, 0)
    dense[3] = 0
    rows = getattr(scipy.sparse, form)(dense)
    assert same(run(dense, batch_size=4), run(rows, batch_size=4))


def test_sparse_rows_may_stand_beside_arrays():
    dense = np.where(ROWS > 0.3, ROWS, 0)
    data = {"x": scipy.sparse.csr_array(dense), "y": np.arange(22)}
    found = pairs_run(data, batch_size=4)
    assert same(found, pairs_run({"x": dense, "y": np.arange(22)}, batch_size=4))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, bool])
def test_sparse_rows_are_those_of_the_matrix(dtype):
    rng = np.random.default_rng(0)
    for dense in (rng.integers(0, 3, (6, 4)), np.zeros((6, 4)), np.eye(6), np.ones((6, 1))):
        dense = dense.astype(dtype)
        rows = sparse_rows(scipy.sparse.csr_array(dense))
        order = np.array([5, 0, 0, 3])
        found = rows.dense(jnp.asarray(order))
        assert found.dtype == dtype
        assert np.array_equal(found, dense[order])
    twice = scipy.sparse.csr_array((np.ones(3, np.float32), [1, 1, 0], [0, 2, 3]), shape=(2, 2))
    assert np.array_equal(sparse_rows(twice).dense(jnp.arange(2)), [[0, 2], [1, 0]])
    assert twice.nnz == 3  # is what it was


def test_an_error_of_the_source_is_one_line_that_says_where():
    def failing():
        yield from batches()[:3]
        raise OSError("cat.png is damaged\nand more")

    seen = []
    line = r"^fit: data failed at batch 3 of epoch 0 with OSError: cat.png is damaged$"
    with pytest.raises(RuntimeError, match=line) as error:
        run(failing, callbacks=[lambda state, *_: seen.append(int(state.step))])
    assert isinstance(error.value.__cause__, OSError)
    assert seen == [2]


BAD = {
    "text": ("a", r"batch 1 of epoch 0 is an array of <U1, expected an array of numbers"),
    "nothing": (None, r"batch 1 of epoch 0 is None, expected an array"),
    "a number": (1.0, r"batch 1 of epoch 0 has float64\[\], expected arrays of one number of rows"),
    "no rows": (ROWS[:0], r"batch 1 of epoch 0 has float32\[0, 3\], expected arrays of one number"),
    "rows that differ": (
        {"x": ROWS[:4], "y": ROWS[:3]},
        r"batch 1 of epoch 0 has float32\[4, 3\] at \['x'\], float32\[3, 3\] at \['y'\], expected",
    ),
    "ragged": ([[1.0, 2.0, 3.0], [1.0]], r"batch 1 of epoch 0 can't be made an array: .*inhomog"),
    "another width": (
        ROWS[:4, :2],
        r"batch 1 of epoch 0 has rows of float32\[2\], expected rows of float32\[3\] as in the",
    ),
    "another dtype": (
        ROWS[:4].astype(np.int32),
        r"batch 1 of epoch 0 has rows of int32\[3\], expected rows of float32\[3\]",
    ),
    "another structure": (
        {"x": ROWS[:4]},
        r"batch 1 of epoch 0 has .*, expected .*",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_batch_that_will_not_do_is_named(name):
    bad, line = BAD[name]
    with pytest.raises((TypeError, ValueError), match=f"^fit: {line}") as error:
        run(Loader([ROWS[:4], bad]))
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_named_by_batch_and_row(tmp_path):
    """The state before is saved with the place in the stream, from which a mended one goes on."""
    data = batches()[:5]
    spoiled = [b.copy() for b in data]
    spoiled[3][2] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"step 4: .*; first at row 2 of batch 3; the"
    ) as error:
        run(spoiled, tmp_path)
    assert int(error.value.state.step) == 3
    assert int(error.value.rows) == 3
    assert same(run(data), run(data, tmp_path))

    with pytest.raises(NonFiniteError, match=r"step 1: .*; first at row 1 of batch 0$"):
        run(lambda key: draw(key).at[1].set(jnp.nan), epochs=1, steps_per_epoch=4)


REFUSED = {
    "batch size of a list": ([*batches()], {"batch_size": 4}, r"^fit: data has leading axes"),
    "batch size of a loader": (
        Loader(batches()),
        {"batch_size": 5},
        r"batch_size is 5 and the first batch of data has 4 rows, expected the same; leave",
    ),
    "batch size of a function": (
        draw,
        {"batch_size": 5, "steps_per_epoch": 3},
        r"batch_size is 5 and data returned 4 rows, expected the same",
    ),
    "no steps of a function": (
        draw,
        {},
        r"data is a function, of a key, .*steps_per_epoch is None",
    ),
    "no batch size": (ROWS, {}, r"data are arrays, batch_size is None .*expected batch_size alone"),
    "steps of arrays": (
        ROWS,
        {"batch_size": 4, "steps_per_epoch": 3},
        r"steps_per_epoch 3, expect",
    ),
    "no end": (grain_endless().batch(4), {}, r"data have no end, expected steps_per_epoch"),
    "nothing": ([], {}, r"data gave no batch, expected at least one"),
    "an empty pass": (iter([]), {}, r"data gave no batch, expected at least one"),
    "a function of nothing": (
        lambda key: None,
        {"steps_per_epoch": 3},
        r"^fit: data\(key\) is None",
    ),
    "steps a call": (batches(), {"steps_per_call": 0}, r"steps_per_call is 0, expected an integer"),
    "steps an epoch": (draw, {"steps_per_epoch": 1.5}, r"steps_per_epoch is 1.5, expected an int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_contradicts_its_data_is_refused(name):
    data, how, line = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=line) as error:
        run(data, **how)
    assert "\n" not in str(error.value)


def test_a_source_that_is_empty_the_second_time_is_refused():
    class Once(Loader):
        def __iter__(self):
            items, self.items = self.items, []
            return iter(items)

    with pytest.raises(ValueError, match=r"fit: data gave no batch in epoch 1, expected at least"):
        run(Once(batches()))


def test_no_more_than_two_calls_are_made_ahead():
    """So that a stream larger than the memory never lies in it: one is trained on, one is on the
    device, one waits and one is made."""
    made, ahead = [], []

    def counted():
        for i in range(40):
            made.append(i)
            yield ROWS[:4]

    run(counted, epochs=1, callbacks=[lambda state, *_: ahead.append(len(made) - int(state.step))])
    assert max(ahead) <= 2 * 3 + 1


def test_a_matrix_that_is_not_sparse_is_refused():
    with pytest.raises(
        TypeError, match=r"^sparse_rows: matrix is a ndarray, expected one of scipy"
    ):
        sparse_rows(ROWS)
    with pytest.raises(ValueError, match=r"^sparse_rows: matrix has shape \(3,\) and 3 entries"):
        sparse_rows(scipy.sparse.coo_array(np.ones(3)))


SCRIPT = """
import sys, time
from tests.library.training.test_streams import SOURCES, run

def show(state, metrics, *_):
    print("step", int(state.step), flush=True)
    time.sleep(0.01)

make, how = SOURCES[sys.argv[1]]
how = {"steps_per_epoch": 5, **how} | {"epochs": 30}
run(make(), sys.argv[2], callbacks=[show], **how)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iterator", "loader", "Grain loader"])
def test_a_process_that_is_killed_goes_on_to_the_same_bits(tmp_path, name):
    """Ten kills at random moments of the training, each run going on from the last."""

    def process(folder):
        command = [sys.executable, "-c", SCRIPT, name, str(tmp_path / folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with process("alone") as alone:
        assert alone.communicate()[0].splitlines()[-1] == "step 150"
    chance, steps = random.Random(0), []
    for _ in range(10):
        with process("killed") as killed:
            assert killed.stdout is not None
            for _ in range(chance.randrange(2, 9)):
                steps.append(killed.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.02))
            killed.kill()
    assert all(steps)
    with process("killed") as last:
        assert last.wait() == 0
    files = [checkpoint_files(tmp_path / folder)[-1] for folder in ("alone", "killed")]
    alone, killed = (read_checkpoint(path).leaves for path in files)
    assert files[0].name == files[1].name == "step_0000000150.ckpt"
    assert alone.keys() == killed.keys()
    for path in alone.keys() - {"['key']"}:
        assert np.array_equal(alone[path], killed[path]), path
