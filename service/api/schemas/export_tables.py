"""An export as one table, of Parquet or as an Arrow stream: a row a position. Both need pyarrow, an extra."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.api.schemas.ahead import in_turn, made_ahead
from moescope.service.api.schemas.sink import Sink
from moescope.service.api.schemas.trace_formats import footer_bytes, rows_of
from moescope.service.api.schemas.trace_tables import arrow
from moescope.service.store.records import TracedRequest
from moescope.service.traces.export import LeftOut, Piece
from moescope.service.traces.routing import BoolArray, ExpertRows

GROUP_BYTES: Final = 4 << 20
"""Bytes of experts, int16, in a row group of Parquet."""
BATCH_BYTES: Final = 1 << 20
"""The same in a batch of Arrow."""
PACKED: Final = "routed_experts"
"""The column of packed experts."""
JOINED: Final = "joined"
"""The column that says where the rows of whole requests come from."""
TOLD_BYTES: Final = 1 << 20
"""Of that column in a batch, unless one request has more."""
_MOST_ITEMS: Final = 512  # of a batch, so that one of short requests is made soon

_WORDS: Final = ("server", "model", "role", "pool", "lora", "outcome", "finish_reason")
_NUMBERS: Final = (
    "dp_rank",
    "prompt_tokens",
    "cached_tokens",
    "preemptions",
    "accepted_drafts",
    "rejected_drafts",
    "missing_stages",
    "missing_tokens",
)
_TIMES: Final = ("started_at", "ended_at", "stored_at")


@dataclass(frozen=True, slots=True)
class TableShape:
    """What all rows of a table have in common.

    Attributes:
        layers: the layers that have a column, rising.
        dtype: of an expert.
        packed: one column of bytes, [layers, largest top-k] in C order, instead of a list for each layer.
        joined: whether there is the column of where rows come from.
    """

    layers: tuple[MoeLayer, ...]
    dtype: np.dtype[np.generic]
    packed: bool
    joined: bool = False

    @property
    def top_k(self) -> int:
        """The largest of any layer."""
        return max((layer.top_k for layer in self.layers), default=0)

    @property
    def position_bytes(self) -> int:
        """Of a position's experts as int16."""
        return 2 * len(self.layers) * self.top_k

    def memory(self, nbytes: int, rows: int) -> int:
        """The most bytes that are held while a table of so many rows is made, ``nbytes`` of experts at once.

        A position is unpacked, joined and chosen (3 times its bytes), then put into columns (8 times). For
        Parquet, which has rows here, the next batch is unpacked and put into columns while one is written
        (4 times). Of several traces it is joined once more (twice), and what is told of them is there in two
        batches, three with Parquet, and packed.
        """
        footer = footer_bytes(rows, rows_of(nbytes, self.position_bytes), self._columns)
        times, told = (13, 6 * TOLD_BYTES) if self.joined else (11, 0)
        if rows:
            times, told = times + 4, told + (2 * TOLD_BYTES if self.joined else 0)
        return times * max(nbytes, self.position_bytes) + footer + told

    @property
    def _columns(self) -> int:
        fixed = len(_WORDS) + len(_NUMBERS) + len(_TIMES) + 7 + self.joined
        return fixed + (1 if self.packed else len(self.layers))


