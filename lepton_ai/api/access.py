"""Tokens and secrets over HTTP: ours under x/, and the public client's /tokens and /usersecrets.

GET POST x/tokens   DELETE x/tokens/NAME   GET x/secrets   GET PUT DELETE x/secrets/NAME
GET /tokens   GET POST /usersecrets   DELETE /usersecrets/NAME
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.api.form import SecretForm, TokenForm
from lepton_ai.errors import Conflict, Invalid
from lepton_ai.tenancy.secrets import Secret
from lepton_ai.wire import secrets as wire
from lepton_ai.wire import workspace

DAY_MS = 86_400_000
_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,127}\Z")


def add(router: Router) -> None:
    router.add("GET", "/x/tokens", "tokens", lambda call: [asdict(item) for item in call.cell.access.list(call.ws)])
    router.add("POST", "/x/tokens", "tokens", _issue, status=201)
    router.add("DELETE", "/x/tokens/{name}", "tokens", _revoke)
    router.add("GET", "/x/secrets", "read", _secrets)
    router.add("GET", "/x/secrets/{name}", "read", _secret)
    router.add("PUT", "/x/secrets/{name}", "secrets", _set)
    router.add("DELETE", "/x/secrets/{name}", "secrets", _unset)

    router.add("GET", "/tokens", "call", _wire_tokens)
    router.add("GET", "/usersecrets", "read", lambda call: [_wire_secret(item) for item in _visible(call)])
    router.add("POST", "/usersecrets", "secrets", _wire_set, status=201)
    router.add("DELETE", "/usersecrets/{name}", "secrets", _unset)


def _issue(call: Call) -> dict[str, Any]:
    form = call.form(TokenForm, "token")
    if form.role == "owner":
        call.require("workspace")
    expires_ms = None if form.days is None else call.cell.store.now_ms() + form.days * DAY_MS
    text, record = call.cell.access.issue(call.ws, form.role, form.name, expires_ms, actor=call.actor)
    return {"name": record.name, "role": form.role, "token": text, "expires_ms": expires_ms}


def _revoke(call: Call) -> dict[str, Any]:
    name = call.path("name")
    found = {item.name: item for item in call.cell.access.list(call.ws)}
    if name not in found:
        raise missing("token", name, list(found), "lepton token ls")
    if found[name].role == "owner":
        call.require("workspace")
        now_ms = call.cell.store.now_ms()
        lasting = [item for item in found.values() if item.role == "owner" and (item.expires_ms or now_ms + 1) > now_ms]
        if len(lasting) == 1 and lasting[0].name == name:
            hint = "make another first: lepton token add NAME --role owner"
            raise Conflict(f"{name} is the last owner token of workspace {call.ws}", hint=hint)
    call.cell.access.revoke(call.ws, name, actor=call.actor)
    return {"name": name}


def _visible(call: Call) -> list[Secret]:
    return call.cell.secrets.shown(call.ws, call.principal)


def _secrets(call: Call) -> list[dict[str, Any]]:
    return [asdict(item) for item in _visible(call)]


def _secret(call: Call) -> dict[str, Any]:
    return asdict(_found(call))


def _found(call: Call) -> Secret:
    """The secret of the path, for whoever may know of it. Raises NotFound."""
    name, visible = call.path("name"), _visible(call)
    for item in visible:
        if item.name == name:
            return item
    raise missing("secret", name, [item.name for item in visible], "lepton secret ls")


def _set(call: Call) -> dict[str, Any]:
    form = call.form(SecretForm, "secret")
    _store(call, wire.Given(call.path("name"), form.value, None, None))
    return {"name": call.path("name")}


def _unset(call: Call) -> dict[str, Any]:
    name = _found(call).name
    call.cell.secrets.delete(call.ws, name, actor=call.actor)
    return {"name": name}


def _wire_tokens(call: Call) -> list[dict[str, Any]]:
    """The caller's own token only: enough for the public client, and nothing about the others."""
    own = [item for item in call.cell.access.list(call.ws) if item.name == call.actor]
    return [workspace.token(item.masked, item.expires_ms) for item in own]


def _wire_secret(item: Secret) -> dict[str, Any]:
    return wire.shown(item.name, item.owner, item.visibility, item.tags)


def _wire_set(call: Call) -> dict[str, Any]:
    given = wire.given(call.body)
    for item in given:
        _check(call, item.name)
    for item in given:
        _store(call, item)
    return {}


def _check(call: Call, name: str) -> None:
    if not _SECRET.match(name):
        hint = "use letters, digits, '.', '_' and '-', beginning with a letter, at most 128"
        raise Invalid(f"{name[:80]!r} is not a name of a secret", hint=hint)
    if name in wire.RESERVED:
        raise Invalid(f"{name} is set by the cell itself", hint="choose another name")
    exists = call.cell.store.find(call.ws, "secret", name) is not None
    if exists and not call.cell.secrets.visible(call.ws, name, call.principal):
        raise Conflict(f"the name {name} is taken", hint="choose another name", details={"final": True})


def _store(call: Call, item: wire.Given) -> None:
    def change() -> None:
        _check(call, item.name)
        call.cell.secrets.set(
            call.ws, item.name, item.value, actor=call.actor, visibility=item.visibility, tags=item.tags
        )

    retried(change)
