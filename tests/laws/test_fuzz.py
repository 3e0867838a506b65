"""Bad input to every public function: an error that names it, or a right result."""

import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import (
    array_shapes,
    arrays,
    boolean_dtypes,
    floating_dtypes,
    integer_dtypes,
    unsigned_integer_dtypes,
)
from jax.tree_util import Partial

import jaxvae as jv
from experiments import train
from experiments.common.config import Config
from jaxvae import nn
from jaxvae.evaluation import disentanglement, imputation, latent_space, truncation
from jaxvae.evaluation import sample_quality as quality
from jaxvae.models import multimodal, ppca, private_latents, state_space
from jaxvae.models import quantization as vq
from jaxvae.models import semi_supervised as semi
from jaxvae.models.diffusion import Diffusion, diffusion_kl
from jaxvae.models.exemplar import ExemplarVAE, left_out
from jaxvae.models.hamiltonian import HamiltonianVAE, Leapfrog
from jaxvae.models.not_at_random import MaskedBy, NotAtRandom
from jaxvae.protocols import mean_of
from jaxvae.regularizers import adversarial
from jaxvae.regularizers import regularized_autoencoder as rae
from jaxvae.training.averaging import average_parameters

LINEAR = ppca.PPCA(jnp.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]]), jnp.zeros(3), jnp.array(0.5))
MODEL = ppca.as_vae(LINEAR)
X = jnp.array([0.1, -0.4, 0.7])
XS = jnp.stack([X, -X, 2.0 * X, X + 1.0])
Q = jv.Normal(jnp.array([0.1, -0.2]), jnp.array([0.5, 2.0]))
P = jv.StandardNormal((2,))
Z = jnp.array([0.3, 0.4])
BETAS = jnp.array([0.0, 0.3, 1.0])
KEY = jax.random.key(0)
KEYS = jax.random.split(jax.random.key(1), 3)
TERM = lambda q, z, log_q: (-jnp.sum(z**2) - log_q, None)
LOGITS = jv.Categorical(jnp.array([0.1, 0.2, 0.7]))
SGD = optax.sgd(0.1)
PIXELS = np.array([0, 128, 255], np.uint8)
FACTORS = np.indices((3, 4), np.int32).reshape(2, -1).T
CODES = np.float32(FACTORS + 0.25 * np.sin(np.arange(24.0)).reshape(12, 2))
FEATURES = jnp.asarray(CODES)
BOOK = vq.init_codebook(jnp.array([[-1.0], [1.0]]))
BOOKS = vq.ResidualCodebooks(
    jax.vmap(vq.init_codebook)(jnp.array([[[-1.0], [1.0]], [[0.0], [0.5]]]))
)
QUANTIZED = vq.VQVAE(
    encoder=nn.MLP((3,), (3, 1), rngs=nnx.Rngs(0)),
    quantizer=BOOK,
    decoder=Partial(lambda codes: jv.Normal(codes[:, 0], 1.0)),
    prior=jv.Categorical(jnp.zeros((3, 2))),
)
DEEP = nn.deep_hierarchy((4, 4, 1), levels=(1,), width=2, latents=1, rngs=nnx.Rngs(3))
EXPERT = nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(4))
CHOICE = jv.OneHotCategorical(jnp.array([0.1, 0.2, 0.7]))
EXPERTS = (Q, jv.Normal(Z, jnp.ones(2)))
STEPS = jnp.full((2, 2), 0.1)
WALK = nn.Conditional(nn.MLP, nn.NormalHead(), (2,), (2,), rngs=nnx.Rngs(5))
CHAIN = state_space.Markov(Q, WALK, 3)
DIFFUSION = Diffusion(Partial(lambda w, z, s: w * jnp.tanh(z), jnp.ones(2)), (2,), 4)
SERIES = jv.VAE(Partial(lambda event: CHAIN), Partial(state_space.emissions, WALK), CHAIN)
PATH = jnp.array([[0.1, 0.2], [0.0, -0.3], [1.0, 0.4]])
LINEAR_CHAIN = state_space.LinearChain(
    jv.MultivariateNormal(Z, jnp.eye(2)), jnp.eye(2), Z, jnp.eye(2), 3
)
CRITIC = jv.regularizers.Critic(
    nn.MLP((3,), (4,), rngs=nnx.Rngs(0)), nn.MLP((4,), (), rngs=nnx.Rngs(1))
)
DISCRIMINATOR = nn.MLP((2,), (), rngs=nnx.Rngs(2))


class Call(NamedTuple):
    """A public function and arguments that are good, by name.

    Args:
      function: called with the arguments as keywords.
      arguments: name -> value.
      free: names of arguments in whose shape the result's is, so that others are good too.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    free: tuple[str, ...] = ()


PARTS = jv.Product({"choice": jv.OneHotCategorical(jnp.zeros(3)), "style": Q})


def bound(function: Any, free: tuple[str, ...] = (), **hyper: Any) -> Call:
    return Call(function, {"model": MODEL, "key": KEY, "x": X, **hyper}, free)


def batch(function: Any, **hyper: Any) -> Call:
    return Call(jv.batched(function), {"model": MODEL, "key": KEY, "xs": XS, **hyper}, ("xs",))


def traced(function: Any) -> Any:
    """The function's zeros, where all that is checked is static and compiling takes long."""

    def zeros(**arguments: Any) -> Any:
        shapes = jax.eval_shape(lambda: function(**arguments))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    return zeros


def reconstruct(**arguments: Any) -> Any:
    x_given_z: Any = jv.reconstruct(**arguments)
    return x_given_z.mean()


def generate(**arguments: Any) -> Any:
    x_given_z: Any = jv.generate(**arguments)
    return x_given_z.mean()


def estimator(function, q: Any = Q, term=TERM, **hyper):
    arguments = {"reduction": jv.bounds.log_mean_exp, "term": term, "q": q}
    return Call(function, arguments | {"keys": KEYS} | hyper)


def distribution(d, event):
    return {
        f"{type(d).__name__}.log_prob": Call(lambda event: d.log_prob(event), {"event": event}),
        f"{type(d).__name__}.sample": Call(lambda key: d.sample(key), {"key": KEY}),
    }


def made(cls, event, **arguments):
    """A distribution built of the arguments, and what it then says of an event."""
    return Call(lambda **a: cls(**a).log_prob(event), arguments)


def game(objective, discriminator, free=(), **arguments):
    """Both players as arguments of their own."""

    def play(model, discriminator, key, x, **hyper):
        return objective(adversarial.AdversarialPair(model, discriminator), key, x, **hyper)

    good = {"model": MODEL, "discriminator": discriminator, "key": KEY, "x": X}
    return Call(play, good | arguments, free=free)


