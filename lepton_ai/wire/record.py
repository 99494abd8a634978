"""What `wire` sees of a stored record, and how it reads the public client's JSON. Owns no family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from lepton_ai.errors import Invalid, Unsupported
from lepton_ai.spec.base import NAME_PATTERN, is_name

Json = dict[str, Any]


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
    """The common head of a resource."""
    return {
        "id": record.name,
        "name": name or record.name,
        "created_at": record.created_ms,
        "last_modified_at": record.updated_ms,
        "version": record.generation,
        "visibility": "public",
    }


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


def whole(value: object, where: str, default: int) -> int:
    """`value` as a whole number, `default` for None. Raises Invalid."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise Invalid(f"{where} is {str(value)[:40]!r}, not a whole number", hint=f"for example {where} = 1")
    return int(value)


def name_of(body: object) -> str:
    """The name in `metadata` (id, else name). Raises Invalid."""
    head = table(table(body, "the body").get("metadata"), "metadata")
    name = head.get("id") or head.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise Invalid(f"metadata.id is {str(name)[:80]!r}, not a name", hint=f"names match {NAME_PATTERN}")
    return name


def environment(value: object) -> tuple[dict[str, str], dict[str, str]]:
    """`envs` as (plain values, environment name -> secret name). Raises Invalid."""
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    for item in rows(value, "spec.envs"):
        name = item.get("name")
        source = table(item.get("value_from"), "spec.envs.value_from")
        if not isinstance(name, str) or not name:
            raise Invalid("an entry of spec.envs has no name", hint='for example {"name": "A", "value": "1"}')
        if source.get("secret_name_ref"):
            secret[name] = str(source["secret_name_ref"])
        else:
            plain[name] = str(item.get("value") or "")
    return plain, secret


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
