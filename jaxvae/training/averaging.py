"""A running average of the parameters, kept by the optimiser."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxvae.checks import Scalar, Tree, check_array, checked, written
from jaxvae.pytrees import shown, wide
from jaxvae.pytrees.networks import statistics, with_state, without_state
from jaxvae.training.steps import M, TrainState


@checked
def averaged_model(state: TrainState[M]) -> M:
    """The model with the averaged parameters, and the running statistics of the last step's.

    Those of `optax.contrib.schedule_free` are the ones to evaluate at. Parameters that another
    optimiser moves, which keeps no average, are the last step's too.

    Raises:
      ValueError: the optimiser keeps no average; chain `average_parameters` last.

    >>> from jaxvae import init_state
    >>> optimizer = optax.chain(optax.sgd(1.0), average_parameters(0.5))
    >>> float(averaged_model(init_state(jnp.array(4.0), optimizer)))  # before the first step
    4.0
    """
    if isinstance(state.opt_state, optax.contrib.ScheduleFreeState):
        params: Any = without_state(state.model)
        params = optax.contrib.schedule_free_eval_params(state.opt_state, params)
        return with_state(params, statistics(state.model))
    averages = [a for _, a in optax.tree.get_all_with_path(state.opt_state, "average")]
    if not averages:
        raise ValueError(
            "averaged_model: state has no average, expected that of an optimiser with one; "
            "optax.chain(optimizer, average_parameters(0.999))"
        )

    def averaged(a: Any, theta: Array) -> Array:
        return theta if _is_masked(a) else a.astype(jnp.result_type(theta))

    model: Any = without_state(state.model)
    for average in averages:  # one for each optimiser of a partition
        model = jax.tree.map(averaged, average, model, is_leaf=_is_masked)
    return with_state(model, statistics(state.model))


def _is_masked(part: object) -> bool:
    """Whether it stands for parameters that another optimiser moves, as of `optax.partition`."""
    return isinstance(part, optax.MaskedNode)


@shown
class ParameterAverage(NamedTuple):
    """What `average_parameters` keeps: a pytree like the model, in float32 or better.

    A bfloat16 average would never hear of a change of 1 %.
    """

    average: Any
    steps: Any


@checked
def average_parameters(decay: Scalar) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters beside the optimiser's own state.

    a_0 = theta_0,   a_t = d_t a_{t-1} + (1 - d_t) theta_t,   d_t = min(decay, t / (t + 9))

    Until step 9 decay / (1 - decay) the average is of the last tenth of the steps, which holds
    little of the parameters that the run began with. It leaves the updates as they are and has to
    be the last of a chain, where they are what the parameters will be moved by. In the state of the
    optimiser the average trains, scans, vmaps and is saved with the rest; `averaged_model(state)`
    is the model to evaluate.
    Polyak & Juditsky 1992; for deep hierarchies: Child 2021; d_t as in TensorFlow's
    `ExponentialMovingAverage`.

    Args:
      decay: between 0 and 1; the average reaches back about 1 / (1 - decay) steps.

    Raises:
      ValueError: `decay` is not in [0, 1), or the update is made without the parameters.

    >>> optimizer = optax.chain(optax.sgd(1.0), average_parameters(0.5))
    >>> model = {"theta": jnp.array(4.0)}
    >>> updates, state = optimizer.update({"theta": jnp.array(2.0)}, optimizer.init(model), model)
    >>> round(float(optax.tree.get(state, "average")["theta"]), 4)  # a tenth of 4, and of 2
    2.2
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(
            f"average_parameters: decay is {decay}, expected a number in [0, 1), such as 0.999"
        )

    def init(params: Tree) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            check_array("average_parameters", f"params{written(params, path)}", leaf)
        return ParameterAverage(jax.tree.map(wide, params), jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: Tree, params: Tree = None) -> Any:
        if params is None:
            raise ValueError(
                "average_parameters: params is None, expected the parameters; "
                "call update(gradient, state, params)"
            )
        moved: Any = optax.apply_updates(params, updates)
        t = jnp.asarray(optax.safe_increment(state.steps))

        def averaged(a: Array, theta: Array) -> Array:
            steps = t.astype(a.dtype)
            keep = jnp.minimum(float(decay), steps / (steps + 9))
            return keep * a + (1.0 - keep) * theta

        average = jax.tree.map(averaged, state.average, jax.tree.map(wide, moved))
        return updates, ParameterAverage(average, t)

    return optax.GradientTransformation(init, update)
