"""The diffusion prior against Gaussians, where the best network is linear and all is exact."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.models import Diffusion, diffusion_kl
from tests.common import draws, standard_errors_off

M, S = np.array([0.7, -0.4]), np.array([0.5, 1.6])  # p = N(M, diag S^2)


def score_of_gaussian(loc, scale, z, s):
    """r of N(loc, diag scale^2): p_s = N(a loc, a^2 scale^2 + s^2) has the score -z + a r."""
    a = jnp.sqrt(1.0 - s**2)
    return (loc + a * z * (scale**2 - 1.0)) / (a**2 * scale**2 + s**2)


def gaussian(steps=32):
    return Diffusion(Partial(score_of_gaussian, jnp.asarray(M), jnp.asarray(S)), (2,), steps)


def bent(w, z, s):
    """No score of anything."""
    return jnp.tanh(w[0] * z + w[1] * jnp.roll(z, 1) + s) - 0.3 * z * s


def bent_prior():
    return Diffusion(Partial(bent, jnp.array([0.8, -0.5])), (2,))


def levels(num=60):
    """Gauss-Legendre nodes and weights on (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(num)
    return jnp.asarray((x + 1) / 2), jnp.asarray(w / 2)


def normals(num=40):
    """Gauss-Hermite nodes [m, 2] and weights [m] of N(0, I) in the plane."""
    x, w = np.polynomial.hermite_e.hermegauss(num)
    nodes = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return jnp.asarray(nodes), jnp.asarray(np.outer(w, w).ravel() / w.sum() ** 2)


@partial(jax.jit, static_argnames="num")
def mean_excess(p, z, num=40):
    """E over s and eps of what `diffusion_kl` adds to the rate of N(0, I), by quadrature."""
    (s, w), (eps, v) = levels(), normals(num)
    of_noise = jax.vmap(lambda s: v @ jax.vmap(lambda eps: p.excess(z, s, eps))(eps))
    return w @ of_noise(s)


def minus_log_normal(z):
    return 0.5 * np.sum(np.square(z)) + np.log(2 * np.pi)


@pytest.mark.parametrize("z", [(0.0, 0.0), (1.3, -0.8), (-2.0, 3.0)])
def test_the_bound_of_the_best_network_is_the_log_density(z, x64):
    """-log p(z), at every z: the reverse process is that of the noise itself."""
    exact = -jv.Normal(jnp.asarray(M), jnp.asarray(S)).log_prob(jnp.array(z))
    assert np.isclose(minus_log_normal(z) + mean_excess(gaussian(), jnp.array(z)), exact, atol=1e-9)


def test_the_rate_of_the_best_network_is_the_kl(x64):
    """E over z ~ q, eps and s, against the closed form between two Gaussians."""
    q = jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.4, 0.9]))
    nodes, weights = normals(5)  # the rate is a polynomial of second degree in z
    excess = jax.vmap(lambda e: mean_excess(gaussian(), q.loc + q.scale * e, 5))(nodes)
    rate = jv.kl_divergence(q, jv.StandardNormal((2,))) + weights @ excess
    exact = jv.kl_divergence(q, jv.Normal(jnp.asarray(M), jnp.asarray(S)))
    assert np.isclose(rate, exact, atol=1e-9)


def test_each_level_has_its_closed_form(x64):
    """E_{z ~ p, eps} of |v + s r|^2 s^2 is the variance of z given z_s, d_i = S_i^2 s^2 / V_i."""
    p, (nodes, weights) = gaussian(), normals(5)
    at_noise = jax.vmap(p.excess, (None, None, 0))
    at_both = jax.vmap(at_noise, (0, None, None))
    for s in (0.1, 0.6, 0.95):
        v = (1 - s**2) * S**2 + s**2
        squared = np.sum((1 - s**2) + s**2 * (S**2 + M**2))  # E|v|^2
        found = (
            weights
            @ at_both(jnp.asarray(M)[None] + jnp.asarray(S)[None] * nodes, jnp.asarray(s), nodes)
            @ weights
        )
        assert np.isclose(found, (np.sum(S**2 / v) - squared) / s, atol=1e-9)


