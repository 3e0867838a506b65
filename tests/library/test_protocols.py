"""What is asked of a distribution and of a model, and what is said when they do not do it."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.checks import a_class_of
from jaxvae.model import log_likelihood, posterior
from jaxvae.models.quantization import init_codebook
from jaxvae.protocols import mean_of
from jaxvae.regularizers import adversarial
from tests.common import close


def key(seed=0):
    return jax.random.key(seed)


def normal():
    return jv.Normal(jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]))


class Minimal:
    """The least a distribution can be: two methods, no base class, no registration."""

    def sample(self, key):
        return jax.random.normal(key, (2,))

    def log_prob(self, event):
        return -0.5 * jnp.sum(event**2) - jnp.log(2 * jnp.pi)


class OnePass(Minimal):
    """A distribution whose one pass is not sample followed by log_prob, as a flow's may be."""

    def sample_and_log_prob(self, key):
        return jnp.ones(2), jnp.array(7.0)


class ByParts(Minimal):
    def __init__(self, log_prob):
        self._log_prob = log_prob

    def log_prob(self, event):
        return self._log_prob


def model(**parts) -> Any:
    whole = {"encode": lambda x: normal(), "decode": lambda z: normal(), "prior": normal(), **parts}
    return SimpleNamespace(**whole)


X = np.array([0.1, 0.2], np.float32)
OBJECTIVES = {
    "elbo": lambda m: jv.elbo(m, key(), jnp.asarray(X)),
    "iwae": lambda m: jv.iwae(m, key(), jnp.asarray(X), num_samples=3),
    "elbo, stuck": lambda m: jv.elbo(m, key(), jnp.asarray(X), gradient=jv.sticking_the_landing),
    "iwae, doubly": lambda m: jv.iwae(
        m, key(), jnp.asarray(X), num_samples=3, gradient=jv.doubly_reparameterized
    ),
    "iwae, score": lambda m: jv.iwae(
        m, key(), jnp.asarray(X), num_samples=3, gradient=jv.score_function
    ),
    "eubo": lambda m: jv.eubo(
        m, key(), jnp.asarray(X), sample_posterior=lambda key: jnp.asarray(X)
    ),
    "ais": lambda m: jv.evaluation.ais(m, key(), jnp.asarray(X), betas=jnp.array([0.0, 0.5, 1.0])),
    "bdmc": lambda m: jv.evaluation.bdmc(m, key(), betas=jnp.array([0.0, 0.5, 1.0])),
    "log_weights": lambda m: jv.log_weights(m, key(), jnp.asarray(X), num_samples=3),
    "log_marginal": lambda m: jv.log_marginal(m, key(), jnp.asarray(X), num_samples=3),
    "prior_sampling": lambda m: jv.evaluation.prior_sampling(
        m, key(), jnp.asarray(X), num_samples=3
    ),
    "autoencoder": lambda m: jv.bounds.autoencoder(m, key(), jnp.asarray(X)),
    "reconstruct": lambda m: jv.reconstruct(m, key(), jnp.asarray(X)),
    "generate": lambda m: jv.generate(m, key()),
    "active_units": lambda m: jv.evaluation.active_units(m, jnp.stack(3 * [jnp.asarray(X)])),
}
SCORED = {  # the parts whose log_prob each looks at
    "elbo": ("prior", "encode", "decode"),
    "iwae": ("prior", "encode", "decode"),
    "elbo, stuck": ("prior", "decode"),
    "iwae, doubly": ("prior", "decode"),
    "iwae, score": ("prior", "encode", "decode"),
    "eubo": ("prior", "encode", "decode"),
    "ais": ("prior", "decode"),
    "bdmc": ("prior", "decode"),
    "log_weights": ("prior", "encode", "decode"),
    "log_marginal": ("prior", "encode", "decode"),
    "prior_sampling": ("decode",),
}
CALLED = {  # the networks each calls
    **dict.fromkeys(OBJECTIVES, ("encode", "decode")),
    "prior_sampling": ("decode",),
    "ais": ("decode",),
    "bdmc": ("decode",),
    "generate": ("decode",),
    "active_units": ("encode",),
}


def with_parts(table):
    return [(objective, part) for objective, parts in table.items() for part in parts]


