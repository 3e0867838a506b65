"""Distributions over ONE event of coins or choices: what has no derivative, and what stands in.

A sample has no derivative in the logits, which `reparameterized = False` says. These methods serve
the estimators that are made for this: `enumerate_support()`, every event stacked,
`sample_relaxed(key, temperature)`, a differentiable draw that tends to a sample as the temperature
goes to 0, `log_prob_relaxed(z)` of it, where log_prob itself is of events alone, and `choices()`,
the logits of a one-hot choice in each place with the function that makes an event of choices.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import (
    Floats,
    Leaf,
    Numbers,
    Scalar,
    Tree,
    as_integers,
    check_floats,
    checked,
    logits_shape,
    within,
)
from jaxvae.distributions.special import log_bernoulli, weighted
from jaxvae.protocols import check_factor, distribution
from jaxvae.pytrees import in_a_row

COINS = "floats 0. or 1.; see jaxvae.binarize, or ContinuousBernoulli for grey pixels in [0, 1]"
ONE_HOT = "a 1. and else 0. along the last axis, as jax.nn.one_hot gives"


@distribution
@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Independent coins with logits l: the likelihood of binary pixels.

    log p(x) = sum_i [ x_i l_i - log(1 + exp l_i) ]

    exact for every logit in value and gradient, infinite ones too, where the usual
    -log(-expm1(log_sigmoid(l))) is infinite from l = 104 on in float32. A grey pixel is no event of
    a coin, though the formula has a value there: `binarize` it, or take the density
    `ContinuousBernoulli`.

    Args:
      logits: l, any shape [...]; events are 0. or 1. in that shape and dtype.

    >>> round(float(Bernoulli(jnp.zeros(2)).log_prob(jnp.array([0.0, 1.0]))), 5)  # -2 log 2
    -1.38629
    """

    logits: Leaf
    reparameterized: ClassVar[bool] = False
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return logits_shape("Bernoulli", self.logits)

    def sample(self, key: Array) -> Array:
        draw = jax.random.bernoulli(key, self.mean(), self.shape)
        return draw.astype(jnp.result_type(self.logits))

    def log_prob(self, x: Tree) -> Array:
        owner, expected = "Bernoulli.log_prob", COINS
        check_floats(owner, "event", x, expected=expected)
        # where a machine's division is a reciprocal's, 255 / 255 is 1 but for its last bit
        inside = within(owner, x, (x == 0) | (jnp.abs(x - 1.0) < 1e-5), expected)
        log_p = self.log_prob_relaxed(x)
        possible = log_p > 0.5 * jnp.finfo(log_p.dtype).min
        log_p += jnp.where(possible, 0.0, -jnp.inf)  # the slope does without the value
        return jnp.where(inside, log_p, -jnp.inf)

    def log_prob_relaxed(self, z: Tree) -> Array:
        """The formula at a relaxed draw, in [0, 1]: log p is linear between its events."""
        z, l = in_a_row(z, self.logits)
        return log_bernoulli(z, l)

    def mean(self) -> Array:
        return jax.nn.sigmoid(self.logits)

    def unstack(self) -> Any:
        return self

    def sample_relaxed(self, key: Array, temperature: Numbers) -> Array:
        """sigma((l + logistic noise) / temperature). Maddison et al. 2017."""
        noise = jax.random.logistic(key, self.shape, jnp.result_type(self.logits))
        return jax.nn.sigmoid((self.logits + noise) / temperature)

    def times(self, other: "Bernoulli") -> "Bernoulli":
        check_factor(self, other)
        return Bernoulli(jnp.asarray(self.logits) + other.logits)

    def choices(self) -> tuple[Array, Callable[[Array], Array]]:
        """A coin is the second of two choices, of logits 0 and l."""
        l = jnp.asarray(self.logits)
        return jnp.stack([jnp.zeros_like(l), l], axis=-1), lambda choice: choice[..., 1]

    def enumerate_support(self) -> Array:
        """All 2^n events, shape [2^n, *shape]."""
        return _choices(2, self.shape).astype(jnp.result_type(self.logits))


