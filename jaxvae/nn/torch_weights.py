"""From PyTorch: the weights of a state dict in the layers of a model, torch itself not needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxvae.checks import a_class_of, checked, written
from jaxvae.distributions import Normal
from jaxvae.nn.convolutions import Down, Up
from jaxvae.nn.heads import Shape
from jaxvae.nn.networks import MLP
from jaxvae.nn.residual import Convolution

M = TypeVar("M")
Names = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class LogVarianceHead:
    """Raw parameters -> `Normal`: the last axis holds mu and log sigma^2, as most PyTorch VAEs do.

    `NormalHead` is what to train with: exp overflows where its softplus doesn't.

    >>> LogVarianceHead()(jnp.zeros(4)).scale.tolist()
    [1.0, 1.0]
    """

    def raw_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], 2 * shape[-1])

    def __call__(self, raw: Array) -> Normal:
        loc, log_variance = jnp.split(raw, 2, axis=-1)
        return Normal(loc, jnp.exp(0.5 * log_variance))


class _Place(NamedTuple):
    """A layer of the model; shapes of images that its input or output is the row of, if any."""

    layer: Any
    image_in: Shape | None = None
    image_out: Shape | None = None


@checked
def from_torch(state_dict: Mapping[str, Any], model: M, names: Names) -> M:
    """The model with the weights of a PyTorch state dict in its layers.

    Kernels are transposed: of `nn.Linear` into `nnx.Linear`, of `nn.Conv2d` into `nnx.Conv` and
    `Convolution`, of `nn.Conv2d(n, m, 4, stride=2, padding=1)` into `Down`, of
    `nn.ConvTranspose2d(n, m, 4, stride=2, padding=1)` into `Up`, where image sizes are even. Rows
    of pixels are put in order: where an `MLP` reads or writes an image (height, width, channels),
    PyTorch flattened (channels, height, width). `nn.BatchNorm1d` and `2d` give theirs to
    `nnx.BatchNorm`, statistics too.

    Args:
      state_dict: name -> array or tensor, `module.state_dict()`; its order plays no role.
      model: or a network; its own weights don't matter.
      names: of every layer the path in the model, "encode.network.layers[0]", and the PyTorch
        module, "encoder.0"; several, ("fc_mu", "fc_log_variance"), become one layer, side by side.

    Raises:
      ValueError: a layer or a module is not named, is unknown, or has another shape; or the model
        has parameters of other layers, which would stay as they are.

    >>> from jaxvae.nn import MLP
    >>> state_dict = {"fc.weight": np.ones((2, 3)), "fc.bias": np.array([0.0, 1.0])}
    >>> network = MLP((3,), (2,), hidden=(), rngs=nnx.Rngs(0))
    >>> from_torch(state_dict, network, {"layers[0]": "fc"})(jnp.ones(3)).tolist()
    [3.0, 4.0]
    """
    places = _places(model)
    _check_names(names, places, state_dict, _others(model, places))
    used: set[str] = set()
    filled = {
        path: _filled(state_dict, path, place, names[path], used) for path, place in places.items()
    }
    if rest := [n for n in state_dict if n not in used and not n.endswith("num_batches_tracked")]:
        raise ValueError(
            f"from_torch: state_dict has {rest[0]}, which no layer takes; name its module in "
            "names, or leave it out"
        )
    model = jax.tree_util.tree_map_with_path(
        lambda path, part: filled.get(_name(model, path), part), model, is_leaf=_is_layer
    )
    is_module = lambda part: isinstance(part, nnx.Module)  # noqa: E731
    for module in filter(is_module, jax.tree.leaves(model, is_leaf=is_module)):
        module.eval()  # as `state.model` is: running statistics, and no dropout
    return model


def _others(model: object, places: Mapping[str, _Place]) -> list[str]:
    """Paths of parameters that are in no layer that is known."""
    is_param = lambda part: isinstance(part, nnx.Param)  # noqa: E731
    flat = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_param)
    paths = [_name(model, path) for path, part in flat if is_param(part)]
    return [p for p in paths if not any(p.startswith(f"{place}.") or not place for place in places)]


def _is_layer(part: object) -> bool:
    return isinstance(part, tuple(LAYERS))


def _name(model: object, path: Any) -> str:
    return written(model, path).removeprefix(".")


def _places(model: object) -> dict[str, _Place]:
    def found(is_kind: Callable[[Any], bool]) -> dict[str, Any]:
        flat = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_kind)
        return {_name(model, path): part for path, part in flat if is_kind(part)}

    places = {path: _Place(layer) for path, layer in found(_is_layer).items()}
    for path, mlp in found(lambda part: isinstance(part, MLP)).items():
        inside = f"{path}.layers" if path else "layers"
        first, last = f"{inside}[0]", f"{inside}[{len(mlp.layers) - 1}]"
        if len(mlp.in_shape) == 3:
            places[first] = places[first]._replace(image_in=tuple(mlp.in_shape))
        if len(mlp.out_shape) == 3:
            places[last] = places[last]._replace(image_out=tuple(mlp.out_shape))
    return places


def _check_names(
    names: Names, places: Mapping[str, Any], state_dict: Mapping[str, Any], others: list[str]
) -> None:
    if others:
        raise ValueError(
            f"from_torch: the model has {others[0]}, a parameter of a layer that from_torch does "
            f"not know, expected {', '.join(cls.__name__ for cls in LAYERS)}; set others by hand"
        )
    modules = sorted({name.rpartition(".")[0] for name in state_dict})
    for path, theirs in names.items():
        if path not in places:
            raise ValueError(
                f"from_torch: names has {path!r}, which isn't a layer of the model; those are "
                f"{', '.join(places)}"
            )
        for module in (theirs,) if isinstance(theirs, str) else theirs:
            if module not in modules:
                raise ValueError(
                    f"from_torch: state_dict has no {module!r}, which names gives {path}; its "
                    f"modules are {', '.join(modules)}"
                )
    if missing := [path for path in places if path not in names]:
        raise ValueError(f"from_torch: names has no {missing[0]!r}, a layer of the model")


def _filled(
    state_dict: Mapping[str, Any],
    path: str,
    place: _Place,
    theirs: str | tuple[str, ...],
    used: set[str],
) -> Any:
    """A copy of the layer with the arrays of one module, or of several side by side."""
    modules = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    layer = jax.tree.map(lambda leaf: leaf, place.layer)
    kind = next(LAYERS[cls] for cls in type(layer).__mro__ if cls in LAYERS)
    for ours, (suffix, of) in kind.items():
        variable = getattr(layer, ours, None)
        if variable is None:
            continue
        parts = []
        for name in (f"{module}.{suffix}" for module in modules):
            if name not in state_dict:
                raise ValueError(f"from_torch: state_dict has no {name!r}, the {ours} of {path}")
            used.add(name)
            parts.append(_numpy(name, state_dict[name]))
        want = variable.get_value()
        try:
            array = of(np.concatenate(parts), place)
        except ValueError:
            array = parts[0]
        if array.shape != want.shape:
            shapes = ", ".join(str(part.shape) for part in parts)
            raise ValueError(
                f"from_torch: {modules[0]}.{suffix} has shape {shapes}, expected a {ours} of "
                f"shape {want.shape}, as {path} has"
            )
        setattr(layer, ours, type(variable)(jnp.asarray(array, want.dtype)))
    return layer


def _numpy(name: str, value: Any) -> np.ndarray:
    """Of a tensor too, on whatever device."""
    for step in ("detach", "cpu"):
        value = getattr(value, step, lambda value=value: value)()
    try:
        return np.asarray(value, np.float32 if np.asarray(value).dtype != np.float64 else None)
    except (TypeError, ValueError):
        raise ValueError(f"from_torch: {name} is {a_class_of(value)}, expected an array") from None


def _dense(weight: np.ndarray, place: _Place) -> np.ndarray:
    """[out, in] -> [in, out]; pixels (c, h, w) -> (h, w, c)."""
    kernel = _pixels(weight.T, place.image_in)
    return _pixels(kernel.T, place.image_out).T


def _pixels(rows: np.ndarray, image: Shape | None) -> np.ndarray:
    """Rows in the order (c, h, w) put into (h, w, c)."""
    if image is None:
        return rows
    h, w, c = image
    ordered = np.moveaxis(rows.reshape(c, h, w, *rows.shape[1:]), 0, 2)
    return ordered.reshape(rows.shape)


def _as_it_is(array: np.ndarray, place: _Place) -> np.ndarray:
    del place
    return array


def _bias(bias: np.ndarray, place: _Place) -> np.ndarray:
    return _pixels(bias, place.image_out)


def _kernel(weight: np.ndarray, place: _Place, axes: Shape) -> np.ndarray:
    del place
    return weight.transpose(axes)


_CONV = {"kernel": ("weight", partial(_kernel, axes=(2, 3, 1, 0))), "bias": ("bias", _as_it_is)}
LAYERS: dict[type, dict[str, tuple[str, Any]]] = {
    nnx.Linear: {"kernel": ("weight", _dense), "bias": ("bias", _bias)},
    nnx.Conv: _CONV,
    Convolution: _CONV,
    Down: _CONV,
    Up: {"kernel": ("weight", partial(_kernel, axes=(2, 3, 0, 1))), "bias": ("bias", _as_it_is)},
    nnx.BatchNorm: {
        "scale": ("weight", _as_it_is),
        "bias": ("bias", _as_it_is),
        "mean": ("running_mean", _as_it_is),
        "var": ("running_var", _as_it_is),
    },
}
