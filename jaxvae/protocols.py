"""What is asked of a distribution: methods, never a base class.

A distribution needs two of them. Whatever else the library knows of its own classes it asks of the
object first, whoever wrote it:

    method                        who asks                            without it
    ----------------------------  ----------------------------------  ------------------------------
    sample(key), log_prob(event)  everyone                            required
    sample_and_log_prob(key)      bounds                              sample, then log_prob
    mean()                        reconstructions, active units       an error, or draws
    kl_to(p), or None             kl_divergence, auto_kl, free bits   the library's, or sampled
    unstack()                     Masked, free bits, decompositions   an error
    tempered(t), top_k(k)         tempered, top_k                     the library's, or in_parts
    in_parts(change)              tempered, top_k                     an error
    after(z, t, steps)            use.forecast                        an error
    covariance()                  dip_2_penalty                       an error
    enumerate_support()           enumeration                         an error
    sample_relaxed(key, t)        gumbel_softmax                      an error
    choices()                     reinmax, gumbel_rao, relax          an error
    log_prob_relaxed(z)           what a relaxed draw is scored with  log_prob
    log_prob_of_each(z), of K     Mixture                             log_prob, of one by one
    cdf(z), beside unstack()      Mixture                             draws have no derivative
    times(q)                      product_of_experts, Ladder          the library's, or an error
    levels_at(z)                  the rates of `Descent`'s levels     the rate of the whole
    filler, in the support        Masked                              a draw
    reparameterized               estimators, before they use a path  True
    certain: all draws are one    log_marginal, before it trusts one  False
    check_event(name, what, x)    bounds, before they score x         the shapes of a draw
    support(x), booleans          bounds: log p = -inf outside        log_prob decides

An error names the method to add; docs/new_method.md shows how. The functions here are how the rest
of the library calls distributions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from jaxvae.checks import (
    Tree,
    a_class_of,
    check_log_prob,
    check_shape,
    kind,
    of_batches,
    within,
    written,
)
from jaxvae.pytrees import T, pytree, value_of


def check_density(owner: str, name: str, d: object) -> None:
    """Raise TypeError unless `d` has a density."""
    check_distribution(f"{owner}: {name} is", d)


def check_distribution(what: str, d: object) -> None:
    """Raise TypeError, which begins with `what`, unless `d` has a density."""
    if not hasattr(d, "log_prob"):
        raise TypeError(
            f"{what} {a_class_of(d)}, expected a distribution "
            "(an object with sample(key) and log_prob(event)), e.g. jaxvae.Normal(loc, scale)"
        )


@kind(check_density)
@runtime_checkable
class Distribution(Protocol):
    """What every bound asks of a prior, a posterior or a likelihood.

    >>> from jaxvae import Normal
    >>> isinstance(Normal(0.0, 1.0), Distribution), isinstance(lambda z: z, Distribution)
    (True, False)
    """

    def sample(self, key: Array) -> Any: ...

    def log_prob(self, event: Tree, /) -> Array: ...


class Density(Protocol):
    """A distribution that need not be drawn from, as `OptimalNormal` can't be."""

    def log_prob(self, event: Tree, /) -> Array: ...


D = TypeVar("D", bound=Density, covariant=True)


def distribution(cls: type[T]) -> type[T]:
    """`pytree`, of a distribution whose log_prob refuses what has not its `shape`.

    A bound holds every event against a draw, whose distribution it may be; this is for a direct
    call, in which a batch would broadcast to a number.
    """
    for name in ("log_prob", "log_prob_relaxed"):
        if name in vars(cls):
            setattr(cls, name, _of_one_shape(f"{cls.__name__}.{name}", getattr(cls, name)))
    return pytree(cls)


