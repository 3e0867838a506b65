"""Train a VAE, look at it, and measure it. This is the main job.

    python -m experiments.train                             # digits, embedded, under a minute
    python -m experiments.train --dataset fashion_mnist --network conv --latent 32 --epochs 10
    python -m experiments.train --dataset mnist --likelihood bernoulli --binarization dynamic
    python -m experiments.train --dataset my_images.npy     # [N, H, W] or [N, H, W, C]
    python -m experiments.train --resume runs/digits        # after whatever ended it

Writes runs/<name>/: config.json, metrics.jsonl (a line an epoch), checkpoints, model (which
`jaxvae.nn.load_model` reads anywhere), result.json, and report.html, which explains them, with its
pictures; and ends with a table of the test set. All numbers are nats an image: summed over pixels
and latents, averaged over images.

Exit code 2: the input was refused; 1: the loss became non-finite, memory ran out, or nothing can be
saved; 130 and 143: stopped by SIGINT or SIGTERM, and saved.
"""

import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import jaxvae
from experiments.common.config import (
    FREE,
    Config,
    Refused,
    by_name,
    check_config,
    check_data,
    check_resumed,
    is_file,
    make_folder,
    read_config,
    stored_config,
)
from experiments.common.data import DataError, load, load_file
from experiments.common.evaluate import (
    compile_measures,
    evaluate,
    inputs,
    largest_log_scale,
    scored,
    whole,
)
from experiments.common.progress import Progress
from experiments.common.report import report, write_json
from jaxvae import nn


def make_model(c: Config, shape: tuple[int, ...], rngs: nnx.Rngs) -> jaxvae.VAE:
    """q(z|x), p(x|z) and p(z): the three things that make a VAE.

    What is chosen by a name of docs/methods.md, experiments.common.chosen makes: this is without.
    """
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


def as_stored(key: jax.Array, image: jax.Array) -> jax.Array:
    del key
    return image


