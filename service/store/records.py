"""What is written to a store and read back: immutable values, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.service.ledger import AccountState
from moescope.service.totals import Totals

Key = tuple[str, str, int, int, int]
"""``Producer.key``: (server, model, dp_rank, pp_rank, tp_rank)."""


class StoreError(Exception):
    """The store can't be read or written; the message says which one, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Posting:
    """An account after a frame; it replaces the account's earlier one and adds to its history.

    Attributes:
        key: whose account.
        birth: when its counting began, seconds of Unix time on the service's clock.
        at: when the totals were true, likewise; never before that of an earlier posting.
        account: the account with all epochs that are remembered.
        began_again: the model has another shape than before: its history goes.
    """

    key: Key
    birth: float
    at: float
    account: AccountState
    began_again: bool = False


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A producer that is no longer kept; its account and its history go."""

    key: Key


@dataclass(frozen=True, slots=True)
class StoredTotals:
    """Totals that were true at ``at``, seconds of Unix time."""

    at: float
    totals: Totals


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store holds now: snapshots of totals, and bytes on disk."""

    snapshots: int
    nbytes: int


Record = Posting | Forgotten
