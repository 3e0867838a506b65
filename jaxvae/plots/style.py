"""How pictures look: one style, colours that colour-blind readers can tell apart, ink dark."""

from typing import Any

from jaxvae.checks import Scalar, checked

try:
    import matplotlib
except ImportError:
    raise ImportError("jaxvae.plots draws with matplotlib; pip install 'jaxvae[plots]'") from None

# Okabe and Ito's palette; lines differ in dash or marker too
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
BLACK, GREY = "#222222", "#8c8c8c"
LINES = "#e4e4e4"  # of the grid

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINES,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def styled(draw: Any) -> Any:
    """A decorator: what the function draws is in this style; nothing else of matplotlib changes."""
    return matplotlib.rc_context(STYLE)(draw)


@checked
def figure(width: Scalar, height: Scalar) -> Any:
    """An empty `Figure` of so many inches; it belongs to no window and no global state.

    >>> figure(4.0, 3.0).get_size_inches().tolist()
    [4.0, 3.0]
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(float(width), float(height)), layout="constrained")
