"""Every step of the story in its small form, and the identities that its numbers must obey."""

import contextlib
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.common import plotting
from experiments.common.progress import bar
from experiments.datasets.pendulum import across
from experiments.story import (
    __main__,
    autoencoder,
    beta,
    covariance,
    em,
    evidence,
    gradients,
    lower_bound,
)
from experiments.story.common import SIGMA, load_digits, make_vae, with_posterior
from jaxvae import Normal, elbo
from jaxvae.bounds import autoencoder as squared_error
from jaxvae.models import ppca

PAGE = Path(__file__).parents[2] / "docs" / "story.md"


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def run(step, digits):
    """The step's numbers, as story.json would hold them; its picture has been drawn."""
    found = step.step(digits, jax.random.key(0), fast=True)
    assert found.picture.axes
    numbers = json.loads(json.dumps(found.numbers, allow_nan=False))
    return {name: np.array(value) for name, value in numbers.items()}


@pytest.mark.slow
def test_the_autoencoder_reconstructs_and_cannot_be_sampled(digits):
    n = run(autoencoder, digits)
    spread = np.sum(np.var(digits.test, axis=0))  # the squared error of the best constant
    for name in ("autoencoder", "vae"):
        assert n[f"squared_error_{name}_8_latents"] < 0.25 * spread
    distance = "nearest_distance_samples_{}_8_latents"
    assert n[distance.format("autoencoder")] > 1.5 * n[distance.format("vae")]
    assert n["nearest_distance_test_images"] < n[distance.format("vae")]


def test_nearest_distance_is_zero_on_a_copy_and_the_norm_of_a_shift():
    rows = 10.0 * np.eye(4, 64)
    shift = 0.3 * np.eye(1, 64, 10)
    assert np.allclose(autoencoder.nearest_distance(rows, rows), 0.0)
    assert np.allclose(autoencoder.nearest_distance(rows + shift, rows), 0.3, atol=1e-5)


def test_the_map_of_codes_shows_their_longest_and_shortest_axis(digits):
    model = jax.jit(lambda key: make_vae(key, 3))(jax.random.key(0))
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    codes = jnp.asarray(
        rng.normal(size=(500, 3)) * [0.2, 2.0, 1.0] @ turn.T + [0.3, -0.5, 0.1], float
    )
    axes = autoencoder.principal_axes(codes)
    assert np.allclose(np.abs(axes @ turn), [[0, 1, 0], [1, 0, 0]], atol=0.1)
    assert np.allclose(axes @ axes.T, np.eye(2), atol=1e-5)
    # a place of the map, in the plane through the mean of the codes
    row, column = 10, 70
    along = np.linspace(-autoencoder.REACH, autoencoder.REACH, autoencoder.PIXELS)
    place = np.array([along[column], along[row]])
    z = codes.mean(axis=0) + (place - axes @ codes.mean(axis=0)) @ axes
    assert np.allclose(axes @ z, place, atol=1e-5)
    image = autoencoder.decoded_map(model, codes, axes)[row * autoencoder.PIXELS + column]
    assert np.allclose(image, jax.jit(model.decode)(z).mean(), atol=1e-5)


@pytest.mark.slow
def test_prior_sampling_falls_short_and_the_posterior_needs_one_draw(digits):
    n = run(evidence, digits)
    exact = n["log_p_exact"]
    assert abs(n["log_p_posterior_one_draw"] - exact) < 1e-9
    assert n["log_p_prior_median"][0] < exact - 10.0
    assert np.all(np.diff(n["log_p_prior_median"]) > 0.0)
    assert abs(n["log_p_wide_median"][-1] - exact) < 0.2
    for name in ("prior", "wide"):
        ess = n[f"ess_{name}_median"]
        assert np.all(ess >= 1.0 - 1e-9)
        assert np.all(ess <= n["sizes"] + 1e-9)
    # a Gaussian c times too wide counts for ((2 - c^-2)^(1/2) / c)^k of its draws
    share = ((2.0 - evidence.WIDER**-2) ** 0.5 / evidence.WIDER) ** 8
    assert abs(n["ess_wide_median"][-1] / n["sizes"][-1] - share) < 0.2 * share


