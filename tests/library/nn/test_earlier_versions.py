"""What earlier versions wrote is still read: a model's folder and a checkpoint of each are kept.

python -m tests.library.nn.test_earlier_versions    # writes those of this version
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxvae
from jaxvae import nn, training
from jaxvae.pytrees import paths
from jaxvae.pytrees.libraries import functional

STORED = Path(__file__).parent / "earlier_versions"
OPTIMIZER = optax.adam(1e-2)


def model():
    """Parts of many kinds: norms with running statistics, a table, a constant mixture."""
    rngs = nnx.Rngs(0)
    network = partial(nn.MLP, hidden=(4,), norm=nnx.BatchNorm, activation=jnp.tanh)
    columns = (("size", nn.NormalHead(), (2,)), ("kind", nn.OneHotHead(), (1, 3)))
    components = jaxvae.Normal(jnp.zeros((3, 2)), jnp.array([[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]]))
    return jaxvae.VAE(
        nn.Conditional(network, nn.MultivariateNormalHead(), (5,), (2,), rngs=rngs),
        nn.Conditional(network, nn.ProductHead(columns), (2,), (), rngs=rngs),
        jaxvae.Constant(jaxvae.Mixture(jnp.zeros(3), components)),
    )


def answers(trained):
    """Numbers that hang on every array of the model, in float32."""
    z = jnp.array([0.3, -0.2])
    log_q = trained.encode(jnp.linspace(-1.0, 2.0, 5)).log_prob(z)
    parts = log_q, trained.decode(z).mean(), trained.prior.log_prob(z)
    return [float(number) for part in jax.tree.leaves(parts) for number in np.ravel(part)]


def write(folder):
    folder.mkdir(parents=True)
    moved = jax.tree.map(
        lambda leaf: (
            leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
        ),
        functional(model()),
    )
    state = jaxvae.init_state(moved, OPTIMIZER)
    nn.save_model(folder / "model", state.model, about={"columns": ["size", "kind"]})
    (folder / "model" / "README.md").unlink()  # which says where it lay
    training.save_checkpoint(folder / "state.ckpt", state, info={"epoch": 3})
    (folder / "answers.json").write_text(json.dumps(answers(nn.load_model(folder / "model"))))


FOLDERS = sorted(STORED.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_was_written_is_read(folder):
    expected = json.loads((folder / "answers.json").read_text())
    trained = nn.load_model(folder / "model")
    np.testing.assert_allclose(answers(trained), expected, rtol=1e-5, atol=1e-6)
    assert nn.model_info(folder / "model")["versions"]["jaxvae"].startswith(folder.name)
    assert nn.model_info(folder / "model")["about"] == {"columns": ["size", "kind"]}

    state = training.load_checkpoint(folder / "state.ckpt", jaxvae.init_state(trained, OPTIMIZER))
    for path, leaf in paths(trained).items():
        np.testing.assert_array_equal(paths(state.model)[path], leaf)
    assert training.read_checkpoint(folder / "state.ckpt").info == {"epoch": 3}


def test_this_version_is_among_them():
    assert ".".join(jaxvae.__version__.split(".")[:2]) in {folder.name for folder in FOLDERS}


if __name__ == "__main__":
    write(STORED / ".".join(jaxvae.__version__.split(".")[:2]))
