"""What `use` does with one row: functions (model, key of the row, x) of a single example."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weights import log_prior
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import Key, Tree
from jaxvae.distributions import Masked, Product
from jaxvae.distributions.masked import a_mask_each, is_of_a_whole
from jaxvae.evaluation import imputation
from jaxvae.evaluation.rows import (
    has_mask,
    is_masked,
    or_else,
)
from jaxvae.model import Model, likelihood, log_likelihood, posterior, prior
from jaxvae.protocols import (
    MissingMethodError,
    event_shape,
    is_certain,
    log_density,
    mean_of,
    method_of,
    sample_and_log_prob,
)
from jaxvae.pytrees import arrays, value_of


def posterior_mean(model: Model, key: Key, x: Tree) -> Any:
    q = posterior(model, x)
    if is_certain(q):
        return q.sample(key)
    with or_else("encode: give it a key, use.encode(model, xs, key=key), and it draws z"):
        return mean_of(q)


def posterior_draw(model: Model, key: Key, x: Tree) -> Any:
    return posterior(model, x).sample(key)


def likelihood_mean(model: Model, key: Key, z: Tree) -> Any:
    del key
    with or_else("decode: give it a key, use.decode(model, zs, key=key), and it draws x"):
        return imputation.best_guess(likelihood(model, z))


def likelihood_draw(model: Model, key: Key, z: Tree) -> Any:
    d = likelihood(model, z)
    return (d.distribution if isinstance(d, Masked) else d).sample(key)


def remembered(model: Model, key: Key, x: Tree) -> Any:
    z = posterior(model, x).sample(key)
    with or_else("reconstruct: draw, use.decode(model, use.encode(model, xs, key=k), key=l)"):
        return imputation.best_guess(likelihood(model, z))


def new_mean(model: Model, key: Key, x: Tree) -> Any:
    del x
    z_key, _ = jax.random.split(key)  # the z of new_draw
    z = prior(model).sample(z_key)
    with or_else("generate: leave out mean=True, and it draws x"):
        return imputation.best_guess(likelihood(model, z))


def new_draw(model: Model, key: Key, x: Tree) -> Any:
    del x
    z_key, x_key = jax.random.split(key)
    return likelihood_draw(model, x_key, prior(model).sample(z_key))


def imputed(
    model: Model, key: Key, x: Tree, num_samples: int, num_draws: int | None
) -> tuple[Any, Array]:
    if num_draws is None:
        return imputation.imputed(model, key, x, num_samples)
    return imputation.completed("impute", model, key, x, num_samples, num_draws)


def ahead(
    model: Model,
    key: Key,
    series: tuple[Any, Array],
    steps: int,
    num_samples: int,
    quantiles: tuple[float, ...] | None,
) -> Any:
    x, t = series
    q, after = posterior(model, x), method_of(prior(model), "after", "forecast")

    def draw(k: Array) -> Any:
        z_key, ahead_key, x_key = jax.random.split(jax.random.fold_in(key, k), 3)
        z = q.sample(z_key)
        later = after(z, t, steps).sample(ahead_key)
        # the whole chain, as a decoder may look back; what is behind t + steps is not looked at
        z = jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_slice_in_dim(jnp.concatenate([a, b]), b, t, 0),
            z,
            later,
        )
        x = likelihood_draw(model, x_key, z)
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, t, steps), x)

    xs = jax.lax.map(draw, jnp.arange(num_samples))
    if quantiles is None:
        return xs
    return jax.tree.map(lambda a: jnp.quantile(a.astype(float), jnp.array(quantiles), axis=0), xs)


def scored(model: Model, key: Key, x: Tree, num_samples: int) -> Any:
    """iwae, elbo, rate, entries, observed: a sample after the other, as entries may be pixels."""
    q = posterior(model, x)

    def one(key: Key) -> tuple[Array, Array, Any]:
        z, log_q = sample_and_log_prob(q, key)
        rate = log_q - log_prior(model, z)
        return log_likelihood(model, x, z) - rate, rate, entries_of(likelihood(model, z), x)

    def add(total: Tree, k: Array) -> tuple[Any, tuple[Array, Array]]:
        log_w, rate, entries = one(jax.random.fold_in(key, k))
        return jax.tree.map(jnp.add, total, entries), (log_w, rate)

    shapes = jax.eval_shape(lambda: one(jax.random.key(0)))[2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, (log_w, rate) = jax.lax.scan(add, zeros, jnp.arange(num_samples))
    entries = jax.tree.map(lambda t: -t / num_samples, total)
    observed = (
        _observed(entries if is_masked(model) else x[0], *x)
        if has_mask(model)
        else _observed(entries, x, jnp.array(True))
    )
    return log_mean_exp(log_w), jnp.mean(log_w), jnp.mean(rate), entries, observed


def entries_of(d: Any, x: Tree, mask: Tree | None = None) -> Any:
    """log p_i(x_i) of every entry of one event, nats: 0 in a gap; they sum to log p(x).

    >>> from jaxvae import Normal
    >>> log_p = entries_of(Normal(jnp.zeros(2), jnp.ones(2)), jnp.array([0.0, 1.0]))
    >>> [round(float(value), 3) for value in log_p]
    [-0.919, -1.419]
    """
    d = value_of(d)
    if isinstance(d, Masked):
        return entries_of(d.distribution, *x)
    if isinstance(d, Product):
        each = d.split(d.parts)
        of_all = mask is None or is_of_a_whole(mask)
        parts = zip(each, d.split(x), [mask] * len(each) if of_all else d.split(mask), strict=True)
        return d.join([entries_of(*part) for part in parts])
    parts = None if event_shape(d) == () else _independent(d)
    if parts is None:
        return log_density(d, x) if mask is None else log_density(Masked(d), (x, mask))
    if mask is not None and jnp.ndim(mask) == 0:  # of a whole pixel
        mask = jnp.broadcast_to(mask, jnp.shape(x)[:1])
    return jax.vmap(entries_of)(arrays(parts), x, mask)


def _independent(d: Any) -> Any:
    """Its independent parts, stacked; None where they aren't, as channels that are coupled."""
    try:
        return method_of(d, "unstack")()
    except MissingMethodError:
        return None


def _observed(entries: Tree, x: Tree, mask: Tree) -> Array:
    """How many entries are there; a choice is one, however many axes a mask has."""
    like = entries if jax.tree.structure(entries) == jax.tree.structure(x) else x
    pairs = zip(jax.tree.leaves(like), a_mask_each("score", like, mask), strict=True)
    shares = [jnp.mean(mask, dtype=jnp.float32) * jnp.size(entry) for entry, mask in pairs]
    return jnp.sum(jnp.stack(shares))
