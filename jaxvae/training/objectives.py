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
    by_place = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    example = [p.name for p in every if p.kind in by_place][:3]
    hyper = {p.name: p for p in every if p.name not in example}
    kinds = {p.kind for p in every}
    name = name_of(objective)
    for unknown in [n for n in given if n not in hyper]:
        if Parameter.VAR_KEYWORD not in kinds:
            takes = ", ".join(hyper) or "no hyper-parameter"
            instead = (
                "; to warm up, train with jaxvae.elbo under beta and go on from its state, or "
                "weigh the rate inside the log-weights, as docs/new_method.md does"
            )
            raise TypeError(
                f"{owner}: {name} takes no {unknown}, expected {takes}"
                f"{instead * (unknown == 'beta' and 'num_samples' in hyper)}"
            )
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    missing = [
        n for n, p in hyper.items()
        if p.default is Parameter.empty and p.kind not in variadic and n not in given
    ]  # fmt: skip
    if missing and Parameter.VAR_POSITIONAL not in kinds:
        bound = ", ".join(f"{n}=..." for n in missing)
        raise TypeError(
            f"{owner}: {name} needs {' and '.join(missing)}; bind "
            f"{'it' if len(missing) == 1 else 'them'}, functools.partial({name}, {bound})"
        )


def name_of(objective: Any) -> str:
    """What it is called, under all that was put around it."""
    while isinstance(objective, partial) or hasattr(objective, "__wrapped__"):
        objective = objective.func if isinstance(objective, partial) else unwrap(objective)
    return getattr(objective, "__name__", type(objective).__name__)
