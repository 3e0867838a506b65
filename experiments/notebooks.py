"""Run one notebook as Jupyter would, cell after cell, and keep its picture.

    uv run python -m experiments.notebooks docs/notebooks/01_quick_start.md [--picture]

A notebook is MyST text: its cells are the blocks that begin with ```{code-cell}. They run in an
empty folder, and what they print is printed. With --picture the figure that is open when a cell
ends goes to docs/figures/notebooks/, under the notebook's name; the last one is kept.
"""

import re
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro
from matplotlib import pyplot as plt

from experiments.common.command import command

PICTURES = Path(__file__).parent.parent / "docs/figures/notebooks"
DPI = 160  # twice what a screen has


def cells(text: str) -> list[str]:
    """The code of every cell, behind as many empty lines as stand above it in the text."""
    found = re.finditer(r"^```\{code-cell\} python\n(.*?)^```$", text, flags=re.DOTALL | re.M)
    return ["\n" * text.count("\n", 0, cell.start(1)) + cell[1] for cell in found]


def main(notebook: tyro.conf.Positional[Path], picture: bool = False) -> None:
    path = notebook.resolve()
    plt.switch_backend("agg")
    namespace = {"__name__": "__main__"}
    with TemporaryDirectory() as folder, chdir(folder):
        for cell in cells(path.read_text()):
            exec(compile(cell, str(path), "exec"), namespace)
            if picture and plt.get_fignums():
                file, smaller = PICTURES / f"{path.stem}.png", {"optimize": True}
                plt.savefig(file, dpi=DPI, bbox_inches="tight", pil_kwargs=smaller)
            plt.close("all")


if __name__ == "__main__":
    command(main, __doc__)
