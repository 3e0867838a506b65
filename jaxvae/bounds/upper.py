"""Upper bounds of log p(x), in mean or in the limit: from above, an evaluation can be sandwiched.

Each is a function of ONE example that returns the bound in nats, to be minimised (so train on its
negative), and the log-weights, shape [K].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.importance_weighted import Bound, importance_bound
from jaxvae.bounds.importance_weights import importance_term, sample_keys
from jaxvae.bounds.reductions import log_power_mean, thermodynamic
from jaxvae.checks import Count, Key, Partition, Scalar, Tree, checked
from jaxvae.gradients.reparameterized import Estimator, pathwise
from jaxvae.model import Model, posterior
from jaxvae.protocols import log_prob_of


@checked
def cubo(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    power: Scalar = 2.0,
    gradient: Estimator = pathwise,
) -> Bound:
    """The chi-squared upper bound, CUBO_n = 1/n log E_q[w^n] >= log p(x) for n > 1.

    It is a bound of the expectation: the estimate 1/n log 1/K sum_k w_k^n is low at finite K (its
    exponential exp(n CUBO) is not), so a single estimate may be below log p(x). n = `power`,
    at least 1, is traced. It is Renyi's bound at alpha = 1 - n. To be minimised.
    Dieng et al. 2017.

    >>> from jaxvae import iwae
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> model = model._replace(encode=lambda x: model.prior)  # a bad proposal
    >>> above, _ = cubo(model, jax.random.key(0), jnp.ones(3), num_samples=100)
    >>> below, _ = iwae(model, jax.random.key(0), jnp.ones(3), num_samples=100)
    >>> bool(above > below)
    True
    """
    reduction = partial(log_power_mean, power=power)
    return importance_bound(reduction, model, key, x, num_samples=num_samples, gradient=gradient)


@checked
def eubo(
    model: Model,
    key: Key,
    x: Tree,
    *,
    sample_posterior: Callable[[Array], Any],
    num_samples: Count = 1,
) -> Bound:
    """The evidence upper bound, E_{p(z|x)}[log w] = log p(x) + KL(p(z|x) || q(z|x)).

    Unbiased, given draws of the true posterior: `ppca.posterior(params, x).sample` in a linear
    model, `lambda key: z` for an x that was itself drawn from the model at z. Descend it in the
    encoder alone, which it fits to p(z|x): in the decoder it has no minimum.
    Ji & Shen 2019.

    Args:
      sample_posterior: key -> z, a draw of p(z|x).

    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> model, x = ppca.as_vae(linear), jnp.ones(3)
    >>> exact = ppca.posterior(linear, x)
    >>> bound, _ = eubo(model, jax.random.key(0), x, sample_posterior=exact.sample)
    >>> bool(jnp.isclose(bound, ppca.log_marginal(linear, x), atol=1e-4))  # q is exact too
    True
    """
    keys = sample_keys(key, num_samples)
    z = jax.lax.stop_gradient(jax.vmap(sample_posterior)(keys))
    q, term = posterior(model, x), importance_term(model, x)
    log_w, _ = jax.vmap(lambda z: term(q, z, log_prob_of("encode(x)", q, "z", z)))(z)
    return jnp.mean(log_w), log_w


@checked
def tvo_upper(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    betas: Partition,
    gradient: Estimator = pathwise,
) -> Bound:
    """The right Riemann sum of `tvo`: above log p(x) as K grows.

    betas = (0, 1) is the EUBO, with draws of the posterior replaced by self-normalised weights,
    which is biased at finite K. To be minimised.
    Masrani, Le & Wood 2019.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> betas = jnp.array([0.0, 0.1, 1.0])
    >>> bound, _ = tvo_upper(model, jax.random.key(0), jnp.ones(3), num_samples=5, betas=betas)
    """
    betas = jnp.asarray(betas)
    reduction = partial(thermodynamic, betas=betas, at=betas[1:])
    return importance_bound(reduction, model, key, x, num_samples=num_samples, gradient=gradient)
