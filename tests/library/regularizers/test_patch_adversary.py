"""VQGAN's objective by hand, whom each of its lines moves, and the distance it is given."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.models.quantization import FSQ, VQVAE, vq
from jaxvae.regularizers import (
    AdversarialPair,
    hinge_discrimination,
    perceptual_distance,
    vqgan,
)
from tests.common import close, is_differentiable

XS = np.sin(np.arange(15.0)).reshape(5, 3)
V, W, C = 0.7, 0.3, 1.3  # of the distance and of the critic; of the distance's square


def encode(scale, x):
    return jv.Normal(scale * x[:2], jnp.full(2, 0.4))


def decode(weights, z):
    return jv.Normal(weights @ z, jnp.full(3, 0.8))


def logits(slopes, x):
    return slopes @ x  # two of them


def squared(x, y):
    return 0.5 * C * jnp.sum(jnp.square(x - y))


def players_by_hand():
    weights = jnp.array([[0.5, -1.0], [0.3, 0.2], [1.1, 0.4]])
    model = jv.VAE(Partial(encode, jnp.array(0.9)), Partial(decode, weights), jv.Normal(0.0, 1.0))
    model = model._replace(prior=jv.Constant(jv.StandardNormal((2,))))
    slopes = jnp.array([[2.0, -1.0, 0.5], [0.3, 1.5, -0.2]])
    return AdversarialPair(model, Partial(logits, slopes))


@pytest.mark.parametrize("adapts", [True, False])
def test_vqgan_by_hand(x64, adapts):
    """Of a linear decoder and two linear logits, so that every gradient is a product of sums."""
    players, key = players_by_hand(), jax.random.key(3)
    objective = partial(
        vqgan,
        layer=(lambda model: model.decode.args[0]) if adapts else None,
        distance=squared,
        perceptual=V,
        adversarial=W,
    )
    xs = jnp.asarray(XS)

    @jax.jit
    def found(players):
        value = lambda players: jv.batched(objective)(players, jax.random.clone(key), xs)
        bounds, of_bound = jv.batched(jv.elbo)(players.model, jax.random.clone(key), xs)
        keys = jax.random.split(jax.random.clone(key), len(xs))
        z = jax.vmap(lambda k, x: players.model.encode(x).sample(k))(keys, xs)
        return jax.value_and_grad(value, has_aux=True)(players), bounds, of_bound, z

    ((value, terms), gradient), bound, of_bound, z = found(players)
    weights, slopes, z = (np.asarray(a) for a in (
        players.model.decode.args[0], players.discriminator.args[0], z
    ))  # fmt: skip
    images = z @ weights.T
    d = 0.5 * C * np.sum((XS - images) ** 2, axis=1)
    realism = (images @ slopes.T).mean(1)
    of_real, of_fake = XS @ slopes.T, images @ slopes.T
    gain = (np.minimum(0, of_real - 1) + np.minimum(0, -of_fake - 1)).mean(1)
    assert np.any(of_real > 1)
    assert np.any(of_fake < -1)

    # d log p / d weights = (x - x') z' / sigma^2, d mean D / d weights = mean slope z'
    residual = (XS - images).T @ z / len(z)
    of_critic = np.outer(slopes.mean(0), z.mean(0))
    wanted = (1 / 0.8**2 + V * C) * residual
    adapted = np.linalg.norm(wanted) / (np.linalg.norm(of_critic) + 1e-6) if adapts else 1.0
    assert close(terms.distortion, of_bound.distortion)
    assert close(terms.rate, of_bound.rate)
    assert close(terms.distance, d)
    assert close(terms.realism, realism)
    assert close(terms.discrimination, gain)
    assert close(terms.adapted, np.full(5, adapted))
    assert close(value, np.mean(bound - V * d + W * adapted * realism + gain))
    assert close(gradient.model.decode.args[0], wanted + W * adapted * of_critic)
    real, fake = (of_real < 1) / 2, (of_fake > -1) / 2
    assert close(gradient.discriminator.args[0], (real.T @ XS - fake.T @ images) / len(z))


def test_the_hinge_is_satisfied_beyond_one():
    """-max(0, 1 - D(a)) - max(0, 1 + D(b)), means over the logits."""
    a, b = jnp.array([2.0, 1.0, 0.0, -3.0]), jnp.array([-2.0, 0.0])
    assert float(hinge_discrimination(lambda v: v, a, b)) == -(0 + 0 + 1 + 4) / 4 - (0 + 1) / 2


def token_model() -> Any:
    rng = np.random.default_rng(0)
    into, out = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (5, 4)))
    return VQVAE(
        encoder=Partial(lambda w, x: (w @ x).reshape(2, 2), into),
        quantizer=FSQ((5, 3)),
        decoder=Partial(lambda w, codes: jv.Normal(jnp.tanh(w @ codes.reshape(4)), 1.0), out),
        prior=jv.Constant(jv.Categorical(jnp.zeros((2, 15)))),
    )


@pytest.mark.thorough
def test_the_gradient_of_a_vqvae_goes_straight_through(x64):
    """Of the image's distance too; the image is that of its indices."""
    model, x = token_model(), jnp.array([0.4, -0.3, 0.9])
    assert close(model.straight_through(x).mean(), model.decode(model.encode(x).value).mean())
    (into,), (out,) = model.encoder.args, model.decoder.args
    target, key = jnp.linspace(-1.0, 1.0, 5), jax.random.key(0)

    def total(model, distance):
        objective = partial(vqgan, objective=vq, distance=distance, perceptual=2.0, adversarial=0.0)
        players = AdversarialPair(model, Partial(jnp.sum))
        return objective(players, jax.random.clone(key), target)[0]

    def slope(distance):
        same = model._replace(encoder=Partial(lambda w, _: (w @ x).reshape(2, 2), into))
        return jax.grad(total)(same, distance).encoder.args[0]

    nothing = lambda x, y: 0.0 * jnp.sum(y)
    moved = slope(nothing) - slope(lambda x, y: jnp.sum(jnp.square(x - y)))  # 2 d |x - x'|^2
    # z -> code 2 round(s) / top - 1, backwards 1 - tanh^2; then image tanh(out code)
    code = np.asarray(jax.vmap(model.quantizer)(model.encoder(x)).code).reshape(4)
    image = np.tanh(np.asarray(out) @ code)
    back = 2.0 * 2.0 * (image - np.asarray(target)) * (1 - image**2) @ np.asarray(out)
    back = back * (1 - np.tanh(np.asarray(into) @ np.asarray(x)) ** 2)
    assert close(moved, np.outer(back, x))


