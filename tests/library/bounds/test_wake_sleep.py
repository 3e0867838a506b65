"""Reweighted wake-sleep against enumeration: z in {0, 1, 2}, x in {0, 1}, float64.

p(z) of logits (.2, -.3, .5), p(x = 1|z) = (.7, .2, .05), q(z|x) of a row of logits for each x.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.bounds import reweighted_wake_sleep, sleep_phase
from jaxvae.gradients import wake
from tests.common import close, draws, standard_errors_off

Q = jnp.array([[0.0, 0.4, -0.6], [0.3, -0.2, 0.1]])
P_X = np.array([0.7, 0.2, 0.05])
PRIOR = np.exp([0.2, -0.3, 0.5]) / np.exp([0.2, -0.3, 0.5]).sum()


def model(q, shift=0.0):
    """The shift is the decoder's parameter, a number added to its logits."""
    decode = lambda shift, z: jv.Bernoulli(jax.scipy.special.logit(jnp.asarray(P_X))[z] + shift)
    return jv.VAE(
        encode=Partial(lambda q, x: jv.Categorical(q[x.astype(int)]), q),
        decode=Partial(decode, jnp.asarray(shift)),
        prior=jv.Categorical(jnp.asarray(np.log(PRIOR))),
    )


def enumerated(k):
    """E over z_1..z_K ~ q(.|x = 1) of sum_k w_k (grad log q(z_k), grad log p(x, z_k)), by hand."""
    q = np.exp(Q[1]) / np.exp(Q[1]).sum()
    phi, theta = np.zeros(3), 0.0
    for zs in product(range(3), repeat=k):
        zs = np.array(zs)
        w = PRIOR[zs] * P_X[zs] / q[zs]
        w = w / w.sum() * np.prod(q[zs])
        phi += w @ (np.eye(3)[zs] - q)  # d log q_z = e_z - q
        theta += w @ (1.0 - P_X[zs])  # d log sigma(l) = 1 - sigma(l)
    return phi, theta


def slopes(objective, key):
    of = lambda q, shift: objective(model(q, shift), key, jnp.ones(()))[0]
    return jax.grad(of, (0, 1))(Q.astype(float), jnp.zeros(()))


@pytest.mark.parametrize("k", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_wake_phases_have_the_mean_of_enumeration(k, x64):
    phi, theta = draws(partial(slopes, partial(reweighted_wake_sleep, num_samples=k)), 20_000)
    exact_phi, exact_theta = enumerated(k)
    assert standard_errors_off(phi[:, 1], exact_phi) < 4
    assert standard_errors_off(theta, exact_theta) < 4
    assert (phi[:, 0] == 0).all()


def test_one_draw_is_the_formula(x64):
    """sum_k w_k grad log q(z_k), no score of the bound; nothing flows through the samples."""
    of = partial(jv.iwae, num_samples=5, gradient=wake)
    phi, theta = jax.jit(partial(slopes, of))(jax.random.key(4))
    q = jv.Categorical(Q[1].astype(float))
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(4), k))(jnp.arange(5))
    zs = np.asarray(jax.vmap(q.sample)(keys))
    p = np.exp(q.log_probs)
    w = PRIOR[zs] * P_X[zs] / p[zs]
    w /= w.sum()
    assert close(phi[1], w @ (np.eye(3)[zs] - p))
    assert close(theta, w @ (1.0 - P_X[zs]))


def test_many_samples_bring_q_to_the_posterior(x64):
    """As K grows the mean tends to the slope of -KL(p(z|x) || q(z|x)), p(z|x) - q."""
    joint = PRIOR * P_X
    exact = joint / joint.sum() - np.exp(Q[1]) / np.exp(Q[1]).sum()
    at = {k: np.abs(enumerated(k)[0] - exact).max() for k in (1, 2, 6)}
    assert at[1] > at[2] > at[6]
    many = draws(partial(slopes, partial(jv.iwae, num_samples=2000, gradient=wake)), 100)[0]
    assert np.allclose(jnp.mean(many[:, 1], 0), exact, atol=0.01)


def test_the_sleep_phase_has_the_mean_of_enumeration(x64):
    """Over the model's own pairs: sum_{z, x} p(z) p(x|z) (e_z - q(.|x)), and no other slope."""
    exact = np.zeros((2, 3))
    for z, x in product(range(3), range(2)):
        p = PRIOR[z] * (P_X[z] if x else 1.0 - P_X[z])
        exact[x] += p * (np.eye(3)[z] - np.exp(Q[x]) / np.exp(Q[x]).sum())
    phi, theta = draws(partial(slopes, sleep_phase), 20_000)
    assert standard_errors_off(phi, exact) < 4
    assert (theta == 0).all()
    mixed = draws(
        partial(slopes, partial(reweighted_wake_sleep, num_samples=2, sleep=0.3)), 20_000, 1
    )
    wake_phi, wake_theta = enumerated(2)
    expected = 0.3 * exact + 0.7 * np.stack([np.zeros(3), wake_phi])
    assert standard_errors_off(mixed[0], expected) < 4
    assert standard_errors_off(mixed[1], wake_theta) < 4


def test_the_value_is_that_of_iwae(x64):
    of = partial(reweighted_wake_sleep, model(Q.astype(float)), x=jnp.ones(()), num_samples=3)
    of = jax.jit(of)
    bound, log_w = of(jax.random.key(0), sleep=0.5)
    assert close(bound, jv.bounds.log_mean_exp(log_w))
    assert close(bound, of(jax.random.key(0), sleep=0.0)[0])


@pytest.mark.thorough
def test_the_dream_of_x_is_drawn_apart_from_z(x64):
    """Pairs (z', x') are as often as p(z) p(x|z) says."""
    pair = lambda key: sleep_phase(model(Q.astype(float)), key, jnp.ones(()))[1]
    x, z = draws(pair, 20_000)
    table = jax.nn.one_hot(z, 3, dtype=float)[:, :, None] * jnp.stack([1 - x, x], 1)[:, None]
    assert standard_errors_off(table, PRIOR[:, None] * np.stack([1 - P_X, P_X], 1)) < 4


def test_what_cannot_dream_is_told():
    m = model(Q)._replace(decode=Partial(lambda z: jv.distributions.OptimalNormal(jnp.ones(2))))
    with pytest.raises(TypeError, match="sleep_phase: OptimalNormal has no sample"):
        sleep_phase(m, jax.random.key(0), jnp.ones(2))


def test_a_dream_that_the_posterior_rules_out_says_nothing():
    """x is the class, and the posterior gives the second none."""
    ruled_out = jv.VAE(
        encode=lambda x: jv.OneHotCategorical(jnp.array([0.0, -jnp.inf])),
        decode=lambda z: jv.Normal(z[:1], jnp.ones(1)),
        prior=jv.OneHotCategorical(jnp.zeros(2)),
    )
    of = lambda key, sleep: reweighted_wake_sleep(
        ruled_out, key, jnp.zeros(1), num_samples=3, sleep=sleep
    )[0]
    keys, sleep = jax.random.split(jax.random.key(0), 20), jnp.repeat(jnp.array([0.0, 0.5]), 10)
    found = jax.jit(jax.vmap(of))(keys, sleep)
    np.testing.assert_allclose(found, found[0], rtol=1e-6)  # one code is left, whatever the key
