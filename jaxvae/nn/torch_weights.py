"""From PyTorch: the weights of a state dict in the layers of a model, torch itself not needed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxvae.checks import a_class_of, checked, written
from jaxvae.distributions import Normal
from jaxvae.nn.heads import Shape, last_axis
from jaxvae.nn.networks import MLP, ResidualMLP
from jaxvae.nn.torch_layers import LAYERS, Place

M = TypeVar("M")
Names = Mapping[str, str | tuple[str, ...]] | Callable[[str], str | tuple[str, ...]]


@dataclass(frozen=True)
class LogVarianceHead:
    """Raw parameters -> `Normal`: the last axis holds mu and log sigma^2, as most PyTorch VAEs do.

    `NormalHead` is what to train with: exp overflows where its softplus doesn't.

    >>> LogVarianceHead()(jnp.zeros(4)).scale.tolist()
    [1.0, 1.0]
    """

    def raw_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], 2 * last_axis("LogVarianceHead", shape))

    def __call__(self, raw: Array) -> Normal:
        loc, log_variance = jnp.split(raw, 2, axis=-1)
        return Normal(loc, jnp.exp(0.5 * log_variance))


@checked
def from_torch(state_dict: Mapping[str, Any], model: M, names: Names) -> M:
    """The model with the weights of a PyTorch state dict in its layers.

    Kernels are transposed: of `nn.Linear` and of 1x1 convolutions into `nnx.Linear`, of
    `nn.Conv1d`, `2d` and `3d` into `nnx.Conv` and `Convolution`, of `nn.Conv2d(n, m, 4, stride=2,
    padding=1)` into `Down`, of `nn.ConvTranspose2d` of that kind into `Up`, where image sizes are
    even, and of any into `nnx.ConvTranspose`. Rows of pixels are put in order: where an `MLP` reads
    or writes an image (height, width, channels), PyTorch flattened (channels, height, width). Norms
    of batches, layers and groups keep theirs, statistics too, and so does `nn.Embedding`. A
    direction of a layer of `nn.GRU` and an `nn.GRUCell` go into `nnx.GRUCell`, as in `Recurrent`,
    which gets PyTorch's second bias. Weight norms of either spelling are multiplied out, or give
    their lengths to `nnx.WeightNorm`.

    Args:
      state_dict: name -> array or tensor, `module.state_dict()`; its order plays no role.
      model: or a network; its own weights don't matter.
      names: of every layer the path in the model, "encode.network.layers[0]", and the PyTorch
        module, "encoder.0"; several, ("fc_mu", "fc_log_variance"), become one layer, side by side.
        Of an `nn.GRU` a layer has a name of its own, "rnn.l0", and back "rnn.l0_reverse". Or a
        function of the path, such as `diffusers_name`.

    Raises:
      ValueError: a layer or a module is not named, is unknown, or has another shape; or the model
        has parameters of other layers, which would stay as they are.

    >>> from jaxvae.nn import MLP
    >>> state_dict = {"fc.weight": np.ones((2, 3)), "fc.bias": np.array([0.0, 1.0])}
    >>> network = MLP((3,), (2,), hidden=(), rngs=nnx.Rngs(0))
    >>> from_torch(state_dict, network, {"layers[0]": "fc"})(jnp.ones(3)).tolist()
    [3.0, 4.0]
    """
    places, state_dict = _places(model), _plain(state_dict)
    names = {path: names(path) for path in places} if callable(names) else names
    _check_names(names, places, state_dict, _others(model, places))
    used: set[str] = set()
    filled: dict[str, Any] = {}
    tied: dict[int, str] = {}  # the first path of each layer
    for path, place in places.items():
        first = tied.setdefault(id(place.layer), path)
        if first == path:
            filled[path] = _filled(state_dict, path, place, names[path], used)
            continue
        if names[path] != names[first]:
            raise ValueError(
                f"from_torch: {first} and {path} are one layer, and names has {names[first]!r} and "
                f"{names[path]!r} for it, expected one"
            )
        filled[path] = filled[first]
    if rest := [n for n in state_dict if n not in used and not n.endswith("num_batches_tracked")]:
        raise ValueError(
            f"from_torch: state_dict has {rest[0]}, which no layer takes; name its module in "
            "names, or leave it out"
        )
    model = jax.tree_util.tree_map_with_path(
        lambda path, part: filled.get(_name(model, path), part), model, is_leaf=_is_layer
    )
    for module in filter(_is_module, jax.tree.leaves(model, is_leaf=_is_module)):
        module.eval()  # as `state.model` is: running statistics, and no dropout
    return model


def _is_module(part: object) -> bool:
    return isinstance(part, nnx.Module)


_SPELLINGS = {
    r"parametrizations\.(\w+)\.original0$": r"\1_g",  # weight norm as it is written since torch 2
    r"parametrizations\.(\w+)\.original1$": r"\1_v",
    r"(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)(_[gv])?$": r"\3.\1_\2\4",
}


def _plain(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Every weight norm as the weight it makes, and every layer of a GRU as a module.

    weight_g, weight_v -> weight = g v / |v|,   weight_ih_l0 -> l0.weight_ih
    """
    named = {}
    for name, value in state_dict.items():
        plain = reduce(lambda name, to: re.sub(*to, name), _SPELLINGS.items(), name)
        named[plain] = (name, value)
    found = {}
    for name, (theirs, value) in named.items():
        weight, kind = name[:-2], name[-2:]
        if kind == "_g" and f"{weight}_v" in named:
            g, v = _numpy(theirs, value), _numpy(*named[f"{weight}_v"])
            along = (
                tuple(axis for axis, size in enumerate(g.shape) if size == 1) if g.ndim else None
            )
            found[weight] = g * v / np.sqrt(np.sum(v**2, along, keepdims=g.ndim > 0))
        elif not (kind == "_v" and f"{weight}_g" in named):
            found[name] = value
    for name in [name for name in found if name.endswith("weight_hh")]:
        for bias in ("bias_ih", "bias_hh"):  # of a GRU without any
            zeros = np.zeros(np.shape(found[name])[:1])
            found.setdefault(name.replace("weight_hh", bias), zeros)
    return found


