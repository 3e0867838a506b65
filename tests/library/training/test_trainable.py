"""What trains is the leaves: what a model holds elsewhere is refused, or said to be constant."""

import functools
from types import CellType, FunctionType
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.training.trainable import outside_leaves

ADAM = optax.adam(1e-2)
WEIGHT, TABLE = jnp.ones((4, 2)), np.ones((4, 2))
PARAMETERS = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}


def closing_over(w):
    return lambda x: x @ w


def by_a_helper(x):
    return x @ WEIGHT


def unassigned():
    return FunctionType(closing_over(WEIGHT).__code__, {}, closure=(CellType(),))


class Layer:
    """No pytree: an object with a weight, and with data that no method uses."""

    def __init__(self):
        self.weight, self.data = jnp.ones((4, 2)), jnp.ones(9)

    def product(self, x):
        return x @ self.weight

    def twice(self, x):
        return 2 * x

    __call__ = product


def network():
    return nn.Conditional(nn.MLP, nn.NormalHead(), (4,), (2,), rngs=nnx.Rngs(0))


HELD = {  # how an array may be held, and what the message says
    "closure": (
        lambda: closing_over(WEIGHT),
        r"w \(float32\[4, 2\]\) in the function <lambda> ",
    ),
    "a NumPy array": (lambda: closing_over(TABLE), "w "),
    "a network": (lambda: (lambda net: lambda x: net(x))(network()), r"net \(float32"),
    "a closure in a closure": (lambda: (lambda f: lambda x: f(x))(closing_over(WEIGHT)), "w "),
    "jitted": (lambda: jax.jit(closing_over(WEIGHT)), "w "),
    "a global name": (lambda: lambda x: x @ WEIGHT, "WEIGHT "),
    "a function within": (lambda: lambda x: (lambda y: y @ WEIGHT)(x), "WEIGHT "),
    "a helper": (lambda: lambda x: by_a_helper(x), "WEIGHT .* in the function by_a_helper "),
    "a default": (lambda: lambda x, w=WEIGHT: x @ w, "a default argument "),
    "a keyword's default": (lambda: lambda x, *, w=WEIGHT: x @ w, "a default argument "),
    "a partial": (lambda: functools.partial(jnp.matmul, WEIGHT), "an argument "),
    "an object": (Layer, "weight .* in the function product"),
    "a method": (lambda: Layer().product, "weight "),
    "a network as a function": (network, "an array .* in the structure of a Partial"),
    "a network's method": (lambda: network().network.__call__, "its object "),
}
QUIET = {
    "no array": lambda: lambda x: 2 * x,
    "a constant": lambda: closing_over(jv.Constant(WEIGHT)),
    "a constant network": lambda: (lambda net: lambda x: net(x))(jv.Constant(network())),
    "a number": lambda: closing_over(jnp.array(0.3)),
    "integers": lambda: closing_over(jnp.arange(4)),
    "a table of a module": lambda: lambda x: x @ TABLE,
    "a method of what has data": lambda: Layer().twice,
    "a Linen module": lambda: linen.Dense(2).apply,
    "JAX's own": lambda: jax.scipy.special.ndtri,
    "recursive": lambda: (lambda f: f.append(lambda x: f[0](x)) or f[0])([]),
    "not assigned yet": unassigned,
    "a dict of any keys": lambda: (lambda d: lambda x: d)({1: "a", "b": None}),
}


@pytest.mark.parametrize("case", HELD)
def test_arrays_that_no_optimiser_reaches_are_refused(case):
    make, message = HELD[case]
    with pytest.raises(TypeError, match=f"init_state: model holds {message}") as caught:
        jv.init_state({"encode": Partial(make())}, ADAM)
    assert "not as a leaf, so it would never train" in str(caught.value)
    assert "jaxvae.Constant" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", QUIET)
def test_what_holds_no_parameters_is_let_in(case):
    jv.init_state({"encode": Partial(QUIET[case](), WEIGHT)}, ADAM)


