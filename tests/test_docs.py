"""The pages' code runs: every ```python block of a page, in order, in one namespace.

And what is said of it: every public name is built on some page, and a new method is short.
"""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache, partial
from importlib.metadata import packages_distributions, requires
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import checks, nn, plots, protocols, pytrees, train_step
from jaxvae.pytrees import paths
from tests.common import COPIES, same

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
asked = nn, plots  # which `import jaxvae` leaves out
PACKAGES = [jaxvae, *asked]
PACKAGES += [
    value
    for name, value in vars(jaxvae).items()
    if hasattr(value, "__path__") and not name.startswith("_") and value not in asked
]
PACKAGES += [jaxvae.evaluation.disentanglement]
for ground in (checks, pytrees):  # the others stand on them
    PACKAGES.remove(ground)


def blocks_of(page: str) -> list[str]:
    """Those of a page, or the cells of a notebook."""
    block = r"```(?:\{code-cell\} )?python\n(.*?)```"
    return re.findall(block, (ROOT / page).read_text(), flags=re.DOTALL)


def rows_of(page: str) -> list[list[str]]:
    """What stands in backticks in each row of the tables of a page, but for their heads."""
    row = r"^\|(?!-).*\|$(?!\n\|-)"
    rows = re.findall(row, (ROOT / page).read_text(), flags=re.MULTILINE)
    return [[c.replace("\\|", "|") for c in re.findall(r"`([^`]+)`", row)] for row in rows]


CONCRETE = "dci|mutual_information|summarize|sweep|points_at_once|warn_if_unfinished|save_model"
UNTRACED = rf"plots\.|\.({CONCRETE})\("


@pytest.mark.parametrize(
    "page",
    [
        "docs/devices.md",
        "docs/recipes/sequences.md",
        pytest.param("docs/index.md", marks=pytest.mark.thorough),
        # what these two show has tests of its own
        pytest.param("docs/guide.md", marks=pytest.mark.slow),
        pytest.param("docs/bounds.md", marks=pytest.mark.slow),
        pytest.param("docs/recipes/single_cells.md", marks=pytest.mark.thorough),
        pytest.param("docs/tokenizers.md", marks=pytest.mark.thorough),
        pytest.param("docs/quantizers.md", marks=pytest.mark.thorough),
        # the next test traces the one, and the one after it runs the others as well
        pytest.param("README.md", marks=pytest.mark.slow),
        pytest.param("docs/new_method.md", marks=pytest.mark.slow),
        pytest.param("docs/faults.md", marks=pytest.mark.slow),
    ],
)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    allowed = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with allowed[0], allowed[1], jax.debug_key_reuse(False):  # as a user has it
        for block in blocks_of(page):
            exec(compile(block, page, "exec"), namespace)
    assert namespace


def test_what_the_first_page_installs_is_what_its_ten_lines_import():
    [installed] = re.findall(r"^pip install \. (.*?)  ", (ROOT / "docs/index.md").read_text(), re.M)
    there = {"jaxvae", *installed.split()}
    there |= {re.split(r"\W", line)[0] for line in requires("jaxvae") or [] if "extra" not in line}
    ten, *_ = blocks_of("docs/index.md")
    assert sum(bool(line.strip()) for line in ten.splitlines()) == 10
    imported = re.findall(r"^(?:import|from) (.+?)(?: import .*)?$", ten, re.M)
    for module in re.split(", ", ", ".join(imported)):
        root = module.split(".")[0]
        assert {root, *packages_distributions().get(root, [])} & there, module


@pytest.mark.thorough
def test_code_of_the_readme_can_be_traced(tmp_path, monkeypatch):
    """It runs as far as something is asserted; from there each array is a shape and a dtype,
    but in the blocks that call what cannot be traced, which come last."""
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of("README.md")
    statements = [node for block in blocks for node in ast.parse(block).body]
    [asserted] = [i for i, node in enumerate(statements) if isinstance(node, ast.Assert)]
    untraced = [block for block in blocks if re.search(UNTRACED, block)]
    assert blocks[-len(untraced) :] == untraced
    end = len(statements) - sum(len(ast.parse(block).body) for block in untraced)
    namespace: dict = {}

    def run(nodes, namespace):
        exec(compile(ast.Module(nodes, []), "README.md", "exec"), namespace)

    rest = statements[asserted + 1 : end]
    constants = [node for node in rest if "Constant(" in ast.unparse(node)]  # of concrete arrays
    rest = [node for node in rest if node not in constants]
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        run(statements[: asserted + 1] + constants, namespace)
        jax.eval_shape(lambda: run(rest, dict(namespace)))
        run(statements[end:], namespace)
    assert {"elbo", "make_vae", "history"} <= namespace.keys()


