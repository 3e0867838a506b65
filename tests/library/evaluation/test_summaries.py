"""A summary against a model where all is exact, and what its numbers are taken to mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxvae as jv
from jaxvae.evaluation import Summary, advice, summarize
from jaxvae.evaluation.reading import RULES, lines
from jaxvae.models import VQVAE, Delta, ppca
from jaxvae.models.quantization import init_codebook
from jaxvae.protocols import is_certain

W = jnp.array([[1.0, 0.0], [0.5, 0.0], [-0.3, 0.0]])  # the second latent is of no use
XS = np.asarray(jax.random.normal(jax.random.key(1), (200, 3)))


@pytest.mark.thorough
def test_a_summary_is_exact_where_the_posterior_is_too_wide_by_a_known_factor(x64):
    """q = N(m, c^2 S) for the exact N(m, S) loses KL = sum (c^2 - 1) / 2 - log c on every row."""
    with jax.enable_x64(True):
        linear = ppca.PPCA(jnp.asarray(W, float), jnp.zeros(3), jnp.array(0.5))
        exact = ppca.as_vae(linear)
        c = 1.2

        def encode(x):
            q = exact.encode(x)
            return jv.MultivariateNormal(q.loc, c * q.scale_tril)

        xs = jnp.asarray(XS, float)
        found = summarize(
            exact._replace(encode=Partial(encode)), jax.random.key(0), xs, num_samples=400,
            num_rows=50,
        )  # fmt: skip
        log_p = np.asarray(jax.vmap(lambda x: ppca.log_marginal(linear, x))(xs))
    gap = 2 * ((c**2 - 1) / 2 - np.log(c))
    assert (found.rows, found.estimated, found.num_samples) == (200, 50, 400)
    assert (found.latents, found.active) == (2, 1)
    assert abs(found.gap - gap) < 0.02
    assert abs(found.elbo - (np.mean(log_p) - gap)) < 0.02
    assert found.elbo == pytest.approx(-(found.rate + found.distortion))
    assert abs(found.spread - np.std(log_p)) < 0.1
    assert found.reliable > 0.9
    assert found.rates is None  # of a full covariance there is none for each


@pytest.mark.thorough
def test_rates_of_latents_are_those_of_the_posterior():
    model = jv.VAE(
        encode=Partial(lambda x: jv.Normal(x[:2] * jnp.array([1.0, 0.0]), jnp.ones(2))),
        decode=Partial(lambda z: jv.Normal(jnp.append(z, 0.0), 1.0)),
        prior=jv.StandardNormal((2,)),
    )
    found = summarize(model, jax.random.key(0), XS, num_samples=30)
    np.testing.assert_allclose(found.rates, np.array([np.mean(XS[:, 0] ** 2) / 2, 0.0]), rtol=1e-5)


def normal_model(**parts):
    model = jv.VAE(
        encode=Partial(lambda x: jv.Normal(x[:2], jnp.ones(2))),
        decode=Partial(lambda z: jv.Normal(jnp.append(z, 0.0), 1.0)),
        prior=jv.StandardNormal((2,)),
    )
    return model._replace(**parts)


def test_a_model_of_plain_functions_is_measured_like_one_of_partials():
    model = normal_model()
    plain = normal_model(
        encode=lambda x: jv.Normal(x[:2], jnp.ones(2)),
        decode=lambda z: jv.Normal(jnp.append(z, 0.0), 1.0),
    )
    found, expected = (summarize(m, jax.random.key(0), XS, num_samples=30) for m in (plain, model))
    np.testing.assert_array_equal(found.rates, expected.rates)
    assert found._replace(rates=None) == expected._replace(rates=None)


@pytest.mark.thorough
def test_a_conditional_model_is_measured_at_the_y_of_each_row(x64):
    """q(z|x, y) = N(y, 1) over N(0, 1): a rate of y^2 / 2, and x = z + noise has N(0, 2)."""
    with jax.enable_x64(True):
        ys, xs = jnp.linspace(0.0, 1.0, 40), jnp.linspace(-1.0, 1.0, 40)

        def at(y):
            return jv.VAE(lambda x: jv.Normal(0.0 * x + y, 1.0), lambda z: jv.Normal(z, 1.0),
                          jv.StandardNormal(()))  # fmt: skip

        found = summarize(at, jax.random.key(0), xs, given=ys, num_samples=4000, num_rows=5)
        np.testing.assert_allclose(found.rates, jnp.mean(ys**2) / 2, rtol=1e-6)
        at_one = summarize(at(ys[-1]), jax.random.key(0), xs, num_samples=30)
        assert at_one.rates == pytest.approx(0.5)
        chosen = np.asarray(jax.random.permutation(jax.random.split(jax.random.key(0), 5)[1], 40))
        log_p = jax.vmap(jv.Normal(0.0, jnp.sqrt(2.0)).log_prob)(xs[chosen[:5]])
        assert abs(found.log_marginal - jnp.mean(log_p)) < 5 * found.standard_error
    with pytest.raises(TypeError, match=r"of a function y -> model give model\(y\), given="):
        summarize(at, jax.random.key(0), XS)


@pytest.mark.thorough
def test_the_log_marginal_of_a_certain_code_is_told_as_a_bound():
    model = VQVAE(
        encoder=lambda x: x[:, None],
        quantizer=init_codebook(jnp.array([[-1.0], [1.0]])),
        decoder=lambda codes: jv.Normal(codes[:, 0], 1.0),
        prior=jv.Constant(jv.Categorical(jnp.zeros((3, 2)))),
    )
    one = jv.log_marginal(model, jax.random.key(0), jnp.asarray(XS[0]), num_samples=30)
    assert not one.reliable
    assert np.isinf(one.pareto_k)
    found = summarize(model, jax.random.key(0), XS, num_samples=30)
    assert (found.certain, found.reliable) == (True, 0.0)
    assert found.log_marginal == pytest.approx(found.elbo, rel=1e-5)
    shown = {line.name: line for line in lines(found)}
    assert shown["log p(x)"].value == f"at least {found.log_marginal:.2f}"
    assert shown["log p(x)"].trust.startswith("As a lower bound only: the code of a row is certain")
    assert shown["gap"].trust.startswith("It is at least this")
    assert shown["effective samples"].value == "1"
    said = advice(found)
    assert any("one importance sample" in text for text in said)
    assert not any("heavy a tail" in text for text in said)


CODE = Delta(jnp.array([1, 0]))
CERTAIN = {
    "a constant": jv.Constant(CODE),
    "a product": jv.Product({"top": CODE, "bottom": CODE}),
    "levels": jv.Joint(CODE, Partial(Delta)),
    "rows": jv.Independent(Delta(jnp.zeros((3, 2), int))),
}
UNCERTAIN = {
    "a product": jv.Product((CODE, jv.StandardNormal((2,)))),
    "levels": jv.Joint(CODE, Partial(lambda z: jv.Normal(z.astype(float), 1.0))),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_made_of_certain_codes_is_certain(name):
    assert is_certain(CERTAIN[name])


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_has_a_part_that_varies_is_not(name):
    assert not is_certain(UNCERTAIN[name])


def test_log_p_of_two_certain_codes_is_no_more_than_a_bound():
    p = jv.Categorical(jnp.zeros((2, 2)))
    model = jv.VAE(lambda x: jv.Product((CODE, CODE)), lambda z: jv.Normal(z[0].astype(float), 1.0),
                   jv.Product((p, p)))  # fmt: skip
    assert not jv.log_marginal(model, jax.random.key(0), jnp.zeros(2), num_samples=30).reliable


@pytest.mark.thorough
def test_levels_have_their_rates_and_what_has_none_a_reason():
    """Levels N(x, 1) over N(0, 1), then N(a + 1, 1) over N(a, 1): x^2 / 2 and 1/2 nats."""

    def unit(z):
        return jv.Normal(z, 1.0)

    def upper(x):
        return jv.Joint(unit(x[0]), Partial(lambda a: unit(a + 1.0)))

    two = jv.VAE(upper, lambda z: jv.Normal(z[1] * jnp.ones(3), 1.0),
                 jv.Joint(jv.StandardNormal(()), Partial(unit)))  # fmt: skip
    found = summarize(two, jax.random.key(0), XS, num_samples=30)
    assert (found.rates, found.no_rates) == (None, "")
    np.testing.assert_allclose(
        found.level_rates, np.array([np.mean(XS[:, 0] ** 2) / 2, 0.5]), rtol=1e-5
    )
    full = normal_model(encode=lambda x: jv.MultivariateNormal(x[:2], jnp.eye(2)))
    found = summarize(full, jax.random.key(0), XS, num_samples=30)
    assert found.rates is found.level_rates is None
    assert "Here q(z|x) is a MultivariateNormal and p(z) a StandardNormal;" in found.no_rates


GOOD = Summary(
    rows=1000, elbo=-80.0, rate=20.0, distortion=60.0, spread=9.0, log_marginal=-79.0,
    standard_error=0.01, estimated=1000, num_samples=500, ess=200.0, reliable=0.98, gap=1.0,
    latents=8, active=8,
)  # fmt: skip
FLAT = {"validation_elbo": np.full(100, -80.0)}
RISING = np.linspace(-100.0, -80.0, 100)
FALLING = np.concatenate([RISING, np.linspace(-80.0, -90.0, 100)])
SPIKE = np.where(np.arange(1000) == 990, -75.0, -80.0)
TURNED_ON = {  # rule: a change of the summary, curves, words of what is said
    "impossible": ({"log_marginal": -np.inf, "gap": -np.inf}, {}, "outside the support"),
    "collapsed": ({"active": 0, "rate": 0.5}, {}, "collapsed to the prior"),
    "unstable": ({"skipped": 3}, {}, "3 updates were not finite"),
    "unstable, by the curves": ({}, {"skipped": [True, False, True]}, "2 updates were not"),
    "unfinished": ({}, {"validation_elbo": RISING}, "the last tenth of the run gained 2.02 nats"),
    "overfitted": ({}, {"validation_loss": -FALLING}, "best after 50% of the run"),
    "loose": ({"gap": 3.0}, {}, "The ELBO is 3.00 nats below log p(x), for a rate of 20.00"),
    "untrusted": ({"reliable": 0.25}, {}, "for 75% of the rows"),
    "untrusted, as a code is certain": ({"certain": True}, {}, "one importance sample"),
    "imprecise": ({"standard_error": 0.2}, {}, "standard error of 0.20 nats"),
    "idle_levels": ({"level_rates": np.array([7.3, 0.3])}, {}, "1 of 2 levels of latents say next"),
    "idle": ({"active": 5}, {}, "3 of 8 latents are idle"),
}


def test_of_one_row_nothing_is_said_of_others():
    found = summarize(normal_model(), jax.random.key(0), XS[:1], num_samples=30)
    assert np.isnan(found.spread)
    assert lines(found)[0].trust.startswith("Of this row: how it varies")
    many = summarize(normal_model(), jax.random.key(0), XS, num_samples=30)
    scores = jv.use.score(
        normal_model(), jax.random.split(jax.random.key(0), 5)[0], XS, num_samples=10
    )
    np.testing.assert_allclose(many.spread, np.std(scores.elbo, ddof=1), rtol=1e-5)
    assert lines(GOOD._replace(elbo=-np.inf))[0].trust.startswith("No: to some row")


@pytest.mark.filterwarnings("ignore:score. log p.x. is NaN")
def test_rows_of_nan_are_refused_and_not_read_as_a_collapse():
    with pytest.raises(ValueError, match=r"^summarize: the ELBO is NaN at 1 of"):
        summarize(
            normal_model(),
            jax.random.key(0),
            np.where(np.arange(len(XS))[:, None] == 2, np.nan, XS),
            num_samples=30,
        )


def test_a_good_run_is_left_alone():
    assert advice(GOOD) == advice(GOOD, FLAT) == []


def test_every_rule_is_turned_on():
    assert {rule.__name__ for rule in RULES} == {name.split(",")[0] for name in TURNED_ON}


@pytest.mark.parametrize("rule", TURNED_ON)
def test_each_rule_is_turned_on_by_its_own_numbers_alone(rule):
    change, curves, words = TURNED_ON[rule]
    [said] = advice(GOOD._replace(**change), curves)
    assert words in said


@pytest.mark.parametrize(
    ("change", "curves"),
    [
        ({"gap": 1.9}, {}),  # below a tenth of the rate
        ({"gap": 0.09, "rate": 0.5}, {}),
        ({"standard_error": 0.09}, {}),
        ({"reliable": 0.9}, {}),
        ({"active": None}, {}),
        ({}, {"validation_elbo": np.append(RISING, np.full(100, -80.2))}),  # lost next to nothing
        ({}, {"train_loss": [0.0] * 5 + [-1.0] * 5}),  # too short to tell
        ({}, {"validation_elbo": -80.0 + np.random.default_rng(0).normal(size=100)}),
        ({}, {"validation_elbo": np.full(100, np.nan)}),
        ({}, {"validation_elbo": SPIKE}),  # of one lucky epoch at the end nothing follows
    ],
)
def test_what_is_within_bounds_is_not_spoken_of(change, curves):
    assert advice(GOOD._replace(**change), curves) == []


def test_a_rate_of_nothing_is_a_collapse_whatever_is_known_of_the_units():
    [said] = advice(GOOD._replace(rate=0.005, gap=0.05, active=None))
    assert "collapsed" in said


def test_of_what_cannot_be_trusted_the_error_is_not_spoken_of():
    [said] = advice(GOOD._replace(reliable=0.25, standard_error=0.2))
    assert "lower bound" in said


def test_training_is_looked_at_where_nothing_is_held_out():
    [said] = advice(GOOD, {"loss": -RISING})
    assert "It still learns" in said
    assert advice(GOOD, {"loss": -RISING, **FLAT}) == []


def test_every_number_has_a_line_with_its_meaning_and_trust():
    shown = {line.name: line for line in lines(GOOD)}
    assert shown["log p(x)"].value == "-79.00 ± 0.01"
    assert "0.28" in shown["ELBO"].trust  # 9 / sqrt(1000)
    assert shown["log p(x)"].trust.startswith("Yes: k-hat passes for 98%")
    assert shown["active latents"].value == "8 of 8"
    worse = {line.name: line for line in lines(GOOD._replace(reliable=0.5, active=None))}
    assert worse["log p(x)"].trust.startswith("As a lower bound only")
    assert worse["gap"].trust.startswith("It is at least this")
    assert worse["active latents"].value == "unknown of one row"
    nothing = {line.name: line for line in lines(GOOD._replace(log_marginal=-np.inf))}
    assert nothing["log p(x)"].trust.startswith("No:")
