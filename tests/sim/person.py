"""Whoever wants something of the cell: writes wanted state into the store, as the API does."""

from __future__ import annotations

from typing import Any

from lepton_ai.spec.workload import DeploymentSpec, JobSpec, Template
from lepton_ai.store import Create, Record, Store, Update

WORKSPACE = "default"


class Person:
    """Deploys, changes, rolls back, drains and runs."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def deploy(self, name: str, *words: str, **fields: Any) -> Record:
        """A new deployment: `words` are its program (see machine.py), `fields` of DeploymentSpec or Template."""
        workspace = fields.pop("workspace", WORKSPACE)
        spec = DeploymentSpec(template=template(words, fields), **fields)
        made = self.store.create(workspace, "deployment", name, spec.model_dump(mode="json"))
        self.store.batch([_release(made, spec)])
        return made

    def change(self, name: str, **fields: Any) -> Record:
        """Other bounds, no new release."""
        record = self.deployment(name)
        return self.store.update(record, spec={**record.spec, **fields})

    def release(self, name: str, *words: str, **fields: Any) -> int:
        """A new release with another program."""
        record = self.deployment(name)
        number = max(int(item.spec["number"]) for item in self.store.list("release", owner_uid=record.uid)) + 1
        spec = DeploymentSpec.model_validate(
            {**record.spec, "template": template(words, fields).model_dump(mode="json"), "release": number}
        )
        self.store.batch([Update(record, spec=spec.model_dump(mode="json")), _release(record, spec)])
        return number

    def rollback(self, name: str, to: int) -> int:
        """A new release with the template of an older one."""
        record = self.deployment(name)
        releases = {int(item.spec["number"]): item for item in self.store.list("release", owner_uid=record.uid)}
        number = max(releases) + 1
        spec = DeploymentSpec.model_validate(
            {**record.spec, "template": releases[to].spec["template"], "release": number}
        )
        self.store.batch([Update(record, spec=spec.model_dump(mode="json")), _release(record, spec)])
        return number

    def run(self, name: str, *words: str, **fields: Any) -> Record:
        """A new job."""
        workspace = fields.pop("workspace", WORKSPACE)
        spec = JobSpec(template=template(words, fields), title=fields.pop("title", name), **fields)
        return self.store.create(workspace, "job", name, spec.model_dump(mode="json"))

    def stop(self, name: str, stopped: bool = True) -> None:
        record = self.job(name)
        self.store.update(record, spec={**record.spec, "stopped": stopped})

    def remove(self, kind: str, name: str) -> None:
        self.store.update(self.store.get("system" if kind == "node" else WORKSPACE, kind, name), deleting=True)

    def drain(self, node: str, drained: bool = True) -> None:
        record = self.store.get("system", "node", node)
        self.store.update(record, spec={**record.spec, "unschedulable": drained})

    def mark(self, node: str, **fields: Any) -> None:
        """Labels and taints of a node."""
        record = self.store.get("system", "node", node)
        self.store.update(record, spec={**record.spec, **fields})

    def reserve(self, name: str, nodes: int, **fields: Any) -> Record:
        """A reservation of that many nodes for the workspace."""
        spec = {"workspace": WORKSPACE, "nodes": nodes, "start_s": 0, "end_s": None, "users": [], "title": "", **fields}
        return self.store.create("system", "reservation", name, spec)

    def deployment(self, name: str) -> Record:
        return self.store.get(WORKSPACE, "deployment", name)

    def job(self, name: str) -> Record:
        return self.store.get(WORKSPACE, "job", name)


def template(words: tuple[str, ...], fields: dict[str, Any]) -> Template:
    """Takes out of `fields` what belongs to the template. Programs end with grace, and have a health check."""
    own = {key: fields.pop(key) for key in list(fields) if key in Template.model_fields}
    return Template(command=("run", *words), **own)


def _release(record: Record, spec: DeploymentSpec) -> Create:
    document = {"number": spec.release, "template": spec.template.model_dump(mode="json"), "note": ""}
    return Create(record.workspace, "release", f"{record.name}#{spec.release}", document, {}, record.uid)
