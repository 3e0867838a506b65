"""From stored bytes to model input."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from jaxvae import binarize, fit, init_state, preprocessed, rescale, sweep, train_step
from jaxvae.nn import MLP, Rescaled
from jaxvae.training import dequantize, threshold
from tests.common import close, draws, standard_errors_off

BYTES = np.array([0, 1, 64, 127, 128, 254, 255], np.uint8)


@pytest.mark.parametrize("transform", [rescale, binarize, threshold])
@pytest.mark.parametrize("max_value", [255, 16, 1])
def test_both_ends_are_exact(transform, max_value):
    # 0 is 0. and the largest value is 1., in floats of the data's shape, whatever is drawn
    x = jnp.array([[0, max_value]] * 50, jnp.uint8)
    y = transform(jax.random.key(0), x, max_value=float(max_value))
    assert y.dtype == jnp.float32
    assert np.array_equal(y, np.array([[0.0, 1.0]] * 50))


LEVELS = np.random.default_rng(0).integers(0, 17, (20, 4)).astype(np.uint8)
LEVELS[0] = 16
SGD = optax.sgd(0.1)


def mean_of_input(transform):
    """A step that trains on the transformed input's mean."""

    def objective(model: Any, key: Any, x: Any) -> Any:
        return model * jnp.mean(x), ()

    return train_step(preprocessed(objective, transform), SGD)


def swept(step, state, key, xs):
    run = lambda key, xs: step(state, key, xs)[1]["loss"]
    return sweep(run, {"key": jax.random.split(key, 2)}, xs=jnp.asarray(xs))


HALVES, STEPS = [LEVELS[:10], LEVELS[10:]], {"epochs": 2, "steps_per_epoch": 2}
ROADS = [
    *((t, partial(fit, data=LEVELS, epochs=2, batch_size=5)) for t in (rescale, threshold)),
    (dequantize, partial(fit, data=HALVES, epochs=2, steps_per_call=1)),
    (binarize, partial(fit, data=lambda key: jnp.asarray(LEVELS), **STEPS)),
    (binarize, partial(swept, xs=LEVELS)),
]


@pytest.mark.parametrize(("transform", "road"), ROADS)
def test_levels_that_are_dark_as_bytes_are_told_once(transform, road):
    """0..16 taken for 0..255: nothing but the numbers would be wrong."""
    step, state = mean_of_input(transform), init_state(jnp.ones(()), SGD)
    owner = "sweep" if road.func is swept else "fit"
    told = (
        f"^{owner}: the largest value of data is 16, which is taken for 16 of 255; give max_value"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        road(step, state, jax.random.key(0))
    assert [w.filename for w in warned] == [__file__]


def test_bytes_and_levels_with_their_largest_value_are_not_told():
    """No warning is an error here: all are."""
    run = partial(fit, key=jax.random.key(0), epochs=1, batch_size=5)
    state = init_state(jnp.ones(()), SGD)
    run(mean_of_input(partial(binarize, max_value=16.0)), state, data=LEVELS)
    run(mean_of_input(rescale), state, data=15 * LEVELS)
    run(mean_of_input(lambda key, x: x.astype(float)), state, data=LEVELS)  # no pixels: categories


def test_rescale_is_division():
    # x / 255 (or 16, for scikit-learn's digits)
    assert close(rescale(jax.random.key(0), BYTES), np.asarray(BYTES) / np.float32(255))
    digit = jnp.arange(17, dtype=jnp.uint8)
    assert close(rescale(jax.random.key(0), digit, max_value=16.0), np.arange(17) / np.float32(16))


def test_threshold_is_one_above_the_middle():
    # x / 255 > 1/2: from 128 on
    assert threshold(jax.random.key(0), BYTES).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert threshold(jax.random.key(0), jnp.array([8, 9]), max_value=16.0).tolist() == [0, 1]


@pytest.mark.parametrize("max_value", [None, 255.0, 16.0, 1.0])
def test_noise_of_dequantization_stays_inside_its_cell(max_value):
    """Of all its values at the ends: x can be read off again, and 0 and 1 never come."""
    levels = int(max_value or 255) + 1
    x = jnp.tile(jnp.array([0, levels - 1], jnp.uint8), (2**19, 1))
    y = dequantize(jax.random.key(0), x, max_value=max_value)
    assert y.shape == x.shape
    assert y.dtype == jnp.float32
    assert bool(jnp.all((y > 0) & (y < 1)))
    assert np.array_equal(jnp.floor(y * levels), x)
    u = np.asarray(y, np.float64) * levels - np.asarray(x)
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
    assert abs(u.var() - 1 / 12) < 5 / np.sqrt(180 * u.size)


@pytest.mark.parametrize("max_value", [1, 255, 1000, 4095, 65535, 2**22 - 1])
def test_what_is_dequantized_can_be_read_off(max_value):
    x = np.random.default_rng(0).integers(0, max_value, 200_000, endpoint=True).astype(np.uint32)
    x[:1000] = max_value
    y = jax.jit(partial(dequantize, max_value=float(max_value)))(jax.random.key(0), jnp.asarray(x))
    assert y.dtype == jnp.float32
    assert np.all((y > 0.0) & (y < 1.0))
    np.testing.assert_array_equal(np.floor(np.asarray(y, float) * (max_value + 1)), x)


def test_a_density_of_dequantized_bytes_bounds_their_probability(x64):
    """log P(k), the density's integral over a cell, is at least the mean of log p less log 256."""
    k = jnp.arange(120, 137, dtype=jnp.uint8)
    y = jax.vmap(lambda key: dequantize(key, k))(jax.random.split(jax.random.key(0), 4000))
    for sigma, gap in ((0.1, 1e-3), (0.005, 1.0)):
        log_p = scipy.stats.norm.logpdf(y, 0.5, sigma).mean(0) - np.log(256)
        edges = scipy.stats.norm.cdf(np.arange(120, 138) / 256, 0.5, sigma)
        exact = np.log(np.diff(edges))
        assert np.all(log_p < exact + 0.01)
        assert np.all(log_p > exact - gap - 0.01)


@pytest.mark.parametrize("jit", [False, True])
def test_dequantization_asks_for_what_it_is_not_told(jit):
    run = jax.jit(dequantize) if jit else dequantize
    with pytest.raises(TypeError, match=r"of float32, expected uint8 .*give max_value"):
        run(jax.random.key(0), jnp.array([0.0, 1.0]))


def rescaled(key, x, **how):
    """The input of the network behind `Rescaled`, back in [0, 1]."""
    identity: Any = lambda *shapes, rngs: lambda x: x
    return (Rescaled(identity, (), (), rngs=nnx.Rngs(0), **how)(x) + 1) / 2


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("transform", [rescale, binarize, threshold, rescaled])
def test_what_does_not_tell_its_largest_value_is_asked_for_it(transform, jit):
    # floats in [0, 1] divided by 255 would be nearly black, and int32 may be of any levels
    run = jax.jit(transform, static_argnames="max_value") if jit else transform
    for x in (jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0], jnp.bfloat16), jnp.array([0, 255])):
        with pytest.raises(TypeError, match=f"of {x.dtype}, expected uint8 .*give max_value=1.0"):
            run(jax.random.key(0), x)
        y = run(jax.random.key(0), x, max_value=float(x[1]))
        assert y.tolist() == [0.0, 1.0]
    for x in (jnp.array([0, 255], jnp.uint8), jnp.array([False, True])):
        assert run(jax.random.key(0), x).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("transform", [rescale, binarize, threshold, rescaled])
