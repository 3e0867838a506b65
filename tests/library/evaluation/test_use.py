"""A model in use: the numbers of one row at a time, whatever the batch, the gaps or a frame."""

import warnings
import weakref
from functools import cache
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx
from jax.tree_util import Partial
from scipy.stats import norm

import jaxvae
from jaxvae import evaluation, nn, use
from jaxvae.checks import OutsideSupportError
from jaxvae.distributions import Masked
from jaxvae.evaluation.one_row import entries_of
from jaxvae.models import ppca
from jaxvae.protocols import MissingMethodError
from jaxvae.pytrees.libraries import functional
from tests.common import close

KEY = jax.random.key(0)
LINEAR = ppca.PPCA(
    jnp.array([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]]), jnp.array([0.1, 0.0, -0.2]), jnp.array(0.5)
)
MODEL = ppca.as_vae(LINEAR)
XS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@cache
def scores():
    return use.score(MODEL, KEY, XS, num_samples=4)


@pytest.mark.thorough
def test_the_bound_of_every_row_is_its_own():
    """With the exact posterior every weight is p(x)."""
    exact = jax.vmap(lambda x: ppca.log_marginal(LINEAR, x))(jnp.asarray(XS))
    np.testing.assert_allclose(scores().iwae, exact, rtol=1e-4)
    np.testing.assert_allclose(scores().elbo, exact, rtol=1e-4)
    np.testing.assert_allclose(scores().per_observed, exact / 3, rtol=1e-4)
    assert scores().observed.tolist() == [3.0] * 7


@pytest.mark.parametrize("owner", ["score", "evaluate"])
def test_rows_outside_the_support_are_told(owner):
    """How many there are, and the first; their log p(x) stays -inf."""
    encode = Partial(lambda w, x: jaxvae.Normal(w * x, jnp.ones(2)), jnp.ones(2))
    decode = Partial(lambda z: jaxvae.Poisson(jnp.exp(z)))
    model = jaxvae.VAE(encode, decode, jaxvae.StandardNormal((2,)))
    key, xs = jax.random.key(3), np.ones((5, 2), np.float32)
    xs[[2, 4], 1] = 0.5, -1.0
    told = f"^{owner}: log p.x. is -inf at 2 of 5 rows, first at 2, which the likelihood"
    with pytest.warns(UserWarning, match=told) as warned:
        found = (
            use.score(model, key, xs, num_samples=2).iwae
            if owner == "score"
            else evaluation.evaluate(model, key, xs, num_samples=2).rows.value
        )
    assert np.isneginf(found).tolist() == [False, False, True, False, True]
    assert [w.filename for w in warned] == [__file__]


@pytest.mark.thorough
@pytest.mark.parametrize("owner", ["score", "evaluate"])
def test_rows_of_nan_are_told(owner):
    xs = XS.copy()
    xs[[2, 4], 1] = np.nan
    told = f"^{owner}: log p.x. is NaN at 2 of 7 rows, first at 2, as there is NaN in them"
    function = {"score": use.score, "evaluate": evaluation.evaluate}[owner]
    with pytest.warns(UserWarning, match=told):
        function(MODEL, jax.random.key(5), xs, num_samples=2)


def test_what_the_gaps_are_filled_by_is_told_where_the_rest_is_impossible():
    parts = {"b": jaxvae.Bernoulli(jnp.zeros(1)), "n": jaxvae.Poisson(jnp.full((1,), 2.0))}
    model = jaxvae.VAE(
        Partial(lambda event: jaxvae.StandardNormal((1,))),
        Partial(lambda z: Masked(jaxvae.Product(parts))),
        jaxvae.StandardNormal((1,)),
    )
    frame = pd.DataFrame({"b": [0.0, 0.5], "n": [np.nan, np.nan]})
    with pytest.warns(UserWarning, match="^impute: log p.x. is -inf at 1 of 2 rows, first at 1,"):
        filled = use.impute(model, KEY, frame, num_samples=3)
    assert close(filled["n"].to_numpy(np.float32)[0], 2.0)
    event = (
        {"b": jnp.array([0.5]), "n": jnp.zeros(1)},
        {"b": jnp.ones(1, bool), "n": ~jnp.ones(1, bool)},
    )
    with pytest.warns(UserWarning, match="^impute: log p.x. is -inf at 1 of 1 rows"):
        evaluation.impute(model, jax.random.key(1), event, num_samples=3)
    with pytest.warns(UserWarning, match="^multiple_imputations: log p.x. is -inf at 1 of 1 rows"):
        evaluation.multiple_imputations(model, jax.random.key(2), event, num_samples=3, num_draws=2)


