"""The commands, their flags and the help: a table, and how it becomes one parser.

Owns what may be typed. Each command names the function that does it as text, so that help imports nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from lepton_ai.cli.parser import GROUPS, Command, Help, Parser, Usage, Version, fill
from lepton_ai.cli.values import bounds, cores, count, mebibytes, moment, pair, priority, release, weight

__all__ = ["COMMANDS", "GROUPS", "Usage", "build", "parse"]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line: `handler` says what to run. Raises Usage; exits 0 after help or the version."""
    parser = build()
    if list(argv) in ([], ["-h"], ["--help"], ["help"]):
        print(parser.format_help(), end="")
        raise SystemExit(0)
    arguments, extras = parser.parse_known_args(list(argv))
    leaf: Parser = getattr(arguments, "leaf", parser)
    if extras:
        leaf.unknown(extras)
    if not hasattr(arguments, "handler"):
        leaf.error("a command is missing")
    return arguments


def build() -> Parser:
    """The whole grammar as one parser."""
    parser = Parser(prog="lepton", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action=Help, nargs=0)
    parser.add_argument("--version", action=Version, nargs=0)
    parser.set_defaults(leaf=parser)
    top = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    families: dict[str, Any] = {}
    for command in COMMANDS:
        into = top
        if len(command.path) == 2:
            family = command.path[0]
            if family not in families:
                holder = top.add_parser(family, allow_abbrev=False, add_help=False)
                holder.add_argument("-h", "--help", action=Help, nargs=0)
                holder.commands = [c for c in COMMANDS if c.path[0] == family]
                holder.set_defaults(leaf=holder)
                families[family] = holder.add_subparsers(metavar="COMMAND", parser_class=Parser)
            into = families[family]
        leaf = into.add_parser(command.path[-1], allow_abbrev=False, add_help=False, description=command.summary)
        fill(leaf, command)
    parser.commands = list(COMMANDS)
    return parser


def _none(_: argparse.ArgumentParser) -> None:
    """A command without arguments of its own."""


def _up(p: argparse.ArgumentParser) -> None:
    p.add_argument("--nodes", type=count, metavar="N", help="node agents, each a share of this machine (default: 3)")
    p.add_argument("--isolation", choices=("none", "uid"), help="uid: each workspace a user and networks of its own")
    p.add_argument("--runtime", metavar="URL", help="process:// or docker://[SOCKET] (default: process://)")


def _down(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="CELL", help="which cell (default: local)")
    p.add_argument("--all", action="store_true", help="every cell of this machine")
    p.add_argument("--purge", action="store_true", help="delete its data too")


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", metavar="FILE", help="CSV or Parquet of user, item, rating[, timestamp]")
    p.add_argument("--keep", action="store_true", help="leave the cell running afterwards")
    p.add_argument("--lang", choices=("en", "zh"), default="en", help="language of the stage lines")
    p.add_argument("--out", metavar="FILE", default="demo.json", help="where the figures go (default: demo.json)")


def _deploy(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="SOURCE", help="a TOML file, a model (movies@3 or a file), or a deployment's name")
    p.add_argument("--name", help="name of the deployment")
    p.add_argument("--replicas", type=bounds, metavar="N or MIN..MAX", help="how many")
    p.add_argument("--survive", type=int, metavar="N", help="keep full capacity when N nodes are lost at once")
    p.add_argument("--cpu", type=cores, metavar="CORES", help="of one replica, e.g. 0.5")
    p.add_argument("--memory", type=mebibytes, metavar="SIZE", help="of one replica, e.g. 512MiB or 2GiB")
    p.add_argument("--env", action="append", type=pair, metavar="KEY=VALUE", help="can be repeated")
    _whose(p)
    p.add_argument("--allow", action="append", metavar="NETWORK", help="only it may call, e.g. 10.0.0.0/8; repeatable")
    p.add_argument("--no-wait", action="store_true", help="return once it is recorded")


def _run(p: argparse.ArgumentParser) -> None:
    p.add_argument("command_line", nargs="+", metavar="COMMAND", help='a TOML file, "a command", or -- and its words')
    p.add_argument("--name", help="title of the job")
    p.add_argument("--workers", type=count, metavar="N", help="copies that run at once")
    p.add_argument("--retries", type=int, metavar="N", help="further tries of a failed worker")
    p.add_argument("--job-retries", type=int, metavar="N", help="further runs of the whole job")
    p.add_argument("--start-at", type=moment, metavar="TIME", help='not before, e.g. "2030-01-31 13:10" or 2h')
    p.add_argument("--cpu", type=cores, metavar="CORES", help="of one worker")
    p.add_argument("--memory", type=mebibytes, metavar="SIZE", help="of one worker")
    p.add_argument("--env", action="append", type=pair, metavar="KEY=VALUE", help="can be repeated")
    p.add_argument("--checkpoint", action="store_true", help="it saves its state: it may be moved")
    _whose(p)
    p.add_argument("--detach", "-d", action="store_true", help="print the job's name and return")