def _others(model: object, places: Mapping[str, Place]) -> list[str]:
    """Paths of parameters that are in no layer that is known."""
    flat = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_param)
    paths = [_name(model, path) for path, part in flat if _is_param(part)]
    return [p for p in paths if not any(p.startswith(f"{place}.") or not place for place in places)]


def _is_param(part: object) -> bool:
    return isinstance(part, nnx.Param)


def _is_layer(part: object) -> bool:
    return isinstance(_inside(part), tuple(LAYERS))


def _inside(layer: Any) -> Any:
    return layer.layer_instance if isinstance(layer, nnx.WeightNorm) else layer


def _name(model: object, path: Any) -> str:
    return written(model, path).removeprefix(".")


def _places(model: object) -> dict[str, Place]:
    def found(is_kind: Callable[[Any], bool]) -> dict[str, Any]:
        flat = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_kind)
        return {_name(model, path): part for path, part in flat if is_kind(part)}

    layers = found(_is_layer)
    places = {path: Place(layer) for path, layer in layers.items() if jax.tree.leaves(layer)}
    for path, mlp in found(lambda part: isinstance(part, (MLP, ResidualMLP))).items():
        inside = f"{path}." if path else ""
        first, last = inside + "first", inside + "last"
        if isinstance(mlp, MLP):
            first, last = f"{inside}layers[0]", f"{inside}layers[{len(mlp.layers) - 1}]"
        if len(mlp.in_shape) == 3 and first in places:
            places[first] = places[first]._replace(image_in=tuple(mlp.in_shape))
        if len(mlp.out_shape) == 3 and last in places:
            places[last] = places[last]._replace(image_out=tuple(mlp.out_shape))
    return places


def _check_names(
    names: Mapping[str, str | tuple[str, ...]],
    places: Mapping[str, Any],
    state_dict: Mapping[str, Any],
    others: list[str],
) -> None:
    if others:
        raise ValueError(
            f"from_torch: the model has {others[0]}, a parameter of a layer that from_torch does "
            f"not know, expected {', '.join(cls.__name__ for cls in LAYERS)}; give it the networks "
            "that it knows, one by one, and set others by hand"
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
    place: Place,
    theirs: str | tuple[str, ...],
    used: set[str],
) -> Any:
    """A copy of the layer with the arrays of one module, or of several side by side."""
    modules = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    layer = jax.tree.map(lambda leaf: leaf, place.layer)
    inside = _inside(layer)
    if isinstance(inside, nnx.GRUCell) and inside.dense_h.bias is None:
        bias = jnp.zeros(3 * inside.hidden_features, inside.param_dtype)
        inside.dense_h.use_bias, inside.dense_h.bias = True, nnx.Param(bias)
    kind = next(LAYERS[cls] for cls in type(inside).__mro__ if cls in LAYERS)
    for ours, (suffixes, of) in kind.items():
        *outer, name = ours.split(".")
        holder = reduce(getattr, outer, inside)
        variable = getattr(holder, name, None)
        if variable is None:
            continue
        taken = [[f"{module}.{suffix}" for module in modules] for suffix in suffixes]
        for there in chain.from_iterable(taken):
            if there not in state_dict:
                raise ValueError(f"from_torch: state_dict has no {there!r}, the {ours} of {path}")
            used.add(there)
        parts = [[_numpy(there, state_dict[there]) for there in row] for row in taken]
        want = variable.get_value()
        try:
            array = of(place._replace(layer=inside), *parts)
        except ValueError:
            array = parts[0][0]
        if array.shape != want.shape:
            shapes = ", ".join(str(part.shape) for part in parts[0])
            raise ValueError(
                f"from_torch: {taken[0][0]} has shape {shapes}, expected a {ours} of shape "
                f"{want.shape}, as {path} has"
            )
        setattr(holder, name, type(variable)(jnp.asarray(array, want.dtype)))
    if isinstance(layer, nnx.WeightNorm):
        _set_lengths(path, layer)
    return layer


def _numpy(name: str, value: Any) -> np.ndarray:
    """Of a tensor too, on whatever device."""
    for step in ("detach", "cpu"):
        value = getattr(value, step, lambda value=value: value)()
    try:
        return np.asarray(value, np.float32 if np.asarray(value).dtype != np.float64 else None)
    except (TypeError, ValueError):
        raise ValueError(f"from_torch: {name} is {a_class_of(value)}, expected an array") from None


def _set_lengths(path: str, layer: nnx.WeightNorm) -> None:
    """Its scales, so that it computes with the kernel as it is."""
    if layer.scales is None:
        raise ValueError(
            f"from_torch: {path} is a WeightNorm with use_scale=False, which no weights of PyTorch "
            "fit; build it with scales"
        )
    lengths = {}
    for name in layer.scales:
        inside: Any = layer.layer_instance
        kernel = reduce(getattr, name, inside).get_value()
        kept = {axis % kernel.ndim for axis in np.atleast_1d(layer.feature_axes)}
        along = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
        lengths[name] = jnp.sqrt(jnp.sum(kernel**2, along))
    layer.scales = jax.tree.map(lambda _, length: length, layer.scales, lengths)