@pytest.mark.slow
def test_em_climbs_to_the_closed_form_optimum(digits):
    n = run(em, digits)
    assert abs(n["em_optimum_closed_form"] - 14.209788) < 1e-6
    assert n["em_smallest_step_up"] > 0.0  # far from the optimum it still rises at every step
    assert n["em_at_start"] < n["em_at_end"] < n["em_optimum_closed_form"]
    assert n["em_optimum_closed_form"] - n["em_at_end"] < 0.5
    # the nonlinear model
    assert np.all(np.diff(n["grid_error_against_finest"]) < 0.0)
    assert n["nonlinear_elbo"] < n["nonlinear_log_p_by_grid"]
    assert n["nonlinear_gap_median"] > n["nonlinear_gap_median_nearest_gaussian"] > 0.0
    assert n["kl_to_nearest_gaussian_median"] > -1e-3  # a KL, but for float32 and the grid
    assert abs(n["importance_sampling_short_median"]) < 0.5


@pytest.mark.thorough
def test_quadrature_is_exact_in_the_linear_model(x64, digits):
    xs = np.asarray(digits.all)
    linear = jax.jit(ppca.maximum_likelihood, static_argnums=1)(xs, 2)
    turned = np.asarray(linear.weight) @ np.array([[0.8, -0.6], [0.6, 0.8]])
    linear = linear._replace(weight=turned)
    grid = em.grid_over(200)

    @jax.jit
    def at(x):
        log_p_x, _ = em.on_grid(ppca.as_vae(linear), grid, x)
        nearest, divergence = em.nearest_gaussian(ppca.as_vae(linear), grid, x)
        off = log_p_x - ppca.log_marginal(linear, x)
        return off, nearest, divergence, ppca.posterior(linear, x)

    for x in xs[:3]:
        off, nearest, divergence, posterior = at(x)
        assert abs(off) < 1e-9
        assert abs(divergence) < 1e-9
        assert np.allclose(nearest.loc, posterior.loc)
        assert np.allclose(nearest.scale_tril, posterior.scale_tril)


@pytest.mark.slow
def test_elbo_and_gap_make_log_p(digits):
    n = run(lower_bound, digits)
    assert n["largest_error_of_elbo_plus_gap"] < 1e-12
    assert abs(n["gap_at_shift_1"] - 0.5) < 1e-12
    assert abs(n["gap_at_scale_2"] - 4.0 * (3.0 - 2.0 * np.log(2.0))) < 1e-12
    off = n["elbo_at_shift_1_draws_mean"] - n["elbo_at_shift_1_exact"]
    assert abs(off) < 4.0 * n["elbo_at_shift_1_draws_standard_error"]
    assert n["elbo_at_posterior_draws_sd"] < 1e-12 < n["elbo_at_shift_1_draws_sd"]
    # IWAE_1 is the ELBO, and IWAE_16 is on the line chi2 / 2K
    theory = np.array([n["gap_at_shift_1"], n["iwae_half_chi2"] / 16])
    tolerance = 4.0 * n["iwae_standard_errors"] + np.array([0.0, 0.01])
    assert np.all(np.abs(n["iwae_gaps"] - theory) < tolerance)


@pytest.mark.thorough
def test_score_and_pathwise_gradients_agree_and_only_one_is_quiet(digits):
    n = run(gradients, digits)
    assert abs(n["exact_gradient_per_component"] + 1.0) < 1e-9
    assert n["largest_mean_error_in_standard_errors"] < 4.0
    theory = 8.0 * n["scales"] ** 2
    assert np.allclose(n["variance_by_scale_reparameterization"], theory, rtol=0.15)
    assert np.allclose(n["variance_by_latents_reparameterization"], n["latents"], rtol=0.15)
    for name in ("score", "score_baseline"):
        assert np.all(n[f"variance_by_scale_{name}"] > 2.0 * theory)
    sticking = n["variance_by_scale_sticking"]  # k (c - 1/c)^2
    assert sticking[1] < 1e-20
    assert np.allclose(sticking, 8.0 * (n["scales"] - 1.0 / n["scales"]) ** 2, rtol=0.15)


