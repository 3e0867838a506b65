"""Any network as a pure function of its parameters, its state, a key and its input.

    y, state' = f(params, state, key, x)

Batch statistics, spectral norms, dropout and leaves that are no arrays, of Flax NNX, Linen and
Equinox, all take this one form, `Network`. Without a key it is the network in use: it draws nothing
and its state stays. With one, from `in_training`, it is the network in training.

How state' leaves a loss through whatever maps, loops and estimators are around the call: as a
gradient. `_leave` is the identity of y, and its derivative by `sink`, zeros, is said to be
(1, state'). Reverse mode adds that up over examples, samples and calls, and `new_state` divides.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxvae.checks import Tree

BATCH = "batch"  # the axis that `batched` maps, along which networks take statistics
NOISE = 2**31  # an objective's own draws come of split, which folds in 0, 1, ...
M = TypeVar("M")
Arrays = dict[str, Any]  # by path


Bind = Callable[[Any, Any], tuple[Any, Callable[[], Any]]]
Leaves = dict[str, Any]  # by path


class Structure(NamedTuple):
    """What of a network is not traced.

    Args:
      bind: `(tree, key) -> (callable, read)`: its library's network in use, or in training where
        there is a key, and what reads the tree again after a call.
      treedef: of the network as its library made it.
      paths: of its leaves; of a variable that has two, as tied weights have, the first.
      roles: of its leaves: "params", "state", "static", or of noise "key" and "count".
      static: the leaves that are no arrays.
    """

    bind: Bind
    treedef: Any
    paths: tuple[str, ...]
    roles: tuple[str, ...]
    static: tuple[Any, ...]


@jax.tree_util.register_pytree_with_keys_class
class Network:
    """A network that holds more than parameters; called, and read, as it was.

    `init_state` makes one of every network of a model that needs it.

    Args:
      params: path -> array that trains.
      state: path -> array that a call in training changes and no optimiser does.
      structure: the rest.
      key: of the noise in training; None in use.
      sink: path -> zeros, whose gradient is the new state.
    """

    params: Leaves
    state: Leaves
    structure: Structure
    key: Any
    sink: Leaves | None

    def __init__(
        self,
        params: Arrays,
        state: Arrays,
        structure: Structure,
        key: Array | None = None,
        sink: Arrays | None = None,
    ):
        vars(self).update(params=params, state=state, structure=structure, key=key, sink=sink)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(lambda module: module(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle probe for these before __init__ has run
            raise AttributeError(name)
        return _read(self, lambda module: getattr(module, name))

    def _replace(self, **changes: Any) -> "Network":
        return Network(**{**vars(self), **changes})

    def _bound(self) -> tuple[Any, Callable[[], Any]]:
        """New, so that what a call changes in it changes nowhere else."""
        of = self.structure
        if self.state.keys() != {
            p for p, r in zip(of.paths, of.roles, strict=True) if r == "state"
        }:
            raise ValueError(
                "network: its state is missing, expected a model with running statistics; of "
                "averaged parameters jaxvae.training.averaged_model(state) makes one"
            )
        key = jax.random.key(0) if self.key is None else self.key
        static = iter(of.static)
        leaf: dict[str, Callable[[int, str], Any]] = {
            "params": lambda _, path: self.params[path],
            "state": lambda _, path: self.state[path],
            "static": lambda *_: next(static),
            "key": lambda i, _: jax.random.fold_in(key, i),
            "count": lambda *_: jnp.zeros((), jnp.uint32),
        }
        named = enumerate(zip(of.roles, of.paths, strict=True))
        tree = jax.tree.unflatten(of.treedef, [leaf[role](i, path) for i, (role, path) in named])
        return of.bind(tree, self.key)

    def _run(self, method: Callable[[Any], Any]) -> Any:
        try:
            module, read = self._bound()
            y = method(module)
        except NameError as error:
            if "axis name" not in str(error):
                raise
            raise ValueError(self._without_axis(str(error))) from None
        except Exception as error:
            if type(error).__name__ != "TraceContextError":
                raise
            raise ValueError(
                "network: a module of NNX with state or noise is called inside jax.jit, "
                "jax.checkpoint, jax.vmap or a loop of its own, expected nnx.jit, nnx.remat, "
                f"nnx.vmap, nnx.scan, or a Python loop: {str(error).split(' (http')[0]}"
            ) from None
        if self.key is None or not self.sink:
            return y
        found: dict[str, Any] = {}
        for path, leaf in zip(self.structure.paths, jax.tree.leaves(read()), strict=True):
            if leaf is not self.state.get(path):  # of a layer with two names, what was called
                found[path] = leaf
        found = {**self.state, **found}
        return _left(y, self.sink, {p: _sent(self.state[p], found[p]) for p in self.sink})

    def _without_axis(self, found: str) -> str:
        if BATCH not in found:
            axis = found.partition("axis name: ")[2].partition(".")[0]
            return (
                f"network: its statistics are along an axis named {axis}, expected "
                f'axis_name="{BATCH}", the one that jaxvae.batched maps'
            )
        if self.key is None:
            return (
                "network: it takes statistics of a batch in use, so its mode is fixed, expected an "
                "argument of its call, train or use_running_average, that is set for it"
            )
        return (
            "batched: a network in training takes statistics of a batch, and there is none here; "
            "call jaxvae.batched(objective)(model, key, xs), as jax.vmap by hand makes no batch"
        )

    def __repr__(self) -> str:
        params, state = (sum(map(np.size, part.values())) for part in (self.params, self.state))
        return f"Network({params:,} parameters, {state:,} of state)"

    def tree_flatten_with_keys(self) -> Any:
        names = ("params", "state", "key", "sink")
        return [(jax.tree_util.GetAttrKey(n), vars(self)[n]) for n in names], self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, children: tuple[Any, ...]) -> "Network":
        params, state, key, sink = children
        return cls(params, state, structure, key, sink)


def _read(network: Network, get: Callable[[Any], Any]) -> Any:
    """A part of a network: a method or a layer is called in the network's own way."""
    part = get(network._bound()[0])
    called = callable(part) and not hasattr(part, "dtype")  # a variable of NNX is callable too
    return _Part(network, get, part) if called else network._run(get)


