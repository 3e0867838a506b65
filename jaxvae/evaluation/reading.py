"""What the numbers of a `Summary` mean, whether to trust them, and what to try next.

Every piece of advice is a rule of its own, a function of the numbers that has something to say or
nothing; `RULES` has them in the order in which they are worth reading.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvae.checks import checked
from jaxvae.evaluation.summaries import Summary
from jaxvae.training.monitoring import NEGLIGIBLE

Curves = Mapping[str, Any]
"""Name -> a value for each step or epoch, as `fit` returns."""
TRUSTED = 0.9  # share of rows below which an estimate is called a bound
IDLE = 0.1  # of the mean rate of a level, below which it is called idle
PRECISE = 0.1  # nats of standard error, from where it would be worth more samples
LOOSE = 0.1  # of the rate, from where a gap would be worth another posterior
OUTSIDE = "No: to some row the likelihood gives no probability at all."
PARTS = 10  # a curve's last tenth is held against the tenth before


class Line(NamedTuple):
    """A number with its name, what it means and whether to trust it."""

    name: str
    value: str
    meaning: str
    trust: str


def lines(s: Summary) -> list[Line]:
    """A line for each number of the summary.

    >>> found = Summary(100, -80.0, 20.0, 60.0, 9.0, -77.0, 0.02, 100, 500, 90.0, 1.0, 3.0, 8, 5)
    >>> lines(found)[0].value, lines(found)[0].trust
    ('-80.00', 'Yes. Another 100 rows would move it by about 0.90.')
    """
    sampled = f"{s.num_samples} importance samples for each of {s.estimated:,} rows"
    trust = trust_in(s)
    active = "unknown of one row" if s.active is None else f"{s.active} of {s.latents}"
    count = "How many of the importance samples count, in the median row."
    counted = "Yes. The fewer count, the less log p(x) can be trusted."
    return [
        Line("ELBO", f"{s.elbo:.2f}",
             "The bound that training raises: log p(x) is at least this, in nats a row.",
             trust_in_elbo(s)),
        Line("rate", f"{s.rate:.2f}",
             "KL(q(z|x) || p(z)): how much of x the latents hold, in nats.", "Yes."),
        Line("distortion", f"{s.distortion:.2f}",
             "-log p(x|z): what is still to be said of x when z is known. Below 0 where x is "
             "continuous and its density is large.", "Yes."),
        Line("log p(x)", log_marginal_of(s),
             f"How likely the model finds new rows, by {sampled}. The error is that of sampling; "
             "compare models by this number.", trust),
        Line("gap", f"{s.gap:.2f}",
             "log p(x) - ELBO on the same rows: how far q(z|x) is from the true posterior.",
             trust if is_trusted(s) else "It is at least this: log p(x) is a lower bound."),
        Line("effective samples", "1" if s.certain else f"{s.ess:.0f} of {s.num_samples}", count,
             "Yes: the code is certain, so that all samples are one." if s.certain else counted),
        Line("active latents", active,
             "Those whose posterior mean varies from row to row, by more than 0.01.",
             "Yes." if s.rows >= 100 else f"Roughly: of {s.rows} rows."),
    ]  # fmt: skip


def trust_in_elbo(s: Summary) -> str:
    """By how much it varies from row to row."""
    if not np.isfinite(s.elbo):
        return OUTSIDE
    if s.rows == 1:
        return "Of this row: how it varies from row to row one can't say."
    return f"Yes. Another {s.rows:,} rows would move it by about {s.spread / np.sqrt(s.rows):.2f}."


def log_marginal_of(s: Summary) -> str:
    """log p(x) with its error, or as a bound where that is known for certain."""
    if s.certain:
        return f"at least {s.log_marginal:.2f}"
    return f"{s.log_marginal:.2f} ± {s.standard_error:.2f}"


def is_trusted(s: Summary) -> bool:
    """Whether log p(x) is more than a bound."""
    return s.reliable >= TRUSTED and not s.certain


def trust_in(s: Summary) -> str:
    """Of log p(x), by the share of rows whose importance weights pass k-hat."""
    if not np.isfinite(s.log_marginal):
        return OUTSIDE
    if s.certain:
        return "As a lower bound only: the code of a row is certain, and this is its ELBO."
    if s.reliable >= TRUSTED:
        return f"Yes: k-hat passes for {s.reliable:.0%} of the rows."
    return f"As a lower bound only: k-hat passes for {s.reliable:.0%} of the rows."


def impossible(s: Summary, curves: Curves) -> str | None:
    del curves
    if np.isfinite([s.elbo, s.log_marginal]).all():
        return None
    if np.isnan([s.elbo, s.log_marginal]).any():
        return "The numbers are NaN: leave rows with NaN out, or look at the model."
    return (
        "Some rows have no probability: they lie outside the support of p(x|z), as a grey pixel "
        "under a Bernoulli. Choose a likelihood that fits the data, or preprocess them."
    )


def collapsed(s: Summary, curves: Curves) -> str | None:
    del curves
    if np.isnan(s.rate) or (s.active != 0 and s.rate >= NEGLIGIBLE):
        return None
    return (
        "The posterior has collapsed to the prior: no latent says anything of x. Warm beta up "
        "from 0, give each latent free bits, or take a smaller sigma of the likelihood, which "
        "makes the rate worth its price."
    )


def idle(s: Summary, curves: Curves) -> str | None:
    del curves
    if not s.active or s.active == s.latents:
        return None
    return (
        f"{s.latents - s.active} of {s.latents} latents are idle. That costs next to nothing: "
        f"{s.active} latents would do as well. To see whether more of them can be used, warm beta "
        "up from 0 or give each latent free bits."
    )


def idle_levels(s: Summary, curves: Curves) -> str | None:
    del curves
    rates = np.asarray([] if s.level_rates is None else s.level_rates)
    idle = int(np.sum(rates < IDLE * np.mean(rates))) if len(rates) else 0
    if not idle:
        return None
    return (
        f"{idle} of {len(rates)} levels of latents say next to nothing: their rates are "
        f"{', '.join(f'{rate:.2f}' for rate in rates)} nats from the top down. See that q of each "
        "level has x (models.Ladder, models.TopDown), and warm beta up from 0."
    )


def untrusted(s: Summary, curves: Curves) -> str | None:
    del curves
    if is_trusted(s):
        return None
    if s.certain:
        return (
            "log p(x) is a lower bound: the code of a row is certain, which is one importance "
            "sample, and more samples tell no more. Compare such models by the bound; a prior that "
            "is trained on the codes, as nn.PixelCNN, makes it tighter."
        )
    return (
        f"log p(x) is a lower bound: for {1 - s.reliable:.0%} of the rows the importance weights "
        "have too heavy a tail. Take more samples, a posterior that is nearer the truth, or "
        "annealed importance sampling, evaluation.bdmc, which bounds log p(x) from both sides."
    )


def imprecise(s: Summary, curves: Curves) -> str | None:
    del curves
    if not is_trusted(s) or s.standard_error < PRECISE:
        return None
    return (
        f"log p(x) has a standard error of {s.standard_error:.2f} nats: four times as many "
        "importance samples halve it."
    )


def loose(s: Summary, curves: Curves) -> str | None:
    del curves
    if not s.gap > max(LOOSE * s.rate, PRECISE) or s.active == 0:
        return None
    return (
        f"The ELBO is {s.gap:.2f} nats below log p(x), for a rate of {s.rate:.2f}: the posterior "
        "does not fit. Try a full covariance or a flow for q(z|x), or train on the IWAE bound."
    )


def overfitted(s: Summary, curves: Curves) -> str | None:
    del s
    values = held_out(curves)
    if len(values) < PARTS:
        return None
    best, (_, last) = int(np.argmax(values)), tenths(values)
    lost = float(values[best] - np.mean(last))
    if best >= len(values) - len(last) or lost < 3.0 * max(np.std(last), PRECISE):
        return None
    return (
        f"It overfits: on held-out rows the bound was best after {(best + 1) / len(values):.0%} of "
        f"the run and has lost {lost:.2f} nats since. Stop there (training.early_stopping), take a "
        "smaller network, or add data or dropout."
    )


def unfinished(s: Summary, curves: Curves) -> str | None:
    del s
    values = held_out(curves)
    values = values if len(values) else trained(curves)
    if len(values) < 2 * PARTS:
        return None
    before, last = tenths(values)
    gain = float(np.mean(last) - np.mean(before))
    noise = np.hypot(*(np.std(part) / np.sqrt(len(part)) for part in (before, last)))
    if gain < max(PRECISE, 2.0 * float(noise)):
        return None
    return (
        f"It still learns: the last tenth of the run gained {gain:.2f} nats. Train it longer; a "
        "run goes on from where it ended."
    )


def unstable(s: Summary, curves: Curves) -> str | None:
    skipped = s.skipped or int(np.sum(curves.get("skipped", 0)))
    if not skipped:
        return None
    return (
        f"{skipped} updates were not finite and were skipped: take a smaller learning rate, or "
        "clip the gradient."
    )


Rule = Callable[[Summary, Curves], str | None]
RULES: tuple[Rule, ...] = (
    impossible, collapsed, unstable, unfinished, overfitted, loose, untrusted, imprecise, idle,
    idle_levels,
)  # fmt: skip


@checked
def advice(summary: Summary, curves: Curves | None = None) -> list[str]:
    """What to try next: a sentence or two for each rule that has something to say.

    Args:
      curves: the run's metrics, as `fit` returns them; of held-out rows by names that begin with
        `validation_`; `skipped`, whether an update was skipped, is counted.

    >>> found = Summary(100, -80.0, 20.0, 60.0, 9.0, -79.0, 0.02, 100, 500, 90.0, 1.0, 1.0, 8, 5)
    >>> [text] = advice(found)
    >>> text.split(".")[0]
    '3 of 8 latents are idle'
    """
    said = (rule(summary, curves or {}) for rule in RULES)
    return [text for text in said if text is not None]


def held_out(curves: Curves) -> np.ndarray:
    """The bound on held-out rows along the run; empty where none was measured."""
    return _bound(curves, "validation_elbo", "validation_loss")


def trained(curves: Curves) -> np.ndarray:
    """The bound on the rows it is trained on."""
    return _bound(curves, "train_elbo", "train_loss", "elbo", "loss")


def _bound(curves: Curves, *names: str) -> np.ndarray:
    """The first of these that is there, to be maximised, where it is finite."""
    for name in names:
        if name in curves:
            values = np.asarray(curves[name], float) * (-1.0 if name.endswith("loss") else 1.0)
            return values[np.isfinite(values)]
    return np.zeros(0)


def tenths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last tenth of a curve, behind the tenth before it."""
    size = max(len(values) // PARTS, 1)
    return values[-2 * size : -size], values[-size:]
