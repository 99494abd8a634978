"""A POST that is sent twice with one Idempotency-Key is done once, and answered the same; its answer is kept sealed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lepton_ai.api import idempotency

JOB = {"name": "count", "template": {"command": ["true"]}}
KEY = {"idempotency-key": "3f9a-1"}


def jobs(stand: Any) -> list[str]:
    return [record.name for record in stand.store.list("job")]


def test_the_same_request_is_done_once(stand: Any) -> None:
    client = stand.client()
    first = client.post("/x/jobs", json=JOB, headers=KEY)
    again = client.post("/x/jobs", json=JOB, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert idempotency.REPLAYED not in first.headers
    assert again.headers[idempotency.REPLAYED] == "true"
    assert len(jobs(stand)) == 1
    assert client.post("/x/jobs", json=JOB).json()["name"] != first.json()["name"]
    assert client.post("/x/jobs", json=JOB, headers={"idempotency-key": "3f9a-2"}).status_code == 201
    assert len(jobs(stand)) == 3


def test_the_public_clients_jobs_too(stand: Any) -> None:
    client = stand.client()
    body = {"metadata": {"id": "j1"}, "spec": {"container": {"command": ["true"]}}}
    names = {client.post("/jobs", json=body, headers=KEY).json()["metadata"]["id"] for _ in range(3)}
    assert len(names) == len(jobs(stand)) == 1


def test_another_body_another_token_another_path(stand: Any) -> None:
    client = stand.client()
    client.post("/x/jobs", json=JOB, headers=KEY)
    other = client.post("/x/jobs", json={**JOB, "workers": 2}, headers=KEY)
    assert (other.status_code, "another body" in other.text) == (409, True)
    assert stand.client("developer").post("/x/jobs", json=JOB, headers=KEY).status_code == 201
    assert client.post("/x/tokens", json={"name": "t"}, headers=KEY).status_code == 201
    assert len(jobs(stand)) == 2


def test_a_refused_request_may_be_mended_and_sent_again(stand: Any) -> None:
    client = stand.client()
    assert client.post("/x/jobs", json={"name": "count"}, headers=KEY).status_code == 400
    assert client.post("/x/jobs", json=JOB, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", ["", "a" * 256, "é", "a\tb"])
def test_keys_that_are_none(stand: Any, key: str) -> None:
    response = stand.client().post("/x/jobs", json=JOB, headers={b"idempotency-key": key.encode()})
    assert response.status_code == 400, response.text
    assert jobs(stand) == []


def test_an_answer_that_holds_a_secret_is_kept_sealed(stand: Any) -> None:
    client = stand.client()
    first = client.post("/x/tokens", json={"name": "t"}, headers=KEY).json()["token"]
    assert client.post("/x/tokens", json={"name": "t"}, headers=KEY).json()["token"] == first
    (record,) = stand.store.list("answer")
    assert first not in str(record.spec)
    assert stand.client("viewer").post("/x/tokens", json={"name": "t"}, headers=KEY).status_code == 403


def test_keys_end_after_a_day(stand: Any) -> None:
    client, now_ms = stand.client(), stand.store.now_ms()
    client.post("/x/jobs", json=JOB, headers=KEY)
    stand.store.now_ms = lambda: now_ms + idempotency.KEEP_MS + 60_000
    assert client.post("/x/jobs", json={**JOB, "workers": 2}, headers=KEY).status_code == 201
    client.post("/x/jobs", json=JOB, headers={"idempotency-key": "another"})
    stand.store.now_ms = lambda: now_ms + 3 * idempotency.KEEP_MS
    client.post("/x/jobs", json=JOB, headers={"idempotency-key": "a third"})
    assert len(stand.store.list("answer")) == 1


def test_a_use_that_never_ended_frees_its_key(stand: Any) -> None:
    """As when the control plane died between the work and the record of its answer."""
    client, now_ms = stand.client(), stand.store.now_ms()
    client.post("/x/jobs", json=JOB, headers=KEY)
    (record,) = stand.store.list("answer")
    stand.store.update(record, spec={**record.spec, "sealed": ""})
    busy = client.post("/x/jobs", json=JOB, headers=KEY)
    assert (busy.status_code, "under way" in busy.text) == (409, True)
    stand.store.now_ms = lambda: now_ms + idempotency.STUCK_MS + 60_000
    assert client.post("/x/jobs", json=JOB, headers=KEY).status_code == 201


def test_many_at_once_make_one(stand: Any) -> None:
    cell = stand.cell
    who = cell.access.authenticate(stand.tokens["owner"])
    done, begun = [], threading.Barrier(8)

    def send(_: int) -> str:
        begun.wait(timeout=60)
        try:
            value, _ = idempotency.once(cell, who, "k", "POST /x", {"a": 1}, lambda: done.append(1) or {"n": 1})
        except Exception as error:
            return type(error).__name__
        return str(value["n"])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(8)))
    assert len(done) == 1
    assert set(found) <= {"1", "Conflict"}
    assert "1" in found
