"""What the description of the API says of each route beyond what `Router.add` knows: summary, query, body, answer.

A table, kept beside no route so that it is read as one; tests hold it against the routes, and fuzzed requests hold
the answers against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from lepton_ai.api import form, nodes, tenants
from lepton_ai.wire import schemas
from lepton_ai.wire.schemas import OBJECT, SHOWN, many, one_of, text, thing, whole

Json = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """`answer`: schema of the JSON of a success. `media`: what else the success is. `never`: it is always refused."""

    summary: str
    answer: Json = field(default_factory=dict)
    body: Json | type[BaseModel] | None = None
    query: Mapping[str, Json] = field(default_factory=dict)
    media: str = "application/json"
    takes: str = "application/json"
    unsupported: bool = False
    never: bool = False


_MODE: Mapping[str, Json] = {"job_query_mode": one_of("alive_only", "archive_only", "alive_and_archive")}
_FLAG: Json = {"type": "string", "enum": ["true", "false"]}
_NDJSON = "application/x-ndjson"
_BYTES = "application/octet-stream"
_TEXT = "text/plain"
_MARK = thing({}, more=True)
_NS = whole(0, 2**63 - 1)
_RANGE: Mapping[str, Json] = {
    "start": _NS, "end": _NS, "direction": one_of("forward", "backward"), "limit": whole(1, 10_000), "q": text(),
    "job": text(), "deployment": text(), "endpoint": text(), "replica": text(), "job_history_name": text(),
    "timestamps": text(), **_MODE,
}  # fmt: skip
_LOKI = thing({}, needs=("status", "data"))
_GROUP = "/dedicated-node-groups/{id}"
_DEPLOYMENT, _JOB = "/deployments/{name}", "/jobs/{name}"

SAID: dict[str, Said] = {
    # -- the cell and the workspace
    "GET /api/health": Said("Whether the control plane leads; needs no token", thing({}, needs=("name", "leading"))),
    "GET /api/openapi.json": Said("This description; needs no token", thing({}, needs=("openapi", "paths"))),
    "GET ": Said("The workspace's name", thing({}, needs=("display_name",))),
    "GET /workspace": Said("Counts, quota, shapes and features of the workspace", OBJECT),
    "GET /x/cell": Said("The cell, and who asks", thing({}, needs=("name", "uid", "workspace", "role"))),
    "GET /x/events": Said(
        "What happened lately", many(OBJECT), query={"kind": text(64), "name": text(255), "limit": whole(1, 1000)}
    ),
    # -- deployments and pods
    "POST /x/plan": Said("What a deployment would change", OBJECT, form.DeployForm),
    "GET /x/deployments": Said("Every deployment", many(OBJECT)),
    f"GET /x{_DEPLOYMENT}": Said("One deployment", OBJECT),
    f"PUT /x{_DEPLOYMENT}": Said(
        "Makes or changes it; the same content is no new release", OBJECT, form.DeployForm, {"generation": whole()}
    ),
    f"DELETE /x{_DEPLOYMENT}": Said("Drains and removes it", OBJECT),
    f"POST /x{_DEPLOYMENT}/rollback": Said("Serves an earlier release again", OBJECT, form.RollbackForm),
    f"POST /x{_DEPLOYMENT}/restart": Said("Replaces every replica", OBJECT),
    f"POST /x{_DEPLOYMENT}/stop": Said("Ends every replica; it is kept", OBJECT),
    f"GET /x{_DEPLOYMENT}/releases": Said("Its releases", many(OBJECT)),
    f"GET /x{_DEPLOYMENT}/replicas": Said("Its replicas", many(OBJECT)),
    "GET /deployments": Said("Every endpoint and pod", many(SHOWN)),
    "POST /deployments": Said("Makes an endpoint or pod", SHOWN, schemas.DEPLOYMENT, unsupported=True),
    f"GET {_DEPLOYMENT}": Said("One endpoint or pod", SHOWN),
    f"PATCH {_DEPLOYMENT}": Said(
        "Changes it by a merge patch (RFC 7386)", SHOWN, schemas.DEPLOYMENT_PATCH, {"dryrun": _FLAG}, unsupported=True
    ),
    f"DELETE {_DEPLOYMENT}": Said("Drains and removes it", OBJECT),
    f"PUT {_DEPLOYMENT}/restart": Said("Replaces every replica", SHOWN),
    f"GET {_DEPLOYMENT}/replicas": Said("Its replicas", many(OBJECT)),
    f"GET {_DEPLOYMENT}/readiness": Said("Why each replica is ready or not", OBJECT),
    f"GET {_DEPLOYMENT}/termination": Said("How its replicas ended", OBJECT),
    f"GET {_DEPLOYMENT}/events": Said("What happened to it", many(OBJECT)),
    # -- jobs
    "GET /x/jobs": Said("Jobs that have not ended", many(OBJECT), query={"all": _FLAG}),
    "POST /x/jobs": Said("Starts a job", OBJECT, form.JobForm),
    f"GET /x{_JOB}": Said("One job", OBJECT),
    f"PATCH /x{_JOB}": Said("Stops it", OBJECT, form.StopForm),
    f"DELETE /x{_JOB}": Said("Ends and removes it", OBJECT),
    f"GET /x{_JOB}/replicas": Said("Its workers", many(OBJECT)),
    "GET /jobs": Said(
        "Jobs, by page",
        thing({"jobs": many(SHOWN), "total": whole()}, needs=("jobs",)),
        query={
            **_MODE, "q": text(), "query": text(4096), "status": many(text()), "node_groups": many(text()),
            "created_by": many(text()), "page": whole(1, 10**9), "page_size": whole(1, 1000),
        },
    ),
    "POST /jobs": Said("Starts a job", SHOWN, schemas.JOB, unsupported=True),
    f"GET {_JOB}": Said("One job", SHOWN, query=_MODE),
    f"PATCH {_JOB}": Said("Stops or starts it", SHOWN, schemas.JOB_PATCH, _MODE),
    f"DELETE {_JOB}": Said("Ends and removes it", OBJECT, query=_MODE),
    f"GET {_JOB}/replicas": Said("Its workers", many(OBJECT), query=_MODE),
    f"GET {_JOB}/events": Said("What happened to it", many(OBJECT), query=_MODE),
    # -- logs
    "GET /x/logs/{name}": Said(
        "Lines of a deployment, job or replica",
        query={"lines": whole(1, 10_000), "follow": _FLAG, "grep": text()},
        media=_NDJSON,
    ),
    "GET /logs": Said("Lines of a time range, in Loki's form", _LOKI, query=_RANGE),
    "GET /logs/timeseries": Said(
        "How many lines in each interval", _LOKI, query={**_RANGE, "interval_ms": whole(1, 86_400_000)}
    ),
    "GET /jobs/{owner}/replicas/{name}/log": Said("What a worker prints, as it comes", media=_TEXT),
    "GET /deployments/{owner}/replicas/{name}/log": Said("What a replica prints, as it comes", media=_TEXT),
    # -- nodes
    "GET /x/nodes": Said("The nodes of the cell", many(OBJECT)),
    "PATCH /x/nodes/{name}": Said("Labels and taints of a node", OBJECT, nodes.MarkForm),
    "POST /x/nodes/{name}/drain": Said("Moves work away, places nothing new", OBJECT),
    "POST /x/nodes/{name}/undrain": Said("Takes work again", OBJECT),
    "GET /x/top": Said("The workspace's replicas, by what they use", many(OBJECT)),
    "GET /x/metrics": Said("Nodes, replicas and endpoints, for Prometheus", media=_TEXT),
    "GET /dedicated-node-groups": Said("The cell as a node group", many(SHOWN)),
    f"GET {_GROUP}": Said("The node group", SHOWN),
    f"GET {_GROUP}/nodes": Said("Its nodes", many(SHOWN), query={"idle": _FLAG}),
    f"GET {_GROUP}/machines": Said("The machines that they are on", many(_MARK)),
    f"GET {_GROUP}/reservations": Said("Reservations for the workspace", many(SHOWN)),
    "GET /shapes": Said("Sizes that a node could hold, priced", many(SHOWN), query={
        "node_groups": many(text()), "purpose": text()}),
    "GET /x/reservations": Said("Reservations for the workspace", many(SHOWN)),
    "POST /x/reservations": Said("Reserves nodes", SHOWN, schemas.RESERVATION),
    "DELETE /x/reservations/{name}": Said("Removes it", OBJECT),
    # -- storage
    f"POST {_GROUP}/volumes": Said("Adds a volume", SHOWN, schemas.VOLUME),
    f"DELETE {_GROUP}/volumes/{{name}}": Said("Forgets a volume; the folder stays", SHOWN),
    f"GET {_GROUP}/datasources": Said("Buckets", thing({"items": many(SHOWN)}, needs=("items",))),
    f"POST {_GROUP}/datasources": Said("Adds a bucket", SHOWN, schemas.DATASOURCE),
    f"GET {_GROUP}/datasources/{{name}}": Said("One bucket", SHOWN),
    f"PATCH {_GROUP}/datasources/{{name}}": Said("Changes what may change of it", SHOWN, schemas.DATASOURCE_PATCH),
    f"DELETE {_GROUP}/datasources/{{name}}": Said("Forgets it", OBJECT),
    "GET /storage-permission/{volume}": Said(
        "Path rules of a volume", many(thing({}, needs=("path_prefix",))), query={"nodegroup_id": text()}
    ),
    "POST /storage-permission/{volume}": Said("Sets a path rule", OBJECT, schemas.RULE, {"nodegroup_id": text()}),
    "DELETE /storage-permission/{volume}/{prefix}": Said("Removes one", OBJECT, query={"nodegroup_id": text()}),
    # -- data and models
    "POST /x/query": Said("One reading statement over the lake", OBJECT, form.QueryForm),
    "GET /x/tables": Said("The tables", many(OBJECT)),
    "GET /x/tables/{name}": Said("One table", OBJECT),
    "GET /x/tables/{name}/history": Said("Its versions", many(OBJECT)),
    "GET /x/models": Said("Every registered model version", many(OBJECT)),
    "GET /x/models/{name}": Said("A version (NAME@NUMBER), or the newest", OBJECT),
    "POST /x/models/{name}": Said("Registers a saved model", OBJECT, {}, {"lineage": text(4096)}, takes=_BYTES),
    "GET /x/blobs/{digest}": Said("Bytes by digest", media=_BYTES),
    "PUT /x/blobs/{digest}": Said("Keeps bytes", OBJECT, {}, takes=_BYTES),
    # -- who may
    "GET /x/tokens": Said("API tokens, masked", many(OBJECT)),
    "POST /x/tokens": Said("Makes one; its text is shown this once", OBJECT, form.TokenForm),
    "DELETE /x/tokens/{name}": Said("Revokes one", OBJECT),
    "GET /tokens": Said("The caller's own token, masked", many(thing({}, needs=("masked_value", "expires_at")))),
    "GET /x/secrets": Said("Secrets, never their values", many(OBJECT)),
    "GET /x/secrets/{name}": Said("One secret, never its value", OBJECT),
    "PUT /x/secrets/{name}": Said("Keeps a value, sealed", OBJECT, form.SecretForm),
    "DELETE /x/secrets/{name}": Said("Removes one", OBJECT),
    "GET /usersecrets": Said("Secrets, never their values", many(thing({}, needs=("name",)))),
    "POST /usersecrets": Said("Keeps values, sealed", OBJECT, schemas.SECRETS),
    "DELETE /usersecrets/{name}": Said("Removes one", OBJECT),
    "GET /x/registries": Said("Logins at image registries", many(OBJECT)),
    "PUT /x/registries/{name}": Said("Keeps one, sealed", OBJECT, tenants.RegistryForm),
    "DELETE /x/registries/{name}": Said("Removes one", OBJECT),
    "GET /x/workspaces": Said("The workspaces of the cell", many(OBJECT)),
    "POST /x/workspaces": Said("Adds one; its first token is shown this once", OBJECT, tenants.WorkspaceForm),
    "PATCH /x/workspaces/{name}": Said("What it is granted", OBJECT, tenants.ShareForm),
    "DELETE /x/workspaces/{name}": Said("Removes one without work", OBJECT, query={"purge": _FLAG}),
    # -- templates
    "GET /templates/public": Said("Templates that ship with the cell", many(SHOWN)),
    "GET /templates/private": Said("Templates of the workspace", many(SHOWN)),
    "GET /templates/public/{id}": Said("One of them", SHOWN),
    "GET /templates/private/{id}": Said("One of them", SHOWN),
    "POST /templates/public/{id}/render": Said("The workload that it stands for", SHOWN, schemas.RENDER),
    "POST /templates/private/{id}/render": Said("The workload that it stands for", SHOWN, schemas.RENDER),
    "PUT /x/templates/{id}": Said("Makes or replaces one", SHOWN, schemas.TEMPLATE),
    "DELETE /x/templates/{id}": Said("Removes one", OBJECT),
    # -- host names
    "GET /ingress": Said("Host names that the gateway routes", many(SHOWN)),
    "POST /ingress": Said("Takes a host name", SHOWN, schemas.INGRESS, unsupported=True),
    "GET /ingress/{name}": Said("One of them", SHOWN),
    "PATCH /ingress/{name}": Said("Changes where it goes", SHOWN, schemas.INGRESS, unsupported=True),
    "DELETE /ingress/{name}": Said("Gives it up", OBJECT),
    "POST /ingress/{name}/endpoint/deployment": Said("Adds a deployment to it", SHOWN, schemas.INGRESS_TARGET),
    "DELETE /ingress/{name}/endpoint/deployment/{deployment}": Said("Takes one away", SHOWN),
    # -- what this release does not have
    "GET /finetune/jobs": Said("None", thing({"finetune_jobs": many(OBJECT)}, needs=("finetune_jobs",))),
    "POST /finetune/jobs": Said("Not in this release", OBJECT, schemas.JOB, unsupported=True, never=True),
    "GET /finetune/jobs/{name}": Said("Not in this release", never=True),
    "PATCH /finetune/jobs/{name}": Said("Not in this release", body=OBJECT, never=True),
    "DELETE /finetune/jobs/{name}": Said("Not in this release", never=True),
    "GET /finetune/trainers": Said("None", many(OBJECT), query={"default_only": _FLAG}),
    "GET /finetune/supported-models": Said("None", many(OBJECT)),
    "GET /rayclusters": Said("None", many(OBJECT)),
    "POST /rayclusters": Said("Not in this release", OBJECT, SHOWN, unsupported=True, never=True),
    "GET /rayclusters/{name}": Said("Not in this release", never=True),
    "PATCH /rayclusters/{name}": Said("Not in this release", body=OBJECT, never=True),
    "DELETE /rayclusters/{name}": Said("Not in this release", never=True),
}  # fmt: skip
