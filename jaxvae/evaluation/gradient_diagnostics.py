"""What a gradient estimator is worth: mean, variance and signal-to-noise ratio of its gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import Objective
from jaxvae.checks import Count, Key, Tree, checked, written
from jaxvae.model import Model
from jaxvae.pytrees import shown, wide
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import statistics, with_state, without_state
from jaxvae.training.trainable import check_trains


@shown
class GradientStatistics(NamedTuple):
    """Moments of a random gradient over draws of the key; each field a pytree like the model.

    Args:
      mean: of the gradient of the bound.
      variance: of one draw, unbiased.
      snr: |mean| / standard deviation, a parameter at a time; NaN of a gradient that is always 0.
    """

    mean: Any
    variance: Any
    snr: Any


@checked
def gradient_statistics(
    objective: Objective, model: Model, key: Key, x: Tree, *, num_draws: Count, chunk: Count = 100
) -> GradientStatistics:
    """Mean, variance and signal-to-noise ratio of the gradient of any objective on any model.

    The standard error of the mean is sqrt(variance / num_draws). Hyper-parameters, the estimator
    among them, are bound with `functools.partial`; `batched(objective)` and a batch `xs` serve too.
    Draw i uses `fold_in(key, i)`. Rainforth et al. 2018.

    >>> from functools import partial
    >>> from jaxvae import iwae, sticking_the_landing
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> objective = partial(iwae, num_samples=1, gradient=sticking_the_landing)
    >>> s = gradient_statistics(objective, model, jax.random.key(0), jnp.ones(3), num_draws=10)
    >>> encoder, *_ = jax.tree.leaves(s.variance.encode)
    >>> bool(jnp.all(encoder < 1e-9))  # q is exact: no noise
    True
    """
    if num_draws < 2:
        raise ValueError("gradient_statistics: num_draws is 1, expected at least 2 for a variance")
    chunk = min(chunk, num_draws)
    state = statistics(functional(model))
    model = without_state(functional(model))
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        check_trains(f"gradient_statistics: model{written(model, path)}", leaf)

    def gradient(i: Array) -> Any:
        def bound(model: Any) -> Array:
            return objective(with_state(model, state), jax.random.fold_in(key, i), x)[0]

        return jax.grad(bound)(model)

    def merge(moments: Tree, start: Array) -> tuple[Any, None]:
        """Fold a chunk into (count, mean, sum of squared deviations); Chan et al. 1983."""
        count, mean, square = moments
        index = start + jnp.arange(chunk)
        drawn = index < num_draws  # the last chunk may be padded
        size = jnp.sum(drawn)
        total = count + size
        g = jax.tree.map(wide, jax.vmap(gradient)(index))

        def leaf(g: Array, mean: Array, square: Array) -> tuple[Array, Array]:
            n, m, share = (a.astype(g.dtype) for a in (count, size, size / total))
            weight = drawn.astype(g.dtype)
            of_chunk = jnp.tensordot(weight, g, 1) / m
            within = jnp.tensordot(weight, jnp.square(g - of_chunk[None]), 1)
            shift = of_chunk - mean
            return mean + shift * share, square + within + jnp.square(shift) * n * share

        leaves = [jax.tree.leaves(tree) for tree in (g, mean, square)]
        means, squares = zip(*map(leaf, *leaves), strict=True)
        return (total, *(jax.tree.unflatten(structure, m) for m in (means, squares))), None

    structure = jax.tree.structure(model)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), model)
    start = (jnp.zeros((), int), zeros, zeros)
    (_, mean, square), _ = jax.lax.scan(merge, start, jnp.arange(0, num_draws, chunk))
    variance = jax.tree.map(lambda q: q / (num_draws - 1), square)
    snr = jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), mean, variance)
    return GradientStatistics(mean, variance, snr)
