"""What services that share a store tell each other: accounts of workers, and documents."""

from __future__ import annotations

from moescope.service.drift.baseline import KIND, BaselineBook
from moescope.service.live.state import LiveState
from moescope.service.store.interface import Store
from moescope.service.store.records import PLACEMENT, StoreError


class Ear:
    """Takes in what other services keep, and keeps what they can't know yet.

    Args:
        state: what this service counts.
        book: its baselines.
    """

    def __init__(self, state: LiveState, book: BaselineBook) -> None:
        self._state = state
        self._book = book

    def hear(self, store: Store) -> None:
        """One round of news. To be called by whoever writes to the store.

        Raises:
            StoreError: the store can't be read or written; the next round makes up for it.
        """
        self._state.adopt(store.news())
        self._book.heed(store.changed_documents(KIND))
        placed = store.changed_documents(PLACEMENT)
        self._state.hear_placements((item.name, item.content) for item in placed)
        records = self._state.take_unkept()
        if not records:
            return
        try:
            store.save(records)
        except StoreError:
            self._state.not_kept(records)
            raise
