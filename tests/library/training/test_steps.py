"""Training as a fold: what a step does, and that a run is a pure function of key and data."""

import re
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.stats import multivariate_normal

from jaxvae import (
    VAE,
    Constant,
    Normal,
    StandardNormal,
    batched,
    binarize,
    conditioned,
    elbo,
    evaluation,
    fit,
    init_state,
    iwae,
    models,
    preprocessed,
    train_epoch,
    train_step,
    training,
)
from jaxvae.models import ppca
from jaxvae.training import coordinated_dropout, epoch_order, scan_steps
from jaxvae.training.objectives import check_hyper
from jaxvae.training.sources import Rows
from tests.common import close

OPTIMIZER = optax.adam(1e-2)
STEP = train_step(elbo, OPTIMIZER)  # one for all, as what is compiled of it is kept with it


class Linear(NamedTuple):
    weight: Any
    bias: Any
    log_scale: Any


def conditional(w, v):
    return Normal(w.weight @ v + w.bias, jnp.exp(w.log_scale))


def linear_vae(key, d=3, k=2):
    """The linear VAE: 2 x 3 arrays of parameters, of which the weights depend on the key."""
    down, up = (0.3 * jax.random.normal(a, (k, d)) for a in jax.random.split(key))
    return VAE(
        encode=Partial(conditional, Linear(down, jnp.zeros(k), jnp.zeros(k))),
        decode=Partial(conditional, Linear(up.T, jnp.zeros(d), jnp.zeros(()))),
        prior=StandardNormal((k,)),
    )


def data(n=10, d=3):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def start(seed=0):
    return init_state(linear_vae(jax.random.key(seed)), OPTIMIZER)


def same(a, b):
    """Two pytrees are one to rounding: programs compiled apart may round apart."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-5, atol=1e-5) for x, y in pairs)


class Seen(NamedTuple):
    """What an objective was given: a number drawn from its key, and its row of data."""

    draw: Any
    row: Any


def look(model, key, x):
    return 0.0 * model, Seen(jax.random.uniform(key), x)


LOOK = train_step(look, optax.sgd(1.0))


def watch():
    """A step of `look`, its state and its data 0., ..., 9."""
    return LOOK, init_state(jnp.array(1.0), optax.sgd(1.0)), np.arange(10.0, dtype=np.float32)


# a step


def drawn(model, key, x, *, num_samples, scale=1.0):
    """An objective of one's own, of as many draws."""
    return scale * jnp.mean(jax.random.normal(key, (num_samples,))) + 0.0 * model, None


def chosen(model, key, x, *, sharp):
    return model if sharp > 1 else -model, None


@pytest.mark.parametrize(
    ("objective", "hyper", "name"),
    [(drawn, {"num_samples": 5, "scale": 2.0}, "num_samples"), (chosen, {"sharp": 0.5}, "sharp")],
)
def test_what_an_objective_must_know_while_it_is_traced_is_named(objective, hyper, name):
    """As a shape or a choice; bound to it, it is known."""
    state, xs = init_state(jnp.array(1.0), OPTIMIZER), np.ones((4, 1), np.float32)
    run = partial(fit, state=state, key=jax.random.key(0), data=xs, epochs=1, batch_size=2)
    who = objective.__name__
    told = f"^train_step: {name} is traced, expected a Python number, as {who} fixes a shape .*"
    with pytest.raises(TypeError, match=rf"{told}partial\({who}, {name}=...\)"):
        run(train_step(objective, OPTIMIZER), **hyper)
    bound = partial(objective, **{name: hyper.pop(name)})
    run(train_step(bound, OPTIMIZER), **hyper)


def test_rows_without_a_y_are_told():
    step, told = train_step(conditioned(elbo), OPTIMIZER), "data is an array, expected a pair"
    with pytest.raises(TypeError, match=rf"^conditioned: {told} \(xs, ys\)"):
        step(start(), jax.random.key(0), data())


