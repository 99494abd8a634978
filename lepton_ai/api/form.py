"""What a user sends to have something run: the JSON (and TOML) forms of a deployment and of a job.

Owns the forms and how they become a template; whether it may and can run is decided elsewhere.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from lepton_ai.api.check import validated
from lepton_ai.errors import Invalid
from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.container import PRIORITY_MOST, Allowlist, Balance, Owned
from lepton_ai.spec.workload import BlobRef, DeploymentSpec, JobSpec, Replicas, Template
from lepton_ai.wire import queue, shapes
from lepton_ai.wire.record import environment_name

MODEL_FILE = "model.lepton"
READY_PATH = "/v2/health/ready"
"""Where `python -m lepton_ai.serve` says that it takes requests."""
_OF_THE_MODEL = ("command", "blobs", "model")


class FromSecret(Model):
    """A token whose text is the value of a secret."""

    secret: str = Field(min_length=1, max_length=255)


class OwnedForm(Model):
    """Whose it is, who sees it and how it waits (see spec.container.Owned); who made it is not asked for.

    `priority` is a number or a word of the public client ("low", "mid-5000").
    """

    labels: dict[str, str] = Field(default_factory=dict)
    visibility: Literal["public", "private"] = "public"
    priority: int | None = Field(default=None, ge=0, le=PRIORITY_MOST)
    can_preempt: bool | None = None
    preemptible: bool | None = None
    advisory: dict[str, Any] = Field(default_factory=dict)

    @field_validator("priority", mode="before")
    @classmethod
    def _priority(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return queue.priority(value)
        except Invalid as error:
            raise ValueError(f"{error.message}; {error.hint}") from None

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        return Owned(labels=value).labels


class DeployForm(OwnedForm):
    """A deployment: `template`, or `model` (``NAME@VERSION``) with a template that adds resources, env and the like.

    `tokens` are literal keys, or {"secret": NAME}; left out, a deployment keeps those it has; [] lets anyone call who
    reaches the gateway. `allowlist` are networks (CIDR) that may call. With `pod` it is one replica without a gateway.
    """

    name: Name
    pod: bool = False
    replicas: Replicas = Replicas()
    survive: dict[Literal["node"], int] = Field(default_factory=dict)
    spread: Literal["preferred", "required"] = "preferred"
    idle_timeout_s: int | None = None
    target_in_flight: float = 16.0
    target_requests_per_minute: float | None = None
    target_latency_ms_p95: float | None = None
    target_utilisation: float | None = None
    tokens: tuple[str | FromSecret, ...] | None = Field(default=None, repr=False, max_length=64)
    allowlist: Allowlist = Allowlist()
    balance: Balance = Balance()
    model: str | None = Field(default=None, max_length=160)
    template: dict[str, Any] = Field(default_factory=dict)
    note: str = Field(default="", max_length=256)

    @field_validator("replicas", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": max(1, value)}
        return value

    @field_validator("survive", mode="before")
    @classmethod
    def _nodes(cls, value: Any) -> Any:
        return {"node": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("allowlist", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        return {"networks": value} if isinstance(value, list | tuple) else value

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: tuple[str | FromSecret, ...] | None) -> tuple[str | FromSecret, ...] | None:
        for token in value or ():
            if isinstance(token, str) and not is_token(token):
                raise ValueError("a token has 1 to 1024 visible ASCII characters without spaces")
        return value

    def spec(
        self,
        template: Template,
        tokens: tuple[str, ...] | None,
        token_secrets: tuple[str, ...],
        release: int,
        created_by: str,
    ) -> DeploymentSpec:
        """What is recorded. Raises Invalid for values that do not go together."""
        values = self.model_dump(mode="json", exclude={"name", "model", "template", "note", "tokens"})
        values["template"] = template.model_dump(mode="json")
        values |= {"tokens": tokens, "token_secrets": token_secrets, "release": release, "created_by": created_by}
        return validated(DeploymentSpec, values, "the deployment")


class JobForm(OwnedForm):
    """Work that ends. `name` is the title; the job's own name gets an ending that makes it unique.

    Without `rendezvous`, workers are told where worker 0 is when there are several. `checkpoint`: it saves its state
    and may be stopped and started again elsewhere.
    """

    name: Name = "job"
    workers: int = Field(default=1, ge=1, le=1000)
    retries: int = Field(default=0, ge=0, le=1000)
    job_retries: int = Field(default=0, ge=0, le=1000)
    start_at_ms: int | None = Field(default=None, ge=0, le=253_402_300_799_000)
    rendezvous: bool | None = None
    checkpoint: bool = False
    ttl_s: int | None = Field(default=None, ge=0, le=10 * 365 * 86_400)
    stopped: bool = False
    template: dict[str, Any]

    def spec(self, template: Template, created_by: str) -> JobSpec:
        """What is recorded. Raises Invalid."""
        values = self.model_dump(mode="json", exclude={"name", "template"})
        values |= {"template": template.model_dump(mode="json"), "title": self.name, "created_by": created_by}
        if self.rendezvous is None:
            values["rendezvous"] = self.workers > 1
        return validated(JobSpec, values, "the job")


class StopForm(Model):
    """What may be changed in a job."""

    stopped: bool


class RollbackForm(Model):
    """Which release to go back to; None: the one before."""

    to: int | None = Field(default=None, ge=1, le=2**31)


class TokenForm(Model):
    """A new API token. `days`: how long it is valid (None: until it is revoked)."""

    name: Name
    role: Literal["owner", "admin", "developer", "viewer", "caller"] = "developer"
    days: int | None = Field(default=None, ge=1, le=36_500)


class SecretForm(Model):
    """The value of a secret."""

    value: str = Field(repr=False)


class QueryForm(Model):
    """One reading statement, and how many rows to answer with."""

    sql: str
    limit: int = Field(default=1000, ge=1, le=100_000)


def written(value: dict[str, Any], what: str) -> Template:
    """The template as the user wrote it. Raises Invalid."""
    if not value:
        hint = 'for example: template = {command = ["python", "-m", "http.server", "{port}"]}, or model = "movies@1"'
        raise Invalid(f"{what}: neither a template nor a model is given", hint=hint)
    shape = value.get("shape")
    if isinstance(shape, str) and "resources" not in value:
        value = {**value, "shape": shape.lower(), "resources": shapes.resources(shape).model_dump()}
    template = validated(Template, value, what, ("template",))
    for name in (*template.env, *template.secrets):
        environment_name(name)
    return template


def is_token(text: str) -> bool:
    """Whether a caller can send `text` as an endpoint's token."""
    return 1 <= len(text) <= 1024 and text.isascii() and text.isprintable() and " " not in text


def serving(value: dict[str, Any], model: str, name: str, blob: BlobRef, what: str) -> Template:
    """The template that serves the model version `model` as `name`; `value` adds resources, env, limits of time.

    Raises Invalid for what a model decides itself (its command and blobs).
    """
    for key in _OF_THE_MODEL:
        if key in value:
            hint = "leave it out, or leave out `model` and write the whole template"
            raise Invalid(f"{what}: template.{key} and model exclude each other", hint=hint)
    version = model.rpartition("@")[2]
    command = ["python", "-m", "lepton_ai.serve", "--model", f"{{blobs}}/{blob.path}"]
    command += ["--name", name, "--version", version, "--port", "{port}"]
    health = value.get("health", {})
    whole = {
        "idempotent": True,
        **value,
        "command": command,
        "blobs": [blob.model_dump()],
        "health": {"path": READY_PATH, **health} if isinstance(health, dict) else health,
        "model": model,
    }
    return validated(Template, whole, what, ("template",))
