"""Small models that several test files share."""

import jax.numpy as jnp
from jax.tree_util import Partial

from jaxvae import VAE, Normal, StandardNormal


def ladder(q, weight=1.0):
    """p(z) = N(0, 1), p(x|z) = N(w z, 1), q(z|x) = N(m, s^2) of q = (m, log s); scalars."""
    return VAE(
        encode=Partial(lambda q, x: Normal(q[0], jnp.exp(q[1])), q),
        decode=Partial(lambda w, z: Normal(w * z, jnp.ones_like(z)), weight),
        prior=StandardNormal(()),
    )
