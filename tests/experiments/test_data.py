"""The data layer, on made-up files of the published layouts; genuine ones where they are at hand.

JAXVAE_RAW_DATA may name a folder with the folders fashion_mnist, mnist and binarized_mnist.
"""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from experiments import prepare
from experiments.common.data import SPECS, DataError, Split, find, load, merge
from experiments.datasets import builders, raw, reading

FAMILY = ["fashion_mnist", "mnist", "binarized_mnist"]
TRAIN, VALIDATION, TEST = 40, 7, 12


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def gzipped(data: bytes, name: str = "", mtime: int = 0) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(name, "wb", fileobj=buffer, mtime=mtime) as file:
        file.write(data)
    return buffer.getvalue()


def keyed(*splits: Split) -> list[tuple[bytes, int]]:
    """The rows of the splits, sorted, so that only their order is forgotten."""
    return sorted(
        (image.tobytes(), -1 if split.labels is None else int(split.labels[i]))
        for split in splits
        for i, image in enumerate(split.images)
    )


def labels_of(split: Split) -> np.ndarray:
    assert split.labels is not None
    return split.labels


def write_raw(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Split]:
    """Writes small published files of `name`, makes them the expected ones, returns the rows."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    splits = {
        split: Split(
            rng.integers(0, 2 if name == "binarized_mnist" else 256, (size, 28, 28, 1), np.uint8),
            None if name == "binarized_mnist" else rng.integers(0, 10, size, np.int32),
        )
        for split, size in sizes.items()
        if split != "validation" or name == "binarized_mnist"
    }
    sha256 = {}
    if name == "binarized_mnist":
        pairs = [(s.images.reshape(-1, 784).astype(np.int8), [0]) for s in splits.values()]
        (folder / raw.PICKLE).write_bytes(gzipped(pickle.dumps(pairs)))
        pickled = (folder / raw.PICKLE).read_bytes()
        monkeypatch.setattr(raw, "PICKLE_MD5", hashlib.md5(pickled).hexdigest())
        sha256 = {k: hashlib.sha256(v).hexdigest() for k, v in raw.amat_files(pickled).items()}
    else:
        for split, prefix in {"train": "train", "test": "t10k"}.items():
            images, labels = splits[split]
            assert labels is not None
            for stem, array in {"images-idx3": images[..., 0], "labels-idx1": labels}.items():
                stem = f"{prefix}-{stem}-ubyte"
                if name == "mnist":
                    (folder / stem).write_bytes(idx(array))
                    monkeypatch.setitem(raw.MNIST_MD5, stem, hashlib.md5(idx(array)).hexdigest())
                else:
                    published = gzipped(idx(array), stem, raw.FASHION_TIMES[prefix])
                    sha256[f"{stem}.gz"] = hashlib.sha256(published).hexdigest()
                    (folder / f"{stem}.gz").write_bytes(published)
    monkeypatch.setattr(builders, "published_sha256", lambda _: sha256)
    return splits


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a small fashion_mnist in it."""
    write_raw("fashion_mnist", tmp_path / "raw", monkeypatch)
    builders.build("fashion_mnist", tmp_path / "tfds", tmp_path / "raw")
    return tmp_path / "tfds"


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, args)])
    return prepare.main()


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ----------------------------------------------------------------------------------- digits


def test_digits_are_those_of_scikit_learn(tmp_path):
    data = load("digits", data_dir=tmp_path)
    images, labels = load_digits(return_X_y=True)
    everything = Split(images.astype(np.uint8).reshape(-1, 8, 8, 1), np.asarray(labels))
    splits = (data.train, data.validation, data.test)
    assert [len(s.images) for s in splits] == [1297, 200, 300]
    assert keyed(*splits) == keyed(everything)  # each row once: disjoint, and all of them
    assert all(s.images.dtype == np.uint8 for s in splits)
    assert all(labels_of(s).dtype == np.int32 for s in splits)
    order = np.random.RandomState(1).permutation(1797)
    np.testing.assert_array_equal(data.train.images, everything.images[order[:1297]])
    np.testing.assert_array_equal(data.test.labels, labels[order[1497:]])
    assert min(np.bincount(labels_of(s)).min() / len(s.images) for s in splits) > 0.07
    assert (data.name, data.shape, data.max_value, data.binary) == ("digits", (8, 8, 1), 16, False)
    assert data.train.images.max() == data.max_value
    assert data.num_classes == 10
    assert "scikit-learn" in data.source


