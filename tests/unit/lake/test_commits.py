"""Group commit when something breaks around it: what may be committed is never removed, and nobody is told wrong."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lepton_ai.lake
from lepton_ai.errors import LeptonError
from lepton_ai.lake import Table, commits, deltalog
from lepton_ai.lake.commits import Commits, Intent, write_parquet
from lepton_ai.lake.write import arrow, fit
from lepton_ai.spec.base import uuid7


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = lepton_ai.lake.open(tmp_path).table("t")
    made.create({"n": [0]})
    return made


def again(table: Table) -> Table:
    """The table as another writer has it."""
    return Table(table.place, table.name)


def numbers(table: Table) -> list[int]:
    return sorted(again(table).read().column("n").to_pylist())


def intent(table: Table, number: int) -> Intent:
    rows = fit(table, arrow({"n": [number]}), table.log().schema)
    intent_id = uuid7()
    path, size, stats = write_parquet(table.folder, intent_id, rows)
    return Intent(intent_id, path, size, 1, stats, table.log().schema, f"t{number}")


def test_a_writer_that_is_interrupted_while_another_commits_its_rows(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = again(table)
    holder = Commits(table.folder, table.log(), table.faults)
    lock = commits.fcntl.flock

    def interrupted(descriptor: int, how: int) -> None:
        if threading.current_thread() is threading.main_thread() and not entered:
            entered.append(True)
            own = intent(table, 1)  # somebody else's: its holder finds ours in the spool too
            holder._combine(own)
            raise KeyboardInterrupt
        lock(descriptor, how)

    entered: list[bool] = []
    monkeypatch.setattr(commits.fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.append({"n": [2]}, transaction="two")
    monkeypatch.undo()

    assert numbers(table) == [0, 1, 2]
    again(table).append({"n": [2]}, transaction="two")  # sent again, as nobody was told
    assert numbers(table) == [0, 1, 2]


def test_a_device_that_does_not_confirm_a_commit(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, log = os.fsync, table.folder / "_delta_log"

    def broken(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == log.stat().st_ino:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(deltalog.os, "fsync", broken)
    with pytest.raises(LeptonError, match="not confirmed"):
        table.append({"n": [1]}, transaction="one")
    monkeypatch.undo()
    assert numbers(table) == [0, 1]
    table.append({"n": [1]}, transaction="one")
    assert numbers(table) == [0, 1]


def full(where: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for the files of the spool that `where` says."""
    write = commits._write

    def refused(path: Path, value: dict[str, Any]) -> None:
        if where(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    monkeypatch.setattr(commits, "_write", refused)


def test_a_full_disk_while_others_are_told_loses_nobodys_rows(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = intent(table, 5)
    commits_of_another = Commits(table.folder, again(table).log(), table.faults)
    (table.folder / "_lepton" / "done").mkdir(parents=True, exist_ok=True)
    commits._write(table.folder / "_lepton" / f"{waiting.id}.json", commits.asdict(waiting))
    full(lambda path: path.parent.name == "done", monkeypatch)
    table.append({"n": [1]})
    table.append({"n": [2]})  # the note of who is still to be told outlives later commits
    monkeypatch.undo()

    assert numbers(table) == [0, 1, 2, 5]
    outcome = commits_of_another.submit(waiting)
    assert outcome.written
    assert outcome.version == 1
    assert numbers(table) == [0, 1, 2, 5]
    assert {path.name for path in (table.folder / "_lepton").iterdir()} == {"lock", "done"}


def test_a_full_disk_before_the_commit_leaves_no_trace(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    full(lambda path: path.name == "committing.note" or path.suffix == ".json", monkeypatch)
    with pytest.raises(LeptonError) as caught:
        table.append({"n": [1]})
    assert caught.value.hint
    monkeypatch.undo()
    assert numbers(table) == [0]
    assert len(list(table.folder.glob("*.parquet"))) == 1
    table.append({"n": [1]})
    assert numbers(table) == [0, 1]


@pytest.mark.parametrize("first", ["protocol", "metaData"])
def test_a_table_that_asks_more_than_a_writer_of_version_2_is_not_written_by_hand(tmp_path: Path, first: str) -> None:
    protocol = '{"protocol":{"minReaderVersion":1,"minWriterVersion":7,"writerFeatures":["rowTracking"]}}'
    metadata = (
        '{"metaData":{"id":"x","format":{"provider":"parquet","options":{}},"schemaString":"{}",'
        '"partitionColumns":[],"configuration":{}}}'
    )
    lines = [protocol, metadata] if first == "protocol" else [metadata, protocol]
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"{0:020d}.json").write_text("\n".join(lines) + "\n")
    log = deltalog.DeltaLog(tmp_path)
    log.refresh()
    assert not log.plain
