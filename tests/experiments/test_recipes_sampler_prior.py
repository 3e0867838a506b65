"""A decoder as the prior of a sampler: the pieces of the recipe, small."""

import struct
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.util import initialize_model

from experiments.common.samplers import in_turns, measured
from experiments.datasets import counties
from experiments.recipes import sampler_prior
from experiments.recipes.peers.hilbert_space import SINES, basis
from experiments.recipes.sampler_prior import (
    LATENT,
    NOISE,
    Gated,
    areas,
    covariance,
    decoded,
    given,
    process,
    simulate,
)
from jaxvae import nn

PLACES = jnp.stack(jnp.meshgrid(jnp.arange(3.0), jnp.arange(3.0)), -1).reshape(-1, 2) / 3.0
EXPECTED = jnp.full(9, 5.0)


@pytest.fixture
def as_a_user_has_it():
    """JAX's own promotion, which numpyro needs: it adds ranks, and Booleans to floats."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_key_reuse(False),
    ):
        yield


def model_of(places):
    n, rngs = len(places), nnx.Rngs(0)
    return Partial(given, Gated(n, 2 * LATENT, rngs=rngs), Gated(LATENT, n, rngs=rngs))


@pytest.mark.thorough
def test_simulated_draws_have_the_covariance_of_their_length_scale(monkeypatch):
    monkeypatch.setattr(sampler_prior, "SCALES", 2)
    monkeypatch.setattr(sampler_prior, "EACH", 20_000)
    ells = jnp.array([0.3, 0.9])
    factors = jax.vmap(lambda ell: jnp.linalg.cholesky(covariance(PLACES, ell)))(ells)
    f, of = simulate(ells, factors, jax.random.key(0))
    assert sorted(set(of.tolist())) == pytest.approx([0.3, 0.9])
    for ell in ells:
        found = np.cov(np.asarray(f)[np.asarray(of == ell)].T)
        # (1 + r + r^2 / 3) e^-r, r = sqrt(5) d / ell, five standard errors of 20,000 draws
        d = np.linalg.norm(PLACES[:, None] - PLACES[None], axis=-1)
        r = 5**0.5 * d / float(ell)
        expected = (1.0 + r + r**2 / 3.0) * np.exp(-r)
        assert np.abs(found - expected).max() < 5.0 * (2.0 / 20_000) ** 0.5 + 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("ell", [0.3, 0.9])
def test_the_peers_basis_has_the_covariance_of_the_process(as_a_user_has_it, ell):
    """f is linear in its normals, so that its covariance is that of the slopes."""
    field = lambda beta: substitute(basis, {"beta": beta})(PLACES, ell)
    slopes = jax.jacobian(field)(jnp.zeros(SINES**2))
    exact = covariance(PLACES, ell) - 1e-3 * jnp.eye(9)
    assert np.abs(slopes @ slopes.T - exact).max() < 0.035
    assert np.abs(slopes @ slopes.T - covariance(PLACES, 0.6)).max() > 0.1


@pytest.mark.thorough
def test_the_decoder_stands_in_a_model_of_numpyro(as_a_user_has_it):
    model = model_of(PLACES)
    values = {"z": jnp.linspace(-1.0, 1.0, LATENT), "ell": jnp.float32(0.5)}
    values |= {"sigma": jnp.float32(0.7), "level": jnp.float32(0.1), "eps": jnp.arange(9.0)}
    world = substitute(seed(partial(areas, partial(decoded, model, 9)), 0), values)
    risk = trace(world).get_trace(EXPECTED)["risk"]["value"]
    field = model(values["ell"]).decode(values["z"]).mean() + NOISE * jnp.arange(9.0)
    assert np.allclose(risk, 0.1 + 0.7 * field, atol=1e-6)


@pytest.mark.thorough
def test_both_fields_are_one_model_of_the_cases(as_a_user_has_it):
    for field in (partial(process, PLACES), partial(decoded, model_of(PLACES), 9)):
        world = trace(seed(partial(areas, field), 0)).get_trace(EXPECTED)
        assert world["risk"]["value"].shape == world["cases"]["value"].shape == (9,)
        assert {"ell", "sigma", "level", "z", "risk", "cases"} <= world.keys()


@pytest.mark.slow
def test_a_model_of_numpyro_sees_the_decoder_as_a_pure_function(as_a_user_has_it):
    """log p(cases, z, ...) has a gradient in z and in the length-scale."""
    info = initialize_model(
        jax.random.key(0),
        partial(areas, partial(decoded, model_of(PLACES), 9)),
        model_args=(EXPECTED, EXPECTED),
    )
    gradient = jax.jit(jax.grad(info.potential_fn))(info.param_info.z)
    assert all(jnp.isfinite(leaf).all() and (leaf != 0.0).any() for leaf in gradient.values())


@pytest.mark.thorough
def test_the_saved_model_gives_the_same_field(tmp_path):
    model = model_of(PLACES)
    nn.save_model(tmp_path / "prior", model)
    loaded = nn.load_model(tmp_path / "prior", trust="experiments")
    z, ell = jnp.ones(LATENT), jnp.float32(0.5)
    assert (loaded(ell).decode(z).mean() == model(ell).decode(z).mean()).all()


@pytest.mark.thorough
def test_training_learns_to_reconstruct(monkeypatch):
    """Two hundred steps bring the reconstruction well under the spread of f, which is 1."""
    monkeypatch.setattr(sampler_prior, "TABLE", 8)
    model = sampler_prior.trained(PLACES, steps=200)
    f = jnp.linalg.cholesky(covariance(PLACES, 0.5)) @ jax.random.normal(jax.random.key(1), (9, 50))

    def error(f):
        vae = model(jnp.float32(0.5))
        return jnp.square(vae.decode(vae.encode(f).mean()).mean() - f).mean()

    assert jax.vmap(error, in_axes=1)(f).mean() < 0.25


@pytest.mark.thorough
def test_a_chain_finds_a_rate_that_is_known(as_a_user_has_it, capsys):
    """Of many cases the level is their logarithm; the table has a row for each number."""
    known, data = partial(areas, lambda ell: jnp.zeros(9)), (jnp.full(9, 100.0), jnp.full(9, 200.0))
    models = {"one": known, "two": partial(areas, lambda ell: jnp.full(9, 0.1))}
    [chains] = in_turns(models, jax.random.key(0), [data], [None], 50, 100)
    assert chains[0]["level"].shape == (100,)
    assert not np.allclose(chains[0]["level"], chains[1]["level"])
    # sd 1 / sqrt(1800), and of the mean of 100 dependent draws not more than that
    assert chains[0]["level"].mean() == pytest.approx(np.log(2.0), abs=3.0 / 1800**0.5)
    numbers = measured(chains[0], np.full(9, np.log(2.0)))
    assert numbers["width of the 90 % bands"] == pytest.approx(3.29 / 1800**0.5, rel=0.5)
    assert "times as many a second" in capsys.readouterr().out


def test_middle_of_a_ring():
    """An L of three unit squares, wherever it lies and whichever way it is walked."""
    ring = np.array([[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2], [0, 0]])
    corner = np.array([-80.0, 35.0])
    for way in (ring + corner, ring[::-1] + corner):
        assert counties.middle(way) == pytest.approx(corner + 5 / 6, abs=1e-12)


def test_files_of_a_shape_are_read():
    rings = [np.array([[0.0, 0], [1, 0], [1, 1], [0, 0]]), np.array([[2.0, 2], [3, 2], [2, 2]])]
    points = np.concatenate(rings)
    content = struct.pack("<I4d2I2I", 5, 0, 0, 3, 2, 2, len(points), 0, 4) + points.tobytes()
    record = struct.pack(">II", 1, len(content) // 2) + content
    [found] = counties.polygons(bytes(100) + record)
    assert all((a == b).all() for a, b in zip(found, rings, strict=True))

    fields = b"".join(
        name.ljust(11, b"\0") + b"C" + bytes(4) + bytes([size]) + bytes(15)
        for name, size in ((b"NAME", 5), (b"SID74", 3))
    )
    head = bytes(4) + struct.pack("<IHH", 2, 32 + len(fields) + 1, 9) + bytes(20)
    rows = counties.table(head + fields + b"\r" + b" Ashe   1" + b" Wake  16")
    assert rows == [{"NAME": "Ashe", "SID74": "1"}, {"NAME": "Wake", "SID74": "16"}]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"sids2\.dbf is not the file expected; pip download"):
        counties.read(str(tmp_path))
