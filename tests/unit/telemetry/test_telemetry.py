"""Events are counted and bounded, the audit log only grows, and archived lines come back as they were asked for."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import DiskFull, Invalid
from lepton_ai.store import Store
from lepton_ai.telemetry import Audit, Events, LogLine, Logs, events, segment
from lepton_ai.telemetry.logs import EXCESS

DAY_MS = 86_400_000


class Now:
    ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, now: Now) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db", now_ms=now) as opened:
        yield opened


@pytest.fixture
def logs(tmp_path: Path, store: Store) -> Logs:
    return Logs(tmp_path / "telemetry", store)


def put(logs: Logs, replica: str, *stamps: int, owner: str = "movies", text: str = "line {}") -> None:
    lines = [(ns, "o", text.format(ns)) for ns in stamps]
    assert logs.archive("w", "deployment", owner, f"uid-{replica}", replica, lines) is not None


def stamps(lines: list[LogLine]) -> list[int]:
    return [line.ns for line in lines]


class TestEvents:
    def test_equal_ones_are_counted(self, store: Store, now: Now) -> None:
        kept = Events(store)
        kept.add("w", "deployment", "movies", "Warning", "Crashed", "exit code 1", uid="u")
        now.ms += 1000
        kept.add("w", "deployment", "movies", "Warning", "Crashed", "exit code 1", uid="u")
        kept.add("w", "deployment", "movies", "Warning", "Crashed", "exit code 2", uid="u")
        kept.add("v", "deployment", "movies", "Warning", "Crashed", "exit code 1", uid="u")
        found = kept.list("w")
        assert [(event.message, event.count) for event in found] == [("exit code 1", 2), ("exit code 2", 1)]
        assert found[0].last_ms - found[0].first_ms == 1000
        assert kept.list("w", "job") == []
        assert kept.list("w", "deployment", "movies", limit=1) == found[1:]

    def test_each_workspace_is_bounded(self, store: Store, now: Now) -> None:
        kept = Events(store, limit=10)
        kept.add("v", "k", "n", "Normal", "r", "other")
        for number in range(10 + events.SLACK + 1):
            now.ms += 1
            kept.add("w", "k", "n", "Normal", "r", f"m{number}")
        assert [event.message for event in kept.list("w", limit=1000)] == [f"m{number}" for number in range(65, 75)]
        assert len(kept.list("v")) == 1

    def test_odd_texts(self, store: Store) -> None:
        kept = Events(store)
        kept.add("w", "k", "n", "Normal", "r", "a\0b\ud800" + "x" * 5000)
        assert kept.list("w")[0].message.startswith("a�b?")
        assert len(kept.list("w")[0].message) == events.MAX_MESSAGE
        with pytest.raises(Invalid):
            kept.add("w", "k", "n", "Loud", "r", "m")  # type: ignore[arg-type]

    def test_they_wake_no_watcher(self, store: Store) -> None:
        Events(store).add("w", "k", "n", "Normal", "r", "m")
        assert store.revision() == 0


def test_audit(store: Store, now: Now) -> None:
    audit = Audit(store)
    first = audit.add("w", "ann", "create", "deployment", "movies", {"release": 1})
    now.ms += 10
    second = audit.add("w", "bob", "delete", "deployment", "movies")
    audit.add("v", "eve", "create", "job", "x")
    assert audit.list("w") == [second, first]
    assert audit.list("w", before=second.uid) == [first]
    assert audit.prune(now.ms) == 1
    assert audit.list("w") == [second]


class TestQuery:
    def test_the_range_is_half_open_and_the_earliest_come_first(self, logs: Logs) -> None:
        put(logs, "r1", 10, 30, 50)
        put(logs, "r2", 20, 40, 60)
        assert stamps(logs.query("w", start_ns=20, end_ns=50)) == [20, 30, 40]
        assert stamps(logs.query("w", limit=4)) == [10, 20, 30, 40]
        assert stamps(logs.query("w", limit=0)) == []
        assert stamps(logs.query("v")) == []

    def test_backward_gives_the_latest_newest_first(self, logs: Logs) -> None:
        put(logs, "r1", 10, 30, 50)
        put(logs, "r2", 20, 40, 60)
        assert stamps(logs.query("w", direction="backward", limit=3)) == [60, 50, 40]
        assert stamps(logs.query("w", direction="backward", limit=3, end_ns=50)) == [40, 30, 20]

    def test_paging_both_ways_sees_every_line_once(self, logs: Logs) -> None:
        everything = list(range(100, 400))
        for number in range(5):
            put(logs, f"r{number}", *everything[number::5])
        seen: list[int] = []
        while page := logs.query("w", start_ns=seen[-1] + 1 if seen else 0, limit=37):
            seen += stamps(page)
        assert seen == everything
        seen = []
        while page := logs.query("w", end_ns=seen[-1] if seen else 10_000, limit=41, direction="backward"):
            seen += stamps(page)
        assert seen == everything[::-1]

    def test_selectors_and_substring(self, logs: Logs) -> None:
        put(logs, "r1", 10, 11, text="[INFO] 100%_{}")
        put(logs, "r2", 20, owner="books")
        assert stamps(logs.query("w", owner="books")) == [20]
        assert stamps(logs.query("w", owner_kind="job")) == []
        assert stamps(logs.query("w", replica="r1")) == stamps(logs.query("w", replica="uid-r1")) == [10, 11]
        assert stamps(logs.query("w", substring="%_11")) == [11]
        assert logs.query("w", substring="%_11")[0] == LogLine(
            11, "o", "[INFO] 100%_11", "deployment", "movies", "r1", "uid-r1"
        )
        with pytest.raises(Invalid):
            logs.query("w", direction="up")  # type: ignore[arg-type]

    def test_stamps_are_made_distinct(self, logs: Logs) -> None:
        put(logs, "r1", 5, 5, 4, 9)
        assert stamps(logs.query("w")) == [5, 6, 7, 9]

    def test_texts_come_back(self, logs: Logs) -> None:
        texts = ["", " two  spaces ", "tab\t", "🎬 é", "a\rb", "\ud800", "0 o fake"]
        logs.archive("w", "job", "j", "u", "r", [(number + 1, "e", text) for number, text in enumerate(texts)])
        found = logs.query("w")
        assert [line.text for line in found] == ["", " two  spaces ", "tab\t", "🎬 é", "a\rb", "?", "0 o fake"]
        assert {line.stream for line in found} == {"e"}


class TestArchive:
    def test_repeating_it_adds_only_what_is_new(self, logs: Logs) -> None:
        put(logs, "r1", 1, 2)
        lines = [(number, "o", "x") for number in (1, 2, 3)]
        assert logs.archive("w", "deployment", "movies", "uid-r1", "r1", lines) is not None
        assert logs.archive("w", "deployment", "movies", "uid-r1", "r1", lines) is None
        assert stamps(logs.query("w")) == [1, 2, 3]

    def test_tricky_names_stay_inside(self, logs: Logs, tmp_path: Path) -> None:
        path = logs.archive("w", "job", "../..", "../../etc/x", "../n", [(1, "o", "x")])
        assert path is not None
        assert path.resolve().parent == (tmp_path / "telemetry" / "w").resolve()
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(Invalid):
            logs.archive("../w", "job", "j", "u", "r", [(1, "o", "x")])

    def test_a_failure_leaves_nothing(self, logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(segment.os, "fsync", full)
        with pytest.raises(DiskFull):
            logs.archive("w", "job", "j", "u", "r", [(1, "o", "x")])
        monkeypatch.undo()

        def broken() -> Iterator[tuple[int, str, str]]:
            yield 1, "o", "x"
            raise RuntimeError("the agent went away")

        with pytest.raises(RuntimeError):
            logs.archive("w", "job", "j", "u", "r", broken())
        assert list((tmp_path / "telemetry").rglob("*.gz*")) == []
        assert logs.query("w") == []

    def test_a_damaged_segment_hides_no_other(self, logs: Logs, tmp_path: Path) -> None:
        put(logs, "r1", 1)
        put(logs, "r2", 2)
        next((tmp_path / "telemetry" / "w").glob("uid-r1*")).write_bytes(gzip.compress(b"1 o x\n" * 99)[:-9])
        assert 2 in stamps(logs.query("w"))


class TestRetention:
    def test_by_age(self, logs: Logs, now: Now, tmp_path: Path) -> None:
        put(logs, "old", (now.ms - 15 * DAY_MS) * 1_000_000)
        put(logs, "new", (now.ms - 13 * DAY_MS) * 1_000_000)
        assert logs.prune(now.ms) == 1
        assert [line.replica for line in logs.query("w")] == ["new"]
        assert len(list((tmp_path / "telemetry").rglob("*.gz"))) == 1

    def test_by_size(self, store: Store, now: Now, tmp_path: Path) -> None:
        def fill(logs: Logs, numbers: range) -> None:
            for number in numbers:
                noise = [(now.ms * 1_000_000 + number * 1000 + i, "o", os.urandom(8000).hex()) for i in range(50)]
                logs.archive("w", "job", "j", f"u{number}", f"r{number}", noise)

        fill(Logs(tmp_path / "telemetry", store), range(3))
        logs = Logs(tmp_path / "telemetry", store, retention_mib=1)
        assert logs.prune(now.ms) == 1
        assert {line.replica for line in logs.query("w")} == {"r1", "r2"}
        # What comes in between is not left to the next round.
        fill(logs, range(3, 9))
        assert {line.replica for line in logs.query("w")} == {"r7", "r8"}
        size = sum(path.stat().st_size for path in (tmp_path / "telemetry" / "w").iterdir())
        assert size < (1 << 20) * (1 + 1 / EXCESS)
        assert logs.prune(now.ms) == 0

    def test_files_without_a_row(self, logs: Logs, now: Now, tmp_path: Path) -> None:
        put(logs, "r1", now.ms * 1_000_000)
        for name, age_s in (("lost.log.gz", 7200), ("cut.log.gz.part", 7200), ("young.log.gz", 0)):
            path = tmp_path / "telemetry" / "w" / name
            path.write_bytes(b"")
            stat = path.stat()
            os.utime(path, (stat.st_mtime - age_s, stat.st_mtime - age_s))
        assert logs.prune(now.ms) == 2
        assert (tmp_path / "telemetry" / "w" / "young.log.gz").exists()
        assert len(logs.query("w")) == 1
