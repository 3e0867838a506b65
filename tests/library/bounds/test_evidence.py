"""The ELBO, the importance-weighted bound, the autoencoder, and their lift to a batch."""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import laplace, norm

from jaxvae import (
    VAE,
    Categorical,
    Laplace,
    Normal,
    StandardNormal,
    analytic_kl,
    auto_kl,
    batched,
    elbo,
    fit,
    init_state,
    iwae,
    log_marginal,
    sampled_kl,
    train_epoch,
    train_step,
)
from jaxvae.bounds import autoencoder
from jaxvae.evaluation import active_units, optimal_scale, rate_decomposition, rate_per_latent
from tests.common import close, draws, standard_errors_off

X = 1.5  # the ladder: p(z) = N(0, 1), p(x|z) = N(z, 1), q = N(.25, 1)
LOG_P, ELBO = -1.828012123, -2.231438533
IWAE = {1: ELBO, 2: -1.965973787, 3: -1.906566624}


def ladder(loc=0.25, scale=1.0, prior=None):
    return VAE(
        encode=Partial(lambda q, x: Normal(*q), (jnp.asarray(loc), jnp.asarray(scale))),
        decode=Partial(lambda z: Normal(z, jnp.ones_like(z))),
        prior=StandardNormal(()) if prior is None else prior,
    )


def hermite(k, points):
    """Nodes (rows of eps) and weights that integrate over k standard normals."""
    node, weight = np.polynomial.hermite_e.hermegauss(points)
    eps = np.stack(np.meshgrid(*[node] * k), -1).reshape(-1, k)
    weights = np.prod(np.stack(np.meshgrid(*[weight] * k), -1).reshape(-1, k), -1)
    return eps, weights / weights.sum()


def log_weights_at(z):
    return norm.logpdf(z) + norm.logpdf(X, z) - norm.logpdf(z, 0.25)


class Network(NamedTuple):
    """A nonlinear autoencoder's weights: x [3] -> z [2] -> x [3]."""

    down: Any
    up: Any
    prior_scale: Any


def network(scale):
    """Its VAE: q of the given scale, a learned prior, and a likelihood of variance 1/2."""
    down = jnp.array([[0.3, -0.8, 0.5], [0.9, 0.1, -0.4]])
    up = jnp.array([[0.7, -0.2], [0.4, 0.6], [-0.5, 0.3]])

    def model(w):
        return VAE(
            encode=lambda x: Normal(jnp.tanh(w.down @ x), jnp.full((2,), scale)),
            decode=lambda z: Normal(jnp.tanh(w.up @ z), jnp.full((3,), 0.5**0.5)),
            prior=Normal(jnp.zeros(2), w.prior_scale),
        )

    return model, Network(down, up, jnp.ones(2)), jnp.array([0.2, -1.0, 0.7])


# the ELBO


def test_elbo_of_the_ladder():
    # targets: -2.231438533, also by Gauss-Hermite quadrature
    eps, weights = hermite(1, 40)
    assert close(weights @ log_weights_at(0.25 + eps[:, 0]), ELBO, dtype="float32")
    bounds, _ = draws(lambda key: elbo(ladder(), key, X), 20_000, 0)
    assert standard_errors_off(bounds, ELBO) < 4


@pytest.mark.parametrize("rate", [analytic_kl, sampled_kl, auto_kl])
def test_rates_agree_in_mean(rate):
    # KL(N(.25, 1) || N(0, 1)) = .25^2 / 2, whichever way it is had
    bounds, terms = draws(lambda key: elbo(ladder(), key, X, kl=rate), 20_000, 1)
    assert standard_errors_off(bounds, ELBO) < 4
    if rate in (analytic_kl, auto_kl):
        assert close(terms.rate, np.full(20_000, 0.03125))
    else:
        assert standard_errors_off(terms.rate, 0.03125) < 4


