"""The files that the Envoys and the activator read: written whole, by rename, readable by their owner only."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt, DiskFull
from lepton_ai.gateway.resources import Paths, Rendered, Resource, endpoints_file, version
from lepton_ai.gateway.sockets import sockets
from lepton_ai.gateway.upstream import Upstream


class Files:
    """The gateway's folder."""

    def __init__(self, folder: Path, upstream: Upstream | None = None, picker: Path | None = None) -> None:
        self.folder, self._upstream, self._picker = folder.absolute(), upstream, picker
        self.endpoints = self.folder / "endpoints"
        for path in (self.folder, self.endpoints):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        self.sockets = sockets(self.folder)
        self.listeners = self.folder / "listeners.json"
        self.clusters = self.folder / "clusters.json"
        self.routes = self.folder / "routes.json"
        self.wanted = self.folder / "wanted.json"
        self.held = self.folder / "activator.json"

    def paths(self) -> Paths:
        """What the resources must name."""
        picker = None if self._picker is None else str(self._picker)
        return Paths(str(self.routes), str(self.endpoints), str(self.activator_socket()), self._upstream, picker)

    def admin_socket(self, number: int) -> Path:
        return self.sockets / f"envoy-{number}.sock"

    def activator_socket(self) -> Path:
        return self.sockets / "activator.sock"

    def bootstrap(self, number: int) -> Path:
        return self.folder / f"envoy-{number}.json"

    def endpoints_path(self, cluster: str) -> Path:
        return self.endpoints / endpoints_file(cluster)

    def write_resources(self, path: Path, resources: list[Resource]) -> str:
        """A discovery file; returns the version that an Envoy will show once it has taken it."""
        name = version(resources)
        write(path, {"version_info": name, "resources": resources})
        return name

    def read_rendered(self) -> Rendered:
        """What is on disk now: what an Envoy that starts will serve. Empty where a file is missing."""
        clusters = self._resources(self.clusters)
        endpoints = {}
        for cluster in clusters:
            found = self._resources(self.endpoints_path(cluster["name"]))
            if found:
                endpoints[cluster["name"]] = found[0]
        return Rendered(self._resources(self.listeners), clusters, self._resources(self.routes), endpoints)

    def _resources(self, path: Path) -> tuple[Resource, ...]:
        try:
            return tuple((read(path) or {}).get("resources", ()))
        except Corrupt:
            return ()  # cut off by a crash of the machine: as good as missing, the next publish writes it

    def sweep(self, clusters: frozenset[str]) -> None:
        """Removes the endpoint files of clusters that no Envoy reads any more."""
        kept = {endpoints_file(name) for name in clusters}
        for path in self.endpoints.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def write(path: Path, document: Any) -> None:
    """Replaces `path` in one step, mode 0600.

    Raises:
        DiskFull: it could not be written; the old file is untouched.
    """
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, sort_keys=True, separators=(",", ":"))
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise DiskFull(f"cannot write {path}: {error.strerror}", hint="free some space on the device") from None


def read(path: Path) -> Any:
    """The document in `path`, or None when there is none.

    Raises:
        Corrupt: it is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise Corrupt(f"{path} is not JSON", hint=f"delete {path}; it is written again") from None