@dataclass(frozen=True)
class _Part:
    network: Network
    get: Callable[[Any], Any]
    value: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.network._run(lambda module: self.get(module)(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return _read(self.network, lambda module: getattr(self.get(module), name))


# What leaves a call: 1 and the new state in one array, so that a map makes copies of both or none.


def _sent(old: Tree, new: Tree) -> Array:
    """Zeros where nothing changed; of integers and booleans the change, which is exact."""
    dtype = _sink_dtype(old)
    if new is old:
        return jnp.zeros(1 + np.size(old), dtype)
    if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        new = _whole(new) - _whole(old)
    sent = jnp.concatenate([jnp.ones(1, dtype), jnp.ravel(new).astype(dtype)])
    return jax.lax.stop_gradient(sent)


def _whole(leaf: Tree) -> Array:
    return jnp.asarray(leaf).astype(jnp.int32)


def _sink_dtype(leaf: Tree) -> Any:
    dtype = jnp.result_type(leaf)
    return dtype if jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4 else jnp.float32


def _left(y: Tree, sink: dict[str, Array], sent: dict[str, Array]) -> Any:
    """`_leave` of an output that a map has copies of where it has copies of what is sent."""
    nothing = 0.0 * sum(array[0].astype(jnp.float32) for array in sent.values())

    def copied(leaf: Tree) -> Any:
        dtype = jnp.result_type(leaf)
        floats = jnp.issubdtype(dtype, jnp.inexact)
        return leaf + jnp.asarray(nothing).astype(dtype) if floats else leaf

    return _leave(jax.tree.map(copied, y), sink, sent)


@jax.custom_vjp
def _leave(y: Tree, sink: dict[str, Array], sent: dict[str, Array]) -> Any:
    del sink, sent
    return y


_leave.defvjp(
    lambda y, sink, sent: (y, sent),
    lambda sent, slope: (slope, sent, jax.tree.map(jnp.zeros_like, sent)),
)


def _is_network(part: object) -> bool:
    return isinstance(part, Network)


def parameters(model: Tree) -> Any:
    """The model without what its networks keep that no optimiser changes."""
    return jax.tree.map(
        lambda part: part.params if _is_network(part) else part, model, is_leaf=_is_network
    )


def networks(model: Tree) -> list[Network]:
    """Those of the model that hold more than parameters."""
    return [part for part in jax.tree.leaves(model, is_leaf=_is_network) if _is_network(part)]


def _each(f: Callable[[int, Network], Network], model: M) -> M:
    number = iter(range(sys.maxsize))

    def of_part(part: Any) -> Any:
        return f(next(number), part) if _is_network(part) else part

    return jax.tree.map(of_part, model, is_leaf=_is_network)


def without_state(model: M) -> M:
    """The model with nothing but what trains."""
    return _each(lambda _, network: network._replace(state={}), model)


def with_state(model: M, states: list[Any], sinks: list[Any] | None = None) -> M:
    """`without_state` undone; sinks, where there are, are for a gradient."""
    return _each(
        lambda i, network: network._replace(state=states[i], sink=sinks and sinks[i]), model
    )


def in_training(model: M, key: Array) -> M:
    """The model as an objective sees it in training, at one example whose key this is.

    Batch norms take the statistics of the batch that `batched` maps, dropout draws. Without it the
    model is as in use: running statistics, no noise.

    >>> from flax import nnx
    >>> from jaxvae.pytrees.libraries import functional
    >>> dropout = functional(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    >>> dropout(jnp.ones(4)).tolist(), in_training(dropout, jax.random.key(2))(jnp.ones(4)).tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 2.0])
    """
    if not networks(model):
        return model
    noise = jax.random.fold_in(key, jnp.uint32(NOISE))
    return _each(lambda i, network: network._replace(key=jax.random.fold_in(noise, i)), model)


def of_each(stack: M, count: int) -> M:
    """A stack of `count` models, for a loop: each network has a key of its own in each."""

    def apart(_: int, network: Network) -> Network:
        if network.key is None:
            return network
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        return network._replace(key=fold(network.key, jnp.arange(count)))

    return _each(apart, stack)


def statistics(model: Tree) -> list[Any]:
    """The state of each of its networks."""
    return [network.state for network in networks(model)]


def quiet(model: M) -> M:
    """The model with calls that leave no state, for forward-mode derivatives, which can't."""
    return _each(lambda _, network: network._replace(sink=None), model)


def sinks_of(states: list[Any]) -> list[Any]:
    """Zeros, a gradient by which is what `new_state` reads."""
    return jax.tree.map(lambda leaf: jnp.zeros(1 + np.size(leaf), _sink_dtype(leaf)), states)


def new_state(states: list[Any], slopes: list[Any]) -> list[Any]:
    """The mean over the calls of what each left; the state as it is where no call was.

    It also stays where that is not finite, as an optimiser that skips such a step expects.
    """

    def mean(old: Tree, slope: Array) -> Array:
        count, total = slope[0], slope[1:].reshape(jnp.shape(old))
        value = total / jnp.maximum(count, 1)
        dtype, good = jnp.result_type(old), (count > 0) & jnp.all(jnp.isfinite(value))
        if not jnp.issubdtype(dtype, jnp.inexact):
            value = _whole(old) + jnp.round(value).astype(jnp.int32)
        return jnp.where(good, value.astype(dtype), old)

    return jax.tree.map(mean, states, slopes)
