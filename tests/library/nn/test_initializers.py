"""Initial kernels are flax's to the last bit, and layers of many shapes compile one program."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvae.nn import MLP, ConvDecoder, ConvEncoder, Convolution, MaskedMLP, Recurrent, Transformer
from jaxvae.nn.initializers import FEWEST, fan_in_normal
from tests.common import programs_compiled


@pytest.mark.parametrize(
    ("shape", "scale"), [((1, 1), 1.0), ((3, 5), 4.0), ((4, 4, 3, 8), 1.0), ((300, 301), 1.0)]
)
def test_numbers_are_flaxs(shape, scale):
    theirs = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    expected = theirs(jax.random.key(1), shape)
    ours = partial(fan_in_normal, shape=shape, scale=scale)
    for kernel in ours(jax.random.key(1)), jax.jit(ours)(jax.random.key(1)):
        np.testing.assert_array_equal(kernel, expected)
        assert (kernel.dtype, kernel.weak_type) == (expected.dtype, expected.weak_type)


def test_every_precision(x64):
    for dtype in jnp.float64, jnp.float32, jnp.bfloat16, None:
        kernel = fan_in_normal(jax.random.key(1), (30, 20), dtype)
        assert kernel.dtype == jnp.dtype(dtype or jnp.float64)
        deviation = float(np.std(kernel.astype(jnp.float64))) * 30**0.5
        assert abs(deviation - 1) < 4 / (2 * kernel.size) ** 0.5


def test_many_shapes_are_one_program():
    fan_in_normal(jax.random.key(0), (2, 2))  # the first may compile it
    shapes = [(5, 7), (11, 13), (4, 4, 3, 17), (3, 3, 5, 19), (101, 103)]
    assert max(map(prod, shapes)) <= FEWEST
    assert programs_compiled(lambda: [fan_in_normal(jax.random.key(0), s) for s in shapes]) == 0


@pytest.mark.thorough
def test_networks_of_many_widths_are_built_of_few_programs():
    def build(odd: int) -> None:  # widths that no other test has
        rngs, hidden = nnx.Rngs(0), (odd + 100, odd + 102)
        MLP((odd,), (odd + 4,), hidden=hidden, rngs=rngs)
        ConvEncoder((8, 8, 1), (odd,), channels=(odd, odd + 6), hidden=hidden, rngs=rngs)
        ConvDecoder((odd,), (8, 8, 1), channels=(odd, odd + 6), hidden=hidden, rngs=rngs)
        Convolution(odd, odd + 6, size=3, rngs=rngs)
        MaskedMLP(3, 1, hidden=hidden, context=odd, rngs=rngs)

    build(23)  # 19 kernels
    zeros = 8  # of as many shapes, biases and the flow's last kernel: a program each
    assert programs_compiled(lambda: build(31)) <= zeros


@pytest.mark.parametrize(("network", "programs"), [(Transformer, 7), (Recurrent, 4)])
def test_sequences_too(network, programs):
    build = lambda width: network((3, 2), (2,), width=width, rngs=nnx.Rngs(0))
    build(20)
    assert programs_compiled(lambda: build(28)) <= programs  # 17 and 6 with flax's own kernels


def test_a_kernel_beyond_memory_is_an_error_and_does_not_end_the_process():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        fan_in_normal(jax.random.key(0), (2**42, 4))
