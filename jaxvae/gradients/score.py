"""Gradient estimators that need no derivative of a sample: the score function and its baselines."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Keys, Scalar, Tree, checked
from jaxvae.gradients.reparameterized import Reduction, Term, hold, over_samples
from jaxvae.protocols import Distribution, log_density

Baseline = Callable[[Reduction, Array], Array]


@checked
def no_baseline(reduction: Reduction, l: Array) -> Array:
    """b_k = 0: the score function as it is, unbiased and of enormous variance.

    >>> no_baseline(jnp.mean, jnp.array([1.0, 5.0])).tolist()
    [0.0, 0.0]
    """
    del reduction
    return jnp.zeros_like(l)


@checked
def leave_one_out(reduction: Reduction, l: Array) -> Array:
    """b_k = R(l with l_k replaced by the mean of the others): what the bound would be without z_k.

    For the ELBO (R the mean) this leaves (l_k - mean of the others) / K as the signal of sample k;
    for the importance-weighted bound it is VIMCO, with the geometric mean of the other weights.
    Mnih & Rezende 2016.

    Raises:
      ValueError: K = 1, where no other sample is left.

    >>> leave_one_out(jnp.mean, jnp.array([1.0, 5.0])).tolist()
    [5.0, 1.0]
    """
    k = l.size
    if k < 2:
        raise ValueError(
            f"leave_one_out: num_samples is {k}, expected at least 2; use no_baseline, learn "
            "one, or average several ELBOs: miwae(..., num_outer=M, num_samples=1)"
        )
    each, rows = jnp.arange(k), jnp.broadcast_to(l, (k, k))
    # each row without its own, not by subtraction: of two weights of 0 that is NaN
    others = jnp.sum(jnp.where(jnp.eye(k, dtype=bool), 0.0, rows), axis=1) / (k - 1)
    b = jax.vmap(lambda i, other: reduction(l.at[i].set(other)))(each, others)
    b = jnp.where(jnp.isfinite(b), b, 0.0)  # without any other weight, no baseline
    return jax.lax.stop_gradient(b)  # of R's own parameters too: nothing here is learned


def learned_baseline(value: Any) -> Baseline:
    """b_k = value, a guess of the bound that learns: what a network makes of x, and never of z.

    `score_function` fits it by least squares, adding the gradient of -1/2 sum_k (R - b_k)^2. Keep
    the network beside the three parts of the model, so that it trains with them:

        def objective(model, key, x):
            baseline = learned_baseline(model.baseline(x))
            return elbo(model, key, x, gradient=partial(score_function, baseline=baseline))

    Mnih & Gregor 2014.

    >>> learned_baseline(jnp.array(3.0))(jnp.mean, jnp.array([1.0, 5.0])).tolist()
    [3.0, 3.0]
    """
    return lambda reduction, l: jnp.broadcast_to(value, l.shape)


@checked
def score_function(
    reduction: Reduction,
    term: Term,
    q: Distribution,
    keys: Keys,
    *,
    baseline: Baseline = no_baseline,
) -> tuple[Array, Any]:
    """REINFORCE: grad E[R] = E[ sum_k (R - b_k) grad log q(z_k) + grad R at fixed z ].

    Works for every posterior, discrete ones included: nothing is differentiated through a sample.
    A baseline that does not look at z_k changes the variance and not the mean.
    Williams 1992; Mnih & Gregor 2014.

    Args:
      baseline: (reduction, terms [K]) -> b [K]: `no_baseline`, `leave_one_out` or
        `learned_baseline(value)`.

    >>> from jaxvae import Bernoulli
    >>> term, keys = lambda q, z, log_q: (z[0], None), jax.random.split(jax.random.key(0), 10_000)
    >>> mean = lambda l, key: score_function(jnp.mean, term, Bernoulli(l), key[None])[0]
    >>> slopes = jax.vmap(jax.grad(mean), (None, 0))(jnp.zeros(1), keys)
    >>> round(float(jnp.mean(slopes)), 2)  # p (1 - p), in mean
    0.25
    """
    z = jax.lax.stop_gradient(over_samples(q.sample)(keys))

    def at(z: Tree) -> tuple[Array, Any, Array]:
        log_q = log_density(q, z)
        return *term(q, z, log_q), log_q

    l, aux, log_q = over_samples(at)(z)
    bound = reduction(l)
    b = baseline(reduction, jax.lax.stop_gradient(l))
    error = jax.lax.stop_gradient(bound) - b
    error = jnp.where(jnp.isfinite(error), error, 0.0)  # all weights are 0: nothing to follow
    score = jnp.sum(jax.lax.stop_gradient(error) * log_q) - 0.5 * jnp.sum(jnp.square(error))
    return bound + (score - jax.lax.stop_gradient(score)), aux  # the bound, with a gradient


@checked
def wake(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys, *, weight: Scalar = 1.0
) -> tuple[Array, Any]:
    """The wake phase of the posterior: q learns the samples that weigh most, sum_k w_k log q(z_k).

    w = dR/dl, held still: of `iwae` the normalised weights, so that as K grows it is
    -KL(p(z|x) || q(z|x)) that ascends, where every other estimator here ascends the bound. Nothing
    is differentiated through a sample, and more samples make it better, for any posterior. Decoder
    and prior learn as ever. Not for `elbo`, whose weights say nothing of the samples.
    Bornschein & Bengio 2015; Le, Kosiorek, Siddharth, Teh & Wood 2019.

    Args:
      weight: of this gradient beside another's, as that of the sleep phase; traced.

    >>> from jaxvae import Normal, iwae  # q = N(0, 1) of p = N(1, 1)
    >>> term = lambda q, z, log_q: (Normal(1.0, 1.0).log_prob(z) - log_q, None)
    >>> keys, of = jax.random.split(jax.random.key(0), 10_000), jax.nn.logsumexp
    >>> slope = jax.grad(lambda q: wake(of, term, q, keys)[0])(Normal(0.0, 1.0)).loc
    >>> round(float(slope), 1)  # E_p[grad log q(z)], the mean of p
    1.0
    """
    z = jax.lax.stop_gradient(over_samples(q.sample)(keys))
    held = hold("the posterior", q)
    l, aux = over_samples(lambda z: term(held, z, log_density(held, z)))(z)
    w = jax.lax.stop_gradient(jax.grad(reduction)(jax.lax.stop_gradient(l)))
    score = weight * jnp.sum(w * over_samples(lambda z: log_density(q, z))(z))
    return reduction(l) + (score - jax.lax.stop_gradient(score)), aux


vimco = partial(score_function, baseline=leave_one_out)
"""`score_function` with the `leave_one_out` baseline. Mnih & Rezende 2016."""
