"""The layout of the package, read off its imports: from the ground up, and in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxvae"
# docs/design.md, "Where a thing belongs": each room may import from those before it
ROOMS = [
    "checks",
    "pytrees",
    "protocols",
    "batching",
    "distributions",
    "bijectors",
    "gradients",
    "model",
    "bounds",
    "training",
    "evaluation",
    "plots",
    "regularizers",
    "models",
    "nn",
    "__init__",
]


def sources() -> dict[str, Path]:
    """Every module by its name; a package is its `__init__`."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in modules}
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return found


def folders(module: str) -> set[str]:
    return {module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)}


def graph() -> dict[str, set[str]]:
    modules = sources()
    return {name: imported(path, modules) for name, path in modules.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_few_entries_at_the_top():
    entries = {p.name.removesuffix(".py") for p in PACKAGE.iterdir()} - {"__pycache__"}
    assert entries == {*ROOMS, "py.typed"}  # which is a mark for type checkers, and nothing to read
    assert len(ROOMS) <= 16


def test_no_import_goes_up():
    up = [
        (name, other)
        for name, others in graph().items()
        for other in others
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert not up


def test_no_circle():
    # to import a module is to import the folders it is in; a CycleError names the circle
    run = {
        name: others | set().union(*(folders(other) for other in others)) - folders(name) - {name}
        for name, others in graph().items()
    }
    TopologicalSorter(run).prepare()


def test_a_folder_is_imported_by_its_name_from_outside_alone():
    # inside it, from the module that defines the name
    for name, others in graph().items():
        assert not others & folders(name), name


def test_no_file_bears_the_name_of_a_function():
    # `jaxvae.x.y` would be the module or the function, by what was imported first
    modules = sources()
    for name, path in modules.items():
        if path.name == "__init__.py":
            exported = {
                alias.asname
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if f"{node.module}.{alias.name}" not in modules
            }
            assert not [e for e in exported if f"{name}.{e}" in modules], name


def test_array_is_that_of_jax():
    for path in sources().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign):
                assert "Array" not in [t.id for t in node.targets if isinstance(t, ast.Name)], path
