"""Host names as the public client knows them: an Ingress sends the requests of a domain to deployments by weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.container import Allowlist
from lepton_ai.wire.record import Json, Record, metadata, refuse, rows, table, whole

DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?\Z")
TARGETS_MAX = 32
WEIGHT_MAX = 1_000_000
_NOT_YET = ("traffic_shadowing_config", "retelimit_config", "auth_config.lepton_workspace_token_auth")


def domain(value: object) -> str:
    """A domain, in lower case; names outside ASCII in their xn-- form. Raises Invalid."""
    text = value.strip().lower().rstrip(".") if isinstance(value, str) else ""
    try:
        text = text.encode("idna").decode() if not text.isascii() else text
    except UnicodeError:
        text = ""
    if not DOMAIN.match(text) or text.endswith(".localhost"):
        hint = "use a full host name, for example models.example.com"
        raise Invalid(f"spec.domain_name is {str(value)[:80]!r}, not a domain that can be served", hint=hint)
    return text


def given(body: object) -> Json:
    """{"domain", "targets", "allowlist"} of a new ingress. Raises Invalid, Unsupported."""
    spec = table(table(body, "the body").get("spec"), "spec")
    refuse(spec, _NOT_YET)
    return {
        "domain": domain(spec.get("domain_name")),
        "targets": targets(spec.get("endpoints")),
        "allowlist": _allowlist(spec),
    }


def changed(now: Json, body: object) -> Json:
    """`now` after a PATCH. The domain of an ingress does not change. Raises Invalid, Unsupported."""
    spec = table(table(body, "the body").get("spec"), "spec")
    refuse(spec, _NOT_YET)
    known = ("endpoints", "auth_config", "domain_name", "locality")
    if not any(field in spec for field in known):
        raise Invalid("no valid field to update", hint="a patch changes spec.endpoints or spec.auth_config")
    if "domain_name" in spec and domain(spec["domain_name"]) != now["domain"]:
        raise Invalid("the domain of an ingress does not change", hint="make another: lep ingress create")
    new = dict(now)
    if "endpoints" in spec:
        new["targets"] = targets(spec["endpoints"])
    if "auth_config" in spec:
        new["allowlist"] = _allowlist(spec)
    return new


def targets(value: object) -> list[Json]:
    """[{"name", "weight"}] from the client's endpoints. Raises Invalid."""
    found: list[Json] = []
    for item in rows(value, "spec.endpoints"):
        name = item.get("deployment")
        if not isinstance(name, str) or not name:
            raise Invalid(
                "an entry of spec.endpoints names no deployment", hint='send {"deployment": NAME, "weight": 1}'
            )
        weight = whole(item.get("weight"), "weight", 100)
        if not 0 <= weight <= WEIGHT_MAX:
            raise Invalid(f"weight is {weight}", hint=f"use 0 to {WEIGHT_MAX}")
        if item.get("load_balance_config"):
            hint = "set it on the deployment: lep endpoint update --load-balance"
            raise Invalid("load_balance_config belongs to the deployment here", hint=hint)
        found.append({"name": name, "weight": weight})
    names = [item["name"] for item in found]
    if len(set(names)) != len(names) or len(names) > TARGETS_MAX:
        raise Invalid("spec.endpoints names a deployment twice, or too many", hint=f"each once, at most {TARGETS_MAX}")
    return found


def shown(record: Record, states: Mapping[str, bool], cname: str) -> Json:
    """An ingress. `states`: of the deployments that there are, whether each takes requests now."""
    spec = record.spec
    status, message = _status(spec["targets"], states, spec["domain"], cname)
    value: Json = {
        "domain_name": spec["domain"],
        "endpoints": [{"deployment": item["name"], "weight": item["weight"]} for item in spec["targets"]],
    }
    if spec.get("allowlist"):
        value["auth_config"] = {"ip_allowlist": list(spec["allowlist"])}
    return {
        "metadata": {**metadata(record), "created_by": spec.get("created_by", "")},
        "spec": value,
        "status": {"validation_status": status, "message": message, "expected_cname_target": cname},
        "expected_cname_target": cname,
    }


def _status(wanted: list[dict[str, Any]], states: Mapping[str, bool], name: str, cname: str) -> tuple[str, str]:
    """What can be said without asking anybody's name server: whether requests of that host would be answered."""
    gone = [item["name"] for item in wanted if item["name"] not in states]
    taken = [item["name"] for item in wanted if states.get(item["name"]) and item["weight"]]
    if not wanted:
        return "pending", f"no deployment stands behind it yet: lep ingress add-endpoint -n ID -d NAME (host {name})"
    if gone and len(gone) == len(wanted):
        return "failed", f"deployment {gone[0]} does not exist any more"
    if not taken:
        return "pending", "no deployment behind it takes requests now"
    if gone:
        return "active", f"deployment {gone[0]} does not exist any more; the others take its share"
    return "active", f"requests for {name} that reach {cname} are served"


def _allowlist(spec: Json) -> list[str]:
    value = table(spec.get("auth_config"), "spec.auth_config").get("ip_allowlist") or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Invalid("spec.auth_config.ip_allowlist is not a list of networks", hint='for example ["10.0.0.0/8"]')
    try:
        return list(Allowlist(networks=tuple(value)).networks)
    except ValueError as error:
        why = str(error).split("Value error, ")[-1].split(" [")[0]
        raise Invalid(f"spec.auth_config.ip_allowlist: {why}", hint="use addresses or networks (CIDR)") from None
