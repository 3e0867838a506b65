"""Plausible runs: sparse rows held out, callbacks that stop early, optimisers mixed up."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse

import jaxvae
from jaxvae import nn, training
from jaxvae.evaluation import use
from jaxvae.models import ppca

KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * (
    np.random.default_rng(1).random((40, 3)) < 0.5
)


def linear():
    return ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))


def run(xs: Any = XS, *, state: Any = None, optimizer=None, epochs: Any = 2, **options: Any):
    optimizer = optimizer or optax.sgd(1e-2)
    state = state or jaxvae.init_state(linear(), optimizer)
    step = jaxvae.train_step(jaxvae.elbo, optimizer)
    return jaxvae.fit(step, state, KEY, xs, epochs=epochs, batch_size=10, **options)


@pytest.mark.parametrize("sparse", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_rows_held_out_may_be_sparse(sparse):
    def losses(xs):
        look = training.validation(jaxvae.elbo, jax.random.key(1), xs, batch_size=8)
        return run(callbacks=[look])[1]["validation_loss"]

    np.testing.assert_allclose(losses(sparse(XS)), losses(XS), rtol=1e-6)
    np.testing.assert_allclose(losses(training.sparse_rows(sparse(XS))), losses(XS), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_sparse_rows_are_taken_as_those_of_an_array(dtype):
    dense = np.eye(300, dtype=np.float32)
    rows = training.sparse_rows(scipy.sparse.csr_array(dense))
    wanted = np.array([0, 127, 3] + [-1, -300 % 128 - 128] * (dtype != np.uint8), dtype)
    np.testing.assert_array_equal(rows.dense(jnp.asarray(wanted)), dense[wanted])
    most = np.array([np.iinfo(dtype).max % 300], dtype)
    np.testing.assert_array_equal(rows.dense(jnp.asarray(most)), dense[most])


def test_a_callback_may_stop_a_run_before_its_first_step():
    class Done:
        def begin(self, run):
            raise training.Stop

        def __call__(self, *of_a_look):
            pytest.fail("the run went on")

    state, history = run(callbacks=[Done()])
    assert int(state.step) == 0
    assert history == {}


def test_whatever_fails_at_the_end_every_callback_that_was_begun_ends():
    ended = []

    class Ends:
        def __init__(self, name, begins=True):
            self.name, self.begins = name, begins

        def begin(self, run):
            if not self.begins:
                raise RuntimeError(f"{self.name} can't begin")

        def __call__(self, *of_a_look):
            return None

        def end(self, state):
            ended.append(self.name)
            if self.name == "a":
                raise OSError("no more room")

    with pytest.raises(OSError, match="no more room"):
        run(callbacks=[Ends("a"), Ends("b")])
    assert ended == ["a", "b"]
    ended.clear()
    with pytest.raises(RuntimeError, match="c can't begin"):
        run(callbacks=[Ends("b"), Ends("c", begins=False), Ends("d")])
    assert ended == ["b"]


def points():
    def make(lr):
        optimizer = optax.sgd(lr)
        return jaxvae.train_step(jaxvae.elbo, optimizer), jaxvae.init_state(linear(), optimizer)

    return training.sweep_step(make, {"lr": [1e-3, 1e-2]})


def test_a_callback_of_one_run_alone_is_refused_at_every_point():
    with pytest.raises(TypeError, match="each_point: callback has a method begin, expected"):
        training.each_point(training.early_stopping("loss", patience=1))


def test_numbers_at_some_points_alone_are_refused():
    calls: list[int] = []

    def at_first(state, metrics, epoch, key):
        calls.append(1)
        return {"first": 1.0} if len(calls) == 1 else None

    with pytest.raises(ValueError, match="each_point: callback returned None at some points"):
        jaxvae.fit(*points(), KEY, XS, epochs=1, batch_size=10,
                   callbacks=[training.each_point(at_first)])  # fmt: skip


@pytest.mark.parametrize(
    "other", [optax.adam(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-3))]
)
def test_the_state_of_another_optimiser_is_told(other):
    state = jaxvae.init_state(linear(), other)
    with pytest.raises(TypeError, match="train_step: opt_state is not one of the step's optimizer"):
        run(state=state, optimizer=optax.sgd(1e-3, momentum=0.9))


def test_a_metric_that_nobody_measures_is_told_after_an_epoch():
    looks = []
    with pytest.warns(UserWarning, match=r"'val_loss' is not measured yet after an epoch.*rate"):
        run(callbacks=[training.early_stopping("val_loss", patience=1), lambda *_: looks.append(1)])
    assert len(looks) == 2


def test_logistic_annealing_of_any_sharpness(x64):
    """Both ends exactly; a line at 0, as near to it, and the formula where it is safe."""
    t = np.arange(0, 101, 10)
    for sharpness in (0.0, 1e-9, 1e-4):
        schedule = training.sigmoid_annealing(2.0, 4.0, 100, sharpness=sharpness)
        np.testing.assert_allclose([schedule(i) for i in t], 2.0 + t / 50.0, rtol=1e-6)
    s = lambda t: 1.0 / (1.0 + np.exp(-12.0 * (t / 100 - 0.5)))
    expected = (s(t) - s(0)) / (s(100) - s(0))
    found = [training.sigmoid_annealing(0.0, 1.0, 100)(i) for i in t]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    at_start = training.sigmoid_annealing(0.0, 1.0, 3)(jnp.zeros((), jnp.int32))
    assert float(at_start) == 0.0


STEP = jaxvae.train_step(jaxvae.elbo, optax.sgd(1e-2))


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (lambda *given: STEP(*given)[0], TypeError, "step returned a TrainState, expected"),
        (lambda *given: (STEP(*given)[0], {}), TypeError, "step returned metrics without a loss"),
        (
            lambda state, *given: (STEP(state, *given)[0]._replace(step=state.step), {"loss": 0.0}),
            ValueError,
            "step moved state.step from 0 to 0 in 4 calls, expected one a call",
        ),
        (
            lambda state, *given: STEP(STEP(state, *given)[0], *given),
            ValueError,
            "step moved state.step from 0 to 8 in 4 calls, expected one a call",
        ),
    ],
)
def test_a_step_of_ones_own_returns_a_state_one_step_on_and_a_loss(step, error, text):
    state = jaxvae.init_state(linear(), optax.sgd(1e-2))
    with pytest.raises(error, match=re.escape(f"fit: {text}")):
        jaxvae.fit(step, state, KEY, XS, epochs=1, batch_size=10)


def test_a_masked_array_is_refused_whose_mask_would_be_lost():
    masked = np.ma.masked_array(XS, XS > 0.5)
    state = jaxvae.init_state(linear(), optax.sgd(1e-2))
    for call in (
        lambda: run(masked),
        lambda: jaxvae.fit(STEP, state, KEY, [masked], epochs=1),
        lambda: use.encode(linear(), masked),
        lambda: use.encode(linear(), [masked]),
        lambda: training.validation(jaxvae.elbo, KEY, masked),
    ):
        with pytest.raises(TypeError, match=r"is a masked array, whose mask would be lost"):
            call()
    with pytest.raises(
        TypeError, match=r"fit: data is a Series, expected an array, data\.to_numpy"
    ):
        run(pd.Series(XS[:, 0]))


def test_sizes_may_be_numpys_integers(tmp_path):
    kept = training.Checkpoints(tmp_path)
    state = jaxvae.init_state(linear(), optax.sgd(1e-2))
    sizes = {"epochs": np.int64(2), "batch_size": np.int32(10), "replay": np.uint8(2)}
    _, history = jaxvae.fit(STEP, state, KEY, XS, checkpoints=kept, **sizes)
    assert history["loss"].shape == (8,)
    for k in np.array([2, 4]):
        assert jaxvae.iwae(linear(), KEY, XS[0], num_samples=k)[1].shape == (k,)
    with pytest.raises(ValueError, match=r"epochs is np\.int64\(0\), expected an integer of at"):
        run(epochs=np.int64(0))


class Batches:
    def __call__(self):
        yield from (XS[:20], XS[20:])


@pytest.mark.parametrize("data", [lambda: iter([XS[:20], XS[20:]]), Batches()])
def test_a_function_of_nothing_gives_an_iterator_each_epoch(data):
    state = jaxvae.init_state(linear(), optax.sgd(1e-2))
    state, _ = jaxvae.fit(STEP, state, KEY, data, epochs=2)
    assert int(state.step) == 4
    np.testing.assert_array_equal(use.encode(linear(), data), use.encode(linear(), XS))


def test_points_of_a_sweep_that_end_at_no_number_are_told():
    def losses(rate, end):
        return {"loss": jnp.full(3, rate).at[-1].set(end)}

    grid = {"rate": [1.0, 2.0], "end": [0.0, np.nan]}
    with pytest.warns(UserWarning, match=r"the loss is nan .* 2 of 4 points, \[0, 1\], \[1, 1\]"):
        jaxvae.sweep(losses, grid)
    with pytest.warns(UserWarning, match=r"the result is inf at the end at 1 of 2 points, \[1\]"):
        jaxvae.sweep(lambda end: 1.0 / end, {"end": [1.0, 0.0]})
    jaxvae.sweep(lambda end: {"loss": jnp.array([jnp.nan, end])}, {"end": [1.0, 0.0]})


def test_a_schedule_free_optimiser_has_a_model_to_evaluate():
    """x = (y - (1 - b1) z) / b1, where the gradients were taken at y."""
    optimizer = optax.contrib.schedule_free_sgd(1e-2, b1=0.9)
    state, _ = run(optimizer=optimizer)
    ys, zs = jax.tree.leaves(state.model), jax.tree.leaves(state.opt_state.z)
    for x, y, z in zip(jax.tree.leaves(training.averaged_model(state)), ys, zs, strict=True):
        np.testing.assert_allclose(x, (y - 0.1 * z) / 0.9, rtol=1e-5)
        assert not np.array_equal(x, y)


def test_a_leaf_may_be_a_number_of_numpys():
    model = ppca.as_vae(ppca.PPCA(np.ones((3, 1), np.float32), np.zeros(3), np.float32(0.5)))
    run(state=jaxvae.init_state(model, optax.sgd(1e-2)))


def test_a_state_is_not_saved_for_its_model(tmp_path):
    state, _ = run()
    with pytest.raises(TypeError, match=r"save_model: model is a TrainState, expected its model"):
        nn.save_model(tmp_path / "model", state)
    assert not (tmp_path / "model").exists()
