"""A model of rows as a file has them, made of one that sees them prepared.

    x of the file -> prepared -> q(z|x),        z -> p(x|z), with mean and draws in the file's units

Pure functions of JAX, so that they can be exported with the model. log p(x|z) stays what it is of
prepared rows: nats of standardised columns.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxvae.checks import Key, Numbers, Tree
from jaxvae.distributions import Masked
from jaxvae.evaluation.imputation import best_guess
from jaxvae.model import VAE, Model, likelihood, posterior
from jaxvae.nn.tables import NUMBERS, Column, Table
from jaxvae.protocols import Distribution, mean_of


class Scaled(NamedTuple):
    """Numbers, of which a model sees (x - shift) / scale."""

    shift: Numbers
    scale: Numbers

    def seen(self, x: Array) -> Array:
        return (jnp.asarray(x, float) - self.shift) / self.scale

    def stored(self, x: Array) -> Array:
        return x * self.scale + self.shift

    def mean(self, d: Distribution) -> Any:
        return mean_of(d)


class Coded(NamedTuple):
    """A dict of columns [1], floats with NaN in gaps: numbers as they are, categories by number.

    The mean of a category is the number of the most probable one, that of a logarithm is
    exp(E[log x]).
    """

    table: Table

    def seen(self, x: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        seen, mask = {}, {}
        for column in self.table.seen:
            name, there = column.name, ~jnp.isnan(x[column.name])
            value = _seen(column, jnp.where(there, x[name], 1.0))
            seen[name], mask[name] = jnp.where(there, value, jnp.zeros_like(value)), there
        return seen, mask

    def stored(self, x: dict[str, Array]) -> dict[str, Array]:
        return {column.name: _stored(column, x[column.name]) for column in self.table.seen}

    def mean(self, d: Any) -> Any:
        return best_guess(d)


Units = Scaled | Coded


@dataclass(frozen=True)
class _Stored:
    """p(x|z) of rows in the units of their file."""

    distribution: Any
    units: Units

    def sample(self, key: Key) -> Any:
        masked = isinstance(self.distribution, Masked)
        d = self.distribution.distribution if masked else self.distribution
        return self.units.stored(d.sample(key))

    def log_prob(self, event: Tree) -> Array:
        return self.distribution.log_prob(self.units.seen(event))

    def mean(self) -> Any:
        return self.units.stored(self.units.mean(self.distribution))


def of_stored(model: Model, units: Units) -> VAE:
    """The model of rows as they are stored."""
    return VAE(Partial(_encode, model, units), Partial(_decode, model, units), model.prior)


def _encode(model: Model, units: Units, x: Tree) -> Any:
    return posterior(model, units.seen(x))


def _decode(model: Model, units: Units, z: Tree) -> Any:
    return _Stored(likelihood(model, z), units)


def of_coded(table: Table) -> Table:
    """The columns of a frame that is `coded` already: a model sees its numbers as they are."""
    as_it_is = {"kind": "number", "shift": 0.0, "scale": 1.0}
    return Table(tuple(c._replace(**as_it_is) if c.kind in NUMBERS else c for c in table.columns))


def _seen(column: Column, x: Array) -> Array:
    if column.kind == "category":
        return x.astype(jnp.int32)
    return ((jnp.log(x) if column.kind == "log" else x) - column.shift) / column.scale


def _stored(column: Column, x: Array) -> Array:
    if column.kind == "category":
        return x.astype(float)
    x = x * column.scale + column.shift
    return jnp.exp(x) if column.kind == "log" else x
