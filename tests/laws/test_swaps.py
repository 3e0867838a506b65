"""The full product prior x posterior x likelihood x bound: each swap is one argument.

A row is one prior and one posterior; inside it likelihoods and bounds take a few steps. All rows
with all of both are the product, which `make slow` runs; the rest has each prior, posterior and
likelihood in some row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.distributions.kl import closed_form
from jaxvae.pytrees import pytree
from tests.common import draws, standard_errors_off

D, N, BATCH = 2, 3, 6
IMAGE = (1, N, 1)  # the shape of every likelihood's events


REFINER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))


def gaussian_rows(raw):
    return jv.Normal(raw[:, 0], jnp.exp(0.3 * raw[:, 1]))


def mixture(logits, loc, scale):
    return jv.Mixture(logits, jv.Normal(loc, scale))


def planar(loc, scale, u, w, b):
    layers = [jv.bijectors.Planar(u[i], w[i], b[i]) for i in range(len(b))]
    return jv.Transformed(jv.Normal(loc, scale), jv.bijectors.Chain(tuple(layers)))


def radial(loc, scale, center, alpha, beta):
    return jv.Transformed(jv.Normal(loc, scale), jv.bijectors.Radial(center, alpha, beta))


def sylvester(loc, scale, vectors, r, r_tilde, b):
    return jv.Transformed(jv.Normal(loc, scale), jv.bijectors.Sylvester(vectors, r, r_tilde, b))


def householder(loc, scale, v):
    return jv.Transformed(jv.Normal(loc, scale), jv.bijectors.Householder(1.0 + v))


def zero_inflated(total_count, logits, zero_logits):
    return jv.Independent(jv.Independent(jv.Independent(jv.distributions.ZeroInflated(
        jv.NegativeBinomial(total_count, logits), zero_logits
    ))))  # fmt: skip


REAL, POSITIVE = nn.Real("n"), nn.Positive("n")


def flow_head(rngs, flow):
    return nn.FlowHead(nn.NormalHead(), flow, 2)


POSTERIORS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "diagonal": lambda rngs: nn.NormalHead(),
    "full": lambda rngs: nn.MultivariateNormalHead(),
    "low rank": lambda rngs: nn.HeadOf(jv.LowRankNormal, (REAL, nn.Real("n", 1), POSITIVE)),
    "laplace": lambda rngs: nn.HeadOf(jv.Laplace, (REAL, POSITIVE)),
    "mixture": lambda rngs: nn.HeadOf(mixture, (nn.Real(2), nn.Real(2, "n"), nn.Positive(2, "n"))),
    "planar": lambda rngs: nn.HeadOf(
        planar, (REAL, POSITIVE, nn.Real(2, "n"), nn.Real(2, "n"), nn.Real(2))
    ),
    "radial": lambda rngs: nn.HeadOf(radial, (REAL, POSITIVE, REAL, nn.Real(), nn.Real())),
    "sylvester": lambda rngs: nn.HeadOf(
        sylvester, (REAL, POSITIVE, nn.Real(1, "n"), nn.Real(2, 2), nn.Real(2, 2), nn.Real(2))
    ),
    "householder": lambda rngs: nn.HeadOf(householder, (REAL, POSITIVE, REAL)),
    "affine coupling": lambda rngs: flow_head(
        rngs, nn.CouplingFlow(D, layers=2, context=2, hidden=(3,), rngs=rngs)
    ),
    "spline coupling": lambda rngs: flow_head(
        rngs,
        nn.CouplingFlow(
            D,
            layers=2,
            context=2,
            hidden=(3,),
            transformer=jv.bijectors.SplineTransformer(3),
            rngs=rngs,
        ),
    ),
    "inverse autoregressive": lambda rngs: flow_head(
        rngs, nn.AutoregressiveFlow(D, context=2, hidden=(3,), rngs=rngs)
    ),
    "masked autoregressive": lambda rngs: flow_head(
        rngs, nn.InverseFlow(nn.AutoregressiveFlow(D, context=2, hidden=(3,), rngs=rngs))
    ),
    "semi-amortized": lambda rngs: nn.NormalHead(),
}

PRIORS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "standard": lambda rngs: jv.StandardNormal((D,)),
    "learned diagonal": lambda rngs: jv.Normal(jnp.full(D, 0.1), jnp.full(D, 1.2)),
    "mixture": lambda rngs: mixture(jnp.zeros(2), jnp.eye(2), jnp.ones((2, D))),
    "vamp": lambda rngs: None,  # the model's own
    "coupling flow": lambda rngs: jv.Transformed(
        jv.StandardNormal((D,)), nn.CouplingFlow(D, layers=2, hidden=(3,), rngs=rngs)()
    ),
    "masked autoregressive flow": lambda rngs: jv.Transformed(
        jv.StandardNormal((D,)),
        nn.InverseFlow(nn.AutoregressiveFlow(D, hidden=(3,), rngs=rngs))(),
    ),
    "autoregressive": lambda rngs: jv.Autoregressive(
        nn.MaskedMLP(D, 2, hidden=(3,), rngs=rngs), gaussian_rows, D
    ),
    "laplace": lambda rngs: jv.Constant(jv.Laplace(np.zeros(D, "f"), np.float32(1.0))),
    "student t": lambda rngs: jv.StudentT(5.0, jnp.zeros(D), 1.0),
    "conditional": lambda rngs: nn.Conditional(nn.MLP, nn.NormalHead(), (1,), (D,), rngs=rngs),
}

COLUMNS = (
    ("real", nn.NormalHead(), (1,)),
    ("count", nn.HeadOf(jv.Poisson, (POSITIVE,)), (1,)),
    ("binary", nn.BernoulliHead(), (1,)),
    ("choice", nn.HeadOf(jv.Categorical, (nn.Real("n", 3),)), (1,)),
)


RNG = np.random.default_rng(0)
REALS = RNG.normal(0.5, 0.2, (BATCH, *IMAGE)).astype("f")
BITS = RNG.binomial(1, 0.7, (BATCH, *IMAGE)).astype("f")
BYTES = RNG.integers(100, 200, (BATCH, *IMAGE)).astype(np.uint8)
COUNTS = RNG.poisson(3.0, (BATCH, *IMAGE))
MASK = RNG.binomial(1, 0.6, (BATCH, *IMAGE)).astype(bool)
TABLE = {
    "real": REALS[:, 0, 0],
    "count": COUNTS[:, 0, 0],
    "binary": BITS[:, 0, 0],
    "choice": BYTES[:, 0, 0] % 3,
}


LIKELIHOODS: dict[str, tuple[Callable[[], Any], Any]] = {
    "gaussian, fixed": (lambda: nn.NormalHead(scale=0.5), REALS),
    "gaussian, shared": (lambda: nn.SharedScaleHead(), REALS),
    "gaussian, per pixel": (lambda: nn.NormalHead(), REALS),
    "gaussian, optimal": (lambda: nn.HeadOf(jv.distributions.OptimalNormal, (REAL,)), REALS),
    "bernoulli": (lambda: nn.BernoulliHead(), BITS),
    "continuous bernoulli": (lambda: nn.HeadOf(jv.ContinuousBernoulli, (REAL,)), BITS),
    "categorical": (lambda: nn.HeadOf(jv.Categorical, (nn.Real("n", 256),)), BYTES),
    "discretized logistic": (
        lambda: nn.HeadOf(jv.DiscretizedLogistic, (REAL, POSITIVE)), BYTES
    ),
    "logistic mixture": (
        lambda: nn.HeadOf(
            jv.distributions.logistic_mixture, (nn.Real(2), nn.Real(2, "n"), nn.Positive(2, "n"))
        ),
        BYTES,
    ),
    "laplace": (lambda: nn.HeadOf(jv.Laplace, (REAL, POSITIVE)), REALS),
    "student t": (lambda: nn.HeadOf(jv.StudentT, (POSITIVE, REAL, POSITIVE)), REALS),
    "poisson": (lambda: nn.HeadOf(jv.Poisson, (POSITIVE,)), COUNTS),
    "negative binomial": (lambda: nn.HeadOf(jv.NegativeBinomial, (POSITIVE, REAL)), COUNTS),
    "zero-inflated": (lambda: nn.HeadOf(zero_inflated, (POSITIVE, REAL, REAL)), COUNTS),
    "mixed columns": (lambda: nn.ProductHead(COLUMNS), TABLE),
    "masked": (lambda: nn.MaskedHead(nn.NormalHead()), (REALS, MASK)),
    "masked columns": (
        lambda: nn.MaskedHead(nn.ProductHead(COLUMNS)),
        (TABLE, jax.tree.map(lambda _: MASK[:, 0, 0], TABLE)),
    ),
}  # fmt: skip


@pytree
@dataclass(frozen=True, eq=False)
class Chosen:
    """One of several likelihoods, by a traced number: all of them in one program."""

    index: Any
    distributions: tuple[Any, ...]

    def log_prob(self, x):
        _, events = x
        pairs = zip(self.distributions, events, strict=True)
        return jax.lax.switch(self.index, [partial(d.log_prob, event) for d, event in pairs])


class AnyDecoder(nnx.Module):
    """A head for each likelihood, on one network."""

    def __init__(self, names, rngs, d=D):
        self.heads = nnx.List([LIKELIHOODS[name][0]() for name in names])
        self.shapes = tuple(head.raw_shape(IMAGE) for head in self.heads)
        self.ends = tuple(int(n) for n in np.cumsum([prod(shape) for shape in self.shapes]))
        self.network = nn.MLP((d,), (self.ends[-1],), hidden=(4,), rngs=rngs)

    def __call__(self, index, z):
        raws = jnp.split(self.network(jv.models.bottom(z)), self.ends[:-1])
        triples = zip(self.heads, raws, self.shapes, strict=True)
        return Chosen(index, tuple(head(raw.reshape(shape)) for head, raw, shape in triples))


class Encoder(nnx.Module):
    """x, (features, events), to a distribution by its features."""

    def __init__(self, head, rngs, d=D):
        self.conditional = nn.Conditional(nn.MLP, head, (N,), (d,), rngs=rngs)
        self.head = head

    def network(self, x):
        return self.conditional.network(x[0])

    def __call__(self, x):
        return self.conditional(x[0])


class Vamp(NamedTuple):
    """`VampVAE` whose pseudo-inputs are features alone."""

    encode: Any
    decode: Any
    pseudo_inputs: Any

    @property
    def prior(self):
        return jv.VampVAE(self._at, self.decode, self.pseudo_inputs).prior

    def _at(self, u):
        return self.encode((u, ()))


class Row(NamedTuple):
    """What trains, and how it becomes a model once the decoder is known."""

    parts: Any
    build: Callable[[Any, Any], Any]
    estimators: dict[str, Any]
    lift: Callable[[Any], Any] = lambda objective: objective


def swap(prior, posterior, rngs):
    """One prior and one posterior over R^D."""
    parts = Encoder(POSTERIORS[posterior](rngs), rngs), PRIORS[prior](rngs), jnp.eye(N)

    def build(parts, decode):
        encode, p, pseudo_inputs = parts
        if prior == "vamp":
            return Vamp(encode, decode, pseudo_inputs)
        if prior == "conditional":
            return lambda y: jv.VAE(encode, decode, p(y))
        return jv.VAE(encode, decode, p)

    def lift(objective):
        if posterior == "semi-amortized":
            objective = jv.models.semi_amortized(objective, REFINER, num_steps=2)
        if prior != "conditional":
            return objective
        return lambda model, key, x: jv.conditioned(objective)(model, key, (x, x[0][:1]))

    return Row(parts, build, {}, lift)


def simple(head, prior, d, **estimators):
    """A posterior and a prior over a space of their own."""

    def make(rngs):
        return Row(
            (Encoder(head, rngs, d), prior),
            lambda parts, decode: jv.VAE(parts[0], decode, parts[1]),
            estimators,
        )

    return make


def conditional(rngs, n, m=D):
    return nn.Conditional(nn.MLP, nn.NormalHead(), (n,), (m,), rngs=rngs)


class FirstOf(nnx.Module):
    """The posterior's first layer; the second is `then` of it."""

    def __init__(self, first, then, bottom_up):
        self.first, self.then, self.bottom_up = first, then, bottom_up

    def __call__(self, x):
        joint = jv.models.hierarchy(self.first(x[0]), self.then)
        return jv.Transformed(joint, jv.bijectors.Reverse()) if self.bottom_up else joint


