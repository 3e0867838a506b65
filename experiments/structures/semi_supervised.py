"""Ten labels a class and 50,000 images without: a classifier alone, and inside a VAE (M2).

    python -m experiments.prepare mnist --from DIR      # once
    python -m experiments.structures.semi_supervised

Kingma, Mohamed, Rezende & Welling 2014, table 1, test errors at 100 labels: neural network 25.81 %,
M2 11.97 +- 1.71 %, M1+M2 3.33 +- .14 %. Each sees pixels, or draws of the posterior of a VAE that
was trained without labels (M1). Codes z of 32, a hidden layer of 256 ReLU units in each network;
Adam 1e-3, batches of 100 with and 100 without a label, 20 epochs of dynamically binarized MNIST for
M1 and for what follows. Ours, on one H100: errors on the 10,000 test images, seeds 0, 1, 2, which
draw the labelled images anew:

    classifier        23.39 +- 1.47 %    (24.43, 24.03, 21.70)
    M2                18.35 +- 2.99 %    (19.94, 20.21, 14.90)
    M1, classifier    21.49 +- 1.20 %    (22.65, 21.56, 20.25)
    M1+M2             12.42 +- 1.79 %    (12.07, 10.84, 14.36)

Each helps, and both together most, as published; the published 11.97 and 3.33 % are not reached.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.scipy.special import logit
from jax.tree_util import Partial

import jaxvae
from experiments.common.comparison import compare
from experiments.common.data import load
from jaxvae import nn
from jaxvae.protocols import mean_of

SHAPE = (28, 28, 1)  # of an image
CLASSES = 10
PER_CLASS = 10  # labelled images, as published
HIDDEN = 256  # units of each network
LATENT = 32  # coordinates of z
ALPHA = 50.0  # weight of log q(y|x): 0.1 N of the paper, for each labelled image
LEARNING_RATE = 1e-3  # of Adam
BATCH = 100  # images with a label a step, and as many without
EPOCHS = 20
SEEDS = 3  # choices of the labelled images, and runs, from keys 0, 1, 2
LINEAR = partial(nn.MLP, hidden=())
DENSE = partial(nn.MLP, hidden=(HIDDEN,))
PIXELS = (SHAPE, nn.BernoulliHead())  # what M2 is a model of, and its likelihood
CODES = ((LATENT,), nn.NormalHead())  # the same on top of M1


def classifier(shape: Any, _: Any, key: jax.Array) -> Any:
    return nn.Conditional(DENSE, nn.OneHotHead(), shape, (CLASSES,), rngs=nnx.Rngs(key))


def vae(shape: Any, head: Any, key: jax.Array) -> jaxvae.VAE:
    conditional = partial(nn.Conditional, DENSE, rngs=nnx.Rngs(key))
    return jaxvae.VAE(
        encode=conditional(nn.NormalHead(), shape, (LATENT,)),
        decode=conditional(head, (LATENT,), shape),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def m1(images: jax.Array, key: jax.Array) -> Any:
    """image -> q(z|image) of a VAE that sees no label."""
    objective = jaxvae.preprocessed(jaxvae.elbo, lambda key, x: pixels(x).sample(key))
    model = fit(objective, partial(vae, *PIXELS), images, key)
    return Partial(lambda encode, image: encode(image.astype(float) / 255.0), model.encode)


def pixels(image: jax.Array) -> jaxvae.Bernoulli:
    """Draws are binarized images, and the mean is the grey one."""
    return jaxvae.Bernoulli(logit(image.astype(float) / 255.0))


def m2(shape: Any, head: Any, key: jax.Array) -> jaxvae.models.LabelVAE:
    classify_key, key = jax.random.split(key)
    rngs, up, code = nnx.Rngs(key), (HIDDEN + CLASSES,), (LATENT + CLASSES,)
    features = LINEAR(shape, (HIDDEN,), rngs=rngs)
    encode = nn.Conditional(LINEAR, nn.NormalHead(), up, (LATENT,), rngs=rngs)
    decode = nn.Conditional(DENSE, head, code, shape, rngs=rngs)
    return jaxvae.models.LabelVAE(
        classify=classifier(shape, head, classify_key),
        given=Partial(given, (features, encode, decode)),
        labels=jaxvae.Constant(jaxvae.OneHotCategorical(np.zeros(CLASSES, np.float32))),
    )


def given(networks: Any, y: jax.Array) -> jaxvae.VAE:
    """The VAE of one class; what is made of x alone is computed once for all classes."""
    features, encode, decode = networks
    return jaxvae.VAE(
        encode=Partial(lambda x: encode(jnp.concatenate([jax.nn.relu(features(x)), y]))),
        decode=Partial(lambda z: decode(jnp.concatenate([z, y]))),
        prior=jaxvae.StandardNormal((LATENT,)),
    )


def both(model: jaxvae.models.LabelVAE, key: jax.Array, example: Any) -> Any:
    """One example with its label, and one without."""
    with_label, other = example
    key, other_key = jax.random.split(key)
    bound, _ = jaxvae.models.labelled(jaxvae.elbo)(model, key, with_label, alpha=ALPHA)
    other_bound, terms = jaxvae.models.unlabelled(jaxvae.elbo)(model, other_key, other)
    return bound + other_bound, terms


def log_class(classify: Any, _: jax.Array, example: Any) -> Any:
    (x, y), _ = example
    return classify(x).log_prob(y), None


def fit(objective: Any, make: Any, examples: Any, key: jax.Array) -> Any:
    """A whole training run as a pure function of its key."""
    init_key, run_key = jax.random.split(key)
    optimizer = optax.adam(LEARNING_RATE)
    epoch = jaxvae.train_epoch(jaxvae.train_step(objective, optimizer), batch_size=BATCH)
    state = jaxvae.init_state(make(init_key), optimizer)
    state, _ = jax.lax.scan(lambda state, _: epoch(state, run_key, examples), state, length=EPOCHS)
    return state.model


def main() -> None:
    data = load("mnist", validation=10_000)
    images, labels = jnp.asarray(data.train.images), jnp.asarray(data.train.labels)
    test, truth = jnp.asarray(data.test.images), jnp.asarray(data.test.labels)

    def run(see_of: Any, seen: Any, make: Any, objective: Any, key: jax.Array) -> Any:
        """From a key to image -> its class."""
        choice_key, see_key, key = jax.random.split(key, 3)
        rows, see = jnp.resize(choose(choice_key, labels), (len(images),)), see_of(see_key)
        examples: Any = ((images[rows], jnp.eye(CLASSES)[labels[rows]]), images)

        def draw(key: jax.Array, example: Any) -> Any:
            (x, y), other = example
            x_key, other_key = jax.random.split(key)
            return (see(x).sample(x_key), y), see(other).sample(other_key)

        model = fit(jaxvae.preprocessed(objective, draw), partial(make, *seen), examples, key)
        return Partial(class_of, see, getattr(model, "classify", model))

    errors = jax.jit(lambda _, model: 100.0 * jnp.mean(jax.vmap(model)(test) != truth))
    on_pixels = partial(run, lambda key: Partial(pixels), PIXELS)
    on_codes = partial(run, partial(m1, images), CODES)
    runs = {
        "classifier": partial(on_pixels, classifier, log_class),
        "M2": partial(on_pixels, m2, both),
        "M1, classifier": partial(on_codes, classifier, log_class),
        "M1+M2": partial(on_codes, m2, both),
    }
    compare("semi_supervised", runs, errors, seeds=SEEDS, unit="% errors")


def class_of(see: Any, classify: Any, image: jax.Array) -> jax.Array:
    return jnp.argmax(classify(mean_of(see(image))).logits)


def choose(key: jax.Array, labels: jax.Array) -> jax.Array:
    """`PER_CLASS` rows of each class."""
    score = jax.random.uniform(key, labels.shape)
    scores = jnp.where(jax.nn.one_hot(labels, CLASSES, axis=0, dtype=bool), score[None], -1.0)
    return jax.lax.top_k(scores, PER_CLASS)[1].reshape(-1)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
