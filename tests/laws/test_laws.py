"""Every law on every public distribution. A new distribution joins by its rows in `OBJECTS`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.checks import check_shape
from jaxvae.distributions.interop import Adapted
from jaxvae.pytrees import pytree
from tests.common import close, draws, grid, is_differentiable, standard_errors_off


class Case(NamedTuple):
    """A distribution and its events.

    `make` is called inside the test, whose precision it then has. `support` gives every event
    [m, ...] of a discrete distribution, or nodes and weights for another sum over the event space;
    None is the plane or less, about the mean. `implicit` says that a draw's derivative is that of a
    quantile, not that of the draw at a fixed key.
    """

    make: Callable[[], Any]
    support: Callable[[], tuple[Any, Any]] | None = None
    discrete: bool = False
    implicit: bool = False


def every(*choices, shape=None, dtype: Any = float):
    """All combinations of the choices as events, each with weight 1."""
    events = np.array(list(product(*choices)))
    events = events.reshape(-1, *((len(choices),) if shape is None else shape))
    return lambda: (jnp.asarray(events, jnp.result_type(dtype)), np.ones(len(events)))


def panels(*edges, num=24):
    """Gauss-Legendre nodes and weights between the edges."""
    x, w = np.polynomial.legendre.leggauss(num)
    edges = np.asarray(edges, float)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    return (middle + half * x).ravel(), (half * w).ravel()


def plane(x, w):
    """Two coordinates, each over the same nodes."""
    events = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return lambda: (jnp.asarray(events), np.outer(w, w).ravel())


def positive():
    t, w = panels(*np.linspace(-30.0, 6.0, 25), num=12)
    return plane(np.exp(t), w * np.exp(t))()


def unit():
    ends = [0.0, *(10.0 ** -np.arange(8, 0, -1.0))]
    return plane(*panels(*ends, 0.5, *(1.0 - np.array(ends)[::-1])))()


def circle():
    t = 2.0 * np.pi * np.arange(200) / 200
    return jnp.asarray(np.stack([np.cos(t), np.sin(t)], axis=-1)), np.full(200, 2.0 * np.pi / 200)


def sphere():
    z, w = panels(-1.0, 1.0, num=60)
    t = 2.0 * np.pi * np.arange(60) / 60
    z, t = (a.ravel() for a in np.meshgrid(z, t, indexing="ij"))
    r = np.sqrt(1.0 - z**2)
    return jnp.asarray(np.stack([r * np.cos(t), r * np.sin(t), z], axis=-1)), np.repeat(
        w, 60
    ) * 2.0 * np.pi / 60


def triangle():
    x, w = panels(0.0, 1.0)
    (a, b), weight = np.meshgrid(x, x, indexing="ij"), np.outer(w, w)
    a, b, weight = a.ravel(), ((1.0 - a) * b).ravel(), (weight * (1.0 - a)).ravel()
    return jnp.asarray(np.stack([a, b, 1.0 - a - b], axis=-1)), weight


@pytree
@dataclass(frozen=True, eq=False)
class Flat:
    """A distribution whose events are trees, as one of their numbers in a row."""

    distribution: Any

    def sample(self, key):
        return ravel_pytree(self.distribution.sample(key))[0]

    def log_prob(self, z):
        like = jax.eval_shape(self.distribution.sample, key())
        flat, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, z.dtype), like))
        check_shape("Flat.log_prob", "event", z, flat.shape)
        return self.distribution.log_prob(unravel(z))

    def sample_and_log_prob(self, key):
        z, log_p = jv.sample_and_log_prob(self.distribution, key)
        return ravel_pytree(z)[0], log_p


def below(w, z, context):
    """The simplest conditioner of two coordinates: a line from the first to the second."""
    del context
    return jnp.tanh(jnp.outer(jnp.append(jnp.zeros_like(z[:1]), z[:-1]), w[0]) + w[1][None])


@pytree
@dataclass(frozen=True, eq=False)
class Below:
    """`below`, that draws from a cache in which nothing need be kept."""

    w: Any

    def __call__(self, z, context):
        return below(self.w, z, context)

    def init_cache(self, context):
        return context

    def step(self, cache, i, before):
        return cache, jnp.tanh(before * self.w[0] + self.w[1])


def layer():
    return jv.bijectors.InverseAutoregressive(Partial(below, jnp.array([[0.8, -0.5], [0.3, 0.4]])))


def gaussian_rows(raw):
    return jv.Normal(raw[:, 0], jnp.exp(raw[:, 1]))


def moved(z):
    return jv.Normal(0.5 * z, jnp.full_like(z, 0.7))


def residual(w, z, s):
    """Smooth, and no score of anything."""
    return w[0] + w[1] * jnp.tanh(z + 0.5 * jnp.roll(z, 1)) * (1.0 - s)


def line(w, z):
    return w[0] + jnp.dot(w[1:], z)


def wide(scale, h):
    return jv.Normal(h, scale)


def levels():
    """z_1 ~ N(h, 0.5^2), z_2 ~ N(h + z_1, 0.7^2)."""
    block = jv.models.Block(
        prior=Partial(wide, jnp.array([0.5, 0.7])),
        posterior=Partial(wide, jnp.ones(2)),  # of no use to the prior
        merge=Partial(sum),
    )
    return jv.models.Alike(block).prior(jnp.array(0.3))


OBJECTS = {
    "standard normal": Case(lambda: jv.StandardNormal((2,))),
    "standard normal, scalar": Case(lambda: jv.StandardNormal(())),
    "normal": Case(lambda: jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]))),
    "normal, one scale": Case(lambda: jv.Normal(jnp.array([[0.3], [-1.0]]), jnp.array(0.7))),
    "normal, Python numbers": Case(lambda: jv.Normal(0.3, 0.5)),
    "multivariate normal": Case(
        lambda: jv.MultivariateNormal(jnp.array([0.3, -1.0]), jnp.array([[0.5, 0.0], [-0.8, 1.2]]))
    ),
    "bernoulli": Case(
        lambda: jv.Bernoulli(jnp.array([0.2, -1.5, 0.9])), every(*3 * [(0, 1)]), discrete=True
    ),
    "bernoulli, matrix": Case(
        lambda: jv.Bernoulli(jnp.array([[0.2, -1.5]])),
        every((0, 1), (0, 1), shape=(1, 2)),
        discrete=True,
    ),
    "categorical": Case(
        lambda: jv.Categorical(jnp.array([0.2, -0.3, 0.5])),
        every(range(3), shape=(), dtype=int),
        discrete=True,
    ),
    "categorical, two": Case(
        lambda: jv.Categorical(jnp.array([[0.2, -0.3, 0.5], [1.0, 0.0, -1.0]])),
        every(range(3), range(3), dtype=int),
        discrete=True,
    ),
    "one-hot": Case(
        lambda: jv.OneHotCategorical(jnp.array([0.2, -0.3, 0.5])),
        lambda: (jnp.eye(3), np.ones(3)),
        discrete=True,
    ),
    "one-hot, two": Case(
        lambda: jv.OneHotCategorical(jnp.array([[0.2, -0.3, 0.5], [1.0, 0.0, -1.0]])),
        lambda: (jnp.eye(3)[np.indices((3, 3)).reshape(2, -1).T], np.ones(9)),
        discrete=True,
    ),
    "low rank": Case(
        lambda: jv.LowRankNormal(
            jnp.array([0.3, -1.0]), jnp.array([[0.5], [-0.8]]), jnp.array([0.4, 0.9])
        )
    ),
    "student t": Case(
        lambda: jv.StudentT(jnp.array([9.0, 12.0]), jnp.array([0.3, -1.0]), jnp.array([0.5, 0.8])),
        implicit=True,
    ),
    "gamma": Case(
        lambda: jv.Gamma(jnp.array([2.5, 0.8]), jnp.array([1.5, 3.0])), positive, implicit=True
    ),
    "beta": Case(
        lambda: jv.Beta(jnp.array([2.5, 1.2]), jnp.array([1.5, 3.0])), unit, implicit=True
    ),
    "dirichlet": Case(lambda: jv.Dirichlet(jnp.array([2.0, 3.0, 4.0])), triangle, implicit=True),
    "continuous bernoulli": Case(
        lambda: jv.ContinuousBernoulli(jnp.array([0.05, -3.0])), plane(*panels(0.0, 1.0))
    ),
    "poisson": Case(
        lambda: jv.Poisson(jnp.array([0.7, 2.0])), every(range(25), range(25)), discrete=True
    ),
    "negative binomial": Case(
        lambda: jv.NegativeBinomial(jnp.array([2.5, 7.0]), jnp.array([-1.5, -2.0])),
        every(range(40), range(30)),
        discrete=True,
    ),
    "zero-inflated": Case(
        lambda: jv.distributions.ZeroInflated(jv.Poisson(jnp.array(1.5)), jnp.array(-0.4)),
        every(range(30), shape=()),
        discrete=True,
    ),
    "each, zero-inflated": Case(
        lambda: jv.Independent(
            jv.distributions.ZeroInflated(
                jv.NegativeBinomial(jnp.array([2.5, 7.0]), jnp.array([-1.5, -2.0])),
                jnp.array([-0.4, 1.0]),
            )
        ),
        every(range(40), range(30)),
        discrete=True,
    ),
    "discretized logistic": Case(
        lambda: jv.DiscretizedLogistic(jnp.array([0.1, -0.9]), jnp.array([0.3, 0.2]), levels=5),
        every(range(5), range(5), dtype=int),
        discrete=True,
    ),
    "discretized logistic, coupled": Case(
        lambda: jv.DiscretizedLogistic(
            jnp.array([0.1, -0.9]), jnp.array([0.3, 0.2]), jnp.array([[9.0, 9.0], [0.7, 9.0]]), 5
        ),
        every(range(5), range(5), dtype=int),
        discrete=True,
    ),
    "logistic mixture": Case(
        lambda: jv.distributions.logistic_mixture(
            jnp.array([[[0.3, -0.2]]]),
            jnp.array([[[[0.1], [-0.8]]]]),
            jnp.array([[[[0.05], [0.4]]]]),
        ),
        every(range(256), shape=(1, 1, 1), dtype=int),
        discrete=True,
    ),
    "mixture": Case(
        lambda: jv.Mixture(
            jnp.array([0.3, -0.5]),
            jv.Normal(jnp.array([[0.3, -1.0], [1.0, 0.5]]), jnp.array([[0.5, 0.8], [0.6, 0.4]])),
        ),
        implicit=True,
    ),
    "each, mixture": Case(
        lambda: jv.Independent(
            jv.Mixture(
                jnp.array([[0.3, -0.5], [0.0, 1.0]]),
                jv.Normal(jnp.array([[0.3, -1.0], [1.0, 0.5]]), jnp.full((2, 2), 0.6)),
            )
        ),
        implicit=True,
    ),
    "mixture of coins": Case(
        lambda: jv.Mixture(
            jnp.array([0.3, -0.5]), jv.Bernoulli(jnp.array([[0.2, -1.5], [2.0, 1.0]]))
        ),
        every((0, 1), (0, 1)),
        discrete=True,
    ),
    "autoregressive": Case(
        lambda: jv.Autoregressive(
            Partial(below, jnp.array([[0.8, -0.5], [0.3, 0.4]])), gaussian_rows, 2
        )
    ),
    "autoregressive, a row at a time": Case(
        lambda: jv.Autoregressive(Below(jnp.array([[0.8, -0.5], [0.3, 0.4]])), gaussian_rows, 2)
    ),
    "diffusion": Case(
        lambda: jv.models.Diffusion(Partial(residual, jnp.array([[0.4, -0.2], [-0.6, 0.5]])), (2,))
    ),
    "resampled": Case(
        lambda: jv.distributions.Resampled(
            jv.Bernoulli(jnp.zeros(2)),
            Partial(line, jnp.array([-1.0, 0.7, 1.5])),
            jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
            4,
        ),
        every((0, 1), (0, 1)),
        discrete=True,
    ),
    "product": Case(
        lambda: Flat(jv.Product({"b": jv.Normal(0.3, 0.5), "a": jv.Normal(-0.2, 0.7)}))
    ),
    "joint": Case(lambda: Flat(jv.Joint(jv.Normal(0.3, 0.5), Partial(moved)))),
    "markov": Case(lambda: Flat(jv.models.Markov(jv.Normal(0.3, 0.5), Partial(moved), 2))),
    "straight-through": Case(
        lambda: jv.distributions.StraightThrough(jv.OneHotCategorical(jnp.array([0.2, -0.3, 0.5]))),
        lambda: (jnp.eye(3), np.ones(3)),
        discrete=True,
    ),
    "carried": Case(
        lambda: Flat(
            jv.models.Carried((), jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0])))
        )
    ),
    "linear chain": Case(
        lambda: jv.models.LinearChain(
            jv.MultivariateNormal(jnp.array([0.3]), jnp.array([[0.5]])),
            jnp.array([[0.6]]),
            jnp.array([-0.2]),
            jnp.array([[0.7]]),
            2,
        )
    ),
    "levels alike": Case(lambda: Flat(levels())),
    "bottom-up": Case(
        lambda: Flat(
            jv.Transformed(jv.Joint(jv.Normal(0.3, 0.5), Partial(moved)), jv.bijectors.Reverse())
        )
    ),
    "inverse autoregressive flow": Case(
        lambda: jv.Transformed(
            jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.7])),
            jv.bijectors.Chain((layer(), jv.bijectors.Reverse(), layer())),
        )
    ),
    "masked autoregressive flow": Case(
        lambda: jv.Transformed(
            jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.7])), jv.bijectors.Inverse(layer())
        )
    ),
    "planar flow": Case(
        lambda: jv.Transformed(
            jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.7])),
            jv.bijectors.Planar(jnp.array([1.0, -0.5]), jnp.array([0.7, 0.9]), jnp.array(0.2)),
        )
    ),
    "spherical uniform": Case(lambda: jv.distributions.SphericalUniform(3), sphere),
    "von mises": Case(
        lambda: jv.distributions.VonMisesFisher(jnp.array([0.6, -0.8]), jnp.array(1.5)), circle
    ),
    "von mises-fisher": Case(
        lambda: jv.distributions.VonMisesFisher(jnp.array([0.6, -0.8, 0.3]), jnp.array(4.0)), sphere
    ),
    "power spherical": Case(
        lambda: jv.distributions.PowerSpherical(jnp.array([0.6, -0.8, 0.3]), jnp.array(4.0)),
        sphere,
        implicit=True,
    ),
    "laplace": Case(lambda: jv.Laplace(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]))),
    "constant": Case(lambda: jv.Constant(jv.Laplace(jnp.array([0.3, -1.0]), jnp.array(0.5)))),
    "adapted": Case(
        lambda: jv.distributions.adapt(
            nd.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0])).to_event(1)
        )
    ),
}


ALIKE = {  # another row is much like these: `thorough`
    "standard normal, scalar",
    "normal, one scale",
    "bernoulli, matrix",
    "categorical, two",
    "one-hot, two",
    "each, zero-inflated",
    "each, mixture",
    "mixture of coins",
    "discretized logistic",
    "bottom-up",
    "masked autoregressive flow",
    "von mises",
    "beta",
    "low rank",
    "markov",
    "linear chain",
    "carried",
    "straight-through",
    "constant",
    "planar flow",
    "spherical uniform",
    "continuous bernoulli",
    "zero-inflated",
}

COSTLY = {  # programs that take seconds to compile: most laws leave them to `thorough`
    "diffusion",
    "von mises-fisher",
    "power spherical",
    "logistic mixture",
    "student t",
    "negative binomial",
}


COMPOSED = {"product", "joint", "inverse autoregressive flow", "adapted"}  # of others, by parts

REJECTING = {"gamma", "dirichlet", "zero-inflated"}  # draw by rejection, as the poisson does


def rows(chosen, *later):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, id=name, marks=pytest.mark.thorough if name in (*ALIKE, *later) else ()
            )
            for name, case in OBJECTS.items()
            if chosen(case)
        ],
    )


everyone = rows(lambda case: True)
quick = rows(lambda case: True, *COSTLY)
quickest = rows(lambda case: True, *COSTLY, *REJECTING, *COMPOSED)
explicit = rows(lambda case: not case.discrete and not case.implicit, *COSTLY)
discrete = rows(lambda case: case.discrete)
enumerable = rows(lambda case: hasattr(case.make(), "enumerate_support"))


@cache
def grid_of(case):
    """In float64: all events or nodes [m, ...], and their weights [m]."""
    if case.support is not None:
        return case.support()
    d = case.make()
    center = d.mean() if hasattr(d, "mean") else np.zeros(jax.eval_shape(d.sample, key()).shape)
    events, weights = grid(center)
    return jnp.asarray(events), weights


class Computed(NamedTuple):
    """Log p [m] at all events or nodes; of 10,000 keys the draws, log p as drawn and as scored."""

    log_prob: Any
    z: Any
    log_p: Any
    scored: Any


@cache
def program(case):
    """All that the laws ask of a distribution at no other parameters, as one program."""
    d = case.make()

    def compute(events, keys):
        z, log_p = jax.vmap(partial(jv.sample_and_log_prob, d))(keys)
        every = jnp.concatenate([events, z.astype(events.dtype)])
        log_prob, scored = jnp.split(jax.vmap(d.log_prob)(every), [len(events)])
        return Computed(log_prob, z, log_p, scored)

    return jax.jit(compute)


@cache
def computed(case) -> Computed:
    """In float64."""
    with jax.enable_x64(True):
        found = program(case)(grid_of(case)[0], keys_of(10_000))
        return jax.tree.map(np.asarray, found)


@cache
def support(case):
    """In float64: all events or nodes [m, ...], log p [m], and weights p [m], whose sum is 1."""
    events, weights = grid_of(case)
    log_prob = computed(case).log_prob
    return events, log_prob, weights * np.exp(log_prob)


def an_event(case):
    """One of the draws, at the precision of the test."""
    z = computed(case).z[0]
    return jnp.asarray(z, jnp.result_type(float) if z.dtype.kind == "f" else jnp.int32)


def key(seed=0):
    return jax.random.key(seed)


def keys_of(num):
    return jax.random.split(key(), num)


def as_float(event):
    return jnp.asarray(event, jnp.result_type(float))


def same(a, b):
    """The same tree of numbers, but for rounding."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    dtype = "float32" if any(jnp.asarray(leaf).dtype == jnp.float32 for leaf in a) else "float64"
    return len(a) == len(b) and all(close(x, y, dtype=dtype) for x, y in zip(a, b, strict=True))


