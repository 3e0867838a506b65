"""A distribution that draws one coordinate after the other."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Tree
from jaxvae.protocols import distribution, has_path, log_density, log_density_relaxed, traced
from jaxvae.pytrees import wide


class Stepwise(Protocol):
    """A conditioner that can also give one row at a time, from what it kept of the values before.

    `Autoregressive.sample` then costs one row a coordinate; without it every row is computed anew
    for every coordinate. The rows are those of a call: step i is told z_{i-1} (0 at the first).
    """

    def __call__(self, z: Any, context: Any, /) -> Any: ...

    def init_cache(self, context: Any, /) -> Any: ...

    def step(self, cache: Any, i: Array, before: Array, /) -> tuple[Any, Array]: ...


@distribution
@dataclass(frozen=True, eq=False)
class Autoregressive:
    """p(z) = prod_i p(z_i | z_1, ..., z_{i-1}): scored in one pass, drawn in d.

    Any conditional serves: a `Normal`, an `Independent` of `Mixture`s, a `Categorical` of codes.
    Draws are differentiable where the conditional's are.
    Bengio & Bengio 2000; Germain et al. 2015; as a prior: Chen et al. 2017.

    Args:
      conditioner: (z [d], context) -> raw, row i of z_1..z_{i-1} alone: `nn.MaskedMLP`, or one that
        draws from a cache, `Stepwise`: `nn.PixelCNN`, `nn.CausalTransformer`. It sees integers as
        floats.
      head: raw -> a distribution over d independent coordinates; static, so a function of a module.
        If the conditioner is `Stepwise`, of any number of rows a distribution over as many.
      length: d.
      changes: each a function of the conditionals' distribution, applied in turn: `tempered` and
        `top_k` add themselves.

    >>> from jaxvae import Normal
    >>> previous = jax.tree_util.Partial(lambda z, _: jnp.append(0.0, z[:-1]))
    >>> walk = Autoregressive(previous, lambda raw: Normal(raw, 1.0), 3)
    >>> round(float(walk.log_prob(jnp.zeros(3))), 5)  # -3/2 log 2 pi
    -2.75682
    """

    conditioner: Any
    head: Callable[[Array], Any] = field(metadata={"static": True})
    length: int = field(metadata={"static": True})
    context: Any = None
    changes: tuple[Callable[[Any], Any], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def reparameterized(self) -> bool:
        return traced(has_path, lambda: self._given(self._start()))

    def sample(self, key: Array) -> Array:
        like = jax.eval_shape(lambda: self._given(self._start()).sample(jax.random.key(0)))
        coordinates = jnp.arange(self.length)

        def one_more(carry: Any, i: Array) -> tuple[Any, None]:
            z, cache = carry
            p, cache = self._next(cache, i, z)
            drawn = p.sample(jax.random.fold_in(key, i))  # of z_i alone, or of all as if given z
            return (jnp.where(coordinates == i, drawn, z), cache), None

        cache = self.conditioner.init_cache(self.context) if self._stepwise else None
        start = jnp.zeros(like.shape, like.dtype), cache
        (z, _), _ = jax.lax.scan(one_more, start, coordinates)
        return z

    def log_prob(self, z: Tree) -> Array:
        return log_density(self._given(z), z)

    def log_prob_relaxed(self, z: Tree) -> Array:
        return log_density_relaxed(self._given(z), z)

    def in_parts(self, change: Callable[[Any], Any]) -> "Autoregressive":
        return replace(self, changes=(*self.changes, change))

    @property
    def _stepwise(self) -> bool:
        return all(hasattr(self.conditioner, name) for name in ("init_cache", "step"))

    def _start(self) -> Array:
        """Zeros in the precision of the parameters."""
        leaves = jax.tree.leaves((self.conditioner, self.context))
        return jnp.zeros(self.length, jnp.result_type(0.0, *leaves))

    def _given(self, z: Array) -> Any:
        return self._conditional(self.conditioner(self._seen(z), self.context))

    def _next(self, cache: Any, i: Array, z: Array) -> tuple[Any, Any]:
        """p(z_i | z_1, ..., z_{i-1}), where z_i and what follows are still 0, and the cache."""
        if not self._stepwise:
            return self._given(z), cache
        cache, row = self.conditioner.step(cache, i, self._seen(z)[i - 1])
        return self._conditional(jax.tree.map(lambda leaf: leaf[None], row)), cache

    def _seen(self, z: Array) -> Array:
        if jnp.issubdtype(z.dtype, jnp.floating):
            return z
        # half precision would round large codes to others
        return z.astype(wide(self._start()).dtype)

    def _conditional(self, raw: Any) -> Any:
        p = self.head(raw)
        for change in self.changes:
            p = change(p)
        return p
