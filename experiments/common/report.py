"""What the main job measures of a trained model, the table it prints, and the page it writes."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments.common.data import Dataset
from experiments.common.evaluate import inputs, log_marginals, of_each
from jaxvae.evaluation import Summary, active_units
from jaxvae.evaluation.summaries import with_rates
from jaxvae.training.checkpoints.durable import part_of, publish


def report(
    folder: Path,
    data: Dataset,
    model: Any,
    key: jax.Array,
    transform: Any,
    config: dict[str, Any],
    *,
    bound: Any = jaxvae.elbo,
    skipped: int | None = None,
    lines: list[dict[str, float]],
    full: float = 1.0,
) -> None:
    """Measure the model on the test set, print the table, then draw: no picture loses a number.

    Args:
      folder: of the run.
      data: the data set.
      model: what was trained.
      key: of all draws.
      transform: (key, image) -> x.
      config: of the run; `eval_images` and `eval_samples` are read.
      bound: whose value is the ELBO.
      skipped: updates that were not made; None where none could be skipped.
      lines: of metrics.jsonl, an epoch each.
      full: what a full pixel of x is.
    """
    *keys, input_key, picture_key = jax.random.split(key, 5)
    xs = inputs(input_key, data.test.images, transform)
    num_rows, num_samples = config["eval_images"], config["eval_samples"]
    found, result = measure(
        model, keys, data.test.images, xs, transform, num_rows, num_samples, bound
    )
    if skipped is not None:
        result["skipped_updates"] = skipped
        found = found._replace(skipped=skipped)
    write_json(folder / "result.json", result)
    print_table(data.name, result)
    draw(folder, data, model, picture_key, xs, config, found, lines, full)
    Console().print(f"numbers and pictures: {folder}/, explained in report.html", soft_wrap=True)


def measure(
    model: Any,
    keys: list[jax.Array],
    images: np.ndarray,
    xs: Any,
    transform: Any,
    num_rows: int,
    num_samples: int,
    bound: Any = jaxvae.elbo,
) -> tuple[Summary, dict[str, Any]]:
    """The ELBO and its parts on all images, and log p(x) on some drawn at random, with its error.

    The standard error is of importance sampling: of the same images, drawn for again. A mean of n
    independent estimates of standard errors s_i has sqrt(sum_i s_i^2) / n.
    """
    elbo_key, subset_key, marginal_key = keys
    rows = np.asarray(jax.random.permutation(subset_key, len(images)))[:num_rows]
    use_key = jax.random.clone(elbo_key)  # for draws of a posterior whose mean nobody knows
    units = jax.tree.leaves(jax.jit(active_units)(model, xs, key=use_key))
    active = np.concatenate([np.ravel(unit) for unit in units])
    of_all = of_each(model, elbo_key, images, transform, bound)
    marginal = jax.device_get(
        log_marginals(model, marginal_key, images[rows], transform, num_samples)
    )
    found = Summary(
        rows=len(images),
        elbo=float(np.mean(of_all.elbo)),
        rate=float(np.mean(of_all.rate)),
        distortion=float(np.mean(of_all.distortion)),
        spread=float(np.std(of_all.elbo, ddof=1)) if len(images) > 1 else math.nan,
        log_marginal=float(np.mean(marginal.value)),
        standard_error=float(np.sqrt(np.sum(marginal.standard_error**2)) / len(rows)),
        estimated=len(rows),
        num_samples=num_samples,
        ess=float(np.median(marginal.ess)),
        reliable=float(np.mean(marginal.reliable)),
        gap=float(np.mean(marginal.value - of_all.elbo[rows])),
        latents=active.size,
        active=int(np.sum(active)) if len(images) > 1 else None,
    )
    found = with_rates(found, model, jax.random.fold_in(subset_key, 1), xs)
    return found, {
        "test_images": found.rows,
        "elbo": found.elbo,
        "rate": found.rate,
        "distortion": found.distortion,
        "log_marginal": found.log_marginal,
        "log_marginal_standard_error": found.standard_error,
        "log_marginal_images": found.estimated,
        "log_marginal_samples": found.num_samples,
        "ess_median": found.ess,
        "ess_least": float(np.min(marginal.ess)),
        "log_marginal_reliable": found.reliable,
        "gap": found.gap,
        "active_units": found.active,
        "latent": found.latents,
        "rate_per_latent": None if found.rates is None else found.rates.tolist(),
    }


def draw(
    folder: Path,
    data: Dataset,
    model: Any,
    key: jax.Array,
    xs: Any,
    config: dict[str, Any],
    found: Summary,
    lines: list[dict[str, float]],
    full: float,
) -> None:
    """The pictures, five of them a PNG, and report.html, which has them all."""
    from experiments.common.plotting import save  # matplotlib takes a second, the table none of it
    from jaxvae import plots

    order_key, key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(order_key, len(xs)))  # files are often sorted
    labels = None if data.test.labels is None else np.asarray(data.test.labels)[order]
    drawn = plots.pictures(
        model, key, xs[order], labels=labels, rates=found.rates, rates_of_levels=found.level_rates,
        full=full,
    )  # fmt: skip
    names = {name for line in lines for name in line}
    metrics = {name: [line.get(name, np.nan) for line in lines] for name in names}
    for name in drawn.keys() - {"latent_rates", "level_rates"}:  # which stand beside the traversals
        save(drawn[name], folder / f"{name}.png")
    curves = plots.learning_curves(metrics, xlabel="epoch")
    save(curves, folder / "learning_curves.png")
    plots.write_report(
        folder / "report.html",
        found,
        title=f"{folder.name}: a VAE on {data.name}",
        drawn=drawn,
        config=config,
        metrics=metrics,
        xlabel="epoch",
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole, or not at all."""
    part = part_of(path)
    part.write_text(json.dumps(content, indent=2) + "\n")
    publish(part, path)


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
