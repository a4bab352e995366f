"""The schema in ClickHouse, as migrations: version N is the first N of them.

Each statement can be run again without harm, since several services may start at the same time. A migration
that was released is never changed; a change is a new one at the end.

All tables are of the ReplacingMergeTree family: sending a row twice is sending it once, and of rows with one
sorting key the one with the highest version wins, whichever service wrote it and in whatever order.
Ids are Array(UInt8) or Array(UInt16), never FixedString: cast to String that loses zeros at its end, which
are slots of expert 0.
"""

from __future__ import annotations

import re
from typing import Final

_CREATE: Final = re.compile(r"CREATE (DATABASE|TABLE) IF NOT EXISTS (\w+)(.*)", re.DOTALL)
_WHO: Final = "server String, model String, dp_rank Int64, pp_rank Int64, tp_rank Int64"
_KEY: Final = "server, model, dp_rank, pp_rank, tp_rank"
_REQUEST: Final = "server, model, dp_rank, request_id"
_TRACE: Final = f"{_REQUEST}, pp_rank, tp_rank, epoch, number"

_V1: Final = (
    # The account after the newest frame of each epoch; `writer` is the service that kept it.
    f"""CREATE TABLE IF NOT EXISTS account (
        {_WHO}, epoch Int64, seq Int64, birth_ms Int64, at_ms Int64, writer String, account String
    ) ENGINE = ReplacingMergeTree(seq) ORDER BY ({_KEY}, epoch)""",
    # Cumulative totals, one row a second at most: removing a row costs resolution, never counts.
    f"""CREATE TABLE IF NOT EXISTS snapshot (
        {_WHO}, second Int64, at_ms Int64, epoch Int64, seq Int64, totals String
    ) ENGINE = ReplacingMergeTree(at_ms) ORDER BY ({_KEY}, second) SETTINGS index_granularity = 256""",
    # Parts of traces. `come` rises with each and is unique; of a part that came twice the first stays.
    f"""CREATE TABLE IF NOT EXISTS trace_part (
        {_WHO}, request_id String, epoch Int64, number Int64, part Int64, parts Int64, names Array(String),
        outcome String, prompt_tokens Int64, cached_tokens Int64, preemptions Int64, started_ms Int64,
        ended_ms Int64, stored_ms Int64, come Int64, earlier Int64, tokens Int64, runs String,
        INDEX by_name names TYPE bloom_filter(0.001) GRANULARITY 1,
        INDEX by_come come TYPE bloom_filter(0.001) GRANULARITY 1
    ) ENGINE = ReplacingMergeTree(earlier) PARTITION BY intDiv(started_ms, 86400000)
    ORDER BY ({_TRACE}, part) SETTINGS index_granularity = 1024""",
    # A row a layer of a part: ids [tokens x top_k] in one of two widths, and the experts among them.
    f"""CREATE TABLE IF NOT EXISTS routing (
        {_WHO}, request_id String, epoch Int64, number Int64, part Int64, started_ms Int64, layer Int64,
        num_experts Int64, top_k Int64, taken Array(UInt16) CODEC(ZSTD(1)),
        ids8 Array(UInt8) CODEC(ZSTD(1)), ids16 Array(UInt16) CODEC(ZSTD(1))
    ) ENGINE = ReplacingMergeTree PARTITION BY intDiv(started_ms, 86400000)
    ORDER BY ({_TRACE}, part, layer) SETTINGS index_granularity = 256""",
    # Small things by name; the newest version wins, also when it says that the thing is gone.
    """CREATE TABLE IF NOT EXISTS document (
        kind String, name String, content String, version Int64, gone Int64
    ) ENGINE = ReplacingMergeTree(version) ORDER BY (kind, name)""",
)

_V2: Final = (
    # The version of the model's weights that computed the part's tokens; 0 in parts of older workers.
    "ALTER TABLE trace_part ADD COLUMN IF NOT EXISTS weights_version Int64 DEFAULT 0",
)

_V3: Final = (
    # What is told of the request and of its trace; empty, 0 or -1 where the worker didn't tell it. `life`
    # tells requests of one id apart; `taken_over` is in the first part only, msgpack; `steps` as `steps.py`.
    "ALTER TABLE trace_part "
    + ", ".join(
        f"ADD COLUMN IF NOT EXISTS {column}"
        for column in (
            *("role String", "pool String", "lora String", "finish_reason String"),
            *("accepted_drafts Int64", "rejected_drafts Int64", "taken_over String", "steps String"),
            *("life Int64", "pp_size Int64", "started_step Int64 DEFAULT -1", "computed_tokens Int64"),
        )
    ),
    # Names of requests that were removed, as hashes, and why.
    """CREATE TABLE IF NOT EXISTS gone (
        name Int64, why String, at_ms Int64
    ) ENGINE = ReplacingMergeTree(at_ms) ORDER BY name""",
)

_V4: Final = (
    # When the server had the row, microseconds of Unix time on its clock: what services tell each other is
    # read in this order, whatever their own clocks show.
    "ALTER TABLE account ADD COLUMN IF NOT EXISTS written Int64 DEFAULT toUnixTimestamp64Micro(now64(6))",
    "ALTER TABLE account MATERIALIZE COLUMN written SETTINGS mutations_sync = 1",
    # Cumulative totals of one start of a producer, one row a second at most. Totals at an instant are the sum
    # of its starts. Epoch -1 has what an earlier moescope kept without telling of which start it is.
    # `snapshot` has totals of all starts together, from before this table was.
    f"""CREATE TABLE IF NOT EXISTS life (
        {_WHO}, epoch Int64, second Int64, at_ms Int64, seq Int64, began_ms Int64, totals String
    ) ENGINE = ReplacingMergeTree(seq) ORDER BY ({_KEY}, epoch, second) SETTINGS index_granularity = 256""",
)


def for_cluster(statement: str, cluster: str | None) -> str:
    """A statement of the schema as the servers of a cluster need it; None: as one server does.

    A table is made on each server, under a path that is made of its UUID, which is the same on all of them.
    Whatever changes a table then, its replicas do by themselves.
    """
    if cluster is None or not statement.startswith("CREATE"):
        return statement
    kind, name, rest = _CREATE.fullmatch(statement).groups()  # type: ignore[union-attr]  # all are so
    rest = rest.replace("ENGINE = ReplacingMergeTree", "ENGINE = ReplicatedReplacingMergeTree")
    return f"CREATE {kind} IF NOT EXISTS {name} ON CLUSTER '{cluster}'{rest}"


MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_V1, _V2, _V3, _V4)

VERSIONS: Final = (
    "CREATE TABLE IF NOT EXISTS schema_version (version Int64) ENGINE = ReplacingMergeTree ORDER BY version"
)
