"""A store's file, ways to damage it, and what must be true of a store that opens it. The soak uses it too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moescope.service.counts.account import Account
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, Posting, StoreError, TraceQuery
from moescope.service.store.sqlite.store import FILE, SqliteStore
from tests.service.frames import frame, producer
from tests.service.trace_parts import experts_of, part

RANKS = 4
SECONDS = 12
TRACES = 70  # tiny ones: 64 of them share a block, the others wait
NOW = 1_700_000_000.0


def counts_of(dp_rank: int, second: int) -> list[int]:
    return [2 * (second + 1) * (dp_rank + 1)] * 64


def whole_store(folder: Path) -> bytes:
    """The bytes of the file of a store that was made in this folder and closed in order."""
    store = SqliteStore(folder, Retention())
    accounts = {rank: Account(8) for rank in range(RANKS)}
    for second in range(SECONDS):
        for rank, account in accounts.items():
            who = producer(dp_rank=rank, dp_size=RANKS)
            account.post(frame({0: counts_of(rank, second)}, seq=second + 1, who=who, after_s=second + 1))
            store.save([Posting(who.key, NOW, NOW + second, account.state())])
    for number in range(1, TRACES + 1):
        store.save([ArrivedPart(part(number, tokens=40), NOW)])
    store.close()
    return (folder / FILE).read_bytes()


def check(folder: Path) -> tuple[int, int]:
    """Open the store and check all that it still has; how many accounts and traces that are."""
    store = SqliteStore(folder, Retention())
    try:
        read = 0
        for posting in store.accounts():
            second = posting.account.latest.seq - 1
            np.testing.assert_array_equal(
                posting.account.totals.counts, counts_of(posting.account.latest.producer.dp_rank, second)
            )
            read += 1
            at = store.totals_at(posting.key, [NOW + 1e6])[0]
            assert at is None or at.totals.counts[0] % (2 * (posting.key[2] + 1)) == 0
        traces = 0
        for found in store.traced_requests(TraceQuery(limit=1000)):
            try:
                workers = [(trace.runs, trace.experts) for trace in store.traces(found.number, None)]
            except StoreError as error:
                assert "damaged" in str(error)  # noqa: PT017 the message is what matters
                continue
            for _, experts in workers:
                for ids, expected in zip(experts, experts_of(found.number, 40), strict=True):
                    np.testing.assert_array_equal(ids, expected)
            traces += bool(workers)
        # and it goes on
        account = Account(8)
        who = producer(dp_rank=0, dp_size=RANKS)
        account.post(frame({0: counts_of(0, 99)}, seq=100, who=who, after_s=100))
        store.save([Posting(who.key, NOW, NOW + 100, account.state())])
        return read, traces
    finally:
        store.close()


def flip(data: bytes, places: Sequence[int]) -> bytes:
    """The data with the bits at these places flipped."""
    changed = bytearray(data)
    for place in places:
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def damage(folder: Path, whole: bytes, seed: int) -> tuple[int, int]:
    """Damage a file and open the store; how many accounts and traces were kept."""
    break_file(folder, whole, seed)
    return check(folder)


def break_file(folder: Path, whole: bytes, seed: int) -> None:
    """Write the file damaged: by the seed, with bits flipped, cut short or with a page overwritten."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        broken = flip(whole, [rng.randrange(len(whole) * 8) for _ in range(rng.choice((1, 1, 8, 100)))])
    elif seed % 3 == 1:
        broken = whole[: rng.randrange(1, len(whole))]
    else:
        page = rng.randrange(len(whole) // 4096) * 4096
        broken = whole[:page] + rng.randbytes(4096) + whole[page + 4096 :]
    (folder / FILE).write_bytes(broken)
