"""What the package promises as a package."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxvae

SOURCES = sorted(Path(jaxvae.__file__).parent.rglob("*.py"))
FIXED = """
    StandardNormal Normal MultivariateNormal Bernoulli Distribution
    reparameterize kl_divergence kl_standard_normal analytic_kl sampled_kl sticking_kl auto_kl
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


def test_init_is_a_list_of_names():
    # `from x import name as name`, which type checkers take as public, and nothing else
    docstring, *body = ast.parse(Path(jaxvae.__file__).read_text()).body
    assert isinstance(docstring, ast.Expr)
    for line in body:
        assert isinstance(line, ast.ImportFrom)
        assert line.module
        assert line.module.split(".")[0] == "jaxvae"
        assert all(alias.asname == alias.name for alias in line.names)


def imports(source):
    for node in ast.walk(ast.parse(source.read_text())):
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


def test_no_global_switch():
    # importing changes no setting of JAX, which is the user's
    assert not any("jax.config" in source.read_text() for source in SOURCES)


def test_every_public_name_is_documented():
    # help() says something about each
    public = {name: v for name, v in vars(jaxvae).items() if not name.startswith("_")}
    assert all((v.__doc__ or "").strip() for v in public.values())
