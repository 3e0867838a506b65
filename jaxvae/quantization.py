"""Discrete codes: an encoder's vectors replaced by the nearest of finitely many.

A quantizer is a pytree called on ONE vector z [d], and knows its codes by their index:

    quantizer(z) -> Quantized          Codebook, Residual, FSQ
    quantizer.lookup(index) -> [d]

`jax.vmap` makes it one of a grid. Gradients go straight through: backwards the code is z.
"""

from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae.bounds import Objective, batched
from jaxvae.checks import (
    check_array,
    check_function,
    check_key,
    check_leaves,
    check_scalar,
    check_shape,
)
from jaxvae.protocols import check_distribution, log_density, part
from jaxvae.pytrees import pytree
from jaxvae.training import Step, TrainState, check_state, train_step

Array = jax.Array
sg = jax.lax.stop_gradient


class Quantized(NamedTuple):
    """A vector as its code. The two penalties are equal in value and differ in their gradient.

    Args:
      code: e, shape [d]; backwards it is z.
      indices: its number k, or [depth] of them.
      commitment: |z - sg(e)|^2, which pulls the encoder to the code.
      codebook: |sg(z) - e|^2, which pulls the code to the encoder.
    """

    code: Array
    indices: Array
    commitment: Array
    codebook: Array


class Codebook(NamedTuple):
    """K codes; a vector goes to the nearest, argmin_k |z - e_k|. `init_codebook` makes one.

    Args:
      codes: e, shape [K, d].
      counts: N, shape [K]: how often each is used a batch, a moving average; see `ema_codebook`.
      sums: m, shape [K, d]: the sum of the vectors that it then stands for, likewise.

    >>> q = init_codebook(jnp.array([[0.0, 0.0], [1.0, 1.0]]))(jnp.array([0.9, 0.6]))
    >>> int(q.indices), q.code.tolist(), round(float(q.commitment), 5)
    (1, [1.0, 1.0], 0.17)

    van den Oord, Vinyals & Kavukcuoglu 2017, equations 1 and 2.
    """

    codes: Any
    counts: Any
    sums: Any

    def __call__(self, z: Array) -> Quantized:
        check_codebook("Codebook", self)
        check_vectors("Codebook", z, jnp.shape(self.codes)[1:])
        inner = jnp.matmul(self.codes, z, precision="highest")
        index = jnp.argmin(jnp.sum(jnp.square(self.codes), axis=1) - 2.0 * inner)
        e = self.codes[index]
        return Quantized(straight_to(e, z), index, _gap(z, sg(e)), _gap(sg(z), e))

    def lookup(self, index: Array) -> Array:
        check_index("Codebook.lookup", index, ())
        return jnp.asarray(self.codes)[index]


class Residual(NamedTuple):
    """Codebooks in a row, each for what those before it have left: code = sum_l e_l.

    L codebooks of K codes name K^L vectors at the price of L K.

    Args:
      codebooks: a `Codebook` whose leaves have the depth L as their leading axis.

    >>> codebooks = jax.vmap(init_codebook)(jnp.array([[[0.0], [4.0]], [[0.0], [1.0]]]))
    >>> q = Residual(codebooks)(jnp.array([5.2]))
    >>> q.indices.tolist(), q.code.tolist()
    ([1, 1], [5.0])

    Zeghidour et al. 2021, algorithm 1.
    """

    codebooks: Codebook

    def __call__(self, z: Array) -> Quantized:
        def one(rest: Array, codebook: Codebook) -> tuple[Array, Quantized]:
            q = codebook(rest)
            return rest - sg(codebook.lookup(q.indices)), q

        check_codebook("Residual", self.codebooks, axes=1)
        check_vectors("Residual", z, jnp.shape(self.codebooks.codes)[2:])
        _, q = jax.lax.scan(one, z, self.codebooks)
        code = straight_to(self.lookup(q.indices), z)
        return Quantized(code, q.indices, jnp.sum(q.commitment), jnp.sum(q.codebook))

    def lookup(self, index: Array) -> Array:
        check_index("Residual.lookup", index, jnp.shape(self.codebooks.codes)[:1])
        return jnp.sum(jax.vmap(Codebook.lookup)(self.codebooks, index), axis=0)