def two_layers(bottom_up):
    def make(rngs):
        encode = FirstOf(conditional(rngs, N), conditional(rngs, D), bottom_up)
        prior = jv.models.hierarchy(jv.StandardNormal((D,)), conditional(rngs, D))
        return Row((encode, prior), lambda parts, decode: jv.VAE(parts[0], decode, parts[1]), {})

    return make


def features_of(x):
    return jnp.tanh(x[0])


def ladder(rngs):
    parts = (
        (conditional(rngs, N), conditional(rngs, N)),
        (conditional(rngs, D),),
    )

    def build(parts, decode):
        evidence, down = parts
        up = (Partial(features_of), Partial(jnp.sin))
        return jv.models.Ladder(up, evidence, jv.StandardNormal((D,)), down, decode)

    return Row(parts, build, {})


class Concatenated(nnx.Module):
    def __init__(self, rngs):
        self.network = conditional(rngs, D + N)

    def __call__(self, pair):
        return self.network(jnp.concatenate(pair))


class Merge(nnx.Module):
    def __init__(self, rngs):
        self.network = nn.MLP((2 * D,), (D,), hidden=(3,), rngs=rngs)

    def __call__(self, pair):
        h, z = pair
        return h + self.network(jnp.concatenate([h, z]))


def two_features(x):
    return x[0], jnp.sin(x[0])


