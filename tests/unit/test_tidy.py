"""The rules of the house that a machine can check: sizes, names, words, and that the documents agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lepton_ai

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted(
    path
    for top in ("lepton_ai", "tests", "bench", "examples")
    for path in (ROOT / top).rglob("*.py")
    if "out" not in path.parts
)
LIBRARY = [path for path in PYTHON if path.is_relative_to(ROOT / "lepton_ai")]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 100
VAGUE = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
MAY_PRINT = ("lepton_ai/cli/", "lepton_ai/demo/")
MISSING = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error", "place" + "holder", "for" + " now")
MACHINE_PATH = re.compile(r"(?<![\w.:/~}-])/(?:work|farm|root|home/\w+|Users/\w+|tmp/(?:venv|work))/[a-zA-Z.]")
ALEMBIC = "migrations"


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_check() -> None:
    assert len(LIBRARY) > 10


def test_files_are_short() -> None:
    long = {
        name(path): lines for path in PYTHON if (lines := len(path.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"split by noun: {long}"


def test_functions_are_short() -> None:
    long = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name(path)}:{node.lineno} {node.name}"] = lines
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def test_names_are_one_lower_case_word() -> None:
    bad = []
    for path in LIBRARY:
        parts = path.relative_to(ROOT / "lepton_ai").with_suffix("").parts
        if ALEMBIC in parts:
            parts = parts[: parts.index(ALEMBIC)]
        bad += [
            name(path) for part in parts if part in VAGUE or not re.fullmatch(r"[a-z][a-z0-9]*|__init__|__main__", part)
        ]
    assert not bad, f"one lower-case word that says what it owns: {bad}"


def test_packages_are_one_level_deep() -> None:
    deep = [name(p) for p in LIBRARY if len(p.relative_to(ROOT / "lepton_ai").parts) > 2 and ALEMBIC not in p.parts]
    assert not deep, f"split by noun instead of adding a level: {deep}"


def test_every_module_says_what_it_owns() -> None:
    silent = [
        name(path)
        for path in LIBRARY
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not silent, f"no module docstring: {silent}"


def test_the_library_does_not_print() -> None:
    loud = []
    for path in LIBRARY:
        if name(path).startswith(MAY_PRINT) or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                loud.append(f"{name(path)}:{node.lineno}")
    assert not loud, f"use logging.getLogger(__name__): {loud}"


def test_nothing_stands_where_something_is_missing() -> None:
    pattern = re.compile("|".join(rf"\b{word}\b" for word in MISSING))
    found = [
        f"{name(path)}:{number} {line.strip()[:60]}"
        for path in LIBRARY
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, found


def test_no_path_of_a_machine() -> None:
    files = [*PYTHON, *DOCUMENTS, ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / ".ci").iterdir()]
    files += sorted((ROOT / "examples").rglob("*.toml"))
    found = [
        f"{name(path)}:{number} {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, found


def test_the_path_rule_can_fail() -> None:
    assert MACHINE_PATH.search("open('/" + "root/x')")
    assert not MACHINE_PATH.search("https://example.org/work/x and ~/work/x and {blobs}/work/x")


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```[^\n]*\n(.*?)^```", path.read_text("utf-8"), flags=re.S | re.M)


def test_both_languages_carry_the_same_code() -> None:
    english, chinese = blocks(ROOT / "README.md"), blocks(ROOT / "README.zh-CN.md")
    assert english, "README.md shows no code"
    assert english == chinese


def test_translated_pages_carry_the_same_code() -> None:
    for path in (ROOT / "docs").rglob("*.zh-CN.md"):
        assert blocks(path.with_name(path.name.replace(".zh-CN.md", ".md"))) == blocks(path), name(path)


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^## \[?{re.escape(lepton_ai.__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert f'version = "{lepton_ai.__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_architecture_fits_in_the_head() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text("utf-8").splitlines()) <= 250


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                broken.append(f"{name(path)} -> {target}")
    assert not broken, broken


def test_make_and_ci_run_the_same_command() -> None:
    assert re.search(r"^(?:exec )?make test", (ROOT / ".ci/run").read_text("utf-8"), re.M)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {"demo", "test", "check", "soak", "bench", "clean", "help"} <= targets
