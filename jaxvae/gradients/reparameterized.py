"""Gradient estimators that differentiate a sample: pathwise, sticking the landing, and DReG."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Keys, Tree, a_class_of, checked, written
from jaxvae.protocols import (
    Distribution,
    has_path,
    log_density,
    log_density_relaxed,
    method_of,
    sample_and_log_prob,
)

Reduction = Callable[[Array], Array]
"""Terms [K] -> scalar, `log_mean_exp` for instance."""
Term = Callable[[Any, Any, Array], tuple[Array, Any]]
"""(q, z, log_q) -> (l, aux): what one sample says."""
Estimator = Callable[[Reduction, Term, Any, Array], tuple[Array, Any]]
"""(reduction, term, q, keys) -> the bound in nats, and aux of every sample, stacked.

The reduction takes the terms [K] to a scalar, q is the posterior, and each sample has its key.
"""


@checked
def pathwise(reduction: Reduction, term: Term, q: Distribution, keys: Keys) -> tuple[Array, Any]:
    """The reparameterization gradient: differentiate the terms through z = mu + sigma eps.

    Kingma & Welling 2014, section 2.4; Burda et al. 2016.

    Raises:
      TypeError: when differentiated, if samples of the posterior have no derivative in its
        parameters, as a Categorical's.

    >>> from jaxvae import Normal
    >>> term = lambda q, z, log_q: (jnp.sum(z), None)
    >>> mean = lambda q: pathwise(jnp.mean, term, q, jax.random.split(jax.random.key(0), 2))[0]
    >>> jax.grad(mean)(Normal(jnp.zeros(2), jnp.ones(2))).loc.tolist()  # dz / dmu
    [1.0, 1.0]
    """
    l, aux = over_samples(lambda key: term(q, *sample_and_log_prob(q, key)))(keys)
    return require_path_of_gradient(q, reduction(l)), aux


@checked
def sticking_the_landing(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys
) -> tuple[Array, Any]:
    """STL, `pathwise` without the score term: the parameters inside log q(z) are held still.

    Unbiased for the ELBO, whose gradient then vanishes without noise where q is exact; for a
    tighter bound at K > 1 it is biased, as the score terms do not cancel once they are weighted.
    The rate of an ELBO is taken at the sample, closed form or not: that is where the score term is.
    Roeder, Wu & Duvenaud 2017; the bias: Tucker et al. 2019.

    >>> from jaxvae import Normal
    >>> term = lambda q, z, log_q: (Normal(0.0, 1.0).log_prob(z) - log_q, None)
    >>> gap = lambda q: sticking_the_landing(jnp.mean, term, q, jax.random.key(0)[None])[0]
    >>> bool(jnp.abs(jax.grad(gap)(Normal(0.0, 1.0)).scale) < 1e-6)  # q is exact: no noise
    True
    """
    return _through_samples(reduction, term, q, keys, jnp.ones_like)


@checked
def doubly_reparameterized(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys
) -> tuple[Array, Any]:
    """DReG: the score terms of a tighter bound, reparameterized once more: unbiased and quiet.

    With g = dR/dl and h_k = d^2R/dl_k^2, the gradient that flows into sample k is

        (g_k - h_k) dl_k/dz_k,

    which for the importance-weighted bound is w_k^2, w the normalised weights, for Renyi's

        alpha w_k + (1 - alpha) w_k^2,

    w those of the power 1 - alpha, and for the ELBO, where h is 0, that of sticking the landing. It
    is `sticking_the_landing` with the cotangent of each sample scaled by 1 - h_k / g_k. The
    reduction must be smooth: where dR/dl jumps, as a median's or a trimmed mean's does, the second
    derivative misses the jumps and the gradient is biased. A sample may be a pytree of layers, each
    drawn given those before it.
    Tucker, Lawson, Gu & Maddison 2019; layers: Bauer & Mnih 2021.

    Raises:
      TypeError: samples of the posterior have no derivative in its parameters, or the reduction has
        no second derivative, as that of VR-max.

    >>> from jaxvae import Normal
    >>> from jaxvae.bounds import log_mean_exp as of
    >>> term, keys = lambda q, z, log_q: (z, None), jax.random.split(jax.random.key(0), 4)
    >>> bound = lambda q: doubly_reparameterized(of, term, q, keys)[0]
    >>> round(float(jax.grad(bound)(Normal(0.0, 1e-3)).loc), 3)  # sum_k w_k^2 of equal weights 1/4
    0.25
    """

    def scale(l: Array) -> Array:
        g = jax.grad(reduction)(l)
        h = jnp.diagonal(jax.hessian(reduction)(l))
        return 1.0 - h / jnp.where(g == 0.0, 1.0, g)  # where g is 0, nothing flows to be scaled

    return _through_samples(reduction, term, q, keys, scale)


def over_samples(f: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap(f)`, which for one sample is f itself: XLA trains slower through an axis of one."""

    def mapped(*args: Any) -> Any:
        if len(jax.tree.leaves(args)[0]) > 1:
            return jax.vmap(f)(*args)
        return jax.tree.map(lambda a: jnp.asarray(a)[None], f(*jax.tree.map(lambda a: a[0], args)))

    return mapped


