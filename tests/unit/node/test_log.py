"""The shim's log, fed by hand: stamps, cutting, the rate, and a disk without room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.node.shim import LINE_BYTES, Log, _pieces


def texts(folder: Path) -> list[str]:
    data = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
    return [line.split(" ", 2)[2] for line in data.splitlines()]


def test_chunks_are_joined_to_lines(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1 << 20, 1 << 20)
    log.feed("o", b"one\ntw")
    log.feed("e", b"other\n")
    log.feed("o", b"o\r\nrest")
    log.close()
    assert texts(tmp_path) == ["one", "other", "two", "rest"]


def test_stamps_grow_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(str(tmp_path), 1 << 20, 1 << 20)
    for now in (1_700_000_000_000_000_000, 1_600_000_000_000_000_000):
        monkeypatch.setattr("time.time_ns", lambda now=now: now)
        log.feed("o", b"a\nb\n")
    stamps = [int(line.split(" ")[0]) for line in (tmp_path / "000001.log").read_text().splitlines()]
    assert stamps == [1_700_000_000_000_000_000 + i for i in range(4)]
    assert Log(str(tmp_path), 1 << 20, 1 << 20).last_ns == stamps[-1]


def test_what_is_over_the_rate_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log = Log(str(tmp_path), 1 << 20, 1000)
    log.rate, log.tokens = 1000, 1000.0
    log.feed("o", b"x" * 1499 + b"\n")
    log.feed("o", b"lost\nlost too\nhalf")
    now[0] += 5
    log.feed("o", b" lost\nkept\n")
    log.close()
    assert texts(tmp_path)[1:] == ["[lepton: 3 lines (24 bytes) dropped, over 1000 bytes/s]", "kept"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_lines_and_says_so(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1 << 20, 1 << 20)
    log.feed("o", b"before\n")
    good, log.fd = log.fd, os.open("/dev/full", os.O_WRONLY)
    log.feed("o", b"lost\n")
    os.close(log.fd)
    log.fd = good
    log.feed("o", b"after\n")
    log.close()
    found = texts(tmp_path)
    assert found[0] == "before"
    assert found[-1].startswith("[lepton:") or found[-1] == "after"
    assert any("No space left" in text for text in found)


@given(st.text(min_size=0, max_size=50), st.integers(0, 2000))
def test_pieces_lose_nothing_and_cut_between_characters(text: str, times: int) -> None:
    data = (text * times).encode()
    pieces = list(_pieces(data))
    assert b"".join(pieces) == data
    assert all(len(piece) <= LINE_BYTES for piece in pieces)
    assert all(piece.decode() is not None for piece in pieces)
