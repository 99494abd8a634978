"""What the gateway must do, from the deployments and their replicas: one value for the whole cell.

Owns which replicas take requests and with what share. Telling the gateway is `publish`.
"""

from __future__ import annotations

from collections import defaultdict

from lepton_ai.control import replicas
from lepton_ai.control.context import Context
from lepton_ai.control.mirror import Record
from lepton_ai.control.standing import forget, standing
from lepton_ai.errors import LeptonError
from lepton_ai.scheduler.route import Share
from lepton_ai.spec.replica import node_host
from lepton_ai.spec.route import Backend, Endpoint, HostRoute, HostTarget, Route, Routes
from lepton_ai.spec.workload import DeploymentSpec

SHARE = 100


def routes(ctx: Context) -> Routes:
    """The routes of every deployment; of one that is being removed, while requests finish there.

    One that cannot be expressed is left out, and said. Pods have none.
    """
    found = []
    forget(ctx)
    for record in ctx.mirror.list("deployment"):
        if record.spec.get("pod") or (record.deleting and not _drains(ctx, record)):
            continue
        try:
            found.append(_route(ctx, record))
        except LeptonError as error:
            ctx.say_once(record, f"no route: {error.message}")
        except (ValueError, KeyError, TypeError) as error:  # what is stored is not what it should be
            ctx.say_once(record, f"no route: its record cannot be read ({type(error).__name__})")
    return Routes(routes=tuple(found), hosts=tuple(_hosts(ctx)))


def _hosts(ctx: Context) -> list[HostRoute]:
    """The host names that workspaces gave their deployments; of one domain the oldest, should there ever be two."""
    found: dict[str, HostRoute] = {}
    for record in ctx.mirror.list("ingress"):
        try:
            spec = record.spec
            targets = tuple(HostTarget(name=item["name"], weight=item["weight"]) for item in spec["targets"])
            allowlist = tuple(spec.get("allowlist") or ())
            made = HostRoute(workspace=record.workspace, domain=spec["domain"], targets=targets, allowlist=allowlist)
            found.setdefault(made.domain, made)
        except (ValueError, KeyError, TypeError) as error:
            ctx.say_once(record, f"no route: its record cannot be read ({type(error).__name__})")
    return list(found.values())


def offer(ctx: Context) -> None:
    """Hand the routes to the publisher; with haste while something drains."""
    draining = any(item.status.get("phase") == "draining" for item in ctx.mirror.running())
    ctx.services.publisher.offer(routes(ctx), hurry=draining)


def _drains(ctx: Context, record: Record) -> bool:
    return any(copy.status.get("phase") == "draining" for copy in ctx.mirror.owned("replica", record.uid))


def endpoint_context(workspace: str, name: str) -> str:
    """For what an endpoint's tokens are sealed (see tenancy.secrets)."""
    return f"{workspace}/endpoint/{name}"


def _route(ctx: Context, record: Record) -> Route:
    spec = ctx.mirror.parse(record, DeploymentSpec)
    template = spec.template
    copies = ctx.mirror.owned("replica", record.uid)
    by_release: dict[int, list[Endpoint]] = defaultdict(list)
    called = _callable(ctx, record, copies)
    shares = standing(ctx, record, called)
    for copy in called:
        by_release[int(copy.spec["release"])].append(_endpoint(copy, shares.get(copy.uid, Share())))
    # By the number of replicas, so that an exchange of releases moves the load as it moves the capacity.
    backends = [
        Backend(release=number, weight=SHARE * len(ends), endpoints=tuple(ends))
        for number, ends in sorted(by_release.items())
    ]
    # An empty one stays while replicas of it finish what they have: its figures say when they are done.
    draining = {int(copy.spec["release"]) for copy in copies if copy.status.get("phase") == "draining"}
    backends += [Backend(release=number, weight=0) for number in sorted(draining - set(by_release))]
    if not by_release:
        backends = [Backend(release=spec.release), *(item for item in backends if item.release != spec.release)]
    tokens = None
    if spec.tokens is not None:
        context = endpoint_context(record.workspace, record.name)
        tokens = tuple(ctx.services.unseal(sealed, context) for sealed in spec.tokens)
    # Requests wait for a replica that can come; where none is wanted, or none can start, they are answered at once.
    hopeless = spec.replicas.min == 0 or record.status.get("state") == "failed"
    return Route(
        workspace=record.workspace,
        name=record.name,
        backends=tuple(backends),
        tokens=tokens,
        idempotent=template.idempotent,
        request_timeout_s=template.request_timeout_s,
        health_path=template.health.path,
        activate=not hopeless and not record.deleting,
        allowlist=spec.allowlist.networks,
        balance=spec.balance,
    )


def _endpoint(copy: Record, share: Share) -> Endpoint:
    # What its node says with its certificate, not what its address is, tells which node it is.
    host = node_host(str(copy.spec["node"])) if copy.status.get("tls") else ""
    address, port = str(copy.status["address"]), int(copy.status["port"])
    return Endpoint(replica=copy.uid, address=address, port=port, host=host, weight=share.weight, spare=share.spare)


def _callable(ctx: Context, record: Record, copies: list[Record]) -> list[Record]:
    """Those that requests go to: the ready, and the silent while they may be serving and others do not suffice.

    A silent one whose address another replica has by now is gone for certain: calling it would reach the other.
    """
    ready = [copy for copy in copies if replicas.serves(ctx, copy)]
    enough = len(ready) >= int(record.status.get("wanted", 0))
    silent = [
        copy
        for copy in copies
        if replicas.takes_requests(copy)
        and not replicas.serves(ctx, copy)
        and not (enough and replicas.missing(ctx, copy))
        and ctx.taken.get((copy.status["address"], copy.status["port"]), copy.uid) == copy.uid
    ]
    return [*ready, *silent]
