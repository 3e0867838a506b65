"""What the package promises as a package."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import jaxvae
from jaxvae import pytrees
from jaxvae.training.workarounds import without_ynn_reductions

ROOT = Path(__file__).parent.parent
SOURCES = sorted(Path(jaxvae.__file__).parent.rglob("*.py"))
FIXED = """
    StandardNormal Normal MultivariateNormal Bernoulli Distribution
    kl_divergence analytic_kl sampled_kl auto_kl
    VAE Terms elbo iwae log_weights log_marginal LogMarginal reconstruct generate pathwise
    batched init_state TrainState train_step
"""


@pytest.mark.parametrize("name", FIXED.split())
def test_fixed_names_are_exported(name):
    # docs/design.md, section 3
    assert hasattr(jaxvae, name)


def test_import_is_light():
    # a fresh `import jaxvae` loads no network library, data loader or test helper
    heavy = (
        "flax tensorflow_datasets tensorflow chex equinox numpyro blackjax scipy sklearn matplotlib"
    )
    code = f"import sys, jaxvae; print([m for m in {heavy.split()} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["nn", "plots"])
def test_what_imports_more_is_there_when_it_is_asked_for(name):
    code = f"import jaxvae; print(jaxvae.{name}.__name__); jaxvae.neural"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.stdout.strip() == f"jaxvae.{name}"
    assert "module 'jaxvae' has no attribute 'neural'" in answer.stderr


def test_init_is_a_list_of_names():
    # `from x import name as name`, which type checkers take as public, and what is imported late
    docstring, version, *body = ast.parse(Path(jaxvae.__file__).read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(version) == f"__version__ = {jaxvae.__version__!r}"
    *body, late = body
    assert ast.unparse(late).startswith(
        "if _typing.TYPE_CHECKING:\n    from jaxvae import nn as nn"
    )
    assert isinstance(late, ast.If)
    assert [type(line) for line in late.orelse] == [ast.FunctionDef]
    for line in body:
        if isinstance(line, ast.Import):
            assert all(f"{alias.asname}" == f"_{alias.name}" for alias in line.names)
            continue
        assert isinstance(line, ast.ImportFrom)
        assert line.module
        assert line.module.split(".")[0] == "jaxvae"
        assert all(alias.asname == alias.name for alias in line.names)


def imports(source):
    return (name for node in ast.walk(ast.parse(source.read_text())) for name in imports_of(node))


def imports_of(node):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield f"{node.module}"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_imports_of_a_file(source):
    # flax in nn/ alone, experiments nowhere, and no private module of JAX anywhere
    roots = {name.split(".")[0] for name in imports(source)}
    assert "flax" not in roots or source.parent.name == "nn"
    assert not roots & {"experiments", "tests", "tensorflow_datasets", "numpy.random"}
    assert not any(part.startswith("_") for name in imports(source) for part in name.split("."))
    assert not re.search(r"\bjax\._src|\bjaxlib\b|\b(flax|optax|chex)\._src", source.read_text())


USERS = {"equinox", "mlflow"}  # imported for users who have brought them


def distributions(modules):
    """What brings them: packages that are not of Python itself or ours."""
    other = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}
    roots = {name.split(".")[0] for name in modules} - {*sys.stdlib_module_names, "jaxvae"}
    return {other.get(root, root.replace("_", "-")) for root in roots}


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[^\w-]", line)[0] for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    dependencies = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    by_name = r'\b(?:import_module|needed)\(f?"(\w+)'  # those that an argument names
    modules = {m for s in SOURCES for m in (*imports(s), *re.findall(by_name, s.read_text()))}
    assert distributions(modules) <= dependencies.union(USERS, *declared.values())
    assert dependencies <= distributions(modules)  # nothing is brought that nobody imports
    for source in SOURCES:  # at its import, where plots alone asks for more, and says so
        at_once = {m for node in ast.parse(source.read_text()).body for m in imports_of(node)}
        more = declared["plots"] if source.parent.name == "plots" else set()
        assert distributions(at_once) <= dependencies | more


def test_one_version_is_said():
    def first(pattern, file):
        return re.search(pattern, (ROOT / file).read_text(), flags=re.MULTILINE)[1]

    assert first(r"^## (\d\S+) - \d{4}-\d\d-\d\d$", "CHANGELOG.md") == jaxvae.__version__
    assert first(r"^version: (.*)$", "CITATION.cff") == jaxvae.__version__


def test_no_global_switch():
    # importing changes no setting of JAX, which is the user's, but for one crash of one version
    assert not any("jax.config" in source.read_text() for source in SOURCES)
    switching = {source.name for source in SOURCES if "environ" in source.read_text()}
    assert switching == {"workarounds.py"}


@pytest.mark.parametrize(
    ("version", "flags", "expected"),
    [
        ((0, 10, 2), None, "--xla_cpu_experimental_ynn_fusion_type=-reduce"),
        ((0, 11, 0), "--a=b", "--a=b --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        # the user's own value stays; where the fault is mended or unknown nothing is touched
        ((0, 10, 2), "--xla_cpu_experimental_ynn_fusion_type=dot", None),
        ((0, 10, 1), None, None),
        ((0, 11, 1), "--a=b", None),
        ((0, 12, 0), None, None),
    ],
)
def test_one_kind_of_fusion_is_switched_off_where_it_crashes(version, flags, expected):
    environment = {} if flags is None else {"XLA_FLAGS": flags}
    without_ynn_reductions(environment, version)
    assert environment.get("XLA_FLAGS") == (flags if expected is None else expected)


@pytest.mark.thorough
def test_a_reduction_of_rank_eight_runs():
    """In a process of its own, which jax 0.10.2 would end; JAX is imported first, as by a user."""
    code = """
        import jax, jax.numpy as jnp
        import jaxvae

        a, b = jnp.ones((10, 4, 6)), jnp.ones((10, 4, 6, 9, 9, 9, 9, 9))
        f = jax.jit(lambda a, b: jnp.log(jnp.sum(a[..., None, None, None, None, None] * b, axis=2)))
        assert jnp.allclose(f(a, b), jnp.log(6.0))
        shape = (3, 1, 2, 2, 8, 8, 8)
        g = jax.jit(lambda a, b: jnp.sum(a * b, axis=3))
        assert jnp.all(g(jnp.ones(shape), jnp.ones(shape)) == 2.0)
    """
    # as a user has it: optimised, and without the flag that this process has from its own import
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_documented():
    # help() says something about each
    folders = {v for v in vars(jaxvae).values() if hasattr(v, "__path__")} - {pytrees}
    homes = [jaxvae, *folders]
    public = {name: v for home in homes for name, v in vars(home).items() if name[0] != "_"}
    things = {n: v for n, v in public.items() if inspect.isclass(v) or inspect.isroutine(v)}
    assert len(things) > 200
    assert all((v.__doc__ or "").strip() for v in things.values())