def test_channels_that_are_coupled_are_scored_together_and_drawn():
    """They have no mean, and no parts: one number an event, and a word on what to do instead."""
    one = jnp.ones((3, 3))
    decode = Partial(lambda a, z: jaxvae.DiscretizedLogistic(a[0] * z, 1.0, a), one)
    encode = Partial(lambda a, x: jaxvae.Normal(jaxvae.rescale(None, x[:1]), a[0, :1]), one)
    model = jaxvae.VAE(encode, decode, jaxvae.StandardNormal((1,)))
    xs = use.generate(model, KEY, 4)
    found = use.score(model, KEY, xs, num_samples=2)
    np.testing.assert_allclose(found.elbo, -found.rate - found.entries, rtol=1e-4)
    zs = np.ones((4, 1), np.float32)
    for call, first in (
        (lambda: use.decode(model, zs), r"decode: give it a key, use.decode\(model, zs, key=key\)"),
        (lambda: use.reconstruct(model, KEY, xs), r"reconstruct: draw, use.decode\(model, use.enc"),
        (lambda: use.generate(model, KEY, 4, mean=True), "generate: leave out mean=True, and it"),
        (lambda: evaluation.decode_all(model, zs), r"decode_all: use.decode\(model, zs, key=key\)"),
    ):
        with pytest.raises(MissingMethodError, match=f"^{first}.*; Disc.* no mean") as error:
            call()
        assert "\n" not in str(error.value).split("\n---")[0]
    assert use.decode(model, use.encode(model, xs), key=KEY).shape == (4, 3)


def test_rate_and_entries_make_the_elbo():
    np.testing.assert_allclose(scores().elbo, -scores().rate - scores().entries.sum(1), rtol=1e-4)


