"""The log of a Delta table on a folder, as far as appending needs it: newest version, columns, transaction ids.

Owns reading the log from its last checkpoint on, version by version, and creating the next entry. It exists because
the engine takes 16 ms to look, to find a transaction id and to commit, and this takes one: that is what many writers
share. Everything else (reading tables, deleting, compaction, checkpoints) is the engine's. The form is the Delta
Lake protocol's (PROTOCOL.md of delta-io/delta), writer version 2; tables that ask for more are not `plain`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict, Corrupt, Unavailable
from lepton_ai.spec.base import uuid7

WRITER_VERSION = 2
READER_VERSION = 1
CHECKPOINT_EVERY = 100
_ASKS = ("delta.constraints.", "delta.enableChangeDataFeed", "delta.columnMapping.mode")
_OFF = ("false", "none", "")


class DeltaLog:
    """The log of the table in `folder`, up to `version`. `refresh` before use; not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "_delta_log"
        self.name = folder.name
        self.version = -1
        self.schema = ""
        """the table's columns as Delta's JSON text"""
        self._protocol_plain = self._metadata_plain = True
        self.transactions: dict[str, int] = {}

    @property
    def plain(self) -> bool:
        """Whether an append needs nothing that `append` does not do."""
        return self._protocol_plain and self._metadata_plain

    def refresh(self) -> None:
        """Read what was committed since. Raises Corrupt, OSError."""
        if self.version < 0:
            self._load()
        while self._take(self.version + 1):
            self.version += 1
        if self.version < 0 or (self.plain and not self.schema):
            raise Corrupt(f"the log of table {self.name} says nothing of its columns", hint="restore it from a copy")

    def append(self, actions: Iterable[dict[str, Any]]) -> int:
        """Create the next entry from `actions`; its version.

        Raises Conflict when there is one already, OSError, and Unavailable when it is there but the device did not
        confirm it.
        """
        version = self.version + 1
        path = self._path(version)
        part = self._log / f".{uuid7()}.part"
        lines = [json.dumps(action, separators=(",", ":")) for action in actions]
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(part, path)  # only where there is none
        except FileExistsError:
            raise Conflict(f"others wrote table {self.name} at the same time", hint="write again") from None
        finally:
            part.unlink(missing_ok=True)
        self._note(lines)
        self.version = version
        try:
            descriptor = os.open(self._log, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Everybody sees it; whether it outlives a power cut, nobody knows.
            hint = "check the device; the same transaction id tells whether it is in"
            raise Unavailable(
                f"version {version + 1} of {self.name} is not confirmed: {error.strerror}", hint=hint
            ) from None
        return version

    def entry(self, version: int) -> list[dict[str, Any]] | None:
        """The actions of a version; None when its entry was cleaned away. Raises Corrupt."""
        try:
            text = self._path(version).read_text("utf-8")
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except FileNotFoundError:
            return None
        except ValueError:
            raise Corrupt(
                f"version {version + 1} of {self.name} cannot be read", hint="restore it from a copy"
            ) from None

    # -- reading

    def _path(self, version: int) -> Path:
        return self._log / f"{version:020d}.json"

    def _load(self) -> None:
        """From the last checkpoint, or from the first entry."""
        try:
            last = json.loads((self._log / "_last_checkpoint").read_text())
            version, parts = int(last["version"]), last.get("parts")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            raise Corrupt(f"the log of table {self.name} is damaged", hint="remove its _last_checkpoint") from None
        if parts or "v2Checkpoint" in last:
            self._protocol_plain, self.version = False, version
            return
        self._checkpoint(version)
        self.version = version

    def _checkpoint(self, version: int) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        path = self._log / f"{version:020d}.checkpoint.parquet"
        try:
            found = parquet.read_table(path, columns=["txn", "metaData", "protocol"]).to_pylist()
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise Corrupt(f"a checkpoint of table {self.name} cannot be read: {error}", hint="restore it") from None
        for row in found:
            for kind in ("protocol", "metaData", "txn"):
                if row.get(kind) is not None:
                    self._act(kind, row[kind])

    def _take(self, version: int) -> bool:
        try:
            text = self._path(version).read_text("utf-8")
        except FileNotFoundError:
            return False
        except UnicodeDecodeError:
            raise Corrupt(
                f"version {version + 1} of {self.name} cannot be read", hint="restore it from a copy"
            ) from None
        self._note(text.splitlines())
        return True

    def _note(self, lines: Iterable[str]) -> None:
        any_line = False
        for line in lines:
            # Most lines add files, and of them nothing needs to be known.
            if line.startswith('{"add"') or not line.strip():
                any_line = any_line or bool(line.strip())
                continue
            any_line = True
            try:
                ((kind, value),) = json.loads(line).items()
                if kind in ("protocol", "metaData", "txn"):
                    self._act(kind, value)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise self._unreadable(self.version + 1) from None
        if not any_line:
            raise self._unreadable(self.version + 1)

    def _unreadable(self, version: int) -> Corrupt:
        return Corrupt(f"version {version + 1} of table {self.name} cannot be read", hint="restore it from a copy")

    def _act(self, kind: str, value: dict[str, Any]) -> None:
        if kind == "txn":
            self.transactions[str(value["appId"])] = int(value["version"])
        elif kind == "protocol":
            writer, reader = int(value["minWriterVersion"]), int(value["minReaderVersion"])
            self._protocol_plain = writer <= WRITER_VERSION and reader <= READER_VERSION
        else:
            self.schema = str(value["schemaString"])
            settings = value.get("configuration") or {}
            pairs = settings.items() if isinstance(settings, dict) else settings  # Parquet's maps are lists of pairs
            asks = [key for key, text in pairs if key.startswith(_ASKS) and str(text).lower() not in _OFF]
            invariants = '"delta.invariants"' in self.schema
            self._metadata_plain = not value.get("partitionColumns") and not asks and not invariants


def checkpoint(folder: Path) -> None:
    """Have the engine write a checkpoint of the table, so that opening it stays quick. A failure costs only speed."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    with contextlib.suppress(DeltaError, OSError):
        DeltaTable(str(folder)).create_checkpoint()
