"""What the main job measures of a trained model, and the table that it prints."""

import sys
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments.common.evaluate import evaluate, log_marginals


def measure(
    model: Any,
    keys: tuple[jax.Array, jax.Array],
    images: np.ndarray,
    rows: np.ndarray,
    transform: Any,
    num_samples: int,
    bound: Any = jaxvae.elbo,
) -> dict[str, Any]:
    """The ELBO and its parts on all images, and log p(x) on those rows, with its error.

    The standard error is of importance sampling: of the same images, drawn for again. A mean of n
    independent estimates of standard errors s_i has sqrt(sum_i s_i^2) / n.
    """
    elbo_key, marginal_key = keys
    elbo, rate, distortion = evaluate(model, elbo_key, images, transform, bound)
    marginal = jax.device_get(
        log_marginals(model, marginal_key, images[rows], transform, num_samples)
    )
    error = np.sqrt(np.sum(marginal.standard_error**2)) / len(rows)
    return {
        "test_images": len(images),
        "elbo": float(elbo),
        "rate": float(rate),
        "distortion": float(distortion),
        "log_marginal": float(np.mean(marginal.value)),
        "log_marginal_standard_error": float(error),
        "log_marginal_images": len(rows),
        "log_marginal_samples": num_samples,
        "ess_median": float(np.median(marginal.ess)),
        "ess_least": float(np.min(marginal.ess)),
        "log_marginal_reliable": float(np.mean(marginal.reliable)),
    }


def print_table(name: str, result: dict[str, Any]) -> None:
    """The numbers of a result, and a warning of a collapse on stderr."""
    samples, active = result["log_marginal_samples"], result["active_units"]
    title = f"{name}: {result['test_images']} test images, nats an image"
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("ELBO", f"{result['elbo']:.2f}")
    table.add_row("rate, KL(q(z|x) || p(z))", f"{result['rate']:.2f}")
    table.add_row("distortion, -log p(x|z)", f"{result['distortion']:.2f}")
    table.add_row(
        f"log p(x), {samples} importance samples, {result['log_marginal_images']} images",
        f"{result['log_marginal']:.2f} ± {result['log_marginal_standard_error']:.2f}",
    )
    table.add_row(
        f"effective samples of {samples}, median (least)",
        f"{result['ess_median']:.0f} ({result['ess_least']:.0f})",
    )
    table.add_row(
        "images whose estimate can be trusted (k-hat)", f"{result['log_marginal_reliable']:.0%}"
    )
    known = "unknown of one image" if active is None else str(active)
    table.add_row(f"active units of {result['latent']}", known)
    if "skipped_updates" in result:
        table.add_row("updates skipped", str(result["skipped_updates"]))
    Console().print(table)
    if active == 0:
        print(
            "warning: no latent is active: the posterior has collapsed to the prior; "
            "try --warmup, a smaller --beta or a smaller --sigma",
            file=sys.stderr,
        )
