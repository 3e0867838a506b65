"""What one version of JAX needs until it is gone; `import jaxvae` sees to it."""

import os
from collections.abc import MutableMapping

import jax

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def without_ynn_reductions(environment: MutableMapping[str, str], version: tuple[int, ...]) -> None:
    """Add `-reduce` to the kinds of YNN fusions in XLA_FLAGS, where they can end the process.

    On CPU, jax 0.10.2 and 0.11.0 hand sums of products to YNNPACK, which writes past its buffers at
    rank 7 or 8 (jax issue 39257): a segmentation fault. Fusions of matrix products stay. The flag
    is read when JAX first looks for devices, so `import jaxvae` has to come before the first array;
    where XLA_FLAGS holds the flag already, it stays as it is.

    Args:
      environment: `os.environ`.
      version: `jax.__version_info__`.

    >>> environment = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    >>> without_ynn_reductions(environment, (0, 10, 2))
    >>> environment["XLA_FLAGS"]
    '--xla_cpu_enable_fast_math=false --xla_cpu_experimental_ynn_fusion_type=-reduce'
    """
    flags = environment.get("XLA_FLAGS", "")
    if version[:3] in ((0, 10, 2), (0, 11, 0)) and FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {FLAG}=-reduce".strip()


without_ynn_reductions(os.environ, jax.__version_info__)
