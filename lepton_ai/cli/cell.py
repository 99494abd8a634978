"""`up`, `down`, `demo`, `doctor`, `config`: the cell as a whole, and the machine it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lepton_ai.cli import render

if TYPE_CHECKING:
    from lepton_ai.cli.session import Session
    from lepton_ai.settings import Settings


def up(session: Session) -> None:
    """Start the cell, or finish starting it; what already runs is adopted."""
    from lepton_ai import cloud
    from lepton_ai.control import hosts

    settings = _kept(session)
    nodes = session.arguments.nodes or hosts.local(settings.cluster) or None
    if session.arguments.dry_run:
        verb = "adopt what runs of" if cloud.state(settings.cell, settings=settings) else "create"
        session.print(
            f"would {verb} cell {settings.cell} in {settings.cell_dir}: "
            f"{nodes or len(hosts.hosts(settings.cluster))} nodes, {settings.gateways} gateways"
        )
        return
    with cloud.up(settings.cell, settings=settings, nodes=nodes, say=session.say):
        state = cloud.state(settings.cell, settings=settings)
    session.print(f"cell {settings.cell} is up")
    if state is not None:
        session.print(render.fields({"api": state.api_url, "gateway": state.gateway_url, "folder": settings.cell_dir}))
    session.print("next: lepton demo --keep | lepton deploy FILE.toml | lepton ps")


def _kept(session: Session) -> Settings:
    """The settings of this call; what is not said now of where and how workloads run stays as it was said."""
    from lepton_ai import cloud, settings

    flags = {**session.flags, "isolation": session.arguments.isolation, "runtime": session.arguments.runtime}
    before = cloud.state(session.settings.cell, settings=session.settings)
    if before is not None:
        for key, _, source, _ in settings.explain(flags):
            if key in ("isolation", "runtime", "cluster") and source == "default":
                flags[key] = getattr(before.settings, key)
    return settings.load(flags)


def down(session: Session) -> None:
    """Stop one cell or all of them; with --purge nothing of it is left."""
    from lepton_ai import cloud

    arguments = session.arguments
    names = cloud.cells(settings=session.settings) if arguments.all else [arguments.name or session.settings.cell]
    if not names:
        session.say("there is no cell on this machine")
    for name in names:
        if arguments.dry_run:
            session.print(
                f"would stop cell {name}" + (" and delete its data" if arguments.purge else " and keep its data")
            )
        elif not arguments.purge or session.confirm(f"delete cell {name} with its tables, models and logs"):
            cloud.down(name, settings=session.settings, purge=arguments.purge, say=session.say)
            kept = "its data are deleted" if arguments.purge else "its data are kept: lepton up brings it back"
            session.print(f"cell {name} is down, {kept}")


def demo(session: Session) -> int:
    """The main job, on real data; the demo prints for itself."""
    from lepton_ai import demo

    return int(demo.main(session.arguments) or 0)


def doctor(session: Session) -> int:
    """What this machine lacks; exit code 1 when something that a cell needs is missing."""
    from lepton_ai import doctor

    checks = doctor.examine(session.settings)
    failed = any(check.level == "fail" for check in checks)
    if session.answer(checks):
        return int(failed)
    width = max(len(check.name) for check in checks)
    for check in checks:
        session.print(f"{check.level:<4}  {check.name:<{width}}  {check.message}")
        if check.hint and check.level != "ok":
            session.print(f"{'':<4}  {'':<{width}}  hint: {check.hint}")
    warned = sum(check.level == "warn" for check in checks)
    if failed:
        session.print("this machine cannot run a cell as it is")
    else:
        session.print("this machine can run a cell" + (f" ({warned} to look at)" if warned else ""))
    return int(failed)


def config(session: Session) -> None:
    """Each setting, its value, and which of flag, environment, file or default it came from."""
    from lepton_ai import settings

    rows = settings.explain(session.flags)
    names = ("key", "value", "source", "help")
    if not session.answer([dict(zip(names, row, strict=True)) for row in rows]):
        session.table(names, rows, "there are no settings")
