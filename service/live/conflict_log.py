"""Which producers are several processes at present: said in the log when that begins and when it is over."""

from __future__ import annotations

import logging

from moescope.service.counts.account import Account
from moescope.service.counts.conflict import Conflict, named
from moescope.service.store.records import Key

_log = logging.getLogger(__name__)


class Conflicts:
    """The conflicts of lives that go on, by producer. Not safe for several threads."""

    def __init__(self) -> None:
        self._known: dict[Key, Conflict] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def note(self, key: Key, account: Account, now: float) -> bool:
        """Look at a producer's account; whether lives have begun to be in conflict, or more or fewer are."""
        found, before = account.conflict(now), self._known.get(key)
        if found is None:
            if before is not None:
                del self._known[key]
                _log.warning("the conflict of %s is over: %s goes on alone", key, named([account.life]))
            return False
        if before is not None and len(before.lives) == len(found.lives):
            return False
        self._known[key] = found
        _log.error("%s; their totals are kept, and what rests on them together is not answered", found.reason)
        return True

    def forget(self, key: Key) -> None:
        """Drop a producer."""
        self._known.pop(key, None)
