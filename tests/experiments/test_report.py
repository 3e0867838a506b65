"""What the main job measures and reports, by hand: no number that it prints is another's."""

import json
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import norm

from experiments.common import report
from experiments.common.evaluate import (
    Evaluation,
    compile_measures,
    evaluate,
    generated,
    inputs,
    largest_log_scale,
    log_marginals,
    reconstructed,
)
from jaxvae import VAE, LogMarginal, MultivariateNormal, Normal, StandardNormal, elbo, preprocessed
from tests.common import close, programs_compiled

XS = np.array([[0.3, -1.2], [2.0, 0.5], [-0.7, 1.1]])


def noisy(key, x):
    return x + jax.random.normal(key, (2,))


def careless(loc=0.7, scale=0.5):
    """A decoder that takes no notice of z, so that rate, distortion and log p(x) have no noise."""
    return VAE(
        encode=Partial(lambda x: Normal(loc * x, jnp.full(2, scale))),
        decode=Partial(lambda z: Normal(0.0 * z + 0.1, jnp.ones(2))),
        prior=StandardNormal((2,)),
    )


def test_an_evaluation_is_the_mean_over_images(x64):
    """Of a Gaussian rate, and of each image as its own key makes it."""
    keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(0), 3))
    xs = XS + np.stack([jax.random.normal(key, (2,)) for key in keys[:, 0]])
    rate = np.mean(np.sum((0.7 * xs) ** 2 - 0.75, axis=1)) / 2 + np.log(4)
    distortion = -np.mean(np.sum(norm.logpdf(xs, 0.1), axis=1))
    found = evaluate(careless(), jax.random.key(0), jnp.asarray(XS), noisy)
    assert close(found, [-(rate + distortion), rate, distortion])


def test_any_number_of_images_is_one_program():
    """And an image has the same key among few as among many."""
    model, key = careless(), jax.random.key
    xs = np.asarray(jax.random.normal(jax.random.key(1), (230, 2)))
    objective = preprocessed(elbo, noisy)
    bounds, _ = jax.jit(jax.vmap(partial(objective, model)))(jax.random.split(key(0), 230), xs)
    found = {}
    measure = lambda n: found.update({n: evaluate(model, key(0), xs[:n], noisy)})
    measure(130)
    assert programs_compiled(lambda: measure(230)) == 0
    for n, of in found.items():
        assert close(of.elbo, np.mean(bounds[:n]))


def test_what_another_thread_compiled_is_not_compiled_again():
    model, xs = careless(), np.ones((30, 2), np.float32)
    other = threading.Thread(target=compile_measures, args=(model, xs, noisy, 7, 20))
    other.start()
    other.join()
    key, *keys = jax.random.split(jax.random.key(0), 3)
    jax.random.clone(key)  # which is a program too

    def measure():
        evaluate(model, keys[0], xs, noisy)
        log_marginals(model, keys[1], xs[:7], noisy, 20)

    assert programs_compiled(measure) == 0


def test_log_p_is_of_each_image_as_its_key_makes_it(x64):
    """From the prior every weight is p(x); from elsewhere the weights are unequal."""
    keys = jax.vmap(jax.random.split)(jax.random.split(jax.random.key(0), 3))
    xs = XS + np.stack([jax.random.normal(key, (2,)) for key in keys[:, 0]])
    prior = careless()._replace(encode=Partial(lambda x: StandardNormal((2,))))
    found = log_marginals(prior, jax.random.key(0), jnp.asarray(XS), noisy, 7)
    assert close(found.value, np.sum(norm.logpdf(xs, 0.1), axis=1))
    assert close(found.ess, np.full(3, 7.0))
    away = log_marginals(careless(), jax.random.key(0), jnp.asarray(XS), noisy, 7)
    assert np.all(away.ess < 6.9)


