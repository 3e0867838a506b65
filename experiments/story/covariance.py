"""Step 6. A diagonal q loses what the posterior's correlations are worth; a full one loses nothing.

Turning the latents, W -> W U with U orthogonal, leaves p(x) = N(mu, W W' + s2 I) as it is and gives
the posterior, of precision P = (U'W'W U + s2 I) / s2, correlations. The best diagonal q has the
posterior's mean and variances 1 / P_ii, and its gap is

    1/2 [sum_i log P_ii - log|P|] >= 0,    0 if P is diagonal

Both encoders here are linear in x and learned by gradient ascent, the decoder fixed. The ELBO is
taken in closed form, an objective of one line, so that no sampling noise hides where they end.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.linalg import hadamard

from experiments.common.plotting import BLACK, BLUE, RED, figure, gaussian_contour, styled
from experiments.story.common import Array, Digits, Step
from experiments.story.lower_bound import exact_elbo
from jaxvae import VAE, Constant, Normal, fit, init_state, kl_divergence, train_step
from jaxvae.models import ppca
from jaxvae.nn import MLP, Conditional, MultivariateNormalHead, NormalHead

HEADS = {"diagonal": NormalHead(), "full": MultivariateNormalHead()}


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    with jax.enable_x64(True):
        exact = exact_numbers(digits)
    numbers, curves, fits = learned(digits, key, fast=fast)
    numbers = exact | numbers
    return Step(numbers, draw(numbers, curves, fits))


def rotated(digits: Digits) -> ppca.PPCA:
    """The best linear model with 8 latents, turned by Hadamard's matrix over sqrt 8."""
    linear = ppca.maximum_likelihood(jnp.asarray(digits.all), 8)
    rotation = jnp.asarray(hadamard(8) / 8**0.5)  # orthogonal
    return linear._replace(weight=linear.weight @ rotation)


def exact_numbers(digits: Digits) -> dict[str, Any]:
    linear = rotated(digits)
    xs = jnp.asarray(digits.all)
    precision = (linear.weight.T @ linear.weight + linear.variance * jnp.eye(8)) / linear.variance
    log_det = jnp.linalg.slogdet(precision)[1]
    loss = 0.5 * (jnp.sum(jnp.log(jnp.diagonal(precision))) - log_det)
    # the best diagonal q has this gap at every x
    posterior = ppca.posterior(linear, xs[0])
    best = Normal(posterior.loc, jnp.diagonal(precision) ** -0.5)
    log_p = jnp.mean(jax.vmap(ppca.log_marginal, (None, 0))(linear, xs))
    return {
        "log_p_exact": float(log_p),
        "diagonal_loss_formula": float(loss),
        "diagonal_loss_of_best_q": float(kl_divergence(best, posterior)),
    }


def learned(digits: Digits, key: Array, *, fast: bool) -> tuple[dict[str, Any], Any, Any]:
    """Gap to log p(x) along the training of both encoders; it is a KL, so no sampling is needed."""
    epochs = 70 if fast else 300
    xs = jnp.asarray(digits.all, float)
    linear = rotated(digits)
    exact: Any = ppca.as_vae(linear)

    def objective(model: Any, key: Array, x: Array) -> tuple[Array, None]:
        return exact_elbo(linear, model.encode(x), x), None

    @jax.jit
    def gap(model: Any, xs: Array) -> Array:
        one = jax.vmap(lambda x: kl_divergence(model.encode(x), ppca.posterior(linear, x)))
        return jnp.mean(one(xs))

    numbers, curves, fits = {}, {}, {}
    for name, head in HEADS.items():
        rngs = nnx.Rngs(jax.random.fold_in(key, 0))
        encode = Conditional(partial(MLP, hidden=()), head, (64,), (8,), rngs=rngs)
        model = VAE(encode, Constant(exact.decode), exact.prior)
        num_steps = epochs * (len(xs) // 100)
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, num_steps))
        gaps: list[float] = [float(gap(model, xs[:100]))]
        state, _ = fit(
            train_step(objective, optimizer),
            init_state(model, optimizer),
            jax.random.fold_in(key, 1),
            xs,
            epochs=epochs,
            batch_size=100,
            progress=False,  # the story's own bar is there
            callbacks=[lambda state, *_, gaps=gaps: gaps.append(float(gap(state.model, xs[:100])))],
        )
        numbers[f"gap_{name}_learned"] = float(gap(state.model, xs))
        curves[name] = gaps
        fits[name] = state.model.encode(xs[0])
    fits["posterior"] = ppca.posterior(linear, xs[0])
    return numbers, curves, fits


@styled
def draw(numbers: dict[str, Any], curves: dict[str, list[float]], fits: dict[str, Any]) -> Any:
    picture = figure(7.6, 3.5)
    left, right = picture.subplots(1, 2)
    style = {
        "posterior": ("true posterior", BLACK, "-", 3.2),
        "diagonal": ("diagonal q", RED, "-", 1.6),
        "full": ("full-covariance q", BLUE, "--", 1.6),
    }

    # the two latents that the posterior ties most
    covariances = {
        name: np.diag(q.scale**2) if name == "diagonal" else q.scale_tril @ q.scale_tril.T
        for name, q in fits.items()
    }
    tied = np.asarray(covariances["posterior"])
    correlation = tied / np.sqrt(np.outer(np.diag(tied), np.diag(tied))) - np.eye(8)
    pair = np.array(np.unravel_index(np.argmax(np.abs(correlation)), (8, 8)))
    for name, (label, colour, line, width) in style.items():
        tril = np.linalg.cholesky(np.asarray(covariances[name])[np.ix_(pair, pair)])
        for radius in (1.0, 2.0):
            ellipse = gaussian_contour(np.asarray(fits[name].loc)[pair], tril, radius)
            shown = label if radius == 1.0 else None
            left.plot(*ellipse, line, color=colour, lw=width, label=shown)
    left.set(
        title="A diagonal q cannot tilt",
        xlabel=f"$z_{{{pair[0] + 1}}}$",
        ylabel=f"$z_{{{pair[1] + 1}}}$",
    )
    left.set_aspect("equal", adjustable="datalim")

    for name in ("diagonal", "full"):
        label, colour, line, width = style[name]
        right.plot(curves[name], line, color=colour, lw=width)
    loss = numbers["diagonal_loss_formula"]
    right.axhline(loss, color=BLACK, ls=":", lw=1.2)
    formula = f"½[Σ log Pᵢᵢ - log|P|] = {loss:.6f}"
    right.text(0.98, 0.72, formula, ha="right", transform=right.transAxes)
    right.set(
        title=f"A diagonal q stays {numbers['gap_diagonal_learned']:.4f} nats short",
        ylim=(1e-5, None),
        yscale="log",
        xlabel="epoch",
        ylabel="log p(x) - ELBO, nats",
    )
    picture.legend(loc="outside lower center", ncols=3)
    return picture