def top_down(rngs):
    blocks = [
        jv.models.Block(conditional(rngs, D), Concatenated(rngs), Merge(rngs)) for _ in range(2)
    ]

    def build(parts, decode):
        start, blocks = parts
        return jv.models.TopDown(Partial(two_features), start, blocks, decode)

    return Row((jnp.zeros(D), blocks), build, {})


def level(*, rngs):
    return jv.models.Block(conditional(rngs, D), Concatenated(rngs), Merge(rngs))


def one_feature(x):
    return (x[0],)


def alike(rngs):
    def build(parts, decode):
        start, blocks = parts
        return jv.models.TopDown(Partial(one_feature), start, blocks, decode)

    return Row((jnp.zeros(D), [nn.alike(level, 2, rngs=rngs)]), build, {})


SPHERE = jv.distributions.SphericalUniform(D)
CHOICES = nn.HeadOf(jv.OneHotCategorical, (REAL,))
SPECIAL: dict[str, Callable[[nnx.Rngs], Row]] = {
    "sphere, von mises-fisher": simple(
        nn.HeadOf(jv.distributions.VonMisesFisher, (REAL, nn.Positive())), SPHERE, D
    ),
    "sphere, power spherical": simple(
        nn.HeadOf(jv.distributions.PowerSpherical, (REAL, nn.Positive())), SPHERE, D
    ),
    "categorical": simple(
        CHOICES,
        jv.OneHotCategorical(jnp.zeros(D)),
        D,
        elbo=jv.enumeration,
        importance=jv.vimco,
        piwae=jv.vimco,
    ),
    "top-down": two_layers(bottom_up=False),
    "bottom-up": two_layers(bottom_up=True),
    "ladder": ladder,
    "shared features": top_down,
    "levels alike": alike,
}

