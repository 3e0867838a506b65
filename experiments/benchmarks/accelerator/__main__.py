"""What a run on an accelerator found, as tables for docs/performance.md.

python -m experiments.benchmarks.accelerator OUT
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks.accelerator.stages import FLAGS, STAGES, kind_of
from experiments.common.command import command

Record = dict[str, Any]
STANDING = ("jaxvae", "PyTorch", "jaxvae in bfloat16", "PyTorch in bfloat16", "NumPyro")
FULL = "float32"
APART = 0.05  # losses that differ by more are said to


def records(out: Path) -> dict[str, dict[str, Record]]:
    """Stage -> measurement -> what was written, in the order of `STAGES`."""
    found: dict[str, dict[str, Record]] = {}
    for stage in STAGES:
        every = [json.loads(path.read_text()) for path in (out / stage.name).glob("*.json")]
        by_name = {record["name"]: record for record in every}
        names = [n for n in stage.measurements if n in by_name]
        found[stage.name] = {n: by_name[n] for n in [*names, *sorted(set(by_name) - set(names))]}
    return found


def measured(found: dict[str, Record]) -> dict[str, Record]:
    return {name: r for name, r in found.items() if kind_of(r) == "measured"}


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Any, form: str = ",.0f") -> str:
    return "-" if value is None else format(value, form)


def roof(program: Record, peaks: dict[str, Record], dtype: str, runs: int = 1) -> tuple[float, str]:
    """The least microseconds of a step of `runs` models at once, and what binds it.

    Launches: the kernels of a step, however many models; memory: value, gradient and Adam's two
    read, three written back, 28 bytes a parameter; products: operations at the rate of large ones.
    """
    needed = runs * program["operations"] / (1e6 * peaks["products"][dtype])
    moved = 28e-3 * runs * program["parameters"] / peaks["memory"]["gigabytes_per_second"]
    times = {
        "launches": program["kernels"] * peaks["launches"]["us_a_kernel"],
        "memory": moved,
        "products": needed,
    }
    binds = max(times, key=lambda name: times[name])
    return times[binds], binds


def standing(found: dict[str, dict[str, Record]]) -> Iterator[str]:
    """Everyone on every workload, beside the roof."""
    peaks, programs = measured(found["peaks"]), measured(found["programs"])
    by_workload: dict[tuple[str, str], dict[str, Record]] = {}
    for stage in STANDING:
        for name, record in measured(found[stage]).items():
            workload, dtype, who = name.split("/")
            by_workload.setdefault((workload, dtype), {})[who] = record
    cold = {name: r["first_step_seconds"] for name, r in measured(found["compilation"]).items()}
    rows, losses = [], []
    for (workload, dtype), peers in sorted(
        by_workload.items(), key=lambda i: (i[0][0], i[0][1] != FULL)
    ):
        ours = peers.get("jaxvae", {}).get("examples_per_second")
        program = programs.get(f"{workload}/scan")
        for who, r in peers.items():
            speed = r["examples_per_second"]
            binds, share = "-", None
            if program and {"products", "memory", "launches"} <= set(peaks):
                least, binds = roof(program, peaks, dtype)
                batch = program["examples_per_second"] * program["us_a_step"] / 1e6
                share = speed * least / (1e6 * batch)
            first = cold.get(f"{workload}/{dtype}/{who}", r["first_step_seconds"])
            rows.append([
                f"{workload}, {dtype}", who, number(speed),
                number(None if ours is None else ours / speed, ".2f"), binds, number(share, ".0%"),
                number(r.get("device_megabytes")), number(first, ".1f"), number(r["loss"], ".1f"),
            ])  # fmt: skip
        losses.append(f"{workload} in {dtype}: {agreement(peers)}")
    if rows:
        heads = ["", "", "examples/s", "jaxvae is, times", "what binds", "share of that roof",
                 "MB on the device", "first step, s", "loss"]  # fmt: skip
        yield table(heads, rows)
        yield "Last losses after as many steps: " + "; ".join(losses) + "."


def agreement(peers: dict[str, Record]) -> str:
    """Of last losses after as many steps."""
    values = [r["loss"] for r in peers.values()]
    spread = (max(values) - min(values)) / abs(sum(values) / len(values))
    return f"{'agree' if spread <= APART else 'DIFFER'}, by {spread:.1%} among {len(values)}"


def seeds(found: dict[str, dict[str, Record]]) -> Iterator[str]:
    """Many runs at once, against one."""
    every = measured(found["seeds"]) | measured(found["seeds by PyTorch"])
    peaks, programs = measured(found["peaks"]), measured(found["programs"])
    ones = {n.split("/")[0].split(" x")[0]: r["examples_per_second"] for n, r in every.items()
            if n.split("/")[0].endswith(" x1")}  # fmt: skip
    rows = []
    for name, r in sorted(every.items(), key=lambda item: _runs(item[0])):
        workload, _, who = name.split("/")
        base, speed = workload.split(" x")[0], r["examples_per_second"]
        share, program = None, programs.get(f"{base}/scan")
        if program and {"products", "memory", "launches"} <= set(peaks):
            one = program["examples_per_second"] * program["us_a_step"] / 1e6
            least, _ = roof(program, peaks, "float32", _runs(name)[1])
            share = speed * least / (1e6 * one * _runs(name)[1])
        times = speed / ones[base] if base in ones else None
        rows.append([
            workload, who, number(speed), number(times, ".1f"), number(share, ".0%"),
            number(r.get("device_megabytes")), number(r["first_look_seconds"], ".1f"),
        ])  # fmt: skip
    if rows:
        losses = []
        for workload in dict.fromkeys(name.split("/")[0] for name in every):
            peers = {n: r for n, r in every.items() if n.startswith(f"{workload}/")}
            losses.append(f"{workload}: {agreement(peers)}")
        heads = ["runs", "", "examples/s", "times one run's", "share of its roof",
                 "MB on the device", "first results after, s"]  # fmt: skip
        yield table(heads, rows)
        yield "Last losses after as many steps: " + "; ".join(losses) + "."


def _runs(name: str) -> tuple[str, int]:
    base, _, times = name.split("/")[0].partition(" x")
    return base, int(times)


def programs(found: dict[str, dict[str, Record]]) -> Iterator[str]:
    """One loop in many ways, against the plain scan."""
    stages = ["programs", *FLAGS]
    base = measured(found["programs"])
    rows = []
    for stage in stages:
        for name, r in measured(found[stage]).items():
            plain = base.get(f"{name.split('/')[0]}/scan")
            times = plain["us_a_step"] / r["us_a_step"] if plain else None
            label = name if stage == "programs" else f"{name}, {stage}"
            rows.append([label, number(r["us_a_step"], ",.1f"), number(times, ".2f"),
                         number(r["kernels"], ",.1f"), number(r["megabytes_moved"], ",.1f"),
                         number(r["waits"]), number(r["compile_seconds"], ".1f")])  # fmt: skip
    if rows:
        heads = ["", "us a step", "times as fast as the scan", "kernels", "MB moved", "waits",
                 "compilation, s"]  # fmt: skip
        yield table(heads, rows)


def deep(found: dict[str, dict[str, Record]]) -> Iterator[str]:
    """The hierarchy's step, against the rate of large products."""
    peaks, rows = measured(found["peaks"]), []
    for stage in [name for name in found if name.startswith("deep")]:
        for name, r in measured(found[stage]).items():
            rate = r["operations"] / r["us_a_step"] / 1e6
            share = rate / peaks["products"]["float32"] if "products" in peaks else None
            rows.append([f"{name}{stage.removeprefix('deep')}", number(r["us_a_step"] / 1e3, ".2f"),
                         number(rate, ".2f"), number(share, ".1%"), number(r["kernels"]),
                         number(r["megabytes_moved"]), number(r["megabytes_of_buffers"]),
                         number(r["compile_seconds"], ".0f")])  # fmt: skip
    if rows:
        heads = ["", "ms a step", "TFLOP/s", "of the float32 peak", "kernels", "MB moved",
                 "MB of buffers", "compilation, s"]  # fmt: skip
        yield table(heads, rows)


