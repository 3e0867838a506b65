"""Constant: what it holds never trains, and otherwise is what it holds."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.nn import MLP, BernoulliHead, Conditional, NormalHead
from jaxvae.protocols import mean_of
from jaxvae.pytrees import paths
from tests.common import close


def key(seed=0):
    return jax.random.key(seed)


def laplace():
    return jv.Laplace(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]))


def network():
    return Conditional(MLP, BernoulliHead(), (2,), (3,), rngs=nnx.Rngs(0))


VALUES = {
    "distribution": laplace,
    "without leaves": lambda: jv.StandardNormal((2,)),
    "network": network,
    "numpyro": lambda: nd.Normal(jnp.zeros(2), jnp.ones(2)).to_event(1),
    "function": lambda: Partial(jnp.add, jnp.ones(2)),
    "array": lambda: jnp.arange(3),
    "half precision": lambda: jnp.ones(2, jnp.bfloat16),
    "numpy": lambda: np.linspace(0, 1, 3),
    "number": lambda: 0.5,
    "tree": lambda: {"a": [jnp.ones(2), np.zeros(3)], "b": (1, 2.0, None)},
    "constant": lambda: jv.Constant(jnp.ones(2)),
}
values = pytest.mark.parametrize("make", VALUES.values(), ids=VALUES.keys())


def same(a, b):
    """Equal structure, and leaves equal in type, shape and every bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(
        map(np.asarray, jax.tree.leaves(a)), map(np.asarray, jax.tree.leaves(b)), strict=True
    )
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def bits(constant):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(constant.value)]


@values
def test_it_has_no_leaves_and_gives_its_value_back(make):
    """Nothing for a gradient or an optimiser to reach; `.value` is what went in."""
    constant = jv.Constant(make())
    assert jax.tree.leaves(constant) == []
    assert jax.tree.leaves({"prior": constant, "other": 1.0}) == [1.0]
    value = make()
    with_jax = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, value)
    assert same(constant.value, with_jax)


@values
def test_equal_values_are_equal_constants(make):
    """Equality and hash are by content, not by identity, as jit compares what has no leaves."""
    a, b = jv.Constant(make()), jv.Constant(make())
    if make is not VALUES["network"]:  # two networks hold two (equal) static parts of flax's own
        assert a == b
        assert hash(a) == hash(b)
        assert jax.tree.structure(a) == jax.tree.structure(b)
    assert a != "a"
    assert a != jv.Constant((make(), 1))


