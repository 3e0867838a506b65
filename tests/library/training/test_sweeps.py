"""A sweep is the run itself at every point of a grid."""

import json
import sys
from functools import partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae as jv
from jaxvae.models import ppca
from jaxvae.training import each_point, sweep_step

SGD = optax.sgd(0.1)
LINEAR = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
XS = jax.random.normal(jax.random.key(9), (20, 3))


def grid():
    """In no alphabetical order."""
    return {
        "learning_rate": [1e-3, 1e-2, 0.1],
        "key": jax.random.split(jax.random.key(0), 4),
        "beta": [0.5, 1.0],
    }


def run(key, beta, learning_rate, xs):
    """An epoch of a linear model."""
    init_key, key = jax.random.split(key)
    weight = jax.random.normal(init_key, (3, 1))
    model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    optimizer = optax.adam(learning_rate)
    epoch = jv.train_epoch(jv.train_step(jv.elbo, optimizer), batch_size=10)
    state, metrics = epoch(jv.init_state(model, optimizer), key, xs, beta=beta)
    return {"loss": metrics["loss"], "step": state.step}


@pytest.mark.parametrize("at_once", [1, 5, 24, 100])
def test_it_is_the_run_at_every_point(at_once):
    """In whatever chunks, the axes in the order in which they were given."""
    found = jv.sweep(run, grid(), at_once=at_once, xs=XS)
    assert list(found.axes) == ["learning_rate", "key", "beta"]
    assert found.results["loss"].shape == (3, 4, 2, 2)
    assert found.results["step"].tolist() == np.full((3, 4, 2), 2).tolist()
    one = jax.jit(run)
    for i, j, k in [(0, 0, 0), (2, 3, 1), (1, 2, 0)]:
        rates, keys, betas = grid().values()
        expected = one(keys[j], betas[k], rates[i], XS)["loss"]
        assert np.allclose(found.results["loss"][i, j, k], expected, rtol=1e-5)
    last = found.results["loss"][..., -1]  # the first step's knows no learning rate yet
    assert len(np.unique(last)) == last.size


@pytest.mark.parametrize(
    "static",
    [
        lambda n, x: x * int(n),
        lambda n, x: jnp.zeros(n) + x,
        lambda n, x: sum(x for _ in range(n)),
        lambda n, x: x if n > 1 else -x,
        lambda n, x: jv.iwae(LINEAR, jax.random.key(0), jnp.ones(3) * x, num_samples=n)[0],
    ],
)
def test_what_run_must_know_while_it_is_compiled_is_named(static):
    """A count, a shape, a choice; what is traced in the same grid is not named."""
    told = "sweep: grid has 'n', which run must know while it is compiled, .* a sweep each"
    with pytest.raises(TypeError, match=told):
        jv.sweep(static, {"x": [1.0, 2.0], "n": [2, 3]})

    def make(n, x):
        return jv.train_step(jv.elbo, SGD), jv.init_state({"w": jnp.mean(static(n, x))}, SGD)

    with pytest.raises(TypeError, match=f"sweep_step: {told[7:]}"):
        sweep_step(make, {"x": [1.0, 2.0], "n": [2, 3]})


def test_another_error_of_run_is_left_alone():
    def fails(x):
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        jv.sweep(fails, {"x": [1.0, 2.0]})


def test_it_is_one_program_for_all_points_and_for_the_next_sweep():
    traces = []

    def counted(key, scale):
        traces.append(scale.shape)
        return scale * jax.random.normal(key)

    for scale in ([1.0, 2.0], [3.0, 4.0]):
        keys = jax.random.split(jax.random.key(0), 3)
        jv.sweep(counted, {"key": keys, "scale": scale})
    assert traces == [()]


def rates_of(end, seed, steps=30):
    """The metrics of a run whose rate goes from 3 nats down to `end`."""
    return {"rate": jnp.where(jnp.arange(steps) < 15, 3.0, end) + 0.0 * seed}


def test_points_that_have_collapsed_are_told_in_a_line():
    """Wherever the rates are in the results, [epochs, steps] too; a rate that is paid is not."""
    told = r"^sweep: at the end the rate is 0.00 nats at 2 of 4 points, \[1, 0\], \[1, 1\]: the"
    values = {"end": [1.0, 0.001], "seed": [1.0, 2.0]}
    for shaped in (lambda rate: rate, lambda rate: rate.reshape(3, 10)):
        run = lambda end, seed, f=shaped: (seed, jax.tree.map(f, rates_of(end, seed)))
        with pytest.warns(UserWarning, match=told) as warned:
            jv.sweep(run, values)
        assert [w.filename for w in warned] == [__file__]


