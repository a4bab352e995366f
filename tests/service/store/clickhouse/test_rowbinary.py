"""Rows as the bytes that ClickHouse reads and writes."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.store.clickhouse.rowbinary import decode_rows, encode_rows


def test_rows_as_bytes() -> None:
    row = [-5, "ä", b"\0\0", ["x", "y" * 200], np.array([0, 255, 0], np.uint8), np.array([0, 384], np.uint16)]
    [[number, text, data, names, ids8, ids16]] = decode_rows(encode_rows([row]), "itbTBH")
    assert [number, text, data, names, ids8.tolist(), ids16.tolist()] == [
        *row[:4],
        [0, 255, 0],
        [0, 384],
    ]
    with pytest.raises(ValueError, match="too early"):
        decode_rows(encode_rows([row])[:-1], "itbTBH")
    with pytest.raises(TypeError):
        encode_rows([[object()]])  # type: ignore[list-item]
