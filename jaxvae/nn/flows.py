"""Flows with networks in them, and the head that puts one behind any other head."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxvae.bijectors import (
    AffineTransformer,
    Chain,
    Coupling,
    Inverse,
    InverseAutoregressive,
    Reverse,
)
from jaxvae.checks import check_shape
from jaxvae.distributions import Transformed
from jaxvae.nn.activations import Activation, by_name
from jaxvae.nn.heads import Head, Shape
from jaxvae.nn.initializers import Linear
from jaxvae.nn.mixed_precision import biased
from jaxvae.nn.modules import Module
from jaxvae.nn.networks import MLP

AFFINE = AffineTransformer()


class MaskedMLP(Module):
    """Row i of the output sees z_1, ..., z_{i-1} alone: the conditioner of an autoregressive flow.

    A hidden unit of degree m sees coordinates up to m and is seen by rows after m. A context is
    added to every layer, unmasked. The last layer starts at 0, so a flow starts as identity.
    Germain, Gregor, Murray & Larochelle 2015 (MADE), section 4.

    Args:
      dim: d, the coordinates of z.
      size: raw numbers a coordinate, `transformer.size` of the flow.
      hidden: widths of the hidden layers.
      context: size of the context vector, 0 for none.
      activation: applied after every hidden layer.

    >>> net = MaskedMLP(3, 2, rngs=nnx.Rngs(0))
    >>> net(jnp.ones(3)).shape
    (3, 2)
    """

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        hidden: Sequence[int] = (256,),
        context: int = 0,
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        sizes = [dim, *hidden]
        self.layers = nnx.List([Linear(n, m, rngs=rngs) for n, m in pairwise(sizes)])
        self.contexts = nnx.List(
            [Linear(context, m, use_bias=False, rngs=rngs) for m in hidden if context]
        )
        last = partial(Linear, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.last = last(sizes[-1], dim * size)
        # row 1 sees no hidden unit, nor does any row where there is none
        self.last_context = last(context, dim * size, use_bias=False) if context else None
        self.dim, self.size, self.hidden = dim, size, tuple(hidden)
        self.context, self.activation = context, by_name(activation)

    def __call__(self, z: Array, context: Array | None = None) -> Array:
        check_shape("MaskedMLP", "z", z, (self.dim,))
        given = jnp.zeros(0) if context is None else context
        check_shape("MaskedMLP", "context", given, (self.context,))
        h, degree = z, np.arange(self.dim)
        for i, layer in enumerate(self.layers):
            to = _degrees(self.hidden[i], self.dim)
            h = _masked(layer, degree[:, None] <= to, h)
            if self.context:
                h = h + self.contexts[i](given)
            h, degree = self.activation(h), to
        rows = np.repeat(np.arange(self.dim), self.size)
        raw = _masked(self.last, degree[:, None] < rows, h)
        if self.last_context is not None:
            raw = raw + self.last_context(given)
        return raw.reshape(self.dim, self.size)


def _degrees(width: int, dim: int) -> np.ndarray:
    """Degrees 0 to dim - 2 in turn or, where the units are fewer, spread evenly."""
    degrees = max(dim - 1, 1)
    units = np.arange(width)
    return units % degrees if width >= degrees else units * degrees // width


def _masked(layer: Any, mask: Any, h: Array) -> Array:
    return biased(h @ jnp.where(mask, layer.kernel[...], 0.0), layer.bias[...])


class AutoregressiveFlow(Module):
    """context -> `Chain` of `InverseAutoregressive` layers, coordinates reversed in between.

    One pass forward, so it serves a posterior (`FlowHead`); `Inverse` of it serves a prior.
    Kingma et al. 2016 (IAF), section 3.

    Args:
      dim: d.
      layers: how many.
      transformer: `AffineTransformer()` or `SplineTransformer()`.
      context: size of the context vector, 0 for none.
      hidden, activation: of each `MaskedMLP`.

    >>> flow = AutoregressiveFlow(3, layers=1, rngs=nnx.Rngs(0))
    >>> flow().forward_and_log_det(jnp.ones(3))[0].tolist()  # before training
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 2,
        transformer: Any = AFFINE,
        context: int = 0,
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        self.conditioners = nnx.List(
            [
                MaskedMLP(
                    dim,
                    transformer.size,
                    hidden=hidden,
                    context=context,
                    activation=activation,
                    rngs=rngs,
                )
                for _ in range(layers)
            ]
        )
        self.transformer = transformer

    def __call__(self, context: Array | None = None) -> Chain:
        return _turned(InverseAutoregressive, self.conditioners, context, self.transformer)


