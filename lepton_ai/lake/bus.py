"""Streams: messages in order within a partition, kept, read by groups that remember how far they are.

Owns the port; its engines are siblings (`memory`, `sqlite`, `kafka`), chosen by URL in `connect`. One conformance suite
in the tests holds for all of them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lepton_ai.errors import Invalid

TOPIC = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,198}\Z")
MESSAGE_BYTES_MAX = 1 << 20
PARTITIONS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Message:
    """What is published. Messages of one key stay in order; `key` None: any partition."""

    value: bytes
    key: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message as it is read: where it stands, and when it was published (UTC milliseconds)."""

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes | None
    headers: Mapping[str, str]
    time_ms: int


class Subscription(Protocol):
    """One member of a group. Not for several threads at once."""

    def poll(self, limit: int = 500, timeout_s: float = 1.0) -> list[Delivered]:
        """Up to `limit` messages after those polled before; none when none came in time. Raises Unavailable."""

    def commit(self, delivered: Iterable[Delivered]) -> None:
        """All up to these are done: the group begins after them the next time.

        Raises Unavailable; NotFound when the topic was deleted (and perhaps made anew) since.
        """

    def close(self) -> None:
        """Leave the group; its other members take over the partitions."""


class Bus(Protocol):
    """Topics of an engine. Thread-safe."""

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic; one that is there with as many partitions is fine. Raises Conflict, Invalid, Unavailable."""

    def publish(self, topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Publish, in order, and return each one's (partition, offset) when the engine has it for good.

        Raises NotFound, TooLarge, Unavailable (then any part of them may have been published).
        """

    def subscribe(self, topic: str, group: str) -> Subscription:
        """Join a group: each partition is read by one of its members, from the start of what the topic keeps or
        from where the group is. Raises NotFound."""

    def identity(self, topic: str) -> str:
        """What tells a topic from one of the same name that was made before or elsewhere. Raises NotFound."""

    def topics(self) -> dict[str, int]:
        """Every topic and its number of partitions."""

    def delete(self, topic: str) -> None:
        """Remove a topic and what groups know of it; one that is not there is fine."""

    def close(self) -> None: ...


def check_topic(topic: str) -> str:
    """The topic itself; raises Invalid."""
    if not TOPIC.match(topic):
        raise Invalid(f"{topic[:80]!r} is not a topic", hint="use letters, digits, '.', '_' and '-': movies.ratings")
    return topic


def partition_of(key: bytes | None, partitions: int, turn: int) -> int:
    """Where a message goes: by its key, so that those of one key stay in order; without one, in turns."""
    return (zlib.crc32(key) if key is not None else turn) % partitions
