"""Whose computation each block of the KV cache holds, so that a trace names who computed its cached prefix.

Invariant: a block names a request only if that request computed these positions in this block, and has
computed them nowhere else since, so that its trace shows this very computation. All else has a reason.

A block is named by its number in the cache, not by vLLM's hash of its tokens: the hashes stay in the
scheduler's process, and equal tokens may have been computed by several requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from moescope.capture.protocol import MAX_NAME
from moescope.capture.seam.block_tables import KV_TRANSFER, BlockLayout, BlocksHandedOn, StepBlocks, Table
from moescope.capture.tracing.buffer import Trace
from moescope.capture.wire.traces import MAX_TAKEN_OVER, TakenOver

NOT_TRACED: Final = "not_traced"
"""The request that computed it is not traced."""
COMPUTED_AGAIN: Final = "computed_again"
"""The request that computed it did so once more elsewhere, and its trace shows that."""
NOT_SEEN: Final = "not_seen"
"""The worker has not seen who computed it."""
FAULT: Final = "fault"
"""Following the blocks has failed, which the log tells."""

REASONS: Final = (NOT_TRACED, KV_TRANSFER, COMPUTED_AGAIN, NOT_SEEN, FAULT)
"""A block without a writer has ``-1 - place`` of its reason instead of a writer's number."""
_COMPACT_AT: Final = 1024
"""With fewer writers nobody looks which ones are still needed."""

Int32Array = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


def _code(reason: str) -> int:
    return -1 - REASONS.index(reason)


def _whose(origin: TakenOver) -> tuple[str, str]:
    return origin.request_id, origin.why


@dataclass(slots=True, frozen=True)
class BlocksOfStep:
    """What a step changes in the tables, on its way to `BlockOrigins`.

    Attributes:
        blocks: the changes.
        traces: the traces of the requests in ``blocks.tables``, by id; those without are not traced.
        behind: changes of earlier steps were left out.
        size: how many numbers of blocks the changes have.
    """

    blocks: StepBlocks
    traces: Mapping[str, Trace]
    behind: bool = False
    size: int = 0


@dataclass(slots=True, frozen=True)
class BlocksReceived:
    """A KV connector filled blocks, nobody knows which."""


@dataclass(slots=True)
class _Writer:
    """A request since it began, or since its last preemption.

    Attributes:
        shown: from this position on its trace shows a later computation.
    """

    request_id: str
    shown: int = 1 << 62


@dataclass(slots=True)
class _Live:
    """A request at work: its writer, or the code of a reason, and the length of its table."""

    writer: int
    length: int


class _Run(NamedTuple):
    first: int
    end: int
    label: int


