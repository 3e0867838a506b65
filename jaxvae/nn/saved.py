"""A trained model as a folder, which a process that never saw its training script reads.

    model.json            what builds the model, the versions, the arrays' shapes, `about`
    weights.safetensors   every array, by its path in the model
    README.md             a card for people; it may be edited
    SHA256SUMS            of the first two, as `sha256sum --check` reads it

The folder is written beside its place and renamed, so that a reader finds a whole one or none.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Tree, a_class_of, checked
from jaxvae.nn.descriptions import NotDescribedError, Trusted, describe, rebuild, resolve
from jaxvae.pytrees import is_key, paths
from jaxvae.pytrees.libraries import functional
from jaxvae.training import (
    CheckpointError,
    CorruptCheckpointError,
    best_checkpoint,
    checkpoint_files,
    load_checkpoint,
    read_checkpoint,
)
from jaxvae.training.checkpoints.files import restore, version_of

FORMAT = 1
MANIFEST, WEIGHTS, CARD, SUMS = "model.json", "weights.safetensors", "README.md", "SHA256SUMS"
NOT_BUILT = (KeyError, TypeError, AttributeError, ValueError)  # what other fields end in
PACKAGES = ("jaxvae", "jax", "flax", "numpy")


@checked
def save_model(
    folder: str | Path,
    model: object,
    *,
    about: str | Mapping[str, Any] | None = None,
    builder: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model to a folder, whole or not at all, for `load_model` in any other process.

    Of networks and distributions of jaxvae and Flax NNX the folder itself says how they are built.
    Of a model with classes or functions of your own it does too, where they are in a module that
    can be imported, and `load_model` then has to be told to trust it. Whatever else, a network of
    Linen or Equinox for instance, is built by a function of yours, named here.

    Args:
      folder: made; one that holds a saved model is replaced, any other refused.
      model: any pytree: a `VAE`, or `state.model` with its running statistics.
      about: what to remember, text or anything that JSON holds: the data, the score, the columns.
      builder: "package.module:function", which makes a model of this structure.
      arguments: its keyword arguments, as JSON holds them.

    Raises:
      CheckpointError: the folder can't be written, or the builder makes another model.
      ImportError: safetensors is missing.

    >>> from flax import nnx
    >>> from jaxvae import VAE, StandardNormal, nn
    >>> make = lambda *shapes: nn.Conditional(nn.MLP, nn.NormalHead(), *shapes, rngs=nnx.Rngs(0))
    >>> model = VAE(make((3,), (2,)), make((2,), (3,)), StandardNormal((2,)))
    >>> folder = save_model(f"{tempfile.mkdtemp()}/mine", model, about="three columns")
    >>> [file.name for file in sorted(folder.iterdir())]
    ['README.md', 'SHA256SUMS', 'model.json', 'weights.safetensors']
    >>> load_model(folder).encode(jnp.ones(3)).mean().shape
    (2,)
    """
    folder, model, safetensors = Path(folder), functional(model), _safetensors("save_model")
    _refuse_other(folder)
    leaves = {p: leaf for p, leaf in paths(model).items() if is_key(leaf) or _is_number(leaf)}
    description, constants, why = None, {}, None
    if builder is not None:
        _same_structure(folder, model, _call(folder, builder, arguments or {}, (_root(builder),)))
    else:
        try:
            description, constants = describe(model)
            again = rebuild(description, leaves | constants, _roots(description))
            if jax.tree.structure(again) != jax.tree.structure(model):
                raise NotDescribedError("model holds what its description doesn't show")
        except (NotDescribedError, *NOT_BUILT) as error:
            description, constants, why = None, {}, str(error).splitlines()[0]
            warnings.warn(
                f"save_model: {why}; only load_model(folder, like=model) will read this folder: "
                'move it to a module, or give builder="package.module:function"',
                stacklevel=3,
            )
    arrays = {name: _array(leaf) for name, leaf in (leaves | constants).items()}
    manifest = {
        "format": FORMAT,
        "versions": {name: version_of(name) for name in PACKAGES},
        "about": about,
        "model": description,
        "why_not": why,
        "builder": builder,
        "arguments": None if builder is None else dict(arguments or {}),
        "arrays": {name: _shape(leaf) for name, leaf in (leaves | constants).items()},
    }
    try:
        text = json.dumps(manifest, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_model: about or arguments is not what JSON holds: {error}") from None
    files = {MANIFEST: text, WEIGHTS: safetensors.save(arrays)}
    sums = "".join(f"{_sum(data)}  {name}\n" for name, data in files.items())
    _write(folder, files | {CARD: _card(folder, model, manifest).encode(), SUMS: sums.encode()})
    return folder


@checked
def load_model(
    folder: str | Path, *, like: object = None, trust: str | Collection[str] = ()
) -> Any:
    """The model that `save_model` wrote, or the best one of a run of `fit`, every byte verified.

    Nothing but classes of jaxvae and Flax and functions of JAX is used, so that a folder from
    elsewhere runs no code, unless its package is trusted. What needs it is a `Network`, as in
    `state.model`.

    Args:
      folder: what `save_model` wrote, a run's folder with such a folder `model` in it, or one with
        checkpoints, whose `Checkpoints(folder, config={"builder": ..., "arguments": {...}})` says
        what builds it.
      like: a model of the same structure, shapes and dtypes, where the folder can't say what
        builds it. Its values don't matter.
      trust: packages whose classes and functions may run: "mypackage", or several.

    Raises:
      CorruptCheckpointError: a byte is not what was written.
      CheckpointError: there is no model, it is of another structure or version, or needs a package
        that is missing or not trusted.
    """
    folder, trusted = Path(folder), (trust,) if isinstance(trust, str) else tuple(trust)
    if not _is_saved(folder) and _is_saved(folder / "model"):
        folder = folder / "model"
    if not _is_saved(folder):
        return _of_run(folder, like, trusted)
    manifest, data = _read(folder)
    arrays = _arrays(folder, manifest, data)
    if like is None and manifest["builder"] is not None:
        like = _call(folder, manifest["builder"], manifest["arguments"], trusted)
    if like is not None:
        wanted = functional(like)
        return restore(folder, {p: arrays[p] for p in arrays if not _of_constant(p)}, wanted)
    if manifest["model"] is None:
        raise CheckpointError(
            f"{folder} doesn't say what builds its model, as {manifest['why_not']}; give "
            "load_model(folder, like=model) one of the same structure"
        )
    try:
        return rebuild(manifest["model"], arrays, trusted)
    except (NotDescribedError, *NOT_BUILT) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{folder} can't be built: {why}{_others(manifest)}") from None


@checked
def model_info(folder: str | Path) -> dict[str, Any]:
    """What a saved model's folder says of it: `about`, `versions`, `arrays`, `builder`, ..."""
    folder = Path(folder)
    folder = folder if _is_saved(folder) or not _is_saved(folder / "model") else folder / "model"
    return {name: value for name, value in _read(folder)[0].items() if name != "model"}


def _safetensors(owner: str) -> Any:
    try:
        return import_module("safetensors.numpy")
    except ImportError:
        raise ImportError(f"{owner} needs safetensors: pip install safetensors") from None


def _is_saved(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / SUMS).is_file()


def _is_number(leaf: Tree) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, (bool, int, float)) or (
        dtype is not None
        and (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))
    )


