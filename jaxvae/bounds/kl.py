"""The rate: how a bound gets its KL term.

A rate is a function `(q, p, z, log_q) -> scalar` with z ~ q and log_q = log q(z). All share this
signature, so that a bound takes any of them as an argument.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import lifts
from jaxvae.checks import Nats, Scalar, Tree, checked
from jaxvae.distributions import Joint
from jaxvae.distributions.kl import closed_form, kl_divergence
from jaxvae.gradients.reparameterized import Held, hold
from jaxvae.protocols import Distribution, log_density, log_density_relaxed, log_prior_of
from jaxvae.pytrees import value_of

KL = Callable[..., Array]
"""(q, p, z, log q(z)) -> the rate of a bound, nats."""
M = TypeVar("M")
R = TypeVar("R")
P = ParamSpec("P")


@checked
def analytic_kl(q: Distribution, p: Distribution, z: Tree | None, log_q: Nats | None) -> Array:
    """The rate KL(q || p) in closed form, level by level given the sample above in a hierarchy.

    Raises NotImplementedError where a pair has none: see `kl_divergence`.

    >>> from jaxvae import Normal, StandardNormal
    >>> float(analytic_kl(Normal(jnp.ones(2), 1.0), StandardNormal((2,)), None, None))  # |mu|^2 / 2
    1.0
    """
    del log_q
    return sum_of([kl_divergence(q_l, p_l) for q_l, p_l, _ in levels(q, p, z)])


@checked
def sampled_kl(q: Distribution, p: Distribution, z: Tree, log_q: Nats) -> Array:
    """The rate log q(z) - log p(z) at one sample z ~ q: unbiased for KL(q || p), for any pair.

    >>> from jaxvae import Normal
    >>> q, p, z = Normal(1.0, 1.0), Normal(0.0, 1.0), jnp.array(3.0)
    >>> round(float(sampled_kl(q, p, z, q.log_prob(z))), 4)  # 3^2 / 2 - 2^2 / 2; its mean is 1/2
    2.5
    """
    del q
    return log_q - log_prior_of(p, z)


@checked
def auto_kl(q: Distribution, p: Distribution, z: Tree, log_q: Nats) -> Array:
    """The rate in closed form where one is known, else from the sample.

    The default of every bound: swapping a prior or a posterior never means editing an objective.
    Between two hierarchies (`Joint`) each level has its own, given the sample above it:

    sum over levels with a closed form of KL_l
        + log q of the other levels at the sample - sum over them of log p_l(z_l)

    where log q of the others is log_q less that of the levels in closed form, so that a flow among
    them is never inverted.
    By level: Sonderby et al. 2016.

    >>> import jax
    >>> from jaxvae import Normal, StandardNormal
    >>> q, p = Normal(jnp.zeros(2), jnp.ones(2)), StandardNormal((2,))
    >>> float(auto_kl(q, p, *q.sample_and_log_prob(jax.random.key(0))))
    0.0
    """
    pairs = levels(q, p, z)
    kls = [closed_form(q_l, p_l) for q_l, p_l, _ in pairs]
    known = [kl for kl in kls if kl is not None]
    if len(known) == len(kls):
        return sum_of(known)
    rate = log_q
    for (q_l, p_l, z_l), kl in zip(pairs, kls, strict=True):
        rate = rate + (-log_prior_of(p_l, z_l) if kl is None else kl - log_density(q_l, z_l))
    return rate


@checked
def balanced_kl(
    q: Distribution, p: Distribution, z: Tree, log_q: Nats, *, alpha: Scalar = 0.8
) -> Array:
    """The rate of `auto_kl` with KL balancing: the prior learns alpha, the posterior 1 - alpha.

    alpha KL(sg(q) || p) + (1 - alpha) KL(q || sg(p)),   sg held still

    Its value is the rate, so that a bound stays one; its gradient draws a prior that is learned to
    the posterior faster than the posterior to it. Of a hierarchy each level given the sample above.
    Hafner et al. 2021 (DreamerV2), algorithm 2. The weights b_dyn and b_rep of DreamerV3
    (Hafner et al. 2023) are beta = b_dyn + b_rep and alpha = b_dyn / beta.

    Args:
      alpha: in [0, 1], traced; 1/2 is half the gradient of `auto_kl`.

    >>> import jax
    >>> from jaxvae import Normal
    >>> q, p = Normal(jnp.ones(1), 1.0), Normal(jnp.zeros(1), 1.0)
    >>> rate = lambda q, p: balanced_kl(q, p, jnp.ones(1), q.log_prob(jnp.ones(1)), alpha=0.75)
    >>> of_q, of_p = jax.grad(rate, (0, 1))(q, p)
    >>> float(rate(q, p)), of_q.loc.tolist(), of_p.loc.tolist()
    (0.5, [0.25], [-0.75])
    """
    at = levels(q, p, z)
    log_qs = [log_q] if len(at) == 1 else [log_density_relaxed(q_l, z_l) for q_l, _, z_l in at]

    def balanced(q: Any, p: Any, z: Any, log_q: Array) -> Array:
        for_p = auto_kl(hold("the posterior", q), p, *jax.lax.stop_gradient((z, log_q)))
        for_q = auto_kl(q, hold("the prior", p), z, log_q)
        return alpha * for_p + (1.0 - alpha) * for_q

    return sum_of([balanced(*level, log_q) for level, log_q in zip(at, log_qs, strict=True)])


def levels(q: Distribution, p: Distribution, z: Tree) -> list[tuple[Any, Any, Any]]:
    """The levels (q_l, p_l, z_l) of two hierarchies over one z, each given the sample above."""
    q, p = value_of(q), value_of(p)
    if isinstance(q, Held):
        return [(Held(q_l), p_l, z_l) for q_l, p_l, z_l in levels(q.q, p, z)]
    if isinstance(q, Joint) and isinstance(p, Joint):
        a, b = z
        return levels(q.first, p.first, a) + levels(q.then(a), p.then(a), b)
    of_q, of_p = (getattr(d, "levels_at", None) for d in (q, p))
    if of_q and of_p:
        return [(q_l, p_l, z_l) for (q_l, z_l), (p_l, _) in zip(of_q(z), of_p(z), strict=True)]
    return [(q, p, z)]


def kl_of_levels(q: Distribution, p: Distribution, z: Tree, log_q: Array) -> Array:
    """The KL of each level given the sample above it, [levels] nats: closed, or at the sample.

    What is no hierarchy is one level, whose log q is known, so that a flow is not inverted.
    """
    pairs = levels(q, p, z)
    if len(pairs) == 1:
        return auto_kl(q, p, z, log_q)[None]
    return jnp.stack([kl_at(*pair) for pair in pairs])


def kl_at(q: Distribution, p: Distribution, z: Tree) -> Array:
    """KL(q || p) in closed form where one is known, else log q(z) - log p(z) at z ~ q."""
    kl = closed_form(q, p)
    return log_density_relaxed(q, z) - log_prior_of(p, z) if kl is None else kl


def sum_of(kls: list[Array]) -> Array:
    return jnp.sum(jnp.stack(kls)) if len(kls) > 1 else kls[0]


@checked
def keyed_kl(
    objective: Callable[Concatenate[M, Array, Any, P], R], kl: KL
) -> Callable[Concatenate[M, Array, Any, P], R]:
    """The objective under a rate that draws: `kl(q, p, z, log_q, key=...)`, a key for each example.

    Args:
      objective: `(model, key, x, **hyper)`, of those that take `kl=`: `elbo`, `regularized`.
      kl: its mean is the rate, as that of `models.diffusion_kl`.

    >>> import jax
    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> noisy = lambda q, p, z, log_q, *, key: jax.random.normal(key)
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> keyed_kl(elbo, noisy)(model, jax.random.key(0), jnp.ones(3))[1].rate.shape
    ()
    """

    @lifts(objective)
    def keyed(model: M, key: Array, x: Any, *args: P.args, **hyper: P.kwargs) -> R:
        key, own = jax.random.split(key)
        takes_kl: Any = objective
        return takes_kl(model, key, x, *args, kl=partial(kl, key=own), **hyper)

    return keyed
