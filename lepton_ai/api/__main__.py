"""`python -m lepton_ai.api --dir CELL`: the control plane of a cell, API and loops in one process.

A composition root: settings -> adapters -> the API, the loops, and a keeper that starts the cell's own processes
again when even their shims were killed. It may die at any time: replicas and gateways go on, and the next one adopts
them. Ends on TERM.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import hmac
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lepton_ai.api import Cell, app
from lepton_ai.api.server import config
from lepton_ai.blobs import ticket
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.control import folder, hosts
from lepton_ai.control.clock import SystemClock
from lepton_ai.control.context import Services
from lepton_ai.control.leader import Leader
from lepton_ai.control.loop import Loop
from lepton_ai.control.mirror import Mirror
from lepton_ai.control.monitor import Shown
from lepton_ai.control.nodes import HttpFleet
from lepton_ai.control.options import Options
from lepton_ai.control.publish import Publisher
from lepton_ai.control.room import room
from lepton_ai.errors import Conflict, LeptonError, NotFound
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen
from lepton_ai.node import launch
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaSpec
from lepton_ai.store import Store
from lepton_ai.telemetry import Events, Logs
from lepton_ai.tenancy import Access, Secrets, load_key
from lepton_ai.tenancy.registries import Registries
from lepton_ai.tenancy.volumes import Volumes

KEEP_S = 1.0
PRUNE_S = 600.0
COLLECT = (50_000, 20, 20)
"""Rarer than Python's own: an answer of a thousand records is gone before it counts as old, so that the records that
the loops remember (a million objects with 10,000 jobs) are seldom walked: that takes a third of a second."""
_log = logging.getLogger("lepton_ai.control")


def main(argv: list[str] | None = None) -> int:
    """Serve until TERM; 0 ended, 1 could not start."""
    parser = argparse.ArgumentParser(prog="python -m lepton_ai.api", description="Run the control plane of a cell.")
    parser.add_argument("--dir", type=Path, required=True, help="the cell's folder")
    path = parser.parse_args(argv).dir.absolute()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "uvicorn.error", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        state = folder.read(path)
        if state is None:
            raise NotFound(f"there is no cell in {path}", hint="run: lepton up")
        _serve(state)
    except LeptonError as error:
        _log.error("%s", error)
        return 1
    return 0


def _serve(state: folder.State) -> None:
    listener = _listen(state.api_host, state.api_port)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.open(state.store_url))
        key = load_key(state.key_path)
        settings = state.settings
        logs = Logs(
            state.dir / "logs",
            store,
            retention_days=settings.log_retention_days,
            retention_mib=settings.log_retention_mib,
        )
        fleet = HttpFleet(lambda spec, lines: _archive(logs, spec, lines))
        stack.callback(fleet.close)
        secrets, events = Secrets(store, key), Events(store)
        blob_key = hmac.new(key, b"lepton-blob-key/1", hashlib.sha256).digest()
        loop = _loop(state, store, fleet, secrets, events, blob_key)
        cell = Cell(
            store=store,
            access=Access(store),
            secrets=secrets,
            logs=logs,
            events=events,
            blobs=LocalBlobs(state.dir / "blobs"),
            lake_root=state.lake_dir,
            settings=settings,
            name=state.name,
            uid=state.uid,
            api_url=state.api_url,
            gateway_url=state.gateway_url,
            leading=lambda: loop.leading,
            live_log=fleet.log,
            snapshot=lambda: room(store),
            blob_key=blob_key,
            pace=loop.pace.figures,
            measures=lambda: loop.monitor.shown if loop.leading else Shown(),
        )
        closing = threading.Event()
        threads = [
            threading.Thread(target=loop.run, name="control"),
            threading.Thread(target=_keep, args=(state, closing), name="keeper", daemon=True),
            threading.Thread(target=_prune, args=(logs, closing), name="prune", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            _run_api(cell, listener, state)
        finally:
            closing.set()
            loop.close()
            threads[0].join(timeout=10)
            loop.services.publisher.close()


def _loop(
    state: folder.State, store: Store, fleet: HttpFleet, secrets: Secrets, events: Events, blob_key: bytes
) -> Loop:
    settings, clock = state.settings, SystemClock()
    listen = Listen.of(settings, state.gateway_host, state.gateway_port)
    gateway = EnvoyGateway(state.dir / "gateway", listen, settings.gateways, upstream=hosts.upstream(state))
    publisher = Publisher(gateway, clock)
    base = f"{state.api_url}/api/v2/workspaces/system/x/blobs"

    def blob_url(digest: str) -> tuple[str, dict[str, str]]:
        expires_ms = clock.now_ms() + ticket.TTL_MS
        return f"{base}/{digest}", {ticket.HEADER: ticket.sign(blob_key, digest, expires_ms)}

    services = Services(
        mirror=Mirror(store),
        fleet=fleet,
        publisher=publisher,
        clock=clock,
        options=Options(
            tick_s=settings.tick_s,
            lease_s=settings.lease_s,
            node_grace_s=settings.node_grace_s,
            archive_days=settings.log_retention_days,
            rebalance_s=settings.rebalance_s,
            rebalance_patience_s=settings.rebalance_s,
        ),
        rng=random.Random(),
        new_uid=uuid7,
        secret=secrets.value,
        blob_url=blob_url,
        unseal=secrets.unseal,
        events=events,
        mount=Volumes(store).resolve,
        login=Registries(store, secrets).login,
        monitor_file=state.monitor_path,
    )
    publisher.start()
    return Loop(services, Leader(store, clock, ttl_s=settings.lease_s), store)


def _run_api(cell: Cell, listener: socket.socket, state: folder.State) -> None:
    settings = state.settings
    tls = state.api_url.startswith("https:")
    server = _Server(
        config(
            app(cell),
            ssl_certfile=settings.tls_cert if tls else None,
            ssl_keyfile=settings.tls_key if tls else None,
        )
    )
    _log.info("cell %s: the API is at %s", cell.name, cell.api_url)
    gc.freeze()  # what start-up made stays: later collections need not walk it
    gc.set_threshold(*COLLECT)
    server.run(sockets=[listener])


def _server_class() -> type:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn that takes an obeyed TERM for a success."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
            yield
            for number, handler in before.items():
                signal.signal(number, handler)

    return Server


_Server = _server_class()


def _listen(host: str, port: int) -> socket.socket:
    """The API's socket. The port may still be held for a moment by a predecessor that is being ended."""
    deadline_s = time.monotonic() + 5.0
    while True:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1024)
            return sock
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline_s:
                hint = f"see who has it: ss -ltnp 'sport = :{port}'"
                raise Conflict(f"the API cannot listen on {host}:{port}: {error.strerror}", hint=hint) from error
        time.sleep(0.05)


def _archive(logs: Logs, spec: ReplicaSpec, lines: Iterable[tuple[int, str, str]]) -> None:
    logs.archive(spec.workspace, spec.owner_kind, spec.owner, spec.uid, spec.name, lines)


def _keep(state: folder.State, closing: threading.Event) -> None:
    """Start again what lost its shim; our own shim's loss too: its successor ends us and starts the next one."""
    while not closing.wait(KEEP_S):
        for path in sorted((state.dir / "system").glob("*/spec.json")):
            if closing.is_set():
                return
            try:
                if launch.revive(path.parent):
                    _log.warning("%s had lost its shim and was started again", path.parent.name)
            except LeptonError as error:
                _log.warning("%s cannot be started again: %s", path.parent.name, error.message)


def _prune(logs: Logs, closing: threading.Event) -> None:
    while not closing.wait(PRUNE_S):
        try:
            logs.prune(time.time_ns() // 1_000_000)
        except LeptonError as error:
            _log.warning("old logs stay: %s", error.message)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that wait for a slow node must not hold up the end
