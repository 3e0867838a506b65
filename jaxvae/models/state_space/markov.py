"""Sequences of latents: a Markov chain as one distribution, and its rate step by step.

`hierarchy` is the same chain for a few layers that differ; here all steps share a transition, so
that a chain of any length is one `lax.scan` to draw and one `jax.vmap` to score.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxvae.batching import check_rows
from jaxvae.bounds.kl import KL, auto_kl
from jaxvae.checks import Count, Key, Tree, a_class_of, check_leaves, checked
from jaxvae.distributions import Independent, Product
from jaxvae.distributions.products import composed
from jaxvae.evaluation.latent_space import Index
from jaxvae.protocols import (
    Distribution,
    check_distribution,
    has_path,
    log_density,
    log_density_relaxed,
    sample_and_log_prob,
    traced,
)
from jaxvae.pytrees import pytree, value_of
from jaxvae.pytrees.scanning import scan
from jaxvae.regularizers import LatentSample

D = TypeVar("D", bound=Distribution)


@pytree
@dataclass(frozen=True, eq=False)
class Markov(Generic[D]):
    """p(z_1, ..., z_T) = p(z_1) prod_{t>1} p(z_t | z_{t-1}, c_t): events have a leading axis of T.

    A forecast is another chain, `after`; `use.forecast` makes it of data.
    Krishnan, Shalit & Sontag 2017, the deep Markov model (DMM).

    Args:
      first: p(z_1).
      transition: z_{t-1} -> p(z_t | z_{t-1}), a callable pytree; with a context it is called with
        the pair (z_{t-1}, c_t).
      length: T, a Python integer.
      context: c_2, ..., c_T, a pytree with a leading axis of T - 1; None, the default, is none.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 3)
    >>> round(float(walk.log_prob(jnp.zeros(3))), 5)  # -3/2 log 2 pi
    -2.75682
    """

    first: D
    transition: Callable[[Any], Distribution]
    length: Count = field(metadata={"static": True})
    context: Tree | None = None

    @property
    @checked
    def reparameterized(self) -> bool:
        self._check()
        return has_path(self.first) and (
            self.length == 1
            or traced(
                has_path,
                lambda: self.step(
                    self.first.sample(jax.random.key(0)), jax.tree.map(lambda c: c[0], self.context)
                ),
            )
        )

    def sample(self, key: Key) -> Any:
        return self.sample_and_log_prob(key)[0]

    @checked
    def log_prob(self, z: Tree) -> Array:
        return self._sum(log_density, z)

    @checked
    def log_prob_relaxed(self, z: Tree) -> Array:
        return self._sum(log_density_relaxed, z)

    def _sum(self, density: Callable[[Any, Any], Array], z: Tree) -> Array:
        self._check()
        before, after = self._pairs(z)
        steps = jax.vmap(lambda a, c, b: density(self.step(a, c), b))
        first = density(self.first, jax.tree.map(lambda leaf: leaf[0], z))
        return first + jnp.sum(steps(before, self.context, after))

    @checked
    def sample_and_log_prob(self, key: Key) -> tuple[Any, Array]:
        self._check()
        first_key, key = jax.random.split(key)
        first, log_first = sample_and_log_prob(self.first, first_key)

        def step(z: Tree, at: tuple[Array, Any]) -> tuple[Any, tuple[Any, Array]]:
            t, c = at
            z, log_p = sample_and_log_prob(self.step(z, c), jax.random.fold_in(key, t))
            return z, (z, log_p)

        steps = jnp.arange(self.length - 1)
        _, (rest, log_p) = scan(step, first, (steps, self.context))
        z = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return z, log_first + jnp.sum(log_p)

    @checked
    def after(self, z: Tree, t: Index, steps: Count) -> "Markov":
        """p(z_{t+1}, ..., z_{t+steps} | z_t), z_t the t-th state of z; a context has to go so far.

        >>> from jax.tree_util import Partial
        >>> from jaxvae import Normal
        >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z + 1.0, 1.0)), 3)
        >>> ahead = walk.after(jnp.array([5.0, 7.0, 9.0]), 2, 4)
        >>> float(ahead.first.loc), ahead.length
        (8.0, 4)
        """
        known, length = 1 if isinstance(t, Tracer) else t, length_of("Markov", "z", z)
        if not 1 <= known <= length:
            raise ValueError(f"Markov: t is {t}, expected 1 to {length}, the states of z")
        at = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t - 1, 0, False), z)
        if self.context is None:
            return Markov(self.step(at, None), self.transition, steps)
        self._check()
        if steps > self.length - known:
            raise ValueError(
                f"Markov: steps is {steps}, expected at most {self.length - known} behind step "
                f"{known}, as the context is of {self.length} steps"
            )
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=t - 1, slice_size=steps)
        first, rest = first_and_rest(jax.tree.map(cut, self.context))
        return Markov(self.step(at, first), self.transition, steps, rest)

    def in_parts(self, change: Callable[[Any], Any]) -> "Markov":
        """Every step changed, given the one before it."""
        transition = composed(change, self.transition)
        return replace(self, first=change(self.first), transition=transition)

    @checked
    def given(self, z: Tree) -> Product:
        """Every step's distribution given the state before, over events (z_1, (z_2, ..., z_T))."""
        self._check()
        before, _ = self._pairs(z)
        return Product((self.first, Independent(jax.vmap(self.step)(before, self.context))))

    def step(self, z: Tree, c: Any) -> Any:
        d = self.transition(z) if self.context is None else self.transition((z, c))
        check_distribution("model.transition returned", d)
        return d

    def _pairs(self, z: Tree) -> tuple[Any, Any]:
        """(z_1, ..., z_{T-1}) and (z_2, ..., z_T)."""
        check_rows("Markov", "event", z, self.length)
        return jax.tree.map(lambda leaf: leaf[:-1], z), jax.tree.map(lambda leaf: leaf[1:], z)

    def _check(self) -> None:
        if self.context is not None:
            check_rows("Markov", "context", self.context, self.length - 1)


