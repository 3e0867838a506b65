"""Rows that train nothing: what each says of a model that another row has trained."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxvae as jv
from experiments.common.data import load
from experiments.common.evaluate import each, generated
from experiments.common.methods import Parts, Row
from experiments.zoo.data import Data
from jaxvae import evaluation
from jaxvae.protocols import mean_of

BASES = PLAIN, GAPPY = "prior/standard-normal", "structure/mixed-tables"
GROUPS = ("after", "disentanglement", "weighting")
ABOVE = ("bound/tvo-upper", "bound/cubo", "bound/eubo")  # which no model should climb
STEPS = 1000  # of a prior that is fitted to the codes
DRAWS = 300  # of a model, beside the test images
Numbers = dict[str, float]


def base_of(row: Row) -> str | None:
    """The row that trains what this one is evaluated on; None if it trains its own."""
    if row.path.startswith("structure/missing-data"):
        return GAPPY
    return PLAIN if row.group in GROUPS or row.path in ABOVE else None


def evaluated(row: Row, model: Any, key: jax.Array, data: Data) -> Numbers:
    """The numbers of a row, of a model that is trained."""
    made = Parts(nnx.Rngs(jax.random.clone(key)), **data.sizes)(row)
    return OF[row.path if row.path in OF else row.group](row, made, model, key, data)


def seen(key: jax.Array, data: Data) -> Any:
    keys = jax.random.split(key, len(jax.tree.leaves(data.test)[0]))
    return jax.jit(jax.vmap(data.transform))(keys, data.test)


def disentangled(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """Of the test images' codes, and two factors: the class, and how much ink there is."""
    split: Any = load("digits").test
    ink = np.sum(split.images, axis=(1, 2, 3))
    fifths = np.searchsorted(np.quantile(ink, [0.2, 0.4, 0.6, 0.8]), ink)
    codes = evaluation.encode_all(model, seen(key, data))
    found = made(np.asarray(codes), np.stack([split.labels, fifths], axis=1))
    return {f: float(v) for f, v in found._asdict().items()} if hasattr(found, "_asdict") else {
        row.method: float(found)}  # fmt: skip