DIFFERENT: list[tuple[Any, Any]] = [
    (np.zeros(2), np.ones(2)),
    (np.zeros(2), np.zeros(3)),
    (np.zeros((2, 1)), np.zeros((1, 2))),
    (np.zeros(2, np.float32), np.zeros(2, np.int32)),
    (np.zeros(2, np.float32), np.zeros(2, np.float64)),
    (jnp.zeros(2, jnp.float8_e4m3fn), jnp.zeros(2, jnp.int4)),
    (1, 2),
    (1, 1.0),
    (1, True),
    ([np.zeros(2)], (np.zeros(2),)),
    (jv.StandardNormal((2,)), jv.StandardNormal((3,))),
    (jv.Normal(0.0, 1.0), jv.Laplace(0.0, 1.0)),
    (jv.Normal(0.0, 1.0), jv.Normal(0, 1)),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_other_values_are_other_constants(a, b):
    """Value, shape, type (1 is not 1.0) and structure: jit may not take one for the other."""
    assert jv.Constant(a) != jv.Constant(b)


def test_jit_does_not_take_one_number_for_another():
    """jit(f)(Constant(2)) then jit(f)(Constant(2.0)): an integer, then a float."""
    f = jax.jit(lambda c: jnp.asarray(c.value))
    assert f(jv.Constant(2)).dtype == jnp.int32
    assert f(jv.Constant(2.0)).dtype == jnp.float32
    assert f(jv.Constant(True)).dtype == jnp.bool_


def test_jit_does_not_take_one_prior_for_another():
    """A Laplace in the place of a Normal with the same numbers: swapped, not taken for it."""
    kinds = [jv.Normal, jv.Laplace]
    for make in (lambda d: d(jnp.zeros(2), jnp.ones(2)), lambda d: d(0.5, 2.0)):
        shape = make(jv.Normal).shape
        f = jax.jit(lambda prior, shape=shape: prior.log_prob(jnp.ones(shape)))
        for kind in kinds:
            assert close(f(jv.Constant(make(kind))), make(kind).log_prob(jnp.ones(shape)))


def test_not_a_number_equals_itself():
    """An array holding NaN does not make jit trace again and again."""
    a, b = (jv.Constant(np.array([np.nan, 1.0])) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)


@pytest.mark.parametrize("make", [VALUES[n] for n in ("distribution", "numpyro", "tree", "number")])
def test_an_equal_constant_does_not_retrace(make):
    """One trace for any number of equal constants, built apart; a second for another."""
    chex.clear_trace_counter()

    def f(constant, x):
        return x + jnp.sum(jnp.asarray(jax.tree.leaves(constant.value)[0], jnp.float32))

    once = jax.jit(chex.assert_max_traces(f, n=1))
    for _ in range(3):
        once(jv.Constant(make()), jnp.ones(()))
    with pytest.raises(AssertionError, match="traced"):
        once(jv.Constant(jax.tree.map(lambda x: x + 1, make())), jnp.ones(()))


def test_what_it_was_built_from_may_change():
    """A NumPy array written to afterwards does not move the constant."""
    source = np.ones(2, np.float32)
    constant = jv.Constant({"scale": source})
    before = hash(constant)
    source[0] = 5.0
    assert np.array_equal(constant.value["scale"], [1.0, 1.0])
    assert constant == jv.Constant({"scale": np.ones(2, np.float32)})
    assert hash(constant) == before


def test_what_it_was_built_from_may_be_donated():
    """A jit that takes the source's memory leaves the constant alone."""
    source = jnp.arange(4.0)
    constant = jv.Constant(source)
    jax.jit(lambda x: x + 1.0, donate_argnums=0)(source)
    assert np.array_equal(constant.value, np.arange(4.0))


def test_it_cannot_be_assigned_to():
    """`constant.scale = x` would hide the value's scale and change nothing: an error instead."""
    constant = jv.Constant(laplace())
    for name in ("scale", "value", "another"):
        with pytest.raises(AttributeError):
            setattr(constant, name, 1.0)
    assert close(constant.scale, [0.5, 2.0])


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
@pytest.mark.parametrize(
    "make", [VALUES[n] for n in ("distribution", "tree", "number", "constant")]
)
def test_copies_and_pickles(clone, make):
    """A copy is equal, hashes equal and holds the same, whether or not it was hashed before."""
    for constant in (jv.Constant(make()), jv.Constant(make())):
        assert same(clone(constant).value, constant.value)
        assert clone(constant) == constant
        assert hash(clone(constant)) == hash(constant)
        assert clone(constant) == constant  # now that its hash is known


def test_a_model_with_a_constant_pickles():
    """As a part of a tree that is saved whole."""
    state = {"prior": jv.Constant(laplace()), "weight": np.ones(2)}
    loaded = pickle.loads(pickle.dumps(state))
    assert loaded["prior"] == state["prior"]
    assert close(loaded["prior"].log_prob(jnp.zeros(2)), laplace().log_prob(jnp.zeros(2)))


def test_a_pickle_hashes_anew_in_another_process(tmp_path):
    """Hashes of strings differ between processes, so a hash may not travel in the pickle."""
    constant = jv.Constant({"a": np.ones(2, np.float32)})
    hash(constant)
    (tmp_path / "constant").write_bytes(pickle.dumps(constant))
    check = (
        "import pickle, sys, numpy as np, jaxvae as jv\n"
        "loaded = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "fresh = jv.Constant({'a': np.ones(2, np.float32)})\n"
        "assert loaded == fresh and hash(loaded) == hash(fresh)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", check, str(tmp_path / "constant")]
    subprocess.run(command, env=environment, check=True)


def test_attributes_and_calls_go_through():
    """A constant distribution is a distribution, a constant network is called like a network."""
    d, constant = laplace(), jv.Constant(laplace())
    assert close(constant.loc, d.loc)
    assert close(constant.sample(key()), d.sample(key()))
    assert close(constant.log_prob(jnp.ones(2)), d.log_prob(jnp.ones(2)))
    assert close(constant.mean(), d.mean())
    for a, b in zip(
        jv.sample_and_log_prob(constant, key()), jv.sample_and_log_prob(d, key()), strict=True
    ):
        assert close(a, b)
    net = network()
    assert close(jv.Constant(net)(jnp.ones(2)).logits, net(jnp.ones(2)).logits)
    add = jv.Constant(Partial(lambda a, x, *, scale: a + scale * x, jnp.ones(2)))
    assert close(add(jnp.ones(2), scale=3.0), [4.0, 4.0])


def test_an_unknown_attribute_is_an_attribute_error():
    """So that hasattr and getattr with a default work; to call what is no function, a TypeError."""
    constant: Any = jv.Constant(laplace())
    assert not hasattr(constant, "logits")
    assert getattr(constant, "logits", None) is None
    assert not hasattr(jv.Constant(jv.Categorical(jnp.zeros(2))), "mean")
    assert not hasattr(constant, "__array__")
    with pytest.raises(AttributeError, match="logits"):
        _ = constant.logits
    with pytest.raises(TypeError, match="not callable"):
        constant(jnp.zeros(2))


def test_its_repr_shows_the_value():
    """Constant(...)."""
    assert repr(jv.Constant(0.5)) == "Constant(0.5)"
    assert "Laplace(loc=" in repr(jv.Constant(laplace()))


# What is traced is no constant


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.vmap, jax.grad, lambda f: lambda x: jax.lax.scan(lambda c, y: (c, f(y)), 0, x)],
    ids=["jit", "vmap", "grad", "scan"],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: jv.Normal(jnp.zeros(()), x)])
