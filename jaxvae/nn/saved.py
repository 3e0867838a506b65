"""A trained model as a folder, which a process that never saw its training script reads.

    model.json            what builds the model, the versions, the arrays' shapes, `about`
    weights.safetensors   every array, by its path in the model
    README.md             a card for people; it may be edited
    SHA256SUMS            of the first two, as `sha256sum --check` reads it

The folder is written beside its place and renamed, so that a reader finds a whole one or none.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.checks import Location, Tree, checked, is_key, warn
from jaxvae.nn.descriptions import (
    OF_CONSTANT,
    STOCK,
    NotDescribedError,
    Trusted,
    describe,
    rebuild,
    resolve,
)
from jaxvae.nn.model_folders import (
    CARD,
    FORMAT,
    MANIFEST,
    PACKAGES,
    SUMS,
    WEIGHTS,
    arrays_of,
    as_numpy,
    card,
    checksum,
    is_saved,
    needed_safetensors,
    other_versions,
    read_folder,
    refuse_other,
    root,
    roots,
    shape_of,
    write_folder,
)
from jaxvae.pytrees import constant_leaves, paths, with_constant_leaves
from jaxvae.pytrees.libraries import functional
from jaxvae.training import (
    CheckpointError,
    best_checkpoint,
    checkpoint_files,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
)
from jaxvae.training.checkpoints.files import restore, version_of
from jaxvae.training.checkpoints.resuming import main_file

NOT_BUILT = (KeyError, TypeError, AttributeError, ValueError)  # what other fields end in


@checked
def save_model(
    folder: Location,
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

    >>> import tempfile
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
    if hasattr(model, "opt_state"):
        raise TypeError("save_model: model is a TrainState, expected its model, state.model")
    folder, model, safetensors = Path(folder), functional(model), needed_safetensors("save_model")
    refuse_other(folder)
    leaves, constants = _numbers(paths(model)), _of_constants(model)
    by_path = [*constants]
    description, why = None, None
    if builder is not None:
        arguments = _as_read(arguments or {})
        built = _call(folder, builder, arguments, (root(builder),))
        _restored(f"{folder}: the model", paths(model) | constants, built)
    else:
        try:
            description, found = describe(model)
            constants |= found
            again = rebuild(description, leaves | constants, roots(description))
            if jax.tree.structure(again) != jax.tree.structure(model):
                raise NotDescribedError("model holds what its description doesn't show")
            _warn_of_trust(description, leaves | constants)
        except (NotDescribedError, *NOT_BUILT) as error:
            description, why = None, str(error).splitlines()[0]
            warn(
                f"save_model: {why}; only load_model(folder, like=model) will read this folder: "
                'move it to a module, or give builder="package.module:function"',
            )
    arrays = {name: as_numpy(leaf) for name, leaf in (leaves | constants).items()}
    manifest = {
        "format": FORMAT,
        "versions": {name: version_of(name) for name in PACKAGES},
        "about": about,
        "model": description,
        "why_not": why,
        "builder": builder,
        "arguments": None if builder is None else arguments,
        "constants": by_path,
        "arrays": {name: shape_of(leaf) for name, leaf in (leaves | constants).items()},
    }
    try:
        text = json.dumps(manifest, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_model: about is not what JSON holds: {error}") from None
    files = {MANIFEST: text, WEIGHTS: safetensors.save(arrays)}
    sums = "".join(f"{checksum(data)}  {name}\n" for name, data in files.items())
    told = card(folder, model, manifest).encode(errors="backslashreplace")
    write_folder(folder, files | {CARD: told, SUMS: sums.encode()})
    return folder


def _warn_of_trust(description: Any, arrays: Mapping[str, Any]) -> None:
    """Of a function of jaxvae or Flax that `load_model` won't run unasked."""
    try:
        rebuild(description, arrays, {*roots(description)} - {*STOCK})
    except NotDescribedError as error:
        warn(f"save_model: load_model will refuse this folder: {error}")