def test_rows_left_for_later_exist():
    assert set(OBJECTS) > ALIKE | COSTLY | REJECTING | COMPOSED


def test_every_public_distribution_has_a_row():
    """A class that a folder exports and that can be sampled and scored obeys the laws."""
    public = {
        thing
        for home in (jv.distributions, jv.models)
        for thing in vars(home).values()
        if inspect.isclass(thing) and hasattr(thing, "sample") and hasattr(thing, "log_prob")
    }
    listed = [case.make() for case in OBJECTS.values()]
    kinds = {type(d.distribution if isinstance(d, Flat) else d) for d in listed}
    # a density of what was observed, whatever was: see test_masked.py; and what is no random draw,
    # one event that has all of the probability: see test_quantization.py and test_quantizers.py
    # of gaps that the entries themselves make: see test_not_at_random.py
    masked = {jv.Masked, jv.models.MaskedCodes, jv.models.MaskedBy}
    assert public - masked - {jv.models.Delta} <= kinds
    assert len(public) >= 26


@quick
def test_probability_sums_to_one(case, x64):
    """The sum, or the integral by quadrature, of exp log_prob is 1."""
    *_, probability = support(case)
    assert close(probability.sum(), 1.0)


@enumerable
def test_the_support_is_every_event(case, x64):
    """enumerate_support() is what the row lists, each once."""
    events = np.asarray(support(case)[0])
    actual = case.make().enumerate_support()
    assert actual.dtype == case.make().sample(key()).dtype
    assert actual.shape == events.shape
    assert set(map(bytes, np.asarray(actual, float))) == set(map(bytes, events.astype(float)))


