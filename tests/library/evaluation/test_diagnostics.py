"""What latents carry, against mixtures written out in NumPy and a linear model in closed form."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp
from scipy.stats import laplace, norm

from jaxvae import (
    VAE,
    Bernoulli,
    Categorical,
    Constant,
    Laplace,
    MultivariateNormal,
    Normal,
    StandardNormal,
    Transformed,
    batched,
    elbo,
    init_state,
    kl_divergence,
    sample_and_log_prob,
)
from jaxvae.bijectors import Affine
from jaxvae.evaluation import (
    active_units,
    collapse_panel,
    decode_all,
    encode_all,
    full_batch,
    minibatch_stratified,
    minibatch_weighted,
    optimal_scale,
    rate_decomposition,
    rate_distortion_curve,
    rate_per_latent,
)
from tests.common import close, draws, standard_errors_off

XS = np.array([[-1.0, 0.5], [0.3, 2.0], [1.5, -0.4], [0.0, 0.1], [2.5, 1.0]])
SLOPES = np.array([[1.0, 0.3], [-0.5, 0.8], [0.0, 0.0]])


def model(prior=None, scale=0.4):
    """z = W x + noise in three latents, of which the last carries nothing."""
    return VAE(
        encode=Partial(lambda x: Normal(SLOPES @ x, jnp.array([scale, 0.7, 1.0]))),
        decode=Partial(lambda z: Normal(z[:2], jnp.ones(2))),
        prior=StandardNormal((3,)) if prior is None else prior,
    )


def test_active_units():
    """Posterior means of variance 1, .0101, .0099 and 0 over the data, whatever q's own."""
    slopes = jnp.sqrt(jnp.array([1.0, 0.0101, 0.0099, 0.0]))
    xs = jnp.array([-1.0, 1.0, -1.0, 1.0]) + 5.0
    at = model()._replace(encode=Partial(lambda x: Normal(slopes * x, jnp.full(4, 3.0))))
    assert active_units(at, xs).tolist() == [True, True, False, False]
    assert active_units(at, xs, threshold=0.5).tolist() == [True, False, False, False]


# conditional models: what the mean over rows is of model(y) at each of them


def given_label(slope, y):
    """q(z|x, y) = N(y slope x, .5), p(z|y) = N(y, 1), p(x|z, y) = N(z + y, 1): all use y."""
    encode = lambda x: Normal(y * slope * x, jnp.full(2, 0.5))
    decode = lambda z: Normal(z + y, jnp.ones(2))
    return VAE(encode, decode, Normal(jnp.full(2, y), jnp.ones(2)))


@pytest.mark.thorough
def test_rows_have_each_its_y():
    slope, ys = np.array([1.0, 0.01], np.float32), np.array([1.0, -2.0, 0.5, 0.0, 3.0], np.float32)
    at, xs = Partial(given_label, jnp.asarray(slope)), XS.astype(np.float32)
    means = ys[:, None] * slope * xs
    assert (
        active_units(at, xs, given=ys).tolist() == (means.var(0) > 0.01).tolist() == [True, False]
    )
    np.testing.assert_allclose(encode_all(at, xs, given=ys), means, rtol=1e-6)
    np.testing.assert_allclose(decode_all(at, xs, given=ys), xs + ys[:, None], rtol=1e-6)
    kls = np.log(2.0) + 0.5 * (0.25 + (means - ys[:, None]) ** 2) - 0.5
    np.testing.assert_allclose(rate_per_latent(at, xs, given=ys), kls.mean(0), rtol=1e-5)
    curve = rate_distortion_curve(
        jax.tree.map(lambda leaf: leaf[None], at), jax.random.key(0), xs, given=ys
    )
    np.testing.assert_allclose(curve.rate, [kls.sum(1).mean()], rtol=1e-5)
    keys = jax.random.split(KEY(), 5)
    zs = [at(y).encode(x).sample(k) for k, x, y in zip(keys, xs, ys, strict=True)]
    sigma = np.sqrt(np.mean((xs - np.stack(zs) - ys[:, None]) ** 2))
    np.testing.assert_allclose(optimal_scale(at, KEY(), xs, given=ys), sigma, rtol=1e-5)
    panel, state = collapse_panel(xs, given=ys), init_state(at, optax.sgd(0.1))
    shown: Any = panel(state, {"loss": np.zeros(1)}, 1.0, KEY())
    assert shown["active_units"] == 1
    np.testing.assert_allclose(shown["rate_per_latent"], kls.mean(0), rtol=1e-5)


