"""Histories that are played on several services and one store; of one that breaks a law the least is told."""

from __future__ import annotations

from collections.abc import Sequence

from tests.service.store.clickhouse.laws import BrokenLawError
from tests.service.store.clickhouse.playing import Play
from tests.service.store.clickhouse.stories import BEGIN, Event, story


def play(clickhouse: str, seed: int, deployments: int) -> None:
    """Play a seed's story; if a law is broken, say the shortest story that was found to break it.

    Raises:
        BrokenLawError: a law is broken.
    """
    events = story(seed, deployments)
    fault = _fault_of(clickhouse, seed, events)
    if fault is not None:
        events, fault = shrunk(clickhouse, seed, events, fault)
        lines = "\n".join(_line(event) for event in events)
        raise BrokenLawError(f"seed {seed}: {fault}\n{lines}", fault.deployment)


def shrunk(
    clickhouse: str, seed: int, events: list[Event], fault: BrokenLawError, tries: int = 150
) -> tuple[list[Event], BrokenLawError]:
    """Fewer events that still break the law.

    What ends a story stays: without it windows that end now begin while frames came, which services know with
    what precision they had it.
    """
    only = [_only(event, fault.deployment) for event in events]
    smaller = _fault_of(clickhouse, seed, only)
    if smaller is not None and smaller.law == fault.law:
        events, fault, tries = only, smaller, tries - 1
    size = max(1, len(events) // 2)
    while size and tries > 0:
        at = 0
        while at < len(events) and tries > 0:
            ends = [event for event in events[at : at + size] if event.kind == "end"]
            fewer = events[:at] + ends + events[at + size :]
            if len(fewer) == len(events):
                at += size
                continue
            found = _fault_of(clickhouse, seed, fewer)
            tries -= 1
            if found is None or found.law != fault.law:
                at += size
            else:
                events, fault = fewer, found
        size //= 2
    return events, fault


def _only(event: Event, deployment: int) -> Event:
    frames = tuple(told for told in event.frames if told.deployment == deployment)
    return Event(**{**event.__dict__, "frames": frames})


def _fault_of(clickhouse: str, seed: int, events: Sequence[Event]) -> BrokenLawError | None:
    try:
        Play(clickhouse, seed).run(events)
    except BrokenLawError as error:
        return error
    return None


def _line(event: Event) -> str:
    frames = ", ".join(
        f"history {told.deployment} rank {told.rank} generation {told.generation} "
        f"start {told.frame.epoch / 1e9 - BEGIN:.2f} seq {told.frame.seq} = {told.counts}"
        for told in event.frames
    )
    rest = f"number {event.number} loses {event.loses_answers} off {event.off}"
    return f"{event.at - BEGIN:.1f} {event.kind} {event.service}: {frames or rest}"
