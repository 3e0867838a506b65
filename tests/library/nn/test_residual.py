"""Residual networks: convolutions that are one on every machine, cells that start as nothing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae as jv
from jaxvae.nn.residual import (
    Bottleneck,
    Convolution,
    ResidualBlock,
    ResidualCell,
    convolution,
    convolution_products,
)
from jaxvae.training.averaging import average_parameters
from tests.common import close

IMAGE = jax.random.normal(jax.random.key(0), (5, 4, 6))


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3])
def test_both_forms_are_one_convolution(x64, size):
    """In value and in both gradients, and that of flax."""
    x = jnp.asarray(IMAGE, float)
    layer = nnx.Conv(6, 3, (size, size), param_dtype=float, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(layer.kernel[...], float)
    kernel = layer.kernel[...]

    def sensitive(form, x, kernel):
        return jnp.sum(jnp.sin(form(x, kernel)))

    exact = layer(x)
    values = [jax.value_and_grad(partial(sensitive, f), (0, 1))(x, kernel) for f in FORMS]
    for form, value in zip(FORMS, values, strict=True):
        assert close(form(x, kernel), exact)
        for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(values[0]), strict=True):
            assert close(a, b)


FORMS = (convolution, convolution_products)


@pytest.mark.thorough
def test_cells_keep_shape_and_start_as_nothing():
    rngs = nnx.Rngs(0)
    assert Bottleneck(6, 2, middle=3, rngs=rngs)(IMAGE).shape == (5, 4, 2)
    assert np.all(Bottleneck(6, 2, middle=3, scale=0.0, rngs=rngs)(IMAGE) == 0)
    assert np.array_equal(ResidualCell(6, middle=3, scale=0.0, rngs=rngs)(IMAGE), IMAGE)
    moved = ResidualCell(6, middle=3, rngs=rngs)(IMAGE)
    assert moved.shape == IMAGE.shape
    assert np.any(moved != IMAGE)
    with pytest.raises(ValueError, match="Convolution: input has shape"):
        Convolution(3, 6, rngs=rngs)(IMAGE)


def test_scale_is_of_the_last_kernel_at_the_start():
    """Beside one that keeps the variance: 1 / fan-in; the others keep theirs."""
    whole, half = (Bottleneck(40, 30, middle=50, scale=s, rngs=nnx.Rngs(0)) for s in (1.0, 0.5))
    for i, (a, b) in enumerate(zip(whole.convolutions, half.convolutions, strict=True)):
        k, _, n, _ = a.kernel.shape
        assert abs(np.var(a.kernel[...]) * k * k * n - 1.0) < 0.1
        assert close(b.kernel[...], (0.5 if i == 3 else 1.0) * a.kernel[...])


def gelu(x):
    return x * 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def convolved(layer, x):
    """A convolution written out, pixel by pixel of the kernel."""
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    k, (h, w, _) = len(kernel), x.shape
    around = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    places = [(i, j) for i in range(k) for j in range(k)]
    return bias + sum(around[i : i + h, j : j + w] @ kernel[i, j] for i, j in places)


def bottleneck(network, x):
    assert [layer.kernel.shape[0] for layer in network.convolutions] == [1, 3, 3, 1]
    for layer in network.convolutions:
        x = convolved(layer, gelu(x))
    return x


@pytest.mark.thorough
def test_a_block_by_hand(x64):
    """N(mu, sigma) of h, sigma = 1 at raw 0; then h + W z, through a cell x + f(x)."""
    block: Any = perturbed(ResidualBlock(6, 2, middle=3, rngs=nnx.Rngs(0)))
    h, z = np.asarray(IMAGE, float), np.cos(np.arange(40.0)).reshape(5, 4, 2)
    both = jax.jit(lambda block, h, z: (block.prior(h), block.merge((h, z))))
    (p, below), raw = both(block, h, z), bottleneck(block.above, h)
    assert close(p.loc, raw[..., :2])
    one = np.log(np.expm1(1.0 - 1e-6))
    assert close(p.scale, np.log1p(np.exp(raw[..., 2:] + one)) + 1e-6)
    merged = h + convolved(block.write, z)
    assert close(below, merged + bottleneck(block.cell.f, merged))


@pytest.mark.thorough
def test_a_block_starts_free_of_charge():
    block = ResidualBlock(6, 2, middle=3, rngs=nnx.Rngs(0))
    p, q = block.prior(IMAGE), block.posterior((IMAGE, 2.0 * IMAGE))
    assert close(p.loc, np.zeros((5, 4, 2)))
    assert close(p.scale, np.ones((5, 4, 2)))
    assert close(jv.kl_divergence(q, p), 0.0)


@pytest.mark.thorough
def test_a_block_moves_its_prior(x64):
    """KL = 1/2 sum (d^2 + s^2 - 1) - log s, whatever the prior: that is what moving it means."""
    block = perturbed(ResidualBlock(6, 2, middle=3, rngs=nnx.Rngs(0)))
    x = jnp.asarray(IMAGE, float)

    @jax.jit
    def parts(block, x):
        p, q = block.prior(x), block.posterior((x, jnp.sin(x)))
        raw = block.evidence(jnp.concatenate([x, jnp.sin(x)], axis=-1))
        return p, q, raw, jv.kl_divergence(q, p)

    p, q, raw, kl = parts(block, x)
    d, s = (q.loc - p.loc) / p.scale, q.scale / p.scale
    assert np.std(p.scale) > 0.01
    assert close(kl, jnp.sum(0.5 * (d**2 + s**2 - 1.0) - jnp.log(s)))
    assert close(d, raw[..., :2])


def perturbed(tree):
    """Every leaf moved, so that nothing is 0."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [0.3 * jax.random.normal(k, a.shape, float) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [a + n for a, n in zip(leaves, noise, strict=True)])


