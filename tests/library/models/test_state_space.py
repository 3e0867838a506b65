"""Chains of latents, against joint Gaussians, matrices of a discrete chain, and nested `Joint`s."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.models.state_space import Markov, Padded, Smoother, emissions, stepwise_kl
from tests.common import close, draws, is_differentiable, standard_errors_off

T, D = 4, 2
A = np.array([[0.9, 0.3], [-0.2, 0.7]])
Q = np.array([[0.5, 0.0], [0.2, 0.4]])  # lower factors
P0, M0 = np.array([[1.0, 0.0], [-0.3, 0.8]]), np.array([0.5, -1.0])
C, R = np.array([[1.0, 0.4]]), np.array([[0.6]])


def affine(matrices, z):
    gain, tril = matrices
    return jv.MultivariateNormal(gain @ z, tril)


def linear_chain(length=T):
    first = jv.MultivariateNormal(jnp.asarray(M0), jnp.asarray(P0))
    return Markov(first, Partial(affine, (jnp.asarray(A), jnp.asarray(Q))), length)


def joint_gaussian():
    """Mean and covariance of (z_1, ..., z_T), by the affine map from the noise."""
    mean, maps = [M0], [np.hstack([P0, np.zeros((D, (T - 1) * D))])]
    for t in range(1, T):
        noise = np.zeros((D, T * D))
        noise[:, t * D : (t + 1) * D] = Q
        mean, maps = [*mean, A @ mean[-1]], [*maps, A @ maps[-1] + noise]
    tril = np.vstack(maps)
    return np.concatenate(mean), tril


@pytest.mark.thorough
def test_a_linear_chain_is_one_gaussian(x64):
    mean, tril = joint_gaussian()
    joint, chain = jv.MultivariateNormal(jnp.asarray(mean), jnp.asarray(tril)), linear_chain()
    zs = jnp.asarray(np.random.default_rng(0).normal(size=(5, T, D)))
    both = jax.jit(lambda z: (chain.log_prob(z), joint.log_prob(z.ravel())))
    for z in zs:
        assert close(*both(z))
    z, log_p = draws(partial(jv.sample_and_log_prob, chain), 4_000)
    flat = np.asarray(z).reshape(len(z), -1)
    assert standard_errors_off(flat, mean) < 4
    products = np.einsum("ni,nj->nij", flat - mean, flat - mean)
    assert standard_errors_off(products, tril @ tril.T) < 4
    assert close(log_p[:10], jax.jit(jax.vmap(chain.log_prob))(z[:10]))


def exact_smoother():
    return Smoother(Partial(summary, exact_matrices(T)), Partial(update), jnp.zeros(D))


def exact_matrices(last):
    """q(z_t | z_{t-1}, x_{t:last}) by conditioning the joint Gaussian of z and x, no recursion."""
    mean, tril = joint_gaussian()
    observe = np.kron(np.eye(T), C)
    both = np.vstack([np.eye(T * D), observe])
    mu = both @ mean
    cov = both @ tril @ tril.T @ both.T
    cov[T * D :, T * D :] += np.kron(np.eye(T), R @ R.T)
    steps = []
    for t in range(last):
        at = np.arange(t * D, (t + 1) * D)
        before = np.arange((t - 1) * D, t * D) if t else np.arange(0)
        given = np.concatenate([before, T * D + np.arange(t, last)])
        gain = np.linalg.solve(cov[np.ix_(given, given)], cov[np.ix_(given, at)]).T
        left = cov[np.ix_(at, at)] - gain @ cov[np.ix_(given, at)]
        of_z, of_x = np.zeros((D, D)), np.zeros((D, last))
        of_z[:, : len(before)] = gain[:, : len(before)]
        of_x[:, t:] = gain[:, len(before) :]
        steps.append((of_z, of_x, mu[at] - gain @ mu[given], np.linalg.cholesky(left)))
    return tuple(jnp.asarray(np.stack(parts)) for parts in zip(*steps, strict=True))


def summary(matrices, x):
    of_z, of_x, shift, tril = matrices
    return of_z, of_x @ x[:, 0] + shift, tril


def update(pair):
    z, (of_z, shift, tril) = pair
    return jv.MultivariateNormal(of_z @ z + shift, tril)


def emission(z):
    return jv.Normal(jnp.asarray(C) @ z, jnp.full(1, R[0, 0]))


def test_the_exact_smoother_closes_the_bound(x64):
    """Backward information alone makes q exact: the ELBO is log p(x), and without noise."""
    model = jv.VAE(exact_smoother(), Partial(emissions, Partial(emission)), linear_chain())
    mean, tril = joint_gaussian()
    observe = np.kron(np.eye(T), C)
    cov = observe @ tril @ tril.T @ observe.T + np.kron(np.eye(T), R @ R.T)
    x = np.random.default_rng(1).normal(size=(T, 1))
    r = x[:, 0] - observe @ mean
    log_p = -0.5 * (T * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + r @ np.linalg.solve(cov, r))

    def bounds(key):
        sampled = jv.elbo(model, key, jnp.asarray(x), kl=jv.sampled_kl)[0]
        stepwise = jv.elbo(model, jax.random.clone(key), jnp.asarray(x), kl=stepwise_kl)[0]
        return jnp.stack([sampled, stepwise])

    sampled, stepwise = draws(bounds, 2_000).T
    assert close(sampled, np.full(2_000, log_p))
    assert standard_errors_off(stepwise, log_p) < 4  # right in mean; its noise is another


def move(w, pair):
    z, c = pair
    return jv.Normal(jnp.tanh(w * z) + c, jnp.full_like(z, 0.5))


def other(w, z):
    return jv.Normal(jnp.sin(w + z), jnp.full_like(z, 0.8))


def pair_of_chains(length=3):
    context = jnp.linspace(-1.0, 1.0, (length - 1) * D).reshape(length - 1, D)
    q_first = jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 0.8]))
    q = Markov(q_first, Partial(move, jnp.array(0.7)), length, context)
    return q, Markov(jv.StandardNormal((D,)), Partial(other, jnp.array(0.2)), length)


@pytest.mark.thorough
def test_the_rate_of_a_chain_is_that_of_nested_joints():
    """Step by step in closed form, given the same sample; and log q and the draws have one mean."""
    q, p = pair_of_chains()
    z, log_q = jv.sample_and_log_prob(q, jax.random.key(0))
    contexts: Any = q.context
    steps = [Partial(given, q.transition, c) for c in contexts]
    nested_q = jv.models.hierarchy(q.first, *steps)
    nested_p = jv.models.hierarchy(p.first, p.transition, p.transition)
    nested_z = (z[0], (z[1], z[2]))
    assert close(nested_q.log_prob(nested_z), log_q)
    exact = jv.auto_kl(nested_q, nested_p, nested_z, log_q)
    assert close(stepwise_kl(q, p, z, log_q), exact)
    assert close(stepwise_kl(q, jv.Constant(p), z, log_q), exact)
    no_chain = jv.Normal(jnp.zeros(2), jnp.ones(2)), jv.StandardNormal((2,)), jnp.ones(2), log_q
    assert close(stepwise_kl(*no_chain), jv.auto_kl(*no_chain))


def given(transition, c, z):
    return transition((z, c))


def test_the_rate_of_a_chain_is_right_in_mean_and_quieter():
    q, p = pair_of_chains()

    def both(key):
        z, log_q = jv.sample_and_log_prob(q, key)
        return jnp.stack([stepwise_kl(q, p, z, log_q), jv.sampled_kl(q, p, z, log_q)])

    stepwise, sampled = draws(both, 20_000).T
    assert standard_errors_off(stepwise - sampled, 0.0) < 4
    assert np.std(stepwise) < 0.5 * np.std(sampled)


@pytest.mark.thorough
def test_a_step_without_a_closed_form_is_sampled():
    q, p = pair_of_chains()
    p = Markov(p.first, Partial(heavy), p.length)
    z, log_q = jv.sample_and_log_prob(q, jax.random.key(0))
    assert close(stepwise_kl(q, p, z, log_q), log_q - p.log_prob(z))


def heavy(z):
    return jv.StudentT(jnp.array(3.0), z, jnp.ones_like(z))


LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]))


def jump(z):
    return jv.Categorical(jnp.asarray(LOGITS)[z])


def test_a_discrete_chain_is_a_product_of_matrices(x64):
    first = np.array([0.5, 0.2, 0.3])
    chain = Markov(jv.Categorical(jnp.log(jnp.asarray(first))), Partial(jump), 4)
    paths = jnp.asarray(np.indices((3,) * 4).reshape(4, -1).T)
    p = np.exp(np.asarray(jax.jit(jax.vmap(chain.log_prob))(paths)))
    assert close(p.sum(), 1.0)
    last = [p[np.asarray(paths[:, -1]) == k].sum() for k in range(3)]
    assert close(np.array(last), first @ np.linalg.matrix_power(np.exp(LOGITS), 3))
    drawn = draws(chain.sample, 5_000)[:, -1]
    assert standard_errors_off(jax.nn.one_hot(drawn, 3), jnp.array(last)) < 4
    assert not chain.reparameterized
    assert linear_chain().reparameterized
    assert pair_of_chains()[0].reparameterized


def test_draws_are_differentiable(x64):
    q, _ = pair_of_chains()
    q = jax.tree.map(lambda leaf: leaf.astype(float), q)
    assert is_differentiable(lambda q: jv.sample_and_log_prob(q, jax.random.key(0)), q)


@pytest.mark.thorough
def test_a_chain_of_one_and_a_sequence_cut_short():
    first = jv.Normal(jnp.array([0.3]), jnp.array([0.5]))
    chain = Markov(first, Partial(other, jnp.array(0.2)), 1)
    z, log_p = jv.sample_and_log_prob(chain, jax.random.key(0))
    assert z.shape == (1, 1)
    assert close(log_p, first.log_prob(z[0]))
    assert close(chain.log_prob(z), log_p)
    assert close(stepwise_kl(chain, chain, z, log_p), 0.0)
    assert chain.reparameterized
    later = Partial(lambda x: jnp.cumsum(x[::-1], axis=0)[::-1])  # h_t = x_t + ... + x_T
    encode = Smoother(later, Partial(move, jnp.array(0.7)), jnp.zeros(1))
    x = jnp.arange(1.0, 6.0)[:, None]
    assert encode(x).first.loc == 15.0
    assert encode(x[:2]).first.loc == 3.0
    assert encode(x[:2]).sample(jax.random.key(0)).shape == (2, 1)
    z = jnp.array([[0.2], [-0.4]])
    exact = move(0.7, (jnp.zeros(1), jnp.array([3.0]))).log_prob(z[0])
    exact += move(0.7, (z[0], jnp.array([2.0]))).log_prob(z[1])
    assert close(encode(x[:2]).log_prob(z), exact)


def to_come(event):
    """h_t = x_t + ... + x_T of what is seen."""
    x, mask = event
    return jnp.cumsum(jnp.where(mask[:, None], x, 0.0)[::-1], axis=0)[::-1]


def turn(w, z):
    return jv.Normal(jnp.sin(w * z), jnp.asarray(0.8))  # leaves not as large as the event


def padded(length):
    """Nothing of it is exact, and every step of q is far from the prior's."""
    prior = Markov(jv.StandardNormal((D,)), Partial(turn, jnp.array(1.3)), length)
    encode = Smoother(Partial(to_come), Partial(move, jnp.array(0.7)), jnp.ones(D))
    decode = Partial(emissions, Partial(lambda w, z: jv.Normal(w * z, 0.6), jnp.array(0.9)))
    return Padded(jv.VAE(encode, decode, prior))


