"""TOML files that ask for a deployment or a job: read as data, never run; errors name the file and the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Invalid, LeptonError, NotFound, TooLarge

SIZE_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class SpecFile:
    """A file that was read. `located` adds path and line to an error about one of its fields."""

    path: Path
    text: str
    values: dict[str, Any]

    @contextmanager
    def located(self) -> Iterator[None]:
        """Inside, an Invalid about a field says where in the file that is."""
        try:
            yield
        except Invalid as error:
            raise self._at(error) from None

    def _at(self, error: LeptonError) -> LeptonError:
        problems = error.details.get("errors")
        field = ""
        if isinstance(problems, list) and problems and isinstance(problems[0], Mapping):
            field = str(problems[0].get("field", ""))
        number = line(self.text, field.split(".")) if field else None
        where = str(self.path) + (f":{number}" if number else "")
        details = {**error.details, "path": str(self.path), "line": number}
        return type(error)(f"{where}: {error.message}", hint=error.hint, details=details)


def read(path: Path) -> SpecFile:
    """The file at `path`. Raises NotFound, TooLarge, Invalid (not TOML; with the line)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="check the path: ls") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", hint=f"check its rights: ls -l {path}") from None
    if len(data) > SIZE_BYTES_MAX:
        raise TooLarge(f"{path} has {len(data)} bytes", hint="a spec is a short TOML file; is this the right one?")
    try:
        text = data.decode("utf-8-sig")
        return SpecFile(path, text, tomllib.loads(text))
    except UnicodeDecodeError:
        raise Invalid(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{found[1]}" if found else str(path)
        cause = re.sub(r" \(at .*\)", "", str(error))
        hint = 'it must be TOML, for example: name = "web"'
        details: dict[str, object] = {"path": str(path), "line": int(found[1]) if found else None}
        raise Invalid(f"{where}: {cause}", hint=hint, details=details) from None


def line(text: str, field: list[str]) -> int | None:
    """The line where `field` (a path of keys) is written, or where the nearest table above it begins."""
    section: list[str] = []
    best: tuple[int, int] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        stripped = raw.strip()
        header = re.fullmatch(r"\[+\s*([^\]]+?)\s*\]+\s*(?:#.*)?", stripped)
        if header:
            section = [_bare(item) for item in header[1].split(".")]
            keys: list[str] = []
        elif found := re.match(
            r"""((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", stripped
        ):
            keys = [_bare(item) for item in found[1].split(".")]
        else:
            continue
        here = [*section, *keys]
        deep = 0
        while deep < min(len(here), len(field)) and here[deep] == field[deep]:
            deep += 1
        if deep == len(here) and (best is None or deep > best[0]):
            best = (deep, number)
    return best[1] if best else None


def _bare(key: str) -> str:
    return key.strip().strip("\"'")
