"""Train a VAE, look at it, and measure it. This is the main job.

    python -m experiments.train                             # digits, embedded, under a minute
    python -m experiments.train --dataset fashion_mnist --network conv --latent 32 --epochs 10
    python -m experiments.train --dataset mnist --likelihood bernoulli --binarization dynamic
    python -m experiments.train --dataset my_images.npy     # [N, H, W] or [N, H, W, C]

Writes runs/<name>/: config.json, metrics.jsonl (a line an epoch), result.json and five pictures,
and ends with a table of the test set. All numbers are nats an image: summed over pixels and
latents, averaged over images.

Exit code 2: the input was refused; 1: the loss became non-finite; 130: interrupted.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments import figures
from experiments.config import Config, Refused, check_config, check_data, make_folder
from experiments.data import DataError, Dataset, load, load_file
from experiments.evaluate import (
    evaluate,
    inputs,
    largest_log_scale,
    log_marginals,
    posterior_means,
)
from experiments.progress import NonFinite, Progress, interruptible
from jaxvae import nn


def make_model(c: Config, shape: tuple[int, ...], rngs: nnx.Rngs) -> jaxvae.VAE:
    """q(z|x), p(x|z) and p(z): the three things that make a VAE."""
    networks = {"mlp": (nn.MLP, nn.MLP), "conv": (nn.ConvEncoder, nn.ConvDecoder)}[c.network]
    encoder, decoder = (partial(network, hidden=(c.hidden,)) for network in networks)
    posterior = {"diagonal": nn.NormalHead(), "full": nn.MultivariateNormalHead()}[c.posterior]
    likelihood = {"gaussian": nn.NormalHead(c.sigma), "bernoulli": nn.BernoulliHead()}[c.likelihood]
    conditional = partial(nn.Conditional, dtype=jnp.dtype(c.dtype), rngs=rngs)
    return jaxvae.VAE(
        encode=conditional(encoder, posterior, shape, (c.latent,)),
        decode=conditional(decoder, likelihood, (c.latent,), shape),
        prior=jaxvae.StandardNormal((c.latent,)),
    )


def train(c: Config) -> Path:
    """The whole job; returns the run's folder."""
    check_config(c)
    if c.dataset.endswith(".npy"):
        data = load_file(c.dataset, validation=c.validation)
    else:
        data = load(c.dataset, data_dir=c.data_dir, download=c.download, validation=c.validation)
    check_data(c, data)
    folder = make_folder(c)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(c).items()}
    config |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    write_json(folder / "config.json", config)

    # one key names the run: initial parameters, steps and evaluation draw from its parts
    init_key, run_key, eval_key = jax.random.split(jax.random.key(c.seed), 3)
    to_input = {None: jaxvae.rescale, "dynamic": jaxvae.binarize, "threshold": jaxvae.threshold}
    transform = partial(to_input[c.binarization], max_value=float(data.max_value))
    bound = {
        "elbo": partial(jaxvae.elbo, beta=c.beta),
        "iwae": partial(jaxvae.iwae, num_samples=c.num_samples),
    }[c.bound]
    optimizer = optax.adam(c.learning_rate)
    step = jaxvae.train_step(jaxvae.preprocessed(bound, transform), optimizer)
    state = jaxvae.init_state(make_model(c, data.shape, nnx.Rngs(init_key)), optimizer)
    images, held_out = jnp.asarray(data.train.images), jnp.asarray(data.validation.images)

    def validate(model: Any) -> dict[str, float]:
        if not held_out.size:
            return {}
        same_noise = jax.random.clone(eval_key)  # at every epoch, so that epochs compare
        numbers = evaluate(model, same_noise, held_out, transform)
        return {f"validation_{name}": float(value) for name, value in numbers._asdict().items()}

    steps_per_epoch = len(images) // c.batch

    def describe(state: jaxvae.TrainState, bad_step: int) -> str:
        """Replay the finite steps up to the bad one, and look at q(z|x) on its batch."""
        epoch, first = divmod(int(state.step), steps_per_epoch)
        order = jaxvae.epoch_order(run_key, epoch, len(images), c.batch)[first:]
        rows = order[: bad_step - int(state.step)]
        for batch in rows[:-1]:
            state, _ = jax.jit(step)(state, run_key, images[batch])
        xs = inputs(jax.random.clone(eval_key), images[rows[-1]], transform)
        scale = largest_log_scale(state.model, xs)
        return (
            f"largest log-scale of q(z|x) {scale:g}; try a smaller --learning-rate; "
            f"what was written stays in {folder}"
        )

    progress = Progress(
        folder / "metrics.jsonl",
        epochs=c.epochs,
        steps_per_epoch=steps_per_epoch,
        batch=c.batch,
        state=state,
        validate=validate,
        describe=describe,
    )
    with progress, interruptible() as check_interrupt:
        state, _ = jaxvae.fit(
            step,
            state,
            run_key,
            images,
            epochs=c.epochs,
            batch_size=c.batch,
            steps_per_call=min(steps_per_epoch, 50),
            callbacks=[progress, check_interrupt],
        )
    report(c, folder, data, state.model, eval_key, transform)
    figures.learning_curves(folder / "learning_curves.png", progress.lines)
    return folder