def test_auto_rate_falls_back_to_the_sample(x64):
    # Laplace to Normal has no closed form here: the sampled rate, at the same draw
    model = ladder()._replace(encode=Partial(lambda x: Laplace(0.3, 0.5)))
    bound, terms = elbo(model, jax.random.key(2), X)
    assert bound == elbo(model, jax.random.key(2), X, kl=sampled_kl)[0]
    z = model.encode(X).sample(jax.random.key(2))
    assert close(terms.rate, laplace.logpdf(z, 0.3, 0.5) - norm.logpdf(z))


def test_swapping_the_prior_never_edits_the_objective():
    # targets: KL(N(.3, .5^2) || Laplace(0, 1)), and to N(0, 1)
    other, standard = (
        elbo(ladder(0.3, 0.5, prior), jax.random.key(0), X)[1]
        for prior in (Laplace(0.0, 1.0), StandardNormal(()))
    )
    assert close(other.rate, 0.436028560156973)
    assert close(standard.rate, 0.363147180559945)
    assert other.distortion == standard.distortion


def test_elbo_terms_at_the_draw(x64):
    # distortion = -log p(x|z), rate = log q(z) - log p(z), at the very z that q draws
    model = ladder(0.3, 0.5)
    z = model.encode(X).sample(jax.random.key(3))
    bound, terms = elbo(model, jax.random.key(3), X, kl=sampled_kl)
    assert close(terms.distortion, -norm.logpdf(X, z))
    assert close(terms.rate, norm.logpdf(z, 0.3, 0.5) - norm.logpdf(z))
    assert close(bound, norm.logpdf(X, z) + norm.logpdf(z) - norm.logpdf(z, 0.3, 0.5))


def test_beta_weighs_the_rate_alone():
    # bound(beta) = -distortion - beta rate, beta traced; the Terms do not see beta
    betas = jnp.array([0.0, 0.5, 1.0, 7.0])
    sweep = jax.jit(jax.vmap(lambda beta: elbo(ladder(), jax.random.key(4), X, beta=beta)))
    bounds, terms = sweep(betas)
    bound, one = elbo(ladder(), jax.random.key(4), X)
    assert close(terms.distortion, jnp.full(4, one.distortion))
    assert close(terms.rate, jnp.full(4, one.rate))
    assert close(bounds, -one.distortion - betas * one.rate)
    assert close(bounds[2], bound)
    slope = jax.grad(lambda beta: elbo(ladder(), jax.random.key(4), X, beta=beta)[0])(0.3)
    assert close(slope, -one.rate)


def test_elbo_is_below_log_p():
    # Jensen: below in mean, for any q; and equal at the exact posterior N(x/2, 1/2)
    grid = jnp.array(list(product([-1.0, 0.0, 0.75, 2.0], [0.3, 0.5**0.5, 1.5])))
    bounds = jax.vmap(
        lambda q: draws(lambda key: elbo(ladder(*q), key, X, kl=sampled_kl)[0], 4_000, 5)
    )(grid)
    mean, error = bounds.mean(1), bounds.std(1) / 4_000**0.5
    exact = (grid[:, 0] == 0.75) & (grid[:, 1] == jnp.float32(0.5**0.5))
    assert bool(jnp.all(mean[~exact] + 4 * error[~exact] < LOG_P))
    assert close(bounds[exact], jnp.full((1, 4_000), LOG_P))


def test_no_rate_with_shared_noise_trains_reconstruction_alone(x64):
    # beta = 0: the gradient of log p(x|z), z = mu + sigma eps with the draw's own eps
    model, weights, x = network(0.4)
    z = model(weights).encode(x).sample(jax.random.key(6))
    eps = (z - jnp.tanh(weights.down @ x)) / 0.4

    def reconstruction(w):
        x_mean = jnp.tanh(w.up @ (jnp.tanh(w.down @ x) + 0.4 * eps))
        return -jnp.sum((x - x_mean) ** 2)

    bound = lambda w: elbo(model(w), jax.random.key(6), x, beta=0.0)[0]
    actual = jax.jit(jax.grad(bound))(weights)
    assert all(map(close, actual, jax.jit(jax.grad(reconstruction))(weights)))
    assert not jnp.any(actual.prior_scale)


