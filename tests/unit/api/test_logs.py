"""Logs: archived and live lines become one trail, each line once, and a follower ends when nothing more can come."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

S = 1_000_000_000


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def texts(response: Any) -> list[str]:
    return [item["line"] for item in lines(response)]


@pytest.fixture
def web(stand: Any) -> tuple[Any, Any, Any]:
    """A deployment with an ended replica whose log is archived, and one that runs."""
    record = stand.deploy()
    old = stand.replica(record, "node-1", phase="exited")
    new = stand.replica(record, "node-2")
    stand.cell.logs.archive(
        "default", "deployment", "web", old.uid, old.name, [(n * S, "o", f"old {n}") for n in range(1, 6)]
    )
    stand.live.lines[new.uid] = [(n * S, "e" if n == 8 else "o", f"new {n}") for n in range(4, 9)]
    return record, old, new


def test_archived_and_live_lines_come_in_order(stand: Any, web: tuple[Any, Any, Any]) -> None:
    _, old, new = web
    client = stand.client("viewer")
    found = lines(client.get("/x/logs/web"))
    assert [item["ns"] for item in found] == sorted(item["ns"] for item in found)
    assert len(found) == 10
    assert found[0] == {"ns": S, "stream": "o", "line": "old 1", "replica": old.name}
    assert found[-1] == {"ns": 8 * S, "stream": "e", "line": "new 8", "replica": new.name}
    assert texts(client.get("/x/logs/web?lines=3")) == ["new 6", "new 7", "new 8"]
    assert texts(client.get("/x/logs/web?grep=old&lines=2")) == ["old 4", "old 5"]
    assert texts(client.get(f"/x/logs/{old.name}")) == [f"old {n}" for n in range(1, 6)]
    assert texts(client.get(f"/x/logs/{new.name}?lines=1")) == ["new 8"]


def test_a_line_that_is_archived_and_still_on_its_node_comes_once(stand: Any, web: tuple[Any, Any, Any]) -> None:
    _, old, _ = web
    stand.live.lines[old.uid] = [(n * S, "o", f"old {n}") for n in range(1, 6)]
    found = texts(stand.client().get("/x/logs/web"))
    assert len(found) == len(set(found)) == 10


def test_a_node_that_is_away_hides_only_its_own_lines(stand: Any, web: tuple[Any, Any, Any]) -> None:
    stand.live.away.add("node-2")
    assert texts(stand.client().get("/x/logs/web")) == [f"old {n}" for n in range(1, 6)]


def test_logs_outlive_their_owner(stand: Any) -> None:
    stand.cell.logs.archive("default", "job", "gone-abc123", "u1", "gone-abc123-0-x", [(S, "o", "last words")])
    client = stand.client()
    assert texts(client.get("/x/logs/gone-abc123")) == ["last words"]
    assert texts(client.get("/x/logs/gone-abc123-0-x")) == ["last words"]
    missing = client.get("/x/logs/gone-abc12")
    assert missing.status_code == 404
    assert stand.client(token=stand.foreign, ws="other").get("/x/logs/gone-abc123").status_code == 404


def test_a_job_without_lines_is_empty_and_not_missing(stand: Any) -> None:
    name = stand.run().name
    assert lines(stand.client().get(f"/x/logs/{name}")) == []


def follow(stand: Any, name: str) -> tuple[threading.Thread, list[str]]:
    """Reads a log on a thread; the texts as they come."""
    cloud = stand.cloud(stand.serve().url)
    found: list[str] = []

    def read() -> None:
        for line in cloud.logs(name, follow=True):
            found.append(line.line)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, found


def wait_for(what: Any, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def test_a_follower_sees_every_replica_of_a_job_and_ends_with_it(stand: Any) -> None:
    job = stand.run()
    stand.act("job", job.name, state="running")
    first = stand.replica(job, "node-1")
    stand.live.lines[first.uid] = [(S, "o", "one")]
    thread, found = follow(stand, job.name)
    wait_for(lambda: "one" in found)
    stand.live.lines[first.uid].append((2 * S, "o", "two"))
    wait_for(lambda: "two" in found)
    # A second try on another node; the first one's node goes away before it is read to its end.
    stand.live.away.add("node-1")
    stand.store.update(stand.store.get_uid(first.uid), status={"phase": "exited"})
    rest = [(S, "o", "one"), (2 * S, "o", "two"), (3 * S, "o", "three")]
    stand.cell.logs.archive("default", "job", job.name, first.uid, first.name, rest)
    second = stand.replica(job, "node-2")
    stand.live.lines[second.uid] = [(4 * S, "o", "four")]
    wait_for(lambda: "three" in found and "four" in found)
    assert thread.is_alive()
    stand.live.closed.add(second.uid)
    stand.live.lines[second.uid].append((5 * S, "o", "five"))
    stand.store.update(stand.store.get_uid(second.uid), status={"phase": "exited"})
    stand.act("job", job.name, state="succeeded")
    thread.join(20)
    assert not thread.is_alive()
    # Each line once, and those of one replica in order.
    assert sorted(found) == sorted(["one", "two", "three", "four", "five"])
    assert [text for text in found if text in ("one", "two", "three")] == ["one", "two", "three"]
    assert [text for text in found if text in ("four", "five")] == ["four", "five"]


def test_a_follower_of_the_last_lines_is_not_told_the_older_ones(stand: Any, web: tuple[Any, Any, Any]) -> None:
    record, _, new = web
    quiet = stand.replica(record, "node-3")
    stand.live.lines[quiet.uid] = [(n * S, "o", f"quiet {n}") for n in range(1, 4)]
    stream = stand.cloud(stand.serve().url).logs("web", follow=True, lines=2)
    assert [next(stream).line for _ in range(2)] == ["new 7", "new 8"]
    stand.live.lines[quiet.uid].append((10 * S, "o", "quiet 10"))
    assert next(stream).line == "quiet 10"
    stand.live.lines[new.uid].append((11 * S, "o", "new 11"))
    assert next(stream).line == "new 11"
    stream.close()


def test_a_follower_that_leaves_takes_its_streams_along(stand: Any) -> None:
    record = stand.deploy()
    replica = stand.replica(record)
    stand.live.lines[replica.uid] = [(S, "o", "one")]
    with stand.cloud(stand.serve().url) as cloud:
        stream = cloud.logs("web", follow=True)
        assert next(stream).line == "one"
        wait_for(lambda: stand.live.readers == 1)
        stream.close()
        wait_for(lambda: stand.live.readers == 0)


# -- the public client's


def test_the_history_is_lokis(stand: Any, web: tuple[Any, Any, Any]) -> None:
    _, old, new = web
    client = stand.client()

    def ask(**query: Any) -> list[tuple[str, int, str]]:
        base = {"start": 1, "end": 10 * S, "limit": 100}
        body = client.get("/logs", params={**base, **query}).json()
        assert (body["status"], body["data"]["resultType"]) == ("success", "streams")
        streams = body["data"]["result"]
        return [(item["stream"]["replica"], int(ns), text) for item in streams for ns, text in item["values"]]

    everything = ask(deployment="web")
    assert len(everything) == 10
    assert {name for name, _, _ in everything} == {old.name, new.name}
    assert sorted(ns for _, ns, _ in ask(deployment="web", limit=3)) == [S, 2 * S, 3 * S]
    assert sorted(ns for _, ns, _ in ask(deployment="web", limit=3, direction="backward")) == [6 * S, 7 * S, 8 * S]
    assert [text for _, _, text in ask(deployment="web", start=5 * S, end=6 * S)] == ["old 5", "new 5"]
    assert all(start <= ns < 7 * S for start in (2 * S,) for _, ns, _ in ask(deployment="web", start=2 * S, end=7 * S))
    assert [text for _, _, text in ask(deployment="web", q="new 6")] == ["new 6"]
    assert len(ask(replica=old.name)) == 5
    assert len(ask(deployment="web", replica=new.name)) == 5
    assert ask(job="none") == []
    for query in ({}, {"job": "a", "deployment": "b"}, {"deployment": "web", "direction": "up"}):
        assert client.get("/logs", params={"start": 1, "end": 2, **query}).status_code == 400
    assert client.get("/logs?deployment=web&start=1").status_code == 400


def test_the_live_log_is_text_in_whole_lines_and_ends_with_the_replica(stand: Any, web: tuple[Any, Any, Any]) -> None:
    _, _, new = web
    stand.live.closed.add(new.uid)
    stand.live.lines[new.uid].append((9 * S, "o", "汉字 ünd 🙂"))
    stand.store.update(stand.store.get_uid(new.uid), status={"phase": "exited"})
    client = stand.client()
    response = client.get(f"/deployments/web/replicas/{new.name}/log")
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.splitlines() == [*(f"new {n}" for n in range(4, 9)), "汉字 ünd 🙂"]
    assert client.get(f"/deployments/other/replicas/{new.name}/log").status_code == 404
    assert client.get("/deployments/web/replicas/none/log").status_code == 404


def test_lines_are_counted_by_interval(stand: Any, web: tuple[Any, Any, Any]) -> None:
    _, old, new = web
    client = stand.client()
    base = {"deployment": "web", "start": 0, "end": 10 * S}

    def ask(**query: Any) -> dict[str, list[tuple[float, int]]]:
        data = client.get("/logs/timeseries", params={**base, **query}).json()["data"]
        assert data["resultType"] == "matrix"
        return {
            item["metric"]["replica"]: [(at, int(count)) for at, count in item["values"]] for item in data["result"]
        }

    assert ask(interval_ms=5000) == {old.name: [(0.0, 4), (5.0, 1)], new.name: [(0.0, 1), (5.0, 4)]}
    assert ask(q="new 6", interval_ms=1000) == {new.name: [(6.0, 1)]}
    assert client.get("/logs/timeseries", params={**base, "interval_ms": 0}).status_code == 400
    assert client.get("/logs/timeseries", params={"deployment": "web"}).status_code == 400