def with_gaps(function, **arguments):
    """Of a model of (x, mask), both as arguments of their own."""

    def fill(model, key, x, mask, **rest):
        return function(model, key, (x, mask), **rest)

    encode, decode = Partial(lambda event: Q), Partial(lambda z: jv.Masked(MODEL.decode(z)))
    model = MODEL._replace(encode=encode, decode=decode)
    mask = jnp.array([True, False, True])
    return Call(fill, {"model": model, "key": KEY, "x": X, "mask": mask, **arguments})


def averaged(decay, params):
    optimizer = optax.chain(SGD, average_parameters(decay))
    _, state = optimizer.update(params, optimizer.init(params), params)
    return optax.tree.get(state, "average")


def chained(first, transition, length, event, context=None):
    return state_space.Markov(first, transition, length, context).log_prob(event)


def of_labels(objective, **arguments):
    """A `LabelVAE` of these parts, and an objective of it."""
    good = {
        "classify": Partial(lambda x: jv.Categorical(jnp.zeros(2))),
        "given": Partial(lambda y: MODEL),
        "labels": jv.Categorical(jnp.zeros(2)),
    }
    return Call(
        lambda classify, given, labels, key, **rest: objective(
            semi.LabelVAE(classify, given, labels), key, **rest
        ),
        good | {"key": KEY} | arguments,
    )


def quantized(objective, **arguments):
    """A `VQVAE` of these parts, and an objective of it."""
    return Call(
        lambda encoder, quantizer, decoder, prior, **rest: objective(
            vq.VQVAE(encoder, quantizer, decoder, prior), **rest
        ),
        {**QUANTIZED._asdict(), "key": KEY, "x": X, **arguments},
    )


def multimodal_elbo(experts, likelihoods, prior, join, key, x, mask):
    return jv.elbo(multimodal.Multimodal(experts, likelihoods, prior, join), key, (x, mask))


def state():
    return jv.init_state(MODEL, SGD)


