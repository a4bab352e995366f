"""Parameters as a server takes them: each is a field of a form, which may have 128 KiB.

That is what ``http_max_field_value_size`` is unless a server's configuration says more, and a statement can't
change it. The names of thousands of workers, or of their requests, take more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

_MOST_BYTES: Final = 64_000
"""Of a field: some are in an address, where they take up to twice as much."""


def in_fields(sql: str, parameters: Mapping[str, object] | None) -> tuple[str, Mapping[str, object] | None]:
    """A statement and its parameters, of which the server puts long arrays together from several.

    Args:
        sql: has parameters as ``{name:Type}``.
        parameters: by name; arrays are lists of numbers and texts.
    """
    fields: dict[str, object] = {}
    for name, value in (parameters or {}).items():
        if not isinstance(value, list) or sum(map(_nbytes, value)) <= _MOST_BYTES:
            fields[name] = value
            continue
        pieces = {f"{name}_{n}": piece for n, piece in enumerate(_pieces(value))}
        joined = ", ".join(f"{{{each}:\\1}}" for each in pieces)
        sql = re.sub(rf"\{{{name}:([^}}]+)\}}", f"arrayConcat({joined})", sql)
        fields |= pieces
    return sql, fields or parameters


def _pieces(values: Sequence[object]) -> Iterator[list[object]]:
    """The values in lists that are short enough, unless one value alone is not."""
    piece: list[object] = []
    taken = 0
    for value in values:
        size = _nbytes(value)
        if piece and taken + size > _MOST_BYTES:
            yield piece
            piece, taken = [], 0
        piece.append(value)
        taken += size
    yield piece


def _nbytes(value: object) -> int:
    """What a value takes in an array: a text has quotes, and what is escaped takes one more."""
    if not isinstance(value, str):
        return len(str(value)) + 2
    return len(value.encode()) + value.count("'") + value.count("\\") + 4
