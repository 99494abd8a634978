"""Objects and tables on a distributed file system of one's own: a real SeaweedFS, whole and with losses."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

import pytest
from weeds import Weeds

import lepton_ai.lake
from lepton_ai.errors import Conflict, Forbidden, LeptonError, NotFound
from lepton_ai.lake.keys import Keyring
from lepton_ai.lake.objects import PIECE_BYTES, Objects
from lepton_ai.lake.place import Place
from lepton_ai.lake.query import QueryWorker

T = TypeVar("T")


@pytest.fixture(params=["plain", "sealed"])
def objects(weeds: Weeds, request: pytest.FixtureRequest) -> Objects:
    place = Place.of(weeds.seaweed.url).below(f"t{random.getrandbits(64):x}")
    return Objects(place.below("objects"), Keyring(place, bytes(range(32))) if request.param == "sealed" else None)


def test_objects_are_what_was_put(objects: Objects) -> None:
    data = random.Random(3).randbytes(2 * PIECE_BYTES + 99)
    objects.put("a/small", b"1")
    objects.put("数据/空", b"")
    objects.put("a/big", (data[at : at + 70_000] for at in range(0, len(data), 70_000)))
    objects.copy("a/big", "b/copy")

    assert objects.get("a/small") == b"1"
    assert objects.get("数据/空") == b""
    assert objects.get("b/copy") == data
    assert objects.read("a/big", 5_000_000, 5_300_000) == data[5_000_000:5_300_000]
    assert objects.keys() == ("a/big", "a/small", "b/copy", "数据/空")
    assert objects.keys("a") == ("a/big", "a/small")
    objects.delete("a/small")
    objects.delete("a/small")
    with pytest.raises(NotFound):
        objects.get("a/small")


def test_conditional_puts_have_one_winner(objects: Objects) -> None:
    for round_ in range(2):
        won: list[int] = []

        def attempt(number: int, key: str = f"owner-{round_}", won: list[int] = won) -> None:
            try:
                objects.put(key, str(number).encode(), create=True)
            except Conflict:
                return
            won.append(number)

        threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert objects.get(f"owner-{round_}") == str(won[0]).encode()
    etag = objects.head("owner-0").etag
    objects.put("owner-0", b"next", replaces=etag)
    with pytest.raises(Conflict):
        objects.put("owner-0", b"late", replaces=etag)
    assert objects.get("owner-0") == b"next"


def test_wrong_credentials_are_said_and_ports_behind_it_serve_nobody(weeds: Weeds) -> None:
    place = Place.of(weeds.seaweed.url)
    Objects(place.below("mine")).put("x", b"precious")
    config = json.loads((weeds.seaweed.folder / "s3.json").read_text())
    assert (weeds.seaweed.folder / "s3.json").stat().st_mode & 0o077 == 0
    import obstore
    from obstore.store import S3Store

    wrong = S3Store(
        "lake", config={"endpoint": f"http://127.0.0.1:{weeds.seaweed._port('s3')}", "region": "us-east-1"},
        access_key_id=config["identities"][0]["credentials"][0]["accessKey"], secret_access_key="wrong",
        client_options={"allow_http": True},
    )  # fmt: skip
    with pytest.raises(Exception, match=r"403|denied|Forbidden|Signature"):
        obstore.get(wrong, "mine/x")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{weeds.seaweed._port('filer')}/buckets/lake/mine/x", timeout=10)
    assert refused.value.code == 401
    refused.value.close()


def test_tables_and_sql_in_a_bucket(weeds: Weeds) -> None:
    lake = lepton_ai.lake.open(Place.of(weeds.seaweed.url).below(f"l{random.getrandbits(64):x}").url)
    table = lake.table("ratings")
    assert lake.tables() == []
    table.create({"user": [1, 2], "stars": [5.0, 3.0]})
    table.append({"user": [3], "stars": [4.0]}, transaction="load-1")
    table.append({"user": [3], "stars": [4.0]}, transaction="load-1")

    assert lake.tables() == ["ratings"]
    assert table.version().version == 2
    assert table.rows() == 3
    assert lake.table("ratings@1").read().num_rows == 2
    with QueryWorker(lake.url) as worker:
        assert worker.query("SELECT count(*), sum(stars) FROM ratings").rows == [[3, 12.0]]
        assert worker.query("SELECT count(*) FROM ratings@1").rows == [[2]]


def test_a_lost_volume_server_loses_no_read_and_no_write(weeds: Weeds) -> None:
    objects = Objects(Place.of(weeds.seaweed.url).below(f"v{random.getrandbits(64):x}"))
    data = {f"k/{number}": os.urandom(20_000) for number in range(30)}
    for key, value in data.items():
        objects.put(key, value)
    weeds.kill("volume-2")
    try:
        for key, value in data.items():
            assert objects.get(key) == value
        for number in range(30):
            patient(lambda number=number: objects.put(f"new/{number}", b"written meanwhile"))
    finally:
        weeds.start("volume-2")
        weeds.await_ready()
    assert len(objects.keys("new")) == 30


def test_a_lost_filer_is_back_with_everything(weeds: Weeds) -> None:
    objects = Objects(Place.of(weeds.seaweed.url).below(f"f{random.getrandbits(64):x}"))
    data = {f"k/{number}": os.urandom(5_000) for number in range(10)}
    for key, value in data.items():
        objects.put(key, value)
    weeds.kill("filer")
    weeds.start("filer")
    for key, value in data.items():
        assert patient(lambda key=key: objects.get(key)) == value


def test_everything_outlives_a_restart_of_all(weeds: Weeds) -> None:
    objects = Objects(Place.of(weeds.seaweed.url).below(f"r{random.getrandbits(64):x}"))
    objects.put("kept", b"kept")
    weeds.kill()
    with pytest.raises(LeptonError) as caught:
        objects.get("kept")
    assert caught.value.hint
    assert not isinstance(caught.value, NotFound | Forbidden)
    assert weeds.seaweed.status().problems
    weeds.start()
    weeds.await_ready()
    assert objects.get("kept") == b"kept"


def patient(act: Callable[[], T]) -> T:
    """`act`, again while the store comes back."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return act()
        except LeptonError:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
