"""Moves a folder's store into a ClickHouse: each row is written once more or not at all, never twice.

The order: history, traces, documents, and the accounts last. A service on the ClickHouse knows of a producer
by its account, so it shows nothing half. What is written again takes the place of what was written before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final, TypeVar

from moescope.service.counts.account import Account
from moescope.service.store.clickhouse.rowbinary import Value
from moescope.service.store.clickhouse.trace_rows import Numbers
from moescope.service.store.codec import decode_totals
from moescope.service.store.moving import progress as progresses
from moescope.service.store.moving.ages import Ages
from moescope.service.store.moving.parts import MovedPart, check_request, parts_of, why_unreadable
from moescope.service.store.moving.pins import is_newer
from moescope.service.store.moving.source import Member, Request
from moescope.service.store.moving.target import Target
from moescope.service.store.moving.way import Way
from moescope.service.store.records import Document, Posting, StoreError

BATCH_BYTES: Final = 8 << 20
"""Bytes of totals, or of ids, that are written at once. Memory is bounded by four times that, with one part
of a trace or one snapshot beyond it."""
_BATCH_ROWS: Final = 512
_NAMED: Final = 3
_STORED: Final = 11  # its place in a request's row

Item = TypeVar("Item")


class Mover:
    """One run.

    Args:
        way: from where to where.
        batch_bytes: see :data:`BATCH_BYTES`.

    Attributes:
        begun: an earlier run of this folder has begun to write; then it is gone on with.
        done_ms: when an earlier run was done with all that is in the folder; 0: none was.
        theirs: documents that were on the ClickHouse already, and other ones; they stay.
    """

    def __init__(self, way: Way, batch_bytes: int = BATCH_BYTES) -> None:
        self._way = way
        self._source = source = way.source
        self._target = target = way.target
        self._batch_bytes = batch_bytes
        found = progresses.read(target.connection, source.name)
        self.begun = found is not None
        fingerprint = source.fingerprint()
        self._progress = progresses.begin(fingerprint)
        if found is not None and found.fingerprint == fingerprint:
            self._progress = found
        elif found is not None:
            self._progress.own = found.own
        self.done_ms = self._progress.done_ms
        self.theirs = set(self._progress.theirs)

    def check(self, merge: bool) -> None:
        """The target has no data, or it may be merged with.

        Raises:
            StoreError: neither.
        """
        if self.begun:
            return
        there = self._target.what_is_there()
        name = self._target.connection.name
        told = ", ".join(f"{count} {what}" for what, count in there.items())
        if there and not merge:
            raise StoreError(
                f"{name} has data already ({told}): give --merge to add this folder's, or name an empty "
                "database"
            )
        summed = self._target.summed_up([member.key for member in self._source.members])
        if summed:
            shown = ", ".join(map(str, summed[:_NAMED]))
            raise StoreError(
                f"{name} has history of {len(summed)} of these producers from another folder, or from an "
                f"earlier moescope ({shown}). It doesn't say of which start it is, so that two of that kind "
                "can't be told apart: name another database"
            )

    def move(self) -> None:
        """Write all that isn't there.

        Raises:
            StoreError: one of the two can't be read or written. Another run goes on.
        """
        progresses.note(self._target.connection, self._source.name, self._progress)
        self._move_history()
        self._move_traces()
        for names in self._source.gone():
            self._target.write_gone(names, self._progress.began_ms)
        self._move_documents()
        self._move_accounts()

    def end(self, all_there: bool) -> None:
        """Note that it is done; or, if something lacks, that another run is to write all again."""
        if all_there:
            self._progress.done_ms = round(self._way.clock() * 1000)
            self._progress.theirs = tuple(sorted(self.theirs))
        else:
            self._progress.history, self._progress.requests, self._progress.last = (0, 0), 0, 0
        progresses.note(self._target.connection, self._source.name, self._progress)

    def _move_history(self) -> None:
        total, seen = self._source.sizes()[0], 0
        for member in self._source.members:
            at_ms = self._source.instants(member)
            seen += len(at_ms)
            young = at_ms[self._way.ages().young(at_ms)]
            upto_id, upto_ms = self._progress.history
            if member.id < upto_id:
                continue
            left = young[young > upto_ms] if member.id == upto_id else young
            for batch in self._snapshots(member, left.tolist()):
                self._target.write_history(member.key, batch)
                self._progress.history = (member.id, batch[-1][0])
                self._note(f"history: {seen - int((at_ms > batch[-1][0]).sum()):,} of {total:,} snapshots")

    def _snapshots(self, member: Member, instants_ms: list[int]) -> Iterator[list[tuple[int, bytes]]]:
        """Snapshots that can be read, a batch at a time."""
        found = ((at_ms, self._source.snapshot(member, at_ms)) for at_ms in instants_ms)
        readable = (item for item in found if _is_totals(item[1]))
        return batches(readable, lambda item: len(item[1]), self._batch_bytes)

    def _move_traces(self) -> None:
        total, before = self._source.sizes()[1], self._source.requests_upto(self._progress.requests)
        numbers = Numbers(self._progress.own, self._progress.last)
        batch = _Batch(self._target, self._batch_bytes)
        for seen, request in enumerate(self._source.requests(self._progress.requests), before + 1):
            for part in self._parts(request):
                batch.add(part, numbers)
            if batch.is_due:  # never between the parts of a request, or they would get other numbers again
                batch.write()
                self._progress.requests, self._progress.last = request.number, numbers.last
                self._note(f"traces: {seen:,} of {total:,} requests")
        batch.write()

    def _parts(self, request: Request) -> Iterator[MovedPart]:
        """The parts of those traces of a request that can be read as a whole."""
        if is_too_old(request, self._way.ages()):
            return
        try:
            check_request(request)
        except ValueError:
            return
        for trace in request.traces:
            if why_unreadable(self._source, request, trace) is None:
                yield from parts_of(self._source, request, trace)

    def _move_documents(self) -> None:
        """Keep those that the target doesn't have; what it says itself of one of the name stays.

        Of baselines the newest word counts: the folder may have been in use again since it was moved.
        """
        self._way.say("documents")
        lacking = self._lacking_documents()
        for batch in batches(lacking, lambda item: len(item.content or b""), self._batch_bytes):
            self._target.write_documents(batch)

    def _lacking_documents(self) -> Iterator[Document]:
        for document in self._source.documents():
            there = self._target.word_on(document.kind, document.name)
            if there is None or is_newer(document, *there):
                yield document
            elif there[0] != document.content:
                self.theirs.add((document.kind, document.name))

    def _move_accounts(self) -> None:
        self._way.say("accounts")
        readable = [member for member in self._source.members if self._can_be_read(member)]
        lost = len(readable) < len(self._source.members) or not self._source.is_whole
        postings = (self._source.posting(member) for member in readable)
        for batch in batches(postings, lambda item: item.account.totals.nbytes, self._batch_bytes):
            self._target.write_accounts([self._begun_at_zero(item) if lost else item for item in batch])

    def _can_be_read(self, member: Member) -> bool:
        try:
            self._source.posting(member)
        except ValueError:
            return False
        return True

    def _begun_at_zero(self, posting: Posting) -> Posting:
        """With counters that begin at zero, as a service's do that lost something: see `continuity.py`."""
        account = Account.restored(posting.account, max(1, len(posting.account.epochs)))
        account.leave_all_out(self._way.clock())
        return replace(posting, account=account.state())

    def _note(self, said: str) -> None:
        progresses.note(self._target.connection, self._source.name, self._progress)
        self._way.say(said)


