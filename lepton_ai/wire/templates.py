"""Templates as the public client knows them: a workload's JSON with `{{NAME}}` where a value goes, and its rendering.

Owns the templates that ship with the cell, as data, and the filling in. What is filled in is a text within a JSON
text: a value can never add a field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.wire.record import Json, table

KINDS = ("job", "pod", "deployment")
TEXT_MAX = 64 * 1024
_MARK = re.compile(r"\{\{\s*([a-z][a-z0-9_]{0,62})\s*\}\}")
_SMALL = "cpu.small"


def _job(command: str, **more: Any) -> Json:
    container = {"command": ["/bin/bash", "-c", command]}
    return {"metadata": {}, "spec": {"resource_shape": _SMALL, "container": container, **more}}


def _schema(required: tuple[str, ...] = (), **fields: str) -> Json:
    properties = {name: {"type": "string", "description": text} for name, text in fields.items()}
    return {"type": "object", "properties": properties, "required": list(required)}


# torchrun itself is the workload's: from its image, or from the environment of the node.
_TORCHRUN = (
    'torchrun --nnodes="$WORLD_SIZE" --node-rank="$NODE_RANK" --nproc-per-node={{processes}}'
    ' --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" {{run}}'
)
PUBLIC: dict[str, Json] = {
    "python": {
        "name": "Python job",
        "workload_type": "job",
        "content": _job("{{run}}"),
        "json_schema": _schema(("run",), run="command to run, for example: python -c 'print(1)'"),
    },
    "torchrun": {
        "name": "Distributed PyTorch (torchrun)",
        "workload_type": "job",
        "content": _job(_TORCHRUN, intra_job_communication=True, completions=2, parallelism=2),
        "json_schema": _schema(("run",), run="script and its arguments", processes="processes a worker (1)"),
        "defaults": {"processes": "1"},
    },
    "http-server": {
        "name": "HTTP file server",
        "workload_type": "deployment",
        "content": {
            "metadata": {},
            "spec": {
                "container": {"command": ["/bin/bash", "-c", 'exec python3 -m http.server "$PORT" -d {{folder}}']},
                "resource_requirement": {"resource_shape": _SMALL, "min_replicas": 1, "max_replicas": 1},
            },
        },
        "json_schema": _schema(folder="folder to serve (.)"),
        "defaults": {"folder": "."},
    },
    "sleep": {
        "name": "Pod that waits",
        "workload_type": "pod",
        "content": {
            "metadata": {},
            "spec": {
                "is_pod": True,
                "container": {"command": ["/bin/bash", "-c", "{{run}}"]},
                "resource_requirement": {"resource_shape": _SMALL},
            },
        },
        "json_schema": _schema(run="command that keeps the pod up (sleep infinity)"),
        "defaults": {"run": "sleep infinity"},
    },
}
"""What every workspace can start from. Each runs on this cell as it is, without an image."""


def shown(identity: str, item: Mapping[str, Any], created_ms: int = 0, owner: str = "") -> Json:
    """A template, public or private."""
    head: Json = {"id": identity, "name": str(item.get("name") or identity), "created_at": created_ms}
    if owner:
        head |= {"owner": owner, "created_by": owner}
    spec = {key: item[key] for key in ("content", "json_schema", "workload_type")}
    return {"metadata": head, "spec": spec, "status": {"state": "Ready"}}


def given(body: object) -> Json:
    """The fields of a private template, checked. Raises Invalid."""
    spec = table(table(body, "the body").get("spec"), "spec")
    kind, content = spec.get("workload_type"), spec.get("content")
    if kind not in KINDS:
        raise Invalid(f"spec.workload_type is {str(kind)[:40]!r}", hint=f"use one of: {', '.join(KINDS)}")
    if not isinstance(content, dict) or not isinstance(content.get("spec"), dict):
        hint = 'for example {"spec": {"container": {"command": ["/bin/bash", "-c", "{{run}}"]}}}'
        raise Invalid("spec.content is not a workload with a spec", hint=hint)
    schema = table(spec.get("json_schema"), "spec.json_schema")
    properties = table(schema.get("properties"), "spec.json_schema.properties")
    unknown = sorted(marks(content) - set(properties) - {"run"})
    if unknown:
        hint = "name it under spec.json_schema.properties"
        raise Invalid(f"spec.content asks for {unknown[0]!r}, which the schema does not name", hint=hint)
    name = table(table(body, "the body").get("metadata"), "metadata").get("name")
    return {"name": str(name or "")[:128], "workload_type": kind, "content": content, "json_schema": schema}


def marks(value: object) -> set[str]:
    """The names that the texts in `value` ask for."""
    if isinstance(value, dict):
        return set().union(*(marks(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(marks(item) for item in value))
    return set(_MARK.findall(value)) if isinstance(value, str) else set()


def rendered(identity: str, item: Mapping[str, Any], body: object) -> Json:
    """The workload of a template with the values of `body` ({} or {"run": COMMAND, …}). Raises Invalid."""
    values = {**item.get("defaults", {}), **table(body, "the body")}
    for name, value in values.items():
        if not isinstance(value, str | int | float) or isinstance(value, bool) or len(str(value)) > TEXT_MAX:
            raise Invalid(
                f"{name[:80]!r} of a template must be a short text", hint='for example {"run": "python a.py"}'
            )
    wanted = marks(item["content"])
    missing = sorted(wanted - set(values))
    if missing:
        raise Invalid(f"template {identity} needs {missing[0]!r}", hint=f'send {{"{missing[0]}": "…"}}')
    unknown = sorted(set(values) - wanted)
    if unknown:
        hint = f"it takes {', '.join(sorted(wanted)) or 'nothing'}"
        raise Invalid(f"template {identity} knows no {unknown[0][:80]!r}", hint=hint)
    filled = _filled(item["content"], {name: str(value) for name, value in values.items()})
    filled["metadata"] = {**filled.get("metadata", {}), "id": identity, "name": identity}
    return dict(filled)


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    return _MARK.sub(lambda found: values[found[1]], value) if isinstance(value, str) else value
