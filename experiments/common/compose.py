"""A model and its objective of methods chosen by name: a row of docs/methods.md for each factor."""

from functools import partial
from typing import Any, NamedTuple

from flax import nnx
from jax.tree_util import Partial

import jaxvae
from experiments.common.methods import ROWS, Parts, Row, Unsuited
from jaxvae.protocols import event_shape

FACTORS = ("prior", "posterior", "likelihood", "bound", "gradient", "penalty")
PLAYERS = {  # the row that makes, of a model, what an objective trains
    "penalty/geco": "penalty/geco-its-model-with-the-multiplier",
    "penalty/target-rate": "penalty/geco-its-model-with-the-multiplier",
    "penalty/factorvae": "penalty/adversarial-autoencoder-its-two-players",
    "penalty/adversarial-autoencoder": "penalty/adversarial-autoencoder-its-two-players",
    "penalty/vae-gan": "penalty/vae-gan-its-two-players",
}


DISCRETE = {"prior": "categorical", "posterior": "categorical"}
TWO_LEVELS = {"prior": "two-levels", "posterior": "hierarchical"}
PARTNERS: dict[str, dict[str, str]] = {  # what a row goes with
    "prior/uniform-on-the-sphere": {"posterior": "von-mises-fisher"},
    "prior/categorical": DISCRETE | {"gradient": "gumbel"},
    "prior/gamma": {"posterior": "gamma"},
    "prior/beta": {"posterior": "beta"},
    "prior/dirichlet": {"posterior": "dirichlet"},
    "prior/two-levels": TWO_LEVELS,
    "posterior/von-mises-fisher": {"prior": "uniform-on-the-sphere"},
    "posterior/power-spherical": {"prior": "uniform-on-the-sphere"},
    "posterior/gamma": {"prior": "gamma"},
    "posterior/beta": {"prior": "beta"},
    "posterior/dirichlet": {"prior": "dirichlet"},
    "posterior/categorical-relaxed-or-not": DISCRETE | {"gradient": "gumbel"},
    "posterior/hierarchical-bottom-up": TWO_LEVELS,
    "penalty/free-bits-a-level": TWO_LEVELS,
    "gradient/vimco": DISCRETE,
    "gradient/enumeration": DISCRETE,
    "gradient/straight-through": DISCRETE,
    "gradient/gumbel-softmax": DISCRETE,
    "gradient/stratified-mixture": {"posterior": "mixture"},
}
PARTNERS |= {f"gradient/score-function-{b}-baseline": DISCRETE for b in ("no", "learned")}
PARTNERS |= {f"gradient/{name}": DISCRETE for name in ("rebar", "relax", "reinmax", "gumbel-rao")}


class Composed(NamedTuple):
    model: Any
    objective: Any


def is_model(made: Any) -> bool:
    return all(hasattr(made, part) for part in ("encode", "decode", "prior"))


def compose(rngs: nnx.Rngs, rows: dict[str, Row], **sizes: Any) -> Composed:
    """The model of the rows chosen, a factor each, the others as docs/methods.md has them.

    Args:
      rngs: of all networks.
      rows: by `FACTORS`.
      **sizes: as `Parts` takes them.

    Raises:
      Unsuited: two of them don't go together.
    """
    parts = Parts(rngs, **sizes)
    made: dict[str, Any] = {group: parts(row) for group, row in rows.items()}
    prior: Any = made.get("prior")
    posterior, likelihood = made.get("posterior"), made.get("likelihood")
    heads = {"head": posterior} if hasattr(posterior, "raw_shape") else {}
    if likelihood is not None:
        if not hasattr(likelihood, "raw_shape"):
            raise Unsuited(f"--likelihood {rows['likelihood'].name} isn't one of an array")
        heads["likelihood"] = likelihood
    shape = event_shape(prior) if hasattr(prior, "log_prob") else ()
    if shape and all(isinstance(n, int) for n in shape):
        heads["latent"] = shape
    parts = Parts(rngs, **(sizes | heads))
    model: Any = parts.model
    for group in ("prior", "posterior"):
        if is_model(made.get(group)):
            model = parts(rows[group])
            other = {"prior": "posterior", "posterior": "prior"}[group]
            if other in rows and not (group == "prior" and heads.get("head")):
                names = f"--{group} {rows[group].name}", f"--{other} {rows[other].name}"
                raise Unsuited(f"{names[0]} is a whole model, which leaves no choice of {names[1]}")
    if isinstance(posterior, Partial):  # itself encode
        decode = Partial(parts.of_bottom, parts.decode)
        model = model._replace(encode=parts(rows["posterior"]), decode=decode)
    if hasattr(prior, "log_prob"):
        model = model._replace(prior=parts(rows["prior"]))
    elif prior is not None and not is_model(prior):
        raise Unsuited(f"--prior {rows['prior'].name} asks for data of another kind")

    objective = made.get("bound", jaxvae.elbo)
    if callable(posterior) and not heads.get("head") and not isinstance(posterior, Partial):
        objective = _instead(rows, "posterior", posterior)
    if "penalty" in rows:
        penalty = parts(rows["penalty"])
        if hasattr(penalty, "log_prob"):  # delta-VAE
            if "prior" in rows:
                raise Unsuited(f"--penalty {rows['penalty'].name} is a prior; choose no --prior")
            model = model._replace(prior=penalty)
        elif is_model(penalty) or not _is_objective(penalty):
            raise Unsuited(f"--penalty {rows['penalty'].name} is no objective")
        else:
            objective = _instead(rows, "penalty", penalty)
            if (players := PLAYERS.get(rows["penalty"].path)) is not None:
                model = parts(ROWS[players], model=model)
    if "gradient" in rows:
        objective = partial(objective, gradient=made["gradient"])
    return Composed(model, objective)


def _instead(rows: dict[str, Row], group: str, objective: Any) -> Any:
    """The objective, which stands where a bound would."""
    if "bound" in rows and rows["bound"].name != "elbo":
        raise Unsuited(
            f"--{group} {rows[group].name} stands in place of the elbo, and --bound is "
            f"{rows['bound'].name}; choose one of them"
        )
    return objective


def _is_objective(made: Any) -> bool:
    while isinstance(made, partial):
        made = made.func
    return getattr(made, "__module__", "").startswith("jaxvae")