class BlockOrigins:
    """Follows the tables of blocks. One thread makes all calls.

    Memory: 16 bytes for each block of the cache, and a name for each request that still has one.
    """

    def __init__(self) -> None:
        self._unseen = NOT_SEEN
        self._given = self._layout = BlockLayout(why=NOT_SEEN)
        self._reset(self._layout)

    def take(self, event: BlocksOfStep | BlocksHandedOn | BlocksReceived) -> None:
        """What happened next."""
        if isinstance(event, BlocksOfStep):
            self.follow(event)
        elif isinstance(event, BlocksHandedOn):
            self._take_on(event)
        else:
            self.received()

    def follow(self, step: BlocksOfStep) -> None:
        """A step was scheduled: note who computes which blocks, and give its traces what they take over."""
        blocks = step.blocks
        if blocks.layout is not self._given or (step.behind and not self._layout.why):
            self._reset(blocks.layout)
        if self._layout.why:
            for table in blocks.tables:
                self._give(table, step, [TakenOver(0, table.computed, "", self._layout.why)])
            return
        for name in blocks.finished:
            self._live.pop(name, None)
        copied: list[tuple[int, int]] = []
        for table in blocks.tables:
            self._begin(table, blocks, table.request_id in step.traces, copied)
        for name, added in blocks.appended:
            self._append(name, added)
        for block, source in copied:
            self._before[block] = self._label_of(source, int(self._place[block]))
        # A request may hit blocks that others compute in this very step, so the hits come last.
        for table in blocks.tables:
            if table.computed and table.request_id in step.traces:
                self._give(table, step, self._origins(table))
        if len(self._writers) >= self._compact_at:
            self._compact()

    def _take_on(self, event: BlocksHandedOn) -> None:
        """A step was scheduled in which no request came or went."""
        if event.layout is not self._given:
            self._reset(event.layout)
        if not self._layout.why:
            for name, added in event.appended():
                self._append(name, added)

    def received(self) -> None:
        """A KV connector filled blocks: any of them may be in the prefix cache from now on."""
        self._unseen = KV_TRANSFER
        self._writer.fill(_code(KV_TRANSFER))
        self._low.fill(0)

    def give_up(self) -> None:
        """A fault: nothing is known any more, until the cache is another."""
        given = self._given
        self._reset(BlockLayout(why=FAULT))
        self._given = given

    def _reset(self, layout: BlockLayout) -> None:
        self._given = self._layout = layout
        self._writer: Int32Array = np.full(layout.blocks, _code(self._unseen), np.int32)
        self._place: Int32Array = np.zeros(layout.blocks, np.int32)
        self._low: Int32Array = np.zeros(layout.blocks, np.int32)
        self._before: Int32Array = np.full(layout.blocks, _code(NOT_SEEN), np.int32)
        self._writers: list[_Writer] = []
        self._of_request: dict[str, list[int]] = {}
        self._live: dict[str, _Live] = {}
        self._compact_at = _COMPACT_AT

    def _begin(self, table: Table, step: StepBlocks, traced: bool, copied: list[tuple[int, int]]) -> None:
        """A request computes all from the position ``table.computed`` on, and nothing before it."""
        name, computed, blocks = table
        shown = computed if name in self._live else 0  # another request had the same id
        for number in self._of_request.get(name, ()):
            self._writers[number].shown = min(self._writers[number].shown, shown)
        label = self._new_writer(name) if traced else _code(NOT_TRACED)
        first, offset = divmod(computed, self._layout.block_size)
        if step.loads:
            self._note(blocks[:first], 0, _code(KV_TRANSFER))
        if not offset:
            self._note(blocks[first:], first, label)
        else:
            block = blocks[first]
            before = _code(KV_TRANSFER) if step.loads else self._label_of(block, first)
            if block in step.copies:
                copied.append((block, step.copies[block]))
            self._note(blocks[first:], first, label)
            self._low[block], self._before[block] = offset, before
        self._live[name] = _Live(label, len(blocks))

    def _append(self, name: str, added: Sequence[int]) -> None:
        live = self._live.get(name)
        if live is None:
            self._note(added, 0, _code(NOT_SEEN))
            return
        self._note(added, live.length, live.writer)
        live.length += len(added)

    def _note(self, blocks: Sequence[int], place: int, label: int) -> None:
        """Blocks, the first of them at a place of a request's table, are computed by one writer."""
        if len(blocks) == 1:
            [only] = blocks
            self._writer[only], self._place[only], self._low[only] = label, place, 0
        elif blocks:
            several = np.array(blocks)
            self._writer[several], self._low[several] = label, 0
            self._place[several] = np.arange(place, place + len(blocks))

    def _label_of(self, block: int, place: int) -> int:
        """Who computed all of a block that a request has at a place of its table."""
        label = int(self._writer[block])
        if self._low[block] or (label >= 0 and self._place[block] != place):
            return _code(NOT_SEEN)
        return label

    def _new_writer(self, name: str) -> int:
        self._writers.append(_Writer(name))
        self._of_request.setdefault(name, []).append(len(self._writers) - 1)
        return len(self._writers) - 1

    def _origins(self, table: Table) -> Iterator[TakenOver]:
        """Who computed the first ``table.computed`` positions of a request."""
        for first, end, label in self._runs(table):
            if label < 0:
                yield TakenOver(first, end - first, "", REASONS[-1 - label])
                continue
            writer = self._writers[label]
            shown = min(max(writer.shown, first), end)
            if shown > first:
                yield TakenOver(first, shown - first, writer.request_id[:MAX_NAME])
            if end > shown:
                yield TakenOver(shown, end - shown, "", COMPUTED_AGAIN)

    def _runs(self, table: Table) -> Iterator[_Run]:
        """The same, by label: consecutive positions, in order."""
        size = self._layout.block_size
        count = -(-table.computed // size)
        blocks = np.array(table.blocks[:count])
        labels, low = self._writer[blocks], self._low[blocks]
        labels[(labels >= 0) & (self._place[blocks] != np.arange(count))] = _code(NOT_SEEN)
        apart = (low[1:] > 0) | (low[:-1] > 0) | (labels[1:] != labels[:-1])
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), count]
        for start, end in pairwise(edges):
            inner = start * size + int(low[start])
            for run in (
                _Run(start * size, min(inner, table.computed), int(self._before[blocks[start]])),
                _Run(inner, min(end * size, table.computed), int(labels[start])),
            ):
                if run.first < run.end:
                    yield run

    def _give(self, table: Table, step: BlocksOfStep, origins: Iterable[TakenOver]) -> None:
        """Tell a trace who computed what it has not: neither computed itself nor taken over before."""
        trace = step.traces.get(table.request_id)
        if trace is None:
            return
        for origin in origins:
            first, end = max(origin.first, trace.reached), origin.first + origin.count
            if first >= end:
                continue
            last = trace.taken_over[-1] if trace.taken_over else None
            if last is not None and last.first + last.count == first and _whose(last) == _whose(origin):
                first, _ = last.first, trace.taken_over.pop()
            if len(trace.taken_over) < MAX_TAKEN_OVER:
                trace.taken_over.append(TakenOver(first, end - first, *_whose(origin)))
        trace.reached = max(trace.reached, table.computed)

    def _compact(self) -> None:
        """Forget the writers of which no block is left."""
        partly = self._low > 0
        live = np.array([one.writer for one in self._live.values()], np.int32)
        used = np.unique(np.concatenate((self._writer, self._before[partly], live)))
        used = used[used >= 0]
        numbers = np.full(len(self._writers), _code(NOT_SEEN), np.int32)
        numbers[used] = np.arange(len(used))
        self._before[~partly] = _code(NOT_SEEN)
        for labels in (self._writer, self._before):
            labels[labels >= 0] = numbers[labels[labels >= 0]]
        for one in self._live.values():
            one.writer = int(numbers[one.writer]) if one.writer >= 0 else one.writer
        self._writers = [self._writers[number] for number in used.tolist()]
        self._of_request = {}
        for number, writer in enumerate(self._writers):
            self._of_request.setdefault(writer.request_id, []).append(number)
        self._compact_at = max(_COMPACT_AT, 2 * len(self._writers))
