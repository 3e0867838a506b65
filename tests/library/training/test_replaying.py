"""Steps made twice: a bit that flips once, in a parameter, a gradient or a metric, is found."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae import Checkpoints, StandardNormal, elbo, fit, init_state, train_step
from jaxvae.models import ppca
from jaxvae.training import ReplayError, load_checkpoint, newest_checkpoint
from jaxvae.training.replaying import compare

ADAM = optax.adam(1e-2)
ROWS = np.linspace(-1.0, 1.0, 36, dtype=np.float32).reshape(12, 3)
TRAIN = train_step(elbo, ADAM)
STEPS = 2 * 4  # of a run: 4 an epoch


def start() -> Any:
    model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    return init_state(model._replace(prior=StandardNormal((1,))), ADAM)


class Machine:
    """Computes wrongly once: at its n-th step it flips a bit of one number."""

    def __init__(self, n: int):
        self.n, self.steps = n, 0

    def mask(self, _: Any) -> Any:
        self.steps += 1
        return np.uint32((self.steps == self.n) << 16)

    def flipped(self, x: jax.Array) -> jax.Array:
        mask = jax.pure_callback(self.mask, jax.ShapeDtypeStruct((), np.uint32), x)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return jax.lax.bitcast_convert_type(bits.ravel().at[0].set(bits.ravel()[0] ^ mask), x.dtype)

    def in_parameter(self, state: Any, key: Any, xs: Any) -> Any:
        new, metrics = TRAIN(state, key, xs)
        flip = lambda x: self.flipped(x).reshape(x.shape)
        leaves, structure = jax.tree.flatten(new.model)
        return new._replace(model=structure.unflatten([flip(leaves[0]), *leaves[1:]])), metrics

    def in_gradient(self, state: Any, key: Any, xs: Any) -> Any:
        def flip(updates: Any, _: Any) -> Any:
            leaves, structure = jax.tree.flatten(updates)
            wrong = self.flipped(leaves[0]).reshape(leaves[0].shape)
            return structure.unflatten([wrong, *leaves[1:]])

        spoiled = optax.chain(optax.stateless(flip), ADAM)
        chained = state._replace(opt_state=(optax.EmptyState(), state.opt_state))
        new, metrics = train_step(elbo, spoiled)(chained, key, xs)
        return new._replace(opt_state=new.opt_state[1]), metrics

    def in_metric(self, state: Any, key: Any, xs: Any) -> Any:
        new, metrics = TRAIN(state, key, xs)
        return new, metrics | {"loss": self.flipped(metrics["loss"]).reshape(())}


def run(step: Callable[..., Any], **settings: Any) -> Any:
    return fit(
        step, start(), jax.random.key(0), ROWS, epochs=2, batch_size=3, steps_per_call=2, **settings
    )


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_machine_that_computes_rightly_sees_no_difference():
    assert same(run(TRAIN, replay=1), run(TRAIN))


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("in_parameter", r"of 3 numbers of \.model"),
        ("in_gradient", r"1 of 3 numbers of \.model\S* and in 2 other arrays"),  # mu, nu
        ("in_metric", r"of 2 numbers of metrics\['loss'\]"),
    ],
)
@pytest.mark.parametrize("n", [1, 6])  # the first making of the first call, the second of it too
def test_a_flipped_bit_is_found_and_named(how, where, n, tmp_path):
    step, right = (getattr(Machine(at), how) for at in (n, 0))
    with pytest.raises(ReplayError, match="steps [13] to [24], made twice, .*" + where) as found:
        run(step, replay=1, checkpoints=Checkpoints(tmp_path))
    begun = 0 if n == 1 else 2
    assert (int(found.value.state.step), found.value.step) == (begun, begun + 2)
    assert f"the state before it is in {newest_checkpoint(tmp_path)}" in str(found.value)
    assert same(load_checkpoint(newest_checkpoint(tmp_path), start()), found.value.state)
    # it was once: the run goes on from there, and nothing is lost
    assert same(run(step, replay=1, checkpoints=Checkpoints(tmp_path)), run(right))


@pytest.mark.parametrize("n", [5, 6])  # steps of the second call, which is not made twice
def test_one_call_in_so_many_is_made_twice(n):
    machine = Machine(n)
    run(machine.in_parameter, replay=2)
    assert machine.steps == STEPS + 4  # the first call and the third, of two steps each


def test_bits_are_compared_and_not_values():
    state = start()
    nan, zero = {"loss": jnp.array([jnp.nan, 0.0])}, {"loss": jnp.array([jnp.nan, -0.0])}
    compare(state, (state, nan), (state, nan))
    with pytest.raises(ReplayError, match=r"1 of 2 numbers of metrics\['loss'\]"):
        compare(state, (state, nan), (state, zero))


def test_replay_is_a_count():
    with pytest.raises(ValueError, match="replay is 0"):
        run(TRAIN, replay=0)
