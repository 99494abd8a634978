"""What machine a node is on: names and sizes that do not change while its agent runs."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path

from lepton_ai.node import shim
from lepton_ai.spec.replica import Machine


def machine(folder: Path) -> Machine:
    """This machine, with the disk that `folder` lies on."""
    return Machine(
        # systemd asks not to give its id away as it is: a digest tells machines apart as well.
        id=hashlib.sha256(b"lepton_ai/machine/" + _id().encode()).hexdigest()[:16],
        network=_network(),
        hostname=platform.node()[:255],
        os=_os()[:128],
        kernel=platform.release()[:128],
        processor=_processor()[:128],
        disk_mib=shutil.disk_usage(folder).total >> 20,
    )


def _id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return f"{platform.node()} {shim.boot_id()}"


def _network() -> str:
    """Names this network namespace among those of the machine."""
    try:
        return str(os.stat("/proc/self/ns/net").st_ino)
    except OSError:
        return ""


def _os() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME") or platform.system()
    except OSError:
        return f"{platform.system()} {platform.mac_ver()[0]}".strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or os.uname().machine
