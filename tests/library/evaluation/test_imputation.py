"""Missing entries given the observed ones, on linear models, where both are Gaussian and known."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import softmax
from scipy.stats import multivariate_normal

import jaxvae as jv
from jaxvae.evaluation.imputation import impute, multiple_imputations
from jaxvae.models import ppca
from tests.common import close, draws, standard_errors_off

WEIGHT = np.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5], [-0.8, 0.4]])
MEAN, VARIANCE = np.array([0.5, -1.0, 0.0, 2.0]), 0.3
OBSERVED, MISSING = [0, 2], [1, 3]
MASK = np.array([True, False, True, False])
X = np.array([1.4, np.nan, -0.2, np.nan])


def linear(encode):
    """p(x|z) = N(W z + mu, s2 I), of events (x, mask), with the posterior `encode`."""

    def decode(z):
        return jv.Masked(jv.Normal(jnp.asarray(WEIGHT) @ z + MEAN, np.sqrt(VARIANCE)))

    return jv.VAE(Partial(encode), Partial(decode), jv.StandardNormal((2,)))


def exact_posterior(event):
    """p(z|x_observed): a coordinate that is not seen is one that no latent moves."""
    x, mask = event
    seen = ppca.PPCA(jnp.where(mask[:, None], WEIGHT, 0.0), jnp.asarray(MEAN), VARIANCE)
    return ppca.posterior(seen, jnp.where(mask, x, MEAN))


def other_posterior(event):
    del event
    return jv.Normal(jnp.array([0.4, 0.1]), jnp.array([1.1, 1.3]))


def conditional():
    """Mean and covariance of N(x_missing | x_observed), by the Gaussian formulae."""
    cov = WEIGHT @ WEIGHT.T + VARIANCE * np.eye(4)
    gain = cov[np.ix_(MISSING, OBSERVED)] @ np.linalg.inv(cov[np.ix_(OBSERVED, OBSERVED)])
    mean = MEAN[MISSING] + gain @ (X - MEAN)[OBSERVED]
    return mean, cov[np.ix_(MISSING, MISSING)] - gain @ cov[np.ix_(OBSERVED, MISSING)]


def event():
    return X, MASK


def test_iwae_is_the_bound_of_what_was_observed(x64):
    """With the exact posterior every weight is p(x_observed), gaps filled with NaN or not."""
    bound = jax.jit(partial(jv.iwae, num_samples=5))
    _, log_w = bound(linear(exact_posterior), jax.random.key(0), event())
    cov: Any = (WEIGHT @ WEIGHT.T + VARIANCE * np.eye(4))[np.ix_(OBSERVED, OBSERVED)]
    assert close(log_w, np.full(5, multivariate_normal.logpdf(X[OBSERVED], MEAN[OBSERVED], cov)))


@pytest.mark.parametrize(
    ("encode", "num_samples"), [(exact_posterior, 1), (other_posterior, 1_000)]
)
def test_single_imputation_is_the_conditional_mean(x64, encode, num_samples):
    model = linear(encode)
    found = draws(lambda key: impute(model, key, event(), num_samples=num_samples), 400)
    assert np.array_equal(found[:, OBSERVED], np.tile(X[OBSERVED], (400, 1)))
    assert standard_errors_off(found[:, MISSING], conditional()[0]) < 4


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("encode", "num_samples", "num"), [(exact_posterior, 1, 20_000), (other_posterior, 300, 4_000)]
)
def test_multiple_imputations_have_the_conditional_moments(x64, encode, num_samples, num):
    model = linear(encode)
    found = draws(
        lambda key: multiple_imputations(model, key, event(), num_samples=num_samples, num_draws=1)[
            0
        ],
        num,
    )
    mean, cov = conditional()
    assert np.array_equal(found[:, OBSERVED], np.tile(X[OBSERVED], (num, 1)))
    assert standard_errors_off(found[:, MISSING], mean) < 4
    r = np.asarray(found)[:, MISSING] - mean
    assert standard_errors_off(r[:, :, None] * r[:, None, :], cov) < 4


def test_each_of_multiple_imputations_draws_its_own(x64):
    """Of one z, as only K = 1 is drawn, they are independent draws of p(x_missing|z)."""
    model = linear(exact_posterior)
    of_key = lambda key: multiple_imputations(model, key, event(), num_samples=1, num_draws=2)
    rows = draws(of_key, 4_000)[:, :, MISSING]
    apart = rows[:, 0] - rows[:, 1]
    assert standard_errors_off(apart, np.zeros(2)) < 4
    assert standard_errors_off(apart**2, np.full(2, 2.0 * VARIANCE)) < 4


def columns(z):
    """Two reals, one count and one choice among three, all moved by z > 0 or z < 0."""
    return jv.Masked(
        jv.Product(
            {
                "count": jv.Poisson(jnp.exp(z)),
                "kind": jv.OneHotCategorical(jnp.stack([z, 0.0 * z, -z])),
                "reals": jv.Normal(jnp.stack([z, -z]), 0.5),
            }
        )
    )


@pytest.mark.thorough
def test_columns_of_any_kind(x64):
    """Against sums over a fine grid of z; draws are rows of the table, with what was seen in it."""
    x = {"count": np.array(3), "kind": np.full(3, np.nan), "reals": np.array([np.nan, -0.4])}
    mask = {"count": np.array(True), "kind": np.array(False), "reals": np.array([False, True])}
    model = jv.VAE(Partial(lambda _: jv.Normal(0.5, 1.0)), Partial(columns), jv.StandardNormal(()))

    @jax.jit
    @jax.vmap
    def at(z):
        return columns(z).log_prob((x, mask)) - z**2 / 2, columns(z).mean()

    log_p, means = jax.tree.map(np.asarray, at(np.linspace(-8.0, 8.0, 4001)))
    w = softmax(log_p)
    exact = jax.tree.map(lambda m: np.tensordot(w, m, 1), means)

    def both(key):
        mean_key, draws_key = jax.random.split(key)
        rows = multiple_imputations(model, draws_key, (x, mask), num_samples=10, num_draws=2)
        return impute(model, mean_key, (x, mask), num_samples=400), rows

    found, rows = jax.tree.map(np.asarray, draws(both, 100))
    assert np.all(found["count"] == 3)
    assert np.all(found["reals"][:, 1] == -0.4)
    assert standard_errors_off(found["kind"], exact["kind"]) < 4
    assert standard_errors_off(found["reals"][:, 0], exact["reals"][0]) < 4
    assert rows["count"].shape == (100, 2)
    assert np.all(rows["count"] == 3)
    assert set(np.unique(rows["kind"])) == {0.0, 1.0}
    assert np.all(rows["kind"].sum(axis=-1) == 1.0)


@pytest.mark.thorough
def test_imputations_share_the_latents_alone(x64):
    """Of two draws for one row: each has its own noise, and its own z among the same K = 3. With
    equal weights these are one z at 1 in 3, which is all that the two have in common."""
    model = linear(exact_posterior)

    def two(key):
        return multiple_imputations(model, key, event(), num_samples=3, num_draws=2)

    mean, _ = conditional()
    r = np.asarray(draws(two, 20_000))[:, :, MISSING] - mean
    scale_tril = np.asarray(exact_posterior(event()).scale_tril)
    shared = WEIGHT[MISSING] @ scale_tril
    assert standard_errors_off(r[:, 0, :, None] * r[:, 1, None, :], shared @ shared.T / 3) < 4


@pytest.mark.thorough
def test_a_gap_among_labels_takes_the_most_probable_one(x64):
    """Of the mixture over z: here one that is the best at no z, and not a vote or an average."""
    one, other = jnp.array([0.5, 0.4, 0.1]), jnp.array([0.05, 0.4, 0.55])

    def logits(z):
        share = jax.nn.sigmoid(20.0 * z)
        return jnp.log(share * one + (1.0 - share) * other)

    def decode(z):
        parts = {
            "each": jv.Independent(
                jax.vmap(jv.Categorical)(jnp.stack([logits(z), logits(z)[::-1]]))
            ),
            "fixed": jv.Constant(jv.Categorical(np.array([0.1, 0.3, 0.9]))),
            "kinds": jv.Categorical(jnp.stack([logits(z), jnp.roll(logits(z), 1)])),
            "real": jv.Normal(z, 2.0),
        }
        return jv.Masked(jv.Product(parts))

    model = jv.VAE(Partial(lambda _: jv.Normal(0.1, 1.1)), Partial(decode), jv.StandardNormal(()))
    x: Any = {name: jnp.full(2, -7) for name in ("each", "kinds")}
    x |= {"fixed": jnp.array(-7), "real": jnp.array(0.5)}
    mask = jax.tree.map(lambda leaf: leaf != -7, x)
    z = jnp.linspace(-8.0, 8.0, 4001)
    w = jax.nn.softmax(jax.vmap(lambda z: decode(z).log_prob((x, mask)) - z**2 / 2)(z))
    chances = w @ jax.nn.softmax(jax.vmap(logits)(z))
    assert chances[1] - max(chances[0], chances[2]) > 0.05
    assert jnp.argmax(logits(w @ z)) == 0
    fill = jax.jit(lambda key: impute(model, key, (x, mask), num_samples=2_000))
    found = jax.tree.map(lambda leaf: leaf.tolist(), fill(jax.random.key(0)))
    assert found == {"each": [1, 1], "fixed": 2, "kinds": [1, 2], "real": 0.5}


def test_a_mask_of_pixels_hides_their_channels():
    image = jv.Masked(
        jv.Independent(jv.Independent(jv.Normal(jnp.full((2, 2, 3), 7.0), jnp.ones((2, 2, 3)))))
    )
    model = jv.VAE(
        Partial(lambda _: jv.StandardNormal((1,))), lambda z: image, jv.StandardNormal((1,))
    )
    mask = jnp.array([[True, False], [False, True]])
    x = impute(model, jax.random.key(0), (jnp.zeros((2, 2, 3)), mask), num_samples=2)
    assert close(x, np.where(mask[..., None], np.zeros(3), 7.0 * np.ones(3)).astype("f"))


@pytest.mark.thorough
def test_what_cannot_be_imputed_is_named():
    model = linear(other_posterior)
    plain = model._replace(decode=Partial(lambda z: jv.Normal(jnp.ones(4), 1.0)))
    with pytest.raises(TypeError, match="impute: decode returned a Normal, expected a Masked"):
        impute(plain, jax.random.key(0), event(), num_samples=2)
    mixed = lambda z: jv.Masked(
        jv.Independent(jv.Mixture(jnp.zeros((4, 2)), jv.Categorical(jnp.zeros((4, 2, 3)))))
    )
    with pytest.raises(TypeError, match="Categorical has no mean"):
        impute(
            model._replace(decode=Partial(mixed)),
            jax.random.key(0),
            (jnp.zeros(4, int), event()[1]),
            num_samples=2,
        )
    no_pair: Any = jnp.asarray(X)
    with pytest.raises(TypeError, match=r"impute: event is an array, expected a pair \(x, m"):
        impute(model, jax.random.key(0), no_pair, num_samples=2)
    with pytest.raises(ValueError, match=r"impute: mask has shape \(1, 4\), expected \(4,\)"):
        impute(model, jax.random.key(0), (event()[0], event()[1][None]), num_samples=2)
    with pytest.raises(ValueError, match="impute: mask has structure"):
        impute(model, jax.random.key(0), (event()[0], {"a": event()[1]}), num_samples=2)
    with pytest.raises(ValueError, match="multiple_imputations: num_draws is 0"):
        multiple_imputations(model, jax.random.key(0), event(), num_samples=2, num_draws=0)
