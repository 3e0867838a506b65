"""A prior for a sampler: PriorVAE, a decoder in place of a Gaussian process under NUTS.

    uv run python -m experiments.recipes.sampler_prior [FOLDER]

FOLDER (optional) holds the infant deaths of North Carolina's 100 counties, sids2.dbf and sids2.shp
(`pip download --no-deps libpysal==4.12.1`, then unzip the wheel: libpysal/examples/sids2).
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import nnx
from jax.tree_util import Partial
from matplotlib.collections import PolyCollection
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import seed, trace
from numpyro.infer import NUTS

import jaxvae
from experiments.common.plotting import figure, save, styled
from experiments.datasets.counties import read
from jaxvae import nn

SIDES = (10, 16)  # of the grids of simulated data
SHORTEST, LONGEST = 0.3, 0.9  # length-scales, of areas that span 1
LATENT = 30  # coordinates of z
HIDDEN = 128  # units of a layer
NOISE = 0.2  # sigma of p(f|z): what is smaller than that in f the decoder need not learn
TABLE = 64  # length-scales that training draws from
SCALES, EACH = 8, 16  # length-scales a step, and draws of each
STEPS = 8000
LEARNING_RATE = 5e-3  # of Adam, at first
BETA = 25.0  # at first, so that the large features of f are learned before the small ones
WARM_UP, DRAWS = 200, 200  # of NUTS
EXPECTED = 5.0  # cases an area in the simulated data, where f and the level are 0
SEEDS = 3
FOLDER = Path("runs/sampler_prior")


def covariance(places: Any, ell: Any) -> jax.Array:
    """Matern 5/2, with variance 1, and a little on the diagonal for the sake of float32."""
    gap = places[:, None] - places
    r = jnp.sqrt(5.0 * jnp.maximum((gap**2).sum(-1), 1e-12)) / ell
    return (1.0 + r + r**2 / 3.0) * jnp.exp(-r) + 1e-4 * jnp.eye(len(places))


def simulate(ells: jax.Array, factors: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A batch of (f, ell), given Cholesky factors of the covariance at every ell."""
    key, of_ell = jax.random.split(key)
    some = jax.random.choice(of_ell, len(ells), (SCALES,), replace=False)
    eps = jax.random.normal(key, (SCALES, EACH, factors.shape[-1]))
    return (eps @ factors[some].mT).reshape(-1, factors.shape[-1]), jnp.repeat(ells[some], EACH)


class Gated(nnx.Module):
    """A dense network of v, with hidden units that ell turns up and down."""

    def __init__(self, n: int, m: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(n, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.last = nnx.Linear(HIDDEN, m, rngs=rngs)
        self.gates = nn.MLP((1,), (2, HIDDEN), hidden=(32,), rngs=rngs)

    def __call__(self, v: Any, ell: Any) -> Any:
        first, second = 1.0 + self.gates(2.5 * jnp.log(ell / 0.4)[None])
        h = first * jax.nn.silu(self.first(v))
        return self.last(second * jax.nn.silu(self.second(h)))


def given(encoder: Gated, decoder: Gated, ell: Any) -> jaxvae.VAE:
    return jaxvae.VAE(
        encode=lambda f: nn.NormalHead()(encoder(f, ell)),
        decode=lambda z: nn.NormalHead(scale=NOISE)(decoder(z, ell)),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def trained(places: jax.Array, steps: int = STEPS) -> Any:
    """ell -> VAE of f at these places."""
    n, rngs = len(places), nnx.Rngs(0)
    ells = jnp.linspace(SHORTEST, LONGEST, TABLE)
    factors = jax.lax.map(lambda ell: jnp.linalg.cholesky(covariance(places, ell)), ells)
    encoder = Gated(n, 2 * LATENT, rngs=rngs)
    model = Partial(given, encoder, Gated(LATENT, n, rngs=rngs))
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    state, _ = jaxvae.fit(
        jaxvae.train_step(jaxvae.conditioned(jaxvae.elbo), optimizer),
        jaxvae.init_state(model, optimizer),
        jax.random.key(0),
        Partial(simulate, ells, factors),
        epochs=1,
        steps_per_epoch=steps,
        beta=optax.exponential_decay(BETA, steps // 2, 1.0 / BETA, end_value=1.0),
    )
    return state.model


def areas(field: Callable[[Any], Any], expected: Any, cases: Any = None) -> None:
    """cases ~ Poisson(expected exp(level + sigma f)), where field(ell) draws f."""
    ell = numpyro.sample("ell", dist.Uniform(SHORTEST, LONGEST))
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.7, 0.5))
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    risk = numpyro.deterministic("risk", level + sigma * field(ell))
    numpyro.sample("cases", dist.Poisson(expected * jnp.exp(risk)), obs=cases)


def process(places: jax.Array, ell: Any) -> jax.Array:
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(places)]).to_event(1))
    return jnp.linalg.cholesky(covariance(places, ell)) @ z


def decoded(model: Any, ell: Any) -> jax.Array:
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1))
    return model(ell).decode(z).mean()


