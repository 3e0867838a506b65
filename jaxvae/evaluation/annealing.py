"""Annealed importance sampling, and its reverse: log p(x) between two bounds.

Chains move from an easy distribution p_0(z) to the posterior through

    f_beta(z) = p_0(z) (p(x, z) / p_0(z))^beta,   0 = beta_0 < ... < beta_T = 1,

and gather the log-weight sum_t (beta_{t+1} - beta_t) log p(x, z_t) / p_0(z_t), whose exponential
has mean p(x). The same walk from a draw of the posterior down to p_0 has mean 1 / p(x).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxvae.bounds.importance_weights import log_prior
from jaxvae.bounds.reductions import log_mean_exp
from jaxvae.checks import Count, Key, Partition, Scalar, Tree, checked
from jaxvae.distributions import Dirichlet, PowerSpherical, SphericalUniform, VonMisesFisher
from jaxvae.evaluation.marginal import spread
from jaxvae.model import Model, likelihood, log_likelihood, prior
from jaxvae.protocols import Distribution, any_part, has_path, log_density
from jaxvae.pytrees import shown, value_of, wide

TARGET_ACCEPTANCE = 0.8
ADAPTATION = 0.3  # of log step size, a temperature


@shown
class AIS(NamedTuple):
    """An annealed estimate of log p(x) for one example.

    Args:
      value: in nats; low on average going up, high on average coming down.
      standard_error: of the value, from the spread of the chains' weights, in nats.
      ess: effective number of chains.
      log_weights: of the chains, shape [num_chains].
      acceptance: of the transitions at each temperature, shape [T - 1], averaged over the chains.
      step_size: of those transitions, shape [T - 1].
    """

    value: Array
    standard_error: Array
    ess: Array
    log_weights: Array
    acceptance: Array
    step_size: Array


@shown
class BDMC(NamedTuple):
    """log p(x) of one simulated example from below and above, in nats: see `bdmc`.

    Args:
      lower, upper: forward AIS, and AIS reversed from the z that x was drawn at: bounds in mean.
      gap: upper - lower, which bounds the error of both.
      x, z: the example, and the latents it was drawn at, an exact draw of p(z|x).
    """

    lower: AIS
    upper: AIS
    gap: Array
    x: Any
    z: Any


class At(NamedTuple):
    """Where a chain is: z, log p(x, z) / p_0(z), and the gradient of that."""

    z: Array
    slope: Array
    gradient: Array


@checked
def sigmoid_schedule(num_temperatures: Count, *, steepness: Scalar = 4.0) -> Array:
    """Inverse temperatures 0 = beta_0 < ... < beta_T = 1, dense at both ends, where f changes most.

    beta_t = (s(d (2t/T - 1)) - s(-d)) / (s(d) - s(-d)), s the logistic function, d = `steepness`:
    towards 0 the schedule is linear.
    Wu, Burda, Salakhutdinov & Grosse 2017.

    >>> sigmoid_schedule(2).tolist()
    [0.0, 0.5, 1.0]
    """
    at = jnp.linspace(-1.0, 1.0, num_temperatures + 1)
    flat = jnp.abs(steepness) < 1e-3  # where s is a line to the last digit
    s = jax.nn.sigmoid(jnp.where(flat, 1.0, steepness) * at)
    return jnp.where(flat, 0.5 * (at + 1.0), (s - s[0]) / (s[-1] - s[0]))


@checked
def ais(
    model: Model,
    key: Key,
    x: Tree,
    *,
    betas: Partition,
    num_chains: Count = 16,
    num_leapfrog: Count = 10,
    num_pilots: Count = 4,
    step_size: Scalar = 0.3,
    initial: Callable[[Any], Distribution] | None = None,
) -> AIS:
    """log p(x) by annealed importance sampling, with Hamiltonian transitions.

    E[w] = p(x) exactly, whatever the number of temperatures or the quality of the transitions, so
    the value is a lower bound in mean. To keep it exact, the step size is not adapted by the chains
    that are weighed but by `num_pilots` others beside them, which are not; and each transition
    takes a random fraction of it, so that no trajectory length resonates with the posterior.
    Neal 2001, "Annealed importance sampling"; the transitions: Neal 2011.

    Args:
      model: any `Model` with continuous latents.
      betas: inverse temperatures, shape [T + 1]: `sigmoid_schedule(T)`.
      initial: x -> p_0, where the chains start: p(z) by default, `model.encode` for q(z|x), from
        which one temperature is importance sampling.

    >>> from jaxvae.models import ppca
    >>> linear = ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5))
    >>> model, x = ppca.as_vae(linear), jnp.ones(3)
    >>> estimate = ais(model, jax.random.key(0), x, betas=sigmoid_schedule(50))
    >>> bool(jnp.abs(estimate.value - ppca.log_marginal(linear, x)) < 0.1)
    True
    """
    starts, walk = _chains(model, x, initial, num_chains, num_leapfrog, num_pilots, step_size)
    start_key, walk_key = jax.random.split(key)
    return walk(walk_key, starts(start_key), jnp.asarray(betas))


@checked
def bdmc(
    model: Model,
    key: Key,
    *,
    betas: Partition,
    num_chains: Count = 16,
    num_leapfrog: Count = 10,
    num_pilots: Count = 4,
    step_size: Scalar = 0.3,
    initial: Callable[[Any], Distribution] | None = None,
) -> BDMC:
    """Bidirectional Monte Carlo: how far AIS is off, on data drawn from the model itself.

    z ~ p(z) and x ~ p(x|z) make z an exact draw of p(z|x). From there AIS runs backwards, where
    E[w] = 1 / p(x), so that log p(x) lies between the two values in mean and the gap bounds the
    error of each. Settings that close the gap on simulated data can be used on real data of the
    kind. `jax.vmap` over keys for many examples.
    Grosse, Ancha & Roy 2016; for decoders: Wu et al. 2017.

    Args:
      model: any `Model` with continuous latents, whose likelihood can be sampled.
      betas, initial: as for `ais`; the way back takes the betas in reverse.
      num_chains: chains each way; all of those coming down start at the one exact draw.

    >>> from jaxvae.models import ppca
    >>> model = ppca.as_vae(ppca.PPCA(jnp.ones((3, 1)), jnp.zeros(3), jnp.array(0.5)))
    >>> sandwich = bdmc(model, jax.random.key(0), betas=sigmoid_schedule(50))
    >>> bool(jnp.abs(sandwich.gap) < 0.2)
    True
    """
    z_key, x_key, start_key, up_key, down_key = jax.random.split(key, 5)
    z = prior(model).sample(z_key)
    x = likelihood(model, z).sample(x_key)
    starts, walk = _chains(model, x, initial, num_chains, num_leapfrog, num_pilots, step_size)
    betas, count = jnp.asarray(betas), num_chains + num_pilots
    lower = walk(up_key, starts(start_key), betas)
    at_z = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), z)
    reverse = walk(down_key, at_z, jnp.flip(betas))
    upper = reverse._replace(value=-reverse.value)
    return BDMC(lower, upper, upper.value - lower.value, x, z)


def _chains(
    model: Model,
    x: Tree,
    initial: Callable[[Any], Distribution] | None,
    num_chains: Count,
    num_leapfrog: Count,
    num_pilots: Count,
    step_size: Scalar,
) -> tuple[Callable[[Array], Any], Callable[[Array, Any, Array], AIS]]:
    """Draws of p_0 by their key, and (key, starts, betas) -> AIS, from betas[0] to betas[-1]."""
    from blackjax.mcmc import hmc  # a second that `import jaxvae` need not take

    _check_latents(prior(model))
    p_0 = prior(model) if initial is None else initial(x)
    one = jax.eval_shape(p_0.sample, jax.random.key(0))
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one))

    def log_p_0(z: Array) -> Array:
        return log_density(p_0, unravel(z))

    def slope(z: Array) -> Array:
        """Of log f_beta = log p_0 + beta slope."""
        z = unravel(z)
        return log_likelihood(model, x, z) + log_prior(model, z) - log_density(p_0, z)

    def at(z: Array) -> At:
        return At(z, *jax.value_and_grad(slope)(z))

    def starts(key: Key) -> Any:
        return jax.vmap(p_0.sample)(jax.random.split(key, num_chains + num_pilots))

    transition = hmc.build_kernel(partial(leapfrogs, num_leapfrog))

    def move(key: Key, here: At, beta: Array, step_size: Scalar) -> tuple[At, Any]:
        jitter_key, key = jax.random.split(key)
        step: Any = step_size * jax.random.uniform(jitter_key, (), here.z.dtype, 0.5, 1.0)

        def log_f(z: Array) -> Array:
            return log_p_0(z) + beta * slope(z)

        value, gradient = jax.value_and_grad(log_p_0)(here.z)
        state: Any = hmc.HMCState(
            here.z, value + beta * here.slope, gradient + beta * here.gradient
        )
        ones = jnp.ones_like(here.z)
        state, info = transition(key, state, log_f, step, ones, 1)  # of `num_leapfrog` leapfrogs
        # f has been computed there, so that the decoder need not run again
        value, gradient = jax.value_and_grad(log_p_0)(state.position)
        there = At(
            state.position,
            (state.logdensity - value) / beta,
            (state.logdensity_grad - gradient) / beta,
        )
        return there, info.acceptance_rate

    def walk(key: Key, starts: Tree, betas: Array) -> AIS:
        z = jax.vmap(lambda z: ravel_pytree(z)[0])(starts)
        betas = betas.astype(z.dtype)
        increments = jnp.diff(betas)

        def anneal(carry: Any, t: Array) -> Any:
            here, log_w, log_step_size = carry
            used = jnp.exp(log_step_size)
            keys = jax.random.split(jax.random.fold_in(key, t), len(log_w))
            here, acceptance = jax.vmap(move, (0, 0, None, None))(keys, here, betas[t], used)
            log_w = log_w + increments[t] * here.slope
            pilots, weighed = jnp.mean(acceptance[:num_pilots]), jnp.mean(acceptance[num_pilots:])
            log_step_size = log_step_size + ADAPTATION * (pilots - TARGET_ACCEPTANCE)
            return (here, log_w, log_step_size), (weighed, used)

        here = jax.vmap(at)(z)
        start = (here, increments[0] * here.slope, jnp.log(jnp.asarray(step_size, z.dtype)))
        times = jnp.arange(1, len(increments))
        (_, log_w, _), (acceptance, used) = jax.lax.scan(anneal, start, times)
        log_w = wide(log_w[num_pilots:])
        standard_error, ess = spread(log_w)
        return AIS(log_mean_exp(log_w), standard_error, ess, log_w, acceptance, used)

    return starts, walk


def leapfrogs(num: int, log_f: Callable[[Array], Array], _: object) -> Callable[..., Any]:
    """An integrator of BlackJAX, for unit masses: `num` leapfrogs as one, f known at the end alone.

    v <- v + step/2 grad log f(z), z <- z + step v, v <- v + step/2 grad log f(z); half-steps that
    meet are one. The value of log f, which those between don't need, is a pass through the decoder.
    """

    def integrate(state: Any, step: Array) -> Any:
        def one(_: Array, zv: tuple[Array, Array]) -> tuple[Array, Array]:
            z, v = zv
            z = z + step * v
            return z, v + step * jax.grad(log_f)(z)

        z, v = state.position, state.momentum + 0.5 * step * state.logdensity_grad
        z, v = jax.lax.fori_loop(1, num, one, (z, v))
        z = z + step * v
        value, gradient = jax.value_and_grad(log_f)(z)
        return type(state)(z, v + 0.5 * step * gradient, value, gradient)

    return integrate


def _check_latents(p: Distribution) -> None:
    """Raise TypeError where Hamiltonian dynamics in R^n cannot follow the prior's latents."""
    latents = value_of(p)
    if hasattr(latents, "components"):  # a mixture's draws are those of its parts
        latents = jax.tree.map(lambda leaf: leaf[0], value_of(latents.components))
    surfaces = SphericalUniform, VonMisesFisher, PowerSpherical, Dirichlet
    if any_part(lambda part: isinstance(part, surfaces), latents):
        where = "lie on a surface, expected ones that fill R^n"
    elif any_part(lambda part: hasattr(part, "carry"), latents):
        where = "have a part that follows from the others, h of `Carried`, and can't move alone"
    elif not has_path(latents):
        where = "are discrete, expected continuous ones"
    else:
        return
    raise TypeError(f"ais: the latents of {type(p).__name__} {where}; use log_marginal")
