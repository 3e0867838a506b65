"""What it costs that data are streamed: `fit` on a stream beside `fit` on arrays, in turns.

    python -m experiments.benchmarks.streaming
    python -m experiments.benchmarks.streaming --rounds 3 --rows 200000 --images 1000

Prints for each kind of data the median over rounds of the time of a step, as a ratio to arrays of
the same batches on the device, and the memory that the process took beyond its start (what is
mapped from files left out). Writes its files, one of `--rows` rows of 784 bytes and so many PNGs,
into a folder of its own and removes them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import scipy.sparse
from PIL import Image

import jaxvae
from experiments.benchmarks.peers.ours import make_model
from experiments.benchmarks.workloads import WORKLOADS, Workload, pixels

LOOKS = 6
Train = Callable[[Callable[..., None]], Any]


def anonymous_megabytes() -> float:
    """Of this process, without what is mapped from files; NaN where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return np.nan
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def seconds_a_look(train: Train) -> tuple[float, float]:
    """Between two looks, the median, and the megabytes that came to be used."""
    looks, megabytes = [], [anonymous_megabytes()]

    def look(*_: Any) -> None:
        looks.append(time.perf_counter())
        megabytes.append(anonymous_megabytes())

    train(look)
    return float(np.median(np.diff(looks))), max(megabytes) - megabytes[0]


def in_turns(title: str, ways: dict[str, Train], rounds: int) -> None:
    """Every way once a round, as ratios to the first way of the same round."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for train in ways.values():
        seconds_a_look(train)  # compiles
    for _ in range(rounds):
        for way, train in ways.items():
            found[way].append(seconds_a_look(train))
    first = next(iter(found.values()))
    print(title)
    for way, numbers in found.items():
        ratios = [seconds / whole for (seconds, _), (whole, _) in zip(numbers, first, strict=True)]
        print(
            f"  {way:<28} {np.median(ratios):6.3f} ({min(ratios):.3f} to {max(ratios):.3f}) "
            f"{max(m for _, m in numbers):8.0f} MB",
            flush=True,
        )


def trainer(w: Workload, **how: Any) -> Callable[..., Any]:
    """`fit` of a workload's network on pixels of 0 to 255, looked at every `w.chunk` steps."""
    optimizer, key = optax.adam(1e-3), jax.random.key(0)
    model = make_model(w, key)
    step = jaxvae.train_step(jaxvae.preprocessed(jaxvae.elbo, jaxvae.rescale), optimizer)

    def train(data: Any, look: Callable[..., None], **more: Any) -> None:
        state = jaxvae.init_state(model, optimizer)
        jaxvae.fit(
            step, state, jax.random.key(1), data, epochs=LOOKS, callbacks=[look], **how, **more
        )

    return train


def grain_batches(rows: Any, read: Callable[[Any], np.ndarray], batch: int) -> Any:
    import grain

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch)
    data = grain.MapDataset.source(rows).seed(0).shuffle().repeat().map(read)
    return data.to_iter_dataset(options).batch(batch)


def memory_mapped(folder: Path, rows: int, rounds: int) -> None:
    """A file, of which a tenth may be in memory: batches of it, cut by hand and by Grain."""
    w = WORKLOADS["W3"]
    some = (255 * pixels(w.chunk * w.batch, w.shape)).astype(np.uint8)
    file = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.uint8, (rows, *w.shape))
    for i in range(0, rows, len(some)):
        file[i : i + len(some)] = some[: rows - i]
    file.flush()
    file = np.load(folder / "rows.npy", mmap_mode="r")
    train = trainer(w)

    def cut() -> Iterator[np.ndarray]:
        for i in np.random.default_rng(0).permutation(rows // w.batch):
            yield file[i * w.batch : (i + 1) * w.batch]

    stream = {"steps_per_epoch": w.chunk, "steps_per_call": w.chunk}
    grains = grain_batches(file, np.asarray, w.batch)
    ways: dict[str, Train] = {
        "arrays on the device": lambda look: train(some, look, batch_size=w.batch),
        "blocks of a mapped file": lambda look: train(cut, look, **stream),
        "rows of it, by Grain": lambda look: train(grains, look, **stream),
    }
    in_turns(f"{w.name}, {w.about}: {file.nbytes / 1e6:.0f} MB in a file", ways, rounds)


def folder_of_images(folder: Path, images: int, rounds: int) -> None:
    """PNGs of 28x28, read and decoded by Grain, for W1 and W3."""
    for name in ("W1", "W3"):
        w = WORKLOADS[name]
        some = (255 * pixels(w.chunk * w.batch, w.shape)).astype(np.uint8)
        for i in range(images):
            Image.fromarray(some[i % len(some), ..., 0]).save(folder / f"{i}.png")
        files = sorted(folder.glob("*.png"))
        train = trainer(w)
        data = grain_batches(files, lambda f: np.asarray(Image.open(f))[..., None], w.batch)
        stream = {"steps_per_epoch": w.chunk, "steps_per_call": w.chunk}
        ways: dict[str, Train] = {
            "arrays on the device": lambda look, t=train, s=some, w=w: t(
                s, look, batch_size=w.batch
            ),
            "PNGs, by Grain": lambda look, t=train, d=data, s=stream: t(d, look, **s),
        }
        in_turns(f"{w.name}, {w.about}: {len(files)} PNGs in a folder", ways, rounds)


def sparse_rows(rows: int, rounds: int) -> None:
    """Rows of 2,000 columns, 40 of them filled, beside dense ones; a network as W1's."""
    w = WORKLOADS["W1"]._replace(shape=(2000, 1, 1))
    rng = np.random.default_rng(0)
    entries = np.full(40 * rows, 255, np.uint8)
    columns = (rng.integers(0, 50, (rows, 40)) + 50 * np.arange(40)).astype(np.int32).ravel()
    matrix = scipy.sparse.csr_array((entries, columns, 40 * np.arange(rows + 1)), (rows, 2000))
    some = matrix[: w.chunk * w.batch].toarray()
    train = trainer(w._replace(shape=(2000,)))
    ways: dict[str, Train] = {
        "arrays on the device": lambda look: train(some, look, batch_size=w.batch),
        "as many sparse rows": lambda look: train(
            matrix[: len(some)], look, batch_size=w.batch, steps_per_call=w.chunk
        ),
    }
    in_turns(f"a network as W1's, 2000 columns: {len(some)} rows", ways, rounds)

    class Enough(Exception):
        pass

    def all_rows(look: Callable[..., None]) -> None:
        left = iter(range(LOOKS - 1))

        def looked(*_: Any) -> None:
            look()
            if next(left, None) is None:
                raise Enough

        with suppress(Enough):
            train(matrix, looked, batch_size=w.batch, steps_per_call=w.chunk)

    ways["as many sparse rows"] = all_rows
    in_turns(f"the same: {rows} sparse rows", ways, rounds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--only", choices=("file", "images", "sparse"))
    c = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if c.only in (None, "file"):
            memory_mapped(folder, c.rows, c.rounds)
        if c.only in (None, "images"):
            folder_of_images(folder, c.images, c.rounds)
    if c.only in (None, "sparse"):
        sparse_rows(c.rows, c.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
