"""The VQ-VAE: a model whose latents are indices of codes, its objective and its step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import Objective, batched
from jaxvae.checks import (
    Key,
    Scalar,
    Tree,
    a_class_of,
    check_array,
    check_leaves,
    check_scalar,
    check_shape,
    checked,
)
from jaxvae.model import part
from jaxvae.models.quantization.codebooks import ema_codebook, reset_dead_codes
from jaxvae.models.quantization.indices import Delta
from jaxvae.models.quantization.quantizers import Codebook, Quantized
from jaxvae.protocols import Distribution, check_distribution, log_prob_of
from jaxvae.pytrees import shown, swappable
from jaxvae.pytrees.libraries import functional
from jaxvae.training.optimizers import Optimizer
from jaxvae.training.steps import Step, TrainState, train_step


@shown
@swappable
class VQVAE(NamedTuple):
    """The VQ-VAE, a `Model` whose latents are indices of n codes: q(k|x) is all on one of them.

    log p(x) >= log p(x|e_k) + log p(k), k = the indices of x

    Any quantizer and any prior over indices serve. `elbo`, `generate`, `reconstruct` and the
    evaluators take it as it is; `vq` trains it. van den Oord, Vinyals & Kavukcuoglu 2017.

    Args:
      encoder: x -> z, shape [n, d]; or (z, mask [n]) of x that has less than n vectors. What the
        mask hides has the index -1 and a code of zeros, and no penalty.
      quantizer: a `Codebook`, `FSQ`, or any other of `jaxvae.models.quantization`.
      decoder: codes [n, d] -> p(x|codes).
      prior: p(k) over integers [n], or [n, depth] of a `ResidualCodebooks`: `Categorical`,
        `Autoregressive`. What is to stay uniform is `Constant(Categorical(jnp.zeros((n, K))))`.
        With a mask, `MaskedCodes` of one.

    >>> from jaxvae import Categorical, Constant, Normal, elbo
    >>> from jaxvae.models.quantization import init_codebook
    >>> model = VQVAE(
    ...     encoder=lambda x: x[:, None],
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=lambda codes: Normal(codes[:, 0], 1.0),
    ...     prior=Constant(Categorical(jnp.zeros((3, 2)))),
    ... )
    >>> bound, terms = elbo(model, jax.random.key(0), jnp.array([0.9, -0.8, 0.2]))
    >>> round(float(terms.rate), 5), float(terms.rate) == float(3 * jnp.log(2.0))
    (2.07944, True)
    """

    encoder: Callable[[Any], Array]
    quantizer: Any
    decoder: Callable[[Array], Distribution]
    prior: Distribution

    def encode(self, x: Tree) -> Delta:
        return Delta(quantize(self, x)[1].indices)

    def decode(self, indices: Array) -> Any:
        codes = jax.vmap(self.quantizer.lookup)(jnp.maximum(indices, 0))
        return self.decoder(jnp.where(_there(indices)[:, None], codes, 0.0))

    def straight_through(self, x: Tree) -> Any:
        """p(x|codes), whose gradient reaches the encoder as if the codes were its vectors."""
        return self.decoder(quantize(self, x)[1].code)


@shown
class VQTerms(NamedTuple):
    """What `vq` is made of.

    Args:
      distortion: -log p(x|codes), nats.
      rate: -log p(indices), nats: the price of the codes under the model's prior.
      error: |z - e|^2, summed over the n vectors.
      vectors: z, what the encoder gave, shape [n, d].
      indices: where they went, [n] or [n, depth].
    """

    distortion: Array
    rate: Array
    error: Array
    vectors: Array
    indices: Array


@checked
def vq(
    model: VQVAE,
    key: Key | None,
    x: Tree,
    *,
    commitment: Scalar = 0.25,
    codebook: Scalar = 1.0,
    penalty: Callable[[Any, Array, Quantized], Array] | None = None,
) -> tuple[Array, VQTerms]:
    """The ELBO of a `VQVAE` less its two penalties; still a bound, as these are not negative.

    log p(x) >= log p(x|e) + log p(k) - commitment |z - sg(e)|^2 - codebook |sg(z) - e|^2

    The decoder's gradient reaches the encoder straight through, as if e were z. The prior trains
    too, and moves no code. van den Oord, Vinyals & Kavukcuoglu 2017, equation 3.

    Args:
      commitment: weight of the encoder's penalty, traced.
      codebook: weight of the codes' penalty, traced; 0 leaves them to `ema_step`.
      penalty: (quantizer, z [n, d], what became of them) -> nats to subtract as well, such as
        `lambda quantizer, z, q: 0.1 * entropy_penalty(q)`.

    >>> from jaxvae import Categorical, Normal
    >>> from jaxvae.models.quantization import init_codebook
    >>> model = VQVAE(
    ...     encoder=lambda x: x[:, None],
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=lambda codes: Normal(codes[:, 0], 1.0),
    ...     prior=Categorical(jnp.zeros((3, 2))),
    ... )
    >>> bound, terms = vq(model, jax.random.key(0), jnp.array([0.5, -1.0, 1.0]))
    >>> terms.indices.tolist(), float(terms.error)
    ([1, 0, 1], 0.25)
    """
    del key
    model = functional(model)
    vectors, q = quantize(model, x)
    p, prior = model.decoder(q.code), part(model, "prior")
    check_distribution("model.decoder returned", p)
    check_distribution("model.prior is", prior)
    distortion = -log_prob_of("decoder(codes)", p, "x", x)
    rate = -log_prob_of("the prior", prior, "indices", q.indices)
    error, pull = jnp.sum(q.commitment), jnp.sum(q.codebook)
    bound = -(distortion + rate + commitment * error + codebook * pull)
    if penalty is not None:
        charged = penalty(model.quantizer, vectors, q)
        check_scalar("vq", "penalty's result", charged)
        bound -= charged
    return bound, VQTerms(distortion, rate, error, vectors, q.indices)


@checked
def quantize(model: VQVAE, x: Tree) -> tuple[Array, Quantized]:
    """The encoder's vectors of one example, [n, d], and what the quantizer makes of each."""
    for name in ("encoder", "quantizer", "decoder"):
        if not callable(getattr(model, name, None)):
            raise TypeError(
                f"model is {a_class_of(model)} without a function {name}, expected a VQVAE"
            )
    check_leaves("model", "x", x)
    z = functional(model.encoder)(x)
    z, mask = z if isinstance(z, tuple) and len(z) == 2 else (z, None)
    check_array("model", "encoder(x)", z)
    if jnp.ndim(z) != 2:
        raise ValueError(f"model.encoder(x) has shape {jnp.shape(z)}, expected n vectors [n, d]")
    q = jax.vmap(model.quantizer)(z)
    if not isinstance(q, Quantized):
        raise TypeError(f"model.quantizer returned {a_class_of(q)}, expected a Quantized")
    return z, q if mask is None else _masked(q, mask)


