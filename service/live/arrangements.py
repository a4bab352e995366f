"""When a deployment's experts were rearranged, and where they were before and after.

vLLM's EPLB gives each rearrangement a higher version, which frames carry. All workers hold the same map, so
the first that reports a version tells of it; the last one tells when it was in force everywhere.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from moescope.capture.wire import Frame, MoeLayer, Placement

KEPT: Final = 64  # placements remembered of each pipeline stage


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A placement and when it was in force; times are seconds of Unix time on the service's clock.

    Attributes:
        pp_rank: the pipeline stage whose layers it places.
        layers, placement: as in the frame.
        at: when the first worker reported it; ``everywhere_at`` when the last one so far did.
    """

    pp_rank: int
    layers: tuple[MoeLayer, ...]
    placement: Placement
    at: float
    everywhere_at: float


@dataclass(slots=True)
class _Held:
    layers: tuple[MoeLayer, ...]
    placement: Placement
    at: float
    everywhere_at: float
    workers: set[tuple[int, int]] = field(default_factory=set)


class Arrangements:
    """The newest placements of every deployment. Not safe for threads: its owner has a lock."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, int], deque[_Held]] = {}
        self._rises: Counter[tuple[str, str, int]] = Counter()

    def note(self, frame: Frame, at: float) -> None:
        """Take the placement of a producer's newest frame into account."""
        if frame.placement is None:
            return
        who = frame.producer
        known = self._held.setdefault((who.server, who.model, who.pp_rank), deque(maxlen=KEPT))
        worker = (who.dp_rank, who.tp_rank)
        if known and known[-1].placement == frame.placement:
            if worker not in known[-1].workers:
                known[-1].workers.add(worker)
                known[-1].everywhere_at = at
            return
        # A worker that still reports an earlier version is late; one that started since counts anew.
        late = known and frame.placement.version <= known[-1].placement.version
        if late and frame.epoch / 1e9 <= known[-1].at:
            return
        self._rises[who.server, who.model, who.pp_rank] += bool(known) and not late
        known.append(_Held(tuple(frame.layers), frame.placement, at, at, {worker}))

    def forget(self, server: str, model: str) -> None:
        """Drop what is known of a deployment."""
        for key in [key for key in self._held if key[:2] == (server, model)]:
            del self._held[key]
            self._rises.pop(key, None)

    def rearrangements(self, server: str, model: str) -> int:
        """How often the placement's version rose, of the pipeline stage where it did most often."""
        return max((rises for key, rises in self._rises.items() if key[:2] == (server, model)), default=0)

    def of(self, server: str, model: str) -> list[Arrangement]:
        """All that are remembered, by pipeline stage, each stage's rising in time."""
        return [
            Arrangement(key[2], item.layers, item.placement, item.at, item.everywhere_at)
            for key in sorted(self._held)
            if key[:2] == (server, model)
            for item in self._held[key]
        ]