STEP = jv.train_step(jv.elbo, SGD)
CALLS: dict[str, Call] = {
    "elbo": bound(jv.elbo, beta=1.0),
    "autoencoder": bound(jv.bounds.autoencoder),
    "iwae": bound(jv.iwae, num_samples=3),
    "reweighted_wake_sleep": bound(jv.bounds.reweighted_wake_sleep, num_samples=3, sleep=0.5),
    "sleep_phase": bound(jv.bounds.sleep_phase),
    "renyi": bound(jv.renyi, num_samples=3, alpha=0.5),
    "vr_max": bound(jv.vr_max, num_samples=3),
    "tvo": bound(jv.tvo, num_samples=3, betas=BETAS),
    "tvo_upper": bound(jv.bounds.tvo_upper, num_samples=3, betas=BETAS),
    "miwae": bound(jv.miwae, num_outer=2, num_samples=3),
    "piwae": bound(jv.piwae, num_outer=2, num_samples=3),
    "ciwae": bound(jv.ciwae, num_samples=3, beta=0.5),
    "cubo": bound(jv.cubo, num_samples=3, power=2.0),
    "eubo": bound(
        partial(jv.eubo, sample_posterior=ppca.posterior(LINEAR, X).sample), num_samples=2
    ),
    "importance_bound": bound(partial(jv.importance_bound, jv.bounds.log_mean_exp), num_samples=3),
    "log_weights": bound(jv.log_weights, num_samples=3),
    "log_marginal": bound(jv.log_marginal, num_samples=8, chunk=4),
    "prior_sampling": bound(jv.evaluation.prior_sampling, num_samples=8, chunk=4),
    "ais": bound(
        jv.evaluation.ais, ("betas",), betas=BETAS, num_chains=2, num_leapfrog=2, num_pilots=1
    ),
    "bdmc": Call(
        jv.evaluation.bdmc,
        {"model": MODEL, "key": KEY, "betas": BETAS, "num_chains": 2, "num_leapfrog": 2},
        ("model", "betas"),
    ),
    "sigmoid_schedule": Call(lambda n: jv.evaluation.sigmoid_schedule(n), {"n": 5}),
    "reconstruct": bound(reconstruct, free=("model",)),
    "generate": Call(generate, {"model": MODEL, "key": KEY}, ("model",)),
    "batched": Call(jv.batched(jv.elbo), {"model": MODEL, "key": KEY, "xs": XS}, ("xs",)),
    "active_units": Call(
        jv.evaluation.active_units, {"model": MODEL, "xs": XS, "threshold": 0.01}, ("model",)
    ),
    "evaluate": Call(
        jv.evaluation.evaluate,
        {"model": MODEL, "key": KEY, "xs": XS, "num_samples": 8, "batch_size": 2},
        ("xs",),
    ),
    "encode_all": Call(
        jv.evaluation.encode_all, {"model": MODEL, "xs": XS, "batch_size": 2}, ("model", "xs")
    ),
    "decode_all": Call(
        jv.evaluation.decode_all,
        {"model": MODEL, "zs": XS[:, :2], "batch_size": 2},
        ("model", "zs"),
    ),
    "rate_per_level": Call(
        jv.evaluation.rate_per_level, {"model": MODEL, "key": KEY, "xs": XS}, ("xs",)
    ),
    "rate_per_latent": Call(
        jv.evaluation.rate_per_latent,
        {"model": MODEL._replace(encode=Partial(lambda x: Q)), "xs": XS},
    ),
    "optimal_scale": Call(
        jv.evaluation.optimal_scale, {"model": MODEL, "key": KEY, "xs": XS}, ("xs",)
    ),
    "reparameterize": Call(
        jv.distributions.reparameterize, {"key": KEY, "loc": Z, "scale": jnp.array([1.0, 2.0])}
    ),
    "kl_standard_normal": Call(
        jv.distributions.kl_standard_normal, {"loc": Z, "scale": jnp.array([1.0, 2.0])}
    ),
    "kl_divergence": Call(jv.kl_divergence, {"q": Q, "p": P}),
    **{
        name: Call(getattr(jv, name), {"q": Q, "p": P, "z": Z, "log_q": Q.log_prob(Z)})
        for name in ("analytic_kl", "auto_kl", "sampled_kl")
    },
    "pathwise": estimator(jv.pathwise),
    "sticking_the_landing": estimator(jv.sticking_the_landing),
    "doubly_reparameterized": estimator(jv.doubly_reparameterized),
    "score_function": estimator(jv.score_function),
    "vimco": estimator(jv.vimco),
    "enumeration": estimator(
        jv.enumeration, q=LOGITS, term=lambda q, z, log_q: (-log_q * 0.5, None)
    ),
    "gumbel_softmax": estimator(
        jv.gumbel_softmax,
        q=jv.OneHotCategorical(jnp.array([0.1, 0.2, 0.7])),
        temperature=0.5,
    ),
    "reinmax": estimator(jv.gradients.reinmax, q=CHOICE),
    "gumbel_rao": estimator(jv.gradients.gumbel_rao, q=CHOICE, temperature=0.5, num_draws=3),
    "rebar": estimator(jv.gradients.rebar, q=CHOICE, scale=1.0, temperature=0.5),
    "relax": estimator(
        jv.gradients.relax, q=CHOICE, control=lambda f, y: f(jax.nn.softmax(y / 0.5))
    ),
    "wake": estimator(jv.gradients.wake, weight=1.0),
    "for_component": Call(
        lambda name, estimator, **a: jv.gradients.for_component(name, estimator)(*a.values()),
        {"name": "choice", "estimator": jv.straight_through}
        | estimator(None, PARTS, lambda q, z, log_q: (log_q, None), keys=KEYS[:1]).arguments,
    ),
    "straight_through": estimator(
        jv.straight_through, q=jv.OneHotCategorical(jnp.array([0.1, 0.2, 0.7]))
    ),
    "log_mean_exp": Call(jv.bounds.log_mean_exp, {"log_w": jnp.array([1.0, 2.0, 3.0])}),
    "rescale": Call(lambda key, x: jv.rescale(key, x), {"key": KEY, "x": PIXELS}, ("x",)),
    "binarize": Call(lambda key, x: jv.binarize(key, x), {"key": KEY, "x": PIXELS}, ("x",)),
    "threshold": Call(
        lambda key, x: jv.training.threshold(key, x), {"key": KEY, "x": PIXELS}, ("x",)
    ),
    "dequantize": Call(
        lambda key, x: jv.training.dequantize(key, x), {"key": KEY, "x": PIXELS}, ("x",)
    ),
    "bits_per_dim": Call(jv.distributions.bits_per_dim, {"nats": 3.0, "shape": (2, 3)}, ("nats",)),
    "gaussian_product": Call(jv.models.gaussian_product, {"a": Q, "b": Q}),
    "Normal": made(jv.Normal, Z, loc=Z, scale=jnp.array([1.0, 2.0])),
    "Laplace": made(jv.Laplace, Z, loc=Z, scale=jnp.array([1.0, 2.0])),
    "MultivariateNormal": made(jv.MultivariateNormal, Z, loc=Z, scale_tril=jnp.eye(2)),
    "Bernoulli": made(jv.Bernoulli, jnp.array([1.0, 0.0]), logits=Z),
    "StandardNormal": made(jv.StandardNormal, Z, shape=(2,)),
    "Mixture": made(
        jv.Mixture,
        Z,
        logits=jnp.zeros(3),
        components=jv.Normal(jnp.zeros((3, 2)), jnp.ones((3, 2))),
    ),
    "Joint": made(jv.Joint, (Z, Z), first=P, then=Partial(lambda z: jv.Normal(z, jnp.ones(2)))),
    **distribution(Q, Z),
    **distribution(jv.MultivariateNormal(Z, jnp.eye(2)), Z),
    **distribution(jv.Bernoulli(Z), jnp.array([1.0, 0.0])),
    **distribution(jv.ContinuousBernoulli(Z), jnp.array([0.2, 0.7])),
    **distribution(jv.Laplace(Z, jnp.ones(2)), Z),
    **distribution(jv.StudentT(jnp.array(3.0), Z, jnp.ones(2)), Z),
    **distribution(jv.Gamma(jnp.ones(2), jnp.ones(2)), jnp.ones(2)),
    **distribution(jv.Beta(jnp.ones(2), jnp.ones(2)), jnp.array([0.2, 0.7])),
    **distribution(jv.Dirichlet(jnp.ones(3)), jnp.array([0.2, 0.7, 0.1])),
    **distribution(LOGITS, jnp.array(1)),
    **distribution(jv.OneHotCategorical(jnp.zeros(3)), jnp.array([0.0, 1.0, 0.0])),
    **distribution(jv.Poisson(jnp.ones(2)), jnp.array([1, 3])),
    **distribution(
        jv.distributions.VonMisesFisher(jnp.array([0.0, 1.0, 0.0]), 2.0), jnp.array([0.0, 1.0, 0.0])
    ),
    "init_state": Call(jv.init_state, {"model": MODEL, "optimizer": SGD}, ("model",)),
    "train_step": Call(STEP, {"state": state(), "key": KEY, "xs": XS, "beta": 1.0}),
    "train_step.settings": Call(
        lambda objective, optimizer: traced(jv.train_step(objective, optimizer))(
            state=state(), key=KEY, xs=XS
        ),
        {"objective": jv.elbo, "optimizer": SGD},
    ),
    "scan_steps": Call(
        traced(jv.training.scan_steps(STEP)),
        {"state": state(), "key": KEY, "data": XS, "order": jnp.array([[0, 1], [3, 2]])},
        ("data", "order"),
    ),
    "skip_nonfinite": Call(
        lambda step: traced(jv.training.skip_nonfinite(step))(state=state(), key=KEY, xs=XS),
        {"step": STEP},
    ),
    "clip_by_finite_norm": Call(
        lambda max_norm: jv.training.clip_by_finite_norm(max_norm).update(X, optax.EmptyState()),
        {"max_norm": 1.0},
    ),
    "averaged_model": Call(
        jv.training.averaged_model,
        {"state": jv.init_state(MODEL, optax.chain(SGD, average_parameters(0.9)))},
    ),
    "sweep_step": Call(
        lambda make, grid, at_once: jv.training.sweep_step(make, grid, at_once=at_once)[1].step,
        {"make": lambda beta: (STEP, state()), "grid": {"beta": [0.5, 1.0]}, "at_once": 1},
    ),
    "train_epoch": Call(
        jv.train_epoch(STEP, batch_size=2), {"state": state(), "key": KEY, "data": XS}, ("data",)
    ),
    "fit": Call(
        partial(jv.fit, STEP),
        {"state": state(), "key": KEY, "data": XS, "epochs": 1, "batch_size": 2},
        ("data",),
    ),
    "fit.settings": Call(
        lambda **given: jv.fit(STEP, state(), KEY, XS, epochs=1, batch_size=2, **given),
        {
            "steps_per_call": 2,
            "callbacks": [lambda *_: None],
            "beta": 1.0,
            "mesh": jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)),
        },
    ),
    "fit.stream": Call(
        lambda data, **given: jv.fit(STEP, state(), KEY, data, epochs=1, **given),
        {"data": [XS, -XS], "steps_per_epoch": 2},
    ),
    "fit.function": Call(
        lambda data: jv.fit(STEP, state(), KEY, data, epochs=1, steps_per_epoch=2),
        {"data": lambda key: XS},
    ),
    "sparse_rows": Call(
        lambda matrix: jv.training.sparse_rows(matrix).dense(jnp.arange(2)),
        {"matrix": scipy.sparse.csr_array(np.asarray(XS))},
    ),
    "SparseRows.dense": Call(
        lambda rows: jv.training.sparse_rows(scipy.sparse.csr_array(np.eye(3))).dense(rows),
        {"rows": jnp.array([2, 0])},
        ("rows",),
    ),
    "early_stopping": Call(
        lambda patience: (jv.training.early_stopping("loss", patience=patience), None)[1],
        {"patience": 2},
    ),
    "collapse_panel": Call(
        lambda xs, threshold: jv.evaluation.collapse_panel(xs, threshold=threshold)(
            jv.init_state(MODEL._replace(encode=EXPERT), SGD),
            {"loss": np.zeros(1)},
            0.0,
            KEY,
        ),
        {"xs": XS, "threshold": 0.01},
        ("xs",),
    ),
    "use.encode": Call(jv.use.encode, {"model": MODEL, "xs": XS, "batch_size": 3}, ("model", "xs")),
    "use.decode": Call(
        jv.use.decode,
        {"model": MODEL, "zs": XS[:, :2], "key": KEY, "batch_size": 3},
        ("model", "zs"),
    ),
    "use.reconstruct": Call(
        jv.use.reconstruct, {"model": MODEL, "key": KEY, "xs": XS, "batch_size": 3}, ("model", "xs")
    ),
    "use.generate": Call(
        jv.use.generate, {"model": MODEL, "key": KEY, "n": 3, "batch_size": 2}, ("model", "n")
    ),
    "use.score": Call(
        jv.use.score,
        {"model": MODEL, "key": KEY, "xs": XS, "num_samples": 2, "batch_size": 3},
        ("xs",),
    ),
    "use.forecast": Call(
        jv.use.forecast,
        {
            "model": SERIES,
            "key": KEY,
            "xs": jnp.stack([PATH, PATH]),
            "steps": 2,
            "num_samples": 3,
            "batch_size": 2,
        },
        ("model", "steps", "num_samples"),
    ),
    "use.stream": Call(
        lambda model, xs, **given: jv.use.score(model, KEY, [xs, xs], num_samples=2, **given),
        {"model": MODEL, "xs": XS, "batch_size": 3},
        ("xs",),
    ),
    "semi_amortized": Call(
        lambda model, key, x, num_steps: traced(
            jv.models.semi_amortized(jv.elbo, SGD, num_steps=num_steps)
        )(model=model, key=key, x=x),
        {"model": MODEL._replace(encode=EXPERT), "key": KEY, "x": X, "num_steps": 2},
    ),
    "make_vae": Call(
        lambda x, latents: (
            nn.make_vae(x, latents=latents, hidden=(4,), rngs=nnx.Rngs(0))
            .decode(jnp.zeros(2))
            .mean()
        ),
        {"x": X, "latents": 2},
        ("x",),
    ),
    "validation": Call(
        lambda **given: jv.training.validation(jv.elbo, **given)(
            state(), {"loss": np.zeros(1)}, 0.0, jax.random.key(5)
        ),
        {"key": KEY, "xs": XS, "num_samples": 2, "batch_size": 3},
        ("xs",),
    ),
    "epoch_order": Call(
        jv.training.epoch_order, {"key": KEY, "epoch": 0, "num_examples": 4, "batch_size": 2}
    ),
    "sweep": Call(
        lambda grid, at_once: jv.sweep(lambda key: jax.random.normal(key), grid, at_once=at_once)[
            1
        ],
        {"grid": {"key": KEYS}, "at_once": 2},
    ),
    "regularized": bound(
        partial(jv.regularizers.regularized, penalty=lambda code, key: code.rate), beta=2.0
    ),
    "capacity": batch(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.capacity),
        capacity=2.0,
        beta=1.0,
    ),
    "free_bits": batch(
        partial(
            jv.regularizers.regularized,
            penalty=partial(jv.regularizers.free_bits, parts=jv.regularizers.kl_per_level),
        ),
        free_nats=0.5,
    ),
    "mmd_penalty": batch(partial(jv.regularizers.regularized, penalty=jv.regularizers.mmd_penalty)),
    "sliced_penalty": batch(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.sliced_penalty)
    ),
    "info_penalty": batch(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.info_penalty),
        alpha=0.5,
        weight=10.0,
    ),
    "tc_penalty": Call(
        jv.batched(
            partial(
                jv.regularizers.regularized,
                penalty=partial(jv.regularizers.tc_penalty, dataset_size=9),
            )
        ),
        {
            "model": jv.VAE(
                Partial(lambda x: jv.Normal(mean_of(MODEL.encode(x)), 1.0)),
                MODEL.decode,
                MODEL.prior,
            ),
            "key": KEY,
            "xs": XS,
            "correlation": 2.0,
            "information": 1.0,
            "dimension_wise": 1.0,
        },
    ),
    "dip_1_penalty": batch(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.dip_1_penalty),
        off_diagonal=1.0,
        diagonal=1.0,
    ),
    "dip_2_penalty": batch(
        partial(jv.regularizers.regularized, penalty=jv.regularizers.dip_2_penalty),
        off_diagonal=1.0,
        diagonal=1.0,
    ),
    "mmd": Call(
        jv.regularizers.mmd, {"x": XS, "y": XS[:3], "kernel": jv.regularizers.rbf}, free=("x", "y")
    ),
    "sliced_wasserstein": Call(
        jv.regularizers.sliced_wasserstein,
        {"x": XS, "y": XS, "directions": jnp.eye(3)},
        free=("x", "y", "directions"),
    ),
    "geco": Call(
        lambda key, x, tolerance: jv.regularizers.geco(
            jv.regularizers.Constrained(MODEL, jnp.zeros(())), key, x, tolerance=tolerance
        ),
        {"key": KEY, "x": X, "tolerance": 3.0},
    ),
    "target_rate": Call(
        lambda model, log_multiplier, target: jv.regularizers.target_rate(
            jv.regularizers.Constrained(model, log_multiplier), KEY, X, target=target
        ),
        {"model": MODEL, "log_multiplier": jnp.zeros(()), "target": 3.0},
    ),
    "ar1": Call(jv.regularizers.ar1, {"length": 4, "alpha": 0.5}, free=("length",)),
    "delta_vae_rate": Call(jv.regularizers.delta_vae_rate, {"length": 4, "alpha": 0.5}),
    "sigmoid_annealing": Call(
        lambda **arguments: jv.training.sigmoid_annealing(**arguments)(3),
        {"init_value": 0.0, "end_value": 1.0, "transition_steps": 9, "sharpness": 12.0},
    ),
    "cyclical": Call(
        lambda schedule, period: jv.training.cyclical(schedule, period)(3),
        {"schedule": optax.linear_schedule(0.0, 1.0, 5), "period": 9},
    ),
    "Critic": Call(
        lambda features, logit: jv.regularizers.Critic(features, logit)(X), CRITIC._asdict()
    ),
    "discrimination": Call(
        adversarial.discrimination, {"discriminator": DISCRIMINATOR, "a": Z, "b": -Z}
    ),
    "permute_latents": Call(adversarial.permute_latents, {"zs": PATH}, ("zs",)),
    "factor_vae": game(
        jv.batched(adversarial.factor_vae), DISCRIMINATOR, free=("x",), x=XS, gamma=2.0
    ),
    "adversarial_autoencoder": game(adversarial.adversarial_autoencoder, DISCRIMINATOR, beta=1.0),
    "vae_gan": game(jv.regularizers.vae_gan, CRITIC, gamma=1.0),
    "hinge_discrimination": Call(
        jv.regularizers.hinge_discrimination, {"discriminator": DISCRIMINATOR, "a": Z, "b": -Z}
    ),
    "perceptual_distance": Call(
        jv.regularizers.perceptual_distance,
        {"features": jnp.sin, "x": PATH, "y": -PATH, "weights": jnp.ones(2)},
        ("x", "weights"),
    ),
    "vqgan": game(
        jv.batched(jv.regularizers.vqgan),
        CRITIC,
        free=("x",),
        x=XS,
        perceptual=1.0,
        adversarial=0.5,
    ),
    "weight_penalty": Call(rae.weight_penalty, {"model": MODEL, "key": KEY, "z": Z}),
    "gradient_penalty": Call(rae.gradient_penalty, {"model": MODEL, "key": KEY, "z": Z}),
    "rae": bound(rae.rae, penalty=rae.gradient_penalty, beta=1.0, weight=0.1),
    "labelled": of_labels(
        lambda model, key, x, y, alpha: semi.labelled(jv.elbo)(model, key, (x, y), alpha=alpha),
        x=X,
        y=jnp.array(1),
        alpha=0.5,
    ),
    "unlabelled": of_labels(semi.unlabelled(jv.elbo), x=X),
    "LabelVAE": of_labels(partial(jv.elbo, gradient=jv.score_function), x=X),
    "impute": with_gaps(imputation.impute, num_samples=3),
    "multiple_imputations": with_gaps(imputation.multiple_imputations, num_samples=3, num_draws=2),
    **{
        name: Call(
            getattr(multimodal, name),
            {"experts": EXPERTS, "prior": P, "present": jnp.array([True, False])},
        )
        for name in ("product_of_experts", "mixture_of_experts", "mixture_of_products")
    },
    **{
        name: Call(
            getattr(private_latents, name),
            {
                "experts": (jv.Product({"shared": Q, "private": Q}),) * 2,
                "prior": jv.Product({"shared": P, "private": jv.Product((P, P))}),
                "present": jnp.array([True, False]),
            },
        )
        for name in ("shared_and_private", "mixture_with_private")
    },
    "mvtcae": Call(
        lambda experts, key, x, mask, alpha, beta: multimodal.mvtcae(
            multimodal.Multimodal(experts, (MODEL.decode, MODEL.decode), P),
            key,
            (x, mask),
            alpha=alpha,
            beta=beta,
        ),
        {
            "experts": (EXPERT, EXPERT),
            "key": KEY,
            "x": (X, X),
            "mask": (True, False),
            "alpha": 0.5,
            "beta": 1.0,
        },
    ),
    "NotAtRandom": Call(
        lambda posterior, likelihood, latent_prior, mechanism, key, x, mask: jv.iwae(
            NotAtRandom(posterior, likelihood, latent_prior, mechanism),
            key,
            (x, mask),
            num_samples=2,
        ),
        {
            "posterior": Partial(lambda event: Q),
            "likelihood": MODEL.decode,
            "latent_prior": P,
            "mechanism": Partial(lambda x: jv.Bernoulli(-2.0 * x)),
            "key": KEY,
            "x": X,
            "mask": jnp.array([True, False, True]),
        },
    ),
    "MaskedBy": Call(
        lambda x, mask, imputed: MaskedBy(
            jv.Normal(X, 1.0), imputed, Partial(lambda x: jv.Bernoulli(-2.0 * x))
        ).log_prob((x, mask)),
        {"x": X, "mask": jnp.array([True, False, True]), "imputed": -X},
    ),
    "stratified_mixture": estimator(
        jv.gradients.stratified_mixture,
        q=jv.Mixture(jnp.zeros(2), jv.Normal(jnp.zeros((2, 2)), jnp.ones((2, 2)))),
    ),
    "Multimodal": Call(
        multimodal_elbo,
        {
            "experts": (EXPERT, EXPERT),
            "likelihoods": (MODEL.decode, MODEL.decode),
            "prior": P,
            "join": Partial(multimodal.product_of_experts),
            "key": KEY,
            "x": (X, X),
            "mask": (True, False),
        },
    ),
    "Markov": Call(chained, {"first": Q, "transition": WALK, "length": 3, "event": PATH}),
    "Markov.context": Call(
        chained,
        {
            "first": Q,
            "transition": Partial(lambda pair: jv.Normal(0.5 * pair[0], jnp.ones(2))),
            "length": 3,
            "event": PATH,
            "context": jnp.zeros(2),
        },
    ),
    **distribution(CHAIN, PATH),
    "stepwise_kl": Call(
        state_space.stepwise_kl, {"q": CHAIN, "p": CHAIN, "z": PATH, "log_q": CHAIN.log_prob(PATH)}
    ),
    "kl_per_step": Call(
        lambda q, p, z: state_space.kl_per_step(
            jv.regularizers.LatentSample(q, p, z, jnp.array(0.0), jnp.array(0.0))
        ),
        {"q": CHAIN, "p": CHAIN, "z": PATH},
    ),
    "balanced_kl": Call(
        jv.bounds.balanced_kl, {"q": Q, "p": P, "z": Z, "log_q": Q.log_prob(Z), "alpha": 0.8}
    ),
    "unimix": Call(jv.distributions.unimix, {"logits": LOGITS.logits, "share": 0.5}, ("logits",)),
    "LinearChain": Call(
        lambda first, gain, shift, scale_tril, length, event: state_space.LinearChain(
            first, gain, shift, scale_tril, length
        ).log_prob(event),
        {
            "first": jv.MultivariateNormal(Z, jnp.eye(2)),
            "gain": jnp.eye(2),
            "shift": Z,
            "scale_tril": jnp.eye(2),
            "length": 3,
            "event": PATH,
        },
    ),
    "LinearChain.times": Call(
        lambda evidence: LINEAR_CHAIN.times(evidence).mean(),
        {"evidence": jv.Normal(PATH, jnp.ones((3, 2)))},
        ("evidence",),
    ),
    "coordinated_dropout": bound(jv.training.coordinated_dropout(jv.elbo), rate=0.5),
    **distribution(DIFFUSION, Z),
    "Diffusion": made(Diffusion, Z, residual=DIFFUSION.residual, steps=4, shape=(2,)),
    "diffusion_kl": Call(
        diffusion_kl, {"q": Q, "p": DIFFUSION, "z": Z, "log_q": Q.log_prob(Z), "key": KEY}
    ),
    "diffusion_kl.num_times": Call(
        lambda **given: diffusion_kl(Q, DIFFUSION, Z, Q.log_prob(Z), key=KEY, **given),
        {"num_times": 2, "schedule": jnp.square},
        ("num_times",),
    ),
    "keyed_kl": bound(jv.bounds.keyed_kl(jv.elbo, diffusion_kl), beta=1.0),
    "Resampled": Call(
        lambda proposal, logits, tries, event: jv.distributions.Resampled(
            proposal, logits, jnp.stack([Z, -Z]), tries
        ).log_prob(event),
        {"proposal": P, "logits": Partial(jnp.sum), "tries": 3, "event": Z},
    ),
    **distribution(jv.distributions.Resampled(P, Partial(jnp.sum), jnp.stack([Z, -Z]), 3), Z),
    "left_out": Call(
        lambda encode, decode, log_scale, key, x, index: left_out(jv.elbo)(
            ExemplarVAE(encode, decode, log_scale, jv.Constant(XS)), key, (x, index)
        ),
        {
            "encode": MODEL.encode,
            "decode": MODEL.decode,
            "log_scale": 0.5,
            "key": KEY,
            "x": X,
            "index": jnp.array(1),
        },
    ),
    "left_out.num_exemplars": Call(
        lambda xs, **given: jv.batched(left_out(jv.elbo, **given))(
            ExemplarVAE(*MODEL[:2], 0.5, jv.Constant(XS)), KEY, (xs, jnp.arange(4))
        ),
        {"xs": XS, "num_exemplars": 3},
    ),
    "Smoother": Call(
        lambda summary, step, start, x: state_space.Smoother(summary, step, start)(x).log_prob(
            PATH
        ),
        {
            "summary": Partial(lambda x: X),
            "step": Partial(lambda pair: jv.Normal(pair[0], jnp.ones(2))),
            "start": Z,
            "x": X,
        },
    ),
    "Padded": Call(
        lambda model, key, x, mask: jv.elbo(state_space.Padded(model), key, (x, mask)),
        {
            "model": SERIES,
            "key": KEY,
            "x": PATH,
            "mask": jnp.array([True, True, False]),
        },
    ),
    "emissions": Call(
        lambda conditional, z: state_space.emissions(conditional, z).mean(),
        {"conditional": WALK, "z": PATH},
        ("z",),
    ),
    "interpolate": Call(latent_space.interpolate, {"z0": Z, "z1": -Z, "t": 0.5}),
    "slerp": Call(latent_space.slerp, {"z0": Z, "z1": jnp.ones(2), "t": 0.5}),
    "traverse": Call(latent_space.traverse, {"z": Z, "index": 1, "values": BETAS}, ("z", "values")),
    "tempered": Call(latent_space.tempered, {"distribution": Q, "temperature": 0.5}),
    "top_k": Call(truncation.top_k, {"distribution": LOGITS, "k": 2}),
    "precision_recall": Call(
        quality.precision_recall, {"real": FEATURES, "fake": -FEATURES, "k": 3}
    ),
    "density_coverage": Call(
        quality.density_coverage, {"real": FEATURES, "fake": -FEATURES, "k": 3}
    ),
    "sample_frechet_distance": Call(
        quality.sample_frechet_distance, {"real": FEATURES, "fake": -FEATURES}
    ),
    "frechet_distance": Call(
        quality.frechet_distance,
        {"mean1": Z, "cov1": jnp.eye(2), "mean2": -Z, "cov2": 2.0 * jnp.eye(2)},
    ),
    "average_parameters": Call(averaged, {"decay": 0.9, "params": X}, ("params",)),
    "Leapfrog": Call(
        lambda log_prob, step_sizes, heat, z, rho: Leapfrog(
            log_prob, step_sizes, heat
        ).forward_and_log_det((z, rho)),
        {"log_prob": Partial(P.log_prob), "step_sizes": STEPS, "heat": 2.0, "z": Z, "rho": -Z},
    ),
    "HamiltonianVAE": Call(
        lambda start, likelihood, base, log_steps, log_heat, key, x: jv.elbo(
            HamiltonianVAE(start, likelihood, base, log_steps, log_heat), key, x
        ),
        {
            "start": MODEL.encode,
            "likelihood": MODEL.decode,
            "base": P,
            "log_steps": -STEPS,
            "log_heat": 0.5,
            "key": KEY,
            "x": X,
        },
    ),
    "Codebook": Call(lambda z, **a: vq.Codebook(**a)(z), {**BOOK._asdict(), "z": jnp.ones(1)}),
    "Codebook.lookup": Call(
        lambda codes, index: BOOK._replace(codes=codes).lookup(index),
        {"codes": BOOK.codes, "index": jnp.array(1)},
    ),
    "ResidualCodebooks": Call(
        lambda codebooks, z: vq.ResidualCodebooks(codebooks)(z),
        {"codebooks": BOOKS.codebooks, "z": jnp.ones(1)},
    ),
    "ResidualCodebooks.lookup": Call(
        lambda codebooks, index: vq.ResidualCodebooks(codebooks).lookup(index),
        {"codebooks": BOOKS.codebooks, "index": jnp.array([1, 0])},
    ),
    "FSQ": Call(lambda levels, z: vq.FSQ(levels)(z), {"levels": (3, 2), "z": Z}),
    "FSQ.lookup": Call(
        lambda levels, index: vq.FSQ(levels).lookup(index),
        {"levels": (3, 2), "index": jnp.array(4)},
    ),
    "straight_through_value": Call(vq.straight_through_value, {"e": Z, "z": -Z}),
    "init_codebook": Call(vq.init_codebook, {"codes": BOOK.codes}, ("codes",)),
    "ema_codebook": Call(
        vq.ema_codebook,
        {
            "quantizer": BOOK,
            "z": jnp.ones((3, 1)),
            "indices": jnp.array([0, 1, 1]),
            "decay": 0.9,
            "epsilon": 1e-5,
        },
    ),
    "reset_dead_codes": Call(
        vq.reset_dead_codes,
        {
            "key": KEY,
            "quantizer": BOOKS,
            "z": jnp.ones((3, 1)),
            "indices": jnp.array([[0, 1], [1, 1], [0, 0]]),
            "threshold": 0.5,
        },
    ),
    "perplexity": Call(vq.perplexity, {"counts": jnp.array([3, 3, 1])}),
    "code_counts": Call(
        vq.code_counts, {"indices": jnp.array([0, 2, 2]), "num_codes": 3}, ("indices",)
    ),
    "kmeans": Call(vq.kmeans, {"key": KEY, "z": FEATURES, "num_codes": 2, "steps": 2}, ("z",)),
    "nearest": Call(vq.nearest, {"codes": FEATURES, "z": Z}),
    "UnitCodes": Call(lambda z: vq.UnitCodes(BOOK)(z), {"z": jnp.ones(1)}),
    "SimVQ": Call(
        lambda frozen, weight, z: vq.SimVQ(frozen, weight)(z),
        {"frozen": FEATURES, "weight": jnp.eye(2), "z": Z},
    ),
    "rotation_trick": Call(vq.rotation_trick, {"e": Z, "z": -Z}),
    "Rotation": Call(
        lambda quantizer, z: vq.Rotation(quantizer)(z), {"quantizer": BOOK, "z": jnp.ones(1)}
    ),
    "IBQ": Call(lambda quantizer, z: vq.IBQ(quantizer)(z), {"quantizer": BOOK, "z": jnp.ones(1)}),
    "Projected": Call(
        lambda quantizer, down, up, z: vq.Projected(quantizer, down, up)(z),
        {
            "quantizer": BOOK,
            "down": Partial(jnp.abs),
            "up": Partial(jnp.negative),
            "z": jnp.ones(1),
        },
    ),
    "cosine": Call(
        lambda quantizer, z: vq.cosine(quantizer)(z), {"quantizer": BOOK, "z": jnp.ones(1)}
    ),
    "Grouped": Call(lambda z: vq.Grouped(BOOKS.codebooks)(z), {"z": Z}),
    "ResidualFSQ": Call(
        lambda levels, depth, z: vq.ResidualFSQ(levels, depth)(z),
        {"levels": (3, 4), "depth": 2, "z": Z},
    ),
    "LFQ": Call(lambda bits, z: vq.LFQ(bits)(z), {"bits": 2, "z": Z}),
    "BSQ": Call(lambda bits, z: vq.BSQ(bits)(z), {"bits": 2, "z": Z}),
    "entropy_penalty": Call(
        jv.batched(
            lambda model, key, x, temperature, diversity: (
                vq.entropy_penalty(jax.vmap(BOOK)(x), temperature=temperature, diversity=diversity),
                None,
            )
        ),
        {
            "model": MODEL,
            "key": KEY,
            "xs": jnp.ones((2, 3, 1)),
            "temperature": 1.0,
            "diversity": 0.5,
        },
    ),
    "orthogonal_penalty": Call(vq.orthogonal_penalty, {"codes": FEATURES}, ("codes",)),
    "MaskedCodes": Call(
        lambda event: vq.MaskedCodes(jv.Categorical(jnp.zeros((3, 2)))).log_prob(event),
        {"event": jnp.array([1, 0, -1])},
    ),
    "Delta": Call(
        lambda value, event: vq.Delta(value).log_prob(event),
        {"value": jnp.array([3, 1]), "event": jnp.array([3, 2])},
    ),
    **distribution(vq.Delta(jnp.array([3, 1])), jnp.array([3, 2])),
    "VQVAE": quantized(jv.elbo),
    "vq": quantized(vq.vq, commitment=0.25, codebook=1.0),
    "ema_step": Call(
        traced(vq.ema_step(vq.vq, SGD)),
        {"state": jv.init_state(QUANTIZED, SGD), "key": KEY, "xs": XS, "commitment": 0.25},
    ),
    "ema_step.settings": Call(
        traced(
            lambda decay, threshold: vq.ema_step(vq.vq, SGD, decay=decay, threshold=threshold)(
                jv.init_state(QUANTIZED, SGD), KEY, XS
            )
        ),
        {"decay": 0.9, "threshold": 0.5},
    ),
    **{
        name: Call(
            getattr(disentanglement, name), {"codes": CODES, "factors": FACTORS, "bins": 3}, free
        )
        for name, free in (
            ("mutual_information", ("codes", "factors")),
            ("mig", ()),
            ("modularity", ()),
        )
    },
    "sap": Call(disentanglement.sap, {"codes": CODES, "factors": FACTORS}),
    "dci": Call(disentanglement.dci, {"key": KEY, "codes": CODES, "factors": FACTORS, "trees": 2}),
    **{
        name: Call(
            getattr(disentanglement, name),
            {"key": KEY, "codes": CODES, "factors": FACTORS, "groups": 8, "size": 4},
        )
        for name in ("factor_vae_score", "beta_vae_score")
    },
    "deep_elbo": Call(
        traced(jv.batched(jv.models.deep_elbo)),
        {"model": DEEP, "key": KEY, "xs": jnp.zeros((2, 4, 4, 1)), "beta": 1.0, "free_nats": 0.1},
    ),
}


