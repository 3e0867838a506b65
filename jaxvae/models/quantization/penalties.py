"""Penalties of codes: entropies of a soft assignment, and angles between codes."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.batching import batch_mean
from jaxvae.checks import Floats, Scalar, checked
from jaxvae.models.quantization.quantizers import Quantized, unit


@checked
def entropy_penalty(
    q: Quantized, *, temperature: Scalar = 1.0, diversity: Scalar = 1.0, factorized: bool = True
) -> Array:
    """Each vector sure of its code, and all of them together of many; sum over n vectors, nats.

    sum_i [ H(p_i) - diversity H(p~) ],   p_i = softmax(logits_i / temperature),   p~ = E p_i

    p~ is the mean over all vectors of the batch, so that this is a penalty inside `batched` alone;
    where a mask hides vectors they count for nothing. Yu et al. 2023.

    Args:
      q: of n vectors, with logits [n, ..., K]: of a codebook [n, K], of bits [n, d, 2].
      temperature: of the soft assignment, traced; BSQ's tau is 2 / temperature.
      diversity: gamma, the weight of H(p~), traced.
      factorized: whether H(p~) is the sum over the choices of an index, as bits, which is at least
        the entropy of all K^d codes, as if they were independent: Zhao et al. 2024.
        If not, all codes are enumerated: Yu et al. 2023.

    >>> from jaxvae.batching import batched
    >>> from jaxvae.models.quantization import LFQ
    >>> objective = lambda model, key, z: (entropy_penalty(jax.vmap(LFQ(1))(z)), None)
    >>> zs = jnp.array([[[9.0]], [[-9.0]]])  # two examples of a vector each: sure, and different
    >>> round(float(batched(objective)(None, jax.random.key(0), zs)[0]), 5)  # -log 2
    -0.69315
    """
    if q.logits is None:
        raise TypeError("entropy_penalty: q.logits is None, expected those of a quantizer's codes")
    n, k = jnp.shape(q.logits)[0], jnp.shape(q.logits)[-1]
    logits = jnp.reshape(q.logits, (n, -1, k)) / temperature
    there = jnp.all(jnp.reshape(q.indices, (n, -1)) >= 0, axis=1).astype(logits.dtype)
    p, log_p = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    sure = -jnp.sum(p * log_p, axis=(1, 2))
    if not factorized:
        choices, *others = jnp.moveaxis(p, 1, 0)  # [n, K] each
        for other in others:
            choices = jnp.reshape(choices[:, :, None] * other[:, None, :], (n, -1))
        p = choices[:, None]
    total = batch_mean(jnp.sum(there))
    mean = batch_mean(jnp.tensordot(there, p, 1)) / jnp.where(total > 0, total, 1.0)
    spread = -jnp.sum(mean * jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)))
    return jnp.dot(there, sure - diversity * spread)


@checked
def orthogonal_penalty(codes: Floats) -> Array:
    """|E E' - I|^2 / K^2, E the K codes normalised: which are to be at right angles.

    `codes` has shape [K, d], a quantizer's `codes`. Shin et al. 2021.

    >>> float(orthogonal_penalty(jnp.array([[2.0, 0.0], [0.0, 3.0]])))
    0.0
    >>> float(orthogonal_penalty(jnp.array([[2.0, 0.0], [3.0, 0.0]])))  # twice 1, of 2 x 2
    0.5
    """
    if jnp.ndim(codes) != 2:
        raise ValueError(f"orthogonal_penalty: codes has shape {jnp.shape(codes)}, expected [K, d]")
    e = jax.vmap(unit)(codes)
    return jnp.mean(jnp.square(e @ e.T - jnp.eye(len(e), dtype=e.dtype)))