@pytest.mark.thorough
@enumerable
def test_a_relaxed_sample_tends_to_a_sample(case, x64):
    """At temperature 0 it is an event, with the frequencies of one; above, it has a gradient."""
    d = case.make()
    if isinstance(d, jv.Categorical):  # a label cannot be relaxed
        assert not hasattr(d, "sample_relaxed")
        return
    cold = draws(lambda k: d.sample_relaxed(k, 1e-3), 20_000)
    assert jnp.mean(jnp.minimum(cold, 1.0 - cold) > 1e-6) < 0.01
    assert standard_errors_off(jnp.round(cold), d.mean()) < 4
    relaxed = lambda d: d.sample_relaxed(key(1), 0.7)
    assert is_differentiable(relaxed, d)
    assert bool(jnp.all((relaxed(d) > 0) & (relaxed(d) < 1)))
    # logits are those of the log-odds at temperature 1: P(sigma(l + noise) > 1/2) = sigma(l)
    if isinstance(d, jv.Bernoulli):
        warm = draws(lambda k: d.sample_relaxed(k, 1.0) > 0.5, 20_000, 2)
    else:
        warm = draws(
            lambda k: jax.nn.one_hot(jnp.argmax(d.sample_relaxed(k, 1.0), -1), 3), 20_000, 2
        )
    assert standard_errors_off(warm.astype(float), d.mean()) < 4