def test_what_is_drawn_and_said_of_a_model(x64):
    xs, key = jnp.asarray(XS), jax.random.key(0)
    model: Any = VAE(
        encode=Partial(lambda x: Normal(2.0 * x, jnp.exp(x))),
        decode=Partial(lambda z: Normal(3.0 * z, jnp.ones(2))),
        prior=StandardNormal((2,)),
    )
    assert close(largest_log_scale(model, xs), 2.0)
    full = model._replace(
        encode=Partial(lambda x: MultivariateNormal(x, jnp.diag(jnp.exp(x)).at[1, 0].set(99.0)))
    )
    assert close(largest_log_scale(full, xs), 2.0)
    eps = np.stack([jax.random.normal(k, (2,)) for k in jax.random.split(jax.random.clone(key), 3)])
    assert close(inputs(jax.random.clone(key), xs, noisy), XS + eps)
    assert close(generated(model, jax.random.clone(key), 3), 3.0 * eps)
    assert close(
        reconstructed(model, jax.random.clone(key), xs), 3.0 * (2.0 * XS + np.exp(XS) * eps)
    )


RATES = [0.5 * a**2 * np.mean(np.arange(20.0) ** 2) for a in (0.1, 0.001, 0.0)]  # mu^2 / 2


def test_the_report_says_what_was_measured(tmp_path, monkeypatch, capsys):
    """Four rows of twenty drawn at random; each number in its place, in the file and the table."""
    images = np.arange(20.0).reshape(20, 1, 1, 1)
    measured = LogMarginal(
        value=jnp.array([-9.0, -2.0, -4.0, -5.0]),
        standard_error=jnp.array([0.1, 0.5, 0.5, 0.7]),  # squares of 1 in all: 1 / 4 of the mean
        ess=jnp.array([3.0, 11.0, 9.0, 50.0]),
        pareto_k=jnp.zeros(4),
        reliable=jnp.array([True, True, True, False]),
        rate=jnp.ones(4),
    )
    rows = []

    def log_marginals(model, key, images, transform, num_samples):
        assert num_samples == 60
        rows.extend(images.ravel().tolist())
        return measured

    # 12.5 less on average, whichever four are drawn: the gap is -5 + 12.5
    of_each = Evaluation(np.full(20, -12.5), np.full(20, 4.25), np.full(20, 8.25))
    monkeypatch.setattr(report, "of_each", lambda *_: of_each)
    monkeypatch.setattr(report, "log_marginals", log_marginals)
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *given: drawn.append(given[6]))
    model = VAE(  # of three latents one that varies by 0.1^2 (20^2 - 1) / 12, and one by little
        encode=Partial(lambda x: Normal(jnp.array([0.1, 0.001, 0.0]) * x.ravel(), jnp.ones(3))),
        decode=Partial(lambda z: Normal(z[:1], 1.0)),
        prior=StandardNormal((3,)),
    )
    data: Any = SimpleNamespace(name="numbers", test=SimpleNamespace(images=images, labels=None))
    config = {"eval_images": 4, "eval_samples": 60}
    report.report(
        tmp_path, data, model, jax.random.key(0), lambda _, x: x, config, skipped=2, lines=[]
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {
        "test_images": 20,
        "elbo": -12.5,
        "rate": 4.25,
        "distortion": 8.25,
        "log_marginal": -5.0,
        "log_marginal_standard_error": pytest.approx(0.25),
        "log_marginal_images": 4,
        "log_marginal_samples": 60,
        "ess_median": 10.0,
        "ess_least": 3.0,
        "log_marginal_reliable": 0.75,
        "gap": 7.5,
        "active_units": 1,
        "latent": 3,
        "rate_per_latent": pytest.approx(RATES, rel=1e-5),
        "skipped_updates": 2,
    }
    assert drawn[0].skipped == 2
    assert len(set(rows)) == 4
    assert sorted(rows) != [0.0, 1.0, 2.0, 3.0]
    table = " ".join(capsys.readouterr().out.split())
    for said in ("-12.50", "4.25", "8.25", "-5.00 ± 0.25", "10 (3)", "75%"):
        assert said in table
