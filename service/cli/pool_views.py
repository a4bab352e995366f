"""What /v1/pools and /v1/pools/{pool} answer, for people and for csv."""

from __future__ import annotations

from typing import Any

from moescope.service.cli.sheets import (
    Column,
    Line,
    Readers,
    Sheet,
    View,
    count,
    fixed,
    notes,
    percent,
    word,
)

_NONE = (
    "No deployment names a pool. Set MOESCOPE_POOL in the environment of vLLM to one name for all replicas "
    "of a model."
)
_POOLS = (
    word("pool", "pool", key=True),
    word("model", "model", same=True),
    Column("replicas", "replicas"),
    Column("prefill", "prefill", spare=2),
    Column("decode", "decode", spare=2),
    Column("people_tokens", "tokens", readers=Readers.PEOPLE),
    Column("tokens", "tokens", readers=Readers.PROGRAMS),
    Column("known_tokens", "known tokens", readers=Readers.PROGRAMS),
    Column("tokens_per_second", "tokens/s", count),
    word("not_whole", "not whole", prose=True, spare=1),
)
_REPLICAS = (
    word("pool", "pool", readers=Readers.PROGRAMS),
    word("model", "model", readers=Readers.PROGRAMS),
    word("server", "replica", key=True),
    word("role", "role", same=True),
    word("state", "state", same=True),
    Column("tokens", "tokens", count),
    Column("tokens_per_second", "tokens/s", count, spare=2),
    Column("tokens_over_mean", "of mean", fixed(2), spare=3),
    Column("imbalance_over_ep_ranks", "over EP", fixed(3)),
    Column("worst_layer_imbalance", "worst", fixed(3), spare=1),
    Column("worst_layer", "in layer", spare=1),
    Column("imbalance_over_dp_ranks", "over DP", fixed(3)),
    Column("max_vio", "MaxVio", fixed(2), spare=4),
    Column("hot_experts", "hot", fixed(0), spare=4),
    Column("straggler_cost", "straggler cost", percent),
    Column("divergence_bits", "divergence", fixed(4), spare=3),
)
_PHASES = (
    Column("layer", "layer", key=True),
    Column("prefill_tokens", "prefill tokens", count),
    Column("decode_tokens", "decode tokens", count),
    Column("divergence", "divergence", fixed(4)),
    Column("noise", "by chance", fixed(4)),
)
_STATES = ("silent", "partial", "disabled", "conflict", "gone")


def pools_view(answer: dict[str, Any]) -> View:
    """A line for each pool."""
    rows = []
    for pool in answer["pools"]:
        roles = [item["role"] for item in pool["deployments"]]
        rows.append(
            (
                *(pool["pool"], pool["model"], len(roles)),
                *(roles.count(role) if role in roles else None for role in ("prefill", "decode")),
                *(_tokens(pool), pool["tokens"], pool["known_tokens"]),
                pool["tokens_per_second"]["value"],
                "; ".join(_states(pool)),
            )
        )
    if not rows:
        return View((Sheet("", _POOLS, (), readers=Readers.PROGRAMS), Line(_NONE)))
    found = [f"{pool['pool']}: {pool['tokens_reason']}" for pool in answer["pools"] if pool["tokens_reason"]]
    without = answer["without_pool"]
    found += [f"in no pool: {', '.join(without)}"] if without else []
    return View((Sheet("Pools", _POOLS, rows), *notes(found)))


def pool_view(answer: dict[str, Any]) -> View:
    """A line for each replica, who stands out, and phases by layer."""
    title = f"{answer['model']} in pool {answer['pool']}: each replica by itself"
    rows = [(answer["pool"], answer["model"], *_replica(item)) for item in answer["deployments"]]
    return View(
        (
            Sheet(title, _REPLICAS, rows),
            _sum_line("All", answer),
            *(_sum_line(item["role"] or "no role", item) for item in _roles(answer)),
            *_stand_out(answer),
            *_phases(answer),
            *notes(_reasons(answer)),
        )
    )


def _replica(item: dict[str, Any]) -> list[Any]:
    return [
        *(item["server"], item["role"], item["state"], item["tokens"]),
        item["tokens_per_second"]["value"],
        item["tokens_over_mean"]["value"],
        item["ep_imbalance_ratio"]["value"],
        item["worst_layer_imbalance_ratio"]["value"],
        item["worst_layer"],
        item["dp_imbalance_ratio"]["value"],
        item["max_vio"]["value"],
        item["hot_experts"]["value"],
        item["straggler_cost"]["value"],
        item["divergence"]["median"],
    ]


def _roles(answer: dict[str, Any]) -> list[dict[str, Any]]:
    roles: list[dict[str, Any]] = answer["roles"]
    return roles if len(roles) > 1 else []


def _sum_line(name: str, item: dict[str, Any]) -> Line:
    phases = item["phases"]
    split = "" if phases is None else f" ({phases['prefill']:,} of prefill, {phases['decode']:,} of decode)"
    rate = count(item["tokens_per_second"]["value"])
    return Line(f"{name}: {_tokens(item)} tokens{split}, {rate} tokens/s")


def _tokens(item: dict[str, Any]) -> str:
    return f"at least {item['known_tokens']:,}" if item["tokens"] is None else f"{item['tokens']:,}"


def _states(pool: dict[str, Any]) -> list[str]:
    return [f"{name}: {', '.join(pool[name])}" for name in _STATES if pool[name]]


def _stand_out(answer: dict[str, Any]) -> list[Line]:
    if not answer["stand_out"]:
        return [Line("No replica stands out.")]
    return [Line(f"{item['server']} stands out: {item['text']}") for item in answer["stand_out"]]


def _phases(answer: dict[str, Any]) -> list[Sheet]:
    if not answer["layers"]:
        return []
    names = ("layer", "prefill_tokens", "decode_tokens", "divergence", "noise")
    rows = [[layer[name] for name in names] for layer in answer["layers"]]
    title = "Prefill instances against decode instances, bits"
    return [Sheet(title, _PHASES, rows, readers=Readers.PEOPLE)]


def _reasons(answer: dict[str, Any]) -> list[str]:
    """Each reason for a missing number once."""
    measures = (
        "tokens_per_second",
        "tokens_over_mean",
        "ep_imbalance_ratio",
        "dp_imbalance_ratio",
        "max_vio",
        "straggler_cost",
        "divergence",
    )
    reasons: dict[str, list[str]] = {}
    for item in answer["deployments"]:
        for measure in measures:
            reason = item[measure]["reason"]
            if reason is not None and item["server"] not in reasons.setdefault(reason, []):
                reasons[reason].append(item["server"])
    told = [f"{', '.join(servers)}: {reason}" for reason, servers in reasons.items()]
    layers = dict.fromkeys(layer["reason"] for layer in answer["layers"] if layer["reason"])
    return [*_states(answer), *([answer["tokens_reason"]] if answer["tokens_reason"] else []), *told, *layers]