@pytest.mark.slow
def test_only_a_diagonal_posterior_loses(digits):
    n = run(covariance, digits)
    loss = n["diagonal_loss_formula"]
    assert abs(n["log_p_exact"] - 14.209788) < 1e-6  # turning the latents leaves p(x) as it is
    assert abs(loss - 0.515805) < 1e-6
    assert abs(n["diagonal_loss_of_best_q"] - loss) < 1e-12
    assert loss - 1e-5 < n["gap_diagonal_learned"] < loss + 0.1
    assert -1e-5 < n["gap_full_learned"] < 0.1


@pytest.mark.slow
def test_beta_trades_rate_for_distortion(digits):
    n = run(beta, digits)
    assert np.all(np.diff(n["rate"]) < 0.0)
    assert np.all(np.diff(n["distortion"]) > 0.0)
    assert np.allclose(n["elbo"], -n["rate"] - n["distortion"], rtol=1e-4)
    assert abs(n["squared_error"][0] / n["squared_error_autoencoder"] - 1.0) < 0.2


def test_beta_zero_without_noise_is_the_autoencoder(digits):
    model = jax.jit(lambda key: make_vae(key, 3))(jax.random.key(0))
    x = np.asarray(digits.train[0], jnp.result_type(float))

    def reconstruction(model, key):  # the ELBO at beta = 0, the encoder's noise taken away
        q = Normal(model.encode(x).loc, 1e-7)
        return elbo(with_posterior(model, q), key, x, beta=0.0)[0] * 2.0 * SIGMA**2

    def error(model, key):
        return squared_error(model, key, x)[0]

    both = jax.jit(
        lambda model, a, b: (jax.grad(reconstruction)(model, a), jax.grad(error)(model, b))
    )
    gradient, expected = both(model, jax.random.key(1), jax.random.key(2))
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert np.allclose(ours, theirs, atol=1e-4)
    assert any(np.abs(np.asarray(leaf)).max() > 0.1 for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_a_terminal_alone(terminal):
    out = io.StringIO()
    with bar(2, Console(file=out, force_terminal=terminal, width=100)) as at:
        at("the first")
        at("the second")
    shown = out.getvalue()
    assert ("the second" in shown) == ("1/2" in shown) == terminal
    assert terminal or not shown


def test_a_picture_is_saved_sharp_and_small(tmp_path):
    picture = plotting.figure(2.0, 1.0)
    picture.subplots().imshow(np.arange(12.0).reshape(3, 4))
    plotting.save(picture, path := tmp_path / "new" / "picture.png")
    with Image.open(path) as saved:
        assert saved.size == (440, 220)  # twice 110 an inch
        assert saved.mode == "P"  # of 256 colours


def test_where_the_bob_is():
    frames = np.zeros((2, 3, 16, 16, 1))
    frames[0, :, 4, 0], frames[1, :, 2:7, 15] = 1.0, 0.3
    frames[1, 0] = 1.0
    assert np.allclose(across(jnp.asarray(frames, float)), [[-1, -1, -1], [0, 1, 1]], atol=1e-5)


@pytest.mark.slow  # what it runs is tested above
def test_main_writes_the_story(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "STEPS", (lower_bound,))
    __main__.main(output=tmp_path, fast=True, seed=3)
    story = json.loads((tmp_path / "story.json").read_text())
    assert story["seed"] == 3
    assert story["fast"] is True
    assert story["lower_bound"]["gap_at_shift_1"] == pytest.approx(0.5)
    assert 10_000 < (tmp_path / "lower_bound.png").stat().st_size < 150_000
    assert "gap at shift 1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_runs_and_shows_every_picture():
    """And every block prints what is shown under it."""
    text = PAGE.read_text()
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", text, flags=re.DOTALL)
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # as a user has it
        for block, printed in blocks:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, "docs/story.md", "exec"), namespace)
            assert out.getvalue() == printed
    assert sum(bool(printed) for _, printed in blocks) == 4
    shown = re.findall(r"\(figures/story/(\w+)\.png\)", text)
    assert shown == [step.__name__.rpartition(".")[2] for step in __main__.STEPS]
    for name in shown:
        assert (PAGE.parent / "figures" / "story" / f"{name}.png").stat().st_size < 150_000
