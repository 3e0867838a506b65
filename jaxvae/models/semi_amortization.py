"""Semi-amortized inference (SA-VAE), which goes on where the encoder stops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import Partial

from jaxvae.batching import lifts
from jaxvae.bounds.evidence import elbo
from jaxvae.checks import Count, Key, Tree, a_class_of, checked
from jaxvae.gradients.reparameterized import Estimator, pathwise
from jaxvae.model import VAE
from jaxvae.pytrees.libraries import functional
from jaxvae.training.optimizers import Optimizer, update


@checked
def semi_amortized(
    objective: Callable[..., Any],
    optimizer: Optimizer,
    *,
    num_steps: Count,
    through: bool = True,
    part: str = "encode",
    gradient: Estimator | None = None,
) -> Callable[..., Any]:
    """SA-VAE's objective: q(z|x) refined for each x by gradient steps from where `encode` put it.

    lambda_0 = network(x),  lambda_{t+1} = lambda_t + eta grad_lambda ELBO(lambda_t)

    lambda are the raw parameters that the head makes q of, so q stays a distribution at any step.
    It lifts evaluators as it does bounds, as they share the signature:

        refined = semi_amortized(log_marginal, optax.adam(0.1), num_steps=20)
        refined(model, key, x, num_samples=100)

    Kim, Wiseman, Miller, Sontag & Rush 2018, algorithm 1.

    Args:
      objective: `(model, key, x, **hyper) -> ...`: a bound, or `log_marginal`.
      optimizer: any optax optimiser, started afresh for each x; `optax.sgd(eta)` is the paper's.
        Where the likelihood's scale is learned, sharp densities have steep gradients: clip them, as
        `optax.chain(optax.clip_by_global_norm(5.0), optax.sgd(eta))`.
      num_steps: gradient steps, each at a fresh draw.
      through: whether the gradient passes through the steps, so that the encoder learns to start
        well (Kim et al.); False trains the model at the refined posterior and leaves the encoder
        without a gradient. What is differentiated, in reverse mode, is the whole of each step, the
        optimiser included. Where that has no derivative, as Adam's root has none at a gradient of
        exactly 0, the step counts as a constant; `optax.adam(eta, eps_root=1e-8)` has one.
      part: the field of the model with the conditionals that `encode` calls, whose raw parameters
        are refined: "evidence" of a `Ladder`, "experts" of a `Multimodal`.
      gradient: the estimator of the steps; None, the default, takes the `gradient=` that the
        objective is given, or `pathwise`.

    Raises:
      TypeError: what `part` names is no network and head, as `nn.Conditional` is, or the optimiser
        asks for more than the gradient, `value` and `grad`, as line searches do.

    >>> from flax import nnx
    >>> from jaxvae import StandardNormal, nn
    >>> encode = nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0))
    >>> decode = nn.Conditional(nn.MLP, nn.NormalHead(), (2,), (3,), rngs=nnx.Rngs(1))
    >>> model = VAE(encode, decode, StandardNormal((2,)))
    >>> refined = semi_amortized(elbo, optax.sgd(0.1), num_steps=5)
    >>> bound, terms = refined(model, jax.random.key(0), jnp.ones(3))
    """
    step = _differentiable(optimizer)

    @lifts(objective)
    def refined_objective(model: Any, key: Key, x: Tree, **hyper: Any) -> Any:
        given = {**getattr(objective, "keywords", {}), **hyper}  # of a functools.partial, too
        estimator = gradient or given.get("gradient", pathwise)
        model = functional(model)
        conditionals, structure = _conditionals(model, part)
        steps_key, key = jax.random.split(key)

        def encode(functions: list[Any], x: Tree) -> Any:
            """`model.encode`, with these in place of the conditionals."""
            field = jax.tree.unflatten(structure, functions)
            return field(x) if part == "encode" else model._replace(**{part: field}).encode(x)

        def at(raws: list[Array]) -> VAE:
            def fixed(raws: list[Array], x: Tree) -> Any:
                pairs = zip(conditionals, raws, strict=True)
                return encode([partial(_said, c.head, raw) for c, raw in pairs], x)

            return VAE(Partial(fixed, raws), model.decode, model.prior)

        def ascend(state: Tree, i: Array) -> tuple[Any, None]:
            raw, opt_state = state
            step_key = jax.random.fold_in(steps_key, i)
            loss, slope = jax.value_and_grad(
                lambda raw: -elbo(at(raw), step_key, x, gradient=estimator)[0]
            )(raw)
            updates, opt_state = step(slope, opt_state, raw, loss)
            return (optax.apply_updates(raw, updates), opt_state), None

        start = _raw_parameters(conditionals, encode, x)
        (raw, _), _ = jax.lax.scan(ascend, (start, optimizer.init(start)), jnp.arange(num_steps))
        return objective(at(raw if through else jax.lax.stop_gradient(raw)), key, x, **hyper)

    return refined_objective


def _conditionals(model: Any, part: str) -> tuple[list[Any], Any]:
    """The conditionals in a field of the model, each a network and a head, and their structure."""

    def is_conditional(node: Any) -> bool:
        return hasattr(node, "network") and hasattr(node, "head")

    field = getattr(model, part, None)
    conditionals, structure = jax.tree.flatten(field, is_conditional)
    if not conditionals or not all(map(is_conditional, conditionals)):
        raise TypeError(
            f"semi_amortized: model.{part} is {a_class_of(field)}, expected a network and a "
            'head, as jaxvae.nn.Conditional, or several; part="evidence" names those of a Ladder'
        )
    return conditionals, structure


def _raw_parameters(conditionals: list[Any], encode: Callable[..., Any], x: Tree) -> list[Array]:
    """What the network of each says when `encode` calls it."""
    raws = {}

    def recorded(i: int, event: Tree) -> Any:
        conditional = conditionals[i]
        # its own call of the network, where it has one, computes in the precision it was given
        raws[i] = getattr(conditional, "_raw", conditional.network)(event)
        return conditionals[i].head(raws[i])

    encode([partial(recorded, i) for i in range(len(conditionals))], x)
    return [raws[i] for i in range(len(conditionals))]


def _said(head: Callable[..., Any], raw: Array, event: Tree) -> Any:
    """A conditional that says the same whatever it is given."""
    del event
    return head(raw)


def _differentiable(optimizer: Optimizer) -> Callable[..., Any]:
    """The optimiser's update, with a derivative of 0 in each number in which it has none."""

    def step(gradient: Tree, opt_state: Tree, raw: Tree, value: Array) -> Any:
        loss = {"value": value, "grad": gradient}
        return update("semi_amortized", optimizer, gradient, opt_state, raw, **loss)

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return step(*arguments), arguments

    def backward(arguments: Any, cotangent: Tree) -> Any:
        _, pull = jax.vjp(step, *arguments)
        return jax.tree.map(finite_or_0, pull(cotangent))

    # sqrt'(0) is infinite: Adam's root of a gradient that is 0, as a fresh flow's is in its context
    def finite_or_0(c: Any) -> Any:  # a count of steps has none, whose dtype is no float
        return jnp.where(jnp.isfinite(c), c, 0.0) if jnp.issubdtype(c.dtype, jnp.floating) else c

    differentiable = jax.custom_vjp(step)
    differentiable.defvjp(forward, backward)
    return differentiable
