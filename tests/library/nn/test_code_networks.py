"""Networks that draw codes: all codes of a small grid, what each sees, and rows from the cache."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae import nn
from jaxvae.evaluation import tempered, top_k
from tests.common import close, draws, standard_errors_off

SMALL = {"width": 8, "depth": 3}
NAMES = pytest.mark.parametrize("name", ["pixels", "attention"])


def make(name, grid, labels, **sizes):
    """Of a grid, or of as long a sequence, in the precision of the test."""
    rngs, sizes = nnx.Rngs(0), SMALL | sizes
    if name == "pixels":
        net = nn.PixelCNN(grid, labels, rngs=rngs, **sizes)
    else:
        sizes.pop("reach", None)
        net = nn.CausalTransformer(grid[0] * grid[1], labels, heads=2, rngs=rngs, **sizes)
    rng = np.random.default_rng(0)  # biases start at 0
    return jax.tree.map(lambda a: a.astype(float) + 0.1 * rng.normal(size=a.shape), net)


@pytest.fixture
def exact(x64):
    """Float64; flax's layer norm promotes float32 numbers of its own."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def sharp(raw):
    return jv.Categorical(3.0 * raw)


def prior_of(net, d, context=None):
    return jv.Autoregressive(net, sharp, d, context)


def ways(labels, d):
    return jnp.array(list(product(range(labels), repeat=d)))


def probabilities(prior, codes):
    return jnp.exp(jax.jit(jax.vmap(prior.log_prob))(codes))


@pytest.mark.thorough
@NAMES
def test_a_code_is_told_all_codes_before_it_and_no_other(name, exact):
    """Every code has a label of its own, so that the table's Jacobian tells the places apart."""
    net, d = make(name, (3, 4), 12, reach=1), 12
    z = jax.random.permutation(jax.random.key(0), d)
    graph, tables, rest = nnx.split(net, nnx.PathContains("embedding"), ...)
    slopes = jax.jit(jax.jacobian(lambda tables: nnx.merge(graph, tables, rest)(z)))(tables)
    slopes = jax.tree.leaves(slopes)[0][:, :, z]  # [i, labels, j, width]
    seen = jnp.max(jnp.abs(slopes), axis=(1, 3))
    before = np.arange(d)[None, :] < np.arange(d)[:, None]
    assert np.all(seen[~before] == 0.0)
    assert np.min(seen[before]) > 1e-9


@NAMES
@pytest.mark.parametrize("context", [pytest.param(0, marks=pytest.mark.thorough), 2])
def test_probabilities_of_all_codes_sum_to_1(name, context, exact):
    net = make(name, (2, 3), 2, context=context)
    codes = ways(2, 6)
    given = jnp.eye(2) if context else [None]
    p = [probabilities(prior_of(net, 6, y), codes) for y in given]
    assert np.allclose(np.sum(p, axis=1), 1.0, rtol=0, atol=1e-12)
    if context:
        assert np.abs(p[0] - p[1]).max() > 1e-4


@NAMES
@pytest.mark.thorough
def test_rows_from_the_cache_are_those_of_one_pass(name, exact):
    net, context = make(name, (4, 3), 5, reach=2, context=2), jnp.array([0.3, -1.0])
    z = jax.random.randint(jax.random.key(1), (12,), 0, 5)

    def one(cache, i):
        return net.step(cache, i, jnp.where(i > 0, z[i - 1], 0).astype(float))

    _, rows = jax.jit(lambda: jax.lax.scan(one, net.init_cache(context), jnp.arange(12)))()
    assert np.allclose(rows, net(z, context), rtol=0, atol=1e-12)
    steps = prior_of(net, 12, context)  # so the log p of what is drawn is the same, exactly
    assert close(steps.log_prob(z), jnp.sum(jax.vmap(lambda r, k: sharp(r).log_prob(k))(rows, z)))


def cut(net, codes, temperature, k):
    """p of codes under a conditional at a temperature, in which all but the k largest are 0."""
    logits = 3.0 * np.asarray(jax.vmap(net)(codes))  # [n, places, labels]
    largest = logits >= np.sort(logits)[..., [-k]]
    weights = np.exp(logits / temperature) * largest
    p = weights / weights.sum(-1, keepdims=True)
    return np.prod(np.take_along_axis(p, np.asarray(codes)[..., None], axis=-1), axis=(1, 2))


@NAMES
@pytest.mark.parametrize(
    ("temperature", "k"), [pytest.param(1.0, 3, marks=pytest.mark.thorough), (0.6, 2)]
)
def test_draws_are_as_frequent_as_their_probabilities(name, temperature, k, exact):
    """Of all 81 codes of a 2x2 grid; cut to two labels in each place, of 16."""
    net, codes = make(name, (2, 2), 3), ways(3, 4)
    prior = prior_of(net, 4)
    if k < 3:
        prior = top_k(tempered(prior, temperature), k)
        other = tempered(top_k(prior_of(net, 4), k), temperature)
        assert close(probabilities(other, codes), probabilities(prior, codes))
    p = cut(net, codes, temperature, k)
    assert close(probabilities(prior, codes), p)
    assert np.sum(p > 0) == k**4
    found = draws(prior.sample, 20_000)
    index = np.asarray(found) @ np.array([27, 9, 3, 1])
    assert set(index) <= set(np.flatnonzero(p))
    often = p > 2e-3  # of at least forty draws, so that their spread is known
    assert np.sum(p[often]) > 0.9
    assert (
        standard_errors_off((index[:, None] == np.flatnonzero(often)).astype(float), p[often]) < 4
    )


