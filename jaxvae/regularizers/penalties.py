"""What a code is charged instead of its rate: `regularized`, and the penalties it takes.

A penalty is a function `(code, key, *, hyper) -> scalar` in nats. What it needs of the batch it
asks `batch_mean` or `gather` for, and then it is a penalty inside `batched` alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.batching import batch_mean
from jaxvae.bounds.evidence import Terms
from jaxvae.bounds.kl import KL, auto_kl, kl_at, kl_of_levels
from jaxvae.checks import Key, Numbers, Scalar, Tree, check_scalar, checked
from jaxvae.distributions.special import weighted
from jaxvae.evaluation.diagnostics import latent_kls
from jaxvae.gradients.reparameterized import Estimator, at_one_sample, pathwise
from jaxvae.model import Model, log_likelihood, posterior, prior
from jaxvae.protocols import Distribution
from jaxvae.pytrees import shown

Penalty = Callable[..., Array]
"""(code, key, **hyper) -> nats, of one example's `LatentSample`."""


@shown
class LatentSample(NamedTuple):
    """What a penalty may look at: one example's code.

    Args:
      q: q(z|x).
      p: p(z).
      z: a draw of q.
      log_q: log q(z|x) there, nats.
      rate: KL(q || p) as the objective takes it, nats.
    """

    q: Any
    p: Any
    z: Any
    log_q: Array
    rate: Array


@checked
def regularized(
    model: Model,
    key: Key,
    x: Tree,
    *,
    penalty: Penalty,
    beta: Scalar = 1.0,
    kl: KL = auto_kl,
    gradient: Estimator = pathwise,
    **hyper: Any,
) -> tuple[Array, Terms]:
    """An ELBO whose rate is replaced: E_q[log p(x|z)] - beta penalty(code), one draw z.

    With the rate for a penalty, `lambda code, key: code.rate`, it is `elbo`. Whatever the penalty,
    aux holds the true `Terms`, so that -(distortion + rate) is still the ELBO of the model trained.

    The value is in nats, a bound on log p(x) where the penalty is at least the rate. The penalties
    of this library all look at a batch, and need `batched`. So they need an estimator that
    differentiates through the draws, `pathwise`: `enumeration` gives all rows of a batch the
    same code at once, and `score_function` hears of what a row's own code does to its own penalty.
    `sticking_the_landing` and `doubly_reparameterized` leave out a term whose mean is 0 under the
    rate: under `capacity` and `free_bits`, which are not linear in it, their gradient is biased.

    Args:
      penalty: `(code, key, **hyper) -> nats`, such as `free_bits`, `capacity` or `mmd_penalty`.
      beta: weight of the penalty, traced, as is **hyper, which the penalty is given.

    >>> from functools import partial
    >>> from jaxvae import batched
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> objective = batched(partial(regularized, penalty=partial(free_bits, parts=kl_per_level)))
    >>> bound, terms = objective(model, jax.random.key(0), jnp.ones((7, 3)), free_nats=4.0)
    >>> float(jnp.mean(terms.rate)) < 4.0, bool(jnp.isclose(bound, -jnp.mean(terms.distortion) - 4))
    (True, True)
    """
    sample_key, penalty_key = jax.random.split(key)

    def term(q: Distribution, z: Tree, log_q: Array) -> tuple[Array, Terms]:
        p = prior(model)
        terms = Terms(distortion=-log_likelihood(model, x, z), rate=kl(q, p, z, log_q))
        charged = penalty(LatentSample(q, p, z, log_q, terms.rate), penalty_key, **hyper)
        check_scalar("regularized", "penalty's result", charged)
        return -(terms.distortion + weighted(beta, charged)), terms

    return at_one_sample(gradient, term, posterior(model, x), sample_key)


