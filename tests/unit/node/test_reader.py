"""Reading a log while it grows, rotates and loses old segments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lepton_ai.node.log import LogLine, ReplicaLog, parse


def collect(log: ReplicaLog, *args: int | None) -> list[int]:
    async def read() -> list[int]:
        return [line.ns async for line in log.read(*args)]  # type: ignore[arg-type]

    return asyncio.run(read())


@pytest.fixture
def log(tmp_path: Path) -> ReplicaLog:
    for number in range(3):
        lines = [f"{ns} o line {ns}\n" for ns in range(number * 10 + 10, number * 10 + 20)]
        (tmp_path / f"{number + 1:06d}.log").write_text("".join(lines))
    return ReplicaLog(tmp_path)


def test_all_and_parts(log: ReplicaLog) -> None:
    assert collect(log) == list(range(10, 40))
    assert collect(log, 15, 35) == list(range(15, 35))
    assert collect(log, 20, 21) == [20]
    assert collect(log, 40) == []
    (log.folder / "000001.log").unlink()
    assert collect(log, 0, 25) == list(range(20, 25))
    assert log.last(1000)[-1] == LogLine(39, "o", "line 39")


def test_absent_is_empty(tmp_path: Path) -> None:
    assert collect(ReplicaLog(tmp_path / "none")) == []
    assert ReplicaLog(tmp_path / "none").last() == []


def test_torn_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "000001.log").write_bytes(b"10 o good\n11 o\n12\nx o y\n13 o \n14 o cut off")
    assert collect(ReplicaLog(tmp_path)) == [10, 13]
    assert parse(b"13 o ") == LogLine(13, "o", "")


def test_what_is_written_before_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "000001.log"
    path.write_bytes(b"1 o a\n2 o ha")
    steps = iter([False, True])

    def ended() -> bool:
        done = next(steps)
        if done:
            with open(path, "ab") as file:
                file.write(b"lf\n3 e c\n")
        return done

    async def read() -> list[LogLine]:
        return [line async for line in ReplicaLog(tmp_path).read(ended=ended)]

    assert asyncio.run(read()) == [LogLine(1, "o", "a"), LogLine(2, "o", "half"), LogLine(3, "e", "c")]