@quick
def test_mean_is_the_expectation(case, x64):
    """E[z] under log_prob is mean(), where there is one."""
    d = case.make()
    events, _, probability = support(case)
    if not hasattr(d, "mean"):
        # the mean of labels means nothing; that of a pushed-forward density has no closed form
        kinds = (jv.Categorical, jv.Transformed, jv.Autoregressive, Flat)
        assert isinstance(d, (*kinds, jv.models.Diffusion, jv.distributions.Resampled))
        return
    if isinstance(d, jv.DiscretizedLogistic) and d.coupling is not None:
        with pytest.raises(TypeError, match="coupled"):
            d.mean()
        return
    assert close(np.tensordot(probability, np.asarray(events), 1), d.mean(), dtype="float64")


def statistics(events, log_prob):
    """z, z z', cos and sin sum z, and log p(z): bounded and unbounded, odd and even, and joint."""
    z = np.asarray(events, np.float64).reshape(len(events), -1)
    total, log_prob = z.sum(axis=1), np.asarray(log_prob)
    products = (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    return np.column_stack([z, products, np.cos(total), np.sin(total), log_prob])


@quick
def test_draws_follow_log_prob(case, x64):
    """Moments, characteristic function and entropy of the draws are those of the density."""
    events, log_prob, probability = support(case)
    exact = probability @ statistics(events, log_prob)
    assert standard_errors_off(statistics(computed(case).z, computed(case).log_p), exact) < 4


@discrete
def test_each_event_is_drawn_as_often_as_it_is_probable(case, x64):
    """Frequencies of all events of a discrete distribution, within four standard errors."""
    events, _, probability = (np.asarray(part) for part in support(case))
    matches = computed(case).z[:, None] == events[None]
    matches = matches.reshape(*matches.shape[:2], -1).all(axis=-1)
    num = len(matches)
    seen = probability * num > 10  # of rarer events a frequency is no Gaussian
    error = np.sqrt(probability * (1.0 - probability) / num)[seen]
    assert np.max(np.abs(matches.mean(axis=0) - probability)[seen] / error) < 4
    assert seen.sum() >= 2


@quickest
def test_sample_and_log_prob_is_one_draw(case, x64):
    """sample_and_log_prob(key) = (z, log_prob(z)) with z = sample(key)."""
    assert close(computed(case).z, draws(case.make().sample, 10_000))
    assert close(computed(case).log_p, computed(case).scored)
    assert computed(case).log_p.shape == (10_000,)


@everyone
def test_key_is_required_and_decides(case, x64):
    """No default key; equal keys draw equal events and other keys others."""
    d = case.make()
    methods: Any = (d.sample, partial(jv.sample_and_log_prob, d))
    for method in methods:
        with pytest.raises(TypeError):
            method()
    again = program(case)(grid_of(case)[0], keys_of(10_000))
    assert len(np.unique(again.z, axis=0)) > 1
    assert np.array_equal(again.z, computed(case).z)


def everything(d, k, event):
    """All that a distribution computes."""
    mean = d.mean() if hasattr(d, "mean") and getattr(d, "coupling", None) is None else ()
    return jv.sample_and_log_prob(d, k), d.log_prob(event), mean


def value(d, k, event):
    """A draw and its log q as a number to differentiate; and everything."""
    found = everything(d, k, event)
    z, log_p = found[0]
    return jnp.sum(as_float(z)) + log_p, found


FACTORS = np.array([1.0, 1.2, 1.4], np.float32)


@cache
def stretched(case):
    """A stack of three distributions, the first the case itself; an argument's leaves."""
    return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf) * f for f in FACTORS]), case.make())


