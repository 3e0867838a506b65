"""The command line: train a VAE on a file, and use what was trained.

    jaxvae train table.csv runs/table --epochs 50
    jaxvae score runs/table new.csv --output scores.csv

Data are .npy, .npz, .csv, .parquet and .h5ad files, or folders of images. Tables may have text and
gaps: `train` prints what it took each column for. Exit code 2: the input
was refused; 1: the run can't go on, or nothing can be saved; 130: interrupted.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.evaluation import active_units, export_model, use
from jaxvae.evaluation.frames import columns_of, names_of_latents, nats_of
from jaxvae.evaluation.rows import is_masked, latent_like
from jaxvae.nn.command_output import (
    TABLES,
    check_beside,
    check_output,
    say,
    write_columns,
    write_events,
)
from jaxvae.nn.data_files import DataRefusedError, Rows, check_counts
from jaxvae.nn.exported_input import exported_input
from jaxvae.nn.file_training import UNSAID, train
from jaxvae.nn.preparation import (
    are_images,
    in_units,
    info_of,
    kept_preparation,
    model_of,
    opened,
    table_of,
)
from jaxvae.nn.run_page import place_of, write_page
from jaxvae.nn.stored_units import Coded, of_coded, of_stored
from jaxvae.protocols import MissingMethodError
from jaxvae.training import CheckpointError, NonFiniteError


def encode(run: Path, data: Path, /, *, output: Path | None = None) -> None:
    """The latents of every row: means of q(z|x).

    Args:
      run: what train made, or save_model.
      output: .csv, .parquet, .npz or .npy; by default latents.csv.
    """
    output = check_output(output or Path("latents.csv"), *TABLES)
    model, _, rows, xs = opened(run, data)
    check_beside(output, rows.frame, names_of_latents(latent_like(model)))
    columns = _files_of(rows) | columns_of("z", use.encode(model, xs), [])
    write_columns(output, columns, rows.frame)


def score(
    run: Path, data: Path, /, *, output: Path | None = None, num_samples: int = 100, seed: int = 0
) -> None:
    """How likely each row is, in nats, and what each of its columns costs.

    iwae and elbo are lower bounds of log p(x), the higher the likelier, of columns standardised as
    the model sees them; per_observed is iwae an entry. `nats NAME` is -log p of a column given z,
    the higher the odder, and the rate is what z costs. `because` names the column that costs most
    beyond its mean over the file; a value far outside can draw z to itself, and make others cost.

    Args:
      run: what train made, or save_model.
      output: .csv, .parquet, .npz or .npy; by default scores.csv.
    """
    check_counts(num_samples=num_samples)
    output = check_output(output or Path("scores.csv"), *TABLES)
    model, info, rows, xs = opened(run, data)
    names = kept_preparation(info).get("columns") or ()
    results = "iwae", "elbo", "rate", "observed", "per_observed", "because"
    check_beside(output, rows.frame, [*results, *(f"nats {name}" for name in names)])
    scores = _scored(model, jax.random.key(seed), xs, num_samples=num_samples)
    columns = _files_of(rows)
    columns |= {"iwae": scores.iwae, "elbo": scores.elbo, "rate": scores.rate}
    nats = {}
    if isinstance(scores.entries, dict):
        columns |= {"observed": scores.observed, "per_observed": scores.per_observed}
        nats = nats_of(rows.frame, scores.entries)
    elif np.ndim(scores.entries) == 2 and scores.entries.shape[1] == len(names):
        nats = {f"nats {n}": c for n, c in zip(names, scores.entries.T, strict=True)}
    columns |= {"because": _because(nats)} | nats if nats else {}
    means = {"iwae": float(np.mean(scores.iwae)), "elbo": float(np.mean(scores.elbo))}
    say({"rows": len(scores.iwae)} | means)
    if len(np.unique(scores.observed)) > 1:
        say({"compare rows by": "per_observed, as they have different gaps"})
    write_columns(output, columns, rows.frame)


def impute(
    run: Path, data: Path, /, *, output: Path | None = None, num_samples: int = 100, seed: int = 0
) -> None:
    """The rows with E[x_missing|x_observed] in their gaps: means, and categories most probable.

    Of a column of kind log they are geometric means, exp(E[log x]).

    Args:
      run: what train made of a table with gaps.
      output: .csv or .parquet; by default imputed.csv.
    """
    check_counts(num_samples=num_samples)
    output = check_output(output or Path("imputed.csv"), ".csv", ".parquet")
    model, info, rows, _ = opened(run, data)
    table = table_of(kept_preparation(info))
    if table is None or not is_masked(model):
        raise DataRefusedError(f"{run} is not of a table with text or gaps, so it fills none")
    found = use.impute(
        model, jax.random.key(seed), table.coded(rows.frame), num_samples=num_samples
    )
    filled = table.decoded(found, original=rows.frame)
    columns = {column.name: filled[column.name] for column in table.seen}
    write_columns(output, columns, rows.frame)


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
      output: .npy, .csv, .parquet or .npz, or of images a folder to make, of PNG; by default
        new.csv of a table, else new.npy.
      mean: means of p(x|z) in place of draws.
    """
    check_counts(number=number)
    preparation = kept_preparation(info_of(run))
    names, table = preparation.get("columns") or (), table_of(preparation)
    if table and mean:
        raise DataRefusedError("--mean has no meaning for a table with categories")
    model = model_of(run)
    output = output or Path("new.csv" if names else "new.npy")
    output = check_output(output, *_kinds(model, preparation))
    xs = use.generate(model, jax.random.key(seed), number, mean=mean)
    if table:
        write_columns(output, {}, table.decoded(xs))
    else:
        write_events(output, in_units(preparation, xs), names)