REDUCTIONS = (
    jv.bounds.log_mean_exp,  # iwae
    partial(jv.bounds.log_power_mean, power=0.5),  # renyi
    jv.bounds.maximum,  # vr_max
    partial(jv.bounds.mean_log_mean_exp, num_outer=2),  # miwae
    partial(jv.bounds.convex_combination, beta=0.5),  # ciwae
    partial(  # tvo
        jv.bounds.thermodynamic, betas=np.array([0.0, 0.3, 1.0], "f"), at=np.array([0.0, 0.3], "f")
    ),
)


def all_reductions(l):
    """The bounds that reduce the same log-weights, added up: what each adds is finite or none."""
    return jnp.sum(jnp.stack([reduction(l) for reduction in REDUCTIONS]))


BOUNDS = {
    "elbo": jv.elbo,
    "importance": partial(jv.importance_bound, all_reductions, num_samples=4),
    "piwae": partial(jv.piwae, num_outer=2, num_samples=2),
}


def check(make, names=tuple(LIKELIHOODS), bounds=tuple(BOUNDS)):
    """Every likelihood under every bound: a few steps, finite gradients, and a loss that falls."""
    rngs = nnx.Rngs(0)
    row = make(rngs)
    start: Any = (row.parts, AnyDecoder(names, rngs))
    xs = REALS.reshape(BATCH, N), tuple(LIKELIHOODS[name][1] for name in names)
    optimizer = optax.adam(0.003)

    def loss(state, bound, index, keys):
        parts, decoder = state
        model = row.build(parts, Partial(decoder, index))
        estimator = {"gradient": row.estimators[bound]} if bound in row.estimators else {}
        objective = jv.batched(row.lift(partial(BOUNDS[bound], **estimator)))
        return -jnp.mean(jax.vmap(lambda key: objective(model, key, xs)[0])(keys))

    def run(bound, index):
        def step(carry, _):
            flat, optimizer_state = carry
            # the same draws at every step; several, as a draw by rejection may jump
            keys = jax.random.split(jax.random.key(1), 8)
            of = lambda flat: loss(unravel(flat), bound, index, keys)
            value, gradient = jax.value_and_grad(of)(flat)
            with jax.numpy_dtype_promotion("standard"):
                updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            finite = jnp.all(jnp.isfinite(gradient))
            return (optax.apply_updates(flat, updates), optimizer_state), (value, finite)

        flat, unravel = ravel_pytree(start)  # the optimiser's program is then that of one array
        return jax.lax.scan(step, (flat, optimizer.init(flat)), length=12)[1]

    for bound in bounds:
        values, finite = jax.jit(partial(jax.lax.map, partial(run, bound)))(jnp.arange(len(names)))
        for name, value, ok in zip(names, values, finite, strict=True):
            assert np.all(ok), (bound, name)
            assert np.all(np.isfinite(value)), (bound, name, value)
            # of PIWAE the encoder climbs another bound than the one that is reported
            last = np.min(value[1:]) if bound == "piwae" else value[-1]
            assert last < value[0], (bound, name, value)


