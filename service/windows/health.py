"""What is wrong with capture: absent and unseen layers, counts that don't add up, and what can't be told."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array
from moescope.service.counts.account_state import Latest
from moescope.service.counts.layers import Layout
from moescope.service.counts.row_comparison import KINDS, Comparison, Kind
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerState, heard_last, of_present_start

UNCOMPARED_S: Final = 60.0
"""For so long tokens may be computed without a comparison before it is said; they usually take a second."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A law of conservation that one layer breaks.

    ``slots``: the counts of a worker's experts must sum to its rows x top-k (a router that masks slots breaks
    this). ``rows``: rows added up over a DP rank's TP workers must be the tokens that the rank computed;
    ``prefill_rows`` and ``decode_rows``: in each phase too.
    """

    layer: int
    law: Literal["slots"] | Kind
    expected: int
    got: int


def mismatches(latest: Latest) -> list[Mismatch]:
    """The layers of a producer's newest frame whose slots are not rows x top-k."""
    counted = latest.counted
    slots, expected, wrong = _slots(counted)
    return [
        Mismatch(counted.layout.layers[i].layer, "slots", int(expected[i]), int(slots[i]))
        for i in np.flatnonzero(wrong).tolist()
    ]


def mismatched(latest: Latest) -> set[int]:
    """The layers of :func:`mismatches`, for whoever asks of hundreds of producers."""
    layout, (_, _, wrong) = latest.counted.layout, _slots(latest.counted)
    return {layout.layers[i].layer for i in np.flatnonzero(wrong).tolist()} if wrong.any() else set()


def _slots(counted: Totals) -> tuple[Int64Array, Int64Array, npt.NDArray[np.bool_]]:
    """Slots of each layer, what they should be, and whether they are not."""
    slots, expected = counted.layout.known_sums(counted.counts), counted.rows * counted.layout.top_k
    return slots, expected, slots != expected


@dataclass(frozen=True, slots=True)
class StageHealth:
    """Whether the law of rows holds at one pipeline stage of a DP rank, over its TP workers.

    Attributes:
        pp_rank: the stage.
        state: ``holds`` as of the last comparison, ``broken`` in some layer since the workers started, or
            ``unknown`` for ``reason``.
        compared_steps, compared_tokens: after which steps and of how many tokens the workers were compared
            last; None: never yet.
        compared_age: seconds since then.
        broken: the layers that break it. Layers without any row are :func:`unseen_layers`'s.
    """

    pp_rank: int
    state: Literal["holds", "broken", "unknown"]
    reason: str | None
    compared_steps: int | None
    compared_tokens: int | None
    compared_age: float | None
    broken: tuple[Mismatch, ...]


def stages(producers: Iterable[ProducerState]) -> list[StageHealth]:
    """The law of rows at each pipeline stage of a DP rank.

    Args:
        producers: all producers of one DP rank, sorted by key; one at least.
    """
    present = of_present_start(list(producers))
    sizes = heard_last(present)
    if len(present) == sizes.pp_size == 1:  # almost always
        return [_stage(0, sizes.tp_size, present)]
    by_stage = {rank: list(group) for rank, group in groupby(present, key=_pp_rank)}
    return [_stage(rank, sizes.tp_size, by_stage.get(rank, [])) for rank in range(sizes.pp_size)]


def uncompared_long(item: ProducerState) -> tuple[bool, bool]:
    """Which of the instants since which a stage may be uncompared are longer ago than it may be unsaid.

    That is all of :func:`stages`' states that changes by itself, as time passes.

    Returns:
        Of the producer's start, and of its stage's last comparison; False where there is none.
    """
    compared = item.law.compared
    return _long_ago(item, item.started_at), compared is not None and _long_ago(item, compared.at)


def silent_stages(producers: Sequence[ProducerState]) -> tuple[int, ...]:
    """Pipeline stages of which no worker has reported, so that their layers aren't known; rising.

    Args:
        producers: those of a deployment, one at least.
    """
    reporting = {_pp_rank(item) for item in producers}
    return tuple(sorted(set(range(heard_last(producers).pp_size)) - reporting))


def absent_layers(newest: Iterable[Latest], found: Container[int] = ()) -> dict[int | None, str]:
    """Layers that a model's config has and that were not found, to the reason; rising, None comes last.

    Args:
        newest: the newest frames of some producers.
        found: layers that are known all the same, from other producers.

    Returns:
        None stands for layers of which it isn't known which they are.
    """
    reasons: dict[int | None, str] = {}
    for latest in newest:
        for layer, reason in latest.absences:
            if layer is None or layer not in found:
                reasons.setdefault(layer, reason)
    return {layer: reasons[layer] for layer in sorted(reasons, key=lambda at: (at is None, at or 0))}