@pytest.mark.thorough
def test_what_vqgan_cannot_use_is_refused_in_a_line():
    players = players_by_hand()
    stuck = players.model._replace(encode=lambda x: jv.Categorical(jnp.zeros(3)))
    iwae = partial(jv.iwae, num_samples=2)
    cases: Any = [
        (players, {"objective": iwae}, TypeError, "vqgan: objective's aux is an array"),
        (players, {"layer": lambda model: ()}, ValueError, "vqgan: layer returned no part"),
        (players, {"layer": lambda model: jnp.ones(2)}, ValueError, "vqgan: layer returned no"),
        (
            players._replace(model=stuck),
            {"objective": lambda *_: (0.0, jv.Terms(jnp.zeros(()), jnp.zeros(())))},
            TypeError,
            "vqgan: samples of a Categorical have no derivative",
        ),
        (players, {"distance": lambda x, y: x - y}, ValueError, "vqgan: distance has shape"),
    ]
    for pair, options, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            vqgan(pair, jax.random.key(0), jnp.asarray(XS[0], jnp.float32), **options)
        assert "\n" not in str(raised.value)


@pytest.mark.thorough
def test_the_perceptual_distance_by_hand(x64):
    """sum_l mean_ij sum_c w_c (a / |a| - b / |b|)^2, of two layers; 0 where features are 0."""
    x, y = jnp.sin(jnp.arange(24.0)).reshape(2, 4, 3), jnp.cos(jnp.arange(24.0)).reshape(2, 4, 3)
    features = lambda image: {"a": image, "b": image[:, ::2, :2] ** 2}
    weights = {"a": jnp.array([1.0, 0.5, 2.0]), "b": jnp.array([0.3, 0.0])}
    expected = 0.0
    for layer, w in weights.items():
        of_x, of_y = (np.asarray(features(image)[layer]) for image in (x, y))
        units = [f / np.linalg.norm(f, axis=-1, keepdims=True) for f in (of_x, of_y)]
        expected += np.mean(np.sum(np.asarray(w) * (units[0] - units[1]) ** 2, axis=-1))
    distance = partial(perceptual_distance, features)
    assert np.isclose(distance(x, y, weights=weights), expected, rtol=1e-8)
    assert distance(x, x) == 0.0
    assert is_differentiable(partial(distance, weights=weights), x, y)
    dark = jnp.zeros_like(x)
    assert np.all(np.isfinite(jax.grad(distance, 1)(x, dark)))
    with pytest.raises(ValueError, match="perceptual_distance: weights has shape"):
        distance(x, y, weights={"a": jnp.ones(2), "b": jnp.ones(2)})


def test_the_perceptual_distance_of_black_pixels_in_half_precision():
    black, white = jnp.zeros((2, 2, 3), jnp.float16), jnp.ones((2, 2, 3), jnp.float16)
    distance = jax.value_and_grad(partial(perceptual_distance, lambda image: image))
    value, slope = distance(black, white)
    assert np.isclose(value, 1.0, rtol=1e-2)
    assert jnp.all(jnp.isfinite(slope))