def aims(found: dict[str, dict[str, Record]]) -> Iterator[str]:
    """What was hoped for before anything was measured."""
    flat = {name: r for stage in found.values() for name, r in measured(stage).items()}

    def value(name: str, field: str = "examples_per_second") -> float | None:
        return flat.get(name, {}).get(field)

    def times(a: float | None, *others: float | None) -> float | None:
        known = [b for b in others if b is not None]
        return None if a is None or not known else a / max(known)

    def best(workload: str) -> list[float | None]:
        peers = [n for n in flat if n.startswith(f"{workload}/{FULL}/PyTorch")]
        return [value(name) for name in peers]

    w1, sixteen = value(f"W1/{FULL}/jaxvae"), value(f"W1 x16/{FULL}/jaxvae")
    peaks = measured(found["peaks"]).get("products", {})
    deeps = [r for name, stage in found.items() if name.startswith("deep")
             for r in measured(stage).values()]  # fmt: skip
    rate = max((r["operations"] / r["us_a_step"] / 1e6 for r in deeps), default=None)
    rows = [
        ["W1, images/s", "1,500,000", number(w1)],
        ["W1, times PyTorch with CUDA graphs", "1.3",
         number(times(w1, value(f"W1/{FULL}/PyTorch, CUDA graphs")), ".2f")],
        ["sixteen seeds, times one", "8",
         number(times(sixteen, value(f"W1 x1/{FULL}/jaxvae")), ".1f")],
        ["sixteen seeds, times torch.func", "2", number(times(sixteen, *best("W1 x16")), ".1f")],
        ["1,024 runs of the digits, s", "10",
         number(value(f"digits x1024/{FULL}/jaxvae", "first_look_seconds"), ".1f")],
        *([f"{w}, times the best PyTorch", "1.2",
           number(times(value(f"{w}/{FULL}/jaxvae"), *best(w)), ".2f")] for w in ("W3", "W5")),
        ["deep hierarchy, of the float32 peak", "15 %",
         number(rate and times(rate, peaks.get(FULL)), ".1%")],
    ]  # fmt: skip
    yield table(["", "aimed at", "reached"], rows)


