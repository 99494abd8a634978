"""Goal 15 on a folder: acknowledged transactions of eight writer processes on one table, against delta-rs.

Protocol: eight processes write one-row transactions to one table for some seconds each round; a transaction counts when
its writer was told that it is in, and one in eight replies is taken for lost: the writer then sends the transaction
again under its id. Afterwards a stock Delta reader must find every row once. Contenders run in turn in the same round:
ours, delta-rs as it comes, and delta-rs with a refresh, its own retries off and a jittered pause between tries; each on
a table of its own. Rounds alternate the order.

Not measured yet: the same in a bucket with 60 ms of latency (commits are grouped on folders only), and goals 16, 17.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

WRITERS = 8
OURS, PLAIN, TUNED = "ours", "delta-rs", "delta-rs tuned"
WRITER = """
import random, sys, time
contender, folder, name, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
rng = random.Random(name)
import pyarrow
import deltalake
from deltalake import CommitProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
import lepton_ai.lake
table = lepton_ai.lake.open(folder).table("t")
path = folder + "/tables/t"
def ours(row, transaction):
    table.append(row, transaction=transaction)
def plain(row, transaction):
    # A lost reply is repeated under its id: whoever wants each row once has to look first.
    opened = deltalake.DeltaTable(path)
    if opened.transaction_version(transaction) is None:
        marks = CommitProperties(app_transactions=[Transaction(transaction, 1)])
        write_deltalake(opened, pyarrow.table(row), mode="append", commit_properties=marks)
def tuned(row, transaction):
    opened = deltalake.DeltaTable(path)
    marks = CommitProperties(app_transactions=[Transaction(transaction, 1)], max_commit_retries=0)
    pause = 0.005
    while True:
        try:
            if opened.transaction_version(transaction) is None:
                write_deltalake(opened, pyarrow.table(row), mode="append", commit_properties=marks)
            return
        except CommitFailedError:
            time.sleep(rng.uniform(0, pause))
            pause = min(0.4, pause * 1.6)
            opened.update_incremental()
write = {"ours": ours, "delta-rs": plain, "delta-rs tuned": tuned}[contender]
write({"writer": [name], "n": [-1]}, f"{name}-warm")
print("ready", flush=True)
sys.stdin.readline()
until, number, times = time.monotonic() + seconds, 0, []
while time.monotonic() < until:
    began = time.perf_counter()
    for attempt in range(2 if rng.random() < 0.125 else 1):
        while True:
            try:
                write({"writer": [name], "n": [number]}, f"{name}-{number}")
                break
            except DeltaError:
                time.sleep(rng.uniform(0, 0.02))
    times.append(time.perf_counter() - began)
    number += 1
print(number, " ".join(f"{value:.5f}" for value in times), flush=True)
"""


def main() -> int:
    options = report.arguments(__doc__ or "")
    rounds, seconds = (1, 2.0) if options.quick else (5, 10.0)
    rows: list[dict[str, object]] = []
    for number in range(rounds):
        order = (OURS, PLAIN, TUNED) if number % 2 == 0 else (TUNED, PLAIN, OURS)
        for contender in order:
            rows.append({"round": number + 1, "contender": contender, **measure(contender, seconds)})
            print(rows[-1], flush=True)
    goals = {"15.folder": verdict(rows, rounds, seconds)}
    report.write(options.out, "lake", goals, rows)
    plot(rows, options.out / "lake.png")
    return 0 if all(goal["met"] for goal in goals.values()) else 1


def measure(contender: str, seconds: float) -> dict[str, object]:
    """One contender on a new table: acknowledged a second, latency, and whether every row is there once."""
    import deltalake

    import lepton_ai.lake

    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        lepton_ai.lake.open(folder).table("t").create({"writer": ["first"], "n": [0]})
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, contender, folder, f"w{number}", str(seconds)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(WRITERS)
        ]  # fmt: skip
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        began_s = time.monotonic()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [process.communicate()[0].split() for process in processes]
        elapsed_s = time.monotonic() - began_s
        counts = [int(words[0]) for words in said]
        times = sorted(float(word) for words in said for word in words[1:])
        stock = deltalake.DeltaTable(f"{folder}/tables/t")
        found = stock.to_pyarrow_table().to_pylist()
    wanted = {(f"w{number}", n) for number, count in enumerate(counts) for n in range(-1, count)}
    rows = [(row["writer"], row["n"]) for row in found if row["writer"] != "first"]
    return {
        "acknowledged": sum(counts),
        "per_s": round(sum(counts) / elapsed_s, 1),
        "p50_s": round(statistics.median(times), 4),
        "p99_s": round(times[min(len(times) - 1, int(len(times) * 0.99))], 4),
        "max_s": round(times[-1], 3),
        "versions": int(stock.version()) + 1,
        "lost": len(wanted - set(rows)),
        "doubled": len(rows) - len(set(rows)),
    }


def verdict(rows: list[dict[str, object]], rounds: int, seconds: float) -> dict[str, object]:
    def figures(contender: str, field: str) -> list[float]:
        return [float(str(row[field])) for row in rows if row["contender"] == contender]

    ours, plain, tuned = (figures(name, "per_s") for name in (OURS, PLAIN, TUNED))
    p99_s = max(figures(OURS, "p99_s"))
    wrong = sum(figures(OURS, "lost")) + sum(figures(OURS, "doubled"))
    ratio = min(ours) / max(*plain, *tuned)
    value = {
        "per_s": {"median": statistics.median(ours), "range": [min(ours), max(ours)]},
        "delta_rs_per_s": {"median": statistics.median(plain), "range": [min(plain), max(plain)]},
        "delta_rs_tuned_per_s": {"median": statistics.median(tuned), "range": [min(tuned), max(tuned)]},
        "least_ratio": round(ratio, 1),
        "p99_s": p99_s,
        "lost_or_doubled": int(wrong),
    }
    met = ratio >= 10 and min(ours) >= 150 and p99_s < 1 and wrong == 0
    return report.goal(
        value, "transactions/s", must=">= 10x delta-rs, >= 150/s, p99 < 1 s, none lost or doubled", aim="1000/s",
        met=met, protocol=f"{WRITERS} processes, one-row transactions, {rounds} rounds of {seconds:g} s, a folder",
    )  # fmt: skip


def plot(rows: list[dict[str, object]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = (OURS, PLAIN, TUNED)
    figure, axis = pyplot.subplots(figsize=(6, 3.5))
    values = [[float(str(row["per_s"])) for row in rows if row["contender"] == name] for name in names]
    axis.boxplot(values, tick_labels=list(names))
    axis.set_yscale("log")
    axis.set_ylabel("acknowledged transactions/s")
    axis.set_title("Eight writer processes, one table on a folder")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