@cache
def mapped(case):
    """In float32: the gradients of three draws, and everything."""
    zs = jnp.stack([an_event(case)] * 3)
    f = jax.vmap(jax.grad(value, has_aux=True))
    return jax.jit(f)(stretched(case), keys_of(3), zs)


@quickest
def test_jit_is_eager_and_vmap_is_a_loop(case):
    """Compiling changes nothing, and a batch of distributions is a stack of leaves, mapped."""
    _, found = mapped(case)
    for i, k in enumerate(keys_of(3)):
        d = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), stretched(case))
        eager = everything(d if i else case.make(), k, an_event(case))
        assert same(jax.tree.map(lambda leaf, i=i: leaf[i], found), eager)


@quick
def test_it_scans(case):
    """A distribution is the carry of a scan."""
    d, z = jax.tree.map(jnp.asarray, case.make()), an_event(case)
    last, log_probs = jax.lax.scan(lambda d, _: (d, d.log_prob(z)), d, length=3)
    assert same(log_probs, np.stack(3 * [d.log_prob(z)]))
    assert type(last) is type(d)


@everyone
def test_it_is_a_pytree(case):
    """Flattening loses nothing, whatever stands in for the leaves meanwhile."""
    d, z = case.make(), an_event(case)
    leaves, treedef = jax.tree.flatten(d)
    assert same(
        *jax.jit(lambda: (jax.tree.unflatten(treedef, leaves).log_prob(z), d.log_prob(z)))()
    )
    hollow = jax.tree.unflatten(treedef, [object() for _ in leaves])
    assert type(hollow) is type(d)
    assert jax.tree.structure(d) == jax.tree.structure(case.make())
    assert hash(treedef) == hash(jax.tree.structure(case.make()))