@pytree
@dataclass(frozen=True)
class FSQ:
    """Finite scalar quantization: each coordinate squashed and rounded to one of its levels.

    s_i = (L_i - 1) (1 + tanh z_i) / 2,   code_i = 2 round(s_i) / (L_i - 1) - 1

    Nothing is learned, nothing is committed to and no code can die. Odd levels have one at 0, even
    ones lie about it; the paper shifts these so that z = 0 is a code.

    Args:
      levels: L_i >= 2 of each of the d coordinates, a tuple; there are L_1 ... L_d codes.

    >>> q = FSQ((3, 2))(jnp.array([0.1, -5.0]))
    >>> q.code.tolist(), int(q.indices), FSQ((3, 2)).lookup(q.indices).tolist()
    ([0.0, -1.0], 2, [0.0, -1.0])

    Mentzer et al. 2023, section 3.1.
    """

    levels: tuple[int, ...] = field(metadata={"static": True})

    def __call__(self, z: Array) -> Quantized:
        check_levels(self.levels)
        check_vectors("FSQ", z, (len(self.levels),))
        top = jnp.asarray(self.levels, z.dtype) - 1.0
        s = 0.5 * top * (1.0 + jnp.tanh(z))
        digits = sg(jnp.round(s))
        code = 2.0 * straight_to(digits, s) / top - 1.0
        index = jnp.sum(digits.astype(int) * self._places())
        nothing = jnp.zeros((), z.dtype)
        return Quantized(code, index, nothing, nothing)

    def lookup(self, index: Array) -> Array:
        check_levels(self.levels)
        check_index("FSQ.lookup", index, ())
        levels = jnp.asarray(self.levels)
        digits = index // self._places() % levels
        return 2.0 * digits.astype(float) / (levels - 1).astype(float) - 1.0

    def _places(self) -> Array:
        return jnp.asarray(prod(self.levels) // np.cumprod(self.levels))


def straight_to(e: Array, z: Array) -> Array:
    """The value of e with the gradient of z: z + sg(e - z).

    >>> jax.grad(lambda z: jnp.square(straight_to(jnp.round(z), z)))(1.2).item()  # 2 e, not 2 z
    2.0

    Bengio, Leonard & Courville 2013, section 4.
    """
    check_array("straight_to", "z", z)
    check_shape("straight_to", "e", e, jnp.shape(z))
    return z + sg(e - z)


def init_codebook(codes: Array) -> Codebook:
    """A `Codebook` of these codes, with moving averages that count each as used once a batch.

    Args:
      codes: shape [K, d], floats: vectors of the encoder, or small noise.

    Raises:
      TypeError: they are no floats.
      ValueError: they are no matrix.

    >>> init_codebook(jnp.zeros((8, 2))).counts.shape
    (8,)
    """
    check_array("init_codebook", "codes", codes)
    codebook = Codebook(codes, jnp.ones(jnp.shape(codes)[:1], jnp.result_type(codes)), codes)
    check_codebook("init_codebook", codebook)
    return codebook


def ema_codebook(
    quantizer: Any, z: Array, indices: Array, *, decay: Any, epsilon: Any = 1e-5
) -> Any:
    """Codes moved to the moving average of the vectors that came to them: online k-means.

    N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) sum_{i: k_i = k} z_i

    e_k = m_k / N'_k,   N'_k = (N_k + epsilon) / (N + K epsilon) N,   N = sum_k N_k

    A fixed point is a clustering whose codes are the means of their clusters, but for epsilon; at
    decay 0 this is a step of k-means. No gradient is involved.

    Args:
      quantizer: a `Codebook`, or a `Residual` of them.
      z: a batch's vectors, shape [n, d].
      indices: where each went, shape [n], or [n, depth].
      decay: in 0..1, traced.
      epsilon: of the Laplace smoothing, which keeps e_k finite where N_k is 0.

    Returns:
      The quantizer with all three arrays moved.

    >>> z, indices = jnp.array([[1.0], [3.0], [8.0]]), jnp.array([0, 0, 1])
    >>> moved = ema_codebook(init_codebook(jnp.array([[0.0], [9.0]])), z, indices, decay=0.0)
    >>> [round(e, 3) for e in moved.codes.ravel().tolist()]
    [2.0, 8.0]

    van den Oord, Vinyals & Kavukcuoglu 2017, appendix A.1; smoothing: Razavi et al. 2019.
    """
    check_scalar("ema_codebook", "decay", decay)
    check_scalar("ema_codebook", "epsilon", epsilon)
    _check_batch("ema_codebook", quantizer, z, indices)
    if isinstance(quantizer, Residual):
        move = partial(ema_codebook, decay=decay, epsilon=epsilon)
        rests = _rests(quantizer, z, indices)
        return Residual(jax.vmap(move)(quantizer.codebooks, rests, jnp.moveaxis(indices, 1, 0)))
    k = len(quantizer.codes)
    uses = jax.nn.one_hot(indices, k, dtype=jnp.result_type(z), axis=0)  # [K, n]
    counts = decay * quantizer.counts + (1.0 - decay) * jnp.sum(uses, axis=1)
    sums = decay * quantizer.sums + (1.0 - decay) * (uses @ z)
    total = jnp.sum(counts)
    smooth = (counts + epsilon) / (total + k * epsilon) * total
    return Codebook(sums / smooth[:, None], counts, sums)


def revive(key: Array, quantizer: Any, z: Array, indices: Array, *, threshold: Any) -> Any:
    """Codes used less than `threshold` times a batch are drawn again, from the batch.

    Args:
      key: a PRNG key.
      quantizer: a `Codebook`, or a `Residual` of them.
      z: a batch's vectors, shape [n, d].
      indices: where each went, shape [n], or [n, depth].
      threshold: the least count N_k of `ema_codebook`, which a code drawn anew starts with; at 0
        none is.

    Returns:
      The quantizer.

    >>> dead = Codebook(jnp.zeros((2, 1)), jnp.array([5.0, 0.1]), jnp.zeros((2, 1)))
    >>> z, indices = jnp.array([[7.0]]), jnp.array([0])
    >>> revive(jax.random.key(0), dead, z, indices, threshold=1.0).codes.tolist()
    [[0.0], [7.0]]

    Dhariwal et al. 2020, section 3.1.
    """
    check_key("revive", key)
    check_scalar("revive", "threshold", threshold)
    _check_batch("revive", quantizer, z, indices)
    if isinstance(quantizer, Residual):
        rests = _rests(quantizer, z, indices)
        keys = jax.random.split(key, len(rests))
        again = partial(revive, threshold=threshold)
        return Residual(
            jax.vmap(again)(keys, quantizer.codebooks, rests, jnp.moveaxis(indices, 1, 0))
        )
    drawn = z[jax.random.randint(key, quantizer.counts.shape, 0, len(z))]
    dead = quantizer.counts < threshold
    row = dead[:, None]
    return Codebook(
        codes=jnp.where(row, drawn, quantizer.codes),
        counts=jnp.where(dead, threshold, quantizer.counts),
        sums=jnp.where(row, threshold * drawn, quantizer.sums),
    )


def perplexity(counts: Array) -> Array:
    """exp H(p), p_k = counts_k / sum counts: how many codes are in use, K if all are used alike.

    Args:
      counts: how often each code is used, shape [K]: `jnp.bincount(indices, length=K)`.

    Returns:
      A number between 1 and K.

    >>> float(perplexity(jnp.array([3, 3, 0]))), float(perplexity(jnp.array([0, 9])))
    (2.0, 1.0)
    """
    check_array("perplexity", "counts", counts)
    if jnp.ndim(counts) != 1 or not jnp.size(counts):
        raise ValueError(f"perplexity: counts has shape {jnp.shape(counts)}, expected [K]")
    counts = jnp.asarray(counts).astype(float)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(counts / jnp.sum(counts))))