def reconstruct(run: Path, data: Path, /, *, output: Path | None = None, seed: int = 0) -> None:
    """What the model remembers of every row: means of p(x|z), z ~ q(z|x), in the units of the data.

    Of a table they are columns beside its own, of categories the most probable ones, of kind log
    geometric means.

    Args:
      run: what train made, or save_model.
      output: .csv, .parquet, .npz or .npy, or of images a folder to make, of PNG; by default
        reconstructed.csv of a table, else reconstructed.npy.
    """
    preparation = kept_preparation(info_of(run))
    names, table = preparation.get("columns") or (), table_of(preparation)
    model, _, rows, xs = opened(run, data)
    output = output or Path("reconstructed.csv" if names else "reconstructed.npy")
    output = check_output(output, *_kinds(model, preparation))
    check_beside(output, rows.frame, [f"reconstructed {name}" for name in names])
    key = jax.random.key(seed)
    if table:
        coded, codes = table.coded(rows.frame), of_coded(table)
        xs = {c.name: coded[c.name].to_numpy(np.float32)[:, None] for c in table.seen}
        means = use.reconstruct(of_stored(model, Coded(codes)), key, xs)
        named = coded.assign(**{name: mean[:, 0] for name, mean in means.items()})
        found = {c.name: table.decoded(named)[c.name] for c in table.seen}
    else:
        found = in_units(preparation, use.reconstruct(model, key, xs))
        if not names:
            write_events(output, found, (), rows.files)
            return
        found = dict(zip(names, found.T, strict=True))
    columns = {f"reconstructed {name}": np.asarray(column) for name, column in found.items()}
    write_columns(output, columns, rows.frame)


