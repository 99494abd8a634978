"""Jobs over HTTP: ours under x/, and the public client's /jobs.

GET x/jobs[?all=true]   POST x/jobs   GET PATCH DELETE x/jobs/NAME   GET x/jobs/NAME/replicas
GET POST /jobs   GET PATCH DELETE /jobs/ID   GET /jobs/ID/replicas, /events
What was removed is found under the archive modes of the public client's routes.
"""

from __future__ import annotations

import secrets
from typing import Any

from lepton_ai.api import deploy, sight, view
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.api.check import validated
from lepton_ai.api.form import JobForm, StopForm, written
from lepton_ai.api.place import possible
from lepton_ai.api.where import where
from lepton_ai.errors import Conflict, Invalid
from lepton_ai.spec.workload import JobSpec
from lepton_ai.store import Record
from lepton_ai.wire import jobfilter, merge, replicas
from lepton_ai.wire import jobs as wire
from lepton_ai.wire.container import Where

KIND = "job"
TITLE_MAX = 36
PAGE_SIZE_MAX = 1000
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def add(router: Router) -> None:
    router.add("GET", "/x/jobs", "read", _list)
    router.add("POST", "/x/jobs", "write", _post, status=201)
    router.add("GET", "/x/jobs/{name}", "read", lambda call: _viewed(call, call.find(KIND, call.path("name"))))
    router.add("PATCH", "/x/jobs/{name}", "write", _patch)
    router.add("DELETE", "/x/jobs/{name}", "write", _delete)
    router.add("GET", "/x/jobs/{name}/replicas", "read", lambda call: [view.replica(item) for item in _owned(call)])

    router.add("GET", "/jobs", "read", _wire_list)
    router.add("POST", "/jobs", "write", _wire_post, status=201)
    router.add("GET", "/jobs/{name}", "read", lambda call: _shown(call, _found(call)))
    router.add("PATCH", "/jobs/{name}", "write", _wire_patch)
    router.add("DELETE", "/jobs/{name}", "write", _wire_delete)
    router.add("GET", "/jobs/{name}/replicas", "read", _wire_replicas)
    router.add("GET", "/jobs/{name}/events", "read", _wire_events)


# -- what is done, whichever way it was asked for


def create(call: Call, form: JobForm) -> Record:
    """Records a job. Raises Invalid, NotFound (secret, blob, volume, node), Forbidden, Unplaceable."""
    template = written(form.template, f"job {form.name}")
    deploy.check(call, template)
    possible(call.cell.snapshot(), template)
    spec = deploy.ranked(call, form.spec(template, call.actor))
    value = spec.model_dump(mode="json")
    record = retried(lambda: call.cell.store.create(call.ws, KIND, unique(form.name), value))
    call.note("run", KIND, record.name)
    deploy.tell(call, record, spec, None)
    return record


def unique(title: str) -> str:
    """A job's name: its title and an ending that no other has."""
    ending = "".join(secrets.choice(_LETTERS) for _ in range(6))
    return f"{title[:TITLE_MAX].rstrip('-')}-{ending}"


def stop(call: Call, name: str, stopped: bool) -> Record:
    """Stops a job, or starts a stopped one again. Raises NotFound, Conflict when it has ended or is being removed."""

    def change() -> Record:
        record = call.find(KIND, name)
        if not stopped:
            _refuse_ended(record)
        return _changed(call, record, {**record.spec, "stopped": stopped})

    record = retried(change)
    call.note("stop" if stopped else "start", KIND, record.name)
    return record


def _changed(call: Call, record: Record, spec: dict[str, Any]) -> Record:
    deploy.refuse_deleting(record)
    if not spec["stopped"] and record.spec.get("stopped"):
        _refuse_ended(record)
    return call.cell.store.update(record, spec=spec)


def _refuse_ended(record: Record) -> None:
    if record.status.get("state") in ("succeeded", "failed"):
        hint = "run it again: lepton run, lep job clone"
        raise Conflict(f"job {record.name} has ended", hint=hint, details={"final": True})


# -- ours


def _viewed(call: Call, record: Record) -> dict[str, Any]:
    return view.job(call.cell, record)


def _list(call: Call) -> list[dict[str, Any]]:
    if call.flag("all"):
        return [_viewed(call, record) for record in call.seen(KIND)]
    shorts = reversed(call.cell.jobs.list(call.ws))
    live = (uid for uid, short in shorts if short["own"] not in view.ENDED and sight.may(call.principal, short))
    return [_viewed(call, record) for record in call.cell.store.fetch(live)]


def _post(call: Call) -> dict[str, Any]:
    return _viewed(call, create(call, call.form(JobForm, "job")))


def _patch(call: Call) -> dict[str, Any]:
    return _viewed(call, stop(call, call.path("name"), call.form(StopForm, "job").stopped))


def _delete(call: Call) -> dict[str, Any]:
    return _viewed(call, deploy.remove(call, KIND, call.path("name")))


def _owned(call: Call) -> list[Record]:
    record = call.find(KIND, call.path("name"))
    return call.cell.store.list("replica", workspace=call.ws, owner_uid=record.uid)


# -- the public client's


def _shown(call: Call, record: Record) -> dict[str, Any]:
    here = where(call)
    if record.kind == sight.ARCHIVE:
        return wire.archived(record, JobSpec.model_validate(record.spec["spec"]), here)
    return wire.shown(record, JobSpec.model_validate(record.spec), here)