@everyone
def test_its_repr_is_short_and_shows_shapes_and_dtypes(case):
    """Of arrays, of tracers, of a thousand stacked, and of whatever stands in for the leaves."""
    d = case.make()
    seen = []
    jax.eval_shape(lambda d: seen.append((repr(d), jax.tree.map(repr_of_array, d))), d)
    [(traced, leaves)] = seen
    stack = jax.tree.map(lambda x: np.stack([np.asarray(x, jnp.result_type(x))] * 1000), d)
    for text, parts in (
        (repr(d), jax.tree.map(repr_of_array, d)),
        (traced, leaves),
        (repr(stack), jax.tree.map(repr_of_array, stack)),
    ):
        assert text.startswith(f"{type(d).__name__}(")
        assert len(text) <= 300
        missing = [part for part in jax.tree.leaves(parts) if part not in text]
        assert not missing or " parameters)" in text
    treedef = jax.tree.structure(d)
    assert type(d).__name__ in repr(jax.tree.unflatten(treedef, [object()] * treedef.num_leaves))


def repr_of_array(leaf):
    if jnp.ndim(leaf) == 0 and not isinstance(leaf, Tracer):
        return f"={float(leaf):.4g}"
    return f"{jnp.result_type(leaf)}[{','.join(map(str, jnp.shape(leaf)))}]"


