"""Codebooks that follow their vectors without a gradient, and how many of their codes are used."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import (
    Count,
    Floats,
    Integers,
    Key,
    Numbers,
    Scalar,
    a_class_of,
    check_shape,
    checked,
)
from jaxvae.models.quantization.quantizers import Codebook, Move, check_codebook, nearest
from jaxvae.pytrees import wide


@checked
def ema_codebook(
    quantizer: Any, z: Floats, indices: Integers, *, decay: Scalar, epsilon: Scalar = 1e-5
) -> Any:
    """Codes moved to the moving average of the vectors that came to them: online k-means.

    N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) sum_{i: k_i = k} z_i

    e_k = m_k / N'_k,   N'_k = (N_k + epsilon) / (N + K epsilon) N,   N = sum_k N_k

    A fixed point is a clustering whose codes are the means of their clusters, but for epsilon; at
    decay 0 this is a step of k-means. No gradient is involved.
    van den Oord, Vinyals & Kavukcuoglu 2017, appendix A.1; smoothing: Razavi et al. 2019b.

    Args:
      quantizer: a `Codebook`, or what is made of them, as a `ResidualCodebooks`.
      z: a batch's vectors, shape [n, d].
      indices: where each went, shape [n], or [n, depth]; one of -1 moves nothing.
      decay: in 0..1, traced.
      epsilon: of the Laplace smoothing, which keeps e_k near where N_k is small; a code whose N_k
        is 0 stays.

    >>> from jaxvae.models.quantization import init_codebook
    >>> z, indices = jnp.array([[1.0], [3.0], [8.0]]), jnp.array([0, 0, 1])
    >>> moved = ema_codebook(init_codebook(jnp.array([[0.0], [9.0]])), z, indices, decay=0.0)
    >>> [round(e, 3) for e in moved.codes.ravel().tolist()]
    [2.0, 8.0]
    """

    def move(key: Any, codebook: Codebook, z: Array, indices: Array) -> Codebook:
        del key
        k, dtype = len(codebook.codes), jnp.result_type(codebook.counts)
        uses = jax.nn.one_hot(indices, k, dtype=dtype, axis=0)  # [K, n]
        counts = decay * codebook.counts + (1.0 - decay) * jnp.sum(uses, axis=1)
        there = jnp.where(indices[:, None] >= 0, z, jnp.zeros_like(z)).astype(dtype)
        sums = decay * codebook.sums + (1.0 - decay) * (uses @ there)
        total = jnp.sum(counts)
        smooth = (counts + epsilon) / (total + k * epsilon) * total
        used = counts[:, None] > 0.0
        means = sums / jnp.where(used, smooth[:, None], 1.0)
        codes = jnp.where(used, means.astype(codebook.codes.dtype), codebook.codes)
        return Codebook(codes, counts, sums)

    return _each("ema_codebook", move, None, quantizer, z, indices)


@checked
def reset_dead_codes(
    key: Key, quantizer: Any, z: Floats, indices: Integers, *, threshold: Scalar
) -> Any:
    """Codes used less than `threshold` times a batch are drawn again, from the batch.

    Dhariwal et al. 2020.

    Args:
      quantizer, z, indices: as in `ema_codebook`; a vector of index -1 is never drawn.
      threshold: the least count N_k of `ema_codebook`, which a code drawn anew starts with; at 0
        none is.

    >>> dead = Codebook(jnp.zeros((2, 1)), jnp.array([5.0, 0.1]), jnp.zeros((2, 1)))
    >>> z, indices = jnp.array([[7.0]]), jnp.array([0])
    >>> reset_dead_codes(jax.random.key(0), dead, z, indices, threshold=1.0).codes.tolist()
    [[0.0], [7.0]]
    """

    def move(key: Any, codebook: Codebook, z: Array, indices: Array) -> Codebook:
        hidden = indices < 0
        there, present = jnp.sum(~hidden), jnp.argsort(hidden, stable=True)
        drawn = z[present[jax.random.randint(key, codebook.counts.shape, 0, there)]]
        dead = (codebook.counts < threshold) & (there > 0)
        row = dead[:, None]
        return Codebook(
            codes=jnp.where(row, drawn.astype(jnp.result_type(codebook.codes)), codebook.codes),
            counts=jnp.where(dead, threshold, codebook.counts),
            sums=jnp.where(
                row, threshold * drawn.astype(jnp.result_type(codebook.sums)), codebook.sums
            ),
        )

    return _each("reset_dead_codes", move, key, quantizer, z, indices)


@checked
def kmeans(key: Key, z: Floats, *, num_codes: Count, steps: Count = 10) -> Array:
    """Codes to start from, [K, d]: k-means of vectors of the encoder, z [n, d].

    From K of the vectors at random, `steps` times the mean of those that are nearest (Lloyd 1982);
    a code that none is nearest to stays. A start of codebooks: Lancucki et al. 2020; Zeghidour et
    al. 2021, section 3.3.

    >>> z = jnp.array([[0.0], [2.0], [8.0], [9.0], [10.0]])
    >>> sorted(kmeans(jax.random.key(0), z, num_codes=2).ravel().tolist())
    [1.0, 9.0]
    """
    if jnp.ndim(z) != 2:
        raise ValueError(f"kmeans: z has shape {jnp.shape(z)}, expected vectors [n, d]")
    if num_codes > len(z):
        raise ValueError(f"kmeans: num_codes is {num_codes}, expected at most {len(z)}, z's rows")

    def step(codes: Array, _: None) -> tuple[Array, None]:
        indices = jax.vmap(nearest, (None, 0))(codes, z).indices
        uses = jax.nn.one_hot(indices, num_codes, dtype=codes.dtype, axis=0)  # [K, n]
        counts = jnp.sum(uses, axis=1)[:, None]
        return jnp.where(counts > 0, uses @ z / jnp.maximum(counts, 1.0), codes), None

    z = wide(z)
    start = jax.random.choice(key, z, (num_codes,), replace=False)
    return jax.lax.scan(step, start, length=steps)[0]


@checked
def code_counts(indices: Integers, *, num_codes: Count) -> Array:
    """How often each code is used, [K]: of indices of any shape, of which -1 counts for none.

    >>> counts = code_counts(jnp.array([[2, 0], [2, -1]]), num_codes=4)
    >>> counts.tolist(), int(jnp.sum(counts == 0))  # two dead codes
    ([1, 0, 2, 0], 2)
    """
    flat = jnp.ravel(indices).astype(int)  # in which num_codes is a number
    return jnp.bincount(jnp.where(flat < 0, num_codes, flat), length=num_codes)


@checked
def perplexity(counts: Numbers) -> Array:
    """exp H(p), p_k = counts_k / sum counts: how many codes are in use, K if all are used alike.

    `counts` [K] is how often each is used, of `code_counts`; 0 where none is.

    >>> float(perplexity(jnp.array([3, 3, 0]))), float(perplexity(jnp.array([0, 9])))
    (2.0, 1.0)
    """
    if jnp.ndim(counts) != 1 or not jnp.size(counts):
        raise ValueError(f"perplexity: counts has shape {jnp.shape(counts)}, expected [K]")
    counts = jnp.asarray(counts).astype(float)
    total = jnp.sum(counts)
    p = counts / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, jnp.exp(jnp.sum(jax.scipy.special.entr(p))), 0.0)


def _each(owner: str, move: Move, key: Any, quantizer: Any, z: Floats, indices: Integers) -> Any:
    """The quantizer with every `Codebook` in it moved by what came to it."""

    def held(key: Any, codebook: Codebook, z: Array, indices: Array) -> Codebook:
        check_codebook(owner, "quantizer", codebook)
        check_shape(owner, "z", z, (len(z), jnp.shape(codebook.codes)[1]))
        check_shape(owner, "indices", indices, (len(z),))
        return move(key, codebook, z, indices)

    if not hasattr(quantizer, "each_codebook"):
        expected = "a Codebook, or what is made of them, as jaxvae.models.init_codebook(codes)"
        raise TypeError(f"{owner}: quantizer is {a_class_of(quantizer)}, expected {expected}")
    if jnp.ndim(z) != 2:
        raise ValueError(f"{owner}: z has shape {jnp.shape(z)}, expected vectors [n, d]")
    check_shape(owner, "indices", indices, (len(z), *jnp.shape(indices)[1:]))
    return quantizer.each_codebook(held, key, jnp.asarray(z), jnp.asarray(indices))
