"""What is told of a run without being asked: a posterior collapsed to the prior, points of a sweep
whose loss is no number."""

from math import prod
from typing import Any

import numpy as np
from jax import Array
from jax.core import Tracer

from jaxvae.checks import Tree, warn
from jaxvae.pytrees import paths
from jaxvae.training.callbacks import Run
from jaxvae.training.steps import Metrics, TrainState

NEGLIGIBLE = 0.01  # nats of rate, all latents together: what prints as 0.00 or 0.01
PAID = 0.1  # from where it can fall: less may be a posterior that starts out as the prior
FEWEST = 10  # steps whose rates are averaged, or an epoch: one sampled rate is near 0 by chance


class CollapseWarning:
    """A callback that warns once, where the rate has fallen to 0 or is there when the run ends.

    Of many points it warns once of each.

    It is silent of a rate that never was anything else, as that of a deterministic autoencoder, and
    of one that has not risen yet.
    """

    def begin(self, run: Run) -> None:
        self.run, self.told = run, np.array(False)
        self.most: Any = 0.0
        self.recent: list[np.ndarray] = []

    def __call__(self, state: TrainState, metrics: Metrics, epoch: float, key: Array) -> None:
        del key
        step, last = int(state.step), int(state.step) >= self.run.end
        if "rate" not in metrics or self.told.all():
            return
        sizes = np.shape(metrics["rate"])[1:]
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
        fallen = (rate < NEGLIGIBLE) & (self.most > (0.0 if last else PAID)) & ~self.told
        if fallen.any():
            self.told = self.told | fallen
            _warn(f"fit: at step {step}", rate, fallen, sizes)
        self.most = np.maximum(self.most, rate)


def warn_of_collapse(owner: str, results: Tree, sizes: tuple[int, ...]) -> None:
    """Warn, once, of the points of a sweep whose rate is near 0 at the end and once was not.

    Rates are leaves of the results of that name, [*sizes, ..., steps].
    """
    for path, leaf in paths(results).items():
        if not path.endswith(("['rate']", ".rate")) or isinstance(leaf, Tracer):
            continue
        if leaf.size <= FEWEST * prod(sizes) or not leaf.is_fully_addressable:
            continue
        rates = np.abs(np.asarray(leaf, np.float64)).reshape(prod(sizes), -1)
        rate = rates[:, -FEWEST:].mean(axis=1)
        fallen = (rate < NEGLIGIBLE) & (rates[:, :-FEWEST].max(axis=1) > 0.0)
        if fallen.any():
            return _warn(f"{owner}: at the end", rate, fallen, sizes)
    return None


def warn_of_nonfinite(owner: str, results: Tree, sizes: tuple[int, ...]) -> None:
    """Warn, once, of the points of a sweep that end at a loss, or at one result, not finite."""
    for path, leaf in paths(results).items():
        if path and not path.endswith(("['loss']", ".loss")):
            continue
        if isinstance(leaf, Tracer) or not leaf.size or not leaf.is_fully_addressable:
            continue
        last = np.asarray(leaf, np.float64).reshape(prod(sizes), -1)[:, -1]
        if (bad := ~np.isfinite(last)).any():
            return warn(
                f"{owner}: {'the loss' if path else 'the result'} is {last[bad][0]:g} at the end"
                f"{_points(bad, sizes)}; jaxvae.fit and jaxvae.training.sweep_step stop at the "
                "first such step, and name it and the row",
            )
    return None


def _points(those: np.ndarray, sizes: tuple[int, ...]) -> str:
    """ " at 1 of 4 points, [0, 1]"; nothing where sizes are () and there is one."""
    if not sizes:
        return ""
    at = [str([*map(int, index)]) for index in np.argwhere(those.reshape(sizes))]
    named = ", ".join(at[:5]) + ", ..." * (len(at) > 5)
    return f" at {len(at)} of {those.size} points, {named}"


def _warn(when: str, rate: np.ndarray, fallen: np.ndarray, sizes: tuple[int, ...]) -> None:
    """Of `fallen`, the points in turn; sizes are () where there is one."""
    warn(
        f"{when} the rate is {rate[fallen][0]:.2f} nats{_points(fallen, sizes)}: the "
        "posterior has collapsed to the prior; warm beta up from 0, "
        "beta=optax.linear_schedule(0.0, 1.0, steps), or hold the rate up with "
        "jaxvae.regularizers.free_bits; or p(x|z) is too wide to pay for a code, as with "
        "a sigma of 1: learn it, jaxvae.nn.SharedScaleHead(0.1)",
    )
