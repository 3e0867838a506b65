"""Pictures of several experiments, in the style of `jaxvae.plots`."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from jaxvae.plots import figure as figure
from jaxvae.plots import styled as styled
from jaxvae.plots.style import BLACK as BLACK
from jaxvae.plots.style import BLUE as BLUE
from jaxvae.plots.style import GREEN as GREEN
from jaxvae.plots.style import GREY as GREY
from jaxvae.plots.style import ORANGE as ORANGE
from jaxvae.plots.style import RED as RED


def save(picture: Figure, path: Path, **how: Any) -> None:
    """As a PNG, sharp on screens of twice the resolution; 256 colours take a third of the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(drawn := BytesIO(), dpi=2 * 110, **how)
    Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)


def show_images(ax: Axes, images: Any, label: str = "", *, rows: int = 1) -> None:
    """Images [n, side * side] in so many rows, ink (1) dark on white (0), clipped to that range."""
    images = np.asarray(images)
    side = round(images.shape[1] ** 0.5)
    cells = images.reshape(rows, -1, side, side)
    cells = np.pad(cells, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sheet = cells.transpose(0, 2, 1, 3).reshape(rows * (side + 2), -1)
    ax.imshow(sheet, cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_ylabel(label, rotation=0, ha="right", va="center")


@styled
def image_rows(path: Path, rows: dict[str, Any], *, lines: int = 1) -> None:
    """Images [n, ...] of each label, below those of the label before, in so many lines."""
    columns = len(next(iter(rows.values()))) // lines
    picture = figure(1.2 + 0.35 * columns, 0.36 * lines * len(rows) + 0.1)
    axes = picture.subplots(len(rows), squeeze=False)[:, 0]
    for ax, (label, images) in zip(axes, rows.items(), strict=True):
        images = np.asarray(images)
        show_images(ax, images.reshape(len(images), -1), label, rows=lines)
        ax.grid(visible=False)
    save(picture, path, bbox_inches="tight", pad_inches=0.05)  # with labels of any length


@styled
def colour_rows(path: Path, rows: dict[str, Any]) -> None:
    """Images [n, h, w, 3] of each label, values 0..1, one row below the other."""
    longest = max(len(images) for images in rows.values())
    picture = figure(1.8 + 0.4 * longest, 0.43 * len(rows))
    for ax, (label, images) in zip(picture.subplots(len(rows)), rows.items(), strict=True):
        around = (0, longest - len(images)), (1, 1), (1, 1), (0, 0)
        padded = np.pad(np.clip(images, 0.0, 1.0), around, constant_values=1.0)
        ax.imshow(np.concatenate(padded, axis=1), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
    save(picture, path, bbox_inches="tight", pad_inches=0.05)


def gaussian_contour(loc: Any, scale_tril: Any, radius: float) -> np.ndarray:
    """The ellipse mu + radius L u, |u| = 1, of a Gaussian in the plane, shape [2, 100]."""
    angle = np.linspace(0.0, 2.0 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(loc)[:, None] + radius * np.asarray(scale_tril) @ circle


@styled
def forecast_bands(
    path: Path, panels: dict[str, Any], *, seen: int, rows: int = 1, shown: str = ""
) -> None:
    """Series that go on after `seen` steps, and where forecasts had them: median and 90 %.

    Args:
      path: of the picture.
      panels: title -> (the whole series [t], draws of what comes after `seen` steps [draws, ...]).
      seen: steps before the forecast.
      rows: of panels.
      shown: what the series are of.
    """
    picture = figure(8.0, 2.2 * rows)
    columns = -(-len(panels) // rows)
    axes = picture.subplots(rows, columns, sharex=True, sharey="row", squeeze=False)
    for ax, (title, (series, draws)) in zip(axes.flat, panels.items(), strict=False):
        t = np.arange(seen, len(series))
        low, middle, high = np.quantile(draws[:, : len(t)], [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(t + 1, low, high, color=BLUE, alpha=0.25, lw=0, label="90 % of the draws")
        ax.plot(t + 1, middle, color=BLUE, ls="--", label="their median")
        ax.plot(np.arange(len(series)) + 1, series, color=BLACK, marker=".", label="the series")
        ax.set_title(title)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel(shown)
    for ax in axes.flat[len(panels) - columns : len(panels)]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("step")
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(picture, path)
