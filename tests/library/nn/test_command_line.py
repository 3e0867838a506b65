"""The command line: what it writes is what the library computes, and bad input gets one line."""

import ast
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from flax import nnx
from PIL import Image

import jaxvae
from jaxvae import nn, use
from jaxvae.nn import command_output
from jaxvae.nn.command_line import main
from jaxvae.nn.command_output import write_columns
from jaxvae.nn.data_files import DataRefusedError, read_rows
from jaxvae.nn.file_training import long_tailed
from jaxvae.nn.preparation import preparation_of
from jaxvae.nn.run_page import curves_of
from jaxvae.nn.stored_units import Coded, Scaled, of_stored

TRAIN = ("--epochs", "1", "--latent", "2", "--hidden", "4", "--batch", "16")


def table():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(64, 3)) * [1.0, 100.0, 0.1] + [1000.0, 0.0, -5.0]
    return pd.DataFrame(xs, columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a table, and a run on two of its columns."""
    folder = tmp_path_factory.mktemp("line")
    table().assign(name="x").to_csv(folder / "t.csv", index=False)
    data, out = str(folder / "t.csv"), str(folder / "run")
    assert main(["train", data, out, "--columns", "a", "b", *TRAIN]) == 0
    return folder


def program(path):
    return jax.export.deserialize(bytearray(path.read_bytes())).call


def call(*args):
    return main([*map(str, args)])


def standardised():
    xs = table()[["a", "b"]].to_numpy()
    return ((xs - xs.mean(0)) / xs.std(0)).astype(np.float32)


@pytest.mark.thorough
def test_scores_are_those_of_the_library(run, capsys):
    assert call("score", run / "run", run / "t.csv", "--output", run / "s.csv") == 0
    found = pd.read_csv(run / "s.csv")
    assert [*found.columns][:5] == ["a", "b", "c", "name", "iwae"]
    expected = use.score(nn.load_model(run / "run"), jax.random.key(0), standardised())
    np.testing.assert_allclose(found["iwae"], expected.iwae, rtol=1e-4)
    np.testing.assert_allclose(found["nats b"], expected.entries[:, 1], rtol=1e-4)
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    np.testing.assert_allclose(float(told["iwae"]), np.mean(expected.iwae), atol=1e-3)


@pytest.mark.thorough
def test_a_report_is_a_page_with_the_curves_of_the_run(run, capsys, monkeypatch):
    assert call("report", run / "run", run / "t.csv") == 0
    assert f'written  "{run}/run/report.html"' in capsys.readouterr().out
    text = (run / "run" / "report.html").read_text()
    for part in ("<title>run: a VAE on t.csv</title>", "How it learned", "What each latent says",
                 "<th scope=row>learning_rate</th>", "<td>gaussian</td>"):  # fmt: skip
        assert part in text, part
    assert len(curves_of(run / "run")["loss"]) == 3
    monkeypatch.chdir(run)  # of a model alone it is here, as its folder is its own
    assert call("report", run / "run" / "model", run / "t.csv") == 0
    assert "How it learned" not in (run / "report.html").read_text()
    assert call("report", run / "run", run / "t.csv", "--output", "page.csv") == 2
    assert capsys.readouterr().err == "error: --output page.csv: expected .html\n"
    monkeypatch.setitem(sys.modules, "jaxvae.plots", None)
    monkeypatch.delattr(jaxvae, "plots", raising=False)
    assert call("report", run / "run", run / "t.csv") == 0
    assert "pip install 'jaxvae[plots]'" in capsys.readouterr().out


@pytest.mark.thorough
def test_latents_draws_reports_and_exports(run, capsys):
    assert call("encode", run / "run", run / "t.csv", "--output", run / "z.npy") == 0
    zs = use.encode(nn.load_model(run / "run"), standardised())
    np.testing.assert_allclose(np.load(run / "z.npy"), zs, rtol=1e-4, atol=1e-5)
    out = run / "new.csv"
    assert call("generate", run / "run", "--number", 50, "--output", out) == 0
    drawn = pd.read_csv(out).to_numpy()
    assert drawn.shape == (50, 2)
    assert abs(drawn[:, 0].mean() - 1000) < 2 < drawn[:, 1].std()  # in the table's units
    assert call("export", run / "run", "--what", "decode", "--output", run / "d") == 0
    xs = table()[["a", "b"]].to_numpy()
    means = use.decode(nn.load_model(run / "run"), zs) * xs.std(0) + xs.mean(0)
    np.testing.assert_allclose(program(run / "d")(zs), means, rtol=1e-4)
    capsys.readouterr()
    assert call("report", run / "run", run / "t.csv") == 0
    told = capsys.readouterr().out
    for part in ("data", '"t.csv"', "validation_elbo", "iwae", "standard error", "active units"):
        assert part in told


@pytest.mark.thorough
def test_what_is_exported_takes_the_columns_of_the_file(run, capsys):
    model, xs = nn.load_model(run / "run"), table()[["a", "b"]].to_numpy(np.float32)
    assert call("export", run / "run", "--output", run / "e") == 0
    zs = use.encode(model, standardised())
    np.testing.assert_allclose(program(run / "e")(xs), zs, rtol=1e-3, atol=1e-4)
    told = capsys.readouterr().out
    assert 'takes  "float32[rows, 2], in the units of the data"' in told
    assert 'order of columns  "a, b"' in told
    units = Scaled(xs.mean(0), xs.std(0))
    found = use.score(of_stored(model, units), jax.random.key(0), xs, num_samples=2)
    expected = use.score(model, jax.random.key(0), standardised(), num_samples=2)
    np.testing.assert_allclose(found.iwae, expected.iwae, rtol=1e-3)


def test_reconstructions_are_in_the_units_of_the_file(run):
    assert call("reconstruct", run / "run", run / "t.csv", "--output", run / "r.csv") == 0
    found, xs = pd.read_csv(run / "r.csv"), table()[["a", "b"]].to_numpy()
    assert [*found] == ["a", "b", "c", "name", "reconstructed a", "reconstructed b"]
    means = use.reconstruct(nn.load_model(run / "run"), jax.random.key(0), standardised())
    expected = means * xs.std(0) + xs.mean(0)
    np.testing.assert_allclose(found.iloc[:, -2:].to_numpy(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.thorough
def test_the_same_command_goes_on_and_another_is_refused(run, capsys):
    same = ["train", run / "t.csv", run / "run", "--columns", "a", "b"]
    assert call(*same, *TRAIN) == 0
    assert "this run is finished, at step 3: nothing is left to do\n" in capsys.readouterr().out
    assert call(*same, *TRAIN, "--epochs", 2) == 0
    assert "going on from step 3 of 6\n" in capsys.readouterr().out
    assert nn.model_info(run / "run")["about"]["epochs"] == 2
    capsys.readouterr()
    assert call(*same, *TRAIN, "--hidden", 5) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_run_that_has_not_ended_says_how_it_goes_on(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_0000000003.ckpt").touch()
    table().to_csv(tmp_path / "t.csv")
    for command in ("encode", "score", "reconstruct", "generate", "report", "export"):
        data = (tmp_path / "t.csv",) if command in ("encode", "score", "reconstruct") else ()
        assert call(command, tmp_path / "run", *data) == 1
        error = capsys.readouterr().err
        assert "training hasn't ended" in error
        assert f"`jaxvae train FILE {tmp_path}/run` with its options, goes on\n" in error
        assert error.count("\n") == 1


def test_two_images_of_one_name_are_two_files(tmp_path):
    xs = np.arange(3 * 4, dtype=float).reshape(3, 2, 2, 1)
    names = ("a/1.jpg", "a/1.png", "b/1.jpg")
    command_output.write_events(tmp_path / "out", xs, (), names)
    found = sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.png"))
    assert found == ["a/1.jpg.png", "a/1.png.png", "b/1.png"]


@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "a.png"), (np.float32, "a.tif")])
def test_images_of_more_than_eight_bits_are_refused(tmp_path, dtype, name):
    Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(dtype)).save(tmp_path / name)
    with pytest.raises(DataRefusedError, match=rf"{name} has pixels of more than 8 bits .*\.npy"):
        read_rows(tmp_path)


@pytest.mark.thorough
def test_a_folder_of_images(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    (tmp_path / "images" / "b").mkdir(parents=True)  # folders in it are read too
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{'b/' if i > 9 else ''}{i:02}.png")
    np.testing.assert_array_equal(read_rows(tmp_path / "images").values, pixels)
    assert call("train", tmp_path / "images", tmp_path / "run", *TRAIN) == 0
    out = tmp_path / "new.npy"
    assert call("generate", tmp_path / "run", "--number", 30, "--mean", "--output", out) == 0
    new = np.load(out)
    assert new.shape == (30, 8, 8, 1)
    assert new.std() > 1  # of 255, not of 1
    assert call("generate", tmp_path / "run", "--number", 2, "--output", out) == 0
    assert np.load(out).dtype == np.uint8
    model = nn.load_model(tmp_path / "run")
    folder = tmp_path / "remembered"
    assert call("reconstruct", tmp_path / "run", tmp_path / "images", "--output", folder) == 0
    means = use.reconstruct(model, jax.random.key(0), pixels[..., None])
    image = np.asarray(Image.open(folder / "b" / "10.png"))
    np.testing.assert_array_equal(image, np.round(means[10, ..., 0]))
    assert call("reconstruct", tmp_path / "run", tmp_path / "images", "--output", out) == 0
    np.testing.assert_allclose(np.load(out), means, rtol=1e-5)
    scores = tmp_path / "s.csv"
    assert call("score", tmp_path / "run", tmp_path / "images", "--output", scores) == 0
    found = pd.read_csv(scores)
    assert found.file.tolist()[9:11] == ["09.png", "b/10.png"]
    expected = use.score(model, jax.random.key(0), pixels[..., None])  # bytes, as they are stored
    np.testing.assert_allclose(found.iwae, expected.iwae, rtol=1e-5)
    capsys.readouterr()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "small.png")
    assert call("encode", tmp_path / "run", tmp_path / "images") == 2
    assert "small.png is (4, 4) and 00.png (8, 8)" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_table_with_text_and_gaps(tmp_path, capsys):
    rng = np.random.default_rng(1)
    frame = table().assign(home=rng.choice(["rent", "São Paulo"], 64), grade=rng.integers(1, 4, 64))
    frame.loc[[3, 9], "a"] = np.nan
    frame.loc[5, "home"] = None
    frame["b"] = np.exp(rng.normal(10.0, 2.0, 64))
    frame.to_csv(tmp_path / "t.csv", index=False)
    data, out = tmp_path / "t.csv", tmp_path / "run"
    assert call("train", data, out, "--kinds", "grade=category", "c=ignored", *TRAIN) == 0
    told = capsys.readouterr().out
    assert "--kinds b=log?\n" in told
    shown = [line.split() for line in told.splitlines()[:5]]
    assert [line[0] for line in shown] == ["a", "b", "c", "home", "grade"]
    assert [line[1] for line in shown] == ["number", "number", "ignored", "category", "category"]
    assert call("score", out, data, "--output", tmp_path / "s.csv") == 0
    found = pd.read_csv(tmp_path / "s.csv")
    known = nn.Table.of_json(nn.model_info(out)["about"]["table"])
    with pytest.warns(UserWarning, match="different gaps|can't be compared"):
        expected = use.score(nn.load_model(out), jax.random.key(0), known.rows(frame))
    np.testing.assert_allclose(found["per_observed"], expected.per_observed, rtol=1e-4)
    nats = np.where(frame.home.isna(), np.nan, expected.entries["home"][:, 0])
    np.testing.assert_allclose(found["nats home"], nats, rtol=1e-4)
    costs = found[[f"nats {column.name}" for column in known.seen]]
    more = costs - costs.mean()
    reasons = np.where(more.max(axis=1) > 0, np.asarray(more.idxmax(axis=1)), "nats ")
    assert ("nats " + found.because.fillna("")).tolist() == reasons.tolist()
    assert found.because.nunique() > 1
    assert f"columns  {found.shape[1]}\n" in capsys.readouterr().out
    card = (out / "model" / "README.md").read_text()
    assert card.count("São Paulo") == 1
    assert card.count('"values"') == 5
    assert f"nn.load_model('{out.as_posix()}/model')" in card
    assert found["nats a"].isna().tolist() == frame.a.isna().tolist()
    assert [c for c in found if c.startswith("nats")] == [
        "nats a",
        "nats b",
        "nats home",
        "nats grade",
    ]
    full = tmp_path / "full.csv"
    assert call("impute", out, data, "--output", full) == 0
    filled = pd.read_csv(full)
    assert filled[["a", "home"]].notna().to_numpy().all()
    assert filled.a[frame.a.notna()].tolist() == frame.a.dropna().tolist()
    remembered = tmp_path / "remembered.csv"
    assert call("reconstruct", out, data, "--output", remembered) == 0
    means = pd.read_csv(remembered)
    assert [*means][-4:] == [f"reconstructed {name}" for name in ("a", "b", "home", "grade")]
    assert set(means["reconstructed home"]) <= {"rent", "São Paulo"}
    assert abs(means["reconstructed a"].to_numpy().mean() - 1000) < 2
    model, stored = nn.load_model(out), of_stored(nn.load_model(out), Coded(known))
    homes = {"São Paulo": 0, "rent": 1}.get
    numbered = frame.assign(home=frame.home.map(homes), grade=frame.grade - 1)
    raw = {c.name: numbered[c.name].to_numpy(np.float32)[:, None] for c in known.seen}
    zs = use.encode(model, known.rows(frame))
    np.testing.assert_allclose(use.encode(stored, raw), zs, rtol=1e-3, atol=1e-4)
    again = use.reconstruct(stored, jax.random.key(0), raw)
    np.testing.assert_allclose(again["a"][:, 0], means["reconstructed a"], rtol=1e-4)
    codes = means["reconstructed home"].map(homes)
    assert again["home"][:, 0].tolist() == codes.tolist()
    nn.save_model(tmp_path / "py", nn.load_model(out), about={"table": known.as_json()})
    again = tmp_path / "again.csv"  # a model that was saved by hand with its table
    assert call("score", tmp_path / "py", data, "--output", again) == 0
    pd.testing.assert_frame_equal(found, pd.read_csv(again))
    assert found.home.dropna().tolist() == frame.home.dropna().tolist()
    new = tmp_path / "new.csv"
    assert call("generate", out, "--number", 50, "--output", new) == 0
    drawn = pd.read_csv(new)
    assert [*drawn.columns] == ["a", "b", "home", "grade"]
    assert set(drawn.home.dropna()) <= {"rent", "São Paulo"}
    assert "columns  4\n" in capsys.readouterr().out
    assert abs(drawn.a.mean() - 1000) < 2
    assert call("encode", out, data, "--output", tmp_path / "z.npy") == 0
    assert np.load(tmp_path / "z.npy").shape == (64, 2)
    assert "columns  2\n" in capsys.readouterr().out
    assert call("report", out, data) == 0
    capsys.readouterr()
    frame.assign(b="much").to_csv(data, index=False)
    assert call("score", out, data) == 2
    assert "column 'b' is a number, and holds 'much'" in capsys.readouterr().err


def test_a_table_of_numbers_may_have_a_logarithm(tmp_path, capsys):
    pay = np.exp(np.random.default_rng(1).normal(10.0, 2.0, 64))
    data, out = tmp_path / "t.csv", tmp_path / "run"
    table().assign(pay=pay).to_csv(data, index=False)
    rows = read_rows(data)
    assert long_tailed(rows, preparation_of(rows, "gaussian", (), ())) == ["pay"]
    chosen = ("--columns", "a", "pay")
    assert call("train", data, out, *chosen, "--kinds", "pay=log", *TRAIN) == 0
    kinds = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:2]]
    assert kinds == [["a", "number"], ["pay", "log"]]
    assert call("encode", out, data, "--output", tmp_path / "z.npy") == 0
    table().assign(pay=np.append(pay[1:], 0.0)).to_csv(data, index=False)
    assert call("encode", out, data, "--output", tmp_path / "z.npy") == 2
    error = capsys.readouterr().err
    assert "holds 0 in row 63, expected positive numbers; leave it empty, or train again" in error
    assert error.endswith("or --kinds pay=number)\n")


def test_every_kind_of_file_is_read(tmp_path):
    xs = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "a.npy", xs)
    np.savez(tmp_path / "b.npz", x=xs, labels=np.arange(3))
    frame = pd.DataFrame(xs, columns=["u", "v"])
    frame.to_csv(tmp_path / "c.csv", index=False)
    frame.to_parquet(tmp_path / "d.parquet")
    for name in ("a.npy", "b.npz", "c.csv", "d.parquet"):
        np.testing.assert_array_equal(read_rows(tmp_path / name).values, xs)
    np.testing.assert_array_equal(read_rows(tmp_path / "c.csv", ("v",)).values, xs[:, 1:])


def annotated(path, form, xs):
    """The part that is read of what anndata writes, in its forms of today and of before 0.7."""
    h5py = pytest.importorskip("h5py")
    matrix = (scipy.sparse.csc_array if form[:3] == "csc" else scipy.sparse.csr_array)(xs)
    with h5py.File(path, "w") as file:
        file.create_group("obs")
        if form == "dense":
            file["X"] = xs
            return
        group = file.create_group("raw" if form == "none" else "X")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        old = "matrix" not in form
        group.attrs["h5sparse_format" if old else "encoding-type"] = form
        group.attrs["h5sparse_shape" if old else "shape"] = xs.shape


@pytest.mark.parametrize("form", ["dense", "csr_matrix", "csc_matrix", "csr", "csc"])
def test_an_annotated_matrix_is_read(form, tmp_path):
    xs = np.random.default_rng(0).poisson(0.5, (5, 4)).astype(np.float32)
    xs[2] = 0.0
    annotated(tmp_path / "cells.h5ad", form, xs)
    np.testing.assert_array_equal(read_rows(tmp_path / "cells.h5ad").values, xs)


def test_an_annotated_matrix_that_can_not_be_read_gets_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    annotated("odd.h5ad", "dia", np.ones((2, 2)))
    annotated("empty.h5ad", "none", np.ones((2, 2)))
    Path("broken.h5ad").write_text("x")
    for name, line in {
        "odd": "its X is dia, expected",
        "empty": "it has no X",
        "broken": "",
    }.items():
        assert call("train", f"{name}.h5ad", "run") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {name}.h5ad can't be read: {line}")
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert call("train", "odd.h5ad", "run") == 2
    assert capsys.readouterr().err == "error: odd.h5ad needs h5py: pip install h5py\n"


@pytest.mark.thorough
def test_the_model_of_the_best_epoch_is_kept(tmp_path, capsys):
    """The one that a run of so many epochs ends with; large steps soon lead away from it."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 8)))
    how = ("--latent", 2, "--hidden", 16, "--batch", 5, "--learning-rate", 0.3)
    epochs = 3
    abouts, models = {}, {}
    for name in ("all", "best"):
        run = tmp_path / name
        more = ("--validation", 0.5, "--epochs", epochs)
        assert call("train", tmp_path / "x.npy", run, *how, *more) == 0
        told = capsys.readouterr().out
        abouts[name], models[name] = nn.model_info(run)["about"], nn.load_model(run)
        epochs = abouts["all"]["best_epoch"]
        assert f"best_epoch  {epochs}\n" in told
    assert epochs < abouts["all"]["epochs"] == 3
    for name in ("validation_elbo", "elbo"):
        assert abouts["all"][name] == abouts["best"][name]
    jax.tree.map(np.testing.assert_array_equal, *models.values())


def bad_files(folder):
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", "y"]})
    frame.to_csv(folder / "holes.csv", index=False)
    frame.fillna(0.0)[["a"]].to_csv(folder / "full.csv", index=False)
    np.save(folder / "flat.npy", np.ones(3))
    np.save(folder / "nan.npy", np.array([[1.0], [np.nan]]))
    np.save(folder / "objects.npy", np.array([[{}]]))
    np.savez(folder / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.save(folder / "ok.npy", np.random.default_rng(0).normal(size=(9, 2)))
    (folder / "x.txt").write_text("x")
    (folder / "x.parquet").write_text("x")
    (folder / "x.h5ad").write_text("x")
    (folder / "empty").mkdir()
    for suffix in ("npy", "npz", "csv", "parquet", "h5ad"):
        (folder / f"none.{suffix}").touch()
    (folder / "header.csv").write_text("a,b\n")
    pd.DataFrame({"a": [1.0, np.inf], "b": ["x", "y"]}).to_csv(folder / "inf.csv", index=False)
    np.save(folder / "large.npy", np.array([[1.0], [1e300]]))
    (folder / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "images" / "a.png")
    (folder / "images" / "b.png").write_bytes(b"half an image")
    nn.save_model(folder / "saved", {"a": np.ones(3)})
    return folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("absent.csv", "r"), "absent.csv isn't there"),
        (("x.txt", "r"), "x.txt is none of .csv, .h5ad, .npy, .npz, .parquet"),
        (("x.parquet", "r"), "x.parquet can't be read"),
        (("empty", "r"), "no image in it"),
        *(
            ((f"none.{suffix}", "r"), f"none.{suffix} can't be read: ")
            for suffix in ("npy", "npz", "csv", "parquet", "h5ad")
        ),
        (("header.csv", "r"), "header.csv has the names of columns and no rows"),
        (("inf.csv", "r"), "column 'a' is a category and holds inf, expected text and finite"),
        (("large.npy", "r"), "large.npy holds 1e+300 in row 1, expected numbers that float32"),
        (("images", "r"), "images/b.png can't be read: "),
        (("ok.npy", "saved"), "saved is a saved model; give the run a folder of its own"),
        (("full.csv", "r", "--columns", "a", "a"), "--columns has 'a' twice"),
        (("ok.npy", "r", "--batch", str(2**31)), "--batch is 2147483648, expected less than 2^31"),
        (("flat.npy", "r"), "holds float64[3], expected rows of numbers"),
        (("nan.npy", "r"), "holds no finite number in row 1"),
        (("objects.npy", "r"), "objects.npy can't be read"),
        (("two.npz", "r"), "it has arrays a, b, expected one, or one named x"),
        (("holes.csv", "r", "--likelihood", "poisson"), "column 'a' lacks 1 of 2 values"),
        (("holes.csv", "r", "--columns", "b", "--network", "conv"), "column 'b' holds"),
        (("holes.csv", "r", "--kinds", "a=real"), "kinds has 'a': 'real', expected columns"),
        (("ok.npy", "r", "--kinds", "a=log"), "--kinds is for tables, with --likelihood gaussian"),
        (("full.csv", "r", "--kinds", "a=log"), "column 'a' is a log and holds 0 in row 1"),
        (("holes.csv", "r", "--columns", "c"), "has no column 'c'; it has a, b"),
        (("ok.npy", "r", "--latent", "0"), "--latent is 0, expected an integer of at least 1"),
        (("ok.npy", "r", "--validation", "1.0"), "--validation must be in [0, 1)"),
        (("ok.npy", "r"), "--batch is 64 but 9 rows are left"),
        (("ok.npy", "r", "--network", "conv"), "--network conv wants images"),
        (("ok.npy", "r", "--likelihood", "bernoulli"), "ok.npy is not binary"),
        (("ok.npy", "r", "--likelihood", "poisson"), "ok.npy holds no counts"),
    ],
)
def test_bad_input_gets_a_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(bad_files(tmp_path))
    assert main(["train", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("r").exists()


def test_a_wrong_run_or_output_gets_a_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(bad_files(tmp_path))
    there = {path.name for path in Path().iterdir()}
    for args, code, message in (
        (("encode", "absent", "ok.npy"), 1, "absent isn't there; expected what save_model"),
        (
            ("encode", run / "run", "ok.npy", "--output", "z.txt"),
            2,
            "--output z.txt: expected .csv",
        ),
        (("score", run / "run", "ok.npy", "--num-samples", 0), 2, "--num-samples is 0"),
        (("generate", run / "run", "--number", 0), 2, "--number is 0"),
        (("encode", run / "run", "two.npz"), 2, "two.npz can't be read"),
        (("generate", "saved"), 2, "saved holds a dict without encode, expected a model"),
        (("export", "saved"), 2, "saved holds a dict without encode, expected a model"),
        (("encode", "saved", "ok.npy"), 2, "saved holds a dict without encode, expected a model"),
        (("generate", run / "run", "--output", "n"), 2, "--output n: expected .csv, .parquet"),
        (("score", run / "run", "ok.npy", "--output", "a/s.csv"), 2, "a isn't there; make it"),
        (("reconstruct", run / "run", "ok.npy", "--output", "empty"), 2, "--output empty: expec"),
    ):
        assert call(*args) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == there
    np.save("wide.npy", np.ones((4, 5)))
    assert call("encode", run / "run", "wide.npy") == 2
    assert "rows of shape (5,), expected (2,)" in capsys.readouterr().err


def test_nothing_of_the_experiments_is_imported():
    """They are not in the wheel."""
    for path in Path(jaxvae.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in found if n.split(".")[0] in ("experiments", "tests")], path


def test_the_configuration_is_kept(run):
    about = nn.model_info(run / "run")["about"]
    assert about["config"]["preparation"]["columns"] == ["a", "b"]
    assert json.dumps(about)
    with pytest.raises(DataRefusedError):
        partial(read_rows, run / "absent")()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_an_output_is_whole_or_not_there(suffix, tmp_path, monkeypatch):
    """And one that was there before stays as it was."""
    path, columns = tmp_path / f"out{suffix}", {"file": np.array(["x", "y"]), "iwae": np.ones(2)}
    write_columns(path, columns)
    if suffix == ".npz":  # np.savez takes no array of that name
        assert np.load(path)["file"].tolist() == ["x", "y"]
    before = path.read_bytes()

    def broken(path, *_):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(command_output, "write_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        write_columns(path, columns)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_table_is_asked_for_where_the_model_is_of_one(tmp_path, capsys):
    frame = pd.DataFrame({"a": [1.0, 2.0, np.nan] * 8, "home": ["x", "y", None] * 8})
    table = nn.infer_table(frame)
    model = nn.make_vae(table, latents=1, hidden=(2,), rngs=nnx.Rngs(0))
    nn.save_model(tmp_path / "m", model, about={"table": table.as_json()})
    np.save(tmp_path / "x.npy", np.ones((4, 2)))
    assert call("encode", tmp_path / "m", tmp_path / "x.npy") == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path}/x.npy is no table, expected one with the columns a, home\n"


@pytest.mark.parametrize(
    "about",
    [
        {"config": "beta=4"},
        {"table": "patients.csv"},
        {"table": []},
        {"config": {"preparation": "standardised"}},
    ],
)
def test_what_is_known_of_a_model_may_be_anything(about, tmp_path, capsys):
    """It was read as what `jaxvae train` writes, and ended in a traceback."""
    rngs = nnx.Rngs(0)
    model = jaxvae.VAE(
        nn.Conditional(nn.MLP, nn.NormalHead(), (3,), (1,), rngs=rngs),
        nn.Conditional(nn.MLP, nn.NormalHead(), (1,), (3,), rngs=rngs),
        jaxvae.StandardNormal((1,)),
    )
    nn.save_model(tmp_path / "model", model, about=about)
    xs = np.ones((5, 3), np.float32)
    np.save(tmp_path / "x.npy", xs)
    out = tmp_path / "z.npy"
    assert call("encode", tmp_path / "model", tmp_path / "x.npy", "--output", out) == 0
    np.testing.assert_allclose(np.load(out), use.encode(model, xs), rtol=1e-6)
    assert call("report", tmp_path / "model") == 0


@pytest.mark.parametrize(
    ("command", "name"),
    [("score", "rate"), ("score", "nats a"), ("encode", "z 1"), ("reconstruct", "reconstructed b")],
)
def test_a_result_takes_no_column_s_place(command, name, run, tmp_path, capsys):
    table().assign(**{name: 1.0}).to_csv(tmp_path / "t.csv", index=False)
    arguments = (command, run / "run", tmp_path / "t.csv", "--output")
    assert call(*arguments, tmp_path / "o.csv") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: data: there is a column '{name}' already, expected none")
    assert len(told.splitlines()) == 1
    assert call(*arguments, tmp_path / "o.npz") == 0  # of results alone


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_images_of_other_types_for_a_model_of_bytes_get_a_line(dtype, tmp_path, capsys):
    xs = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1), np.uint8)
    np.save(tmp_path / "x.npy", xs)
    run = tmp_path / "run"
    assert call("train", tmp_path / "x.npy", run, "--likelihood", "logistic", *TRAIN) == 0
    np.save(tmp_path / "y.npy", xs.astype(dtype))
    capsys.readouterr()
    assert call("encode", run, tmp_path / "y.npy", "--output", tmp_path / "z.npy") == 2
    told = capsys.readouterr().err
    assert f"holds {np.dtype(dtype)}, expected bytes, uint8, as the model draws" in told


def test_an_offset_that_float32_loses_is_not_exported(tmp_path, capsys):
    """Times in seconds since 1970, an hour apart, are 128 seconds apart in float32."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"time": 1.7e9 + rng.uniform(0.0, 3600.0, 64), "x": rng.normal(size=64)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    run, out = tmp_path / "run", tmp_path / "e.stablehlo"
    assert call("train", tmp_path / "t.csv", run, *TRAIN) == 0
    capsys.readouterr()
    assert call("export", run, "--output", out) == 2
    assert "column 'time' is around 1.7e+09 with a deviation of" in capsys.readouterr().err
    assert not out.exists()