def first_and_rest(tree: Tree) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf[0], tree), jax.tree.map(lambda leaf: leaf[1:], tree)


def length_of(owner: str, name: str, tree: Tree) -> int:
    """The leading axis that all leaves share, at least 1."""
    check_leaves(owner, name, tree)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or not all(sizes) or (0,) in sizes:
        raise ValueError(
            f"{owner}: {name} has leading axes {sorted(sizes)}, expected one of T >= 1"
        )
    return sizes.pop()[0]


@checked
def stepwise_kl(
    q: Distribution, p: Distribution, z: Tree, log_q: Array, *, kl: KL = auto_kl
) -> Array:
    """The rate between two `Markov` chains, in closed form at every step given the state before.

    KL(q(z_1) || p(z_1)) + sum_{t>1} KL(q(z_t|z_{t-1}) || p(z_t|z_{t-1})), z ~ q

    Unbiased, and less noisy than the sampled rate: pass it to `elbo(..., kl=stepwise_kl)`. Where
    a step has no closed form, or the two are no chains, it is `auto_kl`.
    Krishnan, Shalit & Sontag 2017.

    Args:
      kl: of the steps given those before: `balanced_kl` trains the prior faster.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 3)
    >>> float(stepwise_kl(walk, walk, *walk.sample_and_log_prob(jax.random.key(0))))
    0.0
    """
    q, p = value_of(q), value_of(p)
    if not (isinstance(q, Markov) and isinstance(p, Markov)):
        return kl(q, p, z, log_q)
    return kl(q.given(z), p.given(z), first_and_rest(z), log_q)


@checked
def kl_per_step(code: LatentSample, *, kl: KL = auto_kl) -> Array:
    """The rate of every step of two `Markov` chains given the state before, [T] nats.

    The parts of `free_bits` for a chain, which leaves each step its first nats free:

        partial(regularized, penalty=partial(free_bits, parts=kl_per_step), free_nats=1.0)

    With kl=balanced_kl that is what DreamerV3 charges: Hafner et al. 2023.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 3)
    >>> ahead = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z + 2.0, 1.0)), 3)
    >>> z, log_q = ahead.sample_and_log_prob(jax.random.key(0))
    >>> kl_per_step(LatentSample(ahead, walk, z, log_q, jnp.array(4.0))).round(3).tolist()
    [0.0, 2.0, 2.0]
    """
    q, p = value_of(code.q), value_of(code.p)
    for name, d in ("posterior", q), ("prior", p):
        if not isinstance(d, Markov):
            raise TypeError(f"kl_per_step: the {name} is {a_class_of(d)}, expected a Markov chain")

    def at(q: Distribution, p: Distribution, z: Tree) -> Array:
        return kl(q, p, z, log_density(q, z))

    (first_q, steps_q), (first_p, steps_p) = q.given(code.z).parts, p.given(code.z).parts
    first, rest = first_and_rest(code.z)
    later = jax.vmap(at)(steps_q.parts, steps_p.parts, rest)
    return jnp.concatenate([at(first_q, first_p, first)[None], later])