# of models that the elbo is not for: (expression, objective, data), evaluated when the page has run
OTHERWISE = {
    "docs/guide.md": [
        (
            "conditional",
            "jaxvae.conditioned(jaxvae.elbo)",
            "(rows, jax.nn.one_hot(jnp.arange(16) % 10, 10))",
        ),
        ("quantized", "models.vq", "rows"),
        ("masked", "jaxvae.elbo", "(rows, jnp.tile(seen, (16, 1, 1, 1)))"),
        (
            "not_at_random",
            "partial(jaxvae.iwae, num_samples=5)",
            "(rows, jnp.tile(seen, (16, 1, 1, 1)))",
        ),
        (
            "series",
            "jaxvae.elbo",
            "(jnp.stack(16 * event[:1]), jnp.stack(16 * event[1:]))",
        ),
        ("world", "jaxvae.elbo", "jax.random.normal(jax.random.key(5), (16, 10, 3))"),
        ("exact", "jaxvae.elbo", "jax.random.normal(jax.random.key(5), (16, 10, 3))"),
        (
            "lfads",
            "jaxvae.elbo",
            "jax.random.poisson(jax.random.key(5), 1.0, (16, 10, 3)).astype(float)",
        ),
        ("tokens", "jaxvae.elbo", "jax.random.randint(jax.random.key(5), (16, 12), 0, 7)"),
        (
            "semi",
            "models.unlabelled(jaxvae.elbo)",
            "jax.random.uniform(jax.random.key(5), (16, 8, 8, 1))",
        ),
        ("model", "refined", "rows"),
        ("loaded", "jaxvae.elbo", "rows"),
        ("model._replace(decode=decode)", "jaxvae.elbo", "rows"),
        ("built", "jaxvae.elbo", "jax.tree.map(jnp.asarray, table.rows(frame))"),
        ("by_hand", "jaxvae.elbo", "jax.tree.map(jnp.asarray, short.rows(frame))"),
    ],
    "docs/faults.md": [(name, "jaxvae.elbo", "data") for name in ("model", "trained")],
    "docs/bounds.md": [("discrete", "partial(objective, temperature=0.5)", "rows")],
    "README.md": [
        (
            "model._replace(encode=nn.Conditional(nn.MLP, "
            f"heads['{head}'], (8, 8, 1), (2,), rngs=rngs))",
            "jaxvae.elbo",
            "rows",
        )
        for head in ("full covariance", "low rank", "flow")
    ]
    + [
        (
            "jaxvae.VAE(encode, decode, model.prior)",
            "jaxvae.elbo",
            "jnp.asarray(rows * 200, jnp.uint8)",
        ),
        ("model", "partial(regularizers.regularized, penalty=penalty, dataset_size=16)", "rows"),
    ],
}
# numpyro's StudentT keeps a Chi2 for its draws, which no density asks for
STILL = r"\.prior\[0\]\[\d\]\["


@pytest.mark.thorough
@pytest.mark.parametrize(
    "page",
    [
        "docs/new_method.md",
        "docs/faults.md",
        pytest.param("README.md", marks=pytest.mark.slow),
        pytest.param("docs/guide.md", marks=pytest.mark.slow),
        pytest.param("docs/bounds.md", marks=pytest.mark.slow),
        pytest.param("docs/story.md", marks=pytest.mark.slow),
    ],
)
def test_what_a_page_trains_trains(page, tmp_path, monkeypatch):
    """Every leaf of every model moves, in the steps of the page or in one on each model it leaves
    untrained. Nothing that can be called holds arrays that are no leaves."""
    monkeypatch.chdir(tmp_path)
    moved: list[dict[str, bool]] = []  # a dict a run: leaf -> whether a step has moved it

    def watched(objective, optimizer):
        step, run = train_step(objective, optimizer), {}
        moved.append(run)

        def watching(state, key, xs, **hyper):
            new, metrics = step(state, key, xs, **hyper)
            changed = jax.tree.map(lambda a, b: jnp.any(a != b), state.model, new.model)
            jax.debug.callback(note, paths(changed))
            return new, metrics

        def note(changed):
            run.update({path: run.get(path, False) or bool(c) for path, c in changed.items()})

        return watching

    def train(objective, model, xs):
        optimizer = optax.adam(1e-2)
        state, step = jaxvae.init_state(model, optimizer), jax.jit(watched(objective, optimizer))
        for _ in range(2):  # where q is p at first, p moves when q has
            state, _ = step(state, jax.random.key(1), xs)

    monkeypatch.setattr(jaxvae, "train_step", watched)
    otherwise = {expression for expression, *_ in OTHERWISE.get(page, [])}
    namespace: dict = {}
    done: set[int] = set()
    allowed = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with allowed[0], allowed[1], jax.debug_key_reuse(False):
        for block in blocks_of(page):
            exec(compile(block, page, "exec"), namespace)
            new = {name: v for name, v in namespace.items() if id(v) not in done}
            done |= set(map(id, new.values()))
            namespace["rows"] = rows = rows_like(namespace)
            for name, value in new.items():
                if isinstance(value, (Partial, nnx.Module)) or is_model(value):
                    jaxvae.init_state(value, optax.sgd(1.0))
                if is_model(value) and jax.tree.leaves(value) and name not in otherwise:
                    train(jaxvae.elbo, value, namespace.get("batch", rows))
        for expression, objective, xs in OTHERWISE.get(page, []):
            train(*(eval(source, namespace) for source in (objective, expression, xs)))
    jax.effects_barrier()
    assert any(moved)
    still = [path for run in moved for path, has_moved in run.items() if not has_moved]
    assert not [path for path in still if not re.match(STILL, path)]