def test_points_that_have_not_collapsed_are_not_told():
    """No warning is an error here: all are. A short run's, one number's, and that of no code."""
    jv.sweep(rates_of, {"end": [1.0, 0.5], "seed": [1.0]})
    jv.sweep(partial(rates_of, steps=10), {"end": [0.0], "seed": [1.0]})
    jv.sweep(lambda end: {"rate": end}, {"end": [0.0, 0.001]})
    jv.sweep(lambda end: {"rate": jnp.full(30, end)}, {"end": [0.0]})


@pytest.mark.parametrize("folder", [False, True])
def test_a_line_of_progress_is_shown_in_a_terminal_alone(monkeypatch, capsys, tmp_path, folder):
    ticks = iter(range(10**6))
    monkeypatch.setattr("jaxvae.training.showing.time.monotonic", lambda: float(next(ticks)))
    kept = {"folder": tmp_path} if folder else {}

    def look(tty):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
        found = jv.sweep(lambda a: 2.0 * a, {"a": jnp.arange(7.0)}, at_once=3, **kept)
        assert found.results.tolist() == (2.0 * np.arange(7.0)).tolist()
        return capsys.readouterr().err

    lines = look(tty=True).split("\r")
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [
        f"point {n}/7" for n in (3, 6, 7)
    ]
    assert lines[-1].endswith("\n")
    assert "0:00 left" in lines[-1]
    assert look(tty=False) == ""


def test_it_says_how_it_ran():
    find = partial(jv.sweep, lambda x: x, {"x": np.arange(6.0)})
    assert find().at_once == 4
    assert find(at_once=4).at_once == 4
    assert np.array_equal(find(at_once=4).results, np.arange(6.0))


def times(width):
    """A loop of products: 2 width^3 operations in its body."""

    def run(x, weight):
        return jax.lax.fori_loop(0, 1000, lambda _, w: jnp.sin(w @ weight), x * weight)

    return run, {"x": jnp.array(1.0), "weight": jnp.ones((width, width))}


def test_a_cpu_takes_few_points_of_a_small_run_and_one_of_a_large():
    # a threshold of 2e7: 2 100^3 = 2e6, 2 300^3 = 5.4e7
    assert jv.training.points_at_once(*times(100), 9, backend="cpu") == 4
    assert jv.training.points_at_once(*times(100), 3, backend="cpu") == 3
    assert jv.training.points_at_once(*times(300), 9, backend="cpu") == 1


def test_an_accelerator_takes_all_that_fit(monkeypatch):
    # of each point its result and the loop's buffers, some [100, 100] of float32; 64 MB are free
    def points(width, num_points, stats):
        device = SimpleNamespace(memory_stats=lambda: stats)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        return jv.training.points_at_once(*times(width), num_points, backend="gpu")

    free = {"bytes_limit": 70_000_000, "bytes_in_use": 6_000_000}
    many = points(100, 100_000, free)
    assert 0.8 * 64e6 / 40_000 / 10 < many < 0.8 * 64e6 / 40_000
    assert points(100, 9, free) == 9
    assert 3 * many < points(50, 100_000, free) < 5 * many
    assert points(100, 9, free | {"bytes_in_use": 69_999_999}) == 1  # where not even one seems to
    assert points(100, 9, None) == 9


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 12), reason="it tells no temporary buffers of a program on a CPU"
)
def test_memory_is_that_of_the_points_at_once():
    """The buffers of the compiled program grow with the chunk, not with the grid."""

    def large(x, weight):
        return jnp.max(jnp.sin(jnp.tanh(x * weight) @ weight) @ weight)

    def bytes_of(num, at_once):
        grid = {"x": np.arange(num, dtype=np.float32)}
        program = jax.jit(lambda w: jv.sweep(large, grid, at_once=at_once, weight=w).results)
        compiled = program.lower(jnp.ones((200, 200))).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    one, many = bytes_of(8, 1), bytes_of(64, 1)
    assert many < 1.1 * one + 64 * 4  # the results
    assert bytes_of(64, 64) > 10 * one


