"""A trained model over a data set: what the loop by hand gives, however many rows at a time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.evaluation import collapse_panel, decode_all, encode_all, evaluate
from jaxvae.protocols import mean_of
from tests.common import close, standard_errors_off

XS = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
MODEL = jv.VAE(
    encode=nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0)),
    decode=nn.Conditional(nn.MLP, nn.NormalHead(), (2,), (3,), rngs=nnx.Rngs(1)),
    prior=jv.StandardNormal((2,)),
)
KEY = jax.random.key(1)
again = partial(jax.random.clone, KEY)  # the same draws on purpose


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [1, 3, 100, None])
def test_it_is_log_marginal_of_every_row(batch_size):
    found = evaluate(MODEL, again(), XS, num_samples=50, batch_size=batch_size)
    one = partial(jv.log_marginal, MODEL, num_samples=50)
    rows = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 7), XS)
    assert close(found.rows.value, rows.value)
    assert close(found.value, np.mean(rows.value))
    assert close(found.reliable, np.mean(rows.reliable))
    assert close(found.standard_error, np.sqrt(np.sum(rows.standard_error**2)) / 7)
    assert close(found.rate, np.mean(rows.rate))


def test_the_standard_error_is_the_spread_of_the_mean():
    """Over 60 keys, within what the spread of 60 leaves open: one part in sqrt(120), times four."""
    keys = jax.random.split(jax.random.key(2), 60)
    model = jv.VAE(  # q is a little wider than the posterior, of variance one half
        Partial(lambda x: jv.Normal(0.5 * x, jnp.full(3, 0.8))),
        Partial(lambda z: jv.Normal(z, jnp.ones(3))),
        jv.StandardNormal((3,)),
    )
    every = jax.jit(jax.vmap(lambda key: evaluate(model, key, XS, num_samples=200)[:2]))(keys)
    spread = np.std(every[0], ddof=1)
    assert abs(spread / np.sqrt(np.mean(every[1] ** 2)) - 1.0) < 4 / np.sqrt(120)


@pytest.mark.thorough
def test_the_rate_is_in_closed_form_or_at_a_sample():
    """Of a mixture for a prior at a draw of its own, whose mean over keys is the rate."""
    estimate = partial(jv.log_marginal, num_samples=1)
    q = MODEL.encode(XS[0])
    assert close(estimate(MODEL, again(), XS[0]).rate, jv.kl_divergence(q, MODEL.prior))
    twice = jv.Mixture(jnp.zeros(2), jv.Normal(jnp.zeros((2, 2)), jnp.ones((2, 2))))
    model: Any = MODEL._replace(prior=twice)
    keys = jax.random.split(jax.random.key(3), 1000)
    rates = jax.jit(jax.vmap(lambda key: estimate(model, key, XS[0]).rate))(keys)
    assert standard_errors_off(rates, jv.kl_divergence(q, MODEL.prior)) < 4


def test_of_a_collapsed_model_all_is_reliable_and_the_collapse_is_told():
    """A VampPrior whose encoder is saturated: one posterior for every x, which is the prior too."""
    encode = Partial(lambda x: jv.Normal(jnp.tanh(1e4 * jnp.ones(2)), jnp.full(2, 0.5)))
    collapsed: Any = jv.VampVAE(encode, MODEL.decode, pseudo_inputs=XS[:3])
    with pytest.warns(UserWarning, match="rate is 0.00 nats: every posterior is the prior") as told:
        found = evaluate(collapsed, again(), XS, num_samples=50)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert close(found.rate + 1.0, 1.0)
    evaluate(MODEL, again(), XS, num_samples=50)  # and of this one nothing


def test_it_is_traced_once_for_all_models_of_a_kind():
    traces = []

    def encode(bias, x):
        traces.append(x.shape)
        return jv.Normal(x + bias, jnp.ones(3))

    decode = Partial(lambda z: jv.Normal(z, jnp.ones(3)))
    for bias in (0.0, 1.0):
        model = jv.VAE(Partial(encode, jnp.full(3, bias)), decode, jv.StandardNormal((3,)))
        evaluate(model, again(), XS, num_samples=30)
        first = len(traces)
    assert len(traces) == first


@pytest.mark.parametrize("batch_size", [1, 3, 250])
def test_latents_and_reconstructions_are_those_of_each_row(batch_size):
    zs = encode_all(MODEL, XS, batch_size=batch_size)
    assert close(zs, jax.vmap(lambda x: mean_of(MODEL.encode(x)))(XS))
    xs = decode_all(MODEL, zs, batch_size=batch_size)
    assert close(xs, jax.vmap(lambda z: mean_of(MODEL.decode(z)))(zs))


def test_distributions_are_stacked_and_functions_may_be_parts():
    """A model of bare functions is no pytree of arrays, and serves all the same."""
    model = jv.VAE(
        lambda x: jv.Normal(x, jnp.ones(3)), lambda z: jv.Normal(2.0 * z, 1.0), MODEL.prior
    )
    q = encode_all(model, XS, of=lambda q: q)
    assert isinstance(q, jv.Normal)
    assert close(q.loc, XS)
    assert q.scale.shape == XS.shape
    assert close(decode_all(model, XS, of=lambda p: p.mean()), 2.0 * XS)


def test_a_network_is_used_as_it_is_in_use():
    """Dropout of one half drops nothing here: twice the same, and the mean of training."""
    drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model: Any = MODEL._replace(encode=Partial(lambda drop, x: jv.Normal(drop(x), 1.0), drop))
    assert close(encode_all(model, XS), XS)


def test_the_panel_shows_what_each_latent_carries():
    """The second latent is the prior's at every x: of no rate and not active."""
    encode = Partial(lambda x: jv.Normal(jnp.stack([x[0], 0.0 * x[0]]), jnp.ones(2)))
    model = MODEL._replace(encode=encode)
    state = jv.TrainState(model, None, jnp.int32(10))
    panel = collapse_panel(XS, every=4)
    found: Any = panel(state, {"loss": np.zeros(3)}, 1.0, again())
    assert int(found["active_units"]) == 1
    assert close(found["rate_per_latent"], [0.5 * np.mean(XS[:, 0] ** 2), 0.0])
    assert panel(state, {"loss": np.zeros(2)}, 1.0, again()) is None  # no multiple of four since
    full = model._replace(encode=Partial(lambda x: jv.MultivariateNormal(x[:2], jnp.eye(2))))
    found = panel(state._replace(model=full), {"loss": np.zeros(3)}, 1.0, again())
    assert {name: int(v) for name, v in found.items()} == {"active_units": 2}


@pytest.mark.thorough
def test_the_panel_is_a_metric_of_the_run():
    optimizer = optax.adam(1e-2)
    _, history = jv.fit(
        jv.train_step(jv.elbo, optimizer), jv.init_state(MODEL, optimizer), jax.random.key(0), XS,
        epochs=2, batch_size=3, callbacks=[collapse_panel(XS)],
    )  # fmt: skip
    assert history["rate_per_latent"].shape == (4, 2)
    assert np.isfinite(history["rate_per_latent"]).tolist() == [[i % 2 == 1] * 2 for i in range(4)]
