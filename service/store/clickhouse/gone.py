"""Names of requests that were removed, so that an answer can say so: hashes of them, a bounded number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.pacing import Server
from moescope.service.store.clickhouse.trace_rows import TRACE
from moescope.service.store.interface import Absence
from moescope.service.store.names import hash_of

MOST: Final = 1 << 18
"""Names that are remembered: of some 80,000 requests."""
_HASH: Final = "reinterpretAsInt64(sipHash64({}))"
_INCOMPLETE: Final = (
    "SELECT any(parts) FROM trace_part FINAL WHERE has(names, {name:String}) "
    f"GROUP BY {', '.join(TRACE)} HAVING count() < any(parts) LIMIT 1"
)


def remember(
    connection: Server, where: str, why: Absence, now_ms: int, parameters: Mapping[str, object]
) -> None:
    """Remember the names of traces that are about to be removed; if there are too many, older ones go.

    Args:
        where: a condition on ``trace_part``, with these ``parameters``.
        now_ms: milliseconds of Unix time.
    """
    connection.maintain(
        f"INSERT INTO gone (name, why, at_ms) SELECT DISTINCT {_HASH.format('arrayJoin(names)')}, "
        f"'{why}', {now_ms} FROM trace_part WHERE {where}",
        parameters,
    )
    # Names that went at once have one instant: by that alone none of them would stay where they are too many.
    newest = connection.rows(
        f"SELECT at_ms, name FROM gone FINAL ORDER BY at_ms DESC, name DESC LIMIT 1 OFFSET {MOST}", "ii"
    )
    if newest:
        connection.delete(
            "gone",
            "at_ms < {at:Int64} OR at_ms = {at:Int64} AND name <= {name:Int64}",
            dict(zip(("at", "name"), newest[0], strict=True)),
        )


def why_absent(connection: Connection, name: str) -> Absence | None:
    """See :class:`moescope.service.store.interface.Store`."""
    asked = {"name": name}
    if connection.rows(_INCOMPLETE, "i", asked):
        return "incomplete"
    # A folder that was moved here has hashes of its own kind.
    hashes = f"{_HASH.format('{name:String}')}, {{moved:Int64}}"
    found = connection.rows(
        f"SELECT why FROM gone FINAL WHERE name IN ({hashes}) ORDER BY at_ms DESC LIMIT 1",
        "t",
        {**asked, "moved": hash_of(name)},
    )
    if not found:
        return None
    return "evicted" if found[0][0] == "evicted" else "expired"
