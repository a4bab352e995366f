"""What is in the folder and what is in the ClickHouse, counted on both sides after all was moved."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.counts.account_state import AccountState
from moescope.service.counts.totals import Totals
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.clickhouse.trace_rows import REQUEST, TRACE
from moescope.service.store.codec import decode_totals
from moescope.service.store.moving.ages import MARGIN_S
from moescope.service.store.moving.mover import BATCH_BYTES, batches, is_too_old
from moescope.service.store.moving.parts import MovedPart, check_request, parts_of, why_unreadable
from moescope.service.store.moving.source import Member, Request
from moescope.service.store.moving.way import Way

Place = tuple[str, str]
"""A kind of row, and what of it is counted."""


@dataclass(slots=True)
class Tally:
    """Both sides' counts, and what of the folder is not among them.

    Attributes:
        ours: the folder's counts; ``theirs``: those of what was moved, read back.
        left_out: what can't be read, by kind: which, and why.
        too_old: by kind, how many are beyond their age.
    """

    ours: Counter[Place] = field(default_factory=Counter)
    theirs: Counter[Place] = field(default_factory=Counter)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    too_old: Counter[str] = field(default_factory=Counter)

    @property
    def differs(self) -> list[Place]:
        """What is not the same on both sides."""
        return [place for place in self.places() if self.ours[place] != self.theirs[place]]

    def places(self) -> list[Place]:
        """All that was counted: a kind after the other, and of each what was counted of it."""
        found = list(dict.fromkeys([*self.ours, *self.theirs]))
        kinds = list(dict.fromkeys(kind for kind, _ in found))
        return sorted(found, key=lambda place: kinds.index(place[0]))

    def leave_out(self, kind: str, what: str) -> None:
        """Note something that can't be read."""
        self.left_out.setdefault(kind, []).append(what)


