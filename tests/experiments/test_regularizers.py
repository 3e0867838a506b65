"""The scripts of the regularizers, two steps on 64 images each, leave every number and picture; and
lagging inference, which is a line of one of them, in numbers."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.regularizers import autoencoders, collapse, total_correlation
from jaxvae import VAE, StandardNormal, init_state, train_step
from tests.common import close


def split(side, levels, num=64):
    images = np.random.default_rng(0).integers(0, levels + 1, (num, side, side, 1))
    labels = np.arange(num) % 10
    return SimpleNamespace(images=images.astype(np.uint8), labels=labels)


SCRIPTS: dict[str, tuple[Any, int, int, int, dict[str, Any]]] = {  # module, side, levels, models
    "autoencoders": (autoencoders, 28, 255, 4, {"LATENT": 2, "HIDDEN": (8,), "DIRECTIONS": 5}),
    "collapse": (collapse, 28, 1, 9, {"LATENT": 3, "HIDDEN": 8, "WIDTH": 4, "WINDOW": 1}),
    "total_correlation": (total_correlation, 8, 16, 5, {"LATENT": 3, "HIDDEN": (8,)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_two_steps(name, tmp_path, monkeypatch, capsys):
    module, side, levels, models, small = SCRIPTS[name]
    data = SimpleNamespace(train=split(side, levels), test=split(side, levels))
    monkeypatch.setattr(module, "load", lambda *_, **__: data)
    for constant, value in {**small, "EPOCHS": 1, "BATCH": 32, "SEEDS": 1}.items():
        monkeypatch.setattr(module, constant, value)
    monkeypatch.chdir(tmp_path)
    module.main()
    folder = tmp_path / "runs" / "regularizers" / name
    numbers: dict[str, Any] = {}
    for path in folder.rglob("result.json"):
        numbers |= json.loads(path.read_text())
    assert len(numbers) == models
    for rows in numbers.values():
        assert all(np.isfinite(list(row.values())).all() for row in rows)
    (picture,) = folder.glob("*.png")
    assert picture.stat().st_size > 5_000
    assert "+-" in capsys.readouterr().out


# lagging inference, by hand


X, SIGMA, RATE = 1.2, 0.5, 0.1


def linear_elbo(model, key, x):
    """Of p(x|z) = N(w z, 1) and q(z|x) = N(a x, SIGMA^2), in closed form but for a constant."""
    del key
    a, w = model.encode, model.decode
    distortion = 0.5 * ((x - w * a * x) ** 2 + (w * SIGMA) ** 2)
    return -(distortion + 0.5 * (a * x) ** 2), None


def slopes(a, w):
    """Its derivatives in a and in w."""
    rest = X - w * a * X
    return rest * w * X - a * X**2, rest * a * X - w * SIGMA**2


def path(optimizer, num_steps):
    """a and w before each step, and after the last."""
    step = train_step(linear_elbo, optimizer)
    model = VAE(jnp.array(-0.4), jnp.array(0.8), StandardNormal(()))  # pyright: ignore

    def one(state, _):
        after, _ = step(state, jax.random.key(0), jnp.array([X]))
        return after, (after.model.encode, after.model.decode)

    run = jax.jit(lambda state: jax.lax.scan(one, state, length=num_steps))
    found = np.stack(run(init_state(model, optimizer))[1], axis=1)
    return np.concatenate([[[-0.4, 0.8]], found])


def test_the_decoder_waits_for_the_encoder(x64):
    """For ten steps the encoder moves at each and the decoder after four steps of the encoder's
    own; then both. What the decoder's momentum holds waits with it."""
    exact, (a, w), (of_a, of_w) = [(-0.4, 0.8)], (-0.4, 0.8), (0.0, 0.0)
    for t in range(13):
        to_a, to_w = slopes(a, w)
        of_a = 0.5 * of_a + to_a
        a = a + RATE * of_a
        if t in (4, 9, 10, 11, 12):
            of_w = 0.5 * of_w + to_w
            w = w + RATE * of_w
        exact.append((a, w))
    assert close(path(collapse.waiting(optax.sgd(RATE, momentum=0.5), 10), 13), exact)


def test_a_decoder_that_waits_long_steps_at_the_best_encoder(x64, monkeypatch):
    """He et al. 2019, algorithm 1: a = w / (1 + w^2) to convergence, then a step of w alone."""
    monkeypatch.setattr(collapse, "PATIENCE", 200)
    found = path(collapse.waiting(optax.sgd(RATE), 10_000), 400)
    w = 0.8
    for turn in (199, 399):
        best = w / (1 + w**2)
        assert close(found[turn], [best, w])
        w = w + RATE * slopes(best, w)[1]
        assert close(found[turn + 1], [best, w])