def test_digits_are_read_by_stock_tfds(tmp_path):
    data = load("digits", data_dir=tmp_path)
    stock: Any = tfds.data_source("digits", data_dir=tmp_path, download=False)
    sizes = {split: len(rows) for split, rows in stock.items()}
    assert sizes == {"train": 1297, "validation": 200, "test": 300}
    with quiet_absl():
        np.testing.assert_array_equal(stock["train"][3]["image"], data.train.images[3])


def test_digits_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    data = load("digits", data_dir=tmp_path / "file", validation=0)
    assert len(data.train.images) == 1497
    assert len(data.validation.images) == 0


@pytest.mark.slow
def test_two_processes_prepare_at_once(tmp_path):
    code = "import sys; from experiments.common.data import load; "
    code += "print(len(load('digits', data_dir=sys.argv[1]).train.images))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [
        subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["1297", "1297"]


def test_the_slower_of_two_builds_takes_the_result_of_the_faster(tmp_path, monkeypatch):
    genuine, builds = builders.Digits._split_generators, []

    def overtaken(self, dl_manager):
        builds.append(self)
        if len(builds) == 1:
            builders.build("digits", tmp_path)
        return genuine(self, dl_manager)

    monkeypatch.setattr(builders.Digits, "_split_generators", overtaken)
    folder = builders.build("digits", tmp_path)
    assert len(builds) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]


# ------------------------------------------------------------------- the genuine TFDS builders


@contextlib.contextmanager
def quiet_absl():
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS recommends OpenCV
    yield
    logging.set_verbosity(before)


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_built_is_genuine_to_stock_tfds(name, tmp_path, monkeypatch):
    splits = write_raw(name, tmp_path / "raw", monkeypatch)
    folder = builders.build(name, tmp_path / "tfds", tmp_path / "raw")
    data = load(name, data_dir=tmp_path / "tfds", validation=VALIDATION)

    builder = tfds.builder(name, data_dir=tmp_path / "tfds")
    assert builder.__class__ is tfds.builder_cls(name)
    assert builder.is_prepared()
    assert builder.data_dir == str(folder)
    info = reading.read_info(name, folder)
    assert info["moduleName"] == tfds.builder_cls(name).__module__
    assert info["version"] == str(builder.version)
    assert "tensorflow" not in sys.modules

    stock: Any = tfds.data_source(name, data_dir=tmp_path / "tfds", download=False)
    assert set(stock) == set(splits)
    with quiet_absl():
        for i in range(TEST):
            np.testing.assert_array_equal(stock["test"][i]["image"], data.test.images[i])
            if data.test.labels is not None:
                assert stock["test"][i]["label"] == data.test.labels[i]
    assert keyed(data.test) == keyed(splits["test"])
    if name == "binarized_mnist":
        assert data.train.labels is None
        assert keyed(data.train) == keyed(splits["train"])
        assert keyed(data.validation) == keyed(splits["validation"])
    else:
        assert keyed(data.train, data.validation) == keyed(splits["train"])
    spec = SPECS[name]
    assert (data.binary, data.max_value, data.num_classes, data.shape) == (
        (True, 1, 0, spec.shape) if name == "binarized_mnist" else (False, 255, 10, spec.shape)
    )


def test_recorded_checksums_are_found():
    for name, files in [("fashion_mnist", 4), ("mnist", 4), ("binarized_mnist", 3)]:
        assert len(builders.published_sha256(name)) == files
        assert builders.builder_class(name).url_infos == tfds.builder_cls(name).url_infos
    assert set(builders.published_sha256("binarized_mnist")) == set(raw.AMAT.values())