def test_without_noise_and_rate_it_is_the_autoencoder(x64):
    # beta = 0, sigma -> 0, variance 1/2: the gradient of -|x - x'|^2, and its value plus a constant
    model, weights, x = network(1e-13)

    def squared_error(w):
        return -jnp.sum((x - jnp.tanh(w.up @ jnp.tanh(w.down @ x))) ** 2)

    @jax.jit
    def all_three(weights, a, b):
        functions = (
            lambda w: elbo(model(w), a, x, beta=0.0)[0],
            lambda w: autoencoder(model(w), b, x)[0],
            squared_error,
        )
        return [jax.value_and_grad(f)(weights) for f in functions]

    found = all_three(weights, jax.random.key(7), jax.random.key(7))
    (bound, gradient), (plain, of_plain), (exact, expected) = jax.tree.map(np.asarray, found)
    assert all(map(close, gradient, expected))
    assert close(bound, exact - 1.5 * np.log(np.pi))
    assert all(map(close, of_plain, expected))
    assert close(plain, exact)


def test_autoencoder_draws_nothing(x64):
    # the squared error at the mean code whatever its spread or the key; the code is free
    model, weights, x = network(0.3)
    bound, terms = autoencoder(model(weights), jax.random.key(0), x)
    x_mean = np.tanh(weights.up @ np.tanh(weights.down @ x))
    assert close(bound, -np.sum((x - x_mean) ** 2))
    assert terms.distortion == -bound
    assert terms.rate == 0


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ({"encode": Partial(lambda x: x)}, TypeError, "encode returned"),
        ({"decode": Partial(lambda z: z)}, TypeError, "decode returned"),
        ({"prior": StandardNormal((2,))}, ValueError, "shape"),
    ],
)
@pytest.mark.parametrize("objective", [elbo, partial(iwae, num_samples=2)])
def test_what_is_no_model_is_named(objective, broken, error, message):
    # one line says which of the three is wrong
    with pytest.raises(error, match=message):
        objective(ladder()._replace(**broken), jax.random.key(0), jnp.array(X))


# the importance-weighted bound


@pytest.mark.parametrize(("k", "points"), [(1, 60), (2, 60), (3, 40)])
def test_iwae_ladder_by_quadrature(k, points):
    # targets' values are E log 1/K sum w, integrated here over the K draws
    eps, weights = hermite(k, points)
    log_mean = logsumexp(log_weights_at(0.25 + eps), axis=1) - np.log(k)
    assert abs(weights @ log_mean - IWAE[k]) < 1e-8


@pytest.mark.parametrize("k", [1, 2, 3])
def test_iwae_ladder_by_sampling(k):
    # the same values, from jaxvae
    bounds, log_w = draws(lambda key: iwae(ladder(), key, X, num_samples=k), 40_000, k)
    assert standard_errors_off(bounds, IWAE[k]) < 4
    assert log_w.shape == (40_000, k)


def test_iwae_closes_on_log_p_at_half_chi_squared():
    # K (log p - IWAE_K) -> 0.182059 = chi^2(posterior || q) / 2; at K = 100 within 1/K of it
    k = 100
    bounds, _ = draws(lambda key: iwae(ladder(), key, X, num_samples=k), 20_000, 8)
    assert standard_errors_off(k * (LOG_P - bounds), 0.182059 * (1 + 0.4 / k)) < 4


def test_iwae_of_one_sample_is_the_sampled_elbo(x64):
    # K = 1 at the same draw: sample k comes from fold_in(key, k)
    bound, _ = iwae(ladder(), jax.random.key(9), X, num_samples=1)
    first = jax.random.fold_in(jax.random.key(9), 0)
    assert close(bound, elbo(ladder(), first, X, kl=sampled_kl)[0])


