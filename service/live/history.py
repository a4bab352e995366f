"""Recent cumulative snapshots in memory, bounded by bytes over all producers.

The newest snapshot of a producer shares its arrays with its account; those before it are in narrow arrays
(see :func:`narrowed`), which take half as much.

Over the budget, older snapshots get thinner (every other one in the older half goes) before any past is
lost; only when nothing can be thinned any more do the oldest ones go. Since snapshots are cumulative,
thinning costs resolution, never counts. Times are seconds of Unix time on the service's clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from moescope.service.counts.narrow import narrowed
from moescope.service.counts.totals import Totals
from moescope.service.live.spans import Snapshot, Span, between, shared_zeros
from moescope.service.store.records import Key

SET_BACK_S: Final = 60.0
"""A clock that is set back by less than this changes nothing."""

SOON_S: Final = 60.0
"""A producer that is known from so soon after its birth on is known from its birth on."""

ENOUGH: Final = 8
"""Snapshots of each producer, on average, with which thinning reaches back far: each time that the older half
is thinned, the newer half is half of the past."""


class Track:
    """One producer's snapshots, rising in time; never empty.

    ``birth`` is when its counting began, so when its totals were zero.
    """

    def __init__(self, birth: float, first: Snapshot) -> None:
        self.birth = birth
        self.complete_since = first.at
        """No snapshot that was added at or after this instant is gone."""
        self._snapshots = [first]
        self.told_until = first.at
        """Before this instant the store may know better: some of it was heard late."""
        self._is_cut = False
        self.nbytes = first.totals.nbytes
        self.enough_bytes = 0
        """Bytes of ``ENOUGH`` snapshots, as large as the newest and those before it."""
        self._measure()

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def newest_at(self) -> float:
        """When the newest snapshot was true."""
        return self._snapshots[-1].at

    @property
    def reaches(self) -> float | None:
        """The instant back to which windows can begin; None: all of the producer's life is remembered."""
        first = self._snapshots[0].at
        return first if self._is_cut or first - self.birth > SOON_S else None

    def add(self, snapshot: Snapshot) -> None:
        """Append; a clock that went back a little does not break the order (see :meth:`set_back`).

        Of one instant the last word counts, as in a store, which has milliseconds.
        """
        if not self.says_later(snapshot):
            self.amend(snapshot.totals)
            return
        before = self._snapshots[-1]
        self._snapshots[-1] = Snapshot(before.at, self._narrow(before.totals))
        self._snapshots.append(snapshot)
        self.nbytes += self._snapshots[-2].totals.nbytes - before.totals.nbytes + snapshot.totals.nbytes
        self._measure()

    def supersede(self, snapshot: Snapshot) -> None:
        """:meth:`add` to the only snapshot, and :meth:`drop_oldest`; what goes is not made narrow first."""
        self._is_cut = True
        self.complete_since = max(self.complete_since, snapshot.at)
        self._replace([snapshot])

    def says_later(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is of a later instant than the newest one, as far as a store can tell."""
        return round(1000 * snapshot.at) > round(1000 * self.newest_at)

    @property
    def size(self) -> tuple[int, int, int]:
        """Its bytes, :attr:`enough_bytes`, and how many snapshots there are beside the newest."""
        return self.nbytes, self.enough_bytes, len(self._snapshots) - 1

    def _measure(self) -> None:
        """Tell :attr:`enough_bytes`. It is kept, because all tracks are asked whenever memory is full."""
        newest = self._snapshots[-1].totals.nbytes
        older = newest if len(self._snapshots) == 1 else self._snapshots[-2].totals.nbytes
        self.enough_bytes = newest + (ENOUGH - 1) * older

    def _narrow(self, totals: Totals) -> Totals:
        """What is kept of totals once there are newer ones; those of an idle producer share their arrays."""
        kept = narrowed(totals)
        older = self._snapshots[-2].totals if len(self._snapshots) > 1 else None
        return kept if older is None or older.tokens != kept.tokens else kept.sharing(older)

    def set_back(self, now: float) -> None:
        """Note what the clock shows now, in case that it was far ahead before and has been set back.

        Snapshots that are later than now then go, but for the newest, which becomes one of now. Otherwise the
        past would stand still until the clock reaches them.
        """
        if self.newest_at > now + SET_BACK_S:
            kept = [item for item in self._snapshots if item.at <= now]
            self._replace([*kept, Snapshot(now, self._snapshots[-1].totals)])
            self.complete_since = min(self.complete_since, now)

    def heard_late(self, now: float) -> None:
        """Note that up to now something was counted elsewhere of which this memory did not know in time."""
        self.told_until = max(self.told_until, now)
        self.complete_since = max(self.complete_since, now)

    def amend(self, totals: Totals) -> None:
        """Replace the newest snapshot's totals; its time stays."""
        newest = self._snapshots[-1]
        self._snapshots[-1] = Snapshot(newest.at, totals)
        self.nbytes += totals.nbytes - newest.totals.nbytes
        self._measure()

    def span(self, start: float | None, end: float | None) -> Span:
        """The difference of the snapshots nearest at or before the boundaries; None is unbounded."""
        return between(self.birth, self.boundary(start, self.birth), self.boundary(end, None), start, end)

    def boundary(self, instant: float | None, absent: float | None) -> Snapshot:
        """The snapshot nearest at or before an instant.

        Args:
            instant: seconds of Unix time; None: ``absent`` is taken in its place.
            absent: seconds of Unix time; None: now.
        """
        instant = absent if instant is None else instant
        return self._snapshots[-1] if instant is None else self._at_or_before(instant)

    def at_or_after(self, instant: float) -> Snapshot:
        """The first snapshot at or after an instant; the newest one if there is none."""
        found = bisect_left(self._snapshots, instant, key=lambda snapshot: snapshot.at)
        return self._snapshots[min(found, len(self._snapshots) - 1)]

    def thin(self) -> bool:
        """Drop every other snapshot of the older half, keeping the oldest; False if there are too few."""
        half = len(self._snapshots) // 2
        if half < 2:
            return False
        self.complete_since = max(self.complete_since, self._snapshots[half].at)
        self._replace(self._snapshots[:half:2] + self._snapshots[half:])
        return True

    def drop_oldest(self) -> bool:
        """Forget the oldest snapshot; False if it is the only one."""
        if len(self._snapshots) < 2:
            return False
        self._replace(self._snapshots[1:])
        self._is_cut = True
        self.complete_since = max(self.complete_since, self._snapshots[0].at)
        return True

    def _at_or_before(self, instant: float) -> Snapshot:
        """Zeros up to the birth; the oldest snapshot for an instant before all that is remembered."""
        if instant <= self.birth:
            return Snapshot(self.birth, shared_zeros(self._snapshots[-1].totals.layout))
        found = bisect_right(self._snapshots, instant, key=lambda snapshot: snapshot.at)
        return self._snapshots[max(found - 1, 0)]

    def _replace(self, snapshots: list[Snapshot]) -> None:
        self._snapshots = snapshots
        self.nbytes = sum(snapshot.totals.nbytes for snapshot in snapshots)
        self._measure()


class History:
    """Tracks by producer key, under one budget of bytes.

    Args:
        budget_bytes: for all snapshots.
        most_bytes: up to which the budget grows while producers have fewer than ``ENOUGH`` snapshots each;
            None: it does not.
    """

    def __init__(self, budget_bytes: int, most_bytes: int | None = None) -> None:
        self._budget = budget_bytes
        self._most = budget_bytes if most_bytes is None else max(budget_bytes, most_bytes)
        self._tracks: dict[Key, Track] = {}
        # Kept up to date: every frame asks, and there may be many tracks to sum over.
        self._nbytes = 0
        self._enough_bytes = 0
        self._older = 0  # snapshots that could go

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots."""
        return self._nbytes

    def __len__(self) -> int:
        return sum(len(track) for track in self._tracks.values())

    @property
    def enough_bytes(self) -> int:
        """The budget with which each producer has ``ENOUGH`` snapshots."""
        return self._enough_bytes

    def set_back(self, key: Key, now: float) -> None:
        """See :meth:`Track.set_back`; nothing happens if the producer is unknown."""
        track = self._tracks.get(key)
        if track is not None:
            before = track.size
            track.set_back(now)
            self._count(track.size, before)

    def record(self, key: Key, birth: float, snapshot: Snapshot) -> None:
        """Remember a producer's totals; :meth:`track` then says at which instant.

        Args:
            key: ``Producer.key``.
            birth: when the epoch that this snapshot's frame belongs to began; the earliest one counts.
            snapshot: totals over all epochs.
        """
        track = self._tracks.get(key)
        before = (0, 0, 0) if track is None else track.size
        if track is None:
            track = self._tracks[key] = Track(birth, snapshot)
        else:
            track.birth = min(track.birth, birth)
            if self._has_no_room_beside(track, snapshot):
                track.supersede(snapshot)
            else:
                track.add(snapshot)
        self._count(track.size, before)
        if self._older and self._nbytes > self._allowed(self._enough_bytes):
            self._make_room()

    def amend(self, key: Key, totals: Totals) -> None:
        """Replace the totals of a producer's newest snapshot; see :meth:`Track.amend`.

        Raises:
            KeyError: nothing was recorded for this producer.
        """
        track = self._tracks[key]
        before = track.size
        track.amend(totals)
        self._count(track.size, before)

    def forget(self, key: Key) -> None:
        """Drop a producer's past."""
        track = self._tracks.pop(key, None)
        if track is not None:
            self._count((0, 0, 0), track.size)

    def find(self, key: Key) -> Track | None:
        """A producer's past, if anything was recorded."""
        return self._tracks.get(key)

    def track(self, key: Key) -> Track:
        """A producer's past.

        Raises:
            KeyError: nothing was recorded for this producer.
        """
        return self._tracks[key]

    def span(self, key: Key, start: float | None, end: float | None) -> Span:
        """See :meth:`Track.span`.

        Raises:
            KeyError: nothing was recorded for this producer.
        """
        return self._tracks[key].span(start, end)

    def _allowed(self, enough_bytes: int) -> int:
        """The bytes that all snapshots may take, where each producer would have enough with so many."""
        return min(max(self._budget, enough_bytes), self._most)

    def _has_no_room_beside(self, track: Track, snapshot: Snapshot) -> bool:
        """Whether a track's only snapshot would go at once if there were a later one.

        With more producers than the budget has room for that is so at each frame: it saves making the
        snapshot narrow, and a look at all tracks.
        """
        if self._older or not track.says_later(snapshot):
            return False
        newest, older = snapshot.totals.nbytes, track.nbytes
        most_enough = self._enough_bytes - track.enough_bytes + newest + (ENOUGH - 1) * older
        return self._nbytes - older + newest > self._allowed(most_enough)

    def _count(self, now: tuple[int, int, int], before: tuple[int, int, int]) -> None:
        """Note the size of a track (:attr:`Track.size`), which was another before."""
        self._nbytes += now[0] - before[0]
        self._enough_bytes += now[1] - before[1]
        self._older += now[2] - before[2]

    def _make_room(self) -> None:
        tracks, allowed = list(self._tracks.values()), self._allowed(self._enough_bytes)
        while self._nbytes > allowed:
            thinned = sum(track.thin() for track in tracks)
            if not thinned and not sum(track.drop_oldest() for track in tracks):
                break  # each track has one snapshot left, which is its totals
            self._nbytes = sum(track.nbytes for track in tracks)
        self._enough_bytes = sum(track.enough_bytes for track in tracks)
        self._older = len(self) - len(tracks)
