"""What is timed: the same network, optimiser, data, batch and likelihood for everyone.

Binary pixels under a Bernoulli likelihood, N(0, I), a diagonal Gaussian posterior, Adam 1e-3;
initial weights of variance 1 / fan-in, biases 0. W1 to W5 train, E1 and E2 estimate log p(x).
"""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """One job.

    Args:
      name: W1 and so on.
      about: in words.
      network: mlp, conv (4x4 kernels of stride 2, 32 and 64 channels, then a dense layer), or
        top-down (conv features, then levels of dense residual blocks).
      hidden: widths of the encoder's dense layers; the decoder mirrors them.
      latent: dimension of z.
      activation: relu or tanh.
      batch: rows a step.
      num_samples: k; the objective is the ELBO for 1, IWAE for more. Of an estimate of log p(x),
        samples or chains for an example.
      seeds: how many models.
      chunk: steps between two looks at the clock (and for several seeds, of each model).
      looks: how many looks; the first one holds compilation.
      job: train, log_marginal (importance sampling) or ais.
      shape: of an image.
      levels: of latents.
      sigma: of a Gaussian likelihood of fixed width; Bernoulli without it.
      betas: every seed is trained at each of them.
      dtype: what networks compute in; parameters and losses stay float32.
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
    job: str = "train"
    shape: tuple[int, int, int] = (28, 28, 1)
    levels: int = 1
    sigma: float | None = None
    betas: tuple[float, ...] = (1.0,)
    dtype: str = "float32"

    @property
    def runs(self) -> int:
        """How many models, each from a seed at a beta."""
        return self.seeds * len(self.betas)

    @property
    def examples(self) -> int:
        """Between two looks."""
        return self.chunk * self.batch * self.runs


def plain(w: Workload, owner: str, *, networks: tuple[str, ...] = ("mlp", "conv")) -> None:
    """NotImplementedError unless the job is to train one of these networks, as in W1 to W4."""
    usual = (w.sigma, w.betas, w.dtype) == (None, (1.0,), "float32")
    if w.job != "train" or w.network not in networks or not usual:
        raise NotImplementedError(f"{owner} is not timed on {w.name}: {w.about}")


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
        Workload(
            "W5", "hierarchy of eight levels, 32x32x3", "top-down", (256,), 16, "relu", 128, 1, 1,
            10, 8, shape=(32, 32, 3), levels=8,
        ),
        Workload(
            "E1", "log p(x) by 1000 samples, network of W1", "mlp", (400,), 20, "relu", 32, 1000, 1,
            1, 8, job="log_marginal",
        ),
        Workload(
            "E2", "log p(x) by AIS, 16 chains, 50 temperatures, network of W1", "mlp", (400,), 20,
            "relu", 8, 16, 1, 1, 6, job="ais",
        ),
    )
}  # fmt: skip
TEMPERATURES, LEAPFROG, PILOTS = 50, 10, 4  # of AIS


def pixels(num_examples: int, shape: tuple[int, int, int] = (28, 28, 1)) -> np.ndarray:
    """Stand-in images: two soft blobs each, binarized, [n, *shape] float32 of 0. and 1.

    Speed does not depend on what the pixels say, and these need no download; a network learns
    them, so that final losses can be compared. Smaller images than 28x28 have smaller blobs.
    """
    rng = np.random.default_rng(0)
    size = min(1.0, shape[0] / 28)
    axes = np.arange(shape[0]), np.arange(shape[1])
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    blobs = np.zeros((num_examples, *shape[:2]))
    for _ in range(2):
        centre = size * rng.uniform(6, 22, (num_examples, 1, 1, 2))
        width = size * rng.uniform(2, 5, (num_examples, 1, 1))
        blobs += np.exp(-np.sum((grid - centre) ** 2, axis=-1) / (2 * width**2))
    grey = np.repeat(np.clip(blobs, 0.05, 0.95)[..., None], shape[2], axis=-1)
    return (rng.uniform(size=grey.shape) < grey).astype(np.float32)
