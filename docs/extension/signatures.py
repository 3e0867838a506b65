"""Signatures as the source has them: a type by the name of its kind, a default as it is written."""

import ast
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module
from typing import Any

from public_names import definitions, entries

Signature = tuple[str, str | None]


def as_written(app: Any, what: str, name: str, obj: Any, *_: Any) -> Signature | None:
    """For autodoc: the arguments, and what is returned; None, where it shall see for itself."""
    module = getattr(obj, "__module__", None) or ""
    first, *rest = getattr(obj, "__qualname__", "").split(".")
    if not module.startswith("jaxvae") or first not in definitions(module):
        return None
    node: Any = definitions(module)[first][0]
    for part in rest:
        node = member(node, part)
    if isinstance(node, ast.FunctionDef):
        return of_function(node, module, method=bool(rest))
    if isinstance(node, ast.ClassDef):
        return of_class(obj, node, module)
    return None


def of_function(node: ast.FunctionDef, module: str, method: bool) -> Signature:
    made = Linked(module).visit(deepcopy(node))
    static = any(getattr(d, "id", None) == "staticmethod" for d in node.decorator_list)
    if method and not static:  # without self
        arguments = made.args
        del (arguments.posonlyargs or arguments.args)[0]
    return f"({ast.unparse(made.args)})", ast.unparse(made.returns) if made.returns else None


def of_class(cls: Any, node: ast.ClassDef, module: str) -> Signature | None:
    init = member(node, "__init__")
    if isinstance(init, ast.FunctionDef):
        return of_function(init, module, method=True)[0], None
    if getattr(cls, "_is_protocol", False):
        return "", None
    made = ", ".join(fields(cls))
    return (f"({made})", None) if made else None


def fields(cls: Any) -> Iterator[str]:
    """The arguments of a dataclass or of a named tuple, those of its bases first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__name__ in (known := definitions_of(base.__module__)):
            for line in getattr(known[base.__name__][0], "body", []):
                if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line):
                    found[ast.unparse(line.target)] = argument(line, base.__module__)
    yield from filter(None, found.values())


def argument(line: ast.AnnAssign, module: str) -> str:
    """`name: type = default` of a field; nothing of one that is not given."""
    written = (
        f"{ast.unparse(line.target)}: {ast.unparse(Linked(module).visit_type(line.annotation))}"
    )
    default = line.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
        said = {keyword.arg: keyword.value for keyword in default.keywords}
        if ast.unparse(said.get("init", ast.Constant(True))) == "False":
            return ""
        default = said.get("default", ast.Constant(...) if "default_factory" in said else None)
    return written if default is None else f"{written} = {ast.unparse(default)}"


class Linked(ast.NodeTransformer):
    """Types under the names that the reference has for them."""

    def __init__(self, module: str):
        self.names = vars(import_module(module))

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = node.annotation and self.visit_type(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.visit(node.args)
        node.returns = node.returns and self.visit_type(node.returns)
        return node

    def visit_type(self, node: ast.expr) -> Any:
        return Types(self.names).visit(deepcopy(node))


class Types(ast.NodeTransformer):
    def __init__(self, names: dict[str, Any]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        value = self.names.get(node.id)
        return ast.Name(typed().get(id(value), node.id))

    def visit_Constant(self, node: ast.Constant) -> Any:
        quoted = isinstance(node.value, str) and node.value.isidentifier()
        return self.visit(ast.Name(node.value)) if quoted else node


@cache
def typed() -> dict[int, str]:
    """The classes and kinds that annotations may name."""
    kinds = ast.ClassDef, ast.Assign
    return {id(entry.value): entry.name for entry in entries() if isinstance(entry.node, kinds)}


def definitions_of(module: str) -> dict[str, Any]:
    return definitions(module) if module.startswith("jaxvae") else {}


def member(node: Any, name: str) -> Any:
    return next((n for n in getattr(node, "body", []) if getattr(n, "name", None) == name), None)
