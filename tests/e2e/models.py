"""Run by the public client's own Python: every method of every resource of its SDK, each answer parsed strictly.

    python models.py FOLDER PART...     (credentials come from the environment)

Not imported by our tests. A list that drops an item, an enum value that the client does not know, or a field that
it refuses is an error. Prints one line a call, and at the end "checked N".
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

from leptonai.api.v2.api_resource import APIResourse
from leptonai.api.v2.client import APIClient
from leptonai.api.v2.types.affinity import LeptonResourceAffinity
from leptonai.api.v2.types.common import Metadata
from leptonai.api.v2.types.dedicated_node_group import Volume
from leptonai.api.v2.types.deployment import (
    EnvVar,
    LeptonContainer,
    LeptonDeployment,
    LeptonDeploymentUserSpec,
    ResourceRequirement,
)
from leptonai.api.v2.types.finetune import LeptonFineTuneJob, LeptonFineTuneJobSpec
from leptonai.api.v2.types.ingress import LeptonIngress, LeptonIngressEndpoint, LeptonIngressUserSpec
from leptonai.api.v2.types.job import LeptonJob, LeptonJobUserSpec
from leptonai.api.v2.types.secret import SecretItem
from leptonai.api.v2.types.storage_data_source import StorageDataSourceSpec
from leptonai.api.v2.types.storage_permission import StoragePermission
from pydantic import BaseModel

UNKNOWN = {"UNK", "Unknown", "unknown"}
LABELS = {"team": "red"}
checked = 0
_lenient = APIResourse.ensure_list


def strict(self: Any, response: Any, kind: Any, list_key: str | None = None) -> Any:
    """The client's own parser, which drops what it cannot read; here nothing may be dropped."""
    found = _lenient(self, response, kind, list_key) if list_key else _lenient(self, response, kind)
    sent = response.json()
    if isinstance(sent, dict):
        sent = next(value for value in sent.values() if isinstance(value, list))
    assert len(found) == len(sent), f"{response.url}: {len(sent) - len(found)} of {len(sent)} items were dropped"
    return found


