"""Storage as the public client knows it: volumes of a node group, path rules, and data sources (buckets).

Owns the JSON of each. A data source names secrets; a body that brings a key itself is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from lepton_ai.errors import Invalid
from lepton_ai.spec.container import LOCAL
from lepton_ai.wire.merge import merge
from lepton_ai.wire.record import Json, Record, table, whole

SOURCES: dict[str, Literal["local", "remote", "nfs"]] = {"local": "local", "remote": "remote", "nfs": "nfs"}
CREATION = ("mkdir", "mount", "none")
PROVIDERS = ("aws", "s3", "gcs")
TEXTS = 256
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]\Z")
_SOURCE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


# -- volumes


def volume(
    name: str, source: str, path: str | None, size_gib: int, target: str, creation: str, workspaces: Iterable[str]
) -> Json:
    shown: Json = {"name": name, "from": source, "size_in_gb": size_gib, "creation_mode": creation or "none"}
    if path is not None:
        shown["from_path"] = path
    if target:
        shown["default_mount_path"] = target
    shown["managed_by_lepton"] = name == LOCAL
    if given := list(workspaces):
        shown["workspaces"] = given
    return shown


def volume_given(body: object) -> Json:
    """The fields of a new volume, in the words of tenancy.volumes. Raises Invalid."""
    item = table(body, "the body")
    name, path = _text(item, "name"), _text(item, "from_path")
    source, creation = item.get("from", "local"), item.get("creation_mode") or "mkdir"
    if not isinstance(source, str) or source not in SOURCES:
        raise Invalid(f"from is {str(source)[:40]!r}", hint=f"use one of: {', '.join(SOURCES)}")
    if not isinstance(creation, str) or creation not in CREATION:
        raise Invalid(f"creation_mode is {str(creation)[:40]!r}", hint=f"use one of: {', '.join(CREATION)}")
    size_gib = whole(item.get("size_in_gb"), "size_in_gb", 0)
    if not 0 <= size_gib <= 2**31:
        raise Invalid(f"size_in_gb is {size_gib}", hint="use 0 (not known) or more")
    target = _text(item, "default_mount_path")
    if target and (not target.startswith("/") or ".." in target.split("/")):
        raise Invalid(f"default_mount_path is {target[:80]!r}, not an absolute path", hint="for example /mnt/data")
    return {
        "name": name,
        "source": SOURCES[source],
        "path": path,
        "size_gib": size_gib,
        "default_target": target,
        "creation": creation,
        "workspaces": texts(item.get("workspaces"), "workspaces"),
    }


# -- path rules


def rule(prefix: str, users: Iterable[str], policy: str, group_id: str) -> Json:
    return {
        "path_prefix": prefix,
        "allowed_users": list(users),
        "subfolder_policy": policy,
        "nodegroup_id": group_id,
    }


def rule_given(body: object) -> tuple[str, list[str], Literal["", "by_user"]]:
    """(prefix, users, policy). Raises Invalid."""
    item = table(body, "the body")
    asked = item.get("subfolder_policy") or ""
    if asked not in ("", "by_user"):
        raise Invalid(f"subfolder_policy is {str(asked)[:40]!r}", hint='use "" or "by_user"')
    policy: Literal["", "by_user"] = "by_user" if asked else ""
    return _text(item, "path_prefix"), texts(item.get("allowed_users"), "allowed_users"), policy


# -- data sources


def datasource(record: Record) -> Json:
    """A data source; it is kept and shown, and no workload of this release attaches it."""
    return {
        "metadata": {
            "id": record.name,
            "name": record.name,
            "created_at": record.created_ms,
            "last_modified_at": record.updated_ms,
            "created_by": record.spec.get("created_by", ""),
            "owner": record.spec.get("created_by", ""),
        },
        "spec": {**record.spec["spec"], "workspace": record.workspace},
        "status": {
            "state": "Recorded",
            "ready": False,
            "summary": "kept for workloads of a later release: this one attaches no buckets",
        },
    }


def datasource_given(body: object, workspace: str) -> Json:
    """The spec of a data source, checked. Raises Invalid."""
    given = table(body, "the body")
    spec = table(given.get("spec"), "spec") if "spec" in given else given
    name = spec.get("name")
    if not isinstance(name, str) or not _SOURCE_NAME.match(name):
        raise Invalid(f"name is {str(name)[:80]!r}, not a data source's name", hint="for example model-data")
    if spec.get("workspace") not in (None, "", workspace):
        raise Invalid("spec.workspace names another workspace", hint=f"its workspace is {workspace}")
    checked: Json = {
        "name": name,
        "description": _text(spec, "description", 1024),
        "object": _bucket(table(spec.get("object"), "object")),
    }
    allowed = texts(table(spec.get("permissions"), "permissions").get("allowed_users"), "permissions.allowed_users")
    if allowed:
        checked["permissions"] = {"allowed_users": allowed}
    return checked


def datasource_changed(now: Json, body: object, workspace: str) -> Json:
    """`now` with a PATCH: the public client sends the whole spec back, others a part. Raises Invalid."""
    given = table(body, "the body")
    patch = table(given.get("spec"), "spec") if "spec" in given else given
    if not patch:
        raise Invalid("no valid field to update", hint="a patch changes description, permissions or credentials")
    whole_spec = "object" in patch and "name" in patch
    changed = datasource_given(dict(patch) if whole_spec else merge(now, patch), workspace)
    before, after = now["object"], changed["object"]
    if changed["name"] != now["name"] or any(
        before.get(key) != after.get(key) for key in ("bucket", "provider", "aistore")
    ):
        raise Invalid("name, provider, bucket and aistore of a data source do not change", hint="make a new one")
    return changed


def _bucket(item: Json) -> Json:
    bucket = item.get("bucket")
    if not isinstance(bucket, str) or not _BUCKET.match(bucket):
        raise Invalid(f"object.bucket is {str(bucket)[:80]!r}, not a bucket", hint="3 to 223 of a-z, 0-9, '.', '-'")
    provider = table(item.get("provider"), "object.provider")
    kind = provider.get("type")
    if kind not in PROVIDERS:
        hint = f"use one of: {', '.join(PROVIDERS)}"
        raise Invalid(f"object.provider.type is {str(kind)[:40]!r}", hint=hint)
    config = {key: _text(table(provider.get(kind), kind), key) for key in table(provider.get(kind), kind)}
    known = {"aws": {"region", "endpointUrl"}, "s3": {"region", "endpoint"}, "gcs": {"projectId"}}[kind]
    if unknown := set(config) - known:
        hint = f"fields here: {', '.join(sorted(known))}"
        raise Invalid(f"object.provider.{kind} has no field {min(unknown)[:80]!r}", hint=hint)
    shown: Json = {"bucket": bucket, "provider": {"type": kind, kind: config}}
    if item.get("credentials") is not None:
        shown["credentials"] = _credentials(table(item["credentials"], "object.credentials"))
    if item.get("aistore") is not None:
        shown["aistore"] = {"enabled": bool(table(item["aistore"], "object.aistore").get("enabled"))}
    return shown


def _credentials(item: Json) -> Json:
    """Only the names of secrets: what is not known here might be a key."""
    if item == {"type": "wif"}:
        return item
    names = item.get("leptonSecret")
    pair = names.get("s3Credentials") if isinstance(names, dict) else None
    if (
        item.get("type") == "leptonSecret"
        and set(item) == {"type", "leptonSecret"}
        and isinstance(pair, dict)
        and set(pair) == {"accessKeySecretName", "secretKeySecretName"}
        and all(isinstance(value, str) and 0 < len(value) <= 128 for value in pair.values())
    ):
        return {"type": "leptonSecret", "leptonSecret": {"s3Credentials": dict(pair)}}
    hint = "keep the keys as secrets and name them: accessKeySecretName, secretKeySecretName"
    raise Invalid("object.credentials are neither wif nor the names of secrets", hint=hint)


def secret_names(spec: Json) -> list[str]:
    """The secrets that a data source names."""
    pair = (spec["object"].get("credentials") or {}).get("leptonSecret", {}).get("s3Credentials", {})
    return [str(value) for value in pair.values()]


def texts(value: object, where: str) -> list[str]:
    """`value` as an array of short texts. Raises Invalid."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > TEXTS:
        raise Invalid(f"{where} is not an array of at most {TEXTS} texts", hint='send ["…"]')
    for item in value:
        if not isinstance(item, str) or not 0 < len(item) <= 255 or "\0" in item:
            raise Invalid(f"{where} holds {str(item)[:40]!r}", hint="each is a text of at most 255 characters")
    return list(value)


def _text(item: Json, field: str, limit: int = 1024) -> str:
    value: Any = item.get(field)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise Invalid(f"{field} is not a text of at most {limit} characters", hint=f"send {field} as a text")
    return value
