"""Pictures of a built page: every figure at two widths, light and dark.

    uv run --group browser python -m experiments.explorable.screenshots [--page FILE] [--output DIR]

It drives the Chromium that is installed, and takes a minute or two. gallery.png, the picture of
docs/figures/explorable, is the first figure in fewer colours.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.common.command import command
from experiments.explorable.page import FIGURES

WIDTHS = (360, 1000)  # CSS pixels
SCHEMES = ("light", "dark")
SCALE = 2  # of a picture's pixels to these


def chromium() -> str | None:
    """Where a Chromium is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"], timeout=120_000
        )
        yield browser
        browser.close()


def small(picture: Path) -> Image.Image:
    """The picture in 256 colours: a third of the bytes, and no difference that one sees."""
    whole, method = Image.open(picture).convert("RGB"), Image.Quantize.MAXCOVERAGE
    return whole.quantize(256, method=method, kmeans=1, dither=Image.Dither.NONE)


def screenshots(browser: Any, page: Path, output: Path) -> list[Path]:
    """The pictures, `draw_360_dark.png` and so on."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            tab = browser.new_page(
                viewport={"width": width, "height": 900},
                device_scale_factor=SCALE,
                color_scheme=scheme,
            )
            tab.set_default_timeout(120_000)  # of a machine that is busy
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("body[data-ready]")
            for name in FIGURES:
                made.append(output / f"{name}_{width}_{scheme}.png")
                figure = tab.locator(f"figure#{name}")
                figure.scroll_into_view_if_needed()
                tab.wait_for_timeout(300)  # until it is drawn
                figure.screenshot(path=made[-1])
            tab.close()
    return made


def main(
    page: Path = Path("runs/explorable/story.html"), output: Path = Path("runs/explorable/figures")
) -> None:
    """Pictures of the page's figures.

    Args:
        page: that `python -m experiments.explorable` made.
        output: where the pictures go.
    """
    if not page.is_file():
        raise SystemExit(f"{page} is not there: python -m experiments.explorable --output {page}")
    if not find_spec("playwright"):
        raise SystemExit("playwright is not installed: uv run --group browser python -m ...")
    if not chromium():
        raise SystemExit("no Chromium on the path: apt-get install chromium")
    with launched() as browser:
        made = screenshots(browser, page, output)
    small(output / "draw_1000_light.png").save(output / "gallery.png", optimize=True)
    print(f"{len(made)} pictures in {output}")


if __name__ == "__main__":
    command(main, __doc__)
