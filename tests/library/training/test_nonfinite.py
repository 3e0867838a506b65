"""Numbers that go wrong: where a run stops, what it says, and what it keeps."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from jaxvae import (
    VAE,
    Bernoulli,
    Checkpoints,
    Independent,
    Masked,
    Normal,
    Poisson,
    StandardNormal,
    elbo,
    fit,
    init_state,
    pytree,
    train_step,
)
from jaxvae.bounds.evidence import Terms
from jaxvae.distributions import ZeroInflated
from jaxvae.training import (
    NonFiniteError,
    clip_by_finite_norm,
    load_checkpoint,
    newest_checkpoint,
    skip_nonfinite,
    sweep_step,
)
from jaxvae.training.checkpoints.resuming import checkpoint_files
from jaxvae.training.nonfinite import SMALL, all_finite

SGD = optax.sgd(0.1)


def bound(model, key, x):
    """x = 1 is harmless; x = nan spoils the distortion, x = inf only the gradient of `b`."""
    distortion = (model["a"] - jnp.minimum(x, 2.0)) ** 2
    spoiler = jnp.sqrt(model["b"] * jnp.where(jnp.isinf(x), 0.0, 1.0))  # of sqrt(0): nan
    rate = model["a"] ** 2
    return -(distortion + rate + 0.0 * spoiler), Terms(distortion, rate)


STEP = train_step(bound, SGD)  # one for all, as what is compiled of it is kept with it
COMPILED = jax.jit(STEP)
SKIPPING = skip_nonfinite(STEP)
LOOK = jax.jit(all_finite)
ONES = np.ones(12, np.float32)


def start():
    return init_state({"a": jnp.array(1.0), "b": jnp.array(1.0)}, SGD)


def row_at(bad):
    """The row of twelve that comes at step `bad` of the only epoch."""
    from jaxvae.training import epoch_order

    order = np.ravel(epoch_order(jax.random.key(0), 0, 12, 1))
    return int(order[bad - 1])


def spoiled(row, value):
    """Ones, of which one is `value`."""
    return np.where(np.arange(12) == row, np.float32(value), ONES)


@pytest.mark.parametrize(
    "bad", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7)), 5, 6, 12]
)
@pytest.mark.parametrize("steps_per_call", [1, 4, None])
@pytest.mark.parametrize(
    ("value", "culprit"), [(np.nan, "distortion and loss not finite"), (np.inf, r"the update of")]
)
def test_a_run_stops_before_the_step_that_spoils_it(tmp_path, bad, steps_per_call, value, culprit):
    """The error names the step and its term; the state before it is given and saved."""
    row = row_at(bad)
    seen = []
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: {culprit}") as raised:
        fit(
            STEP, start(), jax.random.key(0), spoiled(row, value), epochs=1,
            batch_size=1, steps_per_call=steps_per_call, checkpoints=Checkpoints(tmp_path),
            callbacks=[lambda state, metrics, epoch, key: seen.append(int(state.step))],
        )  # fmt: skip
    error = raised.value
    assert isinstance(error, NonFiniteError)
    assert error.step == bad
    assert error.rows.tolist() == [row]
    assert int(error.state.step) == bad - 1
    assert all_finite(error.state)
    assert all(step < bad for step in seen)
    path = checkpoint_files(tmp_path)[-1]
    assert f"the state before it is in {path}" in str(error)
    found = load_checkpoint(path, error.state)
    assert found.model == error.state.model
    expected = start()
    for _ in range(bad - 1):
        expected, _ = COMPILED(expected, jax.random.key(0), ONES[:1])
    assert np.allclose(error.state.model["a"], expected.model["a"], rtol=1e-6)


def test_an_update_of_a_pytree_is_named():
    row = row_at(3)
    with pytest.raises(
        NonFiniteError, match=r"the update of \.model\['b'\] not finite \(distortion "
    ):
        fit(
            STEP, start(), jax.random.key(0), spoiled(row, np.inf), epochs=1,
            batch_size=1,
        )  # fmt: skip


def test_a_state_that_was_spoiled_before_is_named():
    state = start()
    state = state._replace(model=state.model | {"b": jnp.array(jnp.nan)})
    with pytest.raises(
        NonFiniteError, match=r"step 1: the state it begins with, at \.model\['b'\]"
    ):
        fit(STEP, state, jax.random.key(0), ONES, epochs=1, batch_size=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_skipped_steps_change_nothing_but_the_count(value):
    """As if the batch had not been there; the metrics tell."""
    row = row_at(5)
    state, history = fit(
        SKIPPING, start(), jax.random.key(0), spoiled(row, value), epochs=1, batch_size=1
    )
    assert int(state.step) == 12
    assert history["skipped"].tolist() == [i == 4 for i in range(12)]
    shorter, _ = fit(SKIPPING, start(), jax.random.key(0), ONES[:11], epochs=1, batch_size=1)
    assert np.allclose(state.model["a"], shorter.model["a"], rtol=1e-6)


def test_a_run_that_skips_all_for_an_epoch_is_given_up():
    """Two epochs of six: the last bad row is behind the first of them."""
    xs = np.full(6, np.nan, np.float32)
    seen = []
    with pytest.raises(NonFiniteError, match="step 6: none of the last 6 updates was finite"):
        fit(
            SKIPPING, start(), jax.random.key(0), xs, epochs=2,
            batch_size=1, steps_per_call=2,
            callbacks=[lambda state, metrics, epoch, key: seen.append(int(state.step))],
        )  # fmt: skip
    assert seen == [2, 4]


def test_a_run_that_is_given_up_is_saved_and_counts_on_from_what_it_resumes(tmp_path):
    """Interrupted at step 4, with a checkpoint of step 2: step 6 is still the sixth."""
    run = partial(
        fit, SKIPPING, start(), jax.random.key(0),
        np.full(6, np.nan, np.float32), epochs=2, batch_size=1, steps_per_call=2,
        checkpoints=Checkpoints(tmp_path, share=np.inf),
    )  # fmt: skip

    def interrupt(state, metrics, epoch, key):
        if int(state.step) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[interrupt])
    with pytest.raises(NonFiniteError, match=r"step 6: none of the last 6 .* is in .*0000000005"):
        run()
    assert int(load_checkpoint(newest_checkpoint(tmp_path), start()).step) == 5


def test_clipping_is_that_of_optax_where_all_is_finite():
    gradients = {"a": np.array([3.0, 4.0], np.float32), "b": np.array(12.0, np.float32)}
    for norm in (0.5, 13.0, 20.0):
        ours, theirs = jax.jit(
            lambda gradients, norm=norm: [
                clip(norm).update(gradients, clip(norm).init(gradients))[0]
                for clip in (clip_by_finite_norm, optax.clip_by_global_norm)
            ]
        )(gradients)
        assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), ours, theirs))
    zero: Any = clip_by_finite_norm(1.0).update({"a": jnp.zeros(2)}, optax.EmptyState())[0]
    assert zero["a"].tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_clipping_spreads_no_value_that_is_not_finite(value):
    gradients: dict[str, Any] = {
        "a": jnp.array([1.0, value]),
        "b": jnp.array(1.0),
        "half": jnp.ones(2, jnp.bfloat16),
    }
    found: Any = jax.jit(clip_by_finite_norm(1.0).update)(gradients, optax.EmptyState())[0]
    assert all(leaf.dtype == gradients[name].dtype for name, leaf in found.items())
    assert all(not np.any(np.asarray(leaf, np.float32)) for leaf in found.values())
    with pytest.raises(ValueError, match="max_norm is 0, expected more than 0"):
        clip_by_finite_norm(0)


def weighed(model, key, x, *, beta):
    return beta * bound(model, key, x)[0], bound(model, key, x)[1]


WARMED = train_step(weighed, SGD)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            optax.linear_schedule(0.0, 1.0, 13),
            "rises to 1, but only 0.846154 is reached in the 12",
        ),
        (optax.linear_schedule(0.0, 1.0, 11), None),
        (optax.linear_schedule(1.0, 0.0, 100), None),
        (optax.constant_schedule(1.0), None),
        (lambda step: jnp.minimum(1.0, jnp.asarray(step % 8, jnp.float32) / 4), None),  # cyclical
    ],
)
def test_a_warm_up_longer_than_the_run_is_told(schedule, told, recwarn):
    fit(
        WARMED, start(), jax.random.key(0), ONES[:6], epochs=2,
        batch_size=1, beta=schedule,
    )  # fmt: skip
    messages = [str(w.message) for w in recwarn]
    assert len(messages) == (told is not None)
    if told:
        assert told in messages[0]


def test_a_warm_up_that_a_loop_finishes_is_not_told(recwarn):
    """And each turn of the loop is the same program, with the schedule's values of its steps."""
    traces = []

    def objective(model, key, x, *, beta):
        traces.append(x)
        return weighed(model, key, x, beta=beta)

    step, state, betas = train_step(objective, SGD), start(), []
    for _ in range(4):
        state, history = fit(
            step, state, jax.random.key(0), ONES[:3], epochs=1, batch_size=1,
            beta=optax.linear_schedule(0.0, 1.0, 10),
        )  # fmt: skip
        betas += history["beta"].tolist()
    assert not recwarn.list
    assert len(traces) == 1
    assert np.allclose(betas, np.minimum(np.arange(12) / 10, 1.0))