def summary(out: Path) -> str:
    """All that was found, and what was not."""
    found = records(out)
    peaks = measured(found["peaks"])
    parts = ["## On one accelerator"]
    if about := peaks.get("device"):
        parts.append(", ".join(f"{k} {v}" for k, v in about.items() if k != "name"))
    rates = {k: v for n, r in peaks.items() if n != "device" for k, v in r.items() if k != "name"}
    if rates:
        said = {"float32": "TFLOP/s, float32 product", "bfloat16": "TFLOP/s, bfloat16 product"}
        rows = [[said.get(k, k.replace("_", " ")), number(v, ",.2f")] for k, v in rates.items()]
        parts.append(table(["what it can do", ""], rows))
    for title, part in {
        "Where we stand": standing,
        "Many runs at once": seeds,
        "What makes it faster": programs,
        "A deep hierarchy": deep,
        "Aims": aims,
    }.items():
        parts += [f"### {title}", *(list(part(found)) or ["Nothing was measured."])]
    failures = []
    for stage in STAGES:
        for name in stage.measurements:
            r = found[stage.name].get(name, {})
            if (kind := kind_of(r)) != "measured":
                failures.append(f"- {stage.name}: {name}: {kind} {r.get(kind, '')}".rstrip())
    parts += ["### Not measured", "\n".join(failures) or "Nothing: all was."]
    return "\n\n".join(parts)


def main(out: tyro.conf.Positional[Path]) -> None:
    print(summary(out))


if __name__ == "__main__":
    command(main, __doc__)
