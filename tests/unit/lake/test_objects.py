"""Objects: whole or not at all, one winner of a conditional put, keys that cannot leave the store."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict, Invalid, NotFound
from lepton_ai.lake.objects import Objects


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def test_put_get_list_head_delete(objects: Objects) -> None:
    objects.put("b/two", b"22")
    objects.put("a.csv", b"1")
    objects.put("b/one", b"")
    assert objects.get("b/two") == b"22"
    assert objects.keys() == ("a.csv", "b/one", "b/two")
    assert objects.keys("b") == objects.keys("b/") == ("b/one", "b/two")
    assert objects.keys("nothing") == ()
    assert objects.head("b/two").size_bytes == 2
    assert objects.path("b/two").read_bytes() == b"22"
    objects.delete("b/two")
    objects.delete("b/two")
    for read in (objects.get, objects.head, objects.path):
        with pytest.raises(NotFound, match="b/two"):
            read("b/two")


def test_create_has_one_winner(objects: Objects) -> None:
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            objects.put("lock", str(number).encode(), create=True)
        except Conflict:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert objects.get("lock") == str(won[0]).encode()


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\nb", "a\0b", "a\\b", "x" * 300, "a#1"]
)
def test_keys_that_leave_the_store_are_refused(objects: Objects, key: str) -> None:
    for act in (lambda: objects.put(key, b"x"), lambda: objects.get(key), lambda: objects.delete(key)):
        with pytest.raises(Invalid) as caught:
            act()
        assert caught.value.hint
    assert objects.keys() == ()
    assert os.listdir(objects._root.parent) == ["objects"]


def test_a_key_in_chinese_is_a_key(objects: Objects) -> None:
    objects.put("数据/评分.csv", b"x")
    assert objects.keys() == ("数据/评分.csv",)
    assert objects.get("数据/评分.csv") == b"x"
