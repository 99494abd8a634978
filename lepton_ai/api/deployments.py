"""Deployments over HTTP: ours under x/, and the public client's /deployments.

POST x/plan   GET x/deployments   GET PUT DELETE x/deployments/NAME   POST x/deployments/NAME/rollback, /restart
GET x/deployments/NAME/releases, /replicas
GET POST /deployments   GET PATCH DELETE /deployments/NAME   PUT …/restart
GET …/replicas, /readiness, /termination, /events
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api import deploy, view
from lepton_ai.api.call import TRIES, Call, Router
from lepton_ai.api.check import validated
from lepton_ai.api.form import DeployForm, RollbackForm
from lepton_ai.api.plan import plan
from lepton_ai.errors import Conflict, Invalid
from lepton_ai.spec.workload import DeploymentSpec
from lepton_ai.store import Record
from lepton_ai.wire import deployments as wire
from lepton_ai.wire import merge, replicas

KIND = deploy.KIND


def add(router: Router) -> None:
    router.add("POST", "/x/plan", "read", _plan)
    router.add("GET", "/x/deployments", "read", _list)
    router.add("GET", "/x/deployments/{name}", "read", _get)
    router.add("PUT", "/x/deployments/{name}", "write", _put)
    router.add("DELETE", "/x/deployments/{name}", "write", _delete)
    router.add("POST", "/x/deployments/{name}/rollback", "write", _rollback)
    router.add("POST", "/x/deployments/{name}/restart", "write", _restart)
    router.add("GET", "/x/deployments/{name}/releases", "read", _releases)
    router.add("GET", "/x/deployments/{name}/replicas", "read", _replicas)

    router.add("GET", "/deployments", "read", _wire_list)
    router.add("POST", "/deployments", "write", _wire_post, status=201)
    router.add("GET", "/deployments/{name}", "read", lambda call: _shown(call, call.find(KIND, call.path("name"))))
    router.add("PATCH", "/deployments/{name}", "write", _wire_patch)
    router.add("DELETE", "/deployments/{name}", "write", _delete)
    router.add("PUT", "/deployments/{name}/restart", "write", _wire_restart)
    router.add("GET", "/deployments/{name}/replicas", "read", _wire_replicas)
    router.add("GET", "/deployments/{name}/readiness", "read", _wire_readiness)
    router.add("GET", "/deployments/{name}/termination", "read", _wire_termination)
    router.add("GET", "/deployments/{name}/events", "read", _wire_events)


def _plan(call: Call) -> dict[str, Any]:
    form = call.form(DeployForm, "deployment")
    template = deploy.resolve(call.cell, call.ws, form, planning=True)
    missing = template.model_copy(update={"blobs": ()}) if form.model else template
    deploy.check(call.cell, call.ws, missing)
    return plan(call.cell, deploy.decide(call.cell, call.ws, form, template))


def _list(call: Call) -> list[dict[str, Any]]:
    return [view.deployment(call.cell, record) for record in call.cell.store.list(KIND, workspace=call.ws)]


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


def _releases(call: Call) -> list[dict[str, Any]]:
    found = deploy.releases(call.cell, call.find(KIND, call.path("name")))
    return [view.release(spec, created_ms) for spec, created_ms in reversed(found)]


def _replicas(call: Call) -> list[dict[str, Any]]:
    return [view.replica(item) for item in _owned(call, call.find(KIND, call.path("name")))]


def _owned(call: Call, record: Record) -> list[Record]:
    return call.cell.store.list("replica", workspace=call.ws, owner_uid=record.uid)


# -- the public client's


def _shown(call: Call, record: Record) -> dict[str, Any]:
    spec = DeploymentSpec.model_validate(record.spec)
    return wire.shown(record, spec, call.cell.url(call.ws, record.name))


def _wire_list(call: Call) -> list[dict[str, Any]]:
    return [_shown(call, record) for record in call.cell.store.list(KIND, workspace=call.ws)]


def _wire_post(call: Call) -> dict[str, Any]:
    name = wire.name_of(call.body)
    if call.cell.store.find(call.ws, KIND, name) is not None:
        raise Conflict(f"deployment {name} exists already", hint=f"change it: PATCH /deployments/{name}")
    return _asked(call, wire.form(call.body, name))


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
    spec = DeploymentSpec.model_validate(record.spec)
    merged = merge.merge(wire.document(record.name, spec), patch)
    form = validated(DeployForm, wire.form(merged, record.name, base=view.form(record.name, spec)), "deployment")
    if call.flag("dryrun"):
        template = deploy.resolve(call.cell, call.ws, form)
        decision = deploy.decide(call.cell, call.ws, form, template)
        return wire.shown(record, decision.spec, call.cell.url(call.ws, record.name))
    return _shown(call, deploy.deploy(call, form, record.generation))


def _asked(call: Call, asked: dict[str, Any]) -> dict[str, Any]:
    image = asked["template"].get("image")
    if image and call.cell.settings.runtime.startswith("process://"):
        asked["template"]["image"] = None
        text = f"image {image[:200]} is not used: this cell runs processes (runtime=process://)"
        call.cell.events.add(call.ws, KIND, asked["name"], "Warning", "ImageNotUsed", text)
    return _shown(call, deploy.deploy(call, validated(DeployForm, asked, "deployment")))


def _wire_restart(call: Call) -> dict[str, Any]:
    return _shown(call, deploy.restart(call, call.path("name")))


def _wire_replicas(call: Call) -> list[dict[str, Any]]:
    found = _owned(call, call.find(KIND, call.path("name")))
    return [replicas.shown(item) for item in found if item.status.get("phase") != "exited"]


def _wire_readiness(call: Call) -> dict[str, Any]:
    return replicas.readiness(_owned(call, call.find(KIND, call.path("name"))))


def _wire_termination(call: Call) -> dict[str, Any]:
    return replicas.termination(_owned(call, call.find(KIND, call.path("name"))))


def _wire_events(call: Call) -> list[dict[str, Any]]:
    record = call.find(KIND, call.path("name"))
    return [replicas.event(item) for item in call.cell.events.list(call.ws, KIND, record.name)]
