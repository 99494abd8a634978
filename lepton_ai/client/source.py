"""From whatever a user names (a TOML file, a model, a saved model's file, movies@3, a dict, a deployment) to a form.

A file and a dict are the whole truth: what they leave out is the default. Everything else changes what is there: a
model deployed under the name of an existing deployment keeps that one's bounds, resources and environment.
"""

from __future__ import annotations

import difflib
import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lepton_ai.client.specfile import SpecFile, read
from lepton_ai.errors import Invalid, NotFound
from lepton_ai.spec.base import is_name

Form = dict[str, Any]
_WHOSE = ("labels", "visibility", "advisory", "priority", "can_preempt", "preemptible")
_TOP = (
    "name", "replicas", "survive", "idle_timeout_s", "target_in_flight", "tokens", "note", "model", "pod", "spread",
    "target_requests_per_minute", "target_latency_ms_p95", "target_utilisation", "allowlist", "balance", *_WHOSE,
)  # fmt: skip
_RESOURCES = ("cpu_milli", "memory_mib", "accelerator_milli", "accelerator_type")
_TEMPLATE = (
    "command", "env", "secrets", "health", "port", "idempotent", "exclusive", "grace_s", "drain_s",
    "request_timeout_s", "resources", "image", "shape", "ports", "mounts", "shared_memory_mib", "image_pull_secrets",
    "nodes", "node_labels", "tolerations", "reservation", "burst", "avoid", "near",
)  # fmt: skip
_JOB = ("name", "workers", "retries", "job_retries", "start_at_ms", "rendezvous", "checkpoint", "ttl_s", *_WHOSE)
_OF_A_MODEL = ("command", "blobs", "model", "health", "idempotent", "port")
"""What the server of a model decides: not taken over from one version to the next."""


@dataclass(frozen=True)
class Asked:
    """A form ready to send; `file` is where it was written, `container` the bytes of a model not registered yet.

    `generation` is that of the deployment that the form was made from (None: it is the whole truth by itself).
    `word`: what was given was one word that names no deployment, so that it must be a model.
    """

    form: Form
    file: SpecFile | None = None
    container: bytes | None = None
    generation: int | None = None
    word: str = ""


@dataclass(frozen=True)
class Existing:
    """A deployment as it is: its form, and the generation of that."""

    form: Form
    generation: int


Look = Callable[[str], Existing | None]


def deployment(source: Any, options: Mapping[str, Any], existing: Look) -> Asked:
    """What to send for `source` with `options` on top. `existing(name)`: that deployment, if there is one.

    With `container` set, the form's model is ``NAME@sha256:DIGEST``. Raises Invalid, NotFound.
    """
    _known(options, (*_TOP, *_RESOURCES, *_TEMPLATE))
    if isinstance(source, Mapping):
        return Asked(_with(dict(source), options))
    if isinstance(source, str | Path) and str(source).endswith(".toml"):
        file = read(Path(source).expanduser())
        return Asked(_with(dict(file.values), options), file)
    if hasattr(source, "ref") and "@" in str(source.ref):  # a registered version, as `models` returns it
        source = str(source.ref)
    if not isinstance(source, str | Path):
        return _saved(_packed(source), None, options, existing)
    text = str(source)
    # What could be the name of a deployment is one, also beside a file of that name: that file is ./NAME.
    if isinstance(source, Path) or "/" in text or ("@" not in text and not is_name(text) and Path(text).is_file()):
        path = Path(text).expanduser()
        return _saved(_bytes(path), path.stem, options, existing)
    if "@" in text:
        name = str(options.get("name") or text.partition("@")[0])
        return _renewed(existing(name), name, text, options)
    found = existing(text)
    if found is not None and options.get("name", text) == text:
        return Asked(_with(dict(found.form), options), generation=found.generation)
    name = str(options.get("name") or text)
    return replace(_renewed(existing(name) if name != text else None, name, text, options), word=text)


