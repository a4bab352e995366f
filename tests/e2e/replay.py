"""Frames of a relay, posted once more: what the service knows after each of them, however busy it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from moescope.capture.wire import Frame
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.health import stages


@dataclass(frozen=True)
class Meeting:
    """A step after which all TP workers of a DP rank took a snapshot.

    Attributes:
        dp_rank: the rank.
        complete_at: place of the last of these snapshots among the frames.
        snapshots: one of each TP worker, by TP rank.
    """

    dp_rank: int
    complete_at: int
    snapshots: tuple[Frame, ...]


def meetings(frames: Sequence[Frame]) -> list[Meeting]:
    """All of them, in the order in which they became complete."""
    found: list[Meeting] = []
    waiting: dict[tuple[int, int, int], dict[int, Frame]] = {}
    for at, frame in enumerate(frames):
        who = frame.producer
        workers = waiting.setdefault((who.dp_rank, frame.steps, frame.idle_steps), {})
        if who.tp_rank not in workers:
            workers[who.tp_rank] = frame
            if len(workers) == who.tp_size:
                snapshots = tuple(workers[rank] for rank in range(who.tp_size))
                found.append(Meeting(who.dp_rank, at, snapshots))
    return found


def has_to_show(frames: Sequence[Frame], broken_at_ns: int, grown: Callable[[Meeting], int]) -> int | None:
    """The frame with which a break has to show at the latest; None: it hasn't come yet.

    The first meeting after the break may be of steps from before it. All that was computed between this
    meeting and the next one was computed with the break.

    Args:
        frames: of all workers, in the order in which they came.
        broken_at_ns: all steps that began later have the break; nanoseconds of Unix time.
        grown: a number that grows with each token that the break strikes.
    """
    since: dict[int, int] = {}
    for found in meetings(frames):
        is_later = all(frame.captured_at_ns > broken_at_ns for frame in found.snapshots)
        if is_later and grown(found) > since.setdefault(found.dp_rank, grown(found)):
            return found.complete_at
    return None


def shows(frames: Sequence[Frame], layer: int, law: str) -> int:
    """The frame with which a service says that a layer breaks a law.

    Raises:
        LookupError: it doesn't say so.
    """
    now = 0.0
    state = LiveState(Settings(), lambda: now)
    for at, frame in enumerate(frames):
        now = max(now, frame.captured_at_ns / 1e9)
        state.ingest(frame)
        if (layer, law) in _broken(state):
            return at
    raise LookupError(f"no frame shows that layer {layer} breaks the law {law!r}")


def _broken(state: LiveState) -> set[tuple[int, str]]:
    by_rank = groupby(state.producers(), key=lambda item: item.latest.producer.dp_rank)
    return {
        (found.layer, found.law)
        for _, producers in by_rank
        for stage in stages(producers)
        for found in stage.broken
    }
