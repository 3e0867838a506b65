"""Mistakes that published evaluators make, each beside the right number.

    python -m experiments.audit

Half of them are made on probabilistic PCA of scikit-learn's digits, a linear VAE whose log p(x) is
known exactly, and whose optimum at any beta is too (Lucas et al. 2019, section 4, for beta 1); some
on a small VAE of the same digits, binarized; the rest is arithmetic. docs/audit.md has the table
that this prints. Seed 0; 45 seconds of processor time on one busy x86-64 core.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.tree_util import Partial

import jaxvae
from experiments.common.command import command
from experiments.common.data import load
from experiments.common.evaluate import each
from jaxvae import nn
from jaxvae.models import ppca
from jaxvae.pytrees.networks import in_training

LATENT = 8  # coordinates of z
SAMPLES = 500  # importance samples
WIDER = 1.5  # a q that has still to learn: so many times the exact posterior's standard deviation
NARROWER = 0.5  # and one that is overconfident
DROPOUT = 0.2  # of the small VAE
EPOCHS = 100  # of the small VAE
SPLITS = 1000  # random halves of the test images
DRAWS = 1_000_000  # of what is told by simulation


class Told(NamedTuple):
    """What is reported, and what is true."""

    reported: float
    true: float
    of: str


@cache
def linear() -> tuple[Any, Any, float]:
    """The digits in [0, 1], their probabilistic PCA, and its mean log p(x)."""
    data = load("digits")
    xs = np.concatenate([data.train.images, data.validation.images, data.test.images])
    xs = jnp.asarray(xs.reshape(-1, 64) / 16.0, float)
    params = ppca.maximum_likelihood(xs, LATENT)
    return xs, params, float(jnp.mean(jax.vmap(partial(ppca.log_marginal, params))(xs)))


def scaled(params: ppca.PPCA, by: float, x: jax.Array) -> jaxvae.MultivariateNormal:
    """The exact posterior with its standard deviations times `by`."""
    q = ppca.posterior(params, x)
    return replace(q, scale_tril=by * q.scale_tril)


@cache
def log_weights() -> jax.Array:
    """log p(x, z) / q(z|x), [images, samples], under the wider q."""
    xs, params, _ = linear()
    model = ppca.as_vae(params)._replace(encode=Partial(scaled, params, WIDER))
    of = partial(jaxvae.log_weights, model, num_samples=SAMPLES)
    return each(of, jax.random.key(0), xs, batch_size=100)


def one_sample() -> Told:
    """n_samples asked, one taken"""
    return Told(float(jnp.mean(log_weights()[:, 0])), linear()[2], "nats, log p(x)")


def over_images() -> Told:
    """the logarithm of a mean over a batch of images, not over samples"""
    batch = log_weights()[:100]  # of one batch: of all images it would be worse
    found = jnp.mean(jax.nn.logsumexp(batch, axis=0) - jnp.log(len(batch)))
    return Told(float(found), linear()[2], "nats, log p(x)")


def overconfident() -> Told:
    """a q that is too narrow, believed"""
    xs, params, exact = linear()
    model = ppca.as_vae(params)._replace(encode=Partial(scaled, params, NARROWER))
    of = partial(jaxvae.log_marginal, model, num_samples=SAMPLES)
    found = each(of, jax.random.key(0), xs, batch_size=100)
    share = float(jnp.mean(found.reliable))
    return Told(float(jnp.mean(found.value)), exact, f"nats, log p(x); k-hat trusts {share:.0%}")


def from_the_prior() -> Told:
    """the prior as proposal, in a model of ten latents and ten pixels"""
    x = jnp.ones(10)
    model = jaxvae.VAE(
        encode=Partial(lambda x: jaxvae.StandardNormal((10,))),
        decode=Partial(lambda z: jaxvae.Normal(z, 0.1)),
        prior=jaxvae.StandardNormal((10,)),
    )
    found = jaxvae.log_marginal(model, jax.random.key(0), x, num_samples=10_000)
    exact = jaxvae.Normal(jnp.zeros(10), np.sqrt(1.01)).log_prob(x)
    said = "trusted" if found.reliable else "k-hat does not trust it"
    return Told(float(found.value), float(exact), f"nats, log p(x); {said}")


def optimum(beta: float) -> tuple[ppca.PPCA, float, float]:
    """The linear VAE at the optimum of its beta-ELBO, and its mean distortion and rate.

    At noise s2 an eigenvalue l of the data's covariance is used if l > beta s2, by a column of W of
    squared length l - beta s2 and at a rate of 1/2 log(l / beta s2); so E|x - Wz|^2 is beta s2
    along each that is used, l along the others, and d s2 in all.
    """
    xs, params, _ = linear()
    r = xs - params.mean[None]
    eigenvalues, vectors = jnp.linalg.eigh(r.T @ r / len(xs))
    eigenvalues, vectors, d = eigenvalues[::-1], vectors[:, ::-1], len(eigenvalues)
    noises = {k: jnp.sum(eigenvalues[k:]) / (d - k * beta) for k in range(LATENT, -1, -1)}
    used = next(k for k, s2 in noises.items() if k == 0 or eigenvalues[k - 1] > beta * s2 > 0)
    s2, leading = noises[used], eigenvalues[:used]
    weight = vectors[:, :used] * jnp.sqrt(leading - beta * s2)[None]
    distortion = d / 2 * (jnp.log(2 * jnp.pi * s2) + 1)
    rate = jnp.sum(jnp.log(leading / (beta * s2))) / 2
    return ppca.PPCA(weight, params.mean, s2), float(distortion), float(rate)


def of_its_own(params: ppca.PPCA) -> float:
    return float(jnp.mean(jax.vmap(partial(ppca.log_marginal, params))(linear()[0])))


def means_of_both() -> Told:
    """the KL averaged over 8 latents and the reconstruction over 64 pixels: beta is 8"""
    params, _, _ = optimum(64 / LATENT)
    used = params.weight.shape[1]
    return Told(of_its_own(params), linear()[2], f"nats, log p(x); {used} of {LATENT} latents used")


def endless_warm_up() -> Told:
    """a KL warm-up longer than the run: beta ends at 1/2, and its loss is called the ELBO"""
    params, distortion, rate = optimum(0.5)
    return Told(-distortion - 0.5 * rate, of_its_own(params), "nats, at most log p(x)")


def weights_of_the_loss() -> Told:
    """IWAE's weights as a softmax of the loss: the worst sample weighs most"""
    # p(z) = N(0, 1), p(x|z) = N(z, 1), x = 1.5, q = N(m, 1) at m = 1/4, K = 2; d log w / d m
    z = 0.25 + jax.random.normal(jax.random.key(0), (DRAWS, 2))
    log_w = -0.5 * z**2 - 0.5 * (1.5 - z) ** 2 + 0.5 * (z - 0.25) ** 2
    slopes = 1.5 - 2.0 * z  # along z = m + noise
    wrong, right = (jnp.sum(jax.nn.softmax(s * log_w) * slopes, axis=1).mean() for s in (-1.0, 1.0))
    return Told(float(wrong), float(right), "d IWAE_2 / dm")


