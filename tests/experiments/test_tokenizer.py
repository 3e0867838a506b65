"""The script of tokenizers: its measures against scikit-image, its data, its frozen features."""

import io
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import tokenizer
from experiments.common.image_quality import psnr, ssim
from experiments.datasets import emoji, photographs


def test_psnr_and_ssim_are_those_of_scikit_image():
    """0.26.0: structural_similarity(gaussian_weights=True, sigma=1.5, data_range=1.0,
    use_sample_covariance=False, channel_axis=-1), and peak_signal_noise_ratio."""
    i = np.arange(2 * 16 * 14 * 3.0).reshape(2, 16, 14, 3)
    xs = 0.5 + 0.5 * np.sin(0.37 * i)
    ys = np.clip(xs + 0.2 * np.cos(1.7 * i), 0, 1)
    np.testing.assert_allclose(ssim(xs, ys), [0.9358152395514151, 0.9360296594177008], rtol=1e-12)
    np.testing.assert_allclose(psnr(xs, ys), [18.043645311795437, 18.020540952838925], rtol=1e-12)
    np.testing.assert_allclose(ssim(xs, xs), 1.0)


def test_data_that_are_not_there_are_asked_for_in_a_line(tmp_path):
    for load, how in ((emoji.pictures, "npm pack"), (photographs.verified, "apt-get download")):
        with pytest.raises(SystemExit, match=how) as refused:
            load(tmp_path / "nowhere")
        assert "\n" not in str(refused.value)


def test_a_family_of_pictures_stays_together(tmp_path, monkeypatch):
    """Pictures that differ in the tone of the skin alone, on white where they are transparent."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for number in range(16):
            for tone in ("", "-1f3fb", "-1f3ff"):
                picture, data = Image.new("RGBA", (64, 64), (number, 0, 0, 255)), io.BytesIO()
                picture.putpixel((0, 0), (0, 0, 0, 0))
                picture.save(data, "PNG")
                info = tarfile.TarInfo(f"package/img/google/64/{number:04x}{tone}-fe0f.png")
                info.size = data.tell()
                data.seek(0)
                archive.addfile(info, data)
    monkeypatch.setattr(emoji, "CHECKSUM", emoji.hashlib.sha256(package.read_bytes()).hexdigest())
    train, held_out = emoji.pictures(Path(package))
    of_train, of_held_out = ({*xs[:, 1, 1, 0].tolist()} for xs in (train, held_out))
    assert (len(train), len(held_out)) == (3 * 14, 3 * 2)
    assert not of_train & of_held_out
    assert np.all(train[:, 0, 0] == 255)


@pytest.mark.thorough
def test_contrasts_see_no_brightness_and_no_gradient_is_lost():
    x = jnp.sin(jnp.arange(192.0)).reshape(8, 8, 3)
    for a, b in zip(tokenizer.contrasts(x), tokenizer.contrasts(x + 0.3), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    slope = jax.grad(lambda x: sum(jnp.sum(f**2) for f in tokenizer.contrasts(x)))(x)
    assert np.all(slope[1:-1, 1:-1] != 0)
