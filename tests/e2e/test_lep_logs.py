"""`lep log get` by every selector, range and filter; the history behind it: distinct growing times, nothing lost."""

from __future__ import annotations

import re
import time
from datetime import datetime

import pytest
from cell import eventually
from lep import Lep
from test_lep_jobs import create, reaches

LINES = 2500
STAMP = "%Y-%m-%d %H:%M:%S"


@pytest.fixture(scope="module")
def talked() -> dict[str, str]:
    return {}


def job(lep: Lep, talked: dict[str, str]) -> str:
    """One job that printed 2,500 numbered lines, some as JSON, some not ASCII; made once."""
    if not talked:
        talked["begun"] = datetime.fromtimestamp(time.time() - 2).strftime(STAMP)
        code = f'for i in $(seq 1 {LINES}); do echo "line $i é 电影"; done; echo \'{{"loss": 0.5}}\'; echo last'
        talked["job"] = create(lep, "chatty", code, "-w", "2")
        reaches(lep, talked["job"], "Completed")
        talked["ended"] = datetime.fromtimestamp(time.time() + 2).strftime(STAMP)
    return talked["job"]


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"line (\d+) é 电影", text)]


def test_all_of_a_job_by_id_and_by_name(lep: Lep, talked: dict[str, str]) -> None:
    name = job(lep, talked)
    whole = lep("log", "get", "-j", name, "--without-timestamp").out
    assert sorted(numbers(whole)) == sorted([*range(1, LINES + 1)] * 2), "every line of both workers, once"
    assert whole.count('"loss": 0.5') == 2
    assert numbers(lep("log", "get", "-jn", "chatty", "--without-timestamp").out) != []


def test_one_replica_a_range_and_a_substring(lep: Lep, talked: dict[str, str]) -> None:
    name = job(lep, talked)
    replica = next(copy.name for copy in lep.cell.cloud.replicas(name) if copy.worker == 1)
    times = ["--start", talked["begun"], "--end", talked["ended"]]
    own = lep("log", "get", "-j", name, "--replica", replica, "--without-timestamp", *times).out
    assert numbers(own) == list(range(1, LINES + 1)), "in order"
    found = lep("log", "get", "-j", name, "--query", "line 77 ", "--without-timestamp").out
    assert numbers(found) == [77, 77]
    assert numbers(lep("log", "get", "-j", name, "--query", "no such line").out) == []
    before = ["--start", "2024-01-01 00:00:00", "--end", "2024-01-01 00:01:00"]
    assert numbers(lep("log", "get", "-j", name, *before).out) == []


def test_a_limit_gives_the_newest(lep: Lep, talked: dict[str, str]) -> None:
    name = job(lep, talked)
    out = lep("log", "get", "-j", name, "--limit", "5", "--without-timestamp", typed="q\n").out
    assert "last" in out, out
    assert len(numbers(out)) <= 5, out


def test_it_is_saved_to_a_file(lep: Lep, talked: dict[str, str]) -> None:
    name = job(lep, talked)
    folder = lep.cache / "logs"
    folder.mkdir()
    lep("log", "get", "-j", name, "--path", str(folder))
    text = "".join(path.read_text("utf-8") for path in folder.rglob("*") if path.is_file())
    assert len(numbers(text)) == 2 * LINES


def test_times_are_distinct_and_grow_and_pages_lose_nothing(lep: Lep, talked: dict[str, str]) -> None:
    name = job(lep, talked)
    begun_ns = int(datetime.strptime(talked["begun"], STAMP).timestamp() * 1e9)
    ended_ns = int(datetime.strptime(talked["ended"], STAMP).timestamp() * 1e9)

    def page(start: int, end: int, direction: str = "forward", limit: int = 1000) -> list[tuple[int, str]]:
        query = {"start": start, "end": end, "direction": direction, "limit": limit, "job": name, "timestamps": True}
        found = lep.ask("/logs", **query)["data"]["result"]
        return [(int(ns), line) for stream in found for ns, line in stream["values"]]

    seen: dict[int, str] = {}
    start = begun_ns
    while found := page(start, ended_ns):
        assert all(start <= ns < ended_ns for ns, _ in found)
        assert not seen.keys() & {ns for ns, _ in found}
        seen |= dict(found)
        start = max(ns for ns, _ in found) + 1
    assert len(seen) == 2 * (LINES + 2), "every time is another one"
    newest = page(begun_ns, ended_ns, "backward", 10)
    assert {ns for ns, _ in newest} == set(sorted(seen)[-10:])
    cut = sorted(seen)[100]
    assert cut not in {ns for ns, _ in page(begun_ns, cut)}, "the end is exclusive"
    assert min(ns for ns, _ in page(cut, ended_ns)) == cut, "the start is inclusive"


def test_an_endpoint_by_name(lep: Lep) -> None:
    words = ["-n", "speaks", "--container-image", "a", "--container-command", "echo spoken words; exec sleep 600"]
    lep("endpoint", "create", "-rs", "cpu.small", "--public", *words)
    query = {"deployment": "speaks", "start": 1, "end": 2**62, "direction": "forward", "limit": 10}

    def spoken() -> bool:
        return "spoken words" in str(lep.ask("/logs", **query))

    eventually(spoken, "its line is in the history")
    start = datetime.fromtimestamp(time.time() - 300).strftime(STAMP)
    out = lep("log", "get", "-e", "speaks", "--start", start, "--end", "now", "--without-timestamp").out
    assert "spoken words" in out, out
    lep("endpoint", "remove", "-n", "speaks")


def test_whose_log_there_is_not(lep: Lep) -> None:
    missing = lep("log", "get", "-j", "nothing-abc123", code=1)
    assert "404" in missing.out + missing.err or "not found" in (missing.out + missing.err).lower(), missing