def _array(leaf: Tree) -> np.ndarray:
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")


def _shape(leaf: Tree) -> dict[str, Any]:
    data = _array(leaf)
    key = {"key": str(jax.random.key_impl(leaf))} if is_key(leaf) else {}
    return {"dtype": data.dtype.name, "shape": list(data.shape), **key}


def _of_constant(name: str) -> bool:
    return name.startswith("constant ")


def _root(name: str) -> str:
    return name.split(":")[0].split(".")[0]


def _roots(description: Tree) -> tuple[str, ...]:
    """The packages that a description names."""
    text = json.dumps(description)
    return tuple({_root(n) for n in re.findall(r'"(?:name|class|activation)": "([^"]+)"', text)})


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _call(folder: Path, builder: str, arguments: Mapping[str, Any], trusted: Trusted) -> Any:
    try:
        return functional(resolve(builder, trusted, trusted)(**arguments))
    except NotDescribedError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except TypeError as error:
        raise CheckpointError(f"{folder}: {builder} with {arguments} failed: {error}") from None


def _same_structure(folder: Path, model: Tree, built: Tree) -> None:
    restore(f"{folder}: the model", paths(functional(model)), built)


def _of_run(folder: Path, like: Tree, trusted: tuple[str, ...]) -> Any:
    runs = [f for f in (folder, folder / "checkpoints") if checkpoint_files(f)]
    if not runs:
        what = "isn't there" if not folder.exists() else "holds no model and no checkpoint"
        raise CheckpointError(f"{folder} {what}; expected what save_model or a run of fit wrote")
    best = best_checkpoint(runs[0])
    if like is None:
        given = read_checkpoint(best if best.is_file() else best / "main.ckpt", leaves=False).info
        config = _unflattened(given.get("given", {}))
        if "builder" not in config:
            raise CheckpointError(
                f"{folder} holds checkpoints that don't say what builds their model; give "
                "load_model(folder, like=model), or the next run Checkpoints(folder, "
                'config={"builder": "package.module:function", "arguments": {}})'
            )
        like = _call(folder, config["builder"], config.get("arguments", {}), trusted)
    return load_checkpoint(best, functional(like))


