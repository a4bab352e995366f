"""What /v1/balance and /v1/stragglers answer, for people and for csv."""

from __future__ import annotations

from typing import Any

from moescope.service.cli.rank_views import absent_note
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
    whose,
    word,
)
from moescope.service.measures.balance import MEASURES

_AXES = ("over_ep_ranks", "over_dp_ranks", "over_experts")


def balance_view(answer: dict[str, Any]) -> View:
    """A line for each layer, then the DP ranks' tokens and the summary."""
    layers = answer["layers"]
    loads = [layer["over_ep_ranks"]["loads"] or [] for layer in layers]
    ep_ranks = max(map(len, loads), default=0)
    imbalance = f"imbalance = {MEASURES['imbalance_ratio'].formula}"
    title = f"{answer['model']} on {answer['server']}: slots by EP rank{_part_of(answer)}, {imbalance}"
    rows = [
        (
            *(answer["server"], answer["model"], layer["layer"], layer["tokens"]),
            *_hottest(load),
            *(_ratio(layer[axis]) for axis in _AXES),
            (layer["over_experts"]["measures"] or {}).get("dead"),
            *(load + [None] * (ep_ranks - len(load))),
        )
        for layer, load in zip(layers, loads, strict=True)
    ]
    sheet = Sheet(title, _balance_columns(ep_ranks), rows)
    return View((sheet, _dp_line(answer), _summary_line(answer), *_notes(answer)))


def _balance_columns(ep_ranks: int) -> tuple[Column, ...]:
    dead = f"{MEASURES['dead'].title.lower()} experts"
    return (
        *whose(),
        Column("layer", "layer", key=True),
        Column("tokens", "tokens", count),
        Column("hottest_ep_rank", "hottest EP"),
        Column("hottest_slots", "its slots", count),
        Column("imbalance_over_ep_ranks", "over EP", fixed(3)),
        Column("imbalance_over_dp_ranks", "over DP", fixed(3)),
        Column("imbalance_over_experts", "over experts", fixed(3)),
        Column("dead_experts", dead, spare=1),
        *(Column(f"slots_ep_{rank}", f"EP {rank}", count, spare=2) for rank in range(ep_ranks)),
    )


def _part_of(answer: dict[str, Any]) -> str:
    """Of which tokens the answer is, with a blank before it; empty: of all."""
    rank, phase = answer.get("dp_rank"), answer["phase"]
    words = ([] if rank is None else [f"of DP rank {rank}"]) + ([] if phase is None else [f"of {phase}"])
    return f" {' '.join(words)}" if words else ""


def _hottest(load: list[float]) -> tuple[int | None, float | None]:
    """The EP rank with the most slots, and these."""
    most = max(load, default=0.0)
    return (load.index(most), most) if most else (None, None)


def _ratio(cell: dict[str, Any]) -> float | None:
    return None if cell["measures"] is None else cell["measures"]["imbalance_ratio"]


def _dp_line(answer: dict[str, Any]) -> Line:
    loads = answer["dp_tokens"]["loads"]
    if loads is None:
        return Line(f"Tokens by DP rank: not known: {answer['dp_tokens']['reason']}")
    ranks = ", ".join(
        f"DP {rank}: {tokens:,.0f}" for rank, tokens in zip(answer["dp_ranks"], loads, strict=True)
    )
    ratio = fixed(3)(_ratio(answer["dp_tokens"]))
    return Line(f"Tokens by DP rank: {ranks or 'none'} (imbalance {ratio})")


def _summary_line(answer: dict[str, Any]) -> Line:
    summary = answer["summary"]["over_ep_ranks"]
    if summary["worst"] is None:
        return Line("Over EP ranks: no sample.")
    return Line(
        f"Over EP ranks: worst {summary['worst']:.3f} (layer {summary['worst_layer']}), "
        f"median {summary['p50']:.3f}, p90 {summary['p90']:.3f}, ratio of sums {summary['ratio_of_sums']:.3f}"
    )


def _notes(answer: dict[str, Any]) -> list[Line]:
    """Each reason for a missing sample once, and the layers that are absent or can't be seen."""
    reasons = {
        f"over {name}: {reason}"
        for layer in answer["layers"]
        for axis, name in zip(_AXES, ("EP", "DP", "experts"), strict=True)
        if (reason := layer[axis]["reason"]) is not None
    }
    uncovered = [f"layer {entry['layer']} can't be seen: {entry['reason']}" for entry in answer["uncovered"]]
    absent = [absent_note(entry) for entry in answer["absent"]]
    return [*part_note(answer), *notes([*sorted(reasons), *absent, *uncovered])]


def part_note(answer: dict[str, Any]) -> list[Line]:
    """Lines that an answer is of a part of a deployment only, and of which weights; none if of all."""
    lines = [f"this is {answer['partial']}"] if answer.get("partial") else []
    window = answer.get("window") or answer.get("fit") or {}
    if window.get("weights"):
        lines.append(f"the window: {window['weights']}")
    return notes(lines, style="bold yellow")


_STRAGGLERS = (
    *whose(),
    Column("layer", "layer", key=True),
    Column("steps", "steps", count),
    Column("straggler_cost", "straggler cost", percent),
    Column("windowed_straggler_share", "of the window's sums", percent),
    Column("hottest_ep_rank", "hottest EP rank"),
    Column("hottest_share", "in", percent),
    word("not_conserved", "not conserved", readers=Readers.PROGRAMS),
)


def stragglers_view(answer: dict[str, Any]) -> View:
    """A line for each layer, one for all layers, one for each stage's joins."""
    rows = []
    for layer in answer["layers"]:
        rank = layer["hottest_rank"]
        rows.append(
            (
                *(answer["server"], answer["model"], layer["layer"], layer["steps"]),
                *(layer["straggler_cost"], layer["windowed_straggler_share"], rank),
                None if rank is None else layer["hottest"][rank] / layer["steps"],
                layer["not_conserved"],
            )
        )
    title = f"{answer['model']} on {answer['server']}: share of MoE work time that EP ranks wait"
    whole = Line(
        f"Over layers: straggler cost {_share(answer['straggler_cost'])}; of the window's sums "
        f"{_share(answer['windowed_straggler_share'])}"
    )
    broken = [
        f"layer {layer['layer']}: {layer['not_conserved']}"
        for layer in answer["layers"]
        if layer["not_conserved"]
    ]
    reason = [Line(f"No straggler cost: {answer['reason']}")] if answer["reason"] else []
    stages = map(_stage_line, answer["stages"])
    sheet = Sheet(title, _STRAGGLERS, rows)
    return View((sheet, whole, *stages, *reason, *notes(broken), *part_note(answer)))


def _stage_line(stage: dict[str, Any]) -> Line:
    text = (
        f"Stage {stage['pp_rank']}: {stage['joined']:,} steps joined, {stage['incomplete']:,} incomplete, "
        f"{stage['pending']:,} pending"
    )
    return Line(f"{text}; {stage['reason']}" if stage["reason"] else text)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
