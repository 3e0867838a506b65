"""Links of what pages name in code: parts of the library, and scripts, which are shown whole."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from public_names import entries
from signatures import member
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
OUTSIDE = {  # what annotations name besides
    "Array": "https://docs.jax.dev/en/latest/_autosummary/jax.Array.html",
    "Any": "https://docs.python.org/3/library/typing.html#typing.Any",
    "Callable": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Callable",
    "Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
}
ENTRY = {name: entry.name for entry in entries() for name in entry.names}
BY_NAME = {entry.name: entry for entry in entries()}
SHORT: dict[str, list[str]] = defaultdict(list)  # last part -> names that end in it
for entry in entries():
    SHORT[entry.name.rpartition(".")[2]].append(entry.name)


def script_of(code: str) -> str:
    """The file that `python -m experiments.story` or `tests/test_docs.py` names, if any."""
    if found := re.search(r"\b(?:experiments|tests)/[\w/]+\.py\b", code):
        paths = [ROOT / found[0]]
    elif found := re.search(r"\bexperiments(?:\.\w+)+", code):
        path = ROOT / found[0].replace(".", "/")
        paths = [path.with_suffix(".py"), path / "__main__.py", path.parent.with_suffix(".py")]
    else:
        paths = (ROOT / "tests").rglob(code) if re.fullmatch(r"test_\w+\.py", code) else []
    return next((str(path.relative_to(ROOT)) for path in paths if path.is_file()), "")


def entry_of(code: str, node: nodes.Node) -> str:
    """The entry of `jaxvae.elbo`, `jv.elbo(...)`, `nn.MLP` or `elbo`; in a docstring of all names
    of the library that are not those of its own parameters."""
    name = re.sub(r"\(.*\)$", "", re.sub(r"^jv\.", "jaxvae.", code), flags=re.DOTALL)
    full = name if name.startswith("jaxvae.") else f"jaxvae.{name}"
    described = next((n for n in above(node) if isinstance(n, addnodes.desc)), None)
    if described is None or "." in name:
        return ENTRY.get(full, "")
    own = [n.astext().partition(":")[0] for n in described.findall(addnodes.desc_parameter)]
    found = [] if name in own else sorted(SHORT.get(name, []), key=lambda n: n.count("."))
    return found[0] if found else ""


def above(node: Any) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


class Links(SphinxTransform):
    """Makes a link of each `code` that names a thing, and of each link to a script."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        for node in [*self.document.findall(nodes.literal)]:
            inside = nodes.reference | addnodes.pending_xref | nodes.title | addnodes.desc_signature
            if any(isinstance(n, inside) for n in above(node)):
                continue
            code = node.astext()
            if path := script_of(code):
                node.replace_self(self.link("script", path, node))
            elif name := entry_of(code, node):
                node.replace_self(self.link("obj", name, node))
        for node in [*self.document.findall(addnodes.download_reference)]:
            path = (self.env.doc2path(self.env.docname).parent / node["reftarget"]).resolve()
            if path.suffix == ".py" and path.is_relative_to(ROOT):
                node.replace_self(self.link("script", str(path.relative_to(ROOT)), *node.children))

        for node in [*self.document.findall(addnodes.desc_signature)]:
            if node["ids"] and (place := source_of(node["ids"][0])):
                text = nodes.inline("", "[source]", classes=["viewcode-link"])
                node.append(self.link("script", place, text))

    def link(self, kind: str, target: str, *inside: nodes.Node) -> nodes.Node:
        if kind == "script":
            scripts_of(self.env).add(target.partition("#")[0])
        domain = "py" if kind == "obj" else ""
        made = addnodes.pending_xref("", reftype=kind, refdomain=domain, reftarget=target)
        made.extend(node.deepcopy() for node in inside)
        return made


def source_of(name: str) -> str:
    """File and line of a public name or a method of one: `jaxvae/bounds/evidence.py#L-41`."""
    if entry := BY_NAME.get(name):
        return f"{entry.file}#L-{entry.node.lineno}"
    owner, _, method = name.rpartition(".")
    if entry := BY_NAME.get(owner):
        node = member(entry.node, method)
        return f"{entry.file}#L-{node.lineno}" if node else ""
    return ""


def scripts_of(env: Any) -> set[str]:
    """The files that pages link to."""
    if not hasattr(env, "linked_scripts"):
        env.linked_scripts = set()
    return env.linked_scripts


def resolve(app: Any, env: Any, node: Any, inside: Any) -> nodes.reference | None:
    """Links that Sphinx cannot resolve itself."""
    target = node["reftarget"]
    if node["reftype"] == "script":
        path, _, line = target.partition("#")
        uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), f"source/{path}")
        uri += f"#{line}" if line else ""
        return nodes.reference("", "", *node.children, internal=True, refuri=uri)
    if target in OUTSIDE:
        return nodes.reference("", "", inside, internal=False, refuri=OUTSIDE[target])
    return None


def sources(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """A page for each file that another page links to."""
    for path in sorted(scripts_of(app.env)):
        code = app.builder.highlighter.highlight_block(
            (ROOT / path).read_text(), "python", lineanchors="L"
        )
        module = path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
        run = f"<p><code>python -m {module}</code></p>" if path.startswith("experiments") else ""
        yield f"source/{path}", {"title": path, "body": f"<h1>{path}</h1>{run}{code}"}, "page.html"
