"""What the main job is asked to do, and every reason to refuse it, each one line."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common.data import Dataset
from jaxvae.training.checkpoints import durable


@dataclass(frozen=True)
class Config:
    """What is trained and how."""

    dataset: str = "digits"
    """digits, mnist, fashion_mnist, binarized_mnist, omniglot, or a .npy file of images"""
    latent: int = 8
    """dimension of z"""
    network: Literal["mlp", "conv"] = "mlp"
    hidden: int = 400
    """width of the dense hidden layer"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """what the networks compute in; parameters, densities and losses stay float32"""
    prior: str = "normal"
    """p(z): vamp, ...; as all methods, a row of docs/methods.md by its name there, or in short"""
    posterior: str = "diagonal"
    """q(z|x): diagonal, full, iaf, ..."""
    likelihood: str = "gaussian"
    """p(x|z): gaussian, of pixels in [0, 1]; bernoulli, of binary ones; logistic-mixture, ..."""
    sigma: float = 0.2
    """fixed scale of the gaussian likelihood"""
    binarization: Literal["dynamic", "threshold"] | None = None
    """how grey images become binary: afresh at every visit, or at 1/2"""
    bound: str = "elbo"
    """elbo, iwae, or another of docs/bounds.md"""
    num_samples: int = 5
    """samples of the iwae bound; the others have as many as docs/bounds.md says"""
    gradient: str | None = None
    """how the bound is differentiated: dreg, stl, ... of docs/bounds.md; by default pathwise"""
    penalty: str | None = None
    """what is charged in place of the rate: free-bits, ..."""
    beta: float = 1.0
    """weight of the rate in the elbo"""
    warmup: int = 0
    """steps over which beta rises from 0"""
    epochs: int = 200
    batch: int = 64
    learning_rate: float = 1e-3
    clip: float | None = None
    """largest norm of a gradient; one that is not finite then counts as zero"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """what a loss or an update that is no finite number does: end the run, or change nothing"""
    seed: int = 0
    max_value: float | None = None
    """value of a full pixel of a .npy file; by default 255 for uint8, 1 for floats and binary"""
    validation: int | None = None
    """rows held out of train; by default as many as the data set publishes or suggests"""
    eval_images: int = 1000
    """test images whose log p(x) is estimated, drawn at random"""
    eval_samples: int = 500
    """importance samples for each of them"""
    saving: float = 0.01
    """share of the time that checkpoints may take; more where a run is often killed"""
    output: Path = Path("runs")
    name: str | None = None
    """folder in the output folder; by default the data set's name, numbered if it exists"""
    resume: Path | None = None
    """folder of a run to go on with; what is not given here is taken from its config.json"""
    data_dir: Path | None = None
    """where TFDS keeps its data"""
    download: bool = False
    """let TFDS download the data set"""


# what is known without docs/methods.md; --likelihood gaussian has a sigma, --bound iwae samples
PLAIN: dict[str, tuple[str | None, ...]] = {
    "prior": ("normal",),
    "posterior": ("diagonal", "full"),
    "likelihood": ("gaussian", "bernoulli"),
    "bound": ("elbo", "iwae"),
    "gradient": (None,),
    "penalty": (None,),
}
# what changes no number of a run, and so may change when it goes on
MAY_CHANGE = ("epochs", "eval_images", "eval_samples", "saving")
FREE = (*MAY_CHANGE, "output", "name", "resume", "data_dir", "download")


class Refused(Exception):
    """Input that can't be trained on; the message says what to do."""


def flag(name: str) -> str:
    return name.replace("_", "-")


def is_file(dataset: str) -> bool:
    """Whether that names a file of images; the data sets' names have no suffix."""
    return bool(Path(dataset).suffix)


def by_name(c: Config) -> dict[str, str]:
    """The methods that are chosen by a name of docs/methods.md, which the plain ones do without."""
    return {group: getattr(c, group) for group, plain in PLAIN.items()
            if getattr(c, group) not in plain}  # fmt: skip


