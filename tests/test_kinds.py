"""Kinds: what `checked` does, and that checks, loose types and docstrings do not drown the maths.

Counted by reading the library's source. A line of code is one with a token that is no comment, in
no docstring and in no import. An argument check is a statement that calls a function `check_...`
(or `within`, `as_integers`, `logits_shape`), a raise of TypeError or ValueError with the `if` it is
under, and the whole of a function of such a name: the definition of a kind, said once.
"""

import ast
import importlib
import inspect
import io
import itertools
import pickle
import pkgutil
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae import checks
from jaxvae.bounds import kl as bounds_kl
from jaxvae.checks import (
    Count,
    Floats,
    Key,
    Keys,
    Location,
    Nats,
    Numbers,
    Partition,
    Scalar,
    Tree,
    checked,
    checks_of,
    kinds,
    values,
)
from jaxvae.models import ppca

PACKAGE = Path(jaxvae.__file__).parent
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
Definition = ast.FunctionDef


class Lines(NamedTuple):
    """What a file has, in lines; and of its parameters, how many there are and how many are Any."""

    code: int
    docstrings: int
    checks: int
    definitions: int
    parameters: int
    loose: int


def span(node: Any) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def is_check(name: str) -> bool:
    return name.lstrip("_").startswith("check_") or name in (
        "within",
        "as_integers",
        "logits_shape",
    )