@pytree
@dataclass(frozen=True, eq=False)
class PointMass:
    """All probability on one event, of integers: the posterior of what is deterministic.

    Args:
      value: the event, an array.

    >>> q = PointMass(jnp.array([3, 1]))
    >>> float(q.log_prob(q.sample(jax.random.key(0)))), float(q.log_prob(jnp.array([3, 2])))
    (0.0, -inf)
    """

    value: Any
    reparameterized: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        check_array("PointMass", "value", self.value)
        return jnp.shape(self.value)

    def sample(self, key: Array) -> Any:
        del key
        return self.value

    def log_prob(self, event: Any) -> Array:
        check_shape("PointMass.log_prob", "event", event, self.shape)
        return jnp.where(jnp.all(event == self.value), 0.0, -jnp.inf)


class VQVAE(NamedTuple):
    """A `Model` whose latents are the indices of n codes: q(k|x) is all on one of them.

    log p(x) >= log p(x|e_k) + log p(k), k = the indices of x

    Any quantizer and any prior over indices serve. `elbo`, `generate`, `reconstruct` and the
    evaluators take it as it is; `vq` trains it.

    Args:
      encoder: x -> z, shape [n, d].
      quantizer: a `Codebook`, `Residual` or `FSQ`.
      decoder: codes [n, d] -> p(x|codes).
      prior: p(k) over integers [n], or [n, depth] of a `Residual`: `Categorical`,
        `Autoregressive`. What is to stay uniform is `Constant(Categorical(jnp.zeros((n, K))))`.

    >>> from jaxvae import Categorical, Constant, Normal, elbo
    >>> model = VQVAE(
    ...     encoder=lambda x: x[:, None],
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=lambda codes: Normal(codes[:, 0], 1.0),
    ...     prior=Constant(Categorical(jnp.zeros((3, 2)))),
    ... )
    >>> bound, terms = elbo(model, jax.random.key(0), jnp.array([0.9, -0.8, 0.2]))
    >>> round(float(terms.rate), 5), float(terms.rate) == float(3 * jnp.log(2.0))
    (2.07944, True)

    van den Oord, Vinyals & Kavukcuoglu 2017.
    """

    encoder: Any
    quantizer: Any
    decoder: Any
    prior: Any

    def encode(self, x: Any) -> PointMass:
        return PointMass(quantize(self, x)[1].indices)

    def decode(self, indices: Array) -> Any:
        return self.decoder(jax.vmap(self.quantizer.lookup)(indices))


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


