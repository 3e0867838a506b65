"""Tables: kinds are what the columns hold, codes go there and back, and a model takes them."""

import datetime
import json
import re
import warnings
from decimal import Decimal
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import jaxvae
from jaxvae import nn, use
from jaxvae.nn.data_files import Rows
from jaxvae.nn.heads import open_categorical
from jaxvae.nn.preparation import preparation_of
from jaxvae.nn.stored_units import Coded, of_coded
from tests.common import close

KEY = jax.random.key(0)


def mixed(n=40):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(1e6, 1e4, n),
            "count": pd.array(rng.integers(0, 9, n), "Int64"),
            "flag": rng.integers(0, 2, n).astype(float),
            "grade": pd.Categorical(rng.choice(["low", "high"], n), ["low", "mid", "high"]),
            "home": rng.choice(["rent", "owner", "other"], n),
            "yes": rng.random(n) > 0.5,
            "name": [f"somebody {i}" for i in range(n)],
            "when": pd.date_range("2026-01-01", periods=n),
            "nothing": np.nan,
        }
    )
    for i, name in enumerate(("amount", "count", "flag", "grade", "home")):
        frame.loc[[i, 2 * i + 5], name] = None
    return frame


@cache
def table():
    return nn.infer_table(mixed())


def test_kinds_are_what_the_columns_hold():
    kinds = {column.name: column.kind for column in table().columns}
    assert [*kinds] == [*mixed().columns]
    assert [*kinds.values()] == ["number"] * 2 + ["category"] * 4 + ["ignored"] * 3
    amount, count, flag, grade, home, yes = table().seen
    assert close(amount.shift, mixed().amount.mean()), close(
        amount.scale, mixed().amount.std(ddof=0)
    )
    assert flag.values == (0.0, 1.0)
    assert grade.values == ("low", "high")  # in their own order
    assert home.values == ("other", "owner", "rent")
    assert yes.values == (False, True)
    assert [c.missing for c in (amount, count, flag, grade, home, yes)] == [2] * 5 + [0]
    shown = str(table()).splitlines()
    assert [line.split()[:2] for line in shown] == [[*pair] for pair in kinds.items()]
    assert shown[0].endswith("2 missing")


def test_numbers_in_a_column_of_objects_are_numbers():
    """As of a frame that was made of one NumPy array with text in it."""
    frame = mixed()
    found = nn.infer_table(frame.astype(object))
    assert [c.kind for c in found.columns] == [c.kind for c in nn.infer_table(frame).columns]


def test_a_constant_column_has_no_scale_of_rounding():
    """300 times 0.1 deviate by 1e-17 from their mean, by which 0.2 would be 1e16 off."""
    found = nn.infer_table(pd.DataFrame({"k": np.full(300, 0.1)}), {"k": "number"})
    assert found.columns[0].scale == 1.0
    xs = np.stack([np.full(300, 0.1), np.arange(300.0)], axis=1)
    assert preparation_of(Rows(xs), "gaussian", (), ())["scale"] == [1.0, np.std(xs[:, 1])]


def test_kinds_can_be_chosen():
    digits = mixed().assign(grade=pd.Categorical(["10", "9"] * 20))
    chosen = {"name": "category", "count": "category", "grade": "number", "yes": "ignored"}
    found = nn.infer_table(digits, chosen)
    kinds = {column.name: column for column in found.columns}
    assert {name: kinds[name].kind for name in chosen} == chosen
    assert (kinds["grade"].shift, kinds["grade"].scale) == (9.5, 0.5)
    assert len(kinds["name"].values) == 40
    assert kinds["count"].values == tuple(range(9))