def name_of(node: ast.expr | None) -> str:
    """Of a name, an attribute, or what is called."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return getattr(node, "id", getattr(node, "attr", ""))


def refuses(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) and name_of(node.exc) in (
        "TypeError",
        "ValueError",
        "OutsideSupportError",
    )


def calls_check(node: ast.AST) -> bool:
    return isinstance(node, (ast.Expr, ast.Assign, ast.Return)) and any(
        isinstance(part, ast.Call) and is_check(name_of(part)) for part in ast.walk(node)
    )


def read(source: str) -> Lines:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    docstrings = set()
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | Definition) and ast.get_docstring(node):
            docstrings |= span(node.body[0])
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    imports = set().union(*(span(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))))
    code = {
        line
        for token in tokens
        if token.type not in LAYOUT
        for line in range(token.start[0], token.end[0] + 1)
    }
    code -= docstrings | imports
    functions = [node for node in nodes if isinstance(node, Definition)]
    definitions = set().union(*(span(f) for f in functions if is_check(f.name)))
    checks = set()
    for node in nodes:
        if calls_check(node) or refuses(node):
            checks |= span(node)
        if isinstance(node, ast.If) and refuses(node.body[-1]):
            checks |= set(range(node.lineno, node.body[0].lineno)) | span(node.body[-1])
    parameters = [
        p
        for f in functions
        for p in (
            *f.args.posonlyargs,
            *f.args.args,
            *f.args.kwonlyargs,
            f.args.vararg,
            f.args.kwarg,
        )
        if p is not None and p.arg not in ("self", "cls")
    ]
    return Lines(
        code=len(code),
        docstrings=len(docstrings),
        checks=len((checks | definitions) & code),
        definitions=len(definitions & code),
        parameters=len(parameters),
        loose=sum(p.annotation is None or name_of(p.annotation) == "Any" for p in parameters),
    )


@cache
def library() -> Lines:
    files = [read(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]
    return Lines(*map(sum, zip(*files, strict=True)))


def test_lines_are_counted_as_they_are_meant():
    source = '''
"""Two lines
of words."""

import math

def f(x: int, y: Any, *z) -> int:
    """One."""
    check_scalar("f", "x", x)
    # a remark
    if x < 0:
        raise ValueError(
            "negative"
        )
    return x

def check_scalar(owner, name, x: int):
    raise TypeError
'''
    assert read(source) == Lines(
        code=9, docstrings=3, checks=7, definitions=2, parameters=6, loose=4
    )


def test_checks_do_not_drown_the_code():
    found = library()
    # reached: 7.3 % where they are called, 12.0 % with what defines the kinds; never looser
    assert found.checks - found.definitions < 0.075 * found.code
    assert found.checks < 0.121 * found.code


def test_a_parameter_says_what_it_is():
    found = library()
    assert found.loose < 0.10 * found.parameters


def test_docstrings_are_shorter_than_the_code():
    found = library()
    assert found.docstrings < 0.70 * found.code


@checked
def draws(key: Key, x: Tree | None = None, *, num_samples: Count, scale: Scalar = 1.0) -> Any:
    """Normal draws."""
    del x
    return scale * jax.random.normal(key, (num_samples,))


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("arguments", "hyper", "message"),
    [
        ((KEY,), {"num_samples": 0}, "draws: num_samples is 0, expected an integer of at least 1"),
        ((0,), {"num_samples": 1}, "draws: key is an int, expected PRNG key"),
        ((), {"key": 0, "num_samples": 1}, "draws: key is an int, expected PRNG key"),
        ((KEY, "x"), {"num_samples": 1}, "draws: x is a str, expected an array of numbers"),
        ((KEY, jnp.ones(2)), {"num_samples": 1, "scale": jnp.ones(2)}, "draws: scale has shape"),
    ],
)
def test_a_bad_argument_is_named_with_the_function(arguments, hyper, message):
    for function in (draws, partial(draws, *arguments)):
        given = arguments if function is draws else ()
        with pytest.raises((TypeError, ValueError)) as error:
            function(*given, **hyper)
        assert str(error.value).startswith(message)


TWO = np.ones(2, np.float32)
ROW = jax.random.split(jax.random.key(1))
SWAPPED = TWO.astype(TWO.dtype.newbyteorder())
NO_ARRAYS = (
    None,
    "a",
    [1.0],
    {"a": TWO},
    print,
    np.full(2, "a"),
    np.full(2, None),
    TWO * 1j,
    SWAPPED,
)
KINDS: dict[Any, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # what is right, what is not
    Key: (
        (KEY, jax.random.key_data(KEY)),
        (0, None, "key", TWO, ROW, np.zeros(1, np.uint32)),
    ),
    Keys: ((ROW,), (KEY, TWO, None, ROW[None])),
    Count: (
        (1, 2**31 - 1),
        (0, -1, 1.5, 2.0, np.nan, np.inf, True, "3", None, [1], 2**31, np.ones(1), np.ones(())),
    ),
    Scalar: ((1, 1.5, -np.inf, np.float32(1), np.ones(())), (*NO_ARRAYS, TWO, TWO[:1], 2**31)),
    Nats: ((np.ones(()),), (*NO_ARRAYS, TWO)),
    Numbers: ((1, 1.5, True, TWO, np.arange(2)), NO_ARRAYS),
    Floats: ((TWO,), (*NO_ARRAYS, np.arange(2), TWO > 0, np.zeros(2, np.uint8))),
    Location: (("a", Path("a")), (None, 1, b"a", ["a"], TWO)),
    Partition: (
        (np.array([0.0, 0.3, 1.0]),),
        (*NO_ARRAYS, TWO, 1.0, np.array([0.0, 0.5]), np.array([0.0, 0.6, 0.5, 1.0])),
    ),
    Tree: (
        (TWO, {"a": TWO, "b": (KEY, 1.0)}),
        ((), None, "a", {"a": "b"}, print, SWAPPED, {"a": TWO, "b": TWO * 1j}),
    ),
}


@pytest.mark.parametrize("kind", KINDS, ids=range(len(KINDS)))
def test_each_kind_takes_what_it_says_and_refuses_the_rest_in_a_line(kind):
    (check,) = checks_of(kind)
    right, wrong = KINDS[kind]
    for value in right:
        check("f", "x", value)
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=r"^f: x\S* (is|has|goes)") as error:
            check("f", "x", value)
        assert "\n" not in str(error.value), value


def test_what_may_be_none_may_be_none():
    assert draws(KEY, None, num_samples=2).shape == (2,)


def test_a_call_that_python_refuses_is_refused_as_ever():
    call: Any = draws
    with pytest.raises(TypeError, match=r"draws\(\) missing 1 required .* 'num_samples'"):
        call(KEY)
    with pytest.raises(TypeError, match=r"draws\(\) got an unexpected keyword argument 'number'"):
        call(KEY, num_samples=1, number=2)


def test_the_function_stays_what_it_was():
    assert [*inspect.signature(draws).parameters] == ["key", "x", "num_samples", "scale"]
    assert (draws.__name__, draws.__doc__) == ("draws", "Normal draws.")
    assert pickle.loads(pickle.dumps(draws)) is draws


def test_the_error_of_what_a_function_makes_names_the_function():
    """And of a call inside, the function that was called from outside."""
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    bad: Any = None
    objective = jaxvae.batched(jaxvae.renyi)
    with pytest.raises(TypeError, match=r"^batched: key is None"):
        objective(model, bad, jnp.ones((2, 3)), num_samples=1, alpha=0.5)
    with pytest.raises(ValueError, match=r"^renyi: num_samples is 0"):
        objective(model, jax.random.key(0), jnp.ones((2, 3)), num_samples=0, alpha=0.5)


def test_a_method_looks_at_the_fields_of_its_object():
    bad: Any = None
    chain = jaxvae.models.Markov(jaxvae.Normal(0.0, 1.0), bad, 3)
    with pytest.raises(TypeError, match=r"^Markov: transition is None, expected a function"):
        chain.log_prob(jnp.zeros(3))


class Draw(NamedTuple):
    scale: Scalar

    @checked
    def __call__(self, x: Tree) -> Any:
        return self.scale * x


def test_a_class_may_be_a_kind(monkeypatch):
    """An instance with fields of their kinds; and the object of a method is held against it."""
    monkeypatch.setattr(kinds, "_CLASSES", dict(kinds._CLASSES))
    checks.kind("a Draw, such as Draw(1.0)")(Draw)
    take: Any = checked(take_draw)
    assert take(Draw(2.0)) == 2.0
    with pytest.raises(
        TypeError, match=r"^take_draw: draw is a float, expected a Draw, such as Draw\(1"
    ):
        take(1.0)
    for call in (lambda: take(Draw(jnp.ones(2))), lambda: Draw(jnp.ones(2))(1.0)):
        with pytest.raises(ValueError, match=r"^Draw: scale has shape \(2,\), expected a number"):
            call()


def take_draw(draw: Draw) -> Any:
    return draw.scale


@pytest.mark.parametrize("name", ["int", "ArrayImpl", "MLP", "FSQ", "IAF"])
def test_an_article_is_the_one_that_is_spoken(name):
    assert checks.an(name) == f"an {name}"
    assert checks.a_class_of(type(name, (), {})()) == f"an {name}"


@pytest.mark.parametrize("name", ["str", "VAE", "PPCA", "uint8", "Uniform", "Normal"])
def test_and_so_is_the_other_one(name):
    assert checks.an(name) == f"a {name}"


def test_no_message_writes_an_article_before_a_name_it_does_not_know():
    """As "is a {name}", which is wrong of an int."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for text, value in itertools.pairwise(parts):
                before = getattr(text, "value", "")
                article = isinstance(before, str) and re.search(r"(^|\s)an?\s$", before, re.I)
                names = "__name__" in ast.unparse(value)
                assert not (article and names), f"{path.name}: {ast.unparse(node)}"


