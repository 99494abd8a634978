"""What a user may name becomes a form; TOML files are read as data, and their errors know the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.client import source, specfile
from lepton_ai.client.source import Existing
from lepton_ai.errors import Invalid, LeptonError, NotFound, TooLarge

OLD = {
    "name": "movies",
    "replicas": {"min": 2, "max": 4},
    "survive": {"node": 1},
    "idle_timeout_s": None,
    "target_in_flight": 16.0,
    "template": {
        "command": ["python", "-m", "lepton_ai.serve"],
        "env": {"A": "1"},
        "resources": {"cpu_milli": 300, "memory_mib": 512},
        "model": "movies@1",
        "blobs": [{"digest": "sha256:" + "0" * 64, "size_bytes": 1, "path": "model.lepton"}],
        "health": {"path": "/v2/health/ready"},
    },
}


def existing(name: str) -> Existing | None:
    return Existing(OLD, 5) if name == "movies" else None


def none(_: str) -> Existing | None:
    return None


def test_a_model_version_under_the_name_of_a_deployment_keeps_its_bounds_and_resources() -> None:
    asked = source.deployment("movies@2", {}, existing)
    assert asked.form["model"] == "movies@2"
    assert asked.form["replicas"] == {"min": 2, "max": 4}
    assert asked.form["template"] == {"env": {"A": "1"}, "resources": {"cpu_milli": 300, "memory_mib": 512}}
    assert asked.generation == 5
    fresh = source.deployment("movies@2", {"name": "films"}, existing)
    assert fresh.form == {"name": "films", "model": "movies@2", "template": {}}
    assert fresh.generation == 0


def test_options_go_on_top() -> None:
    options = {"replicas": (1, 3), "survive": 1, "cpu_milli": 100, "env": {"B": "2"}, "tokens": ["key-number-1"]}
    form = source.deployment("movies", options, existing).form
    assert form["replicas"] == {"min": 1, "max": 3}
    assert form["survive"] == 1
    assert form["template"]["env"] == {"A": "1", "B": "2"}
    assert form["template"]["resources"] == {"cpu_milli": 100, "memory_mib": 512}
    assert form["template"]["command"] == OLD["template"]["command"]  # type: ignore[index]
    assert OLD["replicas"] == {"min": 2, "max": 4}  # what was given is not changed
    assert OLD["template"]["env"] == {"A": "1"}  # type: ignore[index]


def test_a_dict_is_the_whole_truth_and_is_not_changed() -> None:
    given_ = {"name": "movies", "template": {"command": ["x"]}}
    asked = source.deployment(given_, {"memory_mib": 64}, existing)
    assert asked.form == {"name": "movies", "template": {"command": ["x"], "resources": {"memory_mib": 64}}}
    assert asked.generation is None
    assert given_ == {"name": "movies", "template": {"command": ["x"]}}


def test_one_word_is_a_deployment_or_else_a_model() -> None:
    assert source.deployment("movies", {}, existing).word == ""
    asked = source.deployment("movies", {}, none)
    assert (asked.form["model"], asked.word) == ("movies", "movies")
    copy = source.deployment("movies", {"name": "films"}, existing)
    assert (copy.form["name"], copy.form["model"]) == ("films", "movies")


def test_wrong_options_have_the_nearest_as_hint() -> None:
    with pytest.raises(Invalid) as caught:
        source.deployment("movies@1", {"replica": 2}, none)
    assert caught.value.hint == "did you mean 'replicas'?"
    with pytest.raises(Invalid) as caught:
        source.job("true", {"worker": 2})
    assert caught.value.hint == "did you mean 'workers'?"
    with pytest.raises(Invalid, match="neither a number nor a pair"):
        source.deployment("movies@1", {"replicas": (1, 2, 3)}, none)


def test_jobs_are_words_text_files_or_dicts(tmp_path: Path) -> None:
    assert source.job("python -c 'a b'", {}).form == {"template": {"command": ["python", "-c", "a b"]}}
    assert source.job(["x", 1], {"name": "n", "cpu_milli": 5}).form == {
        "name": "n",
        "template": {"command": ["x", "1"], "resources": {"cpu_milli": 5}},
    }
    path = tmp_path / "job.toml"
    path.write_text('workers = 2\n[template]\ncommand = ["x"]\nenv = { A = "1" }\n')
    form = source.job(path, {"env": {"B": "2"}, "workers": 3}).form
    assert form == {"workers": 3, "template": {"command": ["x"], "env": {"A": "1", "B": "2"}}}
    assert source.job({"template": {"command": ["x"]}}, {}).form["template"] == {"command": ["x"]}


def test_files_that_are_no_specs_say_why(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        specfile.read(tmp_path / "none.toml")
    for data, says in (
        (b"name = = 1", r"a\.toml:1: "),
        (b'name = "x"\nb = [1,', r"a\.toml"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a = 1\na = 2\n", r"a\.toml"),
    ):
        path = tmp_path / "a.toml"
        path.write_bytes(data)
        with pytest.raises(Invalid, match=says) as caught:
            specfile.read(path)
        assert caught.value.hint
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(TooLarge):
        specfile.read(tmp_path / "big.toml")
    with pytest.raises(Invalid, match="cannot read"):
        specfile.read(tmp_path)
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfname = 'x'\n")
    assert specfile.read(tmp_path / "bom.toml").values == {"name": "x"}


TEXT = """\
# a comment = here
name = "web"
replicas = { min = 1, max = 2 }

