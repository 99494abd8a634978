"""Every error a user can meet: one small tree, each with a code, an HTTP status and a hint.

Owns the classes only; it imports nothing, so that anything may import it. Internal bugs are assertions, not
errors of this tree. A hint says what to do next, as a command that can be run where there is one.
"""

from __future__ import annotations

from typing import ClassVar


class LeptonError(Exception):
    """An error with a true cause and, where something can be done about it, a hint.

    Args:
        message: one sentence that says what is wrong, with the offending value.
        hint: what to do next; printed after ``hint:`` by the command line.
        details: machine-readable facts (JSON types) that travel in an HTTP error body.
    """

    code: ClassVar[str] = "Internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class Invalid(LeptonError):
    """The input is not acceptable as it stands (a bad spec, name, query or file)."""

    code = "InvalidParameter"
    status = 400


class Unauthorized(LeptonError):
    """No token, or one that is not known."""

    code = "Unauthorized"
    status = 401


class Forbidden(LeptonError):
    """A known caller that may not do this."""

    code = "Forbidden"
    status = 403


class NotFound(LeptonError):
    """The named thing does not exist (or is invisible to the caller)."""

    code = "NotFound"
    status = 404


class Conflict(LeptonError):
    """The thing exists already, or was changed by someone else since it was read."""

    code = "Conflict"
    status = 409


class StaleEpoch(Conflict):
    """A write by a loop whose leader lease has passed to another process."""

    code = "StaleEpoch"


class TooLarge(LeptonError):
    """A body, file or answer over its limit."""

    code = "TooLarge"
    status = 413


class Unplaceable(LeptonError):
    """No node can take the work; ``details["nodes"]`` holds the verdict of every node."""

    code = "Unplaceable"
    status = 422


class Busy(LeptonError):
    """A bounded queue is full or a limit is reached; trying again later can help."""

    code = "Busy"
    status = 429


class Corrupt(LeptonError):
    """Stored bytes are not what was written (digest, schema or format does not match)."""

    code = "Corrupt"
    status = 500


class Failed(LeptonError):
    """Work that was asked for ran and failed (a release, a job, a stage)."""

    code = "Failed"
    status = 500


class Unsupported(LeptonError):
    """Understood, but this build, platform or setting cannot do it."""

    code = "Unsupported"
    status = 501


class Unavailable(LeptonError):
    """A part of the cell that is needed does not answer."""

    code = "Unavailable"
    status = 503


class Timeout(LeptonError):
    """Something did not happen within its time limit."""

    code = "Timeout"
    status = 504


class DiskFull(LeptonError):
    """No room on the device; nothing half written was kept."""

    code = "DiskFull"
    status = 507


BY_CODE: dict[str, type[LeptonError]] = {
    cls.code: cls
    for cls in (
        LeptonError,
        Invalid,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        StaleEpoch,
        TooLarge,
        Unplaceable,
        Busy,
        Corrupt,
        Failed,
        Unsupported,
        Unavailable,
        Timeout,
        DiskFull,
    )
}
"""Error classes by code, so that a client can raise what the server raised."""