def look(value: Any, where: str) -> None:
    """Every enum in an answer is one that the client has a word for."""
    if isinstance(value, Enum):
        assert value.value not in UNKNOWN, f"{where} is {value!r}"
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            look(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            look(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            look(item, f"{where}.{key}")


def call(what: str, act: Callable[[], Any], *, some: bool = False) -> Any:
    global checked
    found = act()
    look(found, what)
    assert not some or found, f"{what}: nothing came"
    checked += 1
    print(what, type(found).__name__, flush=True)
    return found


def refused(what: str, act: Callable[[], Any], status: int) -> None:
    """The call is answered with that status, not with what the client takes for a success."""
    global checked
    try:
        act()
    except Exception as error:
        told = str(error)
    else:
        told = "it was not refused"
    assert str(status) in told, f"{what}: {told}"
    checked += 1


def until(what: str, look_at: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 90
    while not (found := look_at()):
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.2)
    return found


def workspace(client: APIClient) -> None:
    info = call("info", client.info)
    assert info.workspace_name == client.workspace_id
    assert info.supported_shapes is not None
    call("version", lambda: client.version(info))
    assert client.new_deployment_api_enabled is False


def nodes(client: APIClient) -> str:
    groups = call("nodegroup.list_all", client.nodegroup.list_all, some=True)
    group = groups[0]
    name = group.metadata.id_
    call("nodegroup.get", lambda: client.nodegroup.get(name))
    found = call("nodegroup.list_nodes", lambda: client.nodegroup.list_nodes(name), some=True)
    assert all(node.spec.resource.cpu.total for node in found)
    call("nodegroup.list_idle_nodes", lambda: client.nodegroup.list_idle_nodes(name))
    call("nodegroup.list_machines", lambda: client.nodegroup.list_machines(name))
    call("nodegroup.list_reservations", lambda: client.nodegroup.list_reservations(name))
    call("nodegroup.batch_fetch_nodes", lambda: client.nodegroup.batch_fetch_nodes([name]), some=True)
    shapes = call("shapes.list_shapes", lambda: client.shapes.list_shapes(name, "job"), some=True)
    assert all(shape.metadata.id_ == shape.metadata.id_.lower() for shape in shapes)
    refused("nodegroup.get of another", lambda: client.nodegroup.get("no-such-group"), 404)
    return str(name)


def storage(client: APIClient, group: str, folder: str) -> None:
    volume = Volume(**{"from": "local", "name": "sdk-data", "size_in_gb": 1, "from_path": folder})
    call("nodegroup.add_volume", lambda: client.nodegroup.add_volume(group, volume))
    listed = client.nodegroup.get(group).spec.volumes or []
    assert "sdk-data" in [item.name for item in listed]
    rule = StoragePermission(path_prefix="/team", allowed_users=["ann"])
    call("set_storage_permission", lambda: client.nodegroup.set_storage_permission(group, "sdk-data", rule))
    own = StoragePermission(path_prefix="/people", subfolder_policy="by_user")
    call("set_storage_permission", lambda: client.nodegroup.set_storage_permission(group, "sdk-data", own))
    rules = call("permissions", lambda: client.nodegroup.list_storage_permissions(group, "sdk-data"), some=True)
    assert {(item.path_prefix, item.subfolder_policy) for item in rules} == {("/team", ""), ("/people", "by_user")}
    for prefix in ("/team", "/people"):
        call(
            "delete_permission",
            lambda prefix=prefix: client.nodegroup.delete_storage_permission(group, "sdk-data", prefix),
        )
    sources(client, group)
    call("nodegroup.delete_volume", lambda: client.nodegroup.delete_volume(group, "sdk-data"))


def sources(client: APIClient, group: str) -> None:
    """Buckets: made, read, changed, removed; a change of the bucket itself is refused."""
    node_group = client.nodegroup
    bucket = {"bucket": "my-data", "provider": {"type": "gcs", "gcs": {"projectId": "p-1"}}}
    spec = StorageDataSourceSpec(name="sdk-bucket", workspace=client.workspace_id, object=bucket)
    call("create_data_source", lambda: node_group.create_storage_data_source(group, spec))
    refused("a second of the name", lambda: node_group.create_storage_data_source(group, spec), 409)
    made = call("get_data_source", lambda: node_group.get_storage_data_source(group, "sdk-bucket"))
    assert made.spec.object_.bucket == "my-data"
    assert made.status.ready is False
    call("list_data_sources", lambda: node_group.list_storage_data_sources(group), some=True)
    changed = made.spec.model_copy(update={"description": "of the team"})
    updated = call("update_data_source", lambda: node_group.update_storage_data_source(group, "sdk-bucket", changed))
    assert updated.spec.description == "of the team"
    call("delete_data_source", lambda: node_group.delete_storage_data_source(group, "sdk-bucket"))
    refused("a bucket that is gone", lambda: node_group.get_storage_data_source(group, "sdk-bucket"), 404)


def secrets(client: APIClient) -> None:
    call("secret.create", lambda: client.secret.create([SecretItem(name="sdk-key", value="v")]))
    found = call("secret.list_all", client.secret.list_all, some=True)
    assert [item.value for item in found if item.name == "sdk-key"] == [None]
    call("secret.delete", lambda: client.secret.delete("sdk-key"))


def jobs(client: APIClient, group: str) -> None:
    spec = LeptonJobUserSpec(
        resource_shape="cpu.small",
        affinity=LeptonResourceAffinity(allowed_dedicated_node_groups=[group]),
        container=LeptonContainer(image="python:3.11", command=["/bin/bash", "-c", "echo from the sdk; sleep 1"]),
        completions=2,
        parallelism=2,
        envs=[EnvVar(name="A", value="b")],
    )
    asked = LeptonJob(metadata=Metadata(id="sdk", labels=LABELS), spec=spec)
    made = call("job.create", lambda: client.job.create(asked))
    job = made.metadata.id_
    assert made.metadata.name == "sdk"
    for query in ({"q": "sd"}, {"query": "team=red"}, {"query": "team"}, {"page": 1, "page_size": 1}):
        found = call(f"job.list_all {query}", lambda query=query: client.job.list_all(**query), some=True)
        assert job in [item.metadata.id_ for item in found]
    assert not call("job.list_all of others", lambda: client.job.list_all(query="team=blue"))
    assert not call("job.list_all past the end", lambda: client.job.list_all(page=99, page_size=10))
    until("the job ends", lambda: client.job.get(job).status.state == "Completed")
    call("job.get", lambda: client.job.get(job))
    assert job in [item.metadata.id_ for item in call("list", lambda: client.job.list_all(status=["compl"]))]
    copies = call("job.get_replicas", lambda: client.job.get_replicas(job), some=True)
    assert all(copy.metadata.id_.startswith(f"{job}-") for copy in copies)
    call("job.get_events", lambda: client.job.get_events(job), some=True)
    text = "".join(client.job.get_log(job, copies[0].metadata.id_))
    assert "from the sdk" in text, text
    ends = {"start": made.metadata.created_at * 10**6 - 10**9, "end": time.time_ns()}
    answer = call("log.get_log", lambda: client.log.get_log(name_or_job=job, limit=10, **ends))
    assert answer["data"]["result"], answer
    call("log.get_log_time_series", lambda: client.log.get_log_time_series(name_or_job=job, interval_ms=1000, **ends))
    call("job.update", lambda: client.job.update(job, spec={"spec": {"stopped": True}}))
    call("job.delete", lambda: client.job.delete(job))
    until("the job is gone", lambda: job not in [item.metadata.id_ for item in client.job.list_all()])
    refused("job.get of one that is gone", lambda: client.job.get(job, job_query_mode="alive_only"), 404)
    call("job.get archived", lambda: client.job.get(job, job_query_mode="alive_and_archive"))
    call("job.list_all archived", lambda: client.job.list_all(job_query_mode="archive_only"), some=True)


def deployment(name: str, command: str, *, pod: bool = False) -> LeptonDeployment:
    return LeptonDeployment(
        metadata=Metadata(id=name, name=name),
        spec=LeptonDeploymentUserSpec(
            container=LeptonContainer(image="python:3.11", command=["/bin/bash", "-c", command]),
            resource_requirement=ResourceRequirement(resource_shape="cpu.small", min_replicas=1, max_replicas=1),
            is_pod=pod or None,
        ),
    )


def deployments(client: APIClient) -> None:
    serve = "exec python3 -m http.server $PORT"
    call("deployment.create", lambda: client.deployment.create(deployment("sdk-web", serve)))
    until("it is ready", lambda: client.deployment.get("sdk-web").status.state == "Ready")
    found = call("deployment.get", lambda: client.deployment.get("sdk-web"))
    assert found.status.endpoint.external_endpoint.startswith("http")
    listed = call("deployment.list_all", client.deployment.list_all, some=True)
    assert "sdk-web" in [item.metadata.name for item in listed]
    copies = call("deployment.get_replicas", lambda: client.deployment.get_replicas("sdk-web"), some=True)
    assert call("deployment.get_readiness", lambda: client.deployment.get_readiness("sdk-web")).root
    call("deployment.get_termination", lambda: client.deployment.get_termination("sdk-web"))
    call("deployment.get_events", lambda: client.deployment.get_events("sdk-web"), some=True)
    change = LeptonDeployment(
        spec=LeptonDeploymentUserSpec(resource_requirement=ResourceRequirement(min_replicas=1, max_replicas=2))
    )
    call("deployment.update dry", lambda: client.deployment.update("sdk-web", change, dryrun=True))
    assert client.deployment.get("sdk-web").spec.resource_requirement.max_replicas == 1
    call("deployment.update", lambda: client.deployment.update("sdk-web", change))
    assert client.deployment.get("sdk-web").spec.resource_requirement.max_replicas == 2
    call("deployment.restart", lambda: client.deployment.restart("sdk-web"))
    call("deployment.stop", lambda: client.deployment.stop("sdk-web"))
    assert copies[0].metadata.id_
    ingress(client)
    call("deployment.delete", lambda: client.deployment.delete("sdk-web"))
    refused("deployment.get of nothing", lambda: client.deployment.get("no-such-deployment"), 404)


def ingress(client: APIClient) -> None:
    spec = LeptonIngress(metadata=Metadata(), spec=LeptonIngressUserSpec(domain_name="sdk.example.test"))
    call("ingress.create", lambda: client.ingress.create(spec))
    found = call("ingress.list_all", client.ingress.list_all, some=True)
    name = next(item.metadata.name for item in found if item.spec.domain_name == "sdk.example.test")
    end = LeptonIngressEndpoint(deployment="sdk-web", weight=10)
    call("ingress.create_endpoint", lambda: client.ingress.create_endpoint(name, end))
    whole = call("ingress.get", lambda: client.ingress.get(name))
    assert [item.deployment for item in whole.spec.endpoints] == ["sdk-web"]
    call("ingress.update", lambda: client.ingress.update(name, whole))
    call("ingress.delete_endpoint", lambda: client.ingress.delete_endpoint(name, "sdk-web"))
    call("ingress.delete", lambda: client.ingress.delete(name))


def pods(client: APIClient) -> None:
    call("pod.create", lambda: client.pod.create(deployment("sdk-pod", "sleep 600", pod=True)))
    until("the pod is ready", lambda: client.pod.get("sdk-pod").status.state == "Ready")
    assert [item.metadata.name for item in call("pod.list_all", client.pod.list_all, some=True)] == ["sdk-pod"]
    copies = call("pod's replicas", lambda: client.deployment.get_replicas("sdk-pod"), some=True)
    assert len(copies) == 1
    assert copies[0].status is not None
    call("pod.stop", lambda: client.pod.stop("sdk-pod"))
    call("pod.delete", lambda: client.pod.delete("sdk-pod"))


def others(client: APIClient) -> None:
    public = call("template.list_public", client.template.list_public, some=True)
    call("template.list_private", client.template.list_private)
    for item in public:
        call("template.get_public", lambda item=item: client.template.get_public(item.metadata.id_))
    for item in [item for item in public if item.spec.workload_type == "job"]:
        call("template.render", lambda item=item: client.template.render(item.metadata.id_, {"run": "true"}))
    call("finetune.list_all", client.finetune.list_all)
    call("finetune.list_trainers", client.finetune.list_trainers)
    call("finetune.list_supported_models", client.finetune.list_supported_models)
    call("raycluster.list_all", client.raycluster.list_all)
    for what, get, gone in (
        ("finetune", client.finetune.get, client.finetune.delete),
        ("raycluster", client.raycluster.get, client.raycluster.delete),
    ):
        refused(f"{what}.get", lambda get=get: get("no-such"), 404)
        refused(f"{what}.delete", lambda gone=gone: gone("no-such"), 404)
    tuning = LeptonFineTuneJob(metadata=Metadata(id="tune"), spec=LeptonFineTuneJobSpec())
    refused("finetune.create", lambda: client.finetune.create(tuning), 501)


if __name__ == "__main__":
    APIResourse.ensure_list = strict
    connected = APIClient()
    workspace(connected)
    of_group = nodes(connected)
    PARTS: dict[str, Callable[[], None]] = {
        "secrets": lambda: secrets(connected),
        "jobs": lambda: jobs(connected, of_group),
        "deployments": lambda: deployments(connected),
        "pods": lambda: pods(connected),
        "storage": lambda: storage(connected, of_group, sys.argv[1]),
        "others": lambda: others(connected),
    }
    for part in sys.argv[2:]:
        PARTS[part]()
    print("checked", checked)
