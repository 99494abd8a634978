"""Deployments and pods over HTTP: ours under x/, and the public client's /deployments.

POST x/plan   GET x/deployments   GET PUT DELETE x/deployments/NAME   POST x/deployments/NAME/rollback, /restart, /stop
GET x/deployments/NAME/releases, /replicas
GET POST /deployments   GET PATCH DELETE /deployments/NAME   PUT …/restart
GET …/replicas, /readiness, /termination, /events
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from lepton_ai.api import deploy, view
from lepton_ai.api.call import TRIES, Call, Router
from lepton_ai.api.check import validated
from lepton_ai.api.form import DeployForm, RollbackForm
from lepton_ai.api.plan import plan
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.api.where import where
from lepton_ai.errors import Conflict, Invalid
from lepton_ai.store import Record
from lepton_ai.wire import deployments as wire
from lepton_ai.wire import merge, pods, replicas
from lepton_ai.wire.container import Where

KIND = deploy.KIND
GONE_S, LOOK_S = 25.0, 0.1
"""How long a creation waits for what had its name, and how often it looks."""


def add(router: Router) -> None:
    router.add("POST", "/x/plan", "read", _plan)
    router.add("GET", "/x/deployments", "read", _list)
    router.add("GET", "/x/deployments/{name}", "read", _get)
    router.add("PUT", "/x/deployments/{name}", "write", _put)
    router.add("DELETE", "/x/deployments/{name}", "write", _delete)
    router.add("POST", "/x/deployments/{name}/rollback", "write", _rollback)
    router.add("POST", "/x/deployments/{name}/restart", "write", _restart)
    router.add("POST", "/x/deployments/{name}/stop", "write", _stop, body=False)
    router.add("GET", "/x/deployments/{name}/releases", "read", _releases)
    router.add("GET", "/x/deployments/{name}/replicas", "read", _replicas)

    router.add("GET", "/deployments", "read", _wire_list)
    router.add("POST", "/deployments", "write", _wire_post, status=201, first=_predecessor_gone)
    router.add("GET", "/deployments/{name}", "read", lambda call: _shown(call, call.find(KIND, call.path("name"))))
    router.add("PATCH", "/deployments/{name}", "write", _wire_patch)
    router.add("DELETE", "/deployments/{name}", "write", _wire_delete)
    router.add("PUT", "/deployments/{name}/restart", "write", _wire_restart, body=False)
    router.add("GET", "/deployments/{name}/replicas", "read", _wire_replicas)
    router.add("GET", "/deployments/{name}/readiness", "read", _wire_readiness)
    router.add("GET", "/deployments/{name}/termination", "read", _wire_termination)
    router.add("GET", "/deployments/{name}/events", "read", _wire_events)


def _plan(call: Call) -> dict[str, Any]:
    form = call.form(DeployForm, "deployment")
    template = deploy.resolve(call.cell, call.ws, form, planning=True)
    missing = template.model_copy(update={"blobs": ()}) if form.model else template
    deploy.check(call, missing)
    return plan(call.cell, deploy.decide(call, form, template), call.ws)


def _list(call: Call) -> list[dict[str, Any]]:
    return [view.deployment(call.cell, record) for record in call.seen(KIND)]


def _get(call: Call) -> dict[str, Any]:
    return view.deployment(call.cell, call.find(KIND, call.path("name")))


def _put(call: Call) -> dict[str, Any]:
    form = call.form(DeployForm, "deployment")
    if form.name != call.path("name"):
        raise Invalid(f"the path names {call.path('name')[:80]!r}, the body {form.name!r}", hint="they must be equal")
    return view.deployment(call.cell, deploy.deploy(call, form, call.number("generation")))


def _delete(call: Call) -> dict[str, Any]:
    return view.deployment(call.cell, deploy.remove(call, KIND, call.path("name")))


def _rollback(call: Call) -> dict[str, Any]:
    form = call.form(RollbackForm, "rollback")
    return view.deployment(call.cell, deploy.rollback(call, call.path("name"), form.to))


def _restart(call: Call) -> dict[str, Any]:
    return view.deployment(call.cell, deploy.restart(call, call.path("name")))


def _stop(call: Call) -> dict[str, Any]:
    return view.deployment(call.cell, deploy.stop(call, call.path("name")))


def _releases(call: Call) -> list[dict[str, Any]]:
    found = deploy.releases(call.cell, call.find(KIND, call.path("name")))
    return [view.release(spec, created_ms) for spec, created_ms in reversed(found)]


def _replicas(call: Call) -> list[dict[str, Any]]:
    return [view.replica(item) for item in _owned(call, call.find(KIND, call.path("name")))]


def _owned(call: Call, record: Record) -> list[Record]:
    return call.cell.store.list("replica", workspace=call.ws, owner_uid=record.uid)


# -- the public client's


def _shown(call: Call, record: Record) -> dict[str, Any]:
    return _rendered(call, record, where(call), pods.one(_owned(call, record)) if record.spec.get("pod") else None)


def _wire_list(call: Call) -> list[dict[str, Any]]:
    records, here = call.seen(KIND), where(call)
    copies: dict[str, list[Record]] = {record.uid: [] for record in records if record.spec.get("pod")}
    if copies:
        for item in call.cell.store.list("replica", workspace=call.ws, but="exited"):
            if item.owner_uid in copies:
                copies[item.owner_uid].append(item)
    return [_rendered(call, record, here, pods.one(copies.get(record.uid, ()))) for record in records]


def _rendered(call: Call, record: Record, here: Where, replica: Record | None) -> dict[str, Any]:
    spec = call.cell.parsed.deployment(record)
    return wire.shown(record, spec, call.cell.url(call.ws, record.name), here, replica)


async def _predecessor_gone(call: Call) -> None:
    """Waits for what is being removed under the name: `lep endpoint create --rerun` removes and creates at once."""
    name = wire.name_of(call.body)
    clock = asyncio.get_running_loop().time
    deadline_s = clock() + GONE_S
    while True:
        record = await run_in_threadpool(call.cell.store.find, call.ws, KIND, name)
        if record is None or not record.deleting or clock() > deadline_s:
            return
        await asyncio.sleep(LOOK_S)


def _wire_post(call: Call) -> dict[str, Any]:
    name = wire.name_of(call.body)
    if call.cell.store.find(call.ws, KIND, name) is not None:
        raise deploy.exists(name)  # said before anything that may be wrong with the rest
    form = validated(DeployForm, wire.form(call.body, name, where(call)), "deployment")
    if call.flag("dryrun"):
        return _dry(call, form, None)
    return _shown(call, deploy.deploy(call, form, new=True))


def _wire_patch(call: Call) -> dict[str, Any]:
    name = call.path("name")
    patch = merge.checked(call.body)
    for tried in range(TRIES):
        record = call.find(KIND, name)
        try:
            return _patched(call, record, patch)
        except Conflict as error:
            # Somebody changed it since it was read: the patch is applied to what it is now.
            if tried == TRIES - 1 or "generation" not in error.details:
                raise
    raise AssertionError("unreachable")


def _patched(call: Call, record: Record, patch: dict[str, Any]) -> dict[str, Any]:
    spec, here = call.cell.parsed.deployment(record), where(call)
    deploy.refuse_deleting(record)
    merge.same_name(patch, record.name)
    pods.refuse_change(spec.pod, patch.get("spec") or {})
    before = wire.document(record.name, spec, here)
    after = wire.patched(before, patch, merge.merge(before, patch))
    asked = wire.form(after, record.name, here, base=view.form(record.name, spec), before=before)
    form = validated(DeployForm, asked, "deployment")
    if call.flag("dryrun"):
        return _dry(call, form, record)
    decision = deploy.decide(call, form, deploy.resolve(call.cell, call.ws, form))
    if not decision.changes and not _stops(patch):
        raise merge.nothing("every value is what it is already")
    return _shown(call, deploy.deploy(call, form, record.generation))


def _stops(patch: dict[str, Any]) -> bool:
    """Whether it is what `stop` sends: done twice it is no mistake."""
    return patch.get("spec") == {"resource_requirement": {"min_replicas": 0}}


def _dry(call: Call, form: DeployForm, record: Record | None) -> dict[str, Any]:
    """What would be there; nothing is recorded."""
    template = deploy.resolve(call.cell, call.ws, form)
    deploy.admissible(call, form.name, template)
    decision = deploy.decide(call, form, template)
    if record is None:
        if decision.record is not None:
            raise deploy.exists(form.name)
        now_ms = call.cell.store.now_ms()
        record = Record(call.ws, KIND, form.name, "", 0, 0, {}, {}, None, now_ms, now_ms, None)
    would = replace(record, spec=decision.spec.model_dump(mode="json"))
    return wire.shown(would, decision.spec, call.cell.url(call.ws, form.name), where(call))


def _wire_delete(call: Call) -> dict[str, Any]:
    return _shown(call, deploy.remove(call, KIND, call.path("name")))


def _wire_restart(call: Call) -> dict[str, Any]:
    return _shown(call, deploy.restart(call, call.path("name")))


def _wire_replicas(call: Call) -> list[dict[str, Any]]:
    record = call.find(KIND, call.path("name"))
    found = _owned(call, record)
    if record.spec.get("pod"):
        # The client takes a pod for broken that has not exactly one: while it is replaced, too.
        one = pods.one(found) or (found[-1] if found else None)
        return [] if one is None else [replicas.shown(one)]
    return [replicas.shown(item) for item in found if item.status.get("phase") != "exited"]


def _wire_readiness(call: Call) -> dict[str, Any]:
    record = call.find(KIND, call.path("name"))
    return replicas.readiness(_owned(call, record), record)


def _wire_termination(call: Call) -> dict[str, Any]:
    return replicas.termination(_owned(call, call.find(KIND, call.path("name"))))


def _wire_events(call: Call) -> list[dict[str, Any]]:
    record = call.find(KIND, call.path("name"))
    found = call.cell.events.list(call.ws, KIND, record.name)
    # Not those of another that had the name before.
    return [replicas.event(item) for item in found if item.uid in (None, record.uid)]
