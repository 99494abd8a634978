"""Fetching believes only the digest, and says truly what went wrong."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from urllib.request import Request

import pytest

from lepton_ai.blobs.fetch import _Redirect, fetch
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.errors import Corrupt, Invalid, LeptonError, NotFound, Unavailable

DATA = b"weights" * 1000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
URL = "http://user:pw@cell/blobs/x?signature=secret"


class Peer:
    """Answers every URL with `data`, or raises."""

    def __init__(self, data: bytes = DATA, error: Exception | None = None) -> None:
        self.data, self.error, self.asked = data, error, list[tuple[str, Mapping[str, str]]]()

    def __call__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> io.BytesIO:
        self.asked.append((url, headers))
        if self.error is not None:
            raise self.error
        return io.BytesIO(self.data)


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def test_fetched_once(blobs: LocalBlobs) -> None:
    peer = Peer()
    for _ in range(2):
        path = fetch(URL, {"Authorization": "Bearer x"}, DIGEST, len(DATA), blobs, peer)
        assert path.read_bytes() == DATA
    assert peer.asked == [(URL, {"Authorization": "Bearer x"})]


def test_a_copy_that_was_changed_is_fetched_again(blobs: LocalBlobs) -> None:
    peer = Peer()
    path = fetch(URL, {}, DIGEST, len(DATA), blobs, peer)
    path.chmod(0o600)
    path.write_bytes(b"changed")
    assert fetch(URL, {}, DIGEST, len(DATA), blobs, peer).read_bytes() == DATA


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"x", b"x" * len(DATA)])
def test_other_bytes_are_not_kept(blobs: LocalBlobs, data: bytes) -> None:
    with pytest.raises(Corrupt):
        fetch(URL, {}, DIGEST, len(DATA), blobs, Peer(data))
    assert not blobs.has(DIGEST)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (urllib.error.HTTPError(URL, 404, "", Message(), io.BytesIO()), NotFound),
        (urllib.error.HTTPError(URL, 403, "", Message(), io.BytesIO()), Unavailable),
        (urllib.error.URLError("no route"), Unavailable),
        (TimeoutError("slow"), Unavailable),
        (ConnectionResetError("reset"), Unavailable),
    ],
)
def test_what_went_wrong_without_what_is_secret(blobs: LocalBlobs, error: Exception, kind: type[LeptonError]) -> None:
    with pytest.raises(kind) as caught:
        fetch(URL, {}, DIGEST, len(DATA), blobs, Peer(error=error))
    assert "cell/blobs/x" in caught.value.message
    assert "secret" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_files(blobs: LocalBlobs, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    with pytest.raises(NotFound):
        fetch(source.as_uri(), {}, DIGEST, len(DATA), blobs)
    source.write_bytes(DATA)
    assert fetch(source.as_uri(), {}, DIGEST, len(DATA), blobs).read_bytes() == DATA


def test_other_schemes(blobs: LocalBlobs) -> None:
    with pytest.raises(Invalid):
        fetch("ftp://cell/x", {}, DIGEST, len(DATA), blobs)


@pytest.mark.parametrize(("target", "kept"), [("http://cell/y", True), ("http://other/x", False)])
def test_headers_stay_with_the_first_host(target: str, kept: bool) -> None:
    request = Request("http://cell/x", headers={"Authorization": "Bearer x"})
    new = _Redirect().redirect_request(request, io.BytesIO(), 302, "", Message(), target)
    assert new is not None
    assert ("Authorization" in new.headers) is kept