def test_a_download_is_read_as_local_files_are(tmp_path, monkeypatch, capsys):
    splits = write_raw("fashion_mnist", tmp_path / "raw", monkeypatch)
    asked = {}

    def download(self, urls):
        asked.update(urls)
        return {name: tmp_path / "raw" / name for name in urls}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    data = load("fashion_mnist", data_dir=tmp_path / "tfds", download=True, validation=0)
    assert keyed(data.train) == keyed(splits["train"])
    assert "downloading fashion_mnist" in capsys.readouterr().err
    assert all(url.startswith("http") and url.endswith(name) for name, url in asked.items())


@pytest.mark.parametrize(
    "error",
    [
        OSError("Max retries exceeded"),
        tfds.download.DownloadError("Failed to get url\nHTTP code: 404."),
        builders.NonMatchingChecksumError("has wrong checksum:\n* Expected: a\n* Got: b"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(error, tmp_path, monkeypatch):
    def download(*_):
        raise error

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    with pytest.raises(DataError, match="mnist could not be prepared in") as caught:
        load("mnist", data_dir=tmp_path, download=True)
    assert " ".join(str(error).split()) in one_line(caught)
    assert not any((tmp_path / "mnist").iterdir())


@pytest.mark.parametrize("stop", [OSError("No space left"), KeyboardInterrupt()])
def test_a_build_that_stops_midway_leaves_nothing(stop, tmp_path, monkeypatch):
    write_raw("mnist", tmp_path / "raw", monkeypatch)
    genuine = builders._examples

    def stopping(*args):
        for i, example in genuine(*args):
            if i == 5:
                raise stop
            yield i, example

    monkeypatch.setattr(builders, "_examples", stopping)
    expected = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else DataError
    with pytest.raises(expected):
        builders.build("mnist", tmp_path / "tfds", tmp_path / "raw")
    assert not any((tmp_path / "tfds/mnist").iterdir())
    monkeypatch.setattr(builders, "_examples", genuine)
    assert builders.build("mnist", tmp_path / "tfds", tmp_path / "raw").name == "3.0.1"


def test_what_a_killed_build_leaves_is_never_read(fashion):
    folder = fashion / "fashion_mnist/3.0.1"
    folder.rename(folder.with_name("incomplete.ABC123_3.0.1"))
    with pytest.raises(DataError, match="not prepared"):
        load("fashion_mnist", data_dir=fashion)


# ----------------------------------------------------------------------------------- loading


def test_validation_comes_from_the_end_of_train(fashion):
    whole = load("fashion_mnist", data_dir=fashion, validation=0)
    data = load("fashion_mnist", data_dir=fashion, validation=6)
    assert len(whole.train.images) == TRAIN
    assert len(whole.validation.images) == 0
    np.testing.assert_array_equal(data.train.images, whole.train.images[:-6])
    np.testing.assert_array_equal(data.validation.images, whole.train.images[-6:])
    np.testing.assert_array_equal(labels_of(data.validation), labels_of(whole.train)[-6:])
    np.testing.assert_array_equal(data.test.images, whole.test.images)
    for wrong in (-1, TRAIN):
        with pytest.raises(DataError, match=f"has {TRAIN} rows"):
            load("fashion_mnist", data_dir=fashion, validation=wrong)
    with pytest.raises(DataError, match="validation=10000"):
        load("fashion_mnist", data_dir=fashion)


def test_the_newest_version_is_found(tmp_path):
    for version in ("9.0.0", "10.0.0", "incomplete.A_11.0.0"):
        (tmp_path / "mnist" / version).mkdir(parents=True)
        (tmp_path / "mnist" / version / "dataset_info.json").touch()
    assert find("mnist", tmp_path) == tmp_path / "mnist/10.0.0"
    assert find("digits", tmp_path) is None


def test_merge():
    a = Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([1, 2], np.int32))
    b = Split(np.ones((1, 1, 1, 1), np.uint8), np.array([3], np.int32))
    both = merge(a, b)
    assert both.images.ravel().tolist() == [0, 0, 1]
    assert both.labels is not None
    assert both.labels.tolist() == [1, 2, 3]
    assert merge(a, Split(b.images, None)).labels is None


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(DataError, match=r"did you mean fashion_mnist\?") as caught:
        load("fashion-mnist", data_dir=tmp_path)
    assert all(name in one_line(caught) for name in SPECS)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "digits"])
