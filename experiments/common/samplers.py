"""Samplers beside one another: a NumPyro model under NUTS, timed, and what two of them found."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import NUTS, init_to_median

Chain = dict[str, Any]


def timed(model: Callable[..., None], warm_up: int, draws: int) -> Callable[[Any, Any], Chain]:
    """(key, arguments of the model) -> the draws of a chain, every one's gradients ("steps") and
    the seconds of processor time that warm-up and draws took, without compilation."""
    kernel, programs = NUTS(model, init_strategy=init_to_median), []

    def chain(state: Any, data: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, data, {})
            found = kernel.postprocess_fn(data, {})(state.z)
            return state, found | {"steps": state.num_steps}

        return jax.lax.scan(step, state, length=warm_up + draws)[1]

    def run(key: Any, data: Any) -> Chain:
        state = kernel.init(key, warm_up, None, data, {})
        programs[:] = programs or [jax.jit(chain).lower(state, data).compile()]
        start = time.process_time()
        found = jax.block_until_ready(programs[0](state, data))
        seconds = time.process_time() - start
        return {name: np.asarray(of[warm_up:]) for name, of in found.items()} | {"seconds": seconds}

    return run


def measured(chain: Chain, truth: Any = None) -> dict[str, float]:
    """What a chain is worth that has draws of risk [n], and of the numbers ell and sigma."""
    risk, truth = chain["risk"], None if truth is None else np.asarray(truth)
    low, high = np.quantile(risk, [0.05, 0.95], axis=0)
    every = np.column_stack([risk, chain["ell"], chain["sigma"]])
    ess = np.asarray(effective_sample_size(every[None]))
    found = {
        "seconds": chain["seconds"],
        "gradients a draw": chain["steps"].mean(),
        "effective draws, median": np.median(ess),
        "effective draws a second, median": np.median(ess) / chain["seconds"],
        "effective draws a second, least": ess.min() / chain["seconds"],
        "width of the 90 % bands": (high - low).mean(),
    }
    if truth is not None:
        found["error to the truth (RMSE)"] = ((risk.mean(0) - truth) ** 2).mean() ** 0.5
        found["truth in the 90 % bands"] = ((low < truth) & (truth < high)).mean()
    return {what: float(number) for what, number in found.items()}


def in_turns(
    models: dict[str, Any], key: Any, data: list[Any], truths: list[Any], warm_up: int, draws: int
) -> list[list[Chain]]:
    """A chain of either model for every data set, with the same key; prints means and each number.

    Args:
      models: two of them, by name.
      key: a PRNG key.
      data: the arguments of the models.
      truths: the risk of each data set, or None.
      warm_up: steps.
      draws: steps after them.
    """
    samplers = [timed(model, warm_up, draws) for model in models.values()]
    keys = jax.random.split(key, len(data))
    pairs = [[run(key, given) for run in samplers] for key, given in zip(keys, data, strict=True)]
    table: dict[str, list[float]] = {}
    for pair, truth in zip(pairs, truths, strict=True):
        numbers = [measured(chain, truth) for chain in pair]
        for what in numbers[0]:
            for label, of in zip(models, numbers, strict=True):
                table.setdefault(f"{what}, {label}", []).append(of[what])
        first, second = (chain["risk"] for chain in pair)
        apart = np.abs(first.mean(0) - second.mean(0)) / first.std(0)
        table.setdefault("means apart, in standard deviations", []).append(apart.mean())
        a, b = (of["effective draws a second, median"] for of in numbers)
        table.setdefault("times as many a second", []).append(b / a)
    for what, values in table.items():
        print(f"  {what:43s}{np.mean(values):9.3g}   ({', '.join(f'{v:.3g}' for v in values)})")
    return pairs
