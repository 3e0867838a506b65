"""Infant deaths in the counties of North Carolina, their outlines and maps of them."""

import hashlib
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.collections import PolyCollection

from experiments.common.plotting import figure, save, styled

CHECKSUMS = {
    "sids2.dbf": "da02eb1a8416e008d20d6ddd615616ff283eece647875f64264d2d3b53076ef6",
    "sids2.shp": "265f1b1f926e3f8a6067689d3e570b7a6ff451271c27ea555ee3d597a8bc0cf4",
}
HOW = "pip download --no-deps libpysal==4.12.1, and unzip it: libpysal/examples/sids2"


class Counties(NamedTuple):
    """In one order: names, deaths of 1974 to 1978, those expected at the state's rate of births,
    the counties' middles on a plane that is 1 wide, and their outlines by longitude, latitude."""

    names: list[str]
    deaths: np.ndarray
    expected: np.ndarray
    places: np.ndarray
    outlines: list[list[np.ndarray]]


def read(folder: str) -> Counties:
    for name, checksum in CHECKSUMS.items():
        path = Path(folder) / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise SystemExit(f"{path} is not the file expected; {HOW}")
    rows = table((Path(folder) / "sids2.dbf").read_bytes())
    outlines = polygons((Path(folder) / "sids2.shp").read_bytes())
    births, deaths = (
        np.array([float(row[column]) for row in rows], np.float32) for column in ("BIR74", "SID74")
    )
    middles = np.stack([middle(max(rings, key=len)) for rings in outlines])
    plane = middles * [np.cos(np.radians(35.5)), 1.0]
    places = ((plane - plane.min(0)) / np.ptp(plane[:, 0])).astype(np.float32)
    expected = births * (deaths.sum() / births.sum())
    return Counties([row["NAME"] for row in rows], deaths, expected, places, outlines)


def table(data: bytes) -> list[dict[str, str]]:
    """The rows of a dBase file."""
    count, header, size = struct.unpack("<IHH", data[4:12])
    fields = [data[i : i + 32] for i in range(32, header - 1, 32)]
    names = [field[:11].split(b"\0")[0].decode() for field in fields]
    edges = np.cumsum([1, *(field[16] for field in fields)])
    lines = [data[header + size * i :][:size].decode("latin-1") for i in range(count)]
    return [
        {name: line[a:b].strip() for name, (a, b) in zip(names, pairwise(edges), strict=True)}
        for line in lines
    ]


def polygons(data: bytes) -> list[list[np.ndarray]]:
    """The rings [points, 2] of every polygon of a shapefile."""
    found, start = [], 100
    while start < len(data):
        (words,) = struct.unpack(">I", data[start + 4 : start + 8])
        parts, points = struct.unpack("<II", data[start + 44 : start + 52])
        begin = start + 52
        edges = [*struct.unpack(f"<{parts}I", data[begin : begin + 4 * parts]), points]
        plane = np.frombuffer(data, "<f8", 2 * points, begin + 4 * parts).reshape(-1, 2)
        found.append([plane[a:b] for a, b in pairwise(edges)])
        start += 8 + 2 * words
    return found


def middle(ring: np.ndarray) -> np.ndarray:
    """The centre of mass of the area within a closed ring."""
    inside = ring - ring[0]
    (x, y), (u, v) = inside[:-1].T, inside[1:].T
    cross = x * v - u * y
    return ring[0] + np.array([((x + u) * cross).sum(), ((y + v) * cross).sum()]) / (
        3.0 * cross.sum()
    )


@styled
def draw(path: str, counties: Counties, names: list[str], pairs: Any) -> None:
    """Maps of the relative risk: as counted, and its mean by the chains of each name."""
    means = [np.mean([np.exp(c["risk"]).mean(0) for c in of], 0) for of in zip(*pairs, strict=True)]
    maps = {"deaths / expected": counties.deaths / counties.expected}
    maps |= {f"posterior mean, {name}": mean for name, mean in zip(names, means, strict=True)}
    picture = figure(5.0, 6.2)
    for axes, (title, values) in zip(picture.subplots(len(maps)), maps.items(), strict=True):
        every = zip(counties.outlines, values, strict=True)
        rings, numbers = zip(*((r, v) for rings, v in every for r in rings), strict=True)
        shapes = PolyCollection(rings, array=numbers, cmap="viridis")
        shapes.set(clim=(0.4, 2.0), edgecolor="white", linewidth=0.3)
        axes.add_collection(shapes)
        axes.set(title=title, aspect=1.23, xlim=(-84.5, -75.3), ylim=(33.8, 36.7))
        axes.set_axis_off()
        picture.colorbar(shapes, ax=axes, shrink=0.8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save(picture, Path(path))
