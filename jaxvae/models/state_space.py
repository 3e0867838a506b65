"""Sequences of latents: a Markov chain as one distribution, and what a deep Markov model adds.

`hierarchy` is the same chain for a few layers that differ; here all steps share a transition, so
that a chain of any length is one `lax.scan` to draw and one `jax.vmap` to score.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.tree_util import Partial

from jaxvae.batching import check_rows
from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import Count, Key, Scalar, Tree, a_class_of, check_leaves, check_pair, checked
from jaxvae.distributions import Independent, Masked, Product
from jaxvae.evaluation.latent_space import Index, tempered, tempered_given
from jaxvae.models.multimodal import whole
from jaxvae.protocols import (
    Distribution,
    Model,
    check_distribution,
    has_path,
    likelihood,
    log_density,
    posterior,
    prior,
    sample_and_log_prob,
    traced_has_path,
)
from jaxvae.pytrees import pytree, value_of

D = TypeVar("D", bound=Distribution)


@pytree
@dataclass(frozen=True, eq=False)
class Markov(Generic[D]):
    """p(z_1, ..., z_T) = p(z_1) prod_{t>1} p(z_t | z_{t-1}, c_t): events have a leading axis of T.

    A forecast is another chain, `after`; `use.forecast` makes it of data.
    Krishnan, Shalit & Sontag 2017, equation 1.

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
            or traced_has_path(
                lambda: self._step(
                    self.first.sample(jax.random.key(0)), jax.tree.map(lambda c: c[0], self.context)
                )
            )
        )

    def sample(self, key: Key) -> Any:
        return self.sample_and_log_prob(key)[0]

    @checked
    def log_prob(self, z: Tree) -> Array:
        self._check()
        before, after = self._pairs(z)
        steps = jax.vmap(lambda a, c, b: log_density(self._step(a, c), b))
        first = log_density(self.first, jax.tree.map(lambda leaf: leaf[0], z))
        return first + jnp.sum(steps(before, self.context, after))

    @checked
    def sample_and_log_prob(self, key: Key) -> tuple[Any, Array]:
        self._check()
        first_key, key = jax.random.split(key)
        first, log_first = sample_and_log_prob(self.first, first_key)

        def step(z: Tree, at: tuple[Array, Any]) -> tuple[Any, tuple[Any, Array]]:
            t, c = at
            z, log_p = sample_and_log_prob(self._step(z, c), jax.random.fold_in(key, t))
            return z, (z, log_p)

        steps = jnp.arange(self.length - 1)
        _, (rest, log_p) = jax.lax.scan(step, first, (steps, self.context))
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
        known, length = 1 if isinstance(t, Tracer) else t, _length("Markov", "z", z)
        if not 1 <= known <= length:
            raise ValueError(f"Markov: t is {t}, expected 1 to {length}, the states of z")
        at = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t - 1, 0, False), z)
        if self.context is None:
            return Markov(self._step(at, None), self.transition, steps)
        self._check()
        if steps > self.length - known:
            raise ValueError(
                f"Markov: steps is {steps}, expected at most {self.length - known} behind step "
                f"{known}, as the context is of {self.length} steps"
            )
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=t - 1, slice_size=steps)
        first, rest = _first_and_rest(jax.tree.map(cut, self.context))
        return Markov(self._step(at, first), self.transition, steps, rest)

    def tempered(self, temperature: Scalar) -> "Markov":
        """Every step tempered, given the one before it."""
        first = tempered(self.first, temperature)
        return replace(
            self, first=first, transition=Partial(tempered_given, self.transition, temperature)
        )

    @checked
    def given(self, z: Tree) -> Product:
        """Every step's distribution given the state before, over events (z_1, (z_2, ..., z_T))."""
        self._check()
        before, _ = self._pairs(z)
        return Product((self.first, Independent(jax.vmap(self._step)(before, self.context))))

    def _step(self, z: Tree, c: Any) -> Any:
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


def _first_and_rest(tree: Tree) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf[0], tree), jax.tree.map(lambda leaf: leaf[1:], tree)


def _length(owner: str, name: str, tree: Tree) -> int:
    """The leading axis that all leaves share, at least 1."""
    check_leaves(owner, name, tree)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or not all(sizes) or (0,) in sizes:
        raise ValueError(
            f"{owner}: {name} has leading axes {sorted(sizes)}, expected one of T >= 1"
        )
    return sizes.pop()[0]


@checked
def stepwise_kl(q: Distribution, p: Distribution, z: Tree, log_q: Array) -> Array:
    """The rate between two `Markov` chains, in closed form at every step given the state before.

    KL(q(z_1) || p(z_1)) + sum_{t>1} KL(q(z_t|z_{t-1}) || p(z_t|z_{t-1})), z ~ q

    Unbiased, and less noisy than the sampled rate: pass it to `elbo(..., kl=stepwise_kl)`. Where
    a step has no closed form, or the two are no chains, it is `auto_kl`.
    Krishnan, Shalit & Sontag 2017, equation 6.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 3)
    >>> float(stepwise_kl(walk, walk, *walk.sample_and_log_prob(jax.random.key(0))))
    0.0
    """
    q, p = value_of(q), value_of(p)
    if not (isinstance(q, Markov) and isinstance(p, Markov)):
        return auto_kl(q, p, z, log_q)
    return auto_kl(q.given(z), p.given(z), _first_and_rest(z), log_q)


