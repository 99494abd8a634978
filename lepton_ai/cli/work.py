"""`deploy`, `rollback`, `run`, `call`, `ps`, `logs`, `stop`, `start`, `rm`: work, from being wanted to being gone."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lepton_ai.cli import render
from lepton_ai.cli.grammar import Usage

if TYPE_CHECKING:
    from lepton_ai.cli.session import Session


def deploy(session: Session) -> None:
    """Print the plan, make it so, and wait until the release serves (or say why it does not)."""
    arguments = session.arguments
    options = _given(arguments, "name", "replicas", "survive")
    options |= _template(arguments) | _whose(arguments)
    if arguments.allow:
        options["allowlist"] = list(arguments.allow)
    plan = session.cloud.plan(arguments.source, **options)
    session.print(_plan(render.record(plan)))
    if arguments.dry_run:
        session.say("nothing was changed (--dry-run)")
        return
    deployment = session.cloud.deploy(arguments.source, **options, wait=not arguments.no_wait, say=session.say)
    known = render.record(deployment)
    session.print(f"{known['name']}#{known['release']} {known.get('state') or 'recorded'}")
    if known.get("url"):
        session.print(f"url   {known['url']}\ncall  lepton call {known['name']} JSON")


def rollback(session: Session) -> None:
    """Serve an earlier release again, as a new release with the same content."""
    arguments = session.arguments
    whose, number = arguments.to or ("", None)
    if whose not in ("", arguments.name):
        hint = f"lepton rollback {whose} --to {number}"
        raise Usage(f"{whose}#{number} is no release of {arguments.name}", hint=hint)
    if arguments.dry_run:
        releases = [render.record(item) for item in session.cloud.releases(arguments.name)]
        session.table(("release", "note"), [(r["number"], r.get("note")) for r in releases], "there are no releases")
        session.say("nothing was changed (--dry-run)")
        return
    done = render.record(session.cloud.rollback(arguments.name, number, say=session.say))
    session.print(f"{done['name']}#{done['release']} {done.get('state') or 'recorded'}")


def run(session: Session) -> int:
    """Run a job; unless detached, print its log and end with its exit code (0, or 1 when it failed)."""
    arguments = session.arguments
    words = arguments.command_line
    command = _words(words[0]) if len(words) == 1 and not words[0].endswith(".toml") else words
    source: Any = words[0] if len(words) == 1 and words[0].endswith(".toml") else command
    options = _given(arguments, "name", "workers", "retries", "job_retries") | _template(arguments) | _whose(arguments)
    if arguments.checkpoint:
        options["checkpoint"] = True
    if arguments.start_at is not None:
        options["start_at_ms"] = arguments.start_at
    if arguments.dry_run:
        session.print(f"would run {words[0] if source == words[0] else shlex.join(command)}")
        session.say("nothing was changed (--dry-run)")
        return 0
    job = session.cloud.run(source, **options)
    name = render.record(job)["name"]
    if arguments.detach:
        session.print(name)
        session.say(f"see: lepton logs {name} -f")
        return 0
    session.say(f"job {name} {_begun(arguments.start_at)}; Ctrl-C leaves it running")
    for line in session.cloud.logs(name, follow=True):
        session.print(render.record(line)["line"])
    ended = render.record(session.cloud.wait(name, say=session.say))
    session.say(f"job {name} {ended['state']}" + (f": {ended['reason']}" if ended.get("reason") else ""))
    return 0 if ended["state"] == "succeeded" else 1


def call(session: Session) -> None:
    """Send one request through the gateway and print the answer."""
    import json

    arguments = session.arguments
    text = sys.stdin.read() if arguments.body == "-" else arguments.body
    body = None
    if text is not None:
        try:
            body = json.loads(text, parse_constant=_no_number)
        except ValueError as problem:
            hint = f"quote it for the shell: lepton call {arguments.name} '{{\"user\": 7}}'"
            raise Usage(f"the request is not JSON: {problem}", hint=hint) from None
    answer = session.cloud.call(arguments.name, body, path=arguments.path, token=arguments.endpoint_token)
    session.print(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))


def ps(session: Session) -> None:
    """Deployments and jobs, or one of them with its replicas; what waits says for what."""
    arguments = session.arguments
    rows = [render.record(item) for item in session.cloud.ps(arguments.name, all=arguments.all)]
    if session.answer(rows):
        return
    now_ms = time.time_ns() // 1_000_000
    # Node and isolation are a replica's.
    own = ("node", "isolation") if arguments.name is not None else ()
    columns = ("name", "kind", "state", "replicas", *own, "age", "why")
    shown = []
    for r in rows:
        said = {**r, "age": render.age(r.get("created_ms"), now_ms), "why": r.get("reason") or _scaled(r)}
        shown.append([said.get(column) for column in columns])
    session.table(columns, shown, "nothing runs here; next: lepton deploy FILE.toml or lepton run COMMAND")


def _scaled(row: dict[str, Any]) -> str:
    """Why a deployment has the number of replicas that it has."""
    found = row.get("scaled")
    return str(found.get("reason") or "") if isinstance(found, dict) else ""


def logs(session: Session) -> None:
    """What it printed, each line under its replica's name when there are several."""
    arguments = session.arguments
    found = session.cloud.logs(arguments.name, follow=arguments.follow, lines=arguments.lines, grep=arguments.grep)
    said = False
    for item in found:
        line = render.record(item)
        said = True
        if arguments.json:
            session.print(render.as_json(line, indent=None))
        else:
            session.print(f"{line['replica']} | {line['line']}" if line.get("replica") else line["line"])
    if not said and not arguments.json:
        session.say(f"{arguments.name} has printed nothing yet")


