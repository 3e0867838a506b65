"""All that can be drawn of a model: what it remembers and makes up, and where its latents lie."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvae.batching import number_of_rows
from jaxvae.checks import Key, Numbers, Positive, Tree, checked
from jaxvae.evaluation import encode_all, use
from jaxvae.evaluation.rows import first_model, holds_bytes
from jaxvae.evaluation.use import Used
from jaxvae.model import prior
from jaxvae.plots.figures import (
    check_labels,
    image_grid,
    in_colour,
    latent_map,
    latent_rates,
    level_rates,
    traversals,
)
from jaxvae.protocols import Distribution, MissingMethodError, event_shape
from jaxvae.pytrees import value_of

SHOWN = 40  # rows beside their reconstructions
DRAWN = 100  # draws of the prior
MOVED = 8  # latents, those of the largest rate


@checked
def pictures(
    model: Used,
    key: Key,
    xs: Tree,
    *,
    given: Tree | None = None,
    labels: Any = None,
    rates: Numbers | None = None,
    rates_of_levels: Numbers | None = None,
    full: Positive | None = None,
) -> dict[str, Any]:
    """Name -> figure, of all that can be drawn of a model: images, and latents that are a vector.

    Images are rows [n, H, W, C], or [n, H, W] of numbers from 0 to `full`; where the prior is a
    chain, as `models.Markov`, rows are series, and no images.

    Args:
      xs: rows that it was not trained on, leading axis n.
      given: of a conditional model, a function y -> model, the y of each row.
      labels: of the rows, which colour the map.
      rates: of each latent, as `Summary.rates`.
      rates_of_levels: as `Summary.level_rates`.
      full: what a full pixel is, where x is an image; by default 255 of bytes above 1, else 1.

    >>> import jax.numpy as jnp
    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 2)), jnp.zeros(3), jnp.array(0.5)))
    >>> sorted(pictures(model, jax.random.key(0), np.ones((5, 3))))  # its rows are no images
    ['latent_map']
    """
    check_labels("pictures", labels, number_of_rows(xs, "pictures"))
    first = first_model(model, given)
    full = float((255.0 if holds_bytes(xs) else 1.0) if full is None else full)
    found = _images(model, key, xs, given, full) if are_images(xs, prior(first), full) else {}
    if rates is not None:
        found["latent_rates"] = latent_rates(rates)
    if rates_of_levels is not None:
        found["level_rates"] = level_rates(rates_of_levels)
    z = event_shape(prior(first))
    if isinstance(z, tuple) and len(z) == 1 and isinstance(z[0], int):  # a vector
        try:
            means = np.asarray(encode_all(model, xs, given=given))
            found["latent_map"] = latent_map(means, labels)
            if "samples" in found:
                order = np.argsort(-(np.var(means, axis=0) if rates is None else np.ravel(rates)))
                moved = {"latents": order[:MOVED], "rates": rates, "full": full}
                found["traversals"] = traversals(first, means[0], **moved)
        except MissingMethodError:  # of q(z|x) or p(x|z), which has no mean
            return found
    return found


def are_images(xs: Tree, p: Distribution, full: float) -> bool:
    """Whether rows are images, of a model whose prior is p."""
    if not hasattr(xs, "ndim") or hasattr(value_of(p), "after"):  # which draws the next steps
        return False
    xs = np.asarray(xs)
    return xs.ndim == 4 or (xs.ndim == 3 and xs.min() >= 0 and xs.max() <= full)


def _images(model: Used, key: Key, xs: Any, given: Tree | None, full: float) -> dict[str, Any]:
    """Reconstructions and samples: means of p(x|z), or of what has no mean draws."""
    few, many, again = jax.random.split(key, 3)
    some = np.asarray(xs)[:SHOWN]
    y = jax.tree.map(lambda leaf: np.asarray(leaf)[:SHOWN], given)
    means = _or_else(
        lambda: use.reconstruct(model, few, some, given=y),
        lambda: use.decode(model, use.encode(model, some, key=few, given=y), key=again, given=y),
    )
    if np.shape(means) != some.shape:
        return {}
    pairs = np.concatenate([in_colour(some / full), in_colour(means / full)], axis=2)
    title = "rows (left of each pair) and their reconstructions"
    n = DRAWN if given is None else min(DRAWN, len(xs))
    y = jax.tree.map(lambda leaf: np.asarray(leaf)[:n], given)
    draws = _or_else(
        lambda: use.generate(model, many, n, mean=True, given=y),
        lambda: use.generate(model, many, n, given=y),
    )
    of_y = "" if given is None else ", each at the y of a row"
    return {
        "reconstructions": image_grid(1.0 * pairs, columns=8, title=title),
        "samples": image_grid(draws / full, title=f"decoded draws of the prior{of_y}"),
    }


def _or_else(mean: Callable[[], Any], draw: Callable[[], Any]) -> np.ndarray:
    try:
        return np.asarray(mean())
    except MissingMethodError:
        return np.asarray(draw())
