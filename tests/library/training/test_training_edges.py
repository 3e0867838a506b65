"""Training at its edges: what was silent, hung or ended in somebody else's error."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import fit, init_state, train_epoch, train_step
from jaxvae.bounds import reweighted_wake_sleep
from jaxvae.gradients import enumeration, rebar, score_function
from jaxvae.models import ppca
from jaxvae.regularizers import AdversarialPair, Constrained, geco, target_rate
from jaxvae.training import (
    NonFiniteError,
    average_parameters,
    averaged_model,
    clip_by_finite_norm,
    load_checkpoint,
    save_checkpoint,
    skip_nonfinite,
    sweep_step,
)
from tests.common import draws, standard_errors_off

KEY = jax.random.key
MODEL = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
ADAM = optax.adam(1e-2)
XS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "objective", [partial(geco, tolerance=1.0), partial(target_rate, target=1.0)]
)
def test_a_constrained_model_has_the_gradient_of_its_estimator(objective):
    """What stands in the bound alone, as the surrogate of the score function, was dropped."""
    logits = jnp.array([0.3, -0.2, 0.5])

    def loss(logits, key, gradient):
        model = jaxvae.VAE(
            lambda x: jaxvae.OneHotCategorical(logits),
            lambda z: jaxvae.Normal(jnp.array([0.0, 1.0, 3.0]) @ z * jnp.ones(3), jnp.ones(3)),
            jaxvae.OneHotCategorical(jnp.zeros(3)),
        )
        constrained = Constrained(model, jnp.array(0.3))
        return objective(constrained, key, jnp.ones(3), gradient=gradient)[0]

    exact = jax.grad(loss)(logits, KEY(0), enumeration)
    for gradient in (score_function, partial(rebar, scale=1.0, temperature=0.5)):
        found = draws(lambda key, g=gradient: jax.grad(loss)(logits, key, g), 4_000, 1)
        assert np.all(np.asarray(standard_errors_off(found, exact)) < 4.5)


def test_the_multiplier_climbs_by_the_excess():
    def value(log_multiplier):
        constrained = Constrained(MODEL, log_multiplier)
        bound, terms = geco(constrained, KEY(0), jnp.asarray(XS[0]), tolerance=2.0)
        return bound, terms

    (bound, terms), slope = jax.value_and_grad(value, has_aux=True)(jnp.array(0.5))
    excess = terms.distortion - 2.0
    np.testing.assert_allclose(bound, -(terms.rate + np.exp(0.5) * excess), rtol=1e-5)
    np.testing.assert_allclose(slope, np.exp(0.5) * excess, rtol=1e-5)


def test_hyper_parameters_by_position_are_refused():
    """They were ignored."""

    def objective(model, key, x, beta=1.0):
        return jaxvae.elbo(model, key, x, beta=beta)

    step, state = train_step(objective, ADAM), init_state(MODEL, ADAM)
    with pytest.raises(TypeError, match=r"^train_step: hyper-parameters by position \(1\), exp"):
        step(state, KEY(0), XS, 100.0)
    with pytest.raises(TypeError, match=r"^train_epoch: hyper-parameters by position"):
        train_epoch(step, batch_size=5)(state, KEY(0), XS, 100.0)


def test_a_bad_row_is_named_where_a_schedule_is_bound_to_the_step():
    xs = XS.copy()
    xs[7, 1] = np.nan
    step: Any = partial(train_step(jaxvae.elbo, ADAM), beta=optax.linear_schedule(0.0, 1.0, 5))
    with pytest.raises(NonFiniteError, match=r"step 2: .*; first at row 7 of the data"):
        fit(step, init_state(MODEL, ADAM), KEY(0), xs, epochs=1, batch_size=5, steps_per_call=1)


def test_arrays_of_another_byte_order_are_saved_as_what_they_are(tmp_path):
    stored = {"a": np.array([1.0, 2.0], ">f4"), "n": np.array([3], ">i4")}
    save_checkpoint(tmp_path / "c", stored)
    like = {"a": np.zeros(2, np.float32), "n": np.zeros(1, np.int32)}
    found = load_checkpoint(tmp_path / "c", like)
    assert found["a"].tolist() == [1.0, 2.0]
    assert found["n"].tolist() == [3]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_stream_that_ends_by_no_exception_ends_the_run(error):
    """It waited for ever for the next batch."""

    def batches():
        yield XS[:5]
        raise error("no more data")

    with pytest.raises(error, match="no more data"):
        fit(train_step(jaxvae.elbo, ADAM), init_state(MODEL, ADAM), KEY(0), batches, epochs=1)


def skips_every_other(i):
    one = train_step(jaxvae.elbo, ADAM)

    def step(state, key, xs):
        new, metrics = one(state, key, xs)
        loss = jnp.where(state.step % 2 == i, jnp.nan, metrics["loss"])
        return new, metrics | {"loss": loss}

    return skip_nonfinite(step), init_state(MODEL, ADAM)


def test_points_of_a_sweep_are_told_apart_where_they_skip():
    """At every step one of the two skips its update, and neither skips two."""
    step, state = sweep_step(skips_every_other, {"i": jnp.arange(2)})
    _, history = fit(step, state, KEY(0), XS, epochs=2, batch_size=5)
    assert history["skipped"].sum(axis=0).tolist() == [4, 4]


def test_a_sleep_phase_of_no_weight_leaves_no_dream_in_the_statistics():
    class Encoder(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(1, momentum=0.0, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return jaxvae.Normal(self.norm(self.layer(x)), jnp.ones(1))

    def mean_after(objective):
        model = MODEL._replace(encode=Encoder())
        state, _ = train_step(objective, ADAM)(init_state(model, ADAM), KEY(0), XS + 10.0)
        encode: Any = state.model.encode
        return jax.tree.leaves(encode.state)[0]

    awake = mean_after(partial(jaxvae.iwae, num_samples=2))
    np.testing.assert_allclose(mean_after(partial(reweighted_wake_sleep, num_samples=2)), awake)


def test_an_array_of_a_callback_that_changes_its_shape_is_named_at_the_look():
    looks = []

    def callback(state, metrics, epoch, key):
        looks.append(int(state.step))
        return {"codes": np.zeros(len(looks))} if len(looks) != 2 else None

    step, state = train_step(jaxvae.elbo, ADAM), init_state(MODEL, ADAM)
    with pytest.raises(
        ValueError, match=r"^fit: 'codes' of a callback has shape \(3,\) at step 12,"
    ):
        fit(step, state, KEY(0), XS, epochs=5, batch_size=5, callbacks=[callback])
    assert looks == [4, 8, 12]


SCHEDULES = {
    "of an array": lambda step: jnp.minimum(1.0, step.astype(jnp.float32) / 4),
    "of two numbers": lambda step: jnp.array([0.5, 0.5]) * jnp.float32(step),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:.*rises to")
def test_schedules_see_an_array_and_may_give_one(name):
    def objective(model, key, x, *, beta):
        return jaxvae.elbo(model, key, x, beta=jnp.sum(beta))

    with jax.numpy_dtype_promotion("standard"):
        for epochs in (1, 2):
            step, state = train_step(objective, ADAM), init_state(MODEL, ADAM)
            fit(step, state, KEY(0), XS, epochs=epochs, batch_size=5, beta=SCHEDULES[name])


@pytest.mark.parametrize(
    ("dtype", "size"), [(jnp.float32, 300.0), (jnp.bfloat16, 300.0), (jnp.float16, 300.0),
                        (jnp.float32, 1e30), (jnp.float32, 1e-30)]
)  # fmt: skip
def test_a_norm_is_finite_where_its_square_is_not(dtype, size):
    clip = clip_by_finite_norm(1.0)
    gradient: Any = {"a": jnp.array([size], dtype), "b": jnp.zeros(2, dtype)}
    found: Any = clip.update(gradient, clip.init(gradient))[0]
    np.testing.assert_allclose(float(found["a"][0]), min(size, 1.0), rtol=1e-2)


def test_what_another_optimiser_moves_is_in_the_averaged_model_as_it_is():
    players = AdversarialPair(MODEL, Partial(lambda a, z: jnp.sum(a * z), jnp.ones(1)))
    averaged = optax.chain(ADAM, average_parameters(0.9))
    labels = AdversarialPair("model", "discriminator")
    optimizer = optax.partition({"model": averaged, "discriminator": ADAM}, labels)
    found = averaged_model(init_state(players, optimizer))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(players), strict=True):
        assert np.array_equal(a, b)


def test_each_optimiser_of_a_partition_may_keep_an_average():
    params: Any = {"a": jnp.ones(2), "b": jnp.ones(3)}
    of = {"slow": optax.sgd(1.0), "fast": optax.sgd(2.0)}
    chains: Any = {n: optax.chain(sgd, average_parameters(0.5)) for n, sgd in of.items()}
    optimizer = optax.partition(chains, {"a": "slow", "b": "fast"})
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, opt_state = optimizer.update(gradient, optimizer.init(params), params)
    state = jaxvae.TrainState(
        optax.apply_updates(params, updates), opt_state, jnp.ones((), jnp.int32)
    )
    found: Any = averaged_model(state)
    # a tenth of what the run began with
    np.testing.assert_allclose(found["a"], 0.1, atol=1e-6)
    np.testing.assert_allclose(found["b"], 0.1 - 0.9, rtol=1e-6)