def at_one_sample(
    gradient: Estimator, term: Term, q: Distribution, key: Array
) -> tuple[Array, Any]:
    """The term and its aux at one draw of q: what an ELBO is."""
    value, aux = gradient(jnp.mean, term, q, key[None])
    return value, jax.tree.map(lambda a: a[0], aux)


class Held(NamedTuple):
    """A posterior held still, known by its density alone: a rate is then taken at the sample."""

    q: Any

    def sample(self, key: Key) -> Any:
        return self.q.sample(key)

    def log_prob(self, z: Tree) -> Array:
        return log_density(self.q, z)

    def log_prob_relaxed(self, z: Tree) -> Array:
        return log_density_relaxed(self.q, z)

    def unstack(self) -> "Held":
        return Held(method_of(self.q, "unstack")())


def _through_samples(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys, scale: Callable[[Array], Array]
) -> tuple[Array, Any]:
    """The posterior learns through its samples alone, sample k's cotangent scaled by scale(l)_k."""
    _require_path(q)
    held = Held(hold("the posterior", q))
    z = over_samples(q.sample)(keys)

    def at(z: Tree) -> tuple[Array, Any]:
        return term(held, z, held.log_prob(z))

    # evaluated twice, compiled once: without its gradient this is the same computation
    l = jax.lax.stop_gradient(over_samples(at)(z)[0])
    l, aux = over_samples(at)(over_samples(_scale_cotangent)(z, scale(l)))
    return reduction(l), aux


def hold(name: str, tree: Any) -> Any:
    """stop_gradient of a pytree; TypeError naming the first leaf that is no array.

    >>> float(jax.grad(lambda x: x * hold("x", x))(3.0))  # and not 2 x
    3.0
    """

    def stop(path: Any, leaf: Any) -> Any:
        try:
            return jax.lax.stop_gradient(leaf)
        except TypeError:
            raise TypeError(
                f"{name}{written(tree, path)} is {a_class_of(leaf)}, expected a pytree "
                "of arrays, to be held still; wrap a plain function and its parameters "
                "in jax.tree_util.Partial, register a class with jax.tree_util.register_dataclass"
            ) from None

    return jax.tree_util.tree_map_with_path(stop, tree)


def _require_path(q: Distribution) -> None:
    """Raise TypeError where samples of q have no derivative in q's parameters."""
    if not has_path(q):
        raise TypeError(
            f"samples of {type(q).__name__} have no derivative in its parameters; use "
            "gradient=score_function, vimco (two samples or more), enumeration, "
            "straight_through or gumbel_softmax"
        )


def require_path_of_gradient(q: Distribution, bound: Array) -> Array:
    """The bound, whose value any q may have; `_require_path` is asked for its gradient alone."""
    value = jax.custom_vjp(lambda bound: bound)
    value.defvjp(lambda bound: (_require_path(q), bound), lambda _, cotangent: (cotangent,))
    return bound if has_path(q) else value(bound)


@jax.custom_vjp
def _scale_cotangent(z: Tree, factor: Array) -> Any:
    """z itself; what flows back through it is multiplied by `factor`."""
    del factor
    return z


def _scale_forward(z: Tree, factor: Array) -> tuple[Any, Array]:
    return z, factor


def _scale_backward(factor: Array, cotangent: Tree) -> tuple[Any, Array]:
    return jax.tree.map(lambda c: factor.astype(c.dtype) * c, cotangent), jnp.zeros_like(factor)


_scale_cotangent.defvjp(_scale_forward, _scale_backward)