def train(c: Config) -> Path:
    """The whole job; returns the run's folder."""
    check_config(c)
    if is_file(c.dataset):
        data = load_file(c.dataset, validation=c.validation, max_value=c.max_value)
    else:
        data = load(c.dataset, data_dir=c.data_dir, download=c.download, validation=c.validation)
    check_data(c, data)
    # one key names the run: initial parameters, steps and evaluation draw from its parts
    init_key, run_key, eval_key = jax.random.split(jax.random.key(c.seed), 3)
    to_input = {
        None: jaxvae.rescale,
        "dynamic": jaxvae.binarize,
        "threshold": jaxvae.training.threshold,
    }
    transform = partial(to_input[c.binarization], max_value=float(data.max_value))
    bound = {
        "elbo": jaxvae.elbo,
        "iwae": partial(jaxvae.iwae, num_samples=c.num_samples),
    }.get(c.bound, jaxvae.elbo)
    rising = optax.linear_schedule(0.0, c.beta, c.warmup) if c.warmup else c.beta
    hyper: dict[str, Any] = {"beta": rising} if c.bound == "elbo" else {}
    images, elbo = jnp.asarray(data.train.images), jaxvae.elbo
    refuse_unsuited: Any = None
    if not by_name(c):
        model = make_model(c, data.shape, nnx.Rngs(init_key))
    else:
        from experiments.common import chosen  # reads pages, which the plain methods do without

        if chosen.takes_bytes(c):
            if data.max_value != 255:
                raise Refused(
                    f"--likelihood {c.likelihood} is of bytes, 0 to 255, and a full pixel of "
                    f"{data.name} is {data.max_value:g}; choose --likelihood gaussian"
                )
            transform = as_stored
        if c.beta == 1 and not c.warmup:
            hyper = {}
        examples = chosen.examples_of(transform, images)
        made = chosen.make(c, data.shape, nnx.Rngs(init_key), examples, len(images))
        (model, bound), elbo = made, scored
        refuse_unsuited = chosen.tried
    optimizer = optax.adam(c.learning_rate)
    if c.clip is not None:
        optimizer = optax.chain(jaxvae.training.clip_by_finite_norm(c.clip), optimizer)
    step = jaxvae.train_step(jaxvae.preprocessed(bound, transform), optimizer)
    if c.on_nonfinite == "skip":
        step = jaxvae.training.skip_nonfinite(step)
    state = jaxvae.init_state(model, optimizer)
    if refuse_unsuited is not None:
        refuse_unsuited(c, step, state, images, transform, hyper)
    folder = make_folder(c)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(c).items()}
    config |= {"image_shape": list(data.shape)}
    config |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}

    def keep_config(*_: Any) -> None:  # of a run that goes on, once it is known to be that run
        if not (folder / "config.json").exists() or config != read_config(folder):
            write_json(folder / "config.json", config)

    if c.resume is None:
        keep_config()

    held_out = data.validation.images

    def validate(model: Any) -> dict[str, float]:
        if not held_out.size:
            return {}
        same_noise = jax.random.clone(eval_key)  # at every epoch, so that epochs compare
        numbers = evaluate(whole(model), same_noise, held_out, transform, elbo)
        return {f"validation_{name}": float(value) for name, value in numbers._asdict().items()}

    steps_per_epoch = len(images) // c.batch

    identity = {n: value for n, value in config.items() if n in vars(c) and n not in FREE}
    for name in {"prior", "gradient", "penalty"} - by_name(c).keys():
        del identity[name]  # as they were before there was a choice
    progress = Progress(
        folder / "metrics.jsonl",
        epochs=c.epochs,
        steps_per_epoch=steps_per_epoch,
        batch=c.batch,
        validate=validate,
    )
    measures = data.test.images, transform, min(c.eval_images, len(data.test.images))
    try:
        with ThreadPoolExecutor(1) as other_core, progress:
            if c.resume is None:  # where it goes on, the programs are there, and the start counts
                now = whole(state.model)
                other_core.submit(compile_measures, now, *measures, c.eval_samples, elbo)
            state, history = jaxvae.fit(
                step,
                state,
                run_key,
                images,
                epochs=c.epochs,
                batch_size=c.batch,
                steps_per_call=min(steps_per_epoch, 50),
                callbacks=[keep_config, progress],
                checkpoints=jaxvae.Checkpoints(
                    folder / "checkpoints", share=c.saving, config=identity
                ),
                progress=False,  # it has a bar of its own
                **hyper,
            )
    except jaxvae.training.NonFiniteError as error:
        xs = inputs(jax.random.clone(eval_key), images[error.rows], transform)
        scale = largest_log_scale(whole(error.state.model), xs)
        raise Stopped(
            f"{error}; largest log-scale of q(z|x) {scale:g}; try a smaller --learning-rate, "
            "--clip 10, or --on-nonfinite skip"
        ) from None
    model = whole(state.model)
    nn.save_model(folder / "model", model, about={"config": config})
    skipped = int(np.sum(history["skipped"])) if "skipped" in history else None
    full = 255.0 if transform is as_stored else 1.0  # what a full pixel is
    report(
        folder, data, model, eval_key, transform, config,
        bound=elbo, skipped=skipped, lines=progress.lines, full=full,
    )  # fmt: skip
    return folder


def load_model(folder: str | Path, *, best: bool = False) -> jaxvae.VAE:
    """The model of a run of this job: as it was last saved, or where its score was best.

    Args:
      folder: of the run.
      best: whether the checkpoint of the lowest mean loss is wanted.

    Raises:
      Refused: config.json can't be read.
      CheckpointError: no checkpoint can.
    """
    folder = Path(folder)
    shape = tuple(read_config(folder)["image_shape"])
    config = Config(**stored_config(folder))
    if by_name(config):
        from experiments.common import chosen

        examples = jnp.zeros((chosen.EXAMPLES, *shape))
        model = chosen.make(config, shape, nnx.Rngs(0), examples, 1).model
    else:
        model = make_model(config, shape, nnx.Rngs(0))
    checkpoints = folder / "checkpoints"
    newest_or_best = jaxvae.training.best_checkpoint if best else jaxvae.training.newest_checkpoint
    return jaxvae.training.load_checkpoint(newest_or_best(checkpoints), model)


class Stopped(Exception):
    """The run can't go on; the message says why, and what to try."""


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, description=__doc__, args=args)
    try:
        if config.resume is not None:  # again, over what that run was begun with
            begun = Config(**stored_config(config.resume))
            config = tyro.cli(Config, description=__doc__, args=args, default=begun)
            check_resumed(config, begun)
        train(config)
    except (Refused, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Stopped, jaxvae.training.CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {error}; try a smaller --batch, --hidden or --latent", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was written stays", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
