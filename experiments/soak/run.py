"""The run: a median regression on whole numbers, and how it is started and compared."""

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

import jaxvae
from jaxvae.checks import is_key
from jaxvae.training import CheckpointError, Checkpoints, read_checkpoint
from jaxvae.training.checkpoints.resuming import checkpoint_files

STEPS = 10  # an epoch
DAY = 86400.0


def absolute_error(weights: jax.Array, key: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
    """Less of x by W and noise of +-1: its gradients are whole numbers."""
    noise = jax.random.rademacher(key, x.shape, jnp.float32)
    return -jnp.abs(x - weights @ noise).sum(), None


def train(folder: Path, said: Path, devices: int, epochs: int, pause: float = 0.0) -> None:
    """The run, or what is left of it; `said` gets its errors and warnings."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), sys.stderr.fileno())
    # a shell's "&" has SIGINT ignored, in every program below it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, set_clock_back)
    faulthandler.register(signal.SIGUSR2)  # to ask where it hangs
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    optimizer = optax.chain(optax.trace(0.5), optax.scale_by_sign(), optax.scale(-(2.0**-10)))
    try:
        jaxvae.fit(
            jaxvae.train_step(absolute_error, optimizer),
            jaxvae.init_state(jnp.zeros((8, 8)), optimizer),
            jax.random.key(0),
            np.random.default_rng(0).integers(-2, 3, (32 * STEPS, 8)).astype(np.float32),
            epochs=epochs,
            batch_size=32,
            steps_per_call=3,
            callbacks=[lambda *_: time.sleep(pause)],
            checkpoints=Checkpoints(folder, share=np.inf if pause else 0.01),  # inf: at every look
            mesh=jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,)),
        )
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def set_clock_back(*_: object) -> None:
    time.time = lambda now=time.time: now() - DAY


def arrays(folder: Path) -> dict[str, np.ndarray]:
    leaves = read_checkpoint(checkpoint_files(folder)[-1]).leaves
    return {p: np.asarray(jax.random.key_data(v) if is_key(v) else v) for p, v in leaves.items()}


def same(path: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return path in a and path in b and a[path].tobytes() == b[path].tobytes()
