"""Waiting until what a request changed is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from moescope.service.live.state import LiveState
from moescope.service.store.records import Record, StoreError
from moescope.service.store.writer import StoreWriter


class Keeper:
    """Hands records to the store's thread and waits for it without holding up the event loop.

    Args:
        state: where frames leave their records.
        writer: the store's thread; None: nothing is kept, and nothing is waited for.
    """

    def __init__(self, state: LiveState, writer: StoreWriter | None) -> None:
        self._state = state
        self._writer = writer

    async def keep_state(self) -> None:
        """Return when the records of all frames so far are kept.

        To keep records in order, await nothing between taking the frame and this call.

        Raises:
            StoreError: they could not be kept.
        """
        records = self._state.take_records()
        try:
            await self.keep(records)
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