def vq(
    model: VQVAE, key: Array, x: Any, *, commitment: Any = 0.25, codebook: Any = 1.0
) -> tuple[Array, VQTerms]:
    """The ELBO of a `VQVAE` less its two penalties; still a bound, as these are not negative.

    log p(x) >= log p(x|e) + log p(k) - commitment |z - sg(e)|^2 - codebook |sg(z) - e|^2

    The decoder's gradient reaches the encoder straight through, as if e were z. The prior trains
    too, and moves no code.

    Args:
      model: a `VQVAE`.
      key: not used; every objective has it.
      x: one example.
      commitment: weight of the encoder's penalty, traced.
      codebook: weight of the codes' penalty, traced; 0 leaves them to `ema_step`.

    Returns:
      The bound, a scalar in nats, and `VQTerms`, which the weights do not touch.

    Raises:
      TypeError: a part of the model is missing, or returned what it should not.
      ValueError: an array has another shape than the next part expects.

    >>> from jaxvae import Categorical, Normal
    >>> model = VQVAE(
    ...     encoder=lambda x: x[:, None],
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=lambda codes: Normal(codes[:, 0], 1.0),
    ...     prior=Categorical(jnp.zeros((3, 2))),
    ... )
    >>> bound, terms = vq(model, jax.random.key(0), jnp.array([0.5, -1.0, 1.0]))
    >>> terms.indices.tolist(), float(terms.error)
    ([1, 0, 1], 0.25)

    van den Oord, Vinyals & Kavukcuoglu 2017, equation 3.
    """
    del key
    check_scalar("vq", "commitment", commitment)
    check_scalar("vq", "codebook", codebook)
    vectors, q = quantize(model, x)
    p, prior = model.decoder(q.code), part(model, "prior")
    check_distribution("decoder returned", p)
    check_distribution("prior is", prior)
    distortion, rate = -log_density(p, x), -log_density(prior, q.indices)
    error, pull = jnp.sum(q.commitment), jnp.sum(q.codebook)
    bound = -(distortion + rate + commitment * error + codebook * pull)
    return bound, VQTerms(distortion, rate, error, vectors, q.indices)