def inverted() -> Told:
    """pixels drawn as image < uniform"""
    xs = linear()[0]
    u = jax.random.uniform(jax.random.key(0), xs.shape)
    return Told(float(jnp.mean(xs < u)), float(jnp.mean(xs)), "share of ink")


def naive_entropy() -> Told:
    """binary cross entropy as -log(-expm1(log_sigmoid(logit))), in float32, at a logit of 110"""
    logit = jnp.float32(110.0)
    naive = -jnp.log(-jnp.expm1(jax.nn.log_sigmoid(logit)))
    return Told(float(naive), float(-jaxvae.Bernoulli(logit).log_prob(0.0)), "nats a pixel")


def mass_of_a_logistic() -> Told:
    """a logistic density times the width of a bin: all 256 levels of a black pixel"""
    loc, scale, levels = jnp.float32(-1.0), jnp.float32(0.05), jnp.arange(256)
    t = (2.0 * levels.astype(float) / 255.0 - 1.0 - loc) / scale
    density = jnp.exp(-t - 2.0 * jax.nn.softplus(-t)) / scale
    bins = jax.vmap(jaxvae.distributions.DiscretizedLogistic(loc, scale).log_prob)(levels)
    return Told(
        float(jnp.sum(density * 2.0 / 255.0)), float(jnp.sum(jnp.exp(bins))), "probability in all"
    )