class Teller:
    """Counts. Memory is bounded as in :class:`moescope.service.store.moving.mover.Mover`.

    Args:
        way: from where to where.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._source, self._target = way.source, way.target
        self._found = Tally()
        self._last: dict[str, tuple[Value, ...]] = {}

    def tally(self, theirs: Collection[tuple[str, str]]) -> Tally:
        """All counts; ``theirs`` are documents that are the target's own.

        Raises:
            StoreError: one of the two can't be read.
        """
        for kind in ("producers", "snapshots", "requests"):
            self._found.ours[kind, ""] = self._found.theirs[kind, ""] = 0
        for member in self._source.members:
            self._count_account(member)
        for member in self._source.members:
            self._count_history(member)
        self._count_traces()
        for names in self._source.gone():
            self._found.ours["removed names", ""] += len(names)
            self._found.theirs["removed names", ""] += self._target.gone(names)
        for document in self._source.documents():
            if (document.kind, document.name) not in theirs:
                there = self._target.document(document.kind, document.name)
                self._found.ours[f"documents: {document.kind}", ""] += 1
                self._found.theirs[f"documents: {document.kind}", ""] += there == document.content
        return self._found

    def _count_account(self, member: Member) -> None:
        try:
            posting = self._source.posting(member)
        except ValueError as error:
            self._found.leave_out("producers", f"{member.key}: {error}")
            return
        self._found.ours.update(_of_account(posting.account))
        moved = self._target.account(member.key)
        if moved is not None:
            self._found.theirs.update(_of_account(moved.account))
        # What the last totals of all starts add up to is what the services go on from.
        self._found.ours["producers", "slots by start"] += _slots(posting.account.totals)
        blobs = self._target.starts(member.key, round(posting.at * 1000))
        self._found.theirs["producers", "slots by start"] += sum(_slots(totals) for totals in _totals(blobs))

    def _count_history(self, member: Member) -> None:
        at_ms = self._source.instants(member)
        young = at_ms[self._way.ages(MARGIN_S).young(at_ms)]
        self._found.too_old["snapshots"] += len(at_ms) - len(young)
        for batch in self._snapshots(member, young.tolist()):
            self._found.ours.update(_of_history(batch.values()))
            there = (blob for _, blob in self._target.history(member.key, list(batch)))
            self._found.theirs.update(_of_history(_totals(there)))
            self._way.say(f"counting: {self._found.ours['snapshots', '']:,} snapshots")

    def _snapshots(self, member: Member, instants_ms: list[int]) -> Iterator[dict[int, Totals]]:
        """Snapshots that can be read, by when they were true, a batch at a time."""
        found = self._readable(member, instants_ms)
        return map(dict, batches(found, lambda item: item[1].nbytes, BATCH_BYTES))

    def _readable(self, member: Member, instants_ms: list[int]) -> Iterator[tuple[int, Totals]]:
        for at_ms in instants_ms:
            try:
                yield at_ms, decode_totals(self._source.snapshot(member, at_ms))
            except ValueError as error:
                self._found.leave_out("snapshots", f"of {member.key} at {at_ms / 1000:.3f}: {error}")

    def _count_traces(self) -> None:
        for batch in batches(self._parts(), lambda part: part.nbytes, BATCH_BYTES):
            self._compare(batch)

    def _parts(self) -> Iterator[MovedPart]:
        for request in self._source.requests(0):
            if is_too_old(request, self._way.ages(MARGIN_S)):
                self._found.too_old["requests"] += 1
                continue
            try:
                check_request(request)
            except ValueError as error:
                self._found.leave_out("requests", f"{request.row[4]}: {error}")
                continue
            yield from self._of_request(request)

    def _of_request(self, request: Request) -> Iterator[MovedPart]:
        for trace in request.traces:
            reason = why_unreadable(self._source, request, trace)
            if reason is None:
                yield from parts_of(self._source, request, trace)
            else:
                self._found.leave_out("traces", f"of {request.row[4]}: {reason}")

    def _compare(self, parts: Sequence[MovedPart]) -> None:
        """Count parts on both sides; a request and a trace count with the first part that they have."""
        there = self._target.headers(parts)
        found = self._found
        for part in parts:
            ours = _of_part(part, self._is_first("requests", part), self._is_first("traces", part))
            found.ours.update(ours)
            header = there.get(part.key)
            if header is not None:
                life, tokens, nbytes = header
                same = {place: count for place, count in ours.items() if place[1] == ""}
                own = {("parts", "tokens"): tokens, ("parts", "bytes that tell of them"): nbytes}
                found.theirs.update((same if life == part.header["life"] else {}) | own)
        slots, ids = self._target.slots(parts)
        found.theirs.update({("parts", "slots"): slots, ("parts", "sum of experts"): ids})
        self._way.say(f"counting: {found.ours['parts', '']:,} parts of traces")

    def _is_first(self, kind: str, part: MovedPart) -> bool:
        """Whether a part is the first one of its request, or trace; they come one after the other."""
        names = REQUEST if kind == "requests" else TRACE
        which = tuple(part.header[name] for name in (*names, "life"))
        before, self._last[kind] = self._last.get(kind), which
        return before != which


def _of_account(account: AccountState) -> dict[Place, int]:
    totals = account.totals
    counted = {
        "": 1,
        "slots": _slots(totals),
        "tokens": totals.tokens,
        "steps": totals.steps,
        "starts": account.epochs_seen,
    }
    counted |= {f"dropped: {reason}": number for reason, number in sorted(totals.drops.items())}
    counted |= {f"traces {name}": number for name, number in sorted(account.latest.traces.items())}
    return {("producers", what): number for what, number in counted.items()}


def _of_history(snapshots: Iterable[Totals]) -> Counter[Place]:
    found: Counter[Place] = Counter()
    for totals in snapshots:
        found["snapshots", ""] += 1
        found["snapshots", "slots"] += _slots(totals)
        found["snapshots", "tokens"] += totals.tokens
    return found


def _of_part(part: MovedPart, begins_request: bool, begins_trace: bool) -> dict[Place, int]:
    told = [part.header[name] for name in ("runs", "steps", "taken_over")]
    names, tokens = part.header["names"], part.header["tokens"]
    assert isinstance(names, list)
    assert isinstance(tokens, int)
    return {
        ("requests", ""): int(begins_request),
        ("traces", ""): int(begins_trace),
        ("parts", ""): 1,
        ("parts", "tokens"): tokens,
        ("parts", "bytes that tell of them"): len(names) + sum(len(item) for item in told if _is_bytes(item)),
        ("parts", "slots"): sum(int((ids != NO_EXPERT).sum()) for ids in part.ids),
        ("parts", "sum of experts"): sum(int(ids.sum(dtype=np.int64)) for ids in part.ids),
    }


def _is_bytes(value: object) -> TypeGuard[bytes]:
    return isinstance(value, bytes)


def _totals(blobs: Iterable[bytes]) -> Iterator[Totals]:
    """Those that can be read."""
    for blob in blobs:
        with contextlib.suppress(ValueError):
            yield decode_totals(blob)


def _slots(totals: Totals) -> int:
    return int(totals.counts.sum())