def report(
    run: Path,
    data: Path | None = None,
    /,
    *,
    output: Path | None = None,
    num_samples: int = 100,
    seed: int = 0,
) -> None:
    """What the model is and, on data, what it is worth: means over rows, nats, and a page.

    The page, report.html, has the curves of the run, pictures, each number with what it means and
    whether to trust it, and what to try next. It is drawn with matplotlib.

    Args:
      run: what train made, or save_model.
      data: rows to measure it on.
      output: .html; by default report.html in the run, of a model alone in this folder.
    """
    check_counts(num_samples=num_samples)
    info = info_of(run)
    output = check_output(output or place_of(run), ".html")
    arrays = info["arrays"].values()
    told: dict[str, Any] = {"numbers": sum(int(np.prod(a["shape"])) for a in arrays)}
    about = info["about"]
    told |= (
        {k: v for k, v in about.items() if k not in UNSAID}
        if isinstance(about, dict)
        else {"about": about}
    )
    if data is None:
        say(told)
    else:
        model, _, _, xs = opened(run, data)
        key, unit_key, page_key = jax.random.split(jax.random.key(seed), 3)
        scores = _scored(model, key, xs, num_samples=num_samples)
        n = len(scores.iwae)
        told |= {"rows of data": n, "iwae": float(np.mean(scores.iwae))}
        if n > 1:
            told |= {"standard error": float(np.std(scores.iwae, ddof=1) / np.sqrt(n))}
        told |= {"elbo of data": float(np.mean(scores.elbo))}
        told |= {"rate": float(np.mean(scores.rate))}
        xs = jax.tree.map(jnp.asarray, xs)
        units = jax.tree.leaves(active_units(model, xs, key=unit_key))
        say(told | {"active units": int(sum(map(np.sum, units)))})
        with without_a_word_of_gaps():
            write_page(output, run, about, model, page_key, xs, num_samples)


def export(
    run: Path,
    /,
    *,
    what: Literal["encode", "decode", "score"] = "encode",
    output: Path | None = None,
) -> None:
    """A function of the model as one file of StableHLO, which jax alone runs.

    It takes rows as the data have them, in their units, and gives means so; what that is, it says.

    Args:
      run: what train made, or save_model.
      output: by default encode.stablehlo, or what it is.
    """
    output = output or Path(f"{what}.stablehlo")
    output = check_output(output, output.suffix)
    model, takes, x = exported_input(model_of(run), kept_preparation(info_of(run)), what)
    path = export_model(output, model, what, x=x)
    say({"written": str(path)} | takes)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train, "encode": encode, "score": score, "impute": impute, "generate": generate,
    "reconstruct": reconstruct, "report": report, "export": export,
}  # fmt: skip


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
    except (CheckpointError, NonFiniteError, MissingMethodError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        command = [*(sys.argv[1:] if args is None else args)][:1]
        goes_on = "; the same command goes on" if command == ["train"] else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


def _kinds(model: Any, preparation: Mapping[str, Any]) -> tuple[str, ...]:
    """The endings of the files that rows of a model can be written to; of a folder it is empty."""
    if "table" in preparation:
        return (".csv", ".parquet")
    return (*TABLES, "") if are_images(model, preparation) else TABLES


def _scored(model: Any, key: jax.Array, xs: Any, num_samples: int) -> use.Scores:
    """`use.score`, whose warning of different gaps the column `per_observed` answers."""
    with without_a_word_of_gaps():
        return use.score(model, key, xs, num_samples=num_samples)


@contextmanager
def without_a_word_of_gaps() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "score: rows have")
        yield


def _because(nats: Mapping[str, np.ndarray]) -> np.ndarray:
    """The column of each row that costs most beyond its mean; none where nothing does."""
    costs = np.stack([*nats.values()], axis=1)
    seen = ~np.isnan(costs)
    means = np.sum(costs, axis=0, where=seen) / np.maximum(seen.sum(axis=0), 1)
    more = np.where(seen, costs - means, -np.inf)
    names = np.asarray([title.removeprefix("nats ") for title in nats])
    return np.where(more.max(axis=1) > 0, names[more.argmax(axis=1)], "")


def _files_of(rows: Rows) -> dict[str, np.ndarray]:
    return {"file": np.asarray(rows.files)} if rows.files else {}


if __name__ == "__main__":
    sys.exit(main())
