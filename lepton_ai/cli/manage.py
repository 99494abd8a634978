"""`node`, `model`, `token`, `secret`: what a cell consists of, what it has learned, who may use it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepton_ai.cli import render
from lepton_ai.cli.grammar import Usage

if TYPE_CHECKING:
    from lepton_ai.cli.session import Session


def nodes(session: Session) -> None:
    """The nodes: what is planned for on each (s = w * u), what of it is promised, and whether that is too much."""
    rows = [render.record(item) for item in session.cloud.nodes()]
    if session.answer(rows):
        return
    shown = [
        (
            r["name"],
            r["state"],
            *_load(r),
            f"{r['cpu_placed_milli'] / 1000:g} of {r['cpu_milli'] / 1000:g}",
            f"{r['memory_placed_mib'] / 1024:.1f} of {r['memory_mib'] / 1024:.1f} GiB",
            r.get("replicas"),
            _shown_marks(r),
            r.get("reason"),
        )
        for r in rows
    ]
    columns = ("name", "state", "u", "w", "s", "limit", "verdict", "cores", "memory", "replicas", "marks", "why")
    session.table(columns, shown, "the cell has no nodes")


def top(session: Session) -> None:
    """What nodes and replicas use now, the busiest first."""
    rows = [render.record(item) for item in session.cloud.nodes()]
    copies = session.cloud.top()
    if session.answer({"nodes": rows, "replicas": copies}):
        return
    rows.sort(key=lambda r: -float((r.get("load") or {}).get("s") or 0.0))
    shown = [
        (r["name"], *_load(r), f"{r.get('cpu_used_milli', 0) / 1000:.2f} of {r['cpu_milli'] / 1000:g}",
         *(_percent((r.get("gauges") or {}).get(f"{name}_stall")) for name in ("cpu", "memory", "io")))
        for r in rows
    ]  # fmt: skip
    heads = ("node", "u", "w", "s", "limit", "verdict", "cores", "cpu stall", "memory stall", "io stall")
    session.table(heads, shown, "the cell has no nodes")
    if copies:
        session.print()
    used = [
        (c["name"], c["node"], _of(c["cpu_milli"], c["cpu_asked_milli"], 1000, ""),
         _of(c["memory_mib"], c["memory_asked_mib"], 1, " MiB"), _percent(c["cpu_stall"]),
         *(None if c[name] is None else f"{render.size(c[name])}/s"
           for name in ("disk_read_bytes_s", "disk_write_bytes_s", "network_in_bytes_s", "network_out_bytes_s")))
        for c in copies
    ]  # fmt: skip
    columns = ("replica", "node", "cores", "memory", "stall", "read", "written", "received", "sent")
    session.table(columns, used, "nothing runs here")


def _load(node: dict[str, Any]) -> tuple[str | None, ...]:
    """u, w, s, limit and the verdict; nothing where nothing is known."""
    load = node.get("load")
    if not load:
        return (None,) * 5
    mark = "not measured" if load["stale"] else f"{load['mark']}: {load['resource']}"
    return (*(f"{load[key]:.2f}" for key in ("u", "w", "s", "limit")), mark if load["mark"] != "idle" else "idle")


def _of(used: float | None, asked: float | None, unit: float, name: str) -> str | None:
    """`0.25 of 0.5`; without what was asked where nothing was."""
    if used is None:
        return None
    return f"{used / unit:.4g}" + (f" of {asked / unit:g}" if asked else "") + name


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def drain(session: Session) -> None:
    """Move work off a node and place nothing new there."""
    name = session.arguments.name
    if session.arguments.dry_run:
        held = [r for r in (render.record(item) for item in session.cloud.nodes()) if r["name"] == name]
        session.print(
            f"would move {held[0].get('replicas')} replicas off {name}" if held else f"there is no node {name}"
        )
    elif session.confirm(f"drain {name}: its replicas move to other nodes"):
        session.cloud.drain(name)
        session.print(f"{name} is draining; lepton ps shows the moves, lepton node undrain {name} ends it")


def undrain(session: Session) -> None:
    """Let a node take work again."""
    name = session.arguments.name
    if session.arguments.dry_run:
        session.print(f"would let {name} take work again")
        return
    session.cloud.undrain(name)
    session.print(f"{name} takes work again")


def taint(session: Session) -> None:
    """Keep work off a node that does not tolerate the taint; what runs there stays."""
    marks = session.arguments.marks
    _mark(session, f"taint it with {', '.join(marks)}", taint=[_taint(text) for text in marks])


def untaint(session: Session) -> None:
    """Take taints of a node away."""
    marks = session.arguments.marks
    _mark(session, f"take {', '.join(marks)} away", untaint=[_taint(text) for text in marks])


def label(session: Session) -> None:
    """Give a node labels, by which work asks for it."""
    labels: dict[str, str | None] = {}
    for text in session.arguments.marks:
        key, equals, value = text.partition("=")
        if not equals and not text.endswith("-"):
            raise Usage(f"{text!r} is neither KEY=VALUE nor KEY-", hint="for example zone=a, or zone- to take it away")
        labels[key if equals else text[:-1]] = value if equals else None
    _mark(session, f"label it {', '.join(session.arguments.marks)}", labels=labels)


def _mark(session: Session, what: str, **marks: Any) -> None:
    name = session.arguments.name
    if session.arguments.dry_run:
        session.print(f"{name}: would {what}")
        return
    found = render.record(session.cloud.mark(name, **marks))
    session.print(f"{name} {_shown_marks(found) or 'has no marks'}")


def _taint(text: str) -> str:
    if "=" not in text:
        raise Usage(f"{text!r} is not KEY=VALUE", hint=f"for example {text or 'maintenance'}=yes")
    return text


def _shown_marks(node: dict[str, Any]) -> str:
    """Labels, taints and the reservation of a node in a few words."""
    words = [f"{key}={value}" for key, value in sorted((node.get("labels") or {}).items())]
    words += [f"taint {text}" for text in node.get("taints") or ()]
    return ", ".join([*words, *([f"reserved {node['reservation']}"] if node.get("reservation") else [])])


def models(session: Session) -> None:
    """Registered models, newest version first."""
    rows = [render.record(item) for item in session.cloud.models()]
    if session.answer(rows):
        return
    now_ms = time.time_ns() // 1_000_000
    shown = [
        (f"{r['model']}@{r['number']}", r["kind"], _metrics(r.get("metrics")), render.age(r.get("created_ms"), now_ms))
        for r in rows
    ]
    session.table(("model", "kind", "metrics", "age"), shown, "no model is registered; next: lepton demo --keep")


def model(session: Session) -> None:
    """One model version: its metrics, and what it was made of."""
    found = render.record(session.cloud.model(session.arguments.name))
    if not session.answer(found):
        session.print(render.fields(found))


def tokens(session: Session) -> None:
    """API tokens; their text is never shown again."""
    rows = [render.record(item) for item in session.cloud.tokens()]
    if session.answer(rows):
        return
    now_ms = time.time_ns() // 1_000_000
    shown = [(r["name"], r["role"], r.get("masked"), render.age(r.get("created_ms"), now_ms)) for r in rows]
    session.table(("name", "role", "token", "age"), shown, "no token is known")


def token_add(session: Session) -> None:
    """Make a token and print its text, once."""
    arguments = session.arguments
    if arguments.dry_run:
        session.print(f"would make token {arguments.name} with role {arguments.role}")
        return
    text = session.cloud.create_token(arguments.name, role=arguments.role, days=arguments.days)
    session.print(text)
    session.say("keep it: it is not shown again. LEPTON_AI_TOKEN=… with LEPTON_AI_URL=… uses it elsewhere")


def token_rm(session: Session) -> None:
    """Revoke a token: the next request with it is refused."""
    name = session.arguments.name
    if session.arguments.dry_run:
        session.print(f"would revoke token {name}")
    elif session.confirm(f"revoke token {name}"):
        session.cloud.delete_token(name)
        session.print(f"revoked {name}")


def secrets(session: Session) -> None:
    """The names of the secrets; a value is never shown."""
    names = session.cloud.secrets()
    if not session.answer(names):
        session.table(("name",), [(name,) for name in names], "there are no secrets")


def secret_set(session: Session) -> None:
    """Keep a value. It is read from a file or standard input, so that no shell remembers it."""
    arguments = session.arguments
    if arguments.dry_run:
        session.print(f"would keep secret {arguments.name}")
        return
    try:
        value = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text("utf-8")
    except UnicodeDecodeError:
        raise Usage("the value is not UTF-8 text", hint="encode it first: base64 FILE") from None
    value = value.removesuffix("\n")
    if not value:
        hint = f"printf %s VALUE | lepton secret set {arguments.name}, or --file FILE"
        raise Usage("the value is empty", hint=hint)
    session.cloud.set_secret(arguments.name, value)
    session.print(f'kept {arguments.name}; template.secrets = {{ENV_NAME = "{arguments.name}"}} hands it to replicas')


def secret_rm(session: Session) -> None:
    """Remove a secret. Replicas that run keep what they were started with."""
    name = session.arguments.name
    if session.arguments.dry_run:
        session.print(f"would remove secret {name}")
    elif session.confirm(f"remove secret {name}"):
        session.cloud.delete_secret(name)
        session.print(f"removed {name}")


def _metrics(metrics: object) -> str:
    if not isinstance(metrics, dict):
        return ""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:3])
