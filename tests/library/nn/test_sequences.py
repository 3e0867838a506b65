"""Networks of sequences: what is padded is not seen, and each is what its paper says."""

import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3)).astype(np.float32)
MASK = np.arange(5) < 3
NETWORKS = {
    "transformer": partial(nn.Transformer, width=8, heads=2, depth=1),
    "recurrent": partial(nn.Recurrent, width=8),
}
NAMES = pytest.mark.parametrize("name", NETWORKS)


@pytest.mark.thorough
@NAMES
def test_padding_changes_nothing_not_even_nan(name):
    """In values and in gradients; a shorter sequence is the longer one padded."""
    net = NETWORKS[name]((5, 3), (4,), rngs=nnx.Rngs(0))
    other = np.where(MASK[:, None], X, np.float32(np.nan))
    loss = jax.jit(jax.value_and_grad(lambda net, x: jnp.sum(net((x, MASK)) ** 2)))
    (a, slope), (b, same) = loss(net, X), loss(net, other)
    assert a == b
    for one, two in zip(jax.tree.leaves(slope), jax.tree.leaves(same), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(net((X, MASK)), net(X))
    if name == "recurrent":
        short = NETWORKS[name]((3, 3), (4,), rngs=nnx.Rngs(0))
        np.testing.assert_allclose(short(X[:3]), net((X, MASK)), rtol=1e-5)


@pytest.mark.thorough
def test_a_transformer_without_positions_does_not_see_the_order():
    """Rows move with the positions, and one output of all stays."""
    make = partial(NETWORKS["transformer"], (5, 3), rngs=nnx.Rngs(0))
    order = np.array([3, 1, 4, 0, 2])
    each, one = make((5, 2), positions=False), make((4,), positions=False)
    np.testing.assert_allclose(each(X[order]), each(X)[order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one(X[order]), one(X), rtol=1e-4, atol=1e-6)
    placed = make((5, 2))
    assert np.abs(placed(X[order]) - placed(X)[order]).max() > 0.01


@pytest.mark.thorough
def test_attention_is_numpys():
    net: Any = nn.Attention(4, heads=1, rngs=nnx.Rngs(0))
    h = RNG.normal(size=(5, 4)).astype(np.float32)

    def normed(h):
        return (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-6)

    def dense(layer, v):
        return v @ np.asarray(layer.kernel[...]).reshape(4, 4) + np.ravel(layer.bias[...])

    a, x = net.attention, normed(h)
    scores = dense(a.query, x) @ dense(a.key, x).T / 2.0 + np.where(MASK, 0.0, -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    first = h + dense(a.out, weights @ dense(a.value, x))
    expected = first + jax.vmap(net.f)(jnp.asarray(normed(first), jnp.float32))
    np.testing.assert_allclose(net(h, MASK), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, MASK, np.array([True, False, True, True, False])])
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrent_is_numpys(reverse, mask):
    """Row t is of x_1, ..., x_t, or of x_T, ..., x_t; one output is of the step that comes last.

    Where it is padded the state stays, at 0 where nothing was seen yet.
    """
    each: Any = nn.Recurrent((5, 3), (5, 2), width=4, reverse=reverse, rngs=nnx.Rngs(0))
    one: Any = nn.Recurrent((5, 3), (2,), width=4, reverse=reverse, rngs=nnx.Rngs(0))
    w, u, b = (
        np.float64(leaf[...])
        for leaf in (each.cell.dense_i.kernel, each.cell.dense_h.kernel, each.cell.dense_i.bias)
    )
    h, rows = np.zeros(4), np.empty((5, 4))
    for t in reversed(range(5)) if reverse else range(5):
        if mask is None or mask[t]:
            (a, c, d), (e, f, g) = np.split(X[t] @ w + b, 3), np.split(h @ u, 3)
            r, z = 1 / (1 + np.exp(-a - e)), 1 / (1 + np.exp(-c - f))
            h = (1 - z) * np.tanh(d + r * g) + z * h
        rows[t] = h
    x = X if mask is None else (X, mask)
    kernel = np.float64(each.last.dense.kernel[...])
    np.testing.assert_allclose(each(x), rows @ kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one(x), h @ kernel, rtol=1e-4, atol=1e-5)


def sequence_vae(dropout):
    """Steps [5, 3], some padded, to two latents and back to the steps."""
    transformer = partial(NETWORKS["transformer"], dropout=dropout)
    rngs = nnx.Rngs(0)
    encode = nn.Conditional(transformer, nn.NormalHead(), (5, 3), (2,), rngs=rngs)
    decode = nn.Conditional(nn.MLP, nn.MaskedHead(nn.NormalHead()), (2,), (5, 3), rngs=rngs)
    return jv.VAE(encode, decode, jv.StandardNormal((2,)))


@pytest.mark.thorough
def test_a_transformer_with_dropout_trains_and_is_pickled():
    """The encoder takes a mask of the steps, the likelihood one of the entries."""
    optimizer, model = optax.adam(1e-2), sequence_vae(0.2)

    def objective(model, key, x):
        steps, mask = x
        seen = jnp.broadcast_to(mask[:, None], steps.shape)
        encode = lambda event: model.encode((event[0], event[1][:, 0]))
        return jv.elbo(model._replace(encode=encode), key, (steps, seen))

    state = first = jv.init_state(model, optimizer)
    step = jax.jit(jv.train_step(objective, optimizer))
    xs = np.stack([X, X]), np.stack([MASK, ~MASK])
    losses = []
    for _ in range(2):
        state, metrics = step(state, jax.random.key(0), xs)
        losses.append(metrics["loss"])
    assert np.isfinite(losses).all()
    moved = jax.tree.map(lambda a, b: np.any(a != b), first.model.encode, state.model.encode)
    assert np.mean(jax.tree.leaves(moved)) > 0.8  # but for the biases of keys, which cancel
    again = pickle.loads(pickle.dumps(state.model))
    assert np.array_equal(again.encode((X, MASK)).loc, state.model.encode((X, MASK)).loc)


@NAMES
def test_a_sequence_of_another_length_is_refused(name):
    net = NETWORKS[name]((5, 3), (4,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"input has shape \(4, 3\), expected \(5, 3\)"):
        net(X[:4])
    with pytest.raises(ValueError, match=r"mask has shape \(4,\), expected \(5,\)"):
        net((X, MASK[:4]))


@pytest.mark.thorough
def test_both_ways_are_two_units_whose_outputs_add_up():
    for out in ((5, 2), (4,)):
        net: Any = nn.Bidirectional((5, 3), out, width=4, rngs=nnx.Rngs(0))
        ahead, back = net.ways
        assert (ahead.reverse, back.reverse) == (False, True)
        np.testing.assert_allclose(net(X), ahead(X) + back(X), rtol=1e-6)
        np.testing.assert_allclose(net((X, MASK)), ahead((X, MASK)) + back((X, MASK)), rtol=1e-6)
    each = nn.Bidirectional((5, 3), (5, 2), width=4, rngs=nnx.Rngs(0))
    slopes = jax.jacobian(each)(X)  # [5, 2, 5, 3]: every row is of every step
    assert np.all(np.abs(slopes).max(axis=(1, 3)) > 1e-6)


def test_a_generator_runs_on_from_its_start():
    """h_1 = cell(0, z), h_t = cell(h_{t-1}, 0), and rows of rank `factors`."""
    net: Any = nn.RecurrentGenerator((3,), (6, 8), width=4, factors=2, rngs=nnx.Rngs(0))
    z, cell, h = jnp.asarray(X[0]), net.dynamics.cell, jnp.zeros(4)
    rows, inputs = [], [z] + 5 * [jnp.zeros(3)]
    for u in inputs:
        h, _ = cell(h, u)
        rows.append(net.last(net.dynamics.last.dense(h)))
    np.testing.assert_allclose(net(z), np.stack(rows), rtol=1e-5, atol=1e-6)
    spread = np.linalg.svd(np.asarray(net(z)) - np.asarray(net.last.bias[...]), compute_uv=False)
    assert spread[2] < 1e-5 < spread[1]
