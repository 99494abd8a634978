"""What a user asks for: a template of a replica, and the deployments and jobs that run it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.container import MAX_LABELS, Allowlist, Balance, Mount, Owned, Port, labelled, tainted

MAX_ENV_BYTES = 64 * 1024
MAX_COMMAND_BYTES = 64 * 1024


class Resources(Model):
    """What one replica needs. Thousandths of a core, mebibytes, thousandths of an accelerator."""

    cpu_milli: int = Field(default=200, ge=1, le=1_024_000)
    memory_mib: int = Field(default=256, ge=1, le=64 * 1024 * 1024)
    accelerator_milli: int = Field(default=0, ge=0, le=64_000)
    accelerator_type: str | None = Field(default=None, max_length=64)


class BlobRef(Model):
    """Bytes by digest that a replica finds as a file.

    `path` is relative to the replica's working directory; the command may name it as ``{blobs}/PATH``.
    """

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    path: str = Field(min_length=1, max_length=255)

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        parts = value.split("/")
        if value.startswith("/") or "\\" in value or "\0" in value or any(p in ("", ".", "..") for p in parts):
            raise ValueError("must be a relative path without '.' or '..'")
        return value


class Health(Model):
    """How the node and the gateway ask a replica whether it can take requests.

    With `path`, an HTTP GET must answer 200-399; without, a TCP connection must be accepted. The probe starts at
    once; a replica that is not ready `startup_deadline_s` after its start has failed.
    """

    path: str | None = Field(default=None, pattern=r"^/[^\s]*$", max_length=255)
    interval_s: float = Field(default=1.0, ge=0.1, le=60)
    timeout_s: float = Field(default=1.0, ge=0.1, le=60)
    failures: int = Field(default=3, ge=1, le=100)
    startup_deadline_s: float = Field(default=60.0, ge=1, le=3600)


class Template(Model):
    """One replica, as the user describes it. A change of it makes a new release.

    In `command`, ``{port}`` becomes the port to listen on (also in the environment as PORT) and ``{blobs}`` the
    folder that holds the blobs. A command without `port` in a job gets none. Without a command the image's own runs.
    """

    command: tuple[str, ...] = Field(default=(), max_length=1024)
    image: str | None = Field(default=None, max_length=512)
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict, description="environment name -> secret name")
    blobs: tuple[BlobRef, ...] = Field(default=(), max_length=256)
    resources: Resources = Resources()
    shape: str | None = Field(default=None, max_length=64)
    port: int | None = Field(default=None, ge=1, le=65535, description="a fixed port; else one is chosen")
    ports: tuple[Port, ...] = Field(default=(), max_length=32, description="further ports")
    mounts: tuple[Mount, ...] = Field(default=(), max_length=32)
    shared_memory_mib: int | None = Field(default=None, ge=1, le=16 * 1024 * 1024, description="size of /dev/shm")
    image_pull_secrets: tuple[str, ...] = Field(default=(), max_length=8, description="names of registry logins")
    nodes: tuple[str, ...] = Field(default=(), max_length=1024, description="only these; empty: any node")
    node_labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_LABELS, description="of its nodes")
    tolerations: tuple[str, ...] = Field(default=(), max_length=64, description="taints (KEY=VALUE) it may meet")
    reservation: str = Field(default="", max_length=63, description="only nodes that are reserved under this name")
    burst: bool = Field(default=False, description="other nodes too, free ones of other reservations among them")
    avoid: tuple[Name, ...] = Field(default=(), max_length=64, description="work that it shares no node with")
    near: tuple[Name, ...] = Field(default=(), max_length=64, description="work that it likes to stand beside")
    health: Health = Health()
    model: str | None = Field(default=None, max_length=128, description="NAME@VERSION, when a model is served")
    idempotent: bool = Field(default=False, description="a request may be sent twice: the gateway may retry")
    exclusive: bool = Field(default=False, description="at most one live copy, ever")
    grace_s: float = Field(default=10.0, ge=0, le=3600, description="between TERM and KILL")
    drain_s: float = Field(default=10.0, ge=0, le=3600, description="longest wait for requests in flight")
    request_timeout_s: float = Field(default=60.0, ge=0, le=86_400, description="0: none (streams)")

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        size = 0
        for key, text in value.items():
            if not key or key[0].isdigit() or not all(c.isalnum() or c in "._-" for c in key) or not key.isascii():
                raise ValueError(f"{key!r} is not an environment name ([A-Za-z0-9._-]+, no leading digit)")
            if "\0" in text:
                raise ValueError(f"the value of {key!r} holds a NUL")
            size += len(key) + len(text.encode("utf-8", "surrogatepass"))
        if size > MAX_ENV_BYTES:
            raise ValueError(f"environment of {size} bytes is over the limit of {MAX_ENV_BYTES}")
        return value

    @field_validator("node_labels")
    @classmethod
    def _node_labels(cls, value: dict[str, str]) -> dict[str, str]:
        return labelled(value)

    @field_validator("tolerations")
    @classmethod
    def _tolerations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tainted(value)

    @field_validator("command")
    @classmethod
    def _command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\0" in part for part in value):
            raise ValueError("the command holds a NUL")
        if sum(len(part) for part in value) > MAX_COMMAND_BYTES:
            raise ValueError(f"the command is over the limit of {MAX_COMMAND_BYTES} characters")
        return value

    @model_validator(mode="after")
    def _runs(self) -> Self:
        if not self.command and self.image is None:
            raise ValueError("a command or an image is needed")
        return self


class Replicas(Model):
    """Bounds of the number of replicas. `min` = 0 means stopped; scaling to zero is `idle_timeout_s`."""

    min: int = Field(default=1, ge=0, le=1000)
    max: int = Field(default=1, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}")
        return self


class DeploymentSpec(Owned):
    """A served workload: a template and how many of it, under which failures, for whom.

    `survive` = {"node": n}: what is left after any n nodes are lost at once still carries the load; replicas are
    spread over at least n + 1 nodes or the deployment says why not. `tokens` are sealed (see tenancy.secrets);
    None means that anyone who reaches the gateway may call; `token_secrets` names the secret that each was taken
    from ("": it was given as it is). A `pod` is one replica that no gateway routes to: it is
    reached at its exposed ports. `spread` "required" puts at most one replica of a release on a node.
    """

    template: Template
    pod: bool = False
    replicas: Replicas = Replicas()
    idle_timeout_s: int | None = Field(default=None, ge=1, le=30 * 86_400)
    target_in_flight: float = Field(default=16.0, gt=0, le=100_000, description="requests in flight per replica")
    target_requests_per_minute: float | None = Field(default=None, gt=0, le=1e9, description="per replica")
    target_latency_ms_p95: float | None = Field(default=None, gt=0, le=3_600_000, description="of answers, at most")
    target_utilisation: float | None = Field(default=None, gt=0, le=1, description="share of the cpu asked for, in use")
    survive: dict[Literal["node"], int] = Field(default_factory=dict)
    spread: Literal["preferred", "required"] = "preferred"
    tokens: tuple[str, ...] | None = Field(default=None, max_length=64)
    token_secrets: tuple[str, ...] = Field(default=(), max_length=64)
    allowlist: Allowlist = Allowlist()
    balance: Balance = Balance()
    release: int = Field(default=1, ge=1, description="number of the release that is wanted")

    @field_validator("survive")
    @classmethod
    def _survive(cls, value: dict[str, int]) -> dict[str, int]:
        for domain, count in value.items():
            if not 0 <= count <= 16:
                raise ValueError(f"survive.{domain} must be between 0 and 16")
        return value

    @model_validator(mode="after")
    def _exclusive(self) -> Self:
        if self.template.exclusive and (self.replicas.max > 1 or self.survive.get("node", 0) > 0):
            raise ValueError("exclusive means at most one live copy: replicas.max must be 1 and survive empty")
        if self.pod and self.replicas.max > 1:
            raise ValueError("a pod is one replica: replicas.max must be 1")
        return self


class ReleaseSpec(Model):
    """A numbered, unchangeable template of a deployment: `movies#3`."""

    number: int = Field(ge=1)
    template: Template
    note: str = Field(default="", max_length=256, description="why it was made, e.g. 'rollback to #1'")


class JobSpec(Owned):
    """Work that ends: `workers` replicas that run to completion, each tried `retries` + 1 times.

    When a worker has failed for good the whole job is run again, `job_retries` times. With `rendezvous` worker 0 is
    given a port and every worker is told where it is (MASTER_ADDR, MASTER_PORT). With `checkpoint` it saves its state
    and may be stopped and started again elsewhere: only such jobs are moved from busy nodes.
    """

    template: Template
    title: str = Field(default="", max_length=63, description="the name the user gave; ids are unique, titles not")
    workers: int = Field(default=1, ge=1, le=1000)
    retries: int = Field(default=0, ge=0, le=1000)
    job_retries: int = Field(default=0, ge=0, le=1000)
    start_at_ms: int | None = Field(default=None, ge=0, le=253_402_300_799_000, description="not before this time")
    rendezvous: bool = False
    checkpoint: bool = False
    ttl_s: int | None = Field(default=None, ge=0, le=10 * 365 * 86_400, description="kept so long after its end")
    stopped: bool = False


class ModelVersionSpec(Model):
    """A registered model version `NAME@NUMBER`; `lineage` and `metrics` are JSON values."""

    model: Name
    number: int = Field(ge=1)
    kind: str = Field(max_length=64, description="class of the model, e.g. 'recommender'")
    blob: BlobRef
    metrics: dict[str, float] = Field(default_factory=dict)
    lineage: dict[str, object] = Field(default_factory=dict)
