"""What a user sends to have something run: the JSON (and TOML) forms of a deployment and of a job.

Owns the forms and how they become a template; whether it may and can run is decided elsewhere.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from lepton_ai.api.check import validated
from lepton_ai.errors import Invalid
from lepton_ai.spec.base import Model, Name
from lepton_ai.spec.workload import BlobRef, DeploymentSpec, Replicas, Template

MODEL_FILE = "model.lepton"
READY_PATH = "/v2/health/ready"
"""Where `python -m lepton_ai.serve` says that it takes requests."""
_OF_THE_MODEL = ("command", "image", "blobs", "model")


class DeployForm(Model):
    """A deployment: `template`, or `model` (``NAME@VERSION``) with a template that adds resources, env and the like.

    `tokens` are literal keys; left out, a deployment keeps those it has; [] lets anyone call who reaches the gateway.
    """

    name: Name
    replicas: Replicas = Replicas()
    survive: dict[Literal["node"], int] = Field(default_factory=dict)
    idle_timeout_s: int | None = None
    target_in_flight: float = 16.0
    tokens: tuple[str, ...] | None = Field(default=None, repr=False)
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

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for token in value or ():
            if not 8 <= len(token) <= 1024 or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError("a token has 8 to 1024 visible ASCII characters without spaces")
        return value

    @property
    def keeps_tokens(self) -> bool:
        return self.tokens is None

    def spec(self, template: Template, tokens: tuple[str, ...] | None, release: int) -> DeploymentSpec:
        """What is recorded. Raises Invalid for values that do not go together."""
        return validated(
            DeploymentSpec,
            {
                "template": template.model_dump(mode="json"),
                "replicas": self.replicas.model_dump(),
                "idle_timeout_s": self.idle_timeout_s,
                "target_in_flight": self.target_in_flight,
                "survive": dict(self.survive),
                "tokens": tokens,
                "release": release,
            },
            "the deployment",
        )


class JobForm(Model):
    """Work that ends. `name` is the title; the job's own name gets an ending that makes it unique."""

    name: Name = "job"
    workers: int = Field(default=1, ge=1, le=1000)
    retries: int = Field(default=0, ge=0, le=1000)
    ttl_s: int | None = Field(default=None, ge=0, le=10 * 365 * 86_400)
    template: dict[str, Any]


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
    return validated(Template, value, what, ("template",))


def serving(value: dict[str, Any], model: str, name: str, blob: BlobRef, what: str) -> Template:
    """The template that serves the model version `model` as `name`; `value` adds resources, env, limits of time.

    Raises Invalid for what a model decides itself (its command, image, blobs).
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
