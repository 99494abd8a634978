"""Streams on Kafka, through confluent-kafka (extra `kafka`): any broker that speaks its protocol.

Producers are idempotent and wait for all replicas; consumers commit by hand, so that what was not done is read again.
Credentials come from LEPTON_AI_KAFKA_* variables, never from the URL: USERNAME, PASSWORD, MECHANISM (SCRAM-SHA-512),
CA. Beyond this machine TLS is used, or the connection is refused.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepton_ai.errors import Conflict, Forbidden, Invalid, LeptonError, NotFound, TooLarge, Unavailable, Unsupported
from lepton_ai.lake.bus import MESSAGE_BYTES_MAX, PARTITIONS_MAX, Delivered, Message, check_topic
from lepton_ai.settings import is_loopback

ANSWER_S = 15.0
PUBLISH_S = 30.0
_PREFIX = "LEPTON_AI_KAFKA_"
_OPTIONS = ("replication",)


class KafkaBus:
    """Topics of the brokers `servers` (HOST:PORT, separated by commas); see `bus.Bus`."""

    def __init__(self, servers: str, options: Mapping[str, str] | None = None) -> None:
        for option in options or {}:
            if option not in _OPTIONS:
                raise Invalid(f"{option[:40]!r} is not an option of kafka://", hint=f"options: {', '.join(_OPTIONS)}")
        replication = (options or {}).get("replication", "-1")
        if not replication.lstrip("-").isdigit():
            raise Invalid(f"replication={replication[:20]!r} is not a number", hint="leave it out: the brokers know")
        try:
            import confluent_kafka
        except ImportError:
            hint = "pip install 'lepton-cloud[kafka]'"
            raise Unsupported("the Kafka client is not installed here", hint=hint) from None
        self._engine: Any = confluent_kafka
        self._replication = int(replication)
        self.config = _config(servers)
        self._lock = threading.Lock()
        self._producer: Any = None
        self._administrator: Any = None
        self._known: set[str] = set()

    def create(self, topic: str, partitions: int = 1) -> None:
        from confluent_kafka.admin import NewTopic

        check_topic(topic)
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise Invalid(f"{partitions} partitions cannot be made", hint=f"use 1 to {PARTITIONS_MAX}")
        wanted = NewTopic(topic, num_partitions=partitions, replication_factor=self._replication)
        with self._faults(topic):
            try:
                self._admin().create_topics([wanted], operation_timeout=ANSWER_S)[topic].result(ANSWER_S)
            except self._engine.KafkaException as error:
                if error.args[0].code() != self._engine.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                known = self.topics().get(topic)
                if known != partitions:
                    raise Conflict(f"topic {topic} has {known} partitions", hint="delete it first") from None
        self._await(topic, there=True)

    def publish(self, topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        for message in messages:
            if len(message.value) > MESSAGE_BYTES_MAX:
                raise TooLarge(f"a message has {len(message.value)} bytes", hint="put large values into an object")
        places: list[tuple[int, int] | None] = [None] * len(messages)
        failed: list[Any] = []

        def told(index: int, error: Any, sent: Any) -> None:
            if error is not None:
                failed.append(error)
            else:
                places[index] = (sent.partition(), sent.offset())

        # The client would wait for its whole time limit, and some brokers would make what is only asked for.
        if topic not in self._known and topic not in self.topics():
            raise NotFound(f"there is no topic {topic[:80]!r}", hint="make it first: bus.create(topic)")
        self._known.add(topic)
        with self._faults(topic):
            producer = self._producing()
            for index, message in enumerate(messages):
                headers = [(name, text.encode()) for name, text in message.headers.items()]
                arguments = {"key": message.key, "headers": headers}
                callback = lambda error, sent, index=index: told(index, error, sent)  # noqa: E731
                while True:
                    try:
                        producer.produce(check_topic(topic), message.value, on_delivery=callback, **arguments)
                        break
                    except BufferError:
                        producer.poll(0.05)
            deadline_s = time.monotonic() + PUBLISH_S
            while None in places and not failed and time.monotonic() < deadline_s:
                producer.flush(0.2)
        if failed:
            raise self._explain(failed[0], topic)
        if None in places:
            raise Unavailable(f"the brokers did not take {places.count(None)} messages within {PUBLISH_S:g} s",
                              hint="check that they run; publish again under the same keys")  # fmt: skip
        return [place for place in places if place is not None]

    def subscribe(self, topic: str, group: str) -> KafkaSubscription:
        if check_topic(topic) not in self.topics():
            raise NotFound(f"there is no topic {topic}", hint="make it first: bus.create(topic)")
        config = {
            **self.config, "group.id": group, "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "session.timeout.ms": 10_000, "topic.metadata.refresh.interval.ms": 5_000,
        }  # fmt: skip
        with self._faults(topic):
            consumer = self._engine.Consumer(config)
            consumer.subscribe([topic])
        return KafkaSubscription(self, consumer, topic)

    def identity(self, topic: str) -> str:
        """The brokers' own id of the topic; of brokers that give none, the cluster's."""
        from confluent_kafka import TopicCollection

        if check_topic(topic) not in self.topics():
            raise NotFound(f"there is no topic {topic}", hint="make it first: bus.create(topic)")
        admin = self._admin()
        try:
            found = admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_S)[topic].result(ANSWER_S)
            if found.topic_id is not None and str(found.topic_id).strip("A"):
                return str(found.topic_id)
        except (self._engine.KafkaException, TimeoutError, AttributeError):
            pass
        with self._faults(topic):
            return str(admin.list_topics(timeout=ANSWER_S).cluster_id or "cluster")

    def topics(self) -> dict[str, int]:
        with self._faults(""):
            found = self._admin().list_topics(timeout=ANSWER_S).topics
        return {
            name: len(topic.partitions)
            for name, topic in sorted(found.items())
            if topic.error is None and not name.startswith("__")
        }

    def delete(self, topic: str) -> None:
        with self._faults(topic):
            try:
                self._admin().delete_topics([check_topic(topic)], operation_timeout=ANSWER_S)[topic].result(ANSWER_S)
            except self._engine.KafkaException as error:
                if error.args[0].code() != self._engine.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        self._known.discard(topic)
        self._await(topic, there=False)

    def close(self) -> None:
        with self._lock:
            if self._producer is not None:
                self._producer.flush(PUBLISH_S)
                self._producer = None

    # -- within

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        with self._lock:
            if self._administrator is None:
                self._administrator = AdminClient(self.config)
            return self._administrator

    def _producing(self) -> Any:
        with self._lock:
            if self._producer is None:
                config = {**self.config, "enable.idempotence": True, "acks": "all", "linger.ms": 2}
                config |= {"message.timeout.ms": int(PUBLISH_S * 1000), "partitioner": "consistent_random"}
                self._producer = self._engine.Producer(config)
            return self._producer

    def _await(self, topic: str, *, there: bool) -> None:
        """Brokers tell of a change a moment after they made it."""
        deadline_s = time.monotonic() + ANSWER_S
        while (topic in self.topics()) is not there and time.monotonic() < deadline_s:
            time.sleep(0.05)

    @contextlib.contextmanager
    def _faults(self, topic: str) -> Any:
        try:
            yield
        except self._engine.KafkaException as error:
            raise self._explain(error.args[0], topic) from None

    def _explain(self, error: Any, topic: str) -> LeptonError:
        kinds, code, text = self._engine.KafkaError, error.code(), error.str()
        if code in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC):
            return NotFound(f"there is no topic {topic[:80]!r}", hint="make it first: bus.create(topic)")
        if code in (kinds.MSG_SIZE_TOO_LARGE,):
            return TooLarge(f"the brokers refuse a message of {topic}: {text}", hint="put large values into an object")
        if code in (kinds.TOPIC_AUTHORIZATION_FAILED, kinds.SASL_AUTHENTICATION_FAILED, kinds._AUTHENTICATION):
            return Forbidden(f"the brokers refuse us: {text}", hint=f"check {_PREFIX}USERNAME and {_PREFIX}PASSWORD")
        return Unavailable(f"the brokers do not answer: {text}", hint="check that they run and the address is right")


class KafkaSubscription:
    """A member of a group; see `bus.Subscription`."""

    def __init__(self, bus: KafkaBus, consumer: Any, topic: str) -> None:
        self._bus, self._consumer, self._topic = bus, consumer, topic
        self._closed = False

    def poll(self, limit: int = 500, timeout_s: float = 1.0) -> list[Delivered]:
        with self._bus._faults(self._topic):
            found = self._consumer.consume(limit, timeout=timeout_s)
        delivered = []
        for item in found:
            if item.error() is not None:
                if item.error().code() == self._bus._engine.KafkaError._PARTITION_EOF:
                    continue
                raise self._bus._explain(item.error(), self._topic)
            headers = {name: (text or b"").decode("utf-8", "replace") for name, text in item.headers() or []}
            value, time_ms = item.value() or b"", item.timestamp()[1]
            place = (item.topic(), item.partition(), item.offset())
            delivered.append(Delivered(*place, value, item.key(), headers, time_ms))
        return delivered

    def commit(self, delivered: Iterable[Delivered]) -> None:
        done: dict[tuple[str, int], int] = {}
        for item in delivered:
            key = (item.topic, item.partition)
            done[key] = max(done.get(key, 0), item.offset + 1)
        if not done:
            return
        offsets = [self._bus._engine.TopicPartition(*key, offset) for key, offset in done.items()]
        with self._bus._faults(self._topic):
            self._consumer.commit(offsets=offsets, asynchronous=False)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._bus._faults(self._topic):
                self._consumer.close()


def _config(servers: str) -> dict[str, Any]:
    given = {name.removeprefix(_PREFIX).lower(): os.environ[name] for name in os.environ if name.startswith(_PREFIX)}
    config: dict[str, Any] = {"bootstrap.servers": servers, "client.id": "lepton_ai", "log_level": 2}
    config["socket.timeout.ms"] = int(ANSWER_S * 1000)
    local = all(is_loopback((server.rpartition(":")[0] or server).strip("[]")) for server in servers.split(","))
    protocol = "PLAINTEXT" if local else "SSL"
    if given.get("ca"):
        config["ssl.ca.location"], protocol = given["ca"], "SSL"
    if given.get("username"):
        config |= {
            "sasl.username": given["username"], "sasl.password": given.get("password", ""),
            "sasl.mechanism": given.get("mechanism", "SCRAM-SHA-512"),
        }  # fmt: skip
        protocol = f"SASL_{protocol}"
    return {**config, "security.protocol": protocol}
