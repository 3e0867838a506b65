"""What a trained model is worth on a data set: means over images, in nats an image."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jaxvae
from jaxvae.protocols import mean_of


class Evaluation(NamedTuple):
    """Means over images: ELBO = -(rate + distortion), whatever beta the model was trained with."""

    elbo: Any
    rate: Any
    distortion: Any


def each(one: Any, key: Array, xs: Any, *, batch_size: int | None = None) -> Any:
    """one(key, x) of every example, a key for each: leaves [n, ...].

    Args:
      one: (key, x) -> arrays.
      key: a PRNG key.
      xs: examples, leading axis n.
      batch_size: how many at a time; by default one after the other.
    """
    keys = jax.random.split(key, len(jax.tree.leaves(xs)[0]))
    return jax.lax.map(lambda kx: one(*kx), (keys, xs), batch_size=batch_size)


def drawn(key: Array, xs: Any, n: int) -> Any:
    """n of the examples at random, none twice; all of them, shuffled, where there are fewer.

    The first n may be no fair sample: files are often sorted by class, or by who wrote the digits.

    Args:
      key: a PRNG key; the experiments draw their test rows with `jax.random.key(98)`.
      xs: examples, leaves of leading axis N; a row of each leaf belongs to that of the others.
      n: how many.
    """
    rows = jax.random.permutation(key, len(jax.tree.leaves(xs)[0]))[:n]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], xs)


HUNDRED = 100  # images at a time
ROWS = np.arange(HUNDRED, dtype=np.int32)
FEWEST = 1000  # keys; the first of them do not depend on how many there are


def whole(model: Any) -> Any:
    """The VAE within what an objective trains beside other players, as `Constrained` and pairs."""
    return getattr(model, "model", model)


def scored(model: Any, key: Array, x: Any) -> Any:
    """The ELBO of any posterior, one without a path too: its value, not for its gradient."""
    return jaxvae.elbo(model, key, x, gradient=jaxvae.score_function)


def evaluate(
    model: Any, key: Array, images: Any, transform: Any, elbo: Any = jaxvae.elbo
) -> Evaluation:
    """ELBO, rate and distortion over images as stored, one sample of z for each.

    Args:
      model: any `Model`.
      key: a PRNG key.
      images: as stored, leading axis n.
      transform: `(key, image) -> x`, such as `jaxvae.rescale`.
      elbo: or `scored`.
    """
    return Evaluation(*map(np.mean, of_each(model, key, images, transform, elbo)))


def of_each(
    model: Any, key: Array, images: Any, transform: Any, elbo: Any = jaxvae.elbo
) -> Evaluation:
    """The same of every image, [n]: a hundred at a time, by one program for whatever images."""
    images, n = np.asarray(images), len(images)
    size = max(FEWEST, n)
    found = []
    for start in range(0, n, HUNDRED):
        rows = images[np.minimum(start + ROWS, n - 1)]
        own = jax.random.clone(key)  # every call takes others of the keys
        found.append(_evaluated(model, own, rows, start, transform, size, elbo))
    parts = zip(*jax.device_get(found), strict=True)
    return Evaluation(*(np.concatenate(part)[:n] for part in parts))


@partial(jax.jit, static_argnames=("transform", "size", "elbo"))
def _evaluated(
    model: Any, key: Array, images: Array, start: Array, transform: Any, size: int, elbo: Any
) -> tuple[Array, Array, Array]:
    keys = jax.random.split(key, size)[start + ROWS]
    objective = jaxvae.preprocessed(elbo, transform)
    bounds, terms = jax.vmap(partial(objective, model))(keys, images)
    return bounds, terms.rate, terms.distortion


@partial(jax.jit, static_argnames=("transform", "num_samples"))
def log_marginals(
    model: Any, key: Array, images: Array, transform: Any, num_samples: int
) -> jaxvae.LogMarginal:
    """log p(x) of every image by importance sampling, leaves of shape [n]."""

    def one(key: Array, image: Array) -> jaxvae.LogMarginal:
        transform_key, key = jax.random.split(key)
        x = transform(transform_key, image)
        return jaxvae.log_marginal(model, key, x, num_samples=num_samples)

    # an image at a time: its samples already fill the cores, and more at once would leave the cache
    return each(one, key, images)


def compile_measures(
    model: Any,
    images: Any,
    transform: Any,
    num_rows: int,
    num_samples: int,
    elbo: Any = jaxvae.elbo,
) -> None:
    """Compile what `evaluate(model, _, images, transform)` and log p(x) of so many rows run.

    It can be done by a thread while the model is trained, which leaves a core free. The programs
    are those of every model of that structure.
    """
    key = jax.random.key(0)

    def rows(n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *images.shape[1:]), images.dtype)

    size = max(FEWEST, len(images))
    _evaluated.lower(model, key, rows(HUNDRED), 0, transform, size, elbo).compile()
    log_marginals.lower(model, key, rows(num_rows), transform, num_samples).compile()


@partial(jax.jit, static_argnames="transform")
def inputs(key: Array, images: Array, transform: Any) -> Array:
    """What the model sees of each image, [n, ...]."""
    return jax.vmap(transform)(jax.random.split(key, len(images)), images)


@partial(jax.jit, static_argnames="n")
def generated(model: Any, key: Array, n: int) -> Array:
    """Means of p(x|z) at n draws of the prior."""
    keys = jax.random.split(key, n)
    return jax.lax.map(lambda k: mean_of(jaxvae.generate(model, k)), keys, batch_size=100)


@jax.jit
def reconstructed(model: Any, key: Array, xs: Array) -> Array:
    """Means of p(x|z) at draws of q(z|x), one for each x: of the aggregate posterior."""
    keys = jax.random.split(key, len(xs))
    return jax.vmap(lambda k, x: mean_of(jaxvae.reconstruct(model, k, x)))(keys, xs)


@jax.jit
def largest_log_scale(model: Any, xs: Array) -> Array:
    """max log sigma over latents and examples: where an overflow usually begins; NaN of none."""
    q = jax.vmap(model.encode)(xs)
    if isinstance(q, jaxvae.MultivariateNormal):
        return jnp.max(jnp.log(jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1)))
    if not hasattr(q, "scale"):
        return jnp.full((), jnp.nan)
    return jnp.max(jnp.log(q.scale))
