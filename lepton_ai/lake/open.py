"""Which lake: the one place where a lake's URL is read. `file://PATH` or a plain path."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lepton_ai.errors import DiskFull, Invalid, Unsupported
from lepton_ai.lake.lake import Lake


def open(url: str | os.PathLike[str]) -> Lake:
    """The lake at `url`, whose folder is made (0700) when it is missing.

    Raises Unsupported for other schemes, Invalid for a path that cannot be a folder, DiskFull.
    """
    root = folder(os.fspath(url))
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise Invalid(f"{root} is a file, not a folder", hint="name a folder for the lake") from None
    except OSError as error:
        if error.errno == 28:
            raise DiskFull(f"no room to make {root}", hint="free some space, or choose another disk") from None
        raise Invalid(f"cannot make {root}: {error.strerror}", hint="choose a folder that you may write") from None
    return Lake(root)


def folder(url: str) -> Path:
    """The folder that a lake URL names."""
    if "://" not in url:
        if not url:
            raise Invalid("the lake's address is empty", hint="use file:///PATH, or a path")
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise Unsupported(f"objects on {parts.scheme}:// are not part of this release", hint="use file:///PATH")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise Invalid(f"{url!r} is not the address of a folder", hint="use file:///PATH with three slashes")
    return Path(unquote(parts.path))