def test_one_pass_is_used_where_there_is_one():
    """A flow that draws never inverts itself: its own sample_and_log_prob is what is called."""
    z, log_q = jv.sample_and_log_prob(OnePass(), key())
    assert close(z, [1.0, 1.0])
    assert log_q == 7.0


def test_two_methods_are_enough():
    """Without it: sample, then log_prob at the sample."""
    z, log_q = jv.sample_and_log_prob(Minimal(), key())
    assert close(z, Minimal().sample(key()))
    assert close(log_q, jv.StandardNormal((2,)).log_prob(z))


def test_protocols_are_structural():
    """isinstance sees methods: ours, a class of two methods, and not an array or a network."""
    assert isinstance(normal(), jv.Distribution)
    assert isinstance(Minimal(), jv.Distribution)
    assert not isinstance(jnp.zeros(2), jv.Distribution)
    assert not isinstance(model(), jv.Distribution)


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 2)])
def test_a_log_prob_that_is_no_scalar_is_an_error(shape):
    """The message has the owner, the shape and the way out."""
    with pytest.raises(ValueError, match="ByParts: log_prob has shape") as error:
        jv.sample_and_log_prob(ByParts(jnp.zeros(shape)), key())
    assert str(shape) in str(error.value)
    assert "to_event" in str(error.value)
    assert "adapt" in str(error.value)


@pytest.mark.parametrize(("objective", "part"), with_parts(SCORED))
def test_no_bound_takes_a_log_prob_that_is_no_scalar(objective, part):
    """A vector of log-probabilities would broadcast into a bound and be averaged with the batch."""
    wrong = ByParts(jnp.zeros(2))
    parts = {part: wrong if part == "prior" else lambda _: wrong}
    with pytest.raises(ValueError, match=r"log_prob has shape \(2,\), expected a scalar"):
        jax.eval_shape(lambda: OBJECTIVES[objective](model(**parts)))


class Broad(Minimal):
    """Of events of another shape, whose log_prob makes a scalar of any, as a stranger's may."""

    def __init__(self, loc=None, has_path=True):
        self.loc = jnp.zeros((2, 1)) if loc is None else loc
        self.has_rsample = has_path

    def sample(self, key):
        return self.loc + jax.random.normal(key, self.loc.shape)

    def log_prob(self, event):
        with jax.numpy_rank_promotion("allow"):
            return -0.5 * jnp.sum((event - self.loc) ** 2)

    def enumerate_support(self):
        return jnp.zeros((3, *self.loc.shape))


BROADCASTS = {
    **dict.fromkeys(SCORED, ("prior", "decode")),
    "prior_sampling": ("decode",),  # what draws z itself can't be given another
    "ais": ("decode",),
    "bdmc": (),
    "eubo": ("prior", "encode", "decode"),
}


@pytest.mark.parametrize(("objective", "part"), with_parts(BROADCASTS))
def test_no_bound_scores_an_event_of_another_shape(objective, part):
    """x under p(x|z) or z under p(z) of another shape would broadcast to a number."""
    parts = {part: Broad() if part == "prior" else lambda _: Broad()}
    what = "x" if part == "decode" else "z"
    name = {"prior": "the prior", "decode": r"decode\(z\)", "encode": r"encode\(x\)"}[part]
    match = rf"model: {what} has shape \(2,\), expected \(2, 1\) as draws of {name} have"
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda: OBJECTIVES[objective](model(**parts)))


