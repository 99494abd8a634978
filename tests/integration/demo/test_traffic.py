"""The load generator as a process: what it counts is what happened. Nothing here depends on how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.demo.load import Load, Plan, quantile
from lepton_ai.demo.traffic import Questions, Traffic, capacity
from lepton_ai.errors import Failed

USERS = (1, 2, 3)


def questions(url: str, expected: tuple[Any, ...] = ([1], [2], [3])) -> Questions:
    return Questions(url, tuple(f'{{"user": {user}}}' for user in USERS), expected)


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_a_closed_loop_counts_what_was_answered(server: Any, tmp_path: Path) -> None:
    result = capacity(questions(server.url), tmp_path, connections=3, duration_s=0.3)
    assert result.sent == result.ok == server.asked > 0
    assert (result.failed, result.broken, result.wrong) == (0, 0, 0)


def test_an_open_loop_ends_when_it_is_told(server: Any, tmp_path: Path) -> None:
    with Traffic(questions(server.url), tmp_path, rate_per_s=200.0) as traffic:
        wait_for(lambda: server.asked > 5)
        result = traffic.stop()
    assert result.ok == result.sent == server.asked
    assert sum(cell[0] for cell in result.slices) == result.sent


def test_an_answer_for_another_row_is_wrong(server: Any, tmp_path: Path) -> None:
    result = capacity(questions(server.url, ([1], [2], [99])), tmp_path, connections=1, duration_s=0.3)
    assert result.wrong == result.failed > 0
    assert result.reasons == {"wrong answer: not this row's": result.wrong}


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b"{}", b"not JSON", b"[" * 100_000])
def test_an_answer_of_another_form_is_wrong_and_never_lost(server: Any, tmp_path: Path, body: bytes) -> None:
    server.behave = lambda asked: body
    with Traffic(questions(server.url), tmp_path, rate_per_s=100.0) as traffic:
        wait_for(lambda: server.asked > 5)
        result = traffic.stop()
    assert result.sent == result.failed == result.wrong > 0
    assert (result.ok, result.broken) == (0, 0)


def test_a_request_without_an_answer_at_the_end_failed() -> None:
    load = Load(Plan("http://127.0.0.1:9/", ["{}"], [1], "items", "", rate_per_s=1.0))
    load.result.sent, load.result.ok, load.result.failed = 5, 2, 1
    result = load._summary()
    assert (result.failed, result.reasons) == (3, {"no answer when the run ended": 2})


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.75, 3), (0.76, 4), (0.95, 4), (1.0, 4)])
def test_a_quantile_is_the_nearest_rank(share: float, value: int) -> None:
    assert quantile([4, 2, 1, 3], share) == value


def test_a_run_that_sent_nothing_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="no request"):
        capacity(questions("http://127.0.0.1:9/"), tmp_path, connections=1, duration_s=0.0)


def test_another_status_is_a_failure_with_its_words(server: Any, tmp_path: Path) -> None:
    server.status, server.behave = 503, lambda body: b'{"code": "Unavailable"}'
    result = capacity(questions(server.url), tmp_path, connections=1, duration_s=0.2)
    assert result.failed == result.sent > 0
    assert next(iter(result.reasons)).startswith('status 503: {"code": "Unavailable"}')


@pytest.mark.parametrize("retry", [False, True])
def test_a_broken_connection_is_counted_and_sent_again_only_when_asked(
    server: Any, tmp_path: Path, retry: bool
) -> None:
    def every_other(body: dict[str, int]) -> bytes | None:
        return None if server.asked % 2 else b'{"items": [%d]}' % body["user"]

    server.behave = every_other
    with Traffic(questions(server.url), tmp_path, connections=1, duration_s=0.3, retry=retry) as traffic:
        result = traffic.result()
    assert result.broken > 0
    assert result.failed == (0 if retry else result.broken)
    assert result.retried_ok == (result.broken if retry else 0)


def test_nobody_there_is_broken(tmp_path: Path) -> None:
    result = capacity(questions("http://127.0.0.1:9/"), tmp_path, connections=1, duration_s=0.1)
    assert result.broken == result.failed == result.sent > 0


def test_leaving_early_ends_the_process(server: Any, tmp_path: Path) -> None:
    with Traffic(questions(server.url), tmp_path, rate_per_s=50.0) as traffic:
        process = traffic._process
        assert process.poll() is None
    assert process.poll() is not None


def test_a_generator_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="load generator"):
        with Traffic(questions("http://127.0.0.1:not-a-port/"), tmp_path, rate_per_s=1.0):
            pass
