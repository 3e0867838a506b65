"""TFDS builders that need no TensorFlow, and `build`, which prepares a data set with them.

TFDS's own builders of the MNIST family and of Omniglot read and unpack their files through
TensorFlow. Here a subclass of each keeps all that TFDS sees (name, version, features, splits,
keys, recorded checksums) and replaces the reading, so that the result is the genuine data set.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from experiments.datasets import raw
from experiments.datasets.reading import progress
from experiments.datasets.specs import DataError, Split, find

Examples = Iterator[tuple[int | str, dict[str, Any]]]


class _Published:
    """Mixed into a TFDS builder: examples from `files`, or from what TFDS downloads if None."""

    name: str
    url_infos: Mapping[str, Any]  # TFDS's {url: size, checksum, file name}
    files: Mapping[str, bytes] | None = None
    report: TextIO | None = None  # where to show progress

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        files = self.files
        if files is None:
            urls = {info.filename: url for url, info in self.url_infos.items()}
            paths: Any = dl_manager.download(urls)
            files = {name: path.read_bytes() for name, path in paths.items()}
        return self._splits(files)

    def _splits(self, files: Mapping[str, bytes]) -> dict[str, Examples]:
        splits = raw.decode(files).items()
        what = f"writing {self.name}"
        return {split: _examples(rows, f"{what} {split}", self.report) for split, rows in splits}


class _Omniglot(_Published):
    info: tfds.core.DatasetInfo

    def _splits(self, files: Mapping[str, bytes]) -> dict[str, Examples]:
        archives = {
            "train": "images_background.zip",
            "test": "images_evaluation.zip",
            "small1": "images_background_small1.zip",
            "small2": "images_background_small2.zip",
        }
        splits = {name: list(raw.omniglot_examples(files[zip_])) for name, zip_ in archives.items()}
        examples = [example for rows in splits.values() for _, example in rows]
        names = {e["label"]: f"{e['alphabet']}_{e['alphabet_char_id']}" for e in examples}
        features: Any = self.info.features
        features["alphabet"].names = sorted({e["alphabet"] for e in examples})
        features["label"].names = [names[label] for label in sorted(names)]
        return {name: iter(rows) for name, rows in splits.items()}


with registered.skip_registration():

    class Digits(tfds.core.GeneratorBasedBuilder):
        """scikit-learn's 1797 digits, 8x8, 0..16, split 1297/200/300 by a fixed permutation."""

        name = "digits"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="The 1797 images of sklearn.datasets.load_digits, pixels 0 to 16.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="https://archive.ics.uci.edu/dataset/80",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
            from sklearn.datasets import load_digits

            images, labels = load_digits(return_X_y=True)
            images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
            order = np.random.RandomState(1).permutation(len(images))  # a frozen stream
            rows = zip(("train", "validation", "test"), np.split(order, [1297, 1497]), strict=True)
            labels = np.asarray(labels)
            return {split: _examples(Split(images[i], labels[i])) for split, i in rows}

        def _generate_examples(self, **_: Any) -> Any:
            raise NotImplementedError  # abstract in TFDS, but the splits above are all it needs


def published_sha256(name: str) -> dict[str, str]:
    """Returns {file name: sha256} of the published files, as TFDS has recorded them."""
    urls: Any = tfds.builder_cls(name).url_infos
    return {info.filename: info.checksum for info in urls.values()}


def builder_class(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    """Returns a TFDS builder of the genuine data set that never imports TensorFlow."""
    if name == "digits":
        return Digits
    genuine = tfds.builder_cls(name)
    mixin = _Omniglot if name == "omniglot" else _Published
    # By its module, written into dataset_info.json, TFDS finds the checksums it has recorded.
    attributes = {"name": name, "__module__": genuine.__module__}
    with registered.skip_registration():
        return cast(Any, type(genuine.__name__, (mixin, genuine), attributes))


def build(name: str, root: Path, source: Path | None = None) -> Path:
    """Prepares `name` under `root` as array_record files; returns the folder they are in.

    TFDS writes into a folder of another name and renames it when it is complete, so that a
    build that fails leaves nothing to be read, and of two at once the first to end wins.

    Args:
        name: one of `experiments.common.data.SPECS`.
        root: TFDS's data directory.
        source: folder with the published files; None lets TFDS download them (not the digits,
            which scikit-learn has). Checksums are verified either way.

    Raises:
        DataError: a published file is missing or wrong, `root` cannot be written, no network.
    """
    if folder := find(name, root):
        return folder
    files = None if source is None else raw.read_files(name, source, published_sha256(name))
    _require_writable(root)
    builder: Any = builder_class(name)(data_dir=root)
    builder.files, builder.report = files, None if files is None else sys.stderr
    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    local = files is not None or name == "digits"
    if not local:
        print(f"downloading {name}; without a network TFDS tries for minutes", file=sys.stderr)
    try:
        # TFDS prints where the data goes, and shows bars that only a download needs.
        with contextlib.ExitStack() as quiet:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if local:
                quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            builder.download_and_prepare(file_format="array_record", download_config=config)
    except (OSError, NonMatchingChecksumError, tfds.download.DownloadError) as error:
        if folder := find(name, root):  # another process was faster
            return folder
        reason = " ".join(str(error).split())
        raise DataError(f"{name} could not be prepared in {root}: {reason}") from error
    if folder := find(name, root):
        return folder
    raise DataError(f"{builder.data_dir} exists but holds no data set: delete it and try again")


def _examples(rows: Split, what: str = "", report: TextIO | None = None) -> Examples:
    images: Any = rows.images if report is None else progress(cast(Any, rows.images), what, report)
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image[..., 0]).save(png, "PNG")
        example: dict[str, Any] = {"image": png.getvalue()}
        if rows.labels is not None:
            example["label"] = int(rows.labels[i])
        yield i, example


def _require_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{root} cannot be written ({reason}): choose another") from error