@pytest.mark.thorough
def test_a_conditional_model_without_its_y_is_refused_with_what_to_do():
    at: Any = Partial(given_label, jnp.ones(2))
    ys = np.ones(5, np.float32)
    for call in (active_units, rate_per_latent, encode_all):
        with pytest.raises(
            TypeError, match=r"of a function y -> model give model\(y\), given= bes"
        ):
            call(at, XS)
        with pytest.raises(ValueError, match=rf"^{call.__name__}: \(xs, given\) has leading axes"):
            call(at, XS, given=ys[:3])
    refused = (
        r"^rate_decomposition: model is a function y -> model, .*model\(xy\[1\]\).encode\(xy\[0\]"
    )
    with pytest.raises(TypeError, match=refused):
        rate_decomposition(at, KEY(), XS)
    # what it says to do where p(z) is one
    one = VAE(lambda xy: at(xy[1]).encode(xy[0]), at(0.0).decode, StandardNormal((2,)))
    rate_decomposition(one, KEY(), (jnp.asarray(XS, jnp.float32), ys))


# the rate of each latent


@pytest.mark.parametrize(
    ("encode", "prior"),
    [
        (lambda x: Normal(SLOPES @ x, jnp.full(3, 0.3)), StandardNormal((3,))),
        (lambda x: Normal(SLOPES @ x, 0.3), Normal(np.ones(3), np.array([1.0, 2.0, 0.5]))),
        (lambda x: Normal(SLOPES @ x, 0.3), Constant(Laplace(np.zeros(3), 2.0))),
        (lambda x: Laplace(SLOPES @ x, jnp.full(3, 0.3)), Laplace(np.ones(3), np.ones(3))),
        (lambda x: Bernoulli(SLOPES @ x), Bernoulli(np.array([0.1, -0.5, 2.0]))),
        (
            lambda x: Categorical(jnp.outer(SLOPES @ x, jnp.array([1.0, 0.0, -2.0]))),
            Categorical(np.zeros((3, 3))),
        ),
    ],
)
def test_rates_add_up(encode, prior, x64):
    """One for each latent, and their sum is the mean rate."""
    at = model(prior)._replace(encode=Partial(encode))

    @jax.jit
    def both(xs):
        return rate_per_latent(at, xs), jax.vmap(lambda x: kl_divergence(at.encode(x), prior))(xs)

    rates, kls = jax.tree.map(np.asarray, both(XS))
    assert rates.shape == (3,)
    assert close(np.sum(rates), np.mean(kls))
    assert len(np.unique(np.round(rates, 6))) == 3


def test_a_collapsed_latent_has_no_rate(x64):
    """KL(N(m, s^2) || N(0, 1)) averaged over the rows, by hand; the last latent is the prior."""
    rates = rate_per_latent(model(), jnp.asarray(XS))
    m, s = np.asarray(XS @ SLOPES.T), np.array([0.4, 0.7, 1.0])
    assert np.allclose(rates, np.mean(0.5 * (m**2 + s**2 - 1) - np.log(s), axis=0), atol=1e-6)
    assert abs(rates[2]) < 1e-12


def test_rates_have_the_shape_of_z():
    at = VAE(
        encode=Partial(lambda x: Normal(x * jnp.ones((2, 3)), jnp.ones((2, 3)))),
        decode=Partial(lambda z: Normal(z, 1.0)),
        prior=StandardNormal((2, 3)),
    )
    assert rate_per_latent(at, jnp.array([1.0, 3.0])).tolist() == [[2.5] * 3] * 2


@pytest.mark.parametrize(
    "function", [rate_per_latent, lambda model, xs: rate_decomposition(model, KEY(), xs)]
)
def test_what_does_not_factorise_says_so(function):
    full = MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    flow = Transformed(StandardNormal((3,)), Affine(jnp.ones(3), jnp.zeros(3)))
    for at in (model(full), model(flow), model()._replace(encode=Partial(lambda x: flow))):
        with pytest.raises(TypeError, match=r"has no unstack; add `unstack\(\)`, see docs/new_m"):
            function(at, XS)


def KEY(seed=0):
    return jax.random.key(seed)


# mutual information + total correlation + dimension-wise KL


