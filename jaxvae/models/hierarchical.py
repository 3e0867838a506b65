"""Models of several layers of latents, made of `Joint`.

An inference network that shares parts with the generative one makes the three parts of the model
depend on each other, so these models are pytrees of their own whose `prior`, `encode` and `decode`
are made of shared fields. Latents are nested pairs from the top down: (z_L, (z_{L-1}, (..., z_1))).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.tree_util import Partial

from jaxvae.checks import Tree, a_class_of, checked
from jaxvae.distributions import Joint, Normal
from jaxvae.protocols import Distribution
from jaxvae.pytrees import shown, swappable, value_of


@checked
def hierarchy(first: Distribution, *conditionals: Any) -> Any:
    """first(z_1) c_1(z_2|z_1) c_2(z_3|z_2) ...: a Markov chain as nested `Joint`s.

    As a prior it goes from the top down, p(z_L) ... p(z_1|z_2); as a posterior either with it, or
    from the bottom up, q(z_1|x) q(z_2|z_1), and then `Transformed(..., Reverse())` gives the two
    layers the order of the prior.

    Args:
      first: the distribution of the first layer; itself the chain if there are no conditionals.
      conditionals: callable pytrees, from one layer to the distribution of the next.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> step = Partial(lambda z: Normal(z, jnp.ones(2)))
    >>> chain = hierarchy(Normal(jnp.zeros(2), jnp.ones(2)), step, step)
    >>> a, (b, c) = chain.sample(jax.random.key(0))
    >>> c.shape
    (2,)
    """
    if not conditionals:
        return first
    return Joint(first, Partial(_continue, conditionals))


def _continue(conditionals: tuple[Any, ...], z: Tree) -> Any:
    return hierarchy(conditionals[0](z), *conditionals[1:])


@checked
def bottom(z: Tree) -> Any:
    """The last layer z_1 of nested pairs.

    >>> import jax.numpy as jnp
    >>> bottom((jnp.zeros(4), (jnp.zeros(3), jnp.zeros(2)))).shape
    (2,)
    """
    while isinstance(z, tuple):
        z = z[-1]
    return z


def gaussian_product(a: Normal, b: Normal) -> Normal:
    """The Gaussian proportional to the product of two (Sonderby et al. 2016).

    sigma^2 = 1 / (sigma_a^-2 + sigma_b^-2),   mu = sigma^2 (mu_a sigma_a^-2 + mu_b sigma_b^-2)

    >>> d = gaussian_product(Normal(0.0, 1.0), Normal(2.0, 1.0))
    >>> float(d.loc), round(float(d.scale), 5)
    (1.0, 0.70711)
    """
    a, b = value_of(a), value_of(b)
    for name, d in ("a", a), ("b", b):
        if not isinstance(d, Normal):
            raise TypeError(
                f"gaussian_product: {name} is {a_class_of(d)}, expected a Normal; add "
                f"`times(other)` to {type(a).__name__}, see docs/new_method.md"
            )
    return a.times(b)


def times(a: Any, b: Any) -> Any:
    """The distribution proportional to the product of two: `a.times(b)`."""
    a, b = value_of(a), value_of(b)
    return a.times(b) if hasattr(a, "times") else gaussian_product(a, b)


@shown
@swappable
class Ladder(NamedTuple):
    """The ladder VAE: a deterministic way up, and a way down that inference and generation share.

    Up, d_l = up_l(d_{l-1}) with d_0 = x. Down, q(z_l|z_{l+1}, x) is the precision-weighted product
    of the evidence q^_l(d_l) and of the generative p(z_l|z_{l+1}); at the top it is the evidence.
    Sonderby, Raiko, Maaloe, Sonderby & Winther 2016.

    Args:
      up: L networks, x -> d_1, d_1 -> d_2, ...
      evidence: L conditionals, d_l -> `Normal`, or what has `times(p)` of the conditional above.
      top: p(z_L).
      down: L - 1 conditionals, z_L -> p(z_{L-1}|z_L), ..., z_2 -> p(z_1|z_2), `Normal`s.
      likelihood: z_1 -> p(x|z_1).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> given = Partial(lambda v: Normal(v, jnp.ones(2)))
    >>> up = Partial(jnp.tanh)
    >>> top = Normal(jnp.zeros(2), jnp.ones(2))
    >>> model = Ladder((up, up), (given, given), top, (given,), given)
    >>> z2, z1 = model.encode(jnp.ones(2)).sample(jax.random.key(0))
    >>> z2.shape, model.decode((z2, z1)).mean().shape
    ((2,), (2,))
    """

    up: Sequence[Callable[[Any], Any]]
    evidence: Sequence[Callable[[Any], Any]]
    top: Any
    down: Sequence[Callable[[Any], Any]]
    likelihood: Callable[[Any], Any]

    @property
    def prior(self) -> Any:
        return hierarchy(self.top, *self.down)

    def encode(self, x: Tree) -> Any:
        sizes = len(self.up), len(self.evidence), len(self.down) + 1
        if len({*sizes}) > 1:
            raise ValueError(
                f"Ladder: up, evidence and down are of {sizes[0]}, {sizes[1]} and {sizes[2] - 1} "
                "levels, expected L, L and L - 1"
            )
        evidence = []
        for up, at in zip(self.up, self.evidence, strict=True):
            x = up(x)
            evidence.append(at(x))
        *below, top = evidence
        pairs = zip(self.down, below[::-1], strict=True)
        return hierarchy(top, *(Partial(_combined, down, at) for down, at in pairs))

    def decode(self, z: Tree) -> Any:
        for _ in self.down:
            _, z = z
        return self.likelihood(z)


def _combined(down: Callable[[Any], Any], evidence: Tree, z: Tree) -> Any:
    return times(evidence, down(z))


@shown
class Block(NamedTuple):
    """One level of a `TopDown` model: what it is from above, from x too, and what it hands on.

    Args:
      prior: h -> p(z_l | h), h the features of all layers above.
      posterior: (h, features of x) -> q(z_l | h, x).
      merge: (h, z_l) -> the features for the level below.
    """

    prior: Callable[[Any], Any]
    posterior: Callable[[Any], Any]
    merge: Callable[[Any], Any]


@shown
@swappable
class TopDown(NamedTuple):
    """A deep hierarchy whose levels share a stream of features on the way down: the VDVAE's.

    p(z_l | z_{>l}) and q(z_l | z_{>l}, x) both start from h_l, which all z above have written to.
    Child 2021, section 3 and figure 3.

    Args:
      up: x -> a tuple of features, one for each of `blocks`.
      start: h at the top, a learned array.
      blocks: `Block`s from the top down, or what has their three fields: levels that are alike
        are one `Alike`, and a compiled one.
      likelihood: h after the last level -> p(x | z).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> of = Partial(lambda h: Normal(h, jnp.ones(2)))
    >>> of_both = Partial(lambda pair: Normal(pair[0] + pair[1], jnp.ones(2)))
    >>> block = Block(of, of_both, Partial(lambda pair: pair[0] + pair[1]))
    >>> model = TopDown(Partial(lambda x: (x, x)), jnp.zeros(2), (block, block), of)
    >>> z2, z1 = model.encode(jnp.ones(2)).sample(jax.random.key(0))
    >>> model.decode((z2, z1)).mean().shape
    (2,)
    """

    up: Callable[[Any], Sequence[Any]]
    start: Any
    blocks: Sequence[Any]
    likelihood: Callable[[Any], Any]

    @property
    def prior(self) -> Any:
        return _descend(tuple(self.blocks), None, self.start)

    def encode(self, x: Tree) -> Any:
        return _descend(tuple(self.blocks), self.features(x), self.start)

    def features(self, x: Tree) -> tuple[Any, ...]:
        """`up` of x: those of each block."""
        found, expected = self.up(x), len(self.blocks)
        if not isinstance(found, (tuple, list)) or len(found) != expected:
            of = f" of {len(found)}" * isinstance(found, (tuple, list))
            raise ValueError(
                f"TopDown: up returned {a_class_of(found)}{of}, expected a tuple of features, "
                f"one of each of the {expected} blocks, from the top down"
            )
        return tuple(found)

    def decode(self, z: Tree) -> Any:
        h, rest = self.start, z
        for block in self.blocks[:-1]:
            z_l, rest = rest
            h = block.merge((h, z_l))
        return self.likelihood(self.blocks[-1].merge((h, rest)))


def _descend(blocks: tuple[Block, ...], features: tuple[Any, ...] | None, h: Any) -> Any:
    """p of the levels `blocks` given h, or q given the features of x too."""
    block, *below = blocks
    here = block.prior(h) if features is None else block.posterior((h, features[0]))
    if not below:
        return here
    rest = None if features is None else features[1:]
    return Joint(here, Partial(_below, block, tuple(below), rest, h))


def _below(block: Block, below: Any, features: Any, h: Any, z: Tree) -> Any:
    return _descend(below, features, block.merge((h, z)))