def check_config(c: Config) -> None:
    """Raise Refused for the first value out of range."""
    at_least = {
        "latent": 1,
        "hidden": 1,
        "num_samples": 1,
        "epochs": 1,
        "batch": 1,
        "seed": 0,
        "warmup": 0,
    }
    at_least |= {"beta": 0, "eval_images": 1, "eval_samples": 1}
    for name, least in at_least.items():
        if not least <= getattr(c, name) < 2**31:
            raise Refused(
                f"--{flag(name)} is {getattr(c, name)}, expected at least {least} and below 2^31"
            )
    for name in ("learning_rate", "sigma"):
        if not 0 < getattr(c, name) < np.inf:
            raise Refused(f"--{flag(name)} is {getattr(c, name)}, expected a positive number")
    if not 0 < c.saving <= 1:
        raise Refused(
            f"--saving is {c.saving}, expected a share of the time, above 0 and at most 1"
        )
    for name in ("clip", "max_value"):
        value = getattr(c, name)
        if value is not None and not 0 < value < np.inf:
            raise Refused(f"--{flag(name)} is {value}, expected a positive number")
    if c.max_value is not None and not is_file(c.dataset):
        raise Refused(f"--max-value is {c.max_value:g}, but {c.dataset} is no .npy file")
    if c.name is not None and Path(c.name).name != c.name:
        raise Refused(f"--name is {c.name!r}, expected a plain folder name; --output says where")
    for group, name in by_name(c).items():
        from experiments.common.methods import Unsuited, find  # reads pages

        try:
            find(group, name)
        except Unsuited as error:
            raise Refused(str(error)) from None
    if c.bound == "iwae" and c.beta != 1:
        raise Refused(f"--beta is {c.beta} but the iwae bound has no beta; use --bound elbo")
    if c.bound == "iwae" and c.warmup:
        raise Refused(f"--warmup is {c.warmup} but the iwae bound has no beta; use --bound elbo")


def check_data(c: Config, data: Dataset) -> None:
    """Raise Refused for a batch or a likelihood that the images don't allow."""
    if c.batch > len(data.train.images):
        raise Refused(f"--batch is {c.batch} but train has {len(data.train.images)} images")
    if c.likelihood == "bernoulli" and not data.binary and c.binarization is None:
        raise Refused(
            f"{data.name} is grey and a Bernoulli likelihood is of binary pixels: choose "
            "--binarization dynamic or threshold, or --likelihood gaussian"
        )


def check_resumed(c: Config, begun: Config) -> None:
    """Raise Refused for the first option that would make a run that goes on another one."""
    for name, value in vars(begun).items():
        if name not in FREE and getattr(c, name) != value:
            may = ", ".join(f"--{flag(n)}" for n in MAY_CHANGE)
            raise Refused(
                f"--{flag(name)} is {getattr(c, name)} but {c.resume} was begun with {value}; "
                f"{may} may change, for the rest begin another run"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """All that config.json of a run says."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{folder}: its config.json can't be read ({error})") from None


def stored_config(folder: Path) -> dict[str, Any]:
    """What config.json of a run says, but for what data and machine were."""
    names = {field.name: field.type for field in fields(Config)}
    return {
        name: Path(value) if value is not None and "Path" in str(names[name]) else value
        for name, value in read_config(folder).items()
        if name in names
    }


def make_folder(c: Config) -> Path:
    """A folder of its own for this run, unless it is to go on; none is ever written over."""
    if c.resume is not None:
        return c.resume
    name = c.name or Path(c.dataset).stem
    candidates = [name] if c.name else [name, *(f"{name}-{i}" for i in range(2, 10_000))]
    for candidate in candidates:
        try:
            durable.make_folder(c.output)
            (c.output / candidate).mkdir(parents=True)
            durable.flush((c.output / candidate).parent)
            return c.output / candidate
        except FileExistsError:
            if c.output.exists() and not c.output.is_dir():
                raise Refused(f"--output {c.output} is a file, expected a folder") from None
        except OSError as error:
            raise Refused(f"--output {c.output} can't be written: {error.strerror}") from None
    raise Refused(f"{c.output / name} exists; choose another --name, or none")
