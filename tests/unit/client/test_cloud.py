"""Cloud against a served API: every verb, waiting, patience while the control plane restarts, errors."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import lepton_ai.client.http as http
import lepton_ai.lake
from lepton_ai.cli.__main__ import main
from lepton_ai.client import Answer, Cloud, Deployment
from lepton_ai.errors import (
    Conflict,
    Failed,
    Forbidden,
    Invalid,
    NotFound,
    Timeout,
    Unauthorized,
    Unavailable,
    Unplaceable,
    Unsupported,
)
from lepton_ai.models import RecommenderModel

FORM: dict[str, Any] = {"name": "web", "template": {"command": ["python", "-m", "http.server", "{port}"]}}
S = 1_000_000_000


@pytest.fixture
def cloud(stand: Any) -> Cloud:
    made: Cloud = stand.cloud(stand.serve().url)
    return made


@pytest.fixture
def loops(stand: Any) -> Iterator[Callable[..., None]]:
    """Stands in for the control loops: gives a new deployment this status as soon as it is there."""
    ending = threading.Event()
    threads: list[threading.Thread] = []

    def start(name: str, **status: Any) -> None:
        def act() -> None:
            while not ending.wait(0.01):
                if stand.store.find("default", "deployment", name) is not None:
                    stand.act("deployment", name, **status)
                    return

        threads.append(threading.Thread(target=act, daemon=True))
        threads[-1].start()

    yield start
    ending.set()
    for thread in threads:
        thread.join(10)


def done(release: int, **values: Any) -> dict[str, Any]:
    return {
        "state": "ready",
        "reason": "",
        "serving": release,
        "rollout": {"release": release, "state": "done"},
        **values,
    }


def test_deploy_waits_until_its_release_serves_and_says_for_what(
    stand: Any, cloud: Cloud, loops: Callable[..., None]
) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "no node has room" in text:
            stand.act("deployment", "web", **done(1))

    loops("web", state="starting", reason="no node has room", rollout={"release": 1, "state": "progressing"})
    made = cloud.deploy(FORM, say=say)
    assert isinstance(made, Deployment)
    assert (made.name, made.release, made.state, made.url) == ("web", 1, "ready", "http://127.0.0.1:9/default/web/")
    assert said == list(dict.fromkeys(said))
    assert said[-1] == "web#1: no node has room"


def test_a_failed_release_is_raised_with_its_log(cloud: Cloud, loops: Callable[..., None]) -> None:
    rollout = {"release": 1, "state": "failed", "reason": "3 replicas ended", "log": ["Traceback\nboom"]}
    loops("web", state="failed", rollout=rollout, serving=0)
    with pytest.raises(Failed) as caught:
        cloud.deploy(FORM)
    assert caught.value.message == "web#1 failed: 3 replicas ended"
    assert caught.value.hint == "lepton logs web"
    assert caught.value.details == {"log": ["Traceback", "boom"], "release": 1}


def test_a_release_that_another_replaces_is_a_conflict(stand: Any, cloud: Cloud, loops: Callable[..., None]) -> None:
    loops("web", state="starting", rollout={"release": 1, "state": "progressing"})
    timer = threading.Timer(0.3, stand.deploy, kwargs={"template": {"command": ["other"]}})
    timer.start()
    with pytest.raises(Conflict, match="web#2"):
        cloud.deploy(FORM)
    timer.join()


def test_deploy_gives_up_waiting_when_told_to(cloud: Cloud) -> None:
    with pytest.raises(Timeout, match="web#1 was not through"):
        cloud.deploy(FORM, timeout_s=0.1)
    assert cloud.deployment("web").release == 1


def test_what_no_node_can_hold_is_raised_at_once(cloud: Cloud) -> None:
    for verb in (cloud.plan, cloud.deploy):
        with pytest.raises(Unplaceable) as caught:
            verb(FORM, cpu_milli=99_000)
        nodes = caught.value.details["nodes"]
        assert isinstance(nodes, dict)
        assert "too small" in nodes["node-1"]
    with pytest.raises(Unplaceable):
        cloud.run("true", cpu_milli=99_000)
    assert cloud.deployments() == []


def test_a_plan_changes_nothing(cloud: Cloud) -> None:
    plan = cloud.plan(FORM, replicas=(2, 4), survive=1)
    assert plan.summary == "new deployment web, 2 replicas"
    assert [item["node"] for item in plan.placements] == ["node-1", "node-2"]
    assert plan.price_per_hour > 0
    assert cloud.deployments() == []


def test_rollback_and_releases(cloud: Cloud) -> None:
    cloud.deploy(FORM, wait=False)
    cloud.deploy(FORM, env={"V": "2"}, wait=False)
    assert [item.number for item in cloud.releases("web")] == [2, 1]
    back = cloud.rollback("web", wait=False)
    assert (back.release, back.spec["template"]["env"]) == (3, {})
    assert cloud.rollback("web", 2, wait=False).spec["template"]["env"] == {"V": "2"}
    assert cloud.restart("web", wait=False).release == 5
    with pytest.raises(NotFound, match="no release #9"):
        cloud.rollback("web", 9)


def test_the_name_of_a_deployment_changes_only_what_is_said(stand: Any, cloud: Cloud) -> None:
    cloud.deploy(FORM, replicas=(2, 4), env={"A": "1"}, tokens=["key-number-1"], wait=False)
    made = cloud.deploy("web", survive=1, env={"B": "2"}, wait=False)
    assert made.spec["replicas"] == {"min": 2, "max": 4}
    assert made.spec["template"]["env"] == {"A": "1", "B": "2"}
    assert made.protected
    assert made.release == 2
    assert cloud.deploy("web", wait=False).release == 2
    with pytest.raises(NotFound, match="no deployment or model 'wab'"):
        cloud.deploy("wab")


def test_a_form_made_from_an_older_look_does_not_undo_another(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.deploy(FORM, wait=False)
    look = cloud._existing

    def late(name: str) -> Any:
        found = look(name)
        cloud.deploy({**FORM, "replicas": 3}, wait=False)
        return found

    monkeypatch.setattr(cloud, "_existing", late)
    with pytest.raises(Conflict, match="changed meanwhile"):
        cloud.deploy("web", survive=1, wait=False)
    assert cloud.deployment("web").spec["replicas"] == {"min": 3, "max": 3}


def test_a_toml_file_is_the_whole_truth_and_its_errors_name_the_line(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    text = 'name = "web"\nreplicas = 2\n\n[template]\ncommand = ["x"]\nresources = { cpu_milli = 10 }\n'
    path.write_text(text)
    assert cloud.plan(path).summary == "new deployment web, 2 replicas"
    cloud.deploy(str(path), wait=False)
    assert cloud.deploy(path, replicas=3, wait=False).spec["replicas"]["min"] == 3
    path.write_text(text.replace("resources", "resorces"))
    for verb in (cloud.plan, cloud.deploy):
        with pytest.raises(Invalid) as caught:
            verb(path)
        assert caught.value.message.startswith(f"{path}:6: ")
        assert caught.value.hint == "did you mean 'resources'?"
    job = tmp_path / "job.toml"
    job.write_text('name = "count"\nworkers = 0\n[template]\ncommand = ["x"]\n')
    with pytest.raises(Invalid, match=r"job\.toml:2: "):
        cloud.run(job)


def test_a_model_is_registered_when_it_is_deployed_and_not_when_planned(cloud: Cloud, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.integers(0, 20, 400), rng.integers(0, 12, 400), rng.integers(1, 6, 400)])
    model = RecommenderModel().fit(rows)
    plan = cloud.plan(model, name="movies", replicas=2)
    assert plan.summary == "new deployment movies, 2 replicas of movies@1"
    assert cloud.models() == []
    made = cloud.deploy(model, name="movies", replicas=2, env={"A": "1"}, wait=False)
    assert (made.model, made.release) == ("movies@1", 1)
    (version,) = cloud.models()
    assert (version.ref, version.name, version.version, str(version)) == ("movies@1", "movies", 1, "movies@1")
    path = model.save(tmp_path / "movies.lepton")
    same = cloud.deploy(path, wait=False)
    assert (same.release, same.spec["replicas"], same.spec["template"]["env"]) == (1, {"min": 2, "max": 2}, {"A": "1"})
    assert cloud.deploy(str(path), wait=False).release == 1
    assert cloud.deploy("movies@1", wait=False).release == 1
    assert cloud.deploy(version, replicas=1, wait=False).release == 1
    assert cloud.register("movies", path, lineage={"table": "ratings@1"}).version == 2
    assert cloud.deploy("movies@2", wait=False).release == 2
    assert cloud.model("movies").number == 2
    with pytest.raises(Invalid, match="needs a name"):
        cloud.deploy(model)
    with pytest.raises(NotFound, match="no model version movies@9"):
        cloud.deploy("movies@9")
    with pytest.raises(NotFound, match="there is no file"):
        cloud.deploy("models/none.lepton")
    with pytest.raises(Invalid, match="a list cannot be deployed"):
        cloud.deploy([1, 2], name="x")


def test_jobs_run_wait_stop(stand: Any, cloud: Cloud) -> None:
    job = cloud.run("python -c 'print(1)'", name="one", retries=2, memory_mib=64)
    record = stand.store.get("default", "job", job.name)
    assert record.spec["template"]["command"] == ["python", "-c", "print(1)"]
    assert (record.spec["retries"], record.spec["template"]["resources"]["memory_mib"]) == (2, 64)
    assert cloud.run(["true"], workers=2).workers == 2
    assert len(cloud.jobs()) == 2
    said: list[str] = []
    stand.act("job", job.name, state="queued", reason="no room")
    timer = threading.Timer(0.3, stand.act, ("job", job.name), {"state": "failed", "reason": "exit code 3"})
    timer.start()
    ended = cloud.wait(job, say=said.append)
    timer.join()
    assert (ended.state, ended.reason) == ("failed", "exit code 3")
    assert said == [f"{job.name}: no room"]
    assert len(cloud.jobs()) == 1
    with pytest.raises(Timeout):
        cloud.wait(cloud.jobs()[0], timeout_s=0.05)
    assert cloud.stop(cloud.jobs()[0]).stopped
    with pytest.raises(Invalid, match="the command is empty"):
        cloud.run("")


def test_ps_shows_everything_or_one_with_its_replicas(stand: Any, cloud: Cloud) -> None:
    record = stand.deploy(replicas=2)
    stand.act("deployment", "web", state="waiting", reason="no node has room", ready=1, wanted=2)
    job = stand.run()
    stand.act("job", job.name, state="succeeded", succeeded=1)
    stand.replica(record, "node-1")
    stand.replica(record, "node-2", phase="exited")
    assert [(row.name, row.state, row.replicas, row.reason) for row in cloud.ps()] == [
        ("web", "waiting", "1/2", "no node has room")
    ]
    assert [row.name for row in cloud.ps(all=True)] == ["web", job.name]
    assert [(row.kind, row.node) for row in cloud.ps("web")] == [("deployment", None), ("replica", "node-1")]
    assert len(cloud.ps("web", all=True)) == 3
    assert [row.replicas for row in cloud.ps(job.name)] == ["1/1"]
    with pytest.raises(NotFound) as caught:
        cloud.ps("wbe")
    assert caught.value.hint == "did you mean web?"


def test_delete_finds_deployments_and_jobs(stand: Any, cloud: Cloud) -> None:
    stand.deploy()
    job = stand.run()
    cloud.delete("web")
    cloud.delete(job.name)
    assert stand.store.get("default", "deployment", "web").deleting
    assert stand.store.get("default", "job", job.name).deleting
    with pytest.raises(NotFound, match="no deployment or job 'none'"):
        cloud.delete("none")


def test_the_cell_its_nodes_tokens_secrets_and_events(stand: Any, cloud: Cloud) -> None:
    stand.node("node-1", state="ready")
    assert cloud.health() == {"name": "local", "leading": True, "uid": "cell-uid"}
    assert cloud.cell().nodes == ["node-1"]
    assert cloud.drain("node-1").state == "draining"
    assert cloud.undrain("node-1").state == "ready"
    assert [(node.name, node.cpu_milli) for node in cloud.nodes()] == [("node-1", 1000)]
    text = cloud.create_token("ci", role="viewer", days=1)
    assert "ci" in [token.name for token in cloud.tokens()]
    with Cloud(cloud._http.url, text) as viewer:
        assert viewer.ps() == []
        with pytest.raises(Forbidden) as caught:
            viewer.deploy(FORM)
        assert "use a token with role" in str(caught.value.hint)
    cloud.delete_token("ci")
    with Cloud(cloud._http.url, text) as viewer, pytest.raises(Unauthorized):
        viewer.ps()
    cloud.set_secret("KEY", "value")
    assert cloud.secrets() == ["KEY"]
    cloud.delete_secret("KEY")
    assert cloud.secrets() == []
    stand.cell.events.add("default", "deployment", "web", "Warning", "State", "x")
    assert [(event.name, event.message) for event in cloud.events("deployment", "web")] == [("web", "x")]


def test_logs_go_on_after_the_control_plane_came_back_and_no_line_comes_twice(stand: Any) -> None:
    record = stand.deploy()
    replica = stand.replica(record)
    stand.live.lines[replica.uid] = [(n * S, "o", f"line {n}") for n in range(1, 4)]
    server = stand.serve()
    cloud = stand.cloud(server.url)
    stream = cloud.logs("web", follow=True)
    assert [next(stream).line for _ in range(3)] == ["line 1", "line 2", "line 3"]
    server.stop(force=True)
    stand.live.lines[replica.uid].append((4 * S, "o", "line 4"))
    back = threading.Timer(0.4, stand.serve, (server.port,))
    back.start()
    assert next(stream).line == "line 4"
    back.join()
    stream.close()
    assert [line.line for line in cloud.logs("web", lines=2)] == ["line 3", "line 4"]
    assert [line.line for line in cloud.logs("web", grep="2")] == ["line 2"]
    with pytest.raises(NotFound):
        next(cloud.logs("none"))


# -- patience


def test_a_restart_of_the_control_plane_is_waited_for(stand: Any) -> None:
    server = stand.serve()
    cloud = stand.cloud(server.url, patience_s=20)
    assert cloud.ps() == []
    server.stop()
    back = threading.Timer(0.4, stand.serve, (server.port,))
    back.start()
    assert cloud.ps() == []  # nothing listened when it was asked
    assert cloud.run("true").state == "queued"
    back.join()


def test_a_cell_that_stays_away_is_told_after_a_moment(stand: Any) -> None:
    server = stand.serve()
    cloud = stand.cloud(server.url, patience_s=0.3)
    server.stop()
    for ask in (cloud.ps, lambda: cloud.run("true"), lambda: next(cloud.logs("web"))):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.hint == "start it: lepton up"
    started_s = time.monotonic()
    with pytest.raises(Unavailable):
        cloud.health()
    assert time.monotonic() - started_s < 5


def test_the_lake_is_opened_directly_only_on_its_machine(stand: Any, cloud: Cloud, monkeypatch: Any) -> None:
    with pytest.raises(Unsupported):
        _ = cloud.lake  # its folder is not here
    (stand.folder / "lake").mkdir()
    assert cloud.lake.url == cloud.cell().lake_url
    assert cloud.lake is cloud.lake
    elsewhere = stand.cloud(cloud._http.url)
    monkeypatch.setattr(elsewhere._http, "url", "http://10.0.0.1:80")
    monkeypatch.setattr(elsewhere, "cell", cloud.cell)
    with pytest.raises(Unsupported) as caught:
        _ = elsewhere.lake
    assert "cloud.query" in str(caught.value.hint)


def test_values_show_as_tables_and_trust_no_text() -> None:
    answer = Answer.of({"columns": ["<b>"], "rows": [["<script>"]] * 60, "new_field_of_a_newer_cell": 1})
    shown = answer._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "and 10 more rows" in shown
    assert "ready" in Deployment.of({"name": "web", "state": "ready"})._repr_html_()


def test_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with http.client("http://127.0.0.1:80") as near, http.client("http://10.1.2.3:80") as far:
        assert not near.trust_env
        assert far.trust_env


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_the_command_line_prints_what_comes_back(
    stand: Any, cloud: Cloud, capsys: pytest.CaptureFixture[str], tmp_path: Path, json_flag: list[str]
) -> None:
    stand.node("node-1", state="ready")
    record = stand.deploy()
    replica = stand.replica(record)
    stand.live.lines[replica.uid] = [(S, "o", "hello")]
    path = tmp_path / "web.toml"
    path.write_text('name = "other"\n[template]\ncommand = ["x"]\n')

    class Kept:
        """The same connection for every command."""

        def __getattr__(self, name: str) -> Any:
            return getattr(cloud, name)

        def close(self) -> None:
            """The next command uses it again."""

    def lepton(*words: str) -> str:
        assert main(words, connect=lambda _: Kept()) == 0, (words, capsys.readouterr().err)  # type: ignore[arg-type,return-value]
        return capsys.readouterr().out

    for words, text in (
        (["ps"], "web"),
        (["ps", "web"], replica.name),
        (["logs", "web"], "hello"),
        (["node", "ls"], "node-1"),
        (["token", "ls"], "developer"),
    ):
        out = lepton(*words, *json_flag)
        assert text in out
        if json_flag and words[0] != "logs":
            assert json.loads(out)
    assert "plan: new deployment other, 1 replica" in lepton("deploy", str(path), "--dry-run")
    assert lepton("deploy", str(path), "--no-wait").splitlines()[-1] == "call  lepton call other JSON"
    assert lepton("run", "--detach", "true").startswith("job-")
    assert lepton("rm", "web", "--yes") == "removed web\n"


@pytest.mark.parametrize(
    ("url", "token", "workspace", "says"),
    [
        ("http://h:abc", "", "default", "not the address"),
        ("http://[::1", "", "default", "not the address"),
        ("ftp://127.0.0.1", "", "default", "not the address"),
        ("http://127.0.0.1:1", "tok\u00e9n", "default", "letters that no token has"),
        ("http://127.0.0.1:1", "a\nb", "default", "letters that no token has"),
        ("http://127.0.0.1:1", "", "../x", "not a workspace's name"),
        ("http://10.1.2.3:8600", "secret", "default", "plain text"),
        ("http://cell.example:8600", "secret", "default", "plain text"),
    ],
)
def test_what_could_never_work_or_would_give_the_token_away_is_refused(
    url: str, token: str, workspace: str, says: str
) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        Cloud(url, token, workspace)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://10.1.2.3:8600", "http://127.0.0.1:8600", "http://[::1]:8600"])
def test_a_token_goes_encrypted_or_stays_on_this_machine(url: str) -> None:
    Cloud(url, "secret").close()


def test_a_follower_that_lost_its_connection_shows_nothing_older_than_it_began_with(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(replica: str, ns: int, text: str) -> str:
        return json.dumps({"ns": ns, "stream": "stdout", "line": text, "replica": replica})

    answers = [
        [line("a", 100, "newest"), httpx.ReadError("gone")],
        [line("b", 5, "an hour ago"), line("a", 100, "newest"), line("b", 101, "new of b"), line("a", 102, "last")],
    ]

    class Broken:
        def __init__(self, lines: list[Any]) -> None:
            self.lines = lines

        def iter_lines(self) -> Iterator[str]:
            for item in self.lines:
                if isinstance(item, Exception):
                    raise item
                yield item

    monkeypatch.setattr(cloud._http, "stream", lambda path, query: contextlib.nullcontext(Broken(answers.pop(0))))
    shown = [found.line for found in cloud.logs("web", follow=True, lines=1)]
    assert shown == ["newest", "new of b", "last"]


def test_one_deployment_with_its_replicas_is_two_questions(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.deploy(FORM, wait=False)
    asked: list[str] = []
    get = cloud._http.get
    monkeypatch.setattr(cloud._http, "get", lambda path, **query: asked.append(path) or get(path, **query))
    assert cloud.ps("web")[0].name == "web"
    assert asked == ["/x/deployments/web", "/x/deployments/web/replicas"]


def test_threads_that_ask_for_the_lake_at_once_get_one(
    stand: Any, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand.folder / "lake").mkdir()
    both = threading.Barrier(2)
    opened: list[str] = []

    def open_(url: str) -> Any:
        opened.append(url)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # the other thread comes here too, unless it is made to wait
        return lake_open(url)

    lake_open = lepton_ai.lake.open
    monkeypatch.setattr(lepton_ai.lake, "open", open_)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(cloud.lake)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert found[0] is found[1]
