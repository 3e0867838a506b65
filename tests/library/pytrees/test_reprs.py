"""Short reprs of what the library makes, traced, given away, deep or large."""

import importlib
import inspect
import pickle
import pkgutil
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.pytrees import layered, pytree, short, shown
from jaxvae.pytrees.libraries import functional
from tests.common import programs_compiled


class Foreign(NamedTuple):
    a: Any


NORMAL = jv.Normal(jnp.zeros((28, 28)), jnp.float32(0.123456))
SHORT = {
    "image": (NORMAL, "Normal(loc=float32[28,28], scale=0.1235)"),
    "static": (jv.StandardNormal((8,)), "StandardNormal(shape=(8,))"),
    "constant": (
        jv.Constant(NORMAL),
        "Constant(Normal(loc=float32[28,28], scale=0.1235))",
    ),
    "whole numbers": (jnp.int32(3), "3"),
    "truth": (np.bool_(True), "True"),
    "a float that is whole": (jnp.float32(3.0), "3.0"),
    "not finite": (jnp.float32(-jnp.inf), "-inf"),
    "half": (jnp.zeros(2, jnp.bfloat16), "bfloat16[2]"),
    "NumPy": (np.zeros((2, 0)), "float64[2,0]"),
    "key": (jax.random.key(0), "key<fry>[]"),
    "shape alone": (jax.ShapeDtypeStruct((), jnp.float32), "float32[]"),
    "nothing": (None, "None"),
    "containers": (([1.0, "a"], (2,), {"b": None}, ()), "([1.0, 'a'], (2,), {'b': None}, ())"),
    "many": ([*range(9)], "[0, 1, 2, 3, 4, 5, ... 9 in all]"),
    "function": (Partial(jnp.tanh, jnp.zeros(2), b=1), "Partial(tanh, float32[2], b=1)"),
    "bound": (partial(jv.iwae, num_samples=5), "partial(iwae, num_samples=5)"),
    "optimiser's": (optax.EmptyState(), "EmptyState()"),
    "another's": (Foreign(jnp.zeros(2)), "Foreign(a=float32[2])"),
    "module": (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "Linear(9 parameters)"),
    # 3 means and 3 scales train, 6 running statistics do not
    "norm": (nnx.BatchNorm(3, rngs=nnx.Rngs(0)), "BatchNorm(6 parameters)"),
    "network": (
        functional(nnx.BatchNorm(3, rngs=nnx.Rngs(0))),
        "Network(6 parameters, 6 of state)",
    ),
    "large": ("x" * 1000, "str(...)"),
}


@pytest.mark.parametrize("name", SHORT)
def test_of(name):
    value, text = SHORT[name]
    assert short(value) == text


def test_what_has_no_parameters_is_not_counted():
    each = jv.Independent(jv.Independent(jv.Normal(0.3, 0.5)))
    assert "0 parameters" not in short([each] * 6)


def test_integers_of_a_module_are_no_parameters():
    class Module(eqx.Module):
        weight: Any
        steps: Any

    module = Module(jnp.zeros(3), jnp.zeros(4, jnp.int32))
    assert short(module) == short(jax.eval_shape(lambda: module)) == "Module(3 parameters)"


def made():
    """Two networks of 2 x 3 weights and biases, each with a head of two numbers for one."""
    conditional = partial(nn.Conditional, partial(nn.MLP, hidden=()), nn.NormalHead())
    rngs = nnx.Rngs(0)
    return jv.VAE(
        conditional((3,), (2,), rngs=rngs), conditional((2,), (3,), rngs=rngs),
        jv.Mixture(jnp.zeros(4), jv.Normal(jnp.zeros((4, 2)), jnp.ones((4, 2)))),
    )  # fmt: skip


def test_of_a_model_and_a_run():
    model = made()
    parts = """\
encode=Conditional(16 parameters),
decode=Conditional(18 parameters),
prior=Mixture(logits=float32[4], components=Normal(loc=float32[4,2], scale=float32[4,2])),
"""
    inside = "".join(f"  {line}\n" for line in parts.splitlines())
    assert repr(model) == f"VAE(\n{inside})"
    state = repr(jv.init_state(model, optax.adam(1e-3)))
    # no room for the prior's parts beside Adam's
    assert state.startswith("TrainState(\n  model=VAE(\n    encode=Conditional(16 parameters),\n")
    assert "prior=Mixture(20 parameters)" in state
    assert "ScaleByAdamState(count=0, mu=VAE(54 parameters), nu=VAE(54 parameters))" in state
    assert len(state) <= 300