def test_structures_of_different_kinds_differ():
    """jit, scan and cond tell distributions apart by their tree's structure alone.

    `register_dataclass` does not see to that in jaxlib 0.10.2: of 2,000 classes with one field jit
    took hundreds for each other.
    """
    kinds = {}
    for case in OBJECTS.values():
        d = case.make()
        kinds.setdefault(type(d), jax.tree.structure(jax.tree.map(lambda _: 0, d)))
    for (kind, structure), (other, another) in combinations(kinds.items(), 2):
        assert structure != another, (kind, other)


@everyone
def test_it_is_frozen(case):
    """Nothing can be assigned: a change makes another object."""
    d = case.make()
    for name in [*vars(d), "loc", "another"]:
        with pytest.raises(AttributeError):
            setattr(d, name, 0.0)


@everyone
def test_precision_is_the_parameters(case, x64):
    """Float32 parameters give float32 numbers even where float64 is on; float64 ones float64."""
    d = case.make()
    if isinstance(d, Adapted):  # another library's precision is its own affair
        return
    if not jax.tree.leaves(d):  # nothing to take the precision from: the default
        assert jax.eval_shape(partial(jv.sample_and_log_prob, d), key())[1].dtype == jnp.float64
        return
    for dtype in (jnp.float32, jnp.float64):
        typed = jax.tree.map(lambda leaf, t=dtype: jnp.asarray(leaf, t), d)
        z, log_p = jax.eval_shape(partial(jv.sample_and_log_prob, typed), key())
        assert log_p.dtype == dtype
        assert z.dtype == dtype or jnp.issubdtype(z.dtype, jnp.integer)


