"""docs/zoo.md and its pictures, of what is in the folder."""

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from experiments.common.methods import DOCS, ROWS, Row
from experiments.common.plotting import colour_rows, image_rows
from experiments.zoo.data import DATA
from experiments.zoo.tables import PART_OF

TITLES = {
    "prior": "Priors",
    "posterior": "Posteriors",
    "likelihood": "Likelihoods",
    "network": "Networks",
    "penalty": "Regularizers",
    "schedule": "Schedules",
    "codes": "Discrete codes",
    "structure": "Structures",
    "bound": "Bounds",
    "kl": "Rates",
    "gradient": "Gradients",
    "weighting": "How a batch stands for the data",
    "after": "After training",
    "disentanglement": "Disentanglement",
}
HEAD = """# The zoo

Every row of [methods](methods.md) and [bounds](bounds.md), trained: `python -m experiments.zoo`
writes this page. Rows on the same data have the same budget: network, optimiser (Adam at 1e-3),
steps and batch size. Numbers are for held-out examples, in nats per example: means over three
seeds, with the standard deviation over seeds.

- bound: what the row itself maximises; if that is penalized or relaxed, it is no bound on log p(x);
- NLL: -log p(x) by importance sampling, with its own standard error in brackets; compare rows on
  the same data by it. For densities of stored bytes it is the NLL of the bytes;
- k-hat: the share of examples whose NLL can be trusted; for the others it is probably too high;
- active: latents in use, of how many;
- CPU: seconds of processor time for the three seeds, including compilation.

A row that is a part of another runs with that one, or in a script of its own, which is named here.
A dash means that the row has no such number. A short budget, the same for all, favours what trains
fast: the page shows that a method runs and roughly what it does, not which one is best.

"""
PICTURED = {  # groups whose draws are shown -> what the eye finds in them, above all what fails
    "prior": "Of the others most draws are digits, and some fall between two.",
    "posterior": "By eye the others can't be told apart: most draws are digits, and some fall "
    "between two.",
    "likelihood": "All fail: after 1,000 steps no draw looks like a patch of a photograph. Most "
    "are noise; those of the continuous Bernoulli are one colour each.",
    "penalty": "VAE-GAN fails: its strokes are sharp, and most of its draws are no digit. The "
    "adversarial autoencoder and the RAEs fail in part: some draws are scraps.",
    "codes": "The first four rows fail: most draws are scraps, as their priors draw each code by "
    "itself. The autoregressive prior draws fewer of them.",
}


def write_page(folder: Path) -> None:
    """docs/zoo.md, of the groups whose rows are all done; the others are said to be missing."""
    groups: dict[str, list[Row]] = {}
    for row in ROWS.values():
        groups.setdefault(row.group, []).append(row)
    text, missing = HEAD + data_table(), []
    for group, rows in groups.items():
        told = {row.path: read(folder, row) for row in rows}
        if any(found is None and path not in PART_OF for path, found in told.items()):
            missing.append(TITLES.get(group, group).lower())
            continue
        text += f"\n## {TITLES.get(group, group)}\n\n"
        text += trained_table(rows, told) + found_table(rows, told)
        if (picture := draw(folder, group, rows)) is not None:
            text += f"\n![decoded draws, a row a line](figures/zoo/{picture})\n\n"
            caption = "Decoded draws of the prior, seed 0, a row a line."
            if gone := [r.name for r in rows if collapsed(told[r.path])]:
                caption += f" Collapsed, all draws alike: {', '.join(gone)}."
            text += fill(f"{caption} {PICTURED[group]}", 120, break_on_hyphens=False) + "\n"
    if missing:
        text += f"\nNot run yet: {', '.join(missing)}.\n"
    (DOCS / "zoo.md").write_text(text)


def data_table() -> str:
    lines = ["| data | what they are |", "|---|---|"]
    for name, made in DATA.items():
        said = " ".join((made.__doc__ or "").split())
        lines.append(f"| {name} | {said.rstrip('.')} |")
    return "\n".join(lines) + "\n"


def read(folder: Path, row: Row) -> dict[str, Any] | None:
    path = folder / f"{row.path}.json"
    return json.loads(path.read_text()) if path.exists() else None


def mean(told: dict[str, Any], name: str, digits: int = 2, spread: bool = True) -> str:
    values = [seed.get(name) for seed in told["seeds"]]
    if any(value is None for value in values):
        return "-"
    of = f"{np.mean(values):.{digits}f}"
    return f"{of} ± {np.std(values, ddof=1):.{digits}f}" if spread else of


def trained_table(rows: list[Row], told: dict[str, Any]) -> str:
    lines = ["| row | data | bound | NLL | k-hat | active | CPU |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        found = told[row.path]
        if row.path in PART_OF:
            where = PART_OF[row.path]
            where = where if where.startswith("no: ") else f"in `{where}`"
            lines.append(f"| `{row.name}` | {where} | | | | | |")
        elif found["on"] is None:
            error = mean(found, "error", spread=False)
            trusted = [seed.get("reliable") for seed in found["seeds"]]
            share = "-" if None in trusted else f"{np.mean(trusted):.0%}"
            active, latents = (mean(found, of, 1, False) for of in ("active", "latents"))
            active = active if active == "-" else f"{active} of {float(latents):.0f}"
            nll = mean(found, "nll")
            nll = nll if nll == "-" else f"{nll} ({error})"
            lines.append(
                f"| `{row.name}` | {found['data']} | {mean(found, 'bound')} | {nll} | {share} | "
                f"{active} | {found['seconds']:.0f} s |"
            )
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def found_table(rows: list[Row], told: dict[str, Any]) -> str:
    """Of rows that train nothing: what they say of the model of another row."""
    lines = ["", "| row | of the model of | says | CPU |", "|---|---|---|---|"]
    for row in rows:
        found = told[row.path]
        if found and found["on"] is not None:
            said = ", ".join(f"{name} {mean(found, name, 3)}" for name in found["seeds"][0])
            lines.append(f"| `{row.name}` | `{found['on']}` | {said} | {found['seconds']:.0f} s |")
    return "\n".join(lines) + "\n" if len(lines) > 3 else ""


def collapsed(found: dict[str, Any] | None) -> bool:
    """Whether no latent of seed 0 is in use."""
    return found is not None and found["seeds"][0].get("active") == 0


def draw(folder: Path, group: str, rows: list[Row]) -> str | None:
    """Decoded draws of each row's model of seed 0, the grey ones or the coloured; a file's name."""
    kept = {r.name: folder / f"{r.path}.npy" for r in rows}
    images = {name: np.load(path).astype(float) for name, path in kept.items() if path.exists()}
    shapes = [of.shape[1:] for of in images.values()]
    if not shapes or group not in PICTURED:
        return None
    common = max(set(shapes), key=shapes.count)
    images = {name: of for name, of in images.items() if of.shape[1:] == common}
    path = DOCS / f"figures/zoo/{group}.png"
    (colour_rows if common[-1] == 3 else image_rows)(path, images)
    return path.name
