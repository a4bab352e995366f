"""Alerts about the replicas of a pool. What all replicas have in common is no alert here."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.alerts.spec import (
    NUMBER,
    POOL,
    RATIO,
    VALUE_RATIO,
    Alert,
    Group,
    ask,
    most,
)

_SHARE: Final = "replica:moescope_tokens_over_mean:ratio_rate5m"
_REPLICA: Final = f"{POOL}, server"
_BOARD: Final = "moescope-pools"
_WHERE: Final = "pool {{ $labels.pool }}{{ with $labels.role }} ({{ . }}){{ end }}"
_DIVERGES: Final = (
    f"{most('moescope_replica_divergence_bits', _REPLICA)} > 0.05\n"
    f"  and {most('moescope_replica_divergence_bits', _REPLICA)}\n"
    f"  > 4 * {most('moescope_replica_sampling_noise_bits', _REPLICA)}"
)

POOLS: Final = Group(
    "moescope-pool-alerts",
    "Replicas of a pool. One that differs makes its siblings differ from it: these alerts are of the pool.",
    (
        Alert(
            "MoescopeReplicaTokens",
            POOL,
            # Only where the mean is above 100 tokens/s: with less, one long request makes the difference.
            f"(\n  max by ({POOL}) ({_SHARE}) > 1.5\n  or min by ({POOL}) ({_SHARE}) < 0.5\n)\n"
            f"and avg by ({POOL}) (replica:moescope_tokens:rate5m) > 100",
            "critical",
            "symptom",
            15,
            f"Replicas of {_WHERE} have unfair shares of the tokens",
            ask(
                f"topk(1, {_SHARE}{{%s}})",
                f"Replica {{{{ .Labels.server }}}} computes {RATIO} times the mean of the replicas of its "
                "role, ",
            )
            + ask(f"bottomk(1, {_SHARE}{{%s}})", f"replica {{{{ .Labels.server }}}} {RATIO} times. ")
            + "That is a matter of the router or load balancer before vLLM, or of a slow replica.",
            _BOARD,
            keep_minutes=5,
        ),
        Alert(
            "MoescopeReplicaImbalance",
            _REPLICA,
            # Only of replicas that compute more than 100 tokens/s: with fewer, chance makes the load uneven.
            "replica:moescope_ep_imbalance_over_siblings:ratio_rate5m > 1.25\n"
            "and on (cluster, server, model) model:moescope_tokens:rate5m > 100",
            "info",
            "cause",
            15,
            "Expert load of replica {{ $labels.server }} of pool {{ $labels.pool }} is less even than its "
            "siblings'",
            f"Its imbalance ratio over EP ranks is {VALUE_RATIO} times the mean of its siblings'.",
            _BOARD,
        ),
        Alert(
            "MoescopeReplicaRouting",
            POOL,
            f"max by ({POOL}) (\n  {_DIVERGES}\n)",
            "info",
            "cause",
            15,
            f"A replica of {_WHERE} chooses other experts than its siblings",
            "Replica "
            + ask(
                "topk(1, " + most("moescope_replica_divergence_bits", _REPLICA, "{%s}") + ")",
                "{{ .Labels.server }} is the farthest",
            )
            + f": in the median layer its experts' shares are {VALUE_RATIO} bits from those of its siblings. "
            + ask(
                "count(" + most("moescope_replica_divergence_bits", _REPLICA, "{%s}") + " > 0.05)",
                f"{NUMBER} replicas are above 0.05 bits.",
            ),
            _BOARD,
        ),
    ),
)
