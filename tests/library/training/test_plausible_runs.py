"""Plausible runs: sparse rows held out, callbacks that stop early, optimisers mixed up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import jaxvae
from jaxvae import training
from jaxvae.models import ppca

KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) * (
    np.random.default_rng(1).random((40, 3)) < 0.5
)


def linear():
    return ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))


def run(xs=XS, *, state=None, optimizer=None, epochs=2, **options: Any):
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
    with pytest.warns(UserWarning, match=r"'val_loss' was not measured in the first epoch.*rate"):
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