def log_densities(z, m, s):
    """log q(z_i|x_j) by latent, [rows, rows, latents]."""
    return norm.logpdf(z[:, None], m[None], s)


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("prior", [None, Laplace(np.zeros(3), np.array([1.0, 2.0, 0.5]))])
def test_parts_of_the_rate(prior, chunk, x64):
    """Every part at every row, from the mixture written out; their sum is log q(z|x) - log p(z)."""
    xs = jnp.asarray(XS)
    at = model(prior)
    parts = jax.jit(partial(rate_decomposition, at, chunk=chunk))(KEY(1), xs)
    z = np.stack(
        [at.encode(x).sample(k) for k, x in zip(jax.random.split(KEY(1), 5), xs, strict=True)]
    )
    each = log_densities(z, np.asarray(xs @ SLOPES.T), np.array([0.4, 0.7, 1.0]))
    own = np.einsum("iij->i", each)
    log_q = logsumexp(each.sum(-1), axis=1) - np.log(5)
    log_q_each = (logsumexp(each, axis=1) - np.log(5)).sum(-1)
    log_p = norm.logpdf(z).sum(-1) if prior is None else laplace.logpdf(z, 0, [1, 2, 0.5]).sum(-1)
    assert close(parts.mutual_information, own - log_q)
    assert close(parts.total_correlation, log_q - log_q_each)
    assert close(parts.dimension_wise_kl, log_q_each - log_p)
    assert close(sum(parts), own - log_p)


def test_their_means_are_the_rate():
    """MI + TC + dimension-wise KL = KL averaged over the data, the closed form; and MI <= log N."""
    parts = draws(lambda key: rate_decomposition(model(), key, XS), 4_000, 2)
    total: Any = sum(parts)
    assert standard_errors_off(total.mean(axis=1), jnp.sum(rate_per_latent(model(), XS))) < 4
    information = parts.mutual_information.mean(axis=1)
    assert 0.5 < jnp.mean(information) < np.log(5)
    assert jnp.mean(parts.total_correlation) > 0.05
    assert jnp.mean(parts.dimension_wise_kl) > 0.05


def test_parts_of_codes_that_are_known(x64):
    """Far apart, a code tells which x: MI = log N. Two equal latents share it: TC = log N. Apart
    from the shared bit, independent latents on a full grid have no TC."""
    grid = jnp.array([[a, b] for a in (-50.0, 50.0) for b in (-50.0, 50.0)])
    grid_code = VAE(
        Partial(lambda x: Normal(x, jnp.ones(2))), lambda z: Normal(z, 1.0), StandardNormal((2,))
    )
    parts = jax.jit(partial(rate_decomposition, grid_code))(KEY(3), jnp.repeat(grid, 50, axis=0))
    assert close(jnp.mean(parts.mutual_information), np.log(4))
    assert abs(jnp.mean(parts.total_correlation)) < 1e-10
    same = grid_code._replace(encode=Partial(lambda x: Normal(x[:1] + jnp.zeros(2), jnp.ones(2))))
    parts = jax.jit(partial(rate_decomposition, same))(KEY(4), grid)
    assert close(jnp.mean(parts.mutual_information), np.log(2))
    assert close(jnp.mean(parts.total_correlation), np.log(2))


def test_information_is_zero_where_nothing_is_coded(x64):
    """q(z|x) = p(z): all three parts vanish at every sample."""
    at = model()._replace(encode=Partial(lambda x: Normal(jnp.zeros(3), jnp.ones(3))))
    for part in jax.jit(partial(rate_decomposition, at))(KEY(5), jnp.asarray(XS)):
        assert jnp.max(jnp.abs(part)) < 1e-12


# from minibatches


@pytest.mark.parametrize("log_weights", [minibatch_weighted, minibatch_stratified])
def test_minibatch_weights(log_weights, x64):
    """The whole data set as a batch: stratified is exact, weighted is low by log N throughout."""
    w = np.exp(log_weights(4, 10))
    if log_weights is minibatch_stratified:
        assert close(np.diag(w), np.full(4, 0.1))
        assert close(w.sum(axis=1), np.ones(4))
        assert close(minibatch_stratified(10, 10), full_batch(10, 10))
    else:
        assert close(w, np.full((4, 4), 1 / 40))
        assert close(minibatch_weighted(10, 10), full_batch(10, 10) - np.log(10))


@cache
def estimates_of(log_weights, size, num=3_000):
    """From random batches of 40 rows: parts, and q(z) of the first row against the exact one."""
    rows = jax.random.normal(KEY(6), (40, 2))
    at = model(scale=0.3)

    def one(key):
        choose, draw = jax.random.split(key)
        batch = rows[jax.random.permutation(choose, 40)[:size]]
        parts = rate_decomposition(at, draw, batch, dataset_size=40, weighting=log_weights)
        # the draw is the same with the whole data set behind the batch
        z_key = jax.random.split(jax.random.clone(draw), size)[0]
        z, log_q_given_x = sample_and_log_prob(at.encode(batch[0]), z_key)
        each = jax.vmap(lambda x: at.encode(x).log_prob(z))(rows)
        exact = jax.scipy.special.logsumexp(each) - jnp.log(40.0)
        log_q = log_q_given_x - parts.mutual_information[0]
        return jnp.exp(log_q - exact), log_q - exact

    return draws(one, num, 7)