def parquet_blocks(items: Iterable[Piece | LeftOut], shape: TableShape) -> Generator[bytes]:
    """The file, a row group after the other.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    pa, pq = arrow(), arrow("pyarrow.parquet")
    # A dictionary makes of ids what they are, some bits each, which hardly compress
    numbers = () if shape.packed else (layer.layer for layer in shape.layers)
    lists = {f"layer_{number}": f"layer_{number}.list.element" for number in numbers}

    def begin(sink: Sink, schema: Any) -> tuple[Any, Callable[[Any], None]]:
        plain = [name for name in schema.names if name != PACKED and name not in lists]
        writer = pq.ParquetWriter(
            sink,
            schema,
            compression=dict.fromkeys(schema.names, "zstd") | dict.fromkeys(lists.values(), "snappy"),
            use_dictionary=[*plain, *lists.values()],
            write_statistics=plain,
            dictionary_pagesize_limit=2 * TOLD_BYTES,  # beyond it a word is written for each row
        )
        return writer, lambda batch: writer.write_table(pa.Table.from_batches([batch]))

    return _blocks(pa, begin, items, shape, GROUP_BYTES, made_ahead)


def arrow_blocks(items: Iterable[Piece | LeftOut], shape: TableShape) -> Generator[bytes]:
    """The IPC stream, a batch after the other.

    Raises:
        ProblemError: pyarrow is not installed.
    """
    pa = arrow()

    def begin(sink: Sink, schema: Any) -> tuple[Any, Callable[[Any], None]]:
        writer = pa.ipc.new_stream(sink, schema)
        return writer, writer.write_batch

    return _blocks(pa, begin, items, shape, BATCH_BYTES, in_turn)


def _blocks(
    pa: Any,
    begin: Callable[[Sink, Any], tuple[Any, Callable[[Any], None]]],
    items: Iterable[Piece | LeftOut],
    shape: TableShape,
    nbytes: int,
    step: Callable[[Iterator[Any], Callable[[Any], None]], Iterator[None]],
) -> Generator[bytes]:
    sink, schema = Sink(), _schema(pa, shape)
    writer, write = begin(sink, schema)
    rows = rows_of(nbytes, shape.position_bytes)
    for _ in step((_batch(pa, schema, some, shape) for some in _batches(items, rows)), write):
        yield sink.take()
    writer.close()
    yield sink.take()


def _batches(items: Iterable[Piece | LeftOut], most: int) -> Iterator[list[Piece | LeftOut]]:
    """Items whose rows are as many as fit, which is at least one item; an item has at most ``most``."""
    together: list[Piece | LeftOut] = []
    rows = told = 0
    for item in items:
        count, more = _rows_of(item), 0 if isinstance(item, LeftOut) else len(item.of.told)
        full = rows + count > most or told + more > TOLD_BYTES or len(together) == _MOST_ITEMS
        if together and full:
            yield together
            together, rows, told = [], 0, 0
        together.append(item)
        rows += count
        told += more
    if together:
        yield together


def _rows_of(item: Piece | LeftOut) -> int:
    return 1 if isinstance(item, LeftOut) else len(item.rows.times)


def _schema(pa: Any, shape: TableShape) -> Any:
    word = pa.dictionary(pa.int32(), pa.string())
    fields = [(name, word) for name in ("cursor", "request_id", "client_id")]
    fields += [(name, word) for name in _WORDS]
    fields += [(name, pa.int64()) for name in _NUMBERS]
    fields += [(name, pa.timestamp("ms", "UTC")) for name in _TIMES]
    fields += [(name, pa.int64()) for name in ("position", "times_computed", "weights_version")]
    fields += [("left_out", word)]
    fields += [(JOINED, word)] if shape.joined else []
    expert = pa.from_numpy_dtype(shape.dtype)
    if shape.packed:
        fields += [(PACKED, pa.binary(shape.dtype.itemsize * len(shape.layers) * shape.top_k))]
    else:
        fields += [(f"layer_{layer.layer}", pa.list_(expert, layer.top_k)) for layer in shape.layers]
    told = {
        "layers": [layer.layer for layer in shape.layers],
        "num_experts": [layer.num_experts for layer in shape.layers],
        "top_k": [layer.top_k for layer in shape.layers],
    }
    metadata = {f"moescope.{name}": ",".join(map(str, values)) for name, values in told.items()}
    return pa.schema(fields, metadata | {"moescope.dtype": shape.dtype.newbyteorder("<").str})


def _batch(pa: Any, schema: Any, items: Sequence[Piece | LeftOut], shape: TableShape) -> Any:
    counts = np.array([_rows_of(item) for item in items])
    found = [item.found for item in items]
    of_item = np.repeat(np.arange(len(items)), counts)

    def words(values: Iterable[str | None]) -> Any:
        listed = list(values)
        place = {value: at for at, value in enumerate(dict.fromkeys(v for v in listed if v is not None))}
        at = np.array([-1 if value is None else place[value] for value in listed], np.int32)[of_item]
        mask = at < 0 if None in listed else None
        return pa.DictionaryArray.from_arrays(pa.array(at, mask=mask), pa.array(list(place), pa.string()))

    def numbers(values: Iterable[float | None], kind: Any) -> Any:
        listed = list(values)
        if None not in listed:
            return pa.array(np.array(listed, np.int64)[of_item], kind)
        nothing = np.array([value is None for value in listed])
        filled = np.array([0 if value is None else value for value in listed], np.int64)
        return pa.array(filled[of_item], kind, mask=nothing[of_item])

    columns = [
        words(str(item.number if isinstance(item, LeftOut) else item.found.number) for item in items),
        words(None if each is None else each.request_id for each in found),
        words(None if each is None else each.names[-1] for each in found),
        *(words(_field(each, name) for each in found) for name in _WORDS),
        *(numbers((_field(each, name) for each in found), pa.int64()) for name in _NUMBERS),
        *(numbers((_ms(each, name) for each in found), pa.timestamp("ms", "UTC")) for name in _TIMES),
        *_of_positions(pa, items),
        words(item.why if isinstance(item, LeftOut) else None for item in items),
        *([words(_told(item) for item in items)] if shape.joined else []),
        *_of_experts(pa, items, shape),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _told(item: Piece | LeftOut) -> str | None:
    return None if isinstance(item, LeftOut) else item.of.told


def _field(found: TracedRequest | None, name: str) -> Any:
    return None if found is None else getattr(found, name)


def _ms(found: TracedRequest | None, name: str) -> int | None:
    return None if found is None else round(1000 * getattr(found, name))


def _of_positions(pa: Any, items: Sequence[Piece | LeftOut]) -> list[Any]:
    nothing = np.repeat([isinstance(item, LeftOut) for item in items], [*map(_rows_of, items)])
    columns = zip(*map(_numbers_of, items), strict=True)
    mask = nothing if nothing.any() else None
    return [pa.array(np.concatenate(column), mask=mask) for column in columns]


def _numbers_of(item: Piece | LeftOut) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Positions, how often each was computed, and by which version of the weights."""
    if isinstance(item, LeftOut):
        nothing = np.zeros(1, np.int64)
        return nothing, nothing, nothing
    times = item.rows.times
    return np.arange(item.first, item.first + len(times)), times, _weights(item)


