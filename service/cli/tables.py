"""Answers of the API as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from moescope.service.measures.balance import MEASURES


def ranks_table(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/ranks: a table for each deployment, a line for each producer."""
    if not answer["deployments"]:
        return Text("No producer has reported yet.")
    return Group(*(_deployment_table(deployment) for deployment in answer["deployments"]))


def _deployment_table(deployment: dict[str, Any]) -> RenderableType:
    named = f"{deployment['model']} on {deployment['server']}{_place(deployment)}"
    table = Table(title=f"{named}: totals since the start")
    for name in ("DP", "TP", "PP", "EP", "tokens", "of decode", "steps", "idle"):
        table.add_column(name, justify="right")
    for name in ("state", "capture"):
        table.add_column(name, overflow="fold")
    for rank in deployment["dp_ranks"]:
        for producer in rank["producers"]:
            table.add_row(
                str(rank["dp_rank"]),
                *(str(producer[name]) for name in ("tp_rank", "pp_rank", "ep_rank")),
                _count(rank["tokens"]),
                _count((rank["phases"] or {}).get("decode_tokens")),
                *(_count(rank[name]) for name in ("steps", "idle_steps")),
                f"{producer['state']}, {producer['age_seconds']:.0f} s ago",
                _capture(rank, producer),
            )
    return Group(table, *(Text(f"- {note}") for note in _absences(deployment)))


def _place(deployment: dict[str, Any]) -> str:
    """Its pool and its role, as far as it has them."""
    found = [f"pool {deployment['pool']}" if deployment["pool"] else "", deployment["role"] or ""]
    told = ", ".join(word for word in found if word)
    return f" ({told})" if told else ""


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


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
        _absent_note(entry): None
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


def _absent_note(entry: dict[str, Any]) -> str:
    which = "MoE layers are" if entry["layer"] is None else f"layer {entry['layer']} is"
    return f"{which} absent: {entry['reason']}"


