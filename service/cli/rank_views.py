"""What /v1/ranks answers, for people and for csv."""

from __future__ import annotations

from typing import Any

from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, count, notes, whose, word


def ago(seconds: float | None) -> str:
    """How long ago."""
    return "-" if seconds is None else f"{seconds:,.0f} s ago"


_COLUMNS = (
    *whose(),
    word("pool", "pool", readers=Readers.PROGRAMS),
    word("role", "role", readers=Readers.PROGRAMS),
    Column("dp_rank", "DP", key=True),
    Column("tp_rank", "TP", spare=1),
    Column("pp_rank", "PP", spare=1),
    Column("ep_rank", "EP"),
    Column("tokens", "tokens", count),
    Column("decode_tokens", "of decode", count, spare=3),
    Column("steps", "steps", count, spare=2),
    Column("idle_steps", "idle", count, spare=4),
    word("state", "state"),
    Column("age_seconds", "seen", ago),
    word("host", "host", readers=Readers.WIDE),
    word("capture", "capture", prose=True),
)


def ranks_view(answer: dict[str, Any]) -> View:
    """A table for each deployment, a line for each producer."""
    if not answer["deployments"]:
        none = Sheet("", _COLUMNS, (), readers=Readers.PROGRAMS)
        return View((none, Line("No producer has reported yet.")))
    parts: list[Sheet | Line] = []
    for deployment in answer["deployments"]:
        parts += [_deployment(deployment), *notes(_absences(deployment), style="")]
    return View(parts)


def _deployment(deployment: dict[str, Any]) -> Sheet:
    named = f"{deployment['model']} on {deployment['server']}{_place(deployment)}"
    rows = [
        (
            *(deployment[name] for name in ("server", "model", "pool", "role")),
            rank["dp_rank"],
            *(producer[name] for name in ("tp_rank", "pp_rank", "ep_rank")),
            rank["tokens"],
            (rank["phases"] or {}).get("decode_tokens"),
            *(rank[name] for name in ("steps", "idle_steps")),
            producer["state"],
            producer["age_seconds"],
            producer.get("host"),
            _capture(rank, producer),
        )
        for rank in deployment["dp_ranks"]
        for producer in rank["producers"]
    ]
    return Sheet(f"{named}: totals since the start", _COLUMNS, rows)


def _place(deployment: dict[str, Any]) -> str:
    """Its pool and its role, as far as it has them."""
    found = [f"pool {deployment['pool']}" if deployment["pool"] else "", deployment["role"] or ""]
    told = ", ".join(word for word in found if word)
    return f" ({told})" if told else ""


def _absences(deployment: dict[str, Any]) -> list[str]:
    """Lines about ranks that never reported, numbers that are not of all tokens, layers that are absent or
    can't be seen, rows that are not the tokens, and what workers can't tell; not of ranks that are gone.
    """
    here = [rank for rank in deployment["dp_ranks"] if not _is_gone(rank)]
    deployment = {**deployment, "dp_ranks": here}
    uncovered = {
        f"layer {entry['layer']} can't be seen: {entry['reason']}": None
        for rank in deployment["dp_ranks"]
        for producer in rank["producers"]
        for entry in producer["uncovered"]
    }
    absent = {
        absent_note(entry): None
        for rank in deployment["dp_ranks"]
        for producer in rank["producers"]
        for entry in producer["absent"]
    }
    laws = [
        f"DP rank {rank['dp_rank']}, pipeline stage {stage['pp_rank']}: {line}"
        for rank in deployment["dp_ranks"]
        for stage in rank["stages"]
        for line in _law(stage)
    ]
    counted = [
        f"DP rank {rank['dp_rank']}: these are what was counted, not all: {rank['tokens_reason']}"
        for rank in deployment["dp_ranks"]
        if rank["tokens"] is not None and rank["tokens_reason"]
    ]
    unavailable = {
        f"{part} can't be told: {reason}": None
        for rank in deployment["dp_ranks"]
        for producer in rank["producers"]
        for part, reason in producer["unavailable"].items()
    }
    return [
        *([f"this is {deployment['partial']}"] if deployment.get("partial") else []),
        *counted,
        *absent,
        *uncovered,
        *unavailable,
        *laws,
    ]


def _is_gone(rank: dict[str, Any]) -> bool:
    return all(producer["state"] == "gone" for producer in rank["producers"])


def _law(stage: dict[str, Any]) -> list[str]:
    """Lines about rows that are not the tokens, or why that isn't known; none if they are."""
    if stage["state"] == "unknown":
        return [f"not known whether rows add up to tokens: {stage['reason']}"]
    return [
        f"layer {found['layer']}: {found['got']:,} {found['law']} of {found['expected']:,} tokens"
        for found in stage["mismatches"]
    ]


def absent_note(entry: dict[str, Any]) -> str:
    """Which layers of the model's config were not found, and why."""
    which = "MoE layers are" if entry["layer"] is None else f"layer {entry['layer']} is"
    return f"{which} absent: {entry['reason']}"


def _capture(rank: dict[str, Any], producer: dict[str, Any]) -> str:
    if producer.get("gone_reason"):
        return str(producer["gone_reason"])
    faults = []
    if producer["state"] == "conflict":
        faults.append(producer["state_reason"])
    elif producer["state_reason"]:
        faults.append(f"capture is off: {producer['state_reason']}")
    if producer["uncovered"]:
        faults.append(f"uncovered layers {[entry['layer'] for entry in producer['uncovered']]}")
    if producer["absent"]:
        known = [entry["layer"] for entry in producer["absent"] if entry["layer"] is not None]
        faults.append(f"absent layers {known}" if known else "absent layers, not known which")
    if rank["unseen_layers"]:
        faults.append(f"unseen layers {rank['unseen_layers']}")
    broken = [found["layer"] for found in producer["mismatches"]]
    for stage in rank["stages"]:
        if stage["pp_rank"] == producer["pp_rank"]:
            broken += [found["layer"] for found in stage["mismatches"]]
    if broken:
        faults.append(f"mismatched layers {sorted(set(broken))}")
    return "; ".join(faults) or f"{len(producer['layers'])} layers, exact"
