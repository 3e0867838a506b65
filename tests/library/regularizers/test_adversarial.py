"""Games: who moves whom, and whether the ratio that is learned is the divergence it stands for."""

import json
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import jaxvae as jv
from experiments.regularizers import adversarial as script
from experiments.regularizers import vae_gan as gan_script
from jaxvae import nn
from jaxvae.pytrees import pytree
from jaxvae.regularizers.adversarial import (
    AdversarialPair,
    adversarial_autoencoder,
    discrimination,
    factor_vae,
    permute_latents,
)
from jaxvae.regularizers.image_adversary import Critic, vae_gan
from tests.common import close, standard_errors_off


def bilinear(w, z):
    """z'Az + b'z + c: the log ratio of any two Gaussians is one."""
    a, b, c = w
    return z @ a @ z + b @ z + c


def gaussian_codes(loc, cov, n=20_000, spread=0.5):
    """A model and x such that z ~ q(z|x) = N(x, spread^2) is N(loc, cov) over the rows."""
    d = len(loc)
    eps = jax.random.normal(jax.random.key(7), (n, d))
    xs = loc[None] + eps @ jnp.linalg.cholesky(cov - spread**2 * jnp.eye(d)).T
    encode = Partial(lambda x: jv.Normal(x, jnp.full_like(x, spread)))
    decode = Partial(lambda z: jv.Normal(z, jnp.ones_like(z)))
    return jv.VAE(encode, decode, jv.StandardNormal((d,))), xs


LOC, COV = (0.3, -0.5), ((1.4, 0.8), (0.8, 0.9))


def total_correlation(loc, cov):
    return 0.5 * (jnp.sum(jnp.log(jnp.diagonal(cov))) - jnp.linalg.slogdet(cov)[1])


def kl_to_standard_normal(loc, cov):
    q = jv.MultivariateNormal(loc, jnp.linalg.cholesky(cov))
    return jv.kl_divergence(q, jv.StandardNormal(loc.shape))


@pytest.mark.parametrize(
    ("objective", "exact"),
    [
        (partial(factor_vae, gamma=3.0), total_correlation),
        (partial(adversarial_autoencoder, beta=2.0), kl_to_standard_normal),
    ],
)
@pytest.mark.slow
def test_the_best_discriminator_measures_the_divergence(objective, exact, x64):
    # Newton's method on the discriminator's gain, which is concave in w, through the objective
    loc, cov = jnp.array(LOC), jnp.array(COV)
    model, xs = gaussian_codes(loc, cov)
    start, unravel = ravel_pytree((jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(())))

    def gain(w):
        players = AdversarialPair(model, Partial(bilinear, unravel(w)))
        return jv.batched(objective)(players, jax.random.key(0), xs)

    @jax.jit
    def ascend(w):
        g, h = (f(lambda w: gain(w)[0])(w) for f in (jax.grad, jax.hessian))
        return w - jnp.linalg.pinv(h, rtol=1e-9) @ g, g  # a_12 and a_21 are one parameter twice

    w, gradient = ascend(start)
    for _ in range(7):
        w, gradient = ascend(w)
    assert jnp.max(jnp.abs(gradient)) < 1e-9
    log_ratio = gain(w)[1].log_ratio
    assert standard_errors_off(log_ratio, exact(loc, cov)) < 4
    assert jnp.std(log_ratio) / len(xs) ** 0.5 < 0.01 < 0.1 * exact(loc, cov)