def with_leaves(d):
    """A distribution's arrays, and how to make another of it from others."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, d))
    return leaves, lambda leaves: jax.tree.unflatten(treedef, leaves)


@quick
def test_gradients_are_finite_differences(case, x64):
    """Of log_prob in the parameters and in the event."""
    leaves, make = with_leaves(case.make())
    z = an_event(case)
    if not case.discrete:
        assert is_differentiable(lambda leaves, z: make(leaves).log_prob(z), leaves, z)
    elif leaves:
        assert is_differentiable(lambda leaves: make(leaves).log_prob(z), leaves)


# gamma's draws are theirs; of the von mises-fisher the gradient is known: see test_spherical.py
@rows(lambda case: not case.discrete, *COSTLY, *REJECTING, *COMPOSED)
def test_gradients_of_draws_are_unbiased(case, x64):
    """The mean gradient of f(draw) in the parameters is that of the integral of f."""
    leaves, make = with_leaves(case.make())
    if not leaves or isinstance(case.make(), Adapted):
        return
    events, weights = grid_of(case)

    def f(z):
        t = jnp.arange(1.0, z.size + 1.0)
        return jnp.sum(jnp.sin(t * z.ravel())) + jnp.cos(jnp.sum(z))

    def integral(leaves):
        return jnp.sum(
            weights * jnp.exp(jax.vmap(make(leaves).log_prob)(events)) * jax.vmap(f)(events)
        )

    one = jax.grad(lambda leaves, k: f(make(leaves).sample(k)))

    @jax.jit
    def both(leaves, keys):
        found = jax.vmap(lambda k: ravel_pytree(one(leaves, k))[0])(keys)
        return found, ravel_pytree(jax.grad(integral)(leaves))[0]

    assert standard_errors_off(*both(leaves, keys_of(10_000))) < 4


@explicit
def test_draws_are_differentiable(case, x64):
    """The event and log q at it, as functions of the parameters, against finite differences."""
    leaves, make = with_leaves(case.make())
    if leaves:
        assert is_differentiable(
            lambda leaves: jv.sample_and_log_prob(make(leaves), key(3)), leaves
        )


@quickest
def test_gradient_of_a_draw_is_finite(case):
    """Also where it is zero: no distribution poisons a gradient that passes through its draw."""
    gradient, _ = mapped(case)
    assert type(gradient) is type(case.make())
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@everyone
def test_an_event_of_another_shape_is_an_error(case):
    """A batch, a part or a scalar in an event's place is never broadcast."""
    d, z = case.make(), np.asarray(an_event(case))
    wrongs = [z[None], np.stack(3 * [z])]
    if z.ndim:
        wrongs += [np.zeros((), z.dtype), np.zeros((*z.shape[:-1], z.shape[-1] + 1), z.dtype)]
    for wrong in map(jnp.asarray, wrongs):
        with pytest.raises(ValueError, match="log_prob") as error:
            d.log_prob(wrong)
        for shape in (wrong.shape, z.shape):
            assert str(shape) in str(error.value)
