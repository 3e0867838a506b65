"""The zoo's data: each as the examples that a model sees, small, with one budget for all its rows.

Digits and the table come with scikit-learn, the sentences are written here. The others lie in a
folder into which three packages were unpacked, one over the other:

    pip download --no-deps scanpy==1.11.5 aeon==1.6.0 && unzip -n '*.whl' -d DATA
    apt-get download mate-backgrounds && dpkg -x mate-backgrounds_*.deb DATA
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import jaxvae
from experiments.common.data import load
from experiments.datasets import cells, photographs, sentences, vowels
from jaxvae import nn

CLASSES = 10  # of the digits; components, pseudo-inputs and codes are as many
HIDDEN = (200,)  # units of encoder and decoder
SIDE = 8  # pixels of a colour patch
WHOLE = 7  # steps of the shortest utterance
MISSING = 0.25  # share of the table's entries that nobody sees
NETWORK = partial(nn.MLP, hidden=HIDDEN)
BASE: dict[str, Any] = {"K": CLASSES, "encoder": NETWORK, "decoder": NETWORK}


class Data(NamedTuple):
    """Examples, leaves of leading axis n, and the budget of a run.

    Args:
      train, test: as they are stored; a step sees `transform(key, example)`.
      sizes: of `methods.Parts`.
      steps, batch: of training.
      samples: of log p(x) of each of the examples to test on.
      unit: nats to add to a density of floats for the probability of the integers stored.
    """

    train: Any
    test: Any
    sizes: dict[str, Any]
    transform: Callable[[Any, Any], Any] = lambda key, x: x
    steps: int = 2000
    batch: int = 64
    samples: int = 500
    unit: float = 0.0


def digits(_: Path) -> Data:
    """1,297 of scikit-learn's digits, binarized afresh at every step, and 300 once."""
    data = load("digits")
    binarize = partial(jaxvae.binarize, max_value=16.0)
    keys = jax.random.split(jax.random.key(99), len(data.test.images))
    test = jax.jit(jax.vmap(binarize))(keys, data.test.images)
    train = jnp.asarray(data.train.images)
    sizes = {"d": 8, "shape": data.shape, "image": data.shape, "likelihood": nn.BernoulliHead()}
    sizes |= {"examples": train[:CLASSES].astype(float) / 16.0, "places": 8, "N": len(train)}
    # what was drawn for the test is as it is: 0 and 16 are certain
    return Data(train, test * 16.0, BASE | sizes, binarize)


def labelled_digits(folder: Path) -> Data:
    """The digits, and their labels one-hot."""
    data, found = load("digits"), digits(folder)
    train, test = (jnp.eye(CLASSES)[split.labels] for split in (data.train, data.test))

    def transform(key: Any, example: Any) -> Any:
        return found.transform(key, example[0]), example[1]

    return found._replace(train=(found.train, train), test=(found.test, test), transform=transform)


def halves(folder: Path) -> Data:
    """The digits as two modalities: the upper half and the lower one, either missing at times."""
    found = digits(folder)
    seen = jnp.array([[True, True], [True, False], [False, True]])

    def cut(x: Any) -> Any:
        return (x[..., :4, :, :], x[..., 4:, :, :])

    def transform(key: Any, x: Any) -> Any:
        x_key, key = jax.random.split(key)
        there = jax.random.choice(key, seen)
        return cut(found.transform(x_key, x)), (there[0], there[1])

    sizes = found.sizes | {"shape": (4, 8, 1), "examples": cut(found.sizes["examples"])[0]}
    return found._replace(sizes=sizes, transform=transform)


def patches(folder: Path) -> Data:
    """Squares of nine photographs, 8x8 in colour, as bytes; 200 of three others."""
    where = folder / "usr/share/backgrounds/mate/nature"
    files = photographs.patches(there(where), folder / "patches")
    train, test = (
        np.stack([photographs.read(f)[:SIDE, :SIDE] for f in some])
        for some in (files[0], np.random.default_rng(98).permutation(files[1])[:200])
    )
    shape = (SIDE, SIDE, 3)
    encoder = partial(nn.Rescaled, NETWORK)
    sizes = BASE | {"d": 16, "shape": shape, "encoder": encoder, "N": len(train)}
    sizes |= {"examples": jnp.asarray(train[:CLASSES])}
    return Data(jnp.asarray(train), jnp.asarray(test), sizes, steps=1000, samples=200)


def densities(folder: Path) -> Data:
    """The patches, dequantized to floats in (0, 1); their densities are told as those of bytes."""
    data = patches(folder)
    sizes = data.sizes | {
        "encoder": NETWORK,
        "examples": data.sizes["examples"].astype(float) / 255.0,
    }
    unit = -float(data.train[0].size * np.log(256.0))
    return data._replace(sizes=sizes, transform=jaxvae.training.dequantize, unit=unit)


