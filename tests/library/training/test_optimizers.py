"""What `train_step` gives the optimiser: the gradient, and the loss for those that adapt to it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn
from jaxvae.training.nonfinite import still_finite

START, TARGET = jnp.array([3.0, -2.0]), jnp.array([1.0, 0.5])
XS = jnp.stack([TARGET + 1.0, TARGET - 1.0])


def squares(model, key, x):
    """-1/2 |model - x|^2 of a noisy x."""
    return -0.5 * jnp.sum(jnp.square(model - x - jax.random.normal(key, x.shape))), None


def parabola(model, key, x):
    """The same without noise."""
    return -0.5 * jnp.sum(jnp.square(model - x)), None


def still(model, key, x):
    """Never better, with a gradient of 1."""
    return jnp.sum(model - jax.lax.stop_gradient(model)), None


def recording(names):
    """The extra arguments of this step, those of a function at 0 beside."""

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any):
        value, grad, value_fn = (extra_args.pop(name) for name in ("value", "grad", "value_fn"))
        assert not extra_args
        return updates, {
            "value": value,
            "grad": grad,
            "here": value_fn(params),
            "at 0": value_fn(jnp.zeros(2)),
            "at 0 in a loop": jax.lax.fori_loop(0, 1, lambda i, v: value_fn(0.0 * params), value),
        }

    zeros = {name: jnp.zeros(()) for name in names} | {"grad": jnp.zeros(2)}
    return optax.GradientTransformationExtraArgs(lambda params: zeros, update)


def test_the_optimiser_is_given_the_loss_of_the_batch_under_the_same_noise():
    names = ("value", "here", "at 0", "at 0 in a loop")
    optimizer, key = optax.chain(optax.sgd(0.1), recording(names)), jax.random.key(3)
    step = jax.jit(jv.train_step(squares, optimizer))
    state, metrics = step(jv.init_state(START, optimizer), jax.random.clone(key), XS)
    seen = state.opt_state[-1]
    assert seen["value"] == metrics["loss"] == seen["here"]
    assert np.allclose(START - 0.1 * seen["grad"], state.model, rtol=1e-6)
    at_0 = -jv.batched(squares)(jnp.zeros(2), jax.random.fold_in(key, 0), XS)[0]
    assert np.allclose([seen["at 0"], seen["at 0 in a loop"]], at_0, rtol=1e-6)


def test_polyaks_step_is_its_formula():
    """gamma = loss / |g|^2, which optax takes with `value`."""
    optimizer = optax.polyak_sgd(max_learning_rate=10.0)
    state, metrics = jax.jit(jv.train_step(squares, optimizer))(
        jv.init_state(START, optimizer), jax.random.key(3), XS
    )
    loss = lambda model: (
        -jv.batched(squares)(model, jax.random.fold_in(jax.random.key(3), 0), XS)[0]
    )
    g = jax.grad(loss)(START)
    assert np.allclose(state.model, START - metrics["loss"] / jnp.sum(g**2) * g, rtol=1e-5)


def test_a_plateau_lowers_the_rate_inside_fit():
    """By its factor, once for every two steps that were no better."""
    optimizer = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    state, _ = jv.fit(
        jv.train_step(still, optimizer),
        jv.init_state(START, optimizer),
        jax.random.key(0),
        jnp.ones((8, 2)),
        epochs=3,
        batch_size=4,
    )
    # the first loss is better than none, then come two pairs of equal ones and one more
    assert optax.tree.get(state.opt_state, "scale") == 0.25
    assert jnp.all(state.model - START == 1.0 + 1.0 + 0.5 + 0.5 + 0.25 + 0.25)


def test_what_is_no_number_is_never_meant():
    """Neither in the model from the start, nor where an infinity of the optimiser becomes it."""
    inf, nan = jnp.array([jnp.inf, 1.0]), jnp.array([jnp.nan, 1.0])
    finite = jnp.ones(2)
    of = jax.jit(still_finite)
    assert [bool(of(a, b)) for a, b in ((inf, inf), (inf, finite), (finite, finite))] == [True] * 3
    wrong = ((finite, inf), (finite, nan), (inf, nan), (nan, nan))
    assert not any(bool(of(a, b)) for a, b in wrong)


def test_an_average_of_half_precision_moves():
    """By less than the parameters can tell: after 2,000 steps of decay .99 it is theirs."""
    model = {"theta": jnp.ones((), jnp.bfloat16)}
    optimizer = optax.chain(optax.sgd(0.0), jv.training.average_parameters(0.99))
    state = optimizer.init({"theta": jnp.zeros((), jnp.bfloat16)})

    def body(_, state):
        return optimizer.update({"theta": jnp.zeros((), jnp.bfloat16)}, state, model)[1]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, body, state))(state)
    whole = jv.training.TrainState(model, state, jnp.int32(2000))
    average = jv.training.averaged_model(whole)["theta"]
    assert average.dtype == jnp.bfloat16
    assert float(average) == 1.0


PLATEAU = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, accumulation_size=8)


@pytest.mark.parametrize("lift", [lambda step: step, jv.training.skip_nonfinite])
@pytest.mark.parametrize("steps_per_call", [None, 1])
def test_an_optimiser_may_hold_an_infinity(lift, steps_per_call):
    """The best loss of a plateau is infinite until so many losses are known, eight here."""
    optimizer = optax.chain(optax.sgd(1.0), PLATEAU)
    begin = jv.init_state(START, optimizer)
    state, history = jv.fit(
        lift(jv.train_step(still, optimizer)), begin, jax.random.key(0), jnp.ones((8, 2)),
        epochs=3, batch_size=4, steps_per_call=steps_per_call,
    )  # fmt: skip
    assert jnp.all(state.model - START == 6.0)
    assert not np.any(history.get("skipped", 0))
    broken = begin._replace(model=START.at[0].set(jnp.nan))
    with pytest.raises(jv.training.NonFiniteError, match=r"step 1: .*at \.model"):
        jv.fit(jv.train_step(still, optimizer), broken, jax.random.key(0), jnp.ones((8, 2)),
               epochs=1, batch_size=4)  # fmt: skip


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    ],
)
def test_line_searches_find_the_minimum(optimizer):
    """Of a parabola: the mean of the rows."""
    state = jv.init_state(START, optimizer)
    step = jax.jit(jv.train_step(parabola, optimizer))
    for _ in range(4):
        state, _ = step(state, jax.random.key(3), XS)
    assert np.allclose(state.model, TARGET, atol=1e-4)


@pytest.mark.parametrize("name", ["obj_fn", "only value"])
def test_what_a_step_does_not_have_is_said(name):
    def needs(updates, state, params=None, *, obj_fn, **extra_args):
        return updates, state

    def strict(updates, state, params=None, *, value):
        return updates, state

    update = {"obj_fn": needs, "only value": strict}[name]
    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    message = {"obj_fn": "'obj_fn'", "only value": "'grad'"}[name]
    with pytest.raises(TypeError, match=f"train_step: optimizer is given .*value_fn.*{message}"):
        jv.train_step(squares, optimizer)(jv.init_state(START, optimizer), jax.random.key(0), XS)


@pytest.mark.parametrize(
    ("optimizer", "what"),
    [("adam", "a str"), (optax.adam, "the function adam"), (None, "None"), (0.1, "a float")],
)
def test_what_is_no_optimiser_is_refused_before_the_first_step(optimizer, what):
    calls = {
        "train_step": lambda: jv.train_step(squares, optimizer),
        "init_state": lambda: jv.init_state(START, optimizer),
        "semi_amortized": lambda: jv.models.semi_amortized(jv.elbo, optimizer, num_steps=1),
        "ema_step": lambda: jv.models.ema_step(jv.models.vq, optimizer),
    }
    for name, call in calls.items():
        expected = rf"^{name}: optimizer is {what}, expected an optax optimizer, for example .*\)$"
        with pytest.raises(TypeError, match=expected):
            call()


def test_whatever_has_init_and_update_is_an_optimiser():
    optimizer: Any = optax.MultiSteps(optax.sgd(0.1), 1)
    state, _ = jv.train_step(parabola, optimizer)(
        jv.init_state(START, optimizer), jax.random.key(0), XS
    )
    np.testing.assert_allclose(state.model, START - 0.1 * (START - TARGET), rtol=1e-6)


def test_another_type_error_of_an_optimiser_stays_what_it_is():
    def broken(updates, state, params=None):
        raise TypeError("mine")

    optimizer = optax.GradientTransformation(lambda params: (), broken)
    with pytest.raises(TypeError, match=r"^mine$"):
        jv.train_step(squares, optimizer)(jv.init_state(START, optimizer), jax.random.key(0), XS)


def refined(optimizer):
    """A model whose encoder is a dense layer, and its ELBO after one step of the optimiser."""
    rngs, linear = nnx.Rngs(0), partial(nn.MLP, hidden=())
    model = jv.VAE(
        nn.Conditional(linear, nn.NormalHead(), (3,), (2,), rngs=rngs),
        nn.Conditional(linear, nn.NormalHead(), (2,), (3,), rngs=rngs),
        jv.StandardNormal((2,)),
    )
    return model, jv.models.semi_amortized(jv.elbo, optimizer, num_steps=1)


@pytest.mark.thorough
def test_an_optimiser_of_the_codes_is_given_the_loss_too():
    """Polyak's step on the encoder's raw output, by hand."""
    model: Any
    model, objective = refined(optax.polyak_sgd(max_learning_rate=10.0))
    x, key = jnp.array([0.5, -1.0, 2.0]), jax.random.key(5)

    def at(raw):
        return model._replace(encode=lambda _: nn.NormalHead()(raw))

    with jax.debug_key_reuse(False):
        steps_key, last = jax.random.split(key)
        loss = lambda raw: -jv.elbo(at(raw), jax.random.fold_in(steps_key, 0), x)[0]
        raw = model.encode.network(x)
        value, g = jax.value_and_grad(loss)(raw)
        expected, _ = jv.elbo(at(raw - value / jnp.sum(g**2) * g), last, x)
        assert np.allclose(objective(model, key, x)[0], expected, rtol=1e-5)


def test_a_line_search_of_the_codes_is_refused_in_a_line():
    model, objective = refined(optax.lbfgs())
    with pytest.raises(TypeError, match=r"^semi_amortized: optimizer is given .*'value_fn'"):
        objective(model, jax.random.key(5), jnp.ones(3))