@pytest.mark.parametrize(
    ("objective", "hyper", "told"),
    [
        (elbo, {"betta": 2.0}, "elbo takes no betta, expected beta, kl and gradient$"),
        (preprocessed(elbo, binarize), {"betta": 2.0}, "elbo takes no betta, expected beta, kl"),
        (
            partial(elbo, **{"betta": 2.0}),
            {},
            "elbo takes no betta, expected beta, kl and gradient$",
        ),
        (
            preprocessed(partial(elbo, beta=2.0), binarize),
            {"betta": 2.0},
            "elbo takes no betta, expected kl and gradient$",
        ),
        (
            partial(elbo, **{"beta": optax.linear_schedule(0.0, 1.0, 5)}),
            {},
            r"elbo has beta bound to a schedule, expected a number; .* jaxvae.fit\(..., beta=sch",
        ),
        (conditioned(elbo), {"betta": 2.0}, "elbo takes no betta, expected beta, kl"),
        (
            partial(iwae, num_samples=2),
            {"beta": optax.linear_schedule(0.0, 1.0, 5)},
            "iwae takes no beta, expected gradient; to warm up, train with "
            "jaxvae.elbo under beta and go on from its state, or weigh the rate inside",
        ),
        (iwae, {}, r"iwae needs num_samples; bind it, functools.partial\(iwae, num_samples=...\)"),
        (look, {"beta": 1.0}, "look takes no beta, expected no hyper-parameter"),
    ],
)
def test_a_hyper_parameter_that_the_objective_does_not_take_is_told(objective, hyper, told):
    """With those that it takes, also where something was put around it."""
    with pytest.raises(TypeError, match=f"^train_step: {told}"):
        train_step(objective, OPTIMIZER)(start(), jax.random.key(0), data(), **hyper)


def test_a_count_that_is_traced_is_told():
    """In a jit of one's own, and as a hyper-parameter of `fit`."""
    told = "^iwae: num_samples is traced, expected a Python integer, as it fixes a shape; bind it"
    model, key = linear_vae(jax.random.key(0)), jax.random.key(0)
    with pytest.raises(ValueError, match=told):
        jax.eval_shape(lambda k: iwae(model, key, data()[0], num_samples=k), 3)
    with pytest.raises(ValueError, match=told):
        fit(train_step(iwae, OPTIMIZER), start(), key, data(), epochs=1, batch_size=5,
            num_samples=3)  # fmt: skip


def test_a_step_descends_the_mean_loss():
    # bound -|w - x|^2 / 2: SGD moves w by rate x (mean x - w), whatever the batch size
    def bound(w, key, x):
        return -0.5 * jnp.sum((w - x) ** 2), None

    xs, w = data(7), np.array([1.0, -2.0, 0.5], np.float32)
    optimizer = optax.sgd(0.1)
    step = jax.jit(train_step(bound, optimizer))
    state, metrics = step(init_state(w, optimizer), jax.random.key(0), xs)
    gap = np.mean(xs, axis=0) - np.asarray(w)
    assert close(state.model, w + 0.1 * gap)
    assert close(metrics["loss"], 0.5 * np.mean(np.sum((np.asarray(xs) - np.asarray(w)) ** 2, 1)))
    assert sorted(metrics) == ["loss"]
    assert int(state.step) == 1


def test_the_optimizer_carries_its_state():
    # momentum .9 on a constant slope of 1: steps of rate, then of 1.9 rate
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = jax.jit(train_step(lambda model, key, x: (model * x, None), optimizer))
    state = init_state(jnp.array(0.0), optimizer)
    for expected in (0.1, 0.1 + 0.19):
        state, _ = step(state, jax.random.key(0), jnp.ones(2))
        assert close(state.model, expected)


def test_the_optimizer_sees_the_parameters():
    # weight decay alone: parameters shrink by 1 - rate x decay, what is Constant does not
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    model = {"trained": jnp.array(2.0), "fixed": Constant(jnp.array(2.0))}
    step = jax.jit(train_step(lambda model, key, x: (0.0 * model["trained"] * x, None), optimizer))
    state, _ = step(init_state(model, optimizer), jax.random.key(0), jnp.ones(3))
    assert close(state.model["trained"], 2.0 * 0.95)
    assert state.model["fixed"].value == 2.0


