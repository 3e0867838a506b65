"""Heads: from a network's raw output to a distribution, whatever the network.

A head has `raw_shape(event_shape)`, what it needs of the network, and is called with what that
returns: `raw -> Distribution`. Raw parameters may be any real numbers. One that learns something
itself, or holds heads that may, is a module; any other is a frozen dataclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import isqrt, prod
from typing import Annotated, Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer
from typing_extensions import TypeAliasType

from jaxvae.checks import Numbers, check_array
from jaxvae.distributions import (
    Bernoulli,
    Masked,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Product,
)
from jaxvae.distributions.discrete import open_categorical as open_categorical
from jaxvae.nn.activations import WithOptions
from jaxvae.nn.modules import Module

D = TypeVar("D", covariant=True)


def check_sizes(owner: str, name: str, shape: object) -> None:
    """Raise ValueError unless `shape` is a tuple of integers of at least one, or empty."""
    whole = isinstance(shape, tuple) and all(isinstance(n, (int, np.integer)) for n in shape)
    if not (whole and all(n >= 1 for n in shape)):  # pyright: ignore
        raise ValueError(
            f"{owner}: {name} is {shape!r}, expected a tuple of integers >= 1, such as (28, 28, 1)"
        )


def check_sigmas(owner: str, name: str, scale: Numbers, *, zero: bool = False) -> None:
    """Raise unless `scale` is above 0, or may be 0, a number or all of an array where concrete."""
    check_array(owner, name, scale)
    if isinstance(scale, Tracer):
        return
    sigmas = np.asarray(scale)
    if not np.all(sigmas >= 0 if zero else sigmas > 0):
        raise ValueError(
            f"{owner}: {name} is {scale}, expected {'at least' if zero else 'more than'} 0"
        )


Shape = TypeAliasType("Shape", Annotated[tuple[int, ...], check_sizes])
"""A tuple of integers of at least one, such as (28, 28, 1); () is a number's."""


def last_axis(owner: str, shape: Shape) -> int:
    """How many coordinates or channels an event of that shape has; an error if it has no axis."""
    if not shape:
        raise ValueError(f"{owner}: an event of shape () has no axis, expected (1,) for one number")
    return shape[-1]


class Head(Protocol[D]):
    """Raw parameters -> a distribution."""

    def raw_shape(self, shape: Shape, /) -> Shape:
        """Of the raw parameters, for events of that shape."""
        ...

    def __call__(self, raw: Array, /) -> D: ...


def positive(raw: Array, floor: float = 1e-6) -> Array:
    """softplus(raw) + floor: smooth, and neither overflowing nor reaching 0 for any raw output.

    >>> [f"{scale:.0e}" for scale in positive(jnp.array([-1e4, 1e4]))]
    ['1e-06', '1e+04']
    """
    return jax.nn.softplus(raw) + floor


@dataclass(frozen=True)
class Parameter:
    """One parameter of a distribution, as a network gives it; made by `Real` or `Positive`.

    Args:
      shape: its axes for an event of n coordinates, or n channels a pixel: "n" stands for n.
      positive: whether it is passed through `positive`.
    """

    shape: tuple[int | str, ...]
    positive: bool = False

    def axes(self, n: int) -> Shape:
        return tuple(n if axis == "n" else int(axis) for axis in self.shape)


def Real(*shape: int | str) -> Parameter:
    """A parameter that may be any number: Real("n") has the event's shape, Real() is a scalar.

    >>> from jaxvae import Laplace
    >>> HeadOf(Laplace, (Real("n"), Positive()))(jnp.array([1.0, 2.0, 0.0])).mean().tolist()
    [1.0, 2.0]
    """
    return Parameter(shape)


def Positive(*shape: int | str) -> Parameter:
    """A parameter that is positive: softplus(raw) + 1e-6.

    >>> from jaxvae import Poisson
    >>> HeadOf(Poisson, (Positive("n"),))(jnp.array([-1e4, 1e4])).mean().round(4).tolist()
    [0.0, 10000.0]
    """
    return Parameter(shape, positive=True)


