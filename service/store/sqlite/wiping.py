"""Blocks that hold tokens of traces which are gone: what nobody can ask for any more is wiped."""

from __future__ import annotations

import sqlite3

import msgspec
import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray
from moescope.service.store.sqlite.connections import transaction
from moescope.service.store.sqlite.hits import only_lanes
from moescope.service.store.sqlite.segments import SegmentWriter, read_packed

_layers_decoder = msgspec.msgpack.Decoder(list[MoeLayer])


def wipe(connection: sqlite3.Connection) -> None:
    """Make all blocks anew of which a piece went, with zeros in its place; each in a transaction."""
    writer = SegmentWriter()
    for (block,) in connection.execute("SELECT block FROM to_wipe").fetchall():
        with transaction(connection):
            _wipe_block(connection, block, writer)
            connection.execute("DELETE FROM to_wipe WHERE block = ?", (block,))


def _wipe_block(connection: sqlite3.Connection, block: int, writer: SegmentWriter) -> None:
    id_bytes, layers_blob, tokens, hits, blob = connection.execute(
        "SELECT id_bytes, layers, tokens, hits, experts FROM block WHERE id = ?", (block,)
    ).fetchone()
    live = connection.execute("SELECT lane, first, tokens FROM piece WHERE block = ?", (block,)).fetchall()
    try:
        layers = _layers_decoder.decode(layers_blob)
        experts = read_packed(blob, layers, id_bytes, tokens, None)
        hits = only_lanes(hits, layers, [lane for lane, _, _ in live])
    except ValueError:
        return  # it is damaged: nobody can read it, wiped or not
    connection.execute(
        "UPDATE block SET hits = ?, experts = ? WHERE id = ?",
        (
            hits,
            writer.packed([_kept(ids, [row[1:] for row in live]) for ids in experts]),
            block,
        ),
    )


def _kept(ids: ExpertArray, spans: list[tuple[int, int]]) -> bytes:
    """Raw little-endian ids with zeros outside of (first, count) spans."""
    kept = np.zeros_like(ids, f"<u{ids.dtype.itemsize}")
    for first, count in spans:
        kept[first : first + count] = ids[first : first + count]
    return kept.tobytes()
