"""A posterior that has collapsed to the prior is told by `fit`, once, and no other is."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn
from jaxvae.bounds import autoencoder
from jaxvae.training.callbacks import Run
from jaxvae.training.monitoring import CollapseWarning
from jaxvae.training.steps import TrainState

XS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def told_of(rates, *, end=None, per_epoch=10, look=10, points=""):
    """The steps that it warns of, given a rate a step."""
    watch, end = CollapseWarning(), end or len(rates)
    watch.begin(Run(0, end, end / per_epoch, None))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for start in range(0, len(rates), look):
            part = np.asarray(rates[start : start + look], np.float64)
            step = start + len(part)
            state = TrainState(None, None, jnp.int32(step))
            watch(state, {"loss": part, "rate": part}, step / per_epoch, jax.random.key(0))
    found = [str(w.message) for w in told]
    expected = f"the rate is 0.00 nats{points}: the posterior has collapsed to the prior"
    assert all(expected in message for message in found)
    return [int(message.split()[3]) for message in found]


def test_a_rate_that_has_fallen_to_nothing_is_told_once():
    fallen = np.r_[np.full(20, 3.0), np.zeros(30)]
    assert told_of(fallen) == [40]  # the first window without a rate that was paid
    assert told_of(fallen, end=1000) == [40]
    assert told_of(fallen, look=1) == [40]
    assert told_of(np.r_[fallen, np.full(30, 3.0), np.zeros(30)]) == [40]
    noise = np.r_[np.full(20, 3.0), 1e-3 * np.random.default_rng(0).normal(size=30)]
    assert told_of(noise) == [40]  # a sampled rate is 0 on average only
    assert told_of(np.r_[np.full(20, 3.0), np.full(30, np.nan)]) == []


def test_a_rate_that_has_not_risen_yet_is_none_that_fell():
    """A posterior that begins as the prior; told where it is still there at the end."""
    early = np.r_[0.0, np.full(49, 1e-3)]
    assert told_of(early, end=1000) == []
    assert told_of(early) == [50]
    assert told_of(np.r_[early, np.full(50, 2.0)]) == []


def test_of_many_points_those_that_fell_are_counted():
    fallen = np.r_[np.full(20, 3.0), np.zeros(30)]
    assert told_of(
        np.stack([fallen, np.full(50, 3.0), fallen], axis=1), points=r" at 2 of 3 points, [0], [2]"
    ) == [40]


def test_of_many_points_each_is_told_when_it_falls():
    fallen = np.r_[np.full(20, 3.0), np.zeros(40)]
    later = np.r_[np.full(40, 3.0), np.zeros(20)]
    watch = CollapseWarning()
    watch.begin(Run(0, 60, 6.0, None))
    told = []
    for start in range(0, 60, 10):
        part = np.stack([later, fallen, np.full(60, 3.0), fallen], axis=1).reshape(60, 2, 2)
        part = part[start : start + 10]
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            state = TrainState(None, None, jnp.int32(start + 10))
            watch(state, {"rate": part}, (start + 10) / 10, jax.random.key(0))
        told += [str(w.message).split(": the posterior")[0] for w in found]
    assert told == [
        "fit: at step 40 the rate is 0.00 nats at 2 of 4 points, [0, 1], [1, 1]",
        "fit: at step 60 the rate is 0.00 nats at 1 of 4 points, [0, 0]",
    ]


def test_what_pays_no_rate_is_not_told_of():
    assert told_of(np.zeros(50)) == []


def test_a_sampled_rate_that_is_near_nothing_by_chance_is_not_told_of():
    """One step an epoch, and half a nat of rate seen through a few draws."""
    rates = 0.5 + np.random.default_rng(0).normal(size=500)
    rates[100:103] = 0.001
    assert told_of(rates, per_epoch=1, look=1) == []


def model_of(seed=0, sigma=1.0):
    rngs = nnx.Rngs(seed)
    return jv.VAE(
        encode=nn.Conditional(partial(nn.MLP, hidden=()), nn.NormalHead(), (3,), (2,), rngs=rngs),
        decode=nn.Conditional(
            partial(nn.MLP, hidden=()), nn.NormalHead(sigma), (2,), (3,), rngs=rngs
        ),
        prior=jv.StandardNormal((2,)),
    )


OPTIMIZER = optax.adam(3e-2)


def run(objective=jv.elbo, *, epochs, **hyper):
    state = jv.init_state(model_of(), OPTIMIZER)
    step = jv.train_step(objective, OPTIMIZER)
    return jv.fit(step, state, jax.random.key(1), XS, epochs=epochs, batch_size=6, **hyper)


def test_fit_tells_of_a_collapse():
    with pytest.warns(
        UserWarning, match=r"rate is 0.0\d nats: the posterior has collapsed"
    ) as told:
        _, history = run(epochs=40, beta=1000.0)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert np.mean(history["rate"][-10:]) < 0.01


def test_fit_is_silent_in_a_warm_up_and_of_an_autoencoder():
    """No warning is an error here: all of them are."""
    run(epochs=40, beta=optax.linear_schedule(0.0, 0.1, 300))
    _, history = run(autoencoder, epochs=3)
    assert not history["rate"].any()
