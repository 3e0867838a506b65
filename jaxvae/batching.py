"""From one example to a batch: `batched`, what a batch has in common, and conditional models."""

from collections.abc import Callable
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Key, Tree, a_class_of, an, check_leaves, check_pair, check_shape, checked
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.networks import BATCH

Objective = Callable[..., tuple[Array, Any]]
M = TypeVar("M")
A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
P = ParamSpec("P")


def lifts(objective: Callable[..., Any]) -> Callable[[F], F]:
    """Mark a function as made of an objective, whose hyper-parameters it takes besides its own.

    `training.objectives.check_hyper` asks.
    """

    def mark(function: F) -> F:
        vars(function)["lifts"] = objective
        return function

    return mark


@checked
def batched(
    objective: Callable[Concatenate[M, Array, Any, P], tuple[Array, A]],
) -> Callable[Concatenate[M, Array, Any, P], tuple[Array, A]]:
    """An objective of one example, lifted to a batch: `(model, key, xs, **hyper)`.

    It returns (mean bound, aux): the leaves of `xs` and of `aux` have the batch as their leading
    axis, named "batch". The key is split inside, one for each example; hyper-parameters are shared,
    and so is the model: what it computes of its parameters alone is computed once for the batch.

    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> objective = jax.jit(batched(elbo))
    >>> bound, terms = objective(model, jax.random.key(0), jnp.ones((7, 3)), beta=2.0)
    >>> bound.shape, terms.rate.shape
    ((), (7,))
    """

    check_example(objective)

    @lifts(objective)
    @checked
    def batch_objective(
        model: M, key: Key, xs: Any, *args: P.args, **hyper: P.kwargs
    ) -> tuple[Array, A]:
        keys = jax.random.split(key, number_of_rows(xs))
        pure = functional(model)

        def one(key: Array, x: Any) -> tuple[Array, A]:
            return _pair(objective(pure, key, x, *args, **hyper))

        bounds, aux = jax.vmap(one, axis_name=BATCH)(keys, xs)
        return jnp.mean(bounds), aux

    vars(batch_objective)["batched"] = True
    return batch_objective


def _pair(found: Tree) -> tuple[Array, Any]:
    of_several = isinstance(found, (tuple, list))
    if not (of_several and len(found) == 2):
        what = f"{an(type(found).__name__)} of {len(found)}" if of_several else a_class_of(found)
        raise TypeError(
            f"batched: objective returned {what}, expected (bound, aux); aux is None, or a dict of "
            "what else to follow"
        )
    bound, aux = found
    check_shape("batched", "objective's bound", bound, (), "a number, nats: sum over the event")
    return bound, aux


def check_example(objective: Callable[..., Any]) -> None:
    """ValueError where it is what `batched` made."""
    while isinstance(objective, partial):
        objective = objective.func
    if getattr(objective, "batched", False):
        raise ValueError(
            "batched: objective is batched already, expected that of one example; train_step "
            "maps the batch itself: jaxvae.train_step(objective, optimizer)"
        )


@checked
def conditioned(
    objective: Callable[Concatenate[M, Array, Any, P], R],
) -> Callable[Concatenate[Callable[[Any], M], Array, tuple[Any, Any], P], R]:
    """The objective of a conditional VAE (CVAE), a callable pytree y -> `Model`, at pairs (x, y).

    log p(x|y) >= E_q[log p(x|z, y)] - KL(q(z|x, y) || p(z|y)): each of the three may use y.
    Sohn, Lee & Yan 2015.

    Args:
      objective: `(model, key, x, **hyper) -> (bound, aux)`, or an evaluator such as `log_marginal`.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal, elbo
    >>> encode = decode = lambda v: Normal(v, jnp.ones(2))
    >>> model = Partial(lambda y: VAE(encode, decode, Normal(y, jnp.ones(2))))
    >>> xs, ys = jnp.zeros((7, 2)), jnp.ones((7, 2))
    >>> _, terms = batched(conditioned(elbo))(model, jax.random.key(0), (xs, ys))
    >>> terms.rate.shape, float(terms.rate[0])  # 1/2 |y|^2
    ((7,), 1.0)
    """

    @lifts(objective)
    def conditional_objective(
        model: Callable[[Any], M], key: Key, xy: tuple[Any, Any], *args: P.args, **hyper: P.kwargs
    ) -> R:
        check_pair("conditioned", "data", xy, "(xs, ys)")
        x, y = xy
        return objective(model(y), key, x, *args, **hyper)

    return conditional_objective


def batch_mean(value: R) -> R:
    """The mean over the batch that `batched` maps of what each example has, an array or a tree.

    Raises:
      ValueError: no batch is mapped here: one example alone, or `jax.vmap` by hand.

    >>> squares = batched(lambda model, key, x: (batch_mean(x) ** 2, None))
    >>> float(squares(None, jax.random.key(0), jnp.array([1.0, 3.0]))[0])
    4.0
    """
    _rows_of_batch()
    return jax.lax.pmean(value, BATCH)


def gather(tree: R) -> R:
    """What every example of the batch that `batched` maps has, stacked along a leading axis.

    It is one array for all examples, so that what is computed of it is computed once.

    Raises:
      ValueError: no batch is mapped here, or one of a single row, which compares with nothing.

    >>> to_the_top = batched(lambda model, key, x: (jnp.max(gather(x)) - x, None))
    >>> float(to_the_top(None, jax.random.key(0), jnp.array([1.0, 3.0]))[0])
    1.0
    """
    if _rows_of_batch() < 2:
        raise ValueError(
            "batched: xs has 1 row, expected at least 2, as the objective compares the examples of "
            "a batch"
        )
    return jax.lax.all_gather(tree, BATCH)


def check_rows(owner: str, name: str, tree: Tree, rows: int) -> None:
    """Raise ValueError unless every leaf has a leading axis of so many rows."""
    check_leaves(owner, name, tree)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if sizes != {(rows,)}:
        raise ValueError(f"{owner}: {name} has leading axes {sorted(sizes)}, expected ({rows},)")


def number_of_rows(xs: Tree, owner: str = "batched", name: str = "xs") -> int:
    """The length of the leading axis that all leaves share; an error names whose argument it is."""
    for part in jax.tree.leaves(xs, is_leaf=lambda part: isinstance(part, list)):
        shapes = {jnp.shape(row) for row in jax.tree.leaves(part)}
        if isinstance(part, list) and len(shapes) == 1:
            raise TypeError(
                f"{owner}: {name} holds a list of {len(part)}, which JAX reads as a tree, not as "
                "rows; expected an array, np.stack(rows), or for a tree of several arrays a tuple"
            )
    check_leaves(owner, name, xs)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1 or not all(sizes) or not all(size[0] for size in sizes):
        raise ValueError(
            f"{owner}: {name} has leading axes {sorted(sizes)}, expected one common batch axis of "
            "at least 1"
        )
    return sizes.pop()[0]


def _rows_of_batch() -> int:
    try:
        return jax.lax.axis_size(BATCH)
    except NameError:
        raise ValueError(
            "batched: objective is called without the batch that it takes a statistic of; call "
            "jaxvae.batched(objective)(model, key, xs), as jax.vmap by hand makes no batch"
        ) from None
