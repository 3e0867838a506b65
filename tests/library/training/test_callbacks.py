"""A run that looks after itself: what it measures, where it stops, what it shows and logs."""

import io
import json
import re
import sys
from csv import DictReader
from functools import cache, partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from jaxvae import (
    VAE,
    Checkpoints,
    Normal,
    Poisson,
    StandardNormal,
    elbo,
    fit,
    init_state,
    nn,
    renyi,
    train_step,
)
from jaxvae.bounds import autoencoder
from jaxvae.models import ppca
from jaxvae.regularizers import mmd_penalty, regularized
from jaxvae.training import (
    Stop,
    best_checkpoint,
    csv,
    early_stopping,
    json_lines,
    load_checkpoint,
    log_to,
    mlflow,
    newest_checkpoint,
    pictures,
    progress,
    tensorboard,
    validation,
    wandb,
)
from jaxvae.training.showing import Line, line_of
from tests.common import same

OPTIMIZER = optax.adam(1e-2)
STEP = train_step(elbo, OPTIMIZER)  # one program for every fit below
XS = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)


def start():
    weight = jax.random.normal(jax.random.key(0), (3, 2))
    model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(3), jnp.array(0.5)))
    return init_state(model, OPTIMIZER)


# five steps an epoch, in calls of 2, 2 and 1: looks after steps 2, 4, 5, 7, 9, 10 ...
run = partial(fit, STEP, start(), jax.random.key(1), XS, epochs=4, batch_size=4, steps_per_call=2)
LOOKS = [5 * epoch + step for epoch in range(4) for step in (2, 4, 5)]


def dies_at(step):
    def die(state, metrics, epoch, key):
        if int(state.step) == step:
            raise KeyboardInterrupt

    return die


def dies(folder, step, *callbacks, share=np.inf):
    """A run that is killed at a step, at a look that it had no time to save."""
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[*callbacks, dies_at(step)], checkpoints=Checkpoints(folder, share=share))


def test_a_callback_gets_the_epoch_and_a_key_of_its_own(tmp_path):
    """Of every look another, of two callbacks two; a resumed run gives the same ones."""

    def noted(into):
        def note(state, metrics, epoch, key):
            into[int(state.step)] = (epoch, jax.random.key_data(key).tolist())

        return note

    first, second, killed, resumed = {}, {}, {}, {}
    run(callbacks=[noted(first), noted(second)])
    assert [epoch for epoch, _ in first.values()] == [step / 5 for step in LOOKS]
    assert len({str(key) for _, key in [*first.values(), *second.values()]}) == 2 * len(LOOKS)
    dies(tmp_path, 9, noted(killed))
    run(callbacks=[noted(resumed)], checkpoints=Checkpoints(tmp_path, share=np.inf))
    assert killed | resumed == first
    assert min(resumed) == 7
    steps = {str(jax.random.key_data(jax.random.fold_in(jax.random.key(1), t))) for t in range(20)}
    assert not steps & {str(key) for _, key in first.values()}


def test_validation_draws_the_same_noise_at_every_look():
    """An objective that is its noise: equal at all looks, other than with another key."""

    def noise(model, key, x):
        return jax.random.normal(key) + 0.0 * x[0], None

    losses = [
        run(callbacks=[validation(noise, jax.random.key(seed), XS[:7])])[1]["validation_loss"]
        for seed in (3, 3, 4)
    ]
    measured = [loss[np.isfinite(loss)] for loss in losses]
    assert [np.flatnonzero(np.isfinite(loss)).tolist() for loss in losses] == [
        [step - 1 for step in LOOKS]
    ] * 3
    assert all(np.ptp(loss) == 0 for loss in measured)
    assert measured[0][0] == measured[1][0] != measured[2][0]


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_validation_is_the_mean_over_the_rows(batch_size):
    """Of all rows alike, those of a short last batch too; here nothing is drawn."""
    ae = lambda model, key, x: autoencoder(model, key, x)
    state, history = run(
        callbacks=[validation(ae, jax.random.key(0), XS[:7], batch_size=batch_size, name="ae")]
    )
    bounds, terms = jax.vmap(lambda x: ae(state.model, None, x))(jnp.asarray(XS[:7]))
    assert np.isclose(history["ae_loss"][-1], -np.mean(bounds), rtol=1e-5)
    assert np.isclose(history["ae_distortion"][-1], np.mean(terms.distortion), rtol=1e-5)


def test_more_samples_of_noise_are_measured_at_each_row():
    def noise(model, key, x):
        return jax.random.normal(key), None

    state = start()
    measure = validation(noise, jax.random.key(0), XS[:5], num_samples=400)
    found = measure(state, {"loss": np.zeros(1)}, 0.0, jax.random.key(9))
    assert found is not None
    assert 0 < abs(found["validation_loss"]) < 4 / np.sqrt(2000)


