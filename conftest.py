"""Strictness for all tests: nothing broadcasts across ranks, promotes or reuses a key.

Most of their time is XLA's, so it leaves programs as they are (`make slow` runs all optimised), and
keeps them: both workers share what either compiled, and the next run finds what did not change.
"""

import gc
import os
import sys
import zlib
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree

import numpy as np

CACHE = Path(__file__).parent / ".pytest_cache"

if sys.dont_write_bytecode:  # every process that a test starts would compile all it imports
    os.environ |= {"PYTHONPYCACHEPREFIX": f"{CACHE}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

# read when jax is imported; an XLA that does not know a flag aborts
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{CACHE}/jax")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10.") and os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    else "",
)

import jax  # noqa: E402
import pytest  # noqa: E402

programs = list(CACHE.glob("jax/*"))
if "PYTEST_XDIST_WORKER" not in os.environ and sum(p.stat().st_size for p in programs) > 2**30:
    rmtree(CACHE / "jax")  # nothing else would: it only grows, a quarter of that a full run

collect_ignore = ["tests/typed_user.py"]  # pyright reads it, nobody runs it
gc.set_threshold(
    200_000, 50, 100
)  # tracing makes many objects and little garbage: a tenth is saved

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def x64():
    """Float64 for one test: what is exact is then held to 1e-9 or better."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs():
    """What a file compiled is let go after it, or a worker would grow to 6 GB."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _same_draws_in_any_order(request):
    """A file's RNG begins every test by the test's name, whichever ran before on this worker."""
    if rng := getattr(request.module, "RNG", None):
        seed = zlib.crc32(request.node.name.encode())
        rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
