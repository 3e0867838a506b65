"""The command line: train a VAE on a file, and use what was trained.

    jaxvae train table.csv runs/table --epochs 50
    jaxvae score runs/table new.csv --output scores.csv

Data are .npy, .npz, .csv, .parquet and .h5ad files, or folders of images. Tables may have text and
gaps: `train` prints what it took each column for. Exit code 2: the input
was refused; 1: the run can't go on, or nothing can be saved; 130: interrupted.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxvae.bounds import elbo
from jaxvae.distributions import Poisson, StandardNormal
from jaxvae.evaluation import active_units, export_model, use
from jaxvae.evaluation.rows import is_masked, nats_of
from jaxvae.model import VAE
from jaxvae.nn.convolutions import ConvDecoder, ConvEncoder
from jaxvae.nn.data_files import DataRefusedError, Rows, read_rows, write_rows
from jaxvae.nn.heads import BernoulliHead, HeadOf, NormalHead, Positive
from jaxvae.nn.networks import MLP, Conditional, SharedScaleHead
from jaxvae.nn.preparation import (
    as_images,
    check_rows,
    is_images,
    kept_preparation,
    opened,
    preparation_of,
    prepared,
    table_of,
)
from jaxvae.nn.saved import load_model, model_info, save_model
from jaxvae.nn.stock import make_vae
from jaxvae.training import (
    Callback,
    CheckpointError,
    Checkpoints,
    NonFiniteError,
    early_stopping,
    fit,
    init_state,
    train_step,
)
from jaxvae.training import validation as validation_of


def train(
    data: Path,
    run: Path,
    /,
    *,
    columns: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    network: Literal["mlp", "conv"] = "mlp",
    likelihood: Literal["gaussian", "bernoulli", "poisson", "logistic"] | None = None,
    latent: int = 8,
    hidden: int = 256,
    epochs: int = 50,
    batch: int = 64,
    learning_rate: float = 1e-3,
    validation: float = 0.1,
    seed: int = 0,
) -> None:
    """Train a VAE and save it in a folder. The same command goes on after whatever has ended it.

    What is saved is the model of the epoch that was best on the rows held out; without any, the
    last.

    Args:
      data: the file or folder.
      run: the folder to make.
      columns: of a table; by default all.
      kinds: of columns of a table with text or gaps, where they aren't what was inferred:
        zip=category, or number, or log of amounts, or ignored.
      likelihood: p(x|z): gaussian with one learned sigma, bernoulli of 0 and 1, poisson of counts,
        logistic of bytes as they are stored. By default logistic of images, else gaussian, which of
        a table with text or gaps is a normal, or a categorical, of every column.
      validation: the share of the rows held out.
    """
    for name, value in {
        "latent": latent,
        "hidden": hidden,
        "epochs": epochs,
        "batch": batch,
    }.items():
        if value < 1:
            raise DataRefusedError(f"--{name} is {value}, expected an integer of at least 1")
    if not 0 <= validation < 1 or not learning_rate > 0:
        raise DataRefusedError("--validation must be in [0, 1) and --learning-rate above 0")
    mixed = likelihood in (None, "gaussian") and network == "mlp"
    rows = read_rows(data, columns, mixed=mixed)
    likelihood = likelihood or ("logistic" if is_images(rows) else "gaussian")
    preparation = preparation_of(rows, likelihood, columns, kinds)
    bytes_ = likelihood == "logistic"
    xs = as_images(rows.values) if bytes_ else prepared(data, rows, preparation)
    if not table_of(preparation):
        check_rows(data, xs, network, likelihood)
    init_key, run_key, split_key, score_key = jax.random.split(jax.random.key(seed), 4)
    order = np.asarray(jax.random.permutation(split_key, len(rows.values)))
    held, kept = np.split(order, [int(validation * len(order))])
    at: Callable[[Any], Any] = lambda chosen: jax.tree.map(lambda a: a[chosen], xs)  # noqa: E731
    if len(kept) < batch:
        raise DataRefusedError(f"--batch is {batch} but {len(kept)} rows are left to train on")
    rngs = nnx.Rngs(init_key)
    if table := table_of(preparation):
        print(table)
        model = make_vae(table, latents=latent, hidden=(hidden,), rngs=rngs)
    elif likelihood == "logistic":
        conv = network == "conv"
        model = make_vae(xs[0], latents=latent, convolutional=conv, hidden=(hidden,), rngs=rngs)
    else:
        model = _model(network, likelihood, xs.shape[1:], latent, hidden, rngs)
    optimizer = optax.adam(learning_rate)
    config = {"network": network, "likelihood": likelihood, "latent": latent, "hidden": hidden,
              "seed": seed, "learning_rate": learning_rate, "preparation": preparation}  # fmt: skip
    callbacks: list[Callback] = []
    if len(held):  # with more patience than epochs, for the best of all
        callbacks = [validation_of(elbo, score_key, jax.tree.map(jnp.asarray, at(held))),
                     early_stopping("validation_loss", patience=epochs)]  # fmt: skip
    _say({"training on": len(kept), "held out": len(held)})
    state, history = fit(
        train_step(elbo, optimizer),
        init_state(model, optimizer),
        run_key,
        jax.tree.map(jnp.asarray, at(kept)),
        epochs=epochs,
        batch_size=batch,
        callbacks=callbacks,
        checkpoints=Checkpoints(run / "checkpoints", config=config),
    )
    by_epoch = {name: m.reshape(-1, len(kept) // batch) for name, m in history.items()}
    elbos, best = -by_epoch["loss"].mean(1), epochs - 1
    about: dict[str, Any] = {"data": data.name, "rows": len(kept), "epochs": epochs}
    if len(held):
        held_out = -by_epoch["validation_loss"][:, -1]
        best = int(np.nanargmax(held_out))
        about |= {"best_epoch": best + 1, "validation_elbo": float(held_out[best])}
    about |= {"elbo": float(elbos[best]), "config": config}
    if "table" in preparation:
        about["table"] = preparation["table"]
    save_model(run / "model", state.model, about=about)
    _say({n: about[n] for n in about if n not in UNSAID} | {"model": str(run / "model")})


def encode(run: Path, data: Path, /, *, output: Path | None = None) -> None:
    """The latents of every row: means of q(z|x).

    Args:
      run: what train made, or save_model.
      output: .csv, .parquet, .npz or .npy; by default latents.csv.
    """
    model, _, rows, xs = opened(run, data)
    zs = use.encode(model, xs)
    columns = _files_of(rows)
    columns |= {f"z {i}": z for i, z in enumerate(np.reshape(zs, (len(zs), -1)).T)}
    _written(output or Path("latents.csv"), columns, rows.frame)


def score(
    run: Path, data: Path, /, *, output: Path | None = None, num_samples: int = 100, seed: int = 0
) -> None:
    """How likely each row is, in nats, and what each of its columns adds to that.

    Of standardised columns, as the model sees them.

    Args:
      run: what train made, or save_model.
      output: .csv, .parquet, .npz or .npy; by default scores.csv.
    """
    _check_counts(num_samples=num_samples)
    model, info, rows, xs = opened(run, data)
    scores = _scored(model, jax.random.key(seed), xs, num_samples=num_samples)
    columns = _files_of(rows)
    columns |= {"iwae": scores.iwae, "elbo": scores.elbo, "rate": scores.rate}
    names = kept_preparation(info).get("columns") or ()
    if isinstance(scores.entries, dict):
        columns |= {"observed": scores.observed, "per_observed": scores.per_observed}
        columns |= nats_of(rows.frame, scores.entries)
    elif np.ndim(scores.entries) == 2 and scores.entries.shape[1] == len(names):
        columns |= {f"nats {n}": c for n, c in zip(names, scores.entries.T, strict=True)}
    means = {"iwae": float(np.mean(scores.iwae)), "elbo": float(np.mean(scores.elbo))}
    _say({"rows": len(scores.iwae)} | means)
    if len(np.unique(scores.observed)) > 1:
        _say({"compare rows by": "per_observed, as they have different gaps"})
    _written(output or Path("scores.csv"), columns, rows.frame)


def impute(
    run: Path, data: Path, /, *, output: Path | None = None, num_samples: int = 100, seed: int = 0
) -> None:
    """The rows with E[x_missing|x_observed] in their gaps: means, and categories most probable.

    Args:
      run: what train made of a table with gaps.
      output: .csv or .parquet; by default imputed.csv.
    """
    _check_counts(num_samples=num_samples)
    model, info, rows, _ = opened(run, data)
    table = table_of(kept_preparation(info))
    if table is None or not is_masked(model):
        raise DataRefusedError(f"{run} is not of a table with text or gaps, so it fills none")
    found = use.impute(
        model, jax.random.key(seed), table.coded(rows.frame), num_samples=num_samples
    )
    filled = table.decoded(found)
    columns = {c.name: rows.frame[c.name].where(rows.frame[c.name].notna(), filled[c.name])
               for c in table.seen}  # fmt: skip
    _written(output or Path("imputed.csv"), columns, rows.frame)


def generate(
    run: Path,
    /,
    *,
    number: int = 100,
    output: Path | None = None,
    mean: bool = False,
    seed: int = 0,
) -> None:
    """New rows, in the units of the data.

    Args:
      run: what train made, or save_model.
      output: .npy, .csv, .parquet or .npz; by default new.csv of a table, else new.npy.
      mean: means of p(x|z) in place of draws.
    """
    _check_counts(number=number)
    model, info = load_model(run), model_info(run)
    preparation = kept_preparation(info)
    table = table_of(preparation)
    if table and mean:
        raise DataRefusedError("--mean has no meaning for a table with categories")
    xs = use.generate(model, jax.random.key(seed), number, mean=mean)
    if table:
        _written(output or Path("new.csv"), {}, table.decoded(xs))
        return
    if preparation and xs.dtype != np.uint8:
        xs = xs * np.asarray(preparation["scale"]) + np.asarray(preparation["shift"])
    names = preparation.get("columns")
    output = output or Path("new.csv" if names else "new.npy")
    if output.suffix == ".npy":
        np.save(output, xs)
        _say({"written": str(output), "shape": list(xs.shape)})
    else:
        flat = np.reshape(xs, (len(xs), -1))
        names = names if names and len(names) == flat.shape[1] else range(flat.shape[1])
        _written(output, {str(n): c for n, c in zip(names, flat.T, strict=True)}, None)


def report(
    run: Path, data: Path | None = None, /, *, num_samples: int = 100, seed: int = 0
) -> None:
    """What the model is and, on data, what it is worth: means over rows, nats.

    Args:
      run: what train made, or save_model.
      data: rows to measure it on.
    """
    _check_counts(num_samples=num_samples)
    info = model_info(run)
    arrays = info["arrays"].values()
    told: dict[str, Any] = {"numbers": sum(int(np.prod(a["shape"])) for a in arrays)}
    about = info["about"]
    told |= (
        {k: v for k, v in about.items() if k not in UNSAID}
        if isinstance(about, dict)
        else {"about": about}
    )
    if data is not None:
        model, _, _, xs = opened(run, data)
        scores = _scored(model, jax.random.key(seed), xs, num_samples=num_samples)
        n = len(scores.iwae)
        error = float(np.std(scores.iwae) / np.sqrt(n))
        told |= {"rows of data": n, "iwae": float(np.mean(scores.iwae))}
        told |= {"standard error": error, "elbo of data": float(np.mean(scores.elbo))}
        told |= {"rate": float(np.mean(scores.rate))}
        told |= {"active units": int(np.sum(active_units(model, jax.tree.map(jnp.asarray, xs))))}
    _say(told)


def export(
    run: Path,
    /,
    *,
    what: Literal["encode", "decode", "score"] = "encode",
    output: Path | None = None,
) -> None:
    """A function of the model as one file of StableHLO, which jax alone runs.

    Args:
      run: what train made, or save_model.
      output: by default encode.stablehlo, or what it is.
    """
    path = export_model(output or Path(f"{what}.stablehlo"), load_model(run), what)
    _say({"written": str(path)})


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train, "encode": encode, "score": score, "impute": impute, "generate": generate,
    "report": report, "export": export,
}  # fmt: skip
UNSAID = ("config", "table")  # of what is known of a model, too long for a line


def main(args: Sequence[str] | None = None) -> int:
    try:
        from tyro.extras import subcommand_cli_from_dict
    except ImportError:
        print("error: jaxvae needs tyro: pip install tyro", file=sys.stderr)
        return 2
    try:
        subcommand_cli_from_dict(COMMANDS, prog="jaxvae", description=__doc__, args=args)
    except DataRefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, NonFiniteError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            flag = name.replace("_", "-")
            raise DataRefusedError(f"--{flag} is {value}, expected an integer of at least 1")


def _model(network: str, likelihood: str, shape: Any, latent: int, hidden: int, rngs: Any) -> VAE:
    pair = {"mlp": (MLP, MLP), "conv": (ConvEncoder, ConvDecoder)}[network]
    encoder, decoder = (partial(each, hidden=(hidden,)) for each in pair)
    heads: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: SharedScaleHead(0.5),
        "bernoulli": BernoulliHead,
        "poisson": lambda: HeadOf(Poisson, (Positive("n"),)),
    }
    return VAE(
        Conditional(encoder, NormalHead(), shape, (latent,), rngs=rngs),
        Conditional(decoder, heads[likelihood](), (latent,), shape, rngs=rngs),
        StandardNormal((latent,)),
    )


def _scored(model: Any, key: jax.Array, xs: Any, num_samples: int) -> use.Scores:
    """`use.score`, whose warning of different gaps the column `per_observed` answers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "score: rows have")
        return use.score(model, key, xs, num_samples=num_samples)


def _files_of(rows: Rows) -> dict[str, np.ndarray]:
    return {"file": np.asarray(rows.files)} if rows.files else {}


def _written(path: Path, columns: dict[str, np.ndarray], frame: Any) -> None:
    write_rows(path, columns, frame)
    _say({"written": str(path), "columns": len(columns)})


def _say(told: Mapping[str, Any]) -> None:
    for name, value in told.items():
        shown = f"{value:.4f}" if isinstance(value, float) else json.dumps(value)
        print(f"{name:>16}  {shown}")


if __name__ == "__main__":
    sys.exit(main())
