"""The main job: what it writes, what it refuses, and how it stops."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.common import report
from experiments.common.config import Config, Refused
from experiments.common.evaluate import drawn, evaluate, log_marginals, whole
from experiments.train import load_model, main, make_model
from jaxvae import nn, plots
from jaxvae.training import read_checkpoint
from jaxvae.training.checkpoints.resuming import checkpoint_files
from tests.common import same

QUICK = ["--epochs", "2", "--hidden", "16", "--eval-samples", "20", "--eval-images", "50"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return ["--data-dir", str(tmp_path_factory.mktemp("data"))]


@pytest.fixture
def run(tmp_path, data_dir, capsys):
    def call(*args):
        code = main([*QUICK, *data_dir, "--output", str(tmp_path / "runs"), *map(str, args)])
        return code, capsys.readouterr()

    return call


PICTURES = {"learning_curves", "reconstructions", "samples", "latent_map", "traversals"}


@pytest.fixture
def no_pictures(monkeypatch):
    """Where they are not what is tested: most of the time of a short run is matplotlib's."""
    monkeypatch.setattr(report, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """The folder of a run as it ended, and what it printed; copy it to write to it."""
    output, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*QUICK, *data_dir, "--output", str(output)]) == 0
    return output / "digits", printed.getvalue()


@pytest.fixture
def folder(finished, tmp_path):
    """A finished run, to go on with."""
    return shutil.copytree(finished[0], tmp_path / "runs" / "digits")


