"""Gradient estimators for discrete latents with a control variate: REBAR and RELAX, unbiased."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Keys, Scalar, Tree, checked
from jaxvae.distributions.special import finite
from jaxvae.gradients.relaxed import log_choices, perturbed
from jaxvae.gradients.reparameterized import Reduction, Term, hold, over_samples
from jaxvae.protocols import Distribution, log_density, log_density_relaxed

Control = Callable[[Callable[[Array], Array], Array], Array]
"""(f, y) -> c(y), of the bound f at a point of the simplex [..., K] and of y = log p + Gumbel."""


@checked
def relax(
    reduction: Reduction, term: Term, q: Distribution, keys: Keys, *, control: Control
) -> tuple[Array, Any]:
    """RELAX: the score function with a control variate that has a path, and learns. Unbiased.

        g = [R(z) - c(y~)] grad log q(z) + grad c(y) - grad c(y~) + grad R at fixed z,

    y = log p + Gumbel noise, z the choices that are largest in y, y~ drawn anew given z. Whatever c
    is, the mean is exact; the nearer c(y) is to the bound, the quieter. The parameters of c learn
    as those of the model do: the bound is given the gradient of -|g|^2 / 2 in them, g that in the
    parameters of q. Of several samples each has a control of its own, at the others as they are.
    Grathwohl, Choi, Wu, Roeder & Duvenaud 2018.

    Args:
      q: the posterior, with `choices()`: `OneHotCategorical`, `Bernoulli`.
      control: (f, y) -> c(y), a number: f takes a point of the simplex in each place, shape
        [..., K], to the bound there, and y, of that shape, is what the choices are the largest of.

    A network r of y beside the relaxed bound, which trains as a field of the model:

        def objective(model, key, x):
            def control(f, y):
                return f(jax.nn.softmax(y / 0.5)) + model.r(y)
            return elbo(model, key, x, gradient=partial(relax, control=control))
    """
    held = hold("the posterior", q)
    log_p, event = log_choices("relax", held)
    gumbel = partial(jax.random.gumbel, shape=(2, *log_p.shape), dtype=log_p.dtype)
    noise = jax.vmap(gumbel)(keys)  # of y and of y~
    largest = jnp.argmax(log_p[None] + noise[:, 0], axis=-1)
    choices = jax.nn.one_hot(largest, log_p.shape[-1], dtype=log_p.dtype)
    z = over_samples(event)(choices)
    l, aux = over_samples(lambda z: term(held, z, log_density(held, z)))(z)
    of_relaxed = _alone(lambda q, z: term(q, z, log_density_relaxed(q, z))[0], held, event(log_p))
    still = jax.lax.stop_gradient
    others = still(l)

    def surrogate(q: Any) -> Array:
        """What has the gradient g in q, with the parameters of the model held still."""
        of_q, _ = log_choices("relax", q)

        def one(k: Array, noise: Array, choice: Array, z: Tree) -> Array:
            def f(simplex: Array) -> Array:
                return reduction(others.at[k].set(of_relaxed(held, event(simplex))))

            def c_given(log_p: Array) -> Array:
                return control(f, perturbed(noise[1], log_p, choice))

            error = reduction(others) - c_given(log_p)  # q held still, but not what c learns
            score = error * log_density(q, z)
            return score + control(f, of_q + noise[0]) - c_given(of_q)

        scores = over_samples(one)(jnp.arange(len(keys)), noise, choices, z)
        return jnp.sum(scores) + reduction(over_samples(partial(of_relaxed, q))(z))

    g = jax.grad(surrogate)(held)
    slopes, leaves = jax.tree.leaves(g), jax.tree.leaves(q)
    path = sum(jnp.vdot(still(a), finite(b)) for a, b in zip(slopes, leaves, strict=True))
    path -= 0.5 * sum(jnp.vdot(a, a) for a in slopes)
    return reduction(l) + (path - still(path)), aux


@checked
def rebar(
    reduction: Reduction,
    term: Term,
    q: Distribution,
    keys: Keys,
    *,
    scale: Scalar,
    temperature: Scalar,
) -> tuple[Array, Any]:
    """REBAR: `relax` with the control c(y) = scale * bound at softmax(y / temperature). Unbiased.

    Both are traced; as parameters of the model they learn to make the gradient quiet. At scale 0 it
    is the score function.
    Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017.

    Args:
      q: the posterior, with `choices()`: `OneHotCategorical`, `Bernoulli`.
      scale: eta, 1 to begin with.
      temperature: lambda > 0.
    """

    def control(f: Callable[[Array], Array], y: Array) -> Array:
        return scale * f(jax.nn.softmax(y / temperature))

    return relax(reduction, term, q, keys, control=control)


def _alone(f: Callable[..., Array], *example: Any) -> Callable[..., Array]:
    """f of its arguments alone: what it closes over, as the decoder's parameters, is held still."""
    closed, over = jax.closure_convert(f, *example)
    return lambda *args: closed(*args, *jax.lax.stop_gradient(over))
