"""What an editor tells a user: pyright reads this file with the rest, nobody runs it.

Each `assert_type` pins what is known of a value where it is made; a type that gets lost, or an
argument that is no longer known by its name, is an error here.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae import nn
from jaxvae.bounds import Terms
from jaxvae.nn import Conditional

key, x = jax.random.key(0), jnp.ones(3)


# A distribution's parameters are made of numbers or arrays, and are arrays.
q = jv.Normal(jnp.zeros(3), 1.0)
assert_type(q.scale, Array)
assert_type(q.mean(), Array)
assert_type(jv.Constant(q), jv.Normal)  # with all that a Normal has


# A conditional is known by its head, a model by its conditionals.
rngs = nnx.Rngs(0)
encode = Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=rngs)
decode = Conditional(nn.MLP, nn.BernoulliHead(), (2,), (3,), rngs=rngs)
assert_type(encode(x), jv.Normal)
model = jv.VAE(encode, decode, jv.StandardNormal((2,)))
assert_type(model, jv.VAE[jv.Normal, jv.Bernoulli, jv.StandardNormal])
assert_type(model.encode(x).mean(), Array)
assert_type(model.prior.shape, tuple[int, ...])
assert_type(jv.reconstruct(model, key, x).logits, Array)
assert_type(jv.generate(model, key), jv.Bernoulli)


def by_hand(x: Array) -> jv.Laplace:
    return jv.Laplace(x, 1.0)


functions = jv.VAE(by_hand, by_hand, jv.Constant(jv.StandardNormal((3,))))
assert_type(functions.encode(x), jv.Laplace)
assert_type(functions.prior, jv.StandardNormal)


def of_any(model: jv.Model) -> None:  # a mean is asked of whatever a model gives
    model.encode(x).mean()


of_any(model)
of_any(functions)
of_any(jv.VAE(Partial(by_hand), Partial(by_hand), q))


# An objective keeps its hyper-parameters, whatever is done to it.
bound, terms = jv.elbo(model, key, x, beta=0.5)
assert_type(bound, Array)
assert_type(terms, Terms)
of_batch, each = jv.batched(jv.elbo)(model, key, x[None], beta=0.5)
assert_type(each, Terms)
objective = jv.batched(jv.preprocessed(jv.iwae, jv.binarize))
objective(model, key, x[None], num_samples=5)
objective(model, key, x[None])  # pyright: ignore[reportCallIssue]  how many samples?
objective(model, key, x[None], num_samples="five")  # pyright: ignore[reportArgumentType]
jv.elbo(model, 0, x)  # pyright: ignore[reportArgumentType]  no key


# A step keeps the type of the model that it trains.
optimizer = optax.adam(1e-3)
state = jv.init_state(model, optimizer)
assert_type(state, jv.TrainState[jv.VAE[jv.Normal, jv.Bernoulli, jv.StandardNormal]])
step = jv.train_step(jv.elbo, optimizer)
state, metrics = step(state, key, x[None], beta=0.5)
assert_type(state.model.encode(x).mean(), Array)
assert_type(metrics, dict[str, Any])
step(state, key, x[None], beta=optax.linear_schedule(0.0, 1.0, 10))  # or a schedule
epoch = jv.train_epoch(step, batch_size=1)
state, _ = epoch(state, key, x[None], beta=0.5)
assert_type(state.model.prior, jv.StandardNormal)
