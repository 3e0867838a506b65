"""How the arrays of each layer of PyTorch become those of ours, by the kind of layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxvae.nn.convolutions import Down, Up
from jaxvae.nn.heads import Shape
from jaxvae.nn.residual import Convolution


class Place(NamedTuple):
    """A layer of the model; shapes of images that its input or output is the row of, if any."""

    layer: Any
    image_in: Shape | None = None
    image_out: Shape | None = None


# of PyTorch's arrays, one of each module that is to be side by side with others, an array here


def _as_it_is(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    del place
    return np.concatenate(parts)


def _dense(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """[out, in], also of a 1x1 convolution, -> [in, out]; pixels (c, h, w) -> (h, w, c)."""
    kernel = np.concatenate(parts)
    if kernel.shape[2:] in ((1,), (1, 1)):
        kernel = kernel.reshape(kernel.shape[:2])
    kernel = _pixels(kernel.T, place.image_in)
    return _pixels(kernel.T, place.image_out).T


def _bias(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    return _pixels(np.concatenate(parts), place.image_out)


def _pixels(rows: np.ndarray, image: Shape | None) -> np.ndarray:
    """Rows in the order (c, h, w) put into (h, w, c)."""
    if image is None:
        return rows
    h, w, c = image
    ordered = np.moveaxis(rows.reshape(c, h, w, *rows.shape[1:]), 0, 2)
    return ordered.reshape(rows.shape)


def _convolution(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """[out, in, *size] -> [*size, in, out]."""
    del place
    return np.moveaxis(np.concatenate(parts), (1, 0), (-2, -1))


def _up(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """[in, out, *size] -> [*size, in, out]."""
    del place
    return np.moveaxis(np.concatenate(parts, axis=1), (0, 1), (-2, -1))


def _transposed(place: Place, parts: list[np.ndarray]) -> np.ndarray:
    """As `_up`, and turned round, which JAX itself does where it transposes the kernel."""
    kernel = _up(place, parts)
    if place.layer.transpose_kernel:
        return np.swapaxes(kernel, -2, -1)
    return np.flip(kernel, tuple(range(kernel.ndim - 2)))


def _input_bias(place: Place, ih: list[np.ndarray], hh: list[np.ndarray]) -> np.ndarray:
    """Of the gates r and z both biases, which are added; of n the input's alone."""
    del place
    (of_input,), (of_state,) = ih, hh
    return of_input + np.where(_of_n(of_state), 0.0, of_state)


def _state_bias(place: Place, hh: list[np.ndarray]) -> np.ndarray:
    """What r multiplies in n = tanh(W x + b + r (U h + c)): c."""
    del place
    (of_state,) = hh
    return np.where(_of_n(of_state), of_state, 0.0)


def _of_n(bias: np.ndarray) -> np.ndarray:
    return np.arange(len(bias)) >= 2 * len(bias) // 3


_CONVOLUTION = {"kernel": (("weight",), _convolution), "bias": (("bias",), _as_it_is)}
_NORM = {"scale": (("weight",), _as_it_is), "bias": (("bias",), _as_it_is)}
LAYERS: dict[type, dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]]] = {
    nnx.Linear: {"kernel": (("weight",), _dense), "bias": (("bias",), _bias)},
    nnx.Conv: _CONVOLUTION,
    Convolution: _CONVOLUTION,
    Down: _CONVOLUTION,
    Up: {"kernel": (("weight",), _up), "bias": (("bias",), _as_it_is)},
    nnx.ConvTranspose: {"kernel": (("weight",), _transposed), "bias": (("bias",), _as_it_is)},
    nnx.Embed: {"embedding": (("weight",), _as_it_is)},
    nnx.BatchNorm: {
        **_NORM,
        "mean": (("running_mean",), _as_it_is),
        "var": (("running_var",), _as_it_is),
    },
    nnx.LayerNorm: _NORM,
    nnx.GroupNorm: _NORM,
    nnx.GRUCell: {
        "dense_i.kernel": (("weight_ih",), _dense),
        "dense_i.bias": (("bias_ih", "bias_hh"), _input_bias),
        "dense_h.kernel": (("weight_hh",), _dense),
        "dense_h.bias": (("bias_hh",), _state_bias),
    },
}
