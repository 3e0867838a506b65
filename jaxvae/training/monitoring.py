"""What `fit` tells of a run without being asked: that its posterior has collapsed to the prior."""

import warnings
from typing import Any

import numpy as np
from jax import Array

from jaxvae.training.callbacks import Run
from jaxvae.training.steps import Metrics, TrainState

NEGLIGIBLE = 0.01  # nats of rate, all latents together: what prints as 0.00 or 0.01
PAID = 0.1  # from where it can fall: less may be a posterior that starts out as the prior
FEWEST = 10  # steps whose rates are averaged, or an epoch: one sampled rate is near 0 by chance


class CollapseWarning:
    """A callback that warns once, where the rate has fallen to 0 or is there when the run ends.

    It is silent of a rate that never was anything else, as that of a deterministic autoencoder, and
    of one that has not risen yet.
    """

    def begin(self, run: Run) -> None:
        self.run, self.told = run, False
        self.most: Any = 0.0
        self.recent: list[np.ndarray] = []

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        step, last = int(state.step), int(state.step) >= self.run.end
        if "rate" not in metrics or self.told:
            return
        rates = np.abs(metrics["rate"]).reshape(len(metrics["rate"]), -1)  # of each point, if many
        rates = rates[np.isfinite(rates).all(axis=1)]
        if step == self.run.step:  # gone on from there: all rates so far
            self.most = np.max(rates, axis=0, initial=0.0)
            return
        recent = np.concatenate([*self.recent, rates])
        self.recent = [recent]
        if len(recent) < FEWEST or not (float(epoch).is_integer() or last):
            return
        rate, self.recent = np.mean(recent, axis=0), [recent[-FEWEST:]]
        fallen = (rate < NEGLIGIBLE) & (self.most > (0.0 if last else PAID))
        if fallen.any():
            self.told = True
            points = f" at {fallen.sum()} of {len(rate)} points" if len(rate) > 1 else ""
            warnings.warn(
                f"fit: at step {step} the rate is {rate[fallen][0]:.2f} nats{points}: the "
                "posterior has collapsed to the prior; warm beta up from 0, "
                "beta=optax.linear_schedule(0.0, 1.0, steps), or hold the rate up with "
                "jaxvae.regularizers.free_bits; or p(x|z) is too wide to pay for a code, as with "
                "a sigma of 1: learn it, jaxvae.nn.SharedScaleHead()",
                stacklevel=6,
            )
        self.most = np.maximum(self.most, rate)