@pytest.mark.parametrize(
    ("decode", "value", "message"),
    [
        (Bernoulli, -0.5, r"Bernoulli.log_prob: event holds -0.5 at \(1,\), expected"),
        (
            lambda z: Poisson(jnp.exp(z)),
            0.5,
            r"Poisson.log_prob: event holds 0.5 at \(1,\), expect",
        ),
    ],
)
@pytest.mark.parametrize(
    "lift",
    [
        lambda step: step,
        *(pytest.param(f, marks=pytest.mark.thorough) for f in (skip_nonfinite, partial)),
    ],
)
def test_data_outside_the_support_are_told_with_their_row(decode, value, message, lift):
    """What the likelihood says outside jit, and which row of the data it is about."""
    model = VAE(Partial(lambda w, x: Normal(w * x, jnp.ones(2)), jnp.ones(2)),
                Partial(decode), StandardNormal((2,)))  # fmt: skip
    data = np.ones((12, 2), np.float32)
    data[7, 1] = value
    step = lift(train_step(elbo, SGD))
    with pytest.raises(NonFiniteError, match=f"; first at row 7 of the data: {message}"):
        fit(step, init_state(model, SGD), jax.random.key(0), data, epochs=2, batch_size=12)


@pytree
@dataclass(frozen=True, eq=False)
class Halves:
    """Numbers of at least 1/2, whose log_prob is finite below as well."""

    rate: Any

    def sample(self, key):
        return 0.5 + jax.random.exponential(key, jnp.shape(self.rate)) / self.rate

    def log_prob(self, x):
        return jnp.sum(jnp.log(self.rate) - self.rate * (x - 0.5))

    def unstack(self):
        return self

    def support(self, x):
        return x >= 0.5


