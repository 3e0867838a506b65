"""Pictures of what a model has learned: arrays in, a matplotlib `Figure` out, nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvae.checks import Count, Floats, Numbers, Positive, Tree, checked
from jaxvae.evaluation import decode_all
from jaxvae.evaluation.rows import holds_bytes
from jaxvae.model import Model
from jaxvae.plots.style import BLUE, GREY, RED, figure, matplotlib, styled

SPLITS = {"train": (BLUE, "-"), "validation": (RED, "--")}
NAMES = ("elbo", "loss", "rate", "distortion")
POINTS = 300  # of a curve: means of as many steps as it takes
STEPS = 11  # of a traversal, an odd number, so that one is the middle


@checked
def mosaic(images: Numbers, columns: Count, *, gap: int = 1) -> np.ndarray:
    """Images [n, H, W] or [n, H, W, C] in [0, 1] as one image, row by row: [., ., 3].

    Bytes are from 0 to 255, unless there are none but zeros and ones. Grey images become ink on
    paper, three channels are red, green and blue, and of any other number each is a grey image, the
    first on the left.

    >>> mosaic(np.ones((3, 2, 2)), 2).shape  # two rows and columns, a line between them
    (5, 5, 3)
    """
    images = in_colour(images)
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 0.8, np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def in_colour(images: Any) -> np.ndarray:
    """Images [n, H, W] or [n, H, W, C], any C, as [n, H, W', 3], clipped to [0, 1]."""
    images = np.asarray(images) / 255.0 if holds_bytes(images) else images
    images = np.clip(np.asarray(images, np.float32), 0.0, 1.0)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"mosaic: images has shape {images.shape}, expected [n, H, W] or [n, H, W, C]"
        )
    images = images[..., None] if images.ndim == 3 else images
    n, h, _, channels = images.shape
    if channels == 3:
        return images
    side_by_side = np.moveaxis(images, 3, 2).reshape(n, h, -1, 1)
    return 1.0 - np.repeat(side_by_side, 3, axis=3)


@checked
@styled
def image_grid(images: Numbers, *, columns: Count = 10, title: str = "") -> Any:
    """Images in [0, 1], as `mosaic` takes them, as a picture.

    >>> image_grid(np.ones((3, 8, 8))).axes[0].get_title("left")
    ''
    """
    sheet = mosaic(images, columns)
    width = 4.6
    picture = figure(width, width * sheet.shape[0] / sheet.shape[1] + 0.3 * bool(title))
    axes = picture.subplots()
    axes.imshow(sheet, interpolation="none")
    axes.set_axis_off()
    axes.set_title(title)
    return picture


