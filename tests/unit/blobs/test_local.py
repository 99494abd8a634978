"""A local store keeps whole blobs only, and knows when one was changed behind its back."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.blobs.local import Blob, LocalBlobs
from lepton_ai.errors import Corrupt, DiskFull, Invalid, NotFound


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def left_over(blobs: LocalBlobs) -> list[Path]:
    return list((blobs.root / "new").iterdir())


@given(st.binary(max_size=5000))
def test_what_is_put_is_there(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    blobs = LocalBlobs(tmp_path_factory.mktemp("blobs"))
    blob = blobs.put(data)
    assert blob == Blob(digest_of(data), len(data))
    assert blobs.path(blob.digest).read_bytes() == data
    assert blobs.put(io.BytesIO(data)) == blob
    assert list(blobs.list()) == [blob]


def test_a_file_can_be_put_and_deleted(blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    digest = blobs.put(tmp_path / "file").digest
    with blobs.open(digest) as file:
        assert file.read() == b"abc"
    assert blobs.path(digest).stat().st_mode & 0o777 == 0o400
    assert blobs.root.stat().st_mode & 0o077 == 0
    blobs.delete(digest)
    blobs.delete(digest)
    assert not blobs.has(digest)
    with pytest.raises(NotFound):
        blobs.path(digest)


def test_other_bytes_than_told_are_refused(blobs: LocalBlobs) -> None:
    for data, size in ((b"abd", None), (b"ab", 3), (b"abcd", 3)):
        with pytest.raises(Corrupt):
            blobs.put(data, digest=digest_of(b"abc"), size_bytes=size)
    assert list(blobs.list()) == []
    assert left_over(blobs) == []


def test_a_full_disk_keeps_nothing_half_written(blobs: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as caught:
        blobs.put(b"abc")
    assert caught.value.hint
    assert left_over(blobs) == []
    assert not blobs.has(digest_of(b"abc"))


def test_a_reader_that_breaks_off_leaves_nothing(blobs: LocalBlobs) -> None:
    class Broken:
        def read(self, size: int, /) -> bytes:
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        blobs.put(Broken())
    assert left_over(blobs) == []


def test_a_change_through_a_link_is_noticed(blobs: LocalBlobs, tmp_path: Path) -> None:
    digest = blobs.put(b"weights").digest
    os.link(blobs.path(digest), tmp_path / "link")
    assert blobs.intact(digest)
    os.chmod(tmp_path / "link", 0o600)
    os.utime(tmp_path / "link")
    assert blobs.intact(digest), "touched, not changed"
    (tmp_path / "link").write_bytes(b"weighty")
    assert not blobs.intact(digest)
    assert not blobs.intact(digest_of(b"absent"))


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc", "md5:" + "0" * 64, "sha256:" + "A" * 64])
def test_what_is_no_digest(blobs: LocalBlobs, digest: str) -> None:
    for verb in (blobs.path, blobs.has, blobs.delete, blobs.intact):
        with pytest.raises(Invalid):
            verb(digest)


def test_stale_halves_are_swept_and_fresh_ones_kept(blobs: LocalBlobs) -> None:
    stale, fresh = blobs.root / "new" / "stale", blobs.root / "new" / "fresh"
    for path in (stale, fresh):
        path.touch()
    os.utime(stale, (1, 1))
    LocalBlobs(blobs.root)
    assert left_over(blobs) == [fresh]