def test_amounts_are_seen_by_their_logarithms():
    frame = pd.DataFrame({"amount": [1.0, 10.0, 100.0], "year": [1999, 2001, 2004]})
    found = nn.infer_table(frame, {"amount": "log"})
    coded = found.coded(frame)
    np.testing.assert_allclose(coded.amount, [-(1.5**0.5), 0.0, 1.5**0.5], atol=1e-12)
    np.testing.assert_allclose(found.decoded(coded).amount, frame.amount)
    drawn = found.decoded({n: np.full((1, 1), 0.1) for n in ("amount", "year")})
    assert drawn.year[0] == 2002  # 2001.5, as years were whole
    assert drawn.year.dtype == np.int64
    with pytest.raises(ValueError, match=r"'amount' is a log and holds 0 in row 2, .* leave it"):
        found.coded(frame.assign(amount=[1.0, None, 0.0]))
    with pytest.raises(ValueError, match="'year' is a number, and holds '2OO1' in row 1"):
        found.coded(frame.assign(year=[None, "2OO1", "late"]))


def test_a_long_tail_gets_a_hint():
    rng = np.random.default_rng(0)
    pay = np.append(np.exp(rng.normal(10.0, 1.5, 200)), np.nan)
    frame = pd.DataFrame({"pay": pay, "debt": pay - 1e4, "age": rng.uniform(1, 90, 201)})
    *_, pay, debt, age = str(nn.infer_table(frame)).splitlines()
    assert pay.endswith("  1 missing  long tail: log?")
    assert not [line for line in (debt, age) if "tail" in line]
    for kind in ("number", "log"):  # what was chosen isn't asked about
        assert "tail" not in str(nn.infer_table(frame, {"pay": kind}))


def test_dates_are_ignored_as_text_too():
    """Those of a .csv were a category of a hundred values."""
    days = pd.date_range("2024-01-01", periods=100)
    columns = {
        "day": days, "iso": days.strftime("%Y-%m-%d"), "hour": days.strftime("%Y-%m-%d %H:%M:%S"),
        "german": days.strftime("%d.%m.%Y"), "american": days.strftime("%m/%d/%y"),
    }  # fmt: skip
    frame = pd.DataFrame({n: [*v, *v, None] for n, v in columns.items()} | {"x": np.arange(201.0)})
    found = nn.infer_table(frame)
    assert [c.kind for c in found.columns] == 5 * ["ignored"] + ["number"]
    assert re.fullmatch(
        " *iso +ignored +dates: make numbers of them +1 missing", str(found).splitlines()[1]
    )
    codes = pd.DataFrame({"code": ["1-2", "1.10.2", "2.0.12", "3/4", "2024-1"] * 3})
    assert nn.infer_table(codes).columns[0].kind == "category"
    with pytest.raises(ValueError, match=r"holds Timestamp.* in row 0; days are numbers: \(frame"):
        nn.infer_table(frame, {"day": "number"})
    as_days = (frame["day"] - frame["day"].min()).dt.total_seconds() / 86400
    assert nn.infer_table(frame.assign(day=as_days)).columns[0].shift == 49.5


def test_an_index_and_many_values_get_a_hint():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.arange(200), "n": rng.integers(0, 30, 200)})
    frame = frame.assign(x=rng.normal(size=200), town=[f"t{i % 90}" for i in range(200)])
    index, n, x, town = str(nn.infer_table(frame)).splitlines()
    assert index.endswith("all different: an index?")
    assert town.endswith("90 values: ignored?")
    assert not [line for line in (n, x) if "?" in line]
    assert "?" not in str(nn.infer_table(frame, {"id": "number", "town": "category"}))
    incomes = pd.DataFrame({"income": np.round(1e5 * rng.lognormal(size=200))})
    assert incomes["income"].is_unique
    assert str(nn.infer_table(incomes)).endswith("long tail: log?")


def test_a_constant_number_is_0_and_not_nan():
    found = nn.infer_table(pd.DataFrame({"a": [2.0, 2.0, 2.0]}), {"a": "number"})
    assert found.rows(pd.DataFrame({"a": [2.0, 3.0]}))[0]["a"].tolist() == [[0.0], [1.0]]


