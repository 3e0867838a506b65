"""How each row of the pages becomes a model and an objective: a rule a group, and what differs.

A row that is added to a page is run by the rule of its group. Where it asks for other data or is
run elsewhere, that is an entry of zoo/tables.py; where for a rule of its own, a function here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import jaxvae as jv
from experiments.common.compose import DISCRETE, FACTORS, PARTNERS, compose, is_model
from experiments.common.evaluate import whole
from experiments.common.methods import Parts, Row, find
from experiments.structures import text
from experiments.zoo.data import HIDDEN, Data, frame
from experiments.zoo.tables import DEEP, SETTINGS
from jaxvae import gradients, models, nn, training

LEARNING_RATE = 1e-3  # of Adam
K = 8  # samples of the bound that a gradient estimator climbs
ADAM = optax.adam(LEARNING_RATE)


class Fit(NamedTuple):
    """What a row trains and how.

    Args:
      model, objective: of `train_step`, and the objective's hyper-parameters, or their schedules.
      optimizer, step: what makes the step of the objective and the optimiser.
      trained: of the last state, what is measured.
      scored: (model, examples) -> the `Model` to score, x, and y of a conditional one, or None.
      refined: lifts an evaluator, `log_marginal`, to the posterior that was trained; None where
        that is the model's own.
    """

    model: Any
    objective: Any = jv.elbo
    hyper: dict[str, Any] = {}  # noqa: RUF012 - never written to
    optimizer: Any = ADAM
    step: Any = jv.train_step
    trained: Callable[[Any], Any] = lambda state: state.model
    scored: Callable[[Any, Any], Any] = lambda model, xs: (whole(model), xs, None)
    refined: Callable[[Any], Any] | None = None


ONE_SAMPLE = ("enumeration", "straight-through", "reinmax", "gumbel-softmax", "gumbel-rao", "rebar",
              "relax", "stratified-mixture", "score-function-no-baseline",
              "score-function-learned-baseline")  # fmt: skip
Rule = Callable[[Row, nnx.Rngs, Data], Fit]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Of a group, or of a row by its path, which comes before that of its group."""

    def registered(of: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, of))
        return of

    return registered


def rule_of(row: Row) -> Rule:
    return RULES.get(row.path) or RULES[row.group]


def rows_with(row: Row, partners: dict[str, str]) -> dict[str, Row]:
    return {group: find(group, name) for group, name in partners.items()} | {row.group: row}


