"""The public client as its users run it: `lep` 0.47.1, unmodified, from an environment of its own.

Owns how it is started and how what it prints is read. Nothing of it is imported into our own environment. One start
costs about a second of CPU, so tests tell a story in few commands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cell import Cell, Done

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".venv" / "lep"
HTTP = httpx.Client(timeout=60, trust_env=False)
_OURS = ("LEPTON_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "PYTHONPATH", "VIRTUAL_ENV")


def ready() -> Path:
    """The folder of the client's programs; made by .ci/setup when it is not there yet."""
    subprocess.run([str(ROOT / ".ci" / "setup"), "lep"], check=True, timeout=900, stdin=subprocess.DEVNULL)
    return HOME / "bin"


@dataclass
class Lep:
    """`lep` against a cell, by a token of one workspace: `lep("job", "list")`."""

    cell: Cell
    bin: Path
    cache: Path
    token: str = field(repr=False)
    workspace: str = "default"
    env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.cell.state.api_url}/api/v2/workspaces/{self.workspace}"

    @property
    def credentials(self) -> dict[str, str]:
        return {
            "LEPTON_WORKSPACE_ID": self.workspace,
            "LEPTON_WORKSPACE_TOKEN": self.token,
            "LEPTON_WORKSPACE_URL": self.url,
        }

    def __call__(self, *words: str, typed: str = "", code: int = 0, timeout_s: float = 120.0) -> Done:
        """One command with nobody but `typed` at the keyboard; asserts its exit code."""
        done = self.run([str(self.bin / "lep"), *words], self.credentials, typed=typed, timeout_s=timeout_s)
        shown = f"lep {' '.join(words)}: exit {done.code}\n{done.out}\n{done.err}"
        assert done.code == code, shown
        assert "Traceback (most recent call last)" not in done.out + done.err, shown
        assert "Skipped" not in done.err, shown
        return done

    def run(self, command: list[str], env: dict[str, str], *, typed: str = "", timeout_s: float = 120.0) -> Done:
        """A program of the client's environment, without this machine's own settings."""
        done = subprocess.run(
            command, env=self.environment(env), cwd=self.cache, capture_output=True, text=True, encoding="utf-8",
            timeout=timeout_s, check=False, input=typed,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, path: str, **query: Any) -> Any:
        """By the client's own route, but without a start of the client: what is looked at again and again."""
        answer = HTTP.get(self.url + path, params=query, headers={"authorization": f"Bearer {self.token}"})
        return answer.raise_for_status().json()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """One command in the background, its two streams as one."""
        return subprocess.Popen(
            [str(self.bin / "lep"), *words], env=self.environment(self.credentials), cwd=self.cache, text=True,
            encoding="utf-8", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        # It asks PyPI for news at most once a day, by this file.
        (self.cache / "latest_version_check").write_text(str(time.time()), "utf-8")
        clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(_OURS)}
        fixed = {
            "LEPTON_CACHE_DIR": str(self.cache),
            "COLUMNS": "400",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONIOENCODING": "utf-8",
            "TERM": "dumb",
        }
        return {**clean, **fixed, **more, **self.env}


def rows(text: str, *, ruled: bool = True) -> list[list[str]]:
    """The cells of the tables in `text`, headings included. `ruled`: rows are parted by lines, and may be of many."""
    found: list[list[str]] = []
    fresh = True
    for line in text.splitlines():
        if not re.match(r"^\s*[│┃|]", line):
            fresh = True
            continue
        cells = [cell.strip() for cell in re.split(r"[│┃]", line.strip().strip("│┃"))]
        if not any(cells) or all(set(cell) <= {"-"} for cell in cells):
            fresh = True
        elif fresh or not ruled or len(found[-1]) != len(cells):
            found.append(cells)
            fresh = False
        else:
            found[-1] = [f"{old} {new}".strip() for old, new in zip(found[-1], cells, strict=True)]
    return found


def document(text: str) -> Any:
    """The first JSON object or array in `text`."""
    start = min(place for place in (text.find("{"), text.find("[")) if place >= 0)
    return json.JSONDecoder().raw_decode(text[start:])[0]


def documents(text: str) -> list[Any]:
    """Every JSON object in `text`, from the first brace on."""
    found, at, decoder = [], text.find("{"), json.JSONDecoder()
    while at >= 0:
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = text.find("{", end)
    return found
