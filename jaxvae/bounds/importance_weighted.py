"""Importance-weighted bounds: one function, `importance_bound`, and the reductions that name it.

Each is an objective of ONE example that returns the bound in nats and the log-weights, takes any
gradient estimator, and is below log p(x) in mean unless it says otherwise.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weights import importance_term, sample_keys
from jaxvae.bounds.reductions import log_mean_exp, log_power_mean, maximum, thermodynamic
from jaxvae.checks import Count, Key, Partition, Scalar, Tree, checked
from jaxvae.gradients.reparameterized import Estimator, Reduction, pathwise
from jaxvae.model import Model, posterior

Bound = tuple[Array, Array]
"""The bound, a scalar in nats, and the log-weights, shape [K], or [M, K] of M groups."""


@checked
def importance_bound(
    reduction: Reduction,
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    gradient: Estimator = pathwise,
) -> Bound:
    """R(log w_1, ..., log w_K), w_k = p(x, z_k) / q(z_k|x), z_k ~ q(z|x): any reduction as a bound.

    `partial(importance_bound, reduction)` is an objective, with any estimator of `gradients`.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> median = partial(importance_bound, jnp.median)
    >>> bound, log_w = median(model, jax.random.key(0), jnp.ones(3), num_samples=5)
    >>> bound.shape, log_w.shape
    ((), (5,))
    """
    keys = sample_keys(key, num_samples)
    return gradient(reduction, importance_term(model, x), posterior(model, x), keys)


@checked
def iwae(
    model: Model, key: Key, x: Tree, *, num_samples: Count, gradient: Estimator = pathwise
) -> Bound:
    """The importance-weighted bound: log p(x) >= E[log 1/K sum_k w_k], tighter as K grows.

    K = 1 is the ELBO with a sampled rate. K (log p(x) - IWAE_K) tends to half the chi-squared
    divergence of the posterior from q.
    Burda, Grosse & Salakhutdinov 2016.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, log_w = iwae(model, jax.random.key(0), jnp.ones(3), num_samples=5)
    >>> bound.shape, log_w.shape
    ((), (5,))
    """
    return importance_bound(log_mean_exp, model, key, x, num_samples=num_samples, gradient=gradient)


@checked
def renyi(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    alpha: Scalar,
    gradient: Estimator = pathwise,
) -> Bound:
    """Renyi's variational bound, 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).

    alpha = 1 is the ELBO and alpha = 0 the importance-weighted bound. With K to infinity it is
    below log p(x) for alpha > 0 and above for alpha < 0. At K = 1 it is the ELBO whatever alpha,
    and it goes from there to its limit: for alpha < 0 and finite K it may be on either side.
    Li & Turner 2016.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, _ = renyi(model, jax.random.key(0), jnp.ones(3), num_samples=5, alpha=0.5)
    """
    reduction = partial(log_power_mean, power=1.0 - alpha)
    return importance_bound(reduction, model, key, x, num_samples=num_samples, gradient=gradient)


@checked
def vr_max(
    model: Model, key: Key, x: Tree, *, num_samples: Count, gradient: Estimator = pathwise
) -> Bound:
    """VR-max, max_k log w_k: `renyi` at alpha = -inf, which trains on the best sample alone.

    At least the importance-weighted bound of the same samples, so it may exceed log p(x). Of the
    estimators `doubly_reparameterized` is not defined, as a maximum has no second derivative.
    Li & Turner 2016.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, log_w = vr_max(model, jax.random.key(0), jnp.ones(3), num_samples=5)
    >>> bool(bound == jnp.max(log_w))
    True
    """
    return importance_bound(maximum, model, key, x, num_samples=num_samples, gradient=gradient)


@checked
def tvo(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    betas: Partition,
    gradient: Estimator = pathwise,
) -> Bound:
    """The thermodynamic variational objective: the left Riemann sum of log p(x) over temperatures.

    sum_j (beta_{j+1} - beta_j) E_{pi_{beta_j}}[log w], pi_beta ~ q(z|x)^(1 - beta) p(x, z)^beta

    betas = (0, 1) is the ELBO; a finer partition is tighter. Expectations are by self-normalised
    importance sampling over the K samples, which is biased at finite K.
    Masrani, Le & Wood 2019.

    >>> import jax
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> betas = jnp.array([0.0, 0.1, 1.0])
    >>> bound, _ = tvo(model, jax.random.key(0), jnp.ones(3), num_samples=5, betas=betas)
    """
    betas = jnp.asarray(betas)
    reduction = partial(thermodynamic, betas=betas, at=betas[:-1])
    return importance_bound(reduction, model, key, x, num_samples=num_samples, gradient=gradient)