class Bad(NamedTuple):
    """One bad argument: how it came about, and itself."""

    how: str
    value: Any


def is_key(a: Any) -> bool:
    return isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def bad_array(a: Any) -> list[Bad]:
    """What broadcasting, a sign or a cast would hide; test_kinds.py has what is no array."""
    n = np.asarray(a)
    bad = [
        Bad("a batch of one", jnp.asarray(n[None])),
        Bad("a batch", jnp.asarray(np.stack([n] * 3))),
        Bad("nested", jnp.asarray(n[..., None])),
        Bad("empty", jnp.zeros((0,), n.dtype)),
        Bad("integers", jnp.asarray(n, jnp.int32)),
        Bad("text", np.full(n.shape, "a")),
    ]
    if n.ndim:
        bad += [
            Bad("a scalar", jnp.zeros((), n.dtype)),
            Bad("one short", jnp.asarray(n[..., :-1])),
            Bad("one more", jnp.asarray(np.concatenate([n, n], -1))),
        ]
    if n.dtype.kind == "f" and n.size:
        for value in (np.nan, -1.0):
            spoiled = n.copy()
            spoiled.flat[0] = value
            bad.append(Bad(f"holds {value}", jnp.asarray(spoiled)))
    return bad


BAD_KEYS = [Bad("a number", 0), Bad("a batch of keys", KEYS)]
BAD_NUMBERS = [Bad(repr(value), value) for value in (0, -1, 1.5, np.nan, "3")]
BAD_MODELS = [
    Bad("an array", X),
    Bad("encode returns an array", MODEL._replace(encode=Partial(lambda x: x[:2]))),
    Bad("encode is of another size", MODEL._replace(encode=Partial(lambda x: jv.Normal(X, X * X)))),
    Bad("decode returns None", MODEL._replace(decode=Partial(lambda z: None))),
    Bad("decode is smaller", MODEL._replace(decode=Partial(lambda z: jv.Normal(z, jnp.ones(2))))),
    Bad("decode is a number", MODEL._replace(decode=Partial(lambda z: jv.Normal(z[0], 1.0)))),
    Bad("the prior is larger", MODEL._replace(prior=jv.StandardNormal((3,)))),
    Bad("the prior is a number", MODEL._replace(prior=jv.StandardNormal(()))),
]
BAD_OBJECTS = [Bad("None", None), Bad("an array", Z)]