@dataclass(frozen=True)
class HeadOf(Generic[D]):
    """Raw parameters -> any distribution: the last axis of raw is cut into the arguments of `make`.

    What stands before the last axis of the event, rows and columns of an image, stands before every
    parameter's own axes.

    Args:
      make: a class or a function of the parameters, or a `functools.partial` of one; no lambda, as
        heads are compared.
      parameters: one for each argument, `Real` or `Positive` with its axes.

    >>> from jaxvae import Laplace, LowRankNormal
    >>> head = HeadOf(LowRankNormal, (Real("n"), Real("n", 2), Positive("n")))
    >>> head.raw_shape((5,)), head(jnp.zeros(20)).factor.shape
    ((20,), (5, 2))
    >>> HeadOf(Laplace, (Real("n"), Positive("n"))).raw_shape((28, 28, 1))
    (28, 28, 2)
    """

    make: Callable[..., D]
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        if isinstance(self.make, partial) and not self.make.args:  # equal to itself alone
            bound = WithOptions(self.make.func, tuple(self.make.keywords.items()))
            object.__setattr__(self, "make", bound)

    def raw_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self._size(last_axis("HeadOf", shape)))

    def __call__(self, raw: Array) -> D:
        n = next(n for n in count(1) if self._size(n) >= raw.shape[-1])  # sizes grow with n
        arrays, start = [], 0
        for parameter in self.parameters:
            axes = parameter.axes(n)
            part = raw[..., start : start + prod(axes)].reshape(*raw.shape[:-1], *axes)
            arrays.append(positive(part) if parameter.positive else part)
            start += prod(axes)
        return self.make(*arrays)

    def _size(self, n: int) -> int:
        return sum(prod(parameter.axes(n)) for parameter in self.parameters)


def OneHotHead() -> HeadOf[OneHotCategorical]:
    """Raw parameters -> `OneHotCategorical`: they are the logits, the classes on the last axis.

    >>> OneHotHead()(jnp.zeros((3, 4))).mean().shape
    (3, 4)
    """
    return HeadOf(OneHotCategorical, (Real("n"),))


class ProductHead(Module):
    """Raw parameters -> `Product`: a flat vector cut into the raw parameters of each column.

    What a column's head learns, as a `SharedScaleHead` its sigma, trains with the rest.

    Args:
      columns: (name, head, event shape) of each; events are dicts.

    >>> columns = (("height", NormalHead(), (1,)), ("smokes", BernoulliHead(), (1,)))
    >>> head = ProductHead(columns)
    >>> head.raw_shape(()), sorted(head(jnp.zeros(3)).parts)
    ((3,), ['height', 'smokes'])
    """

    def __init__(self, columns: tuple[tuple[str, Head, Shape], ...]):
        modules = [head for _, head, _ in columns if isinstance(head, nnx.Module)]
        places = count()
        self.columns = tuple(  # with its place among the modules for a head that is one
            (name, next(places) if isinstance(head, nnx.Module) else head, shape)
            for name, head, shape in columns
        )
        if modules:
            self.modules = nnx.List(modules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProductHead) and self._heads() == other._heads()

    def __hash__(self) -> int:
        return hash((ProductHead, self._heads()))

    def _heads(self) -> tuple[tuple[str, Any, Shape], ...]:
        return tuple(
            (name, self.modules[head] if isinstance(head, int) else head, shape)
            for name, head, shape in self.columns
        )

    def raw_shape(self, shape: Shape) -> Shape:
        del shape  # of each column, which `columns` says
        return (sum(prod(head.raw_shape(s)) for _, head, s in self._heads()),)

    def __call__(self, raw: Array) -> Product:
        parts, start = {}, 0
        for name, head, shape in self._heads():
            part = head.raw_shape(shape)
            parts[name] = head(raw[start : start + prod(part)].reshape(part))
            start += prod(part)
        return Product(parts)


