"""Programs compiled once for all models of a structure, and anew for a network that has trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import evaluation, use
from jaxvae.evaluation.programs import compiled, of_each

XS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


FUNCTIONS = {
    "encode": lambda model: use.encode(model, XS),
    "score": lambda model: use.score(model, jax.random.key(0), XS, num_samples=2).elbo,
    "encode_all": lambda model: evaluation.encode_all(model, XS),
    "evaluate": lambda model: (
        evaluation.evaluate(model, jax.random.key(0), XS, num_samples=2).value
    ),
    "summarize": lambda model: (
        evaluation.summarize(model, jax.random.key(0), XS, num_samples=2).elbo
    ),
    "rate_per_latent": lambda model: evaluation.rate_per_latent(model, XS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_network_that_a_plain_function_holds_may_train_between_two_calls(name):
    """Its parameters are no arguments of the program: a cached one had those of the first call."""
    network = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def encode(x):
        return jaxvae.Normal(network(x), jnp.ones(1))

    model = jaxvae.VAE(
        encode, lambda z: jaxvae.Normal(jnp.zeros(3) + z, 1.0), jaxvae.StandardNormal((1,))
    )
    before = FUNCTIONS[name](model)
    network.kernel[...] = 3.0 * network.kernel[...]
    after = FUNCTIONS[name](model)
    as_trained = jaxvae.VAE(
        Partial(lambda w, x: jaxvae.Normal(x @ w, jnp.ones(1)), network.kernel[...]),
        *model[1:],
    )
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, FUNCTIONS[name](as_trained), rtol=1e-5)


class Scaled:
    sigma = 1.0

    def __init__(self, sigma):
        self.sigma = sigma

    def __call__(self, z):
        return jaxvae.Normal(jnp.zeros(3) + z, self.sigma)


SIGMA: Any = 1.0
SIGMAS = np.ones(3, np.float32)
SCALED = Scaled(1.0)


def set_global(sigma):
    globals()["SIGMA"] = sigma


def set_in_place(sigma):
    SIGMAS[:] = sigma


def set_attribute(sigma):
    SCALED.sigma = sigma


ENCODE = Partial(lambda w, x: jaxvae.Normal(x[:1] * w, jnp.ones(1)), jnp.array(0.5))
READ = {
    "a global float": (lambda z: jaxvae.Normal(jnp.zeros(3) + z, SIGMA), set_global),
    "a global scalar array": (
        lambda z: jaxvae.Normal(jnp.zeros(3) + z, SIGMA),
        lambda sigma: set_global(jnp.array(sigma)),
    ),
    "a global mask": (
        lambda z: jaxvae.Normal(jnp.zeros(3) + z, jnp.where(SIGMA, 3.0, 1.0)),
        lambda sigma: set_global(jnp.full(3, sigma > 1.0)),
    ),
    "an array of NumPy": (lambda z: jaxvae.Normal(jnp.zeros(3) + z, SIGMAS), set_in_place),
    "an attribute": (SCALED, set_attribute),
}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("name", ["score", "evaluate"])
def test_what_a_plain_function_reads_may_change_between_two_calls(name, read):
    """A cached program had the values of the first call."""
    decode, change = READ[read]

    def values(sigma):
        change(sigma)
        return FUNCTIONS[name](jaxvae.VAE(ENCODE, decode, jaxvae.StandardNormal((1,))))

    narrow, wide = values(1.0), values(3.0)
    jax.clear_caches()
    np.testing.assert_allclose(wide, values(3.0), rtol=1e-5)
    assert not np.allclose(narrow, wide)


def test_so_may_what_is_taken_of_each_posterior():
    model = jaxvae.VAE(
        ENCODE,
        Partial(lambda w, z: jaxvae.Normal(jnp.zeros(3) + z * w, 1.0), jnp.array(0.5)),
        jaxvae.StandardNormal((1,)),
    )
    of = lambda q: SIGMA * q.mean()
    set_global(1.0)
    once = evaluation.encode_all(model, XS, of=of)
    set_global(3.0)
    np.testing.assert_allclose(evaluation.encode_all(model, XS, of=of), 3.0 * once, rtol=1e-6)


def test_numbers_that_stay_are_one_program():
    traced = []

    def times(model, x):
        traced.append(None)
        return model(x)

    for w in (1.0, 2.0):
        assert compiled(times, Partial(by_global, w))(4.0) == 4.0 * w
    assert len(traced) == 1


def by_global(w, x):
    return w * x * UNIT


UNIT = np.ones(())


def test_models_of_one_structure_are_one_program():
    traced = []

    def times(model, x):
        traced.append(None)
        return model["w"] * x

    for w in (2.0, jnp.array(3.0)):
        assert compiled(times, {"w": jnp.asarray(w)})(4.0) == 4.0 * w
    assert len(traced) == 1


def test_a_number_of_a_model_may_be_a_shape():
    """Integers and booleans that are no arrays stay what they are."""
    found = of_each(lambda _, model, x: x + jnp.zeros(model["n"]), {"n": 2}, np.ones((5, 1)))
    assert found.shape == (5, 2)