def test_metrics_of_the_elbo():
    # loss = distortion + beta rate, terms unweighted and averaged, beta as used
    _, metrics = jax.jit(STEP)(start(), jax.random.key(0), data(), beta=0.25)
    assert sorted(metrics) == ["beta", "distortion", "loss", "rate"]
    assert all(jnp.shape(value) == () for value in metrics.values())
    assert close(metrics["loss"], metrics["distortion"] + 0.25 * metrics["rate"])
    assert metrics["beta"] == 0.25
    bound, terms = jax.jit(
        lambda model, key: batched(elbo)(model, jax.random.fold_in(key, 0), data(), beta=0.25)
    )(start().model, jax.random.key(0))
    assert close(metrics["loss"], -bound)
    assert close(metrics["rate"], np.mean(terms.rate))


def test_an_objective_without_terms_has_a_loss():
    # iwae's aux is an array: no metric is made of it
    step = jax.jit(train_step(partial(iwae, num_samples=3), OPTIMIZER))
    _, metrics = step(start(), jax.random.key(0), data())
    assert sorted(metrics) == ["loss"]


def test_a_dict_of_terms_is_followed():
    def objective(model, key, x):
        bound, terms = elbo(model, key, x)
        return bound, {"twice_the_rate": 2.0 * terms.rate}

    _, found = jax.jit(train_step(objective, OPTIMIZER))(start(), jax.random.key(0), data())
    _, expected = jax.jit(STEP)(start(), jax.random.key(0), data())
    assert sorted(found) == ["loss", "twice_the_rate"]
    assert close(found["twice_the_rate"], 2.0 * expected["rate"])


def test_what_has_no_mean_is_not_followed_and_the_loss_is_the_loss():
    def objective(model, key, x):
        bound, terms = elbo(model, key, x)
        aux = {"loss": jnp.zeros(()), "terms": terms, "key": key, "none": None, "no": jnp.zeros(0)}
        return [bound, aux]  # a list will do

    of_list: Any = objective
    _, found = jax.jit(train_step(of_list, OPTIMIZER))(start(), jax.random.key(0), data())
    _, expected = jax.jit(STEP)(start(), jax.random.key(0), data())
    assert [*found] == ["loss"]
    assert close(found["loss"], expected["loss"])


@pytest.mark.parametrize(("found", "what"), [(1.0, "a float"), ((1.0, 2.0, 3.0), "a tuple of 3")])
def test_an_objective_that_returns_no_pair_is_told(found, what):
    step = train_step(lambda model, key, x: found, OPTIMIZER)
    with pytest.raises(TypeError, match=rf"objective returned {what}, expected \(bound, aux\)"):
        step(start(), jax.random.key(0), data())


def test_schedules_are_called_with_the_step():
    # the effective beta is logged: 0, 1/4, ..., 1, 1 for a warm-up over 4 steps, and is what acts
    warm_up = optax.linear_schedule(0.0, 1.0, 4)
    _, history = fit(STEP, start(), jax.random.key(0), data(), epochs=3, batch_size=5, beta=warm_up)
    assert close(history["beta"], np.array([0, 0.25, 0.5, 0.75, 1, 1], np.float32))
    assert np.allclose(
        history["loss"], history["distortion"] + history["beta"] * history["rate"], rtol=1e-5
    )


def test_step_t_draws_with_the_key_folded_by_t():
    # fold_in(key, t), split over the batch: no draw comes twice, and a resumed run repeats none
    step, state, xs = watch()
    state, history = fit(step, state, jax.random.key(7), xs, epochs=3, batch_size=1)
    for t in (0, 1, 29):
        (key,) = jax.random.split(jax.random.fold_in(jax.random.key(7), t), 1)
        assert history["draw"][t] == jax.random.uniform(key)
    assert len(np.unique(history["draw"])) == 30


def test_jit_is_no_jit():
    # the same step to rounding
    optimizer = optax.sgd(1e-2)
    step, state = train_step(elbo, optimizer), init_state(start().model, optimizer)
    eager = step(state, jax.random.key(1), data(), beta=0.5)
    assert same(eager, jax.jit(step)(state, jax.random.key(1), data(), beta=0.5))


def offset(model, key, x, *, beta):
    return -beta * jnp.sum((x - model["offset"]) ** 2), None