def test_codes_go_there_and_back():
    frame = mixed()
    coded = table().coded(frame)
    assert abs(coded.amount.mean()) < 1e-9
    assert close(coded.amount.std(ddof=0), 1.0)
    assert set(coded.home.dropna()) == {0.0, 1.0, 2.0}
    again = table().decoded(coded.assign(score=1.0))
    assert (again.score == 1).all()
    for column in table().seen:
        gone = frame[column.name].isna()
        assert (again[column.name].isna() == gone).all()
        left, right = again[column.name][~gone].tolist(), frame[column.name][~gone].tolist()
        assert left == right if column.kind == "category" else np.allclose(left, right, rtol=1e-12)


def test_rows_are_pairs_with_the_mask_of_the_gaps():
    xs, masks = table().rows(mixed())
    assert {name: (x.shape, x.dtype.kind) for name, x in xs.items()} == {
        c.name: ((40, 1), "f" if c.kind == "number" else "i") for c in table().seen
    }
    for name, mask in masks.items():
        assert (~mask[:, 0] == mixed()[name].isna()).all()
        assert np.isfinite(xs[name]).all()


def test_a_value_that_is_new_has_a_place_of_its_own():
    new = mixed().iloc[30:33].assign(home=["rent", "castle", "owner"])
    coded = table().coded(new)
    assert coded.home.tolist() == [2, 3, 1]
    assert table().decoded(coded).home.fillna("").tolist() == ["rent", "", "owner"]
    alone = table().coded(new.iloc[1:2])  # as among others
    assert alone.home.tolist() == [3]
    for strange in (mixed().assign(home="castle"), new.assign(home=[1, 2, 3])):
        with pytest.raises(ValueError, match=r"'home' holds .* and no value that is known"):
            table().coded(strange)


def test_what_is_drawn_is_known():
    """The choice that stands for what was never seen is scored, and not drawn."""
    certain = open_categorical(jnp.zeros((1, 2)))
    drawn = jax.vmap(certain.sample)(jax.random.split(KEY, 20_000))
    assert {*drawn.ravel().tolist()} == {0, 1}
    assert close(jnp.exp(certain.log_prob(jnp.array([2]))), 1e-3)
    frame = table().decoded(use.generate(model(), KEY, 3000))
    assert not frame.home.isna().any()


@pytest.mark.filterwarnings("ignore:score. rows have:UserWarning")
def test_what_was_seen_stays_where_gaps_are_filled():
    new = mixed().iloc[30:33].assign(home=["rent", "castle", None])
    filled = table().decoded(
        use.impute(model(), KEY, table().coded(new), num_samples=5), original=new
    )
    assert filled.home.tolist()[:2] == ["rent", "castle"]
    assert filled.home.iloc[2] in ("owner", "rent", "free")
    numbers = [c.name for c in table().seen if c.kind != "category"]
    seen = new[numbers].notna().to_numpy()
    np.testing.assert_array_equal(filled[numbers].to_numpy()[seen], new[numbers].to_numpy()[seen])


def test_gaps_of_every_dtype_are_filled():
    """A nullable integer takes no fraction, and a level that the rows lack is no category yet."""
    frame = mixed().iloc[:12]
    few = frame.assign(grade=frame.grade.cat.set_categories(["low"]))
    for rows in (frame, few):
        imputed = use.impute(model(), KEY, table().coded(rows), num_samples=3)
        filled = table().decoded(imputed, original=rows)
        for column in table().seen:
            seen = rows[column.name].notna()
            assert filled[column.name].notna().all()
            assert filled[column.name][seen].tolist() == rows[column.name][seen].tolist()


def test_a_column_named_as_a_result_is_decoded_by_itself():
    frame = pd.DataFrame({"a": [0.0, 10.0, 5.0], "reconstructed a": [100.0, 300.0, 100.0]})
    found = nn.infer_table(frame, dict.fromkeys(frame, "number"))
    np.testing.assert_allclose(found.decoded(found.coded(frame)), frame)


