"""Pictures of a trained VAE: what a person wants to see before believing a number."""

from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes

from experiments.common.evaluate import generated, reconstructed
from experiments.common.plotting import BLUE, RED, figure, save, styled
from jaxvae.evaluation import decode_all


def in_colour(images: Any) -> np.ndarray:
    """Images [n, H, W, C] in [0, 1], any C, as [n, H, W', 3].

    Grey ones become ink on paper, three channels are red, green and blue, and of any other number
    each is a grey image, the first on the left.
    """
    images = np.clip(np.asarray(images, np.float32), 0, 1)
    n, h, _, channels = images.shape
    if channels == 3:
        return images
    side_by_side = np.moveaxis(images, 3, 2).reshape(n, h, -1, 1)
    return 1 - np.repeat(side_by_side, 3, axis=3)


def show(axes: Axes, images: Any, columns: int, gap: int = 1) -> None:
    """Images [n, H, W, C] in [0, 1] as one mosaic, row by row."""
    images = in_colour(images)
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), np.float32) * 0.8
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()


@styled
def learning_curves(path: Path, lines: list[dict[str, float]]) -> None:
    """Bound, rate and distortion against the epoch, on train and validation."""
    epochs = [line["epoch"] for line in lines]
    settled = len(lines) // 20  # the first epochs would squeeze all others into a line
    picture = figure(9, 2.8)
    axes = picture.subplots(1, 3)
    for axis, name in zip(axes, ("ELBO", "rate", "distortion"), strict=True):
        shown = []
        for split, colour in (("train", BLUE), ("validation", RED)):
            key = f"{split}_{name.lower()}"
            if key in lines[0]:
                values = [line[key] for line in lines]
                marker = "o" if len(lines) == 1 else None  # a line of one point would not show
                axis.plot(epochs, values, color=colour, label=split, marker=marker)
                shown += [value for value in values[settled:] if np.isfinite(value)]
        if shown:
            margin = 0.05 * (max(shown) - min(shown)) or 1.0
            axis.set_ylim(min(shown) - margin, max(shown) + margin)
        axis.set(title=name, xlabel="epoch")
    axes[0].set_ylabel("nats an image")
    axes[0].legend()
    save(picture, path)


@styled
def reconstructions(path: Path, model: Any, key: jax.Array, xs: Any, full: float = 1.0) -> None:
    """Test images, whose full pixels are `full`, beside the means of their reconstructions."""
    means = in_colour(reconstructed(model, key, xs) / full)
    pairs = np.concatenate([in_colour(xs / full), means], axis=2)  # side by side
    picture = figure(6.4, 0.41 * len(xs) / 8 + 0.4)
    axis = picture.subplots()
    show(axis, pairs, columns=8)
    axis.set_title("test images (left of each pair) and their reconstructions (right)")
    save(picture, path)


@styled
def samples(path: Path, model: Any, key: jax.Array, count: int = 100, *, full: float = 1.0) -> None:
    """Means of p(x|z) at draws z ~ p(z)."""
    picture = figure(4.6, 4.9)
    axis = picture.subplots()
    show(axis, generated(model, key, count) / full, columns=10)
    axis.set_title("decoded draws of the prior")
    save(picture, path)


@styled
def latent_map(path: Path, means: Any, labels: Any) -> None:
    """Posterior means [n, d] of test images, coloured by label: the two leading principal axes."""
    means = np.asarray(means)
    means = means - means.mean(axis=0)
    padded = np.pad(means, (0, 1))  # two axes at least, of one image or latent too
    _, spread, axes = np.linalg.svd(padded, full_matrices=False)
    share = (spread[:2] ** 2).sum() / max((spread**2).sum(), np.finfo(float).tiny)
    first, second = (means @ axes[:2, :-1].T).T
    picture = figure(5.2, 4.6)
    axis = picture.subplots()
    if labels is None:
        axis.scatter(first, second, s=6, color=BLUE, linewidths=0)
    else:
        classes = np.unique(labels)
        colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "turbo"]
        for i, c in enumerate(classes):
            at = labels == c
            colour = colours(i if len(classes) <= 10 else i / len(classes))
            axis.scatter(first[at], second[at], s=9, color=colour, label=c, linewidths=0)
        if len(classes) <= 10:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axis.set(
        title=f"posterior means of test images ({share:.0%} of their variance)",
        xlabel="1st principal axis of E[z|x]",
        ylabel="2nd principal axis of E[z|x]",
        aspect="equal",
    )
    save(picture, path)


@styled
def traversals(
    path: Path,
    model: Any,
    z: Any,
    order: Any,
    rates: Any = None,
    count: int = 8,
    *,
    full: float = 1.0,
) -> None:
    """One latent at a time moved from -3 to 3 while the others stay at z, in that order.

    Beside each its rate in nats, where it is given: at 0 the decoder has not learned to listen.
    """
    steps, rows = np.linspace(-3, 3, 11), np.asarray(order)[:count]
    grid = np.tile(np.asarray(z), (len(rows), len(steps), 1))
    grid[np.arange(len(rows)), :, rows] = steps
    images = in_colour(decode_all(model, grid.reshape(-1, grid.shape[-1])) / full)
    labels = [f"z{i}" if rates is None else f"z{i}, {rates[i]:.2f} nats" for i in rows.tolist()]
    picture = figure(6.0, 0.45 * len(rows) + 0.9)
    axis = picture.subplots()
    show(axis, images, columns=len(steps))
    height, width = images.shape[1] + 1, images.shape[2] + 1
    axis.set_axis_on()
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_yticks([height * i + height / 2 for i in range(len(rows))], labels)
    axis.set_xticks([width / 2, width * 5.5, width * 10.5], ["-3", "0", "3"])
    by = "of most variance" if rates is None else "of the highest rate"
    axis.set_title(f"one latent moved at a time, that {by} first")
    save(picture, path, bbox_inches="tight", pad_inches=0.05)
