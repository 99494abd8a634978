"""One gzip file of log lines: written whole and atomically, read as a stream. Owns the file's form, not the index.

A line is ``<ns> <stream> <text>``, as a shim writes it, in ascending ns. gzip, because the standard library
has it on every Python we support and an operator can read a segment with zcat.
"""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import Corrupt, DiskFull, Unavailable

LEVEL = 6
MAX_LINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Written:
    """What a segment holds; `first_ns` and `last_ns` are those of its first and last line."""

    first_ns: int
    last_ns: int
    lines: int
    size_bytes: int


def write(path: Path, lines: Iterable[tuple[int, str, str]]) -> Written:
    """Writes `path` (0600) or nothing. Equal or falling stamps are moved up, so that each line's is its own.

    Raises DiskFull or Unavailable; nothing half written stays.
    """
    part = path.with_name(path.name + ".part")
    first_ns = last_ns = count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as out:
                for ns, stream, text in lines:
                    last_ns = max(ns, last_ns + 1)
                    first_ns = first_ns or last_ns
                    count += 1
                    out.write(b"%d %s %s\n" % (last_ns, stream[:1].encode(), _bytes(text)))
            raw.flush()
            os.fsync(raw.fileno())
            size_bytes = raw.tell()
        part.rename(path)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = f"free space: df -h {path.parent}"
            raise DiskFull(f"no room to archive a log in {path.parent}", hint=hint) from error
        hint = f"check the rights: ls -ld {path.parent}"
        raise Unavailable(f"cannot write {path}: {error.strerror}", hint=hint) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return Written(first_ns, last_ns, count, size_bytes)


def read(path: Path) -> Iterator[tuple[int, str, str]]:
    """The lines of a segment, oldest first. Nothing for a file that retention has removed; raises Corrupt."""
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                ns, stream, text = line.decode("utf-8", "replace").rstrip("\n").split(" ", 2)
                yield int(ns), stream, text
    except FileNotFoundError:
        return
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        hint = f"its other lines may be readable: zcat {path}"
        raise Corrupt(f"log segment {path} is damaged ({error})", hint=hint) from error


def _bytes(text: str) -> bytes:
    # One line stays one line, and no longer than a shim would have made it.
    return text.replace("\r\n", " ").replace("\n", " ").encode("utf-8", "replace")[:MAX_LINE_BYTES]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
