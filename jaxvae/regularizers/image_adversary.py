"""An adversary of images: VAE-GAN, whose likelihood is of what its discriminator sees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import Key, Scalar, Tree, a_class_of, check_shape, checked
from jaxvae.distributions import Normal
from jaxvae.gradients.reparameterized import hold, require_path_of_gradient
from jaxvae.model import Model, likelihood, posterior, prior
from jaxvae.protocols import mean_of, sample_and_log_prob
from jaxvae.pytrees import shown
from jaxvae.regularizers.adversarial import (
    AdversarialPair,
    AdversarialTerms,
    discrimination,
    logit_of,
    pair_of,
)


@shown
class Critic(NamedTuple):
    """A discriminator in two halves, logit(features(x)): `vae_gan` compares what is in between.

    Args:
      features: x -> h, an array.
      logit: h -> a scalar.

    >>> critic = Critic(features=lambda x: x[:2], logit=jnp.sum)
    >>> float(critic(jnp.ones(3)))
    2.0
    """

    features: Callable[[Any], Array]
    logit: Callable[[Any], Array]

    @checked
    def __call__(self, x: Tree) -> Array:
        return self.logit(self.features(x))


@checked
def vae_gan(
    players: AdversarialPair, key: Key, x: Tree, *, gamma: Scalar
) -> tuple[Array, AdversarialTerms]:
    """VAE-GAN: a likelihood of what a discriminator sees in x, and images that are to deceive it.

    encoder          log p(h|z) - KL(q(z|x) || p(z)),    h = features(x), p(h|z) = N(h(x'), I)
    decoder          gamma log p(h|z) + log sigma(D(x')) + log sigma(D(x_p))
    discriminator    log sigma(D(x)) + log sigma(-D(x')) + log sigma(-D(x_p))

    x' is the mean of p(x|z) at z ~ q(z|x), x_p that at z ~ p(z). Each line moves whom it names, so
    the features learn to tell images apart and never to be easy to match.
    Larsen, Sonderby, Larochelle & Winther 2016, algorithm 1; the decoder's gain is
    the one of Goodfellow et al. 2014, section 3, which has a gradient when it loses.

    Args:
      players: a model that is a pytree of arrays, and a `Critic`.
      gamma: weight of the features for the decoder, traced.

    Returns:
      The sum of the three lines, no bound on log p(x), and `AdversarialTerms`: `distortion` is
      -log p(h|z) in nats, `log_ratio` the mean of D(x') and D(x_p).

    >>> from jax.tree_util import Partial
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> players = AdversarialPair(model, Critic(features=Partial(jnp.tanh), logit=Partial(jnp.sum)))
    >>> _, terms = vae_gan(players, jax.random.key(0), jnp.ones(3), gamma=1.0)
    >>> terms.distortion.shape
    ()
    """
    model, critic, held = pair_of("vae_gan", players)
    if not hasattr(critic, "features"):
        raise TypeError(
            f"vae_gan: discriminator is {a_class_of(critic)}, expected Critic(features, logit)"
        )
    z_key, prior_key = jax.random.split(key)
    q, p = posterior(model, x), prior(model)
    z, log_q = sample_and_log_prob(q, z_key)
    rate = auto_kl(q, p, z, log_q)

    def image(model: Model, z: Tree) -> Array:
        return mean_of(likelihood(model, z))

    def distortion(image: Array) -> Array:
        check_shape("vae_gan", "x", x, jnp.shape(image))
        h = held.features(image)
        return -Normal(h, jnp.ones_like(h)).log_prob(held.features(x))

    of_features = distortion(image(hold("vae_gan: model", model), z))
    encoder = -of_features - rate

    fakes = [image(model, z) for z in jax.lax.stop_gradient((z, p.sample(prior_key)))]
    log_ratios = jnp.stack([logit_of(held, fake) for fake in fakes])
    decoder = -gamma * distortion(fakes[0]) + jnp.sum(jax.nn.log_sigmoid(log_ratios))

    x_z, x_p = jax.lax.stop_gradient(fakes)
    gain = discrimination(critic, x, x_z) + jax.nn.log_sigmoid(-logit_of(critic, x_p))
    bound = require_path_of_gradient(q, encoder + decoder + gain)
    return bound, AdversarialTerms(of_features, rate, jnp.mean(log_ratios), gain)
