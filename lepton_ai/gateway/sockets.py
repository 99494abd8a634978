"""Where the gateway's unix sockets are: the admin interfaces of the Envoys, and the activator."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from lepton_ai.errors import Forbidden

_PATH_MAX_BYTES = 100
"""The kernel's limit of a unix socket's path is 108 bytes on Linux and 104 on macOS."""


def sockets(folder: Path) -> Path:
    """Where the sockets are: in the folder, or, when its path is too long for a socket, in a private one.

    Raises:
        Forbidden: the private folder belongs to someone else.
    """
    if len(os.fsencode(folder / "activator.sock")) <= _PATH_MAX_BYTES:
        return folder
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"lepton-{os.getuid()}-{name}"
    private.mkdir(mode=0o700, exist_ok=True)
    facts = private.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or private.is_symlink():
        raise Forbidden(f"{private} belongs to someone else", hint="choose a shorter LEPTON_AI_HOME")
    return private
