"""Storage over HTTP, in the public client's words: volumes of the node group, path rules, data sources.

POST /dedicated-node-groups/ID/volumes   DELETE …/volumes/NAME
GET POST /dedicated-node-groups/ID/datasources   GET PATCH DELETE …/datasources/NAME
GET POST /storage-permission/VOLUME   DELETE /storage-permission/VOLUME/PREFIX
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api import nodes
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.errors import Conflict, Forbidden, NotFound
from lepton_ai.store import Record
from lepton_ai.tenancy.access import MAY
from lepton_ai.tenancy.volumes import ANYONE, Rule, Volume
from lepton_ai.wire import storage as wire
from lepton_ai.wire.nodes import group_id

GROUP = "/dedicated-node-groups/{id}"
SOURCE = "datasource"


def add(router: Router) -> None:
    router.add("POST", GROUP + "/volumes", "cell", _add_volume)
    router.add("DELETE", GROUP + "/volumes/{name}", "cell", _remove_volume)
    router.add("GET", GROUP + "/datasources", "read", _sources)
    router.add("POST", GROUP + "/datasources", "tokens", _add_source, status=201)
    router.add("GET", GROUP + "/datasources/{name}", "read", _source)
    router.add("PATCH", GROUP + "/datasources/{name}", "tokens", _change_source)
    router.add("DELETE", GROUP + "/datasources/{name}", "tokens", _remove_source)
    router.add("GET", "/storage-permission/{volume}", "read", _rules)
    router.add("POST", "/storage-permission/{volume}", "tokens", _allow)
    router.add("DELETE", "/storage-permission/{volume}/{prefix:path}", "tokens", _disallow)


# -- volumes


def _add_volume(call: Call) -> dict[str, Any]:
    nodes.of_the_cell(call)
    given = wire.volume_given(call.body)
    workspaces = given.pop("workspaces") or [call.ws]
    for workspace in workspaces:
        call.cell.workspaces.get(workspace)
    volume = call.cell.volumes.add(Volume(**given, workspaces=tuple(workspaces)))
    call.note("add", "volume", volume.name, path=volume.path, workspaces=list(volume.workspaces))
    return nodes.group(call)


def _remove_volume(call: Call) -> dict[str, Any]:
    nodes.of_the_cell(call)
    name = call.path("name")
    users = [item.name for kind in ("deployment", "job") for item in call.cell.store.list(kind) if _mounts(item, name)]
    if users:
        hint = f"remove or change them first: lepton rm {users[0]}"
        raise Conflict(f"volume {name} is mounted by {', '.join(users[:3])}", hint=hint)
    call.cell.volumes.remove(name)
    call.note("remove", "volume", name)
    return nodes.group(call)


def _mounts(record: Record, volume: str) -> bool:
    ended = record.kind == "job" and record.status.get("state") in ("succeeded", "failed", "stopped")
    mounts = record.spec.get("template", {}).get("mounts") or []
    return not ended and any(mount.get("volume") == volume for mount in mounts)


# -- path rules


def _volume(call: Call) -> str:
    group = call.text("nodegroup_id") or (call.body.get("nodegroup_id") if isinstance(call.body, dict) else None)
    if group and group not in (call.cell.name, group_id(call.cell.name)):
        raise NotFound(f"there is no node group {str(group)[:80]!r}", hint="lep node list shows them")
    return call.cell.volumes.get(call.ws, call.path("volume")).name


def _rules(call: Call) -> list[dict[str, Any]]:
    volume = _volume(call)
    group = group_id(call.cell.name)
    return [wire.rule(item.prefix, item.users, item.policy, group) for item in call.cell.volumes.rules(call.ws, volume)]


def _allow(call: Call) -> dict[str, Any]:
    volume = _volume(call)
    prefix, users, policy = wire.rule_given(call.body)

    rule = retried(lambda: call.cell.volumes.allow(call.ws, volume, Rule(prefix, tuple(users), policy)))
    call.note("allow", "permission", volume, prefix=rule.prefix, users=list(rule.users), policy=rule.policy)
    return wire.rule(rule.prefix, rule.users, rule.policy, group_id(call.cell.name))


def _disallow(call: Call) -> dict[str, Any]:
    volume, prefix = _volume(call), "/" + call.path("prefix").lstrip("/")
    call.cell.volumes.disallow(call.ws, volume, prefix)
    call.note("disallow", "permission", volume, prefix=prefix[:255])
    return {"path_prefix": prefix}


# -- data sources


def _sources(call: Call) -> dict[str, Any]:
    nodes.of_the_cell(call)
    return {"items": [wire.datasource(record) for record in _mine(call)]}


def _add_source(call: Call) -> dict[str, Any]:
    nodes.of_the_cell(call)
    spec = wire.datasource_given(call.body, call.ws)
    _refuse_unknown_secrets(call, spec)
    if any(volume.name == spec["name"] for volume in call.cell.volumes.list(call.ws)):
        raise Conflict(f"storage {spec['name']} exists already", hint="choose another name")
    record = call.cell.store.create(call.ws, SOURCE, spec["name"], {"spec": spec, "created_by": call.actor})
    call.note("create", SOURCE, record.name)
    return wire.datasource(record)


def _source(call: Call) -> dict[str, Any]:
    return wire.datasource(_find(call))


def _change_source(call: Call) -> dict[str, Any]:
    def change() -> Record:
        record = _find(call)
        spec = wire.datasource_changed(record.spec["spec"], call.body, call.ws)
        _refuse_unknown_secrets(call, spec)
        return call.cell.store.update(record, spec={**record.spec, "spec": spec})

    record = retried(change)
    call.note("change", SOURCE, record.name)
    return wire.datasource(record)


def _remove_source(call: Call) -> dict[str, Any]:
    record = _find(call)
    call.cell.store.delete(record)
    call.note("delete", SOURCE, record.name)
    return {"name": record.name}


def _mine(call: Call) -> list[Record]:
    return [item for item in call.cell.store.list(SOURCE, workspace=call.ws) if _may_see(call, item)]


def _find(call: Call) -> Record:
    nodes.of_the_cell(call)
    name = call.path("name")
    found = {record.name: record for record in _mine(call)}
    if name not in found:
        raise missing("data source", name, list(found), "lep node storage")
    return found[name]


def _may_see(call: Call, record: Record) -> bool:
    """A bucket that names its members is not there for the others; who gives access sees all."""
    allowed = (record.spec["spec"].get("permissions") or {}).get("allowed_users") or [ANYONE]
    return ANYONE in allowed or call.actor in allowed or "tokens" in MAY[call.principal.role]


def _refuse_unknown_secrets(call: Call, spec: dict[str, Any]) -> None:
    for name in wire.secret_names(spec):
        if not call.cell.secrets.visible(call.ws, name, call.principal):
            raise Forbidden(f"there is no secret {name[:80]!r} that you may use", hint=f"lepton secret set {name}")
