"""Where bytes lie: one URL, read once, and what each engine must be told to reach it.

Owns the form of a lake's URLs and the rule that nothing leaves this machine in plain text. Credentials come from the
environment in the providers' own variables (AWS_*, GOOGLE_*, AZURE_*), never from a URL, which ends up in logs.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from lepton_ai.errors import DiskFull, Invalid, Unsupported
from lepton_ai.settings import is_loopback

SCHEMES = ("file", "s3", "gs", "az", "memory")
_OPTIONS = {
    "s3": ("endpoint", "region", "addressing"),
    "gs": ("endpoint",),
    "az": ("endpoint", "account"),
    "memory": (),
}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]\Z")
# The client's own patience, so that a store that is away is told within seconds and not minutes.
RETRIES = 4
RETRY_S = 20.0
CONNECT_S = 5.0
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A folder (`file`), or a prefix of a bucket. `options` are those of the URL's query."""

    scheme: str
    bucket: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> Place:
        """The place that `url` names: a path, file:///PATH, or BUCKET and prefix of s3://, gs://, az://.

        s3://BUCKET/PREFIX?endpoint=http://127.0.0.1:8333&region=R   (a store of one's own; http only on loopback)
        Raises Unsupported for other schemes, Invalid.
        """
        text = os.fspath(url)
        if "://" not in text:
            if not text:
                raise Invalid("the lake's address is empty", hint="use file:///PATH, or a path")
            return cls("file", "", os.fspath(Path(text).expanduser().absolute()))
        parts = urlsplit(text)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
                raise Invalid(f"{text!r} is not the address of a folder", hint="use file:///PATH with three slashes")
            return cls("file", "", os.path.normpath(unquote(parts.path)))
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise Unsupported(f"objects on {parts.scheme[:40]}:// cannot be had here", hint=f"use one of {known}")
        if "@" in parts.netloc:
            raise Invalid("credentials do not belong into a URL", hint="set the provider's environment variables")
        if not _BUCKET.match(parts.netloc):
            raise Invalid(f"{parts.netloc[:80]!r} is not a bucket", hint=f"for example {parts.scheme}://my-lake/prefix")
        path = unquote(parts.path).strip("/")
        if any(part in (".", "..") for part in path.split("/")) or not path.isprintable():
            raise Invalid(f"{path[:80]!r} is not a prefix", hint="use names joined by /")
        return cls(parts.scheme, parts.netloc, path, _options(parts.scheme, parts.query))

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, if it is one."""
        return Path(self.path) if self.scheme == "file" else None

    @property
    def url(self) -> str:
        """The URL that names it; `Place.of` reads it back."""
        if self.scheme == "file":
            return Path(self.path).as_uri()
        query = f"?{urlencode(dict(self.options))}" if self.options else ""
        return f"{self.scheme}://{self.bucket}{'/' + self.path if self.path else ''}{query}"

    def below(self, name: str) -> Place:
        """The place `name` within this one."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}" if self.path else name)

    def make(self) -> None:
        """Make the folder (0700), if it is one. Raises Invalid, DiskFull."""
        folder = self.folder
        if folder is None:
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise Invalid(f"{folder} is a file, not a folder", hint="name a folder for the lake") from None
        except OSError as error:
            if error.errno in (28, 122):
                raise DiskFull(f"no room to make {folder}", hint="free some space, or choose another disk") from None
            raise Invalid(
                f"cannot make {folder}: {error.strerror}", hint="choose a folder that you may write"
            ) from None

    def store(self) -> Any:
        """An `obstore` store of this place; raises Invalid when its options do not suffice."""
        if self.scheme == "memory":
            return _memory(self.bucket, self.path)
        return _store(self.scheme, self.bucket, self.path, tuple(sorted(self.options.items())))

    def table(self) -> tuple[str, dict[str, str]]:
        """(URI, storage options) for `deltalake`. Raises Unsupported for memory://."""
        if self.scheme == "file":
            return self.path, {}
        if self.scheme == "memory":
            raise Unsupported("tables do not lie in memory://", hint="use a folder")
        prefix = f"/{self.path}" if self.path else ""
        return f"{self.scheme}://{self.bucket}{prefix}", _engine(self.scheme, dict(self.options))


def _options(scheme: str, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _OPTIONS[scheme]:
            known = ", ".join(_OPTIONS[scheme]) or "none"
            raise Invalid(f"{key[:40]!r} is not an option of a {scheme}:// address", hint=f"options: {known}")
        found[key] = value
    endpoint = found.get("endpoint", "")
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"endpoint {endpoint[:80]!r} is not a URL", hint="for example https://s3.example.com")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            hint = "use https, or a store on this machine"
            raise Invalid(f"endpoint {endpoint[:80]} would send everything in plain text", hint=hint)
    return found


def _engine(scheme: str, options: dict[str, str]) -> dict[str, str]:
    """Options as both engines (obstore, deltalake) name them."""
    named: dict[str, str] = {}
    endpoint = options.get("endpoint")
    if scheme == "s3":
        named["aws_region"] = options.get("region") or os.environ.get("AWS_REGION") or "us-east-1"
        if endpoint:
            named |= {"aws_endpoint": endpoint, "aws_virtual_hosted_style_request": "false"}
        if options.get("addressing") == "virtual":
            named["aws_virtual_hosted_style_request"] = "true"
        named["aws_conditional_put"] = "etag"
    if scheme == "az":
        if options.get("account"):
            named["azure_storage_account_name"] = options["account"]
        if endpoint:
            named["azure_storage_endpoint"] = endpoint
    if scheme == "gs" and endpoint:
        named["google_base_url"] = endpoint
    if endpoint and endpoint.startswith("http:"):
        named["allow_http"] = "true"
    return named


@functools.cache
def _memory(bucket: str, path: str) -> Any:
    """For as long as the process lives: there is nothing else that has these bytes."""
    from obstore.store import MemoryStore

    return MemoryStore()


@functools.lru_cache(maxsize=256)
def _store(scheme: str, bucket: str, path: str, options: tuple[tuple[str, str], ...]) -> Any:
    from datetime import timedelta

    from obstore import store
    from obstore.exceptions import BaseError

    if scheme == "file":
        return store.LocalStore(path, automatic_cleanup=True)  # else `a` could not be put after `a/b` was deleted
    config: Any = _engine(scheme, dict(options))
    http = config.pop("allow_http", None)
    client: Any = {"connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=TIMEOUT_S)}
    if http:
        client["allow_http"] = True
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}
    kind: Any = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[scheme]
    try:
        return kind(bucket, prefix=path or None, config=config, client_options=client, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        cause = str(error).splitlines()[0][:200]
        raise Invalid(
            f"{scheme}://{bucket} cannot be used: {cause}", hint="check region, endpoint, credentials"
        ) from None