class CouplingFlow(Module):
    """context -> `Chain` of `Coupling` layers, coordinates reversed in between.

    One pass either way, so it serves priors and posteriors alike.
    Dinh, Sohl-Dickstein & Bengio 2017 (Real NVP); splines: Durkan et al. 2019.

    Args:
      dim: d, at least 2.
      layers: how many; at least two, or half of the coordinates stay as they are.
      transformer, context, hidden, activation: as in `AutoregressiveFlow`.

    >>> flow = CouplingFlow(3, layers=1, rngs=nnx.Rngs(0))
    >>> flow().forward_and_log_det(jnp.ones(3))[0].tolist()  # before training
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 4,
        transformer: Any = AFFINE,
        context: int = 0,
        hidden: Sequence[int] = (256,),
        activation: Activation = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        if dim < 2:
            raise ValueError(f"CouplingFlow: dim is {dim}, expected at least 2, a half to couple")
        out_shape = (dim - dim // 2, transformer.size)
        self.conditioners = nnx.List(
            [
                _Concatenated(
                    dim // 2 + context, out_shape, hidden=hidden, activation=activation, rngs=rngs
                )
                for _ in range(layers)
            ]
        )
        self.transformer = transformer

    def __call__(self, context: Array | None = None) -> Chain:
        return _turned(Coupling, self.conditioners, context, self.transformer)


class _Concatenated(Module):
    """An `MLP` of z and context, side by side; its last layer starts at 0."""

    def __init__(self, size: int, out_shape: Shape, *, rngs: nnx.Rngs, **network: Any):
        self.network = MLP((size,), out_shape, rngs=rngs, **network)
        last = self.network.layers[-1]
        last.kernel[...] = jnp.zeros_like(last.kernel[...])

    def __call__(self, z: Array, context: Array | None = None) -> Array:
        return self.network(z if context is None else jnp.concatenate([z, context]))


def _turned(layer: Any, conditioners: Any, context: Any, transformer: Any) -> Chain:
    """A layer a conditioner, with `Reverse` between them."""
    layers = [layer(conditioner, context, transformer) for conditioner in conditioners]
    return Chain(tuple(b for layer in layers for b in (layer, Reverse()))[:-1])


class InverseFlow(Module):
    """context -> `Inverse` of another flow: of an `AutoregressiveFlow`, a masked one (MAF).

    >>> prior_flow = InverseFlow(AutoregressiveFlow(3, rngs=nnx.Rngs(0)))
    >>> from jaxvae import StandardNormal
    >>> prior = Transformed(StandardNormal((3,)), prior_flow())  # scores in one pass
    """

    def __init__(self, flow: Callable[..., Any]):
        self.flow = flow

    def __call__(self, context: Array | None = None) -> Inverse:
        return Inverse(self.flow(context))


class FlowHead(Module):
    """Raw parameters -> `Transformed`: another head's distribution, pushed through a flow.

    The raw output ends in the flow's context, so that one network makes both. A head may have
    parameters of its own: this one has the flow's.
    Kingma et al. 2016, algorithm 1.

    Args:
      base: the head of the base distribution, over vectors.
      flow: context -> bijector, such as `AutoregressiveFlow` or `CouplingFlow`.
      context: size of the context vector, 0 for a flow that knows nothing of x.

    >>> rngs = nnx.Rngs(0)
    >>> flow = AutoregressiveFlow(2, layers=2, context=16, rngs=rngs)
    >>> from jaxvae.nn import Conditional, NormalHead
    >>> encode = Conditional(MLP, FlowHead(NormalHead(), flow, 16), (5,), (2,), rngs=rngs)
    >>> z, log_q = encode(jnp.ones(5)).sample_and_log_prob(jax.random.key(0))
    >>> z.shape, log_q.shape
    ((2,), ())
    """

    def __init__(self, base: Head, flow: Callable[..., Any], context: int = 0):
        self.base, self.flow, self.context = base, flow, context

    def raw_shape(self, shape: Shape) -> Shape:
        (n,) = self.base.raw_shape(shape)
        return (n + self.context,)

    def __call__(self, raw: Array) -> Transformed:
        n = raw.size - self.context
        context = raw[n:] if self.context else None
        return Transformed(self.base(raw[:n]), self.flow(context))