[template]
command = [
  "x",
]
"env" = { A = "1" }
health.path = "/"

[template.resources]
cpu_milli = 5
"""


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("name", 2),
        ("replicas", 3),
        ("replicas.min", 3),
        ("template.command.0", 6),
        ("template.env", 9),
        ("template.health.path", 10),
        ("template.resources.cpu_milli", 13),
        ("template.resources.unknown", 12),
        ("template.unknown", 5),
        ("survive", None),
    ],
)
def test_a_field_is_found_in_the_text(field: str, number: int | None) -> None:
    assert specfile.line(TEXT, field.split(".")) == number


def test_an_error_without_a_field_names_the_file_only(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(TEXT)
    file = specfile.read(path)
    with pytest.raises(Invalid) as caught, file.located():
        raise Invalid("something else", hint="do this")
    assert caught.value.message == f"{path}: something else"
    assert caught.value.hint == "do this"
    with pytest.raises(NotFound) as other, file.located():
        raise NotFound("not about the file")
    assert other.value.message == "not about the file"


@given(st.text(max_size=200), st.lists(st.text(max_size=8), max_size=4))
def test_any_text_can_be_searched(text: str, field: list[str]) -> None:
    found = specfile.line(text, field)
    assert found is None or 1 <= found <= len(text.splitlines())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_an_error_of_ours(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("f") / "a.toml"
    path.write_bytes(data)
    try:
        assert isinstance(specfile.read(path).values, dict)
    except LeptonError as error:
        assert str(path) in error.message  # noqa: PT017


def test_every_field_of_the_forms_can_be_an_option() -> None:
    asked = source.deployment(
        "movies", {"labels": {"a": "b"}, "visibility": "private", "allowlist": ["::1"], "nodes": ["node-1"]}, existing
    )
    assert (asked.form["labels"], asked.form["visibility"], asked.form["allowlist"]) == ({"a": "b"}, "private", ["::1"])
    assert asked.form["template"]["nodes"] == ["node-1"]
    options: dict[str, Any] = {"job_retries": 2, "rendezvous": True, "labels": {"a": "b"}, "image": "web:1"}
    job = source.job("true", options).form
    assert (job["job_retries"], job["rendezvous"], job["labels"]) == (2, True, {"a": "b"})
    assert job["template"] == {"command": ["true"], "image": "web:1"}


def test_a_job_in_a_file_may_say_when_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        'start_at = 2030-01-31T13:10:00Z\njob_retries = 1\n[template]\ncommand = ["true"]\n'
        '[[template.mounts]]\nvolume = "data"\ntarget = "/mnt/data"\n'
    )
    form = source.job(path, {}).form
    assert (form["start_at_ms"], form["job_retries"]) == (1_896_095_400_000, 1)
    assert form["template"]["mounts"] == [{"volume": "data", "target": "/mnt/data"}]
    path.write_text('start_at = "tomorrow"\n[template]\ncommand = ["true"]\n')
    with pytest.raises(Invalid, match="is not a date with a time"):
        source.job(path, {})


def test_a_bare_word_is_never_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("movies", "movies.lepton"):
        (tmp_path / name).write_bytes(b"a model")
    assert source.deployment("movies", {}, existing).form["template"]["command"] == OLD["template"]["command"]  # type: ignore[index]
    assert source.deployment("./movies", {}, existing).container == b"a model"
    assert source.deployment("movies.lepton", {}, existing).container == b"a model"


def test_a_command_with_an_open_quote_is_invalid() -> None:
    with pytest.raises(Invalid, match="cannot be split into words") as caught:
        source.job("echo it's", {})
    assert caught.value.hint