@checked
def load_model(folder: Location, *, like: object = None, trust: str | Collection[str] = ()) -> Any:
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

    >>> import tempfile
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> folder = save_model(f"{tempfile.mkdtemp()}/mine", model, about="three columns")
    >>> load_model(folder, like=model).encode(jnp.ones(3)).mean().shape
    (1,)
    """
    folder, trusted = Path(folder), (trust,) if isinstance(trust, str) else tuple(trust)
    if not is_saved(folder) and is_saved(folder / "model"):
        folder = folder / "model"
    if not is_saved(folder):
        return _of_run(folder, like, trusted)
    manifest, data = read_folder(folder)
    arrays = arrays_of(folder, manifest, data)
    if like is None and manifest["builder"] is not None:
        like = _call(folder, manifest["builder"], manifest["arguments"], trusted)
    if like is not None:
        names = manifest.get("constants")  # a folder of old doesn't say what its `Constant`s held
        stored = {
            name: leaf
            for name, leaf in arrays.items()
            if not name.startswith(OF_CONSTANT) or name in (names or ())
        }
        return _restored(folder, stored, functional(like), old=names is None)
    if manifest["model"] is None:
        raise CheckpointError(
            f"{folder} doesn't say what builds its model, as {manifest['why_not']}; give "
            "load_model(folder, like=model) one of the same structure"
        )
    try:
        return rebuild(manifest["model"], arrays, trusted)
    except (NotDescribedError, *NOT_BUILT) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{folder} can't be built: {why}{other_versions(manifest)}") from None


@checked
def model_info(folder: Location) -> dict[str, Any]:
    """What a saved model's folder says of it: `about`, `versions`, `arrays`, `builder`, ...

    >>> import tempfile
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> folder = save_model(f"{tempfile.mkdtemp()}/mine", model, about="three columns")
    >>> model_info(folder)["about"]
    'three columns'
    """
    folder = Path(folder)
    folder = folder if is_saved(folder) or not is_saved(folder / "model") else folder / "model"
    return {name: value for name, value in read_folder(folder)[0].items() if name != "model"}


def _is_number(leaf: Tree) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, (bool, int, float)) or (
        dtype is not None
        and (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))
    )


def _numbers(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if is_key(leaf) or _is_number(leaf)}


def _of_constants(model: Tree) -> dict[str, Any]:
    """What the model's `Constant`s hold, by the names under which it is stored."""
    return _numbers({OF_CONSTANT + path: leaf for path, leaf in constant_leaves(model).items()})


def _restored(owner: object, stored: Mapping[str, Any], like: Tree, *, old: bool = False) -> Any:
    """`like` with all that was stored, or, of a folder of old, all but what `Constant`s hold."""
    leaves = {name: leaf for name, leaf in stored.items() if not name.startswith(OF_CONSTANT)}
    model = restore(owner, leaves, like)
    if old:
        return model
    inside = {f"[{name!r}]": leaf for name, leaf in stored.items() if name not in leaves}
    found = restore(owner, inside, _of_constants(like))
    return with_constant_leaves(
        model, {name.removeprefix(OF_CONSTANT): leaf for name, leaf in found.items()}
    )


def _as_read(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments as `load_model` will read them: a tuple becomes a list."""
    try:
        return json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_model: arguments is not what JSON holds: {error}") from None


def _call(folder: Path, builder: str, arguments: Mapping[str, Any], trusted: Trusted) -> Any:
    try:
        return functional(resolve(builder, trusted, trusted)(**arguments))
    except NotDescribedError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except TypeError as error:
        raise CheckpointError(f"{folder}: {builder} with {arguments} failed: {error}") from None


def _of_run(folder: Path, like: Tree, trusted: tuple[str, ...]) -> Any:
    runs = [f for f in (folder, folder / "checkpoints") if checkpoint_files(f)]
    if not runs:
        what = "isn't there" if not folder.exists() else "holds no model and no checkpoint"
        raise CheckpointError(f"{folder} {what}; expected what save_model or a run of fit wrote")
    if like is None:
        info = read_checkpoint(main_file(newest_checkpoint(runs[0])), leaves=False).info
        config = info.get("config") or _unflattened(info.get("given", {}))  # one of old has paths
        if "builder" not in config:
            raise CheckpointError(
                f"{folder} holds checkpoints that don't say what builds their model; give "
                "load_model(folder, like=model), or the next run Checkpoints(folder, "
                'config={"builder": "package.module:function", "arguments": {}})'
            )
        like = _call(folder, config["builder"], config.get("arguments", {}), trusted)
    return load_checkpoint(best_checkpoint(runs[0]), functional(like))


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
