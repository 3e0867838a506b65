"""Gradient estimators through a discrete sample: biased ones, by a mean or by a relaxation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Count, Key, Keys, Scalar, Tree, checked
from jaxvae.distributions import Product
from jaxvae.distributions.special import finite
from jaxvae.gradients.reparameterized import Reduction, Term, over_samples
from jaxvae.protocols import Distribution, has_path, log_density_relaxed, mean_of, method_of
from jaxvae.pytrees import value_of, with_path

INSTEAD = (
    "use a posterior that has one, such as OneHotCategorical or Bernoulli, or "
    "gradient=score_function, which any posterior has"
)


@checked
def straight_through(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys
) -> tuple[Array, Any]:
    """A sample forwards, the mean of q backwards: dz is taken to be d E[z]. Biased.

    The value is that of the bound at the samples. The parts of a `Product` that have a path of
    their own keep it. Bengio, Leonard & Courville 2013.

    Args:
      q: the posterior, with a `mean()` of the sample's shape: `OneHotCategorical`, `Bernoulli`.

    >>> from jaxvae import OneHotCategorical as Choice
    >>> term = lambda q, z, log_q: (z[1], None)
    >>> mean = lambda l: straight_through(jnp.mean, term, Choice(l), jax.random.key(0)[None])[0]
    >>> jax.grad(mean)(jnp.zeros(2)).round(3).tolist()  # exact, as the term is linear
    [-0.25, 0.25]
    """
    mean = mean_of(q)

    def draw(key: Key) -> Any:
        return _through(q, q.sample(key), mean)

    return _at(draw, reduction, term, q, keys)


def _through(q: Distribution, z: Tree, mean: Tree) -> Any:
    """z with the derivative of E[z], but where a part of a `Product` has its own."""
    q = value_of(q)
    if isinstance(q, Product):
        parts = zip(q.split(q.parts), q.split(z), q.split(mean), strict=True)
        return q.join([z if has_path(d) else _through(d, z, mean) for d, z, mean in parts])
    return with_path(z, mean)


@checked
def reinmax(reduction: Reduction, term: Term, q: Distribution, keys: Keys) -> tuple[Array, Any]:
    """ReinMax: a sample forwards, and backwards dz = [d E[z] + (z - E[z]) d log q(z)] / 2.

    Straight through takes a difference of two outcomes from the slope at one of them; this takes it
    from the slopes at both, as Heun's method does: exact in mean where the term is quadratic in
    each choice, and biased elsewhere. It costs what straight through does, with nothing to tune.
    Liu, Dong, Liu, Yu & Gao 2023, algorithm 2, of which this is the sum written out.

    Args:
      q: the posterior, with `choices()`: `OneHotCategorical`, `Bernoulli`.

    >>> from jaxvae import OneHotCategorical
    >>> mean = lambda l: reinmax(jnp.mean, term, OneHotCategorical(l), jax.random.key(0)[None])[0]
    >>> term = lambda q, z, log_q: (z[1], None)  # linear: as straight through, in mean
    >>> jax.grad(mean)(jnp.zeros(2)).round(3).tolist()  # and here at either sample
    [-0.25, 0.25]
    """
    log_p, event = log_choices("reinmax", q)
    p = jnp.exp(log_p)

    def draw(key: Key) -> Any:
        z = _one_hot(key, log_p)
        score = jnp.sum(z * log_p, axis=-1, keepdims=True)  # log q(z) of each choice
        away = jax.lax.stop_gradient(z - p)
        return event(with_path(z, 0.5 * (p + away * score)))

    return _at(draw, reduction, term, q, keys)


@checked
def gumbel_softmax(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys, *, temperature: Scalar
) -> tuple[Array, Any]:
    """Gumbel-softmax (Concrete), a relaxed sample: z = softmax((logits + Gumbel) / temperature).

    Biased, and so is its value: away from temperature 0 the decoder sees no corner of the simplex.
    Report a model's bound with another estimator. The temperature is traced, so it anneals:

        def objective(model, key, x, *, temperature):
            gradient = partial(gumbel_softmax, temperature=temperature)
            return elbo(model, key, x, gradient=gradient)

    Jang, Gu & Poole 2017, equation 2; Maddison, Mnih & Teh 2017.

    Args:
      q: the posterior, with `sample_relaxed(key, temperature)`: `OneHotCategorical`, `Bernoulli`.
      temperature: > 0; samples are discrete as it goes to 0.

    >>> from jaxvae import OneHotCategorical
    >>> q, term = OneHotCategorical(jnp.zeros(2)), lambda q, z, log_q: (jnp.max(z), None)
    >>> at = lambda t: gumbel_softmax(jnp.mean, term, q, jax.random.key(0)[None], temperature=t)[0]
    >>> [round(float(at(t)), 2) for t in (0.01, 100.0)]  # a corner of the simplex, and its middle
    [1.0, 0.5]
    """
    sample_relaxed = method_of(q, "sample_relaxed", "gumbel_softmax", INSTEAD)
    return _at(lambda key: sample_relaxed(key, temperature), reduction, term, q, keys)


@checked
def gumbel_rao(
    reduction: Reduction,
    term: Term,
    q: Distribution,
    keys: Keys,
    *,
    temperature: Scalar,
    num_draws: Count = 10,
) -> tuple[Array, Any]:
    """Gumbel-Rao: a sample forwards, backwards the mean of relaxations that round to that sample.

    dz = 1/M sum_m d softmax((log p + G_m) / temperature),   argmax_j (log p + G_m)_j = z

    The Gumbel noise is drawn given the sample, in closed form, so that M draws cost one term. M = 1
    is straight-through Gumbel-softmax (Jang, Gu & Poole 2017), of the same mean and more variance.
    Biased; the value is that of the bound at the samples.
    Paulus, Maddison & Krause 2021.

    Args:
      q: the posterior, with `choices()`: `OneHotCategorical`, `Bernoulli`.
      temperature: > 0, traced.
      num_draws: M.

    >>> from jaxvae import OneHotCategorical
    >>> q, term = OneHotCategorical(jnp.zeros(2)), lambda q, z, log_q: (jnp.max(z), None)
    >>> at = lambda t: gumbel_rao(jnp.mean, term, q, jax.random.key(0)[None], temperature=t)[0]
    >>> [float(at(t)) for t in (0.01, 100.0)]  # a corner of the simplex at any temperature
    [1.0, 1.0]
    """
    log_p, event = log_choices("gumbel_rao", q)

    def draw(key: Key) -> Any:
        choice_key, noise_key = jax.random.split(key)
        z = _one_hot(choice_key, log_p)

        def relaxed(key: Key) -> Array:
            noise = jax.random.gumbel(key, log_p.shape, log_p.dtype)
            noisy = with_path(perturbed(noise, log_p, z), log_p)  # the noise is held still
            return jax.nn.softmax(noisy / temperature)

        mean = jnp.mean(jax.vmap(relaxed)(jax.random.split(noise_key, num_draws)), axis=0)
        return event(with_path(z, mean))

    return _at(draw, reduction, term, q, keys)


def log_choices(owner: str, q: Distribution) -> tuple[Array, Callable[[Array], Any]]:
    """Log-probabilities [..., K] of the choices of q, and the event of one-hot choices [..., K]."""
    logits, event = method_of(q, "choices", owner, INSTEAD)()
    return finite(jax.nn.log_softmax(logits)), event


def perturbed(noise: Array, log_p: Array, choice: Array) -> Array:
    """log p + Gumbel noise given a one-hot choice, that of the largest sum, made of Gumbel noise.

    With log p normalised the largest is a standard Gumbel, whichever it is, and the others are
    Gumbels that stay below it: exp -y_j = E_j / p_j + E_i, E exponential. Differentiable in log p.
    """
    largest = jnp.sum(choice * noise, axis=-1, keepdims=True)
    below = -jnp.logaddexp(-noise - log_p, jnp.broadcast_to(-largest, log_p.shape))
    return jnp.where(choice > 0.5, noise, below)


def _one_hot(key: Key, log_p: Array) -> Array:
    return jax.nn.one_hot(jax.random.categorical(key, log_p), log_p.shape[-1], dtype=log_p.dtype)


def _at(
    draw: Callable[[Array], Any], reduction: Reduction, term: Term, q: Distribution, keys: Keys
) -> tuple[Array, Any]:
    """The bound at z_k = draw(key_k), differentiated through them."""

    def one(key: Key) -> tuple[Array, Any]:
        z = draw(key)
        return term(q, z, log_density_relaxed(q, z))

    l, aux = over_samples(one)(keys)
    return reduction(l), aux
