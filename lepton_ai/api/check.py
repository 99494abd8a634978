"""Input against the vocabulary: JSON that is bounded, and models whose errors name the field and the nearest one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lepton_ai.errors import Invalid

MAX_DEPTH = 32
MAX_ERRORS = 20
M = TypeVar("M", bound=BaseModel)


def parse(data: bytes) -> Any:
    """The JSON value in `data`. Raises Invalid: not JSON, not finite, a name given twice, nested deeper than 32."""
    try:
        value = json.loads(data, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, UnicodeDecodeError) as error:
        where = str(error).split("\n")[0][:200]
        raise Invalid(f"the body is not JSON: {where}", hint="send JSON with content-type: application/json") from None
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return value
    raise _too_deep()


def validated(model: type[M], value: Any, what: str, at: tuple[str, ...] = ()) -> M:
    """`value` as `model`. Raises Invalid that names the first wrong field (below `at`), all of them in details."""
    if not isinstance(value, Mapping):
        raise Invalid(f"{what} must be a JSON object, not {type(value).__name__}", hint="send {…}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # What was sent is only shown where it is a name: anything else may hold secrets.
        found = error.errors(include_url=False, include_context=False)
    # A field that is misspelt first: it is often why another is missing.
    found = sorted(found, key=lambda item: item["type"] != "extra_forbidden")[:MAX_ERRORS]
    problems = []
    for item in found:
        loc = tuple(str(part) for part in (*at, *item["loc"]))
        unknown = item["type"] == "extra_forbidden"
        text = "unknown field" if unknown else str(item["msg"]).removeprefix("Value error, ")
        problem: dict[str, Any] = {"field": ".".join(loc), "message": text}
        if item["type"] == "string_pattern_mismatch" and loc and loc[-1] == "name":
            problem["message"] = f"{str(item['input'])[:80]!r} is not a name"
            problem["hint"] = "use at most 63 lower-case letters, digits and '-', a letter first: my-movies"
        if unknown:
            problem["hint"] = _near(str(item["loc"][-1]), _fields(model, item["loc"][:-1]))
        problems.append(problem)
    first = problems[0]
    where = f"{what}: {first['field']}" if first["field"] else what
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    hint = first.get("hint") or f"correct {first['field'] or what} and send it again"
    raise Invalid(f"{where}: {first['message']}{more}", hint=hint, details={"errors": problems})


def near(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant."""
    found = difflib.get_close_matches(word, list(words), 1, 0.5)
    return found[0] if found else None


def _near(word: str, words: list[str]) -> str:
    best = near(word, words)
    return f"did you mean {best!r}?" if best else f"fields here: {', '.join(words)}"


def _fields(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    """The fields of the model that `loc` leads to from `model`."""
    here: Any = model
    for part in loc:
        field = getattr(here, "model_fields", {}).get(part)
        inner = _model(field.annotation) if field is not None else None
        here = inner or here
    return list(here.model_fields)


def _model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, list, dict):
        for part in get_args(annotation):
            if (found := _model(part)) is not None:
                return found
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a name that comes twice would mean one thing here and another elsewhere."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is given twice")
    return found


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _too_deep() -> Invalid:
    return Invalid(f"the body is nested deeper than {MAX_DEPTH}", hint="send a flatter value")