@pytest.mark.parametrize(
    ("k", "exact"), [(1, -1.698671625), (2, -1.495613507), (3, -1.400771781), (5, -1.316442394)]
)
def test_iwae_of_a_discrete_latent(k, exact):
    # targets: z in {0, 1, 2}; the expectation over the 3^K draws is a finite sum
    prior, likelihood, q = jnp.array([0.2, -0.3, 0.5]), [0.7, 0.2, 0.05], jnp.array([0, 0.4, -0.6])
    log_w = log_softmax(prior) + np.log(likelihood) - log_softmax(q)
    outcomes = np.array(list(product(range(3), repeat=k)))
    bounds = logsumexp(log_w[outcomes], axis=1) - np.log(k)
    assert abs(np.prod(softmax(q)[outcomes], axis=1) @ bounds - exact) < 1e-6

    logits = jnp.log(jnp.array([[1 - p, p] for p in likelihood]))  # of x = 0, 1 given z
    model = VAE(
        encode=Partial(lambda x: Categorical(q)),
        decode=Partial(lambda z: Categorical(logits[z])),
        prior=Categorical(prior),
    )
    bounds, _ = draws(lambda key: iwae(model, key, jnp.array(1), num_samples=k), 20_000, k)
    assert standard_errors_off(bounds, exact) < 4


# pytrees


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Together:
    """Independent distributions in any pytree, as one distribution over that pytree of events."""

    parts: Any

    def _zip(self, function, tree):
        leaves, treedef = jax.tree.flatten(self.parts, is_leaf=lambda d: hasattr(d, "log_prob"))
        return treedef, [function(d, v) for d, v in zip(leaves, tree(treedef), strict=True)]

    def sample(self, key):
        treedef, events = self._zip(
            lambda d, k: d.sample(k), lambda t: jax.random.split(key, t.num_leaves)
        )
        return jax.tree.unflatten(treedef, events)

    def log_prob(self, event):
        _, log_probs = self._zip(lambda d, v: d.log_prob(v), lambda t: t.flatten_up_to(event))
        return jnp.sum(jnp.stack(log_probs))


def two_ladders():
    """Two independent exact ladders: x a dict, z a tuple, q the posterior N(x/2, 1/2)."""
    half = 0.5**0.5
    return VAE(
        encode=Partial(
            lambda x: Together((Normal(x["a"] / 2, half), Normal(x["b"] / 2, jnp.full(3, half))))
        ),
        decode=Partial(lambda z: Together({"a": Normal(z[0], 1.0), "b": Normal(z[1], 1.0)})),
        prior=Together((StandardNormal(()), StandardNormal((3,)))),
    )


@pytest.mark.thorough
def test_data_and_latents_may_be_pytrees(x64):
    # x a dict, z a tuple; at the exact posterior every bound is log p(x), x ~ N(0, 2)
    x = {"a": jnp.array(X), "b": jnp.array([0.3, -1.0, 2.0])}
    log_p = norm.logpdf([X, 0.3, -1.0, 2.0], scale=2**0.5).sum()
    xs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), x)

    @jax.jit
    def bounds(model, keys):
        one, _ = elbo(model, keys[0], x)
        several, _ = iwae(model, keys[1], x, num_samples=3)
        many = log_marginal(model, keys[2], x, num_samples=3).value
        mean, _ = batched(elbo)(model, keys[3], xs)
        return jnp.stack([one, several, many, mean])

    assert close(bounds(two_ladders(), jax.random.split(jax.random.key(0), 4)), np.full(4, log_p))


# batches


def test_batched_is_the_mean_over_split_keys(x64):
    # the mean bound and every example's aux, with the keys of jax.random.split
    xs, keys = np.array([-1.0, 0.0, 1.5, 2.0, 7.0]), jax.random.split(jax.random.key(10), 5)
    each = jax.jit(lambda key, x: elbo(ladder(), key, x, beta=0.3))
    one = [each(key, x) for key, x in zip(keys, xs, strict=True)]
    bound, terms = jax.jit(lambda key: batched(elbo)(ladder(), key, xs, beta=0.3))(
        jax.random.key(10)
    )
    assert close(bound, np.mean([b for b, _ in one]))
    assert close(terms.distortion, np.stack([t.distortion for _, t in one]))
    assert close(terms.rate, np.stack([t.rate for _, t in one]))
    _, log_w = jax.eval_shape(
        batched(partial(iwae, num_samples=3)), ladder(), jax.random.key(11), xs
    )
    assert log_w.shape == (5, 3)


