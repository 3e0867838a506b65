"""What the latents carry: which of them are used, what each costs, and what a nat of code buys."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxvae.batching import conditioned, number_of_rows
from jaxvae.bounds.evidence import Terms, elbo
from jaxvae.bounds.kl import kl_of_levels
from jaxvae.checks import Count, Key, Scalar, Tree, check_count, checked
from jaxvae.distributions.independent import factors
from jaxvae.distributions.kl import kl_divergence
from jaxvae.evaluation.programs import of_each
from jaxvae.evaluation.rows import model_at, paired
from jaxvae.model import Model, posterior, prior
from jaxvae.protocols import (
    Distribution,
    MissingMethodError,
    event_shape,
    mean_of,
    sample_and_log_prob,
)
from jaxvae.pytrees import on_host
from jaxvae.training.callbacks import Callback, is_due
from jaxvae.training.steps import Metrics, TrainState


@checked
def active_units(
    model: Model | Callable[[Any], Model],
    xs: Tree,
    *,
    given: Tree | None = None,
    threshold: Scalar = 0.01,
    key: Key | None = None,
    num_samples: Count = 100,
) -> Any:
    """Which latents the model uses: those whose posterior mean varies over the data.

    A_i = Var_x(E_q[z_i|x]) > threshold

    It returns booleans in the structure of z, to be summed. Where q has no mean, as a flow or a
    hierarchy, draws estimate A_i without bias: the variance of their means less their own noise.
    A unit above the threshold may still cost next to nothing, log(1 + A_i) / 2 being of the order
    of its rate: see `rate_per_latent`, under a large beta above all.
    Burda, Grosse & Salakhutdinov 2016.

    Args:
      given: of a conditional model, a function y -> model, the y of each row.
      threshold: least variance of an active unit.
      key: a PRNG key, where the posterior has no `mean()`.
      num_samples: draws for each example, at least 2, where it has none.

    Raises:
      ValueError: the posterior of a row is not finite.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> encode = lambda x: Normal(jnp.array([1.0, 0.0]) * x, jnp.ones(2))
    >>> model = VAE(encode, lambda z: Normal(z, jnp.ones(2)), StandardNormal((2,)))
    >>> active_units(model, jnp.array([-2.0, 2.0])).tolist()
    [True, False]
    """
    rows = paired("active_units", model, xs, given)
    return jax.tree.map(lambda a: a > threshold, _variance_of_mean(model, rows, key, num_samples))


def _posterior(model: Any, row: tuple[Any, Any]) -> Any:
    x, y = row
    return posterior(model_at(model, y), x)


def _mean(_: None, model: Any, row: tuple[Any, Any]) -> Any:
    return mean_of(_posterior(model, row))


def _moments(num_samples: int, model: Any, row: tuple[Key, Any]) -> tuple[Any, Any]:
    """Of draws, their mean and the variance of it."""
    key, xy = row
    z = jax.vmap(_posterior(model, xy).sample)(jax.random.split(key, num_samples))
    noise = jax.tree.map(lambda z: jnp.var(z, axis=0, ddof=1) / num_samples, z)
    return jax.tree.map(lambda z: jnp.mean(z, axis=0), z), noise


def _variance_of_mean(model: Any, rows: Tree, key: Key | None, num_samples: Count) -> Any:
    """Var_x(E_q[z|x]), in the structure and shape of z."""
    try:
        means = _finite(of_each(_mean, model, rows))
        return jax.tree.map(lambda m: jnp.var(m, axis=0), means)
    except MissingMethodError as error:
        if key is None:
            raise TypeError(
                f"active_units: give it a key, which takes it from draws; {error}"
            ) from None
    check_count("active_units", "num_samples - 1", num_samples - 1)

    n = len(jax.tree.leaves(rows)[0])
    keys = jax.random.split(key, n)
    means, noise = of_each(_moments, model, (keys, rows), option=num_samples)
    return jax.tree.map(
        lambda m, v: jnp.var(m, axis=0) - (n - 1) / n * jnp.mean(v, axis=0), _finite(means), noise
    )


def _finite(means: Tree) -> Any:
    """ValueError where the mean of a row is not finite, unless under jit."""
    for leaf in jax.tree.leaves(means):
        if not isinstance(leaf, Tracer):
            bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(1)
            if bad.any():
                raise ValueError(
                    f"active_units: the mean of q(z|x) is not finite at {bad.sum()} of {len(leaf)} "
                    f"rows, first at {bad.argmax()}; leave rows with NaN out, or look at the model"
                )
    return means


@checked
def rate_per_latent(
    model: Model | Callable[[Any], Model], xs: Tree, *, given: Tree | None = None
) -> Array:
    """The rate of each latent, the mean over the data of KL(q(z_i|x) || p(z_i)): 0 where collapsed.

    In nats and the shape of z; posterior and prior factorise and have a KL in closed form. Of a
    hierarchy: `rate_per_level`.
    Of a conditional model, a function y -> model, `given` is the y of each row.

    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> encode = lambda x: Normal(jnp.array([1.0, 0.0]) * x, jnp.ones(2))
    >>> model = VAE(encode, lambda z: Normal(z, jnp.ones(2)), StandardNormal((2,)))
    >>> rate_per_latent(model, jnp.array([-2.0, 2.0])).tolist()
    [2.0, 0.0]
    """
    rows = paired("rate_per_latent", model, xs, given)
    return jnp.mean(of_each(_rates, model, rows), axis=0)


def _rates(_: None, model: Model | Callable[[Any], Model], row: tuple[Any, Any]) -> Array:
    """KL(q(z_i|x) || p(z_i)) of each latent, of a row (x, y)."""
    return latent_kls(_posterior(model, row), prior(model_at(model, row[1])))


@checked
def rate_per_level(
    model: Model | Callable[[Any], Model], key: Key, xs: Tree, *, given: Tree | None = None
) -> Array:
    """The rate of each level of a hierarchy given the one above: 0 where a level is idle.

    The mean over the data of KL(q(z_l|z_{l+1}, x) || p(z_l|z_{l+1})), in nats, [L] from the top
    down; in closed form where there is one, at a draw of the levels above, which `key` is for.
    Of a conditional model, a function y -> model, `given` is the y of each row.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Joint, Normal, StandardNormal
    >>> unit = Partial(lambda z: Normal(z, 1.0))
    >>> upper = lambda x: Joint(Normal(x, 1.0), Partial(lambda z: Normal(z + 1.0, 1.0)))
    >>> model = VAE(upper, lambda z: Normal(z[1], 1.0), Joint(StandardNormal(()), unit))
    >>> rates = rate_per_level(model, jax.random.key(0), jnp.array([2.0, 2.0]))
    >>> [round(float(rate), 4) for rate in rates]  # 2^2 / 2, 1^2 / 2
    [2.0, 0.5]
    """
    rows = paired("rate_per_level", model, xs, given)
    keys = jax.random.split(key, len(jax.tree.leaves(rows)[0]))
    return jnp.mean(of_each(_levels, model, (keys, rows)), axis=0)


def _levels(_: None, model: Model | Callable[[Any], Model], row: tuple[Key, Any]) -> Array:
    key, (x, y) = row
    at = model_at(model, y)
    q = posterior(at, x)
    return kl_of_levels(q, prior(at), *sample_and_log_prob(q, key))


@checked
def collapse_panel(
    xs: Tree,
    *,
    given: Tree | None = None,
    every: Count | None = None,
    threshold: Scalar = 0.01,
) -> Callback:
    """A callback of `fit` that shows a collapse while it happens, latent by latent.

    It returns `active_units`, how many latents the model uses, and `rate_per_latent`, in nats and
    the shape of z, where posterior and prior factorise and have a KL in closed form.

    Args:
      xs: rows to measure at, a few hundred held out.
      given: of a conditional model, a function y -> model, the y of each row.
      every: at the first look behind each multiple of so many steps; at every look by default.
      threshold: least variance of an active unit.

    >>> import optax
    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal, StandardNormal, init_state
    >>> encode = Partial(lambda x: Normal(jnp.array([1.0, 0.0]) * x, jnp.ones(2)))
    >>> model = VAE(encode, Partial(lambda z: Normal(z, jnp.ones(2))), StandardNormal((2,)))
    >>> state, panel = init_state(model, optax.sgd(0.1)), collapse_panel(jnp.array([-2.0, 2.0]))
    >>> found = panel(state, {"loss": np.zeros(1)}, 1.0, jax.random.key(0))  # as `fit` calls it
    >>> int(found["active_units"]), found["rate_per_latent"].tolist()
    (1, [2.0, 0.0])
    """

    @jax.jit
    def measure(model: Any, key: Array, xs: Any, given: Any) -> dict[str, Array]:
        used = active_units(model, xs, given=given, threshold=threshold, key=key)
        active = jax.tree.leaves(used)
        found = {"active_units": sum(map(jnp.sum, active), jnp.int32(0))}
        try:
            return found | {"rate_per_latent": rate_per_latent(model, xs, given=given)}
        except (MissingMethodError, NotImplementedError):
            return found

    def panel(state: TrainState, metrics: Metrics, epoch: float, key: Array) -> Any:
        del epoch
        if is_due(every, int(state.step), len(metrics["loss"])):
            return on_host(measure(state.model, key, xs, given))
        return None

    return panel


@checked
def latent_kls(
    q: Distribution, p: Distribution, kl: Callable[..., Array] = kl_divergence, *z: Any
) -> Array:
    """KL(q(z_i) || p(z_i)) of each latent; `kl` is of (q, p) of one, or (q, p, z) at a sample.

    >>> from jaxvae import Normal, StandardNormal
    >>> latent_kls(Normal(jnp.array([2.0, 0.0]), 1.0), StandardNormal((2,))).tolist()
    [2.0, 0.0]
    """
    of_q, of_p, shape = factors(q), factors(p), event_shape(q)
    if shape != event_shape(p):
        raise ValueError(
            f"model: encode(x) is over events of shape {shape}, expected that of the prior"
        )
    z = jax.tree.map(lambda a: jnp.reshape(a, -1), z)
    return jax.vmap(kl)(of_q, of_p, *z).reshape(shape)


@checked
def rate_distortion_curve(models: Tree, key: Key, xs: Tree, *, given: Tree | None = None) -> Terms:
    """Rate against distortion along a sweep over beta: what each nat of code buys.

    `Terms` of the means over the examples `xs`, in nats, each [B], one for each model.
    Alemi et al. 2018.

    Args:
      models: models stacked along the leading axis of their leaves, as a run under `jax.vmap` or
        `jax.lax.map` over betas returns them. Those of seeds x betas, which have two such axes, are
        flattened first: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), models).
      given: of conditional models, functions y -> model, the y of each row.

    >>> from jax.tree_util import Partial
    >>> from jaxvae import VAE, Normal, StandardNormal
    >>> def at_optimum(beta):  # p(x|z) = N(z, 1): the q that beta asks for
    ...     q = lambda beta, x: Normal(x / (1.0 + beta), jnp.sqrt(beta / (1.0 + beta)))
    ...     decode = Partial(lambda z: Normal(z, jnp.ones_like(z)))
    ...     return VAE(Partial(q, beta), decode, StandardNormal(()))
    >>> models = jax.vmap(at_optimum)(jnp.array([0.5, 1.0, 2.0]))
    >>> curve = rate_distortion_curve(models, jax.random.key(0), jnp.linspace(-2.0, 2.0, 99))
    >>> bool(jnp.all(jnp.diff(curve.rate) < 0) & jnp.all(jnp.diff(curve.distortion) > 0))
    True
    """
    rows = xs if given is None else (xs, given)
    n = number_of_rows(rows, "rate_distortion_curve")

    def point(model: Any) -> Terms:
        keys = jax.random.split(jax.random.clone(key), n)  # the same draws on purpose
        return jax.tree.map(
            jnp.mean, of_each(_terms, model, (keys, rows), option=given is not None)
        )

    return jax.lax.map(point, models)


def _terms(conditional: bool, model: Any, row: tuple[Key, Any]) -> Terms:
    objective = conditioned(elbo) if conditional else elbo
    return objective(model, *row)[1]
