"""What every command is given: its arguments, the cell it talks to, and where to print.

Owns the connection (made when first used) and the manners: results to standard output, progress and questions to
standard error, so that a pipe carries only the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lepton_ai.cli import render
from lepton_ai.cli.grammar import Usage

if TYPE_CHECKING:
    from lepton_ai.client import Cloud
    from lepton_ai.settings import Settings

Connect = Callable[["Settings"], "Cloud"]


class Session:
    """One invocation of the command line."""

    def __init__(self, arguments: argparse.Namespace, connect: Connect | None = None) -> None:
        self.arguments = arguments
        self._connect = connect or attach
        self._cloud: Cloud | None = None
        self._said = ""

    @property
    def settings(self) -> Settings:
        """The settings with this command's flags on top."""
        from lepton_ai import settings

        return settings.load(self.flags)

    @property
    def flags(self) -> dict[str, object]:
        return {
            key: getattr(self.arguments, key) for key in ("cell", "workspace", "url") if hasattr(self.arguments, key)
        }

    @property
    def cloud(self) -> Cloud:
        """The cell: connected to once. Raises Unavailable or NotFound when there is none."""
        if self._cloud is None:
            self._cloud = self._connect(self.settings)
        return self._cloud

    def close(self) -> None:
        if self._cloud is not None and hasattr(self._cloud, "close"):
            self._cloud.close()

    def print(self, text: object = "") -> None:
        print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> None:
        """A table, or `nothing` (to standard error, so that a pipe stays empty) when there are no rows."""
        if rows:
            print(render.table(columns, rows))
        else:
            self.say(nothing)

    def answer(self, value: object) -> bool:
        """With --json: print `value` and return True."""
        if not getattr(self.arguments, "json", False):
            return False
        print(render.as_json(value))
        return True

    def say(self, text: str) -> None:
        """A line about what happens or is waited for; the same line is not said twice in a row."""
        if text and text != self._said:
            self._said = text
            print(text, file=sys.stderr, flush=True)

    def confirm(self, question: str) -> bool:
        """Ask before something that cannot be undone. --yes answers yes; nobody there to ask is a usage error."""
        if self.arguments.yes:
            return True
        if not sys.stdin or not sys.stdin.isatty():
            raise Usage(f"{question} needs a yes", hint=f"add --yes: lepton {self.arguments.command} … --yes")
        print(f"{question}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return True
        self.say("nothing was changed")
        return False


def attach(settings: Settings) -> Any:
    """The cell that the settings name: by URL where one is set, else the cell of that name on this machine."""
    if settings.url:
        from lepton_ai.client import Cloud

        return Cloud(settings.url, settings.token, settings.workspace)
    from lepton_ai import cloud

    return cloud.attach(settings.cell, settings=settings)
