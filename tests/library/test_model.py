"""The stock model, what it remembers and what it makes."""

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from jaxvae import VAE, Constant, Normal, StandardNormal, elbo, generate, reconstruct
from tests.common import close, draws, standard_errors_off

MODEL = VAE(  # p(x) = N(1, 4 + .25)
    encode=Partial(lambda w, x: Normal(w * x, 0.1), jnp.array(0.5)),
    decode=Partial(lambda w, z: Normal(w * z + 1, 0.5), jnp.array(2.0)),
    prior=StandardNormal(()),
)


def loc(d):
    assert isinstance(d, Normal)
    return d.loc


def test_reconstruct_goes_through_the_code(x64):
    # p(x'|z) at the z ~ q(z|x) of the key: mean 2 z + 1
    d = reconstruct(MODEL, jax.random.key(0), 3.0)
    z = Normal(1.5, 0.1).sample(jax.random.key(0))
    assert isinstance(d, Normal)
    assert close(d.loc, 2 * z + 1)
    assert d.scale == 0.5
    means = draws(lambda key: loc(reconstruct(MODEL, key, 3.0)), 4_000)
    assert standard_errors_off(means, 4.0) < 4


def test_generate_goes_through_the_prior(x64):
    # p(x|z) at the z ~ p(z) of the key; an example drawn from it has mean 1 and variance 4.25
    z = StandardNormal(()).sample(jax.random.key(1))
    assert close(loc(generate(MODEL, jax.random.key(1))), 2 * z + 1)

    def example(key):
        a, b = jax.random.split(key)
        return generate(MODEL, a).sample(b)

    xs = draws(example, 20_000)
    assert standard_errors_off(xs, 1.0) < 4
    assert standard_errors_off((xs - 1) ** 2, 4.25) < 4


def test_replace_swaps_one_of_three(x64):
    # another prior: generation and rate follow, the likelihood does not
    swapped = MODEL._replace(prior=Normal(7.0, 1e-3))
    assert abs(loc(generate(swapped, jax.random.key(2))) - 15) < 0.02
    key = jax.random.key
    (_, before), (_, after) = (elbo(m, key(3), 3.0) for m in (MODEL, swapped))
    assert before.distortion == after.distortion
    assert after.rate > before.rate
    assert MODEL.prior == swapped._replace(prior=MODEL.prior).prior


def test_a_vae_is_a_pytree_of_its_parameters():
    # two leaves here, as the prior and what is wrapped in Constant have none
    assert [float(leaf) for leaf in jax.tree.leaves(MODEL)] == [0.5, 2.0]
    fixed = MODEL._replace(decode=Constant(MODEL.decode))
    assert [float(leaf) for leaf in jax.tree.leaves(fixed)] == [0.5]
    both = jax.jit(jax.value_and_grad(lambda m: elbo(m, jax.random.key(0), 3.0)[0]))
    (ours, _), (theirs, gradient) = both(MODEL), both(fixed)
    assert jax.tree.structure(gradient) == jax.tree.structure(fixed)
    assert close(ours, theirs)


def test_reconstruct_names_an_encoder_without_distribution():
    # an array is no posterior
    with pytest.raises(TypeError, match="encode returned"):
        reconstruct(MODEL._replace(encode=Partial(lambda x: x)), jax.random.key(0), 3.0)
