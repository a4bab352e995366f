"""Which DP ranks reported, and the state of their workers."""

from __future__ import annotations

from typing import Any

from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, bar, table, text


def section(facts: Facts) -> Section:
    """DP ranks with their tokens in the window and the state of their workers."""
    known = facts.balance["dp_tokens"]["loads"]
    loads = {} if known is None else dict(zip(facts.balance["dp_ranks"], known, strict=True))
    most = max(loads.values(), default=0.0) or 1.0
    rows = [
        _row(item, loads.get(item["dp_rank"]), most)
        for item in facts.ranks["dp_ranks"]
        if item["dp_rank"] in loads or any(worker["state"] != "gone" for worker in item["producers"])
    ]
    return Section(
        "DP ranks",
        "Tokens in the window; the state is that of when the report was made.",
        table(["DP rank", "State", "", "Tokens", "Restarts", "Lost or put off"], rows, words=3),
    )


def _row(rank: dict[str, Any], tokens: float | None, most: float) -> list[str]:
    producers = rank["producers"]
    states = sorted({item["state"] for item in producers})
    lost = sum(sum(item["drops"].values()) for item in producers)
    reasons = sorted({_reason(item) for item in producers if item["state_reason"]})
    said = ", ".join(states) + "".join(f"; {reason}" for reason in reasons)
    return [
        str(rank["dp_rank"]),
        f'<span class="{"ok" if states == ["counting"] else "bad"}">{text(said)}</span>',
        "" if tokens is None else bar(tokens / most),
        "-" if tokens is None else f"{tokens:,.0f}",
        str(max((item["restarts"] for item in producers), default=0)),
        f"{lost:,}",
    ]


def _reason(producer: dict[str, Any]) -> str:
    why = str(producer["state_reason"])
    return why if producer["state"] == "conflict" else f"capture is off: {why}"
