"""Plausible inputs of evaluation and use: half precision, frames and sparse matrices as arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from flax import nnx
from jax import dtypes
from jax.tree_util import Partial

import jaxvae
from jaxvae import evaluation, models, nn, plots, training, use
from jaxvae.models import ppca, quantization
from jaxvae.regularizers.two_samples import mmd, sliced_wasserstein

KEY = jax.random.key(0)


def close(a, b, *, rtol=1e-5, atol=0.0):
    return np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=atol)


HALVES = [jnp.float16, jnp.bfloat16]


def linear():
    return ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))


def in_dtype(dtype):
    """q(z|x) = N(x/2, .64), p(x|z) = N(z, 1), p(z) = N(0, 1) in two dimensions."""
    return jaxvae.VAE(
        Partial(lambda x: jaxvae.Normal(x * dtype(0.5), dtype(0.8))),
        Partial(lambda z: jaxvae.Normal(z, dtype(1.0))),
        jaxvae.Normal(jnp.zeros(2, dtype), jnp.ones(2, dtype)),
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_moments_of_half_precision_are_kept_in_single(dtype):
    def objective(model, key, x):
        return model["w"].astype(jnp.float32) * (3.0 + jax.random.normal(key)), None

    model: Any = {"w": jnp.ones((), dtype)}
    found: Any = evaluation.gradient_statistics(
        objective, model, KEY, jnp.ones(1), num_draws=5000, chunk=10
    )
    assert close(found.mean["w"], 3.0, rtol=0.02)
    assert close(found.variance["w"], 1.0, rtol=0.06)


@pytest.mark.parametrize("dtype", HALVES)
def test_an_estimate_of_half_precision_is_as_sure_as_of_single(dtype):
    x = jnp.array([1.0, -0.5])
    half, single = (
        evaluation.log_marginal(in_dtype(d), KEY, x.astype(d), num_samples=2000)
        for d in (dtype, jnp.float32)
    )
    assert close(half.value, single.value, rtol=0.02)
    assert close(half.ess, single.ess, rtol=0.05)
    assert close(half.standard_error, single.standard_error, rtol=0.2)
    assert bool(half.reliable) == bool(single.reliable)


def test_the_mean_of_a_data_set_is_not_rounded_in_half_precision():
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)) * 8.0, jnp.bfloat16)
    found = evaluation.evaluate(in_dtype(jnp.bfloat16), jax.random.key(1), xs, num_samples=5)
    assert close(found.value, np.mean(np.asarray(found.rows.value, float)), rtol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_distances_of_samples_in_half_precision(dtype):
    """Of the same points: it is the difference of means near 1/2 that must not be rounded."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2)), dtype)
    single = x.astype(jnp.float32)
    assert close(mmd(x[:250], x[250:]), mmd(single[:250], single[250:]), rtol=1e-4)
    found, expected = (sliced_wasserstein(a[:250], a[250:], jnp.eye(2)) for a in (x, single))
    assert close(found, expected, rtol=1e-4)
    mean, cov = jnp.zeros(2, dtype), jnp.eye(2, dtype=dtype)
    found = evaluation.frechet_distance(mean, cov, mean + dtype(1), dtype(4) * cov)
    assert close(found, 4.0, rtol=1e-5)


@pytest.mark.parametrize("dtype", [*HALVES, jnp.float32])
def test_the_direction_of_a_long_vector_has_its_code(dtype):
    """|z|^2 is no float16 from |z| = 256 on."""
    z = jnp.array([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 300.0], dtype)
    assert int(quantization.BSQ(8)(z).indices) == 127
    codes = quantization.init_codebook(jnp.array([[-1.0, 0.0], [0.6, 0.8], [1.0, 0.0]], dtype))
    assert int(quantization.cosine(codes)(jnp.array([300.0, 10.0], dtype)).indices) == 2
    e, z = jnp.array([210.0, 200.0], dtype), jnp.array([200.0, 210.0], dtype)
    turned = jax.jacobian(lambda z: quantization.rotation_trick(e, z))(z)
    assert close(turned.astype(jnp.float32) @ turned.T.astype(jnp.float32), jnp.eye(2), atol=0.02)


def test_counts_of_codes_of_small_integers():
    found = quantization.code_counts(jnp.array([0, -1, 3], jnp.int8), num_codes=128)
    assert found.tolist()[:5] == [1, 0, 0, 1, 0]


def test_groups_of_a_quantizer_without_arrays_are_refused():
    with pytest.raises(TypeError, match="Grouped: quantizers is an FSQ, which has no arrays"):
        quantization.Grouped(quantization.FSQ((4, 4)))(jnp.ones(4))


def test_what_encode_gives_of_a_frame_decode_takes():
    frame = pd.DataFrame(np.arange(6.0).reshape(2, 3), columns=list("abc"))
    coded = use.encode(linear(), frame)
    expected = use.decode(linear(), use.encode(linear(), frame.to_numpy(np.float32)))
    np.testing.assert_allclose(use.decode(linear(), coded), expected, rtol=1e-6)
    np.testing.assert_allclose(use.decode(linear(), coded[["z 0"]]), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="decode: zs has 3 columns, expected 1: z 0"):
        use.decode(linear(), frame)
    with pytest.raises(ValueError, match=r"decode: zs has rows of shape \(4,\), expected \(1,\)"):
        use.decode(linear(), np.ones((2, 4), np.float32))