@pytest.mark.parametrize(
    ("objective", "model"),
    [(elbo, lambda: linear_vae(jax.random.key(0))), (offset, lambda: {"offset": 0.5})],
)
def test_one_trace(objective, model):
    # steps, keys and betas retrace nothing; nor does a Python float among the parameters
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(train_step(objective, OPTIMIZER), n=1))
    state = init_state(model(), OPTIMIZER)
    for i in range(3):
        state, _ = step(state, jax.random.key(i), data(), beta=jnp.array(0.1 * i))
    assert int(state.step) == 3


# an epoch


def test_epoch_order_is_a_permutation():
    # no row twice; what does not fill a batch is dropped
    order = epoch_order(jax.random.key(0), 0, 12, 4)
    assert order.shape == (3, 4)
    assert sorted(np.ravel(order)) == list(range(12))
    order = epoch_order(jax.random.key(0), 0, 14, 4)
    assert order.shape == (3, 4)
    assert len(np.unique(order)) == 12
    assert np.max(order) < 14


def test_epoch_order_is_shuffled_afresh():
    # another order for every epoch and key, the same for the same two, traced or not; over the
    # epochs no row is left out
    orders = [np.ravel(epoch_order(jax.random.key(0), epoch, 14, 4)) for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert set(np.concatenate(orders)) == set(range(14))
    assert not np.array_equal(np.ravel(epoch_order(jax.random.key(1), 0, 14, 4)), orders[0])
    traced = jax.jit(lambda epoch: epoch_order(jax.random.key(0), epoch, 14, 4))(3)
    assert np.array_equal(np.ravel(traced), orders[3])


def test_shuffles_share_no_key_with_steps():
    # step t draws from fold_in(key, t): no shuffle is made with one of those
    def of_step(t):
        return jax.random.permutation(jax.random.fold_in(jax.random.key(0), t), 14)

    theirs = set(map(tuple, np.asarray(jax.jit(jax.vmap(of_step))(np.arange(50))).tolist()))
    ours = [epoch_order(jax.random.key(0), epoch, 14, 14)[0].tolist() for epoch in range(20)]
    assert not theirs & set(map(tuple, ours))


def test_epoch_order_favours_no_row():
    # each of 12 rows is first in 1/12 of 4800 epochs, within 4 standard errors
    first = jax.jit(jax.vmap(lambda epoch: epoch_order(jax.random.key(0), epoch, 12, 4)[0, 0]))
    counts = np.bincount(first(np.arange(4800)), minlength=12)
    assert np.max(np.abs(counts - 400)) < 4 * (4800 * 11 / 144) ** 0.5


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, 11])
def test_batch_size_is_between_one_and_the_rows(batch_size):
    # refused by name, by fit and train_epoch as by epoch_order
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        epoch_order(jax.random.key(0), 0, 10, batch_size)
    step, state, xs = watch()
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        fit(step, state, jax.random.key(0), xs, epochs=1, batch_size=batch_size)
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        train_epoch(step, batch_size=batch_size)(state, jax.random.key(0), xs)


BAD = {
    "step": ("adam", "a str, expected a step; make one, jaxvae.train_step"),
    "state": (linear_vae(jax.random.key(0)), "a VAE, expected a TrainState; make one, jaxvae.init"),
    "key": (0, "an int, expected PRNG key"),
    "batch_size": (11, "11 and the data have 10 rows, expected no more than those"),
    "epochs": (0, "0, expected an integer"),
    "callbacks": (3, "an int, expected functions"),
    "callbacks[1]": ([print, "x"], "a str, expected a function"),
    "checkpoints": ("folder", "a str, expected a Checkpoints; make one, jaxvae.Checkpoints(folder"),
    "mesh": (3, "an int, expected a mesh of devices; jax.make_mesh("),
    "beta": ("x", "a str, expected an array of numbers"),
    "beta(0)": (lambda step: "x", "a str, expected an array of numbers"),
    "data": (None, "None, expected an array"),
}


@pytest.mark.parametrize("name", BAD)
def test_fit_names_its_own_arguments_and_what_to_give(name):
    value, expected = BAD[name]
    with pytest.raises(
        (TypeError, ValueError), match=rf"^fit: {re.escape(f'{name} is {expected}')}"
    ):
        fit_with(**{re.sub(r"\W.*", "", name): value})