def job(source: Any, options: Mapping[str, Any]) -> Asked:
    """The form of a job: a TOML file, a dict, a command as words or as one text. Raises Invalid, NotFound."""
    _known(options, (*_JOB, *_RESOURCES, *_TEMPLATE))
    file = None
    if isinstance(source, Mapping):
        form = dict(source)
    elif isinstance(source, str | Path) and str(source).endswith(".toml"):
        file = read(Path(source).expanduser())
        form = dict(file.values)
    else:
        words = _words(source) if isinstance(source, str) else [str(word) for word in source]
        if not words:
            raise Invalid("the command is empty", hint="for example: lepton run 'python job.py'")
        form = {"template": {"command": words}}
    begin = form.pop("start_at", None)
    if begin is not None:
        form["start_at_ms"] = _milliseconds(begin)
    form |= {key: options[key] for key in _JOB if options.get(key) is not None}
    form["template"] = _template(form.get("template"), options)
    return Asked(form, file)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        hint = "close the quote, or give the words as a list"
        raise Invalid(f"the command {text!r} cannot be split into words: {str(error).lower()}", hint=hint) from None


def _saved(data: bytes, stem: str | None, options: Mapping[str, Any], existing: Look) -> Asked:
    name = options.get("name") or stem
    if not isinstance(name, str) or not is_name(name):
        hint = "give one: deploy(model, name='movies'), or --name movies"
        raise Invalid(f"the deployment needs a name ({str(name)!r} is none)", hint=hint)
    ref = f"{name}@sha256:{hashlib.sha256(data).hexdigest()}"
    return _renewed(existing(name), name, ref, {**options, "name": name}, data)


def _renewed(
    base: Existing | None, name: str, model: str, options: Mapping[str, Any], container: bytes | None = None
) -> Asked:
    """The form of `base` with another model; a new one without."""
    form: Form = {} if base is None else dict(base.form)
    template = {key: value for key, value in form.get("template", {}).items() if key not in _OF_A_MODEL}
    form = _with({**form, "name": name, "model": model, "template": template}, options)
    return Asked(form, None, container, 0 if base is None else base.generation)


def _with(form: Form, options: Mapping[str, Any]) -> Form:
    given = {key: value for key, value in options.items() if value is not None}
    for key in _TOP:
        if key in given:
            form[key] = given[key]
    replicas = form.get("replicas")
    if isinstance(replicas, tuple | list):
        if len(replicas) != 2:
            raise Invalid(f"replicas = {replicas!r} is neither a number nor a pair", hint="for example replicas=(2, 8)")
        form["replicas"] = {"min": replicas[0], "max": replicas[1]}
    if "template" in form or any(key in given for key in (*_RESOURCES, *_TEMPLATE)):
        form["template"] = _template(form.get("template"), given)
    return form


def _template(base: Any, options: Mapping[str, Any]) -> Any:
    if base is not None and not isinstance(base, Mapping):
        return base  # the cell says what is wrong with it
    template = dict(base or {})
    for key in _TEMPLATE:
        if options.get(key) is not None:
            merged = key in ("env", "secrets") and isinstance(template.get(key), Mapping)
            template[key] = {**template[key], **options[key]} if merged else options[key]
    resources = {key: options[key] for key in _RESOURCES if options.get(key) is not None}
    if resources:
        template["resources"] = {**(template.get("resources") or {}), **resources}
    return template


def _milliseconds(begin: Any) -> int:
    """A TOML date and time (this machine's time without an offset), or a datetime, in UTC milliseconds."""
    if not isinstance(begin, datetime):
        hint = "write it without quotes: start_at = 2030-01-31T13:10:00+01:00"
        raise Invalid(f"start_at = {str(begin)[:60]!r} is not a date with a time", hint=hint)
    return round(begin.timestamp() * 1000)


def _packed(model: Any) -> bytes:
    """The bytes of a models.Model, or bytes as they are."""
    if isinstance(model, bytes):
        return model
    if hasattr(model, "container"):
        return bytes(model.container().pack())
    hint = "use a TOML file, a model, the file of a saved model, NAME@VERSION, or a dict"
    raise Invalid(f"a {type(model).__name__} cannot be deployed", hint=hint)


def container(model: Any) -> bytes:
    """The bytes to register for a model, a saved model's path, or bytes. Raises NotFound, Invalid."""
    return _bytes(Path(model).expanduser()) if isinstance(model, str | Path) else _packed(model)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="save a model first: model.save(path)") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", hint=f"check its rights: ls -l {path}") from None


def _known(options: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for key in options:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(names)}"
            raise Invalid(f"there is no option {key!r}", hint=hint)