def test_permuted_latents_keep_their_marginals_and_part_company():
    z = jnp.arange(15).reshape(5, 3)
    permuted = permute_latents(z)
    assert close(jnp.sort(permuted, axis=0), z)
    assert all(len(set(row // 3)) == 3 for row in np.asarray(permuted))  # no two of one example
    assert permute_latents(jnp.arange(8).reshape(2, 4)).tolist() == [[0, 5, 2, 7], [4, 1, 6, 3]]


def pair_of(discriminator: Any = None, seed=0) -> AdversarialPair:
    rngs = nnx.Rngs(seed)
    tiny = partial(nn.MLP, hidden=(5,), activation=jnp.tanh)
    model = jv.VAE(
        encode=nn.Conditional(tiny, nn.NormalHead(), (4,), (3,), rngs=rngs),
        decode=nn.Conditional(tiny, nn.NormalHead(0.7), (3,), (4,), rngs=rngs),
        prior=jv.StandardNormal((3,)),
    )
    if discriminator == "critic":
        critic = Critic(tiny((4,), (6,), rngs=rngs), tiny((6,), (), rngs=rngs))
        return AdversarialPair(model, critic)
    return AdversarialPair(model, tiny((3,), (), rngs=rngs))


def as_numpy(tree, dtype: Any = np.float32):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


XS = np.sin(np.arange(24.0, dtype=np.float32)).reshape(6, 4)
PAIR, GAN = map(as_numpy, jax.jit(lambda: (pair_of(), pair_of("critic")))())
GAMES = {
    "factor_vae": (partial(factor_vae, gamma=2.0), PAIR),
    "adversarial_autoencoder": (partial(adversarial_autoencoder, beta=2.0), PAIR),
    "vae_gan": (partial(vae_gan, gamma=2.0), GAN),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", GAMES)
def test_each_player_moves_by_its_own_gain_alone(name):
    objective, players = GAMES[name]

    def gains(players):
        total, terms = jv.batched(objective)(players, jax.random.key(0), XS)
        own = jnp.mean(terms.discrimination)
        return {"model": total - own, "discriminator": own}

    jacobian = jax.jit(jax.jacrev(gains))(players)
    for gain, gradient in jacobian.items():
        for player, leaves in gradient._asdict().items():
            moved = [bool(np.any(np.asarray(leaf) != 0)) for leaf in jax.tree.leaves(leaves)]
            assert moved == [player == gain] * len(moved), (gain, player)


@pytest.mark.parametrize("name", ["factor_vae", "adversarial_autoencoder"])
def test_a_game_by_hand(name, x64):
    """-distortion - weight D(z), and the rate's part; D gains log sigma(D(a)) + log sigma(-D(b)),
    a the code, b with its second latent from the next row's, or a draw of the prior."""
    xs = np.array([[0.3, -1.2], [2.0, 0.5], [-0.7, 1.1]])
    encode = Partial(lambda x: jv.Normal(x, jnp.full(2, 0.5)))
    decode = Partial(lambda z: jv.Normal(2.0 * z, jnp.ones(2)))
    w = np.array([[0.4, -0.9], [0.0, 0.3]]), np.array([0.5, -0.2]), np.array(0.1)
    players = AdversarialPair(jv.VAE(encode, decode, jv.StandardNormal((2,))), Partial(bilinear, w))
    sampled = jax.jit(jax.vmap(lambda key, x: encode(x).sample(key)))
    keys = jax.random.split(jax.random.key(0), 3)
    if name == "factor_vae":
        objective, rate = partial(factor_vae, gamma=1.7), np.sum(xs**2 - 0.75, 1) / 2 + np.log(4)
        z = a = np.asarray(sampled(keys, xs))
        b = np.stack([z[:, 0], np.roll(z[:, 1], -1)], axis=1)
    else:
        objective, rate = partial(adversarial_autoencoder, beta=1.7), np.zeros(3)
        pairs = jax.jit(jax.vmap(jax.random.split))(keys)
        z = a = np.asarray(sampled(pairs[:, 0], xs))
        b = np.asarray(jax.jit(jax.vmap(players.model.prior.sample))(pairs[:, 1]))
    distortion = np.sum((xs - 2.0 * z) ** 2, 1) / 2 + np.log(2 * np.pi)
    of_a, of_b = (np.array([bilinear(w, row) for row in v]) for v in (a, b))
    gain = -np.log1p(np.exp(-of_a)) - np.log1p(np.exp(of_b))
    total, terms = jax.jit(jv.batched(objective))(players, jax.random.key(0), xs)
    assert close(terms.distortion, distortion)
    assert close(terms.rate, rate)
    assert close(terms.log_ratio, of_a)
    assert close(terms.discrimination, gain)
    assert close(total, np.mean(-distortion - rate - 1.7 * of_a + gain))


def test_factor_vae_at_gamma_0_is_the_elbo(x64):
    # and so is its gradient
    players, xs = as_numpy((PAIR, XS), np.float64)

    def value(objective, model):
        return jv.batched(objective)(model, jax.random.key(3), xs)

    def plain(model):
        return value(jv.elbo, model)[0]

    def game(model):
        total, terms = value(partial(factor_vae, gamma=0.0), players._replace(model=model))
        return total - jnp.mean(terms.discrimination)

    both = jax.jit(lambda model: [jax.value_and_grad(f)(model) for f in (plain, game)])
    elbo, factor = both(players.model)
    for a, b in zip(jax.tree.leaves(elbo), jax.tree.leaves(factor), strict=True):
        assert close(a, b)


def test_factor_vae_by_hand(x64):
    """ELBO - gamma D(z), and the discriminator's gain on codes and their exchanged latents."""
    players, xs = as_numpy((PAIR, XS), np.float64)
    gamma = 2.5

    @jax.jit
    def run(players, a, b, c):
        z = jax.vmap(lambda key, x: players.model.encode(x).sample(key))(
            jax.random.split(a, len(xs)), xs
        )
        judge = jax.vmap(players.discriminator)
        ratios = judge(z), judge(permute_latents(z))
        game = jv.batched(factor_vae)(players, b, xs, gamma=gamma)
        return ratios, game, jv.batched(jv.elbo)(players.model, c, xs)[0]

    found = run(players, *(jax.random.key(3) for _ in range(3)))
    (ratio, permuted), (total, terms), bound = jax.tree.map(np.asarray, found)
    assert np.abs(np.mean(ratio)) > 0.01
    own = -np.log1p(np.exp(-ratio)) - np.log1p(np.exp(permuted))
    elbo = -(terms.distortion + terms.rate)
    assert close(total, np.mean(elbo - gamma * ratio + own))
    assert close(bound, np.mean(elbo))


def test_a_batch_is_asked_for():
    objective, players = GAMES["factor_vae"]
    with pytest.raises(ValueError, match=r"call jaxvae.batched\(objective\)"):
        jax.eval_shape(objective, players, jax.random.key(0), XS[0])
    with pytest.raises(ValueError, match=r"call jaxvae.batched\(objective\)"):
        jax.eval_shape(jax.vmap(objective, (None, None, 0)), players, jax.random.key(0), XS)
    with pytest.raises(ValueError, match="batched: xs has 1 row"):
        jax.eval_shape(jv.batched(objective), players, jax.random.key(0), XS[:1])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["adversarial_autoencoder", "vae_gan"])
def test_other_games_need_no_batch(name):
    objective, players = GAMES[name]

    @jax.jit
    def both(a, b):
        (key,) = jax.random.split(a, 1)
        return objective(players, key, XS[0]), jv.batched(objective)(players, b, XS[:1])

    (alone, terms), (of_one, _) = both(jax.random.key(0), jax.random.key(0))
    assert close(alone, of_one)
    assert terms.log_ratio.shape == ()


@pytree
@dataclass(frozen=True, eq=False)
class Certain:
    """All of its mass at one point."""

    loc: Any

    def sample(self, key):
        del key
        return self.loc

    def log_prob(self, z):
        return jnp.zeros(())

    def mean(self):
        return self.loc


def test_vae_gan_by_hand(x64):
    # one number a player and nothing random: the three lines of the docstring written out
    x, z_p, gamma = np.array([0.8]), np.array([-0.4]), 1.7
    a, b, u, v = (np.array(s) for s in (0.9, -0.6, 1.3, 0.7))
    still = jax.lax.stop_gradient

    def scaled(s, x):
        return Certain(s * x)

    def game(a, b, u, v):
        model = jv.VAE(Partial(scaled, a), Partial(scaled, b), Certain(z_p))
        critic = Critic(Partial(jnp.multiply, u), Partial(lambda v, h: v * jnp.sum(h), v))
        return vae_gan(AdversarialPair(model, critic), jax.random.key(0), x, gamma=gamma)[0]

    def log_p(a, b, u):
        h, h_x = u * x, u * b * a * x
        return -0.5 * jnp.sum((h - h_x) ** 2) - 0.5 * jnp.log(2 * jnp.pi)

    def log_sigma(u, v, sign, x):
        return jnp.sum(jax.nn.log_sigmoid(sign * v * u * x))

    def by_hand(a, b, u, v):
        z = still(a) * x
        encoder = log_p(a, still(b), still(u))
        decoder = gamma * log_p(still(a), b, still(u)) + sum(
            log_sigma(still(u), still(v), 1.0, b * z) for z in (z, z_p)
        )
        fakes = sum(log_sigma(u, v, -1.0, still(b) * z) for z in (z, z_p))
        return encoder + decoder + log_sigma(u, v, 1.0, x) + fakes

    both = jax.jit(lambda *w: [jax.value_and_grad(f, (0, 1, 2, 3))(*w) for f in (game, by_hand)])
    found, expected = both(a, b, u, v)
    assert close(found[0], expected[0])
    assert close(np.stack(found[1]), np.stack(expected[1]))


def test_a_trainer_trains_a_game_and_each_player_has_its_optimiser():
    objective, players = GAMES["factor_vae"]
    optimizer = optax.partition(
        {"model": optax.adam(1e-2), "discriminator": optax.sgd(0.0)},
        AdversarialPair("model", "discriminator"),
    )
    step = jax.jit(jv.train_step(objective, optimizer))
    state, metrics = step(jv.init_state(players, optimizer), jax.random.key(0), XS)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.model, players)
    assert all(jax.tree.leaves(moved.model))
    assert not any(jax.tree.leaves(moved.discriminator))
    assert {"log_ratio", "discrimination"} < set(metrics)


@pytest.mark.thorough
def test_a_game_ends_where_the_codes_look_like_the_prior():
    # x ~ N(2, 3^2) and z ~ N(a x + b, 1/4), from a = 1, b = 0 to the a and b of z ~ N(0, 1)
    encode = Partial(
        lambda a, b, x: jv.Normal(a * x + b, jnp.full_like(x, 0.5)), jnp.array(1.0), jnp.array(0.0)
    )
    decode = Partial(lambda z: jv.Normal(0.0 * z, jnp.ones_like(z)))
    flat = Partial(bilinear, (jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(())))
    players = AdversarialPair(jv.VAE(encode, decode, jv.StandardNormal((1,))), flat)
    optimizer = optax.partition(
        {"model": optax.sgd(0.05), "discriminator": optax.sgd(0.25)},
        AdversarialPair("model", "discriminator"),
    )
    xs = 2.0 + 3.0 * jax.random.normal(jax.random.key(5), (4096, 1))
    epoch = jv.train_epoch(jv.train_step(adversarial_autoencoder, optimizer), batch_size=256)

    @jax.jit
    def run(key):
        start = jv.init_state(players, optimizer)
        return jax.lax.scan(lambda state, _: epoch(state, key, xs), start, length=60)

    state, metrics = run(jax.random.key(0))
    a, b = state.model.model.encode.args
    assert abs(2.0 * a + b) < 0.1
    assert abs(9.0 * a**2 + 0.25 - 1.0) < 0.1
    assert metrics["log_ratio"][0].max() > 0.5 > 0.1 > abs(metrics["log_ratio"][-1].mean())


def test_discrimination_says_what_is_wrong():
    with pytest.raises(ValueError, match="discriminator: logit has shape"):
        discrimination(lambda v: v, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="b has shape"):
        discrimination(jnp.sum, jnp.ones(2), jnp.ones(3))
    model: Any = PAIR.model
    with pytest.raises(TypeError, match="expected AdversarialPair"):
        factor_vae(model, jax.random.key(0), XS[0], gamma=1.0)
    with pytest.raises(TypeError, match="expected Critic"):
        vae_gan(PAIR, jax.random.key(0), XS[0], gamma=1.0)


def small(module: Any, monkeypatch, images, **constants):
    """The script on few images, with constants as given, from one seed for one epoch."""
    split = SimpleNamespace(images=images)
    monkeypatch.setattr(module, "load", lambda *_, **__: SimpleNamespace(train=split, test=split))
    for name, value in {"EPOCHS": 1, "SEEDS": 1, "BATCH": 32, "HIDDEN": (8,), **constants}.items():
        monkeypatch.setattr(module, name, value)


def check_result(folder, labels):
    """Each label has its numbers, all finite."""
    numbers = json.loads((folder / "result.json").read_text())
    assert list(numbers) == labels
    assert np.all(np.isfinite([list(row.values()) for rows in numbers.values() for row in rows]))


@pytest.mark.slow
def test_the_script_of_aggregates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = np.random.default_rng(0).integers(0, 17, (64, 8, 8, 1)).astype(np.uint8)
    small(script, monkeypatch, digits, BETAS=(1.0,), GAMMAS=(5.0,))
    script.main()
    folder = tmp_path / "runs" / script.NAME
    check_result(folder, ["beta-VAE 1", "FactorVAE 5"])
    check_result(folder / "prior", ["autoencoder", "VAE", "AAE"])
    assert (folder / "correlation.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_script_of_vae_gan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
    small(gan_script, monkeypatch, images, DRAWS=40, FEATURES=8)
    monkeypatch.setattr(gan_script, "features", lambda xs: xs.reshape(len(xs), -1)[:, :5])
    gan_script.main()
    folder = tmp_path / "runs" / gan_script.NAME
    check_result(folder, ["VAE", "VAE-GAN"])
    assert (folder / "samples.png").stat().st_size > 10_000
