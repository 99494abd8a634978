"""The fleet over HTTP: a connection to every agent, orders to them, and their logs.

Owns one thread with one event loop. An order is sent once and forgotten: what came of it is seen in the reports, and
control repeats what was lost. Logs of ended replicas are archived on a thread of their own before an agent forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from lepton_ai.control.ports import NodeAddress, NodeView
from lepton_ai.control.transport import Where, failed, where
from lepton_ai.errors import LeptonError, NotFound, Unavailable
from lepton_ai.spec.replica import NodeReport, ReplicaSpec

SILENT_S = 2.0
RETRY_FIRST_S, RETRY_MOST_S = 0.05, 1.0
ORDER_S = 10.0
KEEPALIVE_S = 2.0
LEADS_S = 3.0
"""Exclusive work is renewed so long after the loop last said that it leads: less than another needs to take over."""
LOG_SILENT_S = 30.0
REFUSALS_MAX = 256
NOT_THE_ORDER = frozenset({401, 403, 404, 409})
"""Refusals that say nothing of the replica: who asked, or that another leads."""

Archive = Callable[[ReplicaSpec, Iterable[tuple[int, str, str]]], None]
_log = logging.getLogger(__name__)


class HttpFleet:
    """The agents of a cell; see `ports.Fleet`. `archive` keeps the log of an ended replica."""

    def __init__(self, archive: Archive | None = None) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        self._epoch, self._led_s = 0, 0.0
        self._changed: Callable[[], None] = lambda: None
        self._archiving: set[str] = set()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="archive")
        self._ended = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of every agent; what runs there runs on. A second call does nothing."""
        with self._lock:
            if self._ended.is_set():
                return
            links = list(self._links.values())
            self._ended.set()
            self._links.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        asyncio.run_coroutine_threadsafe(self._end(links), self._loop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def connect(self, nodes: Sequence[NodeAddress], epoch: int) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self._epoch, self._led_s = epoch, time.monotonic()
            wanted = {node.name: node for node in nodes} if epoch else {}
            for name in [name for name, link in self._links.items() if wanted.get(name) != link.node]:
                link = self._links.pop(name)
                asyncio.run_coroutine_threadsafe(link.close(), self._loop)
            for name, node in wanted.items():
                if name not in self._links:
                    link = self._links[name] = _Link(node, self._note, self._leads)
                    self._loop.call_soon_threadsafe(link.open)

    def nodes(self) -> Mapping[str, NodeView]:
        with self._lock:
            return {name: replace(link.view, refused=dict(link.refused)) for name, link in self._links.items()}

    def apply(self, node: str, spec: ReplicaSpec, epoch: int) -> None:
        # Agents of earlier releases know no `devices`: they are told of them only where there are any.
        body = spec.model_dump_json(exclude=None if spec.devices else {"devices"}).encode()
        self._send(node, epoch, "PUT", f"/v1/replicas/{spec.uid}", body)

    def stop(self, node: str, uid: str, grace_s: float | None, epoch: int) -> None:
        query = "" if grace_s is None else f"?grace_s={grace_s:g}"
        self._send(node, epoch, "DELETE", f"/v1/replicas/{uid}{query}")

    def forget(self, node: str, uid: str, epoch: int, spec: ReplicaSpec | None) -> None:
        with self._lock:
            link = self._links.get(node)
            if link is None or uid in self._archiving:
                return
            self._archiving.add(uid)
        with contextlib.suppress(RuntimeError):  # closing
            self._pool.submit(self._keep_and_forget, link, uid, epoch, spec)

    async def log(
        self, node: str, uid: str, start_ns: int = 0, end_ns: int | None = None, follow: bool = False
    ) -> AsyncIterator[tuple[int, str, str]]:
        """Lines of a replica as (ns, stream, text), from its agent, in the caller's event loop.

        Raises NotFound when the node does not know it, Unavailable when the node does not answer.
        """
        with self._lock:
            link = self._links.get(node)
        if link is None:
            raise Unavailable(f"node {node} is not connected", hint="run: lepton node ls")
        to = link.where()
        params: dict[str, str] = {"start_ns": str(start_ns), "follow": "true" if follow else "false"}
        if end_ns is not None:
            params["end_ns"] = str(end_ns)
        limit = httpx.Timeout(5.0, read=None if follow else LOG_SILENT_S)
        try:
            async with httpx.AsyncClient(
                base_url=to.base, headers=to.headers, timeout=limit, trust_env=False, verify=to.verify()
            ) as client:
                path = f"/v1/replicas/{uid}/log"
                async with client.stream("GET", path, params=params, extensions=to.extensions) as got:
                    _check(node, uid, got.status_code)
                    async for text in got.aiter_lines():
                        if text:
                            yield _line(text)
        except (httpx.HTTPError, OSError) as error:
            raise Unavailable(f"node {node} broke off: {failed(error)}", hint="run: lepton node ls") from error

    # -- within

    async def _end(self, links: list[_Link]) -> None:
        await asyncio.gather(*(link.close() for link in links), return_exceptions=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0.01)  # a transport closes its socket one round after it was told to
        self._loop.stop()

    def _note(self) -> None:
        self._changed()

    def _leads(self) -> int:
        """The epoch for which exclusive work may be renewed now; 0: for none."""
        return self._epoch if time.monotonic() - self._led_s < LEADS_S else 0

    def _send(self, node: str, epoch: int, method: str, path: str, body: bytes | None = None) -> None:
        with self._lock:
            link = self._links.get(node)
            if link is not None:
                self._loop.call_soon_threadsafe(link.begin, method, path, epoch, body)

    def _keep_and_forget(self, link: _Link, uid: str, epoch: int, spec: ReplicaSpec | None) -> None:
        try:
            to = link.where()
            limit = httpx.Timeout(5.0, read=LOG_SILENT_S)
            with httpx.Client(
                base_url=to.base, headers=to.headers, timeout=limit, trust_env=False, verify=to.verify()
            ) as client:
                if spec is not None and self._archive is not None:
                    with client.stream("GET", f"/v1/replicas/{uid}/log", extensions=to.extensions) as got:
                        if got.status_code == 200:
                            self._archive(spec, (_line(text) for text in got.iter_lines() if text))
                leader = {"x-lepton-epoch": str(epoch)}
                client.post(f"/v1/replicas/{uid}/forget", headers=leader, extensions=to.extensions)
        except (httpx.HTTPError, OSError, LeptonError) as error:
            _log.warning("the log of replica %s stays on its node: %s", uid, error)
        except Exception:  # noqa: BLE001 - one broken log must not end the thread
            _log.exception("archiving the log of %s", uid)
        finally:
            with self._lock:
                self._archiving.discard(uid)


class _Link:
    """The connection to one agent. Everything but `view` and `where` belongs to the fleet's event loop."""

    def __init__(self, node: NodeAddress, changed: Callable[[], None], epoch: Callable[[], int]) -> None:
        self.node = node
        self.view = NodeView(node.name, False, None, "not yet connected")
        self.refused: dict[str, str] = {}
        self._changed, self._epoch = changed, epoch
        self._client: httpx.AsyncClient | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(16)
        self._closed = False

    def open(self) -> None:
        if self._closed:
            return
        self._spawn(self._watch())
        self._spawn(self._keep_alive())

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def where(self) -> Where:
        """How it is reached. An agent that was restarted may have another port: what it wrote last is true.

        Raises Unavailable when it may not be reached so.
        """
        token_file = Path(self.node.token_file)
        address, port = self.node.address, self.node.port
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((token_file.parent / "agent.json").read_bytes())
            address, port = str(record["address"]), int(record["port"])
        try:
            token = token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        return where(address, port, token, self.node.tls)

    def _http(self, to: Where) -> httpx.AsyncClient:
        """The client, made when it is first needed. Raises Unavailable when its certificates cannot be used."""
        if self._client is None:
            limits = httpx.Limits(max_connections=32, max_keepalive_connections=8)
            self._client = httpx.AsyncClient(timeout=ORDER_S, limits=limits, trust_env=False, verify=to.verify())
        return self._client

    def begin(self, method: str, path: str, epoch: int, body: bytes | None) -> None:
        if not self._closed:
            self._spawn(self.order(method, path, epoch, body))

    async def order(self, method: str, path: str, epoch: int, body: bytes | None = None) -> None:
        """Send one order; a failure is only noted."""
        try:
            to = self.where()
            headers = {**to.headers, "x-lepton-epoch": str(epoch), "content-type": "application/json"}
            async with self._slots:
                got = await self._http(to).request(
                    method, to.base + path, content=body, headers=headers, extensions=to.extensions
                )
            if got.status_code >= 400:
                _log.warning("node %s refused %s %s: %s", self.node.name, method, path, got.text[:300])
                if method == "PUT" and got.status_code not in NOT_THE_ORDER:
                    while len(self.refused) >= REFUSALS_MAX:
                        del self.refused[next(iter(self.refused))]
                    self.refused[path.rpartition("/")[2]] = _message(got)
                    self._changed()
        except (httpx.HTTPError, OSError, RuntimeError, LeptonError) as error:
            _log.info("node %s did not take %s %s: %s", self.node.name, method, path, type(error).__name__)

    async def _watch(self) -> None:
        pause_s = RETRY_FIRST_S
        while not self._closed:
            reason = "its agent does not answer"
            try:
                await self._follow()
                reason = "its agent closed the connection"
            except httpx.ReadTimeout:
                reason = f"silent for {SILENT_S:g} s"
            except (httpx.HTTPError, OSError) as error:
                reason = f"its agent does not answer ({failed(error)})"
            except LeptonError as error:
                reason = error.message
            except ValueError as error:
                reason = f"its agent said something unreadable ({type(error).__name__})"
            if self.view.connected:
                pause_s = RETRY_FIRST_S
            self._see(NodeView(self.node.name, False, None, reason))
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_MOST_S, pause_s * 2)

    async def _follow(self) -> None:
        to = self.where()
        async with self._http(to).stream(
            "GET", f"{to.base}/v1/watch", headers=to.headers, timeout=SILENT_S, extensions=to.extensions
        ) as got:
            if got.status_code != 200:
                raise Unavailable(f"its agent answered {got.status_code}")
            async for text in got.aiter_lines():
                if not text:
                    continue
                report = NodeReport.model_validate_json(text)
                if report.node != self.node.name:
                    raise Unavailable(f"its address is that of node {report.node}")
                self._see(NodeView(self.node.name, True, report))

    def _see(self, view: NodeView) -> None:
        before, self.view = self.view, view
        if _essence(before) != _essence(view):
            self._changed()

    async def _keep_alive(self) -> None:
        while not self._closed:
            await asyncio.sleep(KEEPALIVE_S)
            epoch = self._epoch()
            if epoch and self.view.connected:
                await self.order("POST", "/v1/keepalive", epoch)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _essence(view: NodeView) -> tuple[object, ...]:
    """What a change of wakes the loop; the use of processors and memory does not."""
    report = view.report
    if report is None:
        return (view.connected, view.reason)
    copies = tuple((r.uid, r.phase, r.reason, r.port, r.pid, r.exit) for r in report.replicas)
    return (view.connected, report.agent_uid, report.boot_id, report.capacity, report.epoch, copies)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"its node answered {answer.status_code}"


def _check(node: str, uid: str, status: int) -> None:
    if status == 404:
        raise NotFound(f"node {node} knows no replica {uid}")
    if status != 200:
        raise Unavailable(f"node {node} answered {status}", hint="run: lepton node ls")


def _line(text: str) -> tuple[int, str, str]:
    value = json.loads(text)
    return int(value["ns"]), str(value["stream"]), str(value["line"])
