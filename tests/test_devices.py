"""Several devices agree with one: eight virtual ones, and two processes that talk to each other."""

import json
import os
import subprocess
import sys

COMMON = """
import json, os, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxvae import (Checkpoints, StandardNormal, VAE, elbo, fit, init_state, iwae, nn, ppca,
                    shard_rows, sweep, train_epoch, train_step)
from flax import nnx
from functools import partial

optimizer = optax.adam(1e-2)
data = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)

def start():
    rngs = nnx.Rngs(0)
    network = partial(nn.MLP, hidden=(16,))
    return init_state(VAE(
        nn.Conditional(network, nn.NormalHead(), (6,), (2,), rngs=rngs),
        nn.Conditional(network, nn.NormalHead(0.5), (2,), (6,), rngs=rngs),
        StandardNormal((2,)),
    ), optimizer)

def mesh_of(*shape, names=("batch", "model")):
    return jax.make_mesh(shape, names[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))

def close(a, b):
    return all(np.allclose(x, y, rtol=2e-4, atol=2e-5)
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
"""

EIGHT = (
    COMMON
    + """
assert len(jax.devices()) == 8
found = {}
for name, objective in {"elbo": elbo, "iwae": partial(iwae, num_samples=3)}.items():
    step = train_step(objective, optimizer)
    call = partial(fit, step, start(), jax.random.key(1), data, epochs=4, batch_size=16)
    one, metrics = call()
    many, shared = call(mesh=mesh_of(8))
    found[name] = close((one.model, metrics), (many.model, shared))
    rows = shard_rows(mesh_of(8), data)
    split, _ = fit(step, start(), jax.random.key(1), rows, epochs=4, batch_size=16, mesh=mesh_of(8))
    found[name + " rows split"] = close(one.model, split.model)
    found[name + " moved"] = not close(one.model, start().model)

# the batch really is split, and the state is everywhere
shapes = []
def look(model, key, x):
    return -jnp.sum((x - model) ** 2), None
def watched(state, key, xs, **hyper):
    jax.debug.inspect_array_sharding(xs, callback=lambda s: shapes.append(s.shard_shape(xs.shape)))
    return train_step(look, optimizer)(state, key, xs, **hyper)
state, _ = fit(watched, init_state(jnp.zeros(6), optimizer), jax.random.key(0), data, epochs=1,
               batch_size=16, mesh=mesh_of(8))
found["shard"] = shapes[0]
found["everywhere"] = state.model.sharding.is_fully_replicated

# a state that lies in its own way stays so: a weight split over the second axis
mesh = mesh_of(4, 2)
lies = NamedSharding(mesh, PartitionSpec("model"))
state = init_state(jax.device_put(jnp.zeros(6), lies), optimizer)
one, _ = fit(train_step(look, optimizer), init_state(jnp.zeros(6), optimizer), jax.random.key(0),
             data, epochs=2, batch_size=16)
state, _ = fit(train_step(look, optimizer), state, jax.random.key(0), data, epochs=2,
               batch_size=16, mesh=mesh)
found["own way"] = state.model.sharding == lies and close(one.model, state.model)

def run(key, beta, data):
    init_key, key = jax.random.split(key)
    weight = jax.random.normal(init_key, (6, 2))
    model = ppca.as_vae(ppca.PPCA(weight, jnp.zeros(6), jnp.array(0.5)))
    epoch = train_epoch(train_step(elbo, optimizer), batch_size=16)
    state, metrics = epoch(init_state(model, optimizer), key, data, beta=beta)
    return state.model, metrics["loss"]
grid = {"key": jax.random.split(jax.random.key(0), 5), "beta": jnp.array([0.5, 1.0])}
alone = sweep(run, grid, data=jnp.asarray(data), at_once=1)
for at_once in (1, 2, None):
    shared = sweep(run, grid, data=jnp.asarray(data), mesh=mesh_of(8), at_once=at_once)
    found[f"sweep {at_once}"] = close(alone.results, shared.results)
kept = sweep(run, grid, data=jnp.asarray(data), mesh=mesh_of(8), at_once=1, folder=sys.argv[1])
found["sweep kept"] = close(alone.results, kept.results)

# a run on eight devices goes on to the same bits, and on one device to about the same
class Stop(Exception): pass
def stop(state, metrics):
    if int(state.step) == 5: raise Stop
call = partial(fit, train_step(elbo, optimizer), start(), jax.random.key(1), data, epochs=4,
               batch_size=16, steps_per_call=1)
kept = Checkpoints(sys.argv[1] + "/fit", share=np.inf)
whole, _ = call(mesh=mesh_of(8))
try: call(mesh=mesh_of(8), checkpoints=kept, callbacks=[stop])
except Stop: pass
again, _ = call(mesh=mesh_of(8), checkpoints=kept)
found["resumed"] = all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(again)))

for name, bad in {"uneven": dict(batch_size=12, mesh=mesh_of(8)),
                  "explicit": dict(batch_size=16, mesh=jax.make_mesh((8,), ("batch",)))}.items():
    try: fit(train_step(elbo, optimizer), start(), jax.random.key(1), data, epochs=1, **bad)
    except ValueError as error: found[name] = str(error)
try: shard_rows(mesh_of(8), data[:9])
except ValueError as error: found["rows"] = str(error)
print(json.dumps(found))
"""
)


def test_eight_devices_agree_with_one(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("shard") == [2, 6]
    assert "batch_size is 12, which 8 devices can't share evenly" in found.pop("uneven")
    assert "axis 'batch' is Explicit, expected Auto: jax.make_mesh(" in found.pop("explicit")
    assert "9 rows on 8 devices" in found.pop("rows")
    assert len(found) == 13
    assert all(found.values()), found
