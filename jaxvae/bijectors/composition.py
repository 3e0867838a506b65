"""Bijectors made of others, and the rearrangement that goes between them."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree
from jaxvae.pytrees import pytree


@pytree
@dataclass(frozen=True, eq=False)
class Chain:
    """f_n o ... o f_1: a tuple of bijectors, the first applied first; an empty one is the identity.

    >>> from jaxvae.bijectors import Affine
    >>> twice = Chain((Affine(1.0, 0.0), Affine(1.0, 0.0)))
    >>> [float(part) for part in twice.forward_and_log_det(jnp.array(0.5))]
    [2.5, 0.0]
    """

    bijectors: tuple[Any, ...]

    def forward_and_log_det(self, z: Tree) -> tuple[Any, Array]:
        log_det = jnp.asarray(0.0)
        for bijector in self.bijectors:
            z, more = bijector.forward_and_log_det(z)
            log_det = log_det + more
        return z, log_det

    def inverse_and_log_det(self, x: Tree) -> tuple[Any, Array]:
        log_det = jnp.asarray(0.0)
        for bijector in self.bijectors[::-1]:
            x, more = bijector.inverse_and_log_det(x)
            log_det = log_det + more
        return x, log_det


@pytree
@dataclass(frozen=True, eq=False)
class Inverse:
    """f^-1: forward and inverse swapped. A masked autoregressive flow is that of an inverse one.

    >>> from jaxvae.bijectors import Affine
    >>> float(Inverse(Affine(1.0, 0.0)).forward_and_log_det(jnp.array(3.0))[0])
    2.0
    """

    bijector: Any

    def forward_and_log_det(self, z: Tree) -> tuple[Any, Array]:
        return self.bijector.inverse_and_log_det(z)

    def inverse_and_log_det(self, x: Tree) -> tuple[Any, Array]:
        return self.bijector.forward_and_log_det(x)


@pytree
@dataclass(frozen=True, eq=False)
class Reverse:
    """The event back to front, a vector's coordinates or a tuple's parts; log-determinant 0.

    Between two autoregressive layers it lets the last coordinates condition the first; around a
    `Joint` inferred bottom-up it gives the layers the order in which they are generated.

    >>> Reverse().forward_and_log_det(jnp.array([1.0, 2.0]))[0].tolist()
    [2.0, 1.0]
    """

    def forward_and_log_det(self, z: Tree) -> tuple[Any, Array]:
        return z[::-1], jnp.asarray(0.0)

    def inverse_and_log_det(self, x: Tree) -> tuple[Any, Array]:
        return self.forward_and_log_det(x)
