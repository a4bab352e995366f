"""What every question about many requests asks of the store."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Final

from moescope.service.store.interface import Store
from moescope.service.store.records import TracedRequest, TraceQuery
from moescope.service.store.slots import MAX_COMPARED, ListedRequest, RequestSlots, slots_of_workers
from moescope.service.traces.slot_table import Compared, Group, Reading, SlotTable
from moescope.service.wanted import check_wanted

_PIECE_S: Final = 0.25
"""How long a question reads before it tells how far it is."""


class Asker:
    """Asks for traced requests and their slots; for all threads.

    Args:
        store: where they are.
        max_bytes: memory for their slots; see :class:`SlotTable`.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._table = SlotTable(store, max_bytes)

    def gather(self, listed: Sequence[ListedRequest]) -> Generator[Reading, None, Compared]:
        """The slots of the newest requests of a list; it yields how far it is while it reads."""
        total: int | None = None
        while True:
            found = self._table.gather(listed[:MAX_COMPARED], _PIECE_S, total)
            if not isinstance(found, Reading):
                return found
            total = found.total
            yield found

    def requests(self, numbers: Iterable[int]) -> Mapping[int, TracedRequest]:
        """The requests of these numbers; one that left the store meanwhile is not there."""
        wanted = tuple(numbers)
        query = TraceQuery(numbers=wanted, limit=max(1, len(wanted)), taken_over=False)
        return {item.number: item for item in self._store.traced_requests(query)}

    def slots_of(self, number: int) -> RequestSlots | None:
        """The slots of a request that need not be among those compared; None: it is gone."""
        return slots_of_workers(number, self._store.traces(number, None), check_wanted)


def layers_of(groups: Iterable[Group | RequestSlots]) -> list[int]:
    """The layers that some of the groups have, rising."""
    return sorted({layer.layer for group in groups for layer in group.layers})