@pytest.mark.parametrize(
    "xs",
    [
        {"a": np.ones((3, 2)), "b": np.ones((4, 2))},
        np.ones((0, 2)),
        np.array(1.0),
        {"a": np.ones((3, 2)), "b": np.array(1.0)},
    ],
)
def test_batched_wants_one_leading_axis(xs):
    # mismatched or missing batch axes are named
    with pytest.raises(ValueError, match=r"leading axes.*one common batch axis"):
        batched(elbo)(ladder(), jax.random.key(0), xs)


def test_batched_wants_rows():
    with pytest.raises(TypeError, match=r"batched: xs is \{\}, expected an array"):
        batched(elbo)(ladder(), jax.random.key(0), {})


@pytest.mark.parametrize(
    "rows",
    [
        [np.ones(2), np.ones(2)],
        [jnp.ones(2)] * 3,
        [[0.1, 0.2], [0.3, 0.4]],
        [np.ones(2)],
        ([np.ones(2), np.ones(2)], np.ones(2)),
        {"x": [np.ones(2), np.ones(2)]},
    ],
)
def test_a_list_of_rows_is_refused_wherever_data_come_in(rows):
    # as a tree its rows would be columns: two rows of two numbers are a batch of two either way
    optimizer = optax.sgd(0.1)
    step, state = train_step(elbo, optimizer), init_state(ladder(), optimizer)
    ways = [
        lambda: batched(elbo)(ladder(), jax.random.key(0), rows),
        lambda: step(state, jax.random.key(0), rows),
        lambda: train_epoch(step, batch_size=1)(state, jax.random.key(0), rows),
        lambda: fit(step, state, jax.random.key(0), rows, epochs=1, batch_size=1),
        lambda: active_units(ladder(), rows),
        lambda: rate_per_latent(ladder(), rows),
        lambda: rate_decomposition(ladder(), jax.random.key(0), rows),
        lambda: optimal_scale(ladder(), jax.random.key(0), rows),
    ]
    for way in ways:
        with pytest.raises(TypeError, match=r"list of \d, which .* as a tree.*np\.stack\(rows\)"):
            way()


@pytest.mark.parametrize("make", [tuple, list])
def test_trees_of_several_arrays_are_batches(make):
    # a tuple of any, a list of arrays of different shapes
    xs = make([np.ones((3, 2)), np.ones(3)])
    bound, _ = batched(lambda model, key, x: (jnp.sum(x[0]) + x[1], None))(
        None, jax.random.key(0), xs
    )
    assert bound == 3.0


class PseudoInputs(NamedTuple):
    """A model whose prior encodes 16 pseudo-inputs."""

    weight: Any
    inputs: Any

    def encode(self, x):
        return Normal(self.weight @ x, jnp.ones(64))

    def decode(self, z):
        return Normal(z, jnp.ones(64))

    @property
    def prior(self):
        return Normal(jax.vmap(self.encode)(self.inputs).loc.mean(axis=0), jnp.ones(64))


def test_the_model_is_not_mapped():
    # a prior that encodes costs its 16 encodings a batch, not an example (8192 FLOPs each)
    model = PseudoInputs(jnp.eye(64), jnp.ones((16, 64)))

    def flops(n):
        args = model, jax.random.key(0), jnp.ones((n, 64))
        compiled = jax.jit(lambda *a: batched(elbo)(*a)[0]).lower(*args).compile()
        return (compiled.cost_analysis() or {})["flops"]

    an_example = (flops(101) - flops(1)) / 100
    assert 8192 < an_example < 2 * 8192