@distribution
@dataclass(frozen=True, eq=False)
class Categorical:
    """Independent choices among K: log p(z) = sum_i [ l_{i, z_i} - log sum_k exp l_ik ].

    It has no `mean`: the average of labels means nothing. A decoder that is to be trained through
    `straight_through` or `gumbel_softmax` takes the same choices as `OneHotCategorical`.

    Args:
      logits: l, shape [..., K], finite or -inf; events are integers 0..K-1 of shape [...].

    >>> d = Categorical(jnp.zeros(4))
    >>> round(float(d.log_prob(jnp.array(2))), 5)  # -log 4
    -1.38629
    """

    logits: Leaf
    reparameterized: ClassVar[bool] = False
    filler: ClassVar[float] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return logits_shape("Categorical", self.logits, axes=1)[:-1]

    @property
    def log_probs(self) -> Array:
        """Normalised log-probabilities, shape [..., K]."""
        return jax.nn.log_softmax(self.logits)

    def sample(self, key: Array) -> Array:
        return jax.random.categorical(key, self.logits)

    def log_prob(self, z: Tree) -> Array:
        k = jnp.shape(self.logits)[-1]
        owner, expected = "Categorical.log_prob", f"integers 0..{k - 1}"
        z = as_integers(owner, z, expected)
        inside = within(owner, z, (z >= 0) & (z < k), expected)
        index = jnp.expand_dims(z, -1)
        log_p = jnp.sum(jnp.take_along_axis(self.log_probs, index, axis=-1))
        return jnp.where(inside, log_p, -jnp.inf)

    def unstack(self) -> Any:
        return self

    def times(self, other: "Categorical") -> "Categorical":
        check_factor(self, other)
        return Categorical(self.log_probs + other.log_probs)

    def enumerate_support(self) -> Array:
        """All K^n events, integers of shape [K^n, *shape]."""
        return _choices(jnp.shape(self.logits)[-1], self.shape)


@distribution
@dataclass(frozen=True, eq=False)
class OneHotCategorical:
    """Independent choices among K, each a one-hot vector: log p(z) = sum_ik z_ik log p_ik.

    As `Categorical`, with events that a decoder can take a gradient in. Of anything else, such as
    a missing label (all zeros) or shares of classes, log p is -inf, and a ValueError where z is
    concrete.

    Args:
      logits: l, shape [..., K], finite or -inf; that is the shape and dtype of events.

    >>> d = OneHotCategorical(jnp.zeros(4))
    >>> round(float(d.log_prob(jnp.array([0.0, 0.0, 1.0, 0.0]))), 5)  # -log 4
    -1.38629
    """

    logits: Leaf
    reparameterized: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return logits_shape("OneHotCategorical", self.logits, axes=1)

    @property
    def log_probs(self) -> Array:
        """Normalised log-probabilities, shape [..., K]."""
        return Categorical(self.logits).log_probs

    def sample(self, key: Array) -> Array:
        return self._one_hot(Categorical(self.logits).sample(key))

    def log_prob(self, z: Tree) -> Array:
        z = jnp.asarray(z)
        ones = jnp.abs(z - 1) < 1e-5  # through the gradient's detour 1 is 1 but for its last bit
        one_hot = jnp.all(ones | (z == 0), axis=-1) & (jnp.sum(ones, axis=-1) == 1)
        inside = within("OneHotCategorical.log_prob", z, one_hot, ONE_HOT)
        return jnp.where(inside, self.log_prob_relaxed(z), -jnp.inf)

    def log_prob_relaxed(self, z: Tree) -> Array:
        """The formula at a relaxed draw, in the simplex: log p is linear between its events."""
        return jnp.sum(weighted(z, self.log_probs))

    def mean(self) -> Array:
        return jax.nn.softmax(self.logits)

    def sample_relaxed(self, key: Array, temperature: Numbers) -> Array:
        """softmax((l + Gumbel noise) / temperature). Jang et al. 2017, equation 2."""
        noise = jax.random.gumbel(key, self.shape, jnp.result_type(self.logits))
        return jax.nn.softmax((self.logits + noise) / temperature)

    def times(self, other: "OneHotCategorical") -> "OneHotCategorical":
        check_factor(self, other)
        return OneHotCategorical(self.log_probs + other.log_probs)

    def choices(self) -> tuple[Array, Callable[[Array], Array]]:
        return jnp.asarray(self.logits), lambda choice: choice

    def enumerate_support(self) -> Array:
        """All K^n events, shape [K^n, *shape]."""
        return self._one_hot(Categorical(self.logits).enumerate_support())

    def _one_hot(self, z: Array) -> Array:
        return jax.nn.one_hot(z, self.shape[-1], dtype=jnp.result_type(self.logits))