def fit_with(**changes):
    good = {"step": STEP, "state": init_state(linear_vae(jax.random.key(0)), OPTIMIZER),
            "key": jax.random.key(0), "data": data(), "epochs": 1, "batch_size": 5}  # fmt: skip
    return fit(**{**good, **changes})


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([*data()], "holds a list of 10, .* expected an array, np.stack"),
        ((data(), data(3)), r"has leading axes \[\(3,\), \(10,\)\], expected one common"),
        (data()[:0], r"has leading axes \[\(0,\)\]"),
        (3.0, r"has leading axes \[\(\)\]"),
    ],
)
def test_rows_that_are_none_are_called_by_the_name_of_the_argument(rows, what):
    with pytest.raises((TypeError, ValueError), match=f"^fit: data {what}"):
        fit_with(data=rows)
    with pytest.raises((TypeError, ValueError), match=f"^train_epoch: data {what}"):
        train_epoch(STEP, batch_size=5)(
            init_state(linear_vae(jax.random.key(0)), OPTIMIZER), jax.random.key(0), rows
        )
    with pytest.raises((TypeError, ValueError), match=rf"^fit: data\(key\) {what}"):
        fit_with(data=lambda key: rows, batch_size=None, steps_per_epoch=2)
    model = linear_vae(jax.random.key(0))
    calls = {
        "evaluate: xs": lambda: evaluation.evaluate(model, jax.random.key(0), rows, num_samples=2),
        "encode_all: xs": lambda: evaluation.encode_all(model, rows),
        "decode_all: zs": lambda: evaluation.decode_all(model, rows),
        "validation: xs": lambda: training.validation(elbo, jax.random.key(0), rows),
        "active_units: xs": lambda: evaluation.active_units(model, rows),
        "optimal_scale: xs": lambda: evaluation.optimal_scale(model, jax.random.key(0), rows),
        "batched: xs": lambda: batched(elbo)(model, jax.random.key(0), rows),
    }
    for name, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=f"^{name} {what}"):
            call()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (1.0, "a callback returned a float, expected None, or numbers by name, such as"),
        ({"norm": "x"}, "'norm' of a callback is a str, expected an array of numbers"),
        ({"loss": 1.0}, "a callback returned 'loss', expected no name of a metric"),
    ],
)
def test_what_a_callback_returns_is_looked_at(found, message):
    with pytest.raises((TypeError, ValueError), match=f"^fit: {message}"):
        fit_with(callbacks=[lambda *_: found])


def test_an_epoch_visits_every_row_in_order():
    # the rows of epoch_order, epoch by epoch
    step, state, xs = watch()
    _, history = fit(step, state, jax.random.key(3), xs, epochs=2, batch_size=1)
    orders = [epoch_order(jax.random.key(3), epoch, 10, 1)[:, 0] for epoch in range(2)]
    assert history["row"].tolist() == np.concatenate(orders).tolist()


def test_scanned_steps_are_a_loop():
    # scan_steps against Python
    step, order = jax.jit(STEP), np.array([[0, 1], [7, 7], [9, 2]])
    scanned, metrics = scan_steps(step)(start(), jax.random.key(4), data(), order, beta=0.5)
    state, losses = start(), []
    for rows in order:
        state, m = step(state, jax.random.key(4), data()[rows], beta=0.5)
        losses.append(m["loss"])
    assert same(scanned, state)
    assert close(metrics["loss"], np.stack(losses))


# a run


def run(key, beta, epochs=3):
    """A whole run, model and all."""
    model_key, key = jax.random.split(key)
    epoch = train_epoch(STEP, batch_size=4)
    state = init_state(linear_vae(model_key), OPTIMIZER)
    return jax.lax.scan(lambda s, _: epoch(s, key, data(), beta=beta), state, length=epochs)


RUN = jax.jit(run)


@pytest.mark.thorough
def test_fit_is_a_scan_of_epochs():
    # to rounding, as the two are compiled apart; 10 rows in batches of 4 leave 2 out
    model_key, key = jax.random.split(jax.random.key(5))
    state = init_state(linear_vae(model_key), OPTIMIZER)
    fitted, history = fit(STEP, state, key, data(), epochs=3, batch_size=4, beta=0.5)
    scanned, metrics = RUN(jax.random.key(5), 0.5)
    assert same(fitted, scanned)
    assert int(fitted.step) == 6
    assert same(history, {name: np.ravel(values) for name, values in metrics.items()})