def quantize(model: VQVAE, x: Any) -> tuple[Array, Quantized]:
    """The encoder's vectors of one example, [n, d], and what the quantizer makes of each."""
    for name in ("encoder", "quantizer", "decoder"):
        if not callable(getattr(model, name, None)):
            raise TypeError(
                f"model is a {type(model).__name__} without a function {name}, expected a VQVAE"
            )
    check_leaves("model", "x", x)
    z = model.encoder(x)
    check_array("model", "encoder(x)", z)
    if jnp.ndim(z) != 2:
        raise ValueError(f"model.encoder(x) has shape {jnp.shape(z)}, expected n vectors [n, d]")
    q = jax.vmap(model.quantizer)(z)
    if not isinstance(q, Quantized):
        raise TypeError(f"model.quantizer returned {type(q).__name__}, expected Quantized")
    return z, q


def ema_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    decay: float = 0.99,
    threshold: float = 0.0,
) -> Step:
    """`train_step` of all but the codes, which follow by `ema_codebook` and `revive`.

    What an optimiser did to the codebook, weight decay say, is undone: the codes before the step
    move to the vectors before the step. Goes into `train_epoch`, `scan_steps` and `fit` like any.

    Args:
      objective: `vq`, or `preprocessed(vq, ...)`.
      optimizer: any optax optimiser.
      decay: of the averages.
      threshold: least use of a code in a batch, on average, before it is drawn anew.

    Returns:
      `step(state, key, xs, **hyper)`, as `train_step` makes it.

    >>> from jaxvae import Categorical, Constant, Normal, init_state
    >>> from jax.tree_util import Partial
    >>> model = VQVAE(
    ...     encoder=Partial(lambda x: x[:, None]),
    ...     quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
    ...     decoder=Partial(lambda codes: Normal(codes[:, 0], 1.0)),
    ...     prior=Constant(Categorical(jnp.zeros((3, 2)))),
    ... )
    >>> optimizer = optax.adam(1e-3)
    >>> step = ema_step(vq, optimizer, decay=0.0)
    >>> xs = jnp.array([[4.0, 4.0, -3.0]])
    >>> state, _ = step(init_state(model, optimizer), jax.random.key(0), xs)
    >>> [round(e, 3) for e in state.model.quantizer.codes.ravel().tolist()]
    [-3.0, 4.0]
    """
    check_function("ema_step", "objective", objective)
    step = train_step(partial(objective, codebook=0.0), optimizer)

    def moved(state: TrainState, key: Array, xs: Any, **hyper: Any) -> tuple[TrainState, Any]:
        check_state("ema_step", state)
        check_key("ema_step", key)
        step_key = jax.random.fold_in(key, state.step)
        # the step's own draws, so that the compiled step encodes once
        _, terms = batched(objective)(state.model, jax.random.clone(step_key), xs)
        z, indices = (jax.lax.collapse(a, 0, 2) for a in (terms.vectors, terms.indices))
        quantizer = ema_codebook(state.model.quantizer, z, indices, decay=decay)
        revive_key = jax.random.fold_in(step_key, jnp.uint32(2**31))  # batches split off 0, 1, ...
        quantizer = revive(revive_key, quantizer, z, indices, threshold=threshold)
        state, metrics = step(state, key, xs, **hyper)
        return state._replace(model=state.model._replace(quantizer=quantizer)), metrics

    return moved


