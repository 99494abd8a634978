"""What can be configured, and where each value came from.

One frozen class. Order: flag > LEPTON_AI_* environment > ./lepton.toml > HOME/config.toml > default. Nothing is
read at import time; `load` reads once and the result is handed down. Unknown keys in a file are errors, so that a
typing error never silently keeps a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.errors import Invalid

PREFIX = "LEPTON_AI_"
ISOLATIONS = ("none", "uid")


def default_home() -> Path:
    """The folder that holds every cell of this user: LEPTON_AI_HOME or ~/.lepton_ai."""
    return Path(os.environ.get(PREFIX + "HOME") or Path.home() / ".lepton_ai").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Settings:
    """Every value that can be configured. The metadata `help` is what `lepton config` prints."""

    home: Path = field(default_factory=default_home, metadata={"help": "folder of all cells"})
    cell: str = field(default="local", metadata={"help": "name of the cell that commands talk to"})
    workspace: str = field(default="default", metadata={"help": "workspace that commands talk to"})
    url: str = field(default="", metadata={"help": "address of a cell's API, when it is not on this machine"})
    token: str = field(default="", metadata={"help": "API token for `url`", "secret": True})
    store: str = field(default="", metadata={"help": "sqlite:///PATH or postgresql://…; empty: inside the cell"})
    objects: str = field(default="", metadata={"help": "file://PATH of the lake; empty: inside the cell"})
    runtime: str = field(
        default="process://",
        metadata={"help": "how replicas run: process:// or docker://[SOCKET] (containers of a Docker engine)"},
    )
    images_max_gib: int = field(default=20, metadata={"help": "images that were fetched take at most so much"})
    images_max_days: int = field(default=14, metadata={"help": "images that were fetched are kept so long unused"})
    isolation: str = field(
        default="none",
        metadata={"help": "none: workspaces trust each other; uid: a user and a network each (root on Linux)"},
    )
    cluster: str = field(
        default="local://?nodes=3",
        metadata={"help": "local://?nodes=N (shares of this machine) or static://ADDRESS:PORT,… (other hosts)"},
    )
    gateways: int = field(default=2, metadata={"help": "Envoy processes that share the gateway's port"})
    api_host: str = field(default="127.0.0.1", metadata={"help": "address the API listens on"})
    api_port: int = field(default=0, metadata={"help": "port of the API; 0: a free one, kept in the cell"})
    gateway_host: str = field(default="127.0.0.1", metadata={"help": "address the gateway listens on"})
    gateway_port: int = field(default=0, metadata={"help": "port of the gateway; 0: a free one, kept in the cell"})
    gateway_domain: str = field(
        default="", metadata={"help": "host name by which callers reach the gateway; no ingress can have it"}
    )
    tls_cert: str = field(default="", metadata={"help": "PEM file; needed to listen beyond loopback"})
    tls_key: str = field(default="", metadata={"help": "PEM file with the key of tls_cert"})
    trusted_proxies: str = field(
        default="", metadata={"help": "networks whose X-Forwarded-For the gateway believes, by commas; empty: none"}
    )
    log_retention_days: int = field(default=14, metadata={"help": "logs of ended replicas are kept so long"})
    log_retention_mib: int = field(default=2048, metadata={"help": "logs of ended replicas take at most so much"})
    lease_s: float = field(default=5.0, metadata={"help": "leader lease of the control loops"})
    node_grace_s: float = field(default=1.0, metadata={"help": "a silent node's work is replaced after this"})
    tick_s: float = field(default=0.5, metadata={"help": "the control loops look at least this often"})
    rebalance_s: float = field(
        default=30.0, metadata={"help": "how often an overloaded node may give work away; 0: never"}
    )
    price_core_hour: float = field(
        default=0.031611, metadata={"help": "USD a core and hour (default: GCE n2 us-central1, on demand)"}
    )
    price_gib_hour: float = field(
        default=0.004237, metadata={"help": "USD a GiB of memory and hour (default: GCE n2 us-central1, on demand)"}
    )

    @property
    def cell_dir(self) -> Path:
        return self.home / "cells" / self.cell


def load(flags: Mapping[str, object] | None = None, *, cwd: Path | None = None) -> Settings:
    """The settings of this process. Raises Invalid for an unknown key or a value of the wrong form."""
    return _resolve(flags or {}, cwd or Path.cwd())[0]


def explain(flags: Mapping[str, object] | None = None, *, cwd: Path | None = None) -> list[tuple[str, str, str, str]]:
    """(key, value, source, help) of every setting, secrets masked; what `lepton config` prints."""
    settings, sources = _resolve(flags or {}, cwd or Path.cwd())
    rows = []
    for item in dataclasses.fields(Settings):
        value = str(getattr(settings, item.name))
        if item.metadata.get("secret") and value:
            value = value[:4] + "…"
        rows.append((item.name, value, sources[item.name], str(item.metadata["help"])))
    return rows


def _resolve(flags: Mapping[str, object], cwd: Path) -> tuple[Settings, dict[str, str]]:
    fields = {item.name: item for item in dataclasses.fields(Settings)}
    values: dict[str, object] = {}
    sources = dict.fromkeys(fields, "default")
    home = Path(str(flags.get("home") or default_home())).expanduser().absolute()
    layers: list[tuple[str, Mapping[str, object]]] = [
        (str(home / "config.toml"), _file(home / "config.toml")),
        (str(cwd / "lepton.toml"), _file(cwd / "lepton.toml").get("settings", {})),  # type: ignore[list-item]
        ("environment", _environment()),
        ("flag", {key: value for key, value in flags.items() if value is not None}),
    ]
    for source, layer in layers:
        if not isinstance(layer, Mapping):
            raise Invalid(f"{source}: [settings] must be a table", hint="write key = value lines under [settings]")
        for key, value in layer.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                hint = f"did you mean {near[0]!r}?" if near else "run: lepton config"
                raise Invalid(f"{source}: unknown setting {key!r}", hint=hint)
            values[key] = _convert(key, value, type(getattr(_DEFAULTS, key)), source)
            sources[key] = f"{PREFIX}{key.upper()}" if source == "environment" else source
    settings = dataclasses.replace(_DEFAULTS, **{"home": home, **values})  # type: ignore[arg-type]
    _validate(settings)
    return settings, sources


_DEFAULTS = Settings(home=Path("~/.lepton_ai"))


def _environment() -> dict[str, object]:
    known = {PREFIX + item.name.upper(): item.name for item in dataclasses.fields(Settings)}
    for key in os.environ:
        # Other names may be other programs' or our own (…_DEBUG): only a near miss is surely a typing error.
        if key.startswith(PREFIX) and key not in known:
            near = difflib.get_close_matches(
                key.removeprefix(PREFIX), [name.upper() for name in known.values()], 1, 0.8
            )
            if near:
                raise Invalid(f"environment: unknown setting {key}", hint=f"did you mean {PREFIX}{near[0]}?")
    return {name: os.environ[key] for key, name in known.items() if os.environ.get(key)}


def _file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: {error}", hint="the file must be TOML, for example: gateway_port = 8600") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", hint=f"check the rights of {path}") from None


def _convert(key: str, value: object, kind: Any, source: str) -> object:
    if isinstance(value, bool):
        raise Invalid(f"{source}: {key} = {value} is not a {kind.__name__}", hint="run: lepton config")
    try:
        if kind in (str, type(Path())) and not isinstance(value, str | Path):
            raise ValueError
        if issubclass(kind, Path):
            return Path(str(value)).expanduser().absolute()
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise Invalid(f"{source}: {key} = {value!r} is not a {kind.__name__}", hint="run: lepton config") from None


def _validate(settings: Settings) -> None:
    for key in ("api_port", "gateway_port"):
        if not 0 <= getattr(settings, key) <= 65535:
            raise Invalid(f"{key} = {getattr(settings, key)} is not a port", hint="use 0 (a free one) to 65535")
    if not 1 <= settings.gateways <= 8:
        raise Invalid(f"gateways = {settings.gateways} is out of range", hint="use 1 to 8; 2 is the default")
    for key in ("lease_s", "node_grace_s", "tick_s"):
        if not 0.05 <= getattr(settings, key) <= 3600:
            raise Invalid(f"{key} = {getattr(settings, key)} is out of range", hint="use 0.05 to 3600 seconds")
    if not 0 <= settings.rebalance_s <= 86_400:
        raise Invalid(f"rebalance_s = {settings.rebalance_s} is out of range", hint="use seconds; 0: never")
    for key in ("price_core_hour", "price_gib_hour"):
        if not 0 <= getattr(settings, key) <= 1e6:
            raise Invalid(f"{key} = {getattr(settings, key)} is not a price", hint="use USD an hour, 0 or more")
    path = settings.runtime.removeprefix("docker://")
    if settings.runtime != "process://" and (path == settings.runtime or (path and not path.startswith("/"))):
        hint = "use process://, docker:// or docker:///path/to/docker.sock"
        raise Invalid(f"runtime = {settings.runtime!r} is not known", hint=hint)
    for key in ("images_max_gib", "images_max_days", "log_retention_days", "log_retention_mib"):
        if not 0 <= getattr(settings, key) <= 1_000_000:
            raise Invalid(f"{key} = {getattr(settings, key)} is out of range", hint="use 0 to 1000000")
    if settings.isolation not in ISOLATIONS:
        raise Invalid(f"isolation = {settings.isolation!r} is not known", hint=f"use {' or '.join(ISOLATIONS)}")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise Invalid("tls_cert and tls_key go together", hint="set both, or neither")
    name = settings.gateway_domain
    if name and not re.fullmatch(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*", name):
        hint = "for example cloud.example.com, without http:// and port"
        raise Invalid(f"gateway_domain = {name!r} is not a host name in lower case", hint=hint)
    for text in networks(settings.trusted_proxies):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            hint = "for example 10.0.0.0/8,192.0.2.7"
            raise Invalid(f"trusted_proxies: {text!r} is not an address or network", hint=hint) from None
    for key in ("api_host", "gateway_host"):
        host = getattr(settings, key)
        if not is_loopback(host) and not settings.tls_cert:
            raise Invalid(
                f"{key} = {host} would listen beyond this machine without TLS",
                hint="set tls_cert and tls_key, or listen on 127.0.0.1",
            )


def networks(text: str) -> tuple[str, ...]:
    """The parts of a list by commas."""
    return tuple(part for part in (word.strip() for word in text.split(",")) if part)


def is_loopback(host: str) -> bool:
    """Whether `host` names only this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
