"""Endpoints and pods in the public client's JSON: what is sent comes back, patches change what they say and no more."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.api.form import DeployForm, written
from lepton_ai.errors import Invalid, LeptonError, NotFound
from lepton_ai.spec.workload import DeploymentSpec, Template
from lepton_ai.wire import deployments, merge, pods, shapes
from lepton_ai.wire.container import Where

HERE = Where("local-0001", "local", {"local": "local", "data": "nfs"})


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


# As `lep` 0.47.1 sends it.
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
        "mounts": [{"path": "/data", "from": "node-local", "mount_path": "/mnt/x"}],
        "image_pull_secrets": [],
        "auth_config": {"ip_allowlist": []},
    },
}
# Every field of the client's LeptonDeploymentUserSpec that is taken here, each unlike its default.
WHOLE: dict[str, Any] = {
    "metadata": {"id": "e1", "name": "e1", "labels": {"team": "research"}, "visibility": "private"},
    "spec": {
        "container": {
            "image": "python:3.11",
            "command": ["serve"],
            "ports": [
                {"container_port": 8080, "protocol": "TCP", "app_protocol": "grpc"},
                {"container_port": 9000, "protocol": "UDP", "name": "b", "expose_strategies": ["HostPortMapping"]},
            ],
        },
        "resource_requirement": {
            "cpu": 1.5,
            "memory": 512,
            "accelerator_type": "a100",
            "accelerator_num": 0.5,
            "ephemeral_storage_in_gb": 10,
            "shared_memory_size": 64,
            "affinity": {
                "allowed_dedicated_node_groups": ["local-0001"],
                "allowed_nodes_in_node_group": ["node-2", "node-1"],
                "allowed_providers": ["local"],
            },
            "min_replicas": 2,
            "max_replicas": 5,
        },
        "auto_scaler": {
            "scale_down": {"no_traffic_timeout": 600, "not_ready_timeout": 90},
            "target_gpu_utilization_percentage": 50,
            "target_throughput": {"qpm": 2.5, "paths": ["/a"], "methods": ["POST"]},
        },
        "api_tokens": [{"value": "literal-key-1"}, {"value_from": {"token_name_ref": "KEY"}}],
        "auth_config": {
            "ip_allowlist": ["10.0.0.0/8", "192.168.1.1"],
            "lepton_workspace_token_auth": {"remove_authorization_header": True},
        },
        "envs": [{"name": "A", "value": "b"}, {"name": "S1", "value_from": {"secret_name_ref": "S2"}}],
        "mounts": [
            {
                "path": "/in",
                "from": "node-nfs:data",
                "mount_path": "/mnt/x",
                "mount_options": {"read_only": True, "local_cache_size_mib": 100},
            }
        ],
        "image_pull_secrets": ["hub"],
        "health": {"liveness": {"initial_delay_seconds": 30, "tcp": {"port": 8080}}},
        "user_security_context": {"no_specific_user": True},
        "log": {"enable_collection": False, "save_termination_logs": True},
        "metrics": {"disable_pulling_from_replica": True},
        "routing_policy": {"enable_header_based_replica_routing": True},
        "queue_config": {"priority_class": "mid-5000", "can_be_preempted": False, "can_preempt": True},
        "reservation_config": {"reservation_id": "r1", "allow_burst_to_other_reservations": True},
        "scheduling_policy": {"replica_spread": "Required"},
        "ingress_timeout_seconds": 900,
        "load_balance_config": {"least_request": {"choice_count": 3}},
    },
}
POD: dict[str, Any] = {
    "metadata": {"name": "p1"},
    "spec": {
        "container": {
            "image": "python:3.11",
            "command": ["/bin/bash", "-c", "sleep 100"],
            "ports": [
                {"container_port": 2222, "protocol": "TCP", "expose_strategies": ["HostPortMapping"]},
                {"container_port": 8080, "protocol": "TCP", "expose_strategies": ["IngressProxy"]},
            ],
        },
        "resource_requirement": {"resource_shape": "cpu.small"},
        "is_pod": True,
    },
}


def spec_of(asked: dict[str, Any], old: DeploymentSpec | None = None) -> DeploymentSpec:
    """What the API would record; tokens are not sealed here."""
    form = DeployForm.model_validate(asked)
    if form.tokens is None:
        tokens, names = (None, ()) if old is None else (old.tokens, old.token_secrets)
    else:
        tokens = tuple("sealed" for _ in form.tokens) or None
        names = tuple("" if isinstance(token, str) else token.secret for token in form.tokens)
    return form.spec(written(form.template, "it"), tokens, names if any(names) else (), 1, "alice")


def made(body: dict[str, Any]) -> DeploymentSpec:
    return spec_of(deployments.form(body, deployments.name_of(body), HERE))


def changed(spec: DeploymentSpec, patch: dict[str, Any]) -> DeploymentSpec:
    """`spec` after a merge patch, as the API does it."""
    before = deployments.document("e1", spec, HERE)
    after = deployments.patched(before, patch, merge.merge(before, patch))
    left_out = {"tokens", "token_secrets", "release", "created_by"}
    base = {"name": "e1", **spec.model_dump(mode="json", exclude=left_out)}
    return spec_of(deployments.form(after, "e1", HERE, base, before), spec)


def test_an_endpoint_becomes_our_form() -> None:
    spec = made(ENDPOINT)
    assert (spec.replicas.min, spec.replicas.max, spec.idle_timeout_s, spec.tokens) == (1, 1, 3600, None)
    template = spec.template
    assert template.command == ("/bin/bash", "-c", "sleep 100")
    assert (template.port, template.image, template.shape) == (18560, "python:3.11", "cpu.small")
    assert template.resources == shapes.SHAPES["cpu.small"]
    assert (template.env, template.secrets) == ({"A": "b"}, {"S1": "S1"})
    assert [(m.volume, m.path, m.target, m.read_only) for m in template.mounts] == [("local", "/data", "/mnt/x", False)]
    assert template.request_timeout_s == 300  # what the client says is the default
    assert spec.advisory == {}
    assert template.nodes == ()


def test_every_field_comes_back_as_it_was_sent() -> None:
    spec = made(WHOLE)
    shown = deployments.shown(Record(spec=spec.model_dump(mode="json")), spec, "http://gw/default/e1/", HERE)
    wanted = copy.deepcopy(WHOLE["spec"])
    wanted["api_tokens"][0]["value"] = "***"
    assert shown["spec"] == wanted
    assert shown["metadata"]["labels"] == {"team": "research"}
    assert shown["metadata"]["visibility"] == "private"
    assert (shown["metadata"]["owner"], shown["metadata"]["created_by"]) == ("alice", "alice")
    assert "literal-key-1" not in str(shown)


def test_what_is_not_enforced_is_kept_by_its_name() -> None:
    spec = made(WHOLE)
    assert set(spec.advisory) == {
        "auth_config.lepton_workspace_token_auth.remove_authorization_header",
        "auto_scaler.scale_down.not_ready_timeout",
        "auto_scaler.target_gpu_utilization_percentage",
        "auto_scaler.target_throughput.methods",
        "auto_scaler.target_throughput.paths",
        "container.ports[8080/TCP]",
        "health.liveness.tcp.port",
        "log.enable_collection",
        "log.save_termination_logs",
        "metrics.disable_pulling_from_replica",
        "mounts[/mnt/x]",
        "resource_requirement.affinity.allowed_providers",
        "resource_requirement.ephemeral_storage_in_gb",
        "routing_policy.enable_header_based_replica_routing",
        "user_security_context.no_specific_user",
    }
    assert (spec.priority, spec.can_preempt, spec.preemptible) == (5000, True, False)
    template = spec.template
    assert (template.reservation, template.burst) == ("r1", True)
    assert template.resources.accelerator_milli == 500
    assert (template.resources.accelerator_type, template.resources.cpu_milli) == ("a100", 1500)
    assert (template.port, template.shared_memory_mib, template.nodes) == (8080, 64, ("node-2", "node-1"))
    assert [(port.number, port.protocol, port.exposed) for port in template.ports] == [(9000, "UDP", True)]
    assert template.health.startup_deadline_s == 90
    assert (spec.spread, spec.target_requests_per_minute, template.request_timeout_s) == ("required", 2.5, 900)
    assert spec.allowlist.networks == ("10.0.0.0/8", "192.168.1.1")
    assert (spec.balance.policy, spec.balance.choices) == ("least_request", 3)
    assert spec.token_secrets == ("", "KEY")


@pytest.mark.parametrize("body", [ENDPOINT, WHOLE, POD])
def test_what_is_shown_and_sent_back_is_the_same(body: dict[str, Any]) -> None:
    spec = made(body)
    assert changed(spec, {"spec": {}}) == spec
    # Also the whole of it, as somebody who reads, edits and writes does.
    assert changed(spec, deployments.document("e1", spec, HERE)) == spec


@pytest.mark.parametrize("path", sorted(made(WHOLE).advisory))
def test_what_is_only_kept_is_deleted_by_null(path: str) -> None:
    if "[" in path:
        return  # arrays are replaced, not merged
    patch: dict[str, Any] = {}
    here = patch
    *above, last = path.split(".")
    for part in above:
        here = here.setdefault(part, {})
    here[last] = None
    spec = made(WHOLE)
    assert set(spec.advisory) - set(changed(spec, {"spec": patch}).advisory) == {path}


def test_unknown_options_are_kept_and_not_dropped() -> None:
    body = copy.deepcopy(ENDPOINT)
    body["spec"] |= {"shiny": {"new": 1, "other": [{"a": None}]}, "plain": True, "empty": {}, "odd": {"a.b": 1}}
    spec = made(body)
    assert spec.advisory == {"shiny.new": 1, "shiny.other": [{"a": None}], "plain": True, "odd": {"a.b": 1}}
    shown = deployments.document("e1", spec, HERE)["spec"]
    assert (shown["shiny"], shown["plain"]) == ({"new": 1, "other": [{"a": None}]}, True)
    body["spec"]["huge"] = "x" * 20_000
    with pytest.raises(Invalid):
        made(body)


def test_scaling_and_stopping_are_merge_patches() -> None:
    spec = made(ENDPOINT)
    scale = {
        "resource_requirement": {"min_replicas": 2, "max_replicas": 2},
        "auto_scaler": {
            "scale_down": {"no_traffic_timeout": 0},
            "target_gpu_utilization_percentage": 0,
            "target_throughput": {"qpm": 0.0},
        },
    }
    after = changed(spec, {"metadata": {"id": "e1"}, "spec": scale})
    assert (after.replicas.min, after.replicas.max, after.idle_timeout_s) == (2, 2, None)
    assert (after.template, after.advisory, after.target_requests_per_minute) == (spec.template, {}, None)
    stopped = changed(spec, {"spec": {"resource_requirement": {"min_replicas": 0}}})
    assert (stopped.replicas.min, stopped.replicas.max, stopped.idle_timeout_s) == (0, 1, 3600)
    more = changed(spec, {"spec": {"resource_requirement": {"min_replicas": 7}}})
    assert (more.replicas.min, more.replicas.max) == (7, 7)
    for wrong in ({"min_replicas": 3, "max_replicas": 2}, {"max_replicas": 1}):
        with pytest.raises(Invalid) as caught:
            changed(more, {"spec": {"resource_requirement": wrong}})
        assert "over max_replicas" in caught.value.message


def test_the_other_policy_is_taken_back_by_null() -> None:
    spec = made(ENDPOINT)
    assert spec.balance.policy == "least_request"
    sticky = changed(spec, {"spec": {"load_balance_config": {"least_request": None, "maglev": {}}}})
    assert sticky.balance.policy == "maglev"
    assert deployments.document("e1", sticky, HERE)["spec"]["load_balance_config"] == {"maglev": {}}
    back = changed(sticky, {"spec": {"load_balance_config": {"least_request": {}, "maglev": None}}})
    assert back == spec
    chosen = changed(spec, {"spec": {"load_balance_config": {"least_request": {"choice_count": 4}}}})
    assert chosen.balance.choices == 4
    with pytest.raises(Invalid) as caught:
        changed(chosen, {"spec": {"load_balance_config": {"maglev": {}}}})
    assert "null" in str(caught.value.hint)


def test_another_shape_does_not_keep_the_sizes() -> None:
    sized = made(WHOLE)
    shaped = changed(sized, {"spec": {"resource_requirement": {"resource_shape": "CPU.Medium"}}})
    assert shaped.template.shape == "cpu.medium"
    assert shaped.template.resources == shapes.SHAPES["cpu.medium"]
    again = changed(shaped, {"spec": {"resource_requirement": {"cpu": 0.25}}})
    assert (again.template.shape, again.template.resources.cpu_milli) == (None, 250)
    assert again.template.resources.memory_mib == shapes.SHAPES["cpu.medium"].memory_mib


def test_tokens_stay_change_and_go() -> None:
    spec = made(WHOLE)
    assert changed(spec, {"spec": {"envs": []}}).tokens == spec.tokens
    one = changed(spec, {"spec": {"api_tokens": [{"value": "K"}], "allow_unauthenticated_access": False}})
    assert (len(one.tokens or ()), one.token_secrets) == (1, ())
    for patch in (
        {"allow_unauthenticated_access": True, "api_tokens": []},
        {"allow_unauthenticated_access": True},
    ):
        opened = changed(spec, {"spec": patch})
        assert opened.tokens is None
        shown = deployments.shown(Record(), opened, "", HERE)["spec"]
        assert (shown["api_tokens"], shown["allow_unauthenticated_access"]) == ([], True)
    opened = changed(spec, {"spec": {"allow_unauthenticated_access": True}})
    closed = changed(opened, {"spec": {"api_tokens": [{"value": "K"}]}})
    assert len(closed.tokens or ()) == 1
    for wrong in (
        {"api_tokens": []},
        {"api_tokens": None},
        {"api_tokens": [{"value": "***"}, {"value": "K"}]},
        {"api_tokens": [{"value": "K"}], "allow_unauthenticated_access": True},
        {"api_tokens": [{}]},
        {"api_tokens": ["K"]},
        {"api_tokens": "K"},
        {"allow_unauthenticated_access": "yes"},
    ):
        with pytest.raises(Invalid) as caught:
            changed(spec, {"spec": wrong})
        # The client shows no error that names them.
        assert "api_tokens" not in str(caught.value)
    with pytest.raises(Invalid):
        changed(opened, {"spec": {"allow_unauthenticated_access": False}})


@pytest.mark.parametrize(
    ("patch", "kind", "word"),
    [
        ({"mounts": [{"from": "node-nfs:gone", "mount_path": "/x"}]}, NotFound, "gone"),
        ({"mounts": [{"from": "node-local:data", "mount_path": "/x"}]}, Invalid, "type nfs"),
        ({"mounts": [{"from": "node-nfs", "mount_path": "/x"}]}, Invalid, "node-nfs"),
        ({"mounts": [{"from": "node-local", "mount_path": "/var//"}]}, Invalid, "/var is a folder of the system"),
        ({"mounts": [{"from": "node-local"}]}, Invalid, "mount_path"),
        ({"mounts": [{"mount_path": "/x"}]}, Invalid, "from"),
        ({"auth_config": {"ip_allowlist": "10.0.0.0/8"}}, Invalid, "ip_allowlist"),
        ({"container": {}}, Invalid, "neither a command nor an image"),
        ({"container": {"command": "x"}}, Invalid, "spec.container.command"),
        ({"container": {"command": ["x"], "ports": [{"container_port": 1, "protocol": "UDP"}]}}, Invalid, "TCP"),
        ({"container": {"command": ["x"], "ports": [{"container_port": 1, "protocol": "SCTP"}]}}, Invalid, "SCTP"),
        ({"container": {"command": ["x"], "ports": [{"container_port": 70_000}]}}, Invalid, "container_port"),
        ({"container": {"command": ["x"], "ports": [{}]}}, Invalid, "container_port"),
        ({"container": {"command": ["x"], "ports": [{"container_port": 1}] * 2}}, Invalid, "twice"),
        ({"container": "x"}, Invalid, "spec.container"),
        ({"resource_requirement": {"resource_shape": "cpu.smal"}}, Invalid, "cpu.smal"),
        ({"resource_requirement": {"resource_shape": "cpu.small", "cpu": 3}}, Invalid, "cpu"),
        ({"resource_requirement": {"cpu": "two"}}, Invalid, "cpu"),
        ({"resource_requirement": {"cpu": 1e300}}, Invalid, "cpu"),
        ({"resource_requirement": {"memory": 2**60}}, Invalid, "memory"),
        ({"resource_requirement": {"accelerator_num": 1e9}}, Invalid, "accelerator_num"),
        ({"resource_requirement": {"host_network": True}}, Invalid, "host_network"),
        ({"resource_requirement": {"min_replicas": 1.5}}, Invalid, "min_replicas"),
        ({"resource_requirement": {"min_replicas": 10**9}}, Invalid, "min_replicas"),
        ({"resource_requirement": {"min_replicas": -1}}, Invalid, "min_replicas"),
        (
            {"resource_requirement": {"affinity": {"allowed_dedicated_node_groups": ["other-0001"]}}},
            NotFound,
            "other-0001",
        ),
        ({"envs": [{"value": "x"}]}, Invalid, "environment variable"),
        ({"envs": {"A": "b"}}, Invalid, "spec.envs"),
        ({"envs": [{"name": "A", "value_from": {}, "value": 7}]}, Invalid, "value of A"),
        ({"log": "yes"}, Invalid, "spec.log"),
        ({"log": {"enable_collection": "yes"}}, Invalid, "spec.log.enable_collection"),
        ({"queue_config": {"priority_class": 5}}, Invalid, "priority_class"),
        ({"queue_config": {"priority_class": "urgent"}}, Invalid, "which is no priority"),
        ({"queue_config": {"priority_class": "low-9000"}}, Invalid, "which is no priority"),
        ({"queue_config": {"can_preempt": "yes"}}, Invalid, "neither true nor false"),
        ({"reservation_config": {"reservation_id": ["r1"]}}, Invalid, "reservation_id"),
        ({"auto_scaler": {"target_gpu_utilization_percentage": 101}}, Invalid, "target_gpu_utilization_percentage"),
        ({"auto_scaler": {"scale_down": {"no_traffic_timeout": -5}}}, Invalid, "no_traffic_timeout"),
        ({"health": {"readiness": {"require_approval": True}}}, Invalid, "require_approval"),
        ({"user_security_context": {"privileged": True}}, Invalid, "privileged"),
        ({"scheduling_policy": {"replica_spread": "Sometimes"}}, Invalid, "replica_spread"),
        ({"ingress_timeout_seconds": 5}, Invalid, "ingress_timeout_seconds"),
        ({"ingress_enabled": False}, Invalid, "ingress_enabled"),
        ({"load_balance_config": {"random": {}}}, Invalid, "random"),
        ({"load_balance_config": {"least_request": {"choice_count": 1}}}, Invalid, "choice_count"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(patch: dict[str, Any], kind: type[LeptonError], word: str) -> None:
    with pytest.raises(kind) as caught:
        made({**ENDPOINT, "spec": {**ENDPOINT["spec"], **patch}})
    assert word in caught.value.message
    assert caught.value.hint


def test_a_pod_is_a_deployment_without_a_gateway() -> None:
    spec = made(POD)
    assert (spec.pod, spec.replicas.min, spec.replicas.max, spec.tokens) == (True, 1, 1, None)
    assert spec.template.port is None
    # Whatever strategy was asked for: there is no other way to reach it.
    assert [(port.number, port.exposed) for port in spec.template.ports] == [(2222, True), (8080, True)]
    assert spec.advisory == {"container.ports[8080/TCP]": {"expose_strategies": ["IngressProxy"]}}
    record = Record("p1", spec=spec.model_dump(mode="json"), status={"state": "ready", "ready": 1, "wanted": 1})
    maps = [{"number": 2222, "host_port": 40_001, "protocol": "TCP", "name": ""}]
    live = Record("p1-1-b", "replica", created_ms=9, status={"phase": "ready", "address": "10.1.2.3", "ports": maps})
    ended = Record("p1-1-a", "replica", created_ms=5, status={"phase": "exited", "ports": maps})
    assert pods.one([ended, live]) is live
    assert pods.one([ended]) is None
    shown = deployments.shown(record, spec, "http://gw/default/p1/", HERE, live)
    assert shown["spec"]["is_pod"] is True
    assert shown["spec"]["container"]["ports"] == POD["spec"]["container"]["ports"]
    assert shown["status"]["container_port_status"] == [
        {"container_port": 2222, "protocol": "TCP", "host_port": 40_001},
        {"container_port": 8080, "protocol": "TCP"},
    ]
    assert shown["status"]["public_ip"] == "10.1.2.3"
    assert shown["status"]["endpoint"]["external_endpoint"] == ""
    waits = deployments.shown(record, spec, "", HERE)
    assert "public_ip" not in waits["status"]
    assert [item.get("host_port") for item in waits["status"]["container_port_status"]] == [None, None]


def test_a_pod_stops_and_stays_a_pod() -> None:
    spec = made(POD)
    stopped = changed(spec, {"spec": {"resource_requirement": {"min_replicas": 0}}})
    assert (stopped.replicas.min, stopped.replicas.max, stopped.pod) == (0, 1, True)
    pods.refuse_change(True, {"is_pod": True})
    for was, asked in ((True, False), (False, True)):
        with pytest.raises(Invalid):
            pods.refuse_change(was, {"is_pod": asked})
    for wrong in (
        {"api_tokens": [{"value": "K"}]},
        {"auth_config": {"ip_allowlist": ["10.0.0.0/8"]}},
        {"resource_requirement": {"min_replicas": 2}},
        {"resource_requirement": {"max_replicas": 2}},
    ):
        with pytest.raises(Invalid):
            made({**POD, "spec": {**POD["spec"], **wrong}})
    kept = made({**POD, "spec": {**POD["spec"], "auto_scaler": {"scale_down": {"no_traffic_timeout": 60}}}})
    assert kept.advisory["auto_scaler.scale_down.no_traffic_timeout"] == 60
    assert kept.idle_timeout_s is None


def test_an_image_runs_its_own_command() -> None:
    spec = made({**ENDPOINT, "spec": {**ENDPOINT["spec"], "container": {"image": "web:1"}}})
    assert (spec.template.command, spec.template.image) == ((), "web:1")
    assert deployments.document("e1", spec, HERE)["spec"]["container"] == {"image": "web:1"}
    used = Where("local-0001", "local", {}, runs_images=True)
    assert deployments.shown(Record(), spec, "", HERE)["status"]["image"] == "advisory"
    assert deployments.shown(Record(), spec, "", used)["status"]["image"] == "used"


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
    spec = made(ENDPOINT)
    status = {"state": own, "ready": ready, "wanted": 2} if own else {}
    shown = deployments.shown(Record(status=status), spec, "http://gw/default/e1/", HERE)
    assert (shown["status"]["state"], shown["status"].get("phase")) == (state, phase)
    assert shown["status"]["endpoint"]["external_endpoint"] == "http://gw/default/e1/"
    assert shown["metadata"]["created_at"] == 1_700_000_000_000
    # A response with a maximum but no minimum, or the minimum above it, does not parse there.
    size = shown["spec"]["resource_requirement"]
    assert size["min_replicas"] <= size["max_replicas"]
    assert deployments.shown(Record(status=status, deleting=True), spec, "", HERE)["status"]["state"] == "Deleting"


WORDS = st.text("abc-./_", min_size=1, max_size=8)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(WHOLE["spec"])) | WORDS, inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(WHOLE["spec"])), ANY, min_size=1, max_size=3))
def test_any_patch_is_taken_or_refused(patch: dict[str, Any]) -> None:
    spec = made(WHOLE)
    try:
        after = changed(spec, {"spec": patch})
    except (LeptonError, ValueError):  # a form that pydantic refuses is one that the API refuses
        return
    assert Template.model_validate(after.template.model_dump()) == after.template
    assert changed(after, {"spec": {}}) == after