@pytest.mark.thorough
def test_a_pixel_cnn_is_its_formulas_place_by_place(exact):
    """Loops over places and taps, where what is outside is 0; the convolutions nowhere."""
    net, n = make("pixels", (3, 4), 3, depth=2, context=2), 8
    z, y = jax.random.randint(jax.random.key(2), (3, 4), 0, 3), np.array([0.5, 2.0])
    x = np.asarray(net.embedding[...])[z]

    def at(f, r, c):
        return f[r, c] if 0 <= r < 3 and 0 <= c < 4 else np.zeros(n)

    def dense(layer, v):
        return v @ np.asarray(layer.kernel[...]) + (0 if layer.bias is None else layer.bias[...])

    def gate(a):
        return np.tanh(a[:n]) / (1 + np.exp(-a[n:]))

    places = list(product(range(3), range(4)))
    v = {(r, c): at(x, r - 1, c) for r, c in places}
    h = {(r, c): at(x, r, c - 1) for r, c in places}
    for layer in net.layers:
        up, new = {}, {}
        for r, c in places:
            near = [v.get((r + i, c + j), np.zeros(n)) for i in (-1, 0) for j in (-1, 0, 1)]
            up[r, c] = dense(layer.above, np.concatenate(near)) + dense(layer.contexts[0], y)
            near = np.concatenate([h.get((r, c - 1), np.zeros(n)), h[r, c]])
            a = dense(layer.left, near) + dense(layer.across, up[r, c])
            new[r, c] = h[r, c] + dense(layer.out, gate(a + dense(layer.contexts[1], y)))
        v, h = {place: gate(a) for place, a in up.items()}, new
    relu = partial(np.maximum, 0.0)
    expected = [dense(net.last, relu(dense(net.middle, relu(h[p])))) for p in places]
    assert close(net(z.ravel(), jnp.asarray(y)), np.stack(expected))


@pytest.mark.thorough
def test_a_causal_transformer_sees_the_order_of_codes(exact):
    """One block without positions would take z_1 and z_2 in either order for the same."""
    net = make("attention", (1, 5), 4, depth=1)
    a, b = net(jnp.array([0, 1, 2, 3, 0])), net(jnp.array([1, 0, 2, 3, 0]))
    assert np.abs(a - b)[3:].max(axis=1).min() > 1e-4
    same = net(jnp.full(5, 2))
    assert np.abs(np.diff(same[1:], axis=0)).max(axis=1).min() > 1e-4


@pytest.mark.thorough
@NAMES
def test_a_draw_costs_about_one_pass(name):
    """Not one for every code: all steps together are less than two passes' arithmetic."""
    net = make(name, (12, 12), 16, width=32)

    def flops(function, *args):
        analysis: Any = jax.jit(function).lower(*args).compile().cost_analysis()
        return analysis["flops"]

    z, cache = jnp.zeros(144), net.init_cache()
    step = flops(net.step, cache, jnp.array(5), jnp.array(1.0))
    if name == "pixels":  # the vertical stack's row, counted at every step, is one of twelve
        step -= flops(net._next_row, *cache[1:], cache[0]) * 11 / 12
    assert 144 * step < 2 * flops(net, z)


@NAMES
def test_what_does_not_fit_is_refused(name):
    net, owner = make(name, (2, 2), 3), {"pixels": "PixelCNN", "attention": "CausalTransformer"}
    with pytest.raises(ValueError, match=rf"{owner[name]}: z has shape \(5,\), expected \(4,\)"):
        net(jnp.zeros(5))
    for call in (partial(net, jnp.zeros(4)), net.init_cache):
        with pytest.raises(ValueError, match=r"context has shape \(3,\), expected \(0,\)"):
            call(jnp.zeros(3))
    with pytest.raises(ValueError, match="labels is 0, expected an integer of at least 1"):
        make(name, (2, 2), 0)


@NAMES
def test_half_precision_reads_every_code(name):
    """bfloat16 tells 513 from 512 no more, and another code would be read."""
    net = make(name, (1, 3), 600)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), net)
    p = jax.jit(jv.Autoregressive(half, jv.Categorical, 3).log_prob)
    with jax.numpy_dtype_promotion("standard"):
        given = half(jnp.array([513, 5, 7]))
        exact = jv.Categorical(given).log_prob(jnp.array([513, 5, 7]))
        assert np.isclose(p(jnp.array([513, 5, 7])), exact, atol=0.2)
