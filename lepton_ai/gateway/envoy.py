"""The gateway by Envoy: several Envoys on one port, all reading the same folder of files.

Owns when a set is written, in which order, and what happens when it is refused. Starts no Envoy: `argv` says how, and
whoever composes the cell runs it under a shim. Nothing here is needed for requests to be served: the files are.

The order of writing makes before it breaks: new endpoints and clusters first, then routes, then what is no longer used
goes. (Envoy's own advice for eventually consistent discovery: CDS, EDS, LDS, RDS; make before break.)
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt, Invalid, LeptonError, Unavailable
from lepton_ai.gateway import confirm as confirmation
from lepton_ai.gateway import files as disk
from lepton_ai.gateway.admin import Admin
from lepton_ai.gateway.bootstrap import binary, bootstrap
from lepton_ai.gateway.confirm import CLUSTERS, LISTENERS, ROUTES, confirm, endpoints_of
from lepton_ai.gateway.files import Files
from lepton_ai.gateway.listener import Listen
from lepton_ai.gateway.picker import built
from lepton_ai.gateway.resources import Rendered, Resource, render, version
from lepton_ai.gateway.stats import PATTERN, Stats
from lepton_ai.gateway.upstream import Upstream
from lepton_ai.gateway.validate import validate
from lepton_ai.spec.route import Routes, RouteStats

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What a `publish` did. `confirmed` Envoys took it; one that was not running reads it when it starts."""

    version: str
    changed: bool
    confirmed: int


