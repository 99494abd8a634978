"""Train the forecasts' residual network from any files of series, and say what it is worth where it did not learn.

Not a measurement of the product: bench/forecast.py is that, with the network that ships. Three kinds of series teach:
those given (75 % of every batch, each data set in proportion to the root of its windows), the same ones coarser, summed
over machines or counted in other steps (15 %), and synthetic ones (10 %). Without --data synthetic ones alone teach.

    python bench/train.py --data FILES... [--seed 0] [--validate] [--quick] --out DIR

writes DIR/monitor.onnx and DIR/train.json: the sha256 of every file and of the network, and with --validate what
networks trained without the data they are judged on bring: two folds (every other file of a data set, or of a single
file every other half of its time), and each data set left out whole.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more threads add up in another order: other bits
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import report
import rolling
import traces
from numpy.typing import NDArray
from rolling import Row
from synthetic import synthetic

from lepton_ai.scheduler import learn, network
from lepton_ai.scheduler.forecast import Forecaster

WINDOWS_MOST = 250_000
"""Of a data set more windows do not teach more: they overlap; every n-th is taken."""
SHARES = {"given": 0.75, "derived": 0.15, "synthetic": 0.10}
COARSER = (2, 3)
OTHER_STEPS_S = (1.0, 2.0, 3.0, 8.0)
SUMS = 400
"""Sums of machines for each file of machines: 2 to 32 of them, as a host carries."""
SYNTHETIC = 100
"""Series of each synthetic kind."""

Data = dict[str, list[Row]]


def main() -> int:
    options = arguments()
    started_s = time.monotonic()
    given = rolling.rows(options.data) if options.data else {}
    other = finer(options.data)
    size = {"members": 1, "steps": 300} if options.quick else {"members": learn.MEMBERS, "steps": learn.STEPS}
    made = network.pack(trained(given, other, options.seed, size))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "monitor.onnx").write_bytes(made)
    found: dict[str, object] = {
        "network": {"sha256": hashlib.sha256(made).hexdigest(), "bytes": len(made), "seed": options.seed, **size},
        "data": {path.name: digest(path) for path in traces.files(options.data)},
        "command": "python bench/train.py --data FILES --seed " + str(options.seed),
        "train_s": round(time.monotonic() - started_s, 1),
        "machine": report.machine(),
    }
    if options.validate:
        found["folds"] = folds(given, other, options.seed, size)
        found["left_out"] = left_out(given, other, options.seed, size)
    path = options.out / "train.json"
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(found["network"]), f"\nwritten: {path}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], help="files or folders in the documented columns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="folds, and each data set left out")
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that the command works")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finer(paths: Iterable[Path]) -> Data:
    """Requests counted in other steps than the ones they are judged by."""
    found: Data = {}
    for path in traces.files(paths):
        if traces.kind(path) != "requests":
            continue
        for step_s in OTHER_STEPS_S:
            for item in traces.series(path, step_s):
                values = item.values[0]
                if rolling.origins(values):
                    found.setdefault(item.data, []).append(Row(values, float(values.mean()), step_s, item.name))
    return found


def trained(given: Data, other: Data, seed: int, size: dict[str, int]) -> network.Weights:
    """A network from these series, their derived ones and synthetic ones."""
    groups: dict[str, learn.Examples] = {}
    shares: dict[str, float] = {}
    derived = {data: derive(rows, seed) + other.get(data, []) for data, rows in given.items()}
    for part, held in (("given", given), ("derived", derived)):
        roots = {data: float(np.sqrt(sum(rolling.origins(row.values) for row in rows))) for data, rows in held.items()}
        for data, rows in held.items():
            groups[f"{part} {data}"] = examples(rows)
            shares[f"{part} {data}"] = SHARES[part] * roots[data] / sum(roots.values())
    made = [values for kind in synthetic(seed, SYNTHETIC).values() for values in kind]
    groups["synthetic"] = learn.examples(made, every=4)
    shares["synthetic"] = SHARES["synthetic"]
    return learn.train(groups, shares, seed=seed, **size)


def examples(rows: Sequence[Row]) -> learn.Examples:
    every = max(1, sum(rolling.origins(row.values) for row in rows) // WINDOWS_MOST)
    levels: dict[float, list[NDArray[np.float64]]] = {}
    for row in rows:
        levels.setdefault(row.level, []).append(row.values)
    return learn.together([learn.examples(held, every=every, level=level) for level, held in levels.items()])


def derive(rows: Sequence[Row], seed: int) -> list[Row]:
    """Coarser series of single ones; of machines, sums of some."""
    random = np.random.default_rng((seed, 7))
    files: dict[str, list[Row]] = {}
    for row in rows:
        files.setdefault(row.name, []).append(row)
    found: list[NDArray[np.float64]] = []
    for held in files.values():
        if len(held) == 1:
            values = held[0].values
            found += [values[: len(values) // step * step].reshape(-1, step).mean(axis=1) for step in COARSER]
            continue
        table = np.stack([row.values for row in held])
        for _ in range(SUMS):
            count = min(len(table), int(2.0 ** random.uniform(1.0, 5.0)))
            found.append(table[random.choice(len(table), count, replace=False)].sum(axis=0))
    known = [values for values in found if np.isfinite(values).any() and np.nanmean(values) > 0.0]
    return [Row(values, float(np.nanmean(values))) for values in known]


def half(rows: Sequence[Row], fold: int, *, judged: bool) -> list[Row]:
    """One half of a data set: of several files every other one, of one file the first or second half of its time.

    The half that is judged (`judged`) begins HISTORY samples early where it is the second, so that its first origin
    has a window; no outcome in it was learned from.
    """
    names = sorted({row.name.split(":")[0] for row in rows})
    if len(names) > 1:
        wanted = {name for number, name in enumerate(names) if (number % 2 == fold) == judged}
        return [row for row in rows if row.name.split(":")[0] in wanted]
    cut = [len(row.values) // 2 for row in rows]
    if (fold == 0) == judged:
        return [replace(row, values=row.values[:at]) for row, at in zip(rows, cut, strict=True)]
    early = rolling.HISTORY if judged else 0
    return [replace(row, values=row.values[at - early :]) for row, at in zip(rows, cut, strict=True)]


def folds(given: Data, other: Data, seed: int, size: dict[str, int]) -> dict[str, object]:
    """Each half judged by a network that was trained on the other half of every data set."""
    judged: dict[str, list[dict[str, list[float]]]] = {}
    for fold in (0, 1):
        taught, more = (
            {data: half(rows, fold, judged=False) for data, rows in held.items()} for held in (given, other)
        )
        model = network.pack(trained(taught, more, seed, size))
        for data, rows in given.items():
            judged.setdefault(data, []).append(judge(half(rows, fold, judged=True), model))
    return {data: dict(zip(("fold 0", "fold 1"), found, strict=True)) for data, found in judged.items()}


def left_out(given: Data, other: Data, seed: int, size: dict[str, int]) -> dict[str, object]:
    """Each data set judged by a network that never saw it (nor another of its source), and what adapting adds then."""
    found: dict[str, object] = {}
    for data, rows in given.items():
        source = data.split("-")[0]
        taught = {name: held for name, held in given.items() if name.split("-")[0] != source}
        more = {name: held for name, held in other.items() if name.split("-")[0] != source}
        model = network.pack(trained(taught, more, seed, size))
        found[data] = {**judge(rows, model), "adapted": rolling.adapting(rows, model)}
    return found


def judge(rows: list[Row], model: bytes) -> dict[str, list[float]]:
    """Gains over robust-naive in WAPE and pinball (%), and the coverage (%): network alone, and as a cell runs it."""
    rows = [row for row in rows if rolling.origins(row.values)]
    base = rolling.losses(rows, rolling.plain(Forecaster(network=False))(rows))
    found = {}
    for label, say in (
        ("network", rolling.plain(Forecaster(model=model))),
        ("live", rolling.live(lambda: Forecaster(model=model))),
    ):
        ours = rolling.losses(rows, say(rows))
        found[label] = [round(100.0 * float(value), 2) for value in (*rolling.gain(ours, base), ours.coverage().mean())]
    print(found, flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