BOOK = init_codebook(jnp.array([[-1.0], [1.0]]))
HERE = jnp.asarray(X)
OTHERS = {
    "regularized": lambda broad: jv.regularizers.regularized(
        model(decode=broad), key(), HERE, penalty=lambda code, key: code.rate
    ),
    "geco": lambda broad: jv.regularizers.geco(
        jv.regularizers.Constrained(model(decode=broad), jnp.zeros(())), key(), HERE, tolerance=1.0
    ),
    "factor_vae": lambda broad: adversarial.factor_vae(
        adversarial.AdversarialPair(model(decode=broad), Partial(jnp.sum)), key(), HERE, gamma=1.0
    ),
    "adversarial_autoencoder": lambda broad: adversarial.adversarial_autoencoder(
        adversarial.AdversarialPair(model(decode=broad), Partial(jnp.sum)), key(), HERE
    ),
    "piwae": lambda broad: jv.piwae(
        jv.VAE(Partial(lambda x: normal()), Partial(broad), normal()),
        key(), HERE, num_outer=2, num_samples=2,
    ),
    "conditioned": lambda broad: jv.conditioned(jv.elbo)(
        lambda y: model(decode=broad), key(), (HERE, HERE)
    ),
    "labelled, x": lambda broad: jv.models.labelled(jv.elbo)(
        jv.models.LabelVAE(
            lambda x: jv.Categorical(jnp.zeros(3)),
            lambda y: model(decode=broad),
            jv.Categorical(jnp.zeros(3)),
        ),
        key(), (HERE, jnp.array(1)),
    ),
    "vq": lambda broad: jv.models.vq(
        jv.models.VQVAE(lambda x: x[:, None], BOOK, broad, jv.Categorical(jnp.zeros((2, 2)))),
        key(), HERE
    ),
    "Hamiltonian": lambda broad: jv.elbo(
        jv.models.HamiltonianVAE(
            lambda x: normal(), broad, normal(), jnp.full((1, 2), -2.0), jnp.zeros(())
        ),
        key(), HERE,
    ),
    "Masked": lambda broad: jv.elbo(
        model(decode=lambda z: jv.Masked(jv.Product([broad(z)]))),
        key(), ([HERE], [jnp.array(True)]),
    ),
    "Multimodal": lambda broad: jv.elbo(
        jv.models.Multimodal((lambda x: normal(),), (broad,), normal()), key(), ((HERE,), (True,))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_scores_x_holds_its_shape_against_the_likelihoods(name):
    with pytest.raises(
        ValueError, match=r"model: x\S* has shape \(2,\), expected \(2, 1\) as draws"
    ):
        jax.eval_shape(lambda: OTHERS[name](lambda z: Broad()))


@pytest.mark.parametrize("part", ["labels", "classify"])
def test_labels_have_the_shape_of_their_distributions(part):
    good, bad = jv.Categorical(jnp.zeros(3)), Broad(jnp.zeros(2), has_path=False)
    labels, classify = (bad, good) if part == "labels" else (good, bad)
    of = jv.models.LabelVAE(lambda x: classify, lambda y: model(), labels)
    with pytest.raises(
        ValueError, match=rf"model: y has shape \(\), expected \(2,\) as draws of {part}"
    ):
        jv.models.labelled(jv.elbo)(of, key(), (HERE, jnp.array(1)), alpha=1.0)


def test_a_tree_is_held_against_the_likelihoods():
    tree = jv.Product({"a": Broad(), "b": normal()})
    with pytest.raises(
        ValueError, match=r"x\['a'\] has shape \(2,\), expected \(2, 1\) as draws of"
    ):
        jv.elbo(model(decode=lambda z: tree), key(), {"a": HERE, "b": HERE})
    with pytest.raises(ValueError, match="expected an event for each part"):
        jv.elbo(model(decode=lambda z: tree), key(), {"a": jnp.zeros((2, 1))})

    class Tree:
        def sample(self, key):
            return {"a": HERE, "b": HERE}

        def log_prob(self, event):
            return 0.0

    with pytest.raises(ValueError, match=r"x has structure .*'a'.*, expected .*'b'.* as draws of"):
        jv.elbo(model(decode=lambda z: Tree()), key(), {"a": HERE})


def test_a_product_of_masked_parts_asks_each():
    pixels = jv.Masked(
        jv.Independent(jv.Independent(jv.Normal(jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3)))))
    )
    both = jv.Product({"image": pixels, "label": jv.Categorical(jnp.zeros(3))})
    image = (jnp.ones((2, 2, 3)), jnp.array([[True, False], [True, True]]))
    of = lambda image: jv.elbo(
        model(decode=lambda z: both), key(), {"image": image, "label": jnp.array(1)}
    )
    exact = jv.Normal(jnp.zeros(9), 1.0).log_prob(jnp.ones(9)) - jnp.log(3.0)
    assert close(of(image)[1].distortion, -exact)
    with pytest.raises(
        ValueError, match=r"x\['image'\]\[0\] has shape \(2, 3\), expected \(2, 2, 3\)"
    ):
        of((jnp.ones((2, 3)), image[1]))
    with pytest.raises(ValueError, match=r"x\['image'\] is an \w+, expected a pair \(x, mask\)"):
        of(image[0])


