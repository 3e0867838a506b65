"""Bounds that trade tightness for a quieter gradient: two targets, or a mean of two kinds.

Each is an objective of ONE example that returns the bound in nats and the log-weights, is below log
p(x) in mean and takes any gradient estimator. All three are from Rainforth et al. 2018, "Tighter
variational bounds are not necessarily better".
"""

from functools import partial

import jax

from jaxvae.bounds.importance_weighted import Bound, importance_bound, iwae
from jaxvae.bounds.reductions import convex_combination, mean_log_mean_exp
from jaxvae.checks import Count, Key, Scalar, Tree, checked
from jaxvae.gradients.reparameterized import Estimator, hold, pathwise
from jaxvae.model import VAE, Model, part


@checked
def miwae(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_outer: Count,
    num_samples: Count,
    gradient: Estimator = pathwise,
) -> Bound:
    """Multiply importance-weighted, MIWAE(M, K): the mean of M bounds of K samples each.

    M = 1 is `iwae`; K = 1 is the ELBO from M samples with a sampled rate, whose gradient under
    `vimco` is the leave-one-out score function. (The MIWAE of Mattei & Frellsen 2019, for missing
    data, is another thing.)
    Rainforth et al. 2018.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> _, log_w = miwae(model, jax.random.key(0), jnp.ones(3), num_outer=2, num_samples=5)
    >>> log_w.shape
    (2, 5)
    """
    bound, log_w = importance_bound(
        partial(mean_log_mean_exp, num_outer=num_outer),
        model,
        key,
        x,
        num_samples=num_outer * num_samples,
        gradient=gradient,
    )
    return bound, log_w.reshape(num_outer, num_samples)


@checked
def piwae(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_outer: Count,
    num_samples: Count,
    gradient: Estimator = pathwise,
) -> Bound:
    """Partially importance-weighted, PIWAE(M, K): a target each for the two halves of the model.

    The decoder and the prior learn from the tight `iwae` of all M K samples, the encoder from
    `miwae` of the same samples, whose gradient is less noisy. The value is that of `iwae`.
    Rainforth et al. 2018.

    Args:
      model: any `Model` that is a pytree of arrays: what each target must not train is held still
        as a pytree, which what a bare function closes over is not.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, _ = piwae(model, jax.random.key(0), jnp.ones(3), num_outer=2, num_samples=5)
    """
    still = hold("model", model)
    halves = {"num_outer": num_outer, "num_samples": num_samples, "gradient": gradient}
    for_encoder = VAE(part(model, "encode"), still.decode, still.prior)
    for_decoder = VAE(still.encode, model.decode, model.prior)
    encoder_bound, log_w = miwae(for_encoder, key, x, **halves)
    decoder_bound, _ = iwae(
        for_decoder, key, x, num_samples=num_outer * num_samples, gradient=gradient
    )
    return decoder_bound + (encoder_bound - jax.lax.stop_gradient(encoder_bound)), log_w


@checked
def ciwae(
    model: Model,
    key: Key,
    x: Tree,
    *,
    num_samples: Count,
    beta: Scalar,
    gradient: Estimator = pathwise,
) -> Bound:
    """Combination importance-weighted, CIWAE(beta): beta ELBO + (1 - beta) IWAE, beta in [0, 1].

    Rainforth et al. 2018.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, _ = ciwae(model, jax.random.key(0), jnp.ones(3), num_samples=5, beta=0.5)
    """
    reduction = partial(convex_combination, beta=beta)
    return importance_bound(reduction, model, key, x, num_samples=num_samples, gradient=gradient)
