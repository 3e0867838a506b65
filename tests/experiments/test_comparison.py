"""A comparison of models that is ended goes on, and trains nothing twice or from other data."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.common.comparison import compare


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The seeds that were trained, of runs that say so."""
    monkeypatch.chdir(tmp_path)
    return []


def runs(trained, *data):
    def run(data, key):
        jax.debug.callback(lambda: trained.append(float(data[0])))
        here, there = jax.random.split(key)
        return {"w": jax.random.normal(here, (3,)) + data, "key": there}

    return {f"of {value:g}": partial(run, jnp.full(3, value)) for value in data}


def mean_of(key, model):
    assert jax.random.key_data(model["key"]).shape == (2,)
    return jnp.mean(model["w"])


def ended(key, model):
    if float(mean_of(key, model)) > 4.0:
        raise KeyboardInterrupt
    return mean_of(key, model)


def test_what_was_trained_before_the_end_is_not_trained_again(trained, capsys):
    with pytest.raises(KeyboardInterrupt):
        compare("it", runs(trained, 0.0, 5.0), ended, seeds=2)
    assert trained == [0.0, 0.0, 5.0]
    went_on = compare("it", runs(trained, 0.0, 5.0), mean_of, seeds=2)
    assert trained == [0.0, 0.0, 5.0, 5.0]
    at_once = compare("another", runs(trained, 0.0, 5.0), mean_of, seeds=2)
    assert went_on.results == at_once.results
    chex.assert_trees_all_equal(went_on.models, at_once.models)


def test_other_data_are_trained_on_anew(trained):
    compare("it", runs(trained, 1.0), mean_of, seeds=1)
    compare("it", runs(trained, 2.0), mean_of, seeds=1)
    compare("it", runs(trained, 1.0), mean_of, seeds=1)
    assert trained == [1.0, 2.0]
