"""What is timed: the same network, optimiser, data, batch and likelihood for everyone.

Pixels in [0, 1] under a Bernoulli likelihood, N(0, I), a diagonal Gaussian posterior, Adam 1e-3.
"""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """One training job.

    Args:
      name: W1 and so on.
      about: in words.
      network: mlp, or conv (4x4 kernels of stride 2, channels 1-32-64, then a dense layer).
      hidden: widths of the encoder's dense layers; the decoder mirrors them.
      latent: dimension of z.
      activation: relu or tanh.
      batch: rows a step.
      num_samples: k; the objective is the ELBO for 1, IWAE for more.
      seeds: how many models.
      chunk: steps between two looks at the clock (and for several seeds, of each model).
      looks: how many looks; the first one holds compilation.
    """

    name: str
    about: str
    network: str
    hidden: tuple[int, ...]
    latent: int
    activation: str
    batch: int
    num_samples: int
    seeds: int
    chunk: int
    looks: int

    @property
    def examples(self) -> int:
        """Between two looks."""
        return self.chunk * self.batch * self.seeds


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "MLP 784-400-z20", "mlp", (400,), 20, "relu", 128, 1, 1, 100, 12),
        Workload(
            "W2", "IWAE k=50, 784-200-200-z50", "mlp", (200, 200), 50, "tanh", 100, 50, 1, 10, 10
        ),
        Workload(
            "W3", "convolutions 1-32-64, 256, z32", "conv", (256,), 32, "relu", 128, 1, 1, 15, 12
        ),
        Workload("W4", "sixteen seeds of W1", "mlp", (400,), 20, "relu", 128, 1, 16, 100, 3),
    )
}


def pixels(num_examples: int) -> np.ndarray:
    """Stand-in images: two soft blobs each, [n, 28, 28, 1] float32 in [0.05, 0.95].

    Speed does not depend on what the pixels say, and these need no download; a network learns
    them, so that final losses can be compared.
    """
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(28), np.arange(28), indexing="ij"), axis=-1)
    blobs = np.zeros((num_examples, 28, 28))
    for _ in range(2):
        centre = rng.uniform(6, 22, (num_examples, 1, 1, 2))
        width = rng.uniform(2, 5, (num_examples, 1, 1))
        blobs += np.exp(-np.sum((grid - centre) ** 2, axis=-1) / (2 * width**2))
    return np.clip(blobs, 0.05, 0.95).astype(np.float32)[..., None]