def _of_one_shape(owner: str, log_prob: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    @wraps(log_prob)
    def checked(self: Any, event: Any, /) -> Array:
        if isinstance(self.shape, tuple):
            check_shape(owner, "event", event, self.shape)
        return log_prob(self, event)

    return checked


def sample_and_log_prob(d: Distribution, key: Array) -> tuple[Any, Array]:
    """Draw an event and its log-density, a scalar in nats, in one pass: `(z, log d(z))`.

    Uses `d.sample_and_log_prob(key)` where the distribution has it, for digits or for speed (a flow
    then never inverts itself), and otherwise `sample` followed by `log_prob`.

    Raises:
      ValueError: if the log-density is not a scalar.

    >>> from jaxvae import Normal
    >>> z, log_q = sample_and_log_prob(Normal(jnp.zeros(3), jnp.ones(3)), jax.random.key(0))
    >>> z.shape, log_q.shape
    ((3,), ())
    """
    one_pass = getattr(d, "sample_and_log_prob", None)
    if one_pass is None:
        z = d.sample(key)
        return z, log_density(d, z)
    z, log_q = one_pass(key)
    check_log_prob(type(d).__name__, log_q)
    return z, log_q


def log_density(d: Distribution, event: Tree) -> Array:
    """log d(event), a scalar in nats; ValueError, naming d's class, if it is none."""
    log_p = d.log_prob(event)
    check_log_prob(type(d).__name__, log_p)
    return _in_support(d, event, log_p)


def _in_support(d: Distribution, event: Tree, log_p: Array) -> Array:
    """log d(event), which is -inf where `d.support(event)` is False; see `checks.within`.

    It holds booleans of each leaf of the event. That of numpyro's is asked too, which looks at
    events itself only where they are concrete.
    """
    support = getattr(d, "support", None)
    if not callable(support):
        return log_p
    owner = type(d).__name__
    expected = f"what {owner}.support is True for"
    with default_promotion():
        inside = support(event)
    found = zip(jax.tree.leaves(event), jax.tree.leaves(inside), strict=True)
    inside = [within(f"{owner}.log_prob", x, inside, expected) for x, inside in found]
    return jnp.where(jnp.all(jnp.stack(inside)), log_p, -jnp.inf)


@contextmanager
def default_promotion() -> Iterator[None]:
    """JAX's default rules: other libraries broadcast and promote, whatever the caller forbids."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def log_prob_of(name: str, d: Distribution, what: str, event: Tree) -> Array:
    """log d(event) of an event that d did not draw, a scalar in nats.

    Here alone the event's shape is held against the distribution's, for ours and anyone's: what
    broadcasts is a wrong number without a word. `name`, as "decode(z)", and `what`, "x" or "z", are
    for the ValueError.
    """
    check_event(name, d, what, event)
    log_p = d.log_prob(event)
    check_log_prob(name, log_p)
    return _in_support(d, event, log_p)


def log_prior_of(p: Distribution, z: Tree) -> Array:
    """log p(z) of latents that an estimator may have relaxed, a scalar in nats; checks both."""
    check_distribution("model.prior is", p)
    check_event("the prior", p, "z", z)
    return log_density_relaxed(p, z)


def log_density_relaxed(d: Distribution, z: Tree) -> Array:
    """`log_density` of a latent that an estimator may have relaxed, as `gumbel_softmax` does.

    It is `d.log_prob_relaxed(z)` where d has it, as a `Bernoulli`, whose log_prob is of 0. and 1.
    numpyro's choices, which say no more than their log_prob, are not asked for their support.
    """
    own = getattr(d, "log_prob_relaxed", None)
    if own is None and not getattr(getattr(d, "support", None), "is_discrete", False):
        return log_density(d, z)
    log_p = (own or d.log_prob)(z)
    check_log_prob(type(d).__name__, log_p)
    return log_p


def check_event(name: str, d: Distribution, what: str, event: Any) -> None:
    """ValueError unless the event has the structure and the shapes of a draw of d.

    The draw is traced for its shape and never computed. A distribution whose events need not look
    like its draws has a `check_event(name, what, event)` of its own, as `Masked` and so a `Product`
    of them; of one that can't be drawn from, as `OptimalNormal`, nothing is known.
    """
    own = getattr(d, "check_event", None)
    if own is not None:
        own(name, what, event)
    elif hasattr(d, "sample") and (draw := _shapes_of_draw(d)) is not None:
        found, expected = jax.tree.structure(event), jax.tree.structure(draw)
        if found != expected:
            raise ValueError(
                f"model: {what} has structure {found}, expected {expected} as draws of {name} have"
            )
        paths = jax.tree_util.tree_leaves_with_path(event)
        for (path, leaf), like in zip(paths, jax.tree.leaves(draw), strict=True):
            if jnp.shape(leaf) != like.shape:
                raise ValueError(
                    f"model: {what}{written(event, path)} has shape {jnp.shape(leaf)}, "
                    f"expected {like.shape} as draws of {name} have"
                    f"{of_batches(jnp.shape(leaf), like.shape)}"
                )


def _shapes_of_draw(d: Distribution) -> Any:
    """A draw's shapes and dtypes, or None of what has a density and no draws, an improper prior."""
    try:  # a draw of another library may broadcast, whatever the caller forbids
        with default_promotion():
            return jax.eval_shape(lambda: d.sample(jax.random.key(0)))
    except NotImplementedError:
        return None


def event_shape(d: Distribution) -> Any:
    """Of one event of d: what d says, or of a draw, a tree of shapes where that is a tree."""
    shape = getattr(d, "shape", None)
    if isinstance(shape, tuple):
        return shape
    return jax.tree.map(lambda leaf: leaf.shape, _shapes_of_draw(d))


def has_path(d: Distribution) -> bool:
    """Whether samples of d have a derivative in its parameters: `reparameterized`, or numpyro's."""
    return getattr(d, "reparameterized", getattr(d, "has_rsample", True))


def is_certain(d: Distribution) -> bool:
    """Whether all draws of d are one, as the code of a VQ-VAE, which has one importance weight."""
    return getattr(value_of(d), "certain", False)


def any_part(ask: Callable[[Any], bool], d: Distribution) -> bool:
    """Whether it is so of d or of a part of it, at any depth; draws are traced, not computed.

    >>> from jaxvae import Joint, Normal
    >>> from jaxvae.models import Delta
    >>> q = Joint(Normal(0.0, 1.0), Partial(Delta))
    >>> any_part(is_certain, q), is_certain(q)
    (True, False)
    """
    found = []

    def look(part: Any) -> Any:
        part = value_of(part)
        found.append(ask(part))
        return part.in_parts(Partial(look)) if hasattr(part, "in_parts") else part

    if not hasattr(value_of(d), "in_parts"):
        return ask(value_of(d))
    jax.eval_shape(lambda: look(d).sample(jax.random.key(0)))
    return any(found)


def traced(ask: Callable[[Distribution], bool], make: Callable[[], Any]) -> bool:
    """`has_path`, `is_certain` of what takes a draw to make; nothing is computed."""
    answer = []
    jax.eval_shape(lambda: answer.append(ask(make())))
    return answer[0]


ARGUMENTS = {
    "after": "z, t, steps",
    "sample": "key",
    "sample_relaxed": "key, t",
    "tempered": "t",
    "times": "q",
    "top_k": "k",
}
"""Of those methods of the table above that take any."""


class MissingMethodError(TypeError):
    """A distribution is asked for an optional method that it does not have."""


def method_of(d: Distribution, name: str, owner: str = "", instead: str = "") -> Any:
    """An optional method of d, one of the table above; a MissingMethodError says to add it.

    `owner` is who asks and `instead` what else to do, for the message.
    """
    method = getattr(d, name, None)
    if method is None:
        raise MissingMethodError(
            f"{owner}{owner and ': '}{type(d).__name__} has no {name}; add "
            f"`{name}({ARGUMENTS.get(name, '')})`, see docs/new_method.md"
            f"{instead and ', or '}{instead}"
        )
    return method


def check_factor(d: Any, other: Any) -> None:
    """Raise unless d.times(other) is of one class, over events of one shape."""
    owner = f"{type(d).__name__}.times"
    if type(other) is not type(d):
        raise TypeError(
            f"{owner}: other is {a_class_of(other)}, expected {a_class_of(d)}: a product of "
            f"another class is its own `times(other)`, see docs/new_method.md"
        )
    found, expected = event_shape(other), event_shape(d)
    if found != expected:
        raise ValueError(f"{owner}: other is over events of shape {found}, expected {expected}")


def mean_of(d: Distribution) -> Any:
    """The mean of a distribution that has one, `mean()` here and a property in numpyro.

    Raises:
      TypeError: it has none, as a `Categorical`.

    >>> from jaxvae import Bernoulli
    >>> mean_of(Bernoulli(jnp.zeros(2))).tolist()
    [0.5, 0.5]
    """
    mean = method_of(d, "mean", instead="use a distribution that has one")
    if callable(mean):
        return mean()
    of = d
    while (inner := getattr(of, "base_dist", None)) is not None:
        of = inner
    if type(of).__name__.startswith("Categorical"):  # whose mean is NaN in numpyro
        raise MissingMethodError(
            f"{type(of).__name__} has no mean; use a distribution that has one"
        )
    return mean
