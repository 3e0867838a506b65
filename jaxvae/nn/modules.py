"""What the library's networks have in common: a short repr."""

from flax import nnx

from jaxvae.pytrees import layered


class Module(nnx.Module):
    """A module of Flax NNX that prints its settings, and its layers by their parameters.

    >>> from jaxvae.nn import MLP
    >>> MLP((8, 8, 1), (2,), rngs=nnx.Rngs(0))
    MLP(
      in_shape=(8, 8, 1),
      out_shape=(2,),
      activation=relu,
      layers=[Linear(26,000 parameters), Linear(802 parameters)],
    )
    """

    __repr__ = __str__ = layered  # pyright: ignore[reportAssignmentType]
