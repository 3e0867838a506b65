"""Moving about among the latents: between two of them, along one of them, and nearer the mode."""

from dataclasses import replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial

from jaxvae.checks import (
    Floats,
    Positive,
    Scalar,
    check_integers,
    check_scalar,
    check_shape,
    checked,
)
from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Laplace,
    LowRankNormal,
    Mixture,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    StandardNormal,
    StudentT,
)
from jaxvae.protocols import Distribution, method_of
from jaxvae.pytrees import value_of

Index = Annotated[Array | int, check_scalar, check_integers]
"""One integer, traced or not."""


@checked
def interpolate(z0: Floats, z1: Floats, t: Scalar) -> Array:
    """The straight line: (1 - t) z0 + t z1.

    In many dimensions the draws of N(0, I) lie near the sphere of radius sqrt(d), and the line
    between two of them leaves it: in the middle its norm is sqrt(d / 2). See `slerp`.

    >>> interpolate(jnp.zeros(2), jnp.array([1.0, 4.0]), 0.25).tolist()
    [0.25, 1.0]
    """
    check_shape("interpolate", "z1", z1, jnp.shape(z0))
    return (1.0 - t) * jnp.asarray(z0) + t * jnp.asarray(z1)


@checked
def slerp(z0: Floats, z1: Floats, t: Scalar) -> Array:
    """Spherical interpolation: the direction turns at a constant rate, the norm goes linearly.

    With u the direction of z0, v the one orthogonal to it in the plane of both, and theta the angle
    between them,

        z = ((1 - t) |z0| + t |z1|) (cos(t theta) u + sin(t theta) v)

    Parallel ends give the straight line. Between opposite ones all great circles are as short, and
    one of them is taken. An end that is 0 and traced, so without a direction, gives NaN.
    Shoemake 1985; for latents: White 2016.

    Args:
      z0: where t = 0, floats of any shape [...], taken as one vector of at least two coordinates.

    >>> middle = slerp(jnp.array([2.0, 0.0]), jnp.array([0.0, 4.0]), 0.5)
    >>> [round(float(z), 4) for z in middle]  # 3 (cos 45, sin 45)
    [2.1213, 2.1213]
    """
    check_shape("slerp", "z1", z1, jnp.shape(z0))
    if jnp.size(z0) < 2:
        raise ValueError(
            f"slerp: z0 has shape {jnp.shape(z0)}, expected two coordinates or more to turn in"
        )
    (norm_0, u_0), (norm_1, u_1) = _polar("z0", z0), _polar("z1", z1)
    theta = 2.0 * jnp.arctan2(_length(u_1 - u_0), _length(u_1 + u_0))
    v = _across(u_0, u_1)
    sine = _length(v)
    other = _across(u_0, jnp.zeros_like(u_0).at[jnp.argmin(jnp.abs(u_0))].set(1.0))
    one_line = sine <= 4.0 * jnp.finfo(u_0.dtype).eps
    v = jnp.where(one_line, other / _length(other), v / jnp.where(one_line, 1.0, sine))
    arc = interpolate(norm_0, norm_1, t) * (jnp.cos(t * theta) * u_0 + jnp.sin(t * theta) * v)
    line = interpolate(norm_0 * u_0, norm_1 * u_1, t)  # with the slopes that the arc has not there
    return jnp.where(one_line & (u_0 @ u_1 > 0.0), line, arc).reshape(jnp.shape(z0))


def _length(v: Array) -> Array:
    """|v|, whose slope at 0 is 0."""
    square = jnp.sum(jnp.square(v))
    return jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0)


def _polar(name: str, z: Floats) -> tuple[Array, Array]:
    """The norm and the direction of z, flat."""
    if not isinstance(z, Tracer) and not np.any(z):
        raise ValueError(f"slerp: {name} is 0, expected a vector that has a direction")
    flat = jnp.ravel(jnp.asarray(z))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat)))  # whose square may not be a float
    norm = jnp.linalg.norm(flat / largest)
    return largest * norm, flat / largest / norm


def _across(u: Array, v: Array) -> Array:
    """What of v is orthogonal to the direction u; twice, as the first time leaves rounding."""
    for _ in range(2):
        v = v - (u @ v) * u
    return v


@checked
def traverse(z: Floats, index: Index, values: Floats) -> Array:
    """Copies of z [d] in which one latent, `index` in -d..d-1, takes each of the values [n].

    >>> traverse(jnp.zeros(3), 1, jnp.array([-1.0, 1.0])).tolist()
    [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    for name, vector in ("z", z), ("values", values):
        if jnp.ndim(vector) != 1:
            raise ValueError(f"traverse: {name} has shape {jnp.shape(vector)}, expected a vector")
    d = len(z)
    if not isinstance(index, Tracer) and not -d <= index < d:
        raise ValueError(f"traverse: index is {index}, expected one of {d} latents")
    return jax.vmap(lambda value: jnp.asarray(z).at[index].set(value))(jnp.asarray(values))


@checked
def tempered(distribution: Distribution, temperature: Positive) -> Any:
    """The distribution at a temperature T: below 1 its draws lie nearer the mode, and vary less.

    What has a `tempered(t)` is asked. Of a location and a scale (`Normal`, `StandardNormal`, which
    becomes a `Normal`, `MultivariateNormal`, `LowRankNormal`, `Laplace`, `StudentT`,
    `DiscretizedLogistic`) the scale is multiplied by T; of choices and coins (`Bernoulli`,
    `Categorical`, `OneHotCategorical`) the logits are divided by T. What is made of others is
    tempered in its parts, by its `in_parts(change)`: the base of `Transformed`, the parts of
    `Independent` and `Product`, every level of a `Joint`, step of a `Markov` chain or coordinate of
    an `Autoregressive` given those before, what `Carried`, `StraightThrough` and a `Constant` hold;
    and the components of a `Mixture`, whose weights stay.
    `model._replace(prior=tempered(p, 0.8))` generates at that temperature.
    Kingma & Dhariwal 2018; hierarchies: Vahdat & Kautz 2020.

    Raises:
      TypeError: it has no `tempered(t)`, as a `Gamma`.
      ValueError: T is not positive.

    >>> tempered(StandardNormal((2,)), 0.5).scale.tolist()
    [0.5, 0.5]
    """
    t = temperature
    match value_of(distribution):
        case d if hasattr(d, "tempered"):
            return d.tempered(t)
        case StandardNormal() as d:
            return tempered(d.unstack(), t)
        case Normal() | Laplace() | StudentT() | DiscretizedLogistic() as d:
            return replace(d, scale=t * d.scale)
        case MultivariateNormal() as d:
            return MultivariateNormal(d.loc, t * d.scale_tril)
        case LowRankNormal() as d:
            return LowRankNormal(d.loc, t * d.factor, t * d.scale)
        case Bernoulli() | Categorical() | OneHotCategorical() as d:
            return replace(d, logits=d.logits / t)
        case Mixture() as d:
            return Mixture(d.logits, tempered(d.components, t))
        case d if hasattr(d, "in_parts"):
            return d.in_parts(Partial(tempered, temperature=t))
        case d:
            return method_of(d, "tempered", "tempered")