@rule(*FACTORS)
def factor(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """One factor of a VAE, the others as they are."""
    partners = PARTNERS.get(row.path, {})
    if row.group == "gradient" and row.name not in ONE_SAMPLE:
        partners = partners | {"bound": "iwae"}
    small = {"d": 2} if partners.get("prior") == "categorical" else {}  # so that it can be summed
    model, objective = compose(rngs, rows_with(row, partners), **(data.sizes | small))
    if row.path in SETTINGS:
        objective = partial(objective, **SETTINGS[row.path])
    return Fit(model, objective)


@rule("posterior/semi-amortized")
def semi_amortized(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """Scored as trained: an encoder that only has to start well is no posterior by itself."""
    refined = partial(models.semi_amortized, optimizer=optax.sgd(0.1), num_steps=20)
    return factor(row, rngs, data)._replace(refined=refined)


@rule("prior/more-levels")
def more_levels(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    levels = 3 * (parts.up,), 3 * (parts.encode,), parts.standard, 2 * (parts.down,), parts.decode
    model = models.Ladder(*levels)
    assert jax.tree.structure(model.prior.first) == jax.tree.structure(parts(row).first)
    return Fit(model)


@rule("prior/markov-chain", "likelihood/a-sequence-step-by-step", "kl/stepwise-kl",
      "structure/dynamics-deep-markov-model",
      "structure/dynamics-deep-markov-model-its-rate-in-closed-form-at-each-step")  # fmt: skip
def chain(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """A deep Markov model, of which the row is the prior, the likelihood, the posterior or KL."""
    parts = Parts(rngs, **data.sizes)
    emissions, markov = Partial(models.emissions, parts.decode), find("prior", "markov-chain")
    objective = partial(jv.elbo, kl=models.stepwise_kl)
    if row.group == "kl":
        objective = partial(jv.elbo, kl=parts(row))
    elif row.name.endswith("step") and row.group == "structure":
        objective = parts(row)
    elif row.name.endswith("model"):
        objective = jv.elbo
    return Fit(jv.VAE(parts.smoother, emissions, parts(markov)), objective)


@rule("structure/dynamics-deep-markov-model-of-unequal-length-padded")
def of_unequal_length(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    model, objective = Parts(rngs, **data.sizes)(row), partial(jv.elbo, kl=models.stepwise_kl)
    return Fit(model, objective, scored=lambda model, xs: (model, xs, None))


@rule("prior/conditional-p-z-y", "structure/conditional-vae")
def conditional(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    model = parts(find("prior", "conditional-p-z-y"))
    objective = parts(row) if row.group == "structure" else jv.conditioned(jv.elbo)
    return Fit(model, objective, scored=lambda model, xy: (model, *xy))


@rule("likelihood/mixed-columns", "likelihood/missing-entries",
      "likelihood/missing-entries-as-a-head", "structure/mixed-tables")  # fmt: skip
def columns(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    if row.name == "missing-entries":  # of one class: all are numbers
        masked = nn.MaskedHead(nn.ProductHead((("numbers", parts.normal, (10,)),)))
        network = nn.Conditional(parts.encoder, parts.normal, (20,), parts.latent, rngs=rngs)
        encode, transform = Partial(of_columns, network), with_numbers
        decode = nn.Conditional(parts.decoder, masked, parts.latent, (), rngs=rngs)
        model, objective = jv.VAE(encode, decode, parts.standard), jv.preprocessed
        return Fit(model, objective(jv.elbo, transform), scored=lambda m, xs: (
            m, jax.vmap(partial(transform, None))(xs), None))  # fmt: skip
    width = 11 if row.name == "mixed-columns" else 22
    network = nn.Conditional(parts.encoder, parts.normal, (width,), parts.latent, rngs=rngs)
    decode = nn.Conditional(parts.decoder, parts(row), parts.latent, (), rngs=rngs)
    return Fit(jv.VAE(Partial(of_columns, network), decode, parts.standard))


def with_numbers(_: Any, event: Any) -> Any:
    return tuple({"numbers": part["numbers"]} for part in event)


def of_columns(network: Any, event: Any) -> Any:
    """What is seen, gaps as 0, and the mask where there is one."""
    if isinstance(event, dict):
        return network(jnp.concatenate([*event.values()]))
    x, mask = event
    seen = [jnp.where(mask[name], x[name], 0.0) for name in x]
    return network(jnp.concatenate([*seen, *(mask[name].astype(float) for name in x)]))


@rule("structure/mixed-tables-of-a-data-frame-its-anomalies")
def of_frame(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    table = Parts(rngs, **data.sizes)(row)(frame()[0])
    return Fit(nn.make_vae(table, latents=4, hidden=HIDDEN, rngs=rngs))


@rule("network")
def network(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """An encoder, a decoder, or both."""
    made = Parts(rngs, **data.sizes)(row)
    both: dict[str, dict[str, Any]] = {
        "convolutions-image-to-numbers": {"encoder": made},
        "convolutions-numbers-to-image": {"decoder": made},
        "behind-integers-as-stored": {
            "encoder": made,
            "likelihood": nn.HeadOf(jv.DiscretizedLogistic, (nn.Real("n"), nn.Positive("n"))),
        },
    }
    sizes = data.sizes | both.get(row.name, {"encoder": made, "decoder": made})
    return Fit(Parts(rngs, **sizes).model)


@rule("penalty/lagging-inference")
def lagging(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """All learn in four steps of five the encoder, and in the fifth the rest."""
    parts = Parts(rngs, **data.sizes)
    masked = partial(optax.conditionally_mask, ADAM)
    players: Any = {
        "encode": masked(lambda step, **_: ~parts.turn(step)),
        "rest": masked(parts.turn),
    }
    triple: Any = jv.VAE
    labels = triple("encode", "rest", "rest")
    return Fit(parts.model, optimizer=optax.partition(players, labels))


@rule("schedule")
def schedule(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """As long as the run: its 10,000 steps go by in so many as there are."""
    parts = Parts(rngs, **data.sizes)
    made, model, objective, name = parts(row), parts.model, jv.elbo, "beta"
    if row.name == "rising-capacity":
        objective, name = partial(parts(find("penalty", "capacity"))), "capacity"
        made = optax.linear_schedule(0.0, 5.0, 10_000)  # nats of these images
    elif row.name == "annealed-temperature":
        model, _ = compose(
            rngs, rows_with(find("prior", "categorical"), DISCRETE), **data.sizes | {"d": 2}
        )
        objective, name = relaxed, "temperature"

    def sooner(step: Any) -> Any:
        return made(step * 10_000 // data.steps)

    return Fit(model, objective, {name: sooner})


def relaxed(model: Any, key: Any, x: Any, *, temperature: Any = 0.5) -> Any:
    return jv.elbo(model, key, x, gradient=partial(jv.gumbel_softmax, temperature=temperature))


@rule("codes")
def codes(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """A quantizer or a prior of the VQ-VAE; else an objective of two choices of ten."""
    parts = Parts(rngs, **data.sizes)
    made = parts(row)
    model, places = parts(find("codes", "vq-vae-the-model")), parts.places
    if hasattr(made, "lookup"):
        d = 4 if row.name == "finite-scalar-quantization" else parts.d
        to, of = (nn.MLP(parts.shape, (places, d), hidden=HIDDEN, rngs=rngs),
                  nn.Conditional(parts.decoder, parts.likelihood, (places, d), parts.shape,
                                 rngs=rngs))  # fmt: skip
        model = model._replace(encoder=to, decoder=of, quantizer=made)
        prior = jv.Categorical(jnp.zeros((places, *indices(made, d))))
        return Fit(model._replace(prior=prior), models.vq)
    if hasattr(made, "log_prob"):
        return Fit(model._replace(prior=made), models.vq)
    if row.name.startswith("vq-vae"):
        step = models.ema_step if row.name.endswith("again") else jv.train_step
        return Fit(model, models.vq if step is models.ema_step else made, step=step)
    discrete = rows_with(find("prior", "categorical"), DISCRETE)
    return Fit(compose(rngs, discrete, **data.sizes | {"d": 2}).model, made)


def indices(quantizer: Any, d: int) -> tuple[int, ...]:
    """How many indices there are, [depth, codes] of several codebooks."""
    if isinstance(quantizer, models.FSQ):
        return (int(np.prod(quantizer.levels)),)
    return jax.tree.leaves(quantizer)[0].shape[:-1]


@rule("structure")
def structure(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """A whole model under the ELBO."""
    made = Parts(rngs, **data.sizes)(row)
    if not is_model(made):
        raise NotImplementedError(f"{row.path}: experiments/zoo/rules.py needs a rule for it")
    return Fit(made)


@rule("structure/mixture-of-experts", "structure/mixture-of-products")
def mixture_of(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    objective = partial(jv.elbo, gradient=gradients.stratified_mixture)
    return Fit(Parts(rngs, **data.sizes)(row), objective)


@rule("structure/semi-supervised-m2-examples-with-a-label",
      "structure/semi-supervised-m2-examples-without")  # fmt: skip
def semi_supervised(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    model = parts(find("structure", "semi-supervised-m2"))
    if not row.name.endswith("label"):
        return Fit(model, parts(row))
    return Fit(model, parts(row), scored=lambda model, xy: (model, xy[0], None))


@rule("structure/joint-discrete-and-continuous-one-part-summed-out",
      "gradient/for-component-enumeration")  # fmt: skip
def joint(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    both = parts.K + parts.d
    head = nn.ProductHead(
        (("choice", parts.one_hot, (parts.K,)), ("style", parts.normal, (parts.d,)))
    )
    model = jv.VAE(
        nn.Conditional(parts.encoder, head, parts.shape, (), rngs=rngs),
        Partial(of_both, nn.Conditional(parts.decoder, parts.likelihood, (both,), parts.shape,
                                        rngs=rngs)),
        parts(find("structure", "joint-discrete-and-continuous")),
    )  # fmt: skip
    made = parts(row)
    return Fit(model, made if row.group == "structure" else partial(jv.elbo, gradient=made))


def of_both(network: Any, z: Any) -> Any:
    return network(jnp.concatenate([z["choice"], z["style"]]))


@rule("structure/sequences-word-dropout")
def word_dropout(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    """That of experiments.structures.text, which has a GRU for the row's masked network."""
    objective = text.objective(text.METHODS["dropout 0.3"][1])

    def scored(model: Any, xs: Any) -> Any:
        return model(jnp.ones(text.LENGTH)), xs.astype(int), None

    return Fit(text.make(rngs()), objective, scored=scored)


@rule("structure/deep-hierarchy-residual-cells-its-elbo-in-one-way-down",
      "structure/gradient-skipping", "structure/average-of-the-parameters")  # fmt: skip
def deep(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    model = parts(find("structure", DEEP.split("/")[1]))
    if row.name == "average-of-the-parameters":
        keeping = optax.chain(ADAM, training.average_parameters(0.999))
        return Fit(model, models.deep_elbo, optimizer=keeping,
                   trained=lambda state: optax.tree.get(state.opt_state, "average"))  # fmt: skip
    if row.name == "gradient-skipping":
        steps = optax.MultiSteps(ADAM, 1, should_skip_update_fn=parts(row))
        return Fit(model, models.deep_elbo, optimizer=steps.gradient_transformation())
    return Fit(model, parts(row))


@rule("kl")
def kl(row: Row, rngs: nnx.Rngs, data: Data) -> Fit:
    parts = Parts(rngs, **data.sizes)
    return Fit(parts.model, partial(jv.elbo, kl=parts(row)))
