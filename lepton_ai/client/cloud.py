"""Cloud: every verb of a cell, for one workspace. Synchronous and thread-safe; works in notebooks.

cloud = lepton_ai.up()
movies = cloud.deploy("movies@1", replicas=(2, 8), survive=1)
movies.call(user=7)
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import httpx

from lepton_ai.client import source, wait
from lepton_ai.client.admin import Admin
from lepton_ai.client.http import Connection, check, client, part
from lepton_ai.client.objects import (
    Answer,
    CellInfo,
    Deployment,
    Event,
    Job,
    LogLine,
    ModelVersion,
    Node,
    Plan,
    Release,
    Replica,
    Row,
    Table,
    TableVersion,
)
from lepton_ai.client.wait import Say
from lepton_ai.errors import LeptonError, NotFound, Timeout, Unavailable, Unsupported
from lepton_ai.settings import is_loopback

if TYPE_CHECKING:
    from lepton_ai.lake import Lake

FOLLOW_PATIENCE_S = 30.0
AFTER_BREAK_LINES = 10_000


class Cloud(Admin):
    """A connection to the cell at `url`. `gateway_url` spares a question to the control plane before a call."""

    def __init__(
        self, url: str, token: str = "", workspace: str = "default", *, gateway_url: str = "", patience_s: float = 6.0
    ) -> None:
        self._http = Connection(url, token, workspace, patience_s=patience_s)
        self._gateway_url = gateway_url
        self._gateway: httpx.Client | None = None
        self._lake: Lake | None = None
        self._opening = threading.Lock()

    def __repr__(self) -> str:
        return f"Cloud({self._http.url!r}, workspace={self._http.workspace!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the cell goes on."""
        self._http.close()
        if self._gateway is not None:
            self._gateway.close()
        if self._lake is not None:
            self._lake.close()

    # -- work

    def plan(self, source_: Any, **options: Any) -> Plan:
        """What `deploy` with the same arguments would change; changes nothing. Raises Unplaceable, Invalid."""
        asked = source.deployment(source_, options, self._existing)
        return Plan.of(self._send(asked, "POST", "/x/plan", again=True))

    def deploy(
        self, source_: Any, *, wait: bool = True, say: Say | None = None, timeout_s: float | None = None, **options: Any
    ) -> Deployment:
        """Serves a TOML file, a dict, a model, the file of a saved model, NAME@VERSION, or a deployment anew.

        Options: name, replicas (n or (min, max)), survive, cpu_milli, memory_mib, env, secrets, tokens,
        idle_timeout_s, target_in_flight, command, health, mounts, ports, image, labels, visibility, allowlist, pod, …
        The same content twice is one release.

        Args:
            wait: until the release serves; `say` is told what is waited for.

        Raises:
            Failed: the release did not become ready; details hold the last lines of its log.
            Unplaceable: no node could ever hold one replica; details hold each node's verdict.
        """
        asked = source.deployment(source_, options, self._existing)
        if asked.container is not None:
            version = self.register(str(asked.form["model"]).partition("@")[0], asked.container)
            asked.form["model"] = version.ref
        path = f"/x/deployments/{_segment(asked.form)}"
        found = self._deployment(self._send(asked, "PUT", path, again=True, generation=asked.generation))
        return self._released(found, say, timeout_s) if wait else found

    def rollback(
        self,
        name: str,
        to: int | None = None,
        *,
        wait: bool = True,
        say: Say | None = None,
        timeout_s: float | None = None,
    ) -> Deployment:
        """Serves an earlier release again (None: the one before), as a new release. Raises like `deploy`."""
        found = self._deployment(self._http.send("POST", f"/x/deployments/{part(name)}/rollback", {"to": to}))
        return self._released(found, say, timeout_s) if wait else found

    def restart(self, name: str, *, wait: bool = True, say: Say | None = None) -> Deployment:
        """Replaces every replica, as a new release with the same content."""
        found = self._deployment(self._http.send("POST", f"/x/deployments/{part(name)}/restart"))
        return self._released(found, say, None) if wait else found

    def deployment(self, name: str) -> Deployment:
        return self._deployment(self._http.get(f"/x/deployments/{part(name)}"))

    def deployments(self) -> list[Deployment]:
        return [self._deployment(item) for item in self._http.get("/x/deployments")]

    def releases(self, name: str) -> list[Release]:
        """The releases of a deployment, newest first."""
        return [Release.of(item) for item in self._http.get(f"/x/deployments/{part(name)}/releases")]

    def run(self, source_: Any, **options: Any) -> Job:
        """Starts a job: a TOML file, a dict, or a command (words or one text). Returns at once.

        Options: name, workers, retries, job_retries, start_at_ms, rendezvous, ttl_s, cpu_milli, memory_mib, env,
        secrets, mounts, image, labels, visibility, …
        """
        asked = source.job(source_, options)
        return Job.of(self._send(asked, "POST", "/x/jobs"))

    def job(self, name: str) -> Job:
        return Job.of(self._http.get(f"/x/jobs/{part(name)}"))

    def jobs(self, *, all: bool = False) -> list[Job]:
        """The jobs that have not ended; with `all` the others too."""
        return [Job.of(item) for item in self._http.get("/x/jobs", all=all)]

    def stop(self, name: str | Deployment | Job) -> Deployment | Job:
        """Ends every replica of a deployment, pod or job; what is recorded of it stays, and `start` runs it again."""
        found = _name(name)
        kind, _ = self._owner(found)
        if kind == "job":
            return Job.of(self._http.send("PATCH", f"/x/jobs/{part(found)}", {"stopped": True}, again=True))
        return self._deployment(self._http.send("POST", f"/x/deployments/{part(found)}/stop", again=True))

    def start(self, name: str | Deployment | Job) -> Deployment | Job:
        """Runs again what was stopped. Raises Conflict for a job that has ended."""
        found = _name(name)
        kind, _ = self._owner(found)
        if kind == "job":
            return Job.of(self._http.send("PATCH", f"/x/jobs/{part(found)}", {"stopped": False}, again=True))
        return self._deployment(self._http.send("POST", f"/x/deployments/{part(found)}/restart"))

    def wait(self, job: str | Job, *, say: Say | None = None, timeout_s: float | None = None) -> Job:
        """The job once it has ended: state succeeded, failed or stopped. Raises Timeout."""
        return wait.ended(lambda: self.job(_name(job)), say, timeout_s)

    def replicas(self, owner: str | Deployment | Job) -> list[Replica]:
        """The replicas of a deployment or a job, also those that ended and are still kept."""
        name = _name(owner)
        return self._replicas(self._owner(name)[0], name)

    def ps(self, name: str | None = None, *, all: bool = False) -> list[Row]:
        """What there is, a line each: deployments and jobs; or one of them, with its replicas."""
        if name is None:
            found: list[Deployment | Job] = [*self.deployments(), *self.jobs(all=all)]
            return [Row.of_owner(item) for item in found]
        kind, record = self._owner(name)
        replicas = self._replicas(kind, name)
        shown = [item for item in replicas if all or item.phase != "exited"]
        owner = self._deployment(record) if kind == "deployment" else Job.of(record)
        return [Row.of_owner(owner), *(Row.of_replica(item) for item in shown)]

    def logs(
        self, name: str, *, follow: bool = False, lines: int | None = None, grep: str | None = None
    ) -> Iterator[LogLine]:
        """The last `lines` (None: all) of a deployment, job or replica; with `follow` until nothing more can come.

        A connection that breaks while following is made again; no line comes twice.
        """
        seen: dict[str, int] = {}
        first_ns: int | None = None  # what is older was not asked for, whichever replica it is of
        oldest_ns = 0
        deadline_s: float | None = None
        while True:
            query = {"lines": AFTER_BREAK_LINES if seen else lines, "follow": follow, "grep": grep}
            try:
                with self._http.stream(f"/x/logs/{part(name)}", query) as response:
                    for text in response.iter_lines():
                        line = LogLine.of(json.loads(text))
                        first_ns = line.ns if first_ns is None else first_ns
                        if line.ns > seen.get(line.replica, oldest_ns - 1):
                            seen[line.replica] = line.ns
                            yield line
                        deadline_s = None
                return
            except httpx.TransportError as error:
                oldest_ns = first_ns or 0
                deadline_s = deadline_s or time.monotonic() + (FOLLOW_PATIENCE_S if follow else 0)
                if time.monotonic() >= deadline_s:
                    raise self._http.away(error) from None
                time.sleep(0.25)
            except Unavailable:
                if deadline_s is None or time.monotonic() >= deadline_s:
                    raise
                time.sleep(0.25)

    def call(
        self, name: str, body: Any = None, *, path: str = "/", token: str | None = None, timeout_s: float = 120.0
    ) -> Any:
        """One request through the gateway: POST of `body` as JSON, or GET without one. JSON, else text.

        Raises what the endpoint answered: Unauthorized (it wants a token), NotFound, Unavailable, Failed, Timeout.
        """
        with self._opening:
            if not self._gateway_url:
                self._gateway_url = self.cell().gateway_url
            if self._gateway is None:
                self._gateway = client(self._gateway_url)
        url = f"{self._gateway_url.rstrip('/')}/{part(self._http.workspace)}/{part(name)}/{path.lstrip('/')}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            if body is None:
                response = self._gateway.get(url, headers=headers, timeout=timeout_s)
            else:
                response = self._gateway.post(url, json=body, headers=headers, timeout=timeout_s)
        except httpx.TimeoutException:
            raise Timeout(f"{name} did not answer within {timeout_s:g} s", hint=f"lepton logs {name}") from None
        except httpx.TransportError as error:
            hint = f"is the cell up? lepton ps {name}"
            raise Unavailable(f"the gateway at {self._gateway_url} does not answer ({error})", hint=hint) from None
        try:
            check(response, name)
        except NotFound as error:
            if error.details.get("reason") != "route_not_found":
                raise  # the replica's own answer
            raise NotFound(f"no deployment {name!r} is served here", hint="lepton ps shows what is") from None
        if "json" in response.headers.get("content-type", ""):
            try:
                return response.json()
            except ValueError:
                return response.text
        return response.text

    def delete(self, name: str) -> None:
        """Removes a deployment or a job; what runs is drained first. Raises NotFound."""
        kind, _ = self._owner(name)
        self._http.send("DELETE", f"/x/{kind}s/{part(name)}", again=True)

    def events(self, kind: str | None = None, name: str | None = None, *, limit: int = 100) -> list[Event]:
        """What happened lately, oldest first."""
        return [Event.of(item) for item in self._http.get("/x/events", kind=kind, name=name, limit=limit)]

    # -- data

    def query(self, sql: str, *, limit: int = 1000) -> Answer:
        """Runs one reading statement over the lake; `ratings@2` names a version."""
        return Answer.of(self._http.send("POST", "/x/query", {"sql": sql, "limit": limit}, again=True))

    def tables(self) -> list[Table]:
        return [Table.of(item) for item in self._http.get("/x/tables")]

    def table(self, name: str) -> Table:
        return Table.of(self._http.get(f"/x/tables/{part(name)}"))

    def history(self, name: str) -> list[TableVersion]:
        """The versions of a table, newest first."""
        return [TableVersion.of(item) for item in self._http.get(f"/x/tables/{part(name)}/history")]

    @property
    def lake(self) -> Lake:
        """The workspace's lake, opened directly: only when the cell is on this machine. Raises Unsupported."""
        with self._opening:
            if self._lake is None:
                url = self.cell().lake_url
                parts = urlsplit(url)
                near = parts.scheme == "file" and is_loopback(urlsplit(self._http.url).hostname or "")
                if not near or not Path(unquote(parts.path)).parent.is_dir():
                    hint = "use cloud.query(sql), or run this where the cell runs"
                    raise Unsupported(f"the lake of the cell at {self._http.url} is not on this machine", hint=hint)
                from lepton_ai import lake

                self._lake = lake.open(url)
            return self._lake

    # -- models

    def models(self) -> list[ModelVersion]:
        """Every registered version, by name and newest first."""
        return [ModelVersion.of(item) for item in self._http.get("/x/models")]

    def model(self, ref: str) -> ModelVersion:
        """The version `movies@3`, or the newest of `movies`."""
        return ModelVersion.of(self._http.get(f"/x/models/{part(ref)}"))

    def register(self, name: str, model: Any, *, lineage: dict[str, Any] | None = None) -> ModelVersion:
        """Registers a model, the file of a saved one, or its bytes, as the next version of `name`.

        The same bytes with the same lineage are the same version.
        """
        data = source.container(model)
        query = {"lineage": json.dumps(lineage)} if lineage else {}
        path = f"/x/models/{part(name)}"
        return ModelVersion.of(self._http.send("POST", path, query=query, content=lambda: data, again=True))

    # -- the cell

    def cell(self) -> CellInfo:
        return CellInfo.of(self._http.get("/x/cell"))

    def health(self) -> dict[str, Any]:
        """{"name", "uid", "leading"}, asked once and without a token. Raises Unavailable."""
        return self._http.health()

    def nodes(self) -> list[Node]:
        return [Node.of(item) for item in self._http.get("/x/nodes")]

    def top(self) -> list[dict[str, Any]]:
        """The replicas of the workspace by what they use, the busiest first."""
        found: list[dict[str, Any]] = self._http.get("/x/top")
        return found

    def drain(self, name: str) -> Node:
        """Moves work off a node and places nothing new there."""
        return Node.of(self._http.send("POST", f"/x/nodes/{part(name)}/drain", again=True))

    def undrain(self, name: str) -> Node:
        return Node.of(self._http.send("POST", f"/x/nodes/{part(name)}/undrain", again=True))

    # -- inside

    def _send(self, asked: source.Asked, method: str, path: str, *, again: bool = False, **query: Any) -> Any:
        try:
            with contextlib.nullcontext() if asked.file is None else asked.file.located():
                return self._http.send(method, path, asked.form, query=query, again=again)
        except NotFound as error:
            if not asked.word:
                raise
            hint = f"the file of that name is ./{asked.word}" if Path(asked.word).is_file() else error.hint
            raise NotFound(f"there is no deployment or model {asked.word!r}", hint=hint) from None

    def _deployment(self, data: dict[str, Any]) -> Deployment:
        return Deployment.of(data).bound(self)

    def _released(self, wanted: Deployment, say: Say | None, timeout_s: float | None) -> Deployment:
        return wait.released(lambda: self.deployment(wanted.name), wanted, say, timeout_s)

    def _existing(self, name: str) -> source.Existing | None:
        """The deployment of that name, if there is one."""
        try:
            found = self._http.get(f"/x/deployments/{part(name)}")
        except NotFound:
            return None
        return source.Existing(dict(found["spec"]), int(found["generation"]))

    def _replicas(self, kind: str, name: str) -> list[Replica]:
        return [Replica.of(item) for item in self._http.get(f"/x/{kind}s/{part(name)}/replicas")]

    def _owner(self, name: str) -> tuple[str, dict[str, Any]]:
        """("deployment" or "job", what the cell says of it). Raises NotFound that names the nearest of both."""
        problem: LeptonError | None = None
        for kind in ("deployment", "job"):
            try:
                return kind, self._http.get(f"/x/{kind}s/{part(name)}")
            except NotFound as error:
                if problem is None or (error.hint or "").startswith("did you mean"):
                    problem = error
        hint = problem.hint if problem is not None else None
        raise NotFound(f"there is no deployment or job {name!r}", hint=hint)


def _segment(form: dict[str, Any]) -> str:
    name = form.get("name")
    # A form without a name is the cell's to refuse, in its words.
    return part(name) if isinstance(name, str) and name else "-"


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))