def sampler(field: Callable[[Any], Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """(key, (expected, cases)) -> draws of a chain, and its seconds without compilation."""
    kernel, programs = NUTS(partial(areas, field)), []

    def chain(state: Any, data: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, data, {})
            return state, kernel.postprocess_fn(data, {})(state.z) | {"steps": state.num_steps}

        return jax.lax.scan(step, state, length=WARM_UP + DRAWS)[1]

    def run(key: Any, data: Any) -> dict[str, Any]:
        state = kernel.init(key, WARM_UP, None, data, {})
        programs[:] = programs or [jax.jit(chain).lower(state, data).compile()]
        start = time.process_time()
        draws = jax.block_until_ready(programs[0](state, data))
        seconds = time.process_time() - start
        return {k: np.asarray(v[WARM_UP:]) for k, v in draws.items()} | {"seconds": seconds}

    return run


def compare(name: str, places: jax.Array, data: list[Any], truths: list[Any]) -> list[Any]:
    """The two samplers in turns on every data set, and a table of means and of each seed's."""
    start = time.process_time()
    model = trained(places)
    print(
        f"{name}: {len(places)} areas, trained in {time.process_time() - start:.0f} s", flush=True
    )
    samplers = [sampler(partial(process, places)), sampler(partial(decoded, model))]
    keys = jax.random.split(jax.random.key(1), len(data))
    pairs = [[run(key, d) for run in samplers] for key, d in zip(keys, data, strict=True)]
    table: dict[str, list[float]] = {}
    for pair, truth in zip(pairs, truths, strict=True):
        for label, chain in zip(("process", "decoder"), pair, strict=True):
            risk, each = chain["risk"], lambda of: effective_sample_size(of[None])  # noqa: E731
            low, high = np.quantile(risk, [0.05, 0.95], axis=0)
            ess = np.concatenate([each(risk), [each(chain["ell"]), each(chain["sigma"])]])
            numbers = {
                "seconds": chain["seconds"],
                "steps a draw": chain["steps"].mean(),
                "effective draws, median": np.median(ess),
                "effective draws a second, median": np.median(ess) / chain["seconds"],
                "effective draws a second, least": ess.min() / chain["seconds"],
                "width of the 90 % bands": (high - low).mean(),
            }
            if truth is not None:
                numbers["error to the truth (RMSE)"] = ((risk.mean(0) - truth) ** 2).mean() ** 0.5
                numbers["truth in the 90 % bands"] = ((low < truth) & (truth < high)).mean()
            for what, number in numbers.items():
                table.setdefault(f"{what}, {label}", []).append(float(number))
        first, second = (chain["risk"] for chain in pair)
        apart = np.abs(first.mean(0) - second.mean(0)) / first.std(0)
        table.setdefault("posterior means apart, in standard deviations", []).append(apart.mean())
        ess = [table[f"effective draws a second, median, {w}"][-1] for w in ("decoder", "process")]
        table.setdefault("times as many a second", []).append(ess[0] / ess[1])
    for what, values in table.items():
        print(f"  {what:50s}{np.mean(values):9.3g}   ({', '.join(f'{v:.3g}' for v in values)})")
    return pairs


def main(folder: str = "") -> None:
    for side in SIDES:
        line = jnp.linspace(0.0, 1.0, side)
        places = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
        expected = jnp.full(len(places), EXPECTED)
        worlds = [
            trace(seed(partial(areas, partial(process, places)), key)).get_trace(expected)
            for key in jax.random.split(jax.random.key(2), SEEDS)
        ]
        data = [(expected, world["cases"]["value"]) for world in worlds]
        truths = [np.asarray(world["risk"]["value"]) for world in worlds]
        compare(f"grid {side} x {side}", places, data, truths)
    if folder:
        counties = read(folder)
        plane = counties.middles * [np.cos(np.radians(35.5)), 1.0]
        places = jnp.asarray((plane - plane.min(0)) / np.ptp(plane[:, 0]), jnp.float32)
        expected = jnp.asarray(counties.births * (counties.deaths.sum() / counties.births.sum()))
        data = (expected, jnp.asarray(counties.deaths))
        pairs = compare("counties", places, [data] * SEEDS, [None] * SEEDS)
        draw(
            FOLDER / "counties.png",
            counties.outlines,
            {
                "deaths / expected": np.asarray(data[1] / data[0]),
                "Gaussian process": np.mean([np.exp(p[0]["risk"]).mean(0) for p in pairs], axis=0),
                "decoder": np.mean([np.exp(p[1]["risk"]).mean(0) for p in pairs], axis=0),
            },
        )


@styled
def draw(path: Path, outlines: list[list[np.ndarray]], maps: dict[str, np.ndarray]) -> None:
    picture = figure(5.0, 6.2)
    for axes, (title, values) in zip(picture.subplots(len(maps)), maps.items(), strict=True):
        rings = [
            (ring, value) for rings, value in zip(outlines, values, strict=True) for ring in rings
        ]
        shapes = PolyCollection([r for r, _ in rings], array=[v for _, v in rings], cmap="viridis")
        shapes.set(clim=(0.4, 2.0), edgecolor="white", linewidth=0.3)
        axes.add_collection(shapes)
        axes.set(title=title, aspect=1.23, xlim=(-84.5, -75.3), ylim=(33.8, 36.7))
        axes.set_axis_off()
        picture.colorbar(shapes, ax=axes, shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(picture, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
