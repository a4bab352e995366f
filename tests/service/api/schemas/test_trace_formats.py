"""Traces that are larger than a chunk, in every format, and put together from several workers."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT
from moescope.service.api.schemas.trace_formats import (
    TraceFormat,
    as_json,
    as_npz,
    as_raw,
    memory_of,
)
from moescope.service.api.schemas.trace_tables import as_arrow, as_parquet
from moescope.service.api.schemas.traces import TraceOut
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.extent import Extent
from moescope.service.traces.routing import Routing, Rows, put_together
from tests.service.trace_parts import part

LAYERS = (MoeLayer(1, 300, 2), MoeLayer(4, 16, 3))
POSITIONS = 20_000  # three chunks
REQUEST = TraceOut(
    request_id="r",
    names=["r"],
    server="s",
    model="m",
    dp_rank=0,
    outcome="ended",
    tokens=1,
    prompt_tokens=1,
    cached_tokens=0,
    preemptions=0,
    started_at=0.0,
    ended_at=0.0,
    stored_at=0.0,
    role="",
    pool="",
    lora="",
    finish_reason="",
    accepted_drafts=0,
    rejected_drafts=0,
    missing_stages=0,
    missing_tokens=0,
)


def worker(positions: np.ndarray, layers: tuple[MoeLayer, ...], seed: int) -> WorkerTrace:
    rng = np.random.default_rng(seed)
    experts = [
        rng.integers(0, layer.num_experts, (len(positions), layer.top_k), np.uint16) for layer in layers
    ]
    experts[0][rng.random(experts[0].shape) < 0.1] = NO_EXPERT
    return trace_of(layers, positions, experts)


def trace_of(
    layers: tuple[MoeLayer, ...], positions: np.ndarray, experts: Sequence[np.ndarray]
) -> WorkerTrace:
    """A trace that is read from memory."""
    runs = np.stack([positions, np.ones_like(positions)], axis=1).astype(np.int64)

    def read(start: int, end: int) -> tuple[np.ndarray, ...]:
        return tuple(ids[start:end].copy() for ids in experts)

    return WorkerTrace(layers, experts[0].itemsize, len(positions), (3, 3), lambda: runs, read)


@pytest.fixture(scope="module")
def workers() -> list[WorkerTrace]:
    """Two shards of the tokens, of which some were computed again, and a third worker with the last layer."""
    rng = np.random.default_rng(0)
    order = np.concatenate([np.arange(5, POSITIONS), rng.integers(5, POSITIONS, 500)])
    shard = rng.random(len(order)) < 0.5
    return [
        worker(order[shard], LAYERS[:1], 1),
        worker(order[~shard], LAYERS[:1], 2),
        worker(order, LAYERS[1:], 3),
    ]


def expected(workers: list[WorkerTrace], first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The experts and how often each position was computed, one token after the other."""
    experts = np.full((end - first, 2, 3), -1, np.int16)
    times = np.zeros((2, end - first), np.int64)
    for trace in workers:
        for layer, ids in zip(trace.layers, trace.experts, strict=True):
            place = LAYERS.index(layer)
            for position, row in zip(trace.positions.tolist(), ids, strict=True):
                if first <= position < end:
                    experts[position - first, place, : len(row)] = np.where(
                        row == NO_EXPERT, -1, row.astype(int)
                    )
                    times[place, position - first] += 1
    return experts, times.max(axis=0)


def whole(routing: Routing, positions: int = POSITIONS) -> Rows:
    """All of it at once."""
    chunks = list(routing.chunks(positions))
    return Rows(
        np.concatenate([rows.experts for rows in chunks]), np.concatenate([rows.times for rows in chunks])
    )


@pytest.mark.parametrize(("first", "end"), [(0, POSITIONS), (8190, 8200), (17, 17)])
def test_chunks_are_the_whole(workers: list[WorkerTrace], first: int, end: int) -> None:
    routing = put_together(workers, first, end)
    experts, times = expected(workers, first, end)
    assert routing.shape == experts.shape
    np.testing.assert_array_equal(whole(routing, 999).experts, experts)
    np.testing.assert_array_equal(whole(routing, 999).times, times)
    np.testing.assert_array_equal(np.concatenate(list(routing.times(77))), times)


def read_raw(content: bytes, routing: Routing) -> np.ndarray:
    return np.frombuffer(content, "<i2").reshape(routing.shape)


