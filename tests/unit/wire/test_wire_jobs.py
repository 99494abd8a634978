"""Jobs in the public client's JSON: every option there and back, states, archives, and what lists are searched by."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest

from lepton_ai.api.form import JobForm, written
from lepton_ai.errors import Invalid, LeptonError, NotFound
from lepton_ai.spec.workload import JobSpec, Template
from lepton_ai.wire import jobfilter, jobs, queue, shapes
from lepton_ai.wire.container import Where

HERE = Where("local-0001", "local", {"local": "local", "data": "nfs"})


@dataclass
class Record:
    """What wire sees of a record."""

    name: str = "train-abc123"
    kind: str = "job"
    workspace: str = "default"
    generation: int = 1
    created_ms: int = 1_700_000_000_000
    updated_ms: int = 1_700_000_000_500
    deleting: bool = False
    spec: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)


# As `lep` 0.47.1 sends it.
JOB: dict[str, Any] = {
    "metadata": {"id": "j1"},
    "spec": {
        "resource_shape": "cpu.small",
        "affinity": {"allowed_dedicated_node_groups": ["local-0001"]},
        "container": {
            "image": "python:3.11",
            "ports": [{"container_port": 80, "expose_strategies": [], "protocol": "TCP"}],
            "command": ["/bin/bash", "-c", "true"],
        },
        "completions": 2,
        "parallelism": 2,
        "envs": [],
        "mounts": [],
        "image_pull_secrets": [],
        "ttl_seconds_after_finished": 259200,
        "intra_job_communication": True,
        "queue_config": {"priority_class": "mid-5000"},
    },
}
WHOLE: dict[str, Any] = {
    "metadata": {"id": "train", "labels": {"team": "research"}, "visibility": "private"},
    "spec": {
        **JOB["spec"],
        "affinity": {
            "allowed_dedicated_node_groups": ["local-0001"],
            "allowed_nodes_in_node_group": ["node-1"],
            "allowed_providers": ["local"],
        },
        "shared_memory_size": 64,
        "max_failure_retry": 2,
        "max_job_failure_retry": 3,
        "envs": [{"name": "A", "value": "b"}, {"name": "K", "value_from": {"secret_name_ref": "KEY"}}],
        "mounts": [
            {"path": "/", "from": "node-nfs:data", "mount_path": "/mnt/x", "mount_options": {"read_only": True}}
        ],
        "image_pull_secrets": ["hub"],
        "time_schedule": {"start_at": 1_900_000_000},
        "user_security_context": {"no_specific_user": True},
        "metrics": {"disable_pulling_from_replica": True},
        "log": {"enable_collection": True, "save_termination_logs": False},
        "reservation_config": {"reservation_id": "r1"},
        "segment_config": {"count_per_segment": 2},
        "stopped": False,
    },
}


def spec_of(body: dict[str, Any]) -> JobSpec:
    form = JobForm.model_validate(jobs.form(body, jobs.name_of(body), HERE))
    return form.spec(written(form.template, "it"), "alice")


def test_a_job_becomes_our_form_and_is_shown() -> None:
    spec = spec_of(JOB)
    assert (spec.title, spec.workers, spec.retries, spec.ttl_s, spec.rendezvous) == ("j1", 2, 0, 259200, True)
    assert spec.template.resources == shapes.SHAPES["cpu.small"]
    assert [(port.number, port.exposed) for port in spec.template.ports] == [(80, False)]
    assert spec.template.port is None
    assert (spec.priority, spec.can_preempt, spec.preemptible, spec.advisory) == (5000, None, None, {})
    status = {"state": "succeeded", "succeeded": 2, "ended_ms": 1_700_000_005_000}
    shown = jobs.shown(Record("j1-abc123", spec=spec.model_dump(mode="json"), status=status), spec, HERE)
    assert (shown["metadata"]["id"], shown["metadata"]["name"]) == ("j1-abc123", "j1")
    assert (shown["metadata"]["owner"], shown["metadata"]["created_by"]) == ("alice", "alice")
    assert shown["status"]["state"] == "Completed"
    assert shown["status"]["completion_time"] == 1_700_000_005_001
    assert shown["status"]["creation_time"] == 1_700_000_000_000
    assert shown["status"]["image"] == "advisory"
    assert all(isinstance(shown["status"][key], int) for key in ("ready", "active", "failed", "succeeded"))


def test_every_option_comes_back_as_it_was_sent() -> None:
    spec = spec_of(WHOLE)
    shown = jobs.shown(Record(spec=spec.model_dump(mode="json")), spec, HERE)
    assert shown["spec"] == WHOLE["spec"]
    assert (shown["metadata"]["labels"], shown["metadata"]["visibility"]) == ({"team": "research"}, "private")
    assert (spec.start_at_ms, spec.retries, spec.job_retries) == (1_900_000_000_000, 2, 3)
    assert (spec.template.shared_memory_mib, spec.template.nodes) == (64, ("node-1",))
    assert spec.template.mounts[0].volume == "data"
    # A clone sends back what it was shown.
    assert spec_of({"metadata": {"id": "train"}, "spec": shown["spec"]}).template == spec.template


def test_a_priority_is_shown_by_the_name_it_was_asked_by() -> None:
    for name in (*queue.CLASSES, "low-1", "mid-4500", "high-9999"):
        given = {"priority_class": name, "can_preempt": False}
        spec = spec_of({**JOB, "spec": {**JOB["spec"], "queue_config": given}})
        assert spec.priority == int(name.partition("-")[2])
        assert jobs.document("j1", spec, HERE)["spec"]["queue_config"] == given
    bare = spec_of({**JOB, "spec": {key: value for key, value in JOB["spec"].items() if key != "queue_config"}})
    assert (bare.priority, bare.rank) == (None, 4000)
    assert "queue_config" not in jobs.document("j1", bare, HERE)["spec"]


def test_what_an_older_release_only_kept_is_enforced_once_it_is_changed() -> None:
    old = JobSpec(template=Template(command=("true",)), advisory={"queue_config.priority_class": "high-8000"})
    document = jobs.document("j1", old, HERE)
    assert document["spec"]["queue_config"] == {"priority_class": "high-8000"}
    spec = spec_of({"metadata": {"id": "j1"}, "spec": document["spec"]})
    assert (spec.priority, spec.advisory) == (8000, {})


def test_workers_meet_unless_it_is_not_wanted() -> None:
    def rendezvous(**fields: Any) -> bool:
        spec = {key: value for key, value in JOB["spec"].items() if key != "intra_job_communication"}
        return spec_of({**JOB, "spec": {**spec, **fields}}).rendezvous

    assert rendezvous() is True
    assert rendezvous(completions=1, parallelism=1) is False
    assert rendezvous(completions=1, parallelism=1, intra_job_communication=True) is True
    assert rendezvous(intra_job_communication=False) is False


def test_both_numbers_of_workers_mean_the_same() -> None:
    def workers(**fields: Any) -> int:
        spec = {key: value for key, value in JOB["spec"].items() if key not in ("completions", "parallelism")}
        return spec_of({**JOB, "spec": {**spec, **fields}}).workers

    assert workers() == 1
    assert workers(parallelism=4, completions=1) == 4  # the client fills in the other
    assert workers(completions=4) == 4
    for wrong in ({"parallelism": 2, "completions": 4}, {"parallelism": 0}, {"completions": -1}, {"parallelism": 1e9}):
        with pytest.raises(Invalid):
            workers(**wrong)


@pytest.mark.parametrize(
    ("patch", "kind", "word"),
    [
        ({"container": {}}, Invalid, "neither a command nor an image"),
        ({"user_security_context": {"privileged": True}}, Invalid, "privileged"),
        ({"storage_attachments": [{"data_source_name": "a"}]}, Invalid, "storage_attachments"),
        ({"affinity": {"allowed_dedicated_node_groups": ["other"]}}, NotFound, "other"),
        ({"time_schedule": {"start_at": 10**15}}, Invalid, "start_at"),
        ({"time_schedule": {"start_at": "now"}}, Invalid, "start_at"),
        ({"ttl_seconds_after_finished": -1}, Invalid, "ttl_seconds_after_finished"),
        ({"max_failure_retry": 10**6}, Invalid, "max_failure_retry"),
        ({"segment_config": {"count_per_segment": 0}}, Invalid, "count_per_segment"),
        ({"shared_memory_size": "big"}, Invalid, "shared_memory_size"),
        ({"resource_shape": "cpu.enormous"}, Invalid, "cpu.enormous"),
        ({"envs": [{"name": "LEPTON_JOB_NAME", "value": "x"}]}, Invalid, "LEPTON_JOB_NAME"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(patch: dict[str, Any], kind: type[LeptonError], word: str) -> None:
    with pytest.raises(kind) as caught:
        spec_of({**JOB, "spec": {**JOB["spec"], **patch}})
    assert word in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("status", "theirs"),
    [
        ({}, "Queueing"),
        ({"state": "scheduled"}, "Awaiting"),
        ({"state": "queued"}, "Queueing"),
        ({"state": "starting"}, "Starting"),
        ({"state": "starting", "retried": 1}, "Restarting"),
        ({"state": "running", "retried": 1}, "Running"),
        ({"state": "retrying"}, "PendingRetry"),
        ({"state": "succeeded"}, "Completed"),
        ({"state": "failed"}, "Failed"),
        ({"state": "stopping"}, "Stopping"),
        ({"state": "stopped"}, "Stopped"),
    ],
)
def test_each_job_state_has_a_word_of_theirs(status: dict[str, Any], theirs: str) -> None:
    spec = JobSpec(template=Template(command=("true",)))
    assert jobs.shown(Record(status=status), spec, HERE)["status"]["state"] == theirs
    assert jobs.shown(Record(status=status, deleting=True), spec, HERE)["status"]["state"] == "Deleting"


def test_earlier_runs_are_the_history() -> None:
    runs = [
        {"run": 1, "state": "failed", "failed": 2, "succeeded": 0, "started_ms": 1000, "ended_ms": 2000},
        {"run": 2, "state": "stopped", "ended_ms": 3000},
    ]
    spec = JobSpec(template=Template(command=("true",)))
    shown = jobs.shown(Record(status={"state": "running", "history": runs, "retried": 1}), spec, HERE)
    assert [(run["state"], run["creation_time"], run["completion_time"]) for run in shown["status"]["job_history"]] == [
        ("Failed", 1000, 2001),
        ("Stopped", 3000, 3001),
    ]


def test_an_archived_job_says_how_it_ended() -> None:
    spec = spec_of(WHOLE)
    kept = {"kind": "job", "spec": spec.model_dump(mode="json"), "uid": "u", "created_ms": 5, "updated_ms": 6}
    record = Record(kind="archive", spec=kept, status={"state": "failed", "failed": 1, "ended_ms": 9})
    shown = jobs.archived(record, spec, HERE)
    assert shown["status"]["state"] == "Archived"
    assert (shown["status"]["creation_time"], shown["status"]["completion_time"]) == (5, 10)
    assert [run["state"] for run in shown["status"]["job_history"]] == ["Failed"]
    assert shown["metadata"]["created_at"] == 5
    assert shown["metadata"]["owner"] == "alice"
    assert shown["spec"] == WHOLE["spec"]
    short = jobfilter.short(record)
    assert (short["state"], short["created_ms"], short["visibility"]) == ("Archived", 5, "private")
    assert (short["name"], short["labels"], short["created_by"]) == ("train", {"team": "research"}, "alice")


def takes(record: Record, **query: Any) -> bool:
    lists = {key: query.get(key, []) for key in ("states", "node_groups", "created_by")}
    wanted = jobfilter.filter_of(
        query.get("mode"), query.get("text"), **lists, query=query.get("query"), groups=("local-0001", "local")
    )
    return not wanted.nothing and wanted.takes(jobfilter.short(record))


def test_jobs_are_filtered_as_asked() -> None:
    spec = {"title": "train", "created_by": "alice", "labels": {"team": "research", "gpu": ""}}
    record = Record(spec=spec, status={"state": "running"})
    for query in (
        {}, {"text": "RAI"}, {"text": "abc"}, {"states": ["run"]}, {"states": ["fail", "RUN"]},
        {"created_by": ["AL"]}, {"created_by": ["bob", "alice"]}, {"node_groups": ["LOCAL"]}, {"node_groups": ["0001"]},
        {"query": "team"}, {"query": "team=research"}, {"query": "team==research,gpu"}, {"query": "team!=ops"},
        {"query": "!stage"}, {"query": "team in (ops, research),gpu="}, {"query": "stage notin (test)"}, {"query": " "},
    ):  # fmt: skip
        assert takes(record, **query), query
    for query in (
        {"text": "other"}, {"states": ["comp"]}, {"states": ["unning"]}, {"created_by": ["lice"]},
        {"node_groups": ["h100"]}, {"query": "stage"}, {"query": "team=ops"}, {"query": "team,stage"},
        {"query": "team!=research"}, {"query": "!team"}, {"query": "team in (ops)"}, {"query": "team notin (research)"},
    ):  # fmt: skip
        assert not takes(record, **query), query


@pytest.mark.parametrize("query", ["team=", "a=b,", ",", "a b", "a>1", "a in b", "=b", "(a)", "a=b=c", "x" * 400])
def test_wrong_selectors_are_refused(query: str) -> None:
    if query == "team=":
        assert jobfilter.selector(query)
        return
    with pytest.raises(Invalid):
        jobfilter.selector(query)


def test_modes_are_known() -> None:
    assert [jobfilter.mode_of(text) for text in (None, "", "archive_only")] == ["alive_only"] * 2 + ["archive_only"]
    with pytest.raises(Invalid):
        jobfilter.mode_of("dead_only")
    assert copy.deepcopy(jobfilter.Filter()) == jobfilter.Filter()
