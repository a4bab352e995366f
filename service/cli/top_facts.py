"""What ``moescope top`` shows: answers of the service as rows of numbers.

Who causes the waiting is computed as the built-in page does (``service/page/js/causes.js``): from the loads
of single steps where these are known, else from the window's sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moescope.service.cli.rank_views import ago
from moescope.service.cli.sheets import NONE, Column, Sheet, count, fixed, percent, word
from moescope.service.client.http import ServiceUnavailableError

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A deployment at one moment.

    Attributes:
        at: when it was asked, seconds of Unix time.
        deployments: server and model of all that report, in order of their names.
        chosen: which of them this is.
        verdict: its entry of /v1/verdict.
        words: what the verdict says; where nobody reports, what is to be done.
        numbers: names and texts for the line below the verdict.
        sheets: the tables, by the name of the view.
    """

    at: float
    deployments: list[tuple[str, str]]
    chosen: tuple[str, str] | None
    verdict: dict[str, Any] | None
    words: str
    numbers: list[tuple[str, str]]
    sheets: dict[str, Sheet]


def times(value: float | None) -> str:
    """A multiple of a fair share."""
    return NONE if value is None else f"{value:.2f}x"


VIEWS: Final = ("ranks", "layers", "workers")
_RANKS: Final = (
    Column("ep_rank", "EP rank", key=True),
    Column("caused", "causes of waiting", percent),
    Column("busiest", "busiest in", percent),
    Column("load", "load", times),
    Column("age", "seen", ago),
    Column("layer", "most in layer", spare=1),
    Column("expert", "its expert", spare=2),
    Column("over_fair", "with", times, spare=2),
)
_LAYERS: Final = (
    Column("layer", "layer", key=True),
    Column("share", "share of waiting", percent),
    Column("cost", "ranks wait", percent),
    Column("imbalance", "over EP", fixed(3)),
    Column("ep_rank", "busiest EP rank"),
    Column("expert", "hottest expert", spare=1),
    Column("over_fair", "with", times, spare=1),
    Column("dead", "dead experts", count, spare=2),
)
_WORKERS: Final = (
    Column("dp_rank", "DP rank", key=True),
    Column("rate", "tokens/s", count),
    Column("of_mean", "of a fair share", times),
    Column("prefill", "prefill", percent, spare=1),
    Column("age", "seen", ago),
    word("state", "state"),
)


def take(ask: Ask, wanted: tuple[str | None, str | None], start: str, at: float) -> Snapshot:
    """Ask for all that is shown.

    Args:
        ask: gives the answer at a path.
        wanted: server and model; None: whichever there is. Of several it is the one with the gravest verdict.
        start: begin of the window.
        at: now, seconds of Unix time.
    """
    judged = ask("/v1/verdict", {"start": start})
    found = [(one["server"], one["model"]) for one in judged["verdicts"]]
    server, model = wanted
    mine = [one for one in found if server in (None, one[0]) and model in (None, one[1])]
    if not mine:
        return Snapshot(at, sorted(found), None, None, judged["words"], [], {})
    chosen = mine[0]
    verdict = judged["verdicts"][found.index(chosen)]
    params = {"server": chosen[0], "model": chosen[1]}
    view = ask("/v1/view", {**params, "start": start, "parts": "hot"})
    waited = ask("/v1/stragglers", {**params, "start": start})
    reporting = ask("/v1/ranks", params)["deployments"]
    if not reporting:
        raise ServiceUnavailableError(f"{chosen[1]} on {chosen[0]} left while it was asked about", 404)
    ranks = reporting[0]
    sheets = {
        "ranks": Sheet("EP ranks", _RANKS, rank_rows(view, waited, ranks)),
        "layers": Sheet("layers", _LAYERS, layer_rows(view, waited)),
        "workers": Sheet("DP ranks", _WORKERS, worker_rows(view, ranks)),
    }
    return Snapshot(at, sorted(found), chosen, verdict, verdict["words"], _numbers(view, waited), sheets)


def _numbers(view: dict[str, Any], waited: dict[str, Any]) -> list[tuple[str, str]]:
    rates = [_rate(rank) for rank in view["dp_ranks"]]
    known = [rate for rate in rates if rate is not None]
    over = view["over_ep_ranks"]
    return [
        ("tokens/s", count(sum(known)) if len(known) == len(rates) else "not known of every DP rank"),
        ("imbalance over EP ranks", fixed(3)(over["ratio_of_sums"])),
        ("ranks wait in steps", percent(waited["straggler_cost"])),
        ("DP ranks", f"{len(rates)} of {view['dp_size']}"),
        ("EP ranks", str(view["ep_size"])),
        ("layers", str(len(view["layers"]))),
    ]


def _rate(rank: dict[str, Any]) -> float | None:
    return rank["tokens"] / rank["seconds"] if rank["tokens"] is not None and rank["seconds"] else None