def weighted(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """A batch of 64 test images for all of them: how the rate comes apart."""
    xs, n = seen(key, data), len(data.test)
    size = None if row.name == "full-batch" else n
    rows = xs if size is None else xs[:64]
    of = partial(evaluation.rate_decomposition, weighting=made, dataset_size=size)
    found = jax.jit(of)(model, jax.random.clone(key), rows)
    return {name: float(jnp.mean(value)) for name, value in found._asdict().items()}


def flat(images: Any) -> Any:
    return np.asarray(images).reshape(len(images), -1)


def quality(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """Of the pixels of draws, whose means are shown, beside those of the test images."""
    images, draws = load("digits").test.images / 16.0, generated(model, key, DRAWS)
    found = made(flat(images), flat(draws))
    if hasattr(found, "_asdict"):
        return {name: float(value) for name, value in found._asdict().items()}
    return {"distance": float(found)}


def fitted(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """The row's prior, fitted to draws of q(z) by maximum likelihood, in place of the model's."""
    fit_key, key = jax.random.split(key)
    swapped = model._replace(prior=after_the_fact(made.prior, model, fit_key, data))
    xs = seen(jax.random.clone(key), data)
    before, after = (
        evaluation.evaluate(m, jax.random.clone(key), xs, num_samples=data.samples)
        for m in (model, swapped)
    )
    return {"NLL before": -float(before.value), "NLL": -float(after.value)}


def after_the_fact(prior: Any, model: Any, key: jax.Array, data: Data) -> Any:
    def log_prior(prior: Any, key: Any, image: Any) -> Any:
        x_key, key = jax.random.split(key)
        return prior.log_prob(model.encode(data.transform(x_key, image)).sample(key)), None

    adam = optax.adam(1e-2)
    epoch = jv.train_epoch(jv.train_step(log_prior, adam), batch_size=data.batch)
    epochs = STEPS // (len(data.train) // data.batch)

    @jax.jit
    def run(state: Any, key: Any) -> Any:
        return jax.lax.scan(lambda s, _: epoch(s, key, data.train), state, length=epochs)[0]

    return run(jv.init_state(prior, adam), key).model


def two_stages(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """A VAE of the codes, whose draws are decoded: their distance beside the model's own."""
    inner_key, fit_key, draw_key, own_key = jax.random.split(key, 4)
    sizes = {"d": data.sizes["d"], "shape": (data.sizes["d"],)}
    second = Parts(nnx.Rngs(inner_key), **sizes).model

    def objective(second: Any, key: Any, image: Any) -> Any:
        x_key, z_key, key = jax.random.split(key, 3)
        z = model.encode(data.transform(x_key, image)).sample(z_key)
        return jv.elbo(second, key, z)

    adam = optax.adam(1e-3)
    epoch = jv.train_epoch(jv.train_step(objective, adam), batch_size=data.batch)
    epochs = STEPS // (len(data.train) // data.batch)

    @jax.jit
    def run(state: Any, key: Any) -> Any:
        return jax.lax.scan(lambda s, _: epoch(s, key, data.train), state, length=epochs)[0]

    second = run(jv.init_state(second, adam), fit_key).model

    @jax.jit
    def draws(keys: Any) -> Any:
        def one(key: Any) -> Any:
            return mean_of(model.decode(jv.generate(second, key).sample(jax.random.clone(key))))

        return jax.vmap(one)(keys)

    images = flat(load("digits").test.images / 16.0)
    two = flat(draws(jax.random.split(draw_key, DRAWS)))
    own = flat(generated(model, own_key, DRAWS))
    distance = evaluation.sample_frechet_distance
    return {
        "distance before": float(distance(images, own)),
        "distance": float(distance(images, two)),
    }


def temperature(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    return quality(row, evaluation.sample_frechet_distance, model._replace(prior=made), key, data)


def above(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """An upper bound of log p(x), beside its estimate from below by as many samples.

    The draws of p(z|x) that the EUBO asks for are samples of q, drawn again by their weights.
    """
    xs, count = seen(jax.random.clone(key), data), data.samples

    def resampled(key: jax.Array, x: jax.Array) -> Any:
        def weighed(key: jax.Array) -> Any:
            z, log_q = jv.sample_and_log_prob(q, key)
            return z, model.decode(z).log_prob(x) + model.prior.log_prob(z) - log_q

        q = model.encode(x)
        choice_key, *keys = jax.random.split(key, count + 1)
        zs, log_w = jax.vmap(weighed)(jnp.stack(keys))
        return zs[jax.random.categorical(choice_key, log_w)]

    @jax.jit
    def one(key: jax.Array, x: jax.Array) -> Any:
        key, below_key, z_key = jax.random.split(key, 3)
        below = jv.log_marginal(model, below_key, x, num_samples=count).value
        if row.name == "eubo":
            z = resampled(z_key, x)
            return jv.eubo(model, key, x, sample_posterior=lambda key: z)[0], below
        return made(model, key, x, num_samples=count)[0], below

    upper, below = each(one, key, xs)
    return {"upper bound": float(jnp.mean(upper)), "from below": float(jnp.mean(below))}


def walk(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """Between two test images: how far the middle is from 0, beside the ends, and its ink."""
    z = evaluation.encode_all(model, seen(key, data)[:200])
    ends, others = z[:100], z[100:]
    middle = jax.vmap(partial(made.func, t=0.5))(ends, others)
    norm = partial(jnp.linalg.norm, axis=1)
    share = norm(middle) / jnp.sqrt(norm(ends) * norm(others))
    return {"norm halfway, of that of the ends": float(jnp.mean(share))}


def traversal(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """How much of a pixel moves when a latent goes from -2 to 2; the most and the least of them."""
    z, values = evaluation.encode_all(model, seen(key, data)[:100]), jnp.array([-2.0, 2.0])

    def moved(index: Any) -> Any:
        ends = jax.vmap(lambda z: made.func(z, index, values))(z)
        means = jax.vmap(jax.vmap(lambda z: mean_of(model.decode(z))))(ends)
        return jnp.mean(jnp.abs(means[:, 0] - means[:, 1]))

    each = jax.lax.map(moved, jnp.arange(z.shape[1]))
    return {"pixel moved, most": float(each.max()), "least": float(each.min())}


def imputed(row: Row, made: Any, model: Any, key: jax.Array, data: Data) -> Numbers:
    """Of the table's gaps: the error of the numbers that are put there, in standard deviations."""
    x, mask = seen(jax.random.clone(key), data)
    several = {} if row.name.endswith("single-imputation") else {"num_draws": 20}
    keys = jax.random.split(key, len(x["sex"]))
    put = jax.jit(jax.vmap(partial(made, model, num_samples=200, **several)))(keys, (x, mask))
    numbers, gaps = put["numbers"], ~mask["numbers"]
    spread: Numbers = {}
    if several:
        spread = {"their spread": float(jnp.mean(numbers.std(1), where=gaps))}
        numbers = numbers.mean(1)
    error = jnp.sqrt(jnp.mean(jnp.square(numbers - x["numbers"]), where=gaps))
    return {"error (RMSE)": float(error)} | spread


OF: dict[str, Any] = {
    "disentanglement": disentangled,
    "weighting": weighted,
    "after": quality,
    "after/mixture-fitted-to-the-codes": fitted,
    "after/flow-fitted-to-the-codes": fitted,
    "after/two-stage-vae": two_stages,
    "after/temperature": temperature,
    "after/interpolation-linear": walk,
    "after/interpolation-spherical": walk,
    "after/traversal-of-a-latent": traversal,
    "structure": imputed,
    "bound": above,
}
