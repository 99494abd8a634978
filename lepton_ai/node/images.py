"""Images of a container engine: fetched from their registries, and removed again by age and size.

Owns a file that says which images the nodes of a cell fetched, and when each was used last; others are never removed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import DiskFull, Failed, Forbidden, Invalid, LeptonError, NotFound, Unavailable
from lepton_ai.node import shim
from lepton_ai.node.engine import Away, Engine, Refused
from lepton_ai.spec.replica import RegistryLogin

SILENT_S = 300.0
"""a registry that sends nothing for so long is away"""
SAY_S = 2.0
HUB = "docker.io"
_HUB_NAMES = (HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
_AWAY = (
    "connection refused", "timeout", "timed out", "deadline exceeded", "unreachable", "no route to host",
    "connection reset", "temporary failure", ": eof", "tls:", "x509:", "server gave http response", "bad gateway",
    "service unavailable", "toomanyrequests", "too many requests",
)  # fmt: skip
_DENIED = ("unauthorized", "no basic auth credentials", "authentication required", "access denied", "denied:")
_ABSENT = ("manifest unknown", "not found", "name unknown", "does not exist", "repository name not known")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """An image that is here. `note`: what to know about how it came; `config`: what it says about itself."""

    id: str
    digest: str
    config: dict[str, Any]
    note: str = ""


class Images:
    """The images of one engine, as the nodes of a cell use them. Safe to use from threads and processes.

    Args:
        path: the file that says which were fetched.
        max_mib, max_days: images that no container uses are removed beyond these, the longest unused first.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        *,
        max_mib: int = 20 << 10,
        max_days: float = 14,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._engine, self._path, self._now_ms = engine, path, now_ms
        self.max_mib, self.max_days = max_mib, max_days

    def fetch(self, name: str, logins: Sequence[RegistryLogin], say: Callable[[str], None]) -> Image:
        """The image of that name: by digest as it is here, by tag as its registry has it now.

        When a registry does not answer, an image that is here is used, and `note` says so.

        Raises:
            Invalid: no name of an image. NotFound, Forbidden: what its registry says. Unavailable: the registry or
            the engine does not answer. DiskFull. Failed: anything else, with the last line that was said.
        """
        before = self.find(name)
        mine = before is not None and self._may(before.id, logins)
        if before is not None and mine and "@" in name:
            self._record(name, before, fetched=False)
            return before
        try:
            login = self._pull(name, logins, say, known=before is not None)
        except Unavailable as error:
            if before is None or not mine:
                raise
            note = f"lepton: {error.message}: running the image that is here ({before.digest or before.id})"
            say(note)
            _log.warning("%s", note)
            self._record(name, before, fetched=False)
            return Image(before.id, before.digest, before.config, note)
        found = self.find(name)
        if found is None:
            raise Failed(f"image {name} was fetched, but is not here", hint="another program may remove images")
        self._record(name, found, fetched=before is None or before.id != found.id, login=login)
        return found

    def find(self, name: str) -> Image | None:
        """The image of that name or id, if it is here. Raises Unavailable, Invalid."""
        try:
            found = self._engine.ask("GET", f"/images/{_path(name)}/json")
        except Refused as error:
            if error.status == 404:
                return None
            raise Invalid(f"{name[:200]!r} is no name of an image: {error.message}", hint=_NAME_HINT) from error
        except Away as error:
            raise away(self._engine, error) from error
        repository = split(name)[0]
        digests = [text for text in found.get("RepoDigests") or () if text.partition("@")[0] == repository]
        return Image(str(found["Id"]), (digests or [""])[0], dict(found.get("Config") or {}))

    def clean(self) -> list[str]:
        """Remove what is too old or too much; returns the names. Never one that a container uses."""
        with self._locked() as records:
            busy = self._busy()
            now_ms = self._now_ms()
            for id in busy & set(records):
                records[id]["used_ms"] = now_ms
            order = sorted((id for id in records if id not in busy), key=lambda id: records[id]["used_ms"])
            total_mib = sum(one["size_bytes"] for one in records.values()) >> 20
            removed = []
            for id in order:
                old = now_ms - records[id]["used_ms"] > self.max_days * 86_400_000
                if not old and total_mib <= self.max_mib:
                    continue
                if self._remove(id, records[id]["names"]):
                    total_mib -= records[id]["size_bytes"] >> 20
                    removed += records.pop(id)["names"]
        for name in removed:
            _log.info("removed image %s", name)
        return removed

    # --- the engine -----------------------------------------------------------------------------------------------

    def _pull(
        self, name: str, logins: Sequence[RegistryLogin], say: Callable[[str], None], known: bool
    ) -> RegistryLogin | None:
        """The login that it took; raises what `fetch` does. One that is refused is not the end while there are more."""
        host = registry(name)
        fitting = [login for login in logins if _host(login.registry) == host]
        for number, login in enumerate([*fitting] or [None]):
            try:
                if known:  # then the engine may not ask the registry, which has to say who may have it
                    self._verify(name, login)
                self._pull_once(name, login, say)
                return login
            except Forbidden:
                if number + 1 >= len(fitting):
                    raise
        raise AssertionError("unreachable")

    def _verify(self, name: str, login: RegistryLogin | None) -> None:
        headers = {} if login is None else {"X-Registry-Auth": _auth(login)}
        try:
            self._engine.ask("GET", f"/distribution/{_path(name)}/json", headers=headers)
        except Refused as error:
            raise refused(name, error.message, login) from error
        except Away as error:
            raise away(self._engine, error) from error

    def _pull_once(self, name: str, login: RegistryLogin | None, say: Callable[[str], None]) -> None:
        repository, tag = split(name)
        headers = {} if login is None else {"X-Registry-Auth": _auth(login)}
        layers: dict[str, tuple[int, int]] = {}
        said_s = time.monotonic()
        query = {"fromImage": repository, "tag": tag}
        try:
            events = self._engine.stream("POST", "/images/create", query=query, headers=headers, timeout_s=SILENT_S)
            for event in events:
                if "error" in event:
                    raise refused(name, str(event["error"]), login)
                _count(layers, event)
                if time.monotonic() - said_s > SAY_S:
                    said_s = time.monotonic()
                    say(_progress(name, layers))
        except Refused as error:
            if error.status == 400:
                raise Invalid(f"{name[:200]!r} is no name of an image: {error.message}", hint=_NAME_HINT) from error
            raise refused(name, error.message, login) from error
        except Away as error:
            raise away(self._engine, error) from error
        except ValueError as error:
            raise Failed(f"image {name}: the engine's answer cannot be read ({error})") from error

    def _busy(self) -> set[str]:
        """The images of every container, running or not."""
        try:
            return {str(one["ImageID"]) for one in self._engine.ask("GET", "/containers/json", query={"all": 1})}
        except (Away, Refused) as error:
            raise away(self._engine, error) from error

    def _remove(self, id: str, names: Sequence[str]) -> bool:
        """Take our names off it, then it. Never by force; what somebody else named too is left to them."""
        try:
            for name in names:
                found = self.find(name)
                if found is not None and found.id == id:
                    self._delete(name)
            if (left := self._tags(id)) is not None and not left:
                self._delete(id)
            return self._tags(id) is None or id not in self._busy()  # a container may have come to use it
        except (Away, Refused, LeptonError) as error:
            _log.warning("cannot remove image %s: %s", id, error)
            return False

    def _delete(self, name: str) -> None:
        try:
            self._engine.ask("DELETE", f"/images/{_path(name)}")
        except Refused as error:
            if error.status not in (404, 409):  # 409: a container uses it
                raise

    def _tags(self, id: str) -> list[str] | None:
        try:
            return list(self._engine.ask("GET", f"/images/{id}/json").get("RepoTags") or ())
        except Refused as error:
            if error.status == 404:
                return None
            raise

    # --- the record -----------------------------------------------------------------------------------------------

    def _may(self, id: str, logins: Sequence[RegistryLogin]) -> bool:
        """Whether an image that is here may be used without asking its registry: what one workspace's login fetched
        is nobody's who does not have that login."""
        with self._locked() as records:
            known = records.get(id)
            if known is None or known["open"]:
                return True
            return any(_key(login, known["salt"]) in known["keys"] for login in logins)

    def _record(self, name: str, image: Image, *, fetched: bool, login: RegistryLogin | None = None) -> None:
        with self._locked() as records:
            if image.id not in records and not fetched:
                return  # somebody else's
            size = 0
            with contextlib.suppress(Away, Refused):
                size = int(self._engine.ask("GET", f"/images/{image.id}/json").get("Size") or 0)
            fresh = {"names": [], "fetched_ms": self._now_ms(), "open": login is None, "salt": os.urandom(8).hex()}
            known = records.setdefault(image.id, {**fresh, "keys": []})
            names = {*known["names"], name, *([image.digest] if image.digest else [])}
            known.update(names=sorted(names), size_bytes=size, used_ms=self._now_ms())
            if login is not None:
                known["keys"] = sorted({*known["keys"], _key(login, known["salt"])})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, dict[str, Any]]]:
        """The record, to be changed; only one process at a time does."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            records = (shim.read_record(str(self._path)) or {}).get("images") or {}
            before = json.dumps(records)
            yield records
            if json.dumps(records) != before:
                with contextlib.suppress(OSError):  # a full disk: they are recorded at their next use
                    shim.write_record(str(self._path), {"images": records})
        finally:
            os.close(fd)


_NAME_HINT = "for example: python:3.12, nvcr.io/nvidia/pytorch:24.05-py3, NAME@sha256:DIGEST"


def away(engine: Engine, error: Exception) -> Unavailable:
    """The engine does not answer."""
    return Unavailable(f"the container engine at {engine.path} does not answer: {error}", hint="check: docker info")


def refused(name: str, text: str, login: RegistryLogin | None) -> LeptonError:
    """Why an image cannot be had, in words, with what was said."""
    host, said = registry(name), " ".join(text.split())[:300]
    lower = said.lower()
    if "no space left" in lower:
        return DiskFull(f"image {name}: no space left on the node ({said})", hint="free space, or set images_max_gib")
    if "no such host" in lower:
        return Unavailable(f"image {name}: there is no host {host} ({said})", hint="check the image's name")
    absent = any(sign in lower for sign in _ABSENT)
    if any(sign in lower for sign in _DENIED):
        why = f"registry {host} wants a login" if login is None else f"registry {host} refuses user {login.username}"
        why += ", or has no such image" if absent else ""
        hint = "keep one (PUT x/registries/NAME), and name it in image_pull_secrets"
        return Forbidden(f"image {name}: {why} ({said})", hint=hint)
    if absent:
        return NotFound(f"image {name}: registry {host} has no such image ({said})", hint="check its name and tag")
    if any(sign in lower for sign in _AWAY):
        return Unavailable(f"image {name}: registry {host} does not answer ({said})", hint="try again later")
    return Failed(f"image {name} cannot be fetched: {said}")


def split(name: str) -> tuple[str, str]:
    """(repository, tag or digest)."""
    repository, at, digest = name.partition("@")
    head, slash, last = repository.rpartition("/")
    last, colon, tag = last.partition(":")
    bare = f"{head}{slash}{last}"
    return (bare, digest) if at else (bare, tag if colon else "latest")


def registry(name: str) -> str:
    """The host that an image's name is looked up at."""
    first, slash, _ = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return _host(first)
    return HUB