WHOLE = "Poisson.log_prob: event holds 0.25, expected whole numbers of at least 0: raw counts"
OWN = "Halves.log_prob: event holds 0.25{}, expected what Halves.support is True for"


def counts(z):
    return Poisson(jnp.exp(z))


def outside_row_7(decode, objective=elbo):
    """A step, a state, and data of which entry 1 of row 7 is outside the support."""
    encode = Partial(lambda w, x: Normal(w * jax.tree.leaves(x)[0], jnp.ones(2)), jnp.ones(2))
    model = VAE(encode, Partial(decode), StandardNormal((2,)))
    data = np.ones((12, 2), np.float32)
    data[7, 1] = 0.25
    return train_step(objective, SGD), init_state(model, SGD), data


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda z: Independent(ZeroInflated(counts(z), z)), WHOLE),
        (lambda z: Halves(jnp.exp(z)), OWN.format(r" at \(1,\)")),
        pytest.param(
            lambda z: Independent(Halves(jnp.exp(z))), OWN.format(""), marks=pytest.mark.thorough
        ),
    ],
)
def test_what_is_scored_part_by_part_is_told_too(decode, message):
    """Under the vmap of an `Independent` no value is concrete; and a likelihood of one's own."""
    step, state, data = outside_row_7(decode)
    with pytest.raises(NonFiniteError, match=f"; first at row 7 of the data: {message}"):
        fit(step, state, jax.random.key(0), data, epochs=1, batch_size=12)