def test_what_cannot_be_drawn_is_not_held_against_anything():
    class Improper(Minimal):
        def sample(self, key):
            raise NotImplementedError

    class Density:
        def log_prob(self, event):
            return -0.5 * jnp.sum(event**2)

    for p in (Improper(), Density()):
        _, terms = jv.elbo(model(prior=p, decode=lambda z, p=p: p), key(), HERE)
        assert close(terms.distortion, -p.log_prob(HERE))


def test_a_shape_is_checked_when_traced_and_costs_nothing_then():
    """The program that scores x has not an operation more than log_prob itself."""

    def operations(f):
        return [str(eqn.primitive) for eqn in jax.make_jaxpr(f)(HERE).eqns]

    for d in (normal(), jv.Product([normal()]), Minimal()):
        event = (lambda x: [x]) if isinstance(d, jv.Product) else lambda x: x
        scored = lambda x, d=d, e=event: log_likelihood(model(decode=lambda z: d), e(x), HERE)
        assert operations(scored) == operations(lambda x, d=d, e=event: d.log_prob(e(x)))


@pytest.mark.parametrize("objective", ["elbo, stuck", "iwae, doubly"])
def test_what_is_held_still_is_a_pytree(objective):
    """Where an estimator stops the gradient of q, a class that is no pytree is named."""
    with pytest.raises(TypeError, match="the posterior is a Minimal, expected a pytree of arrays"):
        OBJECTIVES[objective](model(encode=lambda x: Minimal()))


@pytest.mark.parametrize("rate", [jv.auto_kl, jv.sampled_kl])
def test_no_rate_takes_a_prior_that_is_no_scalar(rate):
    """Whichever the rate, alone and inside a batch."""
    wrong = model(prior=ByParts(jnp.zeros(2)))
    for objective, x in ((jv.elbo, jnp.asarray(X)), (jv.batched(jv.elbo), np.stack(3 * [X]))):
        of = partial(objective, wrong, kl=rate)
        with pytest.raises(ValueError, match="expected a scalar"):
            jax.eval_shape(of, key(), x)


@pytest.mark.parametrize(("objective", "part"), with_parts(CALLED))
@pytest.mark.parametrize("thing", [jnp.zeros(2), (jnp.zeros(2), jnp.ones(2))])
def test_a_network_that_returns_no_distribution_is_named(objective, part, thing):
    """encode or decode returned an array or a pair (the usual (mu, sigma)): TypeError."""
    with pytest.raises(TypeError, match=f"model.{part} returned {a_class_of(thing)}"):
        OBJECTIVES[objective](model(**{part: lambda _: thing}))


@pytest.mark.parametrize("objective", ["elbo", "iwae", "prior_sampling", "generate"])
@pytest.mark.parametrize("thing", [jnp.zeros(2), None])
def test_a_prior_that_is_no_distribution_is_named(objective, thing):
    """TypeError: the prior is an array, or nothing."""
    with pytest.raises(TypeError, match=f"model.prior is {a_class_of(thing)}"):
        OBJECTIVES[objective](model(prior=thing))


def test_mean_is_a_method_or_a_property():
    """Ours, numpyro's way, and none at all."""
    assert close(mean_of(normal()), normal().loc)
    with_property: Any = SimpleNamespace(mean=3.0)
    assert mean_of(with_property) == 3.0
    for without in (jv.Categorical(jnp.zeros(3)), Minimal()):
        with pytest.raises(TypeError, match=f"{type(without).__name__} has no mean"):
            mean_of(without)


def test_parts_are_called_once_and_scored_where_drawn():
    """log_likelihood decodes its z and scores its x; posterior encodes its x."""
    seen = []

    def decode(z):
        seen.append(z)
        return jv.Normal(2 * z, jnp.ones(2))

    x, z = jnp.asarray(X), jnp.array([1.0, 2.0])
    exact = jv.Normal(2 * z, jnp.ones(2)).log_prob(x)
    assert close(log_likelihood(model(decode=decode), x, z), exact)
    assert len(seen) == 1
    assert close(mean_of(posterior(model(encode=lambda x: jv.Normal(x, 1.0)), x)), x)


