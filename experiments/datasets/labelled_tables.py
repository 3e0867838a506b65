"""Real tables whose odd rows are known, from two R packages, and entries put wrong in them."""

import hashlib
import lzma
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HOW = (
    "apt-get download r-cran-mlbench r-cran-modeldata, dpkg-deb -x each into one folder, and give "
    "its usr/lib/R/site-library"
)
CHECKSUMS = {
    "BreastCancer.rda": "1fcf1b82128c287b2777005a93a2b76fdb4d6749ed6df05231f85953f1fc7c2b",
    "Soybean.rda": "0f879952da961c845724bebecca44cd57ebbc60f22f7b3c0b6bf72812aafe842",
    "Rdata.rdb": "2ecef5e8da0f782ae4e3f65d928fe769702accffd8981cc358a3097f6736f58f",
}


class Labelled(NamedTuple):
    """A frame without its labels, and which rows are odd."""

    frame: Any
    odd: np.ndarray


def breast_cancer(folder: str) -> Labelled:
    """699 samples of cells, nine grades from 1 to 10 each, 16 missing; malignant ones are odd."""
    frame = _read(folder, "mlbench/data/BreastCancer.rda")["BreastCancer"]
    return Labelled(frame.drop(columns="Class"), (frame["Class"] == "malignant").to_numpy())


def credit(folder: str) -> Labelled:
    """4,454 loans: 9 numbers, 4 categories, 455 gaps; those that were not paid back are odd."""
    frame = _of_database(folder, "modeldata/data/Rdata", "credit_data")
    return Labelled(frame.drop(columns="Status"), (frame["Status"] == "bad").to_numpy())


def soybean(folder: str) -> Labelled:
    """683 ill plants, 35 categories, 2,337 gaps; illnesses of less than 17 plants are odd."""
    frame = _read(folder, "mlbench/data/Soybean.rda")["Soybean"]
    plants = frame["Class"].map(frame["Class"].value_counts()).astype(int)
    return Labelled(frame.drop(columns="Class"), plants.to_numpy() < 17)


GRADES = ("Cl.thickness", "Cell.size", "Cell.shape", "Marg.adhesion", "Epith.c.size",
          "Bare.nuclei", "Bl.cromatin", "Normal.nucleoli", "Mitoses")  # fmt: skip


def exchanged(frame: Any, names: list[str], seed: int) -> tuple[Any, np.ndarray]:
    """Rows with one entry replaced by another, drawn from its column, and in which column.

    Left out are rows whose entry was a gap, or is the same again.
    """
    rng = np.random.default_rng(seed)
    chosen, wrong = rng.integers(len(names), size=len(frame)), frame.copy()
    for i, name in enumerate(names):
        there = frame[name].dropna()
        drawn = there.iloc[rng.integers(len(there), size=len(frame))].set_axis(frame.index)
        other = frame[name].notna() & (drawn.astype(object) != frame[name].astype(object))
        wrong[name] = frame[name].where(~(other & (chosen == i)), drawn)
        chosen[(chosen == i) & ~other] = -1
    return wrong[chosen >= 0], chosen[chosen >= 0]


def measured(
    data: Labelled,
    found: Any,
    again: Any,
    columns: np.ndarray,
    surprise: Any,
    isolated: np.ndarray,
    isolated_again: np.ndarray,
) -> dict[str, float]:
    """AUROC of odd rows among all, and of exchanged ones beside these; and how good reasons are.

    Args:
      found, again: scores by a model, of all rows and of those with an entry exchanged.
      columns: in which column.
      surprise: of every entry of the latter, frame; the largest should be the one exchanged.
      isolated, isolated_again: as `found` and `again`, how odd rows are by something else.
    """
    from sklearn.metrics import roc_auc_score

    hits = np.argsort(-surprise.fillna(-np.inf).to_numpy()) == columns[:, None]
    wrong = np.repeat([0, 1], [len(found), len(again)])
    nats = np.append(found.per_observed, again.per_observed)
    return {
        "log p(x)": float(roc_auc_score(data.odd, -found.iwae)),
        "nats an entry": float(roc_auc_score(data.odd, -found.per_observed)),
        "forest": float(roc_auc_score(data.odd, isolated)),
        "gaps": float(roc_auc_score(data.odd, data.frame.isna().sum(axis=1))),
        "exchanged": float(roc_auc_score(wrong, -nats)),
        "exchanged, forest": float(roc_auc_score(wrong, np.append(isolated, isolated_again))),
        "first reason": float(hits[:, 0].mean()),
        "one of three": float(hits[:, :3].any(axis=1).mean()),
    }


def _checked(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file() or _sum(path) != CHECKSUMS[path.name]:
        raise SystemExit(f"{path} is not the file expected; {HOW}")
    return path


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(folder: str, name: str) -> Any:
    path = _checked(folder, name)
    return import_module("rdata").read_rda(path)


def _of_database(folder: str, name: str, table: str) -> Any:
    """A table of what R loads lazily: an index, and compressed pieces one after the other."""
    path, rdata = _checked(folder, f"{name}.rdb"), import_module("rdata")
    start, length = rdata.read_rds(path.with_suffix(".rdx"))["variables"][table]
    piece = path.read_bytes()[start : start + length]
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**26}]
    raw = lzma.decompress(piece[5:], lzma.FORMAT_RAW, filters=filters)  # behind its size and "Z"
    return rdata.conversion.convert(rdata.parser.parse_data(raw))