def stop(session: Session) -> None:
    """End every replica of deployments, pods and jobs; what is recorded of them stays."""
    _each(session, "stop", "stopped", ask=True)


def start(session: Session) -> None:
    """Run again what was stopped."""
    _each(session, "start", "started", ask=False)


def rm(session: Session) -> None:
    """Remove deployments, pods and jobs; what runs is drained and stopped."""
    _each(session, "remove", "removed", ask=True)


def _each(session: Session, verb: str, done: str, *, ask: bool) -> None:
    arguments = session.arguments
    if arguments.dry_run:
        for name in arguments.names:
            rows = [render.record(item) for item in session.cloud.ps(name, all=True)]
            session.print(f"would {verb} {rows[0]['kind']} {name}" if rows else f"there is no {name}")
        return
    if ask and not session.confirm(f"{verb} {', '.join(arguments.names)}"):
        return
    act = session.cloud.delete if verb == "remove" else getattr(session.cloud, verb)
    for name in arguments.names:
        act(name)
        session.print(f"{done} {name}")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        hint = "close the quote, or put the command behind --: lepton run -- python job.py"
        raise Usage(f"{text!r} cannot be split into words: {str(problem).lower()}", hint=hint) from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON number")


def _begun(start_ms: int | None) -> str:
    if start_ms is None or start_ms <= time.time() * 1000:
        return "started"
    return f"starts at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(start_ms / 1000))}"


def _given(arguments: Any, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _template(arguments: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if arguments.cpu is not None:
        options["cpu_milli"] = arguments.cpu
    if arguments.memory is not None:
        options["memory_mib"] = arguments.memory
    if arguments.env:
        options["env"] = dict(arguments.env)
    return options


def _whose(arguments: Any) -> dict[str, Any]:
    options: dict[str, Any] = _given(arguments, "image", "priority", "reservation")
    options |= {name: True for name in ("can_preempt", "preemptible") if getattr(arguments, name)}
    if arguments.tolerate:
        options["tolerations"] = list(arguments.tolerate)
    if arguments.on:
        options["node_labels"] = dict(arguments.on)
    if arguments.label:
        options["labels"] = dict(arguments.label)
    if arguments.private:
        options["visibility"] = "private"
    return options


def _plan(plan: Mapping[str, Any]) -> str:
    lines = [f"plan: {plan['summary']}"]
    lines += [f"  {line}" for line in plan.get("changes") or ()]
    for item in plan.get("placements") or ():
        where = f"on {item['node']}" if item["node"] else "waits"
        lines.append(f"  {item['replica']} {where}: {item['reason']}")
    if plan.get("price_per_hour") is not None:
        lines.append(f"  price: {plan['price_per_hour']:.4f} {plan.get('currency', 'USD')} per hour")
    return "\n".join(lines)
