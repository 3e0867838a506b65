"""A model for the data at hand, made of stock parts."""

from functools import partial
from inspect import signature
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxvae.checks import Count, Tree, a_class_of, check_array, checked
from jaxvae.distributions import DiscretizedLogistic, StandardNormal
from jaxvae.model import VAE
from jaxvae.nn.conditional import Conditional
from jaxvae.nn.convolutions import ConvDecoder, ConvEncoder
from jaxvae.nn.heads import Head, HeadOf, NormalHead, Positive, Real, Shape
from jaxvae.nn.networks import MLP, Rescaled
from jaxvae.nn.shared_heads import SharedScaleHead
from jaxvae.nn.tables import Table, TableNetwork


@checked
def make_vae(
    x: Tree | Table,
    *,
    latents: Count = 16,
    convolutional: bool | None = None,
    likelihood: Head[Any] | None = None,
    rngs: nnx.Rngs,
    **network: Any,
) -> VAE[Any, Any, Any]:
    """A VAE for examples like x, an array: normal posterior, standard normal prior.

    p(x|z) by the dtype of x: of floats `Normal` with one sigma, learned (`SharedScaleHead`), of
    uint8 `DiscretizedLogistic`, for pixels as stored. The networks are `MLP`s or, of images
    [height, width, channels], `ConvEncoder` and `ConvDecoder`. Of a `Table`, `Normal` of numbers
    and `Categorical` of the others, `Masked`: see `Table.head`.

    Args:
      x: one example, of which shape and dtype count: `xs[0]`; or a `Table`, of whose rows.
      latents: coordinates of z.
      convolutional: whether the networks are; by default where x has three axes.
      likelihood: another head for p(x|z), which other dtypes need; of a `Table`, for each number.
      **network: options of both networks: `hidden`, `activation`, `norm`, `dropout`, and of
        convolutional ones the encoder's `channels`, which the decoder has in reverse.

    Raises:
      TypeError: `x` is of another dtype, and no likelihood is given.
      ValueError: convolutional, and `x` is no image.

    >>> model = make_vae(jnp.zeros((8, 8, 1)), latents=2, rngs=nnx.Rngs(0))
    >>> type(model.encode.network).__name__, type(model.decode(jnp.zeros(2))).__name__
    ('ConvEncoder', 'Normal')
    """
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"make_vae: rngs is {a_class_of(rngs)}, expected flax's nnx.Rngs(0)")
    if hasattr(x, "columns") and not isinstance(x, Table):
        raise TypeError("make_vae: x is a data frame, expected nn.infer_table(x), or an array")
    if isinstance(x, Table):
        if convolutional:
            raise ValueError("make_vae: x is a Table, expected an image where convolutional")
        return _of_table(x, latents, likelihood, rngs, network)
    check_array("make_vae", "x", x)
    shape, stored = jnp.shape(x), jnp.result_type(x) == jnp.uint8
    if not shape or 0 in shape:
        raise ValueError(
            f"make_vae: x has shape {shape}, expected one example, an array of numbers"
        )
    if convolutional and len(shape) != 3:
        raise ValueError(
            f"make_vae: x has shape {shape}, expected (height, width, channels) where convolutional"
        )
    of_images = len(shape) == 3 if convolutional is None else convolutional
    encoder, decoder = (ConvEncoder, ConvDecoder) if of_images else (MLP, MLP)
    _check_options(encoder, network)
    encoder = partial(encoder, **network)
    if "channels" in network:
        network["channels"] = (*network["channels"],)[::-1]
    encode = partial(Rescaled, encoder) if stored else encoder
    head = likelihood or _likelihood(jnp.result_type(x))
    return VAE(
        Conditional(encode, NormalHead(), shape, (latents,), rngs=rngs),
        Conditional(partial(decoder, **network), head, (latents,), shape, rngs=rngs),
        StandardNormal((latents,)),
    )


def _of_table(table: Table, latents: int, number: Head[Any] | None, rngs: Any, options: Any) -> VAE:
    _check_options(MLP, options)
    mlp = partial(MLP, **options)

    def network(_: Shape, out: Shape, *, rngs: Any) -> TableNetwork:
        return TableNetwork(mlp, table, out, rngs=rngs)

    return VAE(
        Conditional(network, NormalHead(), (), (latents,), rngs=rngs),
        Conditional(mlp, table.head(number), (latents,), (), rngs=rngs),
        StandardNormal((latents,)),
    )


def _check_options(network: type, options: dict[str, Any]) -> None:
    """Raise TypeError where an argument is none of `make_vae` and no option of its networks."""
    names = {*signature(network.__init__).parameters} - {"self", "in_shape", "out_shape", "rngs"}
    if unknown := options.keys() - names:
        own = [n for n in signature(make_vae).parameters if n not in ("x", "network")]
        raise TypeError(
            f"make_vae: got {min(unknown)!r}, expected one of its own, {', '.join(own)}, or an "
            f"option of {network.__name__}, {', '.join(sorted(names))}; for another prior or "
            "posterior, make_vae(...)._replace(prior=...)"
        )


def _likelihood(dtype: Any) -> Head[Any]:
    if dtype == jnp.uint8:
        return HeadOf(DiscretizedLogistic, (Real("n"), Positive("n")))
    if jnp.issubdtype(dtype, jnp.floating):
        return SharedScaleHead()
    raise TypeError(
        f"make_vae: x is an array of {dtype}, expected floats or uint8, or a likelihood: "
        "nn.BernoulliHead() of zeros and ones as floats, nn.HeadOf(jaxvae.Poisson, "
        '(nn.Positive("n"),)) of counts'
    )
