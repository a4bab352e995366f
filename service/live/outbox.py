"""What has changed for good and is not with the store yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from moescope.service.store.records import Forgotten, Key, Posting, Record


class Outbox:
    """Records that wait for the store, in order. Not safe for several threads."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._to_begin_again: set[Key] = set()

    def post(self, posting: Posting) -> None:
        """Add what is known of a producer."""
        if posting.key in self._to_begin_again:
            self._to_begin_again.discard(posting.key)
            posting = replace(posting, began_again=True)
        self._records.append(posting)

    def post_newest(self, posting: Posting) -> None:
        """The same, in place of earlier postings that say less: while nobody takes them, one waits."""
        self._records = [item for item in self._records if not _is_replaced(item, posting.key)]
        self.post(posting)

    def forget(self, key: Key) -> None:
        """Add that a producer is gone."""
        self._to_begin_again.discard(key)
        self._records.append(Forgotten(key))

    def take(self) -> list[Record]:
        """What has come since the last call."""
        records, self._records = self._records, []
        return records

    def not_kept(self, records: Iterable[Record], is_known: Callable[[Key], bool]) -> None:
        """What :meth:`take` gave could not be kept: say again what no later posting says."""
        for record in records:
            if isinstance(record, Posting) and record.began_again:
                self._to_begin_again.add(record.key)
            elif isinstance(record, Forgotten) and not is_known(record.key):
                self._records.append(record)
            elif isinstance(record, Forgotten):  # it is back, and its former history is not
                self._to_begin_again.add(record.key)


def _is_replaced(record: Record, key: Key) -> bool:
    """Whether a later posting of this producer says all that the record does."""
    return isinstance(record, Posting) and record.key == key and not record.began_again
