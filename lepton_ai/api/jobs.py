"""Jobs over HTTP: ours under x/, and the public client's /jobs.

GET x/jobs[?all=true]   POST x/jobs   GET PATCH DELETE x/jobs/NAME   GET x/jobs/NAME/replicas
GET POST /jobs   GET PATCH DELETE /jobs/ID   GET /jobs/ID/replicas, /events
"""

from __future__ import annotations

import secrets
from typing import Any

from lepton_ai.api import deploy, view
from lepton_ai.api.call import Call, Router, retried
from lepton_ai.api.check import validated
from lepton_ai.api.form import JobForm, StopForm, written
from lepton_ai.api.place import possible
from lepton_ai.errors import Conflict
from lepton_ai.spec.workload import JobSpec
from lepton_ai.store import Record
from lepton_ai.wire import jobs as wire
from lepton_ai.wire import replicas

KIND = "job"
TITLE_MAX = 36
PAGE_SIZE_MAX = 1000
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def add(router: Router) -> None:
    router.add("GET", "/x/jobs", "read", _list)
    router.add("POST", "/x/jobs", "write", lambda call: view.job(_create(call, call.form(JobForm, "job"))), status=201)
    router.add("GET", "/x/jobs/{name}", "read", lambda call: view.job(call.find(KIND, call.path("name"))))
    router.add("PATCH", "/x/jobs/{name}", "write", _patch)
    router.add("DELETE", "/x/jobs/{name}", "write", _delete)
    router.add("GET", "/x/jobs/{name}/replicas", "read", lambda call: [view.replica(item) for item in _owned(call)])

    router.add("GET", "/jobs", "read", _wire_list)
    router.add("POST", "/jobs", "write", _wire_post, status=201)
    router.add("GET", "/jobs/{name}", "read", lambda call: _shown(call.find(KIND, call.path("name"))))
    router.add("PATCH", "/jobs/{name}", "write", _wire_patch)
    router.add("DELETE", "/jobs/{name}", "write", lambda call: _shown(deploy.remove(call, KIND, call.path("name"))))
    router.add("GET", "/jobs/{name}/replicas", "read", lambda call: [replicas.shown(item) for item in _owned(call)])
    router.add("GET", "/jobs/{name}/events", "read", _wire_events)


def _list(call: Call) -> list[dict[str, Any]]:
    if call.flag("all"):
        return [view.job(record) for record in call.cell.store.list(KIND, workspace=call.ws)]
    shorts = reversed(call.cell.jobs.list(call.ws))
    live = call.cell.store.fetch(uid for uid, short in shorts if short["own"] not in view.ENDED)
    return [view.job(record) for record in live]


def _create(call: Call, form: JobForm) -> Record:
    """Records a job. Raises Invalid, NotFound (secret, blob), Unsupported, Unplaceable."""
    template = written(form.template, f"job {form.name}")
    deploy.check(call.cell, call.ws, template)
    possible(call.cell.snapshot(), template)
    spec = JobSpec(
        template=template, title=form.name, workers=form.workers, retries=form.retries, ttl_s=form.ttl_s
    ).model_dump(mode="json")
    record = retried(lambda: call.cell.store.create(call.ws, KIND, unique(form.name), spec))
    call.note("run", KIND, record.name)
    return record


def unique(title: str) -> str:
    """A job's name: its title and an ending that no other has."""
    ending = "".join(secrets.choice(_LETTERS) for _ in range(6))
    return f"{title[:TITLE_MAX].rstrip('-')}-{ending}"


def _patch(call: Call) -> dict[str, Any]:
    return view.job(_stop(call, call.form(StopForm, "job").stopped))


def _stop(call: Call, stopped: bool) -> Record:
    def change() -> Record:
        record = call.find(KIND, call.path("name"))
        deploy.refuse_deleting(record)
        if not stopped and record.status.get("state") in ("succeeded", "failed"):
            hint = "run it again: lepton run"
            raise Conflict(f"job {record.name} has ended", hint=hint, details={"final": True})
        return call.cell.store.update(record, spec={**record.spec, "stopped": stopped})

    record = retried(change)
    call.note("stop" if stopped else "start", KIND, record.name)
    return record


def _delete(call: Call) -> dict[str, Any]:
    return view.job(deploy.remove(call, KIND, call.path("name")))


def _owned(call: Call) -> list[Record]:
    record = call.find(KIND, call.path("name"))
    return call.cell.store.list("replica", workspace=call.ws, owner_uid=record.uid)


# -- the public client's


def _shown(record: Record) -> dict[str, Any]:
    return wire.shown(record, JobSpec.model_validate(record.spec))


def _wire_list(call: Call) -> dict[str, Any]:
    wanted = wire.Filter(
        mode=call.text("job_query_mode") or "alive_only",
        text=call.text("q") or "",
        states=tuple(call.request.query_params.getlist("status")),
        node_groups=tuple(call.request.query_params.getlist("node_groups")),
        created_by=tuple(call.request.query_params.getlist("created_by")),
        labels=call.text("query") or "",
    )
    kept = [uid for uid, short in call.cell.jobs.list(call.ws) if wanted.takes(short)]
    page = call.number("page", 1, low=1, high=10**9) or 1
    size = call.number("page_size", 500, low=1, high=PAGE_SIZE_MAX) or 500
    # Only what is on the page is read and rendered: a workspace keeps thousands of jobs that ended.
    found = call.cell.store.fetch(kept[(page - 1) * size : page * size])
    return {"jobs": [_shown(record) for record in found], "total": len(kept)}


def _wire_post(call: Call) -> dict[str, Any]:
    asked = wire.form(call.body)
    image = asked["template"].get("image")
    if image and call.cell.settings.runtime.startswith("process://"):
        asked["template"]["image"] = None
    record = _create(call, validated(JobForm, asked, "job"))
    if image and call.cell.settings.runtime.startswith("process://"):
        text = f"image {image[:200]} is not used: this cell runs processes (runtime=process://)"
        call.cell.events.add(call.ws, KIND, record.name, "Warning", "ImageNotUsed", text, record.uid)
    return _shown(record)


def _wire_patch(call: Call) -> dict[str, Any]:
    return _shown(_stop(call, wire.stopped(call.body)))


def _wire_events(call: Call) -> list[dict[str, Any]]:
    record = call.find(KIND, call.path("name"))
    return [replicas.event(item) for item in call.cell.events.list(call.ws, KIND, record.name)]