class EnvoyGateway:
    """`count` Envoys on one port and their files in `folder`.

    Args:
        folder: mode 0700; made when missing. What is in it survives everything: it is what an Envoy starts with.
        listen: the port; the same for the life of the cell.
        count: Envoys that share the port (numbered from 1).
        hold_s: how long the activator may hold a request.
        confirm_s: how long a running Envoy may take to accept a change.
        upstream: how replicas on other hosts are spoken to; without it there are none.
        picker: whether requests are placed by the gateway's own picker, where it can be built.
    """

    def __init__(
        self,
        folder: Path,
        listen: Listen,
        count: int = 2,
        *,
        hold_s: float = 120.0,
        confirm_s: float = 10.0,
        upstream: Upstream | None = None,
        picker: bool = True,
    ) -> None:
        self.listen = listen
        self._files, self._upstream = Files(Path(folder), upstream, built(Path(folder)) if picker else None), upstream
        self._hold_s = hold_s
        self._confirm_s = confirm_s
        self._admins = [Admin(self._files.admin_socket(number)) for number in range(1, count + 1)]
        self._stats = Stats()
        self._lock = threading.Lock()
        for number in range(1, count + 1):
            start = bootstrap(
                f"envoy-{number}",
                str(self._files.admin_socket(number)),
                str(self._files.listeners),
                str(self._files.clusters),
            )
            disk.write(self._files.bootstrap(number), start)
        self._routes = self._last_routes()
        self._rendered = self._last_rendered()

    def argv(self, number: int) -> list[str]:
        """Command line of Envoy `number` (from 1). It needs no environment and no particular folder."""
        return [
            str(binary()),
            *("-c", str(self._files.bootstrap(number))),
            *("--concurrency", "1", "--disable-hot-restart", "--drain-time-s", "5"),
            *("-l", "warning", "--log-format", "%l %n %v", "--skip-deprecated-logs"),
        ]

    def activator_argv(self) -> list[str]:
        """Command line of the activator."""
        return [
            *(sys.executable, "-m", "lepton_ai.gateway"),
            *("--dir", str(self._files.folder), "--hold-s", str(self._hold_s)),
            *(self._upstream.arguments() if self._upstream else ()),
        ]

    def environment(self) -> dict[str, str]:
        """Environment of the Envoys and of the activator (the activator needs to find this package)."""
        return {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONUNBUFFERED": "1"}

    def publish(self, routes: Routes) -> Published:
        """Makes the gateway serve `routes`; returns when every running Envoy does.

        Only endpoints changed: a few milliseconds. Otherwise Envoy itself checks the whole set first (about 0.2 s).

        Raises:
            Invalid: the set cannot be served; what was served before still is. ``details["reason"]``: Envoy's words.
            Timeout: an Envoy did not answer in time; the files hold the new set.
        """
        with self._lock:
            wanted = render(routes, self.listen, self._files.paths(), hold_s=self._hold_s)
            old = self._rendered
            if wanted == old:
                self._remember(routes, wanted)
                return Published(_version(wanted), False, 0)
            if (wanted.listeners, wanted.clusters, wanted.routes) != (old.listeners, old.clusters, old.routes):
                validate(wanted, self._files.folder)
            disk.write(self._files.held, _held_document(routes))
            try:
                confirmed = self._apply(old, wanted)
            except Invalid:
                self._restore(old, wanted)
                raise
            except LeptonError:
                # Part of it is written: the next call starts from what an Envoy would read now.
                self._rendered = self._files.read_rendered()
                raise
            self._remember(routes, wanted)
            return Published(_version(wanted), True, confirmed)

    def stats(self, now_ms: int | None = None) -> tuple[RouteStats, ...]:
        """What was measured for every route, over all Envoys that run (one admin call each).

        Raises Unavailable when one does not answer, or none runs: nobody knows the load then, which is not the same
        as none.
        """
        read: dict[str, Mapping[str, str]] = {}
        for admin in self._admins:
            try:
                read[str(admin.path)] = admin.stats(PATTERN)
            except Unavailable:
                if admin.running():
                    raise
        if not read:
            raise Unavailable("no Envoy answers", hint="see the logs of system/envoy-1")
        at_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return self._stats.update(read, self._routes, self.held(), at_ms)

    def held(self) -> dict[str, int]:
        """Requests that the activator holds now, by "WORKSPACE/NAME"; empty when it does not answer."""
        try:
            answer = Admin(self._files.activator_socket()).json("/-/held")
        except (Unavailable, ValueError):
            return {}
        return {str(name): int(count) for name, count in answer["held"].items()}

    def wait_held(self, wait_s: float) -> dict[str, int]:
        """Like `held`, but returns only when something is held, or after `wait_s` (60 at most)."""
        try:
            answer = Admin(self._files.activator_socket(), timeout_s=wait_s + 2.0).json(f"/-/held?wait_s={wait_s:g}")
        except (Unavailable, ValueError):
            return {}
        return {str(name): int(count) for name, count in answer["held"].items()}

    def ready(self) -> bool:
        """Whether at least one Envoy takes requests."""
        return any(admin.live() for admin in self._admins)

    def live(self) -> int:
        """How many Envoys take requests."""
        return sum(admin.live() for admin in self._admins)

    # ------------------------------------------------------------------------------------------ writing

    def _apply(self, old: Rendered, new: Rendered) -> int:
        """Writes `new` over `old`, each step confirmed before the next; what goes away goes last."""
        confirmed = 0
        bridges = self._bridges(old, new)
        first = {**new.endpoints, **bridges}
        changed = {name: value for name, value in first.items() if old.endpoints.get(name) != value}
        # The file of a cluster that no Envoy knows yet is read when the cluster is: only known ones can confirm now.
        known = {cluster["name"] for cluster in old.clusters}
        self._put_endpoints({name: value for name, value in changed.items() if name not in known}, wait=False)
        confirmed = self._put_endpoints({name: value for name, value in changed.items() if name in known}) or confirmed
        gone = [cluster for cluster in old.clusters if cluster["name"] not in new.endpoints]
        both = [*new.clusters, *gone]
        if tuple(both) != old.clusters:
            confirmed = self._put({CLUSTERS: (self._files.clusters, both)})
        if bridges or new.routes != old.routes:
            self._await_healthy({name: addresses(new.endpoints[name]) for name in changed})
        if new.routes != old.routes:
            confirmed = self._put({ROUTES: (self._files.routes, list(new.routes))})
        if new.listeners != old.listeners:
            confirmed = self._put({LISTENERS: (self._files.listeners, list(new.listeners))})
        if gone:
            confirmed = self._put({CLUSTERS: (self._files.clusters, list(new.clusters))})
        confirmed = self._put_endpoints({name: new.endpoints[name] for name in bridges}) or confirmed
        self._files.sweep(frozenset(new.endpoints))
        return confirmed

    def _bridges(self, old: Rendered, new: Rendered) -> dict[str, Resource]:
        """Clusters that lose endpoints before what remains is known to be healthy, with both old and new ones."""
        bridges = {}
        for name, after in new.endpoints.items():
            before = old.endpoints.get(name)
            if before is None or not addresses(before) - addresses(after):
                continue
            kept = addresses(before) & addresses(after)
            if not addresses(after) and new.routes == old.routes:
                continue  # wanted empty, and nothing else will lead to it
            if kept and all(kept & _healthy(admin, [name])[name] for admin in self._admins if admin.running()):
                continue
            bridges[name] = bridge(before, after)
        return bridges

    def _put_endpoints(self, changed: Mapping[str, Resource], *, wait: bool = True) -> int:
        if not changed:
            return 0
        return self._put(
            {endpoints_of(name): (self._files.endpoints_path(name), [value]) for name, value in changed.items()},
            wait=wait,
        )

    def _put(self, sources: Mapping[str, tuple[Path, list[Resource]]], *, wait: bool = True) -> int:
        before = confirmation.rejections(self._admins, sources) if wait else {}
        versions = {name: self._files.write_resources(path, value) for name, (path, value) in sources.items()}
        return confirm(self._admins, versions, before, timeout_s=self._confirm_s) if wait else 0

    def _await_healthy(self, wanted: Mapping[str, set[Address]], timeout_s: float = 2.0) -> None:
        """Waits until every running Envoy has seen one healthy endpoint of each cluster, within reason."""
        waiting = {name: found for name, found in wanted.items() if found}
        deadline = time.monotonic() + timeout_s
        for admin in self._admins:
            while waiting and admin.running() and time.monotonic() < deadline:
                healthy = _healthy(admin, list(waiting))
                if all(healthy[name] & found for name, found in waiting.items()):
                    break
                time.sleep(0.003)

    def _restore(self, old: Rendered, refused: Rendered) -> None:
        """Puts the last good set back; an Envoy that refused never stopped serving it."""
        try:
            self._apply(refused, old)
            disk.write(self._files.held, _held_document(self._routes))
        except LeptonError as error:
            _log.warning("the last good routes were written but not confirmed: %s", error)

    def _remember(self, routes: Routes, rendered: Rendered) -> None:
        if routes != self._routes:
            disk.write(self._files.wanted, routes.model_dump(mode="json"))
        self._routes, self._rendered = routes, rendered

    def _last_routes(self) -> Routes:
        try:
            document = disk.read(self._files.wanted)
            return Routes() if document is None else Routes.model_validate(document)
        except (Corrupt, ValueError):
            return Routes()

    def _last_rendered(self) -> Rendered:
        """What is on disk; at the very first start, an empty set, so that an Envoy can start before any route."""
        found = self._files.read_rendered()
        empty = render(Routes(), self.listen, self._files.paths())
        if not found.routes:
            self._files.write_resources(self._files.routes, list(empty.routes))
            found = replace(found, routes=empty.routes)
        if not self._files.clusters.exists():
            self._files.write_resources(self._files.clusters, [])
        if found.listeners != empty.listeners:
            self._files.write_resources(self._files.listeners, list(empty.listeners))
            found = replace(found, listeners=empty.listeners)
        if not self._files.held.exists():
            disk.write(self._files.held, _held_document(self._routes))
        return found


def _version(rendered: Rendered) -> str:
    return version([rendered.listeners, rendered.clusters, rendered.routes, dict(rendered.endpoints)])


def _held_document(routes: Routes) -> dict[str, Any]:
    """What the activator needs to know; no tokens."""
    return {
        f"{route.workspace}/{route.name}": {
            "timeout_s": route.request_timeout_s,
            "endpoints": [
                [endpoint.address, endpoint.port, endpoint.host]
                for backend in route.backends
                if backend.weight > 0
                for endpoint in backend.endpoints
            ],
        }
        for route in routes.routes
        if route.activate
    }


Address = tuple[str, int]


def addresses(assignment: Resource) -> set[Address]:
    """The endpoints of the first level: the release's own."""
    levels = assignment["endpoints"]
    return {address for item in (levels[0]["lb_endpoints"] if levels else ()) if (address := _address(item))}


def bridge(before: Resource, after: Resource) -> Resource:
    """`after`, with the endpoints of `before` still on its first level."""
    old = [item for item in before["endpoints"][0]["lb_endpoints"] if _address(item) not in addresses(after)]
    leaving = {_address(item) for item in old}
    first, *others = after["endpoints"]
    levels = [{**first, "lb_endpoints": [*first["lb_endpoints"], *old]}]
    for level in others:
        rest = [item for item in level["lb_endpoints"] if _address(item) is None or _address(item) not in leaving]
        levels.append({**level, "lb_endpoints": rest})
    return {**after, "endpoints": levels}


def _address(item: Resource) -> Address | None:
    found = item["endpoint"]["address"].get("socket_address")
    return (str(found["address"]), int(found["port_value"])) if found else None


def _healthy(admin: Admin, clusters: list[str]) -> dict[str, set[Address]]:
    """The endpoints of each cluster that passed their health checks."""
    found: dict[str, set[Address]] = {name: set() for name in clusters}
    pattern = rf"^cluster\.({'|'.join(map(re.escape, clusters))})\.endpoint\..*\.healthy$"
    try:
        values = admin.stats(pattern)
    except Unavailable:
        return found
    for name, value in values.items():
        cluster, _, label = name.removeprefix("cluster.").removesuffix(".healthy").partition(".endpoint.")
        host, _, port = label.rpartition("_")
        if value == "1" and port.isdigit():
            # In the name of a statistic Envoy writes "_" for the colons of an IPv6 address in brackets.
            found[cluster].add((host.strip("[]").replace("_", ":"), int(port)))
    return found
