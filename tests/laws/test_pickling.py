"""What is stock can be pickled and copied, for joblib and multiprocessing: equal, and structured
alike, so that a copy stands in for the original in `jax.tree.map`, `jit` and a checkpoint."""

import multiprocessing
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn
from jaxvae.models import ppca
from jaxvae.nn.activations import by_name
from tests.common import COPIES, same
from tests.laws.test_laws import OBJECTS

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "swish": nnx.swish,
    "sin": jnp.sin,
    "erf": jax.lax.erf,
    "leaky": partial(jax.nn.leaky_relu, negative_slope=0.2),
}
CONVOLUTIONS = {"channels": (2,), "hidden": (3,)}
NETWORKS = {
    "MLP": partial(nn.MLP, (5,), (3,)),
    "ConvEncoder": partial(nn.ConvEncoder, (4, 4, 1), (3,), **CONVOLUTIONS),
    "ConvDecoder": partial(nn.ConvDecoder, (3,), (4, 4, 1), **CONVOLUTIONS),
    "MaskedMLP": partial(nn.MaskedMLP, 3, 2),
    "AutoregressiveFlow": partial(nn.AutoregressiveFlow, 3, layers=1),
    "CouplingFlow": partial(nn.CouplingFlow, 3, layers=1),
}


@cache
def distributions():
    return {name: case.make() for name, case in OBJECTS.items()}


@pytest.mark.parametrize("how", COPIES)
def test_distributions(how):
    for name, d in distributions().items():
        assert same(COPIES[how](d), d), name


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, how):
    """JAX's own are objects that pickle does not find and of which a deep copy is another."""
    function, x = ACTIVATIONS[activation], jnp.array([0.3, -0.5, 2.0])
    named = by_name(function)
    assert COPIES[how](named) == named == by_name(function)
    assert np.array_equal(COPIES[how](named)(x), function(x))


@pytest.mark.thorough
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, how):
    def make(activation):
        return NETWORKS[name](activation=activation, rngs=nnx.Rngs(0))

    for activation in (jax.nn.relu, ACTIVATIONS["leaky"]):
        network = make(activation)
        assert same(COPIES[how](network), network)
        assert same(make(activation), network)
    assert not same(make(jax.nn.relu), make(jnp.tanh))


@cache
def stock():
    """A dense and a convolutional model, one with a flow and a constant, all in one tree."""
    rngs, mlp = nnx.Rngs(0), partial(nn.MLP, hidden=(3,))
    flow = nn.AutoregressiveFlow(2, layers=1, context=1, hidden=(3,), rngs=rngs)
    decode = nn.Conditional(mlp, nn.NormalHead(), (2,), (5,), rngs=rngs)
    head = nn.FlowHead(nn.NormalHead(), flow, 1)
    image = partial(nn.ConvEncoder, **CONVOLUTIONS), partial(nn.ConvDecoder, **CONVOLUTIONS)
    codes = jv.models.init_codebook(jnp.arange(8.0).reshape(4, 2))
    uniform = jv.Constant(jv.Categorical(jnp.zeros((1, 4))))
    laplace: Any = jv.Constant(jv.Laplace(jnp.zeros(2), jnp.ones(2)))
    dtype = jnp.bfloat16
    return {
        "flow": jv.VAE(
            nn.Conditional(mlp, head, (5,), (2,), dtype=dtype, rngs=rngs),
            decode,
            laplace,
        ),
        "images": jv.VAE(
            nn.Conditional(image[0], nn.NormalHead(), (4, 4, 1), (2,), rngs=rngs),
            nn.Conditional(image[1], nn.BernoulliHead(), (2,), (4, 4, 1), rngs=rngs),
            jv.StandardNormal((2,)),
        ),
        "deep": nn.deep_hierarchy((4, 4, 1), levels=(1, 1), width=2, rngs=rngs),
        "linear": ppca.as_vae(ppca.PPCA(jnp.ones((5, 2)), jnp.zeros(5), jnp.array(0.5))),
        "critic": jv.regularizers.Critic(
            nn.MLP((5,), (3,), rngs=rngs), nn.MLP((3,), (), rngs=rngs)
        ),
        "quantized": jv.models.VQVAE(mlp((5,), (1, 2), rngs=rngs), codes, decode, uniform),
    }


@cache
def state():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(1e-3), jv.training.average_parameters(0.9)
    )
    return jv.init_state(stock(), optimizer)


@pytest.mark.thorough
@pytest.mark.parametrize("how", COPIES)
def test_models_and_states(how):
    """And what trains them: the state, the optimiser's included, and an objective's partial."""
    for value in (
        stock(),
        state(),
        partial(jv.iwae, num_samples=3, gradient=jv.doubly_reparameterized),
        partial(
            jv.regularizers.regularized, penalty=partial(jv.regularizers.tc_penalty, dataset_size=7)
        ),
    ):
        assert same(COPIES[how](value), value)


def bounds(models):
    key = jax.random.key(0)
    bound, _ = jv.elbo(models["flow"], key, jnp.ones(5))
    image, _ = jv.elbo(models["images"], key, jnp.ones((4, 4, 1)))
    return float(bound), float(image)


@pytest.mark.slow
def test_another_process_computes_the_same():
    models = stock()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(bounds, (models,)) == bounds(models)
