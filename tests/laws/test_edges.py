"""Parameters at the edge of what they may be, where 0 meets infinity: values, slopes, no NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae as jv
from jaxvae.distributions.special import log_bernoulli, weighted
from jaxvae.models import semi_supervised
from jaxvae.models.quantization import perplexity

INF = np.inf
LOG2 = float(np.log(2.0))


def of(family, x, *fixed):
    """log p(x) as a function of the first parameters."""
    return lambda *parameters: family(*parameters, *fixed).log_prob(jnp.asarray(x))


def kl(family):
    return lambda q, p: jv.kl_divergence(family(q), family(p))


def inflated(x):
    return lambda r, l, zero: jv.distributions.ZeroInflated(
        jv.NegativeBinomial(r, l), zero
    ).log_prob(jnp.asarray(x))


def mixture(family, x):
    return lambda leaf: jv.Mixture(jnp.zeros(2), family(leaf)).log_prob(jnp.asarray(x))


ONE_HOT = np.eye(3, dtype=np.float32)
EXCLUDED = [0.0, 0.0, -INF]
# the function, where, its value, and its slopes where they are numbers
CASES = {
    "poisson of rate 0": (of(jv.Poisson, 0), [0.0], 0.0, [-1.0]),
    "poisson of rate 0, a count": (of(jv.Poisson, 1), [0.0], -INF, None),
    "poisson of log-rate -inf": (
        lambda l: jv.Poisson(jnp.exp(l)).log_prob(jnp.array(0)),
        [-INF],
        0.0,
        [0.0],
    ),
    "poisson of no end": (of(jv.Poisson, 3), [INF], -INF, None),
    "one empty cell of two": (of(jv.Poisson, [0, 1]), [[0.0, 1.0]], -1.0, [[-1.0, 0.0]]),
    "negative binomial of mean 0": (of(jv.NegativeBinomial, 0), [2.0, -INF], 0.0, [0.0, 0.0]),
    "negative binomial of mean 0, a count": (of(jv.NegativeBinomial, 2), [2.0, -INF], -INF, None),
    "negative binomial of no end": (of(jv.NegativeBinomial, 2), [2.0, INF], -INF, None),
    "zero-inflated, mean 0": (inflated(0), [2.0, -INF, 0.5], 0.0, [0.0, 0.0, 0.0]),
    "zero-inflated, mean 0, never": (inflated(0), [2.0, -INF, -INF], 0.0, [0.0, 0.0, 0.0]),
    "zero-inflated, mean 0, always": (inflated(0), [2.0, -INF, INF], 0.0, [0.0, 0.0, 0.0]),
    "zero-inflated, mean 0, a count": (inflated(2), [2.0, -INF, -INF], -INF, None),
    "mixture of poissons, one of rate 0, no count": (
        mixture(jv.Poisson, 0),
        [[0.0, 3.0]],
        float(np.log(0.5 + 0.5 * np.exp(-3.0))),
        [[-1.0 / (1.0 + np.exp(-3.0)), -1.0 / (1.0 + np.exp(3.0))]],
    ),
    "mixture of poissons, one of rate 0, five": (
        mixture(jv.Poisson, 5),
        [[0.0, 3.0]],
        float(5 * np.log(3.0) - 3.0 - np.log(120.0) - LOG2),
        [[0.0, 2.0 / 3.0]],
    ),
    "mixture in which all is impossible": (mixture(jv.Poisson, 5), [[0.0, 0.0]], -INF, None),
    "one-hot, a class excluded": (
        of(jv.OneHotCategorical, ONE_HOT[0]),
        [EXCLUDED],
        -LOG2,
        [[0.5, -0.5, 0.0]],
    ),
    "one-hot, the excluded class": (
        of(jv.OneHotCategorical, ONE_HOT[2]),
        [EXCLUDED],
        -INF,
        [[-0.5, -0.5, 1.0]],
    ),
    "one-hot, in the event": (
        lambda z: jv.OneHotCategorical(jnp.array(EXCLUDED)).log_prob(z),
        [ONE_HOT[0]],
        -LOG2,
        [[-LOG2, -LOG2, 0.0]],
    ),
    "mixture of one-hots": (
        mixture(jv.OneHotCategorical, ONE_HOT[0]),
        [[EXCLUDED, [-INF, 0.0, -INF]]],
        -2.0 * LOG2,
        [[[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]],
    ),
    "mixture of one weight": (
        lambda l, m: jv.Mixture(l, jv.Normal(m, jnp.ones(2))).log_prob(jnp.array(1.0)),
        [[0.0, -INF], [0.0, 1.0]],
        -0.5 - 0.5 * np.log(2.0 * np.pi),
        [[0.0, 0.0], [1.0, 0.0]],
    ),
    "bernoulli, surely 0": (of(jv.Bernoulli, 0.0), [-INF], 0.0, [0.0]),
    "bernoulli, surely 1": (of(jv.Bernoulli, 1.0), [INF], 0.0, [0.0]),
    "bernoulli, never 0": (of(jv.Bernoulli, 0.0), [INF], -INF, None),
    "bernoulli, never 1": (of(jv.Bernoulli, [0.0, 1.0]), [[0.0, -INF]], -INF, None),
    "kl of categoricals": (kl(jv.Categorical), [EXCLUDED, EXCLUDED], 0.0, 2 * [[0.0, 0.0, 0.0]]),
    "kl of one-hots": (kl(jv.OneHotCategorical), [EXCLUDED, EXCLUDED], 0.0, 2 * [3 * [0.0]]),
    "kl of poissons, q of rate 0": (kl(jv.Poisson), [0.0, 3.0], 3.0, None),
    "kl of poissons, p of rate 0": (kl(jv.Poisson), [2.0, 0.0], INF, None),
    "kl of poissons, both of rate 0": (kl(jv.Poisson), [0.0, 0.0], 0.0, [0.0, 1.0]),
    "kl of bernoullis, q sure": (
        kl(jv.Bernoulli),
        [-INF, 0.7],
        float(np.log1p(np.exp(0.7))),
        [0.0, 1.0 / (1.0 + np.exp(-0.7))],
    ),
    "kl of bernoullis, p sure": (kl(jv.Bernoulli), [0.3, INF], INF, None),
    "kl of bernoullis, both sure": (kl(jv.Bernoulli), [INF, INF], 0.0, [0.0, 0.0]),
    "kl of bernoullis, of opposites": (kl(jv.Bernoulli), [INF, -INF], INF, None),
    "kl of products": (
        lambda q, p: jv.kl_divergence(
            jv.Product([jv.OneHotCategorical(q), jv.Poisson(p)]),
            jv.Product([jv.OneHotCategorical(q), jv.Poisson(p)]),
        ),
        [EXCLUDED, 0.0],
        0.0,
        [[0.0, 0.0, 0.0], 1.0],
    ),
    "gamma at infinity": (lambda a: jax.jit(of(jv.Gamma, INF, 1.0))(a), [2.0], -INF, None),
    "gamma at the least number": (of(jv.Gamma, 1e-37, 1.0), [1.0], 0.0, None),
    "ciwae of a weight of 0 is iwae": (
        lambda l: jv.bounds.convex_combination(l, beta=0.0),
        [[0.0, -INF]],
        -LOG2,
        [[1.0, 0.0]],
    ),
    "thermodynamic, upper, of a weight of 0": (
        partial(jv.bounds.thermodynamic, betas=np.array([0.0, 1.0]), at=np.array([1.0])),
        [[0.5, -INF]],
        0.5,
        None,
    ),
    "the mean of a log-weight of -inf": (
        lambda l: jv.bounds.log_power_mean(l, power=0.0),
        [[0.5, -INF]],
        -INF,
        None,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("f", "args", "value", "slopes"), CASES.values(), ids=CASES)
def test_at_the_edge(f, args, value, slopes):
    """Forwards too: a tangent of 0 is not multiplied by an infinite slope."""
    args = [jnp.asarray(arg, jnp.float32) for arg in args]

    @jax.jit
    def everything(*args):
        tangents = [jnp.zeros_like(arg) for arg in args]
        every = tuple(range(len(args)))
        return jax.value_and_grad(f, every)(*args), jax.jvp(f, tuple(args), tuple(tangents))[1]

    (found, gradient), still = everything(*args)
    assert np.allclose(found, value, rtol=1e-6, atol=1e-6), found
    assert not any(np.any(np.isnan(leaf)) for leaf in gradient), gradient
    if slopes is not None:
        for leaf, slope in zip(gradient, slopes, strict=True):
            assert np.allclose(leaf, slope, rtol=1e-5, atol=1e-6), (leaf, slope)
        assert still == 0.0


def test_what_weighs_nothing_says_nothing():
    value, slopes = jax.value_and_grad(weighted, (0, 1))(2.0, 3.0)
    assert (float(value), *map(float, slopes)) == (6.0, 3.0, 2.0)
    assert float(weighted(0, -INF)) == 0.0
    assert np.isnan(weighted(0.0, np.nan))  # what is no number at all still shows
    assert float(weighted(0.5, -INF)) == -INF


def test_bernoullis_extension_is_linear(x64):
    """Between 0 and 1, where relaxed samples are, and in its slope in x: the logit."""
    x, l = jnp.array([0.0, 0.3, 1.0, 1.0]), jnp.array([-2.0, 5.0, 0.0, 40.0])
    expected = x * l - np.logaddexp(0.0, l)
    assert np.allclose(jax.vmap(log_bernoulli)(x, l), expected, rtol=1e-14)
    by_x, by_l = jax.vmap(jax.grad(log_bernoulli, (0, 1)))(x, l)
    assert np.array_equal(by_x, l)
    assert np.allclose(by_l, x - 1.0 / (1.0 + np.exp(-l)), atol=1e-15)


LABELLED = [
    (jv.Categorical(jnp.zeros(3)), ()),
    (jv.Categorical(jnp.zeros((2, 3))), (2,)),
    (jv.DiscretizedLogistic(jnp.zeros(2), 1.0, levels=3), (2,)),
]


@pytest.mark.parametrize(("d", "shape"), LABELLED, ids=["label", "labels", "levels"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_none(d, shape, label):
    """Seen, an error that names it; traced, -inf, and no NaN in the slopes."""
    y = jnp.full(shape, label)
    with pytest.raises(ValueError, match=rf"event holds {label}\b"):
        d.log_prob(y)
    value, slopes = jax.jit(jax.value_and_grad(lambda d: d.log_prob(y)))(d)
    assert value == -jnp.inf
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_an_objective_of_a_label_that_is_none(label, alpha):
    """-inf where the label is traced, also at the alpha of 0 that labelled has by default."""
    given = jax.tree_util.Partial(
        lambda y: jv.VAE(
            encode=lambda x: jv.Normal(x, 1.0),
            decode=lambda z: jv.Normal(z, 1.0),
            prior=jv.StandardNormal((2,)),
        )
    )
    classify = jax.tree_util.Partial(lambda x: jv.Categorical(jnp.zeros(3)))
    model = semi_supervised.LabelVAE(classify, given, jv.Categorical(jnp.zeros(3)))
    objective = jax.jit(lambda y: jv.models.labelled(jv.elbo)(
        model, jax.random.key(0), (jnp.ones(2), y), alpha=alpha
    )[0])  # fmt: skip
    assert np.isfinite(objective(1))
    assert objective(label) == -jnp.inf


def test_a_rate_that_is_infinite_and_not_counted():
    """beta = 0, where a warm-up begins: minus the distortion."""
    model = jv.VAE(
        encode=lambda x: jv.Categorical(jnp.zeros(2)),
        decode=lambda z: jv.Normal(z.astype(float), 1.0),
        prior=jv.Categorical(jnp.array([0.0, -jnp.inf])),
    )
    bound, terms = jv.elbo(model, jax.random.key(0), jnp.array(0.5), beta=0.0)
    assert terms.rate == jnp.inf
    assert bound == -terms.distortion
    assert jv.elbo(model, jax.random.key(0), jnp.array(0.5), beta=0.1)[0] == -jnp.inf


def test_no_codes_are_in_use_where_none_is_counted():
    assert float(jax.jit(perplexity)(jnp.zeros(3, int))) == 0.0