def normal(loc):
    return jaxvae.Normal(loc, 1.0)


def test_latents_of_several_parts_are_decoded_from_a_frame():
    prior = jaxvae.Product({"b": jaxvae.StandardNormal((2,)), "a": jaxvae.StandardNormal(())})
    model = jaxvae.VAE(
        Partial(
            lambda x: jaxvae.Product({"b": jaxvae.Normal(x, 1.0), "a": jaxvae.Normal(x[0], 1.0)})
        ),
        Partial(lambda z: normal(z["b"] + 10.0 * z["a"])),
        prior,
    )
    frame = pd.DataFrame({"u": [1.0, 2.0], "v": [3.0, 4.0]})
    expected = use.decode(model, use.encode(model, frame.to_numpy(np.float32)))
    np.testing.assert_allclose(use.decode(model, use.encode(model, frame)), expected, rtol=1e-6)


def of_choices():
    return jaxvae.VAE(
        Partial(lambda x: jaxvae.Normal(x.astype(float), 1.0)),
        Partial(lambda z: jaxvae.Categorical(jnp.stack([z, 0.0 * z, -z], -1))),
        jaxvae.StandardNormal((2,)),
    )


def test_a_frame_of_integers_is_as_its_array():
    frame = pd.DataFrame({"a": [0, 1, 2], "b": [2, 1, 0]})
    found = use.score(of_choices(), KEY, frame, num_samples=5)
    expected = use.score(of_choices(), KEY, frame.to_numpy(np.int32), num_samples=5)
    np.testing.assert_allclose(found.iwae, expected.iwae, rtol=1e-6)
    with pytest.raises(ValueError, match=r"score: column 'a' holds 0.5, expected whole numbers"):
        use.score(of_choices(), KEY, frame.assign(a=[0.5, 1, 2]), num_samples=5)


def test_a_frame_in_double_precision_keeps_its_digits(x64):
    values = np.arange(6.0).reshape(2, 3) / 3.0
    frame = pd.DataFrame(values, columns=list("abc"))
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    found, expected = (use.score(model, KEY, xs, num_samples=3).iwae for xs in (frame, values))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert found.dtype == dtypes.canonicalize_dtype(np.float64)


def test_the_most_probable_label_is_reconstructed(tmp_path):
    model = of_choices()._replace(decode=Partial(lambda z: jaxvae.Categorical(jnp.eye(3)[1:])))
    xs = np.zeros((4, 2), np.int32)
    assert use.reconstruct(model, KEY, xs).tolist() == 4 * [[1, 2]]
    assert use.decode(model, np.zeros((4, 2), np.float32)).tolist() == 4 * [[1, 2]]
    assert use.generate(model, KEY, 4, mean=True).tolist() == 4 * [[1, 2]]
    path = evaluation.export_model(tmp_path / "decode", model, "decode")
    exported = jax.export.deserialize(path.read_bytes())  # pyright: ignore
    assert exported.call(np.zeros((4, 2), np.float32)).tolist() == 4 * [[1, 2]]


def test_a_quantizing_encoder_is_exported(tmp_path):
    codes = quantization.init_codebook(jnp.array([[-1.0], [1.0]]))
    model = models.VQVAE(
        Partial(lambda x: x[:, None]),
        codes,
        Partial(lambda c: jaxvae.Normal(c[:, 0], 1.0)),
        jaxvae.Constant(jaxvae.Categorical(jnp.zeros((3, 2)))),
    )
    path = evaluation.export_model(tmp_path / "encode", model, "encode")
    xs = np.array([[0.5, -0.5, 2.0], [-1.0, -2.0, 3.0]], np.float32)
    found = jax.export.deserialize(path.read_bytes()).call(xs)  # pyright: ignore
    np.testing.assert_array_equal(found, use.encode(model, xs))


def counts():
    return np.random.default_rng(0).poisson(1.0, (300, 6)).astype(np.float32)


def of_counts():
    head = nn.HeadOf(jaxvae.Poisson, (nn.Positive("n"),))
    return nn.make_vae(counts()[0], latents=2, likelihood=head, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("sparse", ["csr_matrix", "coo_array", "sparse_rows"])
def test_a_sparse_matrix_is_used_as_its_array(sparse):
    """More rows than are made dense at once."""
    model, xs = of_counts(), counts()
    given = getattr(scipy.sparse, sparse, scipy.sparse.csr_array)(xs)
    given = training.sparse_rows(given) if sparse == "sparse_rows" else given
    np.testing.assert_allclose(use.encode(model, given), use.encode(model, xs), rtol=1e-6)
    found, expected = (use.score(model, KEY, rows, num_samples=2).iwae for rows in (given, xs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_where_a_sparse_matrix_is_not_taken_a_line_says_so():
    given = scipy.sparse.csr_array(counts())
    with pytest.raises(TypeError, match=r"evaluate: xs is a csr_array, .* xs.toarray\(\)"):
        evaluation.evaluate(of_counts(), KEY, given, num_samples=2)


def test_pictures_name_what_is_no_image():
    with pytest.raises(ValueError, match=r"images has shape \(9, 6\), expected \[n, H, W\]"):
        plots.image_grid(np.ones((9, 6)))
    with pytest.raises(ValueError, match=r"latent_map: means has shape \(9,\), expected \[n, d\]"):
        plots.latent_map(np.ones(9, np.float32))
    plots.latent_map(np.random.default_rng(0).normal(size=(10, 3)).astype(np.float16))