def bad_values(name: str, good: Any) -> list[Bad]:
    if name == "model":
        return BAD_MODELS
    if is_key(good):
        return BAD_KEYS
    if isinstance(good, (int, float)):
        return BAD_NUMBERS
    if isinstance(good, (jax.Array, np.ndarray)):
        return bad_array(good)
    return BAD_OBJECTS


CASES = [
    (name, argument, bad)
    for name, call in CALLS.items()
    for argument, good in call.arguments.items()
    for bad in bad_values(argument, good)
]


def ours(error: BaseException) -> bool:
    """Whether jaxvae raised it, and not something that jaxvae called."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return (
        frame is not None
        and Path(jv.__file__).parent in Path(frame.tb_frame.f_code.co_filename).parents
    )


def run(call: Call, **changes: Any) -> Any:
    with (  # as a user has it
        jax.debug_key_reuse(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return call.function(**{**call.arguments, **changes})


def complaint(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with how an argument was met; None where nothing is.

    Right is an error of ours that names what it is about in one line, JAX's own of what is no key,
    or a result as a good argument gives it.
    """
    call = CALLS[name]
    try:
        found = run(call, **{argument: value})
    except (TypeError, ValueError, NotImplementedError, jv.training.NonFiniteError) as error:
        message = str(error)
        lines = [line for line in message.split("\n----")[0].splitlines() if line.strip()]
        about = (
            r"^([\w. ()]+: )?(batch \d of )?\w+([.\[(]\S*)?( \w+)? "
            "(is|are|has|have|holds|returned|gives|goes) "
        )
        if ours(error):
            wrong = not re.match(about, message) and not isinstance(
                error, jv.training.NonFiniteError
            )
        else:
            wrong = re.search("PRNG key|single key|random key", message) is None
        if wrong or len(lines) > 1:
            return f"{type(error).__name__}: {message[:200]!r}"
        return None
    except jax.errors.JaxRuntimeError as error:
        return None if "Out of memory" in str(error) else f"JaxRuntimeError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    if argument in call.free:
        return None
    good = run(call)
    if jax.tree.structure(found) != jax.tree.structure(good):
        return f"another structure: {jax.tree.structure(found)}"
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (found, good)]
    return None if shapes[0] == shapes[1] else f"shapes {shapes[0]} for {shapes[1]}"


