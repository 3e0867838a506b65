"""Codebooks that follow their vectors without a gradient, and how many of their codes are used."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.checks import Floats, Integers, Key, Numbers, Scalar, check_shape, checked
from jaxvae.models.quantization.quantizers import (
    Codebook,
    ResidualCodebooks,
    check_codebook,
)


@checked
def ema_codebook(
    quantizer: Any, z: Floats, indices: Integers, *, decay: Scalar, epsilon: Scalar = 1e-5
) -> Any:
    """Codes moved to the moving average of the vectors that came to them: online k-means.

    N_k <- decay N_k + (1 - decay) n_k,   m_k <- decay m_k + (1 - decay) sum_{i: k_i = k} z_i

    e_k = m_k / N'_k,   N'_k = (N_k + epsilon) / (N + K epsilon) N,   N = sum_k N_k

    A fixed point is a clustering whose codes are the means of their clusters, but for epsilon; at
    decay 0 this is a step of k-means. No gradient is involved.
    van den Oord, Vinyals & Kavukcuoglu 2017, appendix A.1; smoothing: Razavi et al. 2019.

    Args:
      quantizer: a `Codebook`, or a `ResidualCodebooks` of them.
      z: a batch's vectors, shape [n, d].
      indices: where each went, shape [n], or [n, depth].
      decay: in 0..1, traced.
      epsilon: of the Laplace smoothing, which keeps e_k finite where N_k is 0.

    >>> from jaxvae.models.quantization import init_codebook
    >>> z, indices = jnp.array([[1.0], [3.0], [8.0]]), jnp.array([0, 0, 1])
    >>> moved = ema_codebook(init_codebook(jnp.array([[0.0], [9.0]])), z, indices, decay=0.0)
    >>> [round(e, 3) for e in moved.codes.ravel().tolist()]
    [2.0, 8.0]
    """
    _check_batch("ema_codebook", quantizer, z, indices)
    if isinstance(quantizer, ResidualCodebooks):
        move = partial(ema_codebook, decay=decay, epsilon=epsilon)
        rests = _rests(quantizer, z, indices)
        return ResidualCodebooks(
            jax.vmap(move)(quantizer.codebooks, rests, jnp.moveaxis(indices, 1, 0))
        )
    k, dtype = len(quantizer.codes), jnp.result_type(quantizer.counts)
    uses = jax.nn.one_hot(indices, k, dtype=dtype, axis=0)  # [K, n]
    counts = decay * quantizer.counts + (1.0 - decay) * jnp.sum(uses, axis=1)
    sums = decay * quantizer.sums + (1.0 - decay) * (uses @ z.astype(dtype))
    total = jnp.sum(counts)
    smooth = (counts + epsilon) / (total + k * epsilon) * total
    codes = (sums / smooth[:, None]).astype(jnp.result_type(quantizer.codes))
    return Codebook(codes, counts, sums)


@checked
def reset_dead_codes(
    key: Key, quantizer: Any, z: Floats, indices: Integers, *, threshold: Scalar
) -> Any:
    """Codes used less than `threshold` times a batch are drawn again, from the batch.

    Dhariwal et al. 2020, section 3.1.

    Args:
      quantizer, z, indices: as in `ema_codebook`.
      threshold: the least count N_k of `ema_codebook`, which a code drawn anew starts with; at 0
        none is.

    >>> dead = Codebook(jnp.zeros((2, 1)), jnp.array([5.0, 0.1]), jnp.zeros((2, 1)))
    >>> z, indices = jnp.array([[7.0]]), jnp.array([0])
    >>> reset_dead_codes(jax.random.key(0), dead, z, indices, threshold=1.0).codes.tolist()
    [[0.0], [7.0]]
    """
    _check_batch("reset_dead_codes", quantizer, z, indices)
    if isinstance(quantizer, ResidualCodebooks):
        rests = _rests(quantizer, z, indices)
        keys = jax.random.split(key, len(rests))
        again = partial(reset_dead_codes, threshold=threshold)
        return ResidualCodebooks(
            jax.vmap(again)(keys, quantizer.codebooks, rests, jnp.moveaxis(indices, 1, 0))
        )
    drawn = z[jax.random.randint(key, quantizer.counts.shape, 0, len(z))]
    dead = quantizer.counts < threshold
    row = dead[:, None]
    return Codebook(
        codes=jnp.where(row, drawn.astype(jnp.result_type(quantizer.codes)), quantizer.codes),
        counts=jnp.where(dead, threshold, quantizer.counts),
        sums=jnp.where(
            row, threshold * drawn.astype(jnp.result_type(quantizer.sums)), quantizer.sums
        ),
    )


@checked
def perplexity(counts: Numbers) -> Array:
    """exp H(p), p_k = counts_k / sum counts: how many codes are in use, K if all are used alike.

    `counts` [K] is how often each is used, `jnp.bincount(indices, length=K)`; 0 where none is.

    >>> float(perplexity(jnp.array([3, 3, 0]))), float(perplexity(jnp.array([0, 9])))
    (2.0, 1.0)
    """
    if jnp.ndim(counts) != 1 or not jnp.size(counts):
        raise ValueError(f"perplexity: counts has shape {jnp.shape(counts)}, expected [K]")
    counts = jnp.asarray(counts).astype(float)
    total = jnp.sum(counts)
    p = counts / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, jnp.exp(jnp.sum(jax.scipy.special.entr(p))), 0.0)


def _check_batch(owner: str, quantizer: Any, z: Floats, indices: Integers) -> None:
    residual = isinstance(quantizer, ResidualCodebooks)
    codebook = quantizer.codebooks if residual else quantizer
    check_codebook(owner, "quantizer", codebook, axes=int(residual))
    *depth, _, d = jnp.shape(codebook.codes)
    n = jnp.shape(z)[:1]
    check_shape(owner, "z", z, (*n, d))
    check_shape(owner, "indices", indices, (*n, *depth))


def _rests(quantizer: ResidualCodebooks, z: Floats, indices: Integers) -> Array:
    """What each codebook was given, shape [depth, n, d]."""
    rests = [z]
    for l, codes in enumerate(quantizer.codebooks.codes[:-1]):
        rests.append(rests[-1] - codes[indices[:, l]])
    return jnp.stack(rests)