SERIES = np.random.default_rng(2).normal(size=(3, D))


def with_padding(length):
    x = np.concatenate([SERIES, np.full((length - 3, D), np.nan)])
    return jnp.asarray(x), jnp.arange(length) < 3


@pytest.mark.thorough
def test_padding_changes_nothing(x64):
    """ELBO, its terms and gradient, log-weights, estimate: of three steps, and of seven that hold
    NaN behind them. A step behind the last has no rate."""

    def everything(length):
        model, event, key = padded(length), with_padding(length), jax.random.key(0)
        elbo = partial(jv.elbo, key=key, x=event, kl=stepwise_kl)
        return (
            jax.value_and_grad(elbo, has_aux=True)(model),
            jv.elbo(model, jax.random.clone(key), event),
            jv.iwae(model, jax.random.clone(key), event, num_samples=5),
            jv.log_marginal(model, jax.random.clone(key), event, num_samples=20),
        )

    short, long = jax.jit(lambda: (everything(3), everything(7)))()
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        assert close(a, b)
    ((_, terms), gradient), *_ = long
    assert all(np.all(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves((terms, gradient)))
    model = padded(7)
    q, p = model.encode(with_padding(7)), model.prior
    z = q.sample(jax.random.key(1))
    (_, steps), (_, others) = q.given(z).parts, p.given(z).parts
    rates = jax.vmap(jv.kl_divergence)(steps.parts, others.parts)
    assert np.array_equal(rates[2:], np.zeros(4))
    assert np.all(rates[:2] > 0.1)


@pytest.mark.thorough
def test_a_mask_that_ends_early_is_a_forecast(x64):
    """Behind an exact posterior the steps are the prior's: x_3, x_4 given x_1, x_2 in closed form;
    with nothing seen all is the prior, and in a gap q stays the encoder's."""
    model = Padded(
        jv.VAE(Partial(exact_to_the_second), Partial(emissions, Partial(emission)), linear_chain())
    )
    mean, tril = joint_gaussian()
    observe = np.kron(np.eye(T), C)
    mu, cov = observe @ mean, observe @ tril @ tril.T @ observe.T + np.kron(np.eye(T), R @ R.T)
    x, seen = np.array([[0.4], [-0.7], [np.nan], [np.nan]]), np.array([1, 1, 0, 0], bool)
    gain = np.linalg.solve(cov[:2, :2], cov[:2, 2:]).T
    expected = mu[2:] + gain @ (x[:2, 0] - mu[:2])
    spread = cov[2:, 2:] - gain @ cov[:2, 2:]
    impute = partial(jv.evaluation.multiple_imputations, model, num_samples=1, num_draws=1)
    xs = draws(lambda key: impute(key, (jnp.asarray(x), jnp.asarray(seen)))[0, 2:, 0], 4_000)
    xs = np.asarray(xs)
    assert standard_errors_off(xs, expected) < 4
    products = np.einsum("ni,nj->nij", xs - expected, xs - expected)
    assert standard_errors_off(products, spread) < 4

    model, (x, _) = padded(7), with_padding(7)
    nothing = model.encode((x, jnp.zeros(7, bool)))
    z = nothing.sample(jax.random.key(0))
    assert close(nothing.log_prob(z), model.prior.log_prob(z))
    x, gap = jnp.nan_to_num(x), jnp.arange(7) == 3
    q, raw = model.encode((x, gap)), model.model.encode((x, gap))
    (first, steps), (raw_first, raw_steps) = q.given(z).parts, raw.given(z).parts
    assert close(first.loc, raw_first.loc)
    assert close(steps.parts.loc[:3], raw_steps.parts.loc[:3])
    assert close(steps.parts.loc[3:], model.prior.given(z).parts[1].parts.loc[3:])


def exact_to_the_second(event):
    """q(z_1|x_1, x_2) and q(z_2|z_1, x_2), whatever stands behind."""
    x, _ = event
    of_z, of_x, shift, tril = exact_matrices(2)
    h = of_x @ x[:2, 0] + shift
    pad = lambda a: jnp.concatenate([a, jnp.stack([a[-1]] * (T - 2))])
    return Smoother(
        Partial(lambda _: (pad(of_z), pad(h), pad(tril))), Partial(update), jnp.zeros(D)
    )(x)


def test_a_padded_model_says_what_is_wrong():
    model, (x, mask) = padded(7), with_padding(7)
    x = x.astype(jnp.float32)
    vae: Any = model.model
    bad: Any
    event: Any
    other = Smoother(Partial(to_come), Partial(heavy_step), jnp.ones(D))
    no_chain = jv.VAE(Partial(lambda event: jv.StandardNormal((7, D))), vae.decode, vae.prior)
    for bad, event, error, text in (
        (model, x, TypeError, r"Padded: event is .*, expected a pair \(x, mask\)"),
        (model, (x, mask[:5]), ValueError, r"mask has leading axes \[\(5,\)\], expected \(7,\)"),
        (Padded(no_chain), (x, mask), TypeError, "encode returned a StandardNormal, expected a Ma"),
        (
            Padded(vae._replace(prior=jv.StandardNormal((7, D)))),
            (x, mask),
            TypeError,
            "prior is a StandardNormal, expected a Markov chain",
        ),
        (
            Padded(vae._replace(encode=other)),
            (x, mask),
            TypeError,
            "a StudentT and one of the prio",
        ),
    ):
        with pytest.raises(error, match=text):
            bad.encode(event)


def heavy_step(pair):
    return heavy(pair[0])


def test_errors_name_the_argument():
    q, p = pair_of_chains()
    nothing: Any = None
    first, step, key = p.first, p.transition, jax.random.key(0)
    for bad, error, text in (
        (Markov(nothing, step, 3), TypeError, "first is"),
        (Markov(first, nothing, 3), TypeError, "transition is"),
        (Markov(first, step, 0), ValueError, "length is 0"),
        (Markov(first, Partial(jnp.sin), 3), TypeError, "transition returned"),
        (Markov(first, step, 3, jnp.ones((3, 2))), ValueError, "context has"),
        (Markov(first, step, 3, "ab"), TypeError, "context is"),
    ):
        with pytest.raises(error, match=text):
            bad.sample(key)
        with pytest.raises(error, match=text):
            bad.log_prob(jnp.zeros((3, D)))
    with pytest.raises(ValueError, match=r"event has leading axes \[\(4,\)\], expected \(3,\)"):
        p.log_prob(jnp.zeros((4, D)))
    with pytest.raises(ValueError, match="event has leading axes"):
        stepwise_kl(q, pair_of_chains(4)[1], jnp.zeros((3, D)), jnp.array(0.0))
    with pytest.raises(TypeError, match="conditional is"):
        emissions(nothing, jnp.zeros((3, D)))


def test_a_chain_of_choices_scores_relaxed_draws():
    """What is no event of a one-hot choice still is a draw of `gumbel_softmax`."""
    step = jax.tree_util.Partial(lambda z: jv.OneHotCategorical(jnp.log(0.1 + z)))
    chain = Markov(jv.OneHotCategorical(jnp.zeros(3)), step, 2)
    corners, between = jnp.eye(3)[:2], jnp.full((2, 3), 1 / 3)
    assert np.isclose(chain.log_prob_relaxed(corners), chain.log_prob(corners))
    assert jax.jit(chain.log_prob)(between) == -jnp.inf
    assert np.isclose(chain.log_prob_relaxed(between), 2 * np.log(1 / 3), rtol=1e-5)
