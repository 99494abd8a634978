"""Several processes write one table: no row is lost, none doubled, and one transaction is written once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import deltalake
import pytest

import lepton_ai.lake

WRITER = """
import sys
import lepton_ai.lake
from lepton_ai.errors import Conflict
table = lepton_ai.lake.open(sys.argv[1]).table("t")
for number in range(int(sys.argv[3])):
    while True:
        try:
            name = sys.argv[4].format(w=sys.argv[2], n=number)
            table.append({"writer": [sys.argv[2]], "n": [number]}, transaction=name)
            break
        except Conflict:
            continue
    print(number, flush=True)
"""


def start(lake: Path, writer: str, count: int, transaction: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(lake), writer, str(count), transaction]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    lepton_ai.lake.open(tmp_path).table("t").create({"writer": ["first"], "n": [0]})
    processes = [start(tmp_path, name, 5, "{w}-{n}") for name in "abc"]
    assert [process.communicate(timeout=180)[0].count("\n") for process in processes] == [5, 5, 5]
    table = lepton_ai.lake.open(tmp_path).table("t")
    rows = table.read().to_pylist()
    assert len(rows) == 16
    assert len({(row["writer"], row["n"]) for row in rows}) == 16
    assert sum(len(version.transactions) for version in table.history()) == 15


def test_one_transaction_of_many_writers_is_written_once(tmp_path: Path) -> None:
    lepton_ai.lake.open(tmp_path).table("t").create({"writer": ["first"], "n": [0]})
    processes = [start(tmp_path, name, 4, "same-{n}") for name in "abc"]
    assert [process.communicate(timeout=180)[0].count("\n") for process in processes] == [4, 4, 4]
    rows = lepton_ai.lake.open(tmp_path).table("t").read().to_pylist()
    assert sorted(row["n"] for row in rows if row["writer"] != "first") == [0, 1, 2, 3]


def test_a_writer_killed_at_any_moment_leaves_a_whole_table(tmp_path: Path) -> None:
    table = lepton_ai.lake.open(tmp_path).table("t")
    table.create({"writer": ["first"], "n": [0]})
    for round_number in range(3):
        name = f"w{round_number}"
        process = start(tmp_path, name, 1000, "{w}-{n}")
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(round_number + 2)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.communicate(timeout=60)[0].split()]
        found = sorted(row["n"] for row in table.read().to_pylist() if row["writer"] == name)
        # What was acknowledged is there; at most the one in flight may be there too.
        assert found[: len(said)] == said
        assert len(found) <= len(said) + 1
    table.append({"writer": ["last"], "n": [0]})
    assert table.read().column("writer").to_pylist()[-1] == "last"


STUBBORN = """
import sys
import lepton_ai.lake
table = lepton_ai.lake.open(sys.argv[1]).table("t")
number = int(sys.argv[3])
print("begun", flush=True)
while True:
    table.append({"writer": [sys.argv[2]], "n": [number]}, transaction=f"{sys.argv[2]}-{number}")
    print(number, flush=True)
    number += 1
"""


class Stubborn:
    """A writer that is killed at any moment and begins again with the transaction that was not acknowledged."""

    def __init__(self, lake: Path, name: str) -> None:
        self._lake, self.name = lake, name
        self.acknowledged = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", STUBBORN, str(self._lake), self.name, str(self.acknowledged)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        for line in self._process.communicate(timeout=60)[0].split():
            self.acknowledged = int(line) + 1


@pytest.mark.soak
def test_writers_that_are_killed_while_they_share_versions_lose_and_double_nothing(tmp_path: Path, soak: bool) -> None:
    """Whoever is killed may hold the lock, may have committed others' rows, may be about to say so."""
    rng = random.Random(7)
    lepton_ai.lake.open(tmp_path).table("t").create({"writer": ["first"], "n": [0]})
    writers = [Stubborn(tmp_path, name) for name in "abcd"]
    for _ in range(200 if soak else 10):
        time.sleep(rng.random() * 0.15)
        victim = rng.choice(writers)
        victim.kill()
        victim.start()
    for writer in writers:
        writer.kill()

    table = lepton_ai.lake.open(tmp_path).table("t")
    for writer in writers:  # the one that was under way is finished by its next life, if it was not committed
        again = f"{writer.name}-{writer.acknowledged}"
        table.append({"writer": [writer.name], "n": [writer.acknowledged]}, transaction=again)
    rows = table.read().to_pylist()
    for writer in writers:
        numbers = sorted(row["n"] for row in rows if row["writer"] == writer.name)
        assert numbers == list(range(writer.acknowledged + 1))
        assert writer.acknowledged > 0
    versions = [version.version for version in table.history()]
    assert versions == list(range(len(versions), 0, -1))
    # No intent and no note is left. Data files of the killed that no version names are, as with any Delta writer:
    # `vacuum` removes them.
    assert {path.name for path in (table.folder / "_lepton").iterdir()} <= {"lock", "done"}
    stock = deltalake.DeltaTable(str(table.folder))
    assert stock.to_pyarrow_table().num_rows == len(rows)
