"""What /v1/traces and /v1/traces/{id} answer, for people and for csv."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, count, whose, word
from moescope.service.cli.terminal import utc

_LIST: Final = (
    word("id", "id", key=True),
    word("request_id", "vLLM's id", readers=Readers.WIDE),
    word("server", "server", readers=Readers.WIDE),
    word("model", "model", readers=Readers.WIDE),
    Column("dp_rank", "DP"),
    Column("tokens", "tokens", count),
    Column("prompt_tokens", "prompt", count),
    Column("cached_tokens", "cached", count, spare=2),
    Column("preemptions", "preempted", count, spare=3),
    word("ended", "outcome", spare=1, readers=Readers.PEOPLE),
    word("outcome", "outcome", readers=Readers.PROGRAMS),
    word("finish_reason", "finished", readers=Readers.PROGRAMS),
    word("role", "role", readers=Readers.WIDE),
    word("started_at", "began (UTC)", form=utc, readers=Readers.WIDE),
    word("ended_at", "ended (UTC)", form=utc),
    word("lora", "LoRA"),
)
_LIST_WITHOUT_ADAPTERS: Final = (*_LIST[:-1], replace(_LIST[-1], readers=Readers.WIDE))
_POSITIONS: Final = (
    *whose(),
    word("request_id", "request"),
    Column("position", "position"),
    Column("layer", "layer"),
    word("experts", "experts"),
)


def traces_view(answer: dict[str, Any], limit: int) -> View:
    """A line for each trace."""
    found = [{**item, "id": item["names"][-1], "ended": _ended(item)} for item in answer["traces"]]
    columns = _LIST if any(item["lora"] for item in found) else _LIST_WITHOUT_ADAPTERS
    rows = [[item[column.name] for column in columns] for item in found]
    sheet = Sheet("", columns, rows, readers=Readers.ALL if rows else Readers.PROGRAMS)
    more = Line(f"There are more than {limit}: give --limit, or a narrower --start.")
    return View((sheet, *([] if rows else [Line("No traces.")]), *([more] if answer["next_cursor"] else [])))


def trace_view(answer: dict[str, Any]) -> View:
    """A line for each position, a column for each layer; csv has a line for each of both."""
    layers, first = answer["layers"], answer["first_position"]
    columns = [Column("position", "position", key=True)]
    columns += [word(f"layer_{layer}", f"layer {layer}") for layer in layers]
    taken = [[_taken(experts) for experts in position] for position in answer["routed_experts"]]
    rows = [
        (first + i, *(" ".join(map(str, experts)) or "not computed" for experts in position))
        for i, position in enumerate(taken)
    ]
    adapter = f", LoRA {answer['lora']}" if answer["lora"] else ""
    title = f"{answer['request_id']}: {answer['tokens']} tokens computed, {_ended(answer)}{adapter}"
    named = (answer["server"], answer["model"], answer["request_id"])
    raw = [
        (*named, first + i, layer, experts)
        for i, position in enumerate(taken)
        for layer, experts in zip(layers, position, strict=True)
    ]
    return View(
        (
            Sheet(title, columns, rows, readers=Readers.PEOPLE),
            Sheet("", _POSITIONS, raw, readers=Readers.PROGRAMS),
        )
    )


def _ended(item: dict[str, Any]) -> str:
    """How a request ended, with the reason where its worker knows it."""
    reason = item["finish_reason"]
    return f"{item['outcome']}: {reason}" if reason else str(item["outcome"])


def _taken(experts: list[int]) -> list[int]:
    return [expert for expert in experts if expert >= 0]