class Smoother(NamedTuple, Generic[D]):
    """x_{1:T} -> q(z|x) = prod_t q(z_t | z_{t-1}, h_t), h_t a summary of x_t, ..., x_T: an encoder.

    The exact posterior of a state-space model has this form. Sequences of another length make
    chains of that length, so what encodes a whole sequence encodes its beginning, too.
    Krishnan, Shalit & Sontag 2017, section 4.

    Args:
      summary: x -> h, leaves with a leading axis of T; a recurrent network from the last to the
        first, `jax.lax.scan(cell, h, x, reverse=True)`.
      step: (z_{t-1}, h_t) -> q(z_t | z_{t-1}, h_t), a callable pytree.
      start: z_0, an array that trains.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> to_come = Partial(lambda x: jnp.cumsum(x[::-1])[::-1])
    >>> step = Partial(lambda pair: Normal(pair[0] + pair[1], 1.0))
    >>> Smoother(to_come, step, jnp.array(0.0))(jnp.ones(3)).first.loc.tolist()
    3.0
    """

    summary: Callable[[Any], Any]
    step: Callable[[Any], D]
    start: Tree

    @checked
    def __call__(self, x: Tree) -> Markov[D]:
        h = self.summary(x)
        length = _length("Smoother", "summary(x)", h)
        first, rest = _first_and_rest(h)
        return Markov(self.step((self.start, first)), self.step, length, rest)


@checked
def emissions(conditional: Callable[[Any], Any], z: Tree) -> Independent:
    """p(x|z) = prod_t p(x_t|z_t); `jax.tree_util.Partial(emissions, conditional)` is a decoder.

    >>> from jaxvae import Normal
    >>> emissions(lambda z: Normal(2.0 * z, 1.0), jnp.arange(3.0)).mean().tolist()
    [0.0, 2.0, 4.0]
    """
    _length("emissions", "z", z)
    return Independent(jax.vmap(conditional)(z))


class Padded(NamedTuple):
    """A model of sequences of unequal length, padded to one: behind what is seen q is the prior.

    q(z_t | z_{t-1}, x) = p(z_t | z_{t-1}) for every t after the last step seen

    Events are pairs (x, mask), the mask False where nothing was seen; anything may stand there, NaN
    included. The steps behind the last one seen have no rate and no distortion: every bound and
    log-weight is that of the sequence without them, and so is its gradient (but for noise of mean 0
    in the prior's where an estimator holds q, as `sticking_the_landing`). To hide the end of a
    sequence is to forecast it: `multiple_imputations` draws p(x_{t+1:T} | x_{1:t}). Gaps before the
    last step seen are missing entries, in which q stays the encoder's.

    Args:
      model: of sequences of T steps. `prior` is a `Markov` chain and `encode` returns one, of the
        pair (x, mask), whose steps are of the prior's class; `decode` returns a distribution with
        `unstack()`, as `emissions`, which is `Masked` here.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal, elbo
    >>> walk = Markov(Normal(0.0, 1.0), Partial(lambda z: Normal(z, 1.0)), 4)
    >>> encode = lambda event: Markov(Normal(2.0, 0.5), Partial(lambda z: Normal(z + 1.0, 0.5)), 4)
    >>> model = Padded(VAE(encode, Partial(emissions, lambda z: Normal(z, 1.0)), walk))
    >>> event = jnp.array([2.0, 3.0, jnp.nan, jnp.nan]), jnp.array([True, True, False, False])
    >>> bound, terms = elbo(model, jax.random.key(0), event, kl=stepwise_kl)
    >>> round(float(terms.rate), 4)  # KL(N(2, .25) || N(0, 1)) + KL(N(1, .25) || N(0, 1))
    3.1363
    """

    model: Model

    @property
    def prior(self) -> Any:
        return prior(self.model)

    @checked
    def encode(self, event: tuple[Any, Any]) -> Markov:
        check_pair("Padded", "event", event, "(x, mask)")
        p = _chain("prior is", self.prior)
        seen = _seen_from(event[1], p.length)
        q = _chain("encode returned", posterior(self.model, event))
        first, step = _either(seen[0], q.first, p.first), Partial(_step_of_either, q, p)
        return Markov(first, step, q.length, (q.context, p.context, seen[1:]))

    def decode(self, z: Tree) -> Masked:
        return Masked(likelihood(self.model, z))


def _chain(what: str, d: Distribution) -> Markov:
    d = value_of(d)
    if not isinstance(d, Markov):
        raise TypeError(f"Padded: model.{what} {a_class_of(d)}, expected a Markov chain")
    return d


def _seen_from(mask: Tree, length: int) -> Array:
    """Whether anything is seen at step t or after it, [T]."""
    check_rows("Padded", "mask", mask, length)
    flat = [jnp.reshape(leaf, (length, -1)).astype(bool) for leaf in jax.tree.leaves(mask)]
    return jnp.cumsum(jnp.any(jnp.concatenate(flat, axis=1), axis=1)[::-1])[::-1] > 0


def _step_of_either(q: Markov, p: Markov, at: tuple[Any, Any]) -> Any:
    z, (c_q, c_p, seen) = at
    return _either(seen, q._step(z, c_q), p._step(z, c_p))


def _either(seen: Array, q: Distribution, p: Distribution) -> Any:
    """q where it is seen, else p, of one class."""
    q, p = whole(q), whole(p)
    if jax.tree.structure(q) != jax.tree.structure(p):
        raise TypeError(
            f"Padded: a step of the posterior is {a_class_of(q)} and one of the prior "
            f"{a_class_of(p)}, expected two of one class"
        )
    return jax.tree.map(lambda a, b: jnp.where(seen, a, b), q, p)