def _unflattened(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, of the paths under which a checkpoint keeps it."""
    config: dict[str, Any] = {}
    for path, value in given.items():
        if path.startswith("config['"):
            *above, last = re.findall(r"\['([^']*)'\]|\[(\d+)\]", path)
            at: Any = config
            for name, index in above:
                at = at.setdefault(name or int(index), {})
            at[last[0] or int(last[1])] = value
    return _with_lists(config)


def _with_lists(tree: Tree) -> Any:
    if not isinstance(tree, dict):
        return tree
    parts = {name: _with_lists(part) for name, part in tree.items()}
    return (
        [parts[i] for i in sorted(parts)] if parts and all(type(n) is int for n in parts) else parts
    )


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest and the weights' bytes, verified."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        sums = {name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}
        files = {name: (folder / name).read_bytes() for name in (MANIFEST, WEIGHTS)}
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be read: {Path(error.filename or '').name}: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise CorruptCheckpointError(f"{folder} is damaged: {SUMS} isn't text") from None
    changed = [name for name, data in files.items() if _sum(data) != sums.pop(name, None)]
    if changed or sums:
        raise CorruptCheckpointError(
            f"{folder} is damaged: the bytes of {[*changed, SUMS][0]} have changed since they were "
            "written"
        )
    manifest = json.loads(files[MANIFEST])
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {manifest.get('format')}, this jaxvae reads {FORMAT}; it was "
            f"written by jaxvae {manifest.get('versions', {}).get('jaxvae')}"
        )
    return manifest, files[WEIGHTS]


def _arrays(folder: Path, manifest: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    _safetensors("load_model")
    from safetensors import deserialize

    found = {}
    for name, stored in deserialize(data):
        of = manifest["arrays"][name]
        dtype = jnp.dtype(of["dtype"])
        array = np.frombuffer(bytes(stored["data"]), dtype).reshape(of["shape"])
        if "key" in of:
            found[name] = jax.random.wrap_key_data(jnp.asarray(array), impl=of["key"])
        else:  # one of 64 bits stays NumPy's where JAX has none
            kept = jax.dtypes.canonicalize_dtype(dtype) == dtype
            found[name] = jnp.array(array) if kept else array
    if missing := manifest["arrays"].keys() - found.keys():
        raise CheckpointError(f"{folder} has no array {sorted(missing)[0]}")
    return found


def _others(manifest: Mapping[str, Any]) -> str:
    here = {name: version_of(name) for name in PACKAGES}
    other = [f"{n} {v} then and {here[n]} here" for n, v in manifest["versions"].items()
             if n in here and v != here[n]]  # fmt: skip
    return f" ({', '.join(other)})" if other else ""


def _refuse_other(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, expected a folder to make")
    names = {path.name for path in folder.iterdir()}
    if names - {MANIFEST, WEIGHTS, CARD, SUMS}:
        raise CheckpointError(f"{folder} holds other files; give a folder of the model's own")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        for name, data in files.items():
            with (part / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        part.chmod(0o755)
        if folder.exists():
            old = part.with_suffix(".old")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old)
        else:
            part.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _card(folder: Path, model: Tree, manifest: Mapping[str, Any]) -> str:
    arrays = manifest["arrays"]
    number = sum(int(np.prod(a["shape"], dtype=np.int64)) for a in arrays.values())
    about = manifest["about"]
    told = about if isinstance(about, str) else json.dumps(about, indent=2) if about else ""
    if manifest["builder"]:
        given = ", ".join(f"{k}={v!r}" for k, v in manifest["arguments"].items())
        how = f'trust="{_root(manifest["builder"])}"'
        built = f"`{manifest['builder']}` with ({given}) builds it."
    elif manifest["model"] is None:
        how = "like=model"
        built = f"It needs a model of the same structure, as {manifest['why_not']}."
    else:
        mine = [r for r in _roots(manifest["model"]) if r not in ("jaxvae", "flax", "jax")]
        how = f"trust={sorted(mine)}" if mine else ""
        built = "model.json says what builds it."
    lines = [f"| `{name}` | {a['dtype']} | {a['shape']} |" for name, a in arrays.items()]
    versions = ", ".join(f"{n} {v}" for n, v in manifest["versions"].items() if v != "unknown")
    return "\n".join(
        [f"# {folder.name}", "", f"A{a_class_of(model)[1:]} of {number:,} numbers.",
         *(["", told] if told else []),
         "", "```python", "from jaxvae import nn", "",
         f"model = nn.load_model({', '.join(filter(None, [repr(folder.name), how]))})", "```",
         "", f"{built} Written with {versions}.", "",
         "| array | dtype | shape |", "|---|---|---|", *lines, ""]
    )  # fmt: skip
