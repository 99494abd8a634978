"""The public client's JSON: what it sends becomes our form, what it reads has the fields that it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.errors import Invalid, LeptonError, Unsupported
from lepton_ai.spec.workload import DeploymentSpec, JobSpec, Replicas, Resources, Template
from lepton_ai.wire import deployments, jobs, logs, merge, replicas, shapes
from lepton_ai.wire.record import environment, envs


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


# As `lep` 0.47.1 sends them.
ENDPOINT: dict[str, Any] = {
    "metadata": {"id": "e1", "name": "e1"},
    "spec": {
        "container": {
            "image": "python:3.11",
            "ports": [{"container_port": 18560}],
            "command": ["/bin/bash", "-c", "sleep 100"],
        },
        "resource_requirement": {
            "resource_shape": "cpu.small",
            "affinity": {"allowed_dedicated_node_groups": ["local-0001"]},
            "min_replicas": 1,
        },
        "auto_scaler": {"scale_down": {"no_traffic_timeout": 3600}},
        "api_tokens": [],
        "envs": [{"name": "A", "value": "b"}, {"name": "S1", "value_from": {"secret_name_ref": "S1"}}],
        "image_pull_secrets": [],
        "auth_config": {"ip_allowlist": []},
    },
}
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


def spec_of(form: dict[str, Any], tokens: tuple[str, ...] | None = None) -> DeploymentSpec:
    return DeploymentSpec(
        template=Template.model_validate(form["template"]),
        replicas=Replicas(**form["replicas"]),
        idle_timeout_s=form["idle_timeout_s"],
        tokens=tokens,
    )


def test_an_endpoint_becomes_our_form() -> None:
    form = deployments.form(ENDPOINT, deployments.name_of(ENDPOINT))
    assert form["name"] == "e1"
    assert form["replicas"] == {"min": 1, "max": 1}
    assert form["idle_timeout_s"] == 3600
    assert form["tokens"] == []
    template = Template.model_validate(form["template"])
    assert template.command == ("/bin/bash", "-c", "sleep 100")
    assert (template.port, template.image, template.shape) == (18560, "python:3.11", "cpu.small")
    assert template.resources == shapes.SHAPES["cpu.small"]
    assert (template.env, template.secrets) == ({"A": "b"}, {"S1": "S1"})


def test_what_is_shown_and_patched_with_nothing_stays() -> None:
    form = deployments.form(ENDPOINT, "e1")
    spec = spec_of(form, ("sealed",))
    base = {"name": "e1", "template": spec.template.model_dump(mode="json")}
    again = deployments.form(deployments.document("e1", spec), "e1", base)
    assert spec_of(again) == spec_of(form)
    assert again["tokens"] is None  # hidden ones mean: as they are
    shown = deployments.shown(Record(), spec, "http://gw/default/e1/")
    assert "sealed" not in str(shown)


def test_scaling_and_stopping_are_merge_patches() -> None:
    spec = spec_of(deployments.form(ENDPOINT, "e1"))
    base = {"name": "e1", "template": spec.template.model_dump(mode="json")}
    scale = {
        "resource_requirement": {"min_replicas": 2, "max_replicas": 2},
        "auto_scaler": {"scale_down": {"no_traffic_timeout": 0}, "target_gpu_utilization_percentage": 0},
    }
    form = deployments.form(merge.merge(deployments.document("e1", spec), {"spec": scale}), "e1", base)
    assert (form["replicas"], form["idle_timeout_s"]) == ({"min": 2, "max": 2}, None)
    assert Template.model_validate(form["template"]) == spec.template
    stop = {"spec": {"resource_requirement": {"min_replicas": 0}}}
    form = deployments.form(merge.merge(deployments.document("e1", spec), stop), "e1", base)
    assert (form["replicas"], form["idle_timeout_s"]) == ({"min": 0, "max": 1}, 3600)
    more = {"spec": {"resource_requirement": {"min_replicas": 7}}}
    form = deployments.form(merge.merge(deployments.document("e1", spec), more), "e1", base)
    assert form["replicas"] == {"min": 7, "max": 7}


def test_tokens_are_literal_or_refused() -> None:
    def tokens(**spec: Any) -> Any:
        return deployments.form({**ENDPOINT, "spec": {**ENDPOINT["spec"], **spec}}, "e1")["tokens"]

    assert tokens(api_tokens=[{"value": "K"}]) == ["K"]
    assert tokens(api_tokens=[{"value": "K"}], allow_unauthenticated_access=True) == []
    for wrong in ([{"value_from": {"token_name_ref": "W"}}], [{"value": "***"}, {"value": "K"}], ["K"], "K"):
        with pytest.raises(Invalid):
            tokens(api_tokens=wrong)


@pytest.mark.parametrize(
    ("patch", "kind"),
    [
        ({"mounts": [{"from": "node-local", "mount_path": "/x"}]}, Unsupported),
        ({"is_pod": True}, Unsupported),
        ({"auth_config": {"ip_allowlist": ["10.0.0.0/8"]}}, Unsupported),
        ({"container": {"image": "x"}}, Invalid),
        ({"container": {"command": ["x"], "ports": [{"container_port": 1}, {"container_port": 2}]}}, Invalid),
        ({"container": "x"}, Invalid),
        ({"resource_requirement": {"resource_shape": "cpu.smal"}}, Invalid),
        ({"resource_requirement": {"cpu": "two"}}, Invalid),
        ({"resource_requirement": {"min_replicas": 1.5}}, Invalid),
        ({"envs": [{"value": "x"}]}, Invalid),
        ({"envs": {"A": "b"}}, Invalid),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(patch: dict[str, Any], kind: type[LeptonError]) -> None:
    with pytest.raises(kind) as caught:
        deployments.form({**ENDPOINT, "spec": {**ENDPOINT["spec"], **patch}}, "e1")
    assert caught.value.hint
    assert "sized" not in str(caught.value)


def test_a_wrong_shape_has_the_nearest_as_hint() -> None:
    with pytest.raises(Invalid) as caught:
        shapes.resources("cpu.smal")
    assert caught.value.hint == "did you mean cpu.small?"


@pytest.mark.parametrize(
    ("own", "ready", "state", "phase"),
    [
        ("", 0, "Starting", None),
        ("ready", 2, "Ready", None),
        ("updating", 1, "Updating", None),
        ("degraded", 1, "Ready", None),
        ("degraded", 0, "Not Ready", "Degraded"),
        ("waiting", 0, "Not Ready", "Waiting"),
        ("idle", 0, "Ready", "Idle"),
        ("stopped", 0, "Not Ready", "Stopped"),
        ("stopped", 1, "Not Ready", "Stopping"),
        ("failed", 0, "Error", None),
    ],
)
def test_each_state_has_a_word_of_theirs(own: str, ready: int, state: str, phase: str | None) -> None:
    spec = spec_of(deployments.form(ENDPOINT, "e1"))
    status = {"state": own, "ready": ready, "wanted": 2} if own else {}
    shown = deployments.shown(Record(status=status), spec, "http://gw/default/e1/")
    assert (shown["status"]["state"], shown["status"].get("phase")) == (state, phase)
    assert shown["status"]["endpoint"]["external_endpoint"] == "http://gw/default/e1/"
    assert shown["metadata"]["created_at"] == 1_700_000_000_000
    # A response with a maximum but no minimum, or the minimum above it, does not parse there.
    size = shown["spec"]["resource_requirement"]
    assert size["min_replicas"] <= size["max_replicas"]
    assert deployments.shown(Record(status=status, deleting=True), spec, "")["status"]["state"] == "Deleting"


def test_a_job_becomes_our_form_and_is_shown() -> None:
    form = jobs.form(JOB)
    assert (form["name"], form["workers"], form["retries"], form["ttl_s"]) == ("j1", 2, 0, 259200)
    template = Template.model_validate(form["template"])
    assert template.resources == shapes.SHAPES["cpu.small"]
    spec = JobSpec(template=template, title="j1", workers=2, ttl_s=form["ttl_s"])
    status = {"state": "succeeded", "succeeded": 2, "ended_ms": 1_700_000_005_000}
    shown = jobs.shown(Record(name="j1-abc123", kind="job", status=status), spec)
    assert (shown["metadata"]["id"], shown["metadata"]["name"]) == ("j1-abc123", "j1")
    assert shown["status"]["state"] == "Completed"
    assert shown["status"]["completion_time"] == 1_700_000_005_001
    assert shown["status"]["creation_time"] == 1_700_000_000_000
    assert all(isinstance(shown["status"][key], int) for key in ("ready", "active", "failed", "succeeded"))
    again = jobs.form({"metadata": {"id": "j1"}, "spec": {**shown["spec"], "resource_shape": "cpu.small"}})
    assert Template.model_validate(again["template"]) == template.model_copy(update={"image": "python:3.11"})


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("", "Queueing"), ("queued", "Queueing"), ("starting", "Starting"), ("running", "Running"),
        ("succeeded", "Completed"), ("failed", "Failed"), ("stopping", "Stopping"), ("stopped", "Stopped"),
    ],
)  # fmt: skip
def test_each_job_state_has_a_word_of_theirs(own: str, theirs: str) -> None:
    spec = JobSpec(template=Template(command=("true",)))
    assert jobs.shown(Record(kind="job", status={"state": own}), spec)["status"]["state"] == theirs


def test_jobs_are_filtered_as_asked() -> None:
    spec = JobSpec(template=Template(command=("true",)), title="train")
    job = jobs.shown(Record(name="train-abc123", kind="job", status={"state": "running"}), spec)
    assert jobs.Filter().takes(job)
    assert jobs.Filter(text="rai").takes(job)
    assert jobs.Filter(text="abc").takes(job)
    assert jobs.Filter(states=("run",)).takes(job)
    assert jobs.Filter(mode="alive_and_archive", states=("fail", "RUN")).takes(job)
    assert not jobs.Filter(text="other").takes(job)
    assert not jobs.Filter(states=("comp",)).takes(job)
    assert not jobs.Filter(mode="archive_only").takes(job)
    assert not jobs.Filter(created_by=("me",)).takes(job)


def test_only_stopped_can_be_patched_in_a_job() -> None:
    assert jobs.stopped({"spec": {"stopped": True}}) is True
    assert jobs.stopped({"spec": {"stopped": False}}) is False
    for body in ({}, {"spec": {}}, {"spec": {"stopped": "yes"}}, {"spec": {"stopped": True, "envs": []}}, [], None):
        with pytest.raises(Invalid):
            jobs.stopped(body)


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
    for patch in ({}, {"metadata": {}}, {"spec": {}}, [], None):
        with pytest.raises(Invalid) as caught:
            merge.checked(patch)
        if isinstance(patch, dict):
            assert "no valid field to update" in caught.value.message


@given(st.dictionaries(st.text(min_size=1), st.text()), st.dictionaries(st.text(min_size=1), st.text(min_size=1)))
def test_environments_survive_the_way_there_and_back(plain: dict[str, str], secret: dict[str, str]) -> None:
    plain = {key: value for key, value in plain.items() if key not in secret}
    assert environment(envs(plain, secret)) == (plain, secret)


def test_replicas_tell_how_they_are_and_how_they_ended() -> None:
    ready = Record("e1-1-a", "replica", spec={"node": "node-1"}, status={"phase": "ready"})
    starts = Record("e1-1-b", "replica", spec={"node": "node-1"}, status={"phase": "starting", "reason": "503"})
    end = {"code": 3, "started_ms": 5000, "ended_ms": 9000}
    failed = Record("e1-1-c", "replica", spec={"node": "x"}, status={"phase": "exited", "exit": end, "last_log": "b"})
    killed = Record("e1-1-d", "replica", status={"phase": "exited", "exit": {"signal": 9, "out_of_memory": True}})
    lost = Record("e1-1-e", "replica", status={"phase": "exited", "exit": {"code": None, "signal": None}})
    every = [ready, starts, failed, killed, lost]
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
    for item in shapes.shown("local-0001", None):
        size = shapes.resources(item["metadata"]["id"])
        assert isinstance(size, Resources)
        assert item["spec"]["memory_in_mb"] == size.memory_mib
