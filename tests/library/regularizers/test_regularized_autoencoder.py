"""The regularized autoencoder: its parts against what they estimate, and its limits."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from experiments.regularizers import deterministic as script
from jaxvae import nn
from jaxvae.protocols import mean_of
from jaxvae.regularizers.regularized_autoencoder import gradient_penalty, rae, weight_penalty
from tests.common import close, draws, standard_errors_off

X, Z = np.array([0.9, 0.1, 0.4, 0.7]), np.array([0.3, -0.8])


@pytest.fixture
def model(x64):
    rngs = nnx.Rngs(0)
    tiny = partial(nn.MLP, hidden=(6,), activation=jnp.tanh)
    vae = jv.VAE(
        encode=nn.Conditional(tiny, nn.NormalHead(), (4,), (2,), rngs=rngs),
        decode=nn.Conditional(tiny, nn.BernoulliHead(), (2,), (4,), rngs=rngs),
        prior=jv.StandardNormal((2,)),
    )
    return jax.tree.map(lambda leaf: leaf.astype(float), vae)


def exact_gradient_penalty(model, key, z):
    del key
    return 0.5 * jnp.sum(jax.jacobian(lambda z: mean_of(model.decode(z)))(z) ** 2)


@pytest.mark.thorough
def test_gradient_penalty_is_that_of_the_jacobian(model):
    # and so is its gradient in the decoder's parameters, which is what training takes of it
    def both(key, penalty):
        value, gradient = jax.value_and_grad(lambda m: penalty(m, key, Z))(model)
        return [value, *jax.tree.leaves(gradient.decode)]

    estimates = draws(partial(both, penalty=gradient_penalty), 4000)
    for estimate, exact in zip(
        estimates, both(jax.random.key(0), exact_gradient_penalty), strict=True
    ):
        assert standard_errors_off(estimate, exact) < 4


@pytest.mark.thorough
def test_without_weights_it_is_the_autoencoder(model):
    def plain(m):
        return jv.bounds.autoencoder(m, jax.random.key(0), X)[0]

    def regularized(m, beta=0.0, weight=0.0):
        return rae(m, jax.random.key(0), X, penalty=gradient_penalty, beta=beta, weight=weight)[0]

    of_plain, of_regularized = (jax.value_and_grad(f)(model) for f in (plain, regularized))
    assert jax.tree.all(jax.tree.map(close, of_regularized, of_plain))
    assert regularized(model, beta=0.1) < regularized(model) > regularized(model, weight=0.1)


@pytest.mark.thorough
def test_the_parts_add_up_and_the_rate_is_the_standard_normals(model):
    one = partial(rae, penalty=exact_gradient_penalty, beta=0.3, weight=0.7)
    score, terms = one(model, jax.random.key(0), X)
    z = mean_of(model.encode(X))
    assert close(score, -(terms.distortion + 0.3 * terms.rate + 0.7 * terms.penalty))
    assert close(terms.rate, jv.StandardNormal((2,)).log_prob(0.0 * z) - model.prior.log_prob(z))
    assert close(terms.penalty, exact_gradient_penalty(model, None, z))


@pytest.mark.thorough
def test_weight_penalty_is_decay_of_the_decoder_alone(model):
    gradient = jax.grad(lambda m: weight_penalty(m, jax.random.key(0), Z))(model)
    twice = jax.tree.map(lambda w: 2.0 * w, model.decode)
    assert jax.tree.all(jax.tree.map(close, gradient.decode, twice))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient.encode))


def test_weight_penalty_leaves_out_running_statistics():
    mlp = partial(nn.MLP, hidden=(7,), norm=nnx.BatchNorm)
    decode = nn.Conditional(mlp, nn.NormalHead(), (2,), (3,), rngs=nnx.Rngs(0))
    model = jv.VAE(encode=decode, decode=decode, prior=jv.StandardNormal((2,)))
    trained = jax.tree.leaves(nnx.state(decode, nnx.Param))
    exact = sum(float(jnp.sum(jnp.square(leaf))) for leaf in trained)
    assert np.isclose(weight_penalty(model, jax.random.key(0), jnp.zeros(2)), exact, rtol=1e-5)
    in_training = jv.init_state(model, optax.sgd(0.1)).model  # networks with a state and a key
    assert np.isclose(weight_penalty(in_training, None, jnp.zeros(2)), exact, rtol=1e-5)
    objective = lambda model, key, x: (-weight_penalty(model, None, jnp.zeros(2)), None)
    step = jax.jit(jv.train_step(objective, optax.sgd(0.1)))
    _, metrics = step(jv.init_state(model, optax.sgd(0.1)), jax.random.key(1), jnp.ones((4, 3)))
    assert np.isclose(metrics["loss"], exact, rtol=1e-5)


def test_bad_input_is_named(model):
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="z has dtype int"):
        gradient_penalty(model, key, jnp.ones(2, int))
    with pytest.raises(ValueError, match="rae: penalty's result has shape"):
        rae(model, key, X, penalty=lambda m, k, z: z, beta=1.0, weight=1.0)


@pytest.mark.slow
def test_the_script(tmp_path, monkeypatch):
    # two steps of each model, every way to sample it, and a picture
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images)
    monkeypatch.setattr(script, "load", lambda *_, **__: SimpleNamespace(train=split, test=split))
    monkeypatch.setattr(script, "features", lambda xs: xs.reshape(len(xs), -1)[:, :5])
    few = {"EPOCHS": 1, "SEEDS": 1, "BATCH": 32, "LATENT": 2, "COMPONENTS": 2, "DRAWS": 40}
    for name, value in {**few, "HIDDEN": (8,)}.items():
        monkeypatch.setattr(script, name, value)
    script.main()
    folder = tmp_path / "runs" / script.NAME
    numbers = json.loads((folder / "result.json").read_text())
    assert list(numbers) == ["autoencoder", "RAE-L2", "RAE-GP", "VAE"]
    assert np.all(np.isfinite([list(row.values()) for rows in numbers.values() for row in rows]))
    assert (folder / "samples.png").stat().st_size > 10_000