def test_an_entry_is_what_its_own_density_says():
    """-log N(x_i; w_i z, s^2), z known; the odd one sticks out."""
    encode = Partial(lambda x: jaxvae.Normal(x[:1], jnp.full(1, 1e-6)))
    decode = Partial(
        lambda w, z: jaxvae.Normal(w * z, jnp.full(3, 0.5)), jnp.array([1.0, 2.0, 3.0])
    )
    model = jaxvae.VAE(encode, decode, jaxvae.StandardNormal((1,)))
    xs = np.array([[1.0, 2.0, 3.5], [1.0, 9.0, 3.0]], np.float32)
    found = use.score(model, KEY, xs, num_samples=2).entries
    z = xs[:, :1]
    exact = 0.5 * np.log(2 * np.pi * 0.25) + (xs - z * np.array([1, 2, 3])) ** 2 / 0.5
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert found[1].argmax() == 1


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_batch_size_changes_nothing(size):
    again = use.score(MODEL, KEY, XS, num_samples=4, batch_size=size)
    for a, b in zip(again, scores(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for f in (use.reconstruct, lambda model, key, xs, **o: use.encode(model, xs, key=key, **o)):
        found, expected = f(MODEL, KEY, XS, batch_size=size), f(MODEL, KEY, XS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    few = use.generate(MODEL, KEY, 4, batch_size=size)
    np.testing.assert_allclose(few, use.generate(MODEL, KEY, 7)[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_rows_are_what_one_example_is():
    zs = use.encode(MODEL, XS)
    assert close(zs[2], MODEL.encode(XS[2]).mean())
    assert close(use.decode(MODEL, zs)[3], MODEL.decode(zs[3]).mean())
    key = jax.random.fold_in(KEY, 5)
    expected = jaxvae.reconstruct(MODEL, key, XS[5]).mean()
    np.testing.assert_allclose(use.reconstruct(MODEL, KEY, XS)[5], expected, rtol=1e-5)
    z_key, x_key = jax.random.split(jax.random.fold_in(KEY, 1))
    new = jaxvae.generate(MODEL, z_key)  # one z of a key, for the mean and for the draw
    np.testing.assert_allclose(use.generate(MODEL, KEY, 2, mean=True)[1], new.mean(), rtol=1e-5)
    np.testing.assert_allclose(use.generate(MODEL, KEY, 2)[1], new.sample(x_key), rtol=1e-5)
    drawn = use.decode(MODEL, use.encode(MODEL, XS, key=KEY))
    np.testing.assert_allclose(use.reconstruct(MODEL, KEY, XS), drawn, rtol=1e-5)


def test_draws_are_of_the_model():
    xs = use.generate(MODEL, KEY, 20_000, batch_size=5000)
    weight = np.asarray(LINEAR.weight, np.float64)
    covariance = weight @ weight.T + 0.5 * np.eye(3)
    error = 6 * np.sqrt(2 / 20_000) * covariance.max()
    np.testing.assert_allclose(np.cov(xs.T), covariance, atol=error)
    drawn = use.decode(MODEL, np.zeros((20_000, 2), np.float32), key=KEY)
    np.testing.assert_allclose(drawn.var(0), 0.5, rtol=6 * np.sqrt(2 / 20_000))


def test_all_batches_are_one_program():
    traced = []

    def encode(x):
        traced.append(None)
        return jaxvae.Normal(x, jnp.ones(3))

    model = MODEL._replace(encode=Partial(encode))
    use.encode(model, XS, batch_size=2)
    count = len(traced)
    use.encode(model, XS[:5], batch_size=2)
    assert len(traced) == count


def test_networks_are_as_in_use():
    def network(in_shape, out_shape, *, rngs):
        norm = nnx.BatchNorm(in_shape[0], rngs=rngs)
        return nnx.Sequential(norm, nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 4, rngs=rngs))

    encode: Any = nn.Conditional(network, nn.NormalHead(), (3,), (2,), rngs=nnx.Rngs(0))
    model = MODEL._replace(encode=encode)
    zs = use.encode(model, XS)
    np.testing.assert_allclose(zs[:2], use.encode(model, XS[:2]), rtol=1e-5)
    np.testing.assert_allclose(zs, use.encode(functional(model), XS), rtol=1e-5)


# Gaps. p(x_i|z) = N(z, 0.1) of two entries, q the exact posterior.


def seen_posterior(event):
    x, mask = event
    precision = 1.0 + jnp.sum(mask, dtype=jnp.float32) / 0.01
    return jaxvae.Normal(jnp.sum(jnp.where(mask, x, 0.0)) / 0.01 / precision, precision**-0.5)


def both(z):
    return Masked(jaxvae.Normal(jnp.stack([z, z]), jnp.full(2, 0.1)))


GAPS = jaxvae.VAE(Partial(seen_posterior), Partial(both), jaxvae.StandardNormal(()))
HOLES = np.array([[1.0, np.nan], [1.0, 1.1], [np.nan, -0.4]], np.float32)


def test_a_choice_is_one_entry_however_it_is_coded():
    head = nn.ProductHead((("size", nn.NormalHead(1.0), (2,)), ("kind", nn.OneHotHead(), (4,))))
    whole = Partial(lambda z: head(jnp.zeros(6) + z))
    decode = Partial(lambda z: Masked(whole(z)))
    model = jaxvae.VAE(
        Partial(lambda event: jaxvae.Normal(0.0, 1.0)), decode, jaxvae.StandardNormal(())
    )
    xs = {"size": np.zeros((2, 2), np.float32), "kind": np.eye(4, dtype=np.float32)[:2]}
    masks = {"size": np.array([[1, 1], [1, 0]], bool), "kind": np.array([True, False])}
    with pytest.warns(UserWarning, match="1 to 3 observed entries"):
        found = use.score(model, KEY, (xs, masks), num_samples=2)
    assert found.observed.tolist() == [3.0, 1.0]
    found = use.score(model._replace(decode=whole), KEY, xs, num_samples=2)
    assert found.observed.tolist() == [3.0, 3.0]


def test_rows_with_different_gaps_are_not_compared_unwarned():
    with pytest.warns(UserWarning, match=r"1 to 2 observed entries.*per_observed"):
        found = use.score(GAPS, KEY, HOLES)
    normal = lambda x, var: -0.5 * (np.log(2 * np.pi * var) + x**2 / var)
    np.testing.assert_allclose(found.iwae[[0, 2]], normal(HOLES[[0, 2], [0, 1]], 1.01), rtol=1e-4)
    assert found.observed.tolist() == [1.0, 2.0, 1.0]
    np.testing.assert_allclose(found.per_observed, found.iwae / [1, 2, 1], rtol=1e-6)
    assert (found.entries == 0).tolist() == np.isnan(HOLES).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = (np.nan_to_num(HOLES), ~np.isnan(HOLES))
        alone = use.score(GAPS, KEY, jax.tree.map(lambda a: a[[0]], pair))
    np.testing.assert_allclose(alone.iwae[0], found.iwae[0], rtol=1e-5)


def test_gaps_are_filled_and_nothing_else():
    filled = use.impute(GAPS, KEY, HOLES)
    np.testing.assert_allclose(filled[[0, 2], [1, 0]], [1 / 1.01, -0.4 / 1.01], atol=0.02)
    seen = ~np.isnan(HOLES)
    np.testing.assert_array_equal(filled[seen], HOLES[seen])


def test_draws_in_the_gaps_spread_as_the_posterior_leaves_open():
    """N(x_0 / 1.01, 0.01 + 1 / 101), and a frame for each draw."""
    draws = use.impute(GAPS, KEY, HOLES, num_samples=500, num_draws=2000)
    assert draws.shape == (3, 2000, 2)
    seen = ~np.isnan(HOLES)
    assert (draws.swapaxes(1, 2)[seen] == HOLES[seen][:, None]).all()
    ends = norm(1 / 1.01, (0.01 + 1 / 101) ** 0.5).ppf([0.05, 0.5, 0.95])
    np.testing.assert_allclose(np.quantile(draws[0, :, 1], [0.05, 0.5, 0.95]), ends, atol=0.025)
    frame = pd.DataFrame(HOLES, columns=["x", "y"], index=["a", "b", "c"])
    first, second = use.impute(GAPS, KEY, frame, num_samples=500, num_draws=2)
    assert (first.index == frame.index).all()
    assert first.loc["a", "y"] != second.loc["a", "y"]
    assert first.loc["a", "x"] == second.loc["a", "x"] == 1.0


@pytest.mark.thorough
def test_entries_of_pixels_tables_and_wholes():
    pixels = jaxvae.Normal(jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3)))
    x, mask = jnp.ones((2, 2, 3)), jnp.array([[True, False], [True, True]])
    found = entries_of(Masked(pixels), (x, mask))
    one = -0.5 * (np.log(2 * np.pi) + 1)
    np.testing.assert_allclose(found, one * np.asarray(mask)[..., None] * np.ones(3), rtol=1e-6)
    table = jaxvae.Product({"a": jaxvae.Normal(jnp.zeros(2), 1.0),
                            "b": jaxvae.OneHotCategorical(jnp.zeros((1, 4)))})  # fmt: skip
    entries = entries_of(table, {"a": jnp.ones(2), "b": jnp.eye(4)[:1]})
    np.testing.assert_allclose(entries["a"], one, rtol=1e-6)
    np.testing.assert_allclose(entries["b"], [-np.log(4)], rtol=1e-6)
    whole = jaxvae.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    assert close(entries_of(whole, jnp.ones(3)), 3 * one)


@pytest.mark.thorough
@pytest.mark.parametrize("xs", [HOLES, {"a": HOLES[:, 0], "b": HOLES[:, 1:]}])
def test_nan_that_a_mask_says_was_seen_is_refused_with_its_row(xs):
    """Before the work, in every function of rows and in one event."""
    seen = ~np.isnan(HOLES) | (np.arange(3) == 2)[:, None]
    table = isinstance(xs, dict)
    mask = {"a": seen[:, 0], "b": seen[:, 1:]} if table else seen
    part, at = (r"\['a'\]", r"\(2,\)") if table else ("", r"\(2, 0\)")
    decode = both
    if table:
        two = {"a": jaxvae.Normal(0.0, 1.0), "b": jaxvae.Normal(jnp.zeros(1), 1.0)}
        decode = lambda z: Masked(jaxvae.Product(two))
    normal = Partial(lambda event: jaxvae.Normal(0.0, 1.0))
    model = jaxvae.VAE(normal, Partial(decode), jaxvae.StandardNormal(()))
    pair = (xs, mask)
    for call in (
        lambda: use.score(model, KEY, pair),
        lambda: use.impute(model, KEY, pair),
        lambda: evaluation.evaluate(model, KEY, pair, num_samples=2),
        lambda: evaluation.encode_all(model, pair),
        lambda: evaluation.active_units(model, pair),
        lambda: evaluation.rate_per_latent(model, pair),
        lambda: evaluation.rate_decomposition(model, KEY, pair),
    ):
        with pytest.raises(ValueError, match=f"xs{part} holds nan at {at}, expected a number wher"):
            call()
    with pytest.raises(ValueError, match=f"^score: batch 1 of xs{part} holds nan"):
        use.score(model, KEY, [jax.tree.map(lambda a: a[:1], pair), pair])
    one = jax.tree.map(lambda a: a[2], pair)
    place = "" if table else r" at \(0,\)"
    with pytest.raises(
        ValueError, match=f"^log_marginal: x{part} holds nan{place}, expected a num"
    ):
        jaxvae.log_marginal(model, KEY, one, num_samples=2)
    with pytest.raises(OutsideSupportError, match=rf"^Masked: x{part} holds nan"):
        jaxvae.elbo(model, KEY, one)
    hidden = jax.tree.map(lambda a: a[0], (xs, mask))
    assert np.isfinite(jaxvae.elbo(model, KEY, hidden)[0])


@pytest.mark.thorough
def test_fit_says_that_a_nan_was_marked_as_seen():
    pair = (
        np.where(np.eye(4, 2, dtype=bool), np.nan, 1.0).astype(np.float32),
        np.ones((4, 2), bool),
    )
    optimizer = optax.sgd(0.1)
    model = GAPS._replace(encode=Partial(lambda s, event: jaxvae.Normal(s, 1.0), jnp.ones(())))
    with pytest.raises(
        ArithmeticError, match=r"row \d of the data: Masked: x holds nan at \(\d,\)"
    ):
        jaxvae.fit(
            jaxvae.train_step(jaxvae.elbo, optimizer),
            jaxvae.init_state(model, optimizer),
            KEY,
            pair,
            epochs=1,
            batch_size=4,
        )


def test_bytes_for_a_model_of_floats_are_refused():
    """As 0 to 255 for what was trained on [0, 1]; zeros and ones are right, and so are floats."""
    pixels = np.array([[0, 200, 3], [1, 1, 1]], np.uint8)
    refused = (
        "holds bytes up to 200, expected float32 as the model draws; scale them as in tr.*/ 255"
    )
    for call in (
        lambda: use.encode(MODEL, pixels),
        lambda: use.score(MODEL, KEY, [pixels, pixels[1:]]),
        lambda: evaluation.evaluate(MODEL, KEY, pixels, num_samples=2),
        lambda: evaluation.active_units(MODEL, jnp.asarray(pixels)),
        lambda: jaxvae.log_marginal(MODEL, KEY, pixels[0], num_samples=2),
    ):
        with pytest.raises(ValueError, match=refused) as error:
            call()
        assert "\n" not in str(error.value)
    floats = pixels.astype(np.float32)
    assert use.encode(MODEL, floats).shape == (2, 2)
    with jax.numpy_dtype_promotion("standard"):  # as a user has it
        ones = use.encode(MODEL, pixels[1:])
    np.testing.assert_allclose(ones, use.encode(MODEL, floats[1:]), rtol=1e-5)


# Streams: the numbers of the whole array, in its order.


def parts(xs):
    """Three rows, two, one and one."""
    cuts = (slice(3), slice(3, 5), slice(5, 6), slice(6, 7))
    return [jax.tree.map(itemgetter(cut), xs) for cut in cuts]


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, i):
        return self.batches[i]


METHODS = {
    "encode": lambda xs: use.encode(MODEL, xs, key=KEY, batch_size=2),
    "decode": lambda zs: use.decode(MODEL, zs, key=KEY, batch_size=2),
    "reconstruct": lambda xs: use.reconstruct(MODEL, KEY, xs, batch_size=2),
    "score": lambda xs: use.score(MODEL, KEY, xs, num_samples=3, batch_size=2),
    "impute": lambda xs: use.impute(GAPS, KEY, xs, num_samples=3, batch_size=2),
}
OF_METHODS = {"decode": XS[:, :2], "impute": np.where(XS[:, :2] > 1, np.nan, XS[:, :2])}


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_gives_what_the_array_gives(name):
    method, xs = METHODS[name], OF_METHODS.get(name, XS)
    whole = method(xs)
    for stream in (parts(xs), iter(parts(xs)), Loader(parts(xs)), lambda: (yield from parts(xs))):
        jax.tree.map(np.testing.assert_array_equal, method(stream), whole)


def test_a_stream_may_have_pairs_frames_and_lists():
    pair = (np.nan_to_num(HOLES), ~np.isnan(HOLES))
    of_pairs = use.impute(GAPS, KEY, iter([pair]), num_samples=3)
    np.testing.assert_array_equal(of_pairs, use.impute(GAPS, KEY, pair, num_samples=3))
    zs = use.encode(MODEL, XS, batch_size=3)
    frame = pd.DataFrame(XS, columns=["a", "b", "c"])
    for stream in (parts(frame), [part.tolist() for part in parts(XS)]):
        np.testing.assert_array_equal(use.encode(MODEL, stream, batch_size=3), zs)


def test_a_stream_is_one_program_and_its_rows_are_not_kept():
    traced, every, most = [], [], []

    def encode(x):
        traced.append(None)
        return jaxvae.Normal(x, jnp.ones(3))

    def batches():
        for n in (2, 5, 1, 4, 2, 2):
            batch = np.ones((n, 3), np.float32)
            every.append(weakref.ref(batch))
            yield batch
            del batch
            most.append(sum(ref() is not None for ref in every))

    model = MODEL._replace(encode=Partial(encode))
    use.encode(model, XS, batch_size=2)
    count = len(traced)
    assert use.encode(model, batches).shape == (16, 3)
    assert len(traced) == count
    assert max(most) <= 3


def test_a_batch_of_a_stream_that_will_not_do_is_named():
    refused = [
        (iter([]), r"^encode: xs gave no batch, expected at least one$"),
        ([XS, XS[:, :2]], r"^encode: batch 1 of xs has rows of float32\[2\], expected rows of flo"),
        ([XS[:, :2]], r"^encode: batch 0 of xs has rows of shape \(2,\), expected \(3,\)"),
        ([XS, "x"], r"^encode: batch 1 of xs is "),
        (
            [XS, XS[:0]],
            r"^encode: batch 1 of xs has float32\[0, 3\], expected arrays of one number",
        ),
        ([*XS], r"^encode: batch 0 of xs has rows of shape \(\), expected \(3,\)"),
    ]
    for stream, message in refused:
        with pytest.raises((TypeError, ValueError), match=message) as error:
            use.encode(MODEL, stream)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^decode: zs has leading axes"):
        use.decode(MODEL, (XS, XS[:2]))


# Frames.


def test_a_frame_keeps_its_columns_and_gets_the_results_beside():
    frame = pd.DataFrame(XS, columns=["a", "b", "c"], index=[*"tuvwxyz"])
    scored = use.score(MODEL, KEY, frame, num_samples=4)
    assert [*scored.columns] == [
        *["a", "b", "c", "iwae", "elbo", "rate", "observed", "per_observed"],
        *["nats a", "nats b", "nats c"],
    ]
    assert [*scored.index] == [*"tuvwxyz"]
    np.testing.assert_allclose(scored["iwae"], scores().iwae, rtol=1e-5)
    np.testing.assert_allclose(scored["nats b"], scores().entries[:, 1], rtol=1e-5)
    encoded = use.encode(MODEL, frame)
    assert [*encoded.columns] == ["a", "b", "c", "z 0", "z 1"]
    np.testing.assert_allclose(encoded["z 1"], use.encode(MODEL, XS)[:, 1], rtol=1e-5)
    assert [*use.reconstruct(MODEL, KEY, frame).columns][3:] == [
        f"reconstructed {name}" for name in "abc"
    ]
    holes = pd.DataFrame(HOLES, columns=["x", "y"])
    filled = use.impute(GAPS, KEY, holes)
    np.testing.assert_allclose(filled.to_numpy(), use.impute(GAPS, KEY, HOLES), rtol=1e-6)


@pytest.mark.parametrize(
    ("use_it", "name"),
    [
        (lambda frame: use.score(MODEL, KEY, frame), "rate"),
        (lambda frame: use.score(MODEL, KEY, frame), "nats a"),
        (lambda frame: use.encode(MODEL, frame), "z 1"),
        (lambda frame: use.reconstruct(MODEL, KEY, frame), "reconstructed b"),
    ],
)
def test_a_result_takes_no_column_s_place(use_it, name):
    frame = pd.DataFrame(XS, columns=["a", "b", name])
    with pytest.raises(ValueError, match=f"there is a column '{name}' already, expected none"):
        use_it(frame)


def test_levels_of_latents_are_columns():
    model = jaxvae.VAE(
        Partial(lambda x: jaxvae.Joint(jaxvae.Normal(x[:2], jnp.ones(2)), _below)),
        Partial(lambda z: jaxvae.Normal(jnp.zeros(3) + z[1], jnp.ones(3))),
        jaxvae.Joint(jaxvae.StandardNormal((2,)), _below),
    )
    found = use.encode(model, pd.DataFrame(XS, columns=["a", "b", "c"]), key=KEY)
    assert [*found.columns] == ["a", "b", "c", "z 0 0", "z 0 1", "z 1"]
    z = use.encode(model, XS, key=KEY)
    np.testing.assert_allclose(found["z 0 1"], z[0][:, 1], rtol=1e-6)
    np.testing.assert_allclose(found["z 1"], z[1], rtol=1e-6)


_below = Partial(lambda z: jaxvae.Normal(jnp.sum(z), 1.0))


def test_gaps_of_columns_that_no_word_names_are_filled_too():
    exact = use.impute(GAPS, KEY, HOLES)
    filled = use.impute(GAPS, KEY, pd.DataFrame(HOLES))  # names 0 and 1
    np.testing.assert_allclose(filled.to_numpy(), exact, rtol=1e-6)
    whole = pd.DataFrame({"x": [1.0, 2.0], "y": pd.array([1, None], dtype="Int64")})
    filled = use.impute(GAPS, KEY, whole)
    exact = use.impute(GAPS, KEY, np.array([[1.0, 1.0], [2.0, np.nan]], np.float32))
    np.testing.assert_allclose(filled.to_numpy(float), exact, rtol=1e-6)


def test_a_part_of_a_label_is_refused():
    """Not cut off: 1.7 was scored as 1."""
    parts = {"n": jaxvae.Categorical(jnp.zeros(3)), "x": jaxvae.Normal(0.0, 1.0)}
    model = jaxvae.VAE(
        Partial(lambda x: jaxvae.StandardNormal((1,))),
        Partial(lambda z: jaxvae.Product(parts)),
        jaxvae.StandardNormal((1,)),
    )
    frame = pd.DataFrame({"n": [1.0, 2.0], "x": [0.0, 0.0]})
    assert np.isfinite(use.score(model, KEY, frame)["iwae"]).all()
    with pytest.raises(ValueError, match=r"column 'n' holds 1\.7, expected whole numbers"):
        use.score(model, KEY, frame.assign(n=[1.0, 1.7]))


def test_a_frame_of_named_columns_in_any_order():
    parts = {"n": jaxvae.Poisson(jnp.ones(1)), "x": jaxvae.Normal(jnp.zeros(1), jnp.ones(1))}
    model = jaxvae.VAE(
        Partial(lambda x: jaxvae.StandardNormal((1,))),
        Partial(lambda z: jaxvae.Product(parts)),
        jaxvae.StandardNormal((1,)),
    )
    frame = pd.DataFrame({"x": [0.5, 1.5], "label": ["a", "b"], "n": [1, 2]})
    scored = use.score(model, KEY, frame, num_samples=1)
    np.testing.assert_allclose(scored["nats n"], [1.0, 1.0 + np.log(2)], rtol=1e-5)
    assert [*scored["label"]] == ["a", "b"]


def test_what_is_refused_is_refused_in_a_line():
    frame = pd.DataFrame(XS, columns=["a", "b", "c"])
    flow = nn.FlowHead(nn.NormalHead(), nn.CouplingFlow(2, rngs=nnx.Rngs(0)))
    drawn: Any = nn.Conditional(nn.MLP, flow, (3,), (2,), rngs=nnx.Rngs(0))
    refused = [
        (
            lambda: use.encode(MODEL, frame[["a"]]),
            ValueError,
            r"encode: xs has 1 columns, expected",
        ),
        (lambda: use.encode(MODEL, frame.assign(b="x")), TypeError, "encode: column 'b' holds"),
        (lambda: use.encode(MODEL, frame[:0]), ValueError, "encode: xs is a frame without rows"),
        (lambda: use.encode(MODEL, None), TypeError, "encode: xs is None, expected an array"),  # pyright: ignore
        (lambda: use.score(MODEL, KEY, "x"), TypeError, "score: xs is a str, expected an array"),
        (lambda: use.encode(MODEL, XS[0]), ValueError, r"encode: xs has rows of shape \(\), expec"),
        (
            lambda: use.encode(MODEL, XS[:, :2]),
            ValueError,
            r"xs has rows of shape \(2,\), expected",
        ),
        (lambda: use.encode(MODEL, XS, batch_size=0), ValueError, "encode: batch_size is 0"),
        (
            lambda: use.encode(MODEL._replace(encode=drawn), XS),
            MissingMethodError,
            "^encode: give it a",
        ),
        (lambda: use.generate(MODEL, KEY, 0), ValueError, "generate: n is 0"),
    ]
    for call, kind, message in refused:
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert use.encode(MODEL._replace(encode=drawn), XS, key=KEY).shape == (7, 2)


# conditional models


def of_label(shift, y):
    """p(x|y) = N(y shift, 2 I), its posterior exact."""
    encode = lambda x: jaxvae.Normal((x - y * shift) / 2.0, np.sqrt(np.full(2, 0.5, np.float32)))
    decode = lambda z: jaxvae.Normal(z + y * shift, np.ones(2, np.float32))
    return jaxvae.VAE(encode, decode, jaxvae.StandardNormal((2,)))


@pytest.mark.thorough
def test_a_conditional_model_is_used_with_the_y_of_each_row():
    rng = np.random.default_rng(0)
    model = Partial(of_label, jnp.array([3.0, -1.0]))
    ys = rng.integers(0, 2, 5).astype(np.float32)
    at = ys[:, None] * np.array([3.0, -1.0], np.float32)
    xs, key = rng.normal(size=(5, 2)).astype(np.float32) + at, jax.random.key(0)
    expected = norm.logpdf(xs, at, np.sqrt(2.0)).sum(1)
    scores = use.score(model, key, xs, given=ys, num_samples=3, batch_size=2)
    np.testing.assert_allclose(scores.iwae, expected, rtol=1e-5)
    found = evaluation.evaluate(model, key, xs, given=ys, num_samples=3)
    np.testing.assert_allclose(found.rows.value, expected, rtol=1e-5)
    zs = use.encode(model, [xs[:3], xs[3:]], given=ys)  # a stream too
    np.testing.assert_allclose(zs, (xs - at) / 2.0, rtol=1e-5)
    means = use.decode(model, 0.0 * zs, given=ys)
    np.testing.assert_allclose(means, at, atol=1e-6)
    assert use.generate(model, key, 5, given=ys).shape == (5, 2)
    assert use.reconstruct(model, key, xs, given=ys).shape == (5, 2)
    for rows in (3, 6):
        with pytest.raises(ValueError, match=f"encode: given has {rows} rows"):
            use.encode(model, xs, given=np.ones(rows, np.float32))
    with pytest.raises(TypeError, match="given="):
        use.encode(model, xs)
    with pytest.raises(TypeError, match=r"given is for a conditional model, .* model is a VAE;"):
        use.generate(GAPS, key, 5, given=ys)


def test_rows_without_a_mask_are_refused_where_the_likelihood_has_one():
    with pytest.raises(
        ValueError, match=r"evaluate: xs is an? ndarray, expected the pair \(x, mask"
    ):
        evaluation.evaluate(GAPS, KEY, HOLES, num_samples=2)
