"""`workspace`, `registry`: the tenants of a cell, and their logins at image registries."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from lepton_ai.cli import render
from lepton_ai.cli.grammar import Usage

if TYPE_CHECKING:
    from lepton_ai.cli.session import Session


def workspaces(session: Session) -> None:
    """The tenants of the cell, and whether anything keeps them apart."""
    rows = session.cloud.workspaces()
    if session.answer(rows):
        return
    now_ms = time.time_ns() // 1_000_000
    shown = [
        (
            r["name"],
            "the cell's own" if r["first"] else r["created_by"],
            render.age(r["created_ms"] or None, now_ms),
            f"{r.get('weight', 1.0):g}",
            r.get("priority_most"),
        )
        for r in rows
    ]
    session.table(("name", "made by", "age", "weight", "priority up to"), shown, "there is no workspace")
    warning = session.cloud.cell().warning
    if warning:
        session.say(f"warning: {warning}")


def workspace_add(session: Session) -> None:
    """Make a workspace and print its first owner token, once."""
    arguments = session.arguments
    if arguments.dry_run:
        session.print(f"would make workspace {arguments.name}")
        return
    made = session.cloud.add_workspace(arguments.name, force=arguments.force)
    session.print(made["token"])
    session.say(f"keep it: it is not shown again. lep login -c {made['name']}:TOKEN -u {made['url']}")
    if made.get("warning"):
        session.say(f"warning: {made['warning']}")


def workspace_set(session: Session) -> None:
    """Change what a workspace is granted: its weight while all want more, and the largest priority of its work."""
    arguments = session.arguments
    asked = {"weight": arguments.weight, "priority_most": arguments.priority_most}
    given = {key: value for key, value in asked.items() if value is not None}
    if not given:
        raise Usage("nothing is to change", hint=f"lepton workspace set {arguments.name} --weight 2")
    if arguments.dry_run:
        session.print(f"would set {', '.join(f'{key} {value:g}' for key, value in given.items())}")
        return
    done = session.cloud.set_workspace(arguments.name, **given)
    session.print(f"{done['name']} weight {done['weight']:g}, priorities up to {done['priority_most']}")


def workspace_rm(session: Session) -> None:
    """Remove a workspace that has no workloads: its tokens, secrets and records; with --purge its data too."""
    arguments = session.arguments
    name, data = arguments.name, " and all its data" if arguments.purge else ""
    if arguments.dry_run:
        session.print(f"would remove workspace {name}{data}")
    elif session.confirm(f"remove workspace {name}{data}"):
        gone = session.cloud.delete_workspace(name, purge=arguments.purge)
        session.print(f"removed {name}" + ("; its lake is kept" if gone.get("lake_kept") else ""))


def registries(session: Session) -> None:
    """Logins at image registries; a password is never shown."""
    rows = session.cloud.registries()
    if not session.answer(rows):
        shown = [(r["name"], r["registry"], r["username"]) for r in rows]
        session.table(("name", "registry", "user"), shown, "there are no registry logins")


def registry_set(session: Session) -> None:
    """Keep a login. Its password is read from standard input, so that no shell remembers it."""
    arguments = session.arguments
    if arguments.dry_run:
        session.print(f"would keep registry login {arguments.name}")
        return
    password = sys.stdin.read().removesuffix("\n")
    if not password:
        hint = f"printf %s PASSWORD | lepton registry set {arguments.name} {arguments.registry} --username NAME"
        raise Usage("the password is empty", hint=hint)
    session.cloud.set_registry(arguments.name, arguments.registry, arguments.username, password)
    session.print(f'kept {arguments.name}; template.image_pull_secrets = ["{arguments.name}"] pulls with it')


def registry_rm(session: Session) -> None:
    """Remove a login. What runs goes on; the next pull fails."""
    name = session.arguments.name
    if session.arguments.dry_run:
        session.print(f"would remove registry login {name}")
    elif session.confirm(f"remove registry login {name}"):
        session.cloud.delete_registry(name)
        session.print(f"removed {name}")
