"""The page of a run of `jaxvae train`: what `plots.report` says of it, with its curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxvae.checks import Key, Tree
from jaxvae.model import Model
from jaxvae.nn.command_output import say, written
from jaxvae.nn.file_training import UNSAID
from jaxvae.nn.model_folders import is_saved
from jaxvae.training.checkpoints import checkpoint_files, newest_checkpoint, read_checkpoint

LEFT_OUT = (*UNSAID, "preparation")  # of what is known of a run, too long for a line


def place_of(run: Path) -> Path:
    """report.html in the run; of a model alone, whose folder is its own, in this folder."""
    return Path("report.html") if is_saved(run) else run / "report.html"


def write_page(
    path: Path, run: Path, about: Tree, model: Model, key: Key, xs: Tree, num_samples: int
) -> None:
    """Write the page, or say what it takes."""
    try:
        from jaxvae import plots
    except ImportError:
        say({"no page": "it is drawn with matplotlib; pip install 'jaxvae[plots]'"})
        return
    about = about if isinstance(about, Mapping) else {"about": about}
    told = {**about, **about.get("config", {})}
    written(
        path,
        lambda part: plots.report(
            part,
            model,
            key,
            xs,
            title=f"{run.name}: a VAE on {about.get('data', 'data')}",
            metrics=curves_of(run),
            config={name: value for name, value in told.items() if name not in LEFT_OUT},
            num_samples=num_samples,
        ),
    )


def curves_of(run: Path) -> dict[str, Any]:
    """The metrics of every step, from the newest checkpoint; none where there is no checkpoint."""
    folder = run / "checkpoints"
    if not checkpoint_files(folder):
        return {}
    leaves = read_checkpoint(newest_checkpoint(folder)).leaves
    head = "['metrics']['"
    return {
        path.removeprefix(head).removesuffix("']"): jax.device_get(leaf)
        for path, leaf in leaves.items()
        if path.startswith(head)
    }