def test_a_traced_value_is_an_error(transform, wrap):
    """The message says what is traced and where to build the constant instead."""

    def f(x):
        jv.Constant(wrap(x))
        return jnp.sum(x)

    x = jnp.ones(()) if transform is jax.grad else jnp.ones(3)
    with pytest.raises(TypeError, match=r"Constant: value holds a traced .*outside jit"):
        transform(f)(x)


def test_inside_jit_it_is_built_from_concrete_arrays():
    """NumPy arrays and arrays of outside are constants there; jnp.zeros is traced."""
    outside = jnp.ones(2)

    @jax.jit
    def f(x):
        d = jv.Constant(jv.Normal(outside, np.full(2, 0.5, np.float32)))
        return d.log_prob(x)

    assert close(f(jnp.zeros(2)), jv.Normal(outside, 0.5).log_prob(jnp.zeros(2)))
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda x: x + jv.Constant(jnp.zeros(2)).value)(jnp.zeros(2))


# Training


def linear(prior: Any = None, decode: Any = None) -> Any:
    """A VAE of one layer; everything in it trains unless it is constant."""
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    return jv.VAE(
        encode=Partial(lambda w, x: jv.Normal(w @ x, jnp.full(2, 0.5)), weight),
        decode=decode or Partial(lambda w, z: jv.Normal(w @ z, 0.5), weight.T),
        prior=prior or laplace(),
    )


OPTIMIZERS = {
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "decayed sgd": optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)),
    "lion": optax.lion(0.1, weight_decay=0.5),
}
XS = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)


def trained(model, optimizer, steps=3) -> Any:
    """The state after some steps on the whole data."""

    def run(state, k):
        return jax.lax.scan(lambda s, _: step(s, k, jnp.asarray(XS)), state, length=steps)

    step = jv.train_step(jv.elbo, optimizer)
    state, metrics = jax.jit(run)(jv.init_state(model, optimizer), key())
    assert np.all(np.isfinite(metrics["loss"]))
    return state


