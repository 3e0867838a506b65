"""A latent diffusion prior: a network that takes noise off latents, as a distribution over them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.bounds.kl import auto_kl
from jaxvae.checks import Count, Key, Nats, Tree, check_shape, checked
from jaxvae.distributions import StandardNormal
from jaxvae.protocols import Distribution, distribution
from jaxvae.pytrees import value_of
from jaxvae.pytrees.scanning import scan


@distribution
@dataclass(frozen=True, eq=False)
class Diffusion:
    """p(z) by a network that takes noise off z, the diffusion prior of an LSGM: Vahdat et al. 2021.

    z_s = a z + s eps,  a^2 + s^2 = 1,  eps ~ N(0, I),  0 <= s <= 1
    E[z | z_s] = a z_s + s^2 r(z_s, s),  grad log p_s(z_s) = -z_s + a r(z_s, s)

    The network gives r, which is 0 of p = N(0, I), and learns by `diffusion_kl`. Draws and log_prob
    are those of the probability-flow ODE, dz/dphi = -s r with s = sin phi, which ends at N(0, I):
    Heun's steps of one size. log_prob is exactly that of the steps, a density at any number of
    them; a draw goes them backwards, which errs by 1 / steps^2.
    The ODE: Song et al. 2021, section 4.3; -s r is the v that Salimans & Ho 2022 predict.

    Args:
      residual: (z_s, s) -> r in the shape of z, a callable pytree such as `nn.Denoiser`.
      shape: of z.
      steps: of the ODE.

    >>> from jax.tree_util import Partial
    >>> shifted = Diffusion(Partial(lambda m, z, s: m, jnp.ones(2)), (2,))  # N(1, I)
    >>> round(float(shifted.log_prob(jnp.ones(2))), 3)  # -log 2 pi
    -1.838
    """

    residual: Callable[[Array, Array], Array]
    shape: tuple[int, ...] = field(metadata={"static": True})
    steps: Count = field(default=32, metadata={"static": True})

    def __post_init__(self) -> None:
        StandardNormal(self.shape)  # which refuses what is no shape

    @checked
    def sample(self, key: Key) -> Array:
        eps = jax.random.normal(key, self.shape, self._dtype)
        phi = jnp.linspace(jnp.pi / 2, 0.0, self.steps + 1, dtype=eps.dtype)
        z, _ = scan(lambda z, at: (self._step(z, *at), None), eps, (phi[:-1], phi[1:]))
        return z

    @checked
    def log_prob(self, z: Tree) -> Array:
        # log N(eps; 0, I) + log |d eps / dz|, a determinant a step
        def one(state: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
            z, log_det = state
            jacobian, z = jax.jacrev(lambda z: 2 * (self._step(z, *at),), has_aux=True)(z)
            return (z, log_det + jnp.linalg.slogdet(jacobian.reshape(z.size, z.size))[1]), None

        z = self._floats(z)
        phi = jnp.linspace(0.0, jnp.pi / 2, self.steps + 1, dtype=z.dtype)
        start = z, jnp.zeros((), z.dtype)
        (eps, log_det), _ = scan(one, start, (phi[:-1], phi[1:]))
        return StandardNormal(self.shape).log_prob(eps) + log_det

    def excess(self, z: Array, s: Array, eps: Array) -> Array:
        """(|v + s r|^2 - |v|^2) / s, v = a eps - s z: what the network adds to N(0, I)'s rate.

        |v + s r| = |z - E[z|z_s]| / s, and 1/s is the half of -SNR', SNR = a^2 / s^2, times s^2.
        """
        a = jnp.sqrt(1.0 - s**2)
        r = self._residual(a * z + s * eps, s)
        return jnp.sum(s * r**2 + 2.0 * (a * eps - s * z) * r)

    def _step(self, z: Array, phi: Array, to: Array) -> Array:
        """Heun's, from one angle to another."""
        h, first = to - phi, self._slope(z, phi)
        return z + 0.5 * h * (first + self._slope(z + h * first, to))

    def _slope(self, z: Array, phi: Array) -> Array:
        return -jnp.sin(phi) * self._residual(z, jnp.sin(phi))

    def _residual(self, z: Array, s: Array) -> Array:
        r = self.residual(z, s)
        check_shape("Diffusion", "residual", r, self.shape)
        return r

    def _floats(self, z: Tree) -> Array:
        z = jnp.asarray(z)
        return z if jnp.issubdtype(z.dtype, jnp.floating) else z.astype(self._dtype)

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(0.0, *jax.tree.leaves(self.residual))


def uniform(t: Array) -> Array:
    """s = t: noise levels of which each is as likely as any other."""
    return t


@checked
def diffusion_kl(
    q: Distribution,
    p: Distribution,
    z: Tree,
    log_q: Nats,
    *,
    key: Key,
    num_times: Count = 1,
    schedule: Callable[[Array], Array] = uniform,
) -> Array:
    """The rate of a `Diffusion` prior: VDM's continuous-time bound, Kingma et al. 2021, one draw.

    KL(q || p) <= KL(q || N(0, I)) + E_{s, eps} (|v + s r|^2 - |v|^2) / s,  s uniform in (0, 1)

    It is E_q[log q(z)] + KL(q(z_1|z) || N(0, I)) - 1/2 int SNR'(s) E|z - E[z|z_s]|^2 ds, in which
    prior term and reconstruction are those of N(0, I), and known: where the network gives r = 0,
    nothing is left to draw. Equal where r is the score's. For a prior of another class it is
    `auto_kl`. Of latents: Vahdat et al. 2021, theorem 1.

    Args:
      key: of times and noise; `bounds.keyed_kl` gives an objective's example one.
      num_times: K levels s = schedule((k + u) / K), with one u, each at eps and at -eps.
      schedule: t -> s, rising from 0 to 1: samples more where it is flat. The mean stays the same.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import Normal
    >>> p = Diffusion(Partial(lambda m, z, s: m, jnp.ones(2)), (2,))  # N(1, I)
    >>> q = Normal(jnp.ones(2), jnp.ones(2))
    >>> kls = jax.vmap(lambda k: diffusion_kl(q, p, jnp.ones(2), jnp.array(0.0), key=k))
    >>> bool(jnp.abs(jnp.mean(kls(jax.random.split(jax.random.key(0), 10_000)))) < 0.02)
    True
    """
    p = value_of(p)
    if not isinstance(p, Diffusion):
        return auto_kl(q, p, z, log_q)
    check_shape("diffusion_kl", "z", z, p.shape)
    time_key, key = jax.random.split(key)
    z = p._floats(z)
    u = jax.random.uniform(time_key, (), z.dtype)
    t = (jnp.arange(num_times, dtype=z.dtype) + u) / num_times
    eps = jax.random.normal(key, (num_times, *p.shape), z.dtype)

    def at(t: Array, eps: Array) -> Array:
        s, ds = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
        return 0.5 * ds * (p.excess(z, s, eps) + p.excess(z, s, -eps))

    return auto_kl(q, StandardNormal(p.shape), z, log_q) + jnp.mean(jax.vmap(at)(t, eps))
