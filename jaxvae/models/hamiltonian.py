"""A posterior that follows the gradient of the model's own density: Hamiltonian flows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial
from typing_extensions import TypeAliasType

from jaxvae.checks import (
    Numbers,
    Positive,
    Scalar,
    Tree,
    check_floats,
    check_log_prob,
    check_pair,
    check_shape,
    checked,
)
from jaxvae.distributions import Normal, Product, Transformed
from jaxvae.protocols import (
    Density,
    Distribution,
    check_distribution,
    event_shape,
    log_density,
    log_prob_of,
)
from jaxvae.pytrees import pytree, shown, swappable
from jaxvae.pytrees.scanning import scan


def check_steps(owner: str, name: str, steps: Any) -> None:
    """Raise unless `steps` is an array of floats with an axis of steps."""
    check_floats(owner, name, steps)
    if not jnp.ndim(steps):
        raise ValueError(f"{owner}: {name} is a number, expected an array [K, *shape of z]")


Steps = TypeAliasType("Steps", Annotated[Array, check_steps])
"""[K, *shape of z]."""
Pair = Annotated[tuple[Array, Array], partial(check_pair, of="(z, rho)")]


@pytree
@dataclass(frozen=True, eq=False)
class Leapfrog:
    """Leapfrog steps of position z and momentum rho, which cools after each: a bijector of pairs.

    rho <- rho + eps_k / 2 grad log p(z)
    z   <- z + eps_k rho
    rho <- (t_k / t_{k-1}) (rho + eps_k / 2 grad log p(z)),   t_k = 1 + (t_0 - 1) (1 - k^2 / K^2)

    A step keeps volume, and cooling takes d log t_0 in all. Backwards it is as cheap as forwards.
    Caterini, Doucet & Sejdinovic 2018, with its quadratic tempering.

    Args:
      log_prob: z -> log p(z) up to a constant, a callable pytree.
      step_sizes: eps, [K, *shape of z].
      heat: t_0 > 0, the momentum's standard deviation at the start; 1 does not cool.

    >>> from jaxvae import StandardNormal
    >>> flow = Leapfrog(Partial(StandardNormal((2,)).log_prob), jnp.full((3, 2), 0.1), 2.0)
    >>> (z, rho), log_det = flow.forward_and_log_det((jnp.ones(2), jnp.zeros(2)))
    >>> round(float(log_det), 4)  # -2 log 2
    -1.3863
    """

    log_prob: Callable[[Any], Array]
    step_sizes: Steps
    heat: Positive = 1.0

    def forward_and_log_det(self, event: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        cooling = self._cooling(event)
        event = self._walk(event, self.step_sizes, jnp.ones_like(cooling), cooling)
        return event, jnp.size(event[0]) * jnp.sum(jnp.log(cooling))

    def inverse_and_log_det(self, event: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        heating = 1.0 / self._cooling(event)[::-1]
        event = self._walk(event, -self.step_sizes[::-1], heating, jnp.ones_like(heating))
        return event, jnp.size(event[0]) * jnp.sum(jnp.log(heating))

    def _walk(self, event: tuple[Array, Array], steps: Array, before: Array, after: Array) -> Any:
        """The steps in turn, rho scaled before and after each."""

        def log_prob(z: Array) -> Array:
            check_log_prob("Leapfrog", value := self.log_prob(z))
            return value

        force_at = jax.grad(log_prob)

        def one(state: Tree, at: Any) -> tuple[Any, None]:
            (z, rho, force), (step, scale, last_scale) = state, at
            rho = scale * rho + 0.5 * step * force
            z = z + step * rho
            force = force_at(z)
            return (z, last_scale * (rho + 0.5 * step * force), force), None

        (z, rho, _), _ = scan(one, (*event, force_at(event[0])), (steps, before, after))
        return z, rho

    @checked
    def _cooling(self, event: Pair) -> Array:
        """t_k / t_{k-1} of each step, [K]."""
        for name, part in zip(("z", "rho"), event, strict=True):
            check_floats("Leapfrog", name, part)
            check_shape("Leapfrog", name, part, jnp.shape(self.step_sizes)[1:])
        k = len(self.step_sizes)
        dtype = jnp.result_type(self.step_sizes)
        at = jnp.linspace(0.0, 1.0, k + 1, dtype=dtype)
        t = 1.0 + (jnp.asarray(self.heat, dtype) - 1.0) * (1.0 - jnp.square(at))
        return t[1:] / t[:-1]


@shown
@swappable
class HamiltonianVAE(NamedTuple):
    """The Hamiltonian VAE (HVAE): its posterior goes on by leapfrog steps on its own log p(x, z).

    z_0 ~ q_0(z|x), rho_0 ~ N(0, t_0^2 I), (z, rho) = Leapfrog(z_0, rho_0)
    log w = log p(x, z) + log N(rho; 0, I) - log q_0(z_0) - log N(rho_0; 0, t_0^2 I) - d log t_0

    It is the model of latents (z, rho), in which the flow is a posterior like any other: `elbo`,
    `iwae` and `log_marginal` take it, and bound log p(x), as rho is independent of x a priori. The
    steps, and the heat, train with the rest. At steps of 0 it is the VAE that it is made of.
    Caterini, Doucet & Sejdinovic 2018, "Hamiltonian variational auto-encoder".

    Args:
      start: x -> q_0(z|x).
      likelihood: z -> p(x|z).
      base: p(z).
      log_steps: log eps, [K, *shape of z]; the paper's are the same for all k.
      log_heat: log t_0, t_0 = 1 / sqrt(beta_0) of the paper.

    >>> from jaxvae import elbo
    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> model = HamiltonianVAE(*ppca.as_vae(linear), jnp.full((2, 1), -2.0), jnp.zeros(()))
    >>> bound, terms = elbo(model, jax.random.key(0), jnp.ones(3))
    >>> bool(jnp.abs(bound - ppca.log_marginal(linear, jnp.ones(3))) < 0.2)
    True
    """

    start: Callable[[Any], Distribution]
    likelihood: Callable[[Any], Density]
    base: Distribution
    log_steps: Steps
    log_heat: Scalar

    @property
    @checked
    def prior(self) -> Product:
        return Product((self.base, self._momentum(0.0)))

    @checked
    def encode(self, x: Tree) -> Transformed:
        start, momentum = self.start(x), self._momentum(self.log_heat)
        check_distribution("model.start returned", start)
        shape = event_shape(start)
        if shape != momentum.shape:
            raise ValueError(
                f"HamiltonianVAE: start gives events of shape {shape}, expected that of a step, "
                f"{momentum.shape}"
            )
        first = Product((start, momentum))
        log_prob = Partial(_log_joint, self.likelihood, self.base, x)
        return Transformed(
            first, Leapfrog(log_prob, jnp.exp(self.log_steps), jnp.exp(self.log_heat))
        )

    def decode(self, z: tuple[Any, Any]) -> Any:
        return self.likelihood(z[0])

    def _momentum(self, log_scale: Numbers) -> Normal:
        loc = jnp.zeros_like(self.log_steps, shape=jnp.shape(self.log_steps)[1:])
        return Normal(loc, jnp.full_like(loc, jnp.exp(log_scale)))


def _log_joint(likelihood: Callable[[Any], Any], base: Distribution, x: Tree, z: Tree) -> Array:
    return log_prob_of("likelihood(z)", likelihood(z), "x", x) + log_density(base, z)
