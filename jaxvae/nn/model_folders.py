"""The files of a saved model: written whole or not at all, verified when read, and a card.

The folder is written beside its place and renamed, so that a reader finds a whole one or none.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.checks import Tree, a_class_of, is_key
from jaxvae.training import CheckpointError, CorruptCheckpointError
from jaxvae.training.checkpoints.durable import make_folder, publish
from jaxvae.training.checkpoints.files import version_of

FORMAT = 1
MANIFEST, WEIGHTS, CARD, SUMS = "model.json", "weights.safetensors", "README.md", "SHA256SUMS"
PACKAGES = ("jaxvae", "jax", "flax", "numpy")


def needed_safetensors(owner: str) -> Any:
    try:
        return import_module("safetensors.numpy")
    except ImportError:
        raise ImportError(f"{owner} needs safetensors: pip install safetensors") from None


def is_saved(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / SUMS).is_file()


def as_numpy(leaf: Tree) -> np.ndarray:
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")


def shape_of(leaf: Tree) -> dict[str, Any]:
    data = as_numpy(leaf)
    key = {"key": str(jax.random.key_impl(leaf))} if is_key(leaf) else {}
    return {"dtype": data.dtype.name, "shape": list(data.shape), **key}


def root(name: str) -> str:
    return name.split(":")[0].split(".")[0]


def roots(description: Tree) -> tuple[str, ...]:
    """The packages that a description names."""
    text = json.dumps(description, ensure_ascii=False)
    return tuple({root(n) for n in re.findall(r'"(?:name|class|activation)": "([^"]+)"', text)})


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_folder(folder: Path) -> tuple[dict[str, Any], bytes]:
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
    changed = [name for name, data in files.items() if checksum(data) != sums.pop(name, None)]
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


def arrays_of(folder: Path, manifest: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    needed_safetensors("load_model")
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
    return {name: found[name] for name in manifest["arrays"]}  # not in safetensors' order, any one


def other_versions(manifest: Mapping[str, Any]) -> str:
    here = {name: version_of(name) for name in PACKAGES}
    other = [f"{n} {v} then and {here[n]} here" for n, v in manifest["versions"].items()
             if n in here and v != here[n]]  # fmt: skip
    return f" ({', '.join(other)})" if other else ""


def refuse_other(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, expected a folder to make")
    names = {path.name for path in folder.iterdir()}
    if names - {MANIFEST, WEIGHTS, CARD, SUMS}:
        raise CheckpointError(f"{folder} holds other files; give a folder of the model's own")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    part = None
    try:
        make_folder(folder.parent)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        for name, data in files.items():
            (part / name).write_bytes(data)
        part.chmod(0o755)
        publish(part, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def card(folder: Path, model: Tree, manifest: Mapping[str, Any]) -> str:
    arrays = manifest["arrays"]
    number = sum(int(np.prod(a["shape"], dtype=np.int64)) for a in arrays.values())
    about = manifest["about"]
    told = about or ""
    if not isinstance(told, str):
        told = json.dumps(told, indent=2, ensure_ascii=False)
    if manifest["builder"]:
        given = ", ".join(f"{k}={v!r}" for k, v in manifest["arguments"].items())
        how = f'trust="{root(manifest["builder"])}"'
        built = f"`{manifest['builder']}` with ({given}) builds it."
    elif manifest["model"] is None:
        how = "like=model"
        built = f"It needs a model of the same structure, as {manifest['why_not']}."
    else:
        mine = [r for r in roots(manifest["model"]) if r not in ("jaxvae", "flax", "jax")]
        how = f"trust={sorted(mine)}" if mine else ""
        built = "model.json says what builds it."
    lines = [f"| `{name}` | {a['dtype']} | {a['shape']} |" for name, a in arrays.items()]
    versions = ", ".join(f"{n} {v}" for n, v in manifest["versions"].items())
    return "\n".join(
        [f"# {folder.name}", "", f"A{a_class_of(model)[1:]} of {number:,} numbers.",
         *(["", told] if told else []),
         "", "```python", "from jaxvae import nn", "",
         f"model = nn.load_model({', '.join(filter(None, [repr(folder.as_posix()), how]))})", "```",
         "", f"{built} Written with {versions}.", "",
         "| array | dtype | shape |", "|---|---|---|", *lines, ""]
    )  # fmt: skip