@checked
@styled
def learning_curves(
    metrics: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    at: Numbers | None = None,
    xlabel: str = "step",
) -> Any:
    """A panel for each of the metrics that is there, as `fit` returns them, in nats.

    `train_rate` and `validation_rate` share the panel of `rate`. Of many steps means are drawn, and
    the first twentieth, which would squeeze all others into a line, may lie outside.

    Args:
      metrics: name -> a number for each step or epoch; NaN where it was not measured.
      names: of the panels, from left to right; by default ELBO or loss, rate and distortion.
      at: where each was measured; by default 1, 2, ...
      xlabel: what that is.

    >>> learning_curves({"loss": np.arange(5.0), "speed": np.ones(5)}).axes[0].get_title("left")
    'loss'
    """
    panels = {name: _curves_of(metrics, name, at) for name in names or panels_of(metrics)}
    panels = {name: curves for name, curves in panels.items() if curves}
    if not panels:
        raise ValueError(
            f"learning_curves: metrics has {sorted(metrics)}, expected one of {names or NAMES}"
        )
    picture = figure(3.0 * len(panels), 2.6)
    for axes, (name, curves) in zip(picture.subplots(1, len(panels), squeeze=False)[0],
                                    panels.items(), strict=True):  # fmt: skip
        shown = []
        for split, (x, y) in curves.items():
            colour, dash = SPLITS[split]
            marker = "o" if len(x) == 1 else None  # a line of one point would not show
            axes.plot(x, y, color=colour, linestyle=dash, label=split, marker=marker)
            shown.append(y[len(y) // 20 :])
        low, high = min(map(np.min, shown)), max(map(np.max, shown))
        margin = 0.05 * (high - low) or 1.0
        title = "ELBO" if name == "elbo" else name
        axes.set(title=title, xlabel=xlabel, ylabel="nats", ylim=(low - margin, high + margin))
        if len(curves) > 1:
            axes.legend()
    return picture


def panels_of(metrics: Mapping[str, Any]) -> list[str]:
    """Those of NAMES that were measured; where the ELBO was, the loss would say it again."""
    found = [name for name in NAMES if _curves_of(metrics, name, None)]
    return [name for name in found if name != "loss" or "elbo" not in found]


def _curves_of(metrics: Mapping[str, Any], name: str, at: Any) -> dict[str, Any]:
    """Split -> x and y where y is finite, in at most POINTS means."""
    found = {}
    for key, split in ((name, "train"), (f"train_{name}", "train"),
                       (f"validation_{name}", "validation")):  # fmt: skip
        if key in metrics and np.ndim(metrics[key]) == 1:
            y = np.asarray(metrics[key], float)
            x = np.arange(1.0, len(y) + 1.0) if at is None else np.asarray(at, float)
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            size = -(-len(y) // POINTS)
            if size > 1:
                ends = np.arange(0, len(y), size)
                x, y = (np.add.reduceat(v, ends) / np.diff(np.append(ends, len(y))) for v in (x, y))
            if len(y):
                found[split] = x, y
    return found


@checked
@styled
def latent_rates(rates: Numbers, *, idle: Positive = 0.01) -> Any:
    """A bar for each latent's rate in nats, the largest first; those below `idle` in grey.

    Args:
      rates: as `evaluation.rate_per_latent` gives them, of any shape.

    >>> latent_rates(np.array([0.0, 2.0])).axes[0].get_title("left")
    'rate of each latent: 1 of 2 used'
    """
    rates = np.ravel(np.asarray(rates, float))
    order = np.argsort(-rates)
    picture = figure(3.6, 2.4)
    axes = picture.subplots()
    used = rates[order] > idle
    axes.bar(range(len(rates)), rates[order], color=np.where(used, BLUE, GREY), width=0.75)
    if len(rates) <= 20:
        axes.set_xticks(range(len(rates)), [f"z{i}" for i in order])
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="nats", title=f"rate of each latent: {used.sum()} of {len(rates)} used")
    if len(rates) > 20:
        axes.set_xlabel("latents, the largest rate first")
    return picture


@checked
@styled
def level_rates(rates: Numbers) -> Any:
    """A bar for each level's rate in nats, the level that is drawn first on the left.

    Args:
      rates: [levels], as `Summary.level_rates`.

    >>> level_rates(np.array([1.0, 2.0])).axes[0].get_title("left")
    'rate of each level: 3.00 nats in all'
    """
    rates = np.asarray(rates, float)
    picture = figure(3.6, 2.4)
    axes = picture.subplots()
    axes.bar(range(len(rates)), rates, color=BLUE, width=0.75)
    axes.set_xticks(range(len(rates)))
    axes.grid(visible=False, axis="x")
    title = f"rate of each level: {rates.sum():.2f} nats in all"
    axes.set(ylabel="nats", xlabel="levels, the first drawn on the left", title=title)
    return picture


def check_labels(owner: str, labels: Any, rows: int) -> None:
    if labels is not None and len(labels) != rows:
        raise ValueError(f"{owner}: labels are {len(labels)}, expected {rows}, one for each row")


@checked
@styled
def latent_map(means: Floats, labels: Any = None) -> Any:
    """Posterior means [n, d] in the plane of their two leading principal axes, coloured by label.

    Args:
      means: as `evaluation.encode_all` gives them.
      labels: one for each row, integers or text.

    Raises:
      ValueError: there aren't as many labels as rows, or a mean is not finite.

    >>> latent_map(np.eye(3), ["a", "a", "b"]).axes[0].get_title("left")
    'posterior means (100% of their variance)'
    """
    means = np.asarray(means, float)
    if means.ndim != 2:
        raise ValueError(f"latent_map: means has shape {means.shape}, expected [n, d]")
    check_labels("latent_map", labels, len(means))
    if (bad := ~np.isfinite(means).all(axis=1)).any():
        raise ValueError(f"latent_map: means of row {bad.argmax()} are not finite; leave it out")
    centred = means - np.mean(means, axis=0)
    padded = np.pad(centred, (0, 1))  # two axes at least, of one row or latent too
    _, spread, axes_of = np.linalg.svd(padded, full_matrices=False)
    share = (spread[:2] ** 2).sum() / max((spread**2).sum(), np.finfo(float).tiny)
    first, second = (centred @ axes_of[:2, :-1].T).T
    picture = figure(4.0, 3.3)
    axes = picture.subplots()
    dots = {"linewidths": 0, "rasterized": True}
    if labels is None:
        axes.scatter(first, second, s=6, color=BLUE, **dots)
    else:
        labels = np.asarray(labels)
        classes = np.unique(labels)
        colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "turbo"]
        for i, c in enumerate(classes):
            of_c = labels == c
            colour = colours(i if len(classes) <= 10 else i / len(classes))
            axes.scatter(first[of_c], second[of_c], s=9, color=colour, label=c, **dots)
        if len(classes) <= 10:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axes.set(
        title=f"posterior means ({share:.0%} of their variance)",
        xlabel="1st principal axis of E[z|x]",
        ylabel="2nd principal axis of E[z|x]",
        aspect="equal",
    )
    return picture


@checked
@styled
def traversals(
    model: Model,
    z: Floats,
    latents: Tree,
    *,
    rates: Numbers | None = None,
    full: Positive = 1.0,
    width: Positive = 3.0,
) -> Any:
    """One latent at a time moved from -3 to 3, or as far as `width` says, while the others stay.

    Args:
      model: one whose likelihood has images for its mean.
      z: the vector [d] that the others stay at.
      latents: which are moved, a row each.
      rates: [d], of each latent in nats, written beside its row.
      full: what a full pixel is.

    >>> import jax.numpy as jnp
    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> decode = lambda z: Normal(jnp.tile(z, (4, 2))[..., None], 1.0)
    >>> model = VAE(lambda x: Normal(x[0, :, 0], 1.0), decode, StandardNormal((2,)))
    >>> picture = traversals(model, np.zeros(2), np.array([1]), rates=np.array([0.0, 2.5]))
    >>> [label.get_text() for label in picture.axes[0].get_yticklabels()]
    ['z1, 2.5 nats']
    """
    rows, steps = np.asarray(latents), np.linspace(-width, width, STEPS)
    grid = np.tile(np.asarray(z), (len(rows), STEPS, 1))
    grid[np.arange(len(rows)), :, rows] = steps
    images = in_colour(np.asarray(decode_all(model, grid.reshape(-1, grid.shape[-1]))) / full)
    sheet = mosaic(images, STEPS)
    picture = figure(4.8, 3.8 * sheet.shape[0] / sheet.shape[1] + 0.6)
    axes = picture.subplots()
    axes.imshow(sheet, interpolation="none")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    height, across = images.shape[1] + 1, images.shape[2] + 1
    named = [f"z{i}" if rates is None else f"z{i}, {np.ravel(rates)[i]:.1f} nats" for i in rows]
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], named)
    middle = STEPS // 2
    axes.set_xticks(
        [across * (i + 0.5) for i in (0, middle, STEPS - 1)], [f"{-width:g}", "0", f"{width:g}"]
    )
    axes.set_title("one latent moved at a time")
    return picture