@pytest.mark.thorough
def test_stratified_sampling_is_unbiased_for_the_density():
    """E q-hat(z) / q(z) = 1 given z, so its logarithm is low (Jensen), less in larger batches."""
    bias = []
    for size in (2, 5, 20, 40):
        ratio, log_ratio = estimates_of(minibatch_stratified, size)
        if size < 40:
            assert standard_errors_off(ratio, 1.0) < 4
        bias.append(float(jnp.mean(log_ratio)))
    assert bias[0] < bias[1] < bias[2] < -0.001
    assert abs(bias[3]) < 1e-4


@pytest.mark.thorough
def test_weighted_sampling_is_low():
    """By between 0 and log N = 3.7 nats, still by log N from the whole data set; never exact."""
    bias = [float(jnp.mean(estimates_of(minibatch_weighted, size)[1])) for size in (5, 20, 40)]
    assert abs(bias[2] + np.log(40)) < 1e-4
    assert all(-np.log(40) - 1e-3 < b < -2.0 for b in bias)
    stratified = float(jnp.mean(estimates_of(minibatch_stratified, 20)[1]))
    assert abs(stratified) < 0.3 * abs(bias[1])


def test_stratified_sampling_wants_two():
    with pytest.raises(ValueError, match="the batch has 1 rows, expected 2 to 40"):
        rate_decomposition(model(), KEY(), XS[:1], dataset_size=40, weighting=minibatch_stratified)
    with pytest.raises(ValueError, match="the batch has 5 rows, expected 2 to 3"):
        minibatch_stratified(5, 3)


# rate against distortion


def at_optimum(beta):
    """p(x|z) = N(z, 1), z ~ N(0, 1): at beta the best q is N(x/(1 + b), b/(1 + b))."""
    q = lambda beta, x: Normal(x / (1.0 + beta), jnp.sqrt(beta / (1.0 + beta)))
    decode = Partial(lambda z: Normal(z, jnp.ones_like(z)))
    return VAE(Partial(q, beta), decode, StandardNormal(()))


def test_rate_distortion_of_a_linear_model():
    """R = E KL and D = 1/2 E[(x - z)^2] + 1/2 log 2 pi are known, x ~ N(0, 2)."""
    xs = 2.0**0.5 * jax.random.normal(KEY(8), (200_000,))
    betas = jnp.array([0.25, 1.0, 4.0])
    curve = rate_distortion_curve(jax.vmap(at_optimum)(betas), KEY(9), xs)
    b, second = np.asarray(betas, np.float64), float(jnp.mean(xs**2))
    s2 = b / (1 + b)
    rate = 0.5 * (s2 + second / (1 + b) ** 2 - 1 - np.log(s2))
    distortion = 0.5 * (second * s2**2 + s2 + np.log(2 * np.pi))
    assert np.allclose(curve.rate, rate, atol=1e-3)
    assert np.allclose(curve.distortion, distortion, atol=0.01)
    assert (np.diff(curve.rate) < 0).all()
    assert (np.diff(curve.distortion) > 0).all()


def test_the_curve_measures_every_model_with_the_same_draws():
    """Two equal models are one point, whatever noise their codes have; the mean over the rows."""
    models = jax.vmap(at_optimum)(jnp.array([1.0, 1.0]))
    xs = jnp.asarray(XS[:, 0])
    curve = rate_distortion_curve(models, KEY(10), xs)
    assert curve.distortion[0] == curve.distortion[1]
    _, terms = batched(elbo)(at_optimum(jnp.array(1.0)), KEY(10), xs)
    assert close(curve.rate, np.full(2, terms.rate.mean()))
    assert close(curve.distortion, np.full(2, terms.distortion.mean()))


@pytest.mark.parametrize("drawn", [False, True])
def test_a_row_of_nan_is_no_collapse(drawn):
    """Its variance is NaN, which is not above the threshold: all latents were idle."""
    encode = partial(
        lambda of, x: of(Normal(x, jnp.ones(2))), WithoutMean if drawn else lambda q: q
    )
    model = VAE(encode, lambda z: Normal(z, 1.0), StandardNormal((2,)))
    xs = jnp.arange(10.0).reshape(5, 2)
    assert jnp.all(active_units(model, xs, key=KEY(0)))
    with pytest.raises(
        ValueError, match=r"^active_units: the mean of q.z.x. is not finite at 1 of 5"
    ):
        active_units(model, xs.at[3, 1].set(jnp.nan), key=KEY(0))


class WithoutMean(NamedTuple):
    distribution: Normal

    def sample(self, key):
        return self.distribution.sample(key)

    def log_prob(self, z):
        return self.distribution.log_prob(z)