def test_validation_of_an_objective_that_lacks_a_hyper_parameter_is_told_at_once():
    told = r"validation: renyi needs num_samples and alpha; bind them, functools.partial\(renyi, "
    with pytest.raises(TypeError, match=told):
        validation(renyi, jax.random.key(0), np.ones((4, 3)))
    validation(partial(renyi, num_samples=2, alpha=0.5), jax.random.key(0), np.ones((4, 3)))


def mixed(model, key, x, *, mix):
    return mix * model, None


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (partial(elbo, **{"betta": 1.0}), "elbo takes no betta, expected beta, kl and gradient$"),
        (
            partial(mixed, mix=optax.linear_schedule(0.0, 1.0, 5)),
            r"mixed has mix bound to a schedule, expected a number; give the schedule to the run, "
            r"jaxvae.fit\(..., mix=schedule\), and bind its end value",
        ),
    ],
)
def test_validation_of_what_is_bound_wrongly_is_told_at_once(objective, told):
    with pytest.raises(TypeError, match=f"^validation: {told}"):
        validation(objective, jax.random.key(0), np.ones((4, 3)))
    validation(partial(mixed, mix=jnp.tanh), jax.random.key(0), np.ones((4, 3)))  # may be meant


@pytest.mark.parametrize(
    ("hyper", "told"),
    [
        ({"callback": []}, "elbo takes no callback; did you mean callbacks?"),
        ({"beta": None}, "beta is None, expected"),
        ({"beta": "1"}, "beta is a str, expected"),
    ],
)
def test_fit_says_what_is_not_a_hyper_parameter(hyper, told):
    with pytest.raises(TypeError, match=rf"^fit: {told}"):
        run(**hyper)


def test_fit_sees_a_misspelling_through_what_a_step_has_bound():
    step: Any = partial(STEP, beta=optax.linear_schedule(0.0, 1.0, 5))
    with pytest.raises(TypeError, match=r"^fit: elbo takes no epoch; did you mean epochs\?$"):
        fit(step, start(), jax.random.key(1), XS, epochs=1, batch_size=4, epoch=3)


@pytest.mark.thorough
def test_validation_of_a_row_outside_the_support_is_told_once():
    """With the row and what is wrong with it; early stopping then says that nothing was finite."""
    encode = Partial(lambda w, x: Normal(w * x[:2], jnp.ones(2)), jnp.ones(2))
    model = VAE(encode, Partial(lambda z: Poisson(jnp.exp(jnp.repeat(z, 2)))), StandardNormal((2,)))
    held_out = np.ones((5, 4), np.float32)
    held_out[3, 1] = 0.5
    look = validation(elbo, jax.random.key(1), held_out, batch_size=2)
    stop = early_stopping("validation_loss", patience=3)
    with pytest.warns(UserWarning, match="is inf at step|was never finite") as warned:
        fit(
            STEP, init_state(model, OPTIMIZER), jax.random.key(0), np.ones((4, 4), np.float32),
            epochs=2, batch_size=4, callbacks=[look, stop],
        )  # fmt: skip
    first, second = [str(w.message) for w in warned]
    told = r"validation: validation_loss is inf at step 1; first at row 3 of xs: Poisson.*holds 0.5"
    assert re.match(told, first), first
    assert second.startswith("early_stopping: 'validation_loss' was never finite")
    assert warned[0].filename == __file__


def test_validation_every_so_many_steps():
    """At the first look at or behind each multiple of six."""
    measure = validation(elbo, jax.random.key(0), XS[:5], every=6)
    _, history = run(callbacks=[measure])
    assert (np.flatnonzero(np.isfinite(history["validation_loss"])) + 1).tolist() == [7, 12, 19]


def falling_until(step):
    """A metric that falls up to a step and rises from there."""

    def measure(state, metrics, epoch, key):
        return {"distance": abs(int(state.step) - step)}

    return measure


def test_early_stopping_returns_the_best_state():
    """Best at step 9, three worse ones behind it; the state is that of step 9."""
    seen = []
    state, history = run(
        callbacks=[
            falling_until(9),
            early_stopping("distance", patience=3),
            lambda state, *_: seen.append(int(state.step)),
        ]
    )
    assert int(state.step) == 9
    assert seen == [2, 4, 5, 7, 9, 10, 12, 14]  # also those behind it see the last look
    assert len(history["loss"]) == 14
    kept = []
    run(callbacks=[lambda s, *_: kept.append(s) if int(s.step) == 9 else None])
    assert same(state, kept[0])


