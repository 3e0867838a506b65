"""The pages' code runs: every ```python block of a page, in order, in one namespace."""

import re
import sys
from functools import partial
from inspect import isfunction
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from jaxvae import train_step
from jaxvae.pytrees import paths
from tests.common import COPIES, same

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        # what these two show has tests of its own
        pytest.param("docs/guide.md", marks=pytest.mark.slow),
        pytest.param("docs/bounds.md", marks=pytest.mark.slow),
        "docs/new_method.md",
        "docs/faults.md",
        "docs/devices.md",
    ],
)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # as a user has it
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)


# of models that the elbo is not for: (expression, objective, data), evaluated when the page has run
OTHERWISE = {
    "docs/guide.md": [
        (
            "conditional",
            "jaxvae.conditioned(jaxvae.elbo)",
            "(rows, jax.nn.one_hot(jnp.arange(16) % 10, 10))",
        ),
        ("masked", "jaxvae.elbo", "(rows, jnp.tile(seen, (16, 1, 1, 1)))"),
        ("model", "refined", "rows"),
        ("model._replace(decode=decode)", "jaxvae.elbo", "rows"),
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
        ("model", "partial(jaxvae.regularized, price=jaxvae.free_bits, free=0.0)", "rows"),
    ],
}
# numpyro's StudentT keeps a Chi2 for its draws, which no density asks for
STILL = r"\.prior\[<flat index 0>\]\[<flat index \d>\]\["


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
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
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


def test_every_line_of_the_table_makes_something():
    """Each line of docs/methods.md is evaluated, and each test and script it names exists.

    What it makes can be pickled and copied, unless it is a function made inside another.
    """
    text = (ROOT / "docs/methods.md").read_text()
    page = sys.modules.setdefault("methods_page", ModuleType("methods_page"))  # for pickle to find
    namespace = vars(page)
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], namespace)
    row = r"^\| (.*?) \|(.*?)\| `(.*)` \| `(.*?)` \|(.*?)\|$"
    rows = re.findall(row, text, flags=re.MULTILINE)
    heads = re.findall(r"^\| method ", text, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", text, flags=re.MULTILINE)) - len(heads)
    for method, _, line, test, run in rows:
        made = eval(line, namespace)
        assert callable(made) or hasattr(made, "log_prob") or hasattr(made, "prior"), method
        assert local(made) or all(same(copied(made), made) for copied in COPIES.values()), method
        assert (ROOT / "tests" / test).exists(), test
        for script in re.findall(r"`experiments\.([\w.]+)`", run):
            assert (ROOT / "experiments" / f"{script.replace('.', '/')}.py").exists(), script


def local(value):
    """Whether it is a function made inside another, or a partial of one, which pickle refuses."""
    if isinstance(value, partial):
        return any(map(local, (value.func, *value.args, *value.keywords.values())))
    return isfunction(value) and "<locals>" in value.__qualname__