def is_model(value):
    return isinstance(value, tuple) and hasattr(value, "encode") and hasattr(value, "decode")


def rows_like(namespace):
    """Sixteen random rows of the shape of the page's x: zeros and ones, or about a number."""
    x, key = namespace.get("x", 0.0), jax.random.key(0)
    if jnp.ndim(x) == 0:
        return x + jax.random.normal(key, (16,))
    return jax.random.bernoulli(key, 0.5, (16, *jnp.shape(x))).astype(jnp.float32)


KINDS = jaxvae.Distribution, jaxvae.regularizers.AdversarialPair


@pytest.mark.thorough
def test_every_method_of_the_table_is_made():
    """Each line of docs/methods.md is evaluated, and each test and script it names exists.

    What it makes can be pickled and copied, unless it is a function made inside another.
    """
    text = (ROOT / "docs/methods.md").read_text()
    page = sys.modules.setdefault("methods_page", ModuleType("methods_page"))  # for pickle to find
    namespace = vars(page)
    for block in blocks_of("docs/methods.md"):
        exec(block, namespace)
    row = r"^\| (.*?) \|(.*?)\| `(.*)` \| `(.*?)` \|(.*?)\|$"
    rows = re.findall(row, text, flags=re.MULTILINE)
    heads = re.findall(r"^\| method ", text, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", text, flags=re.MULTILINE)) - len(heads)
    for method, _, line, test, run in rows:
        made = eval(line, namespace)
        assert callable(made) or hasattr(made, "prior") or isinstance(made, KINDS), method
        assert local(made) or all(same(copied(made), made) for copied in COPIES.values()), method
        assert list((ROOT / "tests").rglob(test)), test
        for script in re.findall(r"`experiments\.([\w.]+)`", run):
            path = ROOT / "experiments" / script.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), script
        assert run.strip(), method


@pytest.mark.thorough
@pytest.mark.parametrize("page", ["docs/bounds.md", "docs/api.md"])
def test_every_line_of_a_table_is_evaluated(page):
    """In the namespace of the page's first block; what a row makes is of the class it names."""
    namespace: dict = {}

    def made(line: str) -> Any:
        value: Any = None

        def trace() -> Any:
            nonlocal value
            value = eval(line, namespace)
            return [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)]

        # most lines need not be compiled to be seen to work
        trace() if re.search(rf"rngs=|{UNTRACED}", line) else jax.eval_shape(trace)
        return value

    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        exec(blocks_of(page)[0], namespace)
        for spans in rows_of(page):
            first, *_ = values = [made(span) for span in spans if is_line(span, namespace)]
            if isinstance(first, type) and not getattr(first, "_is_protocol", False):
                assert isinstance(values[-1], first), spans


def is_line(span: str, namespace: dict) -> bool:
    """Whether it is an expression of names that are there."""
    try:
        nodes = list(ast.walk(ast.parse(span, mode="eval")))
    except SyntaxError:
        return False
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names - {node.arg for node in nodes if isinstance(node, ast.arg)} <= namespace.keys()


def public() -> Iterator[tuple[str, Any]]:
    """What the packages export, but for their modules."""
    for package in PACKAGES:
        for node in ast.parse(Path(package.__file__ or "").read_text()).body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    value = getattr(package, alias.name)
                    if not isinstance(value, ModuleType):
                        yield f"{package.__name__}.{alias.name}", value


