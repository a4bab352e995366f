"""One pipeline stage of a deployment: whose steps are joined, over restarts of ranks.

All DP and TP ranks of a stage step together once the last of them is up, and each numbers its steps from 0
since its own start: the numbers match if none had stepped before the last one started. A rank that starts
again alone numbers from 0 while the others go on: then nothing can be joined until they start again too, and
the status says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moescope.capture.wire import Frame, MoeLayer, unpack_step_loads
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
        epoch: the start of its counting, nanoseconds of Unix time on its own clock.
        started_at: how many frames the stage had taken when one told of that start.
        stepped_ns: the earliest instant on its own clock at which it had done a step; None: none told yet.
        stepped_at: how many frames the stage had taken when one told of a step; 0: none did yet.
    """

    epoch: int
    started_at: int
    stepped_ns: int | None = None
    stepped_at: int = 0


class Stage:
    """Takes the frames of one stage in whatever order; for one thread at a time."""

    def __init__(self) -> None:
        self._shape: Shape | None = None
        self._layout = Layout(())
        self._members: dict[int, _Member] = {}
        self._contributed: set[int] = set()
        self._newest = _Member(epoch=0, started_at=0)
        self._taken = 0
        self._join: StepJoin | None = None

    def take(self, frame: Frame) -> tuple[Layout, Stragglers] | None:
        """The cost of the steps that a checked frame completes, and how many are given up; None: nothing.

        The arrays are of the layout that comes with them.
        """
        loads, who = frame.step_loads, frame.producer
        if loads is None or not frame.layers:
            return None
        self._taken += 1
        shape = Shape(
            layers=tuple(frame.layers), ep_size=who.ep_size, dp_size=who.dp_size, tp_size=who.tp_size
        )
        given_up = 0
        if shape != self._shape:
            if frame.epoch < self._newest.epoch:
                return None
            given_up = self._begin(shape)
        member = who.dp_rank * who.tp_size + who.tp_rank
        known = self._members.get(member)
        if known is not None and frame.epoch < known.epoch:
            return self._given_up(given_up)
        if known is None or frame.epoch > known.epoch:
            given_up += self._start(member, frame.epoch)
        if loads.end:
            self._stepped(member, frame.captured_at_ns)
        if self._join is None or self._is_behind(member):
            return self._given_up(given_up)
        self._contributed.add(member)
        steps, values = unpack_step_loads(loads, len(shape.layers), shape.ep_size)
        found = self._join.add(member, loads.first, loads.end, steps, values, loads.placement_version)
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
        self._newest = _Member(epoch=0, started_at=0)
        self._join = self._new_join()
        return given_up

    def _start(self, member: int, epoch: int) -> int:
        """A member began to count; how many steps are given up because their numbers mean others now."""
        started = self._members[member] = _Member(epoch=epoch, started_at=self._taken)
        if epoch > self._newest.epoch:
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
        known.stepped_at = known.stepped_at or self._taken
        known.stepped_ns = at_ns if known.stepped_ns is None else min(known.stepped_ns, at_ns)

    def _is_behind(self, member: int) -> bool:
        """Whether it had stepped before the last member started: then its numbers are not the others'.

        Two things must say so: the workers' clocks, which may differ, and the order of the frames, which is
        not that of the events if this service started in between.
        """
        known, newest = self._members[member], self._newest
        if known.stepped_ns is None:
            return False
        return known.stepped_ns < newest.epoch and known.stepped_at < newest.started_at

    def _given_up(self, steps: int) -> tuple[Layout, Stragglers] | None:
        nothing = no_stragglers(len(self._layout.layers))
        return (self._layout, replace(nothing, incomplete=steps)) if steps else None
