"""Hamiltonian flows: volume, reversibility, and bounds that stay bounds of the same log p(x)."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import jaxvae as jv
from experiments.structures import hamiltonian
from jaxvae.models import ppca
from jaxvae.models.hamiltonian import HamiltonianVAE, Leapfrog
from tests.common import close, draws, standard_errors_off

LINEAR = ppca.PPCA(jnp.array([[1.0], [-0.5], [0.8]]), jnp.zeros(3), jnp.array(0.5))
X = jnp.array([1.5, 0.3, -0.4])


def wavy(z):
    return -jnp.sum(jnp.square(z)) + jnp.sin(z[0] * z[1])


def flow(heat):
    steps = jnp.array([[0.3, 0.1], [0.2, 0.4], [0.05, 0.3]])
    return Leapfrog(Partial(wavy), steps, jnp.array(heat))


@pytest.mark.parametrize("heat", [1.0, 1.7])
def test_steps_are_reversible_and_only_cooling_changes_volume(x64, heat):
    pair = (jnp.array([0.5, -1.0]), jnp.array([0.2, 0.9]))
    flat, unravel = ravel_pytree(pair)

    def forward(flat):
        return ravel_pytree(flow(heat).forward_and_log_det(unravel(flat))[0])[0]

    moved, log_det = jax.jit(flow(heat).forward_and_log_det)(pair)
    assert np.linalg.norm(moved[0] - pair[0]) > 0.1
    _, exact = jnp.linalg.slogdet(jax.jit(jax.jacfwd(forward))(flat))
    assert close(log_det, exact)
    assert close(log_det, -2.0 * jnp.log(heat))
    back, back_det = jax.jit(flow(heat).inverse_and_log_det)(moved)
    assert close(ravel_pytree(back)[0], flat)
    assert close(back_det, -log_det)


def test_leapfrogs_by_hand(x64):
    """The three lines of the docstring, with the force of log p = -2 z^2 and a heat of 1.7."""
    z, rho, steps = 0.5, 0.8, [0.3, 0.2, 0.1]
    flow = Leapfrog(Partial(lambda z: -2.0 * jnp.sum(z**2)), jnp.array(steps)[:, None], 1.7)
    (found, momentum), log_det = flow.forward_and_log_det((jnp.array([z]), jnp.array([rho])))
    heats = [1.0 + 0.7 * (1.0 - k**2 / 9) for k in range(4)]
    for step, before, after in zip(steps, heats, heats[1:], strict=False):
        rho = rho + step / 2 * (-4.0 * z)
        z = z + step * rho
        rho = after / before * (rho + step / 2 * (-4.0 * z))
    assert close(found, [z])
    assert close(momentum, [rho])
    assert close(log_det, -np.log(1.7))


@pytest.mark.thorough
def test_small_steps_conserve_energy(x64):
    """To second order: half the step, a quarter of the error."""
    pair = (jnp.array([0.5, -1.0]), jnp.array([0.2, 0.9]))

    def energy(pair):
        z, rho = pair
        return 0.5 * jnp.sum(jnp.square(rho)) - wavy(z)

    def error(num_steps):
        steps = jnp.full((num_steps, 2), 1.0 / num_steps)
        moved, _ = Leapfrog(Partial(wavy), steps).forward_and_log_det(pair)
        return energy(moved) - energy(pair)

    assert np.isclose(error(40) / error(80), 4.0, rtol=0.05)


def start(x):
    del x
    return jv.Normal(jnp.array([-0.5]), jnp.array([0.9]))


def crude(num_steps, log_step, log_heat=0.3):
    """The linear model with a posterior that is wrong in mean and in scale."""
    _, decode, prior = ppca.as_vae(LINEAR)
    steps = jnp.full((num_steps, 1), log_step)
    return HamiltonianVAE(Partial(start), decode, prior, steps, jnp.asarray(log_heat))


def test_weights_have_mean_p_x():
    model = crude(3, -1.0)
    log_w = draws(lambda key: jv.log_weights(model, key, X, num_samples=1)[0], 50_000)
    weights = jnp.exp(log_w - ppca.log_marginal(LINEAR, X))
    assert np.std(weights) > 0.05
    assert standard_errors_off(weights, 1.0) < 4


@pytest.mark.thorough
def test_the_dynamics_tighten_the_bound():
    keys = jax.random.split(jax.random.key(0), 2_000)
    bounds = jax.jit(jax.vmap(lambda model, key: jv.elbo(model, key, X)[0], (None, 0)))

    def gap(model):
        return ppca.log_marginal(LINEAR, X) - jnp.mean(bounds(model, jnp.copy(keys)))

    still, moved = gap(crude(5, -50.0)), gap(crude(5, jnp.log(0.4)))
    assert 0.0 < moved < 0.6 * still
    model = crude(5, jnp.log(0.4))
    gradient = jax.jit(jax.grad(lambda m: jv.elbo(m, jax.random.key(1), X)[0]))(model)
    assert np.all(gradient.log_steps != 0)
    assert gradient.log_heat != 0


@pytest.mark.thorough
def test_without_steps_it_is_the_vae(x64):
    """At steps of 0, whatever the heat: what rho costs cancels, draw by draw."""
    model = jax.tree.map(lambda leaf: leaf.astype(float), crude(3, -50.0))
    x = X.astype(float)
    (z, _), _ = jv.sample_and_log_prob(model.encode(x), jax.random.key(0))
    exact = (
        model.decode((z, None)).log_prob(x) + model.base.log_prob(z) - model.start(x).log_prob(z)
    )
    assert close(jv.elbo(model, jax.random.key(0), x)[0], exact)


@pytest.mark.thorough
def test_an_estimator_that_holds_q_still_goes_back_through_the_flow():
    model = crude(3, -1.0)
    plain, _ = jv.elbo(model, jax.random.key(0), X)
    held, _ = jv.elbo(model, jax.random.key(0), X, gradient=jv.sticking_the_landing)
    assert np.isclose(plain, held, rtol=1e-4)


def test_refusals():
    bad: Any
    nothing: Any = None
    number: Any = 0.1
    pair = (jnp.zeros(2), jnp.zeros(2))
    for bad, message in (
        ((jnp.zeros(3), jnp.zeros(2)), "z has shape"),
        ((jnp.zeros(2), jnp.zeros(3)), "rho has shape"),
        (jnp.zeros(2), "expected a pair"),
        ((None, None), "z is None"),
    ):
        for method in (flow(1.0).forward_and_log_det, flow(1.0).inverse_and_log_det):
            with pytest.raises((TypeError, ValueError), match=message):
                method(bad)
    with pytest.raises(ValueError, match="heat is 0"):
        flow(0.0).forward_and_log_det(pair)
    with pytest.raises(ValueError, match="log_prob has shape"):
        Leapfrog(Partial(jnp.sin), jnp.ones((3, 2))).forward_and_log_det(pair)
    with pytest.raises(ValueError, match="heat has shape"):
        flow([1.0, 2.0]).forward_and_log_det(pair)
    with pytest.raises(ValueError, match="step_sizes is a number"):
        Leapfrog(Partial(wavy), number).forward_and_log_det(pair)
    with pytest.raises(TypeError, match="log_prob is None"):
        Leapfrog(nothing, jnp.ones((3, 2))).forward_and_log_det(pair)
    with pytest.raises(ValueError, match="start gives events of shape"):
        crude(3, -1.0)._replace(log_steps=jnp.zeros((3, 2))).encode(X)


@pytest.mark.slow
def test_the_script(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 2, (64, 28, 28, 1)).astype(np.uint8)
    split = SimpleNamespace(images=images)
    monkeypatch.setattr(hamiltonian, "load", lambda _: SimpleNamespace(train=split, test=split))
    small = {"EPOCHS": 2, "SEEDS": 1, "SAMPLES": 2, "IMAGES": 8, "BATCH": 64, "HIDDEN": 8}
    for constant, value in small.items():
        monkeypatch.setattr(hamiltonian, constant, value)
    monkeypatch.setattr(hamiltonian, "STEPS", (2,))
    monkeypatch.chdir(tmp_path)
    hamiltonian.main()
    numbers = json.loads((tmp_path / "runs" / "hamiltonian" / "result.json").read_text())
    assert list(numbers) == ["VAE", "HVAE, K = 2"]
    for (values,) in numbers.values():
        assert np.all(np.isfinite(list(values.values())))
    assert numbers["HVAE, K = 2"][0]["step"] != hamiltonian.STEP_SIZE
    assert "+-" in capsys.readouterr().out


def test_parameters_may_have_another_dtype_than_the_default(x64):
    flow = Leapfrog(Partial(wavy), jnp.full((2, 2), 0.1, jnp.float32))
    pair = jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float32)
    (z, rho), _ = flow.forward_and_log_det(pair)
    assert z.dtype == rho.dtype == jnp.float32