@cache
def imports_of(page: str) -> dict[str, str]:
    """The names that a page gives to parts of the library, and their paths."""
    found = {}
    for node in ast.walk(ast.parse("\n".join(blocks_of(page)))):
        if isinstance(node, ast.Import):
            names = [(a.asname or a.name, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
        else:
            continue
        found |= {name: path for name, path in names if path.split(".")[0] == "jaxvae"}
    return found


def uses(code: str, page: str) -> set[str]:
    """The paths in the library of all that the code names, as `jaxvae.bounds.iwae`."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # no code: a span of text
        return set()
    roots, found = imports_of(page), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root in roots:
                found.add(".".join([roots[root], *rest]))
    return found


def at(path: str) -> Any:
    """What stands at `jaxvae.bounds.iwae`; None where a path leads beyond the library."""
    value: Any = sys.modules["jaxvae"]
    for name in path.split(".")[1:]:
        value = getattr(value, name, None)
    return value


def test_every_public_name_is_built_on_some_page():
    built = [
        at(path)
        for page in PAGES
        for code in [*blocks_of(page), *(span for spans in rows_of(page) for span in spans)]
        for path in uses(code, page)
    ]
    identities = {id(value) for value in built}
    names = list(public())
    assert len(names) > 300
    assert not [name for name, value in names if id(value) not in identities]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_is_there(page):
    """Files, scripts, parts of the library, and other pages."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", prose)
    for path in re.findall(
        r"\b(?:tests|docs|jaxvae|experiments)/[\w/]+(?:\.\w+)?", " ".join(spans)
    ):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"(?<![\w/])test_\w+\.py", " ".join(spans)):
        assert list((ROOT / "tests").rglob(name)), name
    for path in re.findall(
        r"\bexperiments(?:\.\w+)+", " ".join(spans)
    ):  # a module, or what is in one
        file = ROOT / path.replace(".", "/")
        assert file.is_dir() or any(f.with_suffix(".py").exists() for f in (file, file.parent)), (
            path
        )
    for path in re.findall(r"\bjaxvae(?:\.[a-z]\w*)+", " ".join(spans)):
        assert at(path) is not None, path
    for link in re.findall(r"\]\((?!http)([^)#]+)", prose):
        assert ((ROOT / page).parent / link).exists(), link


def test_new_methods_are_short_and_made_of_public_names():
    """Five parts, each with a method of at most 20 lines and a value by hand."""
    page = "docs/new_method.md"
    names = {name for name, _ in public()}
    packages = {package.__name__ for package in PACKAGES}
    parts = re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE)[1:]
    assert len(parts) == 5
    for part in parts:
        blocks = re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL)
        methods = [b for b in blocks if re.search(r"^(class|def) ", b, flags=re.MULTILINE)]
        assert methods
        for method in methods:
            assert sum(bool(line.strip()) for line in method.splitlines()) <= 20
        assert any("assert np." in block for block in blocks)
    for path in {path for block in blocks_of(page) for path in uses(block, page)}:
        assert path in names | packages, path


def test_every_optional_method_stands_in_both_tables():
    """That of `protocols` and that of the page; those with arguments are asked for with them."""
    lines = (protocols.__doc__ or "").partition("----\n")[2].partition("\n\n")[0].splitlines()
    table = " ".join(line[:34] for line in lines)
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/new_method.md").read_text(), re.MULTILINE)
    written = " ".join(code for row in rows for code in re.findall(r"`(.*?)`", row))

    def names(text):
        return set(re.findall(r"[a-z_]+(?=\()", text))

    assert {"kl_to", "levels_at", "top_k"} <= names(table)
    assert names(table) == names(written)
    for name, arguments in protocols.ARGUMENTS.items():
        for text in (table, written):
            assert f"{name}({arguments})" in text


def local(value):
    """Whether it is a function made inside another, or a partial of one, which pickle refuses."""
    if isinstance(value, partial):
        return any(map(local, (value.func, *value.args, *value.keywords.values())))
    return isfunction(value) and "<locals>" in value.__qualname__


def test_a_recipe_shows_the_code_that_made_its_numbers():
    """The functions to copy are those of the script, but for types."""

    def bodies(source: str) -> dict[str, list[str]]:
        found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        return {n.name: [ast.unparse(line) for line in n.body] for n in found}

    [shown] = blocks_of("docs/recipes/sequences.md")
    script = (ROOT / "experiments/recipes/sequences.py").read_text()
    made = bodies(script)
    for name, body in bodies(shown).items():
        assert body == made[name], name