def _weights(item: Piece) -> Int64Array:
    """For each position the version of the weights that computed it last."""
    found = np.zeros(len(item.rows.times), np.int64)
    for computed in item.of.versions:
        found[max(0, computed.first - item.first) : max(0, computed.end - item.first)] = computed.version
    return found


def _of_experts(pa: Any, items: Sequence[Piece | LeftOut], shape: TableShape) -> list[Any]:
    parts = [_experts(item, shape) for item in items]
    experts = np.concatenate([part for part, _ in parts]).astype(shape.dtype, copy=False)
    masks = [mask for _, mask in parts]
    there = None if all(mask.all() for mask in masks) else np.concatenate(masks)
    if shape.packed:
        any_layer = None if there is None else there.any(axis=1)
        width = shape.dtype.itemsize * len(shape.layers) * shape.top_k
        bits = None if any_layer is None else pa.py_buffer(np.packbits(any_layer, bitorder="little"))
        data = pa.py_buffer(np.ascontiguousarray(experts.astype(shape.dtype.newbyteorder("<"), copy=False)))
        return [pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(experts), [bits, data])]
    columns = []
    for at, layer in enumerate(shape.layers):
        flat = pa.array(np.ascontiguousarray(experts[:, at, : layer.top_k]).reshape(-1))
        mask = None if there is None else pa.array(~there[:, at])
        columns.append(pa.FixedSizeListArray.from_arrays(flat, layer.top_k, mask=mask))
    return columns


def _experts(item: Piece | LeftOut, shape: TableShape) -> tuple[ExpertRows, BoolArray]:
    """The experts [n, L, K] of an item in the table's layers, and where there are any, bool [n, L]."""
    size = (_rows_of(item), len(shape.layers))
    if isinstance(item, LeftOut):
        return np.full((*size, shape.top_k), _filler(shape.dtype), shape.dtype), np.zeros(size, np.bool_)
    computed = item.rows.times > 0 if item.routing.has_gaps else np.ones(size[0], np.bool_)
    if item.routing.layers == shape.layers:
        return item.rows.experts, np.broadcast_to(computed[:, np.newaxis], size)
    experts: npt.NDArray[Any] = np.full((*size, shape.top_k), _filler(shape.dtype), shape.dtype)
    there = np.zeros(size, np.bool_)
    place = {layer: at for at, layer in enumerate(shape.layers)}
    for at, layer in enumerate(item.routing.layers):
        experts[:, place[layer], : layer.top_k] = item.rows.experts[:, at, : layer.top_k]
        there[:, place[layer]] = computed
    return experts, there


def _filler(dtype: np.dtype[np.generic]) -> int:
    return -1 if dtype.kind == "i" else 0
