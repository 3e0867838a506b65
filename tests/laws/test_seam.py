"""The seam: a distribution of a class that the library has never seen is one of its own.

Two strangers, with the optional methods that `jaxvae.protocols` lists, go wherever the library's
own go; one without a method is told to add it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import pytest
from jax.tree_util import Partial
from scipy import stats
from scipy.special import expit

import jaxvae as jv
from jaxvae.evaluation.latent_space import tempered
from jaxvae.regularizers import LatentSample
from tests.common import close, draws, standard_errors_off

CODE: Any = LatentSample  # whose fields may be anything here
LOC, SCALE = np.array([0.3, -1.0]), np.array([0.5, 0.8])
XS = np.array([[0.3, -1.0], [1.2, 0.1], [-0.7, 0.6]])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)


@jv.pytree
@dataclass(frozen=True, eq=False)
class Logistic:
    """log q(z) = -sum_i [ y_i + 2 log(1 + exp -y_i) + log s_i ], y = (z - mu) / s."""

    loc: Any
    scale: Any

    def sample(self, key):
        return self.loc + self.scale * jax.random.logistic(key, self.loc.shape, self.loc.dtype)

    def log_prob(self, z):
        y = (z - self.loc) / self.scale
        return -jnp.sum(y + 2.0 * jax.nn.softplus(-y) + jnp.log(self.scale))

    def mean(self):
        return self.loc

    def covariance(self):
        return jnp.diag(jnp.ravel(jnp.square(jnp.pi * self.scale) / 3.0))

    def cdf(self, z):
        return jax.nn.sigmoid((z - self.loc) / self.scale)

    def tempered(self, t):
        return Logistic(self.loc, t * self.scale)

    def unstack(self):
        return jv.stacked(self, self.loc.shape)


@jv.pytree
@dataclass(frozen=True, eq=False)
class LogitNormal:
    """logit z ~ N(mu, diag sigma^2), so z is in (0, 1): 0 is no event of it."""

    loc: Any
    scale: Any
    asked: ClassVar[list] = []  # the classes that its KL was asked for

    def sample(self, key):
        return jax.nn.sigmoid(jv.Normal(self.loc, self.scale).sample(key))

    def log_prob(self, z):
        logit = jnp.log(z) - jnp.log1p(-z)
        log_det = jnp.sum(jnp.log(z) + jnp.log1p(-z))
        return jv.Normal(self.loc, self.scale).log_prob(logit) - log_det

    def kl_to(self, p):  # a one-to-one map leaves a KL as it is
        self.asked.append(type(p))
        if isinstance(p, LogitNormal):
            return jv.kl_divergence(jv.Normal(self.loc, self.scale), jv.Normal(p.loc, p.scale))
        return None

    def mean(self):
        return self._moment(1)

    def covariance(self):
        return jnp.diag(jnp.ravel(self._moment(2) - self._moment(1) ** 2))

    def tempered(self, t):
        return LogitNormal(self.loc, t * self.scale)

    def unstack(self):
        return jv.stacked(self, self.loc.shape)

    def _moment(self, power):
        w = jnp.asarray(WEIGHTS / np.sum(WEIGHTS), self.loc.dtype)
        at = lambda node: jax.nn.sigmoid(self.loc + self.scale * node) ** power
        return jnp.tensordot(w, jax.vmap(at)(jnp.asarray(NODES, self.loc.dtype)), 1)


def at(kind, loc=LOC, scale=SCALE):
    return kind(jnp.asarray(loc), jnp.asarray(scale))


def logpdf(kind, m, s):
    """Of one latent, by SciPy."""
    if kind is Logistic:
        return lambda z: stats.logistic.logpdf(z, m, s)
    return lambda z: stats.norm.logpdf(np.log(z / (1.0 - z)), m, s) - np.log(z - z * z)


strangers = pytest.mark.parametrize("kind", [Logistic, LogitNormal])


def model_of(kind, prior=None):
    """q(z|x) moves with x, p(x|z) = N(z, 1)."""
    return jv.VAE(
        encode=Partial(lambda scale, x: kind(x, scale), jnp.asarray(SCALE)),
        decode=Partial(lambda z: jv.Normal(z, jnp.ones(2))),
        prior=kind(jnp.zeros(2), jnp.ones(2)) if prior is None else prior,
    )


def codes(kind):
    """The codes of a batch, as `regularized` makes them, stacked; and the prior."""
    model, xs = model_of(kind), jnp.asarray(XS)

    def one(key, x):
        q = model.encode(x)
        z, log_q = jv.sample_and_log_prob(q, key)
        return CODE(q, model.prior, z, log_q, jv.auto_kl(q, model.prior, z, log_q))

    return jax.vmap(one)(jax.random.split(jax.random.key(1), len(xs)), xs), model.prior


def penalties(penalty, kind):
    """The penalty of every example of the batch."""
    stacked, prior = codes(kind)
    keys = jax.random.split(jax.random.key(2), len(XS))
    of = lambda code, key: penalty(code._replace(p=prior), key)
    axes = CODE(0, None, 0, 0, 0)
    return jax.jit(jax.vmap(of, (axes, 0), axis_name="batch"))(stacked._replace(p=None), keys)


@strangers
def test_the_kl_of_each_latent(kind, x64):
    """In closed form where q knows of one, else at the sample, and then right in the mean."""
    q, p = at(kind), at(kind, np.zeros(2), np.ones(2))

    def kls(key):
        z, log_q = jv.sample_and_log_prob(q, key)
        return jv.regularizers.kl_per_latent(CODE(q, p, z, log_q, None))

    found = draws(kls, 4000)
    exact = []
    for m, s in zip(LOC, SCALE, strict=True):
        if kind is LogitNormal:
            exact.append(jv.kl_divergence(jv.Normal(m, s), jv.Normal(0.0, 1.0)))
        else:
            y = np.linspace(-60.0, 60.0, 200_001) * s + m
            log_q, log_p = logpdf(kind, m, s)(y), logpdf(kind, 0.0, 1.0)(y)
            exact.append(np.trapezoid(np.exp(log_q) * (log_q - log_p), y))
    assert standard_errors_off(found, jnp.array(exact)) < 4
    assert (kind is LogitNormal) == close(jnp.std(found, axis=0), jnp.zeros(2))


@pytest.mark.thorough
@strangers
def test_free_bits(kind, x64):
    each = penalties(lambda code, key: jv.regularizers.kl_per_latent(code), kind)
    for free in (0.0, 0.1, 0.5, 9.0):
        found = penalties(partial(jv.regularizers.free_bits, free_nats=free), kind)
        assert close(found, np.full(3, np.sum(np.maximum(free, np.mean(each, axis=0)))))


@strangers
def test_total_correlation(kind, x64):
    """With all weights 1 it is log q(z|x) - log p(z), exactly, and with others its three parts."""
    one = partial(jv.regularizers.tc_penalty, dataset_size=3, weighting=jv.evaluation.full_batch)
    code, p = codes(kind)
    log_p = jax.vmap(p.log_prob)(code.z)
    assert close(penalties(one, kind), code.log_q - log_p)

    z = np.asarray(code.z)
    each = np.array(  # log q(z_i|x_j) of each latent: [i, j, latent]
        [
            [[logpdf(kind, *of)(z_k) for *of, z_k in zip(x, SCALE, z_i, strict=True)] for x in XS]
            for z_i in z
        ]
    )
    log_q = np.log(np.mean(np.exp(np.sum(each, axis=2)), axis=1))
    marginals = np.sum(np.log(np.mean(np.exp(each), axis=1)), axis=1)
    information = np.asarray(code.log_q) - log_q
    found = penalties(partial(one, correlation=5.0), kind)
    assert close(found, information + 5.0 * (log_q - marginals) + marginals - np.asarray(log_p))


@strangers
def test_moments_of_the_aggregate_posterior(kind, x64):
    """The DIP penalties, of the mean and the covariance that the object says it has."""
    if kind is LogitNormal:
        z = expit(XS[..., None] + SCALE[:, None] * NODES)
        w = WEIGHTS / np.sum(WEIGHTS)
        mean, variance = z @ w, (z**2) @ w - (z @ w) ** 2
    else:
        mean, variance = XS, np.tile(np.pi**2 * SCALE**2 / 3.0, (3, 1))
    rate = np.asarray(codes(kind)[0].rate)
    for penalty, within in (
        (jv.regularizers.dip_1_penalty, 0.0),
        (jv.regularizers.dip_2_penalty, np.diag(np.mean(variance, axis=0))),
    ):
        c = np.cov(mean.T, bias=True) + within
        exact = rate + 3.0 * 2 * c[0, 1] ** 2 + 7.0 * np.sum((np.diag(c) - 1.0) ** 2)
        assert close(penalties(partial(penalty, off_diagonal=3.0, diagonal=7.0), kind), exact)


@strangers
def test_temperature(kind):
    z, cold, d = jnp.array([0.3, 0.6]), at(kind, LOC, 0.5 * SCALE), at(kind)
    assert close(tempered(d, 0.5).log_prob(z), cold.log_prob(z))
    together = jv.Product({"a": d, "b": jv.Independent(d)})
    event = {"a": z, "b": z}
    assert close(tempered(together, 0.5).log_prob(event), 2.0 * cold.log_prob(z))


@pytest.mark.thorough
@strangers
@pytest.mark.parametrize("mask", ["given", "traced"])
def test_a_gap(kind, mask):
    """Its value is that of what is seen; no gradient where nothing is, elsewhere a finite one."""
    x, seen = jnp.array([jnp.nan, 0.4]), jnp.array([False, True])
    parameters = jnp.asarray(LOC), jnp.asarray(SCALE)

    def log_prob(d, x, seen):
        d = kind(*d)
        return jv.Masked(jv.Product([d, jv.Independent(d)])).log_prob(([x, x], [seen, seen]))

    f = jax.value_and_grad(log_prob, (0, 1))
    found = f if mask == "given" else jax.jit(f)
    value, (by_parameters, by_x) = found(parameters, x, seen)
    alone = lambda d, x: 2.0 * kind(d[0][1:], d[1][1:]).log_prob(x[1:])
    exact, slopes = jax.value_and_grad(alone, (0, 1))(parameters, x)
    assert close(value, exact)
    for gradient, slope in zip((*by_parameters, by_x), (*slopes[0], slopes[1]), strict=True):
        assert gradient[0] == 0.0
        assert close(gradient, slope)
    hidden, gradients = found(parameters, x, jnp.zeros(2, bool))
    assert hidden == 0.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


@pytest.mark.thorough
@strangers
def test_parts_of_a_whole(kind):
    """`Independent` and `Product` of strangers are posteriors: every bound takes them."""
    q, p = at(kind), at(kind, np.zeros(2), np.ones(2))
    pair = lambda d: jv.Product({"a": d, "b": jv.Independent(d)})
    model = jv.VAE(
        Partial(lambda q, x: pair(q), q),
        Partial(lambda z: jv.Normal(z["a"] + z["b"], jnp.ones(2))),
        pair(p),
    )
    x, keys = jnp.ones(2), iter(jax.random.split(jax.random.key(0), 5))

    @jax.jit
    def numbers(key):
        z, log_q = jv.sample_and_log_prob(pair(q), key)
        return log_q, q.log_prob(z["a"]) + q.log_prob(z["b"]), pair(q).mean()["b"], q.mean()

    log_q, by_hand, mean, exact_mean = numbers(next(keys))
    assert close(log_q, by_hand)
    assert close(mean, exact_mean)
    from_prior = model._replace(encode=Partial(lambda x: pair(p)))
    exact = jax.jit(partial(jv.log_marginal, num_samples=4000))(from_prior, next(keys), x)
    for objective in (
        partial(jv.iwae, num_samples=4000),
        partial(jv.iwae, num_samples=4000, gradient=jv.doubly_reparameterized),
    ):
        bound, log_w = jax.jit(objective)(model, next(keys), x)
        error = np.hypot(np.std(np.exp(log_w - bound)) / np.sqrt(4000), exact.standard_error)
        assert abs(bound - exact.value) < 4 * error
    gradient = jax.jit(jax.grad(lambda m, key: jv.elbo(m, key, x)[0]))(model, next(keys))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradient.prior))


@pytest.mark.thorough
def test_a_mixture_of_strangers_has_the_gradient_of_its_draws(x64):
    """E[z] = sum_k pi_k mu_k, differentiated through draws: weights, locations and scales."""
    parameters = jnp.array([0.3, -0.4]), jnp.array([[0.5], [-1.0]]), jnp.array([[0.6], [0.9]])

    def moments(parameters, key):
        logits, loc, scale = parameters
        z = jv.Mixture(logits, Logistic(loc, scale)).sample(key)
        return jnp.sum(z + z**2)

    def exact(parameters):
        logits, loc, scale = parameters
        of_each = loc + loc**2 + jnp.square(jnp.pi * scale) / 3.0
        return jnp.sum(jax.nn.softmax(logits) * of_each[:, 0])

    assert jv.Mixture(parameters[0], Logistic(*parameters[1:])).reparameterized
    assert not jv.Mixture(parameters[0], LogitNormal(*parameters[1:])).reparameterized
    slopes = draws(lambda key: jax.grad(moments)(parameters, key), 20_000)
    for found, expected in zip(slopes, jax.grad(exact)(parameters), strict=True):
        assert standard_errors_off(found, expected) < 4


PAIRS = {
    "alone": (lambda d: d, lambda z: z),
    "Constant": (jv.Constant, lambda z: z),
    "Product": (lambda d: jv.Product({"a": d, "b": jv.Product([d])}), lambda z: {"a": z, "b": [z]}),
    "Independent": (lambda d: jv.Independent(jax.vmap(lambda d: d)(d)), lambda z: z),
    "Joint": (lambda d: jv.Joint(d, Partial(lambda d, z: d, d)), lambda z: (z, z)),
    "Joint of a Product": (
        lambda d: jv.Joint(jv.Product([d]), Partial(lambda d, z: jv.Independent(d), d)),
        lambda z: ([z], z),
    ),
}


@pytest.mark.parametrize("wrap", PAIRS)
def test_a_closed_form_of_an_unknown_class_is_used(wrap, x64):
    """log q is NaN, so that nothing is taken from the sample."""
    make, event = PAIRS[wrap]
    q, p = at(LogitNormal), at(LogitNormal, np.zeros(2), np.ones(2))
    once = jv.kl_divergence(jv.Normal(q.loc, q.scale), jv.Normal(p.loc, p.scale))
    z = event(jnp.array([0.2, 0.7]))
    count = len(jax.tree.leaves(z))
    found = jv.auto_kl(make(q), make(p), z, jnp.array(jnp.nan))
    assert close(found, count * once)
    if "Joint" not in wrap:
        assert close(jv.kl_divergence(make(q), make(p)), count * once)


def test_what_an_unknown_class_does_not_know_is_sampled():
    """`kl_to` that returns None leaves the pair to the library."""
    q, other = at(LogitNormal), jv.Beta(2.0 * jnp.ones(2), 1.0)
    z, log_q = jv.sample_and_log_prob(q, jax.random.key(0))
    LogitNormal.asked.clear()
    assert close(jv.auto_kl(q, other, z, log_q), log_q - other.log_prob(z))
    assert LogitNormal.asked == [jv.Beta]
    with pytest.raises(NotImplementedError, match=r"KL\(LogitNormal \|\| Beta\); use sampled_kl"):
        jv.kl_divergence(q, other)
    with pytest.raises(ValueError, match=r"over events of shape \(2,\) and p of shape \(1,\)"):
        jv.kl_divergence(q, LogitNormal(jnp.zeros(1), jnp.ones(1)))


@jv.pytree
@dataclass(frozen=True, eq=False)
class Exponential:
    """Its product with another is a third."""

    rate: Any

    def sample(self, key):
        return jax.random.exponential(key, self.rate.shape) / self.rate

    def log_prob(self, z):
        return jnp.sum(jnp.log(self.rate) - self.rate * z)

    def times(self, other):
        return Exponential(self.rate + other.rate)


def test_experts_of_an_unknown_class():
    """Those that know their product have one, and any a mixture."""
    experts, prior = [Exponential(jnp.array([r])) for r in (1.0, 2.0)], Exponential(jnp.ones(1))
    of = jax.jit(lambda present: jv.models.product_of_experts(experts, prior, present).rate)
    for present, rate in (((True, True), 4.0), ((True, False), 2.0), ((False, False), 1.0)):
        assert close(of(jnp.array(present)), [rate])
    z = jnp.array([0.7])
    log_p = jnp.stack([d.log_prob(z) for d in experts])
    mixture = jv.models.mixture_of_experts(experts, prior)
    assert close(mixture.log_prob(z), jax.nn.logsumexp(log_p) - jnp.log(2.0))
    with pytest.raises(TypeError, match=r"experts.1. is a Normal, expected Exponential, as"):
        jv.models.mixture_of_experts([experts[0], jv.Normal(z, z)], prior)


ROADS = {
    "elbo": jv.elbo,
    "iwae": partial(jv.iwae, num_samples=2),
    "log_marginal": partial(jv.log_marginal, num_samples=2),
    "regularized": partial(jv.regularizers.regularized, penalty=lambda code, key: code.rate),
}


@pytest.mark.parametrize("road", ROADS)
def test_another_librarys_likelihood_does_not_broadcast(road):
    model = model_of(Logistic)._replace(
        encode=Partial(lambda x: at(jv.Normal)),
        decode=Partial(lambda z: nd.Logistic(z, jnp.ones(2)).to_event(1)),
    )
    assert np.isfinite(ROADS[road](model, jax.random.key(0), jnp.ones(2))[0])
    for shape in ((5, 1), (1,), (5, 2), ()):
        with pytest.raises(ValueError, match=r"expected \(2,\) as draws of decode\(z\) have"):
            ROADS[road](model, jax.random.key(0), jnp.ones(shape))


A, B = jnp.asarray(LOC), jnp.asarray(SCALE)  # of float32
OURS = {
    "Normal": jv.Normal(A, B),
    "StandardNormal": jv.StandardNormal((2,)),
    "Laplace": jv.Laplace(A, B),
    "StudentT": jv.StudentT(3.0, A, B),
    "MultivariateNormal": jv.MultivariateNormal(A, jnp.diag(B)),
    "LowRankNormal": jv.LowRankNormal(A, A[:, None], B),
    "Gamma": jv.Gamma(B, 1.0),
    "Beta": jv.Beta(B, 1.0),
    "Dirichlet": jv.Dirichlet(B),
    "Poisson": jv.Poisson(B),
    "NegativeBinomial": jv.NegativeBinomial(B, A),
    "Bernoulli": jv.Bernoulli(A),
    "ContinuousBernoulli": jv.ContinuousBernoulli(A),
    "Categorical": jv.Categorical(jnp.zeros((2, 3))),
    "OneHotCategorical": jv.OneHotCategorical(jnp.zeros(2)),
    "DiscretizedLogistic": jv.DiscretizedLogistic(A, B),
    "SphericalUniform": jv.distributions.SphericalUniform(2),
    "VonMisesFisher": jv.distributions.VonMisesFisher(A, 1.0),
    "PowerSpherical": jv.distributions.PowerSpherical(A, 1.0),
    "OptimalNormal": jv.distributions.OptimalNormal(A, axis=None),
    "ZeroInflated": jv.distributions.ZeroInflated(jv.Poisson(1.0), 0.0),
    "Transformed": jv.Transformed(jv.Normal(A, B), jv.bijectors.Affine(B, A)),
    "Autoregressive": jv.Autoregressive(
        Partial(lambda z, _: jnp.append(0.0, z[:-1])), lambda raw: jv.Normal(raw, 1.0), 2
    ),
    "Independent": jv.Independent(Logistic(A, B)),
    "Adapted": jv.distributions.adapt(nd.Normal(A, B)),
}


@pytest.mark.parametrize("name", OURS)
def test_a_batch_by_hand_does_not_broadcast(name):
    """`d.log_prob(x)` outside of any bound, where JAX broadcasts as it does by default."""
    d = OURS[name]
    good = () if name == "ZeroInflated" else (2,)
    with jax.numpy_rank_promotion("allow"):
        for shape in {(), (1,), (2,), (5, 1), (5, 2), (1, 2)} - {good}:
            for dtype in (float, int):
                with pytest.raises(ValueError, match=rf"{name}\.log_prob: event has shape"):
                    d.log_prob(jnp.ones(shape, dtype))


KEYS = jax.random.split(jax.random.key(0), 1)


def TERM(q, z, log_q):
    return jnp.sum(z), log_q


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda d: jv.mean_of(d), "Bare has no mean; add `mean()`"),
        (lambda d: tempered(d, 0.5), "tempered: Bare has no tempered; add `tempered(t)`"),
        (
            lambda d: jv.Masked(d).log_prob((A, jnp.ones(2, bool))),
            "Masked: Bare has no unstack; add `unstack()`",
        ),
        (
            lambda d: jv.regularizers.kl_per_latent(CODE(d, d, A, 0.0, 0.0)),
            "model: Bare has no unstack; add `unstack()`",
        ),
        (
            lambda d: jv.regularizers.dip_2_penalty(
                CODE(d, d, A, 0.0, 0.0), KEYS[0], off_diagonal=1.0, diagonal=1.0
            ),
            "dip_2_penalty: Bare has no covariance; add `covariance()`",
        ),
        (
            lambda d: jv.enumeration(jnp.mean, TERM, d, KEYS),
            "enumeration: Bare has no enumerate_support; add `enumerate_support()`",
        ),
        (
            lambda d: jv.gumbel_softmax(jnp.mean, TERM, d, KEYS, temperature=1.0),
            "gumbel_softmax: Bare has no sample_relaxed; add `sample_relaxed(key, t)`",
        ),
        (
            lambda d: jv.models.product_of_experts([d], d),
            "gaussian_product: a is a Bare, expected a Normal; add `times(other)` to Bare",
        ),
    ],
)
def test_an_error_says_what_to_add(ask, text):
    with pytest.raises(TypeError) as error:
        ask(Bare())
    line = str(error.value).split("\n")[0]
    assert line.startswith(text)
    assert "see docs/new_method.md" in line


class Bare:
    """The least a distribution can be."""

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def log_prob(self, z):
        return -0.5 * jnp.sum(z**2)


IDLE = jax.tree_util.Partial(lambda v: jv.StandardNormal((2,)))
LEVELS = (IDLE,)
OF_PARTS: dict[str, Any] = {
    "VampVAE": jv.VampVAE(IDLE, IDLE, A),
    "Ladder": jv.models.Ladder(LEVELS, LEVELS, IDLE(A), (), IDLE),
    "Padded": jv.models.Padded(jv.VAE(IDLE, IDLE, IDLE(A))),
}


@pytest.mark.parametrize("name", OF_PARTS)
def test_a_prior_that_is_made_of_parts_says_which_to_replace(name):
    fields = ", ".join(OF_PARTS[name]._fields)
    text = f"{name}: prior is made of its parts, expected one of these to replace: {fields}"
    with pytest.raises(ValueError, match=f"^{text}$"):
        OF_PARTS[name]._replace(prior=IDLE(A))


def test_what_is_no_part_says_which_there_are():
    model: Any = jv.VAE(IDLE, IDLE, IDLE(A))
    with pytest.raises(
        ValueError, match=r"VAE: priors is no part of it, .*: encode, decode, prior"
    ):
        model._replace(priors=IDLE(A))
    assert model._replace(prior=jv.StandardNormal((3,))).prior.shape == (3,)
