"""Optax's optimisers, as a step calls them."""

import re
from typing import Annotated, Any

import jax
import optax

from jaxvae.checks import Tree, a_class_of


def check_optimizer(owner: str, name: str, value: Any) -> None:
    """Raise TypeError unless `value` has optax's `init` and `update`."""
    if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
        named = callable(value) and hasattr(value, "__name__")
        what = f"the function {value.__name__}" if named else a_class_of(value)
        raise TypeError(
            f"{owner}: {name} is {what}, expected an optax optimizer, for example optax.adam(1e-3)"
        )


Optimizer = Annotated[optax.GradientTransformation, check_optimizer]
"""An optimiser of optax."""


def update(
    owner: str,
    optimizer: Optimizer,
    gradient: Tree,
    opt_state: Tree,
    params: Tree,
    **loss: Any,
) -> tuple[Any, Any]:
    """`optimizer.update`, with what there is of the loss for those of optax's that ask for it.

    `loss` is by optax's names: `value`, the loss at params; `grad`; `value_fn`, params -> the loss.
    A TypeError, in the name of `owner`, where the optimiser asks for more, or does not take all.

    >>> polyak = optax.polyak_sgd()  # its step is value / |grad|^2
    >>> w = jax.numpy.array(2.0)
    >>> updates, _ = update("here", polyak, 2.0 * w, polyak.init(w), w, value=w**2)
    >>> float(updates)
    -1.0
    """
    extended = optax.with_extra_args_support(optimizer)
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam takes float ** int
            return extended.update(gradient, opt_state, params, **loss)
    except Exception as error:
        _check_state(owner, optimizer, opt_state, params)
        keywords = "missing .* required keyword-only argument|got an unexpected keyword argument"
        if not (isinstance(error, TypeError) and re.search(keywords, str(error))):
            raise
        raise TypeError(
            f"{owner}: optimizer is given {', '.join(['the gradient', *loss])}, but {error}; "
            "expected one of optax that asks for no more and takes **extra_args"
        ) from error


def _check_state(owner: str, optimizer: Optimizer, opt_state: Tree, params: Tree) -> None:
    """Raise TypeError where a state is that of another optimizer."""
    own = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    if jax.tree.structure(opt_state) != own:
        raise TypeError(
            f"{owner}: opt_state is not one of the step's optimizer; give the same optimizer to "
            "init_state(model, optimizer) and to the step"
        ) from None