def test_it_is_the_three_terms_of_the_paper(x64):
    """Prior term, reconstruction and -1/2 int SNR' E|z - zhat|^2 of Kingma et al. 2021, equations
    11 and 17, in NumPy with gamma linear in t, for a network that is no score of anything."""
    z, w = np.array([1.3, -0.8]), np.array([0.8, -0.5])
    eps, v = map(np.asarray, normals(40))
    gamma_0, gamma_1 = -14.0, 14.0  # log sigma^2 / alpha^2 at t = 0 and 1
    t, dt = map(np.asarray, levels(80))

    def loss(t):
        gamma = gamma_0 + (gamma_1 - gamma_0) * t
        s2 = 1 / (1 + np.exp(-gamma))
        a, s = np.sqrt(1 - s2), np.sqrt(s2)
        z_t = a * z + s * eps
        r = np.tanh(w[0] * z_t + w[1] * np.roll(z_t, 1, axis=1) + s) - 0.3 * z_t * s
        denoised = a * z_t + s2 * r
        slope_of_snr = -(gamma_1 - gamma_0) * np.exp(-gamma)
        return -0.5 * slope_of_snr * (v @ np.sum((z - denoised) ** 2, axis=1))

    s2_1 = 1 / (1 + np.exp(-gamma_1))
    prior_term = 0.5 * np.sum((1 - s2_1) * z**2 + s2_1 - 1 - np.log(s2_1))
    reconstruction = 0.5 * z.size * (np.log(2 * np.pi * np.e) + gamma_0)  # z | z_0
    by_hand = prior_term + reconstruction + dt @ np.array([loss(t) for t in t])
    ours = minus_log_normal(z) + mean_excess(bent_prior(), jnp.asarray(z))
    assert np.isclose(ours, by_hand, atol=1e-5)  # both ends of t stop short by 1e-6


def square(t):
    return t**2


@pytest.mark.parametrize("settings", [{}, {"num_times": 3}, {"schedule": square}])
def test_a_draw_of_the_rate_is_unbiased(settings, x64):
    """Its mean over keys is the quadrature, whatever the schedule."""
    p, z = bent_prior(), jnp.array([1.3, -0.8])
    q = jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.4, 0.9]))
    exact = jv.kl_divergence(q, jv.StandardNormal((2,))) + mean_excess(p, z)
    found = draws(lambda k: diffusion_kl(q, p, z, jnp.zeros(()), key=k, **settings), 20_000)
    assert standard_errors_off(found, exact) < 4


@pytest.mark.thorough
def test_its_gradient_is_that_of_the_quadrature(x64):
    """In the network and in z: both are trained by it."""
    z = jnp.array([1.3, -0.8])
    q = jv.Normal(z, jnp.ones(2))

    def drawn(p, z, k):
        return diffusion_kl(q, p, z, jnp.zeros(()), key=k)

    by_p, by_z = jax.grad(mean_excess, (0, 1))(bent_prior(), z)
    of_p, of_z = draws(lambda k: jax.grad(drawn, (0, 1))(bent_prior(), z, k), 20_000)
    assert standard_errors_off(of_p.residual.args[0], by_p.residual.args[0]) < 4
    assert standard_errors_off(of_z, by_z) < 4


@pytest.mark.thorough
def test_more_levels_are_less_noise(x64):
    """K levels in equal strata: far more than K times less variance, where the level decides."""
    p, z = bent_prior(), jnp.array([3.0, -3.0])
    q = jv.Normal(z, jnp.ones(2))
    one, four = (
        jnp.var(
            draws(lambda k, n=n: diffusion_kl(q, p, z, jnp.zeros(()), key=k, num_times=n), 4000)
        )
        for n in (1, 4)
    )
    assert four < one / 8


