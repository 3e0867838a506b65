"""Beside `sampler_prior.py`: a Gaussian process by basis functions, as NumPyro has it.

    taskset -c 0 uv run python -m experiments.recipes.peers.hilbert_space [--side 16 --seeds 1]

Riutort-Mayol et al. 2023, "Practical Hilbert space approximate Bayesian Gaussian processes for
probabilistic programming": sines of a box, weighed by the kernel's spectral density. A box of
[-2, 2] and 18 sines a side have the covariances of length-scales from 0.3 to 0.9 to 0.03 at worst.
16 x 16, seed 0: 152 effective draws a second (process 1.1, decoder 189), RMSE 0.126 (0.125, 0.206).
The same data, chains and settings as the recipe, whose grids it takes; three models in turn.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.contrib.hsgp.approximation import hsgp_matern
from numpyro.handlers import seed, trace

from experiments.common.command import command
from experiments.common.samplers import measured, timed
from experiments.recipes.sampler_prior import DRAWS, EXPECTED, WARM_UP, areas, both, process

BOX = 2.0  # half a side of the box, with the places in its middle
SINES = 18  # a dimension, which makes 324 coordinates


def basis(places: jax.Array, ell: Any) -> jax.Array:
    return hsgp_matern(places - 0.5, 2.5, 1.0, ell, BOX, SINES)


def main(side: int = 10, seeds: int = 3) -> None:
    line, keys = jnp.linspace(0.0, 1.0, side), jax.random.split(jax.random.key(5), 3)[:seeds]
    places = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    expected, truth = jnp.full(side**2, EXPECTED), partial(areas, partial(process, places))
    worlds = [trace(seed(truth, key)).get_trace(expected) for key in keys]
    models = {"basis": partial(areas, partial(basis, places)), **both(places)}
    runs = {name: timed(model, WARM_UP, DRAWS) for name, model in models.items()}
    for key, world in zip(jax.random.split(jax.random.key(1), 3), worlds, strict=False):
        data, risk = (expected, world["cases"]["value"]), world["risk"]["value"]
        chains = {name: run(key, data) for name, run in runs.items()}
        exact = chains["process"]["risk"]
        for name, chain in chains.items():
            apart = np.abs(chain["risk"].mean(0) - exact.mean(0)) / exact.std(0)
            found = measured(chain, risk) | {"apart from the process": float(apart.mean())}
            print(name, {what: round(value, 3) for what, value in found.items()}, flush=True)


if __name__ == "__main__":
    command(main, __doc__)
