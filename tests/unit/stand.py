"""A cell as the API sees it, without processes: a real store on SQLite, and nodes that only have logs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from lepton_ai.api import Cell, app
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.client import Cloud
from lepton_ai.errors import NotFound, Unavailable
from lepton_ai.scheduler.snapshot import Node, Snapshot
from lepton_ai.settings import Settings
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record, Store
from lepton_ai.telemetry import Events, Logs
from lepton_ai.tenancy import Access, Secrets

KEY = b"k" * 32
ROLES = ("owner", "admin", "developer", "viewer", "caller")
COMMAND = {"command": ["python", "-m", "http.server", "{port}"]}


class Live:
    """The logs that nodes hold: lines by replica uid. A follower waits until the replica is in `closed`."""

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[int, str, str]]] = {}
        self.closed: set[str] = set()
        self.away: set[str] = set()
        self.readers = 0
        self.asked: list[tuple[str, str, int, int | None, bool]] = []

    async def __call__(
        self, node: str, uid: str, start_ns: int, end_ns: int | None, follow: bool
    ) -> AsyncIterator[tuple[int, str, str]]:
        self.asked.append((node, uid, start_ns, end_ns, follow))
        self.readers += 1
        try:
            async for line in self._read(node, uid, start_ns, end_ns, follow):
                yield line
        finally:
            self.readers -= 1

    async def _read(
        self, node: str, uid: str, start_ns: int, end_ns: int | None, follow: bool
    ) -> AsyncIterator[tuple[int, str, str]]:
        sent = 0
        while True:
            if node in self.away:
                raise Unavailable(f"{node} does not answer")
            if uid not in self.lines:
                raise NotFound(f"{node} knows no replica {uid}")
            closed = uid in self.closed
            lines = self.lines[uid]
            for line in lines[sent:]:
                if line[0] >= start_ns and (end_ns is None or line[0] < end_ns):
                    yield line
            sent = len(lines)
            if not follow or closed:
                return
            await asyncio.sleep(0.01)


class Stand:
    """Everything of one cell; `client(role)` asks its API in this process, `serve()` puts it on a port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms: Callable[[], int] | None = None
        self.store = Store.open(f"sqlite:///{folder}/store.db")
        self.live = Live()
        self.nodes = [Node(f"node-{n}", Resources(cpu_milli=1000, memory_mib=1024)) for n in (1, 2, 3)]
        access = Access(self.store)
        self.tokens = {role: access.issue("default", role, role)[0] for role in ROLES}  # type: ignore[arg-type]
        self.foreign = access.issue("other", "owner", "owner")[0]
        self.cell = Cell(
            store=self.store,
            access=access,
            secrets=Secrets(self.store, KEY),
            logs=Logs(folder / "logs", self.store),
            events=Events(self.store),
            blobs=LocalBlobs(folder / "blobs"),
            lake_root=folder / "lake",
            settings=Settings(home=folder),
            name="local",
            uid="cell-uid",
            api_url="http://127.0.0.1:1",
            gateway_url="http://127.0.0.1:9",
            leading=lambda: True,
            live_log=self.live,
            snapshot=lambda: Snapshot.of(self.nodes),
            blob_key=KEY,
        )
        self.app = app(self.cell)
        self._servers: list[Serving] = []
        self._clients: list[TestClient] = []
        self._clouds: list[Cloud] = []

    def client(self, role: str = "owner", token: str | None = None, ws: str = "default") -> TestClient:
        """Asks below the workspace: client.get("/x/cell")."""
        made = TestClient(
            self.app,
            base_url=f"http://cell/api/v2/workspaces/{ws}",
            headers={"authorization": f"Bearer {token or self.tokens[role]}"},
            raise_server_exceptions=False,
        )
        self._clients.append(made)
        return made

    def serve(self, port: int = 0) -> Serving:
        self._servers.append(Serving(self.app, port))
        return self._servers[-1]

    def cloud(self, url: str, role: str = "owner", **options: Any) -> Cloud:
        made = Cloud(url, self.tokens[role], **options)
        self._clouds.append(made)
        return made

    def close(self) -> None:
        for cloud in self._clouds:
            cloud.close()
        for server in self._servers:
            server.stop(force=True)
        for client in self._clients:
            client.close()
        self.app.state.lanes.close()
        self.store.close()

    # -- what the loops would do

    def node(self, name: str, **status: Any) -> Record:
        spec = {"address": "127.0.0.1", "port": 1, "capacity": {"cpu_milli": 1000, "memory_mib": 1024}}
        return self.store.create("system", "node", name, {**spec, "unschedulable": False}, status=status)

    def replica(self, owner: Record, node: str = "node-1", phase: str = "ready", **values: Any) -> Record:
        """A replica of a deployment or job as the loops record it."""
        uid = uuid7()
        spec = {
            "replica": {
                "uid": uid, "workspace": owner.workspace, "name": f"{owner.name}-1-{uid[-8:]}",
                "owner_kind": owner.kind, "owner": owner.name, "command": ["x"],
                "resources": {"cpu_milli": 200, "memory_mib": 256},
            },
            "node": node, "release": values.pop("release", 1), "worker": 0,
        }  # fmt: skip
        name = f"{owner.name}-1-{uid[-8:]}"
        return self.store.create(
            owner.workspace, "replica", name, spec, status={"phase": phase, **values}, owner_uid=owner.uid, uid=uid
        )

    def act(self, kind: str, name: str, **status: Any) -> Record:
        """Writes the status of a deployment or job, as observed now."""
        record = self.store.get("default", kind, name)
        return self.store.update(record, status={**record.status, "observed": record.generation, **status})

    def deploy(self, name: str = "web", **fields: Any) -> Record:
        """Records a deployment through the API."""
        form = {"name": name, "template": COMMAND, **fields}
        response = self.client().put(f"/x/deployments/{name}", json=form)
        assert response.status_code == 200, response.text
        return self.store.get("default", "deployment", name)

    def run(self, name: str = "count", **fields: Any) -> Record:
        """Records a job through the API."""
        response = self.client().post("/x/jobs", json={"name": name, "template": {"command": ["true"]}, **fields})
        assert response.status_code == 201, response.text
        return self.store.get("default", "job", response.json()["name"])


class Serving:
    """The application on a loopback port, on a thread of its own."""

    def __init__(self, application: Any, port: int) -> None:
        # asyncio sends small answers at once (TCP_NODELAY) only on a socket that says it is TCP.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            application, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1, loop="asyncio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        deadline_s = time.monotonic() + 30
        while not self._server.started and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert self._server.started

    def stop(self, *, force: bool = False) -> None:
        """Ends it; `force` breaks what is under way."""
        self._server.should_exit = True
        self._server.force_exit = force
        self._thread.join(timeout=30)
        self._socket.close()