def test_the_run_leaves_its_config_a_line_an_epoch_the_result_and_the_pictures(finished):
    folder, printed = finished
    assert json.loads((folder / "config.json").read_text())["epochs"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        total = line["validation_rate"] + line["validation_distortion"]
        assert line["validation_elbo"] == pytest.approx(-total, rel=1e-5)
        assert line["train_loss"] == pytest.approx(-line["train_elbo"], rel=1e-5)
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    result = json.loads((folder / "result.json").read_text())
    assert result["log_marginal"] > result["elbo"]
    assert f"{result['elbo']:.2f}" in printed
    assert {p.stem for p in folder.glob("*.png") if p.stat().st_size > 5000} == PICTURES


@pytest.mark.slow
def test_a_run_is_a_function_of_its_config(run, tmp_path):
    """The same seed gives the same numbers; a second run gets a folder of its own."""
    for _ in range(2):
        run("--seed", 7, "--latent", 1)
    first, second = (
        (tmp_path / "runs" / name / "result.json").read_text() for name in ("digits", "digits-2")
    )
    assert first == second


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options",
    [
        "--bound iwae --num-samples 3 --likelihood bernoulli --binarization dynamic",
        "--likelihood bernoulli --binarization threshold --beta 0 --validation 0",
        pytest.param("--network conv --posterior full --dtype bfloat16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_options_compose(run, options):
    assert run(*options.split())[0] == 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "trust"),
    [
        ("--prior vamp --bound iwae --gradient dreg", ()),
        ("--posterior iaf", ()),
        pytest.param(
            "--prior vamp --posterior iaf --bound iwae --gradient dreg", (),
            marks=pytest.mark.slow,  # every pseudo-input's density inverts the flow
        ),
        ("--posterior planar-flow --penalty factorvae", "experiments"),
        pytest.param(
            "--prior categorical --posterior categorical --gradient gumbel --latent 2", (),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_pictures")
def test_methods_by_name_train_and_are_read_again(run, tmp_path, options, trust):
    assert run(*options.split())[0] == 0
    folder = tmp_path / "runs" / "digits"
    result = json.loads((folder / "result.json").read_text())
    assert np.isfinite(result["log_marginal"])
    read = nn.load_model(folder / "model", trust=trust)
    again = whole(load_model(folder))
    assert same(jax.tree.leaves(read), jax.tree.leaves(again))


@pytest.mark.thorough
def test_methods_that_leave_a_support_are_refused_before_the_work(run, tmp_path):
    code, printed = run("--prior", "gamma")
    assert code == 2
    assert re.match(r"error: --prior gamma: Gamma.log_prob: event holds -", printed.err)
    assert "gamma goes with --posterior gamma" in printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.thorough
def test_a_posterior_that_is_not_the_encoders_is_refused(run, tmp_path):
    code, printed = run("--posterior", "semi-amortized")
    assert code == 2
    assert printed.err.startswith(
        "error: --posterior semi-amortized goes on from where the encoder"
    )
    assert not (tmp_path / "runs").exists()


def array(path, change=lambda images: images, dtype=np.float32):
    images = np.random.default_rng(0).uniform(size=(40, 6, 7)).astype(dtype)
    np.save(path, change(images))
    return path


def uniform(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


LEVELS = np.random.default_rng(0).integers(0, 17, (20, 3, 3), np.uint8)
OWN = {  # images, options
    "four channels, one test image, no validation": (uniform(15, 5, 4, 4), "--validation 0"),
    "ten images": (uniform(10, 3, 3), "--epochs 1"),
    "two channels": (uniform(40, 6, 6, 2), "--network conv"),
    "seven channels of one column": (uniform(20, 5, 1, 7), "--latent 1 --posterior full"),
    "one pixel": (uniform(20, 1, 1), "--latent 40 --eval-images 1"),
    "a column, the last image alone grey": (uniform(20, 28, 1) > 0.5, "--likelihood bernoulli"),
    "twenty black ones": (np.zeros((20, 3, 3)), "--eval-samples 2"),
    "levels to 16": (LEVELS, "--max-value 16 --likelihood bernoulli --binarization dynamic"),
    "levels to 16, dark": (LEVELS, "--max-value 255"),
    "floats to 255": (255 * uniform(20, 3, 3), "--max-value 255"),
    "float64, big-endian": (uniform(20, 3, 3).astype(">f8"), "--eval-samples 1"),
}
QUICK_OWN = "four channels, one test image, no validation"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [n if n == QUICK_OWN else pytest.param(n, marks=pytest.mark.slow) for n in OWN]
)
def test_what_is_let_in_is_reported_on(run, tmp_path, name):
    """Whatever number of channels, rows and test images: a table, a result and the pictures."""
    images, options = OWN[name]
    np.save(tmp_path / "mine.npy", images)
    code, printed = run("--dataset", tmp_path / "mine.npy", "--batch", 8, *options.split())
    assert code == 0
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert f"{result['elbo']:.2f}" in printed.out
    assert result["test_images"] == len(images) // 10
    assert (result["active_units"] is None) == (len(images) < 20)
    assert {p.stem for p in (tmp_path / "runs" / "mine").glob("*.png")} == PICTURES


def test_no_picture_loses_the_numbers(run, tmp_path, monkeypatch):
    """The table and result.json come first."""

    def fail(*_, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr(plots, "pictures", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        run("--epochs", 1)
    assert json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())["test_images"]


def put(value):
    def change(images):
        images[3, 2, 1] = value
        return images

    return change


REFUSED = {
    "--dataset mnits": "did you mean mnist",
    "--dataset fashion_mnist": "experiments.prepare fashion_mnist",
    "--latent 0": "--latent is 0, expected at least 1",
    "--latent 1000000000000": "--latent is 1000000000000, expected at least 1 and below 2^31",
    "--data-dir " + 300 * "x": "can't be read",
    "--beta -1": "--beta is -1.0",
    "--beta nan": "--beta is nan",
    "--saving 0": "--saving is 0.0, expected a share of the time, above 0 and at most 1",
    "--learning-rate -0.1": "--learning-rate is -0.1, expected a positive number",
    "--learning-rate inf": "--learning-rate is inf",
    "--sigma 0": "--sigma is 0.0",
    "--batch 5000": "--batch is 5000 but train has 1297",
    "--likelihood bernoulli": "choose --binarization",
    "--bound iwae --beta 2": "iwae bound has no beta",
    "--name a/b": "expected a plain folder name",
    "--prior vmap": "did you mean vamp?",
    "--bound iwae --penalty free-bits": "free-bits-a-latent stands in place of the elbo",
    "--likelihood logistic-mixture": "is of bytes, 0 to 255, and a full pixel of digits is 16",
    "--validation 1497": "rows to train",
    "--max-value 16": "--max-value is 16, but digits is no .npy file",
    "--dataset x.npy --max-value 0": "--max-value is 0.0, expected a positive number",
}


@pytest.mark.parametrize("options", REFUSED)
def test_bad_input_is_one_clear_line_and_exit_code_2(run, tmp_path, options):
    code, printed = run(*options.split())
    assert code == 2
    assert REFUSED[options] in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_bad_arrays_are_refused(run, tmp_path):
    def refused(said):
        code, printed = run("--dataset", tmp_path / "bad.npy")
        assert code == 2
        assert said in printed.err
        assert printed.err.count("\n") == 1
        assert not (tmp_path / "runs").exists()

    for change, said in {
        put(np.nan): "image 3 holds nan at (2, 1, 0)",
        put(1.5): "image 3 holds 1.5",
        put(-0.5): "image 3 holds -0.5",
        lambda images: images[0]: "has shape (6, 7)",
        put(np.inf): "image 3 holds inf",
        lambda images: images.astype(float) * 1e300: "holds inf",
        lambda images: images * 255: "or give --max-value",
        lambda images: images[0, 0, 0]: "has shape ()",
        lambda images: images[:9]: "has shape (9, 6, 7), expected [N, H, W]",
        lambda images: images[:, :0]: "has shape (40, 0, 7)",
        lambda images: (images * 9).astype(np.int64): "holds int64",
        lambda images: images.astype(complex): "holds complex128",
        lambda images: images.astype(str): "holds <U",
        lambda images: np.repeat(images[:, None], 3, 1): "looks like channels first",
        lambda images: images[:, None]: "(40, 1, 6, 7), which looks like channels first",
        lambda images: (images * 17).astype(np.uint8): "give --max-value 16, or 255 if",
        lambda images: images / np.float32(255): "full pixel of float32 is 1; give --max-value 0.",
    }.items():
        array(tmp_path / "bad.npy", change)
        refused(said)
    code, printed = run("--dataset", array(tmp_path / "bad.npy"), "--max-value", 0.5)
    assert code == 2
    assert "expected numbers in [0, 0.5]" in printed.err


def test_what_is_no_array_is_refused(run, tmp_path):
    """An archive, a pickle, text, part of a file, a folder: one line, before the work."""
    whole, archive = io.BytesIO(), io.BytesIO()
    np.save(whole, uniform(40, 3, 3))
    np.savez(archive, uniform(40, 3, 3))
    objects = io.BytesIO()
    np.save(objects, np.full((40, 3, 3), None), allow_pickle=True)
    huge = whole.getvalue().replace(b"(40, 3, 3), }", b"(4" + 9 * b"0" + b", 3, 3), }")[:-9]
    contents = [whole.getvalue()[:200], archive.getvalue(), objects.getvalue(), huge]
    path = tmp_path / "bad.npy"
    for content in (*contents, b"", b"a,b\n1,2\n", b"PK\x03\x04", pickle.dumps([1.0]), None):
        path.unlink(missing_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        code, printed = run("--dataset", path)
        assert code == 2
        assert f"error: {path} can't be read as one array written by np.save" in printed.err
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_one_grey_image_is_seen_wherever_the_split_puts_it(run, tmp_path):
    """A Bernoulli likelihood would lose the whole table to one test image that is not binary."""
    for row in range(10):
        images = np.ones((10, 2, 2), np.float32)
        images[row] = 0.5
        np.save(tmp_path / "grey.npy", images)
        code, printed = run(
            *("--dataset", tmp_path / "grey.npy"), "--batch", 8, "--likelihood", "bernoulli"
        )
        assert code == 2
        assert "choose --binarization" in printed.err


def test_an_output_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "runs"):
        code, printed = run("--output", output)
        assert code == 2
        assert "--output" in printed.err


def test_an_earlier_run_is_never_written_over(run, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    code, printed = run("--name", "mine")
    assert code == 2
    assert "exists" in printed.err


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(run, tmp_path):
    code, printed = run("--learning-rate", "1e6")
    assert code == 1
    for word in ("step 2:", "rate", "distortion", "largest log-scale", "learning-rate"):
        assert word in printed.err
    assert (tmp_path / "runs" / "digits" / "config.json").exists()


@pytest.mark.thorough
def test_a_last_step_that_leaves_no_finite_parameters_is_not_kept(run):
    """The only step has a finite loss and gradient; a rate of 3e38 leaves no finite norm."""
    code, printed = run("--learning-rate", "3e38", "--batch", 1297, "--epochs", 1)
    assert code == 1
    assert "step 1:" in printed.err


@pytest.mark.thorough
def test_what_was_written_before_a_loss_became_non_finite_stays(run, tmp_path):
    """With one step an epoch, step 1 is finite and step 2 is not: the line of epoch 1 is kept."""
    code, _ = run("--learning-rate", "1e6", "--batch", 1297, "--epochs", 5)
    lines = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
    assert code == 1
    assert [json.loads(line)["epoch"] for line in lines] == [1]


@pytest.fixture
def interrupts():
    """A shell's "&" has SIGINT ignored, in every program below it; what is handled is passed on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.thorough
@pytest.mark.usefixtures("interrupts")
def test_interrupting_a_run_keeps_what_it_wrote(tmp_path, data_dir):
    command = [sys.executable, "-m", "experiments.train", "--epochs", "100000", "--hidden", "8"]
    metrics = tmp_path / "digits" / "metrics.jsonl"
    with subprocess.Popen(
        [*command, *data_dir, "--output", str(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not metrics.exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()  # or leaving the block waits for ever
    assert json.loads(metrics.read_text().splitlines()[0])["epoch"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(run, tmp_path, data_dir):
    """Stopped by SIGTERM somewhere, then by an epoch count, then gone on with: as if never."""
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "experiments.train", *QUICK, "--epochs", "3000", *data_dir]
    where = ["--output", str(tmp_path), "--name", "stopped"]
    with subprocess.Popen([*command, *where], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == 143
        finally:
            process.kill()
    stopped = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < stopped < 2900
    epochs = str(stopped + 2)
    code, printed = run("--resume", folder, "--epochs", epochs)
    assert code == 0, printed.err
    assert run("--name", "whole", "--epochs", epochs)[0] == 0

    def numbers(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        lines = [{n: v for n, v in line.items() if n != "examples_per_second"} for line in lines]
        return lines, json.loads((folder / "result.json").read_text())

    assert numbers(folder) == numbers(tmp_path / "runs" / "whole")


@pytest.mark.thorough
@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_that_is_resumed_only_reports_again(run, folder):
    """metrics.jsonl is the checkpoint's, whatever has become of the file meanwhile."""
    lines, result = ((folder / n).read_text() for n in ("metrics.jsonl", "result.json"))
    for spoiled in (lines.replace("1", "2"), '{"no": "step"}\n', "{", None):
        (folder / "metrics.jsonl").unlink()
        if spoiled is not None:
            (folder / "metrics.jsonl").write_text(spoiled)
        assert run("--resume", folder)[0] == 0
        assert (folder / "metrics.jsonl").read_text() == lines
        assert (folder / "result.json").read_text() == result


def test_the_model_of_a_run_is_read_back(finished, tmp_path):
    folder, _ = finished
    newest, best = (load_model(folder, best=best) for best in (False, True))
    path = checkpoint_files(folder / "checkpoints")[-1]
    stored = [v for p, v in read_checkpoint(path).leaves.items() if p.startswith("['state'].model")]
    assert all(map(np.array_equal, jax.tree.leaves(newest), stored))
    assert jax.tree.structure(best) == jax.tree.structure(newest)
    assert same(nn.load_model(folder), newest)  # without this script
    assert nn.model_info(folder)["about"]["config"]["dataset"] == "digits"
    with pytest.raises(Refused, match=r"its config.json can't be read"):
        load_model(tmp_path)


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_must_be_the_same_run(run, folder, tmp_path):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for option, value, begun in [("learning-rate", 0.1, 0.001), ("batch", 8, 64), ("latent", 3, 8)]:
        code, printed = run("--resume", folder, f"--{option}", value)
        assert code == 2
        assert f"--{option} is {value} but {folder} was begun with {begun}; --epochs" in printed.err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert run("--resume", folder, "--epochs", 3, "--saving", 0.5)[0] == 0
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    code, printed = run("--resume", tmp_path / "nowhere")
    assert code == 2
    assert "its config.json can't be read" in printed.err


@pytest.mark.slow
def test_skipped_updates_are_counted_and_end_a_run_that_makes_no_other(run, tmp_path):
    code, printed = run("--on-nonfinite", "skip", "--clip", 10)
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    assert code == 0
    assert result["skipped_updates"] == 0
    assert "updates skipped" in printed.out
    code, printed = run("--on-nonfinite", "skip", "--learning-rate", "1e6")
    assert code == 1
    assert "none of the last 39" in printed.err


@pytest.mark.thorough
@pytest.mark.usefixtures("no_pictures")
def test_a_collapse_and_a_warm_up_that_is_too_long_are_told(run):
    with pytest.warns(UserWarning, match="beta rises to 1, but only 0.39 is reached in the 40 st"):
        assert run("--warmup", 100)[0] == 0
    with pytest.warns(UserWarning, match="rate is 0.0. nats: the posterior has collapsed"):
        code, printed = run("--beta", 100, "--learning-rate", 1e-2, "--epochs", 20)
    assert code == 0
    assert "the posterior has collapsed" in printed.err


def test_evaluation_averages_over_images_and_draws_a_key_for_each():
    model = make_model(Config(latent=2, hidden=8), (4, 4, 1), nnx.Rngs(0))
    images = uniform(7, 4, 4, 1)
    key = jax.random.key(2)
    whole = evaluate(model, key, images, identity)
    assert float(whole.elbo) == pytest.approx(-float(whole.rate + whole.distortion), rel=1e-5)
    repeated = log_marginals(
        model, jax.random.key(3), np.repeat(images[:1], 5, axis=0), identity, 3
    )
    assert len(set(repeated.value.tolist())) == 5


def identity(key, x):
    return x


@pytest.mark.thorough
def test_the_error_of_log_p_is_that_of_another_draw():
    """log p(x) measured 300 times from other keys: its spread is the error that each one states.

    Under a wide likelihood, whose weights have no heavy tail.
    """
    model = make_model(Config(latent=2, hidden=8, sigma=1.0), (4, 4, 1), nnx.Rngs(0))
    images = np.asarray(jax.random.uniform(jax.random.key(1), (50, 4, 4, 1)))

    def once(key):
        found, _ = report.measure(
            model, [*jax.random.split(key, 3)], images, images, identity, 50, 200
        )
        return found.log_marginal, found.standard_error

    means, errors = np.array([once(key) for key in jax.random.split(jax.random.key(2), 300)]).T
    assert 0.8 < np.std(means, ddof=1) / np.mean(errors) < 1.25


@pytest.mark.thorough
def test_rows_are_drawn_at_random_and_together():
    xs = {"a": np.arange(100), "b": np.arange(100)[:, None] * np.ones((1, 2))}
    some = drawn(jax.random.key(0), xs, 40)
    assert jnp.shape(some["a"]) == (40,)
    assert len(set(some["a"].tolist())) == 40
    assert np.array_equal(some["a"], some["b"][:, 1])
    assert 30 < np.mean(some["a"]) < 70
    assert np.any(np.diff(some["a"]) < 0)
    every = drawn(jax.random.key(1), xs, 1000)["a"]
    assert np.array_equal(np.sort(every), np.arange(100))
    assert not np.array_equal(every, np.arange(100))


def test_the_two_commands_of_the_readme_come_first():
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    with open(os.path.join(root, "README.md")) as file:
        head = file.read().split("```")[1]
    assert "uv run python -m experiments.train" in head
    assert "uv run pytest" in head
