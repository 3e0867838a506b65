"""The reference: a page for each folder of jaxvae, written from the public names."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from docstrings import as_rst, escaped
from public_names import PAGES, Entry, entries


def write_pages(app: Any) -> None:
    """When the site is built; a page that has not changed is left alone."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{slug(name)}.rst": "\n".join(page(name)) for name in PAGES}
    for path in {*folder.iterdir()} - {*pages}:
        path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def slug(page: str) -> str:
    """Of `jaxvae.models.quantization` the name of its page, `quantization`."""
    return page.removeprefix("jaxvae").rpartition(".")[2] or "model"


def page(name: str) -> Iterator[str]:
    """The lines of a page: what its folder is, a table of its names, then module by module."""
    here = [entry for entry in entries() if entry.page == name]
    yield from heading(PAGES[name], "=")
    if name != "jaxvae":
        yield from (*as_rst(import_module(name).__doc__ or ""), "")
    yield from (".. list-table::", "   :class: names", "   :widths: auto", "")
    for entry in here:
        line = as_rst(entry.text.strip().partition("\n")[0])[0]
        yield from (f"   * - :py:obj:`{entry.name}`", f"     - {line}")
    yield ""
    for home in dict.fromkeys(entry.home for entry in here):
        title, *rest = said_of(home)
        if home != name:
            yield from (*heading(title, "-"), *rest, "")
        for entry in here:
            if entry.home == home:
                yield from (*directive(entry), "")


def heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def said_of(module: str) -> list[str]:
    """The first clause of a module's docstring, for a heading, and the rest of that in lines."""
    first, _, rest = (import_module(module).__doc__ or "").strip().partition("\n")
    clause, _, more = first.partition(": ")
    if not more:
        return [escaped(clause.rstrip(".")), *as_rst(rest)]
    return [escaped(clause), *as_rst(f"{more[0].upper()}{more[1:]}\n{rest}")]


def directive(entry: Entry) -> Iterator[str]:
    """The lines of an entry."""
    if isinstance(entry.node, ast.Assign):
        yield f".. py:data:: {entry.name}"
        yield f"   :canonical: {entry.home}.{entry.name.rpartition('.')[2]}"
        yield f"   :value: {ast.unparse(entry.node.value)}"
        yield from ("", *(f"   {line}" for line in as_rst(entry.text)))
    elif isinstance(entry.node, ast.ClassDef):
        error = isinstance(entry.value, type) and issubclass(entry.value, Exception)
        yield f".. auto{'exception' if error else 'class'}:: {entry.name}"
        yield "   :members:"
    else:
        yield f".. autofunction:: {entry.name}"
    if len(entry.names) > 1:
        yield from ("", f"   Also {', '.join(f'``{name}``' for name in entry.names[1:])}.")