def test_the_docs_say_how_many_there_are():
    text = " ".join((Path(__file__).parents[2] / "docs" / "faults.md").read_text().split())
    assert f" gives {len(CALLS)} public functions" in text
    assert f" {len(CASES):,} pairs of an argument and a value" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_every_bad_argument_is_named_or_right(name):
    problems = [
        f"{argument}, {bad.how}: {problem}"
        for argument, good in CALLS[name].arguments.items()
        for bad in bad_values(argument, good)
        if (problem := complaint(name, argument, bad.value))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.sampled_from(CASES))
def test_a_bad_argument_is_named_or_right(case):
    name, argument, bad = case
    problem = complaint(name, argument, bad.value)
    assert problem is None, f"{name}, {argument}, {bad.how}: {problem}"


any_array = arrays(  # and of both byte orders
    st.one_of(
        boolean_dtypes(), integer_dtypes(), unsigned_integer_dtypes(), floating_dtypes(sizes=(32,))
    ),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
PLACES = [
    (name, argument)
    for name, call in CALLS.items()
    for argument, good in call.arguments.items()
    if isinstance(good, (jax.Array, np.ndarray)) and not is_key(good)
]


def check_any_array(place, value):
    name, argument = place
    problem = complaint(name, argument, value)
    assert problem is None, f"{place}, {value!r}: {problem}"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.sampled_from(PLACES), any_array)