def check_codebook(owner: str, codebook: Any, axes: int = 0) -> tuple[int, int]:
    """K and d; an error unless `codebook` is a `Codebook` of such arrays, behind `axes` axes."""
    if not isinstance(codebook, Codebook):
        raise TypeError(f"{owner}: quantizer is a {type(codebook).__name__}, expected a Codebook")
    for name, array in codebook._asdict().items():
        check_array(owner, name, array)
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise TypeError(f"{owner}: {name} has dtype {jnp.result_type(array)}, expected floats")
    shape = jnp.shape(codebook.codes)
    if len(shape) != axes + 2 or 0 in shape:
        expected = "[K, d]" if not axes else "[depth, K, d]"
        raise ValueError(f"{owner}: codes has shape {shape}, expected {expected}")
    check_shape(owner, "counts", codebook.counts, shape[:-1])
    check_shape(owner, "sums", codebook.sums, shape)
    return shape[-2], shape[-1]


def check_levels(levels: Any) -> None:
    """Raise unless `levels` is a tuple of integers of at least 2."""
    good = "a tuple of integers of at least 2, (8, 5, 5, 5) say, with less than 2^31 codes in all"
    if type(levels) is not tuple:
        raise TypeError(f"FSQ: levels is a {type(levels).__name__}, expected {good}")
    if not levels or not all(type(n) is int and n > 1 for n in levels) or prod(levels) >= 2**31:
        raise ValueError(f"FSQ: levels is {levels!r}, expected {good}")


def check_index(owner: str, index: Any, shape: tuple[int, ...], name: str = "index") -> None:
    """Raise unless `index` holds integers in this shape."""
    check_shape(owner, name, index, shape)
    if not jnp.issubdtype(jnp.result_type(index), jnp.integer):
        raise TypeError(f"{owner}: {name} has dtype {jnp.result_type(index)}, expected integers")


def check_vectors(owner: str, z: Any, shape: tuple[int, ...]) -> None:
    """Raise unless z holds floats in this shape."""
    check_shape(owner, "z", z, shape)
    if not jnp.issubdtype(jnp.result_type(z), jnp.floating):
        raise TypeError(f"{owner}: z has dtype {jnp.result_type(z)}, expected floats")


def _check_batch(owner: str, quantizer: Any, z: Any, indices: Any) -> None:
    residual = isinstance(quantizer, Residual)
    codebook = quantizer.codebooks if residual else quantizer
    _, d = check_codebook(owner, codebook, axes=int(residual))
    check_array(owner, "z", z)
    n = jnp.shape(z)[:1]
    check_vectors(owner, z, (*n, d))
    check_index(owner, indices, n + jnp.shape(codebook.codes)[:-2], "indices")


def _gap(a: Array, b: Array) -> Array:
    return jnp.sum(jnp.square(a - b))


def _rests(quantizer: Residual, z: Array, indices: Array) -> Array:
    """What each codebook was given, shape [depth, n, d]."""
    rests = [z]
    for l, codes in enumerate(quantizer.codebooks.codes[:-1]):
        rests.append(rests[-1] - codes[indices[:, l]])
    return jnp.stack(rests)
