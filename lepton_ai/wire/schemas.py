"""JSON schemas of what the public client sends: the fields that are read here, for the description of the API.

Owns no checking: the reading itself is in the file of each family. Fields that a family keeps without acting on them
(see kept.py) pass through `additionalProperties`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lepton_ai.wire.queue import CLASSES
from lepton_ai.wire.record import Json


def thing(properties: Mapping[str, Json], *, needs: tuple[str, ...] = (), more: bool = True) -> Json:
    """An object; `more`: other fields are accepted too."""
    made: Json = {"type": "object", "properties": dict(properties), "additionalProperties": more}
    return made | {"required": list(needs)} if needs else made


def many(item: Json) -> Json:
    return {"type": "array", "items": item}


def text(limit: int = 255) -> Json:
    return {"type": "string", "maxLength": limit}


def one_of(*words: str) -> Json:
    return {"type": "string", "enum": list(words)}


def whole(low: int = 0, high: int = 2**31) -> Json:
    return {"type": "integer", "minimum": low, "maximum": high}


TRUTH: Json = {"type": "boolean"}
NUMBER: Json = {"type": "number"}
OBJECT: Json = {"type": "object"}
NAME: Json = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$"}
VISIBILITY = one_of("public", "private")
METADATA = thing(
    {"id": NAME, "name": NAME, "labels": {"type": "object", "additionalProperties": text(63)}, "visibility": VISIBILITY}
)
PORT = thing(
    {
        "container_port": whole(1, 65535),
        "protocol": one_of("TCP", "UDP", "SCTP"),
        "name": text(63),
        "host_port": whole(1, 65535),
        "expose_strategies": many(one_of("HostPortMapping", "IngressProxy")),
    },
    needs=("container_port",),
)
CONTAINER = thing({"image": text(512), "command": many(text(4096)), "ports": many(PORT)})
ENV = thing(
    {"name": text(), "value": text(65536), "value_from": thing({"secret_name_ref": text(128)})}, needs=("name",)
)
MOUNT = thing(
    {
        "from": text(128),
        "path": text(1024),
        "mount_path": text(1024),
        "mount_options": thing({"read_only": TRUTH}),
    },
    needs=("mount_path",),
)
AFFINITY = thing({"allowed_dedicated_node_groups": many(text()), "allowed_nodes_in_node_group": many(text())})
QUEUE = thing({"priority_class": one_of(*CLASSES), "can_be_preempted": TRUTH, "can_preempt": TRUTH})
_BOTH: Mapping[str, Json] = {
    "container": CONTAINER,
    "envs": many(ENV),
    "mounts": many(MOUNT),
    "image_pull_secrets": many(text(128)),
    "queue_config": QUEUE,
    "reservation_config": thing({"reservation_id": text(63), "allow_burst_to_other_reservations": TRUTH}),
    "user_security_context": thing({"privileged": TRUTH}),
}
DEPLOYMENT_SPEC = thing(
    {
        **_BOTH,
        "is_pod": TRUTH,
        "resource_requirement": thing(
            {
                "resource_shape": text(64),
                "cpu": NUMBER,
                "memory": whole(),
                "min_replicas": whole(0, 1000),
                "max_replicas": whole(0, 1000),
                "shared_memory_size": whole(),
                "affinity": AFFINITY,
            }
        ),
        "auto_scaler": thing(
            {
                "scale_down": thing({"no_traffic_timeout": whole()}),
                "target_gpu_utilization_percentage": whole(0, 100),
                "target_throughput": thing({"qpm": NUMBER}),
            }
        ),
        "api_tokens": many(thing({"value": text(1024), "value_from": thing({"token_name_ref": text(128)})})),
        "allow_unauthenticated_access": TRUTH,
        "auth_config": thing({"ip_allowlist": many(text(64))}),
        "scheduling_policy": thing({"replica_spread": one_of("Required", "Preferred")}),
        "ingress_timeout_seconds": whole(300, 3600),
        "load_balance_config": thing({"least_request": thing({"choice_count": whole()}), "maglev": OBJECT}),
        "health": thing({"liveness": thing({"initial_delay_seconds": whole()})}),
    }
)
DEPLOYMENT = thing({"metadata": METADATA, "spec": DEPLOYMENT_SPEC}, needs=("metadata", "spec"))
DEPLOYMENT_PATCH = thing({"metadata": OBJECT, "spec": DEPLOYMENT_SPEC}, needs=("spec",))
JOB_SPEC = thing(
    {
        **_BOTH,
        "resource_shape": text(64),
        "affinity": AFFINITY,
        "completions": whole(1, 1000),
        "parallelism": whole(1, 1000),
        "shared_memory_size": whole(),
        "max_failure_retry": whole(0, 1000),
        "max_job_failure_retry": whole(0, 1000),
        "ttl_seconds_after_finished": whole(),
        "intra_job_communication": TRUTH,
        "stopped": TRUTH,
        "time_schedule": thing({"start_at": whole(0, 253_402_300_799)}),
    }
)
JOB = thing({"metadata": METADATA, "spec": JOB_SPEC}, needs=("metadata", "spec"))
JOB_PATCH = thing({"spec": thing({"stopped": TRUTH})}, needs=("spec",))
SECRETS = many(
    thing(
        {"name": text(128), "value": text(65536), "visibility": VISIBILITY, "tags": many(text(63))},
        needs=("name", "value"),
    )
)
VOLUME = thing(
    {
        "name": text(63),
        "from": one_of("local", "remote", "nfs"),
        "size_in_gb": whole(),
        "from_path": text(1024),
        "default_mount_path": text(1024),
        "creation_mode": one_of("mkdir", "mount", "none"),
        "workspaces": many(text(63)),
    },
    needs=("name", "from_path"),
)
RULE = thing(
    {
        "path_prefix": text(1024),
        "allowed_users": many(text()),
        "subfolder_policy": one_of("", "by_user"),
        "nodegroup_id": text(),
    },
    needs=("path_prefix",),
)
DATASOURCE = thing(
    {
        "name": text(63),
        "workspace": text(63),
        "description": text(1024),
        "object": thing(
            {
                "bucket": text(223),
                "provider": thing({"type": one_of("aws", "s3", "gcs")}, needs=("type",)),
                "credentials": thing({"type": one_of("wif", "leptonSecret")}),
            },
            needs=("bucket", "provider"),
        ),
        "permissions": thing({"allowed_users": many(text())}),
    },
    needs=("name", "object"),
)
DATASOURCE_PATCH = thing({"description": text(1024), "permissions": OBJECT, "object": OBJECT})
RESERVATION = thing(
    {
        "metadata": METADATA,
        "workspace": text(63),
        "spec": thing(
            {
                "users": many(text()),
                "desired_nodes": whole(1, 10_000),
                "display_name": text(128),
                "time_rule": thing({"start_timestamp": whole(), "end_timestamp": whole()}),
            }
        ),
    },
    needs=("metadata", "spec"),
)
TEMPLATE = thing(
    {"spec": thing({"content": OBJECT, "json_schema": OBJECT, "workload_type": one_of("job", "pod", "deployment")})},
    needs=("spec",),
)
INGRESS_SPEC = thing(
    {"domain_name": text(253), "endpoints": many(thing({"deployment": text(63), "weight": whole(0, 1000)}))}
)
INGRESS = thing({"metadata": OBJECT, "spec": INGRESS_SPEC}, needs=("spec",))
INGRESS_TARGET = thing({"deployment": text(63), "weight": whole(0, 1000)}, needs=("deployment",))
RENDER = thing({"run": text(65536)})
PLAIN = {"metadata": OBJECT, "spec": OBJECT}
SHOWN = thing(PLAIN, needs=("metadata", "spec"))
"""The common form of what is answered: a head, what is wanted, mostly also what is so (`status`)."""