def unseen_layers(producers: Iterable[ProducerState]) -> list[int]:
    """Layers that a DP rank claims to cover and never saw a row of, although it computed tokens.

    A layer is unseen only if all TP workers of its pipeline stage have counted tokens and none has a row.

    Args:
        producers: all producers of one DP rank, sorted by key; rows add up over its TP ranks.
    """
    found: list[int] = []
    for _, group in groupby(of_present_start(list(producers)), key=_pp_rank):
        workers = list(group)
        newest = [worker.latest.counted for worker in workers]
        if _silent_ranks(workers[0].latest.producer.tp_size, workers) or not all(c.tokens for c in newest):
            continue
        layout, rows = newest[0].layout, newest[0].rows
        if len(newest) > 1:
            layout = reduce(Layout.union, (counted.layout for counted in newest))
            rows = np.sum([layout.widened_layers(counted.layout, counted.rows) for counted in newest], axis=0)
        found += [layout.layers[i].layer for i in np.flatnonzero(rows == 0).tolist()]
    return sorted(found)


def _pp_rank(item: ProducerState) -> int:
    return item.latest.producer.pp_rank


def _tp_rank(item: ProducerState) -> int:
    return item.latest.producer.tp_rank


def _silent_ranks(tp_size: int, workers: Sequence[ProducerState]) -> list[int]:
    """TP ranks that have not reported since the start."""
    return sorted(set(range(tp_size)) - {_tp_rank(item) for item in workers})


def _stage(pp_rank: int, tp_size: int, workers: Sequence[ProducerState]) -> StageHealth:
    if not workers:
        reason = f"no worker of pipeline stage {pp_rank} has reported"
        return StageHealth(pp_rank, "unknown", reason, None, None, None, ())
    law = workers[0].law
    broken = tuple(_broken(law.newest))
    why = None if broken else next(_unknown(tp_size, workers), None)
    last = law.compared
    now = _now(workers[0])
    return StageHealth(
        pp_rank=pp_rank,
        state="broken" if broken else "holds" if why is None else "unknown",
        reason=why,
        compared_steps=None if last is None else last.steps,
        compared_tokens=None if last is None else int(last.tokens[0]),
        compared_age=None if last is None else max(0.0, now - last.at),
        broken=broken,
    )


def _broken(found: Comparison | None) -> Iterator[Mismatch]:
    if found is None or found.holds:
        return
    seen = found.rows[0] != 0
    for at in np.flatnonzero(found.off.any(axis=0) & seen).tolist():
        for kind, rows, off in zip(KINDS, found.rows[:, at].tolist(), found.off[:, at].tolist(), strict=True):
            if off:
                yield Mismatch(found.layout.layers[at].layer, kind, expected=rows + off, got=rows)


def _unknown(tp_size: int, workers: Sequence[ProducerState]) -> Iterator[str]:
    """Why it is not known whether the law holds, the gravest reason first."""
    law = workers[0].law
    silent = _silent_ranks(tp_size, workers)
    if silent:
        yield f"{_names(silent)} not reported since the start (TP size {tp_size})"
    for item in workers:
        if item.latest.state != "counting":
            yield f"TP rank {_tp_rank(item)} does not count: {item.latest.state_reason}"
        if item.stale:
            yield f"TP rank {_tp_rank(item)} has been silent for {item.age:.0f} s"
    tokens = max(item.latest.counted.tokens for item in workers)
    compared = 0 if law.compared is None else int(law.compared.tokens[0])
    since = max(item.started_at for item in workers) if law.compared is None else law.compared.at
    if law.compared is None and tokens:
        yield "the TP ranks have not yet sent snapshots of one step"
    if tokens > compared and _long_ago(workers[0], since):
        yield f"the TP ranks have sent no snapshots of one step for {_now(workers[0]) - since:.0f} s"
    if law.compared is not None and law.compared.partly.any():
        layers = [law.compared.layout.layers[i].layer for i in np.flatnonzero(law.compared.partly).tolist()]
        yield f"layers {layers} are covered on some of the TP ranks only, and not all tokens are seen there"


def _long_ago(item: ProducerState, since: float) -> bool:
    """Whether tokens of a producer that were not compared since then are worth a word."""
    return _now(item) - since > UNCOMPARED_S


def _now(item: ProducerState) -> float:
    """When a producer's state was read, seconds of Unix time on the service's clock."""
    return item.received_at + item.age


def _names(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"TP rank {ranks[0]} has"
    return f"TP ranks {', '.join(map(str, ranks))} have"
