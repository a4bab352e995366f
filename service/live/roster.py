"""Which producers there are: who may join, whose layers conflict, who has fallen silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import MAX_LAYERS
from moescope.service.counts.account import Account
from moescope.service.counts.conflict import REMEDY, Conflict, named
from moescope.service.counts.layers import Layout, Shapes
from moescope.service.counts.refusals import RefusedError
from moescope.service.counts.row_law import RowLaw
from moescope.service.live.producers import Deployment, ProducerState
from moescope.service.settings import Settings
from moescope.service.store.records import Key

_NO_LAW: Final = RowLaw()
"""What is known of a producer before its law was noted."""


@dataclass(slots=True)
class Entry:
    """A producer's account and its layers.

    ``received_at`` is when the newest frame of the life that counts at present was accepted, ``started_at``
    when that life began: seconds of Unix time on the service's clock. ``told_at`` and ``resized_at`` are of
    its word on ``sizes``, (DP, TP, PP, EP), as in :class:`ProducerState`; ``told_epoch`` is that life.
    """

    account: Account
    received_at: float
    started_at: float
    layout: Layout
    sizes: tuple[int, int, int, int]
    told_epoch: int
    told_at: float
    resized_at: float


class Roster:
    """The producers by key. Not safe for several threads.

    Args:
        settings: limits, and what counts as stale.
        clock: seconds of Unix time.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: dict[Key, Entry] = {}
        self._members: dict[Deployment, set[Key]] = {}
        self._shapes = Shapes()

    @property
    def is_full(self) -> bool:
        """Whether there are as many producers as the settings allow."""
        return len(self._entries) >= self._settings.max_producers

    def has_room_for(self, others: int) -> bool:
        """Whether one more could be here, and so many others too."""
        return len(self._entries) + others < self._settings.max_producers

    def get(self, key: Key) -> Entry | None:
        """A producer's entry, if it is here."""
        return self._entries.get(key)

    def members(self, deployment: Deployment | None = None) -> list[Key]:
        """All producers, or those of one deployment, sorted."""
        return sorted(self._entries if deployment is None else self._members.get(deployment, ()))

    def deployments(self) -> list[Deployment]:
        """All (server, model), sorted."""
        return sorted(self._members)

    def enter(self, key: Key, account: Account, received_at: float) -> None:
        """Add a producer, or change its entry."""
        old, layout = self._entries.get(key), account.totals.layout
        assert account.latest is not None, f"an account without a frame: {key}"
        life, who = account.life, account.latest.producer
        sizes = (who.dp_size, who.tp_size, who.pp_size, who.ep_size)
        told_at, resized_at = received_at, 0.0
        if old is not None:
            same = old.sizes == sizes
            told_at = old.told_at if same and old.told_epoch == life.epoch else received_at
            resized_at = old.resized_at if same else received_at
        self._members.setdefault(key[:2], set()).add(key)
        self._entries[key] = Entry(
            account, received_at, life.started_at, layout, sizes, life.epoch, told_at, resized_at
        )
        self._shapes.change(key[:2], None if old is None else old.layout, layout)

    def remove(self, key: Key) -> None:
        """Remove a producer that is here."""
        self._shapes.change(key[:2], self._entries.pop(key).layout, None)
        members = self._members[key[:2]]
        members.remove(key)
        if not members:
            del self._members[key[:2]]

    def set_back(self, now: float) -> None:
        """The service's clock was set back: what all accounts say is compared with each other."""
        for entry in self._entries.values():
            entry.account.set_back(now)

    def state(self, key: Key, law: RowLaw = _NO_LAW) -> ProducerState:
        """A producer that is here, as of now, with what a law says of it."""
        entry, now = self._settled(key), self._clock()
        latest = entry.account.latest
        assert latest is not None, f"an account without a frame: {key}"
        age = self._age(entry)
        return ProducerState(
            latest=latest,
            totals=entry.account.totals,
            restarts=entry.account.restarts,
            started_at=entry.started_at,
            received_at=entry.received_at,
            age=age,
            stale=age > self._settings.stale_after_s,
            expired=age > self._settings.expire_after_s,
            stale_after=self._settings.stale_after_s,
            told_at=entry.told_at,
            resized_at=entry.resized_at,
            conflict=entry.account.conflict(now),
            conflicts=entry.account.conflicts,
            base=entry.account.base,
            law=law,
        )

    def is_expired(self, key: Key) -> bool:
        """:attr:`ProducerState.expired` of a producer that is here."""
        return self._age(self._settled(key)) > self._settings.expire_after_s

    def conflict(self, key: Key) -> Conflict | None:
        """:attr:`ProducerState.conflict` of a producer that is here."""
        return self._settled(key).account.conflict(self._clock())

    def _settled(self, key: Key) -> Entry:
        """A producer's entry, of the life that counts as of now."""
        entry = self._entries[key]
        if entry.account.settle(self._clock()):
            self.enter(key, entry.account, entry.account.life.heard_at)
            entry = self._entries[key]
        return entry

    def _age(self, entry: Entry) -> float:
        """Seconds since the newest frame, or since the clock was found to be set back to before it."""
        now = self._clock()
        set_back = max(0.0, entry.received_at - now)
        entry.received_at -= set_back
        entry.started_at -= set_back
        entry.told_at = min(entry.told_at, now)
        entry.resized_at = min(entry.resized_at, now)
        return now - entry.received_at

    def outgrown_by(self, key: Key, layout: Layout) -> list[Key]:
        """Silent producers of this producer's deployment whose layers have another shape than ``layout``.

        Raises:
            RefusedError: one of them is not silent, or the deployment would have over `MAX_LAYERS` layers,
                which is what its answers are made of.
        """
        layers = self._shapes.layers_with(key[:2], layout)
        if layers > MAX_LAYERS:
            raise RefusedError(
                "shape", f"layers: the workers of this deployment have {layers} layers, above {MAX_LAYERS}"
            )
        if not self._shapes.conflict(key[:2], layout):
            return []  # almost always so: no need to look at all entries for each frame
        return list(self._conflicting(key, layout))

    def of_another_shape(self, key: Key, layout: Layout) -> list[Key]:
        """Other producers of this one's deployment whose layers conflict with ``layout``, silent or not."""
        if not self._shapes.conflict(key[:2], layout):
            return []
        return [
            other
            for other in self.members(key[:2])
            if other != key and layout.conflict(self._entries[other].layout) is not None
        ]

    def _conflicting(self, mine: Key, layout: Layout) -> Iterator[Key]:
        for key, entry in self._entries.items():
            conflict = layout.conflict(entry.layout)
            if conflict is None or key[:2] != mine[:2] or key == mine:
                continue
            if self._age(entry) <= self._settings.stale_after_s:
                raise RefusedError(
                    "shape",
                    f"layers: {conflict[0]}, but DP rank {key[2]} of this deployment "
                    f"({named([entry.account.life])}) has {conflict[1]}; {REMEDY}",
                )
            yield key

    def to_make_room(self) -> list[Key]:
        """Producers to remove before another one can join: of deployments that expired as a whole.

        Raises:
            RefusedError: all producers' deployments live.
        """
        if not self.is_full:
            return []
        alive = {key[:2] for key in self._entries if not self.state(key).expired}
        expired = [key for key in self._entries if key[:2] not in alive]
        if len(self._entries) - len(expired) >= self._settings.max_producers:
            raise RefusedError(
                "too_many_producers",
                f"producer: there are max_producers ({self._settings.max_producers}) already; raise it",
            )
        return expired
