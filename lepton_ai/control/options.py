"""Every wait and bound of the control loops in one place. Units are in the names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Defaults are what a cell ships with; the simulation and tests may change them."""

    tick_s: float = 0.5
    lease_s: float = 5.0
    node_grace_s: float = 1.0  # a silent node's serving replicas are replaced after this
    job_grace_s: float = 15.0  # ... and its jobs' workers, whose work would start again
    exclusive_margin_s: float = 3.0  # beyond the lease of an exclusive replica
    first_report_s: float = 3.0  # a new leader waits so long for each node before it calls anything missing
    settle_s: float = 1.0  # a replica is relied on when the gateway has had it so long
    drain_margin_s: float = 10.0  # a gateway that confirms nothing holds up the end of all replicas drain_s + this
    scale_down_s: float = 60.0
    resend_s: float = 2.0
    node_status_s: float = 10.0
    max_new_per_pass: int = 64  # replicas one deployment may start in one pass
    max_changed_per_pass: int = 256  # deployments that one pass changes
    max_orders_per_pass: int = 256  # orders to one node in one pass
    failed_starts: int = 3  # a release whose replicas end before they were ready so often is stopped
    kept_ended: int = 5  # ended replicas a deployment keeps to be looked at
    max_removed_per_pass: int = 50  # finished jobs whose time to live is over, and archives, that go in one pass
    kept_runs: int = 20  # earlier runs that a job's status tells of
    kept_attempts: int = 20  # ended replicas of a job's earlier runs that are kept to be looked at
    archive_days: float = 14.0  # what stays of removed jobs is kept so long
    archive_count: int = 10_000  # ... and so many of a workspace
    archive_s: float = 60.0  # how often that is looked after
    monitor_s: float = 5.0  # how often nodes and replicas are sampled, and what is to come is forecast
    monitor_samples: int = 64  # so many samples of each are kept
    monitor_known: int = 12  # ... and so many must be known before a forecast counts
    monitor_stale: int = 3  # a node without a measurement for so many samples is not relied on
    monitor_network: bool = True  # False: forecasts are robust-naive alone
    monitor_save_s: float = 60.0  # how often what was measured is written down for the next leader
    load_limit: float = 0.85  # a node whose load to plan for is larger is overloaded
    load_idle: float = 0.3  # ... smaller, idle
    startup_s: float = 30.0  # of a replica, until enough have started here to know better
    rebalance_s: float = 30.0  # how often overloaded nodes may give work away; 0: never
    rebalance_patience_s: float = 30.0  # ... once they have been overloaded for so long
    move_s: float = 60.0  # a move whose destination is not ready in this time (or its own startup deadline) is given up
