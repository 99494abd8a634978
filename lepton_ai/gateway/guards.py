"""Who may pass a route: endpoint tokens and networks, by two of Envoy's RBAC filters.

By RBAC: Envoy's api_key_auth filter is marked work in progress and outside its threat model. The address is the
connection's own, as what X-Forwarded-For says is anybody's to write; only connections from trusted proxies are read
otherwise (see `listener`).
"""

from __future__ import annotations

import ipaddress
from typing import Any

from lepton_ai.errors import Invalid

Resource = dict[str, Any]

FILTERS = ("networks", "tokens")
"""In this order: whoever comes from elsewhere learns nothing about tokens."""
_RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3."


def filters() -> list[Resource]:
    """The two filters. Without rules of its own a route lets everything pass."""
    return [{"name": name, "typed_config": {"@type": _RBAC + "RBAC"}} for name in FILTERS]


def guards(tokens: tuple[str, ...] | None, allowlists: tuple[tuple[str, ...], ...]) -> Resource:
    """What a route asks of its callers, by filter: all of it must hold. Empty lists of networks ask nothing."""
    found: Resource = {}
    lists = [networks for networks in allowlists if networks]
    if lists:
        rules = [{"or_ids": {"ids": [{"remote_ip": network(text)} for text in networks]}} for networks in lists]
        found["networks"] = _allow({"and_ids": {"ids": rules}})
    if tokens is not None:
        # With no token at all, nobody.
        names = [{"exact": f"Bearer {token}"} for token in sorted(set(tokens))]
        headers = [{"header": {"name": "authorization", "string_match": name}} for name in names]
        found["tokens"] = _allow(*headers)
    return found


def network(text: str) -> Resource:
    """A network or address as Envoy writes it. Raises Invalid."""
    try:
        parsed = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(f"{text[:60]!r} is not an address or network", hint="for example 10.0.0.0/8") from None
    return {"address_prefix": str(parsed.network_address), "prefix_len": parsed.prefixlen}


def _allow(*principals: Resource) -> Resource:
    policies = {"callers": {"permissions": [{"any": True}], "principals": list(principals)}} if principals else {}
    return {"@type": _RBAC + "RBACPerRoute", "rbac": {"rules": {"action": "ALLOW", "policies": policies}}}
