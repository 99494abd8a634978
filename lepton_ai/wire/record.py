"""What `wire` sees of a stored record, and how it reads the public client's JSON. Owns no family."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

from lepton_ai.errors import Invalid, Unsupported

Json = dict[str, Any]
NAME_MAX = 36
TEXT_MAX = 4096
RESERVED_ENV = frozenset(
    {
        "LEPTON_WORKSPACE_ID", "LEPTON_DEPLOYMENT_NAME", "LEPTON_JOB_NAME", "LEPTON_RESOURCE_ACCELERATOR_TYPE",
        "LEPTON_WORKSPACE_ORIGIN_URL",
    }
)  # fmt: skip
"""What the platform itself sets for every workload."""
_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")
_ENV = re.compile(r"[A-Za-z._-][A-Za-z0-9._-]*\Z")


class Record(Protocol):
    """The fields of a record that are shown; `store.Record` has them."""

    @property
    def workspace(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def status(self) -> dict[str, Any]: ...
    @property
    def created_ms(self) -> int: ...
    @property
    def updated_ms(self) -> int: ...
    @property
    def deleting(self) -> bool: ...


def metadata(record: Record, name: str | None = None) -> Json:
    """The common head of a resource; whose it is comes from what was recorded with it."""
    spec = record.spec
    found: Json = {
        "id": record.name,
        "name": name or record.name,
        "created_at": record.created_ms,
        "last_modified_at": record.updated_ms,
        "version": record.generation,
        "visibility": spec.get("visibility") or "public",
    }
    if spec.get("labels"):
        found["labels"] = dict(spec["labels"])
    if spec.get("created_by"):
        # Who made it is also whom the client shows as its user.
        found |= {"created_by": spec["created_by"], "owner": spec["created_by"]}
    return found


def table(value: object, where: str) -> Json:
    """`value` as a JSON object; None is an empty one. Raises Invalid."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"{where} must be a JSON object, not {type(value).__name__}", hint="send {…}")
    return value


def rows(value: object, where: str) -> list[Json]:
    """`value` as an array of JSON objects; None is an empty one. Raises Invalid."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Invalid(f"{where} must be an array, not {type(value).__name__}", hint="send […]")
    return [table(item, f"{where}[{index}]") for index, item in enumerate(value)]


def whole(value: object, where: str, default: int, low: int = 0, high: int = 2**53) -> int:
    """`value` as a whole number from `low` to `high`, `default` for None. Raises Invalid."""
    if value is None:
        return default
    found = number(value, where, low, high)
    if found != int(found):
        raise Invalid(f"{where} is {_short(value)}, not a whole number", hint=f"for example {where} = 1")
    return int(found)


def number(value: object, where: str, low: float = 0.0, high: float = 1e15) -> float:
    """`value` as a number from `low` to `high`. Raises Invalid."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Invalid(f"{where} is {_short(value)}, not a number", hint=f"for example {where} = 1")
    if not low <= value <= high:
        raise Invalid(f"{where} is {_short(value)}, not between {low:g} and {high:g}", hint=f"correct {where}")
    return value


def text(value: object, where: str, limit: int = TEXT_MAX) -> str:
    """`value` as text. Raises Invalid."""
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise Invalid(f"{where} is not text of at most {limit} characters", hint=f"correct {where}")
    return value


def texts(value: object, where: str, most: int = 1024) -> list[str]:
    """`value` as an array of texts; None is an empty one. Raises Invalid."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        raise Invalid(f"{where} is not an array of at most {most} texts", hint='send ["…"]')
    return [text(item, f"{where}[{index}]") for index, item in enumerate(value)]


def truth(value: object, where: str, default: bool = False) -> bool:
    """`value` as true or false, `default` for None. Raises Invalid."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Invalid(f"{where} is {_short(value)}, neither true nor false", hint=f"correct {where}")
    return value


def name_of(body: object) -> str:
    """The name in `metadata` (id, else name) of what is to be made. Raises Invalid, by the public client's rules."""
    head = table(table(body, "the body").get("metadata"), "metadata")
    name = head.get("id") or head.get("name")
    if not isinstance(name, str) or not _NAME.match(name) or name.endswith("-") or len(name) > NAME_MAX:
        hint = f"use 1 to {NAME_MAX} lower-case letters, digits and '-', a letter first, no '-' last"
        raise Invalid(f"metadata.id is {_short(name)}, not a name", hint=hint)
    if name.endswith("by-lepton"):
        raise Invalid(f"metadata.id is {name!r}: names that end in 'by-lepton' are reserved", hint="choose another")
    return name


def head(body: object, base: Json | None = None) -> Json:
    """What `metadata` says about whose a resource is, in our words; what it leaves out comes from `base`."""
    given = table(table(body, "the body").get("metadata"), "metadata")
    found: Json = dict(base or {})
    if given.get("labels") is not None:
        labels = table(given["labels"], "metadata.labels")
        found["labels"] = {text(key, "a label"): text(value, f"label {key[:63]}") for key, value in labels.items()}
    if given.get("visibility") is not None:
        found["visibility"] = visibility(given["visibility"])
    return found


def visibility(value: object) -> Literal["public", "private"]:
    """Raises Invalid."""
    if value not in ("public", "private"):
        raise Invalid(f"metadata.visibility is {_short(value)}", hint="use public or private")
    return value


def environment(value: object) -> tuple[dict[str, str], dict[str, str]]:
    """`envs` as (plain values, environment name -> secret name); of two with a name the last counts. Raises Invalid."""
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    for item in rows(value, "spec.envs"):
        name = environment_name(item.get("name"))
        source = table(item.get("value_from"), f"the value_from of {name}")
        plain.pop(name, None)
        secret.pop(name, None)
        if source.get("secret_name_ref"):
            secret[name] = text(source["secret_name_ref"], f"the secret of {name}", 255)
        elif source:
            raise Invalid(f"spec.envs: {name} comes from nowhere", hint='{"value_from": {"secret_name_ref": NAME}}')
        else:
            given = item.get("value")
            plain[name] = "" if given is None else text(given, f"the value of {name}", 1 << 20)
    return plain, secret


def environment_name(name: object) -> str:
    """`name` if a workload may be given an environment variable of that name. Raises Invalid."""
    if not isinstance(name, str) or not _ENV.match(name) or len(name) > 255:
        hint = "use letters, digits, '.', '_' and '-', no digit first"
        raise Invalid(f"{_short(name)} is not a name of an environment variable", hint=hint)
    if name in RESERVED_ENV:
        raise Invalid(f"{name} is set by the cell itself", hint="choose another name")
    return name


def envs(plain: Mapping[str, str], secret: Mapping[str, str]) -> list[Json]:
    """The reverse of :func:`environment`."""
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "value_from": {"secret_name_ref": value}} for name, value in secret.items()),
    ]


def refuse(spec: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises Unsupported for the first of `fields` that is given and not empty."""
    for field in fields:
        value: Any = spec
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value:
            raise Unsupported(f"spec.{field} is not part of this release", hint=f"leave spec.{field} out")


def _short(value: object) -> str:
    return repr(value if isinstance(value, str | int | float | bool | None) else type(value).__name__)[:80]