def rejected_without_correction() -> Told:
    """a von Mises-Fisher draw by rejection, differentiated as if nothing had been rejected"""
    d, kappa = 5, jnp.float32(2.0)
    keys = jax.random.split(jax.random.key(0))
    beta = jax.random.beta(keys[0], (d - 1) / 2, (d - 1) / 2, (DRAWS,))
    u = jax.random.uniform(keys[1], (DRAWS,))

    def cosine(kappa: jax.Array, beta: jax.Array) -> jax.Array:  # of the angle to the mean: Wood
        b = (jnp.sqrt(4.0 * kappa**2 + (d - 1) ** 2) - 2.0 * kappa) / (d - 1)
        return (1.0 - (1.0 + b) * beta) / (1.0 - (1.0 - b) * beta)

    b = (jnp.sqrt(4.0 * kappa**2 + (d - 1) ** 2) - 2.0 * kappa) / (d - 1)
    x0 = (1.0 - b) / (1.0 + b)

    def log_ratio(w: Any) -> Any:
        return kappa * w + (d - 1) * jnp.log(1.0 - x0 * w)

    accepted = log_ratio(cosine(kappa, beta)) - log_ratio(x0) >= jnp.log(u)
    slopes = jnp.where(accepted, jax.vmap(jax.grad(cosine), (None, 0))(kappa, beta), 0.0)

    def length(kappa: jax.Array) -> jax.Array:  # of the mean
        return jaxvae.distributions.VonMisesFisher(jnp.eye(d)[0], kappa).mean()[0]

    return Told(
        float(jnp.sum(slopes) / jnp.sum(accepted.astype(float))),
        float(jax.grad(length)(kappa)),
        "d E[cos] / d kappa, d = 5, kappa = 2",
    )


@cache
def trained() -> tuple[Any, jax.Array, jax.Array]:
    """A VAE with dropout, its test images, and every epoch's ELBO of each, [epochs, images]."""
    data = load("digits", validation=0)
    binarized = partial(jaxvae.binarize, max_value=data.max_value)
    keys = jax.random.split(jax.random.key(99), len(data.test.images))
    test = jax.vmap(binarized)(keys, jnp.asarray(data.test.images))
    model = nn.make_vae(
        test[0],
        latents=LATENT,
        convolutional=False,
        hidden=(100,),
        dropout=DROPOUT,
        likelihood=nn.BernoulliHead(),
        rngs=nnx.Rngs(0),
    )
    optimizer = optax.adam(2e-3)
    state = jaxvae.init_state(model, optimizer)
    step = jaxvae.train_step(jaxvae.preprocessed(jaxvae.elbo, binarized), optimizer)
    epoch = jax.jit(jaxvae.train_epoch(step, batch_size=100))
    measure = jax.jit(partial(elbos, test=test))
    images, found = jnp.asarray(data.train.images), []
    for _ in range(EPOCHS):
        state, _ = epoch(state, jax.random.key(0), images)
        found.append(measure(state.model))
    return state.model, test, jnp.stack(found)


def elbos(model: Any, test: jax.Array, *, as_trained: bool = False) -> jax.Array:
    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        used = in_training(model, jax.random.fold_in(key, 1)) if as_trained else model
        return jaxvae.elbo(used, key, x)[0]

    return each(one, jax.random.key(1), test)


def chosen_by_the_test_set() -> Told:
    """the best epoch's bound, chosen by the images it is reported on"""
    _, test, found = trained()
    keys = jax.random.split(jax.random.key(2), SPLITS)
    orders = jax.vmap(lambda key: jax.random.permutation(key, len(test)))(keys)
    halves = jnp.where(orders < len(test) // 2, 1.0, 0.0)
    ours, others = (of @ found.T / of.sum(1, keepdims=True) for of in (halves, 1.0 - halves))
    best = jnp.argmax(ours, axis=1)[:, None]
    seen, unseen = (float(jnp.take_along_axis(of, best, 1).mean()) for of in (ours, others))
    return Told(seen, unseen, f"nats, ELBO of {len(test) // 2} images")


def dropout_left_on() -> Told:
    """a likelihood measured while dropout still drops"""
    model, test, _ = trained()
    left_on, off = elbos(model, test, as_trained=True), elbos(model, test)
    return Told(float(left_on.mean()), float(off.mean()), "nats, ELBO")


MISTAKES: tuple[Callable[[], Told], ...] = (
    one_sample,
    over_images,
    overconfident,
    from_the_prior,
    means_of_both,
    endless_warm_up,
    weights_of_the_loss,
    rejected_without_correction,
    naive_entropy,
    mass_of_a_logistic,
    inverted,
    dropout_left_on,
    chosen_by_the_test_set,
)


def main() -> None:
    print("| the mistake | reported | true | quantity |\n|---|---|---|---|")
    for mistake in MISTAKES:
        told = mistake()
        numbers = f"{told.reported:.4g} | {told.true:.4g}"
        print(f"| {mistake.__doc__} | {numbers} | {told.of} |", flush=True)


if __name__ == "__main__":
    command(main, __doc__)
