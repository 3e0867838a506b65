"""A report of every family of models: it is written, or refused in one line."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.common.methods import ROWS
from experiments.zoo import data
from experiments.zoo.found import seen
from experiments.zoo.rules import rule_of
from experiments.zoo.tables import data_of
from jaxvae import plots

NOWHERE = Path("nowhere")
QUICK = ("prior/conditional-p-z-y", "codes/residual-quantization")
LEVELS = ("prior/more-levels", "posterior/ladder", "structure/deep-hierarchy-residual-cells",
          "structure/semi-supervised-m2-examples-with-a-label")  # fmt: skip
CERTAIN = ("codes/residual-quantization", "codes/finite-scalar-quantization",
           "codes/autoregressive-prior-over-codes")  # fmt: skip
LATENTS = ("prior/conditional-p-z-y", "posterior/gamma", "likelihood/256-values",
           "likelihood/mixture-of-them-rgb-coupled", "likelihood/poisson",
           "likelihood/missing-entries", "structure/mixed-tables-of-a-data-frame-its-anomalies",
           "structure/product-of-experts", "structure/sequences-word-dropout")  # fmt: skip
TOGETHER = ("prior/vampprior", "prior/coupling-flow", "prior/autoregressive", "prior/categorical",
            "prior/uniform-on-the-sphere", "prior/two-levels", "prior/markov-chain",
            "posterior/full-covariance", "posterior/mixture-implicit-gradient",
            "structure/joint-discrete-and-continuous-one-part-summed-out",
            "structure/mixture-of-experts", "structure/hamiltonian-vae",
            "structure/dynamics-deep-markov-model-of-unequal-length-padded")  # fmt: skip


def when(path):
    if path in QUICK:
        return ()
    return pytest.mark.slow if path in TOGETHER[1::2] else pytest.mark.thorough


def reported(path, page):
    """The summary of a new model of that row, of six examples, and the headings of the page."""
    row = ROWS[path]
    found = data.read(data_of(row), NOWHERE)
    found = found._replace(test=jax.tree.map(lambda leaf: leaf[:6], found.test))
    fit = rule_of(row)(row, nnx.Rngs(0), found)
    model, xs, given = fit.scored(fit.model, seen(jax.random.key(0), found))
    model = fit.model if hasattr(fit.model, "encode") else model  # Padded is whole as it is
    # as a user has it
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        summary = plots.report(page, model, jax.random.key(1), xs, given=given, num_samples=30)
    return summary, page.read_text()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=when(path))
        for path in dict.fromkeys((*LEVELS, *CERTAIN, *LATENTS, *TOGETHER))
    ],
)
def test_a_report_of(path, tmp_path):
    summary, text = reported(path, tmp_path / "report.html")
    assert np.isfinite([summary.elbo, summary.rate, summary.log_marginal]).all()
    assert summary.certain == (path in CERTAIN)
    assert (summary.level_rates is not None) == (path in LEVELS)
    assert (summary.rates is not None) == (path in LATENTS)
    assert bool(summary.no_rates) == (path in (*TOGETHER, *CERTAIN))
    assert f"<h2>What each {'level' if path in LEVELS else 'latent'} says</h2>" in text
    assert ("log p(x) is <b>at least" in text) == (path in CERTAIN)
    assert ("What it makes up" in text) == (data_of(ROWS[path]) not in ("gappy table", "data frame",
            "counts", "halves", "text", "series", "padded series"))  # fmt: skip


@pytest.mark.usefixtures("stand_ins")
def test_a_report_of_what_has_a_density_in_training_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^OptimalNormal: .*elsewhere fix it"):
        reported("likelihood/gaussian-optimal-sigma", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
