"""report.html: one file that explains a run, with its pictures in it and nothing to be fetched."""

import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import jax

from jaxvae.batching import number_of_rows
from jaxvae.checks import Count, Key, Location, Positive, Tree, checked
from jaxvae.evaluation import Summary, advice, summarize
from jaxvae.evaluation.reading import lines, log_marginal_of, trust_in
from jaxvae.evaluation.use import Used
from jaxvae.plots.figures import check_labels, learning_curves, panels_of
from jaxvae.plots.model_pictures import pictures
from jaxvae.plots.style import LINES, matplotlib
from jaxvae.training.checkpoints.durable import write_text

WIDER = 1.5  # than a figure is its place on the page, at most
CAPTIONS = {  # name -> heading, and what there is to be seen
    "learning_curves": (
        "How it learned",
        "Along the run. Where the dashed line turns down while the other still rises, the model "
        "has begun to learn its rows by heart.",
    ),
    "reconstructions": (
        "What it remembers",
        "Rows that it was not trained on, each with the mean of p(x|z) at a z drawn from q(z|x) on "
        "its right. What is missing there is not in the latents.",
    ),
    "samples": (
        "What it makes up",
        "Means of p(x|z) at draws of the prior. If these are worse than the reconstructions, the "
        "posteriors leave holes in the prior, or lie outside it.",
    ),
    "latent_rates": (
        "What each latent says",
        "In nats, the mean over the rows. A grey one is idle: its posterior is the prior.",
    ),
    "level_rates": (
        "What each level says",
        "In nats, the mean over the rows, given the levels drawn before it. A level of 0 is idle.",
    ),
    "latent_map": (
        "Where the rows lie",
        "The posterior mean of each row, seen along the two directions in which they differ most.",
    ),
    "traversals": (
        "What each latent changes",
        "One latent of a row moved while the others stay, in the order of their rates. Beyond ±2 "
        "few rows lie, and the pictures may make no sense.",
    ),
}
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


@checked
def write_report(
    path: Location,
    summary: Summary,
    *,
    title: str,
    drawn: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    xlabel: str = "step",
) -> None:
    """Write report.html of what was measured and drawn: one file, dark and light, for any width.

    Args:
      summary: as `evaluation.summarize` gives it.
      title: what the run is called.
      drawn: name -> figure; those that `pictures` makes have captions.
      config: what the run was begun with.
      metrics: along the run, as `fit` returns them.
      xlabel: what they are measured at.
    """
    metrics = metrics or {}
    panels = panels_of(metrics)
    curves = [learning_curves(metrics, names=(name,), xlabel=xlabel) for name in panels]
    parts = [_figure("learning_curves", curves)] if curves else []
    parts += [_figure(name, [picture]) for name, picture in drawn.items()]
    if summary.no_rates:
        heading, _ = CAPTIONS["latent_rates"]
        parts.append(f"<h2>{escape(heading)}</h2>\n<p>{escape(summary.no_rates)}</p>\n")
    told = f"{'is' if summary.certain else '='} <b>{log_marginal_of(summary)}</b>"
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="verdict">log p(x) {told} nats a row,
ELBO <b>{summary.elbo:.2f}</b>. Can log p(x) be trusted? {escape(trust_in(summary))}</p>
{_numbers(summary)}
{_advice(summary, metrics)}
{"".join(parts)}
{_config(config or {})}
</main>
</body>
</html>
"""
    write_text(Path(path), text)


@checked
def report(
    path: Location,
    model: Used,
    key: Key,
    xs: Tree,
    *,
    given: Tree | None = None,
    title: str = "A variational autoencoder",
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    labels: Any = None,
    full: Positive | None = None,
    num_samples: Count = 500,
    num_rows: Count = 1000,
) -> Summary:
    """Measure a model, draw it and write the page: what came out, can it be trusted, what next.

    Arguments as those of `evaluation.summarize`, `pictures` and `write_report`, which it calls.

    Raises:
      IsADirectoryError: there is a folder at `path`; folders above it that are missing are made.
      ValueError: there aren't as many labels as rows; the ELBO of a row is NaN.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> rows, folder = jnp.linspace(-1.0, 1.0, 300).reshape(100, 3), tempfile.mkdtemp()
    >>> found = report(f"{folder}/report.html", model, jax.random.key(0), rows, num_samples=50)
    >>> round(found.elbo, 2) <= round(found.log_marginal, 2)
    True
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"report: path is {path}, a folder, expected that of a file")
    check_labels("report", labels, number_of_rows(xs, "report"))
    summary_key, picture_key = jax.random.split(key)
    how = {"num_samples": num_samples, "num_rows": num_rows}
    found = summarize(model, summary_key, xs, given=given, **how)
    rates = {"rates": found.rates, "rates_of_levels": found.level_rates}
    drawn = pictures(model, picture_key, xs, given=given, labels=labels, full=full, **rates)
    write_report(path, found, title=title, drawn=drawn, config=config, metrics=metrics)
    return found


def _numbers(summary: Summary) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(line.name)}</th><td class=number>{escape(line.value)}</td>"
        f"<td>{escape(line.meaning)}</td><td>{escape(line.trust)}</td></tr>\n"
        for line in lines(summary)
    )
    head = "<tr><th scope=col>number</th><th scope=col class=number>nats a row</th>"
    head += "<th scope=col>what it means</th><th scope=col>can it be trusted?</th></tr>"
    return f"<h2>What came out</h2>\n<table class=lines>\n<thead>{head}</thead>\n{rows}</table>"


def _advice(summary: Summary, metrics: Mapping[str, Any]) -> str:
    found = advice(summary, metrics) or ["Nothing stands out."]
    items = "".join(f"<li>{escape(text)}</li>\n" for text in found)
    return f"<h2>What to try next</h2>\n<ul>\n{items}</ul>"


def _config(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(str(value))}</td></tr>\n"
        for name, value in config.items()
    )
    return f"<h2>Configuration</h2>\n<table class=config>\n{rows}</table>" if rows else ""


def _figure(name: str, drawn: list[Any]) -> str:
    heading, caption = CAPTIONS.get(name, (name.replace("_", " "), ""))
    inside = "".join(as_svg(picture, f"{heading}. {caption}") for picture in drawn)
    return (
        f'<h2>{escape(heading)}</h2>\n<figure class="{escape(name)}">\n'
        f"<div>{inside}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


@checked
def as_svg(picture: Any, description: str = "") -> str:
    """A figure as an SVG element whose ink and grid have the colours of the page around it."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxvae"}):
        picture.savefig(written, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor").replace(LINES, "var(--line)")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # axes_1 of one figure and of the next
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[^"]*"', "", svg, count=2)  # those of the whole
    width = WIDER * picture.get_size_inches()[0]
    told = f'role="img" aria-label="{escape(description)}" style="max-width:{width:.1f}in"'
    return svg.replace("<svg ", f"<svg {told} ", 1)
