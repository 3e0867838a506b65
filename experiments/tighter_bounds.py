"""Tighter variational bounds are not necessarily better: the signal-to-noise ratio of a gradient.

    python -m experiments.tighter_bounds

As K grows the importance-weighted bound improves and the gradient that its encoder gets by
reparameterization drowns in noise: its mean falls as 1/K, its standard deviation as 1/sqrt(K), so
that the ratio falls as 1/sqrt(K) (Rainforth et al. 2018, theorem 1). The decoder's grows as
sqrt(K). Doubly reparameterized, the encoder's grows as well (Tucker et al. 2019); sticking the
landing is quiet and biased, by more than the gradient itself as K grows.

Model: p(z) = N(0, I), p(x|z) = N(z, I) in 2-D at x = (.6, -1), so that p(z|x) = N(x/2, I/2); q has
its mean off by (.5, .5) and variance 2/3. SNR = |mean| / standard deviation of one draw of the
gradient in q's mean, and in a shift of the decoder; averaged over the two coordinates; 40,000 draws
a point. Known: .612, .316, .151, .076 pathwise and 2.45, 2.60, 4.22, 8.14 doubly reparameterized at
K = 1, 4, 16, 64. Ours, seed 0: .610, .314, .165, .078 and 2.45, 2.60, 4.24, 8.12, and more in
docs/results.md; half a minute on two x86-64 cores.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

import jaxvae
from experiments.common.command import check_chosen, command
from experiments.common.plotting import BLACK, BLUE, GREEN, RED, figure, save, styled

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # importance samples
NUM_DRAWS = 40_000  # of the gradient, at each K
X = jnp.array([0.6, -1.0])  # the one example
ESTIMATORS = {
    "pathwise": jaxvae.pathwise,
    "sticking the landing": jaxvae.sticking_the_landing,
    "doubly reparameterized": jaxvae.doubly_reparameterized,
}


def make_vae() -> jaxvae.VAE:
    """Trainable: the mean of q, and a shift of the decoder, at 0."""
    return jaxvae.VAE(
        encode=Partial(lambda loc, x: jaxvae.Normal(loc, jnp.full(2, (2 / 3) ** 0.5)), X / 2 + 0.5),
        decode=Partial(lambda shift, z: jaxvae.Normal(z + shift, jnp.ones(2)), jnp.zeros(2)),
        prior=jaxvae.StandardNormal((2,)),
    )


def measure(key: jax.Array, num_draws: int, ks: tuple[int, ...]) -> dict[str, Any]:
    """For each estimator and K: SNR in encoder and decoder, and the encoder's mean gradient."""
    numbers: dict[str, Any] = {"K": list(ks)}
    for name, gradient in ESTIMATORS.items():
        curves: dict[str, list[float]] = {"encoder_snr": [], "decoder_snr": [], "encoder_mean": []}
        for k in ks:
            objective = partial(jaxvae.iwae, num_samples=k, gradient=gradient)
            statistics = partial(
                jaxvae.evaluation.gradient_statistics, objective, num_draws=num_draws
            )
            s = jax.jit(statistics)(make_vae(), jax.random.fold_in(key, k), X)
            (encoder,), (decoder,) = jax.tree.leaves(s.snr.encode), jax.tree.leaves(s.snr.decode)
            curves["encoder_snr"].append(float(jnp.mean(encoder)))
            curves["decoder_snr"].append(float(jnp.mean(decoder)))
            (mean,) = jax.tree.leaves(s.mean.encode)
            curves["encoder_mean"].append(float(jnp.mean(mean)))
        numbers[name] = curves
    return numbers


def main(num_draws: int = NUM_DRAWS, ks: tuple[int, ...] = KS, folder: str = "runs") -> None:
    check_chosen("--ks", ks)
    target = Path(folder) / "tighter_bounds"
    target.mkdir(parents=True, exist_ok=True)
    numbers = measure(jax.random.key(0), num_draws, ks)
    (target / "result.json").write_text(json.dumps(numbers, indent=2) + "\n")
    save(draw(numbers), target / "snr.png")
    table = Table("K", *ESTIMATORS, title="SNR of the encoder's gradient")
    curves = [numbers[name]["encoder_snr"] for name in ESTIMATORS]
    for k, *row in zip(ks, *curves, strict=True):
        table.add_row(str(k), *(f"{snr:.3f}" for snr in row))
    Console().print(table)
    print(f"picture: {target}/snr.png")


@styled
def draw(numbers: dict[str, Any]) -> Any:
    picture = figure(10.2, 3.5)
    panels = {
        "encoder_snr": "Encoder: a tighter bound drowns\nthe reparameterized gradient in noise",
        "decoder_snr": "Decoder: a tighter bound helps,\nthe same under every estimator",
        "encoder_mean": "Encoder's mean gradient:\nsticking the landing is biased",
    }
    ks, colors = np.array(numbers["K"], float), (RED, GREEN, BLUE)
    for ax, (field, title) in zip(picture.subplots(1, 3), panels.items(), strict=True):
        for name, color in zip(ESTIMATORS, colors, strict=True):
            curve = np.abs(numbers[name][field])
            width = 3.5 if name == "sticking the landing" else 1.5  # where two coincide, both show
            ax.loglog(ks, curve, "o-", color=color, label=name, lw=width, markersize=3.5)
        if field != "encoder_mean":
            middle = np.abs(numbers["pathwise"][field])[len(ks) // 2] * 1.6
            slope = -0.5 if field == "encoder_snr" else 0.5
            line = middle * (ks / ks[len(ks) // 2]) ** slope
            ax.loglog(ks, line, ":", color=BLACK, lw=1.1, label=f"slope {slope:+g}")
        ax.set(title=title, xlabel="K", ylabel="SNR" if "snr" in field else "|mean gradient|")
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.axes[0].legend(handles, labels, loc="center right", fontsize=7.5)
    return picture


if __name__ == "__main__":
    command(main, __doc__)