@pytest.mark.parametrize("value", [256.0, -1.0, np.nan])
def test_a_value_out_of_range_is_named(transform, value):
    # where values are concrete: a pixel brighter than full, or darker than none, has no meaning
    x = jnp.array([[0.0, 255.0], [value, 3.0]])
    with pytest.raises(
        ValueError, match=rf"x holds {value} at \(1, 0\), expected values in 0..255"
    ):
        transform(jax.random.key(0), x, max_value=255.0)


def test_rescaled_sees_minus_one_to_one():
    # 2 x / 255 - 1 goes into the network, whatever it is
    network = Rescaled(MLP, (3,), (2,), rngs=nnx.Rngs(0))
    x = jnp.array([0, 51, 255], jnp.uint8)
    assert close(network(x), network.network(jnp.array([-1.0, -0.6, 1.0])))


@pytest.mark.parametrize("max_value", [255.0, 16.0])
def test_binarize_is_one_at_the_rate_of_the_pixel(max_value):
    # P(1) = x / max_value (not 1 - that: inverted images)
    x = jnp.array([1, 4, 8, 15], jnp.uint8) * (1 if max_value == 16 else 16)
    y = draws(partial(binarize, x=x, max_value=max_value), 20_000)
    assert set(np.unique(y)) == {0.0, 1.0}
    assert standard_errors_off(y, np.asarray(x) / np.float32(max_value)) < 4


def test_binarize_draws_afresh():
    # every key and every pixel of its own; the same key gives the same image
    x = jnp.full((40, 40), 128, jnp.uint8)
    one, two, again = (binarize(jax.random.key(seed), x) for seed in (0, 1, 0))
    assert np.array_equal(one, again)
    assert 0.4 < np.mean(one != two) < 0.6
    assert 0.4 < np.mean(one[1:] != one[:-1]) < 0.6


def test_preprocessed_splits_the_key():
    # transform and objective draw from two keys, neither of them the caller's; hyper goes on
    def transform(key, x):
        return x, jax.random.uniform(key)

    def objective(model, key, x, *, beta):
        return model * beta, (x, jax.random.uniform(key))

    bound, ((x, first), second) = preprocessed(objective, transform)(
        2.0, jax.random.key(3), 7.0, beta=0.5
    )
    assert (bound, x) == (1.0, 7.0)
    a, b = jax.random.split(jax.random.key(3))
    assert (first, second) == (jax.random.uniform(a), jax.random.uniform(b))
    assert len({float(first), float(second), float(jax.random.uniform(jax.random.key(3)))}) == 3
