"""The objectives. Each is a function `(model, key, x, *, hyper) -> (bound, aux)` of ONE example.

A bound is to be maximised and is in nats; a loss is its negative. Within one example everything is
summed, over pixels and over latents; over a batch everything is averaged. Always.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import check_key, check_leaves, check_scalar, check_shape
from jaxvae.gradients import Estimator, pathwise
from jaxvae.protocols import Model, likelihood, log_likelihood, mean_of, posterior, prior
from jaxvae.rates import auto_kl
from jaxvae.special import weighted

Rate = Callable[..., Array]
Objective = Callable[..., tuple[Array, Any]]
BATCH = "batch"  # the axis that `batched` maps


class Terms(NamedTuple):
    """The two halves of the ELBO of one example, in nats and unweighted by beta.

    Args:
      distortion: -log p(x|z), the price of describing x given its code.
      rate: KL(q(z|x) || p(z)), the price of the code, exact or at one sample.

    Alemi et al. 2018, "Fixing a broken ELBO".
    """

    distortion: Array
    rate: Array


def elbo(
    model: Model,
    key: Array,
    x: Any,
    *,
    beta: Any = 1.0,
    rate: Rate = auto_kl,
    gradient: Estimator = pathwise,
) -> tuple[Array, Terms]:
    """The evidence lower bound: log p(x) >= E_q[log p(x|z)] - beta KL(q(z|x) || p(z)), one draw z.

    At beta = 1 the gap is KL(q(z|x) || p(z|x)). beta > 1 buys a cheaper code with distortion;
    beta = 0 is reconstruction alone, and with sigma -> 0 the deterministic `autoencoder`.

    Args:
      model: any `Model`.
      key: a PRNG key.
      x: one example.
      beta: weight of the rate, traced: anneal it, or vmap over it.
      rate: `auto_kl`, `analytic_kl`, `sampled_kl` or `sticking_kl`.
      gradient: the gradient estimator; all but `vimco`, which needs several samples: those are
        `miwae(..., num_outer=M, num_samples=1)`.

    Returns:
      The bound, a scalar in nats, and its `Terms`, which beta does not touch.

    Raises:
      TypeError: `encode` or `decode` returned something that is no distribution, or the
        estimator is not defined for the posterior.
      ValueError: a log-probability is no scalar, or an event has not its distribution's shape.
      NotImplementedError: `analytic_kl` of a pair without a closed form, or under
        `sticking_the_landing`, which is made for the sampled one.

    >>> from jaxvae import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, terms = elbo(model, jax.random.key(0), jnp.ones(3))
    >>> bool(jnp.isclose(bound, -(terms.distortion + terms.rate)))
    True

    Kingma & Welling 2014, equation 10; beta: Higgins et al. 2017, equation 4.
    """
    check_key("elbo", key)
    check_scalar("elbo", "beta", beta)

    def term(q: Any, z: Any, log_q: Array) -> tuple[Array, Terms]:
        terms = Terms(distortion=-log_likelihood(model, x, z), rate=rate(q, prior(model), z, log_q))
        return -(terms.distortion + weighted(beta, terms.rate)), terms

    bound, terms = gradient(jnp.mean, term, posterior(model, x), key[None])
    return bound, jax.tree.map(lambda t: t[0], terms)


def autoencoder(model: Model, key: Array, x: Any) -> tuple[Array, Terms]:
    """The deterministic autoencoder: -|x - x'|^2, x' = E[p(x|z)] at the mean z of q(z|x).

    Nothing is drawn and nothing is paid for the code, so the codes may lie anywhere, and decoding a
    draw of the prior need not give anything like the data. It is the limit of `elbo` at beta = 0,
    sigma -> 0 under a Gaussian likelihood of variance 1/2, up to a constant.

    Args:
      model: any `Model` whose distributions have `mean()`.
      key: not used; every objective has it.
      x: one example, an array.

    Returns:
      The negative squared error, summed over x, and `Terms` with that distortion and rate 0.

    >>> from jaxvae import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(1.0)))
    >>> round(float(autoencoder(model, jax.random.key(0), jnp.ones(3))[0]), 5)  # -3 (1/4)^2
    -0.1875

    Hinton & Salakhutdinov 2006; the limit: Kingma & Welling 2014, section 2.3.
    """
    del key
    x_mean = mean_of(likelihood(model, mean_of(posterior(model, x))))
    check_shape("autoencoder", "x", x, jnp.shape(x_mean))
    squared_error = jnp.sum(jnp.square(x - x_mean))
    return -squared_error, Terms(squared_error, jnp.zeros_like(squared_error))


def batched(objective: Objective) -> Objective:
    """Lift an objective of one example to a batch: the mean bound, and every example's aux.

    The key is split inside, one for each example; the mapped axis is named "batch". The model is
    not mapped, so what it computes from its parameters alone (a VampPrior's components) is computed
    once for the whole batch.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`.

    Returns:
      `(model, key, xs, **hyper) -> (mean bound, aux)`, where the leaves of `xs` and of `aux` have
      the batch as their leading axis; hyper-parameters are shared.

    Raises:
      ValueError: the leaves of `xs` do not agree in a leading axis of at least one.

    >>> from jaxvae import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> bound, terms = batched(elbo)(model, jax.random.key(0), jnp.ones((7, 3)), beta=2.0)
    >>> bound.shape, terms.rate.shape
    ((), (7,))
    """

    def batch_objective(model: Any, key: Array, xs: Any, **hyper: Any) -> tuple[Array, Any]:
        check_key("batched", key)
        keys = jax.random.split(key, batch_size(xs))
        one = jax.vmap(lambda k, x: objective(model, k, x, **hyper), axis_name=BATCH)
        bounds, aux = one(keys, xs)
        return jnp.mean(bounds), aux

    return batch_objective


def conditioned(objective: Callable[..., Any]) -> Callable[..., Any]:
    """The objective of a conditional model, a function y -> `Model`, at examples (x, y).

    log p(x|y) >= E_q[log p(x|z, y)] - KL(q(z|x, y) || p(z|y)): each of the three may use y.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`, or an evaluator such as `log_marginal`.

    Returns:
      `(model, key, (x, y), **hyper)`, where `model` is a callable pytree, y -> `Model`.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal
    >>> encode = decode = lambda v: Normal(v, jnp.ones(2))
    >>> model = Partial(lambda y: VAE(encode, decode, Normal(y, jnp.ones(2))))
    >>> xs, ys = jnp.zeros((7, 2)), jnp.ones((7, 2))
    >>> _, terms = batched(conditioned(elbo))(model, jax.random.key(0), (xs, ys))
    >>> terms.rate.shape, float(terms.rate[0])  # 1/2 |y|^2
    ((7,), 1.0)

    Sohn, Lee & Yan 2015, equation 4.
    """

    def conditional_objective(model: Any, key: Array, xy: tuple[Any, Any], **hyper: Any) -> Any:
        x, y = xy
        return objective(model(y), key, x, **hyper)

    return conditional_objective


def batch_mean(value: Any) -> Any:
    """The mean over the batch that `batched` maps of what each example has, an array or a tree.

    Raises:
      ValueError: no batch is mapped here: one example alone, or `jax.vmap` by hand.

    >>> squares = batched(lambda model, key, x: (batch_mean(x) ** 2, None))
    >>> float(squares(None, jax.random.key(0), jnp.array([1.0, 3.0]))[0])
    4.0
    """
    _rows_of_batch()
    return jax.lax.pmean(value, BATCH)


def gather(tree: Any) -> Any:
    """What every example of the batch that `batched` maps has, stacked along a leading axis.

    It is one array for all examples, so that what is computed of it is computed once.

    Raises:
      ValueError: no batch is mapped here, or one of a single row, which compares with nothing.

    >>> to_the_top = batched(lambda model, key, x: (jnp.max(gather(x)) - x, None))
    >>> float(to_the_top(None, jax.random.key(0), jnp.array([1.0, 3.0]))[0])
    1.0
    """
    if _rows_of_batch() < 2:
        raise ValueError(
            "batched: xs has 1 row, expected at least 2, as the objective compares the examples of "
            "a batch"
        )
    return jax.lax.all_gather(tree, BATCH)


def _rows_of_batch() -> int:
    try:
        return jax.lax.axis_size(BATCH)
    except NameError:
        raise ValueError(
            "batched: objective is called without the batch that it takes a statistic of; call "
            "jaxvae.batched(objective)(model, key, xs), as jax.vmap by hand makes no batch"
        ) from None


def batch_size(xs: Any) -> int:
    """The length of the leading axis that all leaves of a batch share.

    Raises:
      ValueError: they do not share one, or it is empty.
      TypeError: a leaf holds no numbers, or rows are a list, which is a tree of as many arrays.
    """
    for part in jax.tree.leaves(xs, is_leaf=lambda part: isinstance(part, list)):
        shapes = {jnp.shape(row) for row in jax.tree.leaves(part)}
        if isinstance(part, list) and len(shapes) == 1:
            raise TypeError(
                f"xs holds a list of {len(part)}, which JAX reads as a tree and not as rows; "
                "expected an array, np.stack(rows), or for a tree of several arrays a tuple"
            )
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1 or not all(sizes) or not all(size[0] for size in sizes):
        raise ValueError(
            f"xs has leading axes {sorted(sizes)}, expected one common batch axis of at least 1"
        )
    check_leaves("batch", "xs", xs)
    return sizes.pop()[0]