def test_what_is_not_constant_moves():
    """Adam with weight decay moves prior, decoder and its sigma: what follows is no accident."""
    model = linear()
    state = trained(model, OPTIMIZERS["adamw"])
    leaves = zip(jax.tree.leaves(state.model), jax.tree.leaves(model), strict=True)
    assert all(not np.allclose(after, before) for after, before in leaves)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_never_moves_it(optimizer):
    """A constant prior and decoder keep every bit while the encoder trains."""
    model = linear(jv.Constant(laplace()), jv.Constant(linear().decode))
    state = trained(model, optimizer)
    assert bits(state.model.prior) == bits(jv.Constant(laplace()))
    assert bits(state.model.decode) == bits(jv.Constant(linear().decode))
    assert state.model.prior == model.prior
    (weight,) = jax.tree.leaves(state.model)
    assert not np.allclose(weight, linear().encode.args[0])


def test_a_plain_optax_loop_never_moves_it():
    """Without train_step: jax.grad, adamw with weight decay, apply_updates."""
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    model: Any = linear(jv.Constant(laplace()))
    start, opt_state = bits(model.prior), optimizer.init(model)

    @jax.jit
    def step(model, opt_state, k):
        loss = lambda model: -jv.batched(jv.elbo)(model, k, jnp.asarray(XS))[0]
        gradient = jax.grad(loss)(model)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, model)
        return optax.apply_updates(model, updates), opt_state

    for seed in range(5):
        model, opt_state = step(model, opt_state, key(seed))
    assert bits(model.prior) == start
    assert model.prior == jv.Constant(laplace())
    assert not np.allclose(model.encode.args[0], linear().encode.args[0])


def test_fit_takes_it_through_donated_state():
    """fit donates its state at every call; the constant stays, and stays usable outside."""
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    model = linear(jv.Constant(laplace()))
    state, _ = jv.fit(
        jv.train_step(jv.elbo, optimizer),
        jv.init_state(model, optimizer),
        key(),
        XS,
        epochs=2,
        batch_size=2,
    )
    assert bits(state.model.prior) == bits(jv.Constant(laplace()))
    assert close(model.prior.scale, laplace().scale)


def test_the_bound_and_other_gradients_are_those_without_it(x64):
    """Making a part constant changes no number: not the bound, not the gradients of the rest."""
    x = jnp.asarray(XS[0], float)
    cast = partial(jax.tree.map, lambda leaf: leaf.astype(float))
    free = cast(linear())
    constant = free._replace(prior=jv.Constant(free.prior), decode=jv.Constant(free.decode))

    @jax.jit
    def bound(model):
        rates = (jv.auto_kl, jv.sampled_kl)
        return [
            jax.value_and_grad(lambda m, r=r: jv.elbo(m, key(), x, kl=r)[0])(model) for r in rates
        ]

    for (value, gradient), (exact, other) in zip(bound(constant), bound(free), strict=True):
        assert close(value, exact)
        assert close(gradient.encode.args[0], other.encode.args[0])
        assert len(jax.tree.leaves(gradient)) == 1


def test_gradients_pass_through_a_constant_network():
    """It is constant in its parameters, not in its input."""
    net = network()

    def score(decode, z):
        return decode(z).log_prob(jnp.array([0.0, 1.0, 1.0]))

    z = jnp.array([0.3, -1.0])
    slope = jax.jit(jax.grad(score, 1))
    exact = slope(net, z)
    assert np.all(np.abs(exact) > 1e-3)
    assert close(slope(jv.Constant(net), z), exact)


def test_a_fixed_decoder_sigma():
    """sigma as Constant beside trained weights, or in NormalHead: both keep it, to the bit."""
    sigma = jv.Constant(np.float32(0.3))
    by_constant = Partial(
        lambda w, sigma, z: jv.Normal(w @ z, sigma.value), jnp.ones((3, 2)), sigma
    )
    by_head = Conditional(MLP, NormalHead(scale=0.3), (2,), (3,), rngs=nnx.Rngs(0))
    for decode in (by_constant, by_head):
        after = trained(linear(decode=decode), OPTIMIZERS["adamw"], steps=2).model.decode
        assert np.float32(after(jnp.ones(2)).scale) == np.float32(0.3)
        moved = zip(jax.tree.leaves(after), jax.tree.leaves(decode), strict=True)
        assert all(not np.allclose(a, b) for a, b in moved)


