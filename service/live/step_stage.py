"""One pipeline stage of a deployment: whose steps are joined, over restarts of ranks.

All DP and TP ranks of a stage step together once the last of them is up, and each numbers its steps from 0
since its own start: the numbers match if none had stepped before the last one started. A rank that starts
again alone numbers from 0 while the others go on: then nothing can be joined until they start again too, and
the status says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from moescope.capture.wire import Frame, MoeLayer, unpack_microbatches, unpack_step_loads
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import Stragglers, no_stragglers
from moescope.service.live.step_join import MAX_CELLS, MAX_MEMBERS, StepJoin


@dataclass(frozen=True, slots=True)
class Shape:
    """What the workers of a stage must have alike for their steps to be joined."""

    layers: tuple[MoeLayer, ...]
    ep_size: int
    dp_size: int
    tp_size: int

    @property
    def members(self) -> int:
        """Workers of the stage."""
        return self.dp_size * self.tp_size


@dataclass(frozen=True, slots=True)
class Status:
    """How the join of a stage goes: steps that wait, and why nothing is joined at present, or None."""

    pending: int
    reason: str | None


@dataclass(slots=True)
class _Member:
    """A worker: when it began to count, and by when it had done a step.

    Attributes:
        epoch: the number of its life.
        began: when it began to count, seconds of Unix time on the service's clock.
        told: how many frames the stage had taken when one told of that start.
        stepped: the earliest instant on the service's clock at which it had done a step; None: none told yet.
        stepped_ns: the same instant, nanoseconds on the worker's clock.
        stepped_told: how many frames the stage had taken when one told of a step; 0: none did yet.
        lag: seconds from the worker's clock to the service's, with the least delay of its frames.
    """

    epoch: int
    began: float
    told: int
    stepped: float | None = None
    stepped_ns: int = 0
    stepped_told: int = 0
    lag: float = 0.0


CLOCKS_DIFFER_S: Final = 60.0
"""Clocks of two workers that seem to differ by more than this do; by less, it may be the delay of frames."""
_NOBODY: Final = _Member(epoch=0, began=-math.inf, told=0)


class Stage:
    """Takes the frames of one stage in whatever order; for one thread at a time."""

    def __init__(self) -> None:
        self._shape: Shape | None = None
        self._layout = Layout(())
        self._members: dict[int, _Member] = {}
        self._contributed: set[int] = set()
        self._newest = _NOBODY
        self._taken = 0
        self._join: StepJoin | None = None

    def take(self, frame: Frame, life: EpochState | None = None) -> tuple[Layout, Stragglers] | None:
        """The cost of the steps that a checked frame completes, and how many are given up; None: nothing.

        The arrays are of the layout that comes with them.

        Args:
            frame: the frame; of an account with several lives, one of the life that counts at present.
            life: that life; None: the worker's clock is taken for the service's.
        """
        loads, who = frame.step_loads, frame.producer
        if loads is None or not frame.layers:
            return None
        self._taken += 1
        shape = Shape(
            layers=tuple(frame.layers), ep_size=who.ep_size, dp_size=who.dp_size, tp_size=who.tp_size
        )
        given_up = 0
        began = frame.epoch / 1e9 if life is None else life.started_at
        if shape != self._shape:
            if began < self._newest.began:
                return None
            given_up = self._begin(shape)
        member = who.dp_rank * who.tp_size + who.tp_rank
        known = self._members.get(member)
        if known is not None and life is None and frame.epoch < known.epoch:
            return self._given_up(given_up)
        if known is None or frame.epoch != known.epoch:
            given_up += self._start(member, frame.epoch, began)
        else:
            known.began = min(known.began, began)
        self._members[member].lag = 0.0 if life is None else life.lag
        if loads.end:
            self._stepped(member, frame.captured_at_ns)
        if self._join is None or self._is_behind(member):
            return self._given_up(given_up)
        self._contributed.add(member)
        steps, values = unpack_step_loads(loads, len(shape.layers), shape.ep_size)
        # What a worker counted by the placement in force in each step fits whatever version others name.
        version = 0 if frame.ep_slots else loads.placement_version
        parts = unpack_microbatches(loads)
        found = self._join.add(member, loads.first, loads.end, steps, values, version, parts)
        if found is None:
            return self._given_up(given_up)
        return self._layout, replace(found, incomplete=found.incomplete + given_up)

    @property
    def nbytes(self) -> int:
        """Bytes of the steps that wait."""
        return 0 if self._join is None else self._join.nbytes

    def give_up(self) -> tuple[Layout, Stragglers] | None:
        """Let no step wait any longer, to free memory."""
        return self._given_up(0 if self._join is None else self._join.close())

    def status(self) -> Status:
        """How the join goes now."""
        if self._shape is None:
            return Status(pending=0, reason=None)
        if self._join is None:
            return Status(
                pending=0,
                reason=f"{self._shape.members} workers with {len(self._shape.layers)} layers and "
                f"{self._shape.ep_size} EP ranks are too many to join their steps",
            )
        behind = [member for member in self._members if self._is_behind(member)]
        missing = sorted(set(range(self._shape.members)) - self._contributed - set(behind))
        reason = None
        if behind:
            reason = (
                f"{self._names(behind)} had done steps when another rank started again: the numbers of their "
                "steps don't match until they start again too"
            )
        elif missing:
            reason = f"no loads of steps have come from {self._names(missing)} since the start"
        return Status(pending=self._join.pending, reason=reason)

    def _names(self, members: list[int]) -> str:
        assert self._shape is not None, "members without a shape"
        tp_size, shown = self._shape.tp_size, sorted(members)[:8]
        names = [
            f"DP rank {member // tp_size}" + (f" TP rank {member % tp_size}" if tp_size > 1 else "")
            for member in shown
        ]
        more = f" and {len(members) - len(shown)} more" if len(members) > len(shown) else ""
        return ", ".join(names) + more

    def _begin(self, shape: Shape) -> int:
        """Begin anew with another shape and no member; how many steps are given up."""
        given_up = self._restart_join()
        self._shape, self._layout, self._members = shape, Layout(shape.layers), {}
        self._newest = _NOBODY
        self._join = self._new_join()
        return given_up

    def _start(self, member: int, epoch: int, began: float) -> int:
        """A member began to count; how many steps are given up because their numbers mean others now."""
        started = self._members[member] = _Member(epoch=epoch, began=began, told=self._taken)
        if began > self._newest.began:
            self._newest = started
        if member in self._contributed or any(self._is_behind(other) for other in self._contributed):
            return self._restart_join()
        return 0

    def _restart_join(self) -> int:
        given_up = 0 if self._join is None else self._join.close()
        self._contributed.clear()
        self._join = self._new_join()
        return given_up

    def _new_join(self) -> StepJoin | None:
        shape = self._shape
        if shape is None or shape.members > MAX_MEMBERS or len(shape.layers) * shape.ep_size > MAX_CELLS:
            return None
        return StepJoin(shape.members, len(shape.layers), shape.ep_size)

    def _stepped(self, member: int, at_ns: int) -> None:
        known = self._members[member]
        at = at_ns / 1e9 + known.lag
        known.stepped_ns = min(at_ns, known.stepped_ns) if known.stepped_told else at_ns
        known.stepped_told = known.stepped_told or self._taken
        known.stepped = at if known.stepped is None else min(known.stepped, at)

    def _is_behind(self, member: int) -> bool:
        """Whether it had stepped before the last member started: then its numbers are not the others'.

        Several things must say so: the instants on the service's clock, which are off by the delays of
        frames, the order of the frames, which is not that of the events if this service started in between,
        and the workers' clocks, unless they differ by more than delays explain.
        """
        known, newest = self._members[member], self._newest
        if known.stepped is None or known.stepped >= newest.began or known.stepped_told >= newest.told:
            return False
        return abs(known.lag - newest.lag) > CLOCKS_DIFFER_S or known.stepped_ns < newest.epoch

    def _given_up(self, steps: int) -> tuple[Layout, Stragglers] | None:
        nothing = no_stragglers(len(self._layout.layers))
        return (self._layout, replace(nothing, incomplete=steps)) if steps else None
