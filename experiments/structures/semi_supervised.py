"""Ten labels a class and 50,000 images without: a classifier alone, and inside a VAE (M2).

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.structures.semi_supervised

Kingma, Mohamed, Rezende & Welling 2014, table 1, test errors at 100 labels: neural network 25.81 %,
M2 11.97 +- 1.71 %, M1+M2 3.33 +- .14 %. Each sees pixels, or draws of the posterior of a VAE that
was trained without labels (M1: 784-600-600-z50, softplus, as published). MNIST, dynamically
binarized, the 50,000 training images; errors on all 10,000 test images, seeds 0, 1, 2, which draw
the labelled images and all else anew. Settings are chosen on 10,000 images held out of the training
set (--held-out), whose labels serve for nothing else. A run that is ended goes on with the same
command; with and without --held-out it is the same run, measured elsewhere.

What differs from the published M2 is a z of 8, so that the class is left something to carry, and
80 epochs, with a rate that falls to 0 along a cosine, for 3,000. As there, M2 sees only the active
coordinates of M1's code, the class enters the first layer of q(z|x, y), and labelled images weigh
little in the bound (.01; there .002), so that the hundred are not learned by heart.

Ours, on two shared x86-64 cores, about 12 minutes of processor time a seed without M2:

    classifier        23.61 +- 0.97 %    (24.54, 23.68, 22.61)
    M1, classifier    17.38 +- 1.05 %    (18.10, 17.87, 16.18)
    M1+M2              3.73 +- 0.68 %    (3.13, 4.47, 3.59)

M2 on pixels does not reach its 11.97 %: its settings here are nearly those by which it once was
18.35 +- 2.99 % on test (256 units, a constant rate); it was not measured anew. With those of M1+M2
but .1 for .01 it was 25.3 % held out after 24 epochs, one seed, and still fell.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.scipy.special import logit
from jax.tree_util import Partial

import jaxvae
from experiments.common.command import command
from experiments.common.data import load
from jaxvae import nn
from jaxvae.protocols import mean_of

SHAPE = (28, 28, 1)  # of an image
CLASSES = 10
PER_CLASS = 10  # labelled images, as published
M1_HIDDEN = (600, 600)  # units of M1's networks, and its latents, as published
M1_LATENT = 50
M1_RATE = 1e-3  # of Adam, falling to 0 along a cosine, as the next
M1_EPOCHS = 30
ACTIVE = 0.1  # least deviation of a code's mean over the images: M2 sees such coordinates alone
HIDDEN = (500,)  # units of each network of M2 and of the classifiers, as published
LEARNING_RATE = 2e-3  # of Adam
BATCH = 100  # images with a label a step, and as many without
SEEDS = 3  # choices of the labelled images, and runs
FOLDER = Path("runs/semi_supervised")
LINEAR = partial(nn.MLP, hidden=())


class Settings(NamedTuple):
    """Of M2, and of a classifier, which uses `epochs` alone."""

    epochs: int
    latent: int = 8  # coordinates of z, beside its class
    alpha: float = 1.0  # weight of log q(y|x) of a labelled image, to 1 of an image without
    labelled: float = 0.01  # weight of the bound of a labelled image, to 1 of an image without


CLASSIFIER = Settings(epochs=24)
PIXELS = Settings(epochs=20, latent=32, alpha=50.0, labelled=1.0)
CODES = Settings(epochs=80)


def dense(*args: Any, **kwargs: Any) -> nn.MLP:
    return nn.MLP(*args, hidden=HIDDEN, **kwargs)


def m1(key: jax.Array) -> jaxvae.VAE:
    network = partial(nn.MLP, hidden=M1_HIDDEN, activation=jax.nn.softplus)
    conditional = partial(nn.Conditional, network, rngs=nnx.Rngs(key))
    return jaxvae.VAE(
        encode=conditional(nn.NormalHead(), SHAPE, (M1_LATENT,)),
        decode=conditional(nn.BernoulliHead(), (M1_LATENT,), SHAPE),
        prior=jaxvae.StandardNormal((M1_LATENT,)),
    )


def pixels(image: jax.Array) -> jaxvae.Bernoulli:
    """Draws are binarized images, and the mean is the grey one."""
    return jaxvae.Bernoulli(logit(image.astype(float) / 255.0))


def codes(encode: Any, *sets: jax.Array) -> list[jaxvae.Normal]:
    """q(z|image) of every image of each set, in the coordinates that vary over the first set."""
    each = jax.jit(
        lambda images: jax.lax.map(
            lambda x: encode(x.astype(float) / 255.0), images, batch_size=500
        )
    )
    found = [each(images) for images in sets]
    active = np.std(found[0].loc, axis=0) > ACTIVE
    return [jaxvae.Normal(q.loc[:, active], q.scale[:, active]) for q in found]


def itself(q: jaxvae.Normal) -> jaxvae.Normal:
    return q


def draws(see: Any, key: jax.Array, example: Any) -> Any:
    """Binarized images, or codes, anew at each visit."""
    (x, y), other = example
    x_key, other_key = jax.random.split(key)
    return (see(x).sample(x_key), y), see(other).sample(other_key)


def classifier(shape: Any, head: Any, settings: Settings, key: jax.Array) -> Any:
    del head, settings
    return nn.Conditional(dense, nn.OneHotHead(), shape, (CLASSES,), rngs=nnx.Rngs(key))


def m2(shape: Any, head: Any, settings: Settings, key: jax.Array) -> jaxvae.models.LabelVAE:
    classify_key, key = jax.random.split(key)
    rngs, width, latent = nnx.Rngs(key), HIDDEN[:1], settings.latent
    layers = [LINEAR(of, width, rngs=rngs) for of in (shape, (CLASSES,))]
    encode = nn.Conditional(LINEAR, nn.NormalHead(), width, (latent,), rngs=rngs)
    decode = nn.Conditional(dense, head, (latent + CLASSES,), shape, rngs=rngs)
    return jaxvae.models.LabelVAE(
        classify=classifier(shape, head, settings, classify_key),
        given=Partial(given, (*layers, encode, decode), jaxvae.StandardNormal((latent,))),
        labels=jaxvae.Constant(jaxvae.OneHotCategorical(np.zeros(CLASSES, np.float32))),
    )


def given(networks: Any, prior: Any, y: jax.Array) -> jaxvae.VAE:
    """The VAE of one class; what is made of x alone is computed once for all classes."""
    of_x, of_y, encode, decode = networks
    return jaxvae.VAE(
        encode=Partial(lambda x: encode(jax.nn.relu(of_x(x) + of_y(y)))),
        decode=Partial(lambda z: decode(jnp.concatenate([z, y]))),
        prior=prior,
    )


def both(settings: Settings, model: jaxvae.models.LabelVAE, key: jax.Array, example: Any) -> Any:
    """One example with its label, and one without."""
    with_label, other = example
    key, other_key = jax.random.split(key)
    alpha = settings.alpha / settings.labelled
    bound, _ = jaxvae.models.labelled(jaxvae.elbo)(model, key, with_label, alpha=alpha)
    other_bound, terms = jaxvae.models.unlabelled(jaxvae.elbo)(model, other_key, other)
    return settings.labelled * bound + other_bound, terms


def log_class(settings: Settings, classify: Any, key: jax.Array, example: Any) -> Any:
    del settings, key
    (x, y), _ = example
    return classify(x).log_prob(y), None


def fit(
    name: str, objective: Any, make: Any, examples: Any, key: jax.Array, epochs: int, rate: float
) -> Any:
    """The trained model; a run that is ended goes on with the same command."""
    init_key, run_key = jax.random.split(key)
    steps = epochs * (len(jax.tree.leaves(examples)[0]) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state, _ = jaxvae.fit(
        jaxvae.train_step(objective, optimizer),
        jaxvae.init_state(make(init_key), optimizer),
        run_key,
        examples,
        epochs=epochs,
        batch_size=BATCH,
        checkpoints=jaxvae.Checkpoints(FOLDER / name, keep=1),
    )
    return state.model


def errors(classify: Any, see: Any, inputs: Any, truth: jax.Array) -> float:
    """Percent of wrong classes, from the means of the inputs."""
    guess = jax.jit(jax.vmap(lambda x: jnp.argmax(classify(mean_of(see(x))).logits)))
    return float(100.0 * jnp.mean(guess(inputs) != truth))


def main(held_out: bool = False) -> None:
    """Args:
    held_out: errors on 10,000 images held out of the training set, for choosing by, not on test.
    """
    data = load("mnist", validation=10_000)
    measured = data.validation if held_out else data.test
    images, labels = jnp.asarray(data.train.images), jnp.asarray(data.train.labels)
    others, truth = jnp.asarray(measured.images), jnp.asarray(measured.labels)
    results: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        choice_key, m1_key, *keys = jax.random.split(jax.random.key(seed), 6)
        rows = jnp.resize(choose(choice_key, labels), (len(images),))
        drawn = jaxvae.preprocessed(jaxvae.elbo, lambda key, x: pixels(x).sample(key))
        first = fit(f"M1/{seed}", drawn, m1, images, m1_key, M1_EPOCHS, M1_RATE)
        seen, seen_others = codes(first.encode, images, others)
        on_pixels = (pixels, images, others, SHAPE, nn.BernoulliHead())
        on_codes = (itself, seen, seen_others, seen.loc.shape[1:], nn.NormalHead())
        runs = (
            ("classifier", classifier, log_class, CLASSIFIER, on_pixels),
            ("M2", m2, both, PIXELS, on_pixels),
            ("M1, classifier", classifier, log_class, CLASSIFIER, on_codes),
            ("M1+M2", m2, both, CODES, on_codes),
        )
        for key, (label, make, objective, settings, (see, x, other, shape, head)) in zip(
            keys, runs, strict=True
        ):
            make = partial(make, shape, head, settings)
            y = jnp.eye(CLASSES)[labels[rows]]
            examples = ((jax.tree.map(lambda a, rows=rows: a[rows], x), y), x)
            objective = jaxvae.preprocessed(partial(objective, settings), partial(draws, see))
            epochs, folder = settings.epochs, f"{label}/{seed}"
            model = fit(folder, objective, make, examples, key, epochs, LEARNING_RATE)
            error = errors(getattr(model, "classify", model), see, other, truth)
            results.setdefault(label, []).append(error)
            print(f"{label}, seed {seed}: {error:.2f} % errors", flush=True)
    for label, of in results.items():
        spread = np.std(of, ddof=1) if len(of) > 1 else np.nan
        print(f"{label}: {np.mean(of):.2f} +- {spread:.2f} % errors")
    (FOLDER / "result.json").write_text(json.dumps(results, indent=2) + "\n")


def choose(key: jax.Array, labels: jax.Array) -> jax.Array:
    """`PER_CLASS` rows of each class."""
    score = jax.random.uniform(key, labels.shape)
    scores = jnp.where(jax.nn.one_hot(labels, CLASSES, axis=0, dtype=bool), score[None], -1.0)
    return jax.lax.top_k(scores, PER_CLASS)[1].reshape(-1)


if __name__ == "__main__":
    command(main, __doc__)
