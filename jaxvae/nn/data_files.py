"""Data as they lie on a disk: arrays, tables, folders of images, annotated matrices."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

from jaxvae.checks import Location, checked

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class DataRefusedError(Exception):
    """A file that can't be read, or not be trained on; the message says why."""


def check_counts(**values: int) -> None:
    """Of a command, by the names of its options."""
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value < 1:
            raise DataRefusedError(f"--{flag} is {value}, expected an integer of at least 1")
        if value >= 2**31:
            raise DataRefusedError(f"--{flag} is {value}, expected less than 2^31")


class Rows(NamedTuple):
    """What a file holds: values [n, ...] as stored, and the frame or files they came from, if any.

    Of a mixed table the values are those columns of the frame.
    """

    values: Any
    frame: Any = None
    files: tuple[str, ...] = ()


@checked
def read_rows(path: Location, columns: tuple[str, ...] = (), *, mixed: bool = False) -> Rows:
    """The rows of a .npy, .npz, .csv, .parquet or .h5ad file, or of a folder of images.

    Args:
      path: of the file or folder; of several arrays in a .npz the one named x or the only one.
      columns: of a table, those wanted, in this order; by default all, which must be numbers.
      mixed: whether a table may have text and gaps.
    """
    path = Path(path)
    if not path.exists():
        raise DataRefusedError(f"{path} isn't there")
    reader = _images if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(sorted(READERS))
        raise DataRefusedError(f"{path} is none of {kinds}, and no folder of images")
    try:
        rows = reader(path)
    except DataRefusedError:
        raise
    except Exception as error:  # whatever a library makes of a broken file
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataRefusedError(f"{path} can't be read: {why}") from None
    if hasattr(rows, "columns"):
        if not len(rows):
            raise DataRefusedError(f"{path} has the names of columns and no rows")
        chosen = _chosen(path, rows, columns)
        if mixed and not all(map(_is_full, chosen.items())):
            return Rows(chosen, rows)
        rows = Rows(_numbers(path, chosen), rows)
    else:
        rows = rows if isinstance(rows, Rows) else Rows(rows)
    values = rows.values
    if values.dtype.kind not in "biuf" or values.ndim < 2 or not values.size:
        raise DataRefusedError(
            f"{path} holds {values.dtype}{list(values.shape)}, expected rows of numbers"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DataRefusedError(
            f"{path} holds no finite number in row {row}; drop such rows, or fill them in"
        )
    if (large := np.abs(values) > np.finfo(np.float32).max).any():
        row = int(np.argwhere(large)[0][0])
        raise DataRefusedError(
            f"{path} holds {values[large][0]:g} in row {row}, expected numbers that float32 holds"
        )
    return rows


def needed(package: str, what: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        name = {"PIL": "pillow"}.get(package, package)
        raise DataRefusedError(f"{what} needs {name}: pip install {name}") from None


def _npz(path: Path) -> np.ndarray:
    with np.load(path) as file:
        names = file.files
        if "x" not in names and len(names) != 1:
            raise ValueError(f"it has arrays {', '.join(names)}, expected one, or one named x")
        return file["x" if "x" in names else names[0]]


def _images(folder: Path) -> Rows:
    """Of the folder and of those within it, in the order of their names."""
    pillow = needed("PIL.Image", "a folder of images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"no image in it, expected {', '.join(IMAGES)}")
    images = []
    for file in files:
        images.append(_image(pillow, file))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{file.name} is {images[-1].shape} and {files[0].name} {images[0].shape}, "
                "expected images of one size and mode"
            )
    return Rows(np.stack(images), files=tuple(str(file.relative_to(folder)) for file in files))


def _image(pillow: Any, file: Path) -> np.ndarray:
    try:
        with pillow.open(file) as image:
            if image.mode[0] in "IF":  # which `convert` would clip at 255
                raise DataRefusedError(
                    f"{file} has pixels of more than 8 bits (mode {image.mode}), expected 8; scale "
                    "all images to floats in [0, 1] and give them as one array, a file .npy"
                )
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except DataRefusedError:
        raise
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataRefusedError(f"{file} can't be read: {why}") from None


def _h5ad(path: Path) -> np.ndarray:
    """X of an annotated matrix, dense or by compressed rows or columns."""
    with needed("h5py", path.name).File(path) as file:
        if (x := file.get("X")) is None:
            raise ValueError("it has no X")
        if hasattr(x, "dtype"):
            return x[()]
        form = x.attrs.get("encoding-type", x.attrs.get("h5sparse_format"))
        shape = x.attrs.get("shape", x.attrs.get("h5sparse_shape"))
        if shape is None or form not in ("csr_matrix", "csc_matrix", "csr", "csc"):
            raise ValueError(f"its X is {form}, expected a dense or a compressed matrix")
        matrix = np.zeros(shape, x["data"].dtype)
        lines = matrix if form.startswith("csr") else matrix.T
        starts = x["indptr"][:]
        number = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        lines[number, x["indices"][:]] = x["data"][:]
        return matrix


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": np.load,
    ".npz": _npz,
    ".csv": lambda path: needed("pandas", "a table").read_csv(path),
    ".parquet": lambda path: needed("pandas", "a table").read_parquet(path),
    ".h5ad": _h5ad,
}


def _chosen(path: Path, frame: Any, columns: tuple[str, ...]) -> Any:
    for name in columns:
        if columns.count(name) > 1:
            raise DataRefusedError(f"--columns has {name!r} twice, expected it once")
        if name not in frame.columns:
            raise DataRefusedError(
                f"{path} has no column {name!r}; it has {', '.join(map(str, frame.columns))}"
            )
    return frame[[*columns]] if columns else frame


def _is_full(column: tuple[str, Any]) -> bool:
    return column[1].dtype.kind in "biuf" and not column[1].isna().any()


def _numbers(path: Path, frame: Any) -> np.ndarray:
    for name, column in frame.items():
        if column.dtype.kind not in "biuf":
            raise DataRefusedError(
                f"{path}: column {name!r} holds {column.dtype}, expected numbers; jaxvae "
                "train takes some columns, --columns, or categories, --likelihood gaussian "
                "--network mlp"
            )
        if missing := int(column.isna().sum()):
            raise DataRefusedError(
                f"{path}: column {name!r} lacks {missing} of {len(frame)} values; drop such rows "
                "or fill them in; a model trained with --likelihood gaussian --network mlp on rows "
                "with gaps takes them"
            )
    return frame.to_numpy(np.float64)


def written_columns(path: Path, columns: dict[str, np.ndarray], frame: Any = None) -> int:
    """How many columns `write_rows` puts into the file."""
    if path.suffix.lower() == ".npy":
        return len(_numeric(columns))
    beside = () if frame is None or path.suffix.lower() == ".npz" else frame.columns
    return len({*beside, *columns})


def _numeric(columns: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [column for column in columns.values() if column.dtype.kind != "U"]


def write_rows(path: Path, columns: dict[str, np.ndarray], frame: Any = None) -> None:
    """Columns [n], beside those of a frame, as .csv, .parquet or .npz; as one array as .npy."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        np.save(path, np.stack(_numeric(columns), axis=1))
    elif suffix == ".npz":
        with ZipFile(path, "w") as archive:  # np.savez takes no array named file
            for name, column in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(column), allow_pickle=False)
    elif suffix in (".csv", ".parquet"):
        pandas = needed("pandas", suffix)
        table = pandas.DataFrame(columns) if frame is None else frame.assign(**columns)
        table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    else:
        raise DataRefusedError(f"--output {path}: expected .csv, .parquet, .npz or .npy")
