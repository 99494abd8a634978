"""How things look in a terminal: aligned tables, sizes, ages, and errors in two lines. Without colour.

Owns text only: what is printed where is decided in `session` and `__main__`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepton_ai.errors import LeptonError

LOG_LINES = 20
VERDICTS = 3


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their headings, in columns of the same width; numbers to the right; an absent value is `-`."""
    rows = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    widths = [max([_width(name), *(_width(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    lines = []
    for row in [[name.upper() for name in columns], *cells]:
        parts = [_pad(text, widths[i], right[i]) for i, text in enumerate(row)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def fields(values: Mapping[str, object]) -> str:
    """One value a line, names aligned."""
    width = max((_width(name) for name in values), default=0)
    return "\n".join(f"{_pad(name, width, False)}  {_cell(value)}" for name, value in values.items())


def as_json(value: object, *, indent: int | None = 2) -> str:
    """JSON of anything that the client returns (pydantic models, dataclasses, mappings, paths)."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def record(value: object) -> dict[str, Any]:
    """The fields of whatever object the client returned."""
    plain = value if isinstance(value, Mapping) else _plain(value)
    assert isinstance(plain, Mapping), f"{type(value).__name__} has no fields to print"
    return dict(plain)


def error(problem: LeptonError) -> str:
    """`error: …`, what is known about it in a few lines, then `hint: …`."""
    message = problem.message.strip() or type(problem).__name__
    lines = [f"error: {message}"]
    verdicts = problem.details.get("nodes")
    if isinstance(verdicts, Mapping):
        verdicts = [{"node": node, "reason": reason} for node, reason in verdicts.items()]
    if isinstance(verdicts, Sequence) and not isinstance(verdicts, str):
        lines += [f"  {_verdict(item)}" for item in verdicts[:VERDICTS]]
        if len(verdicts) > VERDICTS:
            lines.append(f"  and {len(verdicts) - VERDICTS} more nodes")
    log = problem.details.get("log")
    if isinstance(log, str):
        log = log.splitlines()
    if isinstance(log, Sequence):
        lines += [f"  | {line}" for line in log[-LOG_LINES:]]
    if problem.hint:
        lines.append(f"hint: {problem.hint}")
    return "\n".join(lines)


def size(count_bytes: float | None) -> str:
    """Bytes for people: 1.2 MiB."""
    if count_bytes is None:
        return "-"
    value = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(since_ms: int | None, now_ms: int) -> str:
    """How long ago, in the largest whole unit: 8s, 5m, 3h, 2d."""
    if not since_ms:
        return "-"
    seconds = max(0, (now_ms - since_ms) // 1000)
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _verdict(item: object) -> str:
    if isinstance(item, Mapping):
        node = item.get("node") or item.get("name") or "?"
        why = item.get("reason") or item.get("verdict") or ""
        return f"{node}: {why}"
    return str(item)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=_plain)
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in str(value))


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _plain(value: Any) -> object:
    for name in ("model_dump", "_asdict"):
        if hasattr(value, name):
            return getattr(value, name)()
    if hasattr(value, "__dataclass_fields__"):
        return {key: getattr(value, key) for key in value.__dataclass_fields__}
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "item"):
        return value.item()
    return str(value)
