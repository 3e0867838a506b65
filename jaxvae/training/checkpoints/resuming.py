"""What a run keeps in its folder: the settings of that, and how its checkpoints are found."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae.checks import Count, Location, Positive, checked, kind, warn
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.files import (
    CheckpointError,
    read_checkpoint,
    read_with_header,
    refuse_other_constants,
    restore,
)
from jaxvae.training.checkpoints.sharded import load_sharded

PATTERN = "step_{:010d}.ckpt"
BEST = "best.ckpt"  # what `early_stopping` returns
MAIN = "main.ckpt"  # in a folder of that name, where the state is sharded


@kind("a Checkpoints; make one, jaxvae.Checkpoints(folder)")
class Checkpoints(NamedTuple):
    """Where `fit` saves, and from where the same call goes on after whatever has ended it.

    A checkpoint holds the model, the optimiser's state, the step, the run's key, the metrics of
    every step so far, and what makes the run this run: the checksums of its data and of the state
    it began with, every hyper-parameter, schedules at every step, and all operations of one step.
    A call that differs in any of them is refused; `epochs`, `steps_per_call`, callbacks, devices
    and these settings but `config` may change.

    Args:
      folder: one of the run's own; made where it is missing.
      keep: how many of the newest stay; the best stays as well.
      score: (state, metrics since the last look) -> a number, the lower the better, to say which is
        the best: on validation data for instance. By default the mean loss. (`early_stopping` has
        its own metric, and keeps its best state.)
      share: of the run's time that saving may take. It is the pace: after saves that took 10 ms
        the next comes no sooner than a second later, at a look. Of the last two the shorter
        counts: one in which the disk hung, or the process was suspended, puts off no other.
      config: what makes this run what it is, anything that JSON holds. One that finds another
        configuration in its folder does not go on.

    >>> import tempfile
    >>> from functools import partial
    >>> import jax
    >>> import optax
    >>> from jaxvae import fit, init_state, train_step
    >>> optimizer, folder = optax.sgd(0.1), tempfile.mkdtemp()
    >>> step = train_step(lambda model, key, x: (-((x - model) ** 2), None), optimizer)
    >>> start, xs = init_state(np.zeros((), np.float32), optimizer), np.ones(20, np.float32)
    >>> run = partial(fit, step, start, data=xs, batch_size=10, checkpoints=Checkpoints(folder))
    >>> _ = run(jax.random.key(0), epochs=1)
    >>> state, history = run(jax.random.key(0), epochs=3)  # goes on from step 2
    >>> newest_checkpoint(folder).name, len(history["loss"])
    ('step_0000000006.ckpt', 6)
    """

    folder: Location
    keep: Count = 3
    score: Callable[[Any, Mapping[str, np.ndarray]], Any] | None = None
    share: Positive = 0.01
    config: Mapping[str, Any] = {}


@checked
def checkpoint_files(folder: Location) -> list[Path]:
    """The checkpoints in a run's folder, the newest last.

    >>> import tempfile
    >>> from jaxvae.training import save_checkpoint
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (2000, 50):
    ...     save_checkpoint(folder / f"step_{step:010d}.ckpt", {"weight": np.ones(3)})
    >>> [file.name for file in checkpoint_files(folder)]
    ['step_0000000050.ckpt', 'step_0000002000.ckpt']
    """
    return sorted(Path(folder).glob(PATTERN.replace("{:010d}", "*")))


@checked
def newest_checkpoint(folder: Location) -> Path:
    """The last checkpoint of a run's folder that can be read; CheckpointError where none can be.

    One that can't be is named in a warning. What is in the arrays `load_checkpoint` verifies.

    >>> import tempfile
    >>> from jaxvae.training import save_checkpoint
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (2000, 50):
    ...     save_checkpoint(folder / f"step_{step:010d}.ckpt", {"weight": np.ones(3)})
    >>> newest_checkpoint(folder).name
    'step_0000002000.ckpt'
    """
    return max(_some(folder), key=step_of)


@checked
def best_checkpoint(folder: Location) -> Path:
    """The best state in a run's folder; CheckpointError where none can be read.

    With `early_stopping` that is the state that `fit` returns, and else the checkpoint of the
    lowest `Checkpoints.score`. `load_checkpoint` reads it. One that can't be read is named in a
    warning: its score is lost.

    >>> import tempfile
    >>> from jaxvae.training import save_checkpoint
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step, score in ((2000, 3.0), (50, 1.0)):  # as `fit` does
    ...     path = folder / f"step_{step:010d}.ckpt"
    ...     save_checkpoint(path, {"weight": np.ones(3)}, info={"score": score})
    >>> best_checkpoint(folder).name
    'step_0000000050.ckpt'
    """
    found, kept = _some(folder), Path(folder) / BEST
    if kept.exists():
        try:
            read_checkpoint(kept, leaves=False)
        except CheckpointError:
            warn(f"{kept} is damaged; looking at the others")
        else:
            return kept
    return min(found, key=lambda path: found[path]["score"])


@checked
def load_checkpoint(path: Location, like: Any) -> Any:
    """Read a pytree back, every byte verified: all that was saved, or the state or model in it.

    Args:
      path: what `save_checkpoint` wrote, or a checkpoint of `fit`, the best one for instance.
      like: a pytree of the same structure, shapes and dtypes as what is wanted: the tree that was
        saved, or of a checkpoint of `fit` a `TrainState` or a model. Its values don't matter, but
        for those in a `Constant`, which must be the same.

    Raises:
      CorruptCheckpointError: a byte is not what was written, or the file is cut off.
      CheckpointError: it can't be read, or holds another tree; the message names the first path
        that differs, with what is stored there and what is wanted.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from jaxvae.training import save_checkpoint
    >>> path = Path(tempfile.mkdtemp()) / "my.ckpt"
    >>> save_checkpoint(path, {"weight": jnp.ones(3)})
    >>> load_checkpoint(path, {"weight": jnp.zeros(3)})
    {'weight': Array([1., 1., 1.], dtype=float32)}
    """
    path = Path(path)
    if path.is_dir():  # a state that lies on the devices of several processes
        return load_sharded(path / "state", like)
    (leaves, header), wanted = read_with_header(path), paths(like)
    parts = ("", "['state']", "['state'].model")
    part = max(parts, key=lambda below: sum(below + p in leaves for p in wanted))
    found = restore(path, leaves, like, below=part)
    refuse_other_constants(path, header.get("constants"), like, below=part)
    return found


def step_of(path: Path) -> int:
    """How many steps came before a checkpoint."""
    return int(path.stem.removeprefix("step_"))


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, if there is one."""
    return folder / PATTERN.format(step)


def main_file(path: Path) -> Path:
    """The file of a checkpoint that says what it is."""
    return path / MAIN if path.is_dir() else path


@checked
def infos(folder: Location) -> dict[Path, dict[str, Any]]:
    """Of the readable ones, damaged leaves not looked for."""
    infos = {}
    for path in checkpoint_files(folder):
        try:
            infos[path] = read_checkpoint(main_file(path), leaves=False).info
        except CheckpointError:
            continue
    return infos


def _some(folder: Location) -> dict[Path, dict[str, Any]]:
    files, found = checkpoint_files(folder), infos(folder)
    for path in files:
        if path not in found:
            warn(f"{path} is damaged; looking at the others")
    if not found:
        which = f", as none of {len(files)} is whole" if files else ""
        raise CheckpointError(f"{folder} holds no checkpoint{which}")
    return found
