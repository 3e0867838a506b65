"""Hyper-parameters that change with the step: `schedule(step) -> value`, as optax makes them."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


def warn_if_unfinished(name: str, schedule: Callable[[Any], Any], begun: int, end: int) -> None:
    """Warn of a warm-up that is longer than the run: the schedule never reaches where it leads.

    Args:
      name: of the hyper-parameter.
      schedule: of the step count.
      begun: the first step.
      end: the step after the last.
    """
    seen = max(float(schedule(s)) for s in np.unique(np.linspace(begun, end - 1, 64, dtype=int)))
    least = float(schedule(2**30))
    if seen < least - 1e-3 * abs(least):
        warnings.warn(
            f"{name} rises to {least:g}, but only {seen:g} is reached in the {end - begun} steps "
            "of this run; make its warm-up shorter or the run longer",
            stacklevel=3,
        )
