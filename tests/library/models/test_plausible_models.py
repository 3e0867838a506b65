"""Models as users build them: latents that are tuples, a network too few, discrete codes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import models, nn, regularizers

X = jnp.array([1.0, 7.0])
GIVEN = Partial(lambda v: jv.Normal(v, jnp.ones(2)))
PAIR = Partial(lambda v: jv.Product((jv.Normal(v, jnp.ones(2)), jv.Normal(100.0 + v, jnp.ones(2)))))
UP = Partial(jnp.tanh)


def test_the_lowest_latents_of_a_ladder_may_be_a_tuple():
    model = models.Ladder(
        (UP, UP), (PAIR, GIVEN), jv.StandardNormal((2,)), (PAIR,), Partial(lambda z: GIVEN(z[0]))
    )
    z = model.encode(X).sample(jax.random.key(0))
    np.testing.assert_array_equal(model.decode(z).mean(), z[1][0])
    assert np.isfinite(jv.elbo(model, jax.random.key(1), X)[0])


def test_a_ladder_says_that_a_network_is_missing():
    model = models.Ladder((UP,), (GIVEN, GIVEN), jv.StandardNormal((2,)), (GIVEN,), GIVEN)
    with pytest.raises(ValueError, match="Ladder: up, evidence and down are of 1, 2 and 1 levels"):
        model.encode(X)


@pytest.mark.parametrize(
    ("up", "what"),
    [
        (lambda x: (0.0 * x, x, 9.0 * x), "a tuple of 3"),
        (lambda x: (x,), "a tuple of 1"),
        (lambda x: x, "an array"),
    ],
    ids=["too many", "too few", "no tuple"],
)
def test_the_features_of_a_top_down_model_are_those_of_its_blocks(up, what):
    both = Partial(sum)
    block = models.Block(GIVEN, Partial(lambda pair: GIVEN(pair[0] + pair[1])), both)
    model = models.TopDown(Partial(up), jnp.zeros(2), (block, block), GIVEN)
    for bound in (jv.elbo, models.deep_elbo):
        with pytest.raises(ValueError, match=f"TopDown: up returned {what}, expected a tuple"):
            bound(model, jax.random.key(0), X)


@pytest.mark.parametrize("name", ["factor_vae", "adversarial_autoencoder", "vae_gan"])
def test_adversaries_refuse_the_gradient_of_codes_without_a_path(name):
    rngs, dense = nnx.Rngs(0), partial(nn.MLP, hidden=())
    model = jv.VAE(
        nn.Conditional(dense, nn.OneHotHead(), (2,), (4,), rngs=rngs),
        nn.Conditional(dense, nn.NormalHead(), (4,), (2,), rngs=rngs),
        jv.OneHotCategorical(jnp.zeros(4)),
    )
    critic = regularizers.Critic(nn.MLP((2,), (3,), rngs=rngs), Partial(jnp.sum))
    of_codes = nn.MLP((4,), (), rngs=rngs)
    objective, discriminator = {
        "factor_vae": (partial(regularizers.factor_vae, gamma=0.0), of_codes),
        "adversarial_autoencoder": (regularizers.adversarial_autoencoder, of_codes),
        "vae_gan": (partial(regularizers.vae_gan, gamma=1.0), critic),
    }[name]
    xs, players = jnp.ones((3, 2)), regularizers.AdversarialPair(model, discriminator)
    bound = lambda players, key: jv.batched(objective)(players, key, xs)[0]
    assert np.isfinite(bound(players, jax.random.key(0)))
    with pytest.raises(TypeError, match="samples of OneHotCategorical have no derivative"):
        jax.grad(bound)(players, jax.random.key(1))


@pytest.mark.parametrize(
    "likelihood",
    [lambda z: jv.Categorical(jnp.stack([z, -z], axis=-1)), lambda z: jv.Poisson(jnp.exp(z))],
    ids=["Categorical", "Poisson"],
)
def test_what_hides_may_be_whole_numbers(likelihood):
    model = models.NotAtRandom(
        GIVEN,
        Partial(likelihood),
        jv.StandardNormal((1,)),
        Partial(lambda x: jv.Bernoulli(0.1 * x.astype(jnp.float32))),
    )
    d = model.decode(model.prior.sample(jax.random.key(0)))
    assert np.isfinite(d.log_prob(d.sample(jax.random.key(1))))
