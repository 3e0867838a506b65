"""Rows of mixed columns from a mixture that is known, a part of the entries missing.

No file is read. In each of 6 clusters, drawn once and for all, the columns are independent: 4
reals, 3 counts, 2 choices among 4 and 3, and 3 of yes or no.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import jaxvae

CLUSTERS = 6


def truth() -> jaxvae.VAE:
    """What the rows are drawn from, with its exact posterior."""
    keys = iter(jax.random.split(jax.random.key(2026), 6))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), (CLUSTERS, *shape))

    columns = jaxvae.Product(
        {
            "real": jaxvae.Normal(1.5 * normal(4), jnp.full((CLUSTERS, 4), 0.7)),
            "count": jaxvae.Poisson(jnp.exp(1.0 + 0.8 * normal(3))),
            "choice of 4": jaxvae.OneHotCategorical(1.5 * normal(4)),
            "choice of 3": jaxvae.OneHotCategorical(1.5 * normal(3)),
            "yes": jaxvae.Bernoulli(1.5 * normal(3)),
        }
    )
    return clusters(0.5 * normal(), columns)


def clusters(logits: Any, columns: Any) -> jaxvae.VAE:
    """A mixture as a VAE of one discrete latent, with its exact posterior: columns are stacked."""
    return jaxvae.VAE(
        encode=Partial(_which, logits, columns),
        decode=Partial(_row, columns),
        prior=jaxvae.Categorical(logits),
    )


def _row(columns: Any, z: Any) -> jaxvae.Masked:
    return jaxvae.Masked(jax.tree.map(lambda leaf: leaf[z], columns))


def _which(logits: Any, columns: Any, event: Any) -> jaxvae.Categorical:
    log_p = jax.vmap(lambda d: jaxvae.Masked(d).log_prob(event))(columns)
    return jaxvae.Categorical(jax.nn.log_softmax(logits) + log_p)


def table(key: jax.Array, rows: int, *, missing: float) -> Any:
    """Rows of the truth, and masks of what of them is seen; a choice is missing as a whole."""
    key, mask_key = jax.random.split(key)

    def draw(key: jax.Array) -> Any:
        model, (z_key, key) = truth(), jax.random.split(key)
        x_given_z: Any = model.decode(model.prior.sample(z_key))
        return x_given_z.distribution.sample(key)

    xs = jax.vmap(draw)(jax.random.split(key, rows))
    whole = {name: x.shape[:1] if "choice" in name else x.shape for name, x in xs.items()}
    keys = dict(zip(xs, jax.random.split(mask_key, len(xs)), strict=True))
    return xs, {name: jax.random.bernoulli(keys[name], 1 - missing, whole[name]) for name in xs}