@checked
def capacity(code: LatentSample, key: Key | None, *, capacity: Scalar) -> Array:
    """Capacity annealing (CCI-VAE): |R - C|, R the batch's mean rate, C nats that rise from 0.

    With `beta` = gamma of the paper; at C = 0 it is beta-VAE. A schedule of the step raises C.
    Burgess et al. 2018, "Understanding disentangling in beta-VAE", equation 8.

    >>> from functools import partial
    >>> from jaxvae import VAE, Normal, StandardNormal, batched
    >>> encode = decode = lambda v: Normal(v, jnp.ones(1))
    >>> model = VAE(encode, decode, StandardNormal((1,)))
    >>> objective = batched(partial(regularized, penalty=capacity, capacity=5.0))
    >>> bound, terms = objective(model, jax.random.key(0), jnp.array([[2.0], [4.0]]))
    >>> terms.rate.tolist(), round(float(-bound - jnp.mean(terms.distortion)), 5)  # R = 5
    ([2.0, 8.0], 0.0)
    """
    del key
    return jnp.abs(batch_mean(code.rate) - capacity)


def kl_per_latent(code: LatentSample) -> Array:
    """KL(q(z_j|x) || p(z_j)) of each latent, [d] nats: in closed form, or else at the sample z.

    >>> from jaxvae import Normal, StandardNormal
    >>> z = jnp.array([2.0, 0.0])
    >>> kl_per_latent(LatentSample(Normal(z, 1.0), StandardNormal((2,)), z, None, None)).tolist()
    [2.0, 0.0]
    """
    return jnp.reshape(latent_kls(code.q, code.p, kl_at, code.z), -1)


@checked
def kl_per_group(code: LatentSample, *, groups: Numbers) -> Array:
    """The KL of each group of latents, [number of groups] nats, where q and p factorise.

    `groups` has the group of each latent, integers 0, 1, ..., shape [d].

    >>> from jaxvae import Normal, StandardNormal
    >>> z = jnp.array([2.0, 0.0, 4.0])
    >>> code = LatentSample(Normal(z, 1.0), StandardNormal((3,)), z, None, None)
    >>> kl_per_group(code, groups=np.array([0, 0, 1])).tolist()
    [2.0, 8.0]
    """
    kls = kl_per_latent(code)
    if np.shape(groups) != kls.shape:
        raise ValueError(f"kl_per_group: groups has shape {np.shape(groups)}, expected {kls.shape}")
    if np.min(groups) < 0:
        raise ValueError(f"kl_per_group: groups holds {np.min(groups)}, expected 0 or more")
    return jax.ops.segment_sum(kls, jnp.asarray(groups), int(np.max(groups)) + 1)


def kl_per_level(code: LatentSample) -> Array:
    """The KL of each level of a hierarchy given the sample above it, [levels] nats.

    In closed form, or else at the sample. What is no hierarchy is one level: this is for a flow,
    and for a prior that is a mixture or a flow.

    >>> from jaxvae import Joint, Normal, StandardNormal
    >>> p = Joint(StandardNormal(()), lambda z: Normal(z, 1.0))
    >>> q = Joint(Normal(2.0, 1.0), lambda z: Normal(z + 4.0, 1.0))
    >>> code = LatentSample(q, p, (jnp.array(2.0), jnp.array(6.0)), None, None)
    >>> kl_per_level(code).tolist()  # 2^2 / 2 and 4^2 / 2
    [2.0, 8.0]
    """
    return kl_of_levels(code.q, code.p, code.z, code.log_q)


@checked
def free_bits(
    code: LatentSample,
    key: Key | None,
    *,
    free_nats: Scalar,
    parts: Callable[[LatentSample], Array] = kl_per_latent,
) -> Array:
    """sum_j max(lambda, R_j), R_j the batch's mean KL of part j: the first lambda nats are free.

    A part below lambda has no gradient to push it further down, so it does not collapse. At
    lambda = 0 it is the rate, where KLs are in closed form.
    Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow".

    Args:
      free_nats: lambda, nats of each part.
      parts: code -> KLs [J]: `kl_per_latent`, `kl_per_level` or
        `partial(kl_per_group, groups=...)`.

    >>> from jaxvae import Normal, StandardNormal, batched
    >>> code = lambda mu: LatentSample(Normal(mu, 1.0), StandardNormal((2,)), mu, None, None)
    >>> charge = batched(lambda _, key, mu: (free_bits(code(mu), key, free_nats=0.5), None))
    >>> float(charge(None, jax.random.key(0), jnp.array([[2.0, 0.0]]))[0])  # 2^2 / 2 and lambda
    2.5
    """
    del key
    return jnp.sum(jnp.maximum(free_nats, batch_mean(parts(code))))