def _whose(p: argparse.ArgumentParser) -> None:
    p.add_argument("--image", help="container image; where nodes run processes it is only recorded")
    p.add_argument("--label", action="append", type=pair, metavar="KEY=VALUE", help="can be repeated")
    p.add_argument("--private", action="store_true", help="only you, admins and owners see it")
    p.add_argument("--priority", type=priority, metavar="P", help="0 to 9999, low, mid or high (default: 4000)")
    p.add_argument("--can-preempt", action="store_true", help="may end preemptible work of a smaller priority")
    p.add_argument("--preemptible", action="store_true", help="may be ended for work of a larger priority")
    p.add_argument("--reservation", metavar="NAME", help="only nodes that are reserved under this name")
    p.add_argument("--tolerate", action="append", metavar="KEY=VALUE", help="a taint it may meet; repeatable")
    p.add_argument("--on", action="append", type=pair, metavar="KEY=VALUE", help="a label of its nodes; repeatable")


def _call(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("body", nargs="?", metavar="JSON", help="the request; - reads it from standard input")
    p.add_argument("--path", default="/", help="path below the deployment's URL (default: /)")
    p.add_argument("--token", help="the endpoint's token, where it has one", dest="endpoint_token")


def _name(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def fill(p: argparse.ArgumentParser) -> None:
        p.add_argument("name", metavar=what)

    return fill


def _rollback(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("--to", type=release, metavar="RELEASE", help="a number (default: the one before)")


def _ps(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="NAME", help="only this deployment or job, with its replicas")
    p.add_argument("--all", "-a", action="store_true", help="also what has ended")


def _logs(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME", help="a deployment, job or replica")
    p.add_argument("--follow", "-f", action="store_true", help="go on with new lines until Ctrl-C")
    p.add_argument("--lines", "-n", type=count, default=100, metavar="N", help="the last N (default: 100)")
    p.add_argument("--grep", metavar="TEXT", help="only lines that hold TEXT")


def _names(p: argparse.ArgumentParser) -> None:
    p.add_argument("names", nargs="+", metavar="NAME", help="deployments, pods and jobs")


def _marks(what: str) -> Callable[[argparse.ArgumentParser], None]:
    def fill(p: argparse.ArgumentParser) -> None:
        p.add_argument("name", metavar="NODE")
        p.add_argument("marks", nargs="+", metavar=what)

    return fill


def _query(p: argparse.ArgumentParser) -> None:
    p.add_argument("sql", metavar="SQL", help='e.g. "select count(*) from ratings"; ratings@2 names a version')
    p.add_argument("--limit", type=count, default=1000, metavar="N", help="rows to print (default: 1000)")


def _token_add(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    roles = ("owner", "admin", "developer", "viewer", "caller")
    p.add_argument("--role", choices=roles, default="developer", help="what it may do (default: developer)")
    p.add_argument("--days", type=count, metavar="N", help="valid so long (default: for ever)")


def _secret_set(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("--file", metavar="FILE", default="-", help="file that holds the value (default: standard input)")


def _workspace_add(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("--force", action="store_true", help="although isolation is none: it can reach what yours can")


def _workspace_set(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("--weight", type=weight, metavar="W", help="its share beside others that have 1")
    p.add_argument("--priority-most", type=int, metavar="P", help="the largest priority of its work, up to 9999")


def _workspace_rm(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("--purge", action="store_true", help="delete its lake too")


def _registry_set(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument("registry", metavar="HOST", help="for example registry.example.com:5000")
    p.add_argument("--username", required=True, metavar="NAME", help="the password is read from standard input")


COMMANDS: tuple[Command, ...] = (
    Command(("up",), "Start", "start a cell on this machine", "cell:up", _up, "change"),
    Command(("down",), "Start", "stop it (--purge deletes its data)", "cell:down", _down, "change"),
    Command(("demo",), "Start", "real data to an endpoint that survives being shot at", "cell:demo", _demo),
    Command(("doctor",), "Start", "can this machine run a cell, and what to do", "cell:doctor", _none, "read"),
    Command(
        ("deploy",),
        "Work",
        "serve a model or a command",
        "work:deploy",
        _deploy,
        "change",
        "lepton deploy movies@1 --name movies --replicas 2..8 --survive 1",
    ),
    Command(("rollback",), "Work", "go back to an earlier release", "work:rollback", _rollback, "change"),
    Command(
        ("run",),
        "Work",
        "run a job to its end",
        "work:run",
        _run,
        "change",
        "lepton run \"python -c 'print(1)'\"",
    ),
    Command(
        ("call",),
        "Work",
        "send one request to a deployment",
        "work:call",
        _call,
        "read",
        "lepton call movies '{\"user\": 7}'",
    ),
    Command(("ps",), "Work", "what runs, where, and what it waits for", "work:ps", _ps, "read"),
    Command(("top",), "Work", "what nodes and replicas use now", "manage:top", _none, "read"),
    Command(("logs",), "Work", "what it printed", "work:logs", _logs, "read", "lepton logs movies -f"),
    Command(("stop",), "Work", "end what runs, keep the rest", "work:stop", _names, "change"),
    Command(("start",), "Work", "run again what was stopped", "work:start", _names, "change"),
    Command(("rm",), "Work", "remove deployments, pods and jobs", "work:rm", _names, "change"),
    Command(
        ("query",),
        "Data",
        "SQL over the lake",
        "data:query",
        _query,
        "read",
        'lepton query "select count(*) from ratings"',
    ),
    Command(("table", "ls"), "Data", "the tables", "data:tables", _none, "read"),
    Command(("table", "show"), "Data", "columns, rows, version", "data:table", _name("TABLE"), "read"),
    Command(("table", "history"), "Data", "its versions", "data:history", _name("TABLE"), "read"),
    Command(("node", "ls"), "Manage", "the nodes, and how full they are", "manage:nodes", _none, "read"),
    Command(("node", "drain"), "Manage", "move work away, place nothing new", "manage:drain", _name("NODE"), "change"),
    Command(("node", "undrain"), "Manage", "take work again", "manage:undrain", _name("NODE"), "change"),
    Command(("node", "taint"), "Manage", "keep work off it", "manage:taint", _marks("KEY=VALUE"), "change"),
    Command(("node", "untaint"), "Manage", "let it come again", "manage:untaint", _marks("KEY=VALUE"), "change"),
    Command(
        ("node", "label"),
        "Manage",
        "name what it is (KEY- takes a label away)",
        "manage:label",
        _marks("KEY=VALUE"),
        "change",
        "lepton node label node-1 zone=a",
    ),
    Command(("model", "ls"), "Manage", "registered models", "manage:models", _none, "read"),
    Command(("model", "show"), "Manage", "metrics and lineage", "manage:model", _name("MODEL"), "read"),
    Command(("token", "ls"), "Manage", "API tokens (masked)", "manage:tokens", _none, "read"),
    Command(("token", "add"), "Manage", "make one; it is shown once", "manage:token_add", _token_add, "change"),
    Command(("token", "rm"), "Manage", "revoke one", "manage:token_rm", _name("NAME"), "change"),
    Command(("secret", "ls"), "Manage", "names of the secrets", "manage:secrets", _none, "read"),
    Command(
        ("secret", "set"),
        "Manage",
        "keep a value, sealed, for the environment of replicas",
        "manage:secret_set",
        _secret_set,
        "change",
    ),
    Command(("secret", "rm"), "Manage", "remove one", "manage:secret_rm", _name("NAME"), "change"),
    Command(("workspace", "ls"), "Manage", "the tenants of the cell", "tenants:workspaces", _none, "read"),
    Command(("workspace", "add"), "Manage", "make one", "tenants:workspace_add", _workspace_add, "change"),
    Command(
        ("workspace", "set"),
        "Manage",
        "its share, and how urgent its work may be",
        "tenants:workspace_set",
        _workspace_set,
        "change",
        "lepton workspace set team-b --weight 2",
    ),
    Command(("workspace", "rm"), "Manage", "remove one", "tenants:workspace_rm", _workspace_rm, "change"),
    Command(("registry", "ls"), "Manage", "logins at image registries", "tenants:registries", _none, "read"),
    Command(("registry", "set"), "Manage", "keep a login, sealed", "tenants:registry_set", _registry_set, "change"),
    Command(("registry", "rm"), "Manage", "remove one", "tenants:registry_rm", _name("NAME"), "change"),
    Command(("config",), "Manage", "each setting, its value and where it came from", "cell:config", _none, "read"),
)
"""Every command, in the order of the help."""
