"""Which of the healthy replicas of a cluster a request goes to, in Envoy's words. Pure.

What a user chose holds. Otherwise the gateway's own picker (`picker.c`) is used where it could be built: it weighs what
is in flight at a replica against what the replica can do, and starts from its weight. Where it could not, the replica
with the fewest requests in flight of all is taken, weights are equal, and a replica much slower than its peers is
DEGRADED to Envoy: asked only when no other can be. (Unequal weights would turn LEAST_REQUEST into an EDF schedule,
which `bench/routing.py` measures to be worse than equal ones over all replicas.)
"""

from __future__ import annotations

from typing import Any

from lepton_ai.spec.container import Balance
from lepton_ai.spec.route import Endpoint

Resource = dict[str, Any]


def balance(chosen: Balance, picker: str | None) -> Resource:
    """Of a cluster. `picker`: path of the gateway's own picker, None without one."""
    if chosen.policy == "maglev":
        return {"lb_policy": "MAGLEV"}
    if chosen.choices is not None:
        return {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": chosen.choices}}
    if picker is not None:
        return policy(picker)
    kind = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    config = {"@type": f"type.googleapis.com/{kind}", "selection_method": "FULL_SCAN"}
    named = {"name": "envoy.load_balancing_policies.least_request", "typed_config": config}
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": named}]}}


def standing(endpoint: Endpoint, chosen: Balance, picker: str | None) -> Resource:
    """Of one endpoint: its weight, or whether it is only a spare one."""
    if chosen.policy == "maglev":
        return {"load_balancing_weight": 100}  # a weight that moves would move callers to other replicas
    if chosen.choices is not None:
        return {"load_balancing_weight": 100}  # unequal ones would make it another policy than was chosen
    if picker is not None:
        return {"load_balancing_weight": endpoint.weight}
    return {"load_balancing_weight": 100, **({"health_status": "DEGRADED"} if endpoint.spare else {})}


def policy(module: str) -> Resource:
    """Of a cluster: replicas are picked by the module at this path."""
    kind = "envoy.extensions.load_balancing_policies.dynamic_modules.v3.DynamicModulesLoadBalancerConfig"
    config = {
        "@type": f"type.googleapis.com/{kind}",
        "dynamic_module_config": {"module": {"local": {"filename": module}}},
        "lb_policy_name": "picker",
    }
    named = {"name": "envoy.load_balancing_policies.dynamic_modules", "typed_config": config}
    return {"load_balancing_policy": {"policies": [{"typed_extension_config": named}]}}