def test_every_class_that_is_a_kind_says_how_one_is_made():
    importlib.import_module("jaxvae.nn")
    for cls, check in kinds._CLASSES.items():
        with pytest.raises(TypeError, match=r"^f: x is an object, expected .*\w+\(.+\)"):
            check("f", "x", object())
        assert cls.__module__.startswith("jaxvae")


def test_nothing_is_checked_while_a_compiled_function_runs(monkeypatch):
    looked = []
    monkeypatch.setattr(values, "check_array", lambda *_: looked.append(1))
    run = jax.jit(draws, static_argnames="num_samples")
    for seed in range(3):
        run(jax.random.key(seed), num_samples=2, scale=float(seed))
    assert len(looked) == 1


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function that a folder exports."""
    for info in pkgutil.walk_packages(jaxvae.__path__, "jaxvae."):
        if info.ispkg and info.name not in ("jaxvae.checks", "jaxvae.pytrees"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if inspect.isfunction(value) and value.__module__.startswith("jaxvae"):
                    yield f"{info.name}.{name}", value


def test_a_kind_in_a_public_signature_is_checked():
    """An annotation that promises a check and a function without `checked` would say nothing."""
    unchecked = {
        name
        for name, function in public()
        if not hasattr(function, "__wrapped__")
        and any([*checks_of(p.annotation)] for p in inspect.signature(function).parameters.values())
    }
    assert not unchecked


def test_help_shows_a_signature_as_it_is_written():
    assert str(inspect.signature(jaxvae.elbo)) == (
        "(model: Model, key: Key, x: Tree, *, beta: Scalar = 1.0, kl: KL = auto_kl, "
        "gradient: Estimator = pathwise) -> tuple[Array, Terms]"
    )
    classes = [c for c in vars(jaxvae).values() if inspect.isclass(c)]
    for thing in (*(function for _, function in public()), *classes):
        shown = str(inspect.signature(thing))
        assert not re.search("<function| at 0x|Annotated|TypeAliasType", shown), shown
        assert len(shown) < 450, shown  # fit's, the longest, is 404


def test_each_parameter_is_shown_so_alone():
    """As IPython puts one in a line; and of a partial function and a method too."""
    bound = inspect.signature(partial(jaxvae.elbo, beta=0.5)).parameters
    assert str(bound["gradient"]) == "gradient: Estimator = pathwise"
    assert str(inspect.signature(Draw(1.0))) == "(x: Tree) -> Any"
    given = inspect.signature(jaxvae.elbo).parameters["kl"]
    assert (given.default, given.annotation) == (jaxvae.auto_kl, bounds_kl.KL)


def test_defaults_are_of_their_kind():
    for name, function in public():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty:
                for check in checks_of(parameter.annotation):
                    check(name, parameter.name, parameter.default)