def test_unprepared_says_what_to_run_at_once(name, tmp_path):
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        load(name, data_dir=tmp_path)
    assert time.perf_counter() - start < 1
    message = one_line(caught)
    assert f"experiments.prepare {name} --download --data-dir {tmp_path}`" in message
    assert (f"{name} --from DIR" in message) == (name != "omniglot")


def test_the_default_directory_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"mnist --download`$"):  # no --data-dir to add
        load("mnist")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "tensorflow_datasets")):
        load("mnist")


def test_importing_is_cheap():
    code = (
        "import sys, experiments.common.data as data; "
        "print({'jax', 'tensorflow_datasets'} & {*sys.modules})"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


# ------------------------------------------------------------------------------ damaged files


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, Path.unlink, flip_a_byte])
@pytest.mark.parametrize("file", ["fashion_mnist-train.array_record-00000-of-00001"])
def test_damaged_records_name_the_folder_and_the_fix(damage, file, fashion):
    folder = fashion / "fashion_mnist/3.0.1"
    damage(folder / file)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load("fashion_mnist", data_dir=fashion, validation=0)
    message = one_line(caught)
    assert f"delete {folder} and run" in message
    assert f"experiments.prepare fashion_mnist --from DIR --data-dir {fashion}" in message


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_metadata(file, fashion):
    folder = fashion / "fashion_mnist/3.0.1"
    truncate(folder / file)
    with pytest.raises(DataError, match="cannot be read") as caught:
        load("fashion_mnist", data_dir=fashion, validation=0)
    assert f"delete {folder} and run" in one_line(caught)


def test_another_format_or_shape_than_expected(fashion):
    info = fashion / "fashion_mnist/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="tfrecord files, which only TensorFlow reads: delete"):
        load("fashion_mnist", data_dir=fashion, validation=0)
    info.write_text(info.read_text().replace('"tfrecord"', '"array_record"'))
    with pytest.raises(DataError, match=r"uint8 \(28, 28, 1\), not \(8, 8, 1\)"):
        reading.read("digits", fashion / "fashion_mnist/3.0.1")
    with pytest.raises(DataError, match="a pixel is 255, above 1"):
        reading.read("binarized_mnist", fashion / "fashion_mnist/3.0.1")


def test_the_second_load_reads_the_cache_alone(fashion, monkeypatch):
    first = load("fashion_mnist", data_dir=fashion, validation=3)
    monkeypatch.setattr(reading, "_convert", None)
    second = load("fashion_mnist", data_dir=fashion, validation=3)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(second, split).images)
        np.testing.assert_array_equal(getattr(first, split).labels, getattr(second, split).labels)
    assert second.train.images.dtype == np.uint8


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_byte,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an array"),
        lambda path: np.savez(path, other=np.zeros(1)),
    ],
)
def test_a_damaged_cache_is_made_anew(damage, fashion, capsys):
    first = load("fashion_mnist", data_dir=fashion, validation=0)
    cache = fashion / "fashion_mnist/3.0.1/jaxvae-train.npz"
    good = cache.read_bytes()
    damage(cache)
    assert cache.read_bytes() != good
    capsys.readouterr()
    again = load("fashion_mnist", data_dir=fashion, validation=0)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    message = capsys.readouterr().err
    assert message.startswith(f"{cache} is damaged (")
    assert message.count("\n") == 1
    load("fashion_mnist", data_dir=fashion, validation=0)
    assert capsys.readouterr().err == ""