def test_the_best_state_is_returned_where_the_epochs_end_first():
    state, history = run(callbacks=[falling_until(12), early_stopping("distance", patience=9)])
    assert int(state.step) == 12
    assert len(history["loss"]) == 20


@pytest.mark.parametrize("step", [5, 10, 12, 14])
def test_a_run_that_was_killed_stops_where_it_would_have(tmp_path, step):
    """Before the best, behind it, and at the look at which it would have stopped."""
    callbacks = lambda: [falling_until(9), early_stopping("distance", patience=3)]
    whole = run(callbacks=callbacks())
    dies(tmp_path, step, *callbacks())
    again = lambda: run(callbacks=callbacks(), checkpoints=Checkpoints(tmp_path, share=np.inf))
    resumed = again()
    assert same(resumed[0], whole[0])
    assert all(np.array_equal(resumed[1][n], whole[1][n], equal_nan=True) for n in whole[1])
    done = again()  # and a run that is done is not made again
    assert same(done[0], whole[0])
    assert len(done[1]["loss"]) == 14


def test_the_best_checkpoint_is_the_state_that_early_stopping_returns(tmp_path):
    """Not that of the lowest loss in training, which falls to the end."""
    callbacks = [falling_until(9), early_stopping("distance", patience=5)]
    state, _ = run(callbacks=callbacks, checkpoints=Checkpoints(tmp_path, share=np.inf))
    best = best_checkpoint(tmp_path)
    assert best.name == "best.ckpt"
    assert same(load_checkpoint(best, state), state)
    assert same(nn.load_model(tmp_path, like=state.model), state.model)
    best.write_bytes(best.read_bytes()[:40])
    with pytest.warns(UserWarning, match="best.ckpt is damaged; looking at the others"):
        assert best_checkpoint(tmp_path).name.startswith("step_")


def test_a_best_state_that_is_lost_is_told(tmp_path):
    callbacks = lambda: [falling_until(9), early_stopping("distance", patience=5)]
    dies(tmp_path, 14, *callbacks())
    (tmp_path / "best.ckpt").unlink()
    (tmp_path / "step_0000000009.ckpt").unlink(missing_ok=True)
    with pytest.warns(UserWarning, match="best state so far, of step 9, is lost.*best.ckpt"):
        state, _ = run(callbacks=callbacks(), checkpoints=Checkpoints(tmp_path, share=np.inf))
    assert int(state.step) == 14


@pytest.mark.parametrize("keep", [1, 100])
def test_a_call_of_fewer_epochs_leaves_the_best_state_of_more(tmp_path, keep):
    """Best of 20 steps at 14, of 10 steps at 5."""
    scores = dict.fromkeys(LOOKS, 9.0) | {5: 3.0, 14: 1.0}

    def distance(state, metrics, epoch, key):
        return {"distance": scores[int(state.step)]}

    def best(epochs):
        state, _ = run(
            epochs=epochs,
            callbacks=[distance, early_stopping("distance", patience=20)],
            checkpoints=Checkpoints(tmp_path, share=np.inf, keep=keep),
        )
        return int(state.step)

    assert [best(4), best(2), best(4)] == [14, 5, 14]


def test_validation_compares_rows_in_parts_of_equal_size():
    objective = partial(regularized, penalty=mmd_penalty)  # compares two rows or more
    xs = XS[:9]  # in parts of 3, not of 4, 4 and 1
    look = validation(objective, jax.random.key(0), xs, batch_size=4)
    found = look(start(), {"loss": np.zeros(1)}, 1.0, jax.random.key(1))
    assert found is not None
    assert np.isfinite(found["validation_loss"])


def test_early_stopping_says_what_it_can_not_use():
    with pytest.raises(ValueError, match="'loss' has a number at every step, expected one that"):
        run(callbacks=[early_stopping("loss", patience=3)])
    with pytest.warns(UserWarning, match=r"'validation_los' is not measured .*; name a metric"):
        state, _ = run(callbacks=[early_stopping("validation_los", patience=3)])
    assert int(state.step) == 20


def test_a_callback_ends_the_run_by_stop(tmp_path):
    """Saved, so that the same call has nothing more to do until it is to go on."""

    def stop(state, metrics, epoch, key):
        if int(state.step) >= 7:
            raise Stop

    for _ in range(2):
        state, history = run(callbacks=[stop], checkpoints=Checkpoints(tmp_path, share=1e-9))
        assert int(state.step) == len(history["loss"]) == 7
        assert newest_checkpoint(tmp_path).name == "step_0000000007.ckpt"