@pytest.mark.parametrize("decode", [counts, lambda z: Halves(jnp.exp(z))])
def test_masked_data_outside_the_support_are_told_and_gaps_are_not(decode):
    step, state, data = outside_row_7(lambda z: Masked(decode(z)))
    seen = np.ones((12, 2), bool)
    run = partial(fit, step, state, jax.random.key(0), epochs=1, batch_size=12)
    with pytest.raises(NonFiniteError, match=r"row 7 of the data: .*event holds 0.25, expected"):
        run((data, seen))
    seen[7, 1] = False
    _, history = run((data, seen))
    assert np.isfinite(history["loss"]).all()


@pytest.mark.thorough
def test_a_point_of_a_sweep_is_told_with_its_row():
    """The point whose loss is not finite, and the row that spoils it there."""

    def objective(model, key, x, *, limit):
        x = jnp.sum(x)
        return jnp.where(x < limit, jnp.nan, 0.0) + model[0] * x, ()

    def make(key, limit):
        step = train_step(objective, SGD)
        return partial(step, limit=limit), init_state(jnp.ones(1), SGD)

    keys = jax.random.split(jax.random.key(1), 2)
    step, state = sweep_step(make, {"key": keys, "limit": [0.0, 1.5]})
    told = r"loss at point \(0, 1\) not finite .*; first at row 7 of the data$"
    with pytest.raises(NonFiniteError, match=told):
        fit(step, state, jax.random.key(0), outside_row_7(counts)[2], epochs=1, batch_size=12)


def test_an_objective_of_whole_batches_is_told_with_its_row():
    def objective(model, key, x):
        jax.lax.axis_index("batch")
        return jnp.where(x > 1.0, jnp.nan, model[0] * x), ()

    data = spoiled(7, 2.0)
    with pytest.raises(NonFiniteError, match=r"first at row 7 of the data$"):
        fit(train_step(objective, SGD), init_state(jnp.ones(1), SGD), jax.random.key(0), data,
            epochs=1, batch_size=12)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_every_float_is_looked_at_and_small_arrays_in_one_sum(bad):
    sizes = [(), (3,), (2, 5), (SMALL + 1,), (600, 500)]
    for dtypes in [jnp.float32] * 5, [jnp.float32, jnp.bfloat16, jnp.float16, "int32", "float32"]:
        tree = [jnp.ones(size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
        assert LOOK(tree)
        for i, (leaf, dtype) in enumerate(zip(tree, dtypes, strict=True)):
            if dtype != "int32":
                spoiled = leaf.at[(-1,) * leaf.ndim].set(bad)
                assert not LOOK([*tree[:i], spoiled, *tree[i + 1 :]])
    many = [jnp.ones(n) for n in range(1, 20)]
    sums = LOOK.lower([*many, jnp.ones(SMALL + 1)]).as_text().count("applies stablehlo.add")
    assert sums == 2  # of the small ones, and of the large one


@pytest.mark.thorough
def test_a_run_in_double_precision_is_looked_at_too(x64):
    """Its leaves promote with no single one, and a sum beyond single precision is finite."""
    model = {"a": jnp.array(1e200), "b": jnp.array(1.0), "c": jnp.ones(2, jnp.bfloat16)}
    assert all_finite(model)
    assert not all_finite(model | {"a": jnp.array(jnp.inf)})
    state, _ = fit(
        train_step(bound, SGD), init_state({"a": jnp.array(1.0), "b": jnp.array(1.0)}, SGD),
        jax.random.key(0), jnp.ones(2), epochs=1, batch_size=1,
    )  # fmt: skip
    assert state.model["a"].dtype == np.float64


def test_no_hyper_parameter_is_called_skipped():
    step = skip_nonfinite(train_step(lambda model, key, x, *, skipped: (skipped * x, ()), SGD))
    with pytest.raises(ValueError, match="skipped is a metric, expected another hyper-parameter"):
        step(start(), jax.random.key(0), jnp.ones(2), skipped=1.0)
