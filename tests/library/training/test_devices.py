"""Several devices agree with one: eight virtual ones, and two processes that talk to each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxvae.training import read_checkpoint, shard_rows
from jaxvae.training.checkpoints.resuming import checkpoint_files

COMMON = """
import json, os, sys, time
import jax, jax.numpy as jnp, numpy as np, optax, scipy.sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxvae import (Checkpoints, StandardNormal, VAE, elbo, fit, init_state, iwae, nn, sweep,
                    train_epoch, train_step)
from jaxvae.models import ppca
from jaxvae.training import shard_rows
from flax import nnx
from functools import partial

optimizer = optax.adam(1e-2)
data = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)

class Network(nnx.Module):  # with running averages and noise
    def __init__(self, in_shape, out_shape, *, rngs):
        self.norm = nnx.BatchNorm(*in_shape, rngs=rngs)
        self.mlp = nn.MLP(in_shape, out_shape, hidden=(16,), rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
    def __call__(self, x):
        return self.dropout(self.mlp(self.norm(x)))

def start():
    rngs = nnx.Rngs(0)
    return init_state(VAE(
        nn.Conditional(Network, nn.NormalHead(), (6,), (2,), rngs=rngs),
        nn.Conditional(Network, nn.NormalHead(0.5), (2,), (6,), rngs=rngs),
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
def stop(state, metrics, epoch, key):
    if int(state.step) == 5: raise Stop
call = partial(fit, train_step(elbo, optimizer), start(), jax.random.key(1), data, epochs=4,
               batch_size=16, steps_per_call=1)
kept = Checkpoints(sys.argv[1] + "/fit", share=np.inf)
whole, _ = call(mesh=mesh_of(8))
try: call(mesh=mesh_of(8), checkpoints=kept, callbacks=[stop])
except Stop: pass
again, _ = call(mesh=mesh_of(8), checkpoints=kept)
found["resumed"] = all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(again)))

# elastic: 8, 3, 1 and again 8 devices, two epochs each, of batches of 24
call = partial(fit, train_step(elbo, optimizer), start(), jax.random.key(1), data, batch_size=24)
def of(number): return jax.make_mesh((number,), ("batch",), axis_types=(AxisType.Auto,),
                                     devices=jax.devices()[:number])
_, one = call(epochs=8)
for epochs, number in zip((2, 4, 6, 8), (8, 3, 1, 8)):
    _, elastic = call(epochs=epochs, mesh=of(number),
                      checkpoints=Checkpoints(sys.argv[1] + "/elastic"))
difference = np.abs(elastic["loss"] / one["loss"] - 1)
found["elastic"] = len(difference) == 16 and float(difference.max())
try: call(epochs=9, mesh=of(5), checkpoints=Checkpoints(sys.argv[1] + "/elastic"))
except ValueError as error: found["by five"] = str(error)

# elastic too where parameters are split: over four, over two and on one
def split(*shape):
    lies = NamedSharding(mesh_of(*shape), PartitionSpec(None, "model"))
    put = lambda a: jax.device_put(a, lies) if jnp.shape(a) == (6, 16) else a
    return jax.tree.map(put, start())
every = dict(key=jax.random.key(1), data=data, batch_size=24)
_, one = fit(train_step(elbo, optimizer), start(), epochs=3, **every)
for epochs, state, mesh in ((1, split(2, 4), mesh_of(2, 4)), (2, split(4, 2), mesh_of(4, 2)),
                            (3, start(), None)):
    _, elastic = fit(train_step(elbo, optimizer), state, epochs=epochs, mesh=mesh, **every,
                     checkpoints=Checkpoints(sys.argv[1] + "/split"))
found["elastic split"] = np.allclose(elastic["loss"], one["loss"], rtol=1e-5)

# streams, sparse rows and functions of a key: each device has its part of every batch
sparse = scipy.sparse.csr_array(np.where(data > 0, data, 0).astype(np.float32))
call = partial(fit, train_step(elbo, optimizer), start(), jax.random.key(1), epochs=2)
for name, given in {"list": dict(data=[data[:16], data[16:32], data[32:48]], steps_per_call=2),
                    "sparse": dict(data=sparse, batch_size=16),
                    "function": dict(data=lambda key: jax.random.normal(key, (16, 6)),
                                     steps_per_epoch=3)}.items():
    one, many = call(**given)[0], call(**given, mesh=mesh_of(8))[0]
    found["stream " + name] = close(one.model, many.model) and int(many.step) == 6

twelve = lambda key: jnp.ones((12, 6))
for name, bad in {"uneven batch": dict(data=[data[:12]]),
                  "uneven draw": dict(data=twelve, steps_per_epoch=1)}.items():
    try: fit(train_step(elbo, optimizer), start(), jax.random.key(1), epochs=1, mesh=mesh_of(8),
             **bad)
    except ValueError as error: found[name] = str(error)

for name, bad in {"uneven": dict(batch_size=12, mesh=mesh_of(8)),
                  "explicit": dict(batch_size=16, mesh=jax.make_mesh((8,), ("batch",)))}.items():
    try: fit(train_step(elbo, optimizer), start(), jax.random.key(1), data, epochs=1, **bad)
    except ValueError as error: found[name] = str(error)
try: shard_rows(mesh_of(8), data[:9])
except ValueError as error: found["rows"] = str(error)
print(json.dumps(found))
"""
)


@pytest.mark.thorough
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
    assert "batch_size is 24, which 5 devices can't share evenly" in found.pop("by five")
    assert 0 < found.pop("elastic") < 1e-6
    for name in ("uneven batch", "uneven draw"):
        assert "12 rows, which 8 devices can't share evenly" in found.pop(name)
    assert "axis 'batch' is Explicit, expected Auto: jax.make_mesh(" in found.pop("explicit")
    assert "9 rows on 8 devices" in found.pop("rows")
    assert len(found) == 17
    assert all(found.values()), found


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def together(command, num=2):
    """As many processes of one run."""
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", str(num)]
    return [
        subprocess.Popen(
            [sys.executable, *command, *where, "--process", str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(num)
    ]


def ends(processes):
    """Exit codes and what was told, within a time."""
    told = []
    try:
        for process in processes:
            told.append("".join(process.communicate(timeout=100)))
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told


def leaves(folder):
    return read_checkpoint(checkpoint_files(folder)[-1]).leaves


@pytest.mark.slow
def test_two_processes_are_one_that_can_be_stopped_and_killed(tmp_path):
    """The same model as one process's; after SIGTERM and SIGKILL the same to the last bit."""
    small = ["--hidden", "16", "--latent", "2", "--epochs", "40", "--steps-per-call", "5"]
    command = ["-m", "experiments.many_processes", *small, "--output"]
    codes, _ = ends(together([*command, str(tmp_path / "one")], num=1))
    assert codes == [0]
    codes, _ = ends(together([*command, str(tmp_path / "two")]))
    assert codes == [0, 0]
    for number, hurt, expected in [
        (signal.SIGTERM, 1, [143, 143]),
        (signal.SIGKILL, 1, [1, -signal.SIGKILL]),
    ]:
        processes = together([*command, str(tmp_path / "hurt")])
        assert processes[0].stdout is not None
        begun = (line for line in processes[0].stdout if line.startswith("step "))
        assert len([line for line, _ in zip(begun, range(3), strict=False)]) == 3
        start = time.monotonic()
        processes[hurt].send_signal(number)
        codes, told = ends(processes)
        assert time.monotonic() - start < 30
        assert codes == expected, told
        if number == signal.SIGKILL:
            assert "start all 2 again with the same commands" in told[1 - hurt]
    codes, _ = ends(together([*command, str(tmp_path / "hurt")]))
    assert codes == [0, 0]
    one, two, hurt = (leaves(tmp_path / name) for name in ("one", "two", "hurt"))
    for path in one.keys() - {"['key']"}:
        assert np.array_equal(two[path], hurt[path]), path
        if "metrics" in path:  # the runs part slowly, by rounding
            assert np.allclose(one[path][:50], two[path][:50], rtol=1e-3), path


SHARDED = (
    COMMON
    + """
import argparse, warnings
parser = argparse.ArgumentParser()
parser.add_argument("--folder"); parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int); parser.add_argument("--process", type=int)
c = parser.parse_args()
jax.distributed.initialize(c.coordinator, c.processes, c.process)
mesh = jax.make_mesh((1, 2), ("batch", "model"), axis_types=(AxisType.Auto,) * 2)
lies = NamedSharding(mesh, PartitionSpec("model"))
def look(model, key, x):
    return -jnp.sum((x - model) ** 2), None
weight = jax.make_array_from_callback((6,), lies, lambda index: np.zeros(6, np.float32)[index])
class Stop(Exception): pass
def stop(state, metrics, epoch, key):
    if int(state.step) == 5: raise Stop
step = train_step(look, optimizer)
call = partial(fit, step, init_state(weight, optimizer), jax.random.key(0), data, epochs=4,
               batch_size=16, steps_per_call=1, mesh=mesh)
whole, _ = call()
kept = Checkpoints(c.folder, share=np.inf, keep=2)
try: call(checkpoints=kept, callbacks=[stop])
except Stop: pass
def same(a, b):
    here = lambda x: np.asarray(x.addressable_data(0))
    return all(np.array_equal(here(x), here(y)) for x, y in zip(*map(jax.tree.leaves, (a, b))))
found = {"kept": sorted(name for name in os.listdir(c.folder) if name != ".lock")}
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("listed")
if c.process == 0:  # a byte of an array changes, in the newest
    import pathlib
    newest = pathlib.Path(c.folder, found["kept"][-1], "state", "arrays")
    largest = max((f for f in newest.rglob("*") if f.is_file() and "/d/" in str(f)),
                  key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes()); content[len(content) // 2] ^= 1
    largest.write_bytes(content)
multihost_utils.sync_global_devices("spoiled")
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    seen = []
    again, _ = call(checkpoints=kept, callbacks=[lambda s, m, e, k: seen.append(int(s.step))])
found |= {"same": same(whole, again), "told": [str(w.message) for w in told], "from": seen[0],
          "laid": again.model.sharding == lies,
          "here": again.model.addressable_data(0).shape}
try: fit(step, init_state((weight, weight), optimizer), jax.random.key(0), data, epochs=4,
         batch_size=16, mesh=mesh, checkpoints=kept)
except Exception as error: found["other"] = str(error)
print(json.dumps(found), flush=True)
"""
)


@pytest.mark.slow
def test_a_state_that_processes_hold_together_is_saved_and_guarded(tmp_path):
    """Half a weight in each; a flipped byte is seen, and the checkpoint before it is used."""
    codes, told = ends(together(["-c", SHARDED, "--folder", str(tmp_path)]))
    assert codes == [0, 0], told
    for output in told:
        found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        assert found["kept"] == ["step_0000000003.ckpt", "step_0000000004.ckpt"]
        assert found["from"] == 3
        assert found["same"]
        assert found["laid"]
        assert found["here"] == [3]
        assert any("is not what was written" in message for message in found["told"])
        assert "is of another model or optimiser" in found["other"]


STREAMED = (
    COMMON
    + """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--folder"); parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int); parser.add_argument("--process", type=int)
c = parser.parse_args()
jax.distributed.initialize(c.coordinator, c.processes, c.process)
mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
def look(model, key, x):
    return -jnp.sum((x - model) ** 2), None
class Stop(Exception): pass
def stop(state, metrics, *_):
    if int(state.step) == 3: raise Stop
step, zero = train_step(look, optimizer), init_state(jnp.zeros(6), optimizer)
call = partial(fit, step, zero, jax.random.key(0), epochs=2, steps_per_call=1)
whole = [data[i : i + 16] for i in (0, 16, 32)]
mine = [batch[8 * c.process : 8 * c.process + 8] for batch in whole]
alone, _ = call(whole)
together, _ = call(mine, mesh=mesh)
here = lambda state: [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(state)]
kept = Checkpoints(c.folder, share=np.inf)
try: call(mine, mesh=mesh, checkpoints=kept, callbacks=[stop])
except Stop: pass
again, _ = call(mine, mesh=mesh, checkpoints=kept)
found = {"agree": close(here(alone), here(together)),
         "resumed": all(map(np.array_equal, here(together), here(again)))}
try: call(mine[: 3 - c.process], mesh=mesh)
except ValueError as error: found["uneven"] = str(error)
print(json.dumps(found), flush=True)
"""
)


@pytest.mark.slow
def test_two_processes_read_their_own_part_of_a_stream(tmp_path):
    codes, told = ends(together(["-c", STREAMED, "--folder", str(tmp_path)]))
    assert codes == [0, 0], told
    for output in told:
        found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        assert found["agree"]
        assert found["resumed"]
        assert "next calls have [1, 0] batches of [8, 0] rows" in found["uneven"]


def test_rows_are_shared_over_a_mesh_alone():
    with pytest.raises(TypeError, match=r"^shard_rows: mesh is an int, expected a mesh of devices"):
        shard_rows(3, np.ones((6, 2)))  # pyright: ignore
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(TypeError, match=r"^shard_rows: rows is a str, expected an array"):
        shard_rows(mesh, "rows")