def report(
    c: Config, folder: Path, data: Dataset, model: Any, key: jax.Array, transform: Any
) -> None:
    """Measure the model on the test set, draw it, and print the table."""
    elbo_key, subset_key, marginal_key, input_key, picture_key = jax.random.split(key, 5)
    images = jnp.asarray(data.test.images)
    elbo, rate, distortion = evaluate(model, elbo_key, images, transform)
    # a random subset: the test rows of some data sets are sorted by class
    rows = jax.random.permutation(subset_key, len(images))[: c.eval_images]
    marginal = log_marginals(model, marginal_key, images[rows], transform, c.eval_samples)
    xs = inputs(input_key, images, transform)
    means = posterior_means(model, xs)
    variance = jnp.var(means, axis=0)
    result = {
        "test_images": len(images),
        "elbo": float(elbo),
        "rate": float(rate),
        "distortion": float(distortion),
        "log_marginal": float(jnp.mean(marginal.value)),
        "log_marginal_standard_error": float(
            jnp.sqrt(jnp.sum(marginal.standard_error**2)) / len(rows)
        ),
        "log_marginal_images": len(rows),
        "log_marginal_samples": c.eval_samples,
        "ess_median": float(jnp.median(marginal.ess)),
        "ess_least": float(jnp.min(marginal.ess)),
        "log_marginal_reliable": float(jnp.mean(marginal.reliable)),
        "active_units": int(jnp.sum(jaxvae.active_units(model, xs))),
        "latent": c.latent,
    }
    write_json(folder / "result.json", result)

    few, many = jax.random.split(picture_key)
    shown = xs[rows[:40]]
    figures.reconstructions(folder / "reconstructions.png", model, few, shown)
    figures.samples(folder / "samples.png", model, many)
    figures.latent_map(folder / "latent_map.png", means, data.test.labels)
    order = np.argsort(-np.asarray(variance))
    figures.traversals(folder / "traversals.png", model, means[rows[0]], order)

    table = Table(title=f"{data.name}: {len(images)} test images, nats an image", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("ELBO", f"{elbo:.2f}")
    table.add_row("rate, KL(q(z|x) || p(z))", f"{rate:.2f}")
    table.add_row("distortion, -log p(x|z)", f"{distortion:.2f}")
    table.add_row(
        f"log p(x), {c.eval_samples} importance samples, {len(rows)} images",
        f"{result['log_marginal']:.2f} ± {result['log_marginal_standard_error']:.2f}",
    )
    table.add_row(
        f"effective samples of {c.eval_samples}, median (least)",
        f"{result['ess_median']:.0f} ({result['ess_least']:.0f})",
    )
    table.add_row(
        "images whose estimate can be trusted (k-hat)", f"{result['log_marginal_reliable']:.0%}"
    )
    table.add_row(f"active units of {c.latent}", str(result["active_units"]))
    console = Console()
    console.print(table)
    console.print(f"numbers and pictures: {folder}/", soft_wrap=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, description=__doc__, args=args)
    try:
        train(config)
    except (Refused, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFinite as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was written stays", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