def test_a_run_is_a_function_of_key_and_hyper():
    # the same twice to the bit; vmapped over seeds and betas it is the loop over them
    first, again = (RUN(jax.random.key(6), 0.5) for _ in range(2))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    seeds, betas = jax.random.split(jax.random.key(6), 2), np.array([0.0, 0.5, 2.0], np.float32)
    swept = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(seeds, betas)
    swept = jax.tree.map(np.asarray, swept)
    assert swept[1]["loss"].shape == (2, 3, 3, 2)
    losses = set()
    for i, key in enumerate(jax.random.split(jax.random.key(6), 2)):
        for j, beta in enumerate(betas):
            looped = RUN(jax.random.clone(key), float(beta))
            assert same(looped, jax.tree.map(itemgetter((i, j)), swept))
            losses.add(float(looped[1]["loss"][-1, -1]))
    assert len(losses) == 6


@pytest.mark.parametrize("steps_per_call", [1, 2, 3, 5, 100])
def test_steps_per_call_changes_no_number(steps_per_call):
    # a look every few steps is only a look; 5 steps an epoch, so 2 and 3 leave a remainder
    step, state, xs = watch()
    _, whole = fit(step, state, jax.random.key(8), xs, epochs=2, batch_size=2)
    calls = []
    _, parts = fit(
        step,
        state,
        jax.random.key(8),
        xs,
        epochs=2,
        batch_size=2,
        steps_per_call=steps_per_call,
        callbacks=iter(
            [lambda state, metrics, epoch, key: calls.append((int(state.step), metrics))]
        ),
    )
    for name in whole:
        assert np.array_equal(whole[name], parts[name])
        assert np.array_equal(np.concatenate([m[name] for _, m in calls]), parts[name])
    sizes = [len(metrics["loss"]) for _, metrics in calls]
    assert max(sizes) == min(steps_per_call, 5)
    assert [at for at, _ in calls] == np.cumsum(sizes).tolist()


def test_steps_per_call_is_a_positive_integer():
    # 0 or less is refused by name
    step, state, xs = watch()
    for size in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"steps_per_call is {size}"):
            fit(step, state, jax.random.key(0), xs, epochs=1, batch_size=2, steps_per_call=size)  # pyright: ignore[reportArgumentType]


def test_a_resumed_run_is_the_uninterrupted_one():
    # 4 epochs are 2 and then 2 more from the state, with the same key
    key = jax.random.key(9)
    whole, history = fit(STEP, start(), key, data(), epochs=4, batch_size=4)
    half, before = fit(STEP, start(), key, data(), epochs=2, batch_size=4)
    resumed, after = fit(STEP, half, key, data(), epochs=2, batch_size=4)
    assert same(resumed, whole)
    assert np.allclose(np.concatenate([before["loss"], after["loss"]]), history["loss"], rtol=1e-5)


def test_epochs_are_whole_passes_over_these_data():
    # chunks of 10, 10, 6 and 6 rows: steps that others had made count in no epoch of theirs
    step, state, xs = watch()
    key, orders = jax.random.key(10), []
    for rows in (10, 10, 6, 6):
        state, history = fit(step, state, key, xs[:rows], epochs=1, batch_size=1)
        assert sorted(history["row"].tolist()) == list(range(rows))
        orders.append(history["row"].tolist())
    assert int(state.step) == 32
    assert orders[2] != orders[3]


def test_states_stay_usable():
    # fit donates its own buffers alone: the caller's state survives, and so do the callbacks'
    state, kept = start(), []
    before = jax.tree.map(np.array, state)
    fit(
        STEP,
        state,
        jax.random.key(0),
        data(),
        epochs=3,
        batch_size=5,
        callbacks=[lambda state, metrics, epoch, key: kept.append(state)],
    )
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(state)))
    assert [int(state.step) for state in kept] == [2, 4, 6]
    assert len({np.asarray(state.model.decode.args[0].bias).tobytes() for state in kept}) == 3


