"""The public client's JSON: what it sends becomes our form, what it reads has the fields that it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import Resources
from lepton_ai.wire import logs, merge, replicas, shapes
from lepton_ai.wire.record import RESERVED_ENV, environment, envs, name_of, whole


@dataclass
class Record:
    """What wire sees of a record."""

    name: str = "e1"
    kind: str = "deployment"
    workspace: str = "default"
    generation: int = 1
    created_ms: int = 1_700_000_000_000
    updated_ms: int = 1_700_000_000_500
    deleting: bool = False
    spec: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)


def test_a_wrong_shape_has_the_nearest_as_hint() -> None:
    with pytest.raises(Invalid) as caught:
        shapes.resources("cpu.smal")
    assert caught.value.hint == "did you mean cpu.small?"


@pytest.mark.parametrize(
    ("document", "patch", "merged"),
    # RFC 7386, appendix A.
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_is_rfc_7386(document: Any, patch: Any, merged: Any) -> None:
    assert merge.merge(document, patch) == merged


def test_a_patch_that_changes_nothing_says_so_in_their_words() -> None:
    for patch in ({}, {"metadata": {}}, {"spec": {}}, {"metadata": {"id": "a"}, "spec": {}}, [], None):
        with pytest.raises(Invalid) as caught:
            merge.checked(patch)
        if isinstance(patch, dict):
            assert "no valid field to update" in caught.value.message
    assert merge.checked({"metadata": {"visibility": "private"}, "spec": {}})
    with pytest.raises(Invalid):
        merge.same_name({"metadata": {"id": "b"}}, "a")
    merge.same_name({"metadata": {"id": "a", "name": "a"}}, "a")


NAMES = st.from_regex(r"[A-Za-z._-][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(lambda name: name not in RESERVED_ENV)
VALUES = st.text().filter(lambda text: "\0" not in text)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.text("abc-", min_size=1)))
def test_environments_survive_the_way_there_and_back(plain: dict[str, str], secret: dict[str, str]) -> None:
    plain = {key: value for key, value in plain.items() if key not in secret}
    assert environment(envs(plain, secret)) == (plain, secret)


def test_of_two_values_of_a_name_the_last_counts() -> None:
    given_ = [{"name": "A", "value": "1"}, {"name": "A", "value_from": {"secret_name_ref": "S"}}, {"name": "B"}]
    assert environment(given_) == ({"B": ""}, {"A": "S"})
    assert environment(list(reversed(given_))) == ({"A": "1", "B": ""}, {})


@pytest.mark.parametrize("name", ["1A", "", "A B", "A=B", None, 7, "LEPTON_JOB_NAME", "A\n", "Ä"])
def test_environments_have_names_that_may_be_used(name: object) -> None:
    with pytest.raises(Invalid) as caught:
        environment([{"name": name, "value": "sw0rdfish"}])
    assert caught.value.hint
    assert "sw0rdfish" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a" * 37, "A", "1a", "a-", "a_b", "a/b", "../a", "a.b", "", None, 7, "made-by-lepton", "a\n", "ä"]
)
def test_names_are_those_that_the_client_itself_would_send(name: object) -> None:
    with pytest.raises(Invalid) as caught:
        name_of({"metadata": {"id": name}})
    assert caught.value.hint
    assert name_of({"metadata": {"name": "a" * 36}}) == "a" * 36


@pytest.mark.parametrize("value", [1e400, float("nan"), 1.5, "1", True, [], -1, 10**30])
def test_numbers_are_whole_and_not_absurd(value: object) -> None:
    with pytest.raises(Invalid) as caught:
        whole(value, "spec.field", 0)
    assert "spec.field" in caught.value.message


def test_replicas_tell_how_they_are_and_how_they_ended() -> None:
    ready = Record("e1-1-a", "replica", spec={"node": "node-1"}, status={"phase": "ready"})
    starts = Record("e1-1-b", "replica", spec={"node": "node-1"}, status={"phase": "starting", "reason": "503"})
    end = {"code": 3, "started_ms": 5000, "ended_ms": 9000}
    failed = Record("e1-1-c", "replica", spec={"node": "x"}, status={"phase": "exited", "exit": end, "last_log": "b"})
    killed = Record("e1-1-d", "replica", status={"phase": "exited", "exit": {"signal": 9, "out_of_memory": True}})
    lost = Record("e1-1-e", "replica", status={"phase": "exited", "exit": {"code": None, "signal": None}})
    every = [ready, starts, failed, killed, lost]
    phases = {"pending": "NoCapacity", "fetching": "InProgress", "unready": "SystemError", "unknown": "SystemError"}
    phases |= {"draining": "Deleting", "stopping": "Deleting", "placed": "InProgress"}
    for phase, reason in phases.items():
        (found_,) = replicas.readiness([Record("r", "replica", status={"phase": phase})]).values()
        assert found_[0]["reason"] == reason
    shown = replicas.shown(ready)
    assert (shown["id"], shown["metadata"]["id"]) == ("e1-1-a", "e1-1-a")
    assert shown["status"]["node"] == {"name": "node-1", "id": "node-1"}
    found = replicas.readiness(every)
    assert {name: item[0]["reason"] for name, item in found.items()} == {"e1-1-a": "Ready", "e1-1-b": "InProgress"}
    assert found["e1-1-b"][0]["message"] == "503"
    assert found["e1-1-b"][0]["creationTimestamp"] == "2023-11-14T22:13:20.500Z"
    ends = {name: (item[0]["exit_code"], item[0]["reason"]) for name, item in replicas.termination(every).items()}
    assert ends == {"e1-1-c": (3, "Error"), "e1-1-d": (137, "OOMKilled"), "e1-1-e": (-1, "Error")}
    assert replicas.termination([failed])["e1-1-c"][0] == {
        "started_at": 5, "finished_at": 9, "exit_code": 3, "reason": "Error", "message": "b",
    }  # fmt: skip


def test_logs_are_streams_with_text_stamps() -> None:
    entries = [logs.Entry(5, "a", "job", "j1", "r1"), logs.Entry(6, "b", "job", "j1", "r2")]
    shown = logs.shown([*entries, logs.Entry(7, "c", "job", "j1", "r1")])
    assert shown["data"]["result"] == [
        {"stream": {"job": "j1", "replica": "r1"}, "values": [["5", "a"], ["7", "c"]]},
        {"stream": {"job": "j1", "replica": "r2"}, "values": [["6", "b"]]},
    ]
    assert logs.shown([])["data"]["result"] == []


def test_shapes_fit_what_they_say() -> None:
    found = shapes.priced(lambda size: size.cpu_milli / 1e6, "USD", [])
    for item in shapes.shown(found, "local-0001", None):
        size = shapes.resources(item["metadata"]["id"])
        assert isinstance(size, Resources)
        assert item["spec"]["memory_in_mb"] == size.memory_mib


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"state": "waiting", "reason": "no node has room", "wanted": 1}, "NoCapacity"),
        ({"state": "degraded", "reason": "no node has room", "wanted": 3, "ready": 1}, "NoCapacity"),
        ({"state": "failed", "reason": "exit code 1"}, "ConfigError"),
        ({"state": "ready", "wanted": 1, "ready": 1}, None),
        ({"state": "idle", "reason": "no requests", "wanted": 0}, None),
        ({}, None),
    ],
)
def test_what_a_deployment_waits_for_is_said_where_no_replica_can(status: dict[str, Any], reason: str | None) -> None:
    found = replicas.readiness([], Record("web", status=status))
    assert [item[0]["reason"] for item in found.values()] == ([reason] if reason else [])
    if reason:
        assert found["web"][0]["message"] == status["reason"]


def test_the_newest_attempt_of_the_first_worker_is_listed_first() -> None:
    def copy(name: str, worker: int, phase: str, created_ms: int) -> Record:
        status = {"phase": phase, "address": "127.0.0.1", "isolation": "uid"}
        return Record(name, "replica", created_ms=created_ms, spec={"worker": worker, "node": "n"}, status=status)

    items = [
        copy("a0", 0, "exited", 1),
        copy("a1", 1, "exited", 2),
        copy("b0", 0, "ready", 3),
        copy("b1", 1, "exited", 4),
    ]
    assert [item.name for item in replicas.ordered(items)] == ["b0", "b1", "a0", "a1"]
    shown = replicas.shown(items[2])["status"]
    assert (shown["public_ip"], shown["isolation"], shown["phase"]) == ("127.0.0.1", "uid", "ready")
    kept = replicas.archived({"name": "a0", "spec": {"node": "n"}, "status": {"started_ms": 7}}, 1)
    assert (kept["id"], kept["status"]["node"]["id"], kept["metadata"]["created_at"]) == ("a0", "n", 7)
