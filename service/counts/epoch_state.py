"""What an account knows of one life of its producer, as an immutable value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from moescope.capture.wire import Producer
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals


@dataclass(frozen=True, slots=True)
class EpochState:
    """One life of a producer, and the totals that its frame with the highest ``seq`` told.

    All instants are seconds of Unix time on the service's clock: the clocks of hosts differ. An earlier
    moescope kept none, see
    :meth:`moescope.service.counts.account_state.AccountState.dated`.

    Attributes:
        epoch: its number; the start of the worker's counting, nanoseconds on the worker's own clock.
        producer: who counted; None: an earlier moescope kept this.
        began_at: what lives are ordered by: when its first frame came, less the time that the worker had
            been up if it tells that (`Frame.uptime_ns`).
        started_at: when its counting began, as well as the service can tell.
        came_at: when its first frame was accepted; ``heard_at``: its newest one.
        made_at: when its newest totals were true, as well as the service can tell.
        captured_at_ns: when its newest totals were true, on the worker's own clock.
        lag: the least seconds from capture on the worker's clock to acceptance on the service's.
        overlaps: see :mod:`moescope.service.counts.lives`.
        spoken_at: when newer lives had been heard last, as it overlapped them last; 0: it never did.
        ended: its newest frame says that the worker shuts down.
        going_at: it was going on then, at least: when the totals were true of its newest frame that was no
            ending; see also :meth:`moescope.service.counts.lives.Lives.settle`.
        added: what it has in the account's totals; None: what its newest frame tells is all that is known.
            See :mod:`moescope.service.counts.parts`.
        stragglers: what joined steps cost in this life, in arrays of the layout of ``counted``; None: no step
            was joined.
    """

    epoch: int
    seq: int
    counted: Totals
    producer: Producer | None = None
    began_at: float = 0.0
    started_at: float = 0.0
    came_at: float = 0.0
    heard_at: float = 0.0
    made_at: float = 0.0
    captured_at_ns: int = 0
    lag: float = 0.0
    overlaps: int = 0
    spoken_at: float = 0.0
    ended: bool = False
    added: Totals | None = None
    stragglers: Stragglers | None = None
    going_at: float = 0.0

    @property
    def order(self) -> tuple[float, int]:
        """Lives rise by this."""
        return self.began_at, self.epoch

    @property
    def joined(self) -> int:
        """Steps of this life that were joined, or given up."""
        return 0 if self.stragglers is None else self.stragglers.joined + self.stragglers.incomplete

    @property
    def instants(self) -> tuple[float, ...]:
        """All that the clocks of services said of it."""
        return (
            *(self.began_at, self.started_at, self.came_at),
            *(self.heard_at, self.made_at, self.spoken_at, self.going_at),
        )

    def moved(self, to: Callable[[float], float]) -> EpochState:
        """The same life with each of its instants moved.

        ``lag`` stays: it is the least of what clocks say, and that follows by itself.
        """
        return replace(
            self,
            began_at=to(self.began_at),
            started_at=to(self.started_at),
            came_at=to(self.came_at),
            heard_at=to(self.heard_at),
            made_at=to(self.made_at),
            spoken_at=to(self.spoken_at),
            going_at=to(self.going_at),
        )

    def as_known(self, known: EpochState, now: float) -> EpochState:
        """The same life; what is after now is as a service knows it that has this frame, or a newer one."""
        if self.seq > known.seq or max(self.instants) <= now:
            return self

        def told(at: float, known_at: float) -> float:
            return at if at <= now else known_at

        return replace(
            self,
            began_at=told(self.began_at, known.began_at),
            started_at=told(self.started_at, known.started_at),
            came_at=told(self.came_at, known.came_at),
            heard_at=told(self.heard_at, known.heard_at),
            made_at=told(self.made_at, known.made_at),
            spoken_at=told(self.spoken_at, known.spoken_at),
            going_at=told(self.going_at, known.going_at),
        )
