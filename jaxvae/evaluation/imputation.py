"""What stands in the gaps: missing entries of x given the observed ones, from any trained model.

Training needs no bound of its own. With events (x, mask) and a `Masked` likelihood, `iwae` is

    log p(x_observed) >= E[ log 1/K sum_k p(x_observed|z_k) p(z_k) / q(z_k|x_observed) ],

the missing-data importance-weighted bound, and its weights give p(x_missing|x_observed) too.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weights import importance_term, sample_keys
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import (
    Count,
    Key,
    Tree,
    a_class_of,
    check_leaves,
    check_pair,
    check_shape,
    checked,
)
from jaxvae.distributions import Categorical, Independent, Masked, Product
from jaxvae.distributions.masked import a_mask_each, check_masks
from jaxvae.evaluation.rows import warn_of_outside
from jaxvae.model import Model, likelihood, posterior
from jaxvae.protocols import Distribution, MissingMethodError, mean_of, sample_and_log_prob
from jaxvae.pytrees import value_of


def _check_event(owner: str, name: str, event: Tree) -> None:
    check_pair(owner, name, event, "(x, mask)")
    x, mask = event
    check_leaves(owner, "x", x)
    check_leaves(owner, "mask", mask)
    check_masks(owner, x, mask)


Event = Annotated[tuple[Any, Any], _check_event]
"""(x, mask), the mask True where x is observed: two arrays, or trees of one structure."""


@checked
def impute(model: Model, key: Key, event: Event, *, num_samples: Count) -> Any:
    """x with E[x_missing|x_observed] in its gaps, by self-normalised importance sampling.

    sum_k w_k E[x|z_k] / sum_k w_k,   w_k = p(x_observed|z_k) p(z_k) / q(z_k|x_observed)

    Low in squared error, and too smooth for a draw: those are `multiple_imputations`. The average
    of labels means nothing: in the gaps of a `Categorical` stands the most probable one,
    argmax_c p(x_missing = c|x_observed), in those of a `OneHotCategorical` the probability of each.
    x comes in the dtype of the mean; labels are integers.
    Mattei & Frellsen 2019 (MIWAE), on single imputation.

    Args:
      model: any `Model` of events (x, mask): `decode` returns a `Masked`, of distributions that are
        `Categorical` or have a mean.
      num_samples: K; the bias is of order 1/K.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> decode = lambda z: Masked(Normal(jnp.stack([z, z]), 0.1))
    >>> encode = lambda event: Normal(event[0][0] / 1.01, jnp.sqrt(0.01 / 1.01))  # p(z|x_0)
    >>> event = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    >>> model = VAE(encode, decode, StandardNormal(()))
    >>> x = impute(model, jax.random.key(0), event, num_samples=1000)
    >>> [round(float(x_i), 2) for x_i in x]  # 1 / 1.01
    [1.0, 0.99]
    """
    x, log_p = imputed(model, key, event, num_samples)
    warn_of_outside("impute", log_p)
    return x


def imputed(model: Model, key: Key, event: Tree, num_samples: Count) -> tuple[Any, Array]:
    """x with its gaps filled, and the log p(x_observed) that is known from doing so."""
    zs, log_w = _weighted("impute", model, key, event, num_samples)
    try:
        moments = jax.vmap(lambda z: _moments(_whole("impute", model, z)))(zs)
    except MissingMethodError as error:
        raise MissingMethodError(f"impute: multiple_imputations draws from any; {error}") from None
    w = jax.nn.softmax(log_w)
    mean = jax.tree.map(lambda m: jnp.tensordot(w, m, 1), moments)
    best = jax.tree.map(_most_probable, mean, is_leaf=_of_labels)
    return _fill("impute", event, best), log_mean_exp(log_w)


@checked
def multiple_imputations(
    model: Model, key: Key, event: Event, *, num_samples: Count, num_draws: Count
) -> Any:
    """Draws of x_missing ~ p(x_missing|x_observed), by sampling importance resampling.

    Of K draws z_k ~ q(z|x_observed) one is taken with probability w_k / sum_j w_j, and x is drawn
    of its p(x|z_k): exact as K goes to infinity. What is estimated on each completed x varies by as
    much as the gaps leave open. The `num_draws` completed x, along a leading axis, are of one K.
    Mattei & Frellsen 2019 (MIWAE), on multiple imputation; Rubin 1987.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> decode = lambda z: Masked(Normal(jnp.stack([z, z]), 0.1))
    >>> model = VAE(lambda event: StandardNormal(()), decode, StandardNormal(()))
    >>> event = jnp.array([1.0, jnp.nan]), jnp.array([True, False])
    >>> key = jax.random.key(0)
    >>> multiple_imputations(model, key, event, num_samples=1000, num_draws=5).shape
    (5, 2)
    """
    xs, log_p = completed("multiple_imputations", model, key, event, num_samples, num_draws)
    warn_of_outside("multiple_imputations", log_p)
    return xs


def completed(
    owner: str, model: Model, key: Key, event: Tree, num_samples: Count, num_draws: Count
) -> tuple[Any, Array]:
    """Draws of x with its gaps filled, along a leading axis, and log p(x_observed)."""
    z_key, which_key, x_key = jax.random.split(key, 3)
    zs, log_w = _weighted(owner, model, z_key, event, num_samples)
    which = jax.random.categorical(which_key, log_w, shape=(num_draws,))

    def draw(key: Key, k: Array) -> Any:
        z = jax.tree.map(lambda leaf: leaf[k], zs)
        return _fill(owner, event, _whole(owner, model, z).sample(key))

    return jax.vmap(draw)(jax.random.split(x_key, num_draws), which), log_mean_exp(log_w)


def _weighted(
    owner: str, model: Model, key: Key, event: Tree, num_samples: Count
) -> tuple[Any, Array]:
    """K draws z_k ~ q(z|x_observed), stacked, and log w_k."""
    keys = sample_keys(key, num_samples)
    q, term = posterior(model, event), importance_term(model, event)

    def one(key: Key) -> tuple[Any, Array]:
        z, log_q = sample_and_log_prob(q, key)
        _whole(owner, model, z)
        return z, term(q, z, log_q)[0]

    return jax.vmap(one)(keys)


def _whole(owner: str, model: Model, z: Tree) -> Any:
    """p(x|z) of all entries; where the latents hold them, as of `NotAtRandom`, those."""
    d = likelihood(model, z)
    if hasattr(d, "imputed"):
        return _Known(d.imputed)
    if not isinstance(d, Masked):
        raise TypeError(
            f"{owner}: decode returned {a_class_of(d)}, expected a Masked distribution of "
            "events (x, mask)"
        )
    return d.distribution


class _Known(NamedTuple):
    """A draw of all entries that is weighed as a whole: it is its own mean."""

    x: Any

    def mean(self) -> Any:
        return self.x

    def sample(self, key: Key) -> Any:
        del key
        return self.x


class _Labels(NamedTuple):
    probabilities: Array


def _of_labels(moments: Tree) -> bool:
    return isinstance(moments, _Labels)


def _moments(d: Distribution) -> Any:
    """E[x], in the structure of x; of labels the probability of each."""
    match value_of(d):
        case Product() as d:
            return d.join([_moments(part) for part in d.split(d.parts)])
        case Independent() as d:
            return jax.vmap(_moments)(d.parts)
        case Categorical() as d:
            known = getattr(d, "known", lambda: d)()  # of an `OpenCategorical`
            return _Labels(jnp.exp(known.log_probs))
    return mean_of(d)


def best_guess(d: Distribution) -> Any:
    """E[x], and of labels the most probable one."""
    d = value_of(d)
    moments = _moments(d.distribution if isinstance(d, Masked) else d)
    return jax.tree.map(_most_probable, moments, is_leaf=_of_labels)


def _most_probable(mean: Tree) -> Array:
    return jnp.argmax(mean.probabilities, axis=-1) if _of_labels(mean) else mean


def _fill(owner: str, event: tuple[Any, Any], imputed: Tree) -> Any:
    """x where it was observed and `imputed` elsewhere; a mask of fewer axes hides whole pixels."""
    x, mask = event

    def fill(m: Array, x: Array, y: Array) -> Array:
        check_shape(owner, "x", x, jnp.shape(y))
        m = jnp.expand_dims(m, tuple(range(jnp.ndim(m), jnp.ndim(y))))
        return jnp.where(m, jnp.asarray(x).astype(y.dtype), y)

    masks = jax.tree.unflatten(jax.tree.structure(x), a_mask_each(owner, x, mask))
    return jax.tree.map(fill, masks, x, imputed)