@pytest.mark.parametrize(
    ("grid", "options", "match"),
    [
        ({}, {}, "grid is empty"),
        ({"x": []}, {}, r"grid\['x'\] has shape \(0,\)"),
        ({"x": 1.0}, {}, r"grid\['x'\] has shape \(\)"),
        ({"x": [1.0]}, {"x": 2.0}, "in the grid and fixed"),
        ({"x": [1.0]}, {"at_once": 0}, "at_once is 0"),
        ({"x": ["elbo", "iwae"]}, {}, r"grid\['x'\] is \['elbo', 'iwae'\], expected numbers"),
    ],
)
def test_what_is_no_grid_is_an_error(grid, options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        jv.sweep(lambda x: x, grid, **options)


def kept_grid():
    return {"key": jax.random.split(jax.random.key(0), 3), "beta": jnp.array([0.5, 1.0, jnp.nan])}


def kept_run(key, beta, xs, counts):
    """Counts its runs at run time, so as to tell which points were made."""
    jax.debug.callback(lambda: counts.append(1))
    key, other = jax.random.split(key)
    return {"value": beta * jnp.sum(xs) + jax.random.normal(other), "key": key}


def same(a, b):
    a, b = ({"value": r["value"], "key": jax.random.key_data(r["key"])} for r in (a, b))
    return all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


@pytest.mark.thorough
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_an_interrupted_sweep_goes_on_with_the_next_chunk(tmp_path, at_once):
    """Nine points; what was saved is not made again, and the results are those of one program."""
    counts = []
    run = partial(kept_run, counts=counts)
    whole = jv.sweep(run, kept_grid(), at_once=at_once, xs=XS)
    again = partial(jv.sweep, run, kept_grid(), at_once=at_once, folder=tmp_path, xs=XS)
    first = again()
    jax.effects_barrier()
    assert same(first.results, whole.results)
    files = sorted(tmp_path.iterdir())
    assert len(files) == -(-9 // at_once)
    for path in files[2:]:
        path.unlink()
    counts.clear()
    assert same(again().results, whole.results)
    jax.effects_barrier()
    assert len(counts) == len(files[2:])  # a chunk's callback has no operand, so it is one
    counts.clear()
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    with pytest.warns(UserWarning, match="points_000000.ckpt is damaged.*are run again"):
        assert same(again().results, whole.results)
    jax.effects_barrier()
    assert len(counts) == 1


@pytest.mark.thorough
def test_a_folder_of_another_sweep_is_refused(tmp_path):
    run = partial(kept_run, counts=[])
    jv.sweep(run, kept_grid(), folder=tmp_path, at_once=4, xs=XS)
    for match, grid, xs in [
        (r"fixed\['xs'\] is float32.* there and .* here", kept_grid(), XS + 1.0),
        (r"grid\['beta'\] is ", kept_grid() | {"beta": jnp.array([0.5, 2.0, 3.0])}, XS),
        (r"grid\['beta'\] is .*\[4\]", kept_grid() | {"beta": jnp.ones((3, 1))}, XS),
    ]:
        with pytest.raises(jv.training.CheckpointError, match=match):
            jv.sweep(run, grid, folder=tmp_path, at_once=4, xs=xs)
    other = lambda key, beta, xs: kept_run(key, beta, 2.0 * xs, [])
    with pytest.raises(
        jv.training.CheckpointError, match=r"of another sweep: .* compute something else"
    ):
        jv.sweep(other, kept_grid(), folder=tmp_path, at_once=4, xs=XS)
    rate = lambda x, rate: 2.0 * x + rate
    jv.sweep(rate, {"x": [2.5, 4.0]}, folder=tmp_path / "rate", rate=3.0)
    with pytest.raises(jv.training.CheckpointError, match=r"fixed\['rate'\] is "):
        jv.sweep(rate, {"x": [2.5, 4.0]}, folder=tmp_path / "rate", rate=2.0)
    (tmp_path / "file").touch()
    with pytest.raises(jv.training.CheckpointError, match="file can't be written"):
        jv.sweep(run, kept_grid(), folder=tmp_path / "file", at_once=4, xs=XS)


# a sweep under fit


def make(key, beta, learning_rate):
    weight = jax.random.normal(key, (3, 1))
    model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    optimizer = optax.adam(learning_rate)
    return partial(jv.train_step(jv.elbo, optimizer), beta=beta), jv.init_state(model, optimizer)


STEP, STATE = sweep_step(make, grid())
FIT = partial(jv.fit, STEP, STATE, jax.random.key(1), XS, epochs=2, batch_size=10)


@pytest.mark.thorough
def test_a_sweep_under_fit_is_the_step_at_every_point():
    """The same batches for all, and point i in the order of the axes draws from its own key."""
    state, history = FIT()
    assert history["loss"].shape == (4, 3, 4, 2)
    assert int(state.step) == 4
    losses = history["loss"][-1]
    assert len(np.unique(losses)) == losses.size

    @jax.jit
    def alone(one, number, key, beta, rate, t):
        rows = jv.training.epoch_order(jax.random.key(1), t // 2, 20, 10)[t % 2]
        return make(key, beta, rate)[0](
            one, jax.random.fold_in(jax.random.key(1), number), XS[rows]
        )

    rates, keys, betas = grid().values()
    for i, j, k in [(0, 0, 0), (2, 3, 1)]:
        key = lambda j=j: jax.random.clone(keys)[j]  # the same draws on purpose
        one = make(key(), betas[k], rates[i])[1]
        for t in range(4):
            one, metrics = alone(one, 8 * i + 2 * j + k, key(), betas[k], rates[i], t)
            assert np.allclose(history["loss"][t, i, j, k], metrics["loss"], rtol=1e-5)
        of_point = jax.tree.map(itemgetter((i, j, k)), state.model)
        assert jax.tree.all(jax.tree.map(partial(np.allclose, rtol=1e-4), of_point, one.model))


@pytest.mark.thorough
def test_what_can_not_be_lifted_over_a_sweep_is_told():
    with pytest.raises(ValueError, match=r"skip_nonfinite: step has a loss of shape \(3, 4, 2\)"):
        jv.training.skip_nonfinite(STEP)(STATE, jax.random.key(1), XS)
    losses = lambda state, metrics, *_: {"look": metrics["loss"][-1]}
    with pytest.raises(ValueError, match=r"'look' has a number at each of \(3, 4, 2\) points"):
        FIT(callbacks=[losses, jv.training.early_stopping("look", patience=2)])


@pytest.mark.slow
def test_points_at_once_change_no_number_of_a_sweep_under_fit():
    step, state = sweep_step(make, grid(), at_once=5)
    _, history = jv.fit(step, state, jax.random.key(1), XS, epochs=1, batch_size=10)
    assert np.allclose(history["loss"], FIT(epochs=1)[1]["loss"], rtol=1e-5)


def test_a_sweep_under_fit_goes_on_from_its_checkpoint(tmp_path):
    """To the same bits; of another grid it is refused."""

    def die(state, metrics, epoch, key):
        if epoch > 1.0:
            raise KeyboardInterrupt

    state, history = FIT()
    kept = jv.Checkpoints(tmp_path, share=np.inf)
    with pytest.raises(KeyboardInterrupt):
        FIT(checkpoints=kept, callbacks=[die])
    again, resumed = FIT(checkpoints=kept)
    pairs = zip(jax.tree.leaves(again.model), jax.tree.leaves(state.model), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert all(np.array_equal(history[name], resumed[name]) for name in history)
    other = sweep_step(make, grid() | {"beta": [0.5, 2.0]})
    with pytest.raises(jv.training.CheckpointError, match="of another run"):
        jv.fit(*other, jax.random.key(1), XS, epochs=2, batch_size=10, checkpoints=kept)


@pytest.mark.thorough
def test_a_callback_of_one_run_is_called_at_each_point(tmp_path):
    """Validation of every point; one that measures nothing returns nothing."""
    measure = jv.training.validation(jv.elbo, jax.random.key(2), XS[:5], every=3)
    log = jv.training.json_lines(tmp_path / "log")
    state, history = FIT(callbacks=[each_point(measure), log])
    found = history["validation_loss"]
    assert found.shape == history["loss"].shape
    assert np.isfinite(found).all(axis=(1, 2, 3)).tolist() == [False, False, False, True]
    point = jv.TrainState(jax.tree.map(itemgetter((2, 1, 0)), state.model), None, state.step)
    expected: Any = measure(point, {"loss": np.zeros(2)}, 2.0, jax.random.key(0))
    assert np.isclose(found[3, 2, 1, 0], expected["validation_loss"], rtol=1e-5)
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert last["validation_loss_18"] == found[3, 2, 1, 0]


@pytest.mark.thorough
def test_a_point_that_is_not_finite_is_told():
    """The step is named, though the losses of others are good."""
    step, state = sweep_step(make, grid() | {"learning_rate": [1e-3, 1e20]})
    with pytest.raises(jv.training.NonFiniteError, match=r"step 2: .*loss.* not finite"):
        jv.fit(step, state, jax.random.key(1), XS, epochs=1, batch_size=10)


def test_a_sweep_under_fit_needs_a_grid():
    with pytest.raises(ValueError, match="sweep_step: grid is empty"):
        sweep_step(make, {})
