"""VQGAN: a bound, a perceptual distance, and a critic of patches whose weight adapts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxvae.batching import Objective, batch_mean
from jaxvae.bounds.evidence import elbo
from jaxvae.checks import Key, Scalar, Tree, a_class_of, check_array, check_scalar, checked
from jaxvae.model import Model, likelihood, posterior
from jaxvae.protocols import Distribution, has_path, log_prob_of, mean_of
from jaxvae.pytrees import shown
from jaxvae.regularizers.adversarial import AdversarialPair, pair_of

DELTA = 1e-6  # of equation 7


@shown
class VQGANTerms(NamedTuple):
    """What `vqgan` is made of, for one example and without weights.

    Args:
      distortion: -log p(x|z), nats.
      rate: of the objective: KL(q(z|x) || p(z)), or -log p(indices), nats.
      distance: d(x, x'), 0 without one.
      realism: the critic's mean logit of x'.
      discrimination: the critic's gain, at most 0, and -2 if its logits are 0.
      adapted: lambda, one for the batch.
    """

    distortion: Array
    rate: Array
    distance: Array
    realism: Array
    discrimination: Array
    adapted: Array


@checked
def hinge_discrimination(discriminator: Callable[[Any], Array], a: Tree, b: Tree) -> Array:
    """What a discriminator of a from b gains by the hinge loss: min(0, D(a)-1) + min(0, -D(b)-1).

    Each is a mean over its logits where there are several, as of a `PatchCritic`. It is satisfied
    where D(a) >= 1 and D(b) <= -1. Nothing is held still. Lim & Ye 2017.

    >>> float(hinge_discrimination(lambda v: v, jnp.array(0.5), jnp.array(-2.0)))
    -0.5
    """
    of_a, of_b = discriminator(a), discriminator(b)
    check_array("discriminator", "logits", of_a)
    return jnp.mean(jnp.minimum(0.0, of_a - 1.0)) + jnp.mean(jnp.minimum(0.0, -of_b - 1.0))


@checked
def vqgan(
    players: AdversarialPair,
    key: Key,
    x: Tree,
    *,
    objective: Objective = elbo,
    layer: Callable[[Any], Any] | None = None,
    distance: Callable[[Any, Any], Array] | None = None,
    perceptual: Scalar = 1.0,
    adversarial: Scalar = 1.0,
) -> tuple[Array, VQGANTerms]:
    """VQGAN: a bound, less a perceptual distance, and a critic of patches whose weight adapts.

    model      bound - v d(x, x') + w lambda mean D(x')
    critic     mean min(0, D(x) - 1) + mean min(0, -D(x') - 1)
    lambda   = |grad_L (log p(x|z) - v d(x, x'))| / (|grad_L mean D(x')| + delta)

    x' is the mean of p(x|z) at a z of q, that of the bound for objectives that draw it by the key
    itself, as `elbo` and `vq` do. Each line moves whom it names. The gradients in lambda are means
    over the batch, so this is an objective for `batched` and `train_step`; w is then how large the
    critic's part in the last layer is beside that of the reconstruction. With `elbo` it is the
    first stage of latent diffusion, with `jaxvae.models.vq` that of VQGAN.
    Esser, Rombach & Ommer 2021, equations 5 to 7; Rombach et al. 2022, section 3.1 and appendix G.

    Args:
      players: a model, and a discriminator of images, such as `nn.PatchCritic`.
      objective: `(model, key, x) -> (bound, aux)`, aux with distortion and rate.
      layer: model -> L, the part whose gradients are compared, such as
        `lambda model: model.decode.network.last.kernel`; None is a lambda of 1.
      distance: (x, x') -> d, such as `partial(perceptual_distance, features)`.
      perceptual: v, traced.
      adversarial: w, traced: a schedule that is 0 at first lets the critic learn before.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import batched
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> players = AdversarialPair(model, Partial(jnp.tanh))
    >>> _, terms = batched(vqgan)(players, jax.random.key(0), jnp.ones((7, 3)))
    >>> terms.realism.shape
    (7,)
    """
    model, critic, held = pair_of("vqgan", players)
    bound, aux = objective(model, key, x)
    if not (hasattr(aux, "distortion") and hasattr(aux, "rate")):
        raise TypeError(
            f"vqgan: objective's aux is {a_class_of(aux)}, expected one with distortion and rate, "
            "as of jaxvae.elbo or jaxvae.models.vq"
        )
    leaves, structure = jax.tree.flatten(model)
    places = _places(model, layer)

    def losses(last: list[Array]) -> Any:
        moved = structure.unflatten(
            [last[places.index(i)] if i in places else leaf for i, leaf in enumerate(leaves)]
        )
        p = _reconstruction(moved, jax.random.clone(key), x)
        image = mean_of(p)
        d = jnp.zeros(()) if distance is None else distance(x, image)
        check_scalar("vqgan", "distance", d)
        realism = jnp.mean(held(image))
        reconstruction = log_prob_of("decode(z)", p, "x", x) - perceptual * d
        return (reconstruction, realism), (image, d)

    (_, realism), pull, (image, d) = jax.vjp(losses, [leaves[i] for i in places], has_aux=True)
    adapted = jnp.ones_like(realism)
    if places:
        one, zero = jnp.ones_like(realism), jnp.zeros_like(realism)
        of_both = [batch_mean(pull(slope)) for slope in ((one, zero), (zero, one))]
        wanted, given = map(optax.tree.norm, of_both)
        adapted = jax.lax.stop_gradient(wanted / (given + DELTA))
    gain = hinge_discrimination(critic, x, jax.lax.stop_gradient(image))
    of_model = bound - perceptual * d + adversarial * adapted * realism
    terms = VQGANTerms(aux.distortion, aux.rate, d, realism, gain, adapted)
    return of_model + gain, terms


def _places(model: Model, layer: Callable[[Any], Any] | None) -> list[int]:
    """Which of the model's leaves are those of the layer."""
    if layer is None:
        return []
    leaves, structure = jax.tree.flatten(model)
    places = jax.tree.leaves(layer(structure.unflatten(range(len(leaves)))))
    if not places or not all(type(place) is int for place in places):
        raise ValueError(
            "vqgan: layer returned no part of the model, expected its last layer, as by "
            "lambda model: model.decode.network.last.kernel"
        )
    return places


def _reconstruction(model: Any, key: Key, x: Tree) -> Distribution:
    """p(x|z) at z ~ q(z|x), with the gradient by which the encoder trains."""
    if hasattr(model, "straight_through"):
        return model.straight_through(x)
    q = posterior(model, x)
    if not has_path(q):
        raise TypeError(
            f"vqgan: samples of {a_class_of(q)} have no derivative, expected a posterior whose "
            "samples have one, or a model with straight_through(x) -> p(x|z), such as "
            "jaxvae.models.VQVAE"
        )
    return likelihood(model, q.sample(key))
