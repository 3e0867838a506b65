"""Anomalies in a table: the script's pieces, on rows made by hand."""

import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest

from experiments.datasets import labelled_tables
from experiments.datasets.labelled_tables import Labelled, exchanged, measured
from experiments.recipes import anomalies
from experiments.recipes.peers.isolation_forest import isolation_forest
from jaxvae import nn


@cache
def rows():
    """Two numbers that are one but for noise, a word that says their sign, and a few gaps."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    frame = pd.DataFrame({"a": a, "b": a + 0.1 * rng.normal(size=300)})
    frame["word"] = np.where(a > 0, "above", "below")
    frame.loc[:20, "word"] = None
    frame.loc[20:40, "a"] = None
    return frame


@cache
def trained():
    table = nn.infer_table(rows())
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(anomalies, "EPOCHS", 60)
        return table, anomalies.fit(table, rows(), seed=0)


def scored(frame):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows have different gaps
        return anomalies.scored(*trained(), frame)


@pytest.mark.thorough
def test_the_entry_that_is_wrong_is_the_reason():
    table, _ = trained()
    wrong = rows().iloc[100:103].copy()
    right = scored(wrong)
    wrong.iloc[0, wrong.columns.get_loc("word")] = (
        "below" if wrong["word"].iloc[0] == "above" else "above"
    )
    again = scored(wrong)
    assert 3 * (right.per_observed - again.per_observed).iloc[0] > 1.0  # nat
    np.testing.assert_allclose(again.per_observed.iloc[1:], right.per_observed.iloc[1:], rtol=1e-4)
    more = anomalies.nats_of(table, again) - anomalies.nats_of(table, scored(rows())).mean()
    assert more.iloc[0].idxmax() == "word"
    because = anomalies.with_reasons(table, wrong, again)["because"].iloc[0]
    assert because.startswith(f"word {wrong['word'].iloc[0]} (+")


@pytest.mark.thorough
def test_a_gap_is_no_reason():
    nats = anomalies.nats_of(trained()[0], scored(rows()))
    assert (nats.isna() == rows().isna()).all().all()


def test_the_forest_sees_what_is_far_away():
    forest = isolation_forest(trained()[0], rows(), seed=0)
    near = rows().iloc[100:102]
    assert (forest(near.assign(a=50.0)) > forest(near) + 0.05).all()
    assert np.isfinite(forest(rows())).all()


def test_one_entry_of_a_row_is_exchanged():
    frame = rows()
    wrong, columns = exchanged(frame, [*frame.columns], seed=1)
    changed = (wrong.astype(object) != frame.loc[wrong.index].astype(object)) & ~(
        wrong.isna() & frame.loc[wrong.index].isna()
    )
    assert (changed.sum(axis=1) == 1).all()
    assert (changed.to_numpy().argmax(axis=1) == columns).all()
    assert 200 < len(wrong) < 300
    for name in frame.columns:
        assert set(wrong[name].dropna()) <= set(frame[name].dropna())


def test_measures_are_what_their_names_say():
    data = Labelled(pd.DataFrame({"a": [1.0, None, 1.0]}), np.array([False, True, False]))
    found = pd.DataFrame({"iwae": [-1.0, -0.5, -2.0], "per_observed": [-1.0, -3.0, -2.0]})
    again = pd.DataFrame({"iwae": [-9.0] * 2, "per_observed": [-9.0, -0.1]})
    surprise = pd.DataFrame([[9, 2, 0, 1], [1, 2, 3, 4]], columns=[*"abcd"])
    isolated = np.array([1.0, 0.0, 0.0]), np.array([2.0, 2.0])
    numbers = measured(data, found, again, np.array([0, 0]), surprise, *isolated)
    assert numbers == {
        "log p(x)": 0.0,
        "nats an entry": 1.0,
        "forest": 0.25,
        "gaps": 1.0,
        "exchanged": 0.5,
        "exchanged, forest": 1.0,
        "first reason": 0.5,
        "one of three": 0.5,
    }


def test_a_file_that_is_not_the_one_is_refused(tmp_path):
    (tmp_path / "mlbench/data").mkdir(parents=True)
    (tmp_path / "mlbench/data/Soybean.rda").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"Soybean.rda is not the file expected; apt-get download"):
        labelled_tables.soybean(str(tmp_path))


def test_a_picture_of_the_worst(tmp_path):
    anomalies.draw(tmp_path / "worst.png", trained()[0], rows(), scored(rows()))
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")
