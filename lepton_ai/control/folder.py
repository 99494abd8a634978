"""A cell's folder: what lies where, and cell.json, which says how the cell is to be reached and was configured.

Owns paths and that one file. It starts nothing; `cloud` writes it, the control plane and every command read it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt, DiskFull, Unavailable, Unsupported
from lepton_ai.settings import Settings, is_loopback

FORM = 1
NODES = "system"
"""The workspace in the store that nodes belong to: they are the cell's, not a tenant's."""


@dataclass(frozen=True, slots=True)
class State:
    """What cell.json holds. `nodes` are the agents that run on this machine; `settings` never holds a token."""

    name: str
    uid: str
    dir: Path
    nodes: tuple[str, ...]
    api_host: str
    api_port: int
    gateway_host: str
    gateway_port: int
    created_ms: int
    settings: Settings

    @property
    def api_url(self) -> str:
        tls = self.settings.tls_cert and not is_loopback(self.api_host)
        return f"{'https' if tls else 'http'}://{_shown(self.api_host)}:{self.api_port}"

    @property
    def gateway_url(self) -> str:
        host = self.settings.gateway_domain or _shown(self.gateway_host)
        return f"{'https' if self.settings.tls_cert else 'http'}://{host}:{self.gateway_port}"

    @property
    def token_path(self) -> Path:
        return self.dir / "token"

    @property
    def key_path(self) -> Path:
        return self.dir / "secret.key"

    @property
    def monitor_path(self) -> Path:
        """What was measured, for the next leader; may be deleted."""
        return self.dir / "monitor"

    @property
    def store_url(self) -> str:
        return self.settings.store or f"sqlite:///{self.dir / 'store.db'}"

    @property
    def lake_dir(self) -> Path:
        return self.dir / "lake"

    def node_dir(self, name: str) -> Path:
        return self.dir / "nodes" / name

    def system_dir(self, workload: str) -> Path:
        return self.dir / "system" / workload

    def write(self) -> None:
        """Write cell.json, whole or not at all. Raises DiskFull, Unavailable."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"form": FORM, "api_url": self.api_url, "gateway_url": self.gateway_url}
        del values["dir"]
        settings = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(Settings) if f.name != "token"}
        values["settings"] = settings
        path = self.dir / "cell.json"
        part = path.with_name("cell.json.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump(values, file, indent=1, ensure_ascii=False, default=str)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in (28, 122):
                raise DiskFull(f"no room to write {path}", hint=f"free space: df -h {self.dir}") from error
            raise Unavailable(f"cannot write {path}: {error.strerror}", hint=f"check: ls -ld {self.dir}") from error


def read(dir: Path) -> State | None:
    """The state of the cell in `dir`, None when there is none. Raises Corrupt, Unsupported (a newer release's)."""
    path = dir / "cell.json"
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.get("form") != FORM:
            hint = "a newer release made this cell; run: pip install --upgrade lepton-cloud"
            raise Unsupported(f"{path} has form {values.get('form')!r}, this release reads {FORM}", hint=hint)
        known = {field.name: field.type for field in dataclasses.fields(Settings)}
        given = {key: value for key, value in values["settings"].items() if key in known}
        given["home"] = Path(given["home"])
        return State(
            name=str(values["name"]),
            uid=str(values["uid"]),
            dir=dir,
            nodes=tuple(map(str, values["nodes"])),
            api_host=str(values["api_host"]),
            api_port=int(values["api_port"]),
            gateway_host=str(values["gateway_host"]),
            gateway_port=int(values["gateway_port"]),
            created_ms=int(values["created_ms"]),
            settings=Settings(**given),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"delete the cell and its data: lepton down {dir.name} --purge"
        raise Corrupt(f"{path} cannot be read ({type(error).__name__}: {error})", hint=hint) from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}", hint=f"check: ls -l {path}") from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