@pytest.mark.thorough
def test_nothing_is_drawn_of_a_network_of_zeros():
    """Then p is N(0, I), and the rate is the closed form, as `auto_kl` has it; so is log_prob."""
    residual = nn.Denoiser(nn.MLP, (2,), rngs=nnx.Rngs(0))
    p, q = Diffusion(residual, (2,)), jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.4, 0.9]))
    standard = jv.StandardNormal((2,))
    z, log_q = q.sample_and_log_prob(jax.random.key(0))
    rate = diffusion_kl(q, p, z, log_q, key=jax.random.key(1))
    assert rate == jv.auto_kl(q, standard, z, log_q)
    assert np.isclose(p.log_prob(z), standard.log_prob(z), rtol=1e-6)
    other = diffusion_kl(q, standard, z, log_q, key=jax.random.key(1))
    assert other == jv.auto_kl(q, standard, z, log_q)


def test_the_ode_of_the_best_network_is_the_gaussian(x64):
    """Its density, with an error of second order in the steps, and its map eps -> M + S eps."""
    z, exact = jnp.array([1.3, -0.8]), jv.Normal(jnp.asarray(M), jnp.asarray(S))
    off = [abs(gaussian(n).log_prob(z) - exact.log_prob(z)) for n in (100, 200)]
    assert off[1] < 1e-4
    assert 3.5 < off[0] / off[1] < 4.5
    eps = jax.random.normal(jax.random.key(3), (2,), jnp.float64)
    assert np.allclose(gaussian(400).sample(jax.random.key(3)), M + S * eps, atol=1e-4)


def linear_vae(p):
    """x = z + noise, q off its posterior."""
    return jv.VAE(
        encode=Partial(lambda x: jv.Normal(0.5 * x, jnp.full_like(x, 0.6))),
        decode=Partial(lambda z: jv.Normal(z, jnp.ones_like(z))),
        prior=p,
    )


@pytest.mark.thorough
def test_the_elbo_takes_it_as_any_rate(x64):
    """The mean bound is that of the Gaussian prior, and each example of a batch has own noise."""
    x = jnp.array([1.0, -2.0])
    objective = jv.bounds.keyed_kl(jv.elbo, partial(diffusion_kl, num_times=2))
    found = draws(lambda k: objective(linear_vae(gaussian()), k, x)[1].rate, 10_000)
    exact = jv.kl_divergence(linear_vae(None).encode(x), jv.Normal(jnp.asarray(M), jnp.asarray(S)))
    assert standard_errors_off(found, exact) < 4
    rows = jnp.stack([x, x])
    _, terms = jv.batched(objective)(linear_vae(bent_prior()), jax.random.key(0), rows, beta=0.5)
    assert terms.rate.shape == (2,)
    assert terms.rate[0] != terms.rate[1]


def test_a_residual_of_another_shape_is_refused():
    p = Diffusion(Partial(lambda z, s: jnp.sum(z)), (2,))
    with pytest.raises(ValueError, match=r"Diffusion: residual has shape \(\), expected \(2"):
        p.log_prob(jnp.zeros(2))


@pytest.mark.thorough
def test_it_learns_two_modes():
    """Of draws +-1.5 with sigma 0.5: log p comes within 0.05 nats of the entropy, on average."""
    data: Any = jv.Mixture(
        jnp.zeros(2), jv.Normal(jnp.array([[-1.5], [1.5]]), jnp.full((2, 1), 0.5))
    )
    zs = draws(data.sample, 4096)
    network = partial(nn.MLP, hidden=(64, 64), activation=jax.nn.silu)
    p = Diffusion(nn.Denoiser(network, (1,), rngs=nnx.Rngs(0)), (1,))

    def objective(p, key, z):
        still = jv.Normal(z, jnp.ones(1))  # of which only the part that p adds is trained
        return -diffusion_kl(still, p, z, jnp.zeros(()), key=key, num_times=2), None

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1600))
    epoch = jax.jit(jv.train_epoch(jv.train_step(objective, optimizer), batch_size=128))
    state = jv.init_state(p, optimizer)
    for _ in range(50):
        state, _ = epoch(state, jax.random.key(1), zs)
    fresh = draws(data.sample, 1000, seed=1)
    short = jax.vmap(data.log_prob)(fresh) - jax.jit(jax.vmap(state.model.log_prob))(fresh)
    assert abs(jnp.mean(short)) < 0.05