def test_of_results():
    numbers = jv.LogMarginal(*map(jnp.float32, (-19.1123, 0.021, 143.0, 0.412, 1.0, 13.2)))
    assert "value=-19.11" in repr(numbers)
    stack = jax.tree.map(lambda x: jnp.stack([x] * 3), numbers)
    assert "value=float32[3]" in repr(stack)
    swept = jv.sweep(lambda beta: {"loss": 2.0 * beta}, {"beta": [0.5, 1.0]})
    assert repr(swept) == (
        "Sweep(axes={'beta': float32[2]}, results={'loss': float32[2]}, at_once=2)"
    )


def test_in_a_notebook_it_is_a_table():
    page = made()._repr_html_()  # pyright: ignore[reportAttributeAccessIssue]
    assert page.startswith("<table><caption>VAE</caption>")
    assert page.count("<tr>") == 3
    for cell in ("encode", "Conditional(16 parameters)", "Mixture(logits=float32[4], "):
        assert f">{cell}" in page
    escaped = jv.Normal(jax.random.split(jax.random.key(0)), 1.0)
    assert "key&lt;fry&gt;[2]" in escaped._repr_html_()  # pyright: ignore[reportAttributeAccessIssue]


def test_nothing_is_run_and_what_was_given_away_has_a_shape():
    model = made()
    assert programs_compiled(lambda: repr(model)) == 0
    gone = jnp.float32(1.0)
    gone.delete()
    assert repr(jv.Normal(jnp.zeros(2), gone)) == "Normal(loc=float32[2], scale=float32[])"


def test_a_class_keeps_the_repr_that_it_wrote():
    @pytree
    @dataclass(frozen=True)
    class Own:
        x: Any

        def __repr__(self):
            return "mine"

    assert repr(Own(1.0)) == "mine"


def test_every_named_tuple_and_pytree_of_the_library_has_it():
    """Those that a folder exports and that hold arrays: settings and names print as they are."""
    plain = {"Checkpoints", "Run", "Column"}
    of_ours = {}
    for info in pkgutil.walk_packages(jv.__path__, "jaxvae."):
        if info.ispkg:
            of_ours |= vars(importlib.import_module(info.name))
    classes = {v for v in of_ours.values() if inspect.isclass(v) and hasattr(v, "_fields")}
    assert len(classes) > 35
    assert {c.__name__ for c in classes if c.__repr__ is not short} <= plain
    assert jv.Normal.__repr__ is short


def test_equality_and_pickling_are_as_they_were():
    found = shown(Foreign)(2.0)
    try:
        assert pickle.loads(pickle.dumps(found)) == found == (2.0,)
        assert repr(found) == "Foreign(a=2.0)"
    finally:
        for name in ("__repr__", "_repr_html_"):
            delattr(Foreign, name)


def test_a_network_is_its_settings_and_its_layers():
    rngs = nnx.Rngs(0)
    encode = nn.Conditional(partial(nn.MLP, hidden=(4,)), nn.NormalHead(), (3,), (2,), rngs=rngs)
    expected = """\
Conditional(
  raw_shape=(4,),
  head=NormalHead(scale=None, floor=1e-06),
  network=MLP(
    in_shape=(3,),
    out_shape=(4,),
    activation=relu,
    layers=[Linear(16 parameters), Linear(20 parameters)],
  ),
)"""
    assert repr(encode) == str(encode) == expected
    assert short([encode]) == "[Conditional(36 parameters)]"  # among others it is a number
    assert repr(nn.SharedScaleHead(1.0)) == "SharedScaleHead(log_scale=0.0)"
    activation = partial(jax.nn.leaky_relu, negative_slope=0.1)
    network = nn.MLP((3,), (2,), hidden=(4,), activation=activation, norm=nnx.LayerNorm, rngs=rngs)
    assert "activation=partial(leaky_relu, negative_slope=0.1),\n" in repr(network)
    assert "between=[Between(norm=LayerNorm(8 parameters))],\n" in repr(network)
    assert pickle.loads(pickle.dumps(network)).in_shape == (3,)
    traced = repr(jax.eval_shape(lambda: encode))  # whose attributes NNX has in another order
    assert sorted(traced.splitlines()) == sorted(expected.splitlines())


def test_every_network_of_the_library_is_short():
    classes = {
        value
        for info in pkgutil.walk_packages(nn.__path__, "jaxvae.nn.")
        for value in vars(importlib.import_module(info.name)).values()
        if inspect.isclass(value) and value.__module__.startswith("jaxvae")
        if issubclass(value, nnx.Module)
    }
    assert len(classes) > 35
    assert {c.__name__ for c in classes if c.__repr__ is not layered} == set()
    assert {c.__name__ for c in classes if c.__str__ is not layered} == set()
    flow = nn.AutoregressiveFlow(2, layers=8, rngs=nnx.Rngs(0))
    assert len(repr(flow)) < 350
    assert "... 8 in all" in repr(flow)
