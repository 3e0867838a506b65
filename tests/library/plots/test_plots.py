"""Pictures, read back from the figures, and the page: one file of what it was given."""

import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import plots
from jaxvae.evaluation import Summary
from jaxvae.models import ppca
from jaxvae.plots.figures import POINTS
from jaxvae.plots.page import as_svg

IMAGES = np.random.default_rng(0).random((3, 2, 4, 5), np.float32)


def test_a_mosaic_has_each_image_in_its_place():
    sheet = plots.mosaic(IMAGES[..., :3], 2)
    assert sheet.shape == (5, 9, 3)
    for i, (top, left) in enumerate([(0, 0), (0, 5), (3, 0)]):
        assert np.array_equal(sheet[top : top + 2, left : left + 4], IMAGES[i, ..., :3])
    assert np.allclose(sheet[2], 0.8)  # between two rows
    assert np.allclose(sheet[3:, 5:], 0.8)  # where a fourth would be


def test_images_of_any_number_of_channels_can_be_drawn():
    for channels, width in {1: 4, 2: 8, 3: 4, 4: 16, 5: 20}.items():
        assert plots.mosaic(IMAGES[:1, ..., :channels], 1).shape == (2, width, 3)
    ink = plots.mosaic(IMAGES[:1, ..., :2], 1)  # the second channel, and its ink dark
    assert np.array_equal(ink[:, 4:, 2], 1 - IMAGES[0, ..., 1])
    assert np.array_equal(plots.mosaic(IMAGES[..., 0], 3), plots.mosaic(IMAGES[..., :1], 3))
    assert np.all(plots.mosaic(2.0 * np.ones((1, 2, 2)), 1) == 0.0)