def rank_rows(view: dict[str, Any], waited: dict[str, Any], ranks: dict[str, Any]) -> list[list[Any]]:
    """An EP rank a row: its part in the waiting, and its load as a multiple of a fair share."""
    layers = [layer for layer in view["layers"] if layer["over_ep_ranks"] and layer["ep_slots"]]
    parts, total, often = causes(layers, waited)
    size = max([len(caused) for _, caused in parts] + [len(layer["ep_slots"]) for layer in layers], default=0)
    slots = [sum(_at(layer["ep_slots"], rank) for layer in layers) for rank in range(size)]
    fair = sum(slots) / size if size else 0.0
    hot = dict(zip((layer["layer"] for layer in view["layers"]), view["hot"] or [], strict=False))
    ages = _ages(ranks, "ep_rank")
    rows = []
    for rank in range(size):
        worst = max(parts, key=lambda part: _at(part[1], rank), default=None)
        layer = worst[0] if worst is not None and _at(worst[1], rank) > 0 else None
        spot = hot.get(layer) if layer is not None else None
        mine = spot if spot is not None and spot["ep_rank"] == rank else None
        rows.append(
            [
                rank,
                sum(_at(caused, rank) for _, caused in parts) / total if total > 0 else 0.0,
                _at(often, rank) / (sum(often) or 1),
                slots[rank] / fair if fair else None,
                *(ages.get(rank), layer),
                *((None, None) if mine is None else (mine["expert"], mine["over_fair"])),
            ]
        )
    return rows


def causes(
    layers: Sequence[dict[str, Any]], waited: dict[str, Any]
) -> tuple[list[tuple[int, list[float]]], float, list[float]]:
    """Who causes the waiting.

    Returns:
        The slots that ranks waited for each EP rank, by layer; all of them; how often each was the busiest.
    """
    if waited["straggler_cost"] is not None and waited["hottest"]:
        parts = [(layer["layer"], layer["caused"]) for layer in waited["layers"] if layer["caused"]]
        return parts, waited["max_slots"] - waited["mean_slots"], waited["hottest"]
    parts, often = [], [0.0] * max((len(layer["ep_slots"]) for layer in layers), default=0)
    for layer in layers:
        slots = layer["ep_slots"]
        most, waiting = max(slots), max(slots) - sum(slots) / len(slots)
        ties = slots.count(most)
        busiest = [1 / ties if load == most else 0.0 for load in slots]
        parts.append((layer["layer"], [part * waiting for part in busiest]))
        often = [before + part for before, part in zip(often, busiest, strict=True)]
    return parts, sum(sum(caused) for _, caused in parts), often


def layer_rows(view: dict[str, Any], waited: dict[str, Any]) -> list[list[Any]]:
    """A layer a row: its part in the waiting, its balance, and its hottest rank and expert."""
    layers = [layer for layer in view["layers"] if layer["over_ep_ranks"] and layer["ep_slots"]]
    parts, total, _ = causes(layers, waited)
    caused = {layer: sum(slots) for layer, slots in parts}
    costs = {layer["layer"]: layer["straggler_cost"] for layer in waited["layers"]}
    rows = []
    for layer, spot in zip(view["layers"], view["hot"] or [None] * len(view["layers"]), strict=True):
        number = layer["layer"]
        share = caused.get(number)
        rows.append(
            [
                number,
                share / total if share is not None and total > 0 else None,
                costs.get(number),
                (layer["over_ep_ranks"] or {}).get("imbalance_ratio"),
                *(None if spot is None else spot[name] for name in ("ep_rank", "expert", "over_fair")),
                (layer["over_experts"] or {}).get("dead"),
            ]
        )
    return rows


def worker_rows(view: dict[str, Any], ranks: dict[str, Any]) -> list[list[Any]]:
    """A DP rank a row: what it computes, how long ago it reported, and its state."""
    rates = [_rate(rank) for rank in view["dp_ranks"]]
    known = [rate for rate in rates if rate is not None]
    mean = sum(known) / len(known) if known else 0.0
    ages = _ages(ranks, "dp_rank")
    states = {
        rank["dp_rank"]: ", ".join(dict.fromkeys(producer["state"] for producer in rank["producers"]))
        for rank in ranks["dp_ranks"]
    }
    rows = []
    for rank, rate in zip(view["dp_ranks"], rates, strict=True):
        phases, number = rank["phases"], rank["dp_rank"]
        tokens = 0 if phases is None else phases["prefill_tokens"] + phases["decode_tokens"]
        rows.append(
            [
                *(number, rate, rate / mean if rate is not None and mean else None),
                phases["prefill_tokens"] / tokens if tokens else None,
                *(ages.get(number), states.get(number)),
            ]
        )
    return rows


def _ages(ranks: dict[str, Any], field: str) -> dict[int, float]:
    """Seconds since the latest report of the worker that is heard least, by a kind of rank."""
    found: dict[int, float] = {}
    for rank in ranks["dp_ranks"]:
        for producer in rank["producers"]:
            if producer["state"] != "gone":
                number = rank["dp_rank"] if field == "dp_rank" else producer["ep_rank"]
                found[number] = max(found.get(number, 0.0), producer["age_seconds"])
    return found


def _at(values: Sequence[float], i: int) -> float:
    return values[i] if i < len(values) else 0.0