def _found(call: Call, default: str = "alive_only") -> Record:
    """The job, or what is archived of it, by the query's mode. Raises NotFound."""
    mode, name = jobfilter.mode_of(call.text("job_query_mode") or default), call.path("name")
    for kind in _kinds(mode):
        record = call.cell.store.find(call.ws, kind, name)
        if record is not None and sight.sees(call.cell, call.principal, record):
            return record
    names = [known for kind in _kinds(mode) for known in sight.names(call.cell, call.principal, kind)]
    raise missing(KIND, name, names, "lep job list")


def _kinds(mode: str) -> tuple[str, ...]:
    return {"alive_only": (KIND,), "archive_only": (sight.ARCHIVE,)}.get(mode, (KIND, sight.ARCHIVE))


def _wire_list(call: Call) -> dict[str, Any]:
    query, here = call.request.query_params, where(call)
    wanted = jobfilter.filter_of(
        call.text("job_query_mode"), call.text("q"), query.getlist("status"), query.getlist("node_groups"),
        query.getlist("created_by"), call.text("query", limit=4096), (here.group, here.group_name),
    )  # fmt: skip
    page = call.number("page", 1, low=1, high=10**9) or 1
    size = call.number("page_size", 500, low=1, high=PAGE_SIZE_MAX) or 500
    kept = [] if wanted.nothing else _taken(call, wanted)
    # Only what is on the page is read and rendered: a workspace keeps thousands of jobs that ended.
    found = call.cell.store.fetch(kept[(page - 1) * size : page * size])
    return {"jobs": [_on_page(record, here) for record in found], "total": len(kept)}


def _on_page(record: Record, here: Where) -> dict[str, Any]:
    if record.kind == sight.ARCHIVE:
        return wire.archived(record, JobSpec.model_validate(record.spec["spec"]), here)
    return wire.shown(record, JobSpec.model_validate(record.spec), here)


def _taken(call: Call, wanted: jobfilter.Filter) -> list[str]:
    """The uids of the jobs that are meant, the newest first."""
    shelves = [call.cell.jobs if kind == KIND else call.cell.archives for kind in _kinds(wanted.mode)]
    who = call.principal
    shorts = [
        (short["created_ms"], uid)
        for shelf in shelves
        for uid, short in shelf.list(call.ws)
        if wanted.takes(short) and sight.may(who, short)
    ]
    if shelves != [call.cell.jobs]:  # an archive is recorded when its job goes: not in the order of their making
        shorts.sort(reverse=True)
    return [uid for _, uid in shorts]


def _wire_post(call: Call) -> dict[str, Any]:
    name = wire.name_of(call.body)
    return _shown(call, create(call, validated(JobForm, wire.form(call.body, name, where(call)), "job")))


def _wire_patch(call: Call) -> dict[str, Any]:
    patch = merge.checked(call.body)
    name = call.path("name")
    if patch.get("spec") in ({"stopped": True}, {"stopped": False}) and not patch.get("metadata"):
        return _shown(call, stop(call, name, patch["spec"]["stopped"]))

    def change() -> Record:
        record = call.find(KIND, name)
        return _changed(call, record, _patched(call, record, patch).model_dump(mode="json"))

    record = retried(change)
    call.note("change", KIND, name)
    return _shown(call, record)


def _patched(call: Call, record: Record, patch: dict[str, Any]) -> JobSpec:
    """The job with the patch. Raises Invalid for what its workers were started with, or when nothing changes."""
    spec, here = JobSpec.model_validate(record.spec), where(call)
    head = {key: value for key, value in (patch.get("metadata") or {}).items() if (key, value) != ("name", spec.title)}
    merge.same_name({"metadata": head}, record.name)
    merged = merge.merge(wire.document(record.name, spec, here), patch)
    base = {
        "template": spec.template.model_dump(mode="json"),
        "labels": spec.labels,
        "visibility": spec.visibility,
        "checkpoint": spec.checkpoint,
    }
    form = validated(JobForm, wire.form(merged, spec.title or "job", here, base), "job")
    asked = form.spec(written(form.template, "the job"), spec.created_by).model_copy(update={"title": spec.title})
    asked = deploy.ranked(call, asked)
    different = [field for field in JobSpec.model_fields if getattr(asked, field) != getattr(spec, field)]
    if not different:
        raise merge.nothing("every value is what it is already")
    fixed = [field for field in different if field not in wire.CHANGEABLE]
    if fixed:
        hint = f"clone it with the change: lep job clone -i {record.name}"
        raise Invalid(f"{fixed[0]} of a job does not change after it was made", hint=hint)
    if "start_at_ms" in different and record.status.get("state") not in (None, "", "scheduled"):
        raise Conflict("the job has begun: its start does not move", hint="stop it first", details={"final": True})
    return asked


def _wire_delete(call: Call) -> dict[str, Any]:
    record = _found(call)
    if record.kind == KIND:
        return _shown(call, deploy.remove(call, KIND, record.name))
    call.cell.store.delete(record)
    call.note("delete", sight.ARCHIVE, record.name)
    return _shown(call, record)


def _wire_replicas(call: Call) -> list[dict[str, Any]]:
    record = _found(call, "alive_and_archive")
    if record.kind == sight.ARCHIVE:
        created_ms = int(record.spec.get("created_ms") or 0)
        return [replicas.archived(item, created_ms) for item in record.spec.get("replicas") or ()]
    found = call.cell.store.list("replica", workspace=call.ws, owner_uid=record.uid)
    return [replicas.shown(item) for item in replicas.ordered(found)]


def _wire_events(call: Call) -> list[dict[str, Any]]:
    record = _found(call, "alive_and_archive")
    uid = record.spec.get("uid") if record.kind == sight.ARCHIVE else record.uid
    found = call.cell.events.list(call.ws, KIND, record.name)
    return [replicas.event(item) for item in found if item.uid in (None, uid)]