def test_an_outdated_cache_is_made_anew(fashion, tmp_path, monkeypatch):
    load("fashion_mnist", data_dir=fashion, validation=0)
    cache = fashion / "fashion_mnist/3.0.1/jaxvae-train.npz"
    kept = cache.read_bytes()
    cache.parent.rename(tmp_path / "old")
    smaller = write_raw("fashion_mnist", tmp_path / "raw2", monkeypatch)["train"]
    monkeypatch.setattr(raw, "decode", lambda files, f=raw.decode: halved(f(files)))
    builders.build("fashion_mnist", fashion, tmp_path / "raw2")
    cache.write_bytes(kept)
    data = load("fashion_mnist", data_dir=fashion, validation=0)
    assert len(data.train.images) == len(smaller.images) // 2


def halved(splits: dict[str, Split]) -> dict[str, Split]:
    return {
        k: Split(s.images[::2], None if s.labels is None else s.labels[::2])
        for k, s in splits.items()
    }


def test_without_a_cache_where_it_cannot_be_written(fashion, capsys):
    folder = fashion / "fashion_mnist/3.0.1"
    for split in ("train", "test"):
        (folder / f"jaxvae-{split}.npz/in the way").mkdir(parents=True)
    assert len(load("fashion_mnist", data_dir=fashion, validation=0).train.images) == TRAIN
    assert not list(folder.glob("*.tmp"))


# ------------------------------------------------------------------------- the published files


def test_gzip_header_is_restored():
    published = gzipped(b"pixels" * 50, "train-images-idx3-ubyte", 0x59A7E9DE)
    assert published[3] == 8
    end = published.index(b"\0", 10) + 1
    stripped = published[:3] + b"\0" + (0x5EDA0AED).to_bytes(4, "little") + published[8:10]
    stripped += published[end:]
    assert gzip.decompress(stripped) == b"pixels" * 50
    restored = raw.restore_gzip_header(stripped, "train-images-idx3-ubyte", 0x59A7E9DE)
    assert restored == published
    assert raw.restore_gzip_header(published, "another", 0) == published
    assert raw.restore_gzip_header(b"not gzip", "x", 0) == b"not gzip"


