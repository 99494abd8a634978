"""From what a user asks for to what is recorded: resolve the model, compare with what there is, number the release.

`decide` reads and decides, and is what a plan shows; `deploy`, `rollback` and `restart` write what it decided, by
compare-and-set. The same content never makes a second release. Nothing is started here: the loops do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from lepton_ai.api import models, reservations, sight
from lepton_ai.api.call import Call, missing, retried
from lepton_ai.api.cell import Cell
from lepton_ai.api.form import DeployForm, is_token, serving, written
from lepton_ai.api.holdings import holds
from lepton_ai.api.place import possible
from lepton_ai.control.routes import endpoint_context
from lepton_ai.errors import Conflict, Forbidden, Invalid, NotFound
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.container import Owned
from lepton_ai.spec.workload import DeploymentSpec, ReleaseSpec, Replicas, Template
from lepton_ai.store import Create, Op, Record, Update

KIND, RELEASE = "deployment", "release"
Work = TypeVar("Work", bound=Owned)


@dataclass(frozen=True)
class Decision:
    """What would be recorded. `old`, `record`: what is recorded now. `fresh`: whether it takes a new release."""

    name: str
    spec: DeploymentSpec
    old: DeploymentSpec | None
    record: Record | None
    fresh: bool
    note: str

    @property
    def changes(self) -> bool:
        return self.old != self.spec


def deploy(call: Call, form: DeployForm, generation: int | None = None, *, new: bool = False) -> Record:
    """Records the deployment. `generation`: only if it is (still) that of the record that `form` was made from.

    `new`: only if there is none of that name. Raises Invalid, NotFound (model, secret, blob, volume), Forbidden,
    Unplaceable, Conflict (it exists, is being removed, or is of another generation).
    """
    template = resolve(call.cell, call.ws, form)
    admissible(call, form.name, template)

    def change() -> tuple[Decision, Record]:
        if new and call.cell.store.find(call.ws, KIND, form.name) is not None:
            raise exists(form.name)
        decision = decide(call, form, template)
        if new and decision.record is not None:  # another's, that came between
            raise exists(form.name)
        now = 0 if decision.record is None else decision.record.generation
        if generation is not None and generation != now and decision.changes:
            hint = f"look at it again, then repeat the change: lepton ps {form.name}"
            details: dict[str, object] = {"final": True, "generation": now}
            raise Conflict(f"deployment {form.name} was changed meanwhile", hint=hint, details=details)
        return decision, write(call.cell, call.ws, decision)

    decision, record = retried(change)
    if decision.changes:
        call.note("deploy", KIND, form.name, release=decision.spec.release, fresh=decision.fresh)
        tell(call, record, decision.spec, decision.old)
    return record


def admissible(call: Call, name: str, template: Template) -> None:
    """Raises what `check` and `possible` raise, unless that is what `name` runs already: then it is not asked again."""
    record = call.cell.store.find(call.ws, KIND, name)
    known = record is not None and sight.sees(call.cell, call.principal, record)
    if record is None or not known or DeploymentSpec.model_validate(record.spec).template != template:
        check(call, template)
        possible(call.cell.snapshot(), template)


def tell(call: Call, record: Record, spec: Owned, old: Owned | None) -> None:
    """Says once which of the options that were asked for are only kept."""
    kept = sorted(spec.advisory)
    if kept and (old is None or sorted(old.advisory) != kept):
        text = f"kept and shown, but not enforced by this cell: {', '.join(kept)}"
        call.cell.events.add(call.ws, record.kind, record.name, "Normal", "NotEnforced", text, record.uid)


def exists(name: str) -> Conflict:
    """Also of a name that is taken by what the caller does not see."""
    hint = f"choose another name, or change the one that exists: PATCH /deployments/{name}"
    return Conflict(f"deployment {name} exists already", hint=hint, details={"final": True, "name": name})


def rollback(call: Call, name: str, to: int | None) -> Record:
    """A new release with the content of release `to` (None: of the one before). Raises NotFound, Conflict."""

    def change() -> tuple[int, Record]:
        record = call.find(KIND, name)
        spec = DeploymentSpec.model_validate(record.spec)
        target = _target(releases(call.cell, record), spec, to, int(record.status.get("serving", 0)), name)
        if target.template == spec.template:
            return spec.release, record
        note = f"rollback to #{target.number}"
        decision = _again(call.cell, record, spec, target.template, note)
        return decision.spec.release, write(call.cell, call.ws, decision)

    number, record = retried(change)
    call.note("rollback", KIND, name, release=number)
    return record


def restart(call: Call, name: str) -> Record:
    """A new release with the same content: every replica is replaced; one that was stopped runs again.

    Raises NotFound, Conflict.
    """

    def change() -> Record:
        record = call.find(KIND, name)
        spec = DeploymentSpec.model_validate(record.spec)
        if spec.replicas.min == 0:
            spec = spec.model_copy(update={"replicas": Replicas(min=1, max=spec.replicas.max)})
        decision = _again(call.cell, record, spec, spec.template, f"restart of #{spec.release}")
        return write(call.cell, call.ws, decision)

    record = retried(change)
    call.note("restart", KIND, name, release=record.spec["release"])
    return record


def stop(call: Call, name: str) -> Record:
    """Ends every replica and keeps the deployment; `restart` brings it back. Raises NotFound, Conflict."""

    def change() -> Record:
        record = call.find(KIND, name)
        refuse_deleting(record)
        spec = DeploymentSpec.model_validate(record.spec)
        stopped = spec.model_copy(update={"replicas": Replicas(min=0, max=spec.replicas.max)})
        return call.cell.store.update(record, spec=stopped.model_dump(mode="json"))

    record = retried(change)
    call.note("stop", KIND, name)
    return record


def remove(call: Call, kind: str, name: str) -> Record:
    """Asks for the end of a deployment or job; the loops drain it, then its record goes. Raises NotFound."""

    def change() -> Record:
        record = call.find(kind, name)
        sight.bury(call.cell, record)
        return call.cell.store.update(record, deleting=True)

    record = retried(change)
    call.note("delete", kind, name)
    return record


def resolve(cell: Cell, ws: str, form: DeployForm, *, planning: bool = False) -> Template:
    """The template that `form` means. When it is not only planned, the model's bytes are in the blobs afterwards."""
    what = f"deployment {form.name}"
    if form.model is None:
        return written(form.template, what)
    version = models.version(cell, ws, form.model, planning=planning)
    if not planning:
        models.provide(cell, ws, version)
    return serving(form.template, str(version), form.name, models.blob(version), what)