def balance_tables(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/balance: a line for each layer, then the DP ranks' tokens and the summary."""
    layers = answer["layers"]
    loads = [layer["over_ep_ranks"]["loads"] for layer in layers]
    ep_ranks = max((len(load) for load in loads if load is not None), default=0)
    imbalance = f"imbalance = {MEASURES['imbalance_ratio'].formula}"
    title = f"{answer['model']} on {answer['server']}: slots by EP rank{_part_of(answer)}, {imbalance}"
    ranks = [f"EP {rank}" for rank in range(ep_ranks)]
    wide = _balance_table(title, ranks, layers, [_each(load, ep_ranks) for load in loads])
    narrow = _balance_table(title, ["hottest EP", "its slots"], layers, [_hottest(load) for load in loads])
    return Group(_Widest(wide, narrow), _dp_line(answer), _summary_line(answer), *_notes(answer))


class _Widest:
    """The wide table where the terminal has room for it, else the narrow one."""

    def __init__(self, wide: Table, narrow: Table) -> None:
        self._wide = wide
        self._narrow = narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table that fits."""
        fits = Measurement.get(console, options.update(max_width=10_000), self._wide)
        yield self._wide if fits.maximum <= options.max_width else self._narrow


def _part_of(answer: dict[str, Any]) -> str:
    """Of which tokens the answer is, with a blank before it; empty: of all."""
    rank, phase = answer.get("dp_rank"), answer["phase"]
    words = ([] if rank is None else [f"of DP rank {rank}"]) + ([] if phase is None else [f"of {phase}"])
    return f" {' '.join(words)}" if words else ""


def _balance_table(
    title: str, names: list[str], layers: list[dict[str, Any]], cells: list[list[str]]
) -> Table:
    table = Table(title=title)
    dead = f"{MEASURES['dead'].title.lower()} experts"
    for name in ("layer", "tokens", *names, "over EP", "over DP", "over experts", dead):
        table.add_column(name, justify="right", overflow="fold")
    for layer, loads in zip(layers, cells, strict=True):
        experts = layer["over_experts"]["measures"]
        table.add_row(
            str(layer["layer"]),
            f"{layer['tokens']:,}",
            *loads,
            *(_ratio(layer[axis]) for axis in ("over_ep_ranks", "over_dp_ranks", "over_experts")),
            "-" if experts is None else str(experts["dead"]),
        )
    return table


def _each(load: list[float] | None, ep_ranks: int) -> list[str]:
    slots = [f"{value:,.0f}" for value in load or ()]
    return slots + ["-"] * (ep_ranks - len(slots))


def _hottest(load: list[float] | None) -> list[str]:
    if not load or not max(load):
        return ["-", "-"]
    return [str(load.index(max(load))), f"{max(load):,.0f}"]


def _ratio(cell: dict[str, Any]) -> str:
    return "-" if cell["measures"] is None else f"{cell['measures']['imbalance_ratio']:.3f}"


def _dp_line(answer: dict[str, Any]) -> Text:
    loads = answer["dp_tokens"]["loads"]
    if loads is None:
        return Text(f"Tokens by DP rank: not known: {answer['dp_tokens']['reason']}")
    ranks = ", ".join(
        f"DP {rank}: {tokens:,.0f}" for rank, tokens in zip(answer["dp_ranks"], loads, strict=True)
    )
    return Text(f"Tokens by DP rank: {ranks or 'none'} (imbalance {_ratio(answer['dp_tokens'])})")


def _summary_line(answer: dict[str, Any]) -> Text:
    summary = answer["summary"]["over_ep_ranks"]
    if summary["worst"] is None:
        return Text("Over EP ranks: no sample.")
    return Text(
        f"Over EP ranks: worst {summary['worst']:.3f} (layer {summary['worst_layer']}), "
        f"median {summary['p50']:.3f}, p90 {summary['p90']:.3f}, ratio of sums {summary['ratio_of_sums']:.3f}"
    )


def _notes(answer: dict[str, Any]) -> list[Text]:
    """Each reason for a missing sample once, and the layers that are absent or can't be seen."""
    reasons = {
        f"over {name}: {reason}"
        for layer in answer["layers"]
        for axis, name in (("over_ep_ranks", "EP"), ("over_dp_ranks", "DP"), ("over_experts", "experts"))
        if (reason := layer[axis]["reason"]) is not None
    }
    uncovered = [f"layer {entry['layer']} can't be seen: {entry['reason']}" for entry in answer["uncovered"]]
    absent = [_absent_note(entry) for entry in answer["absent"]]
    notes = [Text(f"- {note}", style="dim") for note in [*sorted(reasons), *absent, *uncovered]]
    return [*part_note(answer), *notes]


def part_note(answer: dict[str, Any]) -> list[Text]:
    """Lines that an answer is of a part of a deployment only, and of which weights; none if of all."""
    lines = [f"- this is {answer['partial']}"] if answer.get("partial") else []
    window = answer.get("window") or answer.get("fit") or {}
    if window.get("weights"):
        lines.append(f"- the window: {window['weights']}")
    return [Text(line, style="bold yellow") for line in lines]


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


def stragglers_tables(answer: dict[str, Any]) -> RenderableType:
    """The answer of /v1/stragglers: a line for each layer, one for all layers, one for each stage's joins."""
    table = Table(title=f"{answer['model']} on {answer['server']}: share of MoE work time that EP ranks wait")
    for name in ("layer", "steps", "straggler cost", "of the window's sums", "hottest EP rank", "in"):
        table.add_column(name, justify="right")
    for layer in answer["layers"]:
        rank = layer["hottest_rank"]
        table.add_row(
            str(layer["layer"]),
            f"{layer['steps']:,}",
            _share(layer["straggler_cost"]),
            _share(layer["windowed_straggler_share"]),
            "-" if rank is None else str(rank),
            "-" if rank is None else _share(layer["hottest"][rank] / layer["steps"]),
        )
    whole = Text(
        f"Over layers: straggler cost {_share(answer['straggler_cost'])}; of the window's sums "
        f"{_share(answer['windowed_straggler_share'])}"
    )
    broken = [
        Text(f"- layer {layer['layer']}: {layer['not_conserved']}", style="dim")
        for layer in answer["layers"]
        if layer["not_conserved"]
    ]
    stages = (_stage_line(stage) for stage in answer["stages"])
    return Group(table, whole, *stages, *_reason_of(answer), *broken, *part_note(answer))


def _stage_line(stage: dict[str, Any]) -> Text:
    text = (
        f"Stage {stage['pp_rank']}: {stage['joined']:,} steps joined, {stage['incomplete']:,} incomplete, "
        f"{stage['pending']:,} pending"
    )
    return Text(f"{text}; {stage['reason']}" if stage["reason"] else text)


def _reason_of(answer: dict[str, Any]) -> list[Text]:
    return [Text(f"No straggler cost: {answer['reason']}")] if answer["reason"] else []


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