def test_any_array_is_named_or_right(place, value):
    check_any_array(place, value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), any_array)
def test_many_arrays_are_named_or_right(place, value):
    check_any_array(place, value)


class Reached(Exception):
    """The command's options were accepted, and training would begin."""


ODD_WORDS = """0 -1 1.5 nan inf -inf 1e400 None none True digits float32 mlp a/b .. /dev/null 0x10
1_000 ٣ --seed $HOME 1000000000000 18446744073709551616 -9223372036854775808"""
WORDS = st.one_of(
    st.sampled_from(["", "x" * 300, *ODD_WORDS.split()]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)
OPTIONS = [f"--{field.name.replace('_', '-')}" for field in fields(Config)]


def check_command(options: list[str], folder: str, capsys: Any) -> None:
    """Accepted, or refused with exit code 2 and a line that says which option, or 1 for memory."""

    def stop(*args, **kwargs):
        raise Reached

    code = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jv, "fit", stop)
        patch.chdir(folder)
        try:
            code = train.main(["--output", folder, "--data-dir", folder, *options])
        except Reached:
            code = 0
        except SystemExit as usage:  # tyro's, which prints the option and what it takes
            code = usage.code
    lines = capsys.readouterr().err.splitlines()
    assert code in (0, 1, 2), f"{options}: exit code {code}"
    assert "Traceback" not in "".join(lines)
    if code and lines and lines[-1].startswith("error: "):
        assert len(lines) == 1, f"{options}: {lines}"
    elif code:
        text = "".join(lines)  # tyro forgets the name of a flag that is given an empty value
        names = [option.split("=")[0] for option in options] + [
            "Unrecognized options:",
            "Missing argument",
        ]
        assert any(name in text for name in names), lines


commands = st.lists(st.tuples(st.sampled_from(OPTIONS), WORDS).map("=".join), max_size=3)
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=FIXTURES)
@given(commands)
def test_a_command_is_run_or_refused_in_a_line(capsys, tmp_path, options):
    check_command(options, str(tmp_path), capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=1000, deadline=None, suppress_health_check=FIXTURES)
@given(commands)
def test_many_commands_are_run_or_refused_in_a_line(capsys, tmp_path, options):
    check_command(options, str(tmp_path), capsys)


if __name__ == "__main__":
    for name, argument, bad in CASES:
        if problem := complaint(name, argument, bad.value):
            print(f"{name:24s} {argument:12s} {bad.how:26s} {problem}", flush=True)
    print(len(CASES))