# logs


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(path):
    with path.open(newline="") as file:
        rows = [*DictReader(file)]
    return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]


@pytest.mark.thorough
@pytest.mark.parametrize(("log", "read"), [(json_lines, lines_of), (csv, rows_of)])
def test_a_file_has_each_step_once(tmp_path, log, read):
    """Whole, killed and resumed: the same file, though what was killed had logged more steps."""
    measure = lambda: validation(elbo, jax.random.key(0), XS[:5], every=6)
    _, history = run(callbacks=[measure(), log(tmp_path / "whole")])
    lines = read(tmp_path / "whole")
    assert [line["step"] for line in lines] == LOOKS
    assert lines[3]["epoch"] == 7 / 5
    assert np.isclose(lines[3]["loss"], np.mean(history["loss"][5:7]))
    assert lines[3]["validation_loss"] == history["validation_loss"][6]
    assert "validation_loss" not in lines[0]
    path, folder = tmp_path / "killed", tmp_path / "run"
    dies(folder, 9, measure(), log(path), share=1e-12)  # with a checkpoint of step 0 alone
    dies(folder, 14, measure(), log(path))
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[-1][:5])  # cut off
    run(callbacks=[measure(), log(path)], checkpoints=Checkpoints(folder, share=np.inf))
    assert path.read_text() == (tmp_path / "whole").read_text()
    run(callbacks=[measure(), log(path)], epochs=2)  # a run that begins
    assert [line["step"] for line in read(path)] == LOOKS[:6]


def test_a_tracker_is_given_each_step_once(tmp_path):
    """It can't be written over, so what it has of a run that was killed is not given again."""
    whole, killed = [], []
    run(callbacks=[log_to(lambda *line: whole.append(line))])
    assert [step for step, _ in whole] == LOOKS
    log = lambda: log_to(lambda *line: killed.append(line))
    dies(tmp_path, 9, log(), share=1e-12)
    assert [step for step, _ in killed] == [2, 4, 5, 7, 9]
    dies(tmp_path, 14, log())
    run(callbacks=[log()], checkpoints=Checkpoints(tmp_path, share=np.inf))
    assert killed == whole


def test_an_array_of_numbers_is_a_metric_and_is_logged(tmp_path):
    """One row a step, NaN where not measured; a number a name in a log; kept in checkpoints."""

    def measure(state, metrics, epoch, key):
        step = int(state.step)
        return {"pair": jnp.array([1.0, 2.0]) * step} if step % 5 == 0 else None

    whole = run(callbacks=[measure])[1]["pair"]
    assert whole.shape == (20, 2)
    assert whole[4].tolist() == [5.0, 10.0]
    assert np.isnan(whole[:4]).all()
    dies(tmp_path / "run", 14, measure)
    path = tmp_path / "log"
    kept = Checkpoints(tmp_path / "run", share=np.inf)
    _, history = run(callbacks=[measure, json_lines(path)], checkpoints=kept)
    assert np.array_equal(history["pair"], whole, equal_nan=True)
    assert [(n["pair_0"], n["pair_1"]) for n in lines_of(path) if "pair_0" in n][-2:] == [
        (15.0, 30.0),
        (20.0, 40.0),
    ]


def scalars(folder):
    """(name, step, value) of TensorBoard's files: records of length, checksum, event, checksum."""
    Event = import_module("tensorboardX.proto.event_pb2").Event

    found = []
    for path in folder.iterdir():
        content = io.BytesIO(path.read_bytes())
        while head := content.read(12):
            event = Event.FromString(content.read(int.from_bytes(head[:8], "little")))
            content.read(4)
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(tmp_path):
    writer = pytest.importorskip("tensorboardX").SummaryWriter(tmp_path)
    _, history = run(callbacks=[tensorboard(writer)])
    writer.close()
    losses = [(step, value) for name, step, value in scalars(tmp_path) if name == "loss"]
    assert [step for step, _ in losses] == LOOKS
    assert np.isclose(losses[-1][1], history["loss"][-1])


def test_trackers_are_called_as_they_ask():
    """`wandb.Run.log(data, step=)` and `mlflow.log_metrics(metrics, step=)`."""
    logged, metrics = [], []
    tracker = SimpleNamespace(log=lambda data, step: logged.append((step, data["loss"])))
    module = SimpleNamespace(log_metrics=lambda m, step: metrics.append((step, m["loss"])))
    run(callbacks=[wandb(tracker), mlflow(module)])  # pyright: ignore[reportArgumentType]
    assert logged == metrics
    assert [step for step, _ in logged] == LOOKS


def test_mlflow_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="MLflow is not installed; pip install mlflow"):
        mlflow()


