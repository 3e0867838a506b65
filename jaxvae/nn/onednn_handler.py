"""The handler of oneDNN's products, onednn.cc: found, compiled once and registered.

It is compiled for a JAX by the machine's C++ compiler and kept in ~/.cache/jaxvae.
"""

import ctypes
import hashlib
import importlib.metadata
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import jax

from jaxvae.checks import warn

TARGET = "jaxvae_convolve"
PACKAGES = "onednn-cpu-gomp", "onednn-devel-cpu-gomp"
SOURCE = Path(__file__).with_name("onednn.cc")


@cache
def ready() -> bool:
    """Whether the handler is registered; where oneDNN is installed, the first call compiles it."""
    try:
        library, header = (_installed(*pair) for pair in zip(PACKAGES, FILES, strict=True))
    except importlib.metadata.PackageNotFoundError:
        return False
    try:
        ctypes.CDLL(str(library))
        handler = ctypes.CDLL(str(_compiled(library, header.parents[2])))
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        warn(
            f"oneDNN is installed but its convolutions can't be built, so that slower products are "
            f"used: {why}",
        )
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler.JaxvaeConvolve), platform="cpu")
    return True


FILES = "libdnnl.so.3", "oneapi/dnnl/dnnl.hpp"


def _installed(package: str, name: str) -> Path:
    (found,) = (f for f in importlib.metadata.files(package) or () if str(f).endswith(name))
    return Path(str(found.locate())).resolve()


def _compiled(library: Path, include: Path) -> Path:
    """The handler for this JAX and this oneDNN, from ~/.cache/jaxvae or compiled into it."""
    interface = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    versions = repr([importlib.metadata.version(name) for name in PACKAGES]).encode()
    made_of = SOURCE.read_bytes() + interface.read_bytes() + versions
    name = hashlib.sha256(made_of).hexdigest()[:16]
    path = Path.home() / ".cache" / "jaxvae" / f"onednn-{name}.so"
    if not path.exists():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("no C++ compiler (c++, g++, clang++) was found; install one")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            subprocess.run(
                [
                    compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-w",
                    f"-I{jax.ffi.include_dir()}", f"-I{include}", str(SOURCE),
                    "-o", str(made), f"-L{library.parent}", f"-l:{library.name}",
                ],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            made.replace(path)
    return path