def _host(text: str) -> str:
    host = text.strip().lower().partition("://")[2] or text.strip().lower()
    host = host.partition("/")[0]
    return HUB if host in _HUB_NAMES else host


def _auth(login: RegistryLogin) -> str:
    server = "https://index.docker.io/v1/" if _host(login.registry) == HUB else _host(login.registry)
    values = {"username": login.username, "password": login.password, "serveraddress": server}
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode("ascii")


def _key(login: RegistryLogin, salt: str) -> str:
    """Tells a login from others without telling it."""
    text = "\0".join((_host(login.registry), login.username, login.password))
    return hashlib.scrypt(text.encode(), salt=salt.encode(), n=1 << 12, r=8, p=1, dklen=16).hex()


def _path(name: str) -> str:
    """A name as part of a path: what would lead elsewhere is no name."""
    if not re.fullmatch(r"[\w.:@/-]+", name, re.ASCII) or {"", ".", ".."} & set(name.split("/")):
        raise Invalid(f"{name[:200]!r} is no name of an image", hint=_NAME_HINT)
    return name


def _count(layers: dict[str, tuple[int, int]], event: dict[str, Any]) -> None:
    layer, status = str(event.get("id", "")), str(event.get("status", ""))
    detail = event.get("progressDetail") or {}
    if status == "Downloading" and detail.get("total"):
        layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
    elif status in ("Download complete", "Pull complete") and layer in layers:
        layers[layer] = (layers[layer][1], layers[layer][1])


def _progress(name: str, layers: dict[str, tuple[int, int]]) -> str:
    done, total = (sum(pair[side] for pair in layers.values()) for side in (0, 1))
    if not total:
        return f"fetching image {name}"
    if done == total:
        return f"unpacking image {name}"
    return f"fetching image {name}: {done >> 20} of {total >> 20} MiB"