def some_bounds(name, names):
    """The ELBO, and for every seventh row the others."""
    return ["elbo", "importance"] if list(names).index(name) % 7 == 0 else ["elbo"]


PAIRS = list(product(PRIORS, POSTERIORS))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("prior", "posterior", "likelihood"),
    [
        pytest.param(
            list(PRIORS)[i % len(PRIORS)], posterior, list(LIKELIHOODS)[i],
            marks=pytest.mark.slow if posterior == "semi-amortized" else [],
        )
        for i, posterior in enumerate(POSTERIORS)
    ],
)  # fmt: skip
def test_swaps_train(prior, posterior, likelihood):
    """Each prior and each posterior at least once; the one that compiles longest in `make slow`."""
    check(partial(swap, prior, posterior), [likelihood], some_bounds(posterior, POSTERIORS))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "likelihood"),
    [
        pytest.param(name, likelihood, marks=pytest.mark.slow if "sphere" in name else [])
        for name, likelihood in zip(SPECIAL, list(LIKELIHOODS)[-len(SPECIAL) :], strict=True)
    ],
)
def test_spaces_of_latents_train(name, likelihood):
    """Latents that are no vectors; and the likelihoods that are left."""
    check(SPECIAL[name], [likelihood], some_bounds(name, SPECIAL))


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_every_swap_trains(prior, posterior):
    """The full product."""
    check(partial(swap, prior, posterior))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIAL)
