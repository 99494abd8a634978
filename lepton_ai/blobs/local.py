"""Bytes by digest in a folder: ROOT/sha256/AB/HEX, each written whole or not at all.

Owns the files under its root. Does not know who needs a blob, nor where else it is (see `fetch`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lepton_ai.errors import Corrupt, DiskFull, Invalid, NotFound

CHUNK_BYTES = 1 << 20
SEAL_NS = 1_000_000_000
"""Modification time given to every blob: any later write through the file or a link to it changes that."""
STALE_S = 24 * 3600
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Blob:
    """What `put` stored."""

    digest: str
    size_bytes: int


class LocalBlobs:
    """A store of blobs in `root` (made with mode 0700). Several processes may use one root at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._new = root / "new"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._new.mkdir(mode=0o700, exist_ok=True)
        (root / "sha256").mkdir(mode=0o700, exist_ok=True)
        self._sweep()

    def put(self, source: Readable | bytes | Path, *, digest: str | None = None, size_bytes: int | None = None) -> Blob:
        """Store bytes, a stream or a file; with `digest` or `size_bytes`, only if they are as told.

        Raises:
            Corrupt: digest or size differ. Reading stops at the first byte over `size_bytes`.
            DiskFull: no room.
            Invalid: `digest` is not ``sha256:`` and 64 hex digits.
        """
        if digest is not None:
            _check(digest)
        temporary = self._new / secrets.token_hex(12)
        try:
            with contextlib.ExitStack() as stack:
                if isinstance(source, Path):
                    source = stack.enter_context(open(source, "rb"))
                stream = io.BytesIO(source) if isinstance(source, bytes) else source
                blob = _copy(stream, temporary, size_bytes)
            if size_bytes is not None and blob.size_bytes != size_bytes:
                raise Corrupt(f"got {blob.size_bytes} bytes of {size_bytes}", hint="fetch it again")
            if digest is not None and blob.digest != digest:
                raise Corrupt(f"the bytes have digest {blob.digest}, not {digest}", hint="fetch it again")
            os.utime(temporary, ns=(SEAL_NS, SEAL_NS))
            path = self._path(blob.digest)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(temporary, path)
            _sync_folder(path.parent)
            return blob
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no room for a blob in {self.root}", hint="free space on the device") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """The file that holds a blob; read-only. Raises NotFound."""
        path = self._path(digest)
        if not path.is_file():
            raise NotFound(f"blob {digest} is not here")
        return path

    def open(self, digest: str) -> BinaryIO:
        """A blob as a stream; raises NotFound."""
        return open(self.path(digest), "rb")

    def has(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def intact(self, digest: str) -> bool:
        """Whether the blob is here and unchanged. Cheap while its seal holds; else its bytes are read again."""
        path = self._path(digest)
        try:
            if path.stat().st_mtime_ns == SEAL_NS:
                return True
            with open(path, "rb") as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
                    return False
            os.utime(path, ns=(SEAL_NS, SEAL_NS))
            return True
        except FileNotFoundError:
            return False

    def delete(self, digest: str) -> None:
        """Forget a blob; one that is not here is fine. Open files and links to it stay readable."""
        self._path(digest).unlink(missing_ok=True)

    def list(self) -> Iterator[Blob]:
        """Every blob here, by digest."""
        for folder in sorted((self.root / "sha256").iterdir()):
            for path in sorted(folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    yield Blob(f"sha256:{path.name}", path.stat().st_size)

    def _path(self, digest: str) -> Path:
        name = _check(digest)
        return self.root / "sha256" / name[:2] / name

    def _sweep(self) -> None:
        """Remove what a writer that died left half written; a day old, as another process may be writing now."""
        for path in self._new.iterdir():
            with contextlib.suppress(FileNotFoundError):
                # The file system's own clock on both sides: a wrong wall clock removes nothing in use.
                if self._new.stat().st_mtime - path.stat().st_mtime > STALE_S:
                    path.unlink()


def _check(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise Invalid(f"{digest!r} is not a digest", hint="a digest is sha256: and 64 hexadecimal digits")
    return digest.removeprefix("sha256:")


def _copy(stream: Readable, path: Path, limit: int | None) -> Blob:
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with open(fd, "wb", buffering=0) as file:
        while chunk := stream.read(CHUNK_BYTES):
            size += len(chunk)
            if limit is not None and size > limit:
                raise Corrupt(f"more than the {limit} bytes that were told", hint="fetch it again")
            digest.update(chunk)
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]
        os.fsync(fd)
    return Blob(f"sha256:{digest.hexdigest()}", size)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
