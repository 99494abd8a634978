"""What a workload wants around its process: ports beyond the served one, files of volumes, and whose it is."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lepton_ai.spec.base import Model

SYSTEM_FOLDERS = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/run",
)
"""Nothing is mounted over these, nor over the root: a workload without its own system does not start."""
LOCAL = "local"
"""The volume that every node has: a folder of the workspace's own on that node."""
MAX_LABELS = 64
_LABEL_KEY = re.compile(r"([a-z0-9A-Z.-]{1,253}/)?[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?\Z")
_LABEL_VALUE = re.compile(r"([a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?)?\Z")
PRIORITY, PRIORITY_MOST = 4000, 9999
"""What work has that asks for none, and the most that there is."""


def labelled(value: dict[str, str]) -> dict[str, str]:
    """Labels of work or of a node, as they are. Raises ValueError."""
    for key, text in value.items():
        if not _LABEL_KEY.match(key) or len(key.rpartition("/")[2]) > 63:
            raise ValueError(f"{key[:80]!r} is not a label key (at most 63 letters, digits, '.', '_', '-')")
        if not _LABEL_VALUE.match(text):
            raise ValueError(f"the value of label {key!r} is not at most 63 letters, digits, '.', '_', '-'")
    return value


def tainted(value: tuple[str, ...]) -> tuple[str, ...]:
    """Taints of a node ("key=value"), or those that work tolerates, as they are. Raises ValueError."""
    for text in value:
        key, equals, word = text.partition("=")
        if not equals:
            raise ValueError(f"{text[:80]!r} is not KEY=VALUE")
        labelled({key: word})
    return value


class Port(Model):
    """A port that a workload listens on, besides the one that is served.

    With `exposed` it is reached at (node address, a host port that the node chooses); replica reports say which.
    """

    number: int = Field(ge=1, le=65535)
    protocol: Literal["TCP", "UDP"] = "TCP"
    name: str = Field(default="", max_length=63)
    exposed: bool = False


class PortMap(Model):
    """Where a port of a replica is reached from outside it: its node's address and `host_port`."""

    number: int = Field(ge=1, le=65535)
    host_port: int = Field(ge=1, le=65535)
    protocol: Literal["TCP", "UDP"] = "TCP"
    name: str = ""


class Mount(Model):
    """A folder of a volume, seen by the workload at `target`.

    `volume` is :data:`LOCAL` or the name of a volume of the cell; `path` lies within it ("/" is all of it).
    """

    volume: str = Field(default=LOCAL, min_length=1, max_length=63)
    path: str = Field(default="/", max_length=1024)
    target: str = Field(max_length=1024)
    read_only: bool = False

    @field_validator("path", "target")
    @classmethod
    def _path(cls, value: str) -> str:
        if "\0" in value or not value.startswith("/") or ".." in value.split("/"):
            raise ValueError("must be an absolute path without '..'")
        return posixpath.normpath(value).replace("//", "/")

    @field_validator("target")
    @classmethod
    def _target(cls, value: str) -> str:
        if value == "/" or any(value == name or value.startswith(name + "/") for name in SYSTEM_FOLDERS):
            raise ValueError(f"{value} is a folder of the system: mount somewhere else, for example /mnt/data")
        return value


class Balance(Model):
    """How a gateway chooses among ready replicas. maglev keeps a caller (its address) at the same replica."""

    policy: Literal["least_request", "maglev"] = "least_request"
    choices: int | None = Field(default=None, ge=2, le=100, description="replicas compared by least_request")


class Owned(Model):
    """Whose a workload is and who sees it. `private`: its maker and the workspace's admins and owners only.

    `advisory` holds options that are kept and shown but not enforced here, as they were asked for.

    Of what waits in a workspace the larger `priority` goes first (None: as :data:`PRIORITY`). Work that `can_preempt`
    may end work of a smaller priority that is `preemptible` when it finds no room otherwise (None: neither).
    """

    labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_LABELS)
    visibility: Literal["public", "private"] = "public"
    created_by: str = Field(default="", max_length=63, description="name of the token it was made with")
    priority: int | None = Field(default=None, ge=0, le=PRIORITY_MOST)
    can_preempt: bool | None = None
    preemptible: bool | None = None
    advisory: dict[str, object] = Field(default_factory=dict)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        return labelled(value)

    @property
    def rank(self) -> int:
        """Its priority, also where it asks for none."""
        return PRIORITY if self.priority is None else self.priority


class Allowlist(Model):
    """Networks (CIDR) whose addresses may call; empty: anyone."""

    networks: tuple[str, ...] = Field(default=(), max_length=256)

    @model_validator(mode="after")
    def _networks(self) -> Self:
        for text in self.networks:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(f"{text[:60]!r} is not an address or network, for example 10.0.0.0/8") from None
        return self