def batches(items: Iterable[Item], nbytes: Callable[[Item], int], most_bytes: int) -> Iterator[list[Item]]:
    """Items in lists of so many bytes, at most one item beyond that."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += nbytes(item)
        if len(batch) == _BATCH_ROWS or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Batch:
    """Parts of traces that are written at once."""

    def __init__(self, target: Target, most_bytes: int) -> None:
        self._target = target
        self._most_bytes = most_bytes
        self._routing: list[list[Value]] = []
        self._headers: list[list[Value]] = []
        self._nbytes = 0
        self._begun = False

    @property
    def is_due(self) -> bool:
        """Whether it is large enough, or a part of what was added is written already."""
        return self._begun or self._is_full

    @property
    def _is_full(self) -> bool:
        return len(self._headers) >= _BATCH_ROWS or self._nbytes >= self._most_bytes

    def add(self, part: MovedPart, numbers: Numbers) -> None:
        """Add a part; parts before it are written if there are too many of them."""
        if self._is_full:
            self.write()
            self._begun = True
        stored_ms = part.header["stored_ms"]
        assert isinstance(stored_ms, int)
        self._headers.append(part.header_row(numbers.next(stored_ms)))
        self._routing += part.routing_rows()
        self._nbytes += part.nbytes

    def write(self) -> None:
        """Write what was added."""
        self._target.write_parts(self._routing, self._headers)
        self._routing, self._headers, self._nbytes, self._begun = [], [], 0, False


def _is_totals(blob: bytes) -> bool:
    try:
        decode_totals(blob)
    except ValueError:
        return False
    return True


def is_too_old(request: Request, ages: Ages) -> bool:
    """Whether the services would remove a request at once."""
    return bool(request.row[_STORED] < ages.oldest_trace_ms)
