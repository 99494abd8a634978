"""The lake over HTTP: SQL and tables through a sealed worker a workspace, each seeing its own only."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from lepton_ai import lake
from lepton_ai.client import Cloud
from lepton_ai.errors import Busy, Forbidden, Invalid, LeptonError, NotFound

SLOW = "SELECT count(*) FROM range(100000) a, range(100000) b WHERE a.range + b.range = 7"


@pytest.fixture(scope="module")
def cloud(stand: Any) -> Cloud:
    with lake.open(stand.cell.lake_url("default")) as opened:
        opened.table("ratings").append(pa.table({"user": [1, 2, 3], "rating": [5.0, 3.5, 1.0]}))
        opened.table("ratings").append(pa.table({"user": [4], "rating": [2.0]}))
    with lake.open(stand.cell.lake_url("other")) as opened:
        opened.table("secret").append(pa.table({"x": [42]}))
    made: Cloud = stand.cloud(stand.serve().url)
    return made


def test_rows_come_back_and_versions_can_be_named(cloud: Cloud) -> None:
    answer = cloud.query("SELECT count(*) AS n FROM ratings")
    assert (answer.columns, answer.rows, answer.tables) == (["n"], [[4]], ["ratings@2"])
    assert cloud.query("SELECT count(*) FROM ratings@1").rows == [[3]]
    few = cloud.query("SELECT user FROM ratings ORDER BY user", limit=2)
    assert (few.rows, few.truncated) == ([[1], [2]], True)
    with pytest.raises(Invalid, match="limit"):
        cloud.query("SELECT 1", limit=0)


def test_tables_and_their_history_are_told(cloud: Cloud) -> None:
    (table,) = cloud.tables()
    assert (table.name, table.version, table.rows, table.error) == ("ratings", 2, 4, None)
    assert cloud.table("ratings") == table
    assert table.columns == [{"name": "user", "type": "int64"}, {"name": "rating", "type": "double"}]
    assert [(item.version, item.ref, item.rows) for item in cloud.history("ratings")] == [
        (2, "ratings@2", 1),
        (1, "ratings@1", 3),
    ]
    with pytest.raises(NotFound) as caught:
        cloud.table("rating")
    assert caught.value.hint == "did you mean ratings?"
    with pytest.raises(NotFound):
        cloud.history("rating")


def test_a_workspace_sees_its_own_tables_only(stand: Any, cloud: Cloud) -> None:
    other = Cloud(cloud._http.url, stand.foreign, "other")
    with other:
        assert [table.name for table in other.tables()] == ["secret"]
        assert other.query("SELECT x FROM secret").rows == [[42]]
        for sql in ("SELECT * FROM ratings", f"SELECT * FROM '{stand.folder}/lake/default/tables/ratings'"):
            with pytest.raises((Invalid, Forbidden)):
                other.query(sql)
    with pytest.raises((Invalid, Forbidden)):
        cloud.query("SELECT * FROM secret")


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELEC 1", Invalid),
        ("SELECT * FROM nothing", Invalid),
        ("", Invalid),
        ("DROP TABLE ratings", Forbidden),
        ("SELECT * FROM read_csv('/etc/passwd')", Forbidden),
    ],
)
def test_wrong_queries_have_a_short_true_error(cloud: Cloud, sql: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        cloud.query(sql)
    assert caught.value.hint  # type: ignore[attr-defined]


def worker_of(stand: Any) -> Any:
    return stand.app.state.lanes.queries(stand.cell.lake_url("default"))[0]


def test_a_worker_that_was_killed_is_replaced(stand: Any, cloud: Cloud) -> None:
    cloud.query("SELECT 1")
    before = worker_of(stand).pid
    assert before is not None
    os.kill(before, 9)
    assert cloud.query("SELECT 2").rows == [[2]]
    assert worker_of(stand).pid != before


def test_a_worker_that_nobody_asks_is_ended_and_started_again(stand: Any, cloud: Cloud) -> None:
    lanes = stand.app.state.lanes
    cloud.query("SELECT 1")
    lanes.rest()
    assert worker_of(stand).pid is not None
    lanes.rest(idle_s=0.0)
    assert worker_of(stand).pid is None
    assert cloud.query("SELECT 2").rows == [[2]]


def test_long_queries_hold_up_nothing_else_and_are_bounded(stand: Any, cloud: Cloud) -> None:
    lane = stand.app.state.lanes.queries(stand.cell.lake_url("default"))[1]
    before, lane._most = lane._most, 3
    pause = threading.Event()

    def ask() -> str:
        try:
            cloud.query(SLOW)
        except Busy:
            return "busy"
        except LeptonError as error:
            return error.code  # its worker is killed below
        return "done"

    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask) for _ in range(6)]
            while sum(item.done() for item in asked) < 3:
                assert cloud.cell().name == "local"
            assert [item.result() for item in asked if item.done()] == ["busy"] * 3
            with Cloud(cloud._http.url, stand.foreign, "other") as other:
                assert other.query("SELECT x FROM secret").rows == [[42]]
            while not all(item.done() for item in asked):
                pid = worker_of(stand).pid
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                pause.wait(0.05)
    finally:
        lane._most = before
    assert cloud.query("SELECT 3").rows == [[3]]