def _masked(q: Quantized, mask: Any) -> Quantized:
    """No code, no index and no penalty where the mask is False."""
    check_shape("model", "encoder(x)'s mask", mask, jnp.shape(q.commitment))
    there = jnp.asarray(mask, bool)
    column = there.reshape(-1, *(1,) * (jnp.ndim(q.indices) - 1))
    return Quantized(
        code=jnp.where(there[:, None], q.code, 0.0),
        indices=jnp.where(column, q.indices, -1),
        commitment=jnp.where(there, q.commitment, 0.0),
        codebook=jnp.where(there, q.codebook, 0.0),
        logits=q.logits,
    )


def _there(indices: Array) -> Array:
    """Which of n vectors have an index."""
    return jnp.all(jnp.reshape(indices, (len(indices), -1)) >= 0, axis=1)


@checked
def ema_step(
    objective: Objective,
    optimizer: Optimizer,
    *,
    decay: Scalar = 0.99,
    threshold: Scalar = 0.0,
) -> Step:
    """`train_step` of all but the codes, which follow by `ema_codebook` and `reset_dead_codes`.

    What an optimiser did to a `Codebook`, as weight decay, is undone: the codes before the step
    move to the vectors before the step. What else a quantizer holds, as maps to few dimensions,
    trains. Goes into `train_epoch`, `scan_steps` and `fit` like any.

    Args:
      decay: of the averages.
      threshold: least use of a code in a batch, on average, before it is drawn anew.

    >>> import optax
    >>> from jax.tree_util import Partial
    >>> from jaxvae import Categorical, Constant, Normal, init_state
    >>> from jaxvae.models.quantization import init_codebook
    >>> model = VQVAE(
    ...     encoder=Partial(lambda x: x[:, None]),
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=Partial(lambda codes: Normal(codes[:, 0], 1.0)),
    ...     prior=Constant(Categorical(jnp.zeros((3, 2)))),
    ... )
    >>> optimizer = optax.adam(1e-3)
    >>> step = jax.jit(ema_step(vq, optimizer, decay=0.0))
    >>> xs = jnp.array([[4.0, 4.0, -3.0]])
    >>> state, _ = step(init_state(model, optimizer), jax.random.key(0), xs)
    >>> [round(e, 3) for e in state.model.quantizer.codes.ravel().tolist()]
    [-3.0, 4.0]
    """
    step = train_step(partial(objective, codebook=0.0), optimizer)
    encoded: Objective = batched(vars(step)["objective"])  # dropout and batch norms as in training

    @checked
    def moved(state: TrainState, key: Key, xs: Tree, **hyper: Any) -> tuple[TrainState, Any]:
        after, metrics = step(state, key, xs, **hyper)
        step_key = jax.random.fold_in(key, state.step)
        given = {name: metrics[name] for name in hyper}  # schedules at this step
        # the step's own draws, so that the compiled step encodes once
        _, terms = encoded(state.model, jax.random.clone(step_key), xs, **given)
        z, indices = (jax.lax.collapse(a, 0, 2) for a in (terms.vectors, terms.indices))
        quantizer = ema_codebook(state.model.quantizer, z, indices, decay=decay)
        reset_key = jax.random.fold_in(step_key, jnp.uint32(2**31))  # batches split off 0, 1, ...
        quantizer = reset_dead_codes(reset_key, quantizer, z, indices, threshold=threshold)
        quantizer = jax.tree.map(_codes_of, quantizer, after.model.quantizer, is_leaf=_is_codebook)
        return after._replace(model=after.model._replace(quantizer=quantizer)), metrics

    return moved


def _is_codebook(part: object) -> bool:
    return isinstance(part, Codebook)


def _codes_of(moved: Any, trained: Any) -> Any:
    """A `Codebook` as it moved, and anything else as it was trained."""
    return moved if _is_codebook(moved) else trained
