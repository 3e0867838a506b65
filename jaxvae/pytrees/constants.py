"""Constants, which never train, and the leaves of a tree and of what its constants hold."""

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxvae.checks import Tree, a_class_of, written
from jaxvae.pytrees.libraries import functional
from jaxvae.pytrees.reprs import short

T = TypeVar("T")


class _Density(Protocol):
    def log_prob(self, event: Tree, /) -> Any: ...


D = TypeVar("D", bound=_Density)


@jax.tree_util.register_pytree_node_class
class Constant:
    """Any value (a distribution, a network, an array) as a pytree with no leaves.

    Every float leaf of a model trains, and weight decay shrinks even those that get no gradient.
    A `Constant` has no leaf for either to reach, whatever the optimiser. Attributes and calls go
    through to the value, so a constant distribution is a distribution, a constant network is
    called like a network, and `kl_divergence` looks inside.

    Args:
      value: any pytree of concrete arrays.

    Raises:
      TypeError: if a leaf is traced. Inside `jit` even `jnp.zeros` is: build the constant outside,
        or from NumPy arrays. A value that a sweep varies is no constant but a hyper-parameter of
        the objective.

    >>> from jaxvae import Laplace
    >>> prior = Constant(Laplace(jnp.zeros(2), jnp.ones(2)))
    >>> jax.tree.leaves(prior), prior.sample(jax.random.key(0)).shape
    ([], (2,))
    """

    if TYPE_CHECKING:  # a constant distribution is a distribution, with all that its class has

        @overload
        def __new__(cls, value: D) -> D: ...
        @overload
        def __new__(cls, value: Any) -> Any: ...
        def __new__(cls, value: Any) -> Any: ...

    def __init__(self, value: Any):
        leaves, treedef = jax.tree.flatten(functional(value))  # in use for good: it never trains
        for leaf in leaves:
            if isinstance(leaf, Tracer):
                raise TypeError(
                    f"Constant: value holds a traced {leaf.aval}, expected concrete arrays; build "
                    "it outside jit and vmap or from NumPy arrays, and pass a value that varies as "
                    "a hyper-parameter of the objective"
                )
        # copies, as an array of the caller's may be written to
        arrays = (jax.Array, np.ndarray, np.generic)
        leaves = [np.array(x) if isinstance(x, arrays) else x for x in leaves]
        vars(self).update(_treedef=treedef, _leaves=leaves)

    @property
    def value(self) -> Any:
        """The value, rebuilt with its arrays on the default device."""
        leaves = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in self._leaves]
        return jax.tree.unflatten(self._treedef, leaves)

    @property
    def _raw(self) -> Any:
        """The value as it is held, with NumPy's arrays."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle probe for these before __init__ has run
            raise AttributeError(name)
        return getattr(self.value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Constant: cannot assign to {name!r}; make another Constant")

    def __repr__(self) -> str:
        return f"Constant({short(self._raw)})"

    # Two constants are equal when their contents are: jit compares and hashes what has no leaves.

    def _contents(self) -> tuple[Any, ...]:
        arrays = [
            (x.shape, x.dtype, x.tobytes()) if isinstance(x, np.ndarray) else (type(x), x)
            for x in self._leaves
        ]
        # structures of two dataclasses may compare equal (see `pytree`); their hashes differ
        return (hash(self._treedef), self._treedef, *arrays)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Constant) and self._contents() == other._contents()
        )

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:
            vars(self)["_hash"] = hash(self._contents())
        return self._hash

    def __getstate__(self) -> dict[str, Any]:  # a hash holds in one process only
        return {name: x for name, x in vars(self).items() if name not in ("_hash", "_sums")}

    def tree_flatten(self) -> tuple[tuple[()], "Constant"]:
        return (), self

    @classmethod
    def tree_unflatten(cls, aux: "Constant", children: Any) -> "Constant":
        return aux


def value_of(d: Any) -> Any:
    """What a `Constant` holds."""
    while isinstance(d, Constant):
        d = d.value
    return d


def paths(tree: Tree) -> dict[str, Any]:
    """Path -> leaf, in the order of `jax.tree.leaves`; a path as it is written in Python.

    >>> [*paths({"a": [1.0], "f": jax.tree_util.Partial(max, 2.0, key=3.0)})]
    ["['a'][0]", "['f'].args[0]", "['f'].keywords['key']"]
    """
    return {written(tree, p): v for p, v in jax.tree_util.tree_leaves_with_path(tree)}


def constant_leaves(tree: Tree) -> dict[str, Any]:
    """Path -> leaf of what each `Constant` of a tree holds, which are no leaves of the tree.

    >>> [*constant_leaves({"prior": Constant({"loc": np.zeros(2)})})]
    ["['prior'].value['loc']"]
    """
    found = {}
    for at, part in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_constant):
        if isinstance(part, Constant):
            inside = paths(part._raw) | constant_leaves(part._raw)
            found |= {f"{written(tree, at)}.value{path}": leaf for path, leaf in inside.items()}
    return found


def with_constant_leaves(tree: T, leaves: Mapping[str, Any]) -> T:
    """The tree whose `Constant`s hold these leaves, named as by `constant_leaves`."""

    def filled(path: tuple[Any, ...], part: Any) -> Any:
        if not isinstance(part, Constant):
            return part
        at, value = f"{written(tree, path)}.value", part._raw
        inside = [leaves.get(at + p, leaf) for p, leaf in paths(value).items()]
        below = {p.removeprefix(at): leaf for p, leaf in leaves.items() if p.startswith(at)}
        return Constant(
            with_constant_leaves(jax.tree.unflatten(jax.tree.structure(value), inside), below)
        )

    return jax.tree_util.tree_map_with_path(filled, tree, is_leaf=_is_constant)


def constant_checksums(tree: Tree) -> dict[str, str]:
    """Path -> dtype, shape and CRC-32 of the `constant_leaves` of a tree.

    Of what is no array or number, such as a function, its class. Computed once for each `Constant`.
    """
    found = {}
    for at, part in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_constant):
        if isinstance(part, Constant):
            if "_sums" not in vars(part):
                own = {path: _sum_of(leaf) for path, leaf in paths(part._raw).items()}
                vars(part)["_sums"] = own | constant_checksums(part._raw)
            found |= {f"{written(tree, at)}.value{p}": text for p, text in part._sums.items()}
    return found


def _sum_of(leaf: Tree) -> str:
    if not isinstance(leaf, (np.ndarray, np.generic, bool, int, float)):
        return a_class_of(leaf)
    leaf = np.asarray(leaf)
    return f"{leaf.dtype}{list(leaf.shape)}, checksum {zlib.crc32(leaf.tobytes()):08x}"


def _is_constant(part: object) -> bool:
    return isinstance(part, Constant)
