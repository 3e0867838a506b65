"""Every public name of jaxvae, read off the packages' `__init__`s, and where its entry stands.

A package exports a name by `from module import name as name`. What is exported twice, as
`jaxvae.elbo` and `jaxvae.bounds.elbo`, has one entry, under the shortest name. The entry stands on
the page of the folder that the thing is written in, under the heading of its module.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from inspect import cleandoc, ismodule
from pathlib import Path
from typing import Any, NamedTuple

import jaxvae

PAGES = {  # folder -> its title, in the order of the site
    "jaxvae": "Models and batches",
    "jaxvae.bounds": "Bounds",
    "jaxvae.gradients": "Gradient estimators",
    "jaxvae.distributions": "Distributions",
    "jaxvae.bijectors": "Bijectors",
    "jaxvae.regularizers": "Regularizers",
    "jaxvae.models": "Model families",
    "jaxvae.models.quantization": "Quantizers and codes",
    "jaxvae.models.state_space": "Sequences of latents",
    "jaxvae.nn": "Networks and heads",
    "jaxvae.training": "Training",
    "jaxvae.training.checkpoints": "Checkpoints",
    "jaxvae.evaluation": "Evaluation",
    "jaxvae.evaluation.disentanglement": "Disentanglement",
    "jaxvae.plots": "Pictures",
    "jaxvae.pytrees": "Pytrees",
    "jaxvae.checks": "Kinds of arguments",
}
# nn, which imports flax, and plots, which imports matplotlib, are imported where they are asked for
ROOTS = ["jaxvae", "jaxvae.nn", "jaxvae.plots", "jaxvae.checks.kinds"]
NOT_FOR_USERS = {"Check", "check_fields", "check_instance", "checks_of"}  # of the last


class Entry(NamedTuple):
    """A public thing.

    Args:
      names: all its names, the shortest, which a user types, first.
      home: the module it is written in.
      value: itself.
    """

    names: tuple[str, ...]
    home: str
    value: Any

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def page(self) -> str:
        return self.home if self.home in PAGES else self.home.rpartition(".")[0]

    @property
    def node(self) -> ast.stmt:
        return definitions(self.home)[self.name.rpartition(".")[2]][0]

    @property
    def file(self) -> str:
        """Its module's, as `jaxvae/bounds/evidence.py`."""
        path = Path(str(import_module(self.home).__file__))
        return str(path.relative_to(Path(jaxvae.__file__).parents[1]))

    @property
    def text(self) -> str:
        """Its docstring: of what is no class and no function, the string below its assignment."""
        return definitions(self.home)[self.name.rpartition(".")[2]][1]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(Path(str(import_module(module).__file__)).read_text())


@cache
def definitions(module: str) -> dict[str, tuple[ast.stmt, str]]:
    """Name -> what a module defines at its top, and what it says of it."""
    found: dict[str, tuple[ast.stmt, str]] = {}
    body = tree_of(module).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            below = after.value if isinstance(after, ast.Expr) else None
            text = below.value if isinstance(below, ast.Constant) else ""
            found[node.targets[0].id] = node, cleandoc(str(text))
    return found


def exports(module: str) -> dict[str, str]:
    """Name -> the module that it is imported from."""
    found = {}
    for node in tree_of(module).body:
        if isinstance(node, ast.ImportFrom):
            found |= {a.name: str(node.module) for a in node.names if a.asname == a.name}
    return found


def home(module: str, name: str) -> str:
    """The module in which what `module` gives under this name is written."""
    return home(exports(module)[name], name) if name in exports(module) else module


def public(path: str, module: str) -> Iterator[tuple[str, str, Any]]:
    """(name as typed, home, value) of a namespace and of those in it; `path` is how it is typed."""
    package = import_module(module)
    names = list(exports(module))
    if not names:  # a module that is a namespace itself
        defined = definitions(module).items()
        names = [n for n, (_, text) in defined if text and not n.startswith("_")]
    for name in names:
        value = getattr(package, name)
        if ismodule(value):
            yield from public(f"{path}.{name}", value.__name__)
        elif name not in NOT_FOR_USERS:
            yield f"{path}.{name}", home(module, name), value


@cache
def entries() -> tuple[Entry, ...]:
    """One for each public thing, in the order of pages and of modules."""
    found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
    for root in ROOTS:
        for name, where, value in public(root.removesuffix(".kinds"), root):
            found.setdefault((where, name.rpartition(".")[2]), []).append((name, value))
    made = [
        Entry(
            tuple(sorted((n for n, _ in same), key=lambda n: (n.count("."), n))), where, same[0][1]
        )
        for (where, _), same in found.items()
    ]
    return tuple(sorted(made, key=lambda e: list(PAGES).index(e.page)))
