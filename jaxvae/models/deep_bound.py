"""The ELBO of a `TopDown` in one way up and one way down, however deep it is."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import batch_mean
from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import Key, Scalar, Tree, a_class_of, check_fields, checked
from jaxvae.evaluation.latent_space import tempered
from jaxvae.gradients.reparameterized import require_path_of_gradient
from jaxvae.models.hierarchical import Block, TopDown
from jaxvae.protocols import log_prob_of, sample_and_log_prob
from jaxvae.pytrees import shown
from jaxvae.pytrees.libraries import functional


def descend(
    model: TopDown, key: Key, evidence: Sequence[Any], temperatures: Array | None = None
) -> tuple[Any, Array]:
    """The way down, drawing every level once.

    Args:
      evidence: the features of x, to draw of q(z|x); or None for each block, to draw of p(z).
      temperatures: what each level's sigma is multiplied with, [levels], above 0: 1 to draw, a
        small one to stay near the mean; None, the default, is 1.

    Returns:
      h after the last level, and KL(q(z_l|z_{>l}, x) || p(z_l|z_{>l})) [levels], nats.
    """
    h, kls, first = model.start, [], 0
    for block, at in zip(model.blocks, evidence, strict=True):
        several = hasattr(block, "descend")
        last = first + (len(block) if several else 1)
        t = None if temperatures is None else temperatures[first:last]
        if several:
            h, key, kl = block.descend(h, key, at, t)
        else:
            h, key, kl = level(block, h, key, at, None if t is None else t[0])
        kls.append(jnp.atleast_1d(kl))
        first = last
    return h, jnp.concatenate(kls)


def level(
    block: Block, h: Tree, key: Key, features: Tree | None, temperature: Array | None
) -> tuple[Any, Array, Array]:
    """h of the level below, the key of the rest, and the level's rate in nats."""
    here, key = jax.random.split(key)
    p = block.prior(h)
    if features is None:
        q = p
    elif moved := getattr(block, "moved", None):  # made of the prior, which is then asked once
        q = moved(p, h, features)
    else:
        q = block.posterior((h, features))
    z, log_q = sample_and_log_prob(q if temperature is None else tempered(q, temperature), here)
    rate = require_path_of_gradient(q, auto_kl(q, p, z, log_q))
    return block.merge((h, z)), key, rate


def top_down(model: Tree) -> TopDown:
    """The `TopDown` that a model is, by its `top_down()` or itself."""
    model = functional(model)
    return model.top_down() if hasattr(model, "top_down") else model


def check_top_down(owner: str, name: str, model: object) -> None:
    """Raise TypeError unless `model` is a `TopDown`, or is one by way of `top_down()`."""
    if not (isinstance(model, TopDown) or hasattr(model, "top_down")):
        raise TypeError(
            f"{owner}: {name} is {a_class_of(model)}, expected a TopDown, or a DeepHierarchy; make "
            "one, jaxvae.nn.deep_hierarchy(shape), or use elbo for any model"
        )
    check_fields(owner, name, model)


@shown
class DeepTerms(NamedTuple):
    """The parts of the ELBO of a `TopDown` at one example, in nats.

    Args:
      distortion: -log p(x|z).
      rate: KL(q(z|x) || p(z)), the sum over levels.
      levels: of each level, given the sample above, from the top down: [levels].
    """

    distortion: Array
    rate: Array
    levels: Array


@checked
def deep_elbo(
    model: Annotated[Any, check_top_down],
    key: Key,
    x: Tree,
    *,
    beta: Scalar = 1.0,
    free_nats: Scalar | None = None,
) -> tuple[Array, DeepTerms]:
    """The ELBO of a `TopDown` in one way up and one way down: log p(x|z) - beta sum_l KL_l.

    It is `elbo`, but each level is computed once, and its slope goes back through it once, where
    `elbo` asks the posterior, the prior and the likelihood in turn. Rates are in closed form where
    a level has one. With free bits, each KL_l is max(free, KL_l), KL_l the mean over the batch, so
    that the objective is one for `batched`.
    Child 2021; free bits: Kingma et al. 2016.

    Args:
      model: a `TopDown`, or a `DeepHierarchy`.
      beta: weight of the rate, traced.
      free_nats: nats a level that are free, traced; a level below has no gradient to collapse
        further. None, the default, is the ELBO of one example, in a batch or not.

    >>> from flax import nnx
    >>> from jaxvae.nn import deep_hierarchy
    >>> model = deep_hierarchy((4, 4, 1), levels=(1, 1), width=4, rngs=nnx.Rngs(0))
    >>> bound, terms = jax.jit(deep_elbo)(model, jax.random.key(0), jnp.ones((4, 4, 1)))
    >>> terms.levels.shape, float(terms.rate)  # at the start, the posterior is the prior
    ((2,), 0.0)
    """
    model = top_down(model)
    h, kls = descend(model, key, model.features(x))
    distortion = -log_prob_of("the likelihood", model.likelihood(h), "x", x)
    price = jnp.sum(kls if free_nats is None else jnp.maximum(free_nats, batch_mean(kls)))
    return -(distortion + beta * price), DeepTerms(distortion, jnp.sum(kls), kls)
