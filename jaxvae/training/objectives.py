"""Objectives, as a step calls them: which hyper-parameters they take."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from inspect import Parameter, signature, unwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxvae.checks import Tree, is_key

PLACES = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def check_hyper(owner: str, objective: Callable[..., Any], given: Iterable[str]) -> None:
    """Raise TypeError unless `objective(model, key, x, **hyper)` takes these and needs no others.

    What `functools.partial` binds is held against the same.

    >>> from jaxvae import elbo, iwae
    >>> check_hyper("here", elbo, ["beta"])
    >>> check_hyper("here", iwae, [])
    Traceback (most recent call last):
    TypeError: here: iwae needs num_samples; bind it, functools.partial(iwae, num_samples=...)
    """
    try:
        hyper, bound, kinds, of_example = _parameters(objective)
    except (TypeError, ValueError):  # compiled, and says nothing
        return
    name = name_of(objective)
    unknown = [n for n in given if n not in hyper]
    unknown += [n for n in bound if n not in hyper and n not in of_example]
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        warm_up = (
            "; to warm up, train with jaxvae.elbo under beta and go on from its state, or weigh "
            "the rate inside the log-weights, as docs/new_method.md does"
        )
        free = [n for n in hyper if n not in bound]
        raise TypeError(
            f"{owner}: {name} takes no {unknown[0]}, expected "
            f"{listed(free) if free else 'no hyper-parameter'}"
            f"{warm_up * (unknown[0] == 'beta' and 'num_samples' in hyper)}"
        )
    for n, value in bound.items():
        if n in hyper and n not in given and _is_schedule(value, hyper[n]):
            raise TypeError(
                f"{owner}: {name} has {n} bound to a schedule, expected a number; give the "
                f"schedule to the run, jaxvae.fit(..., {n}=schedule), and bind its end value "
                f"elsewhere, functools.partial({name}, {n}=...)"
            )
    needed = [
        n
        for n, p in hyper.items()
        if p.default is Parameter.empty and n not in given and n not in bound
    ]
    if needed and Parameter.VAR_POSITIONAL not in kinds:
        raise TypeError(
            f"{owner}: {name} needs {listed(needed)}; bind "
            f"{'it' if len(needed) == 1 else 'them'}, "
            f"functools.partial({name}, {', '.join(f'{n}=...' for n in needed)})"
        )


def means_of(aux: Tree) -> dict[str, Any]:
    """The mean of every named part of aux, a NamedTuple or a dict, that is an array of numbers.

    >>> means_of({"total_correlation": jnp.array([1.0, 3.0])})
    {'total_correlation': Array(2., dtype=float32)}
    """
    named = aux._asdict() if hasattr(aux, "_asdict") else aux if isinstance(aux, Mapping) else {}
    return {str(name): jnp.mean(part) for name, part in named.items() if _has_mean(part)}


def _has_mean(part: Tree) -> bool:
    dtype = getattr(part, "dtype", jnp.float32 if isinstance(part, (int, float)) else None)
    numbers = dtype is not None and (
        jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    )
    return numbers and jnp.size(part) > 0


def _parameters(
    objective: Any,
) -> tuple[dict[str, Parameter], dict[str, Any], set[Any], list[str]]:
    """Hyper-parameters, what is bound of them, every parameter's kind, and those of an example."""
    bound: dict[str, Any] = {}
    own: dict[str, Parameter] = {}
    places = 3
    while True:
        if isinstance(objective, partial):  # whose own signature refuses an unknown name in silence
            bound = objective.keywords | bound
            places += len(objective.args)
            objective = objective.func
        elif (lifted := getattr(objective, "lifts", None)) is not None:  # see `batching.lifts`
            every = signature(objective).parameters.values()
            own |= {p.name: p for p in every if p.kind is Parameter.KEYWORD_ONLY}
            objective = lifted
        elif hasattr(objective, "__signature__"):
            break
        elif hasattr(objective, "__wrapped__"):
            objective = objective.__wrapped__
        else:
            break
    every = signature(objective).parameters.values()
    of_example = [p.name for p in every if p.kind in PLACES][:places]
    hyper = {p.name: p for p in every if p.kind not in VARIADIC and p.name not in of_example}
    return hyper | own, bound, {p.kind for p in every}, of_example


def _is_schedule(value: Any, parameter: Parameter) -> bool:
    """Whether a number is wanted and a function of the step was given; others may be meant."""
    if not callable(value):
        return False
    if isinstance(parameter.default, (int, float)):
        return True
    try:
        return [*signature(value).parameters] in (["count"], ["step"])  # as optax's and ours
    except (TypeError, ValueError):
        return False


def check_spelling(owner: str, step: Any, given: Iterable[str], names: Iterable[str]) -> None:
    """Raise TypeError where what its objective doesn't take is nearly one of the owner's names."""
    while isinstance(step, partial):
        step = step.func
    objective = getattr(step, "objective", step)
    try:
        hyper, _, kinds, _ = _parameters(objective)
    except (TypeError, ValueError):
        return
    for name in given:
        near = get_close_matches(name, names, n=1)
        if near and name not in hyper and Parameter.VAR_KEYWORD not in kinds:
            raise TypeError(
                f"{owner}: {name_of(objective)} takes no {name}; did you mean {near[0]}?"
            )


@contextmanager
def names_what_is_static(
    owner: str, objective: Callable[..., Any], run: Callable[..., Any], hyper: dict[str, Any]
) -> Iterator[None]:
    """Where `run(**hyper)` can't be traced, a line with the hyper-parameter that it must know.

    It is traced again with a number, one, for what is traced: which of them must it know?
    """
    try:
        yield
    except TypeError as error:
        ones = {n: np.ones((), h.dtype).item() for n, h in hyper.items() if _is_traced_number(h)}

        def trace(*names: str) -> None:
            known = {name: one for name, one in ones.items() if name not in names}
            jax.eval_shape(lambda: run(**hyper | known))

        if not (static := static_names(ones, trace)):
            raise
        name, called = static[0], name_of(objective)
        raise TypeError(
            f"{owner}: {name} is traced, expected a Python number, as {called} fixes a shape by "
            f"it, or a choice; bind it, functools.partial({called}, {name}=...); over many values "
            "loop in Python, a run each"
        ) from error


def static_names(names: Iterable[str], trace: Callable[..., None]) -> list[str]:
    """Those that a program must know: `trace` fails with one of them traced, and not with none."""

    def fails(*traced: str) -> bool:
        try:
            trace(*traced)
        except Exception:
            return True
        return False

    static = [name for name in names if fails(name)]
    return [] if fails() else static


def _is_traced_number(value: object) -> bool:
    return isinstance(value, Tracer) and not is_key(value) and not value.ndim


def listed(names: Iterable[str]) -> str:
    """Names as they are spoken: a, b and c.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def name_of(objective: Any) -> str:
    """What it is called, under all that was put around it."""
    while True:
        if isinstance(objective, partial):
            objective = objective.func
        elif hasattr(objective, "lifts"):
            objective = objective.lifts
        elif hasattr(objective, "__wrapped__"):
            objective = unwrap(objective)
        else:
            break
    return getattr(objective, "__name__", type(objective).__name__)
