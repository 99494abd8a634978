"""Objects: whole or not at all, one winner of a conditional put, keys that cannot leave the store; sealed or not."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict, Corrupt, Invalid, NotFound, Unsupported
from lepton_ai.lake.keys import Keyring
from lepton_ai.lake.objects import PIECE_BYTES, Objects
from lepton_ai.lake.place import Place

KEK = bytes(range(32))


@pytest.fixture(params=["folder", "sealed folder", "memory"])
def objects(tmp_path: Path, request: pytest.FixtureRequest) -> Objects:
    if request.param == "memory":
        return Objects(Place.of(f"memory://b{abs(hash(tmp_path)):x}"))
    place = Place.of(tmp_path)
    return Objects(place.below("objects"), Keyring(place, KEK) if request.param == "sealed folder" else None)


@pytest.fixture
def folder(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def test_put_get_list_head_delete(objects: Objects) -> None:
    objects.put("b/two", b"22")
    objects.put("a.csv", b"1")
    objects.put("b/one", b"")

    assert [objects.get(key) for key in ("a.csv", "b/one", "b/two")] == [b"1", b"", b"22"]
    assert objects.keys() == ("a.csv", "b/one", "b/two")
    assert objects.keys("b") == objects.keys("b/") == ("b/one", "b/two")
    assert objects.keys("nothing") == ()
    assert objects.size("b/two") == 2
    objects.delete("b/two")
    objects.delete("b/two")
    for read in (objects.get, objects.head, objects.size):
        with pytest.raises(NotFound, match="b/two"):
            read("b/two")


def test_a_range_is_what_a_slice_is(objects: Objects) -> None:
    data = random.Random(1).randbytes(700_000)
    objects.put("big", data)

    for start, end in ((0, 0), (0, 1), (5, 700_000), (262_143, 262_146), (699_999, 900_000), (800_000, 900_000)):
        assert objects.read("big", start, end) == data[start:end]
    with pytest.raises(Invalid):
        objects.read("big", 5, 4)


def test_pieces_and_files_are_stored_as_they_are(objects: Objects, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2 * PIECE_BYTES + 17)
    (tmp_path / "file").write_bytes(data)
    objects.put("pieces", (data[at : at + 99_999] for at in range(0, len(data), 99_999)))
    objects.put("file", tmp_path / "file")
    objects.put("nothing", iter([]))
    objects.copy("file", "copied/file")

    assert objects.get("pieces") == objects.get("file") == objects.get("copied/file") == data
    assert objects.get("nothing") == b""
    with pytest.raises(Invalid, match="cannot read"):
        objects.put("gone", tmp_path / "no-such-file")
    assert "gone" not in objects.keys()  # noqa: SIM118


def test_a_producer_that_breaks_leaves_nothing(objects: Objects) -> None:
    objects.put("key", b"before")

    def broken() -> object:
        yield b"x" * PIECE_BYTES
        yield b"x" * PIECE_BYTES
        raise RuntimeError("the source is gone")

    with pytest.raises(Exception, match="the source is gone"):
        objects.put("key", broken())  # type: ignore[arg-type]
    assert objects.get("key") == b"before"
    assert objects.keys() == ("key",)


def race(attempt: Callable[[int], None], count: int = 8) -> list[int]:
    won: list[int] = []

    def one(number: int) -> None:
        try:
            attempt(number)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_create_has_one_winner(objects: Objects) -> None:
    won = race(lambda number: objects.put("lock", str(number).encode(), create=True))

    assert len(won) == 1
    assert objects.get("lock") == str(won[0]).encode()


def test_a_replacement_has_one_winner(objects: Objects) -> None:
    objects.put("owner", b"nobody")
    etag = objects.head("owner").etag
    won = race(lambda number: objects.put("owner", f"owner {number}".encode(), replaces=etag))

    assert len(won) == 1
    assert objects.get("owner") == f"owner {won[0]}".encode()
    with pytest.raises(Conflict):
        objects.put("owner", b"late", replaces=etag)
    with pytest.raises((Conflict, NotFound)):
        objects.put("nothing", b"x", replaces=etag)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\nb", "a\0b", "a\\b", "x" * 300, "a#1"]
)
def test_keys_that_leave_the_store_are_refused(folder: Objects, tmp_path: Path, key: str) -> None:
    for act in (lambda: folder.put(key, b"x"), lambda: folder.get(key), lambda: folder.delete(key)):
        with pytest.raises(Invalid) as caught:
            act()
        assert caught.value.hint
    assert folder.keys() == ()
    assert os.listdir(tmp_path) == ["objects"]


def test_a_key_in_chinese_is_a_key(objects: Objects) -> None:
    objects.put("数据/评分.csv", b"x")
    assert objects.keys() == ("数据/评分.csv",)
    assert objects.get("数据/评分.csv") == b"x"


def test_plain_files_have_a_path_and_sealed_ones_none(folder: Objects, tmp_path: Path) -> None:
    folder.put("a/b", b"1")
    assert folder.path("a/b").read_bytes() == b"1"
    sealed = Objects(Place.of(tmp_path / "sealed"), Keyring(Place.of(tmp_path / "ring"), KEK))
    sealed.put("a/b", b"1")
    with pytest.raises(Invalid, match="no plain file"):
        sealed.path("a/b")


# -- sealed


def test_a_read_beside_a_put_is_of_one_version(objects: Objects) -> None:
    versions = [bytes([number]) * 300_000 for number in range(40)]
    objects.put("key", versions[0])
    stop = threading.Event()

    def write() -> None:
        for version in versions * 3:
            objects.put("key", version)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        piece = objects.read("key", 100_000, 290_000)
        assert len(piece) == 190_000
        assert len(set(piece)) == 1
    writer.join()


def test_a_key_below_one_that_was_deleted_can_be_put(objects: Objects) -> None:
    objects.put("a/b", b"1")
    objects.delete("a/b")
    objects.put("a", b"2")
    assert objects.get("a") == b"2"


def test_what_only_begins_like_a_sealed_stream_is_kept(folder: Objects) -> None:
    folder.put("notes", b"LPC1 my notes")
    assert folder.get("notes") == b"LPC1 my notes"


def test_tables_of_a_lake_with_a_key_are_refused(tmp_path: Path) -> None:
    import lepton_ai.lake

    with lepton_ai.lake.open(tmp_path, key=KEK) as lake, pytest.raises(Unsupported, match="plain text"):
        lake.table("secret")


def test_what_lies_sealed_tells_nothing_and_is_not_confused_with_plain_bytes(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    sealed, plain = Objects(place.below("objects"), Keyring(place, KEK)), Objects(place.below("objects"))
    sealed.put("a", b"a secret of mine " * 1000)
    plain.put("b", b"planted")

    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"secret of mine" not in file.read_bytes()
    with pytest.raises(Corrupt, match="sealed"):
        plain.get("a")
    with pytest.raises(Corrupt, match="does not begin"):
        sealed.get("b")


def test_rotating_the_key_rewrites_no_data(tmp_path: Path) -> None:
    place, new = Place.of(tmp_path), bytes(reversed(KEK))
    ring = Keyring(place, KEK)
    objects = Objects(place.below("objects"), ring)
    for number in range(5):
        objects.put(f"o/{number}", os.urandom(1000))
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "objects").glob("o/?")}
    data = [objects.get(f"o/{number}") for number in range(5)]
    ring.rotate(new)
    ring.renew()
    objects.put("o/new", b"under the renewed key")

    again = Objects(place.below("objects"), Keyring(place, new))
    assert [again.get(f"o/{number}") for number in range(5)] == data
    assert again.get("o/new") == b"under the renewed key"
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in before} == before
    with pytest.raises(Corrupt, match="another key"):
        Objects(place.below("objects"), Keyring(place, KEK)).get("o/1")
    assert len(list((tmp_path / "keys").iterdir())) == 1, "no ring is left that the old key opens"


def test_one_sealed_object_is_not_another(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    objects = Objects(place.below("objects"), Keyring(place, KEK))
    objects.put("a", b"of a")
    objects.put("b", b"of b")
    objects.copy("a", "c")
    assert objects.get("c") == b"of a"
    files = [tmp_path / "objects" / name for name in "ab"]
    one, other = (file.read_bytes() for file in files)
    files[0].write_bytes(other)
    files[1].write_bytes(one)
    for key in "ab":
        with pytest.raises(Corrupt):
            objects.get(key)
        with pytest.raises(Corrupt):
            objects.read(key, 0, 4)


def test_others_seal_under_a_renewed_key_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.of(tmp_path)
    one, other = Keyring(place, KEK), Keyring(place, KEK)
    before = other.active()
    one.renew()
    assert other.active() == before
    monkeypatch.setattr("lepton_ai.lake.keys.LOOK_S", -1.0)
    assert other.active() == one.active() != before


def test_two_that_open_a_new_lake_at_once_get_one_ring(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    rings = [Keyring(place, KEK) for _ in range(6)]
    threads = [threading.Thread(target=ring.active) for ring in rings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({ring.active() for ring in rings}) == 1


def test_a_changed_ring_is_noticed(tmp_path: Path) -> None:
    place = Place.of(tmp_path)
    Keyring(place, KEK).active()
    file = next((tmp_path / "keys").glob("ring-*"))
    good = file.read_text()
    wrapped = next(iter(json.loads(good)["keys"].values()))
    changed = good.replace(wrapped, wrapped[:-1] + ("0" if wrapped[-1] != "0" else "1"))
    for bad in ("", "{}", good[:-20], good.replace("keys", "kexs"), changed, good.replace('"kek": "', '"kek": "0')):
        assert bad != good
        file.write_text(bad)
        with pytest.raises(Corrupt):
            Keyring(place, KEK).active()


# -- places


@pytest.mark.parametrize(
    "url",
    ["", "file://host/x", "file:///x?y=1", "s3://", "s3://UPPER/x", "s3://user:secret@bucket", "s3://bucket/a/../b",
     "s3://bucket?color=red", "s3://bucket?endpoint=http://10.0.0.1:1", "s3://bucket?endpoint=nonsense"],
)  # fmt: skip
def test_addresses_that_mean_nothing_safe_are_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Place.of(url)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(Unsupported, match="ftp"):
        Place.of("ftp://host/x")


@pytest.mark.parametrize("url", ["/data/x", "s3://bucket/a/b?endpoint=http%3A%2F%2F127.0.0.1%3A8333&region=x", "gs://bucket",
                                 "az://container/x?account=me"])  # fmt: skip
def test_an_address_is_read_back(url: str) -> None:
    place = Place.of(url)
    assert Place.of(place.url) == place
    assert Place.of(place.below("tables").url) == place.below("tables")
