"""Workspaces of the cell and registry logins of a workspace, over HTTP; ours under x/, as the public client has none.

GET POST x/workspaces   PATCH DELETE x/workspaces/NAME?purge=      only for owners of the cell's first workspace
GET x/registries   PUT DELETE x/registries/NAME
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

from pydantic import Field

from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.api.lanes import lanes
from lepton_ai.errors import Invalid, Unavailable
from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.container import PRIORITY_MOST
from lepton_ai.tenancy.workspaces import Workspace

FIRST_TOKEN = "owner"


class WorkspaceForm(Model):
    """A new workspace. `force`: although nothing keeps its workloads apart from those of others."""

    name: Name
    force: bool = False


class ShareForm(Model):
    """What a workspace is granted: its weight beside others, and the largest priority of its work."""

    weight: float | None = Field(default=None, ge=0.01, le=100)
    priority_most: int | None = Field(default=None, ge=0, le=PRIORITY_MOST)


class RegistryForm(Model):
    """A login at an image registry, for images that not everybody may pull."""

    registry: str = Field(max_length=512)
    username: str = Field(max_length=255)
    password: str = Field(repr=False)


def add(router: Router) -> None:
    router.add(
        "GET", "/x/workspaces", "workspaces", lambda call: [_shown(item) for item in call.cell.workspaces.list()]
    )
    router.add("POST", "/x/workspaces", "workspaces", _add, status=201)
    router.add("PATCH", "/x/workspaces/{name}", "workspaces", _set)
    router.add("DELETE", "/x/workspaces/{name}", "workspaces", _remove)

    router.add(
        "GET", "/x/registries", "read", lambda call: [asdict(item) for item in call.cell.registries.list(call.ws)]
    )
    router.add("PUT", "/x/registries/{name}", "secrets", _set_registry)
    router.add("DELETE", "/x/registries/{name}", "secrets", _remove_registry)


def _shown(workspace: Workspace) -> dict[str, Any]:
    return asdict(workspace)


def _add(call: Call) -> dict[str, Any]:
    """The new workspace and the text of its first owner token, which is shown this once."""
    form = call.form(WorkspaceForm, "workspace")
    made = retried(lambda: call.cell.workspaces.add(form.name, force=form.force, actor=call.actor))
    text, _ = call.cell.access.issue(made.name, "owner", FIRST_TOKEN, actor=call.actor)
    url = f"{call.cell.api_url}/api/v2/workspaces/{made.name}"
    return {**_shown(made), "token": text, "url": url, "warning": call.cell.workspaces.warning()}


def _set(call: Call) -> dict[str, Any]:
    form, name = call.form(ShareForm, "workspace"), call.path("name")
    if form.weight is None and form.priority_most is None:
        raise Invalid("nothing is to change", hint='send {"weight": 2} or {"priority_most": 6000}')

    def change() -> Workspace:
        return call.cell.workspaces.set(name, weight=form.weight, priority_most=form.priority_most, actor=call.actor)

    return _shown(retried(change))


def _remove(call: Call) -> dict[str, Any]:
    """Its lake, logs and events are kept for a workspace of that name, unless `purge`."""
    name, purge = call.path("name"), call.flag("purge")
    retried(lambda: call.cell.workspaces.remove(name, actor=call.actor))
    lanes(call.request).forget(name, call.cell.lake_url(name))
    lake = call.cell.lake_root / name
    kept = lake.is_dir()
    if purge:
        call.cell.logs.forget(name)
        call.cell.events.forget(name)
    if purge and kept:
        try:
            shutil.rmtree(lake)
            kept = False
        except OSError as error:
            hint = "remove the folder yourself"
            raise Unavailable(
                f"workspace {name} is gone, its lake {lake} is not: {error.strerror}", hint=hint
            ) from None
    return {"name": name, "lake_kept": kept}


def _set_registry(call: Call) -> dict[str, Any]:
    form = call.form(RegistryForm, "registry")
    name = call.path("name")

    def change() -> dict[str, Any]:
        registries = call.cell.registries
        return asdict(registries.set(call.ws, name, form.registry, form.username, form.password, actor=call.actor))

    return retried(change)


def _remove_registry(call: Call) -> dict[str, Any]:
    name = call.path("name")
    names = [item.name for item in call.cell.registries.list(call.ws)]
    if name not in names:
        raise missing("image-pull secret", name, names, "lepton registry ls")
    call.cell.registries.delete(call.ws, name, actor=call.actor)
    return {"name": name}