def test_numbers_that_another_file_has_as_text_are_the_same_categories():
    frame = pd.DataFrame({"g": ["1", "2", "A", "1", "2"] * 8, "x": np.arange(40) % 7 / 3.0})
    found = nn.infer_table(frame)
    as_text, as_numbers = (
        found.coded(pd.DataFrame({"g": values, "x": [0.5, 1.0, 1.5]})).g.tolist()
        for values in (["2", "1", "2"], [2, 1, 2])
    )
    assert as_text == as_numbers == [1, 0, 1]
    with_a_gap = pd.DataFrame({"g": [2.0, np.nan, 1.0], "x": [0.5, 1.0, 1.5]})
    np.testing.assert_array_equal(found.coded(with_a_gap).g, [1.0, np.nan, 0.0])


def test_the_most_probable_of_many_categories_is_known():
    """Each less probable than what stands for all that was never seen."""
    many = nn.Table((nn.Column("b", "category", values=tuple(map(str, range(1500)))),
                     nn.Column("x", "number")))  # fmt: skip
    even = jax.tree.map(jnp.zeros_like, nn.make_vae(many, latents=1, hidden=(2,), rngs=nnx.Rngs(0)))
    rows = pd.DataFrame({"b": ["0", None], "x": [0.0, 1.0]})
    with warnings.catch_warnings(action="ignore"):
        imputed = use.impute(even, KEY, many.coded(rows), num_samples=3)
    assert many.decoded(imputed, original=rows).b.notna().all()
    assert (
        many.decoded(use.reconstruct(even, KEY, many.coded(rows)))["reconstructed b"].notna().all()
    )


def test_days_are_dates_and_lists_are_named():
    days = [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)] * 10
    found = nn.infer_table(pd.DataFrame({"d": days, "x": np.arange(20.0)}))
    assert [column.kind for column in found.columns] == ["ignored", "number"]
    with pytest.raises(TypeError, match="infer_table: column 'l' holds a list, expected numbers"):
        nn.infer_table(pd.DataFrame({"l": [[1], [2]], "x": [1.0, 2.0]}))


def test_a_frame_is_reconstructed_in_its_own_words():
    frame = mixed().iloc[:5]
    found = table().decoded(use.reconstruct(model(), KEY, table().coded(frame)))
    assert {*found["reconstructed home"]} <= {*mixed().home.dropna()}
    amount = found["reconstructed amount"]
    assert (amount > 0).all()  # it is a log


@cache
def model():
    """Trained for a moment, so that nothing in it is at its initial value."""
    optimizer = optax.adam(1e-2)
    built = nn.make_vae(table(), latents=2, hidden=(8,), rngs=nnx.Rngs(0))
    step = jaxvae.train_step(jaxvae.elbo, optimizer)
    state = jaxvae.init_state(built, optimizer)
    return jaxvae.fit(step, state, KEY, table().rows(mixed()), epochs=20, batch_size=20)[0].model


@pytest.mark.thorough
def test_a_model_of_a_table_is_the_product_of_its_columns():
    xs, masks = table().rows(mixed())
    one = jax.tree.map(lambda a: jnp.asarray(a[0]), (xs, masks))  # without an amount
    d = model().decode(jnp.zeros(2))
    parts = d.distribution.parts
    seen = [name for name in parts if masks[name][0, 0]]
    assert len(seen) == 5
    assert parts["home"].logits.shape == (1, 4)  # and one for what is new
    assert close(d.log_prob(one), sum(parts[name].log_prob(one[0][name]) for name in seen))
    (size,) = table().head().raw_shape(())
    least = table().head()(jnp.full(size, -50.0)).distribution.parts["amount"].scale
    assert close(least, 0.1)  # as values that repeat can't be worth infinitely much