def check(call: Call, template: Template) -> None:
    """Raises NotFound for what the template names and does not exist (for who asks): secrets, logins, blobs, volumes,
    nodes, a reservation; Forbidden for a path of a volume that is not theirs; Invalid without a command where no image
    runs, and without an image where nothing else does.
    """
    cell, ws = call.cell, call.ws
    if not template.command and cell.settings.runtime.startswith("process://"):
        hint = 'give one, for example ["python", "app.py"]: an image\'s own command runs only with runtime=docker://'
        raise Invalid("template.command is missing, and nodes of this cell run no images", hint=hint)
    if template.image is None and cell.settings.runtime.startswith("docker://"):
        hint = 'set template.image, for example "python:3.12"'
        if template.model is not None:
            hint = "set template.image to one that has this package: pip install lepton-cloud"
        raise Invalid("template.image is missing, and nodes of this cell run containers only", hint=hint)
    for secret in template.secrets.values():
        if not secret_is_there(call, secret):
            hint = f"set it first: PUT x/secrets/{secret}, or cloud.set_secret({secret!r}, value)"
            raise NotFound(f"there is no secret {secret!r}", hint=hint, details={"kind": "secret", "name": secret})
    for name in template.image_pull_secrets:
        if cell.store.find(ws, "registry", name) is None:
            hint = "make it first: lep secret, or leave image_pull_secrets out"
            raise NotFound(f"there is no image-pull secret {name[:80]!r}", hint=hint, details={"name": name[:255]})
    for blob in template.blobs:
        if not holds(cell, ws, blob.digest):
            hint = f"upload it first: PUT x/blobs/{blob.digest}"
            raise NotFound(f"there is no blob {blob.digest}", hint=hint, details={"kind": "blob", "name": blob.digest})
    for mount in template.mounts:
        cell.volumes.resolve(ws, call.actor, mount)
    if template.nodes:
        known = cell.store.names("node", workspace="system")
        for name in template.nodes:
            if name not in known:
                raise missing("node", name, known, "lepton node ls")
    if template.reservation:
        reservations.check(call, template.reservation)


def ranked(call: Call, spec: Work) -> Work:
    """`spec` within what whoever runs the cell grants the workspace: who asks for no priority has no more than that.

    Raises Forbidden for a larger one that is asked for.
    """
    most = call.cell.workspaces.get(call.ws).priority_most
    if spec.rank <= most:
        return spec
    if spec.priority is not None:
        hint = f"ask for {most} or less, or whoever owns the cell: lepton workspace set {call.ws} --priority-most N"
        raise Forbidden(f"priority {spec.priority} is above the {most} of workspace {call.ws}", hint=hint)
    return spec.model_copy(update={"priority": most})


def secret_is_there(call: Call, name: str) -> bool:
    """Whether who asks may hand it to work: a private one is its maker's."""
    return call.cell.secrets.visible(call.ws, name, call.principal)


def decide(call: Call, form: DeployForm, template: Template) -> Decision:
    """What `form` changes. Raises Conflict when its name is being removed or not the caller's to see, Invalid."""
    cell, ws = call.cell, call.ws
    record = cell.store.find(ws, KIND, form.name)
    if record is not None and not sight.sees(cell, call.principal, record):
        raise exists(form.name)
    old = None if record is None else DeploymentSpec.model_validate(record.spec)
    if record is not None:
        refuse_deleting(record)
    if old is not None and old.pod != form.pod:
        what = "is a pod and stays one" if old.pod else "is no pod and does not become one"
        raise Conflict(f"deployment {form.name} {what}", hint="choose another name", details={"final": True})
    number = 1 if old is None else old.release
    # What was taken back is tried again when it is asked for again: what it lacked may be there now.
    fresh = old is None or old.template != template or _failed(record, number)
    if record is not None and fresh:
        number = _next(cell, record, number)
    tokens, secrets = _tokens(call, form, old)
    spec = form.spec(template, tokens, secrets, number, call.actor if old is None else old.created_by)
    return Decision(form.name, ranked(call, spec), old, record, fresh, form.note)