@pytest.mark.parametrize("name", FAMILY)
def test_files_come_in_either_form(name, tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    splits = write_raw(name, folder, monkeypatch)
    sha256 = builders.published_sha256(name)
    first = raw.read_files(name, folder, sha256)
    if name == "fashion_mnist":  # as Debian packs them: without name and time
        for path in folder.iterdir():
            data = path.read_bytes()
            path.write_bytes(data[:3] + bytes(5) + data[8:10] + data[data.index(b"\0", 10) + 1 :])
            assert gzip.decompress(path.read_bytes()) == gzip.decompress(data)
    elif name == "mnist":
        for path in list(folder.iterdir()):
            path.with_suffix(".gz").write_bytes(gzipped(path.read_bytes()))
            path.unlink()
    else:
        for filename, data in first.items():
            (folder / filename).write_bytes(data)
        (folder / raw.PICKLE).unlink()
    second = raw.read_files(name, folder, sha256)
    assert first == second
    decoded = raw.decode(second)
    assert set(decoded) == set(splits)
    for split, rows in splits.items():
        np.testing.assert_array_equal(decoded[split].images, rows.images)
        assert (decoded[split].labels is None) == (rows.labels is None)
        if rows.labels is not None:
            np.testing.assert_array_equal(decoded[split].labels, rows.labels)


def test_amat_is_text():
    images = np.zeros((2, 784), np.int8)
    images[1, 783] = 1
    pickled = gzipped(pickle.dumps([(images, [7, 7])] * 3))
    text = raw.amat_files(pickled)["binarized_mnist_valid.amat"]
    assert text == b"0 " * 783 + b"0\n" + b"0 " * 783 + b"1\n"
    np.testing.assert_array_equal(np.loadtxt(io.BytesIO(text)), images)
    np.testing.assert_array_equal(raw.read_amat(text).reshape(2, 784), images)
    with pytest.raises(ValueError, match="digits 0 and 1"):
        raw.read_amat(text.replace(b"1", b"2"))


def test_idx_of_another_type_is_refused():
    with pytest.raises(ValueError, match="IDX"):
        raw.read_idx(b"\0\0\x0d\x01" + bytes(8))


def test_nothing_is_unpickled_before_its_checksum_is_right(tmp_path, monkeypatch):
    write_raw("binarized_mnist", tmp_path / "raw", monkeypatch)
    flip_a_byte(tmp_path / "raw" / raw.PICKLE)
    monkeypatch.setattr(pickle, "loads", None)
    with pytest.raises(DataError, match=r"wrong md5: got .*, expected"):
        raw.read_files("binarized_mnist", tmp_path / "raw", {})


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
def test_a_wrong_file_is_one_line_with_status_2(name, damage, tmp_path, monkeypatch, capsys):
    write_raw(name, tmp_path / "raw", monkeypatch)
    path = min((tmp_path / "raw").iterdir())
    damage(path)
    assert run_cli(monkeypatch, name, "--from", tmp_path / "raw", "--data-dir", tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    if damage is not Path.unlink:
        assert err.startswith(f"error: {path} has the wrong ")
        assert "got " in err
        assert "expected " in err
    else:
        assert "is missing; needed are" in err
        assert path.name in err
    assert not (tmp_path / name).exists()


def test_a_truncated_gzip(tmp_path, monkeypatch, capsys):
    write_raw("mnist", tmp_path / "raw", monkeypatch)
    path = tmp_path / "raw/t10k-labels-idx1-ubyte"
    path.with_suffix(".gz").write_bytes(gzipped(path.read_bytes())[:-9])
    assert run_cli(monkeypatch, "mnist", "--from", tmp_path / "raw", "--data-dir", tmp_path) == 2
    err = capsys.readouterr().err
    assert f"error: {path}.gz is truncated or damaged" in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------ command line


def test_prepare_says_what_is_where_and_does_it_once(tmp_path, monkeypatch, capsys):
    write_raw("mnist", tmp_path / "raw", monkeypatch)
    args = ("mnist", "--from", tmp_path / "raw", "--data-dir", tmp_path / "tfds")
    assert run_cli(monkeypatch, *args) == 0
    out, err = capsys.readouterr()
    what = f"mnist: {TRAIN + TEST} examples (train {TRAIN}, test {TEST})"
    assert out.startswith(f"{what} written to {tmp_path}/tfds/mnist/3.0.1; train on it: python -m ")
    assert out.count("\n") == 1
    assert "writing mnist train" in err
    monkeypatch.setattr(builders, "build", None)
    assert run_cli(monkeypatch, *args) == 0
    assert capsys.readouterr().out.startswith(f"{what} is already prepared in {tmp_path}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mnits"], "unknown data set 'mnits' (did you mean mnist?)"),
        (["mnist"], "say where from: `python -m experiments.prepare mnist --from DIR"),
        (["mnist", "--from", "{}", "--download"], "say where from"),
        (["mnist", "--from", "{}/nowhere"], "no such directory: {}/nowhere"),
        (["digits", "--from", "{}"], "digits takes no --from"),
        (["omniglot", "--from", "{}"], "omniglot takes no --from"),
        (["digits", "--data-dir", "{}/file"], "{}/file cannot be written (File exists)"),
    ],
)
def test_mistakes_are_one_line_with_status_2(args, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert run_cli(monkeypatch, *(arg.format(tmp_path) for arg in args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: " + message.format(tmp_path))
    assert err.count("\n") == 1


def test_an_empty_version_folder_in_the_way(tmp_path, monkeypatch, capsys):
    (tmp_path / "digits/1.0.0").mkdir(parents=True)
    assert run_cli(monkeypatch, "digits", "--data-dir", tmp_path) == 2
    assert "exists but holds no data set: delete it" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- omniglot


def drawing(mode: str) -> bytes:
    """A PNG of 105x105, light paper, with a dark square in its upper left quarter."""
    paper = np.full((105, 105), 255, np.uint8)
    paper[15:45, 15:45] = 0
    buffer = io.BytesIO()
    Image.fromarray(paper).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_omniglot_image(mode):
    image = reading.omniglot_image(drawing(mode))
    assert (image.shape, image.dtype) == ((28, 28, 1), np.uint8)
    assert (image[4:12, 4:12] == 255).all()  # 15/3.75 = 4, 45/3.75 = 12
    assert image.sum() == 64 * 255


def test_omniglot_of_the_published_layout(tmp_path, monkeypatch):
    """1623 characters of 50 alphabets, as TFDS insists, two drawings of each in train."""
    png, classes = drawing("1"), SPECS["omniglot"].num_classes

    def pack(name: str, labels: range) -> None:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{name[:-4]}/", b"")
            for label in labels:
                folder = f"{name[:-4]}/Alphabet{label % 50:02}/character{label // 50 + 1:02}"
                for drawer in (1, 2) if label < 964 else (1,):
                    archive.writestr(f"{folder}/{label + 1:04}_{drawer:02}.png", png)

    pack("images_background.zip", range(964))
    pack("images_evaluation.zip", range(964, classes))
    pack("images_background_small1.zip", range(5))
    pack("images_background_small2.zip", range(5, 9))
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", lambda _, urls: {k: tmp_path / k for k in urls}
    )
    first = next(raw.omniglot_examples((tmp_path / "images_evaluation.zip").read_bytes()))
    assert first[0] == "Alphabet14_19_0965_01.png"  # the key that decides the order
    data = load("omniglot", data_dir=tmp_path / "tfds", download=True)
    sizes = [len(s.images) for s in (data.train, data.validation, data.test)]
    assert sizes == [2 * 964 - 1280, 1280, classes - 964]
    assert data.train.images.shape[1:] == data.shape == (28, 28, 1)
    assert (data.num_classes, data.max_value) == (classes, 255)
    pool = np.concatenate([labels_of(data.train), labels_of(data.validation)])
    np.testing.assert_array_equal(np.sort(pool), np.repeat(np.arange(964), 2))
    assert labels_of(data.test).min() == 964
    assert len(set(labels_of(data.validation) % 50)) == 50  # of every alphabet
    assert "tensorflow" not in sys.modules

    builder: Any = tfds.builder("omniglot", data_dir=tmp_path / "tfds")
    assert set(builder.info.splits) == {"train", "test", "small1", "small2"}
    label = labels_of(data.test)[0]
    row = builder.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()})[0]
    assert row["image"] == png
    assert row["label"] == label
    assert row["alphabet_char_id"] == label // 50
    alphabet = builder.info.features["alphabet"].int2str(row["alphabet"])
    assert alphabet == f"Alphabet{label % 50:02}"
    assert builder.info.features["label"].int2str(label) == f"{alphabet}_{label // 50}"


# ------------------------------------------------------------------------------ genuine files


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_genuine_files(name, tmp_path):
    folder = Path(os.environ.get("JAXVAE_RAW_DATA", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip("JAXVAE_RAW_DATA names no folder with the published files")
    builders.build(name, tmp_path, folder)
    data = load(name, data_dir=tmp_path)
    files = raw.read_files(name, folder, builders.published_sha256(name))
    published = raw.decode(files)
    assert [len(s.images) for s in (data.train, data.validation, data.test)] == [
        50000,
        10000,
        10000,
    ]
    assert keyed(data.test) == keyed(published["test"])
    train = [published[split] for split in published if split != "test"]
    assert keyed(data.train, data.validation) == keyed(*train)
    if name == "binarized_mnist":
        assert keyed(data.validation) == keyed(published["validation"])
    stock: Any = tfds.data_source(name, split="test", data_dir=tmp_path, download=False)
    with quiet_absl():
        for i in range(100):
            np.testing.assert_array_equal(stock[i]["image"], data.test.images[i])