@pytest.mark.thorough
def test_each_number_learns_a_sigma_of_its_own(tmp_path):
    """Under a head that learns, which a model is jitted, saved and loaded with."""
    optimizer = optax.adam(3e-2)
    built = nn.make_vae(
        table(), latents=1, hidden=(4,), likelihood=nn.SharedScaleHead(0.5), rngs=nnx.Rngs(0)
    )
    step = jaxvae.train_step(jaxvae.elbo, optimizer)
    state = jaxvae.init_state(built, optimizer)
    rows = table().rows(mixed())
    trained = jaxvae.fit(step, state, KEY, rows, epochs=5, batch_size=20)[0].model

    @jax.jit
    def sigmas(model):
        parts = model.decode(jnp.zeros(1)).distribution.parts.items()
        return {name: part.scale for name, part in parts if isinstance(part, jaxvae.Normal)}

    numbers = [c.name for c in table().seen if c.kind in ("number", "log")]
    assert sorted(sigmas(trained)) == sorted(numbers)
    assert len({0.5, *map(float, sigmas(trained).values())}) == len(numbers) + 1
    nn.save_model(tmp_path / "model", trained)
    assert sigmas(nn.load_model(tmp_path / "model")) == sigmas(trained)


def test_what_stands_in_a_gap_is_not_looked_at():
    xs, masks = jax.tree.map(lambda a: jnp.asarray(a[0]), table().rows(mixed()))
    other = xs | {"amount": jnp.full(1, 7.0)}
    assert close(model().encode((xs, masks)).mean(), model().encode((other, masks)).mean())
    seen = masks | {"amount": jnp.ones(1, bool)}
    assert not close(model().encode((xs, seen)).mean(), model().encode((other, seen)).mean())


@pytest.mark.thorough
def test_a_frame_is_used_as_its_rows_are():
    """Codes with gaps come as floats, and the model wants integers."""
    frame = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows have different gaps
        scored = use.score(model(), KEY, table().coded(frame), num_samples=3)
        found = use.score(model(), KEY, table().rows(frame), num_samples=3)
    np.testing.assert_allclose(scored.iwae, found.iwae, rtol=1e-5)
    nats = np.where(frame.home.isna(), np.nan, found.entries["home"][:, 0])
    np.testing.assert_allclose(scored["nats home"], nats, rtol=1e-5)
    assert found.observed.tolist() == (6 - frame.isna().sum(axis=1) + 1).tolist()
    full = table().decoded(use.impute(model(), KEY, table().coded(frame), num_samples=3))
    known = [column.name for column in table().seen]
    assert not full[known].isna().any().any()
    assert full.home[~frame.home.isna()].tolist() == frame.home.dropna().tolist()


def test_draws_come_back_as_a_table():
    new = table().decoded(use.generate(model(), KEY, 30))
    assert [*new.columns] == [column.name for column in table().seen]
    assert set(new.grade.dropna()) == {"low", "high"}
    assert abs(new.amount.mean() - 1e6) < 1e5


def test_a_model_of_a_table_is_saved_with_what_reads_it(tmp_path):
    about = {"table": table().as_json()}
    nn.save_model(tmp_path / "model", model(), about=about)
    loaded = nn.load_model(tmp_path / "model")
    known = nn.model_info(tmp_path / "model")["about"]["table"]
    assert nn.Table.of_json(json.loads(json.dumps(known))) == table()
    x = jax.tree.map(lambda a: jnp.asarray(a[1]), table().rows(mixed()))
    assert close(loaded.encode(x).mean(), model().encode(x).mean())