def _failed(record: Record | None, number: int) -> bool:
    """Whether release `number`, the one that is wanted, never started."""
    rollout = {} if record is None else record.status.get("rollout") or {}
    return rollout.get("release") == number and rollout.get("state") == "failed"


def write(cell: Cell, ws: str, decision: Decision) -> Record:
    """Records a decision: the deployment, and its release with it. Raises Conflict when another came between."""
    record, spec = decision.record, decision.spec.model_dump(mode="json")
    release = ReleaseSpec(number=decision.spec.release, template=decision.spec.template, note=decision.note)
    if record is not None and not decision.changes:
        return record
    uid = uuid7() if record is None else record.uid
    ops: list[Op] = []
    if record is None:
        ops.append(Create(ws, KIND, decision.name, spec, uid=uid))
    else:
        ops.append(Update(record, spec=spec))
    if decision.fresh:
        name = f"{decision.name}#{release.number}"
        ops.append(Create(ws, RELEASE, name, release.model_dump(mode="json"), owner_uid=uid))
    written_record = cell.store.batch(ops)[0]
    assert written_record is not None
    return written_record


def releases(cell: Cell, record: Record) -> list[tuple[ReleaseSpec, int]]:
    """The releases of a deployment with the time (ms) of their making, oldest first."""
    found = cell.store.list(RELEASE, workspace=record.workspace, owner_uid=record.uid)
    parsed = [(ReleaseSpec.model_validate(item.spec), item.created_ms) for item in found]
    return sorted(parsed, key=lambda item: item[0].number)


def refuse_deleting(record: Record) -> None:
    if record.deleting:
        hint = f"wait until it is gone: lepton ps {record.name}"
        raise Conflict(f"{record.kind} {record.name} is being removed", hint=hint, details={"final": True})


def _again(cell: Cell, record: Record, spec: DeploymentSpec, template: Template, note: str) -> Decision:
    refuse_deleting(record)
    number = _next(cell, record, spec.release)
    changed = spec.model_copy(update={"template": template, "release": number})
    return Decision(record.name, changed, spec, record, True, note)


def _next(cell: Cell, record: Record, number: int) -> int:
    return max([number, *(item.number for item, _ in releases(cell, record))]) + 1


def _tokens(call: Call, form: DeployForm, old: DeploymentSpec | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The sealed tokens and the secrets they are from; those recorded stay as they are when their texts are the same
    (sealing never gives equals).
    """
    cell, ws = call.cell, call.ws
    kept, names = (None, ()) if old is None else (old.tokens, old.token_secrets)
    if form.tokens is None:
        return kept, names
    if not form.tokens:
        return None, ()
    wanted = tuple("" if isinstance(token, str) else token.secret for token in form.tokens)
    texts = [token if isinstance(token, str) else _of_secret(call, token.secret) for token in form.tokens]
    secrets = wanted if any(wanted) else ()
    context = endpoint_context(ws, form.name)
    if kept is not None and [cell.secrets.unseal(text, context) for text in kept] == texts:
        return kept, secrets
    return tuple(cell.secrets.seal(text, context) for text in texts), secrets


def _of_secret(call: Call, name: str) -> str:
    if not secret_is_there(call, name):
        raise NotFound(f"there is no secret {name[:80]!r}", hint=f"set it first: lepton secret set {name[:80]}")
    text = call.cell.secrets.value(call.ws, name)
    if not is_token(text):
        hint = "an endpoint's token has 1 to 1024 visible ASCII characters without spaces"
        raise Invalid(f"the value of secret {name} cannot be a token", hint=hint)
    return text


def _target(
    found: list[tuple[ReleaseSpec, int]], spec: DeploymentSpec, to: int | None, serving: int, name: str
) -> ReleaseSpec:
    by_number = {item.number: item for item, _ in found}
    if to is not None:
        if to not in by_number:
            known = ", ".join(f"#{number}" for number in sorted(by_number)[-10:])
            raise NotFound(f"{name} has no release #{to}", hint=f"it has {known}: lepton rollback {name} --to NUMBER")
        return by_number[to]
    if 0 < serving < spec.release and serving in by_number and by_number[serving].template != spec.template:
        return by_number[serving]  # the release that is wanted never took over: back to what serves
    for number in sorted(by_number, reverse=True):
        if number < spec.release and by_number[number].template != spec.template:
            return by_number[number]
    raise Invalid(f"{name} has no earlier release to go back to", hint=f"see: lepton rollback {name} --dry-run")