class Class:
    """A model that is a class, with a prior that is a property."""

    def __init__(self, weight):
        self.weight = weight

    def encode(self, x):
        return jv.Normal(self.weight * x, 0.5)

    def decode(self, z):
        return jv.Normal(z, jnp.ones_like(z))

    @property
    def prior(self):
        return jv.Normal(jnp.zeros(2), jnp.ones(2))


def test_any_object_with_the_three_is_a_model(x64):
    """A class, a namespace and the stock VAE give one bound."""
    m, x = Class(0.7), jnp.array([0.1, 0.2])
    others = [
        jv.VAE(encode=m.encode, decode=m.decode, prior=m.prior),
        SimpleNamespace(encode=m.encode, decode=m.decode, prior=m.prior),
    ]

    def bounds(m):
        return jnp.stack([jv.elbo(m, key(), x)[0], jv.iwae(m, key(), x, num_samples=4)[0]])

    exact = jax.jit(lambda: bounds(m))()
    assert all(close(jax.jit(lambda o=other: bounds(o))(), exact) for other in others)


class Pair:
    """A distribution over a pytree: a dict of two independent events."""

    def __init__(self, a, b):
        self.parts = {"a": a, "b": b}

    def sample(self, key):
        ks = jax.random.split(key)
        return {name: self.parts[name].sample(ks[i]) for i, name in enumerate("ab")}

    def log_prob(self, event):
        return sum((d.log_prob(event[name]) for name, d in self.parts.items()), jnp.zeros(()))

    def mean(self):
        return {name: d.mean() for name, d in self.parts.items()}


def test_data_and_latents_may_be_trees(x64):
    """Dicts in the place of vectors: the bound is the sum over their parts."""
    a, b = jv.Normal(jnp.zeros(2), jnp.ones(2)), jv.Laplace(jnp.zeros(()), jnp.ones(()))
    tree = jv.VAE(
        encode=lambda x: Pair(jv.Normal(x["a"], 0.5), jv.Laplace(x["b"], 0.5)),
        decode=lambda z: Pair(jv.Normal(z["a"], 0.5), jv.Laplace(z["b"], 0.5)),
        prior=Pair(a, b),
    )
    x = {"a": jnp.array([0.3, -1.0]), "b": jnp.array(0.2)}

    @jax.jit
    def numbers(x):
        z = tree.encode(x).sample(key())
        exact = tree.decode(z).log_prob(x) + tree.prior.log_prob(z) - tree.encode(x).log_prob(z)
        reconstruction = mean_of(jv.reconstruct(tree, key(), x))
        log_w = jv.log_weights(tree, key(), x, num_samples=5)
        estimate = jv.log_marginal(tree, key(), x, num_samples=5)
        return jv.elbo(tree, key(), x), exact, (reconstruction, z), (log_w, estimate.value)

    (bound, terms), exact, (reconstruction, z), (log_w, value) = numbers(x)
    assert close(bound, exact)
    assert close(bound, -(terms.distortion + terms.rate))
    assert close(reconstruction["a"], z["a"])
    assert close(reconstruction["b"], z["b"])
    assert close(value, np.log(np.mean(np.exp(log_w))))
    xs = jax.tree.map(lambda leaf: np.stack(4 * [leaf]), x)
    _, terms = jax.eval_shape(partial(jv.batched(jv.elbo), tree), key(), xs)
    assert terms.rate.shape == (4,)


def test_what_a_newcomer_gives_first_is_answered_with_the_cure():
    model = jv.VAE(Partial(lambda x: normal()), Partial(lambda z: normal()), normal())
    optimizer, xs = optax.sgd(1.0), np.zeros((4, 2), np.float32)
    state = jv.init_state(model, optimizer)
    with pytest.raises(ValueError, match=r"objective is batched already.*train_step\(objective, o"):
        jv.train_step(jv.batched(jv.elbo), optimizer)
    with pytest.raises(TypeError, match=r"model is a TrainState.*fit takes jaxvae.train_step\(obj"):
        jv.fit(jv.elbo, state, key(), xs, epochs=1, batch_size=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="key is an int, expected PRNG key, for example jax"):
        jv.elbo(model, 0, xs[0])  # pyright: ignore[reportArgumentType]
