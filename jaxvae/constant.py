"""Values that never train: a pytree without leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


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

    def __init__(self, value: Any):
        leaves, treedef = jax.tree.flatten(value)
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy and pickle probe for these before __init__ has run
            raise AttributeError(name)
        return getattr(self.value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Constant: cannot assign to {name!r}; make another Constant")

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"

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
        return {name: x for name, x in vars(self).items() if name != "_hash"}

    def tree_flatten(self) -> tuple[tuple[()], "Constant"]:
        return (), self

    @classmethod
    def tree_unflatten(cls, aux: "Constant", children: Any) -> "Constant":
        return aux
