"""Step 3. EM climbs to the optimum where the posterior is known, and only there.

    E-step    E[z|x], E[zz'|x] under p(z|x) at the present parameters
    M-step    the parameters that maximise E[log p(x, z)] given these moments

In probabilistic PCA p(z|x) is Gaussian, and both steps are exact. Behind a neural decoder

    p(z|x) = p(x|z) p(z) / p(x),    p(x) = integral of p(x|z) p(z) dz

is no known density. With two latents a grid of m x m points does the integral; with k it takes m^k.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from experiments.common.plotting import BLUE, RED, figure, gaussian_contour, styled
from experiments.story.autoencoder import trained
from experiments.story.common import Array, Digits, Step, with_posterior
from jaxvae import MultivariateNormal, elbo, log_marginal
from jaxvae.models import ppca


def step(digits: Digits, key: Array, *, fast: bool = False) -> Step:
    em_key, net_key = jax.random.split(key)
    with jax.enable_x64(True):
        numbers, gaps = expectation_maximisation(digits, em_key, steps=20 if fast else 250)
    nonlinear, views = by_quadrature(digits, net_key, fast=fast)
    numbers |= nonlinear
    return Step(numbers, draw(numbers, gaps, views))


def expectation_maximisation(
    digits: Digits, key: Array, *, steps: int
) -> tuple[dict[str, Any], np.ndarray]:
    """The mean log-likelihood of all digits along EM from a random start, and its optimum."""
    xs = jnp.asarray(digits.all)
    d, k = xs.shape[1], 8

    def log_likelihood(params: ppca.PPCA) -> Array:
        return jnp.mean(jax.vmap(ppca.log_marginal, (None, 0))(params, xs))

    def em(params: ppca.PPCA, _: None) -> tuple[ppca.PPCA, Array]:
        return ppca.em_step(params, xs), log_likelihood(params)

    start = ppca.PPCA(jax.random.normal(key, (d, k)), jnp.mean(xs, axis=0), jnp.array(1.0))
    _, climb = jax.jit(lambda p: jax.lax.scan(em, p, length=steps + 1))(start)
    optimum = log_likelihood(ppca.maximum_likelihood(xs, k))
    gaps = np.asarray(optimum - climb)
    numbers = {
        "em_optimum_closed_form": float(optimum),
        "em_steps": steps,
        "em_at_start": float(climb[0]),
        "em_at_end": float(climb[-1]),
        "em_smallest_step_up": float(jnp.min(jnp.diff(climb))),
        "em_steps_to_0.01_nats": int(np.sum(gaps > 0.01)),
    }
    return numbers, gaps


def by_quadrature(
    digits: Digits, key: Array, *, fast: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """p(x) and p(z|x) of a VAE with two latents, summed over a grid."""
    net_key, draw_key, sampling_key = jax.random.split(key, 3)
    model = trained(elbo, 2, net_key, digits.train, epochs=20 if fast else 300)
    test = jnp.asarray(digits.test[: 8 if fast else 100])

    # p(x) with ever finer grids
    resolutions = (20, 80, 160) if fast else (10, 20, 40, 80, 160, 320)

    @jax.jit
    def log_evidence(grid: Grid) -> Array:
        return jax.lax.map(lambda x: on_grid(model, grid, x)[0], test)

    evidence = {m: np.asarray(log_evidence(grid_over(m))) for m in resolutions}
    finest = evidence[resolutions[-1]]
    errors = [float(np.mean(np.abs(evidence[m] - finest))) for m in resolutions[:-1]]

    # how far each p(z|x) is from any Gaussian
    @jax.jit
    def every_nearest(grid: Grid) -> tuple[MultivariateNormal, Array]:
        return jax.lax.map(lambda x: nearest_gaussian(model, grid, x), test)

    gaussians, divergence = every_nearest(grid_over(resolutions[-1]))

    # the ELBO with the encoder's q, and with the nearest Gaussian in its place
    keys = jax.random.split(draw_key, 20 if fast else 500)

    @jax.jit
    def mean_elbos(keys: Array, posteriors: Any) -> Array:
        def one(x: Array, q: Any) -> Array:
            return jnp.mean(jax.vmap(lambda k: elbo(with_posterior(model, q), k, x)[0])(keys))

        return jax.vmap(one)(test, posteriors)

    elbos = mean_elbos(keys, jax.vmap(model.encode)(test))
    elbos_nearest = mean_elbos(jax.random.clone(keys), gaussians)  # the same eps on purpose

    # the same log p(x) by importance sampling from the encoder's q
    num_samples = 50 if fast else 2000
    sampled = jax.jit(jax.vmap(partial(log_marginal, model, num_samples=num_samples)))(
        jax.random.split(sampling_key, len(test)), test
    )
    short = finest - np.asarray(sampled.value)

    numbers = {
        "grid_points_per_axis": list(resolutions[:-1]),
        "grid_error_against_finest": errors,
        "nonlinear_log_p_by_grid": float(finest.mean()),
        "nonlinear_elbo": float(elbos.mean()),
        "nonlinear_gap_median": float(np.median(finest - elbos)),
        "nonlinear_gap_median_nearest_gaussian": float(np.median(finest - elbos_nearest)),
        "importance_sampling_short_median": float(np.median(short)),
        "importance_sampling_share_short_by_1_nat": float(np.mean(short > 1.0)),
        "kl_to_nearest_gaussian_median": float(jnp.median(divergence)),
        "kl_to_nearest_gaussian_largest": float(jnp.max(divergence)),
        "kl_to_nearest_gaussian_share_above_0.1": float(jnp.mean(divergence > 0.1)),
    }

    # three posteriors, each on a grid of its own window
    order = np.argsort(np.asarray(divergence))
    places = (("Median", len(order) // 2), ("Upper tenth", len(order) * 9 // 10), ("Largest", -1))
    views = []
    for name, place in places:
        x = test[order[place]]
        gaussian = jax.tree.map(lambda leaf, i=order[place]: leaf[i], gaussians)
        spread = 3.2 * float(jnp.linalg.norm(gaussian.scale_tril, axis=1).max())
        window = grid_over(60, gaussian.loc, spread)
        _, log_p = jax.jit(on_grid)(model, window, x)
        views.append(
            {
                "title": f"{name}: {float(divergence[order[place]]):.2f} nats",
                "density": np.exp(log_p).reshape(60, 60),
                "window": np.asarray(window.z).reshape(60, 60, 2),
                "nearest": gaussian,
                "q": model.encode(x),
            }
        )
    return numbers, views


class Grid(NamedTuple):
    """Points z of a square, shape [m^2, 2], and the log of the area that each stands for."""

    z: Array
    log_cell: Array


def grid_over(m: int, centre: Any = (0.0, 0.0), half_width: float = 5.0) -> Grid:
    """m x m points; by default over [-5, 5]^2, of which N(0, I) leaves out 1e-6."""
    axis = jnp.linspace(-half_width, half_width, m)
    z = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return Grid(z + jnp.asarray(centre)[None], 2.0 * jnp.log(2.0 * half_width / (m - 1)))


def on_grid(model: Any, grid: Grid, x: Array) -> tuple[Array, Array]:
    """log p(x) = log sum_i p(x|z_i) p(z_i) cell, and log p(z_i|x) at every point."""
    decoded = jax.vmap(model.decode)(grid.z)  # m^2 distributions are one with batched leaves
    log_likelihood = jax.vmap(lambda p: p.log_prob(x))(decoded)
    log_joint = log_likelihood + jax.vmap(model.prior.log_prob)(grid.z)
    log_p_x = logsumexp(log_joint) + grid.log_cell
    return log_p_x, log_joint - log_p_x


def nearest_gaussian(model: Any, grid: Grid, x: Array) -> tuple[MultivariateNormal, Array]:
    """The Gaussian that KL(p(z|x) || .) puts nearest, and that KL, summed over a grid.

    It has the posterior's own mean m and covariance S, and the KL is 1/2 log|2 pi e S| - H(p(z|x)).
    """
    _, log_p = on_grid(model, grid, x)
    p = jnp.exp(log_p + grid.log_cell)
    mean = p @ grid.z
    centred = grid.z - mean[None]
    covariance = centred.T @ (centred * p[:, None])
    log_det = jnp.linalg.slogdet(2.0 * jnp.pi * jnp.e * covariance)[1]
    divergence = 0.5 * log_det + jnp.sum(p * log_p)
    return MultivariateNormal(mean, jnp.linalg.cholesky(covariance)), divergence


@styled
def draw(numbers: dict[str, Any], gaps: np.ndarray, views: list[dict[str, Any]]) -> Any:
    picture = figure(7.6, 5.6)
    top, bottom = picture.subfigures(2, 1, height_ratios=[1.0, 1.05])
    left, right = top.subplots(1, 2)

    left.plot(gaps, color=BLUE)
    left.set(
        title=f"Linear: EM reaches {numbers['em_optimum_closed_form']:.4f} nats",
        yscale="log",
        xlabel="EM step",
        ylabel="optimum - log-likelihood, nats",
    )
    for latents, line in ((2, "o-"), (4, "s--"), (8, "^-."), (16, "v:")):
        m = np.array([10, 20, 40, 80, 160])
        right.plot(m, m.astype(float) ** latents, line, color=RED, label=f"k = {latents}")
    right.set(
        title="Nonlinear: a grid takes $m^k$ decodings",
        xscale="log",
        yscale="log",
        xlabel="grid points per axis m",
        ylabel="decodings",
        xticks=m,
        xticklabels=m,
    )
    right.minorticks_off()
    right.legend(loc="upper left", ncols=2)

    bottom.suptitle(
        "Nonlinear: p(z|x) (grey, root of the density), its nearest Gaussian, the KL between them",
        fontsize=9.5,
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    for view, ax in zip(views, bottom.subplots(1, len(views)), strict=True):
        z1, z2 = view["window"][..., 0], view["window"][..., 1]
        ax.pcolormesh(
            z1, z2, np.sqrt(view["density"]), cmap="Greys", shading="nearest", rasterized=True
        )
        for q, colour, line, name in (
            (view["nearest"], RED, "-", "nearest Gaussian"),
            (view["q"], BLUE, "--", "encoder's q(z|x)"),
        ):
            tril = q.scale_tril if isinstance(q, MultivariateNormal) else np.diag(q.scale)
            for radius in (1.0, 2.0):
                ellipse = gaussian_contour(q.loc, tril, radius)
                ax.plot(*ellipse, line, color=colour, lw=1.2, label=name if radius == 1 else None)
        ax.set(
            title=view["title"],
            xlabel="$z_1$",
            ylabel="$z_2$",
            xlim=(z1.min(), z1.max()),
            ylim=(z2.min(), z2.max()),
        )
        ax.set_aspect("equal")
        ax.grid(visible=False)
        if view is views[0]:
            ax.legend(loc="upper left", fontsize=7.5, borderpad=0.0)
    return picture
