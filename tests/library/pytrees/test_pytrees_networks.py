"""Networks with noise, state and static leaves, of three libraries, by one mechanism."""

import pickle
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.model import posterior
from jaxvae.nn.linen import linen_network
from jaxvae.pytrees.libraries import equinox_network, functional
from jaxvae.pytrees.networks import Network, in_training, statistics
from jaxvae.training.averaging import average_parameters, averaged_model

RNG = np.random.default_rng(0)
XS = RNG.normal(size=(6, 3)).astype(np.float32)
W, V = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, 4)))
SGD = optax.sgd(0.1)
key = jax.random.key
MOMENTUM = 0.9
PRIOR = jv.StandardNormal((2,))
DECODE = Partial(lambda b, z: jv.Normal(b + jnp.concatenate([z, z[:1]]), 1.0), jnp.zeros(3))


class Normed(nnx.Module):
    """A dense layer, a batch norm, a nonlinearity and a dense layer."""

    def __init__(self, in_shape=(3,), out_shape=(4,), *, rngs, dropout=0.0):
        self.first = nnx.Linear(in_shape[0], 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=MOMENTUM, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(4, out_shape[0], use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))


class NormedLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        h = linen.Dense(4, use_bias=False, name="first")(x)
        norm = linen.BatchNorm(not train, axis_name="batch", momentum=MOMENTUM, name="norm")
        return linen.Dense(4, use_bias=False, name="last")(jnp.tanh(norm(h)))


class NormedEquinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Linear(3, 4, use_bias=False, key=key(0))
        self.norm = eqx.nn.BatchNorm(4, "batch", momentum=MOMENTUM, mode="batch")
        self.last = eqx.nn.Linear(4, 4, use_bias=False, key=key(0))

    def __call__(self, x, state):
        h, state = self.norm(self.first(x), state)
        return self.last(jnp.tanh(h)), state


def from_nnx(**options) -> Any:
    net = Normed(rngs=nnx.Rngs(0), **options)
    net.first.kernel.set_value(jnp.asarray(W))
    net.last.kernel.set_value(jnp.asarray(V))
    return net


def from_linen():
    ones = jnp.ones(4)
    params = {
        "first": {"kernel": W},
        "last": {"kernel": V},
        "norm": {"scale": ones, "bias": 0 * ones},
    }
    running = {"norm": {"mean": 0 * ones, "var": ones}}
    return linen_network(NormedLinen(), {"params": params, "batch_stats": running})


def from_equinox():
    net, state = eqx.nn.make_with_state(NormedEquinox)()
    net = eqx.tree_at(lambda net: (net.first.weight, net.last.weight), net, (W.T, V.T))
    return equinox_network(net, state)


def vae(net: Any) -> Any:
    return jv.VAE(Partial(lambda net, x: nn.NormalHead()(net(x)), net), DECODE, PRIOR)


@cache
def compiled(objective=jv.elbo, optimizer=SGD):
    return jax.jit(jv.train_step(objective, optimizer))


def trained(model, steps=3, optimizer: Any = SGD, objective: Any = jv.elbo):
    state = jv.init_state(model, optimizer)
    losses = []
    for _ in range(steps):
        state, metrics = compiled(objective, optimizer)(state, key(0), XS)
        losses.append(metrics["loss"])
    return state, np.array(losses)