@pytest.mark.parametrize(
    ("frame", "kinds", "message"),
    [
        (np.ones((3, 2)), None, "frame is ndarray, expected a pandas frame"),
        (pd.DataFrame({3: [1.0]}), None, "a column is named 3, expected text"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, "two columns are named 'a'"),
        (pd.DataFrame({"a": [1.0]}), {"b": "number"}, "kinds has 'b': 'number'"),
        (pd.DataFrame({"a": [1.0]}), {"a": "real"}, "one of number, log, category, ignored"),
        (pd.DataFrame({"a": ["x", "y"]}), {"a": "number"}, "'a' is a number, and holds 'x'"),
        (pd.DataFrame({"a": [1.0, 2.0, np.inf]}), None, "'a' holds inf in row 2"),
        (pd.DataFrame({"a": [None, None]}), None, "no column is left"),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(frame, kinds, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        nn.infer_table(frame, kinds)
    assert "\n" not in str(error.value)


def test_what_is_no_table_makes_no_model():
    with pytest.raises(TypeError, match=r"x is a data frame, expected nn.infer_table\(x\)"):
        nn.make_vae(mixed(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="x is a Table, expected an image"):
        nn.make_vae(table(), convolutional=True, rngs=nnx.Rngs(0))


def test_the_head_of_a_table_is_no_head_of_a_number():
    of_all = table().head()
    with pytest.raises(TypeError, match="number is a MaskedHead of all columns, expected that of"):
        nn.make_vae(table(), likelihood=of_all, rngs=nnx.Rngs(0))


def test_a_frame_of_other_columns_is_refused():
    with pytest.raises(TypeError, match="frame is list, expected a pandas frame"):
        table().coded([1.0])
    with pytest.raises(ValueError, match="no column 'home'"):
        table().coded(mixed().drop(columns="home"))
    with pytest.raises(ValueError, match="'amount' is a number, and holds 'much'"):
        table().coded(mixed().assign(amount="much"))


def test_the_columns_of_a_file_become_what_a_model_sees_in_a_program_too():
    frame = pd.DataFrame({"n": [3.0, None, 5.0, 9.0], "pay": [1.0, 20.0, 3.0, None],
                          "home": ["x", "y", None, "x"], "id": list("abcd")})  # fmt: skip
    table = nn.infer_table(frame, {"pay": "log"})
    numbered = frame.assign(home=frame.home.map({"x": 0, "y": 1}.get))
    raw = {c.name: numbered[c.name].to_numpy(np.float32)[:, None] for c in table.seen}
    assert [*raw] == ["n", "pay", "home"]
    x, mask = jax.jit(jax.vmap(Coded(table).seen))(raw)
    for found, expected in zip((x, mask), table.rows(frame), strict=True):
        for name in raw:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    again = Coded(table).stored(x)
    for name, there in mask.items():
        np.testing.assert_allclose(again[name][there], raw[name][there], rtol=1e-5)
    seen = Coded(of_coded(table)).seen({name: jnp.asarray(v, float) for name, v in x.items()})[0]
    np.testing.assert_array_equal(seen["pay"], x["pay"])


def test_categories_of_pandas_are_categories_and_decimals_numbers():
    sizes = pd.Categorical(["s", "m", "l", "xl", "s"], ["s", "m", "l", "xl"], ordered=True)
    prices = [Decimal("1.5"), Decimal("2.5"), Decimal("3"), Decimal("4"), Decimal("5")]
    days = pd.Categorical(pd.to_datetime(["2020-01-01", "2020-02-01"] * 2 + ["2020-01-01"]))
    table = nn.infer_table(pd.DataFrame({"size": sizes, "price": prices, "day": days}))
    assert [c.kind for c in table.columns] == ["category", "number", "ignored"]
    assert table.columns[0].values == ("s", "m", "l", "xl")
    json.dumps(table.as_json(), allow_nan=False)


@pytest.mark.parametrize("kind", ["category", "number", "log"])
def test_a_column_without_a_value_is_of_no_kind(kind):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [None] * 3})
    with pytest.raises(ValueError, match=r"kinds has .b.: .* and the column holds no value"):
        nn.infer_table(frame, kinds={"b": kind})
