"""An identity names one process, never the next one of the same number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lepton_ai.node import shim
from lepton_ai.node.identity import Identity


def test_this_process() -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    assert me.alive()
    assert me == Identity.of(os.getpid())
    assert me.kill(0)


@pytest.mark.parametrize("field", ["start_ticks", "boot_id"])
def test_another_process_of_the_same_number_is_not_signalled(field: str) -> None:
    me = Identity.of(os.getpid())
    assert me is not None
    other = Identity(me.pid, me.start_ticks + (field == "start_ticks"), me.boot_id + "x" * (field == "boot_id"))
    assert not other.alive()
    assert not other.kill(9)
    assert other.open() is None


def test_no_such_process() -> None:
    assert Identity.of(2**22 + 1) is None


def test_torn_record_is_absent(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"pid": 1, "sta')
    assert Identity.read(tmp_path / "a") is None
    (tmp_path / "b").write_text('{"pid": 1}')
    assert Identity.read(tmp_path / "b") is None
    assert Identity.read(tmp_path / "c") is None


def test_a_record_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "record"
    for value in ({"a": "x" * 3000}, {"a": 1}):
        shim.write_record(str(path), value)
        assert shim.read_record(str(path)) == value
        assert json.loads(path.read_text()) == value
    assert path.stat().st_mode & 0o777 == 0o600
