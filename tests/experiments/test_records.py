"""What the scripts of long runs are made of, at sizes that take seconds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.records import composed, static_convolutions
from experiments.records.runs import train
from jaxvae import evaluation, training


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"WIDTH": 8, "LATENT": 4, "PSEUDO_INPUTS": 5, "CONTEXT": 3}.items():
        monkeypatch.setattr(composed, name, value)


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1)).astype(np.uint8)
X = jnp.asarray(IMAGES[0] > 127, jnp.float32)


@pytest.mark.thorough
@pytest.mark.parametrize("name", composed.FACTORS)
def test_at_beta_one_the_bound_is_the_importance_weighted_one(name):
    factors = composed.FACTORS[name]
    model = composed.compose(factors, jnp.asarray(IMAGES), jax.random.key(0))
    k, key = factors.num_samples, jax.random.key(1)
    of = {
        "ours": partial(composed.bound, k, beta=1.0),
        "iwae": partial(jaxvae.iwae, num_samples=k, gradient=jaxvae.doubly_reparameterized),
    }
    found = {
        name: jax.value_and_grad(lambda model, f=f: f(model, key, X)[0], allow_int=True)(model)
        for name, f in of.items()
    }
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found["ours"], found["iwae"]
    )
    assert jnp.isfinite(evaluation.log_marginal(model, key, X, num_samples=7).value)


@pytest.mark.thorough
def test_the_vamp_prior_of_one_layer_is_the_librarys():
    model = composed.compose(
        composed.FACTORS["VampPrior alone"], jnp.asarray(IMAGES), jax.random.key(0)
    )
    z = jax.random.normal(jax.random.key(1), (4,))
    exact = jaxvae.VampVAE(model.top, model.decode, model.pseudo_inputs, jnp.zeros(5)).prior
    np.testing.assert_allclose(model.prior.log_prob(z), exact.log_prob(z), rtol=1e-5)
    assert jnp.isfinite(jaxvae.elbo(model, jax.random.key(2), X)[0])


def test_four_channels_become_four_pixels():
    x = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 20)
    y = static_convolutions.to_pixels(x)
    assert y.shape == (4, 6, 5)
    for i, j, a, b in np.ndindex(2, 3, 2, 2):
        np.testing.assert_array_equal(y[2 * i + a, 2 * j + b], x[i, j].reshape(2, 2, 5)[a, b])


@pytest.mark.thorough
def test_the_convolutions_of_two_layers_learn(monkeypatch):
    for name, value in {"WIDTH": 8, "LATENT": 4, "PSEUDO_INPUTS": 5, "CHANNELS": (2, 4)}.items():
        monkeypatch.setattr(static_convolutions, name, value)
    monkeypatch.setattr(composed, "LATENT", 4)
    images, optimizer = jnp.asarray(IMAGES > 127), optax.sgd(1.0)
    model = static_convolutions.make_vae(images, jax.random.key(0))
    objective = jaxvae.preprocessed(partial(composed.bound, 1), static_convolutions.AS_STORED)
    step = jaxvae.train_step(objective, optimizer)
    state = jaxvae.init_state(model, optimizer)
    after, metrics = step(state, jax.random.key(1), images, beta=0.9)
    assert np.isfinite(metrics["loss"])
    pairs = zip(jax.tree.leaves(state.model), jax.tree.leaves(after.model), strict=True)
    assert all(np.any(a != b) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating))
    z2, z1 = model.prior.sample(jax.random.key(2))
    assert model.decode((z2, z1)).mean().shape == (28, 28, 1)


def test_all_layers_take_part_in_what_is_drawn():
    model = composed.compose(composed.FACTORS["flow"], jnp.asarray(IMAGES), jax.random.key(0))
    z2, z1 = model.prior.sample(jax.random.key(1))
    assert z2.shape == z1.shape == (4,)
    assert not np.allclose(model.decode((z2, z1)).mean(), model.decode((z2 + 1, z1)).mean())
    assert not np.allclose(model.decode((z2, z1)).mean(), model.decode((z2, z1 + 1)).mean())


def test_a_long_run_goes_on_and_keeps_an_average(tmp_path):
    objective = jaxvae.preprocessed(jaxvae.elbo, jaxvae.binarize)
    images = jnp.asarray(IMAGES)
    make = lambda: composed.compose(composed.FACTORS["plain"], images, jax.random.key(0))
    run = partial(train, objective, make(), jax.random.key(1), images, epochs=2, batch_size=3)
    state = run(tmp_path / "a", learning_rate=1e-2)
    again = run(tmp_path / "a", learning_rate=1e-2)  # of its last checkpoint
    assert int(state.step) == int(again.step) == 4
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    averaged = training.averaged_model(state)
    assert jax.tree.structure(averaged) == jax.tree.structure(state.model)
