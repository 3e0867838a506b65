"""Double precision is double throughout, and single beside it gives the same numbers, shorter."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import models, nn

MLP = partial(nn.MLP, hidden=(4,), activation=jnp.tanh)


def conditional(rngs, *shapes):
    return nn.Conditional(MLP, nn.NormalHead(), *shapes, rngs=rngs)


def parts(rngs, length=()):
    encode = conditional(rngs, (*length, 3), (*length, 2))
    return encode, conditional(rngs, (2,), (3,)), jv.StandardNormal((2,))


def vae(rngs):
    return jv.elbo, jv.VAE(*parts(rngs)), (3,)


def hamiltonian(rngs):
    steps = jnp.full((2, 2), -2.0), jnp.zeros(())
    return jv.elbo, models.HamiltonianVAE(*parts(rngs), *steps), (3,)


def diffusion(rngs):
    encode, decode, _ = parts(rngs)
    prior = models.Diffusion(nn.Denoiser(MLP, (2,), rngs=rngs), (2,), steps=3)
    return jv.elbo, jv.VAE(encode, decode, prior), (3,)


def linear_chain(rngs):
    encode, decode, _ = parts(rngs, (4,))
    one = jnp.eye(2)
    prior = models.LinearChain(jv.MultivariateNormal(jnp.zeros(2), one), one, jnp.zeros(2), one, 4)
    emissions = Partial(models.emissions, decode)
    return jv.elbo, models.StructuredVAE(encode, emissions, prior), (4, 3)


def chain(rngs):
    encode, decode, first = parts(rngs, (4,))
    prior = models.Markov(first, conditional(rngs, (2,), (2,)), 4)
    return jv.elbo, jv.VAE(encode, Partial(models.emissions, decode), prior), (4, 3)


def residual_codes(rngs):
    codes = jax.random.normal(jax.random.key(1), (2, 4, 2), float)
    books = models.ResidualCodebooks(jax.vmap(models.init_codebook)(codes))
    prior = jv.Categorical(jnp.zeros((1, 2, 4)))
    encode, decode = nn.MLP((3,), (1, 2), rngs=rngs), conditional(rngs, (1, 2), (3,))
    return models.vq, models.VQVAE(encode, books, decode, prior), (3,)


def autoregressive_flow(rngs):
    encode, decode, first = parts(rngs)
    flow = nn.AutoregressiveFlow(2, rngs=rngs)()
    return jv.elbo, jv.VAE(encode, decode, jv.Transformed(first, flow)), (3,)


def sequence(rngs):
    network = nn.Conditional(
        partial(nn.Recurrent, width=4), nn.NormalHead(), (4, 3), (2,), rngs=rngs
    )
    attends = partial(nn.Transformer, width=4, heads=2, depth=1)
    decode = nn.Conditional(attends, nn.NormalHead(), (4, 3), (4, 3), rngs=rngs)
    tiled = Partial(lambda f, z: f(jnp.tile(jnp.pad(z, (0, 1)), (4, 1))), decode)
    return jv.elbo, jv.VAE(network, tiled, jv.StandardNormal((2,))), (4, 3)


MODELS: Any = [
    vae,
    hamiltonian,
    diffusion,
    linear_chain,
    chain,
    residual_codes,
    autoregressive_flow,
    sequence,
]


def in_single(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_precisions(make, x64):
    with jax.numpy_dtype_promotion("standard"):
        objective, model, shape = make(nnx.Rngs(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(float)}
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        bound = jax.jit(lambda model, x: objective(model, jax.random.key(0), x)[0])
        exact = bound(model, x)
        assert exact.dtype == float
        assert jnp.allclose(bound(model, in_single(x)), exact, rtol=1e-5)
        # some draw their noise in the precision of what they hold, and so other noise
        assert jnp.allclose(bound(in_single(model), x), exact, rtol=1e-2)
        z = jax.jit(lambda model: model.prior.sample(jax.random.key(0)))(in_single(model))
        assert jax.tree.all(jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), z))