class MaskedHead(Module):
    """Another head's distribution, `Masked`: a likelihood of data with missing entries.

    >>> head = MaskedHead(NormalHead())
    >>> float(head(jnp.zeros(2)).log_prob((jnp.array([jnp.nan]), jnp.array([False]))))
    0.0
    """

    def __init__(self, head: Head):
        self.head = head

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskedHead) and self.head == other.head

    def __hash__(self) -> int:
        return hash((MaskedHead, self.head))

    def raw_shape(self, shape: Shape) -> Shape:
        return self.head.raw_shape(shape)

    def __call__(self, raw: Array) -> Masked:
        return Masked(self.head(raw))


@dataclass(frozen=True)
class NormalHead:
    """Raw parameters -> `Normal`: the last axis holds mu and, unless fixed, the raw sigma.

    Args:
      scale: a fixed sigma, which never trains, 0 of a deterministic encoder; None (the default)
        lets the network give it.
      floor: the least sigma that the network can give.

    >>> NormalHead().raw_shape((28, 28, 1)), NormalHead(scale=0.1).raw_shape((28, 28, 1))
    ((28, 28, 2), (28, 28, 1))
    >>> [round(float(sigma), 4) for sigma in NormalHead()(jnp.zeros(4)).scale]  # softplus: log 2
    [0.6931, 0.6931]
    """

    scale: float | None = None
    floor: float = 1e-6

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_sigmas("NormalHead", "scale", self.scale, zero=True)
        check_sigmas("NormalHead", "floor", self.floor)

    def raw_shape(self, shape: Shape) -> Shape:
        return (
            shape if self.scale is not None else (*shape[:-1], 2 * last_axis("NormalHead", shape))
        )

    def __call__(self, raw: Array) -> Normal:
        if self.scale is not None:
            return Normal(raw, self.scale)
        loc, raw_scale = jnp.split(raw, 2, axis=-1)
        return Normal(loc, positive(raw_scale, self.floor))


@dataclass(frozen=True)
class MultivariateNormalHead:
    """Raw parameters -> `MultivariateNormal`: mu [d], then the lower triangle of L row by row.

    >>> MultivariateNormalHead().raw_shape((3,))  # 3, and 3 * 4 / 2
    (9,)
    >>> MultivariateNormalHead()(jnp.array([1.0, 2.0, 50.0, 3.0, 50.0])).scale_tril.round().tolist()
    [[50.0, 0.0], [3.0, 50.0]]
    """

    def raw_shape(self, shape: Shape) -> Shape:
        d = last_axis("MultivariateNormalHead", shape)
        if len(shape) > 1:
            raise ValueError(
                f"MultivariateNormalHead: an event has shape {shape}, expected one axis, (d,)"
            )
        return (d + d * (d + 1) // 2,)

    def __call__(self, raw: Array) -> MultivariateNormal:
        d = (isqrt(9 + 8 * raw.size) - 3) // 2  # solves d + d (d + 1) / 2 = raw.size
        loc, triangle = raw[:d], raw[d:]
        tril = jnp.zeros((d, d), raw.dtype).at[jnp.tril_indices(d)].set(triangle)
        diagonal = jnp.diag_indices(d)
        return MultivariateNormal(loc, tril.at[diagonal].set(positive(tril[diagonal])))


@dataclass(frozen=True)
class BernoulliHead:
    """Raw parameters -> `Bernoulli`: they are the logits.

    >>> BernoulliHead()(jnp.zeros(2)).mean().tolist()
    [0.5, 0.5]
    """

    def raw_shape(self, shape: Shape) -> Shape:
        return shape

    def __call__(self, raw: Array) -> Bernoulli:
        return Bernoulli(raw)