def test_statistics_of_the_batch_and_running_averages_are_numpys_over_three_steps():
    """And no optimiser moves them: weight decay of one half would be seen."""
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = jv.init_state(vae(from_nnx()), optimizer)
    mean, var = np.zeros(4), np.ones(4)
    for _ in range(3):
        net: Any = state.model.encode.args[0]
        h = XS @ np.float64(net.first.kernel[...])
        centred = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
        scaled = centred * np.float64(net.norm.scale[...]) + np.float64(net.norm.bias[...])
        raw = np.tanh(scaled) @ np.float64(net.last.kernel[...])
        loc, scale = raw[:, :2], np.log1p(np.exp(raw[:, 2:])) + 1e-6
        rate = np.sum(scale**2 + loc**2 - 1 - 2 * np.log(scale), 1).mean() / 2
        state, metrics = compiled(jv.elbo, optimizer)(state, key(0), XS)
        np.testing.assert_allclose(metrics["rate"], rate, rtol=2e-5)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * h.mean(0)
        var = MOMENTUM * var + (1 - MOMENTUM) * h.var(0)
        net = state.model.encode.args[0]
        np.testing.assert_allclose(net.norm.mean[...], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(net.norm.var[...], var, rtol=1e-5)


@pytest.mark.thorough
def test_three_libraries_give_one_number():
    runs = [trained(vae(make())) for make in (from_nnx, from_linen, from_equinox)]
    for _, losses in runs:
        np.testing.assert_allclose(losses, runs[0][1], rtol=1e-5)
    in_use = [state.model.encode(XS[0]).loc for state, _ in runs[:2]]
    np.testing.assert_allclose(in_use[0], in_use[1], rtol=1e-5)


def test_dropout_has_the_mean_of_the_network_in_use_and_each_example_its_own():
    dropout = functional(nnx.Dropout(0.25, rngs=nnx.Rngs(0)))
    keys = jax.random.split(key(0), 4000)
    draws = np.asarray(jax.vmap(lambda k: in_training(dropout, k)(jnp.ones(5)))(keys))
    assert set(np.unique(draws)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_allclose(draws.mean(0), 1.0, atol=6 * np.sqrt(1 / 3 / 4000))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(5) / 3, atol=0.03)
    assert np.array_equal(dropout(np.ones(5)), np.ones(5))


def test_dropout_draws_anew_at_every_step_and_for_both_networks():
    net = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    seen = lambda model, k, x: (0.0 * x[0], (model[0](x), model[1](x)))
    objective = jv.batched(lambda model, k, x: seen(in_training(model, k), k, x))
    both = functional((net, net))
    draws = [objective(both, jax.random.key(i), jnp.ones((4, 30)))[1] for i in range(2)]
    rows = np.concatenate([np.concatenate(pair) for pair in draws])
    assert len(np.unique(rows, axis=0)) == 16


def test_stock_equinox_trains_as_it_is_and_its_dropout_draws():
    mlp = eqx.nn.MLP(3, 4, 3, depth=1, activation=jnp.tanh, key=key(0))
    state, _ = trained(vae(mlp), steps=1)
    net: Any = state.model.encode.args[0]
    assert len(jax.tree.leaves(net)) == 4
    assert not np.array_equal(net.layers[0].weight, mlp.layers[0].weight)
    drops = functional(eqx.nn.Sequential([eqx.nn.Dropout(0.5)]))
    assert drops(jnp.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert {*in_training(drops, key(0))(jnp.ones(40)).tolist()} == {0.0, 2.0}


def test_spectral_norm_divides_by_the_largest_singular_value():
    norm = nnx.SpectralNorm(from_nnx().first, rngs=nnx.Rngs(1))
    net: Any = jv.VAE(Partial(lambda net, x: nn.NormalHead()(net(x)), norm), DECODE, PRIOR)
    state, _ = trained(net, 30, optax.set_to_zero())
    y = state.model.encode.args[0](XS[0])
    np.testing.assert_allclose(y, XS[0] @ W / np.linalg.svd(W)[1][0], rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "objective",
    [
        partial(jv.elbo, gradient=jv.score_function),
        partial(jv.elbo, gradient=jv.sticking_the_landing),
        partial(jv.iwae, num_samples=3, gradient=jv.doubly_reparameterized),
        jv.models.semi_amortized(jv.elbo, SGD, num_steps=2),
    ],
    ids=["score", "sticking", "doubly", "semi-amortized"],
)
def test_every_estimator_leaves_the_same_statistics(objective):
    make = partial(nn.Conditional, Normed, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0))
    model = jv.VAE(make(), DECODE, PRIOR)
    (state, _), (other, _) = trained(model, 1), trained(model, 1, objective=objective)
    for a, b in zip(
        *map(jax.tree.leaves, map(statistics, (state.model, other.model))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Counting(nnx.Module):
    """Counts in integers and knows by a boolean whether it was called."""

    def __init__(self):
        self.calls, self.called = nnx.BatchStat(jnp.array(2**24)), nnx.BatchStat(jnp.array(False))

    def __call__(self, x):
        self.calls[...] += 1
        self.called[...] = jnp.array(True)
        return jnp.concatenate([x, x[:1]])


def test_integers_and_booleans_are_exact():
    encode = Partial(lambda net, w, x: nn.NormalHead()(w * net(x)), Counting(), jnp.ones(4))
    model: Any = jv.VAE(encode, DECODE, PRIOR)
    state, _ = trained(model)
    net: Any = state.model.encode.args[0]
    assert (int(net.calls[...]), bool(net.called[...])) == (2**24 + 3, True)


@pytest.mark.thorough
def test_evaluation_is_deterministic_whether_the_model_was_trained_or_is_as_made():
    net = from_nnx(dropout=0.5)
    made, initial = vae(net), jv.init_state(vae(net), SGD).model
    x = XS[0]
    loc = np.tanh(x @ W / np.sqrt(1 + 1e-5)) @ V[:, :2]
    estimate = partial(jv.log_marginal, num_samples=4, chunk=4)
    for model in (made, initial):
        np.testing.assert_allclose(posterior(model, x).loc, loc, rtol=1e-5)
    assert estimate(made, key(0), x).value == estimate(initial, key(0), x).value
    bound = jv.batched(jv.elbo)(made, key(0), XS)[0]
    assert bound == jv.batched(jv.elbo)(initial, key(0), XS)[0]


def test_state_is_in_fit_checkpoints_and_averages(tmp_path):
    optimizer = optax.chain(SGD, average_parameters(0.5))
    run = partial(
        jv.fit, jv.train_step(jv.elbo, optimizer), key=key(0), data=XS, batch_size=3, epochs=2
    )
    first = jv.init_state(vae(from_nnx(dropout=0.5)), optimizer)
    whole, _ = run(first)

    class Stop(Exception):
        pass

    def stop(state, metrics, epoch, key):
        if int(state.step) >= 2:
            raise Stop

    saved = jv.training.Checkpoints(tmp_path, share=1.0)
    with pytest.raises(Stop):
        run(first, callbacks=[stop], checkpoints=saved)
    resumed, _ = run(first, checkpoints=saved)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.array_equal(a, b)
    assert all(
        np.any(a != b)
        for a, b in zip(
            *map(jax.tree.leaves, map(statistics, (first.model, whole.model))), strict=True
        )
    )
    average = averaged_model(whole)
    assert statistics(average)[0].keys() == statistics(whole.model)[0].keys()
    assert np.isfinite(average.encode(XS[0]).loc).all()
    with pytest.raises(ValueError, match=r"network: its state is missing.*averaged_model"):
        optax.tree.get(whole.opt_state, "average").encode(XS[0])


def test_a_sweep_trains_each_with_statistics_of_its_own():
    def run(scale):
        model = vae(from_nnx())
        state, _ = jv.train_step(jv.elbo, SGD)(jv.init_state(model, SGD), key(0), scale * XS)
        return statistics(state.model)

    together = jax.jit(jax.vmap(run))(jnp.array([1.0, 2.0]))
    h = XS @ W
    mean, var = jax.tree.leaves(together)
    np.testing.assert_allclose(mean, [0.1 * h.mean(0), 0.2 * h.mean(0)], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(var, [0.9 + 0.1 * h.var(0), 0.9 + 0.4 * h.var(0)], rtol=1e-5)


@pytest.mark.thorough
def test_pseudo_inputs_are_a_batch_of_their_own():
    """Each by itself, they would all be normalised to nothing."""
    model = jv.VampVAE(vae(from_nnx()).encode, DECODE, pseudo_inputs=jnp.asarray(XS[:3]))
    locs = lambda model, k, x: (0.0, in_training(model, k).prior.components.loc)
    h = XS[:3] @ W
    expected = np.tanh((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)) @ V[:, :2]
    found = jv.batched(lambda *a: (jnp.zeros(()), locs(*a)[1]))(functional(model), key(0), XS)[1]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_statistics_stay_in_float32_where_a_network_computes_in_less():
    make = lambda **dtype: nn.Conditional(
        Normed, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0), **dtype
    )
    found = []
    for dtype in (None, jnp.bfloat16):
        with jax.numpy_dtype_promotion("standard"):  # NNX's own
            state, _ = trained(jv.VAE(make(dtype=dtype), DECODE, PRIOR), 1)
        net: Any = state.model.encode
        found.append(net.network.norm.mean[...])
    assert found[1].dtype == jnp.float32
    np.testing.assert_allclose(found[0], found[1], atol=0.01)
    assert np.abs(found[1]).max() > 0.01


def test_a_forward_derivative_of_a_decoder_with_statistics():
    """Which the regularized autoencoder takes."""
    net = Partial(lambda net, z: jv.Normal(net(jnp.append(z, 1.0))[:3], 1.0), from_nnx())
    objective = partial(
        jv.regularizers.rae, penalty=jv.regularizers.gradient_penalty, beta=1.0, weight=1.0
    )
    model = vae(eqx.nn.Linear(3, 4, key=key(0)))._replace(decode=net)
    state, losses = trained(model, 1, objective=objective)
    assert np.isfinite(losses).all()
    assert np.any(state.model.decode.args[0].norm.mean[...])


def test_without_a_batch_there_are_no_statistics_of_one():
    model = in_training(functional(vae(from_nnx())), key(0))
    with pytest.raises(ValueError, match=r"batched: a network in training takes statistics"):
        jv.elbo(model, key(0), XS[0])


def test_a_batch_norm_of_linen_without_the_axis_is_refused():
    class NoAxis(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool):
            return linen.BatchNorm(not train)(linen.Dense(4)(x))

    module = NoAxis()
    net = linen_network(module, module.init(key(0), jnp.ones(3), train=False))
    with pytest.raises(
        ValueError, match=r'has axis_name None, expected BatchNorm\(axis_name="batch'
    ):
        trained(vae(net))


def test_a_network_reads_calls_and_pickles_as_it_was():
    net = functional(from_nnx())
    assert isinstance(net, Network)
    np.testing.assert_allclose(net.first(XS[0]), XS[0] @ W, rtol=1e-5)
    assert net.norm.momentum == MOMENTUM
    again = pickle.loads(pickle.dumps(net))
    assert jax.tree.structure(again) == jax.tree.structure(net)
    assert np.array_equal(again(XS[0]), net(XS[0]))
    with pytest.raises(AttributeError, match="no_such_layer"):
        _ = net.no_such_layer


def test_a_whole_model_may_be_one_module():
    class Whole(nnx.Module):
        def __init__(self):
            self.net = from_nnx(dropout=0.5)
            self.prior = PRIOR

        def encode(self, x):
            return nn.NormalHead()(self.net(x))

        def decode(self, z):
            return jv.Normal(jnp.concatenate([z, z[:1]]), 1.0)

    state, losses = trained(Whole(), 2)
    assert np.isfinite(losses).all()
    assert np.any(state.model.net.norm.mean[...])
    assert jv.reconstruct(state.model, key(0), XS[0]).mean().shape == (3,)


def test_what_holds_parameters_alone_stays_as_it_is():
    model = vae(nn.MLP((3,), (4,), rngs=nnx.Rngs(0)))
    assert functional(model) is model


# what used to go wrong


class Tied(nnx.Module):
    """One layer under two names, before and after a norm of two names."""

    def __init__(self, in_shape=(3,), out_shape=(4,), *, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.again = self.first
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.same = self.norm
        self.last = nnx.Linear(3, out_shape[0], rngs=rngs)

    def __call__(self, x):
        return self.last(self.again(jnp.tanh(self.same(self.first(x)))))


def test_a_layer_under_two_names_stays_one():
    state, _ = trained(vae(Tied(rngs=nnx.Rngs(0))), 1)
    net: Any = state.model.encode.args[0]
    assert len(net.params) == 6
    assert np.array_equal(net.first.kernel[...], net.again.kernel[...])
    h = jax.vmap(Tied(rngs=nnx.Rngs(0)).first)(jnp.asarray(XS))
    np.testing.assert_allclose(net.norm.mean[...], 0.01 * h.mean(0), rtol=1e-4, atol=1e-6)
    assert np.array_equal(net.norm.mean[...], net.same.mean[...])


def test_tied_weights_alone_stay_tied():
    layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    net = functional(nnx.Sequential(layer, jnp.tanh, layer))
    assert isinstance(net, Network)
    assert len(net.params) == 2
    twice = layer(jnp.tanh(layer(XS[0])))
    np.testing.assert_allclose(net(XS[0]), twice, rtol=1e-6)
    state, _ = trained(vae(nnx.Sequential(layer, jnp.tanh, layer, nn.MLP((3,), (4,), rngs=RNGS))))
    a, b = (state.model.encode.args[0].layers[i].kernel[...] for i in (0, 2))
    assert np.array_equal(a, b)


RNGS = nnx.Rngs(0)
NORMED = vae(from_nnx(dropout=0.5))
LIKELIHOOD = Partial(lambda net, h: jv.Bernoulli(h * net(jnp.ones(3))[0]), from_nnx())
DEEP = nn.deep_hierarchy((4, 4, 1), levels=(1,), width=4, rngs=nnx.Rngs(0))
PAIR = jv.regularizers.AdversarialPair(NORMED, nnx.Sequential(nnx.Dropout(0.5, rngs=RNGS), jnp.sum))
GIVEN = Partial(lambda e, d, y: jv.VAE(e, d, jv.StandardNormal((2,))), NORMED.encode, DECODE)
CLASSIFY = Partial(lambda net, x: jv.OneHotCategorical(net(x)), from_nnx(dropout=0.5))
CODES = Partial(lambda net, x: net(x).reshape(2, 2), from_nnx(dropout=0.5))
OF_CODES = Partial(lambda codes: jv.Normal(codes.ravel()[:3], 1.0))
RAW = [
    (jv.regularizers.adversarial_autoencoder, PAIR, XS[0]),
    (
        jv.models.unlabelled(jv.elbo),
        jv.models.LabelVAE(CLASSIFY, GIVEN, jv.OneHotCategorical(jnp.zeros(4))),
        XS[0],
    ),
    (jv.models.deep_elbo, DEEP._replace(likelihood=LIKELIHOOD), np.ones((4, 4, 1), np.float32)),
    (
        jv.models.vq,
        jv.models.VQVAE(
            CODES,
            jv.models.init_codebook(jnp.eye(2)),
            OF_CODES,
            jv.Categorical(jnp.zeros((2, 2))),
        ),
        XS[0],
    ),
    (
        jv.models.semi_amortized(jv.elbo, SGD, num_steps=1),
        NORMED._replace(
            encode=nn.Conditional(
                partial(Normed, dropout=0.5), nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0)
            )
        ),
        XS[0],
    ),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("objective", "model", "x"), RAW, ids=["pair", "label", "deep", "vq", "semi"]
)
def test_no_objective_calls_a_raw_network_in_training(objective, model, x):
    """One as made is what it is in a state: a part that an objective calls by itself too."""
    in_a_state = jv.init_state(model, SGD).model
    assert objective(model, key(0), x)[0] == objective(in_a_state, key(0), x)[0]


def test_a_constant_network_is_in_use_for_good():
    net = from_nnx(dropout=0.5)
    frozen = jv.Constant(net)
    np.testing.assert_array_equal(frozen(XS[0]), functional(net)(XS[0]))
    model = vae(from_nnx())._replace(
        decode=Partial(lambda net, z: jv.Normal(net(_wide(z))[:3], 1.0), frozen)
    )
    state, _ = trained(model, 1)
    assert state.model.decode.args[0] == frozen
    np.testing.assert_array_equal(frozen.norm.mean[...], np.zeros(4))


def _wide(z):
    return jnp.concatenate([z, z[:1]])


def test_gradient_statistics_are_of_what_trains():
    found = jv.evaluation.gradient_statistics(jv.elbo, NORMED, key(0), XS[0], num_draws=2)
    net = found.mean.encode.args[0]
    assert (len(net.params), net.state) == (4, {})


def test_an_update_that_an_optimizer_skips_leaves_the_statistics():
    state = jv.init_state(vae(from_nnx()), optax.apply_if_finite(SGD, 3))
    step = jax.jit(jv.train_step(jv.elbo, optax.apply_if_finite(SGD, 3)))
    new, _ = step(state, key(0), np.where(np.arange(6)[:, None], XS, np.float32(np.nan)))
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(new.model), strict=True):
        np.testing.assert_array_equal(a, b)


class ByField(linen.Module):
    """A mode that no argument of the call sets."""

    use: bool
    axis: str | None = "batch"

    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(self.use, axis_name=self.axis)(linen.Dense(4)(x))


class ByCall(linen.Module):
    axis: str

    @linen.compact
    def __call__(self, x, is_train: bool):
        return linen.BatchNorm(not is_train, axis_name=self.axis)(linen.Dense(4)(x))


def of_linen(module, **flags):
    return linen_network(module, module.init(key(0), XS[0], **flags))


class Looped(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        y, _ = jax.lax.scan(lambda x, _: (self.norm(x), None), x, length=2)
        return _wide(y)


def of_equinox(axis):
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis, mode="batch")
    net = equinox_network(norm, state)
    return Partial(lambda net, x: jnp.append(net(x), 0.0), net)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: of_equinox("rows"), r'named rows, expected axis_name="batch"'),
        (lambda: of_linen(ByCall("rows"), is_train=False), r"named rows, expected axis_name"),
        (lambda: of_linen(ByField(True)), r"running statistics in training.*is_train, determ"),
        (Looped, r"inside jax.jit, jax.checkpoint.*expected nnx.jit"),
        (lambda: linen.Dense(4), r"Dense of Linen without its variables, expected.*linen_network"),
    ],
    ids=["equinox-axis", "linen-axis", "frozen", "loop", "module"],
)
def test_what_can_not_train_says_so_in_one_line(net, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        jax.eval_shape(lambda: trained(vae(net()), 1)[0].step)
    assert "\n" not in str(error.value)


def test_a_network_whose_mode_is_fixed_is_refused_in_use():
    net = linen_network(ByField(False), ByField(True).init(key(0), XS[0]))
    with pytest.raises(ValueError, match="network: it takes statistics of a batch in use"):
        net(XS[0])


def test_a_flag_of_linen_by_any_of_its_names():
    state, _ = trained(vae(of_linen(ByCall("batch"), is_train=False)), 1)
    assert all(np.any(leaf) for leaf in statistics(state.model)[0].values())


def test_a_network_says_what_it_holds():
    assert repr(functional(from_nnx())) == "Network(36 parameters, 8 of state)"


def test_a_network_of_equinox_is_read_as_deep_as_it_is():
    class Two(eqx.Module):
        first: eqx.nn.MLP
        drop: eqx.nn.Dropout

        def __call__(self, x, *, key=None):
            return self.drop(self.first(x), key=key)

        def twice(self, x):
            return 2.0 * self.first(x)

    net = functional(Two(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.nn.Dropout(0.5)))
    assert net.first.layers[0].weight.shape == (4, 3)
    assert net.drop.p == 0.5
    x = np.ones(3, np.float32)
    np.testing.assert_allclose(net.twice(x), 2.0 * net(x), rtol=1e-6)