def test_bytes_are_pixels_of_255():
    stored = np.array([[[0, 51], [102, 255]]], np.uint8)
    assert np.allclose(plots.mosaic(stored, 1)[..., 0], [[1.0, 0.8], [0.6, 0.0]])
    assert np.allclose(plots.mosaic(stored // 255, 1)[..., 0], [[1.0, 1.0], [1.0, 0.0]])  # binary


def curves_in(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_learning_curves_are_of_what_was_measured():
    metrics = {
        "train_elbo": [1.0, 2.0, np.nan, 4.0],
        "validation_elbo": [0.0, np.nan, np.nan, 3.0],
        "train_loss": [1.0] * 4,  # which would say it again
        "speed": [9.0] * 4,
        "rate": [np.nan] * 4,
    }
    [axes] = plots.learning_curves(metrics, xlabel="epoch").axes
    assert (axes.get_title("left"), axes.get_xlabel()) == ("ELBO", "epoch")
    found = curves_in(axes)
    assert found["train"].tolist() == [[1, 1], [2, 2], [4, 4]]
    assert found["validation"].tolist() == [[1, 0], [4, 3]]
    with pytest.raises(ValueError, match=r"^learning_curves: metrics has \['speed'\], expected"):
        plots.learning_curves({"speed": [1.0]})


def test_many_steps_are_drawn_by_their_means():
    n = 10 * POINTS - 5  # the last five alone
    [axes] = plots.learning_curves({"loss": np.arange(1.0 * n)}).axes
    points = curves_in(axes)["train"]
    assert len(points) == POINTS
    assert points[0].tolist() == [5.5, 4.5]
    assert points[-1].tolist() == [n - 2.0, n - 3.0]


def test_bars_are_rates_in_order():
    [axes] = plots.latent_rates(np.array([[0.001, 2.0], [1.0, 0.0]])).axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 1.0, 0.001, 0.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["z1", "z2", "z0", "z3"]
    assert "2 of 4 used" in axes.get_title("left")
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert "latents" in plots.latent_rates(np.ones(30)).axes[0].get_xlabel()


def test_the_map_is_along_the_axes_of_the_largest_variance():
    """Points on a turned ellipse: their distances stay, and the first axis is the longer."""
    angle = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
    ellipse = np.stack([3 * np.cos(angle), np.sin(angle)], axis=1)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0][:2]
    picture = plots.latent_map(7.0 + ellipse @ turn, np.arange(40) % 2)
    [axes] = picture.axes
    dots = [c.get_offsets() for c in axes.collections]
    assert [len(d) for d in dots] == [20, 20]
    np.testing.assert_allclose(np.abs(dots[0]), np.abs(ellipse[::2]), atol=1e-6)
    assert "100%" in axes.get_title("left")
    assert plots.latent_map(np.ones((1, 1))).axes  # of one row and latent too
    many = plots.latent_map(np.ones((30, 2)), np.arange(30)).axes[0]
    assert many.get_legend() is None


def images_of(z):
    return jv.Bernoulli(jnp.tile(4.0 * z[:1], (4, 3))[..., None] + jnp.zeros((4, 3, 1)))


MODEL = jv.VAE(
    encode=Partial(lambda x: jv.Normal(jnp.array([1.0, 0.0]) * jnp.mean(x), jnp.ones(2))),
    decode=Partial(images_of),
    prior=jv.StandardNormal((2,)),
)
ROWS = np.asarray(jax.random.bernoulli(jax.random.key(0), 0.5, (60, 4, 3, 1)), np.float32)


def test_a_traversal_moves_one_latent():
    picture = plots.traversals(MODEL, np.zeros(2), np.array([1, 0]), rates=np.array([0.5, 0.0]))
    [axes] = picture.axes
    sheet = axes.images[0].get_array()
    still, moved = sheet[2, ::4, 0], sheet[7, ::4, 0]
    assert np.allclose(still, 0.5)  # the second latent changes nothing
    expected = 1 - 1 / (1 + np.exp(-4 * np.linspace(-3, 3, 11)))  # ink
    np.testing.assert_allclose(moved, expected, atol=1e-6)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["z1, 0.0 nats", "z0, 0.5 nats"]


class Page(HTMLParser):
    """The tags of a page, its text by tag, and all that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.fetched, self.tags = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        named = [v for n, v in attrs if n in ("src", "href", "xlink:href", "srcset")]
        self.fetched += [v for v in named if not str(v).startswith(("#", "data:"))]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if self.open[-1] != tag:  # th, td and tr may be left open; nothing here is
            raise AssertionError(f"{tag} closes {self.open[-1]}")
        self.open.pop()

    def handle_data(self, data):
        for tag in self.open[-1:]:
            self.found.setdefault(tag, []).append(" ".join(data.split()))


@pytest.mark.thorough
def test_a_report_of_a_model_is_one_file_that_says_it(tmp_path):
    path = tmp_path / "report.html"
    metrics = {"loss": np.linspace(9.0, 8.0, 50), "rate": np.ones(50)}
    found = plots.report(
        path, MODEL, jax.random.key(0), ROWS, title="<mine>", metrics=metrics,
        config={"a & b": 1}, labels=np.arange(60) % 3, num_samples=30, num_rows=20,
    )  # fmt: skip
    assert isinstance(found, Summary)
    assert found.estimated == 20
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert "url(http" not in text
    assert page.tags.count("svg") == 2 + 5  # curves, and what can be drawn
    assert page.found["h1"] == ["<mine>"]
    assert f"{found.log_marginal:.2f} ± {found.standard_error:.2f}" in page.found["td"]
    assert "a & b" in page.found["th"]
    assert any("1 of 2 latents are idle" in text for text in page.found["li"])
    assert len(text) < 1_000_000


def test_what_has_no_images_or_vector_of_latents_is_drawn_as_far_as_it_goes():
    rows = np.ones((7, 3), np.float32)
    no_mean = jv.VAE(
        encode=Partial(
            lambda x: jv.Mixture(jnp.zeros(2), jv.Normal(jnp.stack([x, -x]), jnp.ones((2, 3))))
        ),
        decode=Partial(lambda z: jv.Normal(z, 1.0)),
        prior=jv.StandardNormal((3,)),
    )
    levels = no_mean._replace(prior=jv.StandardNormal((3, 1)))
    assert set(plots.pictures(no_mean, jax.random.key(0), rows)) <= {"latent_map"}
    assert set(plots.pictures(levels, jax.random.key(0), rows)) == set()


@pytest.mark.thorough
def test_a_conditional_model_is_drawn_at_the_y_of_each_row(tmp_path):
    ys = np.linspace(-9.0, 9.0, 60, dtype=np.float32)
    path = tmp_path / "report.html"
    found = plots.report(
        path, lambda y: MODEL._replace(decode=lambda z: images_of(z + y)), jax.random.key(0), ROWS,
        given=ys, num_samples=30,
    )  # fmt: skip
    assert found.rates.shape == (2,)
    assert Page(path.read_text()).tags.count("svg") == 5
    drawn = plots.pictures(
        lambda y: MODEL._replace(decode=lambda z: images_of(0.0 * z + y)), jax.random.key(0), ROWS,
        given=ys,
    )  # fmt: skip
    [axes] = drawn["samples"].axes  # 60, ten in a line: from white to ink
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape[0] == 6 * 5 - 1
    assert np.all(sheet[0, :3] > 0.99)
    assert np.all(sheet[-1, -3:] < 0.01)
    assert "at the y of a row" in axes.get_title("left")


def test_series_are_no_images():
    chain = jv.models.Markov(jv.Normal(0.0, 1.0), Partial(lambda z: jv.Normal(z, 1.0)), 4)
    walk = jv.VAE(
        encode=lambda x: jv.Normal(x[:, 0], 1.0),
        decode=lambda z: jv.Normal(jnp.stack([z] * 3, axis=1), 1.0),
        prior=chain,
    )
    key, of_a_vector = (
        jax.random.key(0),
        MODEL._replace(decode=lambda z: jv.Normal(z[0] * jnp.ones((4, 3)), 1.0)),
    )
    assert set(plots.pictures(walk, key, ROWS[..., 0])) == {"latent_map"}
    assert set(plots.pictures(of_a_vector, key, ROWS[..., 0] - 0.5)) == {"latent_map"}
    assert "reconstructions" in plots.pictures(of_a_vector, key, ROWS[..., 0])  # grey images


def test_what_is_certain_and_what_has_no_rates_is_said_on_the_page(tmp_path):
    summary = Summary(100, -80.0, 20.0, 60.0, 9.0, -80.0, 0.0, 100, 500, 500.0, 0.0, 0.0, 8, 8)
    summary = summary._replace(certain=True, no_rates="There is <none>.")
    plots.write_report(tmp_path / "report.html", summary, title="", drawn={})
    text = (tmp_path / "report.html").read_text()
    assert "log p(x) is <b>at least -80.00</b> nats" in text
    assert "±" not in text
    assert "<h2>What each latent says</h2>\n<p>There is &lt;none&gt;.</p>" in text
    drawn = plots.pictures(
        MODEL, jax.random.key(0), ROWS[:, 0, 0], rates_of_levels=np.array([1.0, 2.0])
    )
    bars = drawn["level_rates"].axes[0].patches
    assert [bar.get_height() for bar in bars] == [1.0, 2.0]


def test_bytes_are_drawn_as_they_are_stored_and_what_has_no_mean_by_its_draws():
    values = jv.VAE(
        encode=lambda x: jv.Normal(jnp.ones(2) * jnp.mean(x.astype(float)), 1.0),
        decode=lambda z: jv.Categorical(jnp.zeros((4, 3, 1, 256)).at[..., 128].set(99.0)),
        prior=jv.StandardNormal((2,)),
    )
    rows = np.full((5, 4, 3, 1), 128, np.uint8)
    drawn = plots.pictures(values, jax.random.key(0), rows)
    for name in ("reconstructions", "samples"):
        sheet = np.asarray(drawn[name].axes[0].images[0].get_array())
        np.testing.assert_allclose(sheet[0, 0], 1 - 128 / 255, atol=1e-6)
    assert "traversals" not in drawn


def test_ink_is_the_color_of_the_page_around_it():
    svg = as_svg(plots.latent_rates(np.array([1.0, 0.5])), "bars & such")
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "bars & such"
    assert "width" not in root.attrib
    assert "height" not in root.attrib
    assert "#000000" not in svg
    assert "currentColor" in svg
    assert "#0072b2" in svg
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"z0", "z1", "nats"} <= set(texts)
    assert not [e for e in root.iter() if e.tag.endswith("}g") and "id" in e.attrib]


@pytest.mark.thorough
def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import jaxvae.plots"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last == "ImportError: jaxvae.plots draws with matplotlib; pip install 'jaxvae[plots]'"


def test_what_a_report_can_not_do_is_known_before_it_measures(tmp_path, monkeypatch):
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    xs, key, measured = np.random.default_rng(0).normal(size=(9, 3)), jax.random.key(0), []
    monkeypatch.setattr("jaxvae.plots.page.summarize", lambda *args, **how: measured.append(args))
    with pytest.raises(ValueError, match=r"^report: labels are 2, expected 9, one for each row"):
        plots.report(tmp_path / "r.html", model, key, xs, labels=[0, 1])
    with pytest.raises(IsADirectoryError, match=r"^report: path is .* a folder"):
        plots.report(tmp_path, model, key, xs)
    assert not measured
    with pytest.raises(ValueError, match=r"^latent_map: means of row 1 are not finite"):
        plots.latent_map(np.array([[0.0], [np.nan]]))


def test_a_report_is_utf_8_whole_and_makes_its_folder(tmp_path):
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    xs, path = np.random.default_rng(0).normal(size=(9, 3)), tmp_path / "new" / "r.html"
    plots.report(path, model, jax.random.key(0), xs, title="Größe", num_samples=5)
    assert "<title>Größe</title>" in path.read_text(encoding="utf-8")
    assert [*path.parent.iterdir()] == [path]