# Transformations


@pytest.mark.thorough
def test_inside_jit_vmap_and_scan():
    """A model with constants is mapped over, scanned and compiled like one without."""
    x = jnp.asarray(XS[0])
    model = linear(jv.Constant(laplace()), jv.Constant(linear().decode))
    elbo = jax.jit(lambda model, k: jv.elbo(model, k, x)[0])
    exact = elbo(linear(), key())
    assert close(elbo(model, key()), exact)
    assert close(jv.elbo(model, key(), x)[0], exact)

    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), model, doubled)
    mapped = jax.vmap(elbo, (0, None))(stack, key())
    assert close(mapped, jnp.stack([exact, elbo(doubled, key())]))

    carry, bounds = jax.lax.scan(lambda model, _: (model, elbo(model, key())), model, length=2)
    assert carry.prior == model.prior
    assert close(bounds, jnp.stack([exact, exact]))

    made = jax.jit(lambda w: jv.VAE(Partial(jnp.matmul, w), model.decode, model.prior))(jnp.eye(2))
    assert made.prior == model.prior


def test_a_sweep_shares_it():
    """vmap over seeds of a whole run: the constant is not stacked, and is the same for all."""
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    step = jv.train_step(jv.elbo, optimizer)
    prior = jv.Constant(laplace())

    def run(k):
        state = jv.init_state(linear(prior), optimizer)
        return jax.lax.scan(lambda s, _: step(s, k, jnp.asarray(XS)), state, length=2)

    states, history = jax.jit(jax.vmap(run))(jax.random.split(key(), 3))
    assert history["loss"].shape == (3, 2)
    assert states.model.prior == prior
    assert states.model.prior.scale.shape == (2,)


@pytest.mark.thorough
def test_as_a_prior_of_every_bound():
    """elbo, iwae, log_marginal and generate take a constant prior for the prior."""
    x = jnp.asarray(XS[0])

    @jax.jit
    def numbers(model):
        return (
            jv.elbo(model, key(), x)[0],
            jv.iwae(model, key(), x, num_samples=3)[0],
            jv.log_marginal(model, key(), x, num_samples=7, chunk=3).value,
            mean_of(jv.generate(model, key())),
        )

    free, constant = numbers(linear()), numbers(linear(jv.Constant(laplace())))
    for a, b in zip(constant, free, strict=True):
        assert close(a, b)


def test_double_precision_is_kept(x64):
    """A float64 array in a constant is not rounded."""
    third = jnp.array([1.0 / 3.0])
    assert jv.Constant(third).value.dtype == jnp.float64
    assert jv.Constant(third).value[0] == 1.0 / 3.0


@jax.tree_util.register_pytree_node_class
class Unnamed:
    """Of a class that gives its children no names; they are numbered."""

    def __init__(self, *children):
        self.children = children

    def __getitem__(self, i):
        return self.children[i]

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_a_path_is_written_as_python_reads_it():
    function: Any = Partial(
        max, jv.Normal(np.zeros(2), np.ones(2)), (3.0,), scale={"a": np.ones(1)}
    )
    rest: Any = Unnamed(4.0, Unnamed(5.0)), [jv.StandardNormal((2,)), 6.0]
    tree = {"model": jv.VAE(function, *rest)}
    found = paths(tree)
    assert [*found][:2] == ["['model'].encode.args[0].loc", "['model'].encode.args[0].scale"]
    assert "['model'].encode.keywords['scale']['a']" in found
    for path, leaf in found.items():
        read = eval(f"tree{path}", {"tree": tree})
        assert read is leaf, path
    assert [*map(id, found.values())] == [*map(id, jax.tree.leaves(tree))]
