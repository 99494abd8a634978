"""A parser that answers a typing error with the nearest word, and prints help by groups of commands.

Owns how a command line is read and what is said of a wrong one; which commands there are is `grammar`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Never

from lepton_ai.errors import LeptonError

GROUPS = ("Start", "Work", "Data", "Manage")


class Usage(LeptonError):
    """The command line itself is wrong: exit code 2."""

    code = "Usage"
    status = 400


@dataclass(frozen=True)
class Command:
    """One command: `path` is what is typed, `handler` is `module:function` inside cli."""

    path: tuple[str, ...]
    group: str
    summary: str
    handler: str
    arguments: Callable[[argparse.ArgumentParser], None]
    kind: str = "plain"  # read: takes --json; change: takes --dry-run and --yes
    example: str = ""

    @property
    def name(self) -> str:
        return " ".join(self.path)


def fill(leaf: Parser, command: Command) -> None:
    command.arguments(leaf)
    leaf.example = command.example
    if command.kind == "read":
        leaf.add_argument("--json", action="store_true", help="print JSON")
    if command.kind == "change":
        leaf.add_argument("--dry-run", action="store_true", help="say what would happen, and change nothing")
        leaf.add_argument("--yes", "-y", action="store_true", help="do not ask")
    where = leaf.add_argument_group("where")
    for flag, text in (
        ("cell", "name of the cell (default: local)"),
        ("workspace", "workspace (default: default)"),
        ("url", "address of a cell's API elsewhere; its token comes from LEPTON_AI_TOKEN"),
    ):
        where.add_argument(f"--{flag}", metavar=flag.upper(), default=argparse.SUPPRESS, help=text)
    leaf.add_argument("-h", "--help", action=Help, nargs=0, help="show this")
    leaf.set_defaults(leaf=leaf, handler=command.handler, command=command.name)


class Parser(argparse.ArgumentParser):
    """argparse, but wrong words are answered in two lines: what is wrong, and `hint:` with what can be typed."""

    commands: Sequence[Command] = ()
    example: str = ""

    def error(self, message: str) -> Never:
        prefix = "the following arguments are required: "
        if message.startswith(prefix):
            message = f"{self.prog} needs {message.removeprefix(prefix)}"
        raise Usage(message.removeprefix("argument "), hint=self.example or self._short())

    def unknown(self, extras: Sequence[str]) -> Never:
        flags = [text.split("=", 1)[0] for text in extras if text.startswith("-") and text != "--"]
        if not flags:
            raise Usage(f"{self.prog} takes no further argument {extras[0]!r}", hint=self._short())
        near = _near(flags[0], self._option_string_actions)
        hint = f"did you mean {near}?" if near else f"{self.prog} --help lists the flags"
        raise Usage(f"{self.prog} has no flag {flags[0]}", hint=hint)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is None or value in choices:
            return
        words = [str(choice) for choice in choices]
        near = _near(str(value), words)
        if isinstance(action, argparse._SubParsersAction):
            hint = f"did you mean: {self.prog} {near}" if near else f"{self.prog} --help lists the commands"
            raise Usage(f"unknown command {value!r}", hint=hint)
        flag = action.option_strings[-1] if action.option_strings else action.dest.upper()
        hint = f"did you mean {near}?" if near else f"use one of: {', '.join(words)}"
        raise Usage(f"{flag} cannot be {value!r}", hint=hint)

    def format_help(self) -> str:
        if not self.commands:
            text = super().format_help()
            return f"{text}\nexample: {self.example}\n" if self.example else text
        width = max(len(command.name) for command in self.commands) + 2
        lines = [f"usage: {self.prog} COMMAND ...", ""]
        if self.prog == "lepton":
            lines = ["An AI cloud that a person can own: from data to a served, highly available endpoint.", "", *lines]
        for group in GROUPS:
            rows = [c for c in self.commands if c.group == group]
            if rows:
                lines += [group, *(f"  {c.name:<{width}}{c.summary}" for c in rows), ""]
        lines.append(f"{self.prog} COMMAND --help explains one.")
        if self.prog == "lepton":
            lines[-1] += " First steps: lepton doctor, lepton demo, lepton up."
        return "\n".join(lines) + "\n"

    def _short(self) -> str:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        for noise in (" [--cell CELL] [--workspace WORKSPACE] [--url URL]", " [-h]"):
            usage = usage.replace(noise, "")
        return usage if not self.commands else f"{self.prog} --help"


class Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.format_help(), end="")
        raise SystemExit(0)


class Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from lepton_ai import __version__

        print(f"lepton {__version__}")
        raise SystemExit(0)


def _near(word: str, words: Sequence[str] | dict[str, Any]) -> str | None:
    import difflib

    found = difflib.get_close_matches(word, list(words), 1, 0.5)
    return found[0] if found else None