# the average of the parameters, and gradients too large to be taken


def descent(optimizer, gradients, model):
    """The parameters and the optimiser's state after each gradient."""
    state, path = optimizer.init(model), []
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, model)
        model = optax.apply_updates(model, updates)
        path.append((model, state))
    return path


def test_the_average_is_exponential_of_the_last_tenth_at_most(x64):
    model = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    gradients = [jax.tree.map(lambda p, t=t: jnp.sin(p + t), model) for t in range(50)]
    optimizer = optax.chain(optax.sgd(0.3), average_parameters(0.8))
    path = descent(optimizer, gradients, model)
    assert all(
        close(a, b)
        for (m, _), (n, _) in zip(path, descent(optax.sgd(0.3), gradients, model), strict=True)
        for a, b in zip(jax.tree.leaves(m), jax.tree.leaves(n), strict=True)
    )
    average = optax.tree.get(path[-1][1], "average")
    for name in model:
        exact = model[name]
        for t, (m, _) in enumerate(path, 1):
            d = min(0.8, t / (t + 9))
            exact = d * exact + (1 - d) * m[name]
        assert close(average[name], exact)


def test_the_average_says_what_it_needs():
    decay: Any
    for decay, error in (
        (1.0, ValueError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="average_parameters: decay is"):
            average_parameters(decay)
    average = average_parameters(0.5)
    with pytest.raises(ValueError, match="params is None"):
        average.update(jnp.ones(2), average.init(jnp.ones(2)))


def test_a_large_gradient_leaves_everything_and_is_counted():
    """As the deep hierarchy is trained: moments and average too, to the bit; NaN is large."""
    adam = optax.chain(optax.adamw(0.1), average_parameters(0.9))
    skip = partial(optax.skip_large_updates, max_squared_norm=100.0)
    optimizer = optax.MultiSteps(adam, 1, should_skip_update_fn=skip).gradient_transformation()
    model = jnp.array([1.0, -2.0])
    gradients = [jnp.array(g) for g in ([3.0, 4.0], [60.0, 80.0], [jnp.nan, 0.0], [1.0, 0.0])]
    (m1, s1), (m2, s2), (m3, s3), (m4, s4) = descent(optimizer, gradients, model)
    for m, s in ((m2, s2), (m3, s3)):
        assert np.array_equal(m, m1)
        kept = jax.tree.map(np.array_equal, s.inner_opt_state, s1.inner_opt_state)
        assert all(jax.tree.leaves(kept))
    assert [int(s.gradient_step) for s in (s1, s2, s3, s4)] == [1, 1, 1, 2]
    assert np.all(m1 != model)
    assert np.any(m4 != m3)
