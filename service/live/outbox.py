"""Records of what has changed for good and is not with the store yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from moescope.service.store.records import Forgotten, Key, Posting, Record


class Outbox:
    """Records that wait for the store, in order. Not safe for several threads.

    While nobody takes them, a producer that is forgotten, or only posted by :meth:`post_newest`, has few.
    """

    def __init__(self) -> None:
        self._records: list[Posting | Forgotten] = []
        self._posted: set[Key] = set()  # of which something may wait: to look through all takes long
        self._to_begin_again: set[Key] = set()

    def post(self, posting: Posting) -> None:
        """Add what is known of a producer."""
        if posting.key in self._to_begin_again:
            self._to_begin_again.discard(posting.key)
            posting = replace(posting, began_again=True)
        self._records.append(posting)
        self._posted.add(posting.key)

    def post_newest(self, posting: Posting) -> None:
        """Add what is known of a producer, in place of its postings that wait and say less."""
        if posting.key in self._posted:
            self._records = [
                item
                for item in self._records
                if item.key != posting.key or isinstance(item, Forgotten) or item.began_again
            ]
        self.post(posting)

    def forget(self, gone: Forgotten) -> None:
        """Add that a producer is gone, in place of all that waits of it."""
        key = gone.key
        self._to_begin_again.discard(key)
        self._records = [item for item in self._records if item.key != key]
        self._records.append(gone)

    def take(self) -> list[Record]:
        """What has come since the last call."""
        records: list[Record] = [*self._records]
        self._records.clear()
        self._posted.clear()
        return records

    def not_kept(self, records: Iterable[Record], is_known: Callable[[Key], bool]) -> None:
        """What :meth:`take` gave could not be kept: say again what no later posting says.

        Args:
            records: as they were taken.
            is_known: whether there is such a producer now.
        """
        for record in records:
            match record:
                case Forgotten(key):
                    waiting = [item for item in self._records if item.key == key]
                    self._records = [item for item in self._records if item.key != key]
                    self._records += [record, *waiting]
                    if is_known(key):  # it is back, and its former history is not
                        self._to_begin_again.add(key)
                case Posting(key=key, began_again=True) if is_known(key):
                    self._to_begin_again.add(key)
