"""What `fit` tells of a run without being asked: that its posterior has collapsed to the prior."""

import warnings

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
        self.run, self.told, self.most = run, False, 0.0
        self.recent = np.empty(0)

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        rates, step = np.abs(metrics.get("rate", np.empty(0))), int(state.step)
        if rates.ndim != 1 or self.told:
            return
        rates = rates[np.isfinite(rates)]
        if step == self.run.step:  # gone on from there: all rates so far
            self.most = np.max(rates, initial=0.0)
            return
        self.recent = np.concatenate([self.recent, rates])
        last = step >= self.run.end
        if len(self.recent) < FEWEST or not (float(epoch).is_integer() or last):
            return
        rate, self.recent = np.mean(self.recent), self.recent[-FEWEST:]
        if rate < NEGLIGIBLE and self.most > (0.0 if last else PAID):
            self.told = True
            warnings.warn(
                f"fit: at step {step} the rate is {rate:.2f} nats: the posterior has collapsed to "
                "the prior; warm beta up from 0, beta=optax.linear_schedule(0.0, 1.0, steps), or "
                "hold the rate up with jaxvae.regularizers.free_bits",
                stacklevel=6,
            )
        self.most = max(self.most, rate)