def counts(folder: Path) -> Data:
    """Molecules of 765 genes in 560 blood cells, and in 140 others."""
    path = folder / "scanpy/datasets/10x_pbmc68k_reduced.h5ad"
    (xs, _), _, _ = cells.read(str(there(path)))
    train, test = (jnp.asarray(xs[rows]) for rows in cells.split(0, len(xs)))
    sizes = {"d": 8, "shape": xs.shape[1:], "encoder": Logged, "N": len(train)}
    return Data(train, test, BASE | sizes | {"examples": train[:CLASSES]})


class Logged(nnx.Module):
    """A dense network that sees the logarithms of counts."""

    def __init__(self, shape: tuple[int, ...], out: tuple[int, ...], *, rngs: nnx.Rngs):
        self.network = NETWORK(shape, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.network(jnp.log1p(x))


COLUMNS = (("numbers", nn.NormalHead(), (10,)), ("sex", nn.BernoulliHead(), (1,)))


def frame() -> Any:
    """442 patients with diabetes: nine measurements, the illness a year later, and the sex."""
    made: Any = load_diabetes(as_frame=True, scaled=False)
    table = made.frame.assign(sex=made.frame["sex"].map({1.0: "a", 2.0: "b"}))
    return train_test_split(table, test_size=100, random_state=0)


def table(_: Path) -> Data:
    """Ten numbers, standardised, and the sex of 342 patients with diabetes, and of 100 others."""
    train, test = frame()
    numbers = [name for name in train if name != "sex"]
    loc, scale = train[numbers].mean(), train[numbers].std()

    def rows(some: Any) -> Any:
        columns = {"numbers": (some[numbers] - loc) / scale, "sex": some[["sex"]] == "b"}
        return {name: jnp.asarray(of.to_numpy(np.float32)) for name, of in columns.items()}

    sizes = {"d": 4, "shape": (11,), "columns": COLUMNS, "N": len(train), "image": (11,)}
    return Data(rows(train), rows(test), BASE | sizes, steps=1000)


def data_frame(_: Path) -> Data:
    """The table as a data frame has it, without a gap."""
    made: Any = frame()
    table = nn.infer_table(made[0])
    train, test = (jax.tree.map(jnp.asarray, table.rows(some)) for some in made)
    return Data(train, test, BASE, steps=1000)


def gappy_table(folder: Path) -> Data:
    """The table with a quarter of the entries missing, others at every step."""
    found = table(folder)

    def transform(key: Any, row: Any) -> Any:
        names = zip(jax.random.split(key, len(row)), row, strict=True)
        return row, {n: jax.random.bernoulli(k, 1 - MISSING, row[n].shape) for k, n in names}

    return found._replace(transform=transform)


def padded(folder: Path) -> Data:
    """270 utterances of two vowels, 12 channels, 7 to 29 steps, and 370 others."""
    where = folder / "aeon/datasets/data/JapaneseVowels"
    train, test = vowels.read(str(there(where)))
    sizes = {"d": 8, "shape": (vowels.CHANNELS,), "T": vowels.LENGTH, "N": len(train[0])}
    examples = {"examples": jnp.asarray(train[0][:CLASSES, 0])}
    train, test = jax.tree.map(jnp.asarray, (train, test))
    return Data(train, test, BASE | sizes | examples, steps=1000, batch=54, samples=100)


def series(folder: Path) -> Data:
    """The first seven steps of each utterance, which all of them have."""
    found = padded(folder)
    train, test = found.train[0][:, :WHOLE], found.test[0][:, :WHOLE]
    return found._replace(train=train, test=test, sizes=found.sizes | {"T": WHOLE})


def text(_: Path) -> Data:
    """12,000 sentences of a small grammar, and 200 others."""
    train, test = (jnp.asarray(sentences.sentences(*of)[0]) for of in ((0, 12_000), (1, 200)))
    return Data(train, test, BASE, steps=500, batch=100, samples=50)


DATA: dict[str, Callable[[Path], Data]] = {
    made.__name__.replace("_", " "): made
    for made in (digits, labelled_digits, halves, patches, densities, counts, table, data_frame)
} | {"gappy table": gappy_table, "padded series": padded, "series": series, "text": text}


class MissingError(Exception):
    """A file is not where it was looked for."""


def there(path: Path) -> Path:
    if not path.exists():
        raise MissingError(f"{path} isn't there; experiments/zoo/data.py says how to get it")
    return path


@cache
def read(name: str, folder: Path) -> Data:
    """A data set by its name; MissingError where its file is not there."""
    return DATA[name](folder)
