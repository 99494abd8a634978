"""One file in which a leader writes down what it measured: small, whole or not at all, and no loss when it is lost.

Owns the file's form: a line of JSON that says how long each part is, then the parts. What is in them is `monitor`'s.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt

FORM = "lepton-memo-1"
MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Memo:
    """`newest_ms`: UTC of the newest sample in it. `about`: JSON. `rings`: bytes by name."""

    newest_ms: int
    about: Mapping[str, Any] = field(default_factory=dict)
    rings: Mapping[str, bytes] = field(default_factory=dict)


def write(path: Path, memo: Memo) -> None:
    """Put it in the place of the file that is there. Raises OSError."""
    about = json.dumps(dict(memo.about)).encode()
    parts = {"about": about, **memo.rings}
    body = b"".join(parts.values())
    head = {"form": FORM, "newest_ms": memo.newest_ms, "parts": {name: len(data) for name, data in parts.items()}}
    head["check"] = zlib.crc32(body)
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(json.dumps(head).encode() + b"\n" + body)
    part.replace(path)


def read(path: Path) -> Memo:
    """Raises Corrupt when it is not whole, OSError."""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    try:
        first, body = data.split(b"\n", 1)
        head = json.loads(first)
        if head["form"] != FORM or zlib.crc32(body) != head["check"]:
            raise ValueError("its form or its checksum is another")
        parts, start = {}, 0
        for name, length in head["parts"].items():
            parts[str(name)] = body[start : start + int(length)]
            start += int(length)
        return Memo(int(head["newest_ms"]), dict(json.loads(parts.pop("about"))), parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path.name} cannot be read: {error}", hint="it may be deleted: it grows again") from None
