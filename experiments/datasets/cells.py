"""Counts of genes in single cells, and how well latents tell types: NumPy alone, for peers too."""

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

CHECKSUM = "e71d41e737c941559b7c57c9243bdb3d2c889c2adfdf00e3422ac6b46783676f"
HOW = (
    "pip download --no-deps scanpy==1.11.5, and unzip it: scanpy/datasets/10x_pbmc68k_reduced.h5ad"
)


def read(path: str) -> tuple[Any, np.ndarray, list[str]]:
    """(counts, {size, phase}) of every cell, the number of its type, and the types' names."""
    h5py: Any = import_module("h5py")
    if not Path(path).is_file() or hashlib.sha256(Path(path).read_bytes()).hexdigest() != CHECKSUM:
        raise SystemExit(f"{path} is not the file expected; {HOW}")
    with h5py.File(path) as file:
        raw, obs = file["raw.X"], file["obs"][:]
        dense = np.zeros((len(obs), len(file["raw.var"])))
        rows = np.repeat(np.arange(len(obs)), np.diff(raw["indptr"][:]))
        dense[rows, raw["indices"][:]] = np.expm1(raw["data"][:])
        names = [name.decode() for name in file["uns/bulk_labels_categories"][:]]
    # stored as log(1 + 10^4 x / size)
    counts = np.rint(dense * obs["n_counts"][:, None] / 1e4).astype(np.float32)
    phase = np.eye(3, dtype=np.float32)[obs["phase"]]
    return (counts, {"size": counts.sum(1), "phase": phase}), obs["bulk_labels"], names


def split(seed: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and one in five to test on."""
    rows = np.random.default_rng(seed).permutation(cells)
    return rows[cells // 5 :], rows[: cells // 5]


def measured(latents: np.ndarray, types: np.ndarray, nats: Any) -> dict[str, float]:
    """Nats a held-out cell with the error of that mean, and how far k-means finds the types."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    means: Any = KMeans(len(np.unique(types)), random_state=0)
    found = means.set_params(n_init=10).fit_predict(latents)
    nats = np.asarray(nats)
    return {
        "nats": float(nats.mean()),
        "error": float(nats.std(ddof=1) / len(nats) ** 0.5),
        "ARI": float(adjusted_rand_score(types, found)),
        "NMI": float(normalized_mutual_info_score(types, found)),
    }