def test_fit_traces_once():
    # three epochs of one compiled program
    traces = []

    def counted(model, key, x):
        traces.append(x.shape)
        return elbo(model, key, x)

    step = train_step(counted, OPTIMIZER)
    fit(step, start(), jax.random.key(0), data(), epochs=3, batch_size=5)
    assert len(traces) == 1
    fit(step, start(), jax.random.key(1), data(), epochs=1, batch_size=5)  # and so is the next run
    assert len(traces) == 1


def test_a_short_last_call_is_the_same_program():
    # seven steps an epoch in calls of three: 3, 3 and 1
    traces, seen = [], []

    def counted(model, key, x):
        traces.append(x.shape)
        return elbo(model, key, x)

    run = partial(fit, train_step(counted, OPTIMIZER), start(), jax.random.key(0), data(), epochs=2)
    few = run(
        batch_size=1, steps_per_call=3, callbacks=[lambda s, m, e, k: seen.append(len(m["loss"]))]
    )
    assert len(traces) == 1
    assert seen == 2 * ([3] * (len(data()) // 3) + [len(data()) % 3])
    once = run(batch_size=1)
    assert jax.tree.all(jax.tree.map(close, few[0].model, once[0].model))
    assert close(few[1]["loss"], once[1]["loss"])


@pytest.mark.parametrize("epochs", [0, 1.5, True])
def test_epochs_is_a_positive_integer(epochs):
    # refused by name
    step, state, xs = watch()
    with pytest.raises(ValueError, match=f"epochs is {epochs}"):
        fit(step, state, jax.random.key(0), xs, epochs=epochs, batch_size=2)


@pytest.mark.thorough
def test_data_stay_bytes():
    # uint8 in, uint8 to the objective: no float copy of the data set in the program
    xs = np.random.default_rng(0).integers(0, 256, (30, 3)).astype(np.uint8)
    dtypes = []

    def objective(model, key, x):
        dtypes.append(x.dtype)
        return preprocessed(elbo, binarize)(model, key, x)

    step = train_step(objective, OPTIMIZER)
    _, history = fit(step, start(), jax.random.key(0), xs, epochs=1, batch_size=10)
    assert dtypes == [jnp.uint8]
    assert np.all(np.isfinite(history["loss"]))
    program = jax.make_jaxpr(scan_steps(step))(
        start(), jax.random.key(0), xs, np.arange(30).reshape(3, 10)
    )
    assert "u8[30,3]" in str(program)
    assert "f32[30,3]" not in str(program)


def test_data_may_be_a_pytree():
    # rows of every leaf go together
    def objective(model, key, x):
        return 0.0 * model, Seen(x["a"], x["b"][0])

    step, xs = train_step(objective, optax.sgd(1.0)), np.arange(10.0, dtype=np.float32)
    state = init_state(jnp.array(1.0), optax.sgd(1.0))
    pair = {"a": xs, "b": np.stack([-xs, xs], axis=1)}
    _, history = fit(step, state, jax.random.key(0), pair, epochs=1, batch_size=1)
    assert np.array_equal(history["draw"], -history["row"])


# the state


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (VAE(Partial(Normal), lambda z: z, StandardNormal((2,))), "model.decode is a function"),
        ({"name": "vae"}, r"model\['name'\] is a str"),
    ],
)
def test_only_arrays_train(model, message):
    # a bare function is named, with the way out
    with pytest.raises(TypeError, match=rf"{message}.*jax\.tree_util\.Partial"):
        init_state(model, OPTIMIZER)


class Plain:
    def __init__(self, scale):
        self.scale = scale

    def sample(self, key):
        return jax.random.normal(key, (2,)) * self.scale

    def log_prob(self, z):
        return Normal(jnp.zeros(2), self.scale).log_prob(z)


def test_a_distribution_that_is_no_pytree_is_told_how_to_be_one():
    with pytest.raises(TypeError, match=r"prior'\] is a Plain, .* @jaxvae\.pytree"):
        init_state({"prior": Plain(1.0)}, OPTIMIZER)


def test_a_new_state():
    # step 0 as int32, the model as given, the optimiser's own state
    model: Any = linear_vae(jax.random.key(0))
    state = init_state(model, OPTIMIZER)
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 0
    assert same(state.model, model)
    assert same(state.opt_state, OPTIMIZER.init(model))


