"""Streams in the memory of one process: for tests and notebooks. Everything ends with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lepton_ai.errors import Conflict, Invalid, NotFound, TooLarge
from lepton_ai.lake.bus import MESSAGE_BYTES_MAX, PARTITIONS_MAX, Delivered, Message, check_topic, partition_of
from lepton_ai.spec.base import uuid7


@dataclass(slots=True)
class _Topic:
    partitions: list[list[Delivered]]
    identity: str = field(default_factory=uuid7)
    turn: int = 0
    committed: dict[str, dict[int, int]] = field(default_factory=dict)
    members: dict[str, list[MemorySubscription]] = field(default_factory=dict)


class MemoryBus:
    """Topics in memory; `named` gives every caller of this process the same ones."""

    _named: dict[str, MemoryBus] = {}  # noqa: RUF012 - one table of the process, under its lock
    _naming = threading.Lock()

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._topics: dict[str, _Topic] = {}

    @classmethod
    def named(cls, name: str) -> MemoryBus:
        with cls._naming:
            return cls._named.setdefault(name, cls())

    def create(self, topic: str, partitions: int = 1) -> None:
        check_topic(topic)
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise Invalid(f"{partitions} partitions cannot be made", hint=f"use 1 to {PARTITIONS_MAX}")
        with self.changed:
            known = self._topics.get(topic)
            if known is not None and len(known.partitions) != partitions:
                raise Conflict(f"topic {topic} has {len(known.partitions)} partitions", hint="delete it first")
            self._topics.setdefault(topic, _Topic([[] for _ in range(partitions)]))

    def publish(self, topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        for message in messages:
            if len(message.value) > MESSAGE_BYTES_MAX:
                raise TooLarge(f"a message has {len(message.value)} bytes", hint="put large values into an object")
        places = []
        with self.changed:
            found = self.find(topic)
            for message in messages:
                found.turn += 1
                number = partition_of(message.key, len(found.partitions), found.turn)
                log = found.partitions[number]
                time_ms = time.time_ns() // 1_000_000
                item = Delivered(topic, number, len(log), message.value, message.key, dict(message.headers), time_ms)
                log.append(item)
                places.append((number, item.offset))
            self.changed.notify_all()
        return places

    def subscribe(self, topic: str, group: str) -> MemorySubscription:
        with self.changed:
            found = self.find(topic)
            member = MemorySubscription(self, topic, group)
            found.members.setdefault(group, []).append(member)
            self.rebalance(found, group)
            return member

    def identity(self, topic: str) -> str:
        with self.changed:
            return self.find(topic).identity

    def topics(self) -> dict[str, int]:
        with self.changed:
            return {name: len(topic.partitions) for name, topic in sorted(self._topics.items())}

    def delete(self, topic: str) -> None:
        with self.changed:
            self._topics.pop(topic, None)
            self.changed.notify_all()

    def close(self) -> None:
        """Nothing: the topics stay for others of this process."""

    # -- for its subscriptions, with the lock

    def find(self, topic: str) -> _Topic:
        found = self._topics.get(topic)
        if found is None:
            raise NotFound(f"there is no topic {topic[:80]!r}", hint="make it first: bus.create(topic)")
        return found

    def rebalance(self, topic: _Topic, group: str) -> None:
        """Deal the partitions anew; every member begins where the group is."""
        members = topic.members.get(group, [])
        committed = topic.committed.setdefault(group, {})
        for index, member in enumerate(members):
            own = range(index, len(topic.partitions), len(members))
            member.next = {number: committed.get(number, 0) for number in own}


class MemorySubscription:
    """A member of a group; see `bus.Subscription`."""

    def __init__(self, bus: MemoryBus, topic: str, group: str) -> None:
        self._bus, self._topic, self._group = bus, topic, group
        self._identity = bus.find(topic).identity
        self.next: dict[int, int] = {}

    def poll(self, limit: int = 500, timeout_s: float = 1.0) -> list[Delivered]:
        deadline_s = time.monotonic() + timeout_s
        with self._bus.changed:
            while True:
                topic = self._found()
                found: list[Delivered] = []
                for number, after in self.next.items():
                    new = topic.partitions[number][after : after + limit - len(found)]
                    self.next[number] = after + len(new)
                    found += new
                left_s = deadline_s - time.monotonic()
                if found or left_s <= 0:
                    return found
                self._bus.changed.wait(left_s)

    def commit(self, delivered: Iterable[Delivered]) -> None:
        with self._bus.changed:
            committed = self._found().committed.setdefault(self._group, {})
            for item in delivered:
                if item.partition in self.next:  # else another member has it by now
                    committed[item.partition] = max(committed.get(item.partition, 0), item.offset + 1)

    def _found(self) -> _Topic:
        """The topic that was subscribed to. Raises NotFound when it is gone, or was made anew."""
        topic = self._bus.find(self._topic)
        if topic.identity != self._identity:
            raise NotFound(f"topic {self._topic} was deleted and made anew", hint="subscribe again")
        return topic

    def close(self) -> None:
        with self._bus.changed:
            topic = self._bus._topics.get(self._topic)
            if topic is not None and self in topic.members.get(self._group, []):
                topic.members[self._group].remove(self)
                self._bus.rebalance(topic, self._group)
            self.next = {}