@checked
def unimix(logits: Floats, *, share: Scalar = 0.01) -> Array:
    """Logits of the softmax mixed with a uniform share: no choice of K is ever less than share / K.

    log [ (1 - share) softmax(l)_k + share / K ]

    The rate between two such choices is finite and its gradient bounded, however sure either is.
    Hafner et al. 2023 (DreamerV3), "Discrete representations", with share = 1 %.

    Args:
      logits: l [..., K].
      share: in [0, 1], traced.

    >>> p = jnp.exp(unimix(jnp.array([0.0, -jnp.inf]), share=0.5))
    >>> [round(float(k), 6) for k in p]
    [0.75, 0.25]
    """
    k = logits_shape("unimix", logits, axes=1)[-1]
    log_p, least = jnp.log1p(-share) + jax.nn.log_softmax(logits), jnp.log(share / k)
    possible = jnp.maximum(log_p, least) > -jnp.inf  # else logaddexp has no gradient
    return jnp.where(possible, jnp.logaddexp(jnp.where(possible, log_p, 0.0), least), -jnp.inf)


def _choices(k: int, shape: tuple[int, ...]) -> Array:
    """Every way to choose one of k in each place of `shape`: integers [k^n, *shape]."""
    chosen = combinations((k,) * math.prod(shape))
    return chosen.reshape(len(chosen), *shape)


def combinations(sizes: Sequence[int]) -> Array:
    """Every way to choose one of k_i in place i: integers [prod k_i, places]."""
    if math.prod(sizes) > 2**20:
        raise ValueError(
            f"enumerate_support: up to {max(sizes)} choices in {len(sizes)} places are "
            f"{math.prod(sizes)} events, expected at most 2^20; use gradient=score_function or "
            "vimco, which sample"
        )
    return jnp.indices(sizes).reshape(len(sizes), math.prod(sizes)).T


@distribution
@dataclass(frozen=True, eq=False)
class OpenCategorical(Categorical):
    """A `Categorical` whose last choice is whatever was never seen: it is scored and not drawn."""

    def known(self) -> Categorical:
        """That of the choices that were seen."""
        return Categorical(jnp.asarray(self.logits)[..., :-1])

    def sample(self, key: Array) -> Array:
        return self.known().sample(key)


def open_categorical(logits: Array) -> OpenCategorical:
    """Choices among K, and as number K, of probability 1/1000, whatever was never seen.

    >>> d = open_categorical(jnp.zeros((1, 4)))
    >>> [round(float(p), 5) for p in jnp.exp(d.log_probs[0])]
    [0.24975, 0.24975, 0.24975, 0.24975, 0.001]
    """
    known = jax.nn.log_softmax(logits) + jnp.log1p(-1e-3)
    unseen = jnp.full_like(known[..., :1], jnp.log(1e-3))
    return OpenCategorical(jnp.concatenate([known, unseen], axis=-1))
