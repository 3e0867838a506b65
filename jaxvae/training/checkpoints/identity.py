"""What makes a run this run: its data, byte by byte, and the computation of one step."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxvae.checks import Tree, is_key, warn
from jaxvae.pytrees import paths
from jaxvae.training.checkpoints.files import first_difference, version_of

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# JAX keeps a trace for equal arguments, so what was traced before decides between 1 and int64(1)
NUMPY = re.compile(r"\bnp\.\w+\(([-+.\w]+)\)")


FORMS: list[Callable[[], str]] = []
"""What else on this machine decides how a program is written, in words: `nn` says of oneDNN."""


def checksums(name: str, tree: Tree) -> dict[str, str]:
    """Name and path -> dtype, shape and CRC-32 of every leaf, of the rows of each process in turn.

    >>> checksums("data", {"x": np.zeros(3, np.uint8)})
    {"data['x']": 'uint8[3], checksum ff41d912'}
    """
    return {name + path: _checksum(leaf) for path, leaf in paths(tree).items()}


def _checksum(leaf: Tree) -> str:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        here = np.array(zlib.crc32(b"".join(_bytes(s.data) for s in leaf.addressable_shards)))
        sums = [int(sum_) for sum_ in np.ravel(multihost_utils.process_allgather(here))]
    else:
        sums = [zlib.crc32(_bytes(leaf))]
    kind = f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
    return f"{kind}, checksum {' '.join(f'{s:08x}' for s in sums)}"


def _bytes(leaf: Tree) -> bytes | memoryview:
    # a view of the bytes: dtypes of JAX's own have no buffer
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def computation(f: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """A line for every operation that `f` does with arguments of these shapes, with its constants.

    The jaxpr with everything inlined, variables numbered in turn and arrays by their checksum, so
    that two processes that trace one function write one text. A Python function that a callback
    calls is known by its name alone.

    f is jitted or not; it is traced, unless `jax.jit(f)` was with these shapes. On which devices
    the arguments lie makes no difference.

    >>> print(computation(lambda x, w: 2.0 * x + w, 1.0, w=np.zeros(3, np.float32)))
    a0:float32[] a1:float32[3]
    a2:float32[] = mul 2.0 a0
    a3:float32[] = convert_element_type a2 new_dtype=dtype('float32') weak_type=False
    a4:float32[3] = add a3 a1
    return a4
    """
    args, kwargs = jax.tree.map(_anywhere, (args, kwargs))
    return "\n".join(_lines(jax.jit(f).trace(*args, **kwargs).jaxpr))


def _anywhere(leaf: Tree) -> Any:
    """An array's shape and dtype, without the devices it is on."""
    if not isinstance(leaf, jax.Array) or is_key(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type)


def _lines(closed: ClosedJaxpr) -> Iterator[str]:
    names: dict[Any, str] = {}

    def name(atom: Any) -> str:
        if isinstance(atom, Literal):
            return _show(atom.val)
        return names.setdefault(atom, f"a{len(names)}")

    def typed(variables: Any) -> str:
        return " ".join(f"{name(v)}:{v.aval.dtype}{list(v.aval.shape)}" for v in variables)

    def body(jaxpr: Any, inputs: Any, outputs: Any) -> Iterator[str]:
        yield typed(inputs)
        for eqn in jaxpr.eqns:
            plain, inner = [], []
            for key, value in sorted(eqn.params.items()):
                found = [v for v in jax.tree.leaves(value) if isinstance(v, (ClosedJaxpr, Jaxpr))]
                inner += found
                if not found and value is not None:
                    plain.append(f"{key}={_show(value)}")
            inputs = " ".join(map(name, eqn.invars))
            yield " ".join(
                filter(None, [f"{typed(eqn.outvars)} = {eqn.primitive} {inputs}", *plain])
            )
            for sub in inner:
                yield from whole(sub)
        yield f"return {' '.join(map(name, outputs))}"

    def whole(jaxpr: Any) -> Iterator[str]:
        consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        for variable, value in zip(jaxpr.constvars, consts, strict=False):
            yield f"{name(variable)} = {_show(value)}"
        yield from body(jaxpr, jaxpr.invars, jaxpr.outvars)

    yield from whole(closed)


def _show(value: Any) -> str:
    """One text for one value, in whatever process: no addresses, no class of a number, and arrays
    by their bytes."""
    if isinstance(value, (int, float)):
        return str(np.asarray(value))
    if hasattr(value, "dtype") and hasattr(value, "shape") and not is_key(value):
        return _checksum(value) if value.shape else str(np.asarray(value))
    return NUMPY.sub(r"\1", ADDRESS.sub("", getattr(value, "__name__", repr(value))))


def first_other_line(there: str, here: str) -> tuple[str, str] | None:
    """The first line in which two computations differ, of each, or None."""
    if there == here:
        return None
    pairs = zip([*there.splitlines(), "no more"], [*here.splitlines(), "no more"], strict=False)
    return next((a, b) for a, b in pairs if a != b)


class Identity(NamedTuple):
    """What a run is known by, and what a checkpoint of it keeps.

    Args:
      given: name -> what the run was called with, as JSON.
      schedules: name -> values at every step of the run.
      start: name -> checksum, of the state it began with.
      step: the `computation` of one step.
    """

    given: dict[str, Any]
    schedules: dict[str, Any]
    start: dict[str, str]
    step: str

    @property
    def arrays(self) -> dict[str, Any]:
        """What is kept as arrays."""
        text = np.frombuffer(zlib.compress(self.step.encode()), np.uint8)
        return {"schedules": self.schedules, "computation": text}

    @property
    def info(self) -> dict[str, Any]:
        """What is kept as JSON."""
        return {"given": self.given, "start": self.start, "made_by": _made_by()}

    def other_call(self, leaves: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
        """In what the call of a checkpoint's run differs from this one, or None."""
        if why := _first_other(info["given"], self.given):
            return why
        for path, here in paths(self.schedules).items():
            there = np.asarray(leaves["['schedules']" + path])
            both = min(len(there), len(here))  # a run may be made longer
            other = there[:both] != here[:both]
            if other.any():
                i = int(np.argwhere(other)[0][0])
                name = path.removeprefix("['").removesuffix("']")
                return f"{name} at step {i + 1} is {there[i]} there and {here[i]} here"
        return None

    def other_start(self, leaves: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
        """In what the first state or the step differ, or None; a warning where versions, device or
        the form of its operations differ as well, so that the run may be the same."""
        why = _first_other(info["start"], self.start)
        text = zlib.decompress(np.asarray(leaves["['computation']"]).tobytes()).decode()
        if not why and (found := first_other_line(NUMPY.sub(r"\1", text), self.step)):
            there, here = (line if len(line) < 90 else line[:90] + "..." for line in found)
            why = (
                "objective, optimiser or network compute something else, first where it is "
                f"{there!r} there and {here!r} here (a schedule of another length does so)"
            )
        if why and info["made_by"] != _made_by():
            warn(
                f"the run was begun with {info['made_by']} and goes on with {_made_by()}: whether "
                "objective, optimiser and network are the same is not known",
            )
            return None
        return why


def _first_other(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    if found := first_difference(stored, wanted):
        where, there, here = found
        return f"{where} is {there} there and {here} here"
    return None


def _made_by() -> str:
    versions = f"jaxvae {version_of('jaxvae')}, jax {jax.__version__}"
    return f"{versions} on {jax.default_backend()}" + "".join(form() for form in FORMS)
