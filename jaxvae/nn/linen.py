"""Networks of Flax Linen as `Network`s."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import linen
from jax import Array

from jaxvae.checks import Tree
from jaxvae.pytrees.libraries import Bound, is_batch_norm, network, roles_of
from jaxvae.pytrees.networks import BATCH, Network

Args = tuple[Any, ...]
Context = linen.module.InterceptorContext
IN_TRAINING = ("train", "training", "is_training", "is_train")
IN_USE = ("deterministic", "use_running_average", "inference")


def linen_network(module: linen.Module, variables: Mapping[str, Any], **flags: bool) -> Network:
    """A network of Linen with its variables, as `module.init` makes them.

    The collection "params" trains; every other, "batch_stats" for instance, is state. `train`,
    `training` and `is_training` of the module's call are true in training and false in use,
    `deterministic`, `use_running_average` and `inference` the other way round. A batch norm's
    `axis_name` has to be "batch".

    Args:
      module: of `flax.linen`.
      variables: its collections.
      **flags: arguments of the call that are the same in training and in use.

    Raises:
      ValueError: when called in training, where a batch norm has no axis: it would take the
        statistics of every example alone.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen
    >>> dense = linen.Dense(3)
    >>> linen_network(dense, dense.init(jax.random.key(0), jnp.ones(2)))(jnp.ones(2)).shape
    (3,)
    """
    params = {name: v for name, v in variables.items() if name == "params"}
    rest = {name: v for name, v in variables.items() if name != "params"}
    bind = _Linen(module, tuple(sorted(flags.items())))
    return network(bind, (params, rest), [*roles_of(params), *roles_of(rest, "state")])


@dataclass(frozen=True)
class _Linen:
    module: Any
    flags: tuple[tuple[str, bool], ...]

    def __call__(self, tree: Tree, key: Array | None) -> tuple[Any, Callable[[], Any]]:
        params, rest = tree

        def call(f: Callable[..., Any], *args: Any, **given: Any) -> Any:
            nonlocal rest
            taken = inspect.signature(f).parameters
            mode = {name: key is not None for name in IN_TRAINING if name in taken}
            mode |= {name: key is None for name in IN_USE if name in taken}
            given = mode | dict(self.flags) | given
            collections = {**params, **rest}
            if key is None:
                return self.module.apply(collections, *args, method=f, **given)
            refuse = _refuse_frozen if not self.flags else _refuse_axis
            with linen.intercept_methods(refuse):
                y, changed = self.module.apply(
                    collections, *args, method=f, rngs={"params": key}, mutable=[*rest], **given
                )
            rest = {**rest, **changed}
            return y

        return Bound(self.module, call), lambda: (params, rest)


def _refuse_axis(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
) -> Any:
    if is_batch_norm(context.module) and context.module.axis_name is None:
        raise ValueError(
            f"linen_network: {context.module.name} has axis_name None, expected "
            f'BatchNorm(axis_name="{BATCH}"), the axis that jaxvae.batched maps'
        )
    return call(*args, **kwargs)


def _refuse_frozen(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Context
) -> Any:
    if is_batch_norm(context.module) and context.method_name == "__call__":
        of_call = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
        if of_call or (of_call is None and context.module.use_running_average):
            raise ValueError(
                f"linen_network: {context.module.name} takes its running statistics in training, "
                f"expected a call of {', '.join((*IN_TRAINING, *IN_USE))} that says which; what "
                "must stay goes in jaxvae.Constant"
            )
    return _refuse_axis(call, args, kwargs, context)