def test_a_leaf_elsewhere_is_no_excuse():
    """A decoder that closes over the encoder's weight keeps the one it began with."""
    model = {"encode": WEIGHT, "decode": Partial(closing_over(WEIGHT))}
    (found,) = outside_leaves(model)
    assert found[1] == "w"


def test_what_is_traced_counts_too():
    def run(key):
        weight = jax.random.normal(key, (4, 2))
        return jv.init_state(Partial(closing_over(weight)), ADAM)

    with pytest.raises(TypeError, match=r"holds w "):
        jax.jit(run)(jax.random.key(0))


def vae(encode: Any, inputs=4) -> jv.VAE:
    decode = nn.Conditional(
        functools.partial(nn.MLP, hidden=()), nn.NormalHead(), (2,), (inputs,), rngs=nnx.Rngs(1)
    )
    return jv.VAE(encode, decode, jv.StandardNormal((2,)))


def moved(model, objective, xs):
    """Whether each leaf of the model is another after a step, by its path."""
    step = jax.jit(jv.train_step(objective, ADAM))
    state, _ = step(jv.init_state(model, ADAM), jax.random.key(0), xs)
    return state.model, jax.tree.map(lambda a, b: bool(jnp.any(a != b)), model, state.model)


@pytest.mark.thorough
def test_a_conditional_model_trains_all_of_the_model_it_gives():
    """Encoder and decoder, which are the same for all y, and the prior."""
    mlp = functools.partial(nn.MLP, hidden=(3,), activation=jnp.tanh)
    make = functools.partial(nn.Conditional, mlp, nn.NormalHead(), rngs=nnx.Rngs(0))
    model: Any = vae(make((4,), (2,)))._replace(prior=None)
    prior_of = make((3,), (2,))

    def given(model, prior_of, y):
        return model._replace(prior=prior_of(y))

    xs, ys = jnp.ones((5, 4)), jnp.eye(3)[jnp.array([0, 1, 2, 0, 1])]
    objective = jv.conditioned(jv.elbo)
    after, changed = moved(Partial(given, model, prior_of), objective, (xs, ys))
    assert all(jax.tree.leaves(changed))
    before, after = model._replace(prior=prior_of(ys[0])), after(ys[0])
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert all(bool(jnp.any(a != b)) for a, b in pairs)
    with pytest.raises(TypeError, match=r"holds model \(float32"):
        moved(Partial(lambda prior_of, y: given(model, prior_of, y), prior_of), objective, (xs, ys))


def equinox_batch_norm():
    return Partial(lambda net, x: net, equinox.nn.BatchNorm(3, "batch", mode="batch"))


def linen_variables():
    module = linen.BatchNorm(use_running_average=True)
    return Partial(module.apply, module.init(jax.random.key(0), jnp.ones(4)))


@pytest.mark.parametrize("make", [linen_variables, equinox_batch_norm])
def test_state_that_no_network_is_given_with_is_refused_with_what_takes_it(make):
    message = r"init_state: model.* is state that a network keeps.*jaxvae\.nn\.equinox_network"
    with pytest.raises(TypeError, match=message):
        jv.init_state(make(), ADAM)


def test_a_key_among_the_parameters_is_refused():
    with pytest.raises(TypeError, match=r"is a PRNG key, .*an NNX module with Rngs"):
        jv.init_state({"key": jax.random.key(0)}, ADAM)


@pytest.mark.thorough
def test_a_head_with_parameters_trains_in_a_deep_hierarchy():
    """It is no function, which `Partial` would hold where no optimiser reaches."""
    head = nn.SharedScaleHead(0.5)
    model = nn.deep_hierarchy((2, 2, 1), levels=(1,), width=2, head=head, rngs=nnx.Rngs(0))
    assert len(jax.tree.leaves(model.likelihood)) == 1
    _, changed = moved(model, jv.models.deep_elbo, jnp.ones((3, 2, 2, 1)))
    assert changed.likelihood.log_scale.get_value()
