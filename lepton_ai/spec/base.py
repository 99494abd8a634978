"""The base of every model in the vocabulary, names, identities and times."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

SPEC_VERSION = 1
"""Version of the stored form of the models in this package; a migration raises it."""

NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name of a workspace, deployment, job, model, node: a DNS label that starts with a letter."""


class Model(BaseModel):
    """A frozen value; unknown fields are refused so that a typing error in a spec is never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_name(value: str) -> bool:
    """Whether `value` is a valid :data:`Name`."""
    return _NAME.match(value) is not None


_uuid_lock = threading.Lock()
_uuid_last = (0, 0)


def uuid7() -> str:
    """A new UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then a counter and randomness.

    Values made by one process are strictly increasing, also within a millisecond and when the clock goes back.
    """
    global _uuid_last
    with _uuid_lock:
        now_ms = time.time_ns() // 1_000_000
        last_ms, counter = _uuid_last
        if now_ms > last_ms:
            last_ms, counter = now_ms, int.from_bytes(os.urandom(2)) & 0x7FF
        else:
            counter += 1
            if counter > 0xFFF:
                last_ms, counter = last_ms + 1, 0
        _uuid_last = (last_ms, counter)
    tail = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    value = (last_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | tail
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
