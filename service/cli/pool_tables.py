"""Answers of /v1/pools as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_NONE = (
    "No deployment names a pool. Set MOESCOPE_POOL in the environment of vLLM to one name for all replicas "
    "of a model."
)


def pools_table(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/pools: a line for each pool."""
    if not answer["pools"]:
        return Text(_NONE)
    table = Table(title="Pools")
    for name in ("pool", "model"):
        table.add_column(name, overflow="fold")
    for name in ("replicas", "prefill", "decode", "tokens", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("not whole", overflow="fold")
    for pool in answer["pools"]:
        roles = [item["role"] for item in pool["deployments"]]
        table.add_row(
            pool["pool"],
            pool["model"],
            str(len(roles)),
            *(str(roles.count(role)) if role in roles else "-" for role in ("prefill", "decode")),
            _tokens(pool),
            _number(pool["tokens_per_second"], "{:,.0f}"),
            "; ".join(_states(pool)) or "-",
        )
    reasons = [
        f"{pool['pool']}: {pool['tokens_reason']}" for pool in answer["pools"] if pool["tokens_reason"]
    ]
    without = answer["without_pool"]
    notes = [*reasons, *([f"in no pool: {', '.join(without)}"] if without else [])]
    return Group(table, *(Text(f"- {note}", style="dim") for note in notes))


def pool_tables(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/pools/{pool}: a line for each replica, who stands out, and phases by layer."""
    table = Table(title=f"{answer['model']} in pool {answer['pool']}: each replica by itself")
    for name in ("replica", "role", "state"):
        table.add_column(name, overflow="fold")
    for name in (
        "tokens",
        "tokens/s",
        "of mean",
        "over EP",
        "worst layer",
        "over DP",
        "MaxVio",
        "hot",
        "straggler cost",
        "divergence",
    ):
        table.add_column(name, justify="right", overflow="fold")
    for item in answer["deployments"]:
        table.add_row(*_replica(item))
    return Group(
        table,
        _sum_line("All", answer),
        *(_sum_line(item["role"] or "no role", item) for item in _roles(answer)),
        *_stand_out(answer),
        *_phases_table(answer),
        *(Text(f"- {note}", style="dim") for note in _notes(answer)),
    )


def _replica(item: dict[str, Any]) -> list[str]:
    layer = item["worst_layer"]
    worst = _number(item["worst_layer_imbalance_ratio"], "{:.3f}")
    return [
        item["server"],
        item["role"] or "-",
        item["state"],
        "-" if item["tokens"] is None else f"{item['tokens']:,}",
        _number(item["tokens_per_second"], "{:,.0f}"),
        _number(item["tokens_over_mean"], "{:.2f}"),
        _number(item["ep_imbalance_ratio"], "{:.3f}"),
        worst if layer is None else f"{worst} ({layer})",
        _number(item["dp_imbalance_ratio"], "{:.3f}"),
        _number(item["max_vio"], "{:.2f}"),
        _number(item["hot_experts"], "{:.0f}"),
        _number(item["straggler_cost"], "{:.1%}"),
        _bits(item["divergence"]["median"]),
    ]


def _roles(answer: dict[str, Any]) -> list[dict[str, Any]]:
    roles: list[dict[str, Any]] = answer["roles"]
    return roles if len(roles) > 1 else []


def _sum_line(name: str, item: dict[str, Any]) -> Text:
    phases = item["phases"]
    split = "" if phases is None else f" ({phases['prefill']:,} of prefill, {phases['decode']:,} of decode)"
    rate = _number(item["tokens_per_second"], "{:,.0f}")
    return Text(f"{name}: {_tokens(item)} tokens{split}, {rate} tokens/s")


def _tokens(item: dict[str, Any]) -> str:
    return f"at least {item['known_tokens']:,}" if item["tokens"] is None else f"{item['tokens']:,}"


def _states(pool: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {', '.join(pool[name])}"
        for name in ("silent", "partial", "disabled", "conflict", "gone")
        if pool[name]
    ]


def _stand_out(answer: dict[str, Any]) -> list[Text]:
    if not answer["stand_out"]:
        return [Text("No replica stands out.")]
    return [Text(f"{item['server']} stands out: {item['text']}") for item in answer["stand_out"]]


def _phases_table(answer: dict[str, Any]) -> list[RenderableType]:
    if not answer["layers"]:
        return []
    table = Table(title="Prefill instances against decode instances, bits")
    for name in ("layer", "prefill tokens", "decode tokens", "divergence", "by chance"):
        table.add_column(name, justify="right")
    for layer in answer["layers"]:
        table.add_row(
            str(layer["layer"]),
            f"{layer['prefill_tokens']:,}",
            f"{layer['decode_tokens']:,}",
            _bits(layer["divergence"]),
            _bits(layer["noise"]),
        )
    return [table]


def _notes(answer: dict[str, Any]) -> list[str]:
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


def _number(known: dict[str, Any], form: str) -> str:
    return "-" if known["value"] is None else form.format(known["value"])


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
