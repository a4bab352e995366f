"""Waiting until what a request changed is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

from moescope.service.live.state import LiveState
from moescope.service.store.records import Record, StoreError
from moescope.service.store.writer import StoreWriter

Kept = tuple[Sequence[Record], Future[None] | None]
"""Records, and what comes when they are kept for good; None: nothing is waited for."""


class Keeper:
    """Hands records to the store's thread and waits for it without holding up the event loop.

    Args:
        state: where frames leave their records.
        writer: the store's thread; None: nothing is kept, and nothing is waited for.
    """

    def __init__(self, state: LiveState, writer: StoreWriter | None) -> None:
        self._state = state
        self._writer = writer

    def hand_over(self, records: Sequence[Record]) -> Kept:
        """Hand over the records of a frame; :meth:`kept` then waits until they are kept.

        To keep records in order, call it in the thread that took the frame, before it takes another one.
        """
        return records, None if self._writer is None else self._writer.submit(records)

    async def kept(self, handed: Kept) -> None:
        """Return when the records that :meth:`hand_over` took are kept.

        Raises:
            StoreError: they could not be kept.
        """
        records, future = handed
        try:
            if future is not None:
                await asyncio.wrap_future(future)
        except StoreError:
            self._state.not_kept(records)
            raise

    async def keep(self, records: Sequence[Record]) -> None:
        """Return when these records are kept.

        Raises:
            StoreError: they could not be kept.
            RefusedError: a part of a trace contradicts those before.
        """
        if self._writer is not None:
            await asyncio.wrap_future(self._writer.submit(records))
