"""Two players in one step: a model, and the discriminator that learns a density ratio to judge it.

A divergence of the aggregate posterior q(z) has no closed form. It is the mean of a log density
ratio, and the best discriminator between samples of two densities is their log ratio. Both players
are one pytree, `AdversarialPair`, with one objective: what the model gains, the discriminator held
still, plus what the discriminator gains, its samples held still. One gradient then moves each by
its own gain alone, and `train_step` and `fit` train a game as they train any model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import BATCH, gather
from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import (
    Key,
    Numbers,
    Scalar,
    Tree,
    a_class_of,
    check_array,
    check_function,
    check_scalar,
    checked,
    kind,
)
from jaxvae.gradients.reparameterized import hold, require_path_of_gradient
from jaxvae.model import log_likelihood, posterior, prior
from jaxvae.protocols import sample_and_log_prob
from jaxvae.pytrees import shown
from jaxvae.pytrees.libraries import functional


def check_players(owner: str, name: str, players: Any) -> None:
    """Raise TypeError unless `players` are a model and a discriminator."""
    if not hasattr(players, "model") or not hasattr(players, "discriminator"):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(players)}, expected "
            "AdversarialPair(model, discriminator)"
        )
    check_function(owner, "discriminator", players.discriminator)


@shown
@kind(check_players)
class AdversarialPair(NamedTuple):
    """A model and its adversary, trained together; evaluate and sample `players.model`.

    An optimiser each: `optax.partition({"model": adam, "discriminator": other},
    AdversarialPair("model", "discriminator"))`.

    Args:
      model: any `Model`.
      discriminator: v -> a logit, a scalar: a callable pytree of arrays, such as
        `nn.MLP((latents,), (), rngs=rngs)`; for `vae_gan` a `Critic`.
    """

    model: Any
    discriminator: Any


@shown
class AdversarialTerms(NamedTuple):
    """What the players' gains are made of, for one example, in nats and without weights.

    Args:
      distortion: -log p(x|z); in `vae_gan` that of the features.
      rate: KL(q(z|x) || p(z)); 0 in `adversarial_autoencoder`, which does not pay for it.
      log_ratio: the discriminator's logit of what the model made.
      discrimination: the discriminator's gain, -2 log 2 if it cannot tell a pair apart.
    """

    distortion: Array
    rate: Array
    log_ratio: Array
    discrimination: Array


@checked
def discrimination(discriminator: Callable[[Any], Array], a: Tree, b: Tree) -> Array:
    """What a discriminator of a ~ p from b ~ q gains: log sigma(D(a)) + log sigma(-D(b)).

    Its mean is largest at D = log p - log q, the log ratio of two densities that need only be
    sampled, and is 2 JS(p, q) - 2 log 2 there. Nothing is held still.
    Goodfellow et al. 2014, equation 1, proposition 1 and theorem 1.

    >>> round(float(discrimination(lambda v: 0.0 * v, jnp.array(1.0), jnp.array(2.0))), 5)
    -1.38629
    """
    of_p, of_q = jax.tree.map(jnp.shape, a), jax.tree.map(jnp.shape, b)
    if of_p != of_q:
        raise ValueError(f"discrimination: b has shape {of_q}, expected that of a, {of_p}")
    of_a, of_b = logit_of(discriminator, a), logit_of(discriminator, b)
    return jax.nn.log_sigmoid(of_a) + jax.nn.log_sigmoid(-of_b)


@checked
def permute_latents(zs: Numbers) -> Array:
    """Codes [n, d] whose latents come each from another row: of samples of q(z), prod_j q(z_j)'s.

    z~_ij = z_(i + j mod n) j

    No two latents of a row come from one example while d <= n, so each z~_i is an exact draw of the
    product of the marginals; independent permutations would leave a pair of latents together once
    in n. Rows are of independent examples in random order, so no key is needed.
    In place of Kim & Mnih 2018, algorithm 1.

    >>> permute_latents(jnp.array([[0, 10], [1, 11], [2, 12]])).tolist()
    [[0, 11], [1, 12], [2, 10]]
    """
    if jnp.ndim(zs) != 2 or jnp.shape(zs)[0] < 2:
        raise ValueError(
            f"permute_latents: zs has shape {jnp.shape(zs)}, expected codes [n, d] with n at least "
            "2; of one example no latent can be exchanged"
        )
    n, d = jnp.shape(zs)
    rows = (jnp.arange(n)[:, None] + jnp.arange(d)[None]) % n
    return jnp.take_along_axis(jnp.asarray(zs), rows, axis=0)


@checked
def factor_vae(
    players: AdversarialPair, key: Key, x: Tree, *, gamma: Scalar
) -> tuple[Array, AdversarialTerms]:
    """FactorVAE: the ELBO less gamma times the total correlation of the aggregate posterior.

    ELBO - gamma KL(q(z) || prod_j q(z_j)),    KL = E[D(z)]

    D tells codes from the batch's codes after `permute_latents`: an objective for `batched`. Where
    beta-VAE makes all of the rate dear, I(x; z) too, this charges for dependent latents alone. The
    value is the sum of both gains, in nats; the mean of `log_ratio` over a batch estimates the KL.
    Kim & Mnih 2018, equations 2 and 3; algorithm 2, with both players moving at once.

    Args:
      players: a model with latents in one array, and a discriminator of z.
      gamma: weight of the total correlation, traced; 0 is the ELBO.

    >>> from flax import nnx
    >>> from jaxvae import batched, nn
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> players = AdversarialPair(model, nn.MLP((2,), (), rngs=nnx.Rngs(0)))
    >>> _, terms = batched(factor_vae)(players, jax.random.key(0), jnp.ones((7, 3)), gamma=10.0)
    >>> terms.log_ratio.shape
    (7,)
    """
    model, discriminator, held = pair_of("factor_vae", players)
    q = posterior(model, x)
    z, log_q = sample_and_log_prob(q, key)
    check_array("factor_vae", "z", z)
    terms = AdversarialTerms(
        distortion=-log_likelihood(model, x, z),
        rate=auto_kl(q, prior(model), z, log_q),
        log_ratio=logit_of(held, z),
        discrimination=discrimination(discriminator, *_code_and_permuted(z)),
    )
    gain = -(terms.distortion + terms.rate) - gamma * terms.log_ratio
    return require_path_of_gradient(q, gain + terms.discrimination), terms


@checked
def adversarial_autoencoder(
    players: AdversarialPair, key: Key, x: Tree, *, beta: Scalar = 1.0
) -> tuple[Array, AdversarialTerms]:
    """The adversarial autoencoder (AAE), charged for the aggregate posterior, not for each code.

    E[log p(x|z)] - beta KL(q(z) || p(z)),    KL = E[D(z)]

    At beta = 1 that is the ELBO + I(x; z): a code may tell all of its x if the codes of the data
    together look like the prior. D tells codes from draws of the prior. Of q(z|x) only `sample` is
    used, so it needs no density and may be certain, as `nn.NormalHead(0.0)`. The value and
    `log_ratio` are as in `factor_vae`.
    Makhzani et al. 2016, section 2, whose encoder lowers the Jensen-Shannon divergence of the pair.

    Args:
      players: a model, and a discriminator of z.
      beta: weight of the divergence, traced.

    >>> from flax import nnx
    >>> from jaxvae import nn
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> players = AdversarialPair(model, nn.MLP((2,), (), rngs=nnx.Rngs(0)))
    >>> _, terms = adversarial_autoencoder(players, jax.random.key(0), jnp.ones(3))
    >>> float(terms.rate)
    0.0
    """
    model, discriminator, held = pair_of("adversarial_autoencoder", players)
    z_key, prior_key = jax.random.split(key)
    q = posterior(model, x)
    z, z_prior = q.sample(z_key), prior(model).sample(prior_key)
    distortion = -log_likelihood(model, x, z)
    terms = AdversarialTerms(
        distortion=distortion,
        rate=jnp.zeros_like(distortion),
        log_ratio=logit_of(held, z),
        discrimination=discrimination(discriminator, *jax.lax.stop_gradient((z, z_prior))),
    )
    gain = -distortion - beta * terms.log_ratio
    return require_path_of_gradient(q, gain + terms.discrimination), terms


def pair_of(owner: str, players: AdversarialPair) -> tuple[Any, Any, Any]:
    """The model, the discriminator, and the discriminator held still."""
    model, discriminator = functional((players.model, players.discriminator))
    return model, discriminator, hold(f"{owner}: discriminator", discriminator)


def logit_of(discriminator: Callable[[Any], Array], v: Tree) -> Array:
    logit = discriminator(v)
    check_scalar("discriminator", "logit", logit)
    return logit


def _code_and_permuted(z: Array) -> tuple[Array, Array]:
    """This example's code and its row of the batch's with latents permuted, both held still."""
    z = jax.lax.stop_gradient(z)
    zs, row = gather(z.reshape(-1)), jax.lax.axis_index(BATCH)
    return z, permute_latents(zs)[row].reshape(z.shape)
