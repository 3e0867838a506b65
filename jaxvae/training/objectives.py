"""Objectives, as a step calls them: which hyper-parameters they take."""

from collections.abc import Callable, Iterable
from functools import partial
from inspect import Parameter, signature, unwrap
from typing import Any


def check_hyper(owner: str, objective: Callable[..., Any], given: Iterable[str]) -> None:
    """Raise TypeError unless `objective(model, key, x, **hyper)` takes these and needs no others.

    >>> from jaxvae import elbo, iwae
    >>> check_hyper("here", elbo, ["beta"])
    >>> check_hyper("here", iwae, [])
    Traceback (most recent call last):
    TypeError: here: iwae needs num_samples; bind it, functools.partial(iwae, num_samples=...)
    """
    try:
        every = signature(objective).parameters.values()
    except (TypeError, ValueError):  # compiled, and says nothing
        return
    name, kinds = name_of(objective), {p.kind for p in every}
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    of_example = [p.name for p in every if p.kind in places][:3]
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    hyper = {p.name: p for p in every if p.kind not in variadic and p.name not in of_example}
    unknown = [n for n in given if n not in hyper]
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        warm_up = (
            "; to warm up, train with jaxvae.elbo under beta and go on from its state, or weigh "
            "the rate inside the log-weights, as docs/new_method.md does"
        )
        raise TypeError(
            f"{owner}: {name} takes no {unknown[0]}, expected "
            f"{', '.join(hyper) or 'no hyper-parameter'}"
            f"{warm_up * (unknown[0] == 'beta' and 'num_samples' in hyper)}"
        )
    needed = [n for n, p in hyper.items() if p.default is Parameter.empty and n not in given]
    if needed and Parameter.VAR_POSITIONAL not in kinds:
        raise TypeError(
            f"{owner}: {name} needs {' and '.join(needed)}; bind "
            f"{'it' if len(needed) == 1 else 'them'}, "
            f"functools.partial({name}, {', '.join(f'{n}=...' for n in needed)})"
        )


def name_of(objective: Any) -> str:
    """What it is called, under all that was put around it."""
    while isinstance(objective, partial) or hasattr(objective, "__wrapped__"):
        objective = objective.func if isinstance(objective, partial) else unwrap(objective)
    return getattr(objective, "__name__", type(objective).__name__)