# all of it


def test_linear_vae_reaches_the_ppca_optimum():
    # trained by Adam: log p(x) per example within .02 nats of the closed form and never above it,
    # and the ELBO, whose q is diagonal, within .05
    d, k = 5, 2
    up = np.array([[2.0, 0.5, -1.0, 0.0, 0.3], [0.0, 1.0, 0.5, -0.8, 0.1]], np.float32)
    xs = data(500, k) @ up + 1 + np.float32(0.5) * data(500, d)[::-1]
    best = jax.jit(ppca.maximum_likelihood, static_argnums=1)(xs, k)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    likelihoods = []

    def log_likelihood(weight, mean, variance):
        cov: Any = np.asarray(weight) @ np.asarray(weight).T + float(variance) * np.eye(d)
        return np.mean(multivariate_normal.logpdf(xs, mean, cov))

    def measure(state, metrics, epoch, key):
        w = state.model.decode.args[0]
        likelihoods.append(log_likelihood(w.weight, w.bias, np.exp(2 * w.log_scale)))

    state, _ = fit(
        train_step(elbo, optimizer),
        init_state(linear_vae(jax.random.key(0), d, k), optimizer),
        jax.random.key(1),
        xs,
        epochs=75,
        batch_size=25,
        callbacks=[measure],
    )
    optimum = log_likelihood(*best)
    assert max(likelihoods) < optimum + 1e-6
    assert likelihoods[-1] > optimum - 0.02
    bounds, _ = jax.jit(jax.vmap(lambda key: batched(elbo)(state.model, key, xs)))(
        jax.random.split(jax.random.key(2), 100)
    )
    bounds = np.asarray(bounds)
    assert optimum - 0.05 < bounds.mean() < optimum + 4 * bounds.std() / 10


@pytest.mark.parametrize("leaf", [jnp.arange(3), np.arange(3), jnp.array(True)])
def test_integers_do_not_train(leaf):
    # jax.grad would refuse them at the first step; the leaf is named at once
    with pytest.raises(TypeError, match=r"model\['steps'\] is an array of (int|bool).*Constant"):
        init_state({"w": jnp.ones(3), "steps": leaf}, OPTIMIZER)


@pytest.mark.parametrize("size", [None, 2, 3, 7])
def test_a_call_begins_where_the_last_one_ended(size):
    """Wherever in the epoch; and every call has as many rows, so that all are one program."""
    source = Rows(np.arange(13), begun=0, epochs=2, batch_size=3, size=size)
    for done in range(8):
        epoch, inside = divmod(done, 4)
        order = epoch_order(jax.random.key(0), epoch, 13, 3)
        steps: Any = source.steps(jax.random.key(0), done)
        assert steps.made == min(size or 4, 4 - inside)
        assert steps.rows.shape == (size or 4, 3)
        assert np.array_equal(steps.rows[: steps.made], order[inside : inside + steps.made])


LIFTED = {
    "coordinated": (coordinated_dropout, ["rate"]),
    "labelled": (models.labelled, ["alpha"]),
    "unlabelled": (models.unlabelled, []),
    "refined": (partial(models.semi_amortized, optimizer=optax.sgd(0.1), num_steps=1), []),
    "preprocessed": (partial(preprocessed, transform=binarize), []),
    "conditioned": (conditioned, []),
    "left out": (models.left_out, []),
}


@pytest.mark.parametrize("name", LIFTED)
def test_what_is_made_of_an_objective_takes_its_hyper_parameters_and_its_own(name):
    lift, own = LIFTED[name]
    check_hyper("here", lift(elbo), ["beta", *own])
    check_hyper("here", partial(lift(iwae), num_samples=2), own)
    check_hyper("here", lift(partial(iwae, num_samples=2)), own)
    with pytest.raises(TypeError, match="here: iwae needs num_samples"):
        check_hyper("here", lift(iwae), own)
    with pytest.raises(TypeError, match="here: elbo takes no betta, expected "):
        check_hyper("here", lift(elbo), ["betta", *own])
    if name == "coordinated":
        with pytest.raises(TypeError, match="here: elbo needs rate; bind it"):
            check_hyper("here", lift(elbo), [])