def test_every_space_of_latents_trains(name):
    check(SPECIAL[name])


CLOSED = {
    ("standard", "diagonal"),
    ("standard", "full"),
    ("standard", "low rank"),
    ("learned diagonal", "diagonal"),
    ("learned diagonal", "full"),
    ("learned diagonal", "low rank"),
    ("laplace", "diagonal"),
    ("laplace", "laplace"),
}


def pair(row):
    """q, p, a draw of q and its log-density."""
    model: Any = row.build(row.parts, lambda z: jv.Normal(z, 1.0))
    q = model.encode((jnp.ones(N), ()))
    return q, model.prior, *jv.sample_and_log_prob(q, jax.random.key(1))


SMOOTH = [name for name in POSTERIORS if name != "semi-amortized"]


def smooth(chosen):
    """Every posterior with a density of its own; those not chosen in `make slow`."""
    rows = [pytest.param(name, marks=[] if name in chosen else pytest.mark.slow) for name in SMOOTH]
    return pytest.mark.parametrize("posterior", rows)


@pytest.mark.thorough
@smooth({"diagonal"})
def test_auto_kl_samples_where_there_is_no_closed_form(posterior):
    """The rate is the closed form, which no sample moves, or log q - log p at the sample."""
    rows = {  # but of a conditional prior, which is a Normal once y is given
        prior: swap(prior, posterior, nnx.Rngs(0)) for prior in PRIORS if prior != "conditional"
    }

    @jax.jit
    def rates():
        found = {}
        for prior, row in rows.items():
            q, p, z, log_q = pair(row)
            found[prior] = closed_form(q, p), log_q - p.log_prob(z), jv.auto_kl(q, p, z, log_q)
        return found

    for prior, (exact, sampled, rate) in rates().items():
        assert (exact is not None) == ((prior, posterior) in CLOSED)
        if exact is None:
            assert np.isclose(rate, sampled, rtol=1e-6)
        else:
            assert np.isclose(rate, exact, rtol=1e-6)
            assert not np.isclose(rate, sampled, rtol=1e-3)


def test_analytic_kl_names_the_way_out():
    q, p, z, log_q = pair(swap("mixture", "diagonal", nnx.Rngs(0)))
    with pytest.raises(NotImplementedError, match="sampled_kl"):
        jv.analytic_kl(q, p, z, log_q)


ESTIMATORS = {
    "pathwise": jv.pathwise,
    "sticking the landing": jv.sticking_the_landing,
    "doubly reparameterized": jv.doubly_reparameterized,
    "score function": jv.score_function,
    "vimco": jv.vimco,
}


@pytest.mark.thorough
@smooth({"mixture"})
def test_every_estimator_takes_every_posterior(posterior):
    """One value and one gradient in mean, as all but sticking the landing are unbiased."""
    rngs = nnx.Rngs(0)
    encoder = Encoder(POSTERIORS[posterior](rngs), rngs)
    raw = encoder.network((jnp.ones(N), ()))
    raw = raw + 0.3 * jax.random.normal(jax.random.key(5), raw.shape)

    def bound(raw, key, estimator):
        model = jv.VAE(
            lambda x: encoder.head(raw),
            lambda z: jv.Normal(jnp.append(z, jnp.sum(z)), 0.7),
            jv.StandardNormal((D,)),
        )
        x = jnp.array([1.0, 0.5, 1.0])
        return jv.iwae(model, key, x, num_samples=2, gradient=estimator)[0]

    found = {
        name: draws(lambda k, e=e: jax.value_and_grad(bound)(raw, k, e), 20_000)
        for name, e in ESTIMATORS.items()
    }
    value, gradient = found["pathwise"]
    for name, (other_value, other_gradient) in found.items():
        assert np.allclose(value, other_value, rtol=1e-3, atol=1e-3), name
        assert np.all(np.isfinite(other_gradient)), name
        if name != "sticking the landing":
            difference = np.asarray(gradient) - np.asarray(other_gradient)
            assert standard_errors_off(difference, 0.0) < 4.5, name
