"""Builds the gateway's own picker (picker.c) and asks Envoy whether it takes it.

Envoy loads it as a dynamic module. What is needed is a C compiler, once; without one, or when this Envoy refuses the
module, `built` answers None and the gateway does without (see `balance`). The module lies in the gateway's folder under
the name of its content and of the Envoy it was tried with, so another version of either builds and tries anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lepton_ai.gateway.balance import policy
from lepton_ai.gateway.bootstrap import binary

SOURCE = Path(__file__).with_name("picker.c")
BUILD_S, TRY_S = 60.0, 20.0
_log = logging.getLogger(__name__)


def built(folder: Path) -> Path | None:
    """The module in `folder` (made when missing), built when it is not there; None when there can be none."""
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"picker-{_version()}.so"
    if path.exists():
        return path
    content = _content()
    if content is None:
        return None
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as error:
        if name:
            Path(name).unlink(missing_ok=True)
        _log.warning("the gateway's picker was not kept: %s", error)
        return None
    return path


@functools.cache
def _version() -> str:
    """A name that is another one for another source or another Envoy."""
    envoy = binary()
    about = envoy.stat()
    seed = SOURCE.read_bytes() + f"{envoy} {about.st_size} {about.st_mtime_ns} {sys.platform}".encode()
    return hashlib.sha256(seed).hexdigest()[:16]


@functools.cache
def _content() -> bytes | None:
    """The module, built and tried once a process; None when it cannot be, and the log says why."""
    found = compiler()
    if found is None:
        _log.info("no C compiler: the gateway compares requests in flight only")
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="lepton-picker-") as folder:
            made = Path(folder) / "picker.so"
            command = [*found, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-lm"]
            if sys.platform == "darwin":
                command += ["-undefined", "dynamic_lookup"]
            subprocess.run(command, check=True, capture_output=True, timeout=BUILD_S, stdin=subprocess.DEVNULL)
            if _taken(binary(), made):
                return made.read_bytes()
            _log.warning("this Envoy does not take the gateway's picker: it compares requests in flight only")
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("the gateway's picker was not built: %s", error)
    return None


def compiler() -> list[str] | None:
    """The command of a C compiler on this machine, or None."""
    for name in ("cc", "gcc", "clang"):
        if (found := shutil.which(name)) is not None:
            return [found]
    return None


def _taken(envoy: Path, module: Path) -> bool:
    """Whether this Envoy loads it: it checks a cluster that uses it."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
    assignment = {"cluster_name": "try", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    cluster = {"name": "try", "type": "STATIC", "load_assignment": assignment, **policy(str(module))}
    text = json.dumps({"static_resources": {"clusters": [cluster]}})
    argv = [str(envoy), "--mode", "validate", "--config-yaml", text, "--disable-hot-restart", "-l", "off"]
    argv += ["--concurrency", "1"]
    done = subprocess.run(argv, capture_output=True, timeout=TRY_S, check=False, stdin=subprocess.DEVNULL)
    return done.returncode == 0
