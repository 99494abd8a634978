"""What a replica's container is made of, as the Docker API's JSON: limits and rights. Pure."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict
from lepton_ai.node import cgroup
from lepton_ai.node.images import Image
from lepton_ai.node.process import NOFILE
from lepton_ai.spec.replica import ReplicaSpec

RIGHTS = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_CHROOT",
    "AUDIT_WRITE",
)  # fmt: skip
"""What ordinary images need: package managers and servers that start as root and change to a user of their own, sshd.
Of the engine's own defaults MKNOD, NET_RAW, SETFCAP and SETPCAP are left out."""
MIN_FILES_MIB = 16


def container(
    spec: ReplicaSpec, image: Image, argv: Sequence[str], env: Mapping[str, str], labels: Mapping[str, str]
) -> dict[str, Any]:
    """Without `argv` the image's own command runs. Raises Conflict when it has none."""
    memory = spec.resources.memory_mib << 20
    files = min(NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    host = {
        "Memory": memory,
        "MemorySwap": memory,  # as much again would be swapped
        "NanoCpus": max(spec.resources.cpu_milli, 10) * 1_000_000,
        "PidsLimit": cgroup.MAX_PROCESSES,
        "ShmSize": (spec.shared_memory_mib or max(MIN_FILES_MIB, spec.resources.memory_mib // 2)) << 20,
        "CapDrop": ["ALL"],
        "CapAdd": list(RIGHTS),
        "SecurityOpt": ["no-new-privileges"],
        "Ulimits": [
            {"Name": "nofile", "Soft": files, "Hard": files},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "CgroupnsMode": "private",
        "IpcMode": "private",
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none"},  # the shim keeps the log
        "Mounts": [],
    }
    if spec.devices:
        asked = {"Driver": "nvidia", "DeviceIDs": [str(device) for device in spec.devices], "Capabilities": [["gpu"]]}
        host["DeviceRequests"] = [asked]
    values: dict[str, Any] = {
        # By id: the name may mean another image by now.
        "Image": image.id,
        "Env": [f"{key}={value}" for key, value in env.items()],
        "Labels": {**labels, "lepton_ai.image": image.digest or image.id},
        "HostConfig": host,
    }
    if argv:
        values |= {"Entrypoint": list(argv), "Cmd": []}
    elif not image.config.get("Entrypoint") and not image.config.get("Cmd"):
        raise Conflict(f"image {spec.image} has no command of its own", hint="give a command")
    return values


def visible(spec: ReplicaSpec) -> dict[str, str]:
    """What a container is told of GPUs, whatever its image or its own environment says.

    In it those that it was given are numbered from 0. Who asked for none sees none, also where the engine's default
    runtime would show all of them to an image that wants them.
    """
    if spec.devices:
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in range(len(spec.devices)))}
    return {} if spec.resources.accelerator_milli else {"NVIDIA_VISIBLE_DEVICES": "void"}


def bind(create: dict[str, Any], source: Path, target: str, *, read_only: bool) -> None:
    """Show a file or folder of the host in a container that is to be created."""
    mount = {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only}
    create["HostConfig"]["Mounts"].append({**mount, "BindOptions": {"Propagation": "rprivate"}})