def read_npz(content: bytes, routing: Routing) -> np.ndarray:
    loaded = np.load(io.BytesIO(content))
    assert loaded["first_position"] == 3
    assert loaded["layers"].tolist() == [1, 4]
    assert loaded["num_experts"].tolist() == [300, 16]
    assert loaded["top_k"].tolist() == [2, 3]
    np.testing.assert_array_equal(loaded["times_computed"], whole(routing).times)
    return np.asarray(loaded["routed_experts"])


def read_parquet(content: bytes, routing: Routing) -> np.ndarray:
    return read_table(pq.read_table(io.BytesIO(content)), routing)


def read_arrow(content: bytes, routing: Routing) -> np.ndarray:
    return read_table(pa.ipc.open_stream(content).read_all(), routing)


def read_table(table: pa.Table, routing: Routing) -> np.ndarray:
    assert table["position"].to_pylist() == list(range(3, POSITIONS))
    times = whole(routing).times
    assert table["times_computed"].to_pylist() == times.tolist()
    found = np.full(routing.shape, -1, np.int16)
    for place, layer in enumerate(routing.layers):
        for row, ids in enumerate(table[f"layer_{layer.layer}"].to_pylist()):
            assert (ids is None) == (times[row] == 0)
            if ids is not None:
                found[row, place, : layer.top_k] = ids
    return found


@pytest.mark.parametrize(
    ("write", "read"),
    [(as_raw, read_raw), (as_npz, read_npz), (as_parquet, read_parquet), (as_arrow, read_arrow)],
)
def test_a_large_trace_goes_out_in_pieces(
    workers: list[WorkerTrace],
    write: Callable[[Routing], Iterator[bytes]],
    read: Callable[[bytes, Routing], np.ndarray],
) -> None:
    routing = put_together(workers, 3)
    pieces = list(write(routing))
    assert len(pieces) >= 3
    assert max(map(len, pieces)) < 0.6 * sum(map(len, pieces))
    found = read(b"".join(pieces), routing)
    np.testing.assert_array_equal(found, whole(routing).experts)


@pytest.mark.parametrize("write", [as_raw, as_npz, as_parquet, as_arrow])
def test_no_position_at_all(workers: list[WorkerTrace], write: Callable[[Routing], Iterator[bytes]]) -> None:
    content = b"".join(write(put_together(workers, 9, 9)))
    if write is as_npz:
        assert np.load(io.BytesIO(content))["routed_experts"].shape == (0, 2, 3)
    elif write is as_parquet:
        assert pq.read_table(io.BytesIO(content)).num_rows == 0
    elif write is as_arrow:
        assert pa.ipc.open_stream(content).read_all().num_rows == 0
    else:
        assert content == b""


WRITERS: dict[TraceFormat, Callable[[Routing], Iterator[bytes]]] = {
    TraceFormat.RAW: as_raw,
    TraceFormat.NPZ: as_npz,
    TraceFormat.PARQUET: as_parquet,
    TraceFormat.ARROW: as_arrow,
    TraceFormat.JSON: lambda routing: as_json(REQUEST, routing),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerTrace]]:
    """12,000 tokens of 24 layers, top-8, in the embedded store."""
    wide = [MoeLayer(number, 256, 8) for number in range(24)]
    experts = [np.random.default_rng(n).integers(0, 256, (12_000, 8), np.uint8) for n in range(24)]
    store = SqliteStore(tmp_path_factory.mktemp("store"), Retention())
    store.save([ArrivedPart(part(1, experts=experts, layers=wide, tokens=12_000), 1.0)])
    [found] = store.traced_requests(TraceQuery())
    yield store.traces(found.number, None)
    store.close()


@pytest.mark.parametrize("kind", TraceFormat)
def test_an_answer_takes_no_more_memory_than_was_said_before(
    stored: list[WorkerTrace], kind: TraceFormat
) -> None:
    said = memory_of(kind, Extent.of(stored), 12_000)
    assert said <= {TraceFormat.PARQUET: 40 << 20}.get(kind, 16 << 20)
    if kind is not TraceFormat.PARQUET:  # its footer grows with the rows
        assert said == memory_of(kind, Extent.of(stored), 1 << 22)
    first, *_ = WRITERS[kind](put_together(stored, 0, 10))  # imports, and what is made once
    assert first
    before, out = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for block in WRITERS[kind](put_together(stored)):
            out += len(block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak + pa.total_allocated_bytes() - before <= said
    assert out > 2 << 20
