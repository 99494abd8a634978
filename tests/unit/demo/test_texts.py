"""Both languages say the same things with the same figures, and every line that the demo asks for exists."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

import lepton_ai.demo
from lepton_ai.demo.run import STAGES
from lepton_ai.demo.texts import LANGS, TEXTS, Texts

FOLDER = Path(lepton_ai.demo.__file__).parent


def figures(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", sorted(TEXTS))
def test_both_languages_are_complete(key: str) -> None:
    english, chinese = TEXTS[key]
    assert english.strip()
    assert chinese.strip()
    assert figures(english) == figures(chinese)


def test_chinese_is_chinese() -> None:
    same = {key for key, (english, chinese) in TEXTS.items() if english == chinese}
    assert not same
    without = {
        key for key, (_, chinese) in TEXTS.items() if not any("\u4e00" <= letter <= "\u9fff" for letter in chinese)
    }
    assert not without


def used() -> set[str]:
    """Keys that the code asks for: the first argument of every call of `say` and `texts`."""
    found = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args and _name(node.func) in ("say", "texts", "_texts"):
                found |= {
                    leaf.value
                    for leaf in ast.walk(node.args[0])
                    if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str) and leaf.value in TEXTS
                }
                if isinstance(node.args[0], ast.Constant):
                    assert node.args[0].value in TEXTS, f"{path.name}:{node.lineno} asks for {node.args[0].value!r}"
    return found


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def test_every_line_is_used_and_every_used_line_exists() -> None:
    composed = {key for key in TEXTS if key.startswith(("claim.", "stage.", "board."))}
    assert TEXTS.keys() - composed <= used()


def claims() -> set[str]:
    found = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in ("at_least", "at_most", "holds") and node.args:
                assert isinstance(node.args[0], ast.Constant)
                found.add(str(node.args[0].value))
    return found


def test_every_claim_has_words() -> None:
    assert {f"claim.{name}" for name in claims()} == {key for key in TEXTS if key.startswith("claim.")}


def test_there_are_eight_stages_with_names() -> None:
    assert len(STAGES) == 8
    assert len([key for key in TEXTS if key.startswith("stage.")]) == 8


@pytest.mark.parametrize("lang", LANGS)
def test_figures_go_into_the_line(lang: str) -> None:
    line = Texts(lang)("kill.replica", replica="ab", node="node-1", failed=0, sent=12345, seconds=1.234)  # type: ignore[arg-type]
    assert "node-1" in line
    assert "12,345" in line
    assert "1.23" in line