# what is seen


@cache
def slow_clock():
    """Seconds that pass a second at a time, so that a line is shown at every look."""
    ticks = iter(range(10**6))
    return lambda: float(next(ticks))


def shown(monkeypatch, capsys, *, tty, **settings):
    monkeypatch.setattr("jaxvae.training.showing.time.monotonic", slow_clock())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    run(**settings)
    out, err = capsys.readouterr()
    assert not out
    return err


def test_a_line_is_shown_in_a_terminal_alone(monkeypatch, capsys):
    look = partial(shown, monkeypatch, capsys)
    line = look(tty=True)
    assert line.startswith("\repoch ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "epoch 4/4" in line
    assert " loss " in line
    assert " rate " in line
    assert not look(tty=False)
    assert not look(tty=True, progress=False)
    assert look(tty=False, progress=True)
    assert look(tty=True, callbacks=[progress()]).count("\n") == 1  # not two of them
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    assert look(tty=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not look(tty=False)


def test_a_line_says_where_a_run_goes_on_from(monkeypatch, capsys, tmp_path):
    look = partial(shown, monkeypatch, capsys, tty=True, checkpoints=Checkpoints(tmp_path))
    assert "going on" not in look(epochs=2)
    assert look(epochs=4).startswith(f"going on from step 10 in {tmp_path}\n")


def test_a_short_run_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr("jaxvae.training.showing.time.monotonic", lambda: 5.0)
    run(progress=True)
    assert capsys.readouterr().err == ""


def test_the_line_says_where_it_is_and_what_is_left():
    metrics = {"loss": np.array([1.0, 3.0]), "validation_loss": np.array([np.nan, 5.0])}
    metrics |= {"never": np.full(2, np.nan), "pair": np.ones((2, 2))}
    line = line_of(metrics, "epoch 1.5/4", 75.4)
    assert line == "epoch 1.5/4  1:15 left  loss 2  validation_loss 5"
    bar = Line(20)
    bar.first = (10.0, 4)
    assert bar.left(14.0, 12) == 4.0  # eight steps took four seconds; eight are left


def test_pictures_are_drawn_while_it_learns(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    draw = lambda model, key: jnp.full((4, 5), 0.5)
    run(callbacks=[pictures(tmp_path / "new", draw, every=10)])
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["step_0000000010.png", "step_0000000020.png"]
    image = np.asarray(pil.open(tmp_path / "new" / files[0]))
    assert image.shape == (4, 5)
    assert set(image.ravel()) == {128}
    figure = SimpleNamespace(savefig=lambda path: path.touch())
    run(callbacks=[pictures(tmp_path / "figures", lambda model, key: figure)])
    assert len([*(tmp_path / "figures").iterdir()]) == len(LOOKS)


# what optax does


def rebuild(weight, key, x):
    """No noise: minus the squared error of a linear autoencoder."""
    return -jnp.sum(jnp.square(x - weight.T @ (weight @ x))), None


def test_gradients_are_accumulated_by_optax():
    """Four small batches and one update are the large batch; between them nothing moves."""
    xs = jnp.asarray(XS[:20])
    weight = jax.random.normal(jax.random.key(0), (2, 3))
    small = optax.MultiSteps(optax.sgd(1e-2), every_k_schedule=4).gradient_transformation()
    moved = []
    state, _ = fit(
        train_step(rebuild, small), init_state(weight, small), jax.random.key(1), xs, epochs=1,
        batch_size=5, steps_per_call=1,
        callbacks=[lambda state, *_: moved.append(bool(jnp.any(state.model != weight)))],
    )  # fmt: skip
    large = optax.sgd(1e-2)
    whole, _ = fit(
        train_step(rebuild, large), init_state(weight, large), jax.random.key(1), xs, epochs=1,
        batch_size=20,
    )  # fmt: skip
    assert moved == [False, False, False, True]
    assert np.allclose(state.model, whole.model, rtol=1e-5)


def test_the_learning_rate_falls_on_a_plateau_by_optax():
    """Two epochs of a loss that does not fall, and it is halved; a loss that falls keeps it."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, accumulation_size=5)
    scales = []
    for objective in (lambda w, key, x: (0.0 * w[0, 0] + 0.0 * x[0], None), rebuild):
        optimizer = optax.chain(optax.sgd(1e-3), plateau)
        state, _ = fit(
            train_step(objective, optimizer), init_state(jnp.ones((2, 3)), optimizer),
            jax.random.key(1), XS, epochs=4, batch_size=4,
        )  # fmt: skip
        scales.append(float(state.opt_state[-1].scale))
    assert scales == [0.5, 1.0]
